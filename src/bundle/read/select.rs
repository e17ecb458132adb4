//! [`Selection`]: selects images and files of a bundle by name and by platform.
//!
//! Applying a selection removes all other images, manifests and files from a [`Layout`]. The positions of the
//! entries stay the same.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use globset::{GlobBuilder, GlobMatcher};

use crate::base::fs::FsError;
use crate::bundle::format::MANIFESTS_LIMIT;
use crate::bundle::format::layout::{Blob, BundledImage, Layout, LayoutError};
use crate::bundle::read::error::{ReadError, Unavailable};
use crate::bundle::read::reader::BundleReader;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, Manifest, config_platform};
use crate::oci::platform::Platform;

/// Selected parts of a bundle. The default selects everything.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Patterns for the names of images and files. Empty: all.
    pub only: Vec<Pattern>,
    /// Platforms of images. Empty: all.
    pub platforms: Vec<Platform>,
}

/// A glob pattern: `*` and `?` do not match `/`, `**` matches any number of components, `[…]` matches one of
/// several characters, `{…,…}` one of several texts. A name also matches itself.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    matcher: GlobMatcher,
}

/// A text that is not a valid [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParsePatternError(String);

impl FromStr for Pattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let glob = GlobBuilder::new(text).literal_separator(true).build();
        let glob = glob.map_err(|error| ParsePatternError(error.kind().to_string()))?;
        Ok(Self { text: text.to_owned(), matcher: glob.compile_matcher() })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Pattern {
    /// True if the pattern matches `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.text == name || self.matcher.is_match(name)
    }
}

/// An error of applying a [`Selection`].
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// The configs that state the platforms of images cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A config of the site cannot be read.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Patterns that match nothing.
    #[error(
        "no image or file in the bundle matches `{}`: run `unbundle ls` for the names (`*` does not match `/`, `**/` \
         matches any directories)", .0.join("`, `")
    )]
    Name(Vec<String>),
    /// A platform that no image has.
    #[error("no image in the bundle has the platform {requested}: available are {}", present.join(", "))]
    Platform {
        /// The requested platform.
        requested: Platform,
        /// The platforms in the bundle.
        present: Vec<String>,
    },
}

/// Blobs that were read to apply a [`Selection`].
#[derive(Debug, Default)]
pub struct Prefetched {
    /// Number of blobs of the layout that the reader has passed.
    pub passed: usize,
    /// The selected ones of these blobs, and configs that were needed for the selection.
    pub blobs: HashMap<Digest, Vec<u8>>,
    /// The selected ones of these blobs that cannot be read.
    pub lost: Vec<(Digest, Unavailable)>,
}

