//! Unpacks a bundle into a site in one pass.

pub(crate) mod delta;
pub mod error;
pub(crate) mod links;
pub mod options;
pub(crate) mod plan;
pub(crate) mod roots;
pub(crate) mod space;
pub mod summary;
pub(crate) mod write;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::bundle::format::index::BundleInfo;
use crate::bundle::format::layout::Layout;
use crate::bundle::format::release::Release;
use crate::bundle::read::problem::Position;
use crate::bundle::read::reader::{BundleReader, Contents};
use crate::bundle::read::select::Prefetched;
use crate::commands::unpack::delta::Delta;
use crate::commands::unpack::error::UnpackError;
use crate::commands::unpack::links::MissingLinks;
use crate::commands::unpack::options::UnpackOptions;
use crate::commands::unpack::plan::{WritePlan, omit_lost};
use crate::commands::unpack::roots::Roots;
use crate::commands::unpack::space::check_space;
use crate::commands::unpack::summary::{Counts, UnpackSummary};
use crate::commands::unpack::write::{BlobWriter, Written, commit_staged};
use crate::oci::manifest::MANIFEST_LIMIT;
use crate::signature::policy::Policy;
use crate::site::record::Record;
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
    let links = Links::new(&contents.layout, &options.templates)?;
    let mut delta = Delta::new(&contents.layout, options)?;
    let roots = Roots::open(options, &contents.layout)?;
    // Again, because another process may have unpacked a newer bundle before this one got the lock.
    check_release(&contents, options, reader.policy())?;
    let mut plan = WritePlan::new(&contents.layout, &roots, report)?;
    delta.locate(&contents.layout, &plan, report)?;
    plan.clear_staging(&roots)?;
    let mut missing_links = MissingLinks::find(&links, &roots)?;
    check_space(&plan, &missing_links, &roots)?;
    plan.count_in(&mut summary);

    // Blobs and files. The guard is also needed if only links are missing: until they exist, GC would delete
    // the blobs.
    if !plan.is_complete() || !missing_links.is_empty() {
        roots.create_gc_guard()?;
    }
    if !plan.is_complete() {
        plan.report_pending(report);
        delta.stage(&mut plan, &roots, report)?;
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
        summary.omitted = omit_lost(&mut contents.layout, &lost);
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
    write_record(&contents, is_partial, options, &roots)?;
    write_guide(&contents.about, &options.site, &roots)?;
    summary.repaired_frames = reader.repaired();
    if let Some(message) = repaired_text(&summary.repaired_frames) {
        report.event(&Event::Warning { message });
    }
    summary.time = start.elapsed();
    Ok(summary)
}

/// Returns the warning for frames that recovery data repaired; `None`: there are none.
#[must_use]
pub fn repaired_text(repaired: &[Position]) -> Option<String> {
    let first = repaired.first()?;
    let more = match repaired.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more positions"),
    };
    Some(format!(
        "the bundle is damaged at {first}{more}; recovery data repaired it: write an intact copy with \
         `unbundle repair`"
    ))
}

/// Fails if the site has a newer bundle of the same name.
fn check_release(contents: &Contents, options: &UnpackOptions, policy: &Policy) -> Result<(), UnpackError> {
    let UnpackOptions { site, allow_older, .. } = options;
    let Some(Release { name, sequence }) = contents.about.release.as_ref().filter(|_| !allow_older) else {
        return Ok(());
    };
    let newest = KeptBundles::open(site)?.newest(policy)?.get(name).map(|(newest, _)| *newest);
    match newest.filter(|newest| newest > sequence) {
        Some(newest) => {
            Err(UnpackError::Older { site: site.clone(), name: name.clone(), sequence: *sequence, newest })
        }
        None => Ok(()),
    }
}

/// Narrows `layout` to the selected images and files. Configs that a delta omits are read from the site.
fn select(
    layout: &mut Layout,
    reader: &mut BundleReader,
    options: &UnpackOptions,
) -> Result<Prefetched, UnpackError> {
    let registry = options.registry_root();
    let config = |digest| crate::base::fs::read(&registry.join(blob_path(digest)), MANIFEST_LIMIT).ok();
    Ok(options.select.apply(layout, reader, config)?)
}

/// Adds the bundle to the record of the site. An unreadable record is replaced: it must not prevent that
/// intact blobs are served.
fn write_record(
    contents: &Contents,
    is_partial: bool,
    options: &UnpackOptions,
    roots: &Roots,
) -> Result<(), FsError> {
    let root = |directory: Option<&PathBuf>, name: &str| match directory {
        Some(path) => std::path::absolute(path).map_err(FsError::at("resolve", path)),
        None => Ok(name.into()),
    };
    let new =
        Record::new(root(options.files.as_ref(), "files")?, root(options.registry.as_ref(), "registry")?);
    let mut record = match Record::read(&options.site) {
        Ok(existing) if existing.has_same_roots(&new) => existing,
        _ => new,
    };
    record.add(contents, is_partial, &options.templates, &options.site);
    record.write(&options.site, &roots.site.path("record"))?;
    Ok(())
}

/// Writes the operator's guide. An existing one is kept, since operators edit it.
fn write_guide(about: &BundleInfo, site: &Path, roots: &Roots) -> Result<(), FsError> {
    use std::io::Write as _;
    let (path, scratch) = (site.join(GUIDE), roots.site.path("guide"));
    if std::fs::symlink_metadata(&path).is_ok() {
        return Ok(());
    }
    let mut file = std::fs::File::create(&scratch).map_err(FsError::at("create", &scratch))?;
    let text = about.guide.as_deref().unwrap_or(GUIDE_TEXT);
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(FsError::at("write", &scratch))?;
    crate::base::fs::rename_durably(&scratch, &path)
}
