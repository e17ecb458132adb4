//! Volumes that are written, damaged and repaired.

use std::cell::Cell;
use std::io;
use std::ops::Range;

use super::*;

use crate::bundle::format::seek_table;
use crate::bundle::format::skippable::{self, RECOVERY_MAGIC};
use crate::bundle::read::frame_reader::{self, Frame, FrameReader};
use crate::bundle::recovery::blocks::{ReadAt, index};
use crate::bundle::recovery::encode::encode_within;
use crate::bundle::recovery::geometry::Numbers;
use crate::bundle::recovery::repair::Damage;
use crate::oci::digest::Digest;

const SECTOR: usize = 4096;

/// Numbers that look random and are the same in every run.
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

/// A shape with as many groups as a test wants; small volumes have one.
fn shape(len: usize, per_mille: u32, groups: u64) -> Geometry {
    let chosen = *Geometry::new(len as u64, per_mille).numbers();
    let rows = chosen.blocks().div_ceil(groups);
    let spare = (rows * u64::from(per_mille)).div_ceil(1000) + 2;
    let numbers = Numbers { groups, spare, ..chosen };
    assert!(numbers.are_sound());
    Geometry::of(numbers)
}

/// The section, every byte of which has to be written once.
fn section(shape: &Geometry, tail: usize, protected: &Vec<u8>, memory: u64) -> Vec<u8> {
    let mut section = vec![0; index(shape.section_len())];
    let mut written = vec![false; section.len()];
    encode_within(memory, shape, tail as u64, protected, |offset, bytes| {
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

/// A volume with its recovery data.
fn volume(shape: &Geometry, tail: usize) -> Vec<u8> {
    let protected = noise(index(shape.protected_len()), 1);
    let section = section(shape, tail, &protected, 1 << 20);
    let (front, tail) = protected.split_at(protected.len() - tail);
    [front, &section, tail].concat()
}

fn found(volume: &Vec<u8>) -> Recovery {
    Recovery::find(volume, volume.len() as u64).expect("it is found")
}

fn repaired(volume: &impl ReadAt, len: usize) -> Result<(Vec<u8>, Damage), RecoveryError> {
    let recovery = Recovery::find(volume, len as u64).expect("it is found");
    let mut whole = vec![0; index(recovery.volume_len())];
    let mut written = 0;
    let mut read = 0;
    let write = |offset: u64, bytes: &[u8]| {
        whole[index(offset)..index(offset) + bytes.len()].copy_from_slice(bytes);
        written += bytes.len();
        Ok(())
    };
    let damage = recovery.repair(volume, write, |bytes| read += bytes)?;
    assert_eq!(written, whole.len(), "every byte once");
    assert_eq!(read, whole.len() as u64);
    Ok((whole, damage))
}

fn damage(volume: &[u8], range: Range<usize>) -> Vec<u8> {
    let mut damaged = volume.to_vec();
    damaged[range].iter_mut().for_each(|byte| *byte ^= 0x5A);
    damaged
}

/// Repairs it, repairs all of it and pieces of it, and compares.
fn assert_repaired(damaged: &Vec<u8>, right: &[u8], what: &str) {
    let (whole, damage) = repaired(damaged, damaged.len()).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(whole == right, "{what}");
    let recovery = found(damaged);
    assert_eq!(recovery.damaged(damaged, |_| ()), damage, "{what}");
    assert!(recovery.reconstruct(damaged, 0..right.len() as u64).unwrap() == right, "{what}");
    let is_damaged = |at: usize| damage.ranges.iter().any(|range| range.contains(&(at as u64)));
    for (at, byte) in right.iter().enumerate() {
        assert!(
            damaged.get(at) == Some(byte) || is_damaged(at),
            "{what}: {at} is damaged, and nobody said so"
        );
    }
}

#[test]
fn volumes_of_all_lengths_are_found_whole_and_are_runs_of_skippable_frames() {
    let lengths = [0, 1, 4095, 4096, 4097, 8192, 100_000, 1 << 20];
    for (len, share) in lengths.into_iter().flat_map(|len| [1, 50, 1000].map(|share| (len, share))) {
        for tail in [0, 1, 33, 5000].into_iter().filter(|tail| *tail <= len) {
            let shape = Geometry::new(len as u64, share);
            let right = volume(&shape, tail);
            let recovery = found(&right);
            assert_eq!(recovery.volume_len(), right.len() as u64);
            assert_eq!(recovery.section(), (len - tail) as u64..(right.len() - tail) as u64);
            assert_eq!(recovery.per_mille(), share);
            assert!(recovery.damaged(&right, |_| ()).is_empty());
            assert_repaired(&right, &right, &format!("{len} {share} {tail}"));

            let section = &right[len - tail..right.len() - tail];
            let mut frames = FrameReader::new(section, 0, &frame_reader::buffers());
            let mut lengths = Vec::new();
            while let Some(frame) = frames.next_frame().unwrap() {
                let Frame::Skippable { magic: RECOVERY_MAGIC, payload } = frame else {
                    panic!("another frame")
                };
                lengths.push(u32::try_from(payload.len() + 8).unwrap());
            }
            assert_eq!(lengths, shape.frames());
        }
    }
}

#[test]
fn the_bytes_depend_on_the_content_alone_and_stay_what_they_are() {
    let shape = shape(700_000, 100, 5);
    let protected = noise(700_000, 1);
    let sections = [1, 300_000, 600_000, 1 << 30].map(|memory| section(&shape, 100, &protected, memory));
    assert!(sections.iter().all(|other| *other == sections[0]));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert!(pool.install(|| section(&shape, 100, &protected, 1 << 30)) == sections[0]);
    // If this changes, so has the format.
    assert_eq!(
        Digest::of(&sections[0]).hex(),
        "9d7cf4425f3a5b03ceef8086a95b57ee76f5f421a7bca85c5d6687a886923d8e"
    );
}

#[test]
fn any_byte_of_a_small_volume_may_be_wrong() {
    let right = volume(&Geometry::new(4200, 50), 33);
    for at in 0..right.len() {
        let damaged = damage(&right, at..at + 1);
        let (whole, damage) = repaired(&damaged, damaged.len()).unwrap();
        assert!(whole == right, "{at}");
        // One block, of which the tail may have a part.
        assert!(damage.ranges.iter().any(|range| range.contains(&(at as u64))), "{at}: {damage:?}");
        assert!(damage.blocks <= 1 && damage.ranges.len() <= 2, "{at}: {damage:?}");
        if at % 50 == 0 {
            let range = at as u64..at as u64 + 1;
            assert_eq!(found(&damaged).reconstruct(&damaged, range).unwrap(), right[at..=at]);
        }
    }
}

#[test]
fn a_hole_of_the_share_may_be_anywhere() {
    for (len, tail, share, groups) in [
        (100_000, 33, 50, 1),
        (400_000, 9000, 100, 1),
        (900_000, 4000, 50, 3),
        (900_001, 0, 300, 7),
        (60_000, 1, 1000, 2),
    ] {
        let right = volume(&shape(len, share, groups), tail);
        let hole = len * share as usize / 1000;
        let (front, behind) = (len - tail, right.len() - tail);
        let edges = [0, front, behind, right.len()];
        let steps = (0..=20).map(|step| right.len() * step / 20);
        let near =
            edges.into_iter().flat_map(|edge| [edge, edge + 1, edge + 100, edge + hole / 2, edge + 3000]);
        let last = right.len() - hole;
        for start in steps.chain(near).map(|end| end.saturating_sub(hole).min(last)) {
            let damaged = damage(&right, start..start + hole);
            assert_repaired(&damaged, &right, &format!("{len} {tail} {share} {groups}: {start}"));
        }
    }
}

#[test]
fn a_volume_that_was_cut_short_within_the_share_is_made_whole() {
    let (len, share, tail) = (300_000, 100, 5000);
    let right = volume(&shape(len, share, 2), tail);
    for cut in [1, 32, 33, 34, 4096, 5000, 5001, 5100, 15_000, 29_999, 30_000] {
        assert_repaired(&right[..right.len() - cut].to_vec(), &right, &format!("{cut} cut off"));
    }
    let longer = [&right[..], b"something else"].concat();
    assert!(repaired(&longer, longer.len()).unwrap().0 == right);
}

#[test]
fn more_than_the_share_is_an_error_that_says_where_and_never_wrong_bytes() {
    for groups in [1, 3] {
        let shape = shape(600_000, 50, groups);
        let right = volume(&shape, 100);
        let blocks = index(groups * (shape.numbers().spare + 1));
        let damaged = damage(&right, 10 * SECTOR..(10 + blocks) * SECTOR);
        let error = repaired(&damaged, damaged.len()).unwrap_err();
        let RecoveryError::TooMuch(groups_lost) = &error else { panic!("{error}") };
        assert_eq!(groups_lost.len(), index(groups));
        for group in groups_lost {
            assert_eq!((group.damaged, group.mendable), (shape.numbers().spare + 1, shape.numbers().spare));
        }
        if groups == 1 {
            assert_eq!(
                error.to_string(),
                "more is damaged than the recovery data can repair: in group 0, 11 blocks are damaged and 10 could be \
                 repaired, at bytes 40960 to 86015"
            );
        }
        let recovery = found(&damaged);
        assert_eq!(recovery.damaged(&damaged, |_| ()).lost, *groups_lost);
        // What is not hit can be read.
        assert!(recovery.reconstruct(&damaged, 0..40_960).unwrap() == right[..40_960]);
        for start in (0..right.len()).step_by(SECTOR) {
            let range = start as u64..(start + SECTOR).min(right.len()) as u64;
            match recovery.reconstruct(&damaged, range.clone()) {
                Ok(bytes) => assert!(bytes == right[start..index(range.end)]),
                Err(RecoveryError::TooMuch(_)) => assert!((10..10 + blocks).contains(&(start / SECTOR))),
                Err(error) => panic!("{error}"),
            }
        }
        // One block less, and all is well.
        let damaged = damage(&right, 10 * SECTOR..(9 + blocks) * SECTOR - (index(groups) - 1) * SECTOR);
        assert_repaired(&damaged, &right, "the most");
    }
}

/// A volume whose medium cannot be read everywhere.
struct BadMedium {
    bytes: Vec<u8>,
    /// Sectors that give an error.
    bad: Vec<Range<usize>>,
    tries: Cell<usize>,
}

impl ReadAt for BadMedium {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let start = index(offset);
        let end = (start + bytes.len()).min(self.bytes.len());
        if self.bad.iter().any(|bad| start < bad.end && bad.start < end) {
            self.tries.set(self.tries.get() + 1);
            return Err(io::Error::from_raw_os_error(5));
        }
        // Short, as a read may be.
        let len = bytes.len().min(100_000);
        self.bytes.read_at(offset, &mut bytes[..len])
    }
}

#[test]
fn what_cannot_be_read_is_damage_like_any_other() {
    let right = volume(&shape(900_000, 100, 3), 100);
    let mut random = Random(99);
    for _ in 0..20 {
        let sectors = right.len() / SECTOR;
        let bad: Vec<_> = (0..8).map(|_| random.below(sectors) * SECTOR).map(|at| at..at + SECTOR).collect();
        let medium = BadMedium { bytes: right.clone(), bad, tries: Cell::new(0) };
        let (whole, _) = repaired(&medium, right.len()).unwrap();
        assert!(whole == right);
        medium.tries.set(0);
        let recovery = Recovery::find(&medium, right.len() as u64).unwrap();
        let before = medium.tries.get();
        let mut repaired = Vec::new();
        for start in (0..right.len() as u64).step_by(50_000) {
            repaired.extend(
                recovery.reconstruct(&medium, start..(start + 50_000).min(right.len() as u64)).unwrap(),
            );
        }
        assert!(repaired == right);
        assert!(medium.tries.get() - before <= 16, "a bad sector is tried once for each block that it is in");
    }
}

#[test]
fn one_description_is_enough_and_it_needs_no_seek_table() {
    let shape = shape(300_000, 50, 1);
    let protected = noise(300_000, 1);
    // The end of the tail is a seek table, as in a last volume.
    let table = seek_table::encode(&[seek_table::FrameEntry { compressed: 1, decompressed: 1 }; 9]);
    let tail = table.len();
    let protected = [&protected[..300_000 - tail], &table].concat();
    let section = section(&shape, tail, &protected, 1 << 20);
    let front = 300_000 - tail;
    let right = [&protected[..front], &section, &table].concat();
    let places: Vec<usize> = shape.descriptions().map(|place| front + index(place)).collect();
    for kept in 0..3 {
        for wrong in [0, 10, 40, 200] {
            let mut damaged = right.clone();
            for place in (0..3).filter(|number| *number != kept).map(|number| places[number]) {
                damaged[place + wrong] ^= 1;
            }
            assert_repaired(&damaged, &right, &format!("only description {kept}"));
            damaged[right.len() - 3] ^= 1;
            assert_repaired(&damaged, &right, &format!("only description {kept}, and no seek table"));
        }
    }
    // All three are damaged, and each elsewhere.
    let mut damaged = right.clone();
    for (at, place) in [90, 150, 400].into_iter().zip(&places) {
        damaged[place + at] ^= 1;
    }
    assert_repaired(&damaged, &right, "none of the descriptions is whole");
    let bad = places.iter().map(|place| place + 72..place + 300).take(2).collect();
    let medium =
        BadMedium { bytes: damage(&right, places[2] + 90..places[2] + 91), bad, tries: Cell::new(0) };
    assert!(Recovery::find(&medium, right.len() as u64).is_none());
    let mut damaged = right.clone();
    for place in &places {
        damaged[place + 100] ^= 1;
    }
    assert!(Recovery::find(&damaged, damaged.len() as u64).is_none());
    assert!(Recovery::find(&noise(100_000, 5), 100_000).is_none());
    assert!(Recovery::find(&Vec::new(), 0).is_none());
}

#[test]
fn the_description_of_another_volume_that_is_packed_in_this_one_is_not_taken() {
    let inner = volume(&Geometry::new(50_000, 50), 100);
    let protected = [noise(70_001, 2), inner].concat();
    let shape = Geometry::new(protected.len() as u64, 50);
    let section = section(&shape, 0, &protected, 1 << 20);
    let right = [&protected[..], &section].concat();
    let last = right.len() - 10;
    assert_repaired(&damage(&right, last..last + 1), &right, "behind another one");
    let places: Vec<usize> = shape.descriptions().map(|place| protected.len() + index(place)).collect();
    let mut damaged = right.clone();
    for place in &places {
        damaged[place + 100] ^= 1;
    }
    assert!(Recovery::find(&damaged, damaged.len() as u64).is_none());
}

#[test]
fn a_description_with_numbers_that_are_no_shape_is_none() {
    let right = volume(&Geometry::new(50_000, 50), 0);
    let start = index(found(&right).section().start);
    let len = u32::from_le_bytes(right[start + 4..start + 8].try_into().unwrap()) as usize;
    // Version, block size, front, section, tail, share, groups, recovery blocks.
    for (field, size) in [(16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 4), (52, 4), (56, 4)] {
        for value in [0_u64, 1, 3, 4096, 1 << 20, 1 << 31, u64::MAX] {
            let mut payload = right[start + 8..start + 8 + len].to_vec();
            let before = payload.clone();
            payload[field..field + size].copy_from_slice(&value.to_le_bytes()[..size]);
            if payload == before {
                continue;
            }
            let digest = Digest::of(&payload[..len - 32]);
            payload[len - 32..].copy_from_slice(digest.as_bytes());
            let mut forged = right[..start].to_vec();
            forged.extend(skippable::encode(RECOVERY_MAGIC, &payload));
            if let Some(recovery) = Recovery::find(&forged, forged.len() as u64) {
                // A share, or a tail within the last block, is one that might have been.
                assert!(field == 48 || (field == 40 && value < 4096), "{field} {value}");
                assert!(recovery.reconstruct(&forged, 0..45_000).unwrap() == right[..45_000]);
            }
        }
    }
}

#[test]
fn recovery_data_for_other_bytes_is_an_error_and_not_taken() {
    let shape = Geometry::new(50_000, 50);
    let right = volume(&shape, 0);
    let recovery = found(&right);
    // Recovery blocks whose checksums are right and which belong to other content: only a forger makes these.
    let other = section(&shape, 0, &noise(50_000, 77), 1 << 20);
    let sums = recovery.section().start + 8 + 64 + 8 * shape.numbers().blocks();
    let sums = index(sums)..index(sums + 8 * shape.numbers().spares());
    let mut forged = [&right[..50_000], &other].concat();
    let len = index(shape.numbers().description_len());
    let descriptions: Vec<usize> = shape.descriptions().map(|place| 50_000 + index(place)).collect();
    for place in descriptions {
        let theirs = forged[sums.start - 50_000 + place..sums.end - 50_000 + place].to_vec();
        let mut payload = right[50_008..50_008 + len].to_vec();
        payload[sums.start - 50_008..sums.end - 50_008].copy_from_slice(&theirs);
        let digest = Digest::of(&payload[..len - 32]);
        payload[len - 32..].copy_from_slice(digest.as_bytes());
        forged[place + 8..place + 8 + len].copy_from_slice(&payload);
    }
    assert!(found(&forged).damaged(&forged, |_| ()).is_empty());
    let damaged = damage(&forged, 5000..5001);
    assert!(matches!(repaired(&damaged, damaged.len()), Err(RecoveryError::Unfit(0))));
    assert!(matches!(found(&damaged).reconstruct(&damaged, 5000..5001), Err(RecoveryError::Unfit(0))));
}

#[test]
fn scattered_damage_of_half_the_share_is_repaired() {
    let mut random = Random(4);
    for (len, share, groups) in [(2_000_000, 100, 1), (2_000_000, 100, 4), (1_000_000, 1000, 3)] {
        let right = volume(&shape(len, share, groups), 1000);
        let blocks = len.div_ceil(SECTOR);
        for round in 0..5 {
            let mut damaged = right.clone();
            for _ in 0..blocks * share as usize / 2000 {
                damaged[random.below(right.len())] ^= 0x80;
            }
            assert_repaired(&damaged, &right, &format!("{len} {share} {groups}: {round}"));
        }
    }
}

#[test]
fn what_is_read_while_encoding_and_written_while_repairing_may_fail() {
    let shape = Geometry::new(50_000, 50);
    let short = noise(49_999, 1);
    assert_eq!(encode(&shape, 0, &short, |_, _| Ok(())).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let full = |_, _: &[u8]| Err(io::Error::from(io::ErrorKind::StorageFull));
    let kind = io::ErrorKind::StorageFull;
    assert_eq!(encode(&shape, 0, &noise(50_000, 1), full).unwrap_err().kind(), kind);
    let right = volume(&shape, 0);
    let error = found(&right).repair(&right, full, |_| ()).unwrap_err();
    assert!(matches!(error, RecoveryError::Write(source) if source.kind() == kind));
}
