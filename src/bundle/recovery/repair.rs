//! [`Recovery`]: a volume with its recovery data, as whole as it can be made.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::{fmt, io};

use rayon::prelude::*;
use reed_solomon_simd::engine::DefaultEngine;

use crate::bundle::recovery::blocks::{ReadAt, checksum, index, read_exact_at};
use crate::bundle::recovery::encode::blocks_header;
use crate::bundle::recovery::find::{FoundSection, find};
use crate::bundle::recovery::geometry::{FRAME_HEADER, Geometry, Holds, Numbers, SectionFrame};
use crate::bundle::recovery::{code, description};

/// How much is read at once.
const READ: u64 = 8 << 20;
/// How many bytes of repaired blocks are kept for those who read on.
const KEPT: usize = 128 << 20;
/// How many places an error names.
const NAMED: usize = 3;

/// The recovery data of a volume, found in it. The volume itself is given to each call: it has to be the same one.
///
/// At most some 256 MiB of memory are used. Whatever a volume gives, it never gives other bytes than were packed: all
/// blocks are checked.
pub struct Recovery {
    shape: Geometry,
    front: u64,
    tail: u64,
    /// The frame of a description.
    description: Vec<u8>,
    known: Mutex<Known>,
}

/// What earlier calls have found out.
#[derive(Default)]
struct Known {
    /// Repaired blocks, by where they begin in the volume, and how many bytes they have together.
    repaired: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
    /// Blocks that were damaged when they were read: each attempt to read a bad sector may take seconds.
    bad: BTreeSet<Block>,
    lost: BTreeMap<u64, UnrepairableGroup>,
}

/// A block: of what is protected, or of the recovery data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Block {
    Data(u64),
    Spare(u64),
}

/// What stands somewhere in a volume.
#[derive(Debug, Clone, Copy)]
enum What {
    Block(Block),
    /// From here on, a description.
    Description,
    /// The header of a frame of recovery blocks that is so long.
    Header(u64),
}

#[derive(Debug, Clone)]
struct Segment {
    /// Where it is in the volume.
    at: Range<u64>,
    what: What,
}

/// Everything that is damaged in a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    /// Where, in bytes from the start of the volume: whole blocks, those that follow one another taken together.
    pub ranges: Vec<Range<u64>>,
    /// How many blocks are, recovery blocks included.
    pub blocks: u64,
    /// What cannot be repaired.
    pub lost: Vec<UnrepairableGroup>,
}

impl Damage {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// A group that has more damaged blocks than can be repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnrepairableGroup {
    /// Which one, from 0 on.
    pub group: u64,
    /// How many of its blocks are damaged, recovery blocks included.
    pub damaged: u64,
    /// How many might have been.
    pub mendable: u64,
    /// Where they are, in bytes from the start of the volume.
    pub ranges: Vec<Range<u64>>,
}

impl fmt::Display for UnrepairableGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, damaged, mendable, ranges } = self;
        write!(
            f,
            "in group {group}, {damaged} blocks are damaged and {mendable} could be repaired, at bytes "
        )?;
        for (number, range) in ranges.iter().take(NAMED).enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{} to {}", range.start, range.end - 1)?;
        }
        match ranges.len().saturating_sub(NAMED) {
            0 => Ok(()),
            1 => write!(f, " and at one more place"),
            more => write!(f, " and at {more} more places"),
        }
    }
}

/// Why the right bytes cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Too much is damaged.
    #[error("more is damaged than the recovery data can repair: {}", list(.0))]
    TooMuch(Vec<UnrepairableGroup>),
    /// What was computed does not have its checksum.
    #[error(
        "what the recovery data makes of group {0} has wrong checksums: it was not written for these bytes"
    )]
    Unfit(u64),
    /// The good copy could not be written.
    #[error("cannot write the repaired bytes")]
    Write(#[source] io::Error),
}

fn list(lost: &[UnrepairableGroup]) -> String {
    let first = lost.first().map(UnrepairableGroup::to_string).unwrap_or_default();
    match lost.len() {
        0 | 1 => first,
        2 => format!("{first}; and too many in one more group"),
        len => format!("{first}; and too many in {} more groups", len - 1),
    }
}

