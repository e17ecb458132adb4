//! [`Archive`]: an image of a site as the tar that a container engine loads, streamed from the storage of the
//! registry.
//!
//! It is an OCI image layout, and for docker also what `docker save` writes; the two share the blobs. Manifests and
//! layers keep their bytes, so that an engine that keeps digests keeps the image's.
//!
//! Every blob is hashed on its way, and its end is held back until it is known to be right. So a stream that breaks
//! off does so within an entry, which every reader of a tar takes for an error: a stream that ends between two
//! entries is complete for some of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::fs::{self, FsError};
use crate::bundle::format::layout::{Blob, blob_name, tar_header};
use crate::bundle::format::{BLOCK, INDEX_JSON, OCI_LAYOUT, OCI_LAYOUT_CONTENT, padded};
use crate::commands::images::site_image::{BlobError, SiteDocument, SiteImage, SiteImageError};
use crate::oci::digest::{Digest, Hasher};
use crate::oci::manifest::OCI_INDEX;
use crate::site::storage::blob_path;

/// How much of a blob is in memory, twice.
const PIECE: usize = 256 << 10;
/// What ends a tar.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Who is to read an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taker {
    /// `docker load`. With its containerd image store it reads the image layout, else `manifest.json`, of which it
    /// takes nothing but tags.
    Docker {
        /// Whether it has that store.
        keeps_digests: bool,
    },
    /// `podman load`: takes one name, and finds the image by its digest, too.
    Podman,
    /// `ctr images import`: takes every name as it is.
    Containerd,
    /// Anybody, anywhere: nothing is left out that is named in it.
    File,
}

/// A tar that an engine loads.
#[derive(Debug)]
pub(crate) struct Archive {
    entries: Vec<(String, Content)>,
    storage: PathBuf,
    /// The names that the image gets, the one that people use first.
    pub names: Vec<String>,
    /// The digest that it gets from who keeps digests: that of the reference, or of this platform's manifest.
    pub digest: Digest,
    /// Whether the index is in it, so that its reader has to choose the platform.
    pub has_index: bool,
}

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    Blob(Blob),
}

/// Why an archive was not written to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// A blob is not what its digest says.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Who reads does not go on.
    #[error("the archive cannot be written")]
    Output(#[source] io::Error),
}

impl Archive {
    /// The archive of `image`, whose blobs are in the registry's storage at `storage`.
    pub(crate) fn new(image: &SiteImage, taker: Taker, storage: &Path) -> Result<Self, SiteImageError> {
        let index = image.index.as_ref().filter(|_| image.index_suffices && taker != Taker::File);
        let root = index.unwrap_or(&image.manifest);
        let names = names(image, taker, root.digest)?;
        let mut entries = vec![
            (OCI_LAYOUT.to_owned(), Content::Bytes(OCI_LAYOUT_CONTENT.to_vec())),
            (INDEX_JSON.to_owned(), Content::Bytes(index_json(root, &names))),
        ];
        if matches!(taker, Taker::Docker { .. } | Taker::File) {
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
        Ok(Self { entries, storage: storage.to_owned(), names, digest, has_index })
    }

    /// How many bytes the tar has.
    #[must_use]
    pub(crate) fn size(&self) -> u64 {
        let entry = |content: &Content| BLOCK as u64 + padded(content.size());
        self.entries.iter().map(|(_, content)| entry(content)).sum::<u64>() + END.len() as u64
    }

    /// Writes the tar, and says after each piece how many bytes it had. After an error what is written is of no use
    /// to anybody.
    pub(crate) fn write(&self, output: &mut dyn Write, written: &dyn Fn(u64)) -> Result<(), ArchiveError> {
        let mut output = Counted { output, written };
        for (name, content) in &self.entries {
            output.put(&tar_header(name, content.size()))?;
            match content {
                Content::Bytes(bytes) => output.put(bytes)?,
                Content::Blob(blob) => copy(*blob, &self.storage, &mut output)?,
            }
            let padding = padded(content.size()) - content.size();
            output.put(&END[..usize::try_from(padding).expect("less than a block; please report")])?;
        }
        output.put(&END)?;
        output.output.flush().map_err(ArchiveError::Output)
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

struct Counted<'a> {
    output: &'a mut dyn Write,
    written: &'a dyn Fn(u64),
}

impl Counted<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.output.write_all(bytes).map_err(ArchiveError::Output)?;
        (self.written)(bytes.len() as u64);
        Ok(())
    }
}

