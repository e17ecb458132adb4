//! The seek table at the end of a bundle: the sizes of all frames (zstd's seekable format, version 0.1.0).

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use crate::bundle::format::FRAME_SIZE;
use crate::bundle::format::skippable::{self, SEEK_TABLE_MAGIC, SKIPPABLE_LIMIT};

const FOOTER_MAGIC: u32 = 0x8F92_EAB1;

/// Length of the footer in bytes: number of entries, descriptor, magic number.
pub(crate) const FOOTER_LEN: usize = 9;
const ENTRY_LEN: usize = 8;
/// Size of the smallest frame in bytes, a skippable frame without payload (RFC 8878, section 3.1.2). It limits the table
/// of a bundle to the size of the bundle.
const MIN_FRAME: u32 = 8;

/// The sizes of a frame. Skippable frames have entries, the frame of the seek table has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// Size of the frame in bytes.
    pub compressed: u32,
    /// Size of the decoded content in bytes; 0 for a skippable frame.
    pub decompressed: u32,
}

/// Encodes `entries` as a skippable frame.
#[must_use]
pub fn encode(entries: &[FrameEntry]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(entries.len() * ENTRY_LEN + FOOTER_LEN);
    for entry in entries {
        payload.extend_from_slice(&entry.compressed.to_le_bytes());
        payload.extend_from_slice(&entry.decompressed.to_le_bytes());
    }
    payload.extend_from_slice(
        &u32::try_from(entries.len()).expect("the number of frames is limited; please report").to_le_bytes(),
    );
    payload.push(0); // descriptor: no checksums in the table, because each frame has its own
    payload.extend_from_slice(&FOOTER_MAGIC.to_le_bytes());
    skippable::encode(SEEK_TABLE_MAGIC, &payload)
}

/// Decodes the payload of the frame. `None` if it is not a seek table.
#[must_use]
pub fn decode(payload: &[u8]) -> Option<Vec<FrameEntry>> {
    let (entries, footer) = payload.split_at_checked(payload.len().checked_sub(FOOTER_LEN)?)?;
    let count = u32::from_le_bytes(footer[..4].try_into().ok()?) as usize;
    let is_valid = footer[4] == 0
        && footer[5..] == FOOTER_MAGIC.to_le_bytes()
        && count.checked_mul(ENTRY_LEN) == Some(entries.len());
    is_valid.then(|| {
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        entries
            .chunks_exact(ENTRY_LEN)
            .map(|entry| FrameEntry { compressed: number(&entry[..4]), decompressed: number(&entry[4..]) })
            .collect()
    })
}

/// Returns the length of the frame that ends with `footer`. `None` if `footer` is not that of a seek table.
pub(crate) fn len_before(footer: &[u8; FOOTER_LEN]) -> Option<u64> {
    let count = u64::from(u32::from_le_bytes(footer[..4].try_into().expect("four bytes")));
    (footer[5..] == FOOTER_MAGIC.to_le_bytes()).then_some(8 + count * ENTRY_LEN as u64 + FOOTER_LEN as u64)
}

/// True if `input` ends with the footer of a seek table. Reads the footer only.
pub fn has_footer<R: Read + Seek>(input: &mut R) -> io::Result<bool> {
    let len = input.seek(SeekFrom::End(0))?;
    let mut footer = [0; FOOTER_LEN];
    if len < FOOTER_LEN as u64 {
        return Ok(false);
    }
    input.seek(SeekFrom::Start(len - FOOTER_LEN as u64))?;
    input.read_exact(&mut footer)?;
    Ok(footer[4..] == [&[0][..], &FOOTER_MAGIC.to_le_bytes()].concat())
}

/// Reads the seek table at the end of `input`. `None` if there is none, or if its sizes do not match the
/// length of `input`.
pub fn read<R: Read + Seek>(input: &mut R) -> io::Result<Option<Vec<FrameEntry>>> {
    let len = input.seek(SeekFrom::End(0))?;
    let is_of_input = |(entries, frame_len): &(Vec<FrameEntry>, u64)| {
        bundle_len(entries, *frame_len) == len && is_valid(entries)
    };
    Ok(read_last(input)?.filter(is_of_input).map(|(entries, _)| entries))
}

