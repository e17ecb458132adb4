//! [`Geometry`]: how many blocks of which size, in how many groups, and where each stands in the recovery section.

use std::ops::RangeInclusive;

/// The shares that there are, in parts of a thousand of what is protected.
pub(crate) const SHARES: RangeInclusive<u32> = 1..=1000;

/// The most bytes that one volume may protect, 512 GiB: with more, a description would be longer than
/// [`PAYLOAD_LIMIT`], or a block than a group in memory.
pub(crate) const LENGTH_LIMIT: u64 = 1 << 39;

/// The most bytes that a frame of the section holds.
pub(crate) const PAYLOAD_LIMIT: u64 = 16 << 20;

/// The smallest block, a sector of a disk.
const SMALLEST: u64 = 4 << 10;
/// The largest block that is chosen for the sake of fine damage; larger ones are for the sake of short descriptions.
const FINE: u64 = 64 << 10;
const LARGEST: u64 = 1 << 20;
/// The most points that the code of one group has.
const POINTS: u64 = 2048;
/// The most bytes that the blocks of one group have, so that it is repaired in memory.
const GROUP_BYTES: u64 = 128 << 20;
/// What a frame has before its payload.
pub(super) const FRAME_HEADER: u64 = 8;
/// What a description has before its checksums of blocks, and behind them.
pub(super) const FIELDS: u64 = 64;
pub(super) const TRAILER: u64 = 40;
/// About how many bytes of recovery blocks are in a frame, both halves of the section together.
const FRAME_STEP: u64 = 1 << 24;

/// What the recovery data of one volume looks like. It depends on the length of what is protected, and on the share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Geometry {
    numbers: Numbers,
    frames: Vec<SectionFrame>,
}

/// A frame of the section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SectionFrame {
    /// Where it begins, in bytes from the start of the section.
    pub(super) offset: u64,
    /// Its length, header included.
    pub(super) len: u64,
    pub(super) holds: Holds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Description,
    /// Recovery blocks, the first of which has this number.
    Blocks(u64),
}

/// The numbers that a description states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) protected: u64,
    pub(super) per_mille: u32,
    /// The size of a block.
    pub(super) block: u64,
    pub(super) groups: u64,
    /// How many recovery blocks a group has.
    pub(super) spare: u64,
}

impl Numbers {
    fn choose(protected: u64, per_mille: u32) -> Self {
        let mut block = SMALLEST;
        while protected > longest_with(block) {
            block *= 2;
        }
        let blocks = protected.div_ceil(block);
        let groups = blocks.div_ceil(most_rows(block, per_mille)).max(1);
        let spare = spare(blocks.div_ceil(groups), per_mille);
        Self { protected, per_mille, block, groups, spare }
    }

    /// Whether a reader takes these numbers, whoever states them: its memory has a bound.
    pub(super) fn are_sound(&self) -> bool {
        self.protected <= LENGTH_LIMIT
            && SHARES.contains(&self.per_mille)
            && self.block.is_power_of_two()
            && (SMALLEST..=LARGEST).contains(&self.block)
            && (1..=self.blocks().max(1)).contains(&self.groups)
            && (1..=POINTS).contains(&self.spare)
            && points(self.rows(), self.spare) <= most_points(self.block)
            && self.description_len() <= PAYLOAD_LIMIT
    }

    /// How many blocks are protected.
    pub(super) fn blocks(&self) -> u64 {
        self.protected.div_ceil(self.block)
    }

    /// How many blocks a group has, those of zeros included that fill up the last ones.
    pub(super) fn rows(&self) -> u64 {
        self.blocks().div_ceil(self.groups)
    }

    /// How many recovery blocks there are, of all groups.
    pub(super) fn spares(&self) -> u64 {
        self.groups * self.spare
    }

    /// The length of a description, without the header of its frame.
    pub(super) fn description_len(&self) -> u64 {
        FIELDS + 8 * (self.blocks() + self.spares()) + TRAILER
    }

    /// In how many frames each half of the recovery blocks is. It never shrinks as the length grows: a seek table that
    /// is itself protected, and lists these frames, would else not find its length.
    fn frames_in_half(&self) -> u64 {
        // 67: at most so much longer than the share are the recovery blocks, in a thousand parts of the length.
        1 + (self.protected * (u64::from(self.per_mille) + 67) / 1000) / FRAME_STEP
    }

    pub(super) fn section_len(&self) -> u64 {
        3 * (FRAME_HEADER + self.description_len())
            + 2 * self.frames_in_half() * FRAME_HEADER
            + self.spares() * self.block
    }
}

/// The most bytes that are protected with blocks of this size: 1,024 blocks where they are small, and more where larger
/// ones would be coarse.
fn longest_with(block: u64) -> u64 {
    block << if block < FINE { 10 } else { 19 }
}

/// The most points that the code of a group has.
fn most_points(block: u64) -> u64 {
    POINTS.min(GROUP_BYTES / block)
}

