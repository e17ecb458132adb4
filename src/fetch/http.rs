//! [`Http`]: one request, its redirects and retries, and what a person is told when it fails.

use std::io::Read;
use std::time::Duration;

use reqwest::blocking::{Body, Client, RequestBuilder, Response};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER,
};
use reqwest::{Method, StatusCode, Url, redirect};

use crate::event::{Event, Report};
use crate::fetch::error::{FetchError, Problem};

/// Connecting may take this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// An answer, and every next piece of its body, may take this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// At most as many redirects (browsers and curl allow more; no registry needs them).
const REDIRECT_LIMIT: usize = 10;
/// The first wait before a retry; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest wait before a retry, also where the server asks for a longer one.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Begins what a server says itself, in an error.
pub const IT_SAYS: &str = "; it says \"";

/// Sends requests.
#[derive(Clone)]
pub struct Http {
    client: Client,
    lax: Client,
    tries: u32,
}

impl Http {
    /// Reads the proxy settings of the environment. A request that can pass later is sent `tries` times in all.
    #[must_use]
    pub fn new(tries: u32) -> Self {
        let builder = |follow: fn(redirect::Attempt) -> redirect::Action| {
            Client::builder()
                .user_agent(concat!("airbundle/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(IDLE_TIMEOUT)
                .redirect(redirect::Policy::custom(follow))
                .referer(false)
        };
        // A second initialisation by another `Http` of this process changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = builder(follow).build().expect("a client without files of its own; please report");
        let lax = builder(follow_here).tls_danger_accept_invalid_certs(true).build();
        let lax = lax.expect("as above; please report");
        Self { client, lax, tries: tries.max(1) }
    }

    /// A GET request; `lax` takes any certificate, and follows no redirect to another host.
    pub fn get(&self, url: Url, lax: bool) -> RequestBuilder {
        self.request(Method::GET, url, lax)
    }

    fn request(&self, method: Method, url: Url, lax: bool) -> RequestBuilder {
        // A file is what its URL gives, not what some server would make of it on the way.
        let client = if lax { &self.lax } else { &self.client };
        client.request(method, url).header(ACCEPT_ENCODING, "identity")
    }

    /// Sends a request with `headers` and an `authorization`, and returns the answer whatever its status. `lax`
    /// takes any certificate from the host of `url`; another host to which that one leads is asked as if it had not
    /// been said, and without the authorization.
    pub fn ask(
        &self,
        object: &str,
        method: Method,
        url: &Url,
        lax: bool,
        authorization: Option<&HeaderValue>,
        headers: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, FetchError> {
        let mut request = headers(self.request(method.clone(), url.clone(), lax));
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = send_any(object, request)?;
        match leads_to(&response).filter(|_| lax) {
            Some(elsewhere) => send_any(object, headers(self.request(method, elsewhere, false))),
            None => Ok(response),
        }
    }

    /// Posts a `form` that has a secret in it, and returns the answer whatever its status.
    pub fn post_form(
        &self,
        object: &str,
        url: &Url,
        lax: bool,
        form: String,
    ) -> Result<Response, FetchError> {
        let request = self.request(Method::POST, url.clone(), lax);
        // A body that can be read only once cannot be sent once more to where a redirect leads.
        let length = form.len() as u64;
        let body = Body::sized(std::io::Cursor::new(form), length);
        let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body);
        send_any(object, request)
    }

    /// Calls `attempt` until it succeeds, fails for good, or has failed as often as is allowed.
    pub fn retry<T>(
        &self,
        report: &dyn Report,
        mut attempt: impl FnMut() -> Result<T, FetchError>,
    ) -> Result<T, FetchError> {
        let mut tries = 1;
        loop {
            match attempt() {
                Err(error) if error.may_pass() && tries < self.tries => {
                    std::thread::sleep(self.delay(report, &error, tries));
                    tries += 1;
                }
                Err(mut error) => {
                    if let Problem::Network(_, count) = &mut error.problem {
                        *count = tries;
                    }
                    return Err(error);
                }
                success => return success,
            }
        }
    }

    /// How often a request is sent in all.
    #[must_use]
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// How long to wait before the next try: longer from time to time, or as long as the server asks for.
    /// Says so to `report`.
    pub fn delay(&self, report: &dyn Report, error: &FetchError, tries: u32) -> Duration {
        let asked = match &error.problem {
            Problem::Status { retry_after, .. } => *retry_after,
            _ => None,
        };
        let wait =
            asked.unwrap_or_else(|| jitter(FIRST_WAIT * 2_u32.pow((tries - 1).min(10)))).min(LONGEST_WAIT);
        let reason = match &error.source {
            Some(source) => format!("{}: {}", error.problem, root_cause(source)),
            None => error.problem.to_string(),
        };
        report.event(&Event::Retry { object: error.object.clone(), reason, wait });
        wait
    }
}

/// Sends the request; an answer with a status of failure is an error.
pub fn send(object: &str, request: RequestBuilder) -> Result<Response, FetchError> {
    let response = request.send().map_err(|error| network(object, error))?;
    check(object, response)
}

/// Sends the request and returns the answer whatever its status.
pub fn send_any(object: &str, request: RequestBuilder) -> Result<Response, FetchError> {
    request.send().map_err(|error| network(object, error))
}

/// An error for an answer with a status of failure.
pub fn check(object: &str, response: Response) -> Result<Response, FetchError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let url = plain(response.url());
    let retry_after =
        response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(seconds);
    let mut hint = match status {
        StatusCode::NOT_FOUND => " (not found): it does not exist under this name".to_owned(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            " (no access): it is private, or does not exist".to_owned()
        }
        StatusCode::TOO_MANY_REQUESTS => " (too many requests): try later, or use a `--mirror`".to_owned(),
        _ => status.canonical_reason().map(|reason| format!(" ({reason})")).unwrap_or_default(),
    };
    hint.push_str(&server_message(response));
    let status = status.as_u16();
    Err(FetchError::new(object, Problem::Status { url, status, hint, retry_after }))
}

/// The whole body, if it has at most `limit` bytes.
pub fn body(object: &str, response: Response, limit: u64) -> Result<Vec<u8>, FetchError> {
    let url = plain(response.url());
    let mut bytes = Vec::new();
    response.take(limit + 1).read_to_end(&mut bytes).map_err(|error| broken(object, &url, error))?;
    if bytes.len() as u64 > limit {
        let what = format!("more than the {limit} bytes that this may have");
        return Err(FetchError::new(object, Problem::Protocol { url, what }));
    }
    Ok(bytes)
}

/// The range that an answer of status 206 holds (RFC 9110, section 14.4): first byte, last byte, whole size.
#[must_use]
pub fn content_range(response: &Response) -> Option<(u64, u64, Option<u64>)> {
    let value = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    Some((first.parse().ok()?, last.parse().ok()?, size))
}

/// A connection that broke while a body was read.
#[must_use]
pub fn broken(object: &str, url: &str, error: std::io::Error) -> FetchError {
    let source = error.into_inner().and_then(|inner| inner.downcast().ok()).map(|inner| *inner);
    FetchError { source, ..FetchError::new(object, Problem::Network(url.to_owned(), 1)) }
}

/// A URL as it may be shown: without a query, where storage services put their signatures.
#[must_use]
pub fn plain(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_password(None); // a URL that cannot have one has none
    let _ = url.set_username("");
    url.to_string()
}

/// The innermost cause of an error, which says most.
#[must_use]
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn network(object: &str, error: reqwest::Error) -> FetchError {
    let url = error.url().map(plain).unwrap_or_default();
    if error.is_redirect() {
        let what = format!("a redirect that is not followed: {}", root_cause(&error));
        return FetchError::new(object, Problem::Protocol { url, what });
    }
    FetchError { source: Some(error.without_url()), ..FetchError::new(object, Problem::Network(url, 1)) }
}

/// What a registry says about the failure (distribution-spec, "Error Codes"), in one short line.
fn server_message(response: Response) -> String {
    const LIMIT: u64 = 4 << 10;
    let mut text = Vec::new();
    if response.take(LIMIT).read_to_end(&mut text).is_err() {
        return String::new();
    }
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(&text) else { return String::new() };
    let message = value["errors"][0]["message"].as_str().unwrap_or_default();
    let message: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
    if message.is_empty() { message } else { format!("{IT_SAYS}{message}\"") }
}

fn seconds(value: &str) -> Option<Duration> {
    value.trim().parse().ok().map(Duration::from_secs)
}

/// Up to a quarter more or less, so that a crowd of clients does not come back as one.
fn jitter(wait: Duration) -> Duration {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    #[expect(clippy::cast_precision_loss, reason = "any random number will do")]
    wait.mul_f64(0.75 + 0.5 * (random as f64 / u64::MAX as f64))
}

/// Where a redirect leads that was not followed.
fn leads_to(response: &Response) -> Option<Url> {
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response.headers().get(LOCATION).filter(|_| is_redirect)?;
    response.url().join(location.to_str().ok()?).ok()
}

/// reqwest itself keeps credentials from other origins.
fn follow(attempt: redirect::Attempt) -> redirect::Action {
    match fault(&attempt) {
        Some(fault) => attempt.error(fault),
        None => attempt.follow(),
    }
}

/// The same, but stops where it leads to another host.
fn follow_here(attempt: redirect::Attempt) -> redirect::Action {
    let is_here = attempt.previous().last().is_some_and(|url| url.host() == attempt.url().host());
    if is_here || fault(&attempt).is_some() { follow(attempt) } else { attempt.stop() }
}

/// Why a redirect must not be followed. One from https to http is refused: what comes over it could be
/// anybody's, and not everything has a checksum.
fn fault(attempt: &redirect::Attempt) -> Option<String> {
    if attempt.previous().len() > REDIRECT_LIMIT {
        return Some(format!("more than {REDIRECT_LIMIT} redirects"));
    }
    let secure = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    (secure && attempt.url().scheme() != "https").then(|| "it leads from https to http".to_owned())
}
