//! The description of a recovery section: its geometry and the checksums of all blocks.

use crate::bundle::format::skippable::{self, RECOVERY_MAGIC};
use crate::bundle::recovery::blocks::index;
use crate::bundle::recovery::geometry::{FIELDS, FRAME_HEADER, Geometry, Numbers, PAYLOAD_LIMIT, TRAILER};
use crate::oci::digest::Digest;

/// The first bytes of each description. A search for a description looks for them.
pub(super) const TEXT: &[u8; 16] = b"airbundle repair";
const VERSION: u32 = 1;
/// Length of the frame header and the fields, which precede the checksums of the blocks.
pub(super) const HEAD: usize = index_of(FRAME_HEADER + FIELDS);
/// Length of the frame header and of the SHA-256 at the end of the frame.
const HEADER_AND_DIGEST: usize = index_of(FRAME_HEADER) + 32;

#[expect(clippy::cast_possible_truncation, reason = "small constants")]
const fn index_of(len: u64) -> usize {
    len as usize
}

/// The fields of a description, without the checksums of the blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) numbers: Numbers,
    /// Number of bytes of the volume before the section.
    pub(super) front: u64,
    /// Number of bytes after the section.
    pub(super) tail: u64,
}

/// Returns the frame of a description. `data` and `parity` are the checksums of the blocks.
pub(super) fn encode(geometry: &Geometry, tail: u64, data: &[u64], parity: &[u64]) -> Vec<u8> {
    let numbers = geometry.numbers();
    let small = |number: u64| u32::try_from(number).expect("a valid geometry; please report").to_le_bytes();
    let mut payload = Vec::with_capacity(index(numbers.description_len()));
    payload.extend_from_slice(TEXT);
    payload.extend_from_slice(&VERSION.to_le_bytes());
    payload.extend_from_slice(&small(numbers.block_size));
    payload.extend_from_slice(&(numbers.protected - tail).to_le_bytes());
    payload.extend_from_slice(&geometry.section_len().to_le_bytes());
    payload.extend_from_slice(&tail.to_le_bytes());
    payload.extend_from_slice(&numbers.per_mille.to_le_bytes());
    payload.extend_from_slice(&small(numbers.groups));
    payload.extend_from_slice(&small(numbers.parity));
    payload.extend_from_slice(&[0; 4]);
    for checksum in data.iter().chain(parity) {
        payload.extend_from_slice(&checksum.to_le_bytes());
    }
    payload.extend_from_slice(&numbers.description_len().to_le_bytes());
    let digest = Digest::of(&payload);
    payload.extend_from_slice(digest.as_bytes());
    skippable::encode(RECOVERY_MAGIC, &payload)
}

/// Returns the length of the description's payload from its last [`TRAILER`] bytes. `None`: not a
/// description.
pub(super) fn len_before(trailer: &[u8]) -> Option<u64> {
    let len = u64::from_le_bytes(trailer[..8].try_into().expect("eight bytes"));
    (FIELDS + TRAILER..=PAYLOAD_LIMIT).contains(&len).then_some(len)
}

impl Fields {
    /// Parses the first [`HEAD`] bytes of a description's frame. Returns `None` if the numbers are invalid.
    ///
    /// The fields are unverified until [`is_intact`] has checked the complete frame.
    pub(super) fn parse(head: &[u8]) -> Option<Self> {
        let mut rest = head;
        let mut field = |len| rest.split_off(..len).expect("HEAD bytes; please report");
        let magic = field(4);
        let len = small(field(4));
        let (text, version) = (field(16), small(field(4)));
        if magic != RECOVERY_MAGIC.to_le_bytes() || text != TEXT || version != u64::from(VERSION) {
            return None;
        }
        let block_size = small(field(4));
        let (front, section, tail) = (large(field(8)), large(field(8)), large(field(8)));
        let per_mille = u32::try_from(small(field(4))).expect("four bytes");
        let (groups, parity) = (small(field(4)), small(field(4)));
        let protected = front.checked_add(tail)?;
        let numbers = Numbers { protected, per_mille, block_size, groups, parity };
        let is_valid =
            numbers.are_valid() && numbers.description_len() == len && numbers.section_len() == section;
        is_valid.then_some(Self { numbers, front, tail })
    }
}

/// True if the SHA-256 of a description's frame matches.
pub(super) fn is_intact(frame: &[u8]) -> bool {
    let (payload, digest) = frame[index(FRAME_HEADER)..].split_at(frame.len() - HEADER_AND_DIGEST);
    Digest::of(payload).as_bytes() == digest
}

/// Returns checksum `number` of a description: those of the data blocks come first, then those of the parity
/// blocks.
pub(super) fn block_checksum(frame: &[u8], number: u64) -> u64 {
    large(&frame[HEAD + index(number) * 8..][..8])
}

fn small(bytes: &[u8]) -> u64 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes")).into()
}

fn large(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}
