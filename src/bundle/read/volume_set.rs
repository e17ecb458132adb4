//! [`Medium`]: where a bundle lies, in one file or in volumes, read in place at any offset.
//!
//! Volumes may lie in several folders: on several sticks. Their labels say which they are, so that one that is missing,
//! swapped, cut short or from another bundle is named before anything is read of it, and so that those behind a missing
//! one have their place all the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::base::fs::{self, FsError};
use crate::bundle::format::label::Label;
use crate::bundle::format::seek_table;
use crate::bundle::read::frame::{self, Frame, FrameReader, VOLUME_MAGIC};
use crate::bundle::recovery::{self, Recovery};
use crate::oci::digest::Digest;

/// The list of volumes that lies beside them, as `sha256sum` writes and reads it.
pub const SUMS: &str = "SHA256SUMS";
/// The largest such list that is read, in bytes.
const SUMS_LIMIT: u64 = 16 << 20;
/// The highest number that a volume has.
pub const VOLUME_LIMIT: u32 = 1 << 16;
/// How many frames are looked at for the label of the first volume: the head stands before it.
const HEAD_FRAMES: usize = 64;

/// A bundle in one file, or in volumes; see the module.
pub struct Medium {
    /// The first one first, each where the one before it ends.
    volumes: Vec<Volume>,
    /// What the first volume is called without its number, or what the file is called.
    name: String,
    is_in_volumes: bool,
    /// Where to look for what belongs to it.
    folders: Vec<PathBuf>,
    problems: Vec<Problem>,
    /// The volume that was read last. No other one is open, so that its stick can be taken out.
    open: Mutex<Option<(usize, File)>>,
    /// The recovery data of each volume that was looked at for it.
    recoveries: Mutex<HashMap<usize, Option<Arc<Recovery>>>>,
    has_recovery: AtomicBool,
    /// What was mended so far, by the number of the volume.
    mended: Mutex<BTreeSet<(usize, u64, u64)>>,
}

/// One part of a medium.
#[derive(Debug, Clone)]
pub struct Volume {
    /// What it is called.
    pub name: String,
    /// Where it is, if it is there.
    path: Option<PathBuf>,
    /// Where it begins, in bytes from the start of the bundle.
    pub start: u64,
    /// How many bytes it must have. Of the last one and of one before a missing label nobody knows more than it has.
    pub len: u64,
    /// How many bytes of it are there.
    have: u64,
    /// How many bytes of the tar stream behind the head stand before it, if anybody says so.
    pub stream: Option<u64>,
}

/// What is wrong with the volumes that were found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "problem")]
pub enum Problem {
    /// It is not there.
    Missing {
        /// What it is called.
        volume: String,
    },
    /// The last one that is there is not the last one of the bundle, or not all of it.
    Unended {
        /// What it is called.
        volume: String,
        /// What the next one would be called.
        next: String,
    },
    /// It ends too early.
    Truncated {
        /// What it is called.
        volume: String,
        /// How many bytes it has.
        has: u64,
        /// How many it must have.
        needs: u64,
    },
    /// It goes on where the next one begins. What is too much is not read.
    Longer {
        /// What it is called.
        volume: String,
        /// How many bytes it has.
        has: u64,
        /// How many it must have.
        needs: u64,
    },
    /// It belongs to another bundle.
    Foreign {
        /// What it is called.
        volume: String,
    },
    /// It is one that is there under its own name, too.
    Repeated {
        /// What it is called.
        volume: String,
        /// What it is.
        is: String,
    },
    /// It is another one than its name says. It is read as what it is.
    Renamed {
        /// What it is called.
        volume: String,
        /// What it is.
        is: String,
    },
    /// Nothing in it says which volume it is. Its name is believed.
    Unlabelled {
        /// What it is called.
        volume: String,
    },
}

