//! [`SignedIndex`]: the documents and the signatures of an unpacked bundle, which the site keeps in
//! `SITE/bundles`.
//!
//! `site.json` follows from them. A host with trusted keys verifies them again, so that a user who carries
//! or stores a site cannot add to it: `SITE/bundles/<hex>/` has `index.json`, `files.json` (the file set) and the
//! signatures `1.minisig`, `2.minisig`, … of the bundle with this identity.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::Dir;

use crate::base::fs::{FsError, read_limited};
use crate::base::path::RelPath;
use crate::bundle::format::index::{FileSet, Index};
use crate::bundle::format::release::{ReleaseName, Sequence};
use crate::bundle::format::{INDEX_LIMIT, MANIFESTS_LIMIT};
use crate::bundle::read::reader::Contents;
use crate::oci::digest::Digest;
use crate::signature::SIGNATURE_LIMIT;
use crate::signature::policy::{NamedSignature, Policy, SignatureError};
use crate::site::root::{Root, RootError, Stagings, open_existing};

/// The directory of the kept bundles in the directory of the site. It is not served.
pub(crate) const BUNDLES: &str = "bundles";
const INDEX: &str = "index.json";
const FILES: &str = "files.json";
/// Maximum number of signatures of a bundle.
const SIGNATURES: usize = 64;

/// The documents of an unpacked bundle.
pub(crate) struct SignedIndex {
    /// Its `index.json`.
    pub(crate) index: Index,
    /// Its files.
    pub(crate) files: FileSet,
}

/// The reasons why the documents of a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SignedIndexError {
    /// A file call failed.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// No trusted key signed the bundle.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A document does not match its digest, or cannot be parsed.
    #[error("`{}` is corrupt", .0.display())]
    Corrupt(PathBuf),
}

/// Opens the directory of kept bundles for writing.
pub(crate) fn open(site: &Path, stagings: &mut Stagings) -> Result<Root, RootError> {
    Root::open(&site.join(BUNDLES), site, stagings)
}

/// Keeps the documents and signatures of a bundle. Signatures that the site has already are kept, too.
pub(crate) fn keep(contents: &Contents, root: &Root) -> Result<(), FsError> {
    let directory = contents.identity.hex();
    let path = |name: &str| RelPath::parse(&format!("{directory}/{name}")).expect("plain names");
    let mut is_changed = put(root, &path(INDEX), &contents.index)?;
    let files = contents.file_set.and_then(|digest| contents.manifests.get(&digest));
    if let Some(files) = files {
        is_changed |= put(root, &path(FILES), files)?;
    }
    let mut known = Vec::new();
    for number in 1..=SIGNATURES {
        let Some(bytes) = get(root, &path(&signature_name(number)), SIGNATURE_LIMIT as u64)? else { break };
        known.push(bytes);
    }
    // Signatures that are not verified never replace others.
    let is_verified = contents.signed.as_ref().is_some_and(|signed| signed.trusted);
    let new = contents.signatures.clone();
    let all = if is_verified { [new, known] } else { [known, new] };
    let mut signatures: Vec<Vec<u8>> = Vec::new();
    for bytes in all.into_iter().flatten() {
        if !signatures.contains(&bytes) {
            signatures.push(bytes);
        }
    }
    for (number, signature) in signatures.iter().take(SIGNATURES).enumerate() {
        is_changed |= put(root, &path(&signature_name(number + 1)), signature)?;
    }
    // The record that follows from the documents is written later, and must not be on the disk before them.
    if is_changed { root.staging().sync() } else { Ok(()) }
}

fn signature_name(number: usize) -> String {
    format!("{number}.minisig")
}

/// Writes a file, unless it has this content. Returns true if it did not.
pub(crate) fn put(root: &Root, path: &RelPath, content: &[u8]) -> Result<bool, FsError> {
    if get(root, path, content.len() as u64)?.is_some_and(|old| old == content) {
        return Ok(false);
    }
    let staging = root.staging();
    let name = "document";
    let mut file = staging.create(name)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    written.map_err(FsError::at("write", staging.path(name)))?;
    root.commit(name, path)?;
    Ok(true)
}

/// Reads a file. `None`: it is missing, not a regular file, or longer than `limit` bytes.
fn get(root: &Root, path: &RelPath, limit: u64) -> Result<Option<Vec<u8>>, FsError> {
    let Some(file) = root.open_existing(path)? else { return Ok(None) };
    read(file, limit).map_err(FsError::at("read", root.path(path)))
}

/// Reads a file. `None`: it is longer than `limit` bytes.
fn read(file: impl io::Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    match read_limited(file, limit) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Ok(None),
        bytes => bytes.map(Some),
    }
}

