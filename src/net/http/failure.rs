//! Turns failed connections and responses with a status of failure into [`FetchError`]s with a hint.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::blocking::Response;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use rustls::{AlertDescription, CertificateError};

use crate::net::error::{FetchError, FetchProblem, PLAIN_HTTP, root_cause};
use crate::net::http::body::read_body;
use crate::net::http::encoding::{content_encoding, decode};
use crate::net::http::proxy;
use crate::net::http::quota::Quota;
use crate::net::http::resolver::InternalAddress;
use crate::net::http::retry::RetryPolicy;
use crate::net::secret::{SERVER_MESSAGE, redacted};
use crate::net::tls;
use crate::net::zone::Zone;

const CLIENT_CERTIFICATE_REQUIRED: &str = "server requires a client certificate: use `--client-cert`";

/// Message of hyper for a response that is not HTTP/1.
const INVALID_STATUS_LINE: &str = "invalid HTTP version parsed";

/// Returns the error for a request without a response.
pub(crate) fn connection_error(object: &str, error: reqwest::Error) -> FetchError {
    let mut url = error.url().map(redacted).unwrap_or_default();
    if let Some(InternalAddress { host, address }) = find_cause(&error) {
        let found = format!("`{host}` resolves to {address}, {}", Zone::of(*address));
        return FetchError::new(object, FetchProblem::Internal { url, host: host.clone(), found });
    }
    if let Some(reason) = find_cause(&error).and_then(explain_tls_error) {
        return FetchError::new(object, FetchProblem::Unreachable { url, reason });
    }
    // The first bytes of TLS are no status line.
    if error.url().is_some_and(|url| url.scheme() == "http") && root_cause(&error) == INVALID_STATUS_LINE {
        let reason = "server does not speak plain HTTP: use an https:// URL".to_owned();
        return FetchError::new(object, FetchProblem::Unreachable { url, reason });
    }
    if let Some(proxy) = error.url().and_then(proxy::proxy_for).filter(|_| error.is_connect()) {
        url = format!("{url} through the proxy {proxy}");
        if root_cause(&error).contains("proxy authorization required") {
            let reason = proxy::AUTHENTICATION_REQUIRED.to_owned();
            return FetchError::new(object, FetchProblem::Unreachable { url, reason });
        }
    }
    let problem = FetchProblem::Network { url, attempts: 1 };
    FetchError { source: Some(error.without_url()), ..FetchError::new(object, problem) }
}

/// The content that a response must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// A document of a server that may choose the status, such as a token.
    Document,
    /// The complete content: 200. Caches and portals respond with other statuses of success, and their content is
    /// none, incomplete or modified (RFC 9110, section 15.3).
    Complete,
    /// A range, or the complete content: 206 or 200.
    Range,
}

impl Expected {
    fn accepts(self, status: StatusCode) -> bool {
        match self {
            Self::Document => status.is_success() && status != StatusCode::PARTIAL_CONTENT,
            Self::Complete => status == StatusCode::OK,
            Self::Range => matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT),
        }
    }
}

/// Fails unless a response has a status with the `expected` content.
pub(crate) fn check_status(
    object: &str,
    retries: &RetryPolicy,
    response: Response,
    expected: Expected,
) -> Result<Response, FetchError> {
    let status = response.status();
    if expected.accepts(status) {
        return Ok(response);
    }
    let url = redacted(response.url());
    let retry_after = wait(status, response.headers());
    let mut hint = status.canonical_reason().map(|reason| format!(" {reason}")).unwrap_or_default();
    hint.push_str(&status_hint(status, &response));
    hint.push_str(&server_message(object, retries, response));
    let status = status.as_u16();
    Err(FetchError::new(object, FetchProblem::Status { url, status, hint, retry_after }))
}

fn status_hint(status: StatusCode, response: &Response) -> String {
    match status {
        StatusCode::PARTIAL_CONTENT => ": a range that was not requested, instead of the content".to_owned(),
        _ if status.is_success() => ": not the content; expected 200 OK".to_owned(),
        StatusCode::NOT_FOUND => ": check the name and the version".to_owned(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let proxy = proxy::proxy_for(response.url()).filter(|_| response.url().scheme() == "http");
            let proxy =
                proxy.map(|proxy| format!("; requested through the proxy {proxy}, which may have denied it"));
            format!(": access denied, or it does not exist{}", proxy.unwrap_or_default())
        }
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => format!(": {}", proxy::AUTHENTICATION_REQUIRED),
        StatusCode::TOO_MANY_REQUESTS => {
            let when = when(wait(status, response.headers()));
            format!(
                "{}: run the same command again {when} (`pack` keeps what it has fetched), or use `--mirror`",
                rate_limit(response.headers())
            )
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            let when = when(retry_after(response.headers()));
            format!(": overloaded or down; run the same command again {when}, or use `--jobs-per-host`")
        }
        _ => String::new(),
    }
}

