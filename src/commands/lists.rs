//! Lists of what a release of Kubespray downloads, made from its own variables.
//!
//! The result equals what `contrib/offline/generate_list.sh` of that release prints: the files are all variables
//! `…_download_url` of its roles, in their order; the images are `repo` and `tag` of all `downloads`, in their order, and
//! the four that kubeadm starts. To this come the checksums that Kubespray pins, and what a user has set. Ansible is not
//! needed: the variables are YAML, and their values Jinja.

mod additions;
mod ansible;
mod checkout;
mod error;
mod template;
mod version;
mod yaml;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use minijinja::Value;

pub use crate::commands::lists::error::{EvalError, KubesprayError, Reason};

use crate::commands::lists::checkout::Checkout;
use crate::commands::lists::template::Evaluator;
use crate::commands::lists::yaml::{Node, Yaml};
use crate::documents::list::{Checksum, Lists};

/// What kubeadm starts, as `generate_list.sh` names it.
const KUBE_IMAGES: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"];
/// How the checksum of a file is called, beside its `…_download_url`.
const CHECKSUMS: [&str; 4] = ["_binary_checksum", "_archive_checksum", "_install_checksum", "_checksum"];

/// What lists are made of, and for.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub struct Options {
    /// The checkout.
    pub source: PathBuf,
    /// The release that the lists are said to be for, if the checkout does not say so, or not rightly.
    pub release: Option<String>,
    /// The architectures of the hosts, each once.
    pub architectures: Vec<Architecture>,
    /// Files of variables, or folders of them: `group_vars`. Later ones win.
    pub vars: Vec<PathBuf>,
    /// Only what hosts with these variables download.
    pub enabled_only: bool,
    /// With what Kubespray uses and does not list.
    pub complete: bool,
    /// Take variables that say where hosts fetch from.
    pub keep_mirrors: bool,
    /// Take files whose checksum Kubespray does not know.
    pub allow_unpinned: bool,
}

/// An architecture that Kubespray knows, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `x86_64`
    Amd64,
    /// `aarch64`
    Arm64,
    /// `armv7l`
    Arm,
    /// `ppc64le`
    Ppc64le,
}

impl Architecture {
    const ALL: [Self; 4] = [Self::Amd64, Self::Arm64, Self::Arm, Self::Ppc64le];

    /// What Ansible says about such a host.
    fn fact(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
            Self::Arm => "armv7l",
            Self::Ppc64le => "ppc64le",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
            Self::Arm => "arm",
            Self::Ppc64le => "ppc64le",
        })
    }
}

impl FromStr for Architecture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|known| known.to_string() == text);
        known.ok_or_else(|| "expected amd64, arm64, arm or ppc64le".to_owned())
    }
}

/// What the lists are to say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// The release, if it is known.
    pub release: Option<String>,
    /// Files in their order, each URL once.
    pub files: Vec<File>,
    /// Images in their order, each once.
    pub images: Vec<String>,
    /// How many of the files Kubespray's own script does not list. They come last.
    pub added_files: usize,
    /// How many of the images, likewise.
    pub added_images: usize,
}

/// A file of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Where it is.
    pub url: String,
    /// What it must hash to, if Kubespray says so.
    pub checksum: Option<Checksum>,
}

