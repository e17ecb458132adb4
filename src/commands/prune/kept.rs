//! [`Kept`]: the images, files and blobs that are kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::base::fs::FsError;
use crate::base::path::RelPath;
use crate::bundle::format::layout::{BundledImage, Layout};
use crate::bundle::read::reader::Contents;
use crate::commands::prune::error::{self, PruneError, difference};
use crate::commands::prune::listed::Selected;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::reference::DEFAULT_PREFIX;
use crate::site::files::Files;
use crate::site::record::{Record, RecordedImage};
use crate::site::scan::Storage;

pub(super) struct Kept<'a> {
    /// By reference and digest.
    images: HashMap<(String, Digest), Vec<(&'a Layout, &'a BundledImage)>>,
    /// The digests of files, by path below the root of files.
    files: HashMap<String, HashSet<Digest>>,
    /// The sizes of manifests, configs and layers in bytes.
    pub(super) blobs: HashMap<Digest, u64>,
    pub(super) parsed: HashMap<Digest, &'a Manifest>,
    pub(super) manifests: HashSet<Digest>,
    /// The bundles that remain in the record.
    identities: HashSet<Digest>,
    /// Those of them that lose images or files.
    partial: HashSet<Digest>,
}

/// Returns the identity and the layout of each bundle, without the images and files that were not unpacked:
/// not selected, or damaged.
pub(super) fn unpacked(kept: &[Contents], record: &Record) -> Vec<(Digest, Layout)> {
    kept.iter().map(|contents| (contents.identity, unpacked_layout(contents, record))).collect()
}

fn unpacked_layout(contents: &Contents, record: &Record) -> Layout {
    let mut layout = contents.layout.clone();
    let bundle = record.bundles.iter().find(|bundle| bundle.identity == contents.identity);
    if bundle.is_none_or(|bundle| !bundle.partial) {
        return layout;
    }
    layout.images.retain_mut(|image| {
        let mut recorded =
            record.images.iter().filter(|recorded| recorded.reference == image.indexed.reference).peekable();
        let is_recorded = recorded.peek().is_some();
        if let Some(recorded) = recorded.find(|recorded| recorded.digest() == Some(image.indexed.digest)) {
            let has = |digest| recorded.manifests.iter().any(|manifest| manifest.digest == digest);
            image.manifests.retain(|manifest| has(manifest.digest));
        }
        is_recorded
    });
    let paths: HashSet<&str> = record.files.iter().map(|file| file.path.as_str()).collect();
    layout.files.retain(|file| paths.contains(format!("{DEFAULT_PREFIX}/{}", file.path).as_str()));
    layout
}

impl<'a> Kept<'a> {
    pub(super) fn of(bundles: &'a [(Digest, Layout)], listed: Option<&'a Selected>) -> Self {
        let mut kept = Self {
            images: HashMap::new(),
            files: HashMap::new(),
            blobs: HashMap::new(),
            parsed: HashMap::new(),
            manifests: HashSet::new(),
            identities: bundles.iter().map(|(identity, _)| *identity).collect(),
            partial: HashSet::new(),
        };
        if let Some(Selected { holders, partial, .. }) = listed {
            kept.partial = partial.difference(&kept.identities).copied().collect();
            kept.identities.extend(holders);
        }
        let listed = listed.map(|listed| &listed.layout);
        for layout in bundles.iter().map(|(_, layout)| layout).chain(listed) {
            for image in &layout.images {
                let key = (image.indexed.reference.to_string(), image.indexed.digest);
                kept.images.entry(key).or_default().push((layout, image));
                let blobs = image.manifests.iter().copied().chain(layout.blobs_of(image));
                kept.blobs.extend(blobs.map(|blob| (blob.digest, blob.size)));
                kept.manifests.extend(image.manifests.iter().map(|manifest| manifest.digest));
            }
            kept.parsed.extend(layout.parsed.iter().map(|(digest, manifest)| (*digest, manifest)));
            for file in &layout.files {
                kept.files.entry(format!("{DEFAULT_PREFIX}/{}", file.path)).or_default().insert(file.digest);
            }
        }
        kept
    }

    pub(super) fn has(&self, image: &RecordedImage) -> bool {
        self.bundled(image).is_some()
    }

    /// Returns the image as the bundles and lists have it that keep it; `None`: none of them does.
    fn bundled(&self, image: &RecordedImage) -> Option<&[(&'a Layout, &'a BundledImage)]> {
        Some(self.images.get(&(image.reference.to_string(), image.digest()?))?)
    }

