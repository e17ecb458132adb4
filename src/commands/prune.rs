//! Pruning: what no kept bundle names goes from a site, beside servers that go on serving.
//!
//! Only what the site's record knows goes: what others have pushed into the same storage stays, and whatever that needs.
//! First tags, then the links of what goes, then blobs that no link names any more, and the manifests last of these: they
//! say what else there is to go. The record comes at the end, so that a run that was killed is done again from it.

pub(crate) mod error;
pub(crate) mod plan;
pub(crate) mod summary;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::path::RelPath;
use crate::bundle::read::reader::Contents;
use crate::commands::prune::error::PruneError;
use crate::commands::prune::plan::PrunePlan;
use crate::commands::prune::summary::PruneSummary;
use crate::oci::digest::Digest;
use crate::site::record::Record;
use crate::site::root::{Root, Staging, Stagings};
use crate::site::scan::{Repositories, Storage};
use crate::site::storage::{BASE, blob_path};

/// How many blobs are taken aside before it is looked whether somebody has come to need one of them.
const BATCH: usize = 64;

/// How the names of blobs begin that stand aside.
const ASIDE: &str = "pruned.";

/// Removes from `site` what none of the bundles whose documents are `kept` names; looks only, unless `remove`.
pub(crate) fn prune(
    site: &Path,
    kept: &[Contents],
    remove: bool,
    report: &dyn Report,
) -> Result<PruneSummary, PruneError> {
    let start = Instant::now();
    Record::read(site)?;
    let mut stagings = Stagings::default();
    let staging = stagings.of(site)?;
    // Once more: who has held the lock may have changed it.
    let record = Record::read(site)?;
    let files = root(&record.files_root(site), site, &mut stagings)?;
    let registry = root(&record.registry_root(site), site, &mut stagings)?;
    let storage = Storage::open(&record.registry_root(site))?;
    if let Some(root) = registry.as_ref().filter(|_| remove) {
        put_back(root)?;
    }
    report.event(&Event::Stage { name: "looking", bytes: None, objects: None });
    let repositories = repositories(storage.as_ref())?;
    let plan = PrunePlan::new(&record, kept, storage.as_ref(), files.as_ref(), &repositories, report)?;
    let mut summary = plan.summary();
    if remove {
        let objects = Some((summary.links + summary.blobs + summary.files.len()) as u64);
        report.event(&Event::Stage { name: "removing", bytes: None, objects });
        if let (Some(root), Some(storage)) = (&registry, &storage) {
            remove_links(&plan, root)?;
            (summary.blobs, summary.bytes) = remove_blobs(&plan, root, storage, report)?;
        }
        if let Some(root) = &files {
            remove_files(&plan, root)?;
        }
        staging.sync()?;
        plan.record.write(site, &staging.path("record"))?;
        summary.removed = true;
    }
    summary.time = start.elapsed();
    Ok(summary)
}

/// Opens a directory of the site and locks it, if it is there.
fn root(path: &Path, site: &Path, stagings: &mut Stagings) -> Result<Option<Root>, PruneError> {
    if !path.is_dir() {
        return Ok(None);
    }
    let base = if path.starts_with(site) { site } else { path };
    Ok(Some(Root::open(path, base, stagings)?))
}

fn repositories(storage: Option<&Storage>) -> Result<Repositories, PruneError> {
    let mut repositories = storage.map(Storage::repositories).transpose()?.unwrap_or_default();
    match repositories.odd.pop() {
        Some(odd) => Err(PruneError::Odd(odd)),
        None => Ok(repositories),
    }
}

/// Moves blobs back that a run which was killed has left aside: now they are looked at as all others.
fn put_back(root: &Root) -> Result<(), PruneError> {
    for name in root.staging().names()? {
        let Some(digest) = name.strip_prefix(ASIDE).and_then(|hex| Digest::from_hex(hex).ok()) else {
            continue;
        };
        let path = blob_path(digest);
        if root.existing(&path)?.is_some() {
            root.staging().remove(&name)?;
        } else {
            root.place(&name, &path)?;
        }
    }
    Ok(())
}

