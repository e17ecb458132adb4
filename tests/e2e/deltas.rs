//! Deltas: an inventory of a site, a bundle without what the site has, the complete site, and pruning.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use airbundle::bundle::read::reader::{BundleReader, Contents};
use airbundle::signature::policy::Policy;
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::pack_job::{FILES, PackJob, REGISTRY};
use crate::program::{Finished, airbundle, unbundle};
use crate::serve::SharedDirectory;
use crate::support::clients;
use crate::support::fake::{Content, Fake, Gate};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process::run;
use crate::support::registry::Registry;
use crate::support::tree::{Tree, stamps};
use crate::support::upstream::{Upstream, UpstreamFile, UpstreamImage};
use crate::support::web::Web;
use crate::support::{Bytes, random_bytes, sha256};

const STORAGE: &str = "registry/docker/registry/v2";

/// Two successive releases, each with its own upstream, because tags move.
struct World {
    old: Release,
    new: Release,
    _directory: SharedDirectory,
}

struct Release {
    upstream: Upstream,
    lists: PathBuf,
    /// The full bundle.
    bundle: PathBuf,
    lock: PathBuf,
}

impl Release {
    fn new(directory: &Path, images: Vec<UpstreamImage>, files: Vec<UpstreamFile>) -> Self {
        let upstream = Upstream::start(directory, images, files);
        let lists = upstream.write_lists(&directory.join("lists"));
        let [bundle, lock] = ["full.tar.zst", "full.lock.json"].map(|name| directory.join(name));
        let release = Self { upstream, lists, bundle, lock };
        release.pack(&release.bundle, &["--write-lock", &text(&release.lock)]).ok();
        release
    }

    fn pack(&self, output: &Path, options: &[&str]) -> Finished {
        let mut args = vec!["pack".to_owned(), text(&self.lists), "-o".to_owned(), text(output)];
        args.extend(self.upstream.mirror_args());
        args.extend(options.iter().map(|option| (*option).to_owned()));
        airbundle(args)
    }

    /// Returns the served blobs by digest, without manifests.
    fn blobs(&self) -> BTreeMap<String, Bytes> {
        let images = self.upstream.images().iter().flat_map(|entry| entry.image.parts());
        let files = self.upstream.files().iter().map(|file| (sha256(&file.bytes), Bytes::clone(&file.bytes)));
        images.chain(files).collect()
    }

    /// Returns the digests of blobs and the URLs of files that were requested with GET so far.
    fn fetched(&self) -> Vec<String> {
        let of_registry = self.upstream.registry.requests().into_iter().filter(|request| {
            request.method == "GET" && request.path.contains("/blobs/") && request.status < 300
        });
        let of_registry = of_registry.map(|request| request.path.rsplit('/').next().unwrap().to_owned());
        // A request for the first byte is a probe.
        let of_web = self.upstream.web.requests().into_iter();
        let of_web = of_web.filter(|request| request.range.as_deref() != Some("bytes=0-0"));
        let of_web = of_web.map(|request| format!("https:/{}", request.path));
        of_registry.chain(of_web).collect()
    }

    /// Asserts that nginx and a registry serve the entire release from `site`, byte for byte.
    #[track_caller]
    fn assert_served(&self, site: &Path) {
        let registry = Registry::serve(&site.join("registry"));
        for entry in self.upstream.images() {
            registry.assert_serves(&format!("k8s/{}", entry.name()), entry.tag(), &entry.image);
        }
        let web = Web::start(&site.join("files"));
        for file in self.upstream.files() {
            let found = clients::curl([web.url(&format!("k8s/{}", file.path()))]);
            assert_eq!(sha256(&found), sha256(&file.bytes), "{}", file.url);
        }
    }
}

fn image(layers: &[&Layer]) -> Image {
    Image::new(Format::Oci, "linux/amd64", &layers.iter().copied().cloned().collect::<Vec<_>>())
}

fn note(text: &str) -> Layer {
    Layer::files(&[("etc/motd", text.as_bytes())], Compression::Gzip)
}

fn base() -> Layer {
    Layer::random(1, 5 << 20, Compression::None)
}

fn shell() -> Layer {
    Layer::random(2, 300_000, Compression::None)
}

fn tool() -> UpstreamImage {
    let platform = |name: &str| Image::new(Format::Docker, name, &[note(name), shell()]);
    let children = ["linux/amd64", "linux/arm64"].map(platform).to_vec();
    UpstreamImage::new("registry.k8s.io/tool:1", Image::index(Format::Docker, children))
}

fn file(url: &str, seed: u64, size: usize) -> UpstreamFile {
    UpstreamFile::new(url, random_bytes(seed, size))
}

fn old_release(directory: &Path) -> Release {
    Release::new(
        directory,
        vec![
            UpstreamImage::new("quay.io/team/app:1", image(&[&base(), &note("one")])),
            UpstreamImage::new("quay.io/team/app:stable", image(&[&base(), &note("one")])),
            UpstreamImage::new("quay.io/team/gone:1", image(&[&shell(), &note("gone")])),
            tool(),
        ],
        vec![
            file("https://dl.k8s.io/v1/kubelet", 10, 3_000_000),
            file("https://dl.k8s.io/same", 11, 40_000),
            file("https://dl.k8s.io/old/gone", 12, 50_000),
            file("https://dl.k8s.io/unpinned-same", 13, 60_000).not_pinned(),
            file("https://dl.k8s.io/empty", 14, 0),
        ],
    )
}

fn new_release(directory: &Path) -> Release {
    Release::new(
        directory,
        vec![
            UpstreamImage::new("quay.io/team/app:2", image(&[&base(), &note("two")])),
            UpstreamImage::new("quay.io/team/app:stable", image(&[&base(), &note("two")])),
            UpstreamImage::new("quay.io/team/other:1", Image::artifact("application/x.y", &[("f", b"f")])),
            tool(),
        ],
        vec![
            // The same bytes at another path, a layer as a file, and two unpinned files that equal known
            // blobs.
            file("https://dl.k8s.io/v2/kubelet", 10, 3_000_000),
            UpstreamFile::new("https://dl.k8s.io/layer", shell().bytes),
            file("https://dl.k8s.io/same", 11, 40_000),
            file("https://dl.k8s.io/unpinned-same", 13, 60_000).not_pinned(),
            file("https://dl.k8s.io/unpinned-kubelet", 10, 3_000_000).not_pinned(),
            file("https://dl.k8s.io/fresh", 15, 70_000),
            file("https://dl.k8s.io/empty", 14, 0),
        ],
    )
}

/// Returns the shared [`World`].
fn world() -> &'static World {
    static WORLD: LazyLock<World> = LazyLock::new(|| {
        let directory = SharedDirectory::new();
        let (old, new) = (old_release(&directory.path.join("old")), new_release(&directory.path.join("new")));
        World { old, new, _directory: directory }
    });
    &WORLD
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

fn directory() -> TempDir {
    tempdir().expect("create a temporary directory")
}

/// A site with the old release.
fn old_site(directory: &TempDir) -> PathBuf {
    let site = directory.path().join("site");
    unpack(&world().old.bundle, &site).ok();
    site
}

fn unpack(bundle: &Path, site: &Path) -> Finished {
    unbundle(["unpack".as_ref(), bundle.as_os_str(), site.as_os_str()])
}

