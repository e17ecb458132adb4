//! Tests that write, damage and repair volumes.

use std::cell::Cell;
use std::io;
use std::ops::Range;

use super::*;

use crate::bundle::format::seek_table;
use crate::bundle::format::skippable::{self, RECOVERY_MAGIC};
use crate::bundle::read::frame_reader::{self, Frame, FrameReader};
use crate::bundle::recovery::blocks::{ReadAt, index};
use crate::bundle::recovery::cache::RepairCache;
use crate::bundle::recovery::damage::Damage;
use crate::bundle::recovery::encode::encode_within;
use crate::bundle::recovery::geometry::Numbers;
use crate::bundle::recovery::spill::Spill;
use crate::oci::digest::Digest;

const SECTOR: usize = 4096;

/// A deterministic random number generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}

pub(super) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    std::iter::repeat_with(|| random.next().to_le_bytes()).flatten().take(len).collect()
}

/// Returns a geometry with this number of groups; small volumes normally have one.
fn geometry(len: usize, per_mille: u32, groups: u64) -> Geometry {
    let chosen = *Geometry::new(len as u64, per_mille).numbers();
    let rows = chosen.blocks().div_ceil(groups);
    let parity = (rows * u64::from(per_mille)).div_ceil(1000) + 2;
    let numbers = Numbers { groups, parity, ..chosen };
    assert!(numbers.are_valid());
    Geometry::from_numbers(numbers)
}

/// Encodes the section, and asserts that each byte is written once.
fn section(geometry: &Geometry, tail: usize, protected: &Vec<u8>, memory: u64) -> Vec<u8> {
    let mut section = vec![0; index(geometry.section_len())];
    let mut written = vec![false; section.len()];
    encode_within(memory, geometry, tail as u64, protected, |offset, bytes| {
        let range = index(offset)..index(offset) + bytes.len();
        section[range.clone()].copy_from_slice(bytes);
        assert!(written[range.clone()].iter().all(|written| !written));
        written[range].fill(true);
        Ok(())
    })
    .unwrap();
    assert!(written.iter().all(|written| *written));
    section
}

/// Returns a volume with recovery data.
fn volume(geometry: &Geometry, tail: usize) -> Vec<u8> {
    let protected = noise(index(geometry.protected_len()), 1);
    let section = section(geometry, tail, &protected, 1 << 20);
    let (front, tail) = protected.split_at(protected.len() - tail);
    [front, &section, tail].concat()
}

fn found(volume: &Vec<u8>) -> Recovery {
    Recovery::find(volume, volume.len() as u64).expect("recovery data is found")
}

fn repaired(volume: &impl ReadAt, len: usize) -> Result<(Vec<u8>, Damage), RecoveryError> {
    let recovery = Recovery::find(volume, len as u64).expect("recovery data is found");
    let mut intact = vec![0; index(recovery.volume_len())];
    let mut written = 0;
    let mut read = 0;
    let write = |offset: u64, bytes: &[u8]| {
        intact[index(offset)..index(offset) + bytes.len()].copy_from_slice(bytes);
        written += bytes.len();
        Ok(())
    };
    let damage = recovery.repair(volume, write, |bytes| read += bytes)?;
    assert_eq!(written, intact.len(), "each byte is written once");
    assert_eq!(read, intact.len() as u64);
    Ok((intact, damage))
}

fn damage(volume: &[u8], range: Range<usize>) -> Vec<u8> {
    let mut damaged = volume.to_vec();
    damaged[range].iter_mut().for_each(|byte| *byte ^= 0x5A);
    damaged
}

/// Asserts that `repair`, `reconstruct` and `damage` agree with the original volume.
fn assert_repaired(damaged: &Vec<u8>, original: &[u8], context: &str) {
    let (intact, damage) =
        repaired(damaged, damaged.len()).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(intact == original, "{context}");
    let recovery = found(damaged);
    assert_eq!(recovery.damage(damaged, |_| ()), damage, "{context}");
    assert!(recovery.reconstruct(damaged, 0..original.len() as u64).unwrap() == original, "{context}");
    let is_damaged = |at: usize| damage.ranges.iter().any(|range| range.contains(&(at as u64)));
    for (at, byte) in original.iter().enumerate() {
        assert!(
            damaged.get(at) == Some(byte) || is_damaged(at),
            "{context}: the damage at {at} was not reported"
        );
    }
}

