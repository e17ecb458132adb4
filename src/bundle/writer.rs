//! [`BundleWriter`]: writes a bundle, front to back, into `NAME.partial`, and gives it its name at the end.
//!
//! Two things are known only when everything has been fetched: the head (`index.json` and the file set name the
//! digests of files that no list pinned), and, for a large such file, its tar header. Room for both is kept,
//! and they are written last. The room depends only on what the lists say, so the bytes do not tell whether a
//! digest was known early or late.

use std::collections::VecDeque;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::bundle::frame::{self, PADDING_MAGIC, SIGNATURE_MAGIC};
use crate::bundle::layout::{blob_name, tar_header};
use crate::bundle::seek_table;
use crate::bundle::{BLOCK, FRAME_SIZE, INDEX_JSON, OCI_LAYOUT, OCI_LAYOUT_CONTENT, padded};
use crate::digest::Digest;
use crate::fs::{self, FsError};

/// How many bytes are written between two requests to bring them to the disk, so that the sync at the end
/// finds little left to do.
const FLUSH_STEP: u64 = 64 << 20;

/// The documents at the front of a bundle.
pub struct Head {
    /// The bytes of `index.json`.
    pub index: Vec<u8>,
    /// The bytes of the file set's manifest, if there are files.
    pub files: Option<Vec<u8>>,
    /// A signature of `index.json`, if the room for it was kept.
    pub signature: Option<Vec<u8>>,
}

/// Writes a bundle; see the module.
pub struct BundleWriter {
    output: Output,
    /// Where the bundle will be when it is finished.
    target: PathBuf,
    head_room: u64,
    level: i32,
    /// The small entries gathered for the next frame.
    shared: Vec<u8>,
    /// The entry that is being written.
    entry: Option<OpenEntry>,
    /// Tar headers that could not be written in their turn: the frame and what it is to hold.
    late_headers: Vec<(usize, [u8; BLOCK])>,
}

/// The right to write a bundle: `<target>.partial`, open and locked.
pub struct Claim {
    pub(crate) file: File,
    pub(crate) partial: PathBuf,
    pub(crate) target: PathBuf,
}

/// Why a bundle must not be written.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It cannot be.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process is writing it.
    #[error("another `airbundle` is writing `{}`", .0.display())]
    Busy(PathBuf),
}

impl Claim {
    /// Claims `target`; fails if it cannot be written, or if somebody else is writing it.
    pub fn new(target: &Path) -> Result<Self, ClaimError> {
        let partial = partial_path(target);
        if target.is_dir() {
            let source = io::ErrorKind::IsADirectory.into();
            return Err(FsError { action: "create", path: target.to_owned(), source }.into());
        }
        loop {
            let mut options = File::options();
            let file = options.read(true).write(true).create(true).truncate(false).open(&partial);
            let file = file.map_err(FsError::at("create", &partial))?;
            file.try_lock().map_err(|error| match error {
                TryLockError::WouldBlock => ClaimError::Busy(target.to_owned()),
                TryLockError::Error(source) => FsError::at("lock", &partial)(source).into(),
            })?;
            // Whoever held the lock may have finished just now: then this is the bundle, and must not be touched.
            if is_at(&file, &partial).map_err(FsError::at("open", &partial))? {
                return Ok(Self { file, partial, target: target.to_owned() });
            }
        }
    }

    /// Gives what an earlier run has left the name `aside`, and claims its own one again.
    pub fn set_aside(self, aside: &Path) -> Result<Self, ClaimError> {
        fs::rename_durably(&self.partial, aside)?;
        Self::new(&self.target)
    }

