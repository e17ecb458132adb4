//! [`MissingLinks`]: the link files of the registry's storage that must be written.

use std::io::{Read as _, Write as _};

use crate::base::fs::FsError;
use crate::base::path::RelPath;
use crate::commands::unpack::roots::Roots;
use crate::oci::digest::Digest;
use crate::site::check::is_readable;
use crate::site::root::Root;
use crate::site::storage::Links;

/// Maximum number of link files that are staged before they are renamed.
const BATCH: usize = 8192;

/// Maximum bytes of a link file that are read; an intact one has 71.
const LIMIT: u64 = 100;

/// The link files that are missing, have other content or are not readable by all users.
pub(super) struct MissingLinks {
    /// Link files by stage; see [`Links::stages`].
    stages: Vec<Vec<(RelPath, Digest)>>,
    /// Directories that must exist.
    directories: Vec<RelPath>,
    /// Number of directories that were not accessible to all users; now they are.
    pub(super) made_accessible: usize,
}

impl MissingLinks {
    /// Compares `links` with the storage.
    pub(super) fn find(links: &Links, roots: &Roots) -> Result<Self, FsError> {
        let Some(root) = roots.registry() else {
            return Ok(Self { stages: Vec::new(), directories: Vec::new(), made_accessible: 0 });
        };
        let mut stages = Vec::new();
        for stage in links.stages() {
            let mut missing = Vec::new();
            for (path, digest) in stage {
                if !is_intact(root, path, *digest)? {
                    missing.push((path.clone(), *digest));
                }
            }
            stages.push(missing);
        }
        let paths = links.stages().into_iter().flatten().map(|(path, _)| path);
        let made_accessible = root.make_accessible(paths)?;
        Ok(Self { stages, directories: links.directories.iter().cloned().collect(), made_accessible })
    }

    /// Returns the number of link files.
    pub(super) fn len(&self) -> usize {
        self.stages.iter().map(Vec::len).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the link files, each stage after the one before it is on the disk. Returns the number of link
    /// files and directories created.
    pub(super) fn write(&self, roots: &Roots) -> Result<usize, FsError> {
        let Some(root) = roots.registry() else { return Ok(0) };
        let staging = root.staging();
        let mut written = 0;
        for directory in &self.directories {
            written += usize::from(root.create_directory(directory)?);
        }
        for batch in self.stages.iter().flat_map(|stage| stage.chunks(BATCH)) {
            for (number, (_, digest)) in batch.iter().enumerate() {
                let name = staged_name(number);
                let mut file = staging.create(&name)?;
                file.write_all(digest.to_string().as_bytes())
                    .map_err(FsError::at("write", staging.path(&name)))?;
            }
            // Also brings the renames of the stage before to the disk.
            staging.sync()?;
            for (number, (path, _)) in batch.iter().enumerate() {
                root.commit(&staged_name(number), path)?;
            }
            written += batch.len();
        }
        Ok(written)
    }
}

fn staged_name(number: usize) -> String {
    format!("link.{number}")
}

fn is_intact(root: &Root, path: &RelPath, digest: Digest) -> Result<bool, FsError> {
    let Some(file) = root.open_existing(path)? else { return Ok(false) };
    let at = || FsError::at("read", root.path(path));
    let is_readable = is_readable(&file.metadata().map_err(at())?.permissions());
    let mut content = Vec::new();
    file.take(LIMIT).read_to_end(&mut content).map_err(at())?;
    Ok(is_readable && content == digest.to_string().as_bytes())
}
