//! [`Event`] and [`Report`]: progress, notes and warnings during a command.

use std::time::Duration;

use serde::Serialize;

use crate::base::units::as_seconds;

/// Progress of a command, or a message for the user.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// A new stage begins.
    Stage {
        /// Description for users, such as `unpacking`.
        name: &'static str,
        /// Bytes to process. `None`: unknown.
        bytes: Option<u64>,
        /// Objects to process. `None`: unknown.
        objects: Option<u64>,
    },
    /// Processing of an object begins.
    Begin {
        /// ID that distinguishes the objects in progress.
        id: u64,
        /// Name, as in a list or an index.
        object: String,
        /// Size in bytes. `None`: unknown.
        bytes: Option<u64>,
    },
    /// Progress of an object.
    Progress {
        /// ID from `Begin`.
        id: u64,
        /// Bytes processed since the last event.
        bytes: u64,
    },
    /// An object is complete and verified.
    Done {
        /// ID from `Begin`.
        id: u64,
    },
    /// A transient failure: the transfer will be retried.
    Retry {
        /// Name of the object.
        object: String,
        /// Cause of the failure.
        reason: String,
        /// Delay before the retry, in seconds.
        #[cfg_attr(test, schemars(with = "f64"))]
        #[serde(serialize_with = "as_seconds")]
        wait: Duration,
    },
    /// Additional information for the user.
    Note {
        /// One sentence.
        message: String,
    },
    /// A problem that does not stop the command.
    Warning {
        /// One sentence.
        message: String,
    },
}

/// A receiver of events: a terminal, a log, a program, or a test.
pub trait Report: Sync {
    /// Receives an event. Many threads call this often, so it must return quickly.
    fn event(&self, event: &Event);
}

/// A receiver that discards all events.
pub struct Silent;

impl Report for Silent {
    fn event(&self, _: &Event) {}
}
