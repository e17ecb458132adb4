//! [`BundleJob`]: writes the blobs of a plan, from an interrupted run, older bundles and the network.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::bundle::format::layout::Blob;
use crate::bundle::reuse::ReusableBundle;
use crate::bundle::write::accepted::AcceptedVolumes;
use crate::bundle::write::claim::Claim;
use crate::bundle::write::partial::{BlobPrefix, ExpectedEntry, PartialBundle};
use crate::bundle::write::spool::{Spool, SpoolKey, SpooledPiece};
use crate::bundle::write::volume_writer::FinishedVolume;
use crate::bundle::write::writer::{BundleWriter, WriteOptions};
use crate::commands::pack::volume_command::{CommandError, VolumeCommand};
use crate::fetch::queue::{self, FailedTask, FetchContext, Next, Queue, Task};
use crate::net::error::FetchError;
use crate::oci::digest::Digest;
use crate::oci::manifest::Descriptor;
use crate::plan::bundle_plan::{BlobOrigin, BundlePlan, FetchedBlobs, PlannedBlob};

/// A bundle that is being written.
pub(crate) struct BundleJob {
    pub(crate) writer: BundleWriter,
    level: i32,
    spool: Arc<Spool>,
    /// Spooled pieces that are passed to the writer and not yet in the file, in stream order.
    in_flight: VecDeque<InFlightPiece>,
    /// The entries that an earlier run completed.
    done: Vec<Blob>,
    /// The first entry after those, if an earlier run began it.
    begun: Option<BlobPrefix>,
    /// The pieces that an earlier run spooled.
    pieces: Vec<SpooledPiece>,
    /// The end of the manifests in the tar stream.
    manifests_end: u64,
}

/// A spooled piece that must stay in the spool until the writer has written it.
struct InFlightPiece {
    /// The end of the piece in the tar stream.
    end: u64,
    key: SpoolKey,
    /// The offset of the piece in its blob.
    offset: u64,
}

/// The blobs of the bundle, and where their bytes are from.
#[derive(Default)]
pub(crate) struct WrittenBlobs {
    /// All blobs with their sizes in bytes, external ones included.
    pub(crate) blobs: HashMap<Digest, u64>,
    /// The digests of pending files.
    pub(crate) resolved: FetchedBlobs,
    /// The pending files whose bytes this run fetched from their first endpoint, by their digest in the plan.
    pub(crate) from_first: HashSet<Digest>,
    /// Bytes fetched by this run.
    pub(crate) fetched: u64,
    /// Bytes fetched by an interrupted run.
    pub(crate) resumed: u64,
    /// Bytes copied from older bundles.
    pub(crate) reused: u64,
    /// The volumes for which the `--on-volume` command was run.
    pub(crate) volumes: Vec<FinishedVolume>,
}

/// An error while writing the blobs.
pub(crate) enum WriteFailure {
    /// A local I/O error.
    Fs(FsError),
    /// A blob cannot be fetched.
    Fetch {
        /// The blob's digest in the plan.
        blob: Digest,
        failure: Box<FetchError>,
    },
    /// The `--on-volume` command failed.
    Command(CommandError),
}

impl From<FsError> for WriteFailure {
    fn from(error: FsError) -> Self {
        Self::Fs(error)
    }
}

impl From<CommandError> for WriteFailure {
    fn from(error: CommandError) -> Self {
        Self::Command(error)
    }
}

/// A planned blob and the action that brings it into the bundle.
struct Step<'a> {
    planned: &'a PlannedBlob,
    action: Action<'a>,
}

enum Action<'a> {
    /// An earlier run has written it.
    Skip(Blob),
    /// Write these bytes.
    Write(&'a [u8]),
    /// Copy it from an older bundle; if it is corrupt there, fetch it.
    Copy(&'a ReusableBundle, &'a Task),
    /// Write it while the queue fetches it.
    Fetch(QueuedTask),
}

/// The number of a task in its queue.
type QueuedTask = usize;

/// The downloads of a plan, in the order of the bundle.
#[derive(Default)]
struct Downloads {
    tasks: Vec<Task>,
    /// The digests of the tasks' blobs in the plan.
    digests: Vec<Digest>,
}