/// Copies a blob from the storage. Its last piece is not written before all of it is known to be right.
fn copy(blob: Blob, storage: &Path, output: &mut Counted) -> Result<(), ArchiveError> {
    let path = storage.join(blob_path(blob.digest));
    let mut file = fs::open(&path).map_err(BlobError::from)?;
    let mut hasher = Hasher::new();
    let (mut held, mut piece) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
    loop {
        piece.clear();
        let read = (&mut file).take(PIECE as u64).read_to_end(&mut piece);
        read.map_err(|error| BlobError::from(FsError::at("read", &path)(error)))?;
        if piece.is_empty() {
            break;
        }
        hasher.update(&piece);
        if hasher.len() > blob.size {
            return Err(BlobError::Damaged { path }.into());
        }
        output.put(&held)?;
        std::mem::swap(&mut held, &mut piece);
    }
    if hasher.len() != blob.size || hasher.finish() != blob.digest {
        return Err(BlobError::Damaged { path }.into());
    }
    output.put(&held)
}

/// The names that an engine is to know the image by.
fn names(image: &SiteImage, taker: Taker, root: Digest) -> Result<Vec<String>, SiteImageError> {
    let reference = &image.reference;
    let repository = format!("{}/{}", reference.host(), reference.repository());
    let by_tag = reference.tag().map(|tag| format!("{repository}:{tag}"));
    let by_digest = match taker {
        Taker::Docker { keeps_digests: false } => {
            Err("docker knows no image by digest that it has not pulled \
            (with the containerd image store it does)"
                .to_owned())
        }
        // The name of what is in the file, whatever index the list meant.
        Taker::File => Ok(format!("{repository}@{root}")),
        _ if image.digest() == root => Ok(format!("{repository}@{root}")),
        _ => Err("its digest is that of an index, which cannot stand for this image alone".to_owned()),
    };
    match (by_tag, by_digest) {
        (Some(tag), Ok(digest))
            if reference.digest().is_some() && !matches!(taker, Taker::Podman | Taker::File) =>
        {
            Ok(vec![tag, digest])
        }
        (Some(tag), _) => Ok(vec![tag]),
        (None, Ok(digest)) => Ok(vec![digest]),
        (None, Err(reason)) => Err(SiteImageError::NoTag { reference: reference.to_string(), reason }),
    }
}

/// The index of the image layout, in which every name is an entry.
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

