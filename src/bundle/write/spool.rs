//! [`Spool`]: `NAME.partial.spool`, the downloaded data that is not in `NAME.partial` yet.
//!
//! A bundle is written in a fixed order, but its blobs arrive in another order. Pieces of blobs that wait in
//! memory are also written here, so that a killed process loses only data in flight. A piece is released when
//! it is in the bundle, and its space is used again: the file is about as large as the memory for waiting
//! pieces. The spool also notes what `NAME.partial` cannot tell: the fingerprint of its plan, and the digests
//! of unpinned files.
//!
//! ```text
//! offset  bytes
//! 0       8      magic
//! 8       32     fingerprint of the plan
//! 40      8      n, number of notes
//! 48      8      seed of the checksums
//! 56      48 × n notes: digest, size, checksum; zeros if unknown
//! …              pieces, each at a multiple of 4 KiB, the first one at a multiple of 64 KiB:
//!                magic, key, offset in the blob, length, checksum (8 + 32 + 8 + 8 + 8), then the bytes
//! ```
//!
//! Numbers are little-endian. A checksum is XXH64 of the preceding fields and, for a piece, its bytes. The
//! seed is random, because the search for pieces includes released space: a server could send bytes that look
//! like a piece of another blob. Otherwise the spool is untrusted: bytes from it are hashed with their blob.
//! So it is never synced; after a power failure, less of it is usable.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use xxhash_rust::xxh64::Xxh64;

use crate::base::bulk;
use crate::base::fs::{self, FsError};
use crate::base::own_file::open_or_create;
use crate::bundle::format::FRAME_SIZE;
use crate::oci::digest::Digest;

const MAGIC: [u8; 8] = *b"abspool2";
/// Magic of a piece whose key is the digest of its blob.
const PIECE_MAGIC: [u8; 8] = *b"abpiece1";
/// Magic of a piece whose key identifies a version of a file.
const VERSION_MAGIC: [u8; 8] = *b"abversn1";
const HEADER: usize = 56;
const NOTE: usize = 48;
const PIECE_HEADER: usize = 64;
/// Offset of the checksum in the header of a piece, and in a note.
const PIECE_CHECKSUM: usize = 56;
const NOTE_CHECKSUM: usize = 40;
/// Alignment of pieces in bytes.
const ALIGN: u64 = 4 << 10;
/// Alignment of the end of the notes in bytes. Another plan usually has its pieces at the same offsets.
const NOTES_ALIGN: u64 = 64 << 10;

/// The spool of an unfinished bundle; see the module.
pub(crate) struct Spool {
    path: PathBuf,
    file: File,
    pieces_at: u64,
    seed: u64,
    state: Mutex<SpoolState>,
}

/// The notes of an earlier run.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// Fingerprint of its plan. `None`: no earlier run.
    pub fingerprint: Option<Digest>,
    /// Digest and size in bytes of the unpinned files, by their number. `None`: unknown.
    pub files: Vec<Option<(Digest, u64)>>,
}

/// Identifies the blob of a piece. A manifest can state any digest, and a list of files contains no secret: the
/// two kinds of keys are never equal, whatever their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SpoolKey {
    /// Digest of the blob, which verifies the bytes.
    Blob(Digest),
    /// A file of unknown sha256: a value that differs for other files and other versions.
    Version(Digest),
}

/// A piece from an earlier run.
#[derive(Debug)]
pub(crate) struct SpooledPiece {
    /// Key of the blob.
    pub key: SpoolKey,
    /// Offset in the blob.
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// The space of a piece.
struct Allocation {
    /// Position in the file.
    position: u64,
    /// Length in bytes, including the header and padding.
    len: u64,
}

#[derive(Default)]
struct SpoolState {
    /// The pieces by key and offset.
    pieces: HashMap<(SpoolKey, u64), Allocation>,
    /// Lengths of free ranges, by position.
    free: BTreeMap<u64, u64>,
    end: u64,
    /// True after a write error, usually a full disk. The spool is optional, so the error is not reported.
    has_failed: bool,
}

impl Spool {
    /// Opens the spool next to `partial` and reads the notes of an earlier run.
    pub(crate) fn open(partial: &Path) -> Result<(Self, Notes), FsError> {
        let path = path(partial);
        let file = open_or_create(&path)?;
        let seed = RandomState::new().build_hasher().finish();
        let mut spool = Self { path, file, pieces_at: 0, seed, state: Mutex::default() };
        let notes = spool.read_notes().unwrap_or_default();
        Ok((spool, notes))
    }

