//! Locks and lists as arguments: [`read_lock`].

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::base::fs;
use crate::bundle::format::INDEX_LIMIT;
use crate::cli::exit::{Code, Failure};
use crate::documents::list::ListError;
use crate::documents::lock::Lock;

/// Reads `path` if it is a lock. `None`: not a lock, or not readable.
pub(super) fn read_lock(path: &Path) -> Result<Option<Lock>, Failure> {
    // A list can be a pipe, which can be read only once. If the file cannot be read, reading it as a list
    // reports that.
    let mut start = Vec::new();
    if !path.is_file()
        || File::open(path).and_then(|file| file.take(64).read_to_end(&mut start)).is_err()
        || !Lock::is_one(&start)
    {
        return Ok(None);
    }
    let bytes = fs::read(path, INDEX_LIMIT)?;
    let lock = Lock::parse(&bytes).map_err(|error| {
        Failure::from(error).context(format_args!("cannot read the lock `{}`", path.display()))
    })?;
    Ok(Some(lock))
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
