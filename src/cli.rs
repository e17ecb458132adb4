//! The command lines: one file per verb, and what the verbs share.

#[cfg(feature = "net")]
pub mod airbundle;
pub(crate) mod cat;
#[cfg(feature = "net")]
pub(crate) mod credentials;
pub(crate) mod date;
#[cfg(feature = "net")]
pub(crate) mod diff;
#[cfg(all(test, feature = "net"))]
mod documented;
pub mod exit;
pub(crate) mod host_keys;
pub(crate) mod image;
pub(crate) mod images;
pub(crate) mod input;
pub(crate) mod inventory;
#[cfg(feature = "net")]
pub(crate) mod keygen;
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
#[cfg(all(test, feature = "net"))]
mod reference;
pub(crate) mod repair;
pub(crate) mod sbom;
#[cfg(feature = "net")]
pub(crate) mod sign;
pub(crate) mod site;
pub(crate) mod size;
pub(crate) mod trust;
pub mod unbundle;
pub(crate) mod unpack;
#[cfg(feature = "net")]
pub(crate) mod upstream;
pub(crate) mod verify;

use std::io::{self, Write};

use crate::cli::exit::{Code, Failure};

/// Runs a verb, prints its failure to stderr, and returns the exit code.
pub(crate) fn run(verb: impl FnOnce() -> Result<Code, Failure>) -> std::process::ExitCode {
    // Servers with other user IDs must be able to read what is written, whatever the shell's umask is.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // A blob is open once for each path that it is written to. If the limit cannot be raised, `open` fails
    // later.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: files.maximum, ..files };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
    let code = verb().unwrap_or_else(|failure| {
        // One write, so that lines of other processes do not get in between. If stderr is closed or its disk
        // is full, the exit code remains.
        let _ = io::stderr().write_all(failure.to_string().as_bytes());
        failure.code
    });
    std::process::ExitCode::from(code as u8)
}
