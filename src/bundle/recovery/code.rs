//! The code of one group: Reed-Solomon over GF(2^16), column by column.
//!
//! What a group's recovery blocks are is in `bundle-format.md`, "The code". The transforms are those of
//! `reed-solomon-simd`, and always its *high rate*: which of its two codes it would choose by itself depends on numbers
//! that a format should not depend on.
//!
//! A column is [`STRIPE`] bytes of every block of a group. Columns know nothing of each other, so they are what the cores
//! share, and one of them fits into a core's cache.

use std::collections::BTreeMap;

use rayon::prelude::*;
use reed_solomon_simd::engine::{Engine, ShardsRefMut};
use reed_solomon_simd::rate::{HighRateDecoder, RateDecoder};

/// How many bytes of a block are in a column; the size of every block is a multiple of it.
pub(super) const STRIPE: usize = 2 << 10;
/// What the crate counts bytes in.
type Unit = [u8; 64];
const UNITS: usize = STRIPE / size_of::<Unit>();

/// Makes the recovery blocks of a group whose blocks come in order, some at a time.
///
/// The sum over the *parts* of a group, each as long as the recovery blocks rounded up to a power of two, of what the
/// inverse transform makes of them, is all that has to be remembered. Its transform is the recovery blocks.
pub(super) struct Encoder {
    /// How many blocks a part has.
    part: usize,
    /// How many blocks have been taken.
    rows: usize,
    stripes: usize,
    /// The sum; of each column, of each block, a stripe.
    sum: Vec<Unit>,
    /// The part that is being filled, likewise. The first part is filled where the sum will be.
    next: Vec<Unit>,
}

impl Encoder {
    /// An encoder for `rows` blocks of `block` bytes, of which `spare` recovery blocks are made.
    pub(super) fn new(rows: usize, spare: usize, block: usize) -> Self {
        let part = spare.next_power_of_two();
        let units = part * block / size_of::<Unit>();
        let next = if rows > part { vec![[0; 64]; units] } else { Vec::new() };
        Self { part, rows: 0, stripes: block / STRIPE, sum: vec![[0; 64]; units], next }
    }

    /// How many bytes an encoder has in memory.
    pub(super) fn memory(rows: u64, spare: u64, block: u64) -> u64 {
        let part = spare.next_power_of_two();
        part * block * if rows > part { 2 } else { 1 }
    }

    /// Takes the next block.
    pub(super) fn add(&mut self, block: &[u8]) {
        let row = self.rows % self.part;
        let room = if self.rows < self.part { &mut self.sum } else { &mut self.next };
        for (column, stripe) in room.chunks_exact_mut(self.part * UNITS).zip(block.chunks_exact(STRIPE)) {
            column[row * UNITS..(row + 1) * UNITS].as_flattened_mut().copy_from_slice(stripe);
        }
        self.rows += 1;
    }

    /// Whether a part is full, and has to be [absorbed](Self::columns) before the next block comes.
    pub(super) fn is_full(&self) -> bool {
        self.rows > 0 && self.rows.is_multiple_of(self.part)
    }

    /// What is to be done when a part is full, or when the last block has come: one task for each column.
    pub(super) fn columns(&mut self) -> Vec<Column<'_>> {
        let count = (self.rows - 1) % self.part + 1;
        let start = self.rows - count;
        let len = self.part * UNITS;
        let sums = self.sum.chunks_exact_mut(len);
        if start == 0 {
            return sums.map(|sum| Column { sum, next: None, start, count }).collect();
        }
        let nexts = self.next.chunks_exact_mut(len);
        sums.zip(nexts).map(|(sum, next)| Column { sum, next: Some(next), start, count }).collect()
    }

    /// The columns of the sum, for [`transform`]: when everything is absorbed, to make the recovery blocks.
    pub(super) fn sums(&mut self) -> impl Iterator<Item = &mut [Unit]> {
        self.sum.chunks_exact_mut(self.part * UNITS)
    }

    /// Recovery block `row`, when all columns are transformed.
    pub(super) fn spare(&self, row: usize, block: &mut [u8]) {
        assert_eq!(block.len(), self.stripes * STRIPE, "another block; please report");
        for (column, stripe) in self.sum.chunks_exact(self.part * UNITS).zip(block.chunks_exact_mut(STRIPE)) {
            stripe.copy_from_slice(column[row * UNITS..(row + 1) * UNITS].as_flattened());
        }
    }
}

