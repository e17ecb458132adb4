//! Files by URL: where they are asked for, and what can be known of them before they are fetched.

use reqwest::blocking::{RequestBuilder, Response};
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, ETAG, HeaderValue, IF_RANGE, RANGE};
use reqwest::{StatusCode, Url};

use crate::event::Report;
use crate::fetch::auth;
use crate::fetch::credentials::Credentials;
use crate::fetch::error::{FetchError, Problem};
use crate::fetch::http::{self, Http};

/// A file on a web server.
#[derive(Debug, Clone)]
pub struct RemoteFile {
    /// Where it is asked for.
    pub url: Url,
    /// Its size in bytes, if the server says so.
    pub size: Option<u64>,
    /// Whether parts of it can be asked for.
    pub ranges: bool,
    /// Its strong entity tag (RFC 9110, section 8.8.3).
    pub etag: Option<String>,
    /// What the user is known by there.
    pub authorization: Option<HeaderValue>,
}

/// Where `url` is asked for when there is a `mirror` for its host.
#[must_use]
pub fn mirrored(url: &Url, mirror: Option<&Url>) -> Url {
    let Some(mirror) = mirror else { return url.clone() };
    let mut there = mirror.clone();
    there.set_path(&format!("{}{}", mirror.path().trim_end_matches('/'), url.path()));
    there.set_query(url.query());
    there
}

/// Asks for the first byte of a file, to learn that it is there, how large it is, and whether it can be had in
/// parts. A HEAD would be the obvious request; signed storage URLs refuse it.
pub fn probe(
    http: &Http,
    report: &dyn Report,
    object: &str,
    url: &Url,
    credentials: &Credentials,
) -> Result<RemoteFile, FetchError> {
    let authorization = auth::for_file(credentials, object, url)?;
    http.retry(report, || {
        let request = http.get(url.clone(), false).header(RANGE, "bytes=0-0");
        let response = http::send_any(object, authorized(request, authorization.as_ref()))?;
        let etag = response.headers().get(ETAG).and_then(|value| value.to_str().ok());
        let etag = etag.filter(|etag| !etag.starts_with("W/")).map(str::to_owned);
        let file = |size, ranges| RemoteFile {
            url: url.clone(),
            size,
            ranges,
            etag: etag.clone(),
            authorization: authorization.clone(),
        };
        match response.status() {
            StatusCode::PARTIAL_CONTENT => match http::content_range(&response) {
                // A file of no bytes has no first one: who sends it and says so is wrong about the size.
                Some((0, 0, Some(size))) if size > 0 => Ok(file(Some(size), true)),
                _ => Ok(file(None, false)),
            },
            // There is no first byte.
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(file(None, false)),
            _ => {
                let response = http::check(object, response)?;
                refuse_encoding(object, &response)?;
                Ok(file(response.content_length(), false))
            }
        }
    })
}

/// Asks for the bytes `first..=last` of a file, or all of it; one try, the caller repeats.
pub fn get(
    http: &Http,
    object: &str,
    file: &RemoteFile,
    range: Option<(u64, u64)>,
) -> Result<Response, FetchError> {
    let mut request = authorized(http.get(file.url.clone(), false), file.authorization.as_ref());
    if let Some((first, last)) = range {
        request = request.header(RANGE, format!("bytes={first}-{last}"));
        if let Some(etag) = &file.etag {
            request = request.header(IF_RANGE, etag);
        }
    }
    let response = http::send(object, request)?;
    refuse_encoding(object, &response)?;
    Ok(response)
}

/// A redirect to another origin takes it off again.
fn authorized(request: RequestBuilder, authorization: Option<&HeaderValue>) -> RequestBuilder {
    match authorization {
        Some(authorization) => request.header(AUTHORIZATION, authorization),
        None => request,
    }
}

fn refuse_encoding(object: &str, response: &Response) -> Result<(), FetchError> {
    match response.headers().get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(()),
        Some(encoding) => {
            let what = format!("with `Content-Encoding: {}`, unasked", String::from_utf8_lossy(encoding));
            Err(FetchError::new(object, Problem::Protocol { url: http::plain(response.url()), what }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_puts_its_own_path_before_that_of_the_url() {
        let url: Url = "https://dl.k8s.io/release/v1/kubelet?x=1".parse().unwrap();
        for (mirror, expected) in [
            ("http://127.0.0.1:8080/dl.k8s.io", "http://127.0.0.1:8080/dl.k8s.io/release/v1/kubelet?x=1"),
            ("http://127.0.0.1:8080/dl.k8s.io/", "http://127.0.0.1:8080/dl.k8s.io/release/v1/kubelet?x=1"),
            ("https://cache.example", "https://cache.example/release/v1/kubelet?x=1"),
        ] {
            assert_eq!(mirrored(&url, Some(&mirror.parse().unwrap())).as_str(), expected);
        }
        assert_eq!(mirrored(&url, None), url);
    }
}
