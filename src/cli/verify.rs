//! `unbundle verify`: is this bundle sound, and if not, what is damaged?

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use crate::bundle::layout::Amount;
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::cli::progress::Output;
use crate::cli::{print, summary_json};
use crate::event::human_bytes;
use crate::unpack::mended_text;
use crate::verify::{Damage, Verdict, verify};

/// Read a bundle to its end and name everything that is damaged
#[derive(Debug, Args)]
pub struct Verify {
    /// The bundle, its first volume, folders with its volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    out: Output,
}

impl Verify {
    /// Verifies.
    pub fn run(self) -> Result<Code, Failure> {
        let reader = self.input.open(&self.bundle, Gaps::Take)?;
        let reporter = self.out.reporter();
        let result = verify(reader, &*reporter);
        drop(reporter);
        let verdict = result?;
        print(&self.out.result(|| text(&verdict), || summary_json(&verdict)))?;
        if verdict.damage.is_empty() {
            return Ok(Code::Success);
        }
        let message = format!(
            "{}: {} of {} objects are damaged",
            self.bundle[0].display(),
            verdict.damage.len(),
            verdict.blobs
        );
        Err(Failure::new(Code::Damaged, message))
    }
}

fn text(verdict: &Verdict) -> String {
    let mut text = String::new();
    for Damage { object, owners, offsets, problem } in &verdict.damage {
        let offsets: Vec<_> = offsets.iter().map(u64::to_string).collect();
        let at = if offsets.is_empty() { String::new() } else { format!(" at byte {}", offsets.join(", ")) };
        let _ = writeln!(text, "damaged: {object}: {problem}{at}");
        for owner in owners {
            let _ = writeln!(text, "  needed by {owner}");
        }
    }
    if let Some(mended) = mended_text(&verdict.mended) {
        let _ = writeln!(text, "{mended}");
    }
    if verdict.damage.is_empty() {
        let _ = writeln!(text, "sound: {} blobs, {}", verdict.blobs, human_bytes(verdict.bytes));
        if !verdict.left_out.is_nothing() {
            let Amount { blobs, bytes } = verdict.left_out;
            let bytes = human_bytes(bytes);
            let _ = writeln!(text, "a delta: {blobs} more blobs ({bytes}) must be on the site already");
        }
        let _ = writeln!(text, "identity {}", verdict.identity);
        let _ = verdict.signed.iter().try_for_each(|signed| writeln!(text, "{signed}"));
    }
    text
}
