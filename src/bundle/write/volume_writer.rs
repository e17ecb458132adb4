//! [`VolumeWriter`]: the files that a bundle is written to, one file or several volumes.
//!
//! Positions are offsets in the bundle, including the recovery data of earlier volumes. Recovery data is
//! written after the other bytes of its volume, when those can no longer change.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::base::bulk;
use crate::base::flusher::Flusher;
use crate::base::fs::{self, FsError};
use crate::base::own_file::{create_new, open_or_create, open_up};
use crate::bundle::format::label::Label;
use crate::bundle::format::skippable::SKIPPABLE_LIMIT;
use crate::bundle::format::volume_name::VOLUME_LIMIT;
use crate::bundle::recovery::{self, Geometry, LENGTH_LIMIT};
use crate::bundle::write::accepted::{Acceptance, AcceptedVolumes};
use crate::bundle::write::parts::{part_path, remove_parts_from, volume_path};
use crate::oci::digest::{Digest, Hasher};

/// The volumes and recovery data of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeOptions {
    /// Maximum size of a volume in bytes. `None`: one file.
    pub volume_size: Option<u64>,
    /// Redundancy of the recovery data, in ‰ of the protected bytes. `None`: no recovery data.
    pub recovery: Option<u32>,
    /// `set` of the volume labels.
    pub set: Digest,
}

impl VolumeOptions {
    /// Options for one file without recovery data.
    #[must_use]
    pub fn single_file() -> Self {
        Self { volume_size: None, recovery: None, set: Digest::of(b"") }
    }

    /// Returns the maximum size of a volume without its recovery data, in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        match (self.volume_size, self.recovery) {
            (None, _) => u64::MAX,
            (Some(size), None) => size,
            (Some(size), Some(per_mille)) => recovery::largest_front(size, per_mille).unwrap_or(0),
        }
    }

    /// Returns the label of the first volume. `None`: one file, which has no label.
    #[must_use]
    pub fn first_label(&self) -> Option<Vec<u8>> {
        self.volume_size.map(|_| Label::new(self.set, 1, 0, 0).to_frame())
    }

    fn geometry(&self, protected: u64) -> Option<Geometry> {
        Some(Geometry::new(protected, self.recovery?))
    }

    fn recovery_len(&self, protected: u64) -> u64 {
        self.geometry(protected).map_or(0, |geometry| geometry.section_len())
    }
}

/// A complete volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedVolume {
    /// Path of the volume.
    pub path: PathBuf,
    /// Number of the volume, from 1.
    pub number: u32,
    /// Digest of the entire volume.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// Tells if the command of `--on-volume` has accepted it in an earlier run.
    pub acceptance: Acceptance,
}

/// The position of a volume in the bundle.
pub(crate) struct VolumeExtent {
    /// Offset of the volume in the bundle.
    pub(crate) start: u64,
    /// Number of bytes before the recovery data.
    pub(crate) front: u64,
    /// Lengths of the frames of the recovery data, in bytes.
    pub(crate) recovery_frames: Vec<u32>,
}

/// Writes a bundle to one file or to volumes; see the module.
pub(crate) struct VolumeWriter {
    partial: PathBuf,
    options: VolumeOptions,
    /// The first volume and those that are not handed over yet.
    files: Vec<VolumeFile>,
}

/// The file of one volume, or of the entire bundle.
struct VolumeFile {
    number: u32,
    path: PathBuf,
    file: File,
    /// Offset of the volume in the bundle.
    start: u64,
    /// Number of bytes, without recovery data.
    len: u64,
    flusher: Option<Flusher>,
}

impl VolumeWriter {
    /// Starts a bundle in `file`, whose path is `partial`.
    pub(crate) fn create(file: File, partial: PathBuf, options: VolumeOptions) -> Result<Self, FsError> {
        Self::resume(file, partial, options, &[(0, 0)])
    }

    /// Resumes a bundle. `extents` has the start of each volume and the end of its valid frames, as offsets
    /// in the bundle. All bytes after the last extent are removed.
    pub(crate) fn resume(
        file: File,
        partial: PathBuf,
        options: VolumeOptions,
        extents: &[(u64, u64)],
    ) -> Result<Self, FsError> {
        let first_end = extents.first().map_or(0, |(_, end)| *end);
        let mut files = vec![VolumeFile::new(1, partial.clone(), file, (0, first_end))];
        for (number, extent) in (2..).zip(extents.iter().skip(1)) {
            let path = part_path(&partial, number);
            let file = open_or_create(&path)?;
            files.push(VolumeFile::new(number, path, file, *extent));
        }
        let mut writer = Self { partial, options, files };
        remove_parts_from(&writer.partial, writer.last().number + 1)?;
        writer.last_mut().cut()?;
        Ok(writer)
    }

    /// Returns the end of the bundle so far.
    pub(crate) fn end(&self) -> u64 {
        self.last().end()
    }

