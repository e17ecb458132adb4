//! [`SetBuilder`]: orders the volumes of a bundle by their labels, and detects problems of the volumes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use crate::base::fs::{self, file_name};
use crate::bundle::format::volume_name::volume_name;
use crate::bundle::read::candidate::Candidate;
use crate::bundle::read::problem::VolumeProblem;
use crate::bundle::read::volume_set::{Volume, VolumeFile, VolumeSet};

/// The name of a bundle if no volume has the name of one.
const UNKNOWN_NAME: &str = "bundle.tar.zst";

/// Builds the [`VolumeSet`] of one bundle.
pub(crate) struct SetBuilder {
    bundle: String,
    /// True if all volumes are in one file, into which they were joined.
    is_joined: bool,
    directories: Vec<PathBuf>,
    /// The numbers of volumes in checksum lists.
    listed: BTreeSet<u32>,
    /// The files of each volume, by its number.
    numbered: BTreeMap<u32, Vec<Candidate>>,
    problems: Vec<VolumeProblem>,
}

impl SetBuilder {
    /// Creates a builder for `candidates`, which have the same set in their labels, or the same name. `listed` are the
    /// volumes of each bundle in checksum lists, by its name in small letters.
    pub(crate) fn new(
        candidates: &[Candidate],
        directories: Vec<PathBuf>,
        listed: &HashMap<String, BTreeSet<u32>>,
    ) -> Self {
        let first = &candidates[0].path;
        let is_joined = candidates.len() > 1 && candidates.iter().all(|candidate| candidate.path == *first);
        let bundle = most_common_name(candidates).unwrap_or_else(|| UNKNOWN_NAME.to_owned());
        let listed = listed.get(&bundle.to_ascii_lowercase()).filter(|_| !is_joined);
        Self {
            listed: listed.cloned().unwrap_or_default(),
            bundle,
            is_joined,
            directories,
            numbered: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    pub(crate) fn build(mut self, candidates: Vec<Candidate>) -> VolumeSet {
        let set = candidates.iter().find_map(|candidate| candidate.label).map(|label| label.set);
        let end = candidates.iter().filter(|candidate| candidate.is_end).filter_map(Candidate::number).max();
        // Files with the correct name first: any other file of the same directory with the same label is a duplicate.
        let is_correct = |candidate: &Candidate| {
            let number = candidate.named.as_ref().map(|(_, number)| *number);
            candidate.is_named(&self.bundle) && number == candidate.number()
        };
        let (correct, other): (Vec<_>, Vec<_>) = candidates.into_iter().partition(is_correct);
        for candidate in correct.into_iter().chain(other) {
            self.add(candidate);
        }
        // After the volume that ends the bundle, there is none: the checksum list can be that of another bundle.
        let last = self.numbered.keys().chain(&self.listed).copied().max().unwrap_or(1);
        let last = end.unwrap_or(last);
        let volumes = self.volumes(last);
        let volume_set = VolumeSet::in_volumes(self.bundle, set, self.directories, volumes, self.problems);
        let volume_set = if end.is_some() { volume_set } else { with_end(volume_set, last) };
        if self.is_joined { volume_set.joined() } else { volume_set }
    }

    /// Adds a file as a copy of its volume.
    fn add(&mut self, candidate: Candidate) {
        let Some(number) = candidate.number() else { return };
        let volume = file_name(&candidate.path);
        let copies = self.numbered.entry(number).or_default();
        let directory = |candidate: &Candidate| fs::parent(&candidate.path).to_owned();
        let same = copies.iter().find(|known| directory(known) == directory(&candidate));
        match (&candidate.named, candidate.label) {
            _ if self.is_joined => {}
            (_, Some(_)) if same.is_some() => {
                let is = same.map(|known| file_name(&known.path)).unwrap_or_default();
                self.problems.push(VolumeProblem::Repeated { volume, is });
            }
            (Some((_, named)), Some(label)) if *named != label.number => {
                let is = volume_name(&self.bundle, label.number);
                self.problems.push(VolumeProblem::Renamed { volume, is });
            }
            (_, Some(_)) => {}
            (_, None) => self.problems.push(VolumeProblem::Unlabelled { volume }),
        }
        copies.push(candidate);
    }

    /// Returns the volumes 1 to `last`, including missing ones, with the offsets in their labels.
    fn volumes(&mut self, last: u32) -> Vec<Volume> {
        let mut volumes: Vec<Volume> = Vec::new();
        let mut start = 0;
        for number in 1..=last {
            let mut copies = self.numbered.remove(&number).unwrap_or_default();
            let label = copies.iter().find_map(|candidate| candidate.label);
            if let Some(label) = label {
                start = label.offset.max(start); // an incorrect label must not change the order
            }
            let next = self.numbered.get(&(number + 1));
            let next = next.and_then(|next| next.iter().find_map(|next| next.label));
            let longest = copies.iter().map(|candidate| candidate.len).max().unwrap_or(0);
            let len = next.and_then(|next| next.offset.checked_sub(start)).unwrap_or(longest);
            // Those with a label and of the expected size first, then longer and shorter ones.
            copies.sort_by_key(|copy| (copy.label.is_none(), copy.len != len, std::cmp::Reverse(copy.len)));
            let name = match copies.first() {
                Some(first) if !self.is_joined => file_name(&first.path),
                _ => volume_name(&self.bundle, number),
            };
            let (volume, has, needs) = (name.clone(), copies.first().map_or(0, |first| first.len), len);
            self.problems.extend(match copies.first() {
                None => Some(VolumeProblem::Missing { volume }),
                Some(_) if longest < needs => Some(VolumeProblem::Truncated { volume, has: longest, needs }),
                Some(_) if has > needs => Some(VolumeProblem::Longer { volume, has, needs }),
                Some(_) => None,
            });
            let file = |copy: Candidate| {
                let is_labelled = copy.label.is_some();
                VolumeFile { path: copy.path, base: copy.base, len: copy.len, is_labelled }
            };
            let copies = copies.into_iter().map(file).collect();
            volumes.push(Volume { name, copies, start, len, stream: label.map(|label| label.stream) });
            start = start.saturating_add(len);
        }
        // A missing volume ends where the label of the next one says that the next one begins.
        for number in 1..volumes.len() {
            let start = volumes[number].start;
            let previous = &mut volumes[number - 1];
            if !previous.is_present() {
                previous.len = start.saturating_sub(previous.start);
            }
        }
        volumes
    }
}

/// Returns the name of the bundle that most volumes have in their name; of several, the one that was found first.
fn most_common_name(candidates: &[Candidate]) -> Option<String> {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for (name, _) in candidates.iter().filter_map(|candidate| candidate.named.as_ref()) {
        match counts.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    counts.iter().rev().max_by_key(|(_, count)| *count).map(|(name, _)| (*name).to_owned())
}

/// Adds a problem to `set`, whose last volume, number `last`, has no seek table.
fn with_end(mut set: VolumeSet, last: u32) -> VolumeSet {
    let Some(volume) = set.volumes().last().filter(|volume| volume.is_present()).cloned() else {
        return set;
    };
    let (has, volume) = (volume.file_len(), volume.name);
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
