//! Removes from a site the images and files that no kept bundle contains and no lock or list names, while servers run.
//!
//! Only what the record of the site names is removed. Images that other clients pushed into the same storage
//! remain, with all blobs they need.
//!
//! The order makes a crash harmless: tags first, then the links of manifests and layers, then blobs that no
//! link names, with manifests last, because the next run finds the other blobs through them. The record is
//! written at the end, so that the next run starts from the same record.

pub(crate) mod error;
pub(crate) mod kept;
pub(crate) mod listed;
pub(crate) mod plan;
pub(crate) mod repository;
pub(crate) mod summary;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::base::event::{Event, Report};
use crate::base::fs::{self, FsError};
use crate::base::path::RelPath;
use crate::bundle::read::reader::Contents;
use crate::commands::prune::error::PruneError;
use crate::commands::prune::listed::Listed;
use crate::commands::prune::plan::{PrunePlan, Site};
use crate::commands::prune::summary::PruneSummary;
use crate::oci::digest::Digest;
use crate::site::files::Files;
use crate::site::record::RecordedBundle;
use crate::site::root::{Root, Staging, Stagings};
use crate::site::scan::{Repositories, Storage};
use crate::site::signed_index::{self, KeptBundles};
use crate::site::storage::{BASE, blob_path};
use crate::site::verified::{self, SitePolicy};

/// Blobs that are quarantined before the links are read again.
const BATCH: usize = 64;

/// The prefix of quarantined blobs in the staging area.
const QUARANTINED: &str = "pruned.";

/// Removes from `site` the images and files that none of the `kept` bundles contains and that are not `listed`. Without
/// `remove`: a dry run.
pub(crate) fn prune(
    site: &Path,
    policy: &SitePolicy,
    kept: &[Contents],
    listed: &Listed,
    remove: bool,
    report: &dyn Report,
) -> Result<PruneSummary, PruneError> {
    let start = Instant::now();
    // Before the staging area is created, so that a wrong path is not changed.
    verified::read(site, policy)?;
    let mut stagings = Stagings::default();
    // A dry run needs no lock, and therefore no permission to write.
    let staging = remove.then(|| stagings.open(site)).transpose()?;
    // Again, because another process may have changed it before this one got the lock.
    let record = verified::read(site, policy)?;
    let (files_root, registry_root) = (record.files_root(site), record.registry_root(site));
    let (mut writable_files, mut registry) = (None, None);
    if remove {
        writable_files = open_root(&files_root, site, &mut stagings)?;
        registry = open_root(&registry_root, site, &mut stagings)?;
    }
    let (files, storage) = (Files::open(&files_root)?, Storage::open(&registry_root)?);
    if let Some(root) = &registry {
        restore_quarantined(root)?;
    }
    report.event(&Event::Stage { name: "looking", bytes: None, objects: None });
    let repositories = repositories(storage.as_ref())?.by_name;
    let parts = Site {
        record: &record,
        storage: storage.as_ref(),
        files: files.as_ref(),
        repositories: &repositories,
    };
    let documents =
        |bundle: &RecordedBundle| verified::documents(site, &KeptBundles::open(site)?, bundle, policy);
    let listed = listed.select(&record, storage.as_ref(), documents)?;
    let plan = PrunePlan::new(&parts, kept, listed.as_ref(), report)?;
    let mut summary = plan.summary();
    if let Some(staging) = staging {
        let objects = Some((summary.links + summary.blobs + summary.files.len()) as u64);
        report.event(&Event::Stage { name: "removing", bytes: None, objects });
        if let (Some(root), Some(storage)) = (&registry, &storage) {
            remove_links(&plan, root)?;
            (summary.blobs, summary.bytes) = remove_blobs(&plan, root, storage, report)?;
        }
        if let Some(root) = &writable_files {
            remove_files(&plan, root)?;
        }
        staging.sync()?;
        plan.record.write(&staging)?;
        // After the record, which must not name bundles without documents.
        let identities = plan.record.bundles.iter().map(|bundle| bundle.identity).collect();
        let bundles = signed_index::open(site, &mut stagings)?;
        signed_index::prune(site, &bundles, &identities, &policy.signatures)?;
        staging.sync()?;
        summary.removed = true;
    }
    summary.time = start.elapsed();
    Ok(summary)
}

/// Opens and locks a directory of the site; `None`: it does not exist.
fn open_root(path: &Path, site: &Path, stagings: &mut Stagings) -> Result<Option<Root>, PruneError> {
    if !fs::is_directory(path)? {
        return Ok(None);
    }
    let base = if path.starts_with(site) { site } else { path };
    Ok(Some(Root::open(path, base, stagings)?))
}

