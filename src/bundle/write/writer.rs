//! [`BundleWriter`]: writes a bundle to `NAME.partial`, front to back, and renames it when it is complete.
//!
//! The digests of unpinned files are known only after the download. They occur in the head (`index.json` and
//! the file set) and in the tar headers of large files. The writer reserves space for both and writes them
//! last. The reserved space depends on the lists only, so the bytes of a bundle do not depend on when a
//! digest becomes known.

use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError};
use crate::bundle::format::layout::{blob_name, tar_header};
use crate::bundle::format::seek_table::{self, FrameEntry};
use crate::bundle::format::{BLOCK, FRAME_SIZE, frame, padded};
use crate::bundle::write::accepted::AcceptedVolumes;
use crate::bundle::write::claim::Claim;
use crate::bundle::write::frames::{FrameOutput, FrameRecord};
use crate::bundle::write::head::{BundleHead, frame_entry, padding};
use crate::bundle::write::parts::remove_parts_from;
use crate::bundle::write::parts::volumes_of;
use crate::bundle::write::sums::write_sums;
use crate::bundle::write::volume_writer::{FinishedVolume, VolumeExtent, VolumeOptions, VolumeWriter};
use crate::oci::digest::Digest;

/// Maximum size of a blob that shares a frame with others, in bytes. Larger blobs have their own frames.
pub(crate) const SHARED_LIMIT: usize = FRAME_SIZE - BLOCK;

/// Writes a bundle; see the module.
pub struct BundleWriter {
    output: FrameOutput,
    /// Final path of the bundle.
    target: PathBuf,
    options: WriteOptions,
    /// Tar entries of small blobs for the next shared frame.
    small_entries: Vec<u8>,
    /// The current blob.
    blob: Option<OpenBlob>,
    late_headers: Vec<LateHeader>,
    handed_over: Vec<(VolumeExtent, FinishedVolume)>,
    /// The volumes that the command of `--on-volume` has accepted in earlier runs.
    accepted: AcceptedVolumes,
}

/// The parameters that determine the bytes of a bundle, besides its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOptions {
    /// [Reserved header space](crate::bundle::write::head::header_space) in bytes.
    pub header_space: u64,
    /// Compression level of zstd, 1 to 22.
    pub level: i32,
    /// Volumes and recovery data.
    pub volumes: VolumeOptions,
}

/// A complete bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenBundle {
    /// Digest of `index.json`, the identity of the bundle.
    pub identity: Digest,
    /// Size in bytes.
    pub size: u64,
    /// The volumes that were not handed over before; empty for one file.
    pub volumes: Vec<FinishedVolume>,
    /// Path of the checksum list of the volumes. `None`: one file.
    pub sums: Option<PathBuf>,
}

/// The state of the writer at the end of an earlier run's partial bundle.
#[derive(Default)]
pub(crate) struct ResumePoint {
    /// The valid frames after the head.
    pub(crate) frames: Vec<FrameRecord>,
    /// Tar entries of small blobs for the next shared frame.
    pub(crate) small_entries: Vec<u8>,
    /// The large blob that is incomplete, and the number of its bytes in `frames`.
    pub(crate) blob: Option<(LargeBlob, u64)>,
    pub(crate) late_headers: Vec<LateHeader>,
    /// Offsets of the volumes in the bundle.
    pub(crate) volume_starts: Vec<u64>,
}

/// A tar header of a large blob whose frame is still all zeros.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LateHeader {
    /// Number of the frame.
    pub(crate) frame: usize,
    pub(crate) header: [u8; BLOCK],
}

/// A blob between [`BundleWriter::begin_blob`] and [`BundleWriter::end_blob`].
struct OpenBlob {
    /// `None`: digest and size are not known yet.
    header: Option<[u8; BLOCK]>,
    /// Content that is not in a frame yet.
    buffer: Vec<u8>,
    /// Number of content bytes so far.
    size: u64,
    /// `None`: the blob still fits into a shared frame.
    large: Option<LargeBlob>,
}

