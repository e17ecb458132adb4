//! [`Queue`]: fetches many blobs at once and hands them out one after the other.
//!
//! The bundle wants its blobs in one order and the network gives them in another. Between the two stands a
//! window of memory over the wanted order: the workers ask for the next *lease*, a range of the first blob that
//! has one left, as long as all that has arrived and was not yet taken fits into the window. So every
//! connection works near the front, one huge blob is fetched over all of them, and nothing is put aside on the
//! disk. Whoever completes a piece hashes what can be hashed, so that the taker gets checked bytes.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use reqwest::StatusCode;
use reqwest::blocking::Response;
use reqwest::header::ETAG;
use sha2::{Digest as _, Sha512};

use crate::base::event::{Event, Report};
use crate::bundle::format::FRAME_SIZE;
use crate::bundle::write::partial::BlobPrefix;
use crate::bundle::write::spool::{Spool, SpooledPiece};
use crate::fetch::fallback::FallbackList;
use crate::fetch::source::Source;
use crate::net::error::{FetchError, FetchProblem};
use crate::net::http::{self, Http};
use crate::oci::digest::{Digest, Hasher, to_hex};

/// What is handed out at once: what a frame of the bundle holds.
const PIECE: u64 = FRAME_SIZE as u64;

/// What is asked for at once of a blob that is larger.
const LEASE: u64 = 2 * PIECE;

/// How much may have arrived, or have been asked for, and not be taken yet.
const WINDOW: u64 = 48 << 20;

/// How much more of it the blob at the front may take, so that it never waits for those behind it.
const FRONT: u64 = 16 << 20;

/// What is read from a connection at once.
const READ: usize = 256 << 10;

/// A blob to be fetched.
#[derive(Clone)]
pub(crate) struct Task {
    /// What it is, for a person: the line of the list that it is needed for.
    pub object: String,
    /// The digest that it must have.
    pub digest: Option<Digest>,
    /// The sha512 that it must have.
    pub sha512: Option<[u8; 64]>,
    /// Its size in bytes.
    pub size: Option<u64>,
    /// Where it is.
    pub source: Source,
    /// What of it is there already, from an earlier run.
    pub begun: Option<BlobPrefix>,
    /// The name of what comes of it in the spool: its digest, or, where no list pins it, one that tells it from
    /// other files and other versions of it. Nothing where that cannot be told.
    pub key: Option<Digest>,
}

impl Task {
    /// Whether there is something to check its bytes against.
    fn is_pinned(&self) -> bool {
        self.digest.is_some() || self.sha512.is_some()
    }
}

/// Why the tasks come to no end.
#[derive(Debug)]
pub(crate) struct FailedTask {
    /// The one that failed.
    pub task: usize,
    /// Why.
    pub failure: FetchError,
}

/// What comes next of a blob.
pub(crate) enum Next {
    /// Its next bytes.
    Piece(Vec<u8>),
    /// It came wrong and comes again from its beginning.
    Restart,
    /// It is complete, and has this digest and size.
    End(Digest, u64),
}

/// Fetches blobs; see the module.
pub(crate) struct Queue<'a> {
    http: &'a Http,
    report: &'a dyn Report,
    tasks: Vec<Task>,
    /// Where they are, one for each.
    routes: Vec<FallbackList>,
    jobs: usize,
    jobs_per_host: usize,
    spool: Option<&'a Spool>,
    state: Mutex<QueueState>,
    changed: Condvar,
}

struct QueueState {
    progress: Vec<Progress>,
    /// The task that is being taken.
    front: usize,
    /// Bytes that were asked for and not taken, of all tasks.
    used: u64,
    /// How many workers read a blob that cannot be had in parts.
    streams: usize,
    /// How many workers ask each host, and how many of those read such a blob.
    hosts: HashMap<usize, (usize, usize)>,
    /// Bytes that an earlier run has left.
    taken_in: u64,
    /// What failed for good.
    failure: Option<Box<FailedTask>>,
    stopped: bool,
}

