//! [`ManifestCache`]: `NAME.partial.manifests`, the manifests that an unfinished run has requested.
//!
//! Registries limit the requests for manifests, and a run that reaches the limit has no bundle yet that could contain
//! them. The file is a sequence of records: the length (8 bytes, little-endian), then the bytes. It is untrusted: a
//! manifest is identified by the digest of its bytes, and the first invalid length ends the file. So it is never
//! synced; after a power failure, fewer manifests are usable.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use crate::base::fs::{self, FsError};
use crate::base::own_file::{open_or_create, open_regular};
use crate::bundle::format::MANIFESTS_LIMIT;
use crate::oci::digest::Digest;
use crate::oci::manifest::MANIFEST_LIMIT;

/// The manifests that an unfinished run has requested; see the module.
pub(crate) struct ManifestCache {
    path: PathBuf,
    /// The manifests of the earlier run.
    manifests: HashMap<Digest, Vec<u8>>,
    state: Mutex<CacheState>,
}

struct CacheState {
    /// The digests of all manifests in the file.
    digests: HashSet<Digest>,
    /// The file, at the end of its last valid record. `None`: not created yet.
    file: Option<File>,
    /// True after a write error, usually a full disk. The cache is optional, so the error is not reported.
    has_failed: bool,
}

impl ManifestCache {
    /// Reads the manifests of an earlier run with the unfinished bundle `partial`.
    pub(crate) fn open(partial: &Path) -> Result<Self, FsError> {
        let path = path(partial);
        let mut state = CacheState { digests: HashSet::new(), file: None, has_failed: false };
        let mut manifests = HashMap::new();
        // Not created before the first manifest: a run without images needs none.
        if open_regular(&path).is_ok() {
            let file = open_or_create(&path)?;
            manifests = read(&file).map_err(FsError::at("read", &path))?;
            state.digests.extend(manifests.keys());
            state.file = Some(file);
        }
        Ok(Self { path, manifests, state: Mutex::new(state) })
    }

    /// Returns the manifests of the earlier run.
    #[must_use]
    pub(crate) fn manifests(&self) -> &HashMap<Digest, Vec<u8>> {
        &self.manifests
    }

    /// Adds a manifest.
    pub(crate) fn add(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let digest = Digest::of(bytes);
        if state.has_failed || !state.digests.insert(digest) {
            return;
        }
        state.has_failed = state.append(&self.path, bytes).is_err();
    }

    fn lock(&self) -> MutexGuard<'_, CacheState> {
        self.state.lock().expect("nothing panics while it holds the cache; please report")
    }
}

/// Reads all valid records, and removes what follows them.
fn read(mut file: &File) -> io::Result<HashMap<Digest, Vec<u8>>> {
    let mut manifests = HashMap::new();
    let mut reader = BufReader::new(file);
    let mut end = 0;
    let mut left = MANIFESTS_LIMIT;
    loop {
        let mut length = [0; 8];
        if reader.read_exact(&mut length).is_err() {
            break;
        }
        let length = u64::from_le_bytes(length);
        let Some(rest) = left.checked_sub(length).filter(|_| (1..=MANIFEST_LIMIT).contains(&length)) else {
            break;
        };
        let mut bytes = Vec::new();
        if reader.by_ref().take(length).read_to_end(&mut bytes)? as u64 != length {
            break; // the writing process was killed
        }
        manifests.insert(Digest::of(&bytes), bytes);
        (left, end) = (rest, end + 8 + length);
    }
    file.set_len(end)?;
    file.seek(SeekFrom::Start(end))?;
    Ok(manifests)
}

impl CacheState {
    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(open_or_create(path).map_err(|error| error.source)?),
        };
        let record = [&(bytes.len() as u64).to_le_bytes(), bytes].concat();
        file.write_all(&record)
    }
}

/// Returns the path of the manifests of the unfinished bundle `partial`.
#[must_use]
pub(crate) fn path(partial: &Path) -> PathBuf {
    fs::with_suffix(partial, ".manifests")
}

/// Removes the manifests of the unfinished bundle `partial`.
pub(crate) fn remove(partial: &Path) -> Result<(), FsError> {
    fs::remove_file(&path(partial))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_of_a_killed_run_are_found_up_to_the_torn_record() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join("b.partial");
        let cache = ManifestCache::open(&partial).unwrap();
        assert!(cache.manifests().is_empty() && !path(&partial).exists());
        for text in ["one", "two", "one"] {
            cache.add(text.as_bytes());
        }
        drop(cache);
        let mut bytes = std::fs::read(path(&partial)).unwrap();
        assert_eq!(bytes.len(), 2 * (8 + 3));
        bytes.extend_from_slice(&[9, 0, 0, 0, 0, 0, 0, 0, b't']);
        std::fs::write(path(&partial), &bytes).unwrap();

        let cache = ManifestCache::open(&partial).unwrap();
        assert_eq!(cache.manifests()[&Digest::of(b"two")], b"two");
        assert!(!cache.manifests().contains_key(&Digest::of(b"t")));
        cache.add(b"three");
        drop(cache);
        let cache = ManifestCache::open(&partial).unwrap();
        let has = |text: &&str| cache.manifests().contains_key(&Digest::of(text.as_bytes()));
        assert!(["one", "two", "three"].iter().all(has));
        remove(&partial).unwrap();
    }

    #[test]
    fn invalid_lengths_end_the_file() {
        for length in [0, MANIFEST_LIMIT + 1, u64::MAX] {
            let directory = tempfile::tempdir().unwrap();
            let partial = directory.path().join("b.partial");
            let bytes = [&3_u64.to_le_bytes()[..], b"one", &length.to_le_bytes()[..], &[0; 20]].concat();
            std::fs::write(path(&partial), bytes).unwrap();
            let cache = ManifestCache::open(&partial).unwrap();
            assert_eq!(cache.manifests().len(), 1, "{length}");
            assert_eq!(std::fs::read(path(&partial)).unwrap().len(), 11);
        }
    }
}
