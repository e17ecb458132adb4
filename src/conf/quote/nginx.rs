//! nginx configuration: values are double-quoted strings.
//!
//! nginx has no escape for `$`, which begins a variable in most directives. Therefore a directive accepts only a
//! [`PlainPath`], and foreign names occur only as keys of a `map`, where nginx replaces no variables.

use std::net::{IpAddr, SocketAddr};

use super::Text;
use crate::conf::plain_path::PlainPath;
use crate::oci::digest::Digest;
use crate::site::catalog::security_policy;

/// The language of `nginx.conf`.
pub(crate) enum Nginx {}

/// Returns a path, also as the start of a longer one.
#[must_use]
pub(crate) fn path(path: &PlainPath) -> Text<Nginx> {
    Text::quoted(path.as_str().to_owned())
}

/// Returns the key of a `map` that matches `text`, without regard to case. Because of the backslash, nginx reads it
/// neither as a keyword nor as a regular expression.
#[must_use]
pub(crate) fn map_key(text: &str) -> Text<Nginx> {
    Text::quoted(quote(&format!("\\{text}")))
}

/// Returns the key of a `map` that matches `text` exactly: a regular expression.
#[must_use]
pub(crate) fn exact_map_key(text: &str) -> Text<Nginx> {
    let mut pattern = String::from("~^");
    for c in text.chars() {
        if c.is_ascii_punctuation() && !"/_-:".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    Text::quoted(quote(&format!("{pattern}$")))
}

/// Returns the value of a `map`. `None`: nginx would replace variables in it.
#[must_use]
pub(crate) fn map_value(text: &str) -> Option<Text<Nginx>> {
    (!text.contains('$')).then(|| Text::quoted(quote(text)))
}

/// Returns an address and a port.
#[must_use]
pub(crate) fn socket(address: IpAddr, port: u16) -> Text<Nginx> {
    Text::quoted(SocketAddr::new(address, port).to_string())
}

/// Returns the hexadecimal digits of a digest.
#[must_use]
pub(crate) fn hex(digest: &Digest) -> Text<Nginx> {
    Text::quoted(digest.hex())
}

/// Returns the directory of a digest in the storage: its first two hexadecimal digits.
#[must_use]
pub(crate) fn hex_directory(digest: &Digest) -> Text<Nginx> {
    Text::quoted(digest.hex()[..2].to_owned())
}

/// Returns the content security policy of the catalog, for use in double quotes.
#[must_use]
pub(crate) fn catalog_policy() -> Text<Nginx> {
    // Hashes in Base64, keywords and schemes: no character that nginx interprets.
    Text::quoted(format!("{}; frame-ancestors 'none'", security_policy()))
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\0', "\u{fffd}").replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_key_is_one_token() {
        for (text, key, exact) in [
            ("/v2/a/manifests/v1.0", r#""\\/v2/a/manifests/v1.0""#, r#""~^/v2/a/manifests/v1\\.0$""#),
            ("default", r#""\\default""#, r#""~^default$""#),
            ("a\" x;\n}", "\"\\\\a\\\" x;\n}\"", "\"~^a\\\\\\\" x\\\\;\n\\\\}$\""),
        ] {
            assert_eq!(map_key(text).as_str(), key);
            assert_eq!(exact_map_key(text).as_str(), exact);
        }
    }
}
