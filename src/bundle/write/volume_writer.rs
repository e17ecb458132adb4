//! [`VolumeWriter`]: where a bundle is written to, in one file or in volumes.
//!
//! It is addressed as the bundle will be: by the bytes that stand before. A volume that is to have recovery data keeps room
//! for it at its end, which is written when nothing of the volume changes any more.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::base::flusher::Flusher;
use crate::base::fs::{self, FsError};
use crate::bundle::format::label::Label;
use crate::bundle::format::skippable::SKIPPABLE_LIMIT;
use crate::bundle::format::volume_name::VOLUME_LIMIT;
use crate::bundle::recovery::{self, Geometry, LENGTH_LIMIT};
use crate::bundle::write::parts::{part_path, remove_parts_from, volume_path};
use crate::oci::digest::{Digest, Hasher};

/// In what form a bundle is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeOptions {
    /// How many bytes a volume has at most; nothing for one file.
    pub volume_size: Option<u64>,
    /// How much recovery data there is, in parts of 1,000 of what it protects; nothing for none.
    pub recovery: Option<u32>,
    /// What the labels of its volumes say that they belong to.
    pub set: Digest,
}

impl VolumeOptions {
    /// One file without recovery data.
    #[must_use]
    pub fn plain() -> Self {
        Self { volume_size: None, recovery: None, set: Digest::of(b"") }
    }

    /// How many bytes of a volume are left for all but recovery data.
    #[must_use]
    pub fn room(&self) -> u64 {
        match (self.volume_size, self.recovery) {
            (None, _) => u64::MAX,
            (Some(size), None) => size,
            (Some(size), Some(share)) => recovery::largest_front(size, share).unwrap_or(0),
        }
    }

    /// The label of the first volume, if there are to be volumes.
    #[must_use]
    pub fn first_label(&self) -> Option<Vec<u8>> {
        self.volume_size.map(|_| Label::new(self.set, 1, 0, 0).to_frame())
    }

    fn shape(&self, len: u64) -> Option<Geometry> {
        Some(Geometry::new(len, self.recovery?))
    }
}

/// A volume that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedVolume {
    /// Where it is.
    pub path: PathBuf,
    /// The first one is 1.
    pub number: u32,
    /// The digest of all of it.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// What is being written; see the module.
pub(crate) struct VolumeWriter {
    partial: PathBuf,
    carry: VolumeOptions,
    /// Those that are not handed over. The first of all is always here.
    parts: Vec<VolumeFile>,
}

/// One volume, or the one file.
struct VolumeFile {
    number: u32,
    path: PathBuf,
    file: File,
    start: u64,
    /// How many bytes it has, without recovery data.
    len: u64,
    flusher: Option<Flusher>,
}

impl VolumeWriter {
    /// An empty one in the file `file`, whose name is `partial`.
    pub(crate) fn new(file: File, partial: PathBuf, carry: VolumeOptions) -> Result<Self, FsError> {
        Self::go_on(file, partial, carry, &[(0, 0)])
    }

    /// What an earlier run has written. `extents` says where each of its volumes begins, and where what stays of it ends.
    pub(crate) fn go_on(
        file: File,
        partial: PathBuf,
        carry: VolumeOptions,
        extents: &[(u64, u64)],
    ) -> Result<Self, FsError> {
        let mut parts = vec![VolumeFile::new(1, partial.clone(), file, (0, 0))];
        for (number, extent) in (1..).zip(extents) {
            let path = part_path(&partial, number);
            if number == 1 {
                parts[0].len = extent.1;
                continue;
            }
            let file =
                File::options().read(true).write(true).open(&path).map_err(FsError::at("open", &path))?;
            parts.push(VolumeFile::new(number, path, file, *extent));
        }
        let mut tape = Self { partial, carry, parts };
        remove_parts_from(&tape.partial, tape.last().number + 1)?;
        tape.cut()?;
        Ok(tape)
    }

    /// Where the next byte is written, in bytes from the start of the bundle.
    pub(crate) fn end(&self) -> u64 {
        let last = self.last();
        last.start + last.len
    }

    /// How many bytes the last volume has.
    pub(crate) fn len(&self) -> u64 {
        self.last().len
    }

    /// Whether `len` bytes more do not fit into this volume.
    pub(crate) fn is_full_for(&self, len: u64) -> bool {
        self.carry.volume_size.is_some() && self.len() + len > self.carry.room()
    }

