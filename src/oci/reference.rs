//! [`Reference`], an image as a list names it, and [`RepositoryTemplate`], the name it gets on the site.
//!
//! The grammar is that of Docker Distribution (`reference` package), made stricter where it would guess: the
//! host is written out, and so is the tag or the digest.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::oci::digest::Digest;

/// The most bytes a repository may have, and so may a host.
pub const MAX_NAME: usize = 255;

/// The most bytes a tag may have (OCI distribution-spec, "Pulling manifests").
pub const MAX_TAG: usize = 128;

/// An image reference: `host[:port]/repository[:tag][@sha256:…]`, with a tag, a digest or both.
///
/// Docker Hub has one name, `docker.io`, and its one-word repositories begin with `library/`. The host is in
/// lower case. [`Display`](fmt::Display) gives this canonical text, which parses to the same reference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
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

/// Why a text is no [`Reference`]. `at` is the offset, in bytes, of what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "`at` is explained above")]
pub enum ReferenceError {
    /// There is nothing.
    #[error("the image reference is empty")]
    Empty,
    /// It has more bytes than its longest parts together.
    #[error("the image reference is longer than {MAX_REFERENCE} bytes")]
    TooLong { at: usize },
    /// It begins like a URL.
    #[error("an image reference has no scheme: leave out `{scheme}://`")]
    Scheme { scheme: String },
    /// The first component does not look like a host.
    #[error("the host of the registry is missing: write `{suggestion}` if Docker Hub is meant")]
    MissingHost { suggestion: String },
    /// The host is no host.
    #[error("expected a host: a domain name, an IPv4 address, or an IPv6 address in brackets")]
    Host { at: usize },
    /// The port is no port.
    #[error("expected a port from 1 to 65535")]
    Port { at: usize },
    /// There is a host and nothing else.
    #[error("expected `/` and a repository after the host")]
    MissingRepository { at: usize },
    /// The repository is not as Docker Distribution wants it.
    #[error("expected a repository: lower-case letters and digits, parted by `/`, `.`, `_`, `__` or dashes")]
    Repository { at: usize },
    /// The repository has more than [`MAX_NAME`] bytes.
    #[error("the repository is longer than {MAX_NAME} bytes")]
    RepositoryTooLong { at: usize },
    /// The tag is no tag.
    #[error(
        "expected a tag: at most {MAX_TAG} of letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`"
    )]
    Tag { at: usize },
    /// What follows the `@` is no sha256 digest.
    #[error("expected `sha256:` and 64 lower-case hex digits after `@`")]
    Digest { at: usize },
    /// Neither tag nor digest.
    #[error("expected `:` and a tag, or `@` and a digest: an implicit `latest` is not accepted")]
    MissingTag { at: usize },
}

/// Host, port, repository, tag and digest, each at its longest.
const MAX_REFERENCE: usize = MAX_NAME + ":65535/".len() + MAX_NAME + 1 + MAX_TAG + "@sha256:".len() + 64;

impl ReferenceError {
    /// Where in the text the error is, in bytes from its start.
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
            | Self::Digest { at }
            | Self::MissingTag { at } => *at,
        }
    }
}

impl Reference {
    /// The registry: a lower-case domain name or an IP address (IPv6 in brackets), with `:port` if stated.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository without the host, such as `library/nginx`. At most [`MAX_NAME`] bytes.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only if there is a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Whether its tag says that it is about another image: a signature, an attestation, an SBOM, or the list of
    /// referrers (`sha256-<hex>`, with an ending or without; OCI distribution-spec, "Referrers Tag Schema").
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached_to().is_some()
    }

    /// The manifest or index that this one is about, if its tag says so.
    #[must_use]
    pub fn attached_to(&self) -> Option<Digest> {
        let hex = self.tag.as_deref()?.strip_prefix("sha256-")?;
        Digest::from_hex(hex.split_once('.').map_or(hex, |(hex, _)| hex)).ok()
    }

    /// The digest of the manifest or index; `None` only if there is a tag.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
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
        if let Some(offset) = repository_fault(repository) {
            return Err(ReferenceError::Repository { at: start + offset });
        }
        let repository = match host.as_str() {
            DOCKER_HUB if !repository.contains('/') => format!("library/{repository}"),
            _ => repository.to_owned(),
        };
        if repository.len() > MAX_NAME {
            return Err(ReferenceError::RepositoryTooLong { at: start });
        }
        if let Some((offset, fault)) = tag.and_then(|(offset, tag)| Some((offset, tag_fault(tag)?))) {
            return Err(ReferenceError::Tag { at: start + offset + fault });
        }
        let digest = match digest {
            Some((at, digest)) => Some(digest.parse().map_err(|_| ReferenceError::Digest { at })?),
            None => None,
        };
        if tag.is_none() && digest.is_none() {
            return Err(ReferenceError::MissingTag { at: text.len() });
        }
        Ok(Self { host, repository, tag: tag.map(|(_, tag)| tag.to_owned()), digest })
    }
}

