//! Carry files and container images into an air-gapped site.
//!
//! The modules stand on floors; a file uses only what stands below it. `README.md` has the list.

pub mod bundle;
pub mod cat;
pub mod cli;
pub mod conf;
pub mod digest;
pub mod engine;
pub mod event;
#[cfg(feature = "net")]
pub mod fetch;
pub mod fs;
pub mod image;
pub mod inventory;
#[cfg(feature = "net")]
pub mod kubespray;
#[cfg(feature = "net")]
pub mod list;
pub mod load;
pub mod lock;
pub mod manifest;
#[cfg(feature = "net")]
pub mod pack;
pub mod path;
pub mod platform;
pub mod prune;
pub mod reference;
#[cfg(feature = "net")]
pub mod relock;
pub mod repair;
pub mod sbom;
pub mod signature;
#[cfg(feature = "net")]
pub mod signing;
pub mod site;
pub mod stock;
pub mod unpack;
pub mod verify;
