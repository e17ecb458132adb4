//! `airbundle pack` as a library call: lists or a lock in, one bundle out.

mod omission;
pub(crate) mod volume_command;
pub(crate) mod write;

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::json::text_of;
use crate::base::output_file::{Access, OutputFile};
use crate::base::units::{as_seconds, human_bytes};
use crate::bundle::format::FRAME_SIZE;
use crate::bundle::format::frame::stored_len;
use crate::bundle::format::index::BundleInfo;
use crate::bundle::format::label::LABEL_LIMIT;
use crate::bundle::format::layout::LayoutError;
use crate::bundle::read::error::ReadError;
use crate::bundle::reuse::ReusableBundle;
use crate::bundle::write::claim::{Claim, ClaimError, old_paths};
use crate::bundle::write::head::BundleHead;
use crate::bundle::write::partial::{ExpectedBundle, PartialBundle, read_partial};
use crate::bundle::write::parts::{remove_parts, size_of_parts};
use crate::bundle::write::spool::{self, Spool, SpoolKey};
use crate::bundle::write::volume_writer::{FinishedVolume, VolumeOptions};
use crate::bundle::write::writer::{BundleWriter, WriteOptions, WrittenBundle};
use crate::commands::pack::volume_command::{CommandError, VolumeCommand};
use crate::commands::pack::write::{BundleJob, WriteFailure, WrittenBlobs};
use crate::documents::list::Lists;
use crate::documents::lock::{Lock, LockError};
use crate::fetch::queue::FetchContext;
use crate::fetch::resolve::context::ResolveContext;
use crate::fetch::resolve::locked::resolve_lock;
use crate::fetch::resolve::options::ResolveOptions;
use crate::fetch::resolve::{Resolved, resolve};
use crate::fetch::upstream::Upstream;
use crate::net::error::FetchError;
use crate::net::http::Http;
use crate::oci::digest::Digest;
use crate::plan::bundle_plan::{BundlePlan, CompletePlan, PlanError};
use crate::plan::site_contents::{BaseError, SiteContents};
use crate::signature::policy::Policy;
use crate::signature::signing::Signer;

/// The entries to pack.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// Entries of lists, which are resolved now.
    Lists(Lists),
    /// Entries that were resolved earlier, and are fetched by digest. The lists are
    /// [`lists_of`](crate::fetch::resolve::locked::lists_of) the lock, with current URLs.
    Lock(Lock, Lists),
}

#[derive(Debug)]
pub(crate) struct PackOptions {
    /// The path of the bundle.
    pub output: PathBuf,
    /// The parts of images to include.
    pub images: ResolveOptions,
    /// The zstd compression level, 1 to 22.
    pub level: i32,
    pub upstream: Upstream,
    /// The metadata in `index.json`.
    pub about: BundleInfo,
    /// The path of the lock to write. `None`: no lock.
    pub write_lock: Option<PathBuf>,
    /// Older bundles, from which unchanged blobs are copied.
    pub reuse: Vec<PathBuf>,
    /// Inventories, locks or bundles with the contents of the site, which the bundle omits.
    pub base: Vec<PathBuf>,
    /// The policy for the bundles in `reuse` and `base`.
    pub policy: Policy,
    pub missing: Missing,
    /// The key that signs the bundle. `None`: unsigned.
    pub sign: Option<Signer>,
    /// Maximum size of a volume in bytes. `None`: one file.
    pub volume_size: Option<u64>,
    /// Redundancy in per mille of the protected bytes. `None`: no recovery data.
    pub recovery: Option<u32>,
    /// A shell command that runs for each finished volume.
    pub on_volume: Option<String>,
}

/// The handling of images and files that cannot be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Stop at the first failure.
    Stop,
    /// Fetch all others, and keep them for the next run.
    KeepGoing,
    /// Pack all others.
    Allow,
}