/// How many points the code takes for this many blocks and recovery blocks: the latter in a power of two.
fn points(rows: u64, spare: u64) -> u64 {
    rows + spare.next_power_of_two()
}

/// How many recovery blocks are made for this many blocks. Two more than the share: a hole may begin in the middle of a
/// block, and it may go over from the blocks to the recovery blocks, each time with a block that is hit in part only.
fn spare(rows: u64, per_mille: u32) -> u64 {
    (rows * u64::from(per_mille)).div_ceil(1000) + 2
}

/// The most blocks that a group may have.
fn most_rows(block: u64, per_mille: u32) -> u64 {
    let fits = |rows: &u64| points(*rows, spare(*rows, per_mille)) <= most_points(block);
    (1..POINTS).rev().find(fits).expect("every share fits; please report")
}

impl Geometry {
    /// The shape for `protected_len` bytes, with recovery data for a share of `per_mille` parts of a thousand.
    ///
    /// # Panics
    ///
    /// Where the share is not one of [`SHARES`] or the length is over [`LENGTH_LIMIT`]: both are for the caller to check.
    #[must_use]
    pub(crate) fn new(protected_len: u64, per_mille: u32) -> Self {
        assert!(SHARES.contains(&per_mille), "a share of {per_mille}; please report");
        assert!(protected_len <= LENGTH_LIMIT, "a volume of {protected_len} bytes; please report");
        Self::of(Numbers::choose(protected_len, per_mille))
    }

    /// The shape of a volume with `front` bytes before the section and, behind it, a tail that lists the frames: `tail`
    /// says how long it is, given how many the section has, and does not shrink as that grows. And how long the tail is.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn around(front: u64, per_mille: u32, tail: impl Fn(usize) -> u64) -> (Self, u64) {
        let mut frames = 0;
        loop {
            let len = tail(frames);
            let shape = Self::new(front + len, per_mille);
            if shape.frames.len() == frames {
                return (shape, len);
            }
            frames = shape.frames.len();
        }
    }

    pub(super) fn of(numbers: Numbers) -> Self {
        let mut frames = Vec::new();
        let mut offset = 0;
        let mut push = |payload, holds| {
            frames.push(SectionFrame { offset, len: FRAME_HEADER + payload, holds });
            offset += FRAME_HEADER + payload;
        };
        let middle = numbers.spares().div_ceil(2);
        push(numbers.description_len(), Holds::Description);
        for half in [0..middle, middle..numbers.spares()] {
            let (blocks, count) = (half.end - half.start, numbers.frames_in_half());
            for number in 0..count {
                let first = half.start + blocks * number / count;
                let end = half.start + blocks * (number + 1) / count;
                push((end - first) * numbers.block, Holds::Blocks(first));
            }
            push(numbers.description_len(), Holds::Description);
        }
        Self { numbers, frames }
    }

    pub(super) fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// How many bytes are protected.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn protected_len(&self) -> u64 {
        self.numbers.protected
    }

    /// How long the recovery section is.
    #[must_use]
    pub(crate) fn section_len(&self) -> u64 {
        self.numbers.section_len()
    }

    /// How long each of its frames is, headers included, in order.
    #[must_use]
    pub(crate) fn frames(&self) -> Vec<u32> {
        self.frames.iter().map(|frame| u32::try_from(frame.len).expect("at most PAYLOAD_LIMIT")).collect()
    }

    /// Where the three descriptions begin, from the start of the section.
    pub(super) fn descriptions(&self) -> impl Iterator<Item = u64> + '_ {
        self.frames.iter().filter(|frame| frame.holds == Holds::Description).map(|frame| frame.offset)
    }

    /// All frames, with their place in the section.
    pub(super) fn parts(&self) -> &[SectionFrame] {
        &self.frames
    }

    /// The frame that has this byte of the section.
    pub(super) fn frame_at(&self, offset: u64) -> SectionFrame {
        self.frames[self.frames.partition_point(|frame| frame.offset <= offset) - 1]
    }

    /// Where recovery block `number` begins, from the start of the section. All of it is in one frame.
    pub(super) fn place(&self, number: u64) -> u64 {
        let (blocks, count) = (self.numbers.spares(), self.numbers.frames_in_half());
        let middle = blocks.div_ceil(2);
        // The frames of a half begin with block `blocks in it * frame / count`, rounded down.
        let frame = |number: u64, blocks: u64| ((number + 1) * count).div_ceil(blocks) - 1;
        let frame = if number < middle {
            1 + frame(number, middle)
        } else {
            2 + count + frame(number - middle, blocks - middle)
        };
        let frame = &self.frames[usize::try_from(frame).expect("few frames; please report")];
        let Holds::Blocks(first) = frame.holds else { unreachable!("a frame of blocks; please report") };
        frame.offset + FRAME_HEADER + (number - first) * self.numbers.block
    }
}

