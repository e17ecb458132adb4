//! [`View`]: an assumption where the frames that were received belong in a volume.
//!
//! A frame that was lost leaves no trace: those after it move forward. Recovery data has checksums of all blocks, so
//! that several assumptions can be tried block by block, like several copies of the volume.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::bundle::format::seek_table::FrameEntry;
use crate::bundle::recovery::ReadAt;

/// Maximum number of pairs of frames that are compared.
const PAIR_LIMIT: usize = 1 << 24;

/// Received frames at their assumed offsets. Everything else is zeros.
pub(super) struct View<'a> {
    file: &'a File,
    /// Offset in the volume, offset in the file, and length; sorted.
    pieces: Vec<(u64, u64, u64)>,
    len: u64,
}

impl<'a> View<'a> {
    /// Assumes that everything up to the first loss is intact.
    pub(super) fn from_start(file: &'a File, frames: &[FrameEntry], len: u64) -> Self {
        let received = total(frames);
        Self { file, pieces: vec![(0, 0, received.min(len))], len }
    }

    /// Assumes that everything after the last loss is intact.
    pub(super) fn from_end(file: &'a File, frames: &[FrameEntry], len: u64) -> Self {
        let received = total(frames);
        let pieces = match len.checked_sub(received) {
            Some(lost) => vec![(lost, 0, received)],
            None => vec![(0, received - len, len)],
        };
        Self { file, pieces, len }
    }

    /// Puts each frame into the slot in `slots` that was assigned to it.
    pub(super) fn in_slots(
        file: &'a File,
        frames: &[FrameEntry],
        slots: &[(u64, FrameEntry)],
        assigned: &[Option<usize>],
        len: u64,
    ) -> Self {
        let mut position = 0;
        let mut pieces = Vec::new();
        for (frame, slot) in frames.iter().zip(assigned) {
            let size = u64::from(frame.compressed);
            pieces.extend(slot.map(|slot| (slots[slot].0, position, size)));
            position += size;
        }
        Self { file, pieces, len }
    }
}

fn total(frames: &[FrameEntry]) -> u64 {
    frames.iter().map(|frame| u64::from(frame.compressed)).sum()
}

impl ReadAt for View<'_> {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let next = self.pieces.partition_point(|(start, _, len)| start + len <= offset);
        let Some((start, position, len)) = self.pieces.get(next).filter(|(start, ..)| *start <= offset)
        else {
            let end = self.pieces.get(next).map_or(self.len, |(start, ..)| *start);
            let hole = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(left);
            let len = bytes.len().min(hole);
            bytes[..len].fill(0);
            return Ok(len);
        };
        let rest = usize::try_from(start + len - offset).unwrap_or(usize::MAX).min(left);
        let len = bytes.len().min(rest);
        FileExt::read_at(self.file, &mut bytes[..len], position + (offset - start))
    }
}

/// Several views of one volume.
pub(super) struct Views<'a>(pub(super) Vec<View<'a>>);

impl ReadAt for Views<'_> {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.first().map_or(Ok(0), |view| view.read_at(offset, bytes))
    }

    fn copies(&self) -> usize {
        self.0.len()
    }

    fn read_copy_at(&self, copy: usize, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.0[copy].read_at(offset, bytes)
    }
}

/// Assigns each of `frames` to one of `slots` with the same sizes, in order, so that as many as possible have one: once
/// as early as possible, once as late as possible. A frame whose slot is the same in both is certain. Empty if there are
/// too many.
pub(super) fn assignments(frames: &[FrameEntry], slots: &[(u64, FrameEntry)]) -> [Vec<Option<usize>>; 2] {
    if frames.len().saturating_mul(slots.len()) > PAIR_LIMIT {
        return [Vec::new(), Vec::new()];
    }
    let width = slots.len() + 1;
    // The number of frames from `frame` on that fit into the slots from `slot` on.
    let mut best = vec![0_u32; (frames.len() + 1) * width];
    for frame in (0..frames.len()).rev() {
        for slot in (0..slots.len()).rev() {
            let skip = best[(frame + 1) * width + slot].max(best[frame * width + slot + 1]);
            let fits = frames[frame] == slots[slot].1;
            let take = if fits { best[(frame + 1) * width + slot + 1] + 1 } else { 0 };
            best[frame * width + slot] = skip.max(take);
        }
    }
    let assign = |is_early: bool| {
        let mut assigned = vec![None; frames.len()];
        let (mut frame, mut slot) = (0, 0);
        while frame < frames.len() && slot < slots.len() {
            let here = best[frame * width + slot];
            let fits = frames[frame] == slots[slot].1;
            let can_take = fits && best[(frame + 1) * width + slot + 1] + 1 == here;
            let can_wait = best[frame * width + slot + 1] == here;
            if can_take && (is_early || !can_wait) {
                assigned[frame] = Some(slot);
                frame += 1;
                slot += 1;
            } else if can_wait {
                slot += 1;
            } else {
                frame += 1;
            }
        }
        assigned
    };
    [assign(true), assign(false)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_assigned_to_slots_of_their_size() {
        let entry = |size| FrameEntry { compressed: size, decompressed: size };
        let slots: Vec<_> = [5, 7, 7, 7, 3, 5].into_iter().map(|size| (0, entry(size))).collect();
        for (frames, early, late) in [
            (&[5, 7, 7, 7, 3, 5][..], &[0, 1, 2, 3, 4, 5][..], &[0, 1, 2, 3, 4, 5][..]),
            (&[5, 7, 7, 3, 5], &[0, 1, 2, 4, 5], &[0, 2, 3, 4, 5]),
            (&[7, 3], &[1, 4], &[3, 4]),
            (&[5], &[0], &[5]),
            (&[], &[], &[]),
        ] {
            let frames: Vec<_> = frames.iter().map(|size| entry(*size)).collect();
            let slots_of = |slots: &[usize]| slots.iter().map(|slot| Some(*slot)).collect::<Vec<_>>();
            assert_eq!(assignments(&frames, &slots), [slots_of(early), slots_of(late)]);
        }
        // A frame of another bundle has no slot.
        let frames = [entry(5), entry(9), entry(3)];
        assert_eq!(assignments(&frames, &slots)[0], [Some(0), None, Some(4)]);
    }
}
