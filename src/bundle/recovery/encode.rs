//! Encodes the recovery section of a volume.

use std::io;
use std::ops::Range;

use rayon::prelude::*;
use reed_solomon_simd::engine::DefaultEngine;

use crate::bundle::format::skippable::RECOVERY_MAGIC;
use crate::bundle::recovery::blocks::{ReadAt, checksum, index, read_exact_at};
use crate::bundle::recovery::code::{Encoder, transform};
use crate::bundle::recovery::description;
use crate::bundle::recovery::geometry::{FRAME_HEADER, FrameContent, Geometry, Numbers};

/// Memory for the groups that are encoded at the same time, in bytes.
const MEMORY: u64 = 160 << 20;
/// Maximum number of bytes per read and per write.
const BUFFER: u64 = 8 << 20;

/// Encodes the recovery section of `protected`: the front of a volume, directly followed by its tail of
/// `tail` bytes.
///
/// `write` receives the offset from the start of the section. Each byte is written once, but not in order:
/// `protected` is read only once, and the first parity block can depend on its last byte. The output depends
/// on `protected`, `geometry` and `tail` only. Uses up to about 200 MiB of memory.
///
/// Fails if `write` fails, or if `protected` cannot be read or is shorter than the geometry states.
pub(crate) fn encode(
    geometry: &Geometry,
    tail: u64,
    protected: &impl ReadAt,
    write: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    encode_within(MEMORY, geometry, tail, protected, write)
}

/// Like [`encode`], with `memory` bytes for groups that are encoded at the same time, or more if one group
/// needs more.
pub(super) fn encode_within(
    memory: u64,
    geometry: &Geometry,
    tail: u64,
    protected: &impl ReadAt,
    mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let numbers = geometry.numbers();
    let mut checksums =
        Checksums { data: vec![0; index(numbers.blocks())], parity: vec![0; index(numbers.parity_blocks())] };
    // As many groups as possible: adjacent groups have adjacent blocks.
    let per_group = Encoder::memory(numbers.rows(), numbers.parity, numbers.block_size);
    let at_once = (memory / per_group).clamp(1, numbers.groups);
    // Passes of about the same size: a small last pass would read small pieces.
    let passes = numbers.groups.div_ceil(at_once);
    for pass in 0..passes {
        let groups = numbers.groups * pass / passes..numbers.groups * (pass + 1) / passes;
        let pass = Pass { geometry, groups };
        let encoders = pass.encode(protected, &mut checksums.data)?;
        pass.write_parity(&encoders, &mut checksums.parity, &mut write)?;
    }
    let description = description::encode(geometry, tail, &checksums.data, &checksums.parity);
    for frame in geometry.frames() {
        match frame.content {
            FrameContent::Description => write(frame.offset, &description)?,
            FrameContent::Parity { .. } => write(frame.offset, &parity_header(frame.len))?,
        }
    }
    Ok(())
}

/// Returns the header of a frame of parity blocks. `frame_len` includes the header.
pub(super) fn parity_header(frame_len: u64) -> [u8; 8] {
    let payload = u32::try_from(frame_len - FRAME_HEADER).expect("at most PAYLOAD_LIMIT");
    let mut header = [0; 8];
    header[..4].copy_from_slice(&RECOVERY_MAGIC.to_le_bytes());
    header[4..].copy_from_slice(&payload.to_le_bytes());
    header
}

/// Checksums of all blocks, by number.
struct Checksums {
    data: Vec<u64>,
    parity: Vec<u64>,
}

/// A range of groups that are encoded at the same time.
struct Pass<'a> {
    geometry: &'a Geometry,
    groups: Range<u64>,
}

