//! [`ResolveOptions`]: the parts of images to include.

use crate::fetch::resolve::referrers::ArtifactKind;
use crate::oci::platform::Platform;

/// The parts of images to include.
#[derive(Debug, Clone, Default)]
pub(crate) struct ResolveOptions {
    /// Platforms to include for entries that specify none. Empty: all.
    pub platforms: Vec<Platform>,
    /// Referrers and cosign artifacts to include.
    pub with: Vec<ArtifactKind>,
    /// True if attestations in indexes are omitted.
    pub without_attestations: bool,
}
