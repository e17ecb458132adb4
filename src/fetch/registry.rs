//! [`Registry`]: the pull side of a registry (OCI distribution-spec, "Pull").

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use reqwest::blocking::{RequestBuilder, Response};
use reqwest::header::{ACCEPT, CONTENT_TYPE, RANGE, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};

use crate::digest::Digest;
use crate::event::Report;
use crate::fetch::auth::Challenge;
use crate::fetch::error::FetchError;
use crate::fetch::http::{self, Http};
use crate::fetch::server::Server;
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_LIMIT, OCI_INDEX, OCI_MANIFEST};

/// One place where images are pulled from.
pub struct Registry {
    http: Http,
    server: Arc<Server>,
    lax: bool,
    /// The tokens so far, by repository.
    tokens: Mutex<HashMap<String, String>>,
}

impl Registry {
    /// The registry at `server`.
    #[must_use]
    pub fn new(http: Http, server: Arc<Server>) -> Self {
        let lax = server.lax;
        Self { http, server, lax, tokens: Mutex::default() }
    }

    /// Where it is.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Reads a manifest by tag or digest: its media type and its exact bytes.
    pub fn manifest(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        reference: &str,
    ) -> Result<(String, Vec<u8>), FetchError> {
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        self.http.retry(report, || {
            let url = self.url(object, &format!("{repository}/manifests/{reference}"))?;
            let response =
                self.get(report, object, repository, &url, false, |request| request.header(ACCEPT, &accept))?;
            let header = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let media_type =
                header.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
            Ok((media_type, http::body(object, response, MANIFEST_LIMIT)?))
        })
    }

    /// Asks for the bytes `first..=last` of a blob, or for all of it; one try, the caller repeats. `is_bulk`: see
    /// [`Http::get_for`].
    pub fn blob(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        digest: Digest,
        range: Option<(u64, u64)>,
        is_bulk: bool,
    ) -> Result<Response, FetchError> {
        let url = self.url(object, &format!("{repository}/blobs/{digest}"))?;
        self.get(report, object, repository, &url, is_bulk, |request| match range {
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
        self.http.retry(report, || {
            http::body(object, self.blob(report, object, repository, digest, None, false)?, limit)
        })
    }

    /// Sends a request with the token of the repository, and once more with a new one if that is asked for.
    fn get(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        url: &Url,
        is_bulk: bool,
        headers: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, FetchError> {
        let send = || {
            let token = self.tokens().get(repository).cloned();
            self.http.ask_for(object, url, is_bulk, self.lax, token.as_deref(), &headers)
        };
        let response = send()?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return http::check(object, response);
        }
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = challenges.iter().find_map(|value| Challenge::parse(value.to_str().ok()?));
        let Some(challenge) = challenge else { return http::check(object, response) };
        let token = challenge.token(&self.http, report, object, self.base(object)?, self.lax, repository)?;
        self.tokens().insert(repository.to_owned(), token);
        http::check(object, send()?)
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.tokens.lock().expect("nothing panics while it holds the tokens; please report")
    }

    fn url(&self, object: &str, path: &str) -> Result<Url, FetchError> {
        self.server.url(&self.http, object, &format!("v2/{path}"))
    }

    fn base(&self, object: &str) -> Result<&Url, FetchError> {
        self.server.base(&self.http, object)
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