    /// Forgets what an earlier run has left.
    pub fn empty(&self) -> Result<(), FsError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.sync_all());
        emptied.map_err(FsError::at("empty", &self.partial))
    }

    /// How many bytes an earlier run has left.
    pub fn size(&self) -> Result<u64, FsError> {
        Ok(self.file.metadata().map_err(FsError::at("read", &self.partial))?.len())
    }

    /// The same claim once more.
    pub fn again(&self) -> Result<Self, FsError> {
        Ok(Self { file: self.lock()?, partial: self.partial.clone(), target: self.target.clone() })
    }

    /// Another handle of the same lock, which lasts until all are gone.
    pub fn lock(&self) -> Result<File, FsError> {
        self.file.try_clone().map_err(FsError::at("open", &self.partial))
    }
}

/// Whether `file` is what now has the name `path`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let here = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What a finished bundle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The digest of `index.json`: the identity of the bundle.
    pub identity: Digest,
    /// The size of the bundle in bytes.
    pub size: u64,
}

/// A frame that stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameRecord {
    /// Where it begins, in bytes from the start of the bundle.
    pub(crate) offset: u64,
    /// How many bytes it has there.
    pub(crate) compressed: usize,
    /// How many bytes of the tar stream it holds.
    pub(crate) decompressed: usize,
}

/// What an earlier run has written of the same bundle, and how far it came: `partial.rs` finds it.
#[derive(Default)]
pub(crate) struct Kept {
    /// The frames that stay.
    pub(crate) frames: Vec<FrameRecord>,
    /// The small entries that belong into the next frame.
    pub(crate) shared: Vec<u8>,
    /// The large entry that was being written, and how many bytes of it there are.
    pub(crate) entry: Option<(OwnFrames, u64)>,
    /// Tar headers that are still to be written: the frame and what it is to hold.
    pub(crate) late_headers: Vec<(usize, [u8; BLOCK])>,
}

/// An entry between [`BundleWriter::begin`] and its end.
struct OpenEntry {
    /// Its header, where digest and size are known.
    header: Option<[u8; BLOCK]>,
    /// What has come of it and is in no frame yet.
    buffer: Vec<u8>,
    /// How many bytes of it have come.
    size: u64,
    /// Once it is too large to share a frame: where its own frames begin.
    own: Option<OwnFrames>,
}

/// The frames of a large entry, and what is needed to take them back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnFrames {
    /// The first frame that it caused: that of the small entries before it, or its header's.
    pub(crate) first: usize,
    /// The frame of its header.
    pub(crate) header: usize,
    /// The small entries before it, whose frame it ended.
    pub(crate) shared: Vec<u8>,
}

/// The largest entry content that shares a frame with others.
pub(crate) const SHARED_LIMIT: usize = FRAME_SIZE - BLOCK;

impl BundleWriter {
    /// Begins the bundle. `head_room` is what [`head_room`] says; `level` is zstd's, 1 to 22.
    pub fn begin_bundle(claim: Claim, head_room: u64, level: i32) -> Result<Self, FsError> {
        let Claim { file, partial, target } = claim;
        file.set_len(0).map_err(FsError::at("empty", &partial))?;
        let mut output = Output::new(file, partial);
        output.seek_to_end()?;
        // What is not finished is no bundle, but already a valid sequence of frames.
        output.write(&padding(head_room))?;
        Ok(Self {
            output,
            target,
            head_room,
            level,
            shared: Vec::new(),
            entry: None,
            late_headers: Vec::new(),
        })
    }

    /// Goes on with a bundle of which an earlier run has written `kept`, with the same head room and level.
    #[cfg_attr(not(feature = "net"), expect(dead_code, reason = "only `pack` goes on with a bundle"))]
    pub(crate) fn go_on(claim: Claim, head_room: u64, level: i32, kept: Kept) -> Result<Self, FsError> {
        let Claim { file, partial, target } = claim;
        let mut output = Output::new(file, partial);
        output.offset = kept.frames.last().map_or(head_room, |frame| frame.offset + frame.compressed as u64);
        output.file.set_len(output.offset).map_err(FsError::at("truncate", &output.path))?;
        // The earlier run may have been killed when it had already written the head.
        output.patch(0, &padding(head_room))?;
        output.seek_to_end()?;
        (output.queued, output.written) = (sum(&kept.frames), sum(&kept.frames));
        output.frames = kept.frames;
        let entry = kept.entry.map(|(own, size)| OpenEntry {
            header: None,
            buffer: Vec::new(),
            size,
            own: Some(own),
        });
        let Kept { shared, late_headers, .. } = kept;
        Ok(Self { output, target, head_room, level, shared, entry, late_headers })
    }

