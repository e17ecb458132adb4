//! `unbundle`: the side without a network.

use airbundle::cli;
use clap::{Parser, Subcommand};

/// Unpack a bundle into a site that nginx and a registry serve
#[derive(Debug, Parser)]
#[command(name = "unbundle", version)]
struct Cli {
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
    Site(cli::site::Site),
    Images(cli::images::Images),
    Inventory(cli::inventory::Inventory),
    Prune(cli::prune::Prune),
}

fn main() -> std::process::ExitCode {
    let Cli { verb } = Cli::parse();
    cli::main(|| match verb {
        Verb::Unpack(unpack) => unpack.run(),
        Verb::Ls(ls) => ls.run(),
        Verb::Cat(cat) => cat.run(),
        Verb::Sbom(sbom) => sbom.run(),
        Verb::Verify(verify) => verify.run(),
        Verb::Repair(repair) => repair.run(),
        Verb::Site(site) => site.run(),
        Verb::Images(images) => images.run(),
        Verb::Inventory(inventory) => inventory.run(),
        Verb::Prune(prune) => prune.run(),
    })
}
