//! `airbundle pack`: lists in, one bundle out.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::base::error_chain::chain;
use crate::base::fs;
use crate::base::units::human_bytes;
use crate::bundle::format::INDEX_LIMIT;
use crate::bundle::format::index::BundleInfo;
use crate::bundle::format::volume_name::SUMS;
use crate::cli::date::source_date;
use crate::cli::exit::{Code, Failure, read_code};
use crate::cli::keygen::signer;
use crate::cli::output::{print, summary_json};
use crate::cli::progress::Output;
use crate::cli::size::{parse_share, parse_volume_size};
use crate::cli::upstream::UpstreamArgs;
use crate::commands::pack::{Input, Missing, PackError, PackOptions, PackSummary, pack};
use crate::commands::unpack::GUIDE_TEXT;
use crate::documents::inventory::InventoryError;
use crate::documents::list::{ListError, Lists};
use crate::documents::lock::{Lock, LockError};
use crate::fetch::resolve::locked::lists_of;
use crate::fetch::resolve::referrers::ArtifactKind;
use crate::net::error::FetchError;
use crate::oci::platform::Platform;
use crate::plan::site_contents::BaseError;

/// Fetch everything that lists name, and write it into one bundle
#[derive(Debug, Args)]
pub(crate) struct Pack {
    /// A list of files and images, a directory with files.list and images.list, or one lock
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
    with: Vec<ArtifactKind>,
    #[command(flatten)]
    upstream: UpstreamArgs,
    /// Compress at this zstd level
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// Call the bundle this, for people: shown by `ls` and on the site's page
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// Write the lock of what was packed, too
    #[arg(long, value_name = "FILE")]
    write_lock: Option<PathBuf>,
    /// Take what has not changed out of this older bundle, instead of fetching it
    #[arg(long, value_name = "BUNDLE")]
    reuse: Vec<PathBuf>,
    /// Leave out what the site has: its inventory (unbundle inventory), or a lock or bundle that it has unpacked
    #[arg(long, value_name = "FILE")]
    base: Vec<PathBuf>,
    /// Sign the bundle with this secret key, of `airbundle keygen` or of minisign
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Read the passphrase of that key from stdin [default: `AIRBUNDLE_PASSPHRASE` of the environment, or ask]
    #[arg(long, requires = "sign", conflicts_with = "password_stdin")]
    passphrase_stdin: bool,
    /// Write volumes of at most this many bytes, FILE.001 and so on: such as 1900MiB, or fat32, dvd, github-release
    #[arg(long, value_name = "SIZE", value_parser = parse_volume_size)]
    volume_size: Option<u64>,
    /// Add recovery data, with which damage up to this share of each volume can be repaired, such as 5%
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    recovery: Option<u32>,
    /// Run this shell command for each volume as soon as it is complete; its $1 is the path. It may remove the volume
    #[arg(long, value_name = "COMMAND", requires = "volume_size", conflicts_with_all = ["keep_going", "allow_missing"])]
    on_volume: Option<String>,
    /// When something cannot be fetched, fetch all the rest, keep it for the next run, and report every failure
    #[arg(long)]
    keep_going: bool,
    /// The same, and make a bundle without what cannot be fetched; the exit code still tells
    #[arg(long)]
    allow_missing: bool,
    #[command(flatten)]
    out: Output,
}

impl Pack {
    /// Packs.
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let input = read_input(&self.lists)?;
        if matches!(input, Input::Lock(_)) && !(self.platform.is_empty() && self.with.is_empty()) {
            let message = "`--platform` and `--with` do not go with a lock, which says it already: lock anew";
            return Err(Failure::new(Code::Usage, message));
        }
        let upstream = match &input {
            Input::Lists(lists) => self.upstream.upstream_for(lists)?,
            Input::Lock(lock) => self.upstream.upstream_for(&lists_of(lock)?)?,
        };
        let (output, platforms, level) = (self.output, self.platform, self.level);
        let guide = Some(GUIDE_TEXT.to_owned());
        let date = source_date()?;
        let created = date.and_then(|date| date.format(&Rfc3339).ok());
        let about = BundleInfo { title: self.title, created, guide };
        // Nothing is fetched before the passphrase has turned out to be right.
        let sign = self.sign.map(|key| signer(&key, self.passphrase_stdin)).transpose()?;
        let sign = sign.map(|signer| signer.at(date.map(OffsetDateTime::unix_timestamp)));
        let missing = match (self.keep_going, self.allow_missing) {
            (_, true) => Missing::Allow,
            (true, false) => Missing::KeepGoing,
            (false, false) => Missing::Stop,
        };
        let options = PackOptions {
            output,
            platforms,
            with: self.with,
            level,
            upstream,
            about,
            write_lock: self.write_lock,
            reuse: self.reuse,
            base: self.base,
            missing,
            sign,
            volume_size: self.volume_size,
            recovery: self.recovery,
            on_volume: self.on_volume,
        };
        let reporter = self.out.reporter();
        let result = pack(&input, &options, &*reporter);
        drop(reporter);
        let summary = result.map_err(pack_failure)?;
        print(&self.out.result(|| text(&summary, &options), || summary_json(&summary)))?;
        if summary.missing.is_empty() {
            return Ok(Code::Success);
        }
        let failure = fetch_failure(&summary.missing);
        let what = format!(
            "`{}` is without {} of what the lists name",
            options.output.display(),
            summary.missing.len()
        );
        Err(Failure { messages: [failure.messages, vec![what]].concat(), ..failure })
    }
}