/// The most bytes that a volume of `volume_len` bytes can protect and hold with their recovery data; at most one block less
/// than the most that there are. Nothing where not even one byte has room.
#[must_use]
pub(crate) fn largest_front(volume_len: u64, per_mille: u32) -> Option<u64> {
    let upper = u128::from(volume_len) * 1000 / u128::from(1000 + per_mille);
    let upper = u64::try_from(upper).expect("less than the volume").min(LENGTH_LIMIT);
    let mut block = LARGEST;
    // The section may grow a little where the length shrinks, as the size of the blocks or the number of groups
    // changes: so this goes down block by block from what is surely too much, and not by halves.
    loop {
        let shorter = if block == SMALLEST { 0 } else { longest_with(block / 2) };
        let mut len = upper.min(longest_with(block));
        while len > shorter {
            let section = Numbers::choose(len, per_mille).section_len();
            if len + section <= volume_len {
                return Some(len);
            }
            // Within the same block only the number of frames may change, and it does not grow.
            let start = (len - 1) / block * block;
            match volume_len.checked_sub(section).filter(|fits| *fits > start) {
                Some(fits) => return Some(fits),
                None => len = start,
            }
        }
        if block == SMALLEST {
            return None;
        }
        block /= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARES: [u32; 7] = [1, 5, 50, 100, 250, 500, 1000];

    fn lengths() -> Vec<u64> {
        let steps = [0, 1, 4095, 4096, 4097, 100_000, 4 << 20, 32 << 20, 100 << 20, 2 << 30, 4_700_000_000];
        let large = [32 << 30, 64 << 30, 100_000_000_000, 256 << 30, LENGTH_LIMIT - 1, LENGTH_LIMIT];
        let around = |len: u64| [len, (len + 1).min(LENGTH_LIMIT), (len + 70_000).min(LENGTH_LIMIT)];
        steps.into_iter().chain(large).flat_map(around).collect()
    }

    #[test]
    fn every_length_and_share_has_a_sound_shape_whose_frames_are_the_section() {
        for len in lengths() {
            for share in SHARES {
                let shape = Geometry::new(len, share);
                let numbers = shape.numbers();
                assert!(numbers.are_sound(), "{numbers:?}");
                assert!(numbers.spare * 1000 >= numbers.rows() * u64::from(share) + 2000);
                assert!(numbers.rows() * numbers.block <= GROUP_BYTES);
                let frames = shape.frames();
                assert_eq!(frames.iter().map(|len| u64::from(*len)).sum::<u64>(), shape.section_len());
                for frame in &frames {
                    assert!(u64::from(*frame) <= PAYLOAD_LIMIT + FRAME_HEADER, "{frame} of {numbers:?}");
                }
                assert_eq!(shape.descriptions().count(), 3);
            }
        }
    }

    #[test]
    fn every_recovery_block_has_its_own_place() {
        for (len, share) in [(1, 1), (100_000, 50), (300 << 20, 50), (100 << 20, 1000)] {
            let shape = Geometry::new(len, share);
            let mut end = 0;
            for number in 0..shape.numbers().spares() {
                let place = shape.place(number);
                let frame = shape.frame_at(place);
                assert!(place >= end && place >= frame.offset + FRAME_HEADER);
                end = place + shape.numbers().block;
                assert!(end <= frame.offset + frame.len);
                assert_eq!(shape.frame_at(end - 1), frame);
            }
        }
    }

    #[test]
    fn the_number_of_frames_never_shrinks_so_that_a_table_of_them_finds_its_length() {
        for share in SHARES {
            let mut last = 0;
            for len in (0..40_000).map(|step| step * 99_991) {
                let count = Numbers::choose(len, share).frames_in_half();
                assert!(count >= last);
                last = count;
            }
            for front in lengths().into_iter().map(|len| len.min(LENGTH_LIMIT / 2)) {
                let table = |frames: usize| 17 + 8 * (frames as u64 + front / (4 << 20));
                let (shape, tail) = Geometry::around(front, share, table);
                assert_eq!(tail, table(shape.frames().len()));
                assert_eq!(shape.protected_len(), front + tail);
            }
        }
    }

    #[test]
    fn the_largest_front_fits_and_hardly_more_would() {
        for share in SHARES {
            assert_eq!(largest_front(0, share), None);
            assert_eq!(largest_front(8192, share), None);
            for volume in lengths().into_iter().filter(|len| *len >= 100_000) {
                let front = largest_front(volume, share).unwrap();
                let fits = |front: u64| front + Numbers::choose(front, share).section_len() <= volume;
                assert!(fits(front), "{volume} {share}");
                let block = Numbers::choose(front, share).block;
                for more in 2..40 {
                    assert!(front + more * block > LENGTH_LIMIT || !fits(front + more * block));
                }
            }
        }
    }
}
