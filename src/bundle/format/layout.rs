//! [`Layout`]: the order and the positions of all entries in the tar stream ("Order of the entries").
//!
//! The order follows from `index.json` and the manifests alone, and the reader enforces it. A tar header
//! therefore contains no information beyond the hashed documents, and the position of every blob is known
//! without searching.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use serde::Serialize;

use crate::base::text::listed;
use crate::bundle::format::index::{EMPTY_CONFIG, IndexError, IndexedFile, IndexedImage};
use crate::bundle::format::{BLOCK, FRAME_SIZE, INDEX_JSON, OCI_LAYOUT, OCI_LAYOUT_CONTENT, padded};
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, Manifest, ManifestError, config_platform};
use crate::oci::media_type::MediaType;
use crate::oci::platform::{Platform, PlatformError};

/// Digest and size of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Blob {
    /// Digest of the content.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
}

/// Number and total size of some blobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Totals {
    /// Number of blobs.
    pub blobs: usize,
    /// Total size in bytes.
    pub bytes: u64,
}

impl Totals {
    /// True if there are no blobs.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.blobs == 0
    }
}

/// An image and its manifests in the bundle.
#[derive(Debug, Clone)]
pub struct BundledImage {
    /// Entry of the image in `index.json`.
    pub indexed: IndexedImage,
    /// Manifests of the image, parents before children.
    pub manifests: Vec<Blob>,
}

/// All blobs of a bundle, in the order of the tar stream.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Size of `index.json` in bytes.
    pub index_size: u64,
    /// All manifests, which follow `index.json`. That of the file set is the first one.
    pub manifests: Vec<Blob>,
    /// All other blobs in the bundle: configs, then layers, then files.
    pub blobs: Vec<Blob>,
    /// Blobs that a delta omits, in the same order ("Deltas").
    pub external: Vec<Blob>,
    /// The images, in the order of `index.json`.
    pub images: Vec<BundledImage>,
    /// The files, in the order of the file set.
    pub files: Vec<IndexedFile>,
    /// The parsed manifests of images, by digest.
    pub parsed: HashMap<Digest, Manifest>,
}

/// An entry of the tar stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// Name in the archive.
    pub name: String,
    /// Digest of the blob. `None` for `oci-layout` and `index.json`.
    pub digest: Option<Digest>,
    /// Size of the content in bytes.
    pub size: u64,
    /// Offset of the header in the tar stream.
    pub offset: u64,
}

