//! [`Spill`]: a temporary file for repaired blocks, for which there is no memory.
//!
//! To repair one block, its entire group has to be read. Without the file, each group would be read once for every
//! [memory limit](crate::bundle::recovery::cache) of a large gap.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::base::temporary_file;
use crate::bundle::recovery::blocks::read_exact_at;

/// Free space that the file leaves to others, in bytes.
const RESERVE: u64 = 256 << 20;

/// A temporary file for repaired blocks. It is created by the first block, and is optional: if there is no directory or
/// no space, blocks are repaired again.
#[derive(Default)]
pub(super) struct Spill {
    /// `None`: not created yet.
    file: Option<File>,
    /// Number of bytes.
    end: u64,
    /// True after an error.
    has_failed: bool,
}

impl Spill {
    /// A file that cannot be written.
    #[cfg(test)]
    pub(super) fn failed() -> Self {
        Self { file: None, end: 0, has_failed: true }
    }

    /// Number of bytes in the file.
    #[cfg(test)]
    pub(super) fn len(&self) -> u64 {
        self.end
    }

    /// Adds a block. Returns its position, `None` if it cannot be written.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Option<u64> {
        if self.has_failed {
            return None;
        }
        let position = self.end;
        let written = self.write(bytes);
        if written.is_none() {
            self.has_failed = true;
            return None;
        }
        self.end += bytes.len() as u64;
        Some(position)
    }

    fn write(&mut self, bytes: &[u8]) -> Option<()> {
        if self.file.is_none() {
            self.file = Some(temporary_file::create()?);
        }
        let file = self.file.as_ref()?;
        if temporary_file::free_space(file)? < RESERVE + bytes.len() as u64 {
            return None;
        }
        file.write_all_at(bytes, self.end).ok()
    }

    /// Reads a block at a position that [`Self::add`] returned. Returns false if it cannot be read.
    pub(super) fn read(&self, position: u64, bytes: &mut [u8]) -> bool {
        self.file.as_ref().is_some_and(|file| read_exact_at(file, position, bytes).is_ok())
    }
}
