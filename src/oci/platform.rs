//! [`Platform`]: operating system and architecture of an image.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::oci::parsed_text::quoted;

/// Maximum length of each part of a platform in bytes.
const MAX_PART: usize = 128;

/// The value of a part that is not known, for example in the platform of an attestation.
const UNKNOWN: &str = "unknown";

/// An operating system and an architecture, as in `platform` of a descriptor (OCI image-spec, image index).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
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

/// A platform in a document that has an invalid part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid `{part}` of a platform: `{}`: expected at most {MAX_PART} letters, digits, `.`, `_` and `-`", quoted(.text)
)]
pub struct PlatformError {
    /// `os`, `architecture` or `variant`.
    pub part: &'static str,
    /// The text, as it was.
    pub text: String,
}

impl Platform {
    /// Returns the platform that a document states: a descriptor or an image config. `None`: it states none,
    /// since its operating system or architecture is empty or `unknown`.
    ///
    /// The specification has no grammar beyond "string". Letters, digits, `.`, `_` and `-` are those that
    /// containerd accepts; all values of Go's `GOOS` and `GOARCH` have no others.
    pub fn stated(
        os: &str,
        architecture: &str,
        variant: Option<&str>,
    ) -> Result<Option<Self>, PlatformError> {
        let variant = variant.filter(|variant| !variant.is_empty());
        let parts = [("os", Some(os)), ("architecture", Some(architecture)), ("variant", variant)];
        for (part, text) in parts {
            if let Some(text) = text.filter(|text| !text.is_empty() && !is_stated_part(text)) {
                return Err(PlatformError { part, text: text.to_owned() });
            }
        }
        if [os, architecture].iter().any(|part| ["", UNKNOWN].contains(part)) {
            return Ok(None);
        }
        let (os, architecture) = (os.to_owned(), architecture.to_owned());
        Ok(Some(Self { os, architecture, variant: variant.map(str::to_owned) }))
    }

    /// Parses the text form of a platform that a document stated, as locks and records of sites have it. `None`:
    /// the platform counts as absent.
    pub fn stated_text(text: &str) -> Result<Option<Self>, PlatformError> {
        let mut parts = text.splitn(3, '/');
        let mut part = || parts.next();
        let (os, architecture, variant) = (part().unwrap_or_default(), part().unwrap_or_default(), part());
        Self::stated(os, architecture, variant)
    }

    /// Returns the operating system, a `GOOS` value such as `linux`.
    #[must_use]
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Returns the architecture, a `GOARCH` value such as `amd64`.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Returns the variant of the architecture, such as `v7` of `arm`. `None`: not stated.
    #[must_use]
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// Returns `linux/amd64`.
    #[must_use]
    pub fn linux_amd64() -> Self {
        Self { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None }
    }

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

/// Deserializes the text forms of platforms that documents stated, without those that count as absent.
pub(crate) fn deserialize_stated<'de, D, C>(deserializer: D) -> Result<C, D::Error>
where
    D: Deserializer<'de>,
    C: FromIterator<Platform>,
{
    let texts = Vec::<String>::deserialize(deserializer)?;
    let platforms = texts.iter().filter_map(|text| Platform::stated_text(text).transpose());
    platforms.collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

/// Like [`deserialize_stated`], for an optional platform.
pub(crate) fn deserialize_optional<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Platform>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Platform::stated_text(text.as_deref().unwrap_or_default()).map_err(serde::de::Error::custom)
}

fn is_stated_part(text: &str) -> bool {
    text.len() <= MAX_PART && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn is_part(text: &str) -> bool {
    (1..=MAX_PART).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
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
    fn a_stated_platform_has_no_other_characters_and_unknown_ones_are_absent() {
        for (os, architecture, variant, expected) in [
            ("linux", "amd64", None, Some("linux/amd64")),
            ("linux", "arm", Some("v7"), Some("linux/arm/v7")),
            ("Linux", "x86_64", Some(""), Some("Linux/x86_64")),
            ("", "amd64", None, None),
            ("linux", "", None, None),
            ("unknown", "unknown", None, None),
            ("linux", "unknown", Some("v1"), None),
        ] {
            let platform = Platform::stated(os, architecture, variant).unwrap();
            assert_eq!(platform.as_ref().map(Platform::to_string).as_deref(), expected);
            let text = [os, architecture].join("/") + &variant.map(|it| format!("/{it}")).unwrap_or_default();
            assert_eq!(Platform::stated_text(&text).unwrap(), platform, "{text}");
        }
        let long = "x".repeat(129);
        for bad in ["a b", "a\n", "v1\nkube_image_repo: x\n#", "\u{202e}", "ü", "a/b", "\"", "{{", &long] {
            for (part, platform) in [
                ("os", Platform::stated(bad, "amd64", None)),
                ("os", Platform::stated(bad, "unknown", None)),
                ("architecture", Platform::stated("linux", bad, None)),
                ("variant", Platform::stated("linux", "amd64", Some(bad))),
                ("variant", Platform::stated("", "", Some(bad))),
            ] {
                assert_eq!(platform.unwrap_err(), PlatformError { part, text: bad.to_owned() });
            }
        }
        let error = Platform::stated("linux", "amd64", Some("v1\n\u{1b}x")).unwrap_err().to_string();
        assert!(error.starts_with("invalid `variant` of a platform: `v1\\n\\u{1b}x`: expected"), "{error}");
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
