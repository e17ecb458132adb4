//! The command line of `unbundle`, the program for the air-gapped site.

use clap::{Parser, Subcommand};

use crate::cli;

/// Verify, unpack and serve bundles at an air-gapped site
#[derive(Debug, Parser)]
#[command(name = "unbundle", version)]
pub(crate) struct Unbundle {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Unpack(cli::unpack::Unpack),
    Ls(cli::ls::Ls),
    Cat(cli::cat::Cat),
    Sbom(cli::sbom::Sbom),
    Verify(cli::verify::Verify),
    Repair(cli::repair::Repair),
    Receive(cli::receive::Receive),
    Site(cli::site::Site),
    Images(cli::images::Images),
    Inventory(cli::inventory::Inventory),
    Prune(cli::prune::Prune),
}

/// Parses the process arguments, runs the verb, and returns the exit code.
#[must_use]
pub fn main() -> std::process::ExitCode {
    cli::run(|Unbundle { verb }| match verb {
        Verb::Unpack(unpack) => unpack.run(),
        Verb::Ls(ls) => ls.run(),
        Verb::Cat(cat) => cat.run(),
        Verb::Sbom(sbom) => sbom.run(),
        Verb::Verify(verify) => verify.run(),
        Verb::Repair(repair) => repair.run(),
        Verb::Receive(receive) => receive.run(),
        Verb::Site(site) => site.run(),
        Verb::Images(images) => images.run(),
        Verb::Inventory(inventory) => inventory.run(),
        Verb::Prune(prune) => prune.run(),
    })
}
