//! [`Http`]: sends requests; [`RequestContext`]: the values that all requests for one entry share.

pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod encoding;
pub(crate) mod failure;
pub(crate) mod proxy;
pub(crate) mod quota;
pub(crate) mod resolver;
pub(crate) mod retry;

use std::sync::Arc;
use std::time::Duration;

use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE,
};
use reqwest::{Method, Url};

use crate::base::event::Report;
use crate::net::error::{FetchError, FetchProblem};
use crate::net::http::body::read_body;
use crate::net::http::client::Clients;
use crate::net::http::encoding::{content_encoding, decode};
use crate::net::http::failure::{Expected, check_status, connection_error};
use crate::net::http::retry::RetryPolicy;
use crate::net::limits::Limits;
use crate::net::reach::{Internal, Reach};
use crate::net::secret::redacted;
use crate::net::tls::TlsTrust;
use crate::net::zone::Zone;

/// Maximum number of redirects. Browsers and curl follow more; no registry needs them.
const REDIRECT_LIMIT: usize = 10;

/// Minimum size in bytes of a body that gets a connection of its own.
const BULK: u64 = 1 << 20;

/// Sends requests.
#[derive(Clone)]
pub(crate) struct Http {
    clients: Arc<Clients>,
    limits: Limits,
    internal: Arc<Internal>,
    /// Attempts, delays and the deadline.
    pub retries: RetryPolicy,
}

/// The values that all requests for one entry share.
#[derive(Clone, Copy)]
pub(crate) struct RequestContext<'a> {
    /// Sends the requests.
    pub http: &'a Http,
    /// Receives the retries.
    pub report: &'a dyn Report,
    /// Name of the entry, for errors and events.
    pub object: &'a str,
}

/// A request.
pub(crate) struct RequestOptions<'a> {
    /// GET or HEAD.
    pub method: Method,
    /// The URL.
    pub url: &'a Url,
    /// Headers of this request, also sent to the targets of redirects.
    pub headers: HeaderMap,
    /// True if the body is large enough for a connection of its own; see [`is_bulk`].
    pub is_bulk: bool,
    /// True if the host's certificate is not verified. Does not apply to other hosts that redirects lead to.
    pub insecure: bool,
    /// Sent to the host only, not to the targets of redirects.
    pub authorization: Option<&'a HeaderValue>,
    /// The addresses that the request, and the redirects that it leads to, may go to.
    pub reach: &'a Reach,
}

impl Http {
    /// Reads the proxy settings of the environment, and starts the time limit of the run. `internal`: hosts
    /// that any server may refer to.
    #[must_use]
    pub(crate) fn new(trust: TlsTrust, limits: Limits, tries: u32, internal: Internal) -> Self {
        // Fails if another `Http` of this process has installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let internal = Arc::new(internal);
        let clients = Arc::new(Clients::new(trust, limits, Arc::clone(&internal)));
        Self { clients, limits, internal, retries: RetryPolicy::new(limits, tries) }
    }

    /// Sends a request and follows redirects. Returns the response whatever its status.
    pub(crate) fn send(&self, object: &str, options: RequestOptions<'_>) -> Result<Response, FetchError> {
        self.retries.check_deadline(object)?;
        let RequestOptions { method, url, headers, is_bulk, mut insecure, mut authorization, reach } =
            options;
        let mut url = url.clone();
        for _ in 0..=REDIRECT_LIMIT {
            let (client, timeout) = self.client(object, &url, insecure, is_bulk, reach)?;
            let mut request = client.request(method.clone(), url.clone()).headers(headers.clone());
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = send(object, request, timeout)?;
            // Unless it is the address of a proxy.
            if let Some(peer) = response.remote_addr().filter(|_| proxy::proxy_for(&url).is_none()) {
                reach.record(&url, peer.ip());
            }
            let Some(target) = redirect_target(&response) else { return Ok(response) };
            if let Some(reason) = redirect_error(&url, &target) {
                let url = redacted(&target);
                return Err(FetchError::new(
                    object,
                    FetchProblem::Protocol { url, reason: reason.to_owned() },
                ));
            }
            // The settings and the credentials of a server do not apply to the servers that it redirects to,
            // nor to those that these redirect to.
            insecure &= target.host() == url.host();
            authorization = authorization.filter(|_| target.origin() == url.origin());
            url = target;
        }
        let reason = format!("redirect not followed: more than {REDIRECT_LIMIT} redirects");
        Err(FetchError::new(object, FetchProblem::Protocol { url: redacted(&url), reason }))
    }

    /// Posts a `form` that contains a secret. Returns the response whatever its status. Does not follow
    /// redirects: the secret is for this server only.
    pub(crate) fn post_form(
        &self,
        object: &str,
        url: &Url,
        insecure: bool,
        form: String,
        reach: &Reach,
    ) -> Result<Response, FetchError> {
        self.retries.check_deadline(object)?;
        let (client, timeout) = self.client(object, url, insecure, false, reach)?;
        let request = client.request(Method::POST, url.clone()).body(form);
        send(object, request.header(CONTENT_TYPE, "application/x-www-form-urlencoded"), timeout)
    }

