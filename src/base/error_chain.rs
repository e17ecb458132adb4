//! [`chain`]: formats an error and its causes as one line.

use std::error::Error;

/// Returns the messages of `error` and its causes, separated by `: `. A message that the text already ends
/// with is not repeated.
#[must_use]
pub(crate) fn chain(error: &dyn Error) -> String {
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
