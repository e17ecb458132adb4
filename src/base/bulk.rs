//! Writing of bulk data, in pieces.
//!
//! A `write` of several MiB makes the file system allocate large folios. On virtual machines that report free pages to
//! their host, that memory is cold: copying into it takes longer than everything else together. Pieces of 64 KiB reuse
//! warm pages, and are as fast on other machines.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;

/// Maximum bytes of a `write` call.
const PIECE: usize = 64 << 10;

/// Writes all bytes.
pub(crate) fn write_all(file: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    bytes.chunks(PIECE).try_for_each(|piece| file.write_all(piece))
}

/// Writes all bytes at an offset.
pub(crate) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut offsets = (offset..).step_by(PIECE);
    bytes.chunks(PIECE).try_for_each(|piece| {
        file.write_all_at(piece, offsets.next().expect("offsets do not end; please report"))
    })
}

/// Returns the bytes of the next `write` call.
#[must_use]
pub(crate) fn piece(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(PIECE)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_each_other() {
        let bytes: Vec<u8> = (0..=250).cycle().take(3 * PIECE + 5).collect();
        let mut file = tempfile::tempfile().unwrap();
        write_all(&mut file, &bytes).unwrap();
        write_all_at(&file, &bytes, bytes.len() as u64).unwrap();
        let mut written = vec![0; 2 * bytes.len()];
        file.read_exact_at(&mut written, 0).unwrap();
        assert_eq!(written, [bytes.clone(), bytes.clone()].concat());
        assert_eq!(file.metadata().unwrap().len(), written.len() as u64);
        assert_eq!((piece(&bytes).len(), piece(&bytes[..5]).len()), (PIECE, 5));
    }
}
