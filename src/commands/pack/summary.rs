//! [`PackSummary`]: the result of `pack`.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::base::json::text_of;
use crate::base::units::as_seconds;
use crate::bundle::write::volume_writer::FinishedVolume;
use crate::net::error::FetchError;
use crate::oci::digest::Digest;

/// The result of `pack`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct PackSummary {
    /// The digest of `index.json`.
    pub identity: Digest,
    /// Number of files.
    pub files: usize,
    /// Number of images.
    pub images: usize,
    /// Number of distinct blobs in the bundle, manifests included.
    pub blobs: usize,
    /// Total size of those blobs in bytes.
    pub bytes: u64,
    /// Number of external blobs: referenced and omitted, as the site has them.
    pub blobs_left_out: usize,
    /// Total size of external blobs in bytes.
    pub bytes_left_out: u64,
    /// True if the bundle was there already, and nothing was written.
    #[serde(rename = "upToDate")]
    pub is_up_to_date: bool,
    /// Bytes fetched, without retransmissions. The file set, which is generated, is not included; unpinned
    /// files that turn out to be duplicates are.
    pub bytes_fetched: u64,
    /// Bytes fetched by an interrupted run.
    pub bytes_resumed: u64,
    /// Bytes copied from older bundles.
    pub bytes_reused: u64,
    /// Bytes saved by deduplication between images and files.
    pub bytes_shared: u64,
    /// Size of the bundle in bytes.
    pub bundle_size: u64,
    /// Duration of the run.
    #[cfg_attr(test, schemars(with = "f64"))]
    #[serde(serialize_with = "as_seconds", rename = "seconds")]
    pub time: Duration,
    /// The volumes. Empty: one file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<PackedVolume>,
    /// The failures because of which images and files are missing.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    #[serde(serialize_with = "as_texts")]
    pub missing: Vec<FetchError>,
}

/// A finished volume.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct PackedVolume {
    /// The path at which it was finished; the `--on-volume` command may have removed it.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Digest of the file.
    pub digest: Digest,
}

impl PackedVolume {
    #[must_use]
    pub(super) fn new(path: &Path, size: u64, digest: Digest) -> Self {
        Self { path: text_of(path), size, digest }
    }
}

impl From<FinishedVolume> for PackedVolume {
    fn from(volume: FinishedVolume) -> Self {
        Self::new(&volume.path, volume.size, volume.digest)
    }
}

fn as_texts<S: serde::Serializer>(failures: &[FetchError], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(failures.iter().map(ToString::to_string))
}
