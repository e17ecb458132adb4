//! Writes an intact copy of a damaged bundle with its recovery data.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::bulk;
use crate::base::event::{Event, Report};
use crate::base::fs::{FsError, file_name, remove_file, try_lock_file};
use crate::base::json::text_of;
use crate::base::output_file::{Access, OutputFile};
use crate::bundle::format::volume_name::SUMS;
use crate::bundle::read::copies::{Copies, JoinError};
use crate::bundle::read::problem::VolumeProblem;
use crate::bundle::read::volume_set::VolumeSet;
use crate::bundle::recovery::{ReadAt, RecoveryError};
use crate::bundle::write::claim::{Claim, ClaimError};
use crate::bundle::write::sums;
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
    /// Number of damaged byte ranges in the original; of several copies, in the first one.
    pub places: usize,
    /// Number of damaged blocks in the original that were computed; the recovery data defines their size.
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
    /// The end of a volume, which states where recovery data is, cannot be read.
    #[error(transparent)]
    Unreadable(FsError),
    /// No recovery data was found.
    #[error(
        "cannot find recovery data in `{0}`: it was packed without `--recovery`, or is too badly damaged; copy it \
         again"
    )]
    NoRecovery(String),
    /// A frame is damaged in all copies of the volume, which has no recovery data.
    #[error("no copy of `{volume}` is intact at byte {offset}: copy it again")]
    NoIntactCopy {
        /// The file name.
        volume: String,
        /// Start of the frame, in bytes from the start of the volume.
        offset: u64,
    },
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
    let all = 0..volumes.volumes().len();
    let bytes = volumes.volumes().iter().map(|volume| volume.len).sum();
    report.event(&Event::Stage { name: "repairing", bytes: Some(bytes), objects: Some(all.len() as u64) });
    let mut summary = RepairSummary::default();
    summary.failed.extend(absent_after_end(volumes).map(RepairError::Absent));
    // Two runs that write the same volumes would each wait for a volume of the other one.
    let lock = is_in_volumes.then(|| lock(target)).transpose();
    let _lock = match lock {
        Ok(lock) => lock,
        Err(error) => {
            summary.failed.push(error);
            return summary;
        }
    };
    // A file into which volumes were joined is repaired as a whole.
    let outputs: Vec<(PathBuf, Range<usize>)> = if is_in_volumes {
        all.map(|number| (target.join(volumes.name_of(number)), number..number + 1)).collect()
    } else {
        let path = if target.is_dir() { target.join(volumes.name_of(0)) } else { target.to_owned() };
        vec![(path, all)]
    };
    for (path, numbers) in outputs {
        match write_copy(volumes, numbers, &path, report) {
            Ok(repaired) => summary.repaired.push(repaired),
            Err(error) => summary.failed.push(error),
        }
    }
    if is_in_volumes && summary.failed.is_empty() {
        let lines = summary.repaired.iter();
        let lines = lines.map(|volume| sums::line(volume.digest, &file_name(Path::new(&volume.path))));
        let path = target.join(SUMS);
        match OutputFile::write(&path, Access::Default, lines.collect::<String>().as_bytes()) {
            Ok(()) => summary.sums = Some(text_of(&path)),
            Err(error) => summary.failed.push(error.into()),
        }
    }
    summary
}

/// Locks a directory that volumes are written to, until the result is dropped.
fn lock(directory: &Path) -> Result<File, RepairError> {
    let file = File::open(directory).map_err(FsError::at("open", directory))?;
    if try_lock_file(&file) { Ok(file) } else { Err(RepairError::Busy(directory.to_owned())) }
}

/// Returns the problems of volumes after the last one that was found.
fn absent_after_end(volumes: &VolumeSet) -> impl Iterator<Item = VolumeProblem> + '_ {
    let is_known = |name: &String| volumes.volumes().iter().any(|volume| volume.name == *name);
    let is_after_end = move |problem: &&VolumeProblem| match problem {
        VolumeProblem::Missing { volume } => !is_known(volume),
        VolumeProblem::Unended { .. } => true,
        _ => false,
    };
    volumes.problems().iter().filter(is_after_end).cloned()
}

