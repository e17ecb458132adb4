//! Packing: lists in, one bundle out.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::bundle::frame::SKIPPABLE_LIMIT;
use crate::bundle::index::{About, EMPTY_CONFIG, FileSet, Index, IndexedFile, IndexedImage};
use crate::bundle::layout::{Layout, LayoutError, Walk};
use crate::bundle::writer::{BundleWriter, Claim, ClaimError, Head, head_room, partial_path};
use crate::bundle::{INDEX_LIMIT, MANIFESTS_LIMIT};
use crate::digest::Digest;
use crate::event::{Event, Report};
use crate::fetch::error::FetchError;
use crate::fetch::http::Http;
use crate::fetch::queue::{self, Next, Queue, Source, Task};
use crate::fetch::resolve::{Resolved, resolve};
use crate::fetch::upstream::Upstream;
use crate::fs::{self, FsError};
use crate::list::{Checksum, Lists};
use crate::platform::Platform;

/// What to pack, from where, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The bundle to be written.
    pub output: PathBuf,
    /// The platforms of images to be taken, where the list does not say; empty: all.
    pub platforms: Vec<Platform>,
    /// zstd's compression level, 1 to 22.
    pub level: i32,
    /// Where things are fetched from.
    pub upstream: Upstream,
    /// What the bundle is to say of itself.
    pub about: About,
}

/// What was packed.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The digest of `index.json`.
    pub identity: Digest,
    /// How many files.
    pub files: usize,
    /// How many images.
    pub images: usize,
    /// How many different blobs, manifests included.
    pub blobs: usize,
    /// The bytes of all blobs.
    pub bytes: u64,
    /// The bytes of all that was fetched, without what came again after a failure. The list of files is made here,
    /// and a file that no list pins may turn out to be there already.
    pub bytes_fetched: u64,
    /// The bytes that would have come on top if nothing were shared between images and files.
    pub bytes_shared: u64,
    /// The size of the bundle in bytes.
    pub bundle_size: u64,
    /// How long it took.
    #[serde(serialize_with = "as_seconds", rename = "seconds")]
    pub time: Duration,
}

/// Why nothing was packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The bundle cannot be written.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process is writing it.
    #[error("another `airbundle` is writing `{}`: wait until it is done", .0.display())]
    Busy(PathBuf),
    /// Something cannot be fetched; all of what is known to fail.
    #[error("{} of what the lists name cannot be fetched", .0.len())]
    Fetch(Vec<FetchError>),
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

impl From<ClaimError> for PackError {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Fs(error) => Self::Fs(error),
            ClaimError::Busy(path) => Self::Busy(path),
        }
    }
}

impl From<LayoutError> for PackError {
    fn from(error: LayoutError) -> Self {
        match error {
            LayoutError::Limit(what, limit) => Self::Limit(what, limit),
            error => Self::Layout(error),
        }
    }
}

/// Packs what `lists` name. Nothing is at `options.output` before the bundle is complete and on the disk.
pub fn pack(lists: Lists, options: &Options, report: &dyn Report) -> Result<Summary, PackError> {
    let start = Instant::now();
    let claim = Claim::new(&options.output)?;
    let cleaner = RemovePartial { output: &options.output, _lock: claim.lock()? };
    let http = Http::new(&options.upstream);
    let resolved =
        resolve(&http, &options.upstream, &options.platforms, lists, report).map_err(PackError::Fetch)?;
    let mut plan = Plan::new(resolved, options.about.clone())?;
    let mut writer = BundleWriter::begin_bundle(claim, plan.head_room()?, options.level)?;

    let tasks = std::mem::take(&mut plan.tasks);
    let sizes: Vec<u64> = tasks.iter().filter_map(|task| task.size).collect();
    let bytes = (!sizes.is_empty()).then(|| sizes.iter().sum());
    report.event(&Event::Stage { name: "fetching", bytes, objects: Some(tasks.len() as u64) });
    let Written { blobs, fetched } =
        queue::run(&http, report, options.upstream.jobs, tasks, |queue| plan.write(&mut writer, queue))?;
    report.event(&Event::Stage { name: "finishing", bytes: None, objects: None });
    let head = plan.head();
    let written = writer.finish(&head)?;
    std::mem::forget(cleaner);

    Ok(Summary {
        identity: written.identity,
        files: plan.files.files.len(),
        images: plan.layout.images.len(),
        blobs: blobs.len() + usize::from(head.files.is_some()),
        bytes: blobs.values().sum::<u64>() + head.files.map_or(0, |files| files.len() as u64),
        bytes_fetched: fetched,
        bytes_shared: plan.shared(&blobs),
        bundle_size: written.size,
        time: start.elapsed(),
    })
}

/// A failed run leaves nothing behind. (One that is killed does; the next run begins it again.)
struct RemovePartial<'a> {
    output: &'a Path,
    /// Held until it is removed: nobody else can have begun to write it.
    _lock: File,
}

impl Drop for RemovePartial<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&partial_path(self.output)); // it already failed, and said why
    }
}

