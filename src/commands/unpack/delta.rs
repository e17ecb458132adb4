//! [`Delta`]: finds the blobs that a delta omits on the site, and copies them to the paths that the bundle
//! names.
//!
//! Two files can have swapped names: the source of one copy can be the destination of another. Therefore all
//! copies are complete and on the disk before the first one is renamed.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::path::PathBuf;

use cap_std::fs::File;
use rayon::prelude::*;

use crate::base::bulk;
use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::bundle::format::layout::{Blob, Layout};
use crate::bundle::read::error::Unavailable;
use crate::bundle::read::problem::DamageKind;
use crate::commands::unpack::error::{MissingBlob, UnpackError};
use crate::commands::unpack::options::UnpackOptions;
use crate::commands::unpack::plan::{LostBlobs, WritePlan, omit_lost};
use crate::commands::unpack::roots::Roots;
use crate::commands::unpack::summary::UnpackSummary;
use crate::oci::digest::{Digest, Hasher};
use crate::site::check::State;
use crate::site::locator::{BlobFile, BlobLocator};
use crate::site::record::Record;

/// Bytes per read call.
const BUFFER: usize = 256 << 10;

/// The external blobs of a delta that the selection needs.
pub(super) struct Delta {
    locator: BlobLocator,
    needed: Vec<Blob>,
    copies: Vec<Copy>,
}

/// A blob that must be copied.
struct Copy {
    blob: Blob,
    source: Source,
    /// Indices of the targets that need it.
    targets: Vec<usize>,
}

enum Source {
    /// The index of another target, which is intact.
    Target(usize),
    /// Any other file of the site.
    Site(BlobFile),
}

impl Delta {
    /// Also returns the external blobs for which the site has no file of the right size. Hashes and creates nothing.
    pub(super) fn new(
        layout: &Layout,
        record: &Record,
        options: &UnpackOptions,
    ) -> Result<(Self, Vec<MissingBlob>), UnpackError> {
        let locator = BlobLocator::new(layout, record, &options.files_root(), &options.registry_root())?;
        let of_images = layout.images.iter().flat_map(|image| layout.blobs_of(image));
        let selected: HashSet<Digest> =
            of_images.map(|blob| blob.digest).chain(layout.files.iter().map(|file| file.digest)).collect();
        let is_needed = |blob: &&Blob| selected.contains(&blob.digest);
        let needed: Vec<Blob> = layout.external.iter().filter(is_needed).copied().collect();
        let mut missing = Vec::new();
        for blob in &needed {
            if !locator.may_have(*blob)? {
                missing.push(MissingBlob::new(*blob, false));
            }
        }
        Ok((Self { locator, needed, copies: Vec::new() }, missing))
    }

    /// Finds a source for every external blob whose target is missing or damaged. Hashes candidates, except
    /// intact targets. Returns the blobs without a source.
    pub(super) fn locate(
        &mut self,
        plan: &WritePlan,
        report: &dyn Report,
    ) -> Result<Vec<MissingBlob>, UnpackError> {
        self.copies.clear();
        let mut intact = HashMap::new();
        for (index, (target, state)) in plan.iter().enumerate() {
            if !state.must_be_written() {
                intact.insert(target.blob.digest, index);
            }
        }
        let mut missing = Vec::new();
        for blob in self.needed.iter().copied() {
            let Some(targets) = plan.pending.get(&blob.digest) else { continue };
            let source = match intact.get(&blob.digest) {
                Some(index) => Some(Source::Target(*index)),
                None => self.locator.find(blob, report)?.map(Source::Site),
            };
            match source {
                Some(source) => self.copies.push(Copy { blob, source, targets: targets.clone() }),
                None => missing.push(MissingBlob::new(blob, true)),
            }
        }
        Ok(missing)
    }

    /// Copies and hashes every located blob into the staging area, syncs it, and sets the state of its
    /// targets to staged.
    pub(super) fn stage(
        &self,
        plan: &mut WritePlan,
        roots: &Roots,
        report: &dyn Report,
    ) -> Result<(), UnpackError> {
        if self.copies.is_empty() {
            return Ok(());
        }
        let copier = Copier { locator: &self.locator, plan, roots, report };
        self.copies.par_iter().try_for_each(|copy| copier.copy(copy))?;
        // One sync writes all of them; the one of each file reports which one failed.
        roots.sync()?;
        for index in self.copies.iter().flat_map(|copy| &copy.targets) {
            let target = &plan.targets[*index];
            let staging = roots.all[target.root].staging();
            let file =
                staging.open_existing(&target.staged)?.ok_or(UnpackError::Changed(target.blob.digest))?;
            file.sync_all().map_err(FsError::at("sync", staging.path(&target.staged)))?;
            plan.states[*index] = State::Staged;
        }
        Ok(())
    }
}

