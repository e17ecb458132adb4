//! [`OutputFile`]: a file that the user named with `-o`, which appears only when it is complete.
//!
//! The bytes go to a file without a name in the target's directory (`O_TMPFILE`), or with an unpredictable
//! name where the file system has no such files, and the file is renamed to the target at the end. So no link
//! is followed: neither one that waits at the name of a temporary file, nor one at the target, which is
//! replaced. Two programs that write the same target do not mix: the last one to finish wins.
//!
//! A rename needs a name. Only a file that replaces another one has a temporary name, from the moment it is complete.
//!
//! A device, a FIFO and `/dev/stdout` are written to directly.

use std::ffi::OsStr;
use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::base::bulk;
use crate::base::directory::Directory;
use crate::base::fs::{FsError, parent};
use crate::base::own_file::{check_user, is_special, read_regular, rename_new};

/// The users who can read an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Mode 0666, as far as the umask allows.
    Default,
    /// Mode 0600: keys.
    Private,
}

/// The treatment of a file that is at the target.
#[derive(Clone, Copy)]
enum Existing {
    Replace,
    Refuse,
}

/// A file that is being written; see the module. Without [`OutputFile::finish`], nothing remains of it.
pub(crate) struct OutputFile {
    file: File,
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    /// A device or FIFO, which is written to directly.
    Special,
    /// `temporary` is its present name; `None`: it has none.
    Regular { directory: Directory, temporary: Option<String> },
}

impl OutputFile {
    /// Starts to write `path`.
    pub(crate) fn create(path: &Path, access: Access) -> Result<Self, FsError> {
        let at = || FsError::at("create", path);
        // A FIFO could be that of another user, who waits for the key.
        if access == Access::Default && (is_special(path) || is_descriptor(path)) {
            return Self::open_special(path).map_err(at());
        }
        Self::create_regular(path, access)
    }

    /// Fails if `path` cannot be created. Nothing remains of the attempt. For verbs that work for long before they
    /// write: they call it first.
    pub(crate) fn check(path: &Path) -> Result<(), FsError> {
        // To open a FIFO would wait for its reader.
        if is_special(path) || is_descriptor(path) {
            return Ok(());
        }
        Self::create_regular(path, Access::Default).map(drop)
    }

    fn create_regular(path: &Path, access: Access) -> Result<Self, FsError> {
        // A bare name would not tell the user which directory cannot be written to.
        let shown = std::path::absolute(path);
        let at = || FsError::at("create", shown.as_deref().unwrap_or(path));
        if path.file_name().is_none() || path.is_dir() {
            return Err(at()(ErrorKind::IsADirectory.into()));
        }
        let directory = Directory::open(parent(path)).map_err(|error| at()(error.source))?;
        let mode = Mode::from_raw_mode(if access == Access::Private { 0o600 } else { 0o666 });
        let (file, temporary) = match unnamed(&directory, mode) {
            Some(file) => (file, None),
            None => named(&directory, mode).map(|(file, name)| (file, Some(name))).map_err(at())?,
        };
        Ok(Self { file, path: path.to_owned(), kind: Kind::Regular { directory, temporary } })
    }

    /// Opens a device, a FIFO or a file descriptor.
    fn open_special(path: &Path) -> io::Result<Self> {
        let flags = if is_descriptor(path) { OFlags::empty() } else { OFlags::NOFOLLOW };
        if !is_descriptor(path) {
            check_user(&path.symlink_metadata()?)?;
        }
        let file = File::options().write(true).custom_flags(flags.bits().cast_signed()).open(path)?;
        // The name can be exchanged for a hard link after the check.
        if !is_descriptor(path) {
            let metadata = file.metadata()?;
            check_user(&metadata)?;
            if metadata.is_file() {
                return Err(io::Error::other("it has just been replaced by a file"));
            }
        }
        Ok(Self { file, path: path.to_owned(), kind: Kind::Special })
    }

