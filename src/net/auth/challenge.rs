//! [`Challenge`]: the authentication that a 401 response requires (RFC 9110, section 11.6.1).

use std::collections::HashMap;

use reqwest::Url;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

use crate::base::source_url::SourceUrl;

/// Maximum length of a parameter in bytes.
const MAX_PARAMETER: usize = 4096;

/// A challenge of a `WWW-Authenticate` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// An access token from a token server (RFC 6750, section 3).
    Bearer(Bearer),
    /// User name and password (RFC 7617).
    Basic,
    /// A token server that is no URL.
    Invalid {
        /// The text.
        realm: String,
    },
}

/// A token server and the parameters of requests to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bearer {
    /// URL of the token server.
    pub realm: Url,
    /// Name of the registry.
    pub service: Option<String>,
    /// Repositories and actions, separated by spaces.
    pub scope: Option<String>,
}

impl Challenge {
    /// Returns all supported challenges of a response of the registry at `base`.
    #[must_use]
    pub(crate) fn all(headers: &HeaderMap, base: &Url) -> Vec<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        values.flat_map(|value| Self::parse(&text(value.as_bytes()), base)).collect()
    }

    /// Parses the value of one header, which can contain several challenges. A realm can be relative to `base`.
    #[must_use]
    pub(crate) fn parse(header: &str, base: &Url) -> Vec<Self> {
        let mut challenges: Vec<(String, HashMap<String, String>)> = Vec::new();
        let mut rest = header.trim_start_matches([' ', '\t', ',']);
        while !rest.is_empty() {
            let end = rest.find([' ', '\t', ',', '=', '"']).unwrap_or(rest.len());
            let (word, tail) = rest.split_at(end);
            match (tail.trim_start().strip_prefix('='), challenges.last_mut()) {
                (Some(value), Some((_, parameters))) if !word.is_empty() => {
                    let Some((value, tail)) = parameter(value.trim_start()) else { break };
                    // The first of several equal parameters counts, as in other clients.
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
        let challenges = challenges.into_iter();
        challenges.filter_map(|(scheme, parameters)| Self::new(&scheme, parameters, base)).collect()
    }

    fn new(scheme: &str, mut parameters: HashMap<String, String>, base: &Url) -> Option<Self> {
        match scheme {
            "basic" => Some(Self::Basic),
            "bearer" => {
                let text = parameters.remove("realm")?;
                let Some(realm) = realm(&text, base) else { return Some(Self::Invalid { realm: text }) };
                // An empty parameter is none: containerd and docker then request what they need.
                let mut parameter =
                    |name| parameters.remove(name).filter(|value: &String| !value.trim().is_empty());
                let (service, scope) = (parameter("service"), parameter("scope"));
                if !service.as_deref().is_none_or(is_service) || !scope.as_deref().is_none_or(is_scope) {
                    return None;
                }
                Some(Self::Bearer(Bearer { realm, service, scope }))
            }
            _ => None,
        }
    }
}

/// Returns the text of a header: UTF-8, or ISO-8859-1 as in older specifications of HTTP.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

/// Returns the URL of a token server. Some registries send a path only.
fn realm(text: &str, base: &Url) -> Option<Url> {
    let is_relative = !text.is_empty() && !text.contains(':') && text.bytes().all(|b| b.is_ascii_graphic());
    let joined = if is_relative { base.join(text).ok()?.to_string() } else { text.to_owned() };
    // `Url` alone would accept a user name.
    let url: SourceUrl = joined.parse().ok().filter(|url: &SourceUrl| !url.is_empty())?;
    Url::parse(&url).ok()
}

/// True if `text` is a name without control characters. The specification of tokens calls it "the name of the
/// service".
fn is_service(text: &str) -> bool {
    text.len() <= MAX_PARAMETER && !text.chars().any(char::is_control)
}

/// True if `text` is a list of scopes, separated by spaces (RFC 6749, section 3.3).
fn is_scope(text: &str) -> bool {
    let is_scope_byte = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
    text.len() <= MAX_PARAMETER && text.split(' ').all(|scope| scope.bytes().all(is_scope_byte))
}

/// Splits a value, quoted or not, from the rest of the text.
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

impl Bearer {
    /// True if the registry at `base` may name this token server: over plain HTTP only on its own host, and only if
    /// the registry itself uses plain HTTP or the user allows it (`insecure`).
    pub(crate) fn is_allowed(&self, base: &Url, insecure: bool) -> bool {
        let is_own_host = self.realm.host() == base.host();
        self.realm.scheme() == "https" || is_own_host && (base.scheme() == "http" || insecure)
    }

    /// Returns the same token server over plain HTTP. `None`: it must not be requested so. A registry behind plain
    /// HTTP often names its own host with `https`, because its configuration says so and nothing listens there.
    pub(crate) fn over_plain_http(&self, base: &Url) -> Option<Self> {
        let is_own_host = self.realm.host() == base.host() && base.scheme() == "http";
        let mut realm = self.realm.clone();
        realm.set_scheme("http").ok().filter(|()| is_own_host && self.realm.scheme() == "https")?;
        Some(Self { realm, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Url {
        "https://registry.example:5000/".parse().unwrap()
    }

    fn bearer(realm: &str) -> Bearer {
        match &Challenge::parse(&format!(r#"Bearer realm="{realm}""#), &base())[..] {
            [Challenge::Bearer(bearer)] => bearer.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_challenge_has_a_realm_a_service_and_a_scope() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push""#;
        let hub = Challenge::Bearer(Bearer {
            realm: "https://auth.docker.io/token".parse().unwrap(),
            service: Some("registry.docker.io".into()),
            scope: Some("repository:library/nginx:pull,push".into()),
        });
        let plain = Challenge::Bearer(bearer("https://a.example/"));
        let one = |challenge: &Challenge| vec![challenge.clone()];
        let invalid = |realm: &str| vec![Challenge::Invalid { realm: realm.to_owned() }];
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
            ("Bearer realm=\"no url\"", invalid("no url")),
            ("Bearer realm=\"https://a.example/", vec![]),
            ("Bearer service=\"x\"", vec![]),
            ("Bearer realm=\"\"", invalid("")),
            ("Bearer realm=\"file:///etc/passwd\"", invalid("file:///etc/passwd")),
            ("Bearer realm=\"https://user:secret@a.example/\"", invalid("https://user:secret@a.example/")),
            ("Bearer realm=\"//user:secret@a.example/\"", invalid("//user:secret@a.example/")),
            ("Bearer realm=\"https://a.example/\tx\"", invalid("https://a.example/\tx")),
            ("Bearer realm=\"https://a.example/\",service=\"a\tb\"", vec![]),
            ("Bearer realm=\"https://a.example/\",scope=\"a\tb\"", vec![]),
            ("Bearer realm=\"https://a.example/\",scope=\"a\\\"b\"", vec![]),
            ("=,\"\"=", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(Challenge::parse(text, &base()), expected, "{text}");
        }
    }

    #[test]
    fn a_realm_may_be_relative_and_empty_parameters_are_none() {
        for (realm, url) in [
            ("/token", "https://registry.example:5000/token"),
            ("token?a=b", "https://registry.example:5000/token?a=b"),
            ("//a.example/token", "https://a.example/token"),
        ] {
            assert_eq!(bearer(realm).realm.as_str(), url);
        }
        let empty = "Bearer realm=\"https://a.example/\",service=\"\",scope=\" \"";
        assert_eq!(Challenge::parse(empty, &base()), [Challenge::Bearer(bearer("https://a.example/"))]);
    }

    #[test]
    fn a_challenge_may_contain_any_letters() {
        for value in [&b"Basic realm=\"gesch\xc3\xbctzt\""[..], b"Basic realm=\"gesch\xfctzt\""] {
            let value = reqwest::header::HeaderValue::from_bytes(value).unwrap();
            let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, value)]);
            assert_eq!(Challenge::all(&headers, &base()), [Challenge::Basic]);
        }
        let service = Challenge::parse("Bearer realm=https://a.example/,service=\"Büro\"", &base());
        let Challenge::Bearer(bearer) = &service[0] else { panic!("{service:?}") };
        assert_eq!(bearer.service.as_deref(), Some("Büro"));
    }

    #[test]
    fn a_token_server_over_plain_http_is_allowed_only_on_the_host_of_the_registry() {
        let hub: Url = "https://registry-1.docker.io/".parse().unwrap();
        let local: Url = "http://127.0.0.1:5000/".parse().unwrap();
        for (realm, base, insecure, is_allowed) in [
            ("https://auth.docker.io/token", &hub, false, true),
            ("http://auth.docker.io/token", &hub, false, false),
            ("http://auth.docker.io/token", &hub, true, false),
            ("http://registry-1.docker.io/token", &hub, false, false),
            ("http://registry-1.docker.io/token", &hub, true, true),
            ("http://localhost:5001/token", &local, false, false),
            ("http://127.0.0.1:5001/token", &local, false, true),
        ] {
            assert_eq!(bearer(realm).is_allowed(base, insecure), is_allowed, "{realm} for {base}");
        }
        for (realm, base, plain) in [
            ("https://127.0.0.1:5000/token", &local, Some("http://127.0.0.1:5000/token")),
            ("https://127.0.0.1/token", &local, Some("http://127.0.0.1/token")),
            ("https://localhost:5000/token", &local, None),
            ("http://127.0.0.1:5000/token", &local, None),
            ("https://registry-1.docker.io/token", &hub, None),
        ] {
            let found = bearer(realm).over_plain_http(base).map(|bearer| bearer.realm.to_string());
            assert_eq!(found.as_deref(), plain, "{realm} for {base}");
        }
    }
}
