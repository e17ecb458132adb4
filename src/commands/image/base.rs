//! [`BaseImage`]: the image of the bundle that another one is built on.

use std::collections::HashSet;

use serde_json::Value;

use crate::bundle::format::layout::{Blob, BundledImage, Layout};
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, MANIFEST_LIMIT, Manifest, config_platform};
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;

/// How many images an error names.
const SHOWN: usize = 10;

/// An image of the bundle, for one platform.
#[derive(Debug, Clone)]
pub(crate) struct BaseImage {
    /// What the bundle calls it.
    pub reference: Reference,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Its config.
    pub config: Descriptor,
    /// Its layers, in order; one blob may stand here twice.
    pub layers: Vec<Descriptor>,
}

/// Why there is nothing to build on.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The bundle has no such image.
    #[error("the bundle has no image `{wanted}` to build on: name one with `--base`, of {candidates}")]
    None {
        /// What was looked for.
        wanted: String,
        /// The images of the bundle.
        candidates: String,
    },
    /// The bundle has several such images.
    #[error("the bundle has several images `{wanted}` to build on: name one with `--base`, of {candidates}")]
    Several {
        /// What was looked for.
        wanted: String,
        /// Those images.
        candidates: String,
    },
    /// The image is not for this platform.
    #[error("`{reference}` is not for {wanted}: name a platform with `--platform`, of {candidates}")]
    Platform {
        /// The image.
        reference: String,
        /// What was looked for.
        wanted: String,
        /// What the bundle has of it.
        candidates: String,
    },
    /// The image is none that runs, or none that this program understands.
    #[error("`{0}` cannot be built on: {1}")]
    Unfit(String, String),
}

impl BaseImage {
    /// The image that `wanted` names; if it says nothing, the only one whose repository ends in `/name`. Of several
    /// platforms it takes `platform`; if that says nothing, linux/amd64 or the only one.
    pub(crate) fn choose(
        layout: &Layout,
        wanted: Option<&Reference>,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<Self, BaseError> {
        let image = choose_image(layout, wanted, name)?;
        let reference = image.indexed.reference.clone();
        let manifest = choose_manifest(layout, image, platform)?;
        let unfit = |why: &str| BaseError::Unfit(reference.to_string(), why.to_owned());
        let Some(Manifest::Image { config, layers }) = layout.parsed.get(&manifest) else {
            return Err(unfit("its index names no image for a platform"));
        };
        if !is_config(&config.media_type) {
            return Err(unfit("it is no container image"));
        }
        if config.size > MANIFEST_LIMIT {
            return Err(unfit("its config is too large"));
        }
        if let Some(layer) = layers.iter().find(|layer| oci_layer_type(&layer.media_type).is_none()) {
            return Err(unfit(&format!("it has a layer of type `{}`", layer.media_type)));
        }
        Ok(Self { reference, manifest, config: config.clone(), layers: layers.clone() })
    }

    /// The blobs that it consists of, each once, without its manifest.
    #[must_use]
    pub(crate) fn blobs(&self) -> Vec<Blob> {
        let mut seen = HashSet::new();
        let all = std::iter::once(&self.config).chain(&self.layers);
        all.filter(|blob| seen.insert(blob.digest)).map(Blob::from).collect()
    }

    /// Whether docker has to be of version 23 at least to load it.
    #[must_use]
    pub(crate) fn has_zstd(&self) -> bool {
        self.layers.iter().any(|layer| layer.media_type.ends_with("zstd"))
    }

    /// Its config, out of its checked `bytes`, and the platform that it states. An image without an index says only
    /// there what platform it is for.
    pub(crate) fn read_config(
        &self,
        bytes: &[u8],
        platform: Option<&Platform>,
    ) -> Result<(Value, Platform), BaseError> {
        let reference = self.reference.to_string();
        let unfit = |why: &str| BaseError::Unfit(reference.clone(), why.to_owned());
        let config: Value = serde_json::from_slice(bytes).map_err(|error| {
            BaseError::Unfit(reference.clone(), format!("its config cannot be read: {error}"))
        })?;
        let layers = config["rootfs"]["diff_ids"].as_array().map(Vec::len);
        if layers != Some(self.layers.len()) {
            return Err(unfit("its config and its manifest have different numbers of layers"));
        }
        if !matches!(config["config"], Value::Object(_) | Value::Null) {
            return Err(unfit("its config does not follow the specification"));
        }
        let Some(found) = config_platform(&self.config.media_type, bytes) else {
            return Err(unfit("its config does not say what platform it is for"));
        };
        match platform.filter(|wanted| !wanted.selects(&found)) {
            Some(wanted) => Err(BaseError::Platform {
                reference,
                wanted: format!("`{wanted}`"),
                candidates: format!("`{found}`"),
            }),
            None => Ok((config, found)),
        }
    }
}

/// The media type that OCI has for a layer; nothing for what is none, or one that lies elsewhere.
#[must_use]
pub(crate) fn oci_layer_type(media_type: &str) -> Option<&'static str> {
    Some(match media_type {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            "application/vnd.oci.image.layer.v1.tar"
        }
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            "application/vnd.oci.image.layer.v1.tar+gzip"
        }
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            "application/vnd.oci.image.layer.v1.tar+zstd"
        }
        _ => return None,
    })
}

