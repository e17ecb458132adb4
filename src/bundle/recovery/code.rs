//! The code of one group: Reed–Solomon over GF(2^16), column by column.
//!
//! `bundle-format.md`, "The code", defines the parity blocks. The transforms are those of
//! `reed-solomon-simd`, always its *high rate*: the crate itself selects one of two codes by numbers that a
//! format must not depend on.
//!
//! A column is [`STRIPE`] bytes of every block of a group. Columns are independent of each other, so they are
//! processed in parallel. A column fits into the cache of a core.

use std::collections::BTreeMap;

use rayon::prelude::*;
use reed_solomon_simd::engine::{Engine, ShardsRefMut};
use reed_solomon_simd::rate::{HighRateDecoder, RateDecoder};

/// Number of bytes per block in a column. Every block size is a multiple of it.
pub(super) const STRIPE: usize = 2 << 10;
/// Number of columns that are decoded at the same time.
const COLUMNS: usize = 8;
/// The element type of `reed-solomon-simd`.
type Unit = [u8; 64];
const UNITS: usize = STRIPE / size_of::<Unit>();

/// Encodes the parity blocks of a group whose rows are added one after the other.
///
/// A group consists of *parts* of as many rows as the number of parity blocks, rounded up to a power of two.
/// Only the sum of the inverse transforms of all parts is kept. The transform of this sum is the parity
/// blocks.
pub(super) struct Encoder {
    /// Number of rows per part.
    part: usize,
    /// Number of rows added so far.
    rows: usize,
    stripes: usize,
    /// The sum: by column, then by row.
    sum: Vec<Unit>,
    /// The part that is being filled, in the same order. The first part is filled in `sum` itself.
    next: Vec<Unit>,
}

impl Encoder {
    /// Creates an encoder for `rows` rows of `block_size` bytes and `parity` parity blocks.
    pub(super) fn new(rows: usize, parity: usize, block_size: usize) -> Self {
        let part = parity.next_power_of_two();
        let units = part * block_size / size_of::<Unit>();
        let next = if rows > part { vec![[0; 64]; units] } else { Vec::new() };
        Self { part, rows: 0, stripes: block_size / STRIPE, sum: vec![[0; 64]; units], next }
    }

    /// Returns the memory of an encoder in bytes.
    pub(super) fn memory(rows: u64, parity: u64, block_size: u64) -> u64 {
        let part = parity.next_power_of_two();
        part * block_size * if rows > part { 2 } else { 1 }
    }

    /// Adds the next row.
    pub(super) fn add(&mut self, block: &[u8]) {
        let row = self.rows % self.part;
        let part = if self.rows < self.part { &mut self.sum } else { &mut self.next };
        for (column, stripe) in part.chunks_exact_mut(self.part * UNITS).zip(block.chunks_exact(STRIPE)) {
            column[row * UNITS..(row + 1) * UNITS].as_flattened_mut().copy_from_slice(stripe);
        }
        self.rows += 1;
    }

    /// True if a part is full. Its [columns](Self::columns) must be absorbed before the next row is added.
    pub(super) fn is_full(&self) -> bool {
        self.rows > 0 && self.rows.is_multiple_of(self.part)
    }

    /// Returns the columns of the current part, to be absorbed if it is full or has the last row.
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

    /// Returns the columns of the sum, for [`transform`] after all parts are absorbed.
    pub(super) fn sums(&mut self) -> impl Iterator<Item = &mut [Unit]> {
        self.sum.chunks_exact_mut(self.part * UNITS)
    }

    /// Copies the parity block of `row` into `block`, after all columns are transformed.
    pub(super) fn parity(&self, row: usize, block: &mut [u8]) {
        assert_eq!(block.len(), self.stripes * STRIPE, "another block size; please report");
        for (column, stripe) in self.sum.chunks_exact(self.part * UNITS).zip(block.chunks_exact_mut(STRIPE)) {
            stripe.copy_from_slice(column[row * UNITS..(row + 1) * UNITS].as_flattened());
        }
    }
}

