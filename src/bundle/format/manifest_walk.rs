//! [`ManifestWalk`]: visits the manifests of a bundle in order, and computes its [`Layout`].

use std::collections::{HashMap, HashSet};

use crate::base::units::MAX_SIZE;
use crate::bundle::format::index::{FileSet, Index, IndexedFile};
use crate::bundle::format::layout::{Blob, BundledImage, Layout, LayoutError, empty_config};
use crate::bundle::format::{BLOB_LIMIT, MANIFESTS_LIMIT, NAMED_LIMIT};
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, MANIFEST_LIMIT, Manifest, OCI_MANIFEST};
use crate::oci::media_type::MediaType;

/// Maximum depth of nested indexes.
const DEPTH_LIMIT: usize = 8;

/// A walk over the manifests that an index references, parents before children.
///
/// A reader does not know a manifest before it has read it, whereas a writer knows all of them. Both call
/// [`ManifestWalk::next_manifest`] and pass the bytes to [`ManifestWalk::supply`] until there are no more
/// manifests.
#[derive(Default)]
pub struct ManifestWalk {
    index: Index,
    /// The manifests to visit; the last one is visited next.
    stack: Vec<Visit>,
    /// The manifest that was requested and not supplied yet.
    pending: Option<Visit>,
    visited: HashSet<(Option<usize>, Digest)>,
    counts: Counts,
    /// The supplied manifests, in order.
    manifests: Vec<Blob>,
    parsed: HashMap<Digest, Manifest>,
    files: Vec<IndexedFile>,
    /// The manifests of each image.
    image_manifests: Vec<Vec<Blob>>,
}

/// A manifest that must be supplied next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRequest {
    /// Media type of the manifest.
    pub media_type: MediaType,
    /// Digest and size of the manifest.
    pub blob: Blob,
}

struct Visit {
    /// Number of the image in the index. `None` for the file set.
    image: Option<usize>,
    /// Number of indexes above the manifest.
    depth: usize,
    manifest: ManifestRequest,
}

impl ManifestWalk {
    /// Starts a walk over the manifests of `index`.
    pub fn new(index: Index) -> Result<Self, LayoutError> {
        let mut walk = Self { image_manifests: vec![Vec::new(); index.images.len()], ..Self::default() };
        for (number, image) in index.images.iter().enumerate().rev() {
            let blob = Blob { digest: image.digest, size: image.size };
            let manifest = ManifestRequest { media_type: image.media_type.clone(), blob };
            walk.push(Visit { image: Some(number), depth: 0, manifest })?;
        }
        if let Some((digest, size)) = index.files {
            let blob = Blob { digest, size };
            let manifest = ManifestRequest { media_type: MediaType::known(OCI_MANIFEST), blob };
            walk.push(Visit { image: None, depth: 0, manifest })?;
        }
        walk.index = index;
        Ok(walk)
    }

    /// Returns the next manifest to supply, each one once. `None` if all were supplied.
    pub fn next_manifest(&mut self) -> Result<Option<ManifestRequest>, LayoutError> {
        while let Some(visit) = self.stack.pop() {
            let blob = visit.manifest.blob;
            if !self.visited.insert((visit.image, blob.digest)) {
                continue;
            }
            let is_file_set = self.index.files.is_some_and(|(files, _)| files == blob.digest);
            if is_file_set != visit.image.is_none() {
                return Err(LayoutError::Roles(blob.digest));
            }
            self.counts.add_named(1)?;
            if let Some(image) = visit.image {
                self.image_manifests[image].push(blob);
            }
            if self.parsed.contains_key(&blob.digest) {
                self.descend(&visit)?;
                continue;
            }
            self.counts.add_manifest(blob.size)?;
            let manifest = visit.manifest.clone();
            self.pending = Some(visit);
            return Ok(Some(manifest));
        }
        Ok(None)
    }

