//! [`Shared`]: the state of consumer and workers, and the way of a piece from arrival to verification.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use reqwest::Url;
use sha2::{Digest as _, Sha512};

use crate::base::event::{Event, Report};
use crate::bundle::write::spool::Spool;
use crate::fetch::fallback::FallbackList;
use crate::fetch::queue::task::Task;
use crate::fetch::queue::window::{Concurrency, Lease, Window};
use crate::fetch::source::Source;
use crate::net::error::{FetchError, FetchProblem, MismatchKind};
use crate::net::http::{Http, RequestContext};
use crate::net::secret::redacted;
use crate::oci::digest::to_hex;

const NO_PANIC: &str = "no worker panics; please report";

/// Time after which the stream of the task at the front is dropped as well if others wait for its connection.
const FRONT_WAIT: Duration = Duration::from_secs(30);

/// Why a worker ends a lease early.
pub(crate) enum LeaseEnd {
    Failed(FetchError),
    /// The bytes are not needed any more: the task restarted or is complete, or the queue ends.
    Obsolete,
}

impl From<FetchError> for LeaseEnd {
    fn from(error: FetchError) -> Self {
        Self::Failed(error)
    }
}

/// The state that consumer and workers share.
pub(crate) struct Shared<'a> {
    pub http: &'a Http,
    pub report: &'a dyn Report,
    pub tasks: Vec<Task>,
    /// The endpoints of each task.
    pub fallbacks: Vec<FallbackList>,
    pub limits: Concurrency,
    pub spool: Option<&'a Spool>,
    /// As in [`Upstream`](crate::fetch::upstream::Upstream).
    pub requires_length: bool,
    pub window: Mutex<Window>,
    pub changed: Condvar,
}

