//! Bundles that are damaged, cut, hostile, or none: each is refused with a clear error, and never a wrong byte or
//! anything outside the site.

use airbundle::bundle::format::frame;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use airbundle::base::event::Silent;
use airbundle::bundle::format::FRAME_SIZE;
use airbundle::bundle::format::index::{EMPTY_CONFIG, FileSet, Index, IndexedFile, IndexedImage};
use airbundle::bundle::format::label::Label;
use airbundle::bundle::format::layout::{blob_name, tar_header};
use airbundle::bundle::format::manifest_walk::ManifestWalk;
use airbundle::bundle::format::seek_table::{self, FrameEntry};
use airbundle::bundle::read::frame_reader::{self, Frame, FrameReader};
use airbundle::bundle::read::problem::DamageKind;
use airbundle::bundle::read::reader::BundleReader;
use airbundle::bundle::read::select::Selection;
use airbundle::bundle::write::claim::Claim;
use airbundle::bundle::write::volume_writer::VolumeOptions;
use airbundle::bundle::write::writer::{BundleHead, BundleWriter, WriteOptions, header_space};
use airbundle::cli::exit::{Code, Failure};
use airbundle::commands::unpack;
use airbundle::commands::verify::{Damage, verify};
use airbundle::oci::digest::Digest;
use airbundle::oci::template::RepositoryTemplate;
use tar::EntryType as Kind;
use tempfile::TempDir;

use crate::program::{Finished, run, unbundle, unbundle_from};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::random_bytes;
use crate::support::tree::Tree;

/// What goes into a bundle, made without a network.
pub(crate) struct Content<'a> {
    pub(crate) images: Vec<(&'static str, Image)>,
    pub(crate) files: Vec<(&'a str, Vec<u8>)>,
}

impl Content<'_> {
    /// Two images that share a layer and one file, in a few kilobytes.
    fn small() -> Self {
        let base = Layer::files(&[("etc/os-release", b"ID=debian\n")], Compression::Gzip);
        let image = |seed| {
            let top = Layer::random(seed, 300, Compression::Gzip);
            Image::new(Format::Oci, "linux/amd64", &[base.clone(), top])
        };
        Self {
            images: vec![("quay.io/a/one:v1", image(1)), ("quay.io/a/two:v1", image(2))],
            files: vec![("dl.k8s.io/kubelet", random_bytes(3, 200))],
        }
    }

    /// A file and an image with two layers: as few bytes as a bundle may have.
    fn smallest() -> Self {
        let layers = ["one", "two"].map(|text| Layer::files(&[("x", text.as_bytes())], Compression::Gzip));
        let image = Image::new(Format::Oci, "linux/amd64", &layers);
        Self { images: vec![("quay.io/a:1", image)], files: vec![("dl.io/x", b"some text".to_vec())] }
    }

    /// Three images with layers of several frames, and two files, one of them large.
    pub(crate) fn large() -> Self {
        let image = |seed| {
            let layer = Layer::random(seed, 9 << 20, Compression::None);
            Image::new(Format::Docker, "linux/amd64", &[layer])
        };
        Self {
            images: vec![
                ("quay.io/a/one:v1", image(1)),
                ("quay.io/a/two:v1", image(2)),
                ("quay.io/b/three:v1", image(3)),
            ],
            files: vec![
                ("dl.k8s.io/kubectl", random_bytes(4, 5 << 20)),
                ("dl.k8s.io/kubelet", random_bytes(5, 1000)),
            ],
        }
    }

    pub(crate) fn write(&self, target: &Path) {
        self.write_with_room(target, 0);
    }

    /// Keeps `more` bytes of room for the head than are needed.
    fn write_with_room(&self, target: &Path, more: u64) {
        self.write_in(target, more, VolumeOptions::plain());
    }

    /// Writes volumes with at most so many bytes.
    pub(crate) fn write_volumes(&self, target: &Path, size: u64) {
        let set = Digest::of(b"any set");
        let label = Label::new(set, 1, 0, 0).to_frame().len();
        self.write_in(target, label as u64, VolumeOptions { volume_size: Some(size), recovery: None, set });
    }

    fn write_in(&self, target: &Path, more: u64, carry: VolumeOptions) {
        let mut blobs: HashMap<Digest, Vec<u8>> = HashMap::new();
        blobs.insert(Digest::of(EMPTY_CONFIG), EMPTY_CONFIG.to_vec());
        let mut index = Index::default();
        for (reference, image) in &self.images {
            blobs.extend(
                image.parts().iter().map(|(digest, bytes)| (digest.parse().unwrap(), bytes.to_vec())),
            );
            let manifests = image.manifests();
            blobs.extend(manifests.iter().map(|(_, bytes)| (Digest::of(bytes), bytes.to_vec())));
            let (root, bytes) = manifests.last().expect("an image has a manifest");
            index.images.push(IndexedImage {
                reference: reference.parse().unwrap(),
                media_type: root.media_type.clone(),
                digest: Digest::of(bytes),
                size: bytes.len() as u64,
                omitted: [].into(),
                platforms: Vec::new(),
                is_made: false,
            });
        }
        let files = self.files.iter().map(|(path, bytes)| {
            blobs.insert(Digest::of(bytes), bytes.clone());
            let (digest, size) = (Digest::of(bytes), bytes.len() as u64);
            IndexedFile { path: path.parse().unwrap(), url: format!("https://{path}"), digest, size }
        });
        let files = FileSet { files: files.collect() }.to_json();
        index.files = Some((Digest::of(&files), files.len() as u64));
        blobs.insert(Digest::of(&files), files.clone());
        let json = index.to_json();

        let mut walk = ManifestWalk::new(index).unwrap();
        while let Some(wanted) = walk.next_manifest().unwrap() {
            walk.supply(&blobs[&wanted.blob.digest]).unwrap();
        }
        let layout = walk.finish(json.len() as u64).unwrap();
        let room = header_space(json.len(), Some(files.len())) + more;
        let form = WriteOptions { header_space: room, level: 3, carry };
        let mut writer = BundleWriter::begin_in(Claim::new(target).unwrap(), form).unwrap();
        for (number, blob) in layout.manifests[1..].iter().chain(&layout.blobs).enumerate() {
            if number + 1 == layout.manifests.len() {
                writer.end_manifests().unwrap();
            }
            writer.begin(Some((blob.digest, blob.size)));
            writer.write(&blobs[&blob.digest]).unwrap();
            writer.end(blob.digest).unwrap();
        }
        writer.finish(&BundleHead { index: json, files: Some(files), signature: None }).unwrap();
    }
}

