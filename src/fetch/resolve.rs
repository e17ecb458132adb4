//! From what a list names to what must be fetched: manifests, digests, sizes.

pub(crate) mod foreign;
pub(crate) mod locked;
pub(crate) mod referrers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Mutex;

use serde_json::Value;

use crate::base::event::{Event, Report};
use crate::bundle::format::MANIFESTS_LIMIT;
use crate::bundle::format::index::IndexedImage;
use crate::documents::list::{FileEntry, ImageEntry, ListPosition, Lists};
use crate::fetch::in_parallel;
use crate::fetch::mirrored::{Endpoints, MirroredRegistry};
use crate::fetch::resolve::foreign::{Elsewhere, ForeignLayer};
use crate::fetch::resolve::referrers::ArtifactKind;
use crate::fetch::upstream::Upstream;
use crate::fetch::web::{self, RemoteFile};
use crate::net::error::{FetchError, FetchProblem};
use crate::net::http::Http;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, MANIFEST_LIMIT, Manifest, OCI_INDEX, config_platform};
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;

/// How deep indexes may be nested.
const DEPTH_LIMIT: usize = 7;

/// What lists resolved to.
#[derive(Clone, Default)]
pub(crate) struct Resolved {
    /// The images, sorted by reference.
    pub images: Vec<ResolvedImage>,
    /// The files, sorted by path, with what is known of them.
    pub files: Vec<(FileEntry, RemoteFile)>,
    /// The bytes of all manifests.
    pub manifests: HashMap<Digest, Vec<u8>>,
    /// The layers that are fetched from elsewhere than their registry.
    pub foreign: HashMap<Digest, RemoteFile>,
}

/// What one image resolved to.
#[derive(Clone)]
pub(crate) struct ResolvedImage {
    /// Its entry in the index of the bundle.
    pub indexed: IndexedImage,
    /// Where its blobs are fetched from.
    pub registry: MirroredRegistry,
}

/// Asks for everything that `lists` name; beside what was found, the failures of all the rest.
pub(crate) fn resolve(
    http: &Http,
    upstream: &Upstream,
    platforms: &[Platform],
    attached: &[ArtifactKind],
    lists: Lists,
    report: &dyn Report,
) -> (Resolved, Vec<FetchError>) {
    let objects = Some((lists.files.len() + lists.images.len()) as u64);
    report.event(&Event::Stage { name: "resolving", bytes: None, objects });
    for message in upstream.unused(&lists) {
        report.event(&Event::Warning { message });
    }
    let places = Endpoints::new(http, upstream);
    let manifests = Mutex::new(Manifests::new(MANIFESTS_LIMIT));
    let foreign = Mutex::default();
    let images = in_parallel(upstream.jobs, &lists.images, |entry| {
        let registry = places.registry(entry.reference.host());
        let mut resolver = Resolver::new(report, &registry, entry, platforms, &manifests, &foreign);
        let indexed = resolver.image()?;
        // A mirror may be there for tags alone.
        registry.places(&resolver.object, entry.reference.repository(), true)?;
        let kept = resolver.kept;
        Ok((ResolvedImage { indexed, registry }, kept))
    });
    let elsewhere = Elsewhere { http, places: &places, report };
    let mut subjects = Vec::new();
    for (image, kept) in images.iter().flatten() {
        let subject = |digest| (image.registry.clone(), image.indexed.reference.clone(), digest);
        subjects.extend(kept.iter().copied().map(subject));
    }
    let listed: BTreeSet<String> = lists.images.iter().map(|entry| entry.reference.to_string()).collect();
    let search = ReferrerSearch { report, attached, manifests: &manifests, foreign: &foreign, listed };
    let attached = if attached.is_empty() { Vec::new() } else { search.run(upstream.jobs, subjects) };
    let layers: Vec<_> = std::mem::take(&mut *foreign.lock().expect(NO_PANIC)).into_values().collect();
    let foreign = in_parallel(upstream.jobs, &layers, |layer| elsewhere.find(layer));
    let files = probe(http, &places, upstream.jobs, &lists.files, report);

    let manifests = manifests.into_inner().expect(NO_PANIC).by_digest;
    let mut resolved = Resolved { manifests, ..Resolved::default() };
    let mut failures = Vec::new();
    let mut is_full = false;
    let images = images.into_iter().map(|image| image.map(|(image, _)| image));
    for image in images.chain(attached) {
        match image {
            Ok(image) => resolved.images.push(image),
            // Every image that comes after it is one too many, too.
            Err(FetchError { problem: FetchProblem::Limit(_), .. })
                if std::mem::replace(&mut is_full, true) => {}
            Err(failure) => failures.push(failure),
        }
    }
    for layer in foreign {
        match layer {
            Ok(layer) => resolved.foreign.extend(layer),
            Err(failure) => failures.push(failure),
        }
    }
    for (entry, file) in lists.files.into_iter().zip(files) {
        match file {
            Ok(file) => resolved.files.push((entry, file)),
            Err(failure) => failures.push(failure),
        }
    }
    resolved.images.sort_by_cached_key(|image| image.indexed.reference.to_string());
    resolved.files.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
    (resolved, failures)
}

