//! [`PrunePlan`]: what goes, and what stays because something else needs it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::path::RelPath;
use crate::bundle::format::layout::{Blob, BundledImage, Layout};
use crate::bundle::read::reader::Contents;
use crate::commands::prune::error::PruneError;
use crate::commands::prune::summary::PruneSummary;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::reference::DEFAULT_PREFIX;
use crate::site::record::{Record, RecordedFile, RecordedImage, RecordedManifest};
use crate::site::root::Root;
use crate::site::scan::{Repositories, Repository, Storage};

/// What goes; see the module.
pub(super) struct PrunePlan {
    /// The tags, each with its repository.
    pub(super) tags: Vec<(String, String)>,
    /// The links of manifests, likewise, …
    pub(super) revisions: Vec<(String, Digest)>,
    /// … and of configs and layers.
    pub(super) layers: Vec<(String, Digest)>,
    /// What tags that stay have been before: repository, tag, manifest.
    pub(super) history: Vec<(String, String, Digest)>,
    /// The repositories out of which something goes.
    pub(super) repositories: BTreeSet<String>,
    /// The blobs, manifests last, as far as no link names them when the links above have gone.
    pub(super) blobs: Vec<Blob>,
    /// The files that are there.
    pub(super) files: Vec<RelPath>,
    /// The paths of all files that go: of some there may be nothing left but their directories.
    pub(super) paths: Vec<RelPath>,
    /// What the record is to say.
    pub(super) record: Record,
    images: Vec<String>,
    file_bytes: u64,
}

/// What the kept bundles name.
struct Wanted<'a> {
    /// By reference and digest.
    images: HashMap<(String, Digest), Vec<(&'a Layout, &'a BundledImage)>>,
    /// By path below the root of the files.
    files: HashMap<String, HashSet<Digest>>,
    /// Manifests, configs and layers.
    blobs: HashMap<Digest, u64>,
    parsed: HashMap<Digest, &'a Manifest>,
    manifests: HashSet<Digest>,
    identities: HashSet<Digest>,
}

impl PrunePlan {
    pub(super) fn new(
        record: &Record,
        kept: &[Contents],
        storage: Option<&Storage>,
        files: Option<&Root>,
        repositories: &Repositories,
        report: &dyn Report,
    ) -> Result<Self, PruneError> {
        let kept: Vec<(Digest, Layout)> =
            kept.iter().map(|contents| (contents.identity, unpacked(contents, record))).collect();
        let wanted = Wanted::of(&kept);
        wanted.compare(record, storage, files)?;
        let mut plan = Self {
            tags: Vec::new(),
            revisions: Vec::new(),
            layers: Vec::new(),
            history: Vec::new(),
            repositories: BTreeSet::new(),
            blobs: Vec::new(),
            files: Vec::new(),
            paths: Vec::new(),
            record: wanted.prune_record(record, storage),
            images: Vec::new(),
            file_bytes: 0,
        };
        plan.find_files(record, files, report)?;
        for image in record.images.iter().filter(|image| !wanted.has(image)) {
            plan.images.extend(image.repositories.iter().map(|repository| name(repository, image)));
        }
        if let Some(storage) = storage {
            plan.find_blobs(record, &wanted, storage, &repositories.by_name, report)?;
        }
        Ok(plan)
    }

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

    fn find_files(
        &mut self,
        record: &Record,
        files: Option<&Root>,
        report: &dyn Report,
    ) -> Result<(), PruneError> {
        let stays: HashSet<&str> = self.record.files.iter().map(|file| file.path.as_str()).collect();
        for file in record.files.iter().filter(|file| !stays.contains(file.path.as_str())) {
            let RecordedFile { path, size, .. } = file;
            let (Some(root), Ok(path)) = (files, RelPath::parse(path)) else { continue };
            self.paths.push(path.clone());
            let Some(found) = root.existing(&path)? else { continue };
            let meta = found.metadata().map_err(FsError::at("open", root.path(&path)))?;
            if meta.len() == *size {
                self.file_bytes += size;
                self.files.push(path);
            } else {
                let path = root.path(&path);
                let message = format!("`{}` is not what was unpacked there: it stays", path.display());
                report.event(&Event::Warning { message });
            }
        }
        Ok(())
    }

