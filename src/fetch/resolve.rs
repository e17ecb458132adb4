//! Resolves lists: requests the manifests, digests and sizes of everything that they name.

pub(crate) mod context;
pub(crate) mod foreign;
pub(crate) mod image;
pub(crate) mod locked;
pub(crate) mod manifests;
pub(crate) mod options;
pub(crate) mod pulls;
pub(crate) mod referrers;
pub(crate) mod resolved;
pub(crate) mod search;

use std::collections::BTreeSet;

use crate::documents::list::Lists;
use crate::fetch::in_parallel;
pub(crate) use crate::fetch::resolve::context::ResolveContext;
use crate::fetch::resolve::image::ImageResolver;
use crate::fetch::resolve::options::ResolveOptions;
pub(crate) use crate::fetch::resolve::resolved::{Resolved, ResolvedImage};
use crate::fetch::resolve::search::{ReferrerSearch, Subject};
use crate::net::error::FetchError;

/// Resolves everything that `lists` name, and the referrers and cosign artifacts. Returns the failures separately.
pub(crate) fn resolve(
    context: &ResolveContext<'_>,
    options: &ResolveOptions,
    lists: Lists,
) -> (Resolved, Vec<FetchError>) {
    context.report_start(&lists);
    let jobs = context.upstream.jobs;
    let images = in_parallel(jobs, &lists.images, |entry| {
        let registry = context.endpoints.registry(entry.reference.host());
        let resolver = ImageResolver::new(context, &registry, entry, options);
        let (image, kept) = resolver.resolve()?;
        // Mirrors may serve requests by tag only, so that none is left for the blobs.
        registry.repositories(&entry.reference.to_string(), entry.reference.repository(), true)?;
        Ok((image, kept))
    });
    let artifacts = if options.with.is_empty() {
        Vec::new()
    } else {
        let mut subjects = Vec::new();
        for (image, kept) in images.iter().flatten() {
            let subject =
                |digest| Subject::new(image.registry.clone(), image.indexed.reference.clone(), digest);
            subjects.extend(kept.iter().copied().map(subject));
        }
        let listed: BTreeSet<String> = lists.images.iter().map(|entry| entry.reference.to_string()).collect();
        ReferrerSearch { context, kinds: &options.with, listed }.run(subjects)
    };
    context.pulls.report(context.report);
    let foreign = context.find_foreign();
    let files = context.probe_files(&lists.files);

    let images = images.into_iter().map(|image| image.map(|(image, _)| image)).chain(artifacts);
    let files = lists.files.into_iter().zip(files).map(|(entry, file)| Ok((entry, file?)));
    Resolved::collect(context, images, files, foreign)
}
