//! Corrupt, truncated, hostile and invalid bundles: each is refused with a clear error, without a wrong byte
//! and without a file outside the site.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use airbundle::base::event::Silent;
use airbundle::bundle::format::FRAME_SIZE;
use airbundle::bundle::format::frame;
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
use airbundle::bundle::write::head::{BundleHead, header_space};
use airbundle::bundle::write::volume_writer::VolumeOptions;
use airbundle::bundle::write::writer::{BundleWriter, WriteOptions};
use airbundle::cli::exit::{Code, Failure};
use airbundle::commands::unpack;
use airbundle::commands::verify::damage::Damage;
use airbundle::commands::verify::verify;
use airbundle::oci::digest::Digest;
use airbundle::oci::template::RepositoryTemplate;
use airbundle::signature::policy::Policy;
use tar::EntryType as Kind;
use tempfile::TempDir;

use crate::program::{Finished, run, unbundle, unbundle_from};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::random_bytes;
use crate::support::tree::Tree;

/// Contents of a bundle that is written without a network.
pub(crate) struct Content<'a> {
    pub(crate) images: Vec<(&'static str, Image)>,
    pub(crate) files: Vec<(&'a str, Vec<u8>)>,
}

impl Content<'_> {
    /// Two images that share a layer, and one file, in a few kilobytes.
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

    /// A file and an image with two layers: the smallest possible bundle.
    fn smallest() -> Self {
        let layers = ["one", "two"].map(|text| Layer::files(&[("x", text.as_bytes())], Compression::Gzip));
        let image = Image::new(Format::Oci, "linux/amd64", &layers);
        Self { images: vec![("quay.io/a:1", image)], files: vec![("dl.io/x", b"some text".to_vec())] }
    }

    /// Three images with multi-frame layers, and two files, one of them large.
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
        self.write_with_reserved_space(target, 0);
    }

    /// Writes a bundle with `more` bytes of reserved header space beyond what is needed.
    fn write_with_reserved_space(&self, target: &Path, more: u64) {
        self.write_with(target, more, VolumeOptions::single_file());
    }

    /// Writes volumes of at most `size` bytes.
    pub(crate) fn write_volumes(&self, target: &Path, size: u64) {
        let set = Digest::of(b"any set");
        let label = Label::new(set, 1, 0, 0).to_frame().len();
        self.write_with(target, label as u64, VolumeOptions { volume_size: Some(size), recovery: None, set });
    }

    fn write_with(&self, target: &Path, more: u64, carry: VolumeOptions) {
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
                media_type: root.media_type.parse().unwrap(),
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
            IndexedFile {
                path: path.parse().unwrap(),
                url: format!("https://{path}").parse().unwrap(),
                digest,
                size,
            }
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
        let form = WriteOptions { header_space: room, level: 3, volumes: carry };
        let mut writer = BundleWriter::create(Claim::new(target, &Silent).unwrap(), form).unwrap();
        for (number, blob) in layout.manifests[1..].iter().chain(&layout.blobs).enumerate() {
            if number + 1 == layout.manifests.len() {
                writer.end_manifests().unwrap();
            }
            writer.begin_blob(Some((blob.digest, blob.size)));
            writer.write(&blobs[&blob.digest]).unwrap();
            writer.end_blob(blob.digest).unwrap();
        }
        writer.finish(&BundleHead { index: json, files: Some(files), signature: None }).unwrap();
    }
}

/// A bundle of `content` and the site it unpacks to.
struct IntactBundle {
    directory: TempDir,
    bundle: PathBuf,
    bytes: Vec<u8>,
    site: Tree,
}

impl IntactBundle {
    fn new(content: &Content<'_>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("sound.tar.zst");
        content.write(&bundle);
        let site = directory.path().join("site");
        unpack_to(&bundle, &site).expect("an intact bundle unpacks");
        Self { bytes: fs::read(&bundle).unwrap(), bundle, site: Tree::of(&site), directory }
    }

