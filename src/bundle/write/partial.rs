//! [`read_partial`]: verifies the partial bundle of an earlier run, so that the writer can resume it.
//!
//! The partial bundle is untrusted: every frame is decoded and every blob is hashed. Everything from the
//! first mismatch on is dropped. So the cause of the interruption does not matter, and no journal can
//! contradict the bundle.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};
use sha2::{Digest as _, Sha512};

use crate::base::buffer::{Buffer, Buffers};
use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::own_file;
use crate::bundle::format::label::Label;
use crate::bundle::format::layout::{Blob, blob_name, tar_header};
use crate::bundle::format::skippable::VOLUME_MAGIC;
use crate::bundle::format::{BLOCK, FRAME_SIZE, padded};
use crate::bundle::read::frame_reader::{self, DataFrame, Frame, FrameReader};
use crate::bundle::write::frames::FrameRecord;
use crate::bundle::write::parts::{parts, size_of_parts};
use crate::bundle::write::writer::{LargeBlob, LateHeader, ResumePoint, SHARED_LIMIT};
use crate::oci::digest::{Digest, Hasher};

/// Number of frames that are decoded at the same time, which limits the memory.
const BATCH: usize = 8;

/// The bundle that a partial bundle must be the beginning of.
pub(crate) struct ExpectedBundle<'a> {
    /// `set` of the volume labels.
    pub set: Digest,
    /// Reserved header space in bytes.
    pub header_space: u64,
    /// All entries after the head, in order.
    pub entries: &'a [ExpectedEntry],
    /// Blobs without an entry. An unpinned file that turns out to be one of them has no entry either.
    pub external: &'a [Blob],
}

/// An entry of the expected bundle.
#[derive(Debug, Clone)]
pub(crate) struct ExpectedEntry {
    /// `None`: an unpinned file that was not downloaded completely.
    pub blob: Option<Blob>,
    /// True if digest or size were unknown at the start of the entry. If it is large, its header is written
    /// last.
    pub is_late: bool,
    /// True for manifests, which do not share frames with other blobs.
    pub is_manifest: bool,
    /// An additional SHA-512 that the content must have.
    pub sha512: Option<[u8; 64]>,
}

/// The valid beginning of a partial bundle.
#[derive(Default)]
pub(crate) struct PartialBundle {
    /// Number of complete entries.
    pub complete: usize,
    /// The next entry, if it is large and incomplete.
    pub open: Option<BlobPrefix>,
    /// The state of the writer.
    pub resume_point: ResumePoint,
}

/// The hash states of the beginning of a blob.
#[derive(Clone)]
pub(crate) struct BlobPrefix {
    /// Hash state; its length is the length of the beginning in bytes.
    pub sha256: Hasher,
    /// `None`: no SHA-512 is required.
    pub sha512: Option<Sha512>,
}

/// Reads the partial bundle at `path` up to the first difference from `expected`.
///
/// The compression of the frames is not verified: the caller knows whether an earlier run used the same
/// options.
pub(crate) fn read_partial(
    path: &Path,
    expected: &ExpectedBundle<'_>,
    report: &dyn Report,
) -> Result<PartialBundle, FsError> {
    let len = size_of_parts(path);
    if len <= expected.header_space {
        return Ok(PartialBundle::default());
    }
    let bytes = Some(len - expected.header_space);
    report.event(&Event::Stage { name: "verifying partial bundle", bytes, objects: None });
    report.event(&Event::Begin { id: 0, object: path.display().to_string(), bytes });
    let buffers = frame_reader::buffers();
    let mut frames = PartialFrames::new(path, expected, &buffers);
    let mut verifier = PartialVerifier::new(expected);
    'all: loop {
        let batch = frames.next_batch()?;
        if batch.is_empty() {
            break;
        }
        let bytes = batch.iter().map(|frame| frame.len).sum();
        let decode = |frame: PartialFrame| frame.decode(&buffers);
        for decoded in batch.into_par_iter().map(decode).collect::<Vec<_>>() {
            let Some((record, content)) = decoded else { break 'all };
            if !verifier.accept(record, &content) {
                break 'all;
            }
        }
        report.event(&Event::Progress { id: 0, bytes });
    }
    report.event(&Event::Done { id: 0 });
    let mut partial = verifier.finish();
    partial.resume_point.volume_starts = frames.volume_starts;
    Ok(partial)
}

/// A data frame of a partial bundle.
struct PartialFrame {
    /// Offset in the bundle.
    offset: u64,
    /// Length in the bundle, in bytes.
    len: u64,
    data: DataFrame,
}

