//! [`Window`]: the memory that all tasks may use, and the assignment of leases to workers.

use std::collections::HashMap;
use std::ops::ControlFlow;

use crate::base::memory;
use crate::bundle::format::FRAME_SIZE;
use crate::fetch::queue::progress::Progress;
use crate::fetch::queue::task::FailedTask;

/// Size in bytes of a piece: the content of a frame of the bundle.
pub(crate) const PIECE: u64 = FRAME_SIZE as u64;

/// Maximum size in bytes of a range request.
const LEASE: u64 = 2 * PIECE;

/// Maximum number of bytes that were requested or have arrived, and were not consumed; see [`capacity`].
const WINDOW: u64 = 48 << 20;

/// Maximum number of bytes that the task at the front may use if the window is full, so that it never waits
/// for the tasks behind it.
const FRONT: u64 = 16 << 20;

/// Returns the size of the window in bytes: an eighth of a memory limit of the process. The rest is for compression,
/// connections and the pages of files.
fn capacity() -> u64 {
    memory::limit().map_or(WINDOW, |limit| (limit / 8).clamp(LEASE, WINDOW))
}

/// The part of a blob that a worker fetches.
#[derive(Clone, Copy)]
pub(crate) struct Lease {
    pub task: usize,
    /// [`Progress::generation`] when the lease was assigned.
    pub generation: u32,
    /// Offset of the first byte.
    pub first: u64,
    /// Offset after the last byte. `None`: a stream, until the body ends.
    pub end: Option<u64>,
    /// Number of the server that gets the first request.
    pub host: usize,
}

/// Maximum numbers of concurrent leases.
#[derive(Clone, Copy)]
pub(crate) struct Concurrency {
    pub jobs: usize,
    pub jobs_per_host: usize,
}

/// The leases of one host.
#[derive(Clone, Copy, Default)]
struct HostLoad {
    leases: usize,
    /// The leases that are streams.
    streams: usize,
}

/// The state that consumer and workers share.
pub(crate) struct Window {
    pub progress: Vec<Progress>,
    /// The task that is being consumed.
    pub front: usize,
    /// Bytes from an earlier run.
    pub adopted: u64,
    /// The first failure.
    pub failure: Option<Box<FailedTask>>,
    /// True if all workers have to end.
    pub stopped: bool,
    /// Bytes that were requested or have arrived, and were not consumed, of all tasks.
    used: u64,
    /// Maximum of `used`, except for the task at the front.
    capacity: u64,
    /// Number of workers that read streams.
    streams: usize,
    /// By number of the server.
    hosts: HashMap<usize, HostLoad>,
}

impl Window {
    pub(crate) fn new(progress: Vec<Progress>) -> Self {
        Self {
            progress,
            front: 0,
            adopted: 0,
            failure: None,
            stopped: false,
            used: 0,
            capacity: capacity(),
            streams: 0,
            hosts: HashMap::new(),
        }
    }

    /// Assigns the next lease. `host` returns the number of the server of an endpoint of a task, and the number of
    /// concurrent requests that it accepts. `None`: there is nothing to fetch, or no room for it.
    pub(crate) fn assign(
        &mut self,
        limits: Concurrency,
        host: impl Fn(usize, usize) -> (usize, usize),
    ) -> Option<Lease> {
        for task in self.front..self.progress.len() {
            let progress = &self.progress[task];
            if progress.outcome.is_some() || progress.streaming {
                continue;
            }
            let (host, accepted) = host(task, progress.endpoint);
            let limits = Concurrency { jobs_per_host: limits.jobs_per_host.min(accepted), ..limits };
            let assigned = match progress.size.filter(|_| progress.ranges) {
                Some(size) => self.assign_range(task, size, host, limits),
                None => self.assign_stream(task, host, limits),
            };
            if let ControlFlow::Break(lease) = assigned {
                return lease;
            }
        }
        None
    }

