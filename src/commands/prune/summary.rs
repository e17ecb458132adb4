//! [`PruneSummary`]: what was removed.

use std::time::Duration;

use serde::Serialize;

use crate::base::units::as_seconds;

/// What has gone, or would go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct PruneSummary {
    /// Whether it has; otherwise it would.
    pub removed: bool,
    /// The names of images.
    pub images: Vec<String>,
    /// The paths of files.
    pub files: Vec<String>,
    /// How many links (tags, manifests and layers of repositories).
    pub links: usize,
    /// How many blobs.
    pub blobs: usize,
    /// The bytes of these.
    pub bytes: u64,
    /// The bytes of the files.
    pub file_bytes: u64,
    /// How long it took.
    #[cfg_attr(test, schemars(with = "f64"))]
    #[serde(serialize_with = "as_seconds", rename = "seconds")]
    pub time: Duration,
}

impl PruneSummary {
    /// Whether there is nothing to remove.
    #[must_use]
    pub(crate) fn is_nothing(&self) -> bool {
        self.images.is_empty() && self.files.is_empty() && self.links == 0 && self.blobs == 0
    }
}
