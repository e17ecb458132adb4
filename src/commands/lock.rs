//! Locking: lists in, digests and sizes out; and whether what was locked is still what its names mean.

use std::collections::HashMap;

use serde::Serialize;

use crate::base::event::{Event, Report};
use crate::base::units::human_bytes;
use crate::bundle::format::index::BundleInfo;
use crate::commands::pack::PackError;
use crate::documents::list::Lists;
use crate::documents::lock::{Lock, LockError, LockedImage};
use crate::fetch::in_parallel;
use crate::fetch::mirrored::Endpoints;
use crate::fetch::queue::{self, FetchContext, Next, Queue, Task};
use crate::fetch::resolve::locked::lists_of;
use crate::fetch::resolve::referrers::ArtifactKind;
use crate::fetch::resolve::{probe, resolve};
use crate::fetch::upstream::Upstream;
use crate::net::error::FetchError;
use crate::net::http::Http;
use crate::oci::digest::Digest;
use crate::oci::platform::Platform;
use crate::plan::base::SiteContents;
use crate::plan::bundle_plan::{BundlePlan, PlannedBlob, of_web};

/// Resolves everything that `lists` name. Files that no list pins are fetched to learn what they are, and nothing
/// else is that is large.
pub(crate) fn lock(
    lists: Lists,
    platforms: &[Platform],
    with: &[ArtifactKind],
    upstream: &Upstream,
    report: &dyn Report,
) -> Result<Lock, PackError> {
    let http = upstream.http();
    let (resolved, failures) = resolve(&http, upstream, platforms, with, lists, report);
    if !failures.is_empty() {
        return Err(PackError::Fetch(failures));
    }
    let mut plan = BundlePlan::new(resolved, BundleInfo::default(), &SiteContents::default())?;
    let (late, known): (Vec<_>, Vec<_>) =
        std::mem::take(&mut plan.blobs).into_iter().partition(|planned| planned.late.is_some());
    report.event(&Event::Note { message: totals(&plan, &known, &late) });
    let stand_ins: Vec<Digest> = late.iter().map(|planned| planned.blob.digest).collect();
    let tasks: Vec<Task> = late.into_iter().filter_map(PlannedBlob::into_task).collect();
    tell(&tasks, report);
    let mut found = Vec::new();
    hash(&http, upstream, tasks, report, &mut found)
        .map_err(|failed| PackError::Fetch(vec![failed.failure]))?;
    for (stand_in, (digest, size)) in stand_ins.into_iter().zip(found) {
        plan.found_out(stand_in, digest, size);
    }
    Ok(plan.lock())
}

/// How much it is, before anything large is fetched.
fn totals(plan: &BundlePlan, known: &[PlannedBlob], late: &[PlannedBlob]) -> String {
    let manifests: u64 = plan.manifests().iter().map(|blob| blob.size).sum();
    let named = |planned: &&PlannedBlob| planned.task().is_some();
    let sum =
        |planned: &[PlannedBlob]| planned.iter().filter(named).map(|planned| planned.blob.size).sum::<u64>();
    let bytes = manifests + sum(known) + sum(late);
    let text = format!(
        "{} files and {} images: {} blobs, {}",
        plan.files.files.len(),
        plan.layout.images.len(),
        plan.manifests().len() + known.iter().chain(late).filter(named).count(),
        human_bytes(bytes),
    );
    if late.is_empty() {
        return text;
    }
    let (count, bytes) = (late.len(), human_bytes(sum(late)));
    format!("{text}; {count} files ({bytes}) are fetched to learn their sha256, which no list has")
}

/// Fetches what `tasks` name, and keeps nothing but digests and sizes. The first failure ends it; those before it are
/// in `results`.
fn hash(
    http: &Http,
    upstream: &Upstream,
    tasks: Vec<Task>,
    report: &dyn Report,
    results: &mut Vec<(Digest, u64)>,
) -> Result<(), Box<queue::FailedTask>> {
    let (jobs, jobs_per_host, count) = (upstream.jobs, upstream.jobs_per_host(), tasks.len());
    let means = FetchContext { http, report, jobs, jobs_per_host, spool: None };
    queue::run(&means, tasks, Vec::new(), |queue| {
        (0..count).try_for_each(|task| {
            results.push(end(queue, task)?);
            Ok(())
        })
    })
}

