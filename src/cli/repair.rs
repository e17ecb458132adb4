//! `unbundle repair`: a bundle with recovery data in, a good copy out.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use crate::base::error_chain::chain;
use crate::base::fs;
use crate::base::units::human_bytes;
use crate::bundle::read::discover;
use crate::bundle::read::error::ReadError;
use crate::cli::exit::{Code, Failure};
use crate::cli::output::{print, summary_json};
use crate::cli::progress::Output;
use crate::commands::repair::{RepairError, RepairSummary, repair};

/// Write a good copy of a bundle that is damaged, with its recovery data (`pack --recovery`)
#[derive(Debug, Args)]
pub(crate) struct Repair {
    /// The bundle, its first volume, or directories with its volumes
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// Where the copy is written: a file, or a directory for volumes; a volume that cannot be repaired leaves the others their
    /// copies
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
    #[command(flatten)]
    out: Output,
}

impl Repair {
    /// Repairs.
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let medium = discover::find(&self.bundle).map_err(ReadError::from)?;
        if medium.is_in_volumes() {
            fs::create_dir_all(&self.output).map_err(|error| Failure::new(Code::File, chain(&error)))?;
        }
        let reporter = self.out.reporter();
        let summary = repair(&medium, &self.output, &*reporter);
        drop(reporter);
        print(&self.out.result(|| text(&summary), || summary_json(&summary)))?;
        let code = summary.failed.iter().map(code).min_by_key(|code| *code as u8);
        let Some(code) = code else { return Ok(Code::Success) };
        Err(Failure { code, messages: summary.failed.iter().map(|error| chain(error)).collect() })
    }
}

fn code(error: &RepairError) -> Code {
    match error {
        RepairError::Absent(_) => Code::Incomplete,
        RepairError::NoRecovery(_) | RepairError::Recovery(..) => Code::Damaged,
        RepairError::Fs(_) => Code::File,
        RepairError::Busy(_) => Code::Busy,
        RepairError::Same(_) => Code::Usage,
    }
}

fn text(summary: &RepairSummary) -> String {
    let mut text = String::new();
    for volume in &summary.repaired {
        let what = match volume.places {
            0 => "nothing was damaged".to_owned(),
            1 => "damaged at 1 place, repaired".to_owned(),
            places => format!("damaged at {places} places, repaired"),
        };
        let _ = writeln!(text, "{}: {}, {what}", volume.path.display(), human_bytes(volume.size));
    }
    text
}
