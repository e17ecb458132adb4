//! Writes what a plan names into the bundle: out of what an earlier run has left, out of older bundles, and out of
//! the network.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::base::event::Event;
use crate::base::fs::FsError;
use crate::bundle::format::layout::Blob;
use crate::bundle::reuse::ReusableBundle;
use crate::bundle::write::claim::Claim;
use crate::bundle::write::partial::{Begun, Expected, Salvaged};
use crate::bundle::write::spool::{Spool, SpooledPiece};
use crate::bundle::write::volume_writer::FinishedVolume;
use crate::bundle::write::writer::{BundleWriter, WriteOptions};
use crate::commands::pack::volumes::{CommandError, Taker};
use crate::fetch::queue::{self, FetchContext, Next, Queue, Task};
use crate::net::error::FetchError;
use crate::oci::digest::Digest;
use crate::plan::bundle_plan::{BlobOrigin, BundlePlan, PlannedBlob};

/// A bundle that is being written.
pub(crate) struct BundleJob {
    pub(crate) writer: BundleWriter,
    level: i32,
    spool: Arc<Spool>,
    /// What of the spool is on its way into the bundle: up to which position of the stream, which blob, where in it.
    on_the_way: VecDeque<(u64, Digest, u64)>,
    /// The entries that are complete, from an earlier run.
    done: Vec<Blob>,
    /// The one behind them, if it has begun.
    begun: Option<Begun>,
    found: Vec<SpooledPiece>,
    /// Where the manifests end in the stream.
    manifests_end: u64,
}

/// What was written.
#[derive(Default)]
pub(crate) struct WrittenBlobs {
    /// The blobs with their sizes, those that are elsewhere included.
    pub(crate) blobs: HashMap<Digest, u64>,
    /// How many bytes were fetched for them, …
    pub(crate) fetched: u64,
    /// … had been fetched by an earlier run, …
    pub(crate) resumed: u64,
    /// … and came out of older bundles.
    pub(crate) reused: u64,
    /// The volumes that were handed over.
    pub(crate) volumes: Vec<FinishedVolume>,
}

/// Why it was not written.
pub(crate) enum WriteFailure {
    /// The file system says no.
    Fs(FsError),
    /// A blob cannot be fetched.
    Fetch {
        /// Which one, as the plan names it.
        blob: Digest,
        /// Why.
        failure: Box<FetchError>,
    },
    /// A volume was not taken.
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

/// What there is to do for a blob.
enum Step<'a> {
    /// Nothing: it is there.
    Done(Blob),
    /// Its bytes are here.
    Held(Vec<u8>),
    /// An older bundle has it. If it is damaged there, the task fetches it.
    Copied(&'a ReusableBundle, Box<Task>),
    /// The next task of the queue fetches it.
    Fetched,
}

/// What a step is for.
struct Target {
    /// As the plan names it.
    blob: Blob,
    late: Option<u64>,
    key: Option<Digest>,
}

impl BundleJob {
    /// Begins a bundle, or goes on with it.
    pub(crate) fn begin(
        claim: Claim,
        form: WriteOptions,
        spool: Spool,
        found: Vec<SpooledPiece>,
        salvaged: Salvaged,
        expected: &[Expected],
    ) -> Result<Self, FsError> {
        let Salvaged { done, open, kept } = salvaged;
        let known = |entry: &Expected| entry.blob.expect("what is done is known; please report");
        let writer = if done == 0 {
            BundleWriter::begin_in(claim, form)?
        } else {
            BundleWriter::go_on(claim, form, kept)?
        };
        Ok(Self {
            writer,
            level: form.level,
            spool: Arc::new(spool),
            on_the_way: VecDeque::new(),
            done: expected[..done].iter().map(known).collect(),
            begun: open,
            found,
            manifests_end: 0,
        })
    }

    /// Whether there is nothing but manifests.
    pub(crate) fn is_empty(&self) -> bool {
        self.spool.is_empty() && self.writer.position() <= self.manifests_end
    }

