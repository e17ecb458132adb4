//! [`Tree`]: a snapshot of a directory, for comparisons.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::sha256;

/// A snapshot of a directory: every path below it, relative, with its entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<PathBuf, Entry>);

/// File type, mode and content of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File {
        size: u64,
        /// `sha256:<hex>`.
        digest: String,
    },
    Directory,
    Symlink(PathBuf),
    /// A device, a socket or a pipe.
    Other,
}

/// Inode and change time (in nanoseconds) of each path: equal stamps prove that nothing was rewritten,
/// replaced, renamed or touched.
pub type Stamps = BTreeMap<PathBuf, (u64, i128)>;

impl Tree {
    /// Takes a snapshot of `root`.
    pub fn of(root: &Path) -> Self {
        Self(walk(root, |path, metadata| {
            let kind = if metadata.is_dir() {
                Kind::Directory
            } else if metadata.is_symlink() {
                Kind::Symlink(fs::read_link(path).expect("read a link"))
            } else if metadata.is_file() {
                let bytes = fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
                Kind::File { size: metadata.size(), digest: sha256(&bytes) }
            } else {
                Kind::Other
            };
            Entry { kind, mode: metadata.mode() & 0o7777 }
        }))
    }

    /// Returns the paths of the regular files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.0
            .iter()
            .filter(|(_, entry)| matches!(entry.kind, Kind::File { .. }))
            .map(|(path, _)| path.as_path())
    }

    /// Returns one line for each path that differs from `other`; empty if they are equal.
    pub fn difference(&self, other: &Self) -> Vec<String> {
        let paths: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let show =
            |entry: Option<&Entry>| entry.map_or_else(|| "nothing".to_owned(), |entry| format!("{entry:?}"));
        paths
            .into_iter()
            .map(|path| (path, self.0.get(path), other.0.get(path)))
            .filter(|(_, one, two)| one != two)
            .map(|(path, one, two)| format!("{}: {} and {}", path.display(), show(one), show(two)))
            .collect()
    }
}

/// Returns the stamps of everything below `root`.
pub fn stamps(root: &Path) -> Stamps {
    walk(root, |_, metadata| {
        (metadata.ino(), i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()))
    })
}

/// Returns the output of `diff -r` for two directories; empty if they are equal.
pub fn diff(one: &Path, two: &Path) -> String {
    let output =
        Command::new("diff").args(["-r", "--no-dereference"]).args([one, two]).output().expect("start diff");
    assert_ne!(output.status.code(), Some(2), "diff -r: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Panics unless both directories have the same paths with the same types, modes and content.
pub fn assert_same(one: &Path, two: &Path) {
    let difference = Tree::of(one).difference(&Tree::of(two));
    assert!(
        difference.is_empty(),
        "{} and {} differ:\n{}",
        one.display(),
        two.display(),
        difference.join("\n")
    );
}

fn walk<T>(root: &Path, look: impl Fn(&Path, &fs::Metadata) -> T) -> BTreeMap<PathBuf, T> {
    walkdir::WalkDir::new(root)
        .min_depth(1)
        .into_iter()
        .map(|entry| {
            let entry = entry.unwrap_or_else(|error| panic!("{error}"));
            let metadata = entry.path().symlink_metadata().unwrap_or_else(|error| panic!("{error}"));
            let path = entry.path().strip_prefix(root).expect("the path is below the root").to_owned();
            (path, look(entry.path(), &metadata))
        })
        .collect()
}
