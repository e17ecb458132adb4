//! File calls whose errors carry the path.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

#[cfg(feature = "net")]
use std::io::ErrorKind;

/// A file call that failed: what was tried, on which path, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{}`{}", path.display(), self.advice())]
pub struct FsError {
    /// What was tried, as a verb: `create`, `write`, `sync`, …
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the operating system said.
    #[source]
    pub source: io::Error,
}

impl FsError {
    /// Makes the function that wraps an [`io::Error`]: `.map_err(FsError::at("write", path))`.
    pub fn at(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, path: path.as_ref().to_owned(), source }
    }

    /// What to do about it, where that is not plain from what the operating system says.
    fn advice(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::IsADirectory | io::ErrorKind::DirectoryNotEmpty => {
                " (a directory stands where a file belongs: move it away)"
            }
            // `AlreadyExists`: files are created over what is there, so it can only be a directory that is not.
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                " (a file stands where a directory belongs: move it away)"
            }
            io::ErrorKind::CrossesDevices => {
                " (it is another file system: name its directory with `--files` or `--registry`)"
            }
            io::ErrorKind::InvalidFilename => " (the file system takes no such name: use another one)",
            _ => "",
        }
    }

    /// Whether the file system (or the user's quota) is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Opens a file for reading.
pub(crate) fn open(path: &Path) -> Result<File, FsError> {
    File::open(path).map_err(FsError::at("open", path))
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FsError> {
    use io::Read as _;
    let mut bytes = Vec::new();
    let file = open(path)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(FsError::at("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(FsError::at("read", path)(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

/// Creates a directory and those above it.
pub(crate) fn create_dir_all(path: &Path) -> Result<(), FsError> {
    fs::create_dir_all(path).map_err(FsError::at("create directory", path))
}

/// Removes a file; that it is not there is no error.
pub(crate) fn remove_file(path: &Path) -> Result<(), FsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(FsError::at("remove", path)),
    }
}

/// Writes a whole file, which is there complete or not at all: under another name first, then renamed.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), FsError> {
    use io::Write as _;
    let partial = partial(path);
    let mut file = File::create(&partial).map_err(FsError::at("create", &partial))?;
    let written =
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(FsError::at("write", &partial));
    let renamed = written.and_then(|()| rename_durably(&partial, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&partial); // it already failed, and says why
    }
    renamed
}

/// What a file is called before it is complete.
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

/// Renames `from` to `to` and makes the new name durable.
pub(crate) fn rename_durably(from: &Path, to: &Path) -> Result<(), FsError> {
    fs::rename(from, to).map_err(FsError::at("rename to", to))?;
    sync_dir(parent(to))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), FsError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(FsError::at("sync directory", path))
}

/// The directory that holds `path`; `.` for a bare name.
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

/// A file that is not there, or whose directory is none.
#[cfg(feature = "net")]
pub(crate) fn is_missing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}
