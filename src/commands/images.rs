//! Loading: images of a site into the container engine of this machine, or into files that any engine loads.

pub(crate) mod archive;
pub(crate) mod engine;
pub(crate) mod find;
pub(crate) mod site_image;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::base::event::{Event, Report};
use crate::base::fs::{FsError, remove_file, rename_durably};
use crate::bundle::write::claim::partial_path;
use crate::commands::images::archive::{Archive, ArchiveError, Taker};
use crate::commands::images::engine::{Engine, EngineError, Ready};
use crate::commands::images::site_image::{SiteImage, SiteImageError};
use crate::oci::digest::Digest;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::site::record::RecordedImage;

/// What is to be loaded how.
#[derive(Debug, Clone)]
pub(crate) struct LoadOptions {
    /// For which platform.
    pub platform: Platform,
    /// Where to.
    pub target: Target,
    /// Whether somebody has asked for each of these images: then one that cannot be loaded is an error, and
    /// otherwise it is left out.
    pub asked_for: bool,
}

/// Where images go.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// Into an engine.
    Engine(Engine),
    /// Each into a file of its own, in this directory.
    Directory(PathBuf),
    /// Into this file: for one image.
    File(PathBuf),
    /// To stdout: for one image.
    Stdout,
}

/// What has become of the images.
#[derive(Debug, Default)]
pub(crate) struct LoadSummary {
    /// Those that were loaded or written.
    pub loaded: Vec<Loaded>,
    /// Those that the engine had.
    pub kept: Vec<Loaded>,
    /// Those that cannot be loaded and that nobody has asked for, each with the reason.
    pub skipped: Vec<SiteImageError>,
    /// What went wrong; the other images are loaded all the same.
    pub failed: Vec<LoadError>,
    /// How many bytes were handed over.
    pub bytes: u64,
    /// How long it took.
    pub time: Duration,
}

/// An image that is where it was to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// How the list named it.
    pub reference: String,
    /// The digest that it has there, if whoever has it knows digests.
    pub digest: Digest,
    /// The file that holds it.
    pub file: Option<PathBuf>,
}

/// Why an image is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The site does not have it whole, or it is nothing to be loaded.
    #[error(transparent)]
    Image(#[from] SiteImageError),
    /// The engine does not have it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The file system says no.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Nobody reads the archive to its end.
    #[error("cannot write the archive of `{0}` to stdout")]
    Stdout(String, #[source] io::Error),
    /// Two images would have one file.
    #[error("`{0}` and `{1}` would both be written to `{2}`: write one at a time, with `--output`")]
    OneFile(String, String, String),
    /// There is nothing.
    #[error(
        "this site has no image that could be loaded for {0}: `unbundle images SITE` lists what there is"
    )]
    Nothing(Platform),
}

/// Loads `images`, whose blobs are in the registry's storage at `storage`.
pub(crate) fn load(
    images: &[&RecordedImage],
    storage: &Path,
    options: &LoadOptions,
    report: &dyn Report,
) -> LoadSummary {
    let start = Instant::now();
    let mut summary = LoadSummary::default();
    if let Err(error) = run(images, storage, options, report, &mut summary) {
        summary.failed.push(error);
    }
    summary.time = start.elapsed();
    summary
}

/// An image, and the tar that it goes as.
struct Job {
    image: SiteImage,
    archive: Archive,
    /// Where to, if it is not an engine.
    file: Option<PathBuf>,
}