/// The frames of a large blob, and the state before it for [`BundleWriter::discard_blob`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LargeBlob {
    /// The first frame that the blob caused: a shared frame that it ended, or the frame of its header.
    pub(crate) first_frame: usize,
    /// The frame of its header.
    pub(crate) header_frame: usize,
    /// The content of the shared frame that it ended; empty if there is none.
    pub(crate) small_entries: Vec<u8>,
}

impl BundleWriter {
    /// Starts a new bundle.
    pub fn create(claim: Claim, options: WriteOptions) -> Result<Self, FsError> {
        remove_parts_from(&claim.partial, 2)?;
        // Without a sync: the bundle is synced when it is complete.
        claim.file.set_len(0).map_err(FsError::at("empty", &claim.partial))?;
        let Claim { file, partial, target } = claim;
        let mut volumes = VolumeWriter::create(file, partial, options.volumes)?;
        // A partial bundle is a valid sequence of frames.
        volumes.append(&options.reserved_space())?;
        if let Some(label) = options.volumes.first_label() {
            volumes.append(&label)?;
        }
        let start = volumes.end();
        Ok(Self::new(FrameOutput::new(volumes, start, Vec::new()), target, options))
    }

    /// Resumes a bundle that an earlier run started with the same options.
    #[cfg_attr(not(feature = "net"), expect(dead_code, reason = "only `pack` resumes a bundle"))]
    pub(crate) fn resume(claim: Claim, options: WriteOptions, point: ResumePoint) -> Result<Self, FsError> {
        let Claim { file, partial, target } = claim;
        let label = options.volumes.first_label().unwrap_or_default();
        let start = options.header_space + label.len() as u64;
        let extents = point.extents(start);
        let mut volumes = VolumeWriter::resume(file, partial, options.volumes, &extents)?;
        // The earlier run may have written the head already.
        volumes.patch(0, &options.reserved_space())?;
        volumes.patch(options.header_space, &label)?;
        let ResumePoint { frames, small_entries, blob, late_headers, .. } = point;
        let blob =
            blob.map(|(large, size)| OpenBlob { header: None, buffer: Vec::new(), size, large: Some(large) });
        let writer = Self::new(FrameOutput::new(volumes, start, frames), target, options);
        Ok(Self { small_entries, blob, late_headers, ..writer })
    }

    fn new(output: FrameOutput, target: PathBuf, options: WriteOptions) -> Self {
        Self {
            output,
            target,
            options,
            small_entries: Vec::new(),
            blob: None,
            late_headers: Vec::new(),
            handed_over: Vec::new(),
            accepted: AcceptedVolumes::default(),
        }
    }

    /// Sets the volumes that the command of `--on-volume` has accepted in earlier runs. They are written and compared, and
    /// do not appear at the output again.
    #[cfg(feature = "net")]
    pub(crate) fn set_accepted(&mut self, accepted: AcceptedVolumes) {
        self.accepted = accepted;
    }

    /// Returns the number of bytes of the tar stream after the head that were passed to the writer.
    #[must_use]
    pub fn position(&self) -> u64 {
        let blob = self.blob.as_ref();
        let blob = blob.map_or(0, |blob| blob.buffer.len() + if blob.large.is_none() { BLOCK } else { 0 });
        self.output.queued_bytes() + (self.small_entries.len() + blob) as u64
    }

