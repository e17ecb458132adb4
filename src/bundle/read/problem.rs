//! Problems of volumes, positions in a bundle, and kinds of damage.

use std::fmt;

use serde::Serialize;

use crate::bundle::format::volume_name::parse_volume_name;

/// Maximum number of consecutive volumes with the same problem that are named one by one.
pub(crate) const NAMED_VOLUMES: usize = 10;

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
    /// The volume belongs to another bundle. It is ignored.
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
            Self::Longer { .. }
                | Self::Foreign { .. }
                | Self::Repeated { .. }
                | Self::Renamed { .. }
                | Self::Unlabelled { .. }
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

/// Returns one line a problem, and one for more than [`NAMED_VOLUMES`] missing or foreign volumes in a row: a single wrong
/// file name can announce 65,536 volumes.
pub(crate) fn lines(problems: &[VolumeProblem]) -> Vec<String> {
    let number = |problem: &VolumeProblem| match problem {
        VolumeProblem::Missing { volume } => parse_volume_name(volume).map(|(_, number)| number),
        _ => None,
    };
    let is_foreign = |problem: &VolumeProblem| matches!(problem, VolumeProblem::Foreign { .. });
    let is_next = |a: &VolumeProblem, b: &VolumeProblem| {
        number(a).is_some_and(|a| number(b) == Some(a + 1)) || is_foreign(a) && is_foreign(b)
    };
    let runs = problems.chunk_by(is_next);
    runs.flat_map(|run| match run {
        [VolumeProblem::Missing { volume: first }, .., VolumeProblem::Missing { volume: last }]
            if run.len() > NAMED_VOLUMES =>
        {
            vec![format!("the {} volumes `{first}` to `{last}` are missing", run.len())]
        }
        [VolumeProblem::Foreign { volume: first }, .., VolumeProblem::Foreign { volume: last }]
            if run.len() > NAMED_VOLUMES =>
        {
            vec![format!("the {} volumes `{first}` to `{last}` belong to another bundle", run.len())]
        }
        run => run.iter().map(ToString::to_string).collect(),
    })
    .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_missing_volumes_in_a_row_are_one_line() {
        let missing = |number| VolumeProblem::Missing { volume: format!("a.tar.zst.{number:03}") };
        let problems: Vec<_> = [2].into_iter().chain(4..=65_536).map(missing).collect();
        let expected = [
            "the volume `a.tar.zst.002` is missing",
            "the 65533 volumes `a.tar.zst.004` to `a.tar.zst.65536` are missing",
        ];
        assert_eq!(lines(&problems), expected);
        assert_eq!(lines(&(1..=10).map(missing).collect::<Vec<_>>()).len(), 10);
    }
}
