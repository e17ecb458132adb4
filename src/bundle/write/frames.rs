//! [`FrameOutput`]: compresses frames in parallel and writes them in order.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, channel};

use crate::base::fs::FsError;
use crate::bundle::write::volume_writer::VolumeWriter;

/// A frame in the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameRecord {
    /// Offset in the bundle.
    pub(crate) offset: u64,
    /// Length in the bundle, in bytes.
    pub(crate) compressed: usize,
    /// Length of its content in the tar stream, in bytes.
    pub(crate) decompressed: usize,
}

impl FrameRecord {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.compressed as u64
    }
}

/// The volumes of a bundle, and frames that are being compressed.
pub(crate) struct FrameOutput {
    pub(crate) volumes: VolumeWriter,
    /// Offset of the first frame after the head.
    start: u64,
    /// The frames that are written.
    frames: Vec<FrameRecord>,
    /// The frames that are not written yet, with the length of their content.
    pending: VecDeque<(usize, Receiver<Vec<u8>>)>,
    queued_bytes: u64,
    written_bytes: u64,
}

impl FrameOutput {
    /// Resumes with `frames`, which are in `volumes` already. The next frame after the head starts at
    /// `start`.
    pub(crate) fn new(volumes: VolumeWriter, start: u64, frames: Vec<FrameRecord>) -> Self {
        let written = content_len(&frames);
        Self {
            volumes,
            start,
            frames,
            pending: VecDeque::new(),
            queued_bytes: written,
            written_bytes: written,
        }
    }

    /// The frames that are written.
    pub(crate) fn frames(&self) -> &[FrameRecord] {
        &self.frames
    }

    /// Returns the number of content bytes of all frames.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// Returns the number of content bytes of the frames that are written.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Returns the number of the next frame.
    pub(crate) fn next_frame(&self) -> usize {
        self.frames.len() + self.pending.len()
    }

    /// Adds the frame that `encode` returns. `encode` runs on another thread; frames are written in call
    /// order.
    pub(crate) fn push(
        &mut self,
        decompressed: usize,
        encode: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<(), FsError> {
        let (sender, receiver) = channel();
        rayon::spawn_fifo(move || {
            let _ = sender.send(encode()); // after an error, there is no receiver
        });
        self.pending.push_back((decompressed, receiver));
        self.queued_bytes += decompressed as u64;
        // One running and some waiting frames per core, and a limit on memory.
        self.drain(rayon::current_num_threads().min(6) + 2)
    }

    /// Writes frames until at most `left` are pending.
    pub(crate) fn drain(&mut self, left: usize) -> Result<(), FsError> {
        while self.pending.len() > left {
            let (decompressed, receiver) = self.pending.pop_front().expect("not empty");
            let frame = receiver.recv().expect("an encoder always returns; please report");
            if self.volumes.is_full_for(frame.len() as u64) {
                self.volumes.next_volume(self.written_bytes)?;
            }
            self.frames.push(FrameRecord {
                offset: self.volumes.end(),
                compressed: frame.len(),
                decompressed,
            });
            self.volumes.append(&frame)?;
            self.written_bytes += decompressed as u64;
        }
        Ok(())
    }

    /// Removes frame `first` and all frames after it.
    pub(crate) fn truncate(&mut self, first: usize) -> Result<(), FsError> {
        self.drain(0)?;
        if first >= self.frames.len() {
            return Ok(());
        }
        self.frames.truncate(first);
        let written = content_len(&self.frames);
        (self.queued_bytes, self.written_bytes) = (written, written);
        // To the end of the previous frame, even if a volume starts here: the next frame can fit into that
        // volume.
        self.volumes.truncate(self.frames.last().map_or(self.start, FrameRecord::end))
    }

    /// Starts a new volume after the last frame.
    pub(crate) fn next_volume(&mut self) -> Result<(), FsError> {
        self.volumes.next_volume(self.written_bytes)
    }
}

/// Returns the number of content bytes of `frames`.
pub(crate) fn content_len(frames: &[FrameRecord]) -> u64 {
    frames.iter().map(|frame| frame.decompressed as u64).sum()
}