/// How far a task is.
#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
struct Progress {
    size: Option<u64>,
    ranges: bool,
    /// Counts the fresh starts: what belongs to an earlier one is dropped.
    generation: u32,
    /// Up to where it was asked for.
    assigned: u64,
    streaming: bool,
    /// What has arrived and was not taken, by offset.
    arrived: BTreeMap<u64, Arc<Vec<u8>>>,
    hashed: u64,
    taken: u64,
    /// Nothing while somebody hashes.
    hashes: Option<Hashes>,
    with_sha512: bool,
    /// Whether the taker has to forget what it took.
    restart: bool,
    mismatches: u32,
    /// The place of its route where it is asked for.
    place: usize,
    /// The one where it was when it began afresh.
    began_at: usize,
    /// Why the places before did not give it.
    failures: Vec<String>,
    /// The furthest that a connection has come which reads from the beginning.
    furthest: u64,
    /// How often such a connection has broken since then.
    breaks: u32,
    outcome: Option<Digest>,
    /// Bytes of this task in [`QueueState::used`].
    used: u64,
    announced: bool,
}

#[derive(Clone, Default)]
struct Hashes {
    sha256: Hasher,
    sha512: Option<Sha512>,
}

/// What a worker has to fetch.
#[derive(Clone, Copy)]
struct Lease {
    task: usize,
    generation: u32,
    first: u64,
    /// One behind the last byte; nothing: until the body ends.
    end: Option<u64>,
    /// Who is asked, at first.
    host: usize,
}

/// Why a worker leaves its lease.
enum LeaseEnd {
    Failed(FetchError),
    /// The task has begun afresh or is complete, or nobody wants anything any more.
    Obsolete,
}

impl From<FetchError> for LeaseEnd {
    fn from(error: FetchError) -> Self {
        Self::Failed(error)
    }
}

/// How blobs are fetched.
pub(crate) struct FetchContext<'a> {
    /// Sends the requests.
    pub http: &'a Http,
    /// Is told.
    pub report: &'a dyn Report,
    /// How many connections at once.
    pub jobs: usize,
    /// How many of them to one host.
    pub jobs_per_host: usize,
    /// Keeps what has come and was not taken.
    pub spool: Option<&'a Spool>,
}

/// Fetches `tasks` while `take` takes them from the queue, in their order. Of some there are pieces that an earlier
/// run has `found`.
pub(crate) fn run<R>(
    means: &FetchContext<'_>,
    tasks: Vec<Task>,
    found: Vec<SpooledPiece>,
    take: impl FnOnce(&Queue<'_>) -> R,
) -> R {
    let progress = tasks.iter().map(Progress::new).collect();
    let state = QueueState {
        progress,
        front: 0,
        used: 0,
        streams: 0,
        hosts: HashMap::new(),
        taken_in: 0,
        failure: None,
        stopped: false,
    };
    let FetchContext { http, report, jobs, jobs_per_host, spool } = *means;
    let (jobs, state, changed) = (jobs.max(1), Mutex::new(state), Condvar::new());
    let routes = tasks.iter().map(|task| FallbackList::new(&task.source)).collect();
    let jobs_per_host = jobs_per_host.max(1);
    let queue = Queue { http, report, tasks, routes, jobs, jobs_per_host, spool, state, changed };
    queue.take_in(found);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| queue.work());
        }
        // Also when `take` panics: the scope waits for the workers.
        let _stop = Stop(&queue);
        take(&queue)
    })
}

struct Stop<'a, 'b>(&'a Queue<'b>);

impl Drop for Stop<'_, '_> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.0.state.lock() {
            state.stopped = true;
        }
        self.0.changed.notify_all();
    }
}

