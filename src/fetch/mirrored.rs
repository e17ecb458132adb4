//! [`Endpoints`]: the places of everything that is fetched in one run, each known once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use reqwest::Url;
use serde_json::Value;

use crate::base::event::Report;
use crate::fetch::endpoint::{self, FileEndpoint};
use crate::fetch::registry::Registry;
use crate::fetch::upstream::Upstream;
use crate::net::auth;
use crate::net::endpoint::Endpoint;
use crate::net::error::{FetchError, FetchProblem};
use crate::net::http::Http;
use crate::net::server::Servers;
use crate::oci::digest::Digest;

/// All places of a run.
pub(crate) struct Endpoints {
    http: Http,
    upstream: Upstream,
    servers: Servers,
    /// Those that were needed so far, by the key of their server: two hosts may have one mirror.
    registries: Mutex<HashMap<String, Arc<Registry>>>,
}

/// Where the images of one host are pulled from: its mirrors and the host itself.
#[derive(Clone)]
pub(crate) struct MirroredRegistry {
    places: Arc<Endpoints>,
    host: String,
}

impl Endpoints {
    /// What `upstream` says.
    #[must_use]
    pub(crate) fn new(http: &Http, upstream: &Upstream) -> Arc<Self> {
        let (http, upstream) = (http.clone(), upstream.clone());
        let servers = Servers::new(upstream.jobs_per_host());
        Arc::new(Self { http, upstream, servers, registries: Mutex::default() })
    }

    /// The images of a host.
    #[must_use]
    pub(crate) fn registry(self: &Arc<Self>, host: &str) -> MirroredRegistry {
        MirroredRegistry { places: self.clone(), host: host.to_owned() }
    }

    /// Where the file at `url` is asked for, in this order. `pinned`: there is a checksum of it.
    pub(crate) fn file(
        &self,
        object: &str,
        url: &Url,
        pinned: bool,
    ) -> Result<Vec<FileEndpoint>, FetchError> {
        let mut places = self.file_places(object, url, pinned)?.0;
        for place in &mut places {
            // What the user is known by at one place is no matter of the others'.
            let url = place.url(&self.http, object)?;
            place.authorization = auth::for_file(&self.upstream.credentials, object, &url)?;
        }
        Ok(places)
    }

    /// Where a layer is asked for that lies at `url`, outside its registry, and whether there is a mirror for it.
    /// Nobody there is told who asks.
    pub(crate) fn foreign(&self, object: &str, url: &Url) -> Result<(Vec<FileEndpoint>, bool), FetchError> {
        self.file_places(object, url, true)
    }

    fn file_places(
        &self,
        object: &str,
        url: &Url,
        pinned: bool,
    ) -> Result<(Vec<FileEndpoint>, bool), FetchError> {
        let scheme = if url.scheme() == "http" { "http" } else { "https" };
        let host = url.host_str().unwrap_or_default();
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let path = url.path().strip_prefix('/').unwrap_or_default();
        let spots = self.upstream.mirrors.spots(Some(scheme), &format!("{host}{port}"), path, pinned);
        let spots = spots.map_err(|error| FetchError::new(object, FetchProblem::NoEndpoint(error)))?;
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let has_mirror = spots.iter().any(|spot| spot.is_mirror);
        let place = |spot: Endpoint| {
            let server = self.servers.of(&spot, false).map_err(|error| no_url(object, &spot.host, error))?;
            Ok(FileEndpoint { server, path: format!("{}{query}", spot.path), authorization: None })
        };
        Ok((spots.into_iter().map(place).collect::<Result<_, FetchError>>()?, has_mirror))
    }
}

impl MirroredRegistry {
    /// Reads a manifest by tag or digest: its media type and its exact bytes. The first place that has a tag says
    /// what it is; what has a digest may come from any.
    pub(crate) fn manifest(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        reference: &str,
    ) -> Result<(String, Vec<u8>), FetchError> {
        let digest: Option<Digest> = reference.parse().ok();
        let places = self.places(object, repository, digest.is_some())?;
        endpoint::in_order(
            report,
            &places,
            |(registry, _)| registry.server(),
            |(registry, repository)| {
                twice(|| {
                    let (media_type, bytes) = registry.manifest(report, object, repository, reference)?;
                    check(object, digest, &bytes, registry, repository)?;
                    Ok((media_type, bytes))
                })
            },
        )
    }

