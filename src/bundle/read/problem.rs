//! Problems of volumes, positions in a bundle, and kinds of damage.

use std::fmt;

use serde::Serialize;

/// A problem of the volumes that were found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", tag = "problem")]
pub enum VolumeProblem {
    /// The volume was not found.
    Missing {
        /// File name.
        volume: String,
    },
    /// The last volume that was found does not end the bundle.
    Unended {
        /// File name.
        volume: String,
        /// File name of the next volume, which can be missing.
        next: String,
    },
    /// The volume is shorter than its successor's offset implies.
    Truncated {
        /// File name.
        volume: String,
        /// Actual size in bytes.
        has: u64,
        /// Expected size in bytes.
        needs: u64,
    },
    /// The volume is longer than its successor's offset implies. The excess is not read.
    Longer {
        /// File name.
        volume: String,
        /// Actual size in bytes.
        has: u64,
        /// Expected size in bytes.
        needs: u64,
    },
    /// The volume belongs to another bundle.
    Foreign {
        /// File name.
        volume: String,
    },
    /// A duplicate of a volume with the correct name.
    Repeated {
        /// File name.
        volume: String,
        /// File name according to the label.
        is: String,
    },
    /// The name of the volume does not match its label. The label is used.
    Renamed {
        /// File name.
        volume: String,
        /// File name according to the label.
        is: String,
    },
    /// The volume has no readable label. Its name is used.
    Unlabelled {
        /// File name.
        volume: String,
    },
}

impl VolumeProblem {
    /// True if the bundle can be read completely in spite of the problem.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        matches!(
            self,
            Self::Longer { .. } | Self::Repeated { .. } | Self::Renamed { .. } | Self::Unlabelled { .. }
        )
    }
}

impl fmt::Display for VolumeProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { volume } => write!(f, "the volume `{volume}` is missing"),
            Self::Unended { volume, next } => {
                write!(f, "the bundle does not end with `{volume}`: it is truncated, or `{next}` is missing")
            }
            Self::Truncated { volume, has, needs } => {
                write!(f, "the volume `{volume}` is truncated: it has {has} of {needs} bytes")
            }
            Self::Longer { volume, has, needs } => {
                write!(f, "the volume `{volume}` has {has} bytes instead of {needs}: the excess is ignored")
            }
            Self::Foreign { volume } => write!(f, "the volume `{volume}` belongs to another bundle"),
            Self::Repeated { volume, is } => write!(f, "the volume `{volume}` is a duplicate of `{is}`"),
            Self::Renamed { volume, is } => {
                write!(f, "the volume `{volume}` was renamed: its label says `{is}`")
            }
            Self::Unlabelled { volume } => {
                write!(f, "the volume `{volume}` has no readable label: its beginning is corrupt")
            }
        }
    }
}

/// The source of an [`std::io::Error`] for bytes of a volume that is missing or truncated.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MissingBytes(pub VolumeProblem);

/// A position in a bundle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// Offset in the bundle, in bytes.
    pub offset: u64,
    /// File name of the volume. `None` if the bundle is one file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Offset in the volume, in bytes. `None` if the bundle is one file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_offset: Option<u64>,
}

impl Position {
    /// Creates a position in a bundle that is one file or a stream.
    #[must_use]
    pub(crate) fn at(offset: u64) -> Self {
        Self { offset, volume: None, volume_offset: None }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.volume, self.volume_offset) {
            (Some(volume), Some(offset)) => write!(f, "byte {offset} of `{volume}`"),
            _ => write!(f, "byte {}", self.offset),
        }
    }
}

/// A kind of damage, in order of severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DamageKind {
    /// A volume or the end of the bundle is missing. It must be added.
    Missing,
    /// The content was changed. It must be copied again.
    Damaged,
    /// The media (USB drive, DVD) returns read errors. A retry can fail again.
    Unreadable,
}
