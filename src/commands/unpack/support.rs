//! [`check_support`]: finds the files and tags that the file systems of a site do not support.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::base::path::{self, RelPath};
use crate::base::text::listed;
use crate::base::units::human_bytes;
use crate::bundle::format::layout::Layout;
use crate::commands::unpack::error::UnpackError;
use crate::commands::unpack::options::UnpackOptions;
use crate::oci::reference::{DEFAULT_PREFIX, Reference};
use crate::site::probe::Probe;
use crate::site::record::Record;
use crate::site::storage::Links;

/// Maximum number of entries that an error names for each problem.
const SHOWN: usize = 5;

/// The size that FAT32 supports.
const FAT_LIMIT: u64 = u32::MAX as u64;

/// Names that Windows reserves, without their extensions.
const RESERVED: [&str; 6] = ["con", "prn", "aux", "nul", "com", "lpt"];

/// Entries of a bundle or of the site: the name in messages, and the path relative to the root.
type Entries = BTreeMap<RelPath, String>;

/// Fails if a file system of the site does not support a name, a size, or two names that differ in case. What the
/// site has already is supported. Writes nothing but probes.
pub(super) fn check_support(
    layout: &Layout,
    links: &Links,
    record: &Record,
    options: &UnpackOptions,
) -> Result<(), UnpackError> {
    let site = &options.site;
    if !layout.files.is_empty() {
        let prefix = RelPath::parse(DEFAULT_PREFIX).expect("a plain path");
        let files = || layout.files.iter().map(|file| (prefix.join(&file.path), file));
        let recorded = record.files.iter().map(|file| (file.path.clone(), file.path.to_string())).collect();
        let new = files().map(|(path, file)| (path, file.path.to_string()));
        let entries = NewEntries::new(new, recorded);
        let sizes = files().filter(|(path, _)| entries.new.contains_key(path));
        let sizes = sizes.map(|(_, file)| (file.size, file.path.to_string()));
        let (path, base) = root(options.files.as_deref(), "files", site);
        check_root(&path, base, &entries, sizes.collect())?;
    }
    if !layout.images.is_empty() {
        let entries = NewEntries::new(tags(links), recorded_tags(record).collect());
        let recorded: BTreeSet<&Reference> = record.images.iter().map(|image| &image.reference).collect();
        let new = layout.images.iter().filter(|image| !recorded.contains(&image.indexed.reference));
        let sizes = new.filter_map(|image| {
            let largest = layout.blobs_of(image).into_iter().map(|blob| blob.size).max()?;
            Some((largest, image.indexed.reference.to_string()))
        });
        let (path, base) = root(options.registry.as_deref(), "registry", site);
        check_root(&path, base, &entries, sizes.collect())?;
    }
    Ok(())
}

/// Returns the path of a root, and the directory where its files are staged if possible.
fn root<'a>(named: Option<&'a Path>, name: &str, site: &'a Path) -> (PathBuf, &'a Path) {
    named.map_or_else(|| (site.join(name), site), |path| (path.to_owned(), path))
}

/// The entries of one root.
struct NewEntries {
    /// Those of the bundle that the site does not have yet.
    new: Entries,
    /// Those of the bundle and of the site.
    all: Entries,
}

impl NewEntries {
    fn new(bundle: impl Iterator<Item = (RelPath, String)>, recorded: Entries) -> Self {
        let new: Entries = bundle.filter(|(path, _)| !recorded.contains_key(path)).collect();
        let mut all = recorded;
        all.extend(new.clone());
        Self { new, all }
    }
}

/// Returns the tags of the bundle, as paths `repository/tag`.
fn tags(links: &Links) -> impl Iterator<Item = (RelPath, String)> {
    links.tag_names().filter_map(|(repository, tag)| tag_entry(repository, tag))
}

/// Returns the tags that the site has already.
fn recorded_tags(record: &Record) -> impl Iterator<Item = (RelPath, String)> {
    record.images.iter().flat_map(|image| {
        let tag = image.tag.as_deref();
        image.repositories.iter().filter_map(move |repository| tag_entry(repository, tag?))
    })
}

fn tag_entry(repository: &str, tag: &str) -> Option<(RelPath, String)> {
    Some((RelPath::parse(&format!("{repository}/{tag}")).ok()?, format!("{repository}:{tag}")))
}

/// Checks the entries of one root; `sizes` are those of its new entries.
fn check_root(
    path: &Path,
    base: &Path,
    entries: &NewEntries,
    mut sizes: Vec<(u64, String)>,
) -> Result<(), UnpackError> {
    let NewEntries { new, all } = entries;
    if new.is_empty() && sizes.is_empty() {
        return Ok(());
    }
    let Some(probe) = Probe::new(path, base)? else { return Ok(()) };
    let mut problems = Vec::new();
    let mut unsupported: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (key, (component, entries)) in unusual_components(new) {
        if !probe.supports(component)? {
            unsupported.entry(key.description(component, &probe)?).or_default().extend(entries);
        }
    }
    for (what, entries) in unsupported {
        problems.push(format!("{what} in {}", listed(entries.iter().map(|name| format!("`{name}`")), SHOWN)));
    }
    let collisions = collisions(new, all);
    if !collisions.is_empty() && probe.ignores_case()? {
        let pairs = collisions.iter().map(|(one, other)| format!("`{one}` and `{other}`"));
        problems.push(format!("names that differ in case only: {}", listed(pairs, SHOWN)));
    }
    sizes.sort_by(|one, other| other.cmp(one));
    if let Some(largest) = sizes.first().map(|(size, _)| *size)
        && !probe.supports_size(largest)?
    {
        let limit = FAT_LIMIT.min(largest - 1);
        let large = sizes.iter().filter(|(size, _)| *size > limit);
        let large = large.map(|(size, name)| format!("`{name}` ({})", human_bytes(*size)));
        problems.push(format!("files of this size: {}", listed(large, SHOWN)));
    }
    let file_system = probe.file_system();
    probe.close()?;
    if problems.is_empty() {
        return Ok(());
    }
    Err(UnpackError::Unsupported { path: path.to_owned(), file_system, problems })
}

