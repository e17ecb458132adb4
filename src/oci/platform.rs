//! [`Platform`]: operating system and architecture of an image.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An operating system and an architecture, as in `platform` of a descriptor (OCI image-spec, image index).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    /// `GOOS` value, such as `linux`.
    pub os: String,
    /// `GOARCH` value, such as `amd64`.
    pub architecture: String,
    /// Variant of the architecture, such as `v7` of `arm`. `None`: not stated.
    pub variant: Option<String>,
}

impl Serialize for Platform {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Platform {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is not a valid [`Platform`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `os/architecture` or `os/architecture/variant` in lower case, such as `linux/amd64`")]
pub struct ParsePlatformError;

impl Platform {
    /// Returns the platform of the running program.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// True if both are the same platform: `linux/arm64` is the same as `linux/arm64/v8`.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.selects(other) && other.selects(self)
    }

    /// True if `candidate` matches this platform: `linux/amd64` matches all of its variants, `linux/amd64/v3`
    /// only itself. As in containerd, `arm64` equals `arm64/v8`, `amd64` equals `amd64/v1`, and `arm` equals
    /// `arm/v7`.
    #[must_use]
    pub fn selects(&self, candidate: &Self) -> bool {
        let variant = self.normal_variant();
        self.os == candidate.os
            && self.architecture == candidate.architecture
            && (variant.is_none() || variant == candidate.normal_variant())
    }

    fn normal_variant(&self) -> Option<&str> {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm64", Some("v8")) | ("amd64", Some("v1")) => None,
            ("arm", None) => Some("v7"),
            (_, variant) => variant,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// Also accepts `x86_64` and `aarch64`, the names of `uname -m`.
impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('/');
        let mut part = || parts.next().map(|part| is_part(part).then_some(part).ok_or(ParsePlatformError));
        let (Some(os), Some(architecture), variant, None) = (part(), part(), part(), part()) else {
            return Err(ParsePlatformError);
        };
        let architecture = match architecture? {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self {
            os: os?.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.transpose()?.map(str::to_owned),
        })
    }
}

fn is_part(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_has_two_or_three_components_and_accepts_names_of_uname() {
        for (text, canonical) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64/v8", "linux/arm64/v8"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), canonical);
        }
        for bad in [
            "",
            "linux",
            "amd64",
            "linux/",
            "/amd64",
            "linux/arm/v7/x",
            "Linux/amd64",
            "linux/amd 64",
            "linux//v7",
            "linux/arm/",
        ] {
            assert_eq!(bad.parse::<Platform>(), Err(ParsePlatformError), "{bad}");
        }
    }

    #[test]
    fn a_platform_equals_itself_with_its_default_variant() {
        for (one, other, same) in [
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm", "linux/arm/v7", true),
            ("linux/amd64", "linux/amd64/v3", false),
            ("linux/amd64", "linux/386", false),
        ] {
            let (one, other): (Platform, Platform) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!((one.is_same(&other), other.is_same(&one)), (same, same), "{one} {other}");
        }
        assert!(Platform::host().is_same(&Platform::host()));
    }

    #[test]
    fn a_platform_without_a_variant_selects_all_variants() {
        for (platform, candidate, selected) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/amd64/v1", true),
            ("linux/amd64/v1", "linux/amd64", true),
            ("linux/amd64", "linux/amd64/v3", true),
            ("linux/amd64/v3", "linux/amd64", false),
            ("linux/amd64/v3", "linux/amd64/v3", true),
            ("linux/amd64", "linux/arm64", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm", "linux/arm/v7", true),
            ("linux/arm/v7", "linux/arm", true),
            ("linux/arm", "linux/arm/v6", false),
            ("linux/arm/v6", "linux/arm/v6", true),
            ("linux/arm/v6", "linux/arm", false),
        ] {
            let (platform, candidate): (Platform, Platform) =
                (platform.parse().unwrap(), candidate.parse().unwrap());
            assert_eq!(platform.selects(&candidate), selected, "{platform} {candidate}");
        }
    }
}
