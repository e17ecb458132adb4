//! [`Text`]: text of one language in a generated file, which foreign values enter only through quoting functions.
//!
//! Each language has a file with its quoting functions. They, text of this program (`&'static str`) and numbers are the
//! only sources of a [`Text`], so that joining a raw string does not compile. No function quotes for comments: comments
//! have only text of this program.

use std::fmt;
use std::marker::PhantomData;

pub(crate) mod ansible;
pub(crate) mod compose;
pub(crate) mod nginx;
pub(crate) mod shell;
pub(crate) mod systemd;
pub(crate) mod toml;
pub(crate) mod yaml;

/// Text of the language `L`.
pub(crate) struct Text<L> {
    text: String,
    language: PhantomData<L>,
}

impl<L> Text<L> {
    fn quoted(text: String) -> Self {
        Self { text, language: PhantomData }
    }

    #[must_use]
    pub(crate) fn new() -> Self {
        Self::quoted(String::new())
    }

    /// Text of this program.
    #[must_use]
    pub(crate) fn fixed(text: &'static str) -> Self {
        Self::quoted(text.to_owned())
    }

    /// A decimal number, which no language here quotes.
    #[must_use]
    pub(crate) fn number(number: impl Into<u64>) -> Self {
        Self::quoted(number.into().to_string())
    }

    /// Returns the items with a separator between them.
    #[must_use]
    pub(crate) fn join(items: impl IntoIterator<Item = Self>, separator: &'static str) -> Self {
        let items: Vec<String> = items.into_iter().map(|item| item.text).collect();
        Self::quoted(items.join(separator))
    }

    pub(crate) fn push(&mut self, more: &Self) {
        self.text += &more.text;
    }

    pub(crate) fn push_fixed(&mut self, more: &'static str) {
        self.text += more;
    }

    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl<L> Clone for Text<L> {
    fn clone(&self) -> Self {
        Self::quoted(self.text.clone())
    }
}

impl<L> fmt::Debug for Text<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl<L> FromIterator<Text<L>> for Text<L> {
    fn from_iter<I: IntoIterator<Item = Self>>(items: I) -> Self {
        Self::join(items, "")
    }
}

/// Returns `text` in double quotes, with the escapes that YAML and TOML have in common. The result is ASCII without
/// control characters.
fn double_quoted(text: &str) -> String {
    use fmt::Write as _;
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            _ => {
                let code = u32::from(c);
                let written = if code < 0x10000 {
                    write!(quoted, "\\u{code:04X}")
                } else {
                    write!(quoted, "\\U{code:08X}")
                };
                written.expect("a string accepts everything; please report");
            }
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn double_quoted_strings_are_ascii_on_one_line() {
        for (text, expected) in [
            ("", r#""""#),
            ("a: b # c", r#""a: b # c""#),
            ("\"\\", r#""\"\\""#),
            ("\n\0\u{7f}\u{2028}ü", r#""\u000A\u0000\u007F\u2028\u00FC""#),
            ("🙂", r#""\U0001F642""#),
        ] {
            assert_eq!(double_quoted(text), expected);
        }
    }
}
