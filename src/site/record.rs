//! [`Record`]: what has been unpacked into a site, in `SITE/site.json`.
//!
//! Everything that is generated from a site (configuration, catalogue, Kubespray variables) is made of this file, so
//! that no bundle has to be at hand and nothing has to be hashed. It describes and decides nothing: a site without it
//! serves as well, and `unpack` writes it again.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::fs::{self, FsError};
use crate::bundle::format::layout::{BundledImage, Layout};
use crate::bundle::read::reader::Contents;
use crate::oci::digest::Digest;
use crate::oci::manifest::{MANIFEST_LIMIT, Manifest};
use crate::oci::template::RepositoryTemplate;
use crate::site::storage::blob_path;

/// Its name in the directory of the site.
pub const RECORD: &str = "site.json";
/// The only version of it so far.
const FORMAT: u32 = 1;
/// The largest one that is read, in bytes.
const LIMIT: u64 = 1 << 30;

/// What a site holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    format: u32,
    /// Where the files are; relative to the directory of the site, unless they were put elsewhere.
    files_root: PathBuf,
    /// Where the storage of the registry is, in the same way.
    registry_root: PathBuf,
    /// The bundles that were unpacked, the first one first.
    pub bundles: Vec<RecordedBundle>,
    /// The images, sorted by reference.
    pub images: Vec<RecordedImage>,
    /// The files, sorted by path.
    pub files: Vec<RecordedFile>,
    /// Manifests that no tag means any more, sorted by digest: who knows their digest still gets them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<RecordedManifest>,
}

/// A bundle that was unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedBundle {
    /// The digest of its `index.json`.
    pub identity: Digest,
    /// What it was called when it was packed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// When it was packed (RFC 3339), if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Whether only a part of it was unpacked: what was asked for, or what could be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// An image of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedImage {
    /// How the list named it: `registry.k8s.io/pause:3.9`.
    pub reference: String,
    /// Its repositories on this site: `k8s/registry.k8s.io/pause`.
    pub repositories: BTreeSet<String>,
    /// Its tag, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The platforms that are here; none for an artifact.
    pub platforms: Vec<String>,
    /// Bytes of its manifests, configs and layers, those that it shares with others included.
    pub size: u64,
    /// Its manifests, the one that the reference means first.
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
    /// Where it is below the root of the files: `k8s/dl.k8s.io/…`.
    pub path: String,
    /// Where it came from.
    pub url: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest.
    pub digest: Digest,
}

/// Why there is no record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// There is none.
    #[error("`{}` is no site: it has no `{RECORD}`, which `unbundle unpack` writes", .0.display())]
    Missing(PathBuf),
    /// It is damaged, or somebody else's.
    #[error("`{}` is not what `unbundle` writes: remove it and unpack again", .0.display())]
    Syntax(PathBuf, #[source] serde_json::Error),
    /// It is of a version that this program does not know.
    #[error("`{}` has version {version}, which this program does not know: use a newer `unbundle`", .0.display(), version = .1)]
    Version(PathBuf, u32),
}

impl RecordedImage {
    /// The digest that its reference means.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.manifests.first().map(|manifest| manifest.digest)
    }
}

impl RecordedImage {
    /// Adds what the site has had of the same image before: other platforms. What its storage does not tell of them is
    /// not recorded.
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
    /// The record of a site that holds nothing, whose parts are at these places.
    #[must_use]
    pub fn new(files_root: PathBuf, registry_root: PathBuf) -> Self {
        let (bundles, images, files, retired) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { format: FORMAT, files_root, registry_root, bundles, images, files, retired }
    }

    /// Whether the parts of the site are where those of `other` are.
    #[must_use]
    pub fn has_places_of(&self, other: &Self) -> bool {
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

    /// The directory of the files, the site being at `site`.
    #[must_use]
    pub fn files_root(&self, site: &Path) -> PathBuf {
        site.join(&self.files_root)
    }

    /// The directory of the registry's storage, the site being at `site`.
    #[must_use]
    pub fn registry_root(&self, site: &Path) -> PathBuf {
        site.join(&self.registry_root)
    }

    /// Writes the record of `site` if it is another one than before; says whether it did. `scratch` is a file of the
    /// same file system that nobody else uses.
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

    /// Adds what `contents` names of a bundle, in repositories that `templates` name; `partial` if that is not all of it.
    ///
    /// What names the same place anew takes it over; what it no longer names stays recorded as long as the site has
    /// it by another name.
    pub fn add(&mut self, contents: &Contents, partial: bool, templates: &[RepositoryTemplate], site: &Path) {
        let Contents { identity, about, layout, .. } = contents;
        let bundle = RecordedBundle {
            identity: *identity,
            title: about.title.clone(),
            created: about.created.clone(),
            partial,
        };
        match self.bundles.iter_mut().find(|known| known.identity == *identity) {
            // What was there of it still is.
            Some(known) => *known = RecordedBundle { partial: known.partial && partial, ..bundle },
            None => self.bundles.push(bundle),
        }
        let storage = self.registry_root(site);
        for image in &layout.images {
            self.add_image(recorded(image, layout, templates, &storage), &storage);
        }
        for file in &layout.files {
            let path = format!("k8s/{}", file.path);
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
            // The same image comes again at once.
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
    // It has just been hashed, or written.
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
