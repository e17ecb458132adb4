//! [`BundleWriter`]: writes a bundle, front to back, into `NAME.partial`, and gives it its name at the end.
//!
//! Two things are known only when everything has been fetched: the head (`index.json` and the file set name the
//! digests of files that no list pinned), and, for a large such file, its tar header. Room for both is kept,
//! and they are written last. The room depends only on what the lists say, so the bytes do not tell whether a
//! digest was known early or late.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError};
use crate::bundle::format::layout::{blob_name, tar_header};
use crate::bundle::format::skippable::{self, PADDING_MAGIC, SIGNATURE_MAGIC};
use crate::bundle::format::volume_name::{SUMS, parse_volume_name};
use crate::bundle::format::{
    BLOCK, FRAME_SIZE, INDEX_JSON, OCI_LAYOUT, OCI_LAYOUT_CONTENT, frame, padded, seek_table,
};
use crate::bundle::write::claim::Claim;
use crate::bundle::write::frames::{FrameOutput, FrameRecord, sum};
use crate::bundle::write::parts::{remove_parts_from, volumes_of};
use crate::bundle::write::volume_writer::{FinishedVolume, VolumeOptions, VolumeWriter};
use crate::oci::digest::Digest;

/// The documents at the front of a bundle.
pub struct BundleHead {
    /// The bytes of `index.json`.
    pub index: Vec<u8>,
    /// The bytes of the file set's manifest, if there are files.
    pub files: Option<Vec<u8>>,
    /// A signature of `index.json`, if the room for it was kept.
    pub signature: Option<Vec<u8>>,
}

/// Writes a bundle; see the module.
pub struct BundleWriter {
    output: FrameOutput,
    /// Where the bundle will be when it is finished.
    target: PathBuf,
    header_space: u64,
    level: i32,
    /// The small entries gathered for the next frame.
    shared: Vec<u8>,
    /// The entry that is being written.
    entry: Option<OpenEntry>,
    /// Tar headers that could not be written in their turn: the frame and what it is to hold.
    late_headers: Vec<(usize, [u8; BLOCK])>,
    /// The volumes that are gone already, with what the seek table and the list say of them.
    handed_over: Vec<(Extent, FinishedVolume)>,
}

/// Where a volume is in the bundle.
struct Extent {
    start: u64,
    /// Where its recovery data begins, in bytes from its start.
    len: u64,
    /// The sizes of the frames of that.
    recovery: Vec<u32>,
}

/// What the bytes of a bundle depend on beside its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOptions {
    /// How many bytes are kept for the head.
    pub header_space: u64,
    /// zstd's level, 1 to 22.
    pub level: i32,
    /// In how many volumes it is, and with how much recovery data.
    pub carry: VolumeOptions,
}

/// What a finished bundle is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenBundle {
    /// The digest of `index.json`: the identity of the bundle.
    pub identity: Digest,
    /// The size of the bundle in bytes.
    pub size: u64,
    /// The volumes that were not handed over before; nothing for one file.
    pub volumes: Vec<FinishedVolume>,
    /// The list of all volumes.
    pub sums: Option<PathBuf>,
}

/// What an earlier run has written of the same bundle, and how far it came: `partial.rs` finds it.
#[derive(Default)]
pub(crate) struct ResumePoint {
    /// The frames that stay.
    pub(crate) frames: Vec<FrameRecord>,
    /// The small entries that belong into the next frame.
    pub(crate) shared: Vec<u8>,
    /// The large entry that was being written, and how many bytes of it there are.
    pub(crate) entry: Option<(OwnFrames, u64)>,
    /// Tar headers that are still to be written: the frame and what it is to hold.
    pub(crate) late_headers: Vec<(usize, [u8; BLOCK])>,
    /// Where the volumes begin, in bytes from the start of the bundle.
    pub(crate) starts: Vec<u64>,
}

/// An entry between [`BundleWriter::begin`] and its end.
struct OpenEntry {
    /// Its header, where digest and size are known.
    header: Option<[u8; BLOCK]>,
    /// What has come of it and is in no frame yet.
    buffer: Vec<u8>,
    /// How many bytes of it have come.
    size: u64,
    /// Once it is too large to share a frame: where its own frames begin.
    own: Option<OwnFrames>,
}

/// The frames of a large entry, and what is needed to take them back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnFrames {
    /// The first frame that it caused: that of the small entries before it, or its header's.
    pub(crate) first: usize,
    /// The frame of its header.
    pub(crate) header: usize,
    /// The small entries before it, whose frame it ended.
    pub(crate) shared: Vec<u8>,
}

