//! `airbundle lists`: lists out of what somebody else maintains.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::base::event::Event;
use crate::base::fs::{self, FsError};
use crate::cli::exit::{Code, Failure};
use crate::cli::output::{print, summary_json};
use crate::cli::progress::Output;
use crate::commands::lists::generate;
use crate::commands::lists::generated::GeneratedLists;
use crate::commands::lists::options::{Architecture, ListOptions};
use crate::documents::list::NAMES;

/// Make lists of files and images
#[derive(Debug, Args)]
pub(crate) struct Lists {
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, Subcommand)]
enum From {
    Kubespray(Kubespray),
}

/// Make the lists of a release of Kubespray, from a checkout of it
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
struct Kubespray {
    /// The checkout of Kubespray
    #[arg(long, value_name = "DIR")]
    source: PathBuf,
    /// For hosts of these architectures: amd64, arm64, arm, ppc64le
    #[arg(long, value_name = "ARCH", value_delimiter = ',', default_value = "amd64")]
    arch: Vec<Architecture>,
    /// With these variables: a YAML file, or a directory of them, such as an inventory has; later ones win
    #[arg(long, value_name = "FILE", num_args = 1..)]
    vars: Vec<PathBuf>,
    /// List only what hosts with these variables download
    #[arg(long)]
    enabled_only: bool,
    /// List what Kubespray uses and its own list generator leaves out, too
    #[arg(long)]
    complete: bool,
    /// Take variables that say where hosts fetch from (…_url, …_repo), too
    #[arg(long)]
    keep_mirrors: bool,
    /// List files whose checksum Kubespray does not know, too
    #[arg(long)]
    allow_unpinned: bool,
    /// The release that the lists are for (default: what the checkout says)
    #[arg(long, value_name = "VERSION")]
    release: Option<String>,
    /// The directory for files.list and images.list
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    out: Output,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<&'a str>,
    architectures: Vec<String>,
    files: usize,
    /// Of the files, those with a checksum.
    pinned: usize,
    images: usize,
}

impl Lists {
    /// Makes them.
    pub(crate) fn run(self) -> Result<Code, Failure> {
        match self.from {
            From::Kubespray(kubespray) => kubespray.run(),
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
        let reporter = self.out.reporter();
        let made = generate(&options, &mut |message| reporter.event(&Event::Warning { message }));
        drop(reporter);
        let made = made?;
        write(&self.output, &options, &made)
            .map_err(|error| Failure::new(Code::File, crate::base::error_chain::chain(&error)))?;
        let summary = Summary {
            release: made.release.as_deref(),
            architectures: options.architectures.iter().map(ToString::to_string).collect(),
            files: made.files.len(),
            pinned: pinned(&made),
            images: made.images.len(),
        };
        let text = || {
            let Summary { files, pinned, images, .. } = &summary;
            format!(
                "{}: {files} files, {pinned} of them with checksum, and {images} images\n",
                self.output.display()
            )
        };
        print(&self.out.result(text, || summary_json(&summary)))?;
        Ok(Code::Success)
    }
}

fn pinned(made: &GeneratedLists) -> usize {
    made.files.iter().filter(|file| file.checksum.is_some()).count()
}

/// Both lists, each under another name first: who packs meanwhile reads an old list or a new one.
fn write(directory: &Path, options: &ListOptions, made: &GeneratedLists) -> Result<(), FsError> {
    fs::create_dir_all(directory)?;
    let texts = [files_list(options, made), images_list(options, made)];
    let partial = |name: &str| directory.join(format!("{name}.partial"));
    for (name, text) in NAMES.iter().zip(texts) {
        let path = partial(name);
        std::fs::write(&path, text).map_err(FsError::at("write", &path))?;
        fs::open(&path)?.sync_all().map_err(FsError::at("sync", &path))?;
    }
    for name in NAMES {
        fs::rename_durably(&partial(name), &directory.join(name))?;
    }
    Ok(())
}

fn files_list(options: &ListOptions, made: &GeneratedLists) -> String {
    let files = made.files.len();
    let pinned = pinned(made);
    let what = format!("{files} files, {pinned} of them with the checksum that Kubespray pins");
    head(options, made, &what) + &made.files_text()
}

fn images_list(options: &ListOptions, made: &GeneratedLists) -> String {
    let by_tag = if made.images.iter().any(|image| image.contains('@')) { "" } else { ", all by tag" };
    head(options, made, &format!("{} images{by_tag}", made.images.len())) + &made.images_text()
}

/// What the list is, and how it was made. Nothing in it depends on where or when.
fn head(options: &ListOptions, made: &GeneratedLists, what: &str) -> String {
    let release = made.release.as_deref().map_or_else(String::new, |release| format!(" {release}"));
    let platforms: Vec<_> = options.architectures.iter().map(|arch| format!("linux/{arch}")).collect();
    let mut text = format!(
        "# Kubespray{release}, {}: {what}.\n# Made by airbundle lists kubespray",
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
        // Not the directories above it: they are those of one machine.
        let name = path.file_name().unwrap_or(path.as_os_str()).display().to_string();
        let _ = write!(text, " --vars {}", name.replace(char::is_control, "?"));
    }
    text.push_str("; order as of its generate_list.sh.\n");
    text
}
