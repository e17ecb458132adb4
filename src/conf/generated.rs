//! [`Generated`]: writes generated files, and keeps those that the user edited.
//!
//! A list has the digest of each file as last written. A file that still has this digest can be overwritten.
//! A file with another digest was edited: its new content is written next to it, as `NAME.new`.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::directory::Directory;
use crate::base::fs::FsError;
use crate::base::json::pretty;
use crate::base::path::RelPath;
use crate::conf::host_record::{HostRecord, LIST, digest};
use crate::oci::digest::Digest;

/// The first line of a generated file in a language with `#` comments. `trust.sh` recognizes its own files by it.
pub(crate) const MADE: &str = "# Made by `unbundle site`.\n";

/// Maximum size of the list in bytes.
const LIST_LIMIT: u64 = 1 << 28;

/// The digests that each file can have without being edited: one, or two after an interrupted run.
type Digests = BTreeMap<String, BTreeSet<Digest>>;

/// The generated files in a directory.
pub(crate) struct Generated<'a> {
    directory: &'a Directory,
    /// The list of the previous run.
    known: Digests,
    files: Vec<File>,
}

struct File {
    name: String,
    content: Vec<u8>,
    mode: u32,
}

/// The state of a file before it is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The file has the new content.
    Current,
    /// The file is missing, or has the content of the previous run.
    Outdated,
    /// The file has other content.
    Edited,
}

impl<'a> Generated<'a> {
    /// Starts a run in `directory`.
    pub(crate) fn open(directory: &'a Directory) -> Result<Self, FsError> {
        let list = directory.read(LIST, LIST_LIMIT)?.unwrap_or_default();
        // Without a valid list, all files count as edited, so none is lost.
        let mut known: Digests = serde_json::from_slice(&list).unwrap_or_default();
        // Files that are not generated any more are removed: the list of a carried disk must not name others.
        known.retain(|name, _| RelPath::parse(name).is_ok());
        Ok(Self { directory, known, files: Vec::new() })
    }

    /// Adds a file; [`Generated::finish`] writes it.
    pub(crate) fn put(&mut self, name: &str, content: &[u8], mode: u32) {
        self.files.push(File { name: name.to_owned(), content: content.to_owned(), mode });
    }

    /// Returns the names and contents of the added files.
    #[cfg(test)]
    pub(crate) fn contents(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|file| (&*file.name, &*file.content))
    }

    /// Writes all files, and removes unedited files of the previous run that this run does not have. Returns
    /// the names of the written files and of the edited files, which are kept.
    pub(crate) fn finish(self, record: &mut HostRecord) -> Result<(Vec<String>, Vec<String>), FsError> {
        let states = self.files.iter().map(|file| self.state(file)).collect::<Result<Vec<_>, _>>()?;
        let new = self.new_digests(&states);
        // If this run is interrupted, some files have the old content and some the new one: neither is an
        // edit.
        let mut both = self.known.clone();
        for (name, digests) in &new {
            both.entry(name.clone()).or_default().extend(digests);
        }
        self.write_list(&self.known, &both, record)?;
        for (file, state) in self.files.iter().zip(&states) {
            self.write(file, *state)?;
        }
        for (name, digests) in self.known.iter().filter(|(name, _)| !new.contains_key(*name)) {
            if digest(self.directory, name)?.is_some_and(|digest| digests.contains(&digest)) {
                self.directory.remove(name)?;
            }
        }
        self.write_list(&both, &new, record)?;
        let names = |state: State| {
            let files = self.files.iter().zip(&states).filter(|(_, other)| **other == state);
            files.map(|(file, _)| file.name.clone()).collect()
        };
        Ok((names(State::Outdated), names(State::Edited)))
    }

    fn state(&self, file: &File) -> Result<State, FsError> {
        let is_known = |digest| self.known.get(&file.name).is_some_and(|digests| digests.contains(&digest));
        Ok(match digest(self.directory, &file.name)? {
            Some(digest) if digest == Digest::of(&file.content) => State::Current,
            Some(digest) if !is_known(digest) => State::Edited,
            _ => State::Outdated,
        })
    }

    /// Returns the list of this run. An edited file keeps its digests, so that reverting the edit makes it
    /// generated again.
    fn new_digests(&self, states: &[State]) -> Digests {
        let mut new = Digests::new();
        for (file, state) in self.files.iter().zip(states) {
            let digests = match state {
                State::Current | State::Outdated => Some([Digest::of(&file.content)].into()),
                State::Edited => self.known.get(&file.name).cloned(),
            };
            new.extend(digests.map(|digests| (file.name.clone(), digests)));
        }
        new
    }

    fn write(&self, file: &File, state: State) -> Result<(), FsError> {
        let File { name, content, mode } = file;
        let aside = format!("{name}.new");
        match state {
            State::Edited => return self.directory.replace(&aside, content, *mode),
            State::Outdated => self.directory.replace(name, content, *mode)?,
            State::Current => {}
        }
        self.directory.remove(&aside)
    }

    fn write_list(&self, old: &Digests, new: &Digests, record: &mut HostRecord) -> Result<(), FsError> {
        if old == new {
            return Ok(());
        }
        let list = pretty(new);
        record.announce(LIST, &list);
        self.directory.replace(LIST, &list, 0o644)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn run(directory: &Path, files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let directory = Directory::open(directory).unwrap();
        let mut generated = Generated::open(&directory).unwrap();
        for (name, content) in files {
            generated.put(name, content.as_bytes(), 0o644);
        }
        generated.finish(&mut HostRecord::none()).unwrap()
    }

    fn read(directory: &Path, name: &str) -> Option<String> {
        std::fs::read_to_string(directory.join(name)).ok()
    }

    #[test]
    fn an_edited_file_is_kept_until_it_equals_the_new_content() {
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
    fn a_file_that_is_no_longer_generated_is_removed_unless_it_was_edited() {
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
    fn after_an_interrupted_run_no_file_counts_as_edited() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        run(path, &[("a", "1"), ("b/c", "1"), ("d", "1")]);
        std::fs::remove_dir_all(path.join("b")).unwrap();
        std::fs::write(path.join("b"), "in the way").unwrap();
        let handle = Directory::open(path).unwrap();
        let mut generated = Generated::open(&handle).unwrap();
        for name in ["a", "b/c", "d"] {
            generated.put(name, b"2", 0o644);
        }
        assert!(generated.finish(&mut HostRecord::none()).is_err());
        std::fs::remove_file(path.join("b")).unwrap();
        assert_eq!(run(path, &[("a", "3"), ("b/c", "3"), ("d", "3")]).1, Vec::<String>::new());
        assert_eq!(read(path, "a").as_deref(), Some("3"));
    }

    #[test]
    fn a_file_that_predates_the_first_run_counts_as_edited() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a"), "mine").unwrap();
        assert_eq!(run(directory.path(), &[("a", "1")]).1, ["a"]);
        assert_eq!(read(directory.path(), "a").as_deref(), Some("mine"));
    }
}
