//! [`BundlePlan`]: what will be written, in the order of the bundle, and where each of it comes from.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::bundle::format::index::{BundleInfo, EMPTY_CONFIG, FileSet, Index, IndexedFile, IndexedImage};
use crate::bundle::format::layout::{Blob, Layout, LayoutError, empty_config};
use crate::bundle::format::manifest_walk::ManifestWalk;
use crate::bundle::format::skippable::SKIPPABLE_LIMIT;
use crate::bundle::format::{INDEX_LIMIT, MANIFESTS_LIMIT, SIGNATURE_SPACE};
use crate::bundle::write::partial::Expected;
use crate::bundle::write::spool::Notes;
use crate::bundle::write::volume_writer::VolumeOptions;
use crate::bundle::write::writer::{BundleHead, header_space};
use crate::documents::list::{Checksum, FileEntry};
use crate::documents::lock::Lock;
use crate::fetch::queue::Task;
use crate::fetch::resolve::{Resolved, ResolvedImage};
use crate::fetch::source::Source;
use crate::fetch::web::RemoteFile;
use crate::oci::digest::Digest;
use crate::plan::base::SiteContents;

/// What will be written; see the module.
pub(crate) struct BundlePlan {
    about: BundleInfo,
    /// The order; for files that no list pins with a stand-in for the digest that nobody knows yet.
    pub(crate) layout: Layout,
    pub(crate) manifests: HashMap<Digest, Vec<u8>>,
    pub(crate) files: FileSet,
    /// The blobs of the layout behind the manifests, in its order. What is elsewhere has no place there.
    pub(crate) blobs: Vec<PlannedBlob>,
}

/// A blob that will be written.
pub(crate) struct PlannedBlob {
    /// It, with a stand-in where no list pins it, and size 0 where nobody knows it.
    pub(crate) blob: Blob,
    /// Its number among those whose digest or size is known only when it has come: the header of such a blob is
    /// written last.
    pub(crate) late: Option<u64>,
    /// Where its bytes come from.
    pub(crate) origin: BlobOrigin,
}