impl PartialFrame {
    /// Returns `None` if the frame is corrupt.
    fn decode(self, buffers: &Buffers) -> Option<(FrameRecord, Buffer)> {
        let content = self.data.decode(buffers).ok()?;
        let compressed = usize::try_from(self.len).expect("a frame is small");
        let record = FrameRecord { offset: self.offset, compressed, decompressed: content.len() };
        Some((record, content))
    }
}

/// Reads the data frames after the head, across all volumes.
struct PartialFrames<'a> {
    parts: VecDeque<PathBuf>,
    set: Digest,
    header_space: u64,
    buffers: &'a Buffers,
    /// The current volume.
    reader: Option<FrameReader<BufReader<File>>>,
    /// Offsets in the bundle of the volumes so far.
    volume_starts: Vec<u64>,
}

impl<'a> PartialFrames<'a> {
    fn new(path: &Path, expected: &ExpectedBundle<'_>, buffers: &'a Buffers) -> Self {
        let ExpectedBundle { set, header_space, .. } = *expected;
        Self {
            parts: parts(path).into(),
            set,
            header_space,
            buffers,
            reader: None,
            volume_starts: Vec::new(),
        }
    }

    fn next_batch(&mut self) -> Result<Vec<PartialFrame>, FsError> {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let Some(frame) = self.next_frame()? else { break };
            batch.push(frame);
        }
        Ok(batch)
    }

    /// Returns the next data frame, or `None` at the end or at the first invalid frame.
    fn next_frame(&mut self) -> Result<Option<PartialFrame>, FsError> {
        loop {
            let Some(reader) = &mut self.reader else {
                let Some(path) = self.parts.pop_front() else { return Ok(None) };
                self.reader = self.open(&path).map_err(FsError::at("read", &path))?;
                if self.reader.is_none() {
                    self.parts.clear();
                }
                continue;
            };
            let offset = reader.offset();
            match reader.next_frame() {
                Ok(Some(Frame::Data(data))) => {
                    return Ok(Some(PartialFrame { offset, len: reader.offset() - offset, data }));
                }
                // The label of the first volume.
                Ok(Some(Frame::Skippable { magic: VOLUME_MAGIC, .. })) => {}
                // Recovery data: the volume is complete.
                Ok(None | Some(Frame::Skippable { .. })) => self.reader = None,
                Err(_) => {
                    self.parts.clear();
                    self.reader = None;
                }
            }
        }
    }

    /// Opens the next volume after its label. Returns `None` if the label is not the expected one.
    fn open(&mut self, path: &Path) -> io::Result<Option<FrameReader<BufReader<File>>>> {
        // Only what no other user could have written.
        let mut file = own_file::open_regular(path).map_err(|error| error.source)?;
        own_file::check(&file.metadata()?)?;
        let (mut start, mut first_frame) = (0, self.header_space);
        if !self.volume_starts.is_empty() {
            let mut reader = FrameReader::new(&mut file, 0, self.buffers);
            let Ok(Some(Frame::Skippable { magic: VOLUME_MAGIC, payload })) = reader.next_frame() else {
                return Ok(None);
            };
            first_frame = reader.offset();
            let number = self.volume_starts.len() + 1;
            let label = Label::parse(&payload);
            let label = label.filter(|label| label.set == self.set && label.number as usize == number);
            let Some(label) = label else { return Ok(None) };
            start = label.offset;
        }
        file.seek(SeekFrom::Start(first_frame))?;
        self.volume_starts.push(start);
        Ok(Some(FrameReader::new(BufReader::new(file), start + first_frame, self.buffers)))
    }
}

/// Compares decoded frames with the expected entries.
struct PartialVerifier<'a> {
    expected: &'a [ExpectedEntry],
    /// Number of complete entries.
    complete: usize,
    /// The complete and the external blobs. An unpinned file that turns out to be one of them has no entry.
    known: HashSet<Digest>,
    frames: Vec<FrameRecord>,
    late_headers: Vec<LateHeader>,
    /// The small entries of the last frame, if a large entry can follow it.
    small_entries: Option<Vec<u8>>,
    large: Option<OpenLargeBlob>,
    /// True if the previous entry is a large, late duplicate. If the earlier run was killed before it
    /// discarded the duplicate, the beginning of it is here and looks like the beginning of the next late
    /// entry.
    has_skipped_duplicate: bool,
}

/// A large entry that is incomplete so far.
struct OpenLargeBlob {
    frames: LargeBlob,
    prefix: BlobPrefix,
    /// `prefix` before the last frame, for an entry of unknown size.
    before_last_frame: Option<BlobPrefix>,
}

impl<'a> PartialVerifier<'a> {
    fn new(expected: &ExpectedBundle<'a>) -> Self {
        let mut verifier = Self {
            expected: expected.entries,
            complete: 0,
            known: expected.external.iter().map(|blob| blob.digest).collect(),
            frames: Vec::new(),
            late_headers: Vec::new(),
            small_entries: None,
            large: None,
            has_skipped_duplicate: false,
        };
        verifier.skip_duplicates();
        verifier
    }

