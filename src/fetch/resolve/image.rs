//! [`ImageResolver`]: reads the manifests of one image and selects its platforms.

use std::collections::BTreeSet;

use crate::base::units::MAX_ENTRY_SIZE;
use crate::bundle::format::MANIFESTS_LIMIT;
use crate::bundle::format::index::IndexedImage;
use crate::documents::list::ImageEntry;
use crate::fetch::mirrored::MirroredRegistry;
use crate::fetch::resolve::context::ResolveContext;
use crate::fetch::resolve::foreign::ForeignLayer;
use crate::fetch::resolve::resolved::ResolvedImage;
use crate::net::error::{FetchError, FetchProblem, MismatchKind};
use crate::net::http::RequestContext;
use crate::oci::digest::Digest;
use crate::oci::manifest::{
    Descriptor, MANIFEST_LIMIT, Manifest, OCI_INDEX, config_platform, stated_media_type,
};
use crate::oci::platform::Platform;

/// Maximum depth of nested indexes.
const DEPTH_LIMIT: usize = 7;

/// Maximum number of descriptors in the indexes of one image.
const CHILD_LIMIT: usize = 10_000;

/// Resolves one image.
pub(crate) struct ImageResolver<'a> {
    context: &'a ResolveContext<'a>,
    registry: &'a MirroredRegistry,
    entry: &'a ImageEntry,
    object: String,
    /// The requested platforms; empty for all.
    wanted: &'a [Platform],
    /// Manifests of the image that are included.
    kept: BTreeSet<Digest>,
    /// Number of descriptors in its indexes.
    children: usize,
    /// Manifests that an index names and that are not included. Another index may include them.
    omitted: BTreeSet<Digest>,
    /// The requested platforms that the image has.
    found: BTreeSet<Platform>,
    /// All platforms of the image.
    available: BTreeSet<String>,
}

/// An image, and the digests of its manifests.
pub(crate) type ImageWithManifests = (ResolvedImage, BTreeSet<Digest>);

impl<'a> ImageResolver<'a> {
    /// `platforms` apply if the entry has none.
    pub(crate) fn new(
        context: &'a ResolveContext<'a>,
        registry: &'a MirroredRegistry,
        entry: &'a ImageEntry,
        platforms: &'a [Platform],
    ) -> Self {
        Self {
            context,
            registry,
            entry,
            object: entry.reference.to_string(),
            wanted: if entry.platforms.is_empty() { platforms } else { &entry.platforms },
            kept: BTreeSet::new(),
            children: 0,
            omitted: BTreeSet::new(),
            found: BTreeSet::new(),
            available: BTreeSet::new(),
        }
    }

    /// Requests the manifest that the reference names, and all below it.
    pub(crate) fn resolve(mut self) -> Result<ImageWithManifests, FetchError> {
        let root = self.request_root()?;
        self.add_root(root)
    }

    /// Like [`Self::resolve`]. `None`: the registry has no manifest of this name.
    pub(crate) fn resolve_if_exists(mut self) -> Result<Option<ImageWithManifests>, FetchError> {
        let root = match self.request_root() {
            Err(error) if error.status() == Some(404) => return Ok(None),
            root => root?,
        };
        self.add_root(root).map(Some)
    }

    /// Makes an image of an index that no registry has under this name, and requests all below it.
    pub(crate) fn resolve_made(mut self, index: Vec<u8>) -> Result<ImageWithManifests, FetchError> {
        let (mut image, kept) = self.add_root((OCI_INDEX.to_owned(), index))?;
        image.indexed.is_made = true;
        Ok((image, kept))
    }

    fn request_root(&mut self) -> Result<(String, Vec<u8>), FetchError> {
        let reference = &self.entry.reference;
        let name = match reference.digest() {
            Some(digest) => digest.to_string(),
            None => reference.tag().expect("a reference has a tag or a digest; please report").to_owned(),
        };
        let (media_type, bytes) = self.registry.manifest(self.request(), reference.repository(), &name)?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = reference.digest().filter(|expected| *expected != digest) {
            return Err(self.mismatch(MismatchKind::Digest, &expected, &digest));
        }
        Ok((media_type_of(&media_type, &bytes), bytes))
    }

