//! Tokens of registries: the challenge of a 401 and the token that answers it
//! (Docker Registry HTTP API, "Token Authentication Specification"). Anonymous tokens only.

use std::net::IpAddr;

use reqwest::Url;
use serde::Deserialize;

use crate::event::Report;
use crate::fetch::error::{FetchError, Problem};
use crate::fetch::http::{self, Http};

/// The largest answer of a token server that is read, in bytes.
const TOKEN_LIMIT: u64 = 256 << 10;

/// What a `WWW-Authenticate: Bearer …` header asks for (RFC 6750, section 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    realm: Url,
    service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    /// Reads the value of the header; nothing if it asks for something else than a bearer token.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        while let Some((key, value)) = rest.split_once('=') {
            let value = value.trim_start();
            let (value, tail) = match value.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => value.split_at(value.find(',').unwrap_or(value.len())),
            };
            match key.trim().trim_start_matches(',').trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(Url::parse(value).ok()?),
                "service" => service = Some(value.to_owned()),
                "scope" => scope = Some(value.to_owned()),
                _ => {}
            }
            rest = tail;
        }
        Some(Self { realm: realm?, service, scope })
    }

    /// Fetches an anonymous token for pulling `repository` of the registry at `base`; `lax` takes any certificate
    /// from that host, and from no other.
    pub fn token(
        &self,
        http: &Http,
        report: &dyn Report,
        object: &str,
        base: &Url,
        lax: bool,
        repository: &str,
    ) -> Result<String, FetchError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        if !self.may_ask(base) {
            return Err(FetchError::new(object, Problem::Realm(http::plain(&self.realm))));
        }
        let mut url = self.realm.clone();
        let default_scope = format!("repository:{repository}:pull");
        url.query_pairs_mut().append_pair("scope", self.scope.as_deref().unwrap_or(&default_scope));
        if let Some(service) = &self.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let lax = lax && self.realm.host() == base.host();
        let body = http.retry(report, || {
            let response = http::check(object, http.ask(object, &url, lax, None, |request| request)?)?;
            http::body(object, response, TOKEN_LIMIT)
        })?;
        let answer: Option<Answer> = serde_json::from_slice(&body).ok();
        answer
            .and_then(|answer| answer.token.or(answer.access_token))
            .filter(|token| !token.is_empty())
            .ok_or_else(|| {
                let what = "without a token in it".to_owned();
                FetchError::new(object, Problem::Protocol { url: http::plain(&url), what })
            })
    }

    /// A registry must not make this program ask hosts of the network that it runs in.
    fn may_ask(&self, base: &Url) -> bool {
        if self.realm.host() == base.host() {
            return self.realm.scheme() == base.scheme() || self.realm.scheme() == "https";
        }
        let inside = match self.realm.host() {
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(url::Host::Ipv4(ip)) => is_inside(ip.into()),
            Some(url::Host::Ipv6(ip)) => is_inside(ip.into()),
            None => true,
        };
        self.realm.scheme() == "https" && !inside
    }
}

/// Whether an address is loopback, private or link-local.
fn is_inside(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => {
            ip.to_ipv4_mapped().is_some_and(|ip| is_inside(ip.into()))
                || ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(realm: &str) -> Challenge {
        Challenge::parse(&format!(r#"Bearer realm="{realm}""#)).unwrap()
    }

    #[test]
    fn a_challenge_names_realm_service_and_scope() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push""#;
        let expected = Challenge {
            realm: "https://auth.docker.io/token".parse().unwrap(),
            service: Some("registry.docker.io".into()),
            scope: Some("repository:library/nginx:pull,push".into()),
        };
        assert_eq!(Challenge::parse(header), Some(expected));
        assert_eq!(challenge("https://a.example/").service, None);
        for other in ["Basic realm=\"x\"", "Bearer", "Bearer realm=\"no url\"", "Bearer service=\"x\"", ""] {
            assert_eq!(Challenge::parse(other), None, "{other}");
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
            assert_eq!(challenge(realm).may_ask(base), may, "{realm} for {base}");
        }
    }
}
