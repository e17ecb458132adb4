//! `unbundle unpack`: writes the files and images of a bundle to a site.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::base::own_file::is_writable_by_others;
use crate::base::units::human_bytes;
use crate::bundle::read::select::{Pattern, Selection};
use crate::cli::allow_readers;
use crate::cli::console::Text;
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{ExpiryArgs, Gaps, InputArgs};
use crate::cli::output::print_summary;
use crate::cli::progress::Output;
use crate::commands::unpack::error::{MissingBlob, UnpackError};
use crate::commands::unpack::options::UnpackOptions;
use crate::commands::unpack::summary::{OmittedItem, UnpackSummary};
use crate::commands::unpack::unpack;
use crate::oci::platform::Platform;
use crate::oci::template::RepositoryTemplate;

/// Maximum number of missing blobs in an error message.
const BLOBS_SHOWN: usize = 20;
/// Maximum number of images and files in one line of an error message.
const NAMES_SHOWN: usize = 5;

/// Unpack a bundle to a site: files for a web server, and the storage of a registry
///
/// The site can be updated by unpacking further bundles, deltas included. An interrupted run resumes if the
/// same command is run again.
#[derive(Debug, Args)]
pub(crate) struct Unpack {
    /// Bundle file, first volume, directories with volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// Site directory; created if it does not exist
    #[arg(required = true)]
    site: PathBuf,
    /// Directory for files [default: SITE/files]
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
    /// Storage directory of the registry [default: SITE/registry]
    ///
    /// It has the layout of /var/lib/registry in a registry image.
    #[arg(long, value_name = "DIR")]
    registry: Option<PathBuf>,
    /// Repository names in the registry; can be repeated [default: k8s/{host}/{repository}]
    #[arg(long, value_name = "TEMPLATE")]
    repository_template: Vec<RepositoryTemplate>,
    /// Unpack only images and files whose reference or path matches; can be repeated
    ///
    /// * and ? match any characters except /. ** matches any directories. A pattern that matches nothing is an error.
    #[arg(long, value_name = "GLOB")]
    only: Vec<Pattern>,
    /// Unpack images only for these platforms; comma-separated
    #[arg(long, value_name = "OS/ARCH", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Unpack everything that is intact, even if parts of the bundle, or of the base of a delta, are corrupt or missing
    #[arg(long)]
    keep_going: bool,
    /// Unpack a bundle even if the site has a newer one of the same name
    #[arg(long)]
    allow_older: bool,
    /// Remove files of other bundles where this one has a directory, and the reverse
    ///
    /// By default, nothing is changed if they are in the way.
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    expiry: ExpiryArgs,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    out: Output,
}

/// The summary of `unpack --json` if the site lacks blobs that a delta omits.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct MissingBlobs<'a> {
    /// Blobs that the delta omits and the site does not have intact.
    missing: &'a [MissingBlob],
}

impl Unpack {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        allow_readers();
        let mut templates = self.repository_template;
        if templates.is_empty() {
            templates.push(RepositoryTemplate::default());
        }
        let select = Selection { only: self.only, platforms: self.platform };
        let (files, registry, keep_going) = (self.files, self.registry, self.keep_going);
        let (site, allow_older, replace) = (self.site, self.allow_older, self.replace);
        let options =
            UnpackOptions { site, files, registry, templates, select, keep_going, allow_older, replace };
        let gaps = if keep_going { Gaps::Allow } else { Gaps::Refuse };
        let with_hint = |failure: Failure| match failure.code {
            Code::Incomplete | Code::Damaged | Code::Unreadable if !keep_going => {
                failure.with_hint("use `--keep-going` to unpack everything that is intact")
            }
            _ => failure,
        };
        let reader = self.expiry.apply(self.input.open(&self.bundle, gaps).map_err(with_hint)?);
        let result = self.out.report(|report| unpack(reader, &options, report));
        if let Err(UnpackError::Incomplete { missing, .. }) = &result
            && self.out.json
        {
            // The error message names only the first few.
            print_summary(&MissingBlobs { missing })?;
        }
        let summary = match result {
            // `--keep-going` helps only if the documents at the start of the bundle are intact.
            Err(error @ (UnpackError::Damaged { .. } | UnpackError::Incomplete { .. })) => {
                return Err(with_hint(error.into()));
            }
            other => other?,
        };
        self.out.print(&summary, || {
            let mut text = text(&summary, &options);
            text.append(&next(&options, &summary));
            text
        })?;
        match summary.omitted.iter().map(|left_out| left_out.trouble).max() {
            None => Ok(Code::Success),
            Some(worst) => Err(Failure::new(worst.into(), omitted(&summary, &options.site))),
        }
    }
}

