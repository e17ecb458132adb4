//! [`SequentialVolumes`]: reads volumes one after the other and asks for the next drive.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::base::fs::file_name;
use crate::bundle::format::seek_table;
use crate::bundle::format::volume_name::volume_name;
use crate::bundle::read::discover::label_of;
use crate::bundle::read::problem::{MissingBytes, VolumeProblem};
use crate::bundle::read::volume_set::VolumeSet;
use crate::oci::digest::Digest;

/// Asks somebody for what is missing; says whether it may be there now.
pub(crate) type AskForVolume = Box<dyn FnMut(&VolumeProblem) -> bool + Send>;

/// Reads the volumes of a bundle one after the other, and asks for those that are not there: sticks of which only one is
/// there at a time.
pub(crate) struct SequentialVolumes {
    pub(crate) bundle: String,
    pub(crate) directories: Vec<PathBuf>,
    pub(crate) ask: AskForVolume,
    /// What the label of the first volume says, once it has been read.
    pub(crate) set: Option<Digest>,
    /// The volume that is being read, and whether it is the last one.
    pub(crate) open: Option<(File, bool)>,
    pub(crate) number: u32,
}

impl SequentialVolumes {
    /// Reads the volumes of `medium`, wherever they are.
    #[must_use]
    pub(crate) fn new(medium: &VolumeSet, ask: AskForVolume) -> Self {
        let (bundle, directories) = (medium.name.clone(), medium.directories.clone());
        Self { bundle, directories, ask, set: None, open: None, number: 0 }
    }

    pub(crate) fn next_volume(&mut self) -> io::Result<()> {
        // The medium can be taken out now.
        self.open = None;
        self.number += 1;
        loop {
            let volume = volume_name(&self.bundle, self.number);
            let problem = match self
                .directories
                .iter()
                .map(|directory| directory.join(&volume))
                .find(|path| path.is_file())
            {
                None => VolumeProblem::Missing { volume },
                Some(path) => match self.look(&path)? {
                    None => return Ok(()),
                    Some(problem) => problem,
                },
            };
            if !(self.ask)(&problem) {
                return Err(io::Error::other(MissingBytes(problem)));
            }
        }
    }

    /// Opens the volume, unless it is another one than is wanted.
    pub(crate) fn look(&mut self, path: &Path) -> io::Result<Option<VolumeProblem>> {
        let label = label_of(path).map_err(|error| error.source)?;
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
        self.open = Some((file, is_last));
        Ok(None)
    }
}

impl Read for SequentialVolumes {
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
