//! [`RepairCache`]: reads blocks of a damaged volume at any position, and keeps repaired blocks.

use std::collections::{BTreeMap, BTreeSet};

use crate::bundle::recovery::block_map::{Block, BlockMap};
use crate::bundle::recovery::blocks::{ReadAt, index};
use crate::bundle::recovery::damage::{RecoveryError, UnrepairableGroup};
use crate::bundle::recovery::group::Group;
use crate::bundle::recovery::spill::Spill;

/// Maximum size of the repaired blocks in memory, in bytes.
const MEMORY_LIMIT: usize = 40 << 20;

/// The results of earlier reads.
pub(super) struct RepairCache {
    /// [`MEMORY_LIMIT`], unless a test needs another value.
    memory: usize,
    /// Repaired blocks in memory, by their offset in the volume.
    blocks: BTreeMap<u64, Vec<u8>>,
    /// Total size of `blocks` in bytes.
    bytes: usize,
    /// Repaired blocks for which there is no memory: their positions in `spill`, by their offset in the volume.
    spilled: BTreeMap<u64, u64>,
    spill: Spill,
    /// The last block that was read, from the volume or from `spill`, by its offset. Many corrupt frames can be in one
    /// intact block, if the bundle was written like that.
    last: Option<(u64, Vec<u8>)>,
    /// Blocks that are known to be corrupt. They are not read again: reading a bad sector can take seconds.
    corrupt: BTreeSet<Block>,
    unrepairable: BTreeMap<u64, UnrepairableGroup>,
}

impl Default for RepairCache {
    fn default() -> Self {
        Self::with_limits(MEMORY_LIMIT, Spill::default())
    }
}

impl RepairCache {
    /// Creates a cache of `memory` bytes.
    pub(super) fn with_limits(memory: usize, spill: Spill) -> Self {
        Self {
            memory,
            blocks: BTreeMap::new(),
            bytes: 0,
            spilled: BTreeMap::new(),
            spill,
            last: None,
            corrupt: BTreeSet::new(),
            unrepairable: BTreeMap::new(),
        }
    }

    /// Returns the bytes of a block, repaired if it is corrupt.
    pub(super) fn read_block(
        &mut self,
        map: &BlockMap,
        volume: &impl ReadAt,
        block: Block,
    ) -> Result<&[u8], RecoveryError> {
        let start = map.start_of(block);
        if !self.blocks.contains_key(&start) && !self.load(map, volume, block) {
            self.corrupt.insert(block);
            let group = map.group_of(block);
            if let Some(known) = self.unrepairable.get(&group) {
                return Err(RecoveryError::Unrepairable(vec![known.clone()]));
            }
            self.repair(map, volume, block).inspect_err(|error| {
                if let RecoveryError::Unrepairable(groups) = error {
                    self.unrepairable.extend(groups.iter().map(|group| (group.group, group.clone())));
                }
            })?;
        }
        let last = self.last.as_ref().filter(|(offset, _)| *offset == start).map(|(_, bytes)| bytes);
        Ok(self.blocks.get(&start).or(last).expect("it is one of the two; please report"))
    }

    /// Number of bytes in the temporary file.
    #[cfg(test)]
    pub(super) fn spilled_len(&self) -> u64 {
        self.spill.len()
    }

    /// Reads `block` into `last`, from the volume or from `spill`. Returns false if it is corrupt in both.
    fn load(&mut self, map: &BlockMap, volume: &impl ReadAt, block: Block) -> bool {
        let start = map.start_of(block);
        if self.last.as_ref().is_some_and(|(offset, _)| *offset == start) {
            return true;
        }
        let position = self.spilled.get(&start).copied();
        if position.is_none() && self.corrupt.contains(&block) {
            return false;
        }
        let mut bytes = self.last.take().map_or_else(|| vec![0; map.block_size()], |(_, bytes)| bytes);
        let is_intact = match position {
            Some(position) => self.spill.read(position, &mut bytes) && map.is_intact(block, &bytes),
            None => map.read_block(volume, block, &mut bytes),
        };
        self.last = is_intact.then_some((start, bytes));
        is_intact
    }

    /// Repairs the group of `block`. Keeps its corrupt data blocks, or all of its parity blocks if `block` is one, from
    /// `block` on.
    fn repair(&mut self, map: &BlockMap, volume: &impl ReadAt, block: Block) -> Result<(), RecoveryError> {
        let number = map.group_of(block);
        let group = Group::read(map, volume, number, &mut self.corrupt)?;
        let start = map.start_of(block);
        self.evict(start);
        let mut share = self.memory / index(map.numbers().groups);
        if let Block::Parity(_) = block {
            let parity = group.encode_parity();
            let mut bytes = vec![0; map.block_size()];
            for number in parity.numbers() {
                parity.block(number, &mut bytes)?;
                self.keep(start, map.start_of(Block::Parity(number)), &bytes, &mut share);
            }
            return Ok(());
        }
        let corrupt: Vec<u64> = self
            .corrupt
            .iter()
            .filter(|block| map.group_of(**block) == number)
            .filter_map(|block| if let Block::Data(number) = *block { Some(number) } else { None })
            .collect();
        for number in corrupt {
            self.keep(start, map.start_of(Block::Data(number)), group.data(number), &mut share);
        }
        Ok(())
    }

    /// Makes space in memory for blocks from `start` on, if it is full.
    fn evict(&mut self, start: u64) {
        if self.bytes >= self.memory {
            // Sequential reads do not return to earlier blocks.
            self.blocks = self.blocks.split_off(&start);
            self.bytes = self.blocks.values().map(Vec::len).sum();
        }
        if self.bytes >= self.memory {
            (self.blocks, self.bytes) = (BTreeMap::new(), 0);
        }
    }

    /// Keeps the repaired block at `offset`, unless it is before `start`: in memory if it is the one at `start` or fits into
    /// `share`, otherwise in `spill`.
    fn keep(&mut self, start: u64, offset: u64, bytes: &[u8], share: &mut usize) {
        if offset < start || self.spilled.contains_key(&offset) && offset != start {
            return;
        }
        if offset != start && bytes.len() > *share {
            self.spilled.extend(self.spill.add(bytes).map(|position| (offset, position)));
            return;
        }
        *share = share.saturating_sub(bytes.len());
        self.bytes += bytes.len();
        if let Some(old) = self.blocks.insert(offset, bytes.to_vec()) {
            self.bytes -= old.len();
        }
    }
}
