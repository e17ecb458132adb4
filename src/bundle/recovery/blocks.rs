//! Bytes that can be read at any offset, and the checksum of a block of them.

use std::fs::File;
use std::io;

use xxhash_rust::xxh64::Xxh64;

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

/// The checksum of a block that begins with `bytes` and goes on with zeros up to its size.
pub(crate) fn checksum(bytes: &[u8], block: usize) -> u64 {
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
pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).expect("it has a place in memory; please report")
}
