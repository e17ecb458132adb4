//! [`PruneSummary`]: the images, files and blobs that a run removed or would remove.

use std::time::Duration;

use serde::Serialize;

use crate::base::units::as_seconds;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct PruneSummary {
    /// False in a dry run.
    pub removed: bool,
    /// Names of images on the site.
    pub images: Vec<String>,
    /// Paths of files, relative to their root.
    pub files: Vec<String>,
    /// Number of link files of tags, manifests and layers.
    pub links: usize,
    /// Number of blobs.
    pub blobs: usize,
    /// Size of the blobs in bytes.
    pub bytes: u64,
    /// Size of the files in bytes.
    pub file_bytes: u64,
    /// Elapsed time; `seconds` in JSON.
    #[cfg_attr(test, schemars(with = "f64"))]
    #[serde(serialize_with = "as_seconds", rename = "seconds")]
    pub time: Duration,
}

impl PruneSummary {
    #[must_use]
    pub(crate) fn is_nothing(&self) -> bool {
        self.images.is_empty() && self.files.is_empty() && self.links == 0 && self.blobs == 0
    }
}
