//! [`Auth`]: authenticates requests to a registry with tokens or passwords.
//!
//! Specifications: Docker Registry HTTP API, "Token Authentication Specification" and its page on `OAuth2`;
//! RFC 9110, section 11.

pub(crate) mod challenge;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use reqwest::blocking::Response;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;

use crate::net::auth::challenge::{Bearer, Challenge};
use crate::net::credentials::error::CredentialsError;
use crate::net::credentials::{Credentials, may_carry_secrets};
use crate::net::error::{FetchError, FetchProblem};
use crate::net::http::failure::Expected;
use crate::net::http::{RequestContext, RequestOptions};
use crate::net::reach::Reach;
use crate::net::secret::{Credential, Login, basic, redacted};
use crate::oci::parsed_text::quoted;
use crate::oci::reference::canonical_host;

/// Maximum size in bytes of a token server's response.
const TOKEN_LIMIT: u64 = 256 << 10;

/// Lifetime of a token without `expires_in` (distribution, "Token Authentication Specification").
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);

/// A token is replaced this long before it expires, or after three quarters of its lifetime, so that it does
/// not expire during a request.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);

/// Time for which a token server that is down is not requested.
const FAILURE_TIME: Duration = Duration::from_secs(30);

/// A request to a registry that may need authentication.
#[derive(Clone, Copy)]
pub(crate) struct AuthContext<'a> {
    /// Sends requests to token servers.
    pub request: RequestContext<'a>,
    /// URL of the registry.
    pub base: &'a Url,
    /// True if the registry's certificate is not verified, or plain HTTP is allowed.
    pub insecure: bool,
    /// The repository.
    pub repository: &'a str,
    /// The addresses that the registry may refer to.
    pub reach: &'a Reach,
}

/// Responds to the challenges of one registry.
#[derive(Default)]
pub(crate) struct Auth {
    credentials: Arc<Credentials>,
    /// By repository: tokens, and possibly credentials, are for one repository.
    sessions: Mutex<HashMap<String, Arc<Mutex<Session>>>>,
    /// Token servers that are down: since when, and why.
    failures: Mutex<HashMap<url::Origin, (Instant, String)>>,
}

/// The state of authentication for one repository.
#[derive(Default)]
struct Session {
    /// The header of requests, and when it expires.
    header: Option<(HeaderValue, Option<Instant>)>,
    /// The token server that issued the token.
    bearer: Option<Bearer>,
    /// The credentials that were used, for messages.
    login: Option<Login>,
}

impl Auth {
    #[must_use]
    pub(crate) fn new(credentials: Arc<Credentials>) -> Self {
        Self { credentials, sessions: Mutex::default(), failures: Mutex::default() }
    }

    /// Returns the header for a request. Replaces a token that is about to expire. `None`: the registry has
    /// not required authentication so far.
    pub(crate) fn header(&self, context: &AuthContext<'_>) -> Result<Option<HeaderValue>, FetchError> {
        let session = self.session(context.repository);
        let mut session = lock(&session);
        let is_expired = match &session.header {
            Some((_, Some(until))) => Instant::now() >= *until,
            _ => false,
        };
        if is_expired && let Some(bearer) = session.bearer.clone() {
            self.fetch_token(context, &mut session, &bearer)?;
        }
        Ok(session.header.as_ref().map(|(header, _)| header.clone()))
    }

