//! [`Candidate`]: a file that can be a volume, and what tells that it is one.

use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError};
use crate::bundle::format::label::Label;
use crate::bundle::format::skippable::{PADDING_MAGIC, VOLUME_MAGIC};
use crate::bundle::format::volume_name::{SUMS, VOLUME_LIMIT};
use crate::bundle::read::frame_reader::{self, Frame, FrameReader};

/// Maximum number of frames to search for a label. The head precedes the label of the first volume.
const HEAD_FRAMES: usize = 64;

/// Files that Windows and macOS write to a drive, in small letters.
const FOREIGN_FILES: [&str; 4] = [".ds_store", "thumbs.db", "desktop.ini", "autorun.inf"];

/// A file that is labelled or named like a volume, or a part of a file that has the label of one.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) path: PathBuf,
    /// Name of the bundle and number of the volume, according to the file name; of a part, the name of the file and the
    /// number. `None`: not named like a volume.
    pub(crate) named: Option<(String, u32)>,
    /// Offset of the first byte in the file. 0 unless it is a part.
    pub(crate) base: u64,
    /// Size in bytes.
    pub(crate) len: u64,
    /// `None`: no readable label.
    pub(crate) label: Option<Label>,
    /// True if it ends with a seek table, and therefore ends the bundle.
    pub(crate) is_end: bool,
}

impl Candidate {
    /// Number of the volume: according to the label, or else to the name.
    pub(crate) fn number(&self) -> Option<u32> {
        let named = self.named.as_ref().map(|(_, number)| *number);
        self.label.map(|label| label.number).or(named)
    }

    /// True if its name is that of a volume of `bundle`, in any case: FAT and ISO 9660 have capitals.
    pub(crate) fn is_named(&self, bundle: &str) -> bool {
        self.named.as_ref().is_some_and(|(named, _)| named.eq_ignore_ascii_case(bundle))
    }
}

/// True if a file of this name should be a bundle in one file.
pub(crate) fn is_bundle_name(name: &str) -> bool {
    let extension = ".tar.zst";
    let start = name.len().checked_sub(extension.len());
    start.and_then(|start| name.get(start..)).is_some_and(|end| end.eq_ignore_ascii_case(extension))
}

/// True if a file of this name never is a volume or a bundle: operating systems write such files beside others, and
/// `pack` writes checksums and signatures.
pub(crate) fn is_ignored_name(name: &str) -> bool {
    let small = name.to_ascii_lowercase();
    // Macs write `._NAME` beside each file on FAT and exFAT.
    small.starts_with("._")
        || FOREIGN_FILES.contains(&&*small)
        || small == SUMS.to_ascii_lowercase()
        || small.ends_with(".minisig")
}

/// Reads the label of the volume at `path`. `None` if it has no readable label. Fails if the file cannot be
/// opened.
pub(crate) fn read_label(path: &Path) -> Result<Option<Label>, FsError> {
    let file = fs::open(path)?;
    let mut frames = FrameReader::new(BufReader::new(&file), 0, &frame_reader::buffers());
    for _ in 0..HEAD_FRAMES {
        match frames.next_frame() {
            Ok(Some(Frame::Skippable { magic: VOLUME_MAGIC, payload })) => {
                return Ok(Label::parse(&payload).filter(|label| label.number <= VOLUME_LIMIT));
            }
            // The label of the first volume follows the padding. Other bundles have content there, which is not read.
            Ok(Some(Frame::Skippable { magic: PADDING_MAGIC, .. }))
                if !is_label_at(&file, frames.offset()) =>
            {
                break;
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    Ok(None)
}

/// True if a label begins at `offset`.
fn is_label_at(file: &File, offset: u64) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, offset).is_ok() && magic == VOLUME_MAGIC.to_le_bytes()
}
