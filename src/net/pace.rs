//! [`Pace`]: how many requests a server gets at the same time, and how fast they follow each other.
//!
//! Some servers limit connections, others requests per second, and refuse what exceeds the limit with 429, 503 or a
//! refused connection. After a refusal, all requests to the server slow down together: fewer at a time, and for 429
//! with a minimum interval. Both recover slowly (additive increase, multiplicative decrease).

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Time in which accepted requests are counted, to find out the rate that a server accepts.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// First interval between requests if a server accepts none in this time.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);

/// Maximum interval between requests.
const MAX_INTERVAL: Duration = Duration::from_secs(30);

/// An interval below this one is none.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Number of accepted requests before one more is sent at the same time. Each refusal doubles it.
const FIRST_STREAK: u32 = 8;
const MAX_STREAK: u32 = 64;

/// Time after which a waiting request finds out that it was canceled.
const STEP: Duration = Duration::from_millis(100);

/// The limits of one server.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Maximum number of concurrent requests.
    max: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Number of concurrent requests.
    active: usize,
    /// Number of requests that wait for a slot.
    waiting: usize,
    /// Number of concurrent requests that the server accepts, as far as known.
    limit: usize,
    /// Minimum time between two requests. Zero: none.
    interval: Duration,
    /// Time of the next request. `None`: at once.
    next_start: Option<Instant>,
    /// Number of requests so far.
    started: u64,
    /// `started` when the pace was reduced. Refusals of earlier requests do not reduce it again.
    reduced_at: u64,
    /// Number of accepted requests.
    accepted: u64,
    /// Accepted requests since the limit changed.
    streak: u32,
    /// The `streak` that raises the limit.
    needed: u32,
    /// Time when the interval was lengthened. A server counts the requests of a while, so that it refuses further
    /// ones for this while, whatever the interval.
    lengthened: Option<Instant>,
    /// Interval of the requests that were accepted when the rate was refused last. `None`: not known.
    measured: Option<Duration>,
    /// Times of the requests that were accepted within the last second.
    recent: VecDeque<Instant>,
}

/// A refused request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The cause.
    pub kind: RefusalKind,
    /// Delay that the server requests.
    pub retry_after: Option<Duration>,
}

/// The cause of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefusalKind {
    /// 429: too many requests per time.
    Rate,
    /// 503: overloaded, or too many requests at the same time.
    Busy,
    /// No connection. The server may be down, unless it has accepted requests before.
    Connection,
}

impl Refusal {
    /// True if the server seems to refuse this request, and not the number or the rate of all: it was busy without
    /// any other one.
    #[must_use]
    pub(crate) fn is_of_one_request(&self, has_others: bool) -> bool {
        self.kind == RefusalKind::Busy && !has_others
    }
}

/// A permit for one request, until its body was read; released when dropped.
pub(crate) struct Slot<'a> {
    pace: &'a Pace,
    /// Number of the request.
    number: u64,
}

impl Pace {
    /// Creates a pace of at most `max` concurrent requests.
    pub(crate) fn new(max: usize) -> Self {
        let max = max.max(1);
        let state = State {
            active: 0,
            waiting: 0,
            limit: max,
            interval: Duration::ZERO,
            next_start: None,
            started: 0,
            reduced_at: 0,
            accepted: 0,
            streak: 0,
            needed: FIRST_STREAK,
            lengthened: None,
            measured: None,
            recent: VecDeque::new(),
        };
        Self { max, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits until the server may get one more request. `None`: `is_canceled` has returned true meanwhile.
    pub(crate) fn slot(&self, is_canceled: impl FnMut() -> bool) -> Option<Slot<'_>> {
        self.slot_of(self.max, is_canceled)
    }

    /// Like [`Pace::slot`] for a queue that limits its requests itself: waits only if the server has refused some.
    pub(crate) fn slot_of_queue(&self, is_canceled: impl FnMut() -> bool) -> Option<Slot<'_>> {
        self.slot_of(usize::MAX, is_canceled)
    }

