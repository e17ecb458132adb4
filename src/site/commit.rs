//! [`Committer`]: syncs staged files in batches and renames them to their final paths.
//!
//! A file is renamed only after it is on the disk, so that a power failure leaves no name without contents. A
//! sync of every small file would cost a journal commit each. Therefore files are closed and collected, and one sync of
//! the file system writes all of them and reports errors; see [`Staging::sync`].

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::base::bulk;
use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::pipeline::{FinishedBlob, Sink};
use crate::oci::digest::Digest;
use crate::site::check::Target;
use crate::site::root::{Root, Staging};

/// Bytes in a batch from which it is committed.
const BATCH_BYTES: u64 = 128 << 20;
/// Files in a batch from which it is committed.
const BATCH_FILES: usize = 8192;
/// Bytes in a batch from which it is committed while no other blob is finished.
const IDLE_BYTES: u64 = 32 << 20;
/// Time without a finished blob after which a batch is committed.
const IDLE_TIME: Duration = Duration::from_millis(500);
/// Maximum number of files of one blob that are open at the same time. The others are copies of the first.
const OPEN_FILES: usize = 16;
/// Up to this number of files, a sync of each is cheaper than one of the file system, which also writes the
/// data of other processes.
const FEW: usize = 2;

/// The staged files of one blob, one for each of its paths.
pub(crate) struct StagedFiles {
    files: Vec<StagedFile>,
}

/// A staged file. It is removed when dropped, unless it was renamed.
struct StagedFile {
    /// `None`: it is complete, or will be a copy.
    file: Option<File>,
    name: String,
    staging: Arc<Staging>,
    /// The index of its target.
    target: usize,
    is_renamed: bool,
}

pub(crate) struct Committer<'a> {
    pub roots: &'a [Root],
    pub targets: &'a [Target],
    /// The digest of each blob, by its number in the pipeline.
    pub expected: &'a [Digest],
    pub report: &'a dyn Report,
}

/// The result of [`Committer::run`].
#[derive(Debug)]
pub(crate) struct Committed {
    /// Number of files renamed.
    pub files: usize,
    /// Blobs whose bytes did not have the expected digest. Their files were removed.
    pub mismatched: Vec<Digest>,
}

impl StagedFiles {
    /// Plans the staged files of the targets with these indices.
    pub(crate) fn new(targets: &[Target], indices: &[usize], roots: &[Root]) -> Self {
        let staged = |&index: &usize| {
            let target = &targets[index];
            let staging = roots[target.root].staging().clone();
            StagedFile { file: None, name: target.staged.clone(), staging, target: index, is_renamed: false }
        };
        Self { files: indices.iter().map(staged).collect() }
    }
}

impl Sink for StagedFiles {
    fn begin(&mut self) -> Result<(), FsError> {
        for staged in self.files.iter_mut().take(OPEN_FILES) {
            staged.file = Some(staged.create()?);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        for StagedFile { file, name, staging, .. } in &mut self.files {
            let Some(file) = file else { break };
            bulk::write_all(file, bytes).map_err(FsError::at("write", staging.path(name)))?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), FsError> {
        self.files.iter_mut().for_each(|staged| staged.file = None);
        let Some((first, copies)) = self.files.split_at_checked(OPEN_FILES) else { return Ok(()) };
        let first = &first[0];
        for copy in copies {
            let mut source = first.reopen()?;
            let mut file = copy.create()?;
            io::copy(&mut source, &mut file).map_err(FsError::at("write", copy.staging.path(&copy.name)))?;
        }
        Ok(())
    }
}

impl StagedFile {
    fn create(&self) -> Result<File, FsError> {
        Ok(self.staging.create(&self.name)?.into_std())
    }

    fn reopen(&self) -> Result<File, FsError> {
        let at = || FsError::at("open", self.staging.path(&self.name));
        self.staging.reopen(&self.name)?.ok_or_else(|| at()(io::ErrorKind::NotFound.into()))
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.is_renamed {
            let _ = self.staging.remove(&self.name); // the next run clears the staging area anyway
        }
    }
}

impl Committer<'_> {
    /// Commits finished blobs until the channel is closed.
    pub(crate) fn run(
        &self,
        finished: &Receiver<Vec<FinishedBlob<StagedFiles>>>,
    ) -> Result<Committed, FsError> {
        let mut committed = Committed { files: 0, mismatched: Vec::new() };
        let mut batch: Vec<StagedFile> = Vec::new();
        let mut bytes = 0;
        loop {
            // Few bytes are worth a sync only if the reader has to wait, e.g. for a pipe.
            let wait = if bytes < IDLE_BYTES { IDLE_TIME } else { Duration::ZERO };
            let next = if batch.is_empty() {
                finished.recv().map_err(RecvTimeoutError::from)
            } else {
                finished.recv_timeout(wait)
            };
            let blobs = match next {
                Ok(blobs) => blobs,
                Err(RecvTimeoutError::Timeout) => {
                    committed.files += self.commit(&mut batch)?;
                    bytes = 0;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            for FinishedBlob { number, sink, result } in blobs {
                let (digest, size) = result?;
                if digest != self.expected[number] {
                    committed.mismatched.push(self.expected[number]);
                    continue;
                }
                self.report.event(&Event::Done { id: number as u64 });
                batch.extend(sink.files);
                bytes += size;
            }
            if bytes >= BATCH_BYTES || batch.len() >= BATCH_FILES {
                committed.files += self.commit(&mut batch)?;
                bytes = 0;
            }
        }
        committed.files += self.commit(&mut batch)?;
        Ok(committed)
    }

    /// Syncs and renames the files of `batch` and empties it. Returns their number.
    fn commit(&self, batch: &mut Vec<StagedFile>) -> Result<usize, FsError> {
        let is_large = batch.len() > FEW;
        if is_large {
            for staging in distinct(self.roots) {
                staging.sync()?;
            }
        }
        for staged in batch.iter().filter(|staged| !(is_large && staged.staging.reports_errors())) {
            let synced = staged.reopen()?.sync_all();
            synced.map_err(FsError::at("sync", staged.staging.path(&staged.name)))?;
        }
        let count = batch.len();
        // In the order of their directories.
        batch.sort_by_key(|staged| staged.target);
        for mut staged in batch.drain(..) {
            let target = &self.targets[staged.target];
            self.roots[target.root].commit(&staged.name, &target.path)?;
            staged.is_renamed = true;
        }
        Ok(count)
    }
}

/// Returns each staging area of `roots` once.
#[must_use]
pub(crate) fn distinct(roots: &[Root]) -> Vec<&Arc<Staging>> {
    let mut distinct: Vec<&Arc<Staging>> = Vec::new();
    for root in roots {
        if !distinct.iter().any(|staging| Arc::ptr_eq(staging, root.staging())) {
            distinct.push(root.staging());
        }
    }
    distinct
}
