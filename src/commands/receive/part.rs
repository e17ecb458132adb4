//! [`Part`]: the frames of one volume, or of a bundle in one file, that one transmission delivered.

use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;

use xxhash_rust::xxh64::{Xxh64, xxh64};

use crate::base::bulk;
use crate::base::fs::{self, FsError};
use crate::base::own_file;
use crate::bundle::format::label::Label;
use crate::bundle::format::seek_table::FrameEntry;
use crate::bundle::recovery::Recovery;
use crate::commands::receive::scanner::{FrameKind, ScannedFrame};

/// The received frames of a volume, one after the other in a file.
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// `None`: it was lost, or the bundle is one file.
    pub(super) label: Option<Label>,
    /// The sizes of the frames.
    pub(super) frames: Vec<FrameEntry>,
    /// Size in bytes.
    pub(super) len: u64,
    /// Size of the content of the frames after the label, in bytes.
    pub(super) stream: u64,
    /// True if it begins with the start of the bundle.
    pub(super) has_start: bool,
    /// True if it ends with a seek table.
    pub(super) has_end: bool,
    /// True if bytes between its frames were not a frame.
    pub(super) has_gap: bool,
    /// Size of the intact volume, as its recovery data states it.
    pub(super) stated_len: Option<u64>,
    /// The checksum of all bytes.
    checksum: Xxh64,
    /// The checksums of the frames with content.
    seen: HashSet<u64>,
}

impl Part {
    /// Creates a part without frames.
    pub(super) fn create(path: PathBuf) -> Result<Self, FsError> {
        let file = own_file::create_new(&path)?;
        Ok(Self::new(path, file))
    }

    /// Opens the file of an earlier run, whose frames are to be added with [`Part::note`].
    pub(super) fn open(path: PathBuf) -> Result<Self, FsError> {
        let file = own_file::open_regular(&path)?;
        Ok(Self::new(path, file))
    }

    fn new(path: PathBuf, file: File) -> Self {
        Self {
            path,
            file,
            label: None,
            frames: Vec::new(),
            len: 0,
            stream: 0,
            has_start: false,
            has_end: false,
            has_gap: false,
            stated_len: None,
            checksum: Xxh64::new(0),
            seen: HashSet::new(),
        }
    }

    /// Appends a frame.
    pub(super) fn append(&mut self, frame: &ScannedFrame) -> Result<(), FsError> {
        bulk::write_all(&mut self.file, &frame.bytes).map_err(FsError::at("write", &self.path))?;
        self.note(frame);
        Ok(())
    }

    /// Records a frame that is in the file.
    pub(super) fn note(&mut self, frame: &ScannedFrame) {
        self.has_gap |= frame.is_after_gap && !self.frames.is_empty();
        self.has_start |= frame.kind == FrameKind::Start;
        match &frame.kind {
            FrameKind::Label(label) => {
                self.label = Some(*label);
                self.stream = 0;
            }
            FrameKind::SeekTable(_) => self.has_end = true,
            FrameKind::Recovery => {
                self.stated_len = self.stated_len.or_else(|| Recovery::stated_len(&frame.bytes));
            }
            _ => self.stream += u64::from(frame.entry.decompressed),
        }
        self.checksum.update(&frame.bytes);
        if frame.entry.decompressed > 0 {
            self.seen.insert(xxh64(&frame.bytes, 0));
        }
        self.frames.push(frame.entry);
        self.len += u64::from(frame.entry.compressed);
    }

    /// True if two of its frames are identical. A link may have repeated one, and lost another of the same size.
    pub(super) fn has_twins(&self) -> bool {
        self.seen.len() < self.frames.iter().filter(|frame| frame.decompressed > 0).count()
    }

    /// True if both parts have the same bytes.
    pub(super) fn is_equal(&self, other: &Self) -> bool {
        (self.len, self.checksum.digest()) == (other.len, other.checksum.digest())
    }

    /// Removes the file.
    pub(super) fn remove(self) -> Result<(), FsError> {
        fs::remove_file(&self.path)
    }
}
