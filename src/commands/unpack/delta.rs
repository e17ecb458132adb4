//! What a delta leaves out: whether the site has it, and the copy of it to where the bundle wants it.
//!
//! Names may have been exchanged: what is copied from one place may be needed for another, and what stands there is to be
//! replaced. So all copies are complete and on the disk before anything gets its place.

use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use cap_std::fs::File;
use rayon::prelude::*;

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::bundle::format::layout::{Blob, Layout};
use crate::commands::unpack::error::{MissingBlob, UnpackError};
use crate::commands::unpack::options::UnpackOptions;
use crate::oci::digest::{Digest, Hasher};
use crate::site::check::{State, Target};
use crate::site::commit::distinct;
use crate::site::locator::{BlobLocator, BlobSource};
use crate::site::root::Root;

/// How much is copied at once.
const PIECE: usize = 256 << 10;

/// Where a blob is copied from.
enum From {
    /// From another place that the bundle has for it, which is right.
    Target(usize),
    /// From anywhere else on the site.
    Site(BlobSource),
}

/// A blob that is copied.
struct Copy {
    blob: Blob,
    from: From,
    /// The targets that need it.
    to: Vec<usize>,
}

/// What the site has of what a delta leaves out.
pub(super) struct Delta {
    supply: BlobLocator,
    /// What is left out and needed here.
    needed: Vec<Blob>,
    copies: Vec<Copy>,
}

impl Delta {
    /// Looks whether everything can be there at all, before anything is created. Nothing is hashed yet.
    pub(super) fn begin(layout: &Layout, options: &UnpackOptions) -> Result<Self, UnpackError> {
        let place = |elsewhere: &Option<_>, name| elsewhere.clone().unwrap_or(options.site.join(name));
        let files = place(&options.files, "files");
        let registry = place(&options.registry, "registry");
        let supply = BlobLocator::new(layout, &options.site, &files, &registry)?;
        let of_images = layout.images.iter().flat_map(|image| layout.blobs_of(image));
        let named: HashSet<Digest> =
            of_images.map(|blob| blob.digest).chain(layout.files.iter().map(|file| file.digest)).collect();
        let is_needed = |blob: &&Blob| named.contains(&blob.digest);
        let needed: Vec<Blob> = layout.external.iter().filter(is_needed).copied().collect();
        let mut missing = Vec::new();
        for blob in &needed {
            if !supply.may_have(*blob)? {
                missing.push((*blob, false));
            }
        }
        incomplete(layout, &options.site, &missing)?;
        Ok(Self { supply, needed, copies: Vec::new() })
    }

    /// Finds the bytes of everything that is not in its place. What is there and right has been hashed for that.
    pub(super) fn find(
        &mut self,
        layout: &Layout,
        targets: &[Target],
        states: &[State],
        site: &Path,
        report: &dyn Report,
    ) -> Result<(), UnpackError> {
        let mut right = HashMap::new();
        let mut wanted: HashMap<Digest, Vec<usize>> = HashMap::new();
        for (number, (target, state)) in targets.iter().zip(states).enumerate() {
            if matches!(state, State::Missing | State::Wrong) {
                wanted.entry(target.blob.digest).or_default().push(number);
            } else {
                right.insert(target.blob.digest, number);
            }
        }
        let mut missing = Vec::new();
        for blob in self.needed.iter().copied() {
            let Some(to) = wanted.remove(&blob.digest) else { continue };
            let from = match right.get(&blob.digest) {
                Some(number) => Some(From::Target(*number)),
                None => self.supply.find(blob, report)?.map(From::Site),
            };
            match from {
                Some(from) => self.copies.push(Copy { blob, from, to }),
                None => missing.push((blob, true)),
            }
        }
        incomplete(layout, site, &missing)
    }

    /// Copies everything to where files are staged, checks it, and brings it to the disk; `states` says so then.
    pub(super) fn stage(
        &self,
        targets: &[Target],
        states: &mut [State],
        roots: &[Root],
        report: &dyn Report,
    ) -> Result<(), UnpackError> {
        if self.copies.is_empty() {
            return Ok(());
        }
        self.copies.par_iter().try_for_each(|copy| self.copy(copy, targets, states, roots, report))?;
        // One sync carries all, and that of each file says which one failed.
        distinct(roots).into_iter().try_for_each(|staging| staging.sync())?;
        for number in self.copies.iter().flat_map(|copy| &copy.to) {
            let Target { root, staged, blob, .. } = &targets[*number];
            let staging = roots[*root].staging();
            let file = staging.existing(staged)?.ok_or(UnpackError::Changed(blob.digest))?;
            file.sync_all().map_err(FsError::at("sync", staging.path(staged)))?;
            states[*number] = State::Staged;
        }
        Ok(())
    }

    fn copy(
        &self,
        Copy { blob, from, to }: &Copy,
        targets: &[Target],
        states: &[State],
        roots: &[Root],
        report: &dyn Report,
    ) -> Result<(), UnpackError> {
        let (file, path) = self.open(from, *blob, targets, states, roots)?;
        let mut file = file.ok_or(UnpackError::Changed(blob.digest))?;
        let (id, object) = (to[0] as u64, targets[to[0]].path.to_string());
        report.event(&Event::Begin { id, object, bytes: Some(blob.size) });
        let mut outputs = Vec::new();
        for number in to {
            let Target { root, staged, .. } = &targets[*number];
            let staging = roots[*root].staging();
            outputs.push((staging.create(staged)?, staging.path(staged)));
        }
        let (mut hasher, mut buffer) = (Hasher::new(), vec![0; PIECE]);
        loop {
            let len = file.read(&mut buffer).map_err(FsError::at("read", &path))?;
            if len == 0 {
                break;
            }
            hasher.update(&buffer[..len]);
            for (output, path) in &mut outputs {
                output.write_all(&buffer[..len]).map_err(FsError::at("write", path))?;
            }
            report.event(&Event::Progress { id, bytes: len as u64 });
        }
        if hasher.finish() != blob.digest {
            return Err(UnpackError::Changed(blob.digest));
        }
        report.event(&Event::Done { id });
        Ok(())
    }

    fn open(
        &self,
        from: &From,
        blob: Blob,
        targets: &[Target],
        states: &[State],
        roots: &[Root],
    ) -> Result<(Option<File>, PathBuf), FsError> {
        let number = match from {
            From::Site(source) => return Ok((self.supply.open(source, blob)?, self.supply.path(source))),
            From::Target(number) => *number,
        };
        let Target { root, path, staged, .. } = &targets[number];
        let root = &roots[*root];
        if states[number] == State::Staged {
            return Ok((root.staging().existing(staged)?, root.staging().path(staged)));
        }
        Ok((root.existing(path)?, root.path(path)))
    }
}

fn incomplete(layout: &Layout, site: &Path, missing: &[(Blob, bool)]) -> Result<(), UnpackError> {
    if missing.is_empty() {
        return Ok(());
    }
    let owners = layout.owners(&missing.iter().map(|(blob, _)| blob.digest).collect());
    let missing = missing.iter().map(|(blob, damaged)| MissingBlob {
        digest: blob.digest,
        size: blob.size,
        damaged: *damaged,
        owners: owners.get(&blob.digest).cloned().unwrap_or_default(),
    });
    Err(UnpackError::Incomplete { site: site.to_owned(), missing: missing.collect() })
}
