//! zstd frames (RFC 8878, section 3.1): their header, and how a bundle encodes one.

use xxhash_rust::xxh64::xxh64;

use crate::bundle::format::FRAME_SIZE;
use crate::bundle::format::seek_table::FrameEntry;
use crate::bundle::read::problem::FrameError;

pub(crate) const MAGIC: u32 = 0xFD2F_B528;

/// What a frame may be larger than its content without its checksum: headers and block headers.
pub(crate) const OVERHEAD: usize = 1 << 10;

pub(crate) const CHECKSUM_LEN: usize = 4;

/// The largest block (RFC 8878, section 3.1.1.2.4).
pub(crate) const BLOCK_LIMIT: usize = 128 << 10;

/// Of a stored frame: a content size of four bytes, single segment, checksum.
pub(crate) const STORED: u8 = 0b1010_0100;

/// How many bytes of a frame say what it is.
pub const HEAD_LEN: usize = 14;

/// Whether a frame of the size that `entry` says begins with `head`: [`HEAD_LEN`] bytes, or all if there are fewer.
#[must_use]
pub fn begins(head: &[u8], entry: FrameEntry) -> bool {
    let number =
        |at: usize| head.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four")));
    match number(0) {
        Some(MAGIC) => head.get(4).is_some_and(|descriptor| {
            Header::parse(*descriptor).is_ok_and(|header| {
                let header_len = 5 + header.rest;
                header_len <= head.len()
                    && header.content_size(&head[..header_len]) == u64::from(entry.decompressed)
                    && entry.compressed as usize <= stored_len(entry.decompressed as usize)
            })
        }),
        Some(0x184D_2A50..=0x184D_2A5F) => {
            entry.decompressed == 0 && number(4).and_then(|len| len.checked_add(8)) == Some(entry.compressed)
        }
        _ => false,
    }
}

/// What the frame header descriptor says (RFC 8878, section 3.1.1.1.1).
pub(crate) struct Header {
    /// How many bytes of the header are still to come.
    pub(crate) rest: usize,
    /// How many of those are the content size, the last ones.
    pub(crate) size_field: usize,
}

impl Header {
    pub(crate) fn parse(descriptor: u8) -> Result<Self, FrameError> {
        let single_segment = descriptor >> 5 & 1 == 1;
        if descriptor & 0b11 != 0 {
            return Err(FrameError::Foreign("that needs a dictionary"));
        }
        // zstd would pass over the other one, the unused bit: whoever set it has not written a bundle.
        if descriptor & 0b1_1000 != 0 {
            return Err(FrameError::Foreign("that sets a reserved bit"));
        }
        if descriptor & 0b100 == 0 {
            return Err(FrameError::Foreign("that has no checksum: it was not written by airbundle"));
        }
        let size_field = match descriptor >> 6 {
            0 if single_segment => 1,
            0 => {
                return Err(FrameError::Foreign(
                    "that does not state its size: it was not written by airbundle",
                ));
            }
            1 => 2,
            2 => 4,
            _ => 8,
        };
        Ok(Self { rest: usize::from(!single_segment) + size_field, size_field })
    }

    pub(crate) fn content_size(&self, bytes: &[u8]) -> u64 {
        let mut field = [0; 8];
        field[..self.size_field].copy_from_slice(&bytes[bytes.len() - self.size_field..]);
        u64::from_le_bytes(field) + if self.size_field == 2 { 256 } else { 0 }
    }
}

/// A frame that holds `content` (at most [`FRAME_SIZE`] bytes): compressed at `level`, or stored where
/// compression saves less than one part in fifty.
///
/// The result depends on nothing but its arguments and the version of this program.
#[must_use]
pub fn encode(content: &[u8], level: i32) -> Vec<u8> {
    assert!(content.len() <= FRAME_SIZE, "a frame of {} bytes; please report", content.len());
    if !compresses(content) {
        return store(content);
    }
    let mut zstd = zstd::bulk::Compressor::new(level).expect("a zstd context; please report");
    zstd.include_checksum(true).expect("zstd takes the parameter; please report");
    let frame = zstd.compress(content).expect("zstd compresses any bytes; please report");
    if frame.len() < content.len() - content.len() / 50 { frame } else { store(content) }
}

/// Whether a sample of `content`, 16 pieces of 4 KiB, shrinks at zstd's fastest level.
///
/// Layers and archives are compressed already, and zstd would take a hundred times as long as this to find
/// that out for every block of them.
pub(crate) fn compresses(content: &[u8]) -> bool {
    const PIECE: usize = 4 << 10;
    const PIECES: usize = 16;
    if content.len() <= PIECE * PIECES * 2 {
        return true;
    }
    let step = content.len() / PIECES;
    let sample: Vec<u8> =
        content.chunks(step).flat_map(|chunk| &chunk[..chunk.len().min(PIECE)]).copied().collect();
    let shrunk = zstd::bulk::compress(&sample, 1).expect("zstd compresses any bytes; please report");
    shrunk.len() < sample.len() - sample.len() / 50
}

/// A frame of raw blocks.
#[must_use]
pub fn store(content: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(stored_len(content.len()));
    frame.extend_from_slice(&MAGIC.to_le_bytes());
    frame.push(STORED);
    frame.extend_from_slice(&u32::try_from(content.len()).expect("at most FRAME_SIZE").to_le_bytes());
    let mut rest = content;
    for size in block_sizes(content.len()) {
        let (block, behind) = rest.split_at(size);
        frame.extend_from_slice(&block_header(size, behind.is_empty()));
        frame.extend_from_slice(block);
        rest = behind;
    }
    frame.extend_from_slice(&checksum(content));
    frame
}

/// How the content of a stored frame is cut: there is one block at least.
pub(crate) fn block_sizes(content_size: usize) -> impl Iterator<Item = usize> {
    let blocks = content_size.div_ceil(BLOCK_LIMIT).max(1);
    (0..blocks).map(move |number| (content_size - number * BLOCK_LIMIT).min(BLOCK_LIMIT))
}

/// The header of a raw block (RFC 8878, section 3.1.1.2).
pub(crate) fn block_header(size: usize, is_last: bool) -> [u8; 3] {
    let header = u32::try_from(size).expect("at most BLOCK_LIMIT") << 3 | u32::from(is_last);
    let [low, middle, high, _] = header.to_le_bytes();
    [low, middle, high]
}

/// What stands at the end of a frame with this content.
#[expect(clippy::cast_possible_truncation, reason = "the checksum is the low four bytes of the hash")]
pub(crate) fn checksum(content: &[u8]) -> [u8; CHECKSUM_LEN] {
    (xxh64(content, 0) as u32).to_le_bytes()
}

/// How long the frame is that [`store`] makes of `content_size` bytes; [`encode`] makes no longer one.
#[must_use]
pub fn stored_len(content_size: usize) -> usize {
    9 + 3 * content_size.div_ceil(BLOCK_LIMIT).max(1) + content_size + 4
}