impl BundleJob {
    /// Starts a bundle, or resumes it after the entries that `salvaged` has.
    pub(crate) fn begin(
        claim: Claim,
        options: WriteOptions,
        spool: Spool,
        pieces: Vec<SpooledPiece>,
        partial: PartialBundle,
        expected: &[ExpectedEntry],
    ) -> Result<Self, FsError> {
        let PartialBundle { complete, open, resume_point } = partial;
        let known = |entry: &ExpectedEntry| entry.blob.expect("completed entries are known; please report");
        let writer = if complete == 0 {
            BundleWriter::create(claim, options)?
        } else {
            BundleWriter::resume(claim, options, resume_point)?
        };
        Ok(Self {
            writer,
            level: options.level,
            spool: Arc::new(spool),
            in_flight: VecDeque::new(),
            done: expected[..complete].iter().map(known).collect(),
            begun: open,
            pieces,
            manifests_end: 0,
        })
    }

    /// Sets the volumes that the command of `--on-volume` has accepted in earlier runs.
    pub(crate) fn set_accepted(&mut self, accepted: AcceptedVolumes) {
        self.writer.set_accepted(accepted);
    }

    /// True if nothing but manifests was written or spooled.
    pub(crate) fn is_empty(&self) -> bool {
        self.spool.is_empty() && self.writer.position() <= self.manifests_end
    }

    /// Writes everything in `plan` except the header.
    pub(crate) fn write(
        &mut self,
        plan: &BundlePlan,
        older: &[&ReusableBundle],
        context: &FetchContext<'_>,
        volume_command: Option<&mut VolumeCommand>,
    ) -> Result<WrittenBlobs, WriteFailure> {
        let mut written = WrittenBlobs::default();
        // A pending file that turns out to be an external blob is omitted, too.
        written.blobs.extend(plan.external().iter().map(|blob| (blob.digest, blob.size)));
        self.write_manifests(plan, &mut written)?;
        let (steps, downloads) = self.steps(plan, older);
        report_fetching(&downloads.tasks, context.report);
        let spool = self.spool.clone();
        let context = FetchContext { spool: Some(&spool), ..*context };
        let pieces = std::mem::take(&mut self.pieces);
        queue::run(&context, downloads.tasks, pieces, |queue| {
            let digests = &downloads.digests;
            let configs = plan.configs();
            let context = &context;
            let run = StepRun { job: self, plan, configs, queue, digests, context, written, volume_command };
            run.run(steps)
        })
    }

    fn write_manifests(&mut self, plan: &BundlePlan, written: &mut WrittenBlobs) -> Result<(), FsError> {
        for manifest in plan.image_manifests() {
            if self.done.is_empty() {
                self.writer.begin_blob(Some((manifest.digest, manifest.size)));
                self.writer.write(&plan.manifests[&manifest.digest])?;
                self.writer.end_blob(manifest.digest)?;
            }
            written.blobs.insert(manifest.digest, manifest.size);
            if plan.known.contains(&manifest.digest) {
                written.reused += manifest.size;
            } else {
                written.fetched += manifest.size;
            }
        }
        if self.done.is_empty() {
            self.writer.end_manifests()?;
            self.manifests_end = self.writer.position();
        }
        Ok(())
    }

    /// Returns the steps for all blobs of the plan, and the downloads that they need.
    fn steps<'a>(
        &mut self,
        plan: &'a BundlePlan,
        older: &[&'a ReusableBundle],
    ) -> (Vec<Step<'a>>, Downloads) {
        let manifests = plan.image_manifests().len();
        let mut downloads = Downloads::default();
        let mut steps = Vec::with_capacity(plan.blobs.len());
        for (planned, number) in plan.blobs.iter().zip(manifests..) {
            let action = match &planned.origin {
                _ if number < self.done.len() => Action::Skip(self.done[number]),
                BlobOrigin::Memory(bytes) => Action::Write(bytes),
                BlobOrigin::Network(task) => {
                    let begun = if number == self.done.len() { self.begun.take() } else { None };
                    let can_copy = planned.pending.is_none() && begun.is_none();
                    match older.iter().find(|bundle| can_copy && bundle.has(planned.blob)) {
                        Some(bundle) => Action::Copy(bundle, task),
                        None => Action::Fetch(downloads.push(planned, Task { begun, ..(**task).clone() })),
                    }
                }
            };
            steps.push(Step { planned, action });
        }
        (steps, downloads)
    }

