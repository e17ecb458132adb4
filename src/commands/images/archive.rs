//! [`Archive`]: a tar archive of one image that container engines load, streamed from the registry storage.
//!
//! The archive is an OCI image layout; for docker it is also a `docker save` archive, which shares the blobs.
//! Manifests and layers keep their bytes, so an engine that keeps digests keeps those of the image.
//!
//! Each blob is hashed while it is copied, and its last chunk is written only after the digest matches. A
//! failed stream therefore ends inside an entry, which every tar reader rejects. If it ended between two
//! entries, some readers would accept it as complete.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use serde::Serialize;

use crate::bundle::format::layout::{Blob, blob_name, tar_header};
use crate::bundle::format::{BLOCK, INDEX_JSON, OCI_LAYOUT, OCI_LAYOUT_CONTENT, padded};
use crate::commands::images::blobs::{Blobs, CopyError};
use crate::commands::images::site_image::{SiteDocument, SiteImage, SiteImageError};
use crate::oci::digest::Digest;
use crate::oci::manifest::OCI_INDEX;

/// The end of a tar archive.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The program that loads an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consumer {
    /// `docker load`. It accepts only tags as names, unless it uses the containerd image store.
    Docker {
        /// True if docker uses the containerd image store, which reads the image layout and keeps digests.
        /// The other stores read `manifest.json`.
        containerd_store: bool,
    },
    /// `podman load`, which accepts one name, and finds an image by digest too.
    Podman,
    /// `ctr images import`, which accepts every name.
    Containerd,
    /// The containerd of a distribution of Kubernetes, which imports archives with all platforms of their indexes. It
    /// accepts every name.
    Import,
    /// Any program: every digest in the archive's documents is in the archive.
    Any,
}

/// A tar archive of one image.
#[derive(Debug)]
pub(crate) struct Archive {
    entries: Vec<(String, Content)>,
    /// The names of the image, the preferred name first.
    pub names: Vec<String>,
    /// The digest of the image at a consumer that keeps digests: that of the index if the archive has one,
    /// else that of the platform's manifest.
    pub digest: Digest,
    /// True if the archive has the index, from which the consumer chooses the platform.
    pub has_index: bool,
}

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    Blob(Blob),
}

impl Archive {
    /// Prepares the archive of `image`.
    pub(crate) fn new(image: &SiteImage, consumer: Consumer) -> Result<Self, SiteImageError> {
        let wants_index = match consumer {
            // `docker save` fails for an index without the images of other platforms, but only an index has the digest.
            Consumer::Docker { containerd_store: true } => image.reference.digest().is_some(),
            Consumer::Docker { containerd_store: false } | Consumer::Podman | Consumer::Containerd => true,
            Consumer::Import | Consumer::Any => false,
        };
        let index = image.index.as_ref().filter(|_| image.is_index_unambiguous && wants_index);
        let root = index.unwrap_or(&image.manifest);
        let names = names(image, consumer, root.digest)?;
        let mut entries = vec![
            (OCI_LAYOUT.to_owned(), Content::Bytes(OCI_LAYOUT_CONTENT.to_vec())),
            (INDEX_JSON.to_owned(), Content::Bytes(index_json(root, &names))),
        ];
        if matches!(consumer, Consumer::Docker { .. } | Consumer::Any) {
            entries.push(("manifest.json".to_owned(), Content::Bytes(docker_json(image, &names))));
        }
        let documents = index.into_iter().chain([&image.manifest]);
        entries.extend(
            documents.map(|document| (blob_name(document.digest), Content::Bytes(document.bytes.clone()))),
        );
        let mut seen = BTreeSet::new();
        let blobs = [&image.config].into_iter().chain(&image.layers).filter(|blob| seen.insert(blob.digest));
        entries.extend(blobs.map(|blob| (blob_name(blob.digest), Content::Blob(blob.into()))));
        let (digest, has_index) = (root.digest, index.is_some());
        Ok(Self { entries, names, digest, has_index })
    }

    /// Returns the size of the archive in bytes.
    #[must_use]
    pub(crate) fn size(&self) -> u64 {
        let entry = |content: &Content| BLOCK as u64 + padded(content.size());
        self.entries.iter().map(|(_, content)| entry(content)).sum::<u64>() + END.len() as u64
    }

