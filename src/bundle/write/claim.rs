//! [`Claim`]: the exclusive lock on the output `NAME`, held on the file `NAME.partial`.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::base::event::{Event, Report};
use crate::base::fs::{self, FsError};
use crate::base::output_file::is_descriptor;
use crate::base::own_file;
use crate::bundle::write::parts::{part_path, parts, remove_parts, remove_parts_from, volumes_of};
use crate::bundle::write::{accepted, manifest_cache, spool};

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
    /// Locks the output `target`. Fails if another process has the lock, or if `target` is not a file.
    ///
    /// The files of an earlier run are used only if no other user could have written them. Otherwise they are
    /// put aside, with a warning.
    pub fn new(target: &Path, report: &dyn Report) -> Result<Self, ClaimError> {
        let partial = fs::partial(target);
        let unusable = |kind: io::Error| FsError::at("create", target)(kind);
        if target.is_dir() {
            return Err(unusable(io::ErrorKind::IsADirectory.into()).into());
        }
        if own_file::is_special(target) || is_descriptor(target) {
            return Err(unusable(own_file::Distrust::NotRegular.into()).into());
        }
        let claim = Self::lock_partial(target, &partial, report)?;
        for name in claim.other_names()? {
            put_aside_if_untrusted(&name, report)?;
        }
        Ok(claim)
    }

    fn lock_partial(target: &Path, partial: &Path, report: &dyn Report) -> Result<Self, ClaimError> {
        loop {
            let file = match own_file::open_unchecked(partial) {
                Ok(file) => file,
                // A symlink, or a file of another user that cannot be opened.
                Err(_) if put_aside_if_untrusted(partial, report)? => continue,
                Err(error) => return Err(error.into()),
            };
            let metadata = file.metadata().map_err(FsError::at("read", partial))?;
            if metadata.is_file() {
                file.try_lock().map_err(|error| match error {
                    TryLockError::WouldBlock => ClaimError::Busy(target.to_owned()),
                    TryLockError::Error(source) => FsError::at("lock", partial)(source).into(),
                })?;
            }
            // If the previous owner has just renamed the file, it is a complete bundle and must not be
            // changed.
            if !is_at(&file, partial).map_err(FsError::at("open", partial))? {
                continue;
            }
            // The name can be exchanged after the check: what counts is what is open.
            let metadata = file.metadata().map_err(FsError::at("read", partial))?;
            match own_file::check(&metadata) {
                Ok(()) => return Ok(Self { file, partial: partial.to_owned(), target: target.to_owned() }),
                Err(distrust) => put_aside(partial, distrust, report)?,
            }
        }
    }

    /// Returns the names of everything else that an earlier run can have left.
    fn other_names(&self) -> Result<Vec<PathBuf>, FsError> {
        let partial = &self.partial;
        let mut names = vec![spool::path(partial), manifest_cache::path(partial), accepted::path(partial)];
        names.extend(old_paths(&self.partial));
        let directory = fs::parent(&self.partial);
        for bundle in std::iter::once(self.partial.clone()).chain(old_paths(&self.partial)) {
            let volumes = volumes_of(directory, &fs::file_name(&bundle), 2)?;
            names.extend(volumes.into_iter().map(|(path, _)| path));
        }
        Ok(names)
    }

    /// Gives the complete file the mode of a new file, syncs it and renames it to the target.
    pub(crate) fn publish(&self) -> Result<(), FsError> {
        let synced = own_file::open_up(&self.file).and_then(|()| self.file.sync_all());
        synced.map_err(FsError::at("sync", &self.partial))?;
        if !is_at(&self.file, &self.partial).map_err(FsError::at("open", &self.partial))? {
            return Err(FsError::at("publish", &self.partial)(io::Error::other(
                "another file has its name now",
            )));
        }
        fs::rename_durably(&self.partial, &self.target)
    }

    /// Renames the parts of an earlier run to `aside`, and locks the output again.
    pub fn set_aside(self, aside: &Path, report: &dyn Report) -> Result<Self, ClaimError> {
        remove_parts(aside)?;
        for (part, number) in parts(&self.partial).iter().zip(1..) {
            fs::rename_durably(part, &part_path(aside, number))?;
        }
        Self::new(&self.target, report)
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

/// Puts what is at `path` aside if it is not used. Returns true if it was.
fn put_aside_if_untrusted(path: &Path, report: &dyn Report) -> Result<bool, FsError> {
    let Some(distrust) = own_file::distrust(path)? else { return Ok(false) };
    put_aside(path, distrust, report)?;
    Ok(true)
}

fn put_aside(path: &Path, distrust: own_file::Distrust, report: &dyn Report) -> Result<(), FsError> {
    let aside = own_file::put_aside(path)?;
    let (path, aside) = (path.display(), aside.display());
    let message = format!(
        "`{path}` is not resumed, because {distrust}: it is now `{aside}`; remove it if you do not need it"
    );
    report.event(&Event::Warning { message });
    Ok(())
}

/// True if `path` is the file that is open as `file`.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match std::fs::symlink_metadata(path) {
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
