//! [`Attempts`]: the attempts of one request to a server whose pace all requests share.

use std::time::Duration;

use crate::base::event::Report;
use crate::net::error::{FetchError, MAX_DELAY};
use crate::net::http::retry::{RetryPolicy, delay};
use crate::net::pace::{Pace, Slot};

/// Counts the attempts of one request. A refusal does not count if the server has accepted other requests since the
/// last attempt: then it is only a matter of time until it accepts this one.
pub(crate) struct Attempts<'a> {
    pace: &'a Pace,
    retries: &'a RetryPolicy,
    /// Number of attempts that count, including the current one.
    pub tries: u32,
    /// Number of consecutive refusals.
    refusals: u32,
    /// [`Pace::accepted`] before the current attempt.
    accepted: u64,
    /// True if the last attempt does not count if the server has accepted other requests meanwhile.
    is_refused: bool,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(pace: &'a Pace, retries: &'a RetryPolicy) -> Self {
        Self { pace, retries, tries: 1, refusals: 0, accepted: pace.accepted(), is_refused: false }
    }

    /// Starts over with the count, after progress.
    pub(crate) fn reset(&mut self) {
        (self.tries, self.refusals) = (1, 0);
    }

    /// Returns the delay before the next attempt, after `error`. `None`: there is none.
    pub(crate) fn delay_after(
        &mut self,
        report: &dyn Report,
        slot: &Slot<'_>,
        error: &FetchError,
    ) -> Option<Duration> {
        let refusal = error.refusal();
        let has_others = match refusal {
            Some(refusal) => slot.refuse(refusal.kind, refusal.retry_after.filter(|wait| *wait <= MAX_DELAY)),
            None => false,
        };
        if !error.is_transient() {
            return None;
        }
        self.is_refused = refusal.is_some_and(|refusal| !refusal.is_of_one_request(has_others));
        if self.tries >= self.retries.tries && !(self.is_refused && (has_others || self.has_progress())) {
            return None;
        }
        self.refusals = if self.is_refused { self.refusals + 1 } else { 0 };
        Some(delay(report, error, self.tries.max(self.refusals.min(4))))
    }

    /// Begins the next attempt. Returns false if there is none.
    pub(crate) fn next(&mut self) -> bool {
        let is_free = std::mem::take(&mut self.is_refused) && self.has_progress();
        self.accepted = self.pace.accepted();
        if !is_free {
            self.tries += 1;
        }
        self.tries <= self.retries.tries
    }

    fn has_progress(&self) -> bool {
        self.pace.accepted() > self.accepted
    }
}
