//! [`UnpackSummary`]: the result of `unbundle unpack`.

use std::time::Duration;

use serde::Serialize;

use crate::base::units::as_seconds;
use crate::bundle::format::layout::Layout;
use crate::bundle::read::problem::{DamageKind, Position};
use crate::commands::unpack::error::MissingBlob;

/// The result of one run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct UnpackSummary {
    /// Files of the bundle that are on the site now.
    pub files: usize,
    /// Images of the bundle that are on the site now.
    pub images: usize,
    /// All files and images of the bundle, selected or not.
    pub bundle: Counts,
    /// Selected images and files that are not on the site because a blob is unavailable; images first.
    #[serde(rename = "leftOut")]
    pub omitted: Vec<OmittedItem>,
    /// Blobs that a delta omits and the site does not have intact, with `--keep-going`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingBlob>,
    /// Files written.
    pub written: usize,
    /// Files that were damaged or not readable by all users, and directories that were not accessible to them.
    pub repaired: usize,
    /// Files that were already intact.
    pub kept: usize,
    /// Link files (tags, revisions, layers) and directories written.
    pub links_written: usize,
    /// Size of the files written, without links.
    pub bytes_written: u64,
    /// Positions of damaged frames that were read from another copy or repaired from recovery data.
    #[serde(rename = "mended", skip_serializing_if = "Vec::is_empty")]
    pub repaired_frames: Vec<Position>,
    /// Elapsed time; `seconds` in JSON.
    #[cfg_attr(test, schemars(with = "f64"))]
    #[serde(serialize_with = "as_seconds", rename = "seconds")]
    pub time: Duration,
}

/// A number of files and images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Counts {
    /// Number of files.
    pub files: usize,
    /// Number of images.
    pub images: usize,
}

/// An image or file that is not on the site because a blob is unavailable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OmittedItem {
    /// The reference of an image, or the path of a file.
    pub name: String,
    /// The worst kind of damage of its blobs.
    pub trouble: DamageKind,
    /// The error message.
    pub problem: String,
}

impl Counts {
    pub(crate) fn of(layout: &Layout) -> Self {
        Self { files: layout.files.len(), images: layout.images.len() }
    }
}

impl UnpackSummary {
    /// True if the site was already complete.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        self.written == 0 && self.repaired == 0 && self.links_written == 0
    }
}
