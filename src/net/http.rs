//! [`Http`]: one request, its redirects and retries, and what a person is told when it fails.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::blocking::{Body, Client, ClientBuilder, RequestBuilder, Response};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LOCATION,
    RETRY_AFTER,
};
use reqwest::{Method, StatusCode, Url, redirect};
use rustls::{AlertDescription, CertificateError};

use crate::base::event::{Event, Report};
use crate::net::error::{FetchError, FetchProblem, root_cause};
use crate::net::limits::Limits;
use crate::net::secret::IT_SAYS;
use crate::net::tls::{self, TlsTrust};

/// At most as many redirects (browsers and curl allow more; no registry needs them).
const REDIRECT_LIMIT: usize = 10;

/// The first wait before a retry; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// The longest wait before a retry, also where the server asks for a longer one.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// The shortest one, also where the server asks for none.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// A body that brings fewer bytes a second counts as stalled. A modem brings more.
const SLOWEST: u64 = 1 << 10;

/// A manifest, or what a token server says, is there in this time or counts as stalled.
const SMALL_BODY: Duration = Duration::from_secs(300);

/// From as many bytes on, a request has a connection of its own.
const BULK: u64 = 1 << 20;

/// Sends requests.
#[derive(Clone)]
pub(crate) struct Http {
    clients: Arc<Clients>,
    tries: u32,
    limits: Limits,
    /// When the time is over.
    deadline: Option<Instant>,
}

/// Clients, made when they are needed for the first time: each has a thread, and connections, of its own.
struct Clients {
    trust: TlsTrust,
    limits: Limits,
    made: Mutex<HashMap<ClientKind, Client>>,
}

/// A request.
pub(crate) struct RequestOptions<'a> {
    /// GET or HEAD.
    pub method: Method,
    /// What is asked for.
    pub url: &'a Url,
    /// Whether it is large enough for a connection of its own.
    pub is_bulk: bool,
    /// Whether any certificate will do.
    pub insecure: bool,
    /// Who asks. Goes to no other place.
    pub authorization: Option<&'a HeaderValue>,
}

/// What a client is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ClientKind {
    /// It takes any certificate.
    insecure: bool,
    /// Which certificate of ours it shows.
    identity: Option<usize>,
    /// It speaks no HTTP/2.
    is_bulk: bool,
}

impl ClientKind {
    /// What one host gets must not go to where that one sends.
    fn is_bound(self) -> bool {
        self.insecure || self.identity.is_some()
    }
}

impl Http {
    /// Reads the proxy settings of the environment. The time of `--timeout` begins now.
    #[must_use]
    pub(crate) fn new(trust: TlsTrust, limits: Limits, tries: u32) -> Self {
        // A second initialisation by another `Http` of this process changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clients = Clients { trust, limits, made: Mutex::default() };
        let deadline = limits.total.and_then(|total| Instant::now().checked_add(total));
        Self { clients: Arc::new(clients), tries: tries.max(1), limits, deadline }
    }

    /// A GET request for something small; `insecure` takes any certificate, and follows no redirect to another host.
    pub(crate) fn get(&self, url: Url, insecure: bool) -> RequestBuilder {
        self.request(Method::GET, url, insecure, false)
    }