/// Where the bytes of a blob come from.
pub(crate) enum BlobOrigin {
    /// They are here already.
    Held(Vec<u8>),
    /// From the network.
    Fetched(Box<Task>),
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// What was fetched contradicts itself.
    #[error("what the registries serve does not go together")]
    Layout(#[source] LayoutError),
    /// A bundle that a reader would refuse.
    #[error(
        "a bundle of all this would have {0}, more than the {1} that it may have: split the lists, and pack a \
         bundle of each part"
    )]
    Limit(&'static str, u64),
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
    /// The plan for what lists resolved to. What `base` has is left out: of files, those that a list pins.
    pub(crate) fn new(resolved: Resolved, about: BundleInfo, base: &SiteContents) -> Result<Self, PlanError> {
        let Resolved { images, files: remote_files, manifests, foreign } = resolved;
        // What manifests say of a blob is right, and two URLs may be pinned to one digest while only one of the
        // servers says how large it is.
        let images_alone: Vec<_> = images.iter().map(|image| image.indexed.clone()).collect();
        let none = BTreeSet::new();
        let of_images = layout(&images_alone, &FileSet::default(), &manifests, &none)?;
        let of_images = of_images.manifests.iter().chain(&of_images.blobs);
        let mut sizes: HashMap<Digest, u64> = of_images.map(|blob| (blob.digest, blob.size)).collect();
        for (entry, remote) in &remote_files {
            if let (Some(Checksum::Sha256(digest)), Some(size)) = (&entry.checksum, remote.size) {
                sizes.entry(*digest).or_insert(size);
            }
        }
        let mut files = FileSet::default();
        for (entry, remote) in &remote_files {
            let digest = pinned(entry).unwrap_or_else(|| stand_in(entry));
            let (path, url) = (entry.path.clone(), entry.url.to_string());
            // A base knows what a server need not say.
            let size = sizes.get(&digest).copied().or(remote.size).or(base.size(digest)).unwrap_or(0);
            files.files.push(IndexedFile { path, url, digest, size });
        }
        let mut layout = self::layout(&images_alone, &files, &manifests, &none)?;
        // The empty config is smaller than its digest.
        let unpinned = remote_files.iter().filter(|(entry, _)| pinned(entry).is_none());
        let unpinned: HashSet<Digest> = unpinned.map(|(entry, _)| stand_in(entry)).collect();
        let can_go =
            |blob: &&Blob| base.has(**blob) && **blob != empty_config() && !unpinned.contains(&blob.digest);
        let elsewhere: BTreeSet<Digest> =
            layout.blobs.iter().filter(can_go).map(|blob| blob.digest).collect();
        if !elsewhere.is_empty() {
            layout = self::layout(&images_alone, &files, &manifests, &elsewhere)?;
        }

        let mut sources = HashMap::new();
        for (image, source) in layout.images.iter().zip(&images) {
            for blob in layout.blobs_of(image) {
                sources.entry(blob.digest).or_insert(source);
            }
        }
        let mut remote: HashMap<Digest, _> = HashMap::new();
        for (file, entry) in files.files.iter().zip(&remote_files) {
            remote.entry(file.digest).or_insert(entry);
        }
        let mut late = 0..;
        let mut blobs = Vec::new();
        for blob in layout.blobs.iter().copied() {
            let planned = if let Some(image) = sources.get(&blob.digest) {
                PlannedBlob {
                    blob,
                    late: None,
                    origin: BlobOrigin::Fetched(Box::new(of_image(image, blob, &foreign))),
                }
            } else if let Some(bytes) = manifests.get(&blob.digest) {
                PlannedBlob { blob, late: None, origin: BlobOrigin::Held(bytes.clone()) }
            } else if let Some((entry, file)) = remote.get(&blob.digest) {
                let is_known = pinned(entry).is_some() && blob.size > 0;
                let late = if is_known { None } else { late.next() };
                PlannedBlob {
                    blob,
                    late,
                    origin: BlobOrigin::Fetched(Box::new(of_web(
                        entry,
                        file,
                        (blob.size > 0).then_some(blob.size),
                    ))),
                }
            } else {
                PlannedBlob { blob, late: None, origin: BlobOrigin::Held(EMPTY_CONFIG.to_vec()) }
            };
            blobs.push(planned);
        }
        Ok(Self { about, layout, manifests, files, blobs })
    }

    /// The manifests that stand behind the head.
    pub(crate) fn manifests(&self) -> &[Blob] {
        &self.layout.manifests[usize::from(!self.files.files.is_empty())..]
    }

    /// How many digests or sizes are known only when the blob has come.
    pub(crate) fn late(&self) -> u64 {
        self.blobs.iter().filter(|planned| planned.late.is_some()).count() as u64
    }

    /// The names in the spool of all blobs that come behind the first `done` entries.
    pub(crate) fn keys(&self, done: usize) -> HashSet<Digest> {
        let blobs = self.blobs.iter().skip(done.saturating_sub(self.manifests().len()));
        blobs.filter_map(|planned| planned.task()?.key).collect()
    }

    /// The name in the spool of the entry `number`.
    pub(crate) fn key(&self, number: usize) -> Option<Digest> {
        self.blobs.get(number.checked_sub(self.manifests().len())?)?.task()?.key
    }

    /// What tells whether the beginning of a bundle is the beginning of this one, byte for byte. `level` is the
    /// one that it is compressed at.
    pub(crate) fn fingerprint(&self, room: u64, level: i32, carry: VolumeOptions) -> Digest {
        use std::fmt::Write as _;
        let zstd = zstd::zstd_safe::version_number();
        let mut text =
            format!("airbundle {} zstd {zstd} level {level} room {room}\n", env!("CARGO_PKG_VERSION"));
        let _ = writeln!(text, "volumes {:?} recovery {:?}", carry.volume_size, carry.recovery); // into memory
        for blob in self.manifests() {
            let _ = writeln!(text, "{} {}", blob.digest, blob.size); // into memory
        }
        for blob in &self.layout.external {
            let _ = writeln!(text, "elsewhere {}", blob.digest);
        }
        for PlannedBlob { blob, origin, .. } in &self.blobs {
            let key = if let BlobOrigin::Fetched(task) = origin { task.key } else { None };
            let name = key.unwrap_or(blob.digest);
            let _ = writeln!(text, "{name} {}", blob.size);
        }
        Digest::of(text.as_bytes())
    }

    /// What the labels of volumes say that they belong to. It tells nothing that was not known before the first file came,
    /// and that a list and its lock do not both say.
    pub(crate) fn set(
        &self,
        room: u64,
        level: i32,
        volume_size: Option<u64>,
        recovery: Option<u32>,
    ) -> Digest {
        use std::fmt::Write as _;
        let mut text = format!("volumes {volume_size:?} recovery {recovery:?} level {level} room {room}\n");
        for blob in self.manifests() {
            let _ = writeln!(text, "{}", blob.digest); // into memory
        }
        for file in &self.files.files {
            let _ = writeln!(text, "{}", file.url);
        }
        for blob in &self.layout.external {
            let _ = writeln!(text, "elsewhere {}", blob.digest);
        }
        Digest::of(text.as_bytes())
    }

    /// All entries behind the head, with what an earlier run has found out.
    pub(crate) fn expected(&self, notes: &Notes) -> Vec<Expected> {
        let manifests = self.manifests().iter();
        let manifests = manifests.map(|blob| Expected {
            blob: Some(*blob),
            is_late: false,
            is_manifest: true,
            sha512: None,
        });
        let blobs = self.blobs.iter().map(|planned| {
            let found_out = |number: u64| {
                let (digest, size) = (*notes.files.get(usize::try_from(number).ok()?)?)?;
                Some(Blob { digest, size })
            };
            Expected {
                blob: planned.late.map_or(Some(planned.blob), found_out),
                is_late: planned.late.is_some(),
                is_manifest: false,
                sha512: planned.task().and_then(|task| task.sha512),
            }
        });
        manifests.chain(blobs).collect()
    }

    /// The room for the head, whatever sizes the files will turn out to have, and for its signature if there is to be
    /// one.
    pub(crate) fn header_space(&self, is_signed: bool) -> Result<u64, PlanError> {
        let mut files = self.files.clone();
        files.files.iter_mut().for_each(|file| file.size = u64::MAX);
        let files = (!files.files.is_empty()).then(|| files.to_json().len());
        let mut index = self.index();
        index.files = files.map(|_| (Digest::of(b""), u64::MAX));
        let of_images = self.manifests().iter();
        let room = checked_header_space(index.to_json().len(), files, of_images.map(|blob| blob.size).sum())?;
        Ok(if is_signed { room + SIGNATURE_SPACE } else { room })
    }

    fn index(&self) -> Index {
        let images = self.layout.images.iter().map(|image| image.indexed.clone()).collect();
        let elsewhere = self.layout.external.iter().map(|blob| blob.digest).collect();
        Index { files: None, images, about: self.about.clone(), external: elsewhere }
    }

    /// Files of which it is known now what they are.
    pub(crate) fn found_out(&mut self, stand_in: Digest, digest: Digest, size: u64) {
        for file in self.files.files.iter_mut().filter(|file| file.digest == stand_in) {
            (file.digest, file.size) = (digest, size);
        }
    }

    /// The head, when all digests are known.
    pub(crate) fn head(&self) -> BundleHead {
        let files = (!self.files.files.is_empty()).then(|| self.files.to_json());
        let mut index = self.index();
        index.files = files.as_deref().map(|files| (Digest::of(files), files.len() as u64));
        BundleHead { index: index.to_json(), files, signature: None }
    }

    /// The lock of all this.
    pub(crate) fn lock(&self) -> Lock {
        Lock::of(&self.layout, &self.files.files, &self.manifests)
    }

    /// What all images and files have together, less what the blobs have.
    pub(crate) fn shared(&self, blobs: &HashMap<Digest, u64>) -> u64 {
        let images = self.layout.images.iter();
        let of_images: u64 = images
            .flat_map(|image| image.manifests.iter().copied().chain(self.layout.blobs_of(image)))
            .map(|blob| blob.size)
            .sum();
        let of_files: u64 = self.files.files.iter().map(|file| file.size).sum();
        let in_images = self.layout.images.iter().flat_map(|image| {
            image.manifests.iter().copied().chain(self.layout.blobs_of(image)).map(|blob| blob.digest)
        });
        let different: HashSet<Digest> =
            in_images.chain(self.files.files.iter().map(|file| file.digest)).collect();
        (of_images + of_files) - different.iter().map(|digest| blobs[digest]).sum::<u64>()
    }
}

