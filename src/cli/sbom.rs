//! `airbundle sbom` and `unbundle sbom`: export the contents of a bundle as SPDX or CycloneDX.

use std::io::BufWriter;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::base::fs::FsError;
use crate::base::output_file::{Access, OutputFile};
use crate::cli::console::JsonStdout;
use crate::cli::date::source_date;
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::cli::listing::configs;
use crate::cli::output::check;
use crate::commands::sbom::{Format, write};

/// Export the files and images of a bundle as an SBOM
///
/// The SBOM lists source, digest, size and platform of every entry. The same bundle makes the same document.
/// Its date is the date of the bundle if it has one, else `SOURCE_DATE_EPOCH` if set, else 1970-01-01.
#[derive(Debug, Args)]
pub(crate) struct Sbom {
    /// Bundle file, first volume, directories with volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// Format of the document
    #[arg(long, value_enum, default_value_t = Language::Spdx)]
    format: Language,
    /// File to write [default: stdout]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    input: InputArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Language {
    /// SPDX 2.3, JSON
    Spdx,
    /// CycloneDX 1.6, JSON
    Cyclonedx,
}

impl Sbom {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let date = source_date()?;
        self.output.as_deref().map_or(Ok(()), OutputFile::check)?;
        let mut reader = self.input.open(&self.bundle, Gaps::Allow)?;
        let contents = reader.contents()?;
        let configs = configs(&mut reader, &contents.layout)?;
        let format = match self.format {
            Language::Spdx => Format::Spdx,
            Language::Cyclonedx => Format::CycloneDx,
        };
        if let Some(path) = &self.output {
            let mut file = OutputFile::create(path, Access::Default)?;
            let written = write(BufWriter::new(&mut file), &contents, &configs, date, format);
            written.map_err(FsError::at("write", path))?;
            file.finish()?;
        } else {
            check(write(JsonStdout::new(), &contents, &configs, date, format))?;
        }
        Ok(Code::Success)
    }
}
