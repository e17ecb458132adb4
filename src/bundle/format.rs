//! The parts of the bundle format, without any I/O policy.

pub mod index;
pub mod label;
pub mod layout;
pub mod seek_table;