impl PlannedBlob {
    /// What fetches it.
    pub(crate) fn into_task(self) -> Option<Task> {
        match self.origin {
            BlobOrigin::Fetched(task) => Some(*task),
            BlobOrigin::Held(_) => None,
        }
    }

    /// What fetches it.
    pub(crate) fn task(&self) -> Option<&Task> {
        match &self.origin {
            BlobOrigin::Fetched(task) => Some(task),
            BlobOrigin::Held(_) => None,
        }
    }
}

fn of_image(image: &ResolvedImage, blob: Blob, foreign: &HashMap<Digest, RemoteFile>) -> Task {
    Task {
        object: format!("{} {}", image.indexed.reference, short(blob.digest)),
        digest: Some(blob.digest),
        sha512: None,
        size: Some(blob.size),
        source: match foreign.get(&blob.digest) {
            Some(file) => Source::Web(file.clone()),
            None => Source::Registry {
                registry: image.registry.clone(),
                repository: image.indexed.reference.repository().to_owned(),
                digest: blob.digest,
            },
        },
        begun: None,
        key: Some(blob.digest),
    }
}

/// What fetches a file. `size` is what is known of it beside what its server says.
pub(crate) fn of_web(entry: &FileEntry, file: &RemoteFile, size: Option<u64>) -> Task {
    let (digest, sha512) = match &entry.checksum {
        Some(Checksum::Sha256(digest)) => (Some(*digest), None),
        Some(Checksum::Sha512(bytes)) => (None, Some(*bytes)),
        None => (None, None),
    };
    let key = match (sha512, &file.etag) {
        (Some(sha512), _) => Some(Digest::of(&sha512)),
        (None, Some(etag)) => Some(Digest::of(format!("{} {etag} {:?}", entry.url, file.size).as_bytes())),
        (None, None) => None,
    };
    Task {
        object: entry.url.to_string(),
        digest,
        sha512,
        // The size is what the server says, if it does.
        size: size.or(file.size),
        source: Source::Web(file.clone()),
        begun: None,
        key: digest.or(key),
    }
}

