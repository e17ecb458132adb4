//! [`RetryPolicy`]: attempts, delays and the deadline; [`RateMonitor`]: the minimum rate of a body.

use std::time::{Duration, Instant};

use reqwest::Url;

use crate::base::event::{Event, Report};
use crate::net::error::{FetchError, FetchProblem, MAX_DELAY};
use crate::net::limits::Limits;
use crate::net::secret::redacted;

/// Delay before the first retry; each further retry doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(500);

/// Minimum delay, also if the server requests none.
const MIN_DELAY: Duration = Duration::from_millis(100);

/// Minimum rate of a body in bytes per second. Even a modem is faster.
const MIN_RATE: u64 = 1 << 10;

/// The maximum number of attempts, and the deadline of the run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryPolicy {
    /// Maximum number of attempts, at least 1.
    pub tries: u32,
    /// The interval in which the rate of a body is measured.
    idle: Duration,
    deadline: Option<Deadline>,
}

#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Instant,
    /// The limit that leads to it, for messages.
    total: Duration,
}

impl RetryPolicy {
    /// Starts the time limit of the run.
    pub(crate) fn new(limits: Limits, tries: u32) -> Self {
        let deadline =
            limits.total.and_then(|total| Some(Deadline { at: Instant::now().checked_add(total)?, total }));
        Self { tries: tries.max(1), idle: limits.idle, deadline }
    }

    /// Calls `attempt` until it succeeds, fails permanently, or the attempts are used up.
    pub(crate) fn retry<T>(
        &self,
        report: &dyn Report,
        mut attempt: impl FnMut() -> Result<T, FetchError>,
    ) -> Result<T, FetchError> {
        let mut tries = 1;
        loop {
            match attempt() {
                Err(error) if error.is_transient() && tries < self.tries => {
                    let wait = delay(report, &error, tries);
                    self.check_deadline_after(&error.object, wait)?;
                    std::thread::sleep(wait);
                    tries += 1;
                }
                Err(error) => return Err(error.with_attempts(tries)),
                success => return success,
            }
        }
    }

    /// Returns the time until the deadline. `None`: no limit.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.at.saturating_duration_since(Instant::now()))
    }

    /// Fails if the deadline has passed.
    pub(crate) fn check_deadline(&self, object: &str) -> Result<(), FetchError> {
        self.check_deadline_after(object, Duration::ZERO)
    }

    /// Fails if the deadline passes within `wait`.
    pub(crate) fn check_deadline_after(&self, object: &str, wait: Duration) -> Result<(), FetchError> {
        match self.deadline.zip(self.time_left()) {
            Some((deadline, left)) if left <= wait => {
                Err(FetchError::new(object, FetchProblem::TimeLimit(deadline.total)))
            }
            _ => Ok(()),
        }
    }

    #[must_use]
    pub(crate) fn rate_monitor(&self) -> RateMonitor<'_> {
        RateMonitor { policy: self, since: Instant::now(), bytes: 0 }
    }
}

/// Measures the rate of a body. Without it, a server that sends a byte now and then could block a run
/// forever.
pub(crate) struct RateMonitor<'a> {
    policy: &'a RetryPolicy,
    since: Instant,
    bytes: u64,
}

impl RateMonitor<'_> {
    /// Counts bytes from `url`. Fails if they arrive too slowly, or after the deadline.
    pub(crate) fn count(&mut self, object: &str, url: &Url, bytes: usize) -> Result<(), FetchError> {
        self.policy.check_deadline(object)?;
        self.bytes += bytes as u64;
        let time = self.since.elapsed();
        if time < self.policy.idle {
            return Ok(());
        }
        if u128::from(self.bytes) * 1000 < u128::from(MIN_RATE) * time.as_millis() {
            let problem = FetchProblem::Stalled { url: redacted(url), attempts: 1 };
            return Err(FetchError::new(object, problem));
        }
        (self.since, self.bytes) = (Instant::now(), 0);
        Ok(())
    }
}

/// Returns the delay after attempt number `tries`, and reports the retry. The delay doubles with each
/// attempt, unless the server requests one.
pub(crate) fn delay(report: &dyn Report, error: &FetchError, tries: u32) -> Duration {
    let requested = match &error.problem {
        FetchProblem::Status { retry_after, .. } => *retry_after,
        _ => None,
    };
    let wait = requested.unwrap_or_else(|| jitter(FIRST_DELAY * 2_u32.pow((tries - 1).min(10))));
    let wait = wait.clamp(MIN_DELAY, MAX_DELAY);
    report.event(&Event::Retry { object: error.object.clone(), reason: error.reason(), wait });
    wait
}

/// Varies a delay by up to 25%, so that many clients do not return at the same moment.
fn jitter(wait: Duration) -> Duration {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    #[expect(clippy::cast_precision_loss, reason = "any random number will do")]
    wait.mul_f64(0.75 + 0.5 * (random as f64 / u64::MAX as f64))
}