impl Pass<'_> {
    fn numbers(&self) -> &Numbers {
        self.geometry.numbers()
    }

    fn group_count(&self) -> usize {
        index(self.groups.end - self.groups.start)
    }

    /// Reads the blocks of the groups and encodes them. Returns the encoders, which contain the parity
    /// blocks.
    fn encode(&self, protected: &impl ReadAt, checksums: &mut [u64]) -> io::Result<Vec<Encoder>> {
        let numbers = self.numbers();
        let (rows, parity, block_size) =
            (index(numbers.rows()), index(numbers.parity), index(numbers.block_size));
        let count = self.group_count();
        let mut encoders: Vec<Encoder> = (0..count).map(|_| Encoder::new(rows, parity, block_size)).collect();
        let at_once = index((BUFFER / (count as u64 * numbers.block_size)).max(1));
        let part = parity.next_power_of_two();
        let mut buffer = vec![0; at_once.min(rows) * count * block_size];
        let mut row = 0;
        while row < rows {
            // Not beyond the end of the encoders' current part.
            let read = at_once.min(rows - row).min(part - row % part);
            let bytes = &mut buffer[..read * count * block_size];
            self.read_rows(row as u64, protected, bytes)?;
            self.add_rows(row as u64, &mut encoders, bytes, checksums);
            row += read;
            if row == rows || encoders[0].is_full() {
                let columns: Vec<_> = encoders.iter_mut().flat_map(Encoder::columns).collect();
                columns
                    .into_par_iter()
                    .for_each_init(DefaultEngine::new, |engine, column| column.absorb(engine));
            }
        }
        let sums: Vec<_> = encoders.iter_mut().flat_map(Encoder::sums).collect();
        sums.into_par_iter().for_each_init(DefaultEngine::new, |engine, sum| transform(sum, parity, engine));
        Ok(encoders)
    }

    /// Fills `bytes` with rows of the groups, starting at `row`. Pads with zeros after the protected bytes.
    fn read_rows(&self, row: u64, protected: &impl ReadAt, bytes: &mut [u8]) -> io::Result<()> {
        let numbers = self.numbers();
        // If the pass has all groups, its rows are contiguous.
        let is_contiguous = self.group_count() as u64 == numbers.groups;
        let row_len = self.group_count() * index(numbers.block_size);
        let run = if is_contiguous { bytes.len() } else { row_len };
        for (row, bytes) in (row..).zip(bytes.chunks_exact_mut(run)) {
            let offset = (row * numbers.groups + self.groups.start) * numbers.block_size;
            let len = numbers.protected.saturating_sub(offset).min(run as u64);
            let (content, padding) = bytes.split_at_mut(index(len));
            read_exact_at(protected, offset, content)?;
            padding.fill(0);
        }
        Ok(())
    }

    /// Adds the rows in `bytes` to the encoders, and notes the checksums of their blocks.
    fn add_rows(&self, row: u64, encoders: &mut [Encoder], bytes: &[u8], checksums: &mut [u64]) {
        let block_size = index(self.numbers().block_size);
        let count = self.group_count();
        let add = |(group, encoder): (usize, &mut Encoder)| -> Vec<u64> {
            let blocks = bytes.chunks_exact(block_size).skip(group).step_by(count);
            blocks.map(|bytes| (encoder.add(bytes), checksum(bytes, block_size)).1).collect()
        };
        let by_group: Vec<Vec<u64>> = encoders.par_iter_mut().enumerate().map(add).collect();
        for (group, group_checksums) in self.groups.clone().zip(by_group) {
            for (row, checksum) in (row..).zip(group_checksums) {
                // The last rows of a group can have no block.
                if let Some(entry) = checksums.get_mut(index(row * self.numbers().groups + group)) {
                    *entry = checksum;
                }
            }
        }
    }

    /// Writes the parity blocks of the groups, adjacent ones together, and notes their checksums.
    fn write_parity(
        &self,
        encoders: &[Encoder],
        checksums: &mut [u64],
        write: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let numbers = self.numbers();
        let block_size = index(numbers.block_size);
        let mut bytes: Vec<u8> = Vec::new();
        let mut start = 0;
        for row in 0..numbers.parity {
            for (group, encoder) in self.groups.clone().zip(encoders) {
                let number = row * numbers.groups + group;
                let offset = self.geometry.parity_offset(number);
                if offset != start + bytes.len() as u64 || bytes.len() as u64 >= BUFFER {
                    write(start, &bytes)?;
                    bytes.clear();
                    start = offset;
                }
                let len = bytes.len();
                bytes.resize(len + block_size, 0);
                encoder.parity(index(row), &mut bytes[len..]);
                checksums[index(number)] = checksum(&bytes[len..], block_size);
            }
        }
        write(start, &bytes)
    }
}
