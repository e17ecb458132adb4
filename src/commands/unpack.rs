//! Unpacking: a bundle in, a site out, in one pass.

pub(crate) mod delta;
pub mod error;
pub mod options;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::path::RelPath;
use crate::base::pipeline::Pipeline;
use crate::base::units::as_seconds;
use crate::bundle::format::index::BundleInfo;
use crate::bundle::format::layout::{Blob, Layout};
use crate::bundle::read::error::{ReadError, Unavailable};
use crate::bundle::read::problem::{DamageKind, Position};
use crate::bundle::read::reader::{BundleReader, Contents};
use crate::bundle::read::select::Prefetched;
use crate::commands::unpack::delta::Delta;
use crate::commands::unpack::error::UnpackError;
use crate::commands::unpack::options::UnpackOptions;
use crate::oci::digest::Digest;
use crate::oci::manifest::MANIFEST_LIMIT;
use crate::site::check::{State, Target, check, is_readable};
use crate::site::commit::{Committer, StagedFiles, distinct};
use crate::site::record::Record;
use crate::site::root::{Root, Staging, Stagings};
use crate::site::storage::{GC_GUARD, Links, blob_path};

/// What a small file costs on the disk, with its directory.
const SMALL_FILE: u64 = 8 << 10;

/// How many link files are staged before they are moved.
const LINK_BATCH: usize = 1024;

/// How to go on from here, for the people at the site: it is there when nothing else is.
const GUIDE: &str = "README.md";

/// It travels in the bundle; this one is for a bundle without it.
pub const GUIDE_TEXT: &str = include_str!("../../docs/site.md");

/// What a run has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct UnpackSummary {
    /// How many files of the bundle are on the site now.
    pub files: usize,
    /// How many images.
    pub images: usize,
    /// How many files and images the bundle has, wanted or not.
    pub bundle: Counts,
    /// What was wanted and cannot be had, images first.
    pub left_out: Vec<LeftOut>,
    /// How many blobs and files were written.
    pub written: usize,
    /// How many were there with wrong bytes, or could not be read by everybody.
    pub repaired: usize,
    /// How many were there and right.
    pub kept: usize,
    /// How many link files (tags and the like) were written.
    pub links_written: usize,
    /// How many bytes were written.
    pub bytes_written: u64,
    /// Where the bundle was damaged and its recovery data has repaired it.
    #[serde(rename = "mended", skip_serializing_if = "Vec::is_empty")]
    pub repaired_frames: Vec<Position>,
    /// How long it took.
    #[cfg_attr(test, schemars(with = "f64"))]
    #[serde(serialize_with = "as_seconds", rename = "seconds")]
    pub time: Duration,
}

/// Files and images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Counts {
    /// How many files.
    pub files: usize,
    /// How many images.
    pub images: usize,
}

/// An image or a file that is not on the site because something of it cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LeftOut {
    /// Its reference, or its path.
    pub name: String,
    /// What kind of trouble it is.
    pub trouble: DamageKind,
    /// What is wrong, for a person.
    pub problem: String,
}

impl UnpackSummary {
    /// Whether the site was complete before.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        self.written == 0 && self.repaired == 0 && self.links_written == 0
    }
}