impl Problem {
    /// Whether the bundle can be read in spite of it.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        matches!(
            self,
            Self::Longer { .. } | Self::Repeated { .. } | Self::Renamed { .. } | Self::Unlabelled { .. }
        )
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { volume } => write!(f, "the volume `{volume}` is missing"),
            Self::Unended { volume, next } => {
                write!(f, "the bundle does not end with `{volume}`: it is cut short, or `{next}` is missing")
            }
            Self::Truncated { volume, has, needs } => {
                write!(f, "the volume `{volume}` is cut short: it has {has} of {needs} bytes")
            }
            Self::Longer { volume, has, needs } => {
                write!(
                    f,
                    "the volume `{volume}` has {has} bytes, and should have {needs}: the rest is not read"
                )
            }
            Self::Foreign { volume } => write!(f, "the volume `{volume}` is of another bundle"),
            Self::Repeated { volume, is } => write!(f, "the volume `{volume}` is `{is}` once more"),
            Self::Renamed { volume, is } => write!(f, "the volume `{volume}` is `{is}`, and read as that"),
            Self::Unlabelled { volume } => {
                write!(
                    f,
                    "nothing in the volume `{volume}` says which one it is: it is damaged at its beginning"
                )
            }
        }
    }
}

/// Why there is no bundle to be read.
#[derive(Debug, thiserror::Error)]
pub enum MediumError {
    /// The file system says no.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A folder without a bundle.
    #[error("there is no bundle in `{}`: no name there ends in `.tar.zst` or `.tar.zst.001`", .0.display())]
    Nothing(PathBuf),
    /// There are several.
    #[error("there are several bundles: `{}`: name the first volume of one, or its file", .0.join("`, `"))]
    Several(Vec<String>),
    /// One whole file and something beside it.
    #[error("`{0}` is not a volume, and cannot be read together with others")]
    NotAVolume(String),
}

/// Where the reading of a volume failed because of what is missing there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Absent(pub Problem);

/// A place in a bundle as a person finds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// In bytes from the start of the bundle.
    pub offset: u64,
    /// The volume, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// In bytes from the start of that volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_offset: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.volume, self.volume_offset) {
            (Some(volume), Some(offset)) => write!(f, "byte {offset} of `{volume}`"),
            _ => write!(f, "byte {}", self.offset),
        }
    }
}

impl Medium {
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
            folders: vec![fs::parent(path).to_owned()],
            problems: Vec::new(),
            open: Mutex::new(Some((0, file))),
            recoveries: Mutex::default(),
            has_recovery: AtomicBool::new(false),
            mended: Mutex::default(),
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