impl Recovery {
    /// The recovery data of `volume`, which has `len` bytes: fewer than were written, if it was cut short. It is looked for
    /// where it is if nothing is damaged, and then everywhere. Nothing if there is none, or nothing left of all three
    /// descriptions; what cannot be read counts as damaged.
    pub fn find(volume: &impl ReadAt, len: u64) -> Option<Self> {
        let FoundSection { fields, shape, frame } = find(volume, len)?;
        let (front, tail) = (fields.front, fields.tail);
        Some(Self { shape, front, tail, description: frame, known: Mutex::default() })
    }

    /// How long the whole volume is.
    #[must_use]
    pub fn volume_len(&self) -> u64 {
        self.front + self.shape.section_len() + self.tail
    }

    /// Where the recovery section is, in bytes from the start of the volume.
    #[must_use]
    pub fn section(&self) -> Range<u64> {
        self.front..self.front + self.shape.section_len()
    }

    /// The share of what is protected that can be repaired, in parts of a thousand.
    #[must_use]
    pub fn per_mille(&self) -> u32 {
        self.numbers().per_mille
    }

    /// The right bytes of a range of the volume.
    ///
    /// To repair one block, all of its group is read, which may be 128 MiB. So what was repaired of a group is kept for later
    /// calls, as far as there is room (128 MiB, for the blocks that come next): reading on through a hole that is not
    /// larger reads every group once. Through a larger hole it is slow, and [`Recovery::repair`] is not.
    pub fn reconstruct(&self, volume: &impl ReadAt, range: Range<u64>) -> Result<Vec<u8>, RecoveryError> {
        let mut result = Vec::with_capacity(index(range.end - range.start));
        let mut bytes = vec![0; index(self.numbers().block)];
        for Segment { at, what } in self.segments(range.clone()) {
            let wanted = at.start.max(range.start)..at.end.min(range.end);
            let wanted = index(wanted.start - at.start)..index(wanted.end - at.start);
            match what {
                What::Block(block) => {
                    self.right_block(volume, block, &mut bytes)?;
                    let start = index(self.part_before(block, at.start));
                    result.extend_from_slice(&bytes[start + wanted.start..start + wanted.end]);
                }
                What::Description => result.extend_from_slice(&self.description[wanted]),
                What::Header(len) => result.extend_from_slice(&blocks_header(len)[wanted]),
            }
        }
        Ok(result)
    }

    /// Reads all of the volume and says what is damaged; `progress` gets how many bytes were read since it was last called.
    pub fn damaged(&self, volume: &impl ReadAt, progress: impl FnMut(u64)) -> Damage {
        self.damaged_in(volume, 0..self.volume_len(), progress)
    }

    /// The same of the recovery section alone, which is not needed as long as nothing else is damaged.
    pub fn damaged_section(&self, volume: &impl ReadAt, progress: impl FnMut(u64)) -> Damage {
        self.damaged_in(volume, self.section(), progress)
    }

    fn damaged_in(&self, volume: &impl ReadAt, range: Range<u64>, progress: impl FnMut(u64)) -> Damage {
        let nothing = |_, _: &[u8]| Ok::<(), io::Error>(());
        let sweep = self.sweep(volume, range, nothing, progress).expect("nothing is written; please report");
        self.damage(&sweep)
    }

