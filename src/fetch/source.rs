//! [`Source`]: where a blob is fetched from.

use crate::fetch::mirrored::MirroredRegistry;
use crate::fetch::web::RemoteFile;
use crate::oci::digest::Digest;

/// Where a blob is fetched from.
#[derive(Clone)]
pub(crate) enum Source {
    /// A registry.
    Registry {
        /// The registry and its mirrors.
        registry: MirroredRegistry,
        /// The repository.
        repository: String,
        /// Digest of the blob.
        digest: Digest,
    },
    /// A web server.
    Web(RemoteFile),
}
