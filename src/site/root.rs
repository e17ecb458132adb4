//! [`Root`]: a directory of the site that is written to, and the staging area beside it.
//!
//! All file calls below a root go through a handle of its directory (cap-std: `openat2` with `RESOLVE_BENEATH` where
//! the kernel has it), so that no path and no link that somebody put there leads out of it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, File, OpenOptions};

use crate::base::fs::{FsError, create_dir_all};
use crate::base::path::RelPath;

/// The name of the staging directory; nothing serves it.
pub(crate) const STAGING: &str = ".unbundle";
const LOCK: &str = "lock";

/// A directory that is written to.
pub(crate) struct Root {
    dir: Dir,
    path: PathBuf,
    staging: Arc<Staging>,
    /// Held as long as the root is: the same storage can be reached as a part of a site and by itself.
    _lock: Arc<fs::File>,
}

/// Where files stand until they are complete: in the same file system as their final place.
pub(crate) struct Staging {
    dir: Dir,
    /// The same directory, open for reading: the handle of a `Dir` is good for paths only.
    readable: fs::File,
    path: PathBuf,
    _lock: fs::File,
}

/// The staging directories and the locks that are in use: each is taken once, whatever the names it goes by.
#[derive(Default)]
pub(crate) struct Stagings {
    stagings: Vec<Arc<Staging>>,
    locks: Vec<((u64, u64), Arc<fs::File>)>,
}

/// Why a root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The file system says no.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process is writing to it.
    #[error("another `unbundle` is writing to `{}`: wait until it is done", .0.display())]
    Busy(PathBuf),
}

impl Stagings {
    /// The staging directory of `base`, which is created if it is not there, and locked until the last user is gone.
    pub(crate) fn of(&mut self, base: &Path) -> Result<Arc<Staging>, RootError> {
        let path = base.join(STAGING);
        create_dir_all(base)?;
        // Nobody but the user who writes has to see what is not complete.
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.map_err(FsError::at("create directory", &path))?,
        }
        for staging in &self.stagings {
            if identity(&staging.path)? == identity(&path)? {
                return Ok(staging.clone());
            }
        }
        let staging = Arc::new(Staging::open(base, path)?);
        self.stagings.push(staging.clone());
        Ok(staging)
    }

    /// The lock of a directory that is written to.
    fn lock(&mut self, path: &Path) -> Result<Arc<fs::File>, RootError> {
        let identity = identity(path)?;
        if let Some((_, lock)) = self.locks.iter().find(|(other, _)| *other == identity) {
            return Ok(lock.clone());
        }
        let lock = Arc::new(crate::base::fs::open(path)?);
        take(&lock, path)?;
        self.locks.push((identity, lock.clone()));
        Ok(lock)
    }
}

fn identity(path: &Path) -> Result<(u64, u64), FsError> {
    let meta = fs::metadata(path).map_err(FsError::at("open", path))?;
    Ok((meta.dev(), meta.ino()))
}

/// Locks `file` or says that another process has. A file system that knows no locks is used without.
fn take(file: &fs::File, what: &Path) -> Result<(), RootError> {
    match file.try_lock() {
        Err(fs::TryLockError::WouldBlock) => Err(RootError::Busy(what.to_owned())),
        Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(()),
    }
}

impl Staging {
    fn open(base: &Path, path: PathBuf) -> Result<Self, RootError> {
        let lock_path = path.join(LOCK);
        let lock = fs::File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(FsError::at("create", &lock_path))?;
        take(&lock, base)?;
        let dir = Dir::open_ambient_dir(&path, ambient_authority()).map_err(FsError::at("open", &path))?;
        let readable = crate::base::fs::open(&path)?;
        Ok(Self { dir, readable, path, _lock: lock })
    }

