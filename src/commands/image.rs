//! An image out of a bundle: a web server or a registry of the bundle, and what it serves in layers on top of it.
//!
//! The bundle is read once, and the disk sees every byte once. What comes out is an OCI image layout and docker's own
//! archive in one tar: `docker load`, `podman load`, `ctr images import` and skopeo take it. The layers are not
//! compressed, as most of what is in them is already.

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
use crate::commands::image::base::BaseImage;
use crate::commands::image::documents::{Additions, Documents};
use crate::commands::image::error::ImageError;
use crate::commands::image::layers::{HTML, LayerPlan, Limits, NGINX_CONF, STORAGE};
use crate::commands::image::name::Name;
use crate::commands::image::stream::{Slots, Stream};
use crate::oci::digest::Digest;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::oci::template::RepositoryTemplate;

/// The most layers that an image may have; docker takes 125.
const LAYER_LIMIT: usize = 120;
/// The configuration of nginx.
const CONF: &[u8] = include_bytes!("image/default.conf");

/// What the image serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The files, with nginx, on port 80.
    Files,
    /// The images, with a registry, on port 5000: each named by each of these templates, at least one.
    Registry(Vec<RepositoryTemplate>),
}

/// What to build, and where to.
#[derive(Debug, Clone)]
pub(crate) struct ImageOptions {
    /// The archive to be written.
    pub output: PathBuf,
    /// What it serves.
    pub kind: Kind,
    /// The image of the bundle to build on; if nothing is said, the only one that is called `nginx`, or `registry`.
    pub base: Option<Reference>,
    /// The platform of the base; if nothing is said, linux/amd64, or the only one that the bundle has.
    pub platform: Option<Platform>,
    /// What the image is called; at least one name.
    pub names: Vec<Name>,
    /// About how large a layer may become, in bytes.
    pub layer_size: u64,
}

/// What was built.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageSummary {
    /// What it is called.
    pub names: Vec<String>,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The digest of its config: the id that docker shows.
    pub id: Digest,
    /// What it was built on.
    pub base: String,
    /// The platform of that.
    pub platform: String,
    /// How many files it serves.
    pub files: usize,
    /// How many images it serves.
    pub images: usize,
    /// How many layers there are on the base.
    pub layers: usize,
    /// The size of the archive in bytes.
    pub size: u64,
    /// How long it took.
    #[serde(serialize_with = "as_seconds", rename = "seconds")]
    pub time: Duration,
}

/// Builds an image out of the bundle that `reader` reads. Nothing is at `options.output` before it is complete and on
/// the disk.
pub(crate) fn build(
    mut reader: BundleReader,
    options: &ImageOptions,
    report: &dyn Report,
) -> Result<ImageSummary, ImageError> {
    let start = Instant::now();
    let contents = reader.contents()?;
    refuse_delta(&contents.layout)?;
    let (name, port, directories) = match options.kind {
        Kind::Files => ("nginx", 80, &[HTML, NGINX_CONF][..]),
        Kind::Registry(_) => ("registry", 5000, &[STORAGE][..]),
    };
    let base = BaseImage::choose(&contents.layout, options.base.as_ref(), name, options.platform.as_ref())?;
    let plan = plan(&contents, &base, options)?;
    warn(&contents.layout, &base, options, report);

    let mut archive = ImageArchive::create(&options.output)?;
    let slots = Slots::reserve(&mut archive, &base, &plan);
    archive.allocate()?;
    let platform = options.platform.as_ref();
    let stream = Stream { contents: &contents, plan: &plan, base: &base, platform, slots: &slots, report };
    let written = stream.run(&mut reader, &archive)?;
    report.event(&Event::Stage { name: "finishing", bytes: None, objects: None });

    let mut layers: Vec<_> = plan
        .layers
        .iter()
        .zip(written.digests)
        .map(|(layer, digest)| (Blob { digest, size: layer.size() }, layer.title.as_str()))
        .collect();
    if plan.first_is_top {
        layers.rotate_left(1);
    }
    let additions = Additions {
        names: &options.names,
        description: description(&contents, options),
        identity: contents.identity,
        about: &contents.about,
        layers,
        port,
        directories,
    };
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

/// A site could add what is not there, an image cannot.
fn refuse_delta(layout: &Layout) -> Result<(), ImageError> {
    let Totals { blobs, bytes } = layout.external_totals();
    if blobs == 0 {
        return Ok(());
    }
    let digests: Vec<Digest> = layout.external.iter().map(|blob| blob.digest).collect();
    Err(ImageError::Delta { blobs, bytes, owners: layout.owners_text(&digests) })
}

fn plan(contents: &Contents, base: &BaseImage, options: &ImageOptions) -> Result<LayerPlan, ImageError> {
    // One layer is always there, besides those with the blobs.
    let count = LAYER_LIMIT.saturating_sub(base.layers.len() + 1);
    let limits = Limits { size: options.layer_size, count };
    match &options.kind {
        Kind::Files if contents.layout.files.is_empty() => Err(ImageError::NoFiles),
        Kind::Files => Ok(layers::of_files(contents, CONF, limits)),
        Kind::Registry(templates) => Ok(layers::of_images(contents, templates, limits)?),
    }
}

/// Tells what will not work everywhere.
fn warn(layout: &Layout, base: &BaseImage, options: &ImageOptions, report: &dyn Report) {
    if base.has_zstd() {
        let reference = &base.reference;
        let message = format!("`{reference}` has layers in zstd: docker loads the image from version 23 on");
        report.event(&Event::Warning { message });
    }
    let is_hidden = |path: &str| path.split('/').any(|name| name.starts_with('.'));
    let hidden = layout.files.iter().find(|file| is_hidden(file.path.as_str()));
    if let Some(file) = hidden.filter(|_| options.kind == Kind::Files) {
        let message = format!("`{}` will not be served: a name in it begins with a dot", file.path);
        report.event(&Event::Warning { message });
    }
}

fn description(contents: &Contents, options: &ImageOptions) -> String {
    let layout = &contents.layout;
    let what = match options.kind {
        Kind::Files => format!("{} files", layout.files.len()),
        Kind::Registry(_) => format!("{} images", layout.images.len()),
    };
    match &contents.about.title {
        Some(title) => format!("{title}: {what}"),
        None => format!("{what} of a bundle"),
    }
}
