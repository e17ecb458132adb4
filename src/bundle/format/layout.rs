//! The order of a bundle: which entry stands where in its tar stream ("Order of the entries").
//!
//! The order follows from `index.json` and the manifests alone. The writer keeps it and the reader insists on
//! it, so a tar header can tell a reader nothing that the hashed documents have not told it before, and the
//! place of every blob is known without looking for it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use serde::Serialize;

use crate::bundle::format::index::{FileSet, Index, IndexError, IndexedFile, IndexedImage};
use crate::bundle::format::{
    BLOB_LIMIT, BLOCK, FRAME_SIZE, INDEX_JSON, MANIFESTS_LIMIT, NAMED_LIMIT, OCI_LAYOUT, OCI_LAYOUT_CONTENT,
    padded,
};
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, MANIFEST_LIMIT, Manifest, ManifestError, config_platform};
use crate::oci::platform::Platform;

/// How deep indexes may be nested.
const DEPTH_LIMIT: usize = 8;
/// The most bytes that all blobs may have together: up to here a JSON number is exact (RFC 8259, section 6), and
/// sums of sizes are far from overflowing.
const SIZE_LIMIT: u64 = 1 << 53;

/// A blob of the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// How much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Totals {
    /// How many blobs.
    pub blobs: usize,
    /// How many bytes.
    pub bytes: u64,
}

impl Totals {
    /// Whether it is nothing.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.blobs == 0
    }
}

/// An image and all that the bundle holds of it.
#[derive(Debug, Clone)]
pub struct BundledImage {
    /// How `index.json` names it.
    pub indexed: IndexedImage,
    /// Its manifests, each before the ones that it names.
    pub manifests: Vec<Blob>,
}

/// Everything that a bundle holds, in the order of its tar stream.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The size of `index.json` in bytes.
    pub index_size: u64,
    /// All manifests, the file set's first: they stand right behind `index.json`.
    pub manifests: Vec<Blob>,
    /// All other blobs: configs, then layers, then files.
    pub blobs: Vec<Blob>,
    /// Those that it names and does not hold, in the order in which they would stand among the others ("Deltas").
    pub elsewhere: Vec<Blob>,
    /// The images.
    pub images: Vec<BundledImage>,
    /// The files.
    pub files: Vec<IndexedFile>,
    /// What the manifests say, by digest.
    pub parsed: HashMap<Digest, Manifest>,
}

/// One entry of the tar stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// Its name in the archive.
    pub name: String,
    /// Its blob; nothing for `oci-layout` and `index.json`.
    pub digest: Option<Digest>,
    /// The size of its content in bytes.
    pub size: u64,
    /// Where its header begins in the tar stream.
    pub offset: u64,
}

