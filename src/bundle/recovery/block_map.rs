//! [`BlockMap`]: positions and checksums of the blocks of a volume.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::bundle::recovery::blocks::{OneCopy, ReadAt, checksum, index, read_exact_at};
use crate::bundle::recovery::damage::{UnrepairableGroup, merged};
use crate::bundle::recovery::description;
use crate::bundle::recovery::encode::parity_header;
use crate::bundle::recovery::geometry::{FRAME_HEADER, FrameContent, Geometry, Numbers, SectionFrame};

/// The division of a volume into blocks, as its description states it.
pub(super) struct BlockMap {
    pub(super) geometry: Geometry,
    /// Number of bytes before the recovery section.
    pub(super) front: u64,
    /// Number of bytes after the recovery section.
    pub(super) tail: u64,
    /// The frame of the description.
    pub(super) description: Vec<u8>,
}

/// The number of a block among the blocks of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Block {
    /// A block of the protected bytes.
    Data(u64),
    /// A block of the recovery section.
    Parity(u64),
}

/// A contiguous part of a volume with one kind of content.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    /// Byte range from the start of the volume.
    pub(super) range: Range<u64>,
    pub(super) content: SegmentContent,
}

impl Segment {
    /// Returns the block of which the segment is a part.
    pub(super) fn block(&self) -> Option<Block> {
        match self.content {
            SegmentContent::Block(block) => Some(block),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum SegmentContent {
    /// A block, or one of the two parts of the block that contains the end of the front.
    Block(Block),
    /// The frame of a description.
    Description,
    /// The header of a frame of parity blocks.
    ParityHeader {
        /// Length of the frame in bytes, including its header.
        frame_len: u64,
    },
}

impl BlockMap {
    pub(super) fn numbers(&self) -> &Numbers {
        self.geometry.numbers()
    }

    /// Size of a block in bytes.
    pub(super) fn block_size(&self) -> usize {
        index(self.numbers().block_size)
    }

    /// Length of the intact volume in bytes.
    pub(super) fn volume_len(&self) -> u64 {
        self.front + self.geometry.section_len() + self.tail
    }

    /// Byte range of the recovery section, from the start of the volume.
    pub(super) fn section(&self) -> Range<u64> {
        self.front..self.front + self.geometry.section_len()
    }

    /// Returns the segments that overlap `range`, in order.
    pub(super) fn segments(&self, range: Range<u64>) -> impl Iterator<Item = Segment> + '_ {
        let mut offset = range.start;
        std::iter::from_fn(move || {
            let segment = (offset < range.end).then(|| self.segment(offset))?;
            offset = segment.range.end;
            Some(segment)
        })
    }

    /// Returns the segment that contains byte `offset` of the volume.
    fn segment(&self, offset: u64) -> Segment {
        let (numbers, section) = (self.numbers(), self.section());
        if section.contains(&offset) {
            return self.section_segment(offset);
        }
        let is_front = offset < section.start;
        let protected = if is_front { offset } else { offset - self.geometry.section_len() };
        let block = Block::Data(protected / numbers.block_size);
        let mut extents = self.extents(block);
        let range = extents.find(|range| range.contains(&offset)).expect("the block is here; please report");
        Segment { range, content: SegmentContent::Block(block) }
    }

    /// The same for an `offset` inside the recovery section.
    fn section_segment(&self, offset: u64) -> Segment {
        let (block_size, section) = (self.numbers().block_size, self.section());
        let SectionFrame { offset: start, len, content } = self.geometry.frame_at(offset - section.start);
        let start = section.start + start;
        let FrameContent::Parity { first } = content else {
            return Segment { range: start..start + len, content: SegmentContent::Description };
        };
        let Some(payload_offset) = (offset - start).checked_sub(FRAME_HEADER) else {
            let content = SegmentContent::ParityHeader { frame_len: len };
            return Segment { range: start..start + FRAME_HEADER, content };
        };
        let number = payload_offset / block_size;
        let start = start + FRAME_HEADER + number * block_size;
        let content = SegmentContent::Block(Block::Parity(first + number));
        Segment { range: start..start + block_size, content }
    }

    /// Returns the expected bytes of a segment that is not a block.
    pub(super) fn known_bytes(&self, content: SegmentContent) -> Option<Cow<'_, [u8]>> {
        match content {
            SegmentContent::Block(_) => None,
            SegmentContent::Description => Some(Cow::Borrowed(&self.description)),
            SegmentContent::ParityHeader { frame_len } => Some(parity_header(frame_len).to_vec().into()),
        }
    }

    /// Returns the byte ranges of a block in the volume: two if the front ends inside it, one otherwise.
    pub(super) fn extents(&self, block: Block) -> impl Iterator<Item = Range<u64>> + use<> {
        let (numbers, section) = (self.numbers(), self.section());
        let (first, second) = match block {
            Block::Parity(number) => {
                let start = section.start + self.geometry.parity_offset(number);
                (start..start + numbers.block_size, 0..0)
            }
            Block::Data(number) => {
                let start = number * numbers.block_size;
                let end = (start + numbers.block_size).min(numbers.protected);
                let section_len = section.end - section.start;
                (start..end.min(self.front), start.max(self.front) + section_len..end + section_len)
            }
        };
        [first, second].into_iter().filter(|range| range.start < range.end)
    }

    /// Returns the offset of a block from the start of the volume.
    pub(super) fn start_of(&self, block: Block) -> u64 {
        self.extents(block).next().expect("a block is not empty; please report").start
    }

    /// Returns the offset inside `block` of its part that starts at byte `offset` of the volume.
    pub(super) fn offset_in_block(&self, block: Block, offset: u64) -> u64 {
        self.extents(block)
            .take_while(|range| range.start < offset)
            .map(|range| range.end - range.start)
            .sum()
    }

    pub(super) fn group_of(&self, block: Block) -> u64 {
        let (Block::Data(number) | Block::Parity(number)) = block;
        number % self.numbers().groups
    }

    pub(super) fn by_group(&self, blocks: &BTreeSet<Block>) -> BTreeMap<u64, Vec<Block>> {
        let mut groups: BTreeMap<u64, Vec<Block>> = BTreeMap::new();
        for block in blocks {
            groups.entry(self.group_of(*block)).or_default().push(*block);
        }
        groups
    }

    /// True if `bytes` have the checksum of the block. Padding zeros of the last block can be omitted.
    pub(super) fn is_intact(&self, block: Block, bytes: &[u8]) -> bool {
        let number = match block {
            Block::Data(number) => number,
            Block::Parity(number) => self.numbers().blocks() + number,
        };
        checksum(bytes, self.block_size()) == description::block_checksum(&self.description, number)
    }

    /// Reads a block into `bytes`, with padding zeros, from the first copy in which it is intact. Returns true if there
    /// is one.
    pub(super) fn read_block(&self, volume: &impl ReadAt, block: Block, bytes: &mut [u8]) -> bool {
        (0..volume.copies()).any(|copy| self.read_block_at(&OneCopy { source: volume, copy }, block, bytes))
    }

    fn read_block_at(&self, volume: &impl ReadAt, block: Block, bytes: &mut [u8]) -> bool {
        let mut filled = 0;
        for range in self.extents(block) {
            let len = index(range.end - range.start);
            if read_exact_at(volume, range.start, &mut bytes[filled..filled + len]).is_err() {
                return false;
            }
            filled += len;
        }
        bytes[filled..].fill(0);
        self.is_intact(block, bytes)
    }

    pub(super) fn unrepairable(&self, group: u64, corrupt: &[Block]) -> UnrepairableGroup {
        let ranges = corrupt.iter().flat_map(|block| self.extents(*block)).collect();
        UnrepairableGroup {
            group,
            corrupt: corrupt.len() as u64,
            repairable: self.numbers().parity,
            ranges: merged(ranges),
        }
    }
}
