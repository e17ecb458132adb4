//! Finding the description of a volume that may be damaged anywhere.

use crate::bundle::format::seek_table;
use crate::bundle::recovery::blocks::{ReadAt, index, read_exact_at};
use crate::bundle::recovery::description::{self, Fields, HEAD, TEXT};
use crate::bundle::recovery::geometry::{FRAME_HEADER, Geometry, TRAILER};

/// How much is searched at once.
const WINDOW: u64 = 4 << 20;
/// What is read alone where a window cannot be read: a sector.
const PIECE: usize = 4 << 10;
/// How many descriptions may look right and be damaged before the search ends. Of its own, a volume has three; each costs
/// up to 48 MiB to be checked, and somebody may have written them so.
const CANDIDATES: u32 = 16;
/// What a description's frame has before its text.
const BEFORE_TEXT: usize = 8;

/// A description that is as it was written.
pub(super) struct FoundSection {
    pub(super) fields: Fields,
    pub(super) shape: Geometry,
    /// All of its frame.
    pub(super) frame: Vec<u8>,
}

/// Finds a description in `volume`, which has `len` bytes left of what was written. What cannot be read is passed over.
pub(super) fn find(volume: &impl ReadAt, len: u64) -> Option<FoundSection> {
    at_the_end(volume, len).or_else(|| anywhere(volume, len))
}

/// The description with which the section ends, if the end of the volume is as it should be.
fn at_the_end(volume: &impl ReadAt, len: u64) -> Option<FoundSection> {
    let mut footer = [0; seek_table::FOOTER_LEN];
    let table = len
        .checked_sub(footer.len() as u64)
        .filter(|at| read_exact_at(volume, *at, &mut footer).is_ok())
        .and_then(|_| seek_table::len_before(&footer));
    [Some(0), table].into_iter().flatten().find_map(|tail| {
        let end = len.checked_sub(tail)?;
        let mut trailer = vec![0; index(TRAILER)];
        read_exact_at(volume, end.checked_sub(TRAILER)?, &mut trailer).ok()?;
        let start = end.checked_sub(description::len_before(&trailer)? + FRAME_HEADER)?;
        parse_at(volume, start, &mut 1)
    })
}

/// Looks through the volume, from its end, because that is where the section is.
fn anywhere(volume: &impl ReadAt, len: u64) -> Option<FoundSection> {
    let search = Search::new(TEXT);
    let mut left = CANDIDATES;
    let mut end = len;
    // A text that begins in one window may end in the next one.
    let overlap = (TEXT.len() - 1) as u64;
    let mut bytes = vec![0; index(WINDOW + overlap)];
    let mut readable = vec![true; bytes.len().div_ceil(PIECE)];
    while end > 0 && left > 0 {
        let start = end.saturating_sub(WINDOW);
        let bytes = &mut bytes[..index((end + overlap).min(len) - start)];
        read_what_can_be(volume, start, bytes, &mut readable[..bytes.len().div_ceil(PIECE)]);
        let found = search.all(bytes).into_iter().rev().find_map(|at| {
            let frame = (start + at as u64).checked_sub(BEFORE_TEXT as u64)?;
            parse_at(volume, frame, &mut left)
        });
        if found.is_some() {
            return found;
        }
        end = start;
    }
    None
}

/// The description whose frame begins at `offset`, if it is whole, or can be made so, and stands where it says itself.
fn parse_at(volume: &impl ReadAt, offset: u64, left: &mut u32) -> Option<FoundSection> {
    let mut head = [0; HEAD];
    read_exact_at(volume, offset, &mut head).ok()?;
    let (fields, shape) = parse(&head, offset)?;
    *left = left.checked_sub(1)?;
    let mut frame = vec![0; index(FRAME_HEADER + fields.numbers.description_len())];
    if read_exact_at(volume, offset, &mut frame).is_ok() && description::is_whole(&frame) {
        return Some(FoundSection { fields, shape, frame });
    }
    // What this one says may be wrong, too.
    let frame = vote(volume, fields.front, &shape, frame.len());
    let (fields, shape) = parse(&frame[..HEAD], offset)?;
    description::is_whole(&frame).then_some(FoundSection { fields, shape, frame })
}

/// What the head of a description says, if it stands at `offset`.
fn parse(head: &[u8], offset: u64) -> Option<(Fields, Geometry)> {
    let fields = Fields::parse(head)?;
    let shape = Geometry::of(fields.numbers);
    let is_there = shape.descriptions().any(|place| fields.front + place == offset);
    is_there.then_some((fields, shape))
}

/// What the three descriptions have in common: they are the same, so each byte is right where two agree, or where only
/// one can be read. A long description is easily hit somewhere, and seldom twice at the same place.
fn vote(volume: &impl ReadAt, front: u64, shape: &Geometry, len: usize) -> Vec<u8> {
    let copies: Vec<(Vec<u8>, Vec<bool>)> = shape
        .descriptions()
        .map(|place| {
            let (mut bytes, mut readable) = (vec![0; len], vec![true; len.div_ceil(PIECE)]);
            read_what_can_be(volume, front + place, &mut bytes, &mut readable);
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

/// Reads what can be read, in ever smaller pieces; the rest becomes zeros, and is not `readable`, which has one value for
/// each [`PIECE`].
fn read_what_can_be(volume: &impl ReadAt, offset: u64, bytes: &mut [u8], readable: &mut [bool]) {
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
    read_what_can_be(volume, offset, first, first_readable);
    read_what_can_be(volume, offset + (half * PIECE) as u64, second, second_readable);
}

/// Looks for a text, comparing only every few bytes (Horspool): a volume may be large.
struct Search<'a> {
    text: &'a [u8],
    /// How far the text can be moved on if the last byte compared is this one.
    steps: [usize; 256],
}

impl<'a> Search<'a> {
    fn new(text: &'a [u8]) -> Self {
        let mut steps = [text.len(); 256];
        for (at, byte) in text[..text.len() - 1].iter().enumerate() {
            steps[usize::from(*byte)] = text.len() - 1 - at;
        }
        Self { text, steps }
    }

    /// Where the text begins, everywhere in `bytes`.
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
    fn a_text_is_found_wherever_it_stands() {
        let search = Search::new(b"abcab");
        assert_eq!(search.all(b"abcababcab"), [0, 5]);
        assert_eq!(search.all(b"abcabcab"), [0, 3]);
        assert_eq!(search.all(b"xabcabcaabcab"), [1, 8]);
        assert!(search.all(b"abca").is_empty());
        assert!(search.all(b"").is_empty());
    }
}