    /// How many bytes of the tar stream behind the head it has taken.
    #[must_use]
    pub fn position(&self) -> u64 {
        let entry = self.entry.as_ref();
        let entry = entry.map_or(0, |entry| entry.buffer.len() + if entry.own.is_none() { BLOCK } else { 0 });
        self.output.queued + (self.shared.len() + entry) as u64
    }

    /// How many of them stand in the file: what a killed process does not lose.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.output.written
    }

    /// Begins a blob; `known` if its digest and size are known already.
    pub fn begin(&mut self, known: Option<(Digest, u64)>) {
        assert!(self.entry.is_none(), "an entry inside an entry; please report");
        self.entry = Some(OpenEntry {
            header: known.map(|(digest, size)| tar_header(&blob_name(digest), size)),
            buffer: Vec::new(),
            size: 0,
            own: None,
        });
    }

    /// Writes the next bytes of the blob.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        let entry = self.entry.as_mut().expect("`begin` comes first; please report");
        entry.size += bytes.len() as u64;
        if entry.own.is_none() {
            if entry.size <= SHARED_LIMIT as u64 {
                entry.buffer.extend_from_slice(bytes);
                return Ok(());
            }
            let begun = std::mem::take(&mut entry.buffer);
            let header = frame::store(&entry.header.unwrap_or([0; BLOCK]));
            let shared = self.shared.clone();
            let first = self.output.next_frame();
            self.end_shared_frame()?;
            let own = OwnFrames { first, header: self.output.next_frame(), shared };
            self.output.frame_later(BLOCK, move || header)?;
            self.entry.as_mut().expect("it was there above").own = Some(own);
            self.append(&begun)?;
        }
        self.append(bytes)
    }

    /// Writes the next bytes of the blob, without copying them where they make up a whole frame.
    pub fn write_piece(&mut self, piece: Vec<u8>) -> Result<(), FsError> {
        let entry = self.entry.as_mut().expect("`begin` comes first; please report");
        if entry.own.is_some() && entry.buffer.is_empty() && piece.len() == FRAME_SIZE {
            entry.size += piece.len() as u64;
            return self.compress(piece);
        }
        self.write(&piece)
    }

    /// Writes the next bytes of the blob, which make up a whole frame, as they stand in another bundle: `frame`, which
    /// [`frame::encode`] would make of them, too. Says whether it did: only a large blob has frames of its own.
    pub fn write_frame(&mut self, frame: Vec<u8>, content_size: usize) -> Result<(), FsError> {
        let entry = self.entry.as_mut().expect("`begin` comes first; please report");
        assert!(
            entry.own.is_some() && entry.buffer.is_empty() && content_size == FRAME_SIZE,
            "a frame in the middle of another; please report"
        );
        entry.size += content_size as u64;
        self.output.frame_later(content_size, move || frame)
    }

    /// Whether the next bytes of the blob begin a frame that has no others.
    #[must_use]
    pub fn is_at_frame(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.own.is_some() && entry.buffer.is_empty())
    }

    /// Ends the blob, which has turned out to be `digest`.
    pub fn end(&mut self, digest: Digest) -> Result<(), FsError> {
        let mut entry = self.entry.take().expect("`begin` comes first; please report");
        let header = tar_header(&blob_name(digest), entry.size);
        assert!(
            entry.header.is_none_or(|known| known == header),
            "`{digest}` is another blob; please report"
        );
        entry
            .buffer
            .resize(entry.buffer.len() + usize::try_from(padded(entry.size) - entry.size).expect("< 512"), 0);
        if let Some(own) = entry.own {
            if entry.header.is_none() {
                self.late_headers.push((own.header, header));
            }
            return if entry.buffer.is_empty() { Ok(()) } else { self.compress(entry.buffer) };
        }
        if self.shared.len() + BLOCK + entry.buffer.len() > FRAME_SIZE {
            self.end_shared_frame()?;
        }
        self.shared.extend_from_slice(&header);
        self.shared.extend_from_slice(&entry.buffer);
        Ok(())
    }

    /// Ends the frame that small blobs share. Called behind the last manifest: a damaged blob must not take the
    /// documents with it that say what everything is.
    pub fn end_manifests(&mut self) -> Result<(), FsError> {
        self.end_shared_frame()
    }

    /// Takes the blob that is being written back, as if it had never begun.
    pub fn take_back(&mut self) -> Result<(), FsError> {
        if let Some(own) = self.entry.take().and_then(|entry| entry.own) {
            self.output.truncate(own.first)?;
            self.shared = own.shared;
        }
        Ok(())
    }

    /// Writes the head and the seek table, brings everything to the disk, and gives the bundle its name.
    pub fn finish(mut self, head: &Head) -> Result<Written, FsError> {
        assert!(self.entry.is_none(), "an entry without end; please report");
        if self.shared.len() + 2 * BLOCK > FRAME_SIZE {
            self.end_shared_frame()?;
        }
        self.shared.resize(self.shared.len() + 2 * BLOCK, 0); // the end of a tar archive
        self.end_shared_frame()?;
        self.output.drain(0)?;
        for (frame, header) in std::mem::take(&mut self.late_headers) {
            self.output.patch(self.output.frames[frame].offset, &frame::store(&header))?;
        }

        let identity = Digest::of(&head.index);
        let head_frames = head.frames(self.level);
        let mut bytes: Vec<u8> = head_frames.iter().flat_map(|(_, frame)| frame).copied().collect();
        let signature = head.signature.as_deref().map(|text| frame::skippable(SIGNATURE_MAGIC, text));
        bytes.extend(signature.iter().flatten());
        let room = usize::try_from(self.head_room).expect("a head fits in memory");
        let padding = room.checked_sub(bytes.len()).filter(|left| *left >= 8);
        let padding = frame::skippable(
            PADDING_MAGIC,
            &vec![0; padding.expect("`head_room` was computed from the same lists; please report") - 8],
        );
        bytes.extend_from_slice(&padding);
        self.output.patch(0, &bytes)?;

        let entry = |compressed: usize, decompressed: usize| seek_table::Entry {
            compressed: u32::try_from(compressed).expect("frames are small"),
            decompressed: u32::try_from(decompressed).expect("frames are small"),
        };
        let head = head_frames.iter().map(|(content, frame)| entry(frame.len(), *content));
        let body = self.output.frames.iter().map(|frame| entry(frame.compressed, frame.decompressed));
        let skippable = signature.iter().chain([&padding]).map(|frame| entry(frame.len(), 0));
        let table: Vec<_> = head.chain(skippable).chain(body).collect();
        self.output.write(&seek_table::encode(&table))?;
        let (partial, size) = self.output.finish()?;
        fs::rename_durably(&partial, &self.target)?;
        Ok(Written { identity, size })
    }

    /// Cuts a large entry into frames.
    fn append(&mut self, mut bytes: &[u8]) -> Result<(), FsError> {
        while !bytes.is_empty() {
            let entry = self.entry.as_mut().expect("only called inside an entry");
            let (now, later) = bytes.split_at(bytes.len().min(FRAME_SIZE - entry.buffer.len()));
            if entry.buffer.is_empty() {
                entry.buffer.reserve_exact(FRAME_SIZE);
            }
            entry.buffer.extend_from_slice(now);
            bytes = later;
            if entry.buffer.len() == FRAME_SIZE {
                let full = std::mem::take(&mut entry.buffer);
                self.compress(full)?;
            }
        }
        Ok(())
    }

    fn end_shared_frame(&mut self) -> Result<(), FsError> {
        let content = std::mem::take(&mut self.shared);
        if content.is_empty() { Ok(()) } else { self.compress(content) }
    }

    fn compress(&mut self, content: Vec<u8>) -> Result<(), FsError> {
        let level = self.level;
        self.output.frame_later(content.len(), move || frame::encode(&content, level))
    }
}