/// Asks for the beginning of files.
pub(crate) fn probe(
    http: &Http,
    places: &Endpoints,
    jobs: usize,
    files: &[FileEntry],
    report: &dyn Report,
) -> Vec<Result<RemoteFile, FetchError>> {
    in_parallel(jobs, files, |entry| {
        let object = entry.url.as_str();
        let places = places.file(object, &entry.url, entry.checksum.is_some())?;
        web::probe(http, report, object, &places)
    })
}

const NO_PANIC: &str = "nothing panics while it holds the manifests; please report";

/// The manifests of all images so far. They are held in memory, here as in a reader.
struct Manifests {
    by_digest: HashMap<Digest, Vec<u8>>,
    /// How many bytes more there may be.
    room: u64,
}

impl Manifests {
    fn new(limit: u64) -> Self {
        Self { by_digest: HashMap::new(), room: limit }
    }

    /// Keeps a manifest; says whether there was room for it.
    fn keep(&mut self, digest: Digest, bytes: Vec<u8>) -> bool {
        if self.by_digest.contains_key(&digest) {
            return true;
        }
        let Some(room) = self.room.checked_sub(bytes.len() as u64) else { return false };
        self.room = room;
        self.by_digest.insert(digest, bytes);
        true
    }
}

/// Looks for what is attached to images.
struct ReferrerSearch<'a> {
    report: &'a dyn Report,
    attached: &'a [ArtifactKind],
    manifests: &'a Mutex<Manifests>,
    foreign: &'a Mutex<HashMap<Digest, ForeignLayer>>,
    /// What the lists name themselves.
    listed: BTreeSet<String>,
}

/// A manifest to which something may be attached: where it is.
type Subject = (MirroredRegistry, Reference, Digest);
/// An image, and the manifests that are kept of it.
type FoundReferrer = (ResolvedImage, BTreeSet<Digest>);

