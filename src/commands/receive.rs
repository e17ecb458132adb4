//! Receives volumes from a stream in which parts can be missing or changed: a data diode, a serial line, a pipe.
//!
//! Every frame of a bundle can be checked on its own, and every volume has a label and its own recovery data. What is
//! intact is written under its final name; of what is not, the intact frames are kept in a directory `.receive`, so that
//! another transmission, in the same stream or later, can fill the gaps.
//!
//! A volume is intact if its frames are, if they fill the distance between its label and the next one, in the bundle and
//! in the tar stream, and if its recovery data agrees. Without recovery data, two identical frames are suspicious: the
//! link may have repeated one and lost another. Another transmission then has to agree.

mod part;
mod scanner;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::bulk;
use crate::base::event::{Event, Report};
use crate::base::fs::{self, FsError};
use crate::base::output_file::{Access, OutputFile};
use crate::base::own_file;
use crate::bundle::format::label::Label;
use crate::bundle::format::seek_table::{self, FrameEntry};
use crate::bundle::format::volume_name::{SUMS, volume_name};
use crate::bundle::read::candidate::read_label;
use crate::bundle::recovery::{Recovery, RecoveryError};
use crate::bundle::write::claim::{Claim, ClaimError};
use crate::bundle::write::parts::volumes_of;
use crate::bundle::write::sums;
use crate::commands::receive::part::Part;
use crate::commands::receive::scanner::{FrameKind, ScannedFrame, Scanner};
use crate::commands::receive::view::{View, Views, assignments};
use crate::commands::repair::hash;
use crate::oci::digest::Digest;

/// The directory of the frames of incomplete volumes.
const PARTS: &str = ".receive";

/// The number of a bundle in one file, which is no volume.
const SINGLE: u32 = 0;

/// The state of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum VolumeState {
    /// It was received without damage, now or in an earlier run.
    Intact,
    /// It was completed from its recovery data, or from several transmissions.
    Repaired,
    /// Some of its frames were received.
    Damaged,
    /// Nothing of it was received.
    Missing,
}

/// A volume that was received, or that is missing.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ReceivedVolume {
    /// The file name.
    pub name: String,
    /// The state.
    pub state: VolumeState,
}

/// The result of a reception.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReceiveSummary {
    /// The volumes in order, as far as they are known.
    pub volumes: Vec<ReceivedVolume>,
    /// True if all volumes are there.
    pub complete: bool,
    /// True if the last volume is not known, because the end of the bundle was not received.
    pub end_missing: bool,
}

/// The reasons why nothing can be received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// The stream cannot be read.
    #[error("cannot read the stream")]
    Stream(#[source] io::Error),
    /// A file call failed.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Another process receives the same bundle.
    #[error("another process is writing `{}`: wait until it is done", .0.display())]
    Busy(PathBuf),
}

impl From<ClaimError> for ReceiveError {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Fs(error) => Self::Fs(error),
            ClaimError::Busy(path) => Self::Busy(path),
        }
    }
}

/// Receives a bundle from `streams`, one after the other, into `directory`. Its volumes are named after `name`.
pub(crate) fn receive(
    streams: impl Iterator<Item = io::Result<Box<dyn Read>>>,
    directory: &Path,
    name: &str,
    report: &dyn Report,
) -> Result<ReceiveSummary, ReceiveError> {
    fs::create_dir_all(directory)?;
    // Locks the name.
    let claim = Claim::new(&directory.join(name), report)?;
    let result = Receiver::open(directory, name, report).and_then(|mut receiver| {
        report.event(&Event::Stage { name: "receiving", bytes: None, objects: None });
        for stream in streams {
            receiver.stream(stream.map_err(ReceiveError::Stream)?)?;
        }
        receiver.finish()
    });
    let removed = fs::remove_file(&claim.partial); // it is empty
    let summary = result?;
    removed?;
    Ok(summary)
}

/// The volume that the stream delivers now.
enum Current {
    /// The next frame decides.
    Unknown,
    /// A volume that is there already.
    Known,
    /// Frames that are kept.
    Part(Box<Part>),
}

struct Receiver<'a> {
    directory: &'a Path,
    name: &'a str,
    report: &'a dyn Report,
    /// The set of the volumes. `None`: no label was received.
    set: Option<Digest>,
    /// The number of labels of each set. A label has no checksum: one with another set can be a corrupt one.
    sets: BTreeMap<Digest, u32>,
    labels: BTreeMap<u32, Label>,
    /// The volumes that are there.
    done: BTreeMap<u32, VolumeState>,
    /// The frames of the others.
    parts: BTreeMap<u32, Vec<Part>>,
    current: Current,
    /// The frames of the bundle, and the size of the frame that lists them.
    table: Option<(Vec<FrameEntry>, u64)>,
    /// The number of the last volume.
    last: Option<u32>,
    /// The number of the next file of frames.
    next_part: u32,
    /// True if something was received, or completed, since the last attempt to complete volumes.
    has_news: bool,
    has_foreign: bool,
}

