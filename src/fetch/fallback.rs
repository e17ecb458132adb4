//! [`FallbackList`]: the places of one blob, in order; and the same for what is asked for at once.

use std::sync::Arc;

use reqwest::blocking::Response;

use crate::base::event::Report;
use crate::fetch::endpoint::{FileEndpoint, slashed};
use crate::fetch::registry::Registry;
use crate::fetch::source::Source;
use crate::fetch::web;
use crate::net::error::FetchError;
use crate::net::http::{self, Http};
use crate::net::server::Server;
use crate::oci::digest::Digest;

/// Where a blob is asked for. How far down the order it is, is for the caller to know.
pub(crate) struct FallbackList {
    places: Vec<TaskEndpoint>,
    /// The version of a file to which what is known of it belongs; that of the first place.
    etag: Option<String>,
}

enum TaskEndpoint {
    Blob { registry: Arc<Registry>, repository: String, digest: Digest },
    File(FileEndpoint),
}

impl FallbackList {
    /// Where `source` is.
    #[must_use]
    pub(crate) fn new(source: &Source) -> Self {
        match source {
            Source::Registry { registry, repository, digest } => {
                let places = registry.places("", repository, true);
                let places = places.expect("known since the image was resolved; please report").into_iter();
                let place =
                    |(registry, repository)| TaskEndpoint::Blob { registry, repository, digest: *digest };
                Self { places: places.map(place).collect(), etag: None }
            }
            Source::Web(file) => {
                let places = file.places.iter().cloned().map(TaskEndpoint::File).collect();
                Self { places, etag: file.etag.clone() }
            }
        }
    }

    /// Whether there is no other place behind this one.
    #[must_use]
    pub(crate) fn is_last(&self, place: usize) -> bool {
        place + 1 >= self.places.len()
    }

    /// The entity tag that an answer of this place must have.
    #[must_use]
    pub(crate) fn etag(&self, place: usize) -> Option<&str> {
        self.etag.as_deref().filter(|_| place == 0)
    }

    /// Who is there.
    #[must_use]
    pub(crate) fn server(&self, place: usize) -> &Server {
        match &self.places[place] {
            TaskEndpoint::Blob { registry, .. } => registry.server(),
            TaskEndpoint::File(file) => &file.server,
        }
    }

    /// Asks there for the bytes `first..=last`, or for all, which has `size` if that is known.
    pub(crate) fn get(
        &self,
        http: &Http,
        report: &dyn Report,
        object: &str,
        place: usize,
        range: Option<(u64, u64)>,
        size: Option<u64>,
    ) -> Result<Response, FetchError> {
        let is_bulk = http::is_bulk(range.map(|(first, last)| last - first + 1).or(size));
        match &self.places[place] {
            TaskEndpoint::Blob { registry, repository, digest } => {
                registry.blob(report, object, repository, *digest, range, is_bulk)
            }
            TaskEndpoint::File(file) => web::get(http, object, file, range, self.etag(place), is_bulk),
        }
    }

    /// The place for a person.
    #[must_use]
    pub(crate) fn name(&self, place: usize) -> String {
        match &self.places[place] {
            TaskEndpoint::Blob { registry, repository, digest } => {
                format!("{}v2/{repository}/blobs/{digest}", slashed(registry.server().name()))
            }
            TaskEndpoint::File(file) => file.name(),
        }
    }
}
