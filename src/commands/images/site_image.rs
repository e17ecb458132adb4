//! [`SiteImage`]: an image of a site or bundle for one platform, read from its manifests.

use crate::commands::images::blobs::{BlobError, Blobs};
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, Manifest, ManifestError, config_platform, has_platform};
use crate::oci::media_type::MediaType;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::site::record::RecordedImage;

/// Media type prefixes of container image layers, with any compression.
const LAYER_TYPES: [&str; 2] = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];

/// An image of a site or bundle for one platform.
#[derive(Debug)]
pub(crate) struct SiteImage {
    /// The reference in the list of images.
    pub reference: Reference,
    pub config: Descriptor,
    /// The layers, in order; a blob can occur twice.
    pub layers: Vec<Descriptor>,
    /// The index that the reference points to. `None`: it points to the manifest.
    pub index: Option<SiteDocument>,
    /// The manifest of this platform.
    pub manifest: SiteDocument,
    /// True if every consumer on this host that gets the index chooses this image from it.
    pub is_index_unambiguous: bool,
}

/// A manifest or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SiteDocument {
    pub media_type: MediaType,
    pub digest: Digest,
    pub bytes: Vec<u8>,
}

/// The reason why an image cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SiteImageError {
    /// An artifact, not a container image.
    #[error(
        "cannot load `{reference}`: unsupported media type `{media_type}` (an OCI artifact, not a container image)"
    )]
    Artifact {
        reference: String,
        /// The media type of the config or layer that no engine supports.
        media_type: String,
    },
    /// The site does not have the platform.
    #[error(
        "`{reference}` is not available for {requested}, only for {}: use `--platform`", available.join(", ")
    )]
    Platform { reference: String, requested: Platform, available: Vec<String> },
    /// The reference has only a digest, and the consumer cannot use that as a name.
    #[error("cannot load `{reference}` without a tag: {reason}; add a tag in the list of images")]
    NoTag { reference: String, reason: &'static str },
    /// A blob is corrupt or missing.
    #[error("cannot load `{reference}`")]
    Blob {
        reference: String,
        #[source]
        source: BlobError,
    },
    /// A manifest does not parse.
    #[error("cannot read the manifest of `{reference}` (re-run `unbundle unpack`)")]
    Manifest {
        reference: String,
        #[source]
        source: ManifestError,
    },
}

impl SiteImageError {
    /// True if the image is intact, but the engine or every engine cannot load it.
    #[must_use]
    pub fn is_unsuitable(&self) -> bool {
        matches!(self, Self::Artifact { .. } | Self::Platform { .. } | Self::NoTag { .. })
    }
}

impl SiteImage {
    /// Reads the manifests of `recorded` in `blobs`, and chooses the image for `platform`.
    pub(crate) fn open(
        recorded: &RecordedImage,
        blobs: &Blobs<'_>,
        platform: &Platform,
    ) -> Result<Self, SiteImageError> {
        let reference = recorded.reference.to_string();
        let candidate = match Documents(blobs).choose(recorded, platform) {
            Ok(Some(candidate)) => candidate,
            Ok(None) => {
                let available = recorded.platforms.iter().map(Platform::to_string).collect();
                let requested = platform.clone();
                return Err(SiteImageError::Platform { reference, requested, available });
            }
            Err(StorageError::Blob(source)) => return Err(SiteImageError::Blob { reference, source }),
            Err(StorageError::Manifest(source)) => {
                return Err(SiteImageError::Manifest { reference, source });
            }
        };
        let Candidate { mut documents, config, layers, .. } = candidate;
        if let Some(media_type) = unsupported_type(&config, &layers) {
            let media_type = media_type.to_owned();
            return Err(SiteImageError::Artifact { reference, media_type });
        }
        let is_index_unambiguous = is_unambiguous(&documents, platform)
            .map_err(|source| SiteImageError::Manifest { reference, source })?;
        let manifest = documents.pop().expect("a candidate ends in a manifest; please report");
        let index = (!documents.is_empty()).then(|| documents.swap_remove(0));
        Ok(Self {
            reference: recorded.reference.clone(),
            config,
            layers,
            index,
            manifest,
            is_index_unambiguous,
        })
    }

    /// Returns the digest that the reference points to.
    #[must_use]
    pub(crate) fn digest(&self) -> Digest {
        self.index.as_ref().unwrap_or(&self.manifest).digest
    }

    /// True if a layer is zstd-compressed.
    #[must_use]
    pub(crate) fn has_zstd(&self) -> bool {
        self.layers.iter().any(|layer| layer.media_type.ends_with("zstd"))
    }
}

