//! [`Index`] and [`FileSet`]: `index.json` and the manifest of the files ("Documents").

use std::collections::{BTreeSet, HashSet};
use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::base::path::{RelPath, find_collision};
use crate::base::source_url::SourceUrl;
use crate::base::title::{Timestamp, Title};
use crate::bundle::format::annotations::{
    ANNOTATION_ENCODING, ANNOTATION_EXTERNAL, ANNOTATION_FORMAT, ANNOTATION_GUIDE, ANNOTATION_MADE,
    ANNOTATION_OMITTED, ANNOTATION_PLATFORMS, ANNOTATION_REQUIRES, ANNOTATION_URL, Annotations,
    CONTAINERD_NAME, CREATED, REF_NAME, TITLE,
};
use crate::bundle::format::release::{self, Expiry, Release, ReleaseError};
use crate::bundle::format::{DOCUMENTS, FORMAT, NAMES_DOCUMENTS, NEWER_DOCUMENTS, RELEASE_DOCUMENTS};
use crate::oci::digest::{Digest, ParseDigestError};
use crate::oci::manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::oci::media_type::MediaType;
use crate::oci::parsed_text::quoted;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;

/// Artifact type of the file set.
pub const FILES_ARTIFACT: &str = "application/vnd.airbundle.files.v1";

/// Content of the empty config of an artifact (OCI image-spec, manifest, "Guidance for an Empty Descriptor").
pub const EMPTY_CONFIG: &[u8] = b"{}";
const EMPTY_MEDIA_TYPE: &str = "application/vnd.oci.empty.v1+json";
const FILE_MEDIA_TYPE: &str = "application/octet-stream";

/// Value of [`ANNOTATION_MADE`].
const MADE: &str = "true";

/// Name of the feature that a reader needs for deltas.
const BASE: &str = "base";

/// The content of `index.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// Digest and size in bytes of the manifest of the file set. `None`: no files.
    pub files: Option<(Digest, u64)>,
    /// Images, sorted by reference.
    pub images: Vec<IndexedImage>,
    /// Informational annotations.
    pub about: BundleInfo,
    /// Configs, layers and files that a delta omits, because the site has them ("Deltas").
    pub external: BTreeSet<Digest>,
}

/// Annotations of a bundle that do not affect its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleInfo {
    /// Title, such as `Kubespray v2.25.0`.
    pub title: Option<Title>,
    /// Time of packing (RFC 3339), if the packer specified one: without it, the same input results in the
    /// same bundle.
    pub created: Option<Timestamp>,
    /// Instructions for the operator at the site, in Markdown. Opaque: written to a file, never interpreted.
    pub guide: Option<String>,
    /// Name and sequence number, which tell newer bundles from older ones.
    pub release: Option<Release>,
    /// Time after which the bundle must not be used.
    pub expires: Option<Expiry>,
}

/// The entry of an image in `index.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedImage {
    /// Full reference from the list.
    pub reference: Reference,
    /// Media type of its manifest.
    pub media_type: MediaType,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Size of its manifest in bytes.
    pub size: u64,
    /// Manifests that the index of the image references and the bundle omits ("Sparse indexes").
    pub omitted: BTreeSet<Digest>,
    /// Requested platforms, as specified. Empty: all.
    pub platforms: Vec<Platform>,
    /// True if the packer generated the index from a response of the referrers API.
    pub is_made: bool,
}

/// The content of the manifest of the file set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileSet {
    /// Files, sorted by path.
    pub files: Vec<IndexedFile>,
}

/// The entry of a file in the file set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedFile {
    /// Path on the site: `<host>/<path>` of the URL, as `wget -x` creates it.
    pub path: RelPath,
    /// URL that it was fetched from.
    pub url: SourceUrl,
    /// Digest of the content.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
}

