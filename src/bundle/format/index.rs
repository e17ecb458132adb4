//! `index.json` and the manifest of the file set: what a bundle says it holds.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use crate::base::path::RelPath;
use crate::bundle::format::{DOCUMENTS, FORMAT, NEWER_DOCUMENTS};
use crate::oci::digest::{Digest, ParseDigestError};
use crate::oci::manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;

/// The artifact type of the file set.
pub const FILES_ARTIFACT: &str = "application/vnd.airbundle.files.v1";
/// The empty config of an artifact and its media type (OCI image-spec, manifest, "empty descriptor").
pub const EMPTY_CONFIG: &[u8] = b"{}";
const EMPTY_MEDIA_TYPE: &str = "application/vnd.oci.empty.v1+json";
const FILE_MEDIA_TYPE: &str = "application/octet-stream";

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const TITLE: &str = "org.opencontainers.image.title";
const CREATED: &str = "org.opencontainers.image.created";
const ANNOTATION_FORMAT: &str = "dev.airbundle.format";
const ANNOTATION_REQUIRES: &str = "dev.airbundle.requires";
const ANNOTATION_ENCODING: &str = "dev.airbundle.encoding";
const ANNOTATION_OMITTED: &str = "dev.airbundle.omitted";
const ANNOTATION_PLATFORMS: &str = "dev.airbundle.platforms";
const ANNOTATION_MADE: &str = "dev.airbundle.made";
/// What that one says.
const MADE: &str = "true";
const ANNOTATION_ELSEWHERE: &str = "dev.airbundle.elsewhere";
const ANNOTATION_GUIDE: &str = "dev.airbundle.guide";
const ANNOTATION_URL: &str = "dev.airbundle.source-url";

/// The feature that a reader of a delta must know.
const BASE: &str = "base";

/// What `index.json` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// The manifest of the file set, if there are files: its digest and size in bytes.
    pub files: Option<(Digest, u64)>,
    /// The images, sorted by reference.
    pub images: Vec<IndexedImage>,
    /// What the bundle says of itself.
    pub about: BundleInfo,
    /// Configs, layers and files that it names and does not hold, as the site has them ("Deltas").
    pub elsewhere: BTreeSet<Digest>,
}

/// What a bundle says of itself, for people: nothing depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleInfo {
    /// A title, such as `Kubespray v2.25.0`.
    pub title: Option<String>,
    /// When it was packed (RFC 3339). Only where whoever packs says so: the same input makes the same bundle.
    pub created: Option<String>,
    /// How to go on at the site, in Markdown.
    pub guide: Option<String>,
}

/// One image of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedImage {
    /// The full reference as the list named it.
    pub reference: Reference,
    /// The media type of the manifest that it refers to.
    pub media_type: String,
    /// The digest of that manifest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Manifests that its index names and that were left out, by a selection of platforms.
    pub omitted: BTreeSet<Digest>,
    /// The platforms that were asked for, as they were; none: all that it has.
    pub platforms: Vec<Platform>,
    /// Whether its index was made by who packed it, of what a registry has answered: nobody else has it.
    pub is_made: bool,
}