    /// Writes the archive, whose blobs are in `blobs`, and passes the size of each write to `progress`. After an error,
    /// the output is invalid.
    pub(crate) fn write(
        &self,
        blobs: &Blobs<'_>,
        output: &mut dyn Write,
        progress: &dyn Fn(u64),
    ) -> Result<(), CopyError> {
        let mut output = ProgressWriter { output, progress };
        for (name, content) in &self.entries {
            output.write_all(&tar_header(name, content.size())).map_err(CopyError::Output)?;
            match content {
                Content::Bytes(bytes) => output.write_all(bytes).map_err(CopyError::Output)?,
                Content::Blob(blob) => blobs.copy(*blob, &mut output)?,
            }
            let padding = padded(content.size()) - content.size();
            let padding = usize::try_from(padding).expect("less than a block; please report");
            output.write_all(&END[..padding]).map_err(CopyError::Output)?;
        }
        output.write_all(&END).and_then(|()| output.flush()).map_err(CopyError::Output)
    }
}

impl Content {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Blob(blob) => blob.size,
        }
    }
}

struct ProgressWriter<'a> {
    output: &'a mut dyn Write,
    progress: &'a dyn Fn(u64),
}

impl Write for ProgressWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write_all(bytes)?;
        (self.progress)(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Returns the names under which `consumer` registers the image; `root` is the digest that they stand for.
fn names(image: &SiteImage, consumer: Consumer, root: Digest) -> Result<Vec<String>, SiteImageError> {
    let reference = &image.reference;
    let repository = reference.name();
    let by_tag = reference.tag().map(|tag| format!("{repository}:{tag}"));
    let by_digest = match consumer {
        Consumer::Docker { containerd_store: false } => {
            Err("docker loads an image by digest only into the containerd image store")
        }
        // The archive has the manifest only, so its digest is the name, even if the list has that of an
        // index.
        Consumer::Any => Ok(format!("{repository}@{root}")),
        // Kubelets look up the digest of the pod.
        Consumer::Import => Ok(format!("{repository}@{}", image.digest())),
        _ if image.digest() == root => Ok(format!("{repository}@{root}")),
        _ => Err("its digest is that of an index, and the archive has only one image of that index"),
    };
    let accepts_both = matches!(consumer, Consumer::Docker { .. } | Consumer::Containerd | Consumer::Import);
    match (by_tag, by_digest) {
        (Some(tag), Ok(digest)) if reference.digest().is_some() && accepts_both => Ok(vec![tag, digest]),
        (Some(tag), _) => Ok(vec![tag]),
        (None, Ok(digest)) => Ok(vec![digest]),
        (None, Err(reason)) => Err(SiteImageError::NoTag { reference: reference.to_string(), reason }),
    }
}

/// Returns `index.json` of the image layout, with an entry per name.
fn index_json(root: &SiteDocument, names: &[String]) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index<'a> {
        schema_version: u32,
        media_type: &'a str,
        manifests: Vec<Entry<'a>>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Entry<'a> {
        media_type: &'a str,
        digest: Digest,
        size: usize,
        annotations: BTreeMap<&'a str, &'a str>,
    }
    let entry = |name| Entry {
        media_type: &root.media_type,
        digest: root.digest,
        size: root.bytes.len(),
        // containerd and docker read the first one, podman and skopeo the second.
        annotations: BTreeMap::from([
            ("io.containerd.image.name", name),
            ("org.opencontainers.image.ref.name", name),
        ]),
    };
    json(&Index {
        schema_version: 2,
        media_type: OCI_INDEX,
        manifests: names.iter().map(String::as_str).map(entry).collect(),
    })
}

