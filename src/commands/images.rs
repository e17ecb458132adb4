//! Loads images of a site or a bundle into a container engine, or writes them to archives that any engine loads.

pub(crate) mod archive;
pub(crate) mod blobs;
pub(crate) mod engine;
pub(crate) mod find;
pub(crate) mod site_image;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::base::event::{Event, Report};
use crate::base::fs::{self, FsError};
use crate::base::output_file::{Access, OutputFile};
use crate::commands::images::archive::{Archive, Consumer};
use crate::commands::images::blobs::{Blobs, CopyError};
use crate::commands::images::engine::{ConnectedEngine, Engine, EngineError};
use crate::commands::images::site_image::{SiteImage, SiteImageError};
use crate::oci::digest::Digest;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::site::record::RecordedImage;

/// The options of [`load`].
#[derive(Debug, Clone)]
pub(crate) struct LoadOptions {
    /// The platform to choose from multi-platform images.
    pub platform: Platform,
    pub target: Target,
    /// True if the user named the images: an unsuitable image is then an error, otherwise it is skipped.
    pub is_explicit: bool,
}

/// Destination of images.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Engine(Engine),
    /// One file per image, in this directory.
    Directory(PathBuf),
    /// One file per image, in the directory from which a distribution of Kubernetes imports them.
    Import {
        distribution: &'static str,
        directory: PathBuf,
    },
    /// This file, for a single image.
    File(PathBuf),
    /// Stdout, for a single image.
    Stdout,
}

/// The result of a run.
#[derive(Debug, Default)]
pub(crate) struct LoadSummary {
    /// Images that were loaded or written.
    pub loaded: Vec<Loaded>,
    /// Images that the engine already had.
    pub kept: Vec<Loaded>,
    /// Unsuitable images that the user did not name.
    pub skipped: Vec<SiteImageError>,
    /// Errors; an error of one image does not stop the others.
    pub failed: Vec<LoadError>,
    /// Size of the loaded or written archives in bytes.
    pub bytes: u64,
    pub time: Duration,
}

/// An image at its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// The reference in the list of images.
    pub reference: String,
    /// The digest of the image at the destination, if that keeps digests.
    pub digest: Digest,
    /// The archive. `None`: not written to a file.
    pub file: Option<PathBuf>,
}

/// The reason why an image is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The image is corrupt, incomplete or unsuitable.
    #[error(transparent)]
    Image(#[from] SiteImageError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A local I/O error.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Stdout was closed before the end of the archive.
    #[error("cannot write the archive of `{0}` to stdout")]
    Stdout(String, #[source] io::Error),
    /// Two images have the same file name.
    #[error("`{0}` and `{1}` have the same file name `{2}`: write them one at a time, with `--output`")]
    SharedFile(String, String, String),
    /// The site has no suitable image.
    #[error("no image of this site can be loaded for {0}: run `unbundle images SITE` to list the images")]
    NoImages(Platform),
}

/// Loads `images`, whose blobs are in `blobs`.
pub(crate) fn load(
    images: &[&RecordedImage],
    blobs: &Blobs<'_>,
    options: &LoadOptions,
    report: &dyn Report,
) -> LoadSummary {
    let start = Instant::now();
    let mut loader = Loader { blobs, options, report, summary: LoadSummary::default() };
    if let Err(error) = loader.run(images) {
        loader.summary.failed.push(error);
    }
    LoadSummary { time: start.elapsed(), ..loader.summary }
}

struct Loader<'a> {
    blobs: &'a Blobs<'a>,
    options: &'a LoadOptions,
    report: &'a dyn Report,
    summary: LoadSummary,
}