impl Queue<'_> {
    /// How many bytes of a task are there, if it goes on where an earlier run has left it.
    #[must_use]
    pub(crate) fn begun(&self, task: usize) -> Option<u64> {
        self.tasks[task].begun.as_ref().map(|begun| begun.sha256.len())
    }

    /// How many bytes of all tasks an earlier run had fetched and not written.
    #[must_use]
    pub(crate) fn taken_in(&self) -> u64 {
        self.lock().taken_in
    }

    /// What comes next of task `task`. Tasks are taken in their order, each until its end.
    /// An error may be of another task than this one.
    pub(crate) fn next(&self, task: usize) -> Result<Next, Box<FailedTask>> {
        let mut state = self.lock();
        if state.front != task {
            state.front = task;
            self.changed.notify_all();
        }
        loop {
            let progress = &mut state.progress[task];
            if std::mem::take(&mut progress.restart) {
                return Ok(Next::Restart);
            }
            if progress.taken < progress.hashed {
                let piece =
                    progress.arrived.remove(&progress.taken).expect("hashed pieces stay; please report");
                progress.taken += piece.len() as u64;
                state.release(task, piece.len() as u64);
                self.changed.notify_all();
                drop(state);
                return Ok(Next::Piece(Arc::unwrap_or_clone(piece)));
            }
            if let Some(digest) = progress.outcome {
                return Ok(Next::End(digest, progress.taken));
            }
            if let Some(failure) = state.failure.take() {
                return Err(failure);
            }
            state = self.changed.wait(state).expect("no worker panics; please report");
        }
    }

    /// Takes in what an earlier run has left, where it spares a request.
    fn take_in(&self, found: Vec<SpooledPiece>) {
        let numbers: HashMap<Digest, usize> =
            self.tasks.iter().enumerate().filter_map(|(number, task)| Some((task.key?, number))).collect();
        let mut pieces: BTreeMap<usize, BTreeMap<u64, Arc<Vec<u8>>>> = BTreeMap::new();
        for piece in found {
            if let Some(task) = numbers.get(&piece.key) {
                pieces.entry(*task).or_default().insert(piece.offset, Arc::new(piece.bytes));
            }
        }
        for (task, _) in self.tasks.iter().enumerate().filter(|(_, task)| task.begun.is_some()) {
            pieces.entry(task).or_default();
        }
        for (task, mut pieces) in pieces {
            let mut state = self.lock();
            let progress = &mut state.progress[task];
            // Pieces that overlap are of two runs that have cut it in other ways.
            let mut end = progress.hashed;
            pieces.retain(|offset, piece| {
                let fits = *offset >= end
                    && !piece.is_empty()
                    && progress.size.is_none_or(|size| offset + piece.len() as u64 <= size);
                end = if fits { offset + piece.len() as u64 } else { end };
                fits
            });
            let len = pieces.values().map(|piece| piece.len() as u64).sum::<u64>();
            // Who has to read it from its beginning has no use for parts.
            if progress.ranges || progress.size == Some(progress.hashed + len) {
                progress.arrived = pieces;
                let lease = Lease { task, generation: progress.generation, first: 0, end: Some(0), host: 0 };
                state.taken_in += len;
                state.reserve(task, len);
                drop(state);
                // That it is wrong is found where it ends; then it comes again.
                if let Err(LeaseEnd::Failed(error)) = self.advance(lease) {
                    let _ = self.mismatch(lease, error);
                }
            }
        }
    }

    fn work(&self) {
        while let Some(lease) = self.next_lease() {
            let result = if lease.end.is_some() { self.fetch_range(lease) } else { self.fetch_stream(lease) };
            self.lock().end(&lease);
            if let Err(LeaseEnd::Failed(failure)) = result {
                let mut state = self.lock();
                state.failure.get_or_insert(Box::new(FailedTask { task: lease.task, failure }));
                state.stopped = true;
            }
            self.changed.notify_all();
        }
    }

    /// Waits until there is something to fetch; nothing when all is done.
    fn next_lease(&self) -> Option<Lease> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            let host = |task: usize, place: usize| self.routes[task].server(place).number();
            if let Some(lease) = state.assign(self.jobs, self.jobs_per_host, host) {
                let progress = &mut state.progress[lease.task];
                if !std::mem::replace(&mut progress.announced, true) {
                    let object = self.tasks[lease.task].object.clone();
                    self.report.event(&Event::Begin { id: lease.task as u64, object, bytes: progress.size });
                }
                return Some(lease);
            }
            state = self.changed.wait(state).expect("no worker panics; please report");
        }
    }

    /// Fetches a lease of known length, over several requests if connections break.
    fn fetch_range(&self, lease: Lease) -> Result<(), LeaseEnd> {
        let end = lease.end.expect("a range has an end");
        let whole = lease.first == 0 && self.size(lease.task) == Some(end);
        let mut at = lease.first;
        let mut piece = Vec::new();
        self.retry(lease, |progressed| {
            if at == end {
                return self.complete(lease); // an empty blob
            }
            let from = at + piece.len() as u64;
            let range = if whole && from == 0 { None } else { Some((from, end - 1)) };
            let mut response = self.request(lease.task, range)?;
            if let Some((first, last)) = range {
                let size = self.size(lease.task);
                let right = response.status() == StatusCode::PARTIAL_CONTENT
                    && self.is_same_version(lease.task, &response)
                    && http::content_range(&response)
                        .is_some_and(|(f, l, s)| (f, l) == (first, last) && (s.is_none() || s == size));
                if !right {
                    return self.give_up_ranges(lease);
                }
            }
            while at < end {
                let len = PIECE.min(end - at);
                self.fill(lease, &mut response, &mut piece, len, progressed)?;
                if (piece.len() as u64) < len {
                    return Err(self.wrong_size(lease.task, at + piece.len() as u64, &response));
                }
                // Before the last piece is handed on: what is complete is not taken back.
                if whole && range.is_none() && at + len == end && !is_at_end(&mut response) {
                    return Err(self.wrong_size(lease.task, end + 1, &response));
                }
                self.deliver(lease, at, std::mem::take(&mut piece))?;
                at += len;
            }
            Ok(())
        })
    }

    /// Whether an answer comes from the version of a file that was looked at first. `If-Range` has asked for
    /// that, and not every server knows it.
    fn is_same_version(&self, task: usize, response: &Response) -> bool {
        let Some(expected) = self.routes[task].etag(self.place(task)) else { return true };
        response.headers().get(ETAG).is_none_or(|etag| etag.as_bytes() == expected.as_bytes())
    }

    /// Fetches a blob that cannot be had in parts. A broken connection means to read it all again, and to skip
    /// what is there already; without a digest that would tell, it means to begin afresh. Only what comes further
    /// than all connections before is progress.
    fn fetch_stream(&self, lease: Lease) -> Result<(), LeaseEnd> {
        let mut at = lease.first;
        let mut first_try = true;
        self.retry(lease, |progressed| {
            if !std::mem::replace(&mut first_try, false) && at > 0 && !self.tasks[lease.task].is_pinned() {
                self.start_afresh(lease);
                return Err(LeaseEnd::Obsolete);
            }
            let mut response = self.request(lease.task, None)?;
            let mut position = 0;
            loop {
                let mut piece = Vec::new();
                let skip = at.saturating_sub(position).min(PIECE);
                let len = if skip > 0 { skip } else { PIECE };
                if skip == 0 {
                    self.reserve(lease, PIECE)?;
                }
                let filled = self.fill(lease, &mut response, &mut piece, len, &mut false);
                if skip == 0 {
                    self.release(lease, PIECE - if filled.is_ok() { piece.len() as u64 } else { 0 });
                }
                position += piece.len() as u64;
                *progressed |= self.has_come(lease, position);
                filled?;
                let size = self.size(lease.task);
                let ended = (piece.len() as u64) < len || size == Some(position) && is_at_end(&mut response);
                // Before anything of it is handed on: what is complete is not taken back.
                if size.is_some_and(|size| position > size || position == size && !ended) {
                    return Err(self.wrong_size(lease.task, position + 1, &response));
                }
                // The end is also wrong if it comes before what earlier answers had.
                if ended && size.unwrap_or(at).max(at) > position {
                    return Err(self.wrong_size(lease.task, position, &response));
                }
                if skip == 0 && !piece.is_empty() {
                    self.deliver(lease, at, piece)?;
                    at = position;
                }
                if ended {
                    return self.ended(lease, position);
                }
            }
        })
    }

    /// Notes how far a connection has come that reads a blob from its beginning; says whether none before came
    /// as far.
    fn has_come(&self, lease: Lease, position: u64) -> bool {
        let mut state = self.lock();
        let progress = &mut state.progress[lease.task];
        if position <= progress.furthest {
            return false;
        }
        (progress.furthest, progress.breaks) = (position, 0);
        true
    }

    /// Repeats `attempt` while it fails in ways that may pass; the count starts again when something came.
    fn retry(
        &self,
        lease: Lease,
        mut attempt: impl FnMut(&mut bool) -> Result<(), LeaseEnd>,
    ) -> Result<(), LeaseEnd> {
        let mut tries = 1 + self.lock().progress[lease.task].breaks;
        loop {
            let mut progressed = false;
            let place = self.pass_by(lease)?;
            self.http.in_time(&self.tasks[lease.task].object)?;
            let error = match attempt(&mut progressed) {
                Err(LeaseEnd::Failed(error)) => error,
                other => return other,
            };
            // A failure of what nobody wants any more is none.
            if self.lock().obsolete(lease) {
                return Err(LeaseEnd::Obsolete);
            }
            if progressed {
                tries = 1;
            }
            if error.is_mismatch() {
                return self.mismatch(lease, error);
            }
            if !error.may_pass() || tries >= self.http.tries() {
                self.leave_place(lease, place, error.tried(tries))?;
                tries = 1;
                continue;
            }
            let wait = Http::delay(self.report, &error, tries);
            self.http.in_time_after(&error.object, wait)?;
            let wait = self.changed.wait_timeout_while(self.lock(), wait, |state| !state.stopped);
            if wait.expect("no worker panics; please report").0.stopped {
                return Err(LeaseEnd::Obsolete);
            }
            tries += 1;
        }
    }

    /// Where a blob is asked for; leaves places behind that are known to be down.
    fn pass_by(&self, lease: Lease) -> Result<usize, LeaseEnd> {
        loop {
            let place = self.place(lease.task);
            let route = &self.routes[lease.task];
            let Some(reason) = route.server(place).why_down().filter(|_| !route.is_last(place)) else {
                return Ok(place);
            };
            self.next_place(lease, place, reason)?;
        }
    }

    /// A place has failed for good: goes on at the next one, if there is one.
    fn leave_place(&self, lease: Lease, place: usize, error: FetchError) -> Result<(), LeaseEnd> {
        let route = &self.routes[lease.task];
        if route.is_last(place) || !error.is_of_place() {
            let failures = std::mem::take(&mut self.lock().progress[lease.task].failures);
            return Err(error.after(failures).into());
        }
        route.server(place).failed(self.report, &error);
        self.next_place(lease, place, error.reason())
    }

    /// What has come stays, if there is a digest that tells whether it goes together with what comes.
    fn next_place(&self, lease: Lease, from: usize, reason: String) -> Result<(), LeaseEnd> {
        let mut state = self.lock();
        if state.obsolete(lease) {
            return Err(LeaseEnd::Obsolete);
        }
        if !state.leave(lease.task, from, reason) || self.tasks[lease.task].is_pinned() {
            return Ok(());
        }
        state.forget_size(lease.task);
        state.start_afresh(lease.task);
        drop(state);
        self.forget(lease.task);
        self.changed.notify_all();
        Err(LeaseEnd::Obsolete)
    }

    fn place(&self, task: usize) -> usize {
        self.lock().progress[task].place
    }

    fn request(&self, task: usize, range: Option<(u64, u64)>) -> Result<Response, FetchError> {
        let (object, place, size) = (&self.tasks[task].object, self.place(task), self.size(task));
        self.routes[task].get(self.http, self.report, object, place, range, size)
    }

    /// Reads until `piece` has `len` bytes or the body ends.
    fn fill(
        &self,
        lease: Lease,
        response: &mut Response,
        piece: &mut Vec<u8>,
        len: u64,
        progressed: &mut bool,
    ) -> Result<(), LeaseEnd> {
        let len = usize::try_from(len).expect("at most a piece");
        let object = &self.tasks[lease.task].object;
        let (mut pace, had_progressed) = (self.http.pace(), *progressed);
        piece.reserve_exact(len - piece.len());
        while piece.len() < len {
            let start = piece.len();
            piece.resize(len.min(start + READ), 0);
            let read = response.read(&mut piece[start..]);
            piece.truncate(start + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    *progressed = true;
                    self.report.event(&Event::Progress { id: lease.task as u64, bytes: read as u64 });
                    if piece.len() < len {
                        pace.came(object, response.url(), read)
                            .inspect_err(|_| *progressed = had_progressed)?;
                    }
                }
                Err(error) => {
                    let url = http::plain(response.url());
                    return Err(http::broken(object, &url, error).into());
                }
            }
        }
        Ok(())
    }

    /// Puts a piece into the window and the spool, and hashes what can be hashed.
    fn deliver(&self, lease: Lease, offset: u64, piece: Vec<u8>) -> Result<(), LeaseEnd> {
        let spool = self.spool.zip(self.tasks[lease.task].key);
        // Before anybody can take it: who has taken it gives its room there free.
        if let Some((spool, key)) = spool {
            spool.put(key, offset, &piece);
        }
        let mut state = self.lock();
        if state.obsolete(lease) {
            drop(state);
            if let Some((spool, key)) = spool {
                spool.release(key, offset);
            }
            return Err(LeaseEnd::Obsolete);
        }
        state.progress[lease.task].arrived.insert(offset, Arc::new(piece));
        drop(state);
        self.advance(lease)
    }

    /// Hashes what can be hashed.
    fn advance(&self, lease: Lease) -> Result<(), LeaseEnd> {
        let mut state = self.lock();
        loop {
            if state.obsolete(lease) {
                return Err(LeaseEnd::Obsolete);
            }
            let progress = &mut state.progress[lease.task];
            let Some(piece) = progress.arrived.get(&progress.hashed).cloned() else { break };
            // Somebody else is at it, and will find the piece.
            let Some(mut hashes) = progress.hashes.take() else { return Ok(()) };
            drop(state);
            hashes.sha256.update(&piece);
            if let Some(sha512) = &mut hashes.sha512 {
                sha512.update(&*piece);
            }
            let len = piece.len() as u64;
            drop(piece);
            state = self.lock();
            if state.obsolete(lease) {
                return Err(LeaseEnd::Obsolete);
            }
            let progress = &mut state.progress[lease.task];
            progress.hashes = Some(hashes);
            progress.hashed += len;
            self.changed.notify_all();
        }
        drop(state);
        self.complete(lease)
    }

    /// The body of a stream has ended.
    fn ended(&self, lease: Lease, size: u64) -> Result<(), LeaseEnd> {
        let mut state = self.lock();
        if state.obsolete(lease) {
            return Err(LeaseEnd::Obsolete);
        }
        state.progress[lease.task].size = Some(size);
        drop(state);
        self.complete(lease)
    }

    /// Compares the digest if all has been hashed.
    fn complete(&self, lease: Lease) -> Result<(), LeaseEnd> {
        let mut state = self.lock();
        let progress = &mut state.progress[lease.task];
        if progress.generation != lease.generation
            || progress.outcome.is_some()
            || progress.size != Some(progress.hashed)
        {
            return Ok(());
        }
        let Some(hashes) = progress.hashes.clone() else { return Ok(()) };
        let task = &self.tasks[lease.task];
        let digest = hashes.sha256.finish();
        let url = || self.routes[lease.task].name(progress.place);
        let mismatch = |what, found: String, expected: String| {
            let problem = FetchProblem::Mismatch { what, found, expected, url: url() };
            LeaseEnd::Failed(FetchError::new(task.object.clone(), problem))
        };
        if let Some(expected) = task.digest.filter(|expected| *expected != digest) {
            return Err(mismatch("sha256", digest.hex(), expected.hex()));
        }
        if let Some((expected, found)) = task.sha512.zip(hashes.sha512.map(Sha512::finalize))
            && expected[..] != found[..]
        {
            return Err(mismatch("sha512", to_hex(&found), to_hex(&expected)));
        }
        progress.outcome = Some(digest);
        self.report.event(&Event::Done { id: lease.task as u64 });
        self.changed.notify_all();
        Ok(())
    }

    /// Wrong bytes: once is an accident on the way, or another version by now; twice is what the server has.
    fn mismatch(&self, lease: Lease, mut error: FetchError) -> Result<(), LeaseEnd> {
        let mut state = self.lock();
        if state.obsolete(lease) {
            return Err(LeaseEnd::Obsolete);
        }
        let progress = &mut state.progress[lease.task];
        let place = progress.place;
        let route = &self.routes[lease.task];
        // What came from several places is the fault of none before it has come from one.
        if progress.began_at == place && route.is_last(place) {
            progress.mismatches += 1;
            if progress.mismatches > 1 {
                if let FetchProblem::Mismatch { url, .. } = &mut error.problem {
                    url.push_str(", twice");
                }
                return Err(error.after(std::mem::take(&mut progress.failures)).into());
            }
        } else if progress.began_at == place {
            route.server(place).failed(self.report, &error);
            state.leave(lease.task, place, error.reason());
        }
        let of_size = matches!(error.problem, FetchProblem::Mismatch { what: "size", .. });
        if of_size && self.tasks[lease.task].digest.is_none() {
            // What the server said before is out of date, and nobody else knows a size.
            state.forget_size(lease.task);
        }
        state.start_afresh(lease.task);
        drop(state);
        self.forget(lease.task);
        self.changed.notify_all();
        Ok(())
    }

    /// What the spool has of a task is of no use any more.
    fn forget(&self, task: usize) {
        if let Some((spool, key)) = self.spool.zip(self.tasks[task].key) {
            spool.forget(key);
        }
    }

    /// A connection has broken, and what has come so far proves nothing about what comes next.
    fn start_afresh(&self, lease: Lease) {
        let mut state = self.lock();
        if !state.obsolete(lease) {
            state.progress[lease.task].breaks += 1;
            state.start_afresh(lease.task);
            drop(state);
            self.forget(lease.task);
        }
        self.changed.notify_all();
    }

    /// The server does not do what it was asked for: read the blob from its beginning instead.
    fn give_up_ranges(&self, lease: Lease) -> Result<(), LeaseEnd> {
        let mut state = self.lock();
        if !state.obsolete(lease) {
            let keep = self.tasks[lease.task].is_pinned();
            let hashing = state.progress[lease.task].hashes.is_none();
            state.progress[lease.task].ranges = false;
            if keep && !hashing {
                state.drop_unhashed(lease.task);
            } else {
                state.start_afresh(lease.task);
            }
        }
        self.changed.notify_all();
        Err(LeaseEnd::Obsolete)
    }

    fn wrong_size(&self, task: usize, found: u64, response: &Response) -> LeaseEnd {
        let (found, expected) = match self.size(task) {
            Some(size) if found > size => (format!("more than {size}"), size.to_string()),
            Some(size) => (found.to_string(), size.to_string()),
            None => (found.to_string(), "what an earlier answer had".to_owned()),
        };
        let problem =
            FetchProblem::Mismatch { what: "size", found, expected, url: http::plain(response.url()) };
        FetchError::new(self.tasks[task].object.clone(), problem).into()
    }

    /// Waits for room in the window.
    fn reserve(&self, lease: Lease, bytes: u64) -> Result<(), LeaseEnd> {
        let mut state = self.lock();
        loop {
            if state.obsolete(lease) {
                return Err(LeaseEnd::Obsolete);
            }
            if state.fits(lease.task, bytes) {
                state.reserve(lease.task, bytes);
                return Ok(());
            }
            state = self.changed.wait(state).expect("no worker panics; please report");
        }
    }

    fn release(&self, lease: Lease, bytes: u64) {
        let mut state = self.lock();
        if !state.obsolete(lease) {
            state.release(lease.task, bytes);
        }
        self.changed.notify_all();
    }

    fn size(&self, task: usize) -> Option<u64> {
        self.lock().progress[task].size
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().expect("no worker panics; please report")
    }
}

