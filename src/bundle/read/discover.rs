//! Finds the files and volumes of a bundle in one or several directories.
//!
//! Volumes are recognized by their labels, whatever their names: drives have capitals, browsers and file managers add
//! ` (1)`, release pages replace characters. Only a volume whose label is corrupt is recognized by its name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError, file_name};
use crate::base::own_file::read_regular;
use crate::bundle::format::volume_name::{SUMS, parse_volume_name};
use crate::bundle::read::assemble::SetBuilder;
use crate::bundle::read::candidate::{Candidate, is_bundle_name, is_ignored_name};
use crate::bundle::read::describe::describe;
use crate::bundle::read::discover_error::DiscoverError;
use crate::bundle::read::media_file::MediaFile;
use crate::bundle::read::problem::VolumeProblem;
use crate::bundle::read::volume_set::VolumeSet;

/// Maximum size of a checksum list in bytes.
const SUMS_LIMIT: u64 = 16 << 20;

/// Maximum number of bundles that an error describes.
const SHOWN_BUNDLES: usize = 8;

/// True if `path` is a bundle, or a directory that contains one.
#[must_use]
pub(crate) fn is_bundle(path: &Path) -> bool {
    find(&[path.to_owned()]).is_ok()
}

/// Finds the bundle that `paths` specify: one file, any volumes of a bundle, or directories that together
/// contain one bundle.
///
/// If there are several, the one of a file in `paths` is chosen, or else the only complete one.
pub fn find(paths: &[PathBuf]) -> Result<VolumeSet, DiscoverError> {
    let mut media = Media::default();
    for path in paths {
        if paths.len() == 1 || !path.is_file() || !is_ignored_name(&file_name(path)) {
            media.add(path)?;
        }
    }
    media.choose(paths)
}

/// The files on the media.
#[derive(Default)]
struct Media {
    /// Bundles in one file.
    bundles: BTreeSet<PathBuf>,
    /// Volumes, by the canonical path of the file that contains them.
    volumes: BTreeMap<PathBuf, Vec<Candidate>>,
    /// Files that were specified, not found in a directory. As in `volumes`, a file with several paths counts once.
    specified: BTreeSet<PathBuf>,
    /// The directories that contain volumes.
    directories: Vec<PathBuf>,
    /// The numbers of the volumes of each bundle in checksum lists, by its name in small letters.
    listed: HashMap<String, BTreeSet<u32>>,
}

/// The files of one bundle.
enum Group {
    File(PathBuf),
    Volumes(Vec<Candidate>),
}