    /// Whether `offset` is in the last volume.
    pub(crate) fn is_in_last(&self, offset: u64) -> bool {
        offset >= self.last().start
    }

    /// How many bytes of recovery data the last volume gets, if `tail` bytes follow behind what it has.
    pub(crate) fn recovery_len(&self, tail: u64) -> u64 {
        self.carry.shape(self.last().len + tail).map_or(0, |shape| shape.section_len())
    }

    /// Whether it is written in volumes, be it one.
    pub(crate) fn is_in_volumes(&self) -> bool {
        self.carry.volume_size.is_some()
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        let part = self.parts.last_mut().expect("there is a first one");
        // The seek table comes on top.
        if self.carry.recovery.is_some()
            && part.len + bytes.len() as u64 > LENGTH_LIMIT - u64::from(SKIPPABLE_LIMIT)
        {
            let limit = "recovery data protects 512 GiB in one file: write volumes, with --volume-size";
            return Err(FsError::at("write", &part.path)(io::Error::other(limit)));
        }
        part.file.write_all(bytes).map_err(FsError::at("write", &part.path))?;
        part.len += bytes.len() as u64;
        if let Some(flusher) = &mut part.flusher {
            flusher.wrote(bytes.len() as u64);
        }
        Ok(())
    }

    /// Writes `bytes`, which do not reach into another volume, at `offset`.
    pub(crate) fn patch(&mut self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        let part = self.parts.iter().rev().find(|part| part.start <= offset);
        let part = part.expect("what is handed over is not changed; please report");
        part.file.write_all_at(bytes, offset - part.start).map_err(FsError::at("write", &part.path))
    }

    /// Begins the next volume, `stream` bytes of the tar stream behind the head.
    pub(crate) fn next_volume(&mut self, stream: u64) -> Result<(), FsError> {
        let last = self.parts.last_mut().expect("there is a first one");
        let number = last.number + 1;
        let start = last.start + last.len + self.carry.shape(last.len).map_or(0, |shape| shape.section_len());
        last.flusher.iter_mut().for_each(Flusher::close);
        let path = part_path(&self.partial, number);
        if number > VOLUME_LIMIT {
            return Err(FsError::at("create", &path)(io::Error::other(
                "there are too many volumes: make them larger",
            )));
        }
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(FsError::at("create", &path))?;
        let mut part = VolumeFile::new(number, path, file, (start, start));
        part.flusher = Some(Flusher::start(&part.file));
        self.parts.push(part);
        self.append(&Label::new(self.carry.set, number, start, stream).to_frame())
    }

    /// Forgets all from `end` on.
    pub(crate) fn truncate(&mut self, end: u64) -> Result<(), FsError> {
        while self.parts.len() > 1 && self.last().start >= end {
            let part = self.parts.pop().expect("it was counted");
            fs::remove_file(&part.path)?;
        }
        let part = self.parts.last_mut().expect("there is a first one");
        part.len = end - part.start;
        self.cut()
    }

    /// Brings the last file to its length, and to its end.
    fn cut(&mut self) -> Result<(), FsError> {
        let part = self.parts.last_mut().expect("there is a first one");
        part.file.set_len(part.len).map_err(FsError::at("truncate", &part.path))?;
        part.file.seek(SeekFrom::Start(part.len)).map_err(FsError::at("seek in", &part.path))?;
        // That of a volume that had been left is closed.
        if let Some(flusher) = part.flusher.replace(Flusher::start(&part.file)) {
            flusher.finish().map_err(FsError::at("sync", &part.path))?;
        }
        Ok(())
    }

    /// Where the volumes begin, each with how many bytes it has and the sizes of the frames of its recovery data; `tail`
    /// bytes will follow behind those of the last one.
    pub(crate) fn volumes(&self, tail: u64) -> Vec<(u64, u64, Vec<u32>)> {
        let last = self.last().number;
        let volume = |part: &VolumeFile| {
            let protected = part.len + if part.number == last { tail } else { 0 };
            let frames = self.carry.shape(protected).map_or_else(Vec::new, |shape| shape.frames());
            (part.start, part.len, frames)
        };
        self.parts.iter().map(volume).collect()
    }

