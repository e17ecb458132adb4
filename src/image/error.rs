//! [`ImageError`]: all that can keep an image from being built.

use crate::bundle::reader::ReadError;
use crate::fs::FsError;
use crate::image::base::BaseError;
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
    /// The file system says no.
    #[error(transparent)]
    Fs(#[from] FsError),
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
