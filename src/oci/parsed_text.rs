//! `parsed_text!`: the traits of a type that holds a text in its only valid form.

/// Implements the traits of a type with one field, its text: it parses texts that the predicate accepts, and
/// returns the others as its error type. It reads as `str`, serializes as this text, and deserializes by parsing.
macro_rules! parsed_text {
    ($type:ident, $is_valid:expr, $error:ident) => {
        impl std::str::FromStr for $type {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let is_valid: fn(&str) -> bool = $is_valid;
                if is_valid(text) { Ok(Self(text.to_owned())) } else { Err($error(text.to_owned())) }
            }
        }

        impl std::ops::Deref for $type {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <String as serde::Deserialize>::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use parsed_text;

/// Returns text from outside for an error message: at most 100 characters, and all but printable ASCII as escape
/// sequences. The text has no valid form, so that no terminal or log may interpret it.
pub(crate) fn quoted(text: &str) -> String {
    const LIMIT: usize = 100;
    let mut quoted = String::new();
    for (number, c) in text.chars().enumerate() {
        if number == LIMIT {
            quoted.push('…');
            break;
        }
        if c.is_ascii_graphic() || c == ' ' { quoted.push(c) } else { quoted.extend(c.escape_default()) }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_short_and_has_only_printable_ascii() {
        assert_eq!(quoted("v1\n\u{1b}[2J\u{202e}ü \\"), "v1\\n\\u{1b}[2J\\u{202e}\\u{fc} \\");
        assert_eq!(quoted(&"x".repeat(101)), format!("{}…", "x".repeat(100)));
        assert_eq!(quoted(&"x".repeat(100)), "x".repeat(100));
    }
}
