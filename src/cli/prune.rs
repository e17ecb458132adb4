//! `unbundle prune`: removes from a site what no kept bundle contains.

use std::path::PathBuf;

use clap::Args;

use crate::base::units::human_bytes;
use crate::cli::allow_readers;
use crate::cli::console::Text;
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::cli::progress::Output;
use crate::cli::trust::SiteNameArgs;
use crate::commands::prune::error::PruneError;
use crate::commands::prune::prune;
use crate::commands::prune::summary::PruneSummary;

/// Remove images and files that no kept bundle contains from a site
///
/// Without --yes, nothing is removed: the command lists what it would remove.
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Site directory
    site: PathBuf,
    /// Bundles to keep, deltas included; can be repeated
    #[arg(long, value_name = "BUNDLE", required = true, num_args = 1..)]
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
        let mut kept = Vec::new();
        for path in &self.keep {
            let failed = |failure: Failure| {
                let context = format!("cannot read the bundle `{}`", path.display());
                failure.context(context).with_hint("nothing was removed")
            };
            // The documents are in the first volume, so that the others may be missing.
            let mut reader = self.input.open(std::slice::from_ref(path), Gaps::Allow).map_err(failed)?;
            kept.push(reader.contents().map_err(|error| failed(error.into()))?);
        }
        let policy = self.names.policy(self.input.policy()?);
        let summary = self.out.report(|report| prune(&self.site, &policy, &kept, self.yes, report))?;
        self.out.print(&summary, || self.text(&summary))?;
        Ok(Code::Success)
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
