//! [`Lock`]: the digests and sizes that lists resolved to, as a diffable JSON document.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use crate::base::json::{pretty, without_byte_order_mark};
use crate::base::path::RelPath;
use crate::base::source_url::SourceUrl;
use crate::base::text::is_conflict_mark;
use crate::base::units::deserialize_size as size;
use crate::bundle::format::index::IndexedFile;
use crate::bundle::format::layout::{Blob, Layout, Totals};
use crate::documents::list::Lists;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::media_type::MediaType;
use crate::oci::platform::{Platform, deserialize_optional};
use crate::oci::reference::Reference;

/// The document version that is written, and the only one that is read.
pub(crate) const LOCK_VERSION: u32 = 1;

/// Maximum sum of all sizes in bytes, so that no sum of some of them overflows.
const MAX_TOTAL: u64 = i64::MAX as u64;

/// The resolved entries of lists. Files are sorted by URL, images by reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lock {
    /// The document version; the member also identifies the document.
    #[serde(rename = "airbundleLock")]
    pub version: u32,
    pub files: Vec<LockedFile>,
    pub images: Vec<LockedImage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LockedFile {
    pub url: SourceUrl,
    /// The path on the site. `None`: the one that follows from the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<RelPath>,
    pub digest: Digest,
    /// In bytes.
    #[serde(deserialize_with = "size")]
    pub size: u64,
}

impl LockedFile {
    /// Returns the entry of a list for the file, without its checksum.
    pub(crate) fn name(&self) -> String {
        self.url.with_path(self.path.as_ref())
    }
}

/// An image and its manifests for the requested platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LockedImage {
    /// The reference as in the list.
    pub reference: Reference,
    /// The requested platforms. Empty: all that the image has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
    /// The digest of the image's manifest or index.
    pub digest: Digest,
    /// The manifests, parents first: the first one is that of `digest`.
    pub manifests: Vec<LockedManifest>,
}

/// A manifest and the blobs it references.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LockedManifest {
    pub media_type: MediaType,
    pub digest: Digest,
    /// In bytes.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// The platform according to the parent index; informative.
    #[serde(default, deserialize_with = "deserialize_optional", skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The config and the layers, in order. Empty for an index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<LockedBlob>,
    /// The bytes of a manifest, opaque: verified against `digest` and parsed like one of a registry. It is in no registry:
    /// an index of referrers, built from a referrers API response. `None`: the registry has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LockedBlob {
    pub digest: Digest,
    /// In bytes.
    #[serde(deserialize_with = "size")]
    pub size: u64,
}

/// An error while reading or checking a lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Invalid JSON, or members are missing or malformed.
    #[error("not a valid lock")]
    Syntax(#[from] serde_json::Error),
    /// The document has another version.
    #[error("lock version {0} is not supported (supported: {LOCK_VERSION}): use another `airbundle`")]
    Version(u32),
    /// A merge by git was not finished.
    #[error(
        "line {0} is an unresolved conflict of git: make the lock again with `airbundle lock`, or take one of the two \
         versions"
    )]
    Conflict(usize),
    /// The document contradicts itself or the manifests.
    #[error("{0}")]
    Content(String),
}

/// Fails with the number of the first line that git wrote into a document that it could not merge.
pub(crate) fn check_merged(text: &[u8]) -> Result<(), usize> {
    let is_mark = |line: &[u8]| {
        let word = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
        std::str::from_utf8(word).is_ok_and(is_conflict_mark)
    };
    text.split(|byte| *byte == b'\n').position(is_mark).map_or(Ok(()), |line| Err(line + 1))
}