fn pinned(entry: &FileEntry) -> Option<Digest> {
    match &entry.checksum {
        Some(Checksum::Sha256(digest)) => Some(*digest),
        _ => None,
    }
}

/// What stands for the digest of a file until it has come.
fn stand_in(entry: &FileEntry) -> Digest {
    Digest::of(format!("stand-in for {}", entry.url).as_bytes())
}

/// The room for a head with documents of these sizes, if no reader would refuse them; `manifests` are the bytes
/// of those of the images. The walk that made the layout has looked at all other limits.
fn checked_header_space(index: usize, files: Option<usize>, manifests: u64) -> Result<u64, PlanError> {
    let room = header_space(index, files);
    for (what, bytes, limit) in [
        ("an `index.json` of too many bytes", index as u64, INDEX_LIMIT),
        ("manifests of too many bytes", manifests + files.unwrap_or(0) as u64, MANIFESTS_LIMIT),
        // Where it compresses to nothing, all of it becomes padding.
        ("an `index.json` and a list of files of too many bytes", room, SKIPPABLE_LIMIT.into()),
    ] {
        if bytes > limit {
            return Err(PlanError::Limit(what, limit));
        }
    }
    Ok(room)
}

/// The order of the bundle, from documents that are all known.
fn layout(
    images: &[IndexedImage],
    files: &FileSet,
    manifests: &HashMap<Digest, Vec<u8>>,
    elsewhere: &BTreeSet<Digest>,
) -> Result<Layout, LayoutError> {
    let file_set = files.to_json();
    let mut index = Index { images: images.to_vec(), external: elsewhere.clone(), ..Index::default() };
    if !files.files.is_empty() {
        index.files = Some((Digest::of(&file_set), file_set.len() as u64));
    }
    let mut walk = ManifestWalk::new(index.clone())?;
    while let Some(wanted) = walk.next_manifest()? {
        let bytes = manifests.get(&wanted.blob.digest).unwrap_or(&file_set);
        walk.supply(bytes)?;
    }
    walk.finish(index.to_json().len() as u64)
}

