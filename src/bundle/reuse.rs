//! [`ReusableBundle`]: an older or partial bundle, from which unchanged blobs are copied.
//!
//! A large blob has its own frames. If it was packed with the same options, its frames are identical and are
//! copied without compression. This is verified for each frame: the output of two compression levels or zstd
//! versions can be identical for some frames of a blob and different for others.

use std::collections::HashMap;
use std::io::{BufReader, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use crate::base::buffer::{Buffer, Buffers};
use crate::base::fs::FsError;
use crate::bundle::format::layout::{Blob, Layout, tar_header};
use crate::bundle::format::{BLOCK, FRAME_SIZE, INDEX_JSON, OCI_LAYOUT, frame, padded, seek_table};
use crate::bundle::read::discover;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::frame_reader::{self, DataFrame, Frame, FrameReader};
use crate::bundle::read::reader::BundleReader;
use crate::bundle::read::volume_set::VolumeSet;
use crate::bundle::write::parts::parts;
use crate::bundle::write::writer::BundleWriter;
use crate::oci::digest::{Digest, Hasher};
use crate::signature::policy::Policy;

/// Number of frames that are decoded at the same time, which limits the memory.
const BATCH: usize = 8;

/// A bundle to copy blobs from; see the module.
pub(crate) struct ReusableBundle {
    path: PathBuf,
    volumes: VolumeSet,
    frames: Vec<FrameLocation>,
    blobs: HashMap<Digest, BlobLocation>,
    /// The content of all manifests. Empty for a partial bundle.
    manifests: HashMap<Digest, Vec<u8>>,
}

/// The content of a blob in the tar stream.
#[derive(Clone, Copy)]
struct BlobLocation {
    start: u64,
    size: u64,
}

#[derive(Clone, Copy)]
struct FrameLocation {
    /// Offset in the bundle.
    offset: u64,
    /// Length in the bundle, in bytes.
    compressed: usize,
    /// Offset of the content in the tar stream.
    start: u64,
    /// Length of the content in bytes.
    content: usize,
}

/// A frame that is read for a copy.
struct ReadFrame {
    compressed: Vec<u8>,
    content: Buffer,
    /// True if the writer would compress the content to the same frame.
    is_identical: bool,
}

impl ReusableBundle {
    /// Opens a complete bundle.
    pub(crate) fn open(path: &Path, policy: &Policy) -> Result<Self, ReadError> {
        let mut reader = BundleReader::open(path, policy)?;
        let contents = reader.contents()?;
        drop(reader);
        Ok(Self::with_contents(
            path,
            discover::find(&[path.to_owned()])?,
            &contents.layout,
            contents.manifests,
        )?)
    }

    /// Opens a complete bundle whose documents are read already.
    pub(crate) fn with_contents(
        path: &Path,
        volumes: VolumeSet,
        layout: &Layout,
        manifests: HashMap<Digest, Vec<u8>>,
    ) -> Result<Self, FsError> {
        let mut bundle = Self::new(path, volumes);
        let table = seek_table::read(&mut bundle.volumes.reader(0)).map_err(FsError::at("read", path))?;
        bundle.frames = match table {
            Some(table) => frames_from_table(&table),
            None => bundle.scan(|_, _| {}),
        };
        for entry in layout.entries() {
            if let Some(digest) = entry.digest {
                let location = BlobLocation { start: entry.offset + BLOCK as u64, size: entry.size };
                bundle.blobs.insert(digest, location);
            }
        }
        bundle.manifests = manifests;
        Ok(bundle)
    }

    /// Opens the partial bundle of an interrupted run. It has all complete blobs whose tar headers are
    /// written.
    pub(crate) fn open_partial(path: &Path) -> Result<Self, FsError> {
        let mut bundle = Self::new(path, VolumeSet::parts(&parts(path))?);
        let mut headers = HeaderScan::default();
        bundle.frames = bundle.scan(|frame, data| headers.frame(frame, data));
        let end = bundle.frames.last().map_or(0, FrameLocation::end);
        bundle.blobs = headers.blobs;
        bundle.blobs.retain(|_, blob| blob.end() <= end);
        Ok(bundle)
    }

    fn new(path: &Path, volumes: VolumeSet) -> Self {
        Self {
            path: path.to_owned(),
            volumes,
            frames: Vec::new(),
            blobs: HashMap::new(),
            manifests: HashMap::new(),
        }
    }

    /// Path of the bundle.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Changes the path after the bundle was renamed.
    pub(crate) fn set_path(&mut self, path: &Path) {
        path.clone_into(&mut self.path);
    }

    /// True if the bundle has the blob with this size.
    #[must_use]
    pub(crate) fn has(&self, blob: Blob) -> bool {
        self.blobs.get(&blob.digest).is_some_and(|location| location.size == blob.size)
    }

    /// Returns the manifests that the bundle has. Empty for a partial bundle.
    #[must_use]
    pub(crate) fn manifests(&self) -> &HashMap<Digest, Vec<u8>> {
        &self.manifests
    }

    /// Returns the content of a blob, which fits in memory. `None`: the bundle lacks it, or it is corrupt there.
    #[must_use]
    pub(crate) fn read_blob(&self, blob: Blob) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        self.read_parts(blob, |part| content.extend_from_slice(part)).then_some(content)
    }

    /// Passes the content of a blob to `accept` in parts. False: the bundle lacks it, or it is corrupt there.
    pub(crate) fn read_parts(&self, blob: Blob, mut accept: impl FnMut(&[u8])) -> bool {
        if !self.has(blob) {
            return false;
        }
        let location = self.blobs[&blob.digest];
        let (mut hasher, buffers) = (Hasher::new(), frame_reader::buffers());
        for frame in self.frames_of(location) {
            let Some((_, content)) = self.decode(*frame, &buffers) else { return false };
            let part = &content[frame.part_of(location)];
            hasher.update(part);
            accept(part);
        }
        hasher.finish() == blob.digest
    }

    /// True if a writer that compresses at `level` makes the same frames: those that compress best, which differ most.
    /// Corrupt frames do not count.
    #[must_use]
    pub(crate) fn is_compressed_at(&self, level: i32) -> bool {
        const SAMPLES: usize = 4;
        // The frames of tar headers are not compressed.
        let mut frames: Vec<_> = self.frames.iter().filter(|frame| frame.content > BLOCK).collect();
        frames.sort_by_key(|frame| frame.compressed * 1000 / frame.content);
        let buffers = frame_reader::buffers();
        frames.iter().take(SAMPLES).all(|frame| {
            let decoded = self.decode(**frame, &buffers);
            decoded.is_none_or(|(compressed, content)| frame::encode(&content, level) == compressed)
        })
    }

    /// Returns the files of the bundle.
    #[must_use]
    pub(crate) fn volumes(&self) -> &VolumeSet {
        &self.volumes
    }

    /// Returns the total size of the blobs that none of `others` has, in bytes.
    #[must_use]
    pub(crate) fn unique_bytes(&self, others: &[&Self]) -> u64 {
        let is_unique = |digest| !others.iter().any(|other| other.blobs.contains_key(digest));
        self.blobs.iter().filter(|(digest, _)| is_unique(*digest)).map(|(_, location)| location.size).sum()
    }

    /// Copies `blob`, which this bundle [has](Self::has), to `writer`, which compresses at `level`, and adds its
    /// content to `copy`.
    ///
    /// Returns false, without a change to the output, if the blob is corrupt in this bundle.
    pub(crate) fn copy(
        &self,
        blob: Blob,
        level: i32,
        writer: &mut BundleWriter,
        mut copy: Option<&mut Vec<u8>>,
    ) -> Result<bool, FsError> {
        let location = self.blobs[&blob.digest];
        let (mut hasher, buffers) = (Hasher::new(), frame_reader::buffers());
        let read = |frame: FrameLocation| self.read(frame, level, &buffers);
        writer.begin_blob(Some((blob.digest, blob.size)));
        for batch in self.frames_of(location).chunks(BATCH) {
            let frames: Vec<_> = batch.to_vec().into_par_iter().map(read).collect();
            for (frame, read) in batch.iter().zip(frames) {
                let Some(read) = read else {
                    writer.discard_blob()?;
                    return Ok(false);
                };
                let part = &read.content[frame.part_of(location)];
                hasher.update(part);
                if let Some(copy) = &mut copy {
                    copy.extend_from_slice(part);
                }
                if read.is_identical && part.len() == FRAME_SIZE && writer.is_at_frame() {
                    writer.write_frame(read.compressed, FRAME_SIZE)?;
                } else {
                    writer.write(part)?;
                }
            }
        }
        if hasher.finish() != blob.digest {
            writer.discard_blob()?;
            return Ok(false);
        }
        writer.end_blob(blob.digest)?;
        Ok(true)
    }

    /// Returns the frames that contain a part of the blob.
    fn frames_of(&self, blob: BlobLocation) -> &[FrameLocation] {
        let first = self.frames.partition_point(|frame| frame.end() <= blob.start);
        let last = self.frames.partition_point(|frame| frame.start < blob.end());
        self.frames.get(first..last).unwrap_or_default()
    }

    /// Returns `None` if the frame is corrupt.
    fn read(&self, frame: FrameLocation, level: i32, buffers: &Buffers) -> Option<ReadFrame> {
        let (compressed, content) = self.decode(frame, buffers)?;
        let is_identical = content.len() == FRAME_SIZE && frame::encode(&content, level) == compressed;
        Some(ReadFrame { compressed, content, is_identical })
    }

    /// Returns the bytes of a frame and its content. `None`: it is corrupt.
    fn decode(&self, frame: FrameLocation, buffers: &Buffers) -> Option<(Vec<u8>, Buffer)> {
        let mut compressed = vec![0; frame.compressed];
        self.volumes.reader(frame.offset).read_exact(&mut compressed).ok()?;
        let mut frames = FrameReader::new(compressed.as_slice(), 0, buffers);
        let Ok(Some(Frame::Data(data))) = frames.next_frame() else { return None };
        let is_one_frame = frames.offset() == compressed.len() as u64;
        let content = data.decode(buffers).ok()?;
        (is_one_frame && content.len() == frame.content).then_some((compressed, content))
    }

    /// Reads all frames in order, up to the first corrupt one, and calls `inspect` for each data frame.
    fn scan(&self, mut inspect: impl FnMut(FrameLocation, DataFrame)) -> Vec<FrameLocation> {
        let input = BufReader::new(self.volumes.reader(0));
        let mut reader = FrameReader::new(input, 0, &frame_reader::buffers());
        let (mut frames, mut start) = (Vec::new(), 0);
        loop {
            let offset = reader.offset();
            let Ok(Some(read)) = reader.next_frame() else { return frames };
            let content = read.content_size();
            if let Frame::Data(data) = read {
                let compressed = usize::try_from(reader.offset() - offset).expect("a frame is small");
                let frame = FrameLocation { offset, compressed, start, content };
                inspect(frame, data);
                frames.push(frame);
                start += content as u64;
            }
        }
    }
}

