//! [`BundleReader`]: reads a bundle, front to back, from a file or a pipe.
//!
//! What a hostile or damaged bundle can do, and what stands against it:
//!
//! - *an entry that escapes, links, or comes twice*: no name, type or size is taken from a tar header. What the
//!   hashed documents say decides, and a header that is not byte for byte the one they ask for ends the reading.
//! - *a bomb*: a frame states its size before it is decoded, and it is at most 4 MiB; documents have limits; the
//!   number of frames in memory is bounded.
//! - *wrong bytes*: every frame has a checksum and every blob a digest, and the caller gets nothing whole before
//!   both are checked.
//! - *a seek table that lies*: it is used to find the next frame behind a damaged one, and frames that it cuts
//!   in any other way do not parse. What it says of a content's size counts only where nothing else can be known, of a
//!   frame that does not decode: so it can shift what follows a hole, as damage can, and then nothing behind it is what
//!   the documents ask for.
//! - *a bundle from somebody else*: with a key that is trusted, nothing that `index.json` names is read before it is
//!   known who has signed it, but for the list of files, which stands before the signature and is only hashed.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::base::buffer::{Buffer, Slice};
use crate::base::fs;
use crate::bundle::format::index::{BundleInfo, Index};
use crate::bundle::format::layout::{Blob, Layout, blob_name, tar_header};
use crate::bundle::format::manifest_walk::ManifestWalk;
use crate::bundle::format::seek_table::FrameEntry;
use crate::bundle::format::{BLOCK, INDEX_JSON, INDEX_LIMIT, OCI_LAYOUT, OCI_LAYOUT_CONTENT, padded};
use crate::bundle::read::discover;
use crate::bundle::read::error::{ReadError, describe, first_failure, unexpected};
use crate::bundle::read::feeder::{Chunk, FeederMessage, FrameFeeder, ReadAllowance, TablePosition, feeder};
use crate::bundle::read::problem::{FrameError, Position};
use crate::bundle::read::sequential::{AskForVolume, SequentialVolumes};
use crate::bundle::read::volume_set::VolumeSet;
use crate::oci::digest::Digest;
use crate::signature::{SignatureError, Signed, Trust};

/// What the documents at the front of a bundle say.
pub struct Contents {
    /// The digest of `index.json`: the identity of the bundle.
    pub identity: Digest,
    /// The bytes of `index.json`.
    pub index: Vec<u8>,
    /// What the bundle says of itself.
    pub about: BundleInfo,
    /// Everything in the bundle, in its order.
    pub layout: Layout,
    /// The bytes of all manifests.
    pub manifests: HashMap<Digest, Vec<u8>>,
    /// Who has signed it.
    pub signed: Option<Signed>,
}

/// The next bytes of the stream, or that they are lost.
pub enum Piece {
    /// Bytes as they were packed.
    Data(Slice),
    /// Bytes that a frame held which cannot be read.
    Hole {
        /// How many.
        len: u64,
        /// Where the frame begins, in bytes from the start of the bundle.
        offset: u64,
        /// Why.
        error: FrameError,
    },
}

/// Reads a bundle; see the module.
pub struct BundleReader {
    sent: Receiver<FeederMessage>,
    /// A frame that was looked past for a signature.
    next: Option<Chunk>,
    signature: Option<Vec<u8>>,
    trust: Trust,
    current: Option<Current>,
    is_file: bool,
    /// What it is read from, where that can be read at any place.
    medium: Option<Arc<VolumeSet>>,
    /// Where its frames are, if the medium says so.
    table: Option<Arc<Vec<FrameEntry>>>,
    /// While the documents are read: nobody knows yet what else is wanted, so that frames are read one by one.
    leave: Option<Sender<ReadAllowance>>,
    is_past_documents: bool,
    /// How far the tar stream has been read.
    position: u64,
    /// Where the last frame began, in bytes from the start of the bundle.
    offset: u64,
    /// Whether nothing behind an error can be read.
    lost: bool,
}

struct Current {
    content: Result<Arc<Buffer>, FrameError>,
    len: usize,
    used: usize,
    offset: u64,
}

