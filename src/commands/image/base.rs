//! [`BaseImage`]: the image of the bundle to which layers are added.

use std::collections::HashSet;

use serde_json::Value;

use crate::base::text::listed;
use crate::bundle::format::layout::{Blob, BundledImage, Layout};
use crate::conf::server_command::{is_override, of_nginx, of_registry};
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, MANIFEST_LIMIT, Manifest, config_platform};
use crate::oci::parsed_text::quoted;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;

/// The expected commands, in messages.
const NGINX: &str = "`nginx` with `/etc/nginx/nginx.conf`: use docker.io/library/nginx";
const REGISTRY: &str = "`registry serve CONFIG`: use docker.io/library/registry";

/// Maximum number of candidates in an error.
const CANDIDATES: usize = 10;

/// An image of the bundle, for one platform.
#[derive(Debug, Clone)]
pub(crate) struct BaseImage {
    /// The reference in the bundle.
    pub reference: Reference,
    /// The digest of the platform's manifest.
    pub manifest: Digest,
    pub config: Descriptor,
    /// The layers, in order; a blob can occur twice.
    pub layers: Vec<Descriptor>,
    /// The command of its server.
    pub command: ServerCommand,
}

/// The command of the server in a base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerCommand {
    /// That of the official image, with its configuration.
    Official,
    /// It must be that of nginx with its usual configuration.
    Nginx,
    /// It must be that of a registry, and gets the path of a configuration file.
    Registry(&'static str),
}

/// The reason why there is no base image.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// No image matches.
    #[error(
        "the bundle has no image `{requested}`: choose the base image with `--base` (available: {candidates})"
    )]
    None {
        /// The requested reference, or the default name.
        requested: String,
        /// The images of the bundle.
        candidates: String,
    },
    /// Several images match.
    #[error(
        "several images of the bundle match `{requested}`: choose the base image with `--base` (available: \
         {candidates})"
    )]
    Several {
        /// The requested reference, or the default name.
        requested: String,
        /// The matching images.
        candidates: String,
    },
    /// The image is not for the platform.
    #[error(
        "base image `{reference}` is not available for `{requested}`: choose a platform with `--platform` (available: \
         {candidates})"
    )]
    Platform {
        reference: String,
        requested: Platform,
        /// The platforms of the image in the bundle.
        candidates: String,
    },
    /// The image cannot run, or is invalid.
    #[error("cannot build on `{reference}`: {reason}")]
    Unsuitable { reference: String, reason: String },
}

impl BaseImage {
    /// Returns the image `requested`, by default the only image whose last path component is `name`. Of a
    /// multi-platform image, chooses `platform`, by default linux/amd64 or the only platform.
    pub(crate) fn choose(
        layout: &Layout,
        requested: Option<&Reference>,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<Self, BaseError> {
        let image = choose_image(layout, requested, name)?;
        let reference = image.indexed.reference.clone();
        let manifest = choose_manifest(layout, image, platform)?;
        let unsuitable = |reason| BaseError::Unsuitable { reference: reference.to_string(), reason };
        let Some(Manifest::Image { config, layers }) = layout.parsed.get(&manifest) else {
            return Err(unsuitable("its index has no image for a platform".into()));
        };
        if !is_config_type(&config.media_type) {
            return Err(unsuitable(format!("unsupported media type `{}` of its config", config.media_type)));
        }
        if config.size > MANIFEST_LIMIT {
            return Err(unsuitable(format!("its config is larger than {MANIFEST_LIMIT} bytes")));
        }
        if let Some(layer) = layers.iter().find(|layer| oci_layer_type(&layer.media_type).is_none()) {
            return Err(unsuitable(format!("unsupported media type `{}` of a layer", layer.media_type)));
        }
        let (config, layers) = (config.clone(), layers.clone());
        Ok(Self { reference, manifest, config, layers, command: ServerCommand::Official })
    }

    /// Returns the config and the layers, each once.
    #[must_use]
    pub(crate) fn blobs(&self) -> Vec<Blob> {
        let mut seen = HashSet::new();
        let all = std::iter::once(&self.config).chain(&self.layers);
        all.filter(|blob| seen.insert(blob.digest)).map(Blob::from).collect()
    }

    /// True if a layer is zstd-compressed, which requires Docker 23 or later.
    #[must_use]
    pub(crate) fn has_zstd(&self) -> bool {
        self.layers.iter().any(|layer| layer.media_type.ends_with("zstd"))
    }

    /// Parses the verified `bytes` of the config. Returns the config and its platform, which must match
    /// `platform`. The config is the only source of the platform of an image without an index.
    pub(crate) fn parse_config(
        &self,
        bytes: &[u8],
        platform: Option<&Platform>,
    ) -> Result<(Value, Platform), BaseError> {
        let reference = self.reference.to_string();
        let unsuitable = |reason: String| BaseError::Unsuitable { reference: reference.clone(), reason };
        let config: Value = serde_json::from_slice(bytes)
            .map_err(|error| unsuitable(format!("cannot parse its config: {error}")))?;
        let layers = config["rootfs"]["diff_ids"].as_array().map(Vec::len);
        if layers != Some(self.layers.len()) {
            return Err(unsuitable("its config and its manifest have different numbers of layers".into()));
        }
        if !matches!(config["config"], Value::Object(_) | Value::Null) {
            return Err(unsuitable("`config` in its config is not an object".into()));
        }
        let actual = config_platform(&self.config.media_type, bytes)
            .map_err(|error| unsuitable(format!("its config has an {error}")))?;
        let Some(actual) = actual else {
            return Err(unsuitable("its config has no platform".into()));
        };
        if let Some(requested) = platform.filter(|requested| !requested.selects(&actual)) {
            return Err(BaseError::Platform {
                reference,
                requested: requested.clone(),
                candidates: format!("`{actual}`"),
            });
        }
        let mut config = config;
        match self.command {
            ServerCommand::Official => {}
            ServerCommand::Nginx => {
                of_nginx(&config).ok_or_else(|| unsuitable(unknown_command(&config, NGINX)))?;
            }
            ServerCommand::Registry(path) => set_command(&mut config, path).map_err(unsuitable)?,
        }
        Ok((config, actual))
    }
}

/// Lets the registry of an image start with the configuration file `path`. Fails if its command is unknown.
fn set_command(config: &mut Value, path: &str) -> Result<(), String> {
    let entrypoint = of_registry(config).ok_or_else(|| unknown_command(config, REGISTRY))?;
    let settings = &mut config["config"];
    settings["Entrypoint"] = entrypoint.into();
    settings["Cmd"] = vec![path].into();
    if let Some(variables) = settings["Env"].as_array_mut() {
        variables.retain(|variable| !variable.as_str().is_some_and(is_override));
    }
    Ok(())
}

/// Returns why an image with another command than `expected` cannot be used.
fn unknown_command(config: &Value, expected: &str) -> String {
    let command = |key: &str| config["config"][key].to_string();
    let (program, arguments) = (quoted(&command("Entrypoint")), quoted(&command("Cmd")));
    format!("its entrypoint {program} and command {arguments} are not {expected}")
}

/// Returns the OCI media type of a layer. `None`: not a layer, or a non-distributable one.
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

fn is_config_type(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

fn choose_image<'a>(
    layout: &'a Layout,
    requested: Option<&Reference>,
    name: &str,
) -> Result<&'a BundledImage, BaseError> {
    let is_match = |image: &&BundledImage| {
        let reference = &image.indexed.reference;
        match requested {
            Some(requested) => is_selected(reference, requested),
            None => reference.repository().rsplit('/').next() == Some(name),
        }
    };
    let matches: Vec<&BundledImage> = layout.images.iter().filter(is_match).collect();
    let requested = requested.map_or_else(|| format!("…/{name}"), ToString::to_string);
    match matches[..] {
        [image] => Ok(image),
        [] => {
            let candidates = names(&layout.images.iter().collect::<Vec<_>>());
            Err(BaseError::None { requested, candidates })
        }
        _ => Err(BaseError::Several { requested, candidates: names(&matches) }),
    }
}

