//! Verifying: reads a whole bundle, checks every blob, and names everything that is damaged.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Read as _;
use std::ops::Range;

use serde::Serialize;

use crate::base::buffer::Slice;
use crate::base::event::{Event, Report};
use crate::base::pipeline::{Discard, Pipeline};
use crate::bundle::format::layout::{Layout, TarEntry, Totals, tar_header};
use crate::bundle::format::{BLOCK, frame, seek_table};
use crate::bundle::read::error::{ReadError, Unavailable};
use crate::bundle::read::frame_error::FrameError;
use crate::bundle::read::problem::{DamageKind, Position, VolumeProblem};
use crate::bundle::read::reader::BundleReader;
use crate::bundle::read::tar_stream::Piece;
use crate::bundle::read::volume_set::VolumeSet;
use crate::oci::digest::Digest;
use crate::signature::Signed;

/// What a bundle is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The digest of `index.json`.
    pub identity: Digest,
    /// How many blobs the bundle has.
    pub blobs: usize,
    /// The bytes of those blobs.
    pub bytes: u64,
    /// Whether all of them were read and checked.
    pub contents_read: bool,
    /// Of a delta: what it leaves out, and nobody has checked.
    #[serde(skip_serializing_if = "Totals::is_nothing")]
    pub left_out: Totals,
    /// Who has signed it.
    #[serde(rename = "signature", skip_serializing_if = "Option::is_none")]
    pub signed: Option<Signed>,
    /// Its volumes, the first one first; a bundle in one file is one. Nothing if it came through a pipe.
    pub volumes: Vec<VolumeState>,
    /// Where frames were damaged and recovery data has repaired them: those are as good as whole.
    #[serde(rename = "mended", skip_serializing_if = "Vec::is_empty")]
    pub repaired: Vec<Position>,
    /// What is wrong with the volumes as files.
    pub problems: Vec<VolumeProblem>,
    /// Everything that is damaged or missing, in the order of the bundle; nothing if the bundle is sound.
    pub damage: Vec<Damage>,
}

/// How a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeState {
    /// What it is called.
    pub name: String,
    /// Where it begins, in bytes from the start of the bundle.
    pub offset: u64,
    /// How many bytes it has, or should have.
    pub size: u64,
    /// What is wrong with it: then it is to be carried again, and no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<DamageKind>,
}

/// Something in a bundle that is damaged or missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    /// The entry: `blobs/sha256/…`.
    pub object: String,
    /// The images and files that it belongs to.
    pub owners: Vec<String>,
    /// Where the frames begin that cannot be read, as far as that is known.
    pub places: BTreeSet<Position>,
    /// What kind of trouble it is.
    pub trouble: DamageKind,
    /// What is wrong, for a person.
    pub problem: String,
}

impl Verdict {
    /// The worst of all that is wrong; nothing if the bundle is sound. What is missing of the volumes does not matter where
    /// everything was read all the same, with the help of recovery data.
    #[must_use]
    pub fn worst(&self) -> Option<DamageKind> {
        let gaps = self.problems.iter().filter(|problem| !self.contents_read && !problem.is_harmless());
        self.damage.iter().map(|damage| damage.trouble).chain(gaps.map(|_| DamageKind::Missing)).max()
    }
}

/// Checks the bundle that `reader` reads. An error means that its documents cannot be read, so that nobody can
/// say what should be in it; all other damage is part of the verdict.
pub fn verify(mut reader: BundleReader, report: &dyn Report) -> Result<Verdict, ReadError> {
    let contents = reader.contents()?;
    let layout = &contents.layout;
    let entries: Vec<TarEntry> = layout.entries().skip(2 + layout.manifests.len()).collect();
    let bytes = entries.iter().map(|entry| entry.size).sum();
    report.event(&Event::Stage {
        name: "verifying",
        bytes: Some(bytes),
        objects: Some(entries.len() as u64),
    });

    let mut found = Found::default();
    let (mut lanes, ended) = Pipeline::start();
    let hashed = std::thread::scope(|scope| {
        let hashed =
            scope.spawn(move || ended.iter().map(|ended| (ended.number, ended.result)).collect::<Vec<_>>());
        for (number, entry) in entries.iter().enumerate() {
            if found.end.is_some() {
                break;
            }
            found.entry(&mut reader, &mut lanes, number, entry, report);
        }
        lanes.finish();
        hashed.join().expect("collecting does not panic; please report")
    });
    for (number, result) in hashed {
        let (digest, _) = result.expect("nothing is written, so no write fails; please report");
        if Some(digest) != entries[number].digest {
            found.damaged(number, "its bytes do not have this digest");
        }
    }
    let mut damage = found.damage(&entries, layout, &reader);
    if found.end.is_none()
        && let Err(error) = reader.end()
    {
        damage.push(tail(&error));
    }
    let (identity, signed) = (contents.identity, contents.signed);
    Ok(verdict(identity, signed, layout, true, damage, &reader))
}

