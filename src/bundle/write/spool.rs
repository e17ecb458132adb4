//! [`Spool`]: `NAME.partial.spool`, what a run knows and holds that is not in `NAME.partial` yet.
//!
//! A bundle is written in one order and its blobs come in another, so at any moment some of what has come waits in
//! memory. It is put here, too, until it stands in the bundle: whoever kills the process loses only what was on its
//! way. What is taken out leaves its room to the next, so the file stays as small as the memory that it stands for.
//! And it notes what cannot be read off `NAME.partial`: of which plan that is the beginning, and what the files
//! turned out to be that no list pins.
//!
//! ```text
//! offset  bytes
//! 0       8      magic
//! 8       32     the fingerprint of the plan
//! 40      8      n, how many notes there may be
//! 48      8      the seed of the checksums
//! 56      48 × n notes: digest, size, checksum; zeros: nothing is known yet
//! …              pieces, each at a multiple of 4 KiB, the first at one of 64 KiB:
//!                magic, key, offset in the blob, length, checksum (8 + 32 + 8 + 8 + 8), then its bytes
//! ```
//!
//! Numbers are little-endian; a checksum is XXH64 of what stands before it and, of a piece, its bytes. Its seed is
//! random: pieces are looked for in the room of released ones, too, where whoever made those bytes could have put
//! something that looks like a piece of another file. Nothing here is trusted beyond that: what is taken from here is
//! hashed with the blob that it belongs to. So nothing is ever synced, either; after a power failure less is kept.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use xxhash_rust::xxh64::Xxh64;

use crate::base::fs::{self, FsError};
use crate::bundle::format::FRAME_SIZE;
use crate::oci::digest::Digest;

const MAGIC: [u8; 8] = *b"abspool2";
const PIECE_MAGIC: [u8; 8] = *b"abpiece1";
const HEADER: usize = 56;
const NOTE: usize = 48;
const PIECE_HEADER: usize = 64;
/// Pieces begin at multiples of this.
const ALIGN: u64 = 4 << 10;
/// The notes have multiples of this, so that another plan's pieces are found where this one looks for them.
const NOTES_ALIGN: u64 = 64 << 10;

/// The file; see the module.
pub(crate) struct Spool {
    path: PathBuf,
    file: File,
    pieces_at: u64,
    seed: u64,
    state: Mutex<SpoolState>,
}

/// What an earlier run noted.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// The fingerprint of its plan, if there was an earlier run.
    pub fingerprint: Option<Digest>,
    /// What its files turned out to be, by their number: digest and size in bytes.
    pub files: Vec<Option<(Digest, u64)>>,
}

/// A piece that an earlier run left.
#[derive(Debug)]
pub(crate) struct SpooledPiece {
    /// The blob.
    pub key: Digest,
    /// Where in the blob.
    pub offset: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

#[derive(Default)]
struct SpoolState {
    /// Where pieces stand, and in how much room.
    pieces: HashMap<(Digest, u64), (u64, u64)>,
    /// Room between them, by offset.
    free: BTreeMap<u64, u64>,
    end: u64,
    /// Why nothing more is put here: the disk is full, most likely. The bundle will say so; this is a help only.
    broken: bool,
}

impl Spool {
    /// Opens the spool of the bundle that is written into `partial`, and reads the notes of an earlier run.
    pub(crate) fn open(partial: &Path) -> Result<(Self, Notes), FsError> {
        let path = path(partial);
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(FsError::at("create", &path))?;
        let seed = RandomState::new().build_hasher().finish();
        let mut spool = Self { path, file, pieces_at: 0, seed, state: Mutex::default() };
        let notes = spool.notes().unwrap_or_default();
        Ok((spool, notes))
    }

    fn notes(&mut self) -> io::Result<Notes> {
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, 0)?;
        if header[..8] != MAGIC {
            return Ok(Notes::default());
        }
        self.seed = number(&header[48..]);
        let count = number(&header[40..48]).min(1 << 20);
        let mut files = Vec::new();
        for number_of in 0..count {
            let mut note = [0; NOTE];
            self.file.read_exact_at(&mut note, note_at(number_of))?;
            let sound = self.checksum(&[&number_of.to_le_bytes(), &note[..40]]) == number(&note[40..]);
            files.push(sound.then(|| (digest(&note[..32]), number(&note[32..40]))));
        }
        Ok(Notes { fingerprint: Some(digest(&header[8..40])), files })
    }

