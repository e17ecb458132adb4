//! `unbundle ls`: what is in this bundle?

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::base::units::human_bytes;
use crate::bundle::format::layout::{Blob, BundledImage, Layout, Totals};
use crate::bundle::read::error::ReadError;
use crate::bundle::read::reader::BundleReader;
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::cli::output::{json, print};
use crate::documents::lock::Lock;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, MANIFEST_LIMIT, Manifest, config_platform};
use crate::oci::reference::Reference;
use crate::signature::Signed;

/// List the images and files of a bundle
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// The bundle, its first volume, directories with its volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    #[command(flatten)]
    input: InputArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print the lock that the bundle was packed with, from which it can be packed again
    #[arg(long, conflicts_with = "json")]
    lock: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    identity: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(rename = "signature", skip_serializing_if = "Option::is_none")]
    signed: Option<Signed>,
    images: Vec<WholeImage>,
    files: Vec<ListedFile>,
    /// Of a delta: what the site must have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    elsewhere: Vec<Blob>,
    #[serde(skip)]
    held: Totals,
}

/// An image with everything that it is made of.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WholeImage {
    #[serde(flatten)]
    image: ListedImage,
    /// The platforms that were asked for; left out where all were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    requested_platforms: Vec<String>,
    manifests: Vec<ListedManifest>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListedManifest {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    /// What it is about, for an attestation.
    #[serde(skip_serializing_if = "Option::is_none")]
    attests: Option<Digest>,
    /// Its config and its layers; of an index nothing.
    blobs: Vec<ListedBlob>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListedBlob {
    media_type: String,
    digest: Digest,
    size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListedImage {
    pub(super) reference: String,
    pub(super) digest: Digest,
    pub(super) media_type: String,
    /// Those that are there; none for an artifact, and `?` where only the site can tell.
    pub(super) platforms: Vec<String>,
    /// Bytes of its manifests, configs and layers, those that it shares with others included.
    pub(super) size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListedFile {
    path: String,
    url: String,
    size: u64,
    digest: Digest,
}

impl Ls {
    /// Lists.
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let mut reader = self.input.open(&self.bundle, Gaps::Take)?;
        if self.lock {
            let contents = reader.contents()?;
            let lock = Lock::of(&contents.layout, &contents.layout.files, &contents.manifests);
            print(&String::from_utf8(lock.to_json()).expect("JSON is UTF-8; please report"))?;
            return Ok(Code::Success);
        }
        let listing = list(reader)?;
        if let Some(signed) = listing.signed.as_ref().filter(|_| !self.json) {
            // Stdout is the list, as it always was. Without a log the exit code tells whether the signature is right.
            let _ = writeln!(std::io::stderr(), "{signed}");
        }
        print(&if self.json { json(&listing) } else { text(&listing) })?;
        Ok(Code::Success)
    }
}

fn list(mut reader: BundleReader) -> Result<Listing, ReadError> {
    let contents = reader.contents()?;
    let layout = &contents.layout;
    let configs = configs(&mut reader, layout)?;
    let images = layout.images.iter().map(|image| {
        let all = image.manifests.iter().copied().chain(layout.blobs_of(image));
        let listed = ListedImage {
            reference: image.indexed.reference.to_string(),
            digest: image.indexed.digest,
            media_type: image.indexed.media_type.clone(),
            platforms: match single_config(image, layout) {
                Some(config) if layout.external.iter().any(|blob| blob.digest == config.digest) => {
                    vec!["?".to_owned()]
                }
                _ => layout.platforms(image, |digest| configs.get(&digest).cloned()),
            },
            size: all.map(|blob| blob.size).sum(),
        };
        let requested = image.indexed.platforms.iter();
        WholeImage {
            image: listed,
            requested_platforms: requested.map(ToString::to_string).collect(),
            manifests: manifests(layout, image, &configs),
        }
    });
    let files = layout.files.iter().map(|file| ListedFile {
        path: file.path.to_string(),
        url: file.url.clone(),
        size: file.size,
        digest: file.digest,
    });
    Ok(Listing {
        identity: contents.identity,
        title: contents.about.title.clone(),
        created: contents.about.created.clone(),
        signed: contents.signed.clone(),
        images: images.collect(),
        files: files.collect(),
        elsewhere: layout.external.clone(),
        held: Totals { blobs: layout.manifests.len() + layout.blobs.len(), bytes: layout.total_size() },
    })
}

fn manifests(
    layout: &Layout,
    image: &BundledImage,
    configs: &BTreeMap<Digest, Vec<u8>>,
) -> Vec<ListedManifest> {
    let media_types = layout.media_types(image);
    let platforms = layout.platforms_of_children(image);
    let children = image.manifests.iter().filter_map(|manifest| match layout.parsed.get(&manifest.digest) {
        Some(Manifest::Index(children)) => Some(children),
        _ => None,
    });
    let attests: HashMap<Digest, Digest> =
        children.flatten().filter_map(|child| Some((child.digest, child.attests?))).collect();
    let listed = |manifest: &Blob| {
        let (mut blobs, mut platform) = (Vec::new(), platforms.get(&manifest.digest).cloned());
        if let Some(Manifest::Image { config, layers }) = layout.parsed.get(&manifest.digest) {
            blobs = std::iter::once(config).chain(layers).map(ListedBlob::of).collect();
            let of_config = || config_platform(&config.media_type, configs.get(&config.digest)?);
            platform = platform.or_else(of_config);
        }
        ListedManifest {
            media_type: media_types.get(&manifest.digest).cloned().unwrap_or_default(),
            digest: manifest.digest,
            size: manifest.size,
            platform: platform
                .filter(|platform| platform.os != "unknown")
                .map(|platform| platform.to_string()),
            attests: attests.get(&manifest.digest).copied(),
            blobs,
        }
    };
    image.manifests.iter().map(listed).collect()
}

impl ListedBlob {
    fn of(descriptor: &Descriptor) -> Self {
        let Descriptor { media_type, digest, size, .. } = descriptor;
        Self { media_type: media_type.clone(), digest: *digest, size: *size }
    }
}

/// The config of an image without an index: nothing else says what platform it is for.
fn single_config<'a>(image: &BundledImage, layout: &'a Layout) -> Option<&'a Descriptor> {
    match layout.parsed.get(&image.indexed.digest) {
        Some(Manifest::Image { config, .. }) if config.size <= MANIFEST_LIMIT => Some(config),
        _ => None,
    }
}