/// The largest entry content that shares a frame with others.
pub(crate) const SHARED_LIMIT: usize = FRAME_SIZE - BLOCK;

impl BundleWriter {
    /// Begins the bundle, in one file. `header_space` is what [`header_space`] says; `level` is zstd's, 1 to 22.
    pub fn begin_bundle(claim: Claim, header_space: u64, level: i32) -> Result<Self, FsError> {
        Self::begin_in(claim, WriteOptions { header_space, level, carry: VolumeOptions::plain() })
    }

    /// Begins the bundle, in the form `form`.
    pub fn begin_in(claim: Claim, form: WriteOptions) -> Result<Self, FsError> {
        remove_parts_from(&claim.partial, 2)?;
        claim.file.set_len(0).map_err(FsError::at("empty", &claim.partial))?;
        let WriteOptions { header_space, level, carry } = form;
        let Claim { file, partial, target } = claim;
        let mut output = FrameOutput::new(VolumeWriter::new(file, partial, carry)?);
        // What is not finished is no bundle, but already a valid sequence of frames.
        output.tape.append(&padding(header_space))?;
        if let Some(label) = carry.first_label() {
            output.tape.append(&label)?;
        }
        output.begin = output.tape.end();
        Ok(Self {
            output,
            target,
            header_space,
            level,
            shared: Vec::new(),
            entry: None,
            late_headers: Vec::new(),
            handed_over: Vec::new(),
        })
    }

    /// Goes on with a bundle of which an earlier run has written `kept`, with the same head room, level and form.
    #[cfg_attr(not(feature = "net"), expect(dead_code, reason = "only `pack` goes on with a bundle"))]
    pub(crate) fn go_on(claim: Claim, form: WriteOptions, kept: ResumePoint) -> Result<Self, FsError> {
        let WriteOptions { header_space, level, carry } = form;
        let Claim { file, partial, target } = claim;
        let label = carry.first_label().unwrap_or_default();
        let begin = header_space + label.len() as u64;
        let end_of = |frame: &FrameRecord| frame.offset + frame.compressed as u64;
        // What follows the frames of a volume is recovery data, if anything.
        let ends =
            kept.starts.iter().skip(1).chain(&[u64::MAX]).map(|next| {
                kept.frames.iter().rev().find(|frame| frame.offset < *next).map_or(begin, end_of)
            });
        let extents = kept.starts.iter().copied().zip(ends).take_while(|(start, end)| end > start);
        let extents: Vec<_> = extents.collect();
        let mut output = FrameOutput::new(VolumeWriter::go_on(file, partial, carry, &extents)?);
        // The earlier run may have been killed when it had already written the head.
        output.tape.patch(0, &padding(header_space))?;
        output.tape.patch(header_space, &label)?;
        output.begin = begin;
        (output.queued, output.written) = (sum(&kept.frames), sum(&kept.frames));
        output.frames = kept.frames;
        let entry = kept.entry.map(|(own, size)| OpenEntry {
            header: None,
            buffer: Vec::new(),
            size,
            own: Some(own),
        });
        let ResumePoint { shared, late_headers, .. } = kept;
        Ok(Self { output, target, header_space, level, shared, entry, late_headers, handed_over: Vec::new() })
    }

    /// How many bytes of the tar stream behind the head it has taken.
    #[must_use]
    pub fn position(&self) -> u64 {
        let entry = self.entry.as_ref();
        let entry = entry.map_or(0, |entry| entry.buffer.len() + if entry.own.is_none() { BLOCK } else { 0 });
        self.output.queued + (self.shared.len() + entry) as u64
    }

