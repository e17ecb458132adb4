//! [`SiteContents`]: what a site has already, and what a bundle for it need not carry.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use crate::base::fs::{self, FsError};
use crate::bundle::format::INDEX_LIMIT;
use crate::bundle::format::layout::Blob;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::reader::BundleReader;
use crate::documents::inventory::{Inventory, InventoryError};
use crate::documents::lock::{Lock, LockError};
use crate::oci::digest::Digest;

/// What a site has; see the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct SiteContents(HashMap<Digest, u64>);

/// Why a file cannot be a base.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BaseError {
    /// It cannot be read.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// It is an inventory that this program does not read.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// It is no inventory, and no lock either.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It is none of both, and no bundle that this program reads.
    #[error(transparent)]
    Bundle(#[from] ReadError),
}

impl SiteContents {
    /// Adds what a site has that this inventory tells of, or that has unpacked what this lock, or bundle, names. A
    /// delta counts as a whole: who has unpacked it has all of it.
    pub(crate) fn add(&mut self, path: &Path) -> Result<(), BaseError> {
        let mut first = Vec::new();
        // What is no file may be the name of volumes, or their directory.
        if path.is_file() {
            let read = fs::open(path)?.take(64).read_to_end(&mut first);
            read.map_err(FsError::at("read", path))?;
        }
        if !Lock::is_one(&first) {
            let layout = BundleReader::open(path)?.contents()?.layout;
            let all = [layout.manifests, layout.blobs, layout.external].concat();
            self.0.extend(all.into_iter().map(|blob| (blob.digest, blob.size)));
            return Ok(());
        }
        let bytes = fs::read(path, INDEX_LIMIT)?;
        if Inventory::is_one(&bytes) {
            let Inventory { blobs, files, .. } = Inventory::parse(&bytes)?;
            self.0.extend(blobs.into_iter().chain(files));
        } else {
            self.0.extend(Lock::parse(&bytes)?.blobs());
        }
        Ok(())
    }

    /// The size of what has this digest.
    #[must_use]
    pub(crate) fn size(&self, digest: Digest) -> Option<u64> {
        self.0.get(&digest).copied()
    }

    /// Whether this is there.
    #[must_use]
    pub(crate) fn has(&self, blob: Blob) -> bool {
        self.size(blob.digest) == Some(blob.size)
    }
}