/// Removes tags, and when they are gone what they lead to.
fn remove_links(plan: &PrunePlan, root: &Root) -> Result<(), PruneError> {
    let staging: &Arc<Staging> = root.staging();
    for (repository, tag) in &plan.tags {
        root.remove(&path(&format!("{BASE}/repositories/{repository}/_manifests/tags/{tag}/current/link")))?;
    }
    staging.sync()?;
    for (repository, tag) in &plan.tags {
        root.remove_all(&path(&format!("{BASE}/repositories/{repository}/_manifests/tags/{tag}")))?;
    }
    for (repository, tag, digest) in &plan.history {
        let tag = format!("{BASE}/repositories/{repository}/_manifests/tags/{tag}/index/sha256");
        root.remove_all(&path(&format!("{tag}/{}", digest.hex())))?;
    }
    // A manifest tells which layers go with it, also to the next run, as long as it has its own link.
    for (place, links) in [("_layers", &plan.layers), ("_manifests/revisions", &plan.revisions)] {
        for (repository, digest) in links {
            let directory = format!("{BASE}/repositories/{repository}/{place}/sha256/{}", digest.hex());
            root.remove(&path(&format!("{directory}/link")))?;
            root.remove_empty(&path(&directory))?;
        }
        staging.sync()?;
    }
    for repository in &plan.repositories {
        remove_empty_repository(repository, root)?;
    }
    Ok(())
}

/// A registry lists repositories by their directories: one with nothing in it goes, with those above that held nothing else.
/// One into which somebody pushes just now is not empty.
fn remove_empty_repository(repository: &str, root: &Root) -> Result<(), PruneError> {
    let base = format!("{BASE}/repositories/{repository}");
    // While there is anything in it, its empty directories stay as they are: registries look for them.
    for part in ["_layers/sha256", "_manifests/revisions/sha256", "_manifests/tags", "_uploads"] {
        if !root.is_empty(&path(&format!("{base}/{part}")))? {
            return Ok(());
        }
    }
    for part in [
        "_layers/sha256",
        "_layers",
        "_manifests/revisions/sha256",
        "_manifests/revisions",
        "_manifests/tags",
        "_manifests",
        "_uploads",
    ] {
        root.remove_empty(&path(&format!("{base}/{part}")))?;
    }
    let mut name = repository;
    while root.remove_empty(&path(&format!("{BASE}/repositories/{name}")))? {
        let Some((above, _)) = name.rsplit_once('/') else { break };
        name = above;
    }
    Ok(())
}

/// Removes the blobs that no link names; says how many, and how many bytes they had.
fn remove_blobs(
    plan: &PrunePlan,
    root: &Root,
    storage: &Storage,
    report: &dyn Report,
) -> Result<(usize, u64), PruneError> {
    let (mut count, mut bytes) = (0, 0);
    let in_use = || -> Result<BTreeSet<Digest>, PruneError> {
        let repositories = repositories(Some(storage))?.by_name;
        Ok(repositories.into_values().flat_map(|repository| repository.named).collect())
    };
    let mut named = in_use()?;
    for batch in plan.blobs.chunks(BATCH) {
        let unused: Vec<_> = batch.iter().filter(|blob| !named.contains(&blob.digest)).collect();
        let aside = |digest: Digest| format!("{ASIDE}{}", digest.hex());
        for blob in &unused {
            root.take_aside(&blob_path(blob.digest), &aside(blob.digest))?;
        }
        // Who pushes may have found one of them a moment ago, and made a link to it.
        named = in_use()?;
        for blob in unused {
            let (name, place) = (aside(blob.digest), blob_path(blob.digest));
            if named.contains(&blob.digest) {
                if root.existing(&place)?.is_none() {
                    root.place(&name, &place)?;
                }
                root.staging().remove(&name)?;
                continue;
            }
            // In this order: who is killed in between puts the blob back, and does it again.
            remove_directories(root, &place, 2)?;
            root.staging().remove(&name)?;
            count += 1;
            bytes += blob.size;
            report.event(&Event::Progress { id: 0, bytes: blob.size });
        }
        root.staging().sync()?;
    }
    Ok((count, bytes))
}

fn remove_files(plan: &PrunePlan, root: &Root) -> Result<(), PruneError> {
    for file in &plan.files {
        root.remove(file)?;
    }
    for file in &plan.paths {
        remove_directories(root, file, usize::MAX)?;
    }
    root.staging().sync()?;
    Ok(())
}

/// Removes at most so many directories above `file`, from the lowest on, as far as they are empty.
fn remove_directories(root: &Root, file: &RelPath, most: usize) -> Result<(), FsError> {
    let mut path_above = file.as_str();
    for _ in 0..most {
        let Some((above, _)) = path_above.rsplit_once('/') else { break };
        if !root.remove_empty(&path(above))? {
            break;
        }
        path_above = above;
    }
    Ok(())
}

/// A path of the storage, of parts that are paths by themselves.
fn path(text: &str) -> RelPath {
    RelPath::parse(text).expect("names of repositories and tags, and digests, make paths; please report")
}
