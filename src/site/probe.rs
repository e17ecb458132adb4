//! [`Probe`]: finds out which names and sizes of files a file system supports, by creating some.
//!
//! exFAT, NTFS, SMB shares and FAT32 refuse characters that Linux allows, ignore case, or limit the size of a file.
//! The type of a file system does not tell: drivers, servers and mount options differ.

use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::base::directory::Directory;
use crate::base::fs::{FsError, size_limit};
use crate::base::own_file::read_regular;
use crate::site::root::{PROBES, STAGING, staging_base};

/// Maximum size of `/proc/self/mountinfo` in bytes.
const MOUNTS_LIMIT: u64 = 16 << 20;

/// Types of file systems that extend a file without writing zeros, so that a size can be tried.
const SPARSE: [u64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630];

/// A directory for probes in a staging directory. One that an error leaves is removed with the other files of an
/// interrupted run.
pub(crate) struct Probe {
    staging: Directory,
    directory: Directory,
    name: String,
    /// Locked: another process does not remove the directory.
    _lock: File,
}

impl Probe {
    /// Starts to probe the file system of `path`, a root whose files are staged in `base`, and creates both. The
    /// staging directory is not locked, and its mode does not matter: probes have no content, and a user who has to
    /// change the mode learns about names at the same time. `None`: it belongs to another user, and will be refused.
    pub(crate) fn new(path: &Path, base: &Path) -> Result<Option<Self>, FsError> {
        let staging = staging_base(path, base)?.create_subdirectory(STAGING, 0o700)?;
        if staging.check_user().is_err() {
            return Ok(None);
        }
        // Another process may probe the same file system.
        let name = format!("{PROBES}{:016x}", RandomState::new().build_hasher().finish());
        let directory = staging.create_subdirectory(&name, 0o700)?;
        let lock = directory.reopen()?;
        // Some file systems have no locks.
        let _ = lock.try_lock();
        Ok(Some(Self { staging, directory, name, _lock: lock }))
    }

    /// Removes the directory.
    pub(crate) fn close(self) -> Result<(), FsError> {
        self.staging.remove_directory(&self.name)
    }

    /// True if a file can have the name `name`, which is one component, and keeps it.
    pub(crate) fn supports(&self, name: &str) -> Result<bool, FsError> {
        match self.create(name) {
            Ok(()) => {
                // The file system may have changed the name: FAT removes dots and spaces at its end.
                let is_kept = self.directory.names()?.iter().any(|found| found == name);
                self.remove(name)?;
                Ok(is_kept)
            }
            // Unless no name at all is possible.
            Err(error) if is_invalid_name(&error) && self.create_and_remove("name").is_ok() => Ok(false),
            Err(error) => Err(FsError::at("create", self.directory.path().join(name))(error)),
        }
    }

    fn create_and_remove(&self, name: &str) -> Result<(), FsError> {
        self.create(name).map_err(FsError::at("create", self.directory.path().join(name)))?;
        self.remove(name)
    }

    /// True if the file system does not distinguish upper and lower case.
    pub(crate) fn ignores_case(&self) -> Result<bool, FsError> {
        let (name, other) = ("case", "CASE");
        self.create(name).map_err(FsError::at("create", self.directory.path().join(name)))?;
        let found = match rustix::fs::statat(self.directory.file(), other, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => true,
            Err(Errno::NOENT) => false,
            Err(error) => return Err(FsError::at("read", self.directory.path().join(other))(error.into())),
        };
        self.remove(name)?;
        Ok(found)
    }