impl<'a> Receiver<'a> {
    /// Reads what earlier runs received.
    fn open(directory: &'a Path, name: &'a str, report: &'a dyn Report) -> Result<Self, ReceiveError> {
        let mut receiver = Self {
            directory,
            name,
            report,
            set: None,
            sets: BTreeMap::new(),
            labels: BTreeMap::new(),
            done: BTreeMap::new(),
            parts: BTreeMap::new(),
            current: Current::Unknown,
            table: None,
            last: None,
            next_part: 1,
            has_news: true,
            has_foreign: false,
        };
        for (path, number) in volumes_of(directory, name, 1)? {
            if let Some(label) = read_label(&path)?.filter(|label| label.number == number) {
                receiver.set.get_or_insert(label.set);
                if receiver.set == Some(label.set) {
                    receiver.labels.insert(number, label);
                    receiver.note_done(number, VolumeState::Intact)?;
                }
            }
        }
        if receiver.path(SINGLE).is_file() {
            receiver.note_done(SINGLE, VolumeState::Intact)?;
        }
        receiver.read_parts()?;
        Ok(receiver)
    }

    fn read_parts(&mut self) -> Result<(), ReceiveError> {
        let parts = self.directory.join(PARTS);
        // Frames are not used if another user could have written them.
        let is_own =
            |metadata: std::fs::Metadata| metadata.is_dir() && own_file::check_owner(&metadata).is_ok();
        if parts.symlink_metadata().is_ok_and(|metadata| !is_own(metadata)) {
            let aside = own_file::put_aside(&parts)?;
            let message = format!(
                "`{}` is not used, because it is not yours: it is now `{}`",
                parts.display(),
                aside.display()
            );
            self.report.event(&Event::Warning { message });
        }
        fs::create_dir_all(&parts)?;
        let entries = std::fs::read_dir(&parts).map_err(FsError::at("read", &parts))?;
        for entry in entries {
            let path = entry.map_err(FsError::at("read", &parts))?.path();
            let name = fs::file_name(&path);
            let Some((prefix, count)) = name.split_once('-').filter(|_| path.is_file()) else { continue };
            self.next_part =
                self.next_part.max(count.parse().map_or(0, |count: u32| count.saturating_add(1)));
            let mut part = Part::open(path)?;
            let file = part.file.try_clone().map_err(FsError::at("open", &part.path))?;
            let mut scanner = Scanner::new(BufReader::new(file));
            while let Some(frame) = scanner.next_frame().map_err(FsError::at("read", &part.path))? {
                part.note(&frame);
                if let FrameKind::SeekTable(table) = frame.kind {
                    self.table = Some((table, u64::from(frame.entry.compressed)));
                }
            }
            // Bytes between the frames of a part are not in its file; only the order is known.
            part.has_gap = true;
            // A run that was killed did not give the last part its number.
            let number = prefix.parse().ok().or(part.label.map(|label| label.number));
            let number = number.or(part.has_start.then_some(1));
            let is_own = part.label.map_or(Ok(true), |label| self.accepts(label))?;
            match number.filter(|number| is_own && !self.done.contains_key(number)) {
                Some(number) => {
                    self.labels.extend(part.label.map(|label| (number, label)));
                    self.parts.entry(number).or_default().push(part);
                }
                None => part.remove()?,
            }
        }
        Ok(())
    }

    fn path(&self, number: u32) -> PathBuf {
        match number {
            SINGLE => self.directory.join(self.name),
            number => self.directory.join(volume_name(self.name, number)),
        }
    }

    /// Records a volume that is complete under its name.
    fn note_done(&mut self, number: u32, state: VolumeState) -> Result<(), FsError> {
        let path = self.path(number);
        let mut file = fs::open(&path)?;
        if seek_table::has_footer(&mut file).map_err(FsError::at("read", &path))? {
            self.last = Some(number);
            if self.table.is_none() {
                self.table = seek_table::read_last(&mut file).map_err(FsError::at("read", &path))?;
            }
        }
        self.done.insert(number, state);
        self.has_news = true;
        for part in self.parts.remove(&number).into_iter().flatten() {
            part.remove()?;
        }
        if state == VolumeState::Repaired {
            self.report.event(&Event::Note { message: format!("{}: repaired", path.display()) });
        }
        Ok(())
    }

