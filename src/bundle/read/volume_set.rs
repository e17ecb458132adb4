//! [`VolumeSet`]: where a bundle lies, in one file or in volumes, read in place at any offset.
//!
//! Volumes may lie in several directories: on several sticks. Their labels say which they are, so that one that is missing,
//! swapped, cut short or from another bundle is named before anything is read of it, and so that those behind a missing
//! one have their place all the same.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::base::fs::{self, FsError, file_name};
use crate::bundle::format::seek_table;
use crate::bundle::format::volume_name::volume_name;
use crate::bundle::read::problem::{MissingBytes, Position, VolumeProblem};
use crate::bundle::recovery::{self, Recovery};

/// A bundle in one file, or in volumes; see the module.
pub struct VolumeSet {
    /// The first one first, each where the one before it ends.
    pub(crate) volumes: Vec<Volume>,
    /// What the first volume is called without its number, or what the file is called.
    pub(crate) name: String,
    pub(crate) is_in_volumes: bool,
    /// Where to look for what belongs to it.
    pub(crate) directories: Vec<PathBuf>,
    pub(crate) problems: Vec<VolumeProblem>,
    /// The volume that was read last. No other one is open, so that its stick can be taken out.
    pub(crate) open: Mutex<Option<(usize, File)>>,
    /// The recovery data of each volume that was looked at for it.
    pub(crate) recoveries: Mutex<HashMap<usize, Option<Arc<Recovery>>>>,
    pub(crate) has_recovery: AtomicBool,
    /// What was repaired so far, by the number of the volume.
    pub(crate) repaired: Mutex<BTreeSet<(usize, u64, u64)>>,
}

/// One part of a medium.
#[derive(Debug, Clone)]
pub struct Volume {
    /// What it is called.
    pub name: String,
    /// Where it is, if it is there.
    pub(crate) path: Option<PathBuf>,
    /// Where it begins, in bytes from the start of the bundle.
    pub start: u64,
    /// How many bytes it must have. Of the last one and of one before a missing label nobody knows more than it has.
    pub len: u64,
    /// How many bytes of it are there.
    pub(crate) have: u64,
    /// How many bytes of the tar stream behind the head stand before it, if anybody says so.
    pub stream: Option<u64>,
}

impl VolumeSet {
    /// One file.
    pub fn file(path: &Path) -> Result<Self, FsError> {
        let file = fs::open(path)?;
        let len = file.metadata().map_err(FsError::at("read", path))?.len();
        let volume = Volume {
            name: path.display().to_string(),
            path: Some(path.to_owned()),
            start: 0,
            len,
            have: len,
            stream: None,
        };
        Ok(Self {
            name: file_name(path),
            is_in_volumes: false,
            volumes: vec![volume],
            directories: vec![fs::parent(path).to_owned()],
            problems: Vec::new(),
            open: Mutex::new(Some((0, file))),
            recoveries: Mutex::default(),
            has_recovery: AtomicBool::new(false),
            repaired: Mutex::default(),
        })
    }

    /// Files one behind the other, without labels: what a packer is writing.
    pub fn parts(paths: &[PathBuf]) -> Result<Self, FsError> {
        let mut all: Option<Self> = None;
        for path in paths {
            let part = Self::file(path)?;
            match &mut all {
                None => all = Some(part),
                Some(all) => {
                    let start = all.len();
                    all.volumes.extend(part.volumes.into_iter().map(|volume| Volume { start, ..volume }));
                }
            }
        }
        Ok(all.expect("there is a first one; please report"))
    }

    /// How many bytes the bundle has, as far as anybody can say.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.volumes.last().map_or(0, |volume| volume.start + volume.len)
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The volumes; a bundle in one file is one.
    #[must_use]
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// Whether it lies in volumes, be it one.
    #[must_use]
    pub fn is_in_volumes(&self) -> bool {
        self.is_in_volumes
    }

    /// What the volume `number`, counted from 0, is called.
    #[must_use]
    pub fn name_of(&self, number: usize) -> String {
        let number = u32::try_from(number).map_or(u32::MAX, |number| number + 1);
        if self.is_in_volumes { volume_name(&self.name, number) } else { self.name.clone() }
    }

