//! Finds the description of a volume with damage at any position.

use crate::bundle::format::seek_table;
use crate::bundle::recovery::blocks::{ReadAt, index, read_exact_at};
use crate::bundle::recovery::description::{self, Fields, HEAD, TEXT};
use crate::bundle::recovery::geometry::{FRAME_HEADER, Geometry, TRAILER};

/// Number of bytes that are searched at a time.
const WINDOW: u64 = 4 << 20;
/// Size of the smallest read in a window with read errors, in bytes: a sector.
const PIECE: usize = 4 << 10;
/// Maximum number of candidates that are checked. A volume has three descriptions. A check reads up to 48
/// MiB, and a hostile volume can contain any number of candidates.
const CANDIDATES: u32 = 16;
/// Offset of the text in a description's frame.
const TEXT_OFFSET: u64 = 8;

/// A verified description.
pub(super) struct FoundSection {
    pub(super) fields: Fields,
    pub(super) geometry: Geometry,
    /// The complete frame.
    pub(super) frame: Vec<u8>,
}

/// Finds a description in `volume`, which has `len` bytes. Skips what cannot be read.
pub(super) fn find(volume: &impl ReadAt, len: u64) -> Option<FoundSection> {
    find_at_end(volume, len).or_else(|| search(volume, len))
}

/// Reads the last description of the section, if the end of the volume is intact.
fn find_at_end(volume: &impl ReadAt, len: u64) -> Option<FoundSection> {
    let mut footer = [0; seek_table::FOOTER_LEN];
    let table = len
        .checked_sub(footer.len() as u64)
        .filter(|offset| read_exact_at(volume, *offset, &mut footer).is_ok())
        .and_then(|_| seek_table::len_before(&footer));
    [Some(0), table].into_iter().flatten().find_map(|tail| {
        let end = len.checked_sub(tail)?;
        let mut trailer = vec![0; index(TRAILER)];
        read_exact_at(volume, end.checked_sub(TRAILER)?, &mut trailer).ok()?;
        let start = end.checked_sub(description::len_before(&trailer)? + FRAME_HEADER)?;
        read_description(volume, start, &mut 1)
    })
}

/// Searches the volume backwards, since the section is near its end.
fn search(volume: &impl ReadAt, len: u64) -> Option<FoundSection> {
    let search = TextSearch::new(TEXT);
    let mut candidates_left = CANDIDATES;
    let mut end = len;
    // A text can cross the boundary of two windows.
    let overlap = (TEXT.len() - 1) as u64;
    let mut buffer = vec![0; index(WINDOW + overlap)];
    let mut readable = vec![true; buffer.len().div_ceil(PIECE)];
    while end > 0 && candidates_left > 0 {
        let start = end.saturating_sub(WINDOW);
        let bytes = &mut buffer[..index((end + overlap).min(len) - start)];
        read_readable(volume, start, bytes, &mut readable[..bytes.len().div_ceil(PIECE)]);
        let found = search.all(bytes).into_iter().rev().find_map(|text_start| {
            let frame_start = (start + text_start as u64).checked_sub(TEXT_OFFSET)?;
            read_description(volume, frame_start, &mut candidates_left)
        });
        if found.is_some() {
            return found;
        }
        end = start;
    }
    None
}

/// Reads the description whose frame starts at `offset`. If it is corrupt, restores it from all three.
///
/// Returns `None` if that fails, or if its own fields imply other positions.
fn read_description(volume: &impl ReadAt, offset: u64, candidates_left: &mut u32) -> Option<FoundSection> {
    let mut head = [0; HEAD];
    read_exact_at(volume, offset, &mut head).ok()?;
    let (fields, geometry) = parse(&head, offset)?;
    *candidates_left = candidates_left.checked_sub(1)?;
    let mut frame = vec![0; index(FRAME_HEADER + fields.numbers.description_len())];
    if read_exact_at(volume, offset, &mut frame).is_ok() && description::is_intact(&frame) {
        return Some(FoundSection { fields, geometry, frame });
    }
    let frame = majority(volume, fields.front, &geometry, frame.len());
    // The fields themselves can be corrupt too.
    let (fields, geometry) = parse(&frame[..HEAD], offset)?;
    description::is_intact(&frame).then_some(FoundSection { fields, geometry, frame })
}

