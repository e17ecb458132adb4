//! [`ContentCheck`]: recognizes a web page or another format in place of a file that no checksum pins.
//!
//! Portals, proxies and expired links respond to any request with 200 and a login page or an error page.

use reqwest::header::{CONTENT_TYPE, HeaderMap};

/// Number of bytes that [`ContentCheck::check_bytes`] needs at most.
const HEAD: usize = 512;

/// A format that files are recognized by.
struct Format {
    name: &'static str,
    suffixes: &'static [&'static str],
    /// The possible first bytes.
    magic: &'static [&'static [u8]],
}

const FORMATS: &[Format] = &[
    Format { name: "gzip", suffixes: &[".gz", ".tgz"], magic: &[b"\x1f\x8b"] },
    Format { name: "xz", suffixes: &[".xz", ".txz"], magic: &[b"\xfd7zXZ\0"] },
    Format { name: "bzip2", suffixes: &[".bz2", ".tbz", ".tbz2"], magic: &[b"BZh"] },
    // Also a skippable frame (RFC 8878, section 3.1.2).
    Format { name: "zstd", suffixes: &[".zst", ".tzst"], magic: &[b"\x28\xb5\x2f\xfd", SKIPPABLE] },
    Format {
        name: "zip",
        suffixes: &[".zip", ".whl"],
        magic: &[b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"],
    },
    Format { name: "deb", suffixes: &[".deb"], magic: &[b"!<arch>\n"] },
    Format { name: "rpm", suffixes: &[".rpm"], magic: &[b"\xed\xab\xee\xdb"] },
    // Programs have no suffix: this only names what was found.
    Format { name: "ELF", suffixes: &[], magic: &[b"\x7fELF"] },
];

/// Magic number of a skippable zstd frame. The first byte is `P` to `_`.
const SKIPPABLE: &[u8] = b"*M\x18";

/// The content that a file must not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContentCheck {
    /// Index in [`FORMATS`], by the suffix of the path. `None`: any format.
    format: Option<usize>,
    /// True if the path is that of a web page.
    is_page: bool,
}

impl ContentCheck {
    /// Returns the check for a file with this path. `is_named`: the path is not that of its URL, and the suffix says
    /// nothing about the format.
    #[must_use]
    pub(crate) fn new(path: &str, is_named: bool) -> Self {
        let path = path.to_ascii_lowercase();
        let has = |suffixes: &[&str]| suffixes.iter().any(|suffix| path.ends_with(suffix));
        Self {
            format: FORMATS.iter().position(|format| !is_named && has(format.suffixes)),
            is_page: has(&[".html", ".htm", ".xhtml"]),
        }
    }

    /// Returns why a response with these headers is not the file. `None`: it may be.
    #[must_use]
    pub(crate) fn check_headers(&self, headers: &HeaderMap) -> Option<String> {
        let value = headers.get(CONTENT_TYPE)?.as_bytes();
        let media_type = String::from_utf8_lossy(value).to_ascii_lowercase();
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        let is_page = matches!(media_type, "text/html" | "application/xhtml+xml");
        (is_page && !self.is_page)
            .then(|| format!("a web page (`Content-Type: {media_type}`) instead of the file{HINT}"))
    }

    /// Returns why a file that begins with these bytes is not the file. `None`: it may be. An empty file has no
    /// format.
    #[must_use]
    pub(crate) fn check_bytes(&self, bytes: &[u8]) -> Option<String> {
        let bytes = &bytes[..bytes.len().min(HEAD)];
        match self.format {
            Some(format) if !bytes.is_empty() && !is_of(format, bytes) => {
                let found = describe(bytes);
                Some(format!("{found} instead of a {} file, as its name says{HINT}", FORMATS[format].name))
            }
            None if !self.is_page && is_page(bytes) => Some(format!("a web page instead of the file{HINT}")),
            _ => None,
        }
    }
}

const HINT: &str = "; check the URL and the login, pin the file, or use `--allow-html`";

/// True if the bytes are of a format, or too few to contradict it.
fn is_of(format: usize, bytes: &[u8]) -> bool {
    FORMATS[format].magic.iter().any(|magic| {
        let bytes = if *magic == SKIPPABLE { skip_variant(bytes) } else { bytes };
        let len = magic.len().min(bytes.len());
        magic[..len] == bytes[..len]
    })
}

/// Returns the bytes after the first byte of a skippable frame.
fn skip_variant(bytes: &[u8]) -> &[u8] {
    match bytes {
        [0x50..=0x5f, rest @ ..] => rest,
        _ => bytes,
    }
}

/// True if the bytes begin like an HTML document.
fn is_page(bytes: &[u8]) -> bool {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let starts =
        |prefix: &[u8]| text.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix));
    starts(b"<!doctype html") || starts(b"<html") || starts(b"<head>") || starts(b"<body")
}

