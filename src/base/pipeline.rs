//! [`Pipeline`]: hashes and writes several blobs in parallel while a bundle is read front to back.
//!
//! Each worker hashes and writes in separate threads, because during a large blob only one worker is busy. Small blobs are
//! passed on many at a time: waking a thread takes longer than hashing one of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::base::buffer::Slice;
use crate::base::fs::FsError;
use crate::oci::digest::{Digest, Hasher};

/// Maximum number of slices that wait for a worker; each refers to at most one frame.
const HASH_QUEUE: usize = 3;

/// Maximum number of slices that wait to be written by a worker.
const WRITE_QUEUE: usize = 2;

/// Maximum number of batches of finished blobs that wait to be received, e.g. during a sync.
const FINISHED_QUEUE: usize = 1024;

/// Maximum size of a small blob in bytes.
const SMALL: u64 = 64 << 10;

/// Bytes in a batch of small blobs from which it is passed on.
const BATCH_BYTES: u64 = 256 << 10;

/// Number of small blobs in a batch from which it is passed on.
const BATCH_BLOBS: usize = 16;

/// Number of frames from which a batch is passed on: it holds the memory of all frames that its blobs are in.
const BATCH_FRAMES: usize = 4;

/// A destination for the bytes of a blob, such as a file.
pub(crate) trait Sink: Send + 'static {
    /// True if writing is slow enough to need a thread of its own.
    const IS_SLOW: bool = true;

    /// Prepares writing, such as opening files, before the first byte.
    fn begin(&mut self) -> Result<(), FsError> {
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), FsError>;

    /// Frees what only writing needs, such as open files, after the last byte.
    fn end(&mut self) -> Result<(), FsError> {
        Ok(())
    }
}

/// A sink for blobs that are only hashed.
pub(crate) struct Discard;

impl Sink for Discard {
    const IS_SLOW: bool = false;

    fn write(&mut self, _: &[u8]) -> Result<(), FsError> {
        Ok(())
    }
}

/// A blob that was hashed and written completely, or whose writing failed.
pub(crate) struct FinishedBlob<S> {
    /// The number passed to [`Pipeline::begin`].
    pub number: usize,
    pub sink: S,
    /// The digest and size in bytes. The digest is not compared with an expected one.
    pub result: Result<(Digest, u64), FsError>,
}

/// A pool of workers; each blob is processed by one of them.
pub(crate) struct Pipeline<S> {
    workers: Vec<Worker<S>>,
    /// Index of the worker of the current blob.
    current: usize,
    /// The current blob, if it is small so far.
    open: Option<SmallBlob<S>>,
    /// Complete small blobs that were not passed on yet.
    batch: Vec<SmallBlob<S>>,
    batch_bytes: u64,
    /// Number of frames that the current blob and the batch are in.
    frames: usize,
    /// The address of the last one.
    last_frame: usize,
}

struct SmallBlob<S> {
    number: usize,
    sink: S,
    slices: Vec<Slice>,
    len: u64,
}

struct Worker<S> {
    messages: SyncSender<Message<S>>,
    /// Number of bytes that wait to be hashed.
    load: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

enum Message<S> {
    Small(Vec<SmallBlob<S>>),
    Begin(usize, S),
    Data(Slice),
    End,
    Abandon,
}

impl<S: Sink> Pipeline<S> {
    /// Starts the workers. The receiver returns batches of finished blobs in any order.
    #[must_use]
    pub(crate) fn start() -> (Self, Receiver<Vec<FinishedBlob<S>>>) {
        let (done, finished) = sync_channel(FINISHED_QUEUE);
        let count = rayon::current_num_threads().clamp(2, 6);
        let workers = (0..count).map(|_| Worker::start(done.clone())).collect();
        let (batch, batch_bytes, frames, last_frame) = (Vec::new(), 0, 0, 0);
        (Self { workers, current: 0, open: None, batch, batch_bytes, frames, last_frame }, finished)
    }

    /// Begins a blob.
    pub(crate) fn begin(&mut self, number: usize, sink: S) {
        self.open = Some(SmallBlob { number, sink, slices: Vec::new(), len: 0 });
    }