/// Returns the first media type that a container image cannot have.
fn unsupported_type<'a>(config: &'a Descriptor, layers: &'a [Descriptor]) -> Option<&'a str> {
    if !has_platform(&config.media_type) {
        return Some(&config.media_type);
    }
    let mut types = layers.iter().map(|layer| layer.media_type.as_str());
    types.find(|media_type| !LAYER_TYPES.iter().any(|prefix| media_type.starts_with(prefix)))
}

/// True if every client on this host that gets the index chooses the candidate's image. The index must
/// contain the manifest directly, and no other image for the platform of this host. An entry without a
/// platform matches every client, unless it is an attestation, whose platform is `unknown`.
fn is_unambiguous(documents: &[SiteDocument], requested: &Platform) -> Result<bool, ManifestError> {
    let host = Platform::host();
    let [index, manifest] = documents else { return Ok(false) };
    let Manifest::Index(children) = parse(index)? else { return Ok(false) };
    let matching = children.iter().filter(|child| {
        child.platform.as_ref().map_or(child.attests.is_none(), |platform| platform.is_same(&host))
            || child.digest == manifest.digest
    });
    Ok(requested.is_same(&host) && matching.count() == 1)
}

/// An image of a reference.
struct Candidate {
    /// The path from the document that the reference points to, to the manifest of the image.
    documents: Vec<SiteDocument>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    /// The platform, from the index or the config. `None`: unknown.
    platform: Option<Platform>,
}

enum StorageError {
    Blob(BlobError),
    Manifest(ManifestError),
}

impl From<BlobError> for StorageError {
    fn from(error: BlobError) -> Self {
        Self::Blob(error)
    }
}

impl From<ManifestError> for StorageError {
    fn from(error: ManifestError) -> Self {
        Self::Manifest(error)
    }
}

/// The manifests and configs of images.
struct Documents<'a>(&'a Blobs<'a>);

impl Documents<'_> {
    /// Returns the image for `platform`: an exact match if possible, else a compatible one.
    fn choose(
        &self,
        recorded: &RecordedImage,
        platform: &Platform,
    ) -> Result<Option<Candidate>, StorageError> {
        let Some(root) = recorded.manifests.first() else { return Ok(None) };
        let root = self.document(root.digest, &root.media_type)?;
        let is_present = |digest| recorded.manifests.iter().any(|manifest| manifest.digest == digest);
        let mut candidates = Vec::new();
        self.collect(vec![root], None, &is_present, &mut candidates)?;
        let is_exact =
            |candidate: &Candidate| candidate.platform.as_ref().is_some_and(|it| it.is_same(platform));
        let is_compatible = |candidate: &Candidate| match &candidate.platform {
            Some(other) => platform.selects(other),
            // An image for any platform, or an artifact, which the caller rejects.
            None => candidate.documents.len() == 1,
        };
        let number =
            candidates.iter().position(is_exact).or_else(|| candidates.iter().position(is_compatible));
        Ok(number.map(|number| candidates.swap_remove(number)))
    }

    /// Adds all images below the last of `documents`. `platform` is the platform of that document in its
    /// index.
    fn collect(
        &self,
        documents: Vec<SiteDocument>,
        platform: Option<&Platform>,
        is_present: &dyn Fn(Digest) -> bool,
        candidates: &mut Vec<Candidate>,
    ) -> Result<(), StorageError> {
        match parse(documents.last().expect("a path begins with a document; please report"))? {
            Manifest::Image { config, layers } => {
                let platform = match platform {
                    Some(platform) => Some(platform.clone()),
                    None => self.platform_of(&config)?,
                };
                candidates.push(Candidate { documents, config, layers, platform });
            }
            Manifest::Index(children) => {
                let images =
                    children.iter().filter(|child| child.attests.is_none() && is_present(child.digest));
                for child in images {
                    let mut documents = documents.clone();
                    documents.push(self.document(child.digest, &child.media_type)?);
                    self.collect(documents, child.platform.as_ref(), is_present, candidates)?;
                }
            }
        }
        Ok(())
    }

    fn platform_of(&self, config: &Descriptor) -> Result<Option<Platform>, StorageError> {
        if !config.states_platform() {
            return Ok(None);
        }
        let bytes = self.0.read(config.digest)?;
        Ok(config_platform(&config.media_type, &bytes).map_err(ManifestError::from)?)
    }

    fn document(&self, digest: Digest, media_type: &MediaType) -> Result<SiteDocument, BlobError> {
        Ok(SiteDocument { media_type: media_type.clone(), digest, bytes: self.0.read(digest)? })
    }
}

fn parse(document: &SiteDocument) -> Result<Manifest, ManifestError> {
    Manifest::parse(&document.media_type, &document.bytes)
}
