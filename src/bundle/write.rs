//! Writing a bundle: the archive, its volumes, and what lets an interrupted run resume.

pub mod claim;
pub mod frames;
pub mod partial;
pub mod parts;
pub mod spool;
pub mod volume_writer;
pub mod writer;
