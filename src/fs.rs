//! File calls whose errors carry the path.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A file call that failed: what was tried, on which path, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{}`", path.display())]
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

    /// Whether the file system (or the user's quota) is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Opens a file for reading.
pub fn open(path: &Path) -> Result<File, FsError> {
    File::open(path).map_err(FsError::at("open", path))
}

/// Creates a folder and those above it.
pub fn create_dir_all(path: &Path) -> Result<(), FsError> {
    fs::create_dir_all(path).map_err(FsError::at("create folder", path))
}

/// Removes a file; that it is not there is no error.
pub fn remove_file(path: &Path) -> Result<(), FsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(FsError::at("remove", path)),
    }
}

/// Renames `from` to `to` and makes the new name durable.
pub fn rename_durably(from: &Path, to: &Path) -> Result<(), FsError> {
    fs::rename(from, to).map_err(FsError::at("rename to", to))?;
    sync_dir(parent(to))
}

/// Makes the names in a folder durable.
pub fn sync_dir(path: &Path) -> Result<(), FsError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(FsError::at("sync folder", path))
}

/// The folder that holds `path`; `.` for a bare name.
#[must_use]
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}
