//! The bundle format: constants, limits, and encoding and decoding of its parts, without I/O.

pub(crate) mod annotations;
pub mod frame;
pub mod index;
pub mod label;
pub mod layout;
pub mod manifest_walk;
pub mod release;
pub mod seek_table;
pub mod skippable;
pub(crate) mod volume_name;

/// Format version that this program writes. A reader accepts all minor versions of a supported major version.
pub const FORMAT: (u32, u32) = (1, 3);

/// Format version in `index.json` if it uses features of 1.0 only. The same content then keeps the identity
/// that version 1.0 gave it, with or without a signature.
pub const DOCUMENTS: (u32, u32) = (1, 0);

/// Format version in `index.json` if the bundle is a delta, or has annotations for the lock.
pub const NEWER_DOCUMENTS: (u32, u32) = (1, 1);

/// Format version in `index.json` if the bundle has a name and a sequence number, or an expiry date.
pub const RELEASE_DOCUMENTS: (u32, u32) = (1, 2);

/// Version of documents with an image that has a tag and a digest, whose name for containerd has no tag.
pub const NAMES_DOCUMENTS: (u32, u32) = (1, 3);

/// Maximum content of a zstd frame: 4 MiB of the tar stream ("Frames").
pub const FRAME_SIZE: usize = 4 << 20;

/// Size of a tar block in bytes. A header is one block, and content is padded to a multiple of it.
pub const BLOCK: usize = 512;

/// Maximum number of blobs that a bundle references.
pub const BLOB_LIMIT: usize = 1 << 20;

/// Maximum size of `index.json` in bytes.
pub const INDEX_LIMIT: u64 = 64 << 20;

/// Maximum total size of the manifests of a bundle in bytes. A reader holds them in memory.
pub const MANIFESTS_LIMIT: u64 = 64 << 20;

/// Maximum number of references from all images to manifests, configs and layers. Shared blobs count once per
/// image.
pub const NAMED_LIMIT: usize = 1 << 20;

/// Bytes reserved for the signature after the head, including its frame header ("The signature").
pub const SIGNATURE_SPACE: u64 = 1 << 10;

/// Name of the first entry.
pub const OCI_LAYOUT: &str = "oci-layout";

/// Content of the first entry (OCI image-layout, "oci-layout file").
pub const OCI_LAYOUT_CONTENT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Name of the second entry.
pub const INDEX_JSON: &str = "index.json";

/// Returns `size` rounded up to a multiple of [`BLOCK`].
#[must_use]
pub const fn padded(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64)
}
