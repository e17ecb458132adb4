//! [`Reference`]: an image reference with an explicit host and tag or digest.
//!
//! The grammar is that of Docker Distribution (package `reference`) without its defaults: the host is
//! required, and so is the tag or the digest.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::oci::digest::Digest;

/// The directory of files on the site, and the first component of repository names in the default template.
pub(crate) const DEFAULT_PREFIX: &str = "k8s";

/// Maximum length of a repository, and of a host, in bytes.
pub const MAX_NAME: usize = 255;

/// Maximum length of a tag in bytes (OCI distribution-spec, "Pulling manifests").
pub const MAX_TAG: usize = 128;

/// An image reference: `host[:port]/repository[:tag][@sha256:…]`, with a tag, a digest or both.
///
/// It is stored in canonical form: the host is in lower case, Docker Hub is `docker.io`, and its repositories
/// of one component have the prefix `library/`. [`Display`](fmt::Display) writes this form, which parses to
/// the same reference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
    /// The canonical form.
    text: String,
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is not a valid [`Reference`]. `at` is the offset of the error in bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "`at` is explained above")]
pub enum ReferenceError {
    /// The text is empty.
    #[error("the image reference is empty")]
    Empty,
    /// The text is longer than any reference can be.
    #[error("the image reference is longer than {MAX_REFERENCE} bytes")]
    TooLong { at: usize },
    /// The text begins with a URL scheme.
    #[error("an image reference has no scheme: remove `{scheme}://`")]
    Scheme { scheme: String },
    /// The first component is not a host.
    #[error("the host of the registry is missing: write `{suggestion}` if Docker Hub is meant")]
    MissingHost { suggestion: String },
    /// The host is invalid.
    #[error("expected a host: a domain name, an IPv4 address, or an IPv6 address in brackets")]
    Host { at: usize },
    /// The port is invalid.
    #[error("expected a port from 1 to 65535")]
    Port { at: usize },
    /// Only a host.
    #[error("expected `/` and a repository after the host")]
    MissingRepository { at: usize },
    /// The repository is invalid.
    #[error(
        "expected a repository: lower-case letters and digits, separated by `/`, `.`, `_`, `__` or dashes"
    )]
    Repository { at: usize },
    /// The repository exceeds [`MAX_NAME`].
    #[error("the repository is longer than {MAX_NAME} bytes")]
    RepositoryTooLong { at: usize },
    /// The tag is invalid.
    #[error(
        "expected a tag: at most {MAX_TAG} of letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`"
    )]
    Tag { at: usize },
    /// The tag is the version of a chart with build metadata (`1.0.0+5`).
    #[error(
        "a tag cannot contain `+`: write `_` instead, as Helm does when it pushes a chart (`{suggestion}`)"
    )]
    Plus { at: usize, suggestion: String },
    /// The text after `@` is not a sha256 digest.
    #[error("expected `sha256:` and 64 lower-case hex digits after `@`")]
    Digest { at: usize },
    /// Neither tag nor digest.
    #[error("expected `:` and a tag, or `@` and a digest: an implicit `latest` is not accepted")]
    MissingTag { at: usize },
}

/// Total of the maximum lengths of host, port, repository, tag and digest, in bytes.
const MAX_REFERENCE: usize = MAX_NAME + ":65535/".len() + MAX_NAME + 1 + MAX_TAG + "@sha256:".len() + 64;

impl ReferenceError {
    /// Returns the offset of the error in the text, in bytes.
    #[must_use]
    pub fn offset(&self) -> usize {
        match self {
            Self::Empty | Self::Scheme { .. } | Self::MissingHost { .. } => 0,
            Self::TooLong { at }
            | Self::Host { at }
            | Self::Port { at }
            | Self::MissingRepository { at }
            | Self::Repository { at }
            | Self::RepositoryTooLong { at }
            | Self::Tag { at }
            | Self::Plus { at, .. }
            | Self::Digest { at }
            | Self::MissingTag { at } => *at,
        }
    }
}

