//! `airbundle`: the side with a network.

use airbundle::cli;
use clap::{Parser, Subcommand};

/// Pack files and container images into one bundle for a site without network
#[derive(Debug, Parser)]
#[command(name = "airbundle", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Pack(cli::pack::Pack),
    Lock(cli::lock::Lock),
    Diff(cli::diff::Diff),
    Lists(cli::lists::Lists),
    Image(cli::image::Image),
    Sbom(cli::sbom::Sbom),
    Keygen(cli::keygen::Keygen),
}

fn main() -> std::process::ExitCode {
    let Cli { verb } = Cli::parse();
    cli::main(|| match verb {
        Verb::Pack(pack) => pack.run(),
        Verb::Lock(lock) => lock.run(),
        Verb::Diff(diff) => diff.run(),
        Verb::Lists(lists) => lists.run(),
        Verb::Image(image) => image.run(),
        Verb::Sbom(sbom) => sbom.run(),
        Verb::Keygen(keygen) => keygen.run(),
    })
}