    fn slot_of(&self, max: usize, mut is_canceled: impl FnMut() -> bool) -> Option<Slot<'_>> {
        let mut state = self.lock();
        state.waiting += 1;
        loop {
            let now = Instant::now();
            let start = state.next_start.filter(|start| *start > now);
            let limit = if state.limit < self.max { state.limit } else { max };
            if state.active < limit && start.is_none() {
                state.waiting -= 1;
                state.active += 1;
                state.started += 1;
                if !state.interval.is_zero() {
                    state.next_start = Some(now + state.interval);
                }
                return Some(Slot { pace: self, number: state.started });
            }
            let wait = start.map_or(STEP, |start| (start - now).min(STEP));
            drop(self.changed.wait_timeout(state, wait).expect(NO_PANIC));
            // Without the lock: the closure may take others.
            let is_canceled = is_canceled();
            state = self.lock();
            if is_canceled {
                state.waiting -= 1;
                return None;
            }
        }
    }

    /// Returns the number of concurrent requests that the server accepts, as far as known.
    #[must_use]
    pub(crate) fn limit(&self) -> usize {
        self.lock().limit
    }

    /// Returns the number of requests that the server has accepted.
    #[must_use]
    pub(crate) fn accepted(&self) -> u64 {
        self.lock().accepted
    }

    /// True if requests wait because the limit is used up.
    #[must_use]
    pub(crate) fn is_crowded(&self) -> bool {
        let state = self.lock();
        state.waiting > 0 && state.active >= state.limit
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }
}

impl State {
    fn forget_old(&mut self) {
        let is_old = |at: &Instant| at.elapsed() > RATE_WINDOW;
        self.recent.retain(|at| !is_old(at));
    }

    /// Lengthens the interval toward that of the accepted requests, or doubles it if there were none. A burst of
    /// requests shows no rate, so that each step is limited.
    fn lengthen_interval(&mut self) {
        if self.lengthened.is_some_and(|at| at.elapsed() < RATE_WINDOW) {
            return;
        }
        self.lengthened = Some(Instant::now());
        let twice = (self.interval * 2).max(FIRST_INTERVAL);
        let count = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        self.measured = (count > 0).then(|| RATE_WINDOW * 21 / 20 / count);
        let longer = self.measured.map_or(twice, |measured| measured.clamp(twice * 5 / 8, twice));
        self.interval = longer.min(MAX_INTERVAL);
    }

    /// Shortens the interval after an accepted request: slowly near the measured rate, fast after an outage.
    fn shorten_interval(&mut self) {
        let is_near = self.measured.is_some_and(|measured| self.interval <= measured * 3 / 2);
        self.interval = if is_near { self.interval * 199 / 200 } else { self.interval * 4 / 5 };
        if self.interval < MIN_INTERVAL {
            self.interval = Duration::ZERO;
        }
    }
}

const NO_PANIC: &str = "nothing panics while it holds the pace; please report";

