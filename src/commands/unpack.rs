//! Unpacks a bundle into a site in one pass.

pub(crate) mod delta;
pub mod error;
pub(crate) mod links;
pub(crate) mod obstacles;
pub mod options;
pub(crate) mod plan;
pub(crate) mod roots;
pub(crate) mod space;
pub mod summary;
pub(crate) mod support;
pub(crate) mod write;

use std::time::Instant;

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::own_file::read_regular;
use crate::base::text::more_positions;
use crate::bundle::format::index::BundleInfo;
use crate::bundle::format::layout::Layout;
use crate::bundle::format::release::Release;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::problem::Position;
use crate::bundle::read::reader::{BundleReader, Contents};
use crate::bundle::read::select::Prefetched;
use crate::commands::unpack::delta::{Delta, omit_incomplete};
use crate::commands::unpack::error::UnpackError;
use crate::commands::unpack::links::MissingLinks;
use crate::commands::unpack::obstacles::Obstacles;
use crate::commands::unpack::options::UnpackOptions;
use crate::commands::unpack::plan::{WritePlan, omit_lost};
use crate::commands::unpack::roots::Roots;
use crate::commands::unpack::space::check_space;
use crate::commands::unpack::summary::{Counts, UnpackSummary};
use crate::commands::unpack::support::check_support;
use crate::commands::unpack::write::{BlobWriter, Written, commit_staged};
use crate::oci::digest::Digest;
use crate::oci::manifest::MANIFEST_LIMIT;
use crate::signature::policy::Policy;
use crate::site::record::{Record, RecordError};
use crate::site::root::Staging;
use crate::site::roots::RootPath;
use crate::site::sequences::Sequences;
use crate::site::signed_index::{self, KeptBundles};
use crate::site::storage::{Links, blob_path};

/// The operator's guide at the root of the site.
const GUIDE: &str = "README.md";

/// The guide for sites whose bundle contains none.
pub const GUIDE_TEXT: &str = include_str!("../../docs/site.md");

/// Unpacks the bundle of `reader` into a site.
///
/// The order makes a crash harmless: blobs are on the disk before the links that name them, tags are last,
/// and the GC guard exists as long as blobs have no links. A second run resumes.
pub fn unpack(
    mut reader: BundleReader,
    options: &UnpackOptions,
    report: &dyn Report,
) -> Result<UnpackSummary, UnpackError> {
    let start = Instant::now();
    let mut contents = reader.contents()?;
    if let Some(signed) = &contents.signed {
        report.event(&Event::Note { message: signed.to_string() });
    }
    check_release(&contents, options, reader.policy())?;
    let mut summary = UnpackSummary { bundle: Counts::of(&contents.layout), ..UnpackSummary::default() };
    let prefetched = select(&mut contents.layout, &mut reader, options)?;

    // Checks. Until the space check has passed, the site is unchanged, except for permissions of intact files and
    // the staging area.
    let record = read_record(options)?;
    let (mut delta, missing) = Delta::new(&contents.layout, &record, options)?;
    omit_incomplete(&mut contents.layout, missing, options, &mut summary)?;
    let mut links = Links::new(&contents.layout, &options.templates)?;
    check_support(&contents.layout, &links, &record, options)?;
    let roots = Roots::open(options, &contents.layout)?;
    // Again, because another process may have unpacked a newer bundle before this one got the lock.
    check_release(&contents, options, reader.policy())?;
    let mut obstacles = Obstacles::find(&contents.layout, &record, &roots, options.replace)?;
    let mut plan = WritePlan::new(&contents.layout, &roots, report)?;
    let missing = delta.locate(&plan, report)?;
    if !missing.is_empty() {
        omit_incomplete(&mut contents.layout, missing, options, &mut summary)?;
        links = Links::new(&contents.layout, &options.templates)?;
        obstacles = Obstacles::find(&contents.layout, &record, &roots, options.replace)?;
        plan = plan.narrow(&contents.layout, &roots);
        delta.locate(&plan, report)?;
    }
    plan.clear_staging(&roots)?;
    let mut missing_links = MissingLinks::find(&links, &roots)?;
    check_space(&plan, &missing_links, &roots)?;
    plan.count_in(&mut summary);
    summary.repaired += missing_links.made_accessible;

    // From now on, the site has content of this bundle.
    if let Some(release) = &contents.about.release {
        Sequences::read(&options.site)?.raise(release, &roots.bundles)?;
    }

    // Blobs and files. The guard is also needed if only links are missing: until they exist, GC would delete
    // the blobs.
    if !plan.is_complete() || !missing_links.is_empty() {
        roots.create_gc_guard()?;
    }
    if !plan.is_complete() {
        plan.report_pending(report);
        delta.stage(&mut plan, &roots, report)?;
        // A delta may need the content of what is removed now.
        obstacles.remove(&roots)?;
        summary.written = commit_staged(&plan, &roots)?;
    }
    let writer =
        BlobWriter { contents: &contents, prefetched: &prefetched, plan: &plan, roots: &roots, report };
    let Written { files, lost } = writer.run(&mut reader)?;
    summary.written += files;
    if !lost.is_empty() {
        if !options.keep_going {
            return Err(UnpackError::damaged(&contents.layout, lost));
        }
        summary.bytes_written -= plan.bytes_of(&lost);
        summary.omitted.extend(omit_lost(&mut contents.layout, &lost));
        missing_links = MissingLinks::find(&Links::new(&contents.layout, &options.templates)?, &roots)?;
    }

    // Links, tags last; then the documents of the bundle, and the record that follows from them.
    summary.links_written = missing_links.write(&roots)?;
    roots.remove_gc_guard()?;
    if !summary.is_unchanged() {
        roots.sync()?;
    }
    Counts { files: summary.files, images: summary.images } = Counts::of(&contents.layout);
    let is_partial = !options.select.is_all() || !summary.omitted.is_empty();
    signed_index::keep(&contents, &roots.bundles)?;
    write_record(&contents, is_partial, &obstacles, options, &roots)?;
    write_guide(&contents.about, &roots.site)?;
    summary.repaired_frames = reader.repaired();
    if let Some(message) = repaired_text(&summary.repaired_frames) {
        report.event(&Event::Warning { message });
    }
    summary.time = start.elapsed();
    Ok(summary)
}

