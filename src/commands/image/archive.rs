//! [`ImageArchive`]: the tar archive of an image, written at several offsets at once.
//!
//! The size of every layer is known from the start, so each entry has a fixed offset, whatever the order of
//! the blobs in the bundle. An entry is named by its digest, which is known only at its end: its header is
//! written last.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rustix::fs::FallocateFlags;

use crate::base::buffer::Slice;
use crate::base::bulk;
use crate::base::event::Report;
use crate::base::flusher::Flusher;
use crate::base::fs::{self, FsError};
use crate::base::own_file::open_up;
use crate::base::pipeline::Sink;
use crate::bundle::format::layout::{Blob, blob_name, tar_header};
use crate::bundle::format::{BLOCK, padded};
use crate::bundle::write::claim::{Claim, ClaimError};
use crate::oci::digest::{Digest, Hasher};

/// Size in bytes of the write buffer, which gathers small entries of a layer.
const BUFFER: usize = 256 << 10;

/// An archive that is being written. The target appears with [`ImageArchive::finish`]; if the archive is
/// dropped earlier, the partial file is removed.
pub(crate) struct ImageArchive {
    file: Arc<File>,
    partial: Arc<Path>,
    target: PathBuf,
    /// Offset of the next entry in bytes.
    end: u64,
    is_finished: bool,
}

/// Reserved space for an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    /// Offset of the header in bytes.
    header: u64,
    /// Size of the content in bytes.
    size: u64,
}

impl ImageArchive {
    /// Starts an archive that will be at `target`; fails if another process is writing it.
    pub(crate) fn create(target: &Path, report: &dyn Report) -> Result<Self, ClaimError> {
        let Claim { file, partial, target } = Claim::new(target, report)?;
        let archive = Self { file: file.into(), partial: partial.into(), target, end: 0, is_finished: false };
        archive.file.set_len(0).map_err(FsError::at("truncate", &archive.partial))?;
        Ok(archive)
    }

    /// Reserves space for an entry of `size` bytes.
    pub(crate) fn reserve(&mut self, size: u64) -> Slot {
        let slot = Slot { header: self.end, size };
        self.end += BLOCK as u64 + padded(size);
        slot
    }

    /// Allocates the reserved space on the disk, so that a full disk is an error at the start.
    pub(crate) fn allocate(&self) -> Result<(), FsError> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, self.end) {
            // Some file systems do not support it.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => Ok(()),
            result => result.map_err(|error| FsError::at("allocate space for", &self.partial)(error.into())),
        }
    }

    /// Writes the header of a blob.
    pub(crate) fn write_header(&self, slot: Slot, digest: Digest) -> Result<(), FsError> {
        self.write_at(slot.header, &tar_header(&blob_name(digest), slot.size))
    }

    /// Returns a writer of the content of `slot`.
    #[must_use]
    pub(crate) fn content_writer(&self, slot: Slot) -> ContentWriter {
        let offset = slot.header + BLOCK as u64;
        ContentWriter { file: self.file.clone(), path: self.partial.clone(), offset }
    }

    /// Appends an entry.
    pub(crate) fn append(&mut self, name: &str, bytes: &[u8]) -> Result<(), FsError> {
        let slot = self.reserve(bytes.len() as u64);
        self.write_at(slot.header, &tar_header(name, slot.size))?;
        self.write_at(slot.header + BLOCK as u64, bytes)
    }

    /// Appends a blob.
    pub(crate) fn append_blob(&mut self, bytes: &[u8]) -> Result<Blob, FsError> {
        let blob = Blob { digest: Digest::of(bytes), size: bytes.len() as u64 };
        self.append(&blob_name(blob.digest), bytes)?;
        Ok(blob)
    }

    /// Writes the layers from `messages` into `slots`, one after the other. Returns their digests; fewer if
    /// the sender is dropped early.
    pub(crate) fn write_layers(
        &self,
        slots: &[Slot],
        messages: &Receiver<LayerMessage>,
    ) -> Result<Vec<Digest>, FsError> {
        let mut flusher = Flusher::start(&self.file);
        let write_error = || FsError::at("write", &self.partial);
        let mut digests = Vec::new();
        for slot in slots {
            let mut hasher = Hasher::new();
            let mut content = BufWriter::with_capacity(BUFFER, self.content_writer(*slot));
            loop {
                match messages.recv() {
                    Ok(LayerMessage::Data(slice)) => {
                        hasher.update(&slice);
                        content.write_all(&slice).map_err(write_error())?;
                        flusher.wrote(slice.len() as u64);
                    }
                    Ok(LayerMessage::End) => break,
                    Err(_) => return Ok(digests),
                }
            }
            content.flush().map_err(write_error())?;
            assert_eq!(hasher.len(), slot.size, "a layer has its planned size; please report");
            let digest = hasher.finish();
            self.write_header(*slot, digest)?;
            digests.push(digest);
        }
        flusher.finish().map_err(FsError::at("sync", &self.partial))?;
        Ok(digests)
    }

    /// Completes, syncs and renames the archive. Returns its size in bytes.
    pub(crate) fn finish(mut self) -> Result<u64, FsError> {
        let size = self.end + 2 * BLOCK as u64; // the zeros that end a tar archive
        self.file.set_len(size).map_err(FsError::at("write", &self.partial))?;
        let synced = open_up(&self.file).and_then(|()| self.file.sync_all());
        synced.map_err(FsError::at("sync", &self.partial))?;
        fs::rename_durably(&self.partial, &self.target)?;
        self.is_finished = true;
        Ok(size)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        bulk::write_all_at(&self.file, bytes, offset).map_err(FsError::at("write", &self.partial))
    }
}

impl Drop for ImageArchive {
    fn drop(&mut self) {
        if !self.is_finished {
            let _ = fs::remove_file(&self.partial); // the first error is reported
        }
    }
}

/// A part of the layers, in order.
pub(crate) enum LayerMessage {
    /// The next bytes of the layer.
    Data(Slice),
    /// The layer is complete.
    End,
}

/// Writes the content of an entry sequentially.
pub(crate) struct ContentWriter {
    file: Arc<File>,
    path: Arc<Path>,
    /// Offset of the next write in bytes.
    offset: u64,
}

impl Write for ContentWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bulk::piece(bytes), self.offset)?;
        self.offset += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The sink of a blob that is hashed and, if it is an entry of its own, written.
pub(crate) struct BlobSink(pub Option<ContentWriter>);

impl Sink for BlobSink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        match &mut self.0 {
            Some(content) => content.write_all(bytes).map_err(FsError::at("write", &content.path)),
            None => Ok(()),
        }
    }
}
