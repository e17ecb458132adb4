//! [`TableFeeder`]: reads frames at the offsets in the seek table, skips unneeded ones, and repairs corrupt
//! ones.

use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use crate::bundle::format::seek_table::FrameEntry;
use crate::bundle::format::skippable::RECOVERY_MAGIC;
use crate::bundle::read::feeder::{FrameFeeder, FrameRepair, READ_AHEAD, RepairedFrame, Stop};
use crate::bundle::read::frame_error::FrameError;
use crate::bundle::read::frame_reader::{Frame, FrameReader};
use crate::bundle::read::volume_set::{VolumeSet, VolumeSetReader};

/// A position between two frames of a seek table.
#[derive(Clone, Copy, Default)]
pub(crate) struct TablePosition {
    /// Number of the next frame.
    frame: usize,
    /// Offset of the next frame in the bundle.
    offset: u64,
    /// Offset of its content in the tar stream.
    stream: u64,
}

impl TablePosition {
    /// Returns the position before the first frame at offset `stream` of the tar stream. `None` if no frame
    /// begins there.
    pub(crate) fn at(table: &[FrameEntry], stream: u64) -> Option<Self> {
        let mut position = Self::default();
        while position.stream < stream {
            position = position.after(*table.get(position.frame)?);
        }
        (position.stream == stream).then_some(position)
    }

    fn after(self, entry: FrameEntry) -> Self {
        Self {
            frame: self.frame + 1,
            offset: self.offset + u64::from(entry.compressed),
            stream: self.stream + u64::from(entry.decompressed),
        }
    }
}

/// Reads frames at the offsets in the seek table, so that a corrupt frame does not hide the following ones.
pub(crate) struct TableFeeder<'a> {
    feeder: &'a mut FrameFeeder,
    volumes: &'a Arc<VolumeSet>,
    input: BufReader<VolumeSetReader<'a>>,
    /// Offset of `input` in the bundle. `None` after an incomplete frame.
    input_offset: Option<u64>,
    has_recovery: bool,
}

impl<'a> TableFeeder<'a> {
    pub(crate) fn new(feeder: &'a mut FrameFeeder, volumes: &'a Arc<VolumeSet>) -> Self {
        let input = BufReader::with_capacity(READ_AHEAD, volumes.reader(0));
        Self { feeder, volumes, input, input_offset: Some(0), has_recovery: false }
    }

    /// Sends the frames of `table` from `start` on. If there are `ranges` of the tar stream, sends only
    /// frames that overlap with one of them, and holes instead of the others. The ranges are sorted and do
    /// not overlap.
    pub(crate) fn run(
        mut self,
        table: &[FrameEntry],
        start: TablePosition,
        ranges: Option<&[Range<u64>]>,
    ) -> Result<(), Stop> {
        self.has_recovery = may_have_recovery(self.volumes, table);
        let mut position = start;
        let mut skipped = None;
        for entry in &table[start.frame..] {
            let TablePosition { offset, stream, .. } = position;
            position = position.after(*entry);
            if ranges.is_some_and(|ranges| !overlaps(ranges, &(stream..position.stream))) {
                let (_, len) = skipped.get_or_insert((offset, 0));
                *len += entry.decompressed as usize;
                continue;
            }
            self.skipped(skipped.take())?;
            self.frame(offset, *entry)?;
        }
        self.skipped(skipped)
    }

    /// Sends a hole for skipped frames: the offset of the first one, and the size of their content.
    fn skipped(&mut self, skipped: Option<(u64, usize)>) -> Result<(), Stop> {
        match skipped {
            Some((offset, len)) if len > 0 => self.feeder.known(offset, len, Err(FrameError::Skipped)),
            _ => Ok(()),
        }
    }

