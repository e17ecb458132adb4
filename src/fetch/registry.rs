//! [`Repository`]: the pull side of a registry (OCI distribution-spec, "Pull").

use std::fmt;
use std::sync::Arc;

use reqwest::blocking::Response;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, LINK, RANGE};
use reqwest::{Method, StatusCode, Url};

use crate::fetch::resolve::referrers::{Referrer, parse_page};
use crate::net::auth::{Auth, AuthContext};
use crate::net::credentials::Credentials;
use crate::net::error::{FetchError, FetchProblem};
use crate::net::http::failure::Expected;
use crate::net::http::quota::Quota;
use crate::net::http::{RequestContext, RequestOptions, range_header};
use crate::net::server::Server;
use crate::oci::digest::Digest;
use crate::oci::manifest::{MANIFEST_LIMIT, MANIFEST_TYPES, OCI_INDEX};
use crate::oci::parsed_text::quoted;

/// Maximum number of pages of a list of referrers.
const REFERRERS_PAGES: usize = 100;

/// Maximum size of all pages in bytes. The list becomes one manifest.
const REFERRERS_LIMIT: u64 = MANIFEST_LIMIT;

/// Number of bytes of an unexpected response that are shown.
const FIRST_BYTES: usize = 40;

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

/// The response to a request for a manifest.
pub(crate) struct FetchedManifest {
    /// `Content-Type`, without parameters.
    pub media_type: String,
    /// `Docker-Content-Digest`. `None`: it is missing, or of another algorithm than sha256.
    pub announced: Option<Digest>,
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// The requests for manifests that the registry allows. `None`: not stated.
    pub quota: Option<Quota>,
}

impl FetchedManifest {
    /// A manifest that was not requested. The document states its media type.
    #[must_use]
    pub(crate) fn known(digest: Digest, bytes: Vec<u8>) -> Self {
        Self { media_type: String::new(), announced: Some(digest), bytes, quota: None }
    }
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

    /// Reads a manifest by tag or digest. Fails if the response is not a JSON object.
    pub(crate) fn manifest(
        &self,
        context: RequestContext<'_>,
        reference: &str,
    ) -> Result<FetchedManifest, FetchError> {
        self.server().retry(&context, || {
            let url = self.url(context, &format!("manifests/{reference}"))?;
            let response = self.send(context, &Method::GET, &url, &accept_manifests(), false)?;
            let (final_url, status) = (response.url().clone(), response.status());
            if let Some(size) = response.content_length().filter(|size| *size > MANIFEST_LIMIT) {
                let reason = format!(
                    "the manifest has {size} bytes, and the maximum is {MANIFEST_LIMIT}: registries serve no larger ones"
                );
                return Err(context.invalid_response(&final_url, reason));
            }
            let (media_type, announced) = (media_type(&response), announced_digest(&response));
            let quota = Quota::of(response.headers());
            let bytes = context.read_document(response, MANIFEST_LIMIT)?;
            // If the request is by digest, it shows that other data are damaged.
            let is_damage = |other: &Other| matches!(other, Other::Data(_)) && reference.parse::<Digest>().is_ok();
            match describe_other(&bytes).filter(|other| !is_damage(other)) {
                None => Ok(FetchedManifest { media_type, announced, bytes, quota }),
                Some(what) => {
                    let reason = format!("{what} instead of a manifest (status {status}, type `{media_type}`)");
                    Err(context.invalid_response(&final_url, reason))
                }
            }
        })
    }

