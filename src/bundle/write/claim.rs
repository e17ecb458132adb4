//! [`Claim`]: the exclusive lock on the output `NAME`, held on the file `NAME.partial`.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError};
use crate::bundle::write::parts::{part_path, parts, remove_parts, remove_parts_from};

/// An exclusive lock on an output file. The lock is released when all clones of the handle are dropped.
pub struct Claim {
    /// The locked file at `partial`.
    pub(crate) file: File,
    /// Path of the unfinished output.
    pub(crate) partial: PathBuf,
    /// Final path of the output.
    pub(crate) target: PathBuf,
}

/// A failed attempt to lock an output.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// A local I/O error.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process has the lock.
    #[error("another `airbundle` is writing `{}`", .0.display())]
    Busy(PathBuf),
}

impl Claim {
    /// Locks the output `target`. Fails if another process has the lock, or if `target` is a directory.
    pub fn new(target: &Path) -> Result<Self, ClaimError> {
        let partial = fs::partial(target);
        if target.is_dir() {
            let source = io::ErrorKind::IsADirectory.into();
            return Err(FsError { action: "create", path: target.to_owned(), source }.into());
        }
        loop {
            let mut options = File::options();
            let file = options.read(true).write(true).create(true).truncate(false).open(&partial);
            let file = file.map_err(FsError::at("create", &partial))?;
            file.try_lock().map_err(|error| match error {
                TryLockError::WouldBlock => ClaimError::Busy(target.to_owned()),
                TryLockError::Error(source) => FsError::at("lock", &partial)(source).into(),
            })?;
            // If the previous owner has just renamed the file, it is a complete bundle and must not be
            // changed.
            if is_at(&file, &partial).map_err(FsError::at("open", &partial))? {
                return Ok(Self { file, partial, target: target.to_owned() });
            }
        }
    }

    /// Renames the parts of an earlier run to `aside`, and locks the output again.
    pub fn set_aside(self, aside: &Path) -> Result<Self, ClaimError> {
        remove_parts(aside)?;
        for (part, number) in parts(&self.partial).iter().zip(1..) {
            fs::rename_durably(part, &part_path(aside, number))?;
        }
        Self::new(&self.target)
    }

    /// Removes the content of an earlier run.
    pub fn empty(&self) -> Result<(), FsError> {
        remove_parts_from(&self.partial, 2)?;
        let emptied = self.file.set_len(0).and_then(|()| self.file.sync_all());
        emptied.map_err(FsError::at("empty", &self.partial))
    }

    /// Returns the size of the first part in bytes.
    pub fn size(&self) -> Result<u64, FsError> {
        Ok(self.file.metadata().map_err(FsError::at("read", &self.partial))?.len())
    }

    /// Returns another handle of the claim, which shares its lock.
    pub fn try_clone(&self) -> Result<Self, FsError> {
        Ok(Self { file: self.lock()?, partial: self.partial.clone(), target: self.target.clone() })
    }

    /// Returns another handle of the locked file, which shares its lock.
    pub fn lock(&self) -> Result<File, FsError> {
        self.file.try_clone().map_err(FsError::at("open", &self.partial))
    }
}

/// True if `path` is the file that is open as `file`.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(at_path) => Ok((open.dev(), open.ino()) == (at_path.dev(), at_path.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the paths of partial bundles of earlier runs with other plans, for [`Claim::set_aside`].
#[must_use]
pub fn old_paths(partial: &Path) -> [PathBuf; 2] {
    [".old", ".older"].map(|suffix| fs::with_suffix(partial, suffix))
}
