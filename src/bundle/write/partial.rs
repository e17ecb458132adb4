//! What an earlier run has left in `NAME.partial`: read, checked, and brought into the form in which the writer goes
//! on with it.
//!
//! Nothing there is taken on trust. Every frame is decoded and every blob hashed, and what follows the first thing
//! that is not as it should be is dropped. So it does not matter how the earlier run ended, and there is no journal
//! that could contradict the bundle.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};
use sha2::{Digest as _, Sha512};

use crate::base::buffer::Buffers;
use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::bundle::format::label::Label;
use crate::bundle::format::layout::{Blob, blob_name, tar_header};
use crate::bundle::format::skippable::VOLUME_MAGIC;
use crate::bundle::format::{BLOCK, FRAME_SIZE, padded};
use crate::bundle::read::frame_reader::{self, DataFrame, Frame, FrameReader};
use crate::bundle::write::frames::FrameRecord;
use crate::bundle::write::parts::{parts, size_of_parts};
use crate::bundle::write::writer::{OwnFrames, ResumePoint, SHARED_LIMIT};
use crate::oci::digest::{Digest, Hasher};

/// How many frames are decoded at once: a bound for the memory.
const BATCH: usize = 8;

/// An entry that a bundle is to have.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// What it is; nothing for a file that no list pins and that has not come to its end.
    pub blob: Option<Blob>,
    /// Whether its header is written last, if it is large: digest or size were not known when it was begun.
    pub is_late: bool,
    /// Whether it is a manifest: those have frames of their own.
    pub is_manifest: bool,
    /// The sha512 that it must have, too.
    pub sha512: Option<[u8; 64]>,
}

/// What was found.
#[derive(Default)]
pub(crate) struct Salvaged {
    /// How many entries are complete.
    pub done: usize,
    /// The one behind them, if it is large and has begun.
    pub open: Option<Begun>,
    /// For the writer.
    pub(crate) kept: ResumePoint,
}

/// The beginning of a large entry.
#[derive(Clone)]
pub(crate) struct Begun {
    /// The hash of its bytes so far, and how many there are.
    pub sha256: Hasher,
    /// The other one, if it was asked for.
    pub sha512: Option<Sha512>,
}

impl Salvaged {
    /// Returns how many bytes of the tar stream are kept.
    #[cfg(test)]
    fn bytes(&self) -> u64 {
        self.kept.frames.iter().map(|frame| frame.decompressed as u64).sum::<u64>()
            + self.kept.shared.len() as u64
    }
}

/// Reads what stands at `path` behind the room for the head, as far as it is the beginning of a bundle that has
/// these entries. What is `elsewhere` has none, also where a file turns out to be it. Whether its frames are such as this
/// program makes is for the caller to know.
pub(crate) fn salvage(
    path: &Path,
    set: Digest,
    header_space: u64,
    expected: &[Expected],
    elsewhere: &[Blob],
    report: &dyn Report,
) -> Result<Salvaged, FsError> {
    let len = size_of_parts(path);
    if len <= header_space {
        return Ok(Salvaged::default());
    }
    report.event(&Event::Stage {
        name: "checking what is there",
        bytes: Some(len - header_space),
        objects: None,
    });
    report.event(&Event::Begin {
        id: 0,
        object: path.display().to_string(),
        bytes: Some(len - header_space),
    });
    let buffers = frame_reader::buffers();
    let mut frames = Frames::new(path, set, header_space, &buffers);
    let mut walk = PartialWalk::new(expected, elsewhere);
    'all: loop {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let Some(frame) = frames.next_frame()? else { break };
            batch.push(frame);
        }
        if batch.is_empty() {
            break;
        }
        let read = batch.iter().map(|(_, len, _)| len).sum();
        let decode = |(offset, len, data): (u64, u64, DataFrame)| {
            let content = data.decode(&buffers);
            let decompressed = content.as_ref().map_or(0, |content| content.len());
            let compressed = usize::try_from(len).expect("a frame is small");
            (FrameRecord { offset, compressed, decompressed }, content)
        };
        let decoded: Vec<_> = batch.into_par_iter().map(decode).collect();
        for (record, content) in decoded {
            let Ok(content) = content else { break 'all };
            if !walk.frame(record, &content) {
                break 'all;
            }
        }
        report.event(&Event::Progress { id: 0, bytes: read });
    }
    report.event(&Event::Done { id: 0 });
    let mut salvaged = walk.finish();
    salvaged.kept.starts = frames.starts;
    Ok(salvaged)
}