    /// Finds the bundle that `paths` mean: one file, any volume, or folders that hold one bundle together.
    pub fn find(paths: &[PathBuf]) -> Result<Self, MediumError> {
        let mut found = Found::default();
        paths.iter().try_for_each(|path| found.look(path))?;
        found.medium(paths)
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
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// What is wrong with the volumes.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// What keeps the bundle from being read whole. What is cut short and has recovery data may still be read.
    #[must_use]
    pub fn gaps(&self) -> Vec<Problem> {
        let is_gap = |problem: &&Problem| match problem {
            Problem::Truncated { volume, .. } => {
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
    pub fn mend(&self, range: Range<u64>) -> Option<Vec<u8>> {
        let number = self.number_at(range.start)?;
        let start = self.volumes[number].start;
        let recovery = self.recovery(number)?;
        let local = range.start - start..range.end - start;
        if local.end > recovery.volume_len() {
            return None;
        }
        let bytes = recovery.mend(&self.bytes_of(number), local.clone()).ok()?;
        let mut mended = self.mended.lock().unwrap_or_else(PoisonError::into_inner);
        mended.insert((number, local.start, local.end));
        Some(bytes)
    }

    /// Where frames were mended, the first one first.
    #[must_use]
    pub fn mended(&self) -> Vec<Place> {
        let mended = self.mended.lock().unwrap_or_else(PoisonError::into_inner);
        mended.iter().map(|(number, start, _)| self.place(self.volumes[*number].start + start)).collect()
    }

    /// Somebody has come across recovery data. Without any, nobody need search all of the bundle for it.
    pub(crate) fn note_recovery(&self) {
        self.has_recovery.store(true, Ordering::Relaxed);
    }

    /// Where recovery data is damaged, in all volumes that are there: that hits nothing else. Nothing as long as nobody has
    /// come across any.
    #[must_use]
    pub fn damaged_recovery(&self) -> Vec<Place> {
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
    pub(crate) fn seek_table(&mut self) -> Option<Vec<seek_table::Entry>> {
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
        let bytes = self.mend(start + tail.start..start + tail.end)?;
        seek_table::decode(bytes.get(8..)?).filter(|table| {
            let frames: u64 = table.iter().map(|entry| u64::from(entry.compressed)).sum();
            frames == start + tail.start && seek_table::is_sound(table)
        })
    }

    /// Where `offset` is, for a person.
    #[must_use]
    pub fn place(&self, offset: u64) -> Place {
        let volume = self.volume_at(offset).filter(|_| self.volumes.len() > 1);
        Place {
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
            return Err(io::Error::other(Absent(volume.absence())));
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
    pub fn reader(&self, start: u64) -> MediumReader<'_> {
        MediumReader { medium: self, position: start }
    }
}

impl Volume {
    /// Reads it from its start to its end; `medium` is the one that it is part of.
    #[must_use]
    pub fn reader<'a>(&self, medium: &'a Medium) -> io::Take<MediumReader<'a>> {
        medium.reader(self.start).take(self.len)
    }

    /// That it is not there, if it is not.
    #[must_use]
    pub fn is_missing(&self) -> Option<Problem> {
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

    fn absence(&self) -> Problem {
        let volume = self.name.clone();
        match self.path {
            None => Problem::Missing { volume },
            Some(_) => Problem::Truncated { volume, has: self.have, needs: self.len },
        }
    }
}

/// The bytes of one volume that are there; see [`Medium::bytes_of`].
pub struct VolumeBytes<'a> {
    medium: &'a Medium,
    number: usize,
}

impl recovery::ReadAt for VolumeBytes<'_> {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.medium.read_volume(self.number, bytes, offset, u64::MAX)
    }
}

/// Reads a medium front to back.
pub struct MediumReader<'a> {
    medium: &'a Medium,
    position: u64,
}

impl Read for MediumReader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.medium.read_at(bytes, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for MediumReader<'_> {
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

/// Asks somebody for what is missing; says whether it may be there now.
pub type Ask = Box<dyn FnMut(&Problem) -> bool + Send>;

/// Reads the volumes of a bundle one after the other, and asks for those that are not there: sticks of which only one is
/// there at a time.
pub struct InTurn {
    bundle: String,
    folders: Vec<PathBuf>,
    ask: Ask,
    /// What the label of the first volume says, once it has been read.
    set: Option<Digest>,
    /// The volume that is being read, and whether it is the last one.
    open: Option<(File, bool)>,
    number: u32,
}

impl InTurn {
    /// Reads the volumes of `medium`, wherever they are.
    #[must_use]
    pub fn new(medium: &Medium, ask: Ask) -> Self {
        let (bundle, folders) = (medium.name.clone(), medium.folders.clone());
        Self { bundle, folders, ask, set: None, open: None, number: 0 }
    }

    fn next_volume(&mut self) -> io::Result<()> {
        // The medium can be taken out now.
        self.open = None;
        self.number += 1;
        loop {
            let volume = volume_name(&self.bundle, self.number);
            let problem =
                match self.folders.iter().map(|folder| folder.join(&volume)).find(|path| path.is_file()) {
                    None => Problem::Missing { volume },
                    Some(path) => match self.look(&path)? {
                        None => return Ok(()),
                        Some(problem) => problem,
                    },
                };
            if !(self.ask)(&problem) {
                return Err(io::Error::other(Absent(problem)));
            }
        }
    }

    /// Opens the volume, unless it is another one than is wanted.
    fn look(&mut self, path: &Path) -> io::Result<Option<Problem>> {
        let label = label_of(path).map_err(|error| error.source)?;
        let volume = file_name(path);
        if let Some(label) = label {
            if label.set != *self.set.get_or_insert(label.set) {
                return Ok(Some(Problem::Foreign { volume }));
            }
            if label.number != self.number {
                let is = volume_name(&self.bundle, label.number);
                return Ok(Some(Problem::Renamed { volume, is }));
            }
        }
        let mut file = File::open(path)?;
        let is_last = seek_table::ends(&mut file)?;
        file.seek(SeekFrom::Start(0))?;
        self.open = Some((file, is_last));
        Ok(None)
    }
}

impl Read for InTurn {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match &mut self.open {
                Some((file, is_last)) => match file.read(bytes)? {
                    0 if !bytes.is_empty() && !*is_last => self.next_volume()?,
                    read => return Ok(read),
                },
                None => self.next_volume()?,
            }
        }
    }
}

