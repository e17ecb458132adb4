//! The options of `pack` and `lock` that select parts of images.

use clap::{Args, ValueEnum};

use crate::fetch::resolve::options::ResolveOptions;
use crate::fetch::resolve::referrers::ArtifactKind;
use crate::oci::platform::Platform;

/// The parts of images to include and to omit.
#[derive(Debug, Args)]
pub(super) struct SelectionArgs {
    /// Platforms to include from multi-platform images, e.g. linux/amd64 [default: all]
    ///
    /// Comma-separated. `platform=` in a list takes precedence for its image.
    #[arg(long, value_name = "OS/ARCH", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Include referrers and cosign artifacts of the images; comma-separated
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    with: Vec<ArtifactKind>,
    /// Omit parts of the images; comma-separated
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    without: Vec<Part>,
}

/// A part of images that can be omitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// SBOMs and provenance of `BuildKit`, which are manifests in the index of an image
    Attestations,
}

impl SelectionArgs {
    /// True if no option is given.
    pub(super) fn is_empty(&self) -> bool {
        self.platform.is_empty() && self.with.is_empty() && self.without.is_empty()
    }

    pub(super) fn into_options(self) -> ResolveOptions {
        let without_attestations = self.without.contains(&Part::Attestations);
        ResolveOptions { platforms: self.platform, with: self.with, without_attestations }
    }
}