/// Does everything; an error is one after which nothing more can be done.
fn run(
    images: &[&RecordedImage],
    storage: &Path,
    options: &LoadOptions,
    report: &dyn Report,
    summary: &mut LoadSummary,
) -> Result<(), LoadError> {
    let engine = match &options.target {
        Target::Engine(engine) => Some(engine.clone().ready()?),
        _ => None,
    };
    let taker = engine.as_ref().map_or(Taker::File, |engine| engine.taker);
    let mut jobs = Vec::new();
    for recorded in images {
        match job(recorded, storage, options, taker) {
            Ok(job) => jobs.push(job),
            // Nobody misses a signature in an engine.
            Err(error) if error.is_unfit() && !options.asked_for && is_attached(recorded) => {}
            Err(error) if error.is_unfit() && !options.asked_for => {
                report.event(&Event::Warning { message: format!("left out: {error}") });
                summary.skipped.push(error);
            }
            Err(error) => summary.failed.push(error.into()),
        }
    }
    // Somebody who asked for what cannot be has to ask anew: nothing is done until then.
    if summary.failed.iter().any(|error| matches!(error, LoadError::Image(error) if error.is_unfit())) {
        return Ok(());
    }
    if jobs.is_empty() && summary.failed.is_empty() {
        return Err(LoadError::Nothing(options.platform.clone()));
    }
    refuse_one_file(&jobs)?;
    if let Some(engine) = &engine {
        report.event(&Event::Stage { name: "checking", bytes: None, objects: Some(jobs.len() as u64) });
        jobs.retain(|job| {
            let has_it = engine.has(&job.image, &job.archive);
            summary.kept.extend(has_it.then(|| job.loaded()));
            !has_it
        });
    }
    if jobs.is_empty() {
        return Ok(());
    }
    report.event(&Event::Stage {
        name: "loading",
        bytes: Some(jobs.iter().map(|job| job.archive.size()).sum()),
        objects: Some(jobs.len() as u64),
    });
    for (id, job) in jobs.iter().enumerate() {
        match job.load(id as u64, engine.as_ref(), report) {
            Ok(bytes) => {
                summary.loaded.push(job.loaded());
                summary.bytes += bytes;
            }
            Err(error) if error.is_of_this_image() => {
                summary.failed.push(error);
                // One image may be too much for it; but if it is gone, that is not said once an image.
                if let Target::Engine(engine) = &options.target {
                    engine.clone().ready()?;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn job(
    recorded: &RecordedImage,
    storage: &Path,
    options: &LoadOptions,
    taker: Taker,
) -> Result<Job, SiteImageError> {
    let image = SiteImage::open(recorded, storage, &options.platform)?;
    let archive = Archive::new(&image, taker, storage)?;
    let file = match &options.target {
        Target::Directory(directory) => Some(directory.join(file_name(&image.reference))),
        Target::File(path) => Some(path.clone()),
        Target::Engine(_) | Target::Stdout => None,
    };
    Ok(Job { image, archive, file })
}

/// Whether it is about another image.
fn is_attached(image: &RecordedImage) -> bool {
    image.reference.parse().is_ok_and(|reference: Reference| reference.is_referrer())
}

/// The name of an image's file, without what skopeo would take for the end of a path.
fn file_name(reference: &Reference) -> String {
    let text = reference.to_string();
    // With a tag it is told from others, and its digest would only make it long.
    let name = if reference.tag().is_some() { text.split('@').next().unwrap_or(&text) } else { &text };
    format!("{}.tar", name.replace(['/', ':', '@', '[', ']'], "_"))
}

fn refuse_one_file(jobs: &[Job]) -> Result<(), LoadError> {
    let mut files = BTreeMap::new();
    for job in jobs {
        let reference = job.image.reference.to_string();
        if let Some(file) = &job.file
            && let Some(other) = files.insert(file, reference.clone())
        {
            return Err(LoadError::OneFile(other, reference, file.display().to_string()));
        }
    }
    Ok(())
}

impl LoadError {
    /// Whether other images may fare better.
    fn is_of_this_image(&self) -> bool {
        matches!(self, Self::Image(_) | Self::Engine(EngineError::Refused { .. } | EngineError::Damaged(_)))
    }
}

impl Job {
    fn loaded(&self) -> Loaded {
        let (reference, digest) = (self.image.reference.to_string(), self.archive.digest);
        Loaded { reference, digest, file: self.file.clone() }
    }

    /// Says how many bytes it were.
    fn load(&self, id: u64, engine: Option<&Ready>, report: &dyn Report) -> Result<u64, LoadError> {
        let object = self.image.reference.to_string();
        report.event(&Event::Begin { id, object, bytes: Some(self.archive.size()) });
        let bytes = Cell::new(0);
        let written = |piece| {
            bytes.set(bytes.get() + piece);
            report.event(&Event::Progress { id, bytes: piece });
        };
        match (engine, &self.file) {
            (Some(engine), _) => engine.load(&self.image, &self.archive, &written)?,
            (None, Some(file)) => self.to_file(file, &written)?,
            (None, None) => {
                let reference = || self.image.reference.to_string();
                self.write(&mut io::stdout().lock(), &written, |error| {
                    LoadError::Stdout(reference(), error)
                })?;
            }
        }
        report.event(&Event::Done { id });
        Ok(bytes.get())
    }

    /// Writes the archive into a file that has its name only when it is complete.
    fn to_file(&self, path: &Path, written: &dyn Fn(u64)) -> Result<(), LoadError> {
        // A pipe or a device keeps its name.
        let is_special = path.metadata().is_ok_and(|meta| !meta.is_file());
        let partial = if is_special { path.to_owned() } else { partial_path(path) };
        let result = self.to_open_file(&partial, is_special, written);
        if is_special {
            return result;
        }
        if result.is_err() {
            let _ = remove_file(&partial); // it already failed, and said why
        }
        result.and_then(|()| Ok(rename_durably(&partial, path)?))
    }

    fn to_open_file(&self, path: &Path, is_special: bool, written: &dyn Fn(u64)) -> Result<(), LoadError> {
        let mut options = File::options();
        let file = options.write(true).create(!is_special).truncate(!is_special).open(path);
        let mut file = file.map_err(FsError::at("create", path))?;
        self.write(&mut file, written, |error| FsError::at("write", path)(error).into())?;
        if !is_special {
            file.sync_all().map_err(FsError::at("sync", path))?;
        }
        Ok(())
    }

    fn write(
        &self,
        output: &mut dyn io::Write,
        written: &dyn Fn(u64),
        failed: impl FnOnce(io::Error) -> LoadError,
    ) -> Result<(), LoadError> {
        let reference = || self.image.reference.to_string();
        self.archive.write(output, written).map_err(|error| match error {
            ArchiveError::Output(error) => failed(error),
            ArchiveError::Blob(source) => SiteImageError::Blob { reference: reference(), source }.into(),
        })
    }
}