/// Whether a body has nothing more. One that breaks here would have had.
fn is_at_end(response: &mut Response) -> bool {
    matches!(response.read(&mut [0]), Ok(0))
}

impl QueueState {
    /// The next lease, if there is something to fetch and room for it. `host` is the one of a place of a task.
    fn assign(
        &mut self,
        jobs: usize,
        jobs_per_host: usize,
        host: impl Fn(usize, usize) -> usize,
    ) -> Option<Lease> {
        for task in self.front..self.progress.len() {
            let progress = &self.progress[task];
            if progress.outcome.is_some() || progress.streaming {
                continue;
            }
            let (generation, host) = (progress.generation, host(task, progress.place));
            let (busy, streams) = self.hosts.get(&host).copied().unwrap_or_default();
            if let Some(size) = progress.size.filter(|_| progress.ranges) {
                let first = progress.next_gap();
                let next = progress.arrived.range(first..).next().map_or(size, |(offset, _)| *offset);
                let end = next.min(first + LEASE);
                let is_new_and_empty = size == 0 && !progress.announced;
                if first == end && !is_new_and_empty || busy >= jobs_per_host {
                    continue;
                }
                // What is there from an earlier run behind a gap may fill the window: the gap is filled all the same.
                let is_awaited =
                    task == self.front && first == progress.hashed && progress.taken == progress.hashed;
                if !self.fits(task, end - first) && !is_awaited {
                    return None;
                }
                self.reserve(task, end - first);
                self.progress[task].assigned = end;
                self.hosts.insert(host, (busy + 1, streams));
                return Some(Lease { task, generation, first, end: Some(end), host });
            }
            // Streams behind the front, which may have to wait for room, must leave a worker to those before them, and
            // one that may ask their host.
            let is_front = task == self.front;
            if busy >= jobs_per_host || !is_front && streams + 1 >= jobs_per_host {
                continue;
            }
            if !is_front && self.streams + 1 >= jobs || !self.fits(task, PIECE) {
                return None;
            }
            self.streams += 1;
            let first = progress.hashed;
            self.progress[task].streaming = true;
            self.hosts.insert(host, (busy + 1, streams + 1));
            return Some(Lease { task, generation, first, end: None, host });
        }
        None
    }