/// The frames with content behind the head, through all volumes.
struct Frames<'a> {
    parts: VecDeque<PathBuf>,
    set: Digest,
    header_space: u64,
    buffers: &'a Buffers,
    /// The volume that is being read.
    reader: Option<FrameReader<BufReader<File>>>,
    /// Where the volumes so far begin, in bytes from the start of the bundle.
    starts: Vec<u64>,
}

impl<'a> Frames<'a> {
    fn new(path: &Path, set: Digest, header_space: u64, buffers: &'a Buffers) -> Self {
        Self { parts: parts(path).into(), set, header_space, buffers, reader: None, starts: Vec::new() }
    }

    /// Where the next one begins, how long it is, and itself; nothing where anything else stands.
    fn next_frame(&mut self) -> Result<Option<(u64, u64, DataFrame)>, FsError> {
        loop {
            let Some(reader) = &mut self.reader else {
                let Some(path) = self.parts.pop_front() else { return Ok(None) };
                self.reader = self.open(&path).map_err(FsError::at("read", &path))?;
                if self.reader.is_none() {
                    self.parts.clear();
                }
                continue;
            };
            let offset = reader.offset();
            match reader.next_frame() {
                Ok(Some(Frame::Data(data))) => return Ok(Some((offset, reader.offset() - offset, data))),
                // The label of the first volume.
                Ok(Some(Frame::Skippable { magic: VOLUME_MAGIC, .. })) => {}
                // Recovery data: that volume has been finished.
                Ok(None | Some(Frame::Skippable { .. })) => self.reader = None,
                Err(_) => {
                    self.parts.clear();
                    self.reader = None;
                }
            }
        }
    }

    /// Opens the next volume behind its label; nothing if it is none of these.
    fn open(&mut self, path: &Path) -> io::Result<Option<FrameReader<BufReader<File>>>> {
        let mut file = File::open(path)?;
        let (mut start, mut at) = (0, self.header_space);
        if !self.starts.is_empty() {
            let mut first = FrameReader::new(&mut file, 0, self.buffers);
            let Ok(Some(Frame::Skippable { magic: VOLUME_MAGIC, payload })) = first.next_frame() else {
                return Ok(None);
            };
            at = first.offset();
            let label = Label::parse(&payload)
                .filter(|label| label.set == self.set && label.number as usize == self.starts.len() + 1);
            let Some(label) = label else { return Ok(None) };
            start = label.offset;
        }
        file.seek(SeekFrom::Start(at))?;
        self.starts.push(start);
        Ok(Some(FrameReader::new(BufReader::new(file), start + at, self.buffers)))
    }
}

struct PartialWalk<'a> {
    expected: &'a [Expected],
    done: usize,
    /// The blobs so far, and those that are elsewhere: a file that turned out to be one of them is not there again.
    seen: HashSet<Digest>,
    frames: Vec<FrameRecord>,
    late_headers: Vec<(usize, [u8; BLOCK])>,
    /// The small entries in the last frame, if it can be one that the next large entry ended.
    shared: Option<Vec<u8>>,
    large: Option<Large>,
    /// Whether a large entry whose header is written last belongs here and has turned out to be there already. Who was
    /// killed before it was taken back has left its beginning here, which looks like that of the next one.
    is_taken_back: bool,
}

/// A large entry that has begun.
struct Large {
    own: OwnFrames,
    begun: Begun,
    /// The same without the last frame.
    before: Option<Begun>,
}

