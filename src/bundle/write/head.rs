//! [`BundleHead`]: the documents at the start of a bundle, and the space that is reserved for them.

use crate::bundle::format::layout::{blob_name, tar_header};
use crate::bundle::format::seek_table::FrameEntry;
use crate::bundle::format::skippable::{self, PADDING_MAGIC, SIGNATURE_MAGIC};
use crate::bundle::format::{BLOCK, FRAME_SIZE, INDEX_JSON, OCI_LAYOUT, OCI_LAYOUT_CONTENT, frame};
use crate::oci::digest::Digest;

/// Size of an empty skippable frame, the smallest padding.
const MIN_PADDING: usize = 8;

/// The documents at the start of a bundle.
pub struct BundleHead {
    /// `index.json`.
    pub index: Vec<u8>,
    /// The manifest of the file set. `None`: no files.
    pub files: Option<Vec<u8>>,
    /// A signature of `index.json`. The reserved header space must include it.
    pub signature: Option<Vec<u8>>,
}

/// The head as it is written.
pub(crate) struct EncodedHead {
    /// All frames, exactly as long as the reserved header space.
    pub(crate) bytes: Vec<u8>,
    /// The sizes of the frames, for the seek table.
    pub(crate) frames: Vec<FrameEntry>,
}

impl BundleHead {
    /// Encodes the head at zstd's `level`, followed by the signature and the padding.
    ///
    /// # Panics
    ///
    /// If the head exceeds `header_space`.
    pub(crate) fn encode(&self, level: i32, header_space: u64) -> EncodedHead {
        let stream = self.tar_stream();
        let mut head = EncodedHead { bytes: Vec::new(), frames: Vec::new() };
        for content in stream.chunks(FRAME_SIZE) {
            head.push(&frame::encode(content, level), content.len());
        }
        if let Some(signature) = &self.signature {
            head.push(&skippable::encode(SIGNATURE_MAGIC, signature), 0);
        }
        let space = usize::try_from(header_space).expect("a head fits in memory");
        let left = space.checked_sub(head.bytes.len()).filter(|left| *left >= MIN_PADDING);
        let left = left.expect("`header_space` was computed from the same lists; please report");
        head.push(&padding(left), 0);
        head
    }

    fn tar_stream(&self) -> Vec<u8> {
        let mut stream = Vec::new();
        let files_name = self.files.as_deref().map(|files| blob_name(Digest::of(files)));
        let entries = [(OCI_LAYOUT, OCI_LAYOUT_CONTENT), (INDEX_JSON, &self.index)];
        let files = files_name.as_deref().zip(self.files.as_deref());
        for (name, content) in entries.into_iter().chain(files) {
            stream.extend_from_slice(&tar_header(name, content.len() as u64));
            stream.extend_from_slice(content);
            stream.resize(stream.len().next_multiple_of(BLOCK), 0);
        }
        stream
    }
}

impl EncodedHead {
    fn push(&mut self, frame: &[u8], decompressed: usize) {
        self.bytes.extend_from_slice(frame);
        self.frames.push(frame_entry(frame.len(), decompressed));
    }
}

/// Returns the reserved header space for documents of at most these sizes, without a signature, in bytes
/// (`bundle-format.md`, "Reserved header space").
#[must_use]
pub fn header_space(index: usize, files: Option<usize>) -> u64 {
    let entries = [OCI_LAYOUT_CONTENT.len(), index].into_iter().chain(files);
    let stream: usize = entries.map(|size| BLOCK + size.next_multiple_of(BLOCK)).sum();
    let frames = stream.div_ceil(FRAME_SIZE) * frame::stored_len(FRAME_SIZE).saturating_sub(FRAME_SIZE);
    (stream + frames + MIN_PADDING).next_multiple_of(BLOCK) as u64
}

/// Returns a padding frame of `len` bytes, including its header.
pub(crate) fn padding(len: usize) -> Vec<u8> {
    skippable::encode(PADDING_MAGIC, &vec![0; len - MIN_PADDING])
}

/// Returns the seek table entry of a frame. `decompressed` is 0 for a skippable frame.
pub(crate) fn frame_entry(compressed: usize, decompressed: usize) -> FrameEntry {
    FrameEntry {
        compressed: u32::try_from(compressed).expect("frames are small"),
        decompressed: u32::try_from(decompressed).expect("frames are small"),
    }
}
