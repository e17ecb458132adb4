//! [`Root`]: a directory of the site that is written to, and its staging area.
//!
//! All file calls below a root go through a handle of its directory (cap-std: `openat2` with
//! `RESOLVE_BENEATH` where the kernel has it), so that no path and no symlink below it can lead out of it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cap_std::fs::{Dir, File, OpenOptions, OpenOptionsExt as _, PermissionsExt as _};

use crate::base::directory::Directory;
use crate::base::fs::{FsError, try_lock_file};
use crate::base::own_file::{self, Distrust, check};
use crate::base::path::RelPath;

/// The name of the staging directory, which is not served.
pub(crate) const STAGING: &str = ".unbundle";
/// The beginning of the names of directories of `probe::Probe` in a staging directory.
pub(crate) const PROBES: &str = "probe.";
const LOCK: &str = "lock";
/// The types of ext4, XFS, Btrfs, F2FS and tmpfs (statfs(2)).
const LOCAL: [u64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994];
/// The permissions that all users need to read a directory of the trees.
const ACCESSIBLE: u32 = 0o555;

/// A directory of the site that is written to; locked while the value exists.
pub(crate) struct Root {
    dir: Dir,
    path: PathBuf,
    /// True if it is a directory of the site, and not one that the user named.
    is_in_site: bool,
    staging: Arc<Staging>,
    /// A second lock besides that of the staging area: the same storage can belong to a site and be used by
    /// itself.
    _lock: Arc<fs::File>,
    /// The directory of the last file that was committed, and its path.
    last: Mutex<Option<(PathBuf, Dir)>>,
}

/// The directory of incomplete files, in the same file system as their final paths; locked while the value
/// exists.
pub(crate) struct Staging {
    directory: Directory,
    /// Another handle of the same directory, for renames to and from a root.
    dir: Dir,
    /// The directory that contains it: the site, or a root.
    base: Directory,
    /// See [`Staging::reports_errors`].
    reports_errors: bool,
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
    ///
    /// Fails if it is a symlink, or if others than the user and root can write to it: files in it are
    /// removed, and become blobs.
    pub(crate) fn open(&mut self, base: &Path) -> Result<Arc<Staging>, RootError> {
        let base = Directory::create(base)?;
        // Incomplete files are not readable by other users.
        let directory = base.create_subdirectory(STAGING, 0o700)?;
        directory.check_owner()?;
        for staging in &self.stagings {
            if staging.directory.identity()? == directory.identity()? {
                return Ok(staging.clone());
            }
        }
        let staging = Arc::new(Staging::open(base, directory)?);
        self.stagings.push(staging.clone());
        Ok(staging)
    }

    fn lock(&mut self, directory: &Directory) -> Result<Arc<fs::File>, RootError> {
        let identity = directory.identity()?;
        if let Some((_, lock)) = self.locks.iter().find(|(other, _)| *other == identity) {
            return Ok(lock.clone());
        }
        // Another open of the directory: a clone of the handle would share its lock.
        let lock = directory.reopen()?;
        try_lock(&lock, directory.path())?;
        let lock = Arc::new(lock);
        self.locks.push((identity, lock.clone()));
        Ok(lock)
    }
}

/// Device and inode.
type Identity = (u64, u64);

/// Locks `file`; `path` is for the error.
fn try_lock(file: &fs::File, path: &Path) -> Result<(), RootError> {
    if try_lock_file(file) { Ok(()) } else { Err(RootError::Busy(path.to_owned())) }
}

impl Staging {
    fn open(base: Directory, directory: Directory) -> Result<Self, RootError> {
        let lock = directory.lock_file(LOCK)?;
        try_lock(&lock, base.path())?;
        let dir = directory.file().try_clone().map_err(FsError::at("open", directory.path()))?;
        let reports_errors = sync_reports_errors(directory.file());
        Ok(Self { dir: Dir::from_std_file(dir), directory, base, reports_errors, _lock: lock })
    }

    /// Creates a file, in place of whatever has the name.
    pub(crate) fn create(&self, name: &str) -> Result<File, FsError> {
        Ok(File::from_std(self.directory.create_file(name, 0o666)?))
    }

