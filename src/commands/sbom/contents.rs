//! [`BomContents`]: the items of an SBOM, independent of its format.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use crate::bundle::format::index::IndexedFile;
use crate::bundle::format::layout::{Blob, BundledImage, Layout};
use crate::bundle::read::reader::Contents;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, Manifest, config_platform, has_platform};
use crate::oci::media_type::MediaType;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;

/// The tool name in documents.
pub(crate) const TOOL: &str = "airbundle";

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The name of a bundle without a title.
const UNTITLED: &str = "airbundle bundle";

/// The characters that are not percent-encoded in package URLs (purl specification, "Character encoding").
const PURL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');

/// The same for values of qualifiers.
const PURL_VALUE: &AsciiSet = &PURL.remove(b'/');

/// The content of an SBOM. Items are made when they are needed: a small bundle can have a million of them.
pub(crate) struct BomContents<'a> {
    pub(crate) identity: Digest,
    pub(crate) name: String,
    /// RFC 3339 in UTC without fractional seconds, as SPDX requires.
    pub(crate) created: String,
    layout: &'a Layout,
    configs: &'a BTreeMap<Digest, Vec<u8>>,
}

/// An image, one of its manifests, a layer, or a file.
pub(crate) struct Item {
    /// Derived from the reference, path or digest, so that it is the same in other bundles.
    pub(crate) id: String,
    pub(crate) kind: ItemKind,
    pub(crate) name: String,
    pub(crate) version: Option<String>,
    pub(crate) digest: Digest,
    /// Bytes; that of an image includes its manifests, configs and layers.
    pub(crate) size: u64,
    pub(crate) media_type: String,
    pub(crate) platforms: Vec<String>,
    /// The URL from which it was fetched.
    pub(crate) source: String,
    /// Empty for a layer: package URLs name images.
    pub(crate) purl: String,
    /// The manifests of an index that the bundle contains, or the layers of a manifest.
    pub(crate) children: Vec<Item>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ItemKind {
    /// A container image, or an index of images.
    Container,
    /// Any other manifest: a Helm chart, a signature.
    Artifact,
    /// A layer of an image, or of an artifact.
    Layer,
    File,
}

impl<'a> BomContents<'a> {
    pub(crate) fn of(
        contents: &'a Contents,
        configs: &'a BTreeMap<Digest, Vec<u8>>,
        date: Option<OffsetDateTime>,
    ) -> Self {
        let packed =
            contents.about.created.as_deref().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        Self {
            identity: contents.identity,
            name: contents.about.title.as_ref().map_or_else(|| UNTITLED.to_owned(), ToString::to_string),
            created: timestamp(packed)
                .or_else(|| timestamp(date))
                .unwrap_or_else(|| "1970-01-01T00:00:00Z".into()),
            layout: &contents.layout,
            configs,
        }
    }

    /// Returns the images and then the files.
    pub(crate) fn items(&self) -> impl Iterator<Item = Item> {
        let images =
            self.layout.images.iter().map(|image| ImageItems::new(self.layout, image, self.configs).root());
        images.chain(self.layout.files.iter().map(of_file))
    }

    /// Returns a UUID (RFC 9562, version 8) of the document in this `format`, derived from its contents and
    /// the version of this program.
    pub(crate) fn uuid(&self, format: &str) -> String {
        let text = format!("{format} {} {} {TOOL} {VERSION}", self.identity, self.created);
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&Digest::of(text.as_bytes()).as_bytes()[..16]);
        bytes[6] = bytes[6] & 0x0F | 0x80;
        bytes[8] = bytes[8] & 0x3F | 0x80;
        let hex = crate::oci::digest::to_hex(&bytes);
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }
}

/// Makes the items of one image.
struct ImageItems<'a> {
    layout: &'a Layout,
    image: &'a BundledImage,
    configs: &'a BTreeMap<Digest, Vec<u8>>,
    media_types: HashMap<Digest, MediaType>,
    /// The manifests that are attestations.
    attestations: HashMap<Digest, Digest>,
    /// The platforms that the index states.
    platforms: HashMap<Digest, Platform>,
}