    /// Small things share one connection, by HTTP/2 where the server speaks it; what `is_bulk` has one of its own: a
    /// single one would be as slow as its window on a line that is long or loses packets.
    fn request(&self, method: Method, url: Url, insecure: bool, is_bulk: bool) -> RequestBuilder {
        let client = self.clients.get(self.kind(&url, insecure, is_bulk));
        // A file is what its URL gives, not what some server would make of it on the way.
        let request = client.request(method, url).header(ACCEPT_ENCODING, "identity");
        match self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            // reqwest takes this one for all of the answer.
            Some(left) if left < self.limits.idle => request.timeout(left.max(Duration::from_millis(1))),
            _ => request,
        }
    }

    fn kind(&self, url: &Url, insecure: bool, is_bulk: bool) -> ClientKind {
        let identity = self.clients.trust.identity_for(url);
        // Without TLS there is no HTTP/2, and one client is enough.
        ClientKind { insecure, identity, is_bulk: is_bulk && url.scheme() == "https" }
    }

    /// Sends a request for something small with `headers` and an `authorization`, and returns the answer whatever its
    /// status. `insecure` takes any certificate from the host of `url`; another host to which that one leads is asked as
    /// if it had not been said, and without the authorization.
    pub(crate) fn ask(
        &self,
        object: &str,
        method: Method,
        url: &Url,
        insecure: bool,
        authorization: Option<&HeaderValue>,
        headers: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, FetchError> {
        self.ask_for(object, RequestOptions { method, url, is_bulk: false, insecure, authorization }, headers)
    }

    /// The same for an [`RequestOptions`].
    pub(crate) fn ask_for(
        &self,
        object: &str,
        ask: RequestOptions<'_>,
        headers: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, FetchError> {
        self.in_time(object)?;
        let RequestOptions { method, url, is_bulk, insecure, authorization } = ask;
        let mut request = headers(self.request(method.clone(), url.clone(), insecure, is_bulk));
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let mut kind = self.kind(url, insecure, is_bulk);
        let mut response = send_any(object, request)?;
        // What is bound to a host has not followed to another one: go on from there as if it began there.
        for _ in 0..REDIRECT_LIMIT {
            let Some(elsewhere) = leads_to(&response).filter(|_| kind.is_bound()) else {
                return Ok(response);
            };
            kind = self.kind(&elsewhere, false, is_bulk);
            response = send_any(object, headers(self.request(method.clone(), elsewhere, false, is_bulk)))?;
        }
        match leads_to(&response) {
            Some(_) => {
                let what = format!("a redirect that is not followed: more than {REDIRECT_LIMIT} redirects");
                Err(FetchError::new(object, FetchProblem::Protocol { url: plain(url), what }))
            }
            None => Ok(response),
        }
    }

    /// Posts a `form` that has a secret in it, and returns the answer whatever its status.
    pub(crate) fn post_form(
        &self,
        object: &str,
        url: &Url,
        insecure: bool,
        form: String,
    ) -> Result<Response, FetchError> {
        self.in_time(object)?;
        let request = self.request(Method::POST, url.clone(), insecure, false);
        // A body that can be read only once cannot be sent once more to where a redirect leads.
        let length = form.len() as u64;
        let body = Body::sized(std::io::Cursor::new(form), length);
        let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body);
        send_any(object, request)
    }

    /// Calls `attempt` until it succeeds, fails for good, or has failed as often as is allowed.
    pub(crate) fn retry<T>(
        &self,
        report: &dyn Report,
        mut attempt: impl FnMut() -> Result<T, FetchError>,
    ) -> Result<T, FetchError> {
        let mut tries = 1;
        loop {
            match attempt() {
                Err(error) if error.may_pass() && tries < self.tries => {
                    let wait = Self::delay(report, &error, tries);
                    self.in_time_after(&error.object, wait)?;
                    std::thread::sleep(wait);
                    tries += 1;
                }
                Err(error) => return Err(error.tried(tries)),
                success => return success,
            }
        }
    }

    /// How often a request is sent in all.
    #[must_use]
    pub(crate) fn tries(&self) -> u32 {
        self.tries
    }

    /// How long to wait before the next try: longer from time to time, or as long as the server asks for.
    /// Says so to `report`.
    pub(crate) fn delay(report: &dyn Report, error: &FetchError, tries: u32) -> Duration {
        let asked = match &error.problem {
            FetchProblem::Status { retry_after, .. } => *retry_after,
            _ => None,
        };
        let wait = asked.unwrap_or_else(|| jitter(FIRST_WAIT * 2_u32.pow((tries - 1).min(10))));
        let wait = wait.clamp(SHORTEST_WAIT, LONGEST_WAIT);
        report.event(&Event::Retry { object: error.object.clone(), reason: error.reason(), wait });
        wait
    }

    /// An error if the time is over.
    pub(crate) fn in_time(&self, object: &str) -> Result<(), FetchError> {
        self.in_time_after(object, Duration::ZERO)
    }

    /// An error if it is over then.
    pub(crate) fn in_time_after(&self, object: &str, wait: Duration) -> Result<(), FetchError> {
        match self.deadline.zip(self.limits.total) {
            Some((deadline, total)) if deadline.saturating_duration_since(Instant::now()) <= wait => {
                Err(FetchError::new(object, FetchProblem::Late(total)))
            }
            _ => Ok(()),
        }
    }

    /// Watches over the bytes of a body.
    #[must_use]
    pub(crate) fn pace(&self) -> Pace<'_> {
        Pace { http: self, since: Instant::now(), bytes: 0 }
    }
}

