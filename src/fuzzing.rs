//! The fuzz targets: one function per parser and reader, which asserts laws and returns nothing.
//!
//! The module exists only for `cargo fuzz` (`cfg(fuzzing)`) and for unit tests, which replay `fuzz/corpus`. A panic is
//! a finding. `fuzz/fuzz_targets` has one program per function, and `scripts/fuzz` runs them.

mod bundle;
mod credentials;
mod documents;
mod format;
mod input;
mod kubespray;
mod laws;
mod recovery;
mod responses;
mod signature;

pub use crate::fuzzing::bundle::bundle;
pub use crate::fuzzing::credentials::credentials;
pub use crate::fuzzing::documents::{list, lock, record, reference, settings};
pub use crate::fuzzing::format::{frames, index, manifest, seek_table};
pub use crate::fuzzing::kubespray::{template, yaml};
pub use crate::fuzzing::recovery::recovery;
pub use crate::fuzzing::responses::{challenge, link};
pub use crate::fuzzing::signature::signature;

#[cfg(test)]
mod tests;