    /// Returns the number of these bytes that are written to the file, where they survive the end of the
    /// process.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.output.written_bytes()
    }

    /// Begins a blob. `known` is its digest and size; `None`: they are not known yet.
    pub fn begin_blob(&mut self, known: Option<(Digest, u64)>) {
        assert!(self.blob.is_none(), "a blob inside a blob; please report");
        self.blob = Some(OpenBlob {
            header: known.map(|(digest, size)| tar_header(&blob_name(digest), size)),
            buffer: Vec::new(),
            size: 0,
            large: None,
        });
    }

    /// Writes the next bytes of the blob.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        let blob = self.open_blob();
        blob.size += bytes.len() as u64;
        if blob.large.is_none() {
            if blob.size <= SHARED_LIMIT as u64 {
                blob.buffer.extend_from_slice(bytes);
                return Ok(());
            }
            self.start_large_blob()?;
        }
        self.append(bytes)
    }

    /// Like [`Self::write`], but avoids a copy if `piece` is exactly the content of a frame.
    pub fn write_piece(&mut self, piece: Vec<u8>) -> Result<(), FsError> {
        if self.is_at_frame() && piece.len() == FRAME_SIZE {
            self.open_blob().size += piece.len() as u64;
            return self.compress(piece);
        }
        self.write(&piece)
    }

    /// Writes the next bytes of the blob as `frame`, which must be the output of [`frame::encode`].
    ///
    /// # Panics
    ///
    /// Unless [`Self::is_at_frame`] and the content has the size of a full frame.
    pub fn write_frame(&mut self, frame: Vec<u8>, content_size: usize) -> Result<(), FsError> {
        let is_full_frame = self.is_at_frame() && content_size == FRAME_SIZE;
        assert!(is_full_frame, "a frame in the middle of another; please report");
        self.open_blob().size += content_size as u64;
        self.output.push(content_size, move || frame)
    }

    /// True if the next bytes of the blob start a frame of their own.
    #[must_use]
    pub fn is_at_frame(&self) -> bool {
        self.blob.as_ref().is_some_and(|blob| blob.large.is_some() && blob.buffer.is_empty())
    }

    /// Ends the blob, whose digest is `digest`.
    pub fn end_blob(&mut self, digest: Digest) -> Result<(), FsError> {
        let OpenBlob { header: known, mut buffer, size, large } =
            self.blob.take().expect("`begin_blob` was called; please report");
        let header = tar_header(&blob_name(digest), size);
        assert!(known.is_none_or(|known| known == header), "`{digest}` is another blob; please report");
        let padding = usize::try_from(padded(size) - size).expect("less than a block");
        buffer.resize(buffer.len() + padding, 0);
        if let Some(large) = large {
            if known.is_none() {
                self.late_headers.push(LateHeader { frame: large.header_frame, header });
            }
            return if buffer.is_empty() { Ok(()) } else { self.compress(buffer) };
        }
        if self.small_entries.len() + BLOCK + buffer.len() > FRAME_SIZE {
            self.end_shared_frame()?;
        }
        self.small_entries.extend_from_slice(&header);
        self.small_entries.extend_from_slice(&buffer);
        Ok(())
    }

    /// Ends the manifests. They do not share frames with other blobs, so that a corrupt blob does not affect
    /// them.
    pub fn end_manifests(&mut self) -> Result<(), FsError> {
        self.end_shared_frame()
    }

    /// Discards the current blob.
    pub fn discard_blob(&mut self) -> Result<(), FsError> {
        if let Some(large) = self.blob.take().and_then(|blob| blob.large) {
            self.output.truncate(large.first_frame)?;
            self.small_entries = large.small_entries;
        }
        Ok(())
    }

    /// Completes the volumes that can no longer change, except the first, and renames them to their final
    /// names. The writer does not need them any more: they can be moved or removed.
    pub fn hand_over(&mut self) -> Result<Vec<FinishedVolume>, FsError> {
        self.write_late_headers()?;
        // The current blob can still be discarded, with the shared frame before it.
        let large = self.blob.as_ref().and_then(|blob| blob.large.as_ref());
        let first = large.and_then(|large| self.output.frames().get(large.first_frame));
        let end = first.map_or_else(|| self.output.volumes.end(), |frame| frame.offset);
        let extents: Vec<VolumeExtent> = self.output.volumes.extents(0).skip(1).collect();
        let volumes = self.output.volumes.hand_over(end, &self.target, &self.accepted)?;
        self.handed_over.extend(extents.into_iter().zip(volumes.iter().cloned()));
        Ok(volumes)
    }

    /// Writes the head and the seek table, syncs all files, and renames them to their final names.
    pub fn finish(mut self, head: &BundleHead) -> Result<WrittenBundle, FsError> {
        assert!(self.blob.is_none(), "an unfinished blob; please report");
        self.end_archive()?;
        self.write_late_headers()?;
        let encoded = head.encode(self.options.level, self.options.header_space);
        self.output.volumes.patch(0, &encoded.bytes)?;
        let table = self.seek_table(&encoded.frames)?;

        let Self { output, target, handed_over, accepted, .. } = self;
        let mut writer = output.volumes;
        let table_len = table.len() as u64;
        let size = writer.end() + table_len + writer.recovery_len(table_len);
        let volumes = writer.complete(&table, &target, &accepted)?;
        let mut sums = None;
        if !volumes.is_empty() {
            let mut all: Vec<&FinishedVolume> =
                handed_over.iter().map(|(_, volume)| volume).chain(&volumes).collect();
            all.sort_by_key(|volume| volume.number);
            sums = Some(write_sums(&target, &all)?);
            remove_surplus(&target, all.len())?;
        }
        writer.publish(&target, &volumes)?;
        Ok(WrittenBundle { identity: Digest::of(&head.index), size, volumes, sums })
    }

    /// Writes the end of the tar archive and all pending frames.
    fn end_archive(&mut self) -> Result<(), FsError> {
        const END_LEN: usize = 2 * BLOCK;
        if self.small_entries.len() + END_LEN > FRAME_SIZE {
            self.end_shared_frame()?;
        }
        self.small_entries.resize(self.small_entries.len() + END_LEN, 0);
        self.end_shared_frame()?;
        self.output.drain(0)
    }

    /// Writes the late headers whose frames are in the file already.
    fn write_late_headers(&mut self) -> Result<(), FsError> {
        for late in std::mem::take(&mut self.late_headers) {
            match self.output.frames().get(late.frame).copied() {
                Some(record) => self.output.volumes.patch(record.offset, &frame::store(&late.header))?,
                None => self.late_headers.push(late),
            }
        }
        Ok(())
    }

    /// Returns the frame of the seek table. If the last volume has no space for it, starts another volume.
    fn seek_table(&mut self, head: &[FrameEntry]) -> Result<Vec<u8>, FsError> {
        loop {
            // The table lists the frames of the recovery data, whose number can depend on the length of the
            // table.
            let mut table = self.seek_table_with_tail(head, 0);
            while let next = self.seek_table_with_tail(head, table.len() as u64)
                && next.len() != table.len()
            {
                table = next;
            }
            let len = table.len() as u64;
            if !self.output.volumes.is_full_for(len) {
                return Ok(self.seek_table_with_tail(head, len));
            }
            let last = self.output.frames().last();
            assert!(
                last.is_some_and(|frame| self.output.volumes.is_in_last(frame.offset)),
                "the seek table does not fit into an empty volume; please report"
            );
            self.output.next_volume()?;
        }
    }

    /// Returns the frame of the seek table for a last volume with a tail of `tail` bytes.
    fn seek_table_with_tail(&self, head: &[FrameEntry], tail: u64) -> Vec<u8> {
        let mut table = head.to_vec();
        let mut frames = self.output.frames().iter().peekable();
        let remaining: Vec<VolumeExtent> = self.output.volumes.extents(tail).collect();
        let mut extents: Vec<&VolumeExtent> =
            self.handed_over.iter().map(|(extent, _)| extent).chain(&remaining).collect();
        extents.sort_by_key(|extent| extent.start);
        for extent in extents {
            let end = extent.start + extent.front;
            let mut offset = if extent.start == 0 { self.options.header_space } else { extent.start };
            while offset < end {
                if let Some(frame) = frames.next_if(|frame| frame.offset == offset) {
                    table.push(frame_entry(frame.compressed, frame.decompressed));
                    offset = frame.end();
                    continue;
                }
                // The bytes before the first frame are the label.
                let next = frames.peek().map_or(end, |frame| frame.offset.min(end));
                table.push(frame_entry(usize::try_from(next - offset).expect("a label is small"), 0));
                offset = next;
            }
            table.extend(extent.recovery_frames.iter().map(|len| frame_entry(*len as usize, 0)));
        }
        seek_table::encode(&table)
    }

    fn open_blob(&mut self) -> &mut OpenBlob {
        self.blob.as_mut().expect("`begin_blob` was called; please report")
    }

    /// Writes the frame of the blob's header: the blob no longer fits into a shared frame.
    fn start_large_blob(&mut self) -> Result<(), FsError> {
        let blob = self.open_blob();
        let content = std::mem::take(&mut blob.buffer);
        let header = frame::store(&blob.header.unwrap_or([0; BLOCK]));
        let small_entries = self.small_entries.clone();
        let first_frame = self.output.next_frame();
        self.end_shared_frame()?;
        let large = LargeBlob { first_frame, header_frame: self.output.next_frame(), small_entries };
        self.output.push(BLOCK, move || header)?;
        self.open_blob().large = Some(large);
        self.append(&content)
    }

    /// Splits the content of a large blob into frames.
    fn append(&mut self, mut bytes: &[u8]) -> Result<(), FsError> {
        while !bytes.is_empty() {
            let blob = self.open_blob();
            let (now, later) = bytes.split_at(bytes.len().min(FRAME_SIZE - blob.buffer.len()));
            if blob.buffer.is_empty() {
                blob.buffer.reserve_exact(FRAME_SIZE);
            }
            blob.buffer.extend_from_slice(now);
            bytes = later;
            if blob.buffer.len() == FRAME_SIZE {
                let full = std::mem::take(&mut blob.buffer);
                self.compress(full)?;
            }
        }
        Ok(())
    }

    fn end_shared_frame(&mut self) -> Result<(), FsError> {
        let content = std::mem::take(&mut self.small_entries);
        if content.is_empty() { Ok(()) } else { self.compress(content) }
    }

    fn compress(&mut self, content: Vec<u8>) -> Result<(), FsError> {
        let level = self.options.level;
        self.output.push(content.len(), move || frame::encode(&content, level))
    }
}

