//! [`parts`]: the volumes in a file into which they were joined, as by `cat`.
//!
//! The frames of a joined file are those of a bundle in one file, but its recovery data is that of each volume. The
//! labels tell where the volumes begin, also if one of them was truncated before.

use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use crate::base::fs::{FsError, file_name};
use crate::bundle::format::label::{LABEL_LIMIT, Label};
use crate::bundle::format::seek_table;
use crate::bundle::format::skippable::{PADDING_MAGIC, SIGNATURE_MAGIC, VOLUME_MAGIC};
use crate::bundle::read::candidate::Candidate;

/// Size of the reads of a search in bytes.
const CHUNK: usize = 1 << 20;

/// The start of a volume in the file, its number, and its label. `None`: the label is corrupt.
type VolumeStart = (u64, u32, Option<Label>);

/// A label, or a corrupt one, and its offset in the file.
type LabelAt = (u64, Option<Label>);

/// Returns the volumes in the file at `path`. Empty: it is not joined. Labels may be corrupt.
pub(crate) fn parts(path: &Path) -> Result<Vec<Candidate>, FsError> {
    let at = || FsError::at("read", path);
    let mut file = File::open(path).map_err(FsError::at("open", path))?;
    let len = file.metadata().map_err(at())?.len();
    let labels = match labels_by_table(&mut file).map_err(at())? {
        Some(labels) => labels,
        None => search(&mut file).map_err(at())?,
    };
    let starts = volume_starts(&labels);
    if starts.len() < 2 {
        return Ok(Vec::new());
    }
    let is_end = seek_table::has_footer(&mut file).map_err(at())?;
    let name = file_name(path);
    let ends = starts.iter().skip(1).map(|(start, ..)| *start).chain([len]);
    let part = |((start, number, label), end): (&VolumeStart, u64)| Candidate {
        path: path.to_owned(),
        named: Some((name.clone(), *number)),
        base: *start,
        len: end - start,
        label: *label,
        is_end: is_end && end == len,
    };
    Ok(starts.iter().zip(ends).map(part).collect())
}

/// Returns where the volumes begin. The number of one whose label is corrupt follows from the next label.
fn volume_starts(labels: &[LabelAt]) -> Vec<VolumeStart> {
    let mut starts: Vec<VolumeStart> = Vec::new();
    let mut corrupt = Vec::new();
    for (offset, label) in labels {
        let Some(label) = label else {
            corrupt.push(*offset);
            continue;
        };
        // The head of the first volume precedes its label.
        let has_more = starts.is_empty() && label.number > 1 && *offset > 0;
        let first = has_more.then_some(0);
        let mut unlabelled: Vec<u64> = first.into_iter().chain(corrupt.drain(..)).collect();
        let before = starts.last().map_or(0, |(_, number, _)| *number);
        let missing = label.number.saturating_sub(before + 1) as usize;
        // The label of the first volume is a frame of its own, behind the head.
        if starts.is_empty() && unlabelled.len() == missing + 1 {
            unlabelled.remove(1);
        }
        if unlabelled.len() == missing {
            starts.extend((before + 1..).zip(unlabelled).map(|(number, offset)| (offset, number, None)));
        }
        let start = if label.number == 1 { 0 } else { *offset };
        starts.push((start, label.number, Some(*label)));
    }
    let before = starts.last().map_or(0, |(_, number, _)| *number);
    if before > 0 {
        starts.extend((before + 1..).zip(corrupt).map(|(number, offset)| (offset, number, None)));
    }
    starts
}

/// Finds the labels by the seek table. `None`: it is missing, or does not describe this file.
fn labels_by_table(file: &mut File) -> io::Result<Option<Vec<LabelAt>>> {
    let Some(table) = seek_table::read(file)? else { return Ok(None) };
    let (mut offset, mut labels) = (0, Vec::new());
    for entry in table {
        let is_short = entry.compressed as usize <= 8 + LABEL_LIMIT;
        if entry.decompressed == 0 && is_short {
            file.seek(SeekFrom::Start(offset))?;
            let mut frame = vec![0; entry.compressed as usize];
            let label = file.read_exact(&mut frame).ok().and_then(|()| label(&frame));
            // The head has short frames, too: a signature, and padding.
            let is_other =
                [SIGNATURE_MAGIC, PADDING_MAGIC].iter().any(|magic| frame.starts_with(&magic.to_le_bytes()));
            if label.is_some() || !is_other {
                labels.push((offset, label));
            }
        }
        offset += u64::from(entry.compressed);
    }
    // The table of a file in which a part is missing has other offsets.
    let is_at =
        |(offset, label): &LabelAt| label.is_none_or(|label| label.number == 1 || *offset == label.offset);
    Ok(labels.iter().all(is_at).then_some(labels))
}

/// Searches the file for the labels of one set, in order.
fn search(file: &mut File) -> io::Result<Vec<LabelAt>> {
    file.seek(SeekFrom::Start(0))?;
    let (mut reader, mut labels) = (BufReader::with_capacity(CHUNK, file), Vec::<(u64, Label)>::new());
    let magic = VOLUME_MAGIC.to_le_bytes();
    let (mut window, mut start) = (Vec::new(), 0);
    loop {
        let read = (&mut reader).take(CHUNK as u64).read_to_end(&mut window)?;
        // A label at the end of the window may be incomplete.
        let complete = if read == 0 { window.len() } else { window.len().saturating_sub(8 + LABEL_LIMIT) };
        for position in 0..complete {
            if window[position..].starts_with(&magic)
                && let Some(label) = label(&window[position..])
                && labels.last().is_none_or(|(_, last)| label.set == last.set && label.number > last.number)
            {
                labels.push((start + position as u64, label));
            }
        }
        if read == 0 {
            return Ok(labels.into_iter().map(|(offset, label)| (offset, Some(label))).collect());
        }
        window.drain(..complete);
        start += complete as u64;
    }
}

/// Parses a frame at the start of `bytes`. `None`: no label.
fn label(bytes: &[u8]) -> Option<Label> {
    let payload = bytes.strip_prefix(&VOLUME_MAGIC.to_le_bytes())?;
    let (len, payload) = payload.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    Label::parse(payload.get(..len)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::digest::Digest;

    #[test]
    fn a_volume_without_a_label_is_numbered_by_its_neighbours() {
        let label = |number| Label::new(Digest::of(b"set"), number, u64::from(number) * 100, 0);
        let at = |offset, number: Option<u32>| (offset, number.map(label));
        let starts = |labels: &[LabelAt]| {
            let starts = volume_starts(labels).into_iter();
            starts.map(|(start, number, label)| (start, number, label.is_some())).collect::<Vec<_>>()
        };
        let all = [at(50, Some(1)), at(200, Some(2)), at(300, Some(3))];
        assert_eq!(starts(&all), [(0, 1, true), (200, 2, true), (300, 3, true)]);
        for (corrupt, offset) in [(0, 50), (1, 200), (2, 300)] {
            let mut labels = all;
            labels[corrupt] = at(offset, None);
            let mut expected = vec![(0, 1, true), (200, 2, true), (300, 3, true)];
            expected[corrupt].2 = false;
            assert_eq!(starts(&labels), expected);
        }
        // The second volume was not joined, or its label was not found.
        assert_eq!(starts(&[all[0], all[2]]), [(0, 1, true), (300, 3, true)]);
        assert_eq!(starts(&all[1..]), [(0, 1, false), (200, 2, true), (300, 3, true)]);
        assert_eq!(starts(&[at(50, None)]), []);
        // A volume that has another name.
        assert_eq!(starts(&[at(0, Some(2))]), [(0, 2, true)]);
    }
}
