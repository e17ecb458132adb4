//! [`Limits`]: timeouts for connecting, for idle connections and for the entire run.

use std::time::Duration;

/// Timeouts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Maximum time to establish a connection.
    pub connect: Duration,
    /// Maximum time to wait for a response or its next bytes; also the interval in which the rate of a body
    /// is measured.
    pub idle: Duration,
    /// Maximum time of the entire run. `None`: no limit.
    pub total: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connect: Duration::from_secs(20), idle: Duration::from_secs(60), total: None }
    }
}