const DOCKER_HUB: &str = "docker.io";

/// What stands before the first `separator`, and what follows it, with its offset.
fn split_at(text: &str, separator: char) -> (&str, Option<(usize, &str)>) {
    match text.split_once(separator) {
        Some((head, tail)) => (head, Some((head.len() + 1, tail))),
        None => (text, None),
    }
}

fn without_slash(text: &str, name: &str) -> ReferenceError {
    // In `nginx:1.25` the colon begins a tag, so only what stands before it can tell.
    if looks_like_host(split_at(name, ':').0) || name.starts_with('[') {
        ReferenceError::MissingRepository { at: name.len() }
    } else {
        ReferenceError::MissingHost { suggestion: format!("docker.io/library/{text}") }
    }
}

/// Docker's rule for telling `host/repository` from a repository of two components.
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
        if let Some(at) = domain_fault(name) {
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

/// A host as references have it: in lower case, and Docker Hub under its one name.
#[must_use]
pub fn canonical_host(host: &str) -> String {
    match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        host => host.to_owned(),
    }
}

fn is_port(text: &str) -> bool {
    // No sign and no leading zero: one port, one text.
    text.starts_with(|c: char| matches!(c, '1'..='9')) && text.parse::<u16>().is_ok()
}

/// The offset of the first byte that cannot stand in a domain name.
fn domain_fault(name: &str) -> Option<usize> {
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

/// The offset of the first byte that cannot stand there in a repository name, whose length is not looked at.
fn repository_fault(name: &str) -> Option<usize> {
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

/// The offset of the first byte that cannot stand there in a tag.
fn tag_fault(tag: &str) -> Option<usize> {
    let allowed = |(at, b): (usize, u8)| match b {
        b'.' | b'-' => at > 0,
        _ => b.is_ascii_alphanumeric() || b == b'_',
    };
    match tag.bytes().enumerate().position(|byte| !allowed(byte)) {
        None if tag.is_empty() => Some(0),
        None if tag.len() > MAX_TAG => Some(MAX_TAG),
        fault => fault,
    }
}

/// Whether `text` can name a repository: Docker Distribution's grammar, at most [`MAX_NAME`] bytes, no host.
#[must_use]
pub fn is_repository_name(text: &str) -> bool {
    text.len() <= MAX_NAME && repository_fault(text).is_none()
}

/// Which repository of the site an image becomes: a repository name in which `{repository}` and, if wanted,
/// `{host}` stand for those of the image. The default is `k8s/{host}/{repository}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryTemplate(String);

/// Why a text is no [`RepositoryTemplate`], or why one gives no name for an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Something else stands in braces, or a brace has no partner.
    #[error("unknown placeholder `{found}`: expected `{{host}}` or `{{repository}}`")]
    Placeholder {
        /// The text from the brace on.
        found: String,
    },
    /// All images would get one name.
    #[error("the template lacks `{{repository}}`: all images would get one name")]
    NoRepository,
    /// No image whatever can make a valid name of it.
    #[error("the template `{template}` can give no valid repository name")]
    NeverValid {
        /// The whole template.
        template: String,
    },
    /// The name for this image is not valid.
    #[error("`{image}` would become `{name}`, which is no valid repository name")]
    Name {
        /// The image.
        image: String,
        /// What the template made of it.
        name: String,
    },
    /// The name for this image has more than [`MAX_NAME`] bytes.
    #[error("`{image}` would become a repository name of {len} bytes, more than {MAX_NAME}")]
    NameTooLong {
        /// The image.
        image: String,
        /// How many bytes the name would have.
        len: usize,
    },
}

/// The directory of files on the site, and the first component of repository names in the default template.
pub(crate) const DEFAULT_PREFIX: &str = "k8s";

const HOST: &str = "{host}";
const REPOSITORY: &str = "{repository}";

impl RepositoryTemplate {
    /// The repository name for `image`. A repository name cannot hold `:`, so that of a port, and those of an
    /// IPv6 address, become `_`, and the brackets go: `localhost:5000` becomes `localhost_5000`.
    pub fn apply(&self, image: &Reference) -> Result<String, TemplateError> {
        let host = image.host.replace(['[', ']'], "").replace(':', "_");
        let name = self.0.replace(HOST, &host).replace(REPOSITORY, &image.repository);
        if repository_fault(&name).is_some() {
            return Err(TemplateError::Name { image: image.to_string(), name });
        }
        if name.len() > MAX_NAME {
            return Err(TemplateError::NameTooLong { image: image.to_string(), len: name.len() });
        }
        Ok(name)
    }
}

impl Default for RepositoryTemplate {
    fn default() -> Self {
        Self(format!("{DEFAULT_PREFIX}/{{host}}/{{repository}}"))
    }
}

impl fmt::Display for RepositoryTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RepositoryTemplate {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The shortest host and repository, which fit wherever any other fits.
        let name = text.replace(HOST, "a").replace(REPOSITORY, "a");
        if let Some(brace) = name.find(['{', '}']) {
            let end = name[brace..].find('}').map_or(name.len(), |end| brace + end + 1);
            return Err(TemplateError::Placeholder { found: name[brace..end].to_owned() });
        }
        if !text.contains(REPOSITORY) {
            return Err(TemplateError::NoRepository);
        }
        if !is_repository_name(&name) {
            return Err(TemplateError::NeverValid { template: text.to_owned() });
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_tells_what_is_attached_to_another_image() {
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
            assert_eq!(reference.is_attached(), expected, "{tag}");
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
    fn an_error_says_what_is_wrong_and_where() {
        let tag =
            "expected a tag: at most 128 of letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`";
        let repository =
            "expected a repository: lower-case letters and digits, parted by `/`, `.`, `_`, `__` or dashes";
        let host = "expected a host: a domain name, an IPv4 address, or an IPv6 address in brackets";
        let port = "expected a port from 1 to 65535";
        let digest = "expected `sha256:` and 64 lower-case hex digits after `@`";
        let missing = "expected `:` and a tag, or `@` and a digest: an implicit `latest` is not accepted";
        let long_repository = format!("quay.io/{}:1", "a".repeat(256));
        let long_tag = format!("quay.io/a:{}", "1".repeat(129));
        let hub = |text: &str| {
            format!("the host of the registry is missing: write `{text}` if Docker Hub is meant")
        };
        for (text, offset, message) in [
            ("", 0, "the image reference is empty"),
            ("nginx:1.25", 0, &*hub("docker.io/library/nginx:1.25")),
            ("calico/node:v3", 0, &*hub("docker.io/calico/node:v3")),
            ("docker://quay.io/a:1", 0, "an image reference has no scheme: leave out `docker://`"),
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
            ("quay.io/a:v1+k3s1", 12, tag),
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
    fn a_template_puts_host_and_repository_into_a_valid_name() {
        let default = RepositoryTemplate::default();
        assert_eq!(default.to_string().parse(), Ok(default.clone()));
        for (template, image, name) in [
            (
                "k8s/{host}/{repository}",
                "registry.k8s.io/kube-apiserver:v1",
                "k8s/registry.k8s.io/kube-apiserver",
            ),
            ("k8s/{host}/{repository}", "docker.io/nginx:1", "k8s/docker.io/library/nginx"),
            ("{repository}", "quay.io/calico/node:v3", "calico/node"),
            ("{host}/{repository}", "localhost:5000/a:1", "localhost_5000/a"),
            ("{host}/{repository}", "[2001:db8::1]:5000/a:1", "2001_db8__1_5000/a"),
            ("m-{host}.{repository}-x", "quay.io/a/b:1", "m-quay.io.a/b-x"),
        ] {
            let template: RepositoryTemplate = template.parse().unwrap();
            let result = template.apply(&reference(image)).unwrap();
            assert_eq!(result, name);
            assert!(is_repository_name(&result));
        }
    }

    #[test]
    fn a_template_that_can_name_nothing_is_refused() {
        for (template, message) in [
            ("k8s/{host}", "the template lacks `{repository}`: all images would get one name"),
            ("", "the template lacks `{repository}`: all images would get one name"),
            ("{tag}/{repository}", "unknown placeholder `{tag}`: expected `{host}` or `{repository}`"),
            ("{repository}/{host", "unknown placeholder `{host`: expected `{host}` or `{repository}`"),
            ("{repository}}", "unknown placeholder `}`: expected `{host}` or `{repository}`"),
            ("/{repository}", "the template `/{repository}` can give no valid repository name"),
            ("K8s/{repository}", "the template `K8s/{repository}` can give no valid repository name"),
            (
                "{host}:5000/{repository}",
                "the template `{host}:5000/{repository}` can give no valid repository name",
            ),
        ] {
            assert_eq!(template.parse::<RepositoryTemplate>().unwrap_err().to_string(), message);
        }
        let long = format!("{}/{{repository}}", "a".repeat(254));
        assert!(matches!(long.parse::<RepositoryTemplate>(), Err(TemplateError::NeverValid { .. })));
    }

    #[test]
    fn an_image_for_which_the_template_gives_no_valid_name_is_an_error() {
        let template = RepositoryTemplate::default();
        for (image, message) in [
            (
                "[::1]:5000/a:1".to_owned(),
                "`[::1]:5000/a:1` would become `k8s/__1_5000/a`, which is no valid repository name"
                    .to_owned(),
            ),
            (
                format!("quay.io/{}:1", "a".repeat(250)),
                format!(
                    "`quay.io/{}:1` would become a repository name of 262 bytes, more than 255",
                    "a".repeat(250)
                ),
            ),
        ] {
            assert_eq!(template.apply(&reference(&image)).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn repository_names_and_tags_are_told_from_others() {
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
            assert_eq!(tag_fault(text).is_none(), expected, "{text}");
        }
    }
}