    /// What the bundle is called, without the number of a volume.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its volumes lie.
    #[must_use]
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// What is wrong with the volumes.
    #[must_use]
    pub fn problems(&self) -> &[VolumeProblem] {
        &self.problems
    }

    /// What keeps the bundle from being read whole. What is cut short and has recovery data may still be read.
    #[must_use]
    pub fn gaps(&self) -> Vec<VolumeProblem> {
        let is_gap = |problem: &&VolumeProblem| match problem {
            VolumeProblem::Truncated { volume, .. } => {
                let number = self.volumes.iter().position(|known| known.name == *volume);
                number.is_none_or(|number| self.recovery(number).is_none())
            }
            problem => !problem.is_harmless(),
        };
        self.problems.iter().filter(is_gap).cloned().collect()
    }

    /// The recovery data of the volume `number`, counted from 0, if it has any.
    #[must_use]
    pub fn recovery(&self, number: usize) -> Option<Arc<Recovery>> {
        let mut recoveries = self.recoveries.lock().unwrap_or_else(PoisonError::into_inner);
        let find = || {
            let volume = self.volumes.get(number).filter(|volume| volume.is_there())?;
            Recovery::find(&self.bytes_of(number), volume.have).map(Arc::new)
        };
        recoveries.entry(number).or_insert_with(find).clone()
    }

    /// The bytes of the volume `number`, counted from 0, as they are there.
    #[must_use]
    pub fn bytes_of(&self, number: usize) -> VolumeBytes<'_> {
        VolumeBytes { medium: self, number }
    }

    /// The bytes of `range` as they were packed, with the help of recovery data; nothing if there is none that can.
    #[must_use]
    pub fn reconstruct(&self, range: Range<u64>) -> Option<Vec<u8>> {
        let number = self.number_at(range.start)?;
        let start = self.volumes[number].start;
        let recovery = self.recovery(number)?;
        let local = range.start - start..range.end - start;
        if local.end > recovery.volume_len() {
            return None;
        }
        let bytes = recovery.reconstruct(&self.bytes_of(number), local.clone()).ok()?;
        let mut repaired = self.repaired.lock().unwrap_or_else(PoisonError::into_inner);
        repaired.insert((number, local.start, local.end));
        Some(bytes)
    }

    /// Where frames were repaired, the first one first.
    #[must_use]
    pub fn repaired(&self) -> Vec<Position> {
        let repaired = self.repaired.lock().unwrap_or_else(PoisonError::into_inner);
        repaired.iter().map(|(number, start, _)| self.place(self.volumes[*number].start + start)).collect()
    }

    /// Somebody has come across recovery data. Without any, nobody need search all of the bundle for it.
    pub(crate) fn note_recovery(&self) {
        self.has_recovery.store(true, Ordering::Relaxed);
    }

    /// Where recovery data is damaged, in all volumes that are there: that hits nothing else. Nothing as long as nobody has
    /// come across any.
    #[must_use]
    pub fn damaged_recovery(&self) -> Vec<Position> {
        let is_found = |recoveries: &HashMap<_, Option<_>>| recoveries.values().any(Option::is_some);
        if !self.has_recovery.load(Ordering::Relaxed)
            && !is_found(&self.recoveries.lock().unwrap_or_else(PoisonError::into_inner))
        {
            return Vec::new();
        }
        let of_volume = |number: usize| {
            let damage = self.recovery(number)?.damaged_section(&self.bytes_of(number), |_| {});
            let start = self.volumes[number].start;
            Some(damage.ranges.into_iter().map(move |range| self.place(start + range.start)))
        };
        (0..self.volumes.len()).filter_map(of_volume).flatten().collect()
    }

    /// Reads the seek table; where it is damaged, with the help of recovery data.
    pub(crate) fn seek_table(&mut self) -> Option<Vec<seek_table::FrameEntry>> {
        if let Ok(Some(table)) = seek_table::read(&mut self.reader(0)) {
            return Some(table);
        }
        let last = self.volumes.len().checked_sub(1)?;
        let recovery = self.recovery(last)?;
        let (start, tail) = (self.volumes[last].start, recovery.section().end..recovery.volume_len());
        if tail.is_empty() {
            return None;
        }
        self.volumes[last].len = recovery.volume_len();
        let bytes = self.reconstruct(start + tail.start..start + tail.end)?;
        seek_table::decode(bytes.get(8..)?).filter(|table| {
            let frames: u64 = table.iter().map(|entry| u64::from(entry.compressed)).sum();
            frames == start + tail.start && seek_table::is_valid(table)
        })
    }

    /// Where `offset` is, for a person.
    #[must_use]
    pub fn place(&self, offset: u64) -> Position {
        let volume = self.volume_at(offset).filter(|_| self.volumes.len() > 1);
        Position {
            offset,
            volume: volume.map(|volume| volume.name.clone()),
            volume_offset: volume.map(|volume| offset - volume.start),
        }
    }

    fn volume_at(&self, offset: u64) -> Option<&Volume> {
        self.volumes.get(self.number_at(offset)?)
    }

    fn number_at(&self, offset: u64) -> Option<usize> {
        self.volumes.partition_point(|volume| volume.start <= offset).checked_sub(1)
    }

    /// Reads at `offset`, as much as there is of `bytes` in one volume. At the end of the bundle that is nothing; where
    /// something is missing it is an error that says what.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(number) = self.number_at(offset).filter(|_| offset < self.len()) else { return Ok(0) };
        let volume = &self.volumes[number];
        let at = offset - volume.start;
        if !volume.is_there() || at >= volume.have.min(volume.len) {
            return Err(io::Error::other(MissingBytes(volume.absence())));
        }
        self.read_volume(number, bytes, at, volume.len)
    }

    /// Reads at `at` of a volume, up to `end` of it.
    fn read_volume(&self, number: usize, bytes: &mut [u8], at: u64, end: u64) -> io::Result<usize> {
        let volume = &self.volumes[number];
        let end = volume.have.min(end);
        let Some(path) = volume.path.as_ref().filter(|_| at < end) else { return Ok(0) };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match &mut *open {
            Some((is, file)) if *is == number => file,
            open => &mut open.insert((number, File::open(path)?)).1,
        };
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        let len = bytes.len().min(left);
        match file.read_at(&mut bytes[..len], at)? {
            // It has become shorter since it was found.
            0 if len > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }

    /// Reads from `start` on.
    #[must_use]
    pub fn reader(&self, start: u64) -> VolumeSetReader<'_> {
        VolumeSetReader { medium: self, position: start }
    }
}