    /// Opens the file of an earlier run; `None`: it is missing, or another user could have written it.
    pub(crate) fn open_existing(&self, name: &str) -> Result<Option<File>, FsError> {
        // A link or a special file is removed like any other that is not used.
        let Ok(Some(file)) = self.directory.open_file(name) else { return Ok(None) };
        let metadata = file.metadata().map_err(FsError::at("read", self.path(name)))?;
        Ok(check(&metadata).is_ok().then(|| File::from_std(file)))
    }

    /// Opens a file that was created, for reading; `None`: it is missing.
    pub(crate) fn reopen(&self, name: &str) -> Result<Option<fs::File>, FsError> {
        self.directory.open_file(name)
    }

    /// True if a regular file has the name. It can belong to any user.
    pub(crate) fn is_file(&self, name: &str) -> Result<bool, FsError> {
        match self.dir.symlink_metadata(name) {
            Ok(metadata) => Ok(metadata.is_file()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(FsError::at("read", self.path(name))(error)),
        }
    }

    /// Replaces a file in the directory that contains the staging directory, atomically and durably.
    pub(crate) fn replace_in_base(&self, name: &str, content: &[u8]) -> Result<(), FsError> {
        let scratch = format!("new.{name}");
        let mut file = self.directory.create_file(&scratch, 0o666)?;
        let written = file.write_all(content).and_then(|()| file.sync_all());
        written.map_err(FsError::at("write", self.path(&scratch)))?;
        self.directory.rename(&scratch, &self.base, name)
    }

    /// The directory that contains the staging directory.
    #[must_use]
    pub(crate) fn base(&self) -> &Directory {
        &self.base
    }

    /// Removes a file, if it exists.
    pub(crate) fn remove(&self, name: &str) -> Result<(), FsError> {
        self.directory.remove(name)
    }

    /// Removes the files of interrupted runs, except those that `keep` accepts.
    pub(crate) fn clear(&self, keep: impl Fn(&str) -> bool) -> Result<(), FsError> {
        for name in self.names()? {
            if name.starts_with(PROBES) {
                self.clear_probe(&name)?;
            } else if name != LOCK && !keep(&name) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Removes a directory of a probe, unless another process uses it.
    fn clear_probe(&self, name: &str) -> Result<(), FsError> {
        let is_used = self
            .directory
            .subdirectory(name)
            .and_then(|probe| probe.reopen())
            .is_ok_and(|probe| !try_lock_file(&probe));
        if is_used { Ok(()) } else { self.directory.remove_directory(name) }
    }

    /// Writes all cached data of the file system to disk (`syncfs`). Files whose loss it would not report must be synced
    /// one by one, unless [`Self::reports_errors`].
    pub(crate) fn sync(&self) -> Result<(), FsError> {
        rustix::fs::syncfs(self.directory.file())
            .map_err(|error| FsError::at("sync", self.directory.path())(error.into()))
    }

    /// True if [`Self::sync`] fails when the content of any file could not be written since the directory was opened.
    #[must_use]
    pub(crate) fn reports_errors(&self) -> bool {
        self.reports_errors
    }

    /// Returns the names of all files, the lock included.
    pub(crate) fn names(&self) -> Result<Vec<String>, FsError> {
        self.directory.names()
    }

    /// Returns the path of a staged file.
    #[must_use]
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the device number. Directories with the same one share their free space.
    pub(crate) fn device(&self) -> Result<u64, FsError> {
        Ok(self.directory.identity()?.0)
    }

    /// Returns the free space in bytes, and the free inodes; `None`: the file system does not count them.
    pub(crate) fn free(&self) -> Result<(Option<u64>, Option<u64>), FsError> {
        let stat = rustix::fs::fstatvfs(self.directory.file())
            .map_err(|error| FsError::at("get the free space of", self.directory.path())(error.into()))?;
        let inodes = (stat.f_files > 0).then_some(stat.f_favail);
        // A file system without any blocks does not know its size: ramfs, some FUSE file systems and network shares.
        let bytes = (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize));
        Ok((bytes, inodes))
    }
}

/// True for local file systems of Linux 5.8 and later, whose `syncfs` reports write-back errors (syncfs(2)).
fn sync_reports_errors(directory: &fs::File) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let is_local =
        || rustix::fs::fstatfs(directory).is_ok_and(|stat| LOCAL.contains(&stat.f_type.cast_unsigned()));
    version >= (5, 8) && is_local()
}

impl Root {
    /// Opens and locks the directory `path`, and creates it if it is missing. Files are staged in `base` if a
    /// rename from there is possible, otherwise in `path`.
    pub(crate) fn open(path: &Path, base: &Path, stagings: &mut Stagings) -> Result<Self, RootError> {
        let staging = stagings.open(base)?;
        let directory = Directory::create_in(path, base)?;
        let staging =
            if is_same_mount(&staging.directory, &directory)? { staging } else { stagings.open(path)? };
        let lock = stagings.lock(&directory)?;
        let dir = directory.file().try_clone().map_err(FsError::at("open", path))?;
        Ok(Self {
            dir: Dir::from_std_file(dir),
            path: path.to_owned(),
            is_in_site: path != base,
            staging,
            _lock: lock,
            last: Mutex::default(),
        })
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
        open_existing(&self.dir, file, || self.path(file))
    }

