//! [`Documents`]: the config, manifest and indexes of the image, as JSON.

use serde_json::{Value, json};

use crate::bundle::format::index::BundleInfo;
use crate::bundle::format::layout::{Blob, blob_name};
use crate::commands::image::base::{BaseImage, oci_layer_type};
use crate::commands::image::name::Name;
use crate::oci::digest::Digest;
use crate::oci::manifest::{OCI_INDEX, OCI_MANIFEST};

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The additions to a base image.
pub(crate) struct Additions<'a> {
    /// The names of the image, at least one; the first one is in its labels.
    pub names: &'a [Name],
    /// A summary of the content, for a label.
    pub description: String,
    /// The digest of the bundle's index.
    pub identity: Digest,
    pub about: &'a BundleInfo,
    /// The layers, in order, each with its title.
    pub layers: Vec<(Blob, &'a str)>,
    /// The TCP port of the server.
    pub port: u16,
    /// The directories with content of the bundle, relative to the root of the image.
    pub directories: &'a [&'a str],
}

/// The documents of an image.
pub(crate) struct Documents {
    /// The image config (OCI image-spec, "Image Configuration"); its digest is the image ID in docker.
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    /// `index.json` of the OCI image layout, with an entry per name.
    pub index: Vec<u8>,
    /// `manifest.json` of a `docker save` archive.
    pub docker: Vec<u8>,
}

impl Documents {
    /// Makes the documents of `base`, whose config is `config`, with `additions`.
    #[must_use]
    pub(crate) fn new(base: &BaseImage, config: Value, additions: &Additions<'_>) -> Self {
        let config = self::config(base, config, additions).to_string().into_bytes();
        let base_layers = base.layers.iter().map(|layer| {
            let media_type =
                oci_layer_type(&layer.media_type).expect("`BaseImage::choose` checked it; please report");
            (media_type, Blob::from(layer))
        });
        let layers: Vec<_> =
            base_layers.chain(additions.layers.iter().map(|(blob, _)| (OCI_LAYER, *blob))).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, blob(&config)),
            "layers": layers.iter().map(|(media_type, blob)| descriptor(media_type, *blob)).collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        let entry = |name: &Name| {
            let mut entry = descriptor(OCI_MANIFEST, blob(&manifest));
            entry["annotations"] = json!({
                "io.containerd.image.name": name.full(),
                "org.opencontainers.image.ref.name": name.full(),
            });
            entry
        };
        let index = json!({
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": additions.names.iter().map(entry).collect::<Vec<_>>(),
        });
        let docker = json!([{
            "Config": blob_name(Digest::of(&config)),
            "RepoTags": additions.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "Layers": layers.iter().map(|(_, blob)| blob_name(blob.digest)).collect::<Vec<_>>(),
        }]);
        let [index, docker] = [index, docker].map(|json| json.to_string().into_bytes());
        Self { config, manifest, index, docker }
    }
}

fn blob(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::of(bytes), size: bytes.len() as u64 }
}

fn descriptor(media_type: &str, blob: Blob) -> Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size })
}

/// Returns the config of the base with the additions; the rest is unchanged.
fn config(base: &BaseImage, mut config: Value, additions: &Additions<'_>) -> Value {
    let created = created(additions.about);
    let name = &additions.names[0];
    config["created"] = created.clone().into();
    let settings = object(&mut config, "config");
    let labels = object(settings, "Labels");
    let mut label = |key: &str, value: String| labels[key] = value.into();
    label("org.opencontainers.image.title", name.title().to_owned());
    label("org.opencontainers.image.version", name.tag().to_owned());
    label("org.opencontainers.image.description", additions.description.clone());
    label("org.opencontainers.image.created", created.clone());
    label("org.opencontainers.image.base.name", base.reference.to_string());
    label("org.opencontainers.image.base.digest", base.manifest.to_string());
    label("dev.airbundle.bundle", additions.identity.to_string());
    object(settings, "ExposedPorts")[format!("{}/tcp", additions.port)] = json!({});
    // A volume there would copy all of its content for each new container.
    if let Some(volumes) = settings.get_mut("Volumes").and_then(Value::as_object_mut) {
        volumes.retain(|volume, _| !additions.directories.iter().any(|directory| overlap(volume, directory)));
        if volumes.is_empty() {
            settings.as_object_mut().expect("created as an object; please report").remove("Volumes");
        }
    }
    for (blob, title) in &additions.layers {
        array(&mut config["rootfs"], "diff_ids").push(blob.digest.to_string().into());
        array(&mut config, "history").push(json!({
            "created": created,
            "created_by": "airbundle image",
            "comment": title,
        }));
    }
    config
}

