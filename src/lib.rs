//! Carries files and container images into an air-gapped site.
//!
//! Each module stands on a floor and uses only what is on lower floors; `docs/architecture.md` has the list.

#![cfg_attr(
    not(feature = "net"),
    allow(dead_code, reason = "what writes bundles is compiled for `unbundle`, too, which only reads them")
)]

pub mod base;
pub mod bundle;
pub mod cli;
pub mod commands;
pub(crate) mod conf;
pub mod documents;
#[cfg(feature = "net")]
pub(crate) mod fetch;
#[cfg(feature = "net")]
pub(crate) mod net;
pub mod oci;
#[cfg(feature = "net")]
pub(crate) mod plan;
pub(crate) mod signature;
pub mod site;
