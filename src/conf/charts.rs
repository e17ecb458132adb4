//! `index.yaml` of Helm chart repositories: without it, Helm and the CLI of Cilium find no chart of the site.

use std::collections::BTreeMap;

use crate::base::path::RelPath;
use crate::conf::generated::MADE;
use crate::conf::quote::Text;
use crate::conf::quote::yaml::{self, Yaml};
use crate::conf::template::fill;
use crate::oci::reference::DEFAULT_PREFIX;
use crate::site::record::{Record, RecordedFile};

/// The name of an index in its repository.
const INDEX: &str = "index.yaml";

const CHART: &str = "    - apiVersion: v2
      name: @NAME@
      version: @VERSION@
      digest: @DIGEST@
      urls: [@FILE@]
";

/// The versions of each chart, with their files.
type Charts<'a> = BTreeMap<&'a str, Vec<(&'a str, &'a RecordedFile)>>;

/// Returns the index of each chart repository by its path below the files, unless a bundle has that file.
///
/// A chart is a file `NAME-VERSION.tgz` in the root directory of a host; other archives are below it.
pub(crate) fn indexes(record: &Record) -> BTreeMap<RelPath, Text<Yaml>> {
    let mut repositories: BTreeMap<&str, Charts<'_>> = BTreeMap::new();
    for file in &record.files {
        if let Some((directory, name, version)) = chart(&file.path) {
            repositories.entry(directory).or_default().entry(name).or_default().push((version, file));
        }
    }
    let index = |(directory, charts): (&str, Charts<'_>)| {
        let path = index_path(directory)?;
        let is_packed = record.files.iter().any(|file| file.path == path);
        (!is_packed).then(|| (path, text(charts)))
    };
    repositories.into_iter().filter_map(index).collect()
}

/// Returns the path of the index of a repository. `None`: the name of the directory is no path.
pub(crate) fn index_path(directory: &str) -> Option<RelPath> {
    RelPath::parse(&format!("{directory}/{INDEX}")).ok()
}

fn text(charts: Charts<'_>) -> Text<Yaml> {
    let mut text = Text::fixed(MADE);
    text.push_fixed("apiVersion: v1\nentries:\n");
    for (name, versions) in charts {
        text.push(&fill("  @NAME@:\n", &[("NAME", yaml::string(name))]));
        for (version, file) in versions {
            let values = [
                ("NAME", yaml::string(name)),
                ("VERSION", yaml::string(version)),
                ("DIGEST", yaml::string(&file.digest.hex())),
                ("FILE", yaml::string(file.path.components().last().unwrap_or_default())),
            ];
            text.push(&fill(CHART, &values));
        }
    }
    text
}

/// Returns the directory, name and version of a chart. `None`: the file is none.
fn chart(path: &RelPath) -> Option<(&str, &str, &str)> {
    let (directory, file) = path.as_str().rsplit_once('/')?;
    let is_root =
        directory.strip_prefix(DEFAULT_PREFIX)?.strip_prefix('/').is_some_and(|host| !host.contains('/'));
    let stem = file.strip_suffix(".tgz").filter(|_| is_root)?;
    let is_version = |text: &str| {
        let numbers = text.split(['-', '+']).next().unwrap_or_default().trim_start_matches('v').split('.');
        let is_number = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
        numbers.clone().count() == 3 && numbers.clone().all(is_number)
    };
    let mut cuts = stem.match_indices('-').map(|(at, _)| (&stem[..at], &stem[at + 1..]));
    cuts.find(|(_, version)| is_version(version)).map(|(name, version)| (directory, name, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_is_an_archive_with_a_version_in_the_root_of_a_host() {
        for (path, expected) in [
            ("k8s/helm.cilium.io/cilium-1.19.3.tgz", Some(("k8s/helm.cilium.io", "cilium", "1.19.3"))),
            ("k8s/charts.example/a-b-v1.2.3-rc.1.tgz", Some(("k8s/charts.example", "a-b", "v1.2.3-rc.1"))),
            ("k8s/github.com/x/cni-plugins-linux-amd64-v1.9.0.tgz", None),
            ("k8s/helm.cilium.io/cilium.tgz", None),
            ("k8s/helm.cilium.io/cilium-1.19.tgz", None),
            ("other/helm.cilium.io/cilium-1.19.3.tgz", None),
        ] {
            assert_eq!(chart(&RelPath::parse(path).unwrap()), expected, "{path}");
        }
    }
}
