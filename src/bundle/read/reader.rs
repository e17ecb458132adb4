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
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use crate::base::buffer::{Buffer, Buffers};
use crate::base::fs::{self, FsError};
use crate::bundle::format::index::{About, Index, IndexError};
use crate::bundle::format::label::Label;
use crate::bundle::format::layout::{Blob, Layout, LayoutError, Walk, blob_name, tar_header};
use crate::bundle::format::seek_table::{self, Entry};
use crate::bundle::read::frame::{
    self, Data, Frame, FrameError, FrameReader, PADDING_MAGIC, RECOVERY_MAGIC, SEEK_TABLE_MAGIC,
    SIGNATURE_MAGIC, SKIPPABLE_LIMIT, Trouble, VOLUME_MAGIC,
};
use crate::bundle::read::volume_set::{Ask, InTurn, Medium, MediumError, MediumReader, Place, Problem};
use crate::bundle::{BLOCK, INDEX_JSON, INDEX_LIMIT, OCI_LAYOUT, OCI_LAYOUT_CONTENT, padded};
use crate::oci::digest::Digest;
use crate::signature::{SIGNATURE_LIMIT, Signature, SignatureError, Signed, Trust};

/// How much is read at once where a frame or a block begins. All else goes straight to its place, if it is more than
/// this.
const READ_AHEAD: usize = 8 << 10;

/// Why a bundle cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// There is no bundle where it was looked for, or more than one.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// Volumes are missing.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Incomplete(Vec<Problem>),
    /// The input is something else.
    #[error("this is no airbundle bundle: {0}")]
    NotABundle(String),
    /// A frame is damaged or missing.
    #[error("`{object}` cannot be read{}", whereabouts(place, source))]
    Damaged {
        /// The entry that was being read.
        object: String,
        /// Where the frame begins.
        place: Box<Place>,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
    /// An entry that the documents of the bundle do not ask for.
    #[error(
        "where `{expected}` belongs, the archive has {found}: it is damaged, or not written by airbundle"
    )]
    Unexpected {
        /// The name of the entry that should be there.
        expected: String,
        /// What is there, described for a person.
        found: String,
    },
    /// A blob with other bytes than its name says.
    #[error("`{0}` is damaged: its bytes do not have this digest")]
    Digest(Digest),
    /// An `index.json` that is refused.
    #[error("`index.json` is refused")]
    Index(#[from] IndexError),
    /// Manifests that are refused.
    #[error("the bundle is refused")]
    Layout(#[from] LayoutError),
    /// Nobody has signed it who is trusted.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

impl ReadError {
    /// What kind of trouble it is, of a bundle whose documents have been read.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Damaged { source, .. } => source.trouble(),
            Self::Incomplete(_) => Trouble::Missing,
            Self::Fs(_) => Trouble::Unreadable,
            _ => Trouble::Damaged,
        }
    }
}

/// Why something that the bundle should have cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Loss {
    /// What kind of trouble it is.
    pub trouble: Trouble,
    /// What is wrong, for a person.
    pub problem: String,
}

impl From<&ReadError> for Loss {
    fn from(error: &ReadError) -> Self {
        let mut problem = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            let message = error.to_string();
            if !problem.ends_with(&message) {
                problem = format!("{problem}: {message}");
            }
            cause = error.source();
        }
        Self { trouble: error.trouble(), problem }
    }
}

/// Where damage is, for an error that says then what it is. What is missing is named there.
fn whereabouts(place: &Place, source: &FrameError) -> String {
    match source {
        FrameError::Absent(_) => String::new(),
        _ if place.volume.is_some() => format!(": damage at {place}"),
        _ => format!(": damage at {place} of the bundle"),
    }
}

/// What the documents at the front of a bundle say.
pub struct Contents {
    /// The digest of `index.json`: the identity of the bundle.
    pub identity: Digest,
    /// The bytes of `index.json`.
    pub index: Vec<u8>,
    /// What the bundle says of itself.
    pub about: About,
    /// Everything in the bundle, in its order.
    pub layout: Layout,
    /// The bytes of all manifests.
    pub manifests: HashMap<Digest, Vec<u8>>,
    /// Who has signed it.
    pub signed: Option<Signed>,
}

