//! [`Storage`]: what stands in a registry's storage, whoever has put it there.
//!
//! Nothing here writes. All calls go through a handle of the directory, so that no link leads out of it; what is a link and
//! no file or directory is not followed and told.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, File};

use crate::base::fs::FsError;
use crate::oci::digest::Digest;
use crate::oci::manifest::{MANIFEST_LIMIT, Manifest};
use crate::site::storage::{BASE, blob_path};

/// The most bytes of a link file that are read; a right one has 71.
const LINK_LIMIT: u64 = 100;

/// The storage; see the module.
pub(crate) struct Storage {
    dir: Dir,
    path: PathBuf,
}

/// A repository, as it stands on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Repository {
    /// Its tags, and what each of them is; nothing where that cannot be read.
    pub tags: BTreeMap<String, Option<Digest>>,
    /// Its manifests.
    pub revisions: BTreeSet<Digest>,
    /// Its configs and layers.
    pub layers: BTreeSet<Digest>,
    /// All that its links name, those that name something else than where they stand included.
    pub named: BTreeSet<Digest>,
}

/// All repositories of a storage.
#[derive(Debug, Default)]
pub(crate) struct Repositories {
    /// By name.
    pub by_name: BTreeMap<String, Repository>,
    /// What is neither a file nor a directory: nobody knows what a registry makes of it.
    pub odd: Vec<PathBuf>,
}

impl Storage {
    /// Opens the storage at `root`; nothing if it is not there.
    pub(crate) fn open(root: &Path) -> Result<Option<Self>, FsError> {
        match Dir::open_ambient_dir(root, ambient_authority()) {
            Ok(dir) => Ok(Some(Self { dir, path: root.to_owned() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FsError::at("open", root)(error)),
        }
    }

    /// All blobs with their sizes in bytes.
    pub(crate) fn blobs(&self) -> Result<BTreeMap<Digest, u64>, FsError> {
        let (mut blobs, mut odd) = (BTreeMap::new(), Vec::new());
        let base = format!("{BASE}/blobs/sha256");
        for prefix in self.directories(&base, &mut odd)? {
            for hex in self.directories(&format!("{base}/{prefix}"), &mut odd)? {
                let Ok(digest) = Digest::from_hex(&hex) else { continue };
                if let Some(size) = self.size(digest)?.filter(|_| hex.starts_with(&prefix)) {
                    blobs.insert(digest, size);
                }
            }
        }
        Ok(blobs)
    }

    /// The size in bytes of a blob, if it is there.
    pub(crate) fn size(&self, digest: Digest) -> Result<Option<u64>, FsError> {
        let path = blob_path(digest);
        match self.dir.symlink_metadata(&path) {
            Ok(meta) => Ok(meta.is_file().then(|| meta.len())),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(FsError::at("open", self.path.join(&path))(error)),
        }
    }

    /// Where a blob is, for messages.
    #[must_use]
    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.path.join(blob_path(digest))
    }

    /// Opens a blob that is there.
    pub(crate) fn blob(&self, digest: Digest) -> Result<File, FsError> {
        let path = blob_path(digest);
        self.dir.open(&path).map_err(FsError::at("open", self.path.join(&path)))
    }

    /// The manifest with this digest; nothing where it is missing, damaged, or none that this program reads.
    pub(crate) fn manifest(&self, digest: Digest) -> Result<Option<Manifest>, FsError> {
        Ok(self.read(digest)?.and_then(|bytes| Manifest::parse_unannounced(&bytes).ok()))
    }

    /// The bytes of a manifest or a config; nothing where it is missing, damaged, or larger than those are.
    pub(crate) fn read(&self, digest: Digest) -> Result<Option<Vec<u8>>, FsError> {
        if self.size(digest)?.is_none_or(|size| size > MANIFEST_LIMIT) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let read = self.blob(digest)?.take(MANIFEST_LIMIT).read_to_end(&mut bytes);
        read.map_err(FsError::at("read", self.path.join(blob_path(digest))))?;
        Ok((Digest::of(&bytes) == digest).then_some(bytes))
    }

    /// All repositories.
    pub(crate) fn repositories(&self) -> Result<Repositories, FsError> {
        let mut found = Repositories::default();
        let base = format!("{BASE}/repositories");
        let mut stack = vec![String::new()];
        while let Some(name) = stack.pop() {
            let directory = below(&base, &name);
            let (parts, names): (Vec<_>, Vec<_>) = self
                .directories(&directory, &mut found.odd)?
                .into_iter()
                .partition(|name| name.starts_with('_'));
            if !parts.is_empty() {
                let repository = self.repository(&directory, &mut found.odd)?;
                found.by_name.insert(name.clone(), repository);
            }
            stack.extend(names.iter().map(|child| below(&name, child)));
        }
        Ok(found)
    }

    fn repository(&self, directory: &str, odd: &mut Vec<PathBuf>) -> Result<Repository, FsError> {
        let mut repository = Repository::default();
        for tag in self.directories(&format!("{directory}/_manifests/tags"), odd)? {
            let digest = self.link(&format!("{directory}/_manifests/tags/{tag}/current/link"))?;
            repository.named.extend(digest);
            repository.tags.insert(tag, digest);
        }
        for (place, digests) in
            [("_manifests/revisions", &mut repository.revisions), ("_layers", &mut repository.layers)]
        {
            let place = format!("{directory}/{place}/sha256");
            for hex in self.directories(&place, odd)? {
                let Ok(digest) = Digest::from_hex(&hex) else { continue };
                digests.insert(digest);
                repository.named.insert(digest);
                repository.named.extend(self.link(&format!("{place}/{hex}/link"))?);
            }
        }
        Ok(repository)
    }

    /// What a link file names, if it is one.
    fn link(&self, path: &str) -> Result<Option<Digest>, FsError> {
        let mut text = Vec::new();
        match self.dir.open(path).and_then(|file| file.take(LINK_LIMIT).read_to_end(&mut text)) {
            Ok(_) => Ok(std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok())),
            Err(error) if is_missing(&error) || error.kind() == io::ErrorKind::IsADirectory => Ok(None),
            Err(error) => Err(FsError::at("read", self.path.join(path))(error)),
        }
    }

    /// The directories in a directory, sorted; none if it is not there.
    fn directories(&self, directory: &str, odd: &mut Vec<PathBuf>) -> Result<Vec<String>, FsError> {
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
                Ok(name) if kind.is_dir() => names.push(name),
                Ok(_) if kind.is_file() => {}
                name => {
                    let name = name.map_or_else(PathBuf::from, PathBuf::from);
                    odd.push(self.path.join(directory).join(name));
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
