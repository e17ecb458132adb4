//! Hashes the files that a site already has: an existing file can be damaged or incomplete.

use std::collections::HashSet;
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

/// Nginx and registries run as other users.
const READABLE: u32 = 0o444;

/// A file that the site gets.
pub(crate) struct Target {
    pub blob: Blob,
    /// The index of its root.
    pub root: usize,
    /// The path below the root.
    pub path: RelPath,
    /// The name in the staging area: the digest, and a number that differs for each path of the same blob.
    pub staged: String,
}

/// The state of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Intact,
    /// Intact, but was not readable by all users; now it is.
    MadeReadable,
    /// Intact in the staging area: a run was killed before the rename. A damaged file can exist at the final
    /// path.
    Staged,
    Missing,
    /// A file exists and its size or digest does not match.
    Damaged,
}

impl State {
    /// True if the bytes are neither at the final path nor staged.
    pub(crate) fn must_be_written(self) -> bool {
        matches!(self, Self::Missing | Self::Damaged)
    }
}

/// Hashes every target, on all cores. Makes intact files readable by all users.
pub(crate) fn check_targets(
    targets: &[Target],
    roots: &[Root],
    report: &dyn Report,
) -> Result<Vec<State>, FsError> {
    let names = |root: &Root| Ok(root.staging().names()?.into_iter().collect());
    let staged: Vec<HashSet<String>> = roots.iter().map(names).collect::<Result<_, FsError>>()?;
    let check = |target: &Target| {
        let is_staged = staged[target.root].contains(&target.staged);
        check(target, &roots[target.root], is_staged, report)
    };
    targets.par_iter().map(check).collect()
}

/// `is_staged`: there is a staged file.
fn check(target: &Target, root: &Root, is_staged: bool, report: &dyn Report) -> Result<State, FsError> {
    let mut state = State::Missing;
    if let Some(file) = root.open_existing(&target.path)? {
        let path = || root.path(&target.path);
        if matches_blob(&file, target.blob, report).map_err(FsError::at("read", path()))? {
            return make_readable(&file, path);
        }
        state = State::Damaged;
    }
    if is_staged && let Some(file) = root.staging().open_existing(&target.staged)? {
        let path = root.staging().path(&target.staged);
        if matches_blob(&file, target.blob, report).map_err(FsError::at("read", path))? {
            state = State::Staged;
        }
    }
    Ok(state)
}

fn make_readable(file: &File, path: impl Fn() -> PathBuf) -> Result<State, FsError> {
    let mut permissions = file.metadata().map_err(FsError::at("read", path()))?.permissions();
    if is_readable(&permissions) {
        return Ok(State::Intact);
    }
    permissions.set_mode(permissions.mode() | READABLE);
    file.set_permissions(permissions).map_err(FsError::at("make readable", path()))?;
    Ok(State::MadeReadable)
}

/// True if all users can read the file: the server can run as another one.
#[must_use]
pub(crate) fn is_readable(permissions: &Permissions) -> bool {
    permissions.mode() & READABLE == READABLE
}

fn matches_blob(file: &File, blob: Blob, report: &dyn Report) -> std::io::Result<bool> {
    if file.metadata()?.len() != blob.size {
        return Ok(false);
    }
    Ok(hash(file, report)? == blob.digest)
}

/// Returns the digest of a file from its current position, and reports progress.
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
