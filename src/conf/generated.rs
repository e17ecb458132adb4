//! [`Generated`]: writes files that are made anew at every run, and leaves alone what somebody has edited.
//!
//! A list of digests says how each file was when it was last written. A file that is still like that may be written
//! over; one that is not has been edited, and what it would have been goes beside it, as `NAME.new`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::fs::{self, FsError};

const LIST: &str = ".generated.json";

/// Files below a folder; see the module.
pub struct Generated {
    folder: PathBuf,
    before: BTreeMap<String, Digest>,
    now: BTreeMap<String, Digest>,
    written: Vec<String>,
    kept: Vec<String>,
}

impl Generated {
    /// Begins a run over `folder`, which is there.
    pub fn open(folder: &Path) -> Result<Self, FsError> {
        let list = std::fs::read(folder.join(LIST)).unwrap_or_default();
        // Without a list that can be read, everything that is there counts as edited: nothing is lost.
        let before = serde_json::from_slice(&list).unwrap_or_default();
        let (now, written, kept) = (BTreeMap::new(), Vec::new(), Vec::new());
        Ok(Self { folder: folder.to_owned(), before, now, written, kept })
    }

    /// Writes `content` to the file `name`, or beside it if it was edited.
    pub fn put(&mut self, name: &str, content: &[u8], mode: u32) -> Result<(), FsError> {
        let path = self.folder.join(name);
        let aside = self.folder.join(format!("{name}.new"));
        let digest = Digest::of(content);
        let found = match std::fs::read(&path) {
            Ok(bytes) => Some(Digest::of(&bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(FsError::at("read", &path)(error)),
        };
        self.now.insert(name.to_owned(), digest);
        if found == Some(digest) {
            return fs::remove_file(&aside);
        }
        if found.is_some() && found != self.before.get(name).copied() {
            self.kept.push(name.to_owned());
            // Still the user's at the next run.
            match self.before.get(name) {
                Some(before) => self.now.insert(name.to_owned(), *before),
                None => self.now.remove(name),
            };
            return replace(&aside, content, mode);
        }
        self.written.push(name.to_owned());
        replace(&path, content, mode)?;
        fs::remove_file(&aside)
    }

    /// Removes what an earlier run has written and this one has not, and ends; says what was written and what was
    /// kept.
    pub fn finish(self) -> Result<(Vec<String>, Vec<String>), FsError> {
        for (name, digest) in &self.before {
            let path = self.folder.join(name);
            if !self.now.contains_key(name)
                && !self.kept.contains(name)
                && std::fs::read(&path).is_ok_and(|bytes| Digest::of(&bytes) == *digest)
            {
                fs::remove_file(&path)?;
            }
        }
        if self.now != self.before {
            let list = super::pretty(&self.now);
            replace(&self.folder.join(LIST), &list, 0o644)?;
        }
        Ok((self.written, self.kept))
    }
}

/// Writes a file as a whole: whoever reads meanwhile sees the old one.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FsError> {
    let folder = fs::parent(path);
    fs::create_dir_all(folder)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let scratch = folder.join(format!(".{name}.part"));
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

    fn run(folder: &Path, files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let mut generated = Generated::open(folder).unwrap();
        for (name, content) in files {
            generated.put(name, content.as_bytes(), 0o644).unwrap();
        }
        generated.finish().unwrap()
    }

    fn read(folder: &Path, name: &str) -> Option<String> {
        std::fs::read_to_string(folder.join(name)).ok()
    }

    #[test]
    fn what_is_edited_is_kept_until_it_is_what_would_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        run(path, &[("a", "1"), ("b", "1"), ("c", "1")]);
        std::fs::write(path.join("b"), "mine").unwrap();
        run(path, &[("c", "1")]);
        assert_eq!(
            [read(path, "a"), read(path, "b"), read(path, "c")],
            [None, Some("mine".into()), Some("1".into())]
        );
    }

    #[test]
    fn what_was_there_before_is_the_users() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "mine").unwrap();
        assert_eq!(run(folder.path(), &[("a", "1")]).1, ["a"]);
        assert_eq!(read(folder.path(), "a").as_deref(), Some("mine"));
    }
}
