//! What goes to stdout.

use std::io::{self, Write};

use crate::cli::exit::{Code, Failure};

/// Writes to stdout. That nobody reads it to the end (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(Code::File, format!("cannot write to stdout: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// `value` as one line of JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string(value).expect("plain structs become JSON; please report");
    text.push('\n');
    text
}

/// The last line of `--json`: the result, told apart from the events before it.
pub(crate) fn summary_json(result: &impl serde::Serialize) -> String {
    #[derive(serde::Serialize)]
    struct Event<'a, T> {
        event: &'static str,
        #[serde(flatten)]
        result: &'a T,
    }
    json(&Event { event: "summary", result })
}
