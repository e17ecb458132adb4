//! [`ServerImage`]: the image on the site that runs one of its servers.

use serde_json::Value;

use crate::base::own_file::read_regular;
use crate::conf::server_command;
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
    /// The entrypoint that starts the server. Empty: the image's own.
    pub entrypoint: Vec<String>,
}

impl ServerImage {
    /// Finds the last official image, or else the last image, whose last path component is `name`. `None`: the site has
    /// none. An image whose command is unknown is not used.
    #[must_use]
    pub(crate) fn find(setup: &Setup, name: &str) -> Option<Self> {
        let is_named = |image: &&RecordedImage| image.reference.repository().rsplit('/').next() == Some(name);
        let all = || setup.record.images.iter().filter(|image| image.digest().is_some()).filter(is_named);
        let official = all().rfind(|image| server_command::is_official(&image.reference, name));
        if let Some(image) = official {
            return Some(Self::new(image, &configs(setup, image), Vec::new()));
        }
        let entrypoint = match name {
            "registry" => server_command::of_registry,
            _ => |config: &Value| server_command::of_nginx(config).map(|program| vec![program]),
        };
        all().rev().find_map(|image| {
            let configs = configs(setup, image);
            let mut entrypoints = configs.iter().map(|config| entrypoint(&config.document));
            let entrypoint = entrypoints.next()??;
            Some(Self::new(image, &configs, entrypoint))
        })
    }

    fn new(image: &RecordedImage, configs: &[Config], entrypoint: Vec<String>) -> Self {
        let configs = configs.iter().map(|config| config.digest);
        let ids = configs.chain(image.manifests.iter().map(|manifest| manifest.digest)).collect();
        Self { reference: image.reference.to_string(), ids, entrypoint }
    }

    /// Returns the digests, separated by spaces.
    #[must_use]
    pub(crate) fn id_list(&self) -> String {
        self.ids.iter().map(Digest::to_string).collect::<Vec<_>>().join(" ")
    }
}

/// The config of an image.
struct Config {
    digest: Digest,
    /// Null: it is missing or corrupt.
    document: Value,
    /// True if it is for the platform of this host.
    is_host: bool,
}

/// Returns the configs of an image in the storage, those for this host first.
fn configs(setup: &Setup, image: &RecordedImage) -> Vec<Config> {
    let manifests = image.manifests.iter();
    let configs = manifests.filter_map(|manifest| config(setup, manifest.digest, &manifest.media_type));
    let mut configs: Vec<Config> = configs.collect();
    configs.sort_by_key(|config| !config.is_host);
    configs
}

/// Returns the config of a manifest in the storage. `None`: the manifest is an index, missing or corrupt.
fn config(setup: &Setup, manifest: Digest, media_type: &str) -> Option<Config> {
    let read = |digest| {
        let bytes = read_regular(&setup.registry.join(blob_path(digest)), MANIFEST_LIMIT).ok()?;
        (Digest::of(&bytes) == digest).then_some(bytes)
    };
    let Manifest::Image { config, .. } = Manifest::parse(media_type, &read(manifest)?).ok()? else {
        return None;
    };
    let document = read(config.digest).and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let document = document.unwrap_or_default();
    let host = Platform::host();
    let is_host = document["os"] == host.os() && document["architecture"] == host.architecture();
    Some(Config { digest: config.digest, document, is_host })
}