impl Selection {
    /// True if everything is selected.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.only.is_empty() && self.platforms.is_empty()
    }

    /// Removes everything from `layout` that is not selected. `reader` has read the documents. If only a
    /// config states the platform of an image, reads the config, or calls `site` for it if a delta omits it. Fails
    /// if such a platform is invalid, or `site` fails.
    pub fn apply(
        &self,
        layout: &mut Layout,
        reader: &mut BundleReader,
        site: impl Fn(Digest) -> Result<Option<Vec<u8>>, FsError>,
    ) -> Result<Prefetched, SelectError> {
        self.by_name(layout)?;
        if self.platforms.is_empty() {
            return Ok(Prefetched::default());
        }
        let configs = deciding_configs(layout);
        let mut prefetched = prefetch_configs(layout, &configs, reader)?;
        let external: HashSet<Digest> = layout.external.iter().map(|blob| blob.digest).collect();
        for digest in configs.into_iter().filter(|digest| external.contains(digest)) {
            let bytes = site(digest)?.filter(|bytes| Digest::of(bytes) == digest);
            prefetched.blobs.extend(bytes.map(|bytes| (digest, bytes)));
        }
        layout.check_platforms(|digest| prefetched.blobs.get(&digest).cloned()).map_err(ReadError::from)?;
        self.by_platform(layout, &prefetched)?;
        Ok(prefetched)
    }

    fn by_name(&self, layout: &mut Layout) -> Result<(), SelectError> {
        if self.only.is_empty() {
            return Ok(());
        }
        let mut has_match = vec![false; self.only.len()];
        let mut matches_any = |name: &str| {
            let mut is_match = false;
            for (pattern, has_match) in self.only.iter().zip(&mut has_match) {
                let matches = pattern.matches(name);
                *has_match |= matches;
                is_match |= matches;
            }
            is_match
        };
        let images = std::mem::take(&mut layout.images).into_iter().map(|image| {
            let is_selected = matches_any(&image.indexed.reference.to_string());
            (image, is_selected)
        });
        layout.images = with_referrers(images.collect());
        layout.files.retain(|file| matches_any(&file.path.to_string()));
        let unmatched: Vec<_> = (self.only.iter().zip(&has_match))
            .filter(|(_, has_match)| !**has_match)
            .map(|(pattern, _)| pattern.text.clone())
            .collect();
        if unmatched.is_empty() { Ok(()) } else { Err(SelectError::Name(unmatched)) }
    }

    fn by_platform(&self, layout: &mut Layout, prefetched: &Prefetched) -> Result<(), SelectError> {
        let (mut matched, mut present) = (BTreeSet::new(), BTreeSet::new());
        let mut images = std::mem::take(&mut layout.images);
        let had_images = !images.is_empty();
        images.retain_mut(|image| {
            let selected = self.select(image, layout, prefetched);
            matched.extend(selected.matched);
            present.extend(selected.present);
            image.manifests.retain(|manifest| selected.manifests.contains(&manifest.digest));
            !image.manifests.is_empty()
        });
        layout.images = images;
        let unmatched = self.platforms.iter().find(|requested| !matched.contains(*requested));
        match unmatched.filter(|_| had_images && !present.is_empty()) {
            Some(requested) => {
                let present = present.iter().map(ToString::to_string).collect();
                Err(SelectError::Platform { requested: requested.clone(), present })
            }
            None => Ok(()),
        }
    }

    /// Selects the manifests of one image.
    fn select(&self, image: &BundledImage, layout: &Layout, prefetched: &Prefetched) -> Selected {
        let held: HashSet<Digest> = image.manifests.iter().map(|manifest| manifest.digest).collect();
        let mut selected = Selected::default();
        let root = image.indexed.digest;
        let platforms = layout.deciding_configs(image).into_iter().filter_map(|(manifest, config)| {
            let bytes = prefetched.blobs.get(&config.digest)?;
            // `apply` has refused an invalid platform of an image without an index.
            Some((manifest, config_platform(&config.media_type, bytes).ok().flatten()))
        });
        let platforms: ConfigPlatforms = platforms.collect();
        if let Some(Manifest::Image { .. }) = layout.parsed.get(&root) {
            let platform = platforms.get(&root).and_then(Option::as_ref);
            if platform.is_none_or(|platform| selected.add_platform(&self.platforms, platform)) {
                selected.manifests.insert(root);
            }
        } else {
            selected.manifests.insert(root);
            self.select_children(root, &held, layout, &platforms, &mut selected);
            if selected.matched.is_empty() && !selected.present.is_empty() {
                selected.manifests.clear();
            }
        }
        selected
    }

    fn select_children(
        &self,
        index: Digest,
        held: &HashSet<Digest>,
        layout: &Layout,
        platforms: &ConfigPlatforms,
        selected: &mut Selected,
    ) {
        let Some(Manifest::Index(children)) = layout.parsed.get(&index) else { return };
        let children: Vec<&Descriptor> =
            children.iter().filter(|child| held.contains(&child.digest)).collect();
        let matching: HashSet<Digest> = children
            .iter()
            .filter(|child| {
                let of_config = || platforms.get(&child.digest)?.as_ref();
                let platform = child.platform.as_ref().or_else(of_config);
                platform.is_some_and(|is| selected.add_platform(&self.platforms, is))
            })
            .map(|child| child.digest)
            .collect();
        for child in children {
            // As `pack` selects: an attestation follows its image, and nested indexes and artifacts are kept. So are
            // manifests whose config cannot be read.
            let is_selected = matching.contains(&child.digest)
                || match child.attests {
                    Some(image) => matching.contains(&image),
                    None => child.platform.is_none() && !platforms.contains_key(&child.digest),
                };
            if is_selected && selected.manifests.insert(child.digest) {
                self.select_children(child.digest, held, layout, platforms, selected);
            }
        }
    }
}

/// The platforms in the configs that can be read, by the digest of the manifest. `None`: it has none.
type ConfigPlatforms = HashMap<Digest, Option<Platform>>;

/// The selected part of an image.
#[derive(Default)]
struct Selected {
    manifests: HashSet<Digest>,
    /// The requested platforms that match.
    matched: BTreeSet<Platform>,
    /// All platforms of the image.
    present: BTreeSet<Platform>,
}

impl Selected {
    /// Records a platform of the image. Returns true if one of the `requested` platforms matches it.
    fn add_platform(&mut self, requested: &[Platform], platform: &Platform) -> bool {
        self.present.insert(platform.clone());
        let mut is_match = false;
        for requested in requested.iter().filter(|requested| requested.selects(platform)) {
            self.matched.insert(requested.clone());
            is_match = true;
        }
        is_match
    }
}

/// Returns the selected images and their cosign artifacts and referrers, without which signatures cannot be
/// verified.
fn with_referrers(mut images: Vec<(BundledImage, bool)>) -> Vec<BundledImage> {
    loop {
        let subjects: HashSet<(String, Digest)> = (images.iter().filter(|(_, is_selected)| *is_selected))
            .flat_map(|(image, _)| {
                let repository = repository(image);
                image.manifests.iter().map(move |manifest| (repository.clone(), manifest.digest))
            })
            .collect();
        // A referrer can have referrers too, so this repeats until none is added.
        let mut has_more = false;
        for (image, is_selected) in images.iter_mut().filter(|(_, is_selected)| !is_selected) {
            let subject = image.indexed.reference.subject();
            if subject.is_some_and(|subject| subjects.contains(&(repository(image), subject))) {
                (*is_selected, has_more) = (true, true);
            }
        }
        if !has_more {
            let selected = images.into_iter().filter(|(_, is_selected)| *is_selected);
            return selected.map(|(image, _)| image).collect();
        }
    }
}

