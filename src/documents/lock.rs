//! [`Lock`]: what lists resolved to, every digest and size, as a document that people can read and compare.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::bundle::format::index::IndexedFile;
use crate::bundle::format::layout::{Blob, Layout, Totals};
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;

/// The version of the document that this program writes, and the only one that it reads.
pub(crate) const LOCK_VERSION: u32 = 1;

/// What lists resolved to; see the module. Files are sorted by URL, images by reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lock {
    /// The version of this document; it says that it is one, too.
    #[serde(rename = "airbundleLock")]
    pub version: u32,
    /// The files.
    pub files: Vec<LockedFile>,
    /// The images.
    pub images: Vec<LockedImage>,
}

/// A file and what its bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LockedFile {
    /// Where it is.
    pub url: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// An image, and everything of it that was wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LockedImage {
    /// How a list names it.
    pub reference: Reference,
    /// Which platforms of it were asked for; none: all that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
    /// The digest of its manifest, or of its index.
    pub digest: Digest,
    /// The manifests, each before those that it names: the first one is the one above.
    pub manifests: Vec<LockedManifest>,
}

/// A manifest and the blobs that it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LockedManifest {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The platform that an index says it is for, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Its config and its layers, in their order; of an index nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<LockedBlob>,
    /// Its bytes, where no registry has them: an index of referrers that was made from what one has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// A config or a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LockedBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Why a text is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// No JSON, or not the members that there must be.
    #[error("it is no lock that this program reads")]
    Syntax(#[from] serde_json::Error),
    /// Of another version.
    #[error("it has version {0}, and this program reads version {LOCK_VERSION}: use another `airbundle`")]
    Version(u32),
    /// Something that cannot be.
    #[error("{0}")]
    Content(String),
}

impl Lock {
    /// What `layout` holds, with what is known by now of its files, and the bytes of its `manifests`. Of a bundle it is the
    /// lock that the bundle was packed with, or could have been.
    #[must_use]
    pub(crate) fn of(layout: &Layout, files: &[IndexedFile], manifests: &HashMap<Digest, Vec<u8>>) -> Self {
        let made = layout.images.iter().filter(|image| image.indexed.is_made);
        let made: HashSet<Digest> = made.map(|image| image.indexed.digest).collect();
        let content = |digest| {
            let bytes = manifests.get(&digest).filter(|_| made.contains(&digest))?;
            String::from_utf8(bytes.clone()).ok()
        };
        let files = files.iter().map(|file| LockedFile {
            url: file.url.clone(),
            digest: file.digest,
            size: file.size,
        });
        let images = layout.images.iter().map(|image| {
            let media_types = layout.media_types(image);
            let of_children = layout.platforms_of_children(image);
            let manifest = |blob: &Blob| LockedManifest {
                media_type: media_types.get(&blob.digest).cloned().unwrap_or_default(),
                digest: blob.digest,
                size: blob.size,
                platform: of_children.get(&blob.digest).map(ToString::to_string),
                blobs: match layout.parsed.get(&blob.digest) {
                    Some(Manifest::Image { config, layers }) => std::iter::once(config)
                        .chain(layers)
                        .map(|blob| LockedBlob { digest: blob.digest, size: blob.size })
                        .collect(),
                    _ => Vec::new(),
                },
                content: content(blob.digest),
            };
            LockedImage {
                platforms: image.indexed.platforms.clone(),
                reference: image.indexed.reference.clone(),
                digest: image.indexed.digest,
                manifests: image.manifests.iter().map(manifest).collect(),
            }
        });
        let mut lock = Self { version: LOCK_VERSION, files: files.collect(), images: images.collect() };
        lock.files.sort_by(|a, b| a.url.cmp(&b.url));
        lock.images.sort_by_cached_key(|image| image.reference.to_string());
        lock
    }

