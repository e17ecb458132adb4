//! Builds an image that serves a bundle: its nginx or registry image, plus layers with the content.
//!
//! The bundle is read once, and every byte is written once. The output is an OCI image layout and a `docker
//! save` archive in one tar file, for `docker load`, `podman load`, `ctr images import` and skopeo. Layers
//! are not compressed, because most of their content already is.

pub(crate) mod archive;
pub(crate) mod base;
pub(crate) mod documents;
pub(crate) mod entry;
pub(crate) mod error;
pub(crate) mod layers;
pub(crate) mod name;
pub(crate) mod stream;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::base::event::{Event, Report};
use crate::base::units::as_seconds;
use crate::bundle::format::layout::{Blob, Layout, Totals};
use crate::bundle::format::{INDEX_JSON, OCI_LAYOUT, OCI_LAYOUT_CONTENT};
use crate::bundle::read::reader::{BundleReader, Contents};
use crate::commands::image::archive::ImageArchive;
use crate::commands::image::base::{BaseImage, ServerCommand};
use crate::commands::image::documents::{Additions, Documents};
use crate::commands::image::error::ImageError;
use crate::commands::image::layers::{HTML, LayerPlan, Limits, NGINX_CONF, STORAGE};
use crate::commands::image::name::Name;
use crate::commands::image::stream::{LayerSlots, Stream};
use crate::conf::server_command::is_official;
use crate::oci::digest::Digest;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::oci::template::RepositoryTemplate;

/// Maximum number of layers of an image; docker supports 125.
const LAYER_LIMIT: usize = 120;
/// The nginx configuration of an image that serves files.
const CONF: &[u8] = include_bytes!("image/default.conf");

/// The configuration of a registry whose own one is unknown.
const REGISTRY_CONF: &[u8] = include_bytes!("image/registry.yml");

/// The kind of image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// nginx with the files, on port 80.
    Files,
    /// A registry with the images, on port 5000. Each template, of at least one, adds a repository per image.
    Registry(Vec<RepositoryTemplate>),
}

/// The options of [`build`].
#[derive(Debug, Clone)]
pub(crate) struct ImageOptions {
    /// The archive to write.
    pub output: PathBuf,
    pub kind: Kind,
    /// The base image in the bundle. `None`: the only image named `nginx` or `registry`.
    pub base: Option<Reference>,
    /// The platform of the base image. `None`: linux/amd64, or the only one in the bundle.
    pub platform: Option<Platform>,
    /// The names of the image, at least one.
    pub names: Vec<Name>,
    /// Maximum size of a layer in bytes; a layer of one blob can be larger.
    pub layer_size: u64,
}

/// The result of [`build`].
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageSummary {
    pub names: Vec<String>,
    /// The digest of the manifest.
    pub digest: Digest,
    /// The digest of the config, which is the image ID in docker.
    pub id: Digest,
    /// The reference of the base image.
    pub base: String,
    pub platform: String,
    /// Number of files that the image serves.
    pub files: usize,
    /// Number of images that the image serves.
    pub images: usize,
    /// Number of layers added to the base image.
    pub layers: usize,
    /// Size of the archive in bytes.
    pub size: u64,
    #[cfg_attr(test, schemars(with = "f64"))]
    #[serde(serialize_with = "as_seconds", rename = "seconds")]
    pub time: Duration,
}