    /// True if another `len` bytes do not fit into the last volume.
    pub(crate) fn is_full_for(&self, len: u64) -> bool {
        self.options.volume_size.is_some() && self.last().len + len > self.options.capacity()
    }

    /// True if the last volume contains `offset`.
    pub(crate) fn is_in_last(&self, offset: u64) -> bool {
        offset >= self.last().start
    }

    /// Returns the length of the last volume's recovery data if it gets a tail of `tail` bytes.
    pub(crate) fn recovery_len(&self, tail: u64) -> u64 {
        self.options.recovery_len(self.last().len + tail)
    }

    /// Appends `bytes` to the last volume.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        let is_protected = self.options.recovery.is_some();
        let volume = self.last_mut();
        // Reserves space for the seek table, which is protected too.
        if is_protected && volume.len + bytes.len() as u64 > LENGTH_LIMIT - u64::from(SKIPPABLE_LIMIT) {
            let limit = "recovery data is limited to 512 GiB per file: split the bundle with `--volume-size`";
            return Err(FsError::at("write", &volume.path)(io::Error::other(limit)));
        }
        bulk::write_all(&mut volume.file, bytes).map_err(FsError::at("write", &volume.path))?;
        volume.len += bytes.len() as u64;
        if let Some(flusher) = &mut volume.flusher {
            flusher.wrote(bytes.len() as u64);
        }
        Ok(())
    }

    /// Overwrites the bundle at `offset` with `bytes`, within one volume that is not handed over.
    pub(crate) fn patch(&mut self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        let volume = self.files.iter().rev().find(|volume| volume.start <= offset);
        let volume = volume.expect("a volume that was handed over is not changed; please report");
        volume.file.write_all_at(bytes, offset - volume.start).map_err(FsError::at("write", &volume.path))
    }

    /// Starts the next volume. `stream` is the number of bytes of the tar stream so far, without the head.
    pub(crate) fn next_volume(&mut self, stream: u64) -> Result<(), FsError> {
        let options = self.options;
        let last = self.last_mut();
        let number = last.number + 1;
        let start = last.end() + options.recovery_len(last.len);
        last.flusher.iter_mut().for_each(Flusher::close);
        let path = part_path(&self.partial, number);
        if number > VOLUME_LIMIT {
            let limit = "too many volumes: increase `--volume-size`";
            return Err(FsError::at("create", &path)(io::Error::other(limit)));
        }
        let file = create_new(&path)?;
        let mut volume = VolumeFile::new(number, path, file, (start, start));
        volume.flusher = Some(Flusher::start(&volume.file));
        self.files.push(volume);
        self.append(&Label::new(options.set, number, start, stream).to_frame())
    }

    /// Removes all bytes starting at `end`.
    pub(crate) fn truncate(&mut self, end: u64) -> Result<(), FsError> {
        while self.files.len() > 1 && self.last().start >= end {
            let volume = self.files.pop().expect("there are two; please report");
            fs::remove_file(&volume.path)?;
        }
        let volume = self.last_mut();
        volume.len = end - volume.start;
        volume.cut()
    }

    /// Returns the extents of the volumes that are not handed over. The last volume gets a tail of `tail`
    /// bytes.
    pub(crate) fn extents(&self, tail: u64) -> impl Iterator<Item = VolumeExtent> + '_ {
        let last = self.last().number;
        self.files.iter().map(move |volume| {
            let tail = if volume.number == last { tail } else { 0 };
            let geometry = self.options.geometry(volume.len + tail);
            let recovery_frames = geometry.map_or_else(Vec::new, |geometry| geometry.frame_lens());
            VolumeExtent { start: volume.start, front: volume.len, recovery_frames }
        })
    }

    /// Completes the volumes that end at or before `end`, renames them to their final names, and forgets
    /// them. The first and the last volume are not handed over. A volume that is `accepted` is removed.
    pub(crate) fn hand_over(
        &mut self,
        end: u64,
        target: &Path,
        accepted: &AcceptedVolumes,
    ) -> Result<Vec<FinishedVolume>, FsError> {
        let last = self.files.len() - 1;
        let ready = self.files[..last].iter().skip(1).take_while(|volume| volume.end() <= end).count();
        let mut finished = Vec::new();
        for mut file in self.files.drain(1..=ready) {
            let size = file.complete(self.options, &[])?;
            let volume = file.finished(target, size, accepted)?;
            volume.publish(&file.path)?;
            finished.push(volume);
        }
        Ok(finished)
    }

    /// Appends `tail` and the recovery data, and syncs all files. Returns the volumes with their final names,
    /// which [`Self::publish`] gives them; none for a bundle in one file.
    pub(crate) fn complete(
        &mut self,
        tail: &[u8],
        target: &Path,
        accepted: &AcceptedVolumes,
    ) -> Result<Vec<FinishedVolume>, FsError> {
        let last = self.last().number;
        let mut volumes = Vec::new();
        for file in &mut self.files {
            let size = file.complete(self.options, if file.number == last { tail } else { &[] })?;
            if self.options.volume_size.is_some() {
                volumes.push(file.finished(target, size, accepted)?);
            }
        }
        Ok(volumes)
    }

    /// Renames all files to their final names. The first volume is the last one to be renamed, since there is
    /// no bundle without it. `volumes` are the result of [`Self::complete`]; accepted ones are removed.
    pub(crate) fn publish(self, target: &Path, volumes: &[FinishedVolume]) -> Result<(), FsError> {
        if self.options.volume_size.is_none() {
            return fs::rename_durably(&self.partial, target);
        }
        self.files.iter().zip(volumes).rev().try_for_each(|(file, volume)| volume.publish(&file.path))
    }

    fn last(&self) -> &VolumeFile {
        self.files.last().expect("there is a first volume; please report")
    }

    fn last_mut(&mut self) -> &mut VolumeFile {
        self.files.last_mut().expect("there is a first volume; please report")
    }
}

