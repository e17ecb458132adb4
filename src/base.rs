//! Shared helpers: file system calls, safe paths, events, buffers, and the hash/write pipeline.

pub(crate) mod buffer;
pub(crate) mod bulk;
pub(crate) mod child;
pub(crate) mod directory;
pub(crate) mod error_chain;
pub mod event;
pub(crate) mod flusher;
pub(crate) mod fs;
#[cfg(test)]
pub(crate) mod hostile;
pub(crate) mod json;
#[cfg(feature = "net")]
pub(crate) mod memory;
pub(crate) mod output_file;
pub(crate) mod own_file;
pub mod ownership;
pub mod path;
pub(crate) mod pipeline;
pub mod source_url;
pub(crate) mod temporary_file;
pub mod text;
pub mod title;
pub mod units;