/// An invalid or unsupported `index.json` or file set.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Invalid JSON, or a missing or invalid member.
    #[error("malformed document")]
    Syntax(#[from] serde_json::Error),
    /// An `index.json` from another program.
    #[error("missing annotation `{ANNOTATION_FORMAT}`: not written by airbundle")]
    NotABundle,
    /// An unsupported major version of the format.
    #[error(
        "unsupported format version `{}`: this program reads version {major}; use a newer `unbundle`", quoted(.0),
        major = FORMAT.0
    )]
    Version(String),
    /// An unsupported feature in `dev.airbundle.requires`.
    #[error("unsupported feature `{}`: use a newer `unbundle`", quoted(.0))]
    Requires(String),
    /// An unsupported encoding of a blob.
    #[error("unsupported encoding `{}` of `{}`: use a newer `unbundle`", quoted(.1), .0)]
    Encoding(Digest, String),
    /// A delta without the annotation that makes readers of 1.0 refuse it.
    #[error("it has `{ANNOTATION_EXTERNAL}`, but not `{BASE}` in `{ANNOTATION_REQUIRES}`")]
    MissingRequirement,
    /// An invalid digest in `dev.airbundle.elsewhere`.
    #[error("invalid annotation `{ANNOTATION_EXTERNAL}`")]
    External(#[source] ParseDigestError),
    /// An annotation of the index whose value violates its grammar: its name and the reason.
    #[error("invalid annotation `{0}`: {1}")]
    Annotation(&'static str, String),
    /// An invalid name, sequence number or expiry date.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// An invalid entry: its number, from 0, and the reason.
    #[error("invalid entry {0}: {1}")]
    Entry(usize, String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IndexDocument {
    schema_version: u32,
    media_type: MediaType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<MediaType>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<IndexEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<IndexEntry>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    manifests: Option<Vec<IndexEntry>>,
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    annotations: Annotations,
}

/// A descriptor.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IndexEntry {
    media_type: MediaType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<MediaType>,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    annotations: Annotations,
}

impl Index {
    /// Serializes `index.json`.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let files = self.files.map(|(digest, size)| IndexEntry {
            media_type: MediaType::known(OCI_MANIFEST),
            artifact_type: Some(MediaType::known(FILES_ARTIFACT)),
            digest,
            size,
            annotations: Annotations::default(),
        });
        let images = self.images.iter().map(IndexedImage::entry);
        let is_delta = !self.external.is_empty();
        let has_lock = self.images.iter().any(|image| !image.platforms.is_empty() || image.is_made);
        let BundleInfo { title, created, guide, release, expires } = self.about.clone();
        let has_release = release.is_some() || expires.is_some();
        let has_other_name = |image: &IndexedImage| image.containerd_name() != image.reference.as_str();
        let (major, minor) = [
            (self.images.iter().any(has_other_name), NAMES_DOCUMENTS),
            (has_release, RELEASE_DOCUMENTS),
            (is_delta || has_lock, NEWER_DOCUMENTS),
        ]
        .into_iter()
        .find_map(|(is_needed, version)| is_needed.then_some(version))
        .unwrap_or(DOCUMENTS);
        let annotations = [
            (ANNOTATION_FORMAT, Some(format!("{major}.{minor}"))),
            (ANNOTATION_EXTERNAL, is_delta.then(|| join(&self.external))),
            (ANNOTATION_REQUIRES, is_delta.then(|| BASE.to_owned())),
            (ANNOTATION_GUIDE, guide),
            (TITLE, title.map(|title| title.to_string())),
            (CREATED, created.map(|created| created.to_string())),
        ];
        let annotations = annotations.into_iter().chain(release::annotations(release.as_ref(), expires));
        let annotations = annotations.filter_map(|(key, value)| Some((key, value?)));
        to_json(&IndexDocument {
            schema_version: 2,
            media_type: MediaType::known(OCI_INDEX),
            artifact_type: None,
            config: None,
            layers: None,
            manifests: Some(files.into_iter().chain(images).collect()),
            annotations: annotations.collect(),
        })
    }

    /// Parses `index.json`. Fails if the version, a required feature or an encoding is not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        // The version first: all other members can be different in another version.
        #[derive(Deserialize)]
        struct Annotated {
            #[serde(default)]
            annotations: Annotations,
        }
        let Annotated { annotations } = serde_json::from_slice(bytes)?;
        check_version(annotations.get(ANNOTATION_FORMAT).ok_or(IndexError::NotABundle)?)?;
        let required = annotations.get(ANNOTATION_REQUIRES).unwrap_or_default();
        if let Some(feature) = required.split_whitespace().find(|feature| *feature != BASE) {
            return Err(IndexError::Requires(feature.to_owned()));
        }
        let external = annotations.get(ANNOTATION_EXTERNAL).unwrap_or_default();
        let external = split(external).map_err(IndexError::External)?;
        if !external.is_empty() && required.trim().is_empty() {
            return Err(IndexError::MissingRequirement);
        }
        let document: IndexDocument = serde_json::from_slice(bytes)?;
        let (release, expires) = release::read(&document.annotations)?;
        let about = BundleInfo {
            title: parse(&document.annotations, TITLE)?,
            created: parse(&document.annotations, CREATED)?,
            guide: document.annotations.get(ANNOTATION_GUIDE).map(str::to_owned),
            release,
            expires,
        };
        let mut index = Self { about, external, ..Self::default() };
        let mut names = HashSet::new();
        for (number, entry) in document.manifests.unwrap_or_default().into_iter().enumerate() {
            let invalid = |reason: &str| IndexError::Entry(number, reason.to_owned());
            entry.check_encoding()?;
            if entry.artifact_type.as_deref() == Some(FILES_ARTIFACT) {
                if number != 0 || *entry.media_type != *OCI_MANIFEST {
                    return Err(invalid("the file set must be the first entry and an OCI image manifest"));
                }
                index.files = Some((entry.digest, entry.size));
                continue;
            }
            let image = entry.into_image().map_err(|reason| invalid(&reason))?;
            if !names.insert(image.reference.to_string()) {
                return Err(invalid(&format!("duplicate reference `{}`", image.reference)));
            }
            index.images.push(image);
        }
        Ok(index)
    }
}

