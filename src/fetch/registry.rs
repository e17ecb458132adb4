//! [`Registry`]: the pull side of a registry (OCI distribution-spec, "Pull").

use std::sync::{Arc, OnceLock};

use reqwest::blocking::{RequestBuilder, Response};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RANGE};
use reqwest::{Method, StatusCode, Url};

use crate::digest::Digest;
use crate::event::Report;
use crate::fetch::auth::{Asking, Auth};
use crate::fetch::credentials::Credentials;
use crate::fetch::error::{FetchError, Problem};
use crate::fetch::http::{self, Http};
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_LIMIT, OCI_INDEX, OCI_MANIFEST};

/// Where the images of one host are pulled from.
pub struct Registry {
    http: Http,
    place: Place,
    /// What the mirror puts before the repository: `quay.io/`, or nothing.
    prefix: String,
    lax: bool,
    base: OnceLock<Url>,
    auth: Auth,
}

/// How a registry is reached.
enum Place {
    /// At this URL.
    Url(Url),
    /// At this host, by https, or by http if there is no https: for loopback and `--insecure-registry` only.
    EitherScheme(String),
}

impl Registry {
    /// The registry of `host`, or the mirror for it; `insecure`: any certificate of that place will do, or plain
    /// http.
    pub fn new(
        http: Http,
        host: &str,
        mirror: Option<&Url>,
        insecure: bool,
    ) -> Result<Self, url::ParseError> {
        let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let (place, prefix) = match mirror {
            Some(url) => {
                let path = url.path().trim_matches('/');
                let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
                (Place::Url(url.join("/")?), prefix)
            }
            None if insecure || is_loopback(host) => {
                Url::parse(&format!("https://{host}/"))?;
                (Place::EitherScheme(host.to_owned()), String::new())
            }
            None => (Place::Url(Url::parse(&format!("https://{host}/"))?), String::new()),
        };
        Ok(Self { http, place, prefix, lax: insecure, base: OnceLock::new(), auth: Auth::default() })
    }

    /// Reads a manifest by tag or digest: its media type and its exact bytes.
    pub fn manifest(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        reference: &str,
    ) -> Result<(String, Vec<u8>), FetchError> {
        let repository = format!("{}{repository}", self.prefix);
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        self.http.retry(report, || {
            let url = self.url(object, &format!("{repository}/manifests/{reference}"))?;
            let response =
                self.get(report, object, &repository, &url, |request| request.header(ACCEPT, &accept))?;
            let header = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let media_type =
                header.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
            Ok((media_type, http::body(object, response, MANIFEST_LIMIT)?))
        })
    }

    /// Asks for the bytes `first..=last` of a blob; one try, the caller repeats.
    pub fn blob(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        digest: Digest,
        range: Option<(u64, u64)>,
    ) -> Result<Response, FetchError> {
        let repository = format!("{}{repository}", self.prefix);
        let url = self.url(object, &format!("{repository}/blobs/{digest}"))?;
        self.get(report, object, &repository, &url, |request| match range {
            Some((first, last)) => request.header(RANGE, format!("bytes={first}-{last}")),
            None => request,
        })
    }

    /// Reads all of a blob that must not have more than `limit` bytes. Its digest is for the caller to check.
    pub fn small_blob(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        digest: Digest,
        limit: u64,
    ) -> Result<Vec<u8>, FetchError> {
        self.http
            .retry(report, || http::body(object, self.blob(report, object, repository, digest, None)?, limit))
    }

    /// The same, known to the registry by these.
    #[must_use]
    pub fn with_credentials(self, credentials: Arc<Credentials>) -> Self {
        Self { auth: Auth::new(credentials), ..self }
    }

    /// Sends a request as the user that the registry asks for, and once more if it asks anew. An answer with a
    /// status of failure is an error.
    fn get(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        url: &Url,
        headers: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, FetchError> {
        self.send(report, object, Method::GET, repository, url, headers)
    }

    fn send(
        &self,
        report: &dyn Report,
        object: &str,
        method: Method,
        repository: &str,
        url: &Url,
        headers: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, FetchError> {
        let (http, base, lax) = (&self.http, self.base(object)?, self.lax);
        let asking = Asking { http, report, object, base, lax, repository };
        let send =
            |header: Option<&HeaderValue>| http.ask(object, method.clone(), url, lax, header, &headers);
        let ask = || {
            let header = self.auth.header(&asking)?;
            let response = send(header.as_ref())?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return http::check(object, response);
            }
            match self.auth.answer(&asking, &response, header.as_ref())? {
                Some(header) => http::check(object, send(Some(&header))?),
                None => http::check(object, response),
            }
        };
        ask().map_err(|error| self.auth.explain(&asking, error))
    }

    fn url(&self, object: &str, path: &str) -> Result<Url, FetchError> {
        let base = self.base(object)?;
        base.join(&format!("v2/{path}")).map_err(|error| {
            let what = format!("nothing: `{path}` makes no URL ({error})");
            FetchError::new(object, Problem::Protocol { url: http::plain(base), what })
        })
    }

    fn base(&self, object: &str) -> Result<&Url, FetchError> {
        let host = match &self.place {
            Place::Url(url) => return Ok(url),
            Place::EitherScheme(host) => host,
        };
        if let Some(base) = self.base.get() {
            return Ok(base);
        }
        let ask = |scheme: &str| {
            let url = Url::parse(&format!("{scheme}://{host}/v2/")).expect("checked by `new`");
            http::send_any(object, self.http.get(url, self.lax))
        };
        let https = ask("https");
        // A server that speaks TLS has an answer to plain http, too: that it does not want it.
        let is_plain =
            |answer: &Response| answer.status().is_success() || answer.status() == StatusCode::UNAUTHORIZED;
        let scheme = match https {
            Ok(_) => "https",
            Err(failure) if !ask("http").is_ok_and(|answer| is_plain(&answer)) => return Err(failure),
            Err(_) => "http",
        };
        let base = Url::parse(&format!("{scheme}://{host}/")).expect("checked by `new`");
        Ok(self.base.get_or_init(|| base))
    }
}

/// Whether a host of a reference is this machine.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let Ok(url) = Url::parse(&format!("http://{host}/")) else { return false };
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_is_asked_where_it_answers_insecure_or_not() {
        for insecure in [false, true] {
            let registry = Registry::new(Http::new(1), "docker.io", None, insecure).unwrap();
            let host = match &registry.place {
                Place::Url(url) => url.host_str().unwrap(),
                Place::EitherScheme(host) => host,
            };
            assert_eq!(host, "registry-1.docker.io");
        }
    }
}