/// Looks at the structure of the bundle that `reader` reads, and not at the contents: its documents are read and checked,
/// its volumes must have the right lengths, its seek table the frames that follow from the documents, and a frame must
/// begin where the table says. Nothing of a bundle that cannot be read at any place.
pub fn quick(mut reader: BundleReader, report: &dyn Report) -> Result<Option<Verdict>, ReadError> {
    let contents = reader.contents()?;
    let layout = &contents.layout;
    let Some(medium) = reader.volumes() else { return Ok(None) };
    let damage = match reader.table() {
        None => vec![no_table(medium)],
        Some(table) => {
            report.event(&Event::Stage {
                name: "looking at",
                bytes: None,
                objects: Some(table.len() as u64),
            });
            let (frames, mut damage) = frames(table, layout, medium);
            let entries: Vec<TarEntry> = layout.entries().collect();
            let mut found = Found::default();
            for BadFrame { offset, content, error } in frames {
                let first = entries.partition_point(|entry| end(entry) <= content.start);
                let last = entries.partition_point(|entry| entry.offset < content.end);
                for number in first..last {
                    found.lost(number, offset, &error);
                }
                if first == last {
                    damage.push(without_content(reader.position(offset), &error));
                }
            }
            damage.splice(0..0, found.damage(&entries, layout, &reader));
            damage
        }
    };
    let (identity, signed) = (contents.identity, contents.signed);
    Ok(Some(verdict(identity, signed, layout, false, damage, &reader)))
}

fn verdict(
    identity: Digest,
    signed: Option<Signed>,
    layout: &Layout,
    contents_read: bool,
    damage: Vec<Damage>,
    reader: &BundleReader,
) -> Verdict {
    let medium = reader.volumes();
    let repaired = if contents_read { repaired(reader) } else { reader.repaired() };
    let problems = medium.map(|medium| medium.problems().to_vec()).unwrap_or_default();
    let volumes = medium.map(|medium| volumes(medium, &damage, &repaired)).unwrap_or_default();
    let (blobs, bytes) = (layout.manifests.len() + layout.blobs.len(), layout.total_size());
    Verdict {
        identity,
        blobs,
        bytes,
        contents_read,
        left_out: layout.external_totals(),
        signed,
        volumes,
        repaired,
        problems,
        damage,
    }
}

/// Where recovery data was needed, or is damaged itself.
fn repaired(reader: &BundleReader) -> Vec<Position> {
    let of_recovery = reader.volumes().map(VolumeSet::damaged_recovery).unwrap_or_default();
    let all: BTreeSet<Position> = reader.repaired().into_iter().chain(of_recovery).collect();
    all.into_iter().collect()
}

/// How each volume is: as the worst of what is in it.
fn volumes(medium: &VolumeSet, damage: &[Damage], repaired: &[Position]) -> Vec<VolumeState> {
    let mut troubles: BTreeMap<u64, DamageKind> =
        repaired.iter().map(|place| (place.offset, DamageKind::Damaged)).collect();
    for damage in damage {
        for place in &damage.places {
            let worst = troubles.entry(place.offset).or_insert(damage.trouble);
            *worst = (*worst).max(damage.trouble);
        }
    }
    let mut states = Vec::new();
    for volume in medium.volumes() {
        let is_cut = medium.problems().iter().any(|problem| match problem {
            VolumeProblem::Missing { volume: name } | VolumeProblem::Truncated { volume: name, .. } => {
                *name == volume.name
            }
            _ => false,
        });
        let inside =
            troubles.range(volume.start..volume.start + volume.len.max(1)).map(|(_, trouble)| *trouble);
        states.push(VolumeState {
            name: volume.name.clone(),
            offset: volume.start,
            size: volume.len,
            trouble: inside.chain(is_cut.then_some(DamageKind::Missing)).max(),
        });
    }
    states
}

