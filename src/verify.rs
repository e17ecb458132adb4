//! Verifying: reads a whole bundle, checks every blob, and names everything that is damaged.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::Serialize;

use crate::bundle::BLOCK;
use crate::bundle::lanes::{Lanes, Nowhere};
use crate::bundle::layout::{Amount, Entry, Layout, tar_header};
use crate::bundle::medium::{Medium, Place};
use crate::bundle::reader::{BundleReader, Piece, ReadError};
use crate::digest::Digest;
use crate::event::{Event, Report};
use crate::signature::Signed;

/// What a bundle is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The digest of `index.json`.
    pub identity: Digest,
    /// How many blobs were checked.
    pub blobs: usize,
    /// The bytes of those blobs.
    pub bytes: u64,
    /// Of a delta: what it leaves out, and nobody has checked.
    #[serde(skip_serializing_if = "Amount::is_nothing")]
    pub left_out: Amount,
    /// Who has signed it.
    #[serde(rename = "signature", skip_serializing_if = "Option::is_none")]
    pub signed: Option<Signed>,
    /// Where frames were damaged and recovery data has mended them: those are as good as whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mended: Vec<Place>,
    /// Everything that is damaged, in the order of the bundle; nothing if the bundle is sound.
    pub damage: Vec<Damage>,
}

/// Something in a bundle that is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    /// The entry: `blobs/sha256/…`.
    pub object: String,
    /// The images and files that it belongs to.
    pub owners: Vec<String>,
    /// Where the damaged frames begin, in bytes from the start of the bundle, as far as that is known.
    pub offsets: BTreeSet<u64>,
    /// What is wrong, for a person.
    pub problem: String,
}

