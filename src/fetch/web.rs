//! Files by URL: where they are asked for, and what can be known of them before they are fetched.

use reqwest::blocking::{RequestBuilder, Response};
use reqwest::header::{CONTENT_ENCODING, ETAG, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Method, StatusCode};

use crate::base::event::Report;
use crate::fetch::endpoint::{self, FileEndpoint};
use crate::net::error::{FetchError, FetchProblem};
use crate::net::http::{self, Http, RequestOptions};

/// A file on a web server.
#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    /// Where it is: first the place to which all that stands here belongs, then where else it may be asked for.
    pub places: Vec<FileEndpoint>,
    /// Its size in bytes, if the server says so.
    pub size: Option<u64>,
    /// Whether parts of it can be asked for.
    pub ranges: bool,
    /// Its strong entity tag (RFC 9110, section 8.8.3).
    pub etag: Option<String>,
}

/// Asks for the first byte of a file, to learn that it is there, how large it is, and whether it can be had in
/// parts; of its places, the first that has it. A HEAD would be the obvious request; signed storage URLs refuse it.
pub(crate) fn probe(
    http: &Http,
    report: &dyn Report,
    object: &str,
    places: &[FileEndpoint],
) -> Result<RemoteFile, FetchError> {
    let numbered: Vec<_> = places.iter().enumerate().collect();
    endpoint::in_order(
        report,
        &numbered,
        |(_, place)| &place.server,
        |(number, place)| {
            http.retry(report, || {
                let _slot = place.server.slot();
                let url = place.url(http, object)?;
                let ask = |request: RequestBuilder| request.header(RANGE, "bytes=0-0");
                let (insecure, authorization) = (place.server.insecure, place.authorization.as_ref());
                let response = http.ask(object, Method::GET, &url, insecure, authorization, ask)?;
                let etag = response.headers().get(ETAG).and_then(|value| value.to_str().ok());
                let etag = etag.filter(|etag| !etag.starts_with("W/")).map(str::to_owned);
                let places = places[*number..].to_vec();
                let file =
                    |size, ranges| RemoteFile { places: places.clone(), size, ranges, etag: etag.clone() };
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
        },
    )
}

/// Asks for the bytes `first..=last` of the file at one of its places, or for all of it; one try, the caller
/// repeats. A part is only of use if it belongs to the version with this `etag`. `is_bulk`: see [`Http::get_for`].
pub(crate) fn get(
    http: &Http,
    object: &str,
    place: &FileEndpoint,
    range: Option<(u64, u64)>,
    etag: Option<&str>,
    is_bulk: bool,
) -> Result<Response, FetchError> {
    let url = place.url(http, object)?;
    let (insecure, authorization) = (place.server.insecure, place.authorization.as_ref());
    let ask = RequestOptions { method: Method::GET, url: &url, is_bulk, insecure, authorization };
    let response = http.ask_for(object, ask, |mut request| {
        if let Some((first, last)) = range {
            request = request.header(RANGE, format!("bytes={first}-{last}"));
            if let Some(etag) = etag {
                request = request.header(IF_RANGE, etag);
            }
        }
        request
    })?;
    let response = http::check(object, response)?;
    refuse_encoding(object, &response)?;
    Ok(response)
}

fn refuse_encoding(object: &str, response: &Response) -> Result<(), FetchError> {
    match response.headers().get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(()),
        Some(encoding) => {
            let what = format!("with `Content-Encoding: {}`, unasked", String::from_utf8_lossy(encoding));
            Err(FetchError::new(object, FetchProblem::Protocol { url: http::plain(response.url()), what }))
        }
    }
}
