//! `unbundle images`: lists the images of a site or a bundle, or loads them into a container engine.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::base::error_chain::chain;
use crate::base::fs::{self, FsError};
use crate::base::json::text_of;
use crate::base::units::human_bytes;
use crate::bundle::read::discover;
use crate::bundle::read::reader::BundleReader;
use crate::cli::console::{self, Text};
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{ExpiryArgs, is_stream};
use crate::cli::listing::ListedImage;
use crate::cli::ls;
use crate::cli::progress::Output;
use crate::cli::trust::SiteTrustArgs;
use crate::commands::cat::CatError;
use crate::commands::images::blobs::{BlobError, Blobs};
use crate::commands::images::engine::{Engine, EngineError};
use crate::commands::images::site_image::SiteImageError;
use crate::commands::images::{LoadError, LoadOptions, LoadSummary, Loaded, Target, load};
use crate::oci::digest::Digest;
use crate::oci::platform::Platform;
use crate::site::record::{RECORD, Record, RecordedImage};
use crate::site::verified;

/// The containerd namespace of Kubernetes.
const NAMESPACE: &str = "k8s.io";

/// List the images of a site or a bundle, or load them into a local container engine
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Site directory, or bundle: a file, or a directory with its volumes
    #[arg(value_name = "SITE|BUNDLE")]
    source: PathBuf,
    /// Images to select, by name or end of name [default: all]
    ///
    /// Examples: registry.k8s.io/pause:3.9, nginx:1.25, coreos/etcd:v3.5.12.
    #[arg(value_name = "REF")]
    references: Vec<String>,
    /// Load the images, under their names in the list
    #[arg(long, value_name = "ENGINE")]
    load: Option<Kind>,
    /// Platform of the images to load, e.g. linux/arm64 [default: this host's platform]
    #[arg(long, value_name = "OS/ARCH", requires = "load")]
    platform: Option<Platform>,
    /// containerd namespace [default: k8s.io]
    #[arg(long, value_name = "NAME", requires = "load")]
    namespace: Option<String>,
    /// File or directory for archives, - for stdout [default: NAME.tar for each image, or the directory of k3s, rke2 or k0s]
    #[arg(long, short, value_name = "FILE", requires = "load")]
    output: Option<PathBuf>,
    #[command(flatten)]
    expiry: ExpiryArgs,
    #[command(flatten)]
    trust: SiteTrustArgs,
    #[command(flatten)]
    out: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// `docker load`
    Docker,
    /// `podman load`
    Podman,
    /// `ctr images import`
    Containerd,
    /// Write archives for skopeo, podman, docker and ctr
    OciArchive,
    /// Write archives to the directory from which k3s imports them
    K3s,
    /// Write archives to the directory from which RKE2 imports them
    Rke2,
    /// Write archives to the directory from which k0s imports them
    K0s,
}

