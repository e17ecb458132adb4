//! What a bundle becomes on the host: a tree of files and the storage of a registry.

pub mod catalogue;
pub(crate) mod check;
pub(crate) mod commit;
pub(crate) mod locator;
pub mod record;
pub(crate) mod root;
pub(crate) mod scan;
pub(crate) mod storage;