/// One column of a part that waits to be added to the sum.
pub(super) struct Column<'a> {
    sum: &'a mut [Unit],
    /// Nothing where the part is the first, which stands in the sum itself.
    next: Option<&'a mut [Unit]>,
    /// The number of its first block, and how many there are.
    start: usize,
    count: usize,
}

impl Column<'_> {
    pub(super) fn absorb(self, engine: &impl Engine) {
        let Self { sum, next, start, count } = self;
        let part = sum.len() / UNITS;
        let invert = |units: &mut [Unit]| {
            units[count * UNITS..].fill([0; 64]);
            // The points of the recovery blocks come first, so those of this part begin behind as many.
            engine.ifft(&mut ShardsRefMut::new(part, UNITS, units), 0, part, count, part + start);
        };
        match next {
            None => invert(sum),
            Some(next) => {
                invert(next);
                let pairs = sum.as_flattened_mut().iter_mut().zip(next.as_flattened());
                pairs.for_each(|(sum, next)| *sum ^= next);
            }
        }
    }
}

/// Makes of a column's sum its part of `spare` recovery blocks.
pub(super) fn transform(sum: &mut [Unit], spare: usize, engine: &impl Engine) {
    let part = sum.len() / UNITS;
    engine.fft(&mut ShardsRefMut::new(part, UNITS, sum), 0, part, spare, 0);
}

/// The recovery blocks of a group that is all in memory, for [`Encoder::spare`].
pub(super) fn encode<E: Engine + Sync>(
    rows: &[u8],
    spare: usize,
    block: usize,
    engine: impl Fn() -> E + Sync,
) -> Encoder {
    let count = rows.len() / block;
    let mut encoder = Encoder::new(count, spare, block);
    for (number, row) in rows.chunks_exact(block).enumerate() {
        encoder.add(row);
        if encoder.is_full() || number + 1 == count {
            encoder.columns().into_par_iter().for_each_init(&engine, |engine, column| column.absorb(engine));
        }
    }
    let sums: Vec<_> = encoder.sums().collect();
    sums.into_par_iter().for_each_init(&engine, |engine, sum| transform(sum, spare, engine));
    encoder
}

/// Puts the blocks that are not `there` into `rows`, the blocks of a group one after the other. `spares` are recovery
/// blocks that are right, with their numbers of `spare`, and at least as many as blocks are missing.
pub(super) fn decode<E: Engine>(
    rows: &mut [u8],
    there: &[bool],
    spares: &BTreeMap<usize, Vec<u8>>,
    spare: usize,
    block: usize,
    engine: impl Fn() -> E + Sync,
) {
    let missing: Vec<usize> = (0..there.len()).filter(|row| !there[*row]).collect();
    let known = &*rows;
    let decode = |decoder: &mut HighRateDecoder<E>, column: usize| {
        let stripe = column * STRIPE..(column + 1) * STRIPE;
        for row in (0..there.len()).filter(|row| there[*row]) {
            decoder.add_original_shard(row, &known[row * block..][stripe.clone()])?;
        }
        for (number, bytes) in spares {
            decoder.add_recovery_shard(*number, &bytes[stripe.clone()])?;
        }
        let result = decoder.decode()?;
        let mut repaired = Vec::with_capacity(missing.len() * STRIPE);
        for row in &missing {
            repaired
                .extend_from_slice(result.restored_original(*row).expect("it was missing; please report"));
        }
        Ok(repaired)
    };
    let decoder = || HighRateDecoder::new(there.len(), spare, STRIPE, engine(), None);
    let columns: Vec<Result<Vec<u8>, reed_solomon_simd::Error>> = (0..block / STRIPE)
        .into_par_iter()
        .map_init(
            || decoder().expect("the shape is sound; please report"),
            |decoder, column| decode(decoder, column),
        )
        .collect();
    for (column, repaired) in columns.into_iter().enumerate() {
        let repaired = repaired.expect("as many recovery blocks as are missing; please report");
        for (row, stripe) in missing.iter().zip(repaired.chunks_exact(STRIPE)) {
            rows[row * block + column * STRIPE..][..STRIPE].copy_from_slice(stripe);
        }
    }
}

#[cfg(test)]
mod tests {
    use reed_solomon_simd::ReedSolomonEncoder;
    use reed_solomon_simd::engine::{DefaultEngine, Naive, NoSimd};

    use super::*;
    use crate::bundle::recovery::tests::noise;

    const BLOCK: usize = 4096;

