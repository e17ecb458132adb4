//! Text for people leaves the programs through `cli/console.rs`, which escapes it.

use regex::Regex;

use crate::sources;

/// Everything that writes to a standard stream or to the terminal. `stdout(…)` of a child process has an argument.
const WRITERS: &str = r"\b(e?println|e?print|dbg)!|\bstd(out|err)\(\)|\bindicatif\b|\brpassword\b";

/// Files that may use one of [`WRITERS`], and the reason.
const EXCEPTIONS: &[sources::Exception] = &[
    ("cli/console.rs", "", "the sink itself"),
    ("cli/progress.rs", "indicatif", "progress bars, whose messages are escaped"),
    ("commands/images.rs", "stdout()", "the archive of an image, never to a terminal"),
    ("commands/pack/volume_command.rs", "stderr()", "stdout of the user's own command"),
];

#[test]
fn only_the_console_writes_to_the_standard_streams() {
    sources::assert_unused(&sources::all(), WRITERS, EXCEPTIONS, "use `cli::console`");
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
