//! Text for people leaves the programs through `cli/console.rs`, which escapes it.

use regex::Regex;

use crate::sources;

/// Everything that writes to a standard stream or to the terminal. `stdout(…)` of a child process has an argument.
const WRITERS: &str = r"\b(e?println|e?print|dbg)!|\bstd(out|err)\(\)|\bindicatif\b|\brpassword\b";

/// Files that may use one of [`WRITERS`], and the reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("cli/console.rs", "", "the sink itself"),
    ("cli/progress.rs", "indicatif", "progress bars, whose messages are escaped"),
    ("commands/images.rs", "stdout()", "the archive of an image, never to a terminal"),
    ("commands/pack/volume_command.rs", "stderr()", "stdout of the user's own command"),
];

#[test]
fn only_the_console_writes_to_the_standard_streams() {
    let writers = Regex::new(WRITERS).unwrap();
    let mut found = Vec::new();
    let mut used = vec![false; EXCEPTIONS.len()];
    for source in sources::all() {
        for (line, number) in source.code.lines().zip(1..) {
            for writer in writers.find_iter(line) {
                let exception = EXCEPTIONS
                    .iter()
                    .position(|(path, word, _)| source.path == *path && writer.as_str().contains(word));
                match exception {
                    Some(exception) => used[exception] = true,
                    None => found.push(format!("{}:{number}: {}", source.path, line.trim())),
                }
            }
        }
    }
    assert!(found.is_empty(), "use `cli::console`:\n{}", found.join("\n"));
    let unused: Vec<_> = EXCEPTIONS.iter().zip(used).filter(|(_, used)| !used).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn messages_of_progress_bars_are_escaped() {
    let sources = sources::all();
    let progress = sources.iter().find(|source| source.path == "cli/progress.rs").unwrap();
    let calls = Regex::new(r"\.(set_message|with_message|println|suspend)\(").unwrap();
    let calls: Vec<_> = progress.code.lines().filter(|line| calls.is_match(line)).collect();
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert!(calls.iter().all(|line| line.contains("(escape(")), "{calls:?}");
}
