//! The parts of the bundle format, without any I/O policy.

pub mod frame;
pub mod index;
pub mod label;
pub mod layout;
pub mod seek_table;
pub mod skippable;
pub(crate) mod volume_name;

/// The version of the format that this program writes; a reader takes any minor of a major that it knows.
pub const FORMAT: (u32, u32) = (1, 1);

/// The version that `index.json` states where it says nothing that 1.0 had no word for, so that the same content has the
/// same identity as ever, with a signature and without one.
pub const DOCUMENTS: (u32, u32) = (1, 0);

/// The version that it states otherwise: if the bundle is a delta, or says what its lock needs.
pub const NEWER_DOCUMENTS: (u32, u32) = (1, 1);

/// The most bytes of the tar stream that one zstd frame holds, 4 MiB ("Frames").
pub const FRAME_SIZE: usize = 4 << 20;

/// The size of a tar block: headers are one, contents are padded to a multiple of it.
pub const BLOCK: usize = 512;

/// The most blobs that one bundle may name.
pub const BLOB_LIMIT: usize = 1 << 20;

/// The largest `index.json` that is read, in bytes.
pub const INDEX_LIMIT: u64 = 64 << 20;

/// The most bytes that all manifests of a bundle may have together; a reader holds them in memory.
pub const MANIFESTS_LIMIT: u64 = 64 << 20;

/// How often the images of a bundle may name a manifest, a config or a layer, all of them together: what many
/// images share is counted for each of them.
pub const NAMED_LIMIT: usize = 1 << 20;

/// How many bytes are kept for a signature behind the head, those of its frame included ("The signature").
pub const SIGNATURE_ROOM: u64 = 1 << 10;

/// The name of the first entry.
pub const OCI_LAYOUT: &str = "oci-layout";

/// The content of the first entry (OCI image-layout, "oci-layout file").
pub const OCI_LAYOUT_CONTENT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The name of the second entry.
pub const INDEX_JSON: &str = "index.json";

/// `size` rounded up to whole tar blocks.
#[must_use]
pub const fn padded(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64)
}
