//! [`Storage`]: reads the contents of a registry's storage, including what other clients pushed.
//!
//! Writes nothing. All calls go through a handle of the directory, so that no symlink leads out of it.
//! Symlinks and special files are reported, and not followed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, File};

use crate::base::fs::FsError;
use crate::base::path::RelPath;
use crate::oci::digest::Digest;
use crate::oci::manifest::{MANIFEST_LIMIT, Manifest};
use crate::site::root::open_regular;
use crate::site::storage::{BASE, blob_path};

/// Maximum bytes of a link file that are read; a valid one has 71.
const LINK_LIMIT: u64 = 100;

/// A registry's storage, open for reading.
pub(crate) struct Storage {
    dir: Dir,
    path: PathBuf,
}

/// The links of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Repository {
    /// Tags with their current digests; `None`: the link file is missing or invalid.
    pub tags: BTreeMap<String, Option<Digest>>,
    /// Digests of manifests.
    pub revisions: BTreeSet<Digest>,
    /// Digests of configs and layers.
    pub layers: BTreeSet<Digest>,
    /// All digests in link files and in the names of their directories, which can differ.
    pub named: BTreeSet<Digest>,
}

/// The repositories of a storage.
#[derive(Debug, Default)]
pub(crate) struct Repositories {
    pub by_name: BTreeMap<String, Repository>,
    /// Paths that are neither files nor directories; a registry may follow them.
    pub irregular: Vec<PathBuf>,
}

