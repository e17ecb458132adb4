//! Reads the record of a site and compares it with the signed documents of the unpacked bundles.
//!
//! A site can be carried on a disk that others can write to. On a host with trusted keys, `site.json` is used
//! only if each image and each file in it follows from a bundle that a trusted key signed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use crate::base::own_file::read_regular;
use crate::base::text::escape;
use crate::bundle::format::index::{IndexedFile, IndexedImage};
use crate::oci::digest::Digest;
use crate::oci::manifest::{MANIFEST_LIMIT, Manifest};
use crate::oci::media_type::MediaType;
use crate::oci::reference::{DEFAULT_PREFIX, Reference};
use crate::oci::repository::RepositoryName;
use crate::oci::template::RepositoryTemplate;
use crate::signature::policy::Policy;
use crate::site::record::{
    Record, RecordError, RecordedBundle, RecordedFile, RecordedImage, RecordedManifest,
};
use crate::site::roots::NamedRoots;
use crate::site::signed_index::{KeptBundles, SignedIndex};
use crate::site::storage::blob_path;

/// The signatures that a host requires of a site, and the names that its record cannot set by itself.
#[derive(Debug, Clone)]
pub struct SitePolicy {
    /// The keys that must have signed the bundles of the site.
    pub signatures: Policy,
    /// The templates for the names of repositories. No signature covers the names.
    pub templates: Vec<RepositoryTemplate>,
    /// The directories outside of the site that it can have.
    pub roots: NamedRoots,
}

impl SitePolicy {
    /// Returns the policy of a host without trusted keys: the record is used without verification.
    #[must_use]
    pub fn none() -> Self {
        Self { signatures: Policy::none(), templates: Vec::new(), roots: NamedRoots::default() }
    }
}

/// Reads the record of `site`. If `policy` requires signatures, fails unless the record follows from the
/// documents of its bundles, and these are signed.
pub fn read(site: &Path, policy: &SitePolicy) -> Result<Record, RecordError> {
    let record = Record::read(site, &policy.roots)?;
    if !policy.signatures.is_enforced() {
        return Ok(record);
    }
    let kept = KeptBundles::open(site)?;
    let mut indexes = Vec::new();
    for bundle in &record.bundles {
        let index = documents(site, &kept, bundle, policy)?;
        let index = index.ok_or_else(|| RecordError::NoIndex(site.to_owned(), bundle.identity))?;
        let about = &index.index.about;
        if (&about.title, &about.created) != (&bundle.title, &bundle.created) {
            return Err(uncovered(site, &format!("a title or date of the bundle `{}`", bundle.identity)));
        }
        indexes.push(index);
    }
    let contents = SignedContents::of(&indexes);
    contents.check(&record, site, policy).map_err(|item| uncovered(site, &item))?;
    Ok(record)
}

/// Returns the documents of an unpacked bundle, one of those that the site has `kept`; `None`: it does not have them.
pub(crate) fn documents(
    site: &Path,
    kept: &KeptBundles,
    bundle: &RecordedBundle,
    policy: &SitePolicy,
) -> Result<Option<SignedIndex>, RecordError> {
    let index = kept.read(bundle.identity, &policy.signatures);
    index.map_err(|error| RecordError::Index(site.to_owned(), bundle.identity, error.into()))
}

fn uncovered(site: &Path, item: &str) -> RecordError {
    RecordError::Uncovered(site.to_owned(), escape(item).into_owned())
}

/// The images and files of the bundles of a site.
struct SignedContents<'a> {
    images: HashMap<(String, Digest), &'a IndexedImage>,
    files: HashSet<(String, &'a str, u64, Digest)>,
}

