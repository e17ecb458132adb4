//! File system calls whose errors contain the path.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

/// A failed file system call.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{}`{}", path.display(), self.advice())]
pub struct FsError {
    /// The operation, as a verb: `create`, `write`, `sync`, …
    pub action: &'static str,
    /// The path it was applied to.
    pub path: PathBuf,
    /// The error of the operating system.
    #[source]
    pub source: io::Error,
}

impl FsError {
    /// Returns a function that adds `action` and `path` to an [`io::Error`]: `.map_err(FsError::at("write",
    /// path))`.
    pub fn at(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, path: path.as_ref().to_owned(), source }
    }

    /// Returns a hint for errors whose message alone does not tell the user what to do.
    fn advice(&self) -> &'static str {
        match self.source.kind() {
            ErrorKind::IsADirectory | ErrorKind::DirectoryNotEmpty => {
                " (expected a file, found a directory: move it away)"
            }
            // `AlreadyExists`: only creating a directory can fail like this, because files are overwritten.
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                " (expected a directory, found a file: move it away)"
            }
            ErrorKind::CrossesDevices => {
                " (another file system is mounted there: set its directory with `--files` or `--registry`)"
            }
            ErrorKind::InvalidFilename => " (the file system does not support this name: use another one)",
            _ => "",
        }
    }

    /// True if the user must not write there.
    #[must_use]
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self.source.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
    }

    /// True if the file system cannot have a file of this size: FAT32, or a limit of the process.
    #[must_use]
    pub(crate) fn is_too_large(&self) -> bool {
        self.source.kind() == ErrorKind::FileTooLarge
    }

    /// True if the media cannot be read (errno(3)): `EIO`, `ENODATA` of disks with bad sectors, `EREMOTEIO`, `ENOMEDIUM`.
    #[must_use]
    pub(crate) fn is_media_error(&self) -> bool {
        const CODES: [Errno; 4] = [Errno::IO, Errno::NODATA, Errno::REMOTEIO, Errno::NOMEDIUM];
        self.source.raw_os_error().is_some_and(|code| CODES.iter().any(|known| known.raw_os_error() == code))
    }

    /// True if a file, or the list of a directory, was read.
    #[must_use]
    pub(crate) fn is_read(&self) -> bool {
        ["read", "read directory", "open", "list", "seek in"].contains(&self.action)
    }

    /// True if the file system or the user's quota is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        is_full(&self.source)
    }
}

/// True if the file system or the user's quota is full.
#[must_use]
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Locks `file` until it is closed. Returns false if another process holds the lock. A file system without locks is used
/// without.
pub(crate) fn try_lock_file(file: &File) -> bool {
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Returns the maximum size of `file` in bytes, as far as it is known: a limit of this process, or that of FAT32.
pub(crate) fn size_limit(file: &File) -> Option<u64> {
    use rustix::process::{Resource, getrlimit};
    const MSDOS: u64 = 0x4d44;
    let is_fat = rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type.cast_unsigned() == MSDOS);
    let of_fat = is_fat.then_some(u64::from(u32::MAX));
    [getrlimit(Resource::Fsize).current, of_fat].into_iter().flatten().min()
}

pub(crate) fn open(path: &Path) -> Result<File, FsError> {
    File::open(path).map_err(FsError::at("open", path))
}

/// Reads a file. Fails if it has more than `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FsError> {
    read_limited(open(path)?, limit).map_err(FsError::at("read", path))
}

/// Reads an open file to its end. Fails if it has more than `limit` bytes.
pub(crate) fn read_limited(file: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// Creates a directory and its parents.
pub(crate) fn create_dir_all(path: &Path) -> Result<(), FsError> {
    fs::create_dir_all(path).map_err(FsError::at("create directory", path))
}

/// Removes a file. Succeeds if the file does not exist.
pub(crate) fn remove_file(path: &Path) -> Result<(), FsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result.map_err(FsError::at("remove", path)),
    }
}

/// Returns the path of a file until it is complete: `path.partial`.
#[must_use]
pub(crate) fn partial(path: &Path) -> PathBuf {
    with_suffix(path, ".partial")
}

/// Appends `suffix` to the file name, which does not need to be UTF-8.
#[must_use]
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Renames `from` to `to` and syncs the directory.
pub(crate) fn rename_durably(from: &Path, to: &Path) -> Result<(), FsError> {
    fs::rename(from, to).map_err(FsError::at("rename to", to))?;
    sync_dir(parent(to))
}

/// Syncs a directory, which makes new and removed names durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), FsError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(FsError::at("sync directory", path))
}

/// True if something is at `path`. A path that cannot be looked up is an error, not a missing file.
pub(crate) fn exists(path: &Path) -> Result<bool, FsError> {
    Ok(found(path)?.is_some())
}

/// True if a directory is at `path`, or a link to one. As in [`exists`], unreadable is not missing.
pub(crate) fn is_directory(path: &Path) -> Result<bool, FsError> {
    Ok(found(path)?.is_some_and(|metadata| metadata.is_dir()))
}

fn found(path: &Path) -> Result<Option<fs::Metadata>, FsError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(FsError::at("open", path)(error)),
    }
}

/// Returns the absolute path without symlinks. Its last components do not need to exist.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, FsError> {
    let absolute = std::path::absolute(path).map_err(FsError::at("resolve", path))?;
    for existing in absolute.ancestors() {
        match fs::canonicalize(existing) {
            Ok(mut resolved) => {
                for component in absolute.strip_prefix(existing).into_iter().flat_map(Path::components) {
                    match component {
                        Component::Normal(name) => resolved.push(name),
                        Component::ParentDir => drop(resolved.pop()),
                        _ => {}
                    }
                }
                return Ok(resolved);
            }
            // A symlink without a target is an error: the target could appear anywhere.
            Err(error) if error.kind() == ErrorKind::NotFound && existing.symlink_metadata().is_err() => {}
            Err(error) => return Err(FsError::at("resolve", existing)(error)),
        }
    }
    Ok(absolute)
}

/// Returns the parent directory of `path`; `.` for a bare name.
#[must_use]
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned()
}

/// True if the path does not exist, or one of its parents is not a directory.
#[cfg(feature = "net")]
pub(crate) fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}
