//! `unbundle repair`: writes an intact copy of a corrupt bundle.

use std::path::PathBuf;

use clap::Args;

use crate::base::fs;
use crate::base::units::human_bytes;
use crate::bundle::read::discover;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::reader::BundleReader;
use crate::cli::console::Text;
use crate::cli::exit::{Code, Failure};
use crate::cli::progress::Output;
use crate::cli::trust::TrustArgs;
use crate::commands::repair::{RepairError, RepairSummary, repair};

/// Write an intact copy of a corrupt bundle, using its recovery data (`pack --recovery`) or another copy
#[derive(Debug, Args)]
pub(crate) struct Repair {
    /// Bundle file, first volume, or directories with volumes
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// File to write, or a directory for volumes
    ///
    /// If one volume cannot be repaired, the copies of the others are kept.
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    out: Output,
}

impl Repair {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let volumes = discover::find(&self.bundle).map_err(ReadError::from)?;
        let policy = self.trust.policy()?;
        if policy.is_enforced() {
            // The documents may be damaged: reading them uses the recovery data.
            let documents = discover::find(&self.bundle).map_err(ReadError::from)?;
            BundleReader::from_volumes(documents, &policy)?.contents()?;
        }
        if volumes.is_in_volumes() {
            fs::create_dir_all(&self.output)?;
        }
        let summary = self.out.report(|report| repair(&volumes, &self.output, report));
        self.out.print(&summary, || text(&summary))?;
        // A volume without recovery data may be intact: as for `verify`, a missing one then determines the code.
        let is_decisive = |error: &&RepairError| !matches!(error, RepairError::NoRecovery(_));
        let decisive = summary.failed.iter().filter(is_decisive).map(code).min_by_key(|code| *code as u8);
        match decisive.or_else(|| summary.failed.first().map(code)) {
            None => Ok(Code::Success),
            Some(code) => Err(Failure::all(code, &summary.failed)),
        }
    }
}

fn code(error: &RepairError) -> Code {
    match error {
        RepairError::Absent(_) => Code::Incomplete,
        RepairError::NoRecovery(_) | RepairError::Recovery(..) | RepairError::NoIntactCopy { .. } => {
            Code::Damaged
        }
        RepairError::Unreadable(_) => Code::Unreadable,
        RepairError::Fs(error) => Code::of_fs(error),
        RepairError::Busy(_) => Code::Busy,
        RepairError::Same(_) => Code::Usage,
    }
}

fn text(summary: &RepairSummary) -> Text {
    let mut text = Text::new();
    for volume in &summary.repaired {
        let state = match volume.places {
            0 => "was intact".to_owned(),
            1 => "1 corrupt range repaired".to_owned(),
            ranges => format!("{ranges} corrupt ranges repaired"),
        };
        text.line(format_args!("{}: {}, {state}", volume.path, human_bytes(volume.size)));
    }
    text
}
