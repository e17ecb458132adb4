//! [`FrameReader`]: splits a stream into zstd frames (RFC 8878, section 3.1) without decoding them.
//!
//! A frame of a bundle is independent, states its content size, ends with a checksum of its content, and
//! holds at most [`FRAME_SIZE`] bytes of content. A reader can therefore find the end of a frame without
//! decoding it, decode several frames in parallel in bounded memory, and report which of them are corrupt.

use std::cell::Cell;
use std::io::{self, Read};

use zstd::bulk::Decompressor;

use crate::base::buffer::{Buffer, Buffers};
use crate::bundle::format::FRAME_SIZE;
use crate::bundle::format::frame::{
    BLOCK_LIMIT, CHECKSUM_LEN, Header, MAGIC, OVERHEAD, STORED, block_header, block_sizes, checksum,
};
use crate::bundle::format::skippable::{PADDING_MAGIC, SKIPPABLE_LIMIT};
use crate::bundle::read::frame_error::FrameError;

/// A frame that was read and not decoded.
pub enum Frame {
    /// A zstd frame.
    Data(DataFrame),
    /// A skippable frame.
    Skippable {
        /// Magic number, one of sixteen.
        magic: u32,
        /// Content of the frame.
        payload: Vec<u8>,
    },
}

impl Frame {
    /// Returns the size of the decoded content in bytes; 0 for a skippable frame.
    #[must_use]
    pub fn content_size(&self) -> usize {
        match self {
            Self::Data(data) => data.content_size,
            Self::Skippable { .. } => 0,
        }
    }
}

/// A zstd frame that was read and not decoded.
pub struct DataFrame {
    content_size: usize,
    body: Body,
}

enum Body {
    /// The complete frame, including header and checksum.
    Zstd(Buffer),
    /// The content of a stored (raw) frame, and its checksum.
    Stored(Buffer, [u8; CHECKSUM_LEN]),
}

impl DataFrame {
    /// Returns the size of the decoded content in bytes.
    #[must_use]
    pub fn content_size(&self) -> usize {
        self.content_size
    }

    /// Decodes the frame and verifies its size and checksum.
    pub fn decode(self, buffers: &Buffers) -> Result<Buffer, FrameError> {
        match self.body {
            Body::Zstd(bytes) => {
                let mut content = buffers.get();
                let decode = |target: &mut [u8]| decompress(&bytes, target);
                match content.fill_in(self.content_size, decode) {
                    Ok(size) if size == self.content_size => Ok(content),
                    _ => Err(FrameError::Corrupt),
                }
            }
            Body::Stored(content, sum) if checksum(&content) == sum => Ok(content),
            Body::Stored(..) => Err(FrameError::Corrupt),
        }
    }
}

thread_local! {
    /// The decoder of this thread: to make one costs more than to decode a small frame. `None`: it is in use, or not made.
    static DECODER: Cell<Option<Decompressor<'static>>> = const { Cell::new(None) };
}

/// Decodes a frame and returns the size of its content.
fn decompress(frame: &[u8], target: &mut [u8]) -> io::Result<usize> {
    let mut decoder = DECODER.take().map_or_else(Decompressor::new, Ok)?;
    let result = decoder.decompress_to_buffer(frame, target);
    DECODER.set(Some(decoder));
    result
}

/// Reads frames one after the other. It never reads beyond the current frame.
pub struct FrameReader<R> {
    input: R,
    offset: u64,
    buffers: Buffers,
}

/// Creates a pool of buffers, each large enough for a frame or its content.
#[must_use]
pub fn buffers() -> Buffers {
    Buffers::new(FRAME_SIZE + OVERHEAD + CHECKSUM_LEN)
}

impl<R: Read> FrameReader<R> {
    /// Creates a reader of `input`, whose next byte is at `offset` of the bundle.
    pub fn new(input: R, offset: u64, buffers: &Buffers) -> Self {
        Self { input, offset, buffers: buffers.clone() }
    }