    /// Ends the blob being written, or drops it if the bundle has its content already.
    fn end(&mut self, planned: &PlannedBlob, blob: Blob, written: &mut WrittenBlobs) -> Result<(), FsError> {
        if let Some(number) = planned.pending {
            self.spool.note(number, blob.digest, blob.size);
            written.resolved.insert(planned.blob.digest, blob);
        }
        if written.blobs.insert(blob.digest, blob.size).is_some() {
            for piece in self.take_back()? {
                self.spool.release(piece.key, piece.offset);
            }
        } else {
            self.writer.end_blob(blob.digest)?;
        }
        self.release_written();
        Ok(())
    }

    /// Discards the blob being written. Returns its pieces that were in flight: positions after the new end
    /// of the stream would block the release of later pieces.
    fn take_back(&mut self) -> Result<VecDeque<InFlightPiece>, FsError> {
        self.writer.discard_blob()?;
        let end = self.writer.position();
        let kept = self.in_flight.partition_point(|piece| piece.end <= end);
        Ok(self.in_flight.split_off(kept))
    }

    /// Frees the spool space of pieces that are in the file.
    fn release_written(&mut self) {
        let written = self.writer.written();
        while self.in_flight.front().is_some_and(|piece| piece.end <= written)
            && let Some(piece) = self.in_flight.pop_front()
        {
            self.spool.release(piece.key, piece.offset);
        }
    }
}

impl Downloads {
    fn push(&mut self, planned: &PlannedBlob, task: Task) -> QueuedTask {
        self.tasks.push(task);
        self.digests.push(planned.blob.digest);
        self.tasks.len() - 1
    }
}

fn report_fetching(tasks: &[Task], report: &dyn Report) {
    let sizes: Vec<u64> = tasks.iter().filter_map(|task| task.size).collect();
    let bytes = (!sizes.is_empty()).then(|| sizes.iter().sum());
    report.event(&Event::Stage { name: "fetching", bytes, objects: Some(tasks.len() as u64) });
}

/// The execution of steps while a queue fetches their blobs.
struct StepRun<'a, 'q> {
    job: &'a mut BundleJob,
    plan: &'a BundlePlan,
    /// The configs whose platforms are checked.
    configs: HashMap<Digest, &'a Descriptor>,
    queue: &'a Queue<'q>,
    /// The digests of the queue's blobs in the plan.
    digests: &'a [Digest],
    context: &'a FetchContext<'a>,
    written: WrittenBlobs,
    volume_command: Option<&'a mut VolumeCommand>,
}

impl StepRun<'_, '_> {
    fn run(mut self, steps: Vec<Step<'_>>) -> Result<WrittenBlobs, WriteFailure> {
        for Step { planned, action } in steps {
            match action {
                Action::Skip(blob) => {
                    self.skip(planned, blob);
                    continue;
                }
                Action::Write(bytes) => self.write(planned, bytes)?,
                Action::Copy(bundle, task) => self.copy(planned, bundle, task)?,
                Action::Fetch(task) => {
                    let (blob, bytes) = self
                        .fetch(self.queue, task, planned)
                        .map_err(|error| error.with_digests(self.digests))?;
                    self.check_config(planned, &bytes)?;
                    self.job.end(planned, blob, &mut self.written)?;
                }
            }
            self.hand_over_volumes()?;
        }
        let spooled = self.queue.adopted();
        self.written.resumed += spooled;
        self.written.fetched -= spooled.min(self.written.fetched);
        Ok(self.written)
    }

    fn skip(&mut self, planned: &PlannedBlob, blob: Blob) {
        self.written.resumed += blob.size;
        self.written.blobs.insert(blob.digest, blob.size);
        if planned.pending.is_some() {
            self.written.resolved.insert(planned.blob.digest, blob);
        }
    }

    fn write(&mut self, planned: &PlannedBlob, bytes: &[u8]) -> Result<(), FsError> {
        self.job.writer.begin_blob(Some((planned.blob.digest, planned.blob.size)));
        self.job.writer.write(bytes)?;
        self.job.end(planned, planned.blob, &mut self.written)
    }

