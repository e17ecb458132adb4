//! `airbundle lock`: resolves lists to digests, and compares a lock with the upstream.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::base::output_file::{Access, OutputFile};
use crate::base::units::human_bytes;
use crate::cli::console::Text;
use crate::cli::documents::read_lock;
use crate::cli::exit::{Code, Failure};
use crate::cli::progress::Output;
use crate::cli::selection::SelectionArgs;
use crate::cli::upstream::UpstreamArgs;
use crate::cli::urls::UrlArgs;
use crate::commands::lock::merge::{Decided, merge};
use crate::commands::lock::{Moved, Now, check, lock};
use crate::documents::list::Lists;
use crate::documents::lock::Lock as Document;

/// Resolve lists to digests and sizes, or check a lock against the upstream
///
/// `pack` fetches the entries of a lock by digest: the result is the same at any time, or an error. With
/// --check, every entry is resolved again by name. If anything changed, the exit code is 13.
#[derive(Debug, Args)]
pub(crate) struct Lock {
    /// Lists, or directories with files.list and images.list; with --check: one lock; with --merge: two locks
    #[arg(required = true, value_name = "LIST")]
    lists: Vec<PathBuf>,
    /// Lock to write; usually named airbundle.lock.json
    #[arg(long, short, value_name = "FILE", required_unless_present = "check", conflicts_with = "check")]
    output: Option<PathBuf>,
    /// List tags and files that changed upstream since the lock was made
    ///
    /// Files are downloaded and hashed, unless --quick is set.
    #[arg(long, conflicts_with_all = ["platform", "with", "without"])]
    check: bool,
    /// Combine two locks of the same lists, such as those of two branches
    ///
    /// The result has the entries of both. Of an entry that differs, it has the version that upstream has.
    #[arg(long, requires = "output", conflicts_with_all = ["check", "platform", "with", "without"])]
    merge: bool,
    /// With --check: compare only the sizes of files
    #[arg(long, requires = "check")]
    quick: bool,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    urls: UrlArgs,
    #[command(flatten)]
    out: Output,
    // Last, because its help heading applies to all options after it.
    #[command(flatten)]
    upstream: UpstreamArgs,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct Locked {
    /// Number of files.
    files: usize,
    /// Number of images.
    images: usize,
    /// Number of distinct blobs, manifests included.
    blobs: usize,
    /// Their size in bytes.
    bytes: u64,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Checked {
    /// Entries that do not match the lock, in its order.
    moved: Vec<Moved>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct MergedLock {
    /// Number of files.
    files: usize,
    /// Number of images.
    images: usize,
    /// The entries that differ between the locks.
    decided: Vec<Decided>,
}

impl Lock {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        match (self.check, self.merge) {
            (true, _) => self.run_check(),
            (_, true) => self.run_merge(),
            _ => self.run_lock(),
        }
    }

    fn run_merge(self) -> Result<Code, Failure> {
        let path = self.output.expect("clap requires it; please report");
        OutputFile::check(&path)?;
        let [ours, theirs] = self.lists.as_slice() else {
            return Err(Failure::new(Code::Usage, "`--merge` accepts two locks"));
        };
        let read = |path: &PathBuf| read_lock(path)?.ok_or_else(|| no_lock("merge", path));
        let (ours, theirs) = (read(ours)?, read(theirs)?);
        let mut both = ours.lists()?;
        let other = theirs.lists()?;
        both.files.extend(other.files);
        both.images.extend(other.images);
        let upstream = self.upstream.upstream_for(&both)?;
        let lists = |lock: &Document| -> Result<Lists, Failure> {
            let mut lists = lock.lists()?;
            self.urls.apply_known(&mut lists)?;
            Ok(lists)
        };
        let merged = self.out.report(|report| merge(&ours, &theirs, lists, &upstream, report))?;
        if !merged.undecided.is_empty() {
            let message = |name: &String| {
                format!(
                    "`{name}` differs between the locks, and upstream has neither version for the same platforms"
                )
            };
            let messages = merged.undecided.iter().map(message).collect();
            let hint = "make the lock again with `airbundle lock` and the lists";
            return Err(Failure { code: Code::Moved, messages, hint: None }.with_hint(hint));
        }
        OutputFile::write(&path, Access::Default, &merged.lock.to_json())?;
        let Document { files, images, .. } = &merged.lock;
        let summary = MergedLock { files: files.len(), images: images.len(), decided: merged.decided };
        let text = || {
            let mut text = Text::new();
            for Decided { name, digest, other } in &summary.decided {
                text.line(format_args!("current {name}"));
                text.line(format_args!("        {digest}"));
                text.line(format_args!("        instead of {other}"));
            }
            text.line(format_args!("{} files and {} images", summary.files, summary.images));
            text.line(path.display());
            text
        };
        self.out.print(&summary, text)?;
        Ok(Code::Success)
    }

    fn run_lock(self) -> Result<Code, Failure> {
        let path = self.output.expect("clap requires it; please report");
        OutputFile::check(&path)?;
        let mut lists = Lists::read(&self.lists)?;
        self.urls.apply(&mut lists)?;
        let mut upstream = self.upstream.upstream_for(&lists)?;
        // The digest of an incomplete file would be that of all later bundles.
        upstream.requires_length = true;
        let options = self.selection.into_options();
        let document = self.out.report(|report| lock(lists, &options, &upstream, report))?;
        OutputFile::write(&path, Access::Default, &document.to_json())?;
        let locked = Locked {
            files: document.files.len(),
            images: document.images.len(),
            blobs: document.blobs().len(),
            bytes: document.bytes(),
        };
        let text = || {
            let Locked { files, images, blobs, bytes } = &locked;
            let bytes = human_bytes(*bytes);
            let mut text =
                Text::of(format_args!("{files} files and {images} images: {blobs} blobs, {bytes}"));
            text.line(path.display());
            text
        };
        self.out.print(&locked, text)?;
        Ok(Code::Success)
    }

    fn run_check(self) -> Result<Code, Failure> {
        let [path] = self.lists.as_slice() else {
            return Err(Failure::new(Code::Usage, "cannot check several lists: `--check` accepts one lock"));
        };
        let Some(document) = read_lock(path)? else {
            return Err(no_lock("check", path));
        };
        let mut lists = document.lists()?;
        self.urls.apply(&mut lists)?;
        let upstream = self.upstream.upstream_for(&lists)?;
        let moved = self.out.report(|report| check(&document, &lists, self.quick, &upstream, report));
        let checked = Checked { moved };
        self.out.print(&checked, || text(&document, &checked.moved))?;
        Ok(if checked.moved.is_empty() { Code::Success } else { Code::Moved })
    }
}

fn no_lock(verb: &str, path: &Path) -> Failure {
    let (code, cause) =
        if path.exists() { (Code::List, "not a lock") } else { (Code::File, "no such file or directory") };
    let message = format!("cannot {verb} `{}`: {cause}", path.display());
    Failure::new(code, message).with_hint("make a lock with `airbundle lock`")
}

fn text(document: &Document, moved: &[Moved]) -> Text {
    let mut text = Text::new();
    for Moved { name, locked, now } in moved {
        let (verb, now) = match now {
            Now::Digest(digest) => ("moved", format!("now {digest}")),
            Now::Size(size) => ("moved", format!("now {size} bytes")),
            Now::Failure(reason) => ("gone", reason.clone()),
        };
        text.line(format_args!("{verb:7} {name}"));
        text.line(format_args!("        was {locked}"));
        text.line(format_args!("        {now}"));
    }
    let all = document.files.len() + document.images.len();
    text.line(match moved.len() {
        0 => format!("no changes in {all} entries"),
        count => format!("{count} of {all} entries changed"),
    });
    text
}