    /// Adds bytes to the current blob.
    pub(crate) fn data(&mut self, slice: Slice) {
        if let Some(open) = &mut self.open {
            let frame = Arc::as_ptr(&slice.content).addr();
            self.frames += usize::from(frame != self.last_frame);
            self.last_frame = frame;
            open.len += slice.len() as u64;
            open.slices.push(slice);
            if open.len > SMALL || open.slices.len() > BATCH_FRAMES {
                self.begin_large();
            }
        } else {
            self.send_data(slice);
        }
    }

    /// Ends the current blob.
    pub(crate) fn end(&mut self) {
        let Some(blob) = self.open.take() else { return self.send(Message::End) };
        self.batch_bytes += blob.len;
        self.batch.push(blob);
        let is_full = self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_BLOBS;
        if is_full || self.frames >= BATCH_FRAMES {
            self.pass_on_batch();
        }
    }

    /// Drops the current blob, because the rest of it cannot be read. The receiver does not return it.
    pub(crate) fn abandon(&mut self) {
        if self.open.take().is_none() {
            self.send(Message::Abandon);
        }
    }

    /// Waits until all blobs are finished.
    pub(crate) fn finish(mut self) {
        self.pass_on_batch();
        for Worker { messages, thread, .. } in self.workers {
            drop(messages);
            thread.join().expect("workers do not panic; please report");
        }
    }

    /// Passes on the current blob, which is not small, and the small ones before it: the memory of their frames is
    /// not to be held while a large blob is read.
    fn begin_large(&mut self) {
        self.pass_on_batch();
        let Some(SmallBlob { number, sink, slices, .. }) = self.open.take() else { return };
        self.choose_worker();
        self.send(Message::Begin(number, sink));
        for slice in slices {
            self.send_data(slice);
        }
    }

    fn pass_on_batch(&mut self) {
        (self.frames, self.last_frame) = (0, 0);
        if !self.batch.is_empty() {
            self.choose_worker();
            self.workers[self.current].load.fetch_add(self.batch_bytes, Ordering::Relaxed);
            self.batch_bytes = 0;
            let batch = std::mem::take(&mut self.batch);
            self.send(Message::Small(batch));
        }
    }

    /// Chooses the worker with the least load.
    fn choose_worker(&mut self) {
        let load = |worker: &Worker<S>| worker.load.load(Ordering::Relaxed);
        let least = self.workers.iter().enumerate().min_by_key(|(_, worker)| load(worker));
        self.current = least.expect("there are workers").0;
    }

    fn send_data(&self, slice: Slice) {
        self.workers[self.current].load.fetch_add(slice.len() as u64, Ordering::Relaxed);
        self.send(Message::Data(slice));
    }

    fn send(&self, message: Message<S>) {
        let messages = &self.workers[self.current].messages;
        messages.send(message).expect("workers run until their channel is closed; please report");
    }
}

impl<S: Sink> Worker<S> {
    fn start(done: SyncSender<Vec<FinishedBlob<S>>>) -> Self {
        let (messages, receiver) = sync_channel(HASH_QUEUE);
        let load = Arc::new(AtomicU64::new(0));
        let worker_load = load.clone();
        let thread = std::thread::spawn(move || run(&receiver, &worker_load, done));
        Self { messages, load, thread }
    }
}

fn run<S: Sink>(messages: &Receiver<Message<S>>, load: &AtomicU64, done: SyncSender<Vec<FinishedBlob<S>>>) {
    let mut writer = Writer { open: None, done };
    if !S::IS_SLOW {
        return hash(messages, load, |write| writer.handle(write));
    }
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(WRITE_QUEUE);
        scope.spawn(move || receiver.iter().for_each(|write| writer.handle(write)));
        hash(messages, load, |write| {
            sender.send(write).expect("the writer ends after the hasher; please report");
        });
    });
}