    /// Begins, or goes on with, a plan that has `count` files which no list pins. What was noted for another plan is
    /// forgotten. Returns the pieces of an earlier run that are `wanted`; the room of all others is free.
    pub(crate) fn begin(
        &mut self,
        fingerprint: Digest,
        count: u64,
        is_same: bool,
        wanted: impl Fn(Digest, u64) -> bool,
    ) -> Result<Vec<SpooledPiece>, FsError> {
        self.pieces_at = note_at(count).next_multiple_of(NOTES_ALIGN);
        let at = |action| FsError::at(action, &self.path);
        let found = self.find(&wanted).map_err(at("read"))?;
        if !is_same {
            let mut head = vec![0; usize::try_from(self.pieces_at).expect("notes fit in memory")];
            head[..8].copy_from_slice(&MAGIC);
            head[8..40].copy_from_slice(fingerprint.as_bytes());
            head[40..48].copy_from_slice(&count.to_le_bytes());
            head[48..HEADER].copy_from_slice(&self.seed.to_le_bytes());
            self.file.write_all_at(&head, 0).map_err(at("write"))?;
        }
        Ok(found)
    }

    fn find(&self, wanted: &impl Fn(Digest, u64) -> bool) -> io::Result<Vec<SpooledPiece>> {
        let len = self.file.metadata()?.len();
        let mut state = self.lock();
        let mut found = Vec::new();
        let mut position = self.pieces_at;
        while position + PIECE_HEADER as u64 <= len {
            let mut room = ALIGN;
            if let Some(piece) = self.piece(position, wanted)? {
                room = self::room(piece.bytes.len());
                state.pieces.insert((piece.key, piece.offset), (position, room));
                found.push(piece);
            } else {
                state.release(position, room);
            }
            position += room;
        }
        state.end = position;
        Ok(found)
    }

    /// The piece at `position`, if there is a sound one that is wanted.
    fn piece(
        &self,
        position: u64,
        wanted: &impl Fn(Digest, u64) -> bool,
    ) -> io::Result<Option<SpooledPiece>> {
        let mut header = [0; PIECE_HEADER];
        self.file.read_exact_at(&mut header, position)?;
        let (key, offset, len) = (digest(&header[8..40]), number(&header[40..48]), number(&header[48..56]));
        if header[..8] != PIECE_MAGIC || len > FRAME_SIZE as u64 || !wanted(key, offset) {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(len).expect("at most a frame")];
        if self.file.read_exact_at(&mut bytes, position + PIECE_HEADER as u64).is_err() {
            return Ok(None); // it ends too early: whoever wrote it was killed
        }
        let sound = self.checksum(&[&header[..56], &bytes]) == number(&header[56..]);
        Ok(sound.then_some(SpooledPiece { key, offset, bytes }))
    }

    /// Notes what file `number_of` turned out to be.
    pub(crate) fn note(&self, number_of: u64, digest: Digest, size: u64) {
        let mut note = [0; NOTE];
        note[..32].copy_from_slice(digest.as_bytes());
        note[32..40].copy_from_slice(&size.to_le_bytes());
        let sum = self.checksum(&[&number_of.to_le_bytes(), &note[..40]]);
        note[40..].copy_from_slice(&sum.to_le_bytes());
        if self.file.write_all_at(&note, note_at(number_of)).is_err() {
            self.lock().broken = true;
        }
    }

    /// Puts a piece here: bytes of the blob `key` from `offset` on.
    pub(crate) fn put(&self, key: Digest, offset: u64, bytes: &[u8]) {
        let needed = room(bytes.len());
        let mut state = self.lock();
        if state.broken || state.pieces.contains_key(&(key, offset)) {
            return;
        }
        let position = state.allocate(needed);
        drop(state);
        let mut header = [0; PIECE_HEADER];
        header[..8].copy_from_slice(&PIECE_MAGIC);
        header[8..40].copy_from_slice(key.as_bytes());
        header[40..48].copy_from_slice(&offset.to_le_bytes());
        header[48..56].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        let sum = self.checksum(&[&header[..56], bytes]);
        header[56..].copy_from_slice(&sum.to_le_bytes());
        let written = self
            .file
            .write_all_at(bytes, position + PIECE_HEADER as u64)
            .and_then(|()| self.file.write_all_at(&header, position));
        let mut state = self.lock();
        match written {
            Ok(()) => drop(state.pieces.insert((key, offset), (position, needed))),
            Err(_) => state.broken = true,
        }
    }

