//! The description: what stands in a recovery section three times, and says how to use all the rest of it.

use crate::bundle::format::skippable::{self, RECOVERY_MAGIC};
use crate::bundle::recovery::blocks::index;
use crate::bundle::recovery::geometry::{FIELDS, FRAME_HEADER, Geometry, Numbers, PAYLOAD_LIMIT, TRAILER};
use crate::oci::digest::Digest;

/// What a description begins with, by which it is found.
pub(super) const TEXT: &[u8; 16] = b"airbundle repair";
const VERSION: u32 = 1;
/// How long the beginning is from which [`Fields::parse`] knows everything but the checksums of the blocks.
pub(super) const HEAD: usize = index_of(FRAME_HEADER + FIELDS);

#[expect(clippy::cast_possible_truncation, reason = "small constants")]
const fn index_of(len: u64) -> usize {
    len as usize
}

/// What a description says, but for the checksums of the blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) numbers: Numbers,
    /// How many bytes of the volume stand before the section.
    pub(super) front: u64,
    /// How many behind it.
    pub(super) tail: u64,
}

/// The frame of a description: `data` and `spares` are the checksums of the blocks, and of the recovery blocks.
pub(super) fn encode(shape: &Geometry, tail: u64, data: &[u64], spares: &[u64]) -> Vec<u8> {
    let numbers = shape.numbers();
    let small = |number: u64| u32::try_from(number).expect("a sound shape; please report").to_le_bytes();
    let mut payload = Vec::with_capacity(index(numbers.description_len()));
    payload.extend_from_slice(TEXT);
    payload.extend_from_slice(&VERSION.to_le_bytes());
    payload.extend_from_slice(&small(numbers.block));
    payload.extend_from_slice(&(numbers.protected - tail).to_le_bytes());
    payload.extend_from_slice(&shape.section_len().to_le_bytes());
    payload.extend_from_slice(&tail.to_le_bytes());
    payload.extend_from_slice(&numbers.per_mille.to_le_bytes());
    payload.extend_from_slice(&small(numbers.groups));
    payload.extend_from_slice(&small(numbers.spare));
    payload.extend_from_slice(&[0; 4]);
    for sum in data.iter().chain(spares) {
        payload.extend_from_slice(&sum.to_le_bytes());
    }
    payload.extend_from_slice(&numbers.description_len().to_le_bytes());
    let digest = Digest::of(&payload);
    payload.extend_from_slice(digest.as_bytes());
    skippable::encode(RECOVERY_MAGIC, &payload)
}

/// How long the description's payload is that ends with these [`TRAILER`] bytes, if one does.
pub(super) fn len_before(trailer: &[u8]) -> Option<u64> {
    let len = u64::from_le_bytes(trailer[..8].try_into().expect("eight bytes"));
    (FIELDS + TRAILER..=PAYLOAD_LIMIT).contains(&len).then_some(len)
}

impl Fields {
    /// What the first [`HEAD`] bytes of a description's frame say; nothing if they cannot be those of one. All of it is
    /// only true if the [checksum](is_whole) is.
    pub(super) fn parse(head: &[u8]) -> Option<Self> {
        let mut rest = head;
        let mut take = |len| rest.split_off(..len).expect("HEAD bytes; please report");
        let magic = take(4);
        let len = small(take(4));
        let (text, version) = (take(16), small(take(4)));
        if magic != RECOVERY_MAGIC.to_le_bytes() || text != TEXT || version != u64::from(VERSION) {
            return None;
        }
        let block = small(take(4));
        let (front, section, tail) = (large(take(8)), large(take(8)), large(take(8)));
        let per_mille = u32::try_from(small(take(4))).expect("four bytes");
        let (groups, spare) = (small(take(4)), small(take(4)));
        let protected = front.checked_add(tail)?;
        let numbers = Numbers { protected, per_mille, block, groups, spare };
        let is_sound =
            numbers.are_sound() && numbers.description_len() == len && numbers.section_len() == section;
        is_sound.then_some(Self { numbers, front, tail })
    }
}

/// Whether the description whose frame this is has the bytes that were written.
pub(super) fn is_whole(frame: &[u8]) -> bool {
    let (payload, digest) = frame[index(FRAME_HEADER)..].split_at(frame.len() - HEAD_AND_DIGEST);
    Digest::of(payload).as_bytes() == digest
}

/// The header of the frame, and the sha256 at its end.
const HEAD_AND_DIGEST: usize = index_of(FRAME_HEADER) + 32;

/// Checksum `number` of a description: first those of all blocks, then those of all recovery blocks.
pub(super) fn sum(frame: &[u8], number: u64) -> u64 {
    large(&frame[HEAD + index(number) * 8..][..8])
}

fn small(bytes: &[u8]) -> u64 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes")).into()
}

fn large(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}