/// Watches over the bytes of a body: a server that sends one from time to time would keep us for ever.
pub(crate) struct Pace<'a> {
    http: &'a Http,
    since: Instant,
    bytes: u64,
}

impl Pace<'_> {
    /// Takes note of bytes from `url`. An error if they come too slowly, or too late.
    pub(crate) fn came(&mut self, object: &str, url: &Url, bytes: usize) -> Result<(), FetchError> {
        self.http.in_time(object)?;
        self.bytes += bytes as u64;
        let time = self.since.elapsed();
        if time < self.http.limits.idle {
            return Ok(());
        }
        if u128::from(self.bytes) * 1000 < u128::from(SLOWEST) * time.as_millis() {
            return Err(FetchError::new(object, FetchProblem::Stalled(plain(url), 1)));
        }
        (self.since, self.bytes) = (Instant::now(), 0);
        Ok(())
    }
}

impl Clients {
    fn get(&self, kind: ClientKind) -> Client {
        let mut made = self.made.lock().expect("nothing panics while it holds the clients; please report");
        made.entry(kind).or_insert_with(|| self.make(kind)).clone()
    }

    fn make(&self, kind: ClientKind) -> Client {
        let follow = match kind {
            ClientKind { identity: Some(_), .. } => follow_on_server,
            ClientKind { insecure: true, .. } => follow_on_host,
            _ => follow,
        };
        let mut builder: ClientBuilder = Client::builder()
            .user_agent(concat!("airbundle/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.limits.connect)
            .timeout(self.limits.idle)
            .redirect(redirect::Policy::custom(follow))
            .referer(false);
        builder = if kind.insecure {
            builder.tls_danger_accept_invalid_certs(true)
        } else {
            // All that there are, and not reqwest's own choice: that one fails where the system has none, even if
            // none will be needed.
            builder.tls_certs_only(tls::of_system().iter().chain(&self.trust.authorities).cloned())
        };
        if kind.is_bulk {
            builder = builder.http1_only();
        }
        if is_without_proxies() {
            builder = builder.no_proxy();
        }
        if let Some(identity) = kind.identity {
            builder = builder.identity(self.trust.identities[identity].1.clone());
        }
        builder.build().expect("certificates were checked when they were read; please report")
    }
}

/// Whether a request for as many bytes is bulk. What nobody knows may be much.
#[must_use]
pub(crate) fn is_bulk(bytes: Option<u64>) -> bool {
    bytes.is_none_or(|bytes| bytes >= BULK)
}

/// Sends the request and returns the answer whatever its status.
pub(crate) fn send_any(object: &str, request: RequestBuilder) -> Result<Response, FetchError> {
    request.send().map_err(|error| network(object, error))
}

/// An error for an answer with a status of failure.
pub(crate) fn check(object: &str, response: Response) -> Result<Response, FetchError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let url = plain(response.url());
    let retry_after = retry_after(response.headers());
    let mut hint = match status {
        StatusCode::NOT_FOUND => " (not found): it does not exist under this name".to_owned(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let proxy = proxy_of(response.url()).filter(|_| response.url().scheme() == "http");
            let proxy =
                proxy.map(|proxy| format!("; it was asked through the proxy {proxy}, which may say so"));
            format!(" (no access): it is private, or does not exist{}", proxy.unwrap_or_default())
        }
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => format!(": {PROXY_USER}"),
        StatusCode::TOO_MANY_REQUESTS => {
            format!(" (too many requests{}): try later, or use a `--mirror`", rate_limit(response.headers()))
        }
        _ => status.canonical_reason().map(|reason| format!(" ({reason})")).unwrap_or_default(),
    };
    hint.push_str(&server_message(response));
    let status = status.as_u16();
    Err(FetchError::new(object, FetchProblem::Status { url, status, hint, retry_after }))
}

/// The whole body, if it has at most `limit` bytes.
pub(crate) fn body(object: &str, response: Response, limit: u64) -> Result<Vec<u8>, FetchError> {
    let url = plain(response.url());
    let mut bytes = Vec::new();
    let mut body = response.take(limit + 1);
    let begin = Instant::now();
    let mut part = vec![0; 64 << 10];
    loop {
        let read = body.read(&mut part).map_err(|error| broken(object, &url, error))?;
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&part[..read]);
        if begin.elapsed() > SMALL_BODY {
            return Err(FetchError::new(object, FetchProblem::Stalled(url, 1)));
        }
    }
    if bytes.len() as u64 > limit {
        let what = format!("more than the {limit} bytes that this may have");
        return Err(FetchError::new(object, FetchProblem::Protocol { url, what }));
    }
    Ok(bytes)
}