/// The configs of images without an index, as far as they are there.
pub(super) fn configs(
    reader: &mut BundleReader,
    layout: &Layout,
) -> Result<BTreeMap<Digest, Vec<u8>>, ReadError> {
    let single = layout.images.iter().filter_map(|image| single_config(image, layout));
    let mut wanted: BTreeSet<Digest> = single.map(|config| config.digest).collect();
    layout.external.iter().for_each(|blob| _ = wanted.remove(&blob.digest));
    let mut configs = BTreeMap::new();
    reader.narrow(layout.ranges(|digest| wanted.contains(&digest)));
    for blob in &layout.blobs {
        // They stand right behind the manifests.
        if wanted.is_empty() {
            break;
        }
        if !wanted.remove(&blob.digest) {
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
    Ok(configs)
}

fn text(listing: &Listing) -> String {
    let files = listing
        .files
        .iter()
        .map(|file| [file.path.clone(), human_bytes(file.size), String::new(), file.digest.to_string()]);
    let mut text = images(listing.images.iter().map(|whole| &whole.image));
    if !listing.images.is_empty() && !listing.files.is_empty() {
        text.push('\n');
    }
    table(&mut text, ["FILE", "SIZE", "", "SHA256"], &files.collect::<Vec<_>>());
    if !listing.elsewhere.is_empty() {
        let Totals { blobs, bytes } = listing.held;
        let _ = writeln!(
            text,
            "\na delta: it holds {blobs} blobs ({}), and {} ({}) must be on the site already",
            human_bytes(bytes),
            listing.elsewhere.len(),
            human_bytes(listing.elsewhere.iter().map(|blob| blob.size).sum())
        );
    }
    text
}

/// A table of images, without what is attached to them: its names are as long as they are meaningless.
pub(super) fn images<'a>(images: impl Iterator<Item = &'a ListedImage> + Clone) -> String {
    let is_attached = |image: &&ListedImage| {
        image.reference.parse().is_ok_and(|reference: Reference| reference.is_referrer())
    };
    let attached = images.clone().filter(is_attached).count();
    let rows = images.filter(|image| !is_attached(image)).map(|image| {
        let platforms = if image.platforms.is_empty() { "-".into() } else { image.platforms.join(",") };
        [image.reference.clone(), human_bytes(image.size), platforms, image.digest.to_string()]
    });
    let mut text = String::new();
    table(&mut text, ["IMAGE", "SIZE", "PLATFORMS", "DIGEST"], &rows.collect::<Vec<_>>());
    if attached > 0 {
        let _ =
            writeln!(text, "and {attached} attached to them (signatures and the like): --json names them");
    }
    text
}

/// Columns as wide as their widest cell; the second one, a number, is aligned to the right.
fn table(text: &mut String, head: [&str; 4], rows: &[[String; 4]]) {
    if rows.is_empty() {
        return;
    }
    let head = head.map(str::to_owned);
    let width = |column: usize| {
        std::iter::once(&head).chain(rows).map(|row| row[column].chars().count()).max().unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2)];
    for [first, second, third, last] in std::iter::once(&head).chain(rows) {
        let _ = write!(text, "{first:0$}  {second:>1$}", widths[0], widths[1]);
        if widths[2] > 0 {
            let _ = write!(text, "  {third:0$}", widths[2]);
        }
        let _ = writeln!(text, "  {last}");
    }
}
