//! [`PrunePlan`]: the links, blobs and files to remove, and the record afterwards.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::path::RelPath;
use crate::bundle::format::layout::Blob;
use crate::bundle::read::reader::Contents;
use crate::commands::prune::error::PruneError;
use crate::commands::prune::kept::{Kept, unpacked};
use crate::commands::prune::listed::Selected;
use crate::commands::prune::repository::{Manifests, RepositoryPlan, RepositoryPlanner};
use crate::commands::prune::summary::PruneSummary;
use crate::oci::digest::Digest;
use crate::site::files::Files;
use crate::site::record::{Record, RecordedFile, RecordedImage};
use crate::site::scan::{Repository, Storage};

pub(super) struct PrunePlan {
    /// Repository and tag.
    pub(super) tags: Vec<(String, String)>,
    /// Repository and manifest.
    pub(super) revisions: Vec<(String, Digest)>,
    /// Repository and config or layer.
    pub(super) layers: Vec<(String, Digest)>,
    /// Former digests of tags that remain: repository, tag and manifest.
    pub(super) history: Vec<(String, String, Digest)>,
    /// Repositories that may become empty.
    pub(super) repositories: BTreeSet<String>,
    /// Blobs that no link names after the links above are removed; manifests last.
    pub(super) blobs: Vec<Blob>,
    /// Files that exist.
    pub(super) files: Vec<RelPath>,
    /// Files whose directories are removed if they become empty: `files`, and those that are missing or have
    /// another size.
    pub(super) paths: Vec<RelPath>,
    /// The record of the pruned site.
    pub(super) record: Record,
    images: Vec<String>,
    file_bytes: u64,
}

/// The parts of a site.
pub(super) struct Site<'a> {
    pub(super) record: &'a Record,
    /// `None`: there is no registry's storage.
    pub(super) storage: Option<&'a Storage>,
    /// `None`: there are no files.
    pub(super) files: Option<&'a Files>,
    /// By name.
    pub(super) repositories: &'a BTreeMap<String, Repository>,
}

impl PrunePlan {
    /// Fails if the site differs from the `kept` bundles, or from what is `listed` of it.
    pub(super) fn new(
        site: &Site,
        kept: &[Contents],
        listed: Option<&Selected>,
        report: &dyn Report,
    ) -> Result<Self, PruneError> {
        let Site { record, storage, files, .. } = *site;
        let unpacked = unpacked(kept, record);
        let kept = Kept::of(&unpacked, listed);
        kept.compare(record, storage, files)?;
        let mut plan = Self {
            tags: Vec::new(),
            revisions: Vec::new(),
            layers: Vec::new(),
            history: Vec::new(),
            repositories: BTreeSet::new(),
            blobs: Vec::new(),
            files: Vec::new(),
            paths: Vec::new(),
            record: kept.prune_record(record, storage)?,
            images: Vec::new(),
            file_bytes: 0,
        };
        plan.add_files(record, files, report)?;
        for image in record.images.iter().filter(|image| !kept.has(image)) {
            plan.images.extend(image.repositories.iter().map(|repository| site_name(repository, image)));
        }
        if let Some(storage) = storage {
            plan.add_links_and_blobs(site, &Manifests { storage, kept: &kept }, report)?;
        }
        Ok(plan)
    }

    /// Returns the summary of a dry run.
    pub(super) fn summary(&self) -> PruneSummary {
        PruneSummary {
            images: self.images.clone(),
            files: self.files.iter().map(ToString::to_string).collect(),
            links: self.tags.len() + self.revisions.len() + self.layers.len(),
            blobs: self.blobs.len(),
            bytes: self.blobs.iter().map(|blob| blob.size).sum(),
            file_bytes: self.file_bytes,
            ..PruneSummary::default()
        }
    }

    fn add_files(
        &mut self,
        record: &Record,
        root: Option<&Files>,
        report: &dyn Report,
    ) -> Result<(), PruneError> {
        let Some(root) = root else { return Ok(()) };
        let kept: HashSet<&str> = self.record.files.iter().map(|file| file.path.as_str()).collect();
        for file in record.files.iter().filter(|file| !kept.contains(file.path.as_str())) {
            let RecordedFile { path, size, .. } = file;
            self.paths.push(path.clone());
            let Some(file) = root.open_existing(path)? else { continue };
            let meta = file.metadata().map_err(FsError::at("open", root.path(path)))?;
            if meta.len() == *size {
                self.file_bytes += size;
                self.files.push(path.clone());
            } else {
                let path = root.path(path);
                let message = format!("`{}` does not match the record: kept", path.display());
                report.event(&Event::Warning { message });
            }
        }
        Ok(())
    }

