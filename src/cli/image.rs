//! `airbundle image`: a bundle in, an image out that serves it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::base::error_chain::chain;
use crate::base::units::human_bytes;
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::cli::output::{print, summary_json};
use crate::cli::progress::Output;
use crate::cli::size::parse_size;
use crate::commands::image::name::{Name, NameError};
use crate::commands::image::{self, ImageOptions, ImageSummary, build};
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::oci::template::RepositoryTemplate;

/// Build an image that serves what is in a bundle: nginx with the files, or a registry with the images
#[derive(Debug, Args)]
pub(crate) struct Image {
    /// The bundle, its first volume, directories with its volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// What the image serves
    #[arg(long, value_enum)]
    kind: Kind,
    /// The archive to be written, for `docker load` and the like; the name usually ends in .tar
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Build on this image of the bundle [default: the only one called nginx, or registry]
    #[arg(long, value_name = "REF")]
    base: Option<Reference>,
    /// Take the base for this platform [default: linux/amd64, or the only one that the bundle has]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Call the image this; may be given several times [default: kubespray-files:latest, or kubespray-images:latest]
    #[arg(long, value_name = "NAME:TAG", conflicts_with_all = ["build", "kubespray"])]
    tag: Vec<Name>,
    /// Tag the default name as the Nth build of --kubespray, such as kubespray-files:v3-v2.25.0
    #[arg(long, value_name = "N", requires = "kubespray")]
    build: Option<String>,
    /// The version of Kubespray that the bundle is for
    #[arg(long, value_name = "VERSION", requires = "build")]
    kubespray: Option<String>,
    /// Begin a new layer after this many bytes; K, M and G stand for powers of 1,024
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    layer_size: u64,
    /// Name the repositories of the registry like this; may be given several times [default: k8s/{host}/{repository}]
    #[arg(long, value_name = "TEMPLATE")]
    repository_template: Vec<RepositoryTemplate>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    out: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// The files, with nginx, on port 80
    Files,
    /// The images, with a registry, on port 5000
    Registry,
}

impl Image {
    /// Builds.
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let wrong_name = |error: NameError| Failure::new(Code::Usage, chain(&error));
        let names = if self.tag.is_empty() { vec![self.name().map_err(wrong_name)?] } else { self.tag };
        let mut templates = self.repository_template;
        let kind = match self.kind {
            Kind::Files if !templates.is_empty() => {
                let message = "`--repository-template` is for `--kind registry`";
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
        let reader = self.input.open(&self.bundle, Gaps::Refuse)?;
        let reporter = self.out.reporter();
        let result = build(reader, &options, &*reporter);
        drop(reporter);
        let summary = result?;
        print(&self.out.result(|| text(&summary, &options), || summary_json(&summary)))?;
        Ok(Code::Success)
    }

    /// The name that the image has by default.
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

fn text(summary: &ImageSummary, options: &ImageOptions) -> String {
    let what = match options.kind {
        image::Kind::Files => format!("{} files", summary.files),
        image::Kind::Registry(_) => format!("{} images", summary.images),
    };
    format!(
        "{}: {what} on {} for {}, in {} layers\n{}: {}, {:.1} s\ndigest {}\nid {}\n",
        summary.names.join(", "),
        summary.base,
        summary.platform,
        summary.layers,
        options.output.display(),
        human_bytes(summary.size),
        summary.time.as_secs_f64(),
        summary.digest,
        summary.id,
    )
}
