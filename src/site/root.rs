//! [`Root`]: a directory of the site that is written to, and its staging area.
//!
//! All file calls below a root go through a handle of its directory (cap-std: `openat2` with
//! `RESOLVE_BENEATH` where the kernel has it), so that no path and no symlink below it can lead out of it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, File, OpenOptions};

use crate::base::fs::{FsError, create_dir_all};
use crate::base::path::RelPath;

/// The name of the staging directory, which is not served.
pub(crate) const STAGING: &str = ".unbundle";
const LOCK: &str = "lock";

/// A directory of the site that is written to; locked while the value exists.
pub(crate) struct Root {
    dir: Dir,
    path: PathBuf,
    staging: Arc<Staging>,
    /// A second lock besides that of the staging area: the same storage can belong to a site and be used by
    /// itself.
    _lock: Arc<fs::File>,
}

/// The directory of incomplete files, in the same file system as their final paths; locked while the value
/// exists.
pub(crate) struct Staging {
    dir: Dir,
    /// The same directory, open for reading: a `Dir` is opened with `O_PATH`, which `syncfs` and `fstatvfs`
    /// reject.
    readable: fs::File,
    path: PathBuf,
    _lock: fs::File,
}

/// The open staging directories and locks of one process. Each directory is locked once, even if two paths
/// lead to it.
#[derive(Default)]
pub(crate) struct Stagings {
    stagings: Vec<Arc<Staging>>,
    locks: Vec<(Identity, Arc<fs::File>)>,
}

/// The reasons why a directory cannot be opened for writing.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process holds the lock.
    #[error("another `unbundle` is writing to `{}`: wait until it is done", .0.display())]
    Busy(PathBuf),
}

impl Stagings {
    /// Opens the staging directory of `base`, and creates it if it is missing. It is locked until the last
    /// reference is dropped.
    pub(crate) fn open(&mut self, base: &Path) -> Result<Arc<Staging>, RootError> {
        let path = base.join(STAGING);
        create_dir_all(base)?;
        // Incomplete files are not readable by other users.
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

    fn lock(&mut self, path: &Path) -> Result<Arc<fs::File>, RootError> {
        let identity = identity(path)?;
        if let Some((_, lock)) = self.locks.iter().find(|(other, _)| *other == identity) {
            return Ok(lock.clone());
        }
        let lock = Arc::new(crate::base::fs::open(path)?);
        try_lock(&lock, path)?;
        self.locks.push((identity, lock.clone()));
        Ok(lock)
    }
}

/// Device and inode.
type Identity = (u64, u64);

fn identity(path: &Path) -> Result<Identity, FsError> {
    let meta = fs::metadata(path).map_err(FsError::at("open", path))?;
    Ok((meta.dev(), meta.ino()))
}

/// Locks `file`; `path` is for the error. A file system without locks is used without.
fn try_lock(file: &fs::File, path: &Path) -> Result<(), RootError> {
    match file.try_lock() {
        Err(fs::TryLockError::WouldBlock) => Err(RootError::Busy(path.to_owned())),
        Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(()),
    }
}

impl Staging {
    fn open(base: &Path, path: PathBuf) -> Result<Self, RootError> {
        let lock_path = path.join(LOCK);
        let lock = fs::File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(FsError::at("create", &lock_path))?;
        try_lock(&lock, base)?;
        let dir = Dir::open_ambient_dir(&path, ambient_authority()).map_err(FsError::at("open", &path))?;
        let readable = crate::base::fs::open(&path)?;
        Ok(Self { dir, readable, path, _lock: lock })
    }

    /// Creates a file, or truncates an existing one.
    pub(crate) fn create(&self, name: &str) -> Result<File, FsError> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        self.dir.open_with(name, &options).map_err(FsError::at("create", self.path.join(name)))
    }

    /// Opens a regular file; `None`: it is missing.
    pub(crate) fn open_existing(&self, name: &str) -> Result<Option<File>, FsError> {
        open_or_none(self.dir.open(name), || self.path.join(name))
    }

    /// Removes a file, if it exists.
    pub(crate) fn remove(&self, name: &str) -> Result<(), FsError> {
        ignore_missing(self.dir.remove_file(name)).map_err(FsError::at("remove", self.path.join(name)))
    }