/// A bundle of `content`, and the site that it makes.
struct Sound {
    directory: TempDir,
    bundle: PathBuf,
    bytes: Vec<u8>,
    site: Tree,
}

impl Sound {
    fn new(content: &Content<'_>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("sound.tar.zst");
        content.write(&bundle);
        let site = directory.path().join("site");
        unpack_to(&bundle, &site).expect("a sound bundle unpacks");
        Self { bytes: fs::read(&bundle).unwrap(), bundle, site: Tree::of(&site), directory }
    }

    /// A copy with other bytes.
    fn changed(&self, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join("changed.tar.zst");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn unpacks_right(&self, bundle: &Path, what: &str) {
        let site = self.path("other");
        unpack_to(bundle, &site)
            .unwrap_or_else(|error| panic!("{what}: verify finds nothing, and unpack {error}"));
        assert_eq!(Tree::of(&site).difference(&self.site), Vec::<String>::new(), "{what}");
        fs::remove_dir_all(site).unwrap();
    }
}

fn unpack_to(bundle: &Path, site: &Path) -> Result<unpack::UnpackSummary, unpack::error::UnpackError> {
    unpack_as_told(bundle, site, false)
}

fn unpack_as_told(
    bundle: &Path,
    site: &Path,
    keep_going: bool,
) -> Result<unpack::UnpackSummary, unpack::error::UnpackError> {
    let templates = vec![RepositoryTemplate::default()];
    let select = Selection::default();
    let (files, registry) = (None, None);
    let options = unpack::options::UnpackOptions {
        site: site.to_owned(),
        files,
        registry,
        templates,
        select,
        keep_going,
    };
    unpack::unpack(BundleReader::open(bundle)?, &options, &Silent)
}

/// Every visible file is one that the sound site has, with the same bytes.
fn nothing_wrong_is_visible(sound: &Sound, site: &Path) {
    if !site.exists() {
        return;
    }
    for (path, entry) in &Tree::of(site).0 {
        let staging = path.starts_with(".unbundle")
            || path == Path::new("site.json")
            || path.to_string_lossy().contains("unbundle-in-progress");
        if !staging {
            assert_eq!(Some(entry), sound.site.0.get(path), "{}", path.display());
        }
    }
}

/// Does something for every number below `end`, on all cores but in threads of its own: what is done waits for the pool that
/// decodes.
fn for_each_below(end: usize, each: impl Fn(usize) + Sync) {
    let (next, each) = (AtomicUsize::new(0), &each);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    match next.fetch_add(1, Ordering::Relaxed) {
                        number if number < end => each(number),
                        _ => break,
                    }
                }
            });
        }
    });
}

/// Memory, where there is a place in it: tens of thousands of bundles are written there, and nobody wants them on a disk.
fn in_memory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Whether what `reader` reads is said to be whole.
fn is_whole(reader: BundleReader) -> bool {
    verify(reader, &Silent).is_ok_and(|verdict| verdict.worst().is_none())
}

/// Unpacks what is whole of a changed bundle: what is there is right, and what is not is named.
fn keeps_going(sound: &Sound, content: &Content<'_>, bytes: &[u8], directory: &Path, what: &str) {
    let (bundle, site) = (directory.join("changed.tar.zst"), directory.join("site"));
    fs::write(&bundle, bytes).unwrap();
    let result = unpack_as_told(&bundle, &site, true);
    nothing_wrong_is_visible(sound, &site);
    if let Ok(summary) = result {
        let is_left_out = |name: &str| summary.left_out.iter().any(|left_out| left_out.name == name);
        for (name, _) in &content.images {
            let (repository, tag) = name.rsplit_once(':').unwrap();
            let tag = site.join(format!(
                "registry/docker/registry/v2/repositories/k8s/{repository}/_manifests/tags/{tag}/current/link"
            ));
            assert_ne!(tag.exists(), is_left_out(name), "{what}: {name}");
        }
        for (name, _) in &content.files {
            assert_ne!(site.join("files/k8s").join(name).exists(), is_left_out(name), "{what}: {name}");
        }
        if summary.left_out.is_empty() {
            assert_eq!(Tree::of(&site).difference(&sound.site), Vec::<String>::new(), "{what}");
        }
    }
    let _ = fs::remove_dir_all(site);
}

#[test]
fn every_flipped_bit_of_a_small_bundle_is_found_and_none_makes_a_wrong_byte() {
    let content = Content::smallest();
    let sound = Sound::new(&content);
    let directory = in_memory();
    let unnoticed = Mutex::new(Vec::new());
    for_each_below(sound.bytes.len() * 8, |bit| {
        let mut bytes = sound.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let own = directory.path().join(format!("{:?}", std::thread::current().id()));
        fs::create_dir_all(&own).unwrap();
        let path = own.join("verified.tar.zst");
        fs::write(&path, &bytes).unwrap();
        let whole = is_whole(BundleReader::open(&path).unwrap());
        if whole {
            unnoticed.lock().unwrap().push(bit);
        }
        // One bit of each byte: all of them would take minutes.
        if bit % 8 == bit / 8 % 8 {
            let piped = is_whole(BundleReader::stream(Cursor::new(bytes.clone())));
            assert_eq!(whole, piped, "bit {bit}: a file and a pipe tell the same");
            keeps_going(&sound, &content, &bytes, &own, &format!("bit {bit}"));
        }
    });
    // What may change without anybody noticing: bits of a block that zstd has compressed, of which nothing depends. What
    // comes out has the same checksum, and the same digest. Of headers, checksums, padding and seek table there is none.
    let unnoticed = unnoticed.into_inner().unwrap();
    let (starts, buffers) = (frame_starts(&sound.bytes), frame_reader::buffers());
    let decoded = |bytes: &[u8]| match FrameReader::new(bytes, 0, &buffers).next_frame() {
        Ok(Some(Frame::Data(data))) => data.decode(&buffers).ok().map(|content| content.to_vec()),
        _ => None,
    };
    for bit in &unnoticed {
        let mut bytes = sound.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let number = starts.iter().rposition(|start| *start <= bit / 8).unwrap();
        let (start, end) = (starts[number], starts.get(number + 1).copied().unwrap_or(bytes.len()));
        let content = decoded(&sound.bytes[start..end]).expect("no other frame may change");
        assert!(content.len() >= 256, "so that its header has two bytes of size, or a window");
        assert!((start + 4 + 1 + 2 + 3..end - 4).contains(&(bit / 8)), "bit {bit} is in no block");
        assert_eq!(decoded(&bytes[start..end]), Some(content), "bit {bit}");
    }
    assert!(unnoticed.len() < sound.bytes.len() * 8 / 500, "{} bits: {unnoticed:?}", unnoticed.len());
}

