//! [`FrameFeeder`]: the thread that reads frames and sends them to be decoded.

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

use crate::base::buffer::{Buffer, Buffers};
use crate::bundle::format::label::Label;
use crate::bundle::format::seek_table::{self, FrameEntry};
use crate::bundle::format::skippable::{
    PADDING_MAGIC, RECOVERY_MAGIC, SEEK_TABLE_MAGIC, SIGNATURE_MAGIC, SKIPPABLE_LIMIT, VOLUME_MAGIC,
};
use crate::bundle::read::frame_reader::{self, DataFrame, Frame, FrameReader};
use crate::bundle::read::problem::FrameError;
use crate::bundle::read::volume_set::{VolumeSet, VolumeSetReader};
use crate::signature::{SIGNATURE_LIMIT, Signature};

/// How much is read at once where a frame or a block begins. All else goes straight to its place, if it is more than
/// this.
pub(crate) const READ_AHEAD: usize = 8 << 10;

/// What comes out of the input.
pub(crate) enum FeederMessage {
    Chunk(Chunk),
    Signature(Vec<u8>),
}

/// A frame on its way through the cores: what it decodes to comes later.
pub(crate) struct Chunk {
    pub(crate) offset: u64,
    pub(crate) len: usize,
    pub(crate) content: Receiver<Result<Buffer, FrameError>>,
    /// Nothing comes behind a frame whose end cannot be found.
    pub(crate) last: bool,
}

/// Starts a thread that feeds; returns where it comes out.
pub(crate) fn feeder(feed: impl FnOnce(&mut FrameFeeder) + Send + 'static) -> Receiver<FeederMessage> {
    // Every core has a frame at work and there is one more behind it; each has at most 8 MiB, both forms.
    let (sender, sent) = sync_channel(rayon::current_num_threads().min(6) + 2);
    std::thread::spawn(move || feed(&mut FrameFeeder::new(sender)));
    sent
}

/// Where to begin with the frames of a seek table.
#[derive(Clone, Copy, Default)]
pub(crate) struct TablePosition {
    /// The number of the first frame, …
    pub(crate) frame: usize,
    /// … where it is in the bundle, …
    pub(crate) offset: u64,
    /// … and where what it holds is in the tar stream.
    pub(crate) stream: u64,
}

impl TablePosition {
    /// The first frame that holds something from `stream` on, if one begins there.
    pub(crate) fn at(table: &[FrameEntry], stream: u64) -> Option<Self> {
        let mut start = Self::default();
        while start.stream < stream {
            let entry = table.get(start.frame)?;
            start = Self {
                frame: start.frame + 1,
                offset: start.offset + u64::from(entry.compressed),
                stream: start.stream + u64::from(entry.decompressed),
            };
        }
        (start.stream == stream).then_some(start)
    }
}

/// How much may be read.
#[derive(Clone, Copy)]
pub(crate) enum ReadAllowance {
    /// One frame more.
    One,
    /// Everything.
    All,
}

/// A frame as it was packed, if there is recovery data for it.
pub(crate) struct FrameRepair {
    pub(crate) medium: Arc<VolumeSet>,
    /// Where there is none, nothing is searched for it.
    pub(crate) may_repair: bool,
    pub(crate) offset: u64,
    pub(crate) entry: FrameEntry,
}

impl FrameRepair {
    pub(crate) fn frame(&self, buffers: &Buffers) -> Option<Frame> {
        if !self.may_repair {
            return None;
        }
        let bytes = self.medium.reconstruct(self.offset..self.offset + u64::from(self.entry.compressed))?;
        let mut frames = FrameReader::new(&bytes[..], self.offset, buffers);
        let frame = frames.next_frame().ok()??;
        let is_right = frames.offset() == self.offset + bytes.len() as u64
            && frame.content_size() == self.entry.decompressed as usize;
        is_right.then_some(frame)
    }
}

/// How the frames of one volume end.
pub(crate) enum VolumeEnd {
    /// With the volume.
    Here,
    /// With the bundle.
    SeekTable,
    /// Nobody wants more.
    Gone,
    /// With something that cannot be read.
    Failed(u64, FrameError),
}