/// Unpacks the bundle that `reader` reads.
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
    let bundle = Counts { files: contents.layout.files.len(), images: contents.layout.images.len() };
    let registry = options.registry.clone().unwrap_or_else(|| options.site.join("registry"));
    let config = |digest| crate::base::fs::read(&registry.join(blob_path(digest)), MANIFEST_LIMIT).ok();
    let early = options.select.apply(&mut contents.layout, &mut reader, config)?;
    let layout = &contents.layout;
    let links = Links::new(layout, &options.templates)?;
    let mut delta = Delta::begin(layout, options)?;
    let roots = Roots::open(options, layout)?;
    let targets = targets(layout, &roots);
    let mut summary = UnpackSummary { bundle, ..UnpackSummary::default() };

    report.event(&Event::Stage { name: "checking", bytes: None, objects: Some(targets.len() as u64) });
    let mut states = check(&targets, &roots.all, report)?;
    delta.find(layout, &targets, &states, &options.site, report)?;
    let staged: HashSet<&str> = targets
        .iter()
        .zip(&states)
        .filter(|(_, state)| **state == State::Staged)
        .map(|(target, _)| target.staged.as_str())
        .collect();
    for staging in distinct(&roots.all) {
        staging.clear(|name| staged.contains(name))?;
    }
    let links = missing_links(&links, &roots)?;
    check_space(&targets, &states, &links, &roots)?;

    let todo = WritePlan::new(&targets, &states);
    summary.kept = states.iter().filter(|state| **state == State::Right).count();
    summary.repaired = states.iter().filter(|state| matches!(state, State::Wrong | State::Opened)).count();
    summary.bytes_written = todo.bytes;
    // Also when nothing but links is missing: until they are there, the blobs are nobody's.
    if let Some(root) = roots.registry().filter(|_| summary.kept < targets.len() || !links.is_empty()) {
        root.touch(&gc_guard_path())?;
    }
    if summary.kept < targets.len() {
        let objects = Some(todo.blobs.len() as u64);
        report.event(&Event::Stage { name: "unpacking", bytes: Some(todo.bytes), objects });
        delta.stage(&targets, &mut states, &roots.all, report)?;
        summary.written = place_staged(&targets, &states, &roots.all)?;
    }
    let (placed, lost) = write_blobs(&mut reader, &contents, &early, &targets, &roots.all, &todo, report)?;
    summary.written += placed;
    let links = if lost.is_empty() {
        links
    } else if options.keep_going {
        summary.bytes_written -= todo.bytes_of(&lost, &targets);
        summary.left_out = leave_out(&mut contents.layout, &lost);
        missing_links(&Links::new(&contents.layout, &options.templates)?, &roots)?
    } else {
        return Err(damaged(layout, lost));
    };
    (summary.files, summary.images) = (contents.layout.files.len(), contents.layout.images.len());
    summary.links_written = write_links(&links, &roots)?;
    if let Some(root) = roots.registry() {
        root.remove_with_directory(&gc_guard_path())?;
    }
    if !summary.is_unchanged() {
        distinct(&roots.all).into_iter().try_for_each(|staging| staging.sync())?;
    }
    let is_part = !options.select.is_all() || !summary.left_out.is_empty();
    record(&contents, is_part, options, &roots)?;
    guide(&contents.about, &options.site, &roots)?;
    summary.repaired_frames = reader.repaired();
    if let Some(message) = repaired_text(&summary.repaired_frames) {
        report.event(&Event::Warning { message });
    }
    summary.time = start.elapsed();
    Ok(summary)
}

/// What is said where recovery data was needed.
#[must_use]
pub fn repaired_text(repaired: &[Position]) -> Option<String> {
    let count = repaired.len();
    let more = if count > 1 { format!(" and {} more places", count - 1) } else { String::new() };
    Some(format!(
        "the bundle is damaged at {}{more}; its recovery data has repaired all of that: `unbundle repair` writes a good copy",
        repaired.first()?
    ))
}

/// Notes what the site holds now. A record that cannot be read is no reason to keep what is right from being served:
/// it is begun anew.
fn record(contents: &Contents, is_part: bool, options: &UnpackOptions, roots: &Roots) -> Result<(), FsError> {
    let place = |elsewhere: Option<&PathBuf>, name: &str| match elsewhere {
        Some(path) => std::path::absolute(path).map_err(FsError::at("find", path)),
        None => Ok(name.into()),
    };
    let fresh =
        Record::new(place(options.files.as_ref(), "files")?, place(options.registry.as_ref(), "registry")?);
    let mut record = match Record::read(&options.site) {
        Ok(known) if known.has_places_of(&fresh) => known,
        _ => fresh,
    };
    record.add(contents, is_part, &options.templates, &options.site);
    record.write(&options.site, &roots.site.path("record"))?;
    Ok(())
}