    /// Gives out all of the volume as it was packed, every byte once, with its place; and says what of it was damaged.
    /// What is right comes first, in order, and then what was repaired, so `write` must be able to go back. `progress`
    /// gets how many bytes were read since it was last called.
    ///
    /// An error comes when everything that is right was given out: what was written then has holes.
    pub fn repair(
        &self,
        volume: &impl ReadAt,
        mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
        progress: impl FnMut(u64),
    ) -> Result<Damage, RecoveryError> {
        let sweep =
            self.sweep(volume, 0..self.volume_len(), &mut write, progress).map_err(RecoveryError::Write)?;
        let damage = self.damage(&sweep);
        if !damage.lost.is_empty() {
            return Err(RecoveryError::TooMuch(damage.lost));
        }
        for (group, blocks) in self.by_group(&sweep.bad) {
            let rows = self.group(volume, group, &sweep.bad)?;
            let spares = blocks.iter().any(|block| matches!(block, Block::Spare(_)));
            let spares = spares.then(|| self.spares(&rows));
            let mut spare = vec![0; index(self.numbers().block)];
            for block in blocks {
                let bytes = match (block, &spares) {
                    (Block::Data(number), _) => self.row(&rows, number),
                    (Block::Spare(number), Some(spares)) => {
                        spares.spare(index(number / self.numbers().groups), &mut spare);
                        self.check_spare(number, &spare)?;
                        &spare
                    }
                    (Block::Spare(_), None) => unreachable!("made above; please report"),
                };
                let mut rest = bytes;
                for at in self.places(block) {
                    let part;
                    (part, rest) = rest.split_at(index(at.end - at.start));
                    write(at.start, part).map_err(RecoveryError::Write)?;
                }
            }
        }
        Ok(damage)
    }

    fn numbers(&self) -> &Numbers {
        self.shape.numbers()
    }

    /// What the volume has at `offset`.
    fn segment(&self, offset: u64) -> Segment {
        let (numbers, section) = (self.numbers(), self.section());
        if section.contains(&offset) {
            let SectionFrame { offset: start, len, holds } = self.shape.frame_at(offset - section.start);
            let start = section.start + start;
            let Holds::Blocks(first) = holds else {
                return Segment { at: start..start + len, what: What::Description };
            };
            let Some(within) = (offset - start).checked_sub(FRAME_HEADER) else {
                return Segment { at: start..start + FRAME_HEADER, what: What::Header(len) };
            };
            let number = within / numbers.block;
            let start = start + FRAME_HEADER + number * numbers.block;
            let what = What::Block(Block::Spare(first + number));
            return Segment { at: start..start + numbers.block, what };
        }
        let is_front = offset < section.start;
        let number = if is_front { offset } else { offset - self.shape.section_len() } / numbers.block;
        let mut places = self.places(Block::Data(number));
        // Of a block that goes over from the front to the tail, this is one of two parts.
        let at = places.find(|at| at.contains(&offset)).expect("the block is there; please report");
        Segment { at, what: What::Block(Block::Data(number)) }
    }

