//! [`Geometry`]: number and size of blocks, number of groups, and their positions in the recovery section.

use std::ops::RangeInclusive;

/// Valid redundancies, in ‰ of the protected bytes.
pub(crate) const REDUNDANCIES: RangeInclusive<u32> = 1..=1000;

/// Maximum number of protected bytes of a volume, 512 GiB. For more, a description would exceed
/// [`PAYLOAD_LIMIT`], or the blocks of a group would exceed [`GROUP_LIMIT`].
pub(crate) const LENGTH_LIMIT: u64 = 1 << 39;

/// Maximum payload of a frame of the section, in bytes.
pub(crate) const PAYLOAD_LIMIT: u64 = 16 << 20;

/// Smallest block size in bytes: a disk sector.
const MIN_BLOCK_SIZE: u64 = 4 << 10;
/// Largest block size that is chosen for small volumes. Larger blocks only keep the description short.
const COARSE_BLOCK_SIZE: u64 = 64 << 10;
const MAX_BLOCK_SIZE: u64 = 1 << 20;
/// Maximum number of points of the code of one group.
const POINTS_LIMIT: u64 = 2048;
/// Maximum size of the blocks of a group in bytes. A group is repaired in memory.
const GROUP_LIMIT: u64 = 128 << 20;
/// Length of a frame header.
pub(super) const FRAME_HEADER: u64 = 8;
/// Length of a description before the checksums of the blocks.
pub(super) const FIELDS: u64 = 64;
/// Length of a description after the checksums of the blocks.
pub(super) const TRAILER: u64 = 40;
/// Approximate number of bytes of parity blocks per frame in both halves of the section together.
const FRAME_STEP: u64 = 1 << 24;

/// The geometry of the recovery data of a volume. It depends on the number of protected bytes and on the
/// redundancy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Geometry {
    numbers: Numbers,
    frames: Vec<SectionFrame>,
}

/// A frame of the section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SectionFrame {
    /// Offset from the start of the section in bytes.
    pub(super) offset: u64,
    /// Length in bytes, including the header.
    pub(super) len: u64,
    pub(super) content: FrameContent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameContent {
    Description,
    /// Consecutive parity blocks.
    Parity {
        /// Number of the first one.
        first: u64,
    },
}

/// The numbers that a description contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Number of protected bytes.
    pub(super) protected: u64,
    /// Redundancy in ‰.
    pub(super) per_mille: u32,
    /// Block size in bytes.
    pub(super) block_size: u64,
    pub(super) groups: u64,
    /// Number of parity blocks per group.
    pub(super) parity: u64,
}

impl Geometry {
    /// Chooses the geometry for `protected` bytes with a redundancy of `per_mille`‰.
    ///
    /// # Panics
    ///
    /// If `per_mille` is not in [`REDUNDANCIES`] or `protected` exceeds [`LENGTH_LIMIT`]. Callers check both.
    #[must_use]
    pub(crate) fn new(protected: u64, per_mille: u32) -> Self {
        assert!(REDUNDANCIES.contains(&per_mille), "a redundancy of {per_mille}‰; please report");
        assert!(protected <= LENGTH_LIMIT, "a volume of {protected} bytes; please report");
        Self::from_numbers(Numbers::choose(protected, per_mille))
    }