    /// Assigns the next range of a task. Continues with the next task if all ranges are assigned or the host
    /// is busy; breaks without a lease if there is no room.
    fn assign_range(
        &mut self,
        task: usize,
        size: u64,
        host: usize,
        limits: Concurrency,
    ) -> ControlFlow<Option<Lease>> {
        let progress = &self.progress[task];
        let first = progress.next_gap();
        let next = progress.arrived.range(first..).next().map_or(size, |(offset, _)| *offset);
        let end = next.min(first + LEASE);
        let is_new_and_empty = size == 0 && !progress.announced;
        if first == end && !is_new_and_empty || self.load(host).leases >= limits.jobs_per_host {
            return ControlFlow::Continue(());
        }
        // Pieces of an earlier run may fill the window behind a gap; the gap has to be fetched all the same.
        let is_awaited =
            task == self.front && first == progress.hashed && progress.consumed == progress.hashed;
        if !self.fits(task, end - first) && !is_awaited {
            return ControlFlow::Break(None);
        }
        let generation = progress.generation;
        self.reserve(task, end - first);
        self.progress[task].assigned = end;
        self.hosts.entry(host).or_default().leases += 1;
        ControlFlow::Break(Some(Lease { task, generation, first, end: Some(end), host }))
    }

    /// Assigns a complete task as a stream. A stream behind the front may wait for room in the window, so it
    /// must leave one worker, and one connection of its host, to the tasks before it.
    fn assign_stream(&mut self, task: usize, host: usize, limits: Concurrency) -> ControlFlow<Option<Lease>> {
        let load = self.load(host);
        let is_front = task == self.front;
        if load.leases >= limits.jobs_per_host || !is_front && load.streams + 1 >= limits.jobs_per_host {
            return ControlFlow::Continue(());
        }
        if !is_front && self.streams + 1 >= limits.jobs || !self.fits(task, PIECE) {
            return ControlFlow::Break(None);
        }
        self.streams += 1;
        let load = self.hosts.entry(host).or_default();
        load.leases += 1;
        load.streams += 1;
        let progress = &mut self.progress[task];
        progress.streaming = true;
        let (generation, first) = (progress.generation, progress.hashed);
        ControlFlow::Break(Some(Lease { task, generation, first, end: None, host }))
    }

    /// Frees the worker and the connection of a lease.
    pub(crate) fn end(&mut self, lease: &Lease) {
        let load = self.hosts.entry(lease.host).or_default();
        load.leases = load.leases.saturating_sub(1);
        if lease.end.is_none() {
            load.streams = load.streams.saturating_sub(1);
            self.streams -= 1;
        }
    }

    /// True if the bytes of a lease are not needed any more: the task restarted or is complete, or the queue
    /// ends.
    pub(crate) fn is_obsolete(&self, lease: Lease) -> bool {
        let progress = &self.progress[lease.task];
        self.stopped || progress.generation != lease.generation || progress.outcome.is_some()
    }

    pub(crate) fn fits(&self, task: usize, bytes: u64) -> bool {
        self.used + bytes <= self.capacity || task == self.front && self.progress[task].used + bytes <= FRONT
    }

    pub(crate) fn reserve(&mut self, task: usize, bytes: u64) {
        self.used += bytes;
        self.progress[task].used += bytes;
    }

    pub(crate) fn release(&mut self, task: usize, bytes: u64) {
        self.used -= bytes;
        self.progress[task].used -= bytes;
    }

    /// Drops all bytes of a task, which is then fetched again.
    pub(crate) fn restart(&mut self, task: usize) {
        self.release(task, self.progress[task].used);
        self.progress[task].restart();
    }

    /// Drops the bytes of a task that were not hashed.
    pub(crate) fn drop_unhashed(&mut self, task: usize) {
        let dropped = self.progress[task].drop_unhashed();
        self.release(task, dropped);
    }

    fn load(&self, host: usize) -> HostLoad {
        self.hosts.get(&host).copied().unwrap_or_default()
    }
}
