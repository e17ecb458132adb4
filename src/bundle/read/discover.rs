//! Finds the files and volumes of a bundle in one or several directories.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError, file_name};
use crate::base::own_file::read_regular;
use crate::bundle::format::label::Label;
use crate::bundle::format::skippable::VOLUME_MAGIC;
use crate::bundle::format::volume_name::{SUMS, VOLUME_LIMIT, parse_volume_name, volume_name};
use crate::bundle::read::assemble::{Candidate, SetBuilder};
use crate::bundle::read::frame_reader::{self, Frame, FrameReader};
use crate::bundle::read::joined;
use crate::bundle::read::volume_set::VolumeSet;

/// Maximum size of a checksum list in bytes.
const SUMS_LIMIT: u64 = 16 << 20;

/// Maximum number of frames to search for a label. The head precedes the label of the first volume.
const HEAD_FRAMES: usize = 64;

/// No bundle was found, or more than one.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// A file or directory cannot be read.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A directory without a bundle.
    #[error("no bundle in `{}`: expected a file named `*.tar.zst` or `*.tar.zst.001`", .0.display())]
    Nothing(PathBuf),
    /// Several bundles.
    #[error("found several bundles: `{}`: specify one file, or the first volume of one bundle", .0.join("`, `"))]
    Several(Vec<String>),
    /// Several paths, one of which is a complete bundle.
    #[error("`{0}` is not a volume: it cannot be combined with other paths")]
    NotAVolume(String),
}

/// Finds the bundle that `paths` specify: one file, any volume of a bundle, or directories that together
/// contain one bundle.
pub fn find(paths: &[PathBuf]) -> Result<VolumeSet, DiscoverError> {
    let mut found = Discovered::default();
    paths.iter().try_for_each(|path| found.add_path(path))?;
    found.into_volume_set(paths)
}

/// The files of all bundles that were found.
#[derive(Default)]
struct Discovered {
    /// Files that are complete bundles.
    files: BTreeSet<PathBuf>,
    /// The volumes of each bundle, by the name of the bundle.
    volumes: BTreeMap<String, Vec<Candidate>>,
    /// The directories that contain volumes.
    directories: Vec<PathBuf>,
    /// The numbers of the volumes of each bundle in checksum lists.
    listed: HashMap<String, BTreeSet<u32>>,
}

impl Discovered {
    fn add_path(&mut self, path: &Path) -> Result<(), DiscoverError> {
        let metadata = std::fs::metadata(path);
        if metadata.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
            return self.add_directory(path);
        }
        let name = file_name(path);
        let bundle = if let Some((bundle, _)) = parse_volume_name(&name) {
            // `x.001` can also be a complete bundle that happens to have such a name.
            is_volume(path)?.then_some(bundle)
        } else {
            let is_set = metadata.is_err() && path.with_file_name(volume_name(&name, 1)).exists();
            is_set.then_some(&*name)
        };
        if let Some(bundle) = bundle {
            return self.add_volumes(fs::parent(path), |other| other == bundle, true);
        }
        self.files.insert(path.to_owned());
        Ok(())
    }

    fn add_directory(&mut self, directory: &Path) -> Result<(), DiscoverError> {
        let count = |found: &Self| (found.files.len(), found.volumes.len(), found.directories.len());
        let before = count(self);
        let files = files_in(directory)?.into_iter();
        self.files.extend(files.filter(|path| file_name(path).ends_with(".tar.zst")));
        self.add_volumes(directory, |bundle| bundle.ends_with(".tar.zst"), false)?;
        if count(self) == before {
            return Err(DiscoverError::Nothing(directory.to_owned()));
        }
        Ok(())
    }

    /// Adds the volumes in `directory` of all bundles whose name `accepts`. The directory is recorded if it
    /// contains such volumes, or if `is_named`.
    fn add_volumes(
        &mut self,
        directory: &Path,
        accepts: impl Fn(&str) -> bool,
        is_named: bool,
    ) -> Result<(), DiscoverError> {
        if self.directories.iter().any(|known| known == directory) {
            return Ok(());
        }
        let mut is_used = is_named;
        for path in files_in(directory)? {
            let name = file_name(&path);
            let Some((bundle, number)) = parse_volume_name(&name).filter(|(bundle, _)| accepts(bundle))
            else {
                continue;
            };
            let len = path.metadata().map_err(FsError::at("read", &path))?.len();
            let label = read_label(&path)?;
            let candidates = self.volumes.entry(bundle.to_owned()).or_default();
            candidates.push(Candidate { path, number, base: 0, len, label });
            is_used = true;
        }
        if is_used {
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
                self.listed.entry(bundle.to_owned()).or_default().insert(number);
            }
        }
    }

    /// Returns the only bundle that was found.
    fn into_volume_set(mut self, paths: &[PathBuf]) -> Result<VolumeSet, DiscoverError> {
        let names: Vec<String> = (self.files.iter().map(|path| path.display().to_string()))
            .chain(self.volumes.keys().map(|bundle| volume_name(bundle, 1)))
            .collect();
        match (self.files.len(), self.volumes.len()) {
            (1, 0) => {
                let path = self.files.pop_first().expect("there is one file");
                let parts = joined::parts(&path)?;
                if parts.is_empty() {
                    return Ok(VolumeSet::file(&path)?);
                }
                let directories = vec![fs::parent(&path).to_owned()];
                let builder = SetBuilder::new(file_name(&path), directories, BTreeSet::new());
                Ok(builder.build(parts).joined())
            }
            (0, 1) => {
                let (bundle, candidates) = self.volumes.pop_first().expect("there is one bundle");
                let listed = self.listed.remove(&bundle).unwrap_or_default();
                Ok(SetBuilder::new(bundle, self.directories, listed).build(candidates))
            }
            (0, 0) => Err(DiscoverError::Nothing(paths.first().cloned().unwrap_or_default())),
            (1, _) if paths.len() > 1 => Err(DiscoverError::NotAVolume(names[0].clone())),
            _ => Err(DiscoverError::Several(names)),
        }
    }
}

/// Returns the regular files in a directory, sorted by name.
fn files_in(directory: &Path) -> Result<Vec<PathBuf>, FsError> {
    let entries = std::fs::read_dir(directory).map_err(FsError::at("read", directory))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(FsError::at("read", directory))?.path();
        // Macs write a file of this name beside each file on FAT and exFAT.
        let is_of_mac = file_name(&path).starts_with("._");
        if !is_of_mac && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// True if the file, which is named like a volume, has a label, or if there are other volumes of the same
/// name.
fn is_volume(path: &Path) -> Result<bool, FsError> {
    if !path.is_file() {
        return Ok(false);
    }
    if read_label(path)?.is_some() {
        return Ok(true);
    }
    let name = file_name(path);
    let bundle = parse_volume_name(&name).map(|(bundle, _)| bundle);
    let is_sibling = |other: &PathBuf| {
        other != path && parse_volume_name(&file_name(other)).map(|(other, _)| other) == bundle
    };
    Ok(files_in(fs::parent(path))?.iter().any(is_sibling))
}

/// Reads the label of the volume at `path`. `None` if it has no readable label. Fails if the file cannot be
/// opened.
pub(crate) fn read_label(path: &Path) -> Result<Option<Label>, FsError> {
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