    fn find_blobs(
        &mut self,
        record: &Record,
        wanted: &Wanted,
        storage: &Storage,
        repositories: &BTreeMap<String, Repository>,
        report: &dyn Report,
    ) -> Result<(), PruneError> {
        let manifests = Manifests { storage, wanted };
        let known: BTreeSet<&String> = record.images.iter().flat_map(|image| &image.repositories).collect();
        let mut named: HashSet<Digest> = HashSet::new();
        // Also those whose links have gone already, in a run that was killed.
        let recorded = record.images.iter().flat_map(|image| &image.manifests).chain(&record.retired);
        let recorded = recorded.map(|manifest| manifest.digest);
        let mut gone_manifests: BTreeSet<Digest> =
            recorded.filter(|digest| !wanted.manifests.contains(digest)).collect();
        // Of some a run that was killed has left nothing but the directory.
        let is_left = |name: &&&String| !repositories.contains_key(**name) && RelPath::parse(name).is_ok();
        self.repositories.extend(known.iter().filter(is_left).map(|name| (*name).clone()));
        for (name, repository) in repositories {
            if !known.contains(name) {
                named.extend(&repository.named);
                continue;
            }
            let part = manifests.part(name, &Ours::of(name, record), repository, report)?;
            let links = repository.revisions.union(&repository.layers).copied().collect();
            named.extend(repository.named.difference(&links));
            named.extend(repository.revisions.difference(&part.revisions));
            named.extend(repository.layers.difference(&part.layers));
            named.extend(&part.needed);
            gone_manifests.extend(&part.manifests);
            let is_empty = repository.named.is_empty() && repository.tags.is_empty();
            if !part.is_nothing() || is_empty {
                self.repositories.insert(name.clone());
            }
            for tag in repository.tags.keys().filter(|tag| !part.tags.contains(tag)) {
                let before = part.revisions.iter().map(|digest| (name.clone(), tag.clone(), *digest));
                self.history.extend(before);
            }
            self.tags.extend(part.tags.into_iter().map(|tag| (name.clone(), tag)));
            self.revisions.extend(part.revisions.into_iter().map(|digest| (name.clone(), digest)));
            self.layers.extend(part.layers.into_iter().map(|digest| (name.clone(), digest)));
        }
        // All that belongs to what goes.
        let mut gone = BTreeSet::new();
        for digest in &gone_manifests {
            gone.insert(*digest);
            gone.extend(manifests.blobs(*digest)?.unwrap_or_default());
        }
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for digest in gone {
            if named.contains(&digest) || wanted.blobs.contains_key(&digest) {
                continue;
            }
            if let Some(size) = storage.size(digest)? {
                let is_manifest = gone_manifests.contains(&digest);
                if is_manifest { &mut last } else { &mut first }.push(Blob { digest, size });
            }
        }
        self.blobs = [first, last].concat();
        Ok(())
    }
}

impl<'a> Wanted<'a> {
    fn of(kept: &'a [(Digest, Layout)]) -> Self {
        let mut wanted = Self {
            images: HashMap::new(),
            files: HashMap::new(),
            blobs: HashMap::new(),
            parsed: HashMap::new(),
            manifests: HashSet::new(),
            identities: HashSet::new(),
        };
        for (identity, layout) in kept {
            wanted.identities.insert(*identity);
            for image in &layout.images {
                let key = (image.indexed.reference.to_string(), image.indexed.digest);
                wanted.images.entry(key).or_default().push((layout, image));
                let blobs = image.manifests.iter().copied().chain(layout.blobs_of(image));
                wanted.blobs.extend(blobs.map(|blob| (blob.digest, blob.size)));
                wanted.manifests.extend(image.manifests.iter().map(|manifest| manifest.digest));
            }
            wanted.parsed.extend(layout.parsed.iter().map(|(digest, manifest)| (*digest, manifest)));
            for file in &layout.files {
                wanted
                    .files
                    .entry(format!("{DEFAULT_PREFIX}/{}", file.path))
                    .or_default()
                    .insert(file.digest);
            }
        }
        wanted
    }

    fn has(&self, image: &RecordedImage) -> bool {
        image.digest().is_some_and(|digest| self.images.contains_key(&(image.reference.clone(), digest)))
    }