    /// Accepts the bytes of the manifest that [`ManifestWalk::next_manifest`] returned. The caller has
    /// verified their digest.
    pub fn supply(&mut self, bytes: &[u8]) -> Result<(), LayoutError> {
        let visit = self.pending.take().expect("`next_manifest` requested it; please report");
        let ManifestRequest { media_type, blob } = &visit.manifest;
        self.manifests.push(*blob);
        if visit.image.is_none() {
            let set = FileSet::parse(bytes).map_err(|error| LayoutError::Files(blob.digest, error))?;
            for file in &set.files {
                self.counts.add_blob(Blob { digest: file.digest, size: file.size })?;
            }
            self.files = set.files;
            return Ok(());
        }
        let manifest =
            Manifest::parse(media_type, bytes).map_err(|error| LayoutError::Manifest(blob.digest, error))?;
        if let Manifest::Image { config, layers } = &manifest {
            for descriptor in std::iter::once(config).chain(layers) {
                self.counts.add_blob(descriptor.into())?;
            }
        }
        self.parsed.insert(blob.digest, manifest);
        self.descend(&visit)
    }

    /// Returns the layout after all manifests were supplied. `index_size` is the size of `index.json` in
    /// bytes.
    pub fn finish(self, index_size: u64) -> Result<Layout, LayoutError> {
        let (external, blobs) = self.blobs()?;
        let images = self.index.images.into_iter().zip(self.image_manifests);
        let images = images.map(|(indexed, manifests)| BundledImage { indexed, manifests });
        Ok(Layout {
            index_size,
            images: images.collect(),
            manifests: self.manifests,
            blobs,
            external,
            files: self.files,
            parsed: self.parsed,
        })
    }

    /// Returns all blobs except manifests, in order and without duplicates: the external ones, and those in
    /// the bundle.
    fn blobs(&self) -> Result<(Vec<Blob>, Vec<Blob>), LayoutError> {
        let images = || {
            let manifests = self.image_manifests.iter().flatten();
            manifests.filter_map(|blob| match self.parsed.get(&blob.digest) {
                Some(Manifest::Image { config, layers }) => Some((config, layers)),
                _ => None,
            })
        };
        let empty_config = self.index.files.is_some().then(empty_config);
        let configs = images().map(|(config, _)| config.into());
        let layers = images().flat_map(|(_, layers)| layers).map(Blob::from);
        let files = self.files.iter().map(|file| Blob { digest: file.digest, size: file.size });
        let all = empty_config.into_iter().chain(configs).chain(layers).chain(files);

        let mut seen: HashSet<Digest> = self.manifests.iter().map(|blob| blob.digest).collect();
        let (external, blobs): (Vec<Blob>, Vec<Blob>) = all
            .filter(|blob| seen.insert(blob.digest))
            .partition(|blob| self.index.external.contains(&blob.digest));
        if external.len() < self.index.external.len() {
            let valid: HashSet<Digest> = external.iter().map(|blob| blob.digest).collect();
            let invalid = self.index.external.iter().find(|digest| !valid.contains(digest));
            return Err(LayoutError::External(*invalid.expect("at least one is not valid; please report")));
        }
        Ok((external, blobs))
    }

    /// Pushes the children of a visited index, except those that its image omits.
    fn descend(&mut self, visit: &Visit) -> Result<(), LayoutError> {
        let Some(manifest) = self.parsed.get(&visit.manifest.blob.digest) else { return Ok(()) };
        let children = match manifest {
            Manifest::Image { layers, .. } => return self.counts.add_named(1 + layers.len()),
            Manifest::Index(children) => children,
        };
        self.counts.add_named(children.len())?;
        if visit.depth + 1 >= DEPTH_LIMIT {
            return Err(LayoutError::Limit("nested indexes", DEPTH_LIMIT as u64));
        }
        let omitted = visit.image.map(|image| &self.index.images[image].omitted);
        let is_omitted = |child: &&Descriptor| omitted.is_some_and(|omitted| omitted.contains(&child.digest));
        let visits: Vec<Visit> = (children.iter().rev().filter(|child| !is_omitted(child)))
            .map(|child| {
                let manifest = ManifestRequest { media_type: child.media_type.clone(), blob: child.into() };
                Visit { image: visit.image, depth: visit.depth + 1, manifest }
            })
            .collect();
        visits.into_iter().try_for_each(|visit| self.push(visit))
    }

