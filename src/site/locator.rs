//! [`BlobLocator`]: finds the blobs that a delta omits on a site.
//!
//! Any file with the right digest will do: one at another path, or a layer in the registry's storage. Writes
//! nothing.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, File};

use crate::base::event::Report;
use crate::base::fs::FsError;
use crate::base::path::RelPath;
use crate::bundle::format::layout::{Blob, Layout};
use crate::oci::digest::Digest;
use crate::oci::reference::DEFAULT_PREFIX;
use crate::site::check::hash;
use crate::site::record::Record;
use crate::site::root::open_regular;
use crate::site::storage::blob_path;

pub(crate) struct BlobLocator {
    /// The directories to search, in this order.
    directories: Vec<SearchDirectory>,
    /// The paths, below a root of files, that files with this digest had or should get.
    paths: HashMap<Digest, Vec<RelPath>>,
}

/// A root of a registry's storage or of files.
struct SearchDirectory {
    kind: Kind,
    dir: Dir,
    path: PathBuf,
}

#[derive(Clone, Copy)]
enum Kind {
    Registry,
    Files,
}

/// A file with the size, and after [`BlobLocator::find`] the digest, of a blob.
#[derive(Debug, Clone)]
pub(crate) struct BlobFile {
    /// The index of its directory.
    directory: usize,
    path: RelPath,
}

impl BlobLocator {
    /// Opens the directories `files` and `registry` to search for the external blobs of `layout`, also at the paths
    /// in `record`.
    pub(crate) fn new(
        layout: &Layout,
        record: &Record,
        files: &Path,
        registry: &Path,
    ) -> Result<Self, FsError> {
        let directories = [open(Kind::Registry, registry)?, open(Kind::Files, files)?];
        let directories = directories.into_iter().flatten().collect();
        Ok(Self { directories, paths: paths(layout, record) })
    }

    /// True if a file with the size of the blob exists where the blob can be. Hashes nothing.
    pub(crate) fn may_have(&self, blob: Blob) -> Result<bool, FsError> {
        Ok(self.first(blob, |_, _| Ok(true))?.is_some())
    }

    /// Returns a file with the size and digest of the blob.
    pub(crate) fn find(&self, blob: Blob, report: &dyn Report) -> Result<Option<BlobFile>, FsError> {
        self.first(blob, |file, candidate| {
            let digest = hash(file, report).map_err(FsError::at("read", self.path(candidate)))?;
            Ok(digest == blob.digest)
        })
    }

    /// Opens a file that was found. `None`: it is missing now, or has another size.
    pub(crate) fn open(&self, file: &BlobFile, blob: Blob) -> Result<Option<File>, FsError> {
        self.directories[file.directory].open(&file.path, blob.size)
    }

    /// Returns the absolute path, for messages.
    #[must_use]
    pub(crate) fn path(&self, file: &BlobFile) -> PathBuf {
        self.directories[file.directory].path.join(&file.path)
    }

    /// Returns the first file that has the size of the blob and is accepted by `accept`.
    fn first(
        &self,
        blob: Blob,
        accept: impl Fn(&File, &BlobFile) -> Result<bool, FsError>,
    ) -> Result<Option<BlobFile>, FsError> {
        let in_registry = [blob_path(blob.digest)];
        let in_files = self.paths.get(&blob.digest).map_or(&[][..], Vec::as_slice);
        for (directory, SearchDirectory { kind, .. }) in self.directories.iter().enumerate() {
            let paths = match kind {
                Kind::Registry => &in_registry,
                Kind::Files => in_files,
            };
            for path in paths {
                let candidate = BlobFile { directory, path: path.clone() };
                if let Some(file) = self.open(&candidate, blob)?
                    && accept(&file, &candidate)?
                {
                    return Ok(Some(candidate));
                }
            }
        }
        Ok(None)
    }
}

impl SearchDirectory {
    /// Opens a file. `None`: it is missing, or has another size.
    fn open(&self, path: &RelPath, size: u64) -> Result<Option<File>, FsError> {
        let at = || FsError::at("open", self.path.join(path));
        match self.dir.symlink_metadata(path) {
            Ok(meta) if meta.is_file() && meta.len() == size => {
                Ok(Some(open_regular(&self.dir, path).map_err(at())?))
            }
            Ok(_) => Ok(None),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(at()(error)),
        }
    }
}

/// Opens a directory. `None`: it does not exist.
fn open(kind: Kind, path: &Path) -> Result<Option<SearchDirectory>, FsError> {
    match Dir::open_ambient_dir(path, ambient_authority()) {
        Ok(dir) => Ok(Some(SearchDirectory { kind, dir, path: path.to_owned() })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FsError::at("open", path)(error)),
    }
}

/// Returns the paths of files with the digest of an external blob: those in `layout`, then those in the
/// record.
fn paths(layout: &Layout, record: &Record) -> HashMap<Digest, Vec<RelPath>> {
    let mut paths: HashMap<Digest, Vec<RelPath>> =
        layout.external.iter().map(|blob| (blob.digest, Vec::new())).collect();
    let prefix = RelPath::parse(DEFAULT_PREFIX).expect("a plain path");
    let named = layout.files.iter().map(|file| (file.digest, prefix.join(&file.path)));
    let recorded = record.files.iter().map(|file| (file.digest, file.path.clone()));
    for (digest, path) in named.chain(recorded) {
        if let Some(paths) = paths.get_mut(&digest)
            && !paths.contains(&path)
        {
            paths.push(path);
        }
    }
    paths
}