/// What will be written, in the order of the bundle.
struct Plan {
    about: About,
    /// The order; for files that no list pins with a stand-in for the digest that nobody knows yet.
    layout: Layout,
    manifests: HashMap<Digest, Vec<u8>>,
    files: FileSet,
    /// Where the blobs of the layout come from, one for each.
    origins: Vec<Origin>,
    /// Those of them that have to be fetched, in the same order.
    tasks: Vec<Task>,
}

/// What was written.
#[derive(Default)]
struct Written {
    /// The blobs with their sizes.
    blobs: HashMap<Digest, u64>,
    /// How many bytes were fetched for them.
    fetched: u64,
}

/// Where the bytes of a blob come from.
enum Origin {
    /// They are here already.
    Held(Vec<u8>),
    /// The next task fetches them; with digest and size, if both are known before.
    Fetched(Option<(Digest, u64)>),
}

impl Plan {
    fn new(resolved: Resolved, about: About) -> Result<Self, PackError> {
        let Resolved { images, files: remote_files, manifests } = resolved;
        let mut unpinned = HashSet::new();
        let mut files = FileSet::default();
        // What manifests say of a blob is right, and two URLs may be pinned to one digest while only one of the
        // servers says how large it is.
        let images_alone: Vec<_> = images.iter().map(|image| image.indexed.clone()).collect();
        let of_images = layout(&images_alone, &FileSet::default(), &manifests)?;
        let of_images = of_images.manifests.iter().chain(&of_images.blobs);
        let mut sizes: HashMap<Digest, u64> = of_images.map(|blob| (blob.digest, blob.size)).collect();
        for (entry, remote) in &remote_files {
            if let (Some(Checksum::Sha256(digest)), Some(size)) = (&entry.checksum, remote.size) {
                sizes.entry(*digest).or_insert(size);
            }
        }
        for (entry, remote) in &remote_files {
            let digest = if let Some(Checksum::Sha256(digest)) = &entry.checksum {
                *digest
            } else {
                let stand_in = Digest::of(format!("stand-in for {}", entry.url).as_bytes());
                unpinned.insert(stand_in);
                stand_in
            };
            let (path, url) = (entry.path.clone(), entry.url.to_string());
            let size = sizes.get(&digest).copied().or(remote.size).unwrap_or(0);
            files.files.push(IndexedFile { path, url, digest, size });
        }
        let layout = layout(&images_alone, &files, &manifests)?;

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
        let (mut origins, mut tasks) = (Vec::new(), Vec::new());
        for blob in &layout.blobs {
            let origin = if let Some(image) = sources.get(&blob.digest) {
                tasks.push(Task {
                    object: format!("{} {}", image.indexed.reference, short(blob.digest)),
                    digest: Some(blob.digest),
                    sha512: None,
                    size: Some(blob.size),
                    source: Source::Registry {
                        registry: image.registry.clone(),
                        repository: image.indexed.reference.repository().to_owned(),
                        digest: blob.digest,
                    },
                });
                Origin::Fetched(Some((blob.digest, blob.size)))
            } else if let Some(bytes) = manifests.get(&blob.digest) {
                Origin::Held(bytes.clone())
            } else if let Some((entry, file)) = remote.get(&blob.digest) {
                let sha512 = match &entry.checksum {
                    Some(Checksum::Sha512(bytes)) => Some(*bytes),
                    _ => None,
                };
                let digest = (!unpinned.contains(&blob.digest)).then_some(blob.digest);
                // The size is what the server says, if it does.
                let size = (blob.size > 0).then_some(blob.size);
                tasks.push(Task {
                    object: entry.url.to_string(),
                    digest,
                    sha512,
                    size: size.or(file.size),
                    source: Source::Web(file.clone()),
                });
                Origin::Fetched(digest.zip(size))
            } else {
                Origin::Held(EMPTY_CONFIG.to_vec())
            };
            origins.push(origin);
        }
        Ok(Self { about, layout, manifests, files, origins, tasks })
    }

    /// The room for the head, whatever sizes the files will turn out to have.
    fn head_room(&self) -> Result<u64, PackError> {
        let mut files = self.files.clone();
        files.files.iter_mut().for_each(|file| file.size = u64::MAX);
        let files = (!files.files.is_empty()).then(|| files.to_json().len());
        let mut index = self.index();
        index.files = files.map(|_| (Digest::of(b""), u64::MAX));
        let of_images = self.layout.manifests.iter().skip(usize::from(files.is_some()));
        checked_head_room(index.to_json().len(), files, of_images.map(|blob| blob.size).sum())
    }

