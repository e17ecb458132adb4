//! `unbundle cat`: prints one blob or document of a bundle.

use std::io;
use std::path::PathBuf;

use clap::Args;

use crate::cli::console;
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::commands::cat::{CatError, Output, cat};

/// Write one file, manifest or blob of a bundle to stdout
///
/// If the bundle is a file or volumes, only the frames of this object are read. On stdout, the last bytes are
/// held back until the digest is verified; on a digest mismatch the exit code is 7. On a terminal, control
/// characters and invisible characters are escaped.
#[derive(Debug, Args)]
pub(crate) struct Cat {
    /// Bundle file, first volume, directories with volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// Digest of a blob, path of a file, reference of an image, or index.json
    ///
    /// The reference of an image selects its manifest or index.
    #[arg(required = true)]
    object: String,
    /// Write to this file instead of stdout; it is created only if the digest matches
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    input: InputArgs,
}

impl Cat {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let mut reader = self.input.open(&self.bundle, Gaps::Allow)?;
        let contents = reader.contents()?;
        let mut stdout = console::object_writer();
        let output = match &self.output {
            Some(path) => Output::File(path),
            None => Output::Stream(&mut *stdout),
        };
        let written = cat(&mut reader, &contents, &self.object, output)
            .and_then(|()| stdout.flush().map_err(CatError::Stream));
        match written {
            Err(CatError::Stream(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Code::Success),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(Code::Success),
        }
    }
}

impl From<CatError> for Failure {
    fn from(error: CatError) -> Self {
        let code = match &error {
            CatError::NotFound(_) => Code::Usage,
            CatError::External(_) => Code::Incomplete,
            CatError::Read { source, .. } => Code::of_blob(source),
            CatError::Fs(error) => Code::of_fs(error),
            CatError::Stream(_) => Code::File,
        };
        Self::of(code, &error)
    }
}