/// Returns the warning for frames that were repaired; `None`: there are none.
#[must_use]
pub fn repaired_text(repaired: &[Position]) -> Option<String> {
    let first = repaired.first()?;
    let more = more_positions(repaired.len() - 1);
    Some(format!(
        "the bundle is damaged at {first}{more}, and was repaired while it was read: write an intact copy with \
         `unbundle repair`"
    ))
}

/// Fails if the site has a newer bundle of the same name.
fn check_release(contents: &Contents, options: &UnpackOptions, policy: &Policy) -> Result<(), UnpackError> {
    let UnpackOptions { site, allow_older, .. } = options;
    let Some(Release { name, sequence }) = contents.about.release.as_ref().filter(|_| !allow_older) else {
        return Ok(());
    };
    let kept = KeptBundles::open(site)?.newest(policy)?.get(name).map(|(newest, _)| *newest);
    // Sites of earlier versions have no numbers.
    let newest = kept.max(Sequences::read(site)?.highest(name));
    match newest.filter(|newest| newest > sequence) {
        Some(newest) => {
            Err(UnpackError::Older { site: site.clone(), name: name.clone(), sequence: *sequence, newest })
        }
        None => Ok(()),
    }
}

/// Narrows `layout` to the selected images and files. Configs that a delta omits are read from the site. Fails if
/// a config of the site has an invalid platform; those of the bundle are checked when they are read.
fn select(
    layout: &mut Layout,
    reader: &mut BundleReader,
    options: &UnpackOptions,
) -> Result<Prefetched, UnpackError> {
    let registry = options.registry_root();
    let config = |digest| match read_regular(&registry.join(blob_path(digest)), MANIFEST_LIMIT) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_media_error() => Err(error),
        // Anything else at its place, such as a directory, is replaced.
        Err(_) => Ok(None),
    };
    let prefetched = options.select.apply(layout, reader, config)?;
    for descriptor in layout.platform_configs() {
        if let Some(bytes) = config(descriptor.digest)?.filter(|bytes| Digest::of(bytes) == descriptor.digest)
        {
            layout.check_platform(descriptor, &bytes).map_err(ReadError::from)?;
        }
    }
    Ok(prefetched)
}

/// Reads the record of the site, or makes one for a new site. Fails if the record is invalid, or has other
/// directories than the options.
fn read_record(options: &UnpackOptions) -> Result<Record, RecordError> {
    let UnpackOptions { site, files, registry, .. } = options;
    let named = options.named();
    match Record::read(site, &named) {
        Err(RecordError::Missing(_)) => {
            let files = RootPath::new(files.as_deref(), "files")?;
            let record = Record::new(files, RootPath::new(registry.as_deref(), "registry")?);
            record.check_roots(site, &named)?;
            Ok(record)
        }
        record => record,
    }
}

/// Adds the bundle to the record of the site.
fn write_record(
    contents: &Contents,
    is_partial: bool,
    obstacles: &Obstacles,
    options: &UnpackOptions,
    roots: &Roots,
) -> Result<(), UnpackError> {
    // Again, because another process may have changed it before this one got the lock.
    let mut record = read_record(options)?;
    obstacles.forget(&mut record);
    record.add(contents, is_partial, &options.templates, &options.site)?;
    record.write(&roots.site)?;
    Ok(())
}

/// Writes the operator's guide. An existing one is kept, since operators edit it.
fn write_guide(about: &BundleInfo, site: &Staging) -> Result<(), FsError> {
    if site.base().exists(GUIDE)? {
        return Ok(());
    }
    site.replace_in_base(GUIDE, about.guide.as_deref().unwrap_or(GUIDE_TEXT).as_bytes())
}
