//! [`remove_other_form`]: removes an older bundle of the output's name that the new one did not replace.
//!
//! `NAME` can be one file, or the volumes `NAME.001` and so on. Either name must then mean the new bundle.

use std::path::Path;

use crate::base::fs::{self, FsError, file_name};
use crate::bundle::format::seek_table;
use crate::bundle::read::candidate::read_label;
use crate::bundle::write::parts::volumes_of;
use crate::bundle::write::sums::{listed, write_sums};

/// Removes the volumes beside the bundle in one file `output`, or the bundle in one file beside volumes. Files that are
/// no bundles are kept.
pub(super) fn remove_other_form(output: &Path, is_in_volumes: bool) -> Result<(), FsError> {
    if is_in_volumes {
        return if is_bundle(output) { fs::remove_file(output) } else { Ok(()) };
    }
    for (path, _) in volumes_of(fs::parent(output), &file_name(output), 1)? {
        if read_label(&path)?.is_some() {
            fs::remove_file(&path)?;
        }
    }
    if !listed(output).is_empty() {
        write_sums(output, &[])?;
    }
    Ok(())
}

/// True if the file ends as a bundle does.
fn is_bundle(path: &Path) -> bool {
    let file = path.is_file().then(|| fs::open(path).ok()).flatten();
    file.is_some_and(|mut file| seek_table::has_footer(&mut file).unwrap_or(false))
}
