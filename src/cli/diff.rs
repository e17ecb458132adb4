//! `airbundle diff`: compares two locks or bundles.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::base::units::human_bytes;
use crate::bundle::format::layout::Totals;
use crate::bundle::read::reader::BundleReader;
use crate::cli::console::{self, Text};
use crate::cli::documents::read_lock;
use crate::cli::exit::{Code, Failure};
use crate::cli::output::{print, print_json};
use crate::cli::trust::TrustArgs;
use crate::documents::lock::{Change, Diff as Difference, Lock};
use crate::signature::policy::Policy;

/// Show what was added, removed and changed between two locks or bundles
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// Lock or bundle to compare
    old: PathBuf,
    /// Lock or bundle to compare with
    new: PathBuf,
    #[command(flatten)]
    trust: TrustArgs,
    /// Print JSON to stdout
    #[arg(long)]
    json: bool,
}

impl Diff {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let policy = self.trust.policy()?;
        let (old, new) = (read(&self.old, &policy)?, read(&self.new, &policy)?);
        let diff = Difference::between(&old, &new);
        if self.json {
            print_json(&diff)?;
        } else {
            print(&text(&diff))?;
        }
        Ok(Code::Success)
    }
}

fn read(path: &Path, policy: &Policy) -> Result<Lock, Failure> {
    if let Some(lock) = read_lock(path)? {
        if policy.is_enforced() {
            console::report(&Text::of(format_args!(
                "warning: `{}` is a lock: no key signed it",
                path.display()
            )));
        }
        return Ok(lock);
    }
    let contents = BundleReader::open(path, policy)
        .and_then(|mut reader| reader.contents())
        .map_err(|error| Failure::from(error).context(format_args!("cannot compare `{}`", path.display())))?;
    Ok(Lock::of(&contents.layout, &contents.layout.files, &contents.manifests))
}

fn text(diff: &Difference) -> Text {
    if diff.is_empty() {
        return Text::of("no difference");
    }
    let line = |change: &Change| {
        let (sign, what) = match (&change.old, &change.new) {
            (None, _) => ('+', "added"),
            (_, None) => ('-', "removed"),
            _ => ('~', "changed"),
        };
        let bytes = match (change.bytes_added, change.bytes_removed) {
            (added, 0) => format!("+{}", human_bytes(added)),
            (0, removed) => format!("-{}", human_bytes(removed)),
            (added, removed) => format!("+{} -{}", human_bytes(added), human_bytes(removed)),
        };
        format!("{sign} {what:8} {}  {bytes}", change.name)
    };
    let mut text = Text::new();
    for (title, changes) in [("images", &diff.images), ("files", &diff.files)] {
        if !changes.is_empty() {
            text.line(format_args!("{title}:"));
            changes.iter().map(line).for_each(|line| text.line(line));
        }
    }
    let Difference { added, removed, kept, .. } = diff;
    let amount = |amount: &Totals| format!("{} ({})", amount.blobs, human_bytes(amount.bytes));
    let [added, removed, kept] = [added, removed, kept].map(amount);
    text.line(format_args!("blobs: {added} added, {removed} removed, {kept} kept"));
    text
}
