//! [`BundlePlan`]: the contents of a bundle in their order, and the source of each blob.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use crate::bundle::format::index::{BundleInfo, EMPTY_CONFIG, FileSet, Index, IndexedFile, IndexedImage};
use crate::bundle::format::layout::{Blob, Layout, LayoutError, empty_config};
use crate::bundle::format::manifest_walk::ManifestWalk;
use crate::bundle::format::skippable::SKIPPABLE_LIMIT;
use crate::bundle::format::{INDEX_LIMIT, MANIFESTS_LIMIT, SIGNATURE_SPACE};
use crate::bundle::write::head::{BundleHead, header_space};
use crate::bundle::write::partial::ExpectedEntry;
use crate::bundle::write::spool::{Notes, SpoolKey};
use crate::bundle::write::volume_writer::VolumeOptions;
use crate::documents::list::{Checksum, FileEntry, source_url};
use crate::documents::lock::Lock;
use crate::fetch::queue::Task;
use crate::fetch::resolve::{Resolved, ResolvedImage};
use crate::fetch::source::Source;
use crate::fetch::web::RemoteFile;
use crate::net::error::{FetchError, FetchProblem};
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, Manifest, config_platform};
use crate::plan::site_contents::SiteContents;
use crate::plan::tags::{TagConflict, check_tags};

/// The contents of a bundle before anything is fetched.
///
/// The digest of a file without a sha256 in its list is known only after its last byte. Until then the file
/// is *pending*: layout and file set have a placeholder digest for it, which is random, so that no server can
/// state it in a manifest. The plan itself never changes; [`BundlePlan::complete`] replaces the placeholders.
pub(crate) struct BundlePlan {
    about: BundleInfo,
    /// The order of the bundle.
    pub(crate) layout: Layout,
    /// The content of all manifests.
    pub(crate) manifests: HashMap<Digest, Vec<u8>>,
    /// The manifests that needed no request.
    pub(crate) known: HashSet<Digest>,
    pub(crate) files: FileSet,
    /// The blobs after the manifests, in the order of the layout, without external ones.
    pub(crate) blobs: Vec<PlannedBlob>,
}

/// A blob to be written.
pub(crate) struct PlannedBlob {
    /// Digest and size. Of a pending blob, the digest is a placeholder unless a list pins it, and the size is
    /// 0 if unknown.
    pub(crate) blob: Blob,
    /// Index of the blob among the pending ones. Tar headers of large pending blobs are written last. `None`:
    /// digest and size are known.
    pub(crate) pending: Option<u64>,
    pub(crate) origin: BlobOrigin,
}

/// The source of a blob's content.
pub(crate) enum BlobOrigin {
    Memory(Vec<u8>),
    Network(Box<Task>),
}

/// Digest and size of fetched pending blobs, by the digest that the plan has for them.
pub(crate) type FetchedBlobs = HashMap<Digest, Blob>;

/// A plan whose pending files are fetched.
pub(crate) struct CompletePlan<'a> {
    plan: &'a BundlePlan,
    files: FileSet,
}