    fn stream(&mut self, stream: impl Read) -> Result<(), ReceiveError> {
        let mut scanner = Scanner::new(stream);
        while let Some(frame) = scanner.next_frame().map_err(ReceiveError::Stream)? {
            self.report.event(&Event::Progress { id: 0, bytes: frame.bytes.len() as u64 });
            self.frame(frame)?;
        }
        self.end_volume()?;
        self.repair()
    }

    fn frame(&mut self, frame: ScannedFrame) -> Result<(), ReceiveError> {
        if frame.is_after_gap
            && let Current::Part(part) = &mut self.current
        {
            part.has_gap = true;
        }
        match &frame.kind {
            FrameKind::Start => {
                self.end_volume()?;
                self.current = Current::Part(Box::new(self.new_part()?));
            }
            FrameKind::Label(label) => self.begin_volume(*label)?,
            _ => {}
        }
        if let Current::Unknown = self.current {
            self.current = Current::Part(Box::new(self.new_part()?));
        }
        if let Current::Part(part) = &mut self.current {
            part.append(&frame)?;
        }
        if let FrameKind::SeekTable(table) = frame.kind {
            self.table = Some((table, u64::from(frame.entry.compressed)));
            self.has_news = true;
            self.end_volume()?;
            self.repair()?;
        }
        Ok(())
    }

    fn new_part(&mut self) -> Result<Part, FsError> {
        let count = self.next_part;
        self.next_part += 1;
        Part::create(self.directory.join(PARTS).join(format!("new-{count}")))
    }

