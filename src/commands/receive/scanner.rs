//! [`Scanner`]: finds intact frames in a stream of which parts are missing or changed.

use std::io::{self, Read};

use crate::base::buffer::Buffers;
use crate::bundle::format::frame::{CHECKSUM_LEN, MAGIC, OVERHEAD};
use crate::bundle::format::label::Label;
use crate::bundle::format::seek_table::{self, FrameEntry};
use crate::bundle::format::skippable::{
    PADDING_MAGIC, RECOVERY_MAGIC, SEEK_TABLE_MAGIC, SIGNATURE_MAGIC, SKIPPABLE_LIMIT, VOLUME_MAGIC,
};
use crate::bundle::format::{FRAME_SIZE, OCI_LAYOUT};
use crate::bundle::read::frame_reader::{self, Frame, FrameReader};
use crate::signature::Signature;

/// Maximum size of a data frame in bytes.
const DATA_LIMIT: usize = FRAME_SIZE + OVERHEAD + CHECKSUM_LEN;
/// Number of consumed bytes after which the buffer is moved.
const SLACK: usize = 16 << 20;
/// Number of bytes that a read requests.
const READ: usize = 1 << 20;

/// An intact frame.
pub(super) struct ScannedFrame {
    pub(super) kind: FrameKind,
    pub(super) bytes: Vec<u8>,
    /// Sizes as in the seek table.
    pub(super) entry: FrameEntry,
    /// True if bytes before it were skipped.
    pub(super) is_after_gap: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// The data frame that begins a bundle.
    Start,
    Data,
    Label(Label),
    SeekTable(Vec<FrameEntry>),
    Recovery,
    /// A signature or padding.
    Other,
}

/// Finds intact frames; see the module.
pub(super) struct Scanner<R> {
    input: R,
    buffer: Vec<u8>,
    /// Offset of the next byte in `buffer`.
    start: usize,
    is_at_end: bool,
    buffers: Buffers,
}

impl<R: Read> Scanner<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, buffer: Vec::new(), start: 0, is_at_end: false, buffers: frame_reader::buffers() }
    }

    /// Returns the next intact frame. `None` at the end of the stream.
    pub(super) fn next_frame(&mut self) -> io::Result<Option<ScannedFrame>> {
        let mut is_after_gap = false;
        loop {
            if self.fill(8)? == 0 {
                return Ok(None);
            }
            if let Some((kind, len, decompressed)) = self.frame_here()? {
                let bytes = self.buffer[self.start..self.start + len].to_vec();
                self.start += len;
                let compressed = u32::try_from(len).expect("at most a frame; please report");
                let entry = FrameEntry { compressed, decompressed };
                return Ok(Some(ScannedFrame { kind, bytes, entry, is_after_gap }));
            }
            is_after_gap = true;
            self.start += 1;
            let rest = &self.buffer[self.start..];
            self.start += rest.windows(4).position(is_magic).unwrap_or(rest.len().saturating_sub(3));
        }
    }

    /// Returns kind, length and content size of the frame at the next byte. `None`: there is no intact frame.
    fn frame_here(&mut self) -> io::Result<Option<(FrameKind, usize, u32)>> {
        let header = &self.buffer[self.start..];
        if header.len() < 8 || !is_magic(&header[..4]) {
            return Ok(None);
        }
        if header[..4] == MAGIC.to_le_bytes() {
            self.fill(DATA_LIMIT)?;
            return Ok(self.data_frame());
        }
        let len = u32::from_le_bytes(header[4..8].try_into().expect("four bytes; please report"));
        if len > SKIPPABLE_LIMIT {
            return Ok(None);
        }
        let len = 8 + len as usize;
        // The length has no checksum: what follows has to be a frame, too.
        let filled = self.fill(len + 4)?;
        let rest = &self.buffer[self.start..];
        if filled < len || filled > len && !rest.get(len..len + 4).is_some_and(is_magic) {
            return Ok(None);
        }
        let magic = u32::from_le_bytes(rest[..4].try_into().expect("four bytes; please report"));
        Ok(skippable_kind(magic, &rest[8..len]).map(|kind| (kind, len, 0)))
    }

    fn data_frame(&self) -> Option<(FrameKind, usize, u32)> {
        let rest = &self.buffer[self.start..];
        let mut frames = FrameReader::new(&rest[..rest.len().min(DATA_LIMIT)], 0, &self.buffers);
        let Frame::Data(data) = frames.next_frame().ok()?? else { return None };
        let content = data.decode(&self.buffers).ok()?;
        let is_start =
            content.strip_prefix(OCI_LAYOUT.as_bytes()).is_some_and(|rest| rest.first() == Some(&0));
        let kind = if is_start { FrameKind::Start } else { FrameKind::Data };
        Some((kind, usize::try_from(frames.offset()).ok()?, u32::try_from(content.len()).ok()?))
    }

    /// Reads until the buffer has `len` unconsumed bytes, or the stream ends. Returns the number of unconsumed bytes.
    fn fill(&mut self, len: usize) -> io::Result<usize> {
        if self.start > SLACK {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        while self.buffer.len() - self.start < len && !self.is_at_end {
            let missing = len - (self.buffer.len() - self.start);
            let read = (&mut self.input).take(missing.max(READ) as u64).read_to_end(&mut self.buffer)?;
            self.is_at_end = read == 0;
        }
        Ok(self.buffer.len() - self.start)
    }
}

