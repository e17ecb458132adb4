//! Checks that the file systems of a site have enough free space and inodes.

use std::collections::BTreeMap;
use std::path::Path;

use crate::commands::unpack::error::UnpackError;
use crate::commands::unpack::links::MissingLinks;
use crate::commands::unpack::plan::WritePlan;
use crate::commands::unpack::roots::Roots;
use crate::site::root::{Root, Staging};

/// Estimated disk usage in bytes of a small file with its directory, and of the overhead of a large one.
const SMALL_FILE: u64 = 8 << 10;

/// Inodes for a blob: its file and two directories.
const INODES_PER_BLOB: u64 = 3;

/// Inodes for a link: its file and its directory.
const INODES_PER_LINK: u64 = 2;

/// Fails before anything is written if a file system has too little space or too few inodes.
pub(super) fn check_space(plan: &WritePlan, links: &MissingLinks, roots: &Roots) -> Result<(), UnpackError> {
    let mut devices = BTreeMap::new();
    for staging in roots.stagings() {
        devices.entry(staging.device()?).or_insert(staging);
    }
    for (device, staging) in devices {
        let is_here = |root: &Root| root.staging().device().is_ok_and(|other| other == device);
        let needed = needed(plan, links, roots, is_here);
        check_device(staging, &needed)?;
    }
    Ok(())
}

#[derive(Default)]
struct Needed {
    bytes: u64,
    inodes: u64,
}

impl Needed {
    fn add(&mut self, bytes: u64, inodes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.inodes += inodes;
    }
}

fn needed(plan: &WritePlan, links: &MissingLinks, roots: &Roots, is_here: impl Fn(&Root) -> bool) -> Needed {
    let mut needed = Needed::default();
    let roots_here: Vec<bool> = roots.all.iter().map(&is_here).collect();
    for (target, _) in plan.iter().filter(|(_, state)| state.must_be_written()) {
        if roots_here[target.root] {
            needed.add(target.blob.size.next_multiple_of(SMALL_FILE) + SMALL_FILE, INODES_PER_BLOB);
        }
    }
    if roots.registry().is_some_and(is_here) {
        let links = links.len() as u64;
        needed.add(links * SMALL_FILE, links * INODES_PER_LINK);
    }
    needed
}

fn check_device(staging: &Staging, needed: &Needed) -> Result<(), UnpackError> {
    let (available, inodes) = staging.free()?;
    let path = || staging.path("").parent().map(Path::to_owned).unwrap_or_default();
    if let Some(available) = available.filter(|available| needed.inodes > 0 && needed.bytes > *available) {
        return Err(UnpackError::Space { path: path(), needed: needed.bytes, available });
    }
    match inodes {
        Some(available) if needed.inodes > available => {
            Err(UnpackError::Inodes { path: path(), needed: needed.inodes, available })
        }
        _ => Ok(()),
    }
}