    fn spares<E: Engine + Sync>(rows: &[u8], spare: usize, engine: impl Fn() -> E + Sync) -> Vec<Vec<u8>> {
        let encoder = encode(rows, spare, BLOCK, engine);
        let mut block = vec![0; BLOCK];
        (0..spare).map(|row| (encoder.spare(row, &mut block), block.clone()).1).collect()
    }

    const POLYNOMIAL: u32 = 0x1_002D;

    /// The element of GF(2^16), as a polynomial, that a number stands for: its bits say which elements of the basis are
    /// summed up.
    fn element(number: u16) -> u32 {
        const BASIS: [u16; 16] = [
            0x0001, 0xACCA, 0x3C0E, 0x163E, 0xC582, 0xED2E, 0x914C, 0x4012, 0x6C98, 0x10D8, 0x6A72, 0xB900,
            0xFDB8, 0xFB34, 0xFF38, 0x991E,
        ];
        (0..16).filter(|bit| number >> bit & 1 == 1).fold(0, |sum, bit| sum ^ u32::from(BASIS[bit]))
    }

    fn product(mut a: u32, b: u32) -> u32 {
        let mut product = 0;
        for bit in 0..16 {
            product ^= if b >> bit & 1 == 1 { a } else { 0 };
            a = if a >> 15 == 1 { a << 1 ^ POLYNOMIAL } else { a << 1 };
        }
        product
    }

    /// Symbol `index` of a block.
    fn symbol(block: &[u8], index: usize) -> u16 {
        let at = index / 32 * 64 + index % 32;
        u16::from_le_bytes([block[at], block[at + 32]])
    }

    #[test]
    fn the_code_is_the_one_of_the_format_description() {
        // The recovery blocks are as many as a power of two here, so that all of the equations are known.
        for (count, spare) in [(1, 1), (3, 2), (5, 4), (11, 4)] {
            let rows = noise(count * BLOCK, 7);
            let spares = spares(&rows, spare, DefaultEngine::new);
            for index in [0, 31, 32, 63, 2047] {
                let blocks = spares.iter().map(Vec::as_slice).chain(rows.chunks_exact(BLOCK));
                let values = blocks.map(|block| element(symbol(block, index)));
                let points: Vec<(u32, u32)> = (0..).map(element).zip(values).collect();
                for power in 0..spare {
                    let term = |(point, value): &(u32, u32)| {
                        (0..power).fold(*value, |value, _| product(value, *point))
                    };
                    assert_eq!(points.iter().map(term).fold(0, |sum, term| sum ^ term), 0, "{count} {power}");
                }
            }
        }
    }

    #[test]
    fn every_engine_makes_the_same_bytes_and_so_does_the_crate_by_itself() {
        for (count, spare) in [(1, 1), (100, 7), (130, 8), (300, 64), (40, 38)] {
            let rows = noise(count * BLOCK, 3);
            let fast = spares(&rows, spare, DefaultEngine::new);
            assert_eq!(fast, spares(&rows, spare, NoSimd::new));
            if count <= 130 {
                assert_eq!(fast, spares(&rows, spare, Naive::new));
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert_eq!(fast, pool.install(|| spares(&rows, spare, DefaultEngine::new)));
            if count.next_power_of_two() > spare.next_power_of_two() {
                let mut theirs = ReedSolomonEncoder::new(count, spare, BLOCK).unwrap();
                rows.chunks_exact(BLOCK).for_each(|row| theirs.add_original_shard(row).unwrap());
                assert!(theirs.encode().unwrap().recovery_iter().eq(fast.iter().map(Vec::as_slice)));
            }
        }
    }

    #[test]
    fn as_many_blocks_as_there_are_recovery_blocks_come_back() {
        for (count, spare) in [(1, 1), (5, 4), (100, 7), (40, 38)] {
            let rows = noise(count * BLOCK, 11);
            let all = spares(&rows, spare, DefaultEngine::new);
            for first in [0, 1, count / 2, count - 1] {
                let lost: Vec<usize> = (first..count).take(spare).collect();
                let mut there = vec![true; count];
                let mut damaged = rows.clone();
                for row in &lost {
                    there[*row] = false;
                    damaged[row * BLOCK..(row + 1) * BLOCK].fill(0xEE);
                }
                // The last ones, so that not always the same are left out.
                let kept = all.iter().cloned().enumerate().rev().take(lost.len()).collect();
                decode(&mut damaged, &there, &kept, spare, BLOCK, DefaultEngine::new);
                assert!(damaged == rows, "{count} {spare} {first}");
            }
        }
    }
}
