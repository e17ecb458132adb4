//! [`Record`]: the bundles, images and files unpacked into a site (`SITE/site.json`).
//!
//! The configuration, the catalog and the Kubespray variables are generated from it, without a bundle and
//! without hashing. Servers do not need it, and `unpack` restores it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::fs::FsError;
use crate::base::json::pretty;
use crate::base::own_file::read_regular;
use crate::base::path::RelPath;
use crate::base::source_url::SourceUrl;
use crate::base::title::{Timestamp, Title};
use crate::bundle::format::layout::{BundledImage, Layout};
use crate::bundle::read::reader::Contents;
use crate::oci::digest::Digest;
use crate::oci::manifest::{MANIFEST_LIMIT, Manifest};
use crate::oci::media_type::MediaType;
use crate::oci::platform::Platform;
use crate::oci::reference::{DEFAULT_PREFIX, Reference};
use crate::oci::repository::{RepositoryName, Tag};
use crate::oci::template::RepositoryTemplate;
use crate::site::named;
use crate::site::root::Staging;
use crate::site::roots::{NamedRoots, RootKind, RootPath, RootsError};
use crate::site::signed_index::SignedIndexError;
use crate::site::storage::{blob_path, repositories};

/// The name of the record in the directory of the site.
pub const RECORD: &str = "site.json";
/// The only version so far.
const FORMAT: u32 = 1;
/// Maximum sum of all sizes in bytes, so that no sum of some of them overflows.
const MAX_TOTAL: u64 = i64::MAX as u64;
/// Maximum size in bytes.
const LIMIT: u64 = 1 << 28;

/// The contents of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    format: u32,
    /// The root of the files.
    #[serde(deserialize_with = "named::files_root")]
    files_root: RootPath,
    /// The root of the registry's storage.
    #[serde(deserialize_with = "named::registry_root")]
    registry_root: RootPath,
    /// Unpacked bundles, in the order of their first `unpack`.
    pub bundles: Vec<RecordedBundle>,
    /// Sorted by reference.
    pub images: Vec<RecordedImage>,
    /// Sorted by path.
    pub files: Vec<RecordedFile>,
    /// Manifests without a tag, because it moved; sorted by digest. They can still be pulled by digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<RecordedManifest>,
}

/// An unpacked bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedBundle {
    /// The digest of its `index.json`.
    pub identity: Digest,
    /// Its title. `None`: it has none.
    #[serde(default, deserialize_with = "named::title", skip_serializing_if = "Option::is_none")]
    pub title: Option<Title>,
    /// Time of packing (RFC 3339). `None`: not recorded in the bundle.
    #[serde(default, deserialize_with = "named::created", skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// True if only some of its images and files were unpacked: a selection, or those that were intact.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// An image of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedImage {
    /// Its reference: `registry.k8s.io/pause:3.9`.
    #[serde(deserialize_with = "named::reference")]
    pub reference: Reference,
    /// Its repositories on this site: `k8s/registry.k8s.io/pause`.
    #[serde(deserialize_with = "named::repositories")]
    pub repositories: BTreeSet<RepositoryName>,
    /// Its tag. `None`: the reference has a digest only.
    #[serde(default, deserialize_with = "named::tag", skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// The platforms on the site; empty for an artifact.
    #[serde(deserialize_with = "named::platforms")]
    pub platforms: Vec<Platform>,
    /// Size in bytes of its manifests, configs and layers, including shared ones.
    #[serde(deserialize_with = "named::size")]
    pub size: u64,
    /// Its manifests; the one that the reference resolves to is first.
    pub manifests: Vec<RecordedManifest>,
}

/// A manifest of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedManifest {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    #[serde(deserialize_with = "named::media_type")]
    pub media_type: MediaType,
}

/// A file of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedFile {
    /// Path below the root of the files: `k8s/dl.k8s.io/…`.
    #[serde(deserialize_with = "named::path")]
    pub path: RelPath,
    /// The URL in the list.
    #[serde(deserialize_with = "named::url")]
    pub url: SourceUrl,
    /// Size in bytes.
    #[serde(deserialize_with = "named::size")]
    pub size: u64,
    /// Its digest.
    pub digest: Digest,
}

