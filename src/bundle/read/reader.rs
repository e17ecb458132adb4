//! [`BundleReader`]: reads and verifies a bundle front to back, from volumes or a stream.
//!
//! Threats from a malicious or corrupt bundle, and the defenses:
//!
//! - *An entry that escapes, is a link, or is a duplicate*: no name, type or size is taken from a tar header.
//!   The hashed documents determine all headers, and a header with any other byte ends the reading.
//! - *A decompression bomb*: a frame states its content size, at most 4 MiB, before it is decoded. Documents
//!   have limits, and the number of frames in memory is bounded.
//! - *Changed bytes*: every frame has a checksum and every blob a digest. The caller verifies the digest
//!   before it uses a blob.
//! - *An incorrect seek table*: it is used to find the frame after a corrupt one. Frames that it splits in
//!   another way do not parse. Its content sizes are used only for frames that do not decode: like
//!   corruption, they can shift the stream after a hole, and then no later header matches the documents.
//! - *A bundle from another party*: if a trusted key is configured, the signature is verified over the bytes
//!   of `index.json` before these are parsed. The signature follows the head, so the frames of the head are
//!   read ahead. Every way to open a bundle requires the policy of the host.

use std::collections::HashMap;
use std::io::{BufReader, Read, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use crate::base::buffer::Slice;
use crate::base::fs;
use crate::bundle::format::index::{BundleInfo, Index};
use crate::bundle::format::layout::{Blob, Layout, blob_name};
use crate::bundle::format::manifest_walk::ManifestWalk;
use crate::bundle::format::seek_table::FrameEntry;
use crate::bundle::format::{BLOCK, OCI_LAYOUT, OCI_LAYOUT_CONTENT, frame, padded};
use crate::bundle::read::detached;
use crate::bundle::read::discover;
use crate::bundle::read::error::{ReadError, first_failure, unexpected};
use crate::bundle::read::feeder;
use crate::bundle::read::frame_error::FrameError;
use crate::bundle::read::frame_reader::{self, Frame, FrameReader};
use crate::bundle::read::problem::Position;
use crate::bundle::read::sequential::{AskForVolume, SequentialVolumes};
use crate::bundle::read::table_feeder::{TableFeeder, TablePosition};
use crate::bundle::read::tar_stream::{END, FrameQueue, Piece, TarStream};
use crate::bundle::read::volume_set::VolumeSet;
use crate::oci::digest::Digest;
use crate::signature::policy::{NamedSignature, Policy, Signed};

/// Size of the reads of frame headers in bytes.
const SMALL_READ: usize = 4 << 10;

/// The documents of a bundle.
pub struct Contents {
    /// Digest of `index.json`: the identity of the bundle.
    pub identity: Digest,
    /// Bytes of `index.json`.
    pub index: Vec<u8>,
    /// Informational annotations of the bundle.
    pub about: BundleInfo,
    /// Digest of the manifest of the files. `None`: no files.
    pub file_set: Option<Digest>,
    /// All entries of the bundle, in order.
    pub layout: Layout,
    /// Bytes of all manifests.
    pub manifests: HashMap<Digest, Vec<u8>>,
    /// The signature. It is verified only if a trusted key is configured. `None`: not signed.
    pub signed: Option<Signed>,
    /// The signature that is part of the bundle, whatever its key.
    pub embedded_signature: Option<Vec<u8>>,
    /// The signatures of trusted keys, embedded and detached. Without trusted keys, all signatures.
    pub signatures: Vec<Vec<u8>>,
}

/// Reads a bundle front to back.
pub struct BundleReader {
    stream: TarStream,
    policy: Policy,
    /// True if a bundle that has expired is an error.
    refuses_expired: bool,
    /// The signatures in files next to the bundle.
    detached: Vec<NamedSignature>,
    /// True if the input is files and not a stream.
    is_file: bool,
    /// The seek table. `None` for a stream, or if it is missing or corrupt.
    table: Option<Arc<Vec<FrameEntry>>>,
}

impl BundleReader {
    /// Opens the bundle at `path`: a file, a volume, a directory, or a pipe. Reading it fails unless `policy`
    /// accepts its signatures.
    pub fn open(path: &Path, policy: &Policy) -> Result<Self, ReadError> {
        if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
            return Ok(Self::stream(fs::open(path)?, policy));
        }
        Self::from_volumes(discover::find(&[path.to_owned()])?, policy)
    }

    /// Reads the bundle in `volumes`, some of which can be missing. Uses the detached signatures next to them.
    pub fn from_volumes(mut volumes: VolumeSet, policy: &Policy) -> Result<Self, ReadError> {
        let detached = detached::read(&volumes, policy)?;
        // Without a seek table, unreadable frames can only be skipped volume by volume.
        let Some(table) = volumes.seek_table().map(Arc::new) else {
            let volumes = Arc::new(volumes);
            let source = volumes.clone();
            let messages = feeder::start(move |feeder| feeder.by_volumes(&source));
            let queue = FrameQueue::new(messages, None);
            return Ok(Self { detached, is_file: true, ..Self::new(queue, Some(volumes), policy) });
        };
        let volumes = Arc::new(volumes);
        let (source, frames) = (volumes.clone(), table.clone());
        // The documents are read frame by frame: the caller decides after them which other frames it needs.
        let (permits, granted) = channel();
        let messages = feeder::start(move |feeder| {
            feeder.permits = Some(granted);
            TableFeeder::new(feeder, &source).run(&frames, TablePosition::default(), None)
        });
        let queue = FrameQueue::new(messages, Some(permits));
        let reader = Self::new(queue, Some(volumes), policy);
        Ok(Self { detached, is_file: true, table: Some(table), ..reader })
    }

    /// Reads volumes one after the other, and calls `ask` for those that are missing. Uses the detached
    /// signatures next to those that are there now.
    pub fn in_turn(volumes: &VolumeSet, ask: AskForVolume, policy: &Policy) -> Result<Self, ReadError> {
        let detached = detached::read(volumes, policy)?;
        let volumes = SequentialVolumes::new(volumes, ask);
        let messages = feeder::start(move |feeder| feeder.by_frames(volumes));
        Ok(Self { detached, is_file: true, ..Self::new(FrameQueue::new(messages, None), None, policy) })
    }

    /// Reads a bundle from a pipe or another input that cannot seek.
    pub fn stream(input: impl Read + Send + 'static, policy: &Policy) -> Self {
        let messages = feeder::start(move |feeder| feeder.by_frames(input));
        Self::new(FrameQueue::new(messages, None), None, policy)
    }

    fn new(queue: FrameQueue, volumes: Option<Arc<VolumeSet>>, policy: &Policy) -> Self {
        let (stream, policy) = (TarStream::new(queue, volumes), policy.clone());
        Self { stream, policy, refuses_expired: false, detached: Vec::new(), is_file: false, table: None }
    }

    /// Makes reading fail if the bundle has expired and the policy requires signatures.
    #[must_use]
    pub fn refusing_expired(self) -> Self {
        Self { refuses_expired: self.policy.is_enforced(), ..self }
    }

    /// Returns the policy that the signatures must satisfy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the volumes of the bundle. `None` for a stream.
    #[must_use]
    pub fn volumes(&self) -> Option<&VolumeSet> {
        self.stream.volumes().map(AsRef::as_ref)
    }

    /// Returns the seek table. `None` for a stream, or if it is missing or corrupt.
    #[must_use]
    pub fn table(&self) -> Option<&[FrameEntry]> {
        self.table.as_ref().map(|table| table.as_slice())
    }

    /// Returns the positions of corrupt frames that were repaired so far.
    #[must_use]
    pub fn repaired(&self) -> Vec<Position> {
        self.volumes().map(VolumeSet::repaired).unwrap_or_default()
    }

    /// Returns the position at `offset` of the bundle.
    #[must_use]
    pub fn position(&self, offset: u64) -> Position {
        self.stream.position_of(offset)
    }

    /// Reads and verifies the documents, and nothing else.
    pub fn contents(&mut self) -> Result<Contents, ReadError> {
        let size = OCI_LAYOUT_CONTENT.len() as u64;
        let layout = self.stream.document(OCI_LAYOUT, size).map_err(first_failure)?;
        if layout != OCI_LAYOUT_CONTENT {
            return Err(ReadError::NotABundle(format!("unexpected content of `{OCI_LAYOUT}`")));
        }
        let index = self.stream.index_document()?;
        let embedded_signature = self.stream.signature().map(<[u8]>::to_vec);
        let signatures = self.signatures();
        let (signed, signatures) = self.policy.check(&index, signatures)?;
        // Nothing above this line parses the documents of the bundle.
        let parsed = Index::parse(&index)?;
        let (about, file_set) = (parsed.about.clone(), parsed.files.map(|(digest, _)| digest));
        if let Some(expires) = about.expires.filter(|expires| self.refuses_expired && expires.is_past()) {
            return Err(ReadError::Expired(expires));
        }
        let mut manifests = HashMap::new();
        let mut walk = ManifestWalk::new(parsed)?;
        while let Some(request) = walk.next_manifest()? {
            let blob = request.blob;
            let bytes = self.stream.document(&blob_name(blob.digest), blob.size)?;
            if Digest::of(&bytes) != blob.digest {
                return Err(ReadError::Digest(blob.digest));
            }
            walk.supply(&bytes)?;
            manifests.insert(blob.digest, bytes);
        }
        self.stream.allow_all_frames();
        let layout = walk.finish(index.len() as u64)?;
        self.check_end(&layout)?;
        let signatures = signatures.into_iter().map(|signature| signature.bytes).collect();
        let identity = Digest::of(&index);
        Ok(Contents {
            identity,
            index,
            about,
            file_set,
            layout,
            manifests,
            signed,
            embedded_signature,
            signatures,
        })
    }

    /// Fails if the archive has entries after those of `layout`. Other programs that read the archive, such as `tar`
    /// and `skopeo`, use the last of several `index.json`.
    ///
    /// The documents determine the content size of each frame. If the seek table has other sizes, or frames that it
    /// does not describe, it can be incorrect: the frames decide, as far as all of them are intact. Without a table,
    /// [`BundleReader::end`] finds further entries.
    fn check_end(&self, layout: &Layout) -> Result<(), ReadError> {
        let (Some(volumes), Some(table)) = (self.stream.volumes().cloned(), self.table.clone()) else {
            return Ok(());
        };
        let sizes = table.iter().map(|frame| u64::from(frame.decompressed)).filter(|size| *size > 0);
        let is_exact = sizes.eq(layout.cuts());
        let ends = !is_exact || ends_the_archive(&volumes, &table);
        if is_exact && ends && !hides_content(&volumes, &table) {
            return Ok(());
        }
        let source = volumes.clone();
        let messages = feeder::start(move |feeder| {
            TableFeeder::new(feeder, &source).run(&table, TablePosition::default(), None)
        });
        let mut stream = TarStream::new(FrameQueue::new(messages, None), Some(volumes));
        match stream.find_unexpected(layout) {
            Some(error) => Err(error),
            None if !ends => Err(unexpected(END, "more bytes".to_owned())),
            None => Ok(()),
        }
    }

    /// Returns the signature in the bundle, then those next to it.
    fn signatures(&mut self) -> Vec<NamedSignature> {
        let embedded = self
            .stream
            .signature()
            .map(|bytes| NamedSignature { name: "its signature".to_owned(), bytes: bytes.to_vec() });
        embedded.into_iter().chain(self.detached.drain(..)).collect()
    }

    /// Restricts further reading to frames that overlap with `ranges` of the tar stream, which are sorted and
    /// do not overlap. All other frames become holes, which [`BundleReader::skip`] passes over. Has no effect
    /// without a seek table.
    pub fn narrow(&mut self, ranges: Vec<Range<u64>>) {
        let (Some(volumes), Some(table)) = (self.stream.volumes().cloned(), self.table.clone()) else {
            return;
        };
        let Some(start) = TablePosition::at(&table, self.stream.frame_end()) else { return };
        let messages = feeder::start(move |feeder| {
            feeder.is_past_signature = true;
            TableFeeder::new(feeder, &volumes).run(&table, start, Some(&ranges))
        });
        self.stream.set_queue(FrameQueue::new(messages, None));
    }

    /// Reads the entry of `blob`, which must be the next one, and passes its content to `accept` in pieces.
    /// The caller verifies the digest, usually in other threads. After an error, the next entry can be read
    /// unless [`BundleReader::is_lost`].
    pub fn blob<E: From<ReadError>>(
        &mut self,
        blob: &Blob,
        accept: impl FnMut(Slice) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = self.entry_end(blob);
        let result = self.entry(blob, accept);
        if result.is_err() {
            self.stream.skip_to(end);
        }
        result
    }

    /// Passes over the entry of `blob`, which must be the next one. Corrupt or skipped frames are not an
    /// error.
    pub fn skip(&mut self, blob: &Blob) -> Result<(), ReadError> {
        let name = blob_name(blob.digest);
        let end = self.entry_end(blob);
        let header = self.stream.header(&name, blob.size);
        self.stream.skip_to(end);
        match header {
            Err(error) if self.is_lost() => Err(error),
            _ if self.is_lost() => self.stream.data(&name, 1).map(drop),
            _ => Ok(()),
        }
    }

    /// True if nothing can be read after an error.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.stream.is_lost()
    }

    /// True if the rest of the input need not be read. A pipe must be read to its end: otherwise its writer
    /// fails, and a script with `pipefail` reports an error in spite of the success. So must a file without a seek
    /// table, of which it is not known whether further entries follow.
    #[must_use]
    pub fn can_stop(&self) -> bool {
        self.is_file && self.table.is_some()
    }

    /// Reads the end of the archive. Fails if it is missing or followed by other data.
    pub fn end(&mut self) -> Result<(), ReadError> {
        self.stream.zeros(END, 2 * BLOCK as u64)?;
        match self.stream.data(END, 1) {
            Err(ReadError::Damaged { source: FrameError::End, .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(unexpected(END, "more bytes".into())),
        }
    }

    /// Returns at most `max` bytes of the tar stream, or the number of bytes that are lost. Fails if no
    /// further frame can be found; the error has the offset of the frame.
    pub fn piece(&mut self, max: u64) -> Result<Piece, (u64, FrameError)> {
        self.stream.piece(max)
    }

    fn entry<E: From<ReadError>>(
        &mut self,
        blob: &Blob,
        mut accept: impl FnMut(Slice) -> Result<(), E>,
    ) -> Result<(), E> {
        let name = blob_name(blob.digest);
        self.stream.header(&name, blob.size)?;
        let mut left = blob.size;
        while left > 0 {
            let slice = self.stream.data(&name, left)?;
            left -= slice.len() as u64;
            accept(slice)?;
        }
        self.stream.padding(&name, blob.size)?;
        Ok(())
    }

    /// Returns the offset in the tar stream after the entry of `blob`, which is the next one.
    fn entry_end(&self, blob: &Blob) -> u64 {
        self.stream.position() + BLOCK as u64 + padded(blob.size)
    }
}

/// True if the last frame with content fills its entry in the table and ends with two zero blocks, or cannot be read:
/// that is damage, which other checks report.
fn ends_the_archive(volumes: &VolumeSet, table: &[FrameEntry]) -> bool {
    let Some(last) = last_content(table) else { return true };
    let offset: u64 = table[..last].iter().map(|entry| u64::from(entry.compressed)).sum();
    let mut bytes = Vec::new();
    let len = u64::from(table[last].compressed);
    if volumes.reader(offset).take(len).read_to_end(&mut bytes).is_err() {
        return true;
    }
    let buffers = frame_reader::buffers();
    let mut frames = FrameReader::new(&*bytes, offset, &buffers);
    match frames.next_frame() {
        Ok(Some(Frame::Data(data))) => {
            let fills = frames.offset() == offset + len;
            data.decode(&buffers).map_or(true, |content| fills && content.ends_with(&[0; 2 * BLOCK]))
        }
        Ok(_) => false,
        Err(_) => true,
    }
}

/// Returns the number of the last frame with content.
fn last_content(table: &[FrameEntry]) -> Option<usize> {
    table.iter().rposition(|entry| entry.decompressed > 0)
}

/// True if a frame has content and the table states none, or if the last frame with content has another size than
/// stated. Frames between them are compared when they are read.
fn hides_content(volumes: &VolumeSet, table: &[FrameEntry]) -> bool {
    let last = last_content(table);
    // A table can have millions of entries for frames of a few bytes.
    let mut input = BufReader::with_capacity(SMALL_READ, volumes.reader(0));
    let (mut offset, mut position) = (0, 0);
    table.iter().enumerate().any(|(number, entry)| {
        let start = offset;
        offset += u64::from(entry.compressed);
        if entry.decompressed > 0 && Some(number) != last {
            return false;
        }
        let mut header = [0; frame::HEADER_LEN];
        let header = &mut header[..frame::HEADER_LEN.min(entry.compressed as usize)];
        let distance = i64::try_from(start - position).expect("a bundle is smaller; please report");
        let read = input.seek_relative(distance).and_then(|()| input.read_exact(header));
        position = start + header.len() as u64;
        if read.is_err() {
            // Frames that cannot be read are damage, which other checks report.
            return input.seek(SeekFrom::Start(position)).is_err();
        }
        !frame::is_header_of(header, *entry)
    })
}
