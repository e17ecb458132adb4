//! [`SiteImage`]: an image of a site for one platform, as its manifests in the storage of the registry tell.

use std::io;
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError};
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, MANIFEST_LIMIT, Manifest, ManifestError, config_platform};
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::site::record::RecordedImage;
use crate::site::storage::blob_path;

/// What the layers of a container image are, whatever they are compressed with.
const LAYERS: [&str; 2] = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];
/// What its config is.
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// An image of a site for one platform.
#[derive(Debug)]
pub(crate) struct SiteImage {
    /// How the list named it.
    pub reference: Reference,
    /// Its config.
    pub config: Descriptor,
    /// Its layers, in order; one blob may stand here twice.
    pub layers: Vec<Descriptor>,
    /// The manifest that the reference means, if that is an index.
    pub index: Option<SiteDocument>,
    /// The manifest of this platform.
    pub manifest: SiteDocument,
    /// Whether who gets the index, and of its images this one, finds there what a machine like this one asks for.
    pub index_suffices: bool,
}

/// A manifest or an index, with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SiteDocument {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Why there is no such image.
#[derive(Debug, thiserror::Error)]
pub enum SiteImageError {
    /// It is something else than a container image.
    #[error("`{reference}` is no container image but an artifact (`{media_type}`), which no engine can load")]
    Artifact {
        /// Its reference.
        reference: String,
        /// What it says that it is.
        media_type: String,
    },
    /// It is for other platforms.
    #[error("`{reference}` is not here for {wanted}, only for {}: choose with `--platform`", present.join(", "))]
    Platform {
        /// Its reference.
        reference: String,
        /// The platform that was asked for.
        wanted: Platform,
        /// Those that there are.
        present: Vec<String>,
    },
    /// It has a digest for a name, and that is not the digest of what would be loaded.
    #[error("`{reference}` has no tag, and {reason}: give it a tag in the list of images")]
    NoTag {
        /// Its reference.
        reference: String,
        /// Why its digest is no name for it.
        reason: String,
    },
    /// A blob of it is damaged.
    #[error("`{reference}`")]
    Blob {
        /// Its reference.
        reference: String,
        /// The blob.
        #[source]
        source: BlobError,
    },
    /// The record, or a manifest, says what no `unpack` has written.
    #[error("`{reference}` cannot be read: run `unbundle unpack` again")]
    Manifest {
        /// Its reference.
        reference: String,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
    /// The record has a reference that is none.
    #[error("the site's record names an image `{0}`, which is no reference: run `unbundle unpack` again")]
    Reference(String),
}

/// A blob in the storage that is not as its digest says.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// It has other bytes, more, or fewer.
    #[error("the blob {} of the site is damaged: `unbundle unpack` repairs it", path.display())]
    Damaged {
        /// Where it is.
        path: PathBuf,
    },
    /// It is not there.
    #[error("the blob {} of the site is missing: `unbundle unpack` brings it back", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The file system does not give it.
    #[error(transparent)]
    Fs(FsError),
}

impl From<FsError> for BlobError {
    fn from(error: FsError) -> Self {
        match error.source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing { path: error.path },
            io::ErrorKind::FileTooLarge => Self::Damaged { path: error.path },
            _ => Self::Fs(error),
        }
    }
}

impl SiteImageError {
    /// Whether the image is whole and it is only that no engine, or not this one, can take it.
    #[must_use]
    pub fn is_unfit(&self) -> bool {
        matches!(self, Self::Artifact { .. } | Self::Platform { .. } | Self::NoTag { .. })
    }
}

impl SiteImage {
    /// Reads the manifests of `recorded` in the registry's storage at `storage`, and chooses the image for
    /// `platform`.
    pub(crate) fn open(
        recorded: &RecordedImage,
        storage: &Path,
        platform: &Platform,
    ) -> Result<Self, SiteImageError> {
        let reference = &recorded.reference;
        let parsed = reference.parse().map_err(|_| SiteImageError::Reference(reference.clone()))?;
        let found = RegistryStorage(storage).choose(recorded, platform).map_err(|error| match error {
            StorageProblem::Blob(source) => SiteImageError::Blob { reference: reference.clone(), source },
            StorageProblem::Manifest(source) => {
                SiteImageError::Manifest { reference: reference.clone(), source }
            }
        })?;
        let Some(Choice { mut documents, config, layers, index_suffices, .. }) = found else {
            let (wanted, present) = (platform.clone(), recorded.platforms.clone());
            return Err(SiteImageError::Platform { reference: reference.clone(), wanted, present });
        };
        if let Some(media_type) = not_of_an_image(&config, &layers) {
            let media_type = media_type.to_owned();
            return Err(SiteImageError::Artifact { reference: reference.clone(), media_type });
        }
        let manifest = documents.pop().expect("a choice ends in a manifest; please report");
        let index = (!documents.is_empty()).then(|| documents.swap_remove(0));
        Ok(Self { reference: parsed, config, layers, index, manifest, index_suffices })
    }

    /// The digest that the reference means.
    #[must_use]
    pub(crate) fn digest(&self) -> Digest {
        self.index.as_ref().unwrap_or(&self.manifest).digest
    }