/// Reads the seek table at the end of `input`, which can be the last volume only, and the size of its frame. `None` if
/// there is none.
pub(crate) fn read_last<R: Read + Seek>(input: &mut R) -> io::Result<Option<(Vec<FrameEntry>, u64)>> {
    let len = input.seek(SeekFrom::End(0))?;
    let mut footer = [0; FOOTER_LEN];
    if len < (8 + FOOTER_LEN) as u64 {
        return Ok(None);
    }
    input.seek(SeekFrom::Start(len - FOOTER_LEN as u64))?;
    input.read_exact(&mut footer)?;
    let count = u64::from(u32::from_le_bytes(footer[..4].try_into().expect("four bytes")));
    let payload_len = count * ENTRY_LEN as u64 + FOOTER_LEN as u64;
    if footer[5..] != FOOTER_MAGIC.to_le_bytes()
        || payload_len > u64::from(SKIPPABLE_LIMIT)
        || payload_len + 8 > len
    {
        return Ok(None);
    }
    input.seek(SeekFrom::Start(len - payload_len - 8))?;
    let mut header = [0; 8];
    input.read_exact(&mut header)?;
    let payload_field = u32::try_from(payload_len).expect("at most SKIPPABLE_LIMIT").to_le_bytes();
    if header[..4] != SEEK_TABLE_MAGIC.to_le_bytes() || header[4..] != payload_field {
        return Ok(None);
    }
    let mut payload = Vec::new();
    input.take(payload_len).read_to_end(&mut payload)?;
    Ok(decode(&payload).map(|entries| (entries, payload_len + 8)))
}

/// Returns the length of a bundle with these frames, in bytes. The frame of the seek table has `table_len` bytes.
pub(crate) fn bundle_len(table: &[FrameEntry], table_len: u64) -> u64 {
    table.iter().map(|entry| u64::from(entry.compressed)).sum::<u64>() + table_len
}

/// Returns the frames that begin in `range` of a bundle, the seek table included, with their offsets from its start.
pub(crate) fn frames_in(table: &[FrameEntry], table_len: u64, range: &Range<u64>) -> Vec<(u64, FrameEntry)> {
    let last = FrameEntry { compressed: u32::try_from(table_len).unwrap_or(u32::MAX), decompressed: 0 };
    let mut offset = 0;
    let mut frames = Vec::new();
    for entry in table.iter().chain([&last]) {
        if range.contains(&offset) {
            frames.push((offset - range.start, *entry));
        }
        offset += u64::from(entry.compressed);
    }
    frames
}

/// True if no content size exceeds [`FRAME_SIZE`], and no frame is smaller than [`MIN_FRAME`].
pub(crate) fn is_valid(table: &[FrameEntry]) -> bool {
    table.iter().all(|entry| entry.decompressed as usize <= FRAME_SIZE && entry.compressed >= MIN_FRAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn a_table_is_read_only_if_it_matches_the_length() {
        let entries =
            [FrameEntry { compressed: 11, decompressed: 9 }, FrameEntry { compressed: 8, decompressed: 0 }];
        let file = [vec![0; 19], encode(&entries)].concat();
        assert_eq!(read(&mut Cursor::new(&file)).unwrap().unwrap(), entries);
        assert_eq!(read(&mut Cursor::new(&file[1..])).unwrap(), None);
        assert_eq!(read(&mut Cursor::new(&file[..file.len() - 1])).unwrap(), None);
        assert_eq!(read(&mut Cursor::new(b"short")).unwrap(), None);
        for bit in 0..(file.len() - 19) * 8 {
            let mut bad = file.clone();
            bad[19 + bit / 8] ^= 1 << (bit % 8);
            // A consistent but incorrect table is detected when the frames are read.
            if let Some(table) = read(&mut Cursor::new(&bad)).unwrap() {
                assert_ne!(table, entries, "bit {bit}");
            }
        }
        // No frame is that small, so a table has no more entries than its bundle has room for.
        let small = [FrameEntry { compressed: 7, decompressed: 0 }];
        assert_eq!(read(&mut Cursor::new([vec![0; 7], encode(&small)].concat())).unwrap(), None);
    }
}
