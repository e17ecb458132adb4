//! [`WritePlan`]: the files that the site gets, and which of them must be written.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::path::RelPath;
use crate::bundle::format::layout::{Blob, Layout};
use crate::bundle::read::error::Unavailable;
use crate::commands::unpack::roots::Roots;
use crate::commands::unpack::summary::{OmittedItem, UnpackSummary};
use crate::oci::digest::Digest;
use crate::site::check::{State, Target, check_targets};
use crate::site::storage::blob_path;

/// Blobs that are needed and unavailable, with the reason.
pub(super) type LostBlobs = Vec<(Digest, Unavailable)>;

pub(super) struct WritePlan {
    /// All files except links.
    pub(super) targets: Vec<Target>,
    /// The state of each target when it was hashed; `Delta::stage` changes it to `Staged`.
    pub(super) states: Vec<State>,
    /// The missing and damaged blobs, each with the indices of its targets.
    pub(super) pending: HashMap<Digest, Vec<usize>>,
    /// The size in bytes of all files in `pending`.
    pub(super) bytes: u64,
    /// Number of directories that were not accessible to all users; now they are.
    directories: usize,
}

impl WritePlan {
    /// Hashes every file of the layout that is on the site.
    pub(super) fn new(layout: &Layout, roots: &Roots, report: &dyn Report) -> Result<Self, FsError> {
        let targets = targets(layout, roots);
        let objects = Some(targets.len() as u64);
        report.event(&Event::Stage { name: "checking", bytes: None, objects });
        let states = check_targets(&targets, &roots.all, report)?;
        let mut plan = Self::of(targets, states);
        for (number, root) in roots.all.iter().enumerate() {
            let files = plan.targets.iter().filter(|target| target.root == number);
            plan.directories += root.make_accessible(files.map(|target| &target.path))?;
        }
        Ok(plan)
    }

    /// Returns the plan for hashed targets.
    fn of(targets: Vec<Target>, states: Vec<State>) -> Self {
        let (mut pending, mut bytes): (HashMap<Digest, Vec<usize>>, _) = (HashMap::new(), 0);
        for (index, (target, state)) in targets.iter().zip(&states).enumerate() {
            if state.must_be_written() {
                pending.entry(target.blob.digest).or_default().push(index);
                bytes += target.blob.size;
            }
        }
        Self { targets, states, pending, bytes, directories: 0 }
    }

    /// Removes the files that `layout` does not name any more.
    pub(super) fn narrow(self, layout: &Layout, roots: &Roots) -> Self {
        let named: HashSet<(usize, RelPath)> =
            self::targets(layout, roots).into_iter().map(|target| (target.root, target.path)).collect();
        let directories = self.directories;
        let is_named = |(target, _): &(Target, State)| named.contains(&(target.root, target.path.clone()));
        let (targets, states) = self.targets.into_iter().zip(self.states).filter(is_named).unzip();
        Self { directories, ..Self::of(targets, states) }
    }

    /// Returns the targets with their states.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Target, State)> {
        self.targets.iter().zip(self.states.iter().copied())
    }

    /// True if every file was intact and readable when it was hashed.
    pub(super) fn is_complete(&self) -> bool {
        self.states.iter().all(|state| *state == State::Intact)
    }

    pub(super) fn report_pending(&self, report: &dyn Report) {
        let objects = Some(self.pending.len() as u64);
        report.event(&Event::Stage { name: "unpacking", bytes: Some(self.bytes), objects });
    }

    /// Counts the files by state.
    pub(super) fn count_in(&self, summary: &mut UnpackSummary) {
        let count = |wanted: &[State]| self.states.iter().filter(|state| wanted.contains(state)).count();
        summary.kept = count(&[State::Intact]);
        summary.repaired = count(&[State::Damaged, State::MadeReadable]) + self.directories;
        summary.bytes_written = self.bytes;
    }

    /// Removes what interrupted runs left in the staging directories, except intact files.
    pub(super) fn clear_staging(&self, roots: &Roots) -> Result<(), FsError> {
        let staged: HashSet<&str> = self
            .iter()
            .filter(|(_, state)| *state == State::Staged)
            .map(|(target, _)| target.staged.as_str())
            .collect();
        roots.stagings().into_iter().try_for_each(|staging| staging.clear(|name| staged.contains(name)))
    }

    /// Returns the size in bytes of the pending files of `lost` blobs.
    pub(super) fn bytes_of(&self, lost: &[(Digest, Unavailable)]) -> u64 {
        let targets = lost.iter().filter_map(|(digest, _)| self.pending.get(digest)).flatten();
        targets.map(|index| self.targets[*index].blob.size).sum()
    }
}

/// Returns all files of the layout except links, sorted by root and path.
fn targets(layout: &Layout, roots: &Roots) -> Vec<Target> {
    let mut sorted: BTreeMap<(usize, RelPath), Blob> = BTreeMap::new();
    if let Some(root) = roots.registry {
        for image in &layout.images {
            for blob in image.manifests.iter().copied().chain(layout.blobs_of(image)) {
                sorted.insert((root, blob_path(blob.digest)), blob);
            }
        }
    }
    if let Some(root) = roots.files {
        let prefix = RelPath::parse("k8s").expect("a plain name");
        for file in &layout.files {
            let blob = Blob { digest: file.digest, size: file.size };
            sorted.insert((root, prefix.join(&file.path)), blob);
        }
    }
    let mut copies: HashMap<Digest, usize> = HashMap::new();
    let targets = sorted.into_iter().map(|((root, path), blob)| {
        let copy = copies.entry(blob.digest).or_default();
        *copy += 1;
        Target { blob, root, path, staged: format!("{}.{copy}", blob.digest.hex()) }
    });
    targets.collect()
}

/// Removes from `layout` the images and files that need a lost blob, and returns them.
pub(super) fn omit_lost(layout: &mut Layout, lost: &[(Digest, Unavailable)]) -> Vec<OmittedItem> {
    // The first reason for a blob counts.
    let lost: HashMap<Digest, &Unavailable> = lost.iter().rev().map(|(digest, why)| (*digest, why)).collect();
    let item = |name: String, why: &Unavailable| OmittedItem {
        name,
        trouble: why.trouble,
        problem: why.problem.clone(),
    };
    let mut omitted = Vec::new();
    let mut images = std::mem::take(&mut layout.images);
    images.retain(|image| {
        let blobs = image.manifests.iter().copied().chain(layout.blobs_of(image));
        let worst = blobs.filter_map(|blob| lost.get(&blob.digest)).max_by_key(|why| why.trouble);
        omitted.extend(worst.map(|why| item(image.indexed.reference.to_string(), why)));
        worst.is_none()
    });
    layout.images = images;
    layout.files.retain(|file| {
        let why = lost.get(&file.digest);
        omitted.extend(why.map(|why| item(file.path.to_string(), why)));
        why.is_none()
    });
    omitted
}