impl Reference {
    /// Returns the canonical form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the registry: a lower-case domain name or an IP address (IPv6 in brackets), with `:port` if
    /// given.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the repository without the host, such as `library/nginx`. At most [`MAX_NAME`] bytes.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns host and repository, such as `docker.io/library/nginx`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// Returns the tag. `None` only if there is a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// True if the tag is that of a cosign artifact (`sha256-<hex>.sig`, `.att`, `.sbom`) or of an index of
    /// referrers (`sha256-<hex>`; OCI distribution-spec, "Referrers Tag Schema").
    #[must_use]
    pub fn is_referrer(&self) -> bool {
        self.subject().is_some()
    }

    /// Returns the digest of the subject image if the tag is that of a cosign artifact or of an index of
    /// referrers.
    #[must_use]
    pub fn subject(&self) -> Option<Digest> {
        let hex = self.tag.as_deref()?.strip_prefix("sha256-")?;
        Digest::from_hex(hex.split_once('.').map_or(hex, |(hex, _)| hex)).ok()
    }

    /// Returns the digest of the manifest or index. `None` only if there is a tag.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > MAX_REFERENCE {
            let at = (0..=MAX_REFERENCE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            return Err(ReferenceError::TooLong { at });
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(ReferenceError::Scheme { scheme: scheme.to_owned() });
        }
        let (name, digest) = split_at(text, '@');
        let Some((host, path)) = name.split_once('/') else {
            return Err(without_slash(text, name));
        };
        if !looks_like_host(host) {
            return Err(ReferenceError::MissingHost { suggestion: format!("docker.io/{text}") });
        }
        let start = host.len() + 1;
        let host = parse_host(host)?;

        let (repository, tag) = split_at(path, ':');
        if let Some(offset) = invalid_in_repository(repository) {
            return Err(ReferenceError::Repository { at: start + offset });
        }
        let repository = match host.as_str() {
            DOCKER_HUB if !repository.contains('/') => format!("library/{repository}"),
            _ => repository.to_owned(),
        };
        if repository.len() > MAX_NAME {
            return Err(ReferenceError::RepositoryTooLong { at: start });
        }
        if let Some((offset, at)) = tag.and_then(|(offset, tag)| Some((offset, invalid_in_tag(tag)?))) {
            return Err(invalid_tag(start + offset + at, tag.map_or("", |(_, tag)| tag), at));
        }
        let digest = match digest {
            Some((at, digest)) => Some(digest.parse().map_err(|_| ReferenceError::Digest { at })?),
            None => None,
        };
        if tag.is_none() && digest.is_none() {
            return Err(ReferenceError::MissingTag { at: text.len() });
        }
        let tag = tag.map(|(_, tag)| tag.to_owned());
        let mut text = format!("{host}/{repository}");
        text.extend(tag.iter().flat_map(|tag| [":", tag]));
        text.extend(digest.iter().map(|digest| format!("@{digest}")));
        Ok(Self { host, repository, tag, digest, text })
    }
}

/// Returns the error for `tag`, whose character at the offset `character` is invalid. `at` is its offset in the text.
fn invalid_tag(at: usize, tag: &str, character: usize) -> ReferenceError {
    let suggestion = tag.replace('+', "_");
    if tag.as_bytes().get(character) == Some(&b'+') && invalid_in_tag(&suggestion).is_none() {
        return ReferenceError::Plus { at, suggestion };
    }
    ReferenceError::Tag { at }
}

const DOCKER_HUB: &str = "docker.io";

/// Splits `text` at the first `separator`. Returns the tail with its offset.
fn split_at(text: &str, separator: char) -> (&str, Option<(usize, &str)>) {
    match text.split_once(separator) {
        Some((before, after)) => (before, Some((before.len() + 1, after))),
        None => (text, None),
    }
}

