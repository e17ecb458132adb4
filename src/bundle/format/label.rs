//! [`Label`]: identifies a volume and its position in the bundle ("Volumes").

use serde::{Deserialize, Serialize};

use crate::base::units::MAX_SIZE;
use crate::bundle::format::skippable::{self, VOLUME_MAGIC};
use crate::oci::digest::Digest;

/// The only version of labels. A reader ignores labels of other versions.
const VERSION: u32 = 1;
/// Maximum length of a label in bytes.
pub const LABEL_LIMIT: usize = 1 << 10;

/// The label of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Label {
    airbundle_volume: u32,
    /// Identifies the bundle: equal in all of its volumes, and different from those of other bundles.
    pub set: Digest,
    /// Number of the volume, from 1.
    pub number: u32,
    /// Offset of the volume in the bundle, in bytes.
    pub offset: u64,
    /// Number of bytes of the tar stream in the volumes before this one, without the head.
    pub stream: u64,
}

impl Label {
    /// Creates a label of the current version.
    #[must_use]
    pub fn new(set: Digest, number: u32, offset: u64, stream: u64) -> Self {
        Self { airbundle_volume: VERSION, set, number, offset, stream }
    }

    /// Encodes the label as a skippable frame.
    #[must_use]
    pub fn to_frame(&self) -> Vec<u8> {
        let payload = serde_json::to_vec(self).expect("plain structs serialize; please report");
        skippable::encode(VOLUME_MAGIC, &payload)
    }

    /// Parses the payload of the frame. `None` if it is not a label of this version.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        if payload.len() > LABEL_LIMIT {
            return None;
        }
        serde_json::from_slice(payload)
            .ok()
            .filter(|label: &Self| label.airbundle_volume == VERSION && label.number > 0)
            .filter(|label| label.offset.max(label.stream) <= MAX_SIZE)
    }
}
