//! [`Host`]: the downloads of one host, evaluated from the variables of a checkout.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use minijinja::Value;

use crate::commands::lists::ansible;
use crate::commands::lists::checkout::Checkout;
use crate::commands::lists::error::{EvalError, KubesprayError, Reason};
use crate::commands::lists::options::ListOptions;
use crate::commands::lists::template::Evaluator;
use crate::commands::lists::yaml::{Node, Yaml};
use crate::documents::list::Checksum;

/// Images that kubeadm starts, in the order of `generate_list.sh`.
const KUBE_IMAGES: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"];

/// Suffixes of checksum variables, which replace `_download_url`.
const CHECKSUM_SUFFIXES: [&str; 4] =
    ["_binary_checksum", "_archive_checksum", "_install_checksum", "_checksum"];

/// A file entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub url: String,
    /// The checksum pinned by Kubespray. `None`: not pinned.
    pub checksum: Option<Checksum>,
}

/// Fails if there are errors; duplicates are reported once.
pub(crate) fn fail_on_errors(errors: Vec<EvalError>, unpinned: bool) -> Result<(), KubesprayError> {
    let mut distinct: Vec<EvalError> = Vec::new();
    for error in errors {
        if !distinct.iter().any(|other| other.is_same(&error)) {
            distinct.push(error);
        }
    }
    if distinct.is_empty() { Ok(()) } else { Err(KubesprayError::Eval { errors: distinct, unpinned }) }
}

/// The evaluation of one host's downloads.
pub(crate) struct Host<'a> {
    evaluator: Arc<Evaluator>,
    options: &'a ListOptions,
    pub(crate) errors: Vec<EvalError>,
    /// True if a checksum is missing in Kubespray's variables.
    pub(crate) is_unpinned: bool,
    pub(crate) warnings: Vec<String>,
}

/// An entry of `downloads`.
pub(crate) struct Download<'a> {
    /// Such as `downloads.kubelet`.
    path: String,
    file: Arc<Path>,
    pub(crate) fields: HashMap<&'a str, &'a Node>,
}

impl<'a> Host<'a> {
    pub(crate) fn new(evaluator: Arc<Evaluator>, options: &'a ListOptions) -> Self {
        Self { evaluator, options, errors: Vec::new(), is_unpinned: false, warnings: Vec::new() }
    }

    pub(crate) fn evaluator(&self) -> &Arc<Evaluator> {
        &self.evaluator
    }

