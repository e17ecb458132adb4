//! Writes results to stdout: text, or JSON on one line.

use std::io;

use serde::Serialize;

use crate::cli::console::{self, Text};
use crate::cli::exit::{Code, Failure};

/// Writes text to stdout. A closed pipe (`| head`) is not an error.
pub(crate) fn print(text: &Text) -> Result<(), Failure> {
    check(console::print(text))
}

/// Writes `value` to stdout as one line of JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    check(console::print_json(&(json(value) + "\n")))
}

/// Writes a JSON document to stdout.
pub(crate) fn print_document(json: Vec<u8>) -> Result<(), Failure> {
    check(console::print_json(&String::from_utf8(json).expect("JSON is UTF-8; please report")))
}

/// Writes the last line of `--json` to stdout. The member `event` tells it from the events before it.
pub(crate) fn print_summary(result: &impl Serialize) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Event<'a, T> {
        event: &'static str,
        #[serde(flatten)]
        result: &'a T,
    }
    print_json(&Event { event: "summary", result })
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain structs become JSON; please report")
}

/// Returns the failure of writing to stdout, except that the reader has enough.
pub(crate) fn check(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(Code::File, format!("cannot write to stdout: {error}"))),
        Ok(()) => Ok(()),
    }
}
