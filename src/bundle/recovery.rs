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

mod code;
mod description;
mod encode;
mod find;
mod geometry;
mod repair;

use std::fs::File;
use std::io;

use xxhash_rust::xxh64::Xxh64;

pub use encode::encode;
pub use geometry::{LENGTH_LIMIT, PAYLOAD_LIMIT, SHARES, Shape, largest_front};
pub use repair::{Damage, LostGroup, Recovery, RecoveryError};

/// Bytes that are read at any place: a volume, or what of it is protected.
pub trait ReadAt {
    /// Reads what stands at `offset`, at most as many bytes as fit into `bytes`. None at the end, and behind it.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, bytes, offset)
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let len = rest.len().min(bytes.len());
        bytes[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self[..].read_at(offset, bytes)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        (**self).read_at(offset, bytes)
    }
}

/// Fills `bytes` with what stands at `offset`; an error, too, if the input ends before.
fn read_exact_at(input: &(impl ReadAt + ?Sized), mut offset: u64, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match input.read_at(offset, bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                offset += read as u64;
                bytes = &mut bytes[read..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The checksum of a block that begins with `bytes` and goes on with zeros up to its size.
fn checksum(bytes: &[u8], block: usize) -> u64 {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut hash = Xxh64::new(0);
    hash.update(bytes);
    let mut left = block - bytes.len();
    while left > 0 {
        let len = left.min(ZEROS.len());
        hash.update(&ZEROS[..len]);
        left -= len;
    }
    hash.digest()
}

/// A number of bytes or blocks that are in memory.
fn index(number: u64) -> usize {
    usize::try_from(number).expect("it has a place in memory; please report")
}

#[cfg(test)]
mod tests;