/// Builds an image of the bundle that `reader` reads. `options.output` appears when the archive is complete
/// and synced.
pub(crate) fn build(
    mut reader: BundleReader,
    options: &ImageOptions,
    report: &dyn Report,
) -> Result<ImageSummary, ImageError> {
    let start = Instant::now();
    let contents = reader.contents()?;
    refuse_delta(&contents.layout)?;
    let platform = options.platform.as_ref();
    let base_name = match options.kind {
        Kind::Files => "nginx",
        Kind::Registry(_) => "registry",
    };
    let mut base = BaseImage::choose(&contents.layout, options.base.as_ref(), base_name, platform)?;
    if !is_official(&base.reference, base_name) {
        base.command = match options.kind {
            Kind::Files => ServerCommand::Nginx,
            Kind::Registry(_) => ServerCommand::Registry(layers::REGISTRY_CONFIG),
        };
    }
    let plan = plan(&contents, &base, options)?;
    warn(&base, report);

    let mut archive = ImageArchive::create(&options.output, report)?;
    let slots = LayerSlots::reserve(&mut archive, &base, &plan);
    archive.allocate()?;
    let stream = Stream { contents: &contents, plan: &plan, base: &base, platform, slots: &slots, report };
    let written = stream.run(&mut reader, &archive)?;
    report.event(&Event::Stage { name: "finishing", bytes: None, objects: None });

    let additions = additions(&contents, &plan, &written.digests, options);
    let documents = Documents::new(&base, written.config, &additions);
    let id = archive.append_blob(&documents.config)?.digest;
    let digest = archive.append_blob(&documents.manifest)?.digest;
    archive.append(INDEX_JSON, &documents.index)?;
    archive.append("manifest.json", &documents.docker)?;
    archive.append(OCI_LAYOUT, OCI_LAYOUT_CONTENT)?;
    let size = archive.finish()?;

    let is_registry = options.kind != Kind::Files;
    Ok(ImageSummary {
        names: options.names.iter().map(ToString::to_string).collect(),
        digest,
        id,
        base: base.reference.to_string(),
        platform: written.platform.to_string(),
        files: if is_registry { 0 } else { contents.layout.files.len() },
        images: if is_registry { contents.layout.images.len() } else { 0 },
        layers: plan.layers.len(),
        size,
        time: start.elapsed(),
    })
}

/// Returns an error if the bundle is a delta: an image needs every blob.
fn refuse_delta(layout: &Layout) -> Result<(), ImageError> {
    let Totals { blobs, bytes } = layout.external_totals();
    if blobs == 0 {
        return Ok(());
    }
    let digests: Vec<Digest> = layout.external.iter().map(|blob| blob.digest).collect();
    Err(ImageError::Delta { blobs, bytes, owners: layout.owners_text(&digests) })
}

fn plan(contents: &Contents, base: &BaseImage, options: &ImageOptions) -> Result<LayerPlan, ImageError> {
    // Every plan has one more layer than it has runs of blobs.
    let count = LAYER_LIMIT.saturating_sub(base.layers.len() + 1);
    let limits = Limits { size: options.layer_size, count };
    match &options.kind {
        Kind::Files if contents.layout.files.is_empty() => Err(ImageError::NoFiles),
        Kind::Files => Ok(layers::files_plan(contents, CONF, limits)),
        Kind::Registry(templates) => {
            let conf = (base.command != ServerCommand::Official).then_some(REGISTRY_CONF);
            Ok(layers::images_plan(contents, templates, conf, limits)?)
        }
    }
}

/// Warns about limitations of the image.
fn warn(base: &BaseImage, report: &dyn Report) {
    if base.has_zstd() {
        let reference = &base.reference;
        let message = format!("`{reference}` has zstd layers, which require Docker 23 or later");
        report.event(&Event::Warning { message });
    }
}

fn additions<'a>(
    contents: &'a Contents,
    plan: &'a LayerPlan,
    digests: &[Digest],
    options: &'a ImageOptions,
) -> Additions<'a> {
    let layers = plan.layers.iter().zip(digests);
    let mut layers: Vec<_> = layers
        .map(|(layer, digest)| (Blob { digest: *digest, size: layer.size() }, layer.title.as_str()))
        .collect();
    if plan.first_is_top {
        layers.rotate_left(1);
    }
    let (port, directories) = match options.kind {
        Kind::Files => (80, &[HTML, NGINX_CONF][..]),
        Kind::Registry(_) => (5000, &[STORAGE][..]),
    };
    Additions {
        names: &options.names,
        description: description(contents, options),
        identity: contents.identity,
        about: &contents.about,
        layers,
        port,
        directories,
    }
}

fn description(contents: &Contents, options: &ImageOptions) -> String {
    let layout = &contents.layout;
    let content = match options.kind {
        Kind::Files => format!("{} files", layout.files.len()),
        Kind::Registry(_) => format!("{} images", layout.images.len()),
    };
    match &contents.about.title {
        Some(title) => format!("{title}: {content}"),
        None => format!("{content} of a bundle"),
    }
}