    /// Returns the client for a request to `url`, and a timeout that is shorter than the client's. Small
    /// requests share one connection, by HTTP/2 where available. Bulk requests get one each: the flow-control
    /// window of a single connection limits its rate if the latency is high or packets are lost. Fails if
    /// `url` is beyond `reach`.
    fn client(
        &self,
        object: &str,
        url: &Url,
        insecure: bool,
        is_bulk: bool,
        reach: &Reach,
    ) -> Result<(Client, Option<Duration>), FetchError> {
        let mut limit = reach.limit(url).filter(|_| !self.internal.allows(url));
        if let Some((_, zone)) = limit.zip(Zone::of_host(url)).filter(|(limit, zone)| zone > limit) {
            let host = url.host_str().unwrap_or_default().to_owned();
            let found = format!("`{host}` is {zone}");
            return Err(FetchError::new(object, FetchProblem::Internal { url: redacted(url), host, found }));
        }
        // A proxy resolves the name. The only name that is resolved here is the proxy's own.
        if proxy::proxy_for(url).is_some() {
            limit = None;
        }
        let client = self.clients.get(self.clients.kind(url, insecure, is_bulk, limit));
        // reqwest applies this timeout to the entire response.
        let left = self.retries.time_left().filter(|left| *left < self.limits.idle);
        Ok((client, left.map(|left| left.max(Duration::from_millis(1)))))
    }
}

impl<'a> RequestContext<'a> {
    /// Returns the same context for another entry.
    pub(crate) fn with_object(self, object: &'a str) -> Self {
        Self { object, ..self }
    }

    pub(crate) fn error(&self, problem: FetchProblem) -> FetchError {
        FetchError::new(self.object, problem)
    }

    /// Returns the error for an invalid response from `url`.
    pub(crate) fn invalid_response(&self, url: &Url, reason: impl Into<String>) -> FetchError {
        self.error(FetchProblem::Protocol { url: redacted(url), reason: reason.into() })
    }

    /// Calls `attempt` until it succeeds, fails permanently, or the attempts are used up.
    pub(crate) fn retry<T>(&self, attempt: impl FnMut() -> Result<T, FetchError>) -> Result<T, FetchError> {
        self.http.retries.retry(self.report, attempt)
    }

    /// Fails unless a response has a status with the `expected` content.
    pub(crate) fn check_status(
        &self,
        response: Response,
        expected: Expected,
    ) -> Result<Response, FetchError> {
        check_status(self.object, &self.http.retries, response, expected)
    }

    /// Reads a document of at most `limit` bytes that cannot be empty, such as a manifest. An empty one is a transient
    /// failure: the server or a proxy lost its content.
    pub(crate) fn read_document(&self, response: Response, limit: u64) -> Result<Vec<u8>, FetchError> {
        let url = redacted(response.url());
        let bytes = self.read_body(response, limit)?;
        if bytes.is_empty() { Err(self.error(FetchProblem::Empty { url })) } else { Ok(bytes) }
    }

    /// Reads a document of at most `limit` bytes, and decodes its content encoding.
    pub(crate) fn read_body(&self, response: Response, limit: u64) -> Result<Vec<u8>, FetchError> {
        let url = redacted(response.url());
        let encoding = content_encoding(response.headers());
        let mut bytes = read_body(self.object, &self.http.retries, response, limit + 1)?;
        if let Some(encoding) = encoding.filter(|_| bytes.len() as u64 <= limit) {
            bytes = decode(&encoding, bytes, limit + 1)
                .map_err(|reason| self.error(FetchProblem::Protocol { url: url.clone(), reason }))?;
        }
        if bytes.len() as u64 > limit {
            let reason = format!("body exceeds {limit} bytes");
            return Err(self.error(FetchProblem::Protocol { url, reason }));
        }
        Ok(bytes)
    }
}

/// True if a body of this size gets a connection of its own. An unknown size may be large.
#[must_use]
pub(crate) fn is_bulk(bytes: Option<u64>) -> bool {
    bytes.is_none_or(|bytes| bytes >= BULK)
}

/// Returns the header that requests the bytes `first..=last`.
#[must_use]
pub(crate) fn range_header((first, last): (u64, u64)) -> HeaderMap {
    let range = HeaderValue::from_str(&format!("bytes={first}-{last}"));
    HeaderMap::from_iter([(RANGE, range.expect("digits are valid in a header; please report"))])
}

/// Returns the range in a response with status 206 (RFC 9110, section 14.4): first byte, last byte, total
/// size.
#[must_use]
pub(crate) fn content_range(response: &Response) -> Option<(u64, u64, Option<u64>)> {
    let value = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    Some((first.parse().ok()?, last.parse().ok()?, size))
}

fn send(object: &str, request: RequestBuilder, timeout: Option<Duration>) -> Result<Response, FetchError> {
    // Checksums and sizes are those of the file itself, without a content encoding.
    let request = request.header(ACCEPT_ENCODING, "identity");
    let request = if let Some(timeout) = timeout { request.timeout(timeout) } else { request };
    request.send().map_err(|error| connection_error(object, error))
}

/// Returns the target of a redirect.
fn redirect_target(response: &Response) -> Option<Url> {
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response.headers().get(LOCATION).filter(|_| is_redirect)?;
    let mut target = response.url().join(std::str::from_utf8(location.as_bytes()).ok()?).ok()?;
    // reqwest would send a user name and a password in a URL as credentials. Fails if the URL cannot have
    // any.
    let _ = target.set_username("").and_then(|()| target.set_password(None));
    Some(target)
}

/// Returns why a redirect must not be followed. From HTTPS to HTTP is refused: anyone on the path could
/// replace the content, and not every file has a checksum.
fn redirect_error(from: &Url, to: &Url) -> Option<&'static str> {
    match (from.scheme(), to.scheme()) {
        ("https", "http") => Some("redirect not followed: it leads from HTTPS to HTTP"),
        (_, "http" | "https") => None,
        _ => Some("redirect not followed: it leads to neither HTTP nor HTTPS"),
    }
}