/// Reads the links of all repositories. Fails if the storage contains symlinks or special files.
fn repositories(storage: Option<&Storage>) -> Result<Repositories, PruneError> {
    let mut repositories = storage.map(Storage::repositories).transpose()?.unwrap_or_default();
    match repositories.irregular.pop() {
        Some(path) => Err(PruneError::Irregular(path)),
        None => Ok(repositories),
    }
}

/// Restores the blobs that an interrupted run quarantined, so that this run decides about them.
fn restore_quarantined(root: &Root) -> Result<(), PruneError> {
    for name in root.staging().names()? {
        let Some(digest) = name.strip_prefix(QUARANTINED).and_then(|hex| Digest::from_hex(hex).ok()) else {
            continue;
        };
        restore(root, &name, digest)?;
    }
    Ok(())
}

/// Restores a quarantined blob, unless a client has pushed it again. What is not a regular file is
/// removed: it must not become a blob.
fn restore(root: &Root, name: &str, digest: Digest) -> Result<(), PruneError> {
    let path = blob_path(digest);
    if root.open_existing(&path)?.is_some() || !root.staging().is_file(name)? {
        root.staging().remove(name)?;
    } else {
        root.commit(name, &path)?;
    }
    Ok(())
}

/// Removes tags, and after those are gone from the disk, manifests and layers.
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
    // Layers first: after an interrupted run, the next one finds them through the links of the manifests.
    for (parent, links) in [("_layers", &plan.layers), ("_manifests/revisions", &plan.revisions)] {
        for (repository, digest) in links {
            let directory = format!("{BASE}/repositories/{repository}/{parent}/sha256/{}", digest.hex());
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

/// Removes the directories of a repository without links, and empty parents: a registry lists repositories by
/// their directories. A repository with an upload in progress is not empty.
fn remove_empty_repository(repository: &str, root: &Root) -> Result<(), PruneError> {
    let base = format!("{BASE}/repositories/{repository}");
    // All or none: a registry expects the empty directories of a repository that is in use.
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
        let Some((parent, _)) = name.rsplit_once('/') else { break };
        name = parent;
    }
    Ok(())
}

/// Removes blobs that no link names. Returns their number and size in bytes.
///
/// A client that pushes may have found a blob in the storage and then link it. Therefore blobs are
/// quarantined first, the links are read again, and blobs that have become needed are restored.
fn remove_blobs(
    plan: &PrunePlan,
    root: &Root,
    storage: &Storage,
    report: &dyn Report,
) -> Result<(usize, u64), PruneError> {
    let (mut count, mut bytes) = (0, 0);
    let mut in_use = digests_in_use(storage)?;
    for batch in plan.blobs.chunks(BATCH) {
        let unused: Vec<_> = batch.iter().filter(|blob| !in_use.contains(&blob.digest)).collect();
        for blob in &unused {
            root.move_to_staging(&blob_path(blob.digest), &quarantined(blob.digest))?;
        }
        in_use = digests_in_use(storage)?;
        for blob in unused {
            let name = quarantined(blob.digest);
            if in_use.contains(&blob.digest) {
                restore(root, &name, blob.digest)?;
                continue;
            }
            // The directories first: if the run is killed in between, the next one restores and removes the
            // blob again.
            remove_empty_parents(root, &blob_path(blob.digest), 2)?;
            root.staging().remove(&name)?;
            count += 1;
            bytes += blob.size;
            report.event(&Event::Progress { id: 0, bytes: blob.size });
        }
        root.staging().sync()?;
    }
    Ok((count, bytes))
}

fn quarantined(digest: Digest) -> String {
    format!("{QUARANTINED}{}", digest.hex())
}

fn digests_in_use(storage: &Storage) -> Result<BTreeSet<Digest>, PruneError> {
    let repositories = repositories(Some(storage))?.by_name;
    Ok(repositories.into_values().flat_map(|repository| repository.named).collect())
}

fn remove_files(plan: &PrunePlan, root: &Root) -> Result<(), PruneError> {
    for file in &plan.files {
        root.remove(file)?;
    }
    for file in &plan.paths {
        remove_empty_parents(root, file, usize::MAX)?;
    }
    root.staging().sync()?;
    Ok(())
}

/// Removes the empty directories above `file`, from the innermost, at most `max` of them.
fn remove_empty_parents(root: &Root, file: &RelPath, max: usize) -> Result<(), FsError> {
    let mut child = file.as_str();
    for _ in 0..max {
        let Some((parent, _)) = child.rsplit_once('/') else { break };
        if !root.remove_empty(&path(parent))? {
            break;
        }
        child = parent;
    }
    Ok(())
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text).expect("repository names, tags and digests are valid path components; please report")
}
