//! [`Listing`]: the images and files of a bundle, as `unbundle ls` prints them.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use serde::Serialize;

use crate::bundle::format::layout::{Blob, BundledImage, Layout, Totals};
use crate::bundle::format::release::Sequence;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::reader::BundleReader;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, MANIFEST_LIMIT, Manifest, config_platform};
use crate::signature::policy::Signed;

/// The output of `ls --json`.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct Listing {
    /// Digest of `index.json`, which identifies the bundle.
    identity: Digest,
    /// Title of the bundle (`pack --title`).
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    /// Date of the bundle (`SOURCE_DATE_EPOCH`), in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    /// Name of the series of bundles (`pack --name`).
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Sequence number in its series (`pack --sequence`).
    #[cfg_attr(test, schemars(with = "Option<u64>"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<Sequence>,
    /// Time after which the bundle must not be used (`pack --expires`), in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    /// Signature of the bundle.
    #[serde(rename = "signature", skip_serializing_if = "Option::is_none")]
    pub(super) signed: Option<Signed>,
    /// Images, in the order of the bundle.
    pub(super) images: Vec<DetailedImage>,
    /// Files, in the order of the bundle.
    pub(super) files: Vec<ListedFile>,
    /// Blobs that a delta omits, because the site has them.
    #[serde(rename = "elsewhere", skip_serializing_if = "Vec::is_empty")]
    pub(super) external: Vec<Blob>,
    /// The blobs in the bundle.
    #[serde(skip)]
    pub(super) contained: Totals,
}

/// An image with its manifests and blobs.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct DetailedImage {
    #[serde(flatten)]
    pub(super) image: ListedImage,
    /// Platforms selected in the list or with `--platform`; omitted if all were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    requested_platforms: Vec<String>,
    /// The manifest, or the index and its manifests.
    manifests: Vec<ListedManifest>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