impl Head {
    /// The frames of the head, each with the size of its content.
    fn frames(&self, level: i32) -> Vec<(usize, Vec<u8>)> {
        let mut stream = Vec::new();
        let digest = self.files.as_deref().map(|files| blob_name(Digest::of(files)));
        let entries = [(OCI_LAYOUT, OCI_LAYOUT_CONTENT), (INDEX_JSON, &self.index)];
        let files = digest.as_deref().zip(self.files.as_deref());
        for (name, content) in entries.into_iter().chain(files) {
            stream.extend_from_slice(&tar_header(name, content.len() as u64));
            stream.extend_from_slice(content);
            stream.resize(stream.len().next_multiple_of(BLOCK), 0);
        }
        stream.chunks(FRAME_SIZE).map(|content| (content.len(), frame::encode(content, level))).collect()
    }
}

/// How many bytes of a bundle are kept for its head, if its documents will have at most these sizes.
#[must_use]
pub fn head_room(index: usize, files: Option<usize>) -> u64 {
    let entries = [OCI_LAYOUT_CONTENT.len(), index].into_iter().chain(files);
    let stream: usize = entries.map(|size| BLOCK + size.next_multiple_of(BLOCK)).sum();
    let frames = stream.div_ceil(FRAME_SIZE) * frame::stored_len(FRAME_SIZE).saturating_sub(FRAME_SIZE);
    (stream + frames + 8).next_multiple_of(BLOCK) as u64
}

