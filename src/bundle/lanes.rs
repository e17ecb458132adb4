//! [`Lanes`]: hashes several blobs at once while a bundle is read front to back, and hands their bytes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::bundle::reader::Slice;
use crate::digest::{Digest, Hasher};
use crate::fs::FsError;

/// How many slices may wait in one lane; each holds at most a frame.
const QUEUE: usize = 4;

/// How many blobs may have ended without anybody having taken them.
const ENDED: usize = 64;

/// Takes the bytes of one blob: a file that is written, or nothing where a bundle is only checked.
pub trait Sink: Send + 'static {
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), FsError>;
}

/// Nothing is done with the bytes but hashing them.
pub struct Nowhere;

impl Sink for Nowhere {
    fn write(&mut self, _: &[u8]) -> Result<(), FsError> {
        Ok(())
    }
}

/// A blob whose last byte has come.
pub struct Ended<S> {
    /// The number that it was begun with.
    pub number: usize,
    /// Its sink, which has taken all bytes, unless there was an error.
    pub sink: S,
    /// Its digest and size in bytes.
    pub result: Result<(Digest, u64), FsError>,
}

/// Threads that hash; see the module. One blob stays in one lane.
pub struct Lanes<S> {
    lanes: Vec<Lane<S>>,
    current: usize,
}

struct Lane<S> {
    messages: SyncSender<Message<S>>,
    /// Bytes that wait.
    load: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

enum Message<S> {
    Begin(usize, S),
    Data(Slice),
    End,
    /// The rest of the blob cannot be read.
    Abandon,
}

impl<S: Sink> Lanes<S> {
    /// Starts the threads; blobs come out of the receiver as they end, in any order.
    #[must_use]
    pub fn start() -> (Self, Receiver<Ended<S>>) {
        let (done, ended) = sync_channel(ENDED);
        let count = rayon::current_num_threads().clamp(2, 6);
        let lanes = (0..count).map(|_| Lane::start(done.clone())).collect();
        (Self { lanes, current: 0 }, ended)
    }

    /// Begins a blob.
    pub fn begin(&mut self, number: usize, sink: S) {
        let load = |lane: &Lane<S>| lane.load.load(Ordering::Relaxed);
        let least = self.lanes.iter().enumerate().min_by_key(|(_, lane)| load(lane));
        self.current = least.expect("there are lanes").0;
        self.send(Message::Begin(number, sink));
    }

    /// Hands on the next bytes of the blob.
    pub fn data(&self, slice: Slice) {
        self.lanes[self.current].load.fetch_add(slice.len() as u64, Ordering::Relaxed);
        self.send(Message::Data(slice));
    }

    /// Ends the blob.
    pub fn end(&self) {
        self.send(Message::End);
    }

    /// Drops the blob: it will not end.
    pub fn abandon(&self) {
        self.send(Message::Abandon);
    }

    /// Waits until all blobs have ended.
    pub fn finish(self) {
        for Lane { messages, thread, .. } in self.lanes {
            drop(messages);
            thread.join().expect("no lane panics; please report");
        }
    }

    fn send(&self, message: Message<S>) {
        self.lanes[self.current].messages.send(message).expect("no lane ends before the last; please report");
    }
}

impl<S: Sink> Lane<S> {
    fn start(done: SyncSender<Ended<S>>) -> Self {
        let (messages, receiver) = sync_channel(QUEUE);
        let load = Arc::new(AtomicU64::new(0));
        let waiting = load.clone();
        let thread = std::thread::spawn(move || run(&receiver, &waiting, &done));
        Self { messages, load, thread }
    }
}

fn run<S: Sink>(messages: &Receiver<Message<S>>, waiting: &AtomicU64, done: &SyncSender<Ended<S>>) {
    let mut open: Option<(usize, S, Hasher, Result<(), FsError>)> = None;
    for message in messages {
        match (message, &mut open) {
            (Message::Begin(number, sink), _) => open = Some((number, sink, Hasher::new(), Ok(()))),
            (Message::Data(slice), Some((_, sink, hasher, result))) => {
                if result.is_ok() {
                    hasher.update(&slice);
                    *result = sink.write(&slice);
                }
                waiting.fetch_sub(slice.len() as u64, Ordering::Relaxed);
            }
            (Message::End, open) => {
                let (number, sink, hasher, result) = open.take().expect("`begin` comes first; please report");
                let len = hasher.len();
                let result = result.map(|()| (hasher.finish(), len));
                let _ = done.send(Ended { number, sink, result }); // nobody waits after an error
            }
            (Message::Abandon, open) => *open = None,
            (Message::Data(_), None) => unreachable!("`begin` comes first; please report"),
        }
    }
}