    /// Fails unless every name means what one of the bundles says that it does, and all of it is there.
    fn compare(
        &self,
        record: &Record,
        storage: Option<&Storage>,
        files: Option<&Root>,
    ) -> Result<(), PruneError> {
        let mut problems = BTreeSet::new();
        let references: HashSet<&str> =
            record.images.iter().filter(|image| self.has(image)).map(|image| &*image.reference).collect();
        for (reference, _) in self.images.keys().filter(|(reference, _)| !references.contains(&**reference)) {
            let is_there = record.images.iter().any(|image| image.reference == *reference);
            problems.insert(problem(reference, is_there));
        }
        let recorded: HashMap<&str, Digest> =
            record.files.iter().map(|file| (file.path.as_str(), file.digest)).collect();
        for (path, digests) in &self.files {
            let parsed = RelPath::parse(path).ok();
            let is_there = match (files, parsed) {
                (Some(root), Some(path)) => root.existing(&path)?.is_some(),
                _ => false,
            };
            let is_right = recorded.get(path.as_str()).is_some_and(|digest| digests.contains(digest));
            if !is_there || !is_right {
                problems.insert(problem(path, is_there));
            }
        }
        if problems.is_empty() {
            for (digest, size) in &self.blobs {
                if storage.map(|storage| storage.size(*digest)).transpose()?.flatten() != Some(*size) {
                    problems.insert(format!("the blob `{digest}` is not there"));
                }
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(PruneError::Mismatch(problems.into_iter().collect())) }
    }

    /// What the record says when all is gone.
    fn prune_record(&self, record: &Record, storage: Option<&Storage>) -> Record {
        let mut pruned = record.clone();
        pruned.bundles.retain(|bundle| self.identities.contains(&bundle.identity));
        pruned.files.retain(|file| self.files.contains_key(&file.path));
        pruned.retired.retain(|manifest| self.manifests.contains(&manifest.digest));
        pruned.images.retain_mut(|image| {
            let Some(digest) = image.digest() else { return false };
            let Some(kept) = self.images.get(&(image.reference.clone(), digest)) else { return false };
            let names = |digest| {
                kept.iter().any(|(_, image)| image.manifests.iter().any(|manifest| manifest.digest == digest))
            };
            let before = image.manifests.len();
            image.manifests.retain(|manifest| names(manifest.digest));
            // Another bundle had more platforms of it.
            if image.manifests.len() < before {
                let config = |digest| storage?.read(digest).ok().flatten();
                let platforms = kept.iter().flat_map(|(layout, image)| layout.platforms(image, config));
                image.platforms = platforms.collect::<BTreeSet<_>>().into_iter().collect();
                let blobs = kept.iter().flat_map(|(layout, image)| {
                    image.manifests.iter().copied().chain(layout.blobs_of(image))
                });
                let blobs: HashMap<Digest, u64> = blobs.map(|blob| (blob.digest, blob.size)).collect();
                image.size = blobs.values().sum();
            }
            true
        });
        pruned
    }
}

/// What a bundle names, without what was not asked for when it was unpacked, or could not be read.
fn unpacked(contents: &Contents, record: &Record) -> Layout {
    let mut layout = contents.layout.clone();
    let bundle = record.bundles.iter().find(|bundle| bundle.identity == contents.identity);
    if bundle.is_none_or(|bundle| !bundle.partial) {
        return layout;
    }
    layout.images.retain_mut(|image| {
        let reference = image.indexed.reference.to_string();
        let mut known = record.images.iter().filter(|known| known.reference == reference).peekable();
        let is_known = known.peek().is_some();
        if let Some(known) = known.find(|known| known.digest() == Some(image.indexed.digest)) {
            let is_there = |digest| known.manifests.iter().any(|manifest| manifest.digest == digest);
            image.manifests.retain(|manifest| is_there(manifest.digest));
        }
        is_known
    });
    let paths: HashSet<&str> = record.files.iter().map(|file| file.path.as_str()).collect();
    layout.files.retain(|file| paths.contains(format!("{DEFAULT_PREFIX}/{}", file.path).as_str()));
    layout
}

fn problem(name: &str, is_there: bool) -> String {
    let what = if is_there { "is something else there" } else { "is not there" };
    format!("`{name}` {what}")
}

/// How an image is called on the site.
fn name(repository: &str, image: &RecordedImage) -> String {
    match (&image.tag, image.digest()) {
        (Some(tag), _) => format!("{repository}:{tag}"),
        (None, Some(digest)) => format!("{repository}@{digest}"),
        (None, None) => repository.to_owned(),
    }
}

/// What the record says of a repository.
struct Ours<'a> {
    images: Vec<&'a RecordedImage>,
    /// Their manifests.
    recorded: HashSet<Digest>,
    /// Manifests that tags have meant before, in this repository or in another one.
    retired: HashSet<Digest>,
}

impl<'a> Ours<'a> {
    fn of(repository: &str, record: &'a Record) -> Self {
        let images: Vec<_> =
            record.images.iter().filter(|image| image.repositories.contains(repository)).collect();
        let digests = |manifests: &[RecordedManifest]| -> Vec<Digest> {
            manifests.iter().map(|manifest| manifest.digest).collect()
        };
        let recorded = images.iter().flat_map(|image| digests(&image.manifests)).collect();
        Self { recorded, retired: digests(&record.retired).into_iter().collect(), images }
    }
}