    /// Reads a lock.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, LockError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            airbundle_lock: u32,
        }
        let Version { airbundle_lock: version } = serde_json::from_slice(bytes)?;
        if version != LOCK_VERSION {
            return Err(LockError::Version(version));
        }
        let lock: Self = serde_json::from_slice(bytes)?;
        lock.check()?;
        Ok(lock)
    }

    /// Whether `text` is meant to be a lock, and no list.
    #[must_use]
    pub(crate) fn is_one(text: &[u8]) -> bool {
        text.trim_ascii_start().starts_with(b"{")
    }

    fn check(&self) -> Result<(), LockError> {
        let content = |text: String| Err(LockError::Content(text));
        let mut urls = BTreeSet::new();
        if let Some(file) = self.files.iter().find(|file| !urls.insert(&file.url)) {
            return content(format!("it names `{}` twice", file.url));
        }
        let mut references = BTreeSet::new();
        if let Some(image) = self.images.iter().find(|image| !references.insert(image.reference.to_string()))
        {
            return content(format!("it names `{}` twice", image.reference));
        }
        for image in &self.images {
            if image.manifests.first().is_none_or(|first| first.digest != image.digest) {
                return content(format!(
                    "the first manifest of `{}` is not `{}`",
                    image.reference, image.digest
                ));
            }
            if image.reference.digest().is_some_and(|digest| digest != image.digest) {
                return content(format!("`{}` has the digest `{}`", image.reference, image.digest));
            }
        }
        Ok(())
    }

    /// Whether `other` names the same images with the same manifests and blobs. The error says what it does not.
    pub(crate) fn agrees(&self, other: &Self) -> Result<(), LockError> {
        let parts = |image: &LockedImage| -> Vec<_> {
            image.manifests.iter().map(|of| (of.digest, of.size, of.blobs.clone())).collect()
        };
        let others: BTreeMap<String, _> =
            other.images.iter().map(|image| (image.reference.to_string(), parts(image))).collect();
        for image in &self.images {
            if others.get(&image.reference.to_string()).is_some_and(|found| *found != parts(image)) {
                let text = "it names other blobs than its manifests do: it was changed by hand";
                return Err(LockError::Content(format!("`{}`: {text}", image.reference)));
            }
        }
        Ok(())
    }

    /// The document: the same content gives the same bytes.
    #[must_use]
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("plain structs become JSON; please report");
        bytes.push(b'\n');
        bytes
    }

    /// All blobs with their sizes, each once.
    #[must_use]
    pub(crate) fn blobs(&self) -> BTreeMap<Digest, u64> {
        let files = self.files.iter().map(|file| (file.digest, file.size));
        let manifests = || self.images.iter().flat_map(|image| &image.manifests);
        let of_images = manifests().flat_map(|manifest| &manifest.blobs).map(|blob| (blob.digest, blob.size));
        let manifests = manifests().map(|manifest| (manifest.digest, manifest.size));
        files.chain(manifests).chain(of_images).collect()
    }

    /// The bytes of all blobs.
    #[must_use]
    pub(crate) fn bytes(&self) -> u64 {
        self.blobs().values().sum()
    }
}

/// What is different between two locks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct Diff {
    /// Files, by URL.
    pub files: Vec<Change>,
    /// Images, by reference.
    pub images: Vec<Change>,
    /// The blobs that only the new one has.
    pub added: Totals,
    /// Those that only the old one has.
    pub removed: Totals,
    /// Those that both have.
    pub kept: Totals,
}

/// A file or image that is not the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct Change {
    /// Its URL or reference.
    pub name: String,
    /// What it was, if it was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<Digest>,
    /// What it is, if it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<Digest>,
    /// How many bytes it has that the old one of this name had not: what fetching it costs if nothing else is there.
    pub bytes_added: u64,
    /// How many bytes it had that the new one has not.
    pub bytes_removed: u64,
}

impl Diff {
    /// What has to be done to `old` to make it `new`.
    #[must_use]
    pub(crate) fn between(old: &Lock, new: &Lock) -> Self {
        let (before, after) = (old.blobs(), new.blobs());
        let amount = |blobs: &BTreeMap<Digest, u64>, is_wanted: &dyn Fn(&Digest) -> bool| {
            let wanted = blobs.iter().filter(|(digest, _)| is_wanted(digest));
            wanted.fold(Totals::default(), |sum, (_, size)| Totals {
                blobs: sum.blobs + 1,
                bytes: sum.bytes + size,
            })
        };
        Self {
            files: changes(&parts_of_files(old), &parts_of_files(new)),
            images: changes(&parts_of_images(old), &parts_of_images(new)),
            added: amount(&after, &|digest| !before.contains_key(digest)),
            removed: amount(&before, &|digest| !after.contains_key(digest)),
            kept: amount(&after, &|digest| before.contains_key(digest)),
        }
    }

    /// Whether nothing is different.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.images.is_empty()
    }
}

/// What a name stands for: a digest, and all that belongs to it.
type Parts = BTreeMap<String, (Digest, BTreeMap<Digest, u64>)>;

fn parts_of_files(lock: &Lock) -> Parts {
    let parts = |file: &LockedFile| (file.digest, [(file.digest, file.size)].into());
    lock.files.iter().map(|file| (file.url.clone(), parts(file))).collect()
}

fn parts_of_images(lock: &Lock) -> Parts {
    let parts = |image: &LockedImage| {
        let blobs = image.manifests.iter().flat_map(|manifest| {
            let own = (manifest.digest, manifest.size);
            std::iter::once(own).chain(manifest.blobs.iter().map(|blob| (blob.digest, blob.size)))
        });
        (image.digest, blobs.collect())
    };
    lock.images.iter().map(|image| (image.reference.to_string(), parts(image))).collect()
}

fn changes(old: &Parts, new: &Parts) -> Vec<Change> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let none = BTreeMap::new();
    let change = |name: &String| {
        let (before, after) = (old.get(name), new.get(name));
        // Other platforms of the same image are a change, too.
        if before == after {
            return None;
        }
        let (had, has) = (before.map_or(&none, |(_, blobs)| blobs), after.map_or(&none, |(_, blobs)| blobs));
        let without = |these: &BTreeMap<Digest, u64>, those: &BTreeMap<Digest, u64>| {
            these.iter().filter(|(digest, _)| !those.contains_key(digest)).map(|(_, size)| size).sum()
        };
        Some(Change {
            name: name.clone(),
            old: before.map(|(digest, _)| *digest),
            new: after.map(|(digest, _)| *digest),
            bytes_added: without(has, had),
            bytes_removed: without(had, has),
        })
    };
    names.into_iter().filter_map(change).collect()
}
