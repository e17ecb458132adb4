//! The files of an unfinished bundle: `NAME.partial`, and `NAME.partial.2` and so on for volumes.

use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError};
use crate::bundle::format::volume_name::volume_name;

/// Where the volume `number` of the bundle `target` is.
#[must_use]
pub(crate) fn volume_path(target: &Path, number: u32) -> PathBuf {
    // Not by way of text: what is no UTF-8 keeps its name, too.
    let mut path = target.as_os_str().to_owned();
    path.push(volume_name("", number));
    path.into()
}

/// The files that hold what is being written at `partial`: itself, and one for each further volume.
#[must_use]
pub(crate) fn parts(partial: &Path) -> Vec<PathBuf> {
    let further = (2..).map(|number| part_path(partial, number)).take_while(|path| path.is_file());
    std::iter::once(partial.to_owned()).chain(further).collect()
}

/// How many bytes of what is being written at `partial` there are.
#[must_use]
pub(crate) fn size_of_parts(partial: &Path) -> u64 {
    parts(partial).iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum()
}

/// Removes what is being written at `partial`.
pub(crate) fn remove_parts(partial: &Path) -> Result<(), FsError> {
    remove_parts_from(partial, 2)?;
    fs::remove_file(partial)
}

pub(crate) fn remove_parts_from(partial: &Path, number: u32) -> Result<(), FsError> {
    let Some(name) = partial.file_name().map(|name| name.to_string_lossy().into_owned()) else {
        return Ok(());
    };
    for (path, _) in volumes_of(fs::parent(partial), &name, number)? {
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// The volumes of `bundle` in `directory` whose number is `from` at least.
pub(crate) fn volumes_of(directory: &Path, bundle: &str, from: u32) -> Result<Vec<(PathBuf, u32)>, FsError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(FsError::at("read", directory))? {
        let entry = entry.map_err(FsError::at("read", directory))?;
        let name = entry.file_name();
        let volume = name.to_str().and_then(crate::bundle::format::volume_name::parse_volume_name);
        if let Some((_, number)) = volume.filter(|(of, number)| *of == bundle && *number >= from) {
            found.push((entry.path(), number));
        }
    }
    Ok(found)
}

/// The file of the volume `number` of what is being written at `partial`.
pub(crate) fn part_path(partial: &Path, number: u32) -> PathBuf {
    if number == 1 { partial.to_owned() } else { volume_path(partial, number) }
}