    /// Chooses the geometry of a volume with `front` bytes before the section and, after it, a tail that
    /// lists the frames. `tail` returns its length for a number of frames in the section, and must be
    /// monotonic. Also returns the length of the tail.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn with_tail(front: u64, per_mille: u32, tail: impl Fn(usize) -> u64) -> (Self, u64) {
        let mut frames = 0;
        loop {
            let len = tail(frames);
            let geometry = Self::new(front + len, per_mille);
            if geometry.frames.len() == frames {
                return (geometry, len);
            }
            frames = geometry.frames.len();
        }
    }

    pub(super) fn from_numbers(numbers: Numbers) -> Self {
        let mut frames = Vec::new();
        let mut offset = 0;
        let mut push = |payload, content| {
            frames.push(SectionFrame { offset, len: FRAME_HEADER + payload, content });
            offset += FRAME_HEADER + payload;
        };
        let middle = numbers.parity_blocks().div_ceil(2);
        push(numbers.description_len(), FrameContent::Description);
        for half in [0..middle, middle..numbers.parity_blocks()] {
            let (blocks, count) = (half.end - half.start, numbers.frames_per_half());
            for number in 0..count {
                let first = half.start + blocks * number / count;
                let end = half.start + blocks * (number + 1) / count;
                push((end - first) * numbers.block_size, FrameContent::Parity { first });
            }
            push(numbers.description_len(), FrameContent::Description);
        }
        Self { numbers, frames }
    }

    pub(super) fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Number of protected bytes.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn protected_len(&self) -> u64 {
        self.numbers.protected
    }

    /// Length of the section in bytes.
    #[must_use]
    pub(crate) fn section_len(&self) -> u64 {
        self.numbers.section_len()
    }

    /// Lengths of the frames of the section in bytes, including their headers, in order.
    #[must_use]
    pub(crate) fn frame_lens(&self) -> Vec<u32> {
        self.frames.iter().map(|frame| u32::try_from(frame.len).expect("at most PAYLOAD_LIMIT")).collect()
    }

    /// Offsets of the three descriptions from the start of the section.
    pub(super) fn description_offsets(&self) -> impl Iterator<Item = u64> + '_ {
        self.frames
            .iter()
            .filter(|frame| frame.content == FrameContent::Description)
            .map(|frame| frame.offset)
    }

    pub(super) fn frames(&self) -> &[SectionFrame] {
        &self.frames
    }

    /// Returns the frame that contains byte `offset` of the section.
    pub(super) fn frame_at(&self, offset: u64) -> SectionFrame {
        self.frames[self.frames.partition_point(|frame| frame.offset <= offset) - 1]
    }

    /// Offset of parity block `number` from the start of the section. A block never spans two frames.
    pub(super) fn parity_offset(&self, number: u64) -> u64 {
        let (blocks, count) = (self.numbers.parity_blocks(), self.numbers.frames_per_half());
        let middle = blocks.div_ceil(2);
        // Frame `f` of a half with `n` blocks starts with block `n * f / count`, rounded down.
        let frame = |number: u64, blocks: u64| ((number + 1) * count).div_ceil(blocks) - 1;
        let frame = if number < middle {
            1 + frame(number, middle)
        } else {
            2 + count + frame(number - middle, blocks - middle)
        };
        let frame = &self.frames[usize::try_from(frame).expect("few frames; please report")];
        let FrameContent::Parity { first } = frame.content else {
            unreachable!("a frame of parity blocks; please report")
        };
        frame.offset + FRAME_HEADER + (number - first) * self.numbers.block_size
    }
}

impl Numbers {
    fn choose(protected: u64, per_mille: u32) -> Self {
        let mut block_size = MIN_BLOCK_SIZE;
        while protected > max_protected(block_size) {
            block_size *= 2;
        }
        let blocks = protected.div_ceil(block_size);
        let groups = blocks.div_ceil(max_rows(block_size, per_mille)).max(1);
        let parity = parity_for(blocks.div_ceil(groups), per_mille);
        Self { protected, per_mille, block_size, groups, parity }
    }

    /// True if a reader accepts these numbers, which bound its memory.
    pub(super) fn are_valid(&self) -> bool {
        self.protected <= LENGTH_LIMIT
            && REDUNDANCIES.contains(&self.per_mille)
            && self.block_size.is_power_of_two()
            && (MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&self.block_size)
            && (1..=self.blocks().max(1)).contains(&self.groups)
            && (1..=POINTS_LIMIT).contains(&self.parity)
            && points(self.rows(), self.parity) <= max_points(self.block_size)
            && self.description_len() <= PAYLOAD_LIMIT
    }