    /// Returns the offset of the next unread byte in the bundle: between frames, the offset of the next
    /// frame.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads the next frame. `None` at the end of the input.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let mut magic = [0; 4];
        match self.fill(&mut magic)? {
            0 => return Ok(None),
            4 => {}
            read if MAGIC.to_le_bytes().starts_with(&magic[..read])
                || magic[0] >> 4 == 5 && PADDING_MAGIC.to_le_bytes()[1..].starts_with(&magic[1..read]) =>
            {
                return Err(FrameError::Truncated);
            }
            _ => return Err(FrameError::Magic),
        }
        let magic = u32::from_le_bytes(magic);
        match magic {
            MAGIC => self.data_frame().map(Some),
            0x184D_2A50..=0x184D_2A5F => self.skippable_frame(magic).map(Some),
            _ => Err(FrameError::Magic),
        }
    }

    fn skippable_frame(&mut self, magic: u32) -> Result<Frame, FrameError> {
        let mut len = [0; 4];
        self.exact(&mut len)?;
        let len = u32::from_le_bytes(len);
        if len > SKIPPABLE_LIMIT {
            return Err(FrameError::Unsupported("a skippable frame that is too large"));
        }
        let mut payload = Vec::new();
        while payload.len() < len as usize {
            // In steps, so that a false length does not allocate memory.
            let start = payload.len();
            payload.resize((len as usize).min(start + BLOCK_LIMIT), 0);
            self.exact(&mut payload[start..])?;
        }
        Ok(Frame::Skippable { magic, payload })
    }

    fn data_frame(&mut self) -> Result<Frame, FrameError> {
        let mut bytes = self.buffers.get();
        bytes.push(&MAGIC.to_le_bytes());
        self.append(&mut bytes, 1)?;
        let header = Header::parse(bytes[4])?;
        self.append(&mut bytes, header.rest)?;
        let content_size = header.content_size(&bytes);
        if content_size > FRAME_SIZE as u64 {
            return Err(FrameError::Unsupported("its content exceeds 4 MiB"));
        }
        let content_size = usize::try_from(content_size).expect("at most FRAME_SIZE");
        let body = if bytes[4] == STORED {
            self.stored_blocks(bytes, content_size)?
        } else {
            let mut block = [0; 3];
            self.exact(&mut block)?;
            self.blocks(bytes, block, content_size)?
        };
        Ok(Frame::Data(DataFrame { content_size, body }))
    }

    /// Reads the raw blocks of a stored frame directly into a content buffer, which avoids a copy. If other
    /// blocks follow, falls back to [`Self::blocks`]. `bytes` is the header of the frame.
    fn stored_blocks(&mut self, mut bytes: Buffer, content_size: usize) -> Result<Body, FrameError> {
        let mut content = self.buffers.get();
        for size in block_sizes(content_size) {
            let is_last = content.len() + size == content_size;
            let mut block = [0; 3];
            self.exact(&mut block)?;
            if block != block_header(size, is_last) {
                for stored in content.chunks(BLOCK_LIMIT) {
                    bytes.push(&block_header(stored.len(), false));
                    bytes.push(stored);
                }
                return self.blocks(bytes, block, content_size);
            }
            self.append(&mut content, size)?;
        }
        let mut sum = [0; CHECKSUM_LEN];
        self.exact(&mut sum)?;
        Ok(Body::Stored(content, sum))
    }

    /// Reads all further blocks and the checksum. `bytes` is the frame so far, `block` the header of the next
    /// block.
    fn blocks(
        &mut self,
        mut bytes: Buffer,
        mut block: [u8; 3],
        content_size: usize,
    ) -> Result<Body, FrameError> {
        loop {
            bytes.push(&block);
            let header = u32::from_le_bytes([block[0], block[1], block[2], 0]);
            let size = (header >> 3) as usize;
            let stored = match header >> 1 & 3 {
                0 | 2 => size,
                1 => 1,
                _ => return Err(FrameError::Unsupported("it has a block of the reserved type")),
            };
            if size > BLOCK_LIMIT || bytes.len() + stored > content_size + OVERHEAD {
                return Err(FrameError::Unsupported("it is larger than its content"));
            }
            self.append(&mut bytes, stored)?;
            if header & 1 == 1 {
                break;
            }
            self.exact(&mut block)?;
        }
        self.append(&mut bytes, CHECKSUM_LEN)?;
        Ok(Body::Zstd(bytes))
    }

    /// Appends exactly `len` bytes of the input.
    fn append(&mut self, bytes: &mut Buffer, len: usize) -> Result<(), FrameError> {
        let read = bytes.fill_in(len, |target| fill(&mut self.input, target)).map_err(FrameError::of)?;
        self.offset += read as u64;
        if read == len { Ok(()) } else { Err(FrameError::Truncated) }
    }

    fn exact(&mut self, bytes: &mut [u8]) -> Result<(), FrameError> {
        if self.fill(bytes)? == bytes.len() { Ok(()) } else { Err(FrameError::Truncated) }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<usize, FrameError> {
        let len = fill(&mut self.input, bytes).map_err(FrameError::of)?;
        self.offset += len as u64;
        Ok(len)
    }
}

