//! [`ReusableBundle`]: an older bundle, or what is left of one, as a place where blobs are taken from that did not change.
//!
//! A blob that is large enough has frames of its own, and the same blob packed in the same way has the same ones: they
//! are copied as they stand. That they are what this program would write itself is looked at with each of them: what
//! two levels or versions of zstd make of a blob is the same in some frames, and in others it is not.

use std::collections::HashMap;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use crate::base::buffer::{Buffer, Buffers};
use crate::base::fs::FsError;
use crate::bundle::format::layout::{Blob, tar_header};
use crate::bundle::format::{BLOCK, FRAME_SIZE, INDEX_JSON, OCI_LAYOUT, frame, padded, seek_table};
use crate::bundle::read::discover;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::frame_reader::{self, DataFrame, Frame, FrameReader};
use crate::bundle::read::reader::BundleReader;
use crate::bundle::read::volume_set::VolumeSet;
use crate::bundle::write::parts::parts;
use crate::bundle::write::writer::BundleWriter;
use crate::oci::digest::{Digest, Hasher};

/// How many frames are decoded at once: a bound for the memory.
const BATCH: usize = 8;

/// The place; see the module.
pub(crate) struct ReusableBundle {
    path: PathBuf,
    medium: VolumeSet,
    frames: Vec<ReusableFrame>,
    /// Where the content of each blob begins in the tar stream.
    blobs: HashMap<Digest, FrameRun>,
}

#[derive(Clone, Copy)]
struct FrameRun {
    start: u64,
    size: u64,
}

#[derive(Clone, Copy)]
struct ReusableFrame {
    /// Where it is in the file, and how long.
    offset: u64,
    compressed: usize,
    /// Where what it holds is in the tar stream, and how long that is.
    start: u64,
    content: usize,
}

impl ReusableBundle {
    /// Opens the bundle `path`.
    pub(crate) fn bundle(path: &Path) -> Result<Self, ReadError> {
        let mut reader = BundleReader::open(path)?;
        let contents = reader.contents()?;
        drop(reader);
        let mut old = Self::new(path, discover::find(&[path.to_owned()])?);
        let table = seek_table::read(&mut old.medium.reader(0)).map_err(FsError::at("read", path))?;
        old.frames = match table {
            Some(table) => by_table(&table),
            None => old.scan(|_, _| {}).map_err(FsError::at("read", path))?,
        };
        for entry in contents.layout.entries() {
            if let Some(digest) = entry.digest {
                old.blobs.insert(digest, FrameRun { start: entry.offset + BLOCK as u64, size: entry.size });
            }
        }
        Ok(old)
    }

    /// Opens what an interrupted run has left at `path`: all whole blobs whose tar headers are there.
    pub(crate) fn partial(path: &Path) -> Result<Self, FsError> {
        let mut old = Self::new(path, VolumeSet::parts(&parts(path))?);
        let mut headers = Headers::default();
        let frames = old.scan(|frame, data| headers.frame(frame, data)).map_err(FsError::at("read", path))?;
        let end = frames.last().map_or(0, |frame| frame.start + frame.content as u64);
        old.frames = frames;
        old.blobs = headers.blobs;
        old.blobs.retain(|_, place| place.start + place.size <= end);
        Ok(old)
    }

    fn new(path: &Path, medium: VolumeSet) -> Self {
        Self { path: path.to_owned(), medium, frames: Vec::new(), blobs: HashMap::new() }
    }

    /// Whether it has this blob.
    #[must_use]
    pub(crate) fn has(&self, blob: Blob) -> bool {
        self.blobs.get(&blob.digest).is_some_and(|place| place.size == blob.size)
    }

    /// How many bytes of blobs it has that none of `others` has.
    #[must_use]
    pub(crate) fn bytes_beside(&self, others: &[&Self]) -> u64 {
        let alone = self
            .blobs
            .iter()
            .filter(|(digest, _)| !others.iter().any(|other| other.blobs.contains_key(digest)));
        alone.map(|(_, place)| place.size).sum()
    }

    /// It has another name now.
    pub(crate) fn renamed(&mut self, path: &Path) {
        path.clone_into(&mut self.path);
    }

