//! What a delta leaves out: whether the site has it, and the copy of it to where the bundle wants it.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::path::Path;

use serde::Serialize;

use crate::bundle::FRAME_SIZE;
use crate::bundle::layout::{Blob, Layout};
use crate::digest::Digest;
use crate::event::{Event, Report};
use crate::fs::FsError;
use crate::site::check::{State, Target};
use crate::site::supply::{Source, Supply};
use crate::unpack::{Feeder, Options, UnpackError};

/// A blob that a site should have and has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MissingBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Whether something is in its place that has other bytes.
    pub damaged: bool,
    /// The images and files that need it.
    pub owners: Vec<String>,
}

/// Where a blob is copied from.
pub(super) enum From {
    /// From another place that the bundle has for it, which is right.
    Target(usize),
    /// From anywhere else on the site.
    Site(Source),
}

/// What the site has of what a delta leaves out.
pub(super) struct Delta {
    supply: Supply,
    /// What is left out and needed here.
    needed: Vec<Blob>,
    /// What has to be copied.
    copies: HashMap<Digest, From>,
}

impl Delta {
    /// Looks whether everything can be there at all, before anything is created. Nothing is hashed yet.
    pub(super) fn begin(layout: &Layout, options: &Options) -> Result<Self, UnpackError> {
        let place = |elsewhere: &Option<_>, name| elsewhere.clone().unwrap_or(options.site.join(name));
        let files = place(&options.files, "files");
        let registry = place(&options.registry, "registry");
        let supply = Supply::new(layout, &options.site, &files, &registry)?;
        let of_images = layout.images.iter().flat_map(|image| layout.blobs_of(image));
        let named: HashSet<Digest> =
            of_images.map(|blob| blob.digest).chain(layout.files.iter().map(|file| file.digest)).collect();
        let is_needed = |blob: &&Blob| named.contains(&blob.digest);
        let needed: Vec<Blob> = layout.elsewhere.iter().filter(is_needed).copied().collect();
        let mut missing = Vec::new();
        for blob in &needed {
            if !supply.may_have(*blob)? {
                missing.push((*blob, false));
            }
        }
        incomplete(layout, &options.site, &missing)?;
        Ok(Self { supply, needed, copies: HashMap::new() })
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
        let mut wanted = HashSet::new();
        for (number, (target, state)) in targets.iter().zip(states).enumerate() {
            if matches!(state, State::Missing | State::Wrong) {
                wanted.insert(target.blob.digest);
            } else {
                right.insert(target.blob.digest, number);
            }
        }
        let mut missing = Vec::new();
        for blob in self.needed.iter().filter(|blob| wanted.contains(&blob.digest)) {
            if let Some(number) = right.get(&blob.digest) {
                self.copies.insert(blob.digest, From::Target(*number));
            } else if let Some(source) = self.supply.find(*blob, report)? {
                self.copies.insert(blob.digest, From::Site(source));
            } else {
                missing.push((*blob, true));
            }
        }
        incomplete(layout, site, &missing)
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

impl Feeder<'_> {
    /// Hands what the bundle leaves out to the lanes, in the order of the bundle; the first one has the number `first`.
    pub(super) fn copy(
        &mut self,
        delta: &Delta,
        elsewhere: &[Blob],
        first: usize,
    ) -> Result<(), UnpackError> {
        for (number, blob) in elsewhere.iter().enumerate() {
            let (Some(from), Some(places)) =
                (delta.copies.get(&blob.digest), self.todo.blobs.get(&blob.digest))
            else {
                continue;
            };
            let (file, path) = match from {
                From::Target(number) => {
                    let Target { root, path, .. } = &self.targets[*number];
                    (self.roots[*root].existing(path)?, self.roots[*root].path(path))
                }
                From::Site(source) => (delta.supply.open(source, *blob)?, delta.supply.path(source)),
            };
            let mut file = file.ok_or(UnpackError::Changed(blob.digest))?;
            let number = first + number;
            self.begin(number, *blob, places)?;
            loop {
                let mut piece = Vec::new();
                let read = file.by_ref().take(FRAME_SIZE as u64).read_to_end(&mut piece);
                match read {
                    Ok(0) => break,
                    Ok(len) => {
                        self.report.event(&Event::Progress { id: number as u64, bytes: len as u64 });
                        self.lanes.data(piece.into());
                    }
                    Err(error) => {
                        self.lanes.abandon();
                        return Err(FsError::at("read", path)(error).into());
                    }
                }
            }
            self.lanes.end();
        }
        Ok(())
    }
}