impl Images {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        if is_stream(&self.source) {
            let message =
                format!("cannot read `{}`: a bundle is read once for each blob", self.source.display());
            let hint = "specify a file or a directory, or list the images with `unbundle ls`";
            return Err(Failure::new(Code::Usage, message).with_hint(hint));
        }
        let policy = self.trust.policy()?;
        let open = || {
            let volumes = discover::find(std::slice::from_ref(&self.source))?;
            Ok(self.expiry.apply(BundleReader::from_volumes(volumes, &policy.signatures)?))
        };
        if self.is_site()? {
            let record = verified::read(&self.source, &policy)?;
            let storage = record.registry_root(&self.source);
            return self.act(&record, &Blobs::Storage(&storage));
        }
        let contents = open().and_then(|mut reader| reader.contents())?;
        let blobs = Blobs::Bundle { contents: &contents, open: &open };
        let external: HashSet<Digest> = contents.layout.external.iter().map(|blob| blob.digest).collect();
        let config =
            |digest| if external.contains(&digest) { Ok(None) } else { blobs.read(digest).map(Some) };
        let record = Record::of_bundle(&contents, config)?;
        self.act(&record, &blobs)
    }

    /// True for a directory that has a record, or no bundles either.
    fn is_site(&self) -> Result<bool, FsError> {
        let path = &self.source;
        Ok(fs::exists(&path.join(RECORD))? || fs::is_directory(path)? && !discover::is_bundle(path))
    }

    fn act(&self, record: &Record, blobs: &Blobs<'_>) -> Result<Code, Failure> {
        let images = self.selected(record)?;
        let Some(kind) = self.load else {
            let listing = ImageListing { images: listed(&images) };
            self.out.print_list(&listing, || ls::image_table(listing.images.iter()))?;
            return Ok(Code::Success);
        };
        let options = LoadOptions {
            platform: self.platform.clone().unwrap_or_else(Platform::host),
            target: self.target(kind, images.len())?,
            is_explicit: !self.references.is_empty(),
        };
        let summary = self.out.report(|report| load(&images, blobs, &options, report));
        // On stdout, the summary would be part of the archive.
        if !matches!(options.target, Target::Stdout) {
            self.out.print(&LoadResult::of(&summary), || text(&summary, &options))?;
        }
        if summary.failed.is_empty() { Ok(Code::Success) } else { Err(summary.failed.into()) }
    }

    /// Returns the selected images, each once.
    fn selected<'a>(&self, record: &'a Record) -> Result<Vec<&'a RecordedImage>, Failure> {
        if self.references.is_empty() {
            return Ok(record.images.iter().collect());
        }
        let mut errors = Vec::new();
        let mut selected: Vec<&RecordedImage> = Vec::new();
        for name in &self.references {
            match record.find(name) {
                Ok(image) if selected.iter().any(|other| std::ptr::eq(*other, image)) => {}
                Ok(image) => selected.push(image),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(selected) } else { Err(Failure::all(Code::Usage, &errors)) }
    }

    fn target(&self, kind: Kind, images: usize) -> Result<Target, Failure> {
        let usage = |message: &str| Err(Failure::new(Code::Usage, message));
        if self.namespace.is_some() && kind != Kind::Containerd {
            return usage("cannot use `--namespace`: it requires `--load containerd`");
        }
        let is_engine = matches!(kind, Kind::Docker | Kind::Podman | Kind::Containerd);
        if self.output.is_some() && is_engine {
            return usage("cannot use `--output`: it requires `--load oci-archive`, `k3s`, `rke2` or `k0s`");
        }
        let import = |distribution, directory: &str| {
            let directory = self.output.clone().unwrap_or_else(|| directory.into());
            Target::Import { distribution, directory }
        };
        let namespace = || self.namespace.clone().unwrap_or_else(|| NAMESPACE.to_owned());
        Ok(match (kind, self.output.as_deref()) {
            (Kind::Docker, _) => Target::Engine(Engine::Docker),
            (Kind::Podman, _) => Target::Engine(Engine::Podman),
            (Kind::Containerd, _) => Target::Engine(Engine::Containerd { namespace: namespace() }),
            (Kind::K3s, _) => import("k3s", "/var/lib/rancher/k3s/agent/images"),
            (Kind::Rke2, _) => import("rke2", "/var/lib/rancher/rke2/agent/images"),
            (Kind::K0s, _) => import("k0s", "/var/lib/k0s/images"),
            (Kind::OciArchive, None) => Target::Directory(PathBuf::new()),
            (Kind::OciArchive, Some(directory)) if directory.is_dir() => {
                Target::Directory(directory.to_owned())
            }
            (Kind::OciArchive, Some(_)) if images != 1 => {
                let message = format!("cannot write {images} images to one file");
                let hint = "name one image, or an existing directory with `--output`";
                return Err(Failure::new(Code::Usage, message).with_hint(hint));
            }
            (Kind::OciArchive, Some(stdout)) if stdout == Path::new("-") => {
                if self.out.json {
                    return usage("cannot write both the archive and JSON to stdout");
                }
                if console::is_stdout_terminal() {
                    let failure = Failure::new(Code::Usage, "cannot write the archive to a terminal");
                    return Err(failure.with_hint("redirect stdout to a file or a pipe"));
                }
                Target::Stdout
            }
            (Kind::OciArchive, Some(file)) => Target::File(file.to_owned()),
        })
    }
}

/// The output of `images --json`.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct ImageListing {
    /// Images of the site.
    images: Vec<ListedImage>,
}

fn listed(images: &[&RecordedImage]) -> Vec<ListedImage> {
    let listed = |image: &&RecordedImage| {
        let root = image.manifests.first()?;
        Some(ListedImage {
            reference: image.reference.to_string(),
            digest: root.digest,
            media_type: root.media_type.to_string(),
            platforms: image.platforms.iter().map(ToString::to_string).collect(),
            size: image.size,
        })
    };
    images.iter().filter_map(listed).collect()
}

