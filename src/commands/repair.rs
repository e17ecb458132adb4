//! Repairing: a bundle with recovery data in, a good copy out.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::event::{Event, Report};
use crate::base::fs::{self, FsError};
use crate::bundle::format::volume_name::SUMS;
use crate::bundle::read::problem::VolumeProblem;
use crate::bundle::read::volume_set::VolumeSet;
use crate::bundle::recovery::RecoveryError;
use crate::bundle::write::claim::{Claim, ClaimError};
use crate::oci::digest::{Digest, Hasher};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Repaired {
    /// The copy.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// The digest of all of it.
    pub digest: Digest,
    /// How many places of the original are damaged.
    pub places: usize,
    /// How many blocks of recovery data's size those have.
    pub blocks: u64,
}

/// What has become of a bundle.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RepairSummary {
    /// The volumes that were written, or the one file.
    pub repaired: Vec<Repaired>,
    /// The list of all volumes, if there are several and all were written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sums: Option<PathBuf>,
    /// Why others were not.
    #[serde(skip)]
    pub failed: Vec<RepairError>,
}

/// Why there is no good copy of a volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepairError {
    /// It is not there.
    #[error("{0}")]
    Absent(VolumeProblem),
    /// It has no recovery data.
    #[error(
        "`{0}` has no recovery data that could be found: it was packed without `--recovery`, or is damaged all over; \
         carry it again"
    )]
    NoRecovery(String),
    /// There is not enough of it.
    #[error("`{0}` cannot be repaired: carry it again")]
    Recovery(String, #[source] RecoveryError),
    /// The copy cannot be written.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process is writing it.
    #[error("another process is writing `{}`: wait until it is done", .0.display())]
    Busy(PathBuf),
    /// It is the original.
    #[error("`{}` is what is to be repaired: name another place for the copy", .0.display())]
    Same(PathBuf),
}

impl From<ClaimError> for RepairError {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Fs(error) => Self::Fs(error),
            ClaimError::Busy(path) => Self::Busy(path),
        }
    }
}

/// Writes a good copy of the bundle on `medium`: to `target` if it is one file, and of its volumes into the directory `target`.
/// What cannot be repaired does not keep the others from it.
pub(crate) fn repair(medium: &VolumeSet, target: &Path, report: &dyn Report) -> RepairSummary {
    let is_volumes = medium.is_in_volumes();
    let bytes = medium.volumes().iter().map(|volume| volume.len).sum();
    report.event(&Event::Stage {
        name: "repairing",
        bytes: Some(bytes),
        objects: Some(medium.volumes().len() as u64),
    });
    let mut summary = RepairSummary::default();
    let missing = medium.problems().iter().filter(|problem| matches!(problem, VolumeProblem::Unended { .. }));
    summary.failed.extend(missing.cloned().map(RepairError::Absent));
    for (number, volume) in medium.volumes().iter().enumerate() {
        let path = if is_volumes || target.is_dir() {
            target.join(medium.name_of(number))
        } else {
            target.to_owned()
        };
        report.event(&Event::Begin {
            id: number as u64,
            object: volume.name.clone(),
            bytes: Some(volume.len),
        });
        match repair_volume(medium, number, &path, report) {
            Ok(repaired) => summary.repaired.push(repaired),
            Err(error) => summary.failed.push(error),
        }
        report.event(&Event::Done { id: number as u64 });
    }
    if is_volumes && summary.failed.is_empty() {
        let lines = summary.repaired.iter().map(|volume| {
            let name = volume.path.file_name().unwrap_or_default().to_string_lossy();
            format!("{}  {name}\n", volume.digest.hex())
        });
        let path = target.join(SUMS);
        match fs::write_durably(&path, lines.collect::<String>().as_bytes()) {
            Ok(()) => summary.sums = Some(path),
            Err(error) => summary.failed.push(error.into()),
        }
    }
    summary
}

fn repair_volume(
    medium: &VolumeSet,
    number: usize,
    path: &Path,
    report: &dyn Report,
) -> Result<Repaired, RepairError> {
    let volume = &medium.volumes()[number];
    if !volume.is_present() {
        return Err(RepairError::Absent(volume.absence()));
    }
    if volume.is_file(path) {
        return Err(RepairError::Same(path.to_owned()));
    }
    let recovery = medium.recovery(number).ok_or_else(|| RepairError::NoRecovery(volume.name.clone()))?;
    let claim = Claim::new(path)?;
    claim.empty()?;
    let written = recovery.repair(
        &medium.bytes_of(number),
        |offset, bytes| claim.file.write_all_at(bytes, offset),
        |bytes| report.event(&Event::Progress { id: number as u64, bytes }),
    );
    let damage = match written {
        Ok(damage) => damage,
        Err(error) => {
            let _ = fs::remove_file(&claim.partial); // it already failed, and says why
            return Err(match error {
                RecoveryError::Write(source) => FsError::at("write", &claim.partial)(source).into(),
                error => RepairError::Recovery(volume.name.clone(), error),
            });
        }
    };
    claim.file.sync_all().map_err(FsError::at("sync", &claim.partial))?;
    let (digest, size) = hash(&claim.partial)?;
    fs::rename_durably(&claim.partial, path)?;
    Ok(Repaired { path: path.to_owned(), size, digest, places: damage.ranges.len(), blocks: damage.blocks })
}

/// What really is in the file now.
fn hash(path: &Path) -> Result<(Digest, u64), FsError> {
    let mut file = fs::open(path)?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match read(&mut file, &mut buffer).map_err(FsError::at("read", path))? {
            0 => break,
            len => hasher.update(&buffer[..len]),
        }
    }
    let len = hasher.len();
    Ok((hasher.finish(), len))
}

fn read(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
