//! [`PackError`]: an error while packing.

use std::path::PathBuf;

use crate::base::fs::FsError;
use crate::bundle::read::error::ReadError;
use crate::bundle::write::claim::ClaimError;
use crate::commands::pack::volume_command::CommandError;
use crate::documents::lock::LockError;
use crate::net::error::FetchError;
use crate::plan::bundle_plan::PlanError;
use crate::plan::site_contents::BaseError;

/// An error while packing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    /// A local I/O error.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process is writing the bundle.
    #[error("another `airbundle` is writing `{}`: wait until it finishes", .0.display())]
    Busy(PathBuf),
    /// Entries cannot be fetched.
    #[error("cannot fetch {} entries", .0.len())]
    Fetch(Vec<FetchError>),
    /// The fetched manifests make no valid bundle.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The lock is invalid.
    #[error("invalid lock")]
    Lock(#[from] LockError),
    /// A `--base` cannot be read.
    #[error("cannot use `{}` as base", .0.display())]
    Base(PathBuf, #[source] BaseError),
    /// A `--reuse` cannot be read.
    #[error("cannot reuse `{}`", .0.display())]
    Reuse(PathBuf, #[source] ReadError),
    /// A volume cannot hold the header or one frame.
    #[error("volumes of {size} bytes are too small for this bundle: at least {needed} bytes are needed")]
    VolumeSize {
        /// The requested volume size in bytes.
        size: u64,
        /// The minimum volume size in bytes.
        needed: u64,
    },
    /// The `--on-volume` command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

impl From<ClaimError> for PackError {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Fs(error) => Self::Fs(error),
            ClaimError::Busy(path) => Self::Busy(path),
        }
    }
}
