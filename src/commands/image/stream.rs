//! [`Stream`]: reads a bundle once, and writes the layers of an image into its archive.
//!
//! Each blob is hashed twice while it is read: by itself, and as part of its layer.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde_json::Value;

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::pipeline::{FinishedBlob, Pipeline, Sink as _};
use crate::bundle::format::layout::{Blob, Totals};
use crate::bundle::format::padded;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::reader::{BundleReader, Contents};
use crate::commands::image::archive::{BlobSink, ImageArchive, LayerMessage, Slot};
use crate::commands::image::base::{BaseError, BaseImage};
use crate::commands::image::entry::{END, LayerEntry};
use crate::commands::image::error::ImageError;
use crate::commands::image::layers::LayerPlan;
use crate::oci::digest::Digest;
use crate::oci::platform::Platform;

/// Maximum number of slices in the queue of the layer writer; each holds at most one frame.
const QUEUE: usize = 4;

/// The reserved space of all layers in the archive.
pub(crate) struct LayerSlots {
    /// The layers of the base image, each once.
    base: Vec<(Blob, Slot)>,
    /// The added layers, in the order of the plan.
    added: Vec<Slot>,
}

impl LayerSlots {
    /// Reserves space for every layer.
    pub(crate) fn reserve(archive: &mut ImageArchive, base: &BaseImage, plan: &LayerPlan) -> Self {
        let mut seen = HashSet::new();
        let unique = base.layers.iter().filter(|layer| seen.insert(layer.digest));
        let base = unique.map(|layer| (layer.into(), archive.reserve(layer.size))).collect();
        let added = plan.layers.iter().map(|layer| archive.reserve(layer.size())).collect();
        Self { base, added }
    }
}

/// The inputs of a run.
pub(crate) struct Stream<'a> {
    pub contents: &'a Contents,
    pub base: &'a BaseImage,
    /// The platform that the base image must have. `None`: any.
    pub platform: Option<&'a Platform>,
    /// The layers to add to the base image.
    pub plan: &'a LayerPlan,
    pub slots: &'a LayerSlots,
    pub report: &'a dyn Report,
}

/// The results of a run.
pub(crate) struct Written {
    /// The config of the base image.
    pub config: Value,
    /// The platform in that config.
    pub platform: Platform,
    /// The digests of the added layers, in the order of the plan.
    pub digests: Vec<Digest>,
}

impl Stream<'_> {
    /// Writes all layers to `archive`.
    pub(crate) fn run(
        &self,
        reader: &mut BundleReader,
        archive: &ImageArchive,
    ) -> Result<Written, ImageError> {
        let (blobs, slots) = (&self.contents.layout.blobs, &self.slots.added);
        let (mut pipeline, finished) = Pipeline::start();
        let (messages, received) = sync_channel(QUEUE);
        let (built, written, mismatch) = std::thread::scope(|scope| {
            let written = scope.spawn(move || archive.write_layers(slots, &received));
            let mismatch = scope.spawn(move || first_mismatch(blobs, &finished));
            let built = LayerBuilder::new(self, archive, &mut pipeline, messages).run(reader);
            pipeline.finish();
            let written = written.join().expect("writing does not panic; please report");
            (built, written, mismatch.join().expect("checking does not panic; please report"))
        });
        // The errors of the other threads precede: they can be the cause why the builder stopped.
        let digests = written?;
        if let Some(digest) = mismatch? {
            return Err(self.damaged(digest, ReadError::Digest(digest)));
        }
        match built {
            Ok((config, platform)) => Ok(Written { config, platform, digests }),
            Err(Stop::Failed(error)) => Err(*error),
            Err(Stop::WriterStopped) => unreachable!("the error of the writer is returned; please report"),
        }
    }

    /// Returns the number and the size of the blobs to read.
    fn totals(&self) -> Totals {
        let entries = self.plan.layers.iter().flat_map(|layer| &layer.entries);
        let added = entries.filter_map(|entry| match entry {
            LayerEntry::Blob(_, blob) => Some(*blob),
            _ => None,
        });
        let base = self.base.blobs().into_iter();
        let base = base.filter(|blob| !self.contents.manifests.contains_key(&blob.digest));
        let sizes: HashMap<Digest, u64> = added.chain(base).map(|blob| (blob.digest, blob.size)).collect();
        Totals { blobs: sizes.len(), bytes: sizes.values().sum() }
    }

    fn damaged(&self, digest: Digest, source: ReadError) -> ImageError {
        ImageError::Damaged { owners: self.contents.layout.owners_text(&[digest]), source }
    }
}

