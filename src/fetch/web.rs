//! [`RemoteFile`]: a file on a web server, and the request that finds out its size and version.

use reqwest::blocking::Response;
use reqwest::header::{CONTENT_ENCODING, ETAG, HeaderMap, HeaderValue, IF_RANGE};
use reqwest::{Method, StatusCode};

use crate::base::units::MAX_ENTRY_SIZE;
use crate::fetch::endpoint::{FileEndpoint, first_success};
use crate::net::error::FetchError;
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
}

/// Finds the first endpoint that has the file, its size, and whether it supports range requests. Requests the
/// first byte: signed URLs of storage services reject HEAD.
pub(crate) fn probe(
    context: RequestContext<'_>,
    endpoints: &[FileEndpoint],
) -> Result<RemoteFile, FetchError> {
    let numbered: Vec<_> = endpoints.iter().enumerate().collect();
    first_success(
        context.report,
        &numbered,
        |(_, endpoint)| &endpoint.server,
        |(number, endpoint)| {
            context.retry(|| {
                let _slot = endpoint.server.slot();
                let response = send(context, endpoint, range_header((0, 0)), false)?;
                let etag = response.headers().get(ETAG).and_then(|value| value.to_str().ok());
                let etag = etag.filter(|etag| !etag.starts_with("W/")).map(str::to_owned);
                let url = response.url().clone();
                let (size, ranges) =
                    size_and_ranges(context, response).map_err(|error| endpoint.without_query(error))?;
                if let Some(size) = size.filter(|size| *size > MAX_ENTRY_SIZE) {
                    let reason = format!("invalid size {size}: expected at most {MAX_ENTRY_SIZE} bytes");
                    return Err(context.invalid_response(&url, reason));
                }
                Ok(RemoteFile { endpoints: endpoints[*number..].to_vec(), size, ranges, etag })
            })
        },
    )
}

/// Returns the size of a file and whether its server supports range requests, from the response to a request
/// for its first byte.
fn size_and_ranges(
    context: RequestContext<'_>,
    response: Response,
) -> Result<(Option<u64>, bool), FetchError> {
    match response.status() {
        StatusCode::PARTIAL_CONTENT => match content_range(&response) {
            // An empty file has no first byte: a response that contains one and states size 0 is invalid.
            Some((0, 0, Some(size))) if size > 0 => Ok((Some(size), true)),
            _ => Ok((None, false)),
        },
        // An empty file.
        StatusCode::RANGE_NOT_SATISFIABLE => Ok((None, false)),
        _ => {
            let response = context.check_status(response)?;
            reject_encoding(context, &response)?;
            Ok((response.content_length(), false))
        }
    }
}

/// Requests the bytes `first..=last` of the file from an endpoint, or all of it. Does not retry. If an `etag`
/// is given, requests a range of that version only.
pub(crate) fn get(
    context: RequestContext<'_>,
    endpoint: &FileEndpoint,
    range: Option<(u64, u64)>,
    etag: Option<&str>,
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
    let response = context
        .check_status(send(context, endpoint, headers, is_bulk)?)
        .map_err(|error| endpoint.without_query(error))?;
    reject_encoding(context, &response)?;
    Ok(response)
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

/// Fails if the server encoded the content although it was not requested to.
fn reject_encoding(context: RequestContext<'_>, response: &Response) -> Result<(), FetchError> {
    match response.headers().get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(()),
        Some(encoding) => {
            let reason =
                format!("`Content-Encoding: {}` was not requested", String::from_utf8_lossy(encoding));
            Err(context.invalid_response(response.url(), reason))
        }
    }
}
