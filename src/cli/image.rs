//! `airbundle image`: builds a container image that serves the contents of a bundle.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::base::units::human_bytes;
use crate::cli::console::Text;
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{ExpiryArgs, Gaps, InputArgs};
use crate::cli::progress::Output;
use crate::cli::size::parse_size;
use crate::commands::image::error::ImageError;
use crate::commands::image::name::{Name, NameError};
use crate::commands::image::{self, ImageOptions, ImageSummary, build};
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::oci::template::RepositoryTemplate;

/// Build a container image that serves the files or the images of a bundle
///
/// The image extends an nginx or registry image that the bundle contains.
#[derive(Debug, Args)]
pub(crate) struct Image {
    /// Bundle file, first volume, directories with volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// Content that the image serves
    #[arg(long, value_enum)]
    kind: Kind,
    /// Archive to write, for `docker load` or `podman load`; usually named *.tar
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Base image, contained in the bundle [default: the only one named nginx or registry]
    #[arg(long, value_name = "REF")]
    base: Option<Reference>,
    /// Platform of the base image [default: linux/amd64, or the only one in the bundle]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Name of the image; can be repeated
    ///
    /// [default: kubespray-files:latest or kubespray-images:latest]
    #[arg(long, value_name = "NAME:TAG", conflicts_with_all = ["build", "kubespray"])]
    tag: Vec<Name>,
    /// Tag the default name as build N for --kubespray, e.g. kubespray-files:v3-v2.25.0
    #[arg(long, value_name = "N", requires = "kubespray")]
    build: Option<String>,
    /// Kubespray version in the tag of --build
    #[arg(long, value_name = "VERSION", requires = "build")]
    kubespray: Option<String>,
    /// Start a new layer after this many bytes, e.g. 512M or 1GiB
    ///
    /// Units: K, M, G and KiB, MiB, GiB (powers of 1024), kB, MB, GB (powers of 1000).
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    layer_size: u64,
    /// Repository names in the registry; can be repeated [default: k8s/{host}/{repository}]
    #[arg(long, value_name = "TEMPLATE")]
    repository_template: Vec<RepositoryTemplate>,
    #[command(flatten)]
    expiry: ExpiryArgs,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    out: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// Files, served by nginx on port 80
    Files,
    /// Images, served by a registry on port 5000
    Registry,
}

impl Image {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let invalid = |error: NameError| Failure::of(Code::Usage, &error);
        let names = if self.tag.is_empty() { vec![self.name().map_err(invalid)?] } else { self.tag };
        let mut templates = self.repository_template;
        let kind = match self.kind {
            Kind::Files if !templates.is_empty() => {
                let message = "cannot use `--repository-template`: it requires `--kind registry`";
                return Err(Failure::new(Code::Usage, message));
            }
            Kind::Files => image::Kind::Files,
            Kind::Registry => {
                if templates.is_empty() {
                    templates.push(RepositoryTemplate::default());
                }
                image::Kind::Registry(templates)
            }
        };
        let (output, base, platform, layer_size) = (self.output, self.base, self.platform, self.layer_size);
        let options = ImageOptions { output, kind, base, platform, names, layer_size };
        let reader = self.expiry.apply(self.input.open(&self.bundle, Gaps::Refuse)?);
        let summary = self.out.report(|report| build(reader, &options, report))?;
        self.out.print(&summary, || text(&summary, &options))?;
        Ok(Code::Success)
    }

    /// Returns the default name of the image.
    fn name(&self) -> Result<Name, NameError> {
        let name = match self.kind {
            Kind::Files => "kubespray-files",
            Kind::Registry => "kubespray-images",
        };
        match (&self.build, &self.kubespray) {
            (Some(build), Some(kubespray)) => format!("{name}:v{build}-{kubespray}").parse(),
            _ => format!("{name}:latest").parse(),
        }
    }
}

fn text(summary: &ImageSummary, options: &ImageOptions) -> Text {
    let what = match options.kind {
        image::Kind::Files => format!("{} files", summary.files),
        image::Kind::Registry(_) => format!("{} images", summary.images),
    };
    let mut text = Text::of(format_args!(
        "{}: {what} on {} for {}, in {} layers",
        summary.names.join(", "),
        summary.base,
        summary.platform,
        summary.layers,
    ));
    let (size, time) = (human_bytes(summary.size), summary.time.as_secs_f64());
    text.line(format_args!("{}: {size}, {time:.1} s", options.output.display()));
    text.line(format_args!("digest {}", summary.digest));
    text.line(format_args!("id {}", summary.id));
    text
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let code = match &error {
            ImageError::Read(error) => Code::of_read(error),
            ImageError::Damaged { source, .. } => Code::of_blob(source),
            ImageError::Delta { .. } => Code::Incomplete,
            ImageError::Fs(error) => Code::of_fs(error),
            ImageError::Busy(_) => Code::Busy,
            ImageError::Names(_) | ImageError::Base(_) | ImageError::NoFiles => Code::Usage,
        };
        Self::of(code, &error)
    }
}
