//! [`Generated`]: writes files that are made anew at every run, and leaves alone what somebody has edited.
//!
//! A list of digests says how each file was when it was last written. A file that is still like that may be written
//! over; one that is not has been edited, and what it would have been goes beside it, as `NAME.new`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError};
use crate::oci::digest::Digest;

const LIST: &str = ".generated.json";

/// Files below a directory; see the module.
pub(crate) struct Generated {
    directory: PathBuf,
    /// How each file may be without having been edited.
    before: BTreeMap<String, BTreeSet<Digest>>,
    files: Vec<File>,
}

struct File {
    name: String,
    content: Vec<u8>,
    mode: u32,
}

impl Generated {
    /// Begins a run over `directory`, which is there.
    #[must_use]
    pub(crate) fn open(directory: &Path) -> Self {
        let list = std::fs::read(directory.join(LIST)).unwrap_or_default();
        // Without a list that can be read, everything that is there counts as edited: nothing is lost.
        let before = serde_json::from_slice(&list).unwrap_or_default();
        Self { directory: directory.to_owned(), before, files: Vec::new() }
    }

    /// Takes `content` for the file `name`; nothing is written before [`Generated::finish`].
    pub(crate) fn put(&mut self, name: &str, content: &[u8], mode: u32) {
        self.files.push(File { name: name.to_owned(), content: content.to_owned(), mode });
    }

    /// Writes every file, beside it where it was edited, and removes what an earlier run has written and this one has
    /// not; says what was written and what was kept.
    pub(crate) fn finish(self) -> Result<(Vec<String>, Vec<String>), FsError> {
        let (mut written, mut kept) = (Vec::new(), Vec::new());
        let mut after: BTreeMap<String, BTreeSet<Digest>> = BTreeMap::new();
        let mut todo = Vec::new();
        for file in &self.files {
            let digest = Digest::of(&file.content);
            let found = self.found(&file.name)?;
            let own = self.before.get(&file.name);
            let is_edited =
                found.is_some_and(|found| found != digest && !own.is_some_and(|own| own.contains(&found)));
            if is_edited {
                kept.push(file.name.clone());
                after.extend(own.map(|own| (file.name.clone(), own.clone())));
            } else {
                after.insert(file.name.clone(), [digest].into());
                if found != Some(digest) {
                    written.push(file.name.clone());
                }
            }
            todo.push((file, is_edited, found == Some(digest)));
        }
        // A run that is cut short leaves some files as they were and some as they will be: neither was edited.
        let mut both = self.before.clone();
        for (name, digests) in &after {
            both.entry(name.clone()).or_default().extend(digests);
        }
        self.write_list(&self.before, &both)?;
        for (File { name, content, mode }, is_edited, is_right) in todo {
            let (path, aside) = (self.directory.join(name), self.directory.join(format!("{name}.new")));
            if is_edited {
                replace(&aside, content, *mode)?;
                continue;
            }
            if !is_right {
                replace(&path, content, *mode)?;
            }
            fs::remove_file(&aside)?;
        }
        for (name, own) in &self.before {
            let gone = !after.contains_key(name) && !kept.contains(name);
            if gone && self.found(name)?.is_some_and(|found| own.contains(&found)) {
                fs::remove_file(&self.directory.join(name))?;
            }
        }
        self.write_list(&both, &after)?;
        Ok((written, kept))
    }

    fn found(&self, name: &str) -> Result<Option<Digest>, FsError> {
        let path = self.directory.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(Digest::of(&bytes))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FsError::at("read", &path)(error)),
        }
    }

    fn write_list(
        &self,
        old: &BTreeMap<String, BTreeSet<Digest>>,
        new: &BTreeMap<String, BTreeSet<Digest>>,
    ) -> Result<(), FsError> {
        if old == new {
            Ok(())
        } else {
            replace(&self.directory.join(LIST), &crate::conf::setup::pretty(new), 0o644)
        }
    }
}

/// Writes a file as a whole: whoever reads meanwhile sees the old one.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FsError> {
    let directory = fs::parent(path);
    fs::create_dir_all(directory)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let scratch = directory.join(format!(".{name}.part"));
    fs::remove_file(&scratch)?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&scratch)
        .map_err(FsError::at("create", &scratch))?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))
        .and_then(|()| file.write_all(content))
        .and_then(|()| file.sync_all())
        .map_err(FsError::at("write", &scratch))?;
    fs::rename_durably(&scratch, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(directory: &Path, files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let mut generated = Generated::open(directory);
        for (name, content) in files {
            generated.put(name, content.as_bytes(), 0o644);
        }
        generated.finish().unwrap()
    }

    fn read(directory: &Path, name: &str) -> Option<String> {
        std::fs::read_to_string(directory.join(name)).ok()
    }

    #[test]
    fn what_is_edited_is_kept_until_it_is_what_would_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(run(path, &[("a", "1"), ("b/c", "1")]), (names(&["a", "b/c"]), names(&[])));
        assert_eq!(run(path, &[("a", "1"), ("b/c", "1")]), (names(&[]), names(&[])));
        assert_eq!(run(path, &[("a", "2"), ("b/c", "1")]), (names(&["a"]), names(&[])));
        std::fs::write(path.join("a"), "mine").unwrap();
        for _ in 0..2 {
            assert_eq!(run(path, &[("a", "3"), ("b/c", "1")]), (names(&[]), names(&["a"])));
            assert_eq!(read(path, "a").as_deref(), Some("mine"));
            assert_eq!(read(path, "a.new").as_deref(), Some("3"));
        }
        std::fs::rename(path.join("a.new"), path.join("a")).unwrap();
        assert_eq!(run(path, &[("a", "3"), ("b/c", "1")]), (names(&[]), names(&[])));
        assert_eq!(run(path, &[("a", "4"), ("b/c", "1")]), (names(&["a"]), names(&[])));
        assert_eq!(read(path, "a.new"), None);
    }

    #[test]
    fn what_is_no_longer_made_goes_unless_it_was_edited() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        run(path, &[("a", "1"), ("b", "1"), ("c", "1")]);
        std::fs::write(path.join("b"), "mine").unwrap();
        run(path, &[("c", "1")]);
        assert_eq!(
            [read(path, "a"), read(path, "b"), read(path, "c")],
            [None, Some("mine".into()), Some("1".into())]
        );
    }

    #[test]
    fn a_run_that_fails_midway_makes_nothing_an_edited_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        run(path, &[("a", "1"), ("b/c", "1"), ("d", "1")]);
        std::fs::remove_dir_all(path.join("b")).unwrap();
        std::fs::write(path.join("b"), "in the way").unwrap();
        let mut generated = Generated::open(path);
        for name in ["a", "b/c", "d"] {
            generated.put(name, b"2", 0o644);
        }
        assert!(generated.finish().is_err());
        std::fs::remove_file(path.join("b")).unwrap();
        assert_eq!(run(path, &[("a", "3"), ("b/c", "3"), ("d", "3")]).1, Vec::<String>::new());
        assert_eq!(read(path, "a").as_deref(), Some("3"));
    }

    #[test]
    fn what_was_there_before_is_the_users() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a"), "mine").unwrap();
        assert_eq!(run(directory.path(), &[("a", "1")]).1, ["a"]);
        assert_eq!(read(directory.path(), "a").as_deref(), Some("mine"));
    }
}
