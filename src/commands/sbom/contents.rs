//! [`BomContents`]: what a document lists, whatever its format.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use crate::bundle::format::index::IndexedFile;
use crate::bundle::format::layout::{BundledImage, Layout};
use crate::bundle::read::reader::Contents;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Manifest, config_platform, has_platform};
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;

/// The name of the program, as documents have it.
pub(crate) const TOOL: &str = "airbundle";

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a bundle without a title is called.
pub(crate) const UNTITLED: &str = "airbundle bundle";

/// What package URLs leave as it is (purl specification, "Character encoding").
pub(crate) const PURL: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');

/// In the values of qualifiers, this, too.
pub(crate) const PURL_VALUE: &AsciiSet = &PURL.remove(b'/');

/// What both languages say, each in its way.
pub(crate) struct BomContents {
    pub(crate) identity: Digest,
    pub(crate) name: String,
    /// In UTC, whole seconds, as SPDX wants it.
    pub(crate) created: String,
    pub(crate) images: Vec<Item>,
    pub(crate) files: Vec<Item>,
}

/// An image, one of its manifests, or a file.
pub(crate) struct Item {
    /// Made of what it is, and the same in the next bundle that has it.
    pub(crate) id: String,
    pub(crate) kind: ItemKind,
    pub(crate) name: String,
    pub(crate) version: Option<String>,
    pub(crate) digest: Digest,
    /// Bytes: of a file its own, of an image those of all that it names.
    pub(crate) size: u64,
    pub(crate) media_type: String,
    pub(crate) platforms: Vec<String>,
    /// Where it came from.
    pub(crate) source: String,
    pub(crate) purl: String,
    /// What an index has of itself in the bundle.
    pub(crate) children: Vec<Item>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ItemKind {
    /// A container image, or an index of some.
    Container,
    /// Something else that a registry serves: a chart, a signature.
    Artifact,
    File,
}

impl BomContents {
    pub(crate) fn of(
        contents: &Contents,
        configs: &BTreeMap<Digest, Vec<u8>>,
        date: Option<OffsetDateTime>,
    ) -> Self {
        let said =
            contents.about.created.as_deref().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        let layout = &contents.layout;
        Self {
            identity: contents.identity,
            name: contents.about.title.clone().unwrap_or_else(|| UNTITLED.to_owned()),
            created: timestamp(said)
                .or_else(|| timestamp(date))
                .unwrap_or_else(|| "1970-01-01T00:00:00Z".into()),
            images: layout.images.iter().map(|image| of_image(layout, image, configs)).collect(),
            files: layout.files.iter().map(of_file).collect(),
        }
    }

    /// A UUID (RFC 9562, version 8) for the document in this `language`: of what it says, and who says it.
    pub(crate) fn uuid(&self, language: &str) -> String {
        let text = format!("{language} {} {} {TOOL} {VERSION}", self.identity, self.created);
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&Digest::of(text.as_bytes()).as_bytes()[..16]);
        bytes[6] = bytes[6] & 0x0F | 0x80;
        bytes[8] = bytes[8] & 0x3F | 0x80;
        let hex = crate::oci::digest::to_hex(&bytes);
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }
}

