//! The OCI specifications' vocabulary: digests, references, platforms and manifests.

pub mod digest;
pub mod manifest;
pub mod platform;
pub mod reference;
