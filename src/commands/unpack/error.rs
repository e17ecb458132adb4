//! [`UnpackError`]: the reasons why a bundle cannot be unpacked.

use std::path::PathBuf;

use serde::Serialize;

use crate::base::fs::FsError;
use crate::base::units::human_bytes;
use crate::bundle::format::layout::Layout;
use crate::bundle::format::release::{ReleaseName, Sequence};
use crate::bundle::read::error::{ReadError, Unavailable};
use crate::bundle::read::select::SelectError;
use crate::oci::digest::Digest;
use crate::site::record::RecordError;
use crate::site::root::RootError;
use crate::site::storage::NamesError;

/// A blob that a delta requires and the site does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MissingBlob {
    /// The digest in the bundle.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// True if a file with the right size was found, but its digest does not match.
    pub damaged: bool,
    /// The images and files that need it.
    pub owners: Vec<String>,
}

/// The reasons why a bundle cannot be unpacked. Images and files that were complete remain so; new ones may
/// have been added completely.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The documents of the bundle cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The record of the site is invalid. Nothing was changed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Blobs of the bundle are damaged or missing.
    #[error("the bundle is damaged in {owners}")]
    Damaged {
        /// The images and files that need a damaged blob.
        owners: String,
        /// The first error.
        #[source]
        source: Unavailable,
    },
    /// The site has a newer bundle of the same name. Nothing was changed.
    #[error(
        "the bundle `{name}` has the sequence number {sequence}, and `{}` has a newer one with {newest}: nothing was \
         changed", site.display()
    )]
    Older {
        /// The root directory of the site.
        site: PathBuf,
        /// The name of both bundles.
        name: ReleaseName,
        /// The sequence number of this bundle.
        sequence: Sequence,
        /// The highest sequence number on the site.
        newest: Sequence,
    },
    /// A pattern or platform of the selection matches nothing.
    #[error(transparent)]
    Select(SelectError),
    /// The site does not have the external blobs of a delta. Nothing was changed.
    #[error(
        "`{}` lacks {} that this delta omits, nothing was changed: unpack a full bundle, or pack the delta again \
         with the output of `unbundle inventory --check` of this site as `--base`", site.display(), amount(missing)
    )]
    Incomplete {
        /// The root directory of the site.
        site: PathBuf,
        /// In the order of the bundle.
        missing: Vec<MissingBlob>,
    },
    /// The source of a copy within the site changed after it was hashed.
    #[error("`{0}` changed on the site while it was copied: run the command again")]
    Changed(Digest),
    /// A file call failed.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process holds the lock.
    #[error("another `unbundle` is writing to `{}`: wait until it is done", .0.display())]
    Busy(PathBuf),
    /// A repository template cannot be applied.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// Files or directories of the site are in the way. Nothing was changed.
    #[error("{problem}; nothing was changed")]
    Obstacles {
        /// The first few of them.
        problem: String,
        /// True if all of them may be removed.
        is_replaceable: bool,
    },
    /// A file system does not support names or sizes of the bundle. Nothing was written.
    #[error(
        "cannot unpack to `{}`, nothing was written: the file system{} does not support {}", path.display(),
        file_system.as_ref().map(|name| format!(" ({name})")).unwrap_or_default(), problems.join("; ")
    )]
    Unsupported {
        /// The root of files or of the registry storage.
        path: PathBuf,
        /// The type of the file system. `None`: unknown.
        file_system: Option<String>,
        /// The unsupported names and sizes, with the entries that need them.
        problems: Vec<String>,
    },
    /// A file system has too little free space. Nothing was written.
    #[error(
        "no space left on device: `{}` has {} free, {} needed; nothing was written", path.display(),
        human_bytes(*available), human_bytes(*needed)
    )]
    Space {
        /// The directory with the staging area.
        path: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// A file system has too few free inodes. Nothing was written.
    #[error(
        "no space left on device: `{}` has {available} inodes free, {needed} needed; nothing was written",
        path.display()
    )]
    Inodes {
        /// The directory with the staging area.
        path: PathBuf,
        /// Number of inodes.
        needed: u64,
        /// Number of inodes.
        available: u64,
    },
}

impl UnpackError {
    /// The error for `lost` blobs, of which there must be at least one.
    pub(crate) fn damaged(layout: &Layout, lost: Vec<(Digest, Unavailable)>) -> Self {
        let digests: Vec<Digest> = lost.iter().map(|(digest, _)| *digest).collect();
        let (_, source) = lost.into_iter().next().expect("at least one blob is lost; please report");
        Self::Damaged { owners: layout.owners_text(&digests), source }
    }
}

impl From<SelectError> for UnpackError {
    fn from(error: SelectError) -> Self {
        match error {
            SelectError::Read(error) => Self::Read(error),
            SelectError::Fs(error) => Self::Fs(error),
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

fn amount(missing: &[MissingBlob]) -> String {
    let bytes = human_bytes(missing.iter().map(|blob| blob.size).sum());
    if let [blob] = missing {
        format!("`{}` ({bytes})", blob.digest)
    } else {
        format!("{} blobs ({bytes})", missing.len())
    }
}
