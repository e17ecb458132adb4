//! [`MediaFile`]: recognizes a file on the media.

use std::path::Path;

use crate::base::fs::{self, FsError, file_name};
use crate::bundle::format::seek_table;
use crate::bundle::format::volume_name::parse_volume_name;
use crate::bundle::read::candidate::{Candidate, is_bundle_name, read_label};
use crate::bundle::read::joined;

/// A file that can be a bundle or a part of one.
pub(crate) enum MediaFile {
    /// Volumes: one, or those that were joined into the file.
    Volumes(Vec<Candidate>),
    /// A bundle in one file, as far as its name tells.
    Bundle,
    /// Anything else.
    Other,
}

impl MediaFile {
    /// Recognizes the file at `path`.
    pub(crate) fn of(path: &Path) -> Result<Self, FsError> {
        let name = file_name(path);
        let named = parse_volume_name(&name).map(|(bundle, number)| (bundle.to_owned(), number));
        let label = read_label(path)?;
        let is_bundle_name = is_bundle_name(&name);
        if named.is_none() && (label.is_some() || is_bundle_name) {
            let parts = joined::parts(path)?;
            if !parts.is_empty() {
                return Ok(Self::Volumes(parts));
            }
        }
        if label.is_none() && named.is_none() {
            return Ok(if is_bundle_name { Self::Bundle } else { Self::Other });
        }
        let mut file = fs::open(path)?;
        let len = file.metadata().map_err(FsError::at("read", path))?.len();
        let is_end = seek_table::has_footer(&mut file).unwrap_or(false);
        Ok(Self::Volumes(vec![Candidate { path: path.to_owned(), named, base: 0, len, label, is_end }]))
    }
}
