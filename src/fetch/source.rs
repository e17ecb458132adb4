//! [`Source`]: the registry or web server from which a blob is fetched.

use crate::fetch::mirrored::MirroredRegistry;
use crate::fetch::web::RemoteFile;
use crate::oci::digest::Digest;

/// The registry or web server from which a blob is fetched.
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