    /// How many of them stand in the file: what a killed process does not lose.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.output.written
    }

    /// Begins a blob; `known` if its digest and size are known already.
    pub fn begin(&mut self, known: Option<(Digest, u64)>) {
        assert!(self.entry.is_none(), "an entry inside an entry; please report");
        self.entry = Some(OpenEntry {
            header: known.map(|(digest, size)| tar_header(&blob_name(digest), size)),
            buffer: Vec::new(),
            size: 0,
            own: None,
        });
    }

    /// Writes the next bytes of the blob.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        let entry = self.entry.as_mut().expect("`begin` comes first; please report");
        entry.size += bytes.len() as u64;
        if entry.own.is_none() {
            if entry.size <= SHARED_LIMIT as u64 {
                entry.buffer.extend_from_slice(bytes);
                return Ok(());
            }
            let begun = std::mem::take(&mut entry.buffer);
            let header = frame::store(&entry.header.unwrap_or([0; BLOCK]));
            let shared = self.shared.clone();
            let first = self.output.next_frame();
            self.end_shared_frame()?;
            let own = OwnFrames { first, header: self.output.next_frame(), shared };
            self.output.frame_later(BLOCK, move || header)?;
            self.entry.as_mut().expect("it was there above").own = Some(own);
            self.append(&begun)?;
        }
        self.append(bytes)
    }

    /// Writes the next bytes of the blob, without copying them where they make up a whole frame.
    pub fn write_piece(&mut self, piece: Vec<u8>) -> Result<(), FsError> {
        let entry = self.entry.as_mut().expect("`begin` comes first; please report");
        if entry.own.is_some() && entry.buffer.is_empty() && piece.len() == FRAME_SIZE {
            entry.size += piece.len() as u64;
            return self.compress(piece);
        }
        self.write(&piece)
    }

    /// Writes the next bytes of the blob, which make up a whole frame, as they stand in another bundle: `frame`, which
    /// [`frame::encode`] would make of them, too. Says whether it did: only a large blob has frames of its own.
    pub fn write_frame(&mut self, frame: Vec<u8>, content_size: usize) -> Result<(), FsError> {
        let entry = self.entry.as_mut().expect("`begin` comes first; please report");
        assert!(
            entry.own.is_some() && entry.buffer.is_empty() && content_size == FRAME_SIZE,
            "a frame in the middle of another; please report"
        );
        entry.size += content_size as u64;
        self.output.frame_later(content_size, move || frame)
    }

    /// Whether the next bytes of the blob begin a frame that has no others.
    #[must_use]
    pub fn is_at_frame(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.own.is_some() && entry.buffer.is_empty())
    }

    /// Ends the blob, which has turned out to be `digest`.
    pub fn end(&mut self, digest: Digest) -> Result<(), FsError> {
        let mut entry = self.entry.take().expect("`begin` comes first; please report");
        let header = tar_header(&blob_name(digest), entry.size);
        assert!(
            entry.header.is_none_or(|known| known == header),
            "`{digest}` is another blob; please report"
        );
        entry
            .buffer
            .resize(entry.buffer.len() + usize::try_from(padded(entry.size) - entry.size).expect("< 512"), 0);
        if let Some(own) = entry.own {
            if entry.header.is_none() {
                self.late_headers.push((own.header, header));
            }
            return if entry.buffer.is_empty() { Ok(()) } else { self.compress(entry.buffer) };
        }
        if self.shared.len() + BLOCK + entry.buffer.len() > FRAME_SIZE {
            self.end_shared_frame()?;
        }
        self.shared.extend_from_slice(&header);
        self.shared.extend_from_slice(&entry.buffer);
        Ok(())
    }

    /// Ends the frame that small blobs share. Called behind the last manifest: a damaged blob must not take the
    /// documents with it that say what everything is.
    pub fn end_manifests(&mut self) -> Result<(), FsError> {
        self.end_shared_frame()
    }

    /// Takes the blob that is being written back, as if it had never begun.
    pub fn take_back(&mut self) -> Result<(), FsError> {
        if let Some(own) = self.entry.take().and_then(|entry| entry.own) {
            self.output.truncate(own.first)?;
            self.shared = own.shared;
        }
        Ok(())
    }

    /// Writes the head and the seek table, brings everything to the disk, and gives the bundle its name.
    pub fn finish(mut self, head: &BundleHead) -> Result<WrittenBundle, FsError> {
        assert!(self.entry.is_none(), "an entry without end; please report");
        if self.shared.len() + 2 * BLOCK > FRAME_SIZE {
            self.end_shared_frame()?;
        }
        self.shared.resize(self.shared.len() + 2 * BLOCK, 0); // the end of a tar archive
        self.end_shared_frame()?;
        self.output.drain(0)?;
        for (frame, header) in std::mem::take(&mut self.late_headers) {
            self.output.tape.patch(self.output.frames[frame].offset, &frame::store(&header))?;
        }

        let identity = Digest::of(&head.index);
        let head_frames = head.frames(self.level);
        let mut bytes: Vec<u8> = head_frames.iter().flat_map(|(_, frame)| frame).copied().collect();
        let signature = head.signature.as_deref().map(|text| skippable::encode(SIGNATURE_MAGIC, text));
        bytes.extend(signature.iter().flatten());
        let room = usize::try_from(self.header_space).expect("a head fits in memory");
        let padding = room.checked_sub(bytes.len()).filter(|left| *left >= 8);
        let padding = skippable::encode(
            PADDING_MAGIC,
            &vec![0; padding.expect("`header_space` was computed from the same lists; please report") - 8],
        );
        bytes.extend_from_slice(&padding);
        self.output.tape.patch(0, &bytes)?;

        let head = head_frames.iter().map(|(content, frame)| entry(frame.len(), *content));
        let skippable = signature.iter().chain([&padding]).map(|frame| entry(frame.len(), 0));
        let head: Vec<_> = head.chain(skippable).collect();
        let table = self.seek_table(&head)?;
        let Self { output, target, handed_over, .. } = self;
        let size = output.tape.end() + table.len() as u64 + output.tape.recovery_len(table.len() as u64);
        let is_volumes = output.tape.is_in_volumes();
        let gone: Vec<FinishedVolume> = handed_over.into_iter().map(|(_, volume)| volume).collect();
        let mut sums = None;
        let volumes = output.tape.finish(&table, &target, |volumes| {
            if is_volumes {
                let mut all: Vec<&FinishedVolume> = gone.iter().chain(volumes).collect();
                all.sort_by_key(|volume| volume.number);
                sums = Some(write_sums(&target, &all)?);
                remove_surplus(&target, all.len())?;
            }
            Ok(())
        })?;
        let volumes = if is_volumes { volumes } else { Vec::new() };
        Ok(WrittenBundle { identity, size, volumes, sums })
    }

    /// The frame of the seek table, for which there is room in the last volume.
    fn seek_table(&mut self, head: &[seek_table::FrameEntry]) -> Result<Vec<u8>, FsError> {
        loop {
            // Its length does not depend on that of the recovery data that it lists, but on how many frames that has,
            // and that hardly ever on its own length.
            let mut table = self.table(head, 0);
            while let again = self.table(head, table.len() as u64)
                && again.len() != table.len()
            {
                table = again;
            }
            if !self.output.tape.is_full_for(table.len() as u64) {
                return Ok(self.table(head, table.len() as u64));
            }
            assert!(
                self.output.frames.last().is_some_and(|frame| self.output.tape.is_in_last(frame.offset)),
                "a seek table that fits into no volume; please report"
            );
            let stream = self.output.written;
            self.output.tape.next_volume(stream)?;
        }
    }

    fn table(&self, head: &[seek_table::FrameEntry], tail: u64) -> Vec<u8> {
        let mut table = head.to_vec();
        let mut frames = self.output.frames.iter().peekable();
        let gone =
            self.handed_over.iter().map(|(extent, _)| (extent.start, extent.len, extent.recovery.clone()));
        let mut volumes: Vec<_> = gone.chain(self.output.tape.volumes(tail)).collect();
        volumes.sort_by_key(|volume| volume.0);
        for (start, len, recovery) in volumes {
            let mut at = if start == 0 { self.header_space } else { start };
            while at < start + len {
                if let Some(frame) = frames.next_if(|frame| frame.offset == at) {
                    table.push(entry(frame.compressed, frame.decompressed));
                    at += frame.compressed as u64;
                    continue;
                }
                // What stands between them is the label, at the beginning.
                let next = frames.peek().map_or(start + len, |frame| frame.offset.min(start + len));
                table.push(entry(usize::try_from(next - at).expect("a label is small"), 0));
                at = next;
            }
            table.extend(recovery.iter().map(|len| entry(*len as usize, 0)));
        }
        seek_table::encode(&table)
    }

    /// Finishes the volumes that nothing can change any more, but for the first one, and forgets them: they have their
    /// names, and whoever takes them may remove them.
    pub fn hand_over(&mut self) -> Result<Vec<FinishedVolume>, FsError> {
        // What has begun may be taken back, with the frame before it.
        let own = self.entry.as_ref().and_then(|entry| entry.own.as_ref()).map(|own| own.first);
        let open = own.and_then(|first| self.output.frames.get(first)).map(|frame| frame.offset);
        let end = open.unwrap_or_else(|| self.output.tape.end());
        let mut later = Vec::new();
        for (frame, header) in std::mem::take(&mut self.late_headers) {
            match self.output.frames.get(frame) {
                Some(record) => self.output.tape.patch(record.offset, &frame::store(&header))?,
                None => later.push((frame, header)),
            }
        }
        let unwritten = later.iter().map(|(frame, _)| *frame).min();
        self.late_headers = later;
        debug_assert!(
            unwritten.is_none_or(|frame| frame >= self.output.frames.len()),
            "it is not in the file yet"
        );
        let extents = self.output.tape.volumes(0);
        let volumes = self.output.tape.hand_over(end, &self.target)?;
        // The first one stays.
        for ((start, len, recovery), volume) in extents.into_iter().skip(1).zip(&volumes) {
            self.handed_over.push((Extent { start, len, recovery }, volume.clone()));
        }
        Ok(volumes)
    }

    /// Cuts a large entry into frames.
    fn append(&mut self, mut bytes: &[u8]) -> Result<(), FsError> {
        while !bytes.is_empty() {
            let entry = self.entry.as_mut().expect("only called inside an entry");
            let (now, later) = bytes.split_at(bytes.len().min(FRAME_SIZE - entry.buffer.len()));
            if entry.buffer.is_empty() {
                entry.buffer.reserve_exact(FRAME_SIZE);
            }
            entry.buffer.extend_from_slice(now);
            bytes = later;
            if entry.buffer.len() == FRAME_SIZE {
                let full = std::mem::take(&mut entry.buffer);
                self.compress(full)?;
            }
        }
        Ok(())
    }

    fn end_shared_frame(&mut self) -> Result<(), FsError> {
        let content = std::mem::take(&mut self.shared);
        if content.is_empty() { Ok(()) } else { self.compress(content) }
    }

    fn compress(&mut self, content: Vec<u8>) -> Result<(), FsError> {
        let level = self.level;
        self.output.frame_later(content.len(), move || frame::encode(&content, level))
    }
}

