//! [`ImageError`]: all that can keep an image from being built.

use std::path::PathBuf;

use crate::base::fs::FsError;
use crate::base::units::human_bytes;
use crate::bundle::read::error::ReadError;
use crate::bundle::write::claim::ClaimError;
use crate::commands::image::base::BaseError;
use crate::site::storage::NamesError;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The bundle cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The bundle is damaged somewhere.
    #[error("the bundle is damaged in {owners}")]
    Damaged {
        /// The images and files that it hits.
        owners: String,
        /// What is wrong.
        #[source]
        source: ReadError,
    },
    /// The bundle is not all that it names.
    #[error(
        "the bundle is a delta, which leaves out {blobs} blobs ({}) of {owners}: take a full bundle, one that was \
         packed without `--base`", human_bytes(*bytes)
    )]
    Delta {
        /// How many blobs are elsewhere.
        blobs: usize,
        /// How many bytes those have.
        bytes: u64,
        /// The images and files that need them.
        owners: String,
    },
    /// The file system says no.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process is writing the same archive.
    #[error("another `airbundle` is writing `{}`: wait until it is done, or choose another name", .0.display())]
    Busy(PathBuf),
    /// Images cannot have their names.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// There is nothing to build on.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// There is nothing to serve.
    #[error("the bundle has no files: there is nothing to serve")]
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
