//! [`Selection`]: what of a bundle is wanted, by name and by platform.
//!
//! A layout that has been narrowed to it names only the images, manifests and files that are wanted; where everything
//! stands in the bundle it says as before.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use globset::{GlobBuilder, GlobMatcher};

use crate::bundle::format::MANIFESTS_LIMIT;
use crate::bundle::format::layout::{Blob, BundledImage, Layout, LayoutError};
use crate::bundle::read::error::{ReadError, Unavailable};
use crate::bundle::read::reader::BundleReader;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, Manifest, config_platform, has_platform};
use crate::oci::platform::Platform;

/// What of a bundle is wanted: everything, if nothing is said.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The names of images and files. Without any, all are wanted.
    pub only: Vec<Pattern>,
    /// The platforms of images. Without any, all are wanted.
    pub platforms: Vec<Platform>,
}

/// A name with wildcards: `*` and `?` stand for anything but `/`, `**` for any number of parts between two `/`, `[…]`
/// for one of some characters, `{…,…}` for one of some texts.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    matcher: GlobMatcher,
}

/// Why a text is no [`Pattern`].
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
    /// Whether `name` is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.text == name || self.matcher.is_match(name)
    }
}

/// Why nothing can be selected.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// The configs that say what platforms images are for cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Names that nothing has.
    #[error(
        "nothing in the bundle has the name `{}`: `unbundle ls` shows the references of its images and the paths of its \
         files (`*` stands for no `/`, `**/` for any directories)", .0.join("`, `")
    )]
    Name(Vec<String>),
    /// A platform that no image is for.
    #[error("none of the images is for {wanted}, but for {}", present.join(", "))]
    Platform {
        /// The platform.
        wanted: Platform,
        /// Those that there are.
        present: Vec<String>,
    },
}

/// What had to be read of a bundle to know what of it is wanted.
#[derive(Debug, Default)]
pub struct Prefetched {
    /// How many of the layout's blobs the reader is past.
    pub passed: usize,
    /// Those of them that are wanted, and others that were needed to know.
    pub blobs: HashMap<Digest, Vec<u8>>,
    /// Those that are wanted, too, and cannot be read.
    pub lost: Vec<(Digest, Unavailable)>,
}

