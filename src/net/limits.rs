//! [`Limits`]: how long connecting, idling and a whole run may take.

use std::time::Duration;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Until a connection is there.
    pub connect: Duration,
    /// Until an answer, or its next bytes, are there. In as long, a body has to make some progress.
    pub idle: Duration,
    /// All of it; nothing: as long as it needs.
    pub total: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connect: Duration::from_secs(20), idle: Duration::from_secs(60), total: None }
    }
}
