//! The verbs of both programs as library calls that emit events.

pub(crate) mod cat;
pub(crate) mod image;
pub(crate) mod images;
pub(crate) mod inventory;
#[cfg(feature = "net")]
pub(crate) mod lists;
#[cfg(feature = "net")]
pub(crate) mod lock;
#[cfg(feature = "net")]
pub(crate) mod pack;
pub(crate) mod prune;
pub(crate) mod receive;
pub(crate) mod repair;
pub(crate) mod sbom;
pub mod site;
pub mod unpack;
pub mod verify;