    /// Finishes the volumes behind the first one that end before `end` and are not the last one, gives them their names,
    /// and forgets them.
    pub(crate) fn hand_over(&mut self, end: u64, target: &Path) -> Result<Vec<FinishedVolume>, FsError> {
        let count = self.parts.len() - 1;
        let ready =
            self.parts[..count].iter().skip(1).take_while(|part| part.start + part.len <= end).count();
        let mut finished = Vec::new();
        for mut part in self.parts.drain(1..=ready) {
            let (digest, size) = part.finish(self.carry, &[], true)?;
            let path = volume_path(target, part.number);
            fs::rename_durably(&part.path, &path)?;
            finished.push(FinishedVolume { path, number: part.number, digest, size });
        }
        Ok(finished)
    }

    /// Writes `tail`, brings everything to the disk, and gives it its name: the first volume last, because without it
    /// there is no bundle. `before` runs when all is on the disk and nothing has its name.
    pub(crate) fn finish(
        mut self,
        tail: &[u8],
        target: &Path,
        before: impl FnOnce(&[FinishedVolume]) -> Result<(), FsError>,
    ) -> Result<Vec<FinishedVolume>, FsError> {
        let last = self.last().number;
        let is_volumes = self.carry.volume_size.is_some();
        let name = |number| if is_volumes { volume_path(target, number) } else { target.to_owned() };
        let mut finished = Vec::new();
        for part in &mut self.parts {
            let tail = if part.number == last { tail } else { &[] };
            let (digest, size) = part.finish(self.carry, tail, is_volumes)?;
            finished.push(FinishedVolume { path: name(part.number), number: part.number, digest, size });
        }
        before(&finished)?;
        for (part, volume) in self.parts.iter().zip(&finished).rev() {
            fs::rename_durably(&part.path, &volume.path)?;
        }
        Ok(finished)
    }

    fn last(&self) -> &VolumeFile {
        self.parts.last().expect("there is a first one; please report")
    }
}

impl VolumeFile {
    /// One that begins and ends there.
    fn new(number: u32, path: PathBuf, file: File, (start, end): (u64, u64)) -> Self {
        Self { number, path, file, start, len: end - start, flusher: None }
    }

    /// Adds recovery data and `tail`, and brings all to the disk. Says what it is, if that `matters`.
    fn finish(&mut self, carry: VolumeOptions, tail: &[u8], matters: bool) -> Result<(Digest, u64), FsError> {
        if let Some(flusher) = self.flusher.take() {
            flusher.finish().map_err(FsError::at("sync", &self.path))?;
        }
        let mut end = self.len;
        if let Some(shape) = carry.shape(self.len + tail.len() as u64) {
            let protected = Protected { part: self, tail };
            let write = |offset: u64, bytes: &[u8]| self.file.write_all_at(bytes, self.len + offset);
            let encoded = recovery::encode(&shape, tail.len() as u64, &protected, write);
            encoded.map_err(FsError::at("write", &self.path))?;
            end += shape.section_len();
        }
        self.file.write_all_at(tail, end).map_err(FsError::at("write", &self.path))?;
        let size = end + tail.len() as u64;
        // An earlier run may have been killed when it was as far as this, with more behind it.
        let synced = self.file.set_len(size).and_then(|()| self.file.sync_all());
        synced.map_err(FsError::at("sync", &self.path))?;
        let digest = if matters {
            self.digest(size).map_err(FsError::at("read", &self.path))?
        } else {
            Digest::of(b"")
        };
        Ok((digest, size))
    }

    fn digest(&self, size: u64) -> io::Result<Digest> {
        let (mut hasher, mut buffer, mut at) = (Hasher::new(), vec![0; 1 << 20], 0);
        while at < size {
            match FileExt::read_at(&self.file, &mut buffer, at)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => {
                    hasher.update(&buffer[..read]);
                    at += read as u64;
                }
            }
        }
        Ok(hasher.finish())
    }
}

/// What recovery data protects: a volume without it.
struct Protected<'a> {
    part: &'a VolumeFile,
    tail: &'a [u8],
}

impl recovery::ReadAt for Protected<'_> {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        if let Some(left) = self.part.len.checked_sub(offset).filter(|left| *left > 0) {
            let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            return FileExt::read_at(&self.part.file, &mut bytes[..len], offset);
        }
        let at = usize::try_from(offset - self.part.len).unwrap_or(usize::MAX).min(self.tail.len());
        let len = bytes.len().min(self.tail.len() - at);
        bytes[..len].copy_from_slice(&self.tail[at..at + len]);
        Ok(len)
    }
}
