//! Files at fixed names, where another user could have put something else: opened without following links.
//!
//! A name is opened with `O_NOFOLLOW` and `O_NONBLOCK`, so that it can neither lead to another file nor block (a
//! FIFO). What was opened is checked on its descriptor, so that no exchange of the name matters.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::base::fs::{FsError, read_limited, with_suffix};

/// The flags for every open of a name that is not the user's.
pub(crate) const FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// The reason why a file or directory is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Distrust {
    #[error("it is a symlink")]
    Symlink,
    #[error("it is not a regular file")]
    NotRegular,
    /// The number of its hard links.
    #[error("it has {0} hard links")]
    HardLinks(u64),
    /// The user ID of its owner.
    #[error("it belongs to another user (UID {0})")]
    Owner(u32),
    #[error("its group or other users can write to it")]
    Writable,
    #[error("it is outside of the directory")]
    Outside,
}

impl From<Distrust> for io::Error {
    fn from(distrust: Distrust) -> Self {
        Self::new(ErrorKind::InvalidInput, distrust)
    }
}

/// True if a file call failed because other users can write to the file or directory.
pub(crate) fn is_writable_by_others(error: &FsError) -> bool {
    let distrust = error.source.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(distrust, Some(Distrust::Writable))
}

/// Returns an error unless only the user or root could have written what `metadata` describes.
pub(crate) fn check_owner(metadata: &Metadata) -> Result<(), Distrust> {
    check_user(metadata)?;
    if metadata.mode() & 0o022 != 0 { Err(Distrust::Writable) } else { Ok(()) }
}

/// Returns an error unless the file belongs to the user or root. (Devices are writable for others.)
pub(crate) fn check_user(metadata: &Metadata) -> Result<(), Distrust> {
    match metadata.uid() {
        uid if uid == 0 || uid == rustix::process::geteuid().as_raw() => Ok(()),
        uid => Err(Distrust::Owner(uid)),
    }
}

/// Returns an error unless `metadata` is that of a regular file that has no other name, and that only the
/// user or root could have written.
pub(crate) fn check(metadata: &Metadata) -> Result<(), Distrust> {
    check_regular(metadata)?;
    if metadata.nlink() > 1 {
        return Err(Distrust::HardLinks(metadata.nlink()));
    }
    check_owner(metadata)
}

pub(crate) fn check_regular(metadata: &Metadata) -> Result<(), Distrust> {
    match metadata {
        _ if metadata.is_symlink() => Err(Distrust::Symlink),
        _ if metadata.is_file() => Ok(()),
        _ => Err(Distrust::NotRegular),
    }
}

/// Opens a regular file for reading. It can belong to any user.
pub(crate) fn open_regular(path: &Path) -> Result<File, FsError> {
    let mut options = File::options();
    let file = options.read(true).custom_flags(FLAGS.bits().cast_signed()).open(path);
    let file = file.map_err(|error| explain(error, path)).and_then(regular);
    file.map_err(FsError::at("open", path))
}

/// Reads a regular file. Fails if it has more than `limit` bytes.
pub(crate) fn read_regular(path: &Path, limit: u64) -> Result<Vec<u8>, FsError> {
    read_limited(open_regular(path)?, limit).map_err(FsError::at("read", path))
}

/// Opens a file that an earlier run left, for reading and writing, or creates it with mode 0600. Fails if
/// another user could have written it.
pub(crate) fn open_or_create(path: &Path) -> Result<File, FsError> {
    let file = open_unchecked(path)?;
    let metadata = file.metadata().map_err(FsError::at("read", path))?;
    check(&metadata).map_err(|distrust| FsError::at("open", path)(distrust.into()))?;
    Ok(file)
}

/// Like [`open_or_create`], without the check of what was opened.
pub(crate) fn open_unchecked(path: &Path) -> Result<File, FsError> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.mode(0o600).custom_flags(FLAGS.bits().cast_signed());
    options.open(path).map_err(|error| FsError::at("create", path)(explain(error, path)))
}

/// Creates a file with mode 0600. Fails if the name exists.
pub(crate) fn create_new(path: &Path) -> Result<File, FsError> {
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(path);
    file.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => io::Error::other("another process has just created it"),
        _ => error,
    })
    .map_err(FsError::at("create", path))
}

/// Returns the reason why the file that is at `path` now is not used. `None`: there is none, or nothing is
/// there.
pub(crate) fn distrust(path: &Path) -> Result<Option<Distrust>, FsError> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(check(&metadata).err()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(FsError::at("read", path)(error)),
    }
}

