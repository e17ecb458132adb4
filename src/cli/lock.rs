//! `airbundle lock`: what do these lists name today, and is it still what was locked?

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::base::error_chain::chain;
use crate::base::fs;
use crate::base::units::human_bytes;
use crate::cli::exit::{Code, Failure};
use crate::cli::output::{print, summary_json};
use crate::cli::pack::{list_failure, pack_failure, read_lock};
use crate::cli::progress::Output;
use crate::cli::upstream::UpstreamArgs;
use crate::commands::lock::{Moved, Now, check, lock};
use crate::documents::list::Lists;
use crate::documents::lock::Lock as Document;
use crate::fetch::resolve::locked::lists_of;
use crate::fetch::resolve::referrers::ArtifactKind;
use crate::oci::platform::Platform;

/// Resolve everything that lists name to digests and sizes, or look whether that has changed
///
/// What a lock names is packed by digest: the same bytes at any time, or an error. With --check, everything is asked
/// for again by its name; the exit code is 13 if something else is there now.
#[derive(Debug, Args)]
pub(crate) struct Lock {
    /// A list of files and images, or a directory with files.list and images.list; with --check, one lock
    #[arg(required = true, value_name = "LIST")]
    lists: Vec<PathBuf>,
    /// The lock to be written; the name usually is airbundle.lock.json
    #[arg(long, short, value_name = "FILE", required_unless_present = "check", conflicts_with = "check")]
    output: Option<PathBuf>,
    /// Say what has moved upstream since the lock was made: tags, and files, which are fetched and hashed
    #[arg(long)]
    check: bool,
    /// With --check: look at the sizes of files only
    #[arg(long, requires = "check")]
    quick: bool,
    /// Take these platforms of images that have several, such as linux/amd64 (default: all)
    #[arg(long, value_name = "OS/ARCH", value_delimiter = ',', conflicts_with = "check")]
    platform: Vec<Platform>,
    /// Take what is attached to the images, too
    #[arg(long, value_name = "KIND", value_delimiter = ',', conflicts_with = "check")]
    with: Vec<ArtifactKind>,
    #[command(flatten)]
    upstream: UpstreamArgs,
    #[command(flatten)]
    out: Output,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Locked {
    files: usize,
    images: usize,
    blobs: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct Checked {
    moved: Vec<Moved>,
}

impl Lock {
    /// Locks, or checks a lock.
    pub(crate) fn run(self) -> Result<Code, Failure> {
        if self.check { self.run_check() } else { self.run_lock() }
    }

    fn run_lock(self) -> Result<Code, Failure> {
        let path = self.output.expect("clap asks for it");
        let lists = Lists::read(&self.lists).map_err(list_failure)?;
        let upstream = self.upstream.upstream_for(&lists)?;
        let reporter = self.out.reporter();
        let result = lock(lists, &self.platform, &self.with, &upstream, &*reporter);
        drop(reporter);
        let document = result.map_err(pack_failure)?;
        fs::write_durably(&path, &document.to_json())
            .map_err(|error| Failure::new(Code::File, chain(&error)))?;
        let locked = Locked {
            files: document.files.len(),
            images: document.images.len(),
            blobs: document.blobs().len(),
            bytes: document.bytes(),
        };
        let text = || {
            let Locked { files, images, blobs, bytes } = &locked;
            let bytes = human_bytes(*bytes);
            format!("{files} files and {images} images: {blobs} blobs, {bytes}\n{}\n", path.display())
        };
        print(&self.out.result(text, || summary_json(&locked)))?;
        Ok(Code::Success)
    }

    fn run_check(self) -> Result<Code, Failure> {
        let [path] = self.lists.as_slice() else {
            return Err(Failure::new(Code::Usage, "`--check` takes one lock"));
        };
        let Some(document) = read_lock(path)? else {
            let message = format!("`{}` is no lock: make one with `airbundle lock`", path.display());
            return Err(Failure::new(if path.exists() { Code::List } else { Code::File }, message));
        };
        let upstream = self.upstream.upstream_for(&lists_of(&document)?)?;
        let reporter = self.out.reporter();
        let result = check(&document, self.quick, &upstream, &*reporter);
        drop(reporter);
        let checked = Checked { moved: result? };
        print(&self.out.result(|| text(&document, &checked.moved), || summary_json(&checked)))?;
        Ok(if checked.moved.is_empty() { Code::Success } else { Code::Moved })
    }
}

fn text(document: &Document, moved: &[Moved]) -> String {
    let lines = moved.iter().map(|Moved { name, locked, now }| match now {
        Now::Digest(digest) => format!("moved   {name}\n        was {locked}\n        is  {digest}\n"),
        Now::Size(size) => format!("moved   {name}\n        was {locked}\n        has {size} bytes now\n"),
        Now::Failure(reason) => format!("gone    {name}\n        was {locked}\n        {reason}\n"),
    });
    let all = document.files.len() + document.images.len();
    let last = match moved.len() {
        0 => format!("nothing of {all} has moved\n"),
        count => format!("{count} of {all} have moved\n"),
    };
    lines.chain([last]).collect()
}
