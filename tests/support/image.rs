//! [`Image`]: an arbitrary graph of manifests and blobs, built in memory with exact bytes.
//!
//! The same calls always yield the same bytes. The JSON is formatted as the tools of each format do it
//! (Docker indents by three spaces, OCI indexes by two with a final newline, OCI manifests are compact), so
//! that code that re-serializes a manifest fails the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use flate2::{Compression as GzipLevel, GzBuilder};
use serde_json::ser::PrettyFormatter;
use serde_json::{Serializer, Value, json};

use super::package::Package;
use super::{Bytes, random_bytes, sha256};

pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const HELM_CONFIG: &str = "application/vnd.cncf.helm.config.v1+json";
pub const HELM_CHART: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";

const EPOCH: &str = "1970-01-01T00:00:00Z";

/// Media types of a manifest or an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Docker Image Manifest Version 2, Schema 2.
    Docker,
    /// OCI image-spec.
    Oci,
}

/// Compression of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    /// OCI only, by the specification; Docker 20.10 cannot pull it.
    Zstd,
}

/// Bytes of a layer as a registry stores them.
#[derive(Debug, Clone)]
pub struct Layer {
    pub bytes: Bytes,
    pub compression: Compression,
    /// Digest of the uncompressed tar.
    pub diff_id: String,
}

/// A descriptor (OCI image-spec).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
}

/// A manifest or an index, with everything it refers to.
#[derive(Debug, Clone)]
pub struct Image {
    pub root: Descriptor,
    /// Bytes of the root manifest.
    pub manifest: Bytes,
    /// Config and layers in the manifest's order, including repetitions; empty for an index.
    pub parts: Vec<(Descriptor, Bytes)>,
    /// Children of an index, in its order.
    pub children: Vec<Image>,
    /// `os/architecture[/variant]` of a single-platform image, as in its entry of the parent index.
    pub platform: Option<String>,
    /// Annotations in its entry of the parent index.
    pub annotations: BTreeMap<String, String>,
}

impl Layer {
    /// A layer with the content of a package.
    pub fn package(package: &Package, compression: Compression) -> Self {
        Self::tar(&package.tar(), compression, GzipLevel::default())
    }

    /// A layer of files as `(path, content)`.
    pub fn files(files: &[(&str, &[u8])], compression: Compression) -> Self {
        Self::tar(&tar_of(files), compression, GzipLevel::default())
    }