/// The reasons why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file call failed.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The directory has no record.
    #[error("`{}` is not a site: it has no `{RECORD}`, which `unbundle unpack` writes", .0.display())]
    Missing(PathBuf),
    /// The file is not a record.
    #[error("cannot parse `{}` (remove it and unpack again)", .0.display())]
    Syntax(PathBuf, #[source] serde_json::Error),
    /// Members are valid only one by one.
    #[error("invalid `{}` (remove it and unpack again): {}", .0.display(), .1)]
    Content(PathBuf, String),
    /// A root is neither inside the site nor named by an option.
    #[error("cannot use `{}`", .0.display())]
    Roots(PathBuf, #[source] RootsError),
    /// The format version is unsupported.
    #[error("unsupported version {version} of `{}`: use a newer `unbundle`", .0.display(), version = .1)]
    Version(PathBuf, u32),
    /// The documents of a bundle are corrupt, or have no trusted signature.
    #[error("cannot use the site `{}`: the bundle `{identity}` cannot be verified", .0.display(), identity = .1)]
    Index(PathBuf, Digest, #[source] Box<SignedIndexError>),
    /// The documents of a bundle are missing.
    #[error(
        "cannot verify the site `{}`: it has no signed documents of the bundle `{identity}`, which an earlier version \
         unpacked, or which is not from `unpack`", .0.display(), identity = .1
    )]
    NoIndex(PathBuf, Digest),
    /// An entry of the record does not follow from the bundles.
    #[error("cannot use the site `{}`: `{RECORD}` names {item}, which none of its bundles contains", .0.display(), item = .1)]
    Uncovered(PathBuf, String),
}

impl RecordedImage {
    /// Returns the digest that its reference resolves to. `None`: the record has no manifests for it.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.manifests.first().map(|manifest| manifest.digest)
    }

    /// Adds the manifests and platforms that the site had of the same image before. If a manifest cannot be
    /// read from the storage, it is dropped together with the former platforms.
    fn join(&mut self, before: &mut Self, storage: &Path) {
        let held: BTreeSet<Digest> = self.manifests.iter().map(|manifest| manifest.digest).collect();
        let mut more: Vec<RecordedManifest> = before.manifests.drain(..).collect();
        more.retain(|manifest| !held.contains(&manifest.digest));
        if more.is_empty() {
            return;
        }
        let blobs = |manifest: &RecordedManifest| -> Option<Vec<(Digest, u64)>> {
            let bytes = read_regular(&storage.join(blob_path(manifest.digest)), MANIFEST_LIMIT).ok()?;
            let mut blobs = vec![(manifest.digest, bytes.len() as u64)];
            if let Manifest::Image { config, layers } = Manifest::parse(&manifest.media_type, &bytes).ok()? {
                blobs.extend(std::iter::once(&config).chain(&layers).map(|blob| (blob.digest, blob.size)));
            }
            Some(blobs)
        };
        let mut counted: BTreeSet<Digest> =
            self.manifests.iter().filter_map(blobs).flatten().map(|(digest, _)| digest).collect();
        for manifest in more {
            let Some(blobs) = blobs(&manifest) else {
                before.platforms.clear();
                continue;
            };
            self.size += blobs
                .into_iter()
                .filter(|(digest, _)| counted.insert(*digest))
                .map(|(_, size)| size)
                .sum::<u64>();
            self.manifests.push(manifest);
        }
        self.platforms.append(&mut before.platforms);
        self.platforms.sort_by_cached_key(Platform::to_string);
        self.platforms.dedup();
    }
}

impl Record {
    /// Creates the record of an empty site with these roots.
    #[must_use]
    pub fn new(files_root: RootPath, registry_root: RootPath) -> Self {
        let (bundles, images, files, retired) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { format: FORMAT, files_root, registry_root, bundles, images, files, retired }
    }

