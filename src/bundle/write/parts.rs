//! The files of an unfinished bundle: `NAME.partial`, and for further volumes `NAME.partial.2` and so on.

use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError};
use crate::bundle::format::volume_name::{parse_volume_name, volume_name};

/// Returns the path of volume `number` of the bundle `target`.
#[must_use]
pub(crate) fn volume_path(target: &Path, number: u32) -> PathBuf {
    fs::with_suffix(target, &volume_name("", number))
}

/// Returns the path of volume `number` of the unfinished bundle `partial`.
pub(crate) fn part_path(partial: &Path, number: u32) -> PathBuf {
    if number == 1 { partial.to_owned() } else { volume_path(partial, number) }
}

/// Returns the paths of all parts of the unfinished bundle `partial`, in order.
#[must_use]
pub(crate) fn parts(partial: &Path) -> Vec<PathBuf> {
    let further = (2..).map(|number| part_path(partial, number)).take_while(|path| path.is_file());
    std::iter::once(partial.to_owned()).chain(further).collect()
}

/// Returns the total size of the unfinished bundle `partial` in bytes.
#[must_use]
pub(crate) fn size_of_parts(partial: &Path) -> u64 {
    parts(partial).iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum()
}

/// Removes all parts of the unfinished bundle `partial`.
pub(crate) fn remove_parts(partial: &Path) -> Result<(), FsError> {
    remove_parts_from(partial, 2)?;
    fs::remove_file(partial)
}

/// Removes the parts of volume `first` and all later volumes.
pub(crate) fn remove_parts_from(partial: &Path, first: u32) -> Result<(), FsError> {
    if partial.file_name().is_none() {
        return Ok(());
    }
    for (path, _) in volumes_of(fs::parent(partial), &fs::file_name(partial), first)? {
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// Returns the volumes of `bundle` in `directory` with number `first` or higher.
pub(crate) fn volumes_of(directory: &Path, bundle: &str, first: u32) -> Result<Vec<(PathBuf, u32)>, FsError> {
    let mut volumes = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(FsError::at("read", directory))? {
        let entry = entry.map_err(FsError::at("read", directory))?;
        let name = entry.file_name();
        let parsed = name.to_str().and_then(parse_volume_name);
        if let Some((_, number)) = parsed.filter(|(name, number)| *name == bundle && *number >= first) {
            volumes.push((entry.path(), number));
        }
    }
    Ok(volumes)
}
