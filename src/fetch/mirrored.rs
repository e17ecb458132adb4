//! [`Endpoints`] of all hosts of a run; [`MirroredRegistry`]: the images of one host and its mirrors.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::fetch::endpoint::{FileEndpoint, first_found, first_success};
use crate::fetch::registry::{FetchedManifest, Registry, Repository};
use crate::fetch::resolve::referrers::Referrer;
use crate::fetch::upstream::Upstream;
use crate::net::auth;
use crate::net::endpoint::Endpoint;
use crate::net::error::{FetchError, FetchProblem, MismatchKind};
use crate::net::http::RequestContext;
use crate::net::reach::Reach;
use crate::net::server::{Server, Servers};
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use reqwest::Url;

/// The endpoints of all hosts of a run.
pub(crate) struct Endpoints {
    upstream: Upstream,
    servers: Servers,
    /// By the key of their server: two hosts may have the same mirror.
    registries: Mutex<HashMap<String, Arc<Registry>>>,
}

/// The images of one host, on its mirrors and on the host itself.
#[derive(Clone)]
pub(crate) struct MirroredRegistry {
    endpoints: Arc<Endpoints>,
    host: String,
}

impl Endpoints {
    #[must_use]
    pub(crate) fn new(upstream: &Upstream) -> Arc<Self> {
        let servers = Servers::new(upstream.jobs_per_host());
        Arc::new(Self { upstream: upstream.clone(), servers, registries: Mutex::default() })
    }

    /// Returns the images of a host.
    #[must_use]
    pub(crate) fn registry(self: &Arc<Self>, host: &str) -> MirroredRegistry {
        MirroredRegistry { endpoints: self.clone(), host: host.to_owned() }
    }

    /// Returns the endpoints of the file at `url`, in order. `pinned`: its checksum is known.
    pub(crate) fn file(
        &self,
        context: &RequestContext<'_>,
        url: &Url,
        pinned: bool,
    ) -> Result<Vec<FileEndpoint>, FetchError> {
        let mut endpoints = self.without_credentials(context.object, url, pinned, None)?;
        for endpoint in &mut endpoints {
            // Each endpoint gets the credentials of its own host only.
            let url = endpoint.url(context)?;
            endpoint.authorization = auth::file_header(&self.upstream.credentials, context.object, &url)?;
        }
        Ok(endpoints)
    }

    /// Returns the endpoints of an external layer at `url`, which may be as far inside as `reach` allows. The
    /// requests are sent without credentials.
    pub(crate) fn foreign(
        &self,
        object: &str,
        url: &Url,
        reach: &Reach,
    ) -> Result<Vec<FileEndpoint>, FetchError> {
        self.without_credentials(object, url, true, Some(reach))
    }

    fn without_credentials(
        &self,
        object: &str,
        url: &Url,
        pinned: bool,
        referred: Option<&Reach>,
    ) -> Result<Vec<FileEndpoint>, FetchError> {
        let scheme = if url.scheme() == "http" { "http" } else { "https" };
        let host = url.host_str().unwrap_or_default();
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let path = url.path().strip_prefix('/').unwrap_or_default();
        let host = format!("{host}{port}");
        let endpoints = self.upstream.mirrors.endpoints(Some(scheme), &host, path, pinned);
        let endpoints =
            endpoints.map_err(|error| FetchError::new(object, FetchProblem::NoEndpoint(error)))?;
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let file = |endpoint: Endpoint| {
            let server = self.server(object, &endpoint, false)?;
            // A user configures all other endpoints.
            let referred = referred.filter(|_| !endpoint.is_mirror && endpoint.host == host);
            let reach = referred.map_or_else(|| server.reach.clone(), |reach| Arc::new(reach.clone()));
            let path = format!("{}{query}", endpoint.path);
            Ok(FileEndpoint { server, path, authorization: None, reach })
        };
        endpoints.into_iter().map(file).collect()
    }

    fn server(&self, object: &str, endpoint: &Endpoint, insecure: bool) -> Result<Arc<Server>, FetchError> {
        self.servers.server_for(endpoint, insecure).map_err(|error| {
            FetchError::new(object, FetchProblem::InvalidUrl { url: endpoint.host.clone(), error })
        })
    }
}

impl MirroredRegistry {
    /// Returns the host of the registry itself.
    #[must_use]
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Reads a manifest by tag or digest. The first endpoint that has a manifest of this tag determines its digest; a
    /// manifest by digest can come from any endpoint.
    pub(crate) fn manifest(
        &self,
        context: RequestContext<'_>,
        repository: &str,
        reference: &str,
    ) -> Result<FetchedManifest, FetchError> {
        let digest: Option<Digest> = reference.parse().ok();
        let repositories = self.repositories(context.object, repository, digest.is_some())?;
        first_success(context.report, &repositories, Repository::server, |repository| {
            repeat_mismatch(|| {
                let fetched = repository.manifest(context, reference)?;
                // Proxies that reformat a document pass its header on.
                if let Some(digest) = digest.or(fetched.announced) {
                    check(context, digest, &fetched.bytes, repository)?;
                }
                if digest.is_none() {
                    Manifest::parse_document(&fetched.media_type, &fetched.bytes).map_err(|error| {
                        let digest = Digest::of(&fetched.bytes);
                        context.error(FetchProblem::Manifest { digest, error })
                    })?;
                }
                Ok(fetched)
            })
        })
    }