impl<'a> ImageItems<'a> {
    fn new(layout: &'a Layout, image: &'a BundledImage, configs: &'a BTreeMap<Digest, Vec<u8>>) -> Self {
        let media_types = layout.media_types(image);
        let platforms = layout.platforms_of_children(image);
        let attestations = layout.attestations(image);
        Self { layout, image, configs, media_types, attestations, platforms }
    }

    /// Returns the item of the image, with its manifests as children if it is an index.
    fn root(&self) -> Item {
        let Self { layout, image, .. } = self;
        let blobs = image.manifests.iter().copied().chain(layout.blobs_of(image));
        let mut root = self.item(image.indexed.digest, blobs.map(|blob| blob.size).sum(), true);
        if image.manifests.len() > 1 {
            root.children = image.manifests[1..].iter().map(|manifest| self.child(*manifest)).collect();
            let Ok(platforms) = layout.platforms(image, |_| Ok::<_, Infallible>(None));
            root.platforms = platforms.iter().map(Platform::to_string).collect();
            // For example an index of attestations.
            if root.children.iter().all(|child| child.kind == ItemKind::Artifact) {
                root.kind = ItemKind::Artifact;
            }
        }
        root
    }

    fn child(&self, manifest: Blob) -> Item {
        let blobs = match self.layout.parsed.get(&manifest.digest) {
            Some(Manifest::Image { config, layers }) => {
                config.size + layers.iter().map(|layer| layer.size).sum::<u64>()
            }
            _ => 0,
        };
        self.item(manifest.digest, manifest.size + blobs, false)
    }

    fn item(&self, digest: Digest, size: u64, is_root: bool) -> Item {
        let reference = &self.image.indexed.reference;
        let platform = self.platform(digest);
        let kind = kind(self.layout.parsed.get(&digest), self.attestations.contains_key(&digest));
        // References of the same repository share the manifests of their indexes.
        let repository = reference.name();
        let id = if is_root { reference.to_string() } else { format!("manifest {repository}@{digest}") };
        let tag = reference.tag().filter(|_| is_root);
        Item {
            id: short_id(&id),
            kind,
            name: repository,
            version: Some(tag.map_or_else(|| digest.to_string(), str::to_owned)),
            digest,
            size,
            media_type: self.media_types.get(&digest).map(ToString::to_string).unwrap_or_default(),
            source: url_of(reference, "manifests", digest),
            purl: purl_of_image(reference, digest, platform.as_ref(), is_root),
            platforms: platform.iter().map(Platform::to_string).collect(),
            children: self.layers(digest),
        }
    }

    /// Returns the layers of a manifest, each once; none of an index.
    fn layers(&self, manifest: Digest) -> Vec<Item> {
        let Some(Manifest::Image { layers, .. }) = self.layout.parsed.get(&manifest) else {
            return Vec::new();
        };
        let mut seen = BTreeSet::new();
        let bundled = layers.iter().filter(|layer| seen.insert(layer.digest));
        bundled.map(|layer| self.layer(layer)).collect()
    }

    fn layer(&self, layer: &Descriptor) -> Item {
        let reference = &self.image.indexed.reference;
        let repository = reference.name();
        Item {
            id: short_id(&format!("layer {repository}@{}", layer.digest)),
            kind: ItemKind::Layer,
            name: repository,
            version: Some(layer.digest.to_string()),
            digest: layer.digest,
            size: layer.size,
            media_type: layer.media_type.to_string(),
            platforms: Vec::new(),
            source: url_of(reference, "blobs", layer.digest),
            purl: String::new(),
            children: Vec::new(),
        }
    }

