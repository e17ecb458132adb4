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
    pub release: Option<String>,
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
