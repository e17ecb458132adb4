//! Locks and lists as arguments: [`read_lock`], [`is_list`].

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use crate::base::fs::{self, FsError};
use crate::bundle::format::INDEX_LIMIT;
use crate::bundle::read::discover;
use crate::cli::exit::{Code, Failure};
use crate::documents::list::{ListError, NAMES};
use crate::documents::lock::Lock;

/// Reads `path` if it is a lock. `None`: not a lock, or not readable.
pub(super) fn read_lock(path: &Path) -> Result<Option<Lock>, Failure> {
    // A list can be a pipe, which can be read only once. If the file cannot be read, reading it as a list
    // reports that.
    if !path.is_file() || !start(path).is_ok_and(|start| Lock::is_one(&start)) {
        return Ok(None);
    }
    let bytes = fs::read(path, INDEX_LIMIT)?;
    let lock = Lock::parse(&bytes).map_err(|error| {
        Failure::from(error).context(format_args!("cannot read the lock `{}`", path.display()))
    })?;
    Ok(Some(lock))
}

/// True for a list, or a directory with lists and without a bundle.
pub(super) fn is_list(path: &Path) -> Result<bool, FsError> {
    if fs::is_directory(path)? {
        return Ok(NAMES.iter().any(|name| path.join(name).is_file()) && !discover::is_bundle(path));
    }
    if !path.is_file() {
        return Ok(false);
    }
    let start = start(path).map_err(FsError::at("read", path))?;
    let text = start.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    // The last character may be cut.
    Ok(start.len() - text.len() < 4 && !text.contains('\0'))
}

/// Reads the start of a file, which tells a lock, a list and a bundle apart: no text has the first bytes of a frame.
fn start(path: &Path) -> io::Result<Vec<u8>> {
    const LENGTH: u64 = 64;
    let mut start = Vec::new();
    File::open(path)?.take(LENGTH).read_to_end(&mut start)?;
    Ok(start)
}

impl From<ListError> for Failure {
    fn from(error: ListError) -> Self {
        match error {
            ListError::Problems(problems) => {
                let messages = problems.iter().map(ToString::to_string).collect();
                Self { code: Code::List, messages, hint: None }
            }
            ListError::Read { .. } => Self::of(Code::File, &error),
            error => Self::of(Code::List, &error),
        }
    }
}
