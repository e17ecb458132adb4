//! `Recipe`: the documents and blobs that an input describes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::bundle::format::index::{EMPTY_CONFIG, FileSet, Index, IndexedFile, IndexedImage};
use crate::fuzzing::input::Input;
use crate::oci::digest::Digest;
use crate::oci::manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

const PLATFORMS: [&str; 4] = ["linux/amd64", "linux/arm64/v8", "windows/amd64", "linux/arm/v7"];
const CONFIG_TYPES: [&str; 3] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.oci.empty.v1+json",
];
const LAYER_TYPES: [&str; 3] = [
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/octet-stream",
];

/// The documents and blobs of a bundle.
pub(super) struct Recipe {
    /// `index.json`.
    pub(super) index: Vec<u8>,
    /// All blobs, by digest.
    pub(super) blobs: BTreeMap<Digest, Vec<u8>>,
    /// The digests of the manifests in order, for documents that no walk accepts.
    pub(super) manifests: Vec<Digest>,
    /// True if the input edited a document.
    pub(super) is_edited: bool,
}

impl Recipe {
    pub(super) fn read(input: &mut Input<'_>) -> Self {
        let mut recipe =
            Self { index: Vec::new(), blobs: BTreeMap::new(), manifests: Vec::new(), is_edited: false };
        let contents: Vec<(Digest, u64)> = (0..=input.byte() % 4)
            .map(|_| {
                let (repeats, content) = (1 + usize::from(input.byte() % 32), input.short());
                recipe.keep(content.repeat(repeats))
            })
            .collect();
        let mut index = Index::default();
        for number in 0..input.byte() % 4 {
            let image = recipe.image(input, number, &contents);
            index.images.push(image);
        }
        if input.byte() % 2 == 1 {
            index.files = Some(recipe.files(input, &contents));
        }
        if input.byte() % 8 == 7 {
            // A delta: valid only if it omits configs, layers and files.
            let used = contents.iter().take(usize::from(input.byte() % 4));
            index.external = used.map(|(digest, _)| *digest).collect();
        }
        index.about.title = "A title".parse().ok().filter(|_| input.byte() % 2 == 1);
        recipe.index = recipe.edited(index.to_json(), input);
        recipe
    }

    fn keep(&mut self, bytes: Vec<u8>) -> (Digest, u64) {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        self.blobs.insert(digest, bytes);
        (digest, size)
    }

    /// Keeps a document after an edit of the input.
    fn document(&mut self, document: &Value, input: &mut Input<'_>) -> (Digest, u64) {
        let bytes = self.edited(document.to_string().into_bytes(), input);
        let kept = self.keep(bytes);
        self.manifests.push(kept.0);
        kept
    }

    /// Replaces a part of a document.
    fn edited(&mut self, mut document: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
        for _ in 0..input.byte().saturating_sub(0xf0) {
            let start = input.below(document.len() + 1);
            let end = (start + usize::from(input.byte() % 32)).min(document.len());
            document.splice(start..end, input.short().iter().copied());
            self.is_edited = true;
        }
        document
    }

    fn image(&mut self, input: &mut Input<'_>, number: u8, contents: &[(Digest, u64)]) -> IndexedImage {
        let is_docker = input.byte() % 2 == 1;
        let [manifest_type, index_type] =
            if is_docker { [DOCKER_MANIFEST, DOCKER_LIST] } else { [OCI_MANIFEST, OCI_INDEX] };
        let children = input.byte() % 4;
        let mut omitted = BTreeSet::new();
        let (digest, size, media_type) = if children == 0 {
            let (digest, size) = self.manifest(input, manifest_type, contents);
            (digest, size, manifest_type)
        } else {
            let mut descriptors = Vec::new();
            for child in 0..children {
                let platform = PLATFORMS[usize::from(child)].split('/').collect::<Vec<_>>();
                let (digest, size) = self.manifest(input, manifest_type, contents);
                let platform = json!({"os": platform[0], "architecture": platform[1]});
                let descriptor =
                    json!({"mediaType": manifest_type, "digest": digest, "size": size, "platform": platform});
                descriptors.push(descriptor);
                if input.byte() % 8 == 7 {
                    omitted.insert(digest);
                }
            }
            let document = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": descriptors});
            let (digest, size) = self.document(&document, input);
            (digest, size, index_type)
        };
        let reference = match input.byte() % 4 {
            0 => format!("registry.example/a/b:{number}"),
            1 => format!("docker.io/library/c{number}:v1@{digest}"),
            2 => format!("[::1]:5000/d{number}@{digest}"),
            _ => format!("localhost/e{number}:sha256-{}.sig", digest.hex()),
        };
        IndexedImage {
            reference: reference.parse().expect("a reference"),
            media_type: media_type.parse().expect("a media type"),
            digest,
            size,
            omitted,
            platforms: PLATFORMS
                .iter()
                .take(usize::from(input.byte() % 3))
                .flat_map(|text| text.parse())
                .collect(),
            is_made: input.byte() % 8 == 7,
        }
    }

    fn manifest(
        &mut self,
        input: &mut Input<'_>,
        media_type: &str,
        contents: &[(Digest, u64)],
    ) -> (Digest, u64) {
        let config = json!({"os": "linux", "architecture": "amd64", "n": input.byte() % 2}).to_string();
        let config = self.edited(config.into_bytes(), input);
        let (config, config_size) = self.keep(config);
        let config_type = CONFIG_TYPES[usize::from(input.byte() % 3)];
        let layers: Vec<Value> = (0..input.byte() % 4)
            .map(|_| {
                let (digest, size) = contents[input.below(contents.len())];
                let media_type = LAYER_TYPES[usize::from(input.byte() % 3)];
                json!({"mediaType": media_type, "digest": digest, "size": size})
            })
            .collect();
        let config = json!({"mediaType": config_type, "digest": config, "size": config_size});
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        self.document(&manifest, input)
    }

    fn files(&mut self, input: &mut Input<'_>, contents: &[(Digest, u64)]) -> (Digest, u64) {
        let files = (0..input.byte() % 4).map(|number| {
            let (digest, size) = contents[input.below(contents.len())];
            let path = format!("files.example/{number}/x");
            let url = format!("https://{path}").parse().expect("a URL");
            IndexedFile { path: path.parse().expect("a path"), url, digest, size }
        });
        let files = FileSet { files: files.collect() }.to_json();
        self.keep(EMPTY_CONFIG.to_vec());
        let files = self.edited(files, input);
        let kept = self.keep(files);
        self.manifests.insert(0, kept.0);
        kept
    }
}