    /// Fails unless the site has every kept image and file as one of the bundles or lists has it, and all blobs of the
    /// images.
    pub(super) fn compare(
        &self,
        record: &Record,
        storage: Option<&Storage>,
        files: Option<&Files>,
    ) -> Result<(), PruneError> {
        let mut differences = self.different_images(record);
        differences.extend(self.different_files(record, files)?);
        if differences.is_empty() {
            differences = self.missing_blobs(storage)?;
        }
        if differences.is_empty() {
            Ok(())
        } else {
            Err(PruneError::Mismatch(differences.into_iter().collect()))
        }
    }

    fn different_images(&self, record: &Record) -> BTreeSet<String> {
        let intact: HashSet<&str> = record
            .images
            .iter()
            .filter(|image| self.has(image))
            .map(|image| image.reference.as_str())
            .collect();
        let different = self.images.keys().filter(|(reference, _)| !intact.contains(&**reference));
        different
            .map(|(reference, _)| {
                let exists = record.images.iter().any(|image| image.reference.as_str() == *reference);
                difference(reference, exists)
            })
            .collect()
    }

    fn different_files(&self, record: &Record, root: Option<&Files>) -> Result<BTreeSet<String>, PruneError> {
        let recorded: HashMap<&str, Digest> =
            record.files.iter().map(|file| (file.path.as_str(), file.digest)).collect();
        let mut different = BTreeSet::new();
        for (path, digests) in &self.files {
            let exists = match (root, RelPath::parse(path)) {
                (Some(root), Ok(path)) => root.open_existing(&path)?.is_some(),
                _ => false,
            };
            let matches = recorded.get(path.as_str()).is_some_and(|digest| digests.contains(digest));
            if !exists || !matches {
                different.insert(difference(path, exists));
            }
        }
        Ok(different)
    }

    fn missing_blobs(&self, storage: Option<&Storage>) -> Result<BTreeSet<String>, PruneError> {
        let mut missing = BTreeSet::new();
        for (digest, size) in &self.blobs {
            if storage.map(|storage| storage.size(*digest)).transpose()?.flatten() != Some(*size) {
                missing.insert(error::missing(*digest));
            }
        }
        Ok(missing)
    }

    /// Returns the record of the pruned site.
    pub(super) fn prune_record(&self, record: &Record, storage: Option<&Storage>) -> Result<Record, FsError> {
        let mut pruned = record.clone();
        pruned.bundles.retain(|bundle| self.identities.contains(&bundle.identity));
        for bundle in &mut pruned.bundles {
            bundle.partial |= self.partial.contains(&bundle.identity);
        }
        pruned.files.retain(|file| self.files.contains_key(file.path.as_str()));
        pruned.retired.retain(|manifest| self.manifests.contains(&manifest.digest));
        for mut image in std::mem::take(&mut pruned.images) {
            if let Some(bundled) = self.bundled(&image) {
                prune_image(&mut image, bundled, storage)?;
                pruned.images.push(image);
            }
        }
        Ok(pruned)
    }
}

/// Removes the platforms of `image` that only other bundles had.
fn prune_image(
    image: &mut RecordedImage,
    bundled: &[(&Layout, &BundledImage)],
    storage: Option<&Storage>,
) -> Result<(), FsError> {
    let is_kept = |digest| {
        bundled.iter().any(|(_, image)| image.manifests.iter().any(|manifest| manifest.digest == digest))
    };
    let before = image.manifests.len();
    image.manifests.retain(|manifest| is_kept(manifest.digest));
    if image.manifests.len() == before {
        return Ok(());
    }
    let config = |digest| storage.map_or(Ok(None), |storage| storage.read(digest));
    let mut platforms = BTreeMap::new();
    for (layout, image) in bundled {
        let all = layout.platforms(image, config)?;
        platforms.extend(all.into_iter().map(|platform| (platform.to_string(), platform)));
    }
    image.platforms = platforms.into_values().collect();
    let blobs = bundled
        .iter()
        .flat_map(|(layout, image)| image.manifests.iter().copied().chain(layout.blobs_of(image)));
    let sizes: HashMap<Digest, u64> = blobs.map(|blob| (blob.digest, blob.size)).collect();
    image.size = sizes.values().sum();
    Ok(())
}
