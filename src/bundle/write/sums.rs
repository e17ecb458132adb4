//! `SHA256SUMS`: the checksum list next to the volumes of a bundle.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError, file_name};
use crate::base::output_file::{Access, OutputFile};
use crate::base::own_file::read_regular;
use crate::bundle::format::volume_name::{SUMS, parse_volume_name};
use crate::bundle::write::volume_writer::FinishedVolume;
use crate::oci::digest::Digest;

/// Returns the digests of the volumes of the bundle `target` in the list next to it, by file name.
pub(crate) fn listed(target: &Path) -> BTreeMap<String, Digest> {
    let (bundle, path) = (file_name(target), fs::parent(target).join(SUMS));
    let text = read_regular(&path, u64::MAX).unwrap_or_default();
    let volume = |line: &str| {
        let (digest, name) = line.split_once("  ")?;
        let is_volume = parse_volume_name(name).is_some_and(|(name, _)| name == bundle);
        is_volume.then(|| Some((name.to_owned(), Digest::from_hex(digest).ok()?)))?
    };
    String::from_utf8_lossy(&text).lines().filter_map(volume).collect()
}

/// Returns the line of a file in a checksum list.
pub(crate) fn line(digest: Digest, name: &str) -> String {
    format!("{}  {name}\n", digest.hex())
}

/// Adds `volumes` to the list next to `target`, in the format of `sha256sum`. Replaces earlier lines of the
/// bundle and keeps lines of other files. A list without lines is removed.
pub(crate) fn write_sums(target: &Path, volumes: &[&FinishedVolume]) -> Result<PathBuf, FsError> {
    let path = fs::parent(target).join(SUMS);
    let bundle = file_name(target);
    let is_of_bundle = |line: &str| {
        let name = line.split_once(' ').map(|(_, name)| name.trim_start_matches([' ', '*']));
        name.and_then(parse_volume_name).is_some_and(|(name, _)| name == bundle)
    };
    let old = read_regular(&path, u64::MAX).unwrap_or_default();
    let mut text = String::new();
    for line in String::from_utf8_lossy(&old).lines().filter(|line| !is_of_bundle(line)) {
        text.push_str(line);
        text.push('\n');
    }
    for volume in volumes {
        text.push_str(&line(volume.digest, &file_name(&volume.path)));
    }
    if text.is_empty() {
        fs::remove_file(&path)?;
    } else {
        OutputFile::replace(&path, Access::Default, text.as_bytes())?;
    }
    Ok(path)
}
