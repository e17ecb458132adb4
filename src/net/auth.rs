//! Who a registry takes this program for: the challenge of a 401 and what answers it, a token or a password (Docker
//! Registry HTTP API, "Token Authentication Specification" and its page on `OAuth2`; RFC 9110, section 11).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use reqwest::blocking::Response;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Url};
use serde::Deserialize;

use crate::base::event::Report;
use crate::net::credentials::{Credentials, CredentialsError, may_carry};
use crate::net::error::{FetchError, FetchProblem};
use crate::net::host::leads_inside;
use crate::net::http::{self, Http};
use crate::net::secret::{Credential, Login, basic};

/// The largest answer of a token server that is read, in bytes.
const TOKEN_LIMIT: u64 = 256 << 10;

/// How long a token is good that does not say so (distribution, "Token Authentication Specification").
const TOKEN_LIFE: Duration = Duration::from_secs(60);

/// A token is replaced as long before its end, if it lives four times as long: a request takes its time.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);

/// What a `WWW-Authenticate` header asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token from the realm (RFC 6750, section 3).
    Bearer(Bearer),
    /// A name and a password (RFC 7617).
    Basic,
}

/// Where a token is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bearer {
    realm: Url,
    service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    /// All that the headers of an answer ask for; not what is unknown or makes no sense.
    #[must_use]
    pub(crate) fn all(headers: &HeaderMap) -> Vec<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        values.filter_map(|value| value.to_str().ok()).flat_map(Self::parse).collect()
    }

    /// Reads the value of one header, which may have several challenges.
    #[must_use]
    pub(crate) fn parse(header: &str) -> Vec<Self> {
        let mut challenges: Vec<(String, HashMap<String, String>)> = Vec::new();
        let mut rest = header.trim_start_matches([' ', '\t', ',']);
        while !rest.is_empty() {
            let end = rest.find([' ', '\t', ',', '=', '"']).unwrap_or(rest.len());
            let (word, tail) = rest.split_at(end);
            match (tail.trim_start().strip_prefix('='), challenges.last_mut()) {
                (Some(value), Some((_, parameters))) if !word.is_empty() => {
                    let Some((value, tail)) = parameter(value.trim_start()) else { break };
                    // The first one counts, as for everybody who might want to be fooled otherwise.
                    parameters.entry(word.to_ascii_lowercase()).or_insert(value);
                    rest = tail;
                }
                _ if word.is_empty() => rest = &tail[1..],
                _ => {
                    challenges.push((word.to_ascii_lowercase(), HashMap::new()));
                    rest = tail;
                }
            }
            rest = rest.trim_start_matches([' ', '\t', ',']);
        }
        challenges.into_iter().filter_map(|(scheme, parameters)| Self::new(&scheme, parameters)).collect()
    }

    fn new(scheme: &str, mut parameters: HashMap<String, String>) -> Option<Self> {
        match scheme {
            "basic" => Some(Self::Basic),
            "bearer" => {
                let realm = Url::parse(parameters.get("realm")?).ok()?;
                let (service, scope) = (parameters.remove("service"), parameters.remove("scope"));
                Some(Self::Bearer(Bearer { realm, service, scope }))
            }
            _ => None,
        }
    }
}

/// A value, in quotes or without, and what follows it.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([' ', '\t', ',']).unwrap_or(text.len()));
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => value.push(chars.next()?),
            other => value.push(other),
        }
    }
}

/// A request to a registry, as far as it matters to who asks.
#[derive(Clone, Copy)]
pub(crate) struct AuthContext<'a> {
    /// What sends it.
    pub http: &'a Http,
    /// Whom to tell of retries.
    pub report: &'a dyn Report,
    /// What it is for.
    pub object: &'a str,
    /// The registry.
    pub base: &'a Url,
    /// Whether any certificate, or plain http, will do there.
    pub insecure: bool,
    /// The repository.
    pub repository: &'a str,
}

/// Answers the challenges of one registry.
#[derive(Default)]
pub(crate) struct Auth {
    credentials: Arc<Credentials>,
    /// By repository: a token is for one, and so may credentials be.
    sessions: Mutex<HashMap<String, Arc<Mutex<Session>>>>,
}

