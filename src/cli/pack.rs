//! `airbundle pack`: lists in, one bundle out.

use std::collections::HashMap;
use std::path::PathBuf;

use clap::Args;
use reqwest::Url;

use crate::bundle::index::About;
use crate::cli::exit::{Code, Failure};
use crate::cli::progress::Output;
use crate::cli::{chain, print, summary_json};
use crate::event::human_bytes;
use crate::fetch::error::FetchError;
use crate::fetch::resolve::Upstream;
use crate::list::{ListError, Lists};
use crate::pack::{Options, PackError, Summary, pack};
use crate::platform::Platform;
use crate::reference::canonical_host;
use crate::unpack::GUIDE_TEXT;

/// Fetch everything that lists name, and write it into one bundle
#[derive(Debug, Args)]
pub struct Pack {
    /// A list of files and images, or a folder with files.list and images.list
    #[arg(required = true, value_name = "LIST")]
    lists: Vec<PathBuf>,
    /// The bundle to be written; the name usually ends in .tar.zst
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Take these platforms of images that have several, such as linux/amd64 (default: all)
    #[arg(long, value_name = "OS/ARCH", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Fetch over this many connections at once
    #[arg(long, short, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Compress at this zstd level
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// Repeat a request that failed in a way that may pass this many times
    #[arg(long, default_value_t = 4, value_name = "N")]
    retries: u32,
    /// Take any certificate, or plain http, from this registry or mirror
    #[arg(long, value_name = "HOST", value_parser = parse_host)]
    insecure_registry: Vec<String>,
    /// Fetch what is on HOST, files and images alike, from URL instead; a path in URL comes before theirs
    #[arg(long, value_name = "HOST=URL", value_parser = parse_mirror)]
    mirror: Vec<(String, Url)>,
    /// Call the bundle this, for people: shown by `ls` and on the site's page
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    #[command(flatten)]
    out: Output,
}

impl Pack {
    /// Packs.
    pub fn run(self) -> Result<Code, Failure> {
        let lists = Lists::read(&self.lists).map_err(list_failure)?;
        let mut mirrors = HashMap::new();
        for (host, url) in self.mirror {
            if mirrors.insert(host.clone(), url).is_some() {
                return Err(Failure::new(Code::Usage, format!("`--mirror` is given twice for `{host}`")));
            }
        }
        let upstream = Upstream {
            mirrors,
            insecure: self.insecure_registry,
            jobs: self.jobs.into(),
            tries: self.retries.saturating_add(1),
        };
        let (output, platforms, level) = (self.output, self.platform, self.level);
        let guide = Some(GUIDE_TEXT.to_owned());
        let about = About { title: self.title, created: created()?, guide };
        let options = Options { output, platforms, level, upstream, about };
        let reporter = self.out.reporter();
        let result = pack(lists, &options, &*reporter);
        drop(reporter);
        let summary = result.map_err(pack_failure)?;
        print(&self.out.result(|| text(&summary, &options), || summary_json(&summary)))?;
        Ok(Code::Success)
    }
}

/// When the bundle is said to be packed: at `SOURCE_DATE_EPOCH` (reproducible-builds.org), in seconds since 1970, as
/// the clock would make other bytes of the same input.
fn created() -> Result<Option<String>, Failure> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    let time = seconds.and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok());
    let time = time.and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok());
    let wrong = || {
        Failure::new(
            Code::Usage,
            format!("`SOURCE_DATE_EPOCH` is `{}`: expected seconds since 1970", text.display()),
        )
    };
    time.map(Some).ok_or_else(wrong)
}

fn text(summary: &Summary, options: &Options) -> String {
    format!(
        "{} files and {} images: {} blobs, {} fetched, {} saved by sharing\n{}: {}, {:.1} s\nidentity {}\n",
        summary.files,
        summary.images,
        summary.blobs,
        human_bytes(summary.bytes_fetched),
        human_bytes(summary.bytes_shared),
        options.output.display(),
        human_bytes(summary.bundle_size),
        summary.time.as_secs_f64(),
        summary.identity,
    )
}

fn list_failure(error: ListError) -> Failure {
    let code = if matches!(error, ListError::Read { .. }) { Code::File } else { Code::List };
    match error {
        ListError::Problems(problems) => {
            Failure { code, messages: problems.iter().map(ToString::to_string).collect() }
        }
        error => Failure::new(code, chain(&error)),
    }
}

fn pack_failure(error: PackError) -> Failure {
    match error {
        PackError::Fetch(failures) => {
            let mismatch = failures.iter().any(FetchError::is_mismatch);
            let messages = failures.iter().map(|failure| chain(failure)).collect();
            Failure { code: if mismatch { Code::Mismatch } else { Code::Fetch }, messages }
        }
        PackError::Fs(error) => Failure::new(Code::File, chain(&error)),
        PackError::Busy(_) => Failure::new(Code::Busy, chain(&error)),
        PackError::Layout(_) | PackError::Limit(..) => Failure::new(Code::Fetch, chain(&error)),
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