/// Puts the guide for the people at the site beside it, unless one is there: it is theirs to write into.
fn guide(about: &BundleInfo, site: &Path, roots: &Roots) -> Result<(), FsError> {
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

/// The directories that are written to.
struct Roots {
    all: Vec<Root>,
    /// Which of them takes the files, and which the storage of the registry. One that the bundle has nothing for
    /// is not made.
    files: Option<usize>,
    registry: Option<usize>,
    /// The staging directory of the site itself: its lock, and the record before it has its place.
    site: Arc<Staging>,
}

impl Roots {
    fn open(options: &UnpackOptions, layout: &Layout) -> Result<Self, UnpackError> {
        let mut stagings = Stagings::default();
        let site = stagings.of(&options.site)?;
        let mut roots = Self { all: Vec::new(), files: None, registry: None, site };
        if !layout.files.is_empty() {
            roots.files = Some(roots.add(options, options.files.as_deref(), "files", &mut stagings)?);
        }
        if !layout.images.is_empty() {
            let elsewhere = options.registry.as_deref();
            roots.registry = Some(roots.add(options, elsewhere, "registry", &mut stagings)?);
        }
        Ok(roots)
    }

    /// Opens `elsewhere`, or the directory `name` of the site; says its number.
    fn add(
        &mut self,
        options: &UnpackOptions,
        elsewhere: Option<&Path>,
        name: &str,
        stagings: &mut Stagings,
    ) -> Result<usize, UnpackError> {
        self.all.push(match elsewhere {
            Some(path) => Root::open(path, path, stagings)?,
            None => Root::open(&options.site.join(name), &options.site, stagings)?,
        });
        Ok(self.all.len() - 1)
    }

    fn registry(&self) -> Option<&Root> {
        self.registry.map(|number| &self.all[number])
    }
}

/// Every file that the site is to have, but for links.
fn targets(layout: &Layout, roots: &Roots) -> Vec<Target> {
    let mut sorted: BTreeMap<(usize, RelPath), Blob> = BTreeMap::new();
    for (image, root) in layout.images.iter().filter_map(|image| roots.registry.map(|root| (image, root))) {
        for blob in image.manifests.iter().copied().chain(layout.blobs_of(image)) {
            sorted.insert((root, blob_path(blob.digest)), blob);
        }
    }
    let prefix = RelPath::parse("k8s").expect("a plain name");
    for (file, root) in layout.files.iter().filter_map(|file| roots.files.map(|root| (file, root))) {
        let blob = Blob { digest: file.digest, size: file.size };
        sorted.insert((root, prefix.join(&file.path)), blob);
    }
    let mut places: HashMap<Digest, usize> = HashMap::new();
    let targets = sorted.into_iter().map(|((root, path), blob)| {
        let place = places.entry(blob.digest).or_default();
        *place += 1;
        Target { blob, root, path, staged: format!("{}.{place}", blob.digest.hex()) }
    });
    targets.collect()
}

/// The blobs that are to be written, and to which targets each.
struct WritePlan {
    blobs: HashMap<Digest, Vec<usize>>,
    bytes: u64,
}

impl WritePlan {
    fn new(targets: &[Target], states: &[State]) -> Self {
        let mut todo = Self { blobs: HashMap::new(), bytes: 0 };
        for (number, (target, state)) in targets.iter().zip(states).enumerate() {
            if matches!(state, State::Missing | State::Wrong) {
                todo.blobs.entry(target.blob.digest).or_default().push(number);
                todo.bytes += target.blob.size;
            }
        }
        todo
    }
}

impl WritePlan {
    /// How many bytes are not written because `lost` cannot be had.
    fn bytes_of(&self, lost: &[(Digest, Unavailable)], targets: &[Target]) -> u64 {
        let places = lost.iter().filter_map(|(digest, _)| self.blobs.get(digest)).flatten();
        places.map(|number| targets[*number].blob.size).sum()
    }
}

/// Takes out of `layout` what needs something that is lost, and says what that is.
fn leave_out(layout: &mut Layout, lost: &[(Digest, Unavailable)]) -> Vec<LeftOut> {
    let lost: HashMap<Digest, &Unavailable> = lost.iter().rev().map(|(digest, why)| (*digest, why)).collect();
    let left_out = |name: String, why: &Unavailable| LeftOut {
        name,
        trouble: why.trouble,
        problem: why.problem.clone(),
    };
    let mut all = Vec::new();
    let mut images = std::mem::take(&mut layout.images);
    images.retain(|image| {
        let blobs = image.manifests.iter().copied().chain(layout.blobs_of(image));
        let worst = blobs.filter_map(|blob| lost.get(&blob.digest)).max_by_key(|why| why.trouble);
        all.extend(worst.map(|why| left_out(image.indexed.reference.to_string(), why)));
        worst.is_none()
    });
    layout.images = images;
    layout.files.retain(|file| {
        let why = lost.get(&file.digest);
        all.extend(why.map(|why| left_out(file.path.to_string(), why)));
        why.is_none()
    });
    all
}

/// Moves what an earlier run has staged and not moved.
fn place_staged(targets: &[Target], states: &[State], roots: &[Root]) -> Result<usize, FsError> {
    let staged: Vec<_> = targets.iter().zip(states).filter(|(_, state)| **state == State::Staged).collect();
    if !staged.is_empty() {
        distinct(roots).into_iter().try_for_each(|staging| staging.sync())?;
    }
    for (target, _) in &staged {
        roots[target.root].place(&target.staged, &target.path)?;
    }
    Ok(staged.len())
}

/// Reads the bundle to its end, or to the last blob that is needed, and writes what is to be written. Says how many files
/// it placed, and what cannot be had.
fn write_blobs(
    reader: &mut BundleReader,
    contents: &Contents,
    early: &Prefetched,
    targets: &[Target],
    roots: &[Root],
    todo: &WritePlan,
    report: &dyn Report,
) -> Result<(usize, Vec<(Digest, Unavailable)>), UnpackError> {
    let layout = &contents.layout;
    let blobs: Vec<Blob> = layout.manifests.iter().chain(&layout.blobs).copied().collect();
    let expected: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
    let committer = Committer { roots, targets, expected: &expected, report };
    let failed = AtomicBool::new(false);
    let (mut lanes, ended) = Pipeline::start();
    let (read, placed) = std::thread::scope(|scope| {
        let commits = scope.spawn(|| {
            let ended = ended; // gone when this thread ends: nobody waits for an end that nobody takes
            let result = committer.run(&ended);
            failed.store(result.is_err(), Ordering::Relaxed);
            result
        });
        let mut feeder = BlobFeeder { lanes: &mut lanes, targets, roots, todo, report, failed: &failed };
        let read = feeder.feed(reader, contents, early, &blobs);
        lanes.finish();
        (read, commits.join().expect("the committer does not panic; please report"))
    });
    let placed = placed?;
    let mut lost = read?;
    lost.extend(placed.wrong.iter().map(|blob| (blob.0, Unavailable::from(&ReadError::Digest(blob.0)))));
    Ok((placed.count, lost))
}

/// Hands the blobs that are needed to the lanes.
struct BlobFeeder<'a> {
    lanes: &'a mut Pipeline<StagedFiles>,
    targets: &'a [Target],
    roots: &'a [Root],
    todo: &'a WritePlan,
    report: &'a dyn Report,
    failed: &'a AtomicBool,
}

