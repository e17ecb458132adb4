//! [`Name`]: the name and tag of a built image.

use std::fmt;
use std::str::FromStr;

use crate::oci::reference::{Reference, ReferenceError};

/// A name with a tag, with or without a host: for docker, podman and containerd, `kubespray-files:v3` is
/// short for `docker.io/library/kubespray-files:v3`. [`Display`](fmt::Display) writes the short name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(Reference);

/// The reason why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameError {
    /// The text is not a reference, or has no tag.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The text has a digest.
    #[error("a new image cannot be named by digest: expected a name and a tag")]
    Digest,
}

impl Name {
    /// Returns the name with its host, e.g. `docker.io/library/kubespray-files:v3`.
    #[must_use]
    pub(crate) fn full(&self) -> String {
        self.0.to_string()
    }

    /// Returns the last path component of the repository.
    #[must_use]
    pub(crate) fn title(&self) -> &str {
        self.0.repository().rsplit('/').next().unwrap_or_default()
    }

    #[must_use]
    pub(crate) fn tag(&self) -> &str {
        self.0.tag().unwrap_or_default()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = self.full();
        let official = full.strip_prefix("docker.io/library/").filter(|rest| !rest.contains('/'));
        f.write_str(official.or_else(|| full.strip_prefix("docker.io/")).unwrap_or(&full))
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let reference: Reference = match text.parse() {
            Err(ReferenceError::MissingHost { .. }) => format!("docker.io/{text}").parse()?,
            result => result?,
        };
        if reference.digest().is_some() {
            return Err(NameError::Digest);
        }
        Ok(Self(reference))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_full_form_and_a_short_form() {
        for (text, full, short) in [
            ("kubespray-files:v3", "docker.io/library/kubespray-files:v3", "kubespray-files:v3"),
            ("a/files:v3", "docker.io/a/files:v3", "a/files:v3"),
            ("docker.io/library/files:v3", "docker.io/library/files:v3", "files:v3"),
            ("docker.io/library/a/files:v3", "docker.io/library/a/files:v3", "library/a/files:v3"),
            ("site.local:5000/a/files:1", "site.local:5000/a/files:1", "site.local:5000/a/files:1"),
            ("site.local/library/files:1", "site.local/library/files:1", "site.local/library/files:1"),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!((name.full().as_str(), name.to_string().as_str()), (full, short));
        }
    }

    #[test]
    fn a_name_requires_a_tag_and_rejects_a_digest() {
        let digest = format!("files:1@sha256:{}", "0".repeat(64));
        for (text, message) in [
            ("files", "a tag"),
            ("Files:1", "a repository"),
            ("files:-1", "a tag"),
            ("", "empty"),
            (&digest, "by digest"),
        ] {
            let error = text.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