/// Returns the repository of an image, including the host.
fn repository(image: &BundledImage) -> String {
    image.indexed.reference.name()
}

/// Returns the digests of the configs that state platforms.
fn deciding_configs(layout: &Layout) -> HashSet<Digest> {
    let configs = layout.images.iter().flat_map(|image| layout.deciding_configs(image));
    configs.map(|(_, config)| config.digest).collect()
}

/// Reads the configs that state platforms, and the selected blobs between them.
fn prefetch_configs(
    layout: &Layout,
    configs: &HashSet<Digest>,
    reader: &mut BundleReader,
) -> Result<Prefetched, ReadError> {
    let mut prefetched = Prefetched::default();
    let Some(last) = layout.blobs.iter().rposition(|blob| configs.contains(&blob.digest)) else {
        return Ok(prefetched);
    };
    prefetched.passed = last + 1;
    let passed = &layout.blobs[..prefetched.passed];
    let mut needed = configs.clone();
    let image_blobs = layout.images.iter().flat_map(|image| layout.blobs_of(image)).map(|blob| blob.digest);
    needed.extend(image_blobs.chain(layout.files.iter().map(|file| file.digest)));
    let needed: HashMap<Digest, u64> = (passed.iter().filter(|blob| needed.contains(&blob.digest)))
        .map(|blob| (blob.digest, blob.size))
        .collect();
    let size: u64 = needed.values().sum();
    if size > MANIFESTS_LIMIT {
        return Err(LayoutError::Limit("configs of too many bytes", MANIFESTS_LIMIT).into());
    }
    reader.narrow(layout.ranges(|digest| needed.contains_key(&digest)));
    // The error after which nothing can be read.
    let mut end: Option<Unavailable> = None;
    for blob in passed {
        let is_needed = needed.contains_key(&blob.digest);
        let read = match &end {
            Some(loss) => Err(loss.clone()),
            None if is_needed => read_blob(reader, blob).map_err(|error| Unavailable::from(&error)),
            None => reader.skip(blob).map(|()| Vec::new()).map_err(|error| Unavailable::from(&error)),
        };
        if let Err(loss) = &read
            && reader.is_lost()
        {
            end = Some(loss.clone());
        }
        match read {
            Ok(bytes) if is_needed => drop(prefetched.blobs.insert(blob.digest, bytes)),
            Err(loss) if is_needed => prefetched.lost.push((blob.digest, loss)),
            _ => {}
        }
    }
    Ok(prefetched)
}

/// Reads and verifies `blob`, which must be the next one.
fn read_blob(reader: &mut BundleReader, blob: &Blob) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    reader.blob::<ReadError>(blob, |slice| {
        bytes.extend_from_slice(&slice);
        Ok(())
    })?;
    if Digest::of(&bytes) == blob.digest { Ok(bytes) } else { Err(ReadError::Digest(blob.digest)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_does_not_match_a_slash_and_two_stars_do() {
        for (pattern, name, matches) in [
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9", true),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.90", false),
            ("registry.k8s.io/*", "registry.k8s.io/pause:3.9", true),
            ("registry.k8s.io/*", "registry.k8s.io/coredns/coredns:v1", false),
            ("registry.k8s.io/**", "registry.k8s.io/coredns/coredns:v1", true),
            ("**/coredns:*", "registry.k8s.io/coredns/coredns:v1", true),
            ("**/kubectl", "dl.k8s.io/release/v1/bin/linux/amd64/kubectl", true),
            ("dl.k8s.io/**/amd64/*", "dl.k8s.io/release/v1/bin/linux/amd64/kubectl", true),
            ("dl.k8s.io/**/amd64/*", "dl.k8s.io/release/v1/bin/linux/arm64/kubectl", false),
            ("*/pause:3.?", "registry.k8s.io/pause:3.9", true),
            ("*/pause:3.[0-8]", "registry.k8s.io/pause:3.9", false),
            ("*/pause:{3.8,3.9}", "registry.k8s.io/pause:3.9", true),
            ("Registry.k8s.io/*", "registry.k8s.io/pause:3.9", false),
            // A name matches itself, even if it contains special characters.
            ("[::1]:5000/a:1", "[::1]:5000/a:1", true),
            ("pause:3.9", "registry.k8s.io/pause:3.9", false),
        ] {
            assert_eq!(pattern.parse::<Pattern>().unwrap().matches(name), matches, "{pattern} {name}");
        }
        for bad in ["a[b", "{a", "a]{b"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