    pub(crate) fn lists(&mut self, checkout: &Checkout) -> (Vec<File>, Vec<String>) {
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

    /// Returns the entries that Kubespray's own script lists.
    fn all(&mut self, checkout: &Checkout, downloads: &[Download<'_>]) -> (Vec<File>, Vec<String>) {
        let by_url: HashMap<String, &Download<'_>> = downloads
            .iter()
            .filter_map(|download| Some((download.text(&self.evaluator, "url").ok()??, download)))
            .collect();
        let mut files = Vec::new();
        let mut names = HashSet::new();
        for (name, _) in &checkout.roles.defaults {
            if !name.ends_with("download_url") || !names.insert(name) {
                continue;
            }
            let Some(url) = self.ok(self.evaluator.value(name)).as_ref().and_then(non_empty) else {
                continue;
            };
            let checksum = by_url.get(&url).and_then(|download| self.checksum(download));
            let checksum = checksum.or_else(|| self.checksum_variable(name));
            files.push(File { url, checksum });
        }
        let images = downloads.iter().filter_map(|download| self.image(download)).collect();
        (files, images)
    }

    /// Returns the downloads of a host with these variables.
    fn enabled(&mut self, downloads: &[Download<'_>]) -> (Vec<File>, Vec<String>) {
        let (mut files, mut images) = (Vec::new(), Vec::new());
        for download in downloads {
            if !self.is_set(download, "enabled") {
                continue;
            }
            if self.is_set(download, "file")
                && let Some(url) = self.ok(download.text(&self.evaluator, "url")).flatten()
            {
                let checksum = self.checksum(download);
                files.push(File { url, checksum });
            }
            if self.is_set(download, "container") {
                images.extend(self.image(download));
            }
        }
        (files, images)
    }

    fn kube_images(&mut self) -> Vec<String> {
        let repo = self.ok(self.evaluator.value("kube_image_repo"));
        let version = self.ok(self.evaluator.value("kube_version"));
        let (Some(repo), Some(version)) = (repo, version) else { return Vec::new() };
        let version = version.to_string();
        // Since v2.28, `kube_version` has no leading `v`.
        let tag = format!("v{}", version.trim_start_matches('v'));
        KUBE_IMAGES.iter().map(|name| format!("{repo}/{name}:{tag}")).collect()
    }

    pub(crate) fn image(&mut self, download: &Download<'_>) -> Option<String> {
        let repo = self.ok(download.text(&self.evaluator, "repo")).flatten()?;
        let tag = self.ok(download.text(&self.evaluator, "tag")).flatten();
        // Kubespray pulls by digest if the user sets one.
        let digest = self.checksum_text(download).filter(|_| self.is_set(download, "container"));
        let tag = tag.map_or_else(String::new, |tag| format!(":{tag}"));
        let digest = digest.map_or_else(String::new, |digest| format!("@{}", with_algorithm(&digest)));
        Some(format!("{repo}{tag}{digest}"))
    }

    /// Returns the checksum of `download`.
    pub(crate) fn checksum(&mut self, download: &Download<'_>) -> Option<Checksum> {
        let text = self.checksum_text(download)?;
        let checksum = with_algorithm(&text).parse();
        checksum.map_err(|_| self.unfit(download, &text, "a sha256 or a sha512")).ok()
    }

    fn checksum_text(&mut self, download: &Download<'_>) -> Option<String> {
        let field =
            ["checksum", "sha256", "sha512"].into_iter().find(|field| download.fields.contains_key(field))?;
        match download.text(&self.evaluator, field) {
            Ok(text) => text.filter(|text| !is_absent(text)),
            Err(error) if error.is_undefined() && self.options.allow_unpinned => {
                self.warnings.push(format!("{error}: the file is listed without a checksum"));
                None
            }
            Err(error) => {
                self.is_unpinned |= error.is_undefined();
                self.errors.push(error);
                None
            }
        }
    }

    /// Returns the checksum in a variable named after `url`, for files that are not enabled in `downloads`.
    fn checksum_variable(&self, url: &str) -> Option<Checksum> {
        let stem = url.strip_suffix("_download_url")?;
        let names = CHECKSUM_SUFFIXES.iter().map(|suffix| format!("{stem}{suffix}"));
        let values = names.filter_map(|name| non_empty(&self.evaluator.value(&name).ok()?));
        values.filter(|text| !is_absent(text)).find_map(|text| with_algorithm(&text).parse().ok())
    }

    fn is_set(&mut self, download: &Download<'_>, field: &str) -> bool {
        let value = download.value(&self.evaluator, field);
        self.ok(value).flatten().is_some_and(|value| ansible::is_truthy(&value))
    }

    /// Collects an error. `None`: `result` is one.
    pub(crate) fn ok<T>(&mut self, result: Result<T, EvalError>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    fn unfit(&mut self, download: &Download<'_>, found: &str, expected: &'static str) {
        let line = download.fields.values().map(|node| node.line).min().unwrap_or(1);
        let reason = Reason::Unfit { found: found.to_owned(), expected };
        self.errors.push(EvalError::new(&download.path, &download.file, line, reason));
    }
}

/// Returns the entries of the variable `downloads`.
pub(crate) fn downloads(evaluator: &Evaluator) -> Result<Vec<Download<'_>>, EvalError> {
    let variable = evaluator.variable("downloads").expect("`Checkout::read` checks it; please report");
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

    pub(crate) fn text(&self, evaluator: &Evaluator, field: &str) -> Result<Option<String>, EvalError> {
        Ok(self.value(evaluator, field)?.as_ref().and_then(non_empty))
    }
}

/// Returns the value as text. `None`: null or empty.
pub(crate) fn non_empty(value: &Value) -> Option<String> {
    let text = value.to_string();
    (!value.is_none() && !matches!(text.trim(), "" | "None")).then(|| text.trim().to_owned())
}

/// True for `0`, which Kubespray uses if there is no download for an architecture.
fn is_absent(text: &str) -> bool {
    matches!(text.rsplit(':').next(), Some("0" | ""))
}

/// Prepends the algorithm, which checksums lack before v2.28, according to the length.
fn with_algorithm(text: &str) -> String {
    match text.len() {
        _ if text.contains(':') => text.to_owned(),
        128 => format!("sha512:{text}"),
        _ => format!("sha256:{text}"),
    }
}
