//! Verifies a bundle: checks every blob against its digest, and lists everything that is damaged or missing.

pub mod damage;
pub(crate) mod quick;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::Serialize;

use crate::base::buffer::Slice;
use crate::base::event::{Event, Report};
use crate::base::json::text_of;
use crate::base::pipeline::{Discard, Pipeline};
use crate::bundle::format::layout::{Layout, LayoutError, TarEntry, Totals, tar_header};
use crate::bundle::format::seek_table::FrameEntry;
use crate::bundle::format::{BLOCK, padded};
use crate::bundle::read::copies::Copies;
use crate::bundle::read::error::{ReadError, Unavailable};
use crate::bundle::read::problem::{DamageKind, Position, VolumeProblem};
use crate::bundle::read::reader::{BundleReader, Contents};
use crate::bundle::read::tar_stream::Piece;
use crate::bundle::read::volume_set::VolumeSet;
use crate::commands::verify::damage::{Damage, DamageLog};
use crate::oci::digest::Digest;
use crate::oci::manifest::Descriptor;
use crate::signature::policy::Signed;

/// The result of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The digest of `index.json`.
    pub identity: Digest,
    /// Number of blobs in the bundle.
    pub blobs: usize,
    /// Size of the blobs in bytes.
    pub bytes: u64,
    /// False if only the structure was checked.
    pub contents_read: bool,
    /// The blobs that a delta omits; they are not verified.
    #[serde(skip_serializing_if = "Totals::is_nothing")]
    pub left_out: Totals,
    /// The valid signature. `None`: not signed, or not checked.
    #[serde(rename = "signature", skip_serializing_if = "Option::is_none")]
    pub signed: Option<Signed>,
    /// The volumes in order; a single file is one volume. Empty if the bundle was read from a pipe.
    pub volumes: Vec<VolumeState>,
    /// Positions of damaged frames that were read from another copy or repaired from recovery data.
    #[serde(rename = "mended", skip_serializing_if = "Vec::is_empty")]
    pub repaired: Vec<Position>,
    /// The state of each file of a volume that was found several times. Empty if only the structure was checked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<CopyState>,
    /// Problems of the volume files.
    pub problems: Vec<VolumeProblem>,
    /// Everything that is damaged or missing, in the order of the bundle; empty if the bundle is intact.
    pub damage: Vec<Damage>,
}

/// The state of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VolumeState {
    /// The file name.
    pub name: String,
    /// Bytes from the start of the bundle.
    pub offset: u64,
    /// Expected size in bytes.
    pub size: u64,
    /// `None`: intact; otherwise this volume must be copied again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<DamageKind>,
}

/// The state of one of several copies of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CopyState {
    /// Path of the file.
    pub path: String,
    /// Start of each corrupt frame, in bytes from the start of the file. Empty: the copy is intact.
    pub offsets: Vec<u64>,
}

impl Verdict {
    fn new(
        contents: &Contents,
        contents_read: bool,
        damage: Vec<Damage>,
        repaired: Vec<Position>,
        reader: &BundleReader,
    ) -> Self {
        let Contents { identity, layout, signed, .. } = contents;
        let volume_set = reader.volumes();
        Self {
            identity: *identity,
            blobs: layout.manifests.len() + layout.blobs.len(),
            bytes: layout.total_size(),
            contents_read,
            left_out: layout.external_totals(),
            signed: signed.clone(),
            volumes: volume_set.map(|set| volume_states(set, &damage, &repaired)).unwrap_or_default(),
            repaired,
            copies: match volume_set {
                Some(set) if contents_read && set.has_copies() => copy_states(set, reader.table()),
                _ => Vec::new(),
            },
            problems: volume_set.map(|set| set.problems().to_vec()).unwrap_or_default(),
            damage,
        }
    }

    /// Returns the worst kind of damage; `None`: the bundle is intact. Missing volumes do not count if
    /// recovery data replaced all their contents.
    #[must_use]
    pub fn worst(&self) -> Option<DamageKind> {
        let gaps = self.problems.iter().filter(|problem| !self.contents_read && !problem.is_harmless());
        self.damage.iter().map(|damage| damage.trouble).chain(gaps.map(|_| DamageKind::Missing)).max()
    }
}

