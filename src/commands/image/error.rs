//! [`ImageError`]: why an image cannot be built.

use std::path::PathBuf;

use crate::base::fs::FsError;
use crate::base::units::human_bytes;
use crate::bundle::read::error::ReadError;
use crate::bundle::write::claim::ClaimError;
use crate::commands::image::base::BaseError;
use crate::site::storage::NamesError;

/// The reason why an image cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The bundle cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A blob of the bundle is corrupt.
    #[error("the bundle is damaged in {owners}")]
    Damaged {
        /// The images and files that need the blob.
        owners: String,
        #[source]
        source: ReadError,
    },
    /// The bundle is a delta.
    #[error(
        "the bundle is a delta: it omits {blobs} blobs ({}) of {owners}; use a full bundle, packed without `--base`",
        human_bytes(*bytes)
    )]
    Delta {
        /// Number of omitted blobs.
        blobs: usize,
        /// Size of the omitted blobs in bytes.
        bytes: u64,
        /// The images and files that need the omitted blobs.
        owners: String,
    },
    /// A local I/O error.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process is writing the same archive.
    #[error("another `airbundle` is writing `{}`: wait, or choose another output", .0.display())]
    Busy(PathBuf),
    /// The images cannot have the names of the templates.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// The bundle has no suitable base image.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The bundle has no files.
    #[error("the bundle has no files to serve")]
    NoFiles,
}

impl From<ClaimError> for ImageError {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Fs(error) => Self::Fs(error),
            ClaimError::Busy(path) => Self::Busy(path),
        }
    }
}
