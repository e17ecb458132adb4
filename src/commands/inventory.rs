//! Lists the blobs and files that a site has, as the base of the next delta.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use rayon::prelude::*;

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::documents::inventory::Inventory;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Descriptor, Manifest};
use crate::site::check::hash;
use crate::site::record::{Record, RecordError};
use crate::site::root::open_regular;
use crate::site::scan::Storage;
use crate::site::verified::{self, SitePolicy};

/// Lists what a later `unpack` finds: blobs in the registry's storage, and files that the record of the site
/// names.
///
/// The digest of a blob is in its path, that of a file in the record. Sizes must match the manifests or the
/// record. With `check`, everything is hashed. Damaged and missing files are omitted, with a warning.
pub(crate) fn scan(
    site: &Path,
    policy: &SitePolicy,
    check: bool,
    report: &dyn Report,
) -> Result<Inventory, RecordError> {
    let record = verified::read(site, policy)?;
    let roots = Roots {
        storage: Storage::open(&record.registry_root(site))?,
        files: Files::open(&record.files_root(site))?,
    };
    report.event(&Event::Stage { name: "looking", bytes: None, objects: None });
    let mut items = roots.blobs(report)?;
    items.extend(roots.files(&record, report)?);
    if check {
        items = roots.verify(items, report)?;
    }
    let (files, blobs): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.file.is_some());
    let sizes = |items: Vec<Item>| -> BTreeMap<Digest, u64> {
        items.into_iter().map(|item| (item.digest, item.size)).collect()
    };
    Ok(Inventory::new(sizes(blobs), sizes(files)))
}

/// A blob or file with the expected size.
struct Item<'a> {
    digest: Digest,
    /// Bytes.
    size: u64,
    /// The path of a file below the root of files. `None`: a blob in the registry's storage.
    file: Option<&'a str>,
}

/// The roots of a site; `None`: the directory does not exist.
struct Roots {
    storage: Option<Storage>,
    files: Option<Files>,
}

impl Roots {
    /// Lists the blobs whose size is the one in a manifest, or that no manifest names.
    fn blobs(&self, report: &dyn Report) -> Result<Vec<Item<'static>>, FsError> {
        let Some(storage) = &self.storage else { return Ok(Vec::new()) };
        let mut items = Vec::new();
        let expected = sizes(storage)?;
        for (digest, size) in storage.blobs()? {
            match expected.get(&digest) {
                Some(expected) if !expected.contains(&size) => {
                    warn(report, &storage.blob_path(digest), "size mismatch");
                }
                _ => items.push(Item { digest, size, file: None }),
            }
        }
        Ok(items)
    }

    /// Lists the recorded files that exist with their recorded size.
    fn files<'a>(&self, record: &'a Record, report: &dyn Report) -> Result<Vec<Item<'a>>, FsError> {
        let Some(root) = &self.files else { return Ok(Vec::new()) };
        let mut items = Vec::new();
        for file in &record.files {
            match root.size(file.path.as_str())? {
                Some(size) if size == file.size => {
                    items.push(Item { digest: file.digest, size, file: Some(file.path.as_str()) });
                }
                Some(_) => warn(report, &root.path.join(&file.path), "size mismatch"),
                None => warn(report, &root.path.join(&file.path), "no such file"),
            }
        }
        Ok(items)
    }

    /// Hashes `items` on all cores, and returns the intact ones.
    fn verify<'a>(&self, items: Vec<Item<'a>>, report: &dyn Report) -> Result<Vec<Item<'a>>, FsError> {
        let bytes = Some(items.iter().map(|item| item.size).sum());
        report.event(&Event::Stage { name: "checking", bytes, objects: Some(items.len() as u64) });
        let verified = items.into_par_iter().map(|item| {
            let (path, digest) = self.hash(&item, report)?;
            let is_intact = digest.map_err(FsError::at("read", &path))? == item.digest;
            if !is_intact {
                warn(report, &path, "digest mismatch");
            }
            Ok(is_intact.then_some(item))
        });
        let verified: Vec<Option<Item>> = verified.collect::<Result<_, FsError>>()?;
        Ok(verified.into_iter().flatten().collect())
    }

    /// Returns the path and the digest of an item.
    fn hash(&self, item: &Item, report: &dyn Report) -> Result<(PathBuf, io::Result<Digest>), FsError> {
        match (item.file, &self.storage, &self.files) {
            (Some(path), _, Some(root)) => {
                let digest = open_regular(&root.dir, path).and_then(|file| hash(&file, report));
                Ok((root.path.join(path), digest))
            }
            (None, Some(storage), _) => {
                Ok((storage.blob_path(item.digest), hash(&storage.blob(item.digest)?, report)))
            }
            _ => unreachable!("an item is below an existing root; please report"),
        }
    }
}

/// The root of files.
struct Files {
    dir: Dir,
    path: PathBuf,
}

impl Files {
    fn open(path: &Path) -> Result<Option<Self>, FsError> {
        match Dir::open_ambient_dir(path, ambient_authority()) {
            Ok(dir) => Ok(Some(Self { dir, path: path.to_owned() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FsError::at("open", path)(error)),
        }
    }

    /// Returns the size of a regular file in bytes; `None`: there is none.
    fn size(&self, file: &str) -> Result<Option<u64>, FsError> {
        match self.dir.symlink_metadata(file) {
            Ok(meta) => Ok(meta.is_file().then(|| meta.len())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(FsError::at("open", self.path.join(file))(error)),
        }
    }
}

/// Returns the sizes in the manifests of a storage. Manifests that other clients pushed can contradict each
/// other.
fn sizes(storage: &Storage) -> Result<HashMap<Digest, Vec<u64>>, FsError> {
    let mut sizes: HashMap<Digest, Vec<u64>> = HashMap::new();
    let mut add = |descriptor: &Descriptor| {
        sizes.entry(descriptor.digest).or_default().push(descriptor.size);
    };
    let repositories = storage.repositories()?.by_name;
    let manifests: BTreeSet<Digest> =
        repositories.into_values().flat_map(|repository| repository.revisions).collect();
    for digest in manifests {
        match storage.manifest(digest)? {
            Some(Manifest::Index(children)) => children.iter().for_each(&mut add),
            Some(Manifest::Image { config, layers }) => {
                std::iter::once(&config).chain(&layers).for_each(&mut add);
            }
            None => {}
        }
    }
    Ok(sizes)
}

fn warn(report: &dyn Report, path: &Path, problem: &str) {
    let message = format!("`{}`: {problem}: omitted; repair it with `unbundle unpack`", path.display());
    report.event(&Event::Warning { message });
}