/// The manifest of the file set, in the order of its paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileSet {
    /// The files, sorted by path.
    pub files: Vec<IndexedFile>,
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedFile {
    /// Where it belongs: `<host>/<path>` of its URL, as `wget -x` would put it.
    pub path: RelPath,
    /// Where it came from.
    pub url: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Why an `index.json` or a file set is refused.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// No JSON, or not the fields that are required.
    #[error("it does not follow the format")]
    Syntax(#[from] serde_json::Error),
    /// An OCI image layout, but not one that airbundle wrote.
    #[error("its `index.json` has no `{ANNOTATION_FORMAT}` annotation: it was not written by airbundle")]
    NotABundle,
    /// A version of the format that this program does not know.
    #[error(
        "it has format version {0}, and this program reads version {major}: use a newer `unbundle`",
        major = FORMAT.0
    )]
    Version(String),
    /// Something a reader must know to read this bundle, and this one does not.
    #[error("it needs `{0}`, which this program does not know: use a newer `unbundle`")]
    Requires(String),
    /// A blob stored in a way that this program does not know.
    #[error("`{0}` has the encoding `{1}`, which this program does not know: use a newer `unbundle`")]
    Encoding(Digest, String),
    /// Blobs that are left out, without what keeps an older reader from looking for them.
    #[error("it has `{ANNOTATION_ELSEWHERE}` and not `{BASE}` in `{ANNOTATION_REQUIRES}`")]
    Unannounced,
    /// A text in the place of a digest.
    #[error("`{ANNOTATION_ELSEWHERE}`: {0}")]
    Elsewhere(ParseDigestError),
    /// An entry that contradicts the format.
    #[error("entry {0}: {1}")]
    Entry(usize, String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IndexDocument {
    schema_version: u32,
    media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<IndexEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<IndexEntry>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    manifests: Option<Vec<IndexEntry>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// A descriptor; `annotations` are sorted, so that the same content always gives the same bytes.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IndexEntry {
    media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Index {
    /// The bytes of `index.json`.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let files = self.files.map(|(digest, size)| IndexEntry {
            media_type: OCI_MANIFEST.into(),
            artifact_type: Some(FILES_ARTIFACT.into()),
            digest,
            size,
            annotations: BTreeMap::new(),
        });
        let images = self.images.iter().map(IndexedImage::entry);
        let is_delta = !self.elsewhere.is_empty();
        let has_lock = self.images.iter().any(|image| !image.platforms.is_empty() || image.is_made);
        let (major, minor) = if is_delta || has_lock { NEWER_DOCUMENTS } else { DOCUMENTS };
        let BundleInfo { title, created, guide } = self.about.clone();
        let annotations = [
            (ANNOTATION_FORMAT, Some(format!("{major}.{minor}"))),
            (ANNOTATION_ELSEWHERE, is_delta.then(|| join(&self.elsewhere))),
            (ANNOTATION_REQUIRES, is_delta.then(|| BASE.to_owned())),
            (ANNOTATION_GUIDE, guide),
            (TITLE, title),
            (CREATED, created),
        ];
        let annotations = annotations.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        to_json(&IndexDocument {
            schema_version: 2,
            media_type: OCI_INDEX.into(),
            artifact_type: None,
            config: None,
            layers: None,
            manifests: Some(files.into_iter().chain(images).collect()),
            annotations: annotations.collect(),
        })
    }

    /// Reads `index.json`; refuses a version or an encoding that it does not know, by name.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        // The version first: what follows it may have any shape in another one.
        #[derive(Deserialize)]
        struct Annotated {
            #[serde(default)]
            annotations: BTreeMap<String, String>,
        }
        let Annotated { annotations } = serde_json::from_slice(bytes)?;
        check_version(annotations.get(ANNOTATION_FORMAT).ok_or(IndexError::NotABundle)?)?;
        let required = annotations.get(ANNOTATION_REQUIRES).map_or("", String::as_str);
        if let Some(feature) = required.split_whitespace().find(|feature| *feature != BASE) {
            return Err(IndexError::Requires(feature.to_owned()));
        }
        let elsewhere = annotations.get(ANNOTATION_ELSEWHERE).map_or("", String::as_str);
        let elsewhere = split(elsewhere).map_err(IndexError::Elsewhere)?;
        if !elsewhere.is_empty() && required.trim().is_empty() {
            return Err(IndexError::Unannounced);
        }
        let document: IndexDocument = serde_json::from_slice(bytes)?;
        let said = |key| document.annotations.get(key).cloned();
        let about = BundleInfo { title: said(TITLE), created: said(CREATED), guide: said(ANNOTATION_GUIDE) };
        let mut index = Self { about, elsewhere, ..Self::default() };
        let mut names = HashSet::new();
        for (number, entry) in document.manifests.unwrap_or_default().into_iter().enumerate() {
            let refuse = |why: &str| IndexError::Entry(number, why.to_owned());
            entry.check_encoding()?;
            if entry.artifact_type.as_deref() == Some(FILES_ARTIFACT) {
                if number != 0 || entry.media_type != OCI_MANIFEST {
                    return Err(refuse("the file set must be the first entry, and an OCI image manifest"));
                }
                index.files = Some((entry.digest, entry.size));
                continue;
            }
            let image = entry.into_image().map_err(|why| refuse(&why))?;
            if !names.insert(image.reference.to_string()) {
                return Err(refuse(&format!("`{}` stands here twice", image.reference)));
            }
            index.images.push(image);
        }
        Ok(index)
    }
}

