//! [`Directory`]: a handle of a directory, below which no symlink is followed.
//!
//! Names are relative to the handle and can have several components. A component that is a symlink is an
//! error, as is a last component that is not a regular file. Files are created with `O_EXCL`, so that nothing
//! is written through a link.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::base::fs::{FsError, create_dir_all, read_limited};
use crate::base::own_file::{Distrust, FLAGS, check, check_owner, check_user, regular};

/// A handle of a directory; see the module.
#[derive(Debug)]
pub(crate) struct Directory {
    file: File,
    path: PathBuf,
}

impl Directory {
    /// Opens a directory that the user named: symlinks in `path` are followed.
    pub(crate) fn open(path: &Path) -> Result<Self, FsError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
        Ok(Self { file: file.map_err(FsError::at("open", path))?.into(), path: path.to_owned() })
    }

    /// Opens a directory that the user named, and creates it and its parents if they are missing.
    pub(crate) fn create(path: &Path) -> Result<Self, FsError> {
        create_dir_all(path)?;
        Self::open(path)
    }

    /// Opens the subdirectory `name`. Fails if it is missing or a symlink.
    pub(crate) fn subdirectory(&self, name: &str) -> Result<Self, FsError> {
        self.check_name(name)?;
        let path = self.path.join(name);
        let flags = FLAGS | OFlags::DIRECTORY;
        let file = rustix::fs::openat(&self.file, name, flags, Mode::empty());
        let file = file.map_err(|error| self.explain(error, name));
        Ok(Self { file: file.map_err(FsError::at("open", &path))?.into(), path })
    }

    /// Opens the subdirectory `name`, and creates it if it is missing, with `mode` as far as the umask allows.
    pub(crate) fn create_subdirectory(&self, name: &str, mode: u32) -> Result<Self, FsError> {
        self.check_name(name)?;
        match rustix::fs::mkdirat(&self.file, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => self.subdirectory(name),
            Err(error) => Err(FsError::at("create directory", self.path.join(name))(error.into())),
        }
    }

    /// Like [`Self::create`], but if `path` is below `base`, symlinks are followed in `base` only.
    pub(crate) fn create_in(path: &Path, base: &Path) -> Result<Self, FsError> {
        let Ok(relative) = path.strip_prefix(base) else { return Self::create(path) };
        let mut directory = Self::create(base)?;
        for component in relative.components() {
            let name = match component {
                Component::CurDir => continue,
                Component::Normal(name) => name.to_str(),
                _ => None,
            };
            let name = name.ok_or_else(|| FsError::at("open", path)(ErrorKind::InvalidInput.into()))?;
            directory = directory.create_subdirectory(name, 0o777)?;
        }
        Ok(directory)
    }

    /// Fails unless the directory belongs to the user or root, and no other user can write to it.
    pub(crate) fn check_owner(&self) -> Result<(), FsError> {
        self.check_metadata(check_owner)
    }

    /// Fails unless the directory belongs to the user or root.
    pub(crate) fn check_user(&self) -> Result<(), FsError> {
        self.check_metadata(check_user)
    }

    fn check_metadata(&self, check: impl Fn(&Metadata) -> Result<(), Distrust>) -> Result<(), FsError> {
        let checked = self.file.metadata().and_then(|metadata| Ok(check(&metadata)?));
        checked.map_err(FsError::at("use directory", &self.path))
    }

    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the directory again, with a lock and an offset of its own.
    pub(crate) fn reopen(&self) -> Result<File, FsError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.file, ".", flags, Mode::empty());
        Ok(file.map_err(|error| FsError::at("open", &self.path)(error.into()))?.into())
    }

    /// The open directory.
    #[must_use]
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Opens a regular file for reading; `None`: it is missing.
    pub(crate) fn open_file(&self, name: &str) -> Result<Option<File>, FsError> {
        let at = || FsError::at("open", self.path.join(name));
        let Some((parent, last)) = self.parent(name)? else { return Ok(None) };
        let parent = parent.as_ref().unwrap_or(self);
        match rustix::fs::openat(&parent.file, last, FLAGS, Mode::empty()) {
            Ok(file) => regular(file.into()).map(Some).map_err(at()),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(at()(parent.explain(error, last))),
        }
    }

    /// Reads a regular file; `None`: it is missing. Fails if it has more than `limit` bytes.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, FsError> {
        let Some(file) = self.open_file(name)? else { return Ok(None) };
        read_limited(file, limit).map(Some).map_err(FsError::at("read", self.path.join(name)))
    }

    /// Creates a file, in place of any file or link that has the name.
    pub(crate) fn create_file(&self, name: &str, mode: u32) -> Result<File, FsError> {
        let flags = FLAGS | OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        let create = || rustix::fs::openat(&self.file, name, flags, Mode::from_raw_mode(mode));
        self.check_name(name)?;
        let file = match create() {
            Err(Errno::EXIST) => {
                self.remove(name)?;
                create()
            }
            file => file,
        };
        Ok(file.map_err(|error| FsError::at("create", self.path.join(name))(error.into()))?.into())
    }

    /// Opens the file that a lock is held on, and creates it if it is missing. Its content is not used, so it
    /// can belong to another user; it cannot have another name. Other users cannot open a new one, and so they cannot
    /// hold its lock.
    pub(crate) fn lock_file(&self, name: &str) -> Result<File, FsError> {
        self.check_name(name)?;
        let at = || FsError::at("open", self.path.join(name));
        let flags = FLAGS | OFlags::CREATE | OFlags::WRONLY;
        let file = rustix::fs::openat(&self.file, name, flags, Mode::from_raw_mode(0o600));
        let file: File = file.map_err(|error| at()(self.explain(error, name)))?.into();
        let metadata = file.metadata().map_err(at())?;
        match check(&metadata) {
            Err(error @ (Distrust::NotRegular | Distrust::HardLinks(_))) => Err(at()(error.into())),
            _ => Ok(file),
        }
    }

    /// Replaces a file atomically and durably, and creates its parent directories. `mode` is exact.
    pub(crate) fn replace(&self, name: &str, content: &[u8], mode: u32) -> Result<(), FsError> {
        self.check_name(name)?;
        let mut parents = None;
        let mut rest = name;
        while let Some((first, remaining)) = rest.split_once('/') {
            parents = Some(parents.as_ref().unwrap_or(self).create_subdirectory(first, 0o777)?);
            rest = remaining;
        }
        let parent = parents.as_ref().unwrap_or(self);
        let scratch = format!(".{rest}.part");
        let replaced =
            parent.write_new(&scratch, content, mode).and_then(|()| parent.rename(&scratch, parent, rest));
        if replaced.is_err() {
            let _ = parent.remove(&scratch); // the error above is the one to report
        }
        replaced
    }

    /// Writes and syncs a file in place of any file or link that has the name. `mode` is exact.
    fn write_new(&self, name: &str, content: &[u8], mode: u32) -> Result<(), FsError> {
        let mut file = self.create_file(name, mode & 0o700)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))
            .and_then(|()| file.write_all(content))
            .and_then(|()| file.sync_all())
            .map_err(FsError::at("write", self.path.join(name)))
    }

    /// Replaces files of the subdirectory `name` together: the new ones are written to another directory, which takes its
    /// place in one rename. Its other files are kept. A file has a name, its content and its exact mode.
    ///
    /// File systems that cannot exchange two names get the files one after the other, and only the first one stays while
    /// they do: if the run is interrupted, a file is missing, but none is of another generation.
    pub(crate) fn replace_together(&self, name: &str, files: &[(&str, &[u8], u32)]) -> Result<(), FsError> {
        let scratch = format!(".{name}.part");
        let names: Vec<&str> = files.iter().map(|(file, ..)| *file).collect();
        self.clear_replacement(name, &names)?;
        let new = self.create_subdirectory(&scratch, 0o777)?;
        for &(file, content, mode) in files {
            new.write_new(file, content, mode)?;
        }
        let at = || FsError::at("write", &new.path);
        if !self.exists(name)? {
            new.file.sync_all().map_err(at())?;
            return self.rename(&scratch, self, name);
        }
        let old = self.subdirectory(name)?;
        let permissions = old.file.metadata().map(|metadata| metadata.permissions());
        permissions
            .and_then(|permissions| new.file.set_permissions(permissions))
            .and_then(|()| new.file.sync_all())
            .map_err(at())?;
        match rustix::fs::renameat_with(&self.file, &*scratch, &self.file, name, RenameFlags::EXCHANGE) {
            Ok(()) => {
                self.file.sync_all().map_err(FsError::at("sync directory", &self.path))?;
            }
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                files.iter().skip(1).try_for_each(|(file, ..)| old.remove(file))?;
                files.iter().try_for_each(|(file, ..)| new.rename(file, &old, file))?;
            }
            Err(error) => return Err(FsError::at("rename to", &old.path)(error.into())),
        }
        self.clear_replacement(name, &names)
    }

    /// Removes what an interrupted [`Self::replace_together`] left: the new files, or, after the exchange, the old ones. The
    /// other files that are with them go back to the subdirectory.
    pub(crate) fn clear_replacement(&self, name: &str, files: &[&str]) -> Result<(), FsError> {
        let scratch = format!(".{name}.part");
        if self.exists(&scratch)? && self.exists(name)? {
            let (from, to) = (self.subdirectory(&scratch)?, self.subdirectory(name)?);
            for other in from.names()?.iter().filter(|other| !files.contains(&other.as_str())) {
                if !to.exists(other)? {
                    from.rename(other, &to, other)?;
                }
            }
        }
        self.remove_directory(&scratch)
    }

    /// Renames a file, which is then in `to`, and syncs that directory. Both names have one component.
    pub(crate) fn rename(&self, from: &str, to: &Self, name: &str) -> Result<(), FsError> {
        self.check_name(from)?;
        to.check_name(name)?;
        rustix::fs::renameat(&self.file, from, &to.file, name)
            .map_err(io::Error::from)
            .map_err(FsError::at("rename to", to.path.join(name)))?;
        to.file.sync_all().map_err(FsError::at("sync directory", &to.path))
    }

    /// Removes a file or a link, if it exists.
    pub(crate) fn remove(&self, name: &str) -> Result<(), FsError> {
        let Some((parent, last)) = self.parent(name)? else { return Ok(()) };
        match rustix::fs::unlinkat(&parent.as_ref().unwrap_or(self).file, last, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            result => result.map_err(|error| FsError::at("remove", self.path.join(name))(error.into())),
        }
    }

    /// Removes a directory with its files, if it exists. It has no subdirectories.
    pub(crate) fn remove_directory(&self, name: &str) -> Result<(), FsError> {
        let directory = match self.subdirectory(name) {
            Err(error) if error.source.kind() == ErrorKind::NotFound => return Ok(()),
            directory => directory?,
        };
        directory.names()?.iter().try_for_each(|file| directory.remove(file))?;
        match rustix::fs::unlinkat(&self.file, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            result => result.map_err(|error| FsError::at("remove", self.path.join(name))(error.into())),
        }
    }

    /// True if there is anything under the name, a dangling symlink included.
    pub(crate) fn exists(&self, name: &str) -> Result<bool, FsError> {
        let Some((parent, last)) = self.parent(name)? else { return Ok(false) };
        let parent = parent.as_ref().unwrap_or(self);
        match rustix::fs::statat(&parent.file, last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(FsError::at("open", self.path.join(name))(error.into())),
        }
    }

    /// Returns the names of its entries.
    pub(crate) fn names(&self) -> Result<Vec<String>, FsError> {
        let at = || FsError::at("list", &self.path);
        let entries = rustix::fs::Dir::read_from(&self.file).map_err(|error| at()(error.into()))?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names: io::Result<Vec<String>> = names.collect();
        Ok(names.map_err(at())?.into_iter().filter(|name| name != "." && name != "..").collect())
    }

    /// Returns device and inode.
    pub(crate) fn identity(&self) -> Result<(u64, u64), FsError> {
        let metadata = self.file.metadata().map_err(FsError::at("open", &self.path))?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Opens the parent directory of `name`. Returns it and the last component; no directory if `name` has
    /// one component. `None`: a parent is missing.
    fn parent<'n>(&self, name: &'n str) -> Result<Option<(Option<Self>, &'n str)>, FsError> {
        self.check_name(name)?;
        let (mut parent, mut rest) = (None, name);
        while let Some((first, remaining)) = rest.split_once('/') {
            match parent.as_ref().unwrap_or(self).subdirectory(first) {
                Err(error) if error.source.kind() == ErrorKind::NotFound => return Ok(None),
                result => parent = Some(result?),
            }
            rest = remaining;
        }
        Ok(Some((parent, rest)))
    }

    /// Fails if a component of `name` is empty, `.` or `..`: the kernel would leave the directory with it.
    fn check_name(&self, name: &str) -> Result<(), FsError> {
        if name.split('/').any(|component| matches!(component, "" | "." | "..")) {
            return Err(FsError::at("open", self.path.join(name))(Distrust::Outside.into()));
        }
        Ok(())
    }

    /// Returns the reason for a failed open: the kernel reports a symlink as `ELOOP` or `ENOTDIR`, and a FIFO
    /// without reader or a socket as `ENXIO`.
    fn explain(&self, error: Errno, name: &str) -> io::Error {
        let is_symlink = || {
            rustix::fs::statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_symlink())
        };
        match error {
            Errno::LOOP | Errno::NOTDIR if is_symlink() => Distrust::Symlink.into(),
            Errno::NXIO => Distrust::NotRegular.into(),
            _ => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_that_belong_together_are_replaced_together_and_others_stay() {
        let base = tempfile::tempdir().unwrap();
        let directory = Directory::open(base.path()).unwrap();
        let read = |name: &str| fs::read_to_string(base.path().join(name)).unwrap();
        let replace =
            |a: &[u8], b: &[u8]| directory.replace_together("d", &[("a", a, 0o600), ("b", b, 0o644)]);
        replace(b"1", b"one").unwrap();
        let mode = |name: &str| fs::metadata(base.path().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!([mode("d/a"), mode("d/b")], [0o600, 0o644]);
        fs::set_permissions(base.path().join("d"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::write(base.path().join("d/other"), "mine").unwrap();
        replace(b"2", b"two").unwrap();
        assert_eq!([read("d/a"), read("d/b"), read("d/other")], ["2", "two", "mine"]);
        assert_eq!((mode("d"), directory.names().unwrap()), (0o750, vec!["d".to_owned()]));
        // A run that was killed before the exchange, and one that was killed after it.
        for leftover in ["b", "late"] {
            fs::create_dir(base.path().join(".d.part")).unwrap();
            fs::write(base.path().join(".d.part").join(leftover), "x").unwrap();
            replace(b"3", b"three").unwrap();
            assert_eq!([read("d/a"), read("d/b"), read("d/other")], ["3", "three", "mine"]);
        }
        // A later run that replaces nothing.
        fs::create_dir(base.path().join(".d.part")).unwrap();
        fs::write(base.path().join(".d.part/a"), "old").unwrap();
        directory.clear_replacement("d", &["a", "b"]).unwrap();
        assert_eq!(read("d/a"), "3");
        assert_eq!((read("d/late"), directory.names().unwrap()), ("x".to_owned(), vec!["d".to_owned()]));
    }

    #[test]
    fn no_name_leads_through_a_link() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        let (out, path) = (outside.path(), inside.path());
        fs::write(out.join("victim"), "precious").unwrap();
        for name in ["replaced", "created", ".part.part", "removed"] {
            symlink(out.join("victim"), path.join(name)).unwrap();
        }
        fs::hard_link(out.join("victim"), path.join(".hard.part")).unwrap();
        symlink(out, path.join("directory")).unwrap();
        let directory = Directory::open(path).unwrap();
        directory.replace("replaced", b"new", 0o644).unwrap();
        directory.replace("part", b"new", 0o644).unwrap();
        directory.replace("hard", b"new", 0o644).unwrap();
        directory.create_file("created", 0o644).unwrap().write_all(b"new").unwrap();
        directory.remove("removed").unwrap();
        for name in ["directory/new", "directory/victim"] {
            for failed in [
                directory.replace(name, b"new", 0o644),
                directory.remove(name),
                directory.open_file(name).map(drop),
            ] {
                let error = failed.unwrap_err();
                assert_eq!(
                    (error.path.as_path(), error.source.to_string()),
                    (&*path.join("directory"), "it is a symlink".into())
                );
            }
        }
        symlink(out.join("made"), path.join("lock")).unwrap();
        assert_eq!(directory.lock_file("lock").unwrap_err().source.to_string(), "it is a symlink");
        assert_eq!(fs::read_to_string(out.join("victim")).unwrap(), "precious");
        assert_eq!(fs::read_dir(out).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(path.join("replaced")).unwrap(), "new");
        assert!(path.join("created").symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("inside")).unwrap();
        fs::write(outside.path().join("victim"), "precious").unwrap();
        let directory = Directory::open(&outside.path().join("inside")).unwrap();
        let absolute = outside.path().join("victim");
        for name in ["../victim", "a/../../victim", "./../victim", "..", ".", "", absolute.to_str().unwrap()]
        {
            assert!(directory.read(name, 10).is_err(), "{name}");
            assert!(directory.remove(name).is_err(), "{name}");
            assert!(directory.replace(name, b"new", 0o644).is_err(), "{name}");
            assert!(directory.create_file(name, 0o644).is_err(), "{name}");
            assert!(directory.lock_file(name).is_err(), "{name}");
            assert!(directory.create_subdirectory(name, 0o755).is_err(), "{name}");
            assert!(directory.exists(name).is_err(), "{name}");
        }
        assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "precious");
        assert_eq!(fs::read_dir(outside.path().join("inside")).unwrap().count(), 0);
    }

    #[test]
    fn a_fifo_is_an_error_and_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let handle = Directory::open(directory.path()).unwrap();
        rustix::fs::mkfifoat(handle.file(), "fifo", Mode::from_raw_mode(0o600)).unwrap();
        for failed in [handle.read("fifo", 10).map(drop), handle.lock_file("fifo").map(drop)] {
            assert_eq!(failed.unwrap_err().source.to_string(), "it is not a regular file");
        }
        handle.replace("fifo", b"new", 0o600).unwrap();
        assert_eq!(handle.read("fifo", 3).unwrap().unwrap(), b"new");
        assert!(handle.read("fifo", 2).is_err());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let handle = Directory::open(directory.path()).unwrap();
        handle.check_owner().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o770)).unwrap();
        let error = handle.check_owner().unwrap_err();
        assert_eq!(error.source.to_string(), "its group or other users can write to it");
    }
}
