//! Temporary files without a name: large data that does not fit into memory and that no later run needs.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, fstatfs, openat};

/// Types of file systems in memory: tmpfs and ramfs.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Creates a file without a name in `$TMPDIR`, or else in `/var/tmp`, unless the directory is in memory. Its space is
/// free when it is closed, even if the process is killed. `None`: it cannot be created.
pub(crate) fn create() -> Option<File> {
    let named = std::env::var_os("TMPDIR").filter(|path| !path.is_empty()).map(PathBuf::from);
    create_in(&named.unwrap_or_else(|| "/var/tmp".into()))
}

fn create_in(directory: &Path) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR).ok()?);
    let is_in_memory = fstatfs(&file).is_ok_and(|stat| IN_MEMORY.contains(&stat.f_type.cast_unsigned()));
    (!is_in_memory).then_some(file)
}

/// Returns the free space of the file system of `file`, in bytes. `None`: unknown.
pub(crate) fn free_space(file: &File) -> Option<u64> {
    let stat = rustix::fs::fstatvfs(file).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_file_has_no_name_and_is_not_in_memory() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        if let Some(file) = create_in(directory.path()) {
            assert!(free_space(&file).is_some());
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(create_in(Path::new("/dev/shm")).is_none());
        assert!(create_in(&directory.path().join("missing")).is_none());
    }
}