impl IndexedImage {
    fn entry(&self) -> IndexEntry {
        let name = self.reference.to_string();
        let mut annotations: BTreeMap<_, _> =
            [(REF_NAME.to_owned(), name.clone()), (CONTAINERD_NAME.to_owned(), name)].into();
        if !self.omitted.is_empty() {
            annotations.insert(ANNOTATION_OMITTED.to_owned(), join(&self.omitted));
        }
        if !self.platforms.is_empty() {
            let platforms: Vec<_> = self.platforms.iter().map(Platform::to_string).collect();
            annotations.insert(ANNOTATION_PLATFORMS.to_owned(), platforms.join(" "));
        }
        if self.is_made {
            annotations.insert(ANNOTATION_MADE.to_owned(), MADE.to_owned());
        }
        IndexEntry {
            media_type: self.media_type.clone(),
            artifact_type: None,
            digest: self.digest,
            size: self.size,
            annotations,
        }
    }
}

impl IndexEntry {
    fn check_encoding(&self) -> Result<(), IndexError> {
        match self.annotations.get(ANNOTATION_ENCODING) {
            Some(encoding) => Err(IndexError::Encoding(self.digest, encoding.clone())),
            None => Ok(()),
        }
    }

    fn into_image(self) -> Result<IndexedImage, String> {
        let name = self.annotations.get(REF_NAME).ok_or_else(|| format!("no `{REF_NAME}` annotation"))?;
        if ![OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].contains(&self.media_type.as_str()) {
            return Err(format!("the media type `{}` is no manifest's", self.media_type));
        }
        let said = |key| self.annotations.get(key).map_or("", String::as_str);
        let (omitted, platforms) = (said(ANNOTATION_OMITTED), said(ANNOTATION_PLATFORMS));
        Ok(IndexedImage {
            reference: name.parse().map_err(|error| format!("`{name}`: {error}"))?,
            omitted: split(omitted).map_err(|error| error.to_string())?,
            platforms: platforms
                .split_whitespace()
                .map(|platform| platform.parse().map_err(|error| format!("`{platform}`: {error}")))
                .collect::<Result<_, _>>()?,
            is_made: said(ANNOTATION_MADE) == MADE,
            media_type: self.media_type,
            digest: self.digest,
            size: self.size,
        })
    }
}

