//! The way of the blobs out of the bundle into the archive of an image: read once, hashed on the way by themselves and
//! as part of their layer.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde_json::Value;

use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::base::pipeline::{FinishedBlob, Pipeline, Sink as _};
use crate::bundle::format::layout::Blob;
use crate::bundle::format::padded;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::reader::{BundleReader, Contents};
use crate::commands::image::archive::{Copy, ImageArchive, Message, Slot};
use crate::commands::image::base::{BaseError, BaseImage};
use crate::commands::image::entry::{END, LayerEntry};
use crate::commands::image::error::ImageError;
use crate::commands::image::layers::LayerPlan;
use crate::oci::digest::Digest;
use crate::oci::platform::Platform;

/// How many slices may wait for their layer; each holds at most a frame.
const QUEUE: usize = 4;

/// Where everything goes in the archive.
pub(crate) struct Slots {
    /// The layers of the base, each once.
    base: Vec<(Blob, Slot)>,
    /// Those that are put on it.
    layers: Vec<Slot>,
}

impl Slots {
    /// Keeps a place for every layer.
    pub(crate) fn reserve(archive: &mut ImageArchive, base: &BaseImage, plan: &LayerPlan) -> Self {
        let mut seen = HashSet::new();
        let of_base = base.layers.iter().filter(|layer| seen.insert(layer.digest));
        let of_base = of_base.map(|layer| (layer.into(), archive.reserve(layer.size))).collect();
        let layers = plan.layers.iter().map(|layer| archive.reserve(layer.size())).collect();
        Self { base: of_base, layers }
    }
}

/// What is read, and what becomes of it.
pub(crate) struct Stream<'a> {
    /// The bundle.
    pub contents: &'a Contents,
    /// What it is built on, and the platform that the base has to be for.
    pub base: &'a BaseImage,
    /// See [`Stream::base`].
    pub platform: Option<&'a Platform>,
    /// What is put on it.
    pub plan: &'a LayerPlan,
    /// Where it goes.
    pub slots: &'a Slots,
    /// Who is told.
    pub report: &'a dyn Report,
}

/// What is known when all is written.
pub(crate) struct Written {
    /// The config of the base.
    pub config: Value,
    /// The platform that it states.
    pub platform: Platform,
    /// The digests of the plan's layers.
    pub digests: Vec<Digest>,
}

/// Why no more blobs are handed on.
enum Stop {
    /// The blob cannot be read, or is damaged.
    Read(ReadError),
    /// The base is none.
    Base(BaseError),
    /// Something cannot be written.
    Write(FsError),
    /// Nobody takes them: the thread that writes has failed, and says why.
    Gone,
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl Stream<'_> {
    /// Writes all layers.
    pub(crate) fn run(
        &self,
        reader: &mut BundleReader,
        archive: &ImageArchive,
    ) -> Result<Written, ImageError> {
        let blobs = &self.contents.layout.blobs;
        let slots = &self.slots.layers;
        let (mut lanes, ended) = Pipeline::start();
        let (pieces, received) = sync_channel(QUEUE);
        let (fed, written, checked) = std::thread::scope(|scope| {
            let written = scope.spawn(move || archive.write_layers(slots, &received));
            let checked = scope.spawn(move || check(blobs, &ended));
            let copies = self.slots.base.iter().map(|(blob, slot)| (blob.digest, *slot)).collect();
            let mut feeder = Feeder {
                stream: self,
                archive,
                copies,
                lanes: &mut lanes,
                pieces,
                blobs: blobs.iter().enumerate(),
                current: None,
                config: None,
            };
            let fed = feeder.feed(reader);
            let fed = match fed {
                Ok(()) => Ok(feeder.config.take().expect("the base has a config; please report")),
                Err(stop) => Err((stop, feeder.current)),
            };
            drop(feeder);
            lanes.finish();
            let written = written.join().expect("writing does not panic; please report");
            (fed, written, checked.join().expect("checking does not panic; please report"))
        });
        let digests = written?;
        let damaged = |digest: Digest, source| ImageError::Damaged {
            owners: self.contents.layout.owners_text(&[digest]),
            source,
        };
        let (stop, current) = match (checked?, fed) {
            (Some(wrong), _) => return Err(damaged(wrong, ReadError::Digest(wrong))),
            (None, Ok((config, platform))) => return Ok(Written { config, platform, digests }),
            (None, Err(stopped)) => stopped,
        };
        match (stop, current) {
            (Stop::Read(error), Some(digest)) => Err(damaged(digest, error)),
            (Stop::Read(error), None) => Err(error.into()),
            (Stop::Base(error), _) => Err(error.into()),
            (Stop::Write(error), _) => Err(error.into()),
            (Stop::Gone, _) => unreachable!("writing has failed, and said so; please report"),
        }
    }

    /// The blobs that have to be read, and the bytes of those.
    fn needed(&self) -> (u64, u64) {
        let entries = self.plan.layers.iter().flat_map(|layer| &layer.entries);
        let in_layers = entries.filter_map(|entry| match entry {
            LayerEntry::Blob(_, blob) => Some(*blob),
            _ => None,
        });
        let of_base = self.base.blobs().into_iter();
        let of_base = of_base.filter(|blob| !self.contents.manifests.contains_key(&blob.digest));
        let all: HashMap<Digest, u64> =
            in_layers.chain(of_base).map(|blob| (blob.digest, blob.size)).collect();
        (all.len() as u64, all.values().sum())
    }
}

