//! [`Queue`]: fetches many blobs concurrently and delivers them in order.
//!
//! The bundle needs its blobs in one order, and the network delivers them in another. Between the two is a
//! window of memory over the required order: a worker gets the next *lease*, a range of the first blob that
//! is not yet assigned, if everything that was requested and not yet consumed fits into the window. So every
//! connection works near the front, and a large blob is fetched over all connections. The worker that
//! completes a piece hashes it if it is next, so that the consumer gets hashed bytes. Pieces in the window
//! are also written to the spool, from which the next run resumes.

pub(crate) mod progress;
pub(crate) mod shared;
pub(crate) mod task;
pub(crate) mod window;
pub(crate) mod worker;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex};

use crate::base::event::{Event, Report};
use crate::bundle::format::layout::Blob;
use crate::bundle::write::spool::{Spool, SpoolKey, SpooledPiece};
use crate::fetch::fallback::FallbackList;
use crate::fetch::queue::progress::Progress;
use crate::fetch::queue::shared::{LeaseEnd, Shared};
pub(crate) use crate::fetch::queue::task::{FailedTask, Next, Task};
use crate::fetch::queue::window::{Concurrency, Lease, Window};
use crate::fetch::queue::worker::Worker;
use crate::fetch::upstream::Upstream;
use crate::net::http::Http;

/// The settings of a queue.
pub(crate) struct FetchContext<'a> {
    /// Sends the requests.
    pub http: &'a Http,
    /// Receives progress and retries.
    pub report: &'a dyn Report,
    /// Maximum number of concurrent connections.
    pub jobs: usize,
    /// Maximum number of concurrent connections to one host.
    pub jobs_per_host: usize,
    /// Stores pieces that have arrived and were not consumed. `None`: they are in memory only.
    pub spool: Option<&'a Spool>,
    /// As in [`Upstream`].
    pub requires_length: bool,
}

impl<'a> FetchContext<'a> {
    /// Returns the settings of `upstream`, without a spool.
    #[must_use]
    pub(crate) fn new(http: &'a Http, upstream: &Upstream, report: &'a dyn Report) -> Self {
        let (jobs, jobs_per_host) = (upstream.jobs, upstream.jobs_per_host());
        Self { http, report, jobs, jobs_per_host, spool: None, requires_length: upstream.requires_length }
    }
}

/// The consumer's side of the queue.
pub(crate) struct Queue<'a> {
    shared: Shared<'a>,
}

/// Fetches `tasks` while `consume` reads their bytes from the queue, in order. `spooled` are pieces that an
/// earlier run fetched.
pub(crate) fn run<R>(
    context: &FetchContext<'_>,
    tasks: Vec<Task>,
    spooled: Vec<SpooledPiece>,
    consume: impl FnOnce(&Queue<'_>) -> R,
) -> R {
    let FetchContext { http, report, jobs, jobs_per_host, spool, requires_length } = *context;
    let limits = Concurrency { jobs: jobs.max(1), jobs_per_host: jobs_per_host.max(1) };
    let shared = Shared {
        http,
        report,
        fallbacks: tasks.iter().map(FallbackList::new).collect(),
        limits,
        spool,
        requires_length,
        window: Mutex::new(Window::new(tasks.iter().map(Progress::new).collect())),
        changed: Condvar::new(),
        tasks,
    };
    adopt(&shared, spooled);
    let queue = Queue { shared };
    std::thread::scope(|scope| {
        for _ in 0..limits.jobs {
            scope.spawn(|| work(&queue.shared));
        }
        // Also if `consume` panics: the scope waits for the workers.
        let _stop = Stop(&queue.shared);
        consume(&queue)
    })
}

impl Queue<'_> {
    /// Returns the number of bytes that an earlier run wrote of a task. `None`: it starts at its first byte.
    #[must_use]
    pub(crate) fn begun(&self, task: usize) -> Option<u64> {
        self.shared.tasks[task].begun.as_ref().map(|begun| begun.sha256.len())
    }

    /// True if the bytes of a task came from its first endpoint, so far.
    #[must_use]
    pub(crate) fn uses_first_endpoint(&self, task: usize) -> bool {
        self.shared.endpoint(task) == 0
    }

    /// Returns the number of bytes of all tasks that an earlier run fetched and did not write.
    #[must_use]
    pub(crate) fn adopted(&self) -> u64 {
        self.shared.lock().adopted
    }

    /// Waits for the next part of a task. Tasks have to be consumed in order, each until its end. The error
    /// may be of another task.
    pub(crate) fn next(&self, task: usize) -> Result<Next, Box<FailedTask>> {
        let shared = &self.shared;
        let mut window = shared.lock();
        if window.front != task {
            window.front = task;
            shared.changed.notify_all();
        }
        loop {
            let progress = &mut window.progress[task];
            if std::mem::take(&mut progress.restart) {
                return Ok(Next::Restart);
            }
            if progress.consumed < progress.hashed {
                let piece = progress.arrived.remove(&progress.consumed);
                let piece = piece.expect("hashed pieces are kept; please report");
                progress.consumed += piece.len() as u64;
                window.release(task, piece.len() as u64);
                shared.changed.notify_all();
                drop(window);
                return Ok(Next::Piece(Arc::unwrap_or_clone(piece)));
            }
            if let Some(digest) = progress.outcome {
                return Ok(Next::End(digest, progress.consumed));
            }
            if let Some(failure) = window.failure.take() {
                return Err(failure);
            }
            window = shared.wait(window);
        }
    }

    /// Discards the rest of a task. Returns its digest and size.
    pub(crate) fn read_to_end(&self, task: usize) -> Result<Blob, Box<FailedTask>> {
        loop {
            if let Next::End(digest, size) = self.next(task)? {
                return Ok(Blob { digest, size });
            }
        }
    }
}

