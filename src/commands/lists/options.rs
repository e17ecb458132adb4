//! [`ListOptions`]: what the lists are made for.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What lists are made of, and for.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub(crate) struct ListOptions {
    /// The checkout.
    pub source: PathBuf,
    /// The release that the lists are said to be for, if the checkout does not say so, or not rightly.
    pub release: Option<String>,
    /// The architectures of the hosts, each once.
    pub architectures: Vec<Architecture>,
    /// Files of variables, or directories of them: `group_vars`. Later ones win.
    pub vars: Vec<PathBuf>,
    /// Only what hosts with these variables download.
    pub enabled_only: bool,
    /// With what Kubespray uses and does not list.
    pub complete: bool,
    /// Take variables that say where hosts fetch from.
    pub keep_mirrors: bool,
    /// Take files whose checksum Kubespray does not know.
    pub allow_unpinned: bool,
}

/// An architecture that Kubespray knows, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// `x86_64`
    Amd64,
    /// `aarch64`
    Arm64,
    /// `armv7l`
    Arm,
    /// `ppc64le`
    Ppc64le,
}

impl Architecture {
    const ALL: [Self; 4] = [Self::Amd64, Self::Arm64, Self::Arm, Self::Ppc64le];

    /// What Ansible says about such a host.
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
