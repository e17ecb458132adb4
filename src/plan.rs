//! The write plan: which blobs a bundle holds, in which order, and where each one comes from.

pub(crate) mod base;
pub(crate) mod bundle_plan;
