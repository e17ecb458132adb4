//! [`ImageArchive`]: the tar archive of an image, written at several places at once.
//!
//! The size of every layer is known from the start, so each has its place, whatever order the bundle gives the
//! content in. Its name is its digest, which is known at its end: the header is written last.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rustix::fs::FallocateFlags;

use crate::base::buffer::Slice;
use crate::base::flusher::Flusher;
use crate::base::fs::{self, FsError};
use crate::base::pipeline::Sink;
use crate::bundle::format::layout::{Blob, blob_name, tar_header};
use crate::bundle::format::{BLOCK, padded};
use crate::bundle::write::claim::{Claim, ClaimError};
use crate::oci::digest::{Digest, Hasher};

/// How many bytes of small entries are gathered before they are written.
const BUFFER: usize = 256 << 10;

/// An archive that is being written; see the module. Nothing is at its name before [`ImageArchive::finish`], and nothing is
/// left of one that is dropped before.
pub(crate) struct ImageArchive {
    file: Arc<File>,
    partial: Arc<Path>,
    target: PathBuf,
    /// Where the next entry begins.
    end: u64,
    is_finished: bool,
}

/// The place of an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    header: u64,
    /// The size of its content in bytes.
    size: u64,
}

impl ImageArchive {
    /// Begins an archive that will be at `target`; fails if somebody else is writing it.
    pub(crate) fn create(target: &Path) -> Result<Self, ClaimError> {
        let Claim { file, partial, target } = Claim::new(target)?;
        let archive = Self { file: file.into(), partial: partial.into(), target, end: 0, is_finished: false };
        archive.file.set_len(0).map_err(FsError::at("empty", &archive.partial))?;
        Ok(archive)
    }

    /// Keeps a place for an entry of `size` bytes.
    pub(crate) fn reserve(&mut self, size: u64) -> Slot {
        let slot = Slot { header: self.end, size };
        self.end += BLOCK as u64 + padded(size);
        slot
    }

    /// Takes the room for all that was reserved from the file system, so that it is known early when it is too small.
    pub(crate) fn allocate(&self) -> Result<(), FsError> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, self.end) {
            // Not every file system can.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => Ok(()),
            result => result.map_err(|error| FsError::at("take room for", &self.partial)(error.into())),
        }
    }

    /// Writes the header of a blob.
    pub(crate) fn name(&self, slot: Slot, digest: Digest) -> Result<(), FsError> {
        self.write_at(slot.header, &tar_header(&blob_name(digest), slot.size))
    }

    /// A writer of the content of `slot`.
    #[must_use]
    pub(crate) fn content(&self, slot: Slot) -> Content {
        let offset = slot.header + BLOCK as u64;
        Content { file: self.file.clone(), path: self.partial.clone(), offset }
    }

    /// Adds a whole entry.
    pub(crate) fn append(&mut self, name: &str, bytes: &[u8]) -> Result<(), FsError> {
        let slot = self.reserve(bytes.len() as u64);
        self.write_at(slot.header, &tar_header(name, slot.size))?;
        self.write_at(slot.header + BLOCK as u64, bytes)
    }

    /// Adds a whole blob.
    pub(crate) fn append_blob(&mut self, bytes: &[u8]) -> Result<Blob, FsError> {
        let blob = Blob { digest: Digest::of(bytes), size: bytes.len() as u64 };
        self.append(&blob_name(blob.digest), bytes)?;
        Ok(blob)
    }

    /// Writes the layers that come out of `messages`, one after the other, each into its slot. Ends early, with fewer
    /// digests, when nothing more comes.
    pub(crate) fn write_layers(
        &self,
        slots: &[Slot],
        messages: &Receiver<Message>,
    ) -> Result<Vec<Digest>, FsError> {
        let mut flusher = Flusher::start(&self.file);
        let at = || FsError::at("write", &self.partial);
        let mut digests = Vec::new();
        for slot in slots {
            let mut hasher = Hasher::new();
            let mut content = BufWriter::with_capacity(BUFFER, self.content(*slot));
            loop {
                match messages.recv() {
                    Ok(Message::Data(slice)) => {
                        hasher.update(&slice);
                        content.write_all(&slice).map_err(at())?;
                        flusher.wrote(slice.len() as u64);
                    }
                    Ok(Message::End) => break,
                    Err(_) => return Ok(digests),
                }
            }
            content.flush().map_err(at())?;
            assert_eq!(hasher.len(), slot.size, "a layer has another size than was planned; please report");
            let digest = hasher.finish();
            self.name(*slot, digest)?;
            digests.push(digest);
        }
        flusher.finish().map_err(FsError::at("sync", &self.partial))?;
        Ok(digests)
    }

    /// Ends the archive, brings it to the disk and gives it its name. Returns its size in bytes.
    pub(crate) fn finish(mut self) -> Result<u64, FsError> {
        let size = self.end + 2 * BLOCK as u64; // what lies behind the last entry reads as zeros
        self.file.set_len(size).map_err(FsError::at("write", &self.partial))?;
        self.file.sync_all().map_err(FsError::at("sync", &self.partial))?;
        fs::rename_durably(&self.partial, &self.target)?;
        self.is_finished = true;
        Ok(size)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        self.file.write_all_at(bytes, offset).map_err(FsError::at("write", &self.partial))
    }
}

impl Drop for ImageArchive {
    fn drop(&mut self) {
        if !self.is_finished {
            let _ = fs::remove_file(&self.partial); // it already failed, and said why
        }
    }
}

/// What a layer is made of.
pub(crate) enum Message {
    /// The next bytes.
    Data(Slice),
    /// It is complete.
    End,
}

/// Writes the content of an entry, front to back.
pub(crate) struct Content {
    file: Arc<File>,
    path: Arc<Path>,
    offset: u64,
}

impl Write for Content {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.offset)?;
        self.offset += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A blob that is hashed, and copied where it is an entry of its own, too.
pub(crate) struct Copy(pub Option<Content>);

impl Sink for Copy {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        match &mut self.0 {
            Some(content) => content.write_all(bytes).map_err(FsError::at("write", &content.path)),
            None => Ok(()),
        }
    }
}
