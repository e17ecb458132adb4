//! Bundles that are damaged, cut, hostile, or none: each is refused with a clear error, and never a wrong byte or
//! anything outside the site.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use airbundle::bundle::frame;
use airbundle::bundle::index::{EMPTY_CONFIG, FileSet, Index, IndexedFile, IndexedImage};
use airbundle::bundle::layout::{Walk, blob_name, tar_header};
use airbundle::bundle::seek_table::{self, Entry};
use airbundle::bundle::writer::{BundleWriter, Claim, Head, head_room};
use airbundle::bundle::{FRAME_SIZE, reader::BundleReader};
use airbundle::digest::Digest;
use airbundle::event::Silent;
use airbundle::reference::RepositoryTemplate;
use airbundle::unpack;
use airbundle::verify::verify;
use tar::EntryType as Kind;
use tempfile::TempDir;

use crate::program::{unbundle, unbundle_from};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::random_bytes;
use crate::support::tree::Tree;

/// What goes into a bundle, made without a network.
struct Content<'a> {
    images: Vec<(&'static str, Image)>,
    files: Vec<(&'a str, Vec<u8>)>,
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

    /// Three images with layers of several frames, and two files, one of them large.
    fn large() -> Self {
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

    fn write(&self, target: &Path) {
        self.write_with_room(target, 0);
    }

    /// Keeps `more` bytes of room for the head than are needed.
    fn write_with_room(&self, target: &Path, more: u64) {
        let mut blobs: HashMap<Digest, Vec<u8>> = HashMap::new();
        blobs.insert(Digest::of(EMPTY_CONFIG), EMPTY_CONFIG.to_vec());
        let mut index = Index::default();
        for (reference, image) in &self.images {
            blobs.extend(
                image.parts().iter().map(|(digest, bytes)| (digest.parse().unwrap(), bytes.to_vec())),
            );
            let manifests = image.manifests();
            blobs.extend(manifests.iter().map(|(_, bytes)| (Digest::of(bytes), bytes.to_vec())));
            let (root, bytes) = &manifests[0];
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

        let mut walk = Walk::new(index).unwrap();
        while let Some(wanted) = walk.next_manifest().unwrap() {
            walk.supply(&blobs[&wanted.blob.digest]).unwrap();
        }
        let layout = walk.finish(json.len() as u64);
        let room = head_room(json.len(), Some(files.len())) + more;
        let mut writer = BundleWriter::begin_bundle(Claim::new(target).unwrap(), room, 3).unwrap();
        for (number, blob) in layout.manifests[1..].iter().chain(&layout.blobs).enumerate() {
            if number + 1 == layout.manifests.len() {
                writer.end_manifests().unwrap();
            }
            writer.begin(Some((blob.digest, blob.size)));
            writer.write(&blobs[&blob.digest]).unwrap();
            writer.end(blob.digest).unwrap();
        }
        writer.finish(&Head { index: json, files: Some(files), signature: None }).unwrap();
    }
}

/// A bundle of `content`, and the site that it makes.
struct Sound {
    folder: TempDir,
    bundle: PathBuf,
    bytes: Vec<u8>,
    site: Tree,
}

impl Sound {
    fn new(content: &Content<'_>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("sound.tar.zst");
        content.write(&bundle);
        let site = folder.path().join("site");
        unpack_to(&bundle, &site).expect("a sound bundle unpacks");
        Self { bytes: fs::read(&bundle).unwrap(), bundle, site: Tree::of(&site), folder }
    }

    /// A copy with other bytes.
    fn changed(&self, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join("changed.tar.zst");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A changed bundle is either said to be damaged, or unpacks to the very same site.
    fn is_detected_or_harmless(&self, bytes: &[u8], what: &str) {
        let bundle = self.changed(bytes);
        let sound = BundleReader::open(&bundle)
            .and_then(|reader| verify(reader, &Silent))
            .is_ok_and(|verdict| verdict.damage.is_empty());
        if sound {
            self.unpacks_right(&bundle, what);
        }
    }

    fn unpacks_right(&self, bundle: &Path, what: &str) {
        let site = self.path("other");
        unpack_to(bundle, &site)
            .unwrap_or_else(|error| panic!("{what}: verify finds nothing, and unpack {error}"));
        assert_eq!(Tree::of(&site).difference(&self.site), Vec::<String>::new(), "{what}");
        fs::remove_dir_all(site).unwrap();
    }
}

fn unpack_to(bundle: &Path, site: &Path) -> Result<unpack::Summary, unpack::UnpackError> {
    let templates = vec![RepositoryTemplate::default()];
    let options = unpack::Options { site: site.to_owned(), files: None, registry: None, templates };
    unpack::unpack(BundleReader::open(bundle)?, &options, &Silent)
}

/// Every visible file is one that the sound site has, with the same bytes.
fn nothing_wrong_is_visible(sound: &Sound, site: &Path) {
    if !site.exists() {
        return;
    }
    for (path, entry) in &Tree::of(site).0 {
        let staging =
            path.starts_with(".unbundle") || path.to_string_lossy().contains("unbundle-in-progress");
        if !staging {
            assert_eq!(Some(entry), sound.site.0.get(path), "{}", path.display());
        }
    }
}

#[test]
fn one_flipped_bit_in_any_byte_is_detected_or_harmless() {
    let sound = Sound::new(&Content::small());
    for (number, _) in sound.bytes.iter().enumerate() {
        let mut bytes = sound.bytes.clone();
        bytes[number] ^= 1 << (number % 8);
        sound.is_detected_or_harmless(&bytes, &format!("bit {} of byte {number}", number % 8));
    }
}

#[test]
#[ignore = "a campaign of some minutes: every bit"]
fn every_flipped_bit_is_detected_or_harmless() {
    let sound = Sound::new(&Content::small());
    for bit in 0..sound.bytes.len() * 8 {
        let mut bytes = sound.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        sound.is_detected_or_harmless(&bytes, &format!("bit {bit}"));
    }
}

#[test]
fn every_truncation_is_detected() {
    let sound = Sound::new(&Content::small());
    for len in (0..sound.bytes.len()).step_by(3) {
        let bundle = sound.changed(&sound.bytes[..len]);
        let verdict = BundleReader::open(&bundle).and_then(|reader| verify(reader, &Silent));
        assert!(verdict.is_err() || verdict.is_ok_and(|verdict| !verdict.damage.is_empty()), "{len}");
        let site = sound.path("cut");
        if unpack_to(&bundle, &site).is_ok() {
            // All blobs were there, and only the tail was not.
            assert_eq!(Tree::of(&site).difference(&sound.site), Vec::<String>::new(), "{len}");
        } else {
            nothing_wrong_is_visible(&sound, &site);
        }
        let _ = fs::remove_dir_all(site);
    }
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
    let offset = json["damage"][0]["offsets"][0].as_u64().unwrap();
    assert!(offset <= place as u64 && place as u64 - offset < 2 * FRAME_SIZE as u64, "{offset} for {place}");

    let site = sound.path("hit");
    let finished = unbundle(["unpack".as_ref(), bundle.as_os_str(), site.as_os_str()]);
    finished.failed(7, &["damaged", "`quay.io/a/two:v1`", "damage at byte"]);
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
fn flip_in(bundle: &mut [u8], content: &[u8]) {
    let middle = content.len() / 2;
    let needle = &content[middle..middle + 64];
    let place = bundle.windows(64).position(|window| window == needle).expect("it is stored as it is");
    bundle[place] ^= 0x10;
}

fn largest(image: &Image) -> Vec<u8> {
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
    finished.failed(7, &["damaged in `quay.io/a/one:v1`, `dl.k8s.io/kubectl`:", "damage at byte"]);
    nothing_wrong_is_visible(&sound, &site);
    let repair = unbundle(["unpack".as_ref(), "--json".as_ref(), sound.bundle.as_os_str(), site.as_os_str()]);
    let summary = repair.ok().json();
    assert_eq!(summary["written"], 2, "{summary}");
    assert_eq!(Tree::of(&site).difference(&sound.site), Vec::<String>::new());
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
    let table = seek_table::read(&mut std::io::Cursor::new(&sound.bytes)).unwrap().unwrap();
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
    let folder = tempfile::tempdir().unwrap();
    let (bundle, site) = (folder.path().join("copies.tar.zst"), folder.path().join("site"));
    let names: Vec<String> = (0..300).map(|number| format!("dl.k8s.io/{number}")).collect();
    let files = names.iter().map(|name| (&**name, b"the same".to_vec())).collect();
    Content { images: vec![], files }.write(&bundle);
    let mut limited = std::process::Command::new("sh");
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
    let table = seek_table::read(&mut std::io::Cursor::new(&sound.bytes)).unwrap().unwrap();
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
    let table = seek_table::read(&mut std::io::Cursor::new(&sound.bytes)).unwrap().unwrap();
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
            assert!(verdict.damage.iter().all(|damage| damage.offsets == [begin as u64].into()), "{what}");
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
    let finished = unbundle(["verify".as_ref(), bundle.as_os_str()]).failed(7, &["objects are damaged"]);
    assert!(finished.stdout.contains("needed by dl.k8s.io/kubectl"), "{finished:#?}");
}

#[test]
fn what_is_no_bundle_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
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
        ("plain.tar.zst", zstd::bulk::compress(&tar, 3).unwrap(), 8, "zstd frame that has no checksum"),
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
    unbundle(["ls".as_ref(), empty.as_os_str()]).failed(8, &["there is no bundle in"]);
    unbundle(["ls".as_ref(), folder.path().as_os_str()])
        .failed(2, &["there are several bundles", "oci.tar.zst"]);
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
        table.push(Entry { compressed: size(&frame), decompressed: size(content) });
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
    let folder = tempfile::tempdir().unwrap();
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
        ("symbolic link", with_middle(special("blobs", Kind::Symlink, "/etc")), "the symbolic link `blobs`"),
        ("hard link", with_middle(special("x", Kind::Link, "/etc/passwd")), "the hard link `x`"),
        ("device", with_middle(special("sda", Kind::Block, "")), "the device `sda`"),
        ("character device", with_middle(special("null", Kind::Char, "")), "the device `null`"),
        ("fifo", with_middle(special("pipe", Kind::Fifo, "")), "the FIFO `pipe`"),
        ("folder", with_middle(special("blobs/", Kind::Directory, "")), "the folder `blobs/`"),
        ("pax", with_middle(pax()), "a PAX header"),
        ("gnu long name", with_middle(special("././@LongLink", Kind::GNULongName, "")), "a GNU long name"),
        ("not utf-8", with_middle(not_utf8), "\\u{1b}"),
        ("over-long", with_middle(named(&"n".repeat(100))), "nnnn"),
        ("duplicate", [head(), vec![config(), config(), blob()]].concat(), "the file `blobs/sha256/44136fa"),
        ("missing", [head(), vec![blob()]].concat(), "the file `blobs/sha256/"),
        ("swapped", [head(), vec![blob(), config()]].concat(), "the file `blobs/sha256/"),
        ("absent", [head(), vec![config()]].concat(), "its end"),
        (
            "huge index",
            vec![
                file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
                (huge.as_bytes().to_vec(), vec![]),
            ],
            "where `index.json` belongs",
        ),
        (
            "two indexes",
            [head(), vec![file("index.json", &index.to_json()), config(), blob()]].concat(),
            "the file `index.json`",
        ),
    ];
    for (name, entries, found) in cases {
        let bundle = folder.path().join("hostile.tar.zst");
        fs::write(&bundle, archive(entries)).unwrap();
        let site = folder.path().join("site");
        let finished = unbundle(["unpack".as_ref(), bundle.as_os_str(), site.as_os_str()]);
        finished
            .failed(7, &["belongs, the archive has", found.trim_start_matches("where `index.json` belongs")]);
        let made =
            if site.exists() { Tree::of(&site).files().map(Path::to_owned).collect() } else { Vec::new() };
        let right = [Path::new(".unbundle/lock"), Path::new("files/k8s/dl.k8s.io/kubelet")];
        assert!(made.iter().all(|path| right.contains(&path.as_path())), "{name}: {made:?}");
        assert!(!Path::new("/tmp/escaped").exists() && !folder.path().join("tmp").exists(), "{name}");
        let verdict = unbundle(["verify".as_ref(), bundle.as_os_str()]);
        assert_eq!(verdict.code, Some(7), "{name}: {verdict:#?}");
        if site.exists() {
            fs::remove_dir_all(site).unwrap();
        }
    }
    // The same entries in their order are a bundle.
    let bundle = folder.path().join("right.tar.zst");
    fs::write(&bundle, archive([head(), vec![config(), blob()]].concat())).unwrap();
    unbundle(["verify".as_ref(), bundle.as_os_str()]).ok();
}

#[test]
fn an_index_that_no_reader_may_accept_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
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
        (sound.replace(format, &format!(r#"{format},"dev.airbundle.requires":"delta""#)), "needs `delta`"),
        (
            with(&descriptor("quay.io/a:1", r#","dev.airbundle.encoding":"recompress""#)),
            "encoding `recompress`",
        ),
        (with(&descriptor("../../a:1", "")), "../../a:1"),
        (
            with(&descriptor("quay.io/a:1", "").replace("\"size\":2", "\"size\":99999999")),
            "a manifest of too many bytes",
        ),
        (with(&format!("{0},{0}", descriptor("quay.io/a:1", ""))), "stands here twice"),
    ] {
        assert!(index != sound, "{words}: nothing was replaced");
        let bundle = folder.path().join("refused.tar.zst");
        let layout = file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        fs::write(&bundle, archive(vec![layout, file("index.json", index.as_bytes())])).unwrap();
        for verb in ["ls", "verify"] {
            unbundle([verb.as_ref(), bundle.as_os_str()]).failed(8, &[words]);
        }
    }
}

#[test]
fn a_frame_that_would_decode_to_more_than_a_reader_holds_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bomb.tar.zst");
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
