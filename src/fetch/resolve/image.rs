//! [`ImageResolver`]: reads the manifests of one image and selects its platforms.

use std::collections::{BTreeSet, HashMap};

use crate::base::event::Event;
use crate::base::units::MAX_ENTRY_SIZE;
use crate::bundle::format::MANIFESTS_LIMIT;
use crate::bundle::format::index::IndexedImage;
use crate::bundle::format::layout::Blob;
use crate::documents::list::ImageEntry;
use crate::fetch::mirrored::MirroredRegistry;
use crate::fetch::registry::FetchedManifest;
use crate::fetch::resolve::context::ResolveContext;
use crate::fetch::resolve::foreign::ForeignLayer;
use crate::fetch::resolve::options::ResolveOptions;
use crate::fetch::resolve::resolved::ResolvedImage;
use crate::net::error::{FetchError, FetchProblem, MismatchKind, MissingChild};
use crate::net::http::RequestContext;
use crate::oci::digest::Digest;
use crate::oci::manifest::{
    Descriptor, MANIFEST_LIMIT, MANIFEST_TYPES, Manifest, ManifestError, OCI_INDEX, config_platform,
    has_platform,
};
use crate::oci::media_type::MediaType;
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
    without_attestations: bool,
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
    /// Number of image manifests that are included.
    images: usize,
    /// True if an included manifest has no platform, such as that of an artifact: it is for all platforms.
    has_artifact: bool,
    /// Manifests that were read to find their platform.
    examined: HashMap<Digest, Vec<u8>>,
}

/// An image, and the digests of its manifests.
pub(crate) type ImageWithManifests = (ResolvedImage, BTreeSet<Digest>);