/// Ends the workers when dropped.
struct Stop<'a>(&'a Shared<'a>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        if let Ok(mut window) = self.0.window.lock() {
            window.stopped = true;
        }
        self.0.changed.notify_all();
    }
}

/// Uses the pieces that an earlier run fetched, if they save requests.
fn adopt(shared: &Shared<'_>, spooled: Vec<SpooledPiece>) {
    let numbers: HashMap<SpoolKey, usize> =
        shared.tasks.iter().enumerate().filter_map(|(number, task)| Some((task.key?, number))).collect();
    let mut by_task: BTreeMap<usize, BTreeMap<u64, Arc<Vec<u8>>>> = BTreeMap::new();
    for piece in spooled {
        if let Some(task) = numbers.get(&piece.key) {
            by_task.entry(*task).or_default().insert(piece.offset, Arc::new(piece.bytes));
        }
    }
    // Also tasks without pieces: all bytes of one may have been written.
    for (task, _) in shared.tasks.iter().enumerate().filter(|(_, task)| task.begun.is_some()) {
        by_task.entry(task).or_default();
    }
    for (task, mut pieces) in by_task {
        let mut window = shared.lock();
        let progress = &mut window.progress[task];
        progress.retain_fitting(&mut pieces);
        let len = pieces.values().map(|piece| piece.len() as u64).sum::<u64>();
        // A stream is read from its beginning anyway, so that only a complete one saves a request.
        if progress.ranges || progress.size == Some(progress.hashed + len) {
            progress.arrived = pieces;
            let lease = Lease { task, generation: progress.generation, first: 0, end: Some(0), host: 0 };
            window.adopted += len;
            window.reserve(task, len);
            drop(window);
            // A mismatch restarts the blob; it is not an error of the network.
            if let Err(LeaseEnd::Failed(error)) = shared.hash_arrived(lease) {
                let _ = shared.mismatch(lease, error);
            }
        }
    }
}

/// Fetches leases until there are none.
fn work(shared: &Shared<'_>) {
    while let Some(lease) = next_lease(shared) {
        let result = Worker::new(shared, lease).run();
        shared.lock().end(&lease);
        if let Err(LeaseEnd::Failed(failure)) = result {
            let mut window = shared.lock();
            window.failure.get_or_insert(Box::new(FailedTask { task: lease.task, failure }));
            window.stopped = true;
        }
        shared.changed.notify_all();
    }
}

/// Waits for a lease. `None`: the queue ends.
fn next_lease(shared: &Shared<'_>) -> Option<Lease> {
    let host = |task: usize, endpoint: usize| {
        let server = shared.fallbacks[task].server(endpoint);
        (server.number, server.pace.limit())
    };
    let mut window = shared.lock();
    loop {
        if window.stopped {
            return None;
        }
        if let Some(lease) = window.assign(shared.limits, host) {
            let progress = &mut window.progress[lease.task];
            if !std::mem::replace(&mut progress.announced, true) {
                let object = shared.tasks[lease.task].object.clone();
                shared.report.event(&Event::Begin { id: lease.task as u64, object, bytes: progress.size });
            }
            return Some(lease);
        }
        window = shared.wait(window);
    }
}
