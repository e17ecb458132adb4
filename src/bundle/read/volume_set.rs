//! [`VolumeSet`]: random access to a bundle in one file or in volumes.
//!
//! Volumes can be in several directories, such as the mount points of several USB drives. Their labels
//! identify them: a missing, swapped, truncated or foreign volume is reported before anything is read, and
//! the volumes after a missing one keep their offsets. A volume that was found several times has several
//! copies: what cannot be read from one is read from the next.

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
use crate::bundle::recovery::blocks::{OneCopy, read_exact_at};
use crate::bundle::recovery::{self, Recovery};
use crate::oci::digest::Digest;

/// A bundle in one file or in volumes.
pub struct VolumeSet {
    /// Name of the file, or file name of the volumes without the number.
    name: String,
    is_in_volumes: bool,
    /// `set` in the labels of the volumes. `None`: no labels.
    id: Option<Digest>,
    /// The directories that contain the bundle.
    directories: Vec<PathBuf>,
    /// All volumes in order; a single one for a bundle in one file.
    volumes: Vec<Volume>,
    problems: Vec<VolumeProblem>,
    /// The file that was read last: number of the volume, and of the copy. Only one is open, so that the media
    /// of the others can be removed.
    open: Mutex<Option<(usize, usize, File)>>,
    /// Recovery data, by the number of the volume. `None`: searched and not found.
    recoveries: Mutex<HashMap<usize, Option<Arc<Recovery>>>>,
    /// True if a frame with recovery data was read.
    has_recovery: AtomicBool,
    /// Repaired ranges: number of the volume, start and end in the volume.
    repaired: Mutex<BTreeSet<u64>>,
}

/// A volume of a bundle, or its only file.
#[derive(Debug, Clone)]
pub struct Volume {
    /// File name; the path for a bundle in one file.
    pub name: String,
    /// The files that contain the volume, the longest first. Empty: the volume is missing.
    pub(crate) copies: Vec<VolumeFile>,
    /// Offset in the bundle, in bytes.
    pub start: u64,
    /// Expected size in bytes: up to the offset in the next label, or the actual size if there is no next
    /// label.
    pub len: u64,
    /// Number of bytes of the tar stream before the volume, without the head. `None`: no readable label.
    pub stream: Option<u64>,
}

/// A file that contains a volume.
#[derive(Debug, Clone)]
pub(crate) struct VolumeFile {
    pub(crate) path: PathBuf,
    /// Offset of the first byte in the file. 0 unless volumes were joined.
    pub(crate) base: u64,
    /// Actual size in bytes.
    pub(crate) len: u64,
    /// False if only its name tells which volume it is.
    pub(crate) is_labelled: bool,
}

impl VolumeSet {
    /// Opens a bundle in one file.
    pub fn file(path: &Path) -> Result<Self, FsError> {
        let file = fs::open(path)?;
        let len = file.metadata().map_err(FsError::at("read", path))?.len();
        let volume = Volume {
            name: path.display().to_string(),
            copies: vec![VolumeFile { path: path.to_owned(), base: 0, len, is_labelled: false }],
            start: 0,
            len,
            stream: None,
        };
        let directories = vec![fs::parent(path).to_owned()];
        let mut set = Self::new(file_name(path), directories, vec![volume]);
        set.open = Mutex::new(Some((0, 0, file)));
        Ok(set)
    }

    /// Creates a bundle in volumes.
    pub(crate) fn in_volumes(
        name: String,
        id: Option<Digest>,
        directories: Vec<PathBuf>,
        volumes: Vec<Volume>,
        problems: Vec<VolumeProblem>,
    ) -> Self {
        Self { is_in_volumes: true, id, problems, ..Self::new(name, directories, volumes) }
    }

    fn new(name: String, directories: Vec<PathBuf>, volumes: Vec<Volume>) -> Self {
        Self {
            name,
            is_in_volumes: false,
            id: None,
            directories,
            volumes,
            problems: Vec::new(),
            open: Mutex::default(),
            recoveries: Mutex::default(),
            has_recovery: AtomicBool::default(),
            repaired: Mutex::default(),
        }
    }

