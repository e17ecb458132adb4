//! From a lock to what must be fetched: nothing is asked for by a name that may mean something else by now.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;

use crate::base::event::{Event, Report};
use crate::bundle::format::index::IndexedImage;
use crate::documents::list::Lists;
use crate::documents::lock::{Lock, LockError, LockedImage};
use crate::fetch::in_parallel;
use crate::fetch::mirrored::{Endpoints, MirroredRegistry};
use crate::fetch::resolve::foreign::{Elsewhere, ForeignLayer};
use crate::fetch::resolve::{Resolved, ResolvedImage, probe};
use crate::fetch::upstream::Upstream;
use crate::net::error::{FetchError, FetchProblem};
use crate::net::http::Http;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;

const NO_PANIC: &str = "nothing panics while it holds the manifests; please report";

/// Asks for the manifests that `lock` names, by digest, and whether its files are still there; `lists` name the same
/// images and files. Beside what was found, the failures of all the rest.
pub(crate) fn resolve_lock(
    http: &Http,
    upstream: &Upstream,
    lock: &Lock,
    lists: Lists,
    report: &dyn Report,
) -> (Resolved, Vec<FetchError>) {
    let objects = Some((lists.files.len() + lists.images.len()) as u64);
    report.event(&Event::Stage { name: "resolving", bytes: None, objects });
    for message in upstream.unused(&lists) {
        report.event(&Event::Warning { message });
    }
    let places = Endpoints::new(http, upstream);
    let manifests = Mutex::new(HashMap::new());
    let foreign: Mutex<HashMap<Digest, ForeignLayer>> = Mutex::default();
    let images = in_parallel(upstream.jobs, &lock.images, |image| {
        let registry = places.registry(image.reference.host());
        let indexed = locked_image(&registry, image, &manifests, &foreign, report)?;
        registry.places(&image.reference.to_string(), image.reference.repository(), true)?;
        Ok(ResolvedImage { indexed, registry })
    });
    let elsewhere = Elsewhere { http, places: &places, report };
    let layers: Vec<_> = foreign.into_inner().expect(NO_PANIC).into_values().collect();
    let foreign = in_parallel(upstream.jobs, &layers, |layer| elsewhere.find(layer));
    let files = probe(http, &places, upstream.jobs, &lists.files, report);

    let (mut resolved, mut failures) = (Resolved::default(), Vec::new());
    for image in images {
        match image {
            Ok(image) => resolved.images.push(image),
            Err(failure) => failures.push(failure),
        }
    }
    for layer in foreign {
        match layer {
            Ok(layer) => resolved.foreign.extend(layer),
            Err(failure) => failures.push(failure),
        }
    }
    let sizes: HashMap<&str, u64> = lock.files.iter().map(|file| (file.url.as_str(), file.size)).collect();
    for (entry, file) in lists.files.into_iter().zip(files) {
        let size = sizes.get(entry.url.as_str()).copied();
        match file {
            Ok(file) if file.size.is_some() && file.size != size => {
                let (found, expected) = (text(file.size), text(size));
                let url = format!("{}; the lock says so", entry.url);
                let problem = FetchProblem::Mismatch { what: "size", found, expected, url };
                failures.push(FetchError::new(entry.url.to_string(), problem));
            }
            Ok(mut file) => {
                file.size = size;
                resolved.files.push((entry, file));
            }
            Err(failure) => failures.push(failure),
        }
    }
    resolved.manifests = manifests.into_inner().expect(NO_PANIC);
    resolved.images.sort_by_cached_key(|image| image.indexed.reference.to_string());
    resolved.files.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
    (resolved, failures)
}

/// The lists that name what `lock` has, each file with its checksum.
pub(crate) fn lists_of(lock: &Lock) -> Result<Lists, LockError> {
    let files = lock.files.iter().map(|file| format!("{} {}\n", file.url, file.digest));
    let images = lock.images.iter().map(|image| {
        let platforms: Vec<_> = image.platforms.iter().map(ToString::to_string).collect();
        let platforms = platforms.join(",");
        let attribute = if platforms.is_empty() { platforms } else { format!(" platform={platforms}") };
        format!("{}{attribute}\n", image.reference)
    });
    let (mut lists, mut problems) = (Lists::default(), Vec::new());
    let text: String = files.chain(images).collect();
    lists.parse_into(Path::new("lock"), &text, &mut problems);
    match problems.first() {
        None => {
            // What is looked up by its URL must be there under it.
            let read: HashSet<&str> = lists.files.iter().map(|file| file.url.as_str()).collect();
            match lock.files.iter().find(|file| !read.contains(file.url.as_str())) {
                None => Ok(lists),
                Some(file) => {
                    Err(LockError::Content(format!("`{}`: no lock writes a URL like this", file.url)))
                }
            }
        }
        Some(problem) => {
            let line = text.lines().nth(problem.line - 1).unwrap_or_default();
            Err(LockError::Content(format!("`{line}`: {}", problem.message)))
        }
    }
}

fn text(size: Option<u64>) -> String {
    size.unwrap_or_default().to_string()
}

fn locked_image(
    registry: &MirroredRegistry,
    image: &LockedImage,
    manifests: &Mutex<HashMap<Digest, Vec<u8>>>,
    foreign: &Mutex<HashMap<Digest, ForeignLayer>>,
    report: &dyn Report,
) -> Result<IndexedImage, FetchError> {
    let object = image.reference.to_string();
    let kept: BTreeSet<Digest> = image.manifests.iter().map(|manifest| manifest.digest).collect();
    let mut omitted = BTreeSet::new();
    let (mut media_type, mut size) = (String::new(), 0);
    for locked in &image.manifests {
        let digest = locked.digest;
        let held = manifests.lock().expect(NO_PANIC).get(&digest).cloned();
        let bytes = match (held, &locked.content) {
            (Some(bytes), _) => bytes,
            (None, Some(content)) => content.clone().into_bytes(),
            (None, None) => {
                let repository = image.reference.repository();
                registry.manifest(report, &object, repository, &digest.to_string())?.1
            }
        };
        let mismatch = |what, found: String, expected: String| {
            let url = format!("the registry of {}, and the lock", image.reference.host());
            FetchError::new(object.as_str(), FetchProblem::Mismatch { what, found, expected, url })
        };
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(mismatch("sha256", found.hex(), digest.hex()));
        }
        if bytes.len() as u64 != locked.size {
            return Err(mismatch("size", bytes.len().to_string(), locked.size.to_string()));
        }
        let manifest = Manifest::parse(&locked.media_type, &bytes)
            .map_err(|error| FetchError::new(object.as_str(), FetchProblem::Manifest { digest, error }))?;
        match manifest {
            Manifest::Index(children) => {
                omitted
                    .extend(children.iter().map(|child| child.digest).filter(|child| !kept.contains(child)));
            }
            Manifest::Image { layers, .. } => {
                for layer in layers.into_iter().filter(|layer| !layer.urls.is_empty()) {
                    let found = ForeignLayer::new(&object, layer, registry, image.reference.repository());
                    foreign.lock().expect(NO_PANIC).entry(found.layer.digest).or_insert(found);
                }
            }
        }
        if digest == image.digest {
            (media_type, size) = (locked.media_type.clone(), locked.size);
        }
        manifests.lock().expect(NO_PANIC).insert(digest, bytes);
    }
    Ok(IndexedImage {
        reference: image.reference.clone(),
        media_type,
        digest: image.digest,
        size,
        omitted,
        platforms: image.platforms.clone(),
        is_made: image.manifests[0].content.is_some(),
    })
}
