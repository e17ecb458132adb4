//! Files of a site and of its configuration can be endless, or block: they are read by functions that have a limit.

use crate::sources;

/// Everything that reads a path without a limit, or waits for a FIFO, and a limit that is none. `fs::read` stands for
/// `base::fs::read` too, which waits for a FIFO.
const READS: &str = r"\bfs::(read|read_to_string|open)\(|\bFile::open\(|\bu64::MAX\b";

/// Files that may use one of [`READS`], and the reason.
const EXCEPTIONS: &[sources::Exception] = &[
    ("conf/program.rs", "fs::read_to_string(", "files of the kernel, in /proc and /sys"),
    ("conf/users.rs", "fs::read_to_string(", "/etc/passwd of this host"),
    ("commands/site.rs", "fs::read_to_string(", "a file of the kernel, in /proc"),
];

#[test]
fn files_of_a_site_are_read_with_a_limit() {
    let is_checked =
        |path: &str| path.starts_with("conf/") || path.starts_with("site/") || path == "commands/site.rs";
    let checked: Vec<_> = sources::all().into_iter().filter(|source| is_checked(&source.path)).collect();
    sources::assert_unused(&checked, READS, EXCEPTIONS, "use `base::own_file` or `base::directory`");
}
