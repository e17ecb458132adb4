//! `unbundle verify`: is this bundle sound, and if not, what is damaged?

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use crate::base::units::human_bytes;
use crate::bundle::format::layout::Totals;
use crate::bundle::read::problem::DamageKind;
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::cli::output::{print, summary_json};
use crate::cli::progress::Output;
use crate::commands::unpack::repaired_text;
use crate::commands::verify::quick::quick;
use crate::commands::verify::{Damage, Verdict, VolumeState, verify};

/// Read a bundle to its end and name everything that is damaged or missing
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The bundle, its first volume, directories with its volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// Look at structure and sizes only, which takes no longer for a large bundle; contents are not read
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    out: Output,
}

impl Verify {
    /// Verifies.
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let reader = self.input.open(&self.bundle, Gaps::Take)?;
        let reporter = self.out.reporter();
        let result =
            if self.quick { quick(reader, &*reporter) } else { verify(reader, &*reporter).map(Some) };
        drop(reporter);
        let Some(verdict) = result? else {
            let message = "--quick needs a bundle in files: what comes through a pipe, or one after the other, is read anyway";
            return Err(Failure::new(Code::Usage, message));
        };
        print(&self.out.result(|| text(&verdict), || summary_json(&verdict)))?;
        match verdict.worst() {
            None => Ok(Code::Success),
            Some(worst) => {
                let message = format!("{}: {}", self.bundle[0].display(), count(&verdict));
                Err(Failure::new(worst.into(), message))
            }
        }
    }
}

/// How much is wrong, the worst first.
fn count(verdict: &Verdict) -> String {
    let count = |trouble| verdict.damage.iter().filter(|damage| damage.trouble == trouble).count();
    let mut counts = [DamageKind::Unreadable, DamageKind::Damaged, DamageKind::Missing]
        .map(|trouble| (count(trouble), word(trouble)))
        .into_iter()
        .filter(|(count, _)| *count > 0);
    let Some((first, word)) = counts.next() else { return "not all of its volumes are there".to_owned() };
    let mut text = format!("{first} of {} objects are {word}", verdict.blobs);
    counts.for_each(|(count, word)| {
        let _ = write!(text, ", {count} {word}");
    });
    text
}

fn word(trouble: DamageKind) -> &'static str {
    match trouble {
        DamageKind::Missing => "missing",
        DamageKind::Damaged => "damaged",
        DamageKind::Unreadable => "unreadable",
    }
}

fn text(verdict: &Verdict) -> String {
    let mut text = String::new();
    for Damage { object, owners, places, trouble, problem } in &verdict.damage {
        let places: Vec<_> = places.iter().map(ToString::to_string).collect();
        let at = if places.is_empty() { String::new() } else { format!(" at {}", places.join(", ")) };
        let _ = writeln!(text, "{}: {object}: {problem}{at}", word(*trouble));
        for owner in owners {
            let _ = writeln!(text, "  needed by {owner}");
        }
    }
    if let Some(repaired) = repaired_text(&verdict.repaired) {
        let _ = writeln!(text, "{repaired}");
    }
    for problem in &verdict.problems {
        let _ = writeln!(text, "{problem}");
    }
    if verdict.volumes.len() > 1 {
        for VolumeState { name, trouble, .. } in &verdict.volumes {
            if let Some(trouble) = trouble {
                let _ = writeln!(text, "volume {name}: {}: carry it again", word(*trouble));
            }
        }
    }
    if verdict.worst().is_none() {
        let (blobs, bytes) = (verdict.blobs, human_bytes(verdict.bytes));
        let _ = if verdict.contents_read {
            writeln!(text, "sound: {blobs} blobs, {bytes}")
        } else {
            writeln!(
                text,
                "all there, and in the right sizes: {blobs} blobs, {bytes}; contents were not read"
            )
        };
        if !verdict.left_out.is_nothing() {
            let Totals { blobs, bytes } = verdict.left_out;
            let bytes = human_bytes(bytes);
            let _ = writeln!(text, "a delta: {blobs} more blobs ({bytes}) must be on the site already");
        }
        let _ = writeln!(text, "identity {}", verdict.identity);
        let _ = verdict.signed.iter().try_for_each(|signed| writeln!(text, "{signed}"));
    }
    text
}