fn inventory(site: &Path, output: &Path, options: &[&str]) -> Finished {
    let paths = ["inventory", &text(site), "-o", &text(output)].map(str::to_owned);
    unbundle(paths.into_iter().chain(options.iter().map(|option| (*option).to_owned())))
}

/// The delta from the old release to the new one.
fn delta(directory: &TempDir) -> PathBuf {
    let path = directory.path().join("delta.tar.zst");
    world().new.pack(&path, &["--base", &text(&world().old.lock)]).ok();
    path
}

fn contents(bundle: &Path) -> Contents {
    BundleReader::open(bundle, &Policy::none())
        .and_then(|mut reader| reader.contents())
        .expect("an intact bundle")
}

fn data(digest: &str) -> PathBuf {
    let hex = &digest["sha256:".len()..];
    Path::new(STORAGE).join("blobs/sha256").join(&hex[..2]).join(hex).join("data")
}

/// Returns what both releases have in common, except unpinned files.
fn shared() -> BTreeSet<String> {
    let World { old, new, .. } = world();
    let old = old.blobs();
    let unpinned: BTreeSet<String> = new
        .upstream
        .files()
        .iter()
        .filter(|file| file.checksum.is_none())
        .map(|file| sha256(&file.bytes))
        .collect();
    let pinned = sha256(&random_bytes(10, 3_000_000));
    new.blobs()
        .into_keys()
        .filter(|digest| old.contains_key(digest) && (!unpinned.contains(digest) || *digest == pinned))
        .collect()
}

#[test]
fn delta_carries_only_what_the_site_lacks_and_yields_the_full_site() {
    let World { old, .. } = world();
    let directory = directory();
    // A separate upstream, so that its request log has only this test's requests.
    let new = new_release(&directory.path().join("upstream"));
    let site = old_site(&directory);
    let [found, delta, lock] =
        ["site.json", "delta.tar.zst", "delta.lock.json"].map(|name| directory.path().join(name));
    inventory(&site, &found, &[]).ok();
    let before = new.fetched();
    let packed =
        new.pack(&delta, &["--base", &text(&found), "--write-lock", &text(&lock), "--json"]).ok().json();

    // Shared blobs were not requested.
    let mut fetched = new.fetched();
    for name in before {
        let at = fetched.iter().position(|other| *other == name).expect("a log does not shrink");
        fetched.swap_remove(at);
    }
    let old_blobs = old.blobs();
    let pinned_files: BTreeSet<&str> = new
        .upstream
        .files()
        .iter()
        .filter(|file| file.checksum.is_some() && old_blobs.contains_key(&sha256(&file.bytes)))
        .map(|file| file.url.as_str())
        .collect();
    assert!(!fetched.is_empty());
    for name in &fetched {
        assert!(!old_blobs.contains_key(name) && !pinned_files.contains(name.as_str()), "{name} was fetched");
    }
    // Shared blobs are omitted, and the layout marks them as external.
    let layout = contents(&delta).layout;
    let elsewhere: BTreeSet<String> = layout.external.iter().map(|blob| blob.digest.to_string()).collect();
    assert_eq!(elsewhere, shared());
    assert!(layout.blobs.iter().all(|blob| !elsewhere.contains(&blob.digest.to_string())));
    assert_eq!(packed["blobsLeftOut"], elsewhere.len());
    let bytes: usize = elsewhere.iter().map(|digest| old_blobs[digest].len()).sum();
    assert_eq!(packed["bytesLeftOut"], bytes);
    assert_eq!(packed["blobs"], layout.manifests.len() + layout.blobs.len());
    let [full_size, delta_size] = [&new.bundle, &delta].map(|path| fs::metadata(path).unwrap().len());
    assert!(delta_size * 10 < full_size, "{delta_size} and {full_size}");
    // The lock is that of the full bundle.
    assert_eq!(fs::read_to_string(&lock).unwrap(), fs::read_to_string(&new.lock).unwrap());
    let diff = airbundle(["diff".as_ref(), new.bundle.as_os_str(), delta.as_os_str()]).ok();
    assert_eq!(diff.stdout, "no difference\n");

    let twin = directory.path().join("twin");
    unpack(&old.bundle, &twin).ok();
    unpack(&new.bundle, &twin).ok();
    unpack(&delta, &site).ok();
    new.assert_served(&site);
    let parts = ["files", "registry"];
    for part in parts {
        let difference = Tree::of(&twin.join(part)).difference(&Tree::of(&site.join(part)));
        assert!(difference.is_empty(), "{difference:#?}");
    }
    let again = unpack(&delta, &site).ok();
    assert!(again.stdout.contains("nothing to do"), "{again:#?}");
    // Copies, because hard links would share one owner and mode.
    let paths = ["v1/kubelet", "v2/kubelet"].map(|name| site.join("files/k8s/dl.k8s.io").join(name));
    let inodes = paths.map(|path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap()));
    assert_ne!(inodes[0], inodes[1]);
}

