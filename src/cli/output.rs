//! Writes results to stdout: text, or JSON on one line.

use std::io::{self, Write};

use serde::Serialize;

use crate::cli::exit::{Code, Failure};

/// Writes to stdout. A closed pipe (`| head`) is not an error.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(Code::File, format!("cannot write to stdout: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Writes a JSON document to stdout.
pub(crate) fn print_document(json: Vec<u8>) -> Result<(), Failure> {
    print(&String::from_utf8(json).expect("JSON is UTF-8; please report"))
}

/// Returns `value` as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).expect("plain structs become JSON; please report");
    text.push('\n');
    text
}

/// Returns the last line of `--json`. The member `event` tells it from the events before it.
pub(crate) fn summary_json(result: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Event<'a, T> {
        event: &'static str,
        #[serde(flatten)]
        result: &'a T,
    }
    json(&Event { event: "summary", result })
}