impl Volume {
    /// Reads it from its start to its end; `medium` is the one that it is part of.
    #[must_use]
    pub fn reader<'a>(&self, medium: &'a VolumeSet) -> io::Take<VolumeSetReader<'a>> {
        medium.reader(self.start).take(self.len)
    }

    /// That it is not there, if it is not.
    #[must_use]
    pub fn is_missing(&self) -> Option<VolumeProblem> {
        (!self.is_there()).then(|| self.absence())
    }

    /// Whether it is what is at `path`.
    #[must_use]
    pub fn is_file(&self, path: &Path) -> bool {
        let real = |path: &Path| path.canonicalize().ok();
        self.path
            .as_deref()
            .is_some_and(|own| own == path || (real(own).is_some() && real(own) == real(path)))
    }

    /// Whether it is there at all.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.path.is_some()
    }

    fn absence(&self) -> VolumeProblem {
        let volume = self.name.clone();
        match self.path {
            None => VolumeProblem::Missing { volume },
            Some(_) => VolumeProblem::Truncated { volume, has: self.have, needs: self.len },
        }
    }
}

/// The bytes of one volume that are there; see [`VolumeSet::bytes_of`].
pub struct VolumeBytes<'a> {
    medium: &'a VolumeSet,
    number: usize,
}

impl recovery::ReadAt for VolumeBytes<'_> {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.medium.read_volume(self.number, bytes, offset, u64::MAX)
    }
}

/// Reads a medium front to back.
pub struct VolumeSetReader<'a> {
    medium: &'a VolumeSet,
    position: u64,
}

impl Read for VolumeSetReader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.medium.read_at(bytes, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for VolumeSetReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(back) => self.medium.len().checked_add_signed(back),
            SeekFrom::Current(on) => self.position.checked_add_signed(on),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
