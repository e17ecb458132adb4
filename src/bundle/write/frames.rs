//! [`FrameOutput`]: the frames of a bundle on their way to its volumes.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, channel};

use crate::base::fs::FsError;
use crate::bundle::write::volume_writer::VolumeWriter;

/// A frame that stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameRecord {
    /// Where it begins, in bytes from the start of the bundle.
    pub(crate) offset: u64,
    /// How many bytes it has there.
    pub(crate) compressed: usize,
    /// How many bytes of the tar stream it holds.
    pub(crate) decompressed: usize,
}

/// The file or the volumes, with the frames that are still being compressed.
pub(crate) struct FrameOutput {
    pub(crate) tape: VolumeWriter,
    /// Where the first frame behind the head begins.
    pub(crate) begin: u64,
    pub(crate) frames: Vec<FrameRecord>,
    pub(crate) pending: VecDeque<(usize, Receiver<Vec<u8>>)>,
    /// How many bytes of the stream all frames hold.
    pub(crate) queued: u64,
    /// How many of them those hold that stand in the file.
    pub(crate) written: u64,
}

pub(crate) fn sum(frames: &[FrameRecord]) -> u64 {
    frames.iter().map(|frame| frame.decompressed as u64).sum()
}

impl FrameOutput {
    pub(crate) fn new(tape: VolumeWriter) -> Self {
        Self { tape, begin: 0, frames: Vec::new(), pending: VecDeque::new(), queued: 0, written: 0 }
    }

    /// The number of the frame that is added next.
    pub(crate) fn next_frame(&self) -> usize {
        self.frames.len() + self.pending.len()
    }

    /// Adds a frame that `make` makes on another core; the file keeps the order of the calls.
    pub(crate) fn frame_later(
        &mut self,
        decompressed: usize,
        make: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<(), FsError> {
        let (sender, receiver) = channel();
        rayon::spawn_fifo(move || {
            let _ = sender.send(make()); // nobody waits for it after an error
        });
        self.pending.push_back((decompressed, receiver));
        self.queued += decompressed as u64;
        // Enough for every core to have one at work and one waiting, and a bound for the memory.
        self.drain(rayon::current_num_threads().min(6) + 2)
    }

    /// Writes the frames that were added first, until only `left` are still to be written.
    pub(crate) fn drain(&mut self, left: usize) -> Result<(), FsError> {
        while self.pending.len() > left {
            let (decompressed, receiver) = self.pending.pop_front().expect("not empty");
            let frame = receiver.recv().expect("a frame is always made; please report");
            if self.tape.is_full_for(frame.len() as u64) {
                self.tape.next_volume(self.written)?;
            }
            self.frames.push(FrameRecord { offset: self.tape.end(), compressed: frame.len(), decompressed });
            self.tape.append(&frame)?;
            self.written += decompressed as u64;
        }
        Ok(())
    }

    /// Forgets the frame `first` and all behind it.
    pub(crate) fn truncate(&mut self, first: usize) -> Result<(), FsError> {
        self.drain(0)?;
        if first >= self.frames.len() {
            return Ok(());
        }
        self.frames.truncate(first);
        (self.queued, self.written) = (sum(&self.frames), sum(&self.frames));
        // To the end of the one before it: into which volume the next one goes is for that one to say.
        self.tape
            .truncate(self.frames.last().map_or(self.begin, |frame| frame.offset + frame.compressed as u64))
    }
}
