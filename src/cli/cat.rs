//! `unbundle cat`: one object of a bundle.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;

use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::commands::cat::{CatError, Output, cat};

/// Write one object of a bundle to stdout, or into a file
///
/// Of a bundle in files nothing else is read. To stdout the bytes go as they come; the last of them is held back until all
/// are known to be right, and if they are not, the exit code is 7.
#[derive(Debug, Args)]
pub(crate) struct Cat {
    /// The bundle, its first volume, directories with its volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// What to write: the digest of a blob, the path of a file, the reference of an image (its manifest or index), or
    /// index.json
    #[arg(required = true)]
    object: String,
    /// Write into this file, which has its name only when all its bytes are right
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    input: InputArgs,
}

impl Cat {
    /// Writes.
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let mut reader = self.input.open(&self.bundle, Gaps::Take)?;
        let contents = reader.contents()?;
        let mut stdout = io::stdout().lock();
        let output = match &self.output {
            Some(path) => Output::File(path),
            None => Output::Stream(&mut stdout),
        };
        match cat(&mut reader, &contents, &self.object, output) {
            Err(CatError::Stream(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Code::Success),
            Err(error) => Err(error.into()),
            Ok(()) => match stdout.flush() {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    Err(CatError::Stream(error).into())
                }
                _ => Ok(Code::Success),
            },
        }
    }
}
