//! Resolves a lock: requests manifests by digest only, since tags may have moved.

use std::collections::BTreeSet;

use crate::bundle::format::index::IndexedImage;
use crate::documents::list::{FileEntry, Lists};
use crate::documents::lock::{Lock, LockedImage, LockedManifest};
use crate::fetch::in_parallel;
use crate::fetch::mirrored::MirroredRegistry;
use crate::fetch::resolve::context::ResolveContext;
use crate::fetch::resolve::foreign::ForeignLayer;
use crate::fetch::resolve::resolved::{Resolved, ResolvedImage};
use crate::fetch::web::RemoteFile;
use crate::net::error::{FetchError, FetchProblem, MismatchKind};
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;

/// Requests the manifests that `lock` names, and probes its files. `lists` are the [`Lock::lists`]. Returns
/// the failures separately.
pub(crate) fn resolve_lock(
    context: &ResolveContext<'_>,
    lock: &Lock,
    lists: Lists,
) -> (Resolved, Vec<FetchError>) {
    context.report_start(&lists);
    let images = in_parallel(context.upstream.jobs, &lock.images, |image| {
        let registry = context.endpoints.registry(image.reference.host());
        let indexed = locked_image(context, &registry, image)?;
        registry.repositories(&image.reference.to_string(), image.reference.repository(), true)?;
        Ok(ResolvedImage { indexed, registry })
    });
    context.pulls.report(context.report);
    let foreign = context.find_foreign();
    let files = context.probe_files(&lists.files);

    // `Lock::lists` keeps the order of the lock.
    let sizes = lock.files.iter().map(|file| file.size);
    let files = lists.files.into_iter().zip(files).zip(sizes);
    let files = files.map(|((entry, file), size)| check_size(entry, file?, size));
    Resolved::collect(context, images, files, foreign)
}

/// Sets the size of a file to the one in the lock. Fails if the server states another one.
fn check_size(
    entry: FileEntry,
    mut file: RemoteFile,
    locked: u64,
) -> Result<(FileEntry, RemoteFile), FetchError> {
    if let Some(found) = file.size.filter(|size| *size != locked) {
        let problem = FetchProblem::Mismatch {
            kind: MismatchKind::Size,
            expected: locked.to_string(),
            found: found.to_string(),
            url: format!("{}; the expected size is from the lock", entry.url),
        };
        return Err(FetchError::new(entry.name(), problem));
    }
    file.size = Some(locked);
    Ok((entry, file))
}

fn locked_image(
    context: &ResolveContext<'_>,
    registry: &MirroredRegistry,
    image: &LockedImage,
) -> Result<IndexedImage, FetchError> {
    let object = image.reference.to_string();
    let repository = image.reference.repository();
    let mut named = BTreeSet::new();
    let mut size = 0;
    for locked in &image.manifests {
        let digest = locked.digest;
        let bytes = locked_manifest(context, registry, image, locked)?;
        let manifest = Manifest::parse(&locked.media_type, &bytes)
            .map_err(|error| FetchError::new(&object, FetchProblem::Manifest { digest, error }))?;
        match manifest {
            Manifest::Index(children) => named.extend(children.iter().map(|child| child.digest)),
            Manifest::Image { layers, .. } => {
                for layer in layers.into_iter().filter(|layer| !layer.urls.is_empty()) {
                    context.foreign.add(ForeignLayer::new(&object, layer, registry, repository));
                }
            }
        }
        if digest == image.digest {
            size = locked.size;
        }
        context.manifests.insert(digest, bytes);
    }
    for locked in &image.manifests {
        named.remove(&locked.digest);
    }
    Ok(IndexedImage {
        reference: image.reference.clone(),
        media_type: image.manifests[0].media_type.clone(),
        digest: image.digest,
        size,
        omitted: named,
        platforms: image.platforms.clone(),
        is_made: image.manifests[0].content.is_some(),
    })
}

/// Returns a manifest of an image: from an image before, from the lock, or from the registry.
fn locked_manifest(
    context: &ResolveContext<'_>,
    registry: &MirroredRegistry,
    image: &LockedImage,
    locked: &LockedManifest,
) -> Result<Vec<u8>, FetchError> {
    let object = image.reference.to_string();
    let bytes = match (context.manifests.get(locked.digest), &locked.content) {
        (Some(bytes), _) => bytes,
        (None, Some(text)) => text.clone().into_bytes(),
        (None, None) => {
            let repository = image.reference.repository();
            context.manifest(registry, context.request(&object), repository, locked.digest)?.bytes
        }
    };
    let mismatch = |kind, expected: String, found: String| {
        let url = format!("the registry {}; the expected value is from the lock", image.reference.host());
        Err(FetchError::new(&object, FetchProblem::Mismatch { kind, expected, found, url }))
    };
    let found = Digest::of(&bytes);
    if found != locked.digest {
        return mismatch(MismatchKind::Digest, locked.digest.to_string(), found.to_string());
    }
    if bytes.len() as u64 != locked.size {
        return mismatch(MismatchKind::Size, locked.size.to_string(), bytes.len().to_string());
    }
    Ok(bytes)
}
