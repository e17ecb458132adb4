//! `airbundle pack`: fetches the entries of lists or of a lock and writes one bundle.

use std::path::PathBuf;

use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::base::event::Event;
use crate::base::fs;
use crate::base::title::Title;
use crate::base::units::human_bytes;
use crate::bundle::format::index::BundleInfo;
use crate::bundle::format::release::{Expiry, Release, ReleaseName, Sequence};
use crate::bundle::format::volume_name::SUMS;
use crate::cli::console::Text;
use crate::cli::date::source_date;
use crate::cli::documents::read_lock;
use crate::cli::exit::{Code, Failure};
use crate::cli::keygen::{exposure, signer};
use crate::cli::progress::Output;
use crate::cli::selection::SelectionArgs;
use crate::cli::size::{VolumeSize, parse_percent, parse_volume_size, release_name};
use crate::cli::trust::TrustArgs;
use crate::cli::upstream::UpstreamArgs;
use crate::cli::urls::{UrlArgs, refresh_urls};
use crate::commands::pack::error::PackError;
use crate::commands::pack::options::{Input, Missing, PackOptions};
use crate::commands::pack::pack;
use crate::commands::pack::summary::PackSummary;
use crate::commands::pack::volume_command::CommandError;
use crate::commands::unpack::GUIDE_TEXT;
use crate::documents::inventory::InventoryError;
use crate::documents::list::{FileEntry, Lists};
use crate::net::error::FetchError;
use crate::plan::bundle_plan::PlanError;
use crate::plan::site_contents::BaseError;

/// Fetch the files and images of lists and write one bundle
///
/// An interrupted run resumes if the same command is run again.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
pub(crate) struct Pack {
    /// Lists, directories with files.list and images.list, or one lock
    ///
    /// Lists beside a lock add no entries. They contain the current URLs of files whose URLs have secrets.
    #[arg(required = true, value_name = "LIST")]
    lists: Vec<PathBuf>,
    /// Bundle to write; usually named *.tar.zst
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    selection: SelectionArgs,
    /// zstd compression level, 1 to 22
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// Title of the bundle
    ///
    /// `ls --json`, the SBOM and the image description of `airbundle image` contain it. If the site has only
    /// this bundle, the site's catalog page does too.
    #[arg(long, value_name = "TEXT")]
    title: Option<Title>,
    /// Name of the series of bundles that this one belongs to, e.g. kubespray-amd64
    ///
    /// A site that has a bundle of this name refuses older ones, i.e. those with a lower --sequence.
    #[arg(long, value_name = "NAME", requires = "sequence")]
    name: Option<ReleaseName>,
    /// Sequence number of the bundle in its series; higher than that of all earlier ones
    #[arg(long, value_name = "N", requires = "name")]
    sequence: Option<Sequence>,
    /// Time after which hosts with trusted keys refuse the bundle, e.g. 2027-01-31T00:00:00Z
    #[arg(long, value_name = "TIME")]
    expires: Option<Expiry>,
    /// Write the lock of the packed entries to this file too
    #[arg(long, value_name = "FILE")]
    write_lock: Option<PathBuf>,
    /// Copy unchanged blobs from this older bundle; can be repeated
    #[arg(long, value_name = "BUNDLE")]
    reuse: Vec<PathBuf>,
    /// Make a delta: omit what the site has; can be repeated
    ///
    /// FILE is an inventory of the site (`unbundle inventory`), or a lock or bundle that was unpacked there.
    #[arg(long, value_name = "FILE")]
    base: Vec<PathBuf>,
    #[command(flatten)]
    trust: TrustArgs,
    /// Sign the bundle with this secret key (`airbundle keygen` or minisign)
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Read the passphrase of --sign from stdin [default: `$AIRBUNDLE_PASSPHRASE`, or a prompt]
    #[arg(long, requires = "sign", conflicts_with = "password_stdin")]
    passphrase_stdin: bool,
    /// Fail unless every file has a checksum in its list or lock
    #[arg(long)]
    require_pins: bool,
    /// Fail on a file without a checksum whose length the server does not state
    ///
    /// The end of the connection can then be the end of the file, or not. By default, a warning names the file.
    #[arg(long)]
    strict: bool,
    /// Split into volumes FILE.001, … of at most SIZE, e.g. 1900MiB or fat32
    ///
    /// SIZE is a number of bytes with K, M, G, KiB, MiB, GiB (powers of 1024), kB, MB, GB (powers of 1000),
    /// or no unit; or the limit of a kind of media: fat32, dvd, github-release. With github-release, characters of
    /// the file name that release pages replace become periods.
    #[arg(long, value_name = "SIZE", value_parser = parse_volume_size)]
    volume_size: Option<VolumeSize>,
    /// Add recovery data to repair up to PERCENT of each volume, e.g. 5%
    ///
    /// Up to 5% of the bundle can then be unreadable, contiguous or scattered.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    recovery: Option<u32>,
    /// If the bundle is up to date, verify its structure only
    ///
    /// A bundle that has what the lists name is verified and kept. By default, every byte of it is read.
    #[arg(long)]
    quick: bool,
    /// Run this shell command for each finished volume, whose path is $1
    ///
    /// The command may remove the volume, so that the output directory needs space for few volumes only.
    #[arg(long, value_name = "COMMAND", requires = "volume_size", conflicts_with_all = ["keep_going", "allow_missing"])]
    on_volume: Option<String>,
    /// If an entry cannot be fetched, fetch the others and report all failures
    ///
    /// The next run reuses the fetched blobs. No bundle is written.
    #[arg(long)]
    keep_going: bool,
    /// Like --keep-going, but write a bundle without the missing entries
    ///
    /// The exit code is 4 or 5 nevertheless.
    #[arg(long)]
    allow_missing: bool,
    #[command(flatten)]
    urls: UrlArgs,
    #[command(flatten)]
    out: Output,
    // Last, because its help heading applies to all options after it.
    #[command(flatten)]
    upstream: UpstreamArgs,
}