/// The name of the volume `number` of `bundle`.
#[must_use]
pub fn volume_name(bundle: &str, number: u32) -> String {
    format!("{bundle}.{number:03}")
}

/// The bundle and the number in the name of a volume; nothing if it is none.
#[must_use]
pub fn parse_volume_name(name: &str) -> Option<(&str, u32)> {
    let (bundle, digits) = name.rsplit_once('.')?;
    let number = digits.parse().ok().filter(|number| (1..=VOLUME_LIMIT).contains(number))?;
    (!bundle.is_empty() && volume_name(bundle, number) == name).then_some((bundle, number))
}

/// What was found of bundles.
#[derive(Default)]
struct Found {
    /// Files that are bundles by themselves.
    whole: BTreeSet<PathBuf>,
    /// The volumes of each bundle.
    volumes: BTreeMap<String, Vec<Candidate>>,
    folders: Vec<PathBuf>,
    /// What lists of volumes name, of each bundle.
    listed: HashMap<String, BTreeSet<u32>>,
}

/// A file that has the name of a volume.
#[derive(Clone)]
struct Candidate {
    path: PathBuf,
    number: u32,
    len: u64,
    label: Option<Label>,
}

impl Found {
    fn look(&mut self, path: &Path) -> Result<(), MediumError> {
        let kind = std::fs::metadata(path);
        if kind.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
            return self.look_into(path);
        }
        let name = file_name(path);
        if let Some((bundle, _)) = parse_volume_name(&name) {
            // `x.001` may also be the whole bundle under a name of its own.
            if is_volume(path)? {
                let folder = fs::parent(path);
                return self.volumes_in(folder, |other| other == bundle, true);
            }
        } else if kind.is_err() && path.with_file_name(volume_name(&name, 1)).exists() {
            return self.volumes_in(fs::parent(path), |other| other == name, true);
        }
        self.whole.insert(path.to_owned());
        Ok(())
    }

    fn look_into(&mut self, folder: &Path) -> Result<(), MediumError> {
        let before = (self.whole.len(), self.volumes.len(), self.folders.len());
        for path in files_in(folder)? {
            if file_name(&path).ends_with(".tar.zst") {
                self.whole.insert(path);
            }
        }
        self.volumes_in(folder, |bundle| bundle.ends_with(".tar.zst"), false)?;
        if before == (self.whole.len(), self.volumes.len(), self.folders.len()) {
            return Err(MediumError::Nothing(folder.to_owned()));
        }
        Ok(())
    }

    /// Takes the volumes in `folder` of the bundles that are `wanted`.
    fn volumes_in(
        &mut self,
        folder: &Path,
        wanted: impl Fn(&str) -> bool,
        is_named: bool,
    ) -> Result<(), MediumError> {
        if self.folders.iter().any(|known| known == folder) {
            return Ok(());
        }
        let mut is_any = is_named;
        for path in files_in(folder)? {
            let name = file_name(&path);
            let Some((bundle, number)) = parse_volume_name(&name).filter(|(bundle, _)| wanted(bundle)) else {
                continue;
            };
            let len = path.metadata().map_err(FsError::at("read", &path))?.len();
            let label = label_of(&path)?;
            let candidates = self.volumes.entry(bundle.to_owned()).or_default();
            candidates.push(Candidate { path, number, len, label });
            is_any = true;
        }
        if is_any {
            self.folders.push(folder.to_owned());
            self.read_list(&folder.join(SUMS));
        }
        Ok(())
    }

    /// Which volumes a list names. A list that cannot be read tells nothing.
    fn read_list(&mut self, path: &Path) {
        let Ok(bytes) = fs::read(path, SUMS_LIMIT) else { return };
        for line in String::from_utf8_lossy(&bytes).lines() {
            let Some((_, name)) = line.split_once([' ', '\t']) else { continue };
            if let Some((bundle, number)) = parse_volume_name(name.trim_start_matches([' ', '*'])) {
                self.listed.entry(bundle.to_owned()).or_default().insert(number);
            }
        }
    }

    fn medium(mut self, paths: &[PathBuf]) -> Result<Medium, MediumError> {
        let names: Vec<String> = (self.whole.iter().map(|path| path.display().to_string()))
            .chain(self.volumes.keys().map(|bundle| volume_name(bundle, 1)))
            .collect();
        match (self.whole.len(), self.volumes.len()) {
            (1, 0) => Ok(Medium::file(&self.whole.pop_first().expect("it was counted"))?),
            (0, 1) => {
                let (bundle, candidates) = self.volumes.pop_first().expect("it was counted");
                let listed = self.listed.remove(&bundle).unwrap_or_default();
                Ok(Set { bundle, candidates, listed, folders: self.folders }.medium())
            }
            (0, 0) => Err(MediumError::Nothing(paths.first().cloned().unwrap_or_default())),
            // Somebody named it.
            (1, _) if paths.len() > 1 => Err(MediumError::NotAVolume(names[0].clone())),
            _ => Err(MediumError::Several(names)),
        }
    }
}

