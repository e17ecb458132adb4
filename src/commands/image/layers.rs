//! [`LayerPlan`]: distributes the content of a bundle over the layers of an image.
//!
//! A bundle is read once, front to back, so a layer holds a run of consecutive blobs of the bundle. A run
//! that is too large is split before the blob whose group (a repository, or a project of files) has the
//! smallest digest, and its halves recursively. The splits therefore depend on the set of group names, little
//! on sizes, and not on versions: if a few images of a bundle change, a few layers change, and a host with
//! the previous image already has the others. (If layers were filled one after the other, every split after
//! the first change would move. If blobs were sorted by digest, the changes would spread over all layers.)

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::base::path::RelPath;
use crate::bundle::format::layout::Blob;
use crate::bundle::read::reader::Contents;
use crate::commands::image::entry::{END, LayerEntry};
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::reference::DEFAULT_PREFIX;
use crate::oci::template::RepositoryTemplate;
use crate::site::storage::{Links, NamesError, blob_path};

/// The document root of the official nginx images.
pub(crate) const HTML: &str = "usr/share/nginx/html";
/// The configuration directory of the official nginx images.
pub(crate) const NGINX_CONF: &str = "etc/nginx/conf.d";
/// The storage directory of the official registry images.
pub(crate) const STORAGE: &str = "var/lib/registry";

/// The configuration file of a registry whose own one is unknown, in a container.
pub(crate) const REGISTRY_CONFIG: &str = "/etc/airbundle/registry.yml";

/// Hides what the base has in a directory (OCI image-spec, layer, "Opaque Whiteout"): nginx' welcome page.
const OPAQUE: &str = ".wh..wh..opq";

/// The layers to add to the base image.
#[derive(Debug, Default)]
pub(crate) struct LayerPlan {
    /// The layers in the order in which they are written, which is that of the bundle.
    pub layers: Vec<Layer>,
    /// True if the first written layer is the top layer of the image, because it changes with every bundle.
    pub first_is_top: bool,
}

/// A layer.
#[derive(Debug)]
pub(crate) struct Layer {
    /// A summary of the content, for the history of the image.
    pub title: String,
    /// Directories first, parents before children; then files in the order of the bundle.
    pub entries: Vec<LayerEntry>,
}

impl Layer {
    /// Returns the size of the tar archive in bytes.
    #[must_use]
    pub(crate) fn size(&self) -> u64 {
        self.entries.iter().map(LayerEntry::size).sum::<u64>() + END
    }

    /// Makes a layer of `directories`, `files`, and all their parent directories.
    fn new(title: String, directories: impl IntoIterator<Item = String>, files: Vec<LayerEntry>) -> Self {
        let mut all = BTreeSet::new();
        let directories: Vec<_> = directories.into_iter().map(|directory| directory + "/").collect();
        for path in directories.iter().map(String::as_str).chain(files.iter().map(LayerEntry::path)) {
            let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
            // If a directory is known, its parents are too.
            for parent in parents.rev() {
                if !all.insert(parent.to_owned()) {
                    break;
                }
            }
        }
        let entries = all.into_iter().map(LayerEntry::Directory).chain(files).collect();
        Self { title, entries }
    }
}

/// The limits of layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Maximum total size of the blobs of a layer in bytes; a layer of one blob can be larger.
    pub size: u64,
    /// Maximum number of layers; takes precedence over `size`.
    pub count: usize,
}

/// Returns the layers for an nginx image that serves the files.
#[must_use]
pub(crate) fn files_plan(contents: &Contents, conf: &[u8], limits: Limits) -> LayerPlan {
    let layout = &contents.layout;
    let mut paths: HashMap<Digest, Vec<&RelPath>> = HashMap::new();
    for file in &layout.files {
        paths.entry(file.digest).or_default().push(&file.path);
    }
    let blobs = layout.manifests.iter().chain(&layout.blobs);
    let items = blobs.filter_map(|blob| Some((*blob, paths.get(&blob.digest)?)));
    let items: Vec<_> = items.map(|(blob, paths)| Item { blob, group: project(paths[0]) }).collect();

    let conf = LayerEntry::Bytes(format!("{NGINX_CONF}/default.conf"), conf.to_vec());
    let opaque = LayerEntry::Bytes(format!("{HTML}/{OPAQUE}"), Vec::new());
    let mut layers = vec![Layer::new("the configuration of nginx".into(), [], vec![conf, opaque])];
    for run in split(&items, limits) {
        let mut files = Vec::new();
        for Item { blob, .. } in run {
            let mut names = paths[&blob.digest].iter().map(|path| format!("{HTML}/{DEFAULT_PREFIX}/{path}"));
            let first = names.next().expect("a file has a path; please report");
            files.push(blob_entry(first.clone(), *blob, contents));
            files.extend(names.map(|name| LayerEntry::Link(name, first.clone())));
        }
        layers.push(Layer::new(title("files", run), [], files));
    }
    LayerPlan { layers, first_is_top: false }
}

