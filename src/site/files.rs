//! [`Files`]: reads the files of a site, without a lock.

use std::io;
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, File};

use crate::base::fs::FsError;
use crate::base::path::RelPath;
use crate::site::root::open_existing;

/// The root of the files, open for reading.
pub(crate) struct Files {
    dir: Dir,
    path: PathBuf,
}

impl Files {
    /// Opens the files at `root`; `None`: it does not exist.
    pub(crate) fn open(root: &Path) -> Result<Option<Self>, FsError> {
        match Dir::open_ambient_dir(root, ambient_authority()) {
            Ok(dir) => Ok(Some(Self { dir, path: root.to_owned() })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(FsError::at("open", root)(error)),
        }
    }

    /// Opens a regular file; `None`: it is missing, or not a regular file.
    pub(crate) fn open_existing(&self, file: &RelPath) -> Result<Option<File>, FsError> {
        open_existing(&self.dir, file, || self.path(file))
    }

    /// Returns the absolute path of a file, for messages.
    #[must_use]
    pub(crate) fn path(&self, file: &RelPath) -> PathBuf {
        self.path.join(file)
    }
}