    /// A worker has left its lease.
    fn end(&mut self, lease: &Lease) {
        let (busy, streams) = self.hosts.entry(lease.host).or_default();
        *busy = busy.saturating_sub(1);
        if lease.end.is_none() {
            *streams = streams.saturating_sub(1);
            self.streams -= 1;
        }
    }

    fn fits(&self, task: usize, bytes: u64) -> bool {
        self.used + bytes <= WINDOW || task == self.front && self.progress[task].used + bytes <= FRONT
    }

    fn reserve(&mut self, task: usize, bytes: u64) {
        self.used += bytes;
        self.progress[task].used += bytes;
    }

    fn release(&mut self, task: usize, bytes: u64) {
        self.used -= bytes;
        self.progress[task].used -= bytes;
    }

    fn obsolete(&self, lease: Lease) -> bool {
        let progress = &self.progress[lease.task];
        self.stopped || progress.generation != lease.generation || progress.outcome.is_some()
    }

    /// Goes on to the next place of a task, if nobody else has done that; says whether it did.
    fn leave(&mut self, task: usize, from: usize, reason: String) -> bool {
        let progress = &mut self.progress[task];
        if progress.place != from {
            return false;
        }
        progress.place += 1;
        progress.failures.push(reason);
        (progress.furthest, progress.breaks) = (0, 0);
        true
    }

