//! Reading a bundle: frames, volumes, and the reader that verifies both.

pub mod discover;
pub mod error;
pub(crate) mod feeder;
pub mod frame_reader;
pub mod problem;
pub mod reader;
pub mod select;
pub(crate) mod sequential;
pub mod volume_set;