    /// Writes a copy of the bundle with other bytes.
    fn changed(&self, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join("changed.tar.zst");
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Writes a copy in which the first image and the first file are corrupt.
    fn with_first_items_corrupt(&self, content: &Content<'_>) -> PathBuf {
        let mut bytes = self.bytes.clone();
        flip_in(&mut bytes, &largest(&content.images[0].1));
        flip_in(&mut bytes, &content.files[0].1);
        self.changed(&bytes)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn assert_unpacks_intact(&self, bundle: &Path, what: &str) {
        let site = self.path("other");
        unpack_to(bundle, &site)
            .unwrap_or_else(|error| panic!("{what}: verify finds nothing, and unpack {error}"));
        assert_eq!(Tree::of(&site).difference(&self.site), Vec::<String>::new(), "{what}");
        fs::remove_dir_all(site).unwrap();
    }
}

fn unpack_to(
    bundle: &Path,
    site: &Path,
) -> Result<unpack::summary::UnpackSummary, unpack::error::UnpackError> {
    unpack_with(bundle, site, false)
}

fn unpack_with(
    bundle: &Path,
    site: &Path,
    keep_going: bool,
) -> Result<unpack::summary::UnpackSummary, unpack::error::UnpackError> {
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
        replace: false,
        allow_older: false,
    };
    unpack::unpack(BundleReader::open(bundle, &Policy::none())?, &options, &Silent)
}

/// Asserts that every visible file of `site` exists in the intact site with the same bytes.
fn assert_visible_files_intact(intact: &IntactBundle, site: &Path) {
    if !site.exists() {
        return;
    }
    for (path, entry) in &Tree::of(site).0 {
        let staging = path.starts_with(".unbundle")
            || path == Path::new("site.json")
            || path.to_string_lossy().contains("unbundle-in-progress");
        if !staging {
            assert_eq!(Some(entry), intact.site.0.get(path), "{}", path.display());
        }
    }
}

/// Calls `each` for every number below `end` on all cores. Uses threads of its own, because `each` blocks on
/// the pool that decodes.
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

/// Returns a directory in memory if there is one: tests write tens of thousands of bundles there.
fn in_memory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// True if `reader` finds the bundle intact.
fn is_intact(reader: BundleReader) -> bool {
    verify(reader, &Silent).is_ok_and(|verdict| verdict.worst().is_none())
}

/// Unpacks the intact parts of a changed bundle, and asserts that they are correct and that the others are
/// named.
fn assert_keep_going(
    intact: &IntactBundle,
    content: &Content<'_>,
    bytes: &[u8],
    directory: &Path,
    what: &str,
) {
    let (bundle, site) = (directory.join("changed.tar.zst"), directory.join("site"));
    fs::write(&bundle, bytes).unwrap();
    let result = unpack_with(&bundle, &site, true);
    assert_visible_files_intact(intact, &site);
    if let Ok(summary) = result {
        let is_left_out = |name: &str| summary.omitted.iter().any(|item| item.name == name);
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
        if summary.omitted.is_empty() {
            assert_eq!(Tree::of(&site).difference(&intact.site), Vec::<String>::new(), "{what}");
        }
    }
    let _ = fs::remove_dir_all(site);
}

#[test]
fn every_flipped_bit_of_a_small_bundle_is_detected_and_never_yields_wrong_bytes() {
    let content = Content::smallest();
    let intact = IntactBundle::new(&content);
    let directory = in_memory();
    let undetected = Mutex::new(Vec::new());
    for_each_below(intact.bytes.len() * 8, |bit| {
        let mut bytes = intact.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let own = directory.path().join(format!("{:?}", std::thread::current().id()));
        fs::create_dir_all(&own).unwrap();
        let path = own.join("verified.tar.zst");
        fs::write(&path, &bytes).unwrap();
        let whole = is_intact(BundleReader::open(&path, &Policy::none()).unwrap());
        if whole {
            undetected.lock().unwrap().push(bit);
        }
        // One bit of each byte: all bits would take minutes.
        if bit % 8 == bit / 8 % 8 {
            let piped = is_intact(BundleReader::stream(Cursor::new(bytes.clone()), &Policy::none()));
            assert_eq!(whole, piped, "bit {bit}: a file and a pipe tell the same");
            assert_keep_going(&intact, &content, &bytes, &own, &format!("bit {bit}"));
        }
    });
    // Only unused bits of a block compressed by zstd may change undetected: the content has the same checksum
    // and digest. There are none in headers, checksums, padding and the seek table.
    let undetected = undetected.into_inner().unwrap();
    let (starts, buffers) = (frame_starts(&intact.bytes), frame_reader::buffers());
    let decoded = |bytes: &[u8]| match FrameReader::new(bytes, 0, &buffers).next_frame() {
        Ok(Some(Frame::Data(data))) => data.decode(&buffers).ok().map(|content| content.to_vec()),
        _ => None,
    };
    for bit in &undetected {
        let mut bytes = intact.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let number = starts.iter().rposition(|start| *start <= bit / 8).unwrap();
        let (start, end) = (starts[number], starts.get(number + 1).copied().unwrap_or(bytes.len()));
        let content = decoded(&intact.bytes[start..end]).expect("only this frame changes");
        assert!(content.len() >= 256, "so that its header has two bytes of size, or a window");
        assert!((start + 4 + 1 + 2 + 3..end - 4).contains(&(bit / 8)), "bit {bit} is in no block");
        assert_eq!(decoded(&bytes[start..end]), Some(content), "bit {bit}");
    }
    assert!(undetected.len() < intact.bytes.len() * 8 / 500, "{} bits: {undetected:?}", undetected.len());
}

/// Returns the offsets of the frames of a bundle.
fn frame_starts(bytes: &[u8]) -> Vec<usize> {
    let table = seek_table::read(&mut Cursor::new(bytes)).unwrap().unwrap();
    let mut starts = vec![0];
    for entry in table {
        starts.push(starts.last().unwrap() + entry.compressed as usize);
    }
    starts
}

#[test]
fn every_truncation_is_reported_and_leaves_nothing_wrong() {
    let content = Content::smallest();
    let intact = IntactBundle::new(&content);
    let directory = in_memory();
    for_each_below(intact.bytes.len(), |len| {
        let own = directory.path().join(format!("{:?}", std::thread::current().id()));
        fs::create_dir_all(&own).unwrap();
        let (bytes, path) = (&intact.bytes[..len], own.join("cut.tar.zst"));
        fs::write(&path, bytes).unwrap();
        for reader in [
            BundleReader::open(&path, &Policy::none()).unwrap(),
            BundleReader::stream(Cursor::new(bytes.to_vec()), &Policy::none()),
        ] {
            match verify(reader, &Silent) {
                Ok(verdict) => assert_eq!(verdict.worst(), Some(DamageKind::Missing), "{len}: {verdict:?}"),
                Err(error) => {
                    let code = if len == 0 { Code::NotABundle } else { Code::Incomplete };
                    assert_eq!(Failure::from(error).code, code, "{len}");
                }
            }
        }
        assert_keep_going(&intact, &content, bytes, &own, &format!("the first {len} bytes"));
        let site = own.join("site");
        match unpack_to(&path, &site) {
            // All blobs were read; only the tail is missing.
            Ok(_) => assert_eq!(Tree::of(&site).difference(&intact.site), Vec::<String>::new(), "{len}"),
            Err(_) => assert_visible_files_intact(&intact, &site),
        }
        let _ = fs::remove_dir_all(site);
    });
}

#[test]
fn trailing_garbage_fails_verify_and_is_harmless_to_unpack() {
    let intact = IntactBundle::new(&Content::small());
    for junk in [&b"x"[..], b"\0\0\0\0\0\0\0\0\0\0", &frame::store(b"more"), &intact.bytes] {
        let bundle = intact.changed(&[&intact.bytes, junk].concat());
        unbundle(["verify".as_ref(), bundle.as_os_str()])
            .failed(7, &["1 part of its structure cannot be used"]);
        intact.assert_unpacks_intact(&bundle, "junk at the end");
    }
}

#[test]
fn verify_names_exactly_the_image_hit_by_a_flipped_byte() {
    let content = Content::large();
    let intact = IntactBundle::new(&content);
    let layer = &content.images[1].1.parts();
    let layer = layer.values().max_by_key(|bytes| bytes.len()).unwrap();
    let needle = &layer[6 << 20..(6 << 20) + 64];
    let place =
        intact.bytes.windows(64).position(|window| window == needle).expect("the layer is stored raw");
    let mut bytes = intact.bytes.clone();
    bytes[place] ^= 0x10;
    let bundle = intact.changed(&bytes);

    let digest = blob_name(Digest::of(layer));
    for finished in
        [unbundle(["verify".as_ref(), bundle.as_os_str()]), unbundle_from(&bundle, ["verify", "-"])]
    {
        let finished = finished.failed(7, &["1 of", "blobs damaged"]);
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

    let site = intact.path("hit");
    let finished = unbundle(["unpack".as_ref(), bundle.as_os_str(), site.as_os_str()]);
    finished.failed(7, &["damaged", "`quay.io/a/two:v1`", "at byte"]);
    assert_visible_files_intact(&intact, &site);
    assert!(!site.join("registry/docker/registry/v2/repositories").exists(), "links of an incomplete site");
    // A re-run with an intact copy resumes.
    let finished =
        unbundle(["unpack".as_ref(), "--json".as_ref(), intact.bundle.as_os_str(), site.as_os_str()]);
    let summary = finished.ok().json();
    assert!(summary["kept"].as_u64().unwrap() > 0, "{summary}");
    assert_eq!(Tree::of(&site).difference(&intact.site), Vec::<String>::new());
}

/// Flips a bit in the middle of `content`, which the bundle stores raw.
pub(crate) fn flip_in(bundle: &mut [u8], content: &[u8]) {
    let middle = content.len() / 2;
    let needle = &content[middle..middle + 64];
    let offset = bundle.windows(64).position(|window| window == needle).expect("the content is stored raw");
    bundle[offset] ^= 0x10;
}

pub(crate) fn largest(image: &Image) -> Vec<u8> {
    image.parts().values().max_by_key(|bytes| bytes.len()).expect("the image has layers").to_vec()
}

#[test]
fn all_damage_is_reported_at_once_and_intact_content_is_kept() {
    let content = Content::large();
    let intact = IntactBundle::new(&content);
    let bundle = intact.with_first_items_corrupt(&content);
    let site = intact.path("hit");
    let finished = unbundle(["unpack".as_ref(), bundle.as_os_str(), site.as_os_str()]);
    finished.failed(7, &["damaged in `quay.io/a/one:v1`, `dl.k8s.io/kubectl`:", "at byte"]);
    assert_visible_files_intact(&intact, &site);
    let repair =
        unbundle(["unpack".as_ref(), "--json".as_ref(), intact.bundle.as_os_str(), site.as_os_str()]);
    let summary = repair.ok().json();
    assert_eq!(summary["written"], 2, "{summary}");
    assert_eq!(Tree::of(&site).difference(&intact.site), Vec::<String>::new());
}

#[test]
fn keep_going_unpacks_all_intact_items_and_names_the_others() {
    let content = Content::large();
    let intact = IntactBundle::new(&content);
    let bundle = intact.with_first_items_corrupt(&content);
    let site = intact.path("kept");
    let [verb, going, json] = ["unpack", "--keep-going", "--json"];
    unbundle([verb.as_ref(), bundle.as_os_str(), site.as_os_str()])
        .failed(7, &["hint: use `--keep-going` to unpack everything that is intact"]);
    for bundle in [bundle.clone(), PathBuf::from("-")] {
        let args = [verb.as_ref(), bundle.as_os_str(), site.as_os_str(), going.as_ref(), json.as_ref()];
        let finished = if bundle.is_file() {
            unbundle(args)
        } else {
            unbundle_from(&intact.path("changed.tar.zst"), args)
        };
        let finished = finished.failed(7, &["cannot unpack `quay.io/a/one:v1`, `dl.k8s.io/kubectl`"]);
        let summary = finished.json();
        assert_eq!((&summary["images"], &summary["files"]), (&2.into(), &1.into()), "{summary}");
        let left_out = summary["leftOut"].as_array().unwrap();
        let names: Vec<_> = left_out.iter().map(|left_out| left_out["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["quay.io/a/one:v1", "dl.k8s.io/kubectl"]);
        assert!(left_out.iter().all(|left_out| left_out["trouble"] == "damaged"), "{summary}");
        assert_visible_files_intact(&intact, &site);
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
    assert!(
        finished.stdout.contains("omitted: quay.io/a/one:v1: cannot read `blobs/sha256/"),
        "{finished:#?}"
    );
    // An intact copy completes the site as if nothing had happened.
    unbundle([verb.as_ref(), intact.bundle.as_os_str(), site.as_os_str()]).ok();
    assert_eq!(Tree::of(&site).difference(&intact.site), Vec::<String>::new());
}

#[test]
fn damaged_update_keeps_the_intact_image_of_the_site() {
    let old = IntactBundle::new(&Content::large());
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
    unbundle(args).failed(7, &["cannot unpack `quay.io/a/two:v1`"]);
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
fn missing_volume_does_not_stop_unpacking_the_others() {
    let content = Content::large();
    let intact = IntactBundle::new(&content);
    let directory = intact.path("volumes");
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

    let site = intact.path("part");
    unbundle(["unpack".as_ref(), directory.as_os_str(), site.as_os_str()])
        .failed(16, &["hint: use `--keep-going` to unpack everything that is intact"]);
    assert!(!site.exists());
    let args = ["unpack".as_ref(), directory.as_os_str(), site.as_os_str(), "--keep-going".as_ref()];
    let finished = unbundle(args).failed(16, &["cannot unpack", "`quay.io/b/three:v1`"]);
    assert!(finished.stdout.contains("the volume `all.tar.zst.003` is missing"), "{finished:#?}");
    assert_visible_files_intact(&intact, &site);
    assert_eq!(fs::read(site.join("files/k8s/dl.k8s.io/kubelet")).unwrap(), content.files[1].1);
    let two = "registry/docker/registry/v2/repositories/k8s/quay.io/a/two/_manifests/tags/v1/current/link";
    assert!(site.join(two).exists(), "{finished:#?}");
    unbundle(["unpack".as_ref(), intact.bundle.as_os_str(), site.as_os_str()]).ok();
    assert_eq!(Tree::of(&site).difference(&intact.site), Vec::<String>::new());

    // With a second corrupt volume, the most severe problem sets the exit code and each volume is reported.
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
fn quick_verify_finds_structural_damage_and_states_that_contents_were_not_read() {
    let content = Content::large();
    let intact = IntactBundle::new(&content);
    let quick = |bundle: &Path| unbundle(["verify".as_ref(), "--quick".as_ref(), bundle.as_os_str()]);
    let finished = quick(&intact.bundle).ok();
    assert!(finished.stdout.contains("only structure and sizes were verified"), "{finished:#?}");
    let json = unbundle(["verify", "--quick", "--json", intact.bundle.to_str().unwrap()]).ok().json();
    assert_eq!((&json["contentsRead"], &json["damage"]), (&false.into(), &serde_json::json!([])));
    unbundle_from(&intact.bundle, ["verify", "--quick", "-"]).failed(2, &["--quick", "pipe"]);

    let starts = frame_starts(&intact.bytes);
    let [.., last, table] = starts[..] else { panic!("many frames") };
    let len = intact.bytes.len();
    let cut = |from: usize, to: usize| [&intact.bytes[..from], &intact.bytes[to..]].concat();
    let flipped = |at: usize| {
        let mut bytes = intact.bytes.clone();
        bytes[at] ^= 1;
        bytes
    };
    for (what, bytes, code, words) in [
        ("a copy that broke off", intact.bytes[..len - 1].to_vec(), 16, "truncated"),
        ("half a copy", intact.bytes[..len / 2].to_vec(), 16, "truncated"),
        ("bytes that are gone", cut(len / 2, len / 2 + 4096), 7, "seek table"),
        ("the beginning of the last frame", flipped(last), 7, "needed by dl.k8s.io/kubelet"),
        ("its size", flipped(last + 5), 7, "a damaged frame"),
        ("what the table says of a content", flipped(table + 8 + 4), 7, "seek table"),
        ("what the table says of two frames", flipped(table + 8), 7, "seek table"),
    ] {
        let bundle = intact.changed(&bytes);
        let finished = quick(&bundle);
        assert_eq!(finished.code, Some(code), "{what}: {finished:#?}");
        assert!(finished.stdout.contains(words), "{what}: {finished:#?}");
    }
    // `--quick` does not read contents and never calls them intact.
    let bundle = intact.changed(&flipped(last - 100));
    quick(&bundle).ok();
    unbundle(["verify".as_ref(), bundle.as_os_str()]).failed(7, &["1 of 13 blobs damaged"]);
}

/// Runs `unbundle` with failing reads of the bundle according to `injection`; true if one failed.
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
fn media_errors_are_reported_and_the_rest_is_read() {
    let content = Content::large();
    let intact = IntactBundle::new(&content);
    let verify = ["verify".as_ref(), intact.bundle.as_os_str()];
    let (mut number, mut unreadable) = (1, 0);
    // A read that fails is repeated once with a new descriptor.
    loop {
        let (finished, has_failed) = with_read_errors(&format!("when={number}..{}", number + 1), &verify);
        if !has_failed {
            break;
        }
        let what = format!("read {number}: {finished:#?}");
        // An unreadable seek table is ignored at first and read later in the stream.
        assert!(finished.code == Some(17) || (finished.code == Some(0) && number < 6), "{what}");
        if finished.code == Some(17) {
            unreadable += 1;
            assert!(
                format!("{}{}", finished.stdout, finished.stderr).contains("Input/output error"),
                "{what}"
            );
        }
        // Every one of the first reads, which are for the documents, then a sample.
        number += if number < 12 { 1 } else { 60 };
    }
    assert!(unreadable > 10, "{unreadable}");

    let site = intact.path("part");
    let args = ["unpack", "--keep-going", intact.bundle.to_str().unwrap(), site.to_str().unwrap()];
    let (finished, _) = with_read_errors("when=150..151", &args.map(AsRef::as_ref));
    let finished = finished.failed(17, &["cannot unpack", "quay.io/a/"]);
    assert!(finished.stdout.contains("omitted: quay.io/a/"), "{finished:#?}");
    assert_visible_files_intact(&intact, &site);
    assert_eq!(fs::read(site.join("files/k8s/dl.k8s.io/kubelet")).unwrap(), content.files[1].1);
    // Every read from there on.
    let (finished, _) = with_read_errors("when=150+", &verify);
    let finished = finished.failed(17, &["blobs unreadable"]);
    assert!(finished.stdout.contains("needed by dl.k8s.io/kubelet"), "{finished:#?}");
    // From the first read on, not even the kind of the file is known.
    let output = intact.path("repaired.tar.zst");
    let repair = ["repair".as_ref(), intact.bundle.as_os_str(), "-o".as_ref(), output.as_os_str()];
    let quick = ["verify".as_ref(), "--quick".as_ref(), intact.bundle.as_os_str()];
    for args in [&verify[..], &quick, &repair] {
        let (finished, has_failed) = with_read_errors("when=1+", args);
        assert!(has_failed, "{args:?}");
        finished.failed(17, &["error: ", "Input/output error"]);
    }
    assert!(!output.exists());
}

#[test]
fn damage_to_blobs_a_site_has_does_not_block_its_repair() {
    let content = Content::large();
    let intact = IntactBundle::new(&content);
    let site = intact.path("site");
    fs::remove_file(site.join("files/k8s/dl.k8s.io/kubectl")).unwrap();
    let mut bytes = intact.bytes.clone();
    flip_in(&mut bytes, &largest(&content.images[2].1));
    let bundle = intact.changed(&bytes);
    unbundle(["verify".as_ref(), bundle.as_os_str()]).failed(7, &["1 of"]);
    unbundle(["unpack".as_ref(), bundle.as_os_str(), site.as_os_str()]).ok();
    assert_eq!(Tree::of(&site).difference(&intact.site), Vec::<String>::new());
}

#[test]
fn damage_outside_all_content_is_reported_and_harmless() {
    let intact = IntactBundle::new(&Content::small());
    let table = seek_table::read(&mut Cursor::new(&intact.bytes)).unwrap().unwrap();
    let in_padding = table[0].compressed as usize + 8 + table[1].compressed as usize / 2;
    // The size of the last frame's content in the seek table.
    let in_table = intact.bytes.len() - 9 - 4;
    for (what, place) in [("padding", in_padding), ("seek table", in_table)] {
        let mut bytes = intact.bytes.clone();
        bytes[place] ^= 1;
        let bundle = intact.changed(&bytes);
        for finished in
            [unbundle(["verify".as_ref(), bundle.as_os_str()]), unbundle_from(&bundle, ["verify", "-"])]
        {
            let finished = finished.failed(7, &["1 part of its structure cannot be used"]);
            assert!(finished.stdout.contains("damaged: the end of the bundle"), "{what}: {finished:#?}");
        }
        intact.assert_unpacks_intact(&bundle, what);
        let site = intact.path("piped");
        unbundle_from(&bundle, ["unpack".as_ref(), "-".as_ref(), site.as_os_str()]).ok();
        fs::remove_dir_all(site).unwrap();
    }
}

#[test]
fn blob_may_have_more_copies_than_the_open_file_limit() {
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
fn bundle_with_large_reserved_header_space_is_read() {
    let content = Content::small();
    let intact = IntactBundle::new(&content);
    let bundle = intact.path("roomy.tar.zst");
    content.write_with_reserved_space(&bundle, 12 << 20);
    for finished in
        [unbundle(["verify".as_ref(), bundle.as_os_str()]), unbundle_from(&bundle, ["verify", "-"])]
    {
        finished.ok();
    }
    intact.assert_unpacks_intact(&bundle, "12 MiB of padding");
}

#[test]
fn damage_after_the_manifests_can_still_be_attributed() {
    let intact = IntactBundle::new(&Content::small());
    let table = seek_table::read(&mut Cursor::new(&intact.bytes)).unwrap().unwrap();
    // The header, its reserved space, the manifests, and the rest.
    let [head, padding, manifests, rest] = table[..] else { panic!("another number of frames: {table:?}") };
    assert_eq!(padding.decompressed, 0);
    let middle = head.compressed + padding.compressed + manifests.compressed + rest.compressed / 2;
    let mut bytes = intact.bytes.clone();
    bytes[middle as usize] ^= 1;
    let verdict = verify(BundleReader::open(&intact.changed(&bytes), &Policy::none()).unwrap(), &Silent)
        .expect("a result");
    let owners: BTreeSet<_> =
        verdict.damage.iter().flat_map(|damage| &damage.owners).map(String::as_str).collect();
    assert_eq!(owners, ["dl.k8s.io/kubelet", "quay.io/a/one:v1", "quay.io/a/two:v1"].into());
}

#[test]
fn flipped_bit_in_a_frame_header_costs_only_that_frame() {
    let text: Vec<u8> = (0..400_000).flat_map(|number: u32| format!("{number}\n").into_bytes()).collect();
    // More than half a frame each, so that no two share a frame.
    let noise = |seed| random_bytes(seed, 2_200_000);
    let files = [("one", noise(1)), ("two", noise(2)), ("three", text), ("four", noise(4))];
    let content = Content { images: vec![], files: files.to_vec() };
    let intact = IntactBundle::new(&content);
    let table = seek_table::read(&mut Cursor::new(&intact.bytes)).unwrap().unwrap();
    let (mut offset, mut hit) = (0, BTreeSet::new());
    for entry in &table {
        let begin = offset;
        offset += entry.compressed as usize;
        if (entry.decompressed as usize) < FRAME_SIZE / 2 {
            continue;
        }
        for bit in 0..14 * 8 {
            let what = format!("bit {bit} of the frame at {begin}");
            let mut bytes = intact.bytes.clone();
            bytes[begin + bit / 8] ^= 1 << (bit % 8);
            let bundle = intact.changed(&bytes);
            let verdict =
                verify(BundleReader::open(&bundle, &Policy::none()).unwrap(), &Silent).expect(&what);
            if verdict.damage.is_empty() {
                intact.assert_unpacks_intact(&bundle, &what);
                continue;
            }
            let offsets =
                |damage: &Damage| damage.places.iter().map(|place| place.offset).collect::<Vec<_>>();
            assert!(verdict.damage.iter().all(|damage| offsets(damage) == [begin as u64]), "{what}");
            let owners: Vec<_> = verdict.damage.iter().flat_map(|damage| &damage.owners).cloned().collect();
            assert_eq!(owners.len(), 1, "{what}: {owners:?}");
            hit.extend(owners);
            // The lowest bit of the frame's stated content size.
            if bit == 5 * 8 {
                let site = intact.path("hit");
                let error = unpack_to(&bundle, &site).expect_err(&what).to_string();
                assert!(error.contains("damaged in `") && !error.contains(','), "{what}: {error}");
                assert_visible_files_intact(&intact, &site);
                assert_eq!(fs::read_dir(site.join("files/k8s")).unwrap().count(), files.len() - 1, "{what}");
                fs::remove_dir_all(site).unwrap();
            }
        }
    }
    assert_eq!(hit.len(), files.len(), "{hit:?}");
}

#[test]
fn truncated_bundle_is_reported_with_what_was_being_read() {
    let intact = IntactBundle::new(&Content::large());
    let bundle = intact.changed(&intact.bytes[..intact.bytes.len() / 2]);
    let site = intact.path("cut");
    let finished = unbundle(["unpack".as_ref(), bundle.as_os_str(), site.as_os_str()]);
    finished.failed(16, &["damaged in `quay.io/", "truncated"]);
    assert_visible_files_intact(&intact, &site);
    let finished = unbundle(["verify".as_ref(), bundle.as_os_str()]).failed(16, &["blobs missing"]);
    assert!(finished.stdout.contains("needed by dl.k8s.io/kubectl"), "{finished:#?}");
}

#[test]
fn file_that_is_not_a_bundle_is_reported_as_such() {
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

/// An archive entry: its header and content.
type Raw = (Vec<u8>, Vec<u8>);

fn file(name: &str, content: &[u8]) -> Raw {
    (tar_header(name, content.len() as u64).to_vec(), content.to_vec())
}

/// Returns an archive of arbitrary entries in valid frames with a valid seek table.
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

/// Returns arbitrary bytes in valid frames with a valid seek table.
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
fn tar_entries_missing_from_the_index_are_refused_and_write_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let content = random_bytes(1, 100);
    let files = FileSet {
        files: vec![IndexedFile {
            path: "dl.k8s.io/kubelet".parse().unwrap(),
            url: "https://dl.k8s.io/kubelet".parse().unwrap(),
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
    // The same entries in the required order are a bundle.
    let bundle = directory.path().join("right.tar.zst");
    fs::write(&bundle, archive([head(), vec![config(), blob()]].concat())).unwrap();
    unbundle(["verify".as_ref(), bundle.as_os_str()]).ok();
}

#[test]
fn invalid_index_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let intact = String::from_utf8(Index::default().to_json()).unwrap();
    let format = r#""dev.airbundle.format":"1.0""#;
    let descriptor = |name: &str, annotations: &str| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":2,"annotations":{{"org.opencontainers.image.ref.name":"{name}"{annotations}}}}}"#,
            Digest::of(b"{}")
        )
    };
    let with =
        |descriptor: &str| intact.replace(r#""manifests":[]"#, &format!(r#""manifests":[{descriptor}]"#));
    for (index, words) in [
        (intact.replace(format, r#""dev.airbundle.format":"2.0""#), "format version `2.0`"),
        (intact.replace(format, r#""dev.airbundle.format":"x""#), "format version `x`"),
        (
            intact.replace(format, &format!(r#"{format},"dev.airbundle.requires":"delta""#)),
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
        assert!(index != intact, "{words}: nothing was replaced");
        let bundle = directory.path().join("refused.tar.zst");
        let layout = file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        fs::write(&bundle, archive(vec![layout, file("index.json", index.as_bytes())])).unwrap();
        for verb in ["ls", "verify"] {
            unbundle([verb.as_ref(), bundle.as_os_str()]).failed(8, &[words]);
        }
    }
}

#[test]
fn frame_that_decodes_beyond_the_buffer_limit_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().join("bomb.tar.zst");
    let mut zstd = zstd::bulk::Compressor::new(3).unwrap();
    zstd.include_checksum(true).unwrap();
    fs::write(&bundle, zstd.compress(&vec![0; 1 << 30]).unwrap()).unwrap();
    unbundle(["ls".as_ref(), bundle.as_os_str()]).failed(8, &["exceeds 4 MiB"]);
}

#[test]
fn false_seek_table_is_damage_and_never_yields_wrong_bytes() {
    let intact = IntactBundle::new(&Content::small());
    let start = intact.bytes.len() - 9 - 8 * 3;
    // Swaps the first two entries, so that the sums stay correct.
    let mut bytes = intact.bytes.clone();
    let (a, b) = (bytes[start..start + 8].to_vec(), bytes[start + 8..start + 16].to_vec());
    bytes[start..start + 8].copy_from_slice(&b);
    bytes[start + 8..start + 16].copy_from_slice(&a);
    assert_ne!(bytes, intact.bytes);
    let bundle = intact.changed(&bytes);
    let finished = unbundle(["verify".as_ref(), bundle.as_os_str()]);
    assert_eq!(finished.code, Some(7), "{finished:#?}");
    let site = intact.path("lied");
    let _ = unpack_to(&bundle, &site);
    assert_visible_files_intact(&intact, &site);
}
