//! [`Manifest`]: the descriptors in an image manifest or an index.
//!
//! Manifests are only parsed, never serialized: the bytes from the registry are kept, because their digest
//! must not change.

mod document;

use serde::Deserialize;

use crate::oci::digest::{Digest, ParseDigestError};
use crate::oci::manifest::document::{DescriptorMembers, Document, Members};
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

/// The media types of all manifests and indexes, in the order in which they are requested.
pub const MANIFEST_TYPES: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

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
    /// 8 of them. Empty for all other blobs, even if they have `urls`.
    pub urls: Vec<String>,
}

impl Descriptor {
    /// True if the blob is an image config, which states a platform: by its type, and by a size that one can have.
    #[must_use]
    pub fn states_platform(&self) -> bool {
        has_platform(&self.media_type) && self.size <= MANIFEST_LIMIT
    }
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
    /// No member that tells an image manifest from an index.
    #[error("not a manifest: it has neither `mediaType` nor `manifests`, `layers` or `config`")]
    Shape,
    /// An image manifest without config.
    #[error("malformed manifest: missing field `config`")]
    Config,
    /// Not JSON.
    #[error("malformed manifest: {0}")]
    Syntax(#[from] serde_json::Error),
    /// A missing or invalid member: its path, the problem, line and column.
    #[error("malformed manifest: {0}")]
    Member(#[from] serde_path_to_error::Error<serde_json::Error>),
}

/// A manifest, and the type that the document itself has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypedManifest {
    /// One of the four media types above.
    pub media_type: &'static str,
    /// The manifest.
    pub manifest: Manifest,
}

impl Manifest {
    /// Parses `bytes`. `media_type` is that of the descriptor.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self, ManifestError> {
        let members = Members::read(bytes)?;
        let media_type = known_type(&members, media_type)?;
        if let Some(stated) = members.media_type.filter(|stated| stated != media_type) {
            return Err(ManifestError::Contradiction { announced: media_type.into(), stated });
        }
        if members.has.both_kinds() {
            return Err(ManifestError::Ambiguous);
        }
        Self::of(is_index(media_type), Document::parse(bytes)?)
    }

    /// Parses `bytes` and finds their type: the `mediaType` of the document, or, without one, the type that matches
    /// its members. `hint` is the type in the header of a response. It decides only if the document does not: many
    /// registries and proxies send another type.
    pub fn parse_document(hint: &str, bytes: &[u8]) -> Result<TypedManifest, ManifestError> {
        let members = Members::read(bytes)?;
        if members.has.both_kinds() {
            return Err(ManifestError::Ambiguous);
        }
        if let Some(stated) = &members.media_type {
            let media_type = known_type(&members, stated)?;
            return Ok(TypedManifest {
                media_type,
                manifest: Self::of(is_index(media_type), Document::parse(bytes)?)?,
            });
        }
        if !(members.has.manifests || members.has.layers || members.has.config) {
            known_type(&members, hint)?;
            return Err(ManifestError::Shape);
        }
        // Docker's schema 1 has none of these members.
        let document = Document::parse(bytes)?;
        let media_type = type_of_shape(&document, hint);
        Ok(TypedManifest { media_type, manifest: Self::of(is_index(media_type), document)? })
    }

    /// Parses `bytes` of unknown media type: the storage of a registry does not record it.
    pub fn parse_unannounced(bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::parse_document("", bytes).map(|typed| typed.manifest)
    }

    fn of(is_index: bool, document: Document) -> Result<Self, ManifestError> {
        let read = |all: Option<Vec<DescriptorMembers>>| -> Result<Vec<Descriptor>, ManifestError> {
            all.unwrap_or_default().into_iter().map(Descriptor::read).collect()
        };
        if is_index {
            return Ok(Self::Index(read(document.manifests)?));
        }
        let config = document.config.ok_or(ManifestError::Config)?;
        Ok(Self::Image { config: Descriptor::read(config)?, layers: read(document.layers)? })
    }
}

fn is_index(media_type: &str) -> bool {
    matches!(media_type, DOCKER_LIST | OCI_INDEX)
}

/// Returns the constant that equals `media_type`.
fn known_type(members: &Members, media_type: &str) -> Result<&'static str, ManifestError> {
    if members.schema_version == Some(1) || media_type.contains(".v1+prettyjws") {
        return Err(ManifestError::Schema1);
    }
    let known = MANIFEST_TYPES.into_iter().find(|known| *known == media_type);
    known.ok_or_else(|| ManifestError::MediaType(media_type.to_owned()))
}

