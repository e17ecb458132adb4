//! [`TarStream`]: the tar stream of a bundle, decoded from its frames.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use crate::base::buffer::{Buffer, Slice};
use crate::bundle::format::layout::{Layout, tar_header};
use crate::bundle::format::{BLOCK, FRAME_SIZE, INDEX_JSON, INDEX_LIMIT, MANIFESTS_LIMIT, padded};
use crate::bundle::read::error::{ReadError, describe_header, unexpected};
use crate::bundle::read::feeder::{Chunk, FeederMessage, HeadEnd, ReadPermit};
use crate::bundle::read::frame_error::FrameError;
use crate::bundle::read::problem::Position;
use crate::bundle::read::volume_set::VolumeSet;

/// Name of the end of the archive in errors.
pub(crate) const END: &str = "end of the archive";
/// Maximum size of the head in bytes: `index.json` and the file set.
const HEAD_LIMIT: u64 = INDEX_LIMIT + MANIFESTS_LIMIT;

/// Maximum number of frames in memory while looking for the end of the head.
const HEAD_FRAMES: u64 = HEAD_LIMIT / FRAME_SIZE as u64 + 1;

/// The next bytes of the tar stream, or a gap in it.
pub enum Piece {
    /// Bytes of an intact frame.
    Data(Slice),
    /// Bytes of a frame that cannot be read, or was skipped.
    Hole {
        /// Number of bytes.
        len: u64,
        /// Offset of the frame in the bundle, in bytes.
        offset: u64,
        /// Error of the frame.
        error: FrameError,
    },
}

/// The frames that a [`FrameFeeder`](crate::bundle::read::feeder::FrameFeeder) sends.
pub(crate) struct FrameQueue {
    messages: Receiver<FeederMessage>,
    /// Sends permits to the feeder. `None`: the feeder needs none.
    permits: Option<Sender<ReadPermit>>,
    /// The permit for the next frame.
    permit: ReadPermit,
    /// True if the feeder has a permit for a frame that it has not sent yet.
    is_permitted: bool,
    /// Frames of the head that were received while looking for the signature.
    ahead: VecDeque<Chunk>,
    /// The end of the head, if it was received.
    head_end: Option<HeadEnd>,
}

impl FrameQueue {
    pub(crate) fn new(messages: Receiver<FeederMessage>, permits: Option<Sender<ReadPermit>>) -> Self {
        Self {
            messages,
            permits,
            permit: ReadPermit::OneFrame,
            is_permitted: false,
            ahead: VecDeque::new(),
            head_end: None,
        }
    }

    /// Returns the next frame. `None` at the end of the bundle.
    fn next_chunk(&mut self) -> Option<Chunk> {
        if let Some(chunk) = self.ahead.pop_front() {
            return Some(chunk);
        }
        loop {
            match self.receive()? {
                FeederMessage::Chunk(chunk) => return Some(chunk),
                FeederMessage::HeadEnd(end) => self.head_end = Some(end),
            }
        }
    }

    /// Receives the rest of the head. Its end is unknown if it exceeds the limits of its documents.
    fn look_ahead(&mut self) -> Option<&HeadEnd> {
        let mut len = 0;
        while self.head_end.is_none() && len <= HEAD_LIMIT && self.ahead.len() as u64 <= HEAD_FRAMES {
            match self.receive()? {
                FeederMessage::HeadEnd(end) => self.head_end = Some(end),
                FeederMessage::Chunk(chunk) => {
                    len += chunk.len as u64;
                    self.ahead.push_back(chunk);
                }
            }
        }
        self.head_end.as_ref()
    }

    fn receive(&mut self) -> Option<FeederMessage> {
        if let Some(permits) = self.permits.as_ref().filter(|_| !self.is_permitted) {
            let _ = permits.send(self.permit); // fails after all frames were sent
            self.is_permitted = true;
            if matches!(self.permit, ReadPermit::AllFrames) {
                self.permits = None;
            }
        }
        let message = self.messages.recv().ok()?;
        self.is_permitted &= !matches!(message, FeederMessage::Chunk(_));
        Some(message)
    }
}

/// The tar stream of a bundle.
pub(crate) struct TarStream {
    queue: FrameQueue,
    /// The frame that is being read.
    current: Option<CurrentFrame>,
    /// Number of bytes of the tar stream that were read.
    position: u64,
    /// Offset of the last frame in the bundle, in bytes.
    frame_offset: u64,
    /// True if nothing can be read after an error.
    is_lost: bool,
    /// The volumes of the bundle. `None` for a stream.
    volumes: Option<Arc<VolumeSet>>,
}

struct CurrentFrame {
    content: Result<Arc<Buffer>, FrameError>,
    len: usize,
    used: usize,
    offset: u64,
}

impl TarStream {
    pub(crate) fn new(queue: FrameQueue, volumes: Option<Arc<VolumeSet>>) -> Self {
        Self { queue, current: None, position: 0, frame_offset: 0, is_lost: false, volumes }
    }