/// The thread that reads the input and sends its frames to be decoded.
pub(crate) struct FrameFeeder {
    pub(crate) sender: SyncSender<FeederMessage>,
    /// Who says how much may be read; without anybody, it is everything.
    pub(crate) leave: Option<Receiver<ReadAllowance>>,
    /// For how many frames there is leave that has not been used yet.
    pub(crate) leaves: u32,
    /// Whether there is recovery data.
    pub(crate) may_repair: bool,
    pub(crate) buffers: Buffers,
    /// The frames so far, to be compared with the seek table at the end of a pipe.
    pub(crate) seen: Vec<FrameEntry>,
    /// How many bytes of the tar stream have been sent since the first label: what labels count.
    pub(crate) stream: u64,
    /// Whether something is missing in `seen`.
    pub(crate) has_gap: bool,
    /// Whether something has come that no signature may follow.
    pub(crate) is_past_signature: bool,
    /// Damage that hits no content: told when all content has been sent.
    pub(crate) deferred: Option<(u64, FrameError)>,
}

/// The reader has been dropped: nothing more is wanted.
pub(crate) struct ReaderDropped;

impl FrameFeeder {
    pub(crate) fn new(sender: SyncSender<FeederMessage>) -> Self {
        Self {
            sender,
            leave: None,
            leaves: 0,
            may_repair: false,
            buffers: frame_reader::buffers(),
            seen: Vec::new(),
            stream: 0,
            has_gap: false,
            is_past_signature: false,
            deferred: None,
        }
    }

    /// Waits until a frame may be read; says no when nobody wants any more.
    pub(crate) fn may_read(&mut self) -> bool {
        if self.leaves > 0 {
            return true;
        }
        match self.leave.as_ref().map(Receiver::recv) {
            None => true,
            Some(Ok(ReadAllowance::One)) => {
                self.leaves += 1;
                true
            }
            Some(Ok(ReadAllowance::All)) => {
                self.leave = None;
                true
            }
            Some(Err(_)) => false,
        }
    }

    /// Frames one after the other, as they come.
    pub(crate) fn by_frames(&mut self, input: impl Read) {
        match self.frames(input, 0) {
            VolumeEnd::Here if self.seen.is_empty() => self.fail(0, FrameError::End),
            VolumeEnd::Here => self.fail(self.end_of_seen(), FrameError::Truncated),
            VolumeEnd::Failed(offset, error) => self.fail(offset, error),
            VolumeEnd::SeekTable => self.end(),
            VolumeEnd::Gone => {}
        }
    }

    /// The frames of volumes, one volume after the other. What cannot be read of one does not hide the next: its label
    /// says how much of the tar stream is lost.
    pub(crate) fn by_volumes(&mut self, medium: &VolumeSet) {
        let mut rest = medium.volumes();
        while let [volume, behind @ ..] = rest {
            rest = behind;
            let end = if volume.is_there() {
                self.frames(volume.reader(medium), volume.start)
            } else {
                // To read there says what is missing.
                let error = medium.read_at(&mut [0], volume.start).err().map(FrameError::of);
                VolumeEnd::Failed(volume.start, error.unwrap_or(FrameError::Truncated))
            };
            let (offset, error) = match end {
                VolumeEnd::Here if !rest.is_empty() => continue,
                VolumeEnd::Here if medium.is_empty() => return self.fail(0, FrameError::End),
                VolumeEnd::Here => (volume.start + volume.len, FrameError::Truncated),
                VolumeEnd::Failed(offset, error) => (offset, error),
                VolumeEnd::SeekTable => return self.end(),
                VolumeEnd::Gone => return,
            };
            let next = rest.iter().position(|next| next.is_there() && next.stream.is_some());
            let lost = next.and_then(|next| rest[next].stream?.checked_sub(self.stream));
            let (Some(next), Some(lost)) = (next, lost.and_then(|lost| usize::try_from(lost).ok())) else {
                return self.fail(offset, error);
            };
            rest = &rest[next..];
            self.has_gap = true;
            if lost == 0 {
                self.defer(offset, error);
            } else if self.ready(offset, lost, Err(error)).is_err() {
                return;
            }
        }
    }

