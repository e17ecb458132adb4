//! [`SiteContents`]: the blobs a site has, which a delta omits.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use crate::base::fs::{self, FsError};
use crate::bundle::format::INDEX_LIMIT;
use crate::bundle::format::layout::Blob;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::reader::{BundleReader, Contents};
use crate::documents::inventory::{Inventory, InventoryError};
use crate::documents::lock::{Lock, LockError};
use crate::oci::digest::Digest;
use crate::signature::policy::Policy;

/// Length of the prefix that tells JSON documents from bundles, in bytes.
const PREFIX_LEN: u64 = 64;

/// The blobs of a site with their sizes in bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct SiteContents {
    sizes: HashMap<Digest, u64>,
    /// The content of the manifests of bundles.
    manifests: HashMap<Digest, Vec<u8>>,
}

/// An error while reading a `--base`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BaseError {
    /// The file cannot be read.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The file is an invalid or unsupported inventory.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The file is JSON, but neither an inventory nor a valid lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The file is not JSON and not a valid bundle.
    #[error(transparent)]
    Bundle(#[from] ReadError),
}

impl SiteContents {
    /// Adds the blobs of an inventory, of a lock, or of a bundle that the site has unpacked. A delta adds its
    /// external blobs, too: they were on the site when it was unpacked.
    pub(crate) fn add(&mut self, path: &Path, policy: &Policy) -> Result<(), BaseError> {
        let mut prefix = Vec::new();
        // Any other path can be the name or the directory of a volume set.
        if path.is_file() {
            let read = fs::open(path)?.take(PREFIX_LEN).read_to_end(&mut prefix);
            read.map_err(FsError::at("read", path))?;
        }
        if !Lock::is_one(&prefix) {
            let Contents { layout, manifests, .. } = BundleReader::open(path, policy)?.contents()?;
            self.manifests.extend(manifests);
            let blobs = [layout.manifests, layout.blobs, layout.external].concat();
            self.sizes.extend(blobs.into_iter().map(|blob| (blob.digest, blob.size)));
            return Ok(());
        }
        let bytes = fs::read(path, INDEX_LIMIT)?;
        if Inventory::is_one(&bytes) {
            let Inventory { blobs, files, .. } = Inventory::parse(&bytes)?;
            self.sizes.extend(blobs.into_iter().chain(files));
        } else {
            self.sizes.extend(Lock::parse(&bytes)?.blobs());
        }
        Ok(())
    }

    /// Returns the size in bytes of the blob with this digest. `None`: the site lacks it.
    #[must_use]
    pub(crate) fn size(&self, digest: Digest) -> Option<u64> {
        self.sizes.get(&digest).copied()
    }

    /// Returns the content of the manifests of bundles.
    #[must_use]
    pub(crate) fn manifests(&self) -> &HashMap<Digest, Vec<u8>> {
        &self.manifests
    }

    #[must_use]
    pub(crate) fn has(&self, blob: Blob) -> bool {
        self.size(blob.digest) == Some(blob.size)
    }
}