impl Shared<'_> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().expect(NO_PANIC)
    }

    /// Waits until the window changes.
    pub(crate) fn wait<'w>(&self, window: MutexGuard<'w, Window>) -> MutexGuard<'w, Window> {
        self.changed.wait(window).expect(NO_PANIC)
    }

    /// Waits before a retry. Fails if the queue ends meanwhile.
    pub(crate) fn wait_unless_stopped(&self, time: Duration) -> Result<(), LeaseEnd> {
        let waited = self.changed.wait_timeout_while(self.lock(), time, |window| !window.stopped);
        if waited.expect(NO_PANIC).0.stopped { Err(LeaseEnd::Obsolete) } else { Ok(()) }
    }

    pub(crate) fn request_context(&self, task: usize) -> RequestContext<'_> {
        RequestContext { http: self.http, report: self.report, object: &self.tasks[task].object }
    }

    pub(crate) fn size(&self, task: usize) -> Option<u64> {
        self.lock().progress[task].size
    }

    /// Returns the index of the current endpoint of a task.
    pub(crate) fn endpoint(&self, task: usize) -> usize {
        self.lock().progress[task].endpoint
    }

    /// Waits for room in the window. If the server accepts few requests at a time and others wait for it, drops the
    /// stream: the task at the front may need its connection.
    pub(crate) fn reserve(&self, lease: Lease, bytes: u64) -> Result<(), LeaseEnd> {
        let begin = Instant::now();
        let mut window = self.lock_current(lease)?;
        while !window.fits(lease.task, bytes) {
            window = self.changed.wait_timeout(window, Duration::from_secs(1)).expect(NO_PANIC).0;
            if window.is_obsolete(lease) {
                return Err(LeaseEnd::Obsolete);
            }
            let pace = &self.fallbacks[lease.task].server(window.progress[lease.task].endpoint).pace;
            let may_block = lease.task != window.front || begin.elapsed() > FRONT_WAIT;
            if may_block && !window.fits(lease.task, bytes) && pace.is_crowded() {
                self.drop_unhashed(&mut window, lease.task);
                drop(window);
                self.changed.notify_all();
                return Err(LeaseEnd::Obsolete);
            }
        }
        window.reserve(lease.task, bytes);
        Ok(())
    }

    /// Drops the bytes of a task that were not hashed, or all of them if no digest can verify them together with
    /// those that follow.
    fn drop_unhashed(&self, window: &mut Window, task: usize) {
        if self.tasks[task].is_pinned() && window.progress[task].hashes.is_some() {
            window.drop_unhashed(task);
        } else {
            window.restart(task);
        }
    }

    pub(crate) fn release(&self, lease: Lease, bytes: u64) {
        let mut window = self.lock();
        if !window.is_obsolete(lease) {
            window.release(lease.task, bytes);
        }
        self.changed.notify_all();
    }

    /// Adds a piece to the window and, if `spools`, to the spool. Hashes the pieces that are next.
    pub(crate) fn deliver(
        &self,
        lease: Lease,
        offset: u64,
        piece: Vec<u8>,
        spools: bool,
    ) -> Result<(), LeaseEnd> {
        let spool = self.spool.zip(self.tasks[lease.task].key).filter(|_| spools);
        // First the spool: the consumer releases the piece there once it has consumed it.
        if let Some((spool, key)) = spool {
            spool.put(key, offset, &piece);
        }
        let mut window = self.lock();
        if window.is_obsolete(lease) {
            drop(window);
            if let Some((spool, key)) = spool {
                spool.release(key, offset);
            }
            return Err(LeaseEnd::Obsolete);
        }
        window.progress[lease.task].arrived.insert(offset, Arc::new(piece));
        drop(window);
        self.hash_arrived(lease)
    }

    /// Hashes the pieces that follow the hashed part, unless another worker does.
    pub(crate) fn hash_arrived(&self, lease: Lease) -> Result<(), LeaseEnd> {
        let mut window = self.lock_current(lease)?;
        loop {
            let progress = &mut window.progress[lease.task];
            let Some(piece) = progress.arrived.get(&progress.hashed).cloned() else { break };
            // The worker that hashes finds the piece.
            let Some(mut hashes) = progress.hashes.take() else { return Ok(()) };
            drop(window);
            hashes.update(&piece);
            let len = piece.len() as u64;
            drop(piece);
            window = self.lock_current(lease)?;
            let progress = &mut window.progress[lease.task];
            progress.hashes = Some(hashes);
            progress.hashed += len;
            self.changed.notify_all();
        }
        drop(window);
        self.complete(lease)
    }

    /// Sets the size of a blob whose stream has ended.
    pub(crate) fn end_stream(&self, lease: Lease, size: u64) -> Result<(), LeaseEnd> {
        self.lock_current(lease)?.progress[lease.task].size = Some(size);
        self.complete(lease)
    }

    /// Verifies the blob if all of it was hashed.
    pub(crate) fn complete(&self, lease: Lease) -> Result<(), LeaseEnd> {
        let mut window = self.lock();
        let progress = &mut window.progress[lease.task];
        if progress.generation != lease.generation
            || progress.outcome.is_some()
            || progress.size != Some(progress.hashed)
        {
            return Ok(());
        }
        let Some(hashes) = progress.hashes.clone() else { return Ok(()) };
        let task = &self.tasks[lease.task];
        let digest = hashes.sha256.finish();
        let mismatch = |expected: String, found: String| {
            let kind = match task.source {
                Source::Registry { .. } => MismatchKind::Digest,
                Source::Web(_) => MismatchKind::Checksum,
            };
            let url = self.fallbacks[lease.task].name(progress.endpoint);
            let problem = FetchProblem::Mismatch { kind, expected, found, url };
            LeaseEnd::Failed(FetchError::new(task.object.clone(), problem))
        };
        if let Some(expected) = task.digest.filter(|expected| *expected != digest) {
            return Err(mismatch(expected.to_string(), digest.to_string()));
        }
        if let Some((expected, found)) = task.sha512.zip(hashes.sha512.map(Sha512::finalize))
            && expected[..] != found[..]
        {
            let text = |bytes: &[u8]| format!("sha512:{}", to_hex(bytes));
            return Err(mismatch(text(&expected), text(&found)));
        }
        progress.outcome = Some(digest);
        self.report.event(&Event::Done { id: lease.task as u64 });
        self.changed.notify_all();
        Ok(())
    }

    /// Handles bytes that do not match. At the last endpoint, the blob is fetched once more: the bytes may
    /// have been corrupted in transit, or be of another version by now. A second mismatch is a failure.
    pub(crate) fn mismatch(&self, lease: Lease, mut error: FetchError) -> Result<(), LeaseEnd> {
        let mut window = self.lock_current(lease)?;
        let progress = &mut window.progress[lease.task];
        let endpoint = progress.endpoint;
        let fallbacks = &self.fallbacks[lease.task];
        let task = &self.tasks[lease.task];
        let mut has_left = false;
        // Bytes from several endpoints are no fault of this one.
        if progress.start_endpoint == endpoint && fallbacks.is_last(endpoint) {
            progress.mismatches += 1;
            if progress.mismatches > 1 {
                if let FetchProblem::Mismatch { url, .. } = &mut error.problem {
                    url.push_str(", twice");
                }
                return Err(error.after(std::mem::take(&mut progress.failures)).into());
            }
        } else if progress.start_endpoint == endpoint {
            fallbacks.server(endpoint).record_failure(self.report, &error);
            has_left = progress.leave_endpoint(endpoint, error.reason());
        }
        let is_size = matches!(error.problem, FetchProblem::Mismatch { kind: MismatchKind::Size, .. });
        // The size is from an earlier response of the server, and out of date; or the endpoint that stated it, or whose
        // bytes ended there, has been left.
        if (is_size || has_left) && (task.digest.is_none() || task.size.is_none()) {
            progress.forget_size();
        }
        window.restart(lease.task);
        drop(window);
        self.forget_spooled(lease.task);
        self.changed.notify_all();
        Ok(())
    }

    /// Returns the error for a blob of a size that does not match.
    pub(crate) fn wrong_size(&self, task: usize, found: u64, url: &Url) -> LeaseEnd {
        let (expected, found) = match self.size(task) {
            Some(size) if found > size => (size.to_string(), format!("more than {size}")),
            Some(size) => (size.to_string(), found.to_string()),
            None => ("the size of an earlier response".to_owned(), found.to_string()),
        };
        let problem =
            FetchProblem::Mismatch { kind: MismatchKind::Size, expected, found, url: redacted(url) };
        self.request_context(task).error(problem).into()
    }

    /// Moves from an endpoint to the next one. The bytes are kept if a digest can verify them together
    /// with those that follow.
    pub(crate) fn next_endpoint(&self, lease: Lease, from: usize, reason: String) -> Result<(), LeaseEnd> {
        let mut window = self.lock_current(lease)?;
        let progress = &mut window.progress[lease.task];
        if !progress.leave_endpoint(from, reason) || self.tasks[lease.task].is_pinned() {
            return Ok(());
        }
        progress.forget_size();
        window.restart(lease.task);
        drop(window);
        self.forget_spooled(lease.task);
        self.changed.notify_all();
        Err(LeaseEnd::Obsolete)
    }

    /// Restarts a stream after a broken connection, if no digest can verify the bytes that follow.
    pub(crate) fn restart_broken(&self, lease: Lease) {
        if let Ok(mut window) = self.lock_current(lease) {
            window.progress[lease.task].breaks += 1;
            window.restart(lease.task);
            drop(window);
            self.forget_spooled(lease.task);
        }
        self.changed.notify_all();
    }

    /// Reads the blob as a stream from now on: the server does not return the requested ranges.
    pub(crate) fn give_up_ranges(&self, lease: Lease) -> LeaseEnd {
        if let Ok(mut window) = self.lock_current(lease) {
            window.progress[lease.task].ranges = false;
            self.drop_unhashed(&mut window, lease.task);
            drop(window);
            if !self.tasks[lease.task].is_pinned() {
                self.forget_spooled(lease.task);
            }
        }
        self.changed.notify_all();
        LeaseEnd::Obsolete
    }

    /// Records the position of a stream. Returns how much further it is than all streams of the blob before.
    pub(crate) fn record_position(&self, task: usize, position: u64) -> u64 {
        self.lock().progress[task].record_position(position)
    }

    /// Prevents a later run from resuming with bytes of another version than the server stated before.
    pub(crate) fn forget_plan(&self) {
        if let Some(spool) = self.spool {
            spool.forget_plan();
        }
    }

    fn forget_spooled(&self, task: usize) {
        if let Some((spool, key)) = self.spool.zip(self.tasks[task].key) {
            spool.forget(key);
        }
    }

    /// Locks the window. Fails if the lease is obsolete.
    fn lock_current(&self, lease: Lease) -> Result<MutexGuard<'_, Window>, LeaseEnd> {
        let window = self.lock();
        if window.is_obsolete(lease) { Err(LeaseEnd::Obsolete) } else { Ok(window) }
    }
}