#[test]
fn inventory_lock_and_bundle_are_equivalent_bases() {
    let World { old, new, .. } = world();
    let directory = directory();
    let found = directory.path().join("site.json");
    inventory(&old_site(&directory), &found, &[]).ok();
    let delta = fs::read(delta(&directory)).unwrap();
    let path = directory.path().join("other.tar.zst");
    for base in [&found, &old.bundle] {
        new.pack(&path, &["--base", &text(base)]).ok();
        assert!(fs::read(&path).unwrap() == delta, "{}", base.display());
    }
    // A delta is a base for everything it names: a site that unpacked it has all of it.
    let chained = directory.path().join("chained.tar.zst");
    fs::write(&path, &delta).unwrap();
    let result = new.pack(&chained, &["--base", &text(&path)]).ok();
    assert!(result.stdout.contains("delta: "), "{result:#?}");
    let layout = contents(&chained).layout;
    assert!(layout.external.len() > contents(&path).layout.external.len());

    // A base that shares nothing yields the full bundle, byte for byte.
    let empty = directory.path().join("empty.json");
    fs::write(&empty, r#"{"airbundleInventory": 1, "blobs": {}, "files": {}}"#).unwrap();
    let result = new.pack(&path, &["--base", &text(&empty)]).ok();
    assert!(result.stdout.contains("not a delta: "), "{result:#?}");
    assert!(fs::read(&path).unwrap() == fs::read(&new.bundle).unwrap());
    // Both kinds of base together.
    let result =
        new.pack(&path, &["--base", &text(&old.lock), "--reuse", &text(&new.bundle), "--json"]).ok().json();
    assert!(fs::read(&path).unwrap() == delta);
    assert!(result["bytesReused"].as_u64().unwrap() > 70_000, "{result}");
}

#[test]
fn unreadable_base_is_named_before_anything_is_fetched() {
    let directory = directory();
    let output = directory.path().join("out.tar.zst");
    let base = directory.path().join("base");
    for (content, code, words) in [
        (r#"{"airbundleInventory": 7}"#, 8, "inventory version 7"),
        (r#"{"airbundleLock": 7}"#, 8, "version 7"),
        (r#"{"airbundleInventory": 1, "blobs": {"x": 1}, "files": {}}"#, 3, "not a valid inventory"),
        ("quay.io/team/app:1\n", 8, "not an airbundle bundle"),
    ] {
        fs::write(&base, content).unwrap();
        let finished = world().new.pack(&output, &["--base", &text(&base)]);
        assert!(!finished.stderr.contains("resolving"), "{finished:#?}");
        finished.failed(code, &[&text(&base), "as base", words]);
    }
    world().new.pack(&output, &["--base", "/nonexistent"]).failed(6, &["/nonexistent"]);
    assert!(!output.exists());
}

#[test]
fn delta_onto_an_empty_site_lists_missing_blobs_and_creates_nothing() {
    let directory = directory();
    let delta = delta(&directory);
    let site = directory.path().join("site");
    let finished = unbundle(["unpack", &text(&delta), &text(&site), "--json"]);
    assert!(!site.exists());
    let missing = finished.json()["missing"].as_array().expect("a list").clone();
    let digests: BTreeSet<String> =
        missing.iter().map(|blob| blob["digest"].as_str().unwrap().to_owned()).collect();
    assert_eq!(digests, shared());
    for blob in &missing {
        let bytes = &world().old.blobs()[blob["digest"].as_str().unwrap()];
        assert_eq!(blob["size"], bytes.len());
        assert_eq!(blob["damaged"], false);
        assert!(!blob["owners"].as_array().unwrap().is_empty(), "{blob}");
    }
    let finished = finished.failed(16, &["site", "lacks", "nothing was changed", "unbundle inventory"]);
    let shell = sha256(&shell().bytes);
    finished.failed(16, &["missing: ", &shell, "registry.k8s.io/tool:1", "dl.k8s.io/layer"]);
}

#[test]
fn corrupt_or_missing_base_blobs_are_named_before_anything_is_written() {
    let directory = directory();
    let (site, delta) = (old_site(&directory), delta(&directory));
    let base = base();
    let (digest, blob) = (sha256(&base.bytes), site.join(data(&sha256(&base.bytes))));
    let mut rotten = base.bytes.to_vec();
    rotten[1_000_000] ^= 1;
    for (bytes, state) in [(Some(&rotten[..]), "damaged"), (Some(&rotten[1..]), "missing"), (None, "missing")]
    {
        match bytes {
            Some(bytes) => fs::write(&blob, bytes).unwrap(),
            None => fs::remove_file(&blob).unwrap(),
        }
        let before = [stamps(&site.join("files")), stamps(&site.join("registry"))];
        let record = fs::read(site.join("site.json")).unwrap();
        let finished = unpack(&delta, &site).failed(16, &["lacks", &digest]);
        finished.failed(16, &[state, &digest, "quay.io/team/app:2", "quay.io/team/app:stable"]);
        assert_eq!([stamps(&site.join("files")), stamps(&site.join("registry"))], before);
        assert_eq!(fs::read(site.join("site.json")).unwrap(), record);
        // An inventory lists only intact blobs: a delta against it completes the site.
        let found = directory.path().join("found.json");
        let result = inventory(&site, &found, &["--check"]).ok();
        assert_eq!(result.stderr.contains(&text(&blob)), bytes.is_some(), "{result:#?}");
        let found = fs::read_to_string(&found).unwrap();
        assert!(!found.contains(&digest));
    }
    let found = directory.path().join("found.json");
    let repairing = directory.path().join("repairing.tar.zst");
    world().new.pack(&repairing, &["--base", &text(&found)]).ok();
    unpack(&repairing, &site).ok();
    world().new.assert_served(&site);
}

#[test]
fn delta_with_keep_going_unpacks_what_is_complete_and_names_the_rest() {
    let base = base();
    let digest = sha256(&base.bytes);
    let mut rotten = base.bytes.to_vec();
    rotten[1_000_000] ^= 1;
    // The blob is corrupt, or missing.
    for (bytes, problem) in [(Some(&rotten[..]), "corrupt on the site"), (None, "the site lacks")] {
        let directory = directory();
        let (site, delta) = (old_site(&directory), delta(&directory));
        let blob = site.join(data(&digest));
        match bytes {
            Some(bytes) => fs::write(&blob, bytes).unwrap(),
            None => fs::remove_file(&blob).unwrap(),
        }
        let repositories = site.join(STORAGE).join("repositories/k8s");
        let tag = |name: &str| fs::read(repositories.join(name).join("current/link")).ok();
        let (stable, new) = ("quay.io/team/app/_manifests/tags/stable", "quay.io/team/app/_manifests/tags/2");
        let before = tag(stable);
        let finished = unpack(&delta, &site).failed(16, &["nothing was changed"]);
        finished.failed(16, &["use `--keep-going` to unpack everything that is intact"]);
        let finished = unbundle(["unpack", "--keep-going", "--json", &text(&delta), &text(&site)]);
        let summary = finished.json();
        finished
            .failed(16, &["cannot unpack `quay.io/team/app:2`, `quay.io/team/app:stable`", "lacks content"]);
        let omitted = summary["leftOut"].as_array().unwrap();
        let names: Vec<_> = omitted.iter().map(|item| item["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["quay.io/team/app:2", "quay.io/team/app:stable"]);
        for item in omitted {
            assert!(item["problem"].as_str().unwrap().contains(problem), "{summary}");
        }
        assert_eq!(summary["missing"][0]["digest"], digest);
        assert_eq!(summary["missing"].as_array().unwrap().len(), 1);
        // No image is half-visible: the tag that moved has its old image.
        assert!(before.is_some() && tag(stable) == before);
        assert!(!repositories.join(new).exists());
        let record = fs::read_to_string(site.join("site.json")).unwrap();
        assert!(!record.contains("team/app:2") && record.contains("\"partial\": true"), "{record}");
        // Everything else is complete.
        assert!(tag("quay.io/team/other/_manifests/tags/1").is_some());
        for file in world().new.upstream.files() {
            let path = site.join("files/k8s").join(file.url.trim_start_matches("https://"));
            assert!(fs::read(&path).unwrap() == file.bytes[..], "{}", path.display());
        }
        // The site is completed when it has the blob again.
        fs::write(&blob, &base.bytes).unwrap();
        unpack(&delta, &site).ok();
        world().new.assert_served(&site);
    }
}

#[test]
fn delta_with_keep_going_changes_nothing_if_nothing_is_complete() {
    let directory = directory();
    let delta = delta(&directory);
    let site = directory.path().join("site");
    let only = ["--only", "quay.io/team/app:2"];
    let [bundle, target] = [text(&delta), text(&site)];
    let arguments = [&["unpack", "--keep-going", &bundle, &target][..], &only].concat();
    let finished = unbundle(arguments).failed(16, &["lacks", "nothing was changed"]);
    finished.failed(16, &["missing: ", "needed by `quay.io/team/app:2`"]);
    assert!(!site.exists());
}

#[test]
fn corrupt_base_blob_is_restored_from_another_copy_on_the_site() {
    let directory = directory();
    let (site, delta) = (old_site(&directory), delta(&directory));
    // The layer is also a file of the new release; only the record names the path at which it was unpacked.
    let layer = shell().bytes;
    let digest = sha256(&layer);
    fs::write(site.join(data(&digest)), random_bytes(99, layer.len())).unwrap();
    unpack(&delta, &site).failed(16, &[&digest]);
    let copy = site.join("files/k8s/dl.k8s.io/layer");
    fs::write(&copy, &layer).unwrap();
    unpack(&delta, &site).ok();
    world().new.assert_served(&site);
}

#[test]
fn external_files_and_storage_directories_must_be_named_by_options() {
    let directory = directory();
    let [site, files, registry] = ["site", "files", "registry"].map(|name| directory.path().join(name));
    let [found, plain] = ["found.json", "plain.json"].map(|name| directory.path().join(name));
    let args = [
        "unpack",
        &text(&world().old.bundle),
        &text(&site),
        "--files",
        &text(&files),
        "--registry",
        &text(&registry),
    ];
    unbundle(args).ok();
    let roots = ["--files", &text(&files), "--registry", &text(&registry)];
    // The record alone must not lead out of the site.
    inventory(&site, &found, &["--check"]).failed(7, &["site.json", "`filesRoot`", "add `--files "]);
    inventory(&site, &found, &["--check", roots[0], roots[1], roots[2], roots[3]]).ok();
    let other = tempdir().unwrap();
    inventory(&old_site(&other), &plain, &[]).ok();
    assert_eq!(fs::read_to_string(&found).unwrap(), fs::read_to_string(&plain).unwrap());
    let delta = delta(&directory);
    unpack(&delta, &site).failed(7, &["site.json", "`filesRoot`", "add `--files "]);
    assert!(!site.join("files").exists() && !site.join("registry").exists());
    unbundle([&["unpack", &text(&delta), &text(&site)][..], &roots].concat()).ok();
    let moved = directory.path().join("moved");
    fs::create_dir(&moved).unwrap();
    fs::rename(&files, moved.join("files")).unwrap();
    fs::rename(&registry, moved.join("registry")).unwrap();
    world().new.assert_served(&moved);
}

#[test]
fn inventory_lists_exactly_what_the_site_has() {
    let directory = directory();
    let site = old_site(&directory);
    let stdout = unbundle(["inventory", &text(&site)]).ok().stdout;
    let path = directory.path().join("found.json");
    let result = inventory(&site, &path, &["--check", "--json"]).ok().json();
    assert_eq!(fs::read_to_string(&path).unwrap(), stdout);
    let document: Value = serde_json::from_str(&stdout).unwrap();
    let sizes = |name: &str| -> BTreeMap<String, u64> {
        serde_json::from_value(document[name].clone()).expect("digests and sizes")
    };
    let upstream = &world().old.upstream;
    let blobs = upstream.images().iter().flat_map(|entry| entry.image.blobs());
    let blobs: BTreeMap<_, _> = blobs.map(|(digest, bytes)| (digest, bytes.len() as u64)).collect();
    assert_eq!(sizes("blobs"), blobs);
    let files = upstream.files().iter().map(|file| (sha256(&file.bytes), file.bytes.len() as u64));
    assert_eq!(sizes("files"), files.collect());
    assert_eq!((&result["blobs"], &result["files"]), (&blobs.len().into(), &upstream.files().len().into()));
    assert!(stdout.len() < 100 * (blobs.len() + upstream.files().len()) + 200, "{stdout}");

    // The record of the site itself is never overwritten.
    inventory(&site, &site.join("site.json"), &[]).failed(2, &["the record of the site"]);
    inventory(&directory.path().join("nothing"), &path, &[]).failed(6, &["is not a site"]);
    // Anything but a regular file of the expected size counts as missing.
    let same = site.join("files/k8s/dl.k8s.io/same");
    fs::rename(&same, directory.path().join("moved")).unwrap();
    std::os::unix::fs::symlink(directory.path().join("moved"), &same).unwrap();
    fs::write(site.join("files/k8s/dl.k8s.io/v1/kubelet"), "short").unwrap();
    let result = unbundle(["inventory", &text(&site)]).ok();
    for (name, seed, size) in [("same", 11, 40_000), ("v1/kubelet", 10, 3_000_000)] {
        assert!(!result.stdout.contains(&sha256(&random_bytes(seed, size))), "{name}");
        assert!(result.stderr.contains(name), "{result:#?}");
    }
}

#[test]
fn ls_verify_and_image_support_deltas() {
    let directory = directory();
    let delta = text(&delta(&directory));
    let layout = contents(Path::new(&delta)).layout;
    let result = unbundle(["ls", &delta]).ok();
    let held = format!("delta: contains {} blobs", layout.manifests.len() + layout.blobs.len());
    assert!(result.stdout.contains(&held), "{result:#?}");
    let listed = unbundle(["ls", &delta, "--json"]).ok().json();
    assert_eq!(listed["elsewhere"].as_array().unwrap().len(), shared().len());
    let whole = unbundle(["ls", &text(&world().new.bundle), "--json"]).ok().json();
    assert_eq!(listed["files"], whole["files"]);
    let sizes = |listed: &Value| -> Vec<Value> {
        listed["images"].as_array().unwrap().iter().map(|image| image["size"].clone()).collect()
    };
    assert_eq!(sizes(&listed), sizes(&whole));
    assert!(whole["elsewhere"].is_null());
    let result = unbundle(["verify", &delta]).ok();
    assert!(result.stdout.contains("intact: ") && result.stdout.contains("delta: "), "{result:#?}");
    let result = unbundle(["verify", &delta, "--json"]).ok().json();
    assert_eq!(result["leftOut"]["blobs"], shared().len());
    let output = text(&directory.path().join("image.tar"));
    airbundle(["image", &delta, "--kind", "files", "-o", &output])
        .failed(16, &["is a delta", "quay.io/team/app:2", "full bundle"]);
    assert!(!Path::new(&output).exists());
}

/// Prunes with `--json` and these options.
fn prune(site: &Path, keep: &[&Path], options: &[&str]) -> Finished {
    let mut args = vec!["prune".to_owned(), text(site), "--json".to_owned()];
    args.extend(keep.iter().flat_map(|bundle| ["--keep".to_owned(), text(bundle)]));
    args.extend(options.iter().map(|option| (*option).to_owned()));
    unbundle(args)
}

/// A site with the old release and the new one on top of it.
fn site_with_both_releases(directory: &TempDir) -> PathBuf {
    let site = old_site(directory);
    unpack(&world().new.bundle, &site).ok();
    site
}

/// Returns what unpacking this bundle into an empty directory yields.
fn fresh(bundle: &Path) -> (Tree, String) {
    let directory = directory();
    let site = directory.path().join("site");
    unpack(bundle, &site).ok();
    served(&site)
}

/// Returns what servers see of a site, and its record.
fn served(site: &Path) -> (Tree, String) {
    let mut all = BTreeMap::new();
    for part in ["files", "registry"] {
        let tree = Tree::of(&site.join(part)).0.into_iter();
        all.extend(tree.map(|(path, entry)| (Path::new(part).join(path), entry)));
    }
    (Tree(all), fs::read_to_string(site.join("site.json")).expect("a record"))
}

#[track_caller]
fn assert_like(site: &Path, expected: &(Tree, String), what: &str) {
    let (tree, record) = served(site);
    let difference = tree.difference(&expected.0);
    assert!(difference.is_empty(), "{what}: {difference:#?}");
    assert_eq!(record, expected.1, "{what}");
    let left: Vec<_> =
        fs::read_dir(site.join(".unbundle")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"], "{what}");
}

#[test]
fn prune_removes_everything_no_kept_bundle_names_without_a_trace() {
    let World { old, new, .. } = world();
    let directory = directory();
    let site = site_with_both_releases(&directory);
    let before = [stamps(&site.join("files")), stamps(&site.join("registry"))];
    let record = fs::read(site.join("site.json")).unwrap();
    let result = prune(&site, &[&new.bundle], &[]).ok().json();
    assert_eq!([stamps(&site.join("files")), stamps(&site.join("registry"))], before);
    assert_eq!(fs::read(site.join("site.json")).unwrap(), record);
    assert_eq!(result["removed"], false);
    let names = |name: &str| -> BTreeSet<String> { serde_json::from_value(result[name].clone()).unwrap() };
    assert_eq!(names("images"), ["app:1", "gone:1"].map(|name| format!("k8s/quay.io/team/{name}")).into());
    assert_eq!(names("files"), ["old/gone", "v1/kubelet"].map(|name| format!("k8s/dl.k8s.io/{name}")).into());
    // The manifest, config and unshared layer of `app:1`, which `app:stable` pointed to as well, and of
    // `gone:1`.
    assert_eq!((&result["blobs"], &result["fileBytes"]), (&6.into(), &3_050_000.into()));
    let printed = unbundle(["prune", &text(&site), "--keep", &text(&new.bundle)]).ok().stdout;
    assert!(printed.contains("would remove image k8s/quay.io/team/gone:1\n"), "{printed}");
    assert!(printed.contains("would remove 2 images with 6 blobs") && printed.contains("--yes"), "{printed}");
    // It needs no permission to write.
    let mounted = directory.path().join("read-only");
    fs::create_dir(&mounted).unwrap();
    run(Command::new("mount").arg("--bind").arg(&site).arg(&mounted));
    run(Command::new("mount").args(["-o", "remount,ro,bind"]).arg(&mounted));
    let dry = unbundle(["prune", &text(&mounted), "--keep", &text(&new.bundle)]);
    let removed = unbundle(["prune", &text(&mounted), "--keep", &text(&new.bundle), "--yes"]);
    run(Command::new("umount").arg(&mounted));
    assert!(dry.ok().stdout.contains("would remove 2 images with 6 blobs"));
    removed.failed(6, &["Read-only file system"]);

    let [used, free] = [&result, &prune(&site, &[&new.bundle], &["--yes"]).ok().json()].map(|result| {
        ["images", "files", "links", "blobs", "bytes", "fileBytes"].map(|name| result[name].clone())
    });
    assert_eq!(used, free, "what was told before is what has gone");
    assert_like(&site, &fresh(&new.bundle), "pruned");
    new.assert_served(&site);
    let result = unbundle(["prune", &text(&site), "--keep", &text(&new.bundle), "--yes"]).ok();
    assert!(result.stdout.contains("nothing to remove"), "{result:#?}");
    // A delta names everything that the full bundle names. Pruned blobs return with their bundle.
    let delta = delta(&directory);
    unpack(&old.bundle, &site).ok();
    prune(&site, &[&delta], &["--yes"]).failed(16, &["app:stable` differs", "nothing was removed"]);
    unpack(&delta, &site).ok();
    prune(&site, &[&delta], &["--yes"]).ok();
    let registry = Registry::serve(&site.join("registry"));
    assert!(registry.manifest("k8s/quay.io/team/gone", "1").is_none());
    drop(registry);
    new.assert_served(&site);
}

#[test]
fn prune_refuses_to_keep_what_the_site_does_not_have() {
    let World { old, new, .. } = world();
    let directory = directory();
    let site = site_with_both_releases(&directory);
    let before = served(&site);
    // `app:stable` has moved.
    prune(&site, &[&old.bundle], &["--yes"]).failed(16, &["quay.io/team/app:stable", "nothing was removed"]);
    let only_old = tempdir().unwrap();
    let only_old = old_site(&only_old);
    prune(&only_old, &[&new.bundle], &["--yes"]).failed(16, &["is missing", "app:2"]);
    let broken = directory.path().join("broken.tar.zst");
    fs::write(&broken, &fs::read(&new.bundle).unwrap()[..2000]).unwrap();
    let finished = prune(&site, &[&new.bundle, &broken], &["--yes"]);
    assert_ne!(finished.code, Some(0));
    assert!(finished.stderr.contains("broken.tar.zst") && finished.stderr.contains("nothing was removed"));
    // With both kept, the new bundle has the tag and the old image remains under its digest.
    let result = prune(&site, &[&old.bundle, &new.bundle], &["--yes"]).ok().json();
    assert_eq!(
        (&result["images"], &result["files"], &result["blobs"]),
        (&[0; 0][..].into(), &[0; 0][..].into(), &0.into())
    );
    assert_eq!(served(&site), before);

    let blob = site.join(data(&sha256(&note("two").bytes)));
    fs::rename(&blob, directory.path().join("aside")).unwrap();
    prune(&site, &[&new.bundle], &["--yes"]).failed(16, &[&sha256(&note("two").bytes), "unpack that again"]);
    fs::rename(directory.path().join("aside"), &blob).unwrap();
    let odd = site.join(STORAGE).join("repositories/odd");
    std::os::unix::fs::symlink("/nonexistent", &odd).unwrap();
    prune(&site, &[&new.bundle], &["--yes"]).failed(6, &["repositories/odd", "nothing was removed"]);
    fs::remove_file(&odd).unwrap();
    let odd = site.join(STORAGE).join("repositories/o\nd");
    fs::create_dir_all(odd.join("_layers")).unwrap();
    prune(&site, &[&new.bundle], &["--yes"]).failed(6, &["repositories/o\\nd", "nothing was removed"]);
    fs::remove_dir_all(&odd).unwrap();
    let lock = fs::File::open(site.join(".unbundle/lock")).unwrap();
    lock.lock().unwrap();
    prune(&site, &[&new.bundle], &["--yes"]).failed(9, &["another `unbundle`"]);
    drop(lock);
    assert_eq!(served(&site), before);
    prune(&directory.path().join("none"), &[&new.bundle], &["--yes"]).failed(6, &["is not a site"]);
    assert!(!directory.path().join("none").exists());
}

#[test]
fn prune_keeps_images_pushed_by_others_with_all_they_need() {
    let World { new, .. } = world();
    let directory = directory();
    let site = site_with_both_releases(&directory);
    let mine = image(&[&note("gone"), &note("mine")]);
    let registry = Registry::start(&site.join("registry"));
    // Into other repositories and into ours, with layers that would be pruned; under a new tag and over one
    // of ours.
    registry.push("mine/app", "1", &mine);
    registry.push("k8s/quay.io/team/app", "mine", &mine);
    let gone = image(&[&shell(), &note("gone")]);
    let (from, to) = ("k8s/quay.io/team/gone:1", "mine/copy:2");
    let address = |name: &str| format!("docker://{}/{name}", registry.addr());
    let options = ["--src-tls-verify=false", "--dest-tls-verify=false", "--preserve-digests"];
    clients::skopeo([&["copy", "--quiet"], &options[..], &[&address(from), &address(to)]].concat());
    let over = image(&[&note("over")]);
    registry.push("k8s/quay.io/team/app", "1", &over);

    let result = prune(&site, &[&new.bundle], &["--yes"]).ok();
    assert!(result.stdout.contains("app:1` does not match the record"), "{result:#?}");
    registry.assert_serves("mine/app", "1", &mine);
    registry.assert_serves("mine/copy", "2", &gone);
    registry.assert_serves("k8s/quay.io/team/app", "mine", &mine);
    registry.assert_serves("k8s/quay.io/team/app", "1", &over);
    assert!(registry.manifest("k8s/quay.io/team/gone", "1").is_none());
    let one = image(&[&base(), &note("one")]);
    assert!(registry.manifest("k8s/quay.io/team/app", &one.root.digest).is_none());
    assert!(!site.join(data(&sha256(&note("one").bytes))).exists());
    new.assert_served(&site);
    // No unreferenced blob remains, and no referenced one is missing.
    assert_eq!(registry.garbage_collect(&["--dry-run"]), [""; 0]);
    // The record no longer names the image that was ours.
    assert_eq!(prune(&site, &[&new.bundle], &["--yes"]).ok().json()["blobs"], 0);
    registry.assert_serves("mine/copy", "2", &gone);
}

#[test]
fn pulls_succeed_during_a_prune() {
    let World { new, .. } = world();
    for _ in 0..4 {
        let directory = directory();
        let site = site_with_both_releases(&directory);
        let storage = site.join("registry");
        let registries = [Registry::serve(&storage), Registry::serve_with_cache(&storage)];
        let web = Web::start(&site.join("files"));
        let (done, pulls) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            let (done, pulls, web) = (&done, &pulls, &web);
            for registry in &registries {
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        for entry in new.upstream.images() {
                            registry.assert_serves(
                                &format!("k8s/{}", entry.name()),
                                entry.tag(),
                                &entry.image,
                            );
                            pulls.fetch_add(1, Ordering::Relaxed);
                        }
                        // An image that is being pruned has its complete manifest or none.
                        let gone = image(&[&shell(), &note("gone")]);
                        if let Some((_, manifest)) = registry.manifest("k8s/quay.io/team/gone", "1") {
                            assert_eq!(sha256(&manifest), gone.root.digest);
                        }
                    }
                });
            }
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    for file in new.upstream.files() {
                        let found = clients::curl([web.url(&format!("k8s/{}", file.path()))]);
                        assert_eq!(sha256(&found), sha256(&file.bytes), "{}", file.url);
                        pulls.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            // Stops the other threads even if an assertion fails.
            let _end = StopOnDrop(done);
            let pull = || {
                let (start, before) = (Instant::now(), pulls.load(Ordering::Relaxed));
                while pulls.load(Ordering::Relaxed) < before + 30 && start.elapsed() < Duration::from_secs(60)
                {
                    thread::sleep(Duration::from_millis(5));
                }
            };
            pull();
            assert_eq!(prune(&site, &[&new.bundle], &["--yes"]).ok().json()["blobs"], 6);
            pull();
        });
        for registry in &registries {
            assert!(!registry.log().contains("err.code=unknown"), "{}", registry.log());
        }
    }
}

#[test]
fn killed_delta_unpack_loses_nothing_even_if_names_were_swapped() {
    // A blob at one path is needed at the other path only, and a new file replaces the only copy of one that
    // was renamed.
    let release = |directory: &Path, seeds: [(&str, u64); 4], text: &str| {
        let files = seeds.map(|(name, seed)| file(&format!("https://dl.k8s.io/{name}"), seed, 200_000));
        let image = UpstreamImage::new("quay.io/team/app:1", image(&[&shell(), &note(text)]));
        Release::new(directory, vec![image], files.into())
    };
    let directory = directory();
    let old = release(&directory.path().join("old"), [("a", 1), ("b", 2), ("c", 3), ("d", 4)], "one");
    let new = release(&directory.path().join("new"), [("a", 2), ("b", 1), ("c", 5), ("e", 3)], "two");
    let [delta, pristine, site, found] =
        ["delta.tar.zst", "pristine", "site", "inventory.json"].map(|name| directory.path().join(name));
    unpack(&old.bundle, &pristine).ok();
    inventory(&pristine, &found, &[]).ok();
    new.pack(&delta, &["--base", &text(&found)]).ok();
    assert_eq!(contents(&delta).layout.external.len(), 4, "three files and a layer");
    let twin = directory.path().join("twin");
    unpack(&old.bundle, &twin).ok();
    unpack(&new.bundle, &twin).ok();
    let expected = served(&twin).0;
    let mut killed = 0;
    for (call, step) in
        [("write", 3), ("openat2", 5), ("syncfs", 1), ("fsync", 1), ("renameat", 1), ("unlinkat", 1)]
    {
        for nth in (1..).step_by(step) {
            run(Command::new("rm").arg("-rf").arg(&site));
            run(Command::new("cp").arg("-a").arg(&pristine).arg(&site));
            let output = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"])
                .arg(format!("inject={call}:signal=SIGKILL:when={nth}"))
                .arg(env!("CARGO_BIN_EXE_unbundle"))
                .args(["unpack", &text(&delta), &text(&site), "-q"])
                .output()
                .expect("start strace");
            if !output.status.success() {
                killed += 1;
                unpack(&delta, &site).ok();
            }
            let difference = served(&site).0.difference(&expected);
            assert!(difference.is_empty(), "killed at {call} {nth}: {difference:#?}");
            if output.status.success() {
                break;
            }
        }
    }
    assert!(killed > 20, "{killed}");
}

#[test]
fn prune_restores_a_blob_that_becomes_needed_meanwhile() {
    let World { new, .. } = world();
    let directory = directory();
    let site = site_with_both_releases(&directory);
    let layer = note("gone");
    let digest = sha256(&layer.bytes);
    // The first blob that is moved aside stays there for some seconds.
    let child = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat", "-e"])
        .arg("inject=renameat:delay_exit=4000000:when=1")
        .arg(env!("CARGO_BIN_EXE_unbundle"))
        .args(["prune", &text(&site), "--keep", &text(&new.bundle), "--yes", "-q"])
        .spawn();
    let mut child = child.expect("start strace");
    let is_aside = || {
        let mut names = fs::read_dir(site.join(".unbundle")).unwrap().map(|entry| entry.unwrap().file_name());
        names.any(|name| name.to_string_lossy().starts_with("pruned."))
    };
    let start = Instant::now();
    while !is_aside() {
        assert!(
            start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(),
            "nothing is aside"
        );
        thread::sleep(Duration::from_millis(10));
    }
    // As a registry does at the end of an upload of an existing blob.
    let link =
        site.join(STORAGE).join("repositories/mine/app/_layers/sha256").join(&digest["sha256:".len()..]);
    fs::create_dir_all(&link).unwrap();
    fs::write(link.join("link"), &digest).unwrap();
    assert!(child.wait().unwrap().success());
    let registry = Registry::serve(&site.join("registry"));
    assert_eq!(registry.blob("mine/app", &digest).map(|found| sha256(&found)), Some(digest));
    // The other blobs were removed.
    assert!(!site.join(data(&sha256(&note("one").bytes))).exists());
    let left: Vec<_> =
        fs::read_dir(site.join(".unbundle")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}

#[test]
fn delta_is_signed_like_any_bundle() {
    let directory = directory();
    let [site, key, delta] = ["site", "test.key", "delta.tar.zst"].map(|name| directory.path().join(name));
    unpack(&world().old.bundle, &site).ok();
    let before = served(&site);
    airbundle(["keygen", "--no-passphrase", "-o", &text(&key)]).ok();
    let public = text(&key.with_extension("pub"));
    let base = text(&world().old.lock);
    let unpack = || unbundle(["unpack", &text(&delta), &text(&site), "--trusted-key", &public]);
    world().new.pack(&delta, &["--base", &base]).ok();
    unpack().failed(14, &["not signed"]);
    assert_eq!(served(&site), before);
    world().new.pack(&delta, &["--base", &base, "--sign", &text(&key)]).ok();
    unpack().ok();
    world().new.assert_served(&site);
}

#[test]
fn prune_keeps_the_selection_that_was_unpacked_of_a_bundle() {
    let World { old, new, .. } = world();
    let directory = directory();
    let site = directory.path().join("site");
    let delta = delta(&directory);
    let only = |bundle: &Path, names: &[&str]| {
        let mut args = vec!["unpack".to_owned(), text(bundle), text(&site)];
        args.extend(names.iter().flat_map(|name| ["--only".to_owned(), (*name).to_owned()]));
        unbundle(args)
    };
    only(&old.bundle, &["**/gone:1", "**/kubelet", "**/tool:1"]).ok();
    // A delta needs only what belongs to the selection from the site.
    only(&delta, &["**/app:2"]).failed(16, &["quay.io/team/app:2"]);
    only(&delta, &["**/other:1", "**/v2/kubelet", "**/tool:1"]).ok();
    let result = prune(&site, &[&delta], &["--yes"]).ok().json();
    assert_eq!(result["images"], serde_json::json!(["k8s/quay.io/team/gone:1"]));
    assert_eq!(result["files"], serde_json::json!(["k8s/dl.k8s.io/v1/kubelet"]));
    let registry = Registry::serve(&site.join("registry"));
    registry.assert_serves("k8s/registry.k8s.io/tool", "1", &tool().image);
    let other = new.upstream.image("quay.io/team/other:1");
    registry.assert_serves("k8s/quay.io/team/other", "1", other);
    assert!(registry.manifest("k8s/quay.io/team/gone", "1").is_none());
    let kubelet = fs::read(site.join("files/k8s/dl.k8s.io/v2/kubelet")).unwrap();
    assert_eq!(sha256(&kubelet), sha256(&random_bytes(10, 3_000_000)));
}

/// Stops the threads when dropped, even if a test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn killed_prune_removes_nothing_that_is_kept_and_is_finished_by_a_rerun() {
    let World { new, .. } = world();
    let directory = directory();
    let pristine = site_with_both_releases(&directory);
    let expected = fresh(&new.bundle);
    let site = directory.path().join("pruned");
    let mut killed = 0;
    // strace counts calls per thread and name.
    for call in ["unlink", "unlinkat", "rmdir", "rename", "renameat", "renameat2", "syncfs"] {
        for nth in 1.. {
            run(Command::new("rm").arg("-rf").arg(&site));
            run(Command::new("cp").arg("-a").arg(&pristine).arg(&site));
            let output = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"])
                .arg(format!("inject={call}:signal=SIGKILL:when={nth}"))
                .arg(env!("CARGO_BIN_EXE_unbundle"))
                .args(["prune", &text(&site), "--keep", &text(&new.bundle), "--yes", "-q"])
                .output()
                .expect("start strace");
            // Everything kept is present, byte for byte.
            let (tree, _) = served(&site);
            for (path, entry) in &expected.0.0 {
                assert_eq!(tree.0.get(path), Some(entry), "{call} {nth}: {}", path.display());
            }
            if output.status.success() {
                break;
            }
            killed += 1;
            prune(&site, &[&new.bundle], &["--yes"]).ok();
            assert_like(&site, &expected, &format!("killed at {call} {nth}"));
        }
    }
    assert!(killed > 40, "{killed}");
}

#[test]
fn prune_removes_platforms_that_no_bundle_names_from_a_kept_image() {
    let World { new, .. } = world();
    let directory = directory();
    let site = directory.path().join("site");
    unpack(&new.bundle, &site).ok();
    let keep = directory.path().join("amd64.tar.zst");
    new.pack(&keep, &["--platform", "linux/amd64"]).ok();
    let result = prune(&site, &[&keep], &["--yes"]).ok().json();
    assert_eq!((&result["images"], &result["blobs"]), (&[0; 0][..].into(), &3.into()));
    let (tree, record) = served(&site);
    let (expected, fresh_record) = fresh(&keep);
    assert!(tree.difference(&expected).is_empty(), "{:#?}", tree.difference(&expected));
    let images = |text: &str| serde_json::from_str::<Value>(text).unwrap()["images"].clone();
    assert_eq!(images(&record), images(&fresh_record));
}

#[test]
fn prune_keeps_what_lists_and_locks_name() {
    let World { new, .. } = world();
    let (fresh, fresh_record) = fresh(&new.bundle);
    let parse = |record: &str| serde_json::from_str::<Value>(record).unwrap();
    let fresh_record = parse(&fresh_record);
    for keep in [&new.lists, &new.lock] {
        let directory = directory();
        let site = site_with_both_releases(&directory);
        let result = prune(&site, &[keep], &["--yes"]).ok().json();
        assert_eq!(result["blobs"], 6, "{keep:?}");
        let (tree, record) = served(&site);
        assert!(tree.difference(&fresh).is_empty(), "{keep:?}: {:#?}", tree.difference(&fresh));
        let record = parse(&record);
        assert_eq!((&record["images"], &record["files"]), (&fresh_record["images"], &fresh_record["files"]));
        // The old release has images that both have: it remains, as unpacked in part.
        let partial: Vec<_> =
            record["bundles"].as_array().unwrap().iter().map(|bundle| &bundle["partial"]).collect();
        assert_eq!(partial, [&Value::Bool(true), &Value::Null], "{keep:?}");
        new.assert_served(&site);
        let again = unbundle(["prune", &text(&site), "--keep", &text(keep), "--yes"]).ok();
        assert!(again.stdout.contains("nothing to remove"), "{again:#?}");
        prune(&site, &[&new.bundle], &["--yes"]).ok();
        assert_eq!(parse(&served(&site).1), fresh_record);
    }
}

#[test]
fn prune_keeps_the_platforms_of_a_lock_and_every_platform_of_a_list() {
    let World { new, .. } = world();
    let directory = directory();
    let site = directory.path().join("site");
    unpack(&new.bundle, &site).ok();
    let before = served(&site);
    prune(&site, &[&new.lists], &["--yes"]).ok();
    assert_eq!(served(&site), before);
    let bundle = directory.path().join("amd64.tar.zst");
    let lock = directory.path().join("amd64.lock.json");
    new.pack(&bundle, &["--platform", "linux/amd64", "--write-lock", &text(&lock)]).ok();
    let result = prune(&site, &[&lock], &["--yes"]).ok().json();
    assert_eq!((&result["images"], &result["blobs"]), (&[0; 0][..].into(), &3.into()));
    let (tree, expected) = (served(&site).0, fresh(&bundle).0);
    assert!(tree.difference(&expected).is_empty(), "{:#?}", tree.difference(&expected));
    let list = directory.path().join("arm64.list");
    fs::write(&list, "registry.k8s.io/tool:1 platform=linux/arm64\n").unwrap();
    prune(&site, &[&list], &["--yes"])
        .failed(16, &["`registry.k8s.io/tool:1` has no linux/arm64", "nothing was removed"]);
}

#[test]
fn prune_removes_nothing_for_documents_that_do_not_match_the_site() {
    let World { old, new, .. } = world();
    let directory = directory();
    let site = directory.path().join("site");
    unpack(&new.bundle, &site).ok();
    let before = served(&site);
    let write = |name: &str, content: &str| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let lock = |change: &dyn Fn(&mut Value)| {
        let mut lock = serde_json::from_slice(&fs::read(&new.lock).unwrap()).unwrap();
        change(&mut lock);
        write("changed.json", &lock.to_string())
    };
    let locked = |lock: &Value, reference: &str| {
        let images = lock["images"].as_array().unwrap();
        images.iter().position(|image| image["reference"] == reference).unwrap()
    };
    let refused = |keep: &Path, code, parts: &[&str]| {
        for options in [&[][..], &["--yes"]] {
            prune(&site, &[&new.bundle, keep], options).failed(code, parts);
            prune(&site, &[keep], options).failed(code, parts);
        }
        assert_eq!(served(&site), before);
    };
    refused(&old.lock, 16, &["`k8s/dl.k8s.io/old/gone` is missing", "`quay.io/team/app:1` is missing"]);
    refused(&old.lists, 16, &["`quay.io/team/gone:1` is missing"]);
    refused(&write("empty.list", "# nothing\n"), 3, &["empty"]);
    refused(&write("empty", ""), 3, &["empty"]);
    refused(&write("bad.list", "https://dl.k8s.io/a b c\n"), 3, &["bad.list:1"]);
    refused(&directory.path().join("missing.list"), 6, &["missing.list"]);
    refused(
        &lock(&|lock| (lock["files"], lock["images"]) = (Value::Array(vec![]), Value::Array(vec![]))),
        3,
        &["names no file and no image"],
    );
    refused(
        &write("inventory.json", r#"{"airbundleInventory": 1, "blobs": {}, "files": {}}"#),
        3,
        &["inventory.json", "not a valid lock"],
    );
    let tool = "registry.k8s.io/tool:1";
    let without_children = lock(&|lock| {
        let index = locked(lock, tool);
        lock["images"][index]["manifests"].as_array_mut().unwrap().truncate(1);
    });
    refused(
        &without_children,
        16,
        &["names the index of `registry.k8s.io/tool:1`, and none of its manifests"],
    );
    let moved = lock(&|lock| {
        let index = locked(lock, "quay.io/team/app:2");
        let other = sha256(b"other");
        lock["images"][index]["digest"] = other.clone().into();
        lock["images"][index]["manifests"][0]["digest"] = other.into();
    });
    refused(&moved, 16, &["`quay.io/team/app:2` differs"]);
}

/// Blobs of all kinds and a base with half of them, one of which equals an unpinned file.
fn half_in_base() -> (String, Content, String) {
    let (mut list, mut content, mut base) = (String::new(), Content::default(), BTreeMap::new());
    for number in 0..4 {
        let large = Layer::random(number, 6_000_000, Compression::None);
        if number % 2 == 0 {
            base.insert(sha256(&large.bytes), large.bytes.len());
        }
        let image = image(&[&large, &note(&number.to_string())]);
        let reference = format!("{REGISTRY}/team/app{number}:1");
        content.image(&reference, &image);
        list = format!("{list}{reference}\n");
    }
    for number in 0..8_usize {
        // The last two repeat the first two.
        let bytes = random_bytes(1000 + number as u64 % 6, [5_000_000, 70_000, 900_000][number % 3]);
        let url = format!("https://{FILES}/{number}");
        if number < 6 {
            list = format!("{list}{url} {}\n", sha256(&bytes));
        } else {
            list = format!("{list}{url}\n");
        }
        if number < 3 {
            base.insert(sha256(&bytes), bytes.len());
        }
        content.file(&url, bytes);
    }
    let base = serde_json::json!({"airbundleInventory": 1, "blobs": base, "files": {}});
    (list, content, base.to_string())
}

#[test]
fn killed_delta_pack_resumes_to_the_same_bytes() {
    const POINTS: usize = 12;
    let (list, content, base) = half_in_base();
    let prepare = || {
        let job = PackJob::new(&list);
        let base = job.write("base.json", &base);
        (job, base)
    };
    let gate = Arc::new(Gate::default());
    gate.open(usize::MAX / 2);
    let fake = Fake::behind(&gate, content.clone());
    let (uninterrupted, base) = prepare();
    let finished = uninterrupted.pack_from(&fake, &["--base", &base, "--json"]).ok();
    let expected = uninterrupted.bundle();
    let all: usize = gate.transfers().iter().map(|transfer| transfer.sent).sum();
    let result = finished.json();
    assert_eq!(result["blobsLeftOut"], 5, "{result}");
    // Unpinned files must be fetched to learn that the base has them.
    let layout = contents(&uninterrupted.output()).layout;
    let omitted: u64 = layout.external.iter().map(|blob| blob.size).sum();
    assert_eq!(result["bytesLeftOut"], omitted);
    for point in 0..POINTS {
        let gate = Arc::new(Gate::default());
        let fake = Fake::behind(&gate, content.clone());
        let (job, base) = prepare();
        // A partial of a run without `--base` does not start a delta, but its blobs are reused.
        let options: &[&str] = if point % 4 == 3 { &[] } else { &["--base", &base] };
        gate.open(all * point / POINTS);
        let mut child = job.start_from(&fake, options);
        thread::sleep(Duration::from_millis(200));
        gate.settle();
        child.kill().unwrap();
        child.wait().unwrap();
        gate.open(usize::MAX / 2);
        job.pack_from(&fake, &["--base", &base]).ok();
        assert!(job.bundle() == expected, "killed at {point} of {POINTS}");
    }
}

#[test]
fn blobs_in_the_base_need_not_be_upstream_and_other_missing_blobs_are_reported() {
    let (list, mut content, base) = half_in_base();
    let job = PackJob::new(&list);
    let base = job.write("base.json", &base);
    // Upstream lacks one layer that the site has and one that it does not have.
    let [had, lacking] = [2, 3].map(|number| Layer::random(number, 6_000_000, Compression::None));
    for (number, layer) in [(2, &had), (3, &lacking)] {
        let digest = sha256(&layer.bytes);
        content.blob(&format!("{REGISTRY}/team/app{number}"), &digest, Vec::new());
    }
    let fake = Fake::honest(content);
    job.pack_from(&fake, &["--base", &base, "--keep-going"]).failed(5, &["app3:1"]);
    let finished = job.pack_from(&fake, &["--base", &base, "--allow-missing"]).failed(5, &["app3:1"]);
    assert!(!finished.stderr.contains("app2:1"), "{finished:#?}");
    let layout = contents(&job.output()).layout;
    let names: Vec<_> = layout.images.iter().map(|image| image.indexed.reference.to_string()).collect();
    assert_eq!(names, [0, 1, 2].map(|number| format!("{REGISTRY}/team/app{number}:1")));
    assert!(layout.external.iter().any(|blob| blob.digest.to_string() == sha256(&had.bytes)));
}
