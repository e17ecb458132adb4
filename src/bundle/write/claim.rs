//! [`Claim`]: the right to write an output, as the locked `<output>.partial`.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError};
use crate::bundle::write::parts::{part_path, parts, remove_parts, remove_parts_from};

/// The right to write a bundle: `<target>.partial`, open and locked.
pub struct Claim {
    pub(crate) file: File,
    pub(crate) partial: PathBuf,
    pub(crate) target: PathBuf,
}

/// Why a bundle must not be written.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It cannot be.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process is writing it.
    #[error("another `airbundle` is writing `{}`", .0.display())]
    Busy(PathBuf),
}

impl Claim {
    /// Claims `target`; fails if it cannot be written, or if somebody else is writing it.
    pub fn new(target: &Path) -> Result<Self, ClaimError> {
        let partial = partial_path(target);
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
            // Whoever held the lock may have finished just now: then this is the bundle, and must not be touched.
            if is_at(&file, &partial).map_err(FsError::at("open", &partial))? {
                return Ok(Self { file, partial, target: target.to_owned() });
            }
        }
    }

    /// Gives what an earlier run has left the name `aside`, and claims its own one again.
    pub fn set_aside(self, aside: &Path) -> Result<Self, ClaimError> {
        remove_parts(aside)?;
        for (part, number) in parts(&self.partial).iter().zip(1..) {
            fs::rename_durably(part, &part_path(aside, number))?;
        }
        Self::new(&self.target)
    }

    /// Forgets what an earlier run has left.
    pub fn empty(&self) -> Result<(), FsError> {
        remove_parts_from(&self.partial, 2)?;
        let emptied = self.file.set_len(0).and_then(|()| self.file.sync_all());
        emptied.map_err(FsError::at("empty", &self.partial))
    }

    /// How many bytes an earlier run has left.
    pub fn size(&self) -> Result<u64, FsError> {
        Ok(self.file.metadata().map_err(FsError::at("read", &self.partial))?.len())
    }

    /// The same claim once more.
    pub fn again(&self) -> Result<Self, FsError> {
        Ok(Self { file: self.lock()?, partial: self.partial.clone(), target: self.target.clone() })
    }

    /// Another handle of the same lock, which lasts until all are gone.
    pub fn lock(&self) -> Result<File, FsError> {
        self.file.try_clone().map_err(FsError::at("open", &self.partial))
    }
}

/// Whether `file` is what now has the name `path`.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let here = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The name that `target` has while it is being written.
#[must_use]
pub fn partial_path(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// The names of what is left of bundles at `partial` that were to be other ones.
#[must_use]
pub fn old_paths(partial: &Path) -> [PathBuf; 2] {
    [".old", ".older"].map(|end| {
        let mut name = partial.as_os_str().to_owned();
        name.push(end);
        name.into()
    })
}