    fn add_root(&mut self, (media_type, bytes): (String, Vec<u8>)) -> Result<ImageWithManifests, FetchError> {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        self.add_manifest(&media_type, digest, bytes, 0)?;
        let media_type = media_type.parse().expect("a manifest was parsed as this type; please report");
        self.check_platforms()?;
        // A manifest is omitted wherever an index names it, so none that is included may be.
        self.omitted.retain(|digest| !self.kept.contains(digest));
        let indexed = IndexedImage {
            reference: self.entry.reference.clone(),
            media_type,
            digest,
            size,
            omitted: std::mem::take(&mut self.omitted),
            platforms: self.wanted.to_vec(),
            is_made: false,
        };
        let image = ResolvedImage { indexed, registry: self.registry.clone() };
        Ok((image, std::mem::take(&mut self.kept)))
    }

    /// Adds a manifest and those that it names.
    fn add_manifest(
        &mut self,
        media_type: &str,
        digest: Digest,
        bytes: Vec<u8>,
        depth: usize,
    ) -> Result<(), FetchError> {
        let invalid = |error| FetchError::new(&self.object, FetchProblem::Manifest { digest, error });
        let manifest = Manifest::parse(media_type, &bytes).map_err(invalid)?;
        self.kept.insert(digest);
        if !self.context.manifests.insert_within_limit(digest, bytes) {
            return Err(FetchError::new(&self.object, FetchProblem::Limit(MANIFESTS_LIMIT)));
        }
        match manifest {
            Manifest::Image { config, layers } => {
                if let Some(blob) = layers.iter().chain([&config]).find(|blob| blob.size > MAX_ENTRY_SIZE) {
                    let (digest, size) = (blob.digest, blob.size);
                    let reason =
                        format!("invalid size {size} of `{digest}`: expected at most {MAX_ENTRY_SIZE} bytes");
                    return Err(self.invalid(reason));
                }
                for layer in layers.into_iter().filter(|layer| !layer.urls.is_empty()) {
                    let repository = self.entry.reference.repository();
                    self.context.foreign.add(ForeignLayer::new(
                        &self.object,
                        layer,
                        self.registry,
                        repository,
                    ));
                }
                // Below an index, the index states the platform.
                if depth == 0 && !self.wanted.is_empty() {
                    self.find_single_platform(&config)?;
                }
            }
            Manifest::Index(_) if depth >= DEPTH_LIMIT => {
                return Err(self.invalid(format!("indexes nested more than {DEPTH_LIMIT} levels deep")));
            }
            Manifest::Index(children) => {
                self.children += children.len();
                if self.children > CHILD_LIMIT {
                    return Err(self.invalid(format!("more than {CHILD_LIMIT} manifests in its indexes")));
                }
                for child in self.select(children) {
                    // Several indexes may name it. The layout compares the sizes that they state.
                    if self.kept.contains(&child.digest) {
                        continue;
                    }
                    let bytes = self.child(&child)?;
                    self.add_manifest(&child.media_type, child.digest, bytes, depth + 1)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the children of an index that are included, and records the others as omitted.
    fn select(&mut self, children: Vec<Descriptor>) -> Vec<Descriptor> {
        for platform in children.iter().filter_map(|child| child.platform.as_ref()) {
            self.record_platform(platform);
        }
        if self.wanted.is_empty() {
            return children;
        }
        let is_wanted = |platform: &Platform| self.wanted.iter().any(|wanted| wanted.selects(platform));
        let selected: BTreeSet<Digest> = children
            .iter()
            .filter(|child| child.platform.as_ref().is_some_and(is_wanted))
            .map(|child| child.digest)
            .collect();
        // An attestation is included with its image. A child without a platform is always included.
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

    /// Returns the bytes of a manifest that an index names: of an earlier index or image, or from the registry.
    fn child(&self, child: &Descriptor) -> Result<Vec<u8>, FetchError> {
        if let Some(bytes) = self.context.manifests.get(child.digest) {
            self.check_bytes(child, &bytes)?;
            return Ok(bytes);
        }
        let repository = self.entry.reference.repository();
        let (_, bytes) = self.registry.manifest(self.request(), repository, &child.digest.to_string())?;
        self.check_bytes(child, &bytes)?;
        Ok(bytes)
    }

    /// Reads the platform of an image without an index from its config.
    fn find_single_platform(&mut self, config: &Descriptor) -> Result<(), FetchError> {
        if config.size > MANIFEST_LIMIT {
            return Ok(()); // no image config has this size
        }
        let repository = self.entry.reference.repository();
        let bytes = self.registry.small_blob(self.request(), repository, config.digest, MANIFEST_LIMIT)?;
        self.check_bytes(config, &bytes)?;
        let platform = config_platform(&config.media_type, &bytes).map_err(|error| {
            FetchError::new(&self.object, FetchProblem::Config { digest: config.digest, error })
        })?;
        match platform {
            Some(platform) => self.record_platform(&platform),
            // An artifact is for all platforms.
            None => self.found.extend(self.wanted.iter().cloned()),
        }
        Ok(())
    }

    fn record_platform(&mut self, platform: &Platform) {
        self.available.insert(platform.to_string());
        self.found.extend(self.wanted.iter().filter(|wanted| wanted.selects(platform)).cloned());
    }

    /// Fails if a requested platform is missing. Platforms of the entry are all required. Platforms of the
    /// command line filter all images, so that one of them suffices.
    fn check_platforms(&self) -> Result<(), FetchError> {
        let missing: Vec<_> = self
            .wanted
            .iter()
            .filter(|wanted| !self.found.contains(wanted))
            .map(Platform::to_string)
            .collect();
        let all_required = !self.entry.platforms.is_empty();
        if missing.is_empty() || !all_required && !self.found.is_empty() || self.available.is_empty() {
            return Ok(());
        }
        let available: Vec<_> = self.available.iter().map(String::as_str).collect();
        let problem = FetchProblem::Platform { wanted: missing.join(", "), available: available.join(", ") };
        Err(FetchError::new(&self.object, problem))
    }

    fn check_bytes(&self, expected: &Descriptor, bytes: &[u8]) -> Result<(), FetchError> {
        if bytes.len() as u64 != expected.size {
            return Err(self.mismatch(MismatchKind::Size, &expected.size, &bytes.len()));
        }
        let digest = Digest::of(bytes);
        if digest != expected.digest {
            return Err(self.mismatch(MismatchKind::Digest, &expected.digest, &digest));
        }
        Ok(())
    }

    fn mismatch(&self, kind: MismatchKind, expected: &impl ToString, found: &impl ToString) -> FetchError {
        let (expected, found, url) = (expected.to_string(), found.to_string(), self.registry_name());
        FetchError::new(&self.object, FetchProblem::Mismatch { kind, expected, found, url })
    }

    fn invalid(&self, reason: impl Into<String>) -> FetchError {
        let (url, reason) = (self.registry_name(), reason.into());
        FetchError::new(&self.object, FetchProblem::Protocol { url, reason })
    }

    fn registry_name(&self) -> String {
        format!("the registry {}", self.entry.reference.host())
    }

    fn request(&self) -> RequestContext<'_> {
        self.context.request(&self.object)
    }
}

/// Returns the media type of a manifest: the one in the header, or, if that is too general, the one in the
/// manifest.
fn media_type_of(header: &str, bytes: &[u8]) -> String {
    if !matches!(header, "" | "application/json" | "application/octet-stream" | "text/plain") {
        return header.to_owned();
    }
    stated_media_type(bytes).unwrap_or_else(|| header.to_owned())
}
