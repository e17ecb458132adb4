//! Finds the volumes of a bundle on one or several drives.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use crate::base::fs::{self, FsError, file_name};
use crate::bundle::format::label::Label;
use crate::bundle::format::seek_table;
use crate::bundle::format::skippable::VOLUME_MAGIC;
use crate::bundle::format::volume_name::{SUMS, VOLUME_LIMIT, parse_volume_name, volume_name};
use crate::bundle::read::frame_reader::{self, Frame, FrameReader};
use crate::bundle::read::problem::VolumeProblem;
use crate::bundle::read::volume_set::{Volume, VolumeSet};
use crate::oci::digest::Digest;

/// The largest such list that is read, in bytes.
pub(crate) const SUMS_LIMIT: u64 = 16 << 20;

/// How many frames are looked at for the label of the first volume: the head stands before it.
pub(crate) const HEAD_FRAMES: usize = 64;

/// Why there is no bundle to be read.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The file system says no.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A directory without a bundle.
    #[error("there is no bundle in `{}`: no name there ends in `.tar.zst` or `.tar.zst.001`", .0.display())]
    Nothing(PathBuf),
    /// There are several.
    #[error("there are several bundles: `{}`: name the first volume of one, or its file", .0.join("`, `"))]
    Several(Vec<String>),
    /// One whole file and something beside it.
    #[error("`{0}` is not a volume, and cannot be read together with others")]
    NotAVolume(String),
}

/// Finds the bundle that `paths` name: one file, any volume of a set, or directories that together hold one bundle.
pub fn find(paths: &[PathBuf]) -> Result<VolumeSet, DiscoverError> {
    let mut found = Discovered::default();
    paths.iter().try_for_each(|path| found.look(path))?;
    found.medium(paths)
}

/// What was found of bundles.
#[derive(Default)]
pub(crate) struct Discovered {
    /// Files that are bundles by themselves.
    pub(crate) whole: BTreeSet<PathBuf>,
    /// The volumes of each bundle.
    pub(crate) volumes: BTreeMap<String, Vec<Candidate>>,
    pub(crate) directories: Vec<PathBuf>,
    /// What lists of volumes name, of each bundle.
    pub(crate) listed: HashMap<String, BTreeSet<u32>>,
}

/// A file that has the name of a volume.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) path: PathBuf,
    pub(crate) number: u32,
    pub(crate) len: u64,
    pub(crate) label: Option<Label>,
}

impl Discovered {
    pub(crate) fn look(&mut self, path: &Path) -> Result<(), DiscoverError> {
        let kind = std::fs::metadata(path);
        if kind.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
            return self.look_into(path);
        }
        let name = file_name(path);
        if let Some((bundle, _)) = parse_volume_name(&name) {
            // `x.001` may also be the whole bundle under a name of its own.
            if is_volume(path)? {
                let directory = fs::parent(path);
                return self.volumes_in(directory, |other| other == bundle, true);
            }
        } else if kind.is_err() && path.with_file_name(volume_name(&name, 1)).exists() {
            return self.volumes_in(fs::parent(path), |other| other == name, true);
        }
        self.whole.insert(path.to_owned());
        Ok(())
    }

    pub(crate) fn look_into(&mut self, directory: &Path) -> Result<(), DiscoverError> {
        let before = (self.whole.len(), self.volumes.len(), self.directories.len());
        for path in files_in(directory)? {
            if file_name(&path).ends_with(".tar.zst") {
                self.whole.insert(path);
            }
        }
        self.volumes_in(directory, |bundle| bundle.ends_with(".tar.zst"), false)?;
        if before == (self.whole.len(), self.volumes.len(), self.directories.len()) {
            return Err(DiscoverError::Nothing(directory.to_owned()));
        }
        Ok(())
    }

    /// Takes the volumes in `directory` of the bundles that are `wanted`.
    pub(crate) fn volumes_in(
        &mut self,
        directory: &Path,
        wanted: impl Fn(&str) -> bool,
        is_named: bool,
    ) -> Result<(), DiscoverError> {
        if self.directories.iter().any(|known| known == directory) {
            return Ok(());
        }
        let mut is_any = is_named;
        for path in files_in(directory)? {
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
            self.directories.push(directory.to_owned());
            self.read_list(&directory.join(SUMS));
        }
        Ok(())
    }

    /// Which volumes a list names. A list that cannot be read tells nothing.
    pub(crate) fn read_list(&mut self, path: &Path) {
        let Ok(bytes) = fs::read(path, SUMS_LIMIT) else { return };
        for line in String::from_utf8_lossy(&bytes).lines() {
            let Some((_, name)) = line.split_once([' ', '\t']) else { continue };
            if let Some((bundle, number)) = parse_volume_name(name.trim_start_matches([' ', '*'])) {
                self.listed.entry(bundle.to_owned()).or_default().insert(number);
            }
        }
    }

    pub(crate) fn medium(mut self, paths: &[PathBuf]) -> Result<VolumeSet, DiscoverError> {
        let names: Vec<String> = (self.whole.iter().map(|path| path.display().to_string()))
            .chain(self.volumes.keys().map(|bundle| volume_name(bundle, 1)))
            .collect();
        match (self.whole.len(), self.volumes.len()) {
            (1, 0) => Ok(VolumeSet::file(&self.whole.pop_first().expect("it was counted"))?),
            (0, 1) => {
                let (bundle, candidates) = self.volumes.pop_first().expect("it was counted");
                let listed = self.listed.remove(&bundle).unwrap_or_default();
                Ok(SetBuilder { bundle, candidates, listed, directories: self.directories }.medium())
            }
            (0, 0) => Err(DiscoverError::Nothing(paths.first().cloned().unwrap_or_default())),
            // Somebody named it.
            (1, _) if paths.len() > 1 => Err(DiscoverError::NotAVolume(names[0].clone())),
            _ => Err(DiscoverError::Several(names)),
        }
    }
}