fn without_slash(text: &str, name: &str) -> ReferenceError {
    // In `nginx:1.25` the colon begins a tag, not a port, so only the text before the colon is compared.
    if looks_like_host(split_at(name, ':').0) || name.starts_with('[') {
        ReferenceError::MissingRepository { at: name.len() }
    } else {
        ReferenceError::MissingHost { suggestion: format!("docker.io/library/{text}") }
    }
}

/// True if the first component of a reference is a host, by Docker's rule; otherwise it is part of the
/// repository.
fn looks_like_host(text: &str) -> bool {
    text.contains(['.', ':']) || text.eq_ignore_ascii_case("localhost")
}

fn parse_host(text: &str) -> Result<String, ReferenceError> {
    if text.len() > MAX_NAME {
        return Err(ReferenceError::Host { at: 0 });
    }
    let (name, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, after) = rest.split_once(']').ok_or(ReferenceError::Host { at: 0 })?;
        let address: Ipv6Addr = address.parse().map_err(|_| ReferenceError::Host { at: 1 })?;
        let at = text.len() - after.len();
        let port = match after.strip_prefix(':') {
            Some(port) => Some((at + 1, port)),
            None if after.is_empty() => None,
            None => return Err(ReferenceError::Host { at }),
        };
        (format!("[{address}]"), port)
    } else {
        let (name, port) = split_at(text, ':');
        if let Some(at) = invalid_in_domain(name) {
            return Err(ReferenceError::Host { at });
        }
        (name.to_ascii_lowercase(), port)
    };
    match port {
        Some((_, port)) if is_port(port) => Ok(format!("{name}:{port}")),
        Some((at, _)) => Err(ReferenceError::Port { at }),
        None => Ok(canonical_host(&name)),
    }
}

/// Returns `host` in the canonical form of references: in lower case, with `docker.io` for all names of
/// Docker Hub.
#[must_use]
pub fn canonical_host(host: &str) -> String {
    match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        host => host.to_owned(),
    }
}

fn is_port(text: &str) -> bool {
    // No sign and no leading zero, so that each port has only one text form.
    text.starts_with(|c: char| matches!(c, '1'..='9')) && text.parse::<u16>().is_ok()
}

/// Returns the offset of the first invalid byte in a domain name.
fn invalid_in_domain(name: &str) -> Option<usize> {
    let mut start = 0;
    for label in name.split('.') {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if let Some(at) = label.bytes().position(|b| !inner(b)) {
            return Some(start + at);
        }
        if label.is_empty() || label.starts_with('-') {
            return Some(start);
        }
        if label.ends_with('-') {
            return Some(start + label.len() - 1);
        }
        start += label.len() + 1;
    }
    None
}

/// Returns the offset of the first invalid byte in a repository name. Does not check the length.
fn invalid_in_repository(name: &str) -> Option<usize> {
    let bytes = name.as_bytes();
    let mut at = 0;
    loop {
        let word = bytes[at..].iter().take_while(|b| b.is_ascii_lowercase() || b.is_ascii_digit()).count();
        if word == 0 {
            return Some(at);
        }
        at += word;
        at += match bytes[at..] {
            [] => return None,
            [b'_', b'_', ..] => 2,
            [b'/' | b'.' | b'_', ..] => 1,
            [b'-', ..] => bytes[at..].iter().take_while(|b| **b == b'-').count(),
            _ => return Some(at),
        };
    }
}

/// Returns the offset of the first invalid byte in a tag.
fn invalid_in_tag(tag: &str) -> Option<usize> {
    let allowed = |(at, b): (usize, u8)| match b {
        b'.' | b'-' => at > 0,
        _ => b.is_ascii_alphanumeric() || b == b'_',
    };
    match tag.bytes().enumerate().position(|byte| !allowed(byte)) {
        None if tag.is_empty() => Some(0),
        None if tag.len() > MAX_TAG => Some(MAX_TAG),
        invalid => invalid,
    }
}