    /// Whether it has layers that are compressed with zstd.
    #[must_use]
    pub(crate) fn has_zstd(&self) -> bool {
        self.layers.iter().any(|layer| layer.media_type.ends_with("zstd"))
    }
}

/// The media type that shows that this is no container image.
fn not_of_an_image<'a>(config: &'a Descriptor, layers: &'a [Descriptor]) -> Option<&'a str> {
    let is_layer = |layer: &&Descriptor| !LAYERS.iter().any(|kind| layer.media_type.starts_with(kind));
    if !CONFIGS.contains(&config.media_type.as_str()) {
        return Some(&config.media_type);
    }
    layers.iter().find(is_layer).map(|layer| layer.media_type.as_str())
}

/// A path from the manifest that a reference means to that of an image.
struct Choice {
    documents: Vec<SiteDocument>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    /// The platform that it is for, if something says so.
    platform: Option<Platform>,
    index_suffices: bool,
}

enum StorageProblem {
    Blob(BlobError),
    Manifest(ManifestError),
}

impl From<BlobError> for StorageProblem {
    fn from(error: BlobError) -> Self {
        Self::Blob(error)
    }
}

impl From<ManifestError> for StorageProblem {
    fn from(error: ManifestError) -> Self {
        Self::Manifest(error)
    }
}

/// The root of a registry's storage.
struct RegistryStorage<'a>(&'a Path);

impl RegistryStorage<'_> {
    fn choose(&self, recorded: &RecordedImage, wanted: &Platform) -> Result<Option<Choice>, StorageProblem> {
        let Some(root) = recorded.manifests.first() else { return Ok(None) };
        let root = self.document(root.digest, &root.media_type)?;
        let mut choices = Vec::new();
        let is_here = |digest| recorded.manifests.iter().any(|here| here.digest == digest);
        self.collect(vec![root], None, &is_here, &mut choices)?;
        // The very platform first, and then what is near to it.
        let exact = |choice: &Choice| choice.platform.as_ref().is_some_and(|found| found.is_same(wanted));
        let near = |choice: &Choice| match &choice.platform {
            Some(platform) => wanted.selects(platform),
            // It is for all platforms or it is no image, which will show.
            None => choice.documents.len() == 1,
        };
        let number = choices.iter().position(exact).or_else(|| choices.iter().position(near));
        let mut choice = number.map(|number| choices.swap_remove(number));
        if let Some(choice) = &mut choice {
            choice.index_suffices = suffices(choice, wanted)?;
        }
        Ok(choice)
    }

    /// Adds all images that the last of `documents` leads to; `platform` is what the one before it says of it.
    fn collect(
        &self,
        documents: Vec<SiteDocument>,
        platform: Option<&Platform>,
        is_here: &dyn Fn(Digest) -> bool,
        found: &mut Vec<Choice>,
    ) -> Result<(), StorageProblem> {
        match parse(documents.last())? {
            Manifest::Image { config, layers } => {
                let platform =
                    platform.cloned().map_or_else(|| self.platform_of(&config), |it| Ok(Some(it)))?;
                found.push(Choice { documents, config, layers, platform, index_suffices: false });
            }
            Manifest::Index(children) => {
                let images = children.iter().filter(|child| child.attests.is_none() && is_here(child.digest));
                for child in images {
                    let mut documents = documents.clone();
                    documents.push(self.document(child.digest, &child.media_type)?);
                    self.collect(documents, child.platform.as_ref(), is_here, found)?;
                }
            }
        }
        Ok(())
    }

    fn platform_of(&self, config: &Descriptor) -> Result<Option<Platform>, BlobError> {
        if !CONFIGS.contains(&config.media_type.as_str()) || config.size > MANIFEST_LIMIT {
            return Ok(None);
        }
        Ok(config_platform(&config.media_type, &self.read(config.digest)?))
    }

    fn document(&self, digest: Digest, media_type: &str) -> Result<SiteDocument, BlobError> {
        Ok(SiteDocument { media_type: media_type.to_owned(), digest, bytes: self.read(digest)? })
    }

    fn read(&self, digest: Digest) -> Result<Vec<u8>, BlobError> {
        let path = self.0.join(blob_path(digest));
        let bytes = fs::read(&path, MANIFEST_LIMIT)?;
        if Digest::of(&bytes) == digest { Ok(bytes) } else { Err(BlobError::Damaged { path }) }
    }
}

fn parse(document: Option<&SiteDocument>) -> Result<Manifest, ManifestError> {
    let document = document.expect("a path begins with a document; please report");
    Manifest::parse(&document.media_type, &document.bytes)
}

/// Whether a client on this machine that is given the index and this image takes exactly this one of it: it must be
/// for this machine, stand right in the index, and be alone in what the index has for it. What says nothing of a
/// platform is taken by everybody.
fn suffices(choice: &Choice, wanted: &Platform) -> Result<bool, ManifestError> {
    let (host, chosen) = (Platform::host(), choice.documents.last().map(|document| document.digest));
    let Manifest::Index(children) = parse(choice.documents.first())? else { return Ok(false) };
    let candidates = children.iter().filter(|child| {
        child.platform.as_ref().is_none_or(|platform| platform.is_same(&host)) || Some(child.digest) == chosen
    });
    Ok(choice.documents.len() == 2 && wanted.is_same(&host) && candidates.count() == 1)
}