impl IndexedImage {
    /// Returns the name under which Kubernetes looks the image up in containerd: without the tag if there is a digest.
    fn containerd_name(&self) -> String {
        let reference = &self.reference;
        match (reference.tag(), reference.digest()) {
            (Some(_), Some(digest)) => format!("{}@{digest}", reference.name()),
            _ => reference.to_string(),
        }
    }

    fn entry(&self) -> IndexEntry {
        let name = self.reference.to_string();
        let platforms: Vec<_> = self.platforms.iter().map(Platform::to_string).collect();
        let annotations = [
            (REF_NAME, Some(name)),
            (CONTAINERD_NAME, Some(self.containerd_name())),
            (ANNOTATION_OMITTED, (!self.omitted.is_empty()).then(|| join(&self.omitted))),
            (ANNOTATION_PLATFORMS, (!platforms.is_empty()).then(|| platforms.join(" "))),
            (ANNOTATION_MADE, self.is_made.then(|| MADE.to_owned())),
        ];
        IndexEntry {
            media_type: self.media_type.clone(),
            artifact_type: None,
            digest: self.digest,
            size: self.size,
            annotations: annotations.into_iter().filter_map(|(key, value)| Some((key, value?))).collect(),
        }
    }
}

impl IndexEntry {
    fn check_encoding(&self) -> Result<(), IndexError> {
        match self.annotations.get(ANNOTATION_ENCODING) {
            Some(encoding) => Err(IndexError::Encoding(self.digest, encoding.to_owned())),
            None => Ok(()),
        }
    }

    fn into_image(self) -> Result<IndexedImage, String> {
        let name =
            self.annotations.get(REF_NAME).ok_or_else(|| format!("missing annotation `{REF_NAME}`"))?;
        if ![OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].contains(&self.media_type.as_str()) {
            return Err(format!("unsupported media type `{}`", quoted(&self.media_type)));
        }
        let value = |key| self.annotations.get(key).unwrap_or_default();
        let image = IndexedImage {
            reference: name.parse().map_err(|error| format!("`{}`: {error}", quoted(name)))?,
            omitted: split(value(ANNOTATION_OMITTED)).map_err(|error| error.to_string())?,
            platforms: value(ANNOTATION_PLATFORMS)
                .split_whitespace()
                .map(|platform| platform.parse().map_err(|error| format!("`{}`: {error}", quoted(platform))))
                .collect::<Result<_, _>>()?,
            is_made: value(ANNOTATION_MADE) == MADE,
            media_type: self.media_type,
            digest: self.digest,
            size: self.size,
        };
        // A client that pulls by this digest would otherwise get another image from the content store of containerd.
        if let Some(digest) = image.reference.digest().filter(|digest| *digest != image.digest) {
            return Err(format!(
                "digest mismatch of `{}`: expected {digest}, got {}",
                quoted(name),
                image.digest
            ));
        }
        // Before 1.3, it is the reference.
        let is_known = |other: &str| other == name || other == image.containerd_name();
        if self.annotations.get(CONTAINERD_NAME).is_some_and(|other| !is_known(other)) {
            return Err(format!("`{}`: `{CONTAINERD_NAME}` is another name", quoted(name)));
        }
        Ok(image)
    }
}