pub(crate) fn of_image(layout: &Layout, image: &BundledImage, configs: &BTreeMap<Digest, Vec<u8>>) -> Item {
    let reference = &image.indexed.reference;
    let media_types = layout.media_types(image);
    let platforms = layout.platforms_of_children(image);
    let part = |digest: Digest, size: u64, is_root: bool| {
        let manifest = layout.parsed.get(&digest);
        let platform = match manifest {
            Some(Manifest::Image { config, .. }) => {
                let of_config = || config_platform(&config.media_type, configs.get(&config.digest)?);
                platforms.get(&digest).cloned().or_else(of_config)
            }
            _ => None,
        };
        let kind = kind(manifest, platform.as_ref());
        let platform = platform.filter(|platform| platform.os != "unknown");
        // Several references of a repository share what their indexes name.
        let repository = format!("{}/{}", reference.host(), reference.repository());
        let id = if is_root { reference.to_string() } else { format!("manifest {repository}@{digest}") };
        Item {
            id: short_id(&id),
            kind,
            name: repository,
            version: Some(
                reference.tag().filter(|_| is_root).map_or_else(|| digest.to_string(), str::to_owned),
            ),
            digest,
            size,
            media_type: media_types.get(&digest).cloned().unwrap_or_default(),
            source: url_of_manifest(reference, digest),
            purl: purl_of_image(reference, digest, platform.as_ref(), is_root),
            platforms: platform.iter().map(Platform::to_string).collect(),
            children: Vec::new(),
        }
    };
    let all: u64 = image.manifests.iter().copied().chain(layout.blobs_of(image)).map(|blob| blob.size).sum();
    let mut root = part(image.indexed.digest, all, true);
    root.children = image.manifests[1..]
        .iter()
        .map(|manifest| {
            let blobs: u64 = match layout.parsed.get(&manifest.digest) {
                Some(Manifest::Image { config, layers }) => {
                    config.size + layers.iter().map(|layer| layer.size).sum::<u64>()
                }
                _ => 0,
            };
            part(manifest.digest, manifest.size + blobs, false)
        })
        .collect();
    if !root.children.is_empty() {
        root.platforms = layout.platforms(image, |_| None);
        // An index of nothing but attestations and the like is none of images.
        if root.children.iter().all(|child| child.kind == ItemKind::Artifact) {
            root.kind = ItemKind::Artifact;
        }
    }
    root
}

pub(crate) fn kind(manifest: Option<&Manifest>, platform: Option<&Platform>) -> ItemKind {
    match manifest {
        // The config of an image may be elsewhere; its platform is unknown then, and an attestation says that it is.
        Some(Manifest::Image { config, .. })
            if !has_platform(&config.media_type)
                || platform.is_some_and(|platform| platform.os == "unknown") =>
        {
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
        source: file.url.clone(),
        children: Vec::new(),
    }
}

/// As long as two of a bundle are never the same.
pub(crate) fn short_id(text: &str) -> String {
    Digest::of(text.as_bytes()).hex()[..24].to_owned()
}

/// Where the registry has it (distribution-spec, "Pulling manifests"): SPDX takes no location that is no URL.
pub(crate) fn url_of_manifest(reference: &Reference, digest: Digest) -> String {
    let host = match reference.host() {
        "docker.io" => "registry-1.docker.io",
        host => host,
    };
    format!("https://{host}/v2/{}/manifests/{digest}", reference.repository())
}

/// `pkg:oci/…` (purl specification, type `oci`): the name is the last part of the repository, the version the digest.
pub(crate) fn purl_of_image(
    reference: &Reference,
    digest: Digest,
    platform: Option<&Platform>,
    is_root: bool,
) -> String {
    let repository = format!("{}/{}", reference.host(), reference.repository());
    let name = reference.repository().rsplit('/').next().unwrap_or_default();
    let qualifiers = [
        ("arch", platform.map(|platform| platform.architecture.as_str())),
        ("repository_url", Some(repository.as_str())),
        ("tag", reference.tag().filter(|_| is_root)),
    ];
    purl("oci", name, Some(&digest.to_string()), &qualifiers)
}

/// A package URL. The qualifiers are sorted by name; those that are empty are left out, as the specification asks.
pub(crate) fn purl(
    kind: &str,
    name: &str,
    version: Option<&str>,
    qualifiers: &[(&str, Option<&str>)],
) -> String {
    let mut purl = format!("pkg:{kind}/{}", utf8_percent_encode(name, PURL));
    if let Some(version) = version {
        purl.push('@');
        purl.extend(utf8_percent_encode(version, PURL));
    }
    let given = qualifiers.iter().filter_map(|(key, value)| Some((key, (*value)?)));
    for (number, (key, value)) in given.filter(|(_, value)| !value.is_empty()).enumerate() {
        purl.push(if number == 0 { '?' } else { '&' });
        purl.extend([key, "="]);
        purl.extend(utf8_percent_encode(value, PURL_VALUE));
    }
    purl
}

/// Nothing for a time that has no such form.
pub(crate) fn timestamp(time: Option<OffsetDateTime>) -> Option<String> {
    let time = time?.checked_to_offset(UtcOffset::UTC)?.replace_nanosecond(0).ok()?;
    time.format(&Rfc3339).ok()
}
