//! The bundle: its format, and how it is read, written, repaired and reused.
//!
//! `bundle-format.md` is the specification. Names in quotes, such as ("Frames"), refer to its sections.

pub mod format;
pub mod read;
pub(crate) mod recovery;
pub(crate) mod reuse;
pub mod write;