    /// Creates a file, or empties the one that is there.
    pub(crate) fn create(&self, name: &str) -> Result<File, FsError> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        self.dir.open_with(name, &options).map_err(FsError::at("create", self.path.join(name)))
    }

    /// Opens a file that is there.
    pub(crate) fn existing(&self, name: &str) -> Result<Option<File>, FsError> {
        regular(self.dir.open(name), || self.path.join(name))
    }

    /// Removes a file; that it is not there is no error.
    pub(crate) fn remove(&self, name: &str) -> Result<(), FsError> {
        match self.dir.remove_file(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(FsError::at("remove", self.path.join(name))),
        }
    }

    /// Removes everything that `keep` does not want: what a run that was killed left behind.
    pub(crate) fn clear(&self, keep: impl Fn(&str) -> bool) -> Result<(), FsError> {
        let entries = self.dir.entries().map_err(FsError::at("list", &self.path))?;
        for entry in entries {
            let entry = entry.map_err(FsError::at("list", &self.path))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name != LOCK && !keep(&name) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Brings everything written to the file system so far to the disk.
    pub(crate) fn sync(&self) -> Result<(), FsError> {
        rustix::fs::syncfs(&self.readable).map_err(|error| FsError::at("sync", &self.path)(error.into()))
    }

    /// The names of all that is there.
    pub(crate) fn names(&self) -> Result<Vec<String>, FsError> {
        let entries = self.dir.entries().map_err(FsError::at("list", &self.path))?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<_>>().map_err(FsError::at("list", &self.path))
    }

    /// The path of a staged file, for messages.
    #[must_use]
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The device that it lies on: stagings with the same one share their room.
    pub(crate) fn device(&self) -> Result<u64, FsError> {
        Ok(self.readable.metadata().map_err(FsError::at("open", &self.path))?.dev())
    }

    /// Free room: bytes and, where the file system counts them, inodes.
    pub(crate) fn free(&self) -> Result<(u64, Option<u64>), FsError> {
        let stat = rustix::fs::fstatvfs(&self.readable)
            .map_err(|error| FsError::at("ask for the free space of", &self.path)(error.into()))?;
        let inodes = (stat.f_files > 0).then_some(stat.f_favail);
        Ok((stat.f_bavail.saturating_mul(stat.f_frsize), inodes))
    }
}

impl Root {
    /// Opens the directory `path`, which is created if it is not there. Files are staged in `base` if that is in the
    /// same file system, and in the directory itself otherwise.
    pub(crate) fn open(path: &Path, base: &Path, stagings: &mut Stagings) -> Result<Self, RootError> {
        let staging = stagings.of(base)?;
        create_dir_all(path)?;
        let staging = if mount(&staging.path)? == mount(path)? { staging } else { stagings.of(path)? };
        let lock = stagings.lock(path)?;
        let dir = Dir::open_ambient_dir(path, ambient_authority()).map_err(FsError::at("open", path))?;
        Ok(Self { dir, path: path.to_owned(), staging, _lock: lock })
    }

    /// Where files of this root are staged.
    #[must_use]
    pub(crate) fn staging(&self) -> &Arc<Staging> {
        &self.staging
    }

    /// The path of a file, for messages.
    #[must_use]
    pub(crate) fn path(&self, file: &RelPath) -> PathBuf {
        self.path.join(file)
    }

    /// Opens a regular file that is there; anything else in its place counts as nothing.
    pub(crate) fn existing(&self, file: &RelPath) -> Result<Option<File>, FsError> {
        match self.dir.symlink_metadata(file) {
            Ok(meta) if !meta.is_file() => Ok(None),
            _ => regular(self.dir.open(file), || self.path(file)),
        }
    }

    /// Moves a staged file to its place.
    pub(crate) fn place(&self, staged: &str, file: &RelPath) -> Result<(), FsError> {
        let at = |action| FsError::at(action, self.path(file));
        match self.staging.dir.rename(staged, &self.dir, file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = file.as_ref().parent().unwrap_or(Path::new(""));
                self.dir.create_dir_all(parent).map_err(at("create the directory of"))?;
                self.staging.dir.rename(staged, &self.dir, file).map_err(at("move to"))
            }
            result => result.map_err(at("move to")),
        }
    }

    /// Moves a file that has its place back among those that are staged; that it is not there is no error.
    pub(crate) fn take_aside(&self, file: &RelPath, staged: &str) -> Result<(), FsError> {
        gone(self.dir.rename(file, &self.staging.dir, staged)).map_err(FsError::at("move", self.path(file)))
    }

    /// Removes a file; that it is not there is no error.
    pub(crate) fn remove(&self, file: &RelPath) -> Result<(), FsError> {
        gone(self.dir.remove_file(file)).map_err(FsError::at("remove", self.path(file)))
    }

    /// Removes a directory and all that is in it; that it is not there is no error.
    pub(crate) fn remove_all(&self, directory: &RelPath) -> Result<(), FsError> {
        gone(self.dir.remove_dir_all(directory)).map_err(FsError::at("remove", self.path(directory)))
    }

    /// Removes a directory if there is nothing in it, and says whether it is gone.
    pub(crate) fn remove_empty(&self, directory: &RelPath) -> Result<bool, FsError> {
        match self.dir.remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            result => gone(result).map(|()| true).map_err(FsError::at("remove", self.path(directory))),
        }
    }

    /// Whether there is nothing in a directory, or no such directory.
    pub(crate) fn is_empty(&self, directory: &RelPath) -> Result<bool, FsError> {
        match self.dir.read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            entries => Ok(entries.map_err(FsError::at("list", self.path(directory)))?.next().is_none()),
        }
    }

    /// Creates a directory, and says whether it was missing.
    pub(crate) fn directory(&self, directory: &RelPath) -> Result<bool, FsError> {
        if self.dir.is_dir(directory) {
            return Ok(false);
        }
        self.dir.create_dir_all(directory).map_err(FsError::at("create directory", self.path(directory)))?;
        Ok(true)
    }

    /// Creates an empty file.
    pub(crate) fn touch(&self, file: &RelPath) -> Result<(), FsError> {
        let parent = file.as_ref().parent().unwrap_or(Path::new(""));
        let created = self.dir.create_dir_all(parent).and_then(|()| self.dir.create(file));
        created.map(drop).map_err(FsError::at("create", self.path(file)))
    }

    /// Removes a file and its directory; that they are not there is no error.
    pub(crate) fn remove_with_directory(&self, file: &RelPath) -> Result<(), FsError> {
        let parent = file.as_ref().parent().unwrap_or(Path::new(""));
        // The directory may be there without the file: where a run was killed between the two.
        gone(self.dir.remove_file(file))
            .and_then(|()| gone(self.dir.remove_dir(parent)))
            .map_err(FsError::at("remove", self.path(file)))
    }
}

/// That something is not there is no error for who wants it gone.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// What a file can be renamed within: the device, and the mount where the kernel tells it (Linux 5.8), because one
/// file system can be mounted at two places.
fn mount(path: &Path) -> Result<(u64, Option<u64>), FsError> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok();
    let id = id.filter(|found| found.stx_mask & StatxFlags::MNT_ID.bits() != 0).map(|found| found.stx_mnt_id);
    Ok((identity(path)?.0, id))
}

fn regular(file: io::Result<File>, path: impl FnOnce() -> PathBuf) -> Result<Option<File>, FsError> {
    match file {
        Ok(file) => Ok(Some(file)),
        // `NotADirectory`: something else stands where a directory belongs; writing there will say so.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(FsError::at("open", path())(error)),
    }
}
