//! The path of `unbundle` in the scripts of a site, which root runs later.

use std::fs;
use std::path::{Path, PathBuf};

use crate::base::ownership;
use crate::conf::plain_path::PlainPath;

/// Directories whose content is temporary or removable (Filesystem Hierarchy Standard).
const TEMPORARY: [&str; 9] =
    ["/tmp", "/var/tmp", "/run", "/var/run", "/dev", "/proc", "/media", "/mnt", "/var/run/media"];

/// File systems of removable media, of other hosts' media, and of memory.
const REMOVABLE_TYPES: [&str; 10] =
    ["vfat", "msdos", "exfat", "ntfs", "ntfs3", "iso9660", "udf", "tmpfs", "ramfs", "fuseblk"];

/// Returns the path of the running program if only root can change it, and if it will still be there. A script
/// without it searches for `unbundle` when it runs.
pub(crate) fn permanent_path() -> Option<PlainPath> {
    let path = std::env::current_exe().ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_safe = is_permanent(&path, &mounts, is_removable) && ownership::check(&path).is_ok();
    PlainPath::new(path).ok().filter(|_| is_safe)
}

/// True if `path` is not in a temporary directory, and not on a removable device. `mounts` is the content of
/// `/proc/self/mountinfo`.
fn is_permanent(path: &Path, mounts: &str, is_removable: impl Fn(&str) -> bool) -> bool {
    if TEMPORARY.iter().any(|directory| path.starts_with(directory)) {
        return false;
    }
    // The last of several mounts at one path hides the others.
    let mount = mounts
        .lines()
        .filter_map(Mount::parse)
        .filter(|mount| path.starts_with(&mount.at))
        .max_by_key(|mount| mount.at.components().count());
    mount.is_none_or(|mount| {
        !REMOVABLE_TYPES.contains(&mount.kind)
            && !mount.options.split(',').any(|option| option == "noexec")
            && !is_removable(mount.source)
    })
}

/// A line of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
struct Mount<'a> {
    at: PathBuf,
    options: &'a str,
    /// The type of the file system.
    kind: &'a str,
    /// The device, or another text.
    source: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(4);
        let mut file_system = file_system.split(' ');
        Some(Self {
            at: mount.next()?.replace("\\040", " ").into(),
            options: mount.next()?,
            kind: file_system.next()?,
            source: file_system.next()?,
        })
    }
}

/// True if `source` is a block device that the kernel reports as removable or as connected by USB, or is on
/// one.
fn is_removable(source: &str) -> bool {
    // A logical volume is a symlink to its device.
    let Ok(device) = fs::canonicalize(source) else { return false };
    let Some(name) = device.file_name().filter(|_| device.starts_with("/dev")) else { return false };
    let Ok(block) = fs::canonicalize(Path::new("/sys/class/block").join(name)) else { return false };
    // The parent of a partition is the disk.
    let is_marked = [&*block, block.parent().unwrap_or(&block)].iter().any(|directory| {
        fs::read_to_string(directory.join("removable")).is_ok_and(|text| text.trim() == "1")
    });
    let is_usb = block.to_string_lossy().contains("/usb");
    let slaves = fs::read_dir(block.join("slaves")).into_iter().flatten().flatten();
    is_marked
        || is_usb
        || slaves
            .into_iter()
            .any(|slave| is_removable(&Path::new("/dev").join(slave.file_name()).to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_and_removable_paths_are_not_permanent() {
        let mounts = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 8:17 / /srv/drive rw,nosuid,nodev,noexec - vfat /dev/sdb1 rw
24 22 8:18 / /srv/disk rw - ext4 /dev/sdb2 rw
25 22 0:30 / /opt rw,nosuid - tmpfs tmpfs rw
26 22 8:3 / /opt/kept rw - xfs /dev/sda3 rw
27 22 8:4 / /data rw,noexec - xfs /dev/sda4 rw
28 22 8:5 / /with\\040space rw - iso9660 /dev/sr0 rw
";
        for (path, expected) in [
            ("/usr/local/bin/unbundle", true),
            ("/home/joe/bin/unbundle", true),
            ("/opt/kept/unbundle", true),
            ("/tmporary/unbundle", true),
            ("/opt/unbundle", false),
            ("/srv/drive/unbundle", false),
            ("/srv/disk/unbundle", false),
            ("/data/unbundle", false),
            ("/with space/unbundle", false),
            ("/tmp/x/unbundle", false),
            ("/var/tmp/unbundle", false),
            ("/run/media/joe/drive/unbundle", false),
            ("/media/usb/unbundle", false),
            ("/mnt/unbundle", false),
            ("/dev/shm/unbundle", false),
            ("/proc/7/exe", false),
        ] {
            let is_removable = |source: &str| source.starts_with("/dev/sdb");
            assert_eq!(is_permanent(Path::new(path), mounts, is_removable), expected, "{path}");
        }
        assert!(!is_removable("tmpfs") && !is_removable("/dev/missing"));
    }
}
