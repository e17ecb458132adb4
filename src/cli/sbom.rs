//! `airbundle sbom`, `unbundle sbom`: what is in this bundle and where it came from, for other tools.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::base::error_chain::chain;
use crate::base::fs;
use crate::cli::date::source_date;
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::cli::ls::configs;
use crate::cli::output::print;
use crate::commands::sbom::{Format, document};

/// List all files and images of a bundle, with source, digest, size and platform, as SPDX or CycloneDX
///
/// The same bundle gives the same document. It is said to be made when the bundle was packed, if the bundle says so; or at
/// `SOURCE_DATE_EPOCH` of the environment; or in 1970.
#[derive(Debug, Args)]
pub(crate) struct Sbom {
    /// The bundle, its first volume, directories with its volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// The language: SPDX 2.3 or CycloneDX 1.6, both as JSON
    #[arg(long, value_enum, default_value_t = Language::Spdx)]
    format: Language,
    /// Write it into this file [default: stdout]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    input: InputArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Language {
    Spdx,
    Cyclonedx,
}

impl Sbom {
    /// Writes the document.
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let date = source_date()?;
        let mut reader = self.input.open(&self.bundle, Gaps::Take)?;
        let contents = reader.contents()?;
        let configs = configs(&mut reader, &contents.layout)?;
        let format = match self.format {
            Language::Spdx => Format::Spdx,
            Language::Cyclonedx => Format::CycloneDx,
        };
        let document = document(&contents, &configs, date, format);
        if let Some(path) = &self.output {
            let written = fs::write_durably(path, &document);
            written.map_err(|error| Failure::new(Code::File, chain(&error)))?;
        } else {
            print(&String::from_utf8(document).expect("JSON is UTF-8; please report"))?;
        }
        Ok(Code::Success)
    }
}