    /// Reads all of a blob that must not have more than `limit` bytes.
    pub(crate) fn small_blob(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        digest: Digest,
        limit: u64,
    ) -> Result<Vec<u8>, FetchError> {
        let places = self.places(object, repository, true)?;
        endpoint::in_order(
            report,
            &places,
            |(registry, _)| registry.server(),
            |(registry, repository)| {
                twice(|| {
                    let bytes = registry.small_blob(report, object, repository, digest, limit)?;
                    check(object, Some(digest), &bytes, registry, repository)?;
                    Ok(bytes)
                })
            },
        )
    }

    /// Whether any place may have a manifest of this name.
    pub(crate) fn may_have_manifest(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        reference: &str,
    ) -> Result<bool, FetchError> {
        self.any(report, object, repository, |registry, repository| {
            Ok(registry.may_have_manifest(report, object, repository, reference)?.then_some(()))
        })
        .map(|found| found.is_some())
    }

    /// What names `subject` as its subject, by the referrers API of the first place that has it.
    pub(crate) fn referrers(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        subject: Digest,
    ) -> Result<Option<Vec<Value>>, FetchError> {
        self.any(report, object, repository, |registry, repository| {
            registry.referrers(report, object, repository, subject)
        })
    }

    /// Whether any place has a blob, and gives it to whoever asks.
    pub(crate) fn has_blob(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        digest: Digest,
    ) -> bool {
        let places = self.places(object, repository, true).unwrap_or_default();
        places.iter().any(|(registry, repository)| registry.has_blob(report, object, repository, digest))
    }

    /// Whether the registry itself is on this machine or in its network; where only mirrors are asked, the last of
    /// them.
    pub(crate) fn is_inside(&self, object: &str, repository: &str) -> Result<bool, FetchError> {
        let places = self.places(object, repository, true)?;
        places.last().map_or(Ok(false), |(registry, _)| registry.is_inside(object))
    }

    /// Asks one place after the other until one has something. That one has nothing, or does not answer, says
    /// nothing about the next; the last one decides.
    fn any<T>(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        ask: impl Fn(&Registry, &str) -> Result<Option<T>, FetchError>,
    ) -> Result<Option<T>, FetchError> {
        let places = self.places(object, repository, false)?;
        let mut failures = Vec::new();
        for (number, (registry, repository)) in places.iter().enumerate() {
            let (server, is_last) = (registry.server(), number + 1 == places.len());
            if let Some(reason) = server.why_down().filter(|_| !is_last) {
                failures.push(reason);
                continue;
            }
            match ask(registry, repository) {
                Ok(None) if !is_last => {}
                Err(error) if !is_last && error.is_of_place() => {
                    server.failed(report, &error);
                    failures.push(error.reason());
                }
                answer => return answer.map_err(|error| error.after(failures)),
            }
        }
        Ok(None)
    }

    /// Where what is in `repository` is asked for, and in which repository there. `pinned`: by its digest.
    pub(crate) fn places(
        &self,
        object: &str,
        repository: &str,
        pinned: bool,
    ) -> Result<Vec<(Arc<Registry>, String)>, FetchError> {
        let Endpoints { http, upstream, servers, registries } = &*self.places;
        let spots = upstream.mirrors.spots(None, &self.host, repository, pinned);
        let spots = spots.map_err(|error| FetchError::new(object, FetchProblem::NoEndpoint(error)))?;
        let mut registries = registries.lock().expect("nothing panics while it holds this; please report");
        spots
            .into_iter()
            .map(|spot| {
                let server = servers
                    .of(&spot, upstream.is_insecure(&spot))
                    .map_err(|error| no_url(object, &spot.host, error))?;
                let registry = registries.entry(server.key().to_owned()).or_insert_with(|| {
                    Arc::new(Registry::new(http.clone(), server, upstream.credentials.clone()))
                });
                Ok((registry.clone(), spot.path))
            })
            .collect()
    }
}

/// Wrong bytes once may be an accident on the way.
fn twice<T>(mut ask: impl FnMut() -> Result<T, FetchError>) -> Result<T, FetchError> {
    ask().or_else(|error| if error.is_mismatch() { ask() } else { Err(error) })
}

fn check(
    object: &str,
    expected: Option<Digest>,
    bytes: &[u8],
    registry: &Registry,
    repository: &str,
) -> Result<(), FetchError> {
    let found = Digest::of(bytes);
    let Some(expected) = expected.filter(|expected| *expected != found) else { return Ok(()) };
    let url = format!("{} as {repository}@{expected}, twice", registry.server().name());
    let problem =
        FetchProblem::Mismatch { what: "sha256", found: found.hex(), expected: expected.hex(), url };
    Err(FetchError::new(object, problem))
}

fn no_url(object: &str, host: &str, error: url::ParseError) -> FetchError {
    let problem = FetchProblem::Protocol { url: host.to_owned(), what: format!("nothing: {error}") };
    FetchError::new(object, problem)
}
