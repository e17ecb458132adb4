//! [`Resolved`]: the manifests, digests and sizes of everything that lists name.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::bundle::format::index::IndexedImage;
use crate::documents::list::FileEntry;
use crate::fetch::mirrored::MirroredRegistry;
use crate::fetch::resolve::context::ResolveContext;
use crate::fetch::web::RemoteFile;
use crate::net::error::{FetchError, FetchProblem};
use crate::oci::digest::Digest;

/// Everything that lists name.
#[derive(Clone, Default)]
pub(crate) struct Resolved {
    /// The images, sorted by reference.
    pub images: Vec<ResolvedImage>,
    /// The files, sorted by path.
    pub files: Vec<(FileEntry, RemoteFile)>,
    /// The bytes of all manifests.
    pub manifests: HashMap<Digest, Vec<u8>>,
    /// The manifests that needed no request.
    pub known: HashSet<Digest>,
    /// The URLs of layers that are outside the registry.
    pub foreign: HashMap<Digest, Vec<RemoteFile>>,
}

/// An image and its registry.
#[derive(Clone)]
pub(crate) struct ResolvedImage {
    /// Its entry in the index of the bundle.
    pub indexed: IndexedImage,
    /// The registry from which its blobs are fetched.
    pub registry: MirroredRegistry,
}

impl Resolved {
    /// Collects the results of a resolution. Returns the failures separately.
    pub(crate) fn collect(
        context: &ResolveContext<'_>,
        images: impl IntoIterator<Item = Result<ResolvedImage, FetchError>>,
        files: impl IntoIterator<Item = Result<(FileEntry, RemoteFile), FetchError>>,
        foreign: impl IntoIterator<Item = (Digest, Result<Option<RemoteFile>, FetchError>)>,
    ) -> (Self, Vec<FetchError>) {
        let mut resolved = Self::default();
        let mut failures = Vec::new();
        for image in images {
            match image {
                Ok(image) => resolved.images.push(image),
                Err(failure) => failures.push(failure),
            }
        }
        // All images after the first one that exceeds the limit exceed it as well.
        let mut exceeds_limit = false;
        failures.retain(|failure| {
            let is_limit = matches!(failure.problem, FetchProblem::Limit(_));
            !is_limit || !std::mem::replace(&mut exceeds_limit, true)
        });
        let mut unavailable = BTreeMap::new();
        for (digest, layer) in foreign {
            match layer {
                Ok(file) => resolved.foreign.entry(digest).or_default().extend(file),
                Err(failure) => drop(unavailable.entry(digest).or_insert(failure)),
            }
        }
        // Another image may name the same layer with other URLs, or have it in its registry.
        unavailable.retain(|digest, _| !resolved.foreign.contains_key(digest));
        failures.extend(unavailable.into_values());
        for file in files {
            match file {
                Ok(file) => resolved.files.push(file),
                Err(failure) => failures.push(failure),
            }
        }
        resolved.manifests = context.manifests.take();
        resolved.known = context.known.take_used();
        resolved.images.sort_by_cached_key(|image| image.indexed.reference.to_string());
        resolved.files.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        (resolved, failures)
    }
}