impl BlobFeeder<'_> {
    /// Says what cannot be had.
    fn feed(
        &mut self,
        reader: &mut BundleReader,
        contents: &Contents,
        early: &Prefetched,
        blobs: &[Blob],
    ) -> Result<Vec<(Digest, Unavailable)>, UnpackError> {
        let mut left = blobs.iter().filter(|blob| self.todo.blobs.contains_key(&blob.digest)).count();
        let mut lost: Vec<(Digest, Unavailable)> = Vec::new();
        // Why nothing can be read any more.
        let mut end: Option<Unavailable> = None;
        let first = contents.layout.manifests.len() + early.passed;
        let passed: HashSet<Digest> = blobs[..first].iter().map(|blob| blob.digest).collect();
        let is_needed = |digest| self.todo.blobs.contains_key(&digest) && !passed.contains(&digest);
        reader.narrow(contents.layout.ranges(is_needed));
        for (number, blob) in blobs.iter().enumerate() {
            if (left == 0 && reader.can_stop()) || self.failed.load(Ordering::Relaxed) {
                break;
            }
            let places = self.todo.blobs.get(&blob.digest);
            left -= usize::from(places.is_some());
            if number < first {
                let Some(places) = places else { continue };
                let known = contents.manifests.get(&blob.digest).or_else(|| early.blobs.get(&blob.digest));
                if let Some(bytes) = known {
                    self.begin(number, *blob, places)?;
                    self.lanes.data(bytes.clone().into());
                    self.lanes.end();
                } else {
                    let why = early.lost.iter().find(|(digest, _)| *digest == blob.digest);
                    lost.push(why.cloned().expect("it was read or lost; please report"));
                }
                continue;
            }
            let read = match (&end, places) {
                (Some(why), Some(_)) => Err(why.clone()),
                (Some(_), None) => Ok(()),
                (None, None) => reader.skip(blob).map_err(|error| Unavailable::from(&error)),
                (None, Some(places)) => {
                    self.begin(number, *blob, places)?;
                    self.blob(reader, number, blob).map_err(|error| Unavailable::from(&error))
                }
            };
            // What is damaged costs only itself: the rest is there for the next run, with a better copy.
            if let Err(why) = read {
                if reader.is_lost() {
                    end.get_or_insert_with(|| why.clone());
                }
                if places.is_some() {
                    lost.push((blob.digest, why));
                }
            }
        }
        if !lost.is_empty() || (left == 0 && reader.can_stop()) || self.failed.load(Ordering::Relaxed) {
            return Ok(lost);
        }
        // Everything that is installed has been checked; what the end looks like matters to `verify`.
        if let Err(error) = reader.end() {
            let message =
                format!("all that was unpacked is right, but the end of the bundle is not: {error}");
            self.report.event(&Event::Warning { message });
        }
        Ok(lost)
    }

    fn blob(&mut self, reader: &mut BundleReader, number: usize, blob: &Blob) -> Result<(), ReadError> {
        let read = reader.blob(blob, |slice| {
            let bytes = slice.len() as u64;
            self.report.event(&Event::Progress { id: number as u64, bytes });
            self.lanes.data(slice);
            Ok(())
        });
        if read.is_ok() {
            self.lanes.end();
        } else {
            self.lanes.abandon();
        }
        read
    }

    fn begin(&mut self, number: usize, blob: Blob, places: &[usize]) -> Result<(), UnpackError> {
        let files = StagedFiles::create(self.targets, places, self.roots)?;
        let object = self.targets[places[0]].path.to_string();
        self.report.event(&Event::Begin { id: number as u64, object, bytes: Some(blob.size) });
        self.lanes.begin(number, files);
        Ok(())
    }
}

