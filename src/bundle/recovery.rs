//! Recovery data: reconstructs corrupt or unreadable parts of a volume.
//!
//! The bytes of a volume are split into blocks, and the blocks are distributed over groups. Each group has
//! parity blocks; as many corrupt blocks of a group as it has parity blocks can be computed from the others
//! (`bundle-format.md`, "Recovery data"). The recovery data is a *section* of skippable frames between the
//! *front* of a volume and its *tail*, the seek table.
//!
//! Failures and defenses:
//!
//! - *Corrupt recovery data*: parity blocks have checksums too. The description, without which no repair is
//!   possible, is present three times, far apart. It is found without a seek table.
//! - *Read errors*: every block that cannot be read counts as corrupt.
//! - *Incorrect output*: each computed block is compared with its checksum and is discarded on a mismatch.
//! - *A forged description*: its numbers have limits, which bounds the memory. Its author can make the repair
//!   produce arbitrary bytes. Readers verify repaired data like all other data, so this equals a modified
//!   bundle.

pub(crate) mod block_map;
pub(crate) mod blocks;
pub(crate) mod cache;
pub(crate) mod code;
pub(crate) mod damage;
pub(crate) mod description;
pub(crate) mod encode;
pub(crate) mod find;
pub(crate) mod geometry;
pub(crate) mod group;
pub(crate) mod repair;
pub(crate) mod scan;
pub(crate) mod spill;

pub(crate) use blocks::ReadAt;
pub(crate) use damage::RecoveryError;
pub(crate) use encode::encode;
pub(crate) use geometry::{Geometry, LENGTH_LIMIT, largest_front};
pub(crate) use repair::Recovery;

#[cfg(test)]
pub(crate) mod tests;
