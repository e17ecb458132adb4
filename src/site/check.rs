//! What of a site is there already: presence proves nothing, so everything is hashed.

use std::io::Read;
use std::path::PathBuf;

use cap_std::fs::{File, Permissions, PermissionsExt};
use rayon::prelude::*;

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::path::RelPath;
use crate::bundle::format::layout::Blob;
use crate::oci::digest::{Digest, Hasher};
use crate::site::root::Root;

/// Who runs nginx or a registry must be able to read a file.
const READABLE: u32 = 0o444;

/// A file that the site is to have.
pub(crate) struct Target {
    /// What it holds.
    pub blob: Blob,
    /// Which root it is below.
    pub root: usize,
    /// Where.
    pub path: RelPath,
    /// The name that it has while it is written: the digest, and a number if one blob has several places.
    pub staged: String,
}

/// How a file of the site is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It is there, complete and right.
    Right,
    /// It is there, complete and right, and not everybody could read it: now everybody can.
    Opened,
    /// It is complete and right in the staging area: a run was killed just before it could move it, also over something
    /// else.
    Staged,
    /// It is not there.
    Missing,
    /// It is there, with other bytes.
    Wrong,
}

/// Looks at every target, on all cores.
pub(crate) fn check(targets: &[Target], roots: &[Root], report: &dyn Report) -> Result<Vec<State>, FsError> {
    targets.par_iter().map(|target| look(target, &roots[target.root], report)).collect()
}

fn look(target: &Target, root: &Root, report: &dyn Report) -> Result<State, FsError> {
    let is_wrong = if let Some(file) = root.existing(&target.path)? {
        let path = || root.path(&target.path);
        if holds(&file, target.blob, report).map_err(FsError::at("read", path()))? {
            return open_to_all(&file, path);
        }
        true
    } else {
        false
    };
    if let Some(file) = root.staging().existing(&target.staged)? {
        let path = root.staging().path(&target.staged);
        if holds(&file, target.blob, report).map_err(FsError::at("read", path))? {
            return Ok(State::Staged);
        }
    }
    Ok(if is_wrong { State::Wrong } else { State::Missing })
}

/// Makes a file readable for everybody, if it is not.
fn open_to_all(file: &File, path: impl Fn() -> PathBuf) -> Result<State, FsError> {
    let mut permissions = file.metadata().map_err(FsError::at("read", path()))?.permissions();
    if is_readable(&permissions) {
        return Ok(State::Right);
    }
    permissions.set_mode(permissions.mode() | READABLE);
    file.set_permissions(permissions).map_err(FsError::at("make readable", path()))?;
    Ok(State::Opened)
}

/// Whether everybody can read a file: who serves it may be another user.
#[must_use]
pub(crate) fn is_readable(permissions: &Permissions) -> bool {
    permissions.mode() & READABLE == READABLE
}

/// Whether the file has the size and the digest of `blob`.
fn holds(file: &File, blob: Blob, report: &dyn Report) -> std::io::Result<bool> {
    if file.metadata()?.len() != blob.size {
        return Ok(false);
    }
    Ok(hash(file, report)? == blob.digest)
}

/// The digest of what is left of a file; `report` is told how far it is.
pub(crate) fn hash(mut file: &File, report: &dyn Report) -> std::io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            len => {
                hasher.update(&buffer[..len]);
                report.event(&Event::Progress { id: 0, bytes: len as u64 });
            }
        }
    }
}
