//! [`Listed`]: the images and files that locks and lists keep.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::base::fs::FsError;
use crate::bundle::format::index::{IndexedFile, IndexedImage};
use crate::bundle::format::layout::{Blob, BundledImage, Layout};
use crate::commands::prune::error::{PruneError, difference, missing};
use crate::documents::list::{Checksum, Lists};
use crate::documents::lock::{Lock, LockError, LockedImage};
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::platform::Platform;
use crate::oci::reference::DEFAULT_PREFIX;
use crate::site::record::{Record, RecordError, RecordedBundle, RecordedFile, RecordedImage};
use crate::site::scan::Storage;
use crate::site::signed_index::SignedIndex;

/// The images and files that locks and lists name.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// By reference. An image in several documents has several entries.
    images: HashMap<String, Vec<ListedImage>>,
    /// By path below the root of the files. `None`: the document states no SHA-256 digest.
    files: HashMap<String, Vec<Option<Digest>>>,
}

#[derive(Debug)]
enum ListedImage {
    /// All manifests of the site, which must include these platforms.
    Any(Vec<Platform>),
    /// These manifests; the one that the reference resolves to is first.
    Locked(Vec<Digest>),
}

/// The listed images and files of the site.
pub(super) struct Selected {
    pub(super) layout: Layout,
    /// The bundles that contain some of it, or of which the site has no documents.
    pub(super) holders: HashSet<Digest>,
    /// Those of them that contain more than that, or of which that is unknown.
    pub(super) partial: HashSet<Digest>,
}

impl Listed {
    /// Adds the entries of lists.
    pub(crate) fn add_lists(&mut self, lists: &Lists) {
        self.add_files(lists);
        for image in &lists.images {
            self.add_image(image.reference.to_string(), ListedImage::Any(image.platforms.clone()));
        }
    }

    /// Adds the entries of a lock.
    pub(crate) fn add_lock(&mut self, lock: &Lock) -> Result<(), LockError> {
        self.add_files(&lock.lists()?);
        for LockedImage { reference, manifests, .. } in &lock.images {
            let manifests = manifests.iter().map(|manifest| manifest.digest).collect();
            self.add_image(reference.to_string(), ListedImage::Locked(manifests));
        }
        Ok(())
    }

    fn add_files(&mut self, lists: &Lists) {
        for file in &lists.files {
            let digest = match file.checksum {
                Some(Checksum::Sha256(digest)) => Some(digest),
                _ => None,
            };
            self.files.entry(format!("{DEFAULT_PREFIX}/{}", file.path)).or_default().push(digest);
        }
    }

    fn add_image(&mut self, reference: String, image: ListedImage) {
        self.images.entry(reference).or_default().push(image);
    }

    /// Finds the listed images and files on the site. `documents` returns those of an unpacked bundle; `None`: the site
    /// does not have them. Returns nothing if nothing is listed. Fails if the site does not have all of it.
    pub(super) fn select(
        &self,
        record: &Record,
        storage: Option<&Storage>,
        documents: impl Fn(&RecordedBundle) -> Result<Option<SignedIndex>, RecordError>,
    ) -> Result<Option<Selected>, PruneError> {
        if self.images.is_empty() && self.files.is_empty() {
            return Ok(None);
        }
        let mut differences = BTreeSet::new();
        let images = self.images(record, &mut differences);
        let files = self.files(record, &mut differences);
        let mut layout = Layout::default();
        for (image, manifests) in &images {
            differences.extend(Reading { image, manifests, storage }.read(&mut layout)?);
        }
        if !differences.is_empty() {
            return Err(PruneError::Mismatch(differences.into_iter().collect()));
        }
        layout.files.extend(files.iter().map(|file| indexed(file)));
        let mut selected = Selected { layout, holders: HashSet::new(), partial: HashSet::new() };
        let cut: HashSet<&str> = images
            .iter()
            .filter(|(image, manifests)| manifests.len() < image.manifests.len())
            .map(|(image, _)| image.reference.as_str())
            .collect();
        let images = images.iter().map(|(image, _)| (image.reference.to_string(), image.digest())).collect();
        let files = files.iter().map(|file| (file.path.as_str(), file.digest)).collect();
        for bundle in &record.bundles {
            selected.add_holder(bundle.identity, documents(bundle)?.as_ref(), &images, &cut, &files);
        }
        Ok(Some(selected))
    }

    /// Returns the listed images, each with the manifests that are kept.
    fn images<'r>(
        &self,
        record: &'r Record,
        differences: &mut BTreeSet<String>,
    ) -> Vec<(&'r RecordedImage, Vec<Digest>)> {
        let recorded: HashMap<&str, &RecordedImage> =
            record.images.iter().map(|image| (image.reference.as_str(), image)).collect();
        let mut found = Vec::new();
        for (reference, entries) in &self.images {
            let Some(image) = recorded.get(reference.as_str()) else {
                differences.insert(difference(reference, false));
                continue;
            };
            let mut kept = HashSet::new();
            for entry in entries {
                match entry.manifests(image) {
                    Ok(manifests) => kept.extend(manifests),
                    Err(message) => drop(differences.insert(message)),
                }
            }
            let manifests = image.manifests.iter().map(|manifest| manifest.digest);
            found.push((*image, manifests.filter(|digest| kept.contains(digest)).collect()));
        }
        found
    }

    fn files<'r>(&self, record: &'r Record, differences: &mut BTreeSet<String>) -> Vec<&'r RecordedFile> {
        let recorded: HashMap<&str, &RecordedFile> =
            record.files.iter().map(|file| (file.path.as_str(), file)).collect();
        let mut found = Vec::new();
        for (path, digests) in &self.files {
            let file = recorded.get(path.as_str());
            match file.filter(|file| digests.iter().flatten().all(|digest| *digest == file.digest)) {
                Some(file) => found.push(*file),
                None => drop(differences.insert(difference(path, file.is_some()))),
            }
        }
        found
    }
}