/// True if the four bytes are the magic number of a frame (RFC 8878, sections 3.1.1 and 3.1.2).
fn is_magic(bytes: &[u8]) -> bool {
    bytes == MAGIC.to_le_bytes() || bytes[0] & 0xf0 == 0x50 && bytes[1..] == PADDING_MAGIC.to_le_bytes()[1..]
}

/// Returns the kind of a skippable frame. `None`: it is not one of a bundle.
fn skippable_kind(magic: u32, payload: &[u8]) -> Option<FrameKind> {
    match magic {
        VOLUME_MAGIC => Label::parse(payload).map(FrameKind::Label),
        SEEK_TABLE_MAGIC => seek_table::decode(payload).map(FrameKind::SeekTable),
        RECOVERY_MAGIC => Some(FrameKind::Recovery),
        SIGNATURE_MAGIC => Signature::parse(payload).map(|_| FrameKind::Other),
        PADDING_MAGIC => payload.iter().all(|byte| *byte == 0).then_some(FrameKind::Other),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::format::frame::encode;
    use crate::bundle::format::skippable;
    use crate::oci::digest::Digest;

    #[test]
    fn intact_frames_are_found_between_damaged_ones() {
        let label = Label::new(Digest::of(b"set"), 2, 100, 50);
        let frames = [
            encode(b"one", 3),
            label.to_frame(),
            encode(&[7; 5000], 3),
            skippable::encode(RECOVERY_MAGIC, &[1; 100]),
            encode(b"four", 3),
        ];
        let kinds =
            [FrameKind::Data, FrameKind::Label(label), FrameKind::Data, FrameKind::Recovery, FrameKind::Data];
        let scan = |bytes: &[u8]| {
            let mut scanner = Scanner::new(bytes);
            let next =
                || scanner.next_frame().unwrap().map(|frame| (frame.bytes, frame.kind, frame.is_after_gap));
            std::iter::from_fn(next).collect::<Vec<_>>()
        };
        let all = scan(&frames.concat());
        assert_eq!(all.iter().map(|(bytes, ..)| bytes.clone()).collect::<Vec<_>>(), frames);
        assert!(all.iter().zip(&kinds).all(|((_, kind, gap), expected)| kind == expected && !gap));
        // One frame is lost, or only its end, or has garbage before it.
        for lost in 0..frames.len() {
            for (len, garbage) in
                [(0, &b""[..]), (frames[lost].len() - 1, b""), (0, b"\x28\xb5\x2f\xfd\x24\x03")]
            {
                let mut bytes = frames.to_vec();
                bytes[lost].truncate(len);
                bytes[lost].splice(0..0, garbage.iter().copied());
                let found: Vec<_> = scan(&bytes.concat()).into_iter().map(|(bytes, ..)| bytes).collect();
                let expected: Vec<_> = frames
                    .iter()
                    .enumerate()
                    .filter(|(number, _)| *number != lost)
                    .map(|(_, f)| f.clone())
                    .collect();
                assert_eq!(found, expected, "{lost} {len}");
            }
        }
    }
}
