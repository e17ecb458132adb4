//! Endpoints of files, and requests that fall back from one endpoint to the next.

use std::sync::Arc;

use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::base::event::Report;
use crate::net::error::FetchError;
use crate::net::http::Http;
use crate::net::server::Server;

/// One place where a file may be.
#[derive(Debug, Clone)]
pub(crate) struct FileEndpoint {
    /// Who has it.
    pub server: Arc<Server>,
    /// Its path there, with a query if it has one.
    pub path: String,
    /// What the user is known by there.
    pub authorization: Option<HeaderValue>,
}

impl FileEndpoint {
    /// For a person.
    #[must_use]
    pub(crate) fn name(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        format!("{}/{path}", self.server.name().trim_end_matches('/'))
    }

    /// The URL.
    pub(crate) fn url(&self, http: &Http, object: &str) -> Result<Url, FetchError> {
        self.server.url(http, object, &self.path)
    }
}

/// Asks one place after the other until one gives what is wanted. One that is down is passed by while there is
/// another.
pub(crate) fn in_order<P, T>(
    report: &dyn Report,
    places: &[P],
    server: impl Fn(&P) -> &Server,
    mut ask: impl FnMut(&P) -> Result<T, FetchError>,
) -> Result<T, FetchError> {
    let mut failures = Vec::new();
    for (number, place) in places.iter().enumerate() {
        let is_last = number + 1 == places.len();
        let server = server(place);
        if let Some(reason) = server.why_down().filter(|_| !is_last) {
            failures.push(reason);
            continue;
        }
        match ask(place) {
            Err(error) if !is_last && error.is_of_place() => {
                server.failed(report, &error);
                failures.push(error.reason());
            }
            result => return result.map_err(|error| error.after(failures)),
        }
    }
    unreachable!("there is a place for everything; please report")
}

pub(crate) fn slashed(name: &str) -> String {
    format!("{}/", name.trim_end_matches('/'))
}
