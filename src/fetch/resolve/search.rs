//! [`ReferrerSearch`]: finds the referrers and cosign artifacts of images, of these, and so on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::base::event::Event;
use crate::documents::list::{ImageEntry, ListPosition};
use crate::fetch::in_parallel;
use crate::fetch::mirrored::MirroredRegistry;
use crate::fetch::resolve::context::ResolveContext;
use crate::fetch::resolve::image::{ImageResolver, ImageWithManifests};
use crate::fetch::resolve::options::ResolveOptions;
use crate::fetch::resolve::referrers::{ArtifactKind, DEPTH_LIMIT, index_of, tag_of};
use crate::fetch::resolve::resolved::ResolvedImage;
use crate::net::error::FetchError;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;

/// Finds referrers and cosign artifacts.
pub(crate) struct ReferrerSearch<'a> {
    pub context: &'a ResolveContext<'a>,
    pub kinds: &'a [ArtifactKind],
    /// References of all images in the lists.
    pub listed: BTreeSet<String>,
}

/// A manifest that may have referrers.
#[derive(Clone)]
pub(crate) struct Subject {
    registry: MirroredRegistry,
    /// The reference of its image.
    reference: Reference,
    digest: Digest,
}

impl Subject {
    pub(crate) fn new(registry: MirroredRegistry, reference: Reference, digest: Digest) -> Self {
        Self { registry, reference, digest }
    }

    fn repository(&self) -> String {
        self.reference.name()
    }
}

impl ReferrerSearch<'_> {
    /// Searches in rounds: the results of one round are the subjects of the next.
    pub(crate) fn run(&self, mut round: Vec<Subject>) -> Vec<Result<ResolvedImage, FetchError>> {
        let mut seen = BTreeSet::new();
        let mut found = BTreeMap::new();
        let mut failures = Vec::new();
        for _ in 0..DEPTH_LIMIT {
            // Two tags of one image are one subject.
            round.retain(|subject| seen.insert((subject.repository(), subject.digest)));
            if round.is_empty() {
                break;
            }
            let objects = Some(round.len() as u64);
            self.context.report.event(&Event::Stage { name: "searching referrers", bytes: None, objects });
            let results = in_parallel(self.context.upstream.jobs, &round, |subject| self.find(subject));
            let subjects = std::mem::take(&mut round);
            for (subject, results) in subjects.into_iter().zip(results) {
                for result in results {
                    match result {
                        Ok((image, kept)) => {
                            let next = |digest| Subject { digest, ..subject.clone() };
                            round.extend(kept.into_iter().map(next));
                            found.insert(image.indexed.reference.to_string(), image);
                        }
                        Err(failure) => failures.push(failure),
                    }
                }
            }
        }
        found.into_values().map(Ok).chain(failures.into_iter().map(Err)).collect()
    }

    /// Finds the referrers and artifacts of one subject.
    fn find(&self, subject: &Subject) -> Vec<Result<ImageWithManifests, FetchError>> {
        let tag = tag_of(subject.digest);
        let mut found = Vec::new();
        for suffix in ArtifactKind::tag_suffixes(self.kinds) {
            found.extend(self.find_tag(subject, &format!("{tag}{suffix}")).transpose());
        }
        if ArtifactKind::includes_referrers(self.kinds) {
            found.extend(self.find_referrers(subject, &tag).transpose());
        }
        found
    }

    /// Finds referrers by the API, or, if the registry does not have it, by their tag. Either becomes an
    /// image of this tag.
    fn find_referrers(&self, subject: &Subject, tag: &str) -> Result<Option<ImageWithManifests>, FetchError> {
        let object = format!("the referrers of {}@{}", subject.repository(), subject.digest);
        let request = self.context.request(&object);
        let repository = subject.reference.repository();
        let referrers = match subject.registry.referrers(request, repository, subject.digest) {
            // The tag of a registry whose API fails halfway has the same list.
            Err(error) => {
                return self.find_referrers_tag(subject, tag)?.map_or(Err(error), |found| Ok(Some(found)));
            }
            Ok(referrers) => referrers,
        };
        match referrers {
            None => self.find_referrers_tag(subject, tag),
            Some(referrers) if referrers.is_empty() => Ok(None),
            Some(referrers) => {
                let Some(entry) = self.unlisted(subject, tag) else { return Ok(None) };
                let all = ResolveOptions::default();
                let resolver = ImageResolver::new(self.context, &subject.registry, &entry, &all);
                resolver.resolve_made(index_of(referrers)).map(Some)
            }
        }
    }

    /// Finds the image of a tag, unless a list names it.
    fn find_tag(&self, subject: &Subject, tag: &str) -> Result<Option<ImageWithManifests>, FetchError> {
        let Some(entry) = self.unlisted(subject, tag) else { return Ok(None) };
        let object = entry.reference.to_string();
        let request = self.context.request(&object);
        if !subject.registry.may_have_manifest(request, subject.reference.repository(), tag)? {
            return Ok(None);
        }
        ImageResolver::new(self.context, &subject.registry, &entry, &ResolveOptions::default())
            .resolve_if_exists()
    }

    /// Finds the list of referrers by its tag. Some registries return the subject for any tag of this form.
    fn find_referrers_tag(
        &self,
        subject: &Subject,
        tag: &str,
    ) -> Result<Option<ImageWithManifests>, FetchError> {
        let Some(entry) = self.unlisted(subject, tag) else { return Ok(None) };
        let object = entry.reference.to_string();
        let request = self.context.request(&object);
        if !subject.registry.may_have_manifest(request, subject.reference.repository(), tag)? {
            return Ok(None);
        }
        let all = ResolveOptions::default();
        ImageResolver::new(self.context, &subject.registry, &entry, &all).resolve_referrers(subject.digest)
    }

    /// Returns a list entry for a tag. `None`: a list names it.
    fn unlisted(&self, subject: &Subject, tag: &str) -> Option<ImageEntry> {
        let text = format!("{}:{tag}", subject.repository());
        if self.listed.contains(&text) {
            return None;
        }
        let reference = text.parse().expect("a repository and a tag of hex digits; please report");
        // No list has the entry, and no message names its position.
        let origin = ListPosition { list: PathBuf::new(), line: 0 };
        Some(ImageEntry { reference, platforms: Vec::new(), origin })
    }
}