impl BundleHead {
    /// The frames of the head, each with the size of its content.
    fn frames(&self, level: i32) -> Vec<(usize, Vec<u8>)> {
        let mut stream = Vec::new();
        let digest = self.files.as_deref().map(|files| blob_name(Digest::of(files)));
        let entries = [(OCI_LAYOUT, OCI_LAYOUT_CONTENT), (INDEX_JSON, &self.index)];
        let files = digest.as_deref().zip(self.files.as_deref());
        for (name, content) in entries.into_iter().chain(files) {
            stream.extend_from_slice(&tar_header(name, content.len() as u64));
            stream.extend_from_slice(content);
            stream.resize(stream.len().next_multiple_of(BLOCK), 0);
        }
        stream.chunks(FRAME_SIZE).map(|content| (content.len(), frame::encode(content, level))).collect()
    }
}

/// How many bytes of a bundle are kept for its head, if its documents will have at most these sizes.
#[must_use]
pub fn header_space(index: usize, files: Option<usize>) -> u64 {
    let entries = [OCI_LAYOUT_CONTENT.len(), index].into_iter().chain(files);
    let stream: usize = entries.map(|size| BLOCK + size.next_multiple_of(BLOCK)).sum();
    let frames = stream.div_ceil(FRAME_SIZE) * frame::stored_len(FRAME_SIZE).saturating_sub(FRAME_SIZE);
    (stream + frames + 8).next_multiple_of(BLOCK) as u64
}