    /// Opens the consecutive files of an unfinished bundle, which have no labels.
    pub fn parts(paths: &[PathBuf]) -> Result<Self, FsError> {
        let (first, rest) = paths.split_first().expect("there is at least one file; please report");
        let mut all = Self::file(first)?;
        for path in rest {
            let (part, start) = (Self::file(path)?, all.len());
            all.volumes.extend(part.volumes.into_iter().map(|volume| Volume { start, ..volume }));
        }
        Ok(all)
    }

    /// Makes it one file, into which the volumes were joined.
    #[must_use]
    pub(crate) fn joined(self) -> Self {
        Self { is_in_volumes: false, ..self }
    }

    /// Returns the size of the bundle in bytes, as far as the volumes are known.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.volumes.last().map_or(0, |volume| volume.start + volume.len)
    }

    /// True if the bundle has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns all volumes in order; a single one for a bundle in one file, unless volumes were joined.
    #[must_use]
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// True if the bundle is in volumes, even if it has only one.
    #[must_use]
    pub fn is_in_volumes(&self) -> bool {
        self.is_in_volumes
    }

    /// Returns the ID of the set of volumes, by which those of several bundles are distinguished. `None`: the bundle is
    /// in one file.
    #[must_use]
    pub fn id(&self) -> Option<Digest> {
        self.id
    }

    /// Returns the file name of a volume. `number` counts from 0.
    #[must_use]
    pub fn name_of(&self, number: usize) -> String {
        let number = u32::try_from(number).map_or(u32::MAX, |number| number + 1);
        if self.is_in_volumes { volume_name(&self.name, number) } else { self.name.clone() }
    }

    /// Returns the file name of the bundle, without the number of a volume.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the directories that contain the bundle.
    #[must_use]
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// Returns the problems of the volumes.
    #[must_use]
    pub fn problems(&self) -> &[VolumeProblem] {
        &self.problems
    }

    pub(crate) fn add_problem(&mut self, problem: VolumeProblem) {
        self.problems.push(problem);
    }

    /// Returns the problems because of which parts of the bundle cannot be read. A truncated volume is not
    /// one of them if it has recovery data.
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

    /// Returns the recovery data of a volume. `None` if there is none. `number` counts from 0.
    #[must_use]
    pub fn recovery(&self, number: usize) -> Option<Arc<Recovery>> {
        let mut recoveries = self.recoveries.lock().unwrap_or_else(PoisonError::into_inner);
        let find = || {
            let volume = self.volumes.get(number).filter(|volume| volume.is_present())?;
            (0..volume.copies.len()).find_map(|copy| {
                let bytes = OneCopy { source: &self.bytes_of(number), copy };
                Recovery::find(&bytes, volume.copies[copy].len).map(Arc::new)
            })
        };
        recoveries.entry(number).or_insert_with(find).clone()
    }

    /// Returns access to the bytes of a volume without repair. `number` counts from 0.
    #[must_use]
    pub fn bytes_of(&self, number: usize) -> VolumeBytes<'_> {
        VolumeBytes { set: self, number }
    }

    /// Reconstructs the bytes of `range`, which is in one volume, from recovery data. `None` if that is not
    /// possible.
    #[must_use]
    pub fn reconstruct(&self, range: Range<u64>) -> Option<Vec<u8>> {
        let number = self.number_at(range.start)?;
        let start = self.volumes[number].start;
        let recovery = self.recovery(number)?;
        let local = range.start - start..range.end - start;
        if local.end > recovery.volume_len() {
            return None;
        }
        recovery.reconstruct(&self.bytes_of(number), local).ok()
    }

    /// Records that [`VolumeSet::reconstruct`] returned other, valid content for the bytes at `offset`.
    pub(crate) fn note_repaired(&self, offset: u64) {
        self.repaired.lock().unwrap_or_else(PoisonError::into_inner).insert(offset);
    }

    /// Returns the positions that were repaired so far, in order.
    #[must_use]
    pub fn repaired(&self) -> Vec<Position> {
        let repaired = self.repaired.lock().unwrap_or_else(PoisonError::into_inner);
        repaired.iter().map(|offset| self.position(*offset)).collect()
    }

    /// Records that the bundle has recovery data. Without it, [`VolumeSet::damaged_recovery`] does not search
    /// for any.
    pub(crate) fn note_recovery(&self) {
        self.has_recovery.store(true, Ordering::Relaxed);
    }

    /// Returns the positions of corrupt recovery data, which affects no content. Empty if no recovery data
    /// was read.
    #[must_use]
    pub fn damaged_recovery(&self) -> Vec<Position> {
        let is_found = |recoveries: &HashMap<_, Option<_>>| recoveries.values().any(Option::is_some);
        if !self.has_recovery.load(Ordering::Relaxed)
            && !is_found(&self.recoveries.lock().unwrap_or_else(PoisonError::into_inner))
        {
            return Vec::new();
        }
        let of_volume = |number: usize| {
            let damage = self.recovery(number)?.section_damage(&self.bytes_of(number), |_| {});
            let start = self.volumes[number].start;
            Some(damage.ranges.into_iter().map(move |range| self.position(start + range.start)))
        };
        (0..self.volumes.len()).filter_map(of_volume).flatten().collect()
    }

    /// Reads the seek table, and repairs it if necessary. `None` if it is missing or corrupt.
    pub(crate) fn seek_table(&mut self) -> Option<Vec<seek_table::FrameEntry>> {
        let last = self.volumes.len().checked_sub(1)?;
        for copy in 0..self.volumes[last].copies.len() {
            // The copy that is first is the one that is read.
            self.volumes[last].copies.swap(0, copy);
            *self.open.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
            if let Ok(Some(table)) = seek_table::read(&mut self.reader(0)) {
                return Some(table);
            }
        }
        let recovery = self.recovery(last)?;
        let (start, tail) = (self.volumes[last].start, recovery.section().end..recovery.volume_len());
        if tail.is_empty() {
            return None;
        }
        self.volumes[last].len = recovery.volume_len();
        let bytes = self.reconstruct(start + tail.start..start + tail.end)?;
        let table = seek_table::decode(bytes.get(8..)?).filter(|table| {
            let frames: u64 = table.iter().map(|entry| u64::from(entry.compressed)).sum();
            frames == start + tail.start && seek_table::is_valid(table)
        })?;
        self.note_repaired(start + tail.start);
        Some(table)
    }

    /// Returns the position at `offset` of the bundle.
    #[must_use]
    pub fn position(&self, offset: u64) -> Position {
        let volume = self.volume_at(offset).filter(|_| self.is_in_volumes && self.volumes.len() > 1);
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

    /// Reads at `offset` of the bundle, up to the end of the volume. Returns the number of bytes read, which
    /// is 0 at the end of the bundle. Fails with [`MissingBytes`] if the volume is missing or truncated.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(number) = self.number_at(offset).filter(|_| offset < self.len()) else { return Ok(0) };
        let volume = &self.volumes[number];
        let at = offset - volume.start;
        if at >= volume.file_len().min(volume.len) {
            return Err(io::Error::other(MissingBytes(volume.absence())));
        }
        self.read_volume(number, bytes, at, volume.len)
    }

    /// Reads at offset `at` of a volume, up to its offset `end`: from the first copy that can be read there.
    fn read_volume(&self, number: usize, bytes: &mut [u8], at: u64, end: u64) -> io::Result<usize> {
        let mut result = Ok(0);
        for copy in 0..self.volumes[number].copies.len() {
            match self.read_copy(number, copy, bytes, at, end) {
                Ok(read) if read > 0 || bytes.is_empty() => return Ok(read),
                // The first error is the one to report.
                Err(error) if matches!(result, Ok(0)) => result = Err(error),
                _ => {}
            }
        }
        result
    }

    /// Reads at offset `at` of a copy of a volume, up to its offset `end`. Returns 0 at the end of the copy.
    fn read_copy(
        &self,
        number: usize,
        copy: usize,
        bytes: &mut [u8],
        at: u64,
        end: u64,
    ) -> io::Result<usize> {
        let Some(source) = self.volumes[number].copies.get(copy) else { return Ok(0) };
        let left = usize::try_from(source.len.min(end).saturating_sub(at)).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(0);
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let is_open = matches!(&*open, Some((volume, known, _)) if (*volume, *known) == (number, copy));
        let len = bytes.len().min(left);
        let bytes = &mut bytes[..len];
        if is_open && let Some((_, _, file)) = &*open {
            match file.read_at(bytes, source.base + at) {
                Ok(read) if read > 0 || len == 0 => return Ok(read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                // The drive may have been removed and connected again since: the file is opened once more.
                _ => {}
            }
        }
        *open = None;
        let (_, _, file) = open.insert((number, copy, File::open(&source.path)?));
        match file.read_at(bytes, source.base + at)? {
            // The file was truncated after it was found.
            0 if len > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }

    /// Returns the bytes of `range`, which is in one volume, of each further copy that has them. The first copy is the
    /// one that [`VolumeSet::read_at`] reads.
    pub(crate) fn other_copies(&self, range: Range<u64>) -> impl Iterator<Item = Vec<u8>> + '_ {
        let number = self.number_at(range.start).unwrap_or_default();
        let copies = 1..self.volumes.get(number).map_or(0, |volume| volume.copies.len());
        let start = self.volumes.get(number).map_or(0, |volume| volume.start);
        copies.filter_map(move |copy| {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
            let source = OneCopy { source: &self.bytes_of(number), copy };
            read_exact_at(&source, range.start - start, &mut bytes).ok()?;
            Some(bytes)
        })
    }

    /// True if a volume has several copies.
    #[must_use]
    pub fn has_copies(&self) -> bool {
        self.volumes.iter().any(|volume| volume.copies.len() > 1)
    }

    /// Returns a reader that begins at offset `start` of the bundle.
    #[must_use]
    pub fn reader(&self, start: u64) -> VolumeSetReader<'_> {
        VolumeSetReader { set: self, position: start }
    }
}