/// What is known of one repository.
#[derive(Default)]
struct Session {
    /// What is sent with each request, and until when that is good.
    header: Option<(HeaderValue, Option<Instant>)>,
    /// Where the next token is to be had.
    bearer: Option<Bearer>,
    /// Whose they are, if anybody's; nothing before it was looked for.
    #[expect(clippy::option_option, reason = "not looked for is not the same as not found")]
    login: Option<Option<Login>>,
}

impl Auth {
    /// Answers with these credentials, and without where there are none.
    #[must_use]
    pub(crate) fn new(credentials: Arc<Credentials>) -> Self {
        Self { credentials, sessions: Mutex::default() }
    }

    /// What to send with a request; nothing before the registry has asked for something. A token that is about to
    /// end is replaced.
    pub(crate) fn header(&self, asking: &AuthContext<'_>) -> Result<Option<HeaderValue>, FetchError> {
        let session = self.session(asking.repository);
        let mut session = lock(&session);
        let ended = match &session.header {
            Some((_, Some(until))) => Instant::now() >= *until,
            _ => false,
        };
        if ended && let Some(bearer) = session.bearer.clone() {
            self.fetch(asking, &mut session, &bearer)?;
        }
        Ok(session.header.as_ref().map(|(header, _)| header.clone()))
    }

    /// What to send after a registry has refused a request with the header `refused`; nothing if there is nothing
    /// better.
    pub(crate) fn answer(
        &self,
        asking: &AuthContext<'_>,
        response: &Response,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, FetchError> {
        // Whoever a redirect has led to has nothing to ask for.
        if response.url().origin() != asking.base.origin() {
            return Ok(None);
        }
        let challenges = Challenge::all(response.headers());
        let session = self.session(asking.repository);
        let mut session = lock(&session);
        // Somebody else may have been refused at the same time, and have a new one by now.
        if let Some((header, _)) = &session.header
            && Some(header) != refused
        {
            return Ok(Some(header.clone()));
        }
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer),
            Challenge::Basic => None,
        });
        if let Some(bearer) = bearer {
            self.fetch(asking, &mut session, bearer)?;
        } else if challenges.contains(&Challenge::Basic) {
            self.log_in(asking, &mut session)?;
        }
        Ok(session.header.as_ref().map(|(header, _)| header.clone()).filter(|header| Some(header) != refused))
    }

    /// The same error, if it is one of access with the credentials that were sent; and certainly without them.
    #[must_use]
    pub(crate) fn explain(&self, asking: &AuthContext<'_>, mut error: FetchError) -> FetchError {
        let session = self.session(asking.repository);
        let session = lock(&session);
        let login = session.login.as_ref().and_then(Option::as_ref);
        if let Some(login) = login {
            error.scrub(|text| login.scrub(text));
        }
        let FetchProblem::Status { status: 401 | 403, hint, .. } = &mut error.problem else { return error };
        let host = host(asking.base);
        let asked = match login {
            Some(login) => format!("; asked with {}", those_of(login, asking.base)),
            None if host == "docker.io" => "; asked without credentials: `docker login` gets some".to_owned(),
            None => format!("; asked without credentials: `docker login {host}` gets some"),
        };
        hint.push_str(&asked);
        error
    }

    fn session(&self, repository: &str) -> Arc<Mutex<Session>> {
        Arc::clone(lock(&self.sessions).entry(repository.to_owned()).or_default())
    }

    fn find(&self, asking: &AuthContext<'_>, session: &mut Session) -> Result<Option<Login>, FetchError> {
        let refuse = |error| FetchError::new(asking.object, FetchProblem::Credentials(Box::new(error)));
        let login = self.credentials.find(asking.base, asking.repository).map_err(refuse)?;
        session.login = Some(login.clone());
        Ok(login)
    }

    /// Name and password for all that follows.
    fn log_in(&self, asking: &AuthContext<'_>, session: &mut Session) -> Result<(), FetchError> {
        let Some(login) = self.find(asking, session)? else { return Ok(()) };
        let refuse = |error| FetchError::new(asking.object, FetchProblem::Credentials(Box::new(error)));
        check_carrier(asking, asking.base, &login).map_err(refuse)?;
        let header = match &login.proof {
            Credential::Password(user, password) => format!("Basic {}", basic(user, password)),
            Credential::Token(token) => format!("Bearer {}", token.reveal()),
            Credential::Identity(_) => {
                let (url, credentials) = (http::plain(asking.base), those_of(&login, asking.base));
                return Err(refuse(CredentialsError::NoPassword { url, credentials }));
            }
        };
        session.header = Some((sealed(asking, asking.base, &header)?, None));
        Ok(())
    }

    /// A token from the realm, with credentials if there are any.
    fn fetch(
        &self,
        asking: &AuthContext<'_>,
        session: &mut Session,
        bearer: &Bearer,
    ) -> Result<(), FetchError> {
        if !bearer.may_ask(asking.base) {
            return Err(FetchError::new(asking.object, FetchProblem::Realm(http::plain(&bearer.realm))));
        }
        let login = self.find(asking, session)?;
        if let Some(Login { proof: Credential::Token(_), .. }) = &login {
            return self.log_in(asking, session);
        }
        if let Some(login) = &login {
            let refuse = |error| FetchError::new(asking.object, FetchProblem::Credentials(Box::new(error)));
            check_carrier(asking, &bearer.realm, login).map_err(refuse)?;
        }
        let begin = Instant::now();
        let answer = asking.http.retry(asking.report, || {
            bearer.ask(asking, login.as_ref()).map_err(|mut error| {
                if let Some(login) = &login {
                    error.scrub(|text| login.scrub(text));
                }
                error
            })
        })?;
        let life = answer.expires_in.map_or(TOKEN_LIFE, Duration::from_secs);
        let until = begin + life.saturating_sub(TOKEN_MARGIN.min(life / 4));
        let header = sealed(asking, &bearer.realm, &format!("Bearer {}", answer.token))?;
        session.header = Some((header, Some(until)));
        session.bearer = Some(bearer.clone());
        Ok(())
    }
}