/// Returns the type of a document without `mediaType`: Docker's if its first config, layer or child has one of
/// Docker's types, OCI's if it has one of OCI's.
fn type_of_shape(document: &Document, hint: &str) -> &'static str {
    let [docker, oci] = match &document.manifests {
        Some(_) => [DOCKER_LIST, OCI_INDEX],
        None => [DOCKER_MANIFEST, OCI_MANIFEST],
    };
    let descriptors = document.config.iter().chain(document.layers.iter().flatten());
    let mut types = descriptors.chain(document.manifests.iter().flatten()).map(|part| &*part.media_type);
    let vendor = types.find_map(|part| {
        let is_of = |vendor| part.starts_with(vendor);
        is_of("application/vnd.docker.")
            .then_some(docker)
            .or_else(|| is_of("application/vnd.oci.").then_some(oci))
    });
    vendor.unwrap_or(if hint == docker { docker } else { oci })
}

impl Descriptor {
    fn read(members: DescriptorMembers) -> Result<Self, ManifestError> {
        let DescriptorMembers { media_type, digest, size, platform, annotations, urls } = members;
        let attestation = annotations.unwrap_or_default();
        let attests = match attestation.subject {
            Some(digest) if attestation.kind.is_some() => Some(digest.parse()?),
            _ => None,
        };
        let media_type: MediaType = media_type.parse()?;
        let is_foreign = media_type.contains("foreign") || media_type.contains("nondistributable");
        let urls = urls.filter(|_| is_foreign).map(|urls| urls.0).unwrap_or_default();
        let platform = platform.unwrap_or_default();
        let [os, architecture] = [platform.os, platform.architecture].map(Option::unwrap_or_default);
        let platform = Platform::stated(&os, &architecture, platform.variant.as_deref())?;
        Ok(Self { media_type, digest: digest.parse()?, size, platform, attests, urls })
    }
}

