//! The options that say where things are fetched from, and how: the same for every command that fetches.

use std::collections::HashMap;
use std::sync::Arc;

use clap::Args;
use reqwest::Url;

use crate::cli::credentials::CredentialsArgs;
use crate::cli::exit::{Code, Failure};
use crate::fetch::upstream::Upstream;
use crate::list::Lists;
use crate::reference::canonical_host;

/// Where things are fetched from, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct UpstreamArgs {
    /// Fetch over this many connections at once
    #[arg(long, short, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Repeat a request that failed in a way that may pass this many times
    #[arg(long, default_value_t = 4, value_name = "N")]
    retries: u32,
    /// Take any certificate, or plain http, from this registry or mirror
    #[arg(long, value_name = "HOST", value_parser = parse_host)]
    insecure_registry: Vec<String>,
    /// Fetch what is on HOST, files and images alike, from URL instead; a path in URL comes before theirs
    #[arg(long, value_name = "HOST=URL", value_parser = parse_mirror)]
    mirror: Vec<(String, Url)>,
    #[command(flatten)]
    credentials: CredentialsArgs,
}

impl UpstreamArgs {
    /// What they say, checked.
    fn upstream(self) -> Result<Upstream, Failure> {
        let mut mirrors = HashMap::new();
        for (host, url) in self.mirror {
            if mirrors.insert(host.clone(), url).is_some() {
                return Err(Failure::new(Code::Usage, format!("`--mirror` is given twice for `{host}`")));
            }
        }
        Ok(Upstream {
            mirrors,
            insecure: self.insecure_registry,
            jobs: self.jobs.into(),
            tries: self.retries.saturating_add(1),
            ..Upstream::default()
        })
    }

    /// The same with the credentials for what `lists` name.
    pub fn upstream_for(mut self, lists: &Lists) -> Result<Upstream, Failure> {
        let credentials = std::mem::take(&mut self.credentials);
        let upstream = self.upstream()?;
        let credentials = Arc::new(credentials.credentials(&upstream, lists)?);
        Ok(Upstream { credentials, ..upstream })
    }
}

fn parse_mirror(text: &str) -> Result<(String, Url), String> {
    let (host, url) = text.split_once('=').ok_or("expected HOST=URL")?;
    let host = parse_host(host)?;
    let url = Url::parse(url).map_err(|error| format!("`{url}` is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(format!("`{url}` does not begin with http:// or https:// and a host"));
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err("the URL may have a host and a path, and nothing else".into());
    }
    Ok((host, url))
}

/// A host as references have it. Whether it is one is not looked at: there is a warning if no list names it.
fn parse_host(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('/') {
        return Err(format!("`{text}` is no host"));
    }
    Ok(canonical_host(text))
}
