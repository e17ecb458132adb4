//! [`ListOptions`]: the source and the selection of generated lists.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The source and the selection of generated lists.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub(crate) struct ListOptions {
    /// The directory of the checkout.
    pub source: PathBuf,
    /// Overrides the release in the checkout's `galaxy.yml`.
    pub release: Option<KubesprayRelease>,
    /// The architectures of the hosts, without duplicates.
    pub architectures: Vec<Architecture>,
    /// Variable files, or directories of them such as `group_vars`. Later ones win.
    pub vars: Vec<PathBuf>,
    /// List only what hosts with these variables download.
    pub enabled_only: bool,
    /// Include downloads that Kubespray's own script omits.
    pub complete: bool,
    /// Use variables that set download locations.
    pub keep_mirrors: bool,
    /// List files without a checksum instead of failing.
    pub allow_unpinned: bool,
}

/// The name of a Kubespray release, such as `v2.31.0`. It stands in a comment of the lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KubesprayRelease(String);

/// A text that is not the name of a release.
#[derive(Debug, thiserror::Error)]
#[error("invalid release: expected at most 64 letters, digits, `.`, `+` and `-`")]
pub(crate) struct ReleaseError;

impl FromStr for KubesprayRelease {
    type Err = ReleaseError;

    fn from_str(text: &str) -> Result<Self, ReleaseError> {
        let is_valid = |c: u8| c.is_ascii_alphanumeric() || b".+-".contains(&c);
        let has_valid_length = (1..=64).contains(&text.len());
        if has_valid_length && text.bytes().all(is_valid) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReleaseError)
        }
    }
}

impl KubesprayRelease {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A CPU architecture supported by Kubespray, in Kubernetes' terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    Amd64,
    Arm64,
    Arm,
    Ppc64le,
}

impl Architecture {
    const ALL: [Self; 4] = [Self::Amd64, Self::Arm64, Self::Arm, Self::Ppc64le];

    /// Returns the value of the fact `ansible_architecture`.
    pub(crate) fn fact(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
            Self::Arm => "armv7l",
            Self::Ppc64le => "ppc64le",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
            Self::Arm => "arm",
            Self::Ppc64le => "ppc64le",
        })
    }
}

impl FromStr for Architecture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|known| known.to_string() == text);
        known.ok_or_else(|| "expected amd64, arm64, arm or ppc64le".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_one_line_without_spaces() {
        for valid in ["v2.31.0", "2.31.0-rc1+build", "master", "v2.31.0-12-g0123abc"] {
            assert_eq!(valid.parse::<KubesprayRelease>().unwrap().as_str(), valid);
        }
        let long = "1".repeat(65);
        for bad in ["", "v1\nhttps://evil.example/x", "v1 x", "v1\r", "v\u{2028}", "v/1", &long] {
            assert!(bad.parse::<KubesprayRelease>().is_err(), "{bad:?}");
        }
    }
}
