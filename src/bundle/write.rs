//! Writing a bundle: the archive, its volumes, and what lets an interrupted run resume.

pub mod partial;
pub mod spool;
pub mod volume_writer;
pub mod writer;