impl FinishedVolume {
    /// Renames the file at `partial` to its final name. If the command has accepted the volume and has removed it, removes
    /// the file.
    fn publish(&self, partial: &Path) -> Result<(), FsError> {
        if self.acceptance == Acceptance::Accepted && !fs::exists(&self.path)? {
            fs::remove_file(partial)
        } else {
            fs::rename_durably(partial, &self.path)
        }
    }
}

impl VolumeFile {
    /// `start` and `end` are offsets in the bundle.
    fn new(number: u32, path: PathBuf, file: File, (start, end): (u64, u64)) -> Self {
        Self { number, path, file, start, len: end - start, flusher: None }
    }

    /// Returns the end of the volume's bytes, without recovery data, in the bundle.
    fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Truncates the file to its length and seeks to its end.
    fn cut(&mut self) -> Result<(), FsError> {
        self.file.set_len(self.len).map_err(FsError::at("truncate", &self.path))?;
        self.file.seek(SeekFrom::Start(self.len)).map_err(FsError::at("seek in", &self.path))?;
        // The flusher of an earlier volume is closed, so it is replaced.
        if let Some(flusher) = self.flusher.replace(Flusher::start(&self.file)) {
            flusher.finish().map_err(FsError::at("sync", &self.path))?;
        }
        Ok(())
    }

    /// Adds recovery data and `tail`, and syncs the file. Returns its size in bytes.
    fn complete(&mut self, options: VolumeOptions, tail: &[u8]) -> Result<u64, FsError> {
        if let Some(flusher) = self.flusher.take() {
            flusher.finish().map_err(FsError::at("sync", &self.path))?;
        }
        let mut end = self.len;
        if let Some(geometry) = options.geometry(self.len + tail.len() as u64) {
            let protected = ProtectedBytes { volume: self, tail };
            let write = |offset: u64, bytes: &[u8]| bulk::write_all_at(&self.file, bytes, self.len + offset);
            let encoded = recovery::encode(&geometry, tail.len() as u64, &protected, write);
            encoded.map_err(FsError::at("write", &self.path))?;
            end += geometry.section_len();
        }
        self.file.write_all_at(tail, end).map_err(FsError::at("write", &self.path))?;
        let size = end + tail.len() as u64;
        // A run that was killed after this point can have left a longer file.
        let synced =
            self.file.set_len(size).and_then(|()| open_up(&self.file)).and_then(|()| self.file.sync_all());
        synced.map_err(FsError::at("sync", &self.path))?;
        Ok(size)
    }

    /// Returns the complete volume with its final name.
    fn finished(
        &self,
        target: &Path,
        size: u64,
        accepted: &AcceptedVolumes,
    ) -> Result<FinishedVolume, FsError> {
        let digest = self.digest(size).map_err(FsError::at("read", &self.path))?;
        let (path, number) = (volume_path(target, self.number), self.number);
        let acceptance = accepted.acceptance(number, size, digest);
        Ok(FinishedVolume { path, number, digest, size, acceptance })
    }

    fn digest(&self, size: u64) -> io::Result<Digest> {
        let (mut hasher, mut buffer, mut offset) = (Hasher::new(), vec![0; 1 << 20], 0);
        while offset < size {
            match FileExt::read_at(&self.file, &mut buffer, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => {
                    hasher.update(&buffer[..read]);
                    offset += read as u64;
                }
            }
        }
        Ok(hasher.finish())
    }
}

/// The protected bytes of a volume: all bytes except the recovery data.
struct ProtectedBytes<'a> {
    volume: &'a VolumeFile,
    tail: &'a [u8],
}

impl recovery::ReadAt for ProtectedBytes<'_> {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        if let Some(left) = self.volume.len.checked_sub(offset).filter(|left| *left > 0) {
            let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            return FileExt::read_at(&self.volume.file, &mut bytes[..len], offset);
        }
        recovery::ReadAt::read_at(self.tail, offset - self.volume.len, bytes)
    }
}