/// What becomes of a repository.
#[derive(Default)]
struct Part {
    tags: Vec<String>,
    revisions: BTreeSet<Digest>,
    layers: BTreeSet<Digest>,
    /// What goes with these links, unless something else names it.
    manifests: BTreeSet<Digest>,
    /// What stays, and all that needs.
    needed: HashSet<Digest>,
}

impl Part {
    fn is_nothing(&self) -> bool {
        self.tags.is_empty() && self.revisions.is_empty() && self.layers.is_empty()
    }
}

/// The manifests of the site: those of kept bundles are at hand, all others are in its storage.
struct Manifests<'a> {
    storage: &'a Storage,
    wanted: &'a Wanted<'a>,
}

impl Manifests<'_> {
    fn part(
        &self,
        name: &str,
        ours: &Ours,
        repository: &Repository,
        report: &dyn Report,
    ) -> Result<Part, PruneError> {
        let mut part = Part::default();
        // What is not ours stays, with all that it names; …
        let is_recorded = |digest: &&Digest| ours.recorded.contains(digest) || ours.retired.contains(digest);
        let mut foreign: Vec<Digest> =
            repository.revisions.iter().filter(|digest| !is_recorded(digest)).copied().collect();
        for (tag, current) in &repository.tags {
            let mut known = ours.images.iter().filter(|image| image.tag.as_ref() == Some(tag)).peekable();
            let is_known = known.peek().is_some();
            match known.find(|image| current.is_none() || image.digest() == *current) {
                Some(image) => part.tags.extend((!self.wanted.has(image)).then(|| tag.clone())),
                None => foreign.extend(*current),
            }
            if is_known && current.is_some_and(|digest| foreign.contains(&digest)) {
                let message =
                    format!("`{name}:{tag}` is not what was unpacked: it stays, with all that it needs");
                report.event(&Event::Warning { message });
            }
        }
        let (mut stays, mut seen) = (HashSet::new(), HashSet::new());
        while let Some(digest) = foreign.pop() {
            stays.insert(digest);
            if seen.insert(digest)
                && let Some(Manifest::Index(children)) = self.parse(digest)?
            {
                let children = children.iter().map(|child| child.digest);
                foreign.extend(children.filter(|child| repository.revisions.contains(child)));
            }
        }
        // … of what is ours, what a kept bundle has of it.
        for image in ours.images.iter().filter(|image| self.wanted.has(image)) {
            let manifests = image.manifests.iter().map(|manifest| manifest.digest);
            stays.extend(manifests.filter(|digest| self.wanted.manifests.contains(digest)));
        }
        // What a tag has meant before is still there for who knows its digest.
        let retired = ours.retired.iter().filter(|digest| repository.revisions.contains(digest));
        stays.extend(retired.clone().filter(|digest| self.wanted.manifests.contains(digest)));

        for digest in &stays {
            part.needed.insert(*digest);
            match self.blobs(*digest)? {
                Some(blobs) => part.needed.extend(blobs),
                None if repository.revisions.contains(digest) => {
                    let message = format!(
                        "`{name}@{digest}` cannot be read: nothing but tags is removed from its repository, as nobody \
                         knows what it needs"
                    );
                    report.event(&Event::Warning { message });
                    part.needed.extend(&repository.named);
                    return Ok(part);
                }
                None => {}
            }
        }
        let ours = ours.recorded.iter().chain(retired);
        part.manifests = ours.filter(|digest| !stays.contains(digest)).copied().collect();
        for digest in &part.manifests {
            let blobs = self.blobs(*digest)?.unwrap_or_default().into_iter();
            let links = blobs.filter(|blob| repository.layers.contains(blob) && !part.needed.contains(blob));
            part.layers.extend(links);
        }
        part.revisions = part.manifests.intersection(&repository.revisions).copied().collect();
        Ok(part)
    }

    fn parse(&self, digest: Digest) -> Result<Option<Manifest>, FsError> {
        match self.wanted.parsed.get(&digest) {
            Some(manifest) => Ok(Some((*manifest).clone())),
            None => self.storage.manifest(digest),
        }
    }

    /// The config and the layers of a manifest; nothing where it cannot be read.
    fn blobs(&self, digest: Digest) -> Result<Option<Vec<Digest>>, FsError> {
        Ok(self.parse(digest)?.map(|manifest| match manifest {
            Manifest::Index(_) => Vec::new(),
            Manifest::Image { config, layers } => {
                std::iter::once(config).chain(layers).map(|blob| blob.digest).collect()
            }
        }))
    }
}