/// Renames what is at `path` to `path.untrusted`, or with a number if that exists. Returns the new path.
/// Nothing is removed or written.
pub(crate) fn put_aside(path: &Path) -> Result<PathBuf, FsError> {
    let mut suffix = ".untrusted".to_owned();
    for number in 2_u32.. {
        let aside = with_suffix(path, &suffix);
        match rename_new(CWD, path, &aside) {
            Err(Errno::EXIST) => suffix = format!(".untrusted.{number}"),
            result => {
                return result.map(|()| aside).map_err(|error| FsError::at("put aside", path)(error.into()));
            }
        }
    }
    unreachable!("there are enough numbers; please report")
}

/// Renames `from` to `to`, both relative to `directory`. Fails with `EXIST` if there is anything at `to`.
pub(crate) fn rename_new(
    directory: impl AsFd,
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
) -> Result<(), Errno> {
    let (directory, from, to) = (directory.as_fd(), from.as_ref(), to.as_ref());
    match rustix::fs::renameat_with(directory, from, directory, to, RenameFlags::NOREPLACE) {
        // Not every file system knows the flag.
        Err(Errno::INVAL | Errno::NOSYS) => {
            match rustix::fs::statat(directory, to, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Err(Errno::EXIST),
                Err(_) => rustix::fs::renameat(directory, from, directory, to),
            }
        }
        result => result,
    }
}

/// The permission bits that the user's umask leaves of `0666`. The first call must come before there are
/// threads, because reading the umask changes it for a moment.
pub(crate) fn default_mode() -> u32 {
    static MODE: OnceLock<u32> = OnceLock::new();
    *MODE.get_or_init(|| {
        let mask = rustix::process::umask(Mode::from_raw_mode(0o077));
        rustix::process::umask(mask);
        0o666 & !mask.bits()
    })
}

/// Gives a complete file, which was created with mode 0600, the mode that a new file has.
pub(crate) fn open_up(file: &File) -> io::Result<()> {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(default_mode());
    file.set_permissions(mode)
}

pub(crate) fn regular(file: File) -> io::Result<File> {
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    check_regular(&metadata)?;
    Ok(file)
}

/// Replaces errors that are about the kind of file by the reason: `ELOOP` says "too many levels of symbolic
/// links", and `ENXIO` (a socket, or a FIFO without reader) "no such device or address".
fn explain(error: io::Error, path: &Path) -> io::Error {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::LOOP) if path.is_symlink() => Distrust::Symlink.into(),
        Some(Errno::NXIO) => Distrust::NotRegular.into(),
        _ => error,
    }
}

/// True if `path` is a device, a FIFO or a socket, which is written to instead of being replaced. A symlink
/// is not followed.
pub(crate) fn is_special(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| {
        let kind = metadata.file_type();
        kind.is_fifo() || kind.is_char_device() || kind.is_block_device() || kind.is_socket()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_a_regular_private_file_with_one_name_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        open_or_create(&path("own")).unwrap();
        assert_eq!(path("own").metadata().unwrap().mode() & 0o777, 0o600);
        open_or_create(&path("own")).unwrap();
        std::os::unix::fs::symlink("own", path("link")).unwrap();
        std::os::unix::fs::symlink("missing", path("dangling")).unwrap();
        fs::write(path("linked"), "").unwrap();
        fs::hard_link(path("linked"), path("hard")).unwrap();
        fs::write(path("open"), "").unwrap();
        fs::set_permissions(path("open"), fs::Permissions::from_mode(0o664)).unwrap();
        rustix::fs::mkfifoat(CWD, path("fifo"), Mode::from_raw_mode(0o600)).unwrap();
        for (name, reason) in [
            ("link", "it is a symlink"),
            ("dangling", "it is a symlink"),
            ("hard", "it has 2 hard links"),
            ("open", "its group or other users can write to it"),
            ("fifo", "it is not a regular file"),
        ] {
            let error = open_or_create(&path(name)).unwrap_err();
            assert_eq!(error.source.to_string(), reason, "{name}");
            assert_eq!(distrust(&path(name)).unwrap().unwrap().to_string(), reason, "{name}");
        }
        assert!(!path("missing").exists());
        assert_eq!(open_regular(&path("fifo")).unwrap_err().source.to_string(), "it is not a regular file");
        assert_eq!(open_regular(&path("link")).unwrap_err().source.to_string(), "it is a symlink");
        assert_eq!(["own", "none"].map(|name| distrust(&path(name)).unwrap()), [None, None]);
    }

    #[test]
    fn a_file_is_put_aside_under_a_name_that_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        for expected in ["x.untrusted", "x.untrusted.2", "x.untrusted.3"] {
            fs::write(&path, expected).unwrap();
            assert_eq!(put_aside(&path).unwrap(), directory.path().join(expected));
        }
        for name in ["x.untrusted", "x.untrusted.2", "x.untrusted.3"] {
            assert_eq!(fs::read_to_string(directory.path().join(name)).unwrap(), name);
        }
    }
}