impl<'a> PartialWalk<'a> {
    fn new(expected: &'a [Expected], elsewhere: &[Blob]) -> Self {
        let mut walk = Self {
            expected,
            done: 0,
            seen: elsewhere.iter().map(|blob| blob.digest).collect(),
            frames: Vec::new(),
            late_headers: Vec::new(),
            shared: None,
            large: None,
            is_taken_back: false,
        };
        walk.pass_repeated();
        walk
    }

    /// Takes the next frame; says whether it is what belongs there.
    fn frame(&mut self, record: FrameRecord, content: &[u8]) -> bool {
        let sound = match &self.large {
            Some(_) => self.content(content),
            None if content.len() == BLOCK => self.header(content) || self.small_entries(content),
            None => self.small_entries(content),
        };
        if sound {
            self.frames.push(record);
            self.pass_repeated();
        }
        sound
    }

    /// What a file before it has turned out to be, or what turned out to be there already, has no entry.
    fn pass_repeated(&mut self) {
        while let Some(Expected { blob: Some(blob), is_manifest: false, is_late, .. }) =
            self.expected.get(self.done)
            && self.large.is_none()
            && self.seen.contains(&blob.digest)
        {
            self.is_taken_back |= *is_late && blob.size > SHARED_LIMIT as u64;
            self.done += 1;
        }
    }

    /// The header of a large entry, alone in its frame.
    fn header(&mut self, content: &[u8]) -> bool {
        let Some(expected) = self.expected.get(self.done) else { return false };
        let is_zero = content.iter().all(|byte| *byte == 0);
        let sound = match expected.blob {
            None => is_zero && !self.is_taken_back,
            Some(blob) if blob.size <= SHARED_LIMIT as u64 => false,
            Some(blob) => {
                expected.is_late && is_zero || *content == tar_header(&blob_name(blob.digest), blob.size)
            }
        };
        if sound {
            let header = self.frames.len();
            let shared = self.shared.take();
            let own = OwnFrames {
                first: header - usize::from(shared.is_some()),
                header,
                shared: shared.unwrap_or_default(),
            };
            let sha512 = expected.sha512.map(|_| Sha512::new());
            self.large = Some(Large { own, begun: Begun { sha256: Hasher::new(), sha512 }, before: None });
        }
        sound
    }

