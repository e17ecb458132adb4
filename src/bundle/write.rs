//! Writing a bundle: the archive, its volumes, and the state that lets an interrupted run resume.

pub mod accepted;
pub mod claim;
pub(crate) mod frames;
pub mod head;
pub(crate) mod manifest_cache;
pub(crate) mod partial;
pub(crate) mod parts;
pub(crate) mod spool;
pub(crate) mod sums;
pub mod volume_writer;
pub mod writer;