/// True if `media_type` is that of an image config, which states a platform. The config of an artifact does not.
/// Images of early versions of Docker have the last two types.
#[must_use]
pub fn has_platform(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
            | "application/octet-stream"
            | "text/html"
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

    /// The members that this parser reads, as `oci-spec` has them.
    fn members(descriptor: &oci_spec::image::Descriptor) -> (String, String, u64, Option<String>, usize) {
        let platform = descriptor.platform().as_ref().map(|platform| {
            let variant = platform.variant().as_ref().map(|variant| format!("/{variant}"));
            format!("{}/{}{}", platform.os(), platform.architecture(), variant.unwrap_or_default())
        });
        let urls = descriptor.urls().as_ref().map_or(0, Vec::len);
        let (media_type, digest) = (descriptor.media_type().to_string(), descriptor.digest().to_string());
        (media_type, digest, descriptor.size(), platform, urls)
    }

    fn own_members(descriptor: &Descriptor) -> (String, String, u64, Option<String>, usize) {
        let Descriptor { media_type, digest, size, platform, urls, .. } = descriptor;
        let platform = platform.as_ref().map(Platform::to_string);
        (media_type.to_string(), digest.to_string(), *size, platform, urls.len())
    }

    #[test]
    fn valid_documents_are_read_as_the_oci_spec_crate_reads_them() {
        let layers = format!(
            r#""artifactType":"a/b","subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{A}","size":1}},
            "annotations":{{"a":"b"}},"layers":[
            {{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"{A}","size":7,
              "urls":["https://a.example/1","https://b.example/2"]}},
            {{"mediaType":"application/vnd.oci.image.layer.v1.tar+zstd","digest":"{A}","size":9223372036854775807,
              "annotations":{{"x":"y"}},"data":"eHh4"}}]"#
        );
        let config = r#""config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"@","size":2,"data":"e30="}"#;
        let text = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}",{config},{layers}}}"#)
            .replace('@', A);
        let expected = oci_spec::image::ImageManifest::from_reader(text.as_bytes()).unwrap();
        let Manifest::Image { config, layers } = Manifest::parse(OCI_MANIFEST, text.as_bytes()).unwrap()
        else {
            panic!("an index");
        };
        assert_eq!(own_members(&config), members(expected.config()));
        let found: Vec<_> = layers.iter().map(own_members).collect();
        assert_eq!(found, expected.layers().iter().map(members).collect::<Vec<_>>());

        let child = |platform: &str| {
            format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{A}","size":9,"platform":{platform}}}"#)
        };
        let children = [
            child(r#"{"os":"linux","architecture":"amd64","os.version":"1","os.features":["a"]}"#),
            child(r#"{"os":"linux","architecture":"arm64","variant":"v8","features":["b"]}"#),
            format!(r#"{{"mediaType":"{OCI_INDEX}","digest":"{A}","size":10,"artifactType":"a/b"}}"#),
        ];
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#,
            children.join(",")
        );
        let expected = oci_spec::image::ImageIndex::from_reader(text.as_bytes()).unwrap();
        let Manifest::Index(children) = Manifest::parse(OCI_INDEX, text.as_bytes()).unwrap() else {
            panic!("an image");
        };
        let found: Vec<_> = children.iter().map(own_members).collect();
        assert_eq!(found, expected.manifests().iter().map(members).collect::<Vec<_>>());
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
    fn an_error_names_the_member_and_its_position() {
        let text = image("").replacen(r#""size":3"#, r#""size":"3""#, 1);
        let error = Manifest::parse(OCI_MANIFEST, text.as_bytes()).unwrap_err().to_string();
        assert!(
            error.contains("config.size: invalid type: string \"3\"") && error.contains("column"),
            "{error}"
        );
    }

    #[test]
    fn absent_members_can_be_null_and_a_platform_can_lack_members() {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"a/b","digest":"{A}","size":3}},"layers":null,"manifests":null,"annotations":null}}"#
        );
        let manifest = Manifest::parse(OCI_MANIFEST, text.as_bytes()).unwrap();
        assert!(matches!(manifest, Manifest::Image { layers, .. } if layers.is_empty()));
        for platform in ["null", "{}", r#"{"architecture":"amd64"}"#, r#"{"os":"","architecture":""}"#] {
            let text = format!(
                r#"{{"manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{A}","size":9,"platform":{platform},"annotations":null,"urls":null}}]}}"#
            );
            let Ok(Manifest::Index(children)) = Manifest::parse(OCI_INDEX, text.as_bytes()) else {
                panic!("{text}")
            };
            assert_eq!(children[0].platform, None, "{platform}");
        }
    }

    #[test]
    fn the_document_decides_its_type_and_a_hint_only_if_it_does_not() {
        let oci = image("");
        let docker =
            oci.replace("application/vnd.oci.image.config", "application/vnd.docker.container.image");
        let plain = oci
            .replace("application/vnd.oci.image.config.v1+json", "a/b")
            .replace("application/vnd.oci.image.layer.v1.tar+gzip", "a/b");
        let index = |child: &str| {
            format!(
                r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{child}","digest":"{A}","size":9}}]}}"#
            )
        };
        for (hint, text, expected) in [
            (DOCKER_MANIFEST, oci.clone(), OCI_MANIFEST),
            (DOCKER_LIST, oci.clone(), OCI_MANIFEST),
            ("text/html", image(&format!(r#""mediaType":"{DOCKER_MANIFEST}","#)), DOCKER_MANIFEST),
            ("application/json", docker.clone(), DOCKER_MANIFEST),
            (OCI_MANIFEST, docker, DOCKER_MANIFEST),
            (DOCKER_MANIFEST, plain.clone(), DOCKER_MANIFEST),
            ("", plain, OCI_MANIFEST),
            ("binary/octet-stream", index(OCI_MANIFEST), OCI_INDEX),
            ("", index(DOCKER_MANIFEST), DOCKER_LIST),
            (DOCKER_LIST, r#"{"manifests":[]}"#.to_owned(), DOCKER_LIST),
            (OCI_MANIFEST, r#"{"manifests":[]}"#.to_owned(), OCI_INDEX),
        ] {
            let typed = Manifest::parse_document(hint, text.as_bytes()).unwrap();
            assert_eq!(typed.media_type, expected, "{hint}: {text}");
            assert_eq!(matches!(typed.manifest, Manifest::Index(_)), is_index(expected), "{text}");
        }
        for (hint, text, message) in [
            (OCI_MANIFEST, "{}", "not a manifest"),
            ("text/html", "{}", "text/html"),
            (OCI_MANIFEST, r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
            (
                OCI_MANIFEST,
                r#"{"mediaType":"application/vnd.oci.artifact.manifest.v1+json"}"#,
                "artifact.manifest",
            ),
            ("", r#"{"manifests":[],"layers":[]}"#, "ambiguous"),
        ] {
            let error = Manifest::parse_document(hint, text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