    /// A frame of a large entry's content.
    fn content(&mut self, content: &[u8]) -> bool {
        let expected = &self.expected[self.done];
        let large = self.large.as_mut().expect("the caller has seen it");
        let had = large.begun.sha256.len();
        let Some(blob) = expected.blob else {
            if content.len() != FRAME_SIZE {
                return false;
            }
            large.before = Some(large.begun.clone());
            large.begun.update(content);
            return true;
        };
        let left = blob.size - had;
        let wanted = padded(left).min(FRAME_SIZE as u64);
        let (bytes, zeros) = content.split_at(content.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        if content.len() as u64 != wanted || zeros.iter().any(|byte| *byte != 0) {
            return false;
        }
        let before = large.begun.clone();
        large.begun.update(bytes);
        if large.begun.sha256.len() < blob.size {
            return true;
        }
        if !large.begun.is(blob.digest, expected.sha512) {
            large.begun = before;
            return false;
        }
        let Large { own, .. } = self.large.take().expect("it was there above");
        if expected.is_late {
            self.late_headers.push((own.header, tar_header(&blob_name(blob.digest), blob.size)));
        }
        self.seen.insert(blob.digest);
        self.done += 1;
        self.is_taken_back = false;
        true
    }

    /// A frame of small entries: all of them, or none.
    fn small_entries(&mut self, mut content: &[u8]) -> bool {
        let (mut done, mut position, mut seen) = (self.done, 0, Vec::new());
        let mut is_taken_back = self.is_taken_back;
        let is_manifest = self.expected.get(done).is_some_and(|expected| expected.is_manifest);
        while position < content.len() {
            let Some(expected) = self.expected.get(done) else {
                // Behind the last entry stands the end of the archive.
                if content[position..] != [0; 2 * BLOCK] {
                    return false;
                }
                content = &content[..position];
                break;
            };
            let Some(blob) = expected.blob.filter(|blob| blob.size <= SHARED_LIMIT as u64) else {
                return false;
            };
            if !expected.is_manifest && (self.seen.contains(&blob.digest) || seen.contains(&blob.digest)) {
                done += 1;
                continue;
            }
            is_taken_back = false;
            let size = usize::try_from(blob.size).expect("at most SHARED_LIMIT");
            let end = position + BLOCK + size.next_multiple_of(BLOCK);
            let Some(entry) = content.get(position..end) else { return false };
            let (header, bytes) = entry.split_at(BLOCK);
            let (bytes, zeros) = bytes.split_at(size);
            if *header != tar_header(&blob_name(blob.digest), blob.size)
                || zeros.iter().any(|byte| *byte != 0)
                || Digest::of(bytes) != blob.digest
                || expected.sha512.is_some_and(|sha512| sha512[..] != Sha512::digest(bytes)[..])
                || expected.is_manifest != is_manifest
            {
                return false;
            }
            seen.push(blob.digest);
            position = end;
            done += 1;
        }
        self.done = done;
        self.is_taken_back = is_taken_back;
        self.seen.extend(seen);
        // Where it holds nothing but the end, it is one that belongs behind all others.
        self.shared = (!is_manifest).then(|| content.to_vec());
        true
    }

    fn finish(mut self) -> Salvaged {
        // Where not even the manifests are complete, it is quicker to begin anew.
        if self.expected.get(self.done).is_some_and(|expected| expected.is_manifest) || self.frames.is_empty()
        {
            return Salvaged::default();
        }
        // Where nobody knows the size, the last frame may be the end, with the zeros behind it.
        if let Some(Large { begun, before, .. }) = &mut self.large
            && let Some(before) = before.take()
        {
            *begun = before;
            self.frames.pop();
        }
        // The writer may have had more for this frame.
        let shared = self.shared.take().filter(|_| self.large.is_none());
        if shared.is_some() {
            self.frames.pop();
        }
        let entry = self.large.as_ref().map(|large| (large.own.clone(), large.begun.sha256.len()));
        Salvaged {
            done: self.done,
            open: self.large.map(|large| large.begun),
            kept: ResumePoint {
                frames: self.frames,
                shared: shared.unwrap_or_default(),
                entry,
                late_headers: self.late_headers,
                starts: Vec::new(),
            },
        }
    }
}

impl Begun {
    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(bytes);
        }
    }

    fn is(&self, sha256: Digest, sha512: Option<[u8; 64]>) -> bool {
        let found = self.sha512.clone().map(Sha512::finalize);
        self.sha256.clone().finish() == sha256
            && sha512.is_none_or(|wanted| found.is_some_and(|is| is[..] == wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::event::Silent;
    use crate::bundle::write::claim::Claim;
    use crate::bundle::write::writer::{BundleWriter, header_space};

    #[test]
    fn what_was_not_yet_taken_back_is_not_the_beginning_of_the_next_file() {
        let directory = tempfile::tempdir().unwrap();
        let room = header_space(100, None);
        let claim = Claim::new(&directory.path().join("x")).unwrap();
        let partial = claim.partial.clone();
        let mut writer = BundleWriter::begin_bundle(claim, room, 1).unwrap();
        let bytes = vec![7; 12 * FRAME_SIZE + 5];
        let blob = Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 };
        writer.begin(Some((blob.digest, blob.size)));
        writer.write(&bytes).unwrap();
        writer.end(blob.digest).unwrap();
        let whole = writer.position();
        // The same under another name, which nobody knows before it has come; killed when that is noted.
        writer.begin(None);
        writer.write(&bytes).unwrap();
        assert!(writer.written() > whole + 2 * FRAME_SIZE as u64);
        drop(writer);
        let expected = |blob, is_late| Expected { blob, is_late, is_manifest: false, sha512: None };
        let all = [expected(Some(blob), false), expected(Some(blob), true), expected(None, true)];
        let found = salvage(&partial, Digest::of(b""), room, &all, &[], &Silent).unwrap();
        assert_eq!((found.done, found.bytes()), (2, whole));
        assert!(found.open.is_none());
    }
}