    pub(crate) fn volumes(&self) -> Option<&Arc<VolumeSet>> {
        self.volumes.as_ref()
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Returns the offset in the tar stream after the current frame.
    pub(crate) fn frame_end(&self) -> u64 {
        self.position + self.current.as_ref().map_or(0, |current| current.len - current.used) as u64
    }

    /// Replaces the source of all frames after the current one.
    pub(crate) fn set_queue(&mut self, queue: FrameQueue) {
        self.queue = queue;
    }

    /// Allows the feeder to read all further frames, from the next request on.
    pub(crate) fn allow_all_frames(&mut self) {
        self.queue.permit = ReadPermit::AllFrames;
    }

    /// Returns the payload of the signature frame after the head. Reads ahead to the end of the head, so that
    /// the signature is known before the documents are parsed.
    pub(crate) fn signature(&mut self) -> Option<&[u8]> {
        self.queue.look_ahead()?.signature.as_deref()
    }

    /// Returns at most `max` bytes, or the number of bytes that are lost. Fails if no further frame can be
    /// found; the error has the offset of the frame.
    pub(crate) fn piece(&mut self, max: u64) -> Result<Piece, (u64, FrameError)> {
        loop {
            if let Some(current) = self.current.as_mut().filter(|current| current.used < current.len) {
                let len = (current.len - current.used).min(usize::try_from(max).unwrap_or(usize::MAX));
                let start = current.used;
                current.used += len;
                self.position += len as u64;
                return Ok(match &current.content {
                    Ok(content) => Piece::Data(Slice { content: content.clone(), start, end: start + len }),
                    Err(error) => {
                        Piece::Hole { len: len as u64, offset: current.offset, error: error.again() }
                    }
                });
            }
            self.next_frame()?;
        }
    }

    fn next_frame(&mut self) -> Result<(), (u64, FrameError)> {
        let Some(chunk) = self.queue.next_chunk() else {
            return Err((self.frame_offset, FrameError::End));
        };
        self.frame_offset = chunk.offset;
        match chunk.content.recv().expect("every frame is decoded; please report") {
            Err(error) if chunk.is_last => Err((chunk.offset, error)),
            content => {
                let content = content.map(Arc::new);
                self.current = Some(CurrentFrame { content, len: chunk.len, used: 0, offset: chunk.offset });
                Ok(())
            }
        }
    }

    /// Reads all entries of `layout` and the end of the archive. Returns the first entry that should not be there.
    /// `None`: there is none, or something before it cannot be read.
    pub(crate) fn find_unexpected(&mut self, layout: &Layout) -> Option<ReadError> {
        for entry in layout.entries() {
            let header = self.exact(&entry.name, BLOCK as u64).ok()?;
            if header != tar_header(&entry.name, entry.size) {
                return Some(unexpected(&entry.name, describe_header(&header)));
            }
            let end = entry.offset + BLOCK as u64 + padded(entry.size);
            while self.position < end {
                let Ok(Piece::Data(_)) = self.piece(end - self.position) else { return None };
            }
        }
        for _ in 0..2 {
            let block = self.exact(END, BLOCK as u64).ok()?;
            if block.iter().any(|byte| *byte != 0) {
                return Some(unexpected(END, describe_header(&block)));
            }
        }
        self.data(END, 1).ok().map(|_| unexpected(END, "more bytes".to_owned()))
    }

    /// Passes over all bytes up to offset `end` of the tar stream, including lost ones.
    pub(crate) fn skip_to(&mut self, end: u64) {
        while self.position < end && !self.is_lost {
            self.is_lost |= self.piece(end - self.position).is_err();
        }
    }

    /// Returns at most `max` bytes of the entry `object`.
    pub(crate) fn data(&mut self, object: &str, max: u64) -> Result<Slice, ReadError> {
        let (offset, source) = match self.piece(max) {
            Ok(Piece::Data(slice)) => return Ok(slice),
            Ok(Piece::Hole { offset, error, .. }) => (offset, error),
            Err(failure) => {
                self.is_lost = true;
                failure
            }
        };
        let position = Box::new(self.position_of(offset));
        Err(ReadError::Damaged { object: object.to_owned(), position, source })
    }

    /// Returns the position at `offset` of the bundle.
    pub(crate) fn position_of(&self, offset: u64) -> Position {
        self.volumes.as_ref().map_or(Position::at(offset), |volumes| volumes.position(offset))
    }

    fn exact(&mut self, object: &str, len: u64) -> Result<Vec<u8>, ReadError> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            bytes.extend_from_slice(&self.data(object, len - bytes.len() as u64)?);
        }
        Ok(bytes)
    }

    /// Reads `len` bytes, which must be zero.
    pub(crate) fn zeros(&mut self, object: &str, len: u64) -> Result<(), ReadError> {
        if self.exact(object, len)?.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        Err(unexpected(object, "padding that is not zero".into()))
    }

    /// Reads the zeros after the content of an entry.
    pub(crate) fn padding(&mut self, object: &str, size: u64) -> Result<(), ReadError> {
        self.zeros(object, padded(size) - size)
    }

    /// Reads the header of an entry, which must have exactly this name and size.
    pub(crate) fn header(&mut self, name: &str, size: u64) -> Result<(), ReadError> {
        let header = self.exact(name, BLOCK as u64)?;
        if header == tar_header(name, size) {
            return Ok(());
        }
        // The stream does not match the documents, so no later offset is valid.
        self.is_lost = true;
        Err(unexpected(name, describe_header(&header)))
    }

    /// Reads an entry of known size.
    pub(crate) fn document(&mut self, name: &str, size: u64) -> Result<Vec<u8>, ReadError> {
        self.header(name, size)?;
        let bytes = self.exact(name, size)?;
        self.padding(name, size)?;
        Ok(bytes)
    }

    /// Reads `index.json`, the only entry whose size is taken from its header.
    pub(crate) fn index_document(&mut self) -> Result<Vec<u8>, ReadError> {
        let header = self.exact(INDEX_JSON, BLOCK as u64)?;
        let size = tar::Header::from_byte_slice(&header).entry_size().unwrap_or(u64::MAX);
        if size > INDEX_LIMIT || header != tar_header(INDEX_JSON, size) {
            return Err(unexpected(INDEX_JSON, describe_header(&header)));
        }
        let bytes = self.exact(INDEX_JSON, size)?;
        self.padding(INDEX_JSON, size)?;
        Ok(bytes)
    }
}