    /// True if a file can have this size in bytes, or if only writing it would tell.
    pub(crate) fn supports_size(&self, size: u64) -> Result<bool, FsError> {
        // Beyond a limit of this process, the kernel would end it.
        if size_limit(self.directory.file()).is_some_and(|limit| size > limit) {
            return Ok(false);
        }
        let kind = rustix::fs::fstatfs(self.directory.file()).map(|stat| stat.f_type.cast_unsigned());
        // Every file system supports this size.
        if size <= u32::MAX.into() || !kind.is_ok_and(|kind| SPARSE.contains(&kind)) {
            return Ok(true);
        }
        let is_supported = match self.directory.create_file("size", 0o600)?.set_len(size) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::FileTooLarge => false,
            Err(error) => return Err(FsError::at("resize", self.directory.path().join("size"))(error)),
        };
        self.remove("size")?;
        Ok(is_supported)
    }

    /// Returns the name of the file system, such as `vfat`. `None`: unknown.
    pub(crate) fn file_system(&self) -> Option<String> {
        let device = self.directory.identity().ok()?.0;
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let mounts = read_regular("/proc/self/mountinfo".as_ref(), MOUNTS_LIMIT).ok()?;
        mount_type(&String::from_utf8_lossy(&mounts), &device)
    }

    fn create(&self, name: &str) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::openat(self.directory.file(), name, flags, mode).map(drop).map_err(io::Error::from)
    }

    /// Removes a file that exists. The name may be one that paths of the site do not have.
    fn remove(&self, name: &str) -> Result<(), FsError> {
        rustix::fs::unlinkat(self.directory.file(), name, AtFlags::empty())
            .map_err(|error| FsError::at("remove", self.directory.path().join(name))(error.into()))
    }
}

/// True if a file system rejects a name as such. Drivers and servers differ in the error.
fn is_invalid_name(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename
            | ErrorKind::InvalidData
            | ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::Unsupported
            | ErrorKind::IsADirectory
            | ErrorKind::Other
    ) || error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

/// Returns the type of the mount with this device number (`proc_pid_mountinfo(5)`), without characters that a terminal
/// could obey.
fn mount_type(mounts: &str, device: &str) -> Option<String> {
    let line = mounts.lines().rfind(|line| line.split(' ').nth(2) == Some(device))?;
    let kind = line.split_once(" - ")?.1.split(' ').next()?;
    Some(kind.chars().filter(char::is_ascii_graphic).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::root::Stagings;

    #[test]
    fn a_probe_leaves_nothing_and_knows_the_limits_of_this_file_system() {
        let directory = tempfile::tempdir().unwrap();
        let (site, files) = (directory.path().join("site"), directory.path().join("site/files"));
        let probe = Probe::new(&files, &site).unwrap().unwrap();
        for name in ["a", "a:b", "a?*\"<>|", "CON", "ü", "dot.", "space "] {
            assert!(probe.supports(name).unwrap(), "{name}");
        }
        for name in ["x".repeat(256), "nul\0".to_owned()] {
            assert!(!probe.supports(&name).unwrap(), "{name:?}");
        }
        assert!(!probe.ignores_case().unwrap());
        assert!(probe.supports_size(5 << 30).unwrap());
        assert!(probe.file_system().is_some_and(|name| !name.is_empty()));
        assert!(probe.directory.names().unwrap().is_empty());
        let other = Probe::new(&site, &site).unwrap().unwrap();
        probe.close().unwrap();
        assert!(other.supports("a").unwrap());
        // As a killed process leaves it.
        other.create("left").unwrap();
        let staging = Stagings::default().open(&site).unwrap();
        staging.clear(|_| false).unwrap();
        assert!(staging.names().unwrap().contains(&other.name), "another process uses it");
        drop(other);
        staging.clear(|_| false).unwrap();
        assert_eq!(staging.names().unwrap(), ["lock"]);
    }

    #[test]
    fn the_type_of_a_mount_follows_the_dash() {
        let mounts = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      40 21 7:0 / /mnt/a\\040b rw - fuseblk /dev/loop0 rw,user_id=0\n";
        assert_eq!(mount_type(mounts, "7:0").as_deref(), Some("fuseblk"));
        assert_eq!(mount_type(mounts, "254:0").as_deref(), Some("ext4"));
        assert_eq!(mount_type(mounts, "254:1"), None);
    }
}
