//! [`FrameError`]: a frame that is missing, unreadable, invalid or corrupt.

use std::io;

use crate::base::error_chain::chain;
use crate::bundle::read::problem::{DamageKind, MissingBytes, VolumeProblem};

/// A frame that is missing, unreadable, invalid or corrupt.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Reading the input failed.
    #[error("cannot read the bundle")]
    Read(#[source] io::Error),
    /// The volume is missing or truncated.
    #[error("{0}")]
    Absent(Box<VolumeProblem>),
    /// The frame was not read, because the caller does not need its content.
    #[error("skipped")]
    Skipped,
    /// The input ends inside a frame.
    #[error("the bundle is truncated: it ends inside a frame")]
    Truncated,
    /// The magic number is not that of a zstd frame or a skippable frame.
    #[error("expected a zstd frame, found an unknown magic number")]
    Magic,
    /// A frame that no bundle contains.
    #[error("unsupported zstd frame: {0}")]
    Unsupported(&'static str),
    /// The frame does not decode, or its content does not match its checksum.
    #[error("corrupt zstd frame")]
    Corrupt,
    /// The seek table is corrupt.
    #[error("the seek table does not match the frames")]
    SeekTable,
    /// Data after the seek table.
    #[error("unexpected data after the seek table")]
    Trailing,
    /// The bundle has no more frames.
    #[error("unexpected end of the bundle")]
    End,
}

impl FrameError {
    /// Converts an error of reading volumes: [`MissingBytes`] becomes [`FrameError::Absent`].
    #[must_use]
    pub fn of(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<MissingBytes>()) {
            Some(MissingBytes(problem)) => Self::Absent(Box::new(problem.clone())),
            None => Self::Read(error),
        }
    }

    /// Returns a copy: the loss of a frame is reported for each entry in it.
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
            Self::Unsupported(reason) => Self::Unsupported(reason),
            Self::Corrupt => Self::Corrupt,
            Self::SeekTable => Self::SeekTable,
            Self::Trailing => Self::Trailing,
            Self::End => Self::End,
        }
    }

    /// Returns the kind of damage.
    #[must_use]
    pub fn trouble(&self) -> DamageKind {
        match self {
            Self::Absent(_) | Self::Truncated => DamageKind::Missing,
            Self::Read(_) => DamageKind::Unreadable,
            _ => DamageKind::Damaged,
        }
    }

    /// Returns the message of the error and its cause on one line.
    #[must_use]
    pub fn text(&self) -> String {
        chain(self)
    }
}
