//! [`KnownDocuments`]: manifests and configs of earlier runs and bundles, which need no request.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use crate::bundle::format::layout::Blob;
use crate::bundle::reuse::ReusableBundle;
use crate::bundle::write::manifest_cache::ManifestCache;
use crate::oci::digest::Digest;

/// Manifests and configs of earlier runs and bundles. Registries limit the requests for manifests.
#[derive(Default)]
pub(crate) struct KnownDocuments<'a> {
    /// Older bundles, which have configs, too.
    bundles: Vec<&'a ReusableBundle>,
    /// All known manifests.
    manifests: Vec<&'a HashMap<Digest, Vec<u8>>>,
    /// Receives the manifests of this run. `None`: they are not kept.
    cache: Option<&'a ManifestCache>,
    /// The manifests that needed no request.
    used: Mutex<HashSet<Digest>>,
}

impl<'a> KnownDocuments<'a> {
    /// `manifests` are those of other bundles. `cache` has the manifests of an unfinished run, and receives those of
    /// this one.
    pub(crate) fn new(
        bundles: Vec<&'a ReusableBundle>,
        manifests: &'a HashMap<Digest, Vec<u8>>,
        cache: &'a ManifestCache,
    ) -> Self {
        let own = bundles.iter().map(|bundle| bundle.manifests());
        let mut all: Vec<_> = own.chain([manifests, cache.manifests()]).collect();
        all.retain(|manifests| !manifests.is_empty());
        Self { bundles, manifests: all, cache: Some(cache), used: Mutex::default() }
    }

    /// True if no manifest is known.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.manifests.is_empty()
    }

    /// Returns the manifest with this digest. `None`: not known.
    #[must_use]
    pub(crate) fn manifest(&self, digest: Digest) -> Option<Vec<u8>> {
        let bytes = self.manifests.iter().find_map(|manifests| manifests.get(&digest))?.clone();
        self.used().insert(digest);
        Some(bytes)
    }

    /// Returns the content of a config. `None`: not known.
    #[must_use]
    pub(crate) fn config(&self, config: Blob) -> Option<Vec<u8>> {
        self.bundles.iter().find_map(|bundle| bundle.read_blob(config))
    }

    /// Keeps a manifest for the next run.
    pub(crate) fn keep(&self, bytes: &[u8]) {
        if let Some(cache) = self.cache {
            cache.add(bytes);
        }
    }

    /// Returns the manifests that needed no request.
    #[must_use]
    pub(crate) fn take_used(&self) -> HashSet<Digest> {
        std::mem::take(&mut self.used())
    }

    fn used(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.used.lock().expect("nothing panics while it holds this; please report")
    }
}
