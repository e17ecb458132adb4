//! [`Host`]: what one host downloads, from the variables of a checkout.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use minijinja::Value;

use crate::commands::lists::ansible;
use crate::commands::lists::checkout::Checkout;
use crate::commands::lists::options::ListOptions;
use crate::commands::lists::template::Evaluator;
use crate::commands::lists::yaml::{Node, Yaml};
use crate::documents::list::Checksum;

pub(crate) use crate::commands::lists::error::{EvalError, KubesprayError, Reason};

/// What kubeadm starts, as `generate_list.sh` names it.
pub(crate) const KUBE_IMAGES: [&str; 4] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"];

/// How the checksum of a file is called, beside its `…_download_url`.
pub(crate) const CHECKSUMS: [&str; 4] =
    ["_binary_checksum", "_archive_checksum", "_install_checksum", "_checksum"];

/// A file of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// Where it is.
    pub url: String,
    /// What it must hash to, if Kubespray says so.
    pub checksum: Option<Checksum>,
}

/// An error if there are any, each fault once.
pub(crate) fn failed(errors: Vec<EvalError>, unpinned: bool) -> Result<(), KubesprayError> {
    let mut told: Vec<EvalError> = Vec::new();
    for error in errors {
        if !told.iter().any(|other| other.is_same(&error)) {
            told.push(error);
        }
    }
    if told.is_empty() { Ok(()) } else { Err(KubesprayError::Eval { errors: told, unpinned }) }
}

/// A host of one architecture, for which lists are made.
pub(crate) struct Host<'a> {
    pub(crate) evaluator: Arc<Evaluator>,
    pub(crate) options: &'a ListOptions,
    pub(crate) errors: Vec<EvalError>,
    /// Whether one of them is about a checksum that Kubespray does not have.
    pub(crate) unpinned: bool,
    pub(crate) warnings: Vec<String>,
}

/// One of `downloads`.
pub(crate) struct Download<'a> {
    /// `downloads.kubelet`
    pub(crate) path: String,
    pub(crate) file: Arc<Path>,
    pub(crate) fields: HashMap<&'a str, &'a Node>,
}

impl<'a> Host<'a> {
    pub(crate) fn new(evaluator: Arc<Evaluator>, options: &'a ListOptions) -> Self {
        Self { evaluator, options, errors: Vec::new(), unpinned: false, warnings: Vec::new() }
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

    /// What Kubespray's own script lists.
    pub(crate) fn all(
        &mut self,
        checkout: &Checkout,
        downloads: &[Download<'_>],
    ) -> (Vec<File>, Vec<String>) {
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
    pub(crate) fn enabled(&mut self, downloads: &[Download<'_>]) -> (Vec<File>, Vec<String>) {
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

    pub(crate) fn kube_images(&mut self) -> Vec<String> {
        let repo = self.kept(self.evaluator.value("kube_image_repo"));
        let version = self.kept(self.evaluator.value("kube_version"));
        let (Some(repo), Some(version)) = (repo, version) else { return Vec::new() };
        let version = version.to_string();
        // Since v2.28 it is written without the letter.
        let tag = format!("v{}", version.trim_start_matches('v'));
        KUBE_IMAGES.iter().map(|name| format!("{repo}/{name}:{tag}")).collect()
    }

    pub(crate) fn image(&mut self, download: &Download<'_>) -> Option<String> {
        let repo = self.kept(download.text(&self.evaluator, "repo")).flatten()?;
        let tag = self.kept(download.text(&self.evaluator, "tag")).flatten();
        // Kubespray pulls by digest if a user gives one.
        let digest = self.checksum_text(download).filter(|_| self.is(download, "container"));
        let tag = tag.map_or_else(String::new, |tag| format!(":{tag}"));
        let digest = digest.map_or_else(String::new, |digest| format!("@{}", with_algorithm(&digest)));
        Some(format!("{repo}{tag}{digest}"))
    }

    /// What pins the file of `download`.
    pub(crate) fn checksum(&mut self, download: &Download<'_>) -> Option<Checksum> {
        let text = self.checksum_text(download)?;
        let checksum = with_algorithm(&text).parse();
        checksum.map_err(|_| self.unfit(download, &text, "a sha256 or a sha512")).ok()
    }

    pub(crate) fn checksum_text(&mut self, download: &Download<'_>) -> Option<String> {
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
    pub(crate) fn checksum_beside(&self, url: &str) -> Option<Checksum> {
        let stem = url.strip_suffix("_download_url")?;
        let names = CHECKSUMS.iter().map(|end| format!("{stem}{end}"));
        let values = names.filter_map(|name| present(&self.evaluator.value(&name).ok()?));
        values.filter(|text| !is_no_pin(text)).find_map(|text| with_algorithm(&text).parse().ok())
    }

    pub(crate) fn is(&mut self, download: &Download<'_>, field: &str) -> bool {
        let value = download.value(&self.evaluator, field);
        self.kept(value).flatten().is_some_and(|value| ansible::is_truthy(&value))
    }

    pub(crate) fn kept<T>(&mut self, result: Result<T, EvalError>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    pub(crate) fn unfit(&mut self, download: &Download<'_>, found: &str, expected: &'static str) {
        let line = download.fields.values().map(|node| node.line).min().unwrap_or(1);
        let reason = Reason::Unfit { found: found.to_owned(), expected };
        self.errors.push(EvalError::new(&download.path, &download.file, line, reason));
    }
}

/// The entries of the variable `downloads`.
pub(crate) fn downloads(evaluator: &Evaluator) -> Result<Vec<Download<'_>>, EvalError> {
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
    pub(crate) fn value(&self, evaluator: &Evaluator, field: &str) -> Result<Option<Value>, EvalError> {
        let Some(node) = self.fields.get(field) else { return Ok(None) };
        evaluator.node(&format!("{}.{field}", self.path), node, &self.file).map(Some)
    }

    pub(crate) fn text(&self, evaluator: &Evaluator, field: &str) -> Result<Option<String>, EvalError> {
        Ok(self.value(evaluator, field)?.as_ref().and_then(present))
    }
}

/// A value as text, unless it stands for none.
pub(crate) fn present(value: &Value) -> Option<String> {
    let text = value.to_string();
    (!value.is_none() && !matches!(text.trim(), "" | "None")).then(|| text.trim().to_owned())
}

/// Kubespray writes `0` where there is nothing to download for an architecture.
pub(crate) fn is_no_pin(text: &str) -> bool {
    matches!(text.rsplit(':').next(), Some("0" | ""))
}

/// Before v2.28 checksums have no algorithm; their length tells it.
pub(crate) fn with_algorithm(text: &str) -> String {
    match text.len() {
        _ if text.contains(':') => text.to_owned(),
        128 => format!("sha512:{text}"),
        _ => format!("sha256:{text}"),
    }
}