impl Pack {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let (mut input, lock) = read_input(&self.lists)?;
        if let Some(path) = lock.filter(|_| !self.selection.is_empty()) {
            let message = format!(
                "cannot combine the lock `{}` with `--platform`, `--with` or `--without`",
                path.display()
            );
            let hint = "make a new lock with `airbundle lock --platform … --with …`";
            return Err(Failure::new(Code::Usage, message).with_hint(hint));
        }
        let (Input::Lists(lists) | Input::Lock(_, lists)) = &mut input;
        self.urls.apply(lists)?;
        let unpinned = unpinned(&input);
        if self.require_pins && !unpinned.is_empty() {
            let message = |file: &&FileEntry| format!("{}: no checksum for `{}`", file.origin, file.name());
            let messages = unpinned.iter().map(message).collect();
            let hint = "add the checksum to the list (`URL sha256:…`), or pack a lock of `airbundle lock`";
            return Err(Failure { code: Code::List, messages, hint: None }.with_hint(hint));
        }
        let mut warnings = Vec::new();
        if let Some(key) = &self.sign {
            warnings.extend(exposure(key));
            warnings.extend(unpinned_text(unpinned.len()));
        }
        let (Input::Lists(lists) | Input::Lock(_, lists)) = &input;
        let mut upstream = self.upstream.upstream_for(lists)?;
        upstream.requires_length = self.strict;
        let (mut output, level) = (self.output, self.level);
        if self.volume_size.is_some_and(|size| size.is_for_release) {
            let name = fs::file_name(&output);
            let safe = release_name(&name);
            if safe != name {
                warnings.push(format!(
                    "the volumes are named `{safe}.001` and so on: release pages replace other characters than letters, \
                     digits, `.`, `-` and `_`"
                ));
                output.set_file_name(safe);
            }
        }
        let guide = Some(GUIDE_TEXT.to_owned());
        let date = source_date()?;
        let created = date.and_then(|date| date.format(&Rfc3339).ok()?.parse().ok());
        let release = self.name.zip(self.sequence).map(|(name, sequence)| Release { name, sequence });
        let about = BundleInfo { title: self.title, created, guide, release, expires: self.expires };
        // A wrong passphrase must fail before the download, not after it.
        let sign = self.sign.map(|key| signer(&key, self.passphrase_stdin)).transpose()?;
        let sign = sign.map(|signer| signer.at(date.map(OffsetDateTime::unix_timestamp)));
        let missing = match (self.keep_going, self.allow_missing) {
            (_, true) => Missing::Allow,
            (true, false) => Missing::KeepGoing,
            (false, false) => Missing::Stop,
        };
        let options = PackOptions {
            output,
            images: self.selection.into_options(),
            level,
            upstream,
            about,
            write_lock: self.write_lock,
            reuse: self.reuse,
            base: self.base,
            policy: self.trust.policy()?,
            missing,
            sign,
            volume_size: self.volume_size.map(|size| size.bytes),
            recovery: self.recovery,
            quick: self.quick,
            on_volume: self.on_volume,
        };
        let summary = self.out.report(|report| {
            for message in warnings {
                report.event(&Event::Warning { message });
            }
            pack(&input, &options, report).map_err(|error| with_url_hint(error, &input))
        })?;
        self.out.print(&summary, || text(&summary, &options))?;
        if summary.missing.is_empty() {
            return Ok(Code::Success);
        }
        let mut failure = fetch_failure(&summary.missing);
        let (bundle, count) = (options.output.display(), summary.missing.len());
        failure.messages.push(format!("`{bundle}` does not contain {count} of the entries in the lists"));
        Err(failure)
    }
}