/// True if `requested` selects `reference`: a tag or digest that it lacks matches any.
fn is_selected(reference: &Reference, requested: &Reference) -> bool {
    (reference.host(), reference.repository()) == (requested.host(), requested.repository())
        && requested.tag().is_none_or(|tag| reference.tag() == Some(tag))
        && requested.digest().is_none_or(|digest| reference.digest() == Some(digest))
}

fn choose_manifest(
    layout: &Layout,
    image: &BundledImage,
    platform: Option<&Platform>,
) -> Result<Digest, BaseError> {
    if let Some(Manifest::Image { .. }) = layout.parsed.get(&image.indexed.digest) {
        return Ok(image.indexed.digest);
    }
    let available = platforms(layout, image);
    let default = Platform::linux_amd64();
    let requested = platform.unwrap_or(&default);
    let exact = available.iter().find(|(platform, _)| *platform == requested);
    let selected = exact.or_else(|| available.iter().find(|(platform, _)| requested.selects(platform)));
    match (selected, &available[..]) {
        (Some((_, digest)), _) => Ok(*digest),
        (None, [(_, digest)]) if platform.is_none() => Ok(*digest),
        _ => Err(BaseError::Platform {
            reference: image.indexed.reference.to_string(),
            requested: requested.clone(),
            candidates: list(available.iter().map(|(platform, _)| platform.to_string())),
        }),
    }
}

/// Returns the platforms of an index and their manifests, as far as the bundle has them.
fn platforms<'a>(layout: &'a Layout, image: &BundledImage) -> Vec<(&'a Platform, Digest)> {
    let bundled: HashSet<Digest> = image.manifests.iter().map(|manifest| manifest.digest).collect();
    let mut platforms = Vec::new();
    for manifest in &image.manifests {
        let Some(Manifest::Index(children)) = layout.parsed.get(&manifest.digest) else { continue };
        for child in
            children.iter().filter(|child| bundled.contains(&child.digest) && child.attests.is_none())
        {
            let is_image = matches!(layout.parsed.get(&child.digest), Some(Manifest::Image { .. }));
            let platform = child.platform.iter().filter(|_| is_image);
            platforms.extend(platform.map(|platform| (platform, child.digest)));
        }
    }
    platforms
}

fn names(images: &[&BundledImage]) -> String {
    list(images.iter().map(|image| image.indexed.reference.to_string()))
}

fn list(all: impl ExactSizeIterator<Item = String>) -> String {
    if all.len() == 0 {
        return "none".into();
    }
    listed(all.map(|one| format!("`{one}`")), CANDIDATES)
}
