//! What can be wrong with volumes, and where in a bundle something is.

use std::{fmt, io};

use serde::Serialize;

/// What is wrong with the volumes that were found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "problem")]
pub enum VolumeProblem {
    /// It is not there.
    Missing {
        /// What it is called.
        volume: String,
    },
    /// The last one that is there is not the last one of the bundle, or not all of it.
    Unended {
        /// What it is called.
        volume: String,
        /// What the next one would be called.
        next: String,
    },
    /// It ends too early.
    Truncated {
        /// What it is called.
        volume: String,
        /// How many bytes it has.
        has: u64,
        /// How many it must have.
        needs: u64,
    },
    /// It goes on where the next one begins. What is too much is not read.
    Longer {
        /// What it is called.
        volume: String,
        /// How many bytes it has.
        has: u64,
        /// How many it must have.
        needs: u64,
    },
    /// It belongs to another bundle.
    Foreign {
        /// What it is called.
        volume: String,
    },
    /// It is one that is there under its own name, too.
    Repeated {
        /// What it is called.
        volume: String,
        /// What it is.
        is: String,
    },
    /// It is another one than its name says. It is read as what it is.
    Renamed {
        /// What it is called.
        volume: String,
        /// What it is.
        is: String,
    },
    /// Nothing in it says which volume it is. Its name is believed.
    Unlabelled {
        /// What it is called.
        volume: String,
    },
}

impl VolumeProblem {
    /// Whether the bundle can be read in spite of it.
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
                write!(f, "the bundle does not end with `{volume}`: it is cut short, or `{next}` is missing")
            }
            Self::Truncated { volume, has, needs } => {
                write!(f, "the volume `{volume}` is cut short: it has {has} of {needs} bytes")
            }
            Self::Longer { volume, has, needs } => {
                write!(
                    f,
                    "the volume `{volume}` has {has} bytes, and should have {needs}: the rest is not read"
                )
            }
            Self::Foreign { volume } => write!(f, "the volume `{volume}` is of another bundle"),
            Self::Repeated { volume, is } => write!(f, "the volume `{volume}` is `{is}` once more"),
            Self::Renamed { volume, is } => write!(f, "the volume `{volume}` is `{is}`, and read as that"),
            Self::Unlabelled { volume } => {
                write!(
                    f,
                    "nothing in the volume `{volume}` says which one it is: it is damaged at its beginning"
                )
            }
        }
    }
}

/// Where the reading of a volume failed because of what is missing there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MissingBytes(pub VolumeProblem);

/// A place in a bundle as a person finds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// In bytes from the start of the bundle.
    pub offset: u64,
    /// The volume, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// In bytes from the start of that volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_offset: Option<u64>,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.volume, self.volume_offset) {
            (Some(volume), Some(offset)) => write!(f, "byte {offset} of `{volume}`"),
            _ => write!(f, "byte {}", self.offset),
        }
    }
}

/// Why there is no frame, or none that decodes.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The input could not be read.
    #[error("cannot read the bundle")]
    Read(#[source] io::Error),
    /// A volume, or its end, is not there.
    #[error("{0}")]
    Absent(Box<VolumeProblem>),
    /// Nobody wants what it holds: it was not read.
    #[error("it was not read")]
    Skipped,
    /// The input ends inside a frame.
    #[error("the bundle ends in the middle of a frame: it is truncated")]
    Truncated,
    /// No zstd frame begins here.
    #[error("no zstd frame begins here")]
    Magic,
    /// A frame that no bundle has.
    #[error("there is a zstd frame {0}")]
    Unsupported(&'static str),
    /// The content is not what the frame's checksum says.
    #[error("the content of a zstd frame is damaged")]
    Damaged,
    /// The seek table is damaged.
    #[error("the seek table does not fit the frames")]
    SeekTable,
    /// There is something behind the seek table.
    #[error("something follows the end of the bundle")]
    Trailing,
    /// All frames have been read.
    #[error("the bundle has ended")]
    End,
}

impl FrameError {
    /// What keeps the input from being read.
    #[must_use]
    pub fn of(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<MissingBytes>()) {
            Some(MissingBytes(problem)) => Self::Absent(Box::new(problem.clone())),
            None => Self::Read(error),
        }
    }

    /// The same once more: what is lost with one frame is told for all that was in it.
    #[must_use]
    pub fn again(&self) -> Self {
        match self {
            Self::Read(error) => Self::Read(match error.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(error.kind(), error.to_string()),
            }),
            Self::Absent(problem) => Self::Absent(problem.clone()),
            Self::Skipped => Self::Skipped,
            Self::Truncated => Self::Truncated,
            Self::Magic => Self::Magic,
            Self::Unsupported(what) => Self::Unsupported(what),
            Self::Damaged => Self::Damaged,
            Self::SeekTable => Self::SeekTable,
            Self::Trailing => Self::Trailing,
            Self::End => Self::End,
        }
    }

    /// What kind of trouble it is.
    #[must_use]
    pub fn trouble(&self) -> DamageKind {
        match self {
            Self::Absent(_) | Self::Truncated => DamageKind::Missing,
            Self::Read(_) => DamageKind::Unreadable,
            _ => DamageKind::Damaged,
        }
    }

    /// What it is, in words, with what is behind it.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Read(error) => format!("the medium cannot be read: {error}"),
            other => other.to_string(),
        }
    }
}

/// What kind of trouble something is, the worst one last: what is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DamageKind {
    /// It is not there: a volume, or the end of the bundle. To bring that is enough.
    Missing,
    /// It has other bytes than were packed. It has to be carried again.
    Damaged,
    /// The medium gives errors. It may go on so.
    Unreadable,
}