    fn segments(&self, range: Range<u64>) -> impl Iterator<Item = Segment> + '_ {
        let mut offset = range.start;
        std::iter::from_fn(move || {
            let segment = (offset < range.end).then(|| self.segment(offset))?;
            offset = segment.at.end;
            Some(segment)
        })
    }

    /// Where a block is in the volume: in one piece, or, of a block in which the front ends, in two.
    fn places(&self, block: Block) -> impl Iterator<Item = Range<u64>> + use<> {
        let (numbers, section) = (self.numbers(), self.section());
        let (first, second) = match block {
            Block::Spare(number) => {
                let start = section.start + self.shape.place(number);
                (start..start + numbers.block, 0..0)
            }
            Block::Data(number) => {
                let start = number * numbers.block;
                let end = (start + numbers.block).min(numbers.protected);
                let behind = section.end - section.start;
                (start..end.min(self.front), start.max(self.front) + behind..end + behind)
            }
        };
        [first, second].into_iter().filter(|at| at.start < at.end)
    }

    /// How many bytes of the block are before the part of it that begins at `offset` of the volume.
    fn part_before(&self, block: Block, offset: u64) -> u64 {
        self.places(block).take_while(|at| at.start < offset).map(|at| at.end - at.start).sum()
    }

    fn group_of(&self, block: Block) -> u64 {
        let (Block::Data(number) | Block::Spare(number)) = block;
        number % self.numbers().groups
    }

    fn by_group(&self, blocks: &BTreeSet<Block>) -> BTreeMap<u64, Vec<Block>> {
        let mut groups: BTreeMap<u64, Vec<Block>> = BTreeMap::new();
        for block in blocks {
            groups.entry(self.group_of(*block)).or_default().push(*block);
        }
        groups
    }

    /// Whether the block has these bytes; zeros that fill up the last one may be left out.
    fn is_right(&self, block: Block, bytes: &[u8]) -> bool {
        let number = match block {
            Block::Data(number) => number,
            Block::Spare(number) => self.numbers().blocks() + number,
        };
        checksum(bytes, index(self.numbers().block)) == description::sum(&self.description, number)
    }

    /// Reads a block into `bytes`, with zeros behind the last one; says whether that is it.
    fn read_block(&self, volume: &impl ReadAt, block: Block, bytes: &mut [u8]) -> bool {
        let mut filled = 0;
        for at in self.places(block) {
            let len = index(at.end - at.start);
            if read_exact_at(volume, at.start, &mut bytes[filled..filled + len]).is_err() {
                return false;
            }
            filled += len;
        }
        bytes[filled..].fill(0);
        self.is_right(block, bytes)
    }

    /// The right bytes of a block, whatever the volume has.
    fn right_block(&self, volume: &impl ReadAt, block: Block, bytes: &mut [u8]) -> Result<(), RecoveryError> {
        let start = self.places(block).next().expect("a block has a place; please report").start;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(repaired) = known.repaired.get(&start) {
            bytes.copy_from_slice(repaired);
            return Ok(());
        }
        if !known.bad.contains(&block) && self.read_block(volume, block, bytes) {
            return Ok(());
        }
        known.bad.insert(block);
        let group = self.group_of(block);
        if let Some(lost) = known.lost.get(&group) {
            return Err(RecoveryError::TooMuch(vec![lost.clone()]));
        }
        let repaired = self.group_noting(volume, group, &mut known.bad).and_then(|rows| {
            Ok(match block {
                Block::Data(_) => self.repaired_rows(&rows, group, &known.bad),
                Block::Spare(_) => self.repaired_spares(&rows, group)?,
            })
        });
        let repaired = repaired.inspect_err(|error| {
            if let RecoveryError::TooMuch(lost) = error {
                known.lost.extend(lost.iter().map(|lost| (lost.group, lost.clone())));
            }
        })?;
        let allowance = KEPT / index(self.numbers().groups);
        known.keep(repaired, start, allowance);
        bytes.copy_from_slice(&known.repaired[&start]);
        Ok(())
    }

    /// The blocks of `group` that are among the `bad` ones, out of all of them.
    fn repaired_rows(&self, rows: &[u8], group: u64, bad: &BTreeSet<Block>) -> BTreeMap<u64, Vec<u8>> {
        let mut repaired = BTreeMap::new();
        for block in bad.iter().filter(|block| self.group_of(**block) == group) {
            if let Block::Data(number) = *block {
                let start = self.places(*block).next().expect("a block has a place; please report").start;
                repaired.insert(start, self.row(rows, number).to_vec());
            }
        }
        repaired
    }

    /// All recovery blocks of `group`, made anew.
    fn repaired_spares(&self, rows: &[u8], group: u64) -> Result<BTreeMap<u64, Vec<u8>>, RecoveryError> {
        let numbers = self.numbers();
        let spares = self.spares(rows);
        let mut repaired = BTreeMap::new();
        for row in 0..numbers.spare {
            let number = row * numbers.groups + group;
            let mut bytes = vec![0; index(numbers.block)];
            spares.spare(index(row), &mut bytes);
            self.check_spare(number, &bytes)?;
            repaired.insert(self.section().start + self.shape.place(number), bytes);
        }
        Ok(repaired)
    }

    fn check_spare(&self, number: u64, bytes: &[u8]) -> Result<(), RecoveryError> {
        let group = self.group_of(Block::Spare(number));
        if self.is_right(Block::Spare(number), bytes) { Ok(()) } else { Err(RecoveryError::Unfit(group)) }
    }

    /// Block `number` out of all blocks of its group.
    fn row<'a>(&self, rows: &'a [u8], number: u64) -> &'a [u8] {
        let block = index(self.numbers().block);
        &rows[index(number / self.numbers().groups) * block..][..block]
    }

    fn spares(&self, rows: &[u8]) -> code::Encoder {
        let numbers = self.numbers();
        code::encode(rows, index(numbers.spare), index(numbers.block), DefaultEngine::new)
    }

    /// All blocks of a group, one after the other, repaired where it is needed. Those in `bad` are not read.
    fn group(
        &self,
        volume: &impl ReadAt,
        group: u64,
        bad: &BTreeSet<Block>,
    ) -> Result<Vec<u8>, RecoveryError> {
        self.group_noting(volume, group, &mut bad.clone())
    }

    /// The same; what turns out to be damaged is noted in `bad`.
    fn group_noting(
        &self,
        volume: &impl ReadAt,
        group: u64,
        bad: &mut BTreeSet<Block>,
    ) -> Result<Vec<u8>, RecoveryError> {
        let numbers = self.numbers();
        let (count, block) = (index(numbers.rows()), index(numbers.block));
        let mut rows = vec![0; count * block];
        let mut there = vec![true; count];
        for ((row, there), bytes) in (0..).zip(&mut there).zip(rows.chunks_exact_mut(block)) {
            let number = row * numbers.groups + group;
            // Behind the last block there are zeros, that are never damaged.
            let data = Block::Data(number);
            if number < numbers.blocks() && (bad.contains(&data) || !self.read_block(volume, data, bytes)) {
                *there = false;
                bad.insert(data);
            }
        }
        let missing = there.iter().filter(|there| !**there).count();
        if missing == 0 {
            return Ok(rows);
        }
        let mut spares = BTreeMap::new();
        for row in 0..numbers.spare {
            let spare = Block::Spare(row * numbers.groups + group);
            let mut bytes = vec![0; block];
            if bad.contains(&spare) || !self.read_block(volume, spare, &mut bytes) {
                bad.insert(spare);
                continue;
            }
            spares.insert(index(row), bytes);
            if spares.len() == missing {
                break;
            }
        }
        if spares.len() < missing {
            let blocks =
                bad.iter().copied().filter(|block| self.group_of(*block) == group).collect::<Vec<_>>();
            return Err(RecoveryError::TooMuch(vec![self.lost(group, &blocks)]));
        }
        code::decode(&mut rows, &there, &spares, index(numbers.spare), block, DefaultEngine::new);
        for ((row, there), bytes) in (0..).zip(&there).zip(rows.chunks_exact(block)) {
            if !there && !self.is_right(Block::Data(row * numbers.groups + group), bytes) {
                return Err(RecoveryError::Unfit(group));
            }
        }
        Ok(rows)
    }

    /// Reads a range of the volume, which begins where a segment does. What is right, or is known anyhow, goes to `take`, in order.
    fn sweep<E>(
        &self,
        volume: &impl ReadAt,
        range: Range<u64>,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
        mut progress: impl FnMut(u64),
    ) -> Result<Sweep, E> {
        let mut sweep = Sweep::default();
        let mut bytes = Vec::new();
        let mut offset = range.start;
        while offset < range.end {
            let mut segments = Vec::new();
            let mut end = offset;
            for segment in self.segments(offset..range.end.min(offset + READ)) {
                end = segment.at.end;
                segments.push(segment);
            }
            bytes.resize(index(end - offset), 0);
            let sound = self.read_segments(volume, &segments, &mut bytes);
            let mut run = 0..0;
            for (Segment { at, what }, is_sound) in segments.into_iter().zip(sound) {
                let place = index(at.start - offset)..index(at.end - offset);
                match what {
                    What::Block(block) if !is_sound => {
                        sweep.bad.insert(block);
                    }
                    What::Description if !is_sound => {
                        bytes[place.clone()].copy_from_slice(&self.description);
                    }
                    What::Header(len) if !is_sound => {
                        bytes[place.clone()].copy_from_slice(&blocks_header(len));
                    }
                    _ => {}
                }
                if !is_sound {
                    sweep.ranges.push(at);
                }
                if is_sound || !matches!(what, What::Block(_)) {
                    // Neighbours are written together.
                    if run.end != place.start {
                        take(offset + run.start as u64, &bytes[run.clone()])?;
                        run.start = place.start;
                    }
                    run.end = place.end;
                }
            }
            take(offset + run.start as u64, &bytes[run])?;
            progress(end - offset);
            offset = end;
        }
        Ok(sweep)
    }

    /// Reads segments that follow one another into `bytes`, and says which of them are as they were written.
    fn read_segments(&self, volume: &impl ReadAt, segments: &[Segment], bytes: &mut [u8]) -> Vec<bool> {
        let Some(start) = segments.first().map(|segment| segment.at.start) else { return Vec::new() };
        let place = |at: &Range<u64>| index(at.start - start)..index(at.end - start);
        let mut readable = vec![true; segments.len()];
        if read_exact_at(volume, start, bytes).is_err() {
            for (segment, readable) in segments.iter().zip(&mut readable) {
                let bytes = &mut bytes[place(&segment.at)];
                *readable = read_exact_at(volume, segment.at.start, bytes).is_ok();
            }
        }
        // Of a block that is in two pieces, the other one is needed, too.
        for (segment, readable) in segments.iter().zip(&mut readable) {
            let What::Block(block) = segment.what else { continue };
            if self.places(block).count() == 2 {
                let mut all = vec![0; index(self.numbers().block)];
                *readable = self.read_block(volume, block, &mut all);
                let before = index(self.part_before(block, segment.at.start));
                let piece = &mut bytes[place(&segment.at)];
                piece.copy_from_slice(&all[before..before + piece.len()]);
            }
        }
        let bytes = &*bytes;
        let check = |(segment, readable): (&Segment, bool)| {
            let bytes = &bytes[place(&segment.at)];
            readable
                && match segment.what {
                    What::Block(block) => self.places(block).count() == 2 || self.is_right(block, bytes),
                    What::Description => bytes == self.description,
                    What::Header(len) => bytes == blocks_header(len),
                }
        };
        segments.par_iter().zip(readable).map(check).collect()
    }

    fn damage(&self, sweep: &Sweep) -> Damage {
        let spare = self.numbers().spare;
        let lost = self.by_group(&sweep.bad).into_iter().filter_map(|(group, blocks)| {
            // Recovery blocks alone can always be made anew.
            let any_data = blocks.iter().any(|block| matches!(block, Block::Data(_)));
            (any_data && blocks.len() as u64 > spare).then(|| self.lost(group, &blocks))
        });
        Damage { ranges: merged(sweep.ranges.clone()), blocks: sweep.bad.len() as u64, lost: lost.collect() }
    }

    fn lost(&self, group: u64, blocks: &[Block]) -> UnrepairableGroup {
        let ranges = blocks.iter().flat_map(|block| self.places(*block)).collect();
        UnrepairableGroup {
            group,
            damaged: blocks.len() as u64,
            mendable: self.numbers().spare,
            ranges: merged(ranges),
        }
    }
}

/// What one reading of a volume has found damaged.
#[derive(Default)]
struct Sweep {
    bad: BTreeSet<Block>,
    ranges: Vec<Range<u64>>,
}

impl Known {
    /// Keeps repaired blocks of one group for those who read on: the one at `start`, and those behind it, as many bytes as
    /// are allowed.
    fn keep(&mut self, repaired: BTreeMap<u64, Vec<u8>>, start: u64, allowance: usize) {
        if self.bytes >= KEPT {
            // Who reads on does not come back.
            self.repaired = self.repaired.split_off(&start);
            self.bytes = self.repaired.values().map(Vec::len).sum();
        }
        if self.bytes >= KEPT {
            (self.repaired, self.bytes) = (BTreeMap::new(), 0);
        }
        let mut kept = 0;
        for (place, bytes) in repaired.into_iter().skip_while(|(place, _)| *place < start) {
            if kept > 0 && kept + bytes.len() > allowance {
                break;
            }
            kept += bytes.len();
            self.bytes += bytes.len();
            if let Some(old) = self.repaired.insert(place, bytes) {
                self.bytes -= old.len();
            }
        }
    }
}

/// The ranges in order; those that follow one another are one.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range),
        }
    }
    merged
}
