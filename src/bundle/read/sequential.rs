//! [`SequentialVolumes`]: reads volumes one after the other and prompts for the next media.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::base::fs::file_name;
use crate::bundle::format::seek_table;
use crate::bundle::format::volume_name::volume_name;
use crate::bundle::read::discover::read_label;
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
    /// The ID of the bundle, from the first label that was read.
    set: Option<Digest>,
    open: Option<OpenVolume>,
    /// Number of the current volume, from 1. 0 before the first one.
    number: u32,
}

struct OpenVolume {
    file: File,
    is_last: bool,
}

impl SequentialVolumes {
    #[must_use]
    pub(crate) fn new(volumes: &VolumeSet, ask: AskForVolume) -> Self {
        let (bundle, directories) = (volumes.name().to_owned(), volumes.directories().to_vec());
        Self { bundle, directories, ask, set: None, open: None, number: 0 }
    }

    /// Opens the next volume, and prompts for it until it is available.
    fn next_volume(&mut self) -> io::Result<()> {
        // Closed before the prompt, so that the media can be removed.
        self.open = None;
        self.number += 1;
        let volume = volume_name(&self.bundle, self.number);
        loop {
            let mut paths = self.directories.iter().map(|directory| directory.join(&volume));
            let problem = match paths.find(|path| path.is_file()) {
                None => VolumeProblem::Missing { volume: volume.clone() },
                Some(path) => match self.open(&path)? {
                    None => return Ok(()),
                    Some(problem) => problem,
                },
            };
            if !(self.ask)(&problem) {
                return Err(io::Error::other(MissingBytes(problem)));
            }
        }
    }

    /// Opens the volume at `path`, unless its label is that of another volume or bundle.
    fn open(&mut self, path: &Path) -> io::Result<Option<VolumeProblem>> {
        let label = read_label(path).map_err(|error| error.source)?;
        let volume = file_name(path);
        if let Some(label) = label {
            if label.set != *self.set.get_or_insert(label.set) {
                return Ok(Some(VolumeProblem::Foreign { volume }));
            }
            if label.number != self.number {
                let is = volume_name(&self.bundle, label.number);
                return Ok(Some(VolumeProblem::Renamed { volume, is }));
            }
        }
        let mut file = File::open(path)?;
        let is_last = seek_table::has_footer(&mut file)?;
        file.seek(SeekFrom::Start(0))?;
        self.open = Some(OpenVolume { file, is_last });
        Ok(None)
    }
}

impl Read for SequentialVolumes {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match &mut self.open {
                Some(open) => match open.file.read(bytes)? {
                    0 if !bytes.is_empty() && !open.is_last => self.next_volume()?,
                    read => return Ok(read),
                },
                None => self.next_volume()?,
            }
        }
    }
}