    /// Number of data blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.protected.div_ceil(self.block_size)
    }

    /// Number of rows per group. The last rows can be padding.
    pub(super) fn rows(&self) -> u64 {
        self.blocks().div_ceil(self.groups)
    }

    /// Number of parity blocks of all groups.
    pub(super) fn parity_blocks(&self) -> u64 {
        self.groups * self.parity
    }

    /// Length of a description in bytes, without the header of its frame.
    pub(super) fn description_len(&self) -> u64 {
        FIELDS + 8 * (self.blocks() + self.parity_blocks()) + TRAILER
    }

    /// Number of frames in each half of the parity blocks. It never shrinks as the length grows: otherwise, a
    /// seek table that lists these frames and is itself protected might have no consistent length.
    fn frames_per_half(&self) -> u64 {
        // The parity blocks exceed the redundancy by at most 67‰ of the protected bytes.
        1 + (self.protected * (u64::from(self.per_mille) + 67) / 1000) / FRAME_STEP
    }

    pub(super) fn section_len(&self) -> u64 {
        3 * (FRAME_HEADER + self.description_len())
            + 2 * self.frames_per_half() * FRAME_HEADER
            + self.parity_blocks() * self.block_size
    }
}

/// Maximum number of protected bytes for a block size: 1,024 small blocks, or 524,288 coarse blocks.
fn max_protected(block_size: u64) -> u64 {
    block_size << if block_size < COARSE_BLOCK_SIZE { 10 } else { 19 }
}

/// Maximum number of points of the code of a group.
fn max_points(block_size: u64) -> u64 {
    POINTS_LIMIT.min(GROUP_LIMIT / block_size)
}

/// Number of points of a code with `rows` rows and `parity` parity blocks, which occupy a power of two.
fn points(rows: u64, parity: u64) -> u64 {
    rows + parity.next_power_of_two()
}

/// Number of parity blocks for a number of rows: two more than the redundancy. A gap can start in the middle
/// of a block, and it can extend from the data blocks into the parity blocks. Each case affects one more
/// block.
fn parity_for(rows: u64, per_mille: u32) -> u64 {
    (rows * u64::from(per_mille)).div_ceil(1000) + 2
}

/// Maximum number of rows of a group.
fn max_rows(block_size: u64, per_mille: u32) -> u64 {
    let fits = |rows: &u64| points(*rows, parity_for(*rows, per_mille)) <= max_points(block_size);
    (1..POINTS_LIMIT).rev().find(fits).expect("every redundancy fits; please report")
}

