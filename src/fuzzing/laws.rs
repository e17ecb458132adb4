//! Laws that hold for many types.

use std::fmt::{Debug, Display};
use std::str::FromStr;

/// Asserts that an accepted text, printed and parsed again, has the same value and the same text.
pub(super) fn prints_what_it_parses<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    let Ok(value) = text.parse::<T>() else { return };
    let printed = value.to_string();
    let Ok(again) = printed.parse::<T>() else { panic!("{text:?}: {printed:?} does not parse") };
    assert_eq!(again, value, "{text:?}");
    assert_eq!(again.to_string(), printed, "{text:?}");
}

/// Asserts the same for a document.
pub(super) fn document_prints_what_it_parses<T: PartialEq + Debug, E: Debug>(
    value: &T,
    print: impl Fn(&T) -> Vec<u8>,
    parse: impl Fn(&[u8]) -> Result<T, E>,
) {
    let printed = print(value);
    let again = parse(&printed).unwrap_or_else(|error| panic!("{}: {error:?}", printed.escape_ascii()));
    assert_eq!(again, *value);
    assert_eq!(print(&again), printed);
}

/// Returns the text of an input, or the valid start of it.
pub(super) fn text(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}