    /// Returns the header for repeating a request that the registry rejected with the header `rejected`.
    /// `None`: there is no other header to send.
    pub(crate) fn respond(
        &self,
        context: &AuthContext<'_>,
        response: &Response,
        rejected: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, FetchError> {
        // Only the registry itself may require credentials, not a server that it redirects to.
        if response.url().origin() != context.base.origin() {
            return Ok(None);
        }
        let challenges = Challenge::all(response.headers(), context.base);
        let session = self.session(context.repository);
        let mut session = lock(&session);
        // Another thread may have been rejected at the same time, and have a new header by now.
        if let Some((header, _)) = &session.header
            && Some(header) != rejected
        {
            return Ok(Some(header.clone()));
        }
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer),
            Challenge::Basic | Challenge::Invalid { .. } => None,
        });
        if let Some(bearer) = bearer {
            self.fetch_token(context, &mut session, bearer)?;
        } else if challenges.contains(&Challenge::Basic) {
            self.log_in(context, &mut session)?;
        } else if let Some(Challenge::Invalid { realm }) = challenges.first() {
            let (url, reason) = (format!("`{}`", quoted(realm)), "it is not a URL".to_owned());
            return Err(context.request.error(FetchProblem::Realm { url, reason }));
        }
        Ok(session
            .header
            .as_ref()
            .map(|(header, _)| header.clone())
            .filter(|header| Some(header) != rejected))
    }

    /// Removes secrets from an error, and adds to an access error which credentials were sent.
    #[must_use]
    pub(crate) fn explain(&self, context: &AuthContext<'_>, mut error: FetchError) -> FetchError {
        let session = self.session(context.repository);
        let session = lock(&session);
        let login = session.login.as_ref();
        if let Some(login) = login {
            error.scrub(|text| login.scrub(text));
        }
        let FetchProblem::Status { status: 401 | 403, url, hint, .. } = &mut error.problem else {
            return error;
        };
        let host = login_host(context.base);
        let is_referred = Url::parse(url).is_ok_and(|url| {
            let is_token_server =
                session.bearer.as_ref().is_some_and(|bearer| bearer.realm.host() == url.host());
            url.origin() != context.base.origin() && !is_token_server
        });
        if is_referred {
            let note = format!("; `{host}` referred to this server, which gets no credentials of `{host}`");
            hint.push_str(&note);
            return error;
        }
        let note = match login {
            Some(login) => format!("; sent {}", describe(login, context.base)),
            None if host == "docker.io" => "; no credentials found: run `docker login`".to_owned(),
            None => format!("; no credentials found: run `docker login {host}`"),
        };
        hint.push_str(&note);
        error
    }

    fn session(&self, repository: &str) -> Arc<Mutex<Session>> {
        Arc::clone(lock(&self.sessions).entry(repository.to_owned()).or_default())
    }

    fn find_login(
        &self,
        context: &AuthContext<'_>,
        session: &mut Session,
    ) -> Result<Option<Login>, FetchError> {
        let login = self.credentials.find(context.base, context.repository);
        session.login = login.map_err(|error| context.credentials_error(error))?;
        Ok(session.login.clone())
    }

    /// Uses the credentials themselves for all further requests.
    fn log_in(&self, context: &AuthContext<'_>, session: &mut Session) -> Result<(), FetchError> {
        let Some(login) = self.find_login(context, session)? else { return Ok(()) };
        check_carrier(context, context.base, &login)?;
        let header = match &login.credential {
            Credential::Password(user, password) => format!("Basic {}", basic(user, password)),
            Credential::Token(token) => format!("Bearer {}", token.reveal()),
            Credential::Identity(_) => {
                let (url, credentials) = (redacted(context.base), describe(&login, context.base));
                return Err(context.credentials_error(CredentialsError::NoPassword { url, credentials }));
            }
        };
        session.header = Some((sensitive_header(context, context.base, &header)?, None));
        Ok(())
    }

    /// Records that a token server is down.
    fn record_failure(&self, bearer: &Bearer, error: FetchError) -> FetchError {
        if error.is_server_down() {
            lock(&self.failures).insert(bearer.realm.origin(), (Instant::now(), error.reason()));
        }
        error
    }

    /// Returns the error for a token server that has failed for another repository a moment ago.
    fn recent_failure(&self, context: &AuthContext<'_>, bearer: &Bearer) -> Option<FetchError> {
        let failures = lock(&self.failures);
        let (at, reason) = failures.get(&bearer.realm.origin())?;
        let error = || context.request.error(FetchProblem::TokenServer { reason: reason.clone() });
        (at.elapsed() < FAILURE_TIME).then(error)
    }

    /// Requests a token from the token server, with credentials if there are any.
    fn fetch_token(
        &self,
        context: &AuthContext<'_>,
        session: &mut Session,
        bearer: &Bearer,
    ) -> Result<(), FetchError> {
        if !bearer.is_allowed(context.base, context.insecure) {
            let (url, reason) = (redacted(&bearer.realm), "it is not HTTPS".to_owned());
            return Err(context.request.error(FetchProblem::Realm { url, reason }));
        }
        let login = self.find_login(context, session)?;
        if let Some(Login { credential: Credential::Token(_), .. }) = &login {
            return self.log_in(context, session);
        }
        if let Some(login) = &login {
            check_carrier(context, &bearer.realm, login)?;
        }
        if let Some(error) = self.recent_failure(context, bearer) {
            return Err(error);
        }
        session.bearer = Some(bearer.clone());
        let begin = Instant::now();
        let requested = context.request.retry(|| {
            let requested = request_token_over_either_scheme(context, bearer, login.as_ref());
            requested.map_err(|mut error| {
                if let FetchProblem::Internal { url, .. } = &error.problem {
                    let (url, reason) = (url.clone(), error.problem.to_string());
                    error.problem = FetchProblem::Realm { url, reason };
                }
                if let Some(login) = &login {
                    error.scrub(|text| login.scrub(text));
                }
                error
            })
        });
        // The registry is not requested again because of its token server: that would multiply the attempts.
        let token = requested.map_err(|error| self.record_failure(bearer, error).of_token_server())?;
        let lifetime = token.expires_in.map_or(TOKEN_LIFETIME, Duration::from_secs);
        let until = begin + lifetime.saturating_sub(TOKEN_MARGIN.min(lifetime / 4));
        let header = sensitive_header(context, &bearer.realm, &format!("Bearer {}", token.token))?;
        session.header = Some((header, Some(until)));
        Ok(())
    }
}

