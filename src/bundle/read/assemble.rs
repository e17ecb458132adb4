//! [`SetBuilder`]: orders the volumes of a bundle by their labels, and detects problems of the volumes.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::base::fs::file_name;
use crate::bundle::format::label::Label;
use crate::bundle::format::seek_table;
use crate::bundle::format::volume_name::volume_name;
use crate::bundle::read::problem::VolumeProblem;
use crate::bundle::read::volume_set::{Volume, VolumeSet};
use crate::oci::digest::Digest;

/// A file that is named like a volume, or a part of a file that has the label of one.
pub(crate) struct Candidate {
    pub(crate) path: PathBuf,
    /// Number in the file name. Of a part, that in its label.
    pub(crate) number: u32,
    /// Offset of the first byte in the file. 0 unless it is a part.
    pub(crate) base: u64,
    /// Size in bytes.
    pub(crate) len: u64,
    /// `None`: no readable label.
    pub(crate) label: Option<Label>,
}

/// Builds the [`VolumeSet`] of one bundle.
pub(crate) struct SetBuilder {
    bundle: String,
    directories: Vec<PathBuf>,
    /// The numbers of volumes in checksum lists.
    listed: BTreeSet<u32>,
    /// The files that are used, by the number of the volume.
    numbered: BTreeMap<u32, Candidate>,
    problems: Vec<VolumeProblem>,
}

impl SetBuilder {
    pub(crate) fn new(bundle: String, directories: Vec<PathBuf>, listed: BTreeSet<u32>) -> Self {
        Self { bundle, directories, listed, numbered: BTreeMap::new(), problems: Vec::new() }
    }

    pub(crate) fn build(mut self, candidates: Vec<Candidate>) -> VolumeSet {
        let set = most_common_set(&candidates);
        // Files with the correct name first: any other file with the same label is a copy.
        let (correct, other): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|candidate| candidate.label.is_some_and(|label| label.number == candidate.number));
        for candidate in correct.into_iter().chain(other) {
            self.add(candidate, set);
        }
        let last = self.numbered.keys().chain(&self.listed).copied().max().unwrap_or(1);
        let volumes = self.volumes(last);
        let set = VolumeSet::in_volumes(self.bundle, set, self.directories, volumes, self.problems);
        with_end(set, last)
    }

    /// Adds a file, unless it belongs to another bundle than `set` or is a copy.
    fn add(&mut self, candidate: Candidate, set: Option<Digest>) {
        let volume = file_name(&candidate.path);
        let Some(label) = candidate.label else {
            if let Entry::Vacant(slot) = self.numbered.entry(candidate.number) {
                self.problems.push(VolumeProblem::Unlabelled { volume });
                slot.insert(candidate);
            }
            return;
        };
        if Some(label.set) != set {
            self.problems.push(VolumeProblem::Foreign { volume });
            return;
        }
        let is = volume_name(&self.bundle, label.number);
        match self.numbered.entry(label.number) {
            Entry::Vacant(slot) => {
                if is != volume {
                    self.problems.push(VolumeProblem::Renamed { volume, is });
                }
                slot.insert(candidate);
            }
            Entry::Occupied(_) if is != volume => {
                self.problems.push(VolumeProblem::Repeated { volume, is });
            }
            // The same volume in two directories: the shorter file is truncated.
            Entry::Occupied(mut slot) => {
                if candidate.len > slot.get().len {
                    slot.insert(candidate);
                }
            }
        }
    }

    /// Returns the volumes 1 to `last`, including missing ones, with the offsets in their labels.
    fn volumes(&mut self, last: u32) -> Vec<Volume> {
        let mut volumes: Vec<Volume> = Vec::new();
        let mut start = 0;
        for number in 1..=last {
            let name = volume_name(&self.bundle, number);
            let candidate = self.numbered.get(&number);
            let label = candidate.and_then(|candidate| candidate.label);
            if let Some(label) = label {
                start = label.offset.max(start); // an incorrect label must not change the order
            }
            let next = self.numbered.get(&(number + 1)).and_then(|next| Some(next.label?.offset));
            let file_len = candidate.map_or(0, |candidate| candidate.len);
            let len = next.and_then(|next| next.checked_sub(start)).unwrap_or(file_len);
            let (volume, has, needs) = (name.clone(), file_len, len);
            self.problems.extend(match candidate {
                None => Some(VolumeProblem::Missing { volume }),
                Some(_) if has < needs => Some(VolumeProblem::Truncated { volume, has, needs }),
                Some(_) if has > needs => Some(VolumeProblem::Longer { volume, has, needs }),
                Some(_) => None,
            });
            let path = candidate.map(|candidate| candidate.path.clone());
            volumes.push(Volume {
                name,
                path,
                base: candidate.map_or(0, |candidate| candidate.base),
                start,
                len,
                file_len,
                stream: label.map(|label| label.stream),
            });
            start = start.saturating_add(len);
        }
        // A missing volume ends where the label of the next one says that the next one begins.
        for number in 1..volumes.len() {
            let start = volumes[number].start;
            let previous = &mut volumes[number - 1];
            if previous.path.is_none() {
                previous.len = start.saturating_sub(previous.start);
            }
        }
        volumes
    }
}

/// Returns the set in most labels; of several, the one that was found first.
fn most_common_set(candidates: &[Candidate]) -> Option<Digest> {
    let mut counts: Vec<(Digest, usize)> = Vec::new();
    for set in candidates.iter().filter_map(|candidate| Some(candidate.label?.set)) {
        match counts.iter_mut().find(|(known, _)| *known == set) {
            Some((_, count)) => *count += 1,
            None => counts.push((set, 1)),
        }
    }
    counts.iter().rev().max_by_key(|(_, count)| *count).map(|(set, _)| *set)
}

/// Adds a problem to `set` if its last volume, number `last`, does not end the bundle.
fn with_end(mut set: VolumeSet, last: u32) -> VolumeSet {
    let Some(Volume { file_len: has, .. }) =
        set.volumes().last().filter(|volume| volume.is_present()).cloned()
    else {
        return set;
    };
    if seek_table::has_footer(&mut set.reader(0)).unwrap_or(false) {
        return set;
    }
    let volume = volume_name(set.name(), last);
    let next = volume_name(set.name(), last + 1);
    // Recovery data states the size of its volume, and whether it is the last one.
    let problem = match set.recovery(set.volumes().len() - 1) {
        None => VolumeProblem::Unended { volume, next },
        Some(recovery) if recovery.section().end == recovery.volume_len() => {
            VolumeProblem::Missing { volume: next }
        }
        Some(recovery) if has < recovery.volume_len() => {
            VolumeProblem::Truncated { volume, has, needs: recovery.volume_len() }
        }
        // The volume is complete, and its end is corrupt.
        Some(_) => return set,
    };
    set.add_problem(problem);
    set
}