/// Returns the creation time of the bundle, or the epoch: clients reject an image without one.
fn created(about: &BundleInfo) -> String {
    about.created.as_ref().map_or_else(|| "1970-01-01T00:00:00Z".to_owned(), ToString::to_string)
}

/// Returns the object `key` of `parent`; creates it if missing.
fn object<'a>(parent: &'a mut Value, key: &str) -> &'a mut Value {
    let value = &mut parent[key];
    if !value.is_object() {
        *value = json!({});
    }
    value
}

/// Returns the array `key` of `parent`; creates it if missing.
fn array<'a>(parent: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    let value = &mut parent[key];
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().expect("created as an array; please report")
}

/// True if one of two directories is equal to the other or inside it.
fn overlap(one: &str, other: &str) -> bool {
    let mut names = [one, other].map(|path| path.split('/').filter(|name| !matches!(*name, "" | ".")));
    let [one, other] = &mut names;
    one.zip(other).all(|(one, other)| one == other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::image::base::ServerCommand;

    #[test]
    fn volumes_overlap_with_their_parents_and_their_subdirectories() {
        for (volume, overlaps) in [
            ("/var/lib/registry", true),
            ("/var/lib/registry/", true),
            ("/var//lib", true),
            ("/", true),
            ("/var/lib/registry/docker", true),
            ("/var/lib/registry2", false),
            ("/var/cache", false),
        ] {
            assert_eq!(overlap(volume, "var/lib/registry"), overlaps, "{volume}");
        }
    }

    #[test]
    fn the_config_of_the_base_is_unchanged_except_for_the_additions() {
        let base = BaseImage {
            reference: "docker.io/library/registry:2".parse().unwrap(),
            manifest: Digest::of(b"manifest"),
            config: crate::oci::manifest::Descriptor {
                media_type: OCI_CONFIG.parse().unwrap(),
                digest: Digest::of(b"config"),
                size: 6,
                platform: None,
                attests: None,
                urls: Vec::new(),
            },
            layers: Vec::new(),
            command: ServerCommand::Official,
        };
        let base_config = json!({
            "architecture": "arm64", "os": "linux", "variant": "v8", "created": "2024-01-01T00:00:00Z",
            "moby.buildkit.x": [1, {"a": null}],
            "config": {
                "Entrypoint": ["/entrypoint.sh"], "Cmd": ["/etc/config.yml"], "Env": ["A=b"],
                "ExposedPorts": {"5000/tcp": {}}, "Volumes": {"/var/lib/registry": {}, "/cache": {}},
                "Labels": {"maintainer": "x", "org.opencontainers.image.title": "registry"},
            },
            "history": [{"created_by": "COPY", "empty_layer": true}],
            "rootfs": {"type": "layers", "diff_ids": ["sha256:1"]},
        });
        let about = BundleInfo {
            title: None,
            created: Some("2026-02-03T04:05:06Z".parse().unwrap()),
            ..BundleInfo::default()
        };
        let layer = Blob { digest: Digest::of(b"layer"), size: 5 };
        let additions = Additions {
            names: &["kubespray-images:v3".parse().unwrap()],
            description: "two".into(),
            identity: Digest::of(b"index"),
            about: &about,
            layers: vec![(layer, "blobs")],
            port: 5000,
            directories: &["var/lib/registry"],
        };
        let mut expected = base_config.clone();
        expected["created"] = "2026-02-03T04:05:06Z".into();
        expected["config"]["Volumes"] = json!({"/cache": {}});
        expected["config"]["Labels"] = json!({
            "maintainer": "x",
            "org.opencontainers.image.title": "kubespray-images",
            "org.opencontainers.image.version": "v3",
            "org.opencontainers.image.description": "two",
            "org.opencontainers.image.created": "2026-02-03T04:05:06Z",
            "org.opencontainers.image.base.name": "docker.io/library/registry:2",
            "org.opencontainers.image.base.digest": Digest::of(b"manifest"),
            "dev.airbundle.bundle": Digest::of(b"index"),
        });
        expected["history"] = json!([
            {"created_by": "COPY", "empty_layer": true},
            {"created": "2026-02-03T04:05:06Z", "created_by": "airbundle image", "comment": "blobs"},
        ]);
        expected["rootfs"]["diff_ids"] = json!(["sha256:1", layer.digest]);
        assert_eq!(config(&base, base_config, &additions), expected);

        // A minimal config, and a bundle without a creation time.
        let minimal = json!({"rootfs": {"diff_ids": []}, "config": null});
        let about = BundleInfo::default();
        let result = config(&base, minimal, &Additions { about: &about, ..additions });
        assert_eq!(result["created"], "1970-01-01T00:00:00Z");
        assert_eq!(result["config"]["ExposedPorts"], json!({"5000/tcp": {}}));
        assert_eq!(result["history"].as_array().unwrap().len(), 1);
    }
}
