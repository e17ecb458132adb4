//! [`Manifest`]: what an image manifest or an index names, read out of its exact bytes.
//!
//! Nothing here writes a manifest: the bytes that came from the registry are kept, so that digests survive.

use oci_spec::image as oci;
use serde_json::Value;

use crate::oci::digest::Digest;
use crate::oci::platform::Platform;

/// Media types of the four kinds of manifest that registries serve today.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// See [`DOCKER_MANIFEST`].
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// See [`DOCKER_MANIFEST`].
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// See [`DOCKER_MANIFEST`].
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The largest manifest that is read, in bytes; registries take no larger one
/// (distribution-spec, "Pushing Manifests": a limit of at least 4 MiB).
pub const MANIFEST_LIMIT: u64 = 4 << 20;

/// A manifest, as far as a carrier of blobs needs to understand it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// An index (manifest list): a list of other manifests, one a platform.
    Index(Vec<Descriptor>),
    /// An image or artifact: a config and layers.
    Image {
        /// The config blob.
        config: Descriptor,
        /// The layers, in order; one blob may stand here twice.
        layers: Vec<Descriptor>,
    },
}

/// A reference from one document to a blob (OCI image-spec, descriptor).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type of the blob.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// For a child of an index: the platform it is for, if the index says so.
    pub platform: Option<Platform>,
    /// For a buildkit attestation in an index: the manifest that it is about.
    pub attests: Option<Digest>,
    /// For a layer that lies elsewhere than in the registry (a "foreign", or "nondistributable" one): where. Nothing
    /// for all others, whatever `urls` they have.
    pub urls: Vec<String>,
}

/// Why bytes are no manifest that a site could serve.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A media type that is none of the four.
    #[error(
        "the media type `{0}` is not supported (expected an OCI or Docker v2 schema 2 manifest or index)"
    )]
    MediaType(String),
    /// Docker's first format, which today's clients refuse.
    #[error("it is a Docker schema 1 manifest, which current registries and clients no longer take")]
    Schema1,
    /// The document calls itself something else than the registry or its parent does.
    #[error("it is announced as `{announced}` and calls itself `{itself}`")]
    Contradiction {
        /// What the registry's header or the parent's descriptor said.
        announced: String,
        /// What the document's `mediaType` says.
        itself: String,
    },
    /// Both an index and an image, read differently by different clients (CVE-2021-41190).
    #[error("it has both `manifests` and `layers`, so that clients disagree on what it is")]
    Ambiguous,
    /// A digest that is not a sha256.
    #[error("it names a blob by a digest that is no sha256: {0}")]
    Digest(#[from] crate::oci::digest::ParseDigestError),
    /// No JSON, or not the fields that the specification requires.
    #[error("it does not follow the specification")]
    Syntax(#[from] serde_json::Error),
}

impl Manifest {
    /// Reads `bytes`, announced by its descriptor or by the registry as `media_type`.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self, ManifestError> {
        let value: Value = serde_json::from_slice(bytes)?;
        let itself = value.get("mediaType").and_then(Value::as_str);
        if value.get("schemaVersion").and_then(Value::as_u64) == Some(1)
            || media_type.contains(".v1+prettyjws")
        {
            return Err(ManifestError::Schema1);
        }
        let is_index = match media_type {
            DOCKER_LIST | OCI_INDEX => true,
            DOCKER_MANIFEST | OCI_MANIFEST => false,
            other => return Err(ManifestError::MediaType(other.to_owned())),
        };
        if let Some(itself) = itself.filter(|itself| *itself != media_type) {
            return Err(ManifestError::Contradiction { announced: media_type.into(), itself: itself.into() });
        }
        if value.get("manifests").is_some()
            && (value.get("layers").is_some() || value.get("config").is_some())
        {
            return Err(ManifestError::Ambiguous);
        }
        // From the bytes once more, not from `value`: that one has already folded duplicate keys.
        if is_index {
            let index: oci::ImageIndex = serde_json::from_slice(bytes)?;
            Ok(Self::Index(index.manifests().iter().map(Descriptor::read).collect::<Result<_, _>>()?))
        } else {
            let image: oci::ImageManifest = serde_json::from_slice(bytes)?;
            Ok(Self::Image {
                config: Descriptor::read(image.config())?,
                layers: image.layers().iter().map(Descriptor::read).collect::<Result<_, _>>()?,
            })
        }
    }
}

impl Manifest {
    /// Reads `bytes` that nobody has announced: a registry's storage does not tell media types.
    pub fn parse_unannounced(bytes: &[u8]) -> Result<Self, ManifestError> {
        let value: Value = serde_json::from_slice(bytes)?;
        let itself = value.get("mediaType").and_then(Value::as_str);
        let by_shape = if value.get("manifests").is_some() { OCI_INDEX } else { OCI_MANIFEST };
        Self::parse(itself.unwrap_or(by_shape), bytes)
    }
}

