//! Packs files and container images into one bundle, and verifies, unpacks and serves it at an air-gapped
//! site.
//!
//! Each module belongs to a floor and imports from lower floors only. `docs/architecture.md` lists the
//! floors.

#![cfg_attr(
    not(feature = "net"),
    allow(
        dead_code,
        reason = "`unbundle` only reads bundles, but the code that writes them is compiled for it as well"
    )
)]

pub mod base;
pub mod bundle;
pub mod cli;
pub mod commands;
pub(crate) mod conf;
pub mod documents;
#[cfg(feature = "net")]
pub(crate) mod fetch;
#[cfg(all(feature = "net", any(fuzzing, test)))]
pub mod fuzzing;
#[cfg(feature = "net")]
pub(crate) mod net;
pub mod oci;
#[cfg(feature = "net")]
pub(crate) mod plan;
#[cfg(all(feature = "net", test))]
mod properties;
pub mod signature;
pub mod site;