/// Where the frames of a bundle begin.
fn frame_starts(bytes: &[u8]) -> Vec<usize> {
    let table = seek_table::read(&mut Cursor::new(bytes)).unwrap().unwrap();
    let mut starts = vec![0];
    for entry in table {
        starts.push(starts.last().unwrap() + entry.compressed as usize);
    }
    starts
}

#[test]
fn every_truncation_is_named_as_one_and_leaves_nothing_wrong() {
    let content = Content::smallest();
    let sound = Sound::new(&content);
    let directory = in_memory();
    for_each_below(sound.bytes.len(), |len| {
        let own = directory.path().join(format!("{:?}", std::thread::current().id()));
        fs::create_dir_all(&own).unwrap();
        let (bytes, path) = (&sound.bytes[..len], own.join("cut.tar.zst"));
        fs::write(&path, bytes).unwrap();
        for reader in [BundleReader::open(&path).unwrap(), BundleReader::stream(Cursor::new(bytes.to_vec()))]
        {
            match verify(reader, &Silent) {
                Ok(verdict) => assert_eq!(verdict.worst(), Some(DamageKind::Missing), "{len}: {verdict:?}"),
                Err(error) => {
                    let code = if len == 0 { Code::NotABundle } else { Code::Incomplete };
                    assert_eq!(Failure::from(error).code, code, "{len}");
                }
            }
        }
        keeps_going(&sound, &content, bytes, &own, &format!("the first {len} bytes"));
        let site = own.join("site");
        match unpack_to(&path, &site) {
            // All blobs were there, and only the tail was not.
            Ok(_) => assert_eq!(Tree::of(&site).difference(&sound.site), Vec::<String>::new(), "{len}"),
            Err(_) => nothing_wrong_is_visible(&sound, &site),
        }
        let _ = fs::remove_dir_all(site);
    });
}

#[test]
fn junk_behind_the_end_is_damage_to_verify_and_harmless_to_unpack() {
    let sound = Sound::new(&Content::small());
    for junk in [&b"x"[..], b"\0\0\0\0\0\0\0\0\0\0", &frame::store(b"more"), &sound.bytes] {
        let bundle = sound.changed(&[&sound.bytes, junk].concat());
        unbundle(["verify".as_ref(), bundle.as_os_str()]).failed(7, &["1 of", "damaged"]);
        sound.unpacks_right(&bundle, "junk at the end");
    }
}

#[test]
fn verify_names_the_image_that_a_flipped_byte_hits_and_no_other() {
    let content = Content::large();
    let sound = Sound::new(&content);
    let layer = &content.images[1].1.parts();
    let layer = layer.values().max_by_key(|bytes| bytes.len()).unwrap();
    let needle = &layer[6 << 20..(6 << 20) + 64];
    let place =
        sound.bytes.windows(64).position(|window| window == needle).expect("the layer is stored as it is");
    let mut bytes = sound.bytes.clone();
    bytes[place] ^= 0x10;
    let bundle = sound.changed(&bytes);

    let digest = blob_name(Digest::of(layer));
    for finished in
        [unbundle(["verify".as_ref(), bundle.as_os_str()]), unbundle_from(&bundle, ["verify", "-"])]
    {
        let finished = finished.failed(7, &["1 of", "objects are damaged"]);
        assert!(
            finished.stdout.contains(&format!("damaged: {digest}: a damaged frame at byte ")),
            "{finished:#?}"
        );
        assert!(finished.stdout.contains("needed by quay.io/a/two:v1"), "{finished:#?}");
        assert!(!finished.stdout.contains("one:v1") && !finished.stdout.contains("kubectl"), "{finished:#?}");
    }
    let json = unbundle(["verify".as_ref(), "--json".as_ref(), bundle.as_os_str()]).json();
    assert_eq!(json["damage"][0]["owners"][0], "quay.io/a/two:v1");
    let offset = json["damage"][0]["places"][0]["offset"].as_u64().unwrap();
    assert!(offset <= place as u64 && place as u64 - offset < 2 * FRAME_SIZE as u64, "{offset} for {place}");

    let site = sound.path("hit");
    let finished = unbundle(["unpack".as_ref(), bundle.as_os_str(), site.as_os_str()]);
    finished.failed(7, &["damaged", "`quay.io/a/two:v1`", "at byte"]);
    nothing_wrong_is_visible(&sound, &site);
    assert!(!site.join("registry/docker/registry/v2/repositories").exists(), "links of an incomplete site");
    // With a good copy it goes on where it was.
    let finished =
        unbundle(["unpack".as_ref(), "--json".as_ref(), sound.bundle.as_os_str(), site.as_os_str()]);
    let summary = finished.ok().json();
    assert!(summary["kept"].as_u64().unwrap() > 0, "{summary}");
    assert_eq!(Tree::of(&site).difference(&sound.site), Vec::<String>::new());
}

/// Flips a bit in the middle of `content`, which the bundle holds as it is.
pub(crate) fn flip_in(bundle: &mut [u8], content: &[u8]) {
    let middle = content.len() / 2;
    let needle = &content[middle..middle + 64];
    let place = bundle.windows(64).position(|window| window == needle).expect("it is stored as it is");
    bundle[place] ^= 0x10;
}

pub(crate) fn largest(image: &Image) -> Vec<u8> {
    image.parts().values().max_by_key(|bytes| bytes.len()).expect("it has layers").to_vec()
}

#[test]
fn everything_that_is_damaged_is_named_at_once_and_all_the_rest_is_kept_for_the_next_run() {
    let content = Content::large();
    let sound = Sound::new(&content);
    let mut bytes = sound.bytes.clone();
    flip_in(&mut bytes, &largest(&content.images[0].1));
    flip_in(&mut bytes, &content.files[0].1);
    let bundle = sound.changed(&bytes);
    let site = sound.path("hit");
    let finished = unbundle(["unpack".as_ref(), bundle.as_os_str(), site.as_os_str()]);
    finished.failed(7, &["damaged in `quay.io/a/one:v1`, `dl.k8s.io/kubectl`:", "at byte"]);
    nothing_wrong_is_visible(&sound, &site);
    let repair = unbundle(["unpack".as_ref(), "--json".as_ref(), sound.bundle.as_os_str(), site.as_os_str()]);
    let summary = repair.ok().json();
    assert_eq!(summary["written"], 2, "{summary}");
    assert_eq!(Tree::of(&site).difference(&sound.site), Vec::<String>::new());
}