impl<'a> ImageResolver<'a> {
    /// The platforms of `options` apply if the entry has none.
    pub(crate) fn new(
        context: &'a ResolveContext<'a>,
        registry: &'a MirroredRegistry,
        entry: &'a ImageEntry,
        options: &'a ResolveOptions,
    ) -> Self {
        Self {
            context,
            registry,
            entry,
            object: entry.reference.to_string(),
            wanted: if entry.platforms.is_empty() { &options.platforms } else { &entry.platforms },
            without_attestations: options.without_attestations,
            kept: BTreeSet::new(),
            children: 0,
            omitted: BTreeSet::new(),
            found: BTreeSet::new(),
            available: BTreeSet::new(),
            images: 0,
            has_artifact: false,
            examined: HashMap::new(),
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

    /// Like [`Self::resolve_if_exists`], for the tag of the referrers of `subject`. `None`, too: the tag has another
    /// document than an index with entries. Some registries resolve the tag to the subject itself.
    pub(crate) fn resolve_referrers(
        mut self,
        subject: Digest,
    ) -> Result<Option<ImageWithManifests>, FetchError> {
        let (media_type, bytes) = match self.request_root() {
            Err(error) if error.status() == Some(404) => return Ok(None),
            Err(error)
                if matches!(error.problem, FetchProblem::Manifest { .. } | FetchProblem::Protocol { .. }) =>
            {
                self.warn(format!("`{}` is no list of referrers: {}", self.object, error.reason()));
                return Ok(None);
            }
            root => root?,
        };
        match Manifest::parse(media_type, &bytes) {
            Ok(Manifest::Index(children)) if !children.is_empty() && Digest::of(&bytes) != subject => {
                self.add_root((media_type, bytes)).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Makes an image of an index that no registry has under this name, and requests all below it.
    pub(crate) fn resolve_made(mut self, index: Vec<u8>) -> Result<ImageWithManifests, FetchError> {
        let (mut image, kept) = self.add_root((OCI_INDEX, index))?;
        image.indexed.is_made = true;
        Ok((image, kept))
    }

    /// Returns the media type that the document has, and its bytes.
    fn request_root(&mut self) -> Result<(&'static str, Vec<u8>), FetchError> {
        let reference = &self.entry.reference;
        let FetchedManifest { media_type: header, bytes, .. } =
            self.context.manifest_of(self.registry, self.request(), reference)?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = reference.digest().filter(|expected| *expected != digest) {
            return Err(self.mismatch(MismatchKind::Digest, &expected, &digest));
        }
        let typed = Manifest::parse_document(&header, &bytes);
        let media_type = typed.map_err(|error| self.invalid_manifest(digest, error))?.media_type;
        if header != media_type && MANIFEST_TYPES.contains(&&*header) {
            self.warn(format!(
                "`{}`: {} announced `{header}`, but the document is `{media_type}`",
                self.object,
                self.registry_name()
            ));
        }
        Ok((media_type, bytes))
    }

    fn add_root(
        &mut self,
        (media_type, bytes): (&'static str, Vec<u8>),
    ) -> Result<ImageWithManifests, FetchError> {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        self.add_manifest(media_type, digest, bytes, 0)?;
        let media_type = MediaType::known(media_type);
        self.check_platforms()?;
        if self.images == 0 {
            return Err(self.invalid("the index names no image manifest"));
        }
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
        let manifest =
            Manifest::parse(media_type, &bytes).map_err(|error| self.invalid_manifest(digest, error))?;
        self.kept.insert(digest);
        if !self.context.manifests.insert_within_limit(digest, bytes) {
            return Err(FetchError::new(&self.object, FetchProblem::Limit(MANIFESTS_LIMIT)));
        }
        match manifest {
            Manifest::Image { config, layers } => {
                self.images += 1;
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
                    match self.platform_of_config(&config)? {
                        Some(platform) => drop(self.record_platform(&platform)),
                        None => self.has_artifact = true,
                    }
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
                self.check_is_image(&children)?;
                for child in self.select(children)? {
                    // Several indexes may name it. The layout compares the sizes that they state.
                    if self.kept.contains(&child.digest) {
                        continue;
                    }
                    if let Some(bytes) = self.child_to_add(&child)? {
                        self.add_manifest(&child.media_type, child.digest, bytes, depth + 1)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Fails if an index names the layers of a build cache.
    fn check_is_image(&self, children: &[Descriptor]) -> Result<(), FetchError> {
        let is_cache =
            |child: &&Descriptor| child.media_type.starts_with("application/vnd.buildkit.cacheconfig");
        match children.iter().find(is_cache) {
            Some(child) => {
                Err(self.invalid(format!("a BuildKit cache, not an image: it names `{}`", child.media_type)))
            }
            None => Ok(()),
        }
    }

    /// Returns the bytes of a manifest that is included. `None`: it is an attestation that the registry lacks, and a
    /// selection of platforms need not be complete.
    fn child_to_add(&mut self, child: &Descriptor) -> Result<Option<Vec<u8>>, FetchError> {
        let error = match self.child(child) {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(error) if !matches!(error.status(), Some(404 | 410)) => return Err(error),
            Err(error) => error,
        };
        let digest = child.digest;
        if child.attests.is_some() && !self.wanted.is_empty() {
            self.warn(format!("`{}`: attestation {digest} is omitted: {}", self.object, error.reason()));
            self.omitted.insert(digest);
            return Ok(None);
        }
        let of =
            child.platform.as_ref().map_or("a manifest without platform".to_owned(), Platform::to_string);
        let (name, option) = match child.attests {
            Some(subject) => {
                (format!("the attestation of {subject}"), "`--without attestations` or `--platform`")
            }
            None => (of, "`--platform`"),
        };
        let problem =
            FetchProblem::Child(Box::new(MissingChild { name, digest, reason: error.reason(), option }));
        Err(FetchError::new(&self.object, problem))
    }

    /// Returns the children of an index that are included, and records the others as omitted.
    fn select(&mut self, mut children: Vec<Descriptor>) -> Result<Vec<Descriptor>, FetchError> {
        if self.without_attestations {
            self.omitted
                .extend(children.extract_if(.., |child| child.attests.is_some()).map(|child| child.digest));
        }
        if self.wanted.is_empty() {
            for platform in children.iter().filter_map(|child| child.platform.as_ref()) {
                self.record_platform(platform);
            }
            return Ok(children);
        }
        let mut selected = BTreeSet::new();
        for child in children.iter().filter(|child| child.attests.is_none()) {
            if self.selects(child)? {
                selected.insert(child.digest);
            }
        }
        // An attestation is included with its image.
        let (kept, omitted): (Vec<_>, Vec<_>) = children.into_iter().partition(|child| {
            selected.contains(&child.digest) || child.attests.is_some_and(|image| selected.contains(&image))
        });
        self.omitted.extend(omitted.iter().map(|child| child.digest));
        Ok(kept)
    }

    /// True if a child of an index is for a requested platform: by its descriptor, or else by its config. Nested
    /// indexes and artifacts are for all platforms.
    fn selects(&mut self, child: &Descriptor) -> Result<bool, FetchError> {
        if let Some(platform) = &child.platform {
            return Ok(self.record_platform(platform));
        }
        if !MANIFEST_TYPES.contains(&child.media_type.as_str()) {
            self.warn(format!(
                "`{}`: {} is omitted: unsupported media type `{}` without platform",
                self.object, child.digest, child.media_type
            ));
            return Ok(false);
        }
        let bytes = self.child(child)?;
        let manifest = Manifest::parse(&child.media_type, &bytes);
        let manifest = manifest.map_err(|error| self.invalid_manifest(child.digest, error))?;
        let is_selected = match &manifest {
            Manifest::Index(_) => true,
            Manifest::Image { config, .. } => match self.platform_of_config(config)? {
                Some(platform) => self.record_platform(&platform),
                None if has_platform(&config.media_type) => false,
                None => {
                    self.has_artifact = true;
                    true
                }
            },
        };
        if is_selected {
            self.examined.insert(child.digest, bytes);
        }
        Ok(is_selected)
    }

    /// Returns the bytes of a manifest that an index names: of an earlier index or image, or from the registry.
    fn child(&self, child: &Descriptor) -> Result<Vec<u8>, FetchError> {
        let known = self.examined.get(&child.digest).cloned();
        if let Some(bytes) = known.or_else(|| self.context.manifests.get(child.digest)) {
            self.check_bytes(child, &bytes)?;
            return Ok(bytes);
        }
        let repository = self.entry.reference.repository();
        let bytes = self.context.manifest(self.registry, self.request(), repository, child.digest)?.bytes;
        self.check_bytes(child, &bytes)?;
        Ok(bytes)
    }

    /// Reads the platform in a config. `None`: it has none, as that of an artifact.
    fn platform_of_config(&self, config: &Descriptor) -> Result<Option<Platform>, FetchError> {
        if !config.states_platform() {
            return Ok(None); // no image config has this size
        }
        let known = self.context.known.config(Blob { digest: config.digest, size: config.size });
        let bytes = known.map_or_else(
            || {
                let repository = self.entry.reference.repository();
                self.registry.small_blob(self.request(), repository, config.digest, MANIFEST_LIMIT)
            },
            Ok,
        )?;
        self.check_bytes(config, &bytes)?;
        config_platform(&config.media_type, &bytes).map_err(|error| {
            FetchError::new(&self.object, FetchProblem::Config { digest: config.digest, error })
        })
    }

    /// Records a platform of the image. True if it is requested.
    fn record_platform(&mut self, platform: &Platform) -> bool {
        self.available.insert(platform.to_string());
        let mut selecting = self.wanted.iter().filter(|wanted| wanted.selects(platform)).cloned().peekable();
        let is_wanted = selecting.peek().is_some();
        self.found.extend(selecting);
        is_wanted
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
        let is_for_all = self.available.is_empty() && self.has_artifact;
        if missing.is_empty() || !all_required && !self.found.is_empty() || is_for_all {
            return Ok(());
        }
        let available: Vec<_> = self.available.iter().map(String::as_str).collect();
        let available = if available.is_empty() { "none".to_owned() } else { available.join(", ") };
        let problem = FetchProblem::Platform { wanted: missing.join(", "), available };
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

    fn invalid_manifest(&self, digest: Digest, error: ManifestError) -> FetchError {
        FetchError::new(&self.object, FetchProblem::Manifest { digest, error })
    }

    fn warn(&self, message: String) {
        self.context.report.event(&Event::Warning { message });
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
