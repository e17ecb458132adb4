//! [`Release`]: the files, images and variables of the releases of Kubespray, from a table in this program.

use std::sync::LazyLock;

/// A table of all releases. `scripts/update-kubespray-releases` describes its format.
const TABLE: &str = include_str!("../../../manifests/kubespray-releases.tsv");

static RELEASES: LazyLock<Vec<Release>> = LazyLock::new(|| parse(TABLE));

/// A release of Kubespray for one architecture.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Release {
    /// The version: `v2.31.0`.
    pub version: &'static str,
    /// The architecture: `amd64` or `arm64`.
    pub architecture: &'static str,
    /// The URLs that `generate_list.sh` lists.
    pub files: Vec<&'static str>,
    /// The references that it lists.
    pub images: Vec<&'static str>,
    /// Variables with locations outside of the hosts that have a variable of their own, and their values: a URL,
    /// possibly with expressions, or a repository.
    pub locations: Vec<(&'static str, &'static str)>,
}

impl Release {
    /// Returns all releases, the oldest first.
    #[must_use]
    pub(crate) fn all() -> &'static [Self] {
        &RELEASES
    }

    /// Returns the URLs and references.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &'static str> {
        self.files.iter().chain(&self.images).copied()
    }

    /// True if this is the release `version` (`v2.29.0`) or a later one.
    #[must_use]
    pub(crate) fn is_since(&self, version: &str) -> bool {
        numbers(self.version) >= numbers(version)
    }
}

/// Returns the version of Kubespray that a text names, such as `v2.31.0`. `None`: it names none.
#[must_use]
pub(crate) fn version_in(text: &str) -> Option<&str> {
    let is_version = |word: &&str| word.starts_with('v') && numbers(word).len() == 3;
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    text.to_lowercase().contains("kubespray").then(|| words.find(is_version)).flatten()
}

/// Returns the numbers of a version. Empty: it is none.
fn numbers(version: &str) -> Vec<u32> {
    let numbers: Result<_, _> = version.trim_start_matches('v').split('.').map(str::parse).collect();
    numbers.unwrap_or_default()
}

fn parse(table: &'static str) -> Vec<Release> {
    let mut releases = Vec::new();
    for line in table.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            ["releases", ref names @ ..] => {
                releases = names.iter().filter_map(|name| name.split_once('/')).map(empty).collect();
            }
            [bits, kind, ref values @ ..] => {
                let bits = u64::from_str_radix(bits, 16).unwrap_or_default();
                for (number, release) in releases.iter_mut().enumerate() {
                    if bits >> number & 1 == 1 {
                        release.add(kind, values);
                    }
                }
            }
            _ => {}
        }
    }
    releases
}

fn empty((version, architecture): (&'static str, &'static str)) -> Release {
    Release { version, architecture, files: Vec::new(), images: Vec::new(), locations: Vec::new() }
}

impl Release {
    fn add(&mut self, kind: &str, values: &[&'static str]) {
        match (kind, values) {
            ("file", [url]) => self.files.push(url),
            ("image", [reference]) => self.images.push(reference),
            ("variable", [name, value]) => self.locations.push((name, value)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_belongs_to_a_release() {
        let lines = TABLE.lines().filter(|line| !line.starts_with(['#', 'r'])).count();
        let all = Release::all();
        let distinct: std::collections::BTreeSet<_> = all
            .iter()
            .flat_map(|release| {
                let variables = release.locations.iter().map(|(name, value)| format!("{name} {value}"));
                release.entries().map(str::to_owned).chain(variables)
            })
            .collect();
        assert_eq!(distinct.len(), lines);
        assert!(all.len() >= 24 && all.len().is_multiple_of(2), "{}", all.len());
        for release in all {
            assert!((20..40).contains(&release.files.len()), "{}", release.version);
            assert!((40..80).contains(&release.images.len()), "{}", release.version);
            assert!(
                release.locations.iter().any(|(name, _)| *name == "argocd_install_url"),
                "{}",
                release.version
            );
        }
    }

    #[test]
    fn a_release_and_later_ones_are_since_it() {
        let release = |version| empty((version, "amd64"));
        for (version, since, expected) in [
            ("v2.29.0", "v2.29.0", true),
            ("v2.29.1", "v2.29.0", true),
            ("v2.31.0", "v2.29.0", true),
            ("v2.28.1", "v2.29.0", false),
            ("v2.9.0", "v2.29.0", false),
        ] {
            assert_eq!(release(version).is_since(since), expected, "{version}");
        }
    }

    #[test]
    fn a_title_can_name_a_release() {
        for (title, version) in [
            ("Kubespray v2.31.0", Some("v2.31.0")),
            ("kubespray-v2.28.1, June", Some("v2.28.1")),
            ("Release v2.31.0", None),
            ("Kubespray for Kubernetes v1.31", None),
            ("Kubespray", None),
        ] {
            assert_eq!(version_in(title), version, "{title}");
        }
    }
}
