//! Reads detached signatures: files next to a bundle, named `NAME.minisig` or `NAME.KEYID.minisig`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError};
use crate::bundle::read::volume_set::VolumeSet;
use crate::signature::policy::{NamedSignature, Policy};
use crate::signature::{KeyId, SIGNATURE_LIMIT};

/// The extension of a detached signature.
const EXTENSION: &str = "minisig";

/// Maximum number of detached signatures that are read.
const LIMIT: usize = 64;

/// Reads the detached signatures of a bundle. Without trusted keys, unreadable files are ignored.
pub(crate) fn read(volumes: &VolumeSet, policy: &Policy) -> Result<Vec<NamedSignature>, FsError> {
    let mut signatures = Vec::new();
    for path in find(volumes.name(), volumes.directories()) {
        match fs::read(&path, SIGNATURE_LIMIT as u64) {
            Err(_) if !policy.is_enforced() => {}
            bytes => signatures
                .push(NamedSignature { name: format!("the signature `{}`", path.display()), bytes: bytes? }),
        }
    }
    Ok(signatures)
}

/// Returns the file name of the detached signature of the bundle `name` by `key`.
#[must_use]
pub(crate) fn file_name(name: &str, key: KeyId) -> String {
    format!("{name}.{key}.{EXTENSION}")
}

/// Returns the paths of the detached signatures of the bundle `name`, the one without key ID first. An
/// unreadable directory has none.
fn find(name: &str, directories: &[PathBuf]) -> Vec<PathBuf> {
    let plain = format!("{name}.{EXTENSION}");
    let mut paths: Vec<PathBuf> =
        directories.iter().map(|directory| directory.join(&plain)).filter(|path| path.is_file()).collect();
    for directory in directories {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names: BTreeSet<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|file| is_by_key(file, name))
            .collect();
        paths.extend(names.into_iter().map(|name| directory.join(name)).filter(|path| path.is_file()));
    }
    paths.truncate(LIMIT);
    paths
}

/// True if `file` is `NAME.KEYID.minisig`.
fn is_by_key(file: &str, name: &str) -> bool {
    let rest = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
    let id = rest.and_then(|rest| rest.strip_suffix(EXTENSION)?.strip_suffix('.'));
    id.is_some_and(|id| id.parse::<KeyId>().is_ok())
}