    /// Frames up to the end of `input`, which begins at `start` of the bundle.
    pub(crate) fn frames(&mut self, input: impl Read, start: u64) -> VolumeEnd {
        let mut frames = FrameReader::new(BufReader::with_capacity(READ_AHEAD, input), start, &self.buffers);
        loop {
            let offset = frames.offset();
            match frames.next_frame() {
                Ok(Some(Frame::Skippable { magic: SEEK_TABLE_MAGIC, payload })) => {
                    if !self.has_gap && seek_table::decode(&payload).is_none_or(|table| table != self.seen) {
                        self.defer(offset, FrameError::SeekTable);
                    }
                    let offset = frames.offset();
                    if !matches!(frames.next_frame(), Ok(None)) {
                        self.defer(offset, FrameError::Trailing);
                    }
                    return VolumeEnd::SeekTable;
                }
                Ok(Some(_)) if self.seen.len() >= SKIPPABLE_LIMIT as usize / 8 => {
                    return VolumeEnd::Failed(offset, FrameError::Unsupported("more than a bundle may have"));
                }
                Ok(Some(frame)) => {
                    self.seen.push(FrameEntry {
                        compressed: u32::try_from(frames.offset() - offset).unwrap_or(u32::MAX),
                        decompressed: u32::try_from(frame.content_size()).unwrap_or(u32::MAX),
                    });
                    if self.frame(offset, frame).is_err() {
                        return VolumeEnd::Gone;
                    }
                }
                Ok(None) => return VolumeEnd::Here,
                Err(error) => return VolumeEnd::Failed(offset, error),
            }
        }
    }

    pub(crate) fn end_of_seen(&self) -> u64 {
        self.seen.iter().map(|entry| u64::from(entry.compressed)).sum()
    }

    /// Frames where the seek table says that they are: a damaged one does not hide the next. Only those that hold some of
    /// `wanted`, if anybody says so.
    pub(crate) fn by_table(
        &mut self,
        medium: &Arc<VolumeSet>,
        table: &[FrameEntry],
        start: TablePosition,
        wanted: Option<&[Range<u64>]>,
    ) {
        self.may_repair = may_repair(medium, table);
        let mut input = BufReader::with_capacity(READ_AHEAD, medium.reader(start.offset));
        let (mut offset, mut stream) = (start.offset, start.stream);
        // Where the input stands; nothing is read to pass over something.
        let mut input_at = offset;
        let mut skipped = None;
        for entry in table.iter().skip(start.frame) {
            let (at, end) = (offset, offset + u64::from(entry.compressed));
            let content = stream..stream + u64::from(entry.decompressed);
            (offset, stream) = (end, content.end);
            if wanted.is_some_and(|wanted| !overlaps(wanted, &content)) {
                let (_, len) = skipped.get_or_insert((at, 0));
                *len += entry.decompressed as usize;
                continue;
            }
            if let Some((at, len)) = skipped.take().filter(|(_, len)| *len > 0)
                && self.ready(at, len, Err(FrameError::Skipped)).is_err()
            {
                return;
            }
            if input_at != at
                && let Err(error) = input.seek(SeekFrom::Start(at))
            {
                return self.fail(at, FrameError::Read(error));
            }
            if entry.decompressed > 0 && !self.may_read() {
                return;
            }
            if entry.decompressed == 0 && self.is_past_signature && is_recovery(medium, at, *entry) {
                medium.note_recovery();
                input_at = at;
                continue;
            }
            let sent = self.by_entry(medium, &mut input, at, *entry);
            input_at = match sent {
                Ok(is_whole) => {
                    if is_whole {
                        end
                    } else {
                        u64::MAX
                    }
                }
                Err(ReaderDropped) => return,
            };
        }
        if let Some((at, len)) = skipped.filter(|(_, len)| *len > 0)
            && self.ready(at, len, Err(FrameError::Skipped)).is_err()
        {
            return;
        }
        self.end();
    }