impl Lock {
    /// Returns the lock of `layout`, with the resolved `files` and the bytes of `manifests`. For a bundle,
    /// it is the lock that the bundle was packed with or could have been packed with.
    #[must_use]
    pub(crate) fn of(layout: &Layout, files: &[IndexedFile], manifests: &HashMap<Digest, Vec<u8>>) -> Self {
        let generated = layout.images.iter().filter(|image| image.indexed.is_made);
        let generated: HashSet<Digest> = generated.map(|image| image.indexed.digest).collect();
        let content = |digest| {
            let bytes = manifests.get(&digest).filter(|_| generated.contains(&digest))?;
            String::from_utf8(bytes.clone()).ok()
        };
        let files = files.iter().map(|file| LockedFile {
            url: file.url.clone(),
            path: file.url.other_path(&file.path).cloned(),
            digest: file.digest,
            size: file.size,
        });
        let images = layout.images.iter().map(|image| {
            let media_types = layout.media_types(image);
            let of_children = layout.platforms_of_children(image);
            let manifest = |blob: &Blob| LockedManifest {
                media_type: media_types
                    .get(&blob.digest)
                    .cloned()
                    .expect("a manifest has a type; please report"),
                digest: blob.digest,
                size: blob.size,
                platform: of_children.get(&blob.digest).cloned(),
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
        lock.files.sort_by(|a, b| (&a.url, &a.path).cmp(&(&b.url, &b.path)));
        lock.images.sort_by_cached_key(|image| image.reference.to_string());
        lock
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, LockError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            airbundle_lock: u32,
        }
        check_merged(bytes).map_err(LockError::Conflict)?;
        let bytes = without_byte_order_mark(bytes);
        let Version { airbundle_lock: version } = serde_json::from_slice(bytes)?;
        if version != LOCK_VERSION {
            return Err(LockError::Version(version));
        }
        let lock: Self = serde_json::from_slice(bytes)?;
        lock.check()?;
        Ok(lock)
    }

    /// True if `text` is JSON, and therefore a lock or an inventory and not a list.
    #[must_use]
    pub(crate) fn is_one(text: &[u8]) -> bool {
        without_byte_order_mark(text).trim_ascii_start().starts_with(b"{")
    }

    fn check(&self) -> Result<(), LockError> {
        let content = |text: String| Err(LockError::Content(text));
        if self.total() > MAX_TOTAL {
            return content(format!("the sizes add up to more than {MAX_TOTAL} bytes"));
        }
        let mut names = BTreeSet::new();
        if let Some(file) = self.files.iter().find(|file| !names.insert((&file.url, &file.path))) {
            return content(format!("duplicate entry `{}`", file.name()));
        }
        let mut references = BTreeSet::new();
        if let Some(image) = self.images.iter().find(|image| !references.insert(image.reference.to_string()))
        {
            return content(format!("duplicate entry `{}`", image.reference));
        }
        for image in &self.images {
            if image.manifests.first().is_none_or(|first| first.digest != image.digest) {
                return content(format!(
                    "the first manifest of `{}` is not `{}`",
                    image.reference, image.digest
                ));
            }
            if image.reference.digest().is_some_and(|digest| digest != image.digest) {
                return content(format!(
                    "digest mismatch: `{}` is locked as `{}`",
                    image.reference, image.digest
                ));
            }
        }
        Ok(())
    }

    /// Returns lists with the entries of the lock in its order, each file with its checksum. A file whose URL had a
    /// secret query in its list gets the URL without it.
    pub(crate) fn lists(&self) -> Result<Lists, LockError> {
        let files = self.files.iter().map(|file| format!("{} {}\n", file.name(), file.digest));
        let images = self.images.iter().map(|image| {
            let platforms: Vec<_> = image.platforms.iter().map(ToString::to_string).collect();
            let platforms = platforms.join(",");
            let attribute = if platforms.is_empty() { platforms } else { format!(" platform={platforms}") };
            format!("{}{attribute}\n", image.reference)
        });
        let (mut lists, mut problems) = (Lists::default(), Vec::new());
        let text: String = files.chain(images).collect();
        lists.parse_into(Path::new("lock"), &text, &mut problems);
        if let Some(problem) = problems.first() {
            let line = text.lines().nth(problem.line - 1).unwrap_or_default();
            return Err(LockError::Content(format!("`{}`: {}", without_query(line), problem.message)));
        }
        // Files are looked up by URL, so that parsing must not have changed it.
        let parsed: HashSet<&str> = lists.files.iter().map(|file| file.url.as_str()).collect();
        match self.files.iter().find(|file| !parsed.contains(file.url.as_str())) {
            None => Ok(lists),
            Some(file) => {
                let name = file.name();
                Err(LockError::Content(format!("`{}`: not a normalized URL", without_query(&name))))
            }
        }
    }

    /// Fails if an image of `other` has other manifests or blobs than the image of the same name in `self`.
    pub(crate) fn agrees(&self, other: &Self) -> Result<(), LockError> {
        let parts = |image: &LockedImage| -> Vec<_> {
            image.manifests.iter().map(|of| (of.digest, of.size, of.blobs.clone())).collect()
        };
        let others: BTreeMap<String, _> =
            other.images.iter().map(|image| (image.reference.to_string(), parts(image))).collect();
        for image in &self.images {
            if others.get(&image.reference.to_string()).is_some_and(|other| *other != parts(image)) {
                let text = "its blobs differ from those of its manifests: the lock was edited by hand";
                return Err(LockError::Content(format!("`{}`: {text}", image.reference)));
            }
        }
        Ok(())
    }

    /// Returns the document as pretty-printed JSON; equal contents have equal bytes.
    #[must_use]
    pub(crate) fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }

    /// Returns the sum of all sizes, in bytes, as often as they occur.
    fn total(&self) -> u64 {
        let manifests = self.images.iter().flat_map(|image| &image.manifests);
        let of_images = manifests.flat_map(|manifest| {
            std::iter::once(manifest.size).chain(manifest.blobs.iter().map(|blob| blob.size))
        });
        self.files.iter().map(|file| file.size).chain(of_images).fold(0, u64::saturating_add)
    }

    /// Returns all distinct blobs with their sizes in bytes.
    #[must_use]
    pub(crate) fn blobs(&self) -> BTreeMap<Digest, u64> {
        let files = self.files.iter().map(|file| (file.digest, file.size));
        let manifests = || self.images.iter().flat_map(|image| &image.manifests);
        let of_images = manifests().flat_map(|manifest| &manifest.blobs).map(|blob| (blob.digest, blob.size));
        let manifests = manifests().map(|manifest| (manifest.digest, manifest.size));
        files.chain(manifests).chain(of_images).collect()
    }

    /// Returns the total size of all distinct blobs in bytes.
    #[must_use]
    pub(crate) fn bytes(&self) -> u64 {
        self.blobs().values().sum()
    }
}

/// Removes the query of the URL at the start of a line, which may contain a secret if the lock was edited by hand.
fn without_query(line: &str) -> String {
    match line.split_once('?') {
        Some((url, rest)) => format!("{url}?…{}", rest.split_once(' ').map_or("", |(_, rest)| rest)),
        None => line.to_owned(),
    }
}

/// The differences between two locks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct Diff {
    /// Changed files, by entry: the URL, and `name=` with the path if the list named it.
    pub files: Vec<Change>,
    /// Changed images, by reference.
    pub images: Vec<Change>,
    /// Blobs only in the new lock.
    pub added: Totals,
    /// Blobs only in the old lock.
    pub removed: Totals,
    /// Blobs in both.
    pub kept: Totals,
}