impl Descriptor {
    fn read(descriptor: &oci::Descriptor) -> Result<Self, ManifestError> {
        let annotation = |key| descriptor.annotations().as_ref().and_then(|map| map.get(key));
        let attests = match annotation("vnd.docker.reference.digest") {
            Some(digest) if annotation("vnd.docker.reference.type").is_some() => Some(digest.parse()?),
            _ => None,
        };
        let media_type = descriptor.media_type().to_string();
        let is_foreign = media_type.contains("foreign") || media_type.contains("nondistributable");
        let urls = descriptor.urls().clone().filter(|_| is_foreign).unwrap_or_default();
        Ok(Self {
            media_type,
            digest: descriptor.digest().to_string().parse()?,
            size: descriptor.size(),
            platform: descriptor.platform().as_ref().map(|platform| Platform {
                os: platform.os().to_string(),
                architecture: platform.architecture().to_string(),
                variant: platform.variant().clone(),
            }),
            attests,
            urls,
        })
    }
}

/// Whether a config of this media type states a platform: that of an artifact does not.
#[must_use]
pub fn has_platform(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

/// The platform that an image config states (OCI image-spec, config: `os`, `architecture`, `variant`);
/// nothing for the config of an artifact.
#[must_use]
pub fn config_platform(media_type: &str, bytes: &[u8]) -> Option<Platform> {
    #[derive(serde::Deserialize)]
    struct Config {
        os: String,
        architecture: String,
        variant: Option<String>,
    }
    if !has_platform(media_type) {
        return None;
    }
    let config: Config = serde_json::from_slice(bytes).ok()?;
    (!config.os.is_empty() && !config.architecture.is_empty()).then_some(Platform {
        os: config.os,
        architecture: config.architecture,
        variant: config.variant.filter(|variant| !variant.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn image(extra: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,{extra}"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{A}","size":3}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{A}","size":3}}]}}"#
        )
    }

    #[test]
    fn an_image_names_its_config_and_layers() {
        let Manifest::Image { config, layers } = Manifest::parse(OCI_MANIFEST, image("").as_bytes()).unwrap()
        else {
            panic!("an index");
        };
        assert_eq!((config.digest.to_string().as_str(), config.size, layers.len()), (A, 3, 1));
    }

    #[test]
    fn an_index_names_platforms_and_what_an_attestation_is_about() {
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[
            {{"mediaType":"{OCI_MANIFEST}","digest":"{A}","size":9,"platform":{{"os":"linux","architecture":"arm","variant":"v7"}}}},
            {{"mediaType":"{OCI_MANIFEST}","digest":"{A}","size":9,"platform":{{"os":"unknown","architecture":"unknown"}},
              "annotations":{{"vnd.docker.reference.type":"attestation-manifest","vnd.docker.reference.digest":"{A}"}}}}]}}"#
        );
        let Manifest::Index(children) = Manifest::parse(OCI_INDEX, index.as_bytes()).unwrap() else {
            panic!("an image");
        };
        assert_eq!(children[0].platform.as_ref().unwrap().to_string(), "linux/arm/v7");
        assert_eq!(children[1].attests.unwrap().to_string(), A);
    }

    #[test]
    fn only_a_foreign_layer_lies_where_its_urls_lead() {
        for (media_type, foreign) in [
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", true),
            ("application/vnd.oci.image.layer.v1.tar+gzip", false),
        ] {
            let urls = r#""urls":["https://a.example/1","https://b.example/1"],"#;
            let text = image("").replace("application/vnd.oci.image.layer.v1.tar+gzip", media_type);
            let text = text.replace("\"layers\":[{", &format!("\"layers\":[{{{urls}"));
            let Manifest::Image { layers, .. } = Manifest::parse(OCI_MANIFEST, text.as_bytes()).unwrap()
            else {
                panic!("an index");
            };
            assert_eq!(layers[0].urls.len(), if foreign { 2 } else { 0 }, "{media_type}");
        }
    }

    #[test]
    fn what_clients_or_registries_stumble_over_is_refused_by_name() {
        let docker = format!(r#""mediaType":"{DOCKER_MANIFEST}","#);
        let sha512 = format!("sha512:{}", "0".repeat(128));
        for (media_type, text, message) in [
            (OCI_MANIFEST, r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), "schema 1"),
            ("application/vnd.docker.distribution.manifest.v1+prettyjws", "{}".to_owned(), "schema 1"),
            ("application/vnd.oci.artifact.manifest.v1+json", "{}".to_owned(), "artifact.manifest"),
            (OCI_MANIFEST, image(&docker), "calls itself"),
            (OCI_MANIFEST, image(r#""manifests":[],"#), "both `manifests` and `layers`"),
            (OCI_MANIFEST, image(r#""annotations":[],"#), "does not follow"),
            (OCI_MANIFEST, image("").replace(A, &sha512), "no sha256"),
            (OCI_MANIFEST, image("").replace("\"size\":3", "\"size\":-3"), "does not follow"),
            (OCI_MANIFEST, "not json".to_owned(), "does not follow"),
        ] {
            let error = Manifest::parse(media_type, text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