    /// The frame of `entry`, which is at `offset`; says whether the input stands behind it then.
    pub(crate) fn by_entry(
        &mut self,
        medium: &Arc<VolumeSet>,
        input: &mut BufReader<VolumeSetReader<'_>>,
        offset: u64,
        entry: FrameEntry,
    ) -> Result<bool, ReaderDropped> {
        let end = offset + u64::from(entry.compressed);
        let mut frames = FrameReader::new(input.take(u64::from(entry.compressed)), offset, &self.buffers);
        let frame = frames.next_frame();
        let is_whole = frames.offset() == end;
        let frame_repair = FrameRepair { medium: medium.clone(), may_repair: self.may_repair, offset, entry };
        match frame {
            Ok(Some(Frame::Data(data))) if is_whole && data.content_size() == entry.decompressed as usize => {
                self.data(offset, data, Some(frame_repair))?;
            }
            Ok(Some(frame)) if is_whole && frame.content_size() == entry.decompressed as usize => {
                self.frame(offset, frame)?;
            }
            Ok(Some(frame)) if is_whole => self.contested(offset, entry, frame)?,
            // It is not the bundle that ends there, but what the table says of the frame.
            Ok(_) | Err(FrameError::Truncated) => self.repaired(&frame_repair, FrameError::Damaged)?,
            Err(error) => self.repaired(&frame_repair, error)?,
        }
        Ok(is_whole)
    }

    /// A frame that is no frame, unless recovery data knows it.
    pub(crate) fn repaired(
        &mut self,
        frame_repair: &FrameRepair,
        error: FrameError,
    ) -> Result<(), ReaderDropped> {
        let (offset, entry) = (frame_repair.offset, frame_repair.entry);
        match frame_repair.frame(&self.buffers) {
            Some(Frame::Data(data)) => self.data(offset, data, None),
            Some(frame) => self.frame(offset, frame),
            None => self.hole(offset, entry, error),
        }
    }

    /// A frame that is decoded on another core, and repaired there if it turns out to be damaged.
    pub(crate) fn data(
        &mut self,
        offset: u64,
        data: DataFrame,
        frame_repair: Option<FrameRepair>,
    ) -> Result<(), ReaderDropped> {
        let len = data.content_size();
        self.stream += len as u64;
        let (sender, content) = channel();
        let buffers = self.buffers.clone();
        rayon::spawn_fifo(move || match (data.decode(&buffers), frame_repair) {
            // Not here: to repair takes a lock and all cores, and a core that waits for the others would take the next job,
            // which would wait for the lock.
            (Err(error), Some(frame_repair)) => drop(std::thread::spawn(move || {
                let right = match frame_repair.frame(&buffers) {
                    Some(Frame::Data(data)) => data.decode(&buffers).ok(),
                    _ => None,
                };
                let _ = sender.send(right.ok_or(error)); // as below
            })),
            (content, _) => drop(sender.send(content)), // nobody wants it after an error
        });
        self.send(Chunk { offset, len, content, last: false })
    }

    pub(crate) fn frame(&mut self, offset: u64, frame: Frame) -> Result<(), ReaderDropped> {
        match frame {
            Frame::Data(data) => self.data(offset, data, None),
            Frame::Skippable { magic: SIGNATURE_MAGIC, payload }
                if !self.is_past_signature && payload.len() <= SIGNATURE_LIMIT =>
            {
                self.is_past_signature = true;
                if Signature::parse(&payload).is_none() {
                    self.defer(offset, FrameError::Unsupported("that should be a signature"));
                }
                self.sender.send(FeederMessage::Signature(payload)).map_err(|_| ReaderDropped)
            }
            Frame::Skippable { magic: VOLUME_MAGIC, payload } => {
                self.is_past_signature = true;
                match Label::parse(&payload) {
                    Some(label) if label.number == 1 => self.stream = 0,
                    Some(_) => {}
                    None => {
                        self.defer(offset, FrameError::Unsupported("that should be the label of a volume"))
                    }
                }
                Ok(())
            }
            Frame::Skippable { magic: RECOVERY_MAGIC, .. } => {
                if !std::mem::replace(&mut self.is_past_signature, true) {
                    self.defer(offset, FrameError::Unsupported("where the padding of the head belongs"));
                }
                Ok(())
            }
            Frame::Skippable { magic, payload } => {
                self.is_past_signature = true;
                if magic != PADDING_MAGIC || payload.iter().any(|byte| *byte != 0) {
                    self.defer(offset, FrameError::Unsupported("that no bundle has"));
                }
                Ok(())
            }
        }
    }