/// Why the documents of a bundle describe no layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A manifest that cannot be read.
    #[error("the manifest `{0}` is refused")]
    Manifest(Digest, #[source] ManifestError),
    /// A file set that cannot be read.
    #[error("the file set `{0}` is refused")]
    Files(Digest, #[source] IndexError),
    /// One blob, two sizes.
    #[error("`{0}` is said to have {1} bytes at one place and {2} bytes at another")]
    Sizes(Digest, u64, u64),
    /// One document in two roles.
    #[error("`{0}` is both the file set and a manifest of an image")]
    Roles(Digest),
    /// A size that no file has.
    #[error("`{0}` is said to have {1} bytes: that is more than 2^53, or makes the bundle larger than that")]
    Size(Digest, u64),
    /// A blob that is left out and that nothing needs, or that is a manifest.
    #[error("it leaves out `{0}`, which is no config, layer or file of it")]
    Elsewhere(Digest),
    /// More than a reader is ready to hold.
    #[error("it names {0}, more than the {1} that a bundle may have")]
    Limit(&'static str, u64),
}

/// Walks over the manifests of an index in the bundle's order, parents first.
///
/// The reader does not know a manifest before it has read it, the writer knows all of them: both call
/// [`ManifestWalk::next_manifest`] and answer with [`ManifestWalk::supply`] until nothing is left.
pub struct ManifestWalk {
    index: Index,
    /// What is still to be visited, the next one last: the image, how deep, the manifest.
    stack: Vec<(usize, usize, WantedManifest)>,
    visited: HashSet<(usize, Digest)>,
    sizes: HashMap<Digest, u64>,
    manifests: Vec<Blob>,
    /// The bytes of the manifests so far.
    manifest_bytes: u64,
    /// The bytes of all blobs so far.
    bytes: u64,
    /// How often the images have named something so far.
    named: usize,
    parsed: HashMap<Digest, Manifest>,
    files: Vec<IndexedFile>,
    members: Vec<Vec<Blob>>,
    pending: Option<(usize, usize, WantedManifest)>,
}

/// A manifest that is to be supplied next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedManifest {
    /// Its media type.
    pub media_type: String,
    /// The blob.
    pub blob: Blob,
    file_set: bool,
}

impl ManifestWalk {
    /// A walk over what `index` names.
    pub fn new(index: Index) -> Result<Self, LayoutError> {
        let mut walk = Self {
            stack: Vec::new(),
            visited: HashSet::new(),
            sizes: HashMap::new(),
            manifests: Vec::new(),
            manifest_bytes: 0,
            bytes: 0,
            named: 0,
            parsed: HashMap::new(),
            files: Vec::new(),
            members: vec![Vec::new(); index.images.len()],
            pending: None,
            index: Index::default(),
        };
        for (number, image) in index.images.iter().enumerate().rev() {
            let blob = Blob { digest: image.digest, size: image.size };
            walk.push(
                number,
                0,
                WantedManifest { media_type: image.media_type.clone(), blob, file_set: false },
            )?;
        }
        if let Some((digest, size)) = index.files {
            let media_type = crate::oci::manifest::OCI_MANIFEST.to_owned();
            walk.push(
                usize::MAX,
                0,
                WantedManifest { media_type, blob: Blob { digest, size }, file_set: true },
            )?;
        }
        walk.index = index;
        Ok(walk)
    }

    /// The next manifest of the bundle, each one once; nothing when all were supplied.
    pub fn next_manifest(&mut self) -> Result<Option<WantedManifest>, LayoutError> {
        while let Some((image, depth, wanted)) = self.stack.pop() {
            if !self.visited.insert((image, wanted.blob.digest)) {
                continue;
            }
            if self.index.files.is_some_and(|(files, _)| files == wanted.blob.digest) != wanted.file_set {
                return Err(LayoutError::Roles(wanted.blob.digest));
            }
            self.note_named(1)?;
            if let Some(members) = self.members.get_mut(image) {
                members.push(wanted.blob);
            }
            if self.parsed.contains_key(&wanted.blob.digest) {
                self.descend(image, depth, wanted.blob.digest)?;
                continue;
            }
            self.manifest_bytes += wanted.blob.size;
            if self.manifest_bytes > MANIFESTS_LIMIT {
                return Err(LayoutError::Limit("manifests of too many bytes", MANIFESTS_LIMIT));
            }
            self.pending = Some((image, depth, wanted.clone()));
            return Ok(Some(wanted));
        }
        Ok(None)
    }

    /// The bytes of the manifest that [`ManifestWalk::next_manifest`] asked for; their digest has been checked.
    pub fn supply(&mut self, bytes: &[u8]) -> Result<(), LayoutError> {
        let (image, depth, wanted) =
            self.pending.take().expect("`next_manifest` asked for it; please report");
        let digest = wanted.blob.digest;
        self.manifests.push(wanted.blob);
        if wanted.file_set {
            let set = FileSet::parse(bytes).map_err(|error| LayoutError::Files(digest, error))?;
            for file in &set.files {
                self.note_size(Blob { digest: file.digest, size: file.size })?;
            }
            self.files = set.files;
            return Ok(());
        }
        let manifest = Manifest::parse(&wanted.media_type, bytes)
            .map_err(|error| LayoutError::Manifest(digest, error))?;
        if let Manifest::Image { config, layers } = &manifest {
            for blob in std::iter::once(config).chain(layers) {
                self.note_size(Blob { digest: blob.digest, size: blob.size })?;
            }
        }
        self.parsed.insert(digest, manifest);
        self.descend(image, depth, digest)
    }

    /// The layout, once [`ManifestWalk::next_manifest`] has nothing more.
    pub fn finish(self, index_size: u64) -> Result<Layout, LayoutError> {
        let mut placed: HashSet<Digest> = self.manifests.iter().map(|blob| blob.digest).collect();
        let (mut blobs, mut elsewhere) = (Vec::new(), Vec::new());
        let left_out = &self.index.elsewhere;
        let mut place = |blob: Blob| {
            if placed.insert(blob.digest) {
                if left_out.contains(&blob.digest) { &mut elsewhere } else { &mut blobs }.push(blob);
            }
        };
        let of_images = || {
            self.members.iter().flatten().filter_map(|blob| match self.parsed.get(&blob.digest) {
                Some(Manifest::Image { config, layers }) => Some((config, layers)),
                _ => None,
            })
        };
        if self.index.files.is_some() {
            place(empty_config());
        }
        of_images().for_each(|(config, _)| place(config.into()));
        of_images().flat_map(|(_, layers)| layers).for_each(|layer| place(layer.into()));
        self.files.iter().for_each(|file| place(Blob { digest: file.digest, size: file.size }));
        if elsewhere.len() < left_out.len() {
            let found: HashSet<Digest> = elsewhere.iter().map(|blob| blob.digest).collect();
            let wrong = left_out.iter().find(|digest| !found.contains(digest));
            return Err(LayoutError::Elsewhere(*wrong.expect("one is not there; please report")));
        }

        let images = self.index.images.into_iter().zip(self.members);
        let images = images.map(|(indexed, manifests)| BundledImage { indexed, manifests });
        Ok(Layout {
            index_size,
            images: images.collect(),
            manifests: self.manifests,
            blobs,
            elsewhere,
            files: self.files,
            parsed: self.parsed,
        })
    }

    /// Puts the children of an index on the stack, without those that the image leaves out.
    fn descend(&mut self, image: usize, depth: usize, digest: Digest) -> Result<(), LayoutError> {
        let named = match self.parsed.get(&digest) {
            Some(Manifest::Image { layers, .. }) => 1 + layers.len(),
            Some(Manifest::Index(children)) => children.len(),
            None => 0,
        };
        self.note_named(named)?;
        let Some(Manifest::Index(children)) = self.parsed.get(&digest) else { return Ok(()) };
        if depth + 1 >= DEPTH_LIMIT {
            return Err(LayoutError::Limit("nested indexes", DEPTH_LIMIT as u64));
        }
        let omitted = &self.index.images[image].omitted;
        let kept: Vec<WantedManifest> = children
            .iter()
            .rev()
            .filter(|child| !omitted.contains(&child.digest))
            .map(|child| WantedManifest {
                media_type: child.media_type.clone(),
                blob: child.into(),
                file_set: false,
            })
            .collect();
        kept.into_iter().try_for_each(|wanted| self.push(image, depth + 1, wanted))
    }

    fn push(&mut self, image: usize, depth: usize, wanted: WantedManifest) -> Result<(), LayoutError> {
        if wanted.blob.size > MANIFEST_LIMIT && !wanted.file_set {
            return Err(LayoutError::Limit("a manifest of too many bytes", MANIFEST_LIMIT));
        }
        self.note_size(wanted.blob)?;
        self.stack.push((image, depth, wanted));
        Ok(())
    }

    fn note_size(&mut self, blob: Blob) -> Result<(), LayoutError> {
        match self.sizes.insert(blob.digest, blob.size) {
            Some(first) if first != blob.size => {
                return Err(LayoutError::Sizes(blob.digest, first, blob.size));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        self.bytes = self.bytes.saturating_add(blob.size);
        if self.bytes > SIZE_LIMIT {
            return Err(LayoutError::Size(blob.digest, blob.size));
        }
        if self.sizes.len() > BLOB_LIMIT {
            return Err(LayoutError::Limit("blobs", BLOB_LIMIT as u64));
        }
        Ok(())
    }

    fn note_named(&mut self, count: usize) -> Result<(), LayoutError> {
        self.named += count;
        if self.named > NAMED_LIMIT {
            return Err(LayoutError::Limit("manifests and blobs in its images", NAMED_LIMIT as u64));
        }
        Ok(())
    }
}

impl Layout {
    /// Every entry of the tar stream, in order.
    pub fn entries(&self) -> impl Iterator<Item = TarEntry> {
        let files = [(OCI_LAYOUT, OCI_LAYOUT_CONTENT.len() as u64), (INDEX_JSON, self.index_size)];
        let files = files.into_iter().map(|(name, size)| (name.to_owned(), None, size));
        let blobs = self.manifests.iter().chain(&self.blobs);
        let blobs = blobs.map(|blob| (blob_name(blob.digest), Some(blob.digest), blob.size));
        files.chain(blobs).scan(0, |offset, (name, digest, size)| {
            let entry = TarEntry { name, digest, size, offset: *offset };
            *offset += BLOCK as u64 + padded(size);
            Some(entry)
        })
    }

    /// How many bytes of the tar stream each frame holds ("Frames").
    #[must_use]
    pub fn cuts(&self) -> Vec<u64> {
        const FRAME: u64 = FRAME_SIZE as u64;
        let mut cuts = Vec::new();
        let fill = |cuts: &mut Vec<u64>, mut len: u64| {
            while len > 0 {
                cuts.push(len.min(FRAME));
                len -= len.min(FRAME);
            }
        };
        // The file set is the one manifest that belongs to no image.
        let has_files = self.manifests.first().is_some_and(|first| !self.parsed.contains_key(&first.digest));
        let in_head = 2 + usize::from(has_files);
        let mut shared = 0;
        for (number, entry) in self.entries().enumerate() {
            let len = BLOCK as u64 + padded(entry.size);
            let is_large = len > FRAME;
            if number == in_head || number == 2 + self.manifests.len() || (is_large && number >= in_head) {
                fill(&mut cuts, std::mem::take(&mut shared));
            }
            if number < in_head {
                shared += len;
            } else if is_large {
                cuts.push(BLOCK as u64);
                fill(&mut cuts, len - BLOCK as u64);
            } else {
                if shared + len > FRAME {
                    fill(&mut cuts, std::mem::take(&mut shared));
                }
                shared += len;
            }
        }
        let last = 2 + self.manifests.len() + self.blobs.len();
        let end = 2 * BLOCK as u64;
        if last == in_head || last == 2 + self.manifests.len() || shared + end > FRAME {
            fill(&mut cuts, std::mem::take(&mut shared));
        }
        cuts.push(shared + end);
        cuts
    }

    /// Where in the tar stream the entries of `wanted` are; what is next to each other is one range.
    #[must_use]
    pub fn ranges(&self, wanted: impl Fn(Digest) -> bool) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for entry in self.entries().filter(|entry| entry.digest.is_some_and(&wanted)) {
            let end = entry.offset + BLOCK as u64 + padded(entry.size);
            match ranges.last_mut().filter(|last| last.end == entry.offset) {
                Some(last) => last.end = end,
                None => ranges.push(entry.offset..end),
            }
        }
        ranges
    }

    /// The configs and layers of `image`, each once, also those that are elsewhere.
    #[must_use]
    pub fn blobs_of(&self, image: &BundledImage) -> Vec<Blob> {
        let mut seen = HashSet::new();
        let mut blobs = Vec::new();
        for manifest in &image.manifests {
            if let Some(Manifest::Image { config, layers }) = self.parsed.get(&manifest.digest) {
                let all = std::iter::once(config).chain(layers).map(Blob::from);
                blobs.extend(all.filter(|blob| seen.insert(blob.digest)));
            }
        }
        blobs
    }

    /// The platforms of which the bundle holds `image`; none for an artifact. `config` reads a config: nothing else
    /// says what platform an image without an index is for.
    #[must_use]
    pub fn platforms(&self, image: &BundledImage, config: impl Fn(Digest) -> Option<Vec<u8>>) -> Vec<String> {
        let held: HashSet<Digest> = image.manifests.iter().map(|manifest| manifest.digest).collect();
        let mut platforms = BTreeSet::new();
        for manifest in &image.manifests {
            match self.parsed.get(&manifest.digest) {
                Some(Manifest::Index(children)) => {
                    let children = children.iter().filter(|child| held.contains(&child.digest));
                    let known = children.filter_map(|child| child.platform.as_ref());
                    platforms
                        .extend(known.filter(|platform| platform.os != "unknown").map(ToString::to_string));
                }
                Some(Manifest::Image { config: of, .. }) if manifest.digest == image.indexed.digest => {
                    let bytes = config(of.digest).unwrap_or_default();
                    platforms
                        .extend(config_platform(&of.media_type, &bytes).map(|platform| platform.to_string()));
                }
                _ => {}
            }
        }
        platforms.into_iter().collect()
    }

    /// The platforms of the manifests of `image` that its index says they are for.
    #[must_use]
    pub fn platforms_of_children(&self, image: &BundledImage) -> HashMap<Digest, Platform> {
        let children =
            image.manifests.iter().filter_map(|manifest| match self.parsed.get(&manifest.digest) {
                Some(Manifest::Index(children)) => Some(children),
                _ => None,
            });
        children.flatten().filter_map(|child| Some((child.digest, child.platform.clone()?))).collect()
    }

    /// The media types of the manifests of `image`.
    #[must_use]
    pub fn media_types(&self, image: &BundledImage) -> HashMap<Digest, String> {
        let mut types: HashMap<Digest, String> =
            [(image.indexed.digest, image.indexed.media_type.clone())].into();
        for manifest in &image.manifests {
            if let Some(Manifest::Index(children)) = self.parsed.get(&manifest.digest) {
                types.extend(children.iter().map(|child| (child.digest, child.media_type.clone())));
            }
        }
        types
    }

    /// The bytes of all blobs that the bundle holds, manifests included.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.manifests.iter().chain(&self.blobs).map(|blob| blob.size).sum()
    }

    /// How much of what it names it does not hold.
    #[must_use]
    pub fn left_out(&self) -> Totals {
        Totals { blobs: self.elsewhere.len(), bytes: self.elsewhere.iter().map(|blob| blob.size).sum() }
    }

    /// What each of `blobs` belongs to: references of images and paths of files, as a person knows them.
    #[must_use]
    pub fn owners(&self, blobs: &HashSet<Digest>) -> HashMap<Digest, Vec<String>> {
        let mut owners: HashMap<Digest, Vec<String>> = HashMap::new();
        for image in &self.images {
            for blob in image.manifests.iter().chain(&self.blobs_of(image)) {
                if blobs.contains(&blob.digest) {
                    owners.entry(blob.digest).or_default().push(image.indexed.reference.to_string());
                }
            }
        }
        for file in self.files.iter().filter(|file| blobs.contains(&file.digest)) {
            owners.entry(file.digest).or_default().push(file.path.to_string());
        }
        owners
    }

    /// What some of `blobs` belong to, for an error: each once, and the first few of many.
    #[must_use]
    pub fn owners_text(&self, blobs: &[Digest]) -> String {
        const SHOWN: usize = 5;
        let all = self.owners(&blobs.iter().copied().collect());
        let mut seen = HashSet::new();
        let mut owners: Vec<String> = blobs
            .iter()
            .flat_map(|digest| all.get(digest).cloned().unwrap_or_else(|| vec![digest.to_string()]))
            .filter(|owner| seen.insert(owner.clone()))
            .map(|owner| format!("`{owner}`"))
            .collect();
        let more = owners.len().saturating_sub(SHOWN);
        owners.truncate(SHOWN);
        let owners = owners.join(", ");
        if more > 0 { format!("{owners} and {more} more") } else { owners }
    }
}

impl From<&Descriptor> for Blob {
    fn from(descriptor: &Descriptor) -> Self {
        Self { digest: descriptor.digest, size: descriptor.size }
    }
}

/// The name of a blob's entry (OCI image-layout, "blobs").
#[must_use]
pub fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The header of an entry: the same 512 bytes for the same name and size, always.
#[must_use]
pub fn tar_header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).expect("entry names fit a ustar header; please report");
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    *header.as_bytes()
}