impl ReferrerSearch<'_> {
    fn run(&self, jobs: usize, mut round: Vec<Subject>) -> Vec<Result<ResolvedImage, FetchError>> {
        let mut seen = BTreeSet::new();
        let mut found = BTreeMap::new();
        let mut failures = Vec::new();
        for _ in 0..referrers::DEPTH_LIMIT {
            // Two tags of one image are one subject.
            round.retain(|(_, of, digest)| {
                seen.insert((of.host().to_owned(), of.repository().to_owned(), *digest))
            });
            if round.is_empty() {
                break;
            }
            let objects = Some(round.len() as u64);
            self.report.event(&Event::Stage {
                name: "looking for what is attached to",
                bytes: None,
                objects,
            });
            let results = in_parallel(jobs, &round, |subject| self.of(subject));
            let subjects = std::mem::take(&mut round);
            for ((registry, reference, _), result) in subjects.into_iter().zip(results) {
                for result in result {
                    let (image, kept) = match result {
                        Ok(found) => found,
                        Err(failure) => {
                            failures.push(failure);
                            continue;
                        }
                    };
                    round
                        .extend(kept.into_iter().map(|digest| (registry.clone(), reference.clone(), digest)));
                    found.insert(image.indexed.reference.to_string(), image);
                }
            }
        }
        found.into_values().map(Ok).chain(failures.into_iter().map(Err)).collect()
    }

    /// What is attached to one subject, and the manifests of that.
    fn of(&self, (registry, of, subject): &Subject) -> Vec<Result<FoundReferrer, FetchError>> {
        let tag = referrers::tag_of(*subject);
        let mut found = Vec::new();
        for end in ArtifactKind::tags(self.attached) {
            found.extend(self.tag(registry, of, &format!("{tag}{end}")).transpose());
        }
        if ArtifactKind::with_referrers(self.attached) {
            let object = format!("the referrers of {}/{}@{subject}", of.host(), of.repository());
            let referrers = match registry.referrers(self.report, &object, of.repository(), *subject) {
                Ok(Some(referrers)) if referrers.is_empty() => Ok(None),
                Ok(Some(referrers)) => self.index(registry, of, &tag, &object, &referrers),
                Ok(None) => self.tag(registry, of, &tag),
                Err(failure) => Err(failure),
            };
            found.extend(referrers.transpose());
        }
        found
    }

    /// What has this tag, if there is such a tag and no list names it.
    fn tag(
        &self,
        registry: &MirroredRegistry,
        of: &Reference,
        tag: &str,
    ) -> Result<Option<FoundReferrer>, FetchError> {
        let Some(entry) = self.entry(of, tag) else { return Ok(None) };
        let object = entry.reference.to_string();
        if !registry.may_have_manifest(self.report, &object, of.repository(), tag)? {
            return Ok(None);
        }
        let mut resolver = Resolver::new(self.report, registry, &entry, &[], self.manifests, self.foreign);
        match resolver.image() {
            Ok(indexed) => Ok(Some((ResolvedImage { indexed, registry: registry.clone() }, resolver.kept))),
            // Where HEAD could not tell. What it names would have more to its error than the tag itself.
            Err(error) if error.status() == Some(404) && resolver.kept.is_empty() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An index of what the API has told, under the tag where it would be told without the API.
    fn index(
        &self,
        registry: &MirroredRegistry,
        of: &Reference,
        tag: &str,
        object: &str,
        referrers: &[Value],
    ) -> Result<Option<FoundReferrer>, FetchError> {
        let Some(entry) = self.entry(of, tag) else { return Ok(None) };
        let mut resolver = Resolver::new(self.report, registry, &entry, &[], self.manifests, self.foreign);
        let Some(bytes) = referrers::index_of(referrers) else {
            let what = "with referrers that are no descriptors".to_owned();
            return Err(FetchError::new(object, FetchProblem::Protocol { url: resolver.place(), what }));
        };
        let indexed = IndexedImage { is_made: true, ..resolver.root(OCI_INDEX, bytes)? };
        Ok(Some((ResolvedImage { indexed, registry: registry.clone() }, resolver.kept)))
    }

    fn entry(&self, of: &Reference, tag: &str) -> Option<ImageEntry> {
        let text = format!("{}/{}:{tag}", of.host(), of.repository());
        if self.listed.contains(&text) {
            return None;
        }
        let reference = text.parse().expect("a repository and a tag of hex digits; please report");
        // No list has it; nobody asks where.
        let origin = ListPosition { list: PathBuf::new(), line: 0 };
        Some(ImageEntry { reference, platforms: Vec::new(), origin })
    }
}

/// Resolves one image.
struct Resolver<'a> {
    report: &'a dyn Report,
    registry: &'a MirroredRegistry,
    entry: &'a ImageEntry,
    object: String,
    wanted: &'a [Platform],
    manifests: &'a Mutex<Manifests>,
    foreign: &'a Mutex<HashMap<Digest, ForeignLayer>>,
    /// What of them is wanted for this image.
    kept: BTreeSet<Digest>,
    /// What some index names and does not want; another one may.
    omitted: BTreeSet<Digest>,
    /// What of `wanted` was found.
    found: BTreeSet<Platform>,
    /// All platforms that the image has.
    available: BTreeSet<String>,
}

