//! Files of a site and of its configuration can be endless, or block: they are read by functions that have a limit.

use regex::Regex;

use crate::sources;

/// Everything that reads a path without a limit, or waits for a FIFO, and a limit that is none. `fs::read` stands for
/// `base::fs::read` too, which waits for a FIFO.
const READS: &str = r"\bfs::(read|read_to_string|open)\(|\bFile::open\(|\bu64::MAX\b";

/// Files that may use one of [`READS`], and the reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("conf/program.rs", "fs::read_to_string(", "files of the kernel, in /proc and /sys"),
    ("conf/users.rs", "fs::read_to_string(", "/etc/passwd of this host"),
    ("commands/site.rs", "fs::read_to_string(", "a file of the kernel, in /proc"),
];

#[test]
fn files_of_a_site_are_read_with_a_limit() {
    let reads = Regex::new(READS).unwrap();
    let mut found = Vec::new();
    let mut used = vec![false; EXCEPTIONS.len()];
    let is_checked =
        |path: &str| path.starts_with("conf/") || path.starts_with("site/") || path == "commands/site.rs";
    for source in sources::all().into_iter().filter(|source| is_checked(&source.path)) {
        for (line, number) in source.code.lines().zip(1..) {
            for read in reads.find_iter(line) {
                let exception = EXCEPTIONS
                    .iter()
                    .position(|(path, word, _)| source.path == *path && read.as_str() == *word);
                match exception {
                    Some(exception) => used[exception] = true,
                    None => found.push(format!("{}:{number}: {}", source.path, line.trim())),
                }
            }
        }
    }
    assert!(found.is_empty(), "use `base::own_file` or `base::directory`:\n{}", found.join("\n"));
    let unused: Vec<_> = EXCEPTIONS.iter().zip(used).filter(|(_, used)| !used).collect();
    assert!(unused.is_empty(), "{unused:?}");
}