impl Media {
    fn add(&mut self, path: &Path) -> Result<(), DiscoverError> {
        if path.is_dir() {
            let before = self.len();
            self.add_directory(path, true)?;
            return if self.len() == before && !self.has_directory(path) {
                Err(DiscoverError::Nothing(path.to_owned()))
            } else {
                Ok(())
            };
        }
        let name = file_name(path);
        if !path.exists() {
            // `NAME` for the volumes `NAME.001` and so on.
            let directory = fs::parent(path);
            let files = files_in(directory).unwrap_or_default();
            let is_of = |file: &PathBuf| {
                parse_volume_name(&file_name(file)).is_some_and(|(bundle, _)| bundle == name)
            };
            let volumes: Vec<PathBuf> = files.into_iter().filter(is_of).collect();
            if volumes.is_empty() {
                self.bundles.insert(path.to_owned()); // opening it returns the error
                return Ok(());
            }
            self.specified.extend(volumes.iter().map(|path| canonical(path)));
            return self.add_directory(directory, false);
        }
        self.specified.insert(canonical(path));
        match MediaFile::of(path)? {
            // `x.001` can also be a complete bundle that happens to have such a name.
            MediaFile::Volumes(volumes) if is_volume(path, &volumes)? => {
                let is_joined = volumes.len() > 1;
                self.volumes.insert(canonical(path), volumes);
                if !is_joined {
                    self.add_directory(fs::parent(path), false)?;
                }
            }
            _ => {
                self.bundles.insert(path.to_owned());
            }
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.bundles.len() + self.volumes.len()
    }

    /// True if the volumes in `directory` were added.
    fn has_directory(&self, directory: &Path) -> bool {
        let directory = canonical(directory);
        self.directories.iter().any(|known| canonical(known) == directory)
    }

    /// Adds the volumes in `directory`, and bundles in one file if `with_bundles`.
    fn add_directory(&mut self, directory: &Path, with_bundles: bool) -> Result<(), DiscoverError> {
        if self.has_directory(directory) {
            return Ok(());
        }
        let mut has_volumes = !with_bundles;
        for path in files_in(directory)? {
            let own_path = canonical(&path);
            if self.volumes.contains_key(&own_path) {
                has_volumes = true;
                continue;
            }
            let name = file_name(&path);
            let of_bundle = parse_volume_name(&name).is_some_and(|(bundle, _)| is_bundle_name(bundle));
            let is_expected = of_bundle || is_bundle_name(&name) || self.specified.contains(&own_path);
            match MediaFile::of(&path) {
                // A label decides if the name is another one.
                Ok(MediaFile::Volumes(volumes)) if is_expected || volumes[0].label.is_some() => {
                    self.volumes.insert(own_path, volumes);
                    has_volumes = true;
                }
                Ok(MediaFile::Bundle) if with_bundles => {
                    self.bundles.insert(path);
                }
                Err(error) if is_expected => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        if has_volumes {
            self.directories.push(directory.to_owned());
            self.add_list(&directory.join(SUMS));
        }
        Ok(())
    }

    /// Records the volumes in a checksum list. An unreadable list is ignored.
    fn add_list(&mut self, path: &Path) {
        let Ok(bytes) = read_regular(path, SUMS_LIMIT) else { return };
        for line in String::from_utf8_lossy(&bytes).lines() {
            let Some((_, name)) = line.split_once([' ', '\t']) else { continue };
            if let Some((bundle, number)) = parse_volume_name(name.trim_start_matches([' ', '*'])) {
                self.listed.entry(bundle.to_ascii_lowercase()).or_default().insert(number);
            }
        }
    }

    /// Returns the bundle that the paths specify, or the only complete one.
    fn choose(mut self, paths: &[PathBuf]) -> Result<VolumeSet, DiscoverError> {
        let groups = self.groups();
        let is_specified =
            |group: &Group| group.paths().any(|path| self.specified.contains(&canonical(path)));
        let (specified, other): (Vec<_>, Vec<_>) = groups.into_iter().partition(is_specified);
        let is_choice = specified.is_empty();
        let (from, mut other) = if is_choice { (other, specified) } else { (specified, other) };
        let bundle = from.iter().find_map(|group| match group {
            Group::File(path) => Some(path.display().to_string()),
            Group::Volumes(_) => None,
        });
        if let Some(bundle) = bundle.filter(|_| from.len() > 1 && paths.len() > 1 && !is_choice) {
            return Err(DiscoverError::NotAVolume(bundle));
        }
        let mut sets = Vec::new();
        for group in from {
            sets.push((self.volume_set(&group)?, group));
        }
        let is_complete = |(set, _): &&(VolumeSet, Group)| set.gaps().is_empty();
        let chosen = match sets.len() {
            0 => return Err(DiscoverError::Nothing(paths.first().cloned().unwrap_or_default())),
            1 => 0,
            _ if sets.iter().filter(is_complete).count() == 1 => {
                sets.iter().position(|set| is_complete(&set)).expect("there is one; please report")
            }
            _ => {
                let any_complete = sets.iter().any(|set| is_complete(&set));
                let error = if any_complete { DiscoverError::Several } else { DiscoverError::Incomplete };
                let texts = sets.into_iter().take(SHOWN_BUNDLES).map(|(set, _)| describe(set));
                return Err(error(texts.collect()));
            }
        };
        let (mut set, _) = sets.swap_remove(chosen);
        other.extend(sets.into_iter().map(|(_, group)| group));
        for candidate in other.iter().flat_map(Group::volumes) {
            if is_choice || candidate.is_named(set.name()) {
                set.add_problem(VolumeProblem::Foreign { volume: file_name(&candidate.path) });
            }
        }
        Ok(set)
    }

    /// Groups the volumes by the set in their labels; those without a label belong to the bundle of the same name.
    fn groups(&mut self) -> Vec<Group> {
        let volumes = std::mem::take(&mut self.volumes);
        let (labelled, unlabelled): (Vec<_>, Vec<_>) =
            volumes.into_values().flatten().partition(|candidate| candidate.label.is_some());
        let mut sets: Vec<Vec<Candidate>> = Vec::new();
        for candidate in labelled {
            let set = |other: &Candidate| other.label.map(|label| label.set);
            match sets.iter_mut().find(|known| set(&known[0]) == set(&candidate)) {
                Some(known) => known.push(candidate),
                None => sets.push(vec![candidate]),
            }
        }
        let mut rest: Vec<Vec<Candidate>> = Vec::new();
        for candidate in unlabelled {
            let Some((name, number)) = candidate.named.clone() else { continue };
            let is_of_name = |set: &Vec<Candidate>| set.iter().any(|known| known.is_named(&name));
            // Beside a volume with its label, it is a copy only in another directory.
            let directory = fs::parent(&candidate.path);
            let is_known =
                |known: &Candidate| known.number() == Some(number) && fs::parent(&known.path) == directory;
            let has_number = |set: &Vec<Candidate>| set.iter().any(is_known);
            if sets.iter().any(is_of_name) {
                // Frames have checksums, and blobs have digests: a volume of another bundle does no harm.
                for set in sets.iter_mut().filter(|set| is_of_name(set) && !has_number(set)) {
                    set.push(candidate.clone());
                }
            } else if let Some(known) = rest.iter_mut().find(|set| is_of_name(set)) {
                known.push(candidate);
            } else {
                rest.push(vec![candidate]);
            }
        }
        let files = std::mem::take(&mut self.bundles).into_iter().map(Group::File);
        files.chain(sets.into_iter().chain(rest).map(Group::Volumes)).collect()
    }

    fn volume_set(&self, group: &Group) -> Result<VolumeSet, FsError> {
        match group {
            Group::File(path) => VolumeSet::file(path),
            Group::Volumes(candidates) => {
                let mut directories = self.directories.clone();
                if directories.is_empty() {
                    directories.push(fs::parent(&candidates[0].path).to_owned());
                }
                let builder = SetBuilder::new(candidates, directories, &self.listed);
                Ok(builder.build(candidates.clone()))
            }
        }
    }
}

impl Group {
    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let file = if let Self::File(path) = self { Some(path) } else { None };
        file.into_iter().chain(self.volumes().iter().map(|candidate| &candidate.path))
    }

    fn volumes(&self) -> &[Candidate] {
        match self {
            Self::File(_) => &[],
            Self::Volumes(candidates) => candidates,
        }
    }
}

/// Returns the only path of a file or directory that has no links and no `..`, or `path` itself if there is none.
fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Returns the regular files in a directory that can belong to a bundle, sorted by name.
fn files_in(directory: &Path) -> Result<Vec<PathBuf>, FsError> {
    let entries = std::fs::read_dir(directory).map_err(FsError::at("read", directory))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(FsError::at("read", directory))?.path();
        if !is_ignored_name(&file_name(&path)) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// True if `volumes`, which are in the file at `path`, have labels, or if there are other volumes of the same name.
fn is_volume(path: &Path, volumes: &[Candidate]) -> Result<bool, FsError> {
    if volumes.iter().any(|volume| volume.label.is_some()) {
        return Ok(true);
    }
    let name = file_name(path);
    let bundle = parse_volume_name(&name).map(|(bundle, _)| bundle);
    let is_sibling = |other: &PathBuf| {
        other != path && parse_volume_name(&file_name(other)).map(|(other, _)| other) == bundle
    };
    Ok(files_in(fs::parent(path))?.iter().any(is_sibling))
}