/// An error while planning a bundle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// Manifests contradict each other.
    #[error("inconsistent manifests")]
    Layout(#[source] LayoutError),
    /// The bundle would exceed a limit of the format.
    #[error("the bundle would have {0}, more than the limit of {1}: split the lists into several bundles")]
    Limit(&'static str, u64),
    /// A tag names two images.
    #[error(transparent)]
    Tags(#[from] TagConflict),
}

impl From<LayoutError> for PlanError {
    fn from(error: LayoutError) -> Self {
        match error {
            LayoutError::Limit(what, limit) => Self::Limit(what, limit),
            error => Self::Layout(error),
        }
    }
}

impl BundlePlan {
    /// Plans a bundle of `resolved`. Blobs in `base` become external, except pending files.
    pub(crate) fn new(resolved: Resolved, about: BundleInfo, base: &SiteContents) -> Result<Self, PlanError> {
        let images: Vec<_> = resolved.images.iter().map(|image| image.indexed.clone()).collect();
        check_tags(&images)?;
        let layout = |files: &FileSet, external: &BTreeSet<Digest>| {
            layout(&images, files, &resolved.manifests, external)
        };
        let of_images = layout(&FileSet::default(), &BTreeSet::new())?;
        let files = file_set(&resolved.files, &of_images, base);
        let external = external_digests(&of_images, &files, &resolved.files, base);
        let layout = layout(&files, &external)?;
        let blobs = planned_blobs(&layout, &resolved, &files);
        Ok(Self { about, layout, manifests: resolved.manifests, known: resolved.known, files, blobs })
    }

    /// Returns the manifests of images; the file set is part of the header.
    pub(crate) fn image_manifests(&self) -> &[Blob] {
        &self.layout.manifests[usize::from(!self.files.files.is_empty())..]
    }

    /// Returns the blobs that the bundle references and omits, as the site has them.
    pub(crate) fn external(&self) -> &[Blob] {
        &self.layout.external
    }

    pub(crate) fn pending_count(&self) -> u64 {
        self.blobs.iter().filter(|planned| planned.pending.is_some()).count() as u64
    }

    /// Returns the spool keys of all blobs after the first `done` entries.
    pub(crate) fn keys(&self, done: usize) -> HashSet<SpoolKey> {
        let blobs = self.blobs.iter().skip(done.saturating_sub(self.image_manifests().len()));
        blobs.filter_map(PlannedBlob::key).collect()
    }

    /// Returns the spool key of the entry with this number; manifests are counted.
    pub(crate) fn key(&self, number: usize) -> Option<SpoolKey> {
        self.blobs.get(number.checked_sub(self.image_manifests().len())?)?.key()
    }

    /// Returns the identity of the bytes this plan writes. A partial bundle with the same fingerprint is a
    /// prefix of this bundle, and is resumed.
    ///
    /// Partial bundles of earlier versions depend on every byte of the hashed text.
    pub(crate) fn fingerprint(&self, header_space: u64, level: i32, volumes: VolumeOptions) -> Digest {
        let zstd = zstd::zstd_safe::version_number();
        let version = env!("CARGO_PKG_VERSION");
        let mut text = format!("airbundle {version} zstd {zstd} level {level} room {header_space}\n");
        let _ = writeln!(text, "volumes {:?} recovery {:?}", volumes.volume_size, volumes.recovery);
        for blob in self.image_manifests() {
            let _ = writeln!(text, "{} {}", blob.digest, blob.size);
        }
        self.write_external(&mut text);
        for planned in &self.blobs {
            let _ = match (planned.key(), planned.task()) {
                (Some(key), _) => writeln!(text, "{key} {}", planned.blob.size),
                // A placeholder differs in each run.
                (None, Some(task)) if planned.pending.is_some() => {
                    writeln!(text, "pending {} {}", task.object, planned.blob.size)
                }
                (None, _) => writeln!(text, "{} {}", planned.blob.digest, planned.blob.size),
            };
        }
        Digest::of(text.as_bytes())
    }

    /// Returns the set ID in the labels of volumes. It depends only on what is known before the first file is
    /// fetched, and is the same for a list and its lock.
    pub(crate) fn volume_set_id(
        &self,
        header_space: u64,
        level: i32,
        volume_size: Option<u64>,
        recovery: Option<u32>,
    ) -> Digest {
        let mut text =
            format!("volumes {volume_size:?} recovery {recovery:?} level {level} room {header_space}\n");
        for blob in self.image_manifests() {
            let _ = writeln!(text, "{}", blob.digest);
        }
        for file in &self.files.files {
            let _ = writeln!(text, "{}", file.url.entry_name(&file.path));
        }
        self.write_external(&mut text);
        Digest::of(text.as_bytes())
    }

    fn write_external(&self, text: &mut String) {
        for blob in self.external() {
            let _ = writeln!(text, "elsewhere {}", blob.digest);
        }
    }

    /// Returns all entries after the header, with the digests of pending files that an earlier run noted.
    pub(crate) fn expected(&self, notes: &Notes) -> Vec<ExpectedEntry> {
        let manifests = self.image_manifests().iter().map(|blob| ExpectedEntry {
            blob: Some(*blob),
            is_late: false,
            is_manifest: true,
            sha512: None,
        });
        let known = |number: u64| {
            let (digest, size) = (*notes.files.get(usize::try_from(number).ok()?)?)?;
            Some(Blob { digest, size })
        };
        let blobs = self.blobs.iter().map(|planned| ExpectedEntry {
            blob: planned.pending.map_or(Some(planned.blob), known),
            is_late: planned.pending.is_some(),
            is_manifest: false,
            sha512: planned.task().and_then(|task| task.sha512),
        });
        manifests.chain(blobs).collect()
    }

    /// Returns the reserved header space in bytes: enough for any sizes of pending files, and for a signature
    /// if there will be one.
    pub(crate) fn header_space(&self, is_signed: bool) -> Result<u64, PlanError> {
        let mut files = self.files.clone();
        files.files.iter_mut().for_each(|file| file.size = u64::MAX);
        let files = (!files.files.is_empty()).then(|| files.to_json().len());
        let mut index = self.index();
        index.files = files.map(|_| (Digest::of(b""), u64::MAX));
        let manifests = self.image_manifests().iter().map(|blob| blob.size).sum();
        let space = checked_header_space(index.to_json().len(), files, manifests)?;
        Ok(if is_signed { space + SIGNATURE_SPACE } else { space })
    }

    /// Returns `index.json` without the file set.
    fn index(&self) -> Index {
        let images = self.layout.images.iter().map(|image| image.indexed.clone()).collect();
        let elsewhere = self.external().iter().map(|blob| blob.digest).collect();
        Index { files: None, images, about: self.about.clone(), external: elsewhere }
    }

    /// Returns the images and files that need a blob with this digest in the plan.
    pub(crate) fn owners(&self, digest: Digest) -> Owners {
        let needs = |blob: &Blob| blob.digest == digest;
        let images = self.layout.images.iter().filter(|image| {
            image.manifests.iter().any(needs) || self.layout.blobs_of(image).iter().any(needs)
        });
        let files = self.files.files.iter().filter(|file| file.digest == digest);
        Owners {
            images: images.map(|image| image.indexed.reference.to_string()).collect(),
            files: files.map(|file| file.path.to_string()).collect(),
        }
    }

    /// Returns the image configs of the plan, by digest.
    pub(crate) fn configs(&self) -> HashMap<Digest, &Descriptor> {
        let manifests = self.layout.parsed.values().filter_map(|manifest| match manifest {
            Manifest::Image { config, .. } => Some(config),
            Manifest::Index(_) => None,
        });
        manifests.filter(|config| config.states_platform()).map(|config| (config.digest, config)).collect()
    }

    /// Fails if the platform in `config`, whose bytes are `bytes`, is invalid.
    pub(crate) fn check_config(&self, config: &Descriptor, bytes: &[u8]) -> Result<(), FetchError> {
        let Err(error) = config_platform(&config.media_type, bytes) else { return Ok(()) };
        let digest = config.digest;
        let image = self.layout.owners(&[digest].into()).remove(&digest).and_then(|mut all| all.pop());
        Err(FetchError::new(image.unwrap_or_default(), FetchProblem::Config { digest, error }))
    }

    /// Returns the lock of the images.
    pub(crate) fn lock_of_images(&self) -> Lock {
        Lock::of(&self.layout, &[], &self.manifests)
    }

    /// Replaces the placeholders of pending files by their `fetched` digests and sizes.
    pub(crate) fn complete(&self, fetched: &FetchedBlobs) -> CompletePlan<'_> {
        let mut files = self.files.clone();
        for file in &mut files.files {
            if let Some(blob) = fetched.get(&file.digest) {
                (file.digest, file.size) = (blob.digest, blob.size);
            }
        }
        CompletePlan { plan: self, files }
    }
}

impl CompletePlan<'_> {
    pub(crate) fn file_count(&self) -> usize {
        self.files.files.len()
    }

    pub(crate) fn image_count(&self) -> usize {
        self.plan.layout.images.len()
    }

    pub(crate) fn external(&self) -> &[Blob] {
        self.plan.external()
    }

    pub(crate) fn head(&self) -> BundleHead {
        let files = (!self.files.files.is_empty()).then(|| self.files.to_json());
        let mut index = self.plan.index();
        index.files = files.as_deref().map(|files| (Digest::of(files), files.len() as u64));
        BundleHead { index: index.to_json(), files, signature: None }
    }

    pub(crate) fn lock(&self) -> Lock {
        Lock::of(&self.plan.layout, &self.files.files, &self.plan.manifests)
    }

    /// Returns the bytes saved by deduplication: the total size of all images and files, less the distinct
    /// `blobs`.
    pub(crate) fn shared_bytes(&self, blobs: &HashMap<Digest, u64>) -> u64 {
        let layout = &self.plan.layout;
        let of_images = layout
            .images
            .iter()
            .flat_map(|image| image.manifests.iter().copied().chain(layout.blobs_of(image)));
        let of_files = self.files.files.iter().map(|file| Blob { digest: file.digest, size: file.size });
        let (mut total, mut distinct) = (0, HashSet::new());
        for blob in of_images.chain(of_files) {
            total += blob.size;
            distinct.insert(blob.digest);
        }
        total - distinct.iter().map(|digest| blobs[digest]).sum::<u64>()
    }
}

