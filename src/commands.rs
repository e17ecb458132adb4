//! The verbs of both programs as library calls that emit events.

pub mod cat;
pub mod image;
pub mod images;
pub mod inventory;
#[cfg(feature = "net")]
pub mod lists;
#[cfg(feature = "net")]
pub mod lock;
#[cfg(feature = "net")]
pub mod pack;
pub mod prune;
pub mod repair;
pub mod sbom;
pub mod site;
pub mod unpack;
pub mod verify;
