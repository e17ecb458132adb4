//! Skippable frames (RFC 8878, section 3.1.2) and their magic numbers.

/// Magic number of the padding, which fills the reserved header space.
pub const PADDING_MAGIC: u32 = 0x184D_2A50;

/// Magic number of a signature.
pub const SIGNATURE_MAGIC: u32 = 0x184D_2A51;

/// Magic number of recovery data.
pub const RECOVERY_MAGIC: u32 = 0x184D_2A52;

/// Magic number of the label of a volume.
pub const VOLUME_MAGIC: u32 = 0x184D_2A53;

/// Magic number of the seek table, defined by zstd's seekable format.
pub const SEEK_TABLE_MAGIC: u32 = 0x184D_2A5E;

/// Maximum payload of a skippable frame in bytes.
pub const SKIPPABLE_LIMIT: u32 = 64 << 20;

/// Encodes a skippable frame.
#[must_use]
pub fn encode(magic: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("less than SKIPPABLE_LIMIT; please report");
    [&magic.to_le_bytes(), &len.to_le_bytes(), payload].concat()
}
