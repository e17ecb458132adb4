//! [`Worker`]: fetches one lease, with retries and fallback to other endpoints.

use std::io::Read;

use reqwest::StatusCode;
use reqwest::blocking::Response;
use reqwest::header::{CONTENT_TYPE, ETAG, HeaderValue};

use crate::base::event::Event;
use crate::fetch::content::is_unknown;
use crate::fetch::queue::progress::PROGRESS;
use crate::fetch::queue::shared::{LeaseEnd, Shared};
use crate::fetch::queue::task::Task;
use crate::fetch::queue::window::{Lease, PIECE};
use crate::fetch::web::{has_length, refuses_ranges, warn_about_encoding, warn_about_length};
use crate::net::attempts::Attempts;
use crate::net::error::FetchError;
use crate::net::http::body::read_error;
use crate::net::http::content_range;
use crate::net::pace::{Pace, Slot};
use crate::net::secret::redacted;

/// Maximum number of bytes of one read.
const READ: usize = 256 << 10;

/// Fetches one lease.
pub(crate) struct Worker<'a> {
    shared: &'a Shared<'a>,
    lease: Lease,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(shared: &'a Shared<'a>, lease: Lease) -> Self {
        Self { shared, lease }
    }

    pub(crate) fn run(&self) -> Result<(), LeaseEnd> {
        match self.lease.end {
            Some(end) => self.fetch_range(end),
            None => self.fetch_stream(),
        }
    }

    /// Fetches up to `end`, with several requests if connections break.
    fn fetch_range(&self, end: u64) -> Result<(), LeaseEnd> {
        let is_whole = self.lease.first == 0 && self.size() == Some(end);
        let mut at = self.lease.first;
        let mut piece = Vec::new();
        self.retry(|slot, progressed| {
            if at == end {
                return self.shared.complete(self.lease); // an empty blob
            }
            let from = at + piece.len() as u64;
            let range = if is_whole && from == 0 { None } else { Some((from, end - 1)) };
            let mut response = match self.request(slot, range) {
                Err(error) if range.is_some() && error.status().is_some_and(refuses_ranges) => {
                    return Err(self.shared.give_up_ranges(self.lease));
                }
                response => response?,
            };
            let fits = match range {
                Some(range) => self.is_range(&response, range),
                // A later request may have to continue it.
                None => self.is_same_version(&response),
            };
            if !fits {
                return Err(self.shared.give_up_ranges(self.lease));
            }
            while at < end {
                let len = PIECE.min(end - at);
                self.fill(&mut response, &mut piece, len, progressed)?;
                if (piece.len() as u64) < len {
                    return Err(self.wrong_size(at + piece.len() as u64, &response));
                }
                // Before the last piece is delivered: a complete blob is not revoked.
                if is_whole && range.is_none() && at + len == end && !is_at_end(&mut response) {
                    return Err(self.wrong_size(end + 1, &response));
                }
                // A digest would reveal a range that is not the one that the header states.
                if !self.task().is_pinned() && at + len == end && !is_at_end(&mut response) {
                    return Err(self.shared.give_up_ranges(self.lease));
                }
                self.check_content(at, &piece, &response)?;
                self.shared.deliver(self.lease, at, std::mem::take(&mut piece), true)?;
                at += len;
            }
            Ok(())
        })
    }

    /// Fetches a blob without range requests. After a broken connection, reads it again from the beginning
    /// and skips the bytes that were delivered; without a digest, restarts the blob. Only bytes beyond the
    /// furthest position of all connections count as progress.
    fn fetch_stream(&self) -> Result<(), LeaseEnd> {
        let mut delivered = self.lease.first;
        let mut is_first_try = true;
        self.retry(|slot, progressed| {
            let is_retry = !std::mem::replace(&mut is_first_try, false);
            if is_retry && delivered > 0 && !self.task().is_pinned() {
                self.shared.restart_broken(self.lease);
                return Err(LeaseEnd::Obsolete);
            }
            let mut response = self.request(slot, None)?;
            let is_same_version = self.is_same_version(&response);
            if !is_same_version && self.task().key.is_some() {
                self.shared.forget_plan();
            }
            let mut position = 0;
            loop {
                let skip = delivered.saturating_sub(position).min(PIECE);
                let (len, mut piece) = (if skip > 0 { skip } else { PIECE }, Vec::new());
                let filled = if skip > 0 {
                    self.fill(&mut response, &mut piece, len, &mut 0)
                } else {
                    self.fill_within_window(&mut response, &mut piece)
                };
                position += piece.len() as u64;
                *progressed += self.shared.record_position(self.lease.task, position);
                filled?;
                let is_short = (piece.len() as u64) < len;
                let has_ended = self.check_position(&mut response, position, delivered, is_short)?;
                if skip == 0 && !piece.is_empty() {
                    self.check_content(delivered, &piece, &response)?;
                    self.shared.deliver(self.lease, delivered, piece, is_same_version)?;
                    delivered = position;
                }
                if has_ended {
                    return self.shared.end_stream(self.lease, position);
                }
            }
        })
    }

    /// Returns true if a stream has ended at `position`. Fails if the position does not match the size of the
    /// blob. Called before the bytes are delivered: a complete blob is not revoked.
    fn check_position(
        &self,
        response: &mut Response,
        position: u64,
        delivered: u64,
        is_short: bool,
    ) -> Result<bool, LeaseEnd> {
        let size = self.size();
        let has_ended = is_short || size == Some(position) && is_at_end(response);
        if size.is_some_and(|size| position > size || position == size && !has_ended) {
            return Err(self.wrong_size(position + 1, response));
        }
        // Also wrong if an earlier response was longer.
        if has_ended && size.unwrap_or(delivered).max(delivered) > position {
            return Err(self.wrong_size(position, response));
        }
        Ok(has_ended)
    }

    /// Repeats `attempt` while it fails with transient errors, then falls back to the next endpoint. The
    /// count of attempts restarts after [`PROGRESS`] new bytes, which `attempt` counts.
    fn retry(
        &self,
        mut attempt: impl FnMut(&Slot<'_>, &mut u64) -> Result<(), LeaseEnd>,
    ) -> Result<(), LeaseEnd> {
        let retries = &self.shared.http.retries;
        let fallbacks = &self.shared.fallbacks[self.lease.task];
        let mut breaks = self.shared.lock().progress[self.lease.task].breaks;
        let mut progressed = 0;
        loop {
            let endpoint = self.skip_down()?;
            let pace = &fallbacks.server(endpoint).pace;
            let mut attempts = Attempts::new(pace, retries);
            attempts.tries += std::mem::take(&mut breaks);
            while endpoint == self.skip_down()? {
                retries.check_deadline(&self.task().object)?;
                let slot = self.slot(pace)?;
                let error = match attempt(&slot, &mut progressed) {
                    Err(LeaseEnd::Failed(error)) => error,
                    other => return other,
                };
                if self.shared.lock().is_obsolete(self.lease) {
                    return Err(LeaseEnd::Obsolete);
                }
                if progressed >= PROGRESS {
                    attempts.reset();
                    progressed = 0;
                }
                if error.is_mismatch() {
                    return self.shared.mismatch(self.lease, error);
                }
                let wait = attempts.delay_after(self.shared.report, &slot, &error);
                drop(slot);
                if let Some(wait) = wait {
                    retries.check_deadline_after(&error.object, wait)?;
                    self.shared.wait_unless_stopped(wait)?;
                    if attempts.next() {
                        continue;
                    }
                }
                self.leave_endpoint(endpoint, error.with_attempts(attempts.tries.min(retries.tries)))?;
            }
        }
    }

    /// Waits until the server may get one more request.
    fn slot<'p>(&self, pace: &'p Pace) -> Result<Slot<'p>, LeaseEnd> {
        let object = &self.task().object;
        let retries = &self.shared.http.retries;
        let slot = pace.slot_of_queue(|| {
            // Streams that wait for room in the window give up their connections.
            self.shared.changed.notify_all();
            self.shared.lock().is_obsolete(self.lease) || retries.check_deadline(object).is_err()
        });
        retries.check_deadline(object)?;
        slot.ok_or(LeaseEnd::Obsolete)
    }

    /// Returns the index of the current endpoint. Leaves endpoints whose server is down, except the last one.
    fn skip_down(&self) -> Result<usize, LeaseEnd> {
        let fallbacks = &self.shared.fallbacks[self.lease.task];
        loop {
            let endpoint = self.shared.endpoint(self.lease.task);
            let reason = fallbacks.server(endpoint).why_down();
            let Some(reason) = reason.filter(|_| !fallbacks.is_last(endpoint)) else {
                return Ok(endpoint);
            };
            self.shared.next_endpoint(self.lease, endpoint, reason)?;
        }
    }

    /// Falls back from an endpoint that failed permanently. Fails if there is no other one.
    fn leave_endpoint(&self, endpoint: usize, error: FetchError) -> Result<(), LeaseEnd> {
        let fallbacks = &self.shared.fallbacks[self.lease.task];
        if fallbacks.is_last(endpoint) || !error.allows_fallback() {
            let failures = std::mem::take(&mut self.shared.lock().progress[self.lease.task].failures);
            return Err(error.after(failures).into());
        }
        fallbacks.server(endpoint).record_failure(self.shared.report, &error);
        self.shared.next_endpoint(self.lease, endpoint, error.reason())
    }

    fn request(&self, slot: &Slot<'_>, range: Option<(u64, u64)>) -> Result<Response, FetchError> {
        let task = self.lease.task;
        let (context, endpoint) = (self.shared.request_context(task), self.shared.endpoint(task));
        let response = self.shared.fallbacks[task].get(context, endpoint, range, self.size());
        if response.as_ref().map_or_else(FetchError::is_response, |_| true) {
            slot.accept();
        }
        response
    }

    /// Fails if a file begins with other content than its name says. Warns about a content encoding, and a body without
    /// a length.
    fn check_content(&self, offset: u64, piece: &[u8], response: &Response) -> Result<(), FetchError> {
        if offset > 0 || self.task().is_pinned() {
            return Ok(());
        }
        let context = self.shared.request_context(self.lease.task);
        let check = self.shared.fallbacks[self.lease.task].check();
        if let Some(reason) = check.and_then(|check| check.check_bytes(piece)) {
            // Error pages have a type. Without one, text may be what the file consists of, whatever its name says.
            if response.headers().contains_key(CONTENT_TYPE) || !is_unknown(piece) {
                return Err(context.invalid_response(response.url(), reason));
            }
            let message = format!("`{}` is {reason}", context.object);
            self.shared.report.event(&Event::Warning { message });
        }
        warn_about_encoding(context, response);
        if self.size().is_some() || has_length(response) {
            return Ok(());
        }
        if self.shared.requires_length {
            let reason = "sent without its length, so that it may be incomplete: pin the file to verify it";
            return Err(context.invalid_response(response.url(), reason));
        }
        warn_about_length(context);
        Ok(())
    }

    /// True if a response contains the requested range.
    fn is_range(&self, response: &Response, range: (u64, u64)) -> bool {
        let size = self.size();
        response.status() == StatusCode::PARTIAL_CONTENT
            && self.is_same_version(response)
            && content_range(response).is_some_and(|(first, last, total)| {
                (first, last) == range && (total.is_none() || total == size)
            })
    }

    /// True if a response is of the version of the file that was probed, or a digest verifies the bytes. Not every
    /// server supports `If-Range`, and one of several servers may not send entity tags.
    fn is_same_version(&self, response: &Response) -> bool {
        let (task, endpoint) = (self.lease.task, self.shared.endpoint(self.lease.task));
        let etag = self.shared.fallbacks[task].etag(endpoint).map(str::as_bytes);
        self.task().is_pinned()
            || etag.is_some() && etag == response.headers().get(ETAG).map(HeaderValue::as_bytes)
    }

    /// Reads a piece after waiting for room in the window, and releases the room that is not needed.
    fn fill_within_window(&self, response: &mut Response, piece: &mut Vec<u8>) -> Result<(), LeaseEnd> {
        self.shared.reserve(self.lease, PIECE)?;
        let filled = self.fill(response, piece, PIECE, &mut 0);
        let used = if filled.is_ok() { piece.len() as u64 } else { 0 };
        self.shared.release(self.lease, PIECE - used);
        filled
    }

    /// Reads until `piece` has `len` bytes or the body ends.
    fn fill(
        &self,
        response: &mut Response,
        piece: &mut Vec<u8>,
        len: u64,
        progressed: &mut u64,
    ) -> Result<(), LeaseEnd> {
        let len = usize::try_from(len).expect("at most a piece; please report");
        let object = &self.task().object;
        let (mut rate, had_progressed) = (self.shared.http.retries.rate_monitor(), *progressed);
        piece.reserve_exact(len - piece.len());
        while piece.len() < len {
            let start = piece.len();
            piece.resize(len.min(start + READ), 0);
            let read = response.read(&mut piece[start..]);
            piece.truncate(start + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    *progressed += read as u64;
                    let event = Event::Progress { id: self.lease.task as u64, bytes: read as u64 };
                    self.shared.report.event(&event);
                    if piece.len() < len {
                        rate.count(object, response.url(), read)
                            .inspect_err(|_| *progressed = had_progressed)?;
                    }
                }
                Err(error) => return Err(read_error(object, &redacted(response.url()), error).into()),
            }
        }
        Ok(())
    }

    fn wrong_size(&self, found: u64, response: &Response) -> LeaseEnd {
        self.shared.wrong_size(self.lease.task, found, response.url())
    }

    fn size(&self) -> Option<u64> {
        self.shared.size(self.lease.task)
    }

    fn task(&self) -> &'a Task {
        &self.shared.tasks[self.lease.task]
    }
}

/// True if a body has no more bytes. A broken connection counts as more bytes.
fn is_at_end(response: &mut Response) -> bool {
    matches!(response.read(&mut [0]), Ok(0))
}