/// The range that an answer of status 206 holds (RFC 9110, section 14.4): first byte, last byte, whole size.
#[must_use]
pub(crate) fn content_range(response: &Response) -> Option<(u64, u64, Option<u64>)> {
    let value = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    Some((first.parse().ok()?, last.parse().ok()?, size))
}

/// A connection that broke while a body was read.
#[must_use]
pub(crate) fn broken(object: &str, url: &str, error: std::io::Error) -> FetchError {
    let source = error.into_inner().and_then(|inner| inner.downcast().ok()).map(|inner| *inner);
    FetchError { source, ..FetchError::new(object, FetchProblem::Network(url.to_owned(), 1)) }
}

/// A URL as it may be shown: without a query, where storage services put their signatures.
#[must_use]
pub(crate) fn plain(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_password(None); // a URL that cannot have one has none
    let _ = url.set_username("");
    url.to_string()
}

fn network(object: &str, error: reqwest::Error) -> FetchError {
    let mut url = error.url().map(plain).unwrap_or_default();
    if error.is_redirect() {
        let what = format!("a redirect that is not followed: {}", root_cause(&error));
        return FetchError::new(object, FetchProblem::Protocol { url, what });
    }
    if let Some(what) = find_tls(&error).and_then(explain) {
        return FetchError::new(object, FetchProblem::Unreachable { url, what });
    }
    if let Some(proxy) = error.url().and_then(proxy_of).filter(|_| error.is_connect()) {
        url = format!("{url} through the proxy {proxy}");
        if root_cause(&error).contains("proxy authorization required") {
            return FetchError::new(object, FetchProblem::Unreachable { url, what: PROXY_USER.to_owned() });
        }
    }
    FetchError { source: Some(error.without_url()), ..FetchError::new(object, FetchProblem::Network(url, 1)) }
}

const PROXY_USER: &str = "the proxy wants a user and a password, or does not take these: they are part of its URL, \
    `HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT`";

/// Whether no host is to be asked through a proxy; reqwest understands `*` as all names, and not as addresses.
fn is_without_proxies() -> bool {
    let value = ["NO_PROXY", "no_proxy"].into_iter().find_map(|name| std::env::var(name).ok());
    value.is_some_and(|value| value.split(',').any(|entry| entry.trim() == "*"))
}

