//! [`ResolveContext`]: the values that all requests of a resolution share.

use std::sync::Arc;

use crate::base::event::{Event, Report};
use crate::documents::list::{FileEntry, Lists};
use crate::fetch::content::ContentCheck;
use crate::fetch::in_parallel;
use crate::fetch::known::KnownDocuments;
use crate::fetch::mirrored::{Endpoints, MirroredRegistry};
use crate::fetch::registry::FetchedManifest;
use crate::fetch::resolve::foreign::ForeignLayers;
use crate::fetch::resolve::manifests::ManifestStore;
use crate::fetch::resolve::pulls::Pulls;
use crate::fetch::upstream::Upstream;
use crate::fetch::web::{self, RemoteFile};
use crate::net::error::FetchError;
use crate::net::http::{Http, RequestContext};
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;

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
    /// The manifests and configs that need no request.
    pub known: KnownDocuments<'a>,
    /// Counts the requests for manifests.
    pub pulls: Pulls,
    /// The external layers of these manifests.
    pub foreign: ForeignLayers,
}

impl<'a> ResolveContext<'a> {
    #[must_use]
    pub(crate) fn new(
        http: &'a Http,
        upstream: &'a Upstream,
        report: &'a dyn Report,
        known: KnownDocuments<'a>,
    ) -> Self {
        Self {
            http,
            upstream,
            report,
            endpoints: Endpoints::new(upstream),
            manifests: ManifestStore::default(),
            known,
            pulls: Pulls::default(),
            foreign: ForeignLayers::default(),
        }
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
        self.pulls.plan(lists);
        for message in self.upstream.unused(lists) {
            self.report.event(&Event::Warning { message });
        }
    }

    /// Returns the manifest that an image reference names, by its digest or its tag. A manifest that is known is not
    /// requested: of a tag, only the digest is.
    pub(crate) fn manifest_of(
        &self,
        registry: &MirroredRegistry,
        request: RequestContext<'_>,
        reference: &Reference,
    ) -> Result<FetchedManifest, FetchError> {
        let repository = reference.repository();
        let tag = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => return self.manifest(registry, request, repository, digest),
            (None, Some(tag)) => tag,
            (None, None) => unreachable!("a reference has a tag or a digest; please report"),
        };
        if !self.known.is_empty()
            && let Some(digest) = registry.digest_of_tag(request, repository, tag)
            && let Some(bytes) = self.known.manifest(digest)
        {
            return Ok(FetchedManifest::known(digest, bytes));
        }
        let fetched = registry.manifest(request, repository, tag)?;
        self.record(registry, &fetched);
        Ok(fetched)
    }

    /// Returns the manifest with this digest, which is requested unless it is known.
    pub(crate) fn manifest(
        &self,
        registry: &MirroredRegistry,
        request: RequestContext<'_>,
        repository: &str,
        digest: Digest,
    ) -> Result<FetchedManifest, FetchError> {
        if let Some(bytes) = self.known.manifest(digest) {
            return Ok(FetchedManifest::known(digest, bytes));
        }
        let fetched = registry.manifest(request, repository, &digest.to_string())?;
        self.record(registry, &fetched);
        Ok(fetched)
    }

    fn record(&self, registry: &MirroredRegistry, fetched: &FetchedManifest) {
        self.known.keep(&fetched.bytes);
        self.pulls.count(registry.host(), fetched.quota, !self.known.is_empty(), self.report);
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