/// The name that `target` has while it is being written.
#[must_use]
pub fn partial_path(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// The files that hold what is being written at `partial`: itself, and one for each further volume.
#[must_use]
pub fn parts(partial: &Path) -> Vec<PathBuf> {
    let further = (2..).map(|number| part_path(partial, number)).take_while(|path| path.is_file());
    std::iter::once(partial.to_owned()).chain(further).collect()
}

/// The file of the volume `number` of what is being written at `partial`.
#[must_use]
pub fn part_path(partial: &Path, number: u32) -> PathBuf {
    if number == 1 {
        return partial.to_owned();
    }
    let mut name = partial.as_os_str().to_owned();
    name.push(format!(".{number:03}"));
    name.into()
}

/// The names of what is left of bundles at `partial` that were to be other ones.
#[must_use]
pub fn old_paths(partial: &Path) -> [PathBuf; 2] {
    [".old", ".older"].map(|end| {
        let mut name = partial.as_os_str().to_owned();
        name.push(end);
        name.into()
    })
}

fn padding(len: u64) -> Vec<u8> {
    frame::skippable(PADDING_MAGIC, &vec![0; usize::try_from(len).expect("a head fits in memory") - 8])
}

/// The file, with the frames that are still being compressed.
struct Output {
    file: File,
    path: PathBuf,
    offset: u64,
    frames: Vec<FrameRecord>,
    pending: VecDeque<(usize, Receiver<Vec<u8>>)>,
    /// How many bytes of the stream all frames hold.
    queued: u64,
    /// How many of them those hold that stand in the file.
    written: u64,
    flusher: Flusher,
}

fn sum(frames: &[FrameRecord]) -> u64 {
    frames.iter().map(|frame| frame.decompressed as u64).sum()
}

impl Output {
    fn new(file: File, path: PathBuf) -> Self {
        let flusher = Flusher::start(&file);
        let (frames, pending) = (Vec::new(), VecDeque::new());
        Self { file, path, offset: 0, frames, pending, queued: 0, written: 0, flusher }
    }

    /// The number of the frame that is added next.
    fn next_frame(&self) -> usize {
        self.frames.len() + self.pending.len()
    }

    /// Adds a frame that `make` makes on another core; the file keeps the order of the calls.
    fn frame_later(
        &mut self,
        decompressed: usize,
        make: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<(), FsError> {
        let (sender, receiver) = channel();
        rayon::spawn_fifo(move || {
            let _ = sender.send(make()); // nobody waits for it after an error
        });
        self.pending.push_back((decompressed, receiver));
        self.queued += decompressed as u64;
        // Enough for every core to have one at work and one waiting, and a bound for the memory.
        self.drain(rayon::current_num_threads().min(6) + 2)
    }

    /// Writes the frames that were added first, until only `left` are still to be written.
    fn drain(&mut self, left: usize) -> Result<(), FsError> {
        while self.pending.len() > left {
            let (decompressed, receiver) = self.pending.pop_front().expect("not empty");
            let frame = receiver.recv().expect("a frame is always made; please report");
            self.frames.push(FrameRecord { offset: self.offset, compressed: frame.len(), decompressed });
            self.write(&frame)?;
            self.written += decompressed as u64;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        self.file.write_all(bytes).map_err(FsError::at("write", &self.path))?;
        self.offset += bytes.len() as u64;
        self.flusher.wrote(bytes.len() as u64);
        Ok(())
    }

    fn patch(&mut self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        self.file.write_all_at(bytes, offset).map_err(FsError::at("write", &self.path))
    }

    /// Forgets the frame `first` and all behind it.
    fn truncate(&mut self, first: usize) -> Result<(), FsError> {
        self.drain(0)?;
        let Some(record) = self.frames.get(first) else { return Ok(()) };
        self.offset = record.offset;
        self.frames.truncate(first);
        (self.queued, self.written) = (sum(&self.frames), sum(&self.frames));
        self.file.set_len(self.offset).map_err(FsError::at("truncate", &self.path))?;
        self.seek_to_end()
    }

    fn seek_to_end(&mut self) -> Result<(), FsError> {
        let end = io::SeekFrom::Start(self.offset);
        io::Seek::seek(&mut self.file, end).map(drop).map_err(FsError::at("seek in", &self.path))
    }

    fn finish(self) -> Result<(PathBuf, u64), FsError> {
        self.flusher.finish().and_then(|()| self.file.sync_all()).map_err(FsError::at("sync", &self.path))?;
        Ok((self.path, self.offset))
    }
}

/// A thread that brings what was written to the disk while more is written.
pub(crate) struct Flusher {
    unflushed: u64,
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Flusher {
    pub(crate) fn start(file: &File) -> Self {
        let (wake, woken) = channel();
        // Without a second handle everything is left to the sync at the end.
        let thread = file.try_clone().ok().map(|file| {
            std::thread::spawn(move || {
                while woken.recv().is_ok() {
                    while woken.try_recv().is_ok() {}
                    file.sync_data()?;
                }
                Ok(())
            })
        });
        Self { unflushed: 0, wake: Some(wake), thread }
    }

    pub(crate) fn wrote(&mut self, bytes: u64) {
        self.unflushed += bytes;
        if self.unflushed >= FLUSH_STEP {
            self.unflushed = 0;
            if let Some(wake) = &self.wake {
                let _ = wake.send(()); // the thread has ended with an error, which `finish` returns
            }
        }
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.wake = None;
        match self.thread.take() {
            Some(thread) => thread.join().expect("the flusher does not panic; please report"),
            None => Ok(()),
        }
    }
}
