//! [`RemoteFile`]: a file on a web server, and the request that finds out its size and version.

use std::time::Duration;

use reqwest::blocking::Response;
use reqwest::header::{
    CONTENT_LENGTH, DATE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, TRANSFER_ENCODING,
};
use reqwest::{Method, StatusCode, Version};
use serde::{Deserialize, Serialize};

use crate::base::event::Event;
use crate::base::units::MAX_ENTRY_SIZE;
use crate::bundle::format::layout::Blob;
use crate::fetch::content::ContentCheck;
use crate::fetch::endpoint::{FileEndpoint, first_success};
use crate::net::error::FetchError;
use crate::net::http::encoding::content_encoding;
use crate::net::http::failure::Expected;
use crate::net::http::{RequestContext, RequestOptions, content_range, range_header};

/// A file on a web server.
#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    /// Its endpoints, in order. The other members describe the file at the first one.
    pub endpoints: Vec<FileEndpoint>,
    /// Size in bytes. `None`: the server does not send it.
    pub size: Option<u64>,
    /// True if the server supports range requests.
    pub ranges: bool,
    /// Strong entity tag (RFC 9110, section 8.8.3).
    pub etag: Option<String>,
    /// `Last-Modified`, if another version would have another one (RFC 9110, section 8.8.2.2).
    pub modified: Option<String>,
    /// The content, if it is known by another way than a sha256 in the list: that of an older bundle.
    pub content: Option<Blob>,
    /// The content that is refused. `None`: a checksum decides, or the user accepts everything.
    pub check: Option<ContentCheck>,
}

/// A version of a file on its server (RFC 9110, section 8.8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum FileVersion {
    /// The strong entity tag.
    Etag(String),
    /// The time of the last change.
    LastModified(String),
}

impl RemoteFile {
    /// Returns the version. `None`: nothing that the server states distinguishes it from others.
    #[must_use]
    pub(crate) fn version(&self) -> Option<FileVersion> {
        let etag = self.etag.clone().map(FileVersion::Etag);
        etag.or_else(|| self.modified.clone().map(FileVersion::LastModified))
    }
}

/// Finds the first endpoint that has the file, its size, and whether it supports range requests. Requests the
/// first byte: signed URLs of storage services reject HEAD. If the server refuses the range, requests the file and
/// reads nothing of it.
pub(crate) fn probe(
    context: RequestContext<'_>,
    endpoints: &[FileEndpoint],
    check: Option<&ContentCheck>,
) -> Result<RemoteFile, FetchError> {
    let numbered: Vec<_> = endpoints.iter().enumerate().collect();
    first_success(
        context.report,
        &numbered,
        |(_, endpoint)| &endpoint.server,
        |(number, endpoint)| {
            endpoint.server.retry(&context, || {
                let mut response = send(context, endpoint, range_header((0, 0)), false)?;
                if refuses_ranges(response.status().as_u16()) {
                    response = send(context, endpoint, HeaderMap::new(), true)?;
                }
                let response = context.check_status(response, Expected::Range);
                let response = response.map_err(|error| endpoint.without_query(error))?;
                check_headers(context, check, &response)?;
                let etag = response.headers().get(ETAG).and_then(|value| value.to_str().ok());
                let etag = etag.filter(|etag| !etag.starts_with("W/")).map(str::to_owned);
                let (size, ranges) = size_and_ranges(&response);
                if let Some(size) = size.filter(|size| *size > MAX_ENTRY_SIZE) {
                    let reason = format!("invalid size {size}: expected at most {MAX_ENTRY_SIZE} bytes");
                    return Err(context.invalid_response(response.url(), reason));
                }
                let modified = last_modified(response.headers());
                let endpoints = endpoints[*number..].to_vec();
                Ok(RemoteFile {
                    endpoints,
                    size,
                    ranges,
                    etag,
                    modified,
                    content: None,
                    check: check.cloned(),
                })
            })
        },
    )
}

/// True if a response with this status to a range request may be 200 to a request for the complete file: some
/// servers and firewalls reject every request with a range.
#[must_use]
pub(crate) fn refuses_ranges(status: u16) -> bool {
    matches!(status, 400 | 403 | 405 | 416 | 501)
}

