//! Taking stock: a site in, its inventory out.

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
use crate::site::scan::Storage;

/// Looks what `site` has. Only what a later `unpack` would find counts: blobs in the registry's storage, and files that
/// the record names.
///
/// A blob has its digest from its path, a file from the record; both must have the size that a manifest or the record
/// says. With `check` everything is hashed, too. What is wrong is left out, with a warning.
pub(crate) fn scan(site: &Path, check: bool, report: &dyn Report) -> Result<Inventory, RecordError> {
    let record = Record::read(site)?;
    let storage = Storage::open(&record.registry_root(site))?;
    let files = Files::open(&record.files_root(site))?;
    report.event(&Event::Stage { name: "looking", bytes: None, objects: None });
    let mut found = Vec::new();
    if let Some(storage) = &storage {
        let sizes = sizes(storage)?;
        for (digest, size) in storage.blobs()? {
            match sizes.get(&digest) {
                Some(right) if !right.contains(&size) => {
                    warn(report, &storage.blob_path(digest), "has another size");
                }
                _ => found.push(ScannedBlobs { digest, size, file: None }),
            }
        }
    }
    for file in record.files.iter().filter_map(|file| Some((file, files.as_ref()?))) {
        let (file, directory) = file;
        match directory.size(&file.path)? {
            Some(found_size) if found_size == file.size => {
                found.push(ScannedBlobs { digest: file.digest, size: file.size, file: Some(&file.path) });
            }
            Some(_) => warn(report, &directory.path.join(&file.path), "has another size"),
            None => warn(report, &directory.path.join(&file.path), "is not there"),
        }
    }
    if check {
        let bytes = Some(found.iter().map(|found| found.size).sum());
        report.event(&Event::Stage { name: "checking", bytes, objects: Some(found.len() as u64) });
        let right = found.par_iter().map(|found| {
            let (path, read) = match (found.file, &storage, &files) {
                (Some(path), _, Some(files)) => {
                    (files.path.join(path), files.dir.open(path).and_then(|file| hash(&file, report)))
                }
                (_, Some(storage), _) => {
                    (storage.blob_path(found.digest), hash(&storage.blob(found.digest)?, report))
                }
                _ => unreachable!("what was found has a place; please report"),
            };
            let right = read.map_err(FsError::at("read", &path))? == found.digest;
            if !right {
                warn(report, &path, "has other bytes");
            }
            Ok(right)
        });
        let right: Vec<bool> = right.collect::<Result<_, FsError>>()?;
        let mut right = right.into_iter();
        found.retain(|_| right.next().unwrap_or(false));
    }
    let of = |is_file: bool| -> BTreeMap<Digest, u64> {
        let found = found.iter().filter(|found| found.file.is_some() == is_file);
        found.map(|found| (found.digest, found.size)).collect()
    };
    Ok(Inventory::new(of(false), of(true)))
}

/// Something that is there.
struct ScannedBlobs<'a> {
    digest: Digest,
    size: u64,
    /// Its path if it is a file, and no blob of the storage.
    file: Option<&'a str>,
}

/// The directory of the files.
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

/// The sizes that the manifests of a storage say. What no manifest names has none; of what some of others have put there,
/// two may say different ones.
fn sizes(storage: &Storage) -> Result<HashMap<Digest, Vec<u64>>, FsError> {
    let mut sizes: HashMap<Digest, Vec<u64>> = HashMap::new();
    let mut note = |descriptor: &Descriptor| {
        sizes.entry(descriptor.digest).or_default().push(descriptor.size);
    };
    let repositories = storage.repositories()?.by_name;
    let manifests: BTreeSet<Digest> =
        repositories.into_values().flat_map(|repository| repository.revisions).collect();
    for digest in manifests {
        match storage.manifest(digest)? {
            Some(Manifest::Index(children)) => children.iter().for_each(&mut note),
            Some(Manifest::Image { config, layers }) => {
                std::iter::once(&config).chain(&layers).for_each(&mut note);
            }
            None => {}
        }
    }
    Ok(sizes)
}

fn warn(report: &dyn Report, path: &Path, what: &str) {
    let message = format!("`{}` {what}: it is left out, and `unbundle unpack` repairs it", path.display());
    report.event(&Event::Warning { message });
}
