//! [`MediaType`]: the type of a blob, such as `application/vnd.oci.image.manifest.v1+json`.

use crate::oci::parsed_text::{parsed_text, quoted};

/// Maximum length of a type, a subtype, or a parameter's name or value, in bytes (RFC 6838, section 4.2).
const MAX_NAME: usize = 127;
/// Maximum length of a media type with its parameters, in bytes.
const MAX_LEN: usize = 1024;

/// A media type: `type/subtype` of RFC 6838, section 4.2, which OCI image-spec requires (descriptor, `mediaType`).
/// Parameters (RFC 9110, section 8.3.1) are accepted, since clients write them for artifacts:
/// `text/plain; charset=utf-8`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MediaType(String);

/// A text that is not a valid [`MediaType`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid media type `{}`: expected `type/subtype` (RFC 6838)", quoted(.0))]
pub struct MediaTypeError(String);

parsed_text!(MediaType, is_media_type, MediaTypeError);

impl MediaType {
    /// Returns one of the constants of this program as a media type.
    #[must_use]
    pub fn known(text: &'static str) -> Self {
        text.parse().expect("constants are media types; please report")
    }

    /// Returns the media type as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_media_type(text: &str) -> bool {
    let mut parts = text.split(';');
    let essence = parts.next().unwrap_or_default().trim_end_matches(' ');
    text.len() <= MAX_LEN
        && essence.split_once('/').is_some_and(|(kind, subtype)| is_name(kind) && is_name(subtype))
        && parts.all(is_parameter)
}

/// True if `text` is a restricted name of RFC 6838, section 4.2.
fn is_name(text: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b);
    text.len() <= MAX_NAME
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(is_inner)
}

/// True if `text` is `name=value` with a token or a quoted string without escapes (RFC 9110, section 5.6.6).
fn is_parameter(text: &str) -> bool {
    let is_token_byte = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let is_token = |text: &str| !text.is_empty() && text.bytes().all(is_token_byte);
    let is_quoted = |text: &str| {
        let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        inner.is_some_and(|inner| inner.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\'))
    };
    text.trim_matches(' ').split_once('=').is_some_and(|(name, value)| {
        name.len() <= MAX_NAME
            && value.len() <= MAX_NAME
            && is_token(name)
            && (is_token(value) || is_quoted(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_has_a_type_a_subtype_and_possibly_parameters() {
        for text in [
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "a/b",
            "text/plain; charset=utf-8",
            "application/spdx+json;version=2.3",
            "text/plain;a=\"b c\"",
        ] {
            assert_eq!(text.parse::<MediaType>().unwrap().as_str(), text);
        }
        for text in [
            "",
            "layer",
            "/",
            "a/",
            "/b",
            "a/b/c",
            "a b/c",
            "a/b\n",
            "a/b\u{202e}",
            "a/ü",
            "a/b;",
            "a/b;c",
            "a/b;c=\"d\\\"",
            "a/b; c=d\r\nx: y",
            &format!("a/{}", "x".repeat(128)),
        ] {
            assert!(text.parse::<MediaType>().is_err(), "{text:?}");
        }
    }
}
