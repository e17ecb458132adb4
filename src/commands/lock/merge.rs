//! [`merge`]: combines two locks of the same lists, such as those of two branches.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::base::event::Report;
use crate::commands::lock::{Moved, check};
use crate::documents::list::Lists;
use crate::documents::lock::{Lock, LockedFile, LockedImage};
use crate::fetch::upstream::Upstream;
use crate::oci::digest::Digest;

/// The result of a merge.
pub(crate) struct Merged {
    pub(crate) lock: Lock,
    /// The entries that differ, and whose digest is taken from one of the locks.
    pub(crate) decided: Vec<Decided>,
    /// The entries that differ, and that upstream has in neither version.
    pub(crate) undecided: Vec<String>,
}

/// An entry that differs between two locks.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct Decided {
    /// The entry without its checksum or platforms.
    pub name: String,
    /// The digest that upstream has.
    pub digest: Digest,
    /// The digest in the other lock.
    pub other: Digest,
}

/// Combines `ours` and `theirs`: entries of either, and of those that differ the version that upstream has. `lists` makes
/// the lists of a lock, with current URLs. Nothing is requested if no entry differs.
pub(crate) fn merge<E>(
    ours: &Lock,
    theirs: &Lock,
    lists: impl Fn(&Lock) -> Result<Lists, E>,
    upstream: &Upstream,
    report: &dyn Report,
) -> Result<Merged, E> {
    let our_files = by_name(&ours.files, LockedFile::name);
    let their_files = by_name(&theirs.files, LockedFile::name);
    let our_images = by_name(&ours.images, |image| image.reference.to_string());
    let their_images = by_name(&theirs.images, |image| image.reference.to_string());
    let version = |files: &BTreeMap<String, &LockedFile>, images: &BTreeMap<String, &LockedImage>| Lock {
        version: ours.version,
        files: differing(files, &our_files, &their_files),
        images: differing(images, &our_images, &their_images),
    };
    let mut moved = Vec::new();
    for lock in [version(&our_files, &our_images), version(&their_files, &their_images)] {
        let is_empty = lock.files.is_empty() && lock.images.is_empty();
        let all = if is_empty { Vec::new() } else { check(&lock, &lists(&lock)?, false, upstream, report) };
        moved.push(all.into_iter().map(|Moved { name, .. }| name).collect::<Vec<_>>());
    }
    let mut decision = Decision { moved: &moved, decided: Vec::new(), undecided: Vec::new() };
    let mut files = decision.take(&our_files, &their_files, |file| file.digest);
    let mut images = decision.take(&our_images, &their_images, |image| image.digest);
    files.sort_by(|a, b| (&a.url, &a.path).cmp(&(&b.url, &b.path)));
    images.sort_by(|a, b| a.reference.cmp(&b.reference));
    let Decision { decided, undecided, .. } = decision;
    Ok(Merged { lock: Lock { version: ours.version, files, images }, decided, undecided })
}

fn by_name<T>(entries: &[T], name: impl Fn(&T) -> String) -> BTreeMap<String, &T> {
    entries.iter().map(|entry| (name(entry), entry)).collect()
}

/// Returns the entries of `version` that both have and that are not equal.
fn differing<T: Clone + PartialEq>(
    version: &BTreeMap<String, &T>,
    ours: &BTreeMap<String, &T>,
    theirs: &BTreeMap<String, &T>,
) -> Vec<T> {
    let differs =
        |name: &String| ours.get(name).zip(theirs.get(name)).is_some_and(|(ours, theirs)| ours != theirs);
    version.iter().filter(|(name, _)| differs(name)).map(|(_, entry)| (*entry).clone()).collect()
}

struct Decision<'a> {
    /// The names of the entries that upstream does not have: in our version, in theirs.
    moved: &'a [Vec<String>],
    decided: Vec<Decided>,
    undecided: Vec<String>,
}

impl Decision<'_> {
    /// Returns the entries of either lock, and of those that differ the current version.
    fn take<T: Clone + PartialEq>(
        &mut self,
        ours: &BTreeMap<String, &T>,
        theirs: &BTreeMap<String, &T>,
        digest: impl Fn(&T) -> Digest,
    ) -> Vec<T> {
        let mut taken = Vec::new();
        for (name, entry) in ours {
            match theirs.get(name) {
                Some(other) if other != entry => {
                    let is_current = |version: usize| !self.moved[version].contains(name);
                    // Entries with the same digest differ in their platforms, which upstream cannot decide.
                    let choice = match (is_current(0), is_current(1)) {
                        _ if digest(entry) == digest(other) => None,
                        (true, _) => Some((entry, other)),
                        (false, true) => Some((other, entry)),
                        (false, false) => None,
                    };
                    let Some((current, older)) = choice else {
                        self.undecided.push(name.clone());
                        continue;
                    };
                    let (digest, other) = (digest(current), digest(older));
                    self.decided.push(Decided { name: name.clone(), digest, other });
                    taken.push((*current).clone());
                }
                _ => taken.push((*entry).clone()),
            }
        }
        taken.extend(
            theirs.iter().filter(|(name, _)| !ours.contains_key(*name)).map(|(_, entry)| (*entry).clone()),
        );
        taken
    }
}
