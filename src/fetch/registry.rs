//! [`Repository`]: the pull side of a registry (OCI distribution-spec, "Pull").

use std::sync::Arc;

use reqwest::blocking::Response;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, LINK, RANGE};
use reqwest::{Method, StatusCode, Url};

use crate::fetch::resolve::referrers::{Referrer, parse_page};
use crate::net::auth::{Auth, AuthContext};
use crate::net::credentials::Credentials;
use crate::net::error::FetchError;
use crate::net::http::failure::Expected;
use crate::net::http::{RequestContext, RequestOptions, range_header};
use crate::net::server::Server;
use crate::oci::digest::Digest;
use crate::oci::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_LIMIT, OCI_INDEX, OCI_MANIFEST};

/// Maximum number of pages of a list of referrers.
const REFERRERS_PAGES: usize = 100;

/// Maximum size of all pages in bytes. The list becomes one manifest.
const REFERRERS_LIMIT: u64 = MANIFEST_LIMIT;

/// A registry and the sessions with it.
pub(crate) struct Registry {
    server: Arc<Server>,
    auth: Auth,
}

/// A repository of a registry.
#[derive(Clone)]
pub(crate) struct Repository {
    registry: Arc<Registry>,
    /// Name within the registry.
    pub name: String,
}

/// A page of the list of referrers.
struct ReferrersPage {
    is_index: bool,
    next: Option<Url>,
    body: Vec<u8>,
}

impl Registry {
    #[must_use]
    pub(crate) fn new(server: Arc<Server>, credentials: Arc<Credentials>) -> Self {
        Self { server, auth: Auth::new(credentials) }
    }
}

impl Repository {
    #[must_use]
    pub(crate) fn new(registry: Arc<Registry>, name: String) -> Self {
        Self { registry, name }
    }

    #[must_use]
    pub(crate) fn server(&self) -> &Server {
        &self.registry.server
    }

    /// Reads a manifest by tag or digest. Returns its media type and its exact bytes.
    pub(crate) fn manifest(
        &self,
        context: RequestContext<'_>,
        reference: &str,
    ) -> Result<(String, Vec<u8>), FetchError> {
        self.server().retry(&context, || {
            let url = self.url(context, &format!("manifests/{reference}"))?;
            let response = self.send(context, &Method::GET, &url, &accept_manifests(), false)?;
            Ok((media_type(&response), context.read_document(response, MANIFEST_LIMIT)?))
        })
    }

    /// Requests the bytes `first..=last` of a blob, or all of it. Does not retry.
    pub(crate) fn blob(
        &self,
        context: RequestContext<'_>,
        digest: Digest,
        range: Option<(u64, u64)>,
        is_bulk: bool,
    ) -> Result<Response, FetchError> {
        let url = self.url(context, &format!("blobs/{digest}"))?;
        self.send(context, &Method::GET, &url, &range.map(range_header).unwrap_or_default(), is_bulk)
    }

    /// Reads a blob of at most `limit` bytes. Does not check its digest.
    pub(crate) fn small_blob(
        &self,
        context: RequestContext<'_>,
        digest: Digest,
        limit: u64,
    ) -> Result<Vec<u8>, FetchError> {
        self.server().retry(&context, || context.read_body(self.blob(context, digest, None, false)?, limit))
    }

    /// True if the repository has a manifest of this name, or if the registry does not support HEAD. (HEAD
    /// does not count toward rate limits.)
    pub(crate) fn may_have_manifest(
        &self,
        context: RequestContext<'_>,
        reference: &str,
    ) -> Result<bool, FetchError> {
        let response = self.server().retry(&context, || {
            let url = self.url(context, &format!("manifests/{reference}"))?;
            self.send(context, &Method::HEAD, &url, &accept_manifests(), false)
        });
        match response {
            Ok(_) => Ok(true),
            Err(error) => match error.status() {
                Some(404) => Ok(false),
                Some(405 | 501) => Ok(true),
                _ => Err(error),
            },
        }
    }

    /// True if the repository has a blob and delivers it with the available credentials.
    pub(crate) fn has_blob(&self, context: RequestContext<'_>, digest: Digest) -> bool {
        let response = self.server().retry(&context, || {
            let url = self.url(context, &format!("blobs/{digest}"))?;
            self.send(context, &Method::HEAD, &url, &HeaderMap::new(), false)
        });
        response.is_ok()
    }

