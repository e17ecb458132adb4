//! `unbundle receive`: receives a bundle from a stream that can lose or change bytes.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::console::Text;
use crate::cli::exit::{Code, Failure};
use crate::cli::progress::Output;
use crate::commands::receive::{ReceiveError, ReceiveSummary, VolumeState, receive};

/// Receive volumes from a data diode or a pipe that can lose or change bytes
///
/// Each volume is written under its name when it is intact. A damaged one is repaired from its recovery data
/// (`pack --recovery`), or from another transmission, in the same stream or by another run with the same directory.
#[derive(Debug, Args)]
pub(crate) struct Receive {
    /// FIFOs or files to read one after the other [default: stdin]
    #[arg(value_name = "STREAM")]
    streams: Vec<PathBuf>,
    /// Directory to write the volumes to
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Name of the bundle: the volumes are NAME.001 and so on
    #[arg(long, value_name = "NAME", default_value = "bundle.tar.zst", value_parser = parse_name)]
    name: String,
    #[command(flatten)]
    out: Output,
}

impl Receive {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let stdin = [PathBuf::from("-")];
        let paths = if self.streams.is_empty() { &stdin[..] } else { &self.streams };
        let streams = paths.iter().map(|path| open(path));
        let summary = self.out.report(|report| receive(streams, &self.output, &self.name, report))?;
        self.out.print(&summary, || text(&summary))?;
        if summary.complete {
            return Ok(Code::Success);
        }
        let directory = self.output.display();
        let message = format!("the bundle in `{directory}` is incomplete: {}", again(&summary));
        let hint = "send the volumes again, and run the same command: what was received is kept";
        Err(Failure::new(Code::Incomplete, message).with_hint(hint))
    }
}

fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    if path == Path::new("-") { Ok(Box::new(io::stdin())) } else { Ok(Box::new(File::open(path)?)) }
}

fn parse_name(text: &str) -> Result<String, String> {
    let is_valid = !text.is_empty() && !text.contains('/') && !text.starts_with('.');
    if is_valid { Ok(text.to_owned()) } else { Err("expected a file name".to_owned()) }
}

/// Returns what has to be sent again.
fn again(summary: &ReceiveSummary) -> String {
    let is_lost = |state| matches!(state, VolumeState::Damaged | VolumeState::Missing);
    let lost = summary.volumes.iter().filter(|volume| is_lost(volume.state));
    let mut names: Vec<_> = lost.map(|volume| format!("`{}`", volume.name)).collect();
    if summary.end_missing {
        names.push("the end of the bundle".to_owned());
    }
    format!("send again {}", names.join(", "))
}

fn text(summary: &ReceiveSummary) -> Text {
    let mut text = Text::new();
    for volume in &summary.volumes {
        let state = match volume.state {
            VolumeState::Intact => "intact",
            VolumeState::Repaired => "repaired",
            VolumeState::Damaged => "damaged",
            VolumeState::Missing => "missing",
        };
        text.line(format_args!("{}: {state}", volume.name));
    }
    text
}

impl From<ReceiveError> for Failure {
    fn from(error: ReceiveError) -> Self {
        let code = match &error {
            ReceiveError::Stream(_) => Code::File,
            ReceiveError::Fs(error) => Code::of_fs(error),
            ReceiveError::Busy(_) => Code::Busy,
        };
        Self::of(code, &error)
    }
}