/// The result of `pack`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct PackSummary {
    /// The digest of `index.json`.
    pub identity: Digest,
    /// Number of files.
    pub files: usize,
    /// Number of images.
    pub images: usize,
    /// Number of distinct blobs in the bundle, manifests included.
    pub blobs: usize,
    /// Total size of those blobs in bytes.
    pub bytes: u64,
    /// Number of external blobs: referenced and omitted, as the site has them.
    pub blobs_left_out: usize,
    /// Total size of external blobs in bytes.
    pub bytes_left_out: u64,
    /// Bytes fetched, without retransmissions. The file set, which is generated, is not included; unpinned
    /// files that turn out to be duplicates are.
    pub bytes_fetched: u64,
    /// Bytes fetched by an interrupted run.
    pub bytes_resumed: u64,
    /// Bytes copied from older bundles.
    pub bytes_reused: u64,
    /// Bytes saved by deduplication between images and files.
    pub bytes_shared: u64,
    /// Size of the bundle in bytes.
    pub bundle_size: u64,
    /// Duration of the run.
    #[cfg_attr(test, schemars(with = "f64"))]
    #[serde(serialize_with = "as_seconds", rename = "seconds")]
    pub time: Duration,
    /// The volumes. Empty: one file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<PackedVolume>,
    /// The failures because of which images and files are missing.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    #[serde(serialize_with = "as_texts")]
    pub missing: Vec<FetchError>,
}

/// A finished volume.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct PackedVolume {
    /// The path at which it was finished; the `--on-volume` command may have removed it.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Digest of the file.
    pub digest: Digest,
}

/// An error while packing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    /// A local I/O error.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process is writing the bundle.
    #[error("another `airbundle` is writing `{}`: wait until it finishes", .0.display())]
    Busy(PathBuf),
    /// Entries cannot be fetched.
    #[error("cannot fetch {} entries", .0.len())]
    Fetch(Vec<FetchError>),
    /// The fetched manifests make no valid bundle.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The lock is invalid.
    #[error("invalid lock")]
    Lock(#[from] LockError),
    /// A `--base` cannot be read.
    #[error("cannot use `{}` as base", .0.display())]
    Base(PathBuf, #[source] BaseError),
    /// A `--reuse` cannot be read.
    #[error("cannot reuse `{}`", .0.display())]
    Reuse(PathBuf, #[source] ReadError),
    /// A volume cannot hold the header or one frame.
    #[error("volumes of {size} bytes are too small for this bundle: at least {needed} bytes are needed")]
    VolumeSize {
        /// The requested volume size in bytes.
        size: u64,
        /// The minimum volume size in bytes.
        needed: u64,
    },
    /// The `--on-volume` command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

impl From<ClaimError> for PackError {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Fs(error) => Self::Fs(error),
            ClaimError::Busy(path) => Self::Busy(path),
        }
    }
}

/// Packs the entries of `input`. The bundle appears at `options.output` only when it is complete and on the
/// disk.
pub(crate) fn pack(
    input: &Input,
    options: &PackOptions,
    report: &dyn Report,
) -> Result<PackSummary, PackError> {
    let start = Instant::now();
    options.write_lock.as_deref().map_or(Ok(()), OutputFile::check)?;
    let claim = Claim::new(&options.output, report)?;
    let partial = PartialGuard::new(&claim, report)?;
    let base = read_base(options)?;
    let older = open_older(options)?;
    let http = options.upstream.http();
    let (resolved, failures) = resolve_input(&http, input, options, report);
    // A bundle without entries must not replace an existing one.
    if !failures.is_empty() && (options.missing == Missing::Stop || resolved.is_empty()) {
        return Err(PackError::Fetch(failures));
    }
    let context = FetchContext {
        http: &http,
        report,
        jobs: options.upstream.jobs,
        jobs_per_host: options.upstream.jobs_per_host(),
        spool: None,
    };
    let volume_command = options.on_volume.clone().map(VolumeCommand::start);
    let run = PackRun { start, input, options, context, base, older, failures, volume_command, partial };
    run.run(claim, resolved)
}

fn read_base(options: &PackOptions) -> Result<SiteContents, PackError> {
    let mut contents = SiteContents::default();
    for path in &options.base {
        contents.add(path, &options.policy).map_err(|error| PackError::Base(path.clone(), error))?;
    }
    Ok(contents)
}

fn open_older(options: &PackOptions) -> Result<Vec<ReusableBundle>, PackError> {
    let open = |path: &PathBuf| {
        ReusableBundle::open(path, &options.policy).map_err(|error| PackError::Reuse(path.clone(), error))
    };
    options.reuse.iter().map(open).collect()
}

/// Requests the metadata of all entries. Returns the failures of those that cannot be resolved, too.
fn resolve_input(
    http: &Http,
    input: &Input,
    options: &PackOptions,
    report: &dyn Report,
) -> (Resolved, Vec<FetchError>) {
    let PackOptions { upstream, images, .. } = options;
    let context = ResolveContext::new(http, upstream, report);
    match input {
        Input::Lists(lists) => resolve(&context, images, lists.clone()),
        Input::Lock(lock, lists) => resolve_lock(&context, lock, lists.clone()),
    }
}

/// A run of `pack` after its entries are resolved.
struct PackRun<'a> {
    start: Instant,
    input: &'a Input,
    options: &'a PackOptions,
    context: FetchContext<'a>,
    base: SiteContents,
    older: Vec<ReusableBundle>,
    /// The failures of entries that are omitted.
    failures: Vec<FetchError>,
    volume_command: Option<VolumeCommand>,
    partial: PartialGuard<'a>,
}