/// Waits for the digests of blobs; says which one is wrong, if any.
fn check(blobs: &[Blob], ended: &Receiver<FinishedBlob<Copy>>) -> Result<Option<Digest>, FsError> {
    let mut outcome = Ok(None);
    for FinishedBlob { number, result, .. } in ended {
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

/// Hands the blobs on, as the bundle gives them.
struct Feeder<'a, B> {
    stream: &'a Stream<'a>,
    archive: &'a ImageArchive,
    /// The layers of the base that were not read yet.
    copies: HashMap<Digest, Slot>,
    lanes: &'a mut Pipeline<Copy>,
    pieces: SyncSender<Message>,
    /// The blobs of the bundle that were not read yet.
    blobs: B,
    /// The one that is being read.
    current: Option<Digest>,
    config: Option<(Value, Platform)>,
}

impl<'a, B: Iterator<Item = (usize, &'a Blob)>> Feeder<'a, B> {
    fn feed(&mut self, reader: &mut BundleReader) -> Result<(), Stop> {
        let (objects, bytes) = self.stream.needed();
        let stage = Event::Stage { name: "building", bytes: Some(bytes), objects: Some(objects) };
        self.stream.report.event(&stage);
        self.begin()?;
        for layer in &self.stream.plan.layers {
            for entry in &layer.entries {
                self.send(entry.header())?;
                match entry {
                    LayerEntry::Directory(_) | LayerEntry::Link(..) => {}
                    LayerEntry::Bytes(_, bytes) => self.send(bytes.clone())?,
                    LayerEntry::Blob(_, wanted) => {
                        while self.next(reader, Some(wanted.digest))? != Some(wanted.digest) {}
                    }
                }
                let size = entry.content_size();
                self.send_zeros(padded(size) - size)?;
            }
            self.send_zeros(END)?;
            self.pieces.send(Message::End).map_err(|_| Stop::Gone)?;
        }
        while self.config.is_none() || !self.copies.is_empty() || !reader.can_stop() {
            if self.next(reader, None)?.is_none() {
                break;
            }
        }
        assert!(self.copies.is_empty(), "the base has a layer that the bundle has not; please report");
        // Everything that the image needs has been read; what the end looks like matters to `verify`.
        if !reader.can_stop()
            && let Err(error) = reader.end()
        {
            let message = format!("all that was read is right, but the end of the bundle is not: {error}");
            self.stream.report.event(&Event::Warning { message });
        }
        Ok(())
    }

    /// Names the layers of the base, and copies what is held in memory: a blob may be a manifest, too.
    fn begin(&mut self) -> Result<(), Stop> {
        let held = &self.stream.contents.manifests;
        for (blob, slot) in &self.stream.slots.base {
            self.archive.name(*slot, blob.digest).map_err(Stop::Write)?;
            if let Some(bytes) = held.get(&blob.digest) {
                Copy(Some(self.archive.content(*slot))).write(bytes).map_err(Stop::Write)?;
                self.copies.remove(&blob.digest);
            }
        }
        match held.get(&self.stream.base.config.digest) {
            Some(bytes) => self.read_config(bytes),
            None => Ok(()),
        }
    }

    /// Reads the next blob of the bundle, into the layer that is being written if it is `wanted`. Returns its digest;
    /// nothing behind the last one.
    fn next(&mut self, reader: &mut BundleReader, wanted: Option<Digest>) -> Result<Option<Digest>, Stop> {
        let Some((number, blob)) = self.blobs.next() else {
            assert!(wanted.is_none(), "a layer has a blob that the bundle has not; please report");
            return Ok(None);
        };
        let digest = blob.digest;
        self.current = Some(digest);
        let is_wanted = wanted == Some(digest);
        let is_config = self.config.is_none() && digest == self.stream.base.config.digest;
        let slot = self.copies.remove(&digest);
        if !is_wanted && !is_config && slot.is_none() {
            reader.skip(blob)?;
            return Ok(Some(digest));
        }
        let mut config = Vec::new();
        self.lanes.begin(number, Copy(slot.map(|slot| self.archive.content(slot))));
        let read = reader.blob(blob, |slice| {
            self.stream.report.event(&Event::Progress { id: 0, bytes: slice.len() as u64 });
            if is_config {
                config.extend_from_slice(&slice);
            }
            self.lanes.data(slice.clone());
            if is_wanted {
                self.pieces.send(Message::Data(slice)).map_err(|_| Stop::Gone)?;
            }
            Ok(())
        });
        if read.is_err() {
            self.lanes.abandon();
            return read.map(|()| None);
        }
        self.lanes.end();
        if is_config {
            if Digest::of(&config) != digest {
                return Err(ReadError::Digest(digest).into());
            }
            self.read_config(&config)?;
        }
        Ok(Some(digest))
    }

    fn read_config(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let stream = self.stream;
        self.config = Some(stream.base.read_config(bytes, stream.platform).map_err(Stop::Base)?);
        Ok(())
    }

    fn send(&self, bytes: Vec<u8>) -> Result<(), Stop> {
        self.pieces.send(Message::Data(bytes.into())).map_err(|_| Stop::Gone)
    }

    fn send_zeros(&self, count: u64) -> Result<(), Stop> {
        self.send(vec![0; usize::try_from(count).expect("two blocks at most")])
    }
}