    /// Returns a record of the images of a bundle, which are in no repository. `config` returns the bytes of a config that
    /// states a platform; `None`: it is not available. Fails if `config` does.
    pub(crate) fn of_bundle<E>(
        contents: &Contents,
        config: impl Fn(Digest) -> Result<Option<Vec<u8>>, E>,
    ) -> Result<Self, E> {
        let mut record = Self::new("files".into(), "registry".into());
        let layout = &contents.layout;
        let images = layout.images.iter();
        record.images = images
            .map(|image| recorded(image, layout, BTreeSet::new(), &config))
            .collect::<Result<_, E>>()?;
        Ok(record)
    }

    /// Reads the record of `site`. Fails unless its roots are inside the site, or those that `named` has.
    pub fn read(site: &Path, named: &NamedRoots) -> Result<Self, RecordError> {
        let path = site.join(RECORD);
        let bytes = match read_regular(&path, LIMIT) {
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {
                return Err(RecordError::Missing(site.to_owned()));
            }
            bytes => bytes.map_err(RecordError::Fs)?,
        };
        let record = Self::parse(&path, &bytes)?;
        record.check_roots(site, named)?;
        Ok(record)
    }

    /// Parses the content of the record at `path`. Does not check its roots.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let syntax = |error| RecordError::Syntax(path.to_owned(), error);
        let Version { format } = serde_json::from_slice(bytes).map_err(syntax)?;
        if format != FORMAT {
            return Err(RecordError::Version(path.to_owned(), format));
        }
        let record: Self = serde_json::from_slice(bytes).map_err(syntax)?;
        record.check().map_err(|reason| RecordError::Content(path.to_owned(), reason))?;
        Ok(record)
    }

    /// Fails unless the roots are inside `site`, or those that `named` has.
    pub fn check_roots(&self, site: &Path, named: &NamedRoots) -> Result<(), RecordError> {
        for (kind, root) in [(RootKind::Files, &self.files_root), (RootKind::Registry, &self.registry_root)] {
            root.check(kind, site, named).map_err(|error| RecordError::Roots(site.join(RECORD), error))?;
        }
        Ok(())
    }

    /// Fails if the sizes overflow.
    fn check(&self) -> Result<(), String> {
        let sizes = self.images.iter().map(|image| image.size).chain(self.files.iter().map(|file| file.size));
        if sizes.fold(0, u64::saturating_add) > MAX_TOTAL {
            return Err(format!("`size` adds up to more than {MAX_TOTAL} bytes"));
        }
        Ok(())
    }

    /// Returns the root of the files of the site at `site`.
    #[must_use]
    pub fn files_root(&self, site: &Path) -> PathBuf {
        self.files_root.of_site(site)
    }

    /// Returns the root of the registry's storage of the site at `site`.
    #[must_use]
    pub fn registry_root(&self, site: &Path) -> PathBuf {
        self.registry_root.of_site(site)
    }

    /// Writes the record of the site that contains `staging`, if it changed. Returns true if it did.
    pub(crate) fn write(&self, staging: &Staging) -> Result<bool, FsError> {
        let bytes = pretty(self);
        if staging.base().read(RECORD, LIMIT).is_ok_and(|old| old.as_ref() == Some(&bytes)) {
            return Ok(false);
        }
        staging.replace_in_base(RECORD, &bytes)?;
        Ok(true)
    }

    /// Adds the images and files of a bundle, in the repositories that `templates` name. `partial`: they are
    /// not all of the bundle.
    ///
    /// An image or file replaces the one of the same name. A replaced image remains recorded while it has
    /// another name, and its manifests as `retired` afterwards.
    pub fn add(
        &mut self,
        contents: &Contents,
        partial: bool,
        templates: &[RepositoryTemplate],
        site: &Path,
    ) -> Result<(), FsError> {
        let Contents { identity, about, layout, .. } = contents;
        let bundle = RecordedBundle {
            identity: *identity,
            title: about.title.clone(),
            created: about.created.clone(),
            partial,
        };
        match self.bundles.iter_mut().find(|known| known.identity == *identity) {
            // Once complete, it remains so.
            Some(known) => *known = RecordedBundle { partial: known.partial && partial, ..bundle },
            None => self.bundles.push(bundle),
        }
        let storage = self.registry_root(site);
        let mut images = ImageTable::new(std::mem::take(&mut self.images), &storage);
        // `unpack` has just hashed or written the configs, so that one that cannot be read is an error.
        let config = |digest| read_regular(&storage.join(blob_path(digest)), MANIFEST_LIMIT).map(Some);
        for image in &layout.images {
            let names = repositories(&image.indexed.reference, layout, templates).unwrap_or_default();
            images.add(recorded(image, layout, names, config)?);
        }
        self.retired.append(&mut images.retired);
        self.retired.sort_by_key(|manifest| manifest.digest);
        self.retired.dedup_by_key(|manifest| manifest.digest);
        self.images = images.slots.into_iter().flatten().collect();
        self.images
            .sort_by(|a, b| (a.reference.as_str(), a.digest()).cmp(&(b.reference.as_str(), b.digest())));

        let prefix = RelPath::parse(DEFAULT_PREFIX).expect("a plain path");
        let mut files: BTreeMap<RelPath, RecordedFile> =
            std::mem::take(&mut self.files).into_iter().map(|file| (file.path.clone(), file)).collect();
        for file in &layout.files {
            let path = prefix.join(&file.path);
            let recorded = RecordedFile {
                path: path.clone(),
                url: file.url.clone(),
                size: file.size,
                digest: file.digest,
            };
            files.insert(path, recorded);
        }
        self.files = files.into_values().collect();
        Ok(())
    }
}