/// True if `text` is a valid tag: at most [`MAX_TAG`] bytes.
#[must_use]
pub(super) fn is_tag(text: &str) -> bool {
    invalid_in_tag(text).is_none()
}

/// True if `text` is a valid repository name without a host: Docker Distribution's grammar, at most
/// [`MAX_NAME`] bytes.
#[must_use]
pub fn is_repository_name(text: &str) -> bool {
    text.len() <= MAX_NAME && invalid_in_repository(text).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_identifies_cosign_artifacts_and_referrers() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for (tag, expected) in [
            (format!("sha256-{hex}"), true),
            (format!("sha256-{hex}.sig"), true),
            (format!("sha256-{hex}.sbom"), true),
            (format!("sha256-{hex}0"), false),
            (format!("sha256-{}", &hex[1..]), false),
            (hex.to_owned(), false),
            ("v1".to_owned(), false),
        ] {
            let reference: Reference = format!("quay.io/a/b:{tag}").parse().unwrap();
            assert_eq!(reference.is_referrer(), expected, "{tag}");
        }
    }

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn reference(text: &str) -> Reference {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_full_reference_parses_into_its_parts() {
        let all = reference(&format!("Registry.Example:5000/a/b-c:v1@{DIGEST}"));
        assert_eq!((all.host(), all.repository(), all.tag()), ("registry.example:5000", "a/b-c", Some("v1")));
        assert_eq!(all.digest().unwrap().to_string(), DIGEST);
        let tag_only = reference("registry.k8s.io/pause:3.9");
        assert_eq!((tag_only.tag(), tag_only.digest()), (Some("3.9"), None));
        let digest_only = reference(&format!("ghcr.io/a@{DIGEST}"));
        assert_eq!((digest_only.tag(), digest_only.digest().is_some()), (None, true));
    }

    #[test]
    fn the_canonical_text_parses_to_the_same_reference() {
        for (text, canonical) in [
            ("docker.io/nginx:1", "docker.io/library/nginx:1"),
            ("index.docker.io/nginx:1", "docker.io/library/nginx:1"),
            ("registry-1.docker.io/flannel/flannel:v0", "docker.io/flannel/flannel:v0"),
            ("QUAY.io/a:B", "quay.io/a:B"),
            ("localhost/a:1", "localhost/a:1"),
            ("localhost:5000/a:1", "localhost:5000/a:1"),
            ("registry:5000/a:1", "registry:5000/a:1"),
            ("10.0.0.1:5000/a:1", "10.0.0.1:5000/a:1"),
            ("[2001:DB8:0::1]:5000/a:1", "[2001:db8::1]:5000/a:1"),
            ("[::1]/a:1", "[::1]/a:1"),
            ("ghcr.io/a__b/c---d/e.f_g:_x.y-z", "ghcr.io/a__b/c---d/e.f_g:_x.y-z"),
            ("xn--bcher-kva.example/a:1", "xn--bcher-kva.example/a:1"),
        ] {
            let parsed = reference(text);
            assert_eq!(parsed.to_string(), canonical);
            assert_eq!(reference(canonical), parsed);
        }
        let both = format!("quay.io/a/b:v1@{DIGEST}");
        assert_eq!(reference(&both).to_string(), both);
    }

    #[test]
    fn an_error_contains_the_expected_form_and_the_offset() {
        let tag =
            "expected a tag: at most 128 of letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`";
        let repository = "expected a repository: lower-case letters and digits, separated by `/`, `.`, `_`, `__` or dashes";
        let host = "expected a host: a domain name, an IPv4 address, or an IPv6 address in brackets";
        let port = "expected a port from 1 to 65535";
        let digest = "expected `sha256:` and 64 lower-case hex digits after `@`";
        let missing = "expected `:` and a tag, or `@` and a digest: an implicit `latest` is not accepted";
        let long_repository = format!("quay.io/{}:1", "a".repeat(256));
        let long_tag = format!("quay.io/a:{}", "1".repeat(129));
        let hub = |text: &str| {
            format!("the host of the registry is missing: write `{text}` if Docker Hub is meant")
        };
        let plus =
            "a tag cannot contain `+`: write `_` instead, as Helm does when it pushes a chart (`v1_k3s1`)";
        for (text, offset, message) in [
            ("", 0, "the image reference is empty"),
            ("nginx:1.25", 0, &*hub("docker.io/library/nginx:1.25")),
            ("calico/node:v3", 0, &*hub("docker.io/calico/node:v3")),
            ("docker://quay.io/a:1", 0, "an image reference has no scheme: remove `docker://`"),
            ("quay.io", 7, "expected `/` and a repository after the host"),
            ("[::1]:5000", 10, "expected `/` and a repository after the host"),
            ("quay..io/a:1", 5, host),
            ("quay.io-/a:1", 7, host),
            ("qu_ay.io/a:1", 2, host),
            ("[::g]/a:1", 1, host),
            ("[::1]x/a:1", 5, host),
            ("[::1/a:1", 0, host),
            ("bücher.example/a:1", 1, host),
            ("quay.io:0/a:1", 8, port),
            ("quay.io:/a:1", 8, port),
            ("quay.io:65536/a:1", 8, port),
            ("quay.io:+1/a:1", 8, port),
            ("quay.io:080/a:1", 8, port),
            ("quay.io/:1", 8, repository),
            ("quay.io/Abc:1", 8, repository),
            ("quay.io/a//b:1", 10, repository),
            ("quay.io/a/:1", 10, repository),
            ("quay.io/a___b:1", 11, repository),
            ("quay.io/a..b:1", 10, repository),
            ("quay.io/../a:1", 8, repository),
            ("quay.io/a.:1", 10, repository),
            ("quay.io/aé:1", 9, repository),
            (&long_repository, 8, "the repository is longer than 255 bytes"),
            ("quay.io/a:", 10, tag),
            ("quay.io/a:.1", 10, tag),
            ("quay.io/a:v1+k3s1", 12, plus),
            ("quay.io/a:1:2", 11, tag),
            (&long_tag, 138, tag),
            ("quay.io/a", 9, missing),
            ("quay.io/a@sha256:12", 10, digest),
            ("quay.io/a:1@", 12, digest),
            (&"a.b/".repeat(400), 718, "the image reference is longer than 718 bytes"),
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert_eq!((error.offset(), error.to_string().as_str()), (offset, message), "{text}");
        }
    }

    #[test]
    fn a_suggested_reference_is_accepted() {
        for text in ["nginx:1.25", "library/nginx:1.25", "calico/node:v3"] {
            let Err(ReferenceError::MissingHost { suggestion }) = text.parse::<Reference>() else {
                panic!("{text}")
            };
            reference(&suggestion);
        }
    }

    #[test]
    fn the_longest_host_repository_tag_and_digest_fit_together() {
        let host = format!("{}a", "a.".repeat(124));
        let text = format!("{host}:65535/{}:{}@{DIGEST}", "a".repeat(255), "1".repeat(128));
        assert_eq!(reference(&text).to_string(), text);
    }

    #[test]
    fn repository_names_and_tags_are_validated() {
        for good in ["a", "a/b", "library/nginx", "0/1.2", "a-----b"] {
            assert!(is_repository_name(good), "{good}");
        }
        for bad in
            ["", "/a", "a/", "A", "a:b", "-a", "a-", "a/_uploads/..", "_manifests", "a._b", &"a".repeat(256)]
        {
            assert!(!is_repository_name(bad), "{bad}");
        }
        for (text, expected) in
            [("v1.2_x-y", true), ("_", true), ("", false), (".", false), ("-a", false), ("a/b", false)]
        {
            assert_eq!(invalid_in_tag(text).is_none(), expected, "{text}");
        }
    }
}