/// Hashes blobs, and passes their bytes and digests to `pass_on`.
fn hash<S>(messages: &Receiver<Message<S>>, load: &AtomicU64, mut pass_on: impl FnMut(Write<S>)) {
    let mut hasher = Hasher::new();
    for message in messages {
        match message {
            Message::Small(blobs) => {
                let hash = |blob: SmallBlob<S>| {
                    let mut hasher = Hasher::new();
                    blob.slices.iter().for_each(|slice| hasher.update(slice));
                    load.fetch_sub(blob.len, Ordering::Relaxed);
                    (blob, hasher.finish())
                };
                pass_on(Write::Small(blobs.into_iter().map(hash).collect()));
            }
            Message::Begin(number, sink) => {
                hasher = Hasher::new();
                pass_on(Write::Begin(number, sink));
            }
            Message::Data(slice) => {
                // Before hashing, so that a writer thread works at the same time.
                pass_on(Write::Data(slice.clone()));
                hasher.update(&slice);
                load.fetch_sub(slice.len() as u64, Ordering::Relaxed);
            }
            Message::End => {
                let hasher = std::mem::take(&mut hasher);
                let len = hasher.len();
                pass_on(Write::End(hasher.finish(), len));
            }
            Message::Abandon => pass_on(Write::Abandon),
        }
    }
}

/// A step of writing a blob.
enum Write<S> {
    Small(Vec<(SmallBlob<S>, Digest)>),
    Begin(usize, S),
    Data(Slice),
    End(Digest, u64),
    Abandon,
}

struct Writer<S> {
    /// The number and the sink of the current blob, and the first error of writing it.
    open: Option<(usize, S, Result<(), FsError>)>,
    done: SyncSender<Vec<FinishedBlob<S>>>,
}

impl<S: Sink> Writer<S> {
    fn handle(&mut self, write: Write<S>) {
        match (write, &mut self.open) {
            (Write::Small(blobs), _) => {
                let finished = blobs.into_iter().map(|(blob, digest)| {
                    let SmallBlob { number, mut sink, slices, len } = blob;
                    let result = sink
                        .begin()
                        .and_then(|()| slices.iter().try_for_each(|slice| sink.write(slice)))
                        .and_then(|()| sink.end());
                    FinishedBlob { number, sink, result: result.map(|()| (digest, len)) }
                });
                let _ = self.done.send(finished.collect()); // closed after an error
            }
            (Write::Begin(number, mut sink), open) => {
                let result = sink.begin();
                *open = Some((number, sink, result));
            }
            (Write::Data(slice), Some((_, sink, result))) => {
                if result.is_ok() {
                    *result = sink.write(&slice);
                }
            }
            (Write::End(digest, len), open) => {
                let (number, mut sink, result) = open.take().expect("`begin` comes first; please report");
                let result = result.and_then(|()| sink.end()).map(|()| (digest, len));
                let _ = self.done.send(vec![FinishedBlob { number, sink, result }]); // closed after an error
            }
            (Write::Abandon, open) => *open = None,
            (Write::Data(_), None) => unreachable!("`begin` comes first; please report"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Collects the bytes of a blob.
    #[derive(Default)]
    struct Collected(Vec<u8>);

    impl Sink for Collected {
        fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }

    #[test]
    fn blobs_of_all_sizes_and_numbers_of_frames_arrive_once() {
        let (mut pipeline, finished) = Pipeline::start();
        let sizes = [0, 1, 7, 64 << 10, (64 << 10) + 1, 3 << 20];
        let mut expected = Vec::new();
        let receiver = std::thread::spawn(move || finished.iter().flatten().collect::<Vec<_>>());
        for number in 0..300 {
            let last = u8::try_from(number % 200).unwrap();
            let bytes: Vec<u8> = (0..=last).cycle().take(sizes[number % sizes.len()]).collect();
            // Frames that the blob has for itself, from one to many.
            let piece = bytes.len().div_ceil(1 + number % 9).max(1);
            pipeline.begin(number, Collected::default());
            bytes.chunks(piece).for_each(|chunk| pipeline.data(chunk.to_vec().into()));
            if number % 11 == 10 {
                pipeline.abandon();
            } else {
                pipeline.end();
                expected.push((number, bytes));
            }
        }
        pipeline.finish();
        let mut blobs: Vec<_> = receiver
            .join()
            .unwrap()
            .into_iter()
            .map(|blob| (blob.number, blob.sink.0, blob.result))
            .collect();
        blobs.sort_by_key(|(number, ..)| *number);
        assert_eq!(blobs.len(), expected.len());
        for ((number, bytes), (found, content, result)) in expected.iter().zip(&blobs) {
            assert_eq!((number, bytes), (found, content));
            assert_eq!(*result.as_ref().unwrap(), (Digest::of(bytes), bytes.len() as u64));
        }
    }
}
