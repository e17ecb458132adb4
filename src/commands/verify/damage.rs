//! [`DamageLog`]: the damage noted while entries are checked.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::Serialize;

use crate::bundle::format::layout::{Layout, TarEntry};
use crate::bundle::read::frame_error::FrameError;
use crate::bundle::read::problem::{DamageKind, Position};
use crate::bundle::read::reader::BundleReader;
use crate::oci::digest::Digest;

/// The directory of the blobs in a bundle.
const BLOBS: &str = "blobs/";

/// An entry of the bundle that is damaged or missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    /// The name of the entry: `blobs/sha256/…`.
    pub object: String,
    /// The images and files that need it.
    pub owners: Vec<String>,
    /// Start of each unreadable frame, as far as known.
    pub places: BTreeSet<Position>,
    /// The worst kind of damage.
    pub trouble: DamageKind,
    /// The error message.
    pub problem: String,
}

impl Damage {
    /// True if a blob is damaged, and not the documents or the structure of the bundle.
    #[must_use]
    pub fn is_blob(&self) -> bool {
        self.object.starts_with(BLOBS)
    }

    /// Damage outside of blobs, which no image or file needs.
    pub(crate) fn of_structure(object: &str, trouble: DamageKind, problem: String) -> Self {
        Self { object: object.to_owned(), owners: Vec::new(), places: BTreeSet::new(), trouble, problem }
    }
}

/// The damage noted while entries are checked, by the number of the entry.
#[derive(Default)]
pub(super) struct DamageLog {
    entries: BTreeMap<usize, EntryDamage>,
    /// `None`: the bundle can be read to its end.
    end: Option<End>,
}

/// The damage of one entry.
struct EntryDamage {
    /// Start of each unreadable frame, in bytes from the start of the bundle.
    offsets: BTreeSet<u64>,
    /// The worst kind.
    kind: DamageKind,
    /// The first error message.
    problem: String,
}

/// The position from which the bundle cannot be read any more.
struct End {
    /// The number of the entry.
    number: usize,
    /// Bytes from the start of the bundle.
    offset: u64,
    error: FrameError,
}

impl DamageLog {
    /// True if the bundle cannot be read any more.
    pub(super) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Notes that neither the rest of this entry nor those after it can be read.
    pub(super) fn end(&mut self, number: usize, offset: u64, error: FrameError) {
        self.end = Some(End { number, offset, error });
    }

    /// Notes that the bytes of the entry are invalid.
    pub(super) fn damaged(&mut self, number: usize, problem: &str) {
        self.note(number, None, DamageKind::Damaged, || problem.to_owned());
    }

    /// Notes that a frame of the entry, which begins at `offset`, cannot be read.
    pub(super) fn unreadable(&mut self, number: usize, offset: u64, error: &FrameError) {
        self.note(number, Some(offset), error.trouble(), || frame_problem(error));
    }

    fn note(
        &mut self,
        number: usize,
        offset: Option<u64>,
        kind: DamageKind,
        problem: impl FnOnce() -> String,
    ) {
        let entry = self.entries.entry(number).or_insert_with(|| EntryDamage {
            offsets: BTreeSet::new(),
            kind,
            problem: problem(),
        });
        entry.kind = entry.kind.max(kind);
        entry.offsets.extend(offset);
    }

    /// Returns the damage in the order of the bundle. `entries` are those that the numbers refer to.
    pub(super) fn damage(&self, entries: &[TarEntry], layout: &Layout, reader: &BundleReader) -> Vec<Damage> {
        let unread = self.end.as_ref().map_or(entries.len(), |end| end.number)..entries.len();
        let digests: HashSet<Digest> = (self.entries.keys().copied().chain(unread.clone()))
            .filter_map(|number| entries[number].digest)
            .collect();
        let owners = if digests.is_empty() { HashMap::new() } else { layout.owners(&digests) };
        let damage = |number: usize, offsets: &BTreeSet<u64>, kind: DamageKind, problem: &str| {
            let entry = &entries[number];
            Damage {
                object: entry.name.clone(),
                owners: entry.digest.and_then(|digest| owners.get(&digest)).cloned().unwrap_or_default(),
                places: offsets.iter().map(|offset| reader.position(*offset)).collect(),
                trouble: kind,
                problem: problem.to_owned(),
            }
        };
        let read = self.entries.range(..unread.start);
        let mut all: Vec<_> =
            read.map(|(number, entry)| damage(*number, &entry.offsets, entry.kind, &entry.problem)).collect();
        if let Some(End { offset, error, .. }) = &self.end {
            let (offsets, problem) = ([*offset].into(), error.text());
            all.extend(unread.map(|number| damage(number, &offsets, error.trouble(), &problem)));
        }
        all
    }
}

/// Returns the message for a frame that cannot be read.
pub(super) fn frame_problem(error: &FrameError) -> String {
    match error.trouble() {
        DamageKind::Damaged => "a damaged frame".to_owned(),
        DamageKind::Missing | DamageKind::Unreadable => error.text(),
    }
}
