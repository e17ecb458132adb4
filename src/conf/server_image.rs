//! [`ServerImage`]: the image on the site that runs one of its servers.

use serde::Deserialize;

use crate::base::own_file::read_regular;
use crate::conf::setup::Setup;
use crate::oci::digest::Digest;
use crate::oci::manifest::{MANIFEST_LIMIT, Manifest};
use crate::oci::platform::Platform;
use crate::site::record::RecordedImage;
use crate::site::storage::blob_path;

/// An image of a server on the site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerImage {
    /// Its reference.
    pub reference: String,
    /// The digests that a container engine can have as its ID, the likeliest first: of the config, of the manifest or
    /// of the index, depending on the engine and its image store. Never empty.
    pub ids: Vec<Digest>,
}

impl ServerImage {
    /// Finds the last official image, or else the last image, whose last path component is `name`. `None`: the site has
    /// none.
    #[must_use]
    pub(crate) fn find(setup: &Setup, name: &str) -> Option<Self> {
        let is_named = |image: &&RecordedImage| image.reference.repository().rsplit('/').next() == Some(name);
        let all = || setup.record.images.iter().filter(|image| image.digest().is_some()).filter(is_named);
        let official =
            all().rfind(|image| image.reference.as_str().starts_with(&format!("docker.io/library/{name}")));
        let image = official.or_else(|| all().next_back())?;
        let mut configs: Vec<(Digest, bool)> = image
            .manifests
            .iter()
            .filter_map(|manifest| config(setup, manifest.digest, &manifest.media_type))
            .collect();
        configs.sort_by_key(|(_, is_host)| !is_host);
        let configs = configs.into_iter().map(|(digest, _)| digest);
        let ids = configs.chain(image.manifests.iter().map(|manifest| manifest.digest)).collect();
        Some(Self { reference: image.reference.to_string(), ids })
    }

    /// Returns the digests, separated by spaces.
    #[must_use]
    pub(crate) fn id_list(&self) -> String {
        self.ids.iter().map(Digest::to_string).collect::<Vec<_>>().join(" ")
    }
}

/// Returns the config of a manifest in the storage, and true if it is for the platform of this host. `None`: the
/// manifest is an index, missing or corrupt.
fn config(setup: &Setup, manifest: Digest, media_type: &str) -> Option<(Digest, bool)> {
    #[derive(Deserialize)]
    struct Config {
        os: String,
        architecture: String,
    }
    let read = |digest| {
        let bytes = read_regular(&setup.registry.join(blob_path(digest)), MANIFEST_LIMIT).ok()?;
        (Digest::of(&bytes) == digest).then_some(bytes)
    };
    let Manifest::Image { config, .. } = Manifest::parse(media_type, &read(manifest)?).ok()? else {
        return None;
    };
    let host = Platform::host();
    let parsed = read(config.digest).and_then(|bytes| serde_json::from_slice::<Config>(&bytes).ok());
    let is_host =
        parsed.is_some_and(|config| (&*config.os, &*config.architecture) == (host.os(), host.architecture()));
    Some((config.digest, is_host))
}
