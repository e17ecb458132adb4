//! [`parts`]: the volumes in a file into which they were joined, as by `cat`.
//!
//! The frames of a joined file are those of a bundle in one file, but its recovery data is that of each volume. The
//! labels tell where the volumes begin, also if one of them was truncated before.

use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::Path;

use crate::base::fs::{FsError, file_name};
use crate::bundle::format::label::{LABEL_LIMIT, Label};
use crate::bundle::format::seek_table;
use crate::bundle::format::skippable::VOLUME_MAGIC;
use crate::bundle::read::candidate::Candidate;

/// Size of the reads of a search in bytes.
const CHUNK: usize = 1 << 20;

/// A label and its offset in the file.
type LabelAt = (u64, Label);

/// Returns the volumes in the file at `path`. Empty: it is not joined. The first label may be corrupt.
pub(crate) fn parts(path: &Path) -> Result<Vec<Candidate>, FsError> {
    let at = || FsError::at("read", path);
    let mut file = File::open(path).map_err(FsError::at("open", path))?;
    let len = file.metadata().map_err(at())?.len();
    let labels = match labels_by_table(&mut file).map_err(at())? {
        Some(labels) => labels,
        None => search(&mut file).map_err(at())?,
    };
    if labels.len() < 2 {
        return Ok(Vec::new());
    }
    let is_end = seek_table::has_footer(&mut file).map_err(at())?;
    let name = file_name(path);
    let part = |number, label, range: Range<u64>| Candidate {
        path: path.to_owned(),
        named: Some((name.clone(), number)),
        base: range.start,
        len: range.end - range.start,
        label,
        is_end: is_end && range.end == len,
    };
    // The head of the first volume precedes its label, which can be corrupt.
    let starts = labels.iter().map(|(offset, label)| if label.number == 1 { 0 } else { *offset });
    let starts: Vec<u64> = starts.collect();
    let ends = starts.iter().skip(1).copied().chain([len]);
    let labelled = starts.iter().zip(ends).zip(&labels);
    let labelled = labelled.map(|((start, end), (_, label))| part(label.number, Some(*label), *start..end));
    let first = (labels[0].1.number == 2).then(|| part(1, None, 0..starts[0]));
    Ok(first.into_iter().chain(labelled).collect())
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
            file.read_exact(&mut frame)?;
            labels.extend(label(&frame).map(|label| (offset, label)));
        }
        offset += u64::from(entry.compressed);
    }
    // The table of a file in which a part is missing has other offsets.
    let is_right = labels.iter().all(|(offset, label)| label.number == 1 || *offset == label.offset);
    Ok(is_right.then_some(labels))
}

/// Searches the file for the labels of one set, in order.
fn search(file: &mut File) -> io::Result<Vec<LabelAt>> {
    file.seek(SeekFrom::Start(0))?;
    let (mut reader, mut labels) = (BufReader::with_capacity(CHUNK, file), Vec::<LabelAt>::new());
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
            return Ok(labels);
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