/// Returns the files that neither a list nor a lock has a checksum of.
fn unpinned(input: &Input) -> Vec<&FileEntry> {
    match input {
        Input::Lists(lists) => lists.files.iter().filter(|file| file.checksum.is_none()).collect(),
        Input::Lock(..) => Vec::new(),
    }
}

/// Adds a hint if a file of a lock cannot be fetched whose URL had a query in its list.
fn with_url_hint(error: PackError, input: &Input) -> Failure {
    let without_query = match (&error, input) {
        (PackError::Fetch(failures), Input::Lock(lock, lists)) => {
            let files = lock.files.iter().zip(&lists.files);
            let mut named = files
                .filter(|(file, entry)| file.path.is_some() && entry.request_url.reveal().query().is_none());
            named.any(|(file, _)| failures.iter().any(|failure| failure.object == file.name()))
        }
        _ => false,
    };
    let failure = Failure::from(error);
    if !without_query {
        return failure;
    }
    failure
        .with_hint("a lock does not contain the query of a named URL: use `--url PATH=URL`, or add the list")
}

/// Returns the warning for a signature that covers files without a checksum. `None`: there are none.
fn unpinned_text(count: usize) -> Option<String> {
    let files = match count {
        0 => return None,
        1 => "1 file".to_owned(),
        count => format!("{count} files"),
    };
    Some(format!(
        "the signature covers {files} without a checksum in the list: whatever the server sends is signed; \
         `--require-pins` makes this an error"
    ))
}

fn text(summary: &PackSummary, options: &PackOptions) -> Text {
    let (mut text, state) = if summary.is_up_to_date {
        let verified = if options.quick { ", structure verified" } else { ", verified" };
        (up_to_date_text(summary), verified.to_owned())
    } else {
        let volumes = match summary.volumes.len() {
            0 => String::new(),
            count => format!(" in {count} volumes, and {SUMS}"),
        };
        (written_text(summary, options), volumes)
    };
    text.line(format_args!(
        "{}: {}{state}, {:.1} s",
        options.output.display(),
        human_bytes(summary.bundle_size),
        summary.time.as_secs_f64(),
    ));
    text.line(format_args!("identity {}", summary.identity));
    text
}

