//! [`Manifest`]: the descriptors in an image manifest or an index.
//!
//! Manifests are only parsed, never serialized: the bytes from the registry are kept, because their digest
//! must not change.

use std::borrow::Cow;
use std::fmt;

use oci_spec::image as oci;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::oci::digest::{Digest, ParseDigestError};
use crate::oci::media_type::{MediaType, MediaTypeError};
use crate::oci::parsed_text::quoted;
use crate::oci::platform::{Platform, PlatformError};

/// Media type of a Docker image manifest (v2 schema 2).
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Maximum size of a manifest in bytes. Registries need not accept larger ones (distribution-spec, "Pushing
/// Manifests").
pub const MANIFEST_LIMIT: u64 = 4 << 20;

/// Maximum number of URLs of a layer that are kept. A manifest can have a million of them.
pub const URL_LIMIT: usize = 8;

/// The descriptors in a manifest; all other members are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// An index (manifest list): manifests, usually one per platform.
    Index(Vec<Descriptor>),
    /// The manifest of an image or an artifact.
    Image {
        /// The config blob.
        config: Descriptor,
        /// The layers, in order. A blob can occur more than once.
        layers: Vec<Descriptor>,
    },
}

/// A descriptor (OCI image-spec, descriptor).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Media type of the blob.
    pub media_type: MediaType,
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Platform of a child of an index. `None`: not stated, or unknown.
    pub platform: Option<Platform>,
    /// Manifest that an attestation in an index refers to. `None`: not an attestation.
    pub attests: Option<Digest>,
    /// URLs of a foreign (nondistributable) layer, which is outside the registry; the first
    /// [`URL_LIMIT`] of them. Empty for all other blobs, even if they have `urls`.
    pub urls: Vec<String>,
}

