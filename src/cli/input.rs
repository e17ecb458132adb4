//! Opens bundles: a file, volumes, directories with volumes, or stdin.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::bundle::read::discover;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::problem::{self, VolumeProblem};
use crate::bundle::read::reader::BundleReader;
use crate::bundle::read::sequential::AskForVolume;
use crate::bundle::read::volume_set::VolumeSet;
use crate::cli::console::{self, Text};
use crate::cli::exit::{Code, Failure};
use crate::cli::trust::TrustArgs;
use crate::signature::policy::Policy;

/// The options of every verb that reads a bundle.
#[derive(Debug, Args)]
pub(super) struct InputArgs {
    #[command(flatten)]
    trust: TrustArgs,
    /// Prompt for each missing volume and wait [default: if stdin is a terminal]
    ///
    /// Volumes are read in order. If one is missing, connect the media that contains it and press Enter.
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Do not prompt for missing volumes
    #[arg(long)]
    no_wait: bool,
}

/// The option of the verbs that put a bundle to use.
#[derive(Debug, Args)]
pub(super) struct ExpiryArgs {
    /// Accept a bundle that has expired (`pack --expires`)
    ///
    /// Without trusted keys, the date is not checked.
    #[arg(long)]
    allow_expired: bool,
}

impl ExpiryArgs {
    /// Makes reading fail if the bundle has expired, unless the option allows it.
    pub(super) fn apply(&self, reader: BundleReader) -> BundleReader {
        if self.allow_expired { reader } else { reader.refusing_expired() }
    }
}

/// The handling of a bundle with missing volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gaps {
    /// Opening it fails.
    Refuse,
    /// The other volumes are read.
    Allow,
}

impl InputArgs {
    /// Opens the bundle at the paths `bundles`; `-` is stdin. If there are trusted keys, reading fails unless
    /// one of them signed the bundle.
    pub(super) fn open(&self, bundles: &[PathBuf], gaps: Gaps) -> Result<BundleReader, Failure> {
        if let Some(stream) = bundles.iter().find(|path| is_stream(path)) {
            if bundles.len() > 1 {
                let message = format!("cannot read `{}` as one of several volumes", stream.display());
                let hint = "name a stream alone: it contains the complete bundle";
                return Err(Failure::new(Code::Usage, message).with_hint(hint));
            }
            let policy = self.policy()?;
            return Ok(if stream == Path::new("-") {
                BundleReader::stream(io::stdin(), &policy)
            } else {
                BundleReader::open(stream, &policy)?
            });
        }
        let volumes = discover::find(bundles).map_err(ReadError::from)?;
        self.reader(volumes, gaps, &self.policy()?)
    }

    /// Returns the policy of the host.
    pub(super) fn policy(&self) -> Result<Policy, Failure> {
        self.trust.policy()
    }

    fn reader(&self, volumes: VolumeSet, gaps: Gaps, policy: &Policy) -> Result<BundleReader, Failure> {
        let missing = volumes.gaps();
        if self.may_prompt(&volumes, &missing) {
            let directories: Vec<_> =
                volumes.directories().iter().map(|directory| directory.display().to_string()).collect();
            let ask = prompt(directories.join("` or `"));
            return Ok(BundleReader::in_turn(&volumes, ask, policy)?);
        }
        if gaps == Gaps::Refuse && !missing.is_empty() {
            let messages = problem::lines(&missing);
            return Err(Failure { code: Code::Incomplete, messages, hint: None });
        }
        for problem in problem::lines(volumes.problems()) {
            console::report(&Text::of(format_args!("warning: {problem}")));
        }
        Ok(BundleReader::from_volumes(volumes, policy)?)
    }

    fn may_prompt(&self, volumes: &VolumeSet, missing: &[VolumeProblem]) -> bool {
        // Waiting does not help if a volume is present but invalid.
        let is_absent = |problem: &VolumeProblem| {
            matches!(problem, VolumeProblem::Missing { .. } | VolumeProblem::Unended { .. })
        };
        let may_wait = self.wait || (!self.no_wait && io::stdin().is_terminal());
        may_wait
            && !missing.is_empty()
            && volumes.volumes().len() + missing.len() > 1
            && missing.iter().all(is_absent)
    }
}

/// True for stdin, FIFOs and devices, which can be read once.
pub(super) fn is_stream(path: &Path) -> bool {
    path == Path::new("-") || path.metadata().is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
}

/// Returns a function that prompts the operator for a volume and returns false at the end of stdin.
fn prompt(directories: String) -> AskForVolume {
    Box::new(move |problem| {
        console::prompt(match problem {
            VolumeProblem::Missing { volume } => format!(
                "connect the media with `{volume}` at `{directories}` and press Enter (Ctrl-C to abort)"
            ),
            other => format!(
                "{other}: connect the correct media at `{directories}` and press Enter (Ctrl-C to abort)"
            ),
        })
    })
}