    fn read_notes(&mut self) -> io::Result<Notes> {
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, 0)?;
        if header[..8] != MAGIC {
            return Ok(Notes::default());
        }
        self.seed = number(&header[48..]);
        let count = number(&header[40..48]).min(1 << 20);
        let mut files = Vec::new();
        for file in 0..count {
            let mut note = [0; NOTE];
            self.file.read_exact_at(&mut note, note_at(file))?;
            let (fields, checksum) = note.split_at(NOTE_CHECKSUM);
            let is_intact = self.checksum(&[&file.to_le_bytes(), fields]) == number(checksum);
            files.push(is_intact.then(|| (digest(&fields[..32]), number(&fields[32..]))));
        }
        Ok(Notes { fingerprint: Some(digest(&header[8..40])), files })
    }

    /// Starts or resumes a plan with `count` unpinned files. Unless `is_same`, the notes of the earlier plan
    /// are discarded. Returns the pieces of an earlier run that are `needed`; the space of all other pieces
    /// is released.
    pub(crate) fn begin(
        &mut self,
        fingerprint: Digest,
        count: u64,
        is_same: bool,
        needed: impl Fn(SpoolKey, u64) -> bool,
    ) -> Result<Vec<SpooledPiece>, FsError> {
        self.pieces_at = note_at(count).next_multiple_of(NOTES_ALIGN);
        let at = |action| FsError::at(action, &self.path);
        let found = self.find_pieces(&needed).map_err(at("read"))?;
        if !is_same {
            let mut header = vec![0; usize::try_from(self.pieces_at).expect("notes fit in memory")];
            header[..8].copy_from_slice(&MAGIC);
            header[8..40].copy_from_slice(fingerprint.as_bytes());
            header[40..48].copy_from_slice(&count.to_le_bytes());
            header[48..HEADER].copy_from_slice(&self.seed.to_le_bytes());
            self.file.write_all_at(&header, 0).map_err(at("write"))?;
        }
        Ok(found)
    }

    fn find_pieces(&self, needed: &impl Fn(SpoolKey, u64) -> bool) -> io::Result<Vec<SpooledPiece>> {
        let len = self.file.metadata()?.len();
        let mut state = self.lock();
        let mut found = Vec::new();
        let mut position = self.pieces_at;
        while position + PIECE_HEADER as u64 <= len {
            let mut allocated = ALIGN;
            if let Some(piece) = self.read_piece(position, needed)? {
                allocated = allocated_len(piece.bytes.len());
                state.pieces.insert((piece.key, piece.offset), Allocation { position, len: allocated });
                found.push(piece);
            } else {
                state.release(position, allocated);
            }
            position += allocated;
        }
        state.end = position;
        Ok(found)
    }

    /// Returns the piece at `position`. `None`: no intact piece, or not `needed`.
    fn read_piece(
        &self,
        position: u64,
        needed: &impl Fn(SpoolKey, u64) -> bool,
    ) -> io::Result<Option<SpooledPiece>> {
        let mut header = [0; PIECE_HEADER];
        self.file.read_exact_at(&mut header, position)?;
        let Some(key) = SpoolKey::read(&header) else { return Ok(None) };
        let (offset, len) = (number(&header[40..48]), number(&header[48..56]));
        if len > FRAME_SIZE as u64 || !needed(key, offset) {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(len).expect("at most a frame")];
        if self.file.read_exact_at(&mut bytes, position + PIECE_HEADER as u64).is_err() {
            return Ok(None); // the writing process was killed
        }
        let (fields, checksum) = header.split_at(PIECE_CHECKSUM);
        let is_intact = self.checksum(&[fields, &bytes]) == number(checksum);
        Ok(is_intact.then_some(SpooledPiece { key, offset, bytes }))
    }