    /// Writes all that `plan` names but the head.
    pub(crate) fn write(
        &mut self,
        plan: &mut BundlePlan,
        olds: &[&ReusableBundle],
        means: &FetchContext<'_>,
        taker: Option<&mut Taker>,
    ) -> Result<WrittenBlobs, WriteFailure> {
        let mut written = WrittenBlobs::default();
        // A file that turns out to be one of them is left out, too.
        written.blobs.extend(plan.layout.external.iter().map(|blob| (blob.digest, blob.size)));
        let manifests = plan.manifests().to_vec();
        for manifest in &manifests {
            if self.done.is_empty() {
                self.writer.begin(Some((manifest.digest, manifest.size)));
                self.writer.write(&plan.manifests[&manifest.digest])?;
                self.writer.end(manifest.digest)?;
            }
            written.blobs.insert(manifest.digest, manifest.size);
            written.fetched += manifest.size;
        }
        if self.done.is_empty() {
            self.writer.end_manifests()?;
            self.manifests_end = self.writer.position();
        }
        let (mut steps, mut tasks) = (Vec::new(), Vec::new());
        for (number, planned) in std::mem::take(&mut plan.blobs).into_iter().enumerate() {
            steps.push(self.step(number + manifests.len(), planned, olds, &mut tasks));
        }
        let sizes: Vec<u64> = tasks.iter().filter_map(|task| task.size).collect();
        let bytes = (!sizes.is_empty()).then(|| sizes.iter().sum());
        let objects = Some(tasks.len() as u64);
        means.report.event(&Event::Stage { name: "fetching", bytes, objects });
        let spool = self.spool.clone();
        let means = FetchContext { spool: Some(&spool), ..*means };
        let found = std::mem::take(&mut self.found);
        queue::run(&means, tasks, found, |queue| {
            self.take(plan, steps, queue, &means, &mut written, taker)?;
            written.resumed += queue.taken_in();
            written.fetched -= queue.taken_in().min(written.fetched);
            Ok(written)
        })
    }

    /// What there is to do for the entry `number`.
    fn step<'a>(
        &mut self,
        number: usize,
        planned: PlannedBlob,
        olds: &[&'a ReusableBundle],
        tasks: &mut Vec<Task>,
    ) -> (Target, Step<'a>) {
        let PlannedBlob { blob, late, origin } = planned;
        let key = if let BlobOrigin::Fetched(task) = &origin { task.key } else { None };
        let step = match origin {
            _ if number < self.done.len() => Step::Done(self.done[number]),
            BlobOrigin::Held(bytes) => Step::Held(bytes),
            BlobOrigin::Fetched(mut task) => {
                task.begun = if number == self.done.len() { self.begun.take() } else { None };
                let old = olds.iter().find(|old| late.is_none() && task.begun.is_none() && old.has(blob));
                if let Some(old) = old {
                    Step::Copied(old, task)
                } else {
                    tasks.push(*task);
                    Step::Fetched
                }
            }
        };
        (Target { blob, late, key }, step)
    }

