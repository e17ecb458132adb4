//! [`UnpackOptions`]: the destination directories and the selection.

use std::path::PathBuf;

use crate::bundle::read::select::Selection;
use crate::oci::template::RepositoryTemplate;
use crate::site::roots::NamedRoots;

/// The destination directories and the selection.
#[derive(Debug, Clone)]
pub struct UnpackOptions {
    /// The root directory of the site.
    pub site: PathBuf,
    /// The directory for files; `None`: `<site>/files`.
    pub files: Option<PathBuf>,
    /// The root of the registry's storage; `None`: `<site>/registry`.
    pub registry: Option<PathBuf>,
    /// Templates for repository names; at least one.
    pub templates: Vec<RepositoryTemplate>,
    /// The images, files and platforms to unpack.
    pub select: Selection,
    /// True to unpack intact images and files if others are damaged or missing.
    pub keep_going: bool,
    /// True to unpack a bundle that is older than one of the same name on the site.
    pub allow_older: bool,
    /// True to remove files of other bundles where this one has a directory, and the reverse.
    pub replace: bool,
}

impl UnpackOptions {
    /// Returns the directories that options name.
    pub(crate) fn named(&self) -> NamedRoots {
        NamedRoots { files: self.files.clone(), registry: self.registry.clone() }
    }

    pub(crate) fn files_root(&self) -> PathBuf {
        self.files.clone().unwrap_or_else(|| self.site.join("files"))
    }

    pub(crate) fn registry_root(&self) -> PathBuf {
        self.registry.clone().unwrap_or_else(|| self.site.join("registry"))
    }
}