/// Returns `manifest.json` of a `docker save` archive.
fn docker_json(image: &SiteImage, names: &[String]) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct SavedImage<'a> {
        config: String,
        repo_tags: Option<Vec<&'a String>>,
        layers: Vec<String>,
    }
    let tags: Vec<_> = names.iter().filter(|name| !name.contains('@')).collect();
    json(&[SavedImage {
        config: blob_name(image.config.digest),
        repo_tags: (!tags.is_empty()).then_some(tags),
        layers: image.layers.iter().map(|layer| blob_name(layer.digest)).collect(),
    }])
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structs serialize; please report")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read as _;

    use super::*;
    use crate::commands::images::blobs::CHUNK;
    use crate::oci::manifest::{OCI_INDEX, OCI_MANIFEST};
    use crate::oci::platform::Platform;
    use crate::site::record::{RecordedImage, RecordedManifest};
    use crate::site::storage::blob_path;

    /// A registry storage with one image; with `platforms`, the image is in an index.
    struct Sample {
        storage: tempfile::TempDir,
        recorded: RecordedImage,
        layer: Vec<u8>,
    }

    impl Sample {
        fn new(reference: &str, platforms: Option<&[&str]>) -> Self {
            let storage = tempfile::tempdir().unwrap();
            let put = |bytes: &[u8]| {
                let path = storage.path().join(blob_path(Digest::of(bytes)));
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, bytes).unwrap();
                format!(r#""digest":"{}","size":{}"#, Digest::of(bytes), bytes.len())
            };
            let host = Platform::host();
            let layer: Vec<u8> = (0..3 * CHUNK).map(|number| number.to_le_bytes()[1]).collect();
            let config = format!(r#"{{"os":"{}","architecture":"{}"}}"#, host.os(), host.architecture());
            let layer_json =
                format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar",{}}}"#, put(&layer));
            let manifest = format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{}}},"layers":[{layer_json},{layer_json}]}}"#,
                put(config.as_bytes())
            );
            let mut manifests = vec![(manifest.clone(), OCI_MANIFEST)];
            put(manifest.as_bytes());
            if let Some(platforms) = platforms {
                let child = |(number, platform): (usize, &&str)| {
                    let (os, architecture) = platform.split_once('/').unwrap();
                    // Only the first manifest is in the storage.
                    let bytes = if number == 0 { manifest.clone() } else { format!("{number}") };
                    let (digest, size) = (Digest::of(bytes.as_bytes()), bytes.len());
                    format!(
                        r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":{size},"platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#
                    )
                };
                let children: Vec<_> = platforms.iter().enumerate().map(child).collect();
                let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, children.join(","));
                put(index.as_bytes());
                manifests.insert(0, (index, OCI_INDEX));
            }
            let recorded = |(bytes, media_type): (String, &str)| RecordedManifest {
                digest: Digest::of(bytes.as_bytes()),
                media_type: media_type.parse().unwrap(),
            };
            let recorded = RecordedImage {
                reference: reference.parse().unwrap(),
                repositories: BTreeSet::new(),
                tag: None,
                platforms: vec![host.clone()],
                size: 0,
                manifests: manifests.into_iter().map(recorded).collect(),
            };
            Self { storage, recorded, layer }
        }

        fn archive(&self, consumer: Consumer) -> Result<Archive, SiteImageError> {
            let image = SiteImage::open(&self.recorded, &self.blobs(), &Platform::host())?;
            Archive::new(&image, consumer)
        }

        fn blobs(&self) -> Blobs<'_> {
            Blobs::Storage(self.storage.path())
        }

        fn tar(&self, consumer: Consumer) -> (Vec<u8>, Result<(), CopyError>) {
            let mut tar = Vec::new();
            let result = self.archive(consumer).unwrap().write(&self.blobs(), &mut tar, &|_| ());
            (tar, result)
        }
    }

    fn entries(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let entry = |entry: io::Result<tar::Entry<&[u8]>>| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().to_str().unwrap().to_owned(), bytes)
        };
        tar::Archive::new(tar).entries().unwrap().map(entry).collect()
    }

    #[test]
    fn an_archive_has_every_blob_once_and_is_as_large_as_its_size_method_returns() {
        let host = Platform::host().to_string();
        let sample = Sample::new("quay.io/a/b:1", Some(&[&host, "linux/s390x"]));
        for consumer in [
            Consumer::Docker { containerd_store: true },
            Consumer::Podman,
            Consumer::Containerd,
            Consumer::Import,
            Consumer::Any,
        ] {
            let (tar, result) = sample.tar(consumer);
            result.unwrap();
            let archive = sample.archive(consumer).unwrap();
            assert_eq!(tar.len() as u64, archive.size(), "{consumer:?}");
            let has_index = matches!(consumer, Consumer::Podman | Consumer::Containerd);
            assert_eq!(archive.has_index, has_index, "{consumer:?}");
            let entries = entries(&tar);
            assert_eq!(entries[&blob_name(Digest::of(&sample.layer))], sample.layer);
            for (name, bytes) in &entries {
                let is_named_by_digest = *name == blob_name(Digest::of(bytes)) || !name.starts_with("blobs/");
                assert!(is_named_by_digest, "{consumer:?}: {name}");
            }
            let blobs = if has_index { 4 } else { 3 };
            let documents = if has_index || consumer == Consumer::Import { 2 } else { 3 };
            assert_eq!(entries.len(), blobs + documents, "{consumer:?}");
        }
    }

    #[test]
    fn an_archive_has_the_index_only_if_the_host_platform_is_unambiguous_in_it() {
        let host = Platform::host().to_string();
        for (platforms, has_index) in [
            (&[host.as_str()][..], true),
            (&[&host, "linux/s390x"], true),
            // The consumer could choose either.
            (&[&host, &host], false),
        ] {
            let sample = Sample::new("quay.io/a/b:1", Some(platforms));
            assert_eq!(sample.archive(Consumer::Containerd).unwrap().has_index, has_index, "{platforms:?}");
        }
    }

    #[test]
    fn each_consumer_gets_the_names_that_it_accepts() {
        let host = Platform::host().to_string();
        let digest = Sample::new("quay.io/a/b:1", Some(&[&host])).recorded.manifests[0].digest;
        let manifest = Sample::new("quay.io/a/b:1", None).recorded.manifests[0].digest;
        let (tag, by_digest) = ("quay.io/a/b:1".to_owned(), format!("quay.io/a/b@{digest}"));
        let (both, of_manifest) = (format!("{tag}@{digest}"), format!("quay.io/a/b@{manifest}"));
        let [old, new] = [false, true].map(|containerd_store| Consumer::Docker { containerd_store });
        for (reference, consumer, names) in [
            (&tag, old, vec![&tag]),
            (&tag, Consumer::Containerd, vec![&tag]),
            (&both, old, vec![&tag]),
            (&both, new, vec![&tag, &by_digest]),
            (&both, Consumer::Containerd, vec![&tag, &by_digest]),
            (&both, Consumer::Podman, vec![&tag]),
            (&both, Consumer::Any, vec![&tag]),
            (&by_digest, old, vec![]),
            (&by_digest, new, vec![&by_digest]),
            (&by_digest, Consumer::Podman, vec![&by_digest]),
            (&by_digest, Consumer::Any, vec![&of_manifest]),
            (&both, Consumer::Import, vec![&tag, &by_digest]),
            (&by_digest, Consumer::Import, vec![&by_digest]),
        ] {
            let sample = Sample::new(reference, Some(&[&host]));
            let found = sample.archive(consumer).map(|archive| archive.names);
            match found {
                Ok(found) => assert_eq!(found.iter().collect::<Vec<_>>(), names, "{reference} {consumer:?}"),
                Err(error) => {
                    assert!(names.is_empty() && error.is_unsuitable(), "{reference} {consumer:?}: {error}");
                }
            }
        }
    }

    #[test]
    fn an_archive_with_a_corrupt_or_missing_blob_ends_inside_an_entry() {
        let sample = Sample::new("quay.io/a/b:1", None);
        let path = sample.storage.path().join(blob_path(Digest::of(&sample.layer)));
        let flipped = |at: usize| {
            let mut bytes = sample.layer.clone();
            bytes[at] ^= 1;
            bytes
        };
        let longer = [sample.layer.as_slice(), b"x"].concat();
        let shorter = &sample.layer[..sample.layer.len() - 1];
        let (intact, _) = sample.tar(Consumer::Any);
        for bytes in
            [Some(&flipped(0)[..]), Some(&flipped(2 * CHUNK)), Some(&longer), Some(shorter), Some(b""), None]
        {
            match bytes {
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let (tar, result) = sample.tar(Consumer::Any);
            assert!(matches!(result, Err(CopyError::Blob(_))), "{result:?}");
            let end = intact.len() - END.len();
            let begin = end - usize::try_from(padded(sample.layer.len() as u64)).unwrap();
            assert!((begin..end).contains(&tar.len()), "{} of {begin} to {end}", tar.len());
        }
    }
}
