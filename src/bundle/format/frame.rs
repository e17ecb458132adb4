//! Headers and encoding of zstd frames (RFC 8878, section 3.1).

use xxhash_rust::xxh64::xxh64;

use crate::bundle::format::FRAME_SIZE;
use crate::bundle::format::seek_table::FrameEntry;
use crate::bundle::read::frame_error::FrameError;

/// Magic number of a zstd frame.
pub(crate) const MAGIC: u32 = 0xFD2F_B528;

/// Maximum size of the frame header and the block headers of one frame in bytes.
pub(crate) const OVERHEAD: usize = 1 << 10;

pub(crate) const CHECKSUM_LEN: usize = 4;

/// Maximum size of a block in bytes (RFC 8878, section 3.1.1.2.4).
pub(crate) const BLOCK_LIMIT: usize = 128 << 10;

/// Frame header descriptor of a stored (raw) frame: content size of four bytes, single segment, checksum.
pub(crate) const STORED: u8 = 0b1010_0100;

/// Maximum length of a frame header in bytes, including the magic number.
pub const HEADER_LEN: usize = 14;

/// True if `start` is the start of a frame with the sizes in `entry`. `start` has [`HEADER_LEN`] bytes, or
/// all bytes of a shorter frame.
#[must_use]
pub fn is_header_of(start: &[u8], entry: FrameEntry) -> bool {
    let number =
        |at: usize| start.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four")));
    match number(0) {
        Some(MAGIC) => start.get(4).is_some_and(|descriptor| {
            Header::parse(*descriptor).is_ok_and(|header| {
                let header_len = 5 + header.rest;
                header_len <= start.len()
                    && header.content_size(&start[..header_len]) == u64::from(entry.decompressed)
                    && entry.compressed as usize <= stored_len(entry.decompressed as usize)
            })
        }),
        Some(0x184D_2A50..=0x184D_2A5F) => {
            entry.decompressed == 0 && number(4).and_then(|len| len.checked_add(8)) == Some(entry.compressed)
        }
        _ => false,
    }
}

/// A decoded frame header descriptor (RFC 8878, section 3.1.1.1.1).
pub(crate) struct Header {
    /// Number of header bytes after the descriptor.
    pub(crate) rest: usize,
    /// Size of the content size field, the last of these bytes.
    pub(crate) size_field: usize,
}

impl Header {
    pub(crate) fn parse(descriptor: u8) -> Result<Self, FrameError> {
        let single_segment = descriptor >> 5 & 1 == 1;
        if descriptor & 0b11 != 0 {
            return Err(FrameError::Unsupported("it needs a dictionary"));
        }
        // A zstd decoder ignores the unused bit, but a bundle never sets it.
        if descriptor & 0b1_1000 != 0 {
            return Err(FrameError::Unsupported("it sets a reserved bit"));
        }
        if descriptor & 0b100 == 0 {
            return Err(FrameError::Unsupported("it has no checksum"));
        }
        let size_field = match descriptor >> 6 {
            0 if single_segment => 1,
            0 => {
                return Err(FrameError::Unsupported("it does not state its content size"));
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

/// Encodes `content` (at most [`FRAME_SIZE`] bytes) as a frame: compressed at `level`, or stored (raw) if
/// compression saves less than 1/50.
///
/// The result depends on the arguments and the version of this program only.
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

/// True if `content` is small, or if a sample of 16 pieces of 4 KiB shrinks by more than 1/50 at level 1.
///
/// Most layers and archives are compressed already. Compressing all of their content to find that out would
/// take a hundred times as long.
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

/// Encodes `content` (at most [`FRAME_SIZE`] bytes) as a frame of raw blocks.
#[must_use]
pub fn store(content: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(stored_len(content.len()));
    frame.extend_from_slice(&MAGIC.to_le_bytes());
    frame.push(STORED);
    frame.extend_from_slice(&u32::try_from(content.len()).expect("at most FRAME_SIZE").to_le_bytes());
    let mut rest = content;
    for size in block_sizes(content.len()) {
        let (block, after) = rest.split_at(size);
        frame.extend_from_slice(&block_header(size, after.is_empty()));
        frame.extend_from_slice(block);
        rest = after;
    }
    frame.extend_from_slice(&checksum(content));
    frame
}

/// Returns the sizes of the raw blocks of a stored frame, at least one.
pub(crate) fn block_sizes(content_size: usize) -> impl Iterator<Item = usize> {
    let blocks = content_size.div_ceil(BLOCK_LIMIT).max(1);
    (0..blocks).map(move |number| (content_size - number * BLOCK_LIMIT).min(BLOCK_LIMIT))
}

/// Encodes the header of a raw block (RFC 8878, section 3.1.1.2).
pub(crate) fn block_header(size: usize, is_last: bool) -> [u8; 3] {
    let header = u32::try_from(size).expect("at most BLOCK_LIMIT") << 3 | u32::from(is_last);
    let [low, middle, high, _] = header.to_le_bytes();
    [low, middle, high]
}

/// Returns the checksum of a frame with this content.
#[expect(clippy::cast_possible_truncation, reason = "the checksum is the low four bytes of the hash")]
pub(crate) fn checksum(content: &[u8]) -> [u8; CHECKSUM_LEN] {
    (xxh64(content, 0) as u32).to_le_bytes()
}

/// Returns the length of the frame from [`store`], which is the maximum length of a frame from [`encode`].
#[must_use]
pub fn stored_len(content_size: usize) -> usize {
    9 + 3 * content_size.div_ceil(BLOCK_LIMIT).max(1) + content_size + 4
}
