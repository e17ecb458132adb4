//! Skippable frames (RFC 8878, section 3.1.2) and the magic numbers that a bundle uses.

/// The skippable frame that fills up the room kept for the head.
pub const PADDING_MAGIC: u32 = 0x184D_2A50;

/// The skippable frame of a signature.
pub const SIGNATURE_MAGIC: u32 = 0x184D_2A51;

/// The skippable frame of recovery data.
pub const RECOVERY_MAGIC: u32 = 0x184D_2A52;

/// The skippable frame that labels a volume.
pub const VOLUME_MAGIC: u32 = 0x184D_2A53;

/// The skippable frame of the seek table, as zstd's seekable format asks for.
pub const SEEK_TABLE_MAGIC: u32 = 0x184D_2A5E;

/// The largest skippable frame that is read, in bytes.
pub const SKIPPABLE_LIMIT: u32 = 64 << 20;

/// A skippable frame (RFC 8878, section 3.1.2).
#[must_use]
pub fn encode(magic: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("less than SKIPPABLE_LIMIT; please report");
    [&magic.to_le_bytes(), &len.to_le_bytes(), payload].concat()
}
