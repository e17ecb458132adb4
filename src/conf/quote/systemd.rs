//! Unit files of systemd (systemd.syntax(7), "Quoting", and systemd.unit(5), "Specifiers").

use std::fmt::Write as _;

use super::Text;
use crate::conf::plain_path::PlainPath;

/// The language of a unit.
pub(crate) enum Systemd {}

/// Returns an argument of a command line, where `$` begins a variable.
#[must_use]
pub(crate) fn argument(text: &str) -> Text<Systemd> {
    Text::quoted(quote(&text.replace('$', "$$")))
}

/// Returns an element of a list that is not a command line.
#[must_use]
pub(crate) fn word(text: &str) -> Text<Systemd> {
    Text::quoted(quote(text))
}

/// Returns a path where systemd reads no quotes.
#[must_use]
pub(crate) fn path(path: &PlainPath) -> Text<Systemd> {
    Text::quoted(path.as_str().to_owned())
}

fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            // systemd refuses NUL in a unit.
            '\0' => quoted.push('\u{fffd}'),
            '"' | '\\' => quoted.extend(['\\', c]),
            '%' => quoted.push_str("%%"),
            '\u{1}'..='\u{1f}' | '\u{7f}' => {
                write!(quoted, "\\x{:02x}", u32::from(c)).expect("a string accepts everything");
            }
            _ => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_has_no_specifier_variable_or_line_break_of_a_value() {
        for (text, expected_argument, expected_word) in [
            ("/srv/site", r#""/srv/site""#, r#""/srv/site""#),
            ("%n $HOME", r#""%%n $$HOME""#, r#""%%n $HOME""#),
            ("\"\\\nx=y\0", "\"\\\"\\\\\\x0ax=y\u{fffd}\"", "\"\\\"\\\\\\x0ax=y\u{fffd}\""),
        ] {
            assert_eq!(argument(text).as_str(), expected_argument);
            assert_eq!(word(text).as_str(), expected_word);
        }
    }
}