/// Parses the head of a description at `offset`. Returns `None` if it cannot be at this offset.
fn parse(head: &[u8], offset: u64) -> Option<(Fields, Geometry)> {
    let fields = Fields::parse(head)?;
    let geometry = Geometry::from_numbers(fields.numbers);
    let is_here = geometry.description_offsets().any(|start| fields.front + start == offset);
    is_here.then_some((fields, geometry))
}

/// Combines the three identical descriptions: takes each byte from two that agree, or from the only readable
/// one.
///
/// A long description is likely to be hit somewhere, but rarely twice at the same offset.
fn majority(volume: &impl ReadAt, front: u64, geometry: &Geometry, len: usize) -> Vec<u8> {
    let copies: Vec<(Vec<u8>, Vec<bool>)> = geometry
        .description_offsets()
        .map(|start| {
            let (mut bytes, mut readable) = (vec![0; len], vec![true; len.div_ceil(PIECE)]);
            read_readable(volume, front + start, &mut bytes, &mut readable);
            (bytes, readable)
        })
        .collect();
    (0..len)
        .map(|at| {
            let readable = copies.iter().filter(|(_, readable)| readable[at / PIECE]);
            let (mut first, mut second) = (None, None);
            for byte in readable.map(|(bytes, _)| bytes[at]) {
                if first == Some(byte) || second == Some(byte) {
                    return byte;
                }
                (first, second) = (first.or(Some(byte)), first.and(Some(byte)));
            }
            first.unwrap_or_default()
        })
        .collect()
}

/// Reads what is readable, in halves down to [`PIECE`]. The rest becomes zeros and `false` in `readable`,
/// which has one value per [`PIECE`].
fn read_readable(volume: &impl ReadAt, offset: u64, bytes: &mut [u8], readable: &mut [bool]) {
    if read_exact_at(volume, offset, bytes).is_ok() {
        return;
    }
    if bytes.len() <= PIECE {
        bytes.fill(0);
        readable.fill(false);
        return;
    }
    let half = readable.len() / 2;
    let (first, second) = bytes.split_at_mut(half * PIECE);
    let (first_readable, second_readable) = readable.split_at_mut(half);
    read_readable(volume, offset, first, first_readable);
    read_readable(volume, offset + (half * PIECE) as u64, second, second_readable);
}

/// A text search that skips bytes (Boyer–Moore–Horspool), since a volume can be large.
struct TextSearch<'a> {
    text: &'a [u8],
    /// Distance to the next comparison, by the last byte of the current one.
    steps: [usize; 256],
}

impl<'a> TextSearch<'a> {
    fn new(text: &'a [u8]) -> Self {
        let mut steps = [text.len(); 256];
        for (at, byte) in text[..text.len() - 1].iter().enumerate() {
            steps[usize::from(*byte)] = text.len() - 1 - at;
        }
        Self { text, steps }
    }

    /// Returns the offsets of all occurrences in `bytes`.
    fn all(&self, bytes: &[u8]) -> Vec<usize> {
        let (mut at, mut found) = (0, Vec::new());
        while let Some(window) = bytes.get(at..at + self.text.len()) {
            if window == self.text {
                found.push(at);
            }
            at += self.steps[usize::from(window[window.len() - 1])];
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_occurrences_are_found() {
        let search = TextSearch::new(b"abcab");
        assert_eq!(search.all(b"abcababcab"), [0, 5]);
        assert_eq!(search.all(b"abcabcab"), [0, 3]);
        assert_eq!(search.all(b"xabcabcaabcab"), [1, 8]);
        assert!(search.all(b"abca").is_empty());
        assert!(search.all(b"").is_empty());
    }
}