/// The images of a record while those of a bundle are added to them.
struct ImageTable<'a> {
    /// `None`: the image was replaced.
    slots: Vec<Option<RecordedImage>>,
    /// The slots of each reference.
    by_reference: HashMap<Reference, Vec<usize>>,
    /// The slots of each tag of a repository.
    by_name: HashMap<(Tag, RepositoryName), Vec<usize>>,
    /// The manifests of images that have no name any more.
    retired: Vec<RecordedManifest>,
    /// The storage of the registry.
    storage: &'a Path,
}

impl<'a> ImageTable<'a> {
    fn new(images: Vec<RecordedImage>, storage: &'a Path) -> Self {
        let (by_reference, by_name) = (HashMap::new(), HashMap::new());
        let mut table = Self { slots: Vec::new(), by_reference, by_name, retired: Vec::new(), storage };
        for image in images {
            table.push(image);
        }
        table
    }

    fn push(&mut self, image: RecordedImage) {
        let slot = self.slots.len();
        self.by_reference.entry(image.reference.clone()).or_default().push(slot);
        for name in names(&image) {
            self.by_name.entry(name).or_default().push(slot);
        }
        self.slots.push(Some(image));
    }

    /// Adds an image. It replaces the same image, and takes its names from others.
    fn add(&mut self, mut image: RecordedImage) {
        for &slot in self.by_reference.get(&image.reference).into_iter().flatten() {
            let is_same = |known: &mut RecordedImage| known.digest() == image.digest();
            if let Some(mut known) = self.slots[slot].take_if(is_same) {
                image.repositories.append(&mut known.repositories);
                image.join(&mut known, self.storage);
            }
        }
        for name in names(&image) {
            for slot in self.by_name.remove(&name).unwrap_or_default() {
                let Some(known) = &mut self.slots[slot] else { continue };
                known.repositories.remove(&name.1);
                if let Some(known) = self.slots[slot].take_if(|known| known.repositories.is_empty())
                    && known.digest() != image.digest()
                {
                    self.retired.extend(known.manifests);
                }
            }
        }
        self.push(image);
    }
}

/// Returns the names by which an image can be pulled with its tag.
fn names(image: &RecordedImage) -> impl Iterator<Item = (Tag, RepositoryName)> {
    let name = |repository: &RepositoryName| Some((image.tag.clone()?, repository.clone()));
    image.repositories.iter().filter_map(name)
}