impl AuthContext<'_> {
    fn credentials_error(&self, error: CredentialsError) -> FetchError {
        self.request.error(FetchProblem::Credentials(Box::new(error)))
    }
}

/// Returns the header of requests for a file on a web server.
pub(crate) fn file_header(
    credentials: &Credentials,
    object: &str,
    url: &Url,
) -> Result<Option<HeaderValue>, FetchError> {
    let failed = |error| FetchError::new(object, FetchProblem::Credentials(Box::new(error)));
    let Some(login) = credentials.for_file(url).map_err(failed)? else { return Ok(None) };
    let Credential::Password(user, password) = &login.credential else { return Ok(None) };
    let header = HeaderValue::from_str(&format!("Basic {}", basic(user, password)));
    let mut header = header.expect("base64 is valid in a header; please report");
    header.set_sensitive(true);
    Ok(Some(header))
}

/// An access token, and its lifetime in seconds.
struct Token {
    token: String,
    expires_in: Option<u64>,
}

/// Requests a token, over plain HTTP if only that is available on the host of the registry.
fn request_token_over_either_scheme(
    context: &AuthContext<'_>,
    bearer: &Bearer,
    login: Option<&Login>,
) -> Result<Token, FetchError> {
    let error = match request_token(context, bearer, login) {
        // A certificate that is not accepted is not a reason to do without one.
        Err(error) if error.is_plain_http() || matches!(error.problem, FetchProblem::Network { .. }) => error,
        result => return result,
    };
    let Some(plain) = bearer.over_plain_http(context.base) else { return Err(error) };
    if let Some(login) = login {
        check_carrier(context, &plain.realm, login)?;
    }
    match request_token(context, &plain, login) {
        Err(plain) if plain.is_without_response() => Err(error),
        result => result,
    }
}