    fn push(&mut self, visit: Visit) -> Result<(), LayoutError> {
        let blob = visit.manifest.blob;
        if blob.size > MANIFEST_LIMIT && visit.image.is_some() {
            return Err(LayoutError::Limit("a manifest of too many bytes", MANIFEST_LIMIT));
        }
        self.counts.add_blob(blob)?;
        self.stack.push(visit);
        Ok(())
    }
}

/// Sizes and counts, which are limited because a reader holds the documents in memory.
#[derive(Default)]
struct Counts {
    /// The size of each blob.
    sizes: HashMap<Digest, u64>,
    /// Total size of all blobs in bytes.
    bytes: u64,
    /// Total size of the manifests in bytes.
    manifest_bytes: u64,
    /// Number of references from images to manifests and blobs.
    named: usize,
}

impl Counts {
    fn add_blob(&mut self, blob: Blob) -> Result<(), LayoutError> {
        match self.sizes.insert(blob.digest, blob.size) {
            Some(first) if first != blob.size => {
                return Err(LayoutError::Sizes(blob.digest, first, blob.size));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        self.bytes = self.bytes.saturating_add(blob.size);
        if self.bytes > MAX_SIZE {
            return Err(LayoutError::Size(blob.digest, blob.size));
        }
        if self.sizes.len() > BLOB_LIMIT {
            return Err(LayoutError::Limit("blobs", BLOB_LIMIT as u64));
        }
        Ok(())
    }

    fn add_manifest(&mut self, size: u64) -> Result<(), LayoutError> {
        self.manifest_bytes += size;
        if self.manifest_bytes > MANIFESTS_LIMIT {
            return Err(LayoutError::Limit("manifests of too many bytes", MANIFESTS_LIMIT));
        }
        Ok(())
    }

    fn add_named(&mut self, count: usize) -> Result<(), LayoutError> {
        self.named += count;
        if self.named > NAMED_LIMIT {
            return Err(LayoutError::Limit("manifests and blobs in its images", NAMED_LIMIT as u64));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::hostile::{assert_unchanged, mutations};
    use crate::bundle::format::FORMAT;
    use crate::bundle::format::index::IndexedImage;
    use crate::oci::manifest::OCI_INDEX;
    use crate::oci::platform::Platform;

    fn descriptor(media_type: &str, bytes: &[u8], size: u64) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{size}}}"#, Digest::of(bytes))
    }

    fn image(layers: &[&str]) -> Vec<u8> {
        let layers: Vec<_> = layers.iter().map(|name| descriptor("a/layer", name.as_bytes(), 5)).collect();
        format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor("a/config", b"config", 6),
            layers.join(",")
        )
        .into_bytes()
    }