/// Returns the maximum number of protected bytes that fit into `volume_len` bytes together with their
/// recovery data. The result can be up to one block too small. `None`: `volume_len` is too small for recovery
/// data.
#[must_use]
pub(crate) fn largest_front(volume_len: u64, per_mille: u32) -> Option<u64> {
    let upper = u128::from(volume_len) * 1000 / u128::from(1000 + per_mille);
    let upper = u64::try_from(upper).expect("less than the volume").min(LENGTH_LIMIT);
    let mut block_size = MAX_BLOCK_SIZE;
    // No binary search: the section can grow when the protected length shrinks, because the block size or the
    // number of groups changes. So this goes down block by block, from a length that is certainly too large.
    loop {
        let shorter = if block_size == MIN_BLOCK_SIZE { 0 } else { max_protected(block_size / 2) };
        let mut len = upper.min(max_protected(block_size));
        while len > shorter {
            let section = Numbers::choose(len, per_mille).section_len();
            if len + section <= volume_len {
                return Some(len);
            }
            // Within the last block, only the number of frames can change, and it can only decrease.
            let start = (len - 1) / block_size * block_size;
            match volume_len.checked_sub(section).filter(|fits| *fits > start) {
                Some(fits) => return Some(fits),
                None => len = start,
            }
        }
        if block_size == MIN_BLOCK_SIZE {
            return None;
        }
        block_size /= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REDUNDANCIES: [u32; 7] = [1, 5, 50, 100, 250, 500, 1000];

    fn lengths() -> Vec<u64> {
        let steps = [0, 1, 4095, 4096, 4097, 100_000, 4 << 20, 32 << 20, 100 << 20, 2 << 30, 4_700_000_000];
        let large = [32 << 30, 64 << 30, 100_000_000_000, 256 << 30, LENGTH_LIMIT - 1, LENGTH_LIMIT];
        let around = |len: u64| [len, (len + 1).min(LENGTH_LIMIT), (len + 70_000).min(LENGTH_LIMIT)];
        steps.into_iter().chain(large).flat_map(around).collect()
    }

    #[test]
    fn every_length_and_redundancy_has_a_valid_geometry_with_the_length_of_its_frames() {
        for len in lengths() {
            for per_mille in REDUNDANCIES {
                let geometry = Geometry::new(len, per_mille);
                let numbers = geometry.numbers();
                assert!(numbers.are_valid(), "{numbers:?}");
                assert!(numbers.parity * 1000 >= numbers.rows() * u64::from(per_mille) + 2000);
                assert!(numbers.rows() * numbers.block_size <= GROUP_LIMIT);
                let frames = geometry.frame_lens();
                assert_eq!(frames.iter().map(|len| u64::from(*len)).sum::<u64>(), geometry.section_len());
                for frame in &frames {
                    assert!(u64::from(*frame) <= PAYLOAD_LIMIT + FRAME_HEADER, "{frame} of {numbers:?}");
                }
                assert_eq!(geometry.description_offsets().count(), 3);
            }
        }
    }

    #[test]
    fn parity_blocks_do_not_overlap_and_lie_in_one_frame() {
        for (len, per_mille) in [(1, 1), (100_000, 50), (300 << 20, 50), (100 << 20, 1000)] {
            let geometry = Geometry::new(len, per_mille);
            let mut end = 0;
            for number in 0..geometry.numbers().parity_blocks() {
                let offset = geometry.parity_offset(number);
                let frame = geometry.frame_at(offset);
                assert!(offset >= end && offset >= frame.offset + FRAME_HEADER);
                end = offset + geometry.numbers().block_size;
                assert!(end <= frame.offset + frame.len);
                assert_eq!(geometry.frame_at(end - 1), frame);
            }
        }
    }

    #[test]
    fn the_number_of_frames_never_decreases_with_the_length() {
        for per_mille in REDUNDANCIES {
            let mut last = 0;
            for len in (0..40_000).map(|step| step * 99_991) {
                let count = Numbers::choose(len, per_mille).frames_per_half();
                assert!(count >= last);
                last = count;
            }
            for front in lengths().into_iter().map(|len| len.min(LENGTH_LIMIT / 2)) {
                let table = |frames: usize| 17 + 8 * (frames as u64 + front / (4 << 20));
                let (geometry, tail) = Geometry::with_tail(front, per_mille, table);
                assert_eq!(tail, table(geometry.frame_lens().len()));
                assert_eq!(geometry.protected_len(), front + tail);
            }
        }
    }

    #[test]
    fn the_largest_front_fits_and_two_more_blocks_do_not() {
        for per_mille in REDUNDANCIES {
            assert_eq!(largest_front(0, per_mille), None);
            assert_eq!(largest_front(8192, per_mille), None);
            for volume in lengths().into_iter().filter(|len| *len >= 100_000) {
                let front = largest_front(volume, per_mille).unwrap();
                let fits = |front: u64| front + Numbers::choose(front, per_mille).section_len() <= volume;
                assert!(fits(front), "{volume} {per_mille}");
                let block_size = Numbers::choose(front, per_mille).block_size;
                for more in 2..40 {
                    assert!(front + more * block_size > LENGTH_LIMIT || !fits(front + more * block_size));
                }
            }
        }
    }
}
