//! The bundle: its constants and limits, and the one description of its order that writer and reader share.
//!
//! `bundle-format.md` is the specification; a section of it is named where a constant comes from there.

pub mod format;
pub mod read;
pub(crate) mod recovery;
pub(crate) mod reuse;
pub mod write;
