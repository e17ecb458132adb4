//! [`Copies`]: compares the copies of a volume frame by frame, and joins them.

use std::io::{self, BufReader, Read};
use std::path::Path;

use crate::base::buffer::Buffers;
use crate::bundle::format::label::Label;
use crate::bundle::format::seek_table::{self, FrameEntry};
use crate::bundle::format::skippable::{PADDING_MAGIC, SEEK_TABLE_MAGIC, SIGNATURE_MAGIC, VOLUME_MAGIC};
use crate::bundle::read::feeder::READ_AHEAD;
use crate::bundle::read::frame_reader::{self, Frame, FrameReader};
use crate::bundle::read::volume_set::{Volume, VolumeBytes, VolumeSet};
use crate::bundle::recovery::blocks::{OneCopy, ReadAt, read_exact_at};
use crate::signature::Signature;

/// The copies of a volume, and the frames in it.
pub(crate) struct Copies<'a> {
    set: &'a VolumeSet,
    number: usize,
    /// The frames, with their offsets in the volume. `None`: there is no seek table.
    frames: Option<Vec<(u64, FrameEntry)>>,
    buffers: Buffers,
}

/// The copies cannot be joined.
pub(crate) enum JoinError {
    /// No copy has an intact frame at this offset of the volume.
    NoIntactCopy(u64),
    /// A copy cannot be read.
    Read(io::Error),
    /// The output cannot be written.
    Write(io::Error),
}

impl<'a> Copies<'a> {
    /// Returns the copies of volume `number`, from 0, of which the bundle has the frames in `table`.
    pub(crate) fn new(set: &'a VolumeSet, number: usize, table: Option<&[FrameEntry]>) -> Self {
        let volume = &set.volumes()[number];
        let frames = table.map(|table| {
            let table_len = set.len().saturating_sub(seek_table::bundle_len(table, 0));
            seek_table::frames_in(table, table_len, &(volume.start..volume.start + volume.len))
        });
        Self { set, number, frames, buffers: frame_reader::buffers() }
    }

    fn volume(&self) -> &'a Volume {
        &self.set.volumes()[self.number]
    }

    /// Returns the path of each copy.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &'a Path> {
        self.volume().copies.iter().map(|copy| &*copy.path)
    }

    /// Returns the offsets of corrupt frames in `copy`. Without a seek table, nothing is known after the first one.
    pub(crate) fn damage(&self, copy: usize) -> Vec<u64> {
        let mut damaged = Vec::new();
        let bytes = self.set.bytes_of(self.number);
        if let Some(frames) = &self.frames {
            let is_corrupt = |(offset, frame): &(u64, FrameEntry)| {
                self.intact_len(&bytes, copy, *offset) != Some(u64::from(frame.compressed))
            };
            damaged.extend(frames.iter().filter(|frame| is_corrupt(frame)).map(|(offset, _)| *offset));
        } else {
            let mut offset = 0;
            while offset < self.volume().len && damaged.is_empty() {
                match self.intact_len(&bytes, copy, offset) {
                    Some(len) => offset += len,
                    None => damaged.push(offset),
                }
            }
        }
        if let Some(recovery) = self.set.recovery(self.number) {
            let section = recovery.section_damage(&OneCopy { source: &bytes, copy }, |_| {});
            damaged.extend(section.ranges.into_iter().map(|range| range.start));
        }
        damaged.sort_unstable();
        damaged.dedup();
        damaged
    }

    /// Passes each frame to `write`, with its offset, from the first copy in which it is intact. Returns the offsets of
    /// the frames that are corrupt in the first copy.
    pub(crate) fn join(
        &self,
        mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<Vec<u64>, JoinError> {
        let (mut offset, mut replaced) = (0, Vec::new());
        let bytes = self.set.bytes_of(self.number);
        while offset < self.volume().len {
            // A frame of another bundle can have the same size: a file without a label is not used.
            let mut copies =
                (0..self.volume().copies.len()).filter(|copy| self.volume().copies[*copy].is_labelled);
            let intact = |copy| Some((copy, self.intact_len(&bytes, copy, offset)?));
            let (copy, len) = copies.find_map(intact).ok_or(JoinError::NoIntactCopy(offset))?;
            let mut frame = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            read_exact_at(&OneCopy { source: &bytes, copy }, offset, &mut frame).map_err(JoinError::Read)?;
            write(offset, &frame).map_err(JoinError::Write)?;
            replaced.extend((copy > 0).then_some(offset));
            offset += len;
        }
        Ok(replaced)
    }

    /// Returns the size of the frame at `offset` of a copy. `None`: it is corrupt or cannot be read.
    fn intact_len(&self, bytes: &VolumeBytes<'_>, copy: usize, offset: u64) -> Option<u64> {
        let input = ReadFrom { source: OneCopy { source: bytes, copy }, offset };
        let input = BufReader::with_capacity(READ_AHEAD, input);
        let mut frames = FrameReader::new(input, 0, &self.buffers);
        let is_intact = match frames.next_frame().ok()?? {
            Frame::Data(data) => data.decode(&self.buffers).is_ok(),
            Frame::Skippable { magic, payload } => is_valid(magic, &payload),
        };
        is_intact.then_some(frames.offset())
    }
}

/// True if the payload of a skippable frame, which has no checksum, is valid as far as that can be told.
fn is_valid(magic: u32, payload: &[u8]) -> bool {
    match magic {
        VOLUME_MAGIC => Label::parse(payload).is_some(),
        SIGNATURE_MAGIC => Signature::parse(payload).is_some(),
        SEEK_TABLE_MAGIC => seek_table::decode(payload).is_some(),
        PADDING_MAGIC => payload.iter().all(|byte| *byte == 0),
        _ => true,
    }
}

/// Reads from an offset on.
struct ReadFrom<T> {
    source: T,
    offset: u64,
}

impl<T: ReadAt> Read for ReadFrom<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read_at(self.offset, bytes)?;
        self.offset += read as u64;
        Ok(read)
    }
}