impl ListedImage {
    /// Returns the manifests of the image that the entry keeps. Fails with a message if the site lacks something.
    fn manifests(&self, image: &RecordedImage) -> Result<Vec<Digest>, String> {
        let has = |digest: &Digest| image.manifests.iter().any(|manifest| manifest.digest == *digest);
        match self {
            Self::Any(platforms) => {
                let lacks = |platform: &&Platform| {
                    !image.platforms.is_empty() && !image.platforms.iter().any(|held| platform.selects(held))
                };
                match platforms.iter().find(lacks) {
                    Some(platform) => Err(format!("`{}` has no {platform}", image.reference)),
                    None => Ok(image.manifests.iter().map(|manifest| manifest.digest).collect()),
                }
            }
            Self::Locked(manifests) => {
                let is_same = image.digest().as_ref() == manifests.first() && manifests.iter().all(has);
                if is_same { Ok(manifests.clone()) } else { Err(difference(image.reference.as_str(), true)) }
            }
        }
    }
}

/// An image of the site whose manifests are read.
struct Reading<'a> {
    image: &'a RecordedImage,
    manifests: &'a [Digest],
    /// `None`: there is no registry's storage.
    storage: Option<&'a Storage>,
}

impl Reading<'_> {
    /// Adds the image to `layout`. Returns what is wrong with it.
    fn read(&self, layout: &mut Layout) -> Result<Vec<String>, FsError> {
        let Self { image, manifests, storage } = self;
        let (mut blobs, mut wrong) = (Vec::new(), Vec::new());
        for digest in *manifests {
            let Some(storage) = storage else {
                return Ok(vec![missing(*digest)]);
            };
            match (storage.size(*digest)?, storage.manifest(*digest)?) {
                (Some(size), Some(manifest)) => {
                    blobs.push(Blob { digest: *digest, size });
                    layout.parsed.insert(*digest, manifest);
                }
                (None, _) => wrong.push(missing(*digest)),
                (Some(_), None) => {
                    wrong.push(format!("the manifest `{digest}` of `{}` is corrupt", image.reference));
                }
            }
        }
        let (Some(first), Some(recorded)) = (blobs.first(), image.manifests.first()) else {
            return Ok(wrong);
        };
        if self.is_without_children(layout) {
            // The children would be removed, and the image could not be pulled.
            wrong.push(format!("a lock names the index of `{}`, and none of its manifests", image.reference));
        }
        let indexed = IndexedImage {
            reference: image.reference.clone(),
            media_type: recorded.media_type.clone(),
            digest: first.digest,
            size: first.size,
            omitted: BTreeSet::new(),
            platforms: Vec::new(),
            is_made: false,
        };
        layout.images.push(BundledImage { indexed, manifests: blobs });
        Ok(wrong)
    }

    /// True if an index is kept, and none of the children that the site has.
    fn is_without_children(&self, layout: &Layout) -> bool {
        let Self { image, manifests, .. } = self;
        manifests.iter().any(|digest| {
            let Some(Manifest::Index(children)) = layout.parsed.get(digest) else { return false };
            let held = |digest: Digest| image.manifests.iter().any(|manifest| manifest.digest == digest);
            let mut children =
                children.iter().map(|child| child.digest).filter(|digest| held(*digest)).peekable();
            children.peek().is_some() && !children.any(|digest| manifests.contains(&digest))
        })
    }
}

fn indexed(file: &RecordedFile) -> IndexedFile {
    let prefix = format!("{DEFAULT_PREFIX}/");
    let path = file.path.as_str().strip_prefix(&prefix).and_then(|path| path.parse().ok());
    IndexedFile {
        path: path.expect("listed files are below the prefix; please report"),
        url: file.url.clone(),
        digest: file.digest,
        size: file.size,
    }
}

impl Selected {
    /// Adds a bundle if its documents name one of `images` (by reference, with their digests) or `files` (by path), or if
    /// the site has no documents. `cut` are the images of which some manifests are not kept.
    fn add_holder(
        &mut self,
        identity: Digest,
        documents: Option<&SignedIndex>,
        images: &HashMap<String, Option<Digest>>,
        cut: &HashSet<&str>,
        files: &HashMap<&str, Digest>,
    ) {
        let Some(SignedIndex { index, files: set }) = documents else {
            self.holders.insert(identity);
            self.partial.insert(identity);
            return;
        };
        let (mut holds, mut is_partial) = (false, false);
        for image in &index.images {
            let reference = image.reference.to_string();
            let is_kept = images.get(&reference) == Some(&Some(image.digest));
            holds |= is_kept;
            is_partial |= !is_kept || cut.contains(reference.as_str());
        }
        for file in &set.files {
            let path = format!("{DEFAULT_PREFIX}/{}", file.path);
            let is_kept = files.get(path.as_str()) == Some(&file.digest);
            holds |= is_kept;
            is_partial |= !is_kept;
        }
        if holds {
            self.holders.insert(identity);
        }
        if holds && is_partial {
            self.partial.insert(identity);
        }
    }
}