impl Loader<'_> {
    /// Loads `images`. Returns an error if no further image can be loaded; errors of one image are added to
    /// the summary.
    fn run(&mut self, images: &[&RecordedImage]) -> Result<(), LoadError> {
        let engine = match &self.options.target {
            Target::Engine(engine) => Some(engine.connect()?),
            Target::Import { directory, .. } => {
                fs::create_dir_all(directory)?;
                None
            }
            Target::Directory(_) | Target::File(_) | Target::Stdout => None,
        };
        let consumer = match (&engine, &self.options.target) {
            (Some(engine), _) => engine.consumer(),
            (None, Target::Import { .. }) => Consumer::Import,
            (None, _) => Consumer::Any,
        };
        let mut jobs = self.prepare(images, consumer);
        // The command line has to change, so nothing is loaded.
        if self.summary.failed.iter().any(LoadError::is_unsuitable) {
            return Ok(());
        }
        if jobs.is_empty() && self.summary.failed.is_empty() {
            return Err(LoadError::NoImages(self.options.platform.clone()));
        }
        check_file_names(&jobs)?;
        if let Some(engine) = &engine {
            jobs = self.keep_present(jobs, engine);
        }
        self.load_all(&jobs, engine.as_ref())
    }

    /// Prepares the archive of each image that can be loaded.
    fn prepare(&mut self, images: &[&RecordedImage], consumer: Consumer) -> Vec<Job> {
        let mut jobs = Vec::new();
        for recorded in images {
            match Job::new(recorded, self.blobs, self.options, consumer) {
                Ok(job) => jobs.push(job),
                Err(error) if error.is_unsuitable() && !self.options.is_explicit => {
                    // Engines cannot use signatures and attestations: no warning for those.
                    if !is_referrer(recorded) {
                        self.report.event(&Event::Warning { message: format!("skipped: {error}") });
                        self.summary.skipped.push(error);
                    }
                }
                Err(error) => self.summary.failed.push(error.into()),
            }
        }
        jobs
    }

    /// Returns the jobs whose image the engine lacks.
    fn keep_present(&mut self, jobs: Vec<Job>, engine: &ConnectedEngine) -> Vec<Job> {
        let objects = Some(jobs.len() as u64);
        self.report.event(&Event::Stage { name: "checking", bytes: None, objects });
        let (present, missing): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| engine.has(&job.image, &job.archive));
        self.summary.kept.extend(present.iter().map(Job::loaded));
        missing
    }

    fn load_all(&mut self, jobs: &[Job], engine: Option<&ConnectedEngine>) -> Result<(), LoadError> {
        if jobs.is_empty() {
            return Ok(());
        }
        self.report.event(&Event::Stage {
            name: "loading",
            bytes: Some(jobs.iter().map(|job| job.archive.size()).sum()),
            objects: Some(jobs.len() as u64),
        });
        for (id, job) in jobs.iter().enumerate() {
            match job.load(id as u64, engine, self.blobs, self.report) {
                Ok(bytes) => {
                    self.summary.loaded.push(job.loaded());
                    self.summary.bytes += bytes;
                }
                Err(error) if error.is_of_one_image() => {
                    self.summary.failed.push(error);
                    // If the engine itself is gone, report that once, not for every image.
                    if let Target::Engine(engine) = &self.options.target {
                        engine.connect()?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// True if the image is a signature, attestation or SBOM of another image.
fn is_referrer(image: &RecordedImage) -> bool {
    image.reference.is_referrer()
}

fn check_file_names(jobs: &[Job]) -> Result<(), LoadError> {
    let mut files = BTreeMap::new();
    for job in jobs {
        let reference = job.image.reference.to_string();
        if let Some(file) = &job.file
            && let Some(other) = files.insert(file, reference.clone())
        {
            return Err(LoadError::SharedFile(other, reference, file.display().to_string()));
        }
    }
    Ok(())
}

impl LoadError {
    fn is_unsuitable(&self) -> bool {
        matches!(self, Self::Image(error) if error.is_unsuitable())
    }

    /// True if other images can still be loaded.
    fn is_of_one_image(&self) -> bool {
        matches!(self, Self::Image(_) | Self::Engine(EngineError::Refused { .. } | EngineError::Image(_)))
    }
}

/// An image and its archive.
struct Job {
    image: SiteImage,
    archive: Archive,
    /// The file to write. `None`: the engine or stdout.
    file: Option<PathBuf>,
}

impl Job {
    fn new(
        recorded: &RecordedImage,
        blobs: &Blobs<'_>,
        options: &LoadOptions,
        consumer: Consumer,
    ) -> Result<Self, SiteImageError> {
        let image = SiteImage::open(recorded, blobs, &options.platform)?;
        let archive = Archive::new(&image, consumer)?;
        let file = match &options.target {
            Target::Directory(directory) | Target::Import { directory, .. } => {
                Some(directory.join(file_name(&image.reference)))
            }
            Target::File(path) => Some(path.clone()),
            Target::Engine(_) | Target::Stdout => None,
        };
        Ok(Self { image, archive, file })
    }

    fn loaded(&self) -> Loaded {
        let (reference, digest) = (self.image.reference.to_string(), self.archive.digest);
        Loaded { reference, digest, file: self.file.clone() }
    }

    /// Loads or writes the archive. Returns its size in bytes.
    fn load(
        &self,
        id: u64,
        engine: Option<&ConnectedEngine>,
        blobs: &Blobs<'_>,
        report: &dyn Report,
    ) -> Result<u64, LoadError> {
        let object = self.image.reference.to_string();
        report.event(&Event::Begin { id, object, bytes: Some(self.archive.size()) });
        let total = Cell::new(0);
        let progress = |bytes| {
            total.set(total.get() + bytes);
            report.event(&Event::Progress { id, bytes });
        };
        match (engine, &self.file) {
            (Some(engine), _) => engine.load(&self.image, &self.archive, blobs, &progress)?,
            (None, Some(file)) => self.write_file(file, blobs, &progress)?,
            (None, None) => {
                let reference = self.image.reference.to_string();
                self.write(&mut io::stdout().lock(), blobs, &progress, |error| {
                    LoadError::Stdout(reference, error)
                })?;
            }
        }
        report.event(&Event::Done { id });
        Ok(total.get())
    }

    /// Writes the archive to `path`, which appears only when it is complete.
    fn write_file(&self, path: &Path, blobs: &Blobs<'_>, progress: &dyn Fn(u64)) -> Result<(), LoadError> {
        let mut file = OutputFile::create(path, Access::Default)?;
        self.write(&mut file, blobs, progress, |error| FsError::at("write", path)(error).into())?;
        Ok(file.finish()?)
    }

    fn write(
        &self,
        output: &mut dyn io::Write,
        blobs: &Blobs<'_>,
        progress: &dyn Fn(u64),
        output_error: impl FnOnce(io::Error) -> LoadError,
    ) -> Result<(), LoadError> {
        self.archive.write(blobs, output, progress).map_err(|error| match error {
            CopyError::Output(error) => output_error(error),
            CopyError::Blob(source) => {
                SiteImageError::Blob { reference: self.image.reference.to_string(), source }.into()
            }
        })
    }
}

/// Returns the name of an image's file. It has no `:` and `@`, which skopeo parses as the end of a path.
fn file_name(reference: &Reference) -> String {
    let text = reference.to_string();
    // A tag is unique in a directory; the digest would only lengthen the name.
    let name = if reference.tag().is_some() { text.split('@').next().unwrap_or(&text) } else { &text };
    format!("{}.tar", name.replace(['/', ':', '@', '[', ']'], "_"))
}