/// The `manifest.json` of `docker save`.
fn docker_json(image: &SiteImage, names: &[String]) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Saved<'a> {
        config: String,
        repo_tags: Option<Vec<&'a String>>,
        layers: Vec<String>,
    }
    let tags: Vec<_> = names.iter().filter(|name| !name.contains('@')).collect();
    json(&[Saved {
        config: blob_name(image.config.digest),
        repo_tags: (!tags.is_empty()).then_some(tags),
        layers: image.layers.iter().map(|layer| blob_name(layer.digest)).collect(),
    }])
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structs become JSON; please report")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::oci::manifest::{OCI_INDEX, OCI_MANIFEST};
    use crate::oci::platform::Platform;
    use crate::site::record::{RecordedImage, RecordedManifest};

    /// A storage with one image, in an index or not.
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
            let layer: Vec<u8> = (0..3 * PIECE).map(|number| number.to_le_bytes()[1]).collect();
            let config = format!(r#"{{"os":"{}","architecture":"{}"}}"#, host.os, host.architecture);
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
                    // The first one is here, the others are not.
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
                media_type: media_type.to_owned(),
            };
            let recorded = RecordedImage {
                reference: reference.to_owned(),
                repositories: BTreeSet::new(),
                tag: None,
                platforms: vec![host.to_string()],
                size: 0,
                manifests: manifests.into_iter().map(recorded).collect(),
            };
            Self { storage, recorded, layer }
        }

        fn archive(&self, taker: Taker) -> Result<Archive, SiteImageError> {
            let image = SiteImage::open(&self.recorded, self.storage.path(), &Platform::host())?;
            Archive::new(&image, taker, self.storage.path())
        }

        fn tar(&self, taker: Taker) -> (Vec<u8>, Result<(), ArchiveError>) {
            let mut tar = Vec::new();
            let result = self.archive(taker).unwrap().write(&mut tar, &|_| ());
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
    fn an_archive_has_every_blob_once_and_the_size_that_it_says() {
        let host = Platform::host().to_string();
        let sample = Sample::new("quay.io/a/b:1", Some(&[&host, "linux/s390x"]));
        for taker in [Taker::Docker { keeps_digests: true }, Taker::Podman, Taker::Containerd, Taker::File] {
            let (tar, result) = sample.tar(taker);
            result.unwrap();
            let archive = sample.archive(taker).unwrap();
            assert_eq!(tar.len() as u64, archive.size(), "{taker:?}");
            assert_eq!(archive.has_index, taker != Taker::File, "{taker:?}");
            let entries = entries(&tar);
            assert_eq!(entries[&blob_name(Digest::of(&sample.layer))], sample.layer);
            for (name, bytes) in &entries {
                let is_right = *name == blob_name(Digest::of(bytes)) || !name.starts_with("blobs/");
                assert!(is_right, "{taker:?}: {name}");
            }
            let blobs = if taker == Taker::File { 3 } else { 4 };
            let documents = if matches!(taker, Taker::Podman | Taker::Containerd) { 2 } else { 3 };
            assert_eq!(entries.len(), blobs + documents, "{taker:?}");
        }
    }

    #[test]
    fn an_index_is_there_only_where_its_reader_can_take_nothing_but_the_image_out_of_it() {
        let host = Platform::host().to_string();
        for (platforms, has_index) in [
            (&[host.as_str()][..], true),
            (&[&host, "linux/s390x"], true),
            // Which of the two is taken is its reader's choice.
            (&[&host, &host], false),
        ] {
            let sample = Sample::new("quay.io/a/b:1", Some(platforms));
            assert_eq!(sample.archive(Taker::Containerd).unwrap().has_index, has_index, "{platforms:?}");
        }
    }

    #[test]
    fn who_loads_an_image_gets_the_names_that_it_can_use() {
        let host = Platform::host().to_string();
        let digest = Sample::new("quay.io/a/b:1", Some(&[&host])).recorded.manifests[0].digest;
        let manifest = Sample::new("quay.io/a/b:1", None).recorded.manifests[0].digest;
        let (tag, by_digest) = ("quay.io/a/b:1".to_owned(), format!("quay.io/a/b@{digest}"));
        let (both, of_manifest) = (format!("{tag}@{digest}"), format!("quay.io/a/b@{manifest}"));
        let [old, new] = [false, true].map(|keeps_digests| Taker::Docker { keeps_digests });
        for (reference, taker, names) in [
            (&tag, old, vec![&tag]),
            (&tag, Taker::Containerd, vec![&tag]),
            (&both, old, vec![&tag]),
            (&both, new, vec![&tag, &by_digest]),
            (&both, Taker::Containerd, vec![&tag, &by_digest]),
            (&both, Taker::Podman, vec![&tag]),
            (&both, Taker::File, vec![&tag]),
            (&by_digest, old, vec![]),
            (&by_digest, new, vec![&by_digest]),
            (&by_digest, Taker::Podman, vec![&by_digest]),
            (&by_digest, Taker::File, vec![&of_manifest]),
        ] {
            let sample = Sample::new(reference, Some(&[&host]));
            let found = sample.archive(taker).map(|archive| archive.names);
            match found {
                Ok(found) => assert_eq!(found.iter().collect::<Vec<_>>(), names, "{reference} {taker:?}"),
                Err(error) => assert!(names.is_empty() && error.is_unfit(), "{reference} {taker:?}: {error}"),
            }
        }
    }

    #[test]
    fn what_is_damaged_breaks_off_within_an_entry() {
        let sample = Sample::new("quay.io/a/b:1", None);
        let path = sample.storage.path().join(blob_path(Digest::of(&sample.layer)));
        let flipped = |at: usize| {
            let mut bytes = sample.layer.clone();
            bytes[at] ^= 1;
            bytes
        };
        let longer = [sample.layer.as_slice(), b"x"].concat();
        let shorter = &sample.layer[..sample.layer.len() - 1];
        let (whole, _) = sample.tar(Taker::File);
        for bytes in
            [Some(&flipped(0)[..]), Some(&flipped(2 * PIECE)), Some(&longer), Some(shorter), Some(b""), None]
        {
            match bytes {
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let (tar, result) = sample.tar(Taker::File);
            assert!(matches!(result, Err(ArchiveError::Blob(_))), "{result:?}");
            let end = whole.len() - END.len();
            let begin = end - usize::try_from(padded(sample.layer.len() as u64)).unwrap();
            assert!((begin..end).contains(&tar.len()), "{} of {begin} to {end}", tar.len());
        }
    }
}