fn end(entry: &TarEntry) -> u64 {
    entry.offset + BLOCK as u64 + crate::bundle::format::padded(entry.size)
}

/// A frame that does not begin as it should.
struct BadFrame {
    offset: u64,
    /// What of the tar stream it holds.
    content: Range<u64>,
    error: FrameError,
}

/// Compares the frames of `table` with those that follow from the documents, and looks at the first bytes of each.
fn frames(
    table: &[seek_table::FrameEntry],
    layout: &Layout,
    medium: &VolumeSet,
) -> (Vec<BadFrame>, Vec<Damage>) {
    let mut damage = Vec::new();
    let said: Vec<u64> = table.iter().map(|entry| entry.decompressed.into()).filter(|len| *len > 0).collect();
    let cuts = layout.cuts();
    if said != cuts {
        let number = said.iter().zip(&cuts).take_while(|(said, cut)| said == cut).count();
        let bytes = |len: Option<&u64>| len.map_or("none".to_owned(), |len| format!("one of {len} bytes"));
        let problem = format!(
            "it does not fit what the bundle should hold: as frame {} it has {}, and there should be {}",
            number + 1,
            bytes(said.get(number)),
            bytes(cuts.get(number))
        );
        damage.push(whole("the seek table", DamageKind::Damaged, problem));
    }
    let (mut bad, mut offset, mut stream) = (Vec::new(), 0, 0);
    for entry in table {
        let content = stream..stream + u64::from(entry.decompressed);
        let mut head = Vec::new();
        let len = frame::HEADER_LEN.min(entry.compressed as usize);
        let error = match medium.reader(offset).take(len as u64).read_to_end(&mut head) {
            Err(error) => Some(FrameError::of(error)),
            Ok(read) if read < len => Some(FrameError::Truncated),
            Ok(_) if frame::is_header_of(&head, *entry) => None,
            Ok(_) => Some(FrameError::Corrupt),
        };
        bad.extend(error.map(|error| BadFrame { offset, content: content.clone(), error }));
        (offset, stream) = (offset + u64::from(entry.compressed), content.end);
    }
    (bad, damage)
}

/// Why there is no seek table.
fn no_table(medium: &VolumeSet) -> Damage {
    let (trouble, problem) = match seek_table::has_footer(&mut medium.reader(0)) {
        Ok(true) => {
            (DamageKind::Damaged, "it is damaged, or there is more or less before it than it says".to_owned())
        }
        Ok(false) => (
            DamageKind::Missing,
            "it is not there: the bundle is cut short, or its end is damaged".to_owned(),
        ),
        Err(error) => {
            let error = FrameError::of(error);
            (error.trouble(), error.text())
        }
    };
    whole("the seek table", trouble, problem)
}

fn without_content(place: Position, error: &FrameError) -> Damage {
    Damage { places: [place].into(), ..whole("a frame without content", error.trouble(), problem(error)) }
}

/// Damage of something that no image and no file needs.
fn whole(object: &str, trouble: DamageKind, problem: String) -> Damage {
    Damage { object: object.to_owned(), owners: Vec::new(), places: BTreeSet::new(), trouble, problem }
}

/// What is wrong with a frame, for a person.
fn problem(error: &FrameError) -> String {
    match error.trouble() {
        DamageKind::Damaged => "a damaged frame".to_owned(),
        DamageKind::Missing | DamageKind::Unreadable => error.text(),
    }
}

/// What has been found so far, by the number of the entry.
#[derive(Default)]
struct Found {
    problems: BTreeMap<usize, Noted>,
    /// From which entry on nothing can be read, where that is, and why.
    end: Option<(usize, u64, FrameError)>,
}

/// What is wrong with one entry.
struct Noted {
    offsets: BTreeSet<u64>,
    trouble: DamageKind,
    /// What was found first.
    problem: String,
}