/// The empty config, which every bundle with files has.
#[must_use]
pub fn empty_config() -> Blob {
    let content = crate::bundle::format::index::EMPTY_CONFIG;
    Blob { digest: Digest::of(content), size: content.len() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::format::FORMAT;
    use crate::oci::manifest::{OCI_INDEX, OCI_MANIFEST};

    #[test]
    fn a_header_states_any_size() {
        for size in [0, 1, 511, (8 << 30) - 1, 8 << 30, 1 << 40] {
            let bytes = tar_header(&blob_name(Digest::of(b"")), size);
            let header = tar::Header::from_byte_slice(&bytes);
            assert_eq!(header.entry_size().unwrap(), size);
            assert_eq!(header.cksum().unwrap(), checksum(&bytes));
        }
    }

    /// POSIX ustar: the sum of all bytes, those of the checksum counted as spaces.
    fn checksum(header: &[u8; BLOCK]) -> u32 {
        header
            .iter()
            .enumerate()
            .map(|(at, byte)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte }))
            .sum()
    }

    fn descriptor(media_type: &str, bytes: &[u8], size: u64) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{size}}}"#, Digest::of(bytes))
    }

    fn image(layers: &[&str]) -> Vec<u8> {
        let layers: Vec<_> = layers.iter().map(|name| descriptor("layer", name.as_bytes(), 5)).collect();
        format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor("config", b"config", 6),
            layers.join(",")
        )
        .into_bytes()
    }

    fn index(children: &[&[u8]]) -> Vec<u8> {
        let children: Vec<_> =
            children.iter().map(|child| descriptor(OCI_MANIFEST, child, child.len() as u64)).collect();
        format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, children.join(",")).into_bytes()
    }

    fn indexed(name: &str, root: &[u8], omitted: &[&[u8]]) -> IndexedImage {
        IndexedImage {
            reference: name.parse().unwrap(),
            media_type: OCI_INDEX.into(),
            digest: Digest::of(root),
            size: root.len() as u64,
            omitted: omitted.iter().map(|bytes| Digest::of(bytes)).collect(),
            platforms: Vec::new(),
            is_made: false,
        }
    }

    fn walk(images: Vec<IndexedImage>, documents: &[&[u8]]) -> Result<Layout, LayoutError> {
        walk_delta(images, documents, &[])
    }

    fn walk_delta(
        images: Vec<IndexedImage>,
        documents: &[&[u8]],
        elsewhere: &[&[u8]],
    ) -> Result<Layout, LayoutError> {
        let elsewhere = elsewhere.iter().map(|bytes| Digest::of(bytes)).collect();
        let mut walk = ManifestWalk::new(Index { images, elsewhere, ..Index::default() })?;
        while let Some(wanted) = walk.next_manifest()? {
            walk.supply(
                documents.iter().find(|bytes| Digest::of(bytes) == wanted.blob.digest).expect("known"),
            )?;
        }
        walk.finish(100)
    }

    #[test]
    fn blobs_stand_once_in_the_order_in_which_they_are_first_named() {
        let (amd64, arm64) = (image(&["a", "shared"]), image(&["shared", "b"]));
        let root = index(&[&amd64, &arm64]);
        let layout = walk(vec![indexed("quay.io/x:1", &root, &[])], &[&root, &amd64, &arm64]).unwrap();
        let digests = |blobs: &[Blob]| blobs.iter().map(|blob| blob.digest).collect::<Vec<_>>();
        assert_eq!(digests(&layout.manifests), [&root, &amd64, &arm64].map(|bytes| Digest::of(bytes)));
        assert_eq!(
            digests(&layout.blobs),
            ["config", "a", "shared", "b"].map(|name| Digest::of(name.as_bytes()))
        );
        let offsets: Vec<_> = layout.entries().map(|entry| entry.offset).take(3).collect();
        assert_eq!(offsets, [0, 1024, 1024 + 1024]);
    }

    #[test]
    fn what_is_elsewhere_keeps_the_others_in_their_order_and_must_be_named() {
        let (amd64, arm64) = (image(&["a", "shared"]), image(&["shared", "b"]));
        let root = index(&[&amd64, &arm64]);
        let images = || vec![indexed("quay.io/x:1", &root, &[])];
        let documents: [&[u8]; 3] = [&root, &amd64, &arm64];
        let digests = |blobs: &[Blob]| blobs.iter().map(|blob| blob.digest).collect::<Vec<_>>();
        let layout = walk_delta(images(), &documents, &[b"shared", b"config"]).unwrap();
        assert_eq!(digests(&layout.blobs), [b"a", b"b"].map(|name| Digest::of(name)));
        assert_eq!(digests(&layout.elsewhere), [&b"config"[..], b"shared"].map(Digest::of));
        assert_eq!(layout.entries().count(), 2 + 3 + 2);
        assert_eq!(layout.blobs_of(&layout.images[0]).len(), 4);
        for wrong in [&b"nothing"[..], &amd64, &root] {
            let error = walk_delta(images(), &documents, &[b"a", wrong]).unwrap_err();
            assert!(
                matches!(error, LayoutError::Elsewhere(digest) if digest == Digest::of(wrong)),
                "{error}"
            );
        }
    }

    #[test]
    fn what_one_image_omits_another_may_hold() {
        let (amd64, arm64) = (image(&["a"]), image(&["b"]));
        let root = index(&[&amd64, &arm64]);
        let images = vec![indexed("quay.io/x:1", &root, &[&arm64]), indexed("quay.io/x:2", &root, &[])];
        let layout = walk(images, &[&root, &amd64, &arm64]).unwrap();
        assert_eq!(layout.images.iter().map(|image| image.manifests.len()).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(layout.manifests.len(), 3);
    }

    #[test]
    fn what_many_images_share_is_counted_for_each_of_them() {
        let names: Vec<_> = (0..30_000).map(|number| number.to_string()).collect();
        let amd64 = image(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let images = |count| {
            (0..count).map(|tag| {
                let image = indexed(&format!("quay.io/x:{tag}"), &amd64, &[]);
                IndexedImage { media_type: OCI_MANIFEST.into(), ..image }
            })
        };
        assert!(walk(images(30).collect(), &[&amd64]).is_ok());
        let error = walk(images(40).collect(), &[&amd64]).unwrap_err();
        assert!(matches!(error, LayoutError::Limit("manifests and blobs in its images", _)), "{error}");
    }

    #[test]
    fn manifests_are_counted_where_they_are_read_also_when_they_were_named_as_layers_before() {
        // Every manifest but the first is a layer of the one before it, so that its size is known early.
        let mut documents: Vec<Vec<u8>> = Vec::new();
        for _ in 0..20 {
            let layer = documents
                .last()
                .map_or(descriptor("layer", b"x", 1), |bytes| descriptor("layer", bytes, bytes.len() as u64));
            let config = descriptor("config", b"config", 6);
            let padding = " ".repeat(usize::try_from(MANIFEST_LIMIT).unwrap() - 1000);
            documents.push(
                format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]{padding}}}"#).into(),
            );
        }
        documents.reverse();
        let images = documents.iter().enumerate().map(|(tag, bytes)| IndexedImage {
            media_type: OCI_MANIFEST.into(),
            ..indexed(&format!("quay.io/x:{tag}"), bytes, &[])
        });
        let all: Vec<&[u8]> = documents.iter().map(Vec::as_slice).collect();
        let error = walk(images.collect(), &all).unwrap_err();
        assert!(matches!(error, LayoutError::Limit("manifests of too many bytes", _)), "{error}");
    }

    #[test]
    fn sizes_that_no_disk_has_are_refused() {
        let size = |size: u64| {
            let config = descriptor("config", b"config", 6);
            let layer = descriptor("layer", b"a", size);
            format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#).into_bytes()
        };
        for (bytes, sound) in [(size(1 << 52), true), (size(1 << 53), false), (size(u64::MAX), false)] {
            let image =
                IndexedImage { media_type: OCI_MANIFEST.into(), ..indexed("quay.io/x:1", &bytes, &[]) };
            assert_eq!(walk(vec![image], &[&bytes]).is_ok(), sound, "{}", String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn one_digest_with_two_sizes_is_refused() {
        let amd64 = image(&["a"]);
        let other = String::from_utf8(image(&["a", "b"]))
            .unwrap()
            .replacen("\"size\":5", "\"size\":6", 1)
            .into_bytes();
        let root = index(&[&amd64, &other]);
        let error = walk(vec![indexed("quay.io/x:1", &root, &[])], &[&root, &amd64, &other]).unwrap_err();
        assert!(matches!(error, LayoutError::Sizes(..)), "{error}");
    }

    #[test]
    fn indexes_that_nest_too_deep_are_refused() {
        let mut documents = vec![image(&["a"])];
        for _ in 0..=DEPTH_LIMIT {
            let last = documents.last().unwrap();
            let child = descriptor(
                if documents.len() == 1 { OCI_MANIFEST } else { OCI_INDEX },
                last,
                last.len() as u64,
            );
            documents.push(format!(r#"{{"schemaVersion":2,"manifests":[{child}]}}"#).into_bytes());
        }
        let known: Vec<&[u8]> = documents.iter().map(Vec::as_slice).collect();
        let error = walk(vec![indexed("quay.io/x:1", known.last().unwrap(), &[])], &known).unwrap_err();
        assert!(error.to_string().contains("nested"), "{error}");
        assert_eq!(FORMAT.0, 1, "the limit is part of the format");
    }
}
