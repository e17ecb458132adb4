//! [`ResolveContext`]: the values that all requests of a resolution share.

use std::sync::Arc;

use crate::base::event::{Event, Report};
use crate::documents::list::{FileEntry, Lists};
use crate::fetch::content::ContentCheck;
use crate::fetch::in_parallel;
use crate::fetch::mirrored::Endpoints;
use crate::fetch::resolve::foreign::ForeignLayers;
use crate::fetch::resolve::manifests::ManifestStore;
use crate::fetch::upstream::Upstream;
use crate::fetch::web::{self, RemoteFile};
use crate::net::error::FetchError;
use crate::net::http::{Http, RequestContext};
use crate::oci::digest::Digest;

/// The values that all requests of a resolution share.
pub(crate) struct ResolveContext<'a> {
    /// Sends the requests.
    pub http: &'a Http,
    /// Settings for fetching.
    pub upstream: &'a Upstream,
    /// Receives stages, warnings and retries.
    pub report: &'a dyn Report,
    /// The endpoints of all hosts.
    pub endpoints: Arc<Endpoints>,
    /// The manifests that were read.
    pub manifests: ManifestStore,
    /// The external layers of these manifests.
    pub foreign: ForeignLayers,
}

impl<'a> ResolveContext<'a> {
    #[must_use]
    pub(crate) fn new(http: &'a Http, upstream: &'a Upstream, report: &'a dyn Report) -> Self {
        let endpoints = Endpoints::new(upstream);
        let (manifests, foreign) = (ManifestStore::default(), ForeignLayers::default());
        Self { http, upstream, report, endpoints, manifests, foreign }
    }

    /// Returns the context of requests for one entry.
    #[must_use]
    pub(crate) fn request<'b>(&'b self, object: &'b str) -> RequestContext<'b> {
        RequestContext { http: self.http, report: self.report, object }
    }

    /// Reports the stage, and settings that no entry uses.
    pub(crate) fn report_start(&self, lists: &Lists) {
        let objects = Some((lists.files.len() + lists.images.len()) as u64);
        self.report.event(&Event::Stage { name: "resolving", bytes: None, objects });
        for message in self.upstream.unused(lists) {
            self.report.event(&Event::Warning { message });
        }
    }

    /// Finds an endpoint, the size and the version of each file.
    pub(crate) fn probe_files(&self, files: &[FileEntry]) -> Vec<Result<RemoteFile, FetchError>> {
        in_parallel(self.upstream.jobs, files, |entry| {
            let name = entry.name();
            let request = self.request(&name);
            let url = entry.request_url.reveal();
            let endpoints = self.endpoints.file(&request, url, entry.checksum.is_some())?;
            let is_checked = entry.checksum.is_none() && !self.upstream.allow_html;
            let check = is_checked.then(|| ContentCheck::new(entry.path.as_str(), entry.is_named()));
            web::probe(request, &endpoints, check.as_ref())
        })
    }

    /// Finds an endpoint of each external layer.
    pub(crate) fn find_foreign(&self) -> Vec<(Digest, Result<Option<RemoteFile>, FetchError>)> {
        let layers = self.foreign.take();
        in_parallel(self.upstream.jobs, &layers, |layer| {
            (layer.digest(), layer.find(self.request(&layer.object), &self.endpoints))
        })
    }
}