/// Names what the why of some blobs hits; the first one is the reason that is told.
fn damaged(layout: &Layout, lost: Vec<(Digest, Unavailable)>) -> UnpackError {
    let blobs: Vec<Digest> = lost.iter().map(|(digest, _)| *digest).collect();
    let source = lost.into_iter().next().expect("something is lost; please report").1;
    UnpackError::Damaged { owners: layout.owners_text(&blobs), source }
}

/// The links that are not there, name something else or cannot be read by everybody, stage by stage, and the directories
/// that must be there.
struct MissingLinks {
    stages: Vec<Vec<(RelPath, Digest)>>,
    directories: Vec<RelPath>,
}

impl MissingLinks {
    fn is_empty(&self) -> bool {
        self.stages.iter().all(Vec::is_empty)
    }
}

fn missing_links(links: &Links, roots: &Roots) -> Result<MissingLinks, FsError> {
    use std::io::Read;
    let Some(root) = roots.registry() else {
        return Ok(MissingLinks { stages: Vec::new(), directories: Vec::new() });
    };
    let mut stages = Vec::new();
    for stage in links.stages() {
        let mut missing = Vec::new();
        for (path, digest) in stage {
            let mut content = Vec::new();
            let mut readable = false;
            if let Some(file) = root.existing(path)? {
                let at = || FsError::at("read", root.path(path));
                readable = is_readable(&file.metadata().map_err(at())?.permissions());
                file.take(100).read_to_end(&mut content).map_err(at())?;
            }
            if !readable || content != digest.to_string().as_bytes() {
                missing.push((path.clone(), *digest));
            }
        }
        stages.push(missing);
    }
    Ok(MissingLinks { stages, directories: links.directories.iter().cloned().collect() })
}