/// A token, and for how many seconds it is good.
struct Token {
    token: String,
    expires_in: Option<u64>,
}

impl Bearer {
    /// Asks for a token once.
    fn ask(&self, asking: &AuthContext<'_>, login: Option<&Login>) -> Result<Token, FetchError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<f64>,
        }
        let AuthContext { http, object, base, .. } = *asking;
        let insecure = asking.insecure && self.realm.host() == base.host();
        let default_scope = format!("repository:{}:pull", asking.repository);
        let scope = self.scope.as_deref().unwrap_or(&default_scope);
        let mut url = self.realm.clone();
        let response = if let Some(Login { proof: Credential::Identity(token), .. }) = login {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token").append_pair("client_id", "airbundle");
            form.append_pair("scope", scope).append_pair("refresh_token", token.reveal());
            if let Some(service) = &self.service {
                form.append_pair("service", service);
            }
            http.post_form(object, &url, insecure, form.finish())?
        } else {
            // The challenge has several in one word, a request has one parameter for each.
            let mut query = url.query_pairs_mut();
            for scope in scope.split_whitespace() {
                query.append_pair("scope", scope);
            }
            if let Some(service) = &self.service {
                query.append_pair("service", service);
            }
            drop(query);
            let header = match login.map(|login| &login.proof) {
                Some(Credential::Password(user, password)) => {
                    Some(sealed(asking, base, &format!("Basic {}", basic(user, password)))?)
                }
                _ => None,
            };
            http.ask(object, Method::GET, &url, insecure, header.as_ref(), |request| request)?
        };
        let body = http::body(object, http::check(object, response)?, TOKEN_LIMIT)?;
        let wrong = || {
            let what = "without a token in it".to_owned();
            FetchError::new(object, FetchProblem::Protocol { url: http::plain(&url), what })
        };
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| wrong())?;
        let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token);
        let token = token.filter(|token| !token.is_empty()).ok_or_else(wrong)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
        let expires_in = answer.expires_in.filter(|life| *life >= 1.0).map(|life| life.min(1e6) as u64);
        Ok(Token { token, expires_in })
    }

    /// A registry must not make this program ask hosts of the network that it runs in.
    fn may_ask(&self, base: &Url) -> bool {
        if self.realm.host() == base.host() {
            return self.realm.scheme() == base.scheme() || self.realm.scheme() == "https";
        }
        self.realm.scheme() == "https" && !leads_inside(&self.realm)
    }
}

