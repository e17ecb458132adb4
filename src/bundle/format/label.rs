//! [`Label`]: what a volume says of itself, so that nobody mistakes one for another ("Volumes").

use serde::{Deserialize, Serialize};

use crate::bundle::format::skippable::{self, VOLUME_MAGIC};
use crate::oci::digest::Digest;

/// The only version so far. One that a reader does not know tells it nothing.
const VERSION: u32 = 1;
/// The longest label that is read, in bytes.
pub const LABEL_LIMIT: usize = 1 << 10;

/// Which volume of which bundle this is, and where in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Label {
    airbundle_volume: u32,
    /// The same in all volumes of a bundle, and in no other's.
    pub set: Digest,
    /// The first one is 1.
    pub number: u32,
    /// Where the volume begins, in bytes from the start of the bundle.
    pub offset: u64,
    /// How many bytes of the tar stream stand before it, without those of the head.
    pub stream: u64,
}

impl Label {
    /// The label of a volume.
    #[must_use]
    pub fn new(set: Digest, number: u32, offset: u64, stream: u64) -> Self {
        Self { airbundle_volume: VERSION, set, number, offset, stream }
    }

    /// The skippable frame that holds it.
    #[must_use]
    pub fn to_frame(&self) -> Vec<u8> {
        let payload = serde_json::to_vec(self).expect("plain structs become JSON; please report");
        skippable::encode(VOLUME_MAGIC, &payload)
    }

    /// Reads the payload of such a frame; nothing if it is something else.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        if payload.len() > LABEL_LIMIT {
            return None;
        }
        serde_json::from_slice(payload)
            .ok()
            .filter(|label: &Self| label.airbundle_volume == VERSION && label.number > 0)
    }
}