impl<'a> Resolver<'a> {
    fn new(
        report: &'a dyn Report,
        registry: &'a MirroredRegistry,
        entry: &'a ImageEntry,
        platforms: &'a [Platform],
        manifests: &'a Mutex<Manifests>,
        foreign: &'a Mutex<HashMap<Digest, ForeignLayer>>,
    ) -> Self {
        Self {
            report,
            registry,
            entry,
            object: entry.reference.to_string(),
            wanted: if entry.platforms.is_empty() { platforms } else { &entry.platforms },
            manifests,
            foreign,
            kept: BTreeSet::new(),
            omitted: BTreeSet::new(),
            found: BTreeSet::new(),
            available: BTreeSet::new(),
        }
    }

    fn image(&mut self) -> Result<IndexedImage, FetchError> {
        let reference = &self.entry.reference;
        let name = match reference.digest() {
            Some(digest) => digest.to_string(),
            None => reference.tag().expect("a reference has a tag or a digest").to_owned(),
        };
        let (media_type, bytes) =
            self.registry.manifest(self.report, &self.object, reference.repository(), &name)?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = reference.digest().filter(|expected| *expected != digest) {
            return Err(self.mismatch("sha256", digest.hex(), expected.hex()));
        }
        let media_type = announced(&media_type, &bytes);
        self.root(&media_type, bytes)
    }

    /// The image whose manifest this is.
    fn root(&mut self, media_type: &str, bytes: Vec<u8>) -> Result<IndexedImage, FetchError> {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        self.manifest(media_type, digest, bytes, 0)?;
        self.check_platforms()?;
        // What is left out is left out wherever it is named, so nothing may be that is wanted somewhere.
        self.omitted.retain(|digest| !self.kept.contains(digest));
        let omitted = std::mem::take(&mut self.omitted);
        let (reference, media_type) = (self.entry.reference.clone(), media_type.to_owned());
        let platforms = self.wanted.to_vec();
        Ok(IndexedImage { reference, media_type, digest, size, omitted, platforms, is_made: false })
    }

    /// Reads a manifest and those that it names.
    fn manifest(
        &mut self,
        media_type: &str,
        digest: Digest,
        bytes: Vec<u8>,
        depth: usize,
    ) -> Result<(), FetchError> {
        let refuse = |error| FetchError::new(&self.object, FetchProblem::Manifest { digest, error });
        let manifest = Manifest::parse(media_type, &bytes).map_err(refuse)?;
        self.kept.insert(digest);
        if !self.manifests.lock().expect(NO_PANIC).keep(digest, bytes) {
            return Err(FetchError::new(&self.object, FetchProblem::Limit(MANIFESTS_LIMIT)));
        }
        match manifest {
            Manifest::Image { config, layers } => {
                for layer in layers.into_iter().filter(|layer| !layer.urls.is_empty()) {
                    let repository = self.entry.reference.repository();
                    let found = ForeignLayer::new(&self.object, layer, self.registry, repository);
                    self.foreign.lock().expect(NO_PANIC).entry(found.layer.digest).or_insert(found);
                }
                // Below an index, the index has said it.
                if depth == 0 && !self.wanted.is_empty() {
                    self.single_platform(&config)?;
                }
                Ok(())
            }
            Manifest::Index(children) => {
                if depth >= DEPTH_LIMIT {
                    let what = format!("with indexes nested more than {DEPTH_LIMIT} deep");
                    return Err(FetchError::new(
                        &self.object,
                        FetchProblem::Protocol { url: self.place(), what },
                    ));
                }
                for child in self.select(children) {
                    let bytes = self.child(&child)?;
                    self.manifest(&child.media_type, child.digest, bytes, depth + 1)?;
                }
                Ok(())
            }
        }
    }

