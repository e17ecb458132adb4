//! The options that say where things are fetched from, and how: the same for every command that fetches.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use reqwest::Url;

use crate::base::error_chain::chain;
use crate::base::fs;
use crate::cli::credentials::CredentialsArgs;
use crate::cli::exit::{Code, Failure};
use crate::documents::list::Lists;
use crate::fetch::mirrors::Mirrors;
use crate::fetch::upstream::Upstream;
use crate::net::limits::Limits;
use crate::net::tls::TlsTrust;
use crate::oci::reference::canonical_host;

/// The largest file of certificates or mirrors that is read, in bytes.
const FILE_LIMIT: u64 = 16 << 20;

/// Where things are fetched from, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct UpstreamArgs {
    /// Fetch over this many connections at once
    #[arg(long, short, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Of these, at most this many to one host (default: all)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs_per_host: Option<u16>,
    /// Repeat a request that failed in a way that may pass this many times
    #[arg(long, default_value_t = 4, value_name = "N")]
    retries: u32,
    /// Take any certificate, or plain http, from this registry or mirror
    #[arg(long, value_name = "HOST", value_parser = parse_host)]
    insecure_registry: Vec<String>,
    /// Fetch what is on HOST, files and images alike, from URL; a path in URL comes before theirs. The next mirror of
    /// the same HOST, and HOST itself, are asked for what it does not give
    #[arg(long, value_name = "HOST[/PATH]=URL", value_parser = parse_mirror)]
    mirror: Vec<(String, Url)>,
    /// Ask mirrors alone, never the host itself
    #[arg(long)]
    mirrors_only: bool,
    /// Take mirrors from this file (containers-registries.conf), too. Default: what `CONTAINERS_REGISTRIES_CONF` names
    #[arg(long, value_name = "FILE")]
    registries_conf: Option<PathBuf>,
    /// Trust the certificate authorities in this file (PEM), too
    #[arg(long, value_name = "FILE")]
    ca_file: Vec<PathBuf>,
    /// Show HOST the certificate in this file (PEM), which holds its key, too, if that has no file of its own
    #[arg(long, value_name = "HOST=CERT[,KEY]", value_parser = parse_client_cert)]
    client_cert: Vec<(String, PathBuf, PathBuf)>,
    /// Give up connecting after this time; seconds, or with a unit: ms, s, m, h
    #[arg(long, default_value = "20s", value_name = "TIME", value_parser = parse_time)]
    connect_timeout: Duration,
    /// Take a connection that brings nothing for this time, or less than 1 KiB a second, for broken
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = parse_time)]
    idle_timeout: Duration,
    /// Give up if all is not fetched in this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,
    #[command(flatten)]
    credentials: CredentialsArgs,
}

impl UpstreamArgs {
    /// What they say, checked.
    fn upstream(self) -> Result<Upstream, Failure> {
        let mut mirrors = Mirrors::default();
        mirrors.only = self.mirrors_only;
        for (host, url) in &self.mirror {
            let scheme = if url.scheme() == "http" { "http" } else { "https" };
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            let location = format!("{}{port}{}", url.host_str().unwrap_or_default(), url.path());
            mirrors.add(host, scheme, &location);
        }
        // The name that the other tools have for it. Their files under /etc are not looked at: what is packed
        // should not depend on who packs it.
        let of_environment = || {
            let path = std::env::var_os("CONTAINERS_REGISTRIES_CONF").filter(|path| !path.is_empty());
            path.map(PathBuf::from)
        };
        if let Some(path) = self.registries_conf.or_else(of_environment) {
            let text = String::from_utf8(read(&path)?).map_err(|error| wrong(&path, &error))?;
            mirrors.add_file(&text).map_err(|error| wrong(&path, &error))?;
        }
        let mut trust = TlsTrust::default();
        for path in &self.ca_file {
            trust.add_authorities(&read(path)?).map_err(|error| wrong(path, &error))?;
        }
        for (host, certificate, key) in &self.client_cert {
            let pems = (read(certificate)?, read(key)?);
            trust.add_identity(host, &pems.0, &pems.1).map_err(|error| wrong(certificate, &error))?;
        }
        Ok(Upstream {
            mirrors,
            insecure: self.insecure_registry,
            trust,
            jobs: self.jobs.into(),
            jobs_per_host: self.jobs_per_host.map(Into::into),
            tries: self.retries.saturating_add(1),
            limits: Limits { connect: self.connect_timeout, idle: self.idle_timeout, total: self.timeout },
            ..Upstream::default()
        })
    }

    /// The same with the credentials for what `lists` name.
    pub(crate) fn upstream_for(mut self, lists: &Lists) -> Result<Upstream, Failure> {
        let credentials = std::mem::take(&mut self.credentials);
        let upstream = self.upstream()?;
        let credentials = Arc::new(credentials.credentials(&upstream, lists)?);
        Ok(Upstream { credentials, ..upstream })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path, FILE_LIMIT).map_err(|error| Failure::new(Code::File, chain(&error)))
}

fn wrong(path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::new(Code::Usage, format!("`{}` is of no use: {}", path.display(), chain(error)))
}

fn parse_mirror(text: &str) -> Result<(String, Url), String> {
    let (prefix, url) = text.split_once('=').ok_or("expected HOST=URL")?;
    let (host, path) = prefix.split_once('/').unwrap_or((prefix, ""));
    if path.starts_with('/') {
        return Err(format!("`{prefix}` is no host, and no host with a path"));
    }
    let prefix = format!("{}/{path}", parse_host(host)?).trim_end_matches('/').to_owned();
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
    Ok((prefix, url))
}

fn parse_client_cert(text: &str) -> Result<(String, PathBuf, PathBuf), String> {
    let (host, files) = text.split_once('=').ok_or("expected HOST=CERT,KEY")?;
    let (certificate, key) = files.split_once(',').unwrap_or((files, files));
    if certificate.is_empty() || key.is_empty() {
        return Err("expected HOST=CERT,KEY".into());
    }
    Ok((parse_host(host)?, certificate.into(), key.into()))
}

/// A time that is not nothing: `90`, `90s`, `500ms`, `5m`, `2h`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: Option<u64> = number.parse().ok().filter(|number| (1..1 << 40).contains(number));
    let time = match (number, unit) {
        (Some(number), "ms") => Duration::from_millis(number),
        (Some(number), "" | "s") => Duration::from_secs(number),
        (Some(number), "m") => Duration::from_secs(number * 60),
        (Some(number), "h") => Duration::from_secs(number * 3600),
        _ => return Err("expected a number with ms, s, m or h, such as 90s".into()),
    };
    Ok(time)
}

/// A host as references have it. Whether it is one is not looked at: there is a warning if no list names it.
fn parse_host(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('/') {
        return Err(format!("`{text}` is no host"));
    }
    Ok(canonical_host(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_with_a_unit() {
        for (text, milliseconds) in
            [("90", 90_000), ("90s", 90_000), ("5ms", 5), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "0", "s", "-1", "1d", "1.5s", "1 s", "99999999999999999999"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_mirror_is_for_a_host_or_a_part_of_it() {
        let (prefix, url) = parse_mirror("Index.Docker.io/library/=http://h:1/x").unwrap();
        assert_eq!((prefix.as_str(), url.as_str()), ("docker.io/library", "http://h:1/x"));
        for text in
            ["quay.io", "=http://h", "quay.io=h", "quay.io=ftp://h", "quay.io=http://u:p@h", "q=http://h?a"]
        {
            assert!(parse_mirror(text).is_err(), "{text}");
        }
    }
}