#[test]
fn sections_of_any_length_are_found_intact_and_consist_of_skippable_frames() {
    let lengths = [0, 1, 4095, 4096, 4097, 8192, 100_000, 1 << 20];
    for (len, per_mille) in
        lengths.into_iter().flat_map(|len| [1, 50, 1000].map(|per_mille| (len, per_mille)))
    {
        for tail in [0, 1, 33, 5000].into_iter().filter(|tail| *tail <= len) {
            let geometry = Geometry::new(len as u64, per_mille);
            let original = volume(&geometry, tail);
            let recovery = found(&original);
            assert_eq!(recovery.volume_len(), original.len() as u64);
            assert_eq!(recovery.section(), (len - tail) as u64..(original.len() - tail) as u64);
            assert_eq!(recovery.per_mille(), per_mille);
            assert!(recovery.damage(&original, |_| ()).is_empty());
            assert_repaired(&original, &original, &format!("{len} {per_mille} {tail}"));

            let section = &original[len - tail..original.len() - tail];
            let mut frames = FrameReader::new(section, 0, &frame_reader::buffers());
            let mut lengths = Vec::new();
            while let Some(frame) = frames.next_frame().unwrap() {
                let Frame::Skippable { magic: RECOVERY_MAGIC, payload } = frame else {
                    panic!("another kind of frame")
                };
                lengths.push(u32::try_from(payload.len() + 8).unwrap());
            }
            assert_eq!(lengths, geometry.frame_lens());
        }
    }
}

#[test]
fn the_section_depends_only_on_the_content_and_the_format() {
    let geometry = geometry(700_000, 100, 5);
    let protected = noise(700_000, 1);
    let sections = [1, 300_000, 600_000, 1 << 30].map(|memory| section(&geometry, 100, &protected, memory));
    assert!(sections.iter().all(|other| *other == sections[0]));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert!(pool.install(|| section(&geometry, 100, &protected, 1 << 30)) == sections[0]);
    // A different digest means that the format has changed.
    assert_eq!(
        Digest::of(&sections[0]).hex(),
        "9d7cf4425f3a5b03ceef8086a95b57ee76f5f421a7bca85c5d6687a886923d8e"
    );
}

#[test]
fn any_single_corrupt_byte_of_a_small_volume_is_repaired() {
    let original = volume(&Geometry::new(4200, 50), 33);
    for at in 0..original.len() {
        let damaged = damage(&original, at..at + 1);
        let (intact, damage) = repaired(&damaged, damaged.len()).unwrap();
        assert!(intact == original, "{at}");
        // One block, which can have a part in the tail.
        assert!(damage.ranges.iter().any(|range| range.contains(&(at as u64))), "{at}: {damage:?}");
        assert!(damage.blocks <= 1 && damage.ranges.len() <= 2, "{at}: {damage:?}");
        if at % 50 == 0 {
            let range = at as u64..at as u64 + 1;
            assert_eq!(found(&damaged).reconstruct(&damaged, range).unwrap(), original[at..=at]);
        }
    }
}

#[test]
fn a_gap_of_the_redundancy_is_repaired_at_any_position() {
    for (len, tail, per_mille, groups) in [
        (100_000, 33, 50, 1),
        (400_000, 9000, 100, 1),
        (900_000, 4000, 50, 3),
        (900_001, 0, 300, 7),
        (60_000, 1, 1000, 2),
    ] {
        let original = volume(&geometry(len, per_mille, groups), tail);
        let gap = len * per_mille as usize / 1000;
        let (front, behind) = (len - tail, original.len() - tail);
        let edges = [0, front, behind, original.len()];
        let steps = (0..=20).map(|step| original.len() * step / 20);
        let near =
            edges.into_iter().flat_map(|edge| [edge, edge + 1, edge + 100, edge + gap / 2, edge + 3000]);
        let last = original.len() - gap;
        for start in steps.chain(near).map(|end| end.saturating_sub(gap).min(last)) {
            let damaged = damage(&original, start..start + gap);
            assert_repaired(&damaged, &original, &format!("{len} {tail} {per_mille} {groups}: {start}"));
        }
    }
}

#[test]
fn a_volume_truncated_within_the_redundancy_is_repaired() {
    let (len, per_mille, tail) = (300_000, 100, 5000);
    let original = volume(&geometry(len, per_mille, 2), tail);
    for cut in [1, 32, 33, 34, 4096, 5000, 5001, 5100, 15_000, 29_999, 30_000] {
        assert_repaired(
            &original[..original.len() - cut].to_vec(),
            &original,
            &format!("{cut} bytes cut off"),
        );
    }
    let longer = [&original[..], b"something else"].concat();
    assert!(repaired(&longer, longer.len()).unwrap().0 == original);
}