impl<'a> SignedContents<'a> {
    fn of(indexes: &'a [SignedIndex]) -> Self {
        let images = indexes.iter().flat_map(|bundle| &bundle.index.images);
        let files = indexes.iter().flat_map(|bundle| &bundle.files.files);
        let file = |file: &'a IndexedFile| {
            (format!("{DEFAULT_PREFIX}/{}", file.path), file.url.as_str(), file.size, file.digest)
        };
        Self {
            images: images.map(|image| ((image.reference.to_string(), image.digest), image)).collect(),
            files: files.map(file).collect(),
        }
    }

    /// Returns the first image or file of the record that no bundle contains, or that two entries name.
    fn check(&self, record: &Record, site: &Path, policy: &SitePolicy) -> Result<(), String> {
        let mut paths = HashSet::new();
        for RecordedFile { path, url, size, digest } in &record.files {
            if !self.files.contains(&(path.to_string(), url, *size, *digest)) || !paths.insert(path) {
                return Err(format!("the file `{path}`"));
            }
        }
        let mut names = HashSet::new();
        for image in &record.images {
            let name = || format!("the image `{}`", image.reference);
            let indexed =
                image.digest().and_then(|digest| self.images.get(&(image.reference.to_string(), digest)));
            let indexed = indexed.ok_or_else(name)?;
            let is_same = image.tag.as_deref() == indexed.reference.tag()
                && image.manifests[0].media_type == indexed.media_type;
            if !is_same {
                return Err(name());
            }
            for repository in &image.repositories {
                let is_taken = image.tag.is_some() && !names.insert((repository, &image.tag));
                if is_taken || !policy.allows(repository, &indexed.reference) {
                    return Err(format!("{} in the repository `{repository}`", name()));
                }
            }
        }
        self.check_manifests(record, &record.registry_root(site))
    }

    /// Compares all other manifests of the record with the indexes in the storage that lead to them.
    fn check_manifests(&self, record: &Record, storage: &Path) -> Result<(), String> {
        let mut cache = BTreeMap::new();
        for image in &record.images {
            let RecordedImage { manifests, reference, .. } = image;
            let Some((root, children)) = manifests.split_first() else { continue };
            if children.is_empty() {
                continue;
            }
            let below = descendants(root.digest, &root.media_type, storage, &mut cache);
            if let Some(child) = children.iter().find(|child| !has(&below, child)) {
                return Err(format!("the manifest `{}` of the image `{reference}`", child.digest));
            }
        }
        if record.retired.is_empty() {
            return Ok(());
        }
        let mut all: BTreeSet<(Digest, MediaType)> = BTreeSet::new();
        for image in self.images.values() {
            all.insert((image.digest, image.media_type.clone()));
            all.extend(descendants(image.digest, &image.media_type, storage, &mut cache));
        }
        match record.retired.iter().find(|manifest| !has(&all, manifest)) {
            Some(manifest) => Err(format!("the manifest `{}`", manifest.digest)),
            None => Ok(()),
        }
    }
}

impl SitePolicy {
    /// True if an image can be in this repository.
    fn allows(&self, repository: &RepositoryName, image: &Reference) -> bool {
        let is_name = |template: &RepositoryTemplate| {
            template.apply(image).is_ok_and(|name| name == *repository)
                || template.alias(image).as_ref() == Some(repository)
        };
        self.templates.iter().any(is_name)
    }
}

fn has(manifests: &BTreeSet<(Digest, MediaType)>, manifest: &RecordedManifest) -> bool {
    manifests.contains(&(manifest.digest, manifest.media_type.clone()))
}

/// Returns the manifests that an index leads to, as far as the storage has them intact. `cache` has those of
/// the indexes that were read before.
fn descendants(
    root: Digest,
    media_type: &MediaType,
    storage: &Path,
    cache: &mut BTreeMap<Digest, Vec<(Digest, MediaType)>>,
) -> BTreeSet<(Digest, MediaType)> {
    let mut found = BTreeSet::new();
    let mut queue = vec![(root, media_type.clone())];
    while let Some((digest, media_type)) = queue.pop() {
        let children = cache.entry(digest).or_insert_with(|| children(digest, &media_type, storage));
        let new = children.iter().filter(|child| found.insert((*child).clone()));
        queue.extend(new.cloned());
    }
    found
}

/// Returns the manifests that an index names. An image manifest has none, and neither has a corrupt index.
fn children(digest: Digest, media_type: &MediaType, storage: &Path) -> Vec<(Digest, MediaType)> {
    let bytes = read_regular(&storage.join(blob_path(digest)), MANIFEST_LIMIT).unwrap_or_default();
    match Manifest::parse(media_type, &bytes).ok().filter(|_| Digest::of(&bytes) == digest) {
        Some(Manifest::Index(children)) => {
            children.into_iter().map(|child| (child.digest, child.media_type)).collect()
        }
        _ => Vec::new(),
    }
}