impl Volume {
    /// Returns a reader of the volume, which belongs to `set`.
    #[must_use]
    pub fn reader<'a>(&self, set: &'a VolumeSet) -> io::Take<VolumeSetReader<'a>> {
        set.reader(self.start).take(self.len)
    }

    /// True if `path` is the file of the volume.
    #[must_use]
    pub fn is_file(&self, path: &Path) -> bool {
        let real = |path: &Path| path.canonicalize().ok();
        let is_same = |own: &Path| own == path || (real(own).is_some() && real(own) == real(path));
        self.copies.iter().any(|copy| is_same(&copy.path))
    }

    /// True if the volume was found.
    #[must_use]
    pub fn is_present(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Returns the actual size in bytes; of several copies, that of the longest. 0 for a missing volume.
    #[must_use]
    pub(crate) fn file_len(&self) -> u64 {
        self.copies.iter().map(|copy| copy.len).max().unwrap_or(0)
    }

    /// Returns the problem because of which bytes of the volume are not available.
    #[must_use]
    pub(crate) fn absence(&self) -> VolumeProblem {
        let volume = self.name.clone();
        if self.is_present() {
            VolumeProblem::Truncated { volume, has: self.file_len(), needs: self.len }
        } else {
            VolumeProblem::Missing { volume }
        }
    }
}

/// The bytes of one volume, without repair.
pub struct VolumeBytes<'a> {
    set: &'a VolumeSet,
    number: usize,
}

impl recovery::ReadAt for VolumeBytes<'_> {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.set.read_volume(self.number, bytes, offset, u64::MAX)
    }

    fn copies(&self) -> usize {
        self.set.volumes[self.number].copies.len()
    }

    fn read_copy_at(&self, copy: usize, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.set.read_copy(self.number, copy, bytes, offset, u64::MAX)
    }
}

/// Reads a bundle from an offset on.
pub struct VolumeSetReader<'a> {
    set: &'a VolumeSet,
    position: u64,
}

impl Read for VolumeSetReader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.set.read_at(bytes, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for VolumeSetReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(delta) => self.set.len().checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