    /// Verifies the next frame. Returns true if it is the expected one.
    fn accept(&mut self, record: FrameRecord, content: &[u8]) -> bool {
        let is_valid = match &self.large {
            Some(_) => self.accept_content(content),
            None if content.len() == BLOCK => {
                self.accept_large_header(content) || self.accept_small_entries(content)
            }
            None => self.accept_small_entries(content),
        };
        if is_valid {
            self.frames.push(record);
            self.skip_duplicates();
        }
        is_valid
    }

    /// Skips expected entries whose blobs are known already: the bundle does not have entries for them.
    fn skip_duplicates(&mut self) {
        while let Some(ExpectedEntry { blob: Some(blob), is_manifest: false, is_late, .. }) =
            self.expected.get(self.complete)
            && self.large.is_none()
            && self.known.contains(&blob.digest)
        {
            self.has_skipped_duplicate |= *is_late && is_large(*blob);
            self.complete += 1;
        }
    }

    /// Verifies the header of a large entry, which has its own frame.
    fn accept_large_header(&mut self, content: &[u8]) -> bool {
        let Some(expected) = self.expected.get(self.complete) else { return false };
        let is_zero = content.iter().all(|byte| *byte == 0);
        let is_valid = match expected.blob {
            None => is_zero && !self.has_skipped_duplicate,
            Some(blob) if !is_large(blob) => false,
            Some(blob) => expected.is_late && is_zero || *content == header_of(blob),
        };
        if is_valid {
            let header_frame = self.frames.len();
            let small_entries = self.small_entries.take();
            let frames = LargeBlob {
                first_frame: header_frame - usize::from(small_entries.is_some()),
                header_frame,
                small_entries: small_entries.unwrap_or_default(),
            };
            let sha512 = expected.sha512.map(|_| Sha512::new());
            let prefix = BlobPrefix { sha256: Hasher::new(), sha512 };
            self.large = Some(OpenLargeBlob { frames, prefix, before_last_frame: None });
        }
        is_valid
    }

    /// Verifies a content frame of a large entry.
    fn accept_content(&mut self, content: &[u8]) -> bool {
        let expected = &self.expected[self.complete];
        let large = self.large.as_mut().expect("the caller checked it");
        let Some(blob) = expected.blob else {
            if content.len() != FRAME_SIZE {
                return false;
            }
            large.before_last_frame = Some(large.prefix.clone());
            large.prefix.update(content);
            return true;
        };
        let left = blob.size - large.prefix.sha256.len();
        let frame_len = padded(left).min(FRAME_SIZE as u64);
        let (bytes, zeros) = content.split_at(content.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        if content.len() as u64 != frame_len || zeros.iter().any(|byte| *byte != 0) {
            return false;
        }
        let before = large.prefix.clone();
        large.prefix.update(bytes);
        if large.prefix.sha256.len() < blob.size {
            return true;
        }
        if !large.prefix.matches(blob.digest, expected.sha512) {
            large.prefix = before;
            return false;
        }
        if expected.is_late {
            let late = LateHeader { frame: large.frames.header_frame, header: header_of(blob) };
            self.late_headers.push(late);
        }
        self.large = None;
        self.known.insert(blob.digest);
        self.complete += 1;
        self.has_skipped_duplicate = false;
        true
    }

    /// Verifies a frame of small entries. All of them must be valid.
    fn accept_small_entries(&mut self, mut content: &[u8]) -> bool {
        let (mut complete, mut position, mut seen) = (self.complete, 0, Vec::new());
        let mut has_skipped_duplicate = self.has_skipped_duplicate;
        let is_manifest = self.expected.get(complete).is_some_and(|expected| expected.is_manifest);
        while position < content.len() {
            let Some(expected) = self.expected.get(complete) else {
                // The end of the archive follows the last entry.
                if content[position..] != [0; 2 * BLOCK] {
                    return false;
                }
                content = &content[..position];
                break;
            };
            let Some(blob) = expected.blob.filter(|blob| !is_large(*blob)) else { return false };
            if !expected.is_manifest && (self.known.contains(&blob.digest) || seen.contains(&blob.digest)) {
                complete += 1;
                continue;
            }
            has_skipped_duplicate = false;
            let Some(len) = small_entry_len(expected, blob, &content[position..]) else { return false };
            if expected.is_manifest != is_manifest {
                return false;
            }
            seen.push(blob.digest);
            position += len;
            complete += 1;
        }
        self.complete = complete;
        self.has_skipped_duplicate = has_skipped_duplicate;
        self.known.extend(seen);
        // Empty if the frame has only the end of the archive: then it follows all entries.
        self.small_entries = (!is_manifest).then(|| content.to_vec());
        true
    }

    fn finish(mut self) -> PartialBundle {
        // If even the manifests are incomplete, it is faster to start over.
        let is_in_manifests = self.expected.get(self.complete).is_some_and(|expected| expected.is_manifest);
        if is_in_manifests || self.frames.is_empty() {
            return PartialBundle::default();
        }
        // If the size is unknown, the last frame can be the end of the entry, including padding.
        if let Some(OpenLargeBlob { prefix, before_last_frame, .. }) = &mut self.large
            && let Some(before) = before_last_frame.take()
        {
            *prefix = before;
            self.frames.pop();
        }
        // The last shared frame can be incomplete: the writer fills it up.
        let small_entries = self.small_entries.take().filter(|_| self.large.is_none());
        if small_entries.is_some() {
            self.frames.pop();
        }
        let blob = self.large.as_ref().map(|large| (large.frames.clone(), large.prefix.sha256.len()));
        PartialBundle {
            complete: self.complete,
            open: self.large.map(|large| large.prefix),
            resume_point: ResumePoint {
                frames: self.frames,
                small_entries: small_entries.unwrap_or_default(),
                blob,
                late_headers: self.late_headers,
                volume_starts: Vec::new(),
            },
        }
    }
}

impl BlobPrefix {
    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(bytes);
        }
    }

    /// True if the bytes so far have these digests.
    fn matches(&self, sha256: Digest, sha512: Option<[u8; 64]>) -> bool {
        let actual = self.sha512.clone().map(Sha512::finalize);
        self.sha256.clone().finish() == sha256
            && sha512.is_none_or(|expected| actual.is_some_and(|actual| actual[..] == expected))
    }
}