fn recorded<E>(
    image: &BundledImage,
    layout: &Layout,
    repositories: BTreeSet<RepositoryName>,
    config: impl Fn(Digest) -> Result<Option<Vec<u8>>, E>,
) -> Result<RecordedImage, E> {
    let reference = &image.indexed.reference;
    let types = layout.media_types(image);
    let all = image.manifests.iter().copied().chain(layout.blobs_of(image));
    Ok(RecordedImage {
        reference: reference.clone(),
        repositories,
        tag: reference.tag().map(|tag| tag.parse().expect("a reference has a valid tag; please report")),
        platforms: layout.platforms(image, config)?,
        size: all.map(|blob| blob.size).sum(),
        manifests: image
            .manifests
            .iter()
            .map(|blob| RecordedManifest {
                digest: blob.digest,
                media_type: types.get(&blob.digest).cloned().expect("a manifest has a type; please report"),
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::base::hostile::{assert_unchanged, mutations};

    fn document() -> Value {
        let digest = Digest::of(b"x");
        let manifest = json!({"digest": digest, "mediaType": "application/vnd.oci.image.index.v1+json"});
        json!({
            "format": 1,
            "filesRoot": "files",
            "registryRoot": "registry",
            "bundles": [{"identity": digest, "title": "June", "created": "2026-11-23T20:00:00Z"}],
            "images": [{
                "reference": "quay.io/a/b:v1",
                "repositories": ["k8s/quay.io/a/b"],
                "tag": "v1",
                "platforms": ["linux/amd64"],
                "size": 1,
                "manifests": [manifest],
            }],
            "files": [{"path": "k8s/h/a", "url": "https://h/a", "size": 1, "digest": digest}],
            "retired": [manifest],
        })
    }

    fn read(document: &Value) -> Result<Record, String> {
        let site = tempfile::tempdir().unwrap();
        std::fs::write(site.path().join(RECORD), document.to_string()).unwrap();
        Record::read(site.path(), &NamedRoots::default())
            .map_err(|error| crate::base::error_chain::chain(&error))
    }

    #[test]
    fn hostile_text_in_any_string_is_refused_or_unchanged() {
        for (_, mutated) in mutations(&document()) {
            if let Ok(record) = read(&mutated) {
                assert_unchanged(&mutated, &serde_json::to_value(record).unwrap(), &[]);
            }
        }
        assert_eq!(serde_json::to_value(read(&document()).unwrap()).unwrap(), document());
    }

    #[test]
    fn the_error_for_an_invalid_member_names_the_file_the_member_and_what_to_do() {
        for (pointer, value, message) in [
            ("/images/0/repositories/0", "../x".into(), "`repositories`: invalid repository `../x`"),
            ("/images/0/tag", "a b".into(), "`tag`: invalid tag `a b`"),
            ("/images/0/reference", "x".into(), "`reference`: "),
            ("/images/0/platforms/0", "linux/a\nb".into(), "`platforms`: invalid `architecture`"),
            ("/images/0/manifests/0/mediaType", "x".into(), "`mediaType`: invalid media type `x`"),
            ("/images/0/size", json!(u64::MAX), "`size`: invalid size 18446744073709551615"),
            ("/files/0/path", "../x".into(), "`path`: invalid path `../x`"),
            ("/files/0/url", "file:///x".into(), "`url`: invalid URL `file:///x`"),
            ("/bundles/0/title", "a\nb".into(), "`title`: invalid title `a\\nb`"),
            ("/bundles/0/created", "today".into(), "`created`: invalid time `today`"),
            ("/filesRoot", "a/../..".into(), "`filesRoot`: invalid directory `a/../..`"),
            ("/filesRoot", "/etc".into(), "`filesRoot` is `/etc`, which is not inside the site: if that is"),
            ("/registryRoot", "/etc".into(), "add `--registry /etc`"),
        ] {
            let mut document: Value = document();
            *document.pointer_mut(pointer).unwrap() = value;
            let error = read(&document).unwrap_err();
            assert!(error.contains("site.json`") && error.contains(message), "{message}: {error}");
        }
    }
}
