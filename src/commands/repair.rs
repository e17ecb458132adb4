//! Writes an intact copy of a damaged bundle with its recovery data.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::event::{Event, Report};
use crate::base::fs::{FsError, remove_file};
use crate::base::json::text_of;
use crate::base::output_file::{Access, OutputFile};
use crate::bundle::format::volume_name::SUMS;
use crate::bundle::read::problem::VolumeProblem;
use crate::bundle::read::volume_set::VolumeSet;
use crate::bundle::recovery::RecoveryError;
use crate::bundle::write::claim::{Claim, ClaimError};
use crate::oci::digest::{Digest, Hasher};

/// A volume that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct Repaired {
    /// The path of the copy.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// The digest of the file.
    pub digest: Digest,
    /// Number of damaged byte ranges in the original.
    pub places: usize,
    /// Number of damaged blocks in the original; the recovery data defines their size.
    pub blocks: u64,
}

/// The result of a repair.
#[derive(Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct RepairSummary {
    /// The volumes that were written, or the single file.
    pub repaired: Vec<Repaired>,
    /// The path of `SHA256SUMS`. `None`: a single file, or a volume failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sums: Option<String>,
    /// The errors of the other volumes.
    #[serde(skip)]
    pub failed: Vec<RepairError>,
}

/// The reasons why a volume cannot be repaired.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepairError {
    /// The volume is missing.
    #[error("{0}")]
    Absent(VolumeProblem),
    /// No recovery data was found.
    #[error(
        "cannot find recovery data in `{0}`: it was packed without `--recovery`, or is too badly damaged; copy it \
         again"
    )]
    NoRecovery(String),
    /// Too many blocks are damaged.
    #[error("cannot repair `{0}` (copy it again)")]
    Recovery(String, #[source] RecoveryError),
    /// A file call failed.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process holds the lock.
    #[error("another process is writing `{}`: wait until it is done", .0.display())]
    Busy(PathBuf),
    /// The output is the original.
    #[error("`{}` is the bundle to repair: use another output path", .0.display())]
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

/// Writes an intact copy of each volume: to the path `target` if the bundle is a single file, otherwise into
/// the directory `target`. A volume that cannot be repaired does not affect the others.
pub(crate) fn repair(volumes: &VolumeSet, target: &Path, report: &dyn Report) -> RepairSummary {
    let is_in_volumes = volumes.is_in_volumes();
    let bytes = volumes.volumes().iter().map(|volume| volume.len).sum();
    report.event(&Event::Stage {
        name: "repairing",
        bytes: Some(bytes),
        objects: Some(volumes.volumes().len() as u64),
    });
    let mut summary = RepairSummary::default();
    let missing =
        volumes.problems().iter().filter(|problem| matches!(problem, VolumeProblem::Unended { .. }));
    summary.failed.extend(missing.cloned().map(RepairError::Absent));
    if !is_in_volumes && volumes.volumes().len() > 1 {
        let path = if target.is_dir() { target.join(volumes.name()) } else { target.to_owned() };
        match repair_joined(volumes, &path, report) {
            Ok(repaired) => summary.repaired.push(repaired),
            Err(error) => summary.failed.push(error),
        }
        return summary;
    }
    for (number, volume) in volumes.volumes().iter().enumerate() {
        let path = if is_in_volumes || target.is_dir() {
            target.join(volumes.name_of(number))
        } else {
            target.to_owned()
        };
        report.event(&Event::Begin {
            id: number as u64,
            object: volume.name.clone(),
            bytes: Some(volume.len),
        });
        match repair_volume(volumes, number, &path, report) {
            Ok(repaired) => summary.repaired.push(repaired),
            Err(error) => summary.failed.push(error),
        }
        report.event(&Event::Done { id: number as u64 });
    }
    if is_in_volumes && summary.failed.is_empty() {
        let lines = summary.repaired.iter().map(|volume| {
            let name = Path::new(&volume.path).file_name().unwrap_or_default().to_string_lossy();
            format!("{}  {name}\n", volume.digest.hex())
        });
        let path = target.join(SUMS);
        match OutputFile::write(&path, Access::Default, lines.collect::<String>().as_bytes()) {
            Ok(()) => summary.sums = Some(text_of(&path)),
            Err(error) => summary.failed.push(error.into()),
        }
    }
    summary
}

fn repair_volume(
    volumes: &VolumeSet,
    number: usize,
    path: &Path,
    report: &dyn Report,
) -> Result<Repaired, RepairError> {
    let volume = &volumes.volumes()[number];
    if !volume.is_present() {
        return Err(RepairError::Absent(volume.absence()));
    }
    if volume.is_file(path) {
        return Err(RepairError::Same(path.to_owned()));
    }
    let recovery = volumes.recovery(number).ok_or_else(|| RepairError::NoRecovery(volume.name.clone()))?;
    let claim = Claim::new(path, report)?;
    claim.empty()?;
    let written = recovery.repair(
        &volumes.bytes_of(number),
        |offset, bytes| claim.file.write_all_at(bytes, offset),
        |bytes| report.event(&Event::Progress { id: number as u64, bytes }),
    );
    let damage = match written {
        Ok(damage) => damage,
        Err(error) => {
            let _ = remove_file(&claim.partial); // the first error is the one to report
            return Err(match error {
                RecoveryError::Write(source) => FsError::at("write", &claim.partial)(source).into(),
                error => RepairError::Recovery(volume.name.clone(), error),
            });
        }
    };
    let (digest, size) = hash(&claim.file).map_err(FsError::at("read", &claim.partial))?;
    claim.publish()?;
    Ok(Repaired { path: text_of(path), size, digest, places: damage.ranges.len(), blocks: damage.blocks })
}

/// Writes an intact copy of a file into which volumes were joined.
fn repair_joined(volumes: &VolumeSet, path: &Path, report: &dyn Report) -> Result<Repaired, RepairError> {
    if let Some(absent) = volumes.volumes().iter().find(|volume| !volume.is_present()) {
        return Err(RepairError::Absent(absent.absence()));
    }
    if volumes.volumes()[0].is_file(path) {
        return Err(RepairError::Same(path.to_owned()));
    }
    let claim = Claim::new(path, report)?;
    claim.empty()?;
    let result = write_joined(volumes, &claim, report).and_then(|(places, blocks)| {
        let (digest, size) = hash(&claim.file).map_err(FsError::at("read", &claim.partial))?;
        claim.publish()?;
        Ok(Repaired { path: text_of(path), size, digest, places, blocks })
    });
    if result.is_err() {
        let _ = remove_file(&claim.partial); // the first error is the one to report
    }
    result
}

/// Writes all volumes one after the other. Returns the numbers of damaged ranges and blocks.
fn write_joined(
    volumes: &VolumeSet,
    claim: &Claim,
    report: &dyn Report,
) -> Result<(usize, u64), RepairError> {
    let (mut places, mut blocks, mut end) = (0, 0, 0);
    for (number, volume) in volumes.volumes().iter().enumerate() {
        let recovery =
            volumes.recovery(number).ok_or_else(|| RepairError::NoRecovery(volume.name.clone()))?;
        let written = recovery.repair(
            &volumes.bytes_of(number),
            |offset, bytes| claim.file.write_all_at(bytes, end + offset),
            |bytes| report.event(&Event::Progress { id: number as u64, bytes }),
        );
        let damage = written.map_err(|error| match error {
            RecoveryError::Write(source) => FsError::at("write", &claim.partial)(source).into(),
            error => RepairError::Recovery(volume.name.clone(), error),
        })?;
        places += damage.ranges.len();
        blocks += damage.blocks;
        end += recovery.volume_len();
    }
    Ok((places, blocks))
}

/// Reads the copy back. Returns its digest, and its size in bytes.
fn hash(file: &File) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read_at(&mut buffer, hasher.len()) {
            Ok(0) => break,
            Ok(len) => hasher.update(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let len = hasher.len();
    Ok((hasher.finish(), len))
}
