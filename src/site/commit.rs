//! [`Committer`]: brings staged files to the disk and moves them to their places, many at a time.
//!
//! A file is moved only after it is on the disk, so that no power cut leaves a name with nothing behind it. A
//! sync for every small file would be a journal commit each; so files are gathered, one sync of the file system
//! carries all of them, and the sync of each file that follows costs nothing and says which one failed.

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::pipeline::{FinishedBlob, Sink};
use crate::oci::digest::Digest;
use crate::site::check::Target;
use crate::site::root::{Root, Staging};

/// How many bytes are gathered for one sync.
const BATCH_BYTES: u64 = 128 << 20;
/// How many files are gathered for one sync, at most: they are open, and 1,024 is what a process may have.
const BATCH_FILES: usize = 128;
/// Up to here a sync of each file is cheaper than one of the whole file system, where others write, too.
const FEW: usize = 2;

/// The staged files of one blob: one for each of its places.
pub(crate) struct StagedFiles {
    files: Vec<StagedFile>,
}

struct StagedFile {
    file: std::fs::File,
    name: String,
    staging: Arc<Staging>,
    target: usize,
    /// Whether the name is gone from the staging area because the file has its own.
    placed: bool,
}

/// A blob with wrong bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WrongBlob(pub Digest);

/// Moves files to their places; see the module.
pub(crate) struct Committer<'a> {
    /// The roots.
    pub roots: &'a [Root],
    /// The files that the site is to have.
    pub targets: &'a [Target],
    /// The digests of the blobs, by the number that they were begun with.
    pub expected: &'a [Digest],
    /// Who is told.
    pub report: &'a dyn Report,
}

/// What was committed.
#[derive(Debug)]
pub(crate) struct Committed {
    /// How many files are in their places.
    pub count: usize,
    /// Blobs with wrong bytes, which are not.
    pub wrong: Vec<WrongBlob>,
}

impl StagedFiles {
    /// Creates the staged files for the targets with these numbers.
    pub(crate) fn create(targets: &[Target], numbers: &[usize], roots: &[Root]) -> Result<Self, FsError> {
        let create = |&number: &usize| {
            let target = &targets[number];
            let staging = roots[target.root].staging().clone();
            let file = staging.create(&target.staged)?.into_std();
            Ok(StagedFile { file, name: target.staged.clone(), staging, target: number, placed: false })
        };
        Ok(Self { files: numbers.iter().map(create).collect::<Result<_, FsError>>()? })
    }
}

impl Sink for StagedFiles {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        for StagedFile { file, name, staging, .. } in &mut self.files {
            file.write_all(bytes).map_err(FsError::at("write", staging.path(name)))?;
        }
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.placed {
            let _ = self.staging.remove(&self.name); // what is left is cleared by the next run
        }
    }
}

impl Committer<'_> {
    /// Commits blobs as they end, until there are no more.
    pub(crate) fn run(&self, ended: &Receiver<FinishedBlob<StagedFiles>>) -> Result<Committed, FsError> {
        let mut wrong = Vec::new();
        let mut batch: Vec<StagedFile> = Vec::new();
        let (mut bytes, mut placed) = (0, 0);
        loop {
            let next = match ended.try_recv() {
                Ok(next) => Some(next),
                // Nothing is waiting: a good time to sync what there is.
                Err(TryRecvError::Empty) if batch.is_empty() => ended.recv().ok(),
                Err(TryRecvError::Empty) => {
                    placed += self.commit(&mut batch)?;
                    bytes = 0;
                    continue;
                }
                Err(TryRecvError::Disconnected) => None,
            };
            let Some(FinishedBlob { number, sink, result }) = next else { break };
            let (digest, size) = result?;
            if digest != self.expected[number] {
                wrong.push(WrongBlob(self.expected[number]));
                continue;
            }
            self.report.event(&Event::Done { id: number as u64 });
            batch.extend(sink.files);
            bytes += size;
            if bytes >= BATCH_BYTES || batch.len() >= BATCH_FILES {
                placed += self.commit(&mut batch)?;
                bytes = 0;
            }
        }
        placed += self.commit(&mut batch)?;
        Ok(Committed { count: placed, wrong })
    }

    fn commit(&self, batch: &mut Vec<StagedFile>) -> Result<usize, FsError> {
        if batch.len() > FEW {
            for root in distinct(self.roots) {
                root.sync()?;
            }
        }
        for StagedFile { file, name, staging, .. } in batch.iter() {
            file.sync_all().map_err(FsError::at("sync", staging.path(name)))?;
        }
        let count = batch.len();
        for mut staged in batch.drain(..) {
            let target = &self.targets[staged.target];
            self.roots[target.root].place(&staged.name, &target.path)?;
            staged.placed = true;
        }
        Ok(count)
    }
}

/// The staging areas of `roots`, each once.
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
