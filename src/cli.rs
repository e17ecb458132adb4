//! The command line: one file a verb, and what they share.

pub mod cat;
#[cfg(feature = "net")]
pub mod credentials;
mod date;
#[cfg(feature = "net")]
pub mod diff;
pub mod exit;
pub mod image;
pub mod images;
mod input;
pub mod inventory;
#[cfg(feature = "net")]
pub mod keygen;
#[cfg(feature = "net")]
pub mod lists;
#[cfg(feature = "net")]
pub mod lock;
pub mod ls;
#[cfg(feature = "net")]
pub mod pack;
pub mod progress;
pub mod prune;
pub mod repair;
pub mod sbom;
pub mod site;
mod size;
mod trust;
pub mod unpack;
#[cfg(feature = "net")]
pub mod upstream;
pub mod verify;

use std::error::Error;
use std::io::{self, Write};

use crate::cli::exit::{Code, Failure};

/// Runs a verb and ends the process with its exit code; a failure is told on stderr.
pub fn main(run: impl FnOnce() -> Result<Code, Failure>) -> std::process::ExitCode {
    // What is written for others to serve must be readable for them, whatever the shell's mask is.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // A file that has many places is open at each of them. Where the limit cannot be raised, its error will say so.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: files.maximum, ..files };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, most);
    let code = run().unwrap_or_else(|failure| {
        for message in &failure.messages {
            // In one piece; a log that is gone or full has no reader, and the exit code still tells.
            let _ = io::stderr().write_all(format!("error: {message}\n").as_bytes());
        }
        failure.code
    });
    std::process::ExitCode::from(code as u8)
}

/// Writes to stdout. That nobody reads it to the end (`| head`) is no error.
fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(Code::File, format!("cannot write to stdout: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// `value` as one line of JSON.
fn json(value: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string(value).expect("plain structs become JSON; please report");
    text.push('\n');
    text
}

/// The last line of `--json`: the result, told apart from the events before it.
fn summary_json(result: &impl serde::Serialize) -> String {
    #[derive(serde::Serialize)]
    struct Event<'a, T> {
        event: &'static str,
        #[serde(flatten)]
        result: &'a T,
    }
    json(&Event { event: "summary", result })
}

/// An error and its causes on one line, each once.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}