    /// Writes `blob` as the next one of `writer`, which compresses at `level`. Says whether it did: where the blob
    /// turns out to be damaged, nothing is written.
    pub(crate) fn copy(&self, blob: Blob, level: i32, writer: &mut BundleWriter) -> Result<bool, FsError> {
        let place = self.blobs[&blob.digest];
        let end = place.start + place.size;
        let first = self.frames.partition_point(|frame| frame.start + frame.content as u64 <= place.start);
        let last = self.frames.partition_point(|frame| frame.start < end);
        let frames = self.frames.get(first..last).unwrap_or_default();
        let (mut hasher, buffers) = (Hasher::new(), frame_reader::buffers());
        let read = |frame: ReusableFrame| {
            let (bytes, content) = self.read(frame, &buffers)?;
            let is_ours = content.len() == FRAME_SIZE && frame::encode(&content, level) == bytes;
            Some((is_ours, bytes, content))
        };
        writer.begin(Some((blob.digest, blob.size)));
        for batch in frames.chunks(BATCH) {
            let read: Vec<_> = batch.to_vec().into_par_iter().map(read).collect();
            for (frame, read) in batch.iter().zip(read) {
                let Some((is_ours, bytes, content)) = read else {
                    writer.take_back()?;
                    return Ok(false);
                };
                let from = usize::try_from(place.start.saturating_sub(frame.start)).expect("inside a frame");
                let to =
                    usize::try_from((end - frame.start).min(frame.content as u64)).expect("inside a frame");
                let part = &content[from.min(to)..to];
                hasher.update(part);
                if is_ours && part.len() == FRAME_SIZE && writer.is_at_frame() {
                    writer.write_frame(bytes, FRAME_SIZE)?;
                } else {
                    writer.write(part)?;
                }
            }
        }
        if hasher.finish() != blob.digest {
            writer.take_back()?;
            return Ok(false);
        }
        writer.end(blob.digest)?;
        Ok(true)
    }

    /// A frame and what it decodes to; nothing if it is damaged.
    fn read(&self, frame: ReusableFrame, buffers: &Buffers) -> Option<(Vec<u8>, Buffer)> {
        let mut bytes = vec![0; frame.compressed];
        self.medium.reader(frame.offset).read_exact(&mut bytes).ok()?;
        let mut frames = FrameReader::new(bytes.as_slice(), 0, buffers);
        let Ok(Some(Frame::Data(data))) = frames.next_frame() else { return None };
        let is_whole = frames.offset() == bytes.len() as u64;
        let content = data.decode(buffers).ok()?;
        (is_whole && content.len() == frame.content).then_some((bytes, content))
    }

    /// All frames, one after the other; `look` at each.
    fn scan(&self, mut look: impl FnMut(ReusableFrame, DataFrame)) -> std::io::Result<Vec<ReusableFrame>> {
        let mut reader = FrameReader::new(BufReader::new(self.medium.reader(0)), 0, &frame_reader::buffers());
        let (mut frames, mut start) = (Vec::new(), 0);
        loop {
            let offset = reader.offset();
            let Ok(Some(read)) = reader.next_frame() else { return Ok(frames) };
            let content = read.content_size();
            if let Frame::Data(data) = read {
                let compressed = usize::try_from(reader.offset() - offset).expect("a frame is small");
                let frame = ReusableFrame { offset, compressed, start, content };
                look(frame, data);
                frames.push(frame);
                start += content as u64;
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn by_table(table: &[seek_table::FrameEntry]) -> Vec<ReusableFrame> {
    let (mut offset, mut start, mut frames) = (0, 0, Vec::new());
    for entry in table {
        let (compressed, content) = (entry.compressed as usize, entry.decompressed as usize);
        // What the table cannot be trusted with does not decode; this is for the memory.
        if content > 0 && content <= FRAME_SIZE && compressed <= frame::stored_len(FRAME_SIZE) {
            frames.push(ReusableFrame { offset, compressed, start, content });
        }
        offset += u64::from(entry.compressed);
        start += u64::from(entry.decompressed);
    }
    frames
}

/// Finds the tar headers in a run of frames, without decoding those that hold none.
#[derive(Default)]
struct Headers {
    blobs: HashMap<Digest, FrameRun>,
    /// Up to where no header can be.
    next: u64,
    /// Whether there is a large entry before `next` whose header is still to be written, so that nobody can say
    /// where it ends.
    is_late: bool,
}

impl Headers {
    fn frame(&mut self, frame: ReusableFrame, data: DataFrame) {
        let end = frame.start + frame.content as u64;
        if self.is_late && frame.content == FRAME_SIZE {
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
            let at = usize::try_from(self.next - frame.start).expect("inside a frame");
            let Some(header) = content.get(at..at + BLOCK) else { return };
            let Some((digest, size)) = parse(header) else {
                self.is_late = !self.is_late && frame.content == BLOCK;
                self.next = end;
                return;
            };
            self.is_late = false;
            let start = self.next + BLOCK as u64;
            if let Some(digest) = digest {
                self.blobs.insert(digest, FrameRun { start, size });
            }
            self.next = start + padded(size);
        }
    }
}

/// The blob of a tar header, if it is one, and the size of the entry.
fn parse(bytes: &[u8]) -> Option<(Option<Digest>, u64)> {
    let size = tar::Header::from_byte_slice(bytes).entry_size().ok()?;
    let name = std::str::from_utf8(&bytes[..100]).ok()?.trim_end_matches('\0');
    let digest = match name {
        OCI_LAYOUT | INDEX_JSON => None,
        _ => Some(Digest::from_hex(name.strip_prefix("blobs/sha256/")?).ok()?),
    };
    (bytes == tar_header(name, size)).then_some((digest, size))
}