impl PlannedBlob {
    fn known(blob: Blob, origin: BlobOrigin) -> Self {
        Self { blob, pending: None, origin }
    }

    /// Returns the download of the blob. `None`: its content is in memory.
    pub(crate) fn task(&self) -> Option<&Task> {
        match &self.origin {
            BlobOrigin::Network(task) => Some(task),
            BlobOrigin::Memory(_) => None,
        }
    }

    /// Returns the spool key. `None`: not spooled.
    pub(crate) fn key(&self) -> Option<SpoolKey> {
        self.task()?.key
    }
}

/// Returns the download of a file. `size` is its size if known, and overrides the server's.
pub(crate) fn file_task(entry: &FileEntry, file: &RemoteFile, size: Option<u64>) -> Task {
    let digest = known_digest(entry, file);
    let sha512 = match &entry.checksum {
        Some(Checksum::Sha512(bytes)) => Some(*bytes),
        _ => None,
    };
    let key = match (digest, sha512, &file.etag) {
        (Some(digest), _, _) => Some(SpoolKey::Blob(digest)),
        (None, Some(sha512), _) => Some(SpoolKey::Version(Digest::of(&sha512))),
        (None, None, Some(etag)) => {
            let version = format!("{} {etag} {:?}", entry.name(), file.size);
            Some(SpoolKey::Version(Digest::of(version.as_bytes())))
        }
        // Nothing distinguishes this version of the file from another one.
        (None, None, None) => None,
    };
    Task {
        object: entry.name(),
        digest,
        sha512,
        size: size.or(file.size),
        source: Source::Web(file.clone()),
        alternatives: Vec::new(),
        begun: None,
        key,
    }
}