/// Makes lists. `warn` is told what is no error and should be known.
pub fn make(options: &Options, warn: &mut dyn FnMut(String)) -> Result<Made, KubesprayError> {
    let checkout = Checkout::read(&options.source, &options.vars, options.keep_mirrors, warn)?;
    let mut made =
        Made { release: options.release.clone().or_else(|| checkout.release.clone()), ..Made::default() };
    let (mut errors, mut unpinned) = (Vec::new(), false);
    let hosts: Vec<_> = options
        .architectures
        .iter()
        .map(|architecture| {
            let variables = checkout.variables(architecture.fact(), &Default::default());
            Host::new(Evaluator::new(variables), options)
        })
        .collect();
    let mut seen = HashSet::new();
    let mut tell = |warnings: Vec<String>| {
        for warning in warnings {
            // Two architectures have most in common.
            if seen.insert(warning.clone()) {
                warn(warning);
            }
        }
    };
    for mut host in hosts {
        let (files, images) = host.lists(&checkout);
        for file in files {
            made.add_file(file, &mut host.warnings);
        }
        for image in images {
            made.add_image(image);
        }
        tell(host.warnings);
        unpinned |= host.unpinned;
        errors.append(&mut host.errors);
    }
    failed(errors, unpinned)?;
    if options.complete {
        let mut warnings = Vec::new();
        let before = (made.files.len(), made.images.len());
        additions::add(&checkout, options, &mut made, &mut warnings)?;
        made.added_files = made.files.len() - before.0;
        made.added_images = made.images.len() - before.1;
        tell(warnings);
    }
    check(&made)?;
    Ok(made)
}

/// An error if there are any, each fault once.
fn failed(errors: Vec<EvalError>, unpinned: bool) -> Result<(), KubesprayError> {
    let mut told: Vec<EvalError> = Vec::new();
    for error in errors {
        if !told.iter().any(|other| other.is_same(&error)) {
            told.push(error);
        }
    }
    if told.is_empty() { Ok(()) } else { Err(KubesprayError::Eval { errors: told, unpinned }) }
}

impl Made {
    fn add_file(&mut self, file: File, warnings: &mut Vec<String>) {
        let Some(known) = self.files.iter_mut().find(|known| known.url == file.url) else {
            self.files.push(file);
            return;
        };
        match (&known.checksum, &file.checksum) {
            (None, _) => known.checksum = file.checksum,
            (Some(first), Some(second)) if first != second => {
                warnings.push(format!(
                    "{}: is pinned twice, as {first} and as {second}: the first is taken",
                    file.url
                ));
            }
            _ => {}
        }
    }

    fn add_image(&mut self, image: String) {
        if !self.images.contains(&image) {
            self.images.push(image);
        }
    }

    /// The lines of `files.list`, without its head.
    #[must_use]
    pub fn files_text(&self) -> String {
        let line = |file: &File| match &file.checksum {
            Some(checksum) => format!("{} {checksum}", file.url),
            None => file.url.clone(),
        };
        let lines: Vec<_> = self.files.iter().map(line).collect();
        text(&lines, self.added_files)
    }

    /// The lines of `images.list`, without its head.
    #[must_use]
    pub fn images_text(&self) -> String {
        text(&self.images, self.added_images)
    }
}