/// Returns the error message that names the omitted images and files.
fn omitted(summary: &UnpackSummary, site: &Path) -> String {
    let names = names(summary.omitted.iter().map(|item| item.name.as_str()));
    let site = site.display();
    match summary.missing.as_slice() {
        [] => format!("cannot unpack {names} to `{site}`: the bundle has no intact copy of them"),
        _ => format!("cannot unpack {names} to `{site}`: it lacks content that the delta omits"),
    }
}

/// Lists the first few of `names`, and counts the others.
fn names<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = match names.len().saturating_sub(NAMES_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let names: Vec<_> = names.take(NAMES_SHOWN).map(|name| format!("`{name}`")).collect();
    names.join(", ") + &more
}

/// Returns the next command. `unbundle site` must run after each change, because it reads the contents of the
/// site.
fn next(options: &UnpackOptions, summary: &UnpackSummary) -> Text {
    let (site, named) = (options.site.display(), options.named().arguments());
    let configured = options.site.join("conf/settings.json").exists();
    match (configured, summary.is_unchanged()) {
        (true, true) => Text::new(),
        (true, false) => Text::of(format_args!(
            "next: unbundle site {site}{named} && {site}/conf/site start   (updates the configuration)"
        )),
        (false, _) => Text::of(format_args!("next: unbundle site {site}{named}   (see {site}/README.md)")),
    }
}

fn text(summary: &UnpackSummary, options: &UnpackOptions) -> Text {
    let of = |count: usize, all: usize| {
        if count == all { count.to_string() } else { format!("{count} of {all}") }
    };
    let contents = format!(
        "{}: {} files and {} images",
        options.site.display(),
        of(summary.files, summary.bundle.files),
        of(summary.images, summary.bundle.images)
    );
    if summary.is_unchanged() && summary.omitted.is_empty() {
        let time = summary.time.as_secs_f64();
        return Text::of(format_args!("{contents} are up to date: nothing to do, {time:.1} s"));
    }
    let mut text = Text::of(contents);
    text.line(format_args!(
        "{} written ({}), {} repaired, {} already present; {} links; {:.1} s",
        summary.written,
        human_bytes(summary.bytes_written),
        summary.repaired,
        summary.kept,
        summary.links_written,
        summary.time.as_secs_f64(),
    ));
    for OmittedItem { name, problem, .. } in &summary.omitted {
        text.line(format_args!("omitted: {name}: {problem}"));
    }
    text
}

impl From<UnpackError> for Failure {
    fn from(error: UnpackError) -> Self {
        let code = match &error {
            UnpackError::Record(error) => Code::of_record(error),
            UnpackError::Read(error) => Code::of_read(error),
            UnpackError::Damaged { source, .. } => source.trouble.into(),
            UnpackError::Changed(_) => Code::Damaged,
            UnpackError::Incomplete { .. } => Code::Incomplete,
            UnpackError::Older { .. } => Code::Outdated,
            UnpackError::Fs(error) => Code::of_fs(error),
            UnpackError::Unsupported { .. } | UnpackError::Obstacles { .. } => Code::File,
            UnpackError::Busy(_) => Code::Busy,
            UnpackError::Names(_) | UnpackError::Select(_) => Code::Usage,
            UnpackError::Space { .. } | UnpackError::Inodes { .. } => Code::Space,
        };
        let mut failure = Self::of(code, &error);
        if let UnpackError::Older { .. } = &error {
            return failure.with_hint("use `--allow-older` to go back to the older bundle");
        }
        if let UnpackError::Obstacles { is_replaceable: true, .. } = &error {
            return failure.with_hint("use `--replace` to remove what the older bundle has there");
        }
        if let UnpackError::Fs(error) = &error
            && is_writable_by_others(error)
        {
            return failure.with_hint(
                "change the mode of the directory; a file system without owners and modes (FAT, exFAT, SMB) needs the \
                 mount option `umask=022`, and `uid=` unless root unpacks",
            );
        }
        if let UnpackError::Unsupported { .. } = &error {
            return failure.with_hint(
                "unpack on another file system, such as ext4 or XFS (`--files` and `--registry` choose one for each \
                 kind of content); or omit the entries with `--only`, or give the files other paths with `name=PATH` \
                 in the list",
            );
        }
        if let UnpackError::Incomplete { missing, .. } = &error {
            failure.messages.extend(missing.iter().take(BLOBS_SHOWN).map(missing_blob));
            if missing.len() > BLOBS_SHOWN {
                let more = missing.len() - BLOBS_SHOWN;
                return failure
                    .with_hint(format!("{more} more blobs are missing: `--json` lists all of them"));
            }
        }
        failure
    }
}

fn missing_blob(blob: &MissingBlob) -> String {
    let state = if blob.damaged { "damaged" } else { "missing" };
    let owners = names(blob.owners.iter().map(String::as_str));
    format!("{state}: {} ({}), needed by {owners}", blob.digest, human_bytes(blob.size))
}