/// The same; that one of them cannot be fetched says nothing about the others.
fn hash_each(
    http: &Http,
    upstream: &Upstream,
    tasks: &[Task],
    report: &dyn Report,
) -> Vec<Result<(Digest, u64), FetchError>> {
    tell(tasks, report);
    let mut results: Vec<_> = tasks.iter().map(|_| None).collect();
    loop {
        let left: Vec<usize> = (0..tasks.len()).filter(|task| results[*task].is_none()).collect();
        if left.is_empty() {
            return results.into_iter().flatten().collect();
        }
        let mut found = Vec::new();
        let again = left.iter().map(|task| tasks[*task].clone()).collect();
        let failed = hash(http, upstream, again, report, &mut found).err();
        for (task, found) in left.iter().zip(found) {
            results[*task] = Some(Ok(found));
        }
        if let Some(failed) = failed {
            results[left[failed.task]] = Some(Err(failed.failure));
        }
    }
}

fn tell(tasks: &[Task], report: &dyn Report) {
    let sizes: Vec<u64> = tasks.iter().filter_map(|task| task.size).collect();
    if !tasks.is_empty() {
        let (bytes, objects) = ((!sizes.is_empty()).then(|| sizes.iter().sum()), Some(tasks.len() as u64));
        report.event(&Event::Stage { name: "hashing", bytes, objects });
    }
}

fn end(queue: &Queue<'_>, task: usize) -> Result<(Digest, u64), Box<queue::FailedTask>> {
    loop {
        if let Next::End(digest, size) = queue.next(task)? {
            return Ok((digest, size));
        }
    }
}

/// What is not what it was when it was locked.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct Moved {
    /// The URL or reference.
    pub name: String,
    /// What was locked.
    pub locked: Digest,
    /// What is there now.
    pub now: Now,
}

/// What is there now.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) enum Now {
    /// Something else.
    Digest(Digest),
    /// A file of another size.
    Size(u64),
    /// Nothing that can be fetched; why.
    Failure(String),
}

/// Asks for everything that `lock` names, by its names, and returns what is not what was locked, in the order of the
/// lock. Files are fetched and hashed; with `quick` only their sizes are looked at.
pub(crate) fn check(
    lock: &Lock,
    quick: bool,
    upstream: &Upstream,
    report: &dyn Report,
) -> Result<Vec<Moved>, LockError> {
    let http = upstream.http();
    let lists = lists_of(lock)?;
    let objects = Some((lists.files.len() + lists.images.len()) as u64);
    report.event(&Event::Stage { name: "comparing", bytes: None, objects });
    let mut moved = Vec::new();
    let places = Endpoints::new(&http, upstream);
    // An index that was made here has no name upstream.
    let named = |image: &&LockedImage| image.manifests.iter().all(|manifest| manifest.content.is_none());
    let images: Vec<&LockedImage> = lock.images.iter().filter(named).collect();
    let found = in_parallel(upstream.jobs, &images, |image| {
        let reference = &image.reference;
        let digest = image.digest.to_string();
        let name = reference.tag().unwrap_or(&digest);
        let registry = places.registry(reference.host());
        registry.manifest(report, &reference.to_string(), reference.repository(), name)
    });
    for (image, found) in images.into_iter().zip(found) {
        let now = match found {
            Ok((_, bytes)) if Digest::of(&bytes) == image.digest => continue,
            Ok((_, bytes)) => Now::Digest(Digest::of(&bytes)),
            Err(failure) => Now::Failure(failure.to_string()),
        };
        moved.push(Moved { name: image.reference.to_string(), locked: image.digest, now });
    }
    let mut files: HashMap<String, Moved> = HashMap::new();
    let locked: HashMap<&str, _> =
        lock.files.iter().map(|file| (file.url.as_str(), (file.digest, file.size))).collect();
    let found = probe(&http, &places, upstream.jobs, &lists.files, report);
    let mut tasks = Vec::new();
    for (entry, found) in lists.files.iter().zip(found) {
        let (digest, size) = locked[entry.url.as_str()];
        let now = match found {
            Err(failure) => Now::Failure(failure.to_string()),
            Ok(file) if file.size.is_some_and(|now| now != size) => Now::Size(file.size.unwrap_or_default()),
            Ok(_) if quick => continue,
            Ok(file) => {
                let mut unpinned = entry.clone();
                unpinned.checksum = None;
                tasks.push((of_web(&unpinned, &file, None), digest));
                continue;
            }
        };
        files.insert(entry.url.to_string(), Moved { name: entry.url.to_string(), locked: digest, now });
    }
    let (tasks, locked): (Vec<Task>, Vec<Digest>) = tasks.into_iter().unzip();
    let found = hash_each(&http, upstream, &tasks, report);
    for ((task, locked), found) in tasks.into_iter().zip(locked).zip(found) {
        let now = match found {
            Ok((digest, _)) if digest == locked => continue,
            Ok((digest, _)) => Now::Digest(digest),
            Err(failure) => Now::Failure(failure.to_string()),
        };
        files.insert(task.object.clone(), Moved { name: task.object, locked, now });
    }
    moved.extend(lock.files.iter().filter_map(|file| files.remove(&file.url)));
    Ok(moved)
}
