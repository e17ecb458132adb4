//! The command line: one file a verb, and what they share.

#[cfg(feature = "net")]
pub mod airbundle;
pub(crate) mod cat;
#[cfg(feature = "net")]
pub(crate) mod credentials;
pub(crate) mod date;
#[cfg(feature = "net")]
pub(crate) mod diff;
pub mod exit;
pub(crate) mod image;
pub(crate) mod images;
pub(crate) mod input;
pub(crate) mod inventory;
#[cfg(feature = "net")]
pub(crate) mod keygen;
#[cfg(feature = "net")]
pub(crate) mod lists;
#[cfg(feature = "net")]
pub(crate) mod lock;
pub(crate) mod ls;
pub(crate) mod output;
#[cfg(feature = "net")]
pub(crate) mod pack;
pub(crate) mod progress;
pub(crate) mod prune;
pub(crate) mod repair;
pub(crate) mod sbom;
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

/// Runs a verb and ends the process with its exit code; a failure is told on stderr.
pub(crate) fn run(verb: impl FnOnce() -> Result<Code, Failure>) -> std::process::ExitCode {
    // What is written for others to serve must be readable for them, whatever the shell's mask is.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // A file that has many places is open at each of them. Where the limit cannot be raised, its error will say so.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: files.maximum, ..files };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, most);
    let code = verb().unwrap_or_else(|failure| {
        for message in &failure.messages {
            // In one piece; a log that is gone or full has no reader, and the exit code still tells.
            let _ = io::stderr().write_all(format!("error: {message}\n").as_bytes());
        }
        failure.code
    });
    std::process::ExitCode::from(code as u8)
}