/// Returns the layers for a registry image that serves the images, with the repositories of all `templates`, and with
/// the configuration file `conf`, if there is one.
pub(crate) fn images_plan(
    contents: &Contents,
    templates: &[RepositoryTemplate],
    conf: Option<&[u8]>,
    limits: Limits,
) -> Result<LayerPlan, NamesError> {
    let layout = &contents.layout;
    let links = Links::new(layout, templates)?;
    let mut configs = HashSet::new();
    let mut documents = HashSet::new();
    let mut owners: HashMap<Digest, String> = HashMap::new();
    for image in &layout.images {
        let reference = &image.indexed.reference;
        for blob in layout.blobs_of(image) {
            let owner = || reference.name();
            owners.entry(blob.digest).or_insert_with(owner);
        }
        for manifest in &image.manifests {
            documents.insert(manifest.digest);
            if let Some(Manifest::Image { config, .. }) = layout.parsed.get(&manifest.digest) {
                configs.insert(config.digest);
            }
        }
    }
    let path_of = |path: &RelPath| format!("{STORAGE}/{path}");
    let data = |blob: &Blob| blob_entry(path_of(&blob_path(blob.digest)), *blob, contents);

    // Blobs in the order of the bundle: manifests, configs, then layers. Links can be anywhere.
    let links_by_path: BTreeMap<_, _> = links.stages().into_iter().flatten().collect();
    let links_by_path = links_by_path.into_iter();
    let mut top: Vec<_> = links_by_path
        .map(|(path, digest)| LayerEntry::Bytes(path_of(path), digest.to_string().into_bytes()))
        .collect();
    let conf_path = REGISTRY_CONFIG.trim_start_matches('/');
    top.extend(conf.map(|bytes| LayerEntry::Bytes(conf_path.to_owned(), bytes.to_vec())));
    let is_document = |blob: &&Blob| documents.contains(&blob.digest) || owners.contains_key(&blob.digest);
    top.extend(layout.manifests.iter().filter(is_document).map(data));
    top.extend(layout.blobs.iter().filter(|blob| configs.contains(&blob.digest)).map(data));

    let items = layout.blobs.iter().filter(|blob| !configs.contains(&blob.digest));
    let items = items.filter_map(|blob| Some(Item { blob: *blob, group: owners.get(&blob.digest)?.clone() }));
    let items: Vec<_> = items.collect();
    let directories = links.directories.iter().map(path_of);
    let mut layers = vec![Layer::new("manifests, configs, repositories and tags".into(), directories, top)];
    for run in split(&items, limits) {
        let files = run.iter().map(|item| data(&item.blob)).collect();
        layers.push(Layer::new(title("layers of", run), [], files));
    }
    Ok(LayerPlan { layers, first_is_top: true })
}

/// Returns a file whose content is `blob`; manifests are already in memory.
fn blob_entry(path: String, blob: Blob, contents: &Contents) -> LayerEntry {
    match contents.manifests.get(&blob.digest) {
        Some(bytes) => LayerEntry::Bytes(path, bytes.clone()),
        None => LayerEntry::Blob(path, blob),
    }
}

/// A blob to distribute.
struct Item {
    blob: Blob,
    /// The repository or project that it belongs to.
    group: String,
}

/// Returns the project of a file: the host and the first directory of its URL, which is rarely a version.
fn project(path: &RelPath) -> String {
    let directories = path.components().count() - 1;
    path.components().take(directories.clamp(1, 2)).collect::<Vec<_>>().join("/")
}

fn title(what: &str, run: &[Item]) -> String {
    match run {
        [first, .., last] if first.group != last.group => {
            format!("{what} {} to {}", first.group, last.group)
        }
        _ => format!("{what} {}", run[0].group),
    }
}