/// Checks the bundle that `reader` reads. An error means that its documents cannot be read, so that nobody can
/// say what should be in it; all other damage is part of the verdict.
pub fn verify(mut reader: BundleReader, report: &dyn Report) -> Result<Verdict, ReadError> {
    let contents = reader.contents()?;
    let layout = &contents.layout;
    let entries: Vec<Entry> = layout.entries().skip(2 + layout.manifests.len()).collect();
    let bytes = entries.iter().map(|entry| entry.size).sum();
    report.event(&Event::Stage {
        name: "verifying",
        bytes: Some(bytes),
        objects: Some(entries.len() as u64),
    });

    let mut found = Found::default();
    let (mut lanes, ended) = Lanes::start();
    let hashed = std::thread::scope(|scope| {
        let hashed =
            scope.spawn(move || ended.iter().map(|ended| (ended.number, ended.result)).collect::<Vec<_>>());
        for (number, entry) in entries.iter().enumerate() {
            if found.unreadable.is_some() {
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
            found.note(number, None, "its bytes do not have this digest");
        }
    }
    let mut damage = found.damage(&entries, layout);
    if found.unreadable.is_none()
        && let Err(error) = reader.end()
    {
        damage.push(tail(&error));
    }
    let checked = layout.manifests.len() + entries.len();
    let (identity, bytes) = (contents.identity, layout.total_size());
    let (left_out, mended) = (layout.left_out(), mended(&reader));
    Ok(Verdict { identity, blobs: checked, bytes, left_out, signed: contents.signed, mended, damage })
}

/// Where recovery data was needed, or is damaged itself.
fn mended(reader: &BundleReader) -> Vec<Place> {
    let of_recovery = reader.medium().map(Medium::damaged_recovery).unwrap_or_default();
    let all: BTreeSet<Place> = reader.mended().into_iter().chain(of_recovery).collect();
    all.into_iter().collect()
}

/// What has been found so far, by the number of the entry.
#[derive(Default)]
struct Found {
    problems: BTreeMap<usize, (BTreeSet<u64>, &'static str)>,
    /// From which entry on nothing can be read, and why.
    unreadable: Option<(usize, u64, String)>,
}

impl Found {
    fn entry(
        &mut self,
        reader: &mut BundleReader,
        lanes: &mut Lanes<Nowhere>,
        number: usize,
        entry: &Entry,
        report: &dyn Report,
    ) {
        let mut header = Vec::new();
        self.pieces(reader, number, BLOCK as u64, |slice| header.extend_from_slice(slice));
        if header.len() == BLOCK && header != tar_header(&entry.name, entry.size) {
            self.note(number, None, "another tar header stands where its own belongs");
        }
        lanes.begin(number, Nowhere);
        let mut whole = 0;
        let mut left = entry.size;
        while left > 0 && self.unreadable.is_none() {
            match reader.piece(left) {
                Ok(Piece::Data(slice)) => {
                    left -= slice.len() as u64;
                    whole += slice.len() as u64;
                    report.event(&Event::Progress { id: 0, bytes: slice.len() as u64 });
                    lanes.data(slice);
                }
                Ok(Piece::Hole { len, offset }) => {
                    left -= len;
                    self.note(number, Some(offset), "a damaged frame");
                }
                Err((offset, error)) => self.unreadable = Some((number, offset, error.to_string())),
            }
        }
        if whole == entry.size {
            lanes.end();
        } else {
            lanes.abandon();
        }
        let mut zero = true;
        let padding = crate::bundle::padded(entry.size) - entry.size;
        self.pieces(reader, number, padding, |slice| zero &= slice.iter().all(|byte| *byte == 0));
        if !zero {
            self.note(number, None, "bytes that are not zero in its padding");
        }
    }

    fn pieces(&mut self, reader: &mut BundleReader, number: usize, len: u64, mut take: impl FnMut(&[u8])) {
        let mut left = len;
        while left > 0 && self.unreadable.is_none() {
            match reader.piece(left) {
                Ok(Piece::Data(slice)) => {
                    left -= slice.len() as u64;
                    take(&slice);
                }
                Ok(Piece::Hole { len, offset }) => {
                    left -= len;
                    self.note(number, Some(offset), "a damaged frame");
                }
                Err((offset, error)) => self.unreadable = Some((number, offset, error.to_string())),
            }
        }
    }

    fn note(&mut self, number: usize, offset: Option<u64>, problem: &'static str) {
        let (offsets, _) = self.problems.entry(number).or_insert((BTreeSet::new(), problem));
        offsets.extend(offset);
    }

    fn damage(&self, entries: &[Entry], layout: &Layout) -> Vec<Damage> {
        let lost = self.unreadable.as_ref().map_or(entries.len(), |(first, ..)| *first)..entries.len();
        let hit: HashSet<Digest> = (self.problems.keys().copied().chain(lost.clone()))
            .filter_map(|number| entries[number].digest)
            .collect();
        let owners = if hit.is_empty() { HashMap::new() } else { layout.owners(&hit) };
        let damage = |number: usize, offsets: &BTreeSet<u64>, problem: &str| {
            let entry = &entries[number];
            Damage {
                object: entry.name.clone(),
                owners: entry.digest.and_then(|digest| owners.get(&digest)).cloned().unwrap_or_default(),
                offsets: offsets.clone(),
                problem: problem.to_owned(),
            }
        };
        let mut all: Vec<_> = self
            .problems
            .range(..lost.start)
            .map(|(number, (offsets, problem))| damage(*number, offsets, problem))
            .collect();
        if let Some((_, offset, why)) = &self.unreadable {
            all.extend(lost.map(|number| damage(number, &[*offset].into(), why)));
        }
        all
    }
}

/// Damage behind the last blob: nothing that is unpacked is hit.
fn tail(error: &ReadError) -> Damage {
    let offsets = match error {
        ReadError::Damaged { place, .. } => [place.offset].into(),
        _ => BTreeSet::new(),
    };
    let mut problem = error.to_string();
    if let Some(source) = std::error::Error::source(error) {
        problem = format!("{problem}: {source}");
    }
    Damage { object: "the end of the bundle".into(), owners: Vec::new(), offsets, problem }
}