/// Returns the download of a blob with this digest. Its sources are those of all its owners: the URLs of the
/// layer, the registries of the images, and the URLs of the files.
fn blob_task(
    images: &[&ResolvedImage],
    files: &[&(FileEntry, RemoteFile)],
    blob: Blob,
    foreign: &HashMap<Digest, Vec<RemoteFile>>,
) -> Task {
    let web = |file: &RemoteFile| Source::Web(file.clone());
    let mut seen = HashSet::new();
    let registries = images.iter().filter(|image| {
        let reference = &image.indexed.reference;
        seen.insert((reference.host(), reference.repository()))
    });
    let registries = registries.map(|image| Source::Registry {
        registry: image.registry.clone(),
        repository: image.indexed.reference.repository().to_owned(),
        digest: blob.digest,
    });
    let layer_urls = foreign.get(&blob.digest).into_iter().flatten().map(web);
    let mut sources = layer_urls.chain(registries).chain(files.iter().map(|(_, file)| web(file)));
    Task {
        object: format!("{} {}", images[0].indexed.reference, short(blob.digest)),
        digest: Some(blob.digest),
        sha512: None,
        size: Some(blob.size),
        source: sources.next().expect("the blob has an owner; please report"),
        alternatives: sources.collect(),
        begun: None,
        key: Some(SpoolKey::Blob(blob.digest)),
    }
}

