//! [`SourceUrl`]: the URL that a file was fetched from.

use percent_encoding::percent_decode_str;

use crate::base::path::{PathError, RelPath};
use crate::oci::parsed_text::{parsed_text, quoted};

/// Maximum length in bytes: a path of [`MAX_PATH`](crate::base::path::MAX_PATH) bytes, each percent-encoded, and a
/// host.
const MAX_URL: usize = 16 << 10;

/// An absolute HTTP or HTTPS URL in ASCII, without user name and fragment (RFC 3986, section 3). Empty: not stated.
///
/// A reader does not request it, so that its parts are not parsed further. Beside the characters of RFC 3986, path
/// and query can have those that the URL standard of browsers does not percent-encode and that packers therefore
/// write: `\`, `^`, `|`, `` ` ``, `{` and `}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceUrl(String);

/// A text that is not a valid [`SourceUrl`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid URL `{}`: expected an absolute HTTP or HTTPS URL in ASCII, without a user name", quoted(.0))]
pub struct SourceUrlError(String);

parsed_text!(SourceUrl, |text| text.is_empty() || is_url(text), SourceUrlError);

impl SourceUrl {
    /// Returns the path at which `wget -x` saves the URL: the host, a port other than the scheme's default, and
    /// the path. Escapes are decoded, except `%2F`; empty components are dropped; a directory becomes
    /// `index.html`; a query stays in the name.
    ///
    /// Fails if the decoded path is not a valid [`RelPath`].
    pub fn wget_path(&self) -> Result<RelPath, PathError> {
        let (_, rest) = self.0.split_once("://").unwrap_or(("", &self.0));
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (url_path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        // wget drops the brackets of IPv6 addresses.
        let mut path = authority.replace(['[', ']'], "");
        let (directories, name) = url_path.rsplit_once('/').unwrap_or(("", url_path));
        for component in directories.split('/').filter(|component| !component.is_empty()) {
            path.extend(["/", &decode(component)?]);
        }
        let name = if name.is_empty() { "index.html".to_owned() } else { decode(name)? };
        path.extend(["/", &name]);
        if let Some(query) = query {
            path.extend(["?", &decode(query)?]);
        }
        RelPath::parse(&path)
    }

    /// Returns `path` if it is not [`Self::wget_path`], which a bundle and a lock then state. `None`, too: the URL
    /// is not stated.
    #[must_use]
    pub fn other_path<'a>(&self, path: &'a RelPath) -> Option<&'a RelPath> {
        (!self.0.is_empty() && self.wget_path().as_ref() != Ok(path)).then_some(path)
    }

    /// Returns the entry of a list for a file at `path`: the URL, and the path if it does not follow from it.
    #[must_use]
    pub fn entry_name(&self, path: &RelPath) -> String {
        self.with_path(self.other_path(path))
    }

    /// Returns the entry of a list for a file at `path`. `None`: the path follows from the URL.
    #[must_use]
    pub fn with_path(&self, path: Option<&RelPath>) -> String {
        match path {
            Some(path) => format!("{} name={path}", self.0),
            None => self.0.clone(),
        }
    }

    /// Returns the URL as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Decodes the escapes of one component; a `/` becomes `%2F`.
fn decode(component: &str) -> Result<String, PathError> {
    let decoded = percent_decode_str(component).decode_utf8().map_err(|_| PathError::NotUtf8)?;
    Ok(decoded.replace('/', "%2F"))
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest.filter(|_| text.len() <= MAX_URL) else { return false };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let is_path_byte = |b: u8| b.is_ascii_graphic() && !b"\"<>#".contains(&b);
    is_authority(authority) && path.bytes().all(is_path_byte)
}

/// True if `text` is a host with an optional port (RFC 3986, section 3.2), without a user name.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, "0"),
    };
    let is_name_byte = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&b);
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.len() <= 255 && host.bytes().all(is_name_byte),
    };
    is_host && (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_absolute_http_url_in_ascii() {
        for text in [
            "",
            "https://dl.k8s.io/release/v1.29.5/bin/linux/amd64/kubelet",
            "http://127.0.0.1:8080/a%20b?x=1&y={z}|^`\\",
            "https://[::1]:5000/x",
            "https://[2001:db8::1]/x",
            "https://dl.k8s.io",
            "https://user-content.example/a@b:c/d",
        ] {
            assert_eq!(text.parse::<SourceUrl>().unwrap().as_str(), text);
        }
        for text in [
            "dl.k8s.io/x",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "https:///x",
            "https://user@dl.k8s.io/x",
            "https://user:secret@dl.k8s.io/x",
            "https://a b/x",
            "https://dl.k8s.io:port/x",
            "https://dl.k8s.io/x y",
            "https://dl.k8s.io/x\n",
            "https://dl.k8s.io/\u{202e}x",
            "https://dl.k8s.io/ü",
            "https://dl.k8s.io/x#y",
            "https://dl.k8s.io/\"><script>",
            &format!("https://dl.k8s.io/{}", "x".repeat(16 << 10)),
        ] {
            assert!(text.parse::<SourceUrl>().is_err(), "{text:?}");
        }
    }
}