#[test]
fn more_damage_than_the_redundancy_is_an_error_with_positions_and_never_incorrect_bytes() {
    for groups in [1, 3] {
        let geometry = geometry(600_000, 50, groups);
        let original = volume(&geometry, 100);
        let blocks = index(groups * (geometry.numbers().parity + 1));
        let damaged = damage(&original, 10 * SECTOR..(10 + blocks) * SECTOR);
        let error = repaired(&damaged, damaged.len()).unwrap_err();
        let RecoveryError::Unrepairable(groups_lost) = &error else { panic!("{error}") };
        assert_eq!(groups_lost.len(), index(groups));
        for group in groups_lost {
            assert_eq!(
                (group.corrupt, group.repairable),
                (geometry.numbers().parity + 1, geometry.numbers().parity)
            );
        }
        if groups == 1 {
            assert_eq!(
                error.to_string(),
                "not enough recovery data: group 0 has 11 corrupt blocks, at most 10 can be repaired, \
                 at bytes 40960 to 86015"
            );
        }
        let recovery = found(&damaged);
        assert_eq!(recovery.damage(&damaged, |_| ()).lost, *groups_lost);
        // Intact blocks are readable.
        assert!(recovery.reconstruct(&damaged, 0..40_960).unwrap() == original[..40_960]);
        for start in (0..original.len()).step_by(SECTOR) {
            let range = start as u64..(start + SECTOR).min(original.len()) as u64;
            match recovery.reconstruct(&damaged, range.clone()) {
                Ok(bytes) => assert!(bytes == original[start..index(range.end)]),
                Err(RecoveryError::Unrepairable(_)) => assert!((10..10 + blocks).contains(&(start / SECTOR))),
                Err(error) => panic!("{error}"),
            }
        }
        // One block less is repaired.
        let damaged = damage(&original, 10 * SECTOR..(9 + blocks) * SECTOR - (index(groups) - 1) * SECTOR);
        assert_repaired(&damaged, &original, "the maximum");
    }
}

/// A volume with read errors.
struct FaultyVolume {
    bytes: Vec<u8>,
    /// Byte ranges that return an error.
    bad: Vec<Range<usize>>,
    tries: Cell<usize>,
}

impl ReadAt for FaultyVolume {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let start = index(offset);
        let end = (start + bytes.len()).min(self.bytes.len());
        if self.bad.iter().any(|bad| start < bad.end && bad.start < end) {
            self.tries.set(self.tries.get() + 1);
            return Err(io::Error::from_raw_os_error(5));
        }
        // A short read.
        let len = bytes.len().min(100_000);
        self.bytes.read_at(offset, &mut bytes[..len])
    }
}

#[test]
fn unreadable_sectors_are_repaired_like_corrupt_ones() {
    let original = volume(&geometry(900_000, 100, 3), 100);
    let mut random = Random(99);
    for _ in 0..20 {
        let sectors = original.len() / SECTOR;
        let bad: Vec<_> = (0..8).map(|_| random.below(sectors) * SECTOR).map(|at| at..at + SECTOR).collect();
        let faulty = FaultyVolume { bytes: original.clone(), bad, tries: Cell::new(0) };
        let (intact, _) = repaired(&faulty, original.len()).unwrap();
        assert!(intact == original);
        faulty.tries.set(0);
        let recovery = Recovery::find(&faulty, original.len() as u64).unwrap();
        let before = faulty.tries.get();
        let mut repaired = Vec::new();
        for start in (0..original.len() as u64).step_by(50_000) {
            repaired.extend(
                recovery.reconstruct(&faulty, start..(start + 50_000).min(original.len() as u64)).unwrap(),
            );
        }
        assert!(repaired == original);
        assert!(faulty.tries.get() - before <= 16, "a bad sector is read once per block that it affects");
    }
}