    /// Removes the files of interrupted runs, except those that `keep` accepts.
    pub(crate) fn clear(&self, keep: impl Fn(&str) -> bool) -> Result<(), FsError> {
        for name in self.names()? {
            if name != LOCK && !keep(&name) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Writes all cached data of the file system to disk (`syncfs`).
    pub(crate) fn sync(&self) -> Result<(), FsError> {
        rustix::fs::syncfs(&self.readable).map_err(|error| FsError::at("sync", &self.path)(error.into()))
    }

    /// Returns the names of all files, the lock included.
    pub(crate) fn names(&self) -> Result<Vec<String>, FsError> {
        let entries = self.dir.entries().map_err(FsError::at("list", &self.path))?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<_>>().map_err(FsError::at("list", &self.path))
    }

    /// Returns the path of a staged file.
    #[must_use]
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Returns the device number. Directories with the same one share their free space.
    pub(crate) fn device(&self) -> Result<u64, FsError> {
        Ok(self.readable.metadata().map_err(FsError::at("open", &self.path))?.dev())
    }

    /// Returns the free space in bytes, and the free inodes; `None`: the file system does not count them.
    pub(crate) fn free(&self) -> Result<(u64, Option<u64>), FsError> {
        let stat = rustix::fs::fstatvfs(&self.readable)
            .map_err(|error| FsError::at("get the free space of", &self.path)(error.into()))?;
        let inodes = (stat.f_files > 0).then_some(stat.f_favail);
        Ok((stat.f_bavail.saturating_mul(stat.f_frsize), inodes))
    }
}

impl Root {
    /// Opens and locks the directory `path`, and creates it if it is missing. Files are staged in `base` if a
    /// rename from there is possible, otherwise in `path`.
    pub(crate) fn open(path: &Path, base: &Path, stagings: &mut Stagings) -> Result<Self, RootError> {
        let staging = stagings.open(base)?;
        create_dir_all(path)?;
        let staging = if mount(&staging.path)? == mount(path)? { staging } else { stagings.open(path)? };
        let lock = stagings.lock(path)?;
        let dir = Dir::open_ambient_dir(path, ambient_authority()).map_err(FsError::at("open", path))?;
        Ok(Self { dir, path: path.to_owned(), staging, _lock: lock })
    }

    #[must_use]
    pub(crate) fn staging(&self) -> &Arc<Staging> {
        &self.staging
    }

    /// Returns the absolute path of a file, for messages.
    #[must_use]
    pub(crate) fn path(&self, file: &RelPath) -> PathBuf {
        self.path.join(file)
    }

    /// Opens a regular file; `None`: it is missing, or not a regular file.
    pub(crate) fn open_existing(&self, file: &RelPath) -> Result<Option<File>, FsError> {
        match self.dir.symlink_metadata(file) {
            Ok(meta) if !meta.is_file() => Ok(None),
            _ => open_or_none(self.dir.open(file), || self.path(file)),
        }
    }

    /// Renames a staged file to its final path, and creates the directories of that.
    pub(crate) fn commit(&self, staged: &str, file: &RelPath) -> Result<(), FsError> {
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

    /// Renames a file into the staging area, if it exists.
    pub(crate) fn move_to_staging(&self, file: &RelPath, staged: &str) -> Result<(), FsError> {
        ignore_missing(self.dir.rename(file, &self.staging.dir, staged))
            .map_err(FsError::at("move", self.path(file)))
    }

    /// Removes a file, if it exists.
    pub(crate) fn remove(&self, file: &RelPath) -> Result<(), FsError> {
        ignore_missing(self.dir.remove_file(file)).map_err(FsError::at("remove", self.path(file)))
    }

    /// Removes a directory and its contents, if it exists.
    pub(crate) fn remove_all(&self, directory: &RelPath) -> Result<(), FsError> {
        ignore_missing(self.dir.remove_dir_all(directory))
            .map_err(FsError::at("remove", self.path(directory)))
    }

    /// Removes a directory unless it has contents. Returns true if it does not exist any more.
    pub(crate) fn remove_empty(&self, directory: &RelPath) -> Result<bool, FsError> {
        match self.dir.remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            result => {
                ignore_missing(result).map(|()| true).map_err(FsError::at("remove", self.path(directory)))
            }
        }
    }

    /// True if a directory is empty or missing.
    pub(crate) fn is_empty(&self, directory: &RelPath) -> Result<bool, FsError> {
        match self.dir.read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            entries => Ok(entries.map_err(FsError::at("list", self.path(directory)))?.next().is_none()),
        }
    }

    /// Creates a directory and its parents. Returns false if it existed.
    pub(crate) fn create_directory(&self, directory: &RelPath) -> Result<bool, FsError> {
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

    /// Removes a file and its directory, as far as they exist.
    pub(crate) fn remove_with_directory(&self, file: &RelPath) -> Result<(), FsError> {
        let parent = file.as_ref().parent().unwrap_or(Path::new(""));
        // A run killed between the two calls leaves an empty directory.
        ignore_missing(self.dir.remove_file(file))
            .and_then(|()| ignore_missing(self.dir.remove_dir(parent)))
            .map_err(FsError::at("remove", self.path(file)))
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Returns the device and the mount ID, within which a file can be renamed: one file system can be mounted
/// twice. `None`: the kernel does not report mount IDs (before Linux 5.8).
fn mount(path: &Path) -> Result<(u64, Option<u64>), FsError> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok();
    let id = id.filter(|stat| stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).map(|stat| stat.stx_mnt_id);
    Ok((identity(path)?.0, id))
}

fn open_or_none(file: io::Result<File>, path: impl FnOnce() -> PathBuf) -> Result<Option<File>, FsError> {
    match file {
        Ok(file) => Ok(Some(file)),
        // `NotADirectory`: a parent is a file. Writing to the path reports that.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(FsError::at("open", path())(error)),
    }
}
