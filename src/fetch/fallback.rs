//! [`FallbackList`]: the endpoints of one blob, in the order in which they are tried.

use reqwest::blocking::Response;

use crate::fetch::content::ContentCheck;
use crate::fetch::endpoint::FileEndpoint;
use crate::fetch::queue::task::Task;
use crate::fetch::registry::Repository;
use crate::fetch::source::Source;
use crate::fetch::web;
use crate::net::error::FetchError;
use crate::net::http::{RequestContext, is_bulk};
use crate::net::server::Server;
use crate::oci::digest::Digest;

/// The endpoints of one blob. The caller keeps the index of the current one.
pub(crate) struct FallbackList {
    endpoints: Vec<BlobEndpoint>,
    /// Entity tag of the file at the first endpoint.
    etag: Option<String>,
    /// The content that is refused.
    check: Option<ContentCheck>,
}

enum BlobEndpoint {
    Blob { repository: Repository, digest: Digest },
    File(FileEndpoint),
}

impl FallbackList {
    #[must_use]
    pub(crate) fn new(task: &Task) -> Self {
        let sources = std::iter::once(&task.source).chain(&task.alternatives);
        let (etag, check) = match &task.source {
            Source::Registry { .. } => (None, None),
            Source::Web(file) => (file.etag.clone(), file.check.clone().filter(|_| !task.is_pinned())),
        };
        Self { endpoints: sources.flat_map(endpoints_of).collect(), etag, check }
    }

    /// True if no other endpoint follows this one.
    #[must_use]
    pub(crate) fn is_last(&self, index: usize) -> bool {
        index + 1 >= self.endpoints.len()
    }

    /// Returns the entity tag that responses of an endpoint must have.
    #[must_use]
    pub(crate) fn etag(&self, index: usize) -> Option<&str> {
        self.etag.as_deref().filter(|_| index == 0)
    }

    /// Returns the content that is refused. `None`: a checksum decides.
    #[must_use]
    pub(crate) fn check(&self) -> Option<&ContentCheck> {
        self.check.as_ref()
    }

    #[must_use]
    pub(crate) fn server(&self, index: usize) -> &Server {
        match &self.endpoints[index] {
            BlobEndpoint::Blob { repository, .. } => repository.server(),
            BlobEndpoint::File(file) => &file.server,
        }
    }

    /// Requests the bytes `first..=last` from an endpoint, or all of the blob, of which `size` may be known.
    pub(crate) fn get(
        &self,
        context: RequestContext<'_>,
        index: usize,
        range: Option<(u64, u64)>,
        size: Option<u64>,
    ) -> Result<Response, FetchError> {
        let is_bulk = is_bulk(range.map(|(first, last)| last - first + 1).or(size));
        match &self.endpoints[index] {
            BlobEndpoint::Blob { repository, digest } => repository.blob(context, *digest, range, is_bulk),
            BlobEndpoint::File(file) => {
                web::get(context, file, range, self.etag(index), self.check(), is_bulk)
            }
        }
    }

    /// Returns the URL of an endpoint, for messages.
    #[must_use]
    pub(crate) fn name(&self, index: usize) -> String {
        match &self.endpoints[index] {
            BlobEndpoint::Blob { repository, digest } => {
                let server = repository.server().name().trim_end_matches('/');
                format!("{server}/v2/{}/blobs/{digest}", repository.name)
            }
            BlobEndpoint::File(file) => file.name(),
        }
    }
}

fn endpoints_of(source: &Source) -> Vec<BlobEndpoint> {
    match source {
        Source::Registry { registry, repository, digest } => {
            let repositories = registry.repositories("", repository, true);
            let repositories =
                repositories.expect("they were resolved with the image; please report").into_iter();
            let endpoint = |repository| BlobEndpoint::Blob { repository, digest: *digest };
            repositories.map(endpoint).collect()
        }
        Source::Web(file) => file.endpoints.iter().cloned().map(BlobEndpoint::File).collect(),
    }
}