impl FileSet {
    /// The bytes of the manifest.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let layers = self.files.iter().map(|file| IndexEntry {
            media_type: FILE_MEDIA_TYPE.into(),
            artifact_type: None,
            digest: file.digest,
            size: file.size,
            annotations: [
                (TITLE.to_owned(), file.path.to_string()),
                (ANNOTATION_URL.to_owned(), file.url.clone()),
            ]
            .into(),
        });
        to_json(&IndexDocument {
            schema_version: 2,
            media_type: OCI_MANIFEST.into(),
            artifact_type: Some(FILES_ARTIFACT.into()),
            config: Some(IndexEntry {
                media_type: EMPTY_MEDIA_TYPE.into(),
                artifact_type: None,
                digest: Digest::of(EMPTY_CONFIG),
                size: EMPTY_CONFIG.len() as u64,
                annotations: BTreeMap::new(),
            }),
            layers: Some(layers.collect()),
            manifests: None,
            annotations: BTreeMap::new(),
        })
    }

    /// Reads the manifest; refuses paths that escape or that collide.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        let document: IndexDocument = serde_json::from_slice(bytes)?;
        let mut files = Vec::new();
        for (number, entry) in document.layers.unwrap_or_default().into_iter().enumerate() {
            entry.check_encoding()?;
            let refuse = |why: String| IndexError::Entry(number, why);
            let title =
                entry.annotations.get(TITLE).ok_or_else(|| refuse(format!("no `{TITLE}` annotation")))?;
            files.push(IndexedFile {
                path: RelPath::parse(title)
                    .map_err(|error| refuse(format!("`{}`: {error}", title.escape_debug())))?,
                url: entry.annotations.get(ANNOTATION_URL).cloned().unwrap_or_default(),
                digest: entry.digest,
                size: entry.size,
            });
        }
        if let Some((a, b)) = crate::base::path::find_collision(files.iter().map(|file| &file.path)) {
            return Err(IndexError::Entry(0, format!("the paths `{a}` and `{b}` collide")));
        }
        Ok(Self { files })
    }
}

/// Digests as an annotation has them.
fn join(digests: &BTreeSet<Digest>) -> String {
    digests.iter().map(Digest::to_string).collect::<Vec<_>>().join(" ")
}

fn split(text: &str) -> Result<BTreeSet<Digest>, ParseDigestError> {
    text.split_whitespace().map(str::parse).collect()
}

fn to_json(document: &IndexDocument) -> Vec<u8> {
    serde_json::to_vec(document).expect("plain structs become JSON; please report")
}