    /// Writes a complete file.
    pub(crate) fn write(path: &Path, access: Access, bytes: &[u8]) -> Result<(), FsError> {
        Self::create(path, access)?.finish_as(bytes, Existing::Replace)
    }

    /// Like [`Self::write`], but replaces a device or FIFO: a file that no user has named.
    pub(crate) fn replace(path: &Path, access: Access, bytes: &[u8]) -> Result<(), FsError> {
        Self::create_regular(path, access)?.finish_as(bytes, Existing::Replace)
    }

    /// Like [`Self::write`], but fails if there is anything at `path` already.
    pub(crate) fn write_new(path: &Path, access: Access, bytes: &[u8]) -> Result<(), FsError> {
        Self::create_regular(path, access)?.finish_as(bytes, Existing::Refuse)
    }

    /// True if `path` is a file of exactly these bytes, which need not be written again.
    #[must_use]
    pub(crate) fn is_current(path: &Path, bytes: &[u8]) -> bool {
        read_regular(path, bytes.len() as u64 + 1).is_ok_and(|old| old == bytes)
    }

    /// Writes the only bytes of the file, and finishes it.
    fn finish_as(mut self, bytes: &[u8], existing: Existing) -> Result<(), FsError> {
        self.write_all(bytes).map_err(FsError::at("write", &self.path))?;
        self.finish_with(existing)
    }

    /// Syncs the file and renames it to its path.
    pub(crate) fn finish(self) -> Result<(), FsError> {
        self.finish_with(Existing::Replace)
    }

    fn finish_with(mut self, existing: Existing) -> Result<(), FsError> {
        if let Kind::Special = self.kind {
            return Ok(());
        }
        self.file.sync_all().map_err(FsError::at("sync", &self.path))?;
        let Kind::Regular { directory, temporary } = &mut self.kind else { return Ok(()) };
        let target = self.path.file_name().expect("`create` checked it; please report");
        // If nothing has the name of the target, the file needs no other one.
        if temporary.is_none() && link(&self.file, directory, target).is_ok() {
            return directory.file().sync_all().map_err(FsError::at("sync directory", directory.path()));
        }
        let name = if let Some(name) = temporary {
            name
        } else {
            let linked = link_next_to(&self.file, directory, target);
            temporary.insert(linked.map_err(FsError::at("write", &self.path))?)
        };
        let (from, to) = (name.as_str(), directory.file());
        let renamed = match existing {
            Existing::Replace => rustix::fs::renameat(to, from, to, target),
            Existing::Refuse => rename_new(to, from, target),
        };
        renamed.map_err(|error| FsError::at("rename to", &self.path)(error.into()))?;
        *temporary = None;
        directory.file().sync_all().map_err(FsError::at("sync directory", directory.path()))
    }
}

/// Creates a file without a name. `None`: the file system or the host does not support that.
fn unnamed(directory: &Directory, mode: Mode) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    // Linking it to a name needs `/proc`.
    let can_link = Path::new("/proc/self/fd").exists();
    can_link.then(|| rustix::fs::openat(directory.file(), ".", flags, mode).ok().map(File::from)).flatten()
}

/// Creates a file with an unpredictable name.
fn named(directory: &Directory, mode: Mode) -> io::Result<(File, String)> {
    let name = temporary_name();
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory.file(), name.as_str(), flags, mode)?;
    Ok((file.into(), name))
}

/// Gives a file without a name this one, which must be free.
fn link(file: &File, directory: &Directory, name: impl AsRef<OsStr>) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, open, directory.file(), name.as_ref(), AtFlags::SYMLINK_FOLLOW)?)
}