#[test]
fn who_keeps_going_gets_all_that_is_whole_and_is_told_what_is_not() {
    let content = Content::large();
    let sound = Sound::new(&content);
    let mut bytes = sound.bytes.clone();
    flip_in(&mut bytes, &largest(&content.images[0].1));
    flip_in(&mut bytes, &content.files[0].1);
    let bundle = sound.changed(&bytes);
    let site = sound.path("kept");
    let [verb, going, json] = ["unpack", "--keep-going", "--json"];
    unbundle([verb.as_ref(), bundle.as_os_str(), site.as_os_str()])
        .failed(7, &["--keep-going unpacks all that this does not hit"]);
    for bundle in [bundle.clone(), PathBuf::from("-")] {
        let args = [verb.as_ref(), bundle.as_os_str(), site.as_os_str(), going.as_ref(), json.as_ref()];
        let finished = if bundle.is_file() {
            unbundle(args)
        } else {
            unbundle_from(&sound.path("changed.tar.zst"), args)
        };
        let finished = finished.failed(7, &["is without `quay.io/a/one:v1`, `dl.k8s.io/kubectl`"]);
        let summary = finished.json();
        assert_eq!((&summary["images"], &summary["files"]), (&2.into(), &1.into()), "{summary}");
        let left_out = summary["leftOut"].as_array().unwrap();
        let names: Vec<_> = left_out.iter().map(|left_out| left_out["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["quay.io/a/one:v1", "dl.k8s.io/kubectl"]);
        assert!(left_out.iter().all(|left_out| left_out["trouble"] == "damaged"), "{summary}");
        nothing_wrong_is_visible(&sound, &site);
        let tag = |image: &str| {
            site.join(format!(
                "registry/docker/registry/v2/repositories/k8s/quay.io/{image}/_manifests/tags/v1"
            ))
        };
        assert!(!tag("a/one").exists() && tag("a/two").exists() && tag("b/three").exists());
        let record = fs::read_to_string(site.join("site.json")).unwrap();
        assert!(record.contains("a/two:v1") && !record.contains("a/one:v1") && !record.contains("kubectl"));
        assert!(record.contains("\"partial\": true"));
    }
    let finished = unbundle([verb.as_ref(), bundle.as_os_str(), site.as_os_str(), going.as_ref()]);
    assert!(finished.stdout.contains("1 of 2 files and 2 of 3 images"), "{finished:#?}");
    assert!(finished.stdout.contains("left out: quay.io/a/one:v1: `blobs/sha256/"), "{finished:#?}");
    // A good copy brings the rest, and the site is as if nothing had been.
    unbundle([verb.as_ref(), sound.bundle.as_os_str(), site.as_os_str()]).ok();
    assert_eq!(Tree::of(&site).difference(&sound.site), Vec::<String>::new());
}

#[test]
fn what_the_site_has_whole_of_an_image_stays_when_a_newer_one_is_damaged() {
    let old = Sound::new(&Content::large());
    let site = old.path("site");
    let mut content = Content::large();
    let layer = Layer::random(77, 5 << 20, Compression::None);
    content.images[1].1 = Image::new(Format::Docker, "linux/amd64", &[layer]);
    let bundle = old.path("newer.tar.zst");
    content.write(&bundle);
    let mut bytes = fs::read(&bundle).unwrap();
    flip_in(&mut bytes, &largest(&content.images[1].1));
    fs::write(&bundle, bytes).unwrap();
    let args = ["unpack".as_ref(), bundle.as_os_str(), site.as_os_str(), "--keep-going".as_ref()];
    unbundle(args).failed(7, &["is without `quay.io/a/two:v1`"]);
    let digest = |site: &Path| {
        let listed = unbundle(["images".as_ref(), site.as_os_str(), "--json".as_ref()]).ok().json();
        listed["images"]
            .as_array()
            .unwrap()
            .iter()
            .find(|image| image["reference"] == "quay.io/a/two:v1")
            .unwrap()["digest"]
            .to_string()
    };
    let before = &Content::large().images[1].1.root.digest;
    assert_eq!(digest(&site), format!("\"{before}\""));
    let tag = site
        .join("registry/docker/registry/v2/repositories/k8s/quay.io/a/two/_manifests/tags/v1/current/link");
    assert_eq!(fs::read_to_string(tag).unwrap(), *before);
}

#[test]
fn without_a_volume_all_is_unpacked_that_is_in_the_others() {
    let content = Content::large();
    let sound = Sound::new(&content);
    let directory = sound.path("volumes");
    fs::create_dir(&directory).unwrap();
    content.write_volumes(&directory.join("all.tar.zst"), 10 << 20);
    let verify = |code: i32| {
        let finished = unbundle(["verify".as_ref(), "--json".as_ref(), directory.as_os_str()]);
        assert_eq!(finished.code, Some(code), "{finished:#?}");
        finished.json()
    };
    assert_eq!(verify(0)["volumes"].as_array().unwrap().len(), 4);
    fs::remove_file(directory.join("all.tar.zst.003")).unwrap();
    let verdict = verify(16);
    let troubles: Vec<_> =
        verdict["volumes"].as_array().unwrap().iter().map(|volume| &volume["trouble"]).collect();
    assert_eq!(serde_json::json!(troubles), serde_json::json!([null, null, "missing", null]), "{verdict}");
    assert_eq!(verdict["problems"][0]["problem"], "missing");
    let damage = verdict["damage"].as_array().unwrap();
    assert!(damage.iter().all(|damage| damage["trouble"] == "missing"), "{verdict}");
    assert!(damage.iter().all(|damage| damage["places"][0]["volume"] == "all.tar.zst.003"), "{verdict}");
    let quick = unbundle(["verify".as_ref(), "--quick".as_ref(), directory.as_os_str()]);
    quick.failed(16, &["missing"]);

    let site = sound.path("part");
    unbundle(["unpack".as_ref(), directory.as_os_str(), site.as_os_str()])
        .failed(16, &["--keep-going unpacks all that this does not hit"]);
    assert!(!site.exists());
    let args = ["unpack".as_ref(), directory.as_os_str(), site.as_os_str(), "--keep-going".as_ref()];
    let finished = unbundle(args).failed(16, &["is without", "`quay.io/b/three:v1`"]);
    assert!(finished.stdout.contains("the volume `all.tar.zst.003` is missing"), "{finished:#?}");
    nothing_wrong_is_visible(&sound, &site);
    assert_eq!(fs::read(site.join("files/k8s/dl.k8s.io/kubelet")).unwrap(), content.files[1].1);
    let two = "registry/docker/registry/v2/repositories/k8s/quay.io/a/two/_manifests/tags/v1/current/link";
    assert!(site.join(two).exists(), "{finished:#?}");
    unbundle(["unpack".as_ref(), sound.bundle.as_os_str(), site.as_os_str()]).ok();
    assert_eq!(Tree::of(&site).difference(&sound.site), Vec::<String>::new());

    // Damaged, too: the worst gives the code, and each volume says what it has.
    let second = directory.join("all.tar.zst.002");
    let mut bytes = fs::read(&second).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&second, bytes).unwrap();
    let verdict = verify(7);
    let troubles: Vec<_> =
        verdict["volumes"].as_array().unwrap().iter().map(|volume| &volume["trouble"]).collect();
    assert_eq!(
        serde_json::json!(troubles),
        serde_json::json!([null, "damaged", "missing", null]),
        "{verdict}"
    );
}

#[test]
fn the_quick_look_finds_what_does_not_fit_and_says_that_it_read_no_contents() {
    let content = Content::large();
    let sound = Sound::new(&content);
    let quick = |bundle: &Path| unbundle(["verify".as_ref(), "--quick".as_ref(), bundle.as_os_str()]);
    let finished = quick(&sound.bundle).ok();
    assert!(finished.stdout.contains("contents were not read"), "{finished:#?}");
    let json = unbundle(["verify", "--quick", "--json", sound.bundle.to_str().unwrap()]).ok().json();
    assert_eq!((&json["contentsRead"], &json["damage"]), (&false.into(), &serde_json::json!([])));
    unbundle_from(&sound.bundle, ["verify", "--quick", "-"]).failed(2, &["--quick", "pipe"]);

    let starts = frame_starts(&sound.bytes);
    let [.., last, table] = starts[..] else { panic!("many frames") };
    let len = sound.bytes.len();
    let cut = |from: usize, to: usize| [&sound.bytes[..from], &sound.bytes[to..]].concat();
    let flipped = |at: usize| {
        let mut bytes = sound.bytes.clone();
        bytes[at] ^= 1;
        bytes
    };
    for (what, bytes, code, words) in [
        ("a copy that broke off", sound.bytes[..len - 1].to_vec(), 16, "cut short"),
        ("half a copy", sound.bytes[..len / 2].to_vec(), 16, "cut short"),
        ("bytes that are gone", cut(len / 2, len / 2 + 4096), 7, "seek table"),
        ("the beginning of the last frame", flipped(last), 7, "needed by dl.k8s.io/kubelet"),
        ("its size", flipped(last + 5), 7, "a damaged frame"),
        ("what the table says of a content", flipped(table + 8 + 4), 7, "seek table"),
        ("what the table says of two frames", flipped(table + 8), 7, "seek table"),
    ] {
        let bundle = sound.changed(&bytes);
        let finished = quick(&bundle);
        assert_eq!(finished.code, Some(code), "{what}: {finished:#?}");
        assert!(finished.stdout.contains(words), "{what}: {finished:#?}");
    }
    // It does not read what it does not look at; it never says that this is right.
    let bundle = sound.changed(&flipped(last - 100));
    quick(&bundle).ok();
    unbundle(["verify".as_ref(), bundle.as_os_str()]).failed(7, &["1 of 13 objects are damaged"]);
}

/// `unbundle`, whose reads of the medium fail as `injection` says, and whether one did.
fn with_read_errors(injection: &str, args: &[&std::ffi::OsStr]) -> (Finished, bool) {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut strace = Command::new("strace");
    let inject = format!("inject=pread64:error=EIO:{injection}");
    let bundle = args.iter().find(|arg| arg.to_string_lossy().ends_with(".tar.zst")).expect("a bundle");
    strace.args(["-f", "-qq", "-e", "trace=pread64", "-e", &inject, "-P"]).arg(bundle).arg("-o").arg(&log);
    let finished = run(strace.arg(env!("CARGO_BIN_EXE_unbundle")).args(args));
    (finished, fs::read_to_string(log).unwrap().contains("(INJECTED)"))
}

#[test]
fn a_medium_that_gives_errors_is_said_to_do_so_and_the_rest_is_read() {
    let content = Content::large();
    let sound = Sound::new(&content);
    let verify = ["verify".as_ref(), sound.bundle.as_os_str()];
    let (mut number, mut unreadable) = (1, 0);
    loop {
        let (finished, has_failed) = with_read_errors(&format!("when={number}"), &verify);
        if !has_failed {
            break;
        }
        let what = format!("read {number}: {finished:#?}");
        // A seek table that cannot be read is none, and was read when its turn came.
        assert!(finished.code == Some(17) || (finished.code == Some(0) && number < 4), "{what}");
        if finished.code == Some(17) {
            unreadable += 1;
            assert!(
                format!("{}{}", finished.stdout, finished.stderr).contains("Input/output error"),
                "{what}"
            );
        }
        // All of the first ones, which read the documents; then some.
        number += if number < 12 { 1 } else { 60 };
    }
    assert!(unreadable > 10, "{unreadable}");

    let site = sound.path("part");
    let args = ["unpack", "--keep-going", sound.bundle.to_str().unwrap(), site.to_str().unwrap()];
    let (finished, _) = with_read_errors("when=150", &args.map(AsRef::as_ref));
    let finished = finished.failed(17, &["is without", "quay.io/a/"]);
    assert!(finished.stdout.contains("left out: quay.io/a/"), "{finished:#?}");
    nothing_wrong_is_visible(&sound, &site);
    assert_eq!(fs::read(site.join("files/k8s/dl.k8s.io/kubelet")).unwrap(), content.files[1].1);
    // Everything from there on.
    let (finished, _) = with_read_errors("when=150+", &verify);
    let finished = finished.failed(17, &["objects are unreadable"]);
    assert!(finished.stdout.contains("needed by dl.k8s.io/kubelet"), "{finished:#?}");
}

#[test]
fn damage_in_what_a_site_has_already_does_not_keep_it_from_being_repaired() {
    let content = Content::large();
    let sound = Sound::new(&content);
    let site = sound.path("site");
    fs::remove_file(site.join("files/k8s/dl.k8s.io/kubectl")).unwrap();
    let mut bytes = sound.bytes.clone();
    flip_in(&mut bytes, &largest(&content.images[2].1));
    let bundle = sound.changed(&bytes);
    unbundle(["verify".as_ref(), bundle.as_os_str()]).failed(7, &["1 of"]);
    unbundle(["unpack".as_ref(), bundle.as_os_str(), site.as_os_str()]).ok();
    assert_eq!(Tree::of(&site).difference(&sound.site), Vec::<String>::new());
}

#[test]
fn damage_that_hits_no_content_is_told_and_does_no_harm() {
    let sound = Sound::new(&Content::small());
    let table = seek_table::read(&mut Cursor::new(&sound.bytes)).unwrap().unwrap();
    let in_padding = table[0].compressed as usize + 8 + table[1].compressed as usize / 2;
    // What the table says of the size of the last frame's content.
    let in_table = sound.bytes.len() - 9 - 4;
    for (what, place) in [("padding", in_padding), ("seek table", in_table)] {
        let mut bytes = sound.bytes.clone();
        bytes[place] ^= 1;
        let bundle = sound.changed(&bytes);
        for finished in
            [unbundle(["verify".as_ref(), bundle.as_os_str()]), unbundle_from(&bundle, ["verify", "-"])]
        {
            let finished = finished.failed(7, &["1 of"]);
            assert!(finished.stdout.contains("damaged: the end of the bundle"), "{what}: {finished:#?}");
        }
        sound.unpacks_right(&bundle, what);
        let site = sound.path("piped");
        unbundle_from(&bundle, ["unpack".as_ref(), "-".as_ref(), site.as_os_str()]).ok();
        fs::remove_dir_all(site).unwrap();
    }
}

#[test]
fn one_blob_may_have_more_places_than_a_process_has_open_files_at_first() {
    let directory = tempfile::tempdir().unwrap();
    let (bundle, site) = (directory.path().join("copies.tar.zst"), directory.path().join("site"));
    let names: Vec<String> = (0..300).map(|number| format!("dl.k8s.io/{number}")).collect();
    let files = names.iter().map(|name| (&**name, b"the same".to_vec())).collect();
    Content { images: vec![], files }.write(&bundle);
    let mut limited = Command::new("sh");
    limited.args([
        "-c",
        r#"ulimit -S -n 64; exec "$0" "$@""#,
        env!("CARGO_BIN_EXE_unbundle"),
        "unpack",
        "-q",
    ]);
    let output = limited.args([&bundle, &site]).output().expect("start a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(names.iter().all(|name| fs::read(site.join("files/k8s").join(name)).unwrap() == b"the same"));
}

#[test]
fn a_bundle_with_much_room_behind_its_head_reads_as_any_other() {
    let content = Content::small();
    let sound = Sound::new(&content);
    let bundle = sound.path("roomy.tar.zst");
    content.write_with_room(&bundle, 12 << 20);
    for finished in
        [unbundle(["verify".as_ref(), bundle.as_os_str()]), unbundle_from(&bundle, ["verify", "-"])]
    {
        finished.ok();
    }
    sound.unpacks_right(&bundle, "12 MiB of padding");
}

#[test]
fn damage_behind_the_manifests_leaves_readable_what_says_what_is_damaged() {
    let sound = Sound::new(&Content::small());
    let table = seek_table::read(&mut Cursor::new(&sound.bytes)).unwrap().unwrap();
    // The head, the room that was kept for it, the manifests, and all else.
    let [head, padding, manifests, rest] = table[..] else { panic!("another number of frames: {table:?}") };
    assert_eq!(padding.decompressed, 0);
    let middle = head.compressed + padding.compressed + manifests.compressed + rest.compressed / 2;
    let mut bytes = sound.bytes.clone();
    bytes[middle as usize] ^= 1;
    let verdict = verify(BundleReader::open(&sound.changed(&bytes)).unwrap(), &Silent).expect("a verdict");
    let owners: BTreeSet<_> =
        verdict.damage.iter().flat_map(|damage| &damage.owners).map(String::as_str).collect();
    assert_eq!(owners, ["dl.k8s.io/kubelet", "quay.io/a/one:v1", "quay.io/a/two:v1"].into());
}

#[test]
fn a_flipped_bit_in_the_header_of_a_frame_costs_what_is_in_this_frame_and_nothing_behind_it() {
    let text: Vec<u8> = (0..400_000).flat_map(|number: u32| format!("{number}\n").into_bytes()).collect();
    // More than half a frame each, so that none shares its frame with another.
    let noise = |seed| random_bytes(seed, 2_200_000);
    let files = [("one", noise(1)), ("two", noise(2)), ("three", text), ("four", noise(4))];
    let content = Content { images: vec![], files: files.to_vec() };
    let sound = Sound::new(&content);
    let table = seek_table::read(&mut Cursor::new(&sound.bytes)).unwrap().unwrap();
    let (mut offset, mut hit) = (0, BTreeSet::new());
    for entry in &table {
        let begin = offset;
        offset += entry.compressed as usize;
        if (entry.decompressed as usize) < FRAME_SIZE / 2 {
            continue;
        }
        for bit in 0..14 * 8 {
            let what = format!("bit {bit} of the frame at {begin}");
            let mut bytes = sound.bytes.clone();
            bytes[begin + bit / 8] ^= 1 << (bit % 8);
            let bundle = sound.changed(&bytes);
            let verdict = verify(BundleReader::open(&bundle).unwrap(), &Silent).expect(&what);
            if verdict.damage.is_empty() {
                sound.unpacks_right(&bundle, &what);
                continue;
            }
            let offsets =
                |damage: &Damage| damage.places.iter().map(|place| place.offset).collect::<Vec<_>>();
            assert!(verdict.damage.iter().all(|damage| offsets(damage) == [begin as u64]), "{what}");
            let owners: Vec<_> = verdict.damage.iter().flat_map(|damage| &damage.owners).cloned().collect();
            assert_eq!(owners.len(), 1, "{what}: {owners:?}");
            hit.extend(owners);
            // The lowest bit of the size that the frame states.
            if bit == 5 * 8 {
                let site = sound.path("hit");
                let error = unpack_to(&bundle, &site).expect_err(&what).to_string();
                assert!(error.contains("damaged in `") && !error.contains(','), "{what}: {error}");
                nothing_wrong_is_visible(&sound, &site);
                assert_eq!(fs::read_dir(site.join("files/k8s")).unwrap().count(), files.len() - 1, "{what}");
                fs::remove_dir_all(site).unwrap();
            }
        }
    }
    assert_eq!(hit.len(), files.len(), "{hit:?}");
}

#[test]
fn a_truncated_bundle_is_named_as_such_with_what_was_being_read() {
    let sound = Sound::new(&Content::large());
    let bundle = sound.changed(&sound.bytes[..sound.bytes.len() / 2]);
    let site = sound.path("cut");
    let finished = unbundle(["unpack".as_ref(), bundle.as_os_str(), site.as_os_str()]);
    finished.failed(16, &["damaged in `quay.io/", "truncated"]);
    nothing_wrong_is_visible(&sound, &site);
    let finished = unbundle(["verify".as_ref(), bundle.as_os_str()]).failed(16, &["objects are missing"]);
    assert!(finished.stdout.contains("needed by dl.k8s.io/kubectl"), "{finished:#?}");
}

#[test]
fn what_is_no_bundle_is_said_to_be_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let tar = crate::support::image::tar_of(&[("hello", b"hello")]);
    for (name, bytes, code, words) in [
        ("empty", vec![], 8, "empty"),
        ("text", b"hello, this is no bundle".to_vec(), 8, "does not begin with a zstd frame"),
        ("tar", tar.clone(), 8, "does not begin with a zstd frame"),
        (
            "gzip",
            crate::support::image::gzip(&tar, flate2::Compression::default()),
            8,
            "does not begin with a zstd frame",
        ),
        ("plain.tar.zst", zstd::bulk::compress(&tar, 3).unwrap(), 8, "zstd frame: it has no checksum"),
        (
            "frames.tar.zst",
            [frame::encode(&tar, 3), seek_table::encode(&[])].concat(),
            8,
            "first entry is the file `hello`",
        ),
        (
            "oci.tar.zst",
            archive(vec![
                file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
                file("index.json", br#"{"schemaVersion":2,"manifests":[]}"#),
            ]),
            8,
            "not written by airbundle",
        ),
        (
            "layout.tar.zst",
            archive(vec![file("oci-layout", br#"{"imageLayoutVersion":"9.0.0"}"#)]),
            8,
            "`oci-layout`",
        ),
    ] {
        fs::write(path(name), bytes).unwrap();
        for verb in ["ls", "verify"] {
            unbundle([verb.as_ref(), path(name).as_os_str()]).failed(code, &[words]);
        }
        let site = path("site");
        unbundle(["unpack".as_ref(), path(name).as_os_str(), site.as_os_str()]).failed(code, &[words]);
        assert!(!site.exists(), "{name}: something was written");
    }
    let empty = path("nothing");
    fs::create_dir(&empty).unwrap();
    unbundle(["ls".as_ref(), empty.as_os_str()]).failed(8, &["no bundle in"]);
    unbundle(["ls".as_ref(), directory.path().as_os_str()])
        .failed(2, &["found several bundles", "oci.tar.zst"]);
    unbundle(["ls".as_ref(), path("missing").as_os_str()]).failed(6, &["missing", "No such file"]);
}

/// An entry of an archive: its header and content.
type Raw = (Vec<u8>, Vec<u8>);

fn file(name: &str, content: &[u8]) -> Raw {
    (tar_header(name, content.len() as u64).to_vec(), content.to_vec())
}

/// An archive of any entries, in sound frames with a sound seek table.
fn archive(entries: Vec<Raw>) -> Vec<u8> {
    let mut stream = Vec::new();
    for (header, content) in entries {
        stream.extend(header);
        stream.extend(&content);
        stream.resize(stream.len().next_multiple_of(512), 0);
    }
    stream.resize(stream.len() + 1024, 0);
    framed(&stream)
}

/// Any bytes in sound frames with a sound seek table.
pub(crate) fn framed(stream: &[u8]) -> Vec<u8> {
    let (mut bytes, mut table) = (Vec::new(), Vec::new());
    for content in stream.chunks(FRAME_SIZE) {
        let frame = frame::encode(content, 3);
        let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        table.push(FrameEntry { compressed: size(&frame), decompressed: size(content) });
        bytes.extend(frame);
    }
    bytes.extend(seek_table::encode(&table));
    bytes
}

fn special(name: &str, kind: Kind, link: &str) -> Raw {
    let mut header = tar::Header::new_ustar();
    header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(0);
    header.set_mode(0o777);
    header.set_entry_type(kind);
    if !link.is_empty() {
        header.set_link_name_literal(link).unwrap();
    }
    header.set_cksum();
    (header.as_bytes().to_vec(), Vec::new())
}

#[test]
fn entries_that_the_index_does_not_ask_for_are_refused_and_touch_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let content = random_bytes(1, 100);
    let files = FileSet {
        files: vec![IndexedFile {
            path: "dl.k8s.io/kubelet".parse().unwrap(),
            url: "https://dl.k8s.io/kubelet".into(),
            digest: Digest::of(&content),
            size: 100,
        }],
    };
    let manifest = files.to_json();
    let index = Index { files: Some((Digest::of(&manifest), manifest.len() as u64)), ..Index::default() };
    let head = || {
        vec![
            file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
            file("index.json", &index.to_json()),
            file(&blob_name(Digest::of(&manifest)), &manifest),
        ]
    };
    let config = || file(&blob_name(Digest::of(EMPTY_CONFIG)), EMPTY_CONFIG);
    let blob = || file(&blob_name(Digest::of(&content)), &content);
    let named = |name: &str| {
        let mut raw = special(name, Kind::Regular, "");
        raw.1 = Vec::new();
        raw
    };
    let mut huge = tar::Header::new_ustar();
    huge.set_path("index.json").unwrap();
    huge.set_size(u64::MAX / 2);
    huge.set_cksum();
    let mut not_utf8 = named("xxxx");
    not_utf8.0[..4].copy_from_slice(b"\xff\xfe\n\x1b");
    let pax = || {
        let mut raw = special("pax", Kind::XHeader, "");
        raw.1 = b"30 path=../../../etc/passwd\n".to_vec();
        raw
    };
    let with_middle = |raw: Raw| [head(), vec![raw, config(), blob()]].concat();
    let cases: Vec<(&str, Vec<Raw>, &str)> = vec![
        ("traversal", with_middle(named("../../../../tmp/escaped")), "the file `../../../../tmp/escaped`"),
        ("absolute", with_middle(named("/tmp/escaped")), "the file `/tmp/escaped`"),
        ("symlink", with_middle(special("blobs", Kind::Symlink, "/etc")), "the symlink `blobs`"),
        ("hard link", with_middle(special("x", Kind::Link, "/etc/passwd")), "the hard link `x`"),
        ("device", with_middle(special("sda", Kind::Block, "")), "the device `sda`"),
        ("character device", with_middle(special("null", Kind::Char, "")), "the device `null`"),
        ("fifo", with_middle(special("pipe", Kind::Fifo, "")), "the FIFO `pipe`"),
        ("directory", with_middle(special("blobs/", Kind::Directory, "")), "the directory `blobs/`"),
        ("pax", with_middle(pax()), "a PAX header"),
        ("gnu long name", with_middle(special("././@LongLink", Kind::GNULongName, "")), "a GNU long name"),
        ("not utf-8", with_middle(not_utf8), "\\u{1b}"),
        ("over-long", with_middle(named(&"n".repeat(100))), "nnnn"),
        ("duplicate", [head(), vec![config(), config(), blob()]].concat(), "the file `blobs/sha256/44136fa"),
        ("missing", [head(), vec![blob()]].concat(), "the file `blobs/sha256/"),
        ("swapped", [head(), vec![blob(), config()]].concat(), "the file `blobs/sha256/"),
        ("absent", [head(), vec![config()]].concat(), "the end of the archive"),
        (
            "huge index",
            vec![
                file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
                (huge.as_bytes().to_vec(), vec![]),
            ],
            "the file `index.json`",
        ),
        (
            "two indexes",
            [head(), vec![file("index.json", &index.to_json()), config(), blob()]].concat(),
            "the file `index.json`",
        ),
    ];
    for (name, entries, found) in cases {
        let bundle = directory.path().join("hostile.tar.zst");
        fs::write(&bundle, archive(entries)).unwrap();
        let site = directory.path().join("site");
        let finished = unbundle(["unpack".as_ref(), bundle.as_os_str(), site.as_os_str()]);
        finished.failed(7, &["expected `", "`, found ", found]);
        let made =
            if site.exists() { Tree::of(&site).files().map(Path::to_owned).collect() } else { Vec::new() };
        let right = [Path::new(".unbundle/lock"), Path::new("files/k8s/dl.k8s.io/kubelet")];
        assert!(made.iter().all(|path| right.contains(&path.as_path())), "{name}: {made:?}");
        assert!(!Path::new("/tmp/escaped").exists() && !directory.path().join("tmp").exists(), "{name}");
        let verdict = unbundle(["verify".as_ref(), bundle.as_os_str()]);
        assert_eq!(verdict.code, Some(7), "{name}: {verdict:#?}");
        if site.exists() {
            fs::remove_dir_all(site).unwrap();
        }
    }
    // The same entries in their order are a bundle.
    let bundle = directory.path().join("right.tar.zst");
    fs::write(&bundle, archive([head(), vec![config(), blob()]].concat())).unwrap();
    unbundle(["verify".as_ref(), bundle.as_os_str()]).ok();
}

#[test]
fn an_index_that_no_reader_may_accept_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let sound = String::from_utf8(Index::default().to_json()).unwrap();
    let format = r#""dev.airbundle.format":"1.0""#;
    let descriptor = |name: &str, annotations: &str| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":2,"annotations":{{"org.opencontainers.image.ref.name":"{name}"{annotations}}}}}"#,
            Digest::of(b"{}")
        )
    };
    let with =
        |descriptor: &str| sound.replace(r#""manifests":[]"#, &format!(r#""manifests":[{descriptor}]"#));
    for (index, words) in [
        (sound.replace(format, r#""dev.airbundle.format":"2.0""#), "format version `2.0`"),
        (sound.replace(format, r#""dev.airbundle.format":"x""#), "format version `x`"),
        (
            sound.replace(format, &format!(r#"{format},"dev.airbundle.requires":"delta""#)),
            "unsupported feature `delta`",
        ),
        (
            with(&descriptor("quay.io/a:1", r#","dev.airbundle.encoding":"recompress""#)),
            "encoding `recompress`",
        ),
        (with(&descriptor("../../a:1", "")), "../../a:1"),
        (
            with(&descriptor("quay.io/a:1", "").replace("\"size\":2", "\"size\":99999999")),
            "a manifest of too many bytes",
        ),
        (with(&format!("{0},{0}", descriptor("quay.io/a:1", ""))), "duplicate reference"),
    ] {
        assert!(index != sound, "{words}: nothing was replaced");
        let bundle = directory.path().join("refused.tar.zst");
        let layout = file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        fs::write(&bundle, archive(vec![layout, file("index.json", index.as_bytes())])).unwrap();
        for verb in ["ls", "verify"] {
            unbundle([verb.as_ref(), bundle.as_os_str()]).failed(8, &[words]);
        }
    }
}

#[test]
fn a_frame_that_would_decode_to_more_than_a_reader_holds_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().join("bomb.tar.zst");
    let mut zstd = zstd::bulk::Compressor::new(3).unwrap();
    zstd.include_checksum(true).unwrap();
    fs::write(&bundle, zstd.compress(&vec![0; 1 << 30]).unwrap()).unwrap();
    unbundle(["ls".as_ref(), bundle.as_os_str()]).failed(8, &["larger than the 4 MiB"]);
}

#[test]
fn a_seek_table_that_lies_is_damage_and_never_wrong_bytes() {
    let sound = Sound::new(&Content::small());
    let start = sound.bytes.len() - 9 - 8 * 3;
    // The first two entries exchanged, so that the sums are right.
    let mut bytes = sound.bytes.clone();
    let (a, b) = (bytes[start..start + 8].to_vec(), bytes[start + 8..start + 16].to_vec());
    bytes[start..start + 8].copy_from_slice(&b);
    bytes[start + 8..start + 16].copy_from_slice(&a);
    assert_ne!(bytes, sound.bytes);
    let bundle = sound.changed(&bytes);
    let finished = unbundle(["verify".as_ref(), bundle.as_os_str()]);
    assert_eq!(finished.code, Some(7), "{finished:#?}");
    let site = sound.path("lied");
    let _ = unpack_to(&bundle, &site);
    nothing_wrong_is_visible(&sound, &site);
}