/// Sends one request to a token server.
fn request_token(
    context: &AuthContext<'_>,
    bearer: &Bearer,
    login: Option<&Login>,
) -> Result<Token, FetchError> {
    #[derive(Deserialize)]
    struct TokenResponse {
        token: Option<String>,
        access_token: Option<String>,
        #[serde(default)]
        expires_in: serde_json::Value,
    }
    let request = context.request;
    let mut url = bearer.realm.clone();
    let response = match login.map(|login| &login.credential) {
        Some(Credential::Identity(token)) => {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token").append_pair("client_id", "airbundle");
            form.append_pair("scope", &scope(context, bearer)).append_pair("refresh_token", token.reveal());
            if let Some(service) = &bearer.service {
                form.append_pair("service", service);
            }
            request.http.post_form(
                request.object,
                &url,
                is_insecure(context, &url),
                form.finish(),
                context.reach,
            )?
        }
        credential => {
            // A scope per parameter; the challenge separates them by spaces.
            let mut query = url.query_pairs_mut();
            for scope in scope(context, bearer).split_whitespace() {
                query.append_pair("scope", scope);
            }
            if let Some(service) = &bearer.service {
                query.append_pair("service", service);
            }
            drop(query);
            let authorization = match credential {
                Some(Credential::Password(user, password)) => {
                    let header = format!("Basic {}", basic(user, password));
                    Some(sensitive_header(context, context.base, &header)?)
                }
                _ => None,
            };
            let options = RequestOptions {
                method: Method::GET,
                url: &url,
                headers: HeaderMap::new(),
                is_bulk: false,
                insecure: is_insecure(context, &url),
                authorization: authorization.as_ref(),
                reach: context.reach,
            };
            request.http.send(request.object, options)?
        }
    };
    let body = request.read_body(request.check_status(response, Expected::Document)?, TOKEN_LIMIT)?;
    let no_token = || request.invalid_response(&url, "no token");
    let response: TokenResponse = serde_json::from_slice(&body).map_err(|_| no_token())?;
    let token = response.token.filter(|token| !token.is_empty()).or(response.access_token);
    let token = token.filter(|token| !token.is_empty()).ok_or_else(no_token)?;
    Ok(Token { token, expires_in: lifetime(&response.expires_in) })
}

/// Returns the lifetime of a token in seconds. Some servers send a text. `None`: there is none, or an invalid one.
fn lifetime(expires_in: &serde_json::Value) -> Option<u64> {
    let text = expires_in.as_str().map(str::trim);
    let life = expires_in.as_f64().or_else(|| text?.parse().ok())?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    (life >= 1.0).then_some(life.min(1e6) as u64)
}

/// Returns the scope of the challenge, or the one for reading the repository.
fn scope(context: &AuthContext<'_>, bearer: &Bearer) -> String {
    bearer.scope.clone().unwrap_or_else(|| format!("repository:{}:pull", context.repository))
}

/// True if certificates of the host of `url` are not verified: it is the registry's own host.
fn is_insecure(context: &AuthContext<'_>, url: &Url) -> bool {
    context.insecure && url.host() == context.base.host()
}

/// Fails if the credentials would be sent to `url` unencrypted.
fn check_carrier(context: &AuthContext<'_>, url: &Url, login: &Login) -> Result<(), FetchError> {
    if may_carry_secrets(url, is_insecure(context, url)) {
        return Ok(());
    }
    let (url, credentials) = (redacted(url), describe(login, context.base));
    let host = login_host(context.base);
    Err(context.credentials_error(CredentialsError::PlainHttp { credentials, url, host }))
}

/// Returns a header value that is never printed.
fn sensitive_header(context: &AuthContext<'_>, url: &Url, text: &str) -> Result<HeaderValue, FetchError> {
    let mut header = HeaderValue::from_str(text)
        .map_err(|_| context.request.invalid_response(url, "token with invalid characters"))?;
    header.set_sensitive(true);
    Ok(header)
}

/// Returns `the credentials of FILE for HOST`.
fn describe(login: &Login, base: &Url) -> String {
    format!("the credentials of {} for `{}`", login.source, login_host(base))
}

/// Returns the host of a registry as an argument of `docker login`.
fn login_host(base: &Url) -> String {
    let host = canonical_host(base.host_str().unwrap_or_default());
    base.port().map_or(host.clone(), |port| format!("{host}:{port}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it requests a token; please report")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lifetime_is_a_number_or_a_text_of_at_least_a_second() {
        for (value, expected) in [
            (json!(300), Some(300)),
            (json!(0.5), None),
            (json!(59.9), Some(59)),
            (json!("300"), Some(300)),
            (json!(" 300.5 "), Some(300)),
            (json!(-1), None),
            (json!("-1"), None),
            (json!(1e300), Some(1_000_000)),
            (json!("soon"), None),
            (json!("NaN"), None),
            (json!([300]), None),
            (json!(null), None),
        ] {
            assert_eq!(lifetime(&value), expected, "{value}");
        }
    }
}
