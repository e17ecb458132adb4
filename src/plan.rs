//! The write plan: the blobs of a bundle, their order, and the source of each.

pub(crate) mod bundle_plan;
pub(crate) mod contradictions;
pub(crate) mod site_contents;
pub(crate) mod tags;