    fn take(
        &mut self,
        plan: &mut BundlePlan,
        steps: Vec<(Target, Step<'_>)>,
        queue: &Queue<'_>,
        means: &FetchContext<'_>,
        written: &mut WrittenBlobs,
        mut taker: Option<&mut Taker>,
    ) -> Result<(), WriteFailure> {
        let names: Vec<Digest> = steps
            .iter()
            .filter(|(_, step)| matches!(step, Step::Fetched))
            .map(|(target, _)| target.blob.digest)
            .collect();
        let failed = |failed: FetchFailed, names: &[Digest]| match failed {
            FetchFailed::Fs(error) => WriteFailure::Fs(error),
            FetchFailed::Fetch(failed) => {
                WriteFailure::Fetch { blob: names[failed.task], failure: Box::new(failed.failure) }
            }
        };
        let mut tasks = 0..;
        for (target, step) in steps {
            let Blob { digest, size } = target.blob;
            let found = match step {
                Step::Done(blob) => {
                    written.resumed += blob.size;
                    plan.found_out(digest, blob.digest, blob.size);
                    written.blobs.insert(blob.digest, blob.size);
                    continue;
                }
                Step::Held(bytes) => {
                    self.writer.begin(Some((digest, size)));
                    self.writer.write(&bytes)?;
                    target.blob
                }
                Step::Copied(old, task) => {
                    if written.blobs.contains_key(&digest) {
                        continue;
                    }
                    if old.copy(target.blob, self.level, &mut self.writer)? {
                        written.reused += size;
                        written.blobs.insert(digest, size);
                        continue;
                    }
                    let message =
                        format!("`{digest}` is damaged in `{}`: it is fetched instead", old.path().display());
                    means.report.event(&Event::Warning { message });
                    let alone = queue::run(means, vec![*task], Vec::new(), |queue| {
                        self.fetch(queue, 0, &target, written)
                    });
                    alone.map_err(|error| failed(error, &[digest]))?
                }
                Step::Fetched => {
                    let task = tasks.next().expect("numbers do not end");
                    self.fetch(queue, task, &target, written).map_err(|error| failed(error, &names))?
                }
            };
            if let Some(number) = target.late {
                self.spool.note(number, found.digest, found.size);
            }
            plan.found_out(digest, found.digest, found.size);
            // What no list pinned may turn out to be there already.
            if written.blobs.insert(found.digest, found.size).is_some() {
                for (_, key, offset) in self.take_back()? {
                    self.spool.release(key, offset);
                }
            } else {
                self.writer.end(found.digest)?;
            }
            self.release();
            if let Some(taker) = taker.as_deref_mut() {
                for volume in self.writer.hand_over()? {
                    taker.take(&volume)?;
                    written.volumes.push(volume);
                }
            }
        }
        Ok(())
    }

    /// Writes what a task fetches, all but its end; says what it is.
    fn fetch(
        &mut self,
        queue: &Queue<'_>,
        task: usize,
        target: &Target,
        written: &mut WrittenBlobs,
    ) -> Result<Blob, FetchFailed> {
        let known = target.late.is_none().then_some((target.blob.digest, target.blob.size));
        let there = queue.begun(task);
        if there.is_none() {
            self.writer.begin(known);
        }
        let (mut at, mut resumed) = (there.unwrap_or(0), there.unwrap_or(0));
        loop {
            match queue.next(task).map_err(FetchFailed::Fetch)? {
                Next::Piece(piece) => {
                    let offset = at;
                    at += piece.len() as u64;
                    self.writer.write_piece(piece)?;
                    if let Some(key) = target.key {
                        self.on_the_way.push_back((self.writer.position(), key, offset));
                    }
                    self.release();
                }
                Next::Restart => {
                    self.take_back()?;
                    self.writer.begin(known);
                    (at, resumed) = (0, 0);
                }
                Next::End(digest, size) => {
                    written.fetched += size - resumed;
                    written.resumed += resumed;
                    return Ok(Blob { digest, size });
                }
            }
        }
    }

    /// Takes back what is being written. Returns what of it was on its way: positions behind the end would hold up
    /// all that comes.
    fn take_back(&mut self) -> Result<VecDeque<(u64, Digest, u64)>, FsError> {
        self.writer.take_back()?;
        let end = self.writer.position();
        let kept = self.on_the_way.partition_point(|(position, ..)| *position <= end);
        Ok(self.on_the_way.split_off(kept))
    }

    /// Gives the room of pieces free that stand in the file by now.
    fn release(&mut self) {
        let written = self.writer.written();
        while let Some((position, key, offset)) = self.on_the_way.front().copied()
            && position <= written
        {
            self.on_the_way.pop_front();
            self.spool.release(key, offset);
        }
    }
}

/// Why a task came to no end: of this one, or of another.
enum FetchFailed {
    Fs(FsError),
    Fetch(Box<queue::FailedTask>),
}

impl From<FsError> for FetchFailed {
    fn from(error: FsError) -> Self {
        Self::Fs(error)
    }
}