    /// A layer of files as `(path, mode, content)` with all parent directories, and `directories`.
    pub fn tree(directories: &[&str], files: &[(&str, u32, Bytes)], compression: Compression) -> Self {
        let mut all: BTreeSet<&str> = directories.iter().copied().collect();
        for path in directories.iter().copied().chain(files.iter().map(|(path, ..)| *path)) {
            all.extend(path.match_indices('/').map(|(at, _)| &path[..at]));
        }
        let mut tar = tar::Builder::new(Vec::new());
        let directories = all.into_iter().map(|path| (path, tar::EntryType::Directory, 0o755, &[][..]));
        let files = files.iter().map(|(path, mode, bytes)| (*path, tar::EntryType::Regular, *mode, &**bytes));
        for (path, kind, mode, bytes) in directories.chain(files) {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, bytes).expect("write a tar in memory");
        }
        let tar = tar.into_inner().expect("write a tar in memory");
        Self::tar(&tar, compression, GzipLevel::fast())
    }

    /// A layer of one incompressible file of `size` bytes, deterministic by `seed`.
    pub fn random(seed: u64, size: usize, compression: Compression) -> Self {
        let tar = tar_of(&[("random", &random_bytes(seed, size))]);
        // Raw deflate blocks: compression would only take time.
        Self::tar(&tar, compression, GzipLevel::none())
    }

    /// Docker's empty layer: the 32 bytes found in many old images.
    pub fn empty() -> Self {
        const GZIP: [u8; 32] = [
            0x1f, 0x8b, 0x08, 0x00, 0x00, 0x09, 0x6e, 0x88, 0x00, 0xff, 0x62, 0x18, 0x05, 0xa3, 0x60,
            0x14, //
            0x8c, 0x58, 0x00, 0x08, 0x00, 0x00, 0xff, 0xff, 0x2e, 0xaf, 0xb5, 0xef, 0x00, 0x04, 0x00, 0x00,
        ];
        Self { bytes: GZIP.to_vec().into(), compression: Compression::Gzip, diff_id: sha256(&[0; 1024]) }
    }

    fn tar(tar: &[u8], compression: Compression, level: GzipLevel) -> Self {
        let bytes = match compression {
            Compression::None => tar.to_vec(),
            Compression::Gzip => gzip(tar, level),
            Compression::Zstd => zstd::bulk::compress(tar, 3).expect("compress in memory"),
        };
        Self { bytes: bytes.into(), compression, diff_id: sha256(tar) }
    }

    fn media_type(&self, format: Format) -> &'static str {
        match (format, self.compression) {
            (Format::Docker, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
            (Format::Docker, Compression::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Format::Docker, Compression::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
            (Format::Oci, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
            (Format::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Format::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

impl Descriptor {
    /// Returns the descriptor of these bytes.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self { media_type: media_type.to_owned(), digest: sha256(bytes), size: bytes.len() as u64 }
    }

    fn json(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.size })
    }
}

impl Image {
    /// A container image for one platform.
    pub fn new(format: Format, platform: &str, layers: &[Layer]) -> Self {
        let settings = json!({ "Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] });
        Self::with_settings(format, platform, layers, settings)
    }

    /// Like [`Image::new`], with these settings (entrypoint, volumes, …) in its config.
    pub fn with_settings(format: Format, platform: &str, layers: &[Layer], settings: Value) -> Self {
        let (manifest_type, config_type) = match format {
            Format::Docker => (DOCKER_MANIFEST, DOCKER_CONFIG),
            Format::Oci => (OCI_MANIFEST, OCI_CONFIG),
        };
        let mut config = platform_json(platform);
        config["created"] = EPOCH.into();
        config["config"] = settings;
        config["rootfs"] = json!({ "type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>() });
        config["history"] = layers.iter().map(|_| json!({ "created": EPOCH, "created_by": "ADD" })).collect();

        let mut parts = vec![part(config_type, config.to_string().into_bytes())];
        parts.extend(layers.iter().map(|layer| {
            (Descriptor::of(layer.media_type(format), &layer.bytes), Bytes::clone(&layer.bytes))
        }));
        let image = Self::of_parts(format, manifest_type, parts, json!({}));
        Self { platform: Some(platform.to_owned()), ..image }
    }

    /// An OCI index or a Docker manifest list of these images.
    pub fn index(format: Format, children: Vec<Self>) -> Self {
        let media_type = match format {
            Format::Docker => DOCKER_LIST,
            Format::Oci => OCI_INDEX,
        };
        let entries: Vec<_> = children.iter().map(Self::index_entry).collect();
        let json = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
        let manifest = match format {
            Format::Docker => pretty(&json, b"   "),
            Format::Oci => [pretty(&json, b"  "), b"\n".to_vec()].concat(),
        };
        Self::of_manifest(media_type, manifest, Vec::new(), children)
    }

    /// An attestation as buildkit adds it to an index: an in-toto statement for the platform
    /// `unknown/unknown`.
    pub fn attestation(subject: &Self) -> Self {
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": "https://slsa.dev/provenance/v0.2",
            "subject": [{ "name": "image", "digest": { "sha256": subject.root.digest["sha256:".len()..] } }],
            "predicate": {},
        });
        let statement = part("application/vnd.in-toto+json", statement.to_string().into_bytes());
        let config = json!({
            "architecture": "unknown",
            "os": "unknown",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [statement.0.digest] },
        });
        let config = part(OCI_CONFIG, config.to_string().into_bytes());
        Self {
            platform: Some("unknown/unknown".to_owned()),
            annotations: BTreeMap::from([
                ("vnd.docker.reference.digest".to_owned(), subject.root.digest.clone()),
                ("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned()),
            ]),
            ..Self::of_parts(Format::Oci, OCI_MANIFEST, vec![config, statement], json!({}))
        }
    }

    /// A chart as `helm push` uploads it.
    pub fn helm_chart(name: &str, version: &str) -> Self {
        let chart = format!("apiVersion: v2\nname: {name}\nversion: {version}\n");
        let config = json!({ "apiVersion": "v2", "name": name, "version": version });
        let files = tar_of(&[
            (&format!("{name}/Chart.yaml"), chart.as_bytes()),
            (&format!("{name}/values.yaml"), b"replicas: 1\n"),
        ]);
        let parts = vec![
            part(HELM_CONFIG, config.to_string().into_bytes()),
            part(HELM_CHART, gzip(&files, GzipLevel::default())),
        ];
        let annotations = json!({ "annotations": {
            "org.opencontainers.image.title": name,
            "org.opencontainers.image.version": version,
        } });
        Self::of_parts(Format::Oci, OCI_MANIFEST, parts, annotations)
    }

    /// Files as an OCI artifact as `oras push` uploads it: an `artifactType` and the empty config.
    pub fn artifact(artifact_type: &str, files: &[(&str, &[u8])]) -> Self {
        let mut parts = vec![part(OCI_EMPTY, b"{}".to_vec())];
        parts.extend(files.iter().map(|(_, bytes)| part("application/octet-stream", bytes.to_vec())));
        let mut layers: Vec<_> = parts[1..].iter().map(|(descriptor, _)| descriptor.json()).collect();
        for (layer, (title, _)) in layers.iter_mut().zip(files) {
            layer["annotations"] = json!({ "org.opencontainers.image.title": title });
        }
        let more = json!({ "artifactType": artifact_type, "layers": layers });
        Self::of_parts(Format::Oci, OCI_MANIFEST, parts, more)
    }

    /// Returns the same root with only the children for which `keep` is true: the result of a platform
    /// selection.
    pub fn sparse(&self, keep: impl Fn(&Self) -> bool) -> Self {
        let children = self.children.iter().filter(|child| keep(child)).cloned().collect();
        Self { children, ..self.clone() }
    }

    /// Returns the root and all manifests below it, deduplicated, children first, as a registry requires.
    pub fn manifests(&self) -> Vec<(Descriptor, Bytes)> {
        let mut manifests: Vec<(Descriptor, Bytes)> = Vec::new();
        for child in &self.children {
            for manifest in child.manifests() {
                if !manifests.contains(&manifest) {
                    manifests.push(manifest);
                }
            }
        }
        manifests.push((self.root.clone(), Bytes::clone(&self.manifest)));
        manifests
    }

    /// Returns all configs and layers by digest.
    pub fn parts(&self) -> BTreeMap<String, Bytes> {
        let own =
            self.parts.iter().map(|(descriptor, bytes)| (descriptor.digest.clone(), Bytes::clone(bytes)));
        self.children.iter().flat_map(Self::parts).chain(own).collect()
    }

    /// Returns all manifests, configs and layers by digest.
    pub fn blobs(&self) -> BTreeMap<String, Bytes> {
        let manifests = self.manifests().into_iter().map(|(descriptor, bytes)| (descriptor.digest, bytes));
        self.parts().into_iter().chain(manifests).collect()
    }

    /// Returns the platforms of an index's children, or the image's own.
    pub fn platforms(&self) -> Vec<&str> {
        let own = self.platform.iter().map(String::as_str);
        self.children.iter().flat_map(Self::platforms).chain(own).collect()
    }

    /// Returns the image for this platform.
    pub fn for_platform(&self, platform: &str) -> Option<&Self> {
        if self.platform.as_deref() == Some(platform) {
            return Some(self);
        }
        self.children.iter().find_map(|child| child.for_platform(platform))
    }

    /// Returns the descriptor of an image's config, which is the ID that docker and podman show. `None`: an
    /// index.
    pub fn config(&self) -> Option<&Descriptor> {
        self.parts.first().map(|(descriptor, _)| descriptor)
    }

    fn index_entry(&self) -> Value {
        let mut entry = self.root.json();
        if let Some(platform) = &self.platform {
            entry["platform"] = platform_json(platform);
        }
        if !self.annotations.is_empty() {
            entry["annotations"] = json!(self.annotations);
        }
        entry
    }

    /// A manifest of a config and layers, with the members of `more` added or replaced.
    fn of_parts(format: Format, media_type: &str, parts: Vec<(Descriptor, Bytes)>, more: Value) -> Self {
        let mut json = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": parts[0].0.json(),
            "layers": parts[1..].iter().map(|(descriptor, _)| descriptor.json()).collect::<Vec<_>>(),
        });
        if let Value::Object(more) = more {
            json.as_object_mut().expect("the value is an object").extend(more);
        }
        let manifest = match format {
            Format::Docker => pretty(&json, b"   "),
            Format::Oci => json.to_string().into_bytes(),
        };
        Self::of_manifest(media_type, manifest, parts, Vec::new())
    }

    fn of_manifest(
        media_type: &str,
        manifest: Vec<u8>,
        parts: Vec<(Descriptor, Bytes)>,
        children: Vec<Self>,
    ) -> Self {
        let root = Descriptor::of(media_type, &manifest);
        let annotations = BTreeMap::new();
        Self { root, manifest: manifest.into(), parts, children, platform: None, annotations }
    }
}

/// Returns a gzip member without timestamp and name.
pub fn gzip(bytes: &[u8], level: GzipLevel) -> Vec<u8> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), level);
    encoder.write_all(bytes).expect("compress in memory");
    encoder.finish().expect("compress in memory")
}

/// Returns an uncompressed tar of `(path, content)`.
pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, *bytes).expect("write a tar in memory");
    }
    tar.into_inner().expect("write a tar in memory")
}

fn part(media_type: &str, bytes: Vec<u8>) -> (Descriptor, Bytes) {
    (Descriptor::of(media_type, &bytes), bytes.into())
}

fn platform_json(platform: &str) -> Value {
    let mut words = platform.split('/');
    let mut json = json!({ "os": words.next(), "architecture": words.next() });
    if let Some(variant) = words.next() {
        json["variant"] = variant.into();
    }
    json
}

fn pretty(json: &Value, indent: &[u8]) -> Vec<u8> {
    use serde::Serialize as _;
    let mut bytes = Vec::new();
    json.serialize(&mut Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(indent)))
        .expect("write JSON in memory");
    bytes
}