    /// Reads the descriptors of all referrers of `subject` by the referrers API (distribution-spec, "Listing
    /// Referrers"). `None`: the registry does not have that API.
    pub(crate) fn referrers(
        &self,
        context: RequestContext<'_>,
        subject: Digest,
    ) -> Result<Option<Vec<Referrer>>, FetchError> {
        let mut url = self.url(context, &format!("referrers/{subject}"))?;
        let mut all = Vec::new();
        let mut left = REFERRERS_LIMIT;
        for number in 0..REFERRERS_PAGES {
            let page = match self.referrers_page(context, &url) {
                Ok(page) => page,
                // The specification requires 404; older registries return the others.
                Err(error) if number == 0 && matches!(error.status(), Some(400 | 404 | 405 | 406 | 501)) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            if number == 0 && !page.is_index {
                return Ok(None);
            }
            let Some(rest) = left.checked_sub(page.body.len() as u64) else {
                let reason = format!("the list of referrers exceeds {REFERRERS_LIMIT} bytes");
                return Err(context.invalid_response(&url, reason));
            };
            left = rest;
            let referrers = parse_page(&page.body).map_err(|error| {
                context.invalid_response(&url, format!("not a list of referrers: {error}"))
            })?;
            all.extend(referrers);
            match page.next {
                None => return Ok(Some(all)),
                Some(next) if next.origin() == url.origin() => url = next,
                Some(_) => {
                    let reason = "the list of referrers continues on another host";
                    return Err(context.invalid_response(&url, reason));
                }
            }
        }
        let reason = format!("the list of referrers has more than {REFERRERS_PAGES} pages");
        Err(context.invalid_response(&url, reason))
    }

    fn referrers_page(&self, context: RequestContext<'_>, url: &Url) -> Result<ReferrersPage, FetchError> {
        self.server().retry(&context, || {
            let accept = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(OCI_INDEX))]);
            let response = self.send(context, &Method::GET, url, &accept, false)?;
            let is_index = media_type(&response) == OCI_INDEX;
            let next = next_page(&response);
            Ok(ReferrersPage { is_index, next, body: context.read_body(response, MANIFEST_LIMIT)? })
        })
    }

    /// Sends a request, and repeats it with other credentials if the registry requires them. Fails if the
    /// response has a status of failure.
    fn send(
        &self,
        context: RequestContext<'_>,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        is_bulk: bool,
    ) -> Result<Response, FetchError> {
        let (base, insecure, reach) =
            (self.server().base(&context)?, self.server().insecure, &*self.server().reach);
        let auth = &self.registry.auth;
        let auth_context = AuthContext { request: context, base, insecure, repository: &self.name, reach };
        let send = |authorization: Option<&HeaderValue>| {
            let (method, headers) = (method.clone(), headers.clone());
            let options = RequestOptions { method, url, headers, is_bulk, insecure, authorization, reach };
            context.http.send(context.object, options)
        };
        let expected = if headers.contains_key(RANGE) { Expected::Range } else { Expected::Complete };
        let authenticate = || {
            let header = auth.header(&auth_context)?;
            let response = send(header.as_ref())?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return context.check_status(response, expected);
            }
            match auth.respond(&auth_context, &response, header.as_ref())? {
                Some(header) => context.check_status(send(Some(&header))?, expected),
                None => context.check_status(response, expected),
            }
        };
        authenticate().map_err(|error| auth.explain(&auth_context, error))
    }

    fn url(&self, context: RequestContext<'_>, path: &str) -> Result<Url, FetchError> {
        self.server().url(&context, &format!("v2/{}/{path}", self.name))
    }
}

fn accept_manifests() -> HeaderMap {
    let types = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
    let types = HeaderValue::try_from(types).expect("media types are valid in a header; please report");
    HeaderMap::from_iter([(ACCEPT, types)])
}

/// Returns the media type of a response, without parameters.
fn media_type(response: &Response) -> String {
    let header = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    header.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned()
}

/// Returns the URL of the next page (RFC 8288): `Link: </v2/…?last=…>; rel="next"`.
fn next_page(response: &Response) -> Option<Url> {
    let links = response.headers().get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let mut links = links.flat_map(|value| value.split(",<").flat_map(|value| value.split(", <")));
    let next = links.find(|link| {
        let parameters = link.rsplit_once('>').map_or("", |(_, parameters)| parameters);
        parameters.replace(['"', ' '], "").to_ascii_lowercase().split(';').any(|one| one == "rel=next")
    })?;
    let target = next.trim_start().trim_start_matches('<').split('>').next()?;
    response.url().join(target).ok()
}
