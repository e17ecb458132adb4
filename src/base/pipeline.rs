//! [`Pipeline`]: hashes and writes several blobs at once while a bundle is read front to back.
//!
//! A large blob is the only one at work most of the time, so a lane has a thread that hashes and one that writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::base::buffer::Slice;
use crate::base::fs::FsError;
use crate::oci::digest::{Digest, Hasher};

/// How many slices may wait in one lane to be hashed; each holds at most a frame.
const QUEUE: usize = 3;

/// How many may wait to be written.
const WRITES: usize = 2;

/// How many blobs may have ended without anybody having taken them.
const ENDED: usize = 64;

/// Takes the bytes of one blob: a file that is written, or nothing where a bundle is only checked.
pub(crate) trait Sink: Send + 'static {
    /// Whether to write takes so long that another thread should hash meanwhile.
    const TAKES_TIME: bool = true;

    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), FsError>;
}

/// Nothing is done with the bytes but hashing them.
pub(crate) struct Discard;

impl Sink for Discard {
    const TAKES_TIME: bool = false;

    fn write(&mut self, _: &[u8]) -> Result<(), FsError> {
        Ok(())
    }
}

/// A blob whose last byte has come.
pub(crate) struct FinishedBlob<S> {
    /// The number that it was begun with.
    pub number: usize,
    /// Its sink, which has taken all bytes, unless there was an error.
    pub sink: S,
    /// Its digest and size in bytes.
    pub result: Result<(Digest, u64), FsError>,
}

/// Threads that hash and write; see the module. One blob stays in one lane.
pub(crate) struct Pipeline<S> {
    lanes: Vec<Lane<S>>,
    current: usize,
}

struct Lane<S> {
    messages: SyncSender<Message<S>>,
    /// Bytes that wait to be hashed.
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

impl<S: Sink> Pipeline<S> {
    /// Starts the threads; blobs come out of the receiver as they end, in any order.
    #[must_use]
    pub(crate) fn start() -> (Self, Receiver<FinishedBlob<S>>) {
        let (done, ended) = sync_channel(ENDED);
        let count = rayon::current_num_threads().clamp(2, 6);
        let lanes = (0..count).map(|_| Lane::start(done.clone())).collect();
        (Self { lanes, current: 0 }, ended)
    }

    /// Begins a blob.
    pub(crate) fn begin(&mut self, number: usize, sink: S) {
        let load = |lane: &Lane<S>| lane.load.load(Ordering::Relaxed);
        let least = self.lanes.iter().enumerate().min_by_key(|(_, lane)| load(lane));
        self.current = least.expect("there are lanes").0;
        self.send(Message::Begin(number, sink));
    }

    /// Hands on the next bytes of the blob.
    pub(crate) fn data(&self, slice: Slice) {
        self.lanes[self.current].load.fetch_add(slice.len() as u64, Ordering::Relaxed);
        self.send(Message::Data(slice));
    }

    /// Ends the blob.
    pub(crate) fn end(&self) {
        self.send(Message::End);
    }

    /// Drops the blob: it will not end.
    pub(crate) fn abandon(&self) {
        self.send(Message::Abandon);
    }

    /// Waits until all blobs have ended.
    pub(crate) fn finish(self) {
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
    fn start(done: SyncSender<FinishedBlob<S>>) -> Self {
        let (messages, receiver) = sync_channel(QUEUE);
        let load = Arc::new(AtomicU64::new(0));
        let waiting = load.clone();
        let thread = std::thread::spawn(move || run(&receiver, &waiting, done));
        Self { messages, load, thread }
    }
}

fn run<S: Sink>(messages: &Receiver<Message<S>>, waiting: &AtomicU64, done: SyncSender<FinishedBlob<S>>) {
    let mut writer = Writer { open: None, done };
    if !S::TAKES_TIME {
        return hash(messages, waiting, |write| writer.take(write));
    }
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(WRITES);
        scope.spawn(move || receiver.iter().for_each(|write| writer.take(write)));
        hash(messages, waiting, |write| {
            sender.send(write).expect("the writer does not end before its lane; please report");
        });
    });
}

/// Hands everything on, and hashes it: where another thread writes, both at once.
fn hash<S>(messages: &Receiver<Message<S>>, waiting: &AtomicU64, mut hand_on: impl FnMut(Write<S>)) {
    let mut hasher = Hasher::new();
    for message in messages {
        match message {
            Message::Begin(number, sink) => {
                hasher = Hasher::new();
                hand_on(Write::Begin(number, sink));
            }
            Message::Data(slice) => {
                hand_on(Write::Data(slice.clone()));
                hasher.update(&slice);
                waiting.fetch_sub(slice.len() as u64, Ordering::Relaxed);
            }
            Message::End => {
                let hasher = std::mem::take(&mut hasher);
                let len = hasher.len();
                hand_on(Write::End(hasher.finish(), len));
            }
            Message::Abandon => hand_on(Write::Abandon),
        }
    }
}

/// What becomes of a blob beside hashing it.
enum Write<S> {
    Begin(usize, S),
    Data(Slice),
    End(Digest, u64),
    Abandon,
}

struct Writer<S> {
    /// The blob that is being written, its number, and whether that has failed.
    open: Option<(usize, S, Result<(), FsError>)>,
    done: SyncSender<FinishedBlob<S>>,
}

impl<S: Sink> Writer<S> {
    fn take(&mut self, write: Write<S>) {
        match (write, &mut self.open) {
            (Write::Begin(number, sink), open) => *open = Some((number, sink, Ok(()))),
            (Write::Data(slice), Some((_, sink, result))) => {
                if result.is_ok() {
                    *result = sink.write(&slice);
                }
            }
            (Write::End(digest, len), open) => {
                let (number, sink, result) = open.take().expect("`begin` comes first; please report");
                let result = result.map(|()| (digest, len));
                let _ = self.done.send(FinishedBlob { number, sink, result }); // nobody waits after an error
            }
            (Write::Abandon, open) => *open = None,
            (Write::Data(_), None) => unreachable!("`begin` comes first; please report"),
        }
    }
}