impl BlobLocation {
    fn end(&self) -> u64 {
        self.start + self.size
    }
}

impl FrameLocation {
    /// Returns the end of the content in the tar stream.
    fn end(&self) -> u64 {
        self.start + self.content as u64
    }

    /// Returns the range of the frame's content that belongs to the blob.
    fn part_of(&self, blob: BlobLocation) -> Range<usize> {
        let in_frame = |position: u64| {
            let offset = position.saturating_sub(self.start).min(self.content as u64);
            usize::try_from(offset).expect("at most the length of a frame")
        };
        in_frame(blob.start)..in_frame(blob.end())
    }
}

fn frames_from_table(table: &[seek_table::FrameEntry]) -> Vec<FrameLocation> {
    let (mut offset, mut start, mut frames) = (0, 0, Vec::new());
    for entry in table {
        let (compressed, content) = (entry.compressed as usize, entry.decompressed as usize);
        // Limits the memory. Frames at incorrect positions fail to decode.
        if content > 0 && content <= FRAME_SIZE && compressed <= frame::stored_len(FRAME_SIZE) {
            frames.push(FrameLocation { offset, compressed, start, content });
        }
        offset += u64::from(entry.compressed);
        start += u64::from(entry.decompressed);
    }
    frames
}

/// Finds the tar headers in consecutive frames. Decodes only frames that can contain a header.
#[derive(Default)]
struct HeaderScan {
    blobs: HashMap<Digest, BlobLocation>,
    /// Position in the tar stream up to which there is no further header.
    next: u64,
    /// True if `next` is inside a large entry whose header is not written yet, so that its end is unknown.
    is_in_late_entry: bool,
}

