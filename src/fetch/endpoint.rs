//! [`FileEndpoint`]: a URL of a file; and fallback from one endpoint to the next.

use std::sync::Arc;

use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::base::event::Report;
use crate::net::error::FetchError;
use crate::net::http::RequestContext;
use crate::net::reach::Reach;
use crate::net::secret::SERVER_MESSAGE;
use crate::net::server::Server;

/// A URL from which a file can be fetched.
#[derive(Debug, Clone)]
pub(crate) struct FileEndpoint {
    /// The server.
    pub server: Arc<Server>,
    /// Path on the server, with the query if there is one.
    pub path: String,
    /// The header with the user's credentials. `None`: none are sent.
    pub authorization: Option<HeaderValue>,
    /// The addresses that requests may go to.
    pub reach: Arc<Reach>,
}

impl FileEndpoint {
    /// Returns the URL without its query, for messages.
    #[must_use]
    pub(crate) fn name(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        format!("{}/{path}", self.server.name().trim_end_matches('/'))
    }

    /// Removes from an error the message of a server that quotes the query: storage services quote signatures.
    #[must_use]
    pub(crate) fn without_query(&self, mut error: FetchError) -> FetchError {
        const PART: usize = 8;
        let query = self.path.split_once('?').map_or("", |(_, query)| query);
        let decoded = percent_encoding::percent_decode_str(query).decode_utf8_lossy();
        let forms = [query, &*decoded].map(str::as_bytes);
        error.scrub(|text| {
            let Some(at) = text.find(SERVER_MESSAGE) else { return text.to_owned() };
            let has = |part: &[u8]| text.as_bytes()[at..].windows(part.len()).any(|window| window == part);
            let is_quoted = forms.iter().any(|form| form.windows(PART).any(has));
            if is_quoted { text[..at].to_owned() } else { text.to_owned() }
        });
        error
    }

    pub(crate) fn url(&self, context: &RequestContext<'_>) -> Result<Url, FetchError> {
        self.server.url(context, &self.path)
    }
}

/// Calls `request` with one endpoint after the other until one succeeds. Skips endpoints whose server is
/// down, except the last one.
pub(crate) fn first_success<E, T>(
    report: &dyn Report,
    endpoints: &[E],
    server: impl Fn(&E) -> &Server,
    mut request: impl FnMut(&E) -> Result<T, FetchError>,
) -> Result<T, FetchError> {
    let found = first_found(report, endpoints, server, |endpoint| request(endpoint).map(Some))?;
    Ok(found.expect("there is at least one endpoint; please report"))
}

/// Like [`first_success`], but continues as well if an endpoint returns `None`.
pub(crate) fn first_found<E, T>(
    report: &dyn Report,
    endpoints: &[E],
    server: impl Fn(&E) -> &Server,
    mut request: impl FnMut(&E) -> Result<Option<T>, FetchError>,
) -> Result<Option<T>, FetchError> {
    let mut failures = Vec::new();
    for (number, endpoint) in endpoints.iter().enumerate() {
        let is_last = number + 1 == endpoints.len();
        let server = server(endpoint);
        if let Some(reason) = server.why_down().filter(|_| !is_last) {
            failures.push(reason);
            continue;
        }
        match request(endpoint) {
            Ok(None) if !is_last => {}
            Err(error) if !is_last && error.allows_fallback() => {
                server.record_failure(report, &error);
                failures.push(error.reason());
            }
            result => return result.map_err(|error| error.after(failures)),
        }
    }
    Ok(None)
}
