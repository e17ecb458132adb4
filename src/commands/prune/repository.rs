//! [`RepositoryPlan`]: the links of one repository that are removed, and the blobs that it still needs.

use std::collections::{BTreeSet, HashSet};

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::commands::prune::error::PruneError;
use crate::commands::prune::kept::Kept;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::site::record::{Record, RecordedImage, RecordedManifest};
use crate::site::scan::{Repository, Storage};

#[derive(Default)]
pub(super) struct RepositoryPlan {
    /// Tags to remove.
    pub(super) tags: Vec<String>,
    /// Manifests whose links are removed.
    pub(super) revisions: BTreeSet<Digest>,
    /// Configs and layers whose links are removed.
    pub(super) layers: BTreeSet<Digest>,
    /// Recorded manifests that this repository does not need any more.
    pub(super) manifests: BTreeSet<Digest>,
    /// The manifests that remain, with their configs and layers.
    pub(super) needed: HashSet<Digest>,
}

impl RepositoryPlan {
    /// True if nothing is removed.
    pub(super) fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.revisions.is_empty() && self.layers.is_empty()
    }
}

/// The manifests of a site: parsed ones of kept bundles, and those in the storage.
pub(super) struct Manifests<'a> {
    pub(super) storage: &'a Storage,
    pub(super) kept: &'a Kept<'a>,
}

impl Manifests<'_> {
    /// Returns a manifest; `None`: it cannot be read.
    fn parse(&self, digest: Digest) -> Result<Option<Manifest>, FsError> {
        match self.kept.parsed.get(&digest) {
            Some(manifest) => Ok(Some((*manifest).clone())),
            None => self.storage.manifest(digest),
        }
    }

    /// Returns the config and the layers of a manifest; `None`: it cannot be read.
    pub(super) fn blobs(&self, digest: Digest) -> Result<Option<Vec<Digest>>, FsError> {
        Ok(self.parse(digest)?.map(|manifest| match manifest {
            Manifest::Index(_) => Vec::new(),
            Manifest::Image { config, layers } => {
                std::iter::once(config).chain(layers).map(|blob| blob.digest).collect()
            }
        }))
    }
}

/// Decides for one repository which links are removed.
pub(super) struct RepositoryPlanner<'a> {
    manifests: &'a Manifests<'a>,
    name: &'a str,
    repository: &'a Repository,
    /// The recorded images of this repository.
    images: Vec<&'a RecordedImage>,
    /// Their manifests.
    recorded: HashSet<Digest>,
    /// Manifests of this repository whose tag moved, in this repository or in another one.
    retired: HashSet<Digest>,
    report: &'a dyn Report,
}

impl<'a> RepositoryPlanner<'a> {
    pub(super) fn new(
        manifests: &'a Manifests,
        name: &'a str,
        repository: &'a Repository,
        record: &'a Record,
        report: &'a dyn Report,
    ) -> Self {
        let digests = |manifests: &'a [RecordedManifest]| manifests.iter().map(|manifest| manifest.digest);
        let images: Vec<_> = record.images.iter().filter(|image| image.repositories.contains(name)).collect();
        let recorded = images.iter().flat_map(|image| digests(&image.manifests)).collect();
        let retired =
            digests(&record.retired).filter(|digest| repository.revisions.contains(digest)).collect();
        Self { manifests, name, repository, images, recorded, retired, report }
    }

    /// Plans the removal. If a remaining manifest cannot be read, only tags are removed.
    pub(super) fn plan(&self) -> Result<RepositoryPlan, PruneError> {
        let (tags, pushed) = self.tags();
        let remaining = self.remaining(pushed)?;
        let mut plan = RepositoryPlan { tags, ..RepositoryPlan::default() };
        let mut unreadable = BTreeSet::new();
        for digest in &remaining {
            plan.needed.insert(*digest);
            match self.manifests.blobs(*digest)? {
                Some(blobs) => plan.needed.extend(blobs),
                None if self.repository.revisions.contains(digest) => drop(unreadable.insert(*digest)),
                None => {}
            }
        }
        if let Some(digest) = unreadable.first() {
            self.warn(format!(
                "cannot read the manifest `{}@{digest}`: only tags are removed from its repository, since the \
                 blobs it needs are unknown",
                self.name
            ));
            plan.needed.extend(&self.repository.named);
            return Ok(plan);
        }
        let ours = self.recorded.union(&self.retired);
        plan.manifests = ours.filter(|digest| !remaining.contains(digest)).copied().collect();
        for digest in &plan.manifests {
            let blobs = self.manifests.blobs(*digest)?.unwrap_or_default().into_iter();
            let is_removed =
                |blob: &Digest| self.repository.layers.contains(blob) && !plan.needed.contains(blob);
            plan.layers.extend(blobs.filter(is_removed));
        }
        plan.revisions = plan.manifests.intersection(&self.repository.revisions).copied().collect();
        Ok(plan)
    }

    /// Returns the tags to remove, and the manifests that other clients pushed.
    fn tags(&self) -> (Vec<String>, BTreeSet<Digest>) {
        let is_ours = |digest: &Digest| self.recorded.contains(digest) || self.retired.contains(digest);
        let mut pushed: BTreeSet<Digest> =
            self.repository.revisions.iter().filter(|digest| !is_ours(digest)).copied().collect();
        let mut removed = Vec::new();
        for (tag, current) in &self.repository.tags {
            let mut recorded =
                self.images.iter().filter(|image| image.tag.as_deref() == Some(tag.as_str())).peekable();
            let is_recorded = recorded.peek().is_some();
            match recorded.find(|image| current.is_none() || image.digest() == *current) {
                Some(image) => removed.extend((!self.manifests.kept.has(image)).then(|| tag.clone())),
                None => pushed.extend(*current),
            }
            if is_recorded && current.is_some_and(|digest| pushed.contains(&digest)) {
                let name = self.name;
                self.warn(format!("`{name}:{tag}` does not match the record: kept, with all blobs it needs"));
            }
        }
        (removed, pushed)
    }

    /// Returns the manifests that remain: those that other clients pushed, with the children of indexes, and
    /// those of kept bundles.
    fn remaining(&self, pushed: BTreeSet<Digest>) -> Result<HashSet<Digest>, PruneError> {
        let kept = self.manifests.kept;
        let mut remaining = HashSet::new();
        let mut queue: Vec<Digest> = pushed.into_iter().collect();
        while let Some(digest) = queue.pop() {
            if remaining.insert(digest)
                && let Some(Manifest::Index(children)) = self.manifests.parse(digest)?
            {
                let children = children.iter().map(|child| child.digest);
                queue.extend(children.filter(|child| self.repository.revisions.contains(child)));
            }
        }
        let of_images = self.images.iter().filter(|image| kept.has(image)).flat_map(|image| &image.manifests);
        let ours = of_images.map(|manifest| manifest.digest).chain(self.retired.iter().copied());
        remaining.extend(ours.filter(|digest| kept.manifests.contains(digest)));
        Ok(remaining)
    }

    fn warn(&self, message: String) {
        self.report.event(&Event::Warning { message });
    }
}