/// Returns the first digits of a digest, which distinguish layers in messages.
fn short(digest: Digest) -> String {
    digest.hex()[..12].to_owned()
}

/// Returns the digest of a file in its list.
fn pinned(entry: &FileEntry) -> Option<Digest> {
    match &entry.checksum {
        Some(Checksum::Sha256(digest)) => Some(*digest),
        _ => None,
    }
}

/// Returns the digest of a file, by its list or by an older bundle.
fn known_digest(entry: &FileEntry, remote: &RemoteFile) -> Option<Digest> {
    pinned(entry).or(remote.content.map(|blob| blob.digest))
}

/// Placeholder digests of one plan. They are random: a server that knows the list could otherwise state them in
/// a manifest, or serve a blob that has one of them as its digest.
struct Placeholders([u64; 4]);

impl Placeholders {
    /// Manifests that are read afterwards must not be in the plan.
    fn new() -> Self {
        Self(std::array::from_fn(|_| RandomState::new().build_hasher().finish()))
    }

    /// Returns the digest of a file. Entries with the same URL and checksum are one blob.
    fn digest(&self, entry: &FileEntry) -> Digest {
        let checksum = entry.checksum.as_ref().map(ToString::to_string).unwrap_or_default();
        Digest::of(format!("{:?} {} {checksum}", self.0, entry.request_url.reveal()).as_bytes())
    }
}

/// Returns the file set, with placeholder digests for files that no list pins, and size 0 for unknown sizes.
fn file_set(entries: &[(FileEntry, RemoteFile)], images: &Layout, base: &SiteContents) -> FileSet {
    let of_images = images.manifests.iter().chain(&images.blobs);
    let mut sizes: HashMap<Digest, u64> = of_images.map(|blob| (blob.digest, blob.size)).collect();
    // Two URLs can be pinned to the same digest, and only one server may return its size.
    for (entry, remote) in entries {
        if let (Some(digest), Some(size)) = (known_digest(entry, remote), remote.size) {
            sizes.entry(digest).or_insert(size);
        }
    }
    let placeholders = Placeholders::new();
    let files = entries.iter().map(|(entry, remote)| {
        let digest = known_digest(entry, remote).unwrap_or_else(|| placeholders.digest(entry));
        let size = sizes.get(&digest).copied().or(remote.size).or(base.size(digest)).unwrap_or(0);
        IndexedFile { path: entry.path.clone(), url: source_url(&entry.url), digest, size }
    });
    FileSet { files: files.collect() }
}

/// Returns the digests of blobs in `base`. Manifests, pending files and the empty config, which is smaller
/// than its digest, are never external.
fn external_digests(
    images: &Layout,
    files: &FileSet,
    entries: &[(FileEntry, RemoteFile)],
    base: &SiteContents,
) -> BTreeSet<Digest> {
    let manifests: HashSet<Digest> = images.manifests.iter().map(|blob| blob.digest).collect();
    let pinned_files = files.files.iter().zip(entries).filter(|(_, (entry, _))| pinned(entry).is_some());
    let pinned_files = pinned_files.map(|(file, _)| Blob { digest: file.digest, size: file.size });
    let candidates = images.blobs.iter().copied().chain(pinned_files);
    candidates
        .filter(|blob| base.has(*blob) && *blob != empty_config() && !manifests.contains(&blob.digest))
        .map(|blob| blob.digest)
        .collect()
}

/// Returns the order of the bundle. All manifests are known, so the walk never stops.
pub(super) fn layout(
    images: &[IndexedImage],
    files: &FileSet,
    manifests: &HashMap<Digest, Vec<u8>>,
    external: &BTreeSet<Digest>,
) -> Result<Layout, LayoutError> {
    let file_set = files.to_json();
    let mut index = Index { images: images.to_vec(), external: external.clone(), ..Index::default() };
    if !files.files.is_empty() {
        index.files = Some((Digest::of(&file_set), file_set.len() as u64));
    }
    let index_size = index.to_json().len() as u64;
    let mut walk = ManifestWalk::new(index)?;
    while let Some(next) = walk.next_manifest()? {
        walk.supply(manifests.get(&next.blob.digest).unwrap_or(&file_set))?;
    }
    walk.finish(index_size)
}

