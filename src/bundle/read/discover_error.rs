//! [`DiscoverError`]: no bundle was found, or more than one.

use std::path::PathBuf;

use crate::base::fs::FsError;

/// No bundle was found, or more than one.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// A file or directory cannot be read.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A directory without a bundle.
    #[error("no bundle in `{}`: expected a file named `*.tar.zst` or `*.tar.zst.001`", .0.display())]
    Nothing(PathBuf),
    /// Several bundles.
    #[error("found several bundles: {}: specify one file, or any volume of one bundle", .0.join("; "))]
    Several(Vec<String>),
    /// Several bundles, none of which is complete.
    #[error("found several bundles, none of which is complete: {}: add what is missing, or specify any volume of one \
             bundle", .0.join("; "))]
    Incomplete(Vec<String>),
    /// Several paths, one of which is a complete bundle.
    #[error("`{0}` is not a volume: it cannot be combined with other paths")]
    NotAVolume(String),
}