#[test]
fn one_intact_description_is_sufficient_without_a_seek_table() {
    let geometry = geometry(300_000, 50, 1);
    let protected = noise(300_000, 1);
    // The tail is a seek table, as in a last volume.
    let table = seek_table::encode(&[seek_table::FrameEntry { compressed: 1, decompressed: 1 }; 9]);
    let tail = table.len();
    let protected = [&protected[..300_000 - tail], &table].concat();
    let section = section(&geometry, tail, &protected, 1 << 20);
    let front = 300_000 - tail;
    let original = [&protected[..front], &section, &table].concat();
    let offsets: Vec<usize> = geometry.description_offsets().map(|offset| front + index(offset)).collect();
    for kept in 0..3 {
        for field in [0, 10, 40, 200] {
            let mut damaged = original.clone();
            for offset in (0..3).filter(|number| *number != kept).map(|number| offsets[number]) {
                damaged[offset + field] ^= 1;
            }
            assert_repaired(&damaged, &original, &format!("only description {kept}"));
            damaged[original.len() - 3] ^= 1;
            assert_repaired(&damaged, &original, &format!("only description {kept}, and no seek table"));
        }
    }
    // All three are corrupt, each at another offset.
    let mut damaged = original.clone();
    for (at, offset) in [90, 150, 400].into_iter().zip(&offsets) {
        damaged[offset + at] ^= 1;
    }
    assert_repaired(&damaged, &original, "no description is intact");
    let bad = offsets.iter().map(|offset| offset + 72..offset + 300).take(2).collect();
    let faulty =
        FaultyVolume { bytes: damage(&original, offsets[2] + 90..offsets[2] + 91), bad, tries: Cell::new(0) };
    assert!(Recovery::find(&faulty, original.len() as u64).is_none());
    let mut damaged = original.clone();
    for offset in &offsets {
        damaged[offset + 100] ^= 1;
    }
    assert!(Recovery::find(&damaged, damaged.len() as u64).is_none());
    assert!(Recovery::find(&noise(100_000, 5), 100_000).is_none());
    assert!(Recovery::find(&Vec::new(), 0).is_none());
}

#[test]
fn the_description_of_a_volume_that_is_packed_in_this_one_is_ignored() {
    let inner = volume(&Geometry::new(50_000, 50), 100);
    let protected = [noise(70_001, 2), inner].concat();
    let geometry = Geometry::new(protected.len() as u64, 50);
    let section = section(&geometry, 0, &protected, 1 << 20);
    let original = [&protected[..], &section].concat();
    let last = original.len() - 10;
    assert_repaired(&damage(&original, last..last + 1), &original, "after the volume packed in it");
    let offsets: Vec<usize> =
        geometry.description_offsets().map(|offset| protected.len() + index(offset)).collect();
    let mut damaged = original.clone();
    for offset in &offsets {
        damaged[offset + 100] ^= 1;
    }
    assert!(Recovery::find(&damaged, damaged.len() as u64).is_none());
}

#[test]
fn a_description_with_invalid_numbers_is_ignored() {
    let original = volume(&Geometry::new(50_000, 50), 0);
    let start = index(found(&original).section().start);
    let len = u32::from_le_bytes(original[start + 4..start + 8].try_into().unwrap()) as usize;
    // Version, block size, front, section, tail, redundancy, groups, parity blocks.
    for (field, size) in [(16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 4), (52, 4), (56, 4)] {
        for value in [0_u64, 1, 3, 4096, 1 << 20, 1 << 31, u64::MAX] {
            let mut payload = original[start + 8..start + 8 + len].to_vec();
            let before = payload.clone();
            payload[field..field + size].copy_from_slice(&value.to_le_bytes()[..size]);
            if payload == before {
                continue;
            }
            let digest = Digest::of(&payload[..len - 32]);
            payload[len - 32..].copy_from_slice(digest.as_bytes());
            let mut forged = original[..start].to_vec();
            forged.extend(skippable::encode(RECOVERY_MAGIC, &payload));
            if let Some(recovery) = Recovery::find(&forged, forged.len() as u64) {
                // Another redundancy, or a tail within the last block, is also valid.
                assert!(field == 48 || (field == 40 && value < 4096), "{field} {value}");
                assert!(recovery.reconstruct(&forged, 0..45_000).unwrap() == original[..45_000]);
            }
        }
    }
}

#[test]
fn recovery_data_of_other_content_is_a_mismatch_error() {
    let geometry = Geometry::new(50_000, 50);
    let original = volume(&geometry, 0);
    let recovery = found(&original);
    // Parity blocks with valid checksums that belong to other content: a forgery.
    let other = section(&geometry, 0, &noise(50_000, 77), 1 << 20);
    let sums = recovery.section().start + 8 + 64 + 8 * geometry.numbers().blocks();
    let sums = index(sums)..index(sums + 8 * geometry.numbers().parity_blocks());
    let mut forged = [&original[..50_000], &other].concat();
    let len = index(geometry.numbers().description_len());
    let descriptions: Vec<usize> =
        geometry.description_offsets().map(|offset| 50_000 + index(offset)).collect();
    for offset in descriptions {
        let theirs = forged[sums.start - 50_000 + offset..sums.end - 50_000 + offset].to_vec();
        let mut payload = original[50_008..50_008 + len].to_vec();
        payload[sums.start - 50_008..sums.end - 50_008].copy_from_slice(&theirs);
        let digest = Digest::of(&payload[..len - 32]);
        payload[len - 32..].copy_from_slice(digest.as_bytes());
        forged[offset + 8..offset + 8 + len].copy_from_slice(&payload);
    }
    assert!(found(&forged).damage(&forged, |_| ()).is_empty());
    let damaged = damage(&forged, 5000..5001);
    assert!(matches!(repaired(&damaged, damaged.len()), Err(RecoveryError::Mismatch(0))));
    assert!(matches!(found(&damaged).reconstruct(&damaged, 5000..5001), Err(RecoveryError::Mismatch(0))));
}