/// True if the blob has its own frames.
fn is_large(blob: Blob) -> bool {
    blob.size > SHARED_LIMIT as u64
}

fn header_of(blob: Blob) -> [u8; BLOCK] {
    tar_header(&blob_name(blob.digest), blob.size)
}

/// Verifies the small entry at the start of `content`. Returns its length in the tar stream, `None` if it is
/// invalid.
fn small_entry_len(expected: &ExpectedEntry, blob: Blob, content: &[u8]) -> Option<usize> {
    let size = usize::try_from(blob.size).expect("at most SHARED_LIMIT");
    let len = BLOCK + size.next_multiple_of(BLOCK);
    let (header, bytes) = content.get(..len)?.split_at(BLOCK);
    let (bytes, zeros) = bytes.split_at(size);
    let is_valid = *header == header_of(blob)
        && zeros.iter().all(|byte| *byte == 0)
        && Digest::of(bytes) == blob.digest
        && expected.sha512.is_none_or(|sha512| sha512[..] == Sha512::digest(bytes)[..]);
    is_valid.then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::event::Silent;
    use crate::bundle::write::claim::Claim;
    use crate::bundle::write::frames::content_len;
    use crate::bundle::write::head::header_space;
    use crate::bundle::write::volume_writer::VolumeOptions;
    use crate::bundle::write::writer::{BundleWriter, WriteOptions};

    #[test]
    fn a_duplicate_that_was_not_discarded_is_not_the_beginning_of_the_next_unpinned_file() {
        let directory = tempfile::tempdir().unwrap();
        let header_space = header_space(100, None);
        let claim = Claim::new(&directory.path().join("x"), &Silent).unwrap();
        let partial = claim.partial.clone();
        let options = WriteOptions { header_space, level: 1, volumes: VolumeOptions::single_file() };
        let mut writer = BundleWriter::create(claim, options).unwrap();
        let bytes = vec![7; 12 * FRAME_SIZE + 5];
        let blob = Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 };
        writer.begin_blob(Some((blob.digest, blob.size)));
        writer.write(&bytes).unwrap();
        writer.end_blob(blob.digest).unwrap();
        let first_end = writer.position();
        // The same content as an unpinned file. The run is killed after the digest is noted.
        writer.begin_blob(None);
        writer.write(&bytes).unwrap();
        assert!(writer.written() > first_end + 2 * FRAME_SIZE as u64);
        drop(writer);
        let entry = |blob, is_late| ExpectedEntry { blob, is_late, is_manifest: false, sha512: None };
        let entries = [entry(Some(blob), false), entry(Some(blob), true), entry(None, true)];
        let expected =
            ExpectedBundle { set: Digest::of(b""), header_space, entries: &entries, external: &[] };
        let found = read_partial(&partial, &expected, &Silent).unwrap();
        let point = &found.resume_point;
        let position = content_len(&point.frames) + point.small_entries.len() as u64;
        assert_eq!((found.complete, position), (2, first_end));
        assert!(found.open.is_none());
    }
}