/// Returns the blobs of `layout` with their sources. `files` and `resolved.files` are in the same order.
fn planned_blobs(layout: &Layout, resolved: &Resolved, files: &FileSet) -> Vec<PlannedBlob> {
    let mut images: HashMap<Digest, Vec<&ResolvedImage>> = HashMap::new();
    for (image, source) in layout.images.iter().zip(&resolved.images) {
        for blob in layout.blobs_of(image) {
            images.entry(blob.digest).or_default().push(source);
        }
    }
    let mut remote_files: HashMap<Digest, Vec<&(FileEntry, RemoteFile)>> = HashMap::new();
    for (file, entry) in files.files.iter().zip(&resolved.files) {
        remote_files.entry(file.digest).or_default().push(entry);
    }
    let mut pending = 0..;
    let plan = |blob: Blob| {
        let files: &[_] = remote_files.get(&blob.digest).map_or(&[], Vec::as_slice);
        if let Some(images) = images.get(&blob.digest) {
            let task = blob_task(images, files, blob, &resolved.foreign);
            PlannedBlob::known(blob, BlobOrigin::Network(Box::new(task)))
        } else if let Some(bytes) = resolved.manifests.get(&blob.digest) {
            PlannedBlob::known(blob, BlobOrigin::Memory(bytes.clone()))
        } else if let Some(((entry, remote), others)) = files.split_first() {
            let size = (blob.size > 0).then_some(blob.size);
            let is_pinned = known_digest(entry, remote).is_some();
            let mut task = file_task(entry, remote, size);
            if is_pinned {
                task.alternatives = others.iter().map(|(_, remote)| Source::Web(remote.clone())).collect();
            }
            let origin = BlobOrigin::Network(Box::new(task));
            let pending = if is_pinned && size.is_some() { None } else { pending.next() };
            PlannedBlob { blob, pending, origin }
        } else {
            PlannedBlob::known(blob, BlobOrigin::Memory(EMPTY_CONFIG.to_vec()))
        }
    };
    let blobs: Vec<PlannedBlob> = layout.blobs.iter().copied().map(plan).collect();
    check_checksums(&blobs, files, &resolved.files);
    blobs
}

/// Panics if a sha512 of a list would not be checked: no sha256 stands for it.
fn check_checksums(blobs: &[PlannedBlob], files: &FileSet, entries: &[(FileEntry, RemoteFile)]) {
    let checked: HashMap<Digest, Option<[u8; 64]>> =
        blobs.iter().filter_map(|blob| Some((blob.blob.digest, blob.task()?.sha512))).collect();
    for (file, (entry, remote)) in files.files.iter().zip(entries) {
        // Known content has been checked.
        if let (Some(Checksum::Sha512(expected)), None) = (&entry.checksum, remote.content) {
            let expected = *expected;
            let is_checked = checked.get(&file.digest) == Some(&Some(expected));
            assert!(is_checked, "the checksum of `{}` would not be checked; please report", entry.name());
        }
    }
}

/// The images and files that need a blob.
pub(crate) struct Owners {
    pub images: BTreeSet<String>,
    pub files: BTreeSet<String>,
}

/// Returns the header space for documents of these sizes in bytes, or an error if a reader would refuse them.
/// `manifests` is the total size of image manifests. All other limits are checked by the walk of [`layout`].
fn checked_header_space(index: usize, files: Option<usize>, manifests: u64) -> Result<u64, PlanError> {
    let space = header_space(index, files);
    for (what, bytes, limit) in [
        ("an `index.json` of too many bytes", index as u64, INDEX_LIMIT),
        ("manifests of too many bytes", manifests + files.unwrap_or(0) as u64, MANIFESTS_LIMIT),
        // Highly compressible documents leave nearly all of the space to one padding frame.
        ("an `index.json` and a list of files of too many bytes", space, SKIPPABLE_LIMIT.into()),
    ] {
        if bytes > limit {
            return Err(PlanError::Limit(what, limit));
        }
    }
    Ok(space)
}

#[cfg(test)]
mod tests;