/// The proxy of the environment through which a URL is asked for, as it may be shown.
fn proxy_of(url: &Url) -> Option<String> {
    if is_without_proxies() {
        return None;
    }
    let proxy = Matcher::from_env().intercept(&url.as_str().parse().ok()?)?;
    Some(plain(&proxy.uri().to_string().parse().ok()?))
}

/// What TLS itself has complained of.
fn find_tls<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An `io::Error` does not tell its content as its source, but the source of that.
        let content = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        if let Some(found) = content.and_then(|content| find_tls(content)) {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// What is wrong and what to do, if it will be as wrong the next time.
fn explain(error: &rustls::Error) -> Option<String> {
    use CertificateError as Bad;
    let text = match error {
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer) if tls::of_system().is_empty() => {
            "nobody here knows the authority of its certificate, as this system has no authorities at all: \
             install `ca-certificates`, or name a file of them with `--ca-file`"
        }
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer) => {
            "nobody here knows the authority of its certificate: name that with `--ca-file`, or take any \
             certificate of a registry with `--insecure-registry`"
        }
        rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "its certificate has expired, or the clock here is wrong"
        }
        rustls::Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            "its certificate is not valid yet, or the clock here is wrong"
        }
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            return Some(format!("its certificate is for another host ({error})"));
        }
        rustls::Error::InvalidCertificate(_) => {
            return Some(format!("its certificate is not valid ({error})"));
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "it wants a certificate of ours: name one with `--client-cert`"
        }
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::AccessDenied,
        ) => return Some(format!("it does not take the certificate of `--client-cert` ({error})")),
        _ => return None,
    };
    Some(text.to_owned())
}

/// What a registry says about the failure (distribution-spec, "Error Codes"), in one short line.
fn server_message(response: Response) -> String {
    const LIMIT: u64 = 4 << 10;
    const WANTS_CERTIFICATE: &[u8] = b"No required SSL certificate was sent";
    let mut text = Vec::new();
    if response.take(LIMIT).read_to_end(&mut text).is_err() {
        return String::new();
    }
    // nginx has a status for this that it does not send.
    if text.windows(WANTS_CERTIFICATE.len()).any(|part| part == WANTS_CERTIFICATE) {
        return "; it wants a certificate of ours: name one with `--client-cert`".to_owned();
    }
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(&text) else { return String::new() };
    let message = value["errors"][0]["message"].as_str().unwrap_or_default();
    let message: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
    if message.is_empty() { message } else { format!("{IT_SAYS}{message}\"") }
}

/// How long a server asks to wait (RFC 9110, section 10.2.3): in seconds, or until a time by its own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let value = text(RETRY_AFTER)?;
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = httpdate::parse_http_date(value).ok()?;
    let now = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok());
    Some(then.duration_since(now.unwrap_or_else(SystemTime::now)).unwrap_or_default())
}

/// What a server tells of its limit, as Docker Hub does: `100;w=21600` is a hundred in six hours.
fn rate_limit(headers: &HeaderMap) -> String {
    let part = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        Some(format!(", {name}: {}", value.chars().take(50).collect::<String>()))
    };
    ["ratelimit-limit", "ratelimit-remaining"].into_iter().filter_map(part).collect()
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
fn follow_on_host(attempt: redirect::Attempt) -> redirect::Action {
    follow_if(attempt, |from, to| from.host() == to.host())
}

/// The same, but stops where it leads to another host or port.
fn follow_on_server(attempt: redirect::Attempt) -> redirect::Action {
    let port = Url::port_or_known_default;
    follow_if(attempt, |from, to| from.host() == to.host() && port(from) == port(to))
}

fn follow_if(attempt: redirect::Attempt, may: impl Fn(&Url, &Url) -> bool) -> redirect::Action {
    let may = attempt.previous().last().is_some_and(|from| may(from, attempt.url()));
    if may || fault(&attempt).is_some() { follow(attempt) } else { attempt.stop() }
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
