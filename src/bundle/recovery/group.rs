//! [`Group`]: the intact rows of a group, read and repaired.

use std::collections::{BTreeMap, BTreeSet};

use reed_solomon_simd::engine::DefaultEngine;

use crate::bundle::recovery::block_map::{Block, BlockMap};
use crate::bundle::recovery::blocks::{ReadAt, index};
use crate::bundle::recovery::code;
use crate::bundle::recovery::damage::RecoveryError;

/// A group in memory, at most 128 MiB. All of its rows are intact.
pub(super) struct Group<'a> {
    map: &'a BlockMap,
    number: u64,
    /// The rows, concatenated.
    rows: Vec<u8>,
}

impl<'a> Group<'a> {
    /// Reads a group and repairs its corrupt rows.
    ///
    /// Blocks in `corrupt` are not read. Other blocks that turn out to be corrupt are added to it.
    pub(super) fn read(
        map: &'a BlockMap,
        volume: &impl ReadAt,
        number: u64,
        corrupt: &mut BTreeSet<Block>,
    ) -> Result<Self, RecoveryError> {
        let (count, block_size) = (index(map.numbers().rows()), map.block_size());
        let mut group = Self { map, number, rows: vec![0; count * block_size] };
        let intact = group.read_rows(volume, corrupt);
        let missing = intact.iter().filter(|intact| !**intact).count();
        if missing == 0 {
            return Ok(group);
        }
        let parity = group.read_parity(volume, missing, corrupt);
        if parity.len() < missing {
            let blocks: Vec<Block> =
                corrupt.iter().copied().filter(|block| map.group_of(*block) == number).collect();
            return Err(RecoveryError::Unrepairable(vec![map.unrepairable(number, &blocks)]));
        }
        let parity_count = index(map.numbers().parity);
        code::decode(&mut group.rows, &intact, &parity, parity_count, block_size, DefaultEngine::new);
        for ((row, intact), bytes) in (0..).zip(&intact).zip(group.rows.chunks_exact(block_size)) {
            if !intact && !map.is_intact(group.data_block(row), bytes) {
                return Err(RecoveryError::Mismatch(number));
            }
        }
        Ok(group)
    }

    /// Reads all rows. Returns which of them are intact.
    fn read_rows(&mut self, volume: &impl ReadAt, corrupt: &mut BTreeSet<Block>) -> Vec<bool> {
        let Self { map, number, rows } = self;
        let numbers = map.numbers();
        let read = |(row, bytes): (u64, &mut [u8])| {
            let number = row * numbers.groups + *number;
            let block = Block::Data(number);
            // Rows after the last block are zeros, which need no reading.
            let is_intact = number >= numbers.blocks()
                || !corrupt.contains(&block) && map.read_block(volume, block, bytes);
            if !is_intact {
                corrupt.insert(block);
            }
            is_intact
        };
        (0..).zip(rows.chunks_exact_mut(map.block_size())).map(read).collect()
    }

    /// Reads up to `count` intact parity blocks. Returns them by row.
    fn read_parity(
        &self,
        volume: &impl ReadAt,
        count: usize,
        corrupt: &mut BTreeSet<Block>,
    ) -> BTreeMap<usize, Vec<u8>> {
        let numbers = self.map.numbers();
        let mut parity = BTreeMap::new();
        for row in 0..numbers.parity {
            let block = Block::Parity(row * numbers.groups + self.number);
            let mut bytes = vec![0; self.map.block_size()];
            if corrupt.contains(&block) || !self.map.read_block(volume, block, &mut bytes) {
                corrupt.insert(block);
                continue;
            }
            parity.insert(index(row), bytes);
            if parity.len() == count {
                break;
            }
        }
        parity
    }

    fn data_block(&self, row: u64) -> Block {
        Block::Data(row * self.map.numbers().groups + self.number)
    }

    /// Returns data block `number`, which belongs to this group.
    pub(super) fn data(&self, number: u64) -> &[u8] {
        let block_size = self.map.block_size();
        &self.rows[index(number / self.map.numbers().groups) * block_size..][..block_size]
    }

    /// Computes all parity blocks.
    pub(super) fn encode_parity(&self) -> GroupParity<'_> {
        let map = self.map;
        let encoder =
            code::encode(&self.rows, index(map.numbers().parity), map.block_size(), DefaultEngine::new);
        GroupParity { map, group: self.number, encoder }
    }
}

/// The computed parity blocks of a group.
pub(super) struct GroupParity<'a> {
    map: &'a BlockMap,
    group: u64,
    encoder: code::Encoder,
}

impl GroupParity<'_> {
    /// Writes parity block `number`, which belongs to this group, into `bytes`. Verifies its checksum.
    pub(super) fn block(&self, number: u64, bytes: &mut [u8]) -> Result<(), RecoveryError> {
        self.encoder.parity(index(number / self.map.numbers().groups), bytes);
        if self.map.is_intact(Block::Parity(number), bytes) {
            Ok(())
        } else {
            Err(RecoveryError::Mismatch(self.group))
        }
    }

    /// Numbers of the parity blocks.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> + use<> {
        let (groups, group) = (self.map.numbers().groups, self.group);
        (0..self.map.numbers().parity).map(move |row| row * groups + group)
    }
}
