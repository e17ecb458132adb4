//! The command lines: one file per verb, and what the verbs share.

#[cfg(feature = "net")]
pub mod airbundle;
pub(crate) mod cat;
pub(crate) mod console;
#[cfg(feature = "net")]
pub(crate) mod credentials;
pub(crate) mod date;
#[cfg(feature = "net")]
pub(crate) mod diff;
#[cfg(all(test, feature = "net"))]
mod documented;
pub(crate) mod documents;
pub mod exit;
pub(crate) mod host_keys;
pub(crate) mod image;
pub(crate) mod images;
pub(crate) mod input;
pub(crate) mod inventory;
#[cfg(feature = "net")]
pub(crate) mod keygen;
pub(crate) mod limits;
mod listing;
#[cfg(feature = "net")]
pub(crate) mod lists;
#[cfg(feature = "net")]
pub(crate) mod lock;
pub(crate) mod ls;
pub(crate) mod output;
#[cfg(feature = "net")]
pub(crate) mod pack;
#[cfg(all(test, feature = "net"))]
mod policy_options;
pub(crate) mod progress;
pub(crate) mod prune;
pub(crate) mod receive;
#[cfg(all(test, feature = "net"))]
mod reference;
pub(crate) mod repair;
pub(crate) mod roots;
pub(crate) mod sbom;
#[cfg(feature = "net")]
mod selection;
#[cfg(feature = "net")]
pub(crate) mod sign;
pub(crate) mod site;
pub(crate) mod size;
pub(crate) mod trust;
pub mod unbundle;
pub(crate) mod unpack;
#[cfg(feature = "net")]
pub(crate) mod upstream;
#[cfg(feature = "net")]
pub(crate) mod urls;
pub(crate) mod verify;

use std::ffi::OsString;

use clap::Parser;

use crate::base::own_file::default_mode;
use crate::cli::console::Text;
use crate::cli::exit::{Code, Failure};

/// Makes new files readable by all users, whatever the shell's umask is: for the verbs that write the trees of
/// a site, which servers with other user IDs read.
pub(crate) fn allow_readers() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
}

/// Moves the output options of all verbs after the verb, where they belong: `unbundle -q unpack`.
fn verb_first(mut arguments: Vec<OsString>) -> Vec<OsString> {
    const OUTPUT: [&str; 3] = ["-q", "--quiet", "--json"];
    let is_output = |argument: &&OsString| OUTPUT.iter().any(|option| argument == option);
    let options = arguments.iter().skip(1).take_while(is_output).count();
    if arguments.len() > 1 + options {
        arguments[1..=1 + options].rotate_right(1);
    }
    arguments
}

/// Parses the process arguments, runs the verb, prints its failure to stderr, and returns the exit code.
pub(crate) fn run<T: Parser>(verb: impl FnOnce(T) -> Result<Code, Failure>) -> std::process::ExitCode {
    let arguments = match T::try_parse_from(verb_first(std::env::args_os().collect())) {
        // Names of files can be arguments, and therefore not the user's own words.
        Err(error) if error.use_stderr() => {
            let mut text = Text::new();
            error.render().to_string().lines().for_each(|line| text.line(line));
            console::report(&text);
            return std::process::ExitCode::from(Code::Usage as u8);
        }
        Err(help) => {
            let code =
                output::check(console::print_help(&help)).err().map_or(Code::Success, |error| error.code);
            return std::process::ExitCode::from(code as u8);
        }
        Ok(arguments) => arguments,
    };
    // Before there are threads.
    default_mode();
    let code = limits::prepare().and_then(|()| verb(arguments)).unwrap_or_else(|failure| {
        console::report(&failure.text());
        failure.code
    });
    std::process::ExitCode::from(code as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_options_before_the_verb_are_moved_after_it() {
        for (given, expected) in [
            ("u", "u"),
            ("u -q", "u -q"),
            ("u unpack -q a", "u unpack -q a"),
            ("u -q unpack a b", "u unpack -q a b"),
            ("u --json -q unpack a", "u unpack --json -q a"),
            ("u --json --help", "u --help --json"),
            ("u --version", "u --version"),
        ] {
            let moved = verb_first(given.split(' ').map(OsString::from).collect());
            assert_eq!(moved, expected.split(' ').map(OsString::from).collect::<Vec<_>>(), "{given}");
        }
    }
}
