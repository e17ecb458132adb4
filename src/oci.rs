//! Types of the OCI specifications: digests, references, platforms and manifests.

pub mod digest;
pub mod manifest;
pub mod media_type;
pub(crate) mod parsed_text;
pub mod platform;
pub mod reference;
pub mod repository;
pub mod template;
