//! The documents that users write or keep: lists, locks and inventories.

pub mod inventory;
#[cfg(feature = "net")]
pub mod list;
pub mod lock;