/// What to send with requests for a file on a web server.
pub(crate) fn for_file(
    credentials: &Credentials,
    object: &str,
    url: &Url,
) -> Result<Option<HeaderValue>, FetchError> {
    let refuse = |error| FetchError::new(object, FetchProblem::Credentials(Box::new(error)));
    let Some(login) = credentials.for_file(url).map_err(refuse)? else { return Ok(None) };
    let Credential::Password(user, password) = &login.proof else { return Ok(None) };
    let header = HeaderValue::from_str(&format!("Basic {}", basic(user, password)));
    let mut header = header.expect("base64 can stand in a header; please report");
    header.set_sensitive(true);
    Ok(Some(header))
}

/// An error if everybody on the way to `url` could read the credentials.
fn check_carrier(asking: &AuthContext<'_>, url: &Url, login: &Login) -> Result<(), CredentialsError> {
    if may_carry(url, asking.insecure && url.host() == asking.base.host()) {
        return Ok(());
    }
    let (url, credentials) = (http::plain(url), those_of(login, asking.base));
    Err(CredentialsError::Plain { credentials, url, host: host(asking.base) })
}

/// A header that nothing prints.
fn sealed(asking: &AuthContext<'_>, url: &Url, text: &str) -> Result<HeaderValue, FetchError> {
    let mut header = HeaderValue::from_str(text).map_err(|_| {
        let what = "with a token that cannot be sent".to_owned();
        FetchError::new(asking.object, FetchProblem::Protocol { url: http::plain(url), what })
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// `the credentials of FILE for HOST`.
fn those_of(login: &Login, base: &Url) -> String {
    format!("the credentials of {} for `{}`", login.source, host(base))
}

/// The host of a registry as `docker login` wants it.
fn host(base: &Url) -> String {
    let host = crate::oci::reference::canonical_host(base.host_str().unwrap_or_default());
    base.port().map_or(host.clone(), |port| format!("{host}:{port}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it asks for a token; please report")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str) -> Bearer {
        match &Challenge::parse(&format!(r#"Bearer realm="{realm}""#))[..] {
            [Challenge::Bearer(bearer)] => bearer.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_challenge_names_realm_service_and_scope() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push""#;
        let hub = Challenge::Bearer(Bearer {
            realm: "https://auth.docker.io/token".parse().unwrap(),
            service: Some("registry.docker.io".into()),
            scope: Some("repository:library/nginx:pull,push".into()),
        });
        let plain = Challenge::Bearer(bearer("https://a.example/"));
        let one = |challenge: &Challenge| vec![challenge.clone()];
        let both = vec![Challenge::Basic, hub.clone()];
        for (text, expected) in [
            (header, one(&hub)),
            (&header.replace(',', " , ").replace("pull , push", "pull,push"), one(&hub)),
            (&format!("Basic realm=\"x, Bearer realm=y\", {header}"), both.clone()),
            (&format!("Negotiate, NTLM abc==, basic, {header}"), both),
            (&format!("{header}, Basic realm=x"), vec![hub.clone(), Challenge::Basic]),
            (r#"bearer REALM = "https://a.\example/" , x=y"#, one(&plain)),
            ("BEARER realm=https://a.example/", one(&plain)),
            (r#"Bearer realm="https://a.example/", realm="https://b.example/""#, one(&plain)),
            ("Basic", one(&Challenge::Basic)),
            ("Bearer", vec![]),
            ("Bearer realm=\"no url\"", vec![]),
            ("Bearer realm=\"https://a.example/", vec![]),
            ("Bearer service=\"x\"", vec![]),
            ("=,\"\"=", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(Challenge::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn no_token_is_asked_for_inside_the_own_network_unless_the_registry_is_there() {
        let hub: Url = "https://registry-1.docker.io/".parse().unwrap();
        let local: Url = "http://127.0.0.1:5000/".parse().unwrap();
        for (realm, base, may) in [
            ("https://auth.docker.io/token", &hub, true),
            ("http://auth.docker.io/token", &hub, false),
            ("http://registry-1.docker.io/token", &hub, false),
            ("https://169.254.169.254/latest", &hub, false),
            ("https://10.0.0.1/token", &hub, false),
            ("https://[::1]/token", &hub, false),
            ("https://[::ffff:192.168.1.1]/token", &hub, false),
            ("https://localhost/token", &hub, false),
            ("http://127.0.0.1:5001/token", &local, true),
        ] {
            assert_eq!(bearer(realm).may_ask(base), may, "{realm} for {base}");
        }
    }
}
