//! What a person or a program may be told while work goes on.

use std::time::Duration;

use serde::Serialize;

use crate::base::units::as_seconds;

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// A new stage of the work begins; `bytes` and `objects` if it is known how much it is.
    Stage {
        /// What is done, for a person.
        name: &'static str,
        /// How many bytes will be worked through.
        bytes: Option<u64>,
        /// How many objects.
        objects: Option<u64>,
    },
    /// An object is begun.
    Begin {
        /// Its number, to tell it from others that are under way.
        id: u64,
        /// Its name, as a list or an index has it.
        object: String,
        /// How many bytes it has, if that is known.
        bytes: Option<u64>,
    },
    /// More bytes of an object have been worked through.
    Progress {
        /// The number that it was begun with.
        id: u64,
        /// How many bytes more.
        bytes: u64,
    },
    /// An object is complete and checked.
    Done {
        /// The number that it was begun with.
        id: u64,
    },
    /// A transfer failed in a way that may pass, and is tried again.
    Retry {
        /// What is fetched.
        object: String,
        /// What went wrong.
        reason: String,
        /// How long it will be waited.
        #[cfg_attr(test, schemars(with = "f64"))]
        #[serde(serialize_with = "as_seconds")]
        wait: Duration,
    },
    /// Something that the user may want to know.
    Note {
        /// A sentence.
        message: String,
    },
    /// Something that is no error and that the user should know.
    Warning {
        /// A sentence.
        message: String,
    },
}

/// Takes events: a terminal, a log, a program, or a test.
pub trait Report: Sync {
    /// Takes one. Called from many threads, and often: it must be quick.
    fn event(&self, event: &Event);
}

/// Tells nobody.
pub struct Silent;

impl Report for Silent {
    fn event(&self, _: &Event) {}
}

#[cfg(test)]
mod tests {

    use crate::base::units::human_bytes;

    #[test]
    fn bytes_are_shown_with_one_decimal_and_the_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_999, "1.0 MB"),
            (20_300_000_000, "20.3 GB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
