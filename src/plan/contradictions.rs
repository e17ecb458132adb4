//! [`contradictions`]: images whose manifests state different sizes for a blob.

use std::collections::{BTreeSet, HashMap};

use crate::bundle::format::index::{FileSet, IndexedImage};
use crate::bundle::format::layout::LayoutError;
use crate::fetch::resolve::Resolved;
use crate::net::error::{FetchError, FetchProblem};
use crate::oci::digest::Digest;
use crate::plan::bundle_plan::layout;

/// Returns an error for each image that states another size for `digest` than another image does. Only the bytes
/// would tell which one is right, so none is believed, unless one contradicts itself: it is the only one then.
///
/// Not empty if [`crate::bundle::format::layout::LayoutError::Sizes`] is the reason why `resolved` has no layout: the
/// sizes of files are those in the images.
#[must_use]
pub(crate) fn contradictions(resolved: &Resolved, digest: Digest) -> Vec<FetchError> {
    let of_image =
        |image: &IndexedImage| (image.reference.to_string(), sizes(image, digest, &resolved.manifests));
    let mut stated: Vec<(String, BTreeSet<u64>)> = resolved
        .images
        .iter()
        .map(|image| of_image(&image.indexed))
        .filter(|(_, sizes)| !sizes.is_empty())
        .collect();
    if stated.iter().any(|(_, sizes)| sizes.len() > 1) {
        stated.retain(|(_, sizes)| sizes.len() > 1);
    }
    let error = |(image, own): &(String, BTreeSet<u64>)| {
        let other = stated.iter().find(|(_, sizes)| sizes != own);
        let (other, sizes) =
            other.map_or(("itself".to_owned(), own), |(other, sizes)| (format!("`{other}`"), sizes));
        let size = own.first().copied().unwrap_or_default();
        let other_size = sizes.iter().copied().find(|other| *other != size).unwrap_or(size);
        FetchError::new(image, FetchProblem::Sizes { digest, size, other, other_size })
    };
    stated.iter().map(error).collect()
}

/// Returns the sizes that the manifests of `image` state for `digest`: at most two. Empty: they do not name it.
fn sizes(image: &IndexedImage, digest: Digest, manifests: &HashMap<Digest, Vec<u8>>) -> BTreeSet<u64> {
    match layout(std::slice::from_ref(image), &FileSet::default(), manifests, &BTreeSet::new()) {
        Ok(layout) => {
            let blobs = layout.manifests.iter().chain(&layout.blobs);
            blobs.filter(|blob| blob.digest == digest).map(|blob| blob.size).collect()
        }
        Err(LayoutError::Sizes(found, one, other)) if found == digest => [one, other].into(),
        Err(_) => BTreeSet::new(),
    }
}