/// A column of a part that is not in the sum yet.
pub(super) struct Column<'a> {
    sum: &'a mut [Unit],
    /// `None` for the first part, which is in `sum` itself.
    next: Option<&'a mut [Unit]>,
    /// First row of the part.
    start: usize,
    /// Number of rows of the part.
    count: usize,
}

impl Column<'_> {
    /// Adds the column to the sum.
    pub(super) fn absorb(self, engine: &impl Engine) {
        let Self { sum, next, start, count } = self;
        let part = sum.len() / UNITS;
        let invert = |units: &mut [Unit]| {
            units[count * UNITS..].fill([0; 64]);
            // The first `part` points of the code belong to the parity blocks.
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

/// Transforms a column of the sum into the same column of `parity` parity blocks.
pub(super) fn transform(sum: &mut [Unit], parity: usize, engine: &impl Engine) {
    let part = sum.len() / UNITS;
    engine.fft(&mut ShardsRefMut::new(part, UNITS, sum), 0, part, parity, 0);
}

/// Encodes a group whose rows are all in memory. The parity blocks are read with [`Encoder::parity`].
pub(super) fn encode<E: Engine + Sync>(
    rows: &[u8],
    parity: usize,
    block_size: usize,
    engine: impl Fn() -> E + Sync,
) -> Encoder {
    let count = rows.len() / block_size;
    let mut encoder = Encoder::new(count, parity, block_size);
    for (number, row) in rows.chunks_exact(block_size).enumerate() {
        encoder.add(row);
        if encoder.is_full() || number + 1 == count {
            encoder.columns().into_par_iter().for_each_init(&engine, |engine, column| column.absorb(engine));
        }
    }
    let sums: Vec<_> = encoder.sums().collect();
    sums.into_par_iter().for_each_init(&engine, |engine, sum| transform(sum, parity, engine));
    encoder
}

/// Restores the rows of a group that are not `intact`.
///
/// `parity` has intact parity blocks by row, at least as many as rows are missing. `parity_count` is the
/// number of parity blocks of the group.
pub(super) fn decode<E: Engine>(
    rows: &mut [u8],
    intact: &[bool],
    parity: &BTreeMap<usize, Vec<u8>>,
    parity_count: usize,
    block_size: usize,
    engine: impl Fn() -> E + Sync,
) {
    let missing: Vec<usize> = (0..intact.len()).filter(|row| !intact[*row]).collect();
    let decode = |decoder: &mut HighRateDecoder<E>, known: &[u8], column: usize| {
        let stripe = column * STRIPE..(column + 1) * STRIPE;
        for row in (0..intact.len()).filter(|row| intact[*row]) {
            decoder.add_original_shard(row, &known[row * block_size..][stripe.clone()])?;
        }
        for (row, bytes) in parity {
            decoder.add_recovery_shard(*row, &bytes[stripe.clone()])?;
        }
        let result = decoder.decode()?;
        let mut restored = Vec::with_capacity(missing.len() * STRIPE);
        for row in &missing {
            restored
                .extend_from_slice(result.restored_original(*row).expect("it was missing; please report"));
        }
        Ok(restored)
    };
    let decoder = || HighRateDecoder::new(intact.len(), parity_count, STRIPE, engine(), None);
    let columns: Vec<usize> = (0..block_size / STRIPE).collect();
    // All columns together would need the memory of all missing rows again.
    for columns in columns.chunks(COLUMNS) {
        let known = &*rows;
        let restored: Vec<Result<Vec<u8>, reed_solomon_simd::Error>> = columns
            .par_iter()
            .map_init(
                || decoder().expect("the geometry is valid; please report"),
                |decoder, column| decode(decoder, known, *column),
            )
            .collect();
        for (column, restored) in columns.iter().zip(restored) {
            let restored = restored.expect("as many parity blocks as missing rows; please report");
            for (row, stripe) in missing.iter().zip(restored.chunks_exact(STRIPE)) {
                rows[row * block_size + column * STRIPE..][..STRIPE].copy_from_slice(stripe);
            }
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

    fn parity_blocks<E: Engine + Sync>(
        rows: &[u8],
        parity_count: usize,
        engine: impl Fn() -> E + Sync,
    ) -> Vec<Vec<u8>> {
        let encoder = encode(rows, parity_count, BLOCK, engine);
        let mut block = vec![0; BLOCK];
        (0..parity_count).map(|row| (encoder.parity(row, &mut block), block.clone()).1).collect()
    }

    const POLYNOMIAL: u32 = 0x1_002D;

    /// Returns the element of GF(2^16), as a polynomial, that a number represents: the sum of the basis
    /// elements whose bits are set.
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

    /// Returns element `index` of a block.
    fn element_of(block: &[u8], index: usize) -> u16 {
        let at = index / 32 * 64 + index % 32;
        u16::from_le_bytes([block[at], block[at + 32]])
    }

    #[test]
    fn the_code_satisfies_the_equations_of_the_format() {
        // The number of parity blocks is a power of two: then every element of the equations is known.
        for (count, parity_count) in [(1, 1), (3, 2), (5, 4), (11, 4)] {
            let rows = noise(count * BLOCK, 7);
            let parity = parity_blocks(&rows, parity_count, DefaultEngine::new);
            for index in [0, 31, 32, 63, 2047] {
                let blocks = parity.iter().map(Vec::as_slice).chain(rows.chunks_exact(BLOCK));
                let values = blocks.map(|block| element(element_of(block, index)));
                let points: Vec<(u32, u32)> = (0..).map(element).zip(values).collect();
                for power in 0..parity_count {
                    let term = |(point, value): &(u32, u32)| {
                        (0..power).fold(*value, |value, _| product(value, *point))
                    };
                    assert_eq!(points.iter().map(term).fold(0, |sum, term| sum ^ term), 0, "{count} {power}");
                }
            }
        }
    }

    #[test]
    fn all_engines_and_the_encoder_of_the_crate_return_the_same_bytes() {
        for (count, parity_count) in [(1, 1), (100, 7), (130, 8), (300, 64), (40, 38)] {
            let rows = noise(count * BLOCK, 3);
            let fast = parity_blocks(&rows, parity_count, DefaultEngine::new);
            assert_eq!(fast, parity_blocks(&rows, parity_count, NoSimd::new));
            if count <= 130 {
                assert_eq!(fast, parity_blocks(&rows, parity_count, Naive::new));
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert_eq!(fast, pool.install(|| parity_blocks(&rows, parity_count, DefaultEngine::new)));
            if count.next_power_of_two() > parity_count.next_power_of_two() {
                let mut theirs = ReedSolomonEncoder::new(count, parity_count, BLOCK).unwrap();
                rows.chunks_exact(BLOCK).for_each(|row| theirs.add_original_shard(row).unwrap());
                assert!(theirs.encode().unwrap().recovery_iter().eq(fast.iter().map(Vec::as_slice)));
            }
        }
    }

    #[test]
    fn as_many_rows_as_parity_blocks_can_be_restored() {
        for (count, parity_count) in [(1, 1), (5, 4), (100, 7), (40, 38)] {
            let rows = noise(count * BLOCK, 11);
            let all = parity_blocks(&rows, parity_count, DefaultEngine::new);
            for first in [0, 1, count / 2, count - 1] {
                let lost: Vec<usize> = (first..count).take(parity_count).collect();
                let mut intact = vec![true; count];
                let mut damaged = rows.clone();
                for row in &lost {
                    intact[*row] = false;
                    damaged[row * BLOCK..(row + 1) * BLOCK].fill(0xEE);
                }
                // The last ones, so that the omitted parity blocks differ.
                let kept = all.iter().cloned().enumerate().rev().take(lost.len()).collect();
                decode(&mut damaged, &intact, &kept, parity_count, BLOCK, DefaultEngine::new);
                assert!(damaged == rows, "{count} {parity_count} {first}");
            }
        }
    }
}
