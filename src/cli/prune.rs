//! `unbundle prune`: what no kept bundle names goes from the site.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use crate::base::units::human_bytes;
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::cli::output::{print, summary_json};
use crate::cli::progress::Output;
use crate::commands::prune::prune;
use crate::commands::prune::summary::PruneSummary;

/// Remove from a site what none of these bundles names; without --yes, say what that is
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// The directory of the site
    site: PathBuf,
    /// Keep what this bundle names; all that are to be kept, also deltas
    #[arg(long, value_name = "BUNDLE", required = true, num_args = 1..)]
    keep: Vec<PathBuf>,
    /// Remove it
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    out: Output,
}

impl Prune {
    /// Prunes, or says what that would be.
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let mut kept = Vec::new();
        for path in &self.keep {
            let named = |failure: Failure| {
                let named = |message| format!("`{}`: {message}; nothing was removed", path.display());
                Failure { messages: failure.messages.into_iter().map(named).collect(), ..failure }
            };
            // The documents stand in its first volume.
            let reader = self.input.open(std::slice::from_ref(path), Gaps::Take).map_err(named)?;
            let contents = { reader }.contents();
            kept.push(contents.map_err(|error| named(error.into()))?);
        }
        let reporter = self.out.reporter();
        let result = prune(&self.site, &kept, self.yes, &*reporter);
        drop(reporter);
        let summary = result?;
        print(&self.out.result(|| self.text(&summary), || summary_json(&summary)))?;
        Ok(Code::Success)
    }

    fn text(&self, summary: &PruneSummary) -> String {
        let site = self.site.display();
        if summary.is_nothing() {
            return format!("{site}: nothing that could go, {:.1} s\n", summary.time.as_secs_f64());
        }
        let mut text = String::new();
        let what = if summary.removed { "removed" } else { "would remove" };
        for (kind, names) in [("image", &summary.images), ("file", &summary.files)] {
            for name in names {
                let _ = writeln!(text, "{what} {kind} {name}");
            }
        }
        let PruneSummary { images, files, blobs, bytes, file_bytes, links, time, .. } = summary;
        let [bytes, file_bytes] = [bytes, file_bytes].map(|bytes| human_bytes(*bytes));
        let _ = writeln!(
            text,
            "{site}: {what} {} images with {blobs} blobs ({bytes}) and {links} links, and {} files ({file_bytes}), {:.1} s",
            images.len(),
            files.len(),
            time.as_secs_f64()
        );
        if !summary.removed {
            let _ = writeln!(text, "nothing was removed: --yes does it");
        } else if self.site.join("conf/settings.json").exists() {
            let _ = writeln!(text, "now: unbundle site {site}   (its catalogue is of before)");
        }
        text
    }
}
