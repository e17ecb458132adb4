//! [`UnpackOptions`]: where and what to unpack.

use std::path::PathBuf;

use crate::bundle::read::select::Selection;
use crate::oci::template::RepositoryTemplate;

/// Where the parts of a bundle go.
#[derive(Debug, Clone)]
pub struct UnpackOptions {
    /// The directory of the site.
    pub site: PathBuf,
    /// Where the files go; `<site>/files` if nothing is said.
    pub files: Option<PathBuf>,
    /// Where the storage of the registry goes; `<site>/registry` if nothing is said.
    pub registry: Option<PathBuf>,
    /// The names of the images; at least one.
    pub templates: Vec<RepositoryTemplate>,
    /// What of the bundle is wanted.
    pub select: Selection,
    /// Whether what is whole becomes part of the site when something else is damaged or missing.
    pub keep_going: bool,
}
