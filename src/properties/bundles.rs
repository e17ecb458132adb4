//! Bundles: a site has what was packed, whatever the form of the bundle and the way to this state.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::base::event::Silent;
use crate::bundle::format::index::{EMPTY_CONFIG, FileSet, Index, IndexedFile, IndexedImage};
use crate::bundle::format::manifest_walk::ManifestWalk;
use crate::bundle::read::reader::BundleReader;
use crate::bundle::read::select::Selection;
use crate::bundle::write::claim::Claim;
use crate::bundle::write::head::{BundleHead, header_space};
use crate::bundle::write::volume_writer::VolumeOptions;
use crate::bundle::write::writer::{BundleWriter, WriteOptions};
use crate::commands::prune::listed::Listed;
use crate::commands::prune::prune;
use crate::commands::unpack::options::UnpackOptions;
use crate::commands::unpack::unpack;
use crate::commands::verify::verify;
use crate::oci::digest::Digest;
use crate::oci::manifest::{OCI_INDEX, OCI_MANIFEST};
use crate::oci::reference::DEFAULT_PREFIX;
use crate::oci::template::RepositoryTemplate;
use crate::properties::values::cases;
use crate::signature::policy::Policy;
use crate::site::storage::blob_path;
use crate::site::verified::SitePolicy;

/// Number of blobs that images and files share.
const POOL: usize = 6;

/// Size of volumes in bytes: more than that of the largest frame and its recovery data.
const VOLUME_SIZE: u64 = 10 << 20;

/// A blob of pseudorandom bytes.
#[derive(Debug, Clone, Copy)]
struct Noise {
    seed: u64,
    len: usize,
}

impl Noise {
    fn bytes(self) -> Vec<u8> {
        let mut state = self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        std::iter::repeat_with(next).flatten().take(self.len).collect()
    }
}

/// The images and files of a bundle: the numbers of their blobs, which can occur in several of them.
#[derive(Debug, Clone)]
struct Content {
    /// The layers of each manifest of each image. `None`: there is no image of this number.
    images: Vec<Option<Vec<Vec<usize>>>>,
    /// The blob of each file. `None`: there is no file of this number.
    files: Vec<Option<usize>>,
}

/// Blobs, few of which have a frame of their own.
fn pool() -> impl Strategy<Value = Vec<Noise>> {
    const FRAME: usize = 4 << 20;
    let len = prop_oneof![
        20 => 0..5_000_usize,
        1 => FRAME - 600..FRAME + 600,
        1 => 2 * FRAME..2 * FRAME + 600,
    ];
    vec((any::<u64>(), len).prop_map(|(seed, len)| Noise { seed, len }), POOL)
}

fn content() -> impl Strategy<Value = Content> {
    let layers = vec(0..POOL, 0..4);
    let images = vec(option::of(vec(layers, 1..4)), 3);
    (images, vec(option::of(0..POOL), 3)).prop_map(|(images, files)| Content { images, files })
}

/// The documents and blobs of a content.
#[derive(Default)]
struct Documents {
    index: Index,
    file_set: Vec<u8>,
    blobs: HashMap<Digest, Vec<u8>>,
    /// The digests of configs, layers and files.
    content: BTreeSet<Digest>,
    /// The digests of the blobs of images.
    of_images: BTreeSet<Digest>,
}

fn path(number: usize) -> String {
    format!("files.example/{number}/x")
}

impl Content {
    fn documents(&self, pool: &[Noise]) -> Documents {
        let mut documents = Documents::default();
        for (number, manifests) in self.images.iter().enumerate() {
            let Some(manifests) = manifests else { continue };
            let mut children = Vec::new();
            for layers in manifests {
                children.push(documents.manifest(layers, pool));
            }
            let root = match &children[..] {
                [child] => child.clone(),
                _ => {
                    documents.part(OCI_INDEX, json!({"schemaVersion": 2, "manifests": children}).to_string())
                }
            };
            documents.index.images.push(IndexedImage {
                reference: format!("registry.example/a/{number}:v1").parse().unwrap(),
                media_type: root["mediaType"].as_str().unwrap().parse().unwrap(),
                digest: root["digest"].as_str().unwrap().parse().unwrap(),
                size: root["size"].as_u64().unwrap(),
                omitted: BTreeSet::new(),
                platforms: Vec::new(),
                is_made: false,
            });
        }
        let mut files = Vec::new();
        for (number, blob) in self.files.iter().enumerate() {
            let Some(blob) = blob else { continue };
            let (digest, size) = documents.keep(pool[*blob].bytes());
            documents.content.insert(digest);
            let url = format!("https://{}", path(number)).parse().unwrap();
            files.push(IndexedFile { path: path(number).parse().unwrap(), url, digest, size });
        }
        documents.file_set = FileSet { files }.to_json();
        let (empty, _) = documents.keep(EMPTY_CONFIG);
        documents.content.insert(empty);
        documents.index.files = Some(documents.keep(documents.file_set.clone()));
        documents
    }