impl PackRun<'_> {
    fn run(mut self, claim: Claim, resolved: Resolved) -> Result<PackSummary, PackError> {
        let (plan, writer, mut written) = self.write_blobs(claim, resolved)?;
        if !self.failures.is_empty() && self.options.missing == Missing::KeepGoing {
            return Err(PackError::Fetch(self.failures));
        }
        let plan = plan.complete(&written.resolved);
        let (head, mut bundle) = self.finish(&plan, writer)?;
        bundle.volumes.append(&mut written.volumes);
        bundle.volumes.sort_by_key(|volume| volume.number);
        Ok(self.summary(&plan, &head, written, bundle))
    }

    /// Writes all blobs. If a blob cannot be fetched and this is allowed, starts over without the entries
    /// that need it; what is written already is reused.
    fn write_blobs(
        &mut self,
        mut claim: Claim,
        mut resolved: Resolved,
    ) -> Result<(BundlePlan, BundleWriter, WrittenBlobs), PackError> {
        loop {
            let plan = match self.plan(resolved.clone()) {
                Err(PackError::Plan(PlanError::Layout(LayoutError::Sizes(blob, ..)))) => {
                    self.remove_contradictions(&mut resolved, blob)?;
                    continue;
                }
                plan => plan?,
            };
            let mut attempt = Attempt::begin(claim, &plan, self.options, self.context.report)?;
            self.partial.keep = true;
            let older: Vec<&ReusableBundle> = self.older.iter().chain(&attempt.set_aside).collect();
            let failure = match attempt.job.write(&plan, &older, &self.context, self.volume_command.as_mut())
            {
                Ok(written) => return Ok((plan, attempt.job.writer, written)),
                Err(failure) => failure,
            };
            self.partial.keep = !attempt.is_worthless();
            match failure {
                WriteFailure::Command(error) => return Err(error.into()),
                WriteFailure::Fs(error) => return Err(self.partial.failed(error).into()),
                WriteFailure::Fetch { failure, .. } if self.options.missing == Missing::Stop => {
                    return Err(PackError::Fetch(vec![*failure]));
                }
                WriteFailure::Fetch { blob, failure } => {
                    self.failures.extend(resolved.remove_owners(&plan, blob, *failure));
                    // A bundle without entries must not replace an existing one.
                    if resolved.is_empty() {
                        return Err(PackError::Fetch(std::mem::take(&mut self.failures)));
                    }
                    claim = attempt.claim;
                }
            }
        }
    }

    /// Removes images whose manifests state different sizes for `blob`, if entries may be missing.
    fn remove_contradictions(&mut self, resolved: &mut Resolved, blob: Digest) -> Result<(), PackError> {
        self.failures.extend(resolved.remove_contradictions(blob));
        // A bundle without entries must not replace an existing one.
        if self.options.missing == Missing::Stop || resolved.is_empty() {
            return Err(PackError::Fetch(std::mem::take(&mut self.failures)));
        }
        Ok(())
    }

    fn plan(&self, resolved: Resolved) -> Result<BundlePlan, PackError> {
        let plan = BundlePlan::new(resolved, self.options.about.clone(), &self.base)?;
        if let Input::Lock(lock, _) = self.input {
            lock.agrees(&plan.lock_of_images())?;
        }
        Ok(plan)
    }

    /// Writes the header and makes the bundle durable under its final name.
    fn finish(
        &mut self,
        plan: &CompletePlan<'_>,
        writer: BundleWriter,
    ) -> Result<(BundleHead, WrittenBundle), PackError> {
        self.context.report.event(&Event::Stage { name: "finishing", bytes: None, objects: None });
        let mut head = plan.head();
        head.signature = self.options.sign.as_ref().map(|signer| signer.sign(&head.index));
        let bundle = writer.finish(&head).map_err(|error| self.partial.failed(error))?;
        self.partial.remove()?;
        if let Some(command) = &mut self.volume_command {
            bundle.volumes.iter().try_for_each(|volume| command.run_for_volume(volume))?;
            bundle.sums.iter().try_for_each(|path| command.run_for_file(path.clone()))?;
            command.finish()?;
        }
        if let Some(path) = &self.options.write_lock {
            OutputFile::write(path, Access::Default, &plan.lock().to_json())?;
        }
        Ok((head, bundle))
    }

    fn summary(
        self,
        plan: &CompletePlan<'_>,
        head: &BundleHead,
        written: WrittenBlobs,
        bundle: WrittenBundle,
    ) -> PackSummary {
        let WrittenBlobs { blobs, fetched, resumed, reused, .. } = written;
        let external = plan.external();
        let external_bytes = external.iter().map(|blob| blob.size).sum();
        let file_set_len = head.files.as_ref().map(|files| files.len() as u64);
        PackSummary {
            identity: bundle.identity,
            files: plan.file_count(),
            images: plan.image_count(),
            blobs: blobs.len() - external.len() + usize::from(file_set_len.is_some()),
            bytes: blobs.values().sum::<u64>() - external_bytes + file_set_len.unwrap_or(0),
            blobs_left_out: external.len(),
            bytes_left_out: external_bytes,
            bytes_fetched: fetched,
            bytes_resumed: resumed,
            bytes_reused: reused,
            bytes_shared: plan.shared_bytes(&blobs),
            bundle_size: bundle.size,
            time: self.start.elapsed(),
            volumes: bundle.volumes.into_iter().map(PackedVolume::from).collect(),
            missing: self.failures,
        }
    }
}

