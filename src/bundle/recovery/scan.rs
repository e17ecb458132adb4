//! [`scan`]: reads a volume front to back and finds its corrupt parts.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use rayon::prelude::*;

use crate::bundle::recovery::block_map::{Block, BlockMap, Segment, SegmentContent};
use crate::bundle::recovery::blocks::{ReadAt, index, read_exact_at};
use crate::bundle::recovery::damage::{Damage, merged};

/// Number of bytes per read, rounded up to complete segments.
const READ: u64 = 8 << 20;

/// The corrupt parts that a scan found.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) corrupt: BTreeSet<Block>,
    ranges: Vec<Range<u64>>,
}

/// Reads `range` of the volume, which starts at the start of a segment.
///
/// Passes all bytes except corrupt blocks to `write`, in order, with their offset in the volume. Corrupt
/// descriptions and frame headers are replaced first, since their bytes are known. `progress` receives the
/// number of bytes read since the last call.
pub(super) fn scan<E>(
    map: &BlockMap,
    volume: &impl ReadAt,
    range: Range<u64>,
    mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
    mut progress: impl FnMut(u64),
) -> Result<Scan, E> {
    let mut scan = Scan::default();
    let mut bytes = Vec::new();
    let mut offset = range.start;
    while offset < range.end {
        let segments: Vec<Segment> = map.segments(offset..range.end.min(offset + READ)).collect();
        let end = segments.last().map_or(range.end, |segment| segment.range.end);
        bytes.resize(index(end - offset), 0);
        let intact = read_segments(map, volume, &segments, &mut bytes);
        // Adjacent segments are written together.
        let mut run = 0..0;
        for (segment, is_intact) in segments.into_iter().zip(intact) {
            let local = index(segment.range.start - offset)..index(segment.range.end - offset);
            if !is_intact {
                scan.ranges.push(segment.range.clone());
                let Some(right) = right_bytes(map, volume, &segment) else {
                    scan.corrupt.extend(segment.block());
                    continue;
                };
                bytes[local.clone()].copy_from_slice(&right);
            }
            if run.end != local.start {
                write(offset + run.start as u64, &bytes[run.clone()])?;
                run.start = local.start;
            }
            run.end = local.end;
        }
        write(offset + run.start as u64, &bytes[run])?;
        progress(end - offset);
        offset = end;
    }
    Ok(scan)
}

/// Returns the bytes of a corrupt segment: those that are known, or those of another copy. `None`: they have to be
/// computed.
fn right_bytes(map: &BlockMap, volume: &impl ReadAt, segment: &Segment) -> Option<Vec<u8>> {
    let SegmentContent::Block(block) = segment.content else {
        return map.known_bytes(segment.content).map(Cow::into_owned);
    };
    let mut bytes = vec![0; map.block_size()];
    (volume.copies() > 1 && map.read_block(volume, block, &mut bytes)).then(|| {
        let start = index(map.offset_in_block(block, segment.range.start));
        bytes[start..start + index(segment.range.end - segment.range.start)].to_vec()
    })
}

impl Scan {
    /// Lists the corrupt parts, and the groups that cannot be repaired.
    pub(super) fn damage(&self, map: &BlockMap) -> Damage {
        let lost = map.by_group(&self.corrupt).into_iter().filter_map(|(group, blocks)| {
            // If only parity blocks are corrupt, all of them can be computed again.
            let any_data = blocks.iter().any(|block| matches!(block, Block::Data(_)));
            (any_data && blocks.len() as u64 > map.numbers().parity).then(|| map.unrepairable(group, &blocks))
        });
        Damage {
            ranges: merged(self.ranges.clone()),
            blocks: self.corrupt.len() as u64,
            lost: lost.collect(),
        }
    }
}

/// Reads consecutive segments into `bytes`. Returns which of them are intact.
fn read_segments(map: &BlockMap, volume: &impl ReadAt, segments: &[Segment], bytes: &mut [u8]) -> Vec<bool> {
    let Some(start) = segments.first().map(|segment| segment.range.start) else { return Vec::new() };
    let local = |range: &Range<u64>| index(range.start - start)..index(range.end - start);
    let mut readable = vec![true; segments.len()];
    if read_exact_at(volume, start, bytes).is_err() {
        for (segment, readable) in segments.iter().zip(&mut readable) {
            let bytes = &mut bytes[local(&segment.range)];
            *readable = read_exact_at(volume, segment.range.start, bytes).is_ok();
        }
    }
    let is_split = |block| map.extents(block).count() == 2;
    // The checksum of a block with two parts needs the other part too.
    for (segment, readable) in segments.iter().zip(&mut readable) {
        let SegmentContent::Block(block) = segment.content else { continue };
        if is_split(block) {
            let mut all = vec![0; map.block_size()];
            *readable = map.read_block(volume, block, &mut all);
            let part_start = index(map.offset_in_block(block, segment.range.start));
            let part = &mut bytes[local(&segment.range)];
            part.copy_from_slice(&all[part_start..part_start + part.len()]);
        }
    }
    let bytes = &*bytes;
    let check = |(segment, readable): (&Segment, bool)| {
        let bytes = &bytes[local(&segment.range)];
        readable
            && match segment.content {
                SegmentContent::Block(block) => is_split(block) || map.is_intact(block, bytes),
                content => map.known_bytes(content).is_some_and(|known| known == bytes),
            }
    };
    segments.par_iter().zip(readable).map(check).collect()
}