/// Writes an intact copy of the volumes `numbers` to the file `path`.
fn write_copy(
    volumes: &VolumeSet,
    numbers: Range<usize>,
    path: &Path,
    report: &dyn Report,
) -> Result<Repaired, RepairError> {
    for volume in &volumes.volumes()[numbers.clone()] {
        if !volume.is_present() {
            return Err(RepairError::Absent(volume.absence()));
        }
        if volume.is_file(path) {
            return Err(RepairError::Same(path.to_owned()));
        }
    }
    let claim = Claim::new(path, report)?;
    claim.empty()?;
    let result = write_volumes(volumes, numbers, &claim, report).and_then(|(places, blocks)| {
        let (digest, size) = hash(&claim.file).map_err(FsError::at("read", &claim.partial))?;
        claim.publish()?;
        Ok(Repaired { path: text_of(path), size, digest, places, blocks })
    });
    if result.is_err() {
        let _ = remove_file(&claim.partial); // the first error is the one to report
    }
    result
}

/// Writes the volumes one after the other. Returns the numbers of damaged ranges and computed blocks.
fn write_volumes(
    volumes: &VolumeSet,
    numbers: Range<usize>,
    claim: &Claim,
    report: &dyn Report,
) -> Result<(usize, u64), RepairError> {
    let (mut places, mut blocks, mut end) = (0, 0, 0);
    for number in numbers {
        let volume = &volumes.volumes()[number];
        let id = number as u64;
        report.event(&Event::Begin { id, object: volume.name.clone(), bytes: Some(volume.len) });
        let progress = |bytes| report.event(&Event::Progress { id, bytes });
        let write = |offset, bytes: &[u8]| bulk::write_all_at(&claim.file, bytes, end + offset);
        let write_error = |source| RepairError::from(FsError::at("write", &claim.partial)(source));
        if let Some(recovery) = volumes.recovery(number) {
            let written = recovery.repair(&volumes.bytes_of(number), write, progress);
            let damage = written.map_err(|error| match error {
                RecoveryError::Write(source) => write_error(source),
                error => RepairError::Recovery(volume.name.clone(), error),
            })?;
            places += damage.ranges.len();
            blocks += damage.blocks;
            end += recovery.volume_len();
        } else if volume.copies.len() > 1 {
            let joined = Copies::new(volumes, number, None).join(|offset, bytes| {
                progress(bytes.len() as u64);
                write(offset, bytes)
            });
            let replaced = joined.map_err(|error| match error {
                JoinError::Write(source) => write_error(source),
                JoinError::Read(source) => FsError::at("read", &volume.name)(source).into(),
                JoinError::NoIntactCopy(offset) => {
                    RepairError::NoIntactCopy { volume: volume.name.clone(), offset }
                }
            })?;
            places += replaced.len();
            end += volume.len;
        } else {
            return Err(unrecoverable(volumes, number));
        }
        report.event(&Event::Done { id });
    }
    Ok((places, blocks))
}

/// Returns the error of a volume of which there is neither recovery data nor another copy.
fn unrecoverable(volumes: &VolumeSet, number: usize) -> RepairError {
    let volume = &volumes.volumes()[number];
    if volume.file_len() < volume.len {
        return RepairError::Absent(volume.absence());
    }
    let mut end = vec![0; 1 << 20];
    let start = volume.file_len().saturating_sub(end.len() as u64);
    match ReadAt::read_at(&volumes.bytes_of(number), start, &mut end) {
        Err(error) => RepairError::Unreadable(FsError::at("read", &volume.name)(error)),
        Ok(_) => RepairError::NoRecovery(volume.name.clone()),
    }
}

/// Reads a file from its start. Returns its digest, and its size in bytes.
pub(crate) fn hash(file: &File) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match FileExt::read_at(file, &mut buffer, hasher.len()) {
            Ok(0) => break,
            Ok(len) => hasher.update(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let len = hasher.len();
    Ok((hasher.finish(), len))
}