/// A changed, added or removed file or image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct Change {
    /// The URL or reference.
    pub name: String,
    /// The old digest. `None`: added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<Digest>,
    /// The new digest. `None`: removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<Digest>,
    /// Bytes of its blobs that are not in the old entry: the download size if only the old entry is cached.
    pub bytes_added: u64,
    /// Bytes of the old entry's blobs that are not in the new one.
    pub bytes_removed: u64,
}

impl Diff {
    /// Returns the changes from `old` to `new`.
    #[must_use]
    pub(crate) fn between(old: &Lock, new: &Lock) -> Self {
        let (before, after) = (old.blobs(), new.blobs());
        let amount = |blobs: &BTreeMap<Digest, u64>, is_counted: &dyn Fn(&Digest) -> bool| {
            let counted = blobs.iter().filter(|(digest, _)| is_counted(digest));
            counted.fold(Totals::default(), |sum, (_, size)| Totals {
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

    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.images.is_empty()
    }
}

/// Entries by name, each with its digest and its blobs.
type Parts = BTreeMap<String, (Digest, BTreeMap<Digest, u64>)>;

fn parts_of_files(lock: &Lock) -> Parts {
    let parts = |file: &LockedFile| (file.digest, [(file.digest, file.size)].into());
    lock.files.iter().map(|file| (file.name(), parts(file))).collect()
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
        // Other platforms of the same index are a change, too.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::hostile::{assert_unchanged, mutations};
    use crate::oci::manifest::OCI_MANIFEST;

    fn lock() -> serde_json::Value {
        let digest = Digest::of(b"x");
        serde_json::json!({
            "airbundleLock": 1,
            "files": [{"url": "https://dl.k8s.io/a", "path": "dl.k8s.io/b", "digest": digest, "size": 1}],
            "images": [{
                "reference": "quay.io/a/b:v1",
                "platforms": ["linux/amd64"],
                "digest": digest,
                "manifests": [{
                    "mediaType": OCI_MANIFEST,
                    "digest": digest,
                    "size": 2,
                    "platform": "linux/arm/v7",
                    "blobs": [{"digest": digest, "size": 3}],
                    "content": "any text",
                }],
            }],
        })
    }

    #[test]
    fn a_byte_order_mark_and_line_ends_of_windows_are_accepted_and_a_conflict_of_git_is_named() {
        let text = String::from_utf8(pretty(&lock())).unwrap();
        let windows = format!("\u{feff}{}", text.replace('\n', "\r\n"));
        assert!(Lock::is_one(windows.as_bytes()));
        assert_eq!(
            Lock::parse(windows.as_bytes()).unwrap().to_json(),
            Lock::parse(text.as_bytes()).unwrap().to_json()
        );
        for mark in ["<<<<<<< HEAD", "=======\r", ">>>>>>> next"] {
            let conflict = text.replacen("  \"files\"", &format!("{mark}\n  \"files\""), 1);
            assert!(matches!(Lock::parse(conflict.as_bytes()), Err(LockError::Conflict(3))), "{conflict}");
        }
    }

    #[test]
    fn hostile_text_in_any_string_is_refused_or_unchanged() {
        for (_, mutated) in mutations(&lock()) {
            if let Ok(parsed) = Lock::parse(mutated.to_string().as_bytes()) {
                assert_unchanged(&mutated, &serde_json::to_value(parsed).unwrap(), &["/content"]);
            }
        }
    }

    #[test]
    fn sizes_cannot_overflow_and_an_unknown_platform_is_absent() {
        for size in [(1 << 53) + 1, u64::MAX] {
            let mut lock = lock();
            lock["images"][0]["manifests"][0]["blobs"][0]["size"] = size.into();
            assert!(Lock::parse(lock.to_string().as_bytes()).is_err(), "{size}");
        }
        let mut lock = lock();
        let blob = serde_json::json!({"digest": Digest::of(b"x"), "size": 1_u64 << 53});
        lock["images"][0]["manifests"][0]["blobs"] = vec![blob; 1024].into();
        let error = Lock::parse(lock.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains("the sizes add up to more than"), "{error}");
        lock["images"][0]["manifests"][0]["blobs"] = serde_json::json!([]);
        lock["images"][0]["manifests"][0]["platform"] = "unknown/unknown".into();
        let lock = Lock::parse(lock.to_string().as_bytes()).unwrap();
        assert_eq!(lock.images[0].manifests[0].platform, None);
    }
}
