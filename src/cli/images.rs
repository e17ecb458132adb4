//! `unbundle images`: lists the images of a site, or hands them to the container engine of this machine.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::base::error_chain::chain;
use crate::base::units::human_bytes;
use crate::cli::exit::{Code, Failure};
use crate::cli::ls::{self, ListedImage};
use crate::cli::output::{json, print, summary_json};
use crate::cli::progress::Output;
use crate::commands::images::engine::Engine;
use crate::commands::images::{LoadOptions, LoadSummary, Loaded, Target, load};
use crate::oci::digest::Digest;
use crate::oci::platform::Platform;
use crate::site::record::{Record, RecordedImage};

/// The namespace of Kubernetes' images in containerd.
const NAMESPACE: &str = "k8s.io";

/// List the images of a site, or load them into the container engine of this machine
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// The directory of the site
    site: PathBuf,
    /// These images only: registry.k8s.io/pause:3.9, nginx:1.25 as docker's users write it, or the end of a name
    #[arg(value_name = "REF")]
    references: Vec<String>,
    /// Load them, under the names that the list of images had
    #[arg(long, value_name = "ENGINE")]
    load: Option<Kind>,
    /// Load the images for this platform, such as linux/arm64 (default: the one of this machine)
    #[arg(long, value_name = "OS/ARCH", requires = "load")]
    platform: Option<Platform>,
    /// The namespace of containerd [default: k8s.io]
    #[arg(long, value_name = "NAME", requires = "load")]
    namespace: Option<String>,
    /// Write the oci-archive here: a file, a directory, or - for stdout [default: NAME.tar, for each image]
    #[arg(long, short, value_name = "FILE", requires = "load")]
    output: Option<PathBuf>,
    #[command(flatten)]
    out: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// With `docker load`
    Docker,
    /// With `podman load`
    Podman,
    /// With `ctr images import`
    Containerd,
    /// Into files that skopeo, podman, docker and ctr read
    OciArchive,
}

impl Images {
    /// Lists or loads.
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let record = Record::read(&self.site)?;
        let images = self.chosen(&record)?;
        let Some(kind) = self.load else {
            print(&self.out.result(|| ls::images(listed(&images).iter()), || json(&Listing::of(&images))))?;
            return Ok(Code::Success);
        };
        let options = LoadOptions {
            platform: self.platform.clone().unwrap_or_else(Platform::host),
            target: self.target(kind, images.len())?,
            is_explicit: !self.references.is_empty(),
        };
        let reporter = self.out.reporter();
        let summary = load(&images, &record.registry_root(&self.site), &options, &*reporter);
        drop(reporter);
        // Stdout has the archive.
        if !matches!(options.target, Target::Stdout) {
            print(&self.out.result(|| text(&summary, &options), || summary_json(&Outcome::of(&summary))))?;
        }
        if summary.failed.is_empty() { Ok(Code::Success) } else { Err(summary.failed.into()) }
    }

    /// The images that the user means, each once.
    fn chosen<'a>(&self, record: &'a Record) -> Result<Vec<&'a RecordedImage>, Failure> {
        if self.references.is_empty() {
            return Ok(record.images.iter().collect());
        }
        let mut failure = Failure { code: Code::Usage, messages: Vec::new() };
        let mut chosen: Vec<&RecordedImage> = Vec::new();
        for name in &self.references {
            match record.find(name) {
                Ok(image) if chosen.iter().any(|other| std::ptr::eq(*other, image)) => {}
                Ok(image) => chosen.push(image),
                Err(error) => failure.messages.push(error.to_string()),
            }
        }
        if failure.messages.is_empty() { Ok(chosen) } else { Err(failure) }
    }

    fn target(&self, kind: Kind, images: usize) -> Result<Target, Failure> {
        let usage = |message: &str| Err(Failure::new(Code::Usage, message));
        if self.namespace.is_some() && kind != Kind::Containerd {
            return usage("`--namespace` is for `--load containerd`: no other engine has namespaces");
        }
        if self.output.is_some() && kind != Kind::OciArchive {
            return usage("`--output` is for `--load oci-archive`");
        }
        let namespace = || self.namespace.clone().unwrap_or_else(|| NAMESPACE.to_owned());
        Ok(match (kind, self.output.as_deref()) {
            (Kind::Docker, _) => Target::Engine(Engine::Docker),
            (Kind::Podman, _) => Target::Engine(Engine::Podman),
            (Kind::Containerd, _) => Target::Engine(Engine::Containerd { namespace: namespace() }),
            (Kind::OciArchive, None) => Target::Directory(PathBuf::new()),
            (Kind::OciArchive, Some(directory)) if directory.is_dir() => {
                Target::Directory(directory.to_owned())
            }
            (Kind::OciArchive, Some(_)) if images != 1 => {
                return usage("`--output` takes one image: name it, or name a directory that is there");
            }
            (Kind::OciArchive, Some(stdout)) if stdout == Path::new("-") => {
                if self.out.json {
                    return usage("stdout cannot have both the archive and JSON");
                }
                if std::io::stdout().is_terminal() {
                    return usage(
                        "stdout is a terminal, which cannot load an archive: send it into a pipe or a file",
                    );
                }
                Target::Stdout
            }
            (Kind::OciArchive, Some(file)) => Target::File(file.to_owned()),
        })
    }
}

#[derive(Serialize)]
struct Listing {
    images: Vec<ListedImage>,
}

impl Listing {
    fn of(images: &[&RecordedImage]) -> Self {
        Self { images: listed(images) }
    }
}

fn listed(images: &[&RecordedImage]) -> Vec<ListedImage> {
    let listed = |image: &&RecordedImage| {
        let root = image.manifests.first()?;
        Some(ListedImage {
            reference: image.reference.clone(),
            digest: root.digest,
            media_type: root.media_type.clone(),
            platforms: image.platforms.clone(),
            size: image.size,
        })
    };
    images.iter().filter_map(listed).collect()
}

/// What has become of the images, for a program.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    images: Vec<ImageResult>,
    problems: Vec<String>,
    bytes: u64,
    seconds: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageResult {
    reference: String,
    result: &'static str,
    digest: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
}

impl Outcome {
    fn of(summary: &LoadSummary) -> Self {
        let of = |result: &'static str| {
            move |Loaded { reference, digest, file }: &Loaded| ImageResult {
                reference: reference.clone(),
                result,
                digest: *digest,
                file: file.clone(),
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

fn text(summary: &LoadSummary, options: &LoadOptions) -> String {
    let mut text = String::new();
    for Loaded { reference, .. } in &summary.kept {
        let _ = writeln!(text, "there before: {reference}");
    }
    for Loaded { reference, file, .. } in &summary.loaded {
        let _ = match file {
            Some(file) => writeln!(text, "written: {reference} to {}", file.display()),
            None => writeln!(text, "loaded: {reference}"),
        };
    }
    if summary.loaded.is_empty() && summary.kept.is_empty() {
        return text;
    }
    let (target, done) = match &options.target {
        Target::Engine(engine) => (engine.name(), "loaded"),
        _ => ("oci-archive", "written"),
    };
    let (loaded, kept, skipped) = (summary.loaded.len(), summary.kept.len(), summary.skipped.len());
    let _ = writeln!(
        text,
        "{target}: {loaded} {done} for {} ({}), {kept} there before, {skipped} left out; {:.1} s",
        options.platform,
        human_bytes(summary.bytes),
        summary.time.as_secs_f64(),
    );
    text
}