    fn frame(&mut self, offset: u64, entry: FrameEntry) -> Result<(), Stop> {
        if entry.decompressed > 0 {
            self.feeder.wait_for_permit()?;
        } else if self.feeder.is_past_signature && is_recovery(self.volumes, offset, entry) {
            self.volumes.note_recovery();
            return Ok(());
        }
        if self.input_offset != Some(offset) {
            self.input
                .seek(SeekFrom::Start(offset))
                .map_err(|error| Stop::Failed(offset, FrameError::Read(error)))?;
        }
        let end = offset + u64::from(entry.compressed);
        let input = self.input.by_ref().take(u64::from(entry.compressed));
        let mut frames = FrameReader::new(input, offset, self.feeder.buffers());
        let frame = frames.next_frame();
        let is_complete = frames.offset() == end;
        self.input_offset = is_complete.then_some(end);

        let repair =
            FrameRepair { volumes: self.volumes.clone(), has_recovery: self.has_recovery, offset, entry };
        match frame {
            Ok(Some(frame)) if is_complete && frame.content_size() == entry.decompressed as usize => {
                match frame {
                    Frame::Data(data) => self.feeder.data(offset, data, Some(repair)),
                    skippable @ Frame::Skippable { .. } => self.feeder.frame(offset, skippable),
                }
            }
            Ok(Some(frame)) if is_complete => self.mismatch(offset, entry, frame),
            // The table states the length of the frame: the bundle itself is not truncated.
            Ok(_) | Err(FrameError::Truncated) => self.repair(&repair, FrameError::Corrupt),
            Err(error) => self.repair(&repair, error),
        }
    }

    /// Sends an unreadable frame: repaired if possible, otherwise as a hole.
    fn repair(&mut self, repair: &FrameRepair, error: FrameError) -> Result<(), Stop> {
        match repair.frame(self.feeder.buffers()) {
            Some(RepairedFrame::Content(content)) => {
                self.feeder.known(repair.offset, content.len(), Ok(content))
            }
            Some(RepairedFrame::Skippable(frame)) => self.feeder.frame(repair.offset, frame),
            None => self.feeder.hole(repair.offset, repair.entry.decompressed as usize, error),
        }
    }

    /// Sends a frame whose content size differs from that in the table. The frame has a checksum, the table
    /// has none: if the frame decodes, the table is incorrect.
    ///
    /// Decodes the frame in this thread. Intact bundles have no such frames, so speed does not matter.
    fn mismatch(&mut self, offset: u64, entry: FrameEntry, frame: Frame) -> Result<(), Stop> {
        let len = frame.content_size();
        if let Frame::Data(data) = frame {
            match data.decode(self.feeder.buffers()) {
                Ok(content) => self.feeder.known(offset, len, Ok(content))?,
                Err(error) => return self.feeder.hole(offset, entry.decompressed as usize, error),
            }
        }
        self.feeder.defer(offset, FrameError::SeekTable);
        Ok(())
    }
}

/// True if one of the sorted `ranges` overlaps with `range`.
fn overlaps(ranges: &[Range<u64>], range: &Range<u64>) -> bool {
    let first = ranges.partition_point(|other| other.end <= range.start);
    ranges.get(first).is_some_and(|other| other.start < range.end)
}

/// True if the frame at `offset` is recovery data, which is large and only read for a repair.
fn is_recovery(volumes: &VolumeSet, offset: u64, entry: FrameEntry) -> bool {
    let mut header = [0; 8];
    let len = entry.compressed.wrapping_sub(8).to_le_bytes();
    let expected = [RECOVERY_MAGIC.to_le_bytes(), len].concat();
    volumes.read_at(&mut header, offset).is_ok_and(|read| read == header.len()) && header[..] == expected
}

/// True if a frame of `table` is recovery data, or is unreadable and can be recovery data.
fn may_have_recovery(volumes: &VolumeSet, table: &[FrameEntry]) -> bool {
    let mut offset = 0;
    table.iter().any(|entry| {
        let start = offset;
        offset += u64::from(entry.compressed);
        let mut magic = [0; 4];
        entry.decompressed == 0
            && (volumes.read_at(&mut magic, start).is_err() || magic == RECOVERY_MAGIC.to_le_bytes())
    })
}