/// Splits `items` into runs within the limits.
fn split(items: &[Item], mut limits: Limits) -> Vec<&[Item]> {
    let mut sums = vec![0];
    let mut ranks = Vec::new();
    for (number, item) in items.iter().enumerate() {
        sums.push(sums[number] + item.blob.size);
        // Split between groups rather than inside a group.
        let is_inner = number > 0 && items[number - 1].group == item.group;
        ranks.push((is_inner, if is_inner { item.blob.digest } else { Digest::of(item.group.as_bytes()) }));
    }
    loop {
        let mut runs = Vec::new();
        let mut pending = vec![(0, items.len())];
        while let Some((start, end)) = pending.pop() {
            if sums[end] - sums[start] <= limits.size || end - start <= 1 {
                runs.push(&items[start..end]);
                continue;
            }
            let at = (start + 1..end).min_by_key(|at| ranks[*at]).expect("at least two items; please report");
            pending.push((at, end));
            pending.push((start, at));
        }
        runs.retain(|run| !run.is_empty());
        if runs.len() <= limits.count.max(1) {
            return runs;
        }
        limits.size = limits.size.saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(sizes: &[(&str, u64)]) -> Vec<Item> {
        let item = |(number, (group, size)): (usize, &(&str, u64))| {
            let digest = Digest::of(format!("{group} {number} {size}").as_bytes());
            Item { blob: Blob { digest, size: *size }, group: (*group).to_owned() }
        };
        sizes.iter().enumerate().map(item).collect()
    }

    fn runs(items: &[Item], size: u64, count: usize) -> Vec<Vec<u64>> {
        let runs = split(items, Limits { size, count });
        runs.into_iter().map(|run| run.iter().map(|item| item.blob.size).collect()).collect()
    }

    #[test]
    fn a_run_exceeds_the_size_limit_only_if_it_is_one_blob() {
        assert_eq!(runs(&items(&[]), 10, 9), [[0; 0]; 0]);
        assert_eq!(runs(&items(&[("a", 5), ("b", 5)]), 10, 9), [[5, 5]]);
        assert_eq!(runs(&items(&[("a", 5), ("b", 6)]), 10, 9), [[5], [6]]);
        assert_eq!(runs(&items(&[("a", 1), ("b", 99), ("c", 1)]), 10, 9), [[1], [99], [1]]);
        let many: Vec<_> = (1..100).map(|size| ("a", size)).collect();
        let many = items(&many);
        for run in runs(&many, 120, 1000) {
            assert!(run.iter().sum::<u64>() <= 120, "{run:?}");
        }
        assert_eq!(runs(&many, 120, 1000).concat(), (1..100).collect::<Vec<_>>());
    }

    #[test]
    fn the_number_of_layers_never_exceeds_the_limit() {
        let many: Vec<_> = (0..1000).map(|_| ("a", 1000)).collect();
        let many = items(&many);
        for count in [1, 2, 10, 100] {
            let runs = runs(&many, 1, count);
            assert!(runs.len() <= count && runs.len() * 8 > count, "{} of {count}", runs.len());
        }
    }

    #[test]
    fn the_blobs_of_a_group_stay_together_if_they_fit() {
        let items = items(&[("a", 4), ("a", 4), ("b", 4), ("b", 4), ("c", 4), ("c", 4)]);
        assert_eq!(runs(&items, 8, 9), [[4, 4], [4, 4], [4, 4]]);
    }

    #[test]
    fn a_changed_group_changes_at_most_two_runs() {
        let names: Vec<String> = (0..200).map(|number| format!("quay.io/{number:03}/image")).collect();
        let of = |changed: &str| {
            let sizes: Vec<_> = names
                .iter()
                .map(|name| (name.as_str(), if name == changed { 75 } else { 50 + name.len() as u64 }))
                .collect();
            let items = items(&sizes);
            let runs = split(&items, Limits { size: 500, count: 1000 });
            let runs = runs.iter().map(|run| run.iter().map(|item| item.blob.digest).collect::<Vec<_>>());
            runs.collect::<BTreeSet<_>>()
        };
        let before = of("");
        assert!(before.len() > 20, "{}", before.len());
        for changed in &names {
            assert!(of(changed).difference(&before).count() <= 2, "{changed}");
        }
    }

    #[test]
    fn the_project_of_a_file_is_its_host_and_first_directory() {
        for (path, group) in [
            ("get.helm.sh/helm-v3.14.2-linux-amd64.tar.gz", "get.helm.sh"),
            ("dl.k8s.io/release/v1.29.5/bin/linux/amd64/kubelet", "dl.k8s.io/release"),
            ("github.com/etcd-io/etcd/releases/download/v3.5.12/x.tar.gz", "github.com/etcd-io"),
        ] {
            assert_eq!(project(&path.parse().unwrap()), group);
        }
    }

    #[test]
    fn every_directory_occurs_once_and_precedes_its_content() {
        let files = ["a/b/c/x", "a/z", "y"].map(|path| LayerEntry::Bytes(path.into(), Vec::new()));
        let layer = Layer::new(String::new(), ["a/b/empty".to_owned()], files.into());
        let paths: Vec<_> = layer.entries.iter().map(LayerEntry::path).collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a/b/empty", "a/b/c/x", "a/z", "y"]);
    }
}
