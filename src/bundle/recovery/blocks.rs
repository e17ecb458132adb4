//! [`ReadAt`]: random access to bytes, and the checksum of a block.

use std::fs::File;
use std::io;

use xxhash_rust::xxh64::Xxh64;

/// Random access to bytes: a volume, or its protected bytes.
pub trait ReadAt {
    /// Reads up to `bytes.len()` bytes at `offset`. Returns the number of bytes read, 0 at or after the end.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize>;

    /// Returns the number of copies of these bytes, of which any can be corrupt.
    fn copies(&self) -> usize {
        1
    }

    /// Like [`ReadAt::read_at`], from one of the copies.
    fn read_copy_at(&self, _copy: usize, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.read_at(offset, bytes)
    }
}

/// One of the copies of `source`.
pub(crate) struct OneCopy<'a, T: ReadAt + ?Sized> {
    pub(crate) source: &'a T,
    pub(crate) copy: usize,
}

impl<T: ReadAt + ?Sized> ReadAt for OneCopy<'_, T> {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.source.read_copy_at(self.copy, offset, bytes)
    }
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

    fn copies(&self) -> usize {
        (**self).copies()
    }

    fn read_copy_at(&self, copy: usize, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        (**self).read_copy_at(copy, offset, bytes)
    }
}

/// Fills `bytes` from `offset`. Fails with `UnexpectedEof` if the input is too short.
pub(crate) fn read_exact_at(
    input: &(impl ReadAt + ?Sized),
    mut offset: u64,
    mut bytes: &mut [u8],
) -> io::Result<()> {
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

/// Returns the checksum (XXH64, seed 0) of `bytes` padded with zeros to `block_size`.
pub(crate) fn checksum(bytes: &[u8], block_size: usize) -> u64 {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut hash = Xxh64::new(0);
    hash.update(bytes);
    let mut left = block_size - bytes.len();
    while left > 0 {
        let len = left.min(ZEROS.len());
        hash.update(&ZEROS[..len]);
        left -= len;
    }
    hash.digest()
}

/// Converts a number of bytes or blocks in memory.
pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).expect("it fits in memory; please report")
}