/// The properties of a component that a file system may reject. Components with equal ones need one probe.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Oddity {
    /// The characters besides letters, digits, `_`, `-` and `.` of ASCII.
    characters: BTreeSet<char>,
    /// A dot or space at the end.
    end: Option<char>,
    /// The component, if Windows reserves it or if it is the longest of all.
    component: Option<String>,
}

impl Oddity {
    /// Returns `None` if every file system supports the component, provided that its length is no problem.
    fn of(component: &str) -> Option<Self> {
        let is_odd = |c: &char| !c.is_ascii_alphanumeric() && !"_-.".contains(*c);
        let stem = component.split('.').next().unwrap_or_default().to_ascii_lowercase();
        let stem = stem.trim_end_matches(|c: char| c.is_ascii_digit());
        let odd = Self {
            characters: component.chars().filter(is_odd).collect(),
            end: component.chars().last().filter(|c| ". ".contains(*c)),
            component: RESERVED.contains(&stem).then(|| component.to_owned()),
        };
        (!odd.characters.is_empty() || odd.end.is_some() || odd.component.is_some()).then_some(odd)
    }

    /// Returns what the file system does not support: the characters that cannot be in a name by themselves, or the
    /// component.
    fn description(&self, component: &str, probe: &Probe) -> Result<String, UnpackError> {
        let mut characters = Vec::new();
        for character in &self.characters {
            if !probe.supports(&format!("a{character}a"))? {
                characters.push(format!("`{character}`"));
            }
        }
        Ok(match (characters.is_empty(), self.end) {
            (false, _) => characters.join(", "),
            (true, Some(end)) => format!("`{end}` at the end of a name"),
            (true, None) => format!("the name `{component}`"),
        })
    }
}

/// Returns one component for each [`Oddity`], and the entries that have it.
fn unusual_components(entries: &Entries) -> BTreeMap<Oddity, (&str, Vec<&str>)> {
    let mut found: BTreeMap<Oddity, (&str, Vec<&str>)> = BTreeMap::new();
    let mut longest: Option<(&str, &str)> = None;
    for (path, name) in entries {
        for component in path.components() {
            if longest.is_none_or(|(other, _)| component.len() > other.len()) {
                longest = Some((component, name));
            }
            if let Some(oddity) = Oddity::of(component) {
                found.entry(oddity).or_insert_with(|| (component, Vec::new())).1.push(name);
            }
        }
    }
    if let Some((component, name)) = longest {
        let all = Oddity { characters: BTreeSet::new(), end: None, component: Some(component.to_owned()) };
        let known = Oddity::of(component).is_some_and(|oddity| found.contains_key(&oddity));
        if !known {
            found.insert(all, (component, vec![name]));
        }
    }
    found
}

/// Returns the pairs of an entry of `new` and one of `all` whose paths differ in case only.
fn collisions<'a>(new: &'a Entries, all: &'a Entries) -> Vec<(&'a str, &'a str)> {
    let paths: Vec<&RelPath> = all.keys().collect();
    let pairs = path::collisions(&paths).into_iter().map(|(one, other)| (paths[one], paths[other]));
    let is_new = |(one, other): &(&RelPath, &RelPath)| new.contains_key(*one) || new.contains_key(*other);
    // A file in the place of a directory is no question of case.
    let by_case = |(one, other): &(&RelPath, &RelPath)| {
        let (one, other) = (one.as_ref(), other.as_ref());
        !one.starts_with(other) && !other.starts_with(one)
    };
    let pairs = pairs.filter(is_new).filter(by_case);
    pairs.map(|(one, other)| (all[one].as_str(), all[other].as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(paths: &[&str]) -> Entries {
        paths.iter().map(|path| (path.parse().unwrap(), (*path).to_owned())).collect()
    }

    #[test]
    fn components_with_the_same_unusual_characters_need_one_probe() {
        let entries =
            entries(&["h:80/a", "h:90/b", "x/q?a=1", "d./x", "s /x", "x/nul.txt", "x/com1", "x/com", "x/ü"]);
        let found: Vec<_> =
            unusual_components(&entries).into_values().map(|(one, of)| (one, of.len())).collect();
        assert_eq!(found.iter().filter(|(one, _)| one.starts_with("h:")).collect::<Vec<_>>(), [&("h:80", 2)]);
        for component in ["q?a=1", "d.", "s ", "nul.txt", "com1", "com", "ü"] {
            assert!(found.contains(&(component, 1)), "{component}: {found:?}");
        }
        assert_eq!(found.len(), 8);
    }

    #[test]
    fn the_longest_component_is_probed_too() {
        let long = "x".repeat(250);
        let entries = entries(&["a/b", &format!("a/{long}"), "a/c"]);
        let found: Vec<_> = unusual_components(&entries).into_values().map(|(one, _)| one).collect();
        assert_eq!(found, [long]);
    }

    #[test]
    fn names_that_differ_in_case_collide_with_those_of_the_site() {
        let new = entries(&["k8s/a/V1", "k8s/a/v1", "k8s/b", "k8s/C"]);
        let mut all = new.clone();
        all.extend(entries(&["k8s/c", "k8s/a/v2", "k8s/x", "k8s/X", "k8s/b/d", "k8s/b"]));
        assert_eq!(collisions(&new, &all), [("k8s/a/V1", "k8s/a/v1"), ("k8s/C", "k8s/c")]);
    }
}