/// The summary of `images --load --json`.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct LoadResult {
    /// Images that are now in the engine or in files.
    images: Vec<ImageResult>,
    /// Error messages, one for each image that failed.
    problems: Vec<String>,
    /// Number of bytes passed to the engine or written to files.
    bytes: u64,
    /// Duration in seconds.
    seconds: f64,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
struct ImageResult {
    /// Reference in the list.
    reference: String,
    /// `loaded`, or `kept` if the engine or file had the image already.
    result: &'static str,
    /// Digest of the manifest or index.
    digest: Digest,
    /// Archive, for `oci-archive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

impl LoadResult {
    fn of(summary: &LoadSummary) -> Self {
        let of = |result: &'static str| {
            move |Loaded { reference, digest, file }: &Loaded| ImageResult {
                reference: reference.clone(),
                result,
                digest: *digest,
                file: file.as_deref().map(text_of),
            }
        };
        let (loaded, kept) = (summary.loaded.iter().map(of("loaded")), summary.kept.iter().map(of("kept")));
        Self {
            images: loaded.chain(kept).collect(),
            problems: summary.failed.iter().map(|error| chain(error)).collect(),
            bytes: summary.bytes,
            seconds: summary.time.as_secs_f64(),
        }
    }
}

fn text(summary: &LoadSummary, options: &LoadOptions) -> Text {
    let mut text = Text::new();
    for Loaded { reference, .. } in &summary.kept {
        text.line(format_args!("already present: {reference}"));
    }
    for Loaded { reference, file, .. } in &summary.loaded {
        match file {
            Some(file) => text.line(format_args!("written: {reference} to {}", file.display())),
            None => text.line(format_args!("loaded: {reference}")),
        }
    }
    if summary.loaded.is_empty() && summary.kept.is_empty() {
        return text;
    }
    let (target, done) = match &options.target {
        Target::Engine(engine) => (engine.name(), "loaded"),
        Target::Import { distribution, .. } => (*distribution, "written"),
        _ => ("oci-archive", "written"),
    };
    let (loaded, kept, skipped) = (summary.loaded.len(), summary.kept.len(), summary.skipped.len());
    text.line(format_args!(
        "{target}: {loaded} {done} for {} ({}), {kept} already present, {skipped} omitted; {:.1} s",
        options.platform,
        human_bytes(summary.bytes),
        summary.time.as_secs_f64(),
    ));
    text
}

impl From<Vec<LoadError>> for Failure {
    /// The first error determines the exit code.
    fn from(errors: Vec<LoadError>) -> Self {
        let code = errors.first().map_or(Code::Success, |error| match error {
            LoadError::Image(error) | LoadError::Engine(EngineError::Image(error)) => image_code(error),
            LoadError::Engine(_) => Code::Engine,
            LoadError::Fs(error) => Code::of_fs(error),
            LoadError::Stdout(..) => Code::File,
            LoadError::SharedFile(..) | LoadError::NoImages(_) => Code::Usage,
        });
        let failure = Self::all(code, &errors);
        let is_denied = |error: &LoadError| matches!(error, LoadError::Fs(error) if error.is_denied());
        if errors.iter().any(is_denied) {
            return failure.with_hint("choose another directory with `--output`");
        }
        failure
    }
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Self {
        Self::of(blob_code(&error), &error)
    }
}

fn image_code(error: &SiteImageError) -> Code {
    match error {
        SiteImageError::Blob { source, .. } => blob_code(source),
        SiteImageError::Manifest { .. } => Code::Damaged,
        SiteImageError::Artifact { .. } | SiteImageError::Platform { .. } | SiteImageError::NoTag { .. } => {
            Code::Usage
        }
    }
}

fn blob_code(error: &BlobError) -> Code {
    match error {
        BlobError::Fs(error) => Code::of_fs(error),
        BlobError::Bundle(error) => match &**error {
            CatError::Read { source, .. } => Code::of_blob(source),
            CatError::External(_) => Code::Incomplete,
            CatError::Fs(error) => Code::of_fs(error),
            CatError::NotFound(_) | CatError::Stream(_) => Code::File,
        },
        BlobError::Corrupt { .. } | BlobError::Missing { .. } => Code::Damaged,
    }
}
