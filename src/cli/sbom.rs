//! `airbundle sbom` and `unbundle sbom`: export the contents of a bundle as SPDX or CycloneDX.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::base::output_file::{Access, OutputFile};
use crate::cli::date::source_date;
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::cli::listing::configs;
use crate::cli::output::print_document;
use crate::commands::sbom::{Format, document};

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
        let document = document(&contents, &configs, date, format);
        if let Some(path) = &self.output {
            OutputFile::write(path, Access::Default, &document)?;
        } else {
            print_document(document)?;
        }
        Ok(Code::Success)
    }
}