struct ListedManifest {
    /// Media type of the manifest.
    media_type: String,
    /// Digest of the manifest.
    digest: Digest,
    /// Size of the manifest in bytes.
    size: u64,
    /// Platform, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    /// Digest of the manifest that this attestation describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    attests: Option<Digest>,
    /// Config and layers; empty for an index.
    blobs: Vec<ListedBlob>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
struct ListedBlob {
    /// Media type of the blob.
    media_type: String,
    /// Digest of the blob.
    digest: Digest,
    /// Size in bytes.
    size: u64,
}

/// An image of a bundle or a site.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct ListedImage {
    /// Reference in the list.
    pub(super) reference: String,
    /// Digest of the manifest or index.
    pub(super) digest: Digest,
    /// Media type of the manifest or index.
    pub(super) media_type: String,
    /// Included platforms. Empty for an artifact; `?` if a delta omits the config.
    pub(super) platforms: Vec<String>,
    /// Size of its manifests, configs and layers in bytes, shared blobs included.
    pub(super) size: u64,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct ListedFile {
    /// Path on the site.
    pub(super) path: String,
    /// URL in the list.
    url: String,
    /// Size in bytes.
    pub(super) size: u64,
    /// Digest of the file.
    pub(super) digest: Digest,
}

impl Listing {
    /// Reads the documents and image configs of a bundle.
    pub(super) fn read(mut reader: BundleReader) -> Result<Self, ReadError> {
        let contents = reader.contents()?;
        let layout = &contents.layout;
        let configs = configs(&mut reader, layout)?;
        let files = layout.files.iter().map(|file| ListedFile {
            path: file.path.to_string(),
            url: file.url.to_string(),
            size: file.size,
            digest: file.digest,
        });
        Ok(Self {
            identity: contents.identity,
            title: contents.about.title.as_ref().map(ToString::to_string),
            created: contents.about.created.as_ref().map(ToString::to_string),
            name: contents.about.release.as_ref().map(|release| release.name.to_string()),
            sequence: contents.about.release.as_ref().map(|release| release.sequence),
            expires: contents.about.expires.map(|expires| expires.to_string()),
            signed: contents.signed.clone(),
            images: layout.images.iter().map(|image| DetailedImage::of(image, layout, &configs)).collect(),
            files: files.collect(),
            external: layout.external.clone(),
            contained: Totals {
                blobs: layout.manifests.len() + layout.blobs.len(),
                bytes: layout.total_size(),
            },
        })
    }
}

impl DetailedImage {
    fn of(image: &BundledImage, layout: &Layout, configs: &BTreeMap<Digest, Vec<u8>>) -> Self {
        let is_external = |digest| layout.external.iter().any(|blob| blob.digest == digest);
        let platforms = match single_config(image, layout) {
            Some(config) if is_external(config.digest) => vec!["?".to_owned()],
            _ => {
                let config = |digest| Ok::<_, Infallible>(configs.get(&digest).cloned());
                let Ok(platforms) = layout.platforms(image, config);
                platforms.iter().map(ToString::to_string).collect()
            }
        };
        let blobs = image.manifests.iter().copied().chain(layout.blobs_of(image));
        Self {
            image: ListedImage {
                reference: image.indexed.reference.to_string(),
                digest: image.indexed.digest,
                media_type: image.indexed.media_type.to_string(),
                platforms,
                size: blobs.map(|blob| blob.size).sum(),
            },
            requested_platforms: image.indexed.platforms.iter().map(ToString::to_string).collect(),
            manifests: manifests(layout, image, configs),
        }
    }
}

fn manifests(
    layout: &Layout,
    image: &BundledImage,
    configs: &BTreeMap<Digest, Vec<u8>>,
) -> Vec<ListedManifest> {
    let media_types = layout.media_types(image);
    let platforms = layout.platforms_of_children(image);
    let attests = layout.attestations(image);
    let listed = |manifest: &Blob| {
        let (mut blobs, mut platform) = (Vec::new(), platforms.get(&manifest.digest).cloned());
        if let Some(Manifest::Image { config, layers }) = layout.parsed.get(&manifest.digest) {
            blobs = std::iter::once(config).chain(layers).map(ListedBlob::of).collect();
            // `configs` has refused invalid ones.
            let of_config =
                || config_platform(&config.media_type, configs.get(&config.digest)?).ok().flatten();
            platform = platform.or_else(of_config);
        }
        ListedManifest {
            media_type: media_types.get(&manifest.digest).map(ToString::to_string).unwrap_or_default(),
            digest: manifest.digest,
            size: manifest.size,
            platform: platform.map(|platform| platform.to_string()),
            attests: attests.get(&manifest.digest).copied(),
            blobs,
        }
    };
    image.manifests.iter().map(listed).collect()
}

impl ListedBlob {
    fn of(descriptor: &Descriptor) -> Self {
        let Descriptor { media_type, digest, size, .. } = descriptor;
        Self { media_type: media_type.to_string(), digest: *digest, size: *size }
    }
}

/// Returns the config of an image without an index. Only the config contains the platform of such an image.
fn single_config<'a>(image: &BundledImage, layout: &'a Layout) -> Option<&'a Descriptor> {
    match layout.parsed.get(&image.indexed.digest) {
        Some(Manifest::Image { config, .. }) if config.size <= MANIFEST_LIMIT => Some(config),
        _ => None,
    }
}

/// Reads the configs that state platforms, and fails if that of an image without an index has an invalid one. The
/// result has no configs that a delta omits.
pub(super) fn configs(
    reader: &mut BundleReader,
    layout: &Layout,
) -> Result<BTreeMap<Digest, Vec<u8>>, ReadError> {
    let single = layout.images.iter().filter_map(|image| single_config(image, layout));
    let deciding = layout.images.iter().flat_map(|image| layout.deciding_configs(image));
    let all = single.chain(deciding.map(|(_, config)| config));
    let mut pending: BTreeSet<Digest> = all.map(|config| config.digest).collect();
    layout.external.iter().for_each(|blob| _ = pending.remove(&blob.digest));
    let mut configs = BTreeMap::new();
    reader.narrow(layout.ranges(|digest| pending.contains(&digest)));
    for blob in &layout.blobs {
        // Configs precede layers in a bundle, so that this loop ends early.
        if pending.is_empty() {
            break;
        }
        if !pending.remove(&blob.digest) {
            reader.skip(blob)?;
            continue;
        }
        let mut bytes = Vec::new();
        reader.blob::<ReadError>(blob, |slice| {
            bytes.extend_from_slice(&slice);
            Ok(())
        })?;
        if Digest::of(&bytes) != blob.digest {
            return Err(ReadError::Digest(blob.digest));
        }
        configs.insert(blob.digest, bytes);
    }
    layout.check_platforms(|digest| configs.get(&digest).cloned())?;
    Ok(configs)
}