    fn files(&self, pool: &[Noise]) -> BTreeMap<PathBuf, Vec<u8>> {
        let file = |(number, blob): (usize, &Option<usize>)| {
            Some((Path::new(DEFAULT_PREFIX).join(path(number)), pool[(*blob)?].bytes()))
        };
        self.files.iter().enumerate().filter_map(file).collect()
    }
}

impl Documents {
    fn keep(&mut self, bytes: impl Into<Vec<u8>>) -> (Digest, u64) {
        let bytes = bytes.into();
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        self.blobs.insert(digest, bytes);
        (digest, size)
    }

    /// Keeps a blob of an image. Returns its descriptor.
    fn part(&mut self, media_type: &str, bytes: impl Into<Vec<u8>>) -> Value {
        let (digest, size) = self.keep(bytes);
        self.of_images.insert(digest);
        if ![OCI_INDEX, OCI_MANIFEST].contains(&media_type) {
            self.content.insert(digest);
        }
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    /// Keeps a manifest with these layers. Returns its descriptor.
    fn manifest(&mut self, layers: &[usize], pool: &[Noise]) -> Value {
        let config = json!({"os": "linux", "architecture": "amd64", "layers": layers}).to_string();
        let config = self.part("application/vnd.oci.image.config.v1+json", config);
        let mut parts = Vec::new();
        for blob in layers {
            parts.push(self.part("application/vnd.oci.image.layer.v1.tar", pool[*blob].bytes()));
        }
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": parts});
        self.part(OCI_MANIFEST, manifest.to_string())
    }

    /// Writes the bundle, or a delta without the blobs in `base`.
    fn write(&self, target: &Path, volumes: VolumeOptions, base: &BTreeSet<Digest>) {
        let external = base.intersection(&self.content).copied().collect();
        let index = Index { external, ..self.index.clone() };
        let json = index.to_json();
        let mut walk = ManifestWalk::new(index).unwrap();
        while let Some(request) = walk.next_manifest().unwrap() {
            walk.supply(&self.blobs[&request.blob.digest]).unwrap();
        }
        let layout = walk.finish(json.len() as u64).unwrap();
        let header_space = header_space(json.len(), Some(self.file_set.len()));
        let options = WriteOptions { header_space, level: 1, volumes };
        let mut writer = BundleWriter::create(Claim::new(target, &Silent).unwrap(), options).unwrap();
        let write = |writer: &mut BundleWriter, digest| {
            let bytes = &self.blobs[&digest];
            writer.begin_blob(Some((digest, bytes.len() as u64)));
            writer.write(bytes).unwrap();
            writer.end_blob(digest).unwrap();
        };
        // The file set, which is first, is a part of the head.
        layout.manifests[1..].iter().for_each(|blob| write(&mut writer, blob.digest));
        writer.end_manifests().unwrap();
        layout.blobs.iter().for_each(|blob| write(&mut writer, blob.digest));
        let files = Some(self.file_set.clone());
        writer.finish(&BundleHead { index: json, files, signature: None }).unwrap();
    }

    fn write_file(&self, target: &Path) {
        self.write(target, VolumeOptions::single_file(), &BTreeSet::new());
    }
}

fn unpack_into(site: &Path, bundle: &Path) {
    let options = UnpackOptions {
        site: site.to_owned(),
        files: None,
        registry: None,
        templates: vec![RepositoryTemplate::default()],
        select: Selection::default(),
        keep_going: false,
        replace: false,
        allow_older: false,
    };
    unpack(BundleReader::open(bundle, &Policy::none()).unwrap(), &options, &Silent).unwrap();
}

/// The paths and contents of files.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Returns all files below a directory; none if it does not exist.
fn tree(directory: &Path) -> Tree {
    let entries = walkdir::WalkDir::new(directory).into_iter().filter_map(Result::ok);
    let file = |entry: walkdir::DirEntry| {
        (entry.path().strip_prefix(directory).unwrap().to_owned(), fs::read(entry.path()).unwrap())
    };
    entries.filter(|entry| entry.file_type().is_file()).map(file).collect()
}

/// Returns a directory in memory, if there is one, where a sync costs nothing.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Returns the parts of a site that servers read: its files and its registry.
fn served(site: &Path) -> [Tree; 2] {
    ["files", "registry"].map(|root| tree(&site.join(root)))
}

fn assert_same_site(first: &Path, second: &Path) {
    let (first, second) = (served(first), served(second));
    // The names, because a message with megabytes of noise would help no one.
    let names = |site: &[Tree; 2]| site.each_ref().map(|tree| tree.keys().cloned().collect::<Vec<_>>());
    assert_eq!(names(&first), names(&second));
    assert!(first == second, "the same names, but other content");
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn a_site_has_what_was_packed(pool in pool(), content in content()) {
        let directory = directory();
        let (bundle, site) = (directory.path().join("b.tar.zst"), directory.path().join("site"));
        let documents = content.documents(&pool);
        documents.write_file(&bundle);
        let reader = BundleReader::stream(fs::File::open(&bundle).unwrap(), &Policy::none());
        prop_assert_eq!(verify(reader, &Silent).unwrap().worst(), None);
        unpack_into(&site, &bundle);
        let [files, registry] = served(&site);
        prop_assert!(files == content.files(&pool));
        let blobs: BTreeMap<PathBuf, &Vec<u8>> =
            documents.of_images.iter().map(|digest| (PathBuf::from(blob_path(*digest).as_str()), &documents.blobs[digest])).collect();
        let unpacked = registry.iter().filter(|(path, _)| path.ends_with("data"));
        prop_assert!(unpacked.map(|(path, bytes)| (path.clone(), bytes)).eq(blobs));
    }

    #[test]
    fn a_delta_on_its_base_is_the_complete_bundle(pool in pool(), old in content(), new in content()) {
        let directory = directory();
        let at = |name: &str| directory.path().join(name);
        let (old, new) = (old.documents(&pool), new.documents(&pool));
        old.write_file(&at("old.tar.zst"));
        new.write_file(&at("new.tar.zst"));
        new.write(&at("delta.tar.zst"), VolumeOptions::single_file(), &old.content);
        for (site, last) in [("delta", "delta.tar.zst"), ("complete", "new.tar.zst")] {
            unpack_into(&at(site), &at("old.tar.zst"));
            unpack_into(&at(site), &at(last));
        }
        assert_same_site(&at("delta"), &at("complete"));
    }

    #[test]
    fn after_prune_a_site_has_what_the_kept_bundle_has(pool in pool(), old in content(), new in content()) {
        let directory = directory();
        let at = |name: &str| directory.path().join(name);
        old.documents(&pool).write_file(&at("old.tar.zst"));
        new.documents(&pool).write_file(&at("new.tar.zst"));
        for (site, bundle) in [("pruned", "old.tar.zst"), ("pruned", "new.tar.zst"), ("fresh", "new.tar.zst")] {
            unpack_into(&at(site), &at(bundle));
        }
        let kept = BundleReader::open(&at("new.tar.zst"), &Policy::none()).unwrap().contents().unwrap();
        prune(&at("pruned"), &SitePolicy::none(), &[kept], &Listed::default(), true, &Silent).unwrap();
        // A manifest of the kept bundle can keep its link in a repository that had it before.
        let [files, mut registry] = served(&at("pruned"));
        let [fresh_files, fresh_registry] = served(&at("fresh"));
        let is_kept = |path: &Path| {
            let path = path.to_str().unwrap();
            let hex = path.strip_suffix("/link").and_then(|path| path.rsplit('/').next());
            let digest = hex.and_then(|hex| Digest::from_hex(hex).ok());
            let is_kept = digest.is_some_and(|digest| fresh_registry.contains_key(Path::new(blob_path(digest).as_str())));
            is_kept && (path.contains("/_layers/") || path.contains("/_manifests/revisions/"))
        };
        registry.retain(|path, _| fresh_registry.contains_key(path) || !is_kept(path));
        prop_assert!(files == fresh_files);
        let surplus: Vec<_> = registry.keys().filter(|path| !fresh_registry.contains_key(*path)).collect();
        prop_assert!(registry == fresh_registry, "not removed: {:?}", surplus);
    }
}

proptest! {
    #![proptest_config(cases(3))]

    #[test]
    fn volumes_and_their_join_are_the_bundle(
        seeds in vec((any::<u64>(), (3 << 20)..(6_usize << 20)), 3),
        recovery in option::of(20..200_u32),
    ) {
        let pool: Vec<Noise> = seeds.into_iter().map(|(seed, len)| Noise { seed, len }).collect();
        let images = vec![Some(vec![vec![0, 1], vec![1]])];
        let content = Content { images, files: vec![Some(2), None, Some(0)] };
        let directory = directory();
        let at = |name: &str| directory.path().join(name);
        let documents = content.documents(&pool);
        documents.write_file(&at("single.tar.zst"));
        let volumes = VolumeOptions { volume_size: Some(VOLUME_SIZE), recovery, set: Digest::of(b"set") };
        fs::create_dir(at("volumes")).unwrap();
        documents.write(&at("volumes/x.tar.zst"), volumes, &BTreeSet::new());
        let volumes: Vec<Vec<u8>> = (1..)
            .map_while(|number| fs::read(at(&format!("volumes/x.tar.zst.{number:03}"))).ok())
            .collect();
        prop_assert!(volumes.len() > 1 && volumes.iter().all(|volume| volume.len() as u64 <= VOLUME_SIZE));
        fs::write(at("joined.tar.zst"), volumes.concat()).unwrap();
        for bundle in ["single.tar.zst", "volumes", "joined.tar.zst"] {
            let reader = BundleReader::open(&at(bundle), &Policy::none()).unwrap();
            prop_assert_eq!(verify(reader, &Silent).unwrap().worst(), None, "{}", bundle);
            unpack_into(&at(&format!("site-{bundle}")), &at(bundle));
        }
        assert_same_site(&at("site-single.tar.zst"), &at("site-volumes"));
        assert_same_site(&at("site-single.tar.zst"), &at("site-joined.tar.zst"));
    }
}
