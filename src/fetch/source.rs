//! [`Source`]: where a blob is fetched from.

use crate::fetch::mirrored::MirroredRegistry;
use crate::fetch::web::RemoteFile;
use crate::oci::digest::Digest;

/// Where a blob is.
#[derive(Clone)]
pub(crate) enum Source {
    /// In a registry.
    Registry {
        /// Which one.
        registry: MirroredRegistry,
        /// In which repository.
        repository: String,
        /// Under which digest.
        digest: Digest,
    },
    /// On a web server.
    Web(RemoteFile),
}