impl From<FinishedVolume> for PackedVolume {
    fn from(volume: FinishedVolume) -> Self {
        Self { path: text_of(&volume.path), size: volume.size, digest: volume.digest }
    }
}

/// One attempt at a plan.
struct Attempt {
    job: BundleJob,
    /// The claim for the next attempt.
    claim: Claim,
    /// Partial bundles of other plans.
    set_aside: Vec<ReusableBundle>,
}

impl Attempt {
    /// Checks the partial bundle of an earlier run, and resumes or replaces it.
    fn begin(
        mut claim: Claim,
        plan: &BundlePlan,
        options: &PackOptions,
        report: &dyn Report,
    ) -> Result<Self, PackError> {
        let (level, header_space) = (options.level, plan.header_space(options.sign.is_some())?);
        let volumes = volume_options(plan, header_space, options)?;
        let fingerprint = plan.fingerprint(header_space, level, volumes);
        let partial = claim.partial.clone();
        let (mut spool, notes) = Spool::open(&partial)?;
        let is_same_plan = notes.fingerprint == Some(fingerprint);
        let expected = plan.expected(&notes);
        // Partial bundles only save downloads: unreadable ones are ignored.
        let mut set_aside: Vec<ReusableBundle> =
            old_paths(&partial).iter().filter_map(|path| ReusableBundle::open_partial(path).ok()).collect();
        let mut done = PartialBundle::default();
        if is_same_plan {
            let expected = ExpectedBundle {
                set: volumes.set,
                header_space,
                entries: &expected,
                external: plan.external(),
            };
            done = read_partial(&partial, &expected, report)?;
        } else if claim.size()? > 0 {
            claim = self::set_aside(claim, &mut set_aside, report)?;
        }
        let is_needed = needed_pieces(plan, &done);
        let pieces = spool.begin(fingerprint, plan.pending_count(), is_same_plan, is_needed)?;
        let write_options = WriteOptions { header_space, level, volumes };
        let job = BundleJob::begin(claim.try_clone()?, write_options, spool, pieces, done, &expected)?;
        Ok(Self { job, claim, set_aside })
    }

    /// True if the next run would save nothing by reusing this attempt.
    fn is_worthless(&self) -> bool {
        self.set_aside.is_empty() && self.job.is_empty()
    }
}

/// Returns a predicate for spooled pieces by key and offset: true if the partial bundle lacks the piece.
fn needed_pieces(plan: &BundlePlan, partial: &PartialBundle) -> impl Fn(SpoolKey, u64) -> bool + use<> {
    let keys = plan.keys(partial.complete);
    let begun =
        partial.open.as_ref().and_then(|begun| Some((plan.key(partial.complete)?, begun.sha256.len())));
    move |key, offset| {
        keys.contains(&key) && begun.is_none_or(|(begun_key, len)| key != begun_key || offset >= len)
    }
}

