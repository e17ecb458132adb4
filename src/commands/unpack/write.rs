//! [`BlobWriter`]: reads the pending blobs out of the bundle and writes them to the site.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::pipeline::Pipeline;
use crate::bundle::format::layout::Blob;
use crate::bundle::read::error::{ReadError, Unavailable};
use crate::bundle::read::reader::{BundleReader, Contents};
use crate::bundle::read::select::Prefetched;
use crate::commands::unpack::error::UnpackError;
use crate::commands::unpack::plan::{LostBlobs, WritePlan};
use crate::commands::unpack::roots::Roots;
use crate::oci::digest::Digest;
use crate::oci::manifest::Descriptor;
use crate::site::check::State;
use crate::site::commit::{Committed, Committer, StagedFiles};

/// Moves staged files to their final paths: those of an interrupted run, and copies for a delta. Returns
/// their number.
pub(super) fn commit_staged(plan: &WritePlan, roots: &Roots) -> Result<usize, FsError> {
    let staged: Vec<_> = plan.iter().filter(|(_, state)| *state == State::Staged).collect();
    if !staged.is_empty() {
        roots.sync()?;
    }
    for (target, _) in &staged {
        roots.all[target.root].commit(&target.staged, &target.path)?;
    }
    Ok(staged.len())
}

pub(super) struct BlobWriter<'a> {
    pub(super) contents: &'a Contents,
    /// Blobs that were read before, to select platforms.
    pub(super) prefetched: &'a Prefetched,
    pub(super) plan: &'a WritePlan,
    pub(super) roots: &'a Roots,
    pub(super) report: &'a dyn Report,
}

/// The result of writing.
pub(super) struct Written {
    /// Files written.
    pub(super) files: usize,
    pub(super) lost: LostBlobs,
}

impl BlobWriter<'_> {
    /// Reads the bundle up to its last pending blob, or to its end if it cannot be closed before (a pipe).
    ///
    /// This thread reads; the pipeline hashes and writes; one more thread syncs and renames. A blob that
    /// cannot be read is lost, and the run continues. An error in a file call stops all of them.
    pub(super) fn run(&self, reader: &mut BundleReader) -> Result<Written, UnpackError> {
        let layout = &self.contents.layout;
        let blobs: Vec<Blob> = layout.manifests.iter().chain(&layout.blobs).copied().collect();
        let expected: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
        let committer = Committer {
            roots: &self.roots.all,
            targets: &self.plan.targets,
            expected: &expected,
            report: self.report,
        };
        let commit_failed = AtomicBool::new(false);
        let (pipeline, finished) = Pipeline::start();
        let (fed, renamed) = std::thread::scope(|scope| {
            let commits = scope.spawn(|| {
                // Dropped when this thread ends, so that the pipeline does not wait for it after an error.
                let finished = finished;
                let result = committer.run(&finished);
                commit_failed.store(result.is_err(), Ordering::Relaxed);
                result
            });
            let remaining = blobs.iter().filter(|blob| self.is_pending(blob.digest)).count();
            let lost = Vec::new();
            let configs = layout.platform_configs().map(|config| (config.digest, config)).collect();
            let commit_failed = &commit_failed;
            let mut feeder = BlobFeeder { writer: self, pipeline, commit_failed, remaining, configs, lost };
            let fed = feeder.feed(reader, &blobs);
            let BlobFeeder { pipeline, lost, .. } = feeder;
            pipeline.finish();
            (fed.map(|()| lost), commits.join().expect("the committer does not panic; please report"))
        });
        let Committed { files, mismatched } = renamed?;
        let mut lost = fed?;
        let mismatch = |digest| (digest, Unavailable::from(&ReadError::Digest(digest)));
        lost.extend(mismatched.into_iter().map(mismatch));
        Ok(Written { files, lost })
    }

    fn is_pending(&self, digest: Digest) -> bool {
        self.plan.pending.contains_key(&digest)
    }
}

/// Feeds the pending blobs to the pipeline.
struct BlobFeeder<'a> {
    writer: &'a BlobWriter<'a>,
    pipeline: Pipeline<StagedFiles>,
    /// True if the committer has returned an error, which `BlobWriter::run` then returns.
    commit_failed: &'a AtomicBool,
    /// The number of pending blobs that have not been reached yet.
    remaining: usize,
    /// The configs whose platforms are checked.
    configs: HashMap<Digest, &'a Descriptor>,
    lost: LostBlobs,
}