    /// The children of an index that are wanted; notes the others as left out.
    fn select(&mut self, children: Vec<Descriptor>) -> Vec<Descriptor> {
        let known = |child: &Descriptor| child.platform.clone().filter(|platform| platform.os != "unknown");
        for platform in children.iter().filter_map(known) {
            self.available.insert(platform.to_string());
            self.found.extend(self.wanted.iter().filter(|wanted| wanted.selects(&platform)).cloned());
        }
        if self.wanted.is_empty() {
            return children;
        }
        let wanted = |platform: &Platform| self.wanted.iter().any(|wanted| wanted.selects(platform));
        let selected: BTreeSet<Digest> = children
            .iter()
            .filter(|child| known(child).is_some_and(|platform| wanted(&platform)))
            .map(|child| child.digest)
            .collect();
        // An attestation goes with its image; what has no platform cannot be told apart by it.
        let (kept, omitted): (Vec<_>, Vec<_>) = children.into_iter().partition(|child| {
            selected.contains(&child.digest)
                || match child.attests {
                    Some(image) => selected.contains(&image),
                    None => child.platform.is_none(),
                }
        });
        self.omitted.extend(omitted.iter().map(|child| child.digest));
        kept
    }

    fn child(&self, child: &Descriptor) -> Result<Vec<u8>, FetchError> {
        let repository = self.entry.reference.repository();
        let (_, bytes) =
            self.registry.manifest(self.report, &self.object, repository, &child.digest.to_string())?;
        self.check_bytes(child, &bytes)?;
        Ok(bytes)
    }

    /// The platform of an image without an index stands in its config.
    fn single_platform(&mut self, config: &Descriptor) -> Result<(), FetchError> {
        if config.size > MANIFEST_LIMIT {
            return Ok(()); // no image config has this size
        }
        let repository = self.entry.reference.repository();
        let bytes =
            self.registry.small_blob(self.report, &self.object, repository, config.digest, MANIFEST_LIMIT)?;
        self.check_bytes(config, &bytes)?;
        match config_platform(&config.media_type, &bytes) {
            Some(platform) => {
                self.available.insert(platform.to_string());
                self.found.extend(self.wanted.iter().filter(|wanted| wanted.selects(&platform)).cloned());
            }
            // An artifact is for all platforms.
            None => self.found.extend(self.wanted.iter().cloned()),
        }
        Ok(())
    }

    /// A platform that the line itself asks for must be there. What the command line asks for, for all images,
    /// is a filter: one of them is enough.
    fn check_platforms(&self) -> Result<(), FetchError> {
        let missing: Vec<_> = self
            .wanted
            .iter()
            .filter(|wanted| !self.found.contains(wanted))
            .map(Platform::to_string)
            .collect();
        let strict = !self.entry.platforms.is_empty();
        if missing.is_empty() || !strict && !self.found.is_empty() || self.available.is_empty() {
            return Ok(());
        }
        let available: Vec<_> = self.available.iter().map(String::as_str).collect();
        let problem = FetchProblem::Platform { wanted: missing.join(", "), available: available.join(", ") };
        Err(FetchError::new(&self.object, problem))
    }

    fn check_bytes(&self, expected: &Descriptor, bytes: &[u8]) -> Result<(), FetchError> {
        let digest = Digest::of(bytes);
        if bytes.len() as u64 != expected.size {
            return Err(self.mismatch("size", bytes.len().to_string(), expected.size.to_string()));
        }
        if digest != expected.digest {
            return Err(self.mismatch("sha256", digest.hex(), expected.digest.hex()));
        }
        Ok(())
    }

    fn mismatch(&self, what: &'static str, found: String, expected: String) -> FetchError {
        FetchError::new(&self.object, FetchProblem::Mismatch { what, found, expected, url: self.place() })
    }

    fn place(&self) -> String {
        format!("the registry of {}", self.entry.reference.host())
    }
}

/// What a document is: what the registry says, or, where that is nothing useful, what the document itself says.
fn announced(header: &str, bytes: &[u8]) -> String {
    if !matches!(header, "" | "application/json" | "application/octet-stream" | "text/plain") {
        return header.to_owned();
    }
    let value: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    let media_type = value.as_ref().and_then(|value| value.get("mediaType")?.as_str());
    media_type.unwrap_or(header).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_manifest_takes_room_once_and_there_is_no_more_than_said() {
        let mut manifests = Manifests::new(8);
        let mut keep = |bytes: &[u8]| manifests.keep(Digest::of(bytes), bytes.to_vec());
        assert_eq!([keep(b"five!"), keep(b"five!"), keep(b"four"), keep(b"two")], [true, true, false, true]);
        assert_eq!((manifests.by_digest.len(), manifests.room), (2, 0));
    }
}