fn check_version(version: &str) -> Result<(), IndexError> {
    let major = version.split_once('.').map_or(version, |(major, _)| major);
    if major.parse() == Ok(FORMAT.0) { Ok(()) } else { Err(IndexError::Version(format!("`{version}`"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Index {
        Index {
            files: Some((Digest::of(b"files"), 700)),
            images: vec![IndexedImage {
                reference: "registry.k8s.io/pause:3.9".parse().unwrap(),
                media_type: OCI_INDEX.into(),
                digest: Digest::of(b"index"),
                size: 12,
                omitted: [Digest::of(b"a"), Digest::of(b"b")].into(),
                platforms: Vec::new(),
                is_made: false,
            }],
            about: BundleInfo {
                title: Some("Kubespray v2.25.0".into()),
                created: Some("2026-11-23T20:00:00Z".into()),
                guide: Some("# How to go on\n".into()),
            },
            elsewhere: BTreeSet::new(),
        }
    }

    fn with(from: &str, to: &str) -> String {
        let text = String::from_utf8(sample().to_json()).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        text.replace(from, to)
    }

    #[test]
    fn an_index_reads_as_it_was_written() {
        assert_eq!(Index::parse(&sample().to_json()).unwrap(), sample());
        assert_eq!(Index::parse(&Index::default().to_json()).unwrap(), Index::default());
    }

    #[test]
    fn what_the_lock_needs_is_kept_and_states_1_1_and_all_else_stays_what_it_was() {
        assert!(with("\"dev.airbundle.format\":\"1.0\"", "").len() < sample().to_json().len());
        for (platforms, is_made, annotation) in [
            (
                &["linux/arm64/v8", "linux/amd64"][..],
                false,
                "\"dev.airbundle.platforms\":\"linux/arm64/v8 linux/amd64\"",
            ),
            (&[], true, "\"dev.airbundle.made\":\"true\""),
        ] {
            let mut index = sample();
            index.images[0].platforms = platforms.iter().map(|text| text.parse().unwrap()).collect();
            index.images[0].is_made = is_made;
            let text = String::from_utf8(index.to_json()).unwrap();
            assert!(text.contains(annotation) && text.contains("\"dev.airbundle.format\":\"1.1\""), "{text}");
            assert_eq!(Index::parse(text.as_bytes()).unwrap(), index);
        }
    }

    #[test]
    fn what_is_elsewhere_reads_as_it_was_written_and_no_older_reader_passes_over_it() {
        let delta = Index { elsewhere: [Digest::of(b"a"), Digest::of(b"b")].into(), ..sample() };
        let text = String::from_utf8(delta.to_json()).unwrap();
        assert_eq!(Index::parse(text.as_bytes()).unwrap(), delta);
        let requires = "\"dev.airbundle.requires\":\"base\"";
        assert!(text.contains(requires) && text.contains("\"dev.airbundle.format\":\"1.1\""), "{text}");
        for (from, to, message) in [
            (requires, "\"dev.airbundle.requires\":\"base other\"", "needs `other`"),
            (requires, "\"dev.airbundle.requires\":\" \"", "not `base`"),
            (requires, "\"a\":\"b\"", "not `base`"),
            ("elsewhere\":\"sha256:", "elsewhere\":\"sha512:", "is no digest"),
        ] {
            let error = Index::parse(text.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{message}: {error}");
        }
    }

    #[test]
    fn a_later_minor_is_read_and_a_later_major_refused_by_name() {
        assert!(Index::parse(with("\"1.0\"", "\"1.7\"").as_bytes()).is_ok());
        let error = Index::parse(with("\"1.0\"", "\"2.0\"").as_bytes()).unwrap_err().to_string();
        assert!(error.contains("version `2.0`") && error.contains("newer"), "{error}");
    }

    #[test]
    fn what_a_reader_must_refuse_is_refused_by_name() {
        let format = "\"dev.airbundle.format\":\"1.0\"";
        let name = "\"org.opencontainers.image.ref.name\":\"registry.k8s.io/pause:3.9\"";
        for (from, to, message) in [
            (format, "\"a\":\"b\"", "not written by airbundle"),
            (
                format,
                "\"dev.airbundle.format\":\"1.0\",\"dev.airbundle.requires\":\"delta x\"",
                "needs `delta`",
            ),
            (name, "\"a\":\"b\"", "no `org.opencontainers.image.ref.name`"),
            (name, &format!("{name},\"dev.airbundle.encoding\":\"gunzip\""), "encoding `gunzip`"),
            (name, &format!("{name},\"dev.airbundle.platforms\":\"linux\""), "`linux`: "),
            ("pause:3.9\"", "../pause:3.9\"", "`registry.k8s.io/../pause:3.9`"),
            ("image.index.v1+json\",\"digest\"", "image.config.v1+json\",\"digest\"", "no manifest's"),
            ("sha256:", "sha256:x", "does not follow"),
            ("\"size\":12", "\"size\":-12", "does not follow"),
            ("\"size\":12", "\"size\":99999999999999999999999", "does not follow"),
        ] {
            let error = Index::parse(with(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{message}: {error}");
        }
    }

    #[test]
    fn a_file_set_reads_as_it_was_written_and_refuses_paths_that_escape_or_collide() {
        let file = |path: &str| IndexedFile {
            path: path.parse().unwrap(),
            url: format!("https://{path}"),
            digest: Digest::of(path.as_bytes()),
            size: 3,
        };
        let set = FileSet { files: vec![file("dl.k8s.io/kubelet"), file("get.helm.sh/helm.tar.gz")] };
        assert_eq!(FileSet::parse(&set.to_json()).unwrap(), set);
        let text = String::from_utf8(set.to_json()).unwrap();
        for bad in [
            "../../etc/passwd",
            "/etc/passwd",
            "get.helm.sh/helm.tar.gz",
            "get.helm.sh",
            "get.helm.sh/HELM.tar.gz",
            "a//b",
            "a\\u0000b",
        ] {
            let text = text.replace("title\":\"dl.k8s.io/kubelet", &format!("title\":\"{bad}"));
            assert!(FileSet::parse(text.as_bytes()).is_err(), "{bad}");
        }
    }
}
