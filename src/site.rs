//! The contents of a site: a tree of files, the storage of a registry, and the record of both.

pub mod catalog;
pub(crate) mod check;
pub(crate) mod commit;
pub(crate) mod files;
pub(crate) mod locator;
pub(crate) mod named;
pub(crate) mod probe;
pub mod record;
pub(crate) mod root;
pub mod roots;
pub(crate) mod scan;
pub(crate) mod sequences;
pub mod signed_index;
pub(crate) mod storage;
pub mod verified;
