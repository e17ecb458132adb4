//! [`Buffers`]: memory for frames, used again and again.
//!
//! Memory that a process has not used before costs it a page fault every 4 KiB, and an allocator gives blocks of this
//! size back to the system as soon as they are free: on the way of some gigabytes that takes longer than to copy them.

use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers of one size. There are never more than were in use at once.
#[derive(Clone)]
pub struct Buffers {
    size: usize,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// Bytes, at most as many as its buffers have. It goes back to them when it is dropped.
pub struct Buffer {
    /// All of it, which is longer than what it holds.
    bytes: Vec<u8>,
    len: usize,
    home: Option<Buffers>,
}

impl Buffers {
    /// Buffers for `size` bytes each.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self { size, free: Arc::default() }
    }

    /// An empty buffer.
    #[must_use]
    pub fn take(&self) -> Buffer {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // The zeros come from the system, page by page as they are touched.
        let bytes = free.unwrap_or_else(|| vec![0; self.size]);
        Buffer { bytes, len: 0, home: Some(self.clone()) }
    }
}

impl Buffer {
    /// Adds `bytes`, for which there must be room.
    pub fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Lets `write` fill in `len` bytes, for which there must be room; it says how many it did.
    pub fn fill_in(
        &mut self,
        len: usize,
        write: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let written = write(self.room(len))?;
        self.len += written;
        Ok(written)
    }

    fn room(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.len..][..len]
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { len: bytes.len(), bytes, home: None }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            let bytes = std::mem::take(&mut self.bytes);
            home.free.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        }
    }
}

/// A run of bytes of the tar stream, shared without copying.
#[derive(Clone)]
pub struct Slice {
    pub(crate) content: Arc<Buffer>,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl std::ops::Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.content[self.start..self.end]
    }
}

impl From<Vec<u8>> for Slice {
    fn from(bytes: Vec<u8>) -> Self {
        Self { start: 0, end: bytes.len(), content: Arc::new(bytes.into()) }
    }
}