/// Documents that do not describe a valid layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// An invalid manifest.
    #[error("invalid manifest `{0}`")]
    Manifest(Digest, #[source] ManifestError),
    /// An invalid file set.
    #[error("invalid file set `{0}`")]
    Files(Digest, #[source] IndexError),
    /// Two descriptors of a blob with different sizes.
    #[error("size mismatch: descriptors of `{0}` state {1} bytes and {2} bytes")]
    Sizes(Digest, u64, u64),
    /// A manifest that is used as the file set and by an image.
    #[error("`{0}` is both the file set and a manifest of an image")]
    Roles(Digest),
    /// An invalid platform in an image config: the images, and the reason.
    #[error("invalid config of {0}")]
    Platform(String, #[source] PlatformError),
    /// The total size exceeds 2^53 bytes.
    #[error("blob `{0}` of {1} bytes: the total size of the bundle exceeds 2^53 bytes")]
    Size(Digest, u64),
    /// An omitted blob that is a manifest, or that no document references.
    #[error("it omits `{0}`, which is not a config, layer or file of the bundle")]
    External(Digest),
    /// A limit on the documents, which a reader holds in memory.
    #[error("limit exceeded: {0} (maximum: {1})")]
    Limit(&'static str, u64),
}

impl Layout {
    /// Returns all entries of the tar stream, in order.
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

    /// Returns the number of bytes of the tar stream in each frame ("Frames"). A small document can state blobs of
    /// billions of frames, so that these must not be collected.
    pub fn cuts(&self) -> impl Iterator<Item = u64> {
        self.runs().into_iter().flat_map(|run| {
            let frames = run.div_ceil(FRAME_SIZE as u64);
            (0..frames).map(move |number| (run - number * FRAME_SIZE as u64).min(FRAME_SIZE as u64))
        })
    }

    /// Returns the number of bytes in each run of frames, of which all but the last one are full.
    fn runs(&self) -> Vec<u64> {
        // The file set is the only manifest that belongs to no image.
        let has_files = self.manifests.first().is_some_and(|first| !self.parsed.contains_key(&first.digest));
        let head_end = 2 + usize::from(has_files);
        let documents_end = 2 + self.manifests.len();
        let entries = self.entries().map(|entry| BLOCK as u64 + padded(entry.size));
        let mut frames = FrameRuns::default();
        for (number, len) in entries.chain([END_OF_ARCHIVE]).enumerate() {
            if number == head_end || number == documents_end {
                frames.cut();
            }
            if number < head_end {
                frames.open += len;
            } else if len > FRAME_SIZE as u64 {
                frames.cut();
                frames.open = BLOCK as u64;
                frames.cut();
                frames.open = len - BLOCK as u64;
                frames.cut();
            } else {
                if frames.open + len > FRAME_SIZE as u64 {
                    frames.cut();
                }
                frames.open += len;
            }
        }
        frames.cut();
        frames.runs
    }

    /// Returns the ranges of the tar stream that contain the entries of the needed blobs. Adjacent ranges
    /// are merged.
    #[must_use]
    pub fn ranges(&self, is_needed: impl Fn(Digest) -> bool) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for entry in self.entries().filter(|entry| entry.digest.is_some_and(&is_needed)) {
            let end = entry.offset + BLOCK as u64 + padded(entry.size);
            match ranges.last_mut().filter(|last| last.end == entry.offset) {
                Some(last) => last.end = end,
                None => ranges.push(entry.offset..end),
            }
        }
        ranges
    }

    /// Returns the configs and layers of `image`, including external ones, without duplicates.
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

    /// Returns the platforms of `image` in the bundle. Empty for an artifact. `config` returns the bytes of a
    /// config, which states the platform if no index does; `None`: it is not available. Fails if `config` does.
    pub fn platforms<E>(
        &self,
        image: &BundledImage,
        config: impl Fn(Digest) -> Result<Option<Vec<u8>>, E>,
    ) -> Result<Vec<Platform>, E> {
        let held: HashSet<Digest> = image.manifests.iter().map(|manifest| manifest.digest).collect();
        let mut platforms = BTreeMap::new();
        let mut add = |platform: &Platform| drop(platforms.insert(platform.to_string(), platform.clone()));
        for manifest in &image.manifests {
            if let Some(Manifest::Index(children)) = self.parsed.get(&manifest.digest) {
                let children = children.iter().filter(|child| held.contains(&child.digest));
                children.filter_map(|child| child.platform.as_ref()).for_each(&mut add);
            }
        }
        for (_, of) in self.deciding_configs(image) {
            let bytes = config(of.digest)?.unwrap_or_default();
            config_platform(&of.media_type, &bytes).ok().flatten().iter().for_each(&mut add);
        }
        Ok(platforms.into_values().collect())
    }

    /// Returns the manifests of `image` that are attestations, each with the manifest that it refers to.
    #[must_use]
    pub fn attestations(&self, image: &BundledImage) -> HashMap<Digest, Digest> {
        let children =
            image.manifests.iter().filter_map(|manifest| match self.parsed.get(&manifest.digest) {
                Some(Manifest::Index(children)) => Some(children),
                _ => None,
            });
        children.flatten().filter_map(|child| Some((child.digest, child.attests?))).collect()
    }

    /// Returns the manifests of `image` whose platform no index states, each with its config, which does. Not those of
    /// artifacts and attestations.
    #[must_use]
    pub fn deciding_configs(&self, image: &BundledImage) -> Vec<(Digest, &Descriptor)> {
        let (stated, attestations) = (self.platforms_of_children(image), self.attestations(image));
        let of_manifest = |manifest: &Blob| {
            let Manifest::Image { config, .. } = self.parsed.get(&manifest.digest)? else { return None };
            let digest = manifest.digest;
            let is_deciding = config.states_platform()
                && !stated.contains_key(&digest)
                && !attestations.contains_key(&digest);
            is_deciding.then_some((digest, config))
        };
        image.manifests.iter().filter_map(of_manifest).collect()
    }

    /// Returns the configs of images without an index: no other document states the platform of these images.
    pub fn platform_configs(&self) -> impl Iterator<Item = &Descriptor> {
        self.images.iter().filter_map(|image| match self.parsed.get(&image.indexed.digest) {
            Some(Manifest::Image { config, .. }) if config.states_platform() => Some(config),
            _ => None,
        })
    }

    /// Fails if one of [`Layout::platform_configs`] has an invalid platform. `config` returns the bytes of a
    /// config; `None`: it is not available.
    pub fn check_platforms(&self, config: impl Fn(Digest) -> Option<Vec<u8>>) -> Result<(), LayoutError> {
        for descriptor in self.platform_configs() {
            let Some(bytes) = config(descriptor.digest) else { continue };
            self.check_platform(descriptor, &bytes)?;
        }
        Ok(())
    }

    /// Fails if the platform in `config`, whose bytes are `bytes`, is invalid.
    pub fn check_platform(&self, config: &Descriptor, bytes: &[u8]) -> Result<(), LayoutError> {
        let Err(error) = config_platform(&config.media_type, bytes) else { return Ok(()) };
        Err(LayoutError::Platform(self.owners_text(&[config.digest]), error))
    }

    /// Returns the platforms that the indexes of `image` state for their children.
    #[must_use]
    pub fn platforms_of_children(&self, image: &BundledImage) -> HashMap<Digest, Platform> {
        let children =
            image.manifests.iter().filter_map(|manifest| match self.parsed.get(&manifest.digest) {
                Some(Manifest::Index(children)) => Some(children),
                _ => None,
            });
        children.flatten().filter_map(|child| Some((child.digest, child.platform.clone()?))).collect()
    }

    /// Returns the media types of the manifests of `image`.
    #[must_use]
    pub fn media_types(&self, image: &BundledImage) -> HashMap<Digest, MediaType> {
        let mut types: HashMap<Digest, MediaType> =
            [(image.indexed.digest, image.indexed.media_type.clone())].into();
        for manifest in &image.manifests {
            if let Some(Manifest::Index(children)) = self.parsed.get(&manifest.digest) {
                types.extend(children.iter().map(|child| (child.digest, child.media_type.clone())));
            }
        }
        types
    }

    /// Returns the total size of all blobs in the bundle, including manifests, in bytes.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.manifests.iter().chain(&self.blobs).map(|blob| blob.size).sum()
    }

    /// Returns the number and size of the blobs that a delta omits.
    #[must_use]
    pub fn external_totals(&self) -> Totals {
        Totals { blobs: self.external.len(), bytes: self.external.iter().map(|blob| blob.size).sum() }
    }

    /// Returns the images (references) and files (paths) that each of `blobs` belongs to.
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

    /// Returns the images and files that `blobs` belong to, for an error message: at most five, without
    /// duplicates.
    #[must_use]
    pub fn owners_text(&self, blobs: &[Digest]) -> String {
        const SHOWN: usize = 5;
        let all = self.owners(&blobs.iter().copied().collect());
        let mut seen = HashSet::new();
        let owners = blobs
            .iter()
            .flat_map(|digest| all.get(digest).cloned().unwrap_or_else(|| vec![digest.to_string()]))
            .filter(|owner| seen.insert(owner.clone()))
            .map(|owner| format!("`{owner}`"));
        listed(owners, SHOWN)
    }
}

impl From<&Descriptor> for Blob {
    fn from(descriptor: &Descriptor) -> Self {
        Self { digest: descriptor.digest, size: descriptor.size }
    }
}

/// The two zero blocks at the end of a tar archive, in bytes.
const END_OF_ARCHIVE: u64 = 2 * BLOCK as u64;

/// Runs of frames, and the bytes that are not in a frame yet.
#[derive(Default)]
struct FrameRuns {
    runs: Vec<u64>,
    open: u64,
}

impl FrameRuns {
    /// Ends the run.
    fn cut(&mut self) {
        if self.open > 0 {
            self.runs.push(std::mem::take(&mut self.open));
        }
    }
}

/// Returns the name of the entry of a blob (OCI image-layout, "blobs").
#[must_use]
pub fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Returns the tar header of an entry, which depends on `name` and `size` only.
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

/// Returns the empty config, which every bundle with files has.
#[must_use]
pub fn empty_config() -> Blob {
    Blob { digest: Digest::of(EMPTY_CONFIG), size: EMPTY_CONFIG.len() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frames_of_a_stated_size_are_not_collected() {
        let layout = Layout {
            index_size: 1,
            manifests: Vec::new(),
            blobs: vec![Blob { digest: Digest::of(b"a"), size: 1 << 53 }],
            external: Vec::new(),
            images: Vec::new(),
            files: Vec::new(),
            parsed: HashMap::new(),
        };
        // Two billion frames, which would have 16 GiB.
        let cuts: Vec<u64> = layout.cuts().take(4).collect();
        assert_eq!(cuts, [4 * BLOCK as u64, BLOCK as u64, FRAME_SIZE as u64, FRAME_SIZE as u64]);
        assert_eq!(layout.runs(), [4 * BLOCK as u64, BLOCK as u64, 1 << 53, END_OF_ARCHIVE]);
    }

    #[test]
    fn a_tar_header_states_sizes_above_8_gib() {
        for size in [0, 1, 511, (8 << 30) - 1, 8 << 30, 1 << 40] {
            let bytes = tar_header(&blob_name(Digest::of(b"")), size);
            let header = tar::Header::from_byte_slice(&bytes);
            assert_eq!(header.entry_size().unwrap(), size);
            assert_eq!(header.cksum().unwrap(), checksum(&bytes));
        }
    }

    /// Returns the checksum of a POSIX ustar header: the sum of all bytes, with spaces in the checksum field.
    fn checksum(header: &[u8; BLOCK]) -> u32 {
        header
            .iter()
            .enumerate()
            .map(|(at, byte)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte }))
            .sum()
    }
}