    /// Returns the digest that the first endpoint with this tag announces for it. `None`: only the manifest itself tells.
    pub(crate) fn digest_of_tag(
        &self,
        context: RequestContext<'_>,
        repository: &str,
        tag: &str,
    ) -> Option<Digest> {
        let repositories = self.repositories(context.object, repository, false).ok()?;
        let available = repositories.iter().filter(|repository| repository.server().why_down().is_none());
        for repository in available {
            match repository.announced(context, tag) {
                Ok(digest) => return digest,
                Err(error) if error.status() == Some(404) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// Reads a blob of at most `limit` bytes.
    pub(crate) fn small_blob(
        &self,
        context: RequestContext<'_>,
        repository: &str,
        digest: Digest,
        limit: u64,
    ) -> Result<Vec<u8>, FetchError> {
        let repositories = self.repositories(context.object, repository, true)?;
        first_success(context.report, &repositories, Repository::server, |repository| {
            repeat_mismatch(|| {
                let bytes = repository.small_blob(context, digest, limit)?;
                check(context, digest, &bytes, repository)?;
                Ok(bytes)
            })
        })
    }

    /// True if an endpoint has, or may have, a manifest of this name.
    pub(crate) fn may_have_manifest(
        &self,
        context: RequestContext<'_>,
        repository: &str,
        reference: &str,
    ) -> Result<bool, FetchError> {
        let repositories = self.repositories(context.object, repository, false)?;
        let found = first_found(context.report, &repositories, Repository::server, |repository| {
            Ok(repository.may_have_manifest(context, reference)?.then_some(()))
        });
        Ok(found?.is_some())
    }

    /// Returns the referrers of `subject`, by the referrers API of the first endpoint that has one.
    pub(crate) fn referrers(
        &self,
        context: RequestContext<'_>,
        repository: &str,
        subject: Digest,
    ) -> Result<Option<Vec<Referrer>>, FetchError> {
        let repositories = self.repositories(context.object, repository, false)?;
        first_found(context.report, &repositories, Repository::server, |repository| {
            repository.referrers(context, subject)
        })
    }

    /// True if an endpoint has a blob and delivers it with the available credentials.
    pub(crate) fn has_blob(&self, context: RequestContext<'_>, repository: &str, digest: Digest) -> bool {
        let repositories = self.repositories(context.object, repository, true).unwrap_or_default();
        repositories.iter().any(|repository| repository.has_blob(context, digest))
    }

    /// Returns the reach of URLs in manifests of a repository. It depends on the registry itself: a mirror
    /// copies what the registry has.
    pub(crate) fn reach(&self, object: &str, repository: &str) -> Result<Reach, FetchError> {
        let endpoints = self.endpoints.upstream.mirrors.endpoints(None, &self.host, repository, true);
        let origin = endpoints.ok().and_then(|mut endpoints| endpoints.pop());
        let Some(origin) = origin.filter(|endpoint| !endpoint.is_mirror) else { return Ok(Reach::public()) };
        let insecure = self.endpoints.upstream.is_insecure(&origin);
        Ok(self.endpoints.server(object, &origin, insecure)?.reach.of_referred())
    }

    /// Returns the endpoints of a repository, in order. `pinned`: the request is by digest.
    pub(crate) fn repositories(
        &self,
        object: &str,
        repository: &str,
        pinned: bool,
    ) -> Result<Vec<Repository>, FetchError> {
        let Endpoints { upstream, registries, .. } = &*self.endpoints;
        let endpoints = upstream.mirrors.endpoints(None, &self.host, repository, pinned);
        let endpoints =
            endpoints.map_err(|error| FetchError::new(object, FetchProblem::NoEndpoint(error)))?;
        let mut registries = registries.lock().expect("nothing panics while it holds this; please report");
        let repository = |endpoint: Endpoint| {
            let server = self.endpoints.server(object, &endpoint, upstream.is_insecure(&endpoint))?;
            let registry = registries
                .entry(server.key.clone())
                .or_insert_with(|| Arc::new(Registry::new(server, upstream.credentials.clone())));
            Ok(Repository::new(registry.clone(), endpoint.path))
        };
        endpoints.into_iter().map(repository).collect()
    }
}

/// Repeats a request once if the bytes do not match: they may have been corrupted in transit.
fn repeat_mismatch<T>(mut request: impl FnMut() -> Result<T, FetchError>) -> Result<T, FetchError> {
    request().or_else(|error| if error.is_mismatch() { request() } else { Err(error) })
}

fn check(
    context: RequestContext<'_>,
    expected: Digest,
    bytes: &[u8],
    repository: &Repository,
) -> Result<(), FetchError> {
    let found = Digest::of(bytes);
    if found == expected {
        return Ok(());
    }
    Err(context.error(FetchProblem::Mismatch {
        kind: MismatchKind::Digest,
        expected: expected.to_string(),
        found: found.to_string(),
        url: format!("{} as {}@{expected}, twice", repository.server().name(), repository.name),
    }))
}