/// Lines, and before the last `added` of them a word.
fn text(lines: &[String], added: usize) -> String {
    let mut text = String::new();
    for (line, index) in lines.iter().zip(0..) {
        if added > 0 && index + added == lines.len() {
            text.push_str("# What Kubespray uses and its generate_list.sh does not list.\n");
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// What cannot be in a list is told here and not to who packs.
fn check(made: &Made) -> Result<(), KubesprayError> {
    let mut problems = Vec::new();
    let mut lists = Lists::default();
    for text in [made.files_text(), made.images_text()] {
        lists.parse_into(Path::new("list"), &text, &mut problems);
        let told = problems.iter().map(|problem| {
            let line = text.lines().nth(problem.line - 1).unwrap_or_default();
            format!("Kubespray's variables give `{line}`: {}", problem.message)
        });
        let told: Vec<_> = told.collect();
        if !told.is_empty() {
            return Err(KubesprayError::Entries(told));
        }
    }
    Ok(())
}

/// A host of one architecture, for which lists are made.
struct Host<'a> {
    evaluator: Arc<Evaluator>,
    options: &'a Options,
    errors: Vec<EvalError>,
    /// Whether one of them is about a checksum that Kubespray does not have.
    unpinned: bool,
    warnings: Vec<String>,
}

/// One of `downloads`.
struct Download<'a> {
    /// `downloads.kubelet`
    path: String,
    file: Arc<Path>,
    fields: HashMap<&'a str, &'a Node>,
}

impl<'a> Host<'a> {
    fn new(evaluator: Arc<Evaluator>, options: &'a Options) -> Self {
        Self { evaluator, options, errors: Vec::new(), unpinned: false, warnings: Vec::new() }
    }

    fn lists(&mut self, checkout: &Checkout) -> (Vec<File>, Vec<String>) {
        let evaluator = self.evaluator.clone();
        let downloads = match downloads(&evaluator) {
            Ok(downloads) => downloads,
            Err(error) => {
                self.errors.push(error);
                return (Vec::new(), Vec::new());
            }
        };
        let (files, mut images) =
            if self.options.enabled_only { self.enabled(&downloads) } else { self.all(checkout, &downloads) };
        images.extend(self.kube_images());
        (files, images)
    }

    /// What Kubespray's own script lists.
    fn all(&mut self, checkout: &Checkout, downloads: &[Download<'_>]) -> (Vec<File>, Vec<String>) {
        let by_url: HashMap<String, &Download<'_>> = downloads
            .iter()
            .filter_map(|download| Some((download.text(&self.evaluator, "url").ok()??, download)))
            .collect();
        let mut files = Vec::new();
        let mut names = HashSet::new();
        for (name, _) in &checkout.defaults {
            if !name.ends_with("download_url") || !names.insert(name) {
                continue;
            }
            let Some(url) = self.kept(self.evaluator.value(name)).as_ref().and_then(present) else {
                continue;
            };
            let checksum = by_url.get(&url).and_then(|download| self.checksum(download));
            let checksum = checksum.or_else(|| self.checksum_beside(name));
            files.push(File { url, checksum });
        }
        let images = downloads.iter().filter_map(|download| self.image(download)).collect();
        (files, images)
    }

    /// What hosts with these variables download.
    fn enabled(&mut self, downloads: &[Download<'_>]) -> (Vec<File>, Vec<String>) {
        let (mut files, mut images) = (Vec::new(), Vec::new());
        for download in downloads {
            if !self.is(download, "enabled") {
                continue;
            }
            if self.is(download, "file")
                && let Some(url) = self.kept(download.text(&self.evaluator, "url")).flatten()
            {
                let checksum = self.checksum(download);
                files.push(File { url, checksum });
            }
            if self.is(download, "container") {
                images.extend(self.image(download));
            }
        }
        (files, images)
    }

    fn kube_images(&mut self) -> Vec<String> {
        let repo = self.kept(self.evaluator.value("kube_image_repo"));
        let version = self.kept(self.evaluator.value("kube_version"));
        let (Some(repo), Some(version)) = (repo, version) else { return Vec::new() };
        let version = version.to_string();
        // Since v2.28 it is written without the letter.
        let tag = format!("v{}", version.trim_start_matches('v'));
        KUBE_IMAGES.iter().map(|name| format!("{repo}/{name}:{tag}")).collect()
    }

    fn image(&mut self, download: &Download<'_>) -> Option<String> {
        let repo = self.kept(download.text(&self.evaluator, "repo")).flatten()?;
        let tag = self.kept(download.text(&self.evaluator, "tag")).flatten();
        // Kubespray pulls by digest if a user gives one.
        let digest = self.checksum_text(download).filter(|_| self.is(download, "container"));
        let tag = tag.map_or_else(String::new, |tag| format!(":{tag}"));
        let digest = digest.map_or_else(String::new, |digest| format!("@{}", with_algorithm(&digest)));
        Some(format!("{repo}{tag}{digest}"))
    }

    /// What pins the file of `download`.
    fn checksum(&mut self, download: &Download<'_>) -> Option<Checksum> {
        let text = self.checksum_text(download)?;
        let checksum = with_algorithm(&text).parse();
        checksum.map_err(|_| self.unfit(download, &text, "a sha256 or a sha512")).ok()
    }

    fn checksum_text(&mut self, download: &Download<'_>) -> Option<String> {
        let field =
            ["checksum", "sha256", "sha512"].into_iter().find(|field| download.fields.contains_key(field))?;
        match download.text(&self.evaluator, field) {
            Ok(text) => text.filter(|text| !is_no_pin(text)),
            Err(error) if error.is_undefined() && self.options.allow_unpinned => {
                self.warnings.push(format!("{error}: the file is listed without checksum"));
                None
            }
            Err(error) => {
                self.unpinned |= error.is_undefined();
                self.errors.push(error);
                None
            }
        }
    }

    /// The checksum that a variable beside `…_download_url` gives: for files that these settings do not download.
    fn checksum_beside(&self, url: &str) -> Option<Checksum> {
        let stem = url.strip_suffix("_download_url")?;
        let names = CHECKSUMS.iter().map(|end| format!("{stem}{end}"));
        let values = names.filter_map(|name| present(&self.evaluator.value(&name).ok()?));
        values.filter(|text| !is_no_pin(text)).find_map(|text| with_algorithm(&text).parse().ok())
    }

    fn is(&mut self, download: &Download<'_>, field: &str) -> bool {
        let value = download.value(&self.evaluator, field);
        self.kept(value).flatten().is_some_and(|value| ansible::is_truthy(&value))
    }

    fn kept<T>(&mut self, result: Result<T, EvalError>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    fn unfit(&mut self, download: &Download<'_>, found: &str, expected: &'static str) {
        let line = download.fields.values().map(|node| node.line).min().unwrap_or(1);
        let reason = Reason::Unfit { found: found.to_owned(), expected };
        self.errors.push(EvalError::new(&download.path, &download.file, line, reason));
    }
}

/// The entries of the variable `downloads`.
fn downloads(evaluator: &Evaluator) -> Result<Vec<Download<'_>>, EvalError> {
    let variable = evaluator.variable("downloads").expect("that it is there was looked at; please report");
    let file = &variable.file;
    let unfit = |path: &str, line| {
        let reason = Reason::Unfit { found: "something else".into(), expected: "a mapping" };
        EvalError::new(path, file, line, reason)
    };
    let Yaml::Map(entries) = &variable.node.value else { return Err(unfit("downloads", variable.node.line)) };
    let mut downloads = Vec::new();
    for (key, node) in entries {
        let path = format!("downloads.{}", key.value.key().unwrap_or_default());
        let Yaml::Map(fields) = &node.value else { return Err(unfit(&path, node.line)) };
        let mut named = HashMap::new();
        for (key, node) in fields {
            if let Yaml::Text(name) = &key.value {
                named.insert(name.as_str(), node);
            }
        }
        downloads.push(Download { path, file: file.clone(), fields: named });
    }
    Ok(downloads)
}

impl Download<'_> {
    fn value(&self, evaluator: &Evaluator, field: &str) -> Result<Option<Value>, EvalError> {
        let Some(node) = self.fields.get(field) else { return Ok(None) };
        evaluator.node(&format!("{}.{field}", self.path), node, &self.file).map(Some)
    }

    fn text(&self, evaluator: &Evaluator, field: &str) -> Result<Option<String>, EvalError> {
        Ok(self.value(evaluator, field)?.as_ref().and_then(present))
    }
}

/// A value as text, unless it stands for none.
fn present(value: &Value) -> Option<String> {
    let text = value.to_string();
    (!value.is_none() && !matches!(text.trim(), "" | "None")).then(|| text.trim().to_owned())
}

/// Kubespray writes `0` where there is nothing to download for an architecture.
fn is_no_pin(text: &str) -> bool {
    matches!(text.rsplit(':').next(), Some("0" | ""))
}

/// Before v2.28 checksums have no algorithm; their length tells it.
fn with_algorithm(text: &str) -> String {
    match text.len() {
        _ if text.contains(':') => text.to_owned(),
        128 => format!("sha512:{text}"),
        _ => format!("sha256:{text}"),
    }
}
