//! The documents that users write or keep: lists, locks and inventories.

pub(crate) mod inventory;
#[cfg(feature = "net")]
pub mod list;
pub(crate) mod lock;
#[cfg(feature = "net")]
pub(crate) mod request_url;