    /// A frame that states another content size than the table. It has a checksum, and the table has none: which of
    /// them is wrong is known when it is decoded. Frames of a bundle that nobody damaged never come here, so this need
    /// not be fast, and holds one frame more.
    pub(crate) fn contested(
        &mut self,
        offset: u64,
        entry: FrameEntry,
        frame: Frame,
    ) -> Result<(), ReaderDropped> {
        let len = frame.content_size();
        if let Frame::Data(data) = frame {
            match data.decode(&self.buffers) {
                Ok(content) => self.ready(offset, len, Ok(content))?,
                Err(error) => return self.hole(offset, entry, error),
            }
        }
        self.defer(offset, FrameError::SeekTable);
        Ok(())
    }

    /// A frame that is damaged, of known size.
    pub(crate) fn hole(
        &mut self,
        offset: u64,
        entry: FrameEntry,
        error: FrameError,
    ) -> Result<(), ReaderDropped> {
        if entry.decompressed == 0 {
            self.defer(offset, error);
            return Ok(());
        }
        self.ready(offset, entry.decompressed as usize, Err(error))
    }

    /// What is known already of a frame with `len` bytes.
    pub(crate) fn ready(
        &mut self,
        offset: u64,
        len: usize,
        known: Result<Buffer, FrameError>,
    ) -> Result<(), ReaderDropped> {
        self.stream += len as u64;
        let (sender, content) = channel();
        let _ = sender.send(known);
        self.send(Chunk { offset, len, content, last: false })
    }

    pub(crate) fn defer(&mut self, offset: u64, error: FrameError) {
        self.deferred.get_or_insert((offset, error));
    }

    pub(crate) fn end(&mut self) {
        if let Some((offset, error)) = self.deferred.take() {
            self.fail(offset, error);
        }
    }

    /// Nothing can be read behind `offset`.
    pub(crate) fn fail(&mut self, offset: u64, error: FrameError) {
        let (sender, content) = channel();
        let _ = sender.send(Err(error));
        let _ = self.send(Chunk { offset, len: 0, content, last: true });
    }

    pub(crate) fn send(&mut self, chunk: Chunk) -> Result<(), ReaderDropped> {
        self.leaves = self.leaves.saturating_sub(1);
        self.sender.send(FeederMessage::Chunk(chunk)).map_err(|_| ReaderDropped)
    }
}

/// Whether any of the sorted `ranges` has something of `range`.
pub(crate) fn overlaps(ranges: &[Range<u64>], range: &Range<u64>) -> bool {
    let first = ranges.partition_point(|other| other.end <= range.start);
    ranges.get(first).is_some_and(|other| other.start < range.end)
}

/// Whether recovery data is at `offset`: a lot of bytes that nobody needs to read here.
pub(crate) fn is_recovery(medium: &VolumeSet, offset: u64, entry: FrameEntry) -> bool {
    let mut header = [0; 8];
    let len = entry.compressed.wrapping_sub(8).to_le_bytes();
    let expected = [RECOVERY_MAGIC.to_le_bytes(), len].concat();
    medium.read_at(&mut header, offset).is_ok_and(|read| read == header.len()) && header[..] == expected
}

/// Whether any frame of `table` is recovery data, or may be.
pub(crate) fn may_repair(medium: &VolumeSet, table: &[FrameEntry]) -> bool {
    let mut offset = 0;
    table.iter().any(|entry| {
        let at = offset;
        offset += u64::from(entry.compressed);
        let mut magic = [0; 4];
        entry.decompressed == 0
            && (medium.read_at(&mut magic, at).is_err() || magic == RECOVERY_MAGIC.to_le_bytes())
    })
}