fn padding(len: u64) -> Vec<u8> {
    skippable::encode(PADDING_MAGIC, &vec![0; usize::try_from(len).expect("a head fits in memory") - 8])
}

fn entry(compressed: usize, decompressed: usize) -> seek_table::FrameEntry {
    seek_table::FrameEntry {
        compressed: u32::try_from(compressed).expect("frames are small"),
        decompressed: u32::try_from(decompressed).expect("frames are small"),
    }
}

/// Writes the list of `volumes` beside them, in the form of `sha256sum`. What it says of other files stays.
fn write_sums(target: &Path, volumes: &[&FinishedVolume]) -> Result<PathBuf, FsError> {
    let path = fs::parent(target).join(SUMS);
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bundle = name(target);
    let known = std::fs::read(&path).unwrap_or_default();
    let mut text = String::new();
    for line in String::from_utf8_lossy(&known).lines() {
        let of =
            line.split_once(' ').and_then(|(_, name)| parse_volume_name(name.trim_start_matches([' ', '*'])));
        if of.is_none_or(|(of, _)| of != bundle) {
            text.push_str(line);
            text.push('\n');
        }
    }
    for volume in volumes {
        let _ = writeln!(text, "{}  {}", volume.digest.hex(), name(&volume.path)); // into memory
    }
    fs::write_durably(&path, text.as_bytes())?;
    Ok(path)
}

/// Removes what an earlier bundle of this name had more volumes than this one.
fn remove_surplus(target: &Path, volumes: usize) -> Result<(), FsError> {
    let bundle = target.file_name().unwrap_or_default().to_string_lossy();
    let first = u32::try_from(volumes).unwrap_or(u32::MAX).saturating_add(1);
    volumes_of(fs::parent(target), &bundle, first)?.iter().try_for_each(|(path, _)| fs::remove_file(path))
}