/// Returns `Last-Modified` if the file did not change within the second of the response: it could have changed again.
fn last_modified(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name)?.to_str().ok();
    let value = text(LAST_MODIFIED)?;
    let time = |text| httpdate::parse_http_date(text).ok();
    let age = time(text(DATE)?)?.duration_since(time(value)?).ok()?;
    (age >= Duration::from_secs(1)).then(|| value.to_owned())
}

/// Returns the size of a file and whether its server supports range requests, from the response to a request
/// for its first byte.
fn size_and_ranges(response: &Response) -> (Option<u64>, bool) {
    match response.status() {
        StatusCode::PARTIAL_CONTENT => match content_range(response) {
            // An empty file has no first byte: a response that contains one and states size 0 is invalid.
            Some((0, 0, Some(size))) if size > 0 => (Some(size), true),
            _ => (None, false),
        },
        _ => (response.content_length(), false),
    }
}

/// Requests the bytes `first..=last` of the file from an endpoint, or all of it. Does not retry. If an `etag`
/// is given, requests a range of that version only.
pub(crate) fn get(
    context: RequestContext<'_>,
    endpoint: &FileEndpoint,
    range: Option<(u64, u64)>,
    etag: Option<&str>,
    check: Option<&ContentCheck>,
    is_bulk: bool,
) -> Result<Response, FetchError> {
    let mut headers = HeaderMap::new();
    if let Some(range) = range {
        headers = range_header(range);
        if let Some(etag) = etag {
            let etag = HeaderValue::from_str(etag);
            headers.insert(IF_RANGE, etag.expect("it is from a header; please report"));
        }
    }
    let expected = if range.is_some() { Expected::Range } else { Expected::Complete };
    let response = context
        .check_status(send(context, endpoint, headers, is_bulk)?, expected)
        .map_err(|error| endpoint.without_query(error))?;
    check_headers(context, check, &response)?;
    Ok(response)
}

/// Warns about a file that no checksum pins and that the server declares as encoded. Many servers derive the header
/// from the name of a file that is stored so, and the bytes are what the list means; but they may also be compressed
/// for the transfer only.
pub(crate) fn warn_about_encoding(context: RequestContext<'_>, response: &Response) {
    if let Some(encoding) = content_encoding(response.headers()) {
        let message = format!(
            "`{}` was sent with `Content-Encoding: {encoding}`: the bytes are packed as sent; pin the file to verify them",
            context.object
        );
        context.report.event(&Event::Warning { message });
    }
}

/// True if the end of the body is not just the end of the connection.
pub(crate) fn has_length(response: &Response) -> bool {
    response.headers().contains_key(CONTENT_LENGTH)
        || response.headers().contains_key(TRANSFER_ENCODING)
        || response.version() > Version::HTTP_11
}

/// Warns about a file that no checksum pins and whose end is the end of the connection: it may be incomplete.
pub(crate) fn warn_about_length(context: RequestContext<'_>) {
    let object = context.object;
    let message =
        format!("`{object}` was sent without its length, and may be incomplete; pin the file to verify it");
    context.report.event(&Event::Warning { message });
}

fn send(
    context: RequestContext<'_>,
    endpoint: &FileEndpoint,
    headers: HeaderMap,
    is_bulk: bool,
) -> Result<Response, FetchError> {
    let url = endpoint.url(&context)?;
    let options = RequestOptions {
        method: Method::GET,
        url: &url,
        headers,
        is_bulk,
        insecure: endpoint.server.insecure,
        authorization: endpoint.authorization.as_ref(),
        reach: &endpoint.reach,
    };
    context.http.send(context.object, options)
}

/// Fails if the response is a web page in place of the file.
fn check_headers(
    context: RequestContext<'_>,
    check: Option<&ContentCheck>,
    response: &Response,
) -> Result<(), FetchError> {
    match check.and_then(|check| check.check_headers(response.headers())) {
        None => Ok(()),
        Some(reason) => Err(context.invalid_response(response.url(), reason)),
    }
}
