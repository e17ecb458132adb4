//! [`ManifestStore`]: the manifests of all images, in memory, up to the limit of a bundle.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use crate::bundle::format::MANIFESTS_LIMIT;
use crate::oci::digest::Digest;

/// The manifests of all images.
pub(crate) struct ManifestStore(Mutex<Manifests>);

struct Manifests {
    by_digest: HashMap<Digest, Vec<u8>>,
    /// Remaining bytes.
    left: u64,
}

impl Default for ManifestStore {
    fn default() -> Self {
        Self::with_limit(MANIFESTS_LIMIT)
    }
}

impl ManifestStore {
    /// Creates an empty store for at most `limit` bytes.
    fn with_limit(limit: u64) -> Self {
        Self(Mutex::new(Manifests { by_digest: HashMap::new(), left: limit }))
    }

    pub(crate) fn get(&self, digest: Digest) -> Option<Vec<u8>> {
        self.lock().by_digest.get(&digest).cloned()
    }

    /// Adds a manifest, whatever the limit.
    pub(crate) fn insert(&self, digest: Digest, bytes: Vec<u8>) {
        self.lock().by_digest.insert(digest, bytes);
    }

    /// Adds a manifest. Returns false if it exceeds the limit.
    #[must_use]
    pub(crate) fn insert_within_limit(&self, digest: Digest, bytes: Vec<u8>) -> bool {
        let mut manifests = self.lock();
        if manifests.by_digest.contains_key(&digest) {
            return true;
        }
        let Some(left) = manifests.left.checked_sub(bytes.len() as u64) else { return false };
        manifests.left = left;
        manifests.by_digest.insert(digest, bytes);
        true
    }

    /// Returns all manifests, and leaves the store empty.
    pub(crate) fn take(&self) -> HashMap<Digest, Vec<u8>> {
        std::mem::take(&mut self.lock().by_digest)
    }

    fn lock(&self) -> MutexGuard<'_, Manifests> {
        self.0.lock().expect("nothing panics while it holds the manifests; please report")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_manifest_counts_once_toward_the_limit() {
        let store = ManifestStore::with_limit(8);
        let insert = |bytes: &[u8]| store.insert_within_limit(Digest::of(bytes), bytes.to_vec());
        let inserted = [insert(b"five!"), insert(b"five!"), insert(b"four"), insert(b"two")];
        assert_eq!(inserted, [true, true, false, true]);
        assert_eq!(store.lock().left, 0);
        assert_eq!(store.take().len(), 2);
    }
}
