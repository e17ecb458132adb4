//! Headers of responses: authentication challenges, links to the next page, and quotas.

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, LINK, WWW_AUTHENTICATE};

use crate::fetch::registry::next_page;
use crate::fuzzing::input::Input;
use crate::net::auth::challenge::Challenge;
use crate::net::http::quota::Quota;

const BASES: [&str; 3] =
    ["https://registry.example:5000/v2/", "http://127.0.0.1:5000/", "https://[::1]/v2/a/tags/list?n=1"];

/// Returns the base URL and the headers in an input: values end with a zero byte.
fn response(bytes: &[u8], names: &[HeaderName]) -> (Url, HeaderMap) {
    let mut input = Input::new(bytes);
    let base = BASES[usize::from(input.byte()) % BASES.len()].parse().expect("a URL");
    let mut headers = HeaderMap::new();
    for name in names.iter().cycle().take(8) {
        if let Ok(value) = HeaderValue::from_bytes(input.line()) {
            headers.append(name.clone(), value);
        }
        if input.is_empty() {
            break;
        }
    }
    (base, headers)
}

/// The challenges of a 401 response.
pub fn challenge(bytes: &[u8]) {
    let (base, headers) = response(bytes, &[WWW_AUTHENTICATE]);
    for challenge in Challenge::all(&headers, &base) {
        let Challenge::Bearer(bearer) = challenge else { continue };
        let realm = &bearer.realm;
        assert!(matches!(realm.scheme(), "http" | "https") && realm.has_host(), "{realm}");
        assert!(realm.username().is_empty() && realm.password().is_none(), "{realm}");
        let is_own_host = realm.host() == base.host();
        assert!(!bearer.is_allowed(&base, false) || realm.scheme() == "https" || is_own_host, "{realm}");
        if let Some(plain) = bearer.over_plain_http(&base) {
            assert_eq!((plain.realm.scheme(), plain.realm.host()), ("http", base.host()));
        }
        let texts = bearer.service.iter().chain(&bearer.scope);
        assert!(texts.clone().all(|text| text.len() <= 4096 && !text.chars().any(char::is_control)));
    }
}

/// The link to the next page of tags or referrers, and the quota of Docker Hub.
pub fn link(bytes: &[u8]) {
    let names =
        [LINK, HeaderName::from_static("ratelimit-remaining"), HeaderName::from_static("ratelimit-limit")];
    let (base, headers) = response(bytes, &names);
    let _ = next_page(&headers, &base);
    let _ = Quota::of(&headers);
}
