//! [`BlobLocator`]: where a site has the blobs that a delta leaves out.
//!
//! A blob is the same wherever it stands: the file of another path, or a layer of the registry's storage, is as good as
//! one in its place. Nothing here writes.

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
use crate::site::check::hash;
use crate::site::record::Record;
use crate::site::storage::blob_path;

/// The places; see the module.
pub(crate) struct BlobLocator {
    /// The storages of registries first.
    places: Vec<BlobPath>,
    /// How many of them are that.
    registries: usize,
    /// Under which paths there may be a file with this digest.
    paths: HashMap<Digest, Vec<RelPath>>,
}

struct BlobPath {
    dir: Dir,
    path: PathBuf,
}

/// A file of the site that has the bytes of a blob.
#[derive(Debug, Clone)]
pub(crate) struct BlobSource {
    place: usize,
    path: RelPath,
}

impl BlobLocator {
    /// The places for the blobs that `layout` leaves out: the directories `files` and `registry`, and those that the record
    /// of `site` knows.
    pub(crate) fn new(layout: &Layout, site: &Path, files: &Path, registry: &Path) -> Result<Self, FsError> {
        let record = Record::read(site).ok();
        let known_files = record.as_ref().map(|record| record.files_root(site));
        let known_registry = record.as_ref().map(|record| record.registry_root(site));
        let mut paths: HashMap<Digest, Vec<RelPath>> = HashMap::new();
        for blob in &layout.external {
            paths.insert(blob.digest, Vec::new());
        }
        let named = layout.files.iter().map(|file| (file.digest, format!("k8s/{}", file.path)));
        let recorded = record.into_iter().flat_map(|record| record.files);
        for (digest, path) in named.chain(recorded.map(|file| (file.digest, file.path))) {
            if let (Some(paths), Ok(path)) = (paths.get_mut(&digest), RelPath::parse(&path))
                && !paths.contains(&path)
            {
                paths.push(path);
            }
        }
        let mut places = open(registry, known_registry)?;
        let registries = places.len();
        places.extend(open(files, known_files)?);
        Ok(Self { places, registries, paths })
    }

    /// Whether a file of the right size is where this blob may be: without it, nothing has to be hashed.
    pub(crate) fn may_have(&self, blob: Blob) -> Result<bool, FsError> {
        Ok(self.first(blob, |_, _| Ok(true))?.is_some())
    }

    /// A file with the bytes of this blob.
    pub(crate) fn find(&self, blob: Blob, report: &dyn Report) -> Result<Option<BlobSource>, FsError> {
        self.first(blob, |file, source| {
            let found = hash(file, report).map_err(FsError::at("read", self.path(source)))?;
            Ok(found == blob.digest)
        })
    }

    /// Opens what was found, if it is still there.
    pub(crate) fn open(&self, source: &BlobSource, blob: Blob) -> Result<Option<File>, FsError> {
        self.places[source.place].open(&source.path, blob.size)
    }

    /// Where it is, for messages.
    #[must_use]
    pub(crate) fn path(&self, source: &BlobSource) -> PathBuf {
        self.places[source.place].path.join(&source.path)
    }

    /// The first file with the right size that `is_it`.
    fn first(
        &self,
        blob: Blob,
        is_it: impl Fn(&File, &BlobSource) -> Result<bool, FsError>,
    ) -> Result<Option<BlobSource>, FsError> {
        let stored = [blob_path(blob.digest)];
        let files = self.paths.get(&blob.digest).map_or(&[][..], Vec::as_slice);
        for place in 0..self.places.len() {
            for path in if place < self.registries { &stored } else { files } {
                let source = BlobSource { place, path: path.clone() };
                if let Some(file) = self.open(&source, blob)?
                    && is_it(&file, &source)?
                {
                    return Ok(Some(source));
                }
            }
        }
        Ok(None)
    }
}

impl BlobPath {
    /// Opens a file if it is there and has this size.
    fn open(&self, path: &RelPath, size: u64) -> Result<Option<File>, FsError> {
        let at = || FsError::at("open", self.path.join(path));
        match self.dir.symlink_metadata(path) {
            Ok(meta) if meta.is_file() && meta.len() == size => Ok(Some(self.dir.open(path).map_err(at())?)),
            Ok(_) => Ok(None),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(at()(error)),
        }
    }
}

/// The directories that are there, each once.
fn open(first: &Path, second: Option<PathBuf>) -> Result<Vec<BlobPath>, FsError> {
    let second = second.filter(|second| second != first);
    let mut places = Vec::new();
    for path in std::iter::once(first.to_owned()).chain(second) {
        match Dir::open_ambient_dir(&path, ambient_authority()) {
            Ok(dir) => places.push(BlobPath { dir, path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(FsError::at("open", &path)(error)),
        }
    }
    Ok(places)
}
