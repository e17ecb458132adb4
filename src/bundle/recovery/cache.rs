//! [`RepairCache`]: reads blocks of a damaged volume at any position, and keeps repaired blocks in memory.

use std::collections::{BTreeMap, BTreeSet};

use crate::bundle::recovery::block_map::{Block, BlockMap};
use crate::bundle::recovery::blocks::{ReadAt, index};
use crate::bundle::recovery::damage::{RecoveryError, UnrepairableGroup};
use crate::bundle::recovery::group::Group;

/// Maximum size of the repaired blocks in memory, in bytes.
const CACHE_LIMIT: usize = 128 << 20;

/// The results of earlier reads.
#[derive(Default)]
pub(super) struct RepairCache {
    /// Repaired blocks by their offset in the volume.
    blocks: BTreeMap<u64, Vec<u8>>,
    /// Total size of `blocks` in bytes.
    bytes: usize,
    /// The last intact block that was read, by its offset. Many corrupt frames can be in one intact block, if the
    /// bundle was written like that.
    intact: Option<(u64, Vec<u8>)>,
    /// Blocks that are known to be corrupt. They are not read again: reading a bad sector can take seconds.
    corrupt: BTreeSet<Block>,
    unrepairable: BTreeMap<u64, UnrepairableGroup>,
}

impl RepairCache {
    /// Returns the bytes of a block, repaired if it is corrupt.
    pub(super) fn read_block(
        &mut self,
        map: &BlockMap,
        volume: &impl ReadAt,
        block: Block,
    ) -> Result<&[u8], RecoveryError> {
        let start = map.start_of(block);
        if !self.blocks.contains_key(&start) && !self.is_intact(map, volume, block) {
            self.corrupt.insert(block);
            let group = map.group_of(block);
            if let Some(known) = self.unrepairable.get(&group) {
                return Err(RecoveryError::Unrepairable(vec![known.clone()]));
            }
            let repaired = self.repair(map, volume, block).inspect_err(|error| {
                if let RecoveryError::Unrepairable(groups) = error {
                    self.unrepairable.extend(groups.iter().map(|group| (group.group, group.clone())));
                }
            })?;
            self.keep(repaired, start, CACHE_LIMIT / index(map.numbers().groups));
        }
        let intact = self.intact.as_ref().filter(|(offset, _)| *offset == start).map(|(_, bytes)| bytes);
        Ok(self.blocks.get(&start).or(intact).expect("it is one of the two; please report"))
    }

    /// True if `block` is intact. It is then in `intact`.
    fn is_intact(&mut self, map: &BlockMap, volume: &impl ReadAt, block: Block) -> bool {
        let start = map.start_of(block);
        if self.intact.as_ref().is_some_and(|(offset, _)| *offset == start) {
            return true;
        }
        if self.corrupt.contains(&block) {
            return false;
        }
        let mut bytes = self.intact.take().map_or_else(|| vec![0; map.block_size()], |(_, bytes)| bytes);
        let is_intact = map.read_block(volume, block, &mut bytes);
        self.intact = is_intact.then_some((start, bytes));
        is_intact
    }

    /// Repairs the group of `block`. Returns its corrupt data blocks, or all of its parity blocks if `block`
    /// is one, by their offset in the volume.
    fn repair(
        &mut self,
        map: &BlockMap,
        volume: &impl ReadAt,
        block: Block,
    ) -> Result<BTreeMap<u64, Vec<u8>>, RecoveryError> {
        let number = map.group_of(block);
        let group = Group::read(map, volume, number, &mut self.corrupt)?;
        let mut repaired = BTreeMap::new();
        if let Block::Parity(_) = block {
            let parity = group.encode_parity();
            for number in parity.numbers() {
                let mut bytes = vec![0; map.block_size()];
                parity.block(number, &mut bytes)?;
                repaired.insert(map.start_of(Block::Parity(number)), bytes);
            }
            return Ok(repaired);
        }
        for block in self.corrupt.iter().filter(|block| map.group_of(**block) == number) {
            if let Block::Data(number) = *block {
                repaired.insert(map.start_of(*block), group.data(number).to_vec());
            }
        }
        Ok(repaired)
    }

    /// Keeps the repaired block at `start` and those after it, up to `limit` bytes.
    fn keep(&mut self, repaired: BTreeMap<u64, Vec<u8>>, start: u64, limit: usize) {
        if self.bytes >= CACHE_LIMIT {
            // Sequential reads do not return to earlier blocks.
            self.blocks = self.blocks.split_off(&start);
            self.bytes = self.blocks.values().map(Vec::len).sum();
        }
        if self.bytes >= CACHE_LIMIT {
            (self.blocks, self.bytes) = (BTreeMap::new(), 0);
        }
        let mut kept = 0;
        for (offset, bytes) in repaired.into_iter().skip_while(|(offset, _)| *offset < start) {
            if kept > 0 && kept + bytes.len() > limit {
                break;
            }
            kept += bytes.len();
            self.bytes += bytes.len();
            if let Some(old) = self.blocks.insert(offset, bytes) {
                self.bytes -= old.len();
            }
        }
    }
}
