//! Removes the entries of a [`Resolved`] that cannot be packed.

use std::collections::HashSet;

use crate::fetch::resolve::Resolved;
use crate::net::error::{FetchError, FetchProblem};
use crate::oci::digest::Digest;
use crate::plan::bundle_plan::{BundlePlan, Owners};
use crate::plan::contradictions::contradictions;

impl Resolved {
    /// True if nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.images.is_empty() && self.files.is_empty()
    }

    /// Removes the images and files that need `blob`, because of `failure`. Returns one error for each of them.
    pub(super) fn remove_owners(
        &mut self,
        plan: &BundlePlan,
        blob: Digest,
        failure: FetchError,
    ) -> Vec<FetchError> {
        let Owners { images, files } = plan.owners(blob);
        let mut removed = Vec::new();
        self.images.retain(|image| {
            let reference = image.indexed.reference.to_string();
            let is_kept = !images.contains(&reference);
            removed.extend((!is_kept).then_some(reference));
            is_kept
        });
        self.files.retain(|(file, _)| {
            let is_kept = !files.contains(&file.path.to_string());
            removed.extend((!is_kept).then(|| file.name()));
            is_kept
        });
        // The failure names the first owner.
        let cause = failure.object.clone();
        let others = removed.into_iter().skip(1);
        let shared = |object| FetchError::new(object, FetchProblem::Shared { cause: cause.clone() });
        std::iter::once(failure).chain(others.map(shared)).collect()
    }

    /// Removes images whose manifests state different sizes for `blob`. Returns one error for each of them.
    pub(super) fn remove_contradictions(&mut self, blob: Digest) -> Vec<FetchError> {
        let failures = contradictions(self, blob);
        let objects: HashSet<&str> = failures.iter().map(|failure| &*failure.object).collect();
        self.images.retain(|image| !objects.contains(&*image.indexed.reference.to_string()));
        failures
    }
}
