//! Packing: lists in, one bundle out.

pub(crate) mod volumes;
pub(crate) mod write;

use std::cell::Cell;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::base::event::{Event, Report};
use crate::base::fs::{self, FsError};
use crate::base::units::{as_seconds, human_bytes};
use crate::bundle::format::FRAME_SIZE;
use crate::bundle::format::frame::stored_len;
use crate::bundle::format::index::BundleInfo;
use crate::bundle::format::label::LABEL_LIMIT;
use crate::bundle::read::error::ReadError;
use crate::bundle::reuse::ReusableBundle;
use crate::bundle::write::claim::{Claim, ClaimError, old_paths};
use crate::bundle::write::partial::{Salvaged, salvage};
use crate::bundle::write::parts::{remove_parts, size_of_parts};
use crate::bundle::write::spool::{self, Spool};
use crate::bundle::write::volume_writer::{FinishedVolume, VolumeOptions};
use crate::bundle::write::writer::WriteOptions;
use crate::commands::pack::volumes::{CommandError, Taker};
use crate::commands::pack::write::{BundleJob, WriteFailure, WrittenBlobs};
use crate::documents::list::Lists;
use crate::documents::lock::{Lock, LockError};
use crate::fetch::queue::FetchContext;
use crate::fetch::resolve::locked::{lists_of, resolve_lock};
use crate::fetch::resolve::referrers::ArtifactKind;
use crate::fetch::resolve::{Resolved, resolve};
use crate::fetch::upstream::Upstream;
use crate::net::error::FetchError;
use crate::net::http::Http;
use crate::oci::digest::Digest;
use crate::oci::platform::Platform;
use crate::plan::base::{BaseError, SiteContents};
use crate::plan::bundle_plan::{BundlePlan, PlanError};
use crate::signature::signing::Signer;

/// What a bundle is made of.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// What lists name.
    Lists(Lists),
    /// What lists resolved to, some time ago.
    Lock(Lock),
}

/// What to pack, from where, and how.
#[derive(Debug)]
pub(crate) struct PackOptions {
    /// The bundle to be written.
    pub output: PathBuf,
    /// The platforms of images to be taken, where the list does not say; empty: all.
    pub platforms: Vec<Platform>,
    /// What is to be taken that is attached to images.
    pub with: Vec<ArtifactKind>,
    /// zstd's compression level, 1 to 22.
    pub level: i32,
    /// Where things are fetched from.
    pub upstream: Upstream,
    /// What the bundle is to say of itself.
    pub about: BundleInfo,
    /// Where the lock of what is packed is written, too.
    pub write_lock: Option<PathBuf>,
    /// Older bundles, from which blobs are taken that did not change.
    pub reuse: Vec<PathBuf>,
    /// What the site has: inventories, locks or bundles. The bundle leaves that out.
    pub base: Vec<PathBuf>,
    /// What is to become of images and files that cannot be fetched.
    pub missing: Missing,
    /// Who signs the bundle.
    pub sign: Option<Signer>,
    /// How many bytes a volume has at most; nothing for one file.
    pub volume_size: Option<u64>,
    /// How much recovery data there is to be, in parts of 1,000 of what it protects.
    pub recovery: Option<u32>,
    /// What is to be done with each volume as soon as it is complete: a line for the shell.
    pub on_volume: Option<String>,
}

/// What is to become of images and files that cannot be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The first failure ends the run.
    Stop,
    /// All others are fetched, and kept for the next run.
    KeepGoing,
    /// All others make the bundle.
    Allow,
}

/// What was packed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PackSummary {
    /// The digest of `index.json`.
    pub identity: Digest,
    /// How many files.
    pub files: usize,
    /// How many images.
    pub images: usize,
    /// How many different blobs it holds, manifests included.
    pub blobs: usize,
    /// The bytes of all these blobs.
    pub bytes: u64,
    /// How many blobs it names and leaves out, as the site has them.
    pub blobs_left_out: usize,
    /// The bytes of those.
    pub bytes_left_out: u64,
    /// The bytes of all that was fetched, without what came again after a failure. The list of files is made here,
    /// and a file that no list pins may turn out to be there already.
    pub bytes_fetched: u64,
    /// The bytes that an interrupted run had fetched before.
    pub bytes_resumed: u64,
    /// The bytes that came out of older bundles.
    pub bytes_reused: u64,
    /// The bytes that would have come on top if nothing were shared between images and files.
    pub bytes_shared: u64,
    /// The size of the bundle in bytes.
    pub bundle_size: u64,
    /// How long it took.
    #[serde(serialize_with = "as_seconds", rename = "seconds")]
    pub time: Duration,
    /// The volumes; none for one file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<PackedVolume>,
    /// Why images and files are missing that the lists name.
    #[serde(serialize_with = "as_texts")]
    pub missing: Vec<FetchError>,
}