/// Copies blobs within a site.
struct Copier<'a> {
    locator: &'a BlobLocator,
    plan: &'a WritePlan,
    roots: &'a Roots,
    report: &'a dyn Report,
}

impl Copier<'_> {
    /// Copies one blob to the staged files of all its targets. Fails if the digest of the source does not
    /// match any more.
    fn copy(&self, Copy { blob, source, targets }: &Copy) -> Result<(), UnpackError> {
        let (file, path) = self.open(source, *blob)?;
        let mut file = file.ok_or(UnpackError::Changed(blob.digest))?;
        let (id, object) = (targets[0] as u64, self.plan.targets[targets[0]].path.to_string());
        self.report.event(&Event::Begin { id, object, bytes: Some(blob.size) });
        let mut outputs = Vec::new();
        for index in targets {
            let target = &self.plan.targets[*index];
            let staging = self.roots.all[target.root].staging();
            outputs.push((staging.create(&target.staged)?, staging.path(&target.staged)));
        }
        let (mut hasher, mut buffer) = (Hasher::new(), vec![0; BUFFER]);
        loop {
            let len = file.read(&mut buffer).map_err(FsError::at("read", &path))?;
            if len == 0 {
                break;
            }
            hasher.update(&buffer[..len]);
            for (output, path) in &mut outputs {
                bulk::write_all(output, &buffer[..len]).map_err(FsError::at("write", path))?;
            }
            self.report.event(&Event::Progress { id, bytes: len as u64 });
        }
        if hasher.finish() != blob.digest {
            return Err(UnpackError::Changed(blob.digest));
        }
        self.report.event(&Event::Done { id });
        Ok(())
    }

    /// Opens the source of a copy. `None` in place of the file: it has disappeared.
    fn open(&self, source: &Source, blob: Blob) -> Result<(Option<File>, PathBuf), FsError> {
        let index = match source {
            Source::Site(file) => return Ok((self.locator.open(file, blob)?, self.locator.path(file))),
            Source::Target(index) => *index,
        };
        let target = &self.plan.targets[index];
        let root = &self.roots.all[target.root];
        if self.plan.states[index] == State::Staged {
            return Ok((root.staging().open_existing(&target.staged)?, root.staging().path(&target.staged)));
        }
        Ok((root.open_existing(&target.path)?, root.path(&target.path)))
    }
}

impl MissingBlob {
    /// `owners` is filled in by [`omit_incomplete`].
    fn new(Blob { digest, size }: Blob, damaged: bool) -> Self {
        Self { digest, size, damaged, owners: Vec::new() }
    }
}

/// Removes from `layout` the images and files that need a `missing` blob, and adds both to `summary`. Fails without
/// `--keep-going`, or if nothing is left.
pub(super) fn omit_incomplete(
    layout: &mut Layout,
    mut missing: Vec<MissingBlob>,
    options: &UnpackOptions,
    summary: &mut UnpackSummary,
) -> Result<(), UnpackError> {
    if missing.is_empty() {
        return Ok(());
    }
    let mut owners = layout.owners(&missing.iter().map(|blob| blob.digest).collect());
    for blob in &mut missing {
        blob.owners = owners.remove(&blob.digest).unwrap_or_default();
    }
    let site = options.site.clone();
    if !options.keep_going {
        return Err(UnpackError::Incomplete { site, missing });
    }
    let unavailable = |blob: &MissingBlob| {
        let problem = if blob.damaged {
            format!("`{}` is corrupt on the site, and the delta omits it", blob.digest)
        } else {
            format!("the site lacks `{}`, which the delta omits", blob.digest)
        };
        (blob.digest, Unavailable { trouble: DamageKind::Missing, problem })
    };
    let lost: LostBlobs = missing.iter().map(unavailable).collect();
    let omitted = omit_lost(layout, &lost);
    if layout.images.is_empty() && layout.files.is_empty() {
        return Err(UnpackError::Incomplete { site, missing });
    }
    summary.omitted.extend(omitted);
    summary.missing.extend(missing);
    Ok(())
}