/// Removes the documents of all bundles except `kept`, and except the newest bundle of each name: it tells
/// which bundles are older.
pub(crate) fn prune(
    site: &Path,
    root: &Root,
    kept: &BTreeSet<Digest>,
    policy: &Policy,
) -> Result<(), FsError> {
    let all = KeptBundles::open(site)?;
    let newest: BTreeSet<Digest> = all.newest(policy)?.into_values().map(|(_, identity)| identity).collect();
    for identity in all.identities()? {
        if !kept.contains(&identity) && !newest.contains(&identity) {
            root.remove_all(&RelPath::parse(&identity.hex()).expect("a plain name"))?;
        }
    }
    Ok(())
}

/// The kept bundles of a site, open for reading.
pub(crate) struct KeptBundles {
    path: PathBuf,
    /// `None`: the site keeps no bundles.
    dir: Option<Dir>,
}

impl KeptBundles {
    pub(crate) fn open(site: &Path) -> Result<Self, FsError> {
        let path = site.join(BUNDLES);
        let dir = match Dir::open_ambient_dir(&path, ambient_authority()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            dir => Some(dir.map_err(FsError::at("open", &path))?),
        };
        Ok(Self { path, dir })
    }

    /// Returns the documents of a bundle whose signatures `policy` accepts. `None`: the site does not keep
    /// them.
    pub(crate) fn read(
        &self,
        identity: Digest,
        policy: &Policy,
    ) -> Result<Option<SignedIndex>, SignedIndexError> {
        let directory = identity.hex();
        let path = |name: &str| format!("{directory}/{name}");
        let Some(index) = self.file(&path(INDEX), INDEX_LIMIT)? else { return Ok(None) };
        let corrupt = |name: &str| SignedIndexError::Corrupt(self.path.join(path(name)));
        if Digest::of(&index) != identity {
            return Err(corrupt(INDEX));
        }
        policy.check(&index, self.signatures(&directory)?)?;
        // Parsed after the signature is verified.
        let index = Index::parse(&index).map_err(|_| corrupt(INDEX))?;
        let files = match index.files {
            None => FileSet::default(),
            Some((digest, _)) => {
                let bytes = self.file(&path(FILES), MANIFESTS_LIMIT)?.unwrap_or_default();
                let set = FileSet::parse(&bytes).ok().filter(|_| Digest::of(&bytes) == digest);
                set.ok_or_else(|| corrupt(FILES))?
            }
        };
        Ok(Some(SignedIndex { index, files }))
    }

    /// Returns the highest sequence number of each name, with the identity of the bundle that has it. Bundles
    /// that `policy` does not accept do not count.
    pub(crate) fn newest(
        &self,
        policy: &Policy,
    ) -> Result<BTreeMap<ReleaseName, (Sequence, Digest)>, FsError> {
        let mut newest = BTreeMap::new();
        for identity in self.identities()? {
            let bundle = match self.read(identity, policy) {
                Err(SignedIndexError::Fs(error)) => return Err(error),
                bundle => bundle.ok().flatten(),
            };
            let Some(release) = bundle.and_then(|bundle| bundle.index.about.release) else { continue };
            let highest = newest.entry(release.name).or_insert((release.sequence, identity));
            *highest = (*highest).max((release.sequence, identity));
        }
        Ok(newest)
    }

    /// Returns the identities of all kept bundles.
    pub(crate) fn identities(&self) -> Result<BTreeSet<Digest>, FsError> {
        let Some(dir) = &self.dir else { return Ok(BTreeSet::new()) };
        let at = || FsError::at("list", &self.path);
        let mut identities = BTreeSet::new();
        for entry in dir.entries().map_err(at())? {
            let name = entry.map_err(at())?.file_name();
            identities.extend(name.to_str().and_then(|name| Digest::from_hex(name).ok()));
        }
        Ok(identities)
    }

    fn signatures(&self, directory: &str) -> Result<Vec<NamedSignature>, FsError> {
        let mut signatures = Vec::new();
        for number in 1..=SIGNATURES {
            let file = format!("{directory}/{}", signature_name(number));
            let Some(bytes) = self.file(&file, SIGNATURE_LIMIT as u64)? else { break };
            let name = format!("the signature `{}`", self.path.join(file).display());
            signatures.push(NamedSignature { name, bytes });
        }
        Ok(signatures)
    }

    /// Reads a regular file. `None`: it is missing, or longer than `limit` bytes.
    fn file(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, FsError> {
        let Some(dir) = &self.dir else { return Ok(None) };
        let shown = || self.path.join(path);
        let Some(file) = open_existing(dir, path, shown)? else { return Ok(None) };
        read(file, limit).map_err(FsError::at("read", shown()))
    }
}