/// Writes links, each stage when the one before it is on the disk; says how many.
fn write_links(links: &MissingLinks, roots: &Roots) -> Result<usize, FsError> {
    use std::io::Write;
    let Some(root) = roots.registry() else { return Ok(0) };
    let staging = root.staging();
    let mut written = 0;
    for directory in &links.directories {
        written += usize::from(root.directory(directory)?);
    }
    for stage in &links.stages {
        for batch in stage.chunks(LINK_BATCH) {
            for (number, (_, digest)) in batch.iter().enumerate() {
                let name = format!("link.{number}");
                let mut file = staging.create(&name)?;
                file.write_all(digest.to_string().as_bytes())
                    .map_err(FsError::at("write", staging.path(&name)))?;
            }
            // Carries what the stage before has moved, too.
            staging.sync()?;
            for (number, (path, _)) in batch.iter().enumerate() {
                root.place(&format!("link.{number}"), path)?;
            }
        }
        written += stage.len();
    }
    Ok(written)
}

/// Fails if there is less room than is needed, before anything was written.
fn check_space(
    targets: &[Target],
    states: &[State],
    links: &MissingLinks,
    roots: &Roots,
) -> Result<(), UnpackError> {
    let mut devices = BTreeMap::new();
    for staging in distinct(&roots.all) {
        devices.entry(staging.device()?).or_insert(staging);
    }
    for (device, staging) in devices {
        let here = |root: &Root| root.staging().device().is_ok_and(|other| other == device);
        let (mut bytes, mut files) = (0_u64, 0);
        let roots_here: Vec<bool> = roots.all.iter().map(here).collect();
        for (target, state) in targets.iter().zip(states) {
            if roots_here[target.root] && matches!(state, State::Missing | State::Wrong) {
                bytes = bytes.saturating_add(target.blob.size.next_multiple_of(SMALL_FILE) + SMALL_FILE);
                files += 3; // with the directories of a blob
            }
        }
        if roots.registry().is_some_and(here) {
            let count = links.stages.iter().map(Vec::len).sum::<usize>() as u64;
            bytes = bytes.saturating_add(count * SMALL_FILE);
            files += count * 2;
        }
        let (available, inodes) = staging.free()?;
        let path = || staging.path("").parent().map(Path::to_owned).unwrap_or_default();
        if files > 0 && bytes > available {
            return Err(UnpackError::Space { path: path(), needed: bytes, available });
        }
        if let Some(available) = inodes.filter(|available| files > *available) {
            return Err(UnpackError::Inodes { path: path(), needed: files, available });
        }
    }
    Ok(())
}

fn gc_guard_path() -> RelPath {
    RelPath::parse(GC_GUARD).expect("a plain path")
}
