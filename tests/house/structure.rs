//! The structure that `docs/architecture.md` describes is the one that the sources have.

use std::collections::{BTreeMap, BTreeSet};

use crate::sources::{self, Source};

/// Upper limit on the lines of a file without its tests.
const FILE_LIMIT: usize = 600;

#[test]
fn no_file_imports_itself_through_others() {
    let sources = sources::all();
    let imports = sources::imports(&sources);
    let circles = circles(&imports);
    let text: Vec<String> = circles
        .iter()
        .map(|circle| {
            let members: BTreeSet<&str> = circle.iter().copied().collect();
            let edges = circle.iter().flat_map(|file| {
                imports[file].intersection(&members).map(move |target| format!("  {file} -> {target}"))
            });
            edges.collect::<Vec<_>>().join("\n")
        })
        .collect();
    assert!(circles.is_empty(), "import circles:\n{}", text.join("\n\n"));
}

/// Returns the groups of files that import each other in a loop.
fn circles<'a>(imports: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<Vec<&'a str>> {
    let reachable: BTreeMap<&str, BTreeSet<&str>> =
        imports.keys().map(|file| (*file, reach(imports, file))).collect();
    let mut done = BTreeSet::new();
    let mut circles = Vec::new();
    for file in imports.keys() {
        let members = reachable[file].iter().filter(|other| reachable[**other].contains(file));
        let members: Vec<&str> = members.copied().collect();
        if members.contains(file) && members.iter().all(|member| done.insert(*member)) {
            circles.push(members);
        }
    }
    circles
}

fn reach<'a>(imports: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&str> = imports[from].iter().copied().collect();
    while let Some(file) = next.pop() {
        if found.insert(file) {
            next.extend(imports[file].iter().copied());
        }
    }
    found
}

#[test]
fn a_file_imports_only_from_its_own_directory_and_from_lower_floors() {
    let sources = sources::all();
    let floors = floors();
    let floor = |path: &str| {
        let directory = path.split(['/', '.']).next().unwrap();
        *floors
            .get(directory)
            .unwrap_or_else(|| panic!("docs/architecture.md has no floor for `{directory}`"))
    };
    let mut upward = Vec::new();
    for (file, targets) in sources::imports(&sources) {
        if file == "lib.rs" {
            continue;
        }
        let directory = file.split(['/', '.']).next();
        for target in targets {
            if target.split(['/', '.']).next() != directory && floor(target) >= floor(file) {
                upward.push(format!("{file} (floor {}) -> {target} (floor {})", floor(file), floor(target)));
            }
        }
    }
    assert!(upward.is_empty(), "imports that lead up or sideways:\n{}", upward.join("\n"));
}

/// Returns the floor of each top-level module, from the table in `docs/architecture.md`.
fn floors() -> BTreeMap<&'static str, u32> {
    let page = include_str!("../../docs/architecture.md");
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        Some((cells.next()?.parse().ok()?, cells.next()?))
    });
    rows.flat_map(|(floor, modules): (u32, &str)| {
        modules.split(", ").map(move |module| (module.trim().trim_matches('`').trim_end_matches('/'), floor))
    })
    .collect()
}

#[test]
fn the_file_list_in_the_architecture_is_current() {
    let lines = sources::all().iter().filter(|source| source.path != "lib.rs").map(line).collect::<String>();
    crate::docs::assert_current("docs/architecture.md", Some("files"), &lines);
}

/// A table row: the file and the first sentence of its module documentation.
fn line(source: &Source) -> String {
    let head = source.text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim);
    let text = head.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let text = text.split_once(". ").map_or(text.as_str(), |(first, _)| first).trim_end_matches('.');
    assert!(!text.is_empty(), "{} has no module documentation", source.path);
    format!("| `{}` | {} |\n", source.path, text.replace("[`", "`").replace("`]", "`"))
}

#[test]
fn child_processes_are_built_at_one_place() {
    let sources = sources::all();
    let others = sources.iter().filter(|source| source.path != "base/child.rs");
    let found: Vec<&str> = others
        .filter(|source| source.code.contains("Command::new") || source.code.contains("process::Command as"))
        .map(|source| &*source.path)
        .collect();
    assert!(found.is_empty(), "use `base::child`, which removes secrets from the environment: {found:?}");
}

#[test]
fn no_file_is_longer_than_600_lines() {
    let long: Vec<String> = sources::all()
        .iter()
        .map(|source| (source.text.lines().count(), &source.path))
        .filter(|(lines, _)| *lines > FILE_LIMIT)
        .map(|(lines, path)| format!("{path}: {lines}"))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}
