//! The seek table at the end of a bundle (zstd's seekable format, version 0.1.0): the size of every frame.

use std::io::{self, Read, Seek, SeekFrom};

use crate::bundle::format::FRAME_SIZE;
use crate::bundle::format::skippable::{self, SEEK_TABLE_MAGIC, SKIPPABLE_LIMIT};

const FOOTER_MAGIC: u32 = 0x8F92_EAB1;
/// How many bytes end a seek table, from which its length is known.
pub(crate) const FOOTER_LEN: usize = 9;
const ENTRY_LEN: usize = 8;

/// The size of one frame, skippable ones included, the seek table's own frame not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// How many bytes it has in the bundle.
    pub compressed: u32,
    /// How many bytes it decodes to; 0 for a skippable frame.
    pub decompressed: u32,
}

/// The skippable frame that holds `entries`.
#[must_use]
pub fn encode(entries: &[FrameEntry]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(entries.len() * ENTRY_LEN + FOOTER_LEN);
    for entry in entries {
        payload.extend_from_slice(&entry.compressed.to_le_bytes());
        payload.extend_from_slice(&entry.decompressed.to_le_bytes());
    }
    payload
        .extend_from_slice(&u32::try_from(entries.len()).expect("few frames; please report").to_le_bytes());
    payload.push(0); // no checksums here: every frame has its own
    payload.extend_from_slice(&FOOTER_MAGIC.to_le_bytes());
    skippable::encode(SEEK_TABLE_MAGIC, &payload)
}

/// The entries in the payload of a seek table's frame, or nothing if it is none.
#[must_use]
pub fn decode(payload: &[u8]) -> Option<Vec<FrameEntry>> {
    let (entries, footer) = payload.split_at_checked(payload.len().checked_sub(FOOTER_LEN)?)?;
    let count = u32::from_le_bytes(footer[..4].try_into().ok()?) as usize;
    let sound = footer[4] == 0
        && footer[5..] == FOOTER_MAGIC.to_le_bytes()
        && count.checked_mul(ENTRY_LEN) == Some(entries.len());
    sound.then(|| {
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        entries
            .chunks_exact(ENTRY_LEN)
            .map(|entry| FrameEntry { compressed: number(&entry[..4]), decompressed: number(&entry[4..]) })
            .collect()
    })
}

/// How long the frame of the seek table is that ends with `footer`, if one does.
pub(crate) fn len_before(footer: &[u8; FOOTER_LEN]) -> Option<u64> {
    let count = u64::from(u32::from_le_bytes(footer[..4].try_into().expect("four bytes")));
    (footer[5..] == FOOTER_MAGIC.to_le_bytes()).then_some(8 + count * ENTRY_LEN as u64 + FOOTER_LEN as u64)
}

/// Whether `input` ends as a bundle does. The last bytes are looked at and no more.
pub fn ends<R: Read + Seek>(input: &mut R) -> io::Result<bool> {
    let len = input.seek(SeekFrom::End(0))?;
    let mut footer = [0; FOOTER_LEN];
    if len < FOOTER_LEN as u64 {
        return Ok(false);
    }
    input.seek(SeekFrom::Start(len - FOOTER_LEN as u64))?;
    input.read_exact(&mut footer)?;
    Ok(footer[4..] == [&[0][..], &FOOTER_MAGIC.to_le_bytes()].concat())
}

/// Reads the seek table from the end of `input`; nothing if there is none that fits the input's length.
pub fn read<R: Read + Seek>(input: &mut R) -> io::Result<Option<Vec<FrameEntry>>> {
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
    Ok(decode(&payload).filter(|entries| {
        entries.iter().map(|entry| u64::from(entry.compressed)).sum::<u64>() == len - payload_len - 8
            && is_sound(entries)
    }))
}

/// Whether no frame is larger than one may be.
pub(crate) fn is_sound(table: &[FrameEntry]) -> bool {
    table.iter().all(|entry| entry.decompressed as usize <= FRAME_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn a_table_is_found_at_the_end_and_only_when_it_fits() {
        let entries =
            [FrameEntry { compressed: 5, decompressed: 9 }, FrameEntry { compressed: 3, decompressed: 0 }];
        let file = [vec![0; 8], encode(&entries)].concat();
        assert_eq!(read(&mut Cursor::new(&file)).unwrap().unwrap(), entries);
        assert_eq!(read(&mut Cursor::new(&file[1..])).unwrap(), None);
        assert_eq!(read(&mut Cursor::new(&file[..file.len() - 1])).unwrap(), None);
        assert_eq!(read(&mut Cursor::new(b"short")).unwrap(), None);
        for bit in 0..(file.len() - 8) * 8 {
            let mut bad = file.clone();
            bad[8 + bit / 8] ^= 1 << (bit % 8);
            // A wrong but consistent table is caught when the frames do not fit it.
            if let Some(table) = read(&mut Cursor::new(&bad)).unwrap() {
                assert_ne!(table, entries, "bit {bit}");
            }
        }
    }
}
