//! The options for sites whose files or registry storage are in other directories.

use std::path::PathBuf;

use clap::Args;

use crate::site::roots::NamedRoots;

/// The options of every verb that reads the record of a site.
#[derive(Debug, Args)]
pub(super) struct RootArgs {
    /// Directory of files, if `unpack --files` was used
    ///
    /// A record of a site cannot name a directory outside the site by itself.
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
    /// Storage directory of the registry, if `unpack --registry` was used
    #[arg(long, value_name = "DIR")]
    registry: Option<PathBuf>,
}

impl RootArgs {
    pub(super) fn named(&self) -> NamedRoots {
        NamedRoots { files: self.files.clone(), registry: self.registry.clone() }
    }
}
