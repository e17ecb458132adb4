//! Bundles written by earlier versions stay readable.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use airbundle::bundle::format::FORMAT;
use serde_json::{Value, json};

use crate::program::{unbundle, unbundle_from};
use crate::support::tree::{Kind, Tree};

const FROZEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/frozen");
const FORMAT_PAGE: &str = include_str!("../../bundle-format.md");

/// Returns the frozen bundles by name: a file, or a directory of volumes.
fn frozen() -> Vec<(String, PathBuf)> {
    let name = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        let name = if path.is_dir() { name } else { name.strip_suffix(".tar.zst")? };
        Some(name.to_owned())
    };
    let paths = fs::read_dir(FROZEN)
        .expect("read the directory")
        .map(|entry| entry.expect("read the directory").path());
    let mut all: Vec<_> = paths.filter_map(|path| Some((name(&path)?, path))).collect();
    all.sort();
    all
}

/// Returns the versions in the table "Versions" of the format page, each with its links: `1.1` and
/// `the-signature`.
fn versions() -> Vec<(String, Vec<String>)> {
    let table = FORMAT_PAGE.split("\n## Versions\n").nth(1).expect("the section exists");
    let rows = table.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let mut versions: Vec<(String, Vec<String>)> = Vec::new();
    for line in rows.take_while(|line| line.starts_with('|')) {
        let version = line.split('|').nth(1).expect("a row").trim();
        // A row without a version continues the one above it.
        if !version.is_empty() {
            versions.push((version.to_owned(), Vec::new()));
        }
        let links = line.split("](#").skip(1).filter_map(|link| Some(link.split_once(')')?.0.to_owned()));
        versions.last_mut().expect("the first row has a version").1.extend(links);
    }
    versions
}

#[test]
fn every_format_version_and_feature_has_a_frozen_bundle() {
    let versions = versions();
    let last = versions.last().expect("the table has versions");
    assert_eq!(last.0, format!("{}.{}", FORMAT.0, FORMAT.1));
    let expected = versions.iter().flat_map(|(version, brought)| {
        let name = |what: &String| format!("{version}-{}", what.trim_start_matches("the-"));
        let all: Vec<_> = brought.iter().map(name).collect();
        if all.is_empty() { vec![version.clone()] } else { all }
    });
    let expected: BTreeSet<String> = expected.collect();
    let there: BTreeSet<String> = frozen().into_iter().map(|(name, _)| name).collect();
    assert_eq!(there, expected, "tests/frozen/README.md says how to add one");
}

fn json_of(name: &str) -> Value {
    serde_json::from_slice(&fs::read(Path::new(FROZEN).join(name)).expect("read the file")).expect("JSON")
}

/// Returns a directory for the site of a bundle; for a delta it holds the base.
fn site(directory: &Path, name: &str) -> PathBuf {
    let site = directory.join(name);
    if name.contains("-deltas") {
        let base = Path::new(FROZEN).join("1.0.tar.zst");
        unbundle(["unpack".as_ref(), base.as_os_str(), site.as_os_str()]).ok();
    }
    site
}

#[test]
fn every_frozen_bundle_is_read_to_its_last_byte() {
    let (content, identities) = (json_of("content.json"), json_of("identities.json"));
    let expected_site = fs::read_to_string(Path::new(FROZEN).join("site.sha256")).expect("read the file");
    let directory = tempfile::tempdir().expect("create a directory");
    for (name, path) in frozen() {
        unbundle(["verify".as_ref(), path.as_os_str()]).ok();
        unbundle(["verify".as_ref(), "--quick".as_ref(), path.as_os_str()]).ok();
        let listed = unbundle(["ls".as_ref(), "--json".as_ref(), path.as_os_str()]).ok().json();
        for list in ["images", "files"] {
            let (listed, expected) = (listed[list].as_array().expect("a list"), content[list].as_array());
            let expected = expected.expect("a list");
            assert_eq!(listed.len(), expected.len(), "{name}");
            for (listed, expected) in listed.iter().zip(expected) {
                // Members added by later versions are ignored.
                let mut known = expected.as_object().expect("an object").clone();
                if name.starts_with("1.3-names") && list == "images" {
                    let text = |key: &str| known[key].as_str().expect("a string");
                    let both = format!("{}@{}", text("reference"), text("digest"));
                    known.insert("reference".to_owned(), both.into());
                }
                assert!(known.iter().all(|(key, value)| listed[key] == *value), "{name}: {listed}");
            }
        }
        assert_eq!(listed["identity"], identities[&name], "{name}");

        let target = site(directory.path(), &name);
        unbundle(["unpack".as_ref(), path.as_os_str(), target.as_os_str()]).ok();
        let tree = Tree::of(&target);
        let served =
            tree.0.iter().filter(|(path, _)| path.starts_with("files") || path.starts_with("registry"));
        let lines = served.filter_map(|(path, entry)| match &entry.kind {
            Kind::File { digest, .. } => {
                Some(format!("{}  {}\n", digest.strip_prefix("sha256:")?, path.display()))
            }
            _ => None,
        });
        let lines: BTreeSet<String> = lines.collect();
        assert_eq!(lines, expected_site.split_inclusive('\n').map(str::to_owned).collect(), "{name}");

        if path.is_file() {
            let piped = site(directory.path(), &format!("{name}-piped"));
            unbundle_from(&path, ["unpack".as_ref(), "-".as_ref(), piped.as_os_str()]).ok();
            assert_eq!(Tree::of(&piped).difference(&tree), Vec::<String>::new(), "{name}");
        }
        let key = Path::new(FROZEN).join(format!("{name}.pub"));
        if key.exists() {
            let args = ["verify".as_ref(), "--json".as_ref(), "--trusted-key".as_ref(), key.as_os_str()];
            let verdict = unbundle(args.into_iter().chain([path.as_os_str()])).ok().json();
            assert_eq!(verdict["signature"]["trusted"], json!(true), "{name}");
        }
    }
}