impl Found {
    fn entry(
        &mut self,
        reader: &mut BundleReader,
        lanes: &mut Pipeline<Discard>,
        number: usize,
        entry: &TarEntry,
        report: &dyn Report,
    ) {
        let mut header = Vec::new();
        self.pieces(reader, number, BLOCK as u64, |slice| header.extend_from_slice(&slice));
        if header.len() == BLOCK && header != tar_header(&entry.name, entry.size) {
            self.damaged(number, "another tar header stands where its own belongs");
        }
        lanes.begin(number, Discard);
        let mut whole = 0;
        self.pieces(reader, number, entry.size, |slice| {
            whole += slice.len() as u64;
            report.event(&Event::Progress { id: 0, bytes: slice.len() as u64 });
            lanes.data(slice);
        });
        if whole == entry.size {
            lanes.end();
        } else {
            lanes.abandon();
        }
        let mut zero = true;
        let padding = crate::bundle::format::padded(entry.size) - entry.size;
        self.pieces(reader, number, padding, |slice| zero &= slice.iter().all(|byte| *byte == 0));
        if !zero {
            self.damaged(number, "bytes that are not zero in its padding");
        }
    }

    /// Takes the next `len` bytes, as far as there are any.
    fn pieces(&mut self, reader: &mut BundleReader, number: usize, len: u64, mut take: impl FnMut(Slice)) {
        let mut left = len;
        while left > 0 && self.end.is_none() {
            match reader.piece(left) {
                Ok(Piece::Data(slice)) => {
                    left -= slice.len() as u64;
                    take(slice);
                }
                Ok(Piece::Hole { len, offset, error }) => {
                    left -= len;
                    self.lost(number, offset, &error);
                }
                Err((offset, error)) => self.end = Some((number, offset, error)),
            }
        }
    }

    fn damaged(&mut self, number: usize, what: &str) {
        self.note(number, None, DamageKind::Damaged, || what.to_owned());
    }

    fn lost(&mut self, number: usize, offset: u64, error: &FrameError) {
        self.note(number, Some(offset), error.trouble(), || problem(error));
    }

    fn note(
        &mut self,
        number: usize,
        offset: Option<u64>,
        trouble: DamageKind,
        problem: impl FnOnce() -> String,
    ) {
        let noted = self.problems.entry(number).or_insert_with(|| Noted {
            offsets: BTreeSet::new(),
            trouble,
            problem: problem(),
        });
        noted.trouble = noted.trouble.max(trouble);
        noted.offsets.extend(offset);
    }

    fn damage(&self, entries: &[TarEntry], layout: &Layout, reader: &BundleReader) -> Vec<Damage> {
        let lost = self.end.as_ref().map_or(entries.len(), |(first, ..)| *first)..entries.len();
        let hit: HashSet<Digest> = (self.problems.keys().copied().chain(lost.clone()))
            .filter_map(|number| entries[number].digest)
            .collect();
        let owners = if hit.is_empty() { HashMap::new() } else { layout.owners(&hit) };
        let damage = |number: usize, offsets: &BTreeSet<u64>, trouble: DamageKind, problem: &str| {
            let entry = &entries[number];
            Damage {
                object: entry.name.clone(),
                owners: entry.digest.and_then(|digest| owners.get(&digest)).cloned().unwrap_or_default(),
                places: offsets.iter().map(|offset| reader.position(*offset)).collect(),
                trouble,
                problem: problem.to_owned(),
            }
        };
        let mut all: Vec<_> = self
            .problems
            .range(..lost.start)
            .map(|(number, noted)| damage(*number, &noted.offsets, noted.trouble, &noted.problem))
            .collect();
        if let Some((_, offset, error)) = &self.end {
            let (offsets, problem) = ([*offset].into(), error.text());
            all.extend(lost.map(|number| damage(number, &offsets, error.trouble(), &problem)));
        }
        all
    }
}

/// Damage behind the last blob: nothing that is unpacked is hit.
fn tail(error: &ReadError) -> Damage {
    let places = match error {
        ReadError::Damaged { position, .. } => [(**position).clone()].into(),
        _ => BTreeSet::new(),
    };
    let Unavailable { trouble, problem } = Unavailable::from(error);
    Damage { places, ..whole("the end of the bundle", trouble, problem) }
}