    /// Forgets what was said of a task before it was fetched.
    fn forget_size(&mut self, task: usize) {
        (self.progress[task].size, self.progress[task].ranges) = (None, false);
    }

    /// Forgets everything that has come of a task.
    fn start_afresh(&mut self, task: usize) {
        self.release(task, self.progress[task].used);
        let progress = &mut self.progress[task];
        progress.generation += 1;
        progress.began_at = progress.place;
        progress.restart |= progress.taken > 0;
        progress.arrived.clear();
        (progress.assigned, progress.hashed, progress.taken) = (0, 0, 0);
        progress.streaming = false;
        progress.announced = false;
        let sha512 = progress.with_sha512.then(Sha512::new);
        progress.hashes = Some(Hashes { sha256: Hasher::new(), sha512 });
    }

    /// Forgets what has come of a task behind the part that is hashed.
    fn drop_unhashed(&mut self, task: usize) {
        let progress = &mut self.progress[task];
        progress.generation += 1;
        progress.streaming = false;
        let hashed = progress.hashed;
        progress.arrived.retain(|offset, _| *offset < hashed);
        let kept = progress.arrived.values().map(|piece| piece.len() as u64).sum::<u64>();
        let surplus = progress.used - kept;
        self.release(task, surplus);
    }
}

impl Progress {
    /// Up to where it was asked for, or is there from an earlier run; of that, some may have been taken by now.
    fn next_gap(&self) -> u64 {
        let mut end = self.assigned.max(self.hashed);
        while let Some(piece) = self.arrived.get(&end) {
            end += piece.len() as u64;
        }
        end
    }