    /// Writes all blobs but the file set's manifest, which stands in the head.
    fn write(&mut self, writer: &mut BundleWriter, queue: &Queue<'_>) -> Result<Written, PackError> {
        let mut written = Written::default();
        let file_set = usize::from(!self.files.files.is_empty());
        for manifest in &self.layout.manifests[file_set..] {
            writer.begin(Some((manifest.digest, manifest.size)));
            writer.write(&self.manifests[&manifest.digest])?;
            writer.end(manifest.digest)?;
            written.blobs.insert(manifest.digest, manifest.size);
            written.fetched += manifest.size;
        }
        writer.end_manifests()?;
        let mut tasks = 0..;
        for (blob, origin) in self.layout.blobs.iter().zip(&self.origins) {
            let (digest, size) = match origin {
                Origin::Held(bytes) => {
                    let known = (blob.digest, bytes.len() as u64);
                    writer.begin(Some(known));
                    writer.write(bytes)?;
                    known
                }
                Origin::Fetched(known) => {
                    let task = tasks.next().expect("numbers do not end");
                    let (digest, size) = fetch(writer, queue, task, *known)?;
                    written.fetched += size;
                    (digest, size)
                }
            };
            for file in self.files.files.iter_mut().filter(|file| file.digest == blob.digest) {
                (file.digest, file.size) = (digest, size);
            }
            // What no list pinned may turn out to be there already.
            if written.blobs.insert(digest, size).is_some() {
                writer.take_back()?;
            } else {
                writer.end(digest)?;
            }
        }
        Ok(written)
    }

    fn index(&self) -> Index {
        let images = self.layout.images.iter().map(|image| image.indexed.clone()).collect();
        Index { files: None, images, about: self.about.clone() }
    }

    /// The head, when all digests are known.
    fn head(&self) -> Head {
        let files = (!self.files.files.is_empty()).then(|| self.files.to_json());
        let mut index = self.index();
        index.files = files.as_deref().map(|files| (Digest::of(files), files.len() as u64));
        Head { index: index.to_json(), files }
    }

    /// What all images and files have together, less what the blobs have.
    fn shared(&self, blobs: &HashMap<Digest, u64>) -> u64 {
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

/// The room for a head with documents of these sizes, if no reader would refuse them; `manifests` are the bytes
/// of those of the images. The walk that made the layout has looked at all other limits.
fn checked_head_room(index: usize, files: Option<usize>, manifests: u64) -> Result<u64, PackError> {
    let room = head_room(index, files);
    for (what, bytes, limit) in [
        ("an `index.json` of too many bytes", index as u64, INDEX_LIMIT),
        ("manifests of too many bytes", manifests + files.unwrap_or(0) as u64, MANIFESTS_LIMIT),
        // Where it compresses to nothing, all of it becomes padding.
        ("an `index.json` and a list of files of too many bytes", room, SKIPPABLE_LIMIT.into()),
    ] {
        if bytes > limit {
            return Err(PackError::Limit(what, limit));
        }
    }
    Ok(room)
}

/// Writes what a task fetches; says its digest and size.
fn fetch(
    writer: &mut BundleWriter,
    queue: &Queue<'_>,
    task: usize,
    known: Option<(Digest, u64)>,
) -> Result<(Digest, u64), PackError> {
    writer.begin(known);
    loop {
        match queue.next(task).map_err(|failure| PackError::Fetch(vec![failure]))? {
            Next::Piece(piece) => writer.write_piece(piece)?,
            Next::Restart => {
                writer.take_back()?;
                writer.begin(known);
            }
            Next::End(digest, size) => return Ok((digest, size)),
        }
    }
}

/// The order of the bundle, from documents that are all known.
fn layout(
    images: &[IndexedImage],
    files: &FileSet,
    manifests: &HashMap<Digest, Vec<u8>>,
) -> Result<Layout, LayoutError> {
    let file_set = files.to_json();
    let mut index = Index { images: images.to_vec(), ..Index::default() };
    if !files.files.is_empty() {
        index.files = Some((Digest::of(&file_set), file_set.len() as u64));
    }
    let mut walk = Walk::new(index.clone())?;
    while let Some(wanted) = walk.next_manifest()? {
        let bytes = manifests.get(&wanted.blob.digest).unwrap_or(&file_set);
        walk.supply(bytes)?;
    }
    Ok(walk.finish(index.to_json().len() as u64))
}

/// The first digits of a digest: enough for a person to tell two layers apart.
fn short(digest: Digest) -> String {
    digest.hex()[..12].to_owned()
}

fn as_seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::places::Places;
    use crate::fetch::resolve::ResolvedImage;
    use crate::manifest::{OCI_INDEX, OCI_MANIFEST};

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
            match (checked_head_room(index, files, manifests), refused) {
                (Ok(room), None) => assert_eq!(room, head_room(index, files)),
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
        let registry = Places::new(&Http::new(&upstream), &upstream).registry("quay.io");
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
                omitted: std::collections::BTreeSet::new(),
            },
            registry: registry.clone(),
        });
        let resolved = Resolved { images: images.collect(), files: Vec::new(), manifests };
        let Err(error) = Plan::new(resolved, About::default()) else { panic!("it is planned") };
        let text = error.to_string();
        assert!(text.contains("more than the 1048576 ") && text.contains("split the lists"), "{text}");
    }
}
