//! `airbundle lock` as library calls: resolves lists, and compares a lock with upstream.

pub(crate) mod merge;

use std::collections::HashMap;

use serde::Serialize;

use crate::base::event::{Event, Report};
use crate::base::units::human_bytes;
use crate::bundle::format::index::BundleInfo;
use crate::bundle::format::layout::Blob;
use crate::commands::pack::error::PackError;
use crate::documents::list::{FileEntry, Lists};
use crate::documents::lock::{Lock, LockedImage};
use crate::fetch::in_parallel;
use crate::fetch::known::KnownDocuments;
use crate::fetch::queue::{self, FailedTask, FetchContext, Task};
use crate::fetch::registry::FetchedManifest;
use crate::fetch::resolve::context::ResolveContext;
use crate::fetch::resolve::options::ResolveOptions;
use crate::fetch::resolve::resolve;
use crate::fetch::upstream::Upstream;
use crate::net::error::FetchError;
use crate::oci::digest::Digest;
use crate::plan::bundle_plan::{BundlePlan, FetchedBlobs, PlannedBlob, file_task};
use crate::plan::site_contents::SiteContents;

/// Resolves all entries of `lists`. Of blobs, only files that no list pins are fetched, to compute their
/// digests.
pub(crate) fn lock(
    lists: Lists,
    options: &ResolveOptions,
    upstream: &Upstream,
    report: &dyn Report,
) -> Result<Lock, PackError> {
    let http = upstream.http();
    let (resolved, failures) =
        resolve(&ResolveContext::new(&http, upstream, report, KnownDocuments::default()), options, lists);
    if !failures.is_empty() {
        return Err(PackError::Fetch(failures));
    }
    let plan = BundlePlan::new(resolved, BundleInfo::default(), &SiteContents::default())?;
    report.event(&Event::Note { message: totals(&plan) });
    let pending = plan.blobs.iter().filter(|planned| planned.pending.is_some());
    let (placeholders, tasks): (Vec<Digest>, Vec<Task>) =
        pending.filter_map(|planned| Some((planned.blob.digest, planned.task()?.clone()))).unzip();
    report_hashing(&tasks, report);
    let mut blobs = Vec::new();
    hash(&FetchContext::new(&http, upstream, report), tasks, &mut blobs)
        .map_err(|failed| PackError::Fetch(vec![failed.failure]))?;
    let fetched: FetchedBlobs = placeholders.into_iter().zip(blobs).collect();
    Ok(plan.complete(&fetched).lock())
}

/// A locked file or image that upstream has in another version, or no longer has.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct Moved {
    /// The entry without its checksum or platforms.
    pub name: String,
    /// The locked digest.
    pub locked: Digest,
    /// The current state.
    pub now: Now,
}

/// The current state of a locked file or image.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) enum Now {
    /// Another digest.
    Digest(Digest),
    /// Another size in bytes.
    Size(u64),
    /// Not available, for this reason.
    Failure(String),
}

/// Requests all entries of `lock` by name, and returns those that differ, in the order of the lock. `lists` are
/// the [`lists`](crate::documents::lock::Lock::lists) of the lock, with current URLs. Files are fetched and hashed; if
/// `quick` is true, only their sizes are compared.
pub(crate) fn check(
    lock: &Lock,
    lists: &Lists,
    quick: bool,
    upstream: &Upstream,
    report: &dyn Report,
) -> Vec<Moved> {
    let http = upstream.http();
    let objects = Some((lists.files.len() + lists.images.len()) as u64);
    report.event(&Event::Stage { name: "comparing", bytes: None, objects });
    let check = Check { context: ResolveContext::new(&http, upstream, report, KnownDocuments::default()) };
    let mut moved = check.images(lock);
    let mut files = check.files(lock, &lists.files, quick);
    moved.extend(lock.files.iter().filter_map(|file| files.remove(&file.name())));
    moved
}

struct Check<'a> {
    context: ResolveContext<'a>,
}

