//! Recovery data: the description that is searched for, and the repair with it.

use crate::bundle::recovery::{self, Geometry, Recovery};
use crate::fuzzing::input::Input;
use crate::oci::digest::Digest;

/// Maximum size of a volume that is repaired here, in bytes: a description can state any.
const VOLUME_LIMIT: u64 = 16 << 20;
/// The text in each description.
const TEXT: &[u8] = b"airbundle repair";
/// Length of the frame header before the payload.
const HEADER: usize = 8;
/// Length of the SHA-256 at the end of the payload.
const DIGEST: usize = 32;

/// A volume as it is, or one that was written, damaged, or described by a forged description.
pub fn recovery(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.byte() % 3;
    if kind == 0 {
        repair(&input.rest().to_vec());
        let _ = Recovery::stated_len(input.rest());
        return;
    }
    let per_mille = if kind == 1 { 1000 } else { 1 + u32::try_from(input.below(1000)).expect("below 1000") };
    let (front, tail) = (input.below(40_000), input.below(1_000));
    let content = input.short();
    let protected: Vec<u8> = content.iter().copied().chain(0..=255).cycle().take(front + tail).collect();
    let (section, descriptions) = section(&protected, tail, per_mille);
    let (before, after) = protected.split_at(front);
    let mut volume = [before, &section, after].concat();
    let intact = volume.clone();
    if kind == 1 {
        // Shorter than a description: it hits at most one data block and its description, or two adjacent blocks.
        let start = input.below(volume.len());
        for (byte, mask) in volume[start..].iter_mut().zip(input.bytes(64)) {
            *byte ^= mask;
        }
        assert!(repair(&volume) == Some(intact), "no repair of {} bytes at {start}", volume.len());
        return;
    }
    let (offset, bytes) = (input.number(), input.short());
    for start in descriptions {
        forge(&mut volume[front + start..], offset, bytes);
    }
    while !input.is_empty() {
        let (start, bytes) = (input.below(volume.len()), input.short());
        let end = (start + bytes.len()).min(volume.len());
        volume[start..end].copy_from_slice(&bytes[..end - start]);
    }
    repair(&volume);
}

/// Returns the recovery section of a volume, and the offsets of its descriptions.
pub(super) fn section(protected: &Vec<u8>, tail: usize, per_mille: u32) -> (Vec<u8>, Vec<usize>) {
    let geometry = Geometry::new(protected.len() as u64, per_mille);
    let lens = geometry.frame_lens();
    let mut section = vec![0; lens.iter().map(|len| *len as usize).sum()];
    let write = |offset, bytes: &[u8]| {
        let start = usize::try_from(offset).expect("in memory");
        section[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    };
    recovery::encode(&geometry, tail as u64, protected, write).expect("in memory");
    let starts = lens.iter().scan(0, |end, len| Some(std::mem::replace(end, *end + *len as usize)));
    let starts = starts.filter(|start| section[start + HEADER..].starts_with(TEXT)).collect();
    (section, starts)
}

/// Overwrites a part of the payload of the description at the start of `frame`, with the digest that it then has.
fn forge(frame: &mut [u8], offset: usize, bytes: &[u8]) {
    let len = u32::from_le_bytes(frame[4..HEADER].try_into().expect("four bytes")) as usize;
    let (payload, digest) = frame[HEADER..HEADER + len].split_at_mut(len - DIGEST);
    let start = offset % payload.len();
    for (byte, forged) in payload[start..].iter_mut().zip(bytes) {
        *byte = *forged;
    }
    digest.copy_from_slice(Digest::of(payload).as_bytes());
}

/// Finds the recovery data of a volume and repairs it. `None`: there is no recovery data, it describes a volume that is
/// too large, or more is lost.
fn repair(volume: &Vec<u8>) -> Option<Vec<u8>> {
    let recovery = Recovery::find(volume, volume.len() as u64)?;
    let len = recovery.volume_len();
    let section = recovery.section();
    assert!(section.start <= section.end && section.end <= len);
    let _ = recovery.per_mille();
    if len > VOLUME_LIMIT {
        return None;
    }
    let damage = recovery.damage(volume, |_| {});
    let _ = recovery.section_damage(volume, |_| {});
    let _ = recovery.reconstruct(volume, 0..len.min(1 << 16));
    let mut repaired = vec![0; usize::try_from(len).expect("at most VOLUME_LIMIT")];
    let write = |offset, bytes: &[u8]| {
        let start = usize::try_from(offset).expect("at most VOLUME_LIMIT");
        repaired[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    };
    let result = recovery.repair(volume, write, |_| {});
    assert!(damage.lost.is_empty() || result.is_err(), "the repair of what is lost");
    result.ok().map(|_| repaired)
}