/// Gives a file without a name a temporary one, and returns it. If a run is killed before the rename, the next run that
/// writes the same target removes what is left. The lock of the directory, which lasts as long as it is open, excludes two
/// of them. Without the lock, the name is unpredictable.
fn link_next_to(file: &File, directory: &Directory, target: &OsStr) -> io::Result<String> {
    if let (Ok(()), Some(target)) = (directory.file().try_lock(), target.to_str()) {
        let name = format!(".{target}.airbundle.partial");
        let _: Result<(), Errno> = rustix::fs::unlinkat(directory.file(), &*name, AtFlags::empty()); // usually missing
        if link(file, directory, &name).is_ok() {
            return Ok(name);
        }
    }
    let name = temporary_name();
    link(file, directory, &name)?;
    Ok(name)
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bulk::piece(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if let Kind::Regular { directory, temporary: Some(name) } = &self.kind {
            // The first error is the one that was reported.
            let _: Result<(), Errno> =
                rustix::fs::unlinkat(directory.file(), name.as_str(), AtFlags::empty());
        }
    }
}

fn temporary_name() -> String {
    format!(".airbundle-{:016x}.partial", RandomState::new().build_hasher().finish())
}

/// True for the names of open file descriptors, which are symlinks, in directories that belong to the system.
pub(crate) fn is_descriptor(path: &Path) -> bool {
    let directories = ["/dev/fd", "/proc/self/fd"];
    ["/dev/stdout", "/dev/stderr"].iter().any(|name| path == Path::new(name))
        || directories.iter().any(|directory| path.parent() == Some(Path::new(directory)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_link_at_the_target_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("victim"), "precious").unwrap();
        symlink("victim", path("link")).unwrap();
        fs::hard_link(path("victim"), path("hard")).unwrap();
        for name in ["link", "hard"] {
            OutputFile::write(&path(name), Access::Default, b"new").unwrap();
            assert!(path(name).symlink_metadata().unwrap().is_file());
            assert_eq!(fs::read_to_string(path(name)).unwrap(), "new");
        }
        assert_eq!(fs::read_to_string(path("victim")).unwrap(), "precious");
        assert_eq!(names(directory.path()).len(), 3);
    }

    #[test]
    fn a_file_system_without_unnamed_files_gets_one_with_an_unpredictable_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let create = || {
            let directory = Directory::open(directory.path()).unwrap();
            let (file, name) = named(&directory, Mode::from_raw_mode(0o600)).unwrap();
            let kind = Kind::Regular { directory, temporary: Some(name) };
            OutputFile { file, path: path.clone(), kind }
        };
        let (mut first, second) = (create(), create());
        assert_eq!(names(directory.path()).len(), 2);
        first.write_all(b"first").unwrap();
        first.finish().unwrap();
        drop(second);
        assert_eq!(names(directory.path()), ["x"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
    }

    #[test]
    fn an_unfinished_output_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        OutputFile::create(&path, Access::Default).unwrap().write_all(b"part").unwrap();
        assert!(names(directory.path()).is_empty());
        let error = OutputFile::create(directory.path(), Access::Default).err().unwrap();
        assert_eq!(error.source.kind(), ErrorKind::IsADirectory);
    }

    #[test]
    fn a_check_leaves_nothing_and_keeps_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        OutputFile::check(&path).unwrap();
        assert!(names(directory.path()).is_empty());
        fs::write(&path, "kept").unwrap();
        OutputFile::check(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
        OutputFile::check(Path::new("/dev/null")).unwrap();
        let missing = directory.path().join("missing/x");
        assert_eq!(OutputFile::check(&missing).unwrap_err().source.kind(), ErrorKind::NotFound);
        let error = OutputFile::check(directory.path()).unwrap_err();
        assert_eq!(error.source.kind(), ErrorKind::IsADirectory);
    }

    #[test]
    fn two_writers_of_one_file_do_not_mix() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let mut first = OutputFile::create(&path, Access::Default).unwrap();
        first.write_all(b"first ").unwrap();
        OutputFile::write(&path, Access::Default, b"second").unwrap();
        first.write_all(b"only").unwrap();
        first.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "first only");
    }

    #[test]
    fn a_private_output_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        OutputFile::write(&path, Access::Private, b"secret").unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