    /// Gives the room of a piece free: it stands in the bundle.
    pub(crate) fn release(&self, key: Digest, offset: u64) {
        let mut state = self.lock();
        if let Some((position, room)) = state.pieces.remove(&(key, offset)) {
            state.release(position, room);
        }
    }

    /// Forgets all pieces of a blob: it came wrong.
    pub(crate) fn forget(&self, key: Digest) {
        let mut state = self.lock();
        let pieces: Vec<_> = state.pieces.extract_if(|(of, _), _| *of == key).collect();
        for (_, (position, room)) in pieces {
            // Nobody is to find it again. (Where this fails, it is hashed, found wrong, and fetched again.)
            let _ = self.file.write_all_at(&[0; 8], position);
            state.release(position, room);
        }
    }

    /// Whether it holds any piece.
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
        self.state.lock().expect("nothing panics while it holds the spool; please report")
    }
}

impl SpoolState {
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
        if let Some((before, room)) = self.free.range(..at).next_back().map(|(before, room)| (*before, *room))
            && before + room == at
        {
            self.free.remove(&before);
            (at, len) = (before, room + len);
        }
        if let Some(room) = self.free.remove(&(at + len)) {
            len += room;
        }
        self.free.insert(at, len);
    }
}

/// The name of the spool beside `partial`.
#[must_use]
pub(crate) fn path(partial: &Path) -> PathBuf {
    let mut name = partial.as_os_str().to_owned();
    name.push(".spool");
    name.into()
}

/// Removes the spool of the bundle that was written into `partial`.
pub(crate) fn remove(partial: &Path) -> Result<(), FsError> {
    fs::remove_file(&path(partial))
}

/// Where a note stands.
fn note_at(number_of: u64) -> u64 {
    HEADER as u64 + number_of * NOTE as u64
}

fn room(len: usize) -> u64 {
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

    fn key(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn begin(partial: &Path, wanted: impl Fn(Digest, u64) -> bool) -> (Spool, Notes, Vec<SpooledPiece>) {
        let (mut spool, notes) = Spool::open(partial).unwrap();
        let is_same = notes.fingerprint == Some(key("plan"));
        let found = spool.begin(key("plan"), 3, is_same, wanted).unwrap();
        (spool, notes, found)
    }

    #[test]
    fn what_was_put_is_found_again_and_what_was_released_makes_room() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join("x.partial");
        let (spool, notes, found) = begin(&partial, |_, _| true);
        assert!(notes.fingerprint.is_none() && found.is_empty());
        spool.note(1, key("file"), 5);
        for (name, offset, len) in [("a", 0, 10_000), ("b", 0, 100), ("b", 100, FRAME_SIZE), ("c", 0, 0)] {
            spool.put(key(name), offset, &vec![1; len]);
        }
        let len = spool.file.metadata().unwrap().len();
        spool.release(key("a"), 0);
        spool.put(key("d"), 7, &[2; 3]);
        assert_eq!(spool.file.metadata().unwrap().len(), len, "the room of `a` is used again");
        spool.forget(key("c"));

        let (spool, notes, found) = begin(&partial, |key, _| key != self::key("a"));
        assert_eq!(notes.fingerprint, Some(key("plan")));
        assert_eq!(notes.files, [None, Some((key("file"), 5)), None]);
        let mut found: Vec<_> =
            found.into_iter().map(|piece| (piece.key, piece.offset, piece.bytes.len())).collect();
        found.sort_by_key(|(_, offset, len)| (*offset, *len));
        assert_eq!(found, [(key("b"), 0, 100), (key("d"), 7, 3), (key("b"), 100, FRAME_SIZE)]);
        assert!(!spool.is_empty());
    }

    #[test]
    fn what_is_damaged_is_not_found() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join("x.partial");
        let (spool, ..) = begin(&partial, |_, _| true);
        spool.note(0, key("file"), 5);
        spool.put(key("a"), 0, &[1; 5000]);
        spool.put(key("b"), 0, &[1; 5000]);
        let (position, _) = spool.lock().pieces[&(key("a"), 0)];
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
    fn what_a_released_piece_holds_is_no_piece_whatever_it_looks_like() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join("x.partial");
        let (spool, ..) = begin(&partial, |_, _| true);
        // All that the maker of a file can know.
        let mut forged = [0; PIECE_HEADER];
        forged[..8].copy_from_slice(&PIECE_MAGIC);
        forged[8..40].copy_from_slice(key("victim").as_bytes());
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
