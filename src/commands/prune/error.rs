//! [`PruneError`]: the reasons why a site cannot be pruned.

use std::path::PathBuf;

use crate::base::fs::FsError;
use crate::base::text::listed;
use crate::oci::digest::Digest;
use crate::site::record::RecordError;
use crate::site::root::RootError;

/// Maximum number of differences in an error message.
const SHOWN: usize = 5;

/// The reasons why a site cannot be pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The contents of the site are unknown.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file call failed.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process holds the lock.
    #[error("another `unbundle` is writing to `{}`: wait until it is done", .0.display())]
    Busy(PathBuf),
    /// An image, file or blob that is kept is missing or different on the site.
    #[error(
        "nothing was removed: the site does not match what `--keep` names: {}; unpack that again, or keep something else",
        first(.0)
    )]
    Mismatch(Vec<String>),
    /// A registry may follow a symlink in its storage, so that the blobs in use are unknown.
    #[error("nothing was removed: `{}` is a link, a special file or a name that no registry writes: move it away", .0.display())]
    Irregular(PathBuf),
}

impl From<RootError> for PruneError {
    fn from(error: RootError) -> Self {
        match error {
            RootError::Fs(error) => Self::Fs(error),
            RootError::Busy(path) => Self::Busy(path),
        }
    }
}

fn first(all: &[String]) -> String {
    listed(all.iter().cloned(), SHOWN)
}

/// Returns the text for a blob that is not on the site.
pub(super) fn missing(blob: Digest) -> String {
    format!("the blob `{blob}` is missing")
}

/// Returns the text for an image or file that is not on the site as it is to be kept.
pub(super) fn difference(name: &str, exists: bool) -> String {
    let what = if exists { "differs" } else { "is missing" };
    format!("`{name}` {what}")
}
