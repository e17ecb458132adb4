//! What a bundle becomes on the host: a tree of files and the storage of a registry.

pub mod catalogue;
pub mod check;
pub mod commit;
pub mod locator;
pub mod record;
pub mod root;
pub mod scan;
pub mod storage;
