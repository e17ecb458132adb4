//! `airbundle lists`: generates lists from a Kubespray checkout.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::base::error_chain::chain;
use crate::base::event::Event;
use crate::base::fs::{self, FsError};
use crate::base::output_file::{Access, OutputFile};
use crate::cli::console::Text;
use crate::cli::exit::{Code, Failure};
use crate::cli::progress::Output;
use crate::commands::lists::generated::GeneratedLists;
use crate::commands::lists::options::{Architecture, KubesprayRelease, ListOptions};
use crate::commands::lists::{KubesprayError, generate};
use crate::documents::list::NAMES;

/// Generate lists of files and images
#[derive(Debug, Args)]
pub(crate) struct Lists {
    #[command(subcommand)]
    source: Source,
}

#[derive(Debug, Subcommand)]
enum Source {
    Kubespray(Kubespray),
}

/// Generate the lists of a Kubespray release from its Git checkout
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
struct Kubespray {
    /// Kubespray checkout
    #[arg(long, value_name = "DIR")]
    source: PathBuf,
    /// Host architectures, comma-separated: amd64, arm64, arm, ppc64le
    #[arg(long, value_name = "ARCH", value_delimiter = ',', default_value = "amd64")]
    arch: Vec<Architecture>,
    /// YAML files or directories with variables, e.g. `group_vars`; later ones win
    #[arg(long, value_name = "FILE", num_args = 1..)]
    vars: Vec<PathBuf>,
    /// List only what hosts with these variables download
    #[arg(long)]
    enabled_only: bool,
    /// Add what Kubespray uses and its `generate_list.sh` omits
    #[arg(long)]
    complete: bool,
    /// Use `*_url` and `*_repo` variables from --vars too, e.g. for mirrors
    #[arg(long)]
    keep_mirrors: bool,
    /// List files without a checksum in Kubespray too
    #[arg(long)]
    allow_unpinned: bool,
    /// Kubespray release [default: version of the checkout]
    #[arg(long, value_name = "VERSION")]
    release: Option<KubesprayRelease>,
    /// Directory to write files.list and images.list to
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    out: Output,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct ListsSummary<'a> {
    /// Kubespray release, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<&'a str>,
    /// Host architectures.
    architectures: Vec<String>,
    /// Number of files.
    files: usize,
    /// Number of files with a checksum.
    pinned: usize,
    /// Number of images.
    images: usize,
    /// Variables with locations outside of the hosts that have a variable of their own, and their values.
    locations: BTreeMap<&'a str, &'a str>,
}

impl Lists {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        match self.source {
            Source::Kubespray(kubespray) => kubespray.run(),
        }
    }
}

impl Kubespray {
    fn run(self) -> Result<Code, Failure> {
        let mut architectures = Vec::new();
        for architecture in self.arch {
            if !architectures.contains(&architecture) {
                architectures.push(architecture);
            }
        }
        let options = ListOptions {
            source: self.source,
            release: self.release,
            architectures,
            vars: self.vars,
            enabled_only: self.enabled_only,
            complete: self.complete,
            keep_mirrors: self.keep_mirrors,
            allow_unpinned: self.allow_unpinned,
        };
        if self.output.is_dir() {
            NAMES.iter().try_for_each(|name| OutputFile::check(&self.output.join(name)))?;
        }
        let made = self
            .out
            .report(|report| generate(&options, &mut |message| report.event(&Event::Warning { message })))?;
        write(&self.output, &options, &made)?;
        let summary = ListsSummary {
            release: made.release.as_ref().map(KubesprayRelease::as_str),
            architectures: options.architectures.iter().map(ToString::to_string).collect(),
            files: made.files.len(),
            pinned: pinned(&made),
            images: made.images.len(),
            locations: made.locations.iter().map(|it| (&*it.name, &*it.value)).collect(),
        };
        let text = || {
            let ListsSummary { files, pinned, images, .. } = &summary;
            let output = self.output.display();
            Text::of(format_args!("{output}: {files} files ({pinned} with a checksum) and {images} images"))
        };
        self.out.print(&summary, text)?;
        Ok(Code::Success)
    }
}

fn pinned(made: &GeneratedLists) -> usize {
    made.files.iter().filter(|file| file.checksum.is_some()).count()
}

/// Replaces both lists atomically, so that a concurrent `pack` never reads a partial list.
fn write(directory: &Path, options: &ListOptions, made: &GeneratedLists) -> Result<(), FsError> {
    fs::create_dir_all(directory)?;
    let mut outputs = Vec::new();
    for (name, text) in NAMES.iter().zip([files_list(options, made), images_list(options, made)]) {
        let path = directory.join(name);
        let mut output = OutputFile::create(&path, Access::Default)?;
        output.write_all(text.as_bytes()).map_err(FsError::at("write", &path))?;
        outputs.push(output);
    }
    outputs.into_iter().try_for_each(OutputFile::finish)
}

fn files_list(options: &ListOptions, made: &GeneratedLists) -> String {
    let files = made.files.len();
    let pinned = pinned(made);
    let contents = format!("{files} files, {pinned} of them with the checksum that Kubespray pins");
    header(options, made, &contents) + &made.files_text()
}

fn images_list(options: &ListOptions, made: &GeneratedLists) -> String {
    let by_tag = if made.images.iter().any(|image| image.contains('@')) { "" } else { ", all by tag" };
    header(options, made, &format!("{} images{by_tag}", made.images.len())) + &made.images_text()
}

/// Returns the comment at the top of a list: contents and command line. It does not depend on the host or the
/// time.
fn header(options: &ListOptions, made: &GeneratedLists, contents: &str) -> String {
    let release = made.release.as_ref().map_or_else(String::new, |release| format!(" {}", release.as_str()));
    let platforms: Vec<_> = options.architectures.iter().map(|arch| format!("linux/{arch}")).collect();
    let mut text = format!(
        "# Kubespray{release}, {}: {contents}.\n# Made by airbundle lists kubespray",
        platforms.join(" and ")
    );
    for (option, is_set) in [
        ("--enabled-only", options.enabled_only),
        ("--complete", options.complete),
        ("--keep-mirrors", options.keep_mirrors),
        ("--allow-unpinned", options.allow_unpinned),
    ] {
        if is_set {
            let _ = write!(text, " {option}");
        }
    }
    for path in &options.vars {
        // The directories above it differ between hosts.
        let name = path.file_name().unwrap_or(path.as_os_str()).display().to_string();
        let _ = write!(text, " --vars {}", name.replace(char::is_control, "?"));
    }
    text.push_str("; order as of its generate_list.sh.\n");
    text
}

impl From<KubesprayError> for Failure {
    fn from(error: KubesprayError) -> Self {
        let list = |messages| Self { code: Code::List, messages, hint: None };
        match error {
            KubesprayError::Fs(error) => error.into(),
            KubesprayError::Eval { errors, unpinned } => {
                let failure = list(errors.iter().map(ToString::to_string).collect());
                if !unpinned {
                    return failure;
                }
                failure.with_hint(
                    "set a version that Kubespray has a checksum for, set the checksum variable, or use `--allow-unpinned`",
                )
            }
            KubesprayError::Entries(entries) => list(entries),
            error => list(vec![chain(&error)]),
        }
    }
}
