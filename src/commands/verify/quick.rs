//! Checks the structure of a bundle without reading its contents.

use std::io::Read as _;
use std::ops::Range;

use crate::base::event::{Event, Report};
use crate::bundle::format::layout::{Layout, TarEntry};
use crate::bundle::format::seek_table::{self, FrameEntry};
use crate::bundle::format::{BLOCK, frame, padded};
use crate::bundle::read::error::ReadError;
use crate::bundle::read::frame_error::FrameError;
use crate::bundle::read::problem::DamageKind;
use crate::bundle::read::reader::BundleReader;
use crate::bundle::read::volume_set::VolumeSet;
use crate::commands::verify::Verdict;
use crate::commands::verify::damage::{Damage, DamageLog, frame_problem};

const SEEK_TABLE: &str = "the seek table";
/// Maximum number of bad frames that are reported one by one. A bundle of 64 MiB can have eight million.
const MAX_BAD_FRAMES: usize = 10_000;

/// Checks the structure of a bundle: its documents, the sizes of its volumes, its seek table, and the header
/// of each frame. Returns `None` if the bundle is not in files.
pub(crate) fn quick(mut reader: BundleReader, report: &dyn Report) -> Result<Option<Verdict>, ReadError> {
    let contents = reader.contents()?;
    let Some(volume_set) = reader.volumes() else { return Ok(None) };
    let damage = match reader.table() {
        None => vec![missing_table(volume_set)],
        Some(table) => {
            let objects = Some(table.len() as u64);
            report.event(&Event::Stage { name: "looking at", bytes: None, objects });
            let (bad_frames, more) = bad_frames(table, volume_set);
            let (mut damage, in_no_entry) = damage_of(bad_frames, &contents.layout, &reader);
            damage.extend(table_mismatch(table, &contents.layout));
            damage.extend(in_no_entry);
            damage.extend((more > 0).then(|| {
                let problem = format!("{more} more frames are damaged");
                Damage::of_structure("further frames", DamageKind::Damaged, problem)
            }));
            damage
        }
    };
    Ok(Some(Verdict::new(&contents, false, damage, reader.repaired(), &reader)))
}

/// A frame whose header is invalid or cannot be read.
struct BadFrame {
    /// Bytes from the start of the bundle.
    offset: u64,
    /// The range of the tar stream that the frame contains.
    content: Range<u64>,
    error: FrameError,
}

/// Checks the header of each frame in the seek table. Returns the first bad ones, and the number of the others.
fn bad_frames(table: &[FrameEntry], volume_set: &VolumeSet) -> (Vec<BadFrame>, u64) {
    let (mut bad, mut more) = (Vec::new(), 0);
    let (mut offset, mut start) = (0, 0);
    for entry in table {
        let content = start..start + u64::from(entry.decompressed);
        start = content.end;
        if let Err(error) = check_header(*entry, offset, volume_set) {
            if bad.len() < MAX_BAD_FRAMES {
                bad.push(BadFrame { offset, content, error });
            } else {
                more += 1;
            }
        }
        offset += u64::from(entry.compressed);
    }
    (bad, more)
}

fn check_header(entry: FrameEntry, offset: u64, volume_set: &VolumeSet) -> Result<(), FrameError> {
    let mut header = Vec::new();
    let len = frame::HEADER_LEN.min(entry.compressed as usize);
    match volume_set.reader(offset).take(len as u64).read_to_end(&mut header) {
        Err(error) => Err(FrameError::of(error)),
        Ok(read) if read < len => Err(FrameError::Truncated),
        Ok(_) if frame::is_header_of(&header, entry) => Ok(()),
        Ok(_) => Err(FrameError::Corrupt),
    }
}

/// Returns the damage of entries, and that of frames without any entry: skippable ones, and the end of the
/// archive.
fn damage_of(
    bad_frames: Vec<BadFrame>,
    layout: &Layout,
    reader: &BundleReader,
) -> (Vec<Damage>, Vec<Damage>) {
    let entries: Vec<TarEntry> = layout.entries().collect();
    let mut log = DamageLog::default();
    let mut in_no_entry = Vec::new();
    for BadFrame { offset, content, error } in bad_frames {
        let affected = entries_in(&entries, &content);
        if affected.is_empty() {
            let damage =
                Damage::of_structure("a frame without entries", error.trouble(), frame_problem(&error));
            in_no_entry.push(Damage { places: [reader.position(offset)].into(), ..damage });
        }
        for number in affected {
            log.unreadable(number, offset, &error);
        }
    }
    (log.damage(&entries, layout, reader), in_no_entry)
}

/// Returns the numbers of the entries that overlap `content`.
fn entries_in(entries: &[TarEntry], content: &Range<u64>) -> Range<usize> {
    let end = |entry: &TarEntry| entry.offset + BLOCK as u64 + padded(entry.size);
    let first = entries.partition_point(|entry| end(entry) <= content.start);
    let last = entries.partition_point(|entry| entry.offset < content.end);
    first..last
}

/// Compares the content sizes of frames in the table with those that follow from the documents.
fn table_mismatch(table: &[FrameEntry], layout: &Layout) -> Option<Damage> {
    let mut actual = table.iter().map(|entry| u64::from(entry.decompressed)).filter(|len| *len > 0);
    let mut expected = layout.cuts();
    let bytes = |len: Option<u64>| len.map_or("none".to_owned(), |len| format!("{len} bytes"));
    for number in 1_u64.. {
        let (expected, actual) = (expected.next(), actual.next());
        if expected != actual {
            let problem = format!(
                "content size mismatch in frame {number}: expected {}, got {}",
                bytes(expected),
                bytes(actual)
            );
            return Some(Damage::of_structure(SEEK_TABLE, DamageKind::Damaged, problem));
        }
        if expected.is_none() {
            break;
        }
    }
    None
}

/// Returns the damage of a bundle whose seek table cannot be read.
fn missing_table(volume_set: &VolumeSet) -> Damage {
    let (kind, problem) = match seek_table::has_footer(&mut volume_set.reader(0)) {
        Ok(true) => (DamageKind::Damaged, "damaged, or the size of the bundle does not match it".to_owned()),
        Ok(false) => {
            (DamageKind::Missing, "missing: the bundle is truncated, or its end is damaged".to_owned())
        }
        Err(error) => {
            let error = FrameError::of(error);
            (error.trouble(), error.text())
        }
    };
    Damage::of_structure(SEEK_TABLE, kind, problem)
}
