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
    /// Returns all supported challenges of a response.
    #[must_use]
    pub(crate) fn all(headers: &HeaderMap) -> Vec<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        values.filter_map(|value| value.to_str().ok()).flat_map(Self::parse).collect()
    }

    /// Parses the value of one header, which can contain several challenges.
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
        challenges.into_iter().filter_map(|(scheme, parameters)| Self::new(&scheme, parameters)).collect()
    }

    fn new(scheme: &str, mut parameters: HashMap<String, String>) -> Option<Self> {
        match scheme {
            "basic" => Some(Self::Basic),
            "bearer" => {
                let realm: SourceUrl = parameters.get("realm")?.parse().ok()?;
                let realm = Url::parse(&realm).ok()?;
                let (service, scope) = (parameters.remove("service"), parameters.remove("scope"));
                if !service.as_deref().is_none_or(is_service) || !scope.as_deref().is_none_or(is_scope) {
                    return None;
                }
                Some(Self::Bearer(Bearer { realm, service, scope }))
            }
            _ => None,
        }
    }
}

/// True if `text` is a name of printable ASCII. The specification of tokens calls it "the name of the service".
fn is_service(text: &str) -> bool {
    text.len() <= MAX_PARAMETER && text.bytes().all(|b| matches!(b, b' '..=b'~'))
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
    /// True if the registry at `base` may name this token server: over plain HTTP only on its own host.
    pub(crate) fn is_allowed(&self, base: &Url) -> bool {
        if self.realm.host() == base.host() {
            return self.realm.scheme() == base.scheme() || self.realm.scheme() == "https";
        }
        self.realm.scheme() == "https"
    }
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
    fn a_challenge_has_a_realm_a_service_and_a_scope() {
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
            ("Bearer realm=\"file:///etc/passwd\"", vec![]),
            ("Bearer realm=\"https://user:secret@a.example/\"", vec![]),
            ("Bearer realm=\"https://a.example/\tx\"", vec![]),
            ("Bearer realm=\"https://a.example/\",service=\"a\tb\"", vec![]),
            ("Bearer realm=\"https://a.example/\",scope=\"a\tb\"", vec![]),
            ("Bearer realm=\"https://a.example/\",scope=\"a\\\"b\"", vec![]),
            ("=,\"\"=", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(Challenge::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_token_server_over_plain_http_is_allowed_only_on_the_host_of_the_registry() {
        let hub: Url = "https://registry-1.docker.io/".parse().unwrap();
        let local: Url = "http://127.0.0.1:5000/".parse().unwrap();
        for (realm, base, is_allowed) in [
            ("https://auth.docker.io/token", &hub, true),
            ("http://auth.docker.io/token", &hub, false),
            ("http://registry-1.docker.io/token", &hub, false),
            ("http://localhost:5001/token", &local, false),
            ("http://127.0.0.1:5001/token", &local, true),
        ] {
            assert_eq!(bearer(realm).is_allowed(base), is_allowed, "{realm} for {base}");
        }
    }
}