    /// Notes the digest and the size of unpinned file number `file`.
    pub(crate) fn note(&self, file: u64, digest: Digest, size: u64) {
        let mut note = [0; NOTE];
        note[..32].copy_from_slice(digest.as_bytes());
        note[32..NOTE_CHECKSUM].copy_from_slice(&size.to_le_bytes());
        let checksum = self.checksum(&[&file.to_le_bytes(), &note[..NOTE_CHECKSUM]]);
        note[NOTE_CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        if self.file.write_all_at(&note, note_at(file)).is_err() {
            self.lock().has_failed = true;
        }
    }

    /// Forgets the plan: the partial bundle may contain bytes of a version that the plan does not name, and a later
    /// run must not append bytes of that one.
    #[cfg(feature = "net")]
    pub(crate) fn forget_plan(&self) {
        if self.file.write_all_at(&[0; 32], 8).is_err() {
            self.lock().has_failed = true;
        }
    }

    /// Writes a piece: bytes of blob `key` at `offset`.
    pub(crate) fn put(&self, key: SpoolKey, offset: u64, bytes: &[u8]) {
        let len = allocated_len(bytes.len());
        let mut state = self.lock();
        if state.has_failed || state.pieces.contains_key(&(key, offset)) {
            return;
        }
        let position = state.allocate(len);
        drop(state);
        // The header is written last: without it, there is no piece.
        let written = bulk::write_all_at(&self.file, bytes, position + PIECE_HEADER as u64)
            .and_then(|()| self.file.write_all_at(&self.piece_header(key, offset, bytes), position));
        let mut state = self.lock();
        match written {
            Ok(()) => drop(state.pieces.insert((key, offset), Allocation { position, len })),
            Err(_) => state.has_failed = true,
        }
    }

    fn piece_header(&self, key: SpoolKey, offset: u64, bytes: &[u8]) -> [u8; PIECE_HEADER] {
        let mut header = [0; PIECE_HEADER];
        header[..8].copy_from_slice(key.magic());
        header[8..40].copy_from_slice(key.digest().as_bytes());
        header[40..48].copy_from_slice(&offset.to_le_bytes());
        header[48..PIECE_CHECKSUM].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        let checksum = self.checksum(&[&header[..PIECE_CHECKSUM], bytes]);
        header[PIECE_CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    /// Releases the space of a piece that is in the bundle.
    pub(crate) fn release(&self, key: SpoolKey, offset: u64) {
        let mut state = self.lock();
        if let Some(Allocation { position, len }) = state.pieces.remove(&(key, offset)) {
            state.release(position, len);
        }
    }

    /// Discards all pieces of a blob with a digest mismatch.
    pub(crate) fn forget(&self, key: SpoolKey) {
        let mut state = self.lock();
        let pieces: Vec<_> = state.pieces.extract_if(|(piece_key, _), _| *piece_key == key).collect();
        for (_, Allocation { position, len }) in pieces {
            // Hides the piece from later runs. If this fails, they find another digest mismatch and fetch the
            // blob again.
            let _ = self.file.write_all_at(&[0; 8], position);
            state.release(position, len);
        }
    }

    /// True if the spool has no pieces.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().pieces.is_empty()
    }

    fn checksum(&self, parts: &[&[u8]]) -> u64 {
        let mut hasher = Xxh64::new(self.seed);
        for part in parts {
            hasher.update(part);
        }
        hasher.digest()
    }

    fn lock(&self) -> MutexGuard<'_, SpoolState> {
        self.state.lock().expect("no panic while the lock is held; please report")
    }
}

impl SpoolKey {
    /// Reads the key in the header of a piece. `None`: no piece.
    fn read(header: &[u8; PIECE_HEADER]) -> Option<Self> {
        let digest = digest(&header[8..40]);
        let kinds = [Self::Blob(digest), Self::Version(digest)];
        kinds.into_iter().find(|key| header[..8] == *key.magic())
    }

    fn magic(&self) -> &'static [u8; 8] {
        match self {
            Self::Blob(_) => &PIECE_MAGIC,
            Self::Version(_) => &VERSION_MAGIC,
        }
    }

    fn digest(&self) -> &Digest {
        let (Self::Blob(digest) | Self::Version(digest)) = self;
        digest
    }
}

impl fmt::Display for SpoolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(digest) => write!(f, "{digest}"),
            Self::Version(digest) => write!(f, "version {digest}"),
        }
    }
}

impl SpoolState {
    /// Returns the position of `needed` bytes: the first free range that is large enough, or the end.
    fn allocate(&mut self, needed: u64) -> u64 {
        let fits = self.free.iter().find(|(_, len)| **len >= needed).map(|(at, len)| (*at, *len));
        let Some((at, len)) = fits else {
            let at = self.end;
            self.end += needed;
            return at;
        };
        self.free.remove(&at);
        if len > needed {
            self.free.insert(at + needed, len - needed);
        }
        at
    }

    fn release(&mut self, mut at: u64, mut len: u64) {
        // Merges adjacent free ranges.
        if let Some((before, before_len)) = self.free.range(..at).next_back().map(|(at, len)| (*at, *len))
            && before + before_len == at
        {
            self.free.remove(&before);
            (at, len) = (before, before_len + len);
        }
        if let Some(after_len) = self.free.remove(&(at + len)) {
            len += after_len;
        }
        self.free.insert(at, len);
    }
}

/// Returns the path of the spool of the unfinished bundle `partial`.
#[must_use]
pub(crate) fn path(partial: &Path) -> PathBuf {
    fs::with_suffix(partial, ".spool")
}

/// Removes the spool of the unfinished bundle `partial`.
pub(crate) fn remove(partial: &Path) -> Result<(), FsError> {
    fs::remove_file(&path(partial))
}

/// Returns the position of a note.
fn note_at(file: u64) -> u64 {
    HEADER as u64 + file * NOTE as u64
}