    fn index(children: &[&[u8]]) -> Vec<u8> {
        let children: Vec<_> =
            children.iter().map(|child| descriptor(OCI_MANIFEST, child, child.len() as u64)).collect();
        format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, children.join(",")).into_bytes()
    }

    fn indexed(name: &str, root: &[u8], omitted: &[&[u8]]) -> IndexedImage {
        IndexedImage {
            reference: name.parse().unwrap(),
            media_type: MediaType::known(OCI_INDEX),
            digest: Digest::of(root),
            size: root.len() as u64,
            omitted: omitted.iter().map(|bytes| Digest::of(bytes)).collect(),
            platforms: Vec::new(),
            is_made: false,
        }
    }

    fn walk(images: Vec<IndexedImage>, documents: &[&[u8]]) -> Result<Layout, LayoutError> {
        walk_delta(images, documents, &[])
    }

    fn walk_delta(
        images: Vec<IndexedImage>,
        documents: &[&[u8]],
        external: &[&[u8]],
    ) -> Result<Layout, LayoutError> {
        let external = external.iter().map(|bytes| Digest::of(bytes)).collect();
        let mut walk = ManifestWalk::new(Index { images, external, ..Index::default() })?;
        while let Some(request) = walk.next_manifest()? {
            walk.supply(
                documents.iter().find(|bytes| Digest::of(bytes) == request.blob.digest).expect("known"),
            )?;
        }
        walk.finish(100)
    }

    #[test]
    fn hostile_text_in_any_string_of_a_manifest_is_refused_or_unchanged() {
        let digest = Digest::of(b"x");
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":9,
            "annotations":{{"x":"y"}},"platform":{{"os":"linux","architecture":"arm","variant":"v7"}}}}]}}"#
        );
        for (_, mutated) in mutations(&serde_json::from_str(&index).unwrap()) {
            if let Ok(Manifest::Index(children)) = Manifest::parse(OCI_INDEX, mutated.to_string().as_bytes())
            {
                let platform = children[0].platform.as_ref();
                let texts = json!([
                    children[0].media_type,
                    platform.map(Platform::os),
                    platform.map(Platform::architecture),
                    platform.and_then(Platform::variant),
                ]);
                assert_unchanged(&mutated, &texts, &[]);
            }
        }
        for (_, mutated) in mutations(&serde_json::from_slice(&image(&["a"])).unwrap()) {
            if let Ok(Manifest::Image { config, layers }) =
                Manifest::parse(OCI_MANIFEST, mutated.to_string().as_bytes())
            {
                assert_unchanged(&mutated, &json!([config.media_type, layers[0].media_type]), &[]);
            }
        }
    }

    #[test]
    fn each_blob_is_listed_once_in_the_order_of_first_reference() {
        let (amd64, arm64) = (image(&["a", "shared"]), image(&["shared", "b"]));
        let root = index(&[&amd64, &arm64]);
        let layout = walk(vec![indexed("quay.io/x:1", &root, &[])], &[&root, &amd64, &arm64]).unwrap();
        let digests = |blobs: &[Blob]| blobs.iter().map(|blob| blob.digest).collect::<Vec<_>>();
        assert_eq!(digests(&layout.manifests), [&root, &amd64, &arm64].map(|bytes| Digest::of(bytes)));
        assert_eq!(
            digests(&layout.blobs),
            ["config", "a", "shared", "b"].map(|name| Digest::of(name.as_bytes()))
        );
        let offsets: Vec<_> = layout.entries().map(|entry| entry.offset).take(3).collect();
        assert_eq!(offsets, [0, 1024, 1024 + 1024]);
    }

    #[test]
    fn external_blobs_are_separate_and_must_be_referenced() {
        let (amd64, arm64) = (image(&["a", "shared"]), image(&["shared", "b"]));
        let root = index(&[&amd64, &arm64]);
        let images = || vec![indexed("quay.io/x:1", &root, &[])];
        let documents: [&[u8]; 3] = [&root, &amd64, &arm64];
        let digests = |blobs: &[Blob]| blobs.iter().map(|blob| blob.digest).collect::<Vec<_>>();
        let layout = walk_delta(images(), &documents, &[b"shared", b"config"]).unwrap();
        assert_eq!(digests(&layout.blobs), [b"a", b"b"].map(|name| Digest::of(name)));
        assert_eq!(digests(&layout.external), [&b"config"[..], b"shared"].map(Digest::of));
        assert_eq!(layout.entries().count(), 2 + 3 + 2);
        assert_eq!(layout.blobs_of(&layout.images[0]).len(), 4);
        for wrong in [&b"nothing"[..], &amd64, &root] {
            let error = walk_delta(images(), &documents, &[b"a", wrong]).unwrap_err();
            assert!(matches!(error, LayoutError::External(digest) if digest == Digest::of(wrong)), "{error}");
        }
    }

    #[test]
    fn a_manifest_omitted_by_one_image_can_belong_to_another() {
        let (amd64, arm64) = (image(&["a"]), image(&["b"]));
        let root = index(&[&amd64, &arm64]);
        let images = vec![indexed("quay.io/x:1", &root, &[&arm64]), indexed("quay.io/x:2", &root, &[])];
        let layout = walk(images, &[&root, &amd64, &arm64]).unwrap();
        assert_eq!(layout.images.iter().map(|image| image.manifests.len()).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(layout.manifests.len(), 3);
    }

    #[test]
    fn shared_blobs_count_once_per_image() {
        let names: Vec<_> = (0..30_000).map(|number| number.to_string()).collect();
        let amd64 = image(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let images = |count| {
            (0..count).map(|tag| {
                let image = indexed(&format!("quay.io/x:{tag}"), &amd64, &[]);
                IndexedImage { media_type: MediaType::known(OCI_MANIFEST), ..image }
            })
        };
        assert!(walk(images(30).collect(), &[&amd64]).is_ok());
        let error = walk(images(40).collect(), &[&amd64]).unwrap_err();
        assert!(matches!(error, LayoutError::Limit("manifests and blobs in its images", _)), "{error}");
    }

    #[test]
    fn a_manifest_that_is_also_a_layer_counts_as_a_manifest() {
        // Every manifest but the first is a layer of the one before it, so its size is known before it is
        // visited.
        let mut documents: Vec<Vec<u8>> = Vec::new();
        for _ in 0..20 {
            let layer = documents.last().map_or(descriptor("a/layer", b"x", 1), |bytes| {
                descriptor("a/layer", bytes, bytes.len() as u64)
            });
            let config = descriptor("a/config", b"config", 6);
            let padding = " ".repeat(usize::try_from(MANIFEST_LIMIT).unwrap() - 1000);
            documents.push(
                format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]{padding}}}"#).into(),
            );
        }
        documents.reverse();
        let images = documents.iter().enumerate().map(|(tag, bytes)| IndexedImage {
            media_type: MediaType::known(OCI_MANIFEST),
            ..indexed(&format!("quay.io/x:{tag}"), bytes, &[])
        });
        let all: Vec<&[u8]> = documents.iter().map(Vec::as_slice).collect();
        let error = walk(images.collect(), &all).unwrap_err();
        assert!(matches!(error, LayoutError::Limit("manifests of too many bytes", _)), "{error}");
    }

    #[test]
    fn sizes_above_2_to_the_53_are_an_error() {
        let size = |size: u64| {
            let config = descriptor("a/config", b"config", 6);
            let layer = descriptor("a/layer", b"a", size);
            format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#).into_bytes()
        };
        for (bytes, is_valid) in [(size(1 << 52), true), (size(1 << 53), false), (size(u64::MAX), false)] {
            let image = IndexedImage {
                media_type: MediaType::known(OCI_MANIFEST),
                ..indexed("quay.io/x:1", &bytes, &[])
            };
            assert_eq!(walk(vec![image], &[&bytes]).is_ok(), is_valid, "{}", String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn a_digest_with_two_sizes_is_an_error() {
        let amd64 = image(&["a"]);
        let other = String::from_utf8(image(&["a", "b"]))
            .unwrap()
            .replacen("\"size\":5", "\"size\":6", 1)
            .into_bytes();
        let root = index(&[&amd64, &other]);
        let error = walk(vec![indexed("quay.io/x:1", &root, &[])], &[&root, &amd64, &other]).unwrap_err();
        assert!(matches!(error, LayoutError::Sizes(..)), "{error}");
    }

    #[test]
    fn indexes_that_are_nested_too_deeply_are_an_error() {
        let mut documents = vec![image(&["a"])];
        for _ in 0..=DEPTH_LIMIT {
            let last = documents.last().unwrap();
            let child = descriptor(
                if documents.len() == 1 { OCI_MANIFEST } else { OCI_INDEX },
                last,
                last.len() as u64,
            );
            documents.push(format!(r#"{{"schemaVersion":2,"manifests":[{child}]}}"#).into_bytes());
        }
        let known: Vec<&[u8]> = documents.iter().map(Vec::as_slice).collect();
        let error = walk(vec![indexed("quay.io/x:1", known.last().unwrap(), &[])], &known).unwrap_err();
        assert!(error.to_string().contains("nested"), "{error}");
        assert_eq!(FORMAT.0, 1, "the limit is part of the format");
    }
}