/// Returns the options of the volume writer, if the header and every frame fit into a volume.
fn volume_options(
    plan: &BundlePlan,
    header_space: u64,
    options: &PackOptions,
) -> Result<VolumeOptions, PackError> {
    let PackOptions { level, volume_size, recovery, .. } = *options;
    let set = plan.volume_set_id(header_space, level, volume_size, recovery);
    let volumes = VolumeOptions { volume_size, recovery, set };
    let needed = (stored_len(FRAME_SIZE) as u64).max(header_space) + LABEL_LIMIT as u64;
    if volumes.capacity() < needed {
        let redundancy = u64::from(recovery.unwrap_or(0));
        // A recovery section is a little longer than its parity blocks.
        let needed = needed + needed * redundancy / 1000 + if redundancy > 0 { needed / 4 } else { 0 };
        return Err(PackError::VolumeSize { size: volume_size.unwrap_or(0), needed });
    }
    Ok(volumes)
}

/// Moves the partial bundle at `claim` to the partial bundles of other plans. If these are too many, or one
/// has no blob of its own, removes the one with the fewest bytes that no other has: a short run must not
/// evict the result of a longer one.
fn set_aside(claim: Claim, older: &mut Vec<ReusableBundle>, report: &dyn Report) -> Result<Claim, PackError> {
    let paths = old_paths(&claim.partial);
    older.push(ReusableBundle::open_partial(&claim.partial)?);
    loop {
        let own_bytes = |number: &usize| {
            let others: Vec<&ReusableBundle> =
                older.iter().enumerate().filter(|(other, _)| other != number).map(|(_, old)| old).collect();
            older[*number].unique_bytes(&others)
        };
        let Some(least) = (0..older.len()).min_by_key(own_bytes) else { break };
        if older.len() <= paths.len() && own_bytes(&least) > 0 {
            break;
        }
        let removed = older.remove(least);
        if removed.path() == claim.partial {
            // Emptied before the spool names the new plan as its owner.
            claim.empty()?;
            return Ok(claim);
        }
        remove_parts(removed.path())?;
    }
    let free = paths.iter().find(|path| older.iter().all(|old| old.path() != path.as_path()));
    let path = free.expect("there are fewer bundles than paths; please report");
    older.last_mut().expect("it was pushed above; please report").set_path(path);
    Ok(claim.set_aside(path, report)?)
}

/// Removes or keeps the partial bundle of a failed run when it is dropped.
struct PartialGuard<'a> {
    partial: PathBuf,
    report: &'a dyn Report,
    /// True if the next run can reuse the partial bundle.
    keep: bool,
    /// True if the bundle is complete.
    is_done: bool,
    /// Prevents another process from writing the partial bundle before it is removed.
    _lock: File,
}

impl<'a> PartialGuard<'a> {
    fn new(claim: &Claim, report: &'a dyn Report) -> Result<Self, FsError> {
        let (keep, partial, lock) = (claim.size()? > 0, claim.partial.clone(), claim.lock()?);
        Ok(Self { partial, report, keep, is_done: false, _lock: lock })
    }

    /// Discards the partial bundle, unless `error` is a full disk or a file that is too large, of which nothing was
    /// written: after any other I/O error, the page cache may differ from what is on the disk.
    fn failed(&mut self, error: FsError) -> FsError {
        if !error.is_full() && !error.is_too_large() {
            self.keep = false;
        }
        error
    }

    /// Removes everything that only an unfinished bundle needs.
    fn remove(&mut self) -> Result<(), FsError> {
        self.is_done = true;
        spool::remove(&self.partial)?;
        old_paths(&self.partial).iter().try_for_each(|path| remove_parts(path))
    }
}

impl Drop for PartialGuard<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        if self.keep {
            let path = self.partial.display();
            let size = human_bytes(size_of_parts(&self.partial));
            let message = format!("partial bundle kept in `{path}` ({size}): run the same command to resume");
            self.report.event(&Event::Warning { message });
        } else {
            // The run has already failed, and its error is more useful than that of the cleanup.
            let _ = spool::remove(&self.partial);
            let _ = remove_parts(&self.partial);
        }
    }
}

fn as_texts<S: serde::Serializer>(failures: &[FetchError], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(failures.iter().map(ToString::to_string))
}
