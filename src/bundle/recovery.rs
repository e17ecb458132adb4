//! Recovery data: what makes a bundle, or one volume of it, readable where its medium is not.
//!
//! The bytes of a volume are cut into blocks, the blocks are dealt into groups, and every group gets recovery blocks: as
//! many damaged blocks of a group as it has recovery blocks can be computed from the rest (`bundle-format.md`, "Recovery
//! data"). They stand in a *section* of skippable frames between the *front* of a volume and its *tail*, the seek table.
//!
//! What can go wrong, and what stands against it:
//!
//! - *damage in the recovery data itself*: its blocks have checksums like all others, and the description, without which
//!   nothing works, is there three times, far from each other. It is found without a seek table, too.
//! - *a read error*: it is damage of the blocks that it hits.
//! - *wrong bytes*: every block that was computed is compared with its checksum, and no other is given out.
//! - *a description that lies*: its numbers have limits, so memory has, too. Whoever writes one can make any bytes right
//!   that way. That is no worse than writing them into the bundle: what is read is still checked as always.

pub(crate) mod blocks;
pub(crate) mod code;
pub(crate) mod description;
pub(crate) mod encode;
pub(crate) mod find;
pub(crate) mod geometry;
pub(crate) mod repair;

pub(crate) use blocks::ReadAt;
pub(crate) use encode::encode;
pub(crate) use geometry::{Geometry, LENGTH_LIMIT, largest_front};
pub(crate) use repair::{Recovery, RecoveryError};

#[cfg(test)]
pub(crate) mod tests;
