//! [`Attempt`]: one attempt at a plan, which resumes or replaces the partial bundle of an earlier run.

use crate::base::event::{Event, Report};
use crate::base::fs::{parent, size_limit};
use crate::base::units::human_bytes;
use crate::bundle::format::FRAME_SIZE;
use crate::bundle::format::frame::stored_len;
use crate::bundle::format::label::LABEL_LIMIT;
use crate::bundle::reuse::ReusableBundle;
use crate::bundle::write::claim::{Claim, old_paths};
use crate::bundle::write::partial::{ExpectedBundle, PartialBundle, read_partial};
use crate::bundle::write::parts::remove_parts;
use crate::bundle::write::spool::{Spool, SpoolKey};
use crate::bundle::write::volume_writer::VolumeOptions;
use crate::bundle::write::writer::WriteOptions;
use crate::commands::pack::error::PackError;
use crate::commands::pack::options::PackOptions;
use crate::commands::pack::write::BundleJob;
use crate::oci::digest::Digest;
use crate::plan::bundle_plan::BundlePlan;

/// One attempt at a plan.
pub(super) struct Attempt {
    pub(super) job: BundleJob,
    /// Identifies the plan and the options that determine the bytes of the bundle.
    pub(super) fingerprint: Digest,
    /// The claim for the next attempt.
    pub(super) claim: Claim,
    /// Partial bundles of other plans.
    pub(super) set_aside: Vec<ReusableBundle>,
}

impl Attempt {
    /// Checks the partial bundle of an earlier run, and resumes or replaces it.
    pub(super) fn begin(
        mut claim: Claim,
        plan: &BundlePlan,
        options: &PackOptions,
        report: &dyn Report,
    ) -> Result<Self, PackError> {
        let write_options = write_options(plan, options)?;
        let WriteOptions { header_space, level, volumes } = write_options;
        if let Some(message) = size_warning(plan, &claim, volumes) {
            report.event(&Event::Warning { message });
        }
        let fingerprint = plan.fingerprint(header_space, level, volumes);
        let partial = claim.partial.clone();
        let (mut spool, notes) = Spool::open(&partial)?;
        let is_same_plan = notes.fingerprint == Some(fingerprint);
        let expected = plan.expected(&notes);
        // Partial bundles only save downloads: unreadable ones are ignored.
        let mut set_aside: Vec<ReusableBundle> =
            old_paths(&partial).iter().filter_map(|path| ReusableBundle::open_partial(path).ok()).collect();
        let mut done = PartialBundle::default();
        if is_same_plan {
            let expected = ExpectedBundle {
                set: volumes.set,
                header_space,
                entries: &expected,
                external: plan.external(),
            };
            done = read_partial(&partial, &expected, report)?;
        } else if claim.size()? > 0 {
            claim = self::set_aside(claim, &mut set_aside, report)?;
        }
        let is_needed = needed_pieces(plan, &done);
        let pieces = spool.begin(fingerprint, plan.pending_count(), is_same_plan, is_needed)?;
        let job = BundleJob::begin(claim.try_clone()?, write_options, spool, pieces, done, &expected)?;
        Ok(Self { job, fingerprint, claim, set_aside })
    }

    /// True if the next run would save nothing by reusing this attempt.
    pub(super) fn is_worthless(&self) -> bool {
        self.set_aside.is_empty() && self.job.is_empty()
    }
}

/// Returns a predicate for spooled pieces by key and offset: true if the partial bundle lacks the piece.
fn needed_pieces(plan: &BundlePlan, partial: &PartialBundle) -> impl Fn(SpoolKey, u64) -> bool + use<> {
    let keys = plan.keys(partial.complete);
    let begun =
        partial.open.as_ref().and_then(|begun| Some((plan.key(partial.complete)?, begun.sha256.len())));
    move |key, offset| {
        keys.contains(&key) && begun.is_none_or(|(begun_key, len)| key != begun_key || offset >= len)
    }
}

/// Returns the warning for a bundle that may become too large for a file. `None`: it will not, or no limit is known.
fn size_warning(plan: &BundlePlan, claim: &Claim, volumes: VolumeOptions) -> Option<String> {
    let limit = size_limit(&claim.file)?;
    let blobs = plan.blobs.iter().map(|planned| planned.blob.size).sum();
    let size = volumes.volume_size.map_or(blobs, |size| size.min(blobs));
    (size > limit).then(|| {
        format!(
            "a file of `{}` can have at most {}, and the bundle may have up to {}: use `--volume-size fat32` if it becomes \
             too large",
            parent(&claim.target).display(),
            human_bytes(limit),
            human_bytes(size),
        )
    })
}

/// Returns the options of the writer, if the header and every frame fit into a volume.
pub(super) fn write_options(plan: &BundlePlan, options: &PackOptions) -> Result<WriteOptions, PackError> {
    let header_space = plan.header_space(options.sign.is_some())?;
    let PackOptions { level, volume_size, recovery, .. } = *options;
    let set = plan.volume_set_id(header_space, level, volume_size, recovery);
    let volumes = VolumeOptions { volume_size, recovery, set };
    let needed = (stored_len(FRAME_SIZE) as u64).max(header_space) + LABEL_LIMIT as u64;
    if volumes.capacity() < needed {
        let redundancy = u64::from(recovery.unwrap_or(0));
        // A recovery section is a little longer than its parity blocks.
        let needed = needed + needed * redundancy / 1000 + if redundancy > 0 { needed / 4 } else { 0 };
        return Err(PackError::VolumeSize { size: volume_size.unwrap_or(0), needed });
    }
    Ok(WriteOptions { header_space, level, volumes })
}

/// Moves the partial bundle at `claim` to the partial bundles of other plans. If these are too many, or one
/// has no blob of its own, removes the one with the fewest bytes that no other has: a short run must not
/// evict the result of a longer one.
fn set_aside(claim: Claim, older: &mut Vec<ReusableBundle>, report: &dyn Report) -> Result<Claim, PackError> {
    let paths = old_paths(&claim.partial);
    older.push(ReusableBundle::open_partial(&claim.partial)?);
    loop {
        let own_bytes = |number: &usize| {
            let others: Vec<&ReusableBundle> =
                older.iter().enumerate().filter(|(other, _)| other != number).map(|(_, old)| old).collect();
            older[*number].unique_bytes(&others)
        };
        let Some(least) = (0..older.len()).min_by_key(own_bytes) else { break };
        if older.len() <= paths.len() && own_bytes(&least) > 0 {
            break;
        }
        let removed = older.remove(least);
        if removed.path() == claim.partial {
            // Emptied before the spool names the new plan as its owner.
            claim.empty()?;
            return Ok(claim);
        }
        remove_parts(removed.path())?;
    }
    let free = paths.iter().find(|path| older.iter().all(|old| old.path() != path.as_path()));
    let path = free.expect("there are fewer bundles than paths; please report");
    older.last_mut().expect("it was pushed above; please report").set_path(path);
    Ok(claim.set_aside(path, report)?)
}