impl BundleReader {
    /// Opens the bundle that `path` means: its file, its first volume, a directory, or a pipe.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
            return Ok(Self::stream(fs::open(path)?));
        }
        Ok(Self::of_medium(discover::find(&[path.to_owned()])?))
    }

    /// Reads a bundle that lies on `medium`, as far as it is there.
    #[must_use]
    pub fn of_medium(mut medium: VolumeSet) -> Self {
        // Where there is none, damage there hits no content.
        let table = medium.seek_table().map(Arc::new);
        let medium = Arc::new(medium);
        let (source, frames) = (medium.clone(), table.clone());
        let (leave, given) = channel();
        let mut reader = Self::start(true, move |feeder| match frames {
            Some(table) => {
                feeder.leave = Some(given);
                feeder.by_table(&source, &table, TablePosition::default(), None);
            }
            None => feeder.by_volumes(&source),
        });
        reader.leave = table.is_some().then_some(leave);
        (reader.medium, reader.table) = (Some(medium), table);
        reader
    }

    /// Reads the volumes of a bundle one after the other, and asks for those that are not there.
    #[must_use]
    pub fn in_turn(medium: &VolumeSet, ask: AskForVolume) -> Self {
        let volumes = SequentialVolumes::new(medium, ask);
        Self::start(true, move |feeder| feeder.by_frames(volumes))
    }

    /// Reads a bundle from a pipe or anything else that cannot seek.
    pub fn stream(input: impl Read + Send + 'static) -> Self {
        Self::start(false, move |feeder| feeder.by_frames(input))
    }

    fn start(is_file: bool, feed: impl FnOnce(&mut FrameFeeder) + Send + 'static) -> Self {
        Self {
            sent: feeder(feed),
            next: None,
            signature: None,
            trust: Trust::default(),
            current: None,
            is_file,
            medium: None,
            table: None,
            leave: None,
            is_past_documents: false,
            position: 0,
            offset: 0,
            lost: false,
        }
    }

    /// What the bundle lies on; nothing if it is read from a pipe.
    #[must_use]
    pub fn medium(&self) -> Option<&VolumeSet> {
        self.medium.as_deref()
    }

    /// Its seek table; nothing if it is read from a pipe, or has none that fits.
    #[must_use]
    pub fn table(&self) -> Option<&[FrameEntry]> {
        self.table.as_ref().map(|table| table.as_slice())
    }

    /// Where frames were damaged and recovery data has repaired them, so far.
    #[must_use]
    pub fn repaired(&self) -> Vec<Position> {
        self.medium.as_ref().map(|medium| medium.repaired()).unwrap_or_default()
    }

    /// Where `offset` of the bundle is, for a person.
    #[must_use]
    pub fn place(&self, offset: u64) -> Position {
        match &self.medium {
            Some(medium) => medium.place(offset),
            None => Position { offset, volume: None, volume_offset: None },
        }
    }

    /// Reads of all that follows only the frames that hold some of `wanted`: sorted ranges of the tar stream that do not
    /// overlap. The rest comes as holes; [`BundleReader::skip`] passes over them. Where nobody knows the places of the frames
    /// in advance (a pipe, a damaged seek table), everything is read.
    pub fn narrow(&mut self, wanted: Vec<Range<u64>>) {
        let (Some(medium), Some(table)) = (self.medium.clone(), self.table.clone()) else { return };
        let here =
            self.position + self.current.as_ref().map_or(0, |current| current.len - current.used) as u64;
        let Some(start) = TablePosition::at(&table, here) else { return };
        self.next = None;
        self.leave = None;
        self.sent = feeder(move |feeder| {
            feeder.is_past_signature = true;
            feeder.by_table(&medium, &table, start, Some(&wanted));
        });
    }

    /// Takes the bundle only if `trust` has one of its signers. [`BundleReader::contents`] looks at that before it reads
    /// anything that `index.json` names, but for the list of files.
    #[must_use]
    pub fn trusting(self, trust: Trust) -> Self {
        Self { trust, ..self }
    }

    /// Reads the documents at the front. What is in the bundle is known after this, and nothing else was read.
    pub fn contents(&mut self) -> Result<Contents, ReadError> {
        let layout = self.document(OCI_LAYOUT, OCI_LAYOUT_CONTENT.len() as u64).map_err(first_failure)?;
        if layout != OCI_LAYOUT_CONTENT {
            return Err(ReadError::NotABundle(format!("its `{OCI_LAYOUT}` has another content")));
        }
        let index = self.index_document()?;
        let identity = Digest::of(&index);
        let mut manifests = HashMap::new();
        let parsed = Index::parse(&index)?;
        let about = parsed.about.clone();
        let mut signed = None;
        // The signature stands behind the head, and the list of files is the last that belongs to it.
        let mut is_in_head = parsed.files.is_some();
        if !is_in_head {
            signed = self.signed(&index)?;
        }
        let mut walk = ManifestWalk::new(parsed)?;
        while let Some(wanted) = walk.next_manifest()? {
            let blob = wanted.blob;
            let bytes = self.document(&blob_name(blob.digest), blob.size)?;
            if Digest::of(&bytes) != blob.digest {
                return Err(ReadError::Digest(blob.digest));
            }
            if std::mem::take(&mut is_in_head) {
                signed = self.signed(&index)?;
            }
            walk.supply(&bytes)?;
            manifests.insert(blob.digest, bytes);
        }
        self.is_past_documents = true;
        Ok(Contents { identity, about, layout: walk.finish(index.len() as u64)?, manifests, signed, index })
    }

    /// Who has signed `index`; the head has been read.
    fn signed(&mut self, index: &[u8]) -> Result<Option<Signed>, SignatureError> {
        // Behind the head a frame begins. Where none does, the head is none of ours, and has no signature behind it.
        if self.current.as_ref().is_none_or(|current| current.used == current.len) {
            self.next = self.receive();
        }
        self.trust.check(index, self.signature.as_deref())
    }

    /// The next frame that holds something.
    fn receive(&mut self) -> Option<Chunk> {
        if let Some(leave) = &self.leave {
            // Nobody takes it where everything has been read.
            let _ = leave.send(if self.is_past_documents { ReadAllowance::All } else { ReadAllowance::One });
            if self.is_past_documents {
                self.leave = None;
            }
        }
        loop {
            match self.sent.recv().ok()? {
                FeederMessage::Chunk(chunk) => return Some(chunk),
                FeederMessage::Signature(bytes) => self.signature = Some(bytes),
            }
        }
    }

    /// Reads the entry of `blob`, which must be the next one, and gives its content to `take` piece by piece.
    /// The digest is the caller's to check: hashing has other threads. After an error the next entry can be read,
    /// unless [`BundleReader::is_lost`].
    pub fn blob<E: From<ReadError>>(
        &mut self,
        blob: &Blob,
        take: impl FnMut(Slice) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = self.position + BLOCK as u64 + padded(blob.size);
        let read = self.entry(blob, take);
        if read.is_err() {
            self.skip_to(end);
        }
        read
    }

    /// Passes over the entry of `blob`, which nobody needs: what is damaged in it does not matter, as long as it is
    /// the entry that belongs there.
    pub fn skip(&mut self, blob: &Blob) -> Result<(), ReadError> {
        let name = blob_name(blob.digest);
        let end = self.position + BLOCK as u64 + padded(blob.size);
        let header = self.header(&name, blob.size);
        self.skip_to(end);
        match header {
            Err(error) if self.lost => Err(error),
            _ if self.lost => self.data(&name, 1).map(drop),
            _ => Ok(()),
        }
    }

    /// Whether an error leaves nothing to be read behind it.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    fn entry<E: From<ReadError>>(
        &mut self,
        blob: &Blob,
        mut take: impl FnMut(Slice) -> Result<(), E>,
    ) -> Result<(), E> {
        let name = blob_name(blob.digest);
        self.header(&name, blob.size)?;
        let mut left = blob.size;
        while left > 0 {
            let slice = self.data(&name, left)?;
            left -= slice.len() as u64;
            take(slice)?;
        }
        self.zeros(&name, padded(blob.size) - blob.size)?;
        Ok(())
    }

    fn skip_to(&mut self, end: u64) {
        while self.position < end && !self.lost {
            self.lost |= self.piece(end - self.position).is_err();
        }
    }

    /// Whether the rest can be left unread without anybody noticing. Who writes into a pipe does notice, and a
    /// script would take the success of `unpack` for a failure.
    #[must_use]
    pub fn can_stop(&self) -> bool {
        self.is_file
    }

    /// Reads the end of the archive; fails if anything is missing or follows.
    pub fn end(&mut self) -> Result<(), ReadError> {
        let name = "the end of the archive";
        self.zeros(name, 2 * BLOCK as u64)?;
        match self.data(name, 1) {
            Err(ReadError::Damaged { source: FrameError::End, .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(unexpected(name, "more bytes".into())),
        }
    }

    /// The next bytes of the stream, at most `max`, or how many of them are lost; an error if no further frame
    /// can be found.
    pub fn piece(&mut self, max: u64) -> Result<Piece, (u64, FrameError)> {
        loop {
            if let Some(current) = self.current.as_mut().filter(|current| current.used < current.len) {
                let len = (current.len - current.used).min(usize::try_from(max).unwrap_or(usize::MAX));
                let start = current.used;
                current.used += len;
                self.position += len as u64;
                return Ok(match &current.content {
                    Ok(content) => Piece::Data(Slice { content: content.clone(), start, end: start + len }),
                    Err(error) => {
                        Piece::Hole { len: len as u64, offset: current.offset, error: error.again() }
                    }
                });
            }
            self.next_chunk()?;
        }
    }

    fn next_chunk(&mut self) -> Result<(), (u64, FrameError)> {
        let Some(chunk) = self.next.take().or_else(|| self.receive()) else {
            return Err((self.offset, FrameError::End));
        };
        self.offset = chunk.offset;
        let content = chunk.content.recv().expect("a frame is always decoded; please report");
        match content {
            Err(error) if chunk.last => Err((chunk.offset, error)),
            content => {
                let content = content.map(Arc::new);
                self.current = Some(Current { content, len: chunk.len, used: 0, offset: chunk.offset });
                Ok(())
            }
        }
    }

    /// At most `max` bytes of the entry `object`.
    fn data(&mut self, object: &str, max: u64) -> Result<Slice, ReadError> {
        let medium = self.medium.clone();
        let damaged = |offset, source| {
            let place =
                medium.as_ref().map_or(Position { offset, volume: None, volume_offset: None }, |medium| {
                    medium.place(offset)
                });
            ReadError::Damaged { object: object.to_owned(), place: Box::new(place), source }
        };
        match self.piece(max) {
            Ok(Piece::Data(slice)) => Ok(slice),
            Ok(Piece::Hole { offset, error, .. }) => Err(damaged(offset, error)),
            Err((offset, error)) => {
                self.lost = true;
                Err(damaged(offset, error))
            }
        }
    }

    fn exact(&mut self, object: &str, len: u64) -> Result<Vec<u8>, ReadError> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            bytes.extend_from_slice(&self.data(object, len - bytes.len() as u64)?);
        }
        Ok(bytes)
    }

    fn zeros(&mut self, object: &str, len: u64) -> Result<(), ReadError> {
        if self.exact(object, len)?.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        Err(unexpected(object, "bytes that are not zero in its padding".into()))
    }

    fn header(&mut self, name: &str, size: u64) -> Result<(), ReadError> {
        let header = self.exact(name, BLOCK as u64)?;
        if header == tar_header(name, size) {
            return Ok(());
        }
        // Whatever stands there, it is not what the documents say, and so is nothing behind it.
        self.lost = true;
        Err(unexpected(name, describe(&header)))
    }

    fn document(&mut self, name: &str, size: u64) -> Result<Vec<u8>, ReadError> {
        self.header(name, size)?;
        let bytes = self.exact(name, size)?;
        self.zeros(name, padded(size) - size)?;
        Ok(bytes)
    }

    /// The one document whose size only its header tells.
    fn index_document(&mut self) -> Result<Vec<u8>, ReadError> {
        let header = self.exact(INDEX_JSON, BLOCK as u64)?;
        let size = tar::Header::from_byte_slice(&header).entry_size().unwrap_or(u64::MAX);
        if size > INDEX_LIMIT || header != tar_header(INDEX_JSON, size) {
            return Err(unexpected(INDEX_JSON, describe(&header)));
        }
        let bytes = self.exact(INDEX_JSON, size)?;
        self.zeros(INDEX_JSON, padded(size) - size)?;
        Ok(bytes)
    }
}