/// A volume that was packed.
#[derive(Debug, Serialize)]
pub(crate) struct PackedVolume {
    /// Where it is, or was before it was taken.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// The digest of all of it.
    pub digest: Digest,
}

/// Why nothing was packed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    /// The bundle cannot be written.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process is writing it.
    #[error("another `airbundle` is writing `{}`: wait until it is done", .0.display())]
    Busy(PathBuf),
    /// Something cannot be fetched; all of what is known to fail.
    #[error("{} of what the lists name cannot be fetched", .0.len())]
    Fetch(Vec<FetchError>),
    /// What was fetched makes no bundle.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A lock that cannot be packed.
    #[error("the lock is refused")]
    Lock(#[from] LockError),
    /// What the site has cannot be read.
    #[error("cannot take `{}` for what the site has", .0.display())]
    Base(PathBuf, #[source] BaseError),
    /// An older bundle cannot be read.
    #[error("cannot reuse `{}`", .0.display())]
    Reuse(PathBuf, #[source] ReadError),
    /// Volumes into which not even one frame fits.
    #[error("volumes of {size} bytes are too small for this bundle: they need {needed} at least")]
    VolumeSize {
        /// How large they are to be.
        size: u64,
        /// How large they have to be.
        needed: u64,
    },
    /// A volume was not taken.
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

/// Packs what `input` names. Nothing is at `options.output` before the bundle is complete and on the disk.
pub(crate) fn pack(
    input: &Input,
    options: &PackOptions,
    report: &dyn Report,
) -> Result<PackSummary, PackError> {
    let start = Instant::now();
    let claim = Claim::new(&options.output)?;
    let leftovers = Leftovers::of(&claim, report)?;
    let mut base = SiteContents::default();
    for path in &options.base {
        base.add(path).map_err(|error| PackError::Base(path.clone(), error))?;
    }
    let reuse = options
        .reuse
        .iter()
        .map(|path| ReusableBundle::bundle(path).map_err(|error| PackError::Reuse(path.clone(), error)));
    let reuse = reuse.collect::<Result<Vec<_>, _>>()?;
    let http = options.upstream.http();
    let means = FetchContext {
        http: &http,
        report,
        jobs: options.upstream.jobs,
        jobs_per_host: options.upstream.jobs_per_host(),
        spool: None,
    };
    let (mut resolved, mut failures) = find(&http, input, options, report)?;
    // Without anything at all there is no bundle, and what is there already is better left alone.
    let is_empty = resolved.images.is_empty() && resolved.files.is_empty();
    if !failures.is_empty() && (options.missing == Missing::Stop || is_empty) {
        return Err(PackError::Fetch(failures));
    }

    let mut taker = options.on_volume.clone().map(Taker::start);
    let mut claim = claim;
    loop {
        let mut plan = BundlePlan::new(resolved.clone(), options.about.clone(), &base)?;
        if let Input::Lock(lock) = input {
            lock.agrees(&Lock::of(&plan.layout, &[], &plan.manifests))?;
        }
        let mut attempt = Attempt::begin(claim, &plan, options, report)?;
        leftovers.matter();
        let olds: Vec<&ReusableBundle> = reuse.iter().chain(&attempt.aside).collect();
        let written = attempt.job.write(&mut plan, &olds, &means, taker.as_mut());
        if written.is_err() && attempt.is_worthless() {
            leftovers.do_not_matter();
        }
        let WrittenBlobs { blobs, fetched, resumed, reused, volumes } = match written {
            Ok(written) => written,
            Err(WriteFailure::Command(error)) => return Err(error.into()),
            Err(WriteFailure::Fs(error)) => return Err(leftovers.after(error).into()),
            Err(WriteFailure::Fetch { failure, .. }) if options.missing == Missing::Stop => {
                return Err(PackError::Fetch(vec![*failure]));
            }
            // The same without what needs this blob. What is there already is taken over.
            Err(WriteFailure::Fetch { blob, failure }) => {
                resolved.remove_owners(&plan, blob);
                failures.push(*failure);
                claim = attempt.claim;
                continue;
            }
        };
        let lock = plan.lock();
        if !failures.is_empty() && options.missing == Missing::KeepGoing {
            return Err(PackError::Fetch(failures));
        }
        report.event(&Event::Stage { name: "finishing", bytes: None, objects: None });
        let mut head = plan.head();
        head.signature = options.sign.as_ref().map(|signer| signer.sign(&head.index));
        let written = attempt.job.writer.finish(&head).map_err(|error| leftovers.after(error))?;
        leftovers.remove()?;
        if let Some(taker) = &mut taker {
            written.volumes.iter().try_for_each(|volume| taker.take(volume))?;
            written.sums.into_iter().try_for_each(|path| taker.take_file(path))?;
            taker.finish()?;
        }
        let mut volumes = [volumes, written.volumes].concat();
        volumes.sort_by_key(|volume| volume.number);
        if let Some(path) = &options.write_lock {
            fs::write_durably(path, &lock.to_json())?;
        }
        let left_out = &plan.layout.external;
        let bytes_left_out = left_out.iter().map(|blob| blob.size).sum();
        return Ok(PackSummary {
            identity: written.identity,
            files: plan.files.files.len(),
            images: plan.layout.images.len(),
            blobs: blobs.len() - left_out.len() + usize::from(head.files.is_some()),
            bytes: blobs.values().sum::<u64>() - bytes_left_out
                + head.files.map_or(0, |files| files.len() as u64),
            blobs_left_out: left_out.len(),
            bytes_left_out,
            bytes_fetched: fetched,
            bytes_resumed: resumed,
            bytes_reused: reused,
            bytes_shared: plan.shared(&blobs),
            bundle_size: written.size,
            time: start.elapsed(),
            volumes: volumes.into_iter().map(PackedVolume::from).collect(),
            missing: failures,
        });
    }
}

impl From<FinishedVolume> for PackedVolume {
    fn from(volume: FinishedVolume) -> Self {
        Self { path: volume.path, size: volume.size, digest: volume.digest }
    }
}

/// Asks for everything that `input` names.
fn find(
    http: &Http,
    input: &Input,
    options: &PackOptions,
    report: &dyn Report,
) -> Result<(Resolved, Vec<FetchError>), PackError> {
    let upstream = &options.upstream;
    match input {
        Input::Lists(lists) => {
            let PackOptions { platforms, with, .. } = options;
            Ok(resolve(http, upstream, platforms, with, lists.clone(), report))
        }
        Input::Lock(lock) => {
            let lists = lists_of(lock)?;
            Ok(resolve_lock(http, upstream, lock, lists, report))
        }
    }
}

/// One way through a plan: the writer, and what earlier runs have left for it.
struct Attempt {
    job: BundleJob,
    /// For the next one.
    claim: Claim,
    /// What earlier runs have left that had other plans.
    aside: Vec<ReusableBundle>,
}

impl Attempt {
    /// Looks at what earlier runs have left, and begins.
    fn begin(
        mut claim: Claim,
        plan: &BundlePlan,
        options: &PackOptions,
        report: &dyn Report,
    ) -> Result<Self, PackError> {
        let (level, room) = (options.level, plan.header_space(options.sign.is_some())?);
        let carry = carry(plan, room, options)?;
        let fingerprint = plan.fingerprint(room, level, carry);
        let partial = claim.partial.clone();
        let (mut spool, notes) = Spool::open(&partial)?;
        let is_same = notes.fingerprint == Some(fingerprint);
        let expected = plan.expected(&notes);
        // What cannot be read there is fetched.
        let mut aside: Vec<ReusableBundle> =
            old_paths(&partial).iter().filter_map(|path| ReusableBundle::partial(path).ok()).collect();
        let mut salvaged = Salvaged::default();
        if is_same {
            salvaged = salvage(&partial, carry.set, room, &expected, &plan.layout.external, report)?;
        } else if claim.size()? > 0 {
            claim = set_aside(claim, &mut aside)?;
        }
        let keys = plan.keys(salvaged.done);
        // What is in the bundle of the blob that has begun is not needed again.
        let begun =
            salvaged.open.as_ref().and_then(|begun| Some((plan.key(salvaged.done)?, begun.sha256.len())));
        let wanted = |key, offset| {
            keys.contains(&key) && begun.is_none_or(|(begun, len)| key != begun || offset >= len)
        };
        let found = spool.begin(fingerprint, plan.late(), is_same, wanted)?;
        let job = BundleJob::begin(
            claim.again()?,
            WriteOptions { header_space: room, level, carry },
            spool,
            found,
            salvaged,
            &expected,
        )?;
        Ok(Self { job, claim, aside })
    }

    /// Whether there is nothing that would spare the next run anything.
    fn is_worthless(&self) -> bool {
        self.aside.is_empty() && self.job.is_empty()
    }
}

/// In what form the bundle is written, if its head and every frame fit into a volume.
fn carry(plan: &BundlePlan, room: u64, options: &PackOptions) -> Result<VolumeOptions, PackError> {
    let PackOptions { level, volume_size, recovery, .. } = *options;
    let carry = VolumeOptions { volume_size, recovery, set: plan.set(room, level, volume_size, recovery) };
    // A frame with its label, and the head with one.
    let needed = (stored_len(FRAME_SIZE) as u64).max(room) + LABEL_LIMIT as u64;
    if carry.room() < needed {
        let share = u64::from(recovery.unwrap_or(0));
        // Recovery data is a little longer than its share.
        let needed = needed + needed * share / 1000 + if share > 0 { needed / 4 } else { 0 };
        return Err(PackError::VolumeSize { size: volume_size.unwrap_or(0), needed });
    }
    Ok(carry)
}

/// Keeps what is at `claim` beside what is `aside` already. Where that gets too much, or one has nothing that the
/// others have not, the one is dropped that is missed least: a run that came not far must not cost what a longer one
/// has left.
fn set_aside(claim: Claim, aside: &mut Vec<ReusableBundle>) -> Result<Claim, PackError> {
    let names = old_paths(&claim.partial);
    aside.push(ReusableBundle::partial(&claim.partial)?);
    loop {
        let missed = |number: &usize| {
            let others: Vec<&ReusableBundle> =
                aside.iter().enumerate().filter(|(other, _)| other != number).map(|(_, old)| old).collect();
            aside[*number].bytes_beside(&others)
        };
        let Some(least) = (0..aside.len()).min_by_key(missed) else { break };
        if aside.len() <= names.len() && missed(&least) > 0 {
            break;
        }
        let dropped = aside.remove(least);
        if dropped.path() == claim.partial {
            // Before anything says that it belongs to another plan.
            claim.empty()?;
            return Ok(claim);
        }
        remove_parts(dropped.path())?;
    }
    let free = names.iter().find(|name| aside.iter().all(|old| old.path() != name.as_path()));
    let name = free.expect("there are fewer than names; please report");
    aside.last_mut().expect("it was pushed above; please report").renamed(name);
    Ok(claim.set_aside(name)?)
}

impl Resolved {
    /// Forgets the images and files that need `blob`.
    fn remove_owners(&mut self, plan: &BundlePlan, blob: Digest) {
        let owners = plan.layout.owners(&[blob].into()).remove(&blob).unwrap_or_default();
        self.images.retain(|image| !owners.contains(&image.indexed.reference.to_string()));
        self.files.retain(|(file, _)| !owners.contains(&file.path.to_string()));
    }
}

/// What a run leaves behind that fails: what came so far, if anything did, for the next one.
struct Leftovers<'a> {
    partial: PathBuf,
    report: &'a dyn Report,
    /// Whether it is of use.
    matters: Cell<bool>,
    is_done: Cell<bool>,
    /// Held until it is removed: nobody else can have begun to write it.
    _lock: File,
}

impl<'a> Leftovers<'a> {
    fn of(claim: &Claim, report: &'a dyn Report) -> Result<Self, FsError> {
        let matters = Cell::new(claim.size()? > 0);
        let (partial, lock) = (claim.partial.clone(), claim.lock()?);
        Ok(Self { partial, report, matters, is_done: Cell::new(false), _lock: lock })
    }

    fn matter(&self) {
        self.matters.set(true);
    }

    fn do_not_matter(&self) {
        self.matters.set(false);
    }

    /// What is on a disk that is full is sound. After any other error nobody knows what really is on the disk, even
    /// if it can still be read.
    fn after(&self, error: FsError) -> FsError {
        if !error.is_full() {
            self.do_not_matter();
        }
        error
    }

    /// The bundle is there: nothing else is needed any more.
    fn remove(&self) -> Result<(), FsError> {
        self.is_done.set(true);
        spool::remove(&self.partial)?;
        old_paths(&self.partial).iter().try_for_each(|path| remove_parts(path))
    }
}

impl Drop for Leftovers<'_> {
    fn drop(&mut self) {
        if self.is_done.get() {
            return;
        }
        if self.matters.get() {
            let size = size_of_parts(&self.partial);
            let message = format!(
                "what came so far is kept in `{}` ({}): the same command goes on from there",
                self.partial.display(),
                human_bytes(size)
            );
            self.report.event(&Event::Warning { message });
        } else {
            // It already failed, and said why.
            let _ = spool::remove(&self.partial);
            let _ = remove_parts(&self.partial);
        }
    }
}

fn as_texts<S: serde::Serializer>(failures: &[FetchError], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(failures.iter().map(ToString::to_string))
}
