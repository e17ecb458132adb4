//! What every other module may use: file system calls, safe paths, events, and the hash/write pipeline.

pub mod buffer;
pub mod error_chain;
pub mod event;
pub(crate) mod flusher;
pub mod fs;
pub mod path;
pub mod pipeline;
pub mod units;
