//! `unbundle unpack`: a bundle in, a site out.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::base::units::human_bytes;
use crate::bundle::read::select::{Pattern, Selection};
use crate::cli::exit::{Code, Failure};
use crate::cli::input::{Gaps, InputArgs};
use crate::cli::output::{print, summary_json};
use crate::cli::progress::Output;
use crate::commands::unpack::error::{MissingBlob, UnpackError};
use crate::commands::unpack::options::UnpackOptions;
use crate::commands::unpack::{LeftOut, UnpackSummary, unpack};
use crate::oci::platform::Platform;
use crate::oci::template::RepositoryTemplate;

/// Write the site: files for nginx, and the storage of a registry
#[derive(Debug, Args)]
pub(crate) struct Unpack {
    /// The bundle, its first volume, directories with its volumes, or - for stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// The directory of the site; created if it is not there
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
    /// Unpack only images and files with this name, a reference or a path; * and ? stand for anything but /, ** for any
    /// directories. May be given several times
    #[arg(long, value_name = "GLOB")]
    only: Vec<Pattern>,
    /// Unpack images only for these platforms
    #[arg(long, value_name = "OS/ARCH", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Where something is damaged or missing, unpack all that it does not hit
    #[arg(long)]
    keep_going: bool,
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
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let mut templates = self.repository_template;
        if templates.is_empty() {
            templates.push(RepositoryTemplate::default());
        }
        let select = Selection { only: self.only, platforms: self.platform };
        let (files, registry, keep_going) = (self.files, self.registry, self.keep_going);
        let options = UnpackOptions { site: self.site, files, registry, templates, select, keep_going };
        let gaps = if keep_going { Gaps::Take } else { Gaps::Refuse };
        let with_hint = |mut failure: Failure| {
            if !keep_going && matches!(failure.code, Code::Incomplete | Code::Damaged | Code::Unreadable) {
                failure.messages.push("--keep-going unpacks all that this does not hit".to_owned());
            }
            failure
        };
        let reader = self.input.open(&self.bundle, gaps).map_err(with_hint)?;
        let reporter = self.out.reporter();
        let result = unpack(reader, &options, &*reporter);
        drop(reporter);
        if let Err(UnpackError::Incomplete { missing, .. }) = &result
            && self.out.json
        {
            // All of it, for a program; the error itself is for a person.
            print(&summary_json(&Lacking { missing }))?;
        }
        let summary = match result {
            // Without the documents at its front nobody can say what is whole.
            Err(error @ UnpackError::Damaged { .. }) => return Err(with_hint(error.into())),
            other => other?,
        };
        let text = || text(&summary, &options) + &next(&options.site, &summary);
        print(&self.out.result(text, || summary_json(&summary)))?;
        match summary.left_out.iter().map(|left_out| left_out.trouble).max() {
            None => Ok(Code::Success),
            Some(worst) => Err(Failure::new(worst.into(), lacks(&summary, &options.site))),
        }
    }
}

/// What is not there.
fn lacks(summary: &UnpackSummary, site: &Path) -> String {
    const SHOWN: usize = 5;
    let names: Vec<_> =
        summary.left_out.iter().take(SHOWN).map(|left_out| format!("`{}`", left_out.name)).collect();
    let more = summary.left_out.len() - names.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} is without {}{more}: the bundle has them not whole", site.display(), names.join(", "))
}

/// What to do next: the configuration is made of what the site holds.
fn next(site: &Path, summary: &UnpackSummary) -> String {
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

fn text(summary: &UnpackSummary, options: &UnpackOptions) -> String {
    let of =
        |here: usize, all: usize| if here == all { here.to_string() } else { format!("{here} of {all}") };
    let what = format!(
        "{}: {} files and {} images",
        options.site.display(),
        of(summary.files, summary.bundle.files),
        of(summary.images, summary.bundle.images)
    );
    if summary.is_unchanged() && summary.left_out.is_empty() {
        return format!("{what}, all there and right: nothing to do, {:.1} s\n", summary.time.as_secs_f64());
    }
    let mut text = format!(
        "{what}\n{} written ({}), {} repaired, {} there before; {} links; {:.1} s\n",
        summary.written,
        human_bytes(summary.bytes_written),
        summary.repaired,
        summary.kept,
        summary.links_written,
        summary.time.as_secs_f64(),
    );
    for LeftOut { name, problem, .. } in &summary.left_out {
        let _ = writeln!(text, "left out: {name}: {problem}");
    }
    text
}
