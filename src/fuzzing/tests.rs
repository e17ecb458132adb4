//! Replays the corpus of each fuzz target.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// The name and the function of a target.
type Target = (&'static str, fn(&[u8]));

/// All targets.
const TARGETS: [Target; 17] = [
    ("bundle", bundle),
    ("challenge", challenge),
    ("credentials", credentials),
    ("frames", frames),
    ("index", index),
    ("link", link),
    ("list", list),
    ("lock", lock),
    ("manifest", manifest),
    ("record", record),
    ("recovery", recovery),
    ("reference", reference),
    ("seek_table", seek_table),
    ("settings", settings),
    ("signature", signature),
    ("template", template),
    ("yaml", yaml),
];

/// Maximum size of all inputs in bytes: they are part of the repository.
const LIMIT: usize = 1 << 20;

fn fuzz(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(path)
}

/// Returns the names in a directory, without their extension.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    entries.map(|entry| stem(entry.unwrap().path())).collect()
}

#[test]
fn every_function_has_a_target_and_a_corpus() {
    let expected: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&fuzz("corpus")), expected);
    assert_eq!(names(&fuzz("fuzz_targets")), expected);
    let manifest = fs::read_to_string(fuzz("Cargo.toml")).unwrap();
    let programs = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\""));
    assert_eq!(programs.map(str::to_owned).collect::<BTreeSet<_>>(), expected);
    for (name, _) in TARGETS {
        let program = fs::read_to_string(fuzz("fuzz_targets").join(name).with_extension("rs")).unwrap();
        assert!(program.contains(&format!("airbundle::fuzzing::{name}(bytes)")), "{name}");
    }
    // Exports that are no target would never run.
    let exports = include_str!("../fuzzing.rs").lines().filter_map(|line| line.strip_prefix("pub use "));
    let exports: BTreeSet<String> = exports
        .flat_map(|line| line.rsplit("::").next().unwrap().split(','))
        .map(|name| name.trim_matches(['{', '}', ';', ' ']).to_owned())
        .collect();
    assert_eq!(exports, expected);
}

#[test]
fn the_corpus_has_no_findings() {
    let (mut size, mut findings) = (0, Vec::new());
    for (name, run) in TARGETS {
        let directory = fuzz("corpus").join(name);
        let mut inputs: Vec<PathBuf> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "`{}` has no inputs", directory.display());
        for input in inputs {
            let bytes = fs::read(&input).unwrap();
            size += bytes.len();
            // The message of a panic does not have the name of the input.
            if std::panic::catch_unwind(|| run(&bytes)).is_err() {
                findings.push(input);
            }
        }
        run(&[]);
    }
    assert!(findings.is_empty(), "{findings:#?}");
    assert!(size <= LIMIT, "the corpus has {size} bytes");
}