impl Slot<'_> {
    /// Records that the server has accepted the request, whatever it responded.
    pub(crate) fn accept(&self) {
        let mut state = self.pace.lock();
        state.accepted += 1;
        state.streak += 1;
        state.forget_old();
        state.recent.push_back(Instant::now());
        if state.streak >= state.needed && state.limit < self.pace.max {
            state.limit += 1;
            state.streak = 0;
            self.pace.changed.notify_all();
        }
        state.shorten_interval();
    }

    /// Records that the server has refused the request, and slows down. No further request is sent for `pause`.
    /// Returns true if other requests are being processed.
    pub(crate) fn refuse(&self, kind: RefusalKind, pause: Option<Duration>) -> bool {
        let mut state = self.pace.lock();
        let others = state.active - 1;
        if kind == RefusalKind::Connection && state.accepted == 0 {
            return others > 0;
        }
        if let Some(start) = pause.map(|pause| Instant::now() + pause) {
            state.next_start = Some(state.next_start.map_or(start, |earlier| earlier.max(start)));
        }
        if self.number > state.reduced_at {
            state.forget_old();
            // A server that refuses a single request limits the rate.
            let is_rate = kind == RefusalKind::Rate || kind == RefusalKind::Busy && others == 0;
            if is_rate {
                state.lengthen_interval();
            }
            if !is_rate || state.recent.is_empty() {
                state.limit = (state.limit.min(state.active) / 2).max(1);
                state.needed = (state.needed * 2).min(MAX_STREAK);
            }
            (state.reduced_at, state.streak) = (state.started, 0);
        }
        others > 0
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.pace.lock().active -= 1;
        self.pace.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(pace: &Pace, count: usize) -> Vec<Slot<'_>> {
        (0..count).map(|_| pace.slot(|| false).unwrap()).collect()
    }

    #[test]
    fn one_burst_of_refusals_halves_the_limit_once_and_it_recovers_slowly() {
        let pace = Pace::new(8);
        pace.slot(|| false).unwrap().accept();
        for (limit, expected) in [(8, 4), (4, 2), (2, 1), (1, 1)] {
            for slot in slots(&pace, limit) {
                slot.refuse(RefusalKind::Connection, None);
            }
            assert_eq!(pace.limit(), expected);
        }
        let mut accepted = 0;
        while pace.limit() < 3 {
            pace.slot(|| false).unwrap().accept();
            accepted += 1;
        }
        assert_eq!(accepted, 2 * MAX_STREAK);
    }

    #[test]
    fn no_request_exceeds_the_limit_and_a_waiting_one_can_be_canceled() {
        let pace = Pace::new(2);
        let both = slots(&pace, 2);
        assert!(pace.slot(|| true).is_none());
        assert!(!pace.is_crowded());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pace.slot(|| false).map(drop));
            while !pace.is_crowded() {
                std::thread::yield_now();
            }
            drop(both);
            assert!(waiting.join().unwrap().is_some());
        });
        assert!(!pace.is_crowded());
    }

    #[test]
    fn requests_are_spaced_at_the_rate_that_a_server_accepts() {
        let pace = Pace::new(8);
        for expected in [100, 200, 250] {
            pace.lock().next_start = None;
            pace.lock().lengthened = None;
            let interval = std::mem::take(&mut pace.lock().interval);
            let slots = slots(&pace, 6);
            slots[..5].iter().for_each(Slot::accept);
            pace.lock().recent.truncate(5);
            pace.lock().interval = interval;
            assert!(slots[5].refuse(RefusalKind::Rate, None));
            assert_eq!(pace.lock().interval.as_millis(), expected);
            assert_eq!(pace.limit(), 8);
        }
        let start = Instant::now();
        for _ in 0..2 {
            pace.slot(|| false).unwrap().accept();
        }
        assert!(start.elapsed() >= Duration::from_millis(205));
        assert!(pace.lock().interval >= Duration::from_millis(245));
    }

    #[test]
    fn a_server_that_accepts_nothing_gets_fewer_and_fewer_requests() {
        let pace = Pace::new(8);
        for (interval, limit) in [(100, 4), (200, 2), (400, 1), (800, 1)] {
            pace.lock().next_start = None;
            pace.lock().lengthened = None;
            let slots = slots(&pace, 1);
            pace.lock().active = pace.limit();
            slots[0].refuse(RefusalKind::Rate, None);
            let found = pace.lock().interval.as_millis();
            assert_eq!((found, pace.limit()), (interval, limit));
            pace.lock().active = 1;
        }
    }

    #[test]
    fn the_interval_is_gone_soon_after_an_outage() {
        let pace = Pace::new(8);
        for _ in 0..5 {
            pace.lock().next_start = None;
            pace.lock().lengthened = None;
            slots(&pace, 1)[0].refuse(RefusalKind::Busy, None);
        }
        assert_eq!(pace.lock().interval.as_millis(), 1600);
        for _ in 0..25 {
            pace.lock().next_start = None;
            pace.slot(|| false).unwrap().accept();
        }
        assert_eq!(pace.lock().interval, Duration::ZERO);
    }

    #[test]
    fn retry_after_holds_for_all_requests() {
        let pace = Pace::new(8);
        let start = Instant::now();
        slots(&pace, 1)[0].refuse(RefusalKind::Busy, Some(Duration::from_millis(300)));
        pace.slot(|| false).unwrap().accept();
        assert!(start.elapsed() >= Duration::from_millis(300));
    }

    #[test]
    fn a_server_without_connections_is_down_unless_it_has_accepted_requests() {
        let pace = Pace::new(8);
        let first = slots(&pace, 4);
        assert!(first[0].refuse(RefusalKind::Connection, None));
        assert_eq!(pace.limit(), 8);
        first[1].accept();
        first[0].refuse(RefusalKind::Connection, None);
        assert_eq!(pace.limit(), 2);
    }
}