impl HeaderScan {
    fn frame(&mut self, frame: FrameLocation, data: DataFrame) {
        let end = frame.end();
        if self.is_in_late_entry && frame.content == FRAME_SIZE {
            self.next = end;
        }
        if end <= self.next {
            return;
        }
        let Ok(content) = data.decode(&frame_reader::buffers()) else {
            self.next = end;
            return;
        };
        while self.next < end {
            let offset = usize::try_from(self.next - frame.start).expect("inside a frame");
            let Some(header) = content.get(offset..offset + BLOCK) else { return };
            let Some((digest, size)) = parse_header(header) else {
                self.is_in_late_entry = !self.is_in_late_entry && frame.content == BLOCK;
                self.next = end;
                return;
            };
            self.is_in_late_entry = false;
            let start = self.next + BLOCK as u64;
            if let Some(digest) = digest {
                self.blobs.insert(digest, BlobLocation { start, size });
            }
            self.next = start + padded(size);
        }
    }
}

/// Returns the digest and the size of an entry; the digest is `None` for `oci-layout` and `index.json`.
/// Returns `None` if the header is not exactly as the format requires.
fn parse_header(bytes: &[u8]) -> Option<(Option<Digest>, u64)> {
    let size = tar::Header::from_byte_slice(bytes).entry_size().ok()?;
    let name = std::str::from_utf8(&bytes[..100]).ok()?.trim_end_matches('\0');
    let digest = match name {
        OCI_LAYOUT | INDEX_JSON => None,
        _ => Some(Digest::from_hex(name.strip_prefix("blobs/sha256/")?).ok()?),
    };
    (bytes == tar_header(name, size)).then_some((digest, size))
}