/// The files of a directory, sorted by name.
pub(crate) fn files_in(directory: &Path) -> Result<Vec<PathBuf>, FsError> {
    let entries = std::fs::read_dir(directory).map_err(FsError::at("read", directory))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(FsError::at("read", directory))?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether the file has a label, or others beside it that have.
pub(crate) fn is_volume(path: &Path) -> Result<bool, FsError> {
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
pub(crate) fn label_of(path: &Path) -> Result<Option<Label>, FsError> {
    let file = fs::open(path)?;
    let mut frames = FrameReader::new(BufReader::new(file), 0, &frame_reader::buffers());
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
pub(crate) struct SetBuilder {
    pub(crate) bundle: String,
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) listed: BTreeSet<u32>,
    pub(crate) directories: Vec<PathBuf>,
}

impl SetBuilder {
    pub(crate) fn medium(self) -> VolumeSet {
        let mut problems = Vec::new();
        let own = self.own_set();
        let mut numbered: BTreeMap<u32, Candidate> = BTreeMap::new();
        // Those whose name is right come first: any other one of the same number is a copy.
        let (right, other): (Vec<_>, Vec<_>) = (self.candidates.iter().cloned())
            .partition(|candidate| candidate.label.is_some_and(|label| label.number == candidate.number));
        for candidate in right.into_iter().chain(other) {
            let volume = file_name(&candidate.path);
            match candidate.label {
                Some(label) if Some(label.set) != own => problems.push(VolumeProblem::Foreign { volume }),
                Some(label) => {
                    let is = volume_name(&self.bundle, label.number);
                    if let Some(known) = numbered.get_mut(&label.number) {
                        if is == volume {
                            // On two sticks: the longer one is the better one.
                            if candidate.len > known.len {
                                *known = candidate;
                            }
                        } else {
                            problems.push(VolumeProblem::Repeated { volume, is });
                        }
                        continue;
                    }
                    if is != volume {
                        problems.push(VolumeProblem::Renamed { volume, is });
                    }
                    numbered.insert(label.number, candidate);
                }
                None if numbered.contains_key(&candidate.number) => {}
                None => {
                    problems.push(VolumeProblem::Unlabelled { volume });
                    numbered.insert(candidate.number, candidate);
                }
            }
        }
        let last = numbered.keys().chain(&self.listed).copied().max().unwrap_or(1);
        let volumes = self.volumes(&numbered, last, &mut problems);
        let medium = VolumeSet {
            volumes,
            name: self.bundle.clone(),
            is_in_volumes: true,
            directories: self.directories.clone(),
            problems,
            open: Mutex::new(None),
            recoveries: Mutex::default(),
            has_recovery: AtomicBool::new(false),
            repaired: Mutex::default(),
        };
        self.with_end(medium, last)
    }

    /// What most labels say; of several, what the first one says.
    pub(crate) fn own_set(&self) -> Option<Digest> {
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
    pub(crate) fn volumes(
        &self,
        numbered: &BTreeMap<u32, Candidate>,
        last: u32,
        problems: &mut Vec<VolumeProblem>,
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
                None => problems.push(VolumeProblem::Missing { volume: name.clone() }),
                Some(_) if have < len => {
                    problems.push(VolumeProblem::Truncated { volume: name.clone(), has: have, needs: len });
                }
                Some(_) if have > len => {
                    problems.push(VolumeProblem::Longer { volume: name.clone(), has: have, needs: len });
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
    pub(crate) fn with_end(&self, mut medium: VolumeSet, last: u32) -> VolumeSet {
        let is_last_there = medium.volumes.last().is_some_and(Volume::is_there);
        if !is_last_there || seek_table::has_footer(&mut medium.reader(0)).unwrap_or(false) {
            return medium;
        }
        let (volume, next) = (volume_name(&self.bundle, last), volume_name(&self.bundle, last + 1));
        let index = medium.volumes.len() - 1;
        let have = medium.volumes[index].have;
        // Recovery data says how long its volume is, and whether it is the last one.
        let problem = match medium
            .recovery(index)
            .map(|recovery| (recovery.volume_len(), recovery.section().end))
        {
            Some((len, end)) if end == len => Some(VolumeProblem::Missing { volume: next }),
            Some((len, _)) if have < len => Some(VolumeProblem::Truncated { volume, has: have, needs: len }),
            // It is only damaged.
            Some(_) => None,
            None => Some(VolumeProblem::Unended { volume, next }),
        };
        medium.problems.extend(problem);
        medium
    }
}