    /// Returns the platform in the index, or else in the config; `None`: an index or artifact, or unknown.
    fn platform(&self, digest: Digest) -> Option<Platform> {
        let Some(Manifest::Image { config, .. }) = self.layout.parsed.get(&digest) else { return None };
        let of_config =
            || config_platform(&config.media_type, self.configs.get(&config.digest)?).ok().flatten();
        self.platforms.get(&digest).cloned().or_else(of_config)
    }
}

fn kind(manifest: Option<&Manifest>, is_attestation: bool) -> ItemKind {
    match manifest {
        // An attestation can have the config of an image.
        Some(Manifest::Image { config, .. }) if !has_platform(&config.media_type) || is_attestation => {
            ItemKind::Artifact
        }
        _ => ItemKind::Container,
    }
}

pub(crate) fn of_file(file: &IndexedFile) -> Item {
    let name = file.path.components().last().unwrap_or_default().to_owned();
    let checksum = format!("sha256:{}", file.digest.hex());
    let qualifiers = [("checksum", Some(checksum.as_str())), ("download_url", Some(file.url.as_str()))];
    Item {
        id: short_id(file.path.as_str()),
        kind: ItemKind::File,
        purl: purl("generic", &name, None, &qualifiers),
        name: file.path.to_string(),
        version: None,
        digest: file.digest,
        size: file.size,
        media_type: "application/octet-stream".to_owned(),
        platforms: Vec::new(),
        source: file.url.to_string(),
        children: Vec::new(),
    }
}

/// Returns 96 bits of the SHA-256 of `text`: enough to avoid collisions within a bundle.
fn short_id(text: &str) -> String {
    Digest::of(text.as_bytes()).hex()[..24].to_owned()
}

/// Returns the URL of a manifest or blob (distribution-spec, "Pulling manifests"). SPDX requires a URL as location. `kind`
/// is `manifests` or `blobs`.
fn url_of(reference: &Reference, kind: &str, digest: Digest) -> String {
    let host = match reference.host() {
        "docker.io" => "registry-1.docker.io",
        host => host,
    };
    format!("https://{host}/v2/{}/{kind}/{digest}", reference.repository())
}

/// Returns `pkg:oci/…` (purl specification, type `oci`): the name is the last component of the repository,
/// the version is the digest.
pub(crate) fn purl_of_image(
    reference: &Reference,
    digest: Digest,
    platform: Option<&Platform>,
    is_root: bool,
) -> String {
    let repository = reference.name();
    let name = reference.repository().rsplit('/').next().unwrap_or_default();
    let qualifiers = [
        ("arch", platform.map(Platform::architecture)),
        ("repository_url", Some(repository.as_str())),
        ("tag", reference.tag().filter(|_| is_root)),
    ];
    purl("oci", name, Some(&digest.to_string()), &qualifiers)
}

/// Returns a package URL. `qualifiers` must be sorted by name; empty ones are omitted, as the specification
/// requires.
fn purl(kind: &str, name: &str, version: Option<&str>, qualifiers: &[(&str, Option<&str>)]) -> String {
    let mut purl = format!("pkg:{kind}/{}", utf8_percent_encode(name, PURL));
    if let Some(version) = version {
        purl.push('@');
        purl.extend(utf8_percent_encode(version, PURL));
    }
    let present = qualifiers.iter().filter_map(|(key, value)| Some((key, (*value)?)));
    for (number, (key, value)) in present.filter(|(_, value)| !value.is_empty()).enumerate() {
        purl.push(if number == 0 { '?' } else { '&' });
        purl.extend([key, "="]);
        purl.extend(utf8_percent_encode(value, PURL_VALUE));
    }
    purl
}

/// Returns RFC 3339 in UTC without fractional seconds; `None`: the time cannot be expressed so.
pub(crate) fn timestamp(time: Option<OffsetDateTime>) -> Option<String> {
    let time = time?.checked_to_offset(UtcOffset::UTC)?.replace_nanosecond(0).ok()?;
    time.format(&Rfc3339).ok()
}