impl Storage {
    /// Opens the storage at `root`; `None`: it does not exist.
    pub(crate) fn open(root: &Path) -> Result<Option<Self>, FsError> {
        match Dir::open_ambient_dir(root, ambient_authority()) {
            Ok(dir) => Ok(Some(Self { dir, path: root.to_owned() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FsError::at("open", root)(error)),
        }
    }

    /// Returns all blobs with their sizes in bytes.
    pub(crate) fn blobs(&self) -> Result<BTreeMap<Digest, u64>, FsError> {
        let (mut blobs, mut irregular) = (BTreeMap::new(), Vec::new());
        let base = format!("{BASE}/blobs/sha256");
        for prefix in self.directories(&base, &mut irregular)? {
            for hex in self.directories(&format!("{base}/{prefix}"), &mut irregular)? {
                let Ok(digest) = Digest::from_hex(&hex) else { continue };
                if let Some(size) = self.size(digest)?.filter(|_| hex.starts_with(&prefix)) {
                    blobs.insert(digest, size);
                }
            }
        }
        Ok(blobs)
    }

    /// Returns the size of a blob in bytes; `None`: it is missing.
    pub(crate) fn size(&self, digest: Digest) -> Result<Option<u64>, FsError> {
        let path = blob_path(digest);
        match self.dir.symlink_metadata(&path) {
            Ok(meta) => Ok(meta.is_file().then(|| meta.len())),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(FsError::at("open", self.path.join(&path))(error)),
        }
    }

    /// Returns the absolute path of a blob, for messages.
    #[must_use]
    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.path.join(blob_path(digest))
    }

    /// Opens a blob.
    pub(crate) fn blob(&self, digest: Digest) -> Result<File, FsError> {
        let path = blob_path(digest);
        open_regular(&self.dir, &path).map_err(FsError::at("open", self.path.join(&path)))
    }

    /// Reads a manifest; `None`: it is missing, damaged or has an unsupported media type.
    pub(crate) fn manifest(&self, digest: Digest) -> Result<Option<Manifest>, FsError> {
        Ok(self.read(digest)?.and_then(|bytes| Manifest::parse_unannounced(&bytes).ok()))
    }

    /// Reads a manifest or config; `None`: it is missing, damaged or larger than [`MANIFEST_LIMIT`].
    pub(crate) fn read(&self, digest: Digest) -> Result<Option<Vec<u8>>, FsError> {
        if self.size(digest)?.is_none_or(|size| size > MANIFEST_LIMIT) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let read = self.blob(digest)?.take(MANIFEST_LIMIT).read_to_end(&mut bytes);
        read.map_err(FsError::at("read", self.path.join(blob_path(digest))))?;
        Ok((Digest::of(&bytes) == digest).then_some(bytes))
    }

    /// Reads the links of all repositories.
    pub(crate) fn repositories(&self) -> Result<Repositories, FsError> {
        let mut repositories = Repositories::default();
        let base = format!("{BASE}/repositories");
        let mut stack = vec![String::new()];
        while let Some(name) = stack.pop() {
            let directory = below(&base, &name);
            // `_layers`, `_manifests` and `_uploads` make a directory a repository; all others are parts of
            // names.
            let (parts, names): (Vec<_>, Vec<_>) = self
                .directories(&directory, &mut repositories.irregular)?
                .into_iter()
                .partition(|name| name.starts_with('_'));
            if !parts.is_empty() {
                let repository = self.repository(&directory, &mut repositories.irregular)?;
                repositories.by_name.insert(name.clone(), repository);
            }
            stack.extend(names.iter().map(|child| below(&name, child)));
        }
        Ok(repositories)
    }

    fn repository(&self, directory: &str, irregular: &mut Vec<PathBuf>) -> Result<Repository, FsError> {
        let mut repository = Repository::default();
        for tag in self.directories(&format!("{directory}/_manifests/tags"), irregular)? {
            let digest = self.link(&format!("{directory}/_manifests/tags/{tag}/current/link"))?;
            repository.named.extend(digest);
            repository.tags.insert(tag, digest);
        }
        for (part, digests) in
            [("_manifests/revisions", &mut repository.revisions), ("_layers", &mut repository.layers)]
        {
            let parent = format!("{directory}/{part}/sha256");
            for hex in self.directories(&parent, irregular)? {
                let Ok(digest) = Digest::from_hex(&hex) else { continue };
                digests.insert(digest);
                repository.named.insert(digest);
                repository.named.extend(self.link(&format!("{parent}/{hex}/link"))?);
            }
        }
        Ok(repository)
    }

    /// Reads a link file; `None`: it is missing or invalid.
    fn link(&self, path: &str) -> Result<Option<Digest>, FsError> {
        let mut text = Vec::new();
        match open_regular(&self.dir, path).and_then(|file| file.take(LINK_LIMIT).read_to_end(&mut text)) {
            Ok(_) => Ok(std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok())),
            Err(error) if is_missing(&error) || error.kind() == io::ErrorKind::IsADirectory => Ok(None),
            Err(error) => Err(FsError::at("read", self.path.join(path))(error)),
        }
    }

    /// Returns the sorted names of subdirectories; none if `directory` is missing. Adds symlinks, special files
    /// and names that no [`RelPath`] can have to `irregular`.
    fn directories(&self, directory: &str, irregular: &mut Vec<PathBuf>) -> Result<Vec<String>, FsError> {
        let at = || FsError::at("list", self.path.join(directory));
        let entries = match self.dir.read_dir(directory) {
            Err(error) if is_missing(&error) => return Ok(Vec::new()),
            entries => entries.map_err(at())?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at())?;
            let kind = entry.file_type().map_err(at())?;
            match entry.file_name().into_string() {
                Ok(name) if kind.is_dir() && RelPath::parse(&name).is_ok() => names.push(name),
                Ok(_) if kind.is_file() => {}
                name => {
                    let name = name.map_or_else(PathBuf::from, PathBuf::from);
                    irregular.push(self.path.join(directory).join(name));
                }
            }
        }
        names.sort();
        Ok(names)
    }
}

fn below(directory: &str, name: &str) -> String {
    match (directory, name) {
        ("", name) => name.to_owned(),
        (directory, "") => directory.to_owned(),
        (directory, name) => format!("{directory}/{name}"),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
