//! [`Registry`]: the pull side of a registry (OCI distribution-spec, "Pull").

use std::sync::Arc;

use reqwest::blocking::{RequestBuilder, Response};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue, LINK, RANGE};
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;

use crate::base::event::Report;
use crate::net::auth::{Auth, AuthContext};
use crate::net::credentials::Credentials;
use crate::net::error::{FetchError, FetchProblem};
use crate::net::host::leads_inside;
use crate::net::http::{self, Http, RequestOptions};
use crate::net::server::Server;
use crate::oci::digest::Digest;
use crate::oci::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_LIMIT, OCI_INDEX, OCI_MANIFEST};

/// The most pages that a list of referrers may have.
const REFERRERS_PAGES: usize = 100;

/// One place where images are pulled from.
pub(crate) struct Registry {
    http: Http,
    server: Arc<Server>,
    insecure: bool,
    auth: Auth,
}

impl Registry {
    /// The registry at `server`, which knows us by these.
    #[must_use]
    pub(crate) fn new(http: Http, server: Arc<Server>, credentials: Arc<Credentials>) -> Self {
        let insecure = server.insecure;
        Self { http, server, insecure, auth: Auth::new(credentials) }
    }

    /// Where it is.
    #[must_use]
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Reads a manifest by tag or digest: its media type and its exact bytes.
    pub(crate) fn manifest(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        reference: &str,
    ) -> Result<(String, Vec<u8>), FetchError> {
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        self.http.retry(report, || {
            let _slot = self.server.slot();
            let url = self.url(object, &format!("{repository}/manifests/{reference}"))?;
            let response =
                self.get(report, object, repository, &url, false, |request| request.header(ACCEPT, &accept))?;
            Ok((media_type(&response), http::body(object, response, MANIFEST_LIMIT)?))
        })
    }

    /// Asks for the bytes `first..=last` of a blob, or for all of it; one try, the caller repeats. `is_bulk`: see
    /// [`Http::get_for`].
    pub(crate) fn blob(
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
    pub(crate) fn small_blob(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        digest: Digest,
        limit: u64,
    ) -> Result<Vec<u8>, FetchError> {
        self.http.retry(report, || {
            let _slot = self.server.slot();
            http::body(object, self.blob(report, object, repository, digest, None, false)?, limit)
        })
    }

    /// Whether there is a manifest of this name. It is asked for with HEAD, which no registry counts; where a
    /// registry does not know that, it may be there.
    pub(crate) fn may_have_manifest(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        reference: &str,
    ) -> Result<bool, FetchError> {
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let asked = self.http.retry(report, || {
            let _slot = self.server.slot();
            let url = self.url(object, &format!("{repository}/manifests/{reference}"))?;
            let accept = |request: RequestBuilder| request.header(ACCEPT, &accept);
            self.send(report, object, &Method::HEAD, repository, &url, false, accept)
        });
        match asked {
            Ok(_) => Ok(true),
            Err(error) => match error.status() {
                Some(404) => Ok(false),
                Some(405 | 501) => Ok(true),
                _ => Err(error),
            },
        }
    }

    /// What names `subject` as its subject, by the referrers API (distribution-spec, "Listing Referrers"): the
    /// descriptors of all pages. Nothing if the registry does not have that API.
    pub(crate) fn referrers(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        subject: Digest,
    ) -> Result<Option<Vec<Value>>, FetchError> {
        let mut url = self.url(object, &format!("{repository}/referrers/{subject}"))?;
        let mut all = Vec::new();
        for page in 0..REFERRERS_PAGES {
            let answer = self.http.retry(report, || {
                let _slot = self.server.slot();
                let accept = |request: RequestBuilder| request.header(ACCEPT, OCI_INDEX);
                let response = self.get(report, object, repository, &url, false, accept)?;
                let is_index = media_type(&response) == OCI_INDEX;
                let next = next_page(&response);
                Ok((is_index, next, http::body(object, response, MANIFEST_LIMIT)?))
            });
            let (is_index, next, body) = match answer {
                Ok(answer) => answer,
                // As the specification has it, and as registries have it that are older.
                Err(error) if page == 0 && matches!(error.status(), Some(400 | 404 | 405 | 406 | 501)) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            if page == 0 && !is_index {
                return Ok(None);
            }
            let wrong = |what: &str| {
                let what = what.to_owned();
                Err(FetchError::new(object, FetchProblem::Protocol { url: http::plain(&url), what }))
            };
            let mut body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let Some(Value::Array(manifests)) = body.get_mut("manifests").map(Value::take) else {
                return wrong("something that is no list of referrers");
            };
            all.extend(manifests);
            match next {
                None => return Ok(Some(all)),
                Some(next) if next.origin() == url.origin() => url = next,
                Some(_) => return wrong("that its list of referrers goes on at another host"),
            }
        }
        let what = format!("a list of referrers of more than {REFERRERS_PAGES} pages");
        Err(FetchError::new(object, FetchProblem::Protocol { url: http::plain(&url), what }))
    }

    /// Whether it has a blob, and gives it to whoever asks.
    pub(crate) fn has_blob(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        digest: Digest,
    ) -> bool {
        let asked = self.http.retry(report, || {
            let _slot = self.server.slot();
            let url = self.url(object, &format!("{repository}/blobs/{digest}"))?;
            self.send(report, object, &Method::HEAD, repository, &url, false, |request| request)
        });
        asked.is_ok()
    }

    /// Whether it is on this machine or in its network.
    pub(crate) fn is_inside(&self, object: &str) -> Result<bool, FetchError> {
        Ok(leads_inside(self.base(object)?))
    }

    /// Sends a request as the user that the registry asks for, and once more if it asks anew. An answer with a
    /// status of failure is an error.
    fn get(
        &self,
        report: &dyn Report,
        object: &str,
        repository: &str,
        url: &Url,
        is_bulk: bool,
        headers: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, FetchError> {
        self.send(report, object, &Method::GET, repository, url, is_bulk, headers)
    }

    #[expect(clippy::too_many_arguments, reason = "they are what a request is made of")]
    fn send(
        &self,
        report: &dyn Report,
        object: &str,
        method: &Method,
        repository: &str,
        url: &Url,
        is_bulk: bool,
        headers: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, FetchError> {
        let (http, base, insecure) = (&self.http, self.base(object)?, self.insecure);
        let asking = AuthContext { http, report, object, base, insecure, repository };
        let send = |authorization: Option<&HeaderValue>| {
            http.ask_for(
                object,
                RequestOptions { method: method.clone(), url, is_bulk, insecure, authorization },
                &headers,
            )
        };
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
        self.server.url(&self.http, object, &format!("v2/{path}"))
    }

    fn base(&self, object: &str) -> Result<&Url, FetchError> {
        self.server.base(&self.http, object)
    }
}

/// What an answer says that it is, without parameters.
fn media_type(response: &Response) -> String {
    let header = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    header.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned()
}

/// Where a list goes on (RFC 8288): `Link: </v2/…?last=…>; rel="next"`.
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
