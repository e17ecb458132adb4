//! The system calls at which faults are injected, of x86-64.

use nix::libc;

/// A system call.
#[derive(Debug)]
pub struct Call {
    pub name: &'static str,
    pub number: i64,
    pub object: Object,
    /// The argument with the number of bytes, of a call that can transfer fewer of them.
    pub length: Option<usize>,
}

/// The arguments that name the file that a call is about.
#[derive(Debug, Clone, Copy)]
pub enum Object {
    Descriptor(usize),
    Path(usize),
    /// A descriptor of a directory, and a path below it.
    At(usize, usize),
    /// No file.
    Nothing,
}

use Object::{At, Descriptor, Nothing, Path};

const fn call(name: &'static str, number: i64, object: Object, length: Option<usize>) -> Call {
    Call { name, number, object, length }
}

/// All known calls.
pub const CALLS: &[Call] = &[
    call("read", libc::SYS_read, Descriptor(0), Some(2)),
    call("pread64", libc::SYS_pread64, Descriptor(0), Some(2)),
    call("getdents64", libc::SYS_getdents64, Descriptor(0), None),
    call("statx", libc::SYS_statx, At(0, 1), None),
    call("newfstatat", libc::SYS_newfstatat, At(0, 1), None),
    call("fstat", libc::SYS_fstat, Descriptor(0), None),
    call("lseek", libc::SYS_lseek, Descriptor(0), None),
    call("flock", libc::SYS_flock, Descriptor(0), None),
    call("mmap", libc::SYS_mmap, Nothing, None),
    call("open", libc::SYS_open, Path(0), None),
    call("openat", libc::SYS_openat, At(0, 1), None),
    call("openat2", libc::SYS_openat2, At(0, 1), None),
    call("write", libc::SYS_write, Descriptor(0), Some(2)),
    call("pwrite64", libc::SYS_pwrite64, Descriptor(0), Some(2)),
    call("writev", libc::SYS_writev, Descriptor(0), None),
    call("copy_file_range", libc::SYS_copy_file_range, Descriptor(2), Some(4)),
    call("sendfile", libc::SYS_sendfile, Descriptor(0), Some(3)),
    call("splice", libc::SYS_splice, Descriptor(2), Some(4)),
    call("ftruncate", libc::SYS_ftruncate, Descriptor(0), None),
    call("fallocate", libc::SYS_fallocate, Descriptor(0), None),
    call("fchmod", libc::SYS_fchmod, Descriptor(0), None),
    call("fchmodat", libc::SYS_fchmodat, At(0, 1), None),
    call("utimensat", libc::SYS_utimensat, At(0, 1), None),
    call("fsync", libc::SYS_fsync, Descriptor(0), None),
    call("fdatasync", libc::SYS_fdatasync, Descriptor(0), None),
    call("syncfs", libc::SYS_syncfs, Descriptor(0), None),
    call("mkdir", libc::SYS_mkdir, Path(0), None),
    call("mkdirat", libc::SYS_mkdirat, At(0, 1), None),
    call("rename", libc::SYS_rename, Path(1), None),
    call("renameat", libc::SYS_renameat, At(2, 3), None),
    call("renameat2", libc::SYS_renameat2, At(2, 3), None),
    call("link", libc::SYS_link, Path(1), None),
    call("linkat", libc::SYS_linkat, At(2, 3), None),
    call("symlink", libc::SYS_symlink, Path(1), None),
    call("symlinkat", libc::SYS_symlinkat, At(1, 2), None),
    call("unlink", libc::SYS_unlink, Path(0), None),
    call("unlinkat", libc::SYS_unlinkat, At(0, 1), None),
    call("rmdir", libc::SYS_rmdir, Path(0), None),
];

/// Calls that transfer bytes to a file.
pub const WRITES: &[&str] = &["write", "pwrite64", "writev", "copy_file_range", "sendfile", "splice"];

/// Calls that transfer bytes from a file.
pub const READS: &[&str] = &["read", "pread64"];

/// Calls that open a file.
pub const OPENS: &[&str] = &["open", "openat", "openat2"];

/// Calls that only read.
pub const LOOKS: &[&str] = &["read", "pread64", "getdents64", "statx", "newfstatat", "flock"];

/// Other calls that need space or quota.
const SPACE: &[&str] = &[
    "ftruncate",
    "fallocate",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "fsync",
    "fdatasync",
    "syncfs",
];

/// Other calls that change a file system.
const REMOVALS_AND_MODES: &[&str] =
    &["symlink", "symlinkat", "unlink", "unlinkat", "rmdir", "fchmod", "fchmodat", "utimensat"];

/// Calls that need space or quota, in groups.
pub const ALLOCATIONS: &[&[&str]] = &[WRITES, OPENS, SPACE];

/// Calls that change a file system, in groups.
pub const CHANGES: &[&[&str]] = &[WRITES, OPENS, SPACE, REMOVALS_AND_MODES];

/// Calls that change a file system, and those that read from it.
pub const ALL: &[&[&str]] = &[WRITES, OPENS, SPACE, REMOVALS_AND_MODES, LOOKS];

/// Calls that change a file system, and those that transfer bytes from it.
pub const TRANSFERS: &[&[&str]] = &[WRITES, OPENS, SPACE, REMOVALS_AND_MODES, READS];

/// Calls that a signal can interrupt.
pub const INTERRUPTIBLE: &[&str] = &[
    "read",
    "pread64",
    "write",
    "pwrite64",
    "writev",
    "copy_file_range",
    "open",
    "openat",
    "openat2",
    "ftruncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "syncfs",
    "flock",
];

/// Calls that an older kernel or another file system does not have.
pub const RECENT: &[&str] = &["openat2", "copy_file_range", "renameat2", "statx", "syncfs", "fallocate"];
