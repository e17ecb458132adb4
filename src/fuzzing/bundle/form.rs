//! `Form`: the encoding of an archive as a bundle.

use crate::bundle::format::frame;
use crate::bundle::format::label::Label;
use crate::bundle::format::seek_table::{self, FrameEntry};
use crate::bundle::format::skippable::{self, PADDING_MAGIC, SIGNATURE_MAGIC};
use crate::fuzzing::bundle::assembly::Archive;
use crate::fuzzing::input::Input;
use crate::fuzzing::recovery::section;
use crate::oci::digest::Digest;
use crate::signature::Signature;

/// The encoding of a bundle.
pub(super) struct Form {
    level: i32,
    /// True if all frames are stored.
    is_stored: bool,
    /// The text of a signature. `None`: not signed.
    signature: Option<Vec<u8>>,
    /// Length of the padding behind the head.
    padding: usize,
    /// True if volumes were joined: the bundle has labels.
    has_labels: bool,
    /// Redundancy in ‰. `None`: no recovery data.
    recovery: Option<u32>,
    table: Table,
}

/// The seek table.
#[derive(PartialEq, Eq)]
enum Table {
    Correct,
    Missing,
    /// One of its bytes is another one.
    Edited(usize, u8),
}

impl Form {
    pub(super) fn read(input: &mut Input<'_>) -> Self {
        let flags = input.byte();
        let recovery = match flags >> 3 & 3 {
            2 => Some(100),
            3 => Some(1000),
            _ => None,
        };
        Self {
            level: if flags & 1 == 0 { 1 } else { 3 },
            is_stored: flags & 2 != 0,
            signature: (flags & 4 != 0).then(|| input.short().to_vec()),
            padding: usize::from(input.byte()),
            has_labels: flags >> 5 & 1 == 1 && recovery.is_none(),
            recovery,
            table: match flags >> 6 {
                2 => Table::Missing,
                3 => Table::Edited(input.number(), input.byte()),
                _ => Table::Correct,
            },
        }
    }

    /// True if a reader has to accept a bundle in this form.
    pub(super) fn is_regular(&self) -> bool {
        let is_signature = |text: &Vec<u8>| Signature::parse(text).is_some();
        self.table == Table::Correct && self.signature.as_ref().is_none_or(is_signature)
    }

    /// True if the recovery data repairs one byte anywhere.
    pub(super) fn is_recoverable(&self) -> bool {
        self.recovery == Some(1000)
    }

    pub(super) fn encode(&self, archive: &Archive) -> Vec<u8> {
        let mut frames: Vec<(Vec<u8>, usize)> = Vec::new();
        let (mut start, mut offset, mut volume) = (0, 0, 1);
        let set = Digest::of(b"set");
        for (number, len) in archive.cuts.iter().enumerate() {
            if self.has_labels && number > archive.head_frames {
                volume += 1;
                let stream = (start - archive.cuts[0]) as u64;
                frames.push((Label::new(set, volume, offset, stream).to_frame(), 0));
            }
            let content = &archive.stream[start..start + len];
            start += len;
            let frame =
                if self.is_stored { frame::store(content) } else { frame::encode(content, self.level) };
            frames.push((frame, *len));
            if number + 1 == archive.head_frames {
                frames
                    .extend(self.signature.iter().map(|text| (skippable::encode(SIGNATURE_MAGIC, text), 0)));
                frames.push((skippable::encode(PADDING_MAGIC, &vec![0; self.padding]), 0));
                if self.has_labels {
                    frames.push((Label::new(set, 1, 0, 0).to_frame(), 0));
                }
            }
            offset = frames.iter().map(|(frame, _)| frame.len() as u64).sum();
        }
        let entry = |(frame, content): &(Vec<u8>, usize)| entry(frame.len(), *content);
        let mut entries: Vec<FrameEntry> = frames.iter().map(entry).collect();
        let front: Vec<u8> = frames.into_iter().flat_map(|(frame, _)| frame).collect();
        let Some(per_mille) = self.recovery else {
            return [front, self.table(&entries)].concat();
        };
        // The table lists the frames of the section, whose number depends on the length of the table.
        let plain = entries.len();
        loop {
            let tail = self.table(&entries);
            let (section, _) = section(&[&front[..], &tail].concat(), tail.len(), per_mille);
            let lens = lens(&section);
            if entries[plain..].iter().map(|entry| entry.compressed as usize).eq(lens.iter().copied()) {
                return [front, section, tail].concat();
            }
            entries.truncate(plain);
            entries.extend(lens.iter().map(|len| self::entry(*len, 0)));
        }
    }

    fn table(&self, entries: &[FrameEntry]) -> Vec<u8> {
        let mut table = seek_table::encode(entries);
        match self.table {
            Table::Correct => {}
            Table::Missing => table.clear(),
            Table::Edited(at, mask) => {
                let at = at % table.len();
                table[at] ^= mask;
            }
        }
        table
    }
}

/// Returns the lengths of consecutive skippable frames.
fn lens(frames: &[u8]) -> Vec<usize> {
    let (mut lens, mut start) = (Vec::new(), 0);
    while let Some(field) = frames.get(start + 4..start + 8) {
        let len = 8 + u32::from_le_bytes(field.try_into().expect("four bytes")) as usize;
        lens.push(len);
        start += len;
    }
    lens
}

fn entry(compressed: usize, decompressed: usize) -> FrameEntry {
    let number = |len: usize| u32::try_from(len).expect("frames are small");
    FrameEntry { compressed: number(compressed), decompressed: number(decompressed) }
}
