//! [`UnpackError`]: why nothing, or not everything, was unpacked.

use std::path::PathBuf;

use serde::Serialize;

use crate::base::fs::FsError;
use crate::bundle::read::error::{ReadError, Unavailable};
use crate::bundle::read::select::SelectError;
use crate::oci::digest::Digest;
use crate::site::root::RootError;
use crate::site::storage::NamesError;

/// A blob that a site should have and has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MissingBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Whether something is in its place that has other bytes.
    pub damaged: bool,
    /// The images and files that need it.
    pub owners: Vec<String>,
}

/// Why a site is not complete. What was complete before still is, and what was added is whole.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
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
        source: Unavailable,
    },
    /// Nothing can be selected so.
    #[error(transparent)]
    Select(SelectError),
    /// The site has not what a delta leaves out. Nothing was changed.
    #[error(
        "`{}` lacks {} that this delta leaves out, and nothing was changed: unpack a full bundle, or pack the delta \
         anew, with what `unbundle inventory --check` says of this site as `--base`", site.display(), amount(missing)
    )]
    Incomplete {
        /// The directory of the site.
        site: PathBuf,
        /// All that it lacks, in the order of the bundle.
        missing: Vec<MissingBlob>,
    },
    /// What was to be copied within the site is not what it was when it was looked at.
    #[error("`{0}` has changed on the site while it was copied: run it again")]
    Changed(Digest),
    /// The file system says no.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process is writing.
    #[error("another `unbundle` is writing to `{}`: wait until it is done", .0.display())]
    Busy(PathBuf),
    /// Images cannot have their names.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// There is not enough room.
    #[error(
        "`{}` has {} free and {} is needed: nothing was written", path.display(), human(*available),
        human(*needed)
    )]
    Space {
        /// The directory whose file system is too small.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// There are not enough inodes.
    #[error("`{}` has room for {available} more files and {needed} are needed: nothing was written", path.display())]
    Inodes {
        /// The directory whose file system has too few.
        path: PathBuf,
        /// Inodes needed.
        needed: u64,
        /// Inodes free.
        available: u64,
    },
}

impl From<SelectError> for UnpackError {
    fn from(error: SelectError) -> Self {
        match error {
            SelectError::Read(error) => Self::Read(error),
            other => Self::Select(other),
        }
    }
}

impl From<RootError> for UnpackError {
    fn from(error: RootError) -> Self {
        match error {
            RootError::Fs(error) => Self::Fs(error),
            RootError::Busy(path) => Self::Busy(path),
        }
    }
}

pub(crate) fn amount(missing: &[MissingBlob]) -> String {
    let bytes = human(missing.iter().map(|blob| blob.size).sum());
    if let [blob] = missing {
        format!("`{}` ({bytes})", blob.digest)
    } else {
        format!("{} blobs ({bytes})", missing.len())
    }
}

pub(crate) fn human(bytes: u64) -> String {
    crate::base::units::human_bytes(bytes)
}
