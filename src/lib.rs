//! Carry files and container images into an air-gapped site.
//!
//! The modules stand on floors; a file uses only what stands below it. `README.md` has the list.

pub mod digest;