/// Returns the allocated length of a piece of `len` bytes.
fn allocated_len(len: usize) -> u64 {
    (PIECE_HEADER as u64 + len as u64).next_multiple_of(ALIGN)
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(bytes.try_into().expect("32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn key(text: &str) -> SpoolKey {
        SpoolKey::Blob(digest_of(text))
    }

    fn begin(partial: &Path, needed: impl Fn(SpoolKey, u64) -> bool) -> (Spool, Notes, Vec<SpooledPiece>) {
        let (mut spool, notes) = Spool::open(partial).unwrap();
        let is_same = notes.fingerprint == Some(digest_of("plan"));
        let found = spool.begin(digest_of("plan"), 3, is_same, needed).unwrap();
        (spool, notes, found)
    }

    #[test]
    fn pieces_are_found_again_and_released_space_is_reused() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join("x.partial");
        let (spool, notes, found) = begin(&partial, |_, _| true);
        assert!(notes.fingerprint.is_none() && found.is_empty());
        spool.note(1, digest_of("file"), 5);
        for (name, offset, len) in [("a", 0, 10_000), ("b", 0, 100), ("b", 100, FRAME_SIZE), ("c", 0, 0)] {
            spool.put(key(name), offset, &vec![1; len]);
        }
        let len = spool.file.metadata().unwrap().len();
        spool.release(key("a"), 0);
        spool.put(key("d"), 7, &[2; 3]);
        assert_eq!(spool.file.metadata().unwrap().len(), len, "the space of `a` is reused");
        spool.forget(key("c"));

        let (spool, notes, found) = begin(&partial, |key, _| key != self::key("a"));
        assert_eq!(notes.fingerprint, Some(digest_of("plan")));
        assert_eq!(notes.files, [None, Some((digest_of("file"), 5)), None]);
        let mut found: Vec<_> =
            found.into_iter().map(|piece| (piece.key, piece.offset, piece.bytes.len())).collect();
        found.sort_by_key(|(_, offset, len)| (*offset, *len));
        assert_eq!(found, [(key("b"), 0, 100), (key("d"), 7, 3), (key("b"), 100, FRAME_SIZE)]);
        assert!(!spool.is_empty());
    }

    #[test]
    fn corrupt_notes_and_pieces_are_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join("x.partial");
        let (spool, ..) = begin(&partial, |_, _| true);
        spool.note(0, digest_of("file"), 5);
        spool.put(key("a"), 0, &[1; 5000]);
        spool.put(key("b"), 0, &[1; 5000]);
        let position = spool.lock().pieces[&(key("a"), 0)].position;
        spool.file.write_all_at(&[7], position + 3000).unwrap();
        spool.file.write_all_at(&[7], note_at(0) + 3).unwrap();
        let (_, notes, found) = begin(&partial, |_, _| true);
        assert_eq!(notes.files, [None, None, None]);
        assert_eq!(found.iter().map(|piece| piece.key).collect::<Vec<_>>(), [key("b")]);
        std::fs::write(path(&partial), b"abspool2 and too little").unwrap();
        let (_, notes, found) = begin(&partial, |_, _| true);
        assert!(notes.fingerprint.is_none() && found.is_empty());
    }

    #[test]
    fn a_version_of_a_file_never_gets_the_pieces_of_a_blob_with_the_same_bytes_as_key() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join("x.partial");
        let (spool, ..) = begin(&partial, |_, _| true);
        let version = SpoolKey::Version(digest_of("same"));
        spool.put(key("same"), 0, b"blob");
        spool.put(version, 0, b"file");
        spool.release(key("other"), 0);
        let (.., found) = begin(&partial, |key, _| key == version);
        assert_eq!(found.into_iter().map(|piece| piece.bytes).collect::<Vec<_>>(), [b"file"]);
        let (spool, ..) = begin(&partial, |_, _| true);
        spool.forget(key("same"));
        let (.., found) = begin(&partial, |_, _| true);
        assert_eq!(found.iter().map(|piece| piece.key).collect::<Vec<_>>(), [version]);
    }

    #[test]
    fn a_forged_piece_inside_a_released_piece_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join("x.partial");
        let (spool, ..) = begin(&partial, |_, _| true);
        // The checksum has seed 0: a server does not know the random seed.
        let mut forged = [0; PIECE_HEADER];
        forged[..8].copy_from_slice(&PIECE_MAGIC);
        forged[8..40].copy_from_slice(digest_of("victim").as_bytes());
        forged[48..56].copy_from_slice(&4_u64.to_le_bytes());
        let mut hasher = Xxh64::new(0);
        hasher.update(&forged[..56]);
        hasher.update(b"evil");
        forged[56..].copy_from_slice(&hasher.digest().to_le_bytes());
        let before = vec![0; usize::try_from(ALIGN).unwrap() - PIECE_HEADER];
        spool.put(key("a"), 0, &[&before[..], &forged, b"evil"].concat());
        spool.release(key("a"), 0);
        let (_, _, found) = begin(&partial, |of, _| of == key("victim"));
        assert!(found.is_empty(), "{found:?}");
    }
}