impl<'a> BlobFeeder<'a> {
    fn feed(&mut self, reader: &mut BundleReader, blobs: &[Blob]) -> Result<(), UnpackError> {
        let BlobWriter { contents, prefetched, report, .. } = *self.writer;
        let passed = contents.layout.manifests.len() + prefetched.passed;
        let in_memory: HashSet<Digest> = blobs[..passed].iter().map(|blob| blob.digest).collect();
        let must_be_read = |digest| self.writer.is_pending(digest) && !in_memory.contains(&digest);
        reader.narrow(contents.layout.ranges(must_be_read));
        self.feed_prefetched(&blobs[..passed]);
        self.feed_rest(reader, blobs, passed)?;
        if self.lost.is_empty()
            && !self.is_done(reader)
            && let Err(error) = reader.end()
        {
            // Intact bytes that should not be there are no damage: the archive has further entries.
            if matches!(error, ReadError::Unexpected { .. }) {
                return Err(error.into());
            }
            // All unpacked bytes match their digests, so damage at the end is no reason to fail.
            let message = format!("everything was unpacked, but the end of the bundle is damaged: {error}");
            report.event(&Event::Warning { message });
        }
        Ok(())
    }

    /// Feeds manifests and configs that the reader is past.
    fn feed_prefetched(&mut self, blobs: &[Blob]) {
        let BlobWriter { contents, prefetched, .. } = *self.writer;
        for (number, blob) in blobs.iter().enumerate() {
            let Some(targets) = self.reach(*blob) else { continue };
            let digest = blob.digest;
            let bytes = contents.manifests.get(&digest).or_else(|| prefetched.blobs.get(&digest));
            if let Some(bytes) = bytes {
                self.begin(number, *blob, targets);
                self.pipeline.data(bytes.clone().into());
                self.pipeline.end();
            } else {
                let lost = prefetched.lost.iter().find(|(lost, _)| *lost == digest);
                self.lost.push(lost.cloned().expect("it was read or lost; please report"));
            }
        }
    }

    /// Reads `blobs[passed..]`. Damage costs only the blobs it hits, unless the reader is lost: then all
    /// others, too.
    fn feed_rest(
        &mut self,
        reader: &mut BundleReader,
        blobs: &[Blob],
        passed: usize,
    ) -> Result<(), UnpackError> {
        for (number, blob) in blobs.iter().enumerate().skip(passed) {
            if self.is_done(reader) {
                break;
            }
            let targets = self.reach(*blob);
            let read = match targets {
                Some(targets) => {
                    self.begin(number, *blob, targets);
                    let config = self.configs.get(&blob.digest).copied();
                    let mut bytes = Vec::new();
                    let read = self.read(reader, number, blob, config.map(|_| &mut bytes));
                    if let Some(config) = config.filter(|_| Digest::of(&bytes) == blob.digest) {
                        let layout = &self.writer.contents.layout;
                        layout.check_platform(config, &bytes).map_err(ReadError::from)?;
                    }
                    read
                }
                None => reader.skip(blob),
            };
            let Err(error) = read else { continue };
            let why = Unavailable::from(&error);
            self.lost.extend(targets.map(|_| (blob.digest, why.clone())));
            if reader.is_lost() {
                let rest = blobs[number + 1..].iter().filter(|blob| self.writer.is_pending(blob.digest));
                self.lost.extend(rest.map(|blob| (blob.digest, why.clone())));
                self.remaining = 0;
                break;
            }
        }
        Ok(())
    }

    /// True if nothing has to be read any more.
    fn is_done(&self, reader: &BundleReader) -> bool {
        (self.remaining == 0 && reader.can_stop()) || self.commit_failed.load(Ordering::Relaxed)
    }

    /// Returns the indices of the targets of a blob. `None`: it is not pending.
    fn reach(&mut self, blob: Blob) -> Option<&'a [usize]> {
        let targets = self.writer.plan.pending.get(&blob.digest)?;
        self.remaining -= 1;
        Some(targets)
    }

    fn begin(&mut self, number: usize, blob: Blob, targets: &[usize]) {
        let BlobWriter { plan, roots, report, .. } = *self.writer;
        let files = StagedFiles::new(&plan.targets, targets, &roots.all);
        let object = plan.targets[targets[0]].path.to_string();
        report.event(&Event::Begin { id: number as u64, object, bytes: Some(blob.size) });
        self.pipeline.begin(number, files);
    }

    /// Reads a blob and passes it to the pipeline, and adds it to `copy`.
    fn read(
        &mut self,
        reader: &mut BundleReader,
        number: usize,
        blob: &Blob,
        mut copy: Option<&mut Vec<u8>>,
    ) -> Result<(), ReadError> {
        let read = reader.blob(blob, |slice| {
            let bytes = slice.len() as u64;
            self.writer.report.event(&Event::Progress { id: number as u64, bytes });
            if let Some(copy) = &mut copy {
                copy.extend_from_slice(&slice);
            }
            self.pipeline.data(slice);
            Ok(())
        });
        if read.is_ok() {
            self.pipeline.end();
        } else {
            self.pipeline.abandon();
        }
        read
    }
}
