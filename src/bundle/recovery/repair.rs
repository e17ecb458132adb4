//! [`Recovery`]: finds the damage of a volume and repairs it.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::bundle::recovery::block_map::{Block, BlockMap, Segment, SegmentContent};
use crate::bundle::recovery::blocks::{ReadAt, index};
use crate::bundle::recovery::cache::RepairCache;
use crate::bundle::recovery::damage::{Damage, RecoveryError};
use crate::bundle::recovery::description::{Fields, HEAD};
use crate::bundle::recovery::find::{FoundSection, find};
use crate::bundle::recovery::geometry::Geometry;
use crate::bundle::recovery::group::Group;
use crate::bundle::recovery::scan::scan;

/// The recovery data of a volume. Each call receives the volume itself, which must be the same one.
///
/// Uses up to about 170 MiB of memory. Returns verified bytes only: all blocks are compared with their
/// checksums.
pub struct Recovery {
    map: BlockMap,
    cache: Mutex<RepairCache>,
}

impl Recovery {
    /// Finds the recovery data of `volume`, which has `len` bytes; a truncated volume has fewer than were
    /// written.
    ///
    /// Reads the expected position first, then searches the entire volume. Returns `None` if there is no
    /// recovery data, or if none of the three descriptions can be restored.
    pub fn find(volume: &impl ReadAt, len: u64) -> Option<Self> {
        let FoundSection { fields, geometry, frame } = find(volume, len)?;
        let map = BlockMap { geometry, front: fields.front, tail: fields.tail, description: frame };
        Some(Self { map, cache: Mutex::default() })
    }

    /// Returns the length of the intact volume in bytes, as a frame of recovery data states it. `None`: the frame is not
    /// a description.
    #[must_use]
    pub(crate) fn stated_len(frame: &[u8]) -> Option<u64> {
        let fields = Fields::parse(frame.get(..HEAD)?)?;
        let section = Geometry::from_numbers(fields.numbers).section_len();
        fields.front.checked_add(section)?.checked_add(fields.tail)
    }

    /// Replaces the cache of repaired blocks.
    #[cfg(test)]
    pub(super) fn with_cache(self, cache: RepairCache) -> Self {
        Self { cache: Mutex::new(cache), ..self }
    }

    /// Number of repaired bytes in the temporary file.
    #[cfg(test)]
    pub(super) fn spilled_len(&self) -> u64 {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).spilled_len()
    }

    /// Length of the intact volume in bytes.
    #[must_use]
    pub fn volume_len(&self) -> u64 {
        self.map.volume_len()
    }

    /// Byte range of the recovery section, from the start of the volume.
    #[must_use]
    pub fn section(&self) -> Range<u64> {
        self.map.section()
    }

    /// Redundancy, in ‰ of the protected bytes.
    #[must_use]
    pub(crate) fn per_mille(&self) -> u32 {
        self.map.numbers().per_mille
    }

    /// Returns the original bytes of a range of the volume.
    ///
    /// Repairing a block requires its entire group, up to 128 MiB. The other repaired blocks of the group are kept for
    /// later calls, so that sequential reads read each group once: up to 40 MiB in memory, the others in a temporary
    /// file. Without space for the file, a group is read once for every 40 MiB of a gap.
    pub fn reconstruct(&self, volume: &impl ReadAt, range: Range<u64>) -> Result<Vec<u8>, RecoveryError> {
        let map = &self.map;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let mut result = Vec::with_capacity(index(range.end - range.start));
        for Segment { range: segment, content } in map.segments(range.clone()) {
            let requested = segment.start.max(range.start)..segment.end.min(range.end);
            let requested = index(requested.start - segment.start)..index(requested.end - segment.start);
            if let SegmentContent::Block(block) = content {
                let bytes = cache.read_block(map, volume, block)?;
                let part = &bytes[index(map.offset_in_block(block, segment.start))..];
                result.extend_from_slice(&part[requested]);
            } else {
                let known = map.known_bytes(content).expect("not a block; please report");
                result.extend_from_slice(&known[requested]);
            }
        }
        Ok(result)
    }

    /// Reads the entire volume and lists its damage. `progress` receives the number of bytes read since the
    /// last call.
    pub fn damage(&self, volume: &impl ReadAt, progress: impl FnMut(u64)) -> Damage {
        self.damage_in(volume, 0..self.volume_len(), progress)
    }

    /// Like [`Recovery::damage`], for the recovery section only.
    pub fn section_damage(&self, volume: &impl ReadAt, progress: impl FnMut(u64)) -> Damage {
        self.damage_in(volume, self.section(), progress)
    }

    fn damage_in(&self, volume: &impl ReadAt, range: Range<u64>, progress: impl FnMut(u64)) -> Damage {
        let discard = |_, _: &[u8]| Ok::<(), io::Error>(());
        let scan =
            scan(&self.map, volume, range, discard, progress).expect("nothing is written; please report");
        scan.damage(&self.map)
    }

    /// Passes the entire original volume to `write`, each byte once, with its offset. Returns the damage of
    /// `volume`.
    ///
    /// Intact bytes are written first, in order, then repaired blocks; `write` must support any offset. On an
    /// error, the output is incomplete: all intact bytes are written, and some corrupt blocks are missing.
    /// `progress` receives the number of bytes read since the last call.
    pub fn repair(
        &self,
        volume: &impl ReadAt,
        mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
        progress: impl FnMut(u64),
    ) -> Result<Damage, RecoveryError> {
        let map = &self.map;
        let scan =
            scan(map, volume, 0..map.volume_len(), &mut write, progress).map_err(RecoveryError::Write)?;
        let damage = scan.damage(map);
        if !damage.lost.is_empty() {
            return Err(RecoveryError::Unrepairable(damage.lost));
        }
        for (group, blocks) in map.by_group(&scan.corrupt) {
            self.repair_group(volume, group, &blocks, &scan.corrupt, &mut write)?;
        }
        Ok(damage)
    }

    /// Repairs `blocks`, the corrupt blocks of `group`, and writes them.
    fn repair_group(
        &self,
        volume: &impl ReadAt,
        group: u64,
        blocks: &[Block],
        corrupt: &BTreeSet<Block>,
        write: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), RecoveryError> {
        let map = &self.map;
        let group = Group::read(map, volume, group, &mut corrupt.clone())?;
        let mut parity = None;
        let mut buffer = vec![0; map.block_size()];
        for block in blocks {
            let mut rest = match *block {
                Block::Data(number) => group.data(number),
                Block::Parity(number) => {
                    parity.get_or_insert_with(|| group.encode_parity()).block(number, &mut buffer)?;
                    &buffer
                }
            };
            for range in map.extents(*block) {
                let part;
                (part, rest) = rest.split_at(index(range.end - range.start));
                write(range.start, part).map_err(RecoveryError::Write)?;
            }
        }
        Ok(())
    }
}