impl Selection {
    /// Whether everything is wanted.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.only.is_empty() && self.platforms.is_empty()
    }

    /// Leaves nothing in `layout` that is not wanted. `reader` has read the documents; where only a config says what
    /// platform an image is for, it is read, or, where a delta leaves it out, asked for from `site`.
    pub fn apply(
        &self,
        layout: &mut Layout,
        reader: &mut BundleReader,
        site: impl Fn(Digest) -> Option<Vec<u8>>,
    ) -> Result<Prefetched, SelectError> {
        self.by_name(layout)?;
        if self.platforms.is_empty() {
            return Ok(Prefetched::default());
        }
        let mut early = configs(layout, reader)?;
        let elsewhere: Vec<Digest> = asked(layout)
            .filter(|digest| layout.external.iter().any(|blob| blob.digest == *digest))
            .collect();
        let known = elsewhere.into_iter().filter_map(|digest| Some((digest, site(digest)?)));
        early.blobs.extend(known.filter(|(digest, bytes)| Digest::of(bytes) == *digest));
        self.by_platform(layout, &early)?;
        Ok(early)
    }

    fn by_name(&self, layout: &mut Layout) -> Result<(), SelectError> {
        if self.only.is_empty() {
            return Ok(());
        }
        let mut used = vec![false; self.only.len()];
        let mut is_wanted = |name: &str| {
            let mut is_wanted = false;
            for (pattern, used) in self.only.iter().zip(&mut used) {
                let matches = pattern.matches(name);
                *used |= matches;
                is_wanted |= matches;
            }
            is_wanted
        };
        let wanted: Vec<bool> =
            layout.images.iter().map(|image| is_wanted(&image.indexed.reference.to_string())).collect();
        layout.files.retain(|file| is_wanted(&file.path.to_string()));
        let missed: Vec<_> = (self.only.iter().zip(&used))
            .filter(|(_, used)| !**used)
            .map(|(pattern, _)| pattern.text.clone())
            .collect();
        if !missed.is_empty() {
            return Err(SelectError::Name(missed));
        }
        let images = std::mem::take(&mut layout.images).into_iter().zip(wanted);
        layout.images = with_attached(images.collect());
        Ok(())
    }

    fn by_platform(&self, layout: &mut Layout, early: &Prefetched) -> Result<(), SelectError> {
        let (mut found, mut present) = (BTreeSet::new(), BTreeSet::new());
        let mut images = std::mem::take(&mut layout.images);
        let had_images = !images.is_empty();
        images.retain_mut(|image| {
            let selected = self.select(image, layout, early);
            found.extend(selected.found);
            present.extend(selected.present);
            image.manifests.retain(|manifest| selected.manifests.contains(&manifest.digest));
            !image.manifests.is_empty()
        });
        layout.images = images;
        let unlikely = self.platforms.iter().find(|wanted| !found.contains(*wanted));
        match unlikely.filter(|_| had_images && !present.is_empty()) {
            Some(wanted) => {
                let present = present.iter().map(ToString::to_string).collect();
                Err(SelectError::Platform { wanted: wanted.clone(), present })
            }
            None => Ok(()),
        }
    }

    /// What of one image is wanted.
    fn select(&self, image: &BundledImage, layout: &Layout, early: &Prefetched) -> Selected {
        let held: HashSet<Digest> = image.manifests.iter().map(|manifest| manifest.digest).collect();
        let mut selected = Selected::default();
        let root = image.indexed.digest;
        if let Some(Manifest::Image { config, .. }) = layout.parsed.get(&root) {
            let bytes = early.blobs.get(&config.digest).map(Vec::as_slice).unwrap_or_default();
            let platform = config_platform(&config.media_type, bytes);
            if platform.is_none_or(|platform| selected.takes(&self.platforms, &platform)) {
                selected.manifests.insert(root);
            }
        } else {
            selected.manifests.insert(root);
            self.select_children(root, &held, layout, &mut selected);
            if selected.found.is_empty() && !selected.present.is_empty() {
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
        selected: &mut Selected,
    ) {
        let Some(Manifest::Index(children)) = layout.parsed.get(&index) else { return };
        let children: Vec<&Descriptor> =
            children.iter().filter(|child| held.contains(&child.digest)).collect();
        let known = |child: &Descriptor| child.platform.clone().filter(|platform| platform.os != "unknown");
        let wanted: HashSet<Digest> = children
            .iter()
            .filter(|child| known(child).is_some_and(|is| selected.takes(&self.platforms, &is)))
            .map(|child| child.digest)
            .collect();
        for child in children {
            // As when a bundle is packed: an attestation goes with its image, and what has no platform stays.
            let is_wanted = wanted.contains(&child.digest)
                || match child.attests {
                    Some(image) => wanted.contains(&image),
                    None => child.platform.is_none(),
                };
            if is_wanted && selected.manifests.insert(child.digest) {
                self.select_children(child.digest, held, layout, selected);
            }
        }
    }
}

/// The part of an image that is wanted.
#[derive(Default)]
struct Selected {
    manifests: HashSet<Digest>,
    /// Which of the wanted platforms it has.
    found: BTreeSet<Platform>,
    /// All that it has.
    present: BTreeSet<Platform>,
}

impl Selected {
    /// Notes the platform of a part; says whether it is wanted.
    fn takes(&mut self, wanted: &[Platform], platform: &Platform) -> bool {
        self.present.insert(platform.clone());
        let mut is_wanted = false;
        for wanted in wanted.iter().filter(|wanted| wanted.selects(platform)) {
            self.found.insert(wanted.clone());
            is_wanted = true;
        }
        is_wanted
    }
}

/// The images that are wanted, and what is attached to them: nobody could check a signature that is not there.
fn with_attached(mut images: Vec<(BundledImage, bool)>) -> Vec<BundledImage> {
    loop {
        let subjects: HashSet<(String, Digest)> = (images.iter().filter(|(_, is_wanted)| *is_wanted))
            .flat_map(|(image, _)| {
                let place = place(image);
                image.manifests.iter().map(move |manifest| (place.clone(), manifest.digest))
            })
            .collect();
        let mut is_more = false;
        for (image, is_wanted) in images.iter_mut().filter(|(_, is_wanted)| !is_wanted) {
            let subject = image.indexed.reference.subject();
            if subject.is_some_and(|subject| subjects.contains(&(place(image), subject))) {
                (*is_wanted, is_more) = (true, true);
            }
        }
        if !is_more {
            return images.into_iter().filter(|(_, is_wanted)| *is_wanted).map(|(image, _)| image).collect();
        }
    }
}

/// The repository of an image, with its host.
fn place(image: &BundledImage) -> String {
    format!("{}/{}", image.indexed.reference.host(), image.indexed.reference.repository())
}

/// The configs that alone say what platform an image is for.
fn asked(layout: &Layout) -> impl Iterator<Item = Digest> {
    layout.images.iter().filter_map(|image| match layout.parsed.get(&image.indexed.digest) {
        Some(Manifest::Image { config, .. }) if has_platform(&config.media_type) => Some(config.digest),
        _ => None,
    })
}

/// Reads the configs that alone say what platform an image is for, and on the way those that are wanted, too.
fn configs(layout: &Layout, reader: &mut BundleReader) -> Result<Prefetched, ReadError> {
    let asked: HashSet<Digest> = asked(layout).collect();
    let mut early = Prefetched::default();
    let Some(last) = layout.blobs.iter().rposition(|blob| asked.contains(&blob.digest)) else {
        return Ok(early);
    };
    early.passed = last + 1;
    let mut wanted: HashSet<Digest> = asked;
    let blobs = layout.images.iter().flat_map(|image| layout.blobs_of(image));
    wanted.extend(blobs.map(|blob| blob.digest).chain(layout.files.iter().map(|file| file.digest)));
    let passed = &layout.blobs[..early.passed];
    let held: Vec<&Blob> = passed.iter().filter(|blob| wanted.contains(&blob.digest)).collect();
    if held.iter().map(|blob| blob.size).sum::<u64>() > MANIFESTS_LIMIT {
        return Err(LayoutError::Limit("configs of too many bytes", MANIFESTS_LIMIT).into());
    }
    let held: HashSet<Digest> = held.iter().map(|blob| blob.digest).collect();
    reader.narrow(layout.ranges(|digest| held.contains(&digest)));
    let mut end: Option<Unavailable> = None;
    for blob in passed {
        let is_held = held.contains(&blob.digest);
        let read = match &end {
            Some(loss) => Err(loss.clone()),
            None if is_held => bytes_of(reader, blob).map_err(|error| Unavailable::from(&error)),
            None => reader.skip(blob).map(|()| Vec::new()).map_err(|error| Unavailable::from(&error)),
        };
        match read {
            Ok(bytes) if is_held => {
                early.blobs.insert(blob.digest, bytes);
            }
            Ok(_) => {}
            Err(loss) => {
                if reader.is_lost() {
                    end = Some(loss.clone());
                }
                if is_held {
                    early.lost.push((blob.digest, loss));
                }
            }
        }
    }
    Ok(early)
}

/// The bytes of `blob`, the next one of `reader`.
fn bytes_of(reader: &mut BundleReader, blob: &Blob) -> Result<Vec<u8>, ReadError> {
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
    fn a_star_stays_within_a_directory_and_two_stars_do_not() {
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
            // What the name itself has is meant as it stands.
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
