//! [`Damage`]: the corrupt parts of a volume, and [`RecoveryError`]: why it cannot be repaired.

use std::ops::Range;
use std::{fmt, io};

/// Maximum number of byte ranges in an error message.
const RANGES_IN_MESSAGE: usize = 3;

/// The corrupt parts of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    /// Byte ranges from the start of the volume. They consist of complete blocks; adjacent blocks are merged.
    pub ranges: Vec<Range<u64>>,
    /// Number of corrupt blocks, including parity blocks.
    pub blocks: u64,
    /// Groups that cannot be repaired.
    pub lost: Vec<UnrepairableGroup>,
}

impl Damage {
    /// True if the volume is intact.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// A group with more corrupt blocks than parity blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnrepairableGroup {
    /// Number of the group, from 0.
    pub group: u64,
    /// Number of corrupt blocks, including parity blocks.
    pub corrupt: u64,
    /// Maximum number of corrupt blocks that can be repaired.
    pub repairable: u64,
    /// Byte ranges of the corrupt blocks, from the start of the volume.
    pub ranges: Vec<Range<u64>>,
}

impl fmt::Display for UnrepairableGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, corrupt, repairable, ranges } = self;
        write!(
            f,
            "group {group} has {corrupt} corrupt blocks, at most {repairable} can be repaired, at bytes "
        )?;
        for (number, range) in ranges.iter().take(RANGES_IN_MESSAGE).enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{} to {}", range.start, range.end - 1)?;
        }
        match ranges.len().saturating_sub(RANGES_IN_MESSAGE) {
            0 => Ok(()),
            1 => write!(f, " and 1 more range"),
            more => write!(f, " and {more} more ranges"),
        }
    }
}

/// A failed repair.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// More blocks of a group are corrupt than it has parity blocks.
    #[error("not enough recovery data: {}", summary(.0))]
    Unrepairable(Vec<UnrepairableGroup>),
    /// A computed block of the group does not have its checksum.
    #[error("checksum mismatch in group {0} after the repair: the recovery data belongs to other content")]
    Mismatch(u64),
    /// The repaired volume cannot be written.
    #[error("cannot write the repaired volume")]
    Write(#[source] io::Error),
}

fn summary(lost: &[UnrepairableGroup]) -> String {
    let first = lost.first().map(UnrepairableGroup::to_string).unwrap_or_default();
    match lost.len() {
        0 | 1 => first,
        2 => format!("{first}; 1 more group cannot be repaired"),
        len => format!("{first}; {} more groups cannot be repaired", len - 1),
    }
}

/// Sorts the ranges and merges adjacent ones.
pub(super) fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range),
        }
    }
    merged
}
