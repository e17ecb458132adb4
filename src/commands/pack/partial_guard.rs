//! [`PartialGuard`]: removes or keeps the partial bundle of a failed run.

use std::fs::File;
use std::path::PathBuf;

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::units::human_bytes;
use crate::bundle::write::claim::{Claim, old_paths};
use crate::bundle::write::parts::{remove_parts, size_of_parts};
use crate::bundle::write::{accepted, manifest_cache, spool};
use crate::commands::pack::error::PackError;
use crate::net::error::FetchError;

/// Removes or keeps the partial bundle of a failed run when it is dropped.
pub(super) struct PartialGuard<'a> {
    partial: PathBuf,
    report: &'a dyn Report,
    /// True if the next run can reuse the partial bundle.
    pub(super) keep: bool,
    /// True if something could not be fetched, so that the next run needs the manifests that were requested.
    keep_manifests: bool,
    /// True if the bundle is complete.
    is_done: bool,
    /// Prevents another process from writing the partial bundle before it is removed.
    _lock: File,
}

impl<'a> PartialGuard<'a> {
    pub(super) fn new(claim: &Claim, report: &'a dyn Report) -> Result<Self, FsError> {
        let (keep, partial, lock) = (claim.size()? > 0, claim.partial.clone(), claim.lock()?);
        Ok(Self { partial, report, keep, keep_manifests: false, is_done: false, _lock: lock })
    }

    /// Discards the partial bundle, unless `error` is a full disk or a file that is too large, of which nothing was
    /// written: after any other I/O error, the page cache may differ from what is on the disk.
    pub(super) fn failed(&mut self, error: FsError) -> FsError {
        if !error.is_full() && !error.is_too_large() {
            self.keep = false;
        }
        error
    }

    /// Keeps the manifests, and returns the error for entries that could not be fetched.
    pub(super) fn fetch_failed(&mut self, failures: Vec<FetchError>) -> PackError {
        self.keep_manifests = true;
        PackError::Fetch(failures)
    }

    /// Removes everything that only an unfinished bundle needs.
    pub(super) fn remove(&mut self) -> Result<(), FsError> {
        self.is_done = true;
        spool::remove(&self.partial)?;
        manifest_cache::remove(&self.partial)?;
        old_paths(&self.partial).iter().try_for_each(|path| remove_parts(path))
    }

    /// Removes the unfinished bundle and everything that it needs.
    pub(super) fn discard(&mut self) -> Result<(), FsError> {
        self.remove()?;
        self.forget_accepted()?;
        remove_parts(&self.partial)
    }

    /// Removes the record of the volumes that the command of `--on-volume` has accepted, when all of them are handed over.
    pub(super) fn forget_accepted(&self) -> Result<(), FsError> {
        accepted::remove(&self.partial)
    }
}

impl Drop for PartialGuard<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        if self.keep {
            let path = self.partial.display();
            let size = human_bytes(size_of_parts(&self.partial));
            let message = format!("partial bundle kept in `{path}` ({size}): run the same command to resume");
            self.report.event(&Event::Warning { message });
        } else {
            // The run has already failed, and its error is more useful than that of the cleanup.
            let _ = spool::remove(&self.partial);
            let _ = remove_parts(&self.partial);
        }
        if !self.keep && !self.keep_manifests {
            let _ = manifest_cache::remove(&self.partial);
        }
    }
}