#[test]
fn scattered_damage_of_half_the_redundancy_is_repaired() {
    let mut random = Random(4);
    for (len, per_mille, groups) in [(2_000_000, 100, 1), (2_000_000, 100, 4), (1_000_000, 1000, 3)] {
        let original = volume(&geometry(len, per_mille, groups), 1000);
        let blocks = len.div_ceil(SECTOR);
        for round in 0..5 {
            let mut damaged = original.clone();
            for _ in 0..blocks * per_mille as usize / 2000 {
                damaged[random.below(original.len())] ^= 0x80;
            }
            assert_repaired(&damaged, &original, &format!("{len} {per_mille} {groups}: {round}"));
        }
    }
}

#[test]
fn read_errors_while_encoding_and_write_errors_while_repairing_are_returned() {
    let geometry = Geometry::new(50_000, 50);
    let short = noise(49_999, 1);
    assert_eq!(encode(&geometry, 0, &short, |_, _| Ok(())).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let full = |_, _: &[u8]| Err(io::Error::from(io::ErrorKind::StorageFull));
    let kind = io::ErrorKind::StorageFull;
    assert_eq!(encode(&geometry, 0, &noise(50_000, 1), full).unwrap_err().kind(), kind);
    let original = volume(&geometry, 0);
    let error = found(&original).repair(&original, full, |_| ()).unwrap_err();
    assert!(matches!(error, RecoveryError::Write(source) if source.kind() == kind));
}

/// A volume that counts the bytes read.
struct CountingVolume {
    bytes: Vec<u8>,
    read: Cell<usize>,
}

impl ReadAt for CountingVolume {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read_at(offset, bytes)?;
        self.read.set(self.read.get() + read);
        Ok(read)
    }
}

#[test]
fn many_ranges_of_an_intact_block_are_read_once() {
    let geometry = Geometry::new(40_000, 100);
    let block = index(geometry.numbers().block_size);
    let original = volume(&geometry, 100);
    let recovery = found(&original);
    let counting = CountingVolume { bytes: original.clone(), read: Cell::new(0) };
    for start in (0..4 * block - 12).step_by(12) {
        let bytes = recovery.reconstruct(&counting, start as u64..start as u64 + 12).unwrap();
        assert!(bytes == original[start..start + 12], "{start}");
    }
    // A range at the boundary of two blocks needs both, and the first one is read again for the next range.
    assert!(counting.read.get() <= 8 * block, "{} bytes", counting.read.get());
}

#[test]
fn every_group_is_read_once_through_a_gap_that_does_not_fit_into_memory() {
    let geometry = geometry(2 << 20, 500, 4);
    let original = volume(&geometry, 100);
    let gaps = [100_000..500_000, 900_000..1_200_000];
    let damaged = gaps.iter().cloned().fold(original.clone(), |volume, gap| damage(&volume, gap));
    let counting = CountingVolume { bytes: damaged.clone(), read: Cell::new(0) };
    let read_through = |recovery: &Recovery| {
        let before = counting.read.get();
        for gap in &gaps {
            for start in gap.clone().step_by(10_000) {
                let bytes = recovery.reconstruct(&counting, start as u64..start as u64 + 10_000).unwrap();
                assert!(bytes == original[start..start + 10_000], "{start}");
            }
        }
        counting.read.get() - before
    };
    let memory = 100_000;
    let spilling = found(&damaged).with_cache(RepairCache::with_limits(memory, Spill::default()));
    let read = read_through(&spilling);
    // Blocks at the ends of the gaps are read to find out that they are corrupt.
    assert!(read < original.len() + 100_000, "{read} bytes of {}", original.len());
    assert!(spilling.spilled_len() >= 500_000, "{} bytes", spilling.spilled_len());

    // Without space for the file, groups are read again, and the bytes are the same.
    let failing = found(&damaged).with_cache(RepairCache::with_limits(memory, Spill::failed()));
    let read_again = read_through(&failing);
    assert!(read_again > 3 * read && read_again < 10 * read, "{read_again} and {read} bytes");
}
