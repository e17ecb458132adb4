//! The documents that users write or keep: lists, locks and inventories.

pub(crate) mod inventory;
pub mod list;
pub(crate) mod lock;
pub(crate) mod request_url;