impl Check<'_> {
    fn images(&self, lock: &Lock) -> Vec<Moved> {
        // A generated index has no name upstream.
        let has_name = |image: &&LockedImage| image.manifests.iter().all(|it| it.content.is_none());
        let images: Vec<&LockedImage> = lock.images.iter().filter(has_name).collect();
        let manifests = in_parallel(self.context.upstream.jobs, &images, |image| {
            let reference = &image.reference;
            let digest = image.digest.to_string();
            let name = reference.tag().unwrap_or(&digest);
            let (registry, object) =
                (self.context.endpoints.registry(reference.host()), reference.to_string());
            registry.manifest(self.context.request(&object), reference.repository(), name)
        });
        let moved = |(image, manifest): (&LockedImage, Result<FetchedManifest, FetchError>)| {
            let current = manifest.map(|fetched| Digest::of(&fetched.bytes));
            Moved::unless_equal(image.reference.to_string(), image.digest, current)
        };
        images.into_iter().zip(manifests).filter_map(moved).collect()
    }

    /// Returns the files that differ, by name. `entries` are those of the lock, in its order.
    fn files(&self, lock: &Lock, entries: &[FileEntry], quick: bool) -> HashMap<String, Moved> {
        let probed = self.context.probe_files(entries);
        let mut moved = Vec::new();
        let (mut tasks, mut digests) = (Vec::new(), Vec::new());
        for ((entry, locked), probed) in entries.iter().zip(&lock.files).zip(probed) {
            let now = match probed {
                Err(failure) => Now::Failure(failure.to_string()),
                Ok(file) => match file.size {
                    Some(size) if size != locked.size => Now::Size(size),
                    _ if quick => continue,
                    _ => {
                        // Without the checksum, another digest is a result and not a failure.
                        let unpinned = FileEntry { checksum: None, ..entry.clone() };
                        tasks.push(file_task(&unpinned, &file, None));
                        digests.push(locked.digest);
                        continue;
                    }
                },
            };
            moved.push(Moved { name: entry.name(), locked: locked.digest, now });
        }
        let ResolveContext { http, upstream, report, .. } = self.context;
        let hashed = hash_each(&FetchContext::new(http, upstream, report), &tasks);
        for ((task, locked), current) in tasks.into_iter().zip(digests).zip(hashed) {
            moved.extend(Moved::unless_equal(task.object, locked, current.map(|blob| blob.digest)));
        }
        moved.into_iter().map(|moved| (moved.name.clone(), moved)).collect()
    }
}

impl Moved {
    fn unless_equal(name: String, locked: Digest, current: Result<Digest, FetchError>) -> Option<Self> {
        let now = match current {
            Ok(digest) if digest == locked => return None,
            Ok(digest) => Now::Digest(digest),
            Err(failure) => Now::Failure(failure.to_string()),
        };
        Some(Self { name, locked, now })
    }
}

/// Returns the note with the amount of data, which precedes all large downloads.
fn totals(plan: &BundlePlan) -> String {
    let manifests = plan.image_manifests();
    let fetched: Vec<&PlannedBlob> = plan.blobs.iter().filter(|planned| planned.task().is_some()).collect();
    let pending: Vec<&PlannedBlob> =
        fetched.iter().copied().filter(|planned| planned.pending.is_some()).collect();
    let size = |blobs: &[&PlannedBlob]| blobs.iter().map(|planned| planned.blob.size).sum::<u64>();
    let text = format!(
        "{} files and {} images: {} blobs, {}",
        plan.files.files.len(),
        plan.layout.images.len(),
        manifests.len() + fetched.len(),
        human_bytes(manifests.iter().map(|blob| blob.size).sum::<u64>() + size(&fetched)),
    );
    if pending.is_empty() {
        return text;
    }
    let (count, bytes) = (pending.len(), human_bytes(size(&pending)));
    format!("{text}; fetching {count} files without a sha256 ({bytes}) to compute it")
}

/// Fetches `tasks` and appends their digests and sizes to `blobs`; the content is discarded. Stops at the
/// first failure.
fn hash(context: &FetchContext<'_>, tasks: Vec<Task>, blobs: &mut Vec<Blob>) -> Result<(), Box<FailedTask>> {
    let count = tasks.len();
    queue::run(context, tasks, Vec::new(), |queue| {
        (0..count).try_for_each(|task| {
            blobs.push(queue.read_to_end(task)?);
            Ok(())
        })
    })
}

/// Like [`hash`], but continues after failures.
fn hash_each(context: &FetchContext<'_>, tasks: &[Task]) -> Vec<Result<Blob, FetchError>> {
    report_hashing(tasks, context.report);
    let mut results: Vec<_> = tasks.iter().map(|_| None).collect();
    loop {
        let remaining: Vec<usize> = (0..tasks.len()).filter(|task| results[*task].is_none()).collect();
        if remaining.is_empty() {
            return results.into_iter().flatten().collect();
        }
        let mut blobs = Vec::new();
        let retried = remaining.iter().map(|task| tasks[*task].clone()).collect();
        let failed = hash(context, retried, &mut blobs).err();
        for (task, blob) in remaining.iter().zip(blobs) {
            results[*task] = Some(Ok(blob));
        }
        if let Some(failed) = failed {
            results[remaining[failed.task]] = Some(Err(failed.failure));
        }
    }
}

fn report_hashing(tasks: &[Task], report: &dyn Report) {
    if !tasks.is_empty() {
        let sizes: Vec<u64> = tasks.iter().filter_map(|task| task.size).collect();
        let bytes = (!sizes.is_empty()).then(|| sizes.iter().sum());
        report.event(&Event::Stage { name: "hashing", bytes, objects: Some(tasks.len() as u64) });
    }
}
