//! The write plan: which blobs a bundle holds, in which order, and where each one comes from.

pub mod base;
pub mod bundle_plan;
