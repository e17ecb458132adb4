//! The command line of `airbundle`, the program that packs bundles.

use clap::{Parser, Subcommand};

use crate::cli;

/// Pack files and container images into one bundle for an air-gapped site
#[derive(Debug, Parser)]
#[command(name = "airbundle", version)]
pub(crate) struct Airbundle {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Pack(Box<cli::pack::Pack>),
    Lock(cli::lock::Lock),
    Diff(cli::diff::Diff),
    Lists(cli::lists::Lists),
    Image(cli::image::Image),
    Sbom(cli::sbom::Sbom),
    Keygen(cli::keygen::Keygen),
    Sign(cli::sign::Sign),
}

/// Parses the process arguments, runs the verb, and returns the exit code.
#[must_use]
pub fn main() -> std::process::ExitCode {
    cli::run(|Airbundle { verb }| match verb {
        Verb::Pack(pack) => pack.run(),
        Verb::Lock(lock) => lock.run(),
        Verb::Diff(diff) => diff.run(),
        Verb::Lists(lists) => lists.run(),
        Verb::Image(image) => image.run(),
        Verb::Sbom(sbom) => sbom.run(),
        Verb::Keygen(keygen) => keygen.run(),
        Verb::Sign(sign) => sign.run(),
    })
}
