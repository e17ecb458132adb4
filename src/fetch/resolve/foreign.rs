//! [`ForeignLayer`]: a layer with external URLs ("foreign", "nondistributable").

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use reqwest::Url;

use crate::base::source_url::SourceUrl;
use crate::fetch::mirrored::{Endpoints, MirroredRegistry};
use crate::fetch::web::{self, RemoteFile};
use crate::net::error::{FetchError, FetchProblem, MismatchKind};
use crate::net::http::RequestContext;
use crate::oci::digest::Digest;
use crate::oci::manifest::Descriptor;
use crate::oci::parsed_text::quoted;

/// The external layers of all images, by digest, registry and URLs. Images of another registry may name other
/// URLs for the same digest, and none of them is believed more.
#[derive(Default)]
pub(crate) struct ForeignLayers(Mutex<BTreeMap<LayerKey, ForeignLayer>>);

type LayerKey = (Digest, String, Vec<String>);

/// A layer with external URLs.
pub(crate) struct ForeignLayer {
    /// The image, for messages.
    pub object: String,
    /// Its descriptor in the manifest.
    descriptor: Descriptor,
    /// The registry of the image.
    registry: MirroredRegistry,
    /// The repository of the image.
    repository: String,
}

impl ForeignLayers {
    /// Adds a layer, unless the same registry has named the same URLs for it.
    pub(crate) fn add(&self, layer: ForeignLayer) {
        let key = (layer.digest(), layer.registry.host().to_owned(), layer.descriptor.urls.clone());
        self.lock().entry(key).or_insert(layer);
    }

    /// Returns all layers, and leaves the collection empty.
    pub(crate) fn take(&self) -> Vec<ForeignLayer> {
        std::mem::take(&mut *self.lock()).into_values().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LayerKey, ForeignLayer>> {
        self.0.lock().expect("nothing panics while it holds the layers; please report")
    }
}

impl ForeignLayer {
    #[must_use]
    pub(crate) fn new(
        object: &str,
        descriptor: Descriptor,
        registry: &MirroredRegistry,
        repository: &str,
    ) -> Self {
        let (object, repository) = (object.to_owned(), repository.to_owned());
        Self { object, descriptor, registry: registry.clone(), repository }
    }

    #[must_use]
    pub(crate) fn digest(&self) -> Digest {
        self.descriptor.digest
    }

    /// Finds the first URL that has the layer (image-spec, descriptor, `urls`). `None`: only the registry
    /// itself has it. Requests to these URLs are sent without credentials.
    pub(crate) fn find(
        &self,
        request: RequestContext<'_>,
        endpoints: &Arc<Endpoints>,
    ) -> Result<Option<RemoteFile>, FetchError> {
        let Descriptor { digest, size, .. } = self.descriptor;
        let mut failure = None;
        for url in &self.descriptor.urls {
            let error = match self.probe(request, endpoints, url) {
                Ok(file) if file.size.is_none_or(|found| found == size) => return Ok(Some(file)),
                Ok(file) => request.error(FetchProblem::Mismatch {
                    kind: MismatchKind::Size,
                    expected: size.to_string(),
                    found: file.size.unwrap_or_default().to_string(),
                    url: file.endpoints[0].name(),
                }),
                Err(error) => error,
            };
            failure.get_or_insert(error);
        }
        match failure {
            Some(failure) if !self.registry.has_blob(request, &self.repository, digest) => Err(failure),
            _ => Ok(None),
        }
    }

    fn probe(
        &self,
        request: RequestContext<'_>,
        endpoints: &Arc<Endpoints>,
        url: &str,
    ) -> Result<RemoteFile, FetchError> {
        let digest = self.descriptor.digest;
        let not_allowed =
            |url: String, reason| Err(request.error(FetchProblem::Foreign { layer: digest, url, reason }));
        // `Url` alone would remove tabs and line breaks, and accept a user name.
        let parsed = url.parse().ok().filter(|url: &SourceUrl| !url.is_empty());
        let Some(url) = parsed.and_then(|url| Url::parse(&url).ok()) else {
            return not_allowed(format!("`{}`", quoted(url)), "not an HTTP or HTTPS URL without a user name");
        };
        let object = format!("{} {digest}", self.object);
        let reach = self.registry.reach(&object, &self.repository)?;
        let endpoints = endpoints.foreign(&object, &url, &reach)?;
        web::probe(request.with_object(&object), &endpoints, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::event::Silent;
    use crate::fetch::upstream::Upstream;

    #[test]
    fn a_public_registry_cannot_direct_requests_into_a_private_network() {
        let upstream = Upstream::default();
        let http = upstream.http();
        let endpoints = Endpoints::new(&upstream);
        let descriptor = Descriptor {
            media_type: "application/vnd.oci.image.layer.nondistributable.v1.tar".parse().unwrap(),
            digest: Digest::of(b""),
            size: 0,
            platform: None,
            attests: None,
            urls: Vec::new(),
        };
        let object = "registry.example/a:1";
        let layer = ForeignLayer::new(object, descriptor, &endpoints.registry("registry.example"), "a");
        let request = RequestContext { http: &http, report: &Silent, object };
        for url in [
            "http://127.0.0.1/layer",
            "http://169.254.169.254/latest",
            "https://10.0.0.1/layer",
            "https://[::1]/layer",
            "http://localhost:8080/layer",
        ] {
            let error = layer.probe(request, &endpoints, url).unwrap_err();
            assert!(matches!(error.problem, FetchProblem::Internal { .. }), "{url}: {error}");
        }
        for url in ["file:///etc/passwd", "https://user:secret@a.example/layer"] {
            let error = layer.probe(request, &endpoints, url).unwrap_err();
            assert!(matches!(error.problem, FetchProblem::Foreign { .. }), "{url}: {error}");
        }
    }
}
