//! Layers that lie outside their registry ("foreign", "nondistributable"): where they are fetched from.

use std::sync::Arc;

use reqwest::Url;

use crate::base::event::Report;
use crate::fetch::mirrored::{Endpoints, MirroredRegistry};
use crate::fetch::web::{self, RemoteFile};
use crate::net::error::{FetchError, FetchProblem};
use crate::net::host::leads_inside;
use crate::net::http::{self, Http};
use crate::oci::digest::Digest;
use crate::oci::manifest::Descriptor;

/// A layer that lies outside its registry.
pub(crate) struct ForeignLayer {
    /// The image, for a person.
    pub object: String,
    /// What its manifest says of it.
    pub layer: Descriptor,
    /// The registry of the image.
    pub registry: MirroredRegistry,
    /// In which repository it would be there.
    pub repository: String,
}

impl ForeignLayer {
    /// What the manifest of the image `object`, which is in `repository`, says of `layer`.
    #[must_use]
    pub(crate) fn new(
        object: &str,
        layer: Descriptor,
        registry: &MirroredRegistry,
        repository: &str,
    ) -> Self {
        let (object, registry) = (object.to_owned(), registry.clone());
        Self { object, layer, registry, repository: repository.to_owned() }
    }
}

/// Looks for foreign layers.
pub(crate) struct Elsewhere<'a> {
    /// What sends requests.
    pub http: &'a Http,
    /// Where mirrors are.
    pub places: &'a Arc<Endpoints>,
    /// Whom to tell of retries.
    pub report: &'a dyn Report,
}

impl Elsewhere<'_> {
    /// The first of its URLs that has it (image-spec, descriptor, `urls`); nothing if the registry itself is the one.
    /// Nobody there is told who asks.
    pub(crate) fn find(&self, foreign: &ForeignLayer) -> Result<Option<(Digest, RemoteFile)>, FetchError> {
        let ForeignLayer { object, layer, registry, repository } = foreign;
        let mut failure = None;
        for url in &layer.urls {
            match self.probe(foreign, url) {
                Ok(file) if file.size.is_none_or(|size| size == layer.size) => {
                    return Ok(Some((layer.digest, file)));
                }
                Ok(file) => {
                    let (found, expected) =
                        (file.size.unwrap_or_default().to_string(), layer.size.to_string());
                    let url = file.places[0].name();
                    let problem = FetchProblem::Mismatch { what: "size", found, expected, url };
                    failure.get_or_insert(FetchError::new(object, problem));
                }
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        match failure {
            Some(failure) if !registry.has_blob(self.report, object, repository, layer.digest) => {
                Err(failure)
            }
            _ => Ok(None),
        }
    }

    fn probe(&self, foreign: &ForeignLayer, url: &str) -> Result<RemoteFile, FetchError> {
        let ForeignLayer { object, layer, registry, .. } = foreign;
        let refuse = |url: String, why| {
            Err(FetchError::new(object, FetchProblem::Foreign { layer: layer.digest, url, why }))
        };
        let parsed = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(url) = parsed else { return refuse(format!("`{url}`"), "it is no http or https URL") };
        let what = format!("{object} {}", layer.digest);
        let (places, has_mirror) = self.places.foreign(&what, &url)?;
        // Where the user himself says where it is, that is no matter of the registry's.
        if !has_mirror && leads_inside(&url) && !registry.is_inside(object, &foreign.repository)? {
            return refuse(
                http::plain(&url),
                "it is in the network of this machine, and the registry is not",
            );
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse(http::plain(&url), "it has a user name in it");
        }
        web::probe(self.http, self.report, &what, &places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::event::Silent;
    use crate::fetch::upstream::Upstream;

    #[test]
    fn a_registry_out_there_cannot_send_into_the_own_network() {
        let upstream = Upstream::default();
        let http = upstream.http();
        let places = Endpoints::new(&http, &upstream);
        let elsewhere = Elsewhere { http: &http, places: &places, report: &Silent };
        let registry = places.registry("registry.example");
        let layer = Descriptor {
            media_type: "application/vnd.oci.image.layer.nondistributable.v1.tar".to_owned(),
            digest: Digest::of(b""),
            size: 0,
            platform: None,
            attests: None,
            urls: Vec::new(),
        };
        let (object, repository) = ("registry.example/a:1".to_owned(), "a".to_owned());
        let foreign = ForeignLayer { object, layer, registry, repository };
        for url in [
            "http://127.0.0.1/layer",
            "http://169.254.169.254/latest",
            "https://10.0.0.1/layer",
            "https://[::1]/layer",
            "http://localhost:8080/layer",
            "file:///etc/passwd",
            "https://user:secret@a.example/layer",
        ] {
            let error = elsewhere.probe(&foreign, url).unwrap_err();
            assert!(matches!(error.problem, FetchProblem::Foreign { .. }), "{url}: {error}");
        }
    }
}
