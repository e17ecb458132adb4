//! [`Record`]: the bundles, images and files unpacked into a site (`SITE/site.json`).
//!
//! The configuration, the catalog and the Kubespray variables are generated from it, without a bundle and
//! without hashing. Servers do not need it, and `unpack` restores it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::fs::{self, FsError};
use crate::bundle::format::layout::{BundledImage, Layout};
use crate::bundle::read::reader::Contents;
use crate::oci::digest::Digest;
use crate::oci::manifest::{MANIFEST_LIMIT, Manifest};
use crate::oci::reference::DEFAULT_PREFIX;
use crate::oci::template::RepositoryTemplate;
use crate::site::signed_index::SignedIndexError;
use crate::site::storage::blob_path;

/// The name of the record in the directory of the site.
pub const RECORD: &str = "site.json";
/// The only version so far.
const FORMAT: u32 = 1;
/// Maximum size in bytes.
const LIMIT: u64 = 1 << 30;

/// The contents of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    format: u32,
    /// The root of the files: relative to the site by default, absolute if `--files` was used.
    files_root: PathBuf,
    /// The root of the registry's storage, likewise.
    registry_root: PathBuf,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Time of packing (RFC 3339). `None`: not recorded in the bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// True if only some of its images and files were unpacked: a selection, or those that were intact.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// An image of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedImage {
    /// Its reference: `registry.k8s.io/pause:3.9`.
    pub reference: String,
    /// Its repositories on this site: `k8s/registry.k8s.io/pause`.
    pub repositories: BTreeSet<String>,
    /// Its tag. `None`: the reference has a digest only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The platforms on the site; empty for an artifact.
    pub platforms: Vec<String>,
    /// Size in bytes of its manifests, configs and layers, including shared ones.
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
    pub media_type: String,
}

/// A file of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedFile {
    /// Path below the root of the files: `k8s/dl.k8s.io/…`.
    pub path: String,
    /// The URL in the list.
    pub url: String,
    /// Size in bytes.
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
            let bytes = fs::read(&storage.join(blob_path(manifest.digest)), MANIFEST_LIMIT).ok()?;
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
        self.platforms.sort();
        self.platforms.dedup();
    }
}

impl Record {
    /// Creates the record of an empty site with these roots.
    #[must_use]
    pub fn new(files_root: PathBuf, registry_root: PathBuf) -> Self {
        let (bundles, images, files, retired) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { format: FORMAT, files_root, registry_root, bundles, images, files, retired }
    }

    /// True if both records have the same roots.
    #[must_use]
    pub fn has_same_roots(&self, other: &Self) -> bool {
        (&self.files_root, &self.registry_root) == (&other.files_root, &other.registry_root)
    }

    /// Reads the record of `site`.
    pub fn read(site: &Path) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let path = site.join(RECORD);
        let bytes = match fs::read(&path, LIMIT) {
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {
                return Err(RecordError::Missing(site.to_owned()));
            }
            bytes => bytes.map_err(RecordError::Fs)?,
        };
        let syntax = |error| RecordError::Syntax(path.clone(), error);
        let Version { format } = serde_json::from_slice(&bytes).map_err(syntax)?;
        if format != FORMAT {
            return Err(RecordError::Version(path, format));
        }
        serde_json::from_slice(&bytes).map_err(syntax)
    }

    /// Returns the root of the files of the site at `site`.
    #[must_use]
    pub fn files_root(&self, site: &Path) -> PathBuf {
        site.join(&self.files_root)
    }

    /// Returns the root of the registry's storage of the site at `site`.
    #[must_use]
    pub fn registry_root(&self, site: &Path) -> PathBuf {
        site.join(&self.registry_root)
    }

    /// Writes the record of `site` if it changed. Returns true if it did. `scratch` is the path of a
    /// temporary file in the same file system.
    pub fn write(&self, site: &Path, scratch: &Path) -> Result<bool, FsError> {
        let path = site.join(RECORD);
        let mut bytes = serde_json::to_vec_pretty(self).expect("plain structs become JSON; please report");
        bytes.push(b'\n');
        if std::fs::read(&path).is_ok_and(|old| old == bytes) {
            return Ok(false);
        }
        let mut file = std::fs::File::create(scratch).map_err(FsError::at("create", scratch))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(FsError::at("write", scratch))?;
        fs::rename_durably(scratch, &path)?;
        Ok(true)
    }

    /// Adds the images and files of a bundle, in the repositories that `templates` name. `partial`: they are
    /// not all of the bundle.
    ///
    /// An image or file replaces the one of the same name. A replaced image remains recorded while it has
    /// another name, and its manifests as `retired` afterwards.
    pub fn add(&mut self, contents: &Contents, partial: bool, templates: &[RepositoryTemplate], site: &Path) {
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
        for image in &layout.images {
            self.add_image(recorded(image, layout, templates, &storage), &storage);
        }
        for file in &layout.files {
            let path = format!("{DEFAULT_PREFIX}/{}", file.path);
            self.files.retain(|known| known.path != path);
            let url = file.url.clone();
            self.files.push(RecordedFile { path, url, size: file.size, digest: file.digest });
        }
        self.images.sort_by(|a, b| (&a.reference, a.digest()).cmp(&(&b.reference, b.digest())));
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
    }

    fn add_image(&mut self, mut image: RecordedImage, storage: &Path) {
        for known in &mut self.images {
            if known.reference == image.reference && known.digest() == image.digest() {
                image.repositories.append(&mut known.repositories);
                image.join(known, storage);
            } else if known.tag == image.tag && known.tag.is_some() {
                known.repositories.retain(|repository| !image.repositories.contains(repository));
            }
        }
        for known in self.images.extract_if(.., |known| known.repositories.is_empty()) {
            // Otherwise it is `image`, which is added below.
            if known.digest() != image.digest() {
                self.retired.extend(known.manifests);
            }
        }
        self.retired.sort_by_key(|manifest| manifest.digest);
        self.retired.dedup_by_key(|manifest| manifest.digest);
        self.images.push(image);
    }
}

fn recorded(
    image: &BundledImage,
    layout: &Layout,
    templates: &[RepositoryTemplate],
    storage: &Path,
) -> RecordedImage {
    let reference = &image.indexed.reference;
    // `unpack` has just hashed or written the config.
    let config = |digest| fs::read(&storage.join(blob_path(digest)), MANIFEST_LIMIT).ok();
    let types = layout.media_types(image);
    let all = image.manifests.iter().copied().chain(layout.blobs_of(image));
    RecordedImage {
        reference: reference.to_string(),
        repositories: templates.iter().filter_map(|template| template.apply(reference).ok()).collect(),
        tag: reference.tag().map(str::to_owned),
        platforms: layout.platforms(image, config),
        size: all.map(|blob| blob.size).sum(),
        manifests: image
            .manifests
            .iter()
            .map(|blob| RecordedManifest {
                digest: blob.digest,
                media_type: types.get(&blob.digest).cloned().unwrap_or_default(),
            })
            .collect(),
    }
}
