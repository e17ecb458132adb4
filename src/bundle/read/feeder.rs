//! [`FrameFeeder`]: a thread that reads frames and sends them to be decoded on all cores.

use std::io::{BufReader, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

use crate::base::buffer::{Buffer, Buffers};
use crate::bundle::format::label::Label;
use crate::bundle::format::seek_table::{self, FrameEntry};
use crate::bundle::format::skippable::{
    PADDING_MAGIC, RECOVERY_MAGIC, SEEK_TABLE_MAGIC, SIGNATURE_MAGIC, SKIPPABLE_LIMIT, VOLUME_MAGIC,
};
use crate::bundle::read::frame_error::FrameError;
use crate::bundle::read::frame_reader::{self, DataFrame, Frame, FrameReader};
use crate::bundle::read::volume_set::VolumeSet;
use crate::signature::{SIGNATURE_LIMIT, Signature};

/// Maximum content in bytes of a frame that is decoded at once: to pass it to another core takes longer.
const SMALL: usize = 16 << 10;
/// Size of the read buffer in bytes. It serves frame and block headers; larger reads bypass it.
pub(crate) const READ_AHEAD: usize = 8 << 10;

/// Maximum number of frames that a seek table can list.
const FRAME_LIMIT: usize = SKIPPABLE_LIMIT as usize / 8;

/// A frame or the end of the head, in the order of the bundle.
pub(crate) enum FeederMessage {
    Chunk(Chunk),
    HeadEnd(HeadEnd),
}

/// The first skippable frame, which ends the head.
pub(crate) struct HeadEnd {
    /// The payload of the frame if it is the signature.
    pub(crate) signature: Option<Vec<u8>>,
}

/// A frame that is being decoded.
pub(crate) struct Chunk {
    /// Offset of the frame in the bundle.
    pub(crate) offset: u64,
    /// Size of the content in bytes.
    pub(crate) len: usize,
    pub(crate) content: Receiver<Result<Buffer, FrameError>>,
    /// True if no further frame can be found after an error.
    pub(crate) is_last: bool,
}

/// A permission to read frames.
#[derive(Clone, Copy)]
pub(crate) enum ReadPermit {
    OneFrame,
    AllFrames,
}

/// The reason why no further frames are sent.
pub(crate) enum Stop {
    /// The receiver was dropped.
    ReaderDropped,
    /// No further frame can be found after this offset.
    Failed(u64, FrameError),
}

/// The end of an input.
enum InputEnd {
    /// The input has no more bytes.
    Eof,
    /// The seek table, which ends the bundle.
    SeekTable,
}

/// Starts a thread that runs `feed`, and returns the receiver of the frames.
pub(crate) fn start(
    feed: impl FnOnce(&mut FrameFeeder) -> Result<(), Stop> + Send + 'static,
) -> Receiver<FeederMessage> {
    // One frame per core and two that wait. A frame has at most 8 MiB, encoded and decoded together.
    let (sender, messages) = sync_channel(rayon::current_num_threads().min(6) + 2);
    std::thread::spawn(move || {
        let mut feeder = FrameFeeder::new(sender);
        let failure = match feed(&mut feeder) {
            Ok(()) => feeder.deferred.take(),
            Err(Stop::Failed(offset, error)) => Some((offset, error)),
            Err(Stop::ReaderDropped) => None,
        };
        if let Some((offset, error)) = failure {
            let _ = feeder.send_known(offset, 0, Err(error), true); // the receiver can be dropped
        }
    });
    messages
}

/// The state of the thread that reads frames.
pub(crate) struct FrameFeeder {
    sender: SyncSender<FeederMessage>,
    /// Receives permits. `None`: all frames may be read.
    pub(crate) permits: Option<Receiver<ReadPermit>>,
    /// Number of received permits that are not used yet.
    unused_permits: u32,
    buffers: Buffers,
    /// The frames so far, to be compared with the seek table of a stream.
    seen: Vec<FrameEntry>,
    /// Number of bytes of the tar stream sent since the first label, as in [`Label::stream`].
    stream: u64,
    /// True if frames are missing in `seen`.
    has_gap: bool,
    /// True after a frame that no signature can follow.
    pub(crate) is_past_signature: bool,
    /// The first damage that affects no content. It is reported after all content.
    deferred: Option<(u64, FrameError)>,
}

impl FrameFeeder {
    fn new(sender: SyncSender<FeederMessage>) -> Self {
        Self {
            sender,
            permits: None,
            unused_permits: 0,
            buffers: frame_reader::buffers(),
            seen: Vec::new(),
            stream: 0,
            has_gap: false,
            is_past_signature: false,
            deferred: None,
        }
    }

    pub(crate) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Sends the frames of a stream.
    pub(crate) fn by_frames(&mut self, input: impl Read) -> Result<(), Stop> {
        match self.input_frames(input, 0)? {
            InputEnd::SeekTable => Ok(()),
            InputEnd::Eof if self.seen.is_empty() => Err(Stop::Failed(0, FrameError::End)),
            InputEnd::Eof => {
                let end = self.seen.iter().map(|entry| u64::from(entry.compressed)).sum();
                Err(Stop::Failed(end, FrameError::Truncated))
            }
        }
    }

    /// Sends the frames of volumes without using a seek table. After unreadable frames it continues with the
    /// next volume, whose label states how much of the tar stream was lost.
    pub(crate) fn by_volumes(&mut self, volumes: &VolumeSet) -> Result<(), Stop> {
        let mut rest = volumes.volumes();
        while let [volume, following @ ..] = rest {
            rest = following;
            let end = if volume.is_present() {
                self.input_frames(volume.reader(volumes), volume.start)
            } else {
                // Reading at its start returns the error that describes the missing volume.
                let error = volumes.read_at(&mut [0], volume.start).err().map(FrameError::of);
                Err(Stop::Failed(volume.start, error.unwrap_or(FrameError::Truncated)))
            };
            let (offset, error) = match end {
                Ok(InputEnd::SeekTable) => return Ok(()),
                Ok(InputEnd::Eof) if !rest.is_empty() => continue,
                Ok(InputEnd::Eof) if volumes.is_empty() => return Err(Stop::Failed(0, FrameError::End)),
                Ok(InputEnd::Eof) => (volume.start + volume.len, FrameError::Truncated),
                Err(Stop::Failed(offset, error)) => (offset, error),
                Err(Stop::ReaderDropped) => return Err(Stop::ReaderDropped),
            };
            let next = rest.iter().position(|next| next.is_present() && next.stream.is_some());
            let lost = next.and_then(|next| rest[next].stream?.checked_sub(self.stream));
            let (Some(next), Some(lost)) = (next, lost.and_then(|lost| usize::try_from(lost).ok())) else {
                return Err(Stop::Failed(offset, error));
            };
            rest = &rest[next..];
            self.has_gap = true;
            self.hole(offset, lost, error)?;
        }
        Ok(())
    }

    /// Sends the frames of `input`, which begins at offset `start` of the bundle.
    fn input_frames(&mut self, input: impl Read, start: u64) -> Result<InputEnd, Stop> {
        let mut frames = FrameReader::new(BufReader::with_capacity(READ_AHEAD, input), start, &self.buffers);
        loop {
            let offset = frames.offset();
            match frames.next_frame().map_err(|error| Stop::Failed(offset, error))? {
                None => return Ok(InputEnd::Eof),
                Some(Frame::Skippable { magic: SEEK_TABLE_MAGIC, payload }) => {
                    if !self.has_gap && seek_table::decode(&payload).is_none_or(|table| table != self.seen) {
                        self.defer(offset, FrameError::SeekTable);
                    }
                    let end = frames.offset();
                    if !matches!(frames.next_frame(), Ok(None)) {
                        self.defer(end, FrameError::Trailing);
                    }
                    return Ok(InputEnd::SeekTable);
                }
                Some(_) if self.seen.len() >= FRAME_LIMIT => {
                    return Err(Stop::Failed(offset, FrameError::Unsupported("the bundle has too many")));
                }
                Some(frame) => {
                    self.seen.push(FrameEntry {
                        compressed: u32::try_from(frames.offset() - offset).unwrap_or(u32::MAX),
                        decompressed: u32::try_from(frame.content_size()).unwrap_or(u32::MAX),
                    });
                    self.frame(offset, frame)?;
                }
            }
        }
    }

    /// Waits until a frame may be read.
    pub(crate) fn wait_for_permit(&mut self) -> Result<(), Stop> {
        if self.unused_permits > 0 {
            return Ok(());
        }
        let Some(permits) = &self.permits else { return Ok(()) };
        match permits.recv().map_err(|_| Stop::ReaderDropped)? {
            ReadPermit::OneFrame => self.unused_permits += 1,
            ReadPermit::AllFrames => self.permits = None,
        }
        Ok(())
    }

    /// Sends a valid frame. Checks the order and the payload of skippable frames.
    pub(crate) fn frame(&mut self, offset: u64, frame: Frame) -> Result<(), Stop> {
        let (magic, payload) = match frame {
            Frame::Data(data) => return self.data(offset, data, None),
            Frame::Skippable { magic, payload } => (magic, payload),
        };
        let was_past_signature = std::mem::replace(&mut self.is_past_signature, true);
        let is_signature =
            magic == SIGNATURE_MAGIC && !was_past_signature && payload.len() <= SIGNATURE_LIMIT;
        let problem = match magic {
            SIGNATURE_MAGIC if is_signature => {
                Signature::parse(&payload).is_none().then_some("its payload is not a signature")
            }
            VOLUME_MAGIC => match Label::parse(&payload) {
                Some(label) => {
                    if label.number == 1 {
                        self.stream = 0;
                    }
                    None
                }
                None => Some("its payload is not the label of a volume"),
            },
            RECOVERY_MAGIC => (!was_past_signature).then_some("recovery data before the padding"),
            PADDING_MAGIC if payload.iter().all(|byte| *byte == 0) => None,
            PADDING_MAGIC => Some("padding that is not zero"),
            _ => Some("an unknown skippable frame"),
        };
        if !was_past_signature {
            let end = HeadEnd { signature: is_signature.then_some(payload) };
            self.send(FeederMessage::HeadEnd(end))?;
        }
        if let Some(problem) = problem {
            self.defer(offset, FrameError::Unsupported(problem));
        }
        Ok(())
    }

    /// Sends a frame that another core decodes, and repairs with `repair` if it is corrupt.
    pub(crate) fn data(
        &mut self,
        offset: u64,
        data: DataFrame,
        repair: Option<FrameRepair>,
    ) -> Result<(), Stop> {
        let len = data.content_size();
        if len <= SMALL {
            let content = match (data.decode(&self.buffers), repair) {
                (Err(error), Some(repair)) => repair.content(&self.buffers).ok_or(error),
                (content, _) => content,
            };
            return self.known(offset, len, content);
        }
        self.stream += len as u64;
        let (sender, content) = channel();
        let buffers = self.buffers.clone();
        rayon::spawn_fifo(move || match (data.decode(&buffers), repair) {
            // In a thread of its own: a repair takes a lock and uses all cores. A core that waits for the
            // others would start the next job, which would wait for the lock.
            (Err(error), Some(repair)) => drop(std::thread::spawn(move || {
                let _ = sender.send(repair.content(&buffers).ok_or(error)); // the receiver can be dropped
            })),
            (content, _) => drop(sender.send(content)), // the receiver can be dropped
        });
        self.send(FeederMessage::Chunk(Chunk { offset, len, content, is_last: false }))
    }

    /// Sends a frame whose content is known to be lost. Damage to a frame without content is deferred.
    pub(crate) fn hole(&mut self, offset: u64, len: usize, error: FrameError) -> Result<(), Stop> {
        if len == 0 {
            self.defer(offset, error);
            return Ok(());
        }
        self.known(offset, len, Err(error))
    }

    /// Sends a frame with `len` bytes of content that needs no decoding.
    pub(crate) fn known(
        &mut self,
        offset: u64,
        len: usize,
        content: Result<Buffer, FrameError>,
    ) -> Result<(), Stop> {
        self.stream += len as u64;
        self.send_known(offset, len, content, false)
    }

    /// Records damage that affects no content, to be reported after all content.
    pub(crate) fn defer(&mut self, offset: u64, error: FrameError) {
        self.deferred.get_or_insert((offset, error));
    }

    fn send_known(
        &mut self,
        offset: u64,
        len: usize,
        known: Result<Buffer, FrameError>,
        is_last: bool,
    ) -> Result<(), Stop> {
        let (sender, content) = channel();
        let _ = sender.send(known); // the receiver is `content`
        self.send(FeederMessage::Chunk(Chunk { offset, len, content, is_last }))
    }

    fn send(&mut self, message: FeederMessage) -> Result<(), Stop> {
        if matches!(message, FeederMessage::Chunk(_)) {
            self.unused_permits = self.unused_permits.saturating_sub(1);
        }
        self.sender.send(message).map_err(|_| Stop::ReaderDropped)
    }
}

/// A frame that can be read from another copy of its volume, or reconstructed from recovery data.
pub(crate) struct FrameRepair {
    pub(crate) volumes: Arc<VolumeSet>,
    /// False if the bundle has no recovery data. It is not searched then.
    pub(crate) has_recovery: bool,
    pub(crate) offset: u64,
    pub(crate) entry: FrameEntry,
}

/// A valid frame from another copy or from recovery data.
pub(crate) enum RepairedFrame {
    /// The content of a data frame.
    Content(Buffer),
    /// A skippable frame.
    Skippable(Frame),
}

impl FrameRepair {
    /// Returns the content of the frame. `None` if it cannot be repaired, or has none.
    fn content(&self, buffers: &Buffers) -> Option<Buffer> {
        match self.frame(buffers)? {
            RepairedFrame::Content(content) => Some(content),
            RepairedFrame::Skippable(_) => None,
        }
    }

    /// Returns the frame and decodes it. `None` if that is not possible.
    pub(crate) fn frame(&self, buffers: &Buffers) -> Option<RepairedFrame> {
        let range = self.offset..self.offset + u64::from(self.entry.compressed);
        let of_copy = self.volumes.other_copies(range.clone()).find_map(|bytes| self.parse(&bytes, buffers));
        let reconstruct = || {
            let bytes = if self.has_recovery { self.volumes.reconstruct(range) } else { None };
            self.parse(&bytes?, buffers)
        };
        let repaired = of_copy.or_else(reconstruct)?;
        self.volumes.note_repaired(self.offset);
        Some(repaired)
    }

    fn parse(&self, bytes: &[u8], buffers: &Buffers) -> Option<RepairedFrame> {
        let end = self.offset + u64::from(self.entry.compressed);
        let mut frames = FrameReader::new(bytes, self.offset, buffers);
        let frame = frames.next_frame().ok()??;
        let is_valid = frames.offset() == end && frame.content_size() == self.entry.decompressed as usize;
        match frame {
            _ if !is_valid => None,
            Frame::Data(data) => Some(RepairedFrame::Content(data.decode(buffers).ok()?)),
            skippable @ Frame::Skippable { .. } => Some(RepairedFrame::Skippable(skippable)),
        }
    }
}