/// A manifest that a site cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A media type other than the four above.
    #[error("unsupported media type `{}`: expected an OCI or Docker v2 schema 2 manifest or index", quoted(.0))]
    MediaType(String),
    /// Docker's first format.
    #[error("unsupported Docker schema 1 manifest: current registries and clients do not accept it")]
    Schema1,
    /// The registry or the parent manifest states another media type than the document.
    #[error(
        "media type mismatch: announced as `{}`, but `mediaType` is `{}`", quoted(.announced), quoted(.stated)
    )]
    Contradiction {
        /// Media type in the header of the response or in the descriptor of the parent.
        announced: String,
        /// `mediaType` of the document.
        stated: String,
    },
    /// Both an index and an image manifest (CVE-2021-41190).
    #[error("ambiguous manifest: it has both `manifests` and `layers`, and clients interpret it differently")]
    Ambiguous,
    /// A digest of an algorithm other than sha256.
    #[error("unsupported digest of a blob")]
    Digest(#[from] ParseDigestError),
    /// A media type of a descriptor that violates its grammar.
    #[error(transparent)]
    MediaTypeSyntax(#[from] MediaTypeError),
    /// A platform of a descriptor that violates its grammar.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// Invalid JSON, or a missing or invalid member.
    #[error("malformed manifest")]
    Syntax(#[from] serde_json::Error),
}

impl Manifest {
    /// Parses `bytes`. `media_type` is that of the descriptor or of the registry's response.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self, ManifestError> {
        let Members { media_type: stated, schema_version, has } = Members::read(bytes)?;
        let stated = stated.as_deref();
        if schema_version == Some(1) || media_type.contains(".v1+prettyjws") {
            return Err(ManifestError::Schema1);
        }
        let is_index = match media_type {
            DOCKER_LIST | OCI_INDEX => true,
            DOCKER_MANIFEST | OCI_MANIFEST => false,
            other => return Err(ManifestError::MediaType(other.to_owned())),
        };
        if let Some(stated) = stated.filter(|stated| *stated != media_type) {
            return Err(ManifestError::Contradiction { announced: media_type.into(), stated: stated.into() });
        }
        if has.manifests && (has.layers || has.config) {
            return Err(ManifestError::Ambiguous);
        }
        // Fails if a key is duplicated.
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

    /// Parses `bytes` of unknown media type: the storage of a registry does not record it.
    pub fn parse_unannounced(bytes: &[u8]) -> Result<Self, ManifestError> {
        let Members { media_type: stated, has, .. } = Members::read(bytes)?;
        let by_members = if has.manifests { OCI_INDEX } else { OCI_MANIFEST };
        Self::parse(stated.as_deref().unwrap_or(by_members), bytes)
    }
}

/// The members that tell the types of manifests apart. A [`serde_json::Value`] of a document needs many times its
/// size in memory.
#[derive(Default)]
struct Members {
    /// `mediaType`, if it is a string.
    media_type: Option<String>,
    /// `schemaVersion`, if it is a natural number.
    schema_version: Option<u64>,
    has: Presence,
}

/// Which members a document has, whatever their values.
#[derive(Default)]
struct Presence {
    manifests: bool,
    layers: bool,
    config: bool,
}

impl Members {
    /// The last of duplicate keys wins. A document that is not an object has no members.
    fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            serde_json::from_slice::<IgnoredAny>(bytes)?;
            return Ok(Self::default());
        }
        serde_json::from_slice(bytes)
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Members::default();
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    match &*key {
                        "mediaType" => members.media_type = map.next_value::<Scalar>()?.text(),
                        "schemaVersion" => members.schema_version = map.next_value::<Scalar>()?.number(),
                        other => {
                            match other {
                                "manifests" => members.has.manifests = true,
                                "layers" => members.has.layers = true,
                                "config" => members.has.config = true,
                                _ => {}
                            }
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}

/// A value of which only a string or a natural number is kept. (Serde's own means to accept any value would keep
/// all of it.)
enum Scalar {
    Text(String),
    Number(u64),
    Other,
}

impl Scalar {
    fn text(self) -> Option<String> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    fn number(&self) -> Option<u64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;

        impl<'de> Visitor<'de> for ScalarVisitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar::Number(number))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }

            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Scalar, A::Error> {
                IgnoredAny.visit_seq(seq).map(|_| Scalar::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Scalar, A::Error> {
                IgnoredAny.visit_map(map).map(|_| Scalar::Other)
            }
        }

        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// Returns the `mediaType` in a manifest. `None`: it has none, or is not JSON.
#[must_use]
pub fn stated_media_type(bytes: &[u8]) -> Option<String> {
    Members::read(bytes).ok()?.media_type
}

impl Descriptor {
    fn read(descriptor: &oci::Descriptor) -> Result<Self, ManifestError> {
        let annotation = |key| descriptor.annotations().as_ref().and_then(|map| map.get(key));
        let attests = match annotation("vnd.docker.reference.digest") {
            Some(digest) if annotation("vnd.docker.reference.type").is_some() => Some(digest.parse()?),
            _ => None,
        };
        let media_type: MediaType = descriptor.media_type().to_string().parse()?;
        let is_foreign = media_type.contains("foreign") || media_type.contains("nondistributable");
        let urls = descriptor.urls().as_ref().filter(|_| is_foreign);
        let urls = urls.into_iter().flatten().take(URL_LIMIT).cloned().collect();
        Ok(Self {
            media_type,
            digest: descriptor.digest().to_string().parse()?,
            size: descriptor.size(),
            platform: descriptor.platform().as_ref().map(platform).transpose()?.flatten(),
            attests,
            urls,
        })
    }
}

fn platform(stated: &oci::Platform) -> Result<Option<Platform>, PlatformError> {
    let (os, architecture) = (stated.os().to_string(), stated.architecture().to_string());
    Platform::stated(&os, &architecture, stated.variant().as_deref())
}

/// True if `media_type` is that of an image config, which states a platform. The config of an artifact does
/// not.
#[must_use]
pub fn has_platform(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

/// Returns the platform in an image config (OCI image-spec, config: `os`, `architecture`, `variant`). `None`
/// for the config of an artifact, and for one that states no platform or is not the JSON of a config.
pub fn config_platform(media_type: &str, bytes: &[u8]) -> Result<Option<Platform>, PlatformError> {
    #[derive(Deserialize)]
    struct Config {
        os: String,
        architecture: String,
        variant: Option<String>,
    }
    if !has_platform(media_type) {
        return Ok(None);
    }
    let Ok(Config { os, architecture, variant }) = serde_json::from_slice(bytes) else { return Ok(None) };
    Platform::stated(&os, &architecture, variant.as_deref())
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
    fn an_image_manifest_has_a_config_and_layers() {
        let Manifest::Image { config, layers } = Manifest::parse(OCI_MANIFEST, image("").as_bytes()).unwrap()
        else {
            panic!("an index");
        };
        assert_eq!((config.digest.to_string().as_str(), config.size, layers.len()), (A, 3, 1));
    }

    #[test]
    fn an_index_has_platforms_and_the_subjects_of_attestations() {
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
        assert_eq!(children[1].platform, None);
        assert_eq!(children[1].attests.unwrap().to_string(), A);
    }

    #[test]
    fn an_invalid_platform_or_media_type_is_an_error_that_names_the_value() {
        let index = |platform: &str| {
            format!(
                r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{A}","size":9,"platform":{platform}}}]}}"#
            )
        };
        for (platform, message) in [
            (
                r#"{"os":"linux","architecture":"arm","variant":"v7\nx: y"}"#,
                "invalid `variant` of a platform: `v7\\nx: y`",
            ),
            (
                r#"{"os":"unknown","architecture":"\u202e"}"#,
                "invalid `architecture` of a platform: `\\u{202e}`",
            ),
            (r#"{"os":"lin ux","architecture":""}"#, "invalid `os` of a platform: `lin ux`"),
        ] {
            let error = Manifest::parse(OCI_INDEX, index(platform).as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
            let error = config_platform("application/vnd.oci.image.config.v1+json", platform.as_bytes());
            assert!(error.unwrap_err().to_string().starts_with(message));
        }
        let text = image("").replace("layer.v1.tar+gzip", "layer\\n");
        let error = Manifest::parse(OCI_MANIFEST, text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("invalid media type `application/vnd.oci.image.layer\\n`"), "{error}");
        for config in ["", "[]", "{}", r#"{"os":1,"architecture":"x"}"#, r#"{"os":"","architecture":""}"#] {
            let platform = config_platform("application/vnd.oci.image.config.v1+json", config.as_bytes());
            assert_eq!(platform, Ok(None), "{config}");
        }
    }

    #[test]
    fn only_a_foreign_layer_has_urls() {
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
    fn only_the_first_urls_of_a_layer_are_kept() {
        let urls = format!(r#"{{"urls":[{}],"#, [r#""https://a.example/1""#; 1000].join(","));
        let text = image("").replace("\"layers\":[{", &format!("\"layers\":[{urls}"));
        let text = text.replace("layer.v1.tar+gzip", "layer.nondistributable.v1.tar+gzip");
        let Manifest::Image { layers, .. } = Manifest::parse(OCI_MANIFEST, text.as_bytes()).unwrap() else {
            panic!("an index");
        };
        assert_eq!((layers[0].urls.len(), layers[0].urls.capacity()), (URL_LIMIT, URL_LIMIT));
    }

    #[test]
    fn an_unsupported_or_ambiguous_manifest_is_an_error() {
        let docker = format!(r#""mediaType":"{DOCKER_MANIFEST}","#);
        let sha512 = format!("sha512:{}", "0".repeat(128));
        for (media_type, text, message) in [
            (OCI_MANIFEST, r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), "schema 1"),
            ("application/vnd.docker.distribution.manifest.v1+prettyjws", "{}".to_owned(), "schema 1"),
            ("application/vnd.oci.artifact.manifest.v1+json", "{}".to_owned(), "artifact.manifest"),
            (OCI_MANIFEST, image(&docker), "media type mismatch"),
            (OCI_MANIFEST, image(r#""manifests":[],"#), "both `manifests` and `layers`"),
            (OCI_MANIFEST, image(r#""annotations":[],"#), "malformed"),
            (OCI_MANIFEST, image("").replace(A, &sha512), "unsupported digest"),
            (OCI_MANIFEST, image("").replace("\"size\":3", "\"size\":-3"), "malformed"),
            (OCI_MANIFEST, "not json".to_owned(), "malformed"),
        ] {
            let error = Manifest::parse(media_type, text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn the_members_of_a_document_are_read_without_its_other_values() {
        let read = |text: &str| {
            let Members { media_type, schema_version, has } = Members::read(text.as_bytes()).unwrap();
            (media_type, schema_version, [has.manifests, has.layers, has.config])
        };
        let none = (None, None, [false; 3]);
        for text in
            ["{}", " []", "7", r#"{"mediaType":{"":[0]},"schemaVersion":-1}"#, r#"{"schemaVersion":1.0}"#]
        {
            assert_eq!(read(text), none, "{text}");
        }
        let text = r#"{"mediaType":"a","schemaVersion":1,"mediaType":"b","config":null,"layers":[{"":0}],"x":{"mediaType":"c"}}"#;
        assert_eq!(read(text), (Some("b".to_owned()), Some(1), [false, true, true]));
        assert_eq!(read(r#"{"manifests":0}"#), (None, None, [true, false, false]));
        assert_eq!(stated_media_type(text.as_bytes()).as_deref(), Some("b"));
        for text in ["", "{", "[1", r#"{"mediaType":"a"} x"#] {
            assert!(Members::read(text.as_bytes()).is_err(), "{text}");
        }
    }
}