/// The files of a folder, sorted by name.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>, FsError> {
    let entries = std::fs::read_dir(folder).map_err(FsError::at("read", folder))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(FsError::at("read", folder))?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned()
}

/// Whether the file has a label, or others beside it that have.
fn is_volume(path: &Path) -> Result<bool, FsError> {
    if !path.is_file() {
        return Ok(false);
    }
    if label_of(path)?.is_some() {
        return Ok(true);
    }
    let name = file_name(path);
    let bundle = parse_volume_name(&name).map(|(bundle, _)| bundle);
    let same = |other: &PathBuf| {
        other != path && parse_volume_name(&file_name(other)).map(|(other, _)| other) == bundle
    };
    Ok(files_in(fs::parent(path))?.iter().any(same))
}

/// The label of the volume `path`; nothing if it has none that can be read. That it cannot be opened is an error.
fn label_of(path: &Path) -> Result<Option<Label>, FsError> {
    let file = fs::open(path)?;
    let mut frames = FrameReader::new(BufReader::new(file), 0, &frame::buffers());
    for _ in 0..HEAD_FRAMES {
        match frames.next_frame() {
            Ok(Some(Frame::Skippable { magic: VOLUME_MAGIC, payload })) => {
                return Ok(Label::parse(&payload).filter(|label| label.number <= VOLUME_LIMIT));
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    Ok(None)
}

/// The volumes of one bundle, on the way to a medium.
struct Set {
    bundle: String,
    candidates: Vec<Candidate>,
    listed: BTreeSet<u32>,
    folders: Vec<PathBuf>,
}

impl Set {
    fn medium(self) -> Medium {
        let mut problems = Vec::new();
        let own = self.own_set();
        let mut numbered: BTreeMap<u32, Candidate> = BTreeMap::new();
        // Those whose name is right come first: any other one of the same number is a copy.
        let (right, other): (Vec<_>, Vec<_>) = (self.candidates.iter().cloned())
            .partition(|candidate| candidate.label.is_some_and(|label| label.number == candidate.number));
        for candidate in right.into_iter().chain(other) {
            let volume = file_name(&candidate.path);
            match candidate.label {
                Some(label) if Some(label.set) != own => problems.push(Problem::Foreign { volume }),
                Some(label) => {
                    let is = volume_name(&self.bundle, label.number);
                    if let Some(known) = numbered.get_mut(&label.number) {
                        if is == volume {
                            // On two sticks: the longer one is the better one.
                            if candidate.len > known.len {
                                *known = candidate;
                            }
                        } else {
                            problems.push(Problem::Repeated { volume, is });
                        }
                        continue;
                    }
                    if is != volume {
                        problems.push(Problem::Renamed { volume, is });
                    }
                    numbered.insert(label.number, candidate);
                }
                None if numbered.contains_key(&candidate.number) => {}
                None => {
                    problems.push(Problem::Unlabelled { volume });
                    numbered.insert(candidate.number, candidate);
                }
            }
        }
        let last = numbered.keys().chain(&self.listed).copied().max().unwrap_or(1);
        let volumes = self.volumes(&numbered, last, &mut problems);
        let medium = Medium {
            volumes,
            name: self.bundle.clone(),
            is_in_volumes: true,
            folders: self.folders.clone(),
            problems,
            open: Mutex::new(None),
            recoveries: Mutex::default(),
            has_recovery: AtomicBool::new(false),
            mended: Mutex::default(),
        };
        self.with_end(medium, last)
    }

    /// What most labels say; of several, what the first one says.
    fn own_set(&self) -> Option<Digest> {
        let mut counts: Vec<(Digest, usize)> = Vec::new();
        for set in self.candidates.iter().filter_map(|candidate| Some(candidate.label?.set)) {
            match counts.iter_mut().find(|(known, _)| *known == set) {
                Some((_, count)) => *count += 1,
                None => counts.push((set, 1)),
            }
        }
        counts.iter().rev().max_by_key(|(_, count)| *count).map(|(set, _)| *set)
    }

    /// Each volume at its place.
    fn volumes(
        &self,
        numbered: &BTreeMap<u32, Candidate>,
        last: u32,
        problems: &mut Vec<Problem>,
    ) -> Vec<Volume> {
        let mut volumes: Vec<Volume> = Vec::new();
        let mut start = 0;
        for number in 1..=last {
            let name = volume_name(&self.bundle, number);
            let candidate = numbered.get(&number);
            let label = candidate.and_then(|candidate| candidate.label);
            if let Some(label) = label {
                start = label.offset.max(start); // a label that lies must not turn the order around
            }
            let next = numbered.get(&(number + 1)).and_then(|next| Some(next.label?.offset));
            let have = candidate.map_or(0, |candidate| candidate.len);
            let len = next.and_then(|next| next.checked_sub(start)).unwrap_or(have);
            match candidate {
                None => problems.push(Problem::Missing { volume: name.clone() }),
                Some(_) if have < len => {
                    problems.push(Problem::Truncated { volume: name.clone(), has: have, needs: len });
                }
                Some(_) if have > len => {
                    problems.push(Problem::Longer { volume: name.clone(), has: have, needs: len });
                }
                Some(_) => {}
            }
            let path = candidate.map(|candidate| candidate.path.clone());
            volumes.push(Volume { name, path, start, len, have, stream: label.map(|label| label.stream) });
            start = start.saturating_add(len);
        }
        // What is missing reaches to where the next one says that it begins.
        for number in 1..volumes.len() {
            let start = volumes[number].start;
            let before = &mut volumes[number - 1];
            if before.path.is_none() {
                before.len = start.saturating_sub(before.start);
            }
        }
        volumes
    }

    /// Notes whether the last volume ends the bundle.
    fn with_end(&self, mut medium: Medium, last: u32) -> Medium {
        let is_last_there = medium.volumes.last().is_some_and(Volume::is_there);
        if !is_last_there || seek_table::ends(&mut medium.reader(0)).unwrap_or(false) {
            return medium;
        }
        let (volume, next) = (volume_name(&self.bundle, last), volume_name(&self.bundle, last + 1));
        let index = medium.volumes.len() - 1;
        let have = medium.volumes[index].have;
        // Recovery data says how long its volume is, and whether it is the last one.
        let problem =
            match medium.recovery(index).map(|recovery| (recovery.volume_len(), recovery.section().end)) {
                Some((len, end)) if end == len => Some(Problem::Missing { volume: next }),
                Some((len, _)) if have < len => Some(Problem::Truncated { volume, has: have, needs: len }),
                // It is only damaged.
                Some(_) => None,
                None => Some(Problem::Unended { volume, next }),
            };
        medium.problems.extend(problem);
        medium
    }
}