/// Returns when to run a command again.
fn when(retry_after: Option<Duration>) -> String {
    match retry_after.map(|wait| wait.as_secs()) {
        None | Some(0..60) => "later".to_owned(),
        Some(seconds @ 60..7200) => format!("in {} min", seconds.div_ceil(60)),
        Some(seconds) => format!("in {} h", seconds.div_ceil(3600)),
    }
}

/// Returns the cause of this type.
fn find_cause<'a, T: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a T> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // The source of an `io::Error` is not the error in it, but the source of that one.
        let inner = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        if let Some(found) = inner.and_then(|inner| find_cause(inner)) {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Returns a reason and a hint for a TLS error. `None`: a retry may help.
fn explain_tls_error(error: &rustls::Error) -> Option<String> {
    use CertificateError as Bad;
    let text = match error {
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer) if tls::system_authorities().is_empty() => {
            "certificate signed by unknown authority; this system has no CA certificates: install \
             `ca-certificates`, or use `--ca-file`"
        }
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer) => {
            "certificate signed by unknown authority: use `--ca-file`, or `--insecure-registry` for a registry"
        }
        rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "certificate has expired, or the local clock is wrong"
        }
        rustls::Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            "certificate is not valid yet, or the local clock is wrong"
        }
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            return Some(format!("certificate is not valid for this host ({error})"));
        }
        rustls::Error::InvalidMessage(_) => PLAIN_HTTP,
        rustls::Error::InvalidCertificate(_) => return Some(format!("invalid certificate ({error})")),
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => CLIENT_CERTIFICATE_REQUIRED,
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::AccessDenied,
        ) => return Some(format!("server rejected the certificate of `--client-cert` ({error})")),
        _ => return None,
    };
    Some(text.to_owned())
}

/// Returns the registry's own message (distribution-spec, "Error Codes"), shortened to one line.
fn server_message(object: &str, retries: &RetryPolicy, response: Response) -> String {
    const LIMIT: u64 = 4 << 10;
    const NGINX_CERTIFICATE_REQUIRED: &[u8] = b"No required SSL certificate was sent";
    let encoding = content_encoding(response.headers());
    let Ok(mut text) = read_body(object, retries, response, LIMIT) else { return String::new() };
    if let Some(encoding) = encoding {
        text = decode(&encoding, text, LIMIT).unwrap_or_default();
    }
    // nginx, Apache and Go servers send status 400 with such a text.
    let is_https = ["to HTTPS port", "to an HTTPS server", "to an SSL-enabled server port"].into_iter();
    if is_https.map(str::as_bytes).any(|part| contains(&text, part)) {
        return "; the server requires HTTPS: use an https:// URL".to_owned();
    }
    // nginx sends status 400 with this page.
    if contains(&text, NGINX_CERTIFICATE_REQUIRED) {
        return format!("; {CLIENT_CERTIFICATE_REQUIRED}");
    }
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(&text) else { return String::new() };
    let message = value["errors"][0]["message"].as_str().unwrap_or_default();
    let message: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
    if message.is_empty() { message } else { format!("{SERVER_MESSAGE}{message}\"") }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Returns the delay before a retry: that of `Retry-After`, or the period of a quota that is used up.
fn wait(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let period = || Quota::of(headers).filter(|quota| quota.remaining == 0)?.period;
    retry_after(headers).or_else(|| if status == StatusCode::TOO_MANY_REQUESTS { period() } else { None })
}

/// Returns the delay of `Retry-After` (RFC 9110, section 10.2.3): in seconds, or until a date by the server's
/// clock.
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

/// Returns the rate limit headers, as Docker Hub sends them: `100;w=21600` is 100 requests in six hours.
fn rate_limit(headers: &HeaderMap) -> String {
    let part = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        Some(format!(", {name}: {}", value.chars().take(50).collect::<String>()))
    };
    ["ratelimit-limit", "ratelimit-remaining"].into_iter().filter_map(part).collect()
}
