//! Reading a bundle: frames, volumes, and the reader that verifies both.

pub mod frame;
pub mod reader;
pub mod select;
pub mod volume_set;
