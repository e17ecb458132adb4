//! [`HostKeys`]: the trusted and the revoked keys in `/etc/airbundle`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError};
use crate::base::text::escape;
use crate::cli::exit::{Code, Failure};
use crate::signature::revocations::{REVOCATIONS, Revocations};
use crate::signature::{KeyError, KeyId, PublicKey, SIGNATURE_LIMIT};

/// The directory of the keys. If it exists, bundles must be signed.
pub(super) const DIRECTORY: &str = "/etc/airbundle";
/// The file with keys in the directory.
const FILE: &str = "trusted.pub";
/// The directory with further files.
const KEYS_DIRECTORY: &str = "trusted-keys.d";
/// Maximum size of a file with keys, in bytes.
const KEYS_LIMIT: u64 = 1 << 20;
/// Maximum number of file names in an error message.
const NAMES_SHOWN: usize = 8;

/// The keys of a host.
#[derive(Debug, Default)]
pub(super) struct HostKeys {
    /// The trusted keys, revoked ones included.
    pub(super) keys: Vec<PublicKey>,
    /// The IDs of revoked keys.
    pub(super) revoked: BTreeSet<KeyId>,
}

impl HostKeys {
    /// Reads the keys in `directory`. `None`: it does not exist. A directory without a usable key is an error,
    /// because without trusted keys any bundle would be accepted.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, Failure> {
        match directory.symlink_metadata() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FsError::at("open", directory)(error).into()),
        }
        let (top, keys_directory) = (names(directory)?, directory.join(KEYS_DIRECTORY));
        let inner = if top.iter().any(|name| name.as_os_str() == KEYS_DIRECTORY) {
            names(&keys_directory)?
        } else {
            Vec::new()
        };
        let mut files = Vec::new();
        if top.iter().any(|name| name.as_os_str() == FILE) {
            files.push(directory.join(FILE));
        }
        let is_key = |name: &&PathBuf| name.extension() == Some(OsStr::new("pub"));
        files.extend(inner.iter().filter(is_key).map(|name| keys_directory.join(name)));
        if files.is_empty() {
            return Err(no_key(directory, &top, &inner));
        }
        let mut keys = Vec::new();
        for file in &files {
            keys.extend(read_file(file)?);
        }
        let revoked = revoked(&keys_directory, &inner, &keys)?;
        Ok(Some(Self { keys, revoked }))
    }
}

/// Reads a file with keys.
pub(super) fn read_file(path: &Path) -> Result<Vec<PublicKey>, Failure> {
    let bytes = fs::read(path, KEYS_LIMIT)?;
    let keys = std::str::from_utf8(&bytes).map_err(|_| KeyError::Syntax).and_then(PublicKey::parse_all);
    keys.map_err(|error| {
        Failure::new(Code::Usage, format!("cannot read the trusted keys in `{}`: {error}", path.display()))
    })
}

/// True if there is a list of revoked keys, or a signature of one.
pub(super) fn has_revocations(directory: &Path) -> bool {
    let list = directory.join(KEYS_DIRECTORY).join(REVOCATIONS);
    [signature_of(&list), list].iter().any(|path| path.symlink_metadata().is_ok())
}

/// Reads the list of revoked keys, which one of `keys` must have signed.
fn revoked(directory: &Path, names: &[PathBuf], keys: &[PublicKey]) -> Result<BTreeSet<KeyId>, Failure> {
    let list = directory.join(REVOCATIONS);
    let signature = signature_of(&list);
    let has = |path: &Path| names.iter().any(|name| Some(name.as_os_str()) == path.file_name());
    if !has(&list) && !has(&signature) {
        return Ok(BTreeSet::new());
    }
    let bytes = fs::read(&list, KEYS_LIMIT)?;
    let signature = if has(&signature) { Some(fs::read(&signature, SIGNATURE_LIMIT as u64)?) } else { None };
    let revocations = Revocations::verify(&bytes, signature, keys).map_err(|error| {
        let failure = Failure::of(Code::Usage, &error)
            .context(format_args!("cannot use the revoked keys in `{}`", list.display()));
        failure.with_hint("sign the list with `airbundle sign --revoke`")
    })?;
    Ok(revocations.0)
}

/// Returns the path of the signature of a list.
pub(super) fn signature_of(list: &Path) -> PathBuf {
    fs::with_suffix(list, ".minisig")
}