fn is_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

fn choose_image<'a>(
    layout: &'a Layout,
    wanted: Option<&Reference>,
    name: &str,
) -> Result<&'a BundledImage, BaseError> {
    let fits = |image: &&BundledImage| {
        let found = &image.indexed.reference;
        match wanted {
            Some(wanted) => is_named(found, wanted),
            None => found.repository().rsplit('/').next() == Some(name),
        }
    };
    let found: Vec<&BundledImage> = layout.images.iter().filter(fits).collect();
    let wanted = wanted.map_or_else(|| format!("…/{name}"), ToString::to_string);
    match found[..] {
        [image] => Ok(image),
        [] => Err(BaseError::None { wanted, candidates: names(&layout.images.iter().collect::<Vec<_>>()) }),
        _ => Err(BaseError::Several { wanted, candidates: names(&found) }),
    }
}

/// Whether whoever says `wanted` may mean `found`: what they do not say does not matter.
fn is_named(found: &Reference, wanted: &Reference) -> bool {
    (found.host(), found.repository()) == (wanted.host(), wanted.repository())
        && wanted.tag().is_none_or(|tag| found.tag() == Some(tag))
        && wanted.digest().is_none_or(|digest| found.digest() == Some(digest))
}

fn choose_manifest(
    layout: &Layout,
    image: &BundledImage,
    platform: Option<&Platform>,
) -> Result<Digest, BaseError> {
    if let Some(Manifest::Image { .. }) = layout.parsed.get(&image.indexed.digest) {
        return Ok(image.indexed.digest);
    }
    let held: HashSet<Digest> = image.manifests.iter().map(|manifest| manifest.digest).collect();
    let mut found: Vec<(&Platform, Digest)> = Vec::new();
    for manifest in &image.manifests {
        let Some(Manifest::Index(children)) = layout.parsed.get(&manifest.digest) else { continue };
        for child in children.iter().filter(|child| held.contains(&child.digest) && child.attests.is_none()) {
            let is_image = matches!(layout.parsed.get(&child.digest), Some(Manifest::Image { .. }));
            found.extend(child.platform.iter().filter(|_| is_image).map(|platform| (platform, child.digest)));
        }
    }
    let default = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
    let wanted = platform.unwrap_or(&default);
    let exact = found.iter().find(|(platform, _)| *platform == wanted);
    let fits = exact.or_else(|| found.iter().find(|(platform, _)| wanted.selects(platform)));
    match (fits, &found[..]) {
        (Some((_, digest)), _) => Ok(*digest),
        (None, [(_, digest)]) if platform.is_none() => Ok(*digest),
        _ => Err(BaseError::Platform {
            reference: image.indexed.reference.to_string(),
            wanted: format!("`{wanted}`"),
            candidates: list(found.iter().map(|(platform, _)| platform.to_string())),
        }),
    }
}

fn names(images: &[&BundledImage]) -> String {
    list(images.iter().map(|image| image.indexed.reference.to_string()))
}

fn list(all: impl ExactSizeIterator<Item = String>) -> String {
    let more = all.len().saturating_sub(SHOWN);
    let shown: Vec<_> = all.take(SHOWN).map(|one| format!("`{one}`")).collect();
    match (shown.is_empty(), more) {
        (true, _) => "which it has none".into(),
        (_, 0) => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}
