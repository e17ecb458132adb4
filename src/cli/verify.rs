//! `unbundle verify`: verifies a bundle and names everything that is corrupt or missing.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::base::text::more_positions;
use crate::base::units::human_bytes;
use crate::bundle::format::layout::Totals;
use crate::bundle::read::problem::{self, DamageKind, NAMED_VOLUMES, Position};
use crate::cli::console::Text;
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{ExpiryArgs, Gaps, InputArgs};
use crate::cli::progress::Output;
use crate::commands::unpack::repaired_text;
use crate::commands::verify::damage::Damage;
use crate::commands::verify::quick::quick;
use crate::commands::verify::{CopyState, Verdict, VolumeState, verify};

/// Maximum number of positions in a line of the report. JSON has all of them.
const POSITION_LIMIT: usize = 10;

/// Verify every byte of a bundle and name everything that is corrupt or missing
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Bundle file, first volume, directories with volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// Verify only structure and sizes, without reading contents
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    expiry: ExpiryArgs,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    out: Output,
}

impl Verify {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let reader = self.expiry.apply(self.input.open(&self.bundle, Gaps::Allow)?);
        let verdict = self.out.report(|report| {
            if self.quick { quick(reader, report) } else { verify(reader, report).map(Some) }
        })?;
        let Some(verdict) = verdict else {
            let message =
                "cannot use `--quick`: the bundle is a pipe, or its volumes are read one after the other";
            return Err(Failure::new(Code::Usage, message));
        };
        self.out.print(&verdict, || text(&verdict))?;
        require_intact(&verdict, &self.bundle[0])?;
        Ok(Code::Success)
    }
}

/// Fails if `bundle` is damaged or incomplete.
pub(crate) fn require_intact(verdict: &Verdict, bundle: &Path) -> Result<(), Failure> {
    let Some(worst) = verdict.worst() else { return Ok(()) };
    let message = format!("`{}` is not intact: {}", bundle.display(), counts(verdict));
    Err(Failure::new(worst.into(), message))
}

/// Returns the numbers of unreadable, corrupt and missing blobs.
fn counts(verdict: &Verdict) -> String {
    let blobs = || verdict.damage.iter().filter(|damage| damage.is_blob());
    let other = verdict.damage.len() - blobs().count();
    let count = |trouble| blobs().filter(|damage| damage.trouble == trouble).count();
    let mut counts = [DamageKind::Unreadable, DamageKind::Damaged, DamageKind::Missing]
        .map(|trouble| (count(trouble), word(trouble)))
        .into_iter()
        .filter(|(count, _)| *count > 0);
    let structure = match other {
        0 => String::new(),
        1 => "1 part of its structure".to_owned(),
        other => format!("{other} parts of its structure"),
    };
    let Some((first, word)) = counts.next() else {
        // Without any damage, there are only gaps.
        let is_damaged = other > 0;
        return if is_damaged { structure + " cannot be used" } else { "volumes are missing".to_owned() };
    };
    let mut text = format!("{first} of {} blobs {word}", verdict.blobs);
    counts.for_each(|(count, word)| {
        let _ = write!(text, ", {count} {word}");
    });
    if other > 0 {
        let _ = write!(text, ", and {structure}");
    }
    text
}

fn word(trouble: DamageKind) -> &'static str {
    match trouble {
        DamageKind::Missing => "missing",
        DamageKind::Damaged => "damaged",
        DamageKind::Unreadable => "unreadable",
    }
}

/// Returns ` at …` with the first positions, and the number of the others.
fn at(places: &BTreeSet<Position>) -> String {
    let first: Vec<_> = places.iter().take(POSITION_LIMIT).map(ToString::to_string).collect();
    if places.is_empty() {
        return String::new();
    }
    format!(" at {}{}", first.join(", "), more_positions(places.len() - first.len()))
}

/// Writes a line for each volume that must be copied again, and one for many in a row.
fn volumes(all: &[VolumeState], text: &mut Text) {
    for run in all.chunk_by(|a, b| a.trouble == b.trouble) {
        let Some(trouble) = run[0].trouble.map(word) else { continue };
        if let [first, .., last] = run
            && run.len() > NAMED_VOLUMES
        {
            text.line(format_args!("volumes {} to {}: {trouble}: copy them again", first.name, last.name));
            continue;
        }
        for VolumeState { name, .. } in run {
            text.line(format_args!("volume {name}: {trouble}: copy it again"));
        }
    }
}

fn text(verdict: &Verdict) -> Text {
    let mut text = Text::new();
    for Damage { object, owners, places, trouble, problem } in &verdict.damage {
        text.line(format_args!("{}: {object}: {problem}{}", word(*trouble), at(places)));
        for owner in owners {
            text.line(format_args!("  needed by {owner}"));
        }
    }
    if let Some(repaired) = repaired_text(&verdict.repaired) {
        text.line(format_args!("{repaired}"));
    }
    for CopyState { path, offsets } in verdict.copies.iter().filter(|copy| !copy.offsets.is_empty()) {
        let more = more_positions(offsets.len() - 1);
        text.line(format_args!("copy `{path}`: damaged at byte {}{more}", offsets[0]));
    }
    for problem in problem::lines(&verdict.problems) {
        text.line(format_args!("{problem}"));
    }
    if verdict.volumes.len() > 1 {
        volumes(&verdict.volumes, &mut text);
    }
    if verdict.worst().is_none() {
        let (blobs, bytes) = (verdict.blobs, human_bytes(verdict.bytes));
        text.line(if verdict.contents_read {
            format!("intact: {blobs} blobs, {bytes}")
        } else {
            format!("complete: {blobs} blobs, {bytes}; only structure and sizes were verified")
        });
        if !verdict.left_out.is_nothing() {
            let Totals { blobs, bytes } = verdict.left_out;
            let bytes = human_bytes(bytes);
            text.line(format_args!("delta: the site must already have {blobs} more blobs ({bytes})"));
        }
        text.line(format_args!("identity {}", verdict.identity));
        verdict.signed.iter().for_each(|signed| text.line(signed));
    }
    text
}
