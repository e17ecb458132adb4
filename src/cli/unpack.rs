//! `unbundle unpack`: a bundle in, a site out.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::cli::progress::Output;
use crate::cli::{print, summary_json};
use crate::event::human_bytes;
use crate::reference::RepositoryTemplate;
use crate::unpack::delta::MissingBlob;
use crate::unpack::{Options, Summary, UnpackError, unpack};

/// Write the site: files for nginx, and the storage of a registry
#[derive(Debug, Args)]
pub struct Unpack {
    /// The bundle, its first volume, folders with its volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// The folder of the site; created if it is not there
    #[arg(required = true)]
    site: PathBuf,
    /// Put the files here instead of SITE/files
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
    /// Put the storage of the registry here instead of SITE/registry (what /var/lib/registry is to a registry)
    #[arg(long, value_name = "DIR")]
    registry: Option<PathBuf>,
    /// Name the repositories like this; may be given several times [default: k8s/{host}/{repository}]
    #[arg(long, value_name = "TEMPLATE")]
    repository_template: Vec<RepositoryTemplate>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    out: Output,
}

/// What is told in the place of a summary where a site lacks what a delta leaves out.
#[derive(Serialize)]
struct Lacking<'a> {
    missing: &'a [MissingBlob],
}

impl Unpack {
    /// Unpacks.
    pub fn run(self) -> Result<Code, Failure> {
        let mut templates = self.repository_template;
        if templates.is_empty() {
            templates.push(RepositoryTemplate::default());
        }
        let options = Options { site: self.site, files: self.files, registry: self.registry, templates };
        let reader = self.input.open(&self.bundle, Gaps::Refuse)?;
        let reporter = self.out.reporter();
        let result = unpack(reader, &options, &*reporter);
        drop(reporter);
        if let Err(UnpackError::Incomplete { missing, .. }) = &result
            && self.out.json
        {
            // All of it, for a program; the error itself is for a person.
            print(&summary_json(&Lacking { missing }))?;
        }
        let summary = result?;
        let text = || text(&summary, &options) + &next(&options.site, &summary);
        print(&self.out.result(text, || summary_json(&summary)))?;
        Ok(Code::Success)
    }
}

/// What to do next: the configuration is made of what the site holds.
fn next(site: &Path, summary: &Summary) -> String {
    let configured = site.join("conf/settings.json").exists();
    match (configured, summary.is_unchanged()) {
        (true, true) => String::new(),
        (true, false) => {
            format!(
                "now: unbundle site {0} && {0}/conf/site start   (its configuration is of before)\n",
                site.display()
            )
        }
        (false, _) => format!("next: unbundle site {0}   ({0}/README.md says more)\n", site.display()),
    }
}

fn text(summary: &Summary, options: &Options) -> String {
    let what = format!("{}: {} files and {} images", options.site.display(), summary.files, summary.images);
    if summary.is_unchanged() {
        return format!("{what}, all there and right: nothing to do, {:.1} s\n", summary.time.as_secs_f64());
    }
    format!(
        "{what}\n{} written ({}), {} repaired, {} there before; {} links; {:.1} s\n",
        summary.written,
        human_bytes(summary.bytes_written),
        summary.repaired,
        summary.kept,
        summary.links_written,
        summary.time.as_secs_f64(),
    )
}