impl WriteOptions {
    /// Returns a padding frame that fills the reserved header space.
    fn reserved_space(&self) -> Vec<u8> {
        padding(usize::try_from(self.header_space).expect("a head fits in memory"))
    }
}

impl ResumePoint {
    /// Returns the start of each volume and the end of its last valid frame. `first_end` is the end of a
    /// first volume without frames. Volumes without valid bytes are omitted.
    fn extents(&self, first_end: u64) -> Vec<(u64, u64)> {
        let next_starts = self.volume_starts.iter().skip(1).chain(&[u64::MAX]);
        // Bytes after the last frame of a volume are recovery data.
        let ends = next_starts.map(|next| {
            let last = self.frames.iter().rev().find(|frame| frame.offset < *next);
            last.map_or(first_end, FrameRecord::end)
        });
        self.volume_starts.iter().copied().zip(ends).take_while(|(start, end)| end > start).collect()
    }
}

/// Removes volumes of an earlier bundle at `target` that had more volumes.
fn remove_surplus(target: &Path, volumes: usize) -> Result<(), FsError> {
    let bundle = fs::file_name(target);
    let first = u32::try_from(volumes).unwrap_or(u32::MAX).saturating_add(1);
    volumes_of(fs::parent(target), &bundle, first)?.iter().try_for_each(|(path, _)| fs::remove_file(path))
}