impl FileSet {
    /// Serializes the manifest.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let layers = self.files.iter().map(|file| IndexEntry {
            media_type: MediaType::known(FILE_MEDIA_TYPE),
            artifact_type: None,
            digest: file.digest,
            size: file.size,
            annotations: [(TITLE, file.path.to_string()), (ANNOTATION_URL, file.url.to_string())]
                .into_iter()
                .collect(),
        });
        to_json(&IndexDocument {
            schema_version: 2,
            media_type: MediaType::known(OCI_MANIFEST),
            artifact_type: Some(MediaType::known(FILES_ARTIFACT)),
            config: Some(IndexEntry {
                media_type: MediaType::known(EMPTY_MEDIA_TYPE),
                artifact_type: None,
                digest: Digest::of(EMPTY_CONFIG),
                size: EMPTY_CONFIG.len() as u64,
                annotations: Annotations::default(),
            }),
            layers: Some(layers.collect()),
            manifests: None,
            annotations: Annotations::default(),
        })
    }

    /// Parses the manifest. Fails if a path escapes its directory or if two paths collide.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        let document: IndexDocument = serde_json::from_slice(bytes)?;
        let mut files = Vec::new();
        for (number, entry) in document.layers.unwrap_or_default().into_iter().enumerate() {
            entry.check_encoding()?;
            let invalid = |reason: String| IndexError::Entry(number, reason);
            let title = entry
                .annotations
                .get(TITLE)
                .ok_or_else(|| invalid(format!("missing annotation `{TITLE}`")))?;
            files.push(IndexedFile {
                path: RelPath::parse(title)
                    .map_err(|error| invalid(format!("`{}`: {error}", quoted(title))))?,
                url: (entry.annotations.get(ANNOTATION_URL).unwrap_or_default().parse())
                    .map_err(|error| invalid(format!("`{}`: {error}", quoted(title))))?,
                digest: entry.digest,
                size: entry.size,
            });
        }
        if let Some((a, b)) = find_collision(files.iter().map(|file| &file.path)) {
            return Err(IndexError::Entry(0, format!("the path `{b}` collides with `{a}`")));
        }
        Ok(Self { files })
    }
}

/// Formats digests as the value of an annotation.
fn join(digests: &BTreeSet<Digest>) -> String {
    digests.iter().map(Digest::to_string).collect::<Vec<_>>().join(" ")
}

fn split(text: &str) -> Result<BTreeSet<Digest>, ParseDigestError> {
    text.split_whitespace().map(str::parse).collect()
}

fn to_json(document: &IndexDocument) -> Vec<u8> {
    serde_json::to_vec(document).expect("plain structs serialize; please report")
}

/// Parses the value of an annotation. `None`: there is none.
fn parse<T: FromStr<Err: Display>>(
    annotations: &Annotations,
    key: &'static str,
) -> Result<Option<T>, IndexError> {
    let value = annotations.get(key).map(str::parse);
    value.transpose().map_err(|error: T::Err| IndexError::Annotation(key, error.to_string()))
}

/// Fails unless `version` is `MAJOR.MINOR` of a supported major version, in decimal digits.
fn check_version(version: &str) -> Result<(), IndexError> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_supported = version
        .split_once('.')
        .is_some_and(|(major, minor)| is_number(major) && is_number(minor) && major.parse() == Ok(FORMAT.0));
    if is_supported { Ok(()) } else { Err(IndexError::Version(version.to_owned())) }
}

#[cfg(test)]
mod tests;
