//! Carries files and container images into an air-gapped site.
//!
//! Each module stands on a floor and uses only what is on lower floors; `docs/architecture.md` has the list.

pub mod base;
pub mod bundle;
pub mod cli;
pub mod commands;
pub mod conf;
pub mod documents;
#[cfg(feature = "net")]
pub mod fetch;
#[cfg(feature = "net")]
pub mod net;
pub mod oci;
#[cfg(feature = "net")]
pub mod plan;
pub mod signature;
pub mod site;