/// Returns what a bundle that was written has, and where its bytes are from.
fn written_text(summary: &PackSummary, options: &PackOptions) -> Text {
    let mut sources = format!("{} fetched", human_bytes(summary.bytes_fetched));
    for (bytes, source) in [(summary.bytes_resumed, "resumed"), (summary.bytes_reused, "reused")] {
        if bytes > 0 {
            sources = format!("{sources}, {} {source}", human_bytes(bytes));
        }
    }
    let mut text = Text::of(format_args!(
        "{} files and {} images: {} blobs, {sources}, {} deduplicated",
        summary.files,
        summary.images,
        summary.blobs,
        human_bytes(summary.bytes_shared),
    ));
    match summary.blobs_left_out {
        0 if options.base.is_empty() => {}
        0 => text.line("not a delta: the base contains none of the blobs"),
        blobs => {
            let bytes = human_bytes(summary.bytes_left_out);
            text.line(format_args!("delta: {blobs} more blobs ({bytes}) omitted, because the site has them"));
        }
    }
    text
}

/// Returns what a bundle that was kept has.
fn up_to_date_text(summary: &PackSummary) -> Text {
    Text::of(format_args!(
        "up to date: {} files and {} images: {} blobs, {} fetched to compare",
        summary.files,
        summary.images,
        summary.blobs,
        human_bytes(summary.bytes_fetched),
    ))
}

/// Reads lists, or one lock with the URLs of lists. Returns the path of the lock, too.
fn read_input(paths: &[PathBuf]) -> Result<(Input, Option<&PathBuf>), Failure> {
    let (mut locks, mut others) = (Vec::new(), Vec::new());
    for path in paths {
        match read_lock(path)? {
            Some(lock) => locks.push((path, lock)),
            None => others.push(path.clone()),
        }
    }
    let Some((path, lock)) = locks.pop() else { return Ok((Input::Lists(Lists::read(paths)?), None)) };
    if let Some((other, _)) = locks.pop() {
        let message = format!("cannot combine the lock `{}` with `{}`", path.display(), other.display());
        let hint = "make one lock of all lists with `airbundle lock`";
        return Err(Failure::new(Code::Usage, message).with_hint(hint));
    }
    let mut locked = lock.lists()?;
    if !others.is_empty() {
        refresh_urls(&mut locked, &Lists::read(&others)?)?;
    }
    Ok((Input::Lock(lock, locked), Some(path)))
}

fn fetch_failure(failures: &[FetchError]) -> Failure {
    let mismatch = failures.iter().any(FetchError::is_mismatch);
    Failure::all(if mismatch { Code::Mismatch } else { Code::Fetch }, failures)
}

impl From<PackError> for Failure {
    fn from(error: PackError) -> Self {
        let code = match &error {
            PackError::Fetch(failures) => return fetch_failure(failures),
            PackError::Lock(error) => return Self::of(Code::of_lock(error), error),
            PackError::Reuse(_, error) => Code::of_read(error),
            PackError::Base(_, error) => base_code(error),
            PackError::Fs(error) if error.is_too_large() => {
                let hint = "the file system has a limit for the size of a file (FAT32: 4 GiB): use \
                            `--volume-size fat32`, which reuses what was fetched";
                return Self::of(Code::File, error).with_hint(hint);
            }
            PackError::Fs(error) | PackError::Command(CommandError::Record(error)) => Code::of_fs(error),
            PackError::Busy(_) => Code::Busy,
            PackError::VolumeSize { .. } => Code::Usage,
            PackError::Command(_) => Code::Command,
            PackError::Plan(PlanError::Tags(_)) => Code::List,
            PackError::Plan(_) => Code::Fetch,
        };
        Self::of(code, &error)
    }
}

fn base_code(error: &BaseError) -> Code {
    match error {
        BaseError::Fs(error) => Code::of_fs(error),
        BaseError::Inventory(InventoryError::Version(_)) => Code::NotABundle,
        BaseError::Inventory(_) => Code::List,
        BaseError::Lock(error) => Code::of_lock(error),
        BaseError::Bundle(error) => Code::of_read(error),
    }
}
