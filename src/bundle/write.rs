//! Writing a bundle: the archive, its volumes, and what lets an interrupted run resume.

pub mod claim;
pub(crate) mod frames;
pub(crate) mod partial;
pub(crate) mod parts;
pub(crate) mod spool;
pub mod volume_writer;
pub mod writer;