    fn new(task: &Task) -> Self {
        let (size, ranges) = match &task.source {
            Source::Registry { .. } => (task.size, true),
            // Parts of something that has neither a digest nor a tag could be parts of two versions.
            Source::Web(file) => {
                let told_apart = file.etag.is_some() || task.is_pinned();
                (task.size, file.ranges && told_apart)
            }
        };
        let with_sha512 = task.sha512.is_some();
        // What cannot go on begins afresh: without parts and without a digest, or with another size by now.
        let goes_on = |begun: &&BlobPrefix| {
            (ranges || task.is_pinned()) && size.is_none_or(|size| begun.sha256.len() <= size)
        };
        let begun = task.begun.as_ref().filter(goes_on);
        let hashes = match begun {
            Some(BlobPrefix { sha256, sha512 }) => Hashes { sha256: sha256.clone(), sha512: sha512.clone() },
            None => Hashes { sha256: Hasher::new(), sha512: with_sha512.then(Sha512::new) },
        };
        let there = hashes.sha256.len();
        Self {
            size,
            ranges,
            generation: 0,
            assigned: there,
            streaming: false,
            arrived: BTreeMap::new(),
            hashed: there,
            taken: there,
            hashes: Some(hashes),
            with_sha512,
            restart: begun.is_none() && task.begun.is_some(),
            mismatches: 0,
            place: 0,
            began_at: 0,
            failures: Vec::new(),
            furthest: 0,
            breaks: 0,
            outcome: None,
            used: 0,
            announced: false,
        }
    }
}