/// Reads the bundle to its end and checks every byte. Fails only if the documents cannot be read, since they
/// define the contents; all other damage is part of the verdict.
pub fn verify(mut reader: BundleReader, report: &dyn Report) -> Result<Verdict, ReadError> {
    let contents = reader.contents()?;
    verify_rest(&contents, reader, report)
}

/// Verifies a bundle like [`verify`]. `reader` has read the documents of the bundle, which are `contents`.
pub fn verify_rest(
    contents: &Contents,
    mut reader: BundleReader,
    report: &dyn Report,
) -> Result<Verdict, ReadError> {
    let layout = &contents.layout;
    // `contents` has read the first entries: the two documents and the manifests.
    let entries: Vec<TarEntry> = layout.entries().skip(2 + layout.manifests.len()).collect();
    report.event(&Event::Stage {
        name: "verifying",
        bytes: Some(entries.iter().map(|entry| entry.size).sum()),
        objects: Some(entries.len() as u64),
    });

    let (pipeline, finished) = Pipeline::start();
    let configs = layout.platform_configs().map(|config| (config.digest, config)).collect();
    let mut checker = EntryChecker {
        reader: &mut reader,
        pipeline,
        log: DamageLog::default(),
        layout,
        configs,
        invalid: None,
        report,
    };
    let (mut log, invalid, digests) = std::thread::scope(|scope| {
        let digests = scope.spawn(move || {
            finished.iter().flatten().map(|blob| (blob.number, blob.result)).collect::<Vec<_>>()
        });
        for (number, entry) in entries.iter().enumerate() {
            if checker.log.has_ended() {
                break;
            }
            checker.check(number, entry);
        }
        let EntryChecker { pipeline, log, invalid, .. } = checker;
        pipeline.finish();
        (log, invalid, digests.join().expect("collecting does not panic; please report"))
    });
    if let Some(error) = invalid {
        return Err(error.into());
    }
    for (number, result) in digests {
        let (actual, _) = result.expect("nothing is written, so no write fails; please report");
        match entries[number].digest {
            Some(expected) if expected == actual => {}
            Some(expected) => log.damaged(number, &digest_mismatch(expected, actual)),
            None => log.damaged(number, "not a blob"),
        }
    }
    let mut damage = log.damage(&entries, layout, &reader);
    if !log.has_ended()
        && let Err(error) = reader.end()
    {
        damage.push(damaged_end(&error));
    }
    // Damage within the recovery data itself has to be repaired, too.
    let of_recovery = reader.volumes().map(VolumeSet::damaged_recovery).unwrap_or_default();
    let repaired: BTreeSet<Position> = reader.repaired().into_iter().chain(of_recovery).collect();
    Ok(Verdict::new(contents, true, damage, repaired.into_iter().collect(), &reader))
}

fn digest_mismatch(expected: Digest, actual: Digest) -> String {
    format!("digest mismatch: expected {expected}, got {actual}")
}

/// Damage behind the last blob, which affects no image or file.
fn damaged_end(error: &ReadError) -> Damage {
    let places = match error {
        ReadError::Damaged { position, .. } => [(**position).clone()].into(),
        _ => BTreeSet::new(),
    };
    let Unavailable { trouble, problem } = Unavailable::from(error);
    Damage { places, ..Damage::of_structure("the end of the bundle", trouble, problem) }
}

/// Reads entries and notes damage.
struct EntryChecker<'a> {
    reader: &'a mut BundleReader,
    /// Hashes the contents.
    pipeline: Pipeline<Discard>,
    log: DamageLog,
    layout: &'a Layout,
    /// The configs whose platforms are checked.
    configs: HashMap<Digest, &'a Descriptor>,
    /// The first error of an intact config.
    invalid: Option<LayoutError>,
    report: &'a dyn Report,
}