    /// Renames a staged file to its final path, and creates the directories of that.
    pub(crate) fn commit(&self, staged: &str, file: &RelPath) -> Result<(), FsError> {
        let at = |action| FsError::at(action, self.path(file));
        let parent = file.as_ref().parent().unwrap_or(Path::new(""));
        let name = file.components().last().unwrap_or_default();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, dir)) = last.as_ref().filter(|(path, _)| path == parent) {
            match self.staging.dir.rename(staged, dir, name) {
                // The directory was removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => return result.map_err(at("move to")),
            }
        }
        *last = None;
        let open =
            || if parent.as_os_str().is_empty() { self.dir.try_clone() } else { self.dir.open_dir(parent) };
        let dir = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self
                .dir
                .create_dir_all(parent)
                .and_then(|()| open())
                .map_err(at("create the directory of"))?,
            dir => dir.map_err(at("move to"))?,
        };
        self.staging.dir.rename(staged, &dir, name).map_err(at("move to"))?;
        *last = Some((parent.to_owned(), dir));
        Ok(())
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

    /// Returns what is in the way of a file: a file at one of its directories, or a directory.
    pub(crate) fn obstacle(&self, file: &RelPath) -> Option<Obstacle> {
        let components: Vec<&str> = file.components().collect();
        for len in 1..=components.len() {
            let path = RelPath::parse(&components[..len].join("/")).ok()?;
            let metadata = self.dir.symlink_metadata(&path).ok()?;
            if len == components.len() && metadata.is_dir() {
                return Some(Obstacle::Directory(path));
            }
            if len < components.len() && metadata.is_file() {
                return Some(Obstacle::File(path));
            }
        }
        None
    }

    /// Returns everything below a directory that is not a directory.
    pub(crate) fn files_below(&self, directory: &RelPath) -> Result<Vec<RelPath>, FsError> {
        let at = |directory: &RelPath| FsError::at("list", self.path(directory));
        let (mut files, mut rest) = (Vec::new(), vec![directory.clone()]);
        while let Some(directory) = rest.pop() {
            for entry in self.dir.read_dir(&directory).map_err(at(&directory))? {
                let entry = entry.map_err(at(&directory))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let name = RelPath::parse(&name).map_err(|error| at(&directory)(io::Error::other(error)))?;
                let path = directory.join(&name);
                let is_directory = entry.file_type().map_err(at(&path))?.is_dir();
                if is_directory { rest.push(path) } else { files.push(path) }
            }
        }
        Ok(files)
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
        let first = self.dir.read_dir(directory).and_then(|mut entries| entries.next().transpose());
        match first {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            first => Ok(first.map_err(FsError::at("list", self.path(directory)))?.is_none()),
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

    /// Makes the directories above `files` accessible to all users, because servers run as others. Returns the
    /// number of directories that were not. A directory that the user named keeps its mode.
    pub(crate) fn make_accessible<'f>(
        &self,
        files: impl IntoIterator<Item = &'f RelPath>,
    ) -> Result<usize, FsError> {
        let mut directories: BTreeSet<&Path> = BTreeSet::new();
        for file in files {
            for directory in file.as_ref().ancestors().skip(1) {
                if !directories.insert(directory) {
                    break;
                }
            }
        }
        let mut changed = 0;
        for directory in directories {
            let is_root = directory.as_os_str().is_empty();
            if is_root && !self.is_in_site {
                continue;
            }
            let name = if is_root { Path::new(".") } else { directory };
            let metadata = match self.dir.symlink_metadata(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata.map_err(|error| FsError::at("open", self.path.join(name))(error))?,
            };
            let mut permissions = metadata.permissions();
            if metadata.is_dir() && permissions.mode() & ACCESSIBLE != ACCESSIBLE {
                permissions.set_mode(permissions.mode() & 0o7777 | ACCESSIBLE);
                let made = self.dir.set_permissions(name, permissions);
                made.map_err(FsError::at("make accessible", self.path.join(directory)))?;
                changed += 1;
            }
        }
        Ok(changed)
    }

    /// Creates an empty file, unless a regular file has the name.
    pub(crate) fn touch(&self, file: &RelPath) -> Result<(), FsError> {
        if self.dir.symlink_metadata(file).is_ok_and(|metadata| metadata.is_file()) {
            return Ok(());
        }
        let parent = file.as_ref().parent().unwrap_or(Path::new(""));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        let created = self
            .dir
            .create_dir_all(parent)
            .and_then(|()| ignore_missing(self.dir.remove_file(file)))
            .and_then(|()| self.dir.open_with(file, &options));
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

/// A file or directory that is in the way of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Obstacle {
    /// A file, which would have to be a directory.
    File(RelPath),
    /// A directory, which would have to be a file.
    Directory(RelPath),
}

/// Opens a regular file below `dir` for reading. A symlink or a special file is an error, and does not block.
pub(crate) fn open_regular(dir: &Dir, path: impl AsRef<Path>) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(own_file::FLAGS.bits().cast_signed());
    let file = dir.open_with(path, &options).map_err(|error| match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::LOOP.raw_os_error() => Distrust::Symlink.into(),
        _ => error,
    })?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if metadata.is_file() { Ok(file) } else { Err(Distrust::NotRegular.into()) }
}