/// A run of bytes of the tar stream, shared without copying.
#[derive(Clone)]
pub struct Slice {
    content: Arc<Buffer>,
    start: usize,
    end: usize,
}

impl std::ops::Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.content[self.start..self.end]
    }
}

impl From<Vec<u8>> for Slice {
    fn from(bytes: Vec<u8>) -> Self {
        Self { start: 0, end: bytes.len(), content: Arc::new(bytes.into()) }
    }
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
    sent: Receiver<Sent>,
    /// A frame that was looked past for a signature.
    next: Option<Chunk>,
    signature: Option<Vec<u8>>,
    trust: Trust,
    current: Option<Current>,
    is_file: bool,
    /// What it is read from, where that can be read at any place.
    medium: Option<Arc<Medium>>,
    /// Where its frames are, if the medium says so.
    table: Option<Arc<Vec<Entry>>>,
    /// While the documents are read: nobody knows yet what else is wanted, so that frames are read one by one.
    leave: Option<Sender<Leave>>,
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

/// What comes out of the input.
enum Sent {
    Chunk(Chunk),
    Signature(Vec<u8>),
}

/// A frame on its way through the cores: what it decodes to comes later.
struct Chunk {
    offset: u64,
    len: usize,
    content: Receiver<Result<Buffer, FrameError>>,
    /// Nothing comes behind a frame whose end cannot be found.
    last: bool,
}

impl BundleReader {
    /// Opens the bundle that `path` means: its file, its first volume, a folder, or a pipe.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
            return Ok(Self::stream(fs::open(path)?));
        }
        Ok(Self::of_medium(Medium::find(&[path.to_owned()])?))
    }

    /// Reads a bundle that lies on `medium`, as far as it is there.
    #[must_use]
    pub fn of_medium(mut medium: Medium) -> Self {
        // Where there is none, damage there hits no content.
        let table = medium.seek_table().map(Arc::new);
        let medium = Arc::new(medium);
        let (source, frames) = (medium.clone(), table.clone());
        let (leave, given) = channel();
        let mut reader = Self::start(true, move |feeder| match frames {
            Some(table) => {
                feeder.leave = Some(given);
                feeder.by_table(&source, &table, TableStart::default(), None);
            }
            None => feeder.by_volumes(&source),
        });
        reader.leave = table.is_some().then_some(leave);
        (reader.medium, reader.table) = (Some(medium), table);
        reader
    }

    /// Reads the volumes of a bundle one after the other, and asks for those that are not there.
    #[must_use]
    pub fn in_turn(medium: &Medium, ask: Ask) -> Self {
        let volumes = InTurn::new(medium, ask);
        Self::start(true, move |feeder| feeder.by_frames(volumes))
    }

    /// Reads a bundle from a pipe or anything else that cannot seek.
    pub fn stream(input: impl Read + Send + 'static) -> Self {
        Self::start(false, move |feeder| feeder.by_frames(input))
    }

    fn start(is_file: bool, feed: impl FnOnce(&mut Feeder) + Send + 'static) -> Self {
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
    pub fn medium(&self) -> Option<&Medium> {
        self.medium.as_deref()
    }

    /// Its seek table; nothing if it is read from a pipe, or has none that fits.
    #[must_use]
    pub fn table(&self) -> Option<&[Entry]> {
        self.table.as_ref().map(|table| table.as_slice())
    }

    /// Where frames were damaged and recovery data has mended them, so far.
    #[must_use]
    pub fn mended(&self) -> Vec<Place> {
        self.medium.as_ref().map(|medium| medium.mended()).unwrap_or_default()
    }

    /// Where `offset` of the bundle is, for a person.
    #[must_use]
    pub fn place(&self, offset: u64) -> Place {
        match &self.medium {
            Some(medium) => medium.place(offset),
            None => Place { offset, volume: None, volume_offset: None },
        }
    }

    /// Reads of all that follows only the frames that hold some of `wanted`: sorted ranges of the tar stream that do not
    /// overlap. The rest comes as holes; [`BundleReader::skip`] passes over them. Where nobody knows the places of the frames
    /// in advance (a pipe, a damaged seek table), everything is read.
    pub fn narrow(&mut self, wanted: Vec<Range<u64>>) {
        let (Some(medium), Some(table)) = (self.medium.clone(), self.table.clone()) else { return };
        let here =
            self.position + self.current.as_ref().map_or(0, |current| current.len - current.used) as u64;
        let Some(start) = TableStart::at(&table, here) else { return };
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
        let mut walk = Walk::new(parsed)?;
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
            let _ = leave.send(if self.is_past_documents { Leave::All } else { Leave::One });
            if self.is_past_documents {
                self.leave = None;
            }
        }
        loop {
            match self.sent.recv().ok()? {
                Sent::Chunk(chunk) => return Some(chunk),
                Sent::Signature(bytes) => self.signature = Some(bytes),
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
            let place = medium
                .as_ref()
                .map_or(Place { offset, volume: None, volume_offset: None }, |medium| medium.place(offset));
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

/// Starts a thread that feeds; returns where it comes out.
fn feeder(feed: impl FnOnce(&mut Feeder) + Send + 'static) -> Receiver<Sent> {
    // Every core has a frame at work and there is one more behind it; each has at most 8 MiB, both forms.
    let (sender, sent) = sync_channel(rayon::current_num_threads().min(6) + 2);
    std::thread::spawn(move || feed(&mut Feeder::new(sender)));
    sent
}

/// Where to begin with the frames of a seek table.
#[derive(Clone, Copy, Default)]
struct TableStart {
    /// The number of the first frame, …
    frame: usize,
    /// … where it is in the bundle, …
    offset: u64,
    /// … and where what it holds is in the tar stream.
    stream: u64,
}

impl TableStart {
    /// The first frame that holds something from `stream` on, if one begins there.
    fn at(table: &[Entry], stream: u64) -> Option<Self> {
        let mut start = Self::default();
        while start.stream < stream {
            let entry = table.get(start.frame)?;
            start = Self {
                frame: start.frame + 1,
                offset: start.offset + u64::from(entry.compressed),
                stream: start.stream + u64::from(entry.decompressed),
            };
        }
        (start.stream == stream).then_some(start)
    }
}

/// How much may be read.
#[derive(Clone, Copy)]
enum Leave {
    /// One frame more.
    One,
    /// Everything.
    All,
}

/// A frame as it was packed, if there is recovery data for it.
struct Mender {
    medium: Arc<Medium>,
    /// Where there is none, nothing is searched for it.
    may_mend: bool,
    offset: u64,
    entry: Entry,
}

impl Mender {
    fn frame(&self, buffers: &Buffers) -> Option<Frame> {
        if !self.may_mend {
            return None;
        }
        let bytes = self.medium.mend(self.offset..self.offset + u64::from(self.entry.compressed))?;
        let mut frames = FrameReader::new(&bytes[..], self.offset, buffers);
        let frame = frames.next_frame().ok()??;
        let is_right = frames.offset() == self.offset + bytes.len() as u64
            && frame.content_size() == self.entry.decompressed as usize;
        is_right.then_some(frame)
    }
}

/// How the frames of one volume end.
enum VolumeEnd {
    /// With the volume.
    Here,
    /// With the bundle.
    SeekTable,
    /// Nobody wants more.
    Gone,
    /// With something that cannot be read.
    Failed(u64, FrameError),
}

/// The thread that reads the input and sends its frames to be decoded.
struct Feeder {
    sender: SyncSender<Sent>,
    /// Who says how much may be read; without anybody, it is everything.
    leave: Option<Receiver<Leave>>,
    /// For how many frames there is leave that has not been used yet.
    leaves: u32,
    /// Whether there is recovery data.
    may_mend: bool,
    buffers: Buffers,
    /// The frames so far, to be compared with the seek table at the end of a pipe.
    seen: Vec<Entry>,
    /// How many bytes of the tar stream have been sent since the first label: what labels count.
    stream: u64,
    /// Whether something is missing in `seen`.
    has_gap: bool,
    /// Whether something has come that no signature may follow.
    is_past_signature: bool,
    /// Damage that hits no content: told when all content has been sent.
    deferred: Option<(u64, FrameError)>,
}

/// The reader has been dropped: nothing more is wanted.
struct Gone;

impl Feeder {
    fn new(sender: SyncSender<Sent>) -> Self {
        Self {
            sender,
            leave: None,
            leaves: 0,
            may_mend: false,
            buffers: frame::buffers(),
            seen: Vec::new(),
            stream: 0,
            has_gap: false,
            is_past_signature: false,
            deferred: None,
        }
    }

    /// Waits until a frame may be read; says no when nobody wants any more.
    fn may_read(&mut self) -> bool {
        if self.leaves > 0 {
            return true;
        }
        match self.leave.as_ref().map(Receiver::recv) {
            None => true,
            Some(Ok(Leave::One)) => {
                self.leaves += 1;
                true
            }
            Some(Ok(Leave::All)) => {
                self.leave = None;
                true
            }
            Some(Err(_)) => false,
        }
    }

    /// Frames one after the other, as they come.
    fn by_frames(&mut self, input: impl Read) {
        match self.frames(input, 0) {
            VolumeEnd::Here if self.seen.is_empty() => self.fail(0, FrameError::End),
            VolumeEnd::Here => self.fail(self.end_of_seen(), FrameError::Truncated),
            VolumeEnd::Failed(offset, error) => self.fail(offset, error),
            VolumeEnd::SeekTable => self.end(),
            VolumeEnd::Gone => {}
        }
    }

    /// The frames of volumes, one volume after the other. What cannot be read of one does not hide the next: its label
    /// says how much of the tar stream is lost.
    fn by_volumes(&mut self, medium: &Medium) {
        let mut rest = medium.volumes();
        while let [volume, behind @ ..] = rest {
            rest = behind;
            let end = if volume.is_there() {
                self.frames(volume.reader(medium), volume.start)
            } else {
                // To read there says what is missing.
                let error = medium.read_at(&mut [0], volume.start).err().map(FrameError::of);
                VolumeEnd::Failed(volume.start, error.unwrap_or(FrameError::Truncated))
            };
            let (offset, error) = match end {
                VolumeEnd::Here if !rest.is_empty() => continue,
                VolumeEnd::Here if medium.is_empty() => return self.fail(0, FrameError::End),
                VolumeEnd::Here => (volume.start + volume.len, FrameError::Truncated),
                VolumeEnd::Failed(offset, error) => (offset, error),
                VolumeEnd::SeekTable => return self.end(),
                VolumeEnd::Gone => return,
            };
            let next = rest.iter().position(|next| next.is_there() && next.stream.is_some());
            let lost = next.and_then(|next| rest[next].stream?.checked_sub(self.stream));
            let (Some(next), Some(lost)) = (next, lost.and_then(|lost| usize::try_from(lost).ok())) else {
                return self.fail(offset, error);
            };
            rest = &rest[next..];
            self.has_gap = true;
            if lost == 0 {
                self.defer(offset, error);
            } else if self.ready(offset, lost, Err(error)).is_err() {
                return;
            }
        }
    }

    /// Frames up to the end of `input`, which begins at `start` of the bundle.
    fn frames(&mut self, input: impl Read, start: u64) -> VolumeEnd {
        let mut frames = FrameReader::new(BufReader::with_capacity(READ_AHEAD, input), start, &self.buffers);
        loop {
            let offset = frames.offset();
            match frames.next_frame() {
                Ok(Some(Frame::Skippable { magic: SEEK_TABLE_MAGIC, payload })) => {
                    if !self.has_gap && seek_table::decode(&payload).is_none_or(|table| table != self.seen) {
                        self.defer(offset, FrameError::SeekTable);
                    }
                    let offset = frames.offset();
                    if !matches!(frames.next_frame(), Ok(None)) {
                        self.defer(offset, FrameError::Trailing);
                    }
                    return VolumeEnd::SeekTable;
                }
                Ok(Some(_)) if self.seen.len() >= SKIPPABLE_LIMIT as usize / 8 => {
                    return VolumeEnd::Failed(offset, FrameError::Foreign("more than a bundle may have"));
                }
                Ok(Some(frame)) => {
                    self.seen.push(Entry {
                        compressed: u32::try_from(frames.offset() - offset).unwrap_or(u32::MAX),
                        decompressed: u32::try_from(frame.content_size()).unwrap_or(u32::MAX),
                    });
                    if self.frame(offset, frame).is_err() {
                        return VolumeEnd::Gone;
                    }
                }
                Ok(None) => return VolumeEnd::Here,
                Err(error) => return VolumeEnd::Failed(offset, error),
            }
        }
    }

    fn end_of_seen(&self) -> u64 {
        self.seen.iter().map(|entry| u64::from(entry.compressed)).sum()
    }

    /// Frames where the seek table says that they are: a damaged one does not hide the next. Only those that hold some of
    /// `wanted`, if anybody says so.
    fn by_table(
        &mut self,
        medium: &Arc<Medium>,
        table: &[Entry],
        start: TableStart,
        wanted: Option<&[Range<u64>]>,
    ) {
        self.may_mend = may_mend(medium, table);
        let mut input = BufReader::with_capacity(READ_AHEAD, medium.reader(start.offset));
        let (mut offset, mut stream) = (start.offset, start.stream);
        // Where the input stands; nothing is read to pass over something.
        let mut input_at = offset;
        let mut skipped = None;
        for entry in table.iter().skip(start.frame) {
            let (at, end) = (offset, offset + u64::from(entry.compressed));
            let content = stream..stream + u64::from(entry.decompressed);
            (offset, stream) = (end, content.end);
            if wanted.is_some_and(|wanted| !overlaps(wanted, &content)) {
                let (_, len) = skipped.get_or_insert((at, 0));
                *len += entry.decompressed as usize;
                continue;
            }
            if let Some((at, len)) = skipped.take().filter(|(_, len)| *len > 0)
                && self.ready(at, len, Err(FrameError::Skipped)).is_err()
            {
                return;
            }
            if input_at != at
                && let Err(error) = input.seek(SeekFrom::Start(at))
            {
                return self.fail(at, FrameError::Read(error));
            }
            if entry.decompressed > 0 && !self.may_read() {
                return;
            }
            if entry.decompressed == 0 && self.is_past_signature && is_recovery(medium, at, *entry) {
                medium.note_recovery();
                input_at = at;
                continue;
            }
            let sent = self.by_entry(medium, &mut input, at, *entry);
            input_at = match sent {
                Ok(is_whole) => {
                    if is_whole {
                        end
                    } else {
                        u64::MAX
                    }
                }
                Err(Gone) => return,
            };
        }
        if let Some((at, len)) = skipped.filter(|(_, len)| *len > 0)
            && self.ready(at, len, Err(FrameError::Skipped)).is_err()
        {
            return;
        }
        self.end();
    }

    /// The frame of `entry`, which is at `offset`; says whether the input stands behind it then.
    fn by_entry(
        &mut self,
        medium: &Arc<Medium>,
        input: &mut BufReader<MediumReader<'_>>,
        offset: u64,
        entry: Entry,
    ) -> Result<bool, Gone> {
        let end = offset + u64::from(entry.compressed);
        let mut frames = FrameReader::new(input.take(u64::from(entry.compressed)), offset, &self.buffers);
        let frame = frames.next_frame();
        let is_whole = frames.offset() == end;
        let mender = Mender { medium: medium.clone(), may_mend: self.may_mend, offset, entry };
        match frame {
            Ok(Some(Frame::Data(data))) if is_whole && data.content_size() == entry.decompressed as usize => {
                self.data(offset, data, Some(mender))?;
            }
            Ok(Some(frame)) if is_whole && frame.content_size() == entry.decompressed as usize => {
                self.frame(offset, frame)?;
            }
            Ok(Some(frame)) if is_whole => self.contested(offset, entry, frame)?,
            // It is not the bundle that ends there, but what the table says of the frame.
            Ok(_) | Err(FrameError::Truncated) => self.mended(&mender, FrameError::Damaged)?,
            Err(error) => self.mended(&mender, error)?,
        }
        Ok(is_whole)
    }

    /// A frame that is no frame, unless recovery data knows it.
    fn mended(&mut self, mender: &Mender, error: FrameError) -> Result<(), Gone> {
        let (offset, entry) = (mender.offset, mender.entry);
        match mender.frame(&self.buffers) {
            Some(Frame::Data(data)) => self.data(offset, data, None),
            Some(frame) => self.frame(offset, frame),
            None => self.hole(offset, entry, error),
        }
    }

    /// A frame that is decoded on another core, and mended there if it turns out to be damaged.
    fn data(&mut self, offset: u64, data: Data, mender: Option<Mender>) -> Result<(), Gone> {
        let len = data.content_size();
        self.stream += len as u64;
        let (sender, content) = channel();
        let buffers = self.buffers.clone();
        rayon::spawn_fifo(move || match (data.decode(&buffers), mender) {
            // Not here: to mend takes a lock and all cores, and a core that waits for the others would take the next job,
            // which would wait for the lock.
            (Err(error), Some(mender)) => drop(std::thread::spawn(move || {
                let right = match mender.frame(&buffers) {
                    Some(Frame::Data(data)) => data.decode(&buffers).ok(),
                    _ => None,
                };
                let _ = sender.send(right.ok_or(error)); // as below
            })),
            (content, _) => drop(sender.send(content)), // nobody wants it after an error
        });
        self.send(Chunk { offset, len, content, last: false })
    }

    fn frame(&mut self, offset: u64, frame: Frame) -> Result<(), Gone> {
        match frame {
            Frame::Data(data) => self.data(offset, data, None),
            Frame::Skippable { magic: SIGNATURE_MAGIC, payload }
                if !self.is_past_signature && payload.len() <= SIGNATURE_LIMIT =>
            {
                self.is_past_signature = true;
                if Signature::parse(&payload).is_none() {
                    self.defer(offset, FrameError::Foreign("that should be a signature"));
                }
                self.sender.send(Sent::Signature(payload)).map_err(|_| Gone)
            }
            Frame::Skippable { magic: VOLUME_MAGIC, payload } => {
                self.is_past_signature = true;
                match Label::parse(&payload) {
                    Some(label) if label.number == 1 => self.stream = 0,
                    Some(_) => {}
                    None => self.defer(offset, FrameError::Foreign("that should be the label of a volume")),
                }
                Ok(())
            }
            Frame::Skippable { magic: RECOVERY_MAGIC, .. } => {
                if !std::mem::replace(&mut self.is_past_signature, true) {
                    self.defer(offset, FrameError::Foreign("where the padding of the head belongs"));
                }
                Ok(())
            }
            Frame::Skippable { magic, payload } => {
                self.is_past_signature = true;
                if magic != PADDING_MAGIC || payload.iter().any(|byte| *byte != 0) {
                    self.defer(offset, FrameError::Foreign("that no bundle has"));
                }
                Ok(())
            }
        }
    }

    /// A frame that states another content size than the table. It has a checksum, and the table has none: which of
    /// them is wrong is known when it is decoded. Frames of a bundle that nobody damaged never come here, so this need
    /// not be fast, and holds one frame more.
    fn contested(&mut self, offset: u64, entry: Entry, frame: Frame) -> Result<(), Gone> {
        let len = frame.content_size();
        if let Frame::Data(data) = frame {
            match data.decode(&self.buffers) {
                Ok(content) => self.ready(offset, len, Ok(content))?,
                Err(error) => return self.hole(offset, entry, error),
            }
        }
        self.defer(offset, FrameError::SeekTable);
        Ok(())
    }

    /// A frame that is damaged, of known size.
    fn hole(&mut self, offset: u64, entry: Entry, error: FrameError) -> Result<(), Gone> {
        if entry.decompressed == 0 {
            self.defer(offset, error);
            return Ok(());
        }
        self.ready(offset, entry.decompressed as usize, Err(error))
    }

    /// What is known already of a frame with `len` bytes.
    fn ready(&mut self, offset: u64, len: usize, known: Result<Buffer, FrameError>) -> Result<(), Gone> {
        self.stream += len as u64;
        let (sender, content) = channel();
        let _ = sender.send(known);
        self.send(Chunk { offset, len, content, last: false })
    }

    fn defer(&mut self, offset: u64, error: FrameError) {
        self.deferred.get_or_insert((offset, error));
    }

    fn end(&mut self) {
        if let Some((offset, error)) = self.deferred.take() {
            self.fail(offset, error);
        }
    }

    /// Nothing can be read behind `offset`.
    fn fail(&mut self, offset: u64, error: FrameError) {
        let (sender, content) = channel();
        let _ = sender.send(Err(error));
        let _ = self.send(Chunk { offset, len: 0, content, last: true });
    }

    fn send(&mut self, chunk: Chunk) -> Result<(), Gone> {
        self.leaves = self.leaves.saturating_sub(1);
        self.sender.send(Sent::Chunk(chunk)).map_err(|_| Gone)
    }
}

/// Whether any of the sorted `ranges` has something of `range`.
fn overlaps(ranges: &[Range<u64>], range: &Range<u64>) -> bool {
    let first = ranges.partition_point(|other| other.end <= range.start);
    ranges.get(first).is_some_and(|other| other.start < range.end)
}

/// Whether recovery data is at `offset`: a lot of bytes that nobody needs to read here.
fn is_recovery(medium: &Medium, offset: u64, entry: Entry) -> bool {
    let mut header = [0; 8];
    let len = entry.compressed.wrapping_sub(8).to_le_bytes();
    let expected = [RECOVERY_MAGIC.to_le_bytes(), len].concat();
    medium.read_at(&mut header, offset).is_ok_and(|read| read == header.len()) && header[..] == expected
}

/// Whether any frame of `table` is recovery data, or may be.
fn may_mend(medium: &Medium, table: &[Entry]) -> bool {
    let mut offset = 0;
    table.iter().any(|entry| {
        let at = offset;
        offset += u64::from(entry.compressed);
        let mut magic = [0; 4];
        entry.decompressed == 0
            && (medium.read_at(&mut magic, at).is_err() || magic == RECOVERY_MAGIC.to_le_bytes())
    })
}

fn unexpected(expected: &str, found: String) -> ReadError {
    ReadError::Unexpected { expected: expected.to_owned(), found }
}

/// What is wrong with the very first entry is most likely that this is no bundle at all.
fn first_failure(error: ReadError) -> ReadError {
    match error {
        ReadError::Damaged { place, source: FrameError::Magic, .. } if place.offset == 0 => {
            ReadError::NotABundle("it does not begin with a zstd frame".into())
        }
        ReadError::Damaged { source: FrameError::End, .. } => ReadError::NotABundle("it is empty".into()),
        ReadError::Damaged { place, source: FrameError::Foreign(why), .. } if place.offset == 0 => {
            ReadError::NotABundle(format!("it begins with a zstd frame {why}"))
        }
        ReadError::Unexpected { found, .. } => ReadError::NotABundle(format!("its first entry is {found}")),
        other => other,
    }
}

/// Says what a tar header holds, for an error: nothing of it is ever used.
fn describe(header: &[u8]) -> String {
    let tar = tar::Header::from_byte_slice(header);
    if header.iter().all(|byte| *byte == 0) {
        return "its end".into();
    }
    if tar.as_ustar().is_none() && tar.as_gnu().is_none() {
        return "no tar header".into();
    }
    let name: String = String::from_utf8_lossy(&tar.path_bytes()).escape_debug().take(200).collect();
    match tar.entry_type() {
        kind if kind.is_file() => format!("the file `{name}` of {} bytes", tar.entry_size().unwrap_or(0)),
        kind if kind.is_symlink() => format!("the symbolic link `{name}`"),
        kind if kind.is_hard_link() => format!("the hard link `{name}`"),
        kind if kind.is_dir() => format!("the folder `{name}`"),
        kind if kind.is_fifo() => format!("the FIFO `{name}`"),
        kind if kind.is_character_special() || kind.is_block_special() => format!("the device `{name}`"),
        kind if kind.is_pax_local_extensions() || kind.is_pax_global_extensions() => "a PAX header".into(),
        kind if kind.is_gnu_longname() || kind.is_gnu_longlink() => "a GNU long name".into(),
        kind => format!("an entry `{name}` of type {:?}", char::from(kind.as_byte())),
    }
}
