//! [`Buffers`]: a pool of reusable memory buffers for frames.
//!
//! Fresh memory costs a page fault every 4 KiB, and an allocator returns blocks of this size to the system as
//! soon as they are freed. Over gigabytes of frames, that takes longer than copying the bytes.

use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// A pool of buffers of one size. It never holds more buffers than were in use at the same time.
#[derive(Clone)]
pub struct Buffers {
    size: usize,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// Bytes in memory of a pool. The memory returns to the pool when the buffer is dropped.
pub struct Buffer {
    /// The full capacity; only the first `len` bytes are content.
    bytes: Vec<u8>,
    len: usize,
    /// `None` for memory that is not from a pool.
    pool: Option<Buffers>,
}

impl Buffers {
    /// Creates a pool of buffers with a capacity of `size` bytes.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self { size, free: Arc::default() }
    }

    /// Returns an empty buffer: a free one, or a new one.
    #[must_use]
    pub fn get(&self) -> Buffer {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // Zeroed memory costs nothing until a page is touched: the system provides it page by page.
        let bytes = free.unwrap_or_else(|| vec![0; self.size]);
        Buffer { bytes, len: 0, pool: Some(self.clone()) }
    }
}

impl Buffer {
    /// Appends `bytes`. Panics if they exceed the capacity.
    pub fn push(&mut self, bytes: &[u8]) {
        self.unused(bytes.len()).copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends up to `len` bytes: `write` fills them in and returns how many it wrote. Panics if `len`
    /// exceeds the capacity.
    pub fn fill_in(
        &mut self,
        len: usize,
        write: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let written = write(self.unused(len))?;
        self.len += written;
        Ok(written)
    }

    fn unused(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.len..][..len]
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { len: bytes.len(), bytes, pool: None }
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
        if let Some(pool) = &self.pool {
            let bytes = std::mem::take(&mut self.bytes);
            pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        }
    }
}

/// A range of a shared buffer, cloned without copying the bytes.
#[derive(Clone)]
pub struct Slice {
    pub(crate) content: Arc<Buffer>,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Deref for Slice {
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