    /// Returns the digest that the registry announces for a tag. `None`: none. Does not retry, because only the request
    /// for the manifest itself has to succeed. HEAD does not count toward rate limits.
    pub(crate) fn announced(
        &self,
        context: RequestContext<'_>,
        tag: &str,
    ) -> Result<Option<Digest>, FetchError> {
        self.server().once(&context, || {
            let url = self.url(context, &format!("manifests/{tag}"))?;
            let response = self.send(context, &Method::HEAD, &url, &accept_manifests(), false)?;
            Ok(announced_digest(&response))
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

    /// True if the repository may have a manifest of this name. HEAD does not count toward rate limits, but many
    /// registries, and the storage that they redirect to, reject it: only 404 means that there is none.
    pub(crate) fn may_have_manifest(
        &self,
        context: RequestContext<'_>,
        reference: &str,
    ) -> Result<bool, FetchError> {
        let response = self.server().retry(&context, || {
            let url = self.url(context, &format!("manifests/{reference}"))?;
            let response = self.send(context, &Method::HEAD, &url, &accept_manifests(), false);
            response.map(drop).map_err(|error| self.permanent_if_elsewhere(context, error))
        });
        match response {
            Ok(()) => Ok(true),
            Err(error) => match error.status() {
                Some(404) => Ok(false),
                Some(429) => Err(error),
                Some(_) => Ok(true),
                None if matches!(error.problem, FetchProblem::Protocol { .. }) => Ok(true),
                None => Err(error),
            },
        }
    }

    /// Returns an error that is not repeated if another server than the registry returned the status: its rate
    /// limits and failures are not the registry's.
    fn permanent_if_elsewhere(&self, context: RequestContext<'_>, error: FetchError) -> FetchError {
        let FetchProblem::Status { url, status, .. } = &error.problem else { return error };
        let own = self.server().base(&context).map(Url::origin);
        let other = Url::parse(url).map(|url| url.origin());
        match (own, other) {
            (Ok(own), Ok(other)) if own != other => {
                let reason = format!("it redirects to {url}, which returned {status}");
                context.error(FetchProblem::Protocol {
                    url: format!("the registry {}", self.server().name()),
                    reason,
                })
            }
            _ => error,
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
    /// Referrers"). `None`: the registry does not have that API, or it does not work.
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
                Err(error) if number == 0 && has_no_referrers_api(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            if number == 0 && (!page.is_index || describe_other(&page.body).is_some()) {
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
            let Some(next) = page.next else { return Ok(Some(all)) };
            // A registry behind a proxy names itself by another scheme, host or path.
            let Some(path) = api_path(&next) else {
                let reason = "the next page of the list of referrers is not below `/v2/`";
                return Err(context.invalid_response(&url, reason));
            };
            url = self.server().url(&context, &path)?;
        }
        let reason = format!("the list of referrers has more than {REFERRERS_PAGES} pages");
        Err(context.invalid_response(&url, reason))
    }

    fn referrers_page(&self, context: RequestContext<'_>, url: &Url) -> Result<ReferrersPage, FetchError> {
        self.server().retry(&context, || {
            let accept = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(OCI_INDEX))]);
            let response = self.send(context, &Method::GET, url, &accept, false);
            let response = response.map_err(|error| self.permanent_if_elsewhere(context, error))?;
            let is_index = media_type(&response) == OCI_INDEX;
            let next = next_page(response.headers(), response.url());
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
    let types = MANIFEST_TYPES.join(", ");
    let types = HeaderValue::try_from(types).expect("media types are valid in a header; please report");
    HeaderMap::from_iter([(ACCEPT, types)])
}

/// True if a registry that does not have the referrers API returns `error`. The specification requires 404; others
/// deny access, redirect to a web page, or to a server that fails.
fn has_no_referrers_api(error: &FetchError) -> bool {
    match error.status() {
        Some(429) => false,
        Some(status) => (300..500).contains(&status) || status == 501,
        None => matches!(error.problem, FetchProblem::Protocol { .. }),
    }
}

/// Returns the path and query of a URL from `v2/` on. `None`: it has no such path.
fn api_path(url: &Url) -> Option<String> {
    let (_, path) = url.path().split_once("/v2/")?;
    Some(format!("v2/{path}{}", url.query().map(|query| format!("?{query}")).unwrap_or_default()))
}

/// Returns the digest in the header of a response.
fn announced_digest(response: &Response) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}

/// Bytes that are not a JSON object.
#[derive(Debug, PartialEq, Eq)]
enum Other {
    Nothing,
    WebPage,
    Gzip,
    /// The first bytes, printable.
    Data(String),
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no content"),
            Self::WebPage => f.write_str("a web page"),
            Self::Gzip => f.write_str("gzip data"),
            Self::Data(first) => write!(f, "other data (`{first}`)"),
        }
    }
}

/// Describes bytes that are not a JSON object. `None`: they may be one.
fn describe_other(bytes: &[u8]) -> Option<Other> {
    let text = bytes.trim_ascii_start();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let is_tag = |tag: &[u8]| text.len() >= tag.len() && text[..tag.len()].eq_ignore_ascii_case(tag);
    match text.first() {
        Some(b'{') => None,
        None => Some(Other::Nothing),
        Some(_) if is_tag(b"<!doctype html") || is_tag(b"<html") => Some(Other::WebPage),
        Some(0x1f) if text.starts_with(&[0x1f, 0x8b]) => Some(Other::Gzip),
        Some(_) => {
            let first = String::from_utf8_lossy(&text[..text.len().min(FIRST_BYTES)]);
            Some(Other::Data(quoted(&first)))
        }
    }
}

/// Returns the media type of a response, without parameters.
fn media_type(response: &Response) -> String {
    let header = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    header.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned()
}

/// Returns the URL of the next page (RFC 8288): `Link: </v2/…?last=…>; rel="next"`, relative to `base`.
pub(crate) fn next_page(headers: &HeaderMap, base: &Url) -> Option<Url> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let mut links = links.flat_map(|value| value.split(",<").flat_map(|value| value.split(", <")));
    let next = links.find(|link| {
        let parameters = link.rsplit_once('>').map_or("", |(_, parameters)| parameters);
        parameters.replace(['"', ' '], "").to_ascii_lowercase().split(';').any(|one| one == "rel=next")
    })?;
    let target = next.trim_start().trim_start_matches('<').split('>').next()?;
    base.join(target).ok()
}