impl EntryChecker<'_> {
    /// Reads the next entry: its tar header, its contents and its padding.
    fn check(&mut self, number: usize, entry: &TarEntry) {
        let mut header = Vec::new();
        self.read(number, BLOCK as u64, |_, slice| header.extend_from_slice(&slice));
        if header.len() == BLOCK && header != tar_header(&entry.name, entry.size) {
            self.log.damaged(number, "unexpected tar header");
        }
        self.pipeline.begin(number, Discard);
        let config = entry.digest.and_then(|digest| self.configs.get(&digest).copied());
        let mut bytes = Vec::new();
        let mut read = 0;
        self.read(number, entry.size, |checker, slice| {
            let len = slice.len() as u64;
            read += len;
            checker.report.event(&Event::Progress { id: 0, bytes: len });
            if config.is_some() {
                bytes.extend_from_slice(&slice);
            }
            checker.pipeline.data(slice);
        });
        if read == entry.size {
            self.pipeline.end();
        } else {
            self.pipeline.abandon();
        }
        if let Some(config) = config.filter(|config| Digest::of(&bytes) == config.digest)
            && let Err(error) = self.layout.check_platform(config, &bytes)
        {
            self.invalid.get_or_insert(error);
        }
        let mut is_zero = true;
        self.read(number, padded(entry.size) - entry.size, |_, slice| {
            is_zero &= slice.iter().all(|byte| *byte == 0);
        });
        if !is_zero {
            self.log.damaged(number, "the padding is not zero");
        }
    }

    /// Passes the next `len` bytes to `accept`, except those in unreadable frames.
    fn read(&mut self, number: usize, len: u64, mut accept: impl FnMut(&mut Self, Slice)) {
        let mut left = len;
        while left > 0 && !self.log.has_ended() {
            match self.reader.piece(left) {
                Ok(Piece::Data(slice)) => {
                    left -= slice.len() as u64;
                    accept(self, slice);
                }
                Ok(Piece::Hole { len, offset, error }) => {
                    left -= len;
                    self.log.unreadable(number, offset, &error);
                }
                Err((offset, error)) => self.log.end(number, offset, error),
            }
        }
    }
}

/// Reads each copy of the volumes that were found several times.
fn copy_states(volume_set: &VolumeSet, table: Option<&[FrameEntry]>) -> Vec<CopyState> {
    let all = volume_set.volumes().iter().enumerate();
    let of_volume = |(number, _)| {
        let copies = Copies::new(volume_set, number, table);
        let state = |(copy, path)| CopyState { path: text_of(path), offsets: copies.damage(copy) };
        copies.paths().enumerate().map(state).collect::<Vec<_>>()
    };
    all.filter(|(_, volume)| volume.copies.len() > 1).flat_map(of_volume).collect()
}

/// Returns the state of each volume: the worst damage in it.
fn volume_states(volume_set: &VolumeSet, damage: &[Damage], repaired: &[Position]) -> Vec<VolumeState> {
    let mut by_offset: BTreeMap<u64, DamageKind> =
        repaired.iter().map(|position| (position.offset, DamageKind::Damaged)).collect();
    for damage in damage {
        for position in &damage.places {
            let worst = by_offset.entry(position.offset).or_insert(damage.trouble);
            *worst = (*worst).max(damage.trouble);
        }
    }
    let truncated: HashSet<&str> = (volume_set.problems().iter())
        .filter_map(|problem| match problem {
            VolumeProblem::Truncated { volume, .. } => Some(&**volume),
            _ => None,
        })
        .collect();
    let states = volume_set.volumes().iter().map(|volume| {
        // An empty volume has a position, too.
        let inside = by_offset.range(volume.start..volume.start + volume.len.max(1));
        let is_incomplete = !volume.is_present() || truncated.contains(&*volume.name);
        let missing = is_incomplete.then_some(DamageKind::Missing);
        VolumeState {
            name: volume.name.clone(),
            offset: volume.start,
            size: volume.len,
            trouble: inside.map(|(_, kind)| *kind).chain(missing).max(),
        }
    });
    states.collect()
}
