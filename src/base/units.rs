//! Text forms of byte counts and durations.

use std::time::Duration;

pub(crate) fn as_seconds<S: serde::Serializer>(wait: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(wait.as_secs_f64())
}

/// Maximum size in bytes that a document may state. JSON numbers up to this value are exact (RFC 8259, section 6),
/// and sums of sizes are far from overflowing.
pub(crate) const MAX_SIZE: u64 = 1 << 53;

/// Maximum size in bytes of one file or layer. Larger ones fail alone: in a bundle, they would use up [`MAX_SIZE`].
#[cfg(feature = "net")]
pub(crate) const MAX_ENTRY_SIZE: u64 = 1 << 44;

/// Deserializes a size in bytes of at most [`MAX_SIZE`].
pub(crate) fn deserialize_size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size = <u64 as serde::Deserialize>::deserialize(deserializer)?;
    if size <= MAX_SIZE {
        return Ok(size);
    }
    Err(serde::de::Error::custom(format!("invalid size {size}: expected at most {MAX_SIZE} bytes")))
}

/// Returns a byte count for users, in powers of 1,000: `512 B`, `20.3 kB`, `1.9 GB`.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_with_one_decimal_and_the_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_999, "1.0 MB"),
            (20_300_000_000, "20.3 GB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