/// Returns the first blob whose digest does not match.
fn first_mismatch(
    blobs: &[Blob],
    finished: &Receiver<Vec<FinishedBlob<BlobSink>>>,
) -> Result<Option<Digest>, FsError> {
    let mut outcome = Ok(None);
    for FinishedBlob { number, result, .. } in finished.iter().flatten() {
        let expected = blobs[number].digest;
        match result {
            Ok((digest, _)) if digest == expected => {}
            Ok(_) if matches!(outcome, Ok(None)) => outcome = Ok(Some(expected)),
            Err(error) if outcome.is_ok() => outcome = Err(error),
            _ => {}
        }
    }
    outcome
}

/// The reason why the builder stopped.
enum Stop {
    /// Boxed, because it is large.
    Failed(Box<ImageError>),
    /// The thread that writes the layers returned an error.
    WriterStopped,
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

impl From<BaseError> for Stop {
    fn from(error: BaseError) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

impl From<FsError> for Stop {
    fn from(error: FsError) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

/// Reads the blobs of the bundle in order, and sends each to where it belongs: to the writer of the added
/// layers, to the slot of a layer of the base image, or both.
struct LayerBuilder<'a, B> {
    stream: &'a Stream<'a>,
    archive: &'a ImageArchive,
    pipeline: &'a mut Pipeline<BlobSink>,
    messages: SyncSender<LayerMessage>,
    /// The blobs of the bundle that are not read yet, numbered.
    blobs: B,
    /// The layers of the base image that are not read yet.
    base_layers: HashMap<Digest, Slot>,
    /// The config of the base image and its platform. `None`: not read yet.
    config: Option<(Value, Platform)>,
}

impl<'a> LayerBuilder<'a, std::iter::Enumerate<std::slice::Iter<'a, Blob>>> {
    fn new(
        stream: &'a Stream<'a>,
        archive: &'a ImageArchive,
        pipeline: &'a mut Pipeline<BlobSink>,
        messages: SyncSender<LayerMessage>,
    ) -> Self {
        let blobs = stream.contents.layout.blobs.iter().enumerate();
        let base_layers = stream.slots.base.iter().map(|(blob, slot)| (blob.digest, *slot)).collect();
        Self { stream, archive, pipeline, messages, blobs, base_layers, config: None }
    }
}

impl<'a, B: Iterator<Item = (usize, &'a Blob)>> LayerBuilder<'a, B> {
    /// Builds all layers. Returns the config of the base image and its platform.
    fn run(mut self, reader: &mut BundleReader) -> Result<(Value, Platform), Stop> {
        let Totals { blobs, bytes } = self.stream.totals();
        let stage = Event::Stage { name: "building", bytes: Some(bytes), objects: Some(blobs as u64) };
        self.stream.report.event(&stage);
        self.start_base()?;
        for layer in &self.stream.plan.layers {
            for entry in &layer.entries {
                self.send_entry(reader, entry)?;
            }
            self.send_zeros(END)?;
            self.send(LayerMessage::End)?;
        }
        self.read_rest(reader)?;
        Ok(self.config.expect("the base image has a config; please report"))
    }

    /// Writes the headers of the base layers, and the blobs that are in memory: a layer or config can have
    /// the digest of a manifest.
    fn start_base(&mut self) -> Result<(), Stop> {
        let in_memory = &self.stream.contents.manifests;
        for (blob, slot) in &self.stream.slots.base {
            self.archive.write_header(*slot, blob.digest)?;
            if let Some(bytes) = in_memory.get(&blob.digest) {
                BlobSink(Some(self.archive.content_writer(*slot))).write(bytes)?;
                self.base_layers.remove(&blob.digest);
            }
        }
        match in_memory.get(&self.stream.base.config.digest) {
            Some(bytes) => self.parse_config(bytes),
            None => Ok(()),
        }
    }

    /// Sends an entry of an added layer. If its content is a blob, reads the bundle up to the end of that
    /// blob.
    fn send_entry(&mut self, reader: &mut BundleReader, entry: &LayerEntry) -> Result<(), Stop> {
        self.send_bytes(entry.header())?;
        match entry {
            LayerEntry::Directory(_) | LayerEntry::Link(..) => {}
            LayerEntry::Bytes(_, bytes) => self.send_bytes(bytes.clone())?,
            LayerEntry::Blob(_, blob) => {
                while self.next_blob(reader, Some(blob.digest))? != Some(blob.digest) {}
            }
        }
        let size = entry.content_size();
        self.send_zeros(padded(size) - size)
    }

    /// Reads on until the base image is complete.
    fn read_rest(&mut self, reader: &mut BundleReader) -> Result<(), Stop> {
        while self.config.is_none() || !self.base_layers.is_empty() || !reader.can_stop() {
            if self.next_blob(reader, None)?.is_none() {
                break;
            }
        }
        assert!(self.base_layers.is_empty(), "the bundle has all layers of the base image; please report");
        // Only a warning: the image is complete, and `verify` checks the end of a bundle.
        if !reader.can_stop()
            && let Err(error) = reader.end()
        {
            let message = format!("the image is complete, but the end of the bundle is corrupt: {error}");
            self.stream.report.event(&Event::Warning { message });
        }
        Ok(())
    }

    /// Reads the next blob of the bundle, and adds it to the current layer if its digest is `entry`. Returns
    /// its digest. `None`: no blobs are left.
    fn next_blob(
        &mut self,
        reader: &mut BundleReader,
        entry: Option<Digest>,
    ) -> Result<Option<Digest>, Stop> {
        let Some((number, blob)) = self.blobs.next() else {
            assert!(entry.is_none(), "the bundle has all blobs of a layer; please report");
            return Ok(None);
        };
        let is_in_layer = entry == Some(blob.digest);
        self.read_blob(reader, number, blob, is_in_layer).map_err(|stop| match stop {
            Stop::Failed(error) => Stop::Failed(Box::new(match *error {
                ImageError::Read(source) => self.stream.damaged(blob.digest, source),
                error => error,
            })),
            Stop::WriterStopped => stop,
        })?;
        Ok(Some(blob.digest))
    }

    fn read_blob(
        &mut self,
        reader: &mut BundleReader,
        number: usize,
        blob: &Blob,
        is_in_layer: bool,
    ) -> Result<(), Stop> {
        let is_config = self.config.is_none() && blob.digest == self.stream.base.config.digest;
        let slot = self.base_layers.remove(&blob.digest);
        if !is_in_layer && !is_config && slot.is_none() {
            return Ok(reader.skip(blob)?);
        }
        let mut config = Vec::new();
        self.pipeline.begin(number, BlobSink(slot.map(|slot| self.archive.content_writer(slot))));
        let read = reader.blob(blob, |slice| {
            self.stream.report.event(&Event::Progress { id: 0, bytes: slice.len() as u64 });
            if is_config {
                config.extend_from_slice(&slice);
            }
            self.pipeline.data(slice.clone());
            if is_in_layer { self.send(LayerMessage::Data(slice)) } else { Ok(()) }
        });
        if read.is_err() {
            self.pipeline.abandon();
            return read;
        }
        self.pipeline.end();
        if is_config {
            // The pipeline has not verified it yet.
            if Digest::of(&config) != blob.digest {
                return Err(ReadError::Digest(blob.digest).into());
            }
            self.parse_config(&config)?;
        }
        Ok(())
    }

    fn parse_config(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.config = Some(self.stream.base.parse_config(bytes, self.stream.platform)?);
        Ok(())
    }

    fn send_bytes(&self, bytes: Vec<u8>) -> Result<(), Stop> {
        self.send(LayerMessage::Data(bytes.into()))
    }

    fn send_zeros(&self, count: u64) -> Result<(), Stop> {
        self.send_bytes(vec![0; usize::try_from(count).expect("at most two blocks; please report")])
    }

    fn send(&self, message: LayerMessage) -> Result<(), Stop> {
        self.messages.send(message).map_err(|_| Stop::WriterStopped)
    }
}
