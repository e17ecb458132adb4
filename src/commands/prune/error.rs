//! [`PruneError`]: why nothing was removed.

use std::path::PathBuf;

use crate::base::fs::FsError;
use crate::site::record::RecordError;
use crate::site::root::RootError;

/// How many things are named in an error.
pub(crate) const SHOWN: usize = 5;

/// Why nothing was removed, or not all.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// Nobody knows what the site holds.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The file system says no.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process is writing.
    #[error("another `unbundle` is writing to `{}`: wait until it is done", .0.display())]
    Busy(PathBuf),
    /// The site is not what the kept bundles make of it.
    #[error(
        "nothing was removed, as the site is not what is to be kept: {}; unpack it (again), or keep other bundles",
        first(.0)
    )]
    Mismatch(Vec<String>),
    /// Something in the storage of which nobody knows what it keeps in use.
    #[error(
        "nothing was removed, as `{}` is neither a file nor a directory: nobody can say what a registry finds there", .0.display()
    )]
    Odd(PathBuf),
}

impl From<RootError> for PruneError {
    fn from(error: RootError) -> Self {
        match error {
            RootError::Fs(error) => Self::Fs(error),
            RootError::Busy(path) => Self::Busy(path),
        }
    }
}

pub(crate) fn first(all: &[String]) -> String {
    let shown = all[..all.len().min(SHOWN)].join(", ");
    let more = all.len().saturating_sub(SHOWN);
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}