fn text(summary: &PackSummary, options: &PackOptions) -> String {
    let mut others = String::new();
    for (bytes, what) in [(summary.bytes_resumed, "there from before"), (summary.bytes_reused, "reused")] {
        if bytes > 0 {
            others = format!("{others}, {} {what}", human_bytes(bytes));
        }
    }
    let mut left_out = String::new();
    if summary.blobs_left_out > 0 {
        left_out = format!(
            "a delta: {} more blobs ({}) are left out, as the site has them\n",
            summary.blobs_left_out,
            human_bytes(summary.bytes_left_out)
        );
    } else if !options.base.is_empty() {
        "no delta: nothing of this is in the base\n".clone_into(&mut left_out);
    }
    let volumes = match summary.volumes.len() {
        0 => String::new(),
        count => format!(" in {count} volumes, and {SUMS}"),
    };
    format!(
        "{} files and {} images: {} blobs, {} fetched{others}, {} saved by sharing\n{left_out}{}: {}{volumes}, {:.1} s\nidentity {}\n",
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

/// Reads lists, or one lock.
fn read_input(paths: &[PathBuf]) -> Result<Input, Failure> {
    let mut locks = Vec::new();
    for path in paths {
        if let Some(lock) = read_lock(path)? {
            locks.push((path, lock));
        }
    }
    match locks.pop() {
        None => Ok(Input::Lists(Lists::read(paths).map_err(list_failure)?)),
        Some((_, lock)) if paths.len() == 1 => Ok(Input::Lock(lock)),
        Some((path, _)) => {
            let message =
                format!("`{}` is a lock, which stands alone: lock the lists together", path.display());
            Err(Failure::new(Code::Usage, message))
        }
    }
}

/// Reads `path` if it is a lock.
pub(super) fn read_lock(path: &Path) -> Result<Option<Lock>, Failure> {
    // A list may come through a pipe, which can be read once; and what cannot be read is told as a list is.
    let mut first = Vec::new();
    if !path.is_file()
        || File::open(path).and_then(|file| file.take(64).read_to_end(&mut first)).is_err()
        || !Lock::is_one(&first)
    {
        return Ok(None);
    }
    let bytes = fs::read(path, INDEX_LIMIT).map_err(|error| Failure::new(Code::File, chain(&error)))?;
    let lock = Lock::parse(&bytes).map_err(|error| {
        let failure = Failure::from(error);
        let named = |message| format!("`{}`: {message}", path.display());
        Failure { messages: failure.messages.into_iter().map(named).collect(), ..failure }
    })?;
    Ok(Some(lock))
}

pub(super) fn list_failure(error: ListError) -> Failure {
    let code = if matches!(error, ListError::Read { .. }) { Code::File } else { Code::List };
    match error {
        ListError::Problems(problems) => {
            Failure { code, messages: problems.iter().map(ToString::to_string).collect() }
        }
        error => Failure::new(code, chain(&error)),
    }
}

fn fetch_failure(failures: &[FetchError]) -> Failure {
    let mismatch = failures.iter().any(FetchError::is_mismatch);
    let messages = failures.iter().map(|failure| chain(failure)).collect();
    Failure { code: if mismatch { Code::Mismatch } else { Code::Fetch }, messages }
}

pub(super) fn pack_failure(error: PackError) -> Failure {
    match error {
        PackError::Fetch(failures) => fetch_failure(&failures),
        PackError::Reuse(path, error) => {
            let failure = Failure::from(error);
            let reuse = |message| format!("cannot reuse `{}`: {message}", path.display());
            Failure { messages: failure.messages.into_iter().map(reuse).collect(), ..failure }
        }
        PackError::Base(path, error) => {
            let code = match &error {
                BaseError::Fs(_) => Code::File,
                BaseError::Inventory(InventoryError::Version(_)) | BaseError::Lock(LockError::Version(_)) => {
                    Code::NotABundle
                }
                BaseError::Inventory(_) | BaseError::Lock(_) => Code::List,
                BaseError::Bundle(error) => read_code(error),
            };
            let path = path.display();
            Failure::new(code, format!("cannot use `{path}` as base: {}", chain(&error)))
        }
        PackError::Lock(error) => error.into(),
        PackError::Fs(error) => Failure::new(Code::File, chain(&error)),
        PackError::Busy(_) => Failure::new(Code::Busy, chain(&error)),
        PackError::VolumeSize { .. } => Failure::new(Code::Usage, chain(&error)),
        PackError::Command(error) => Failure::new(Code::Command, chain(&error)),
        PackError::Plan(_) => Failure::new(Code::Fetch, chain(&error)),
    }
}
