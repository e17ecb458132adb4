//! [`Http`]: sends requests; [`RequestContext`]: the values that all requests for one entry share.

pub(crate) mod client;
pub(crate) mod failure;
pub(crate) mod proxy;
pub(crate) mod retry;

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::blocking::{Body, RequestBuilder, Response};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE,
};
use reqwest::{Method, Url};

use crate::base::event::Report;
use crate::net::error::{FetchError, FetchProblem};
use crate::net::http::client::{Clients, REDIRECT_LIMIT};
use crate::net::http::failure::{connection_error, read_error};
use crate::net::http::retry::RetryPolicy;
use crate::net::limits::Limits;
use crate::net::secret::redacted;
use crate::net::tls::TlsTrust;

/// Maximum time to read a small body, such as a manifest or a token.
const SMALL_BODY_TIMEOUT: Duration = Duration::from_secs(300);

/// Minimum size in bytes of a body that gets a connection of its own.
const BULK: u64 = 1 << 20;

/// Sends requests.
#[derive(Clone)]
pub(crate) struct Http {
    clients: Arc<Clients>,
    limits: Limits,
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
}

impl Http {
    /// Reads the proxy settings of the environment, and starts the time limit of the run.
    #[must_use]
    pub(crate) fn new(trust: TlsTrust, limits: Limits, tries: u32) -> Self {
        // Fails if another `Http` of this process has installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clients = Arc::new(Clients::new(trust, limits));
        Self { clients, limits, retries: RetryPolicy::new(limits, tries) }
    }

    /// Sends a GET request once, and returns the response whatever its status.
    pub(crate) fn get_once(&self, object: &str, url: Url, insecure: bool) -> Result<Response, FetchError> {
        send(object, self.request(Method::GET, url, insecure, false))
    }

    /// Sends a request and follows redirects. Returns the response whatever its status.
    pub(crate) fn send(&self, object: &str, options: RequestOptions<'_>) -> Result<Response, FetchError> {
        self.retries.check_deadline(object)?;
        let RequestOptions { method, url, headers, is_bulk, insecure, authorization } = options;
        let request = |url: &Url, insecure| {
            self.request(method.clone(), url.clone(), insecure, is_bulk).headers(headers.clone())
        };
        let mut first = request(url, insecure);
        if let Some(authorization) = authorization {
            first = first.header(AUTHORIZATION, authorization);
        }
        let mut kind = self.clients.kind(url, insecure, is_bulk);
        let mut response = send(object, first)?;
        // A client that is bound to its host stops at a redirect to another one. Continue there with a client
        // without the host's settings.
        for _ in 0..REDIRECT_LIMIT {
            let Some(target) = redirect_target(&response).filter(|_| kind.is_bound_to_host()) else {
                return Ok(response);
            };
            kind = self.clients.kind(&target, false, is_bulk);
            response = send(object, request(&target, false))?;
        }
        match redirect_target(&response) {
            Some(_) => {
                let reason = format!("redirect not followed: more than {REDIRECT_LIMIT} redirects");
                Err(FetchError::new(object, FetchProblem::Protocol { url: redacted(url), reason }))
            }
            None => Ok(response),
        }
    }

    /// Posts a `form` that contains a secret. Returns the response whatever its status.
    pub(crate) fn post_form(
        &self,
        object: &str,
        url: &Url,
        insecure: bool,
        form: String,
    ) -> Result<Response, FetchError> {
        self.retries.check_deadline(object)?;
        let request = self.request(Method::POST, url.clone(), insecure, false);
        // A body that can be read only once cannot be sent again to the target of a redirect.
        let length = form.len() as u64;
        let body = Body::sized(std::io::Cursor::new(form), length);
        send(object, request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body))
    }

    /// Starts a request. Small requests share one connection, by HTTP/2 where available. Bulk requests get
    /// one each: the flow-control window of a single connection limits its rate if the latency is high or
    /// packets are lost.
    fn request(&self, method: Method, url: Url, insecure: bool, is_bulk: bool) -> RequestBuilder {
        let client = self.clients.get(self.clients.kind(&url, insecure, is_bulk));
        // Checksums and sizes are those of the file itself, without a content encoding.
        let request = client.request(method, url).header(ACCEPT_ENCODING, "identity");
        match self.retries.time_left() {
            // reqwest applies this timeout to the entire response.
            Some(left) if left < self.limits.idle => request.timeout(left.max(Duration::from_millis(1))),
            _ => request,
        }
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

    /// Reads a body of at most `limit` bytes.
    pub(crate) fn read_body(&self, response: Response, limit: u64) -> Result<Vec<u8>, FetchError> {
        let url = redacted(response.url());
        let mut bytes = Vec::new();
        let mut body = response.take(limit + 1);
        let begin = Instant::now();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = body.read(&mut buffer).map_err(|error| read_error(self.object, &url, error))?;
            if read == 0 {
                break;
            }
            bytes.extend_from_slice(&buffer[..read]);
            if begin.elapsed() > SMALL_BODY_TIMEOUT {
                return Err(self.error(FetchProblem::Stalled { url, attempts: 1 }));
            }
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

fn send(object: &str, request: RequestBuilder) -> Result<Response, FetchError> {
    request.send().map_err(|error| connection_error(object, error))
}

/// Returns the target of a redirect that was not followed.
fn redirect_target(response: &Response) -> Option<Url> {
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response.headers().get(LOCATION).filter(|_| is_redirect)?;
    response.url().join(location.to_str().ok()?).ok()
}
