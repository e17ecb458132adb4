//! The memory that the process may use: limits of its cgroup, such as that of a container or a CI job.

use std::fs;
use std::path::{Path, PathBuf};

/// The mount point of cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Returns the smallest memory limit of the cgroup of the process and those above it, in bytes. `None`: no limit is known.
pub(crate) fn limit() -> Option<u64> {
    smallest(&fs::read_to_string("/proc/self/cgroup").ok()?, Path::new(CGROUPS))
}

/// `groups` are the lines of cgroups(7), `/proc/PID/cgroup`.
fn smallest(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        // Version 2 has no list of controllers.
        let (base, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            "memory" => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        let group: PathBuf = base.join(path);
        let above = group.ancestors().take_while(|directory| directory.starts_with(&base));
        above.filter_map(|directory| fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_of_a_group_and_those_above_it_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, limit: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{limit}\n")).unwrap();
        };
        write("jobs/memory.max", "2000");
        write("jobs/one/memory.max", "max");
        write("jobs/two/memory.max", "1000");
        write("memory/old/memory.limit_in_bytes", "3000");
        for (groups, expected) in [
            ("0::/jobs/one\n", Some(2000)),
            ("0::/jobs/two\n", Some(1000)),
            ("4:cpu:/\n3:memory:/old\n0::/\n", Some(3000)),
            ("0::/\n", None),
            ("nonsense\n", None),
        ] {
            assert_eq!(smallest(groups, root.path()), expected, "{groups}");
        }
    }
}
