//! Types of the OCI specifications: digests, references, platforms and manifests.

pub mod digest;
pub mod manifest;
pub mod platform;
pub mod reference;
pub mod template;