/// The first digits of a digest: enough for a person to tell two layers apart.
fn short(digest: Digest) -> String {
    digest.hex()[..12].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::mirrored::Endpoints;
    use crate::fetch::resolve::ResolvedImage;
    use crate::fetch::upstream::Upstream;

    use crate::oci::manifest::{OCI_INDEX, OCI_MANIFEST};

    #[test]
    fn documents_that_a_reader_would_refuse_are_refused_before_anything_is_written() {
        const LIMIT: usize = 64 << 20;
        for (index, files, manifests, refused) in [
            (1000, None, 0, None),
            (1000, Some(LIMIT / 2), LIMIT as u64 / 2, None),
            (LIMIT + 1, None, 0, Some("`index.json` of too many bytes, more than the 67108864 ")),
            (1000, Some(1), LIMIT as u64, Some("manifests of too many bytes, more than the 67108864 ")),
            (LIMIT / 2, Some(LIMIT / 2), 0, Some("`index.json` and a list of files")),
        ] {
            match (checked_header_space(index, files, manifests), refused) {
                (Ok(room), None) => assert_eq!(room, header_space(index, files)),
                (Err(error), Some(words)) => {
                    let text = error.to_string();
                    assert!(text.contains(words) && text.contains("split the lists"), "{text}");
                }
                (result, _) => panic!("{index} {files:?} {manifests}: {result:?}"),
            }
        }
    }

    #[test]
    fn images_with_more_manifests_than_a_reader_visits_are_refused() {
        let upstream = Upstream::default();
        let registry = Endpoints::new(&upstream.http(), &upstream).registry("quay.io");
        let mut manifests = HashMap::new();
        let mut keep = |json: serde_json::Value| {
            let bytes = json.to_string().into_bytes();
            let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
            manifests.insert(digest, bytes);
            (digest, size)
        };
        let config = serde_json::json!({"mediaType": "a/b", "digest": Digest::of(EMPTY_CONFIG), "size": 2});
        let children: Vec<_> = (0..1050)
            .map(|n| {
                let (digest, size) =
                    keep(serde_json::json!({"schemaVersion": 2, "n": n, "config": config, "layers": []}));
                serde_json::json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size})
            })
            .collect();
        let (digest, size) = keep(serde_json::json!({"schemaVersion": 2, "manifests": children}));
        let images = (0..1000).map(|n| ResolvedImage {
            indexed: IndexedImage {
                reference: format!("quay.io/a/b:{n}").parse().unwrap(),
                media_type: OCI_INDEX.to_owned(),
                digest,
                size,
                omitted: BTreeSet::new(),
                platforms: Vec::new(),
                is_made: false,
            },
            registry: registry.clone(),
        });
        let resolved = Resolved { images: images.collect(), manifests, ..Resolved::default() };
        let Err(error) = BundlePlan::new(resolved, BundleInfo::default(), &SiteContents::default()) else {
            panic!("it is planned")
        };
        let text = error.to_string();
        assert!(text.contains("more than the 1048576 ") && text.contains("split the lists"), "{text}");
    }
}
