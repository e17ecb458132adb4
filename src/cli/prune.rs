//! `unbundle prune`: removes from a site what no kept bundle contains and no lock or list names.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::base::units::human_bytes;
use crate::bundle::read::reader::Contents;
use crate::cli::allow_readers;
use crate::cli::console::Text;
use crate::cli::documents::{is_list, read_lock};
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::cli::progress::Output;
use crate::cli::trust::SiteNameArgs;
use crate::commands::prune::error::PruneError;
use crate::commands::prune::listed::Listed;
use crate::commands::prune::prune;
use crate::commands::prune::summary::PruneSummary;
use crate::documents::list::Lists;
use crate::documents::lock::Lock;

/// Remove images and files from a site that are in no kept bundle, lock or list
///
/// Without --yes, nothing is removed: the command lists what it would remove.
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Site directory
    site: PathBuf,
    /// Bundles, deltas, locks and lists to keep; can be repeated
    ///
    /// A bundle or lock keeps its images with its platforms, a list keeps all platforms that the site has. A directory with
    /// `files.list` and `images.list` counts as both lists.
    #[arg(long, value_name = "INPUT", required = true, num_args = 1..)]
    keep: Vec<PathBuf>,
    /// Remove the listed images and files
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    names: SiteNameArgs,
    #[command(flatten)]
    out: Output,
}

impl Prune {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        allow_readers();
        let (mut kept, mut listed) = (Vec::new(), Listed::default());
        for path in &self.keep {
            if let Some(lock) = read_lock(path)? {
                keep_lock(path, &lock, &mut listed)?;
            } else if is_list(path)? {
                // An empty list is an error: it would remove everything.
                listed.add_lists(&Lists::read(std::slice::from_ref(path))?);
            } else {
                kept.push(self.contents(path)?);
            }
        }
        let policy = self.names.policy(self.input.policy()?);
        let summary =
            self.out.report(|report| prune(&self.site, &policy, &kept, &listed, self.yes, report))?;
        self.out.print(&summary, || self.text(&summary))?;
        Ok(Code::Success)
    }

    fn contents(&self, path: &Path) -> Result<Contents, Failure> {
        let failed = |failure: Failure| {
            let context = format!("cannot read the bundle `{}`", path.display());
            failure.context(context).with_hint("nothing was removed")
        };
        // The documents are in the first volume, so that the others may be missing.
        let mut reader = self.input.open(&[path.to_owned()], Gaps::Allow).map_err(failed)?;
        reader.contents().map_err(|error| failed(error.into()))
    }

    fn text(&self, summary: &PruneSummary) -> Text {
        let site = self.site.display();
        if summary.is_nothing() {
            let time = summary.time.as_secs_f64();
            return Text::of(format_args!("{site}: nothing to remove, {time:.1} s"));
        }
        let mut text = Text::new();
        let removed = if summary.removed { "removed" } else { "would remove" };
        for (kind, names) in [("image", &summary.images), ("file", &summary.files)] {
            for name in names {
                text.line(format_args!("{removed} {kind} {name}"));
            }
        }
        let PruneSummary { images, files, blobs, bytes, file_bytes, links, time, .. } = summary;
        let [bytes, file_bytes] = [bytes, file_bytes].map(|bytes| human_bytes(*bytes));
        text.line(format_args!("{site}: {removed} {} images with {blobs} blobs ({bytes}) and {links} links, and {} files ({file_bytes}), {:.1} s",
            images.len(),
            files.len(),
            time.as_secs_f64()));
        if !summary.removed {
            text.line("nothing was removed: run again with --yes");
        } else if self.site.join("conf/settings.json").exists() {
            let named = self.names.roots().arguments();
            text.line(format_args!("next: unbundle site {site}{named}   (updates the catalog page)"));
        }
        text
    }
}

fn keep_lock(path: &Path, lock: &Lock, listed: &mut Listed) -> Result<(), Failure> {
    if lock.files.is_empty() && lock.images.is_empty() {
        let message = format!("cannot keep `{}`: the lock names no file and no image", path.display());
        return Err(Failure::new(Code::List, message));
    }
    listed.add_lock(lock).map_err(|error| {
        Failure::from(error).context(format_args!("cannot read the lock `{}`", path.display()))
    })
}

impl From<PruneError> for Failure {
    fn from(error: PruneError) -> Self {
        let code = match error {
            PruneError::Record(error) => return error.into(),
            PruneError::Fs(ref error) => Code::of_fs(error),
            PruneError::Irregular(_) => Code::File,
            PruneError::Busy(_) => Code::Busy,
            PruneError::Mismatch(_) => Code::Incomplete,
        };
        Self::of(code, &error)
    }
}