    /// True if a label is that of a volume of the bundle, and not of another one. The most common set is that of the
    /// bundle, until a volume is complete.
    fn accepts(&mut self, label: Label) -> Result<bool, FsError> {
        let own = *self.set.get_or_insert(label.set);
        let count = self.sets.entry(label.set).or_default();
        *count += 1;
        let count = *count;
        if label.set == own {
            return Ok(true);
        }
        if self.done.is_empty() && count > self.sets.get(&own).copied().unwrap_or(0) {
            self.set = Some(label.set);
            self.labels.clear();
            for part in std::mem::take(&mut self.parts).into_values().flatten() {
                part.remove()?;
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// The next frames are those of the volume with this label.
    fn begin_volume(&mut self, label: Label) -> Result<(), ReceiveError> {
        if !self.accepts(label)? {
            if !std::mem::replace(&mut self.has_foreign, true) {
                let message = "the stream contains volumes of another bundle, which are ignored".to_owned();
                self.report.event(&Event::Warning { message });
            }
            self.end_volume()?;
            self.current = Current::Known;
            return Ok(());
        }
        self.labels.insert(label.number, label);
        self.has_news = true;
        // The head of the bundle precedes the label of the first volume.
        let is_head = matches!(&self.current, Current::Part(part) if part.label.is_none() && part.has_start);
        if !(label.number == 1 && is_head) {
            self.end_volume()?;
            self.current = Current::Part(Box::new(self.new_part()?));
        }
        if self.done.contains_key(&label.number)
            && let Current::Part(part) = std::mem::replace(&mut self.current, Current::Known)
        {
            part.remove()?;
        }
        Ok(())
    }

    /// No further frames belong to the current volume.
    fn end_volume(&mut self) -> Result<(), ReceiveError> {
        let Current::Part(mut part) = std::mem::replace(&mut self.current, Current::Unknown) else {
            return Ok(());
        };
        let number = match part.label {
            Some(label) => Some(label.number),
            None if self.labels.is_empty() => (part.has_start || part.has_end).then_some(SINGLE),
            // Its label was lost.
            None => part.has_start.then_some(1),
        };
        let Some(number) = number.filter(|number| !self.done.contains_key(number)) else {
            return Ok(part.remove()?);
        };
        let count = fs::file_name(&part.path).rsplit('-').next().unwrap_or_default().to_owned();
        let path = self.directory.join(PARTS).join(format!("{number}-{count}"));
        std::fs::rename(&part.path, &path).map_err(FsError::at("rename", &part.path))?;
        part.path = path;
        self.parts.entry(number).or_default().push(*part);
        self.has_news = true;
        self.publish_intact(number)
    }

    /// Returns the size of an intact volume. `None`: it is not known.
    fn len_of(&self, number: u32) -> Option<u64> {
        let next = self.next_label(number).map(|label| label.offset);
        let has_end = |part: &Part| part.has_end;
        let is_last = self.parts.get(&number).is_some_and(|parts| parts.iter().any(has_end));
        let table = self.table.as_ref().filter(|_| is_last);
        let end = table.map(|(table, len)| seek_table::bundle_len(table, *len));
        next.or(end)?.checked_sub(self.start_of(number)?)
    }

    /// Returns the offset of a volume in the bundle. `None`: it is not known.
    fn start_of(&self, number: u32) -> Option<u64> {
        if number == SINGLE { Some(0) } else { self.labels.get(&number).map(|label| label.offset) }
    }

    /// Returns the label of the volume after this one. `None`: there is none, or it is not known.
    fn next_label(&self, number: u32) -> Option<&Label> {
        self.labels.get(&(number + 1)).filter(|_| number != SINGLE)
    }

    /// Gives a part its final name if it is an intact volume.
    fn publish_intact(&mut self, number: u32) -> Result<(), ReceiveError> {
        let expected = self.len_of(number);
        let Some(parts) = self.parts.get(&number) else { return Ok(()) };
        let next_stream = self.next_label(number).map(|label| label.stream);
        let is_intact = |part: &&Part| {
            let len = expected.or(part.stated_len);
            let has_stream = part
                .label
                .zip(next_stream)
                .is_none_or(|(label, next)| label.stream.checked_add(part.stream) == Some(next));
            let is_complete =
                !part.has_gap && len == Some(part.len) && has_stream && self.follows_table(number, part);
            is_complete
                && (part.label.is_some() || number == SINGLE)
                && agrees_with_recovery(part)
                && is_unambiguous(part, parts)
        };
        let Some(part) = parts.iter().find(is_intact) else { return Ok(()) };
        let synced = own_file::open_up(&part.file).and_then(|()| part.file.sync_all());
        synced.map_err(FsError::at("sync", &part.path))?;
        let target = self.path(number);
        // Nothing of that name is overwritten, except by its own volume.
        fs::rename_durably(&part.path, &target)?;
        self.note_done(number, VolumeState::Intact)?;
        Ok(())
    }

    /// True unless the part ends the bundle and the seek table at its end is that of other frames.
    fn follows_table(&self, number: u32, part: &Part) -> bool {
        if !part.has_end {
            return true;
        }
        let Some((table, _)) = &self.table else { return false };
        let frames = &part.frames[..part.frames.len().saturating_sub(1)];
        let own = table.len().checked_sub(frames.len()).map(|start| &table[start..]);
        own == Some(frames) && (number > 1 || table.len() == frames.len())
    }

    /// Completes volumes from their recovery data, or from several transmissions. An attempt reads all of the volume: it is
    /// not repeated without anything new.
    fn repair(&mut self) -> Result<(), ReceiveError> {
        if !std::mem::take(&mut self.has_news) {
            return Ok(());
        }
        for number in self.parts.keys().copied().collect::<Vec<_>>() {
            self.publish_intact(number)?;
            if self.done.contains_key(&number) {
                continue;
            }
            let target = self.path(number);
            let claim = (number != SINGLE).then(|| Claim::new(&target, self.report)).transpose()?;
            let partial = match &claim {
                Some(claim) => claim.partial.clone(),
                None => self.directory.join(PARTS).join("single"),
            };
            let file = match &claim {
                Some(claim) => claim.lock()?,
                None => own_file::open_or_create(&partial)?,
            };
            file.set_len(0).map_err(FsError::at("truncate", &partial))?;
            if self.write_repaired(number, &file, &partial)? {
                let synced = own_file::open_up(&file).and_then(|()| file.sync_all());
                synced.map_err(FsError::at("sync", &partial))?;
                fs::rename_durably(&partial, &target)?;
                self.note_done(number, VolumeState::Repaired)?;
            } else {
                fs::remove_file(&partial)?;
            }
        }
        Ok(())
    }

    /// Writes the volume if its parts suffice. Returns false if they do not.
    fn write_repaired(&self, number: u32, file: &File, path: &Path) -> Result<bool, FsError> {
        let Some(parts) = self.parts.get(&number) else { return Ok(false) };
        let stated = parts.iter().find_map(|part| part.stated_len);
        let Some(len) = stated.or_else(|| self.len_of(number)) else { return Ok(false) };
        let slots = self.slots(number, len);
        let mut views = Vec::new();
        let mut certain: BTreeMap<usize, (&File, u64)> = BTreeMap::new();
        for part in parts {
            views.push(View::from_start(&part.file, &part.frames, len));
            views.push(View::from_end(&part.file, &part.frames, len));
            let [early, late] = assignments(&part.frames, &slots);
            for assigned in [&early, &late] {
                views.push(View::in_slots(&part.file, &part.frames, &slots, assigned, len));
            }
            let mut position = 0;
            for ((entry, early), late) in part.frames.iter().zip(&early).zip(&late) {
                if let Some(slot) = early.filter(|_| early == late) {
                    certain.entry(slot).or_insert((&part.file, position));
                }
                position += u64::from(entry.compressed);
            }
        }
        if let Some(recovery) = views.iter().find_map(|view| Recovery::find(view, len)) {
            let write = |offset, bytes: &[u8]| bulk::write_all_at(file, bytes, offset);
            let is_repaired = match recovery.repair(&Views(views), write, |_| {}) {
                Err(RecoveryError::Write(source)) => return Err(FsError::at("write", path)(source)),
                result => result.is_ok(),
            };
            // Not the volume of another number whose label was lost.
            let label = if is_repaired { read_label(path)? } else { None };
            return Ok(is_repaired && label.map_or(SINGLE, |label| label.number) == number);
        }
        let is_ambiguous = parts.iter().any(Part::has_twins);
        if slots.is_empty() || certain.len() < slots.len() || is_ambiguous {
            return Ok(false);
        }
        for (slot, (source, position)) in certain {
            let (offset, entry) = slots[slot];
            let mut bytes = vec![0; entry.compressed as usize];
            source.read_exact_at(&mut bytes, position).map_err(FsError::at("read", path))?;
            bulk::write_all_at(file, &bytes, offset).map_err(FsError::at("write", path))?;
        }
        Ok(true)
    }

    /// Returns the frames of the volume, with their offsets in it, as the seek table lists them. Empty: not known.
    fn slots(&self, number: u32, len: u64) -> Vec<(u64, FrameEntry)> {
        let (Some((table, table_len)), Some(start)) = (&self.table, self.start_of(number)) else {
            return Vec::new();
        };
        let slots = seek_table::frames_in(table, *table_len, &(start..start + len));
        let end = slots.last().map_or(0, |(offset, entry)| offset + u64::from(entry.compressed));
        if end == len { slots } else { Vec::new() }
    }

    /// Writes the checksum list if everything is there, and returns the state of all volumes.
    fn finish(mut self) -> Result<ReceiveSummary, ReceiveError> {
        self.repair()?;
        let known: BTreeSet<u32> =
            self.labels.keys().chain(self.done.keys()).chain(self.parts.keys()).copied().collect();
        let is_single = self.labels.is_empty() && known.contains(&SINGLE);
        self.last = self.last.filter(|last| (*last == SINGLE) == is_single);
        let last = self.last.or_else(|| known.last().copied()).unwrap_or(0);
        let numbers = if is_single { SINGLE..=SINGLE } else { 1..=last };
        let state = |number: u32| match self.done.get(&number) {
            Some(state) => *state,
            None if self.parts.contains_key(&number) => VolumeState::Damaged,
            None => VolumeState::Missing,
        };
        let volumes: Vec<_> = numbers
            .clone()
            .map(|number| ReceivedVolume { name: fs::file_name(&self.path(number)), state: state(number) })
            .collect();
        let complete = self.last.is_some() && numbers.clone().all(|number| self.done.contains_key(&number));
        if complete && !is_single {
            let mut text = String::new();
            for number in numbers {
                let path = self.path(number);
                let (digest, _) = hash(&fs::open(&path)?).map_err(FsError::at("read", &path))?;
                text.push_str(&sums::line(digest, &fs::file_name(&path)));
            }
            OutputFile::write(&self.directory.join(SUMS), Access::Default, text.as_bytes())?;
        }
        let parts = self.directory.join(PARTS);
        if complete {
            std::fs::remove_dir_all(&parts).map_err(FsError::at("remove", &parts))?;
        } else {
            let _ = std::fs::remove_dir(&parts); // if it is empty
        }
        Ok(ReceiveSummary { volumes, complete, end_missing: self.last.is_none() })
    }
}

/// True unless the part has recovery data and a block does not have its checksum.
fn agrees_with_recovery(part: &Part) -> bool {
    part.stated_len.is_none()
        || Recovery::find(&part.file, part.len).is_some_and(|recovery| {
            recovery.volume_len() == part.len && recovery.damage(&part.file, |_| {}).is_empty()
        })
}

/// True if recovery data has verified the part, no frame can have been repeated, or another transmission agrees.
fn is_unambiguous(part: &Part, parts: &[Part]) -> bool {
    part.stated_len.is_some()
        || !part.has_twins()
        || parts.iter().any(|other| other.path != part.path && other.is_equal(part))
}