/// Opens a regular file below `dir`; `None`: it is missing, or not a regular file. `shown` is its path in errors.
pub(crate) fn open_existing(
    dir: &Dir,
    path: impl AsRef<Path>,
    shown: impl FnOnce() -> PathBuf,
) -> Result<Option<File>, FsError> {
    let path = path.as_ref();
    if dir.symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Ok(None);
    }
    match open_regular(dir, path) {
        Ok(file) => Ok(Some(file)),
        // `NotADirectory`: a parent is a file. Writing to the path reports that.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(FsError::at("open", shown())(error)),
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Opens the directory whose staging directory [`Root::open`] uses, and creates it if it is missing.
pub(crate) fn staging_base(path: &Path, base: &Path) -> Result<Directory, FsError> {
    let (directory, base) = (Directory::create_in(path, base)?, Directory::create(base)?);
    Ok(if is_same_mount(&base, &directory)? { base } else { directory })
}

/// True if a file can be renamed from one directory to the other.
fn is_same_mount(one: &Directory, other: &Directory) -> Result<bool, FsError> {
    Ok(mount(one)? == mount(other)?)
}

/// Returns the device and the mount ID, within which a file can be renamed: one file system can be mounted
/// twice. `None`: the kernel does not report mount IDs (before Linux 5.8), or a sandbox does not allow the call.
fn mount(directory: &Directory) -> Result<(u64, Option<u64>), FsError> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    use rustix::io::Errno;
    let id = match statx(directory.file(), "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID) {
        Ok(stat) => (stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id),
        Err(Errno::NOSYS | Errno::PERM) => None,
        Err(error) => return Err(FsError::at("open", directory.path())(error.into())),
    };
    Ok((directory.identity()?.0, id))
}