/// Reads until `bytes` is full or the input ends. Returns the number of bytes read.
fn fill(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < bytes.len() {
        match input.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::format::frame::{encode, store, stored_len};
    use crate::bundle::format::skippable;

    /// Bytes that do not compress.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .flatten()
        .take(len)
        .collect()
    }

    fn read_one(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        FrameReader::new(bytes, 0, &buffers()).next_frame()
    }

    fn decode_one(bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
        match read_one(bytes)? {
            Some(Frame::Data(data)) => Ok(data.decode(&buffers())?.to_vec()),
            _ => Err(FrameError::Magic),
        }
    }

    #[test]
    fn encoded_frames_decode_to_their_content() {
        for content in [
            vec![],
            vec![7],
            vec![0; 300],
            noise(255),
            noise(256),
            noise(70_000),
            vec![0; FRAME_SIZE],
            noise(FRAME_SIZE),
            noise(BLOCK_LIMIT * 3),
        ] {
            for frame in [encode(&content, 3), store(&content)] {
                assert!(frame.len() <= stored_len(content.len()));
                assert_eq!(read_one(&frame).unwrap().unwrap().content_size(), content.len());
                assert!(decode_one(&frame).unwrap() == content);
            }
        }
    }

    #[test]
    fn incompressible_content_is_stored_and_text_is_compressed() {
        assert_eq!(encode(&noise(1 << 20), 19), store(&noise(1 << 20)));
        assert!(encode(&b"text ".repeat(100_000), 3).len() < 1000);
    }

    #[test]
    fn a_frame_that_begins_with_raw_blocks_decodes() {
        let content = [noise(2 * BLOCK_LIMIT), vec![0; 2 * BLOCK_LIMIT]].concat();
        let mut zstd = zstd::bulk::Compressor::new(3).unwrap();
        zstd.include_checksum(true).unwrap();
        let frame = zstd.compress(&content).unwrap();
        // Its first block is that of a stored frame, and a compressed block follows.
        assert_eq!(frame[..12 + BLOCK_LIMIT], store(&content)[..12 + BLOCK_LIMIT]);
        assert!(frame.len() < 3 * BLOCK_LIMIT);
        assert!(decode_one(&frame).unwrap() == content);
    }

    #[test]
    fn a_skippable_frame_keeps_its_payload() {
        let frame = skippable::encode(PADDING_MAGIC, b"abc");
        let Some(Frame::Skippable { magic, payload }) = read_one(&frame).unwrap() else { panic!() };
        assert_eq!((magic, &payload[..]), (PADDING_MAGIC, &b"abc"[..]));
    }

    #[test]
    fn every_truncation_of_a_frame_is_an_error() {
        let frame = encode(&noise(1000), 3);
        assert!(read_one(&[]).unwrap().is_none());
        for len in 1..frame.len() {
            assert!(read_one(&frame[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn every_flipped_bit_is_an_error_or_changes_nothing() {
        let content = [noise(300), vec![0; 300]].concat();
        for frame in [encode(&content, 3), store(&content)] {
            for bit in 0..frame.len() * 8 {
                let mut bad = frame.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                if let Ok(decoded) = decode_one(&bad) {
                    assert_eq!(decoded, content, "bit {bit}");
                }
            }
        }
    }

    #[test]
    fn frames_that_need_unbounded_memory_are_an_error() {
        let bomb = zstd::bulk::compress(&vec![0; FRAME_SIZE + 1], 3).unwrap();
        assert!(matches!(read_one(&bomb), Err(FrameError::Unsupported(_))));
        let huge = [&PADDING_MAGIC.to_le_bytes()[..], &u32::MAX.to_le_bytes()].concat();
        assert!(matches!(read_one(&huge), Err(FrameError::Unsupported(_))));
        // An endless sequence of empty blocks, with the header of a stored frame and with another one.
        for header in [&[STORED][..], &[STORED & !0b0010_0000, 0]] {
            let size = u32::try_from(FRAME_SIZE).unwrap().to_le_bytes();
            let endless = [&MAGIC.to_le_bytes(), header, &size, &vec![0; 2 * FRAME_SIZE]].concat();
            assert!(matches!(read_one(&endless), Err(FrameError::Unsupported(_))));
        }
        assert!(matches!(read_one(b"PK\x03\x04"), Err(FrameError::Magic)));
    }
}
