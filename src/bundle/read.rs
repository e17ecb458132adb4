//! Reads and verifies bundles: frames, volumes, documents and entries.

pub(crate) mod assemble;
pub(crate) mod candidate;
pub(crate) mod copies;
pub(crate) mod describe;
pub(crate) mod detached;
pub mod discover;
pub mod discover_error;
pub mod error;
pub(crate) mod feeder;
pub mod frame_error;
pub mod frame_reader;
pub(crate) mod joined;
pub(crate) mod media_file;
pub mod problem;
pub mod reader;
pub mod select;
pub(crate) mod sequential;
pub(crate) mod table_feeder;
pub mod tar_stream;
pub mod volume_set;
