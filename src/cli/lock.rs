//! `airbundle lock`: resolves lists to digests, and compares a lock with the upstream.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::base::output_file::{Access, OutputFile};
use crate::base::units::human_bytes;
use crate::cli::console::Text;
use crate::cli::exit::{Code, Failure};
use crate::cli::pack::read_lock;
use crate::cli::progress::Output;
use crate::cli::selection::SelectionArgs;
use crate::cli::upstream::UpstreamArgs;
use crate::cli::urls::UrlArgs;
use crate::commands::lock::{Moved, Now, check, lock};
use crate::documents::list::Lists;
use crate::documents::lock::Lock as Document;
use crate::fetch::resolve::locked::lists_of;

/// Resolve lists to digests and sizes, or check a lock against the upstream
///
/// `pack` fetches the entries of a lock by digest: the result is the same at any time, or an error. With
/// --check, every entry is resolved again by name. If anything changed, the exit code is 13.
#[derive(Debug, Args)]
pub(crate) struct Lock {
    /// Lists, or directories with files.list and images.list; with --check: one lock
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

impl Lock {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        if self.check { self.run_check() } else { self.run_lock() }
    }

    fn run_lock(self) -> Result<Code, Failure> {
        let path = self.output.expect("clap requires it; please report");
        OutputFile::check(&path)?;
        let mut lists = Lists::read(&self.lists)?;
        self.urls.apply(&mut lists)?;
        let upstream = self.upstream.upstream_for(&lists)?;
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
            return Err(no_lock(path));
        };
        let mut lists = lists_of(&document)?;
        self.urls.apply(&mut lists)?;
        let upstream = self.upstream.upstream_for(&lists)?;
        let moved = self.out.report(|report| check(&document, &lists, self.quick, &upstream, report));
        let checked = Checked { moved };
        self.out.print(&checked, || text(&document, &checked.moved))?;
        Ok(if checked.moved.is_empty() { Code::Success } else { Code::Moved })
    }
}

fn no_lock(path: &Path) -> Failure {
    let (code, cause) =
        if path.exists() { (Code::List, "not a lock") } else { (Code::File, "no such file or directory") };
    let message = format!("cannot check `{}`: {cause}", path.display());
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
