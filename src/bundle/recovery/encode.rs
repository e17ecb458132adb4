//! Making the recovery section of a volume.

use std::io;
use std::ops::Range;

use rayon::prelude::*;
use reed_solomon_simd::engine::DefaultEngine;

use crate::bundle::format::skippable::RECOVERY_MAGIC;
use crate::bundle::recovery::blocks::{ReadAt, checksum, index, read_exact_at};
use crate::bundle::recovery::code::{Encoder, transform};
use crate::bundle::recovery::description;
use crate::bundle::recovery::geometry::{FRAME_HEADER, Geometry, Holds, Numbers};

/// How much memory the groups may have that are encoded at once.
const MEMORY: u64 = 160 << 20;
/// How much is read before it is encoded.
const READ: u64 = 8 << 20;

/// Makes the recovery section of what `protected` holds: the front of a volume and, without the section between them, its
/// tail of `tail` bytes.
///
/// All of the section is written, every byte once, but in no order, because what is protected is read once, and the first
/// recovery block may depend on its last byte: `write` gets the place, in bytes from the start of the section. The bytes
/// depend on nothing but `protected` and the arguments. At most some 200 MiB of memory are used.
///
/// An error is one of `protected`, which has to have as many bytes as the shape says, or one of `write`.
pub(crate) fn encode(
    shape: &Geometry,
    tail: u64,
    protected: &impl ReadAt,
    write: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    encode_within(MEMORY, shape, tail, protected, write)
}

/// The same, with `memory` for the groups that are encoded at once; or with more, if one group needs more.
pub(super) fn encode_within(
    memory: u64,
    shape: &Geometry,
    tail: u64,
    protected: &impl ReadAt,
    mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let numbers = shape.numbers();
    let mut sums = Sums { data: vec![0; index(numbers.blocks())], spares: vec![0; index(numbers.spares())] };
    // As many as possible, because neighbouring groups have neighbouring blocks.
    let of_one = Encoder::memory(numbers.rows(), numbers.spare, numbers.block);
    let at_once = (memory / of_one).clamp(1, numbers.groups);
    // Passes of about the same size, so that no pass reads crumbs.
    let passes = numbers.groups.div_ceil(at_once);
    for pass in 0..passes {
        let groups = numbers.groups * pass / passes..numbers.groups * (pass + 1) / passes;
        encode_groups(shape, groups, protected, &mut sums, &mut write)?;
    }
    let description = description::encode(shape, tail, &sums.data, &sums.spares);
    for frame in shape.parts() {
        match frame.holds {
            Holds::Description => write(frame.offset, &description)?,
            Holds::Blocks(_) => write(frame.offset, &blocks_header(frame.len))?,
        }
    }
    Ok(())
}

/// What stands before the recovery blocks of a frame that is `len` bytes long.
pub(super) fn blocks_header(len: u64) -> [u8; 8] {
    let payload = u32::try_from(len - FRAME_HEADER).expect("at most PAYLOAD_LIMIT");
    let mut header = [0; 8];
    header[..4].copy_from_slice(&RECOVERY_MAGIC.to_le_bytes());
    header[4..].copy_from_slice(&payload.to_le_bytes());
    header
}

struct Sums {
    data: Vec<u64>,
    spares: Vec<u64>,
}

fn encode_groups(
    shape: &Geometry,
    groups: Range<u64>,
    protected: &impl ReadAt,
    sums: &mut Sums,
    write: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let numbers = shape.numbers();
    let (rows, spare, block) = (index(numbers.rows()), index(numbers.spare), index(numbers.block));
    let count = index(groups.end - groups.start);
    let mut encoders: Vec<Encoder> = (0..count).map(|_| Encoder::new(rows, spare, block)).collect();
    let at_once = index((READ / (count as u64 * numbers.block)).max(1));
    let mut bytes = vec![0; at_once.min(rows) * count * block];
    let mut row = 0;
    while row < rows {
        // No further than a part of the encoders goes.
        let read = at_once.min(rows - row).min(spare.next_power_of_two() - row % spare.next_power_of_two());
        let bytes = &mut bytes[..read * count * block];
        read_rows(numbers, row as u64, &groups, protected, bytes)?;
        let known: Vec<Vec<u64>> = encoders
            .par_iter_mut()
            .enumerate()
            .map(|(group, encoder)| {
                let blocks = bytes.chunks_exact(block).skip(group).step_by(count);
                blocks.map(|bytes| (encoder.add(bytes), checksum(bytes, block)).1).collect()
            })
            .collect();
        for (group, known) in groups.clone().zip(known) {
            for (row, sum) in (row as u64..).zip(known) {
                // The last blocks of a group may be nothing but what fills it up.
                if let Some(place) = sums.data.get_mut(index(row * numbers.groups + group)) {
                    *place = sum;
                }
            }
        }
        row += read;
        if row == rows || encoders[0].is_full() {
            let columns: Vec<_> = encoders.iter_mut().flat_map(Encoder::columns).collect();
            columns.into_par_iter().for_each_init(DefaultEngine::new, |engine, column| column.absorb(engine));
        }
    }
    let columns: Vec<_> = encoders.iter_mut().flat_map(Encoder::sums).collect();
    columns.into_par_iter().for_each_init(DefaultEngine::new, |engine, sum| transform(sum, spare, engine));
    write_spares(shape, &groups, &encoders, &mut sums.spares, write)
}

/// Reads the blocks of `groups` in as many rows as have room in `bytes`. Behind the end there are zeros.
fn read_rows(
    numbers: &Numbers,
    row: u64,
    groups: &Range<u64>,
    protected: &impl ReadAt,
    bytes: &mut [u8],
) -> io::Result<()> {
    let count = groups.end - groups.start;
    // All groups: then the rows follow one another.
    let run = if count == numbers.groups { bytes.len() } else { index(count * numbers.block) };
    for (row, bytes) in (row..).zip(bytes.chunks_exact_mut(run)) {
        let offset = (row * numbers.groups + groups.start) * numbers.block;
        let there = numbers.protected.saturating_sub(offset).min(run as u64);
        let (there, zeros) = bytes.split_at_mut(index(there));
        read_exact_at(protected, offset, there)?;
        zeros.fill(0);
    }
    Ok(())
}

/// Writes the recovery blocks of `groups`, neighbours together.
fn write_spares(
    shape: &Geometry,
    groups: &Range<u64>,
    encoders: &[Encoder],
    sums: &mut [u64],
    write: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let numbers = shape.numbers();
    let block = index(numbers.block);
    let mut bytes: Vec<u8> = Vec::new();
    let mut start = 0;
    for row in 0..numbers.spare {
        for (group, encoder) in groups.clone().zip(encoders) {
            let number = row * numbers.groups + group;
            let place = shape.place(number);
            if place != start + bytes.len() as u64 || bytes.len() as u64 >= READ {
                write(start, &bytes)?;
                bytes.clear();
                start = place;
            }
            let len = bytes.len();
            bytes.resize(len + block, 0);
            encoder.spare(index(row), &mut bytes[len..]);
            sums[index(number)] = checksum(&bytes[len..], block);
        }
    }
    write(start, &bytes)
}
