//! [`Validators`]: `.NAME.validators.json`, by which the next run recognizes unpinned files that did not change.
//!
//! A validator is an entity tag or a time of the last change (RFC 9110, section 8.8). The bundle itself does not
//! contain them, because they depend on the server that a file came from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::fs::{self, FsError};
use crate::base::json::pretty;
use crate::base::output_file::{Access, OutputFile};
use crate::base::own_file::{distrust, read_regular};
use crate::bundle::format::INDEX_LIMIT;
use crate::bundle::format::layout::Blob;
use crate::documents::list::FileEntry;
use crate::fetch::endpoint::FileEndpoint;
use crate::fetch::web::{FileVersion, RemoteFile};
use crate::oci::digest::Digest;

/// The only version so far.
const FORMAT: u32 = 1;

/// The validators of the unpinned files of a bundle; see the module.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Validators {
    format: u32,
    /// By the path of the file on the site.
    files: BTreeMap<String, ValidatedFile>,
}

/// A file and its version.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ValidatedFile {
    /// The URL that it was fetched from, without its query.
    url: String,
    /// Name of the entry in its list: another query is another file.
    entry: String,
    #[serde(flatten)]
    version: FileVersion,
    size: u64,
    digest: Digest,
}

impl Validators {
    /// Reads the validators of the bundle `output`. If there are none, none that can be read, or if another user could
    /// have written them, all unpinned files are fetched.
    pub(super) fn read(output: &Path) -> Self {
        let path = path(output);
        let is_own = distrust(&path).is_ok_and(|distrust| distrust.is_none());
        let bytes = if is_own { read_regular(&path, INDEX_LIMIT).unwrap_or_default() } else { Vec::new() };
        let parsed: Option<Self> = serde_json::from_slice(&bytes).ok();
        parsed.filter(|validators| validators.format == FORMAT).unwrap_or_default()
    }

    /// Returns the content of a file that has the same version on the same server as it had then. `None`: not known.
    pub(super) fn blob(&self, entry: &FileEntry, remote: &RemoteFile) -> Option<Blob> {
        let file = self.files.get(entry.path.as_str())?;
        let is_same = (&file.url, &file.entry) == (&source(remote)?, &entry.name())
            && remote.version().as_ref() == Some(&file.version)
            && remote.size.is_none_or(|size| size == file.size);
        is_same.then_some(Blob { digest: file.digest, size: file.size })
    }

    /// Adds a file whose content is `blob`, if its server states a version.
    pub(super) fn add(&mut self, entry: &FileEntry, remote: &RemoteFile, blob: Blob) {
        if let (Some(url), Some(version)) = (source(remote), remote.version()) {
            let Blob { digest, size } = blob;
            let file = ValidatedFile { url, entry: entry.name(), version, size, digest };
            self.files.insert(entry.path.to_string(), file);
        }
    }

    /// Writes the validators of the bundle `output`, unless they are there already. Removes the file if there are none.
    pub(super) fn write(mut self, output: &Path) -> Result<(), FsError> {
        self.format = FORMAT;
        let path = path(output);
        if self.files.is_empty() {
            return fs::remove_file(&path);
        }
        let text = pretty(&self);
        if OutputFile::is_current(&path, &text) {
            return Ok(());
        }
        OutputFile::replace(&path, Access::Default, &text)
    }
}

/// Returns the URL of a file at its first endpoint, without its query, which may be a secret.
fn source(remote: &RemoteFile) -> Option<String> {
    remote.endpoints.first().map(FileEndpoint::name)
}

fn path(output: &Path) -> PathBuf {
    // Hidden: `NAME.*` are the volumes.
    output.with_file_name(format!(".{}.validators.json", fs::file_name(output)))
}