/// True if the bytes are of no format that [`ContentCheck`] recognizes.
#[must_use]
pub(crate) fn is_unknown(bytes: &[u8]) -> bool {
    matches!(&*describe(&bytes[..bytes.len().min(HEAD)]), TEXT | OTHER)
}

const TEXT: &str = "text";
const OTHER: &str = "other content";

/// Describes content by its first bytes.
fn describe(bytes: &[u8]) -> String {
    let format = (0..FORMATS.len()).find(|format| bytes.len() >= 4 && is_of(*format, bytes));
    match format {
        Some(format) => format!("a file in the format {}", FORMATS[format].name),
        None if is_page(bytes) => "a web page".to_owned(),
        None if bytes.starts_with(b"{") || bytes.starts_with(b"[") => "a JSON document".to_owned(),
        None if bytes.starts_with(b"<?xml") => "an XML document".to_owned(),
        None if bytes.iter().all(|b| matches!(b, b'\t' | b'\n' | b'\r' | b' '..=b'~')) => TEXT.to_owned(),
        None => OTHER.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn only_text_and_other_content_are_unknown() {
        for (bytes, expected) in [
            (&b"not found"[..], true),
            (b"\x00\x01\x02\x03", true),
            (b"<html>", false),
            (b"{}", false),
            (b"\x1f\x8b\x08\0", false),
        ] {
            assert_eq!(is_unknown(bytes), expected);
        }
    }

    #[test]
    fn content_that_contradicts_the_suffix_of_a_file_is_described() {
        for (path, bytes, found) in [
            ("a.tar.gz", &b"\x1f\x8b\x08\0"[..], None),
            ("a.TGZ", b"\x1f\x8b\x08\0", None),
            ("a.tgz", b"", None),
            ("a.tgz", b"\x1f", None),
            ("a.tgz", b"x", Some("text instead of a gzip file")),
            ("a.tgz", b"\n <!DOCTYPE HTML>", Some("a web page instead of a gzip file")),
            ("a.tgz", b"{\"message\":\"denied\"}", Some("a JSON document instead")),
            ("a.tgz", b"<?xml version=\"1.0\"?><Error>", Some("an XML document instead")),
            ("a.tgz", b"PK\x03\x04", Some("a file in the format zip instead")),
            ("a.tgz", b"\x7fELF\x02", Some("a file in the format ELF instead")),
            ("a.tgz", b"\xff\x00\x01\x02", Some("other content instead")),
            ("a.tar.xz", b"\xfd7zXZ\0\0", None),
            ("a.tar.xz", b"\x1f\x8b\x08\0", Some("gzip instead of a xz file")),
            ("a.zst", b"\x28\xb5\x2f\xfd\0", None),
            ("a.zst", b"\x5e*M\x18", None),
            ("a.zst", b"\x60*M\x18", Some("other content")),
            ("a.zip", b"PK\x05\x06", None),
            ("a.deb", b"!<arch>\ndebian", None),
            ("a.bin", b"\xef\xbb\xbf<html lang=\"en\">", Some("a web page instead of the file")),
            ("a.bin", b"<htm", None),
            ("tool", b"\x7fELF\x02", None),
            ("index.html", b"<!doctype html>", None),
            ("a.tar", b"anything", None),
        ] {
            let problem = ContentCheck::new(path, false).check_bytes(bytes);
            match (&problem, found) {
                (Some(problem), Some(found)) => assert!(problem.contains(found), "{path}: {problem}"),
                (problem, found) => assert_eq!(problem.as_deref(), found, "{path} {bytes:?}"),
            }
        }
    }

    #[test]
    fn a_web_page_is_only_what_the_name_of_the_file_says() {
        for (path, media_type, is_refused) in [
            ("a.bin", "text/html; charset=utf-8", true),
            ("a.bin", "Text/HTML", true),
            ("a.bin", "application/xhtml+xml", true),
            ("a.bin", "text/plain", false),
            ("a.html", "text/html", false),
            ("a.HTM", "text/html", false),
        ] {
            let value = HeaderValue::from_static(media_type);
            let problem =
                ContentCheck::new(path, false).check_headers(&HeaderMap::from_iter([(CONTENT_TYPE, value)]));
            assert_eq!(problem.is_some(), is_refused, "{path} {media_type}");
        }
        assert_eq!(ContentCheck::new("a.bin", false).check_headers(&HeaderMap::new()), None);
        assert_eq!(ContentCheck::new("a.gz", true).check_bytes(b"text"), None);
        assert!(ContentCheck::new("a.gz", true).check_bytes(b"<html>").is_some());
    }
}
