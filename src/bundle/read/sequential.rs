//! [`SequentialVolumes`]: reads volumes one after the other and prompts for the next media.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::base::fs::file_name;
use crate::bundle::format::seek_table;
use crate::bundle::format::volume_name::volume_name;
use crate::bundle::read::candidate::{is_ignored_name, read_label};
use crate::bundle::read::problem::{MissingBytes, VolumeProblem};
use crate::bundle::read::volume_set::VolumeSet;
use crate::oci::digest::Digest;

/// Prompts the user for a volume. Returns true if the volume can be available now, and false to give up.
pub(crate) type AskForVolume = Box<dyn FnMut(&VolumeProblem) -> bool + Send>;

/// Reads the volumes of a bundle one after the other, and prompts for each one that is missing: for media of
/// which only one can be inserted at a time.
pub(crate) struct SequentialVolumes {
    bundle: String,
    directories: Vec<PathBuf>,
    ask: AskForVolume,
    /// The set in the labels of the volumes. `None` until a label was read.
    set: Option<Digest>,
    open: Option<OpenVolume>,
    /// Number of the current volume, from 1. 0 before the first one.
    number: u32,
}

struct OpenVolume {
    file: File,
    is_last: bool,
    /// Offset of the next byte in the volume.
    position: u64,
    /// True if reading at `position` failed, and the file was opened again.
    is_second_attempt: bool,
}

impl SequentialVolumes {
    #[must_use]
    pub(crate) fn new(volumes: &VolumeSet, ask: AskForVolume) -> Self {
        let (bundle, directories) = (volumes.name().to_owned(), volumes.directories().to_vec());
        Self { bundle, directories, ask, set: volumes.id(), open: None, number: 0 }
    }

    /// Opens the current volume at offset `position`, and prompts for it until it is available.
    fn open(&mut self, position: u64) -> io::Result<()> {
        // Closed before the prompt, so that the media can be removed.
        self.open = None;
        loop {
            let problem = match self.find() {
                Ok(path) => {
                    let mut file = File::open(&path)?;
                    let is_last = seek_table::has_footer(&mut file)?;
                    file.seek(SeekFrom::Start(position))?;
                    self.open = Some(OpenVolume { file, is_last, position, is_second_attempt: false });
                    return Ok(());
                }
                Err(problem) => problem,
            };
            if !(self.ask)(&problem) {
                return Err(io::Error::other(MissingBytes(problem)));
            }
        }
    }

    /// Finds the current volume: by its name, or else by its label.
    fn find(&mut self) -> Result<PathBuf, VolumeProblem> {
        let volume = volume_name(&self.bundle, self.number);
        let mut named: Vec<PathBuf> =
            self.directories.iter().map(|directory| directory.join(&volume)).collect();
        named.retain(|path| path.is_file());
        let mut problem = VolumeProblem::Missing { volume };
        for path in named {
            match self.check(&path) {
                Ok(()) => return Ok(path),
                Err(error) => problem = error,
            }
        }
        for directory in &self.directories {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            paths.retain(|path| !is_ignored_name(&file_name(path)) && path.is_file());
            paths.sort();
            let is_current = |path: &PathBuf| {
                let label = read_label(path).ok().flatten();
                label.is_some_and(|label| Some(label.set) == self.set && label.number == self.number)
            };
            if let Some(path) = paths.into_iter().find(is_current) {
                return Ok(path);
            }
        }
        Err(problem)
    }

    /// Fails if the label of the file at `path`, which is named like the current volume, is that of another one.
    fn check(&mut self, path: &Path) -> Result<(), VolumeProblem> {
        let volume = file_name(path);
        // A file that cannot be read is reported when it is opened.
        let Some(label) = read_label(path).ok().flatten() else { return Ok(()) };
        if label.set != *self.set.get_or_insert(label.set) {
            return Err(VolumeProblem::Foreign { volume });
        }
        if label.number != self.number {
            let is = volume_name(&self.bundle, label.number);
            return Err(VolumeProblem::Renamed { volume, is });
        }
        Ok(())
    }
}

impl Read for SequentialVolumes {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(open) = &mut self.open else {
                self.number += 1;
                self.open(0)?;
                continue;
            };
            match open.file.read(bytes) {
                Ok(0) if !bytes.is_empty() && !open.is_last => {
                    self.number += 1;
                    self.open(0)?;
                }
                Ok(read) => {
                    open.position += read as u64;
                    open.is_second_attempt &= read == 0;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted || open.is_second_attempt => {
                    return Err(error);
                }
                // The drive may have been removed: it can be connected again.
                Err(_) => {
                    let position = open.position;
                    self.open(position)?;
                    if let Some(open) = &mut self.open {
                        open.is_second_attempt = true;
                    }
                }
            }
        }
    }
}