    fn add_links_and_blobs(
        &mut self,
        site: &Site,
        manifests: &Manifests,
        report: &dyn Report,
    ) -> Result<(), PruneError> {
        let Site { record, repositories, .. } = *site;
        let recorded: BTreeSet<&str> =
            record.images.iter().flat_map(|image| &image.repositories).map(|name| &**name).collect();
        // An interrupted run may have removed everything but the directory.
        let is_left = |name: &&&str| !repositories.contains_key(**name);
        self.repositories.extend(recorded.iter().filter(is_left).map(|name| (*name).to_owned()));

        let mut in_use: HashSet<Digest> = HashSet::new();
        let mut removed = recorded_manifests(record);
        removed.retain(|digest| !manifests.kept.manifests.contains(digest));
        for (name, repository) in repositories {
            if !recorded.contains(name.as_str()) {
                in_use.extend(&repository.named);
                continue;
            }
            let plan = RepositoryPlanner::new(manifests, name, repository, record, report).plan()?;
            let links = repository.revisions.union(&repository.layers).copied().collect();
            in_use.extend(repository.named.difference(&links));
            in_use.extend(repository.revisions.difference(&plan.revisions));
            in_use.extend(repository.layers.difference(&plan.layers));
            in_use.extend(&plan.needed);
            removed.extend(&plan.manifests);
            self.add_repository(name, repository, plan);
        }
        self.blobs = unused_blobs(&removed, &in_use, manifests)?;
        Ok(())
    }

    fn add_repository(&mut self, name: &str, repository: &Repository, plan: RepositoryPlan) {
        let is_empty = repository.named.is_empty() && repository.tags.is_empty();
        if !plan.is_empty() || is_empty {
            self.repositories.insert(name.to_owned());
        }
        for tag in repository.tags.keys().filter(|tag| !plan.tags.contains(tag)) {
            let former = plan.revisions.iter().map(|digest| (name.to_owned(), tag.clone(), *digest));
            self.history.extend(former);
        }
        self.tags.extend(plan.tags.into_iter().map(|tag| (name.to_owned(), tag)));
        self.revisions.extend(plan.revisions.into_iter().map(|digest| (name.to_owned(), digest)));
        self.layers.extend(plan.layers.into_iter().map(|digest| (name.to_owned(), digest)));
    }
}

/// Returns all manifests of the record, including those whose links an interrupted run removed.
fn recorded_manifests(record: &Record) -> BTreeSet<Digest> {
    let manifests = record.images.iter().flat_map(|image| &image.manifests).chain(&record.retired);
    manifests.map(|manifest| manifest.digest).collect()
}

/// Returns the blobs of the `removed` manifests that are in the storage and not used otherwise; manifests
/// last.
fn unused_blobs(
    removed: &BTreeSet<Digest>,
    in_use: &HashSet<Digest>,
    manifests: &Manifests,
) -> Result<Vec<Blob>, PruneError> {
    let mut digests = BTreeSet::new();
    for digest in removed {
        digests.insert(*digest);
        digests.extend(manifests.blobs(*digest)?.unwrap_or_default());
    }
    let mut unused = Vec::new();
    for digest in digests {
        if in_use.contains(&digest) || manifests.kept.blobs.contains_key(&digest) {
            continue;
        }
        if let Some(size) = manifests.storage.size(digest)? {
            unused.push(Blob { digest, size });
        }
    }
    // The manifests name the other blobs: after an interrupted run, the next one finds these through them.
    unused.sort_by_key(|blob| removed.contains(&blob.digest));
    Ok(unused)
}

/// Returns the name of an image on the site.
fn site_name(repository: &str, image: &RecordedImage) -> String {
    match (&image.tag, image.digest()) {
        (Some(tag), _) => format!("{repository}:{tag}"),
        (None, Some(digest)) => format!("{repository}@{digest}"),
        (None, None) => repository.to_owned(),
    }
}
