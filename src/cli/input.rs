//! Where a bundle is: its file, its volumes, directories with them, or stdin; what every verb that reads one shares.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::bundle::read::discover;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::problem::VolumeProblem;
use crate::bundle::read::reader::BundleReader;
use crate::bundle::read::sequential::AskForVolume;
use crate::bundle::read::volume_set::VolumeSet;
use crate::cli::exit::{Code, Failure};
use crate::cli::trust::TrustArgs;

/// How a bundle is opened.
#[derive(Debug, Args)]
pub(super) struct InputArgs {
    #[command(flatten)]
    trust: TrustArgs,
    /// Read volume after volume, and wait for each that is not there until Enter is pressed [default: where volumes are
    /// missing, on a terminal]
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Do not wait for volumes that are missing
    #[arg(long)]
    no_wait: bool,
}

/// What is to become of a bundle of which volumes are missing, if nobody brings them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gaps {
    /// It is not read.
    Refuse,
    /// What is there is read.
    Take,
}

impl InputArgs {
    /// Opens the bundle that `bundles` mean; `-` is stdin. With trusted keys it is refused when it is read, unless one of
    /// them has signed it.
    pub(super) fn open(&self, bundles: &[PathBuf], gaps: Gaps) -> Result<BundleReader, Failure> {
        let is_stream = |path: &Path| {
            path == Path::new("-") || path.metadata().is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
        };
        if let Some(stream) = bundles.iter().find(|path| is_stream(path)) {
            if bundles.len() > 1 {
                let message = format!("`{}` is read alone: it is no volume", stream.display());
                return Err(Failure::new(Code::Usage, message));
            }
            let reader = if stream == Path::new("-") {
                BundleReader::stream(io::stdin())
            } else {
                BundleReader::open(stream)?
            };
            return Ok(reader.trusting(self.trust.of_stream()?));
        }
        let medium = discover::find(bundles).map_err(ReadError::from)?;
        let trust = self.trust.of(&medium)?;
        Ok(self.reader(medium, gaps)?.trusting(trust))
    }

    fn reader(&self, medium: VolumeSet, gaps: Gaps) -> Result<BundleReader, Failure> {
        let missing = medium.gaps();
        // What is wrong with a volume that is here does not get better by waiting.
        let is_absent = |problem: &VolumeProblem| {
            matches!(problem, VolumeProblem::Missing { .. } | VolumeProblem::Unended { .. })
        };
        let may_wait = self.wait || (!self.no_wait && io::stdin().is_terminal());
        if medium.volumes().len() + missing.len() > 1
            && may_wait
            && !missing.is_empty()
            && missing.iter().all(is_absent)
        {
            let directories: Vec<_> =
                medium.directories().iter().map(|directory| directory.display().to_string()).collect();
            return Ok(BundleReader::in_turn(&medium, ask(directories.join("` or `"))));
        }
        if gaps == Gaps::Refuse && !missing.is_empty() {
            let messages = missing.iter().map(ToString::to_string).collect();
            return Err(Failure { code: Code::Incomplete, messages });
        }
        for problem in medium.problems() {
            let _ = io::stderr().write_all(format!("warning: {problem}\n").as_bytes());
        }
        Ok(BundleReader::from_volumes(medium))
    }
}

/// Asks whoever sits at the terminal.
fn ask(directories: String) -> AskForVolume {
    Box::new(move |problem| {
        let text = match problem {
            VolumeProblem::Missing { volume } => {
                format!(
                    "\ninsert the medium with `{volume}` at `{directories}` and press Enter (Ctrl-C ends) "
                )
            }
            other => {
                format!(
                    "\n{other}: insert the right medium at `{directories}` and press Enter (Ctrl-C ends) "
                )
            }
        };
        let _ = io::stderr().write_all(text.as_bytes());
        // At the end of the input there is nobody.
        io::stdin().read_line(&mut String::new()).is_ok_and(|read| read > 0)
    })
}