/// Returns the error for a directory without a key file: what it has, and what is expected.
fn no_key(directory: &Path, top: &[PathBuf], inner: &[PathBuf]) -> Failure {
    let inner = inner.iter().map(|name| Path::new(KEYS_DIRECTORY).join(name));
    let names: Vec<PathBuf> = top.iter().cloned().chain(inner).collect();
    let shown: Vec<_> = names
        .iter()
        .take(NAMES_SHOWN)
        .map(|name| {
            let slash = if directory.join(name).is_dir() { "/" } else { "" };
            format!("`{}{slash}`", escape(&name.to_string_lossy()))
        })
        .collect();
    let found = match names.len() {
        0 => "the directory is empty".to_owned(),
        count if count > NAMES_SHOWN => {
            format!("found {} and {} more", shown.join(", "), count - NAMES_SHOWN)
        }
        _ => format!("found {}", shown.join(", ")),
    };
    let directory = directory.display();
    let message = format!("`{directory}` exists and has no trusted key, so no bundle is accepted: {found}");
    Failure::new(Code::Usage, message).with_hint(format!(
        "put public keys into `{directory}/{FILE}` or `{directory}/{KEYS_DIRECTORY}/NAME.pub`, or remove \
         `{directory}` to accept unsigned bundles"
    ))
}

/// Returns the names in a directory, sorted.
fn names(directory: &Path) -> Result<Vec<PathBuf>, FsError> {
    let entries = std::fs::read_dir(directory).map_err(FsError::at("read", directory))?;
    let names = entries.map(|entry| Ok(PathBuf::from(entry?.file_name())));
    let mut names = names.collect::<io::Result<Vec<_>>>().map_err(FsError::at("read", directory))?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir, write};

    use super::*;

    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

    /// Returns the error message for a directory with these files; a name that ends in `/` is a directory.
    fn refused(files: &[(&str, &str)]) -> String {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            if name.ends_with('/') { create_dir(path).unwrap() } else { write(path, text).unwrap() }
        }
        HostKeys::read(directory.path()).unwrap_err().to_string()
    }

    #[test]
    fn a_directory_that_does_not_exist_is_no_policy_and_one_with_a_key_is() {
        let directory = tempfile::tempdir().unwrap();
        assert!(HostKeys::read(&directory.path().join("none")).unwrap().is_none());
        write(directory.path().join(FILE), KEY).unwrap();
        assert_eq!(HostKeys::read(directory.path()).unwrap().unwrap().keys.len(), 1);
    }

    #[test]
    fn a_directory_without_a_usable_key_is_an_error_that_names_what_it_has() {
        let keys = format!("{KEYS_DIRECTORY}/");
        for (files, expected) in [
            (&[][..], "the directory is empty"),
            (&[("release.PUB", KEY)], "found `release.PUB`"),
            (&[("release.pub", KEY)], "found `release.pub`"),
            (&[(&keys, "")], "found `trusted-keys.d/`"),
            (&[(&keys, ""), ("trusted-keys.d/a.PUB", KEY)], "`trusted-keys.d/a.PUB`"),
            (&[("a\u{202e}b\u{1b}", KEY)], "found `a\\u{202e}b"),
            (&[("trusted-keys.d", KEY)], "expected a directory, found a file"),
            (&[("trusted.pub/", "")], "expected a file, found a directory"),
            (&[("trusted.pub", "")], "no key found"),
            (&[("trusted.pub", "junk")], "not a minisign public key"),
            (
                &[("trusted.pub", KEY), (&keys, ""), ("trusted-keys.d/revoked.txt", "")],
                "its first line is not",
            ),
            (&[("trusted.pub", KEY), (&keys, ""), ("trusted-keys.d/revoked.txt.minisig", "")], "revoked.txt"),
            (
                &[
                    ("trusted.pub", KEY),
                    (&keys, ""),
                    ("trusted-keys.d/revoked.txt", "airbundle revoked keys 1\n"),
                ],
                "it is not signed",
            ),
        ] {
            let message = refused(files);
            assert!(message.contains(expected) && !message.contains('\u{1b}'), "{files:?}: {message}");
        }
        assert!(refused(&[("release.PUB", KEY)]).contains("trusted-keys.d/NAME.pub"));
    }
}