    fn copy(
        &mut self,
        planned: &PlannedBlob,
        bundle: &ReusableBundle,
        task: &Task,
    ) -> Result<(), WriteFailure> {
        let Blob { digest, size } = planned.blob;
        if self.written.blobs.contains_key(&digest) {
            return Ok(());
        }
        let mut bytes = Vec::new();
        let copy = self.configs.contains_key(&digest).then_some(&mut bytes);
        if bundle.copy(planned.blob, self.job.level, &mut self.job.writer, copy)? {
            self.check_config(planned, &bytes)?;
            self.written.reused += size;
            self.written.blobs.insert(digest, size);
            return Ok(());
        }
        let message = format!("`{digest}` is corrupt in `{}`: fetching it instead", bundle.path().display());
        self.context.report.event(&Event::Warning { message });
        // The main queue has no task for it, and tasks are read in the order of the bundle.
        let blob =
            queue::run(self.context, vec![task.clone()], Vec::new(), |queue| self.fetch(queue, 0, planned));
        let (blob, bytes) = blob.map_err(|error| error.with_digests(&[digest]))?;
        self.check_config(planned, &bytes)?;
        Ok(self.job.end(planned, blob, &mut self.written)?)
    }

    /// Fails if `planned` is an image config whose platform is invalid. `bytes` is its content, or empty if it is
    /// not known.
    fn check_config(&self, planned: &PlannedBlob, bytes: &[u8]) -> Result<(), WriteFailure> {
        let blob = planned.blob.digest;
        let Some(config) = self.configs.get(&blob) else { return Ok(()) };
        self.plan
            .check_config(config, bytes)
            .map_err(|failure| WriteFailure::Fetch { blob, failure: Box::new(failure) })
    }

    /// Writes the blob of a task, except for its end. Returns its digest and size, and the content of a config.
    fn fetch(
        &mut self,
        queue: &Queue<'_>,
        task: QueuedTask,
        planned: &PlannedBlob,
    ) -> Result<(Blob, Vec<u8>), TaskError> {
        let known = planned.pending.is_none().then_some((planned.blob.digest, planned.blob.size));
        let is_config = self.configs.contains_key(&planned.blob.digest);
        let mut bytes = Vec::new();
        let begun = queue.begun(task);
        if begun.is_none() {
            self.job.writer.begin_blob(known);
        }
        let mut resumed = begun.unwrap_or(0);
        let mut end = resumed;
        loop {
            match queue.next(task).map_err(TaskError::Fetch)? {
                Next::Piece(piece) => {
                    let offset = end;
                    end += piece.len() as u64;
                    if is_config {
                        bytes.extend_from_slice(&piece);
                    }
                    self.job.writer.write_piece(piece)?;
                    if let Some(key) = planned.key() {
                        let end = self.job.writer.position();
                        self.job.in_flight.push_back(InFlightPiece { end, key, offset });
                    }
                    self.job.release_written();
                }
                Next::Restart => {
                    self.job.take_back()?;
                    self.job.writer.begin_blob(known);
                    (end, resumed) = (0, 0);
                    bytes.clear();
                }
                Next::End(digest, size) => {
                    if planned.pending.is_some() && queue.uses_first_endpoint(task) {
                        self.written.from_first.insert(planned.blob.digest);
                    }
                    self.written.fetched += size - resumed;
                    self.written.resumed += resumed;
                    return Ok((Blob { digest, size }, bytes));
                }
            }
        }
    }

    fn hand_over_volumes(&mut self) -> Result<(), WriteFailure> {
        if let Some(command) = self.volume_command.as_deref_mut() {
            for volume in self.job.writer.hand_over()? {
                command.run_for_volume(&volume, self.context.report)?;
                self.written.volumes.push(volume);
            }
        }
        Ok(())
    }
}

/// An error while writing the blob of a task. It can be caused by another task of the same queue.
enum TaskError {
    Fs(FsError),
    Fetch(Box<FailedTask>),
}

impl TaskError {
    /// Names the failed blob. `digests` are those of the queue's tasks.
    fn with_digests(self, digests: &[Digest]) -> WriteFailure {
        match self {
            Self::Fs(error) => WriteFailure::Fs(error),
            Self::Fetch(failed) => {
                WriteFailure::Fetch { blob: digests[failed.task], failure: Box::new(failed.failure) }
            }
        }
    }
}

impl From<FsError> for TaskError {
    fn from(error: FsError) -> Self {
        Self::Fs(error)
    }
}
