//! `airbundle pack`: lists in, one bundle out.

use std::path::PathBuf;

use clap::Args;

use crate::bundle::index::About;
use crate::cli::exit::{Code, Failure};
use crate::cli::progress::Output;
use crate::cli::upstream::UpstreamArgs;
use crate::cli::{chain, print, summary_json};
use crate::event::human_bytes;
use crate::fetch::attached::Attached;
use crate::fetch::error::FetchError;
use crate::list::{ListError, Lists};
use crate::pack::{Options, PackError, Summary, pack};
use crate::platform::Platform;
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
    /// Take what is attached to the images, too
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    with: Vec<Attached>,
    #[command(flatten)]
    upstream: UpstreamArgs,
    /// Compress at this zstd level
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
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
        let upstream = self.upstream.upstream_for(&lists)?;
        let (output, platforms, with, level) = (self.output, self.platform, self.with, self.level);
        let guide = Some(GUIDE_TEXT.to_owned());
        let about = About { title: self.title, created: created()?, guide };
        let options = Options { output, platforms, with, level, upstream, about };
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
