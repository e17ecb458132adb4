//! Images built from a bundle: docker runs them and they serve what was packed. Every other client loads the
//! archive, and the same bundle always yields the same archive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use crate::damage::framed;
use crate::program::{Finished, airbundle, airbundle_command};
use crate::serve::{SharedDirectory, directory, unpack};
use crate::support::bases;
use crate::support::clients::{self, Dockerd, Podman};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process;
use crate::support::tree::{Kind, Tree};
use crate::support::upstream::{Upstream, UpstreamFile, UpstreamImage};
use crate::support::{random_bytes, sha256};

const NGINX: &str = "docker.io/library/nginx:1.25.2-alpine";
const REGISTRY: &str = "docker.io/library/registry:2.8.1";

/// A bundle with two base images, and its site. Made once for all tests.
struct Sample {
    upstream: Upstream,
    lists: PathBuf,
    bundle: PathBuf,
    site: PathBuf,
    _directory: SharedDirectory,
}

fn sample() -> &'static Sample {
    static SAMPLE: LazyLock<Sample> = LazyLock::new(|| {
        let shared = SharedDirectory::new();
        let path = |name: &str| shared.path.join(name);
        let upstream = Upstream::start(&path("upstream"), images(), files());
        let lists = upstream.write_lists(&path("lists"));
        let (bundle, site) = (path("all.tar.zst"), path("site"));
        let sample = Sample { upstream, lists, bundle, site, _directory: shared };
        sample.pack(&sample.lists, &sample.bundle);
        unpack(&sample.bundle, &sample.site).ok();
        sample
    });
    &SAMPLE
}

impl Sample {
    fn pack(&self, list: &Path, bundle: &Path) {
        let mut args = vec!["pack".into(), list.to_owned(), "--output".into(), bundle.to_owned()];
        args.extend(self.upstream.mirror_args().into_iter().map(PathBuf::from));
        airbundle(args).ok();
    }
}

fn images() -> Vec<UpstreamImage> {
    let random = |seed: u64, size: usize| Layer::random(seed, size, Compression::Gzip);
    let shared = random(1, 300_000);
    let nginx = bases::nginx(Format::Oci, "linux/amd64");
    let attestation = Image::attestation(&nginx);
    let arm64 = Image::new(Format::Oci, "linux/arm64", &[random(2, 1000)]);
    let pause = ["linux/amd64", "linux/arm64"].map(|platform| {
        Image::new(
            Format::Docker,
            platform,
            &[Layer::files(&[("pause", platform.as_bytes())], Compression::Gzip)],
        )
    });
    let app = |seed: u64| Image::new(Format::Oci, "linux/amd64", &[shared.clone(), random(seed, 900_000)]);
    let large =
        Image::new(Format::Docker, "linux/amd64", &[shared.clone(), random(3, 5 << 20), Layer::empty()]);
    let artifact = Image::artifact("application/example", &[("a", b"a"), ("b", b"{}")]);
    vec![
        UpstreamImage::new(NGINX, Image::index(Format::Oci, vec![nginx, arm64, attestation])),
        UpstreamImage::new(REGISTRY, bases::registry(Format::Docker, "linux/amd64")),
        UpstreamImage::new("registry.k8s.io/pause:3.9", Image::index(Format::Docker, pause.to_vec())),
        UpstreamImage::new("quay.io/a/one:v1", app(4)),
        UpstreamImage::new("quay.io/b/two:v1", app(5)),
        UpstreamImage::new("quay.io/c/three@", app(6)),
        UpstreamImage::new("quay.io/d/large:v1", large),
        UpstreamImage::new("ghcr.io/x/artifact:1", artifact),
    ]
}

fn files() -> Vec<UpstreamFile> {
    let runc = random_bytes(10, 700_000);
    let kubelet = random_bytes(11, 1_500_000);
    let long = format!("https://dl.k8s.io/{}/{}/file", "subdir".repeat(40), "ü".repeat(100));
    // Equals a layer of an image byte for byte: one blob under two names.
    let layer = Layer::random(1, 300_000, Compression::Gzip).bytes;
    vec![
        UpstreamFile::new("https://dl.k8s.io/release/v1.29.5/bin/linux/amd64/kubelet", kubelet.clone()),
        UpstreamFile::new(
            "https://dl.k8s.io/release/v1.29.5/bin/linux/amd64/kubelet.sha256",
            &sha256(&kubelet).as_bytes()[7..],
        ),
        UpstreamFile::new(
            "https://github.com/opencontainers/runc/releases/download/v1/runc.amd64",
            runc.clone(),
        ),
        UpstreamFile::new("https://github.com/containers/crun/releases/download/1/crun", runc),
        UpstreamFile::new("https://github.com/k0s/k0s/releases/download/v1.29.5+k0s.0/k0s.tar.gz", layer),
        UpstreamFile::new("https://get.helm.sh/helm-v3.14.2-linux-amd64.tar.gz", random_bytes(12, 3 << 20)),
        UpstreamFile::new("https://get.helm.sh/empty", Vec::new()),
        UpstreamFile::new("https://get.helm.sh/.hidden", b"hidden".to_vec()),
        UpstreamFile::new(&long, b"a long name".to_vec()),
    ]
}

/// Runs `airbundle image` in `directory` and returns the archive.
fn build(kind: &str, bundle: &Path, directory: &Path, options: &[&str]) -> (PathBuf, Finished) {
    let output = directory.join(format!("{kind}.tar"));
    let mut args = vec!["image".into(), bundle.to_owned(), "--kind".into(), kind.into(), "-o".into()];
    args.push(output.clone());
    args.extend(options.iter().map(PathBuf::from));
    (output, airbundle(args))
}

/// Returns the digest of a file.
fn digest(path: &Path) -> String {
    sha256(&fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display())))
}

/// Returns the entries of a tar archive.
fn entries(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("read a tar").map(|entry| {
        let mut entry = entry.expect("read a tar");
        let name = String::from_utf8(entry.path_bytes().into_owned()).expect("a UTF-8 name");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("read a tar");
        (name, bytes)
    });
    entries.collect()
}

/// A parsed image archive.
struct ParsedArchive {
    config: Value,
    manifest: Value,
    /// The tar archives of the layers on top of the base.
    layers: Vec<Vec<u8>>,
}

impl ParsedArchive {
    /// Reads an archive and asserts that it holds exactly the blobs that it names.
    fn read(path: &Path) -> Self {
        let mut entries = entries(&fs::read(path).expect("read the archive"));
        let json = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).expect("JSON") };
        let index = json(&entries.remove("index.json").expect("an index"));
        let docker = json(&entries.remove("manifest.json").expect("a list for docker"));
        assert_eq!(json(&entries.remove("oci-layout").expect("a version"))["imageLayoutVersion"], "1.0.0");
        for (name, bytes) in &entries {
            assert_eq!(*name, format!("blobs/{}", sha256(bytes).replace(':', "/")));
        }
        let mut used = BTreeSet::new();
        let mut blob = |digest: &Value| {
            let name = format!("blobs/{}", digest.as_str().expect("a digest").replace(':', "/"));
            used.insert(name.clone());
            entries.get(&name).unwrap_or_else(|| panic!("no {name}")).clone()
        };
        let manifest = json(&blob(&index["manifests"][0]["digest"]));
        let config = json(&blob(&manifest["config"]["digest"]));
        let layers = manifest["layers"].as_array().expect("a list").iter();
        let layers: Vec<_> =
            layers.map(|layer| (layer["mediaType"].clone(), blob(&layer["digest"]))).collect();
        assert_eq!(used, entries.keys().cloned().collect());

        let path = |digest: &Value| format!("blobs/{}", digest.as_str().expect("a digest").replace(':', "/"));
        let all = manifest["layers"].as_array().expect("a list").iter();
        assert_eq!(docker[0]["Layers"], all.map(|layer| path(&layer["digest"])).collect::<Value>());
        assert_eq!(docker[0]["Config"], path(&manifest["config"]["digest"]));
        let layers = layers
            .into_iter()
            .filter(|(media_type, _)| media_type == "application/vnd.oci.image.layer.v1.tar");
        let layers: Vec<_> = layers.map(|(_, bytes)| bytes).collect();
        let diff_ids = config["rootfs"]["diff_ids"].as_array().expect("a list");
        for (diff_id, layer) in diff_ids.iter().rev().zip(layers.iter().rev()) {
            assert_eq!(*diff_id, sha256(layer));
        }
        Self { config, manifest, layers }
    }
}

/// Polls until there is a result.
fn poll<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(answer) = attempt() {
            return answer;
        }
        sleep(Duration::from_millis(50));
    }
    panic!("{what} does not happen");
}

/// Runs `curl` in the network of `docker` and returns the header and the body of the response.
fn get(docker: &Dockerd, url: &str, options: &[&str]) -> Option<(String, Vec<u8>)> {
    let mut curl = docker.inside("curl");
    curl.args(["-sS", "--noproxy", "*", "--globoff", "--include", "--http1.1"]).args(options).arg(url);
    let output = curl.output().expect("start curl");
    let end = output.stdout.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = String::from_utf8(output.stdout[..end].to_vec()).expect("an ASCII header");
    Some((head.to_lowercase(), output.stdout[end + 4..].to_vec()))
}

#[test]
fn docker_runs_nginx_with_all_files_and_a_registry_with_all_images() {
    let sample = sample();
    let directory = directory();
    let docker = Dockerd::start_apart();
    let options = ["--build", "3", "--kubespray", "v2.25.0", "--layer-size", "2M", "--json"];
    for (kind, name) in [("files", "kubespray-files:v3-v2.25.0"), ("registry", "kubespray-images:v3-v2.25.0")]
    {
        let (archive, built) = build(kind, &sample.bundle, directory.path(), &options);
        let summary = built.ok().json();
        let loaded = docker.run(["load".as_ref(), "--input".as_ref(), archive.as_os_str()]);
        assert!(loaded.contains(&format!("Loaded image: {name}")), "{loaded}");
        let inspected: Value = serde_json::from_str(&docker.run(["image", "inspect", name])).expect("JSON");
        assert_eq!(inspected[0]["Id"], summary["id"]);
        assert_eq!(inspected[0]["Config"]["Volumes"], Value::Null);
        assert_eq!(inspected[0]["Config"]["Labels"]["org.opencontainers.image.version"], "v3-v2.25.0");
        let history = docker.run(["history", "--format", "{{.Comment}}", name]);
        assert!(history.contains("quay.io/d/large") == (kind == "registry"), "{history}");
    }

    docker.run(["run", "--detach", "--name", "files", "--publish", "8080:80", "kubespray-files:v3-v2.25.0"]);
    assert_nginx_serves(&docker, "http://127.0.0.1:8080", sample.upstream.files());
    docker.run([
        "run",
        "--detach",
        "--name",
        "images",
        "--publish",
        "5000:5000",
        "kubespray-images:v3-v2.25.0",
    ]);
    assert_registry_serves(&docker, "127.0.0.1:5000", sample.upstream.images(), directory.path());
    // No container starts by copying gigabytes into a volume.
    assert_eq!(docker.run(["volume", "ls", "--quiet"]), "");
    docker.run(["rm", "--force", "files", "images"]);
}

fn assert_nginx_serves(docker: &Dockerd, server: &str, files: &[UpstreamFile]) {
    let (head, listing) = poll("that nginx answers", || get(docker, &format!("{server}/"), &[]));
    let listing = String::from_utf8(listing).expect("a page");
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(listing.contains(r#"href="k8s/""#) && !listing.contains("Welcome"), "{listing}");
    for file in files {
        let url = format!("{server}/k8s/{}", file.path());
        let (head, body) = get(docker, &url, &["--header", "accept-encoding: gzip"]).expect("a response");
        assert!(head.starts_with("http/1.1 200") && !head.contains("content-encoding"), "{url}: {head}");
        let media_type =
            if url.ends_with(".sha256") { "text/plain; charset=utf-8" } else { "application/octet-stream" };
        assert!(head.contains(&format!("content-type: {media_type}\r\n")), "{url}: {head}");
        // Headers that cannot distinguish versions are not sent.
        assert!(!head.contains("etag") && !head.contains("last-modified"), "{url}: {head}");
        assert!(body[..] == file.bytes[..], "{url} has other bytes");
        if file.bytes.len() > 4 {
            let (head, body) = get(docker, &url, &["--range", "2-4"]).expect("a response");
            assert!(head.starts_with("http/1.1 206"), "{url}: {head}");
            assert_eq!(body, file.bytes[2..=4], "{url}");
        }
    }
}

fn assert_registry_serves(docker: &Dockerd, server: &str, images: &[UpstreamImage], directory: &Path) {
    poll("that the registry answers", || get(docker, &format!("http://{server}/v2/"), &[]));
    let skopeo = |args: &[&str]| process::run(docker.inside("skopeo").args(args)).stdout;
    for entry in images {
        let name = format!("docker://{server}/k8s/{}", entry.name());
        let by_digest = format!("{name}@{}", entry.image.root.digest);
        let by_tag = entry.tag().map(|tag| format!("{name}:{tag}"));
        for reference in by_tag.iter().chain([&by_digest]) {
            let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", reference]);
            assert_eq!(raw, entry.image.manifest[..], "{reference}");
        }
        if entry.image.root.media_type.contains("docker") {
            let copy = directory.join(entry.name().replace('/', "_"));
            let copy = copy.to_str().expect("a UTF-8 path");
            let target = format!("dir:{copy}");
            skopeo(&[
                "copy",
                "--quiet",
                "--all",
                "--preserve-digests",
                "--src-tls-verify=false",
                &by_digest,
                &target,
            ]);
            for (digest, bytes) in entry.image.parts() {
                let file = Path::new(copy).join(&digest["sha256:".len()..]);
                assert_eq!(fs::read(file).expect("skopeo copied it"), bytes[..], "{by_digest}");
            }
        }
    }
}

#[test]
fn podman_loads_the_tree_of_an_unpacked_site() {
    let sample = sample();
    let directory = directory();
    let podman = Podman::new();
    for (kind, name, mounted, unpacked) in [
        ("files", "kubespray-files", "usr/share/nginx/html", "files"),
        ("registry", "kubespray-images", "var/lib/registry", "registry"),
    ] {
        let (archive, built) =
            build(kind, &sample.bundle, directory.path(), &["--layer-size", "1M", "--json"]);
        let summary = built.ok().json();
        let loaded =
            podman.run(["load".as_ref(), "--quiet".as_ref(), "--input".as_ref(), archive.as_os_str()]);
        assert!(loaded.contains(&format!("docker.io/library/{name}:latest")), "{loaded}");
        let id = podman.run(["image", "inspect", "--format", "{{.Id}}", name]);
        assert_eq!(format!("sha256:{}", id.trim()), summary["id"].as_str().expect("an id"));
        let root = PathBuf::from(podman.run(["image", "mount", name]).trim());
        let unpacked = Tree::of(&sample.site.join(unpacked));
        let difference = Tree::of(&root.join(mounted)).difference(&unpacked);
        assert_eq!(difference, [""; 0], "{kind}");
        podman.run(["image", "unmount", name]);
    }
}

#[test]
fn containerd_and_skopeo_load_the_archive_under_each_of_its_names() {
    let sample = sample();
    let directory = directory();
    let docker = Dockerd::start();
    let names = ["--tag", "site.local:5000/infra/files:v1", "--tag", "site.local:5000/infra/files:latest"];
    let (archive, built) =
        build("files", &sample.bundle, directory.path(), &[&names[..], &["--json"]].concat());
    let summary = built.ok().json();
    assert_eq!(summary["names"], json!([names[1], names[3]]));
    docker.ctr(["images", "import", "--snapshotter", "native"].map(Path::new).into_iter().chain([&*archive]));
    let listed = docker.ctr(["images", "list"]);
    let path = archive.display();
    for name in [names[1], names[3]] {
        let line = listed.lines().find(|line| line.starts_with(&format!("{name} ")));
        let line = line.unwrap_or_else(|| panic!("no {name} in {listed}"));
        assert!(line.contains(summary["digest"].as_str().expect("a digest")), "{line}");
        let raw = clients::skopeo(["inspect", "--raw", &format!("oci-archive:{path}:{name}")]);
        assert_eq!(sha256(raw.as_bytes()), summary["digest"].as_str().expect("a digest"));
        let inspected = clients::skopeo(["inspect", &format!("docker-archive:{path}:{name}")]);
        let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
        assert_eq!(inspected["Labels"]["org.opencontainers.image.title"], "files");
    }
    let (archive, built) = build("registry", &sample.bundle, directory.path(), &["--json"]);
    let summary = built.ok().json();
    // The only image of an archive needs no name; skopeo checks every digest.
    let source = format!("oci-archive:{}", archive.display());
    clients::skopeo(["inspect", &source]);
    let copy = directory.path().join("copy");
    clients::skopeo(["copy", "--quiet", &source, &format!("dir:{}", copy.display())]);
    assert_eq!(digest(&copy.join("manifest.json")), summary["digest"].as_str().expect("a digest"));
}

#[test]
fn image_is_reproducible_from_file_or_pipe_with_any_number_of_threads() {
    let sample = sample();
    let directory = directory();
    for kind in ["files", "registry"] {
        let (archive, built) = build(kind, &sample.bundle, directory.path(), &["-q"]);
        assert_eq!(built.ok().stdout, "");
        let expected = digest(&archive);
        build(kind, &sample.bundle, directory.path(), &[]).1.ok();
        assert_eq!(digest(&archive), expected, "{kind}");
        for threads in ["1", "7"] {
            let bundle = fs::File::open(&sample.bundle).expect("open the bundle");
            let mut cat =
                Command::new("cat").stdin(bundle).stdout(Stdio::piped()).spawn().expect("start cat");
            let mut airbundle = airbundle_command();
            airbundle.args(["image", "-", "--kind", kind, "-o"]).arg(&archive);
            airbundle.env("RAYON_NUM_THREADS", threads).stdin(cat.stdout.take().expect("a pipe"));
            process::run(&mut airbundle);
            assert!(cat.wait().expect("wait for cat").success(), "the pipe was not read to its end");
            assert_eq!(digest(&archive), expected, "{kind} with {threads} threads");
        }
        // As in the base, and nothing of the host.
        let opened = ParsedArchive::read(&archive);
        assert_eq!(opened.config["created"], "1970-01-01T00:00:00Z");
        for layer in &opened.layers {
            let mut layer = tar::Archive::new(&layer[..]);
            for entry in layer.entries().expect("read a tar") {
                let entry = entry.expect("read a tar");
                let header = entry.header();
                let mode = if header.entry_type().is_dir() { 0o755 } else { 0o644 };
                let numbers = [header.uid(), header.gid(), header.mtime(), header.mode().map(u64::from)];
                assert_eq!(numbers.map(|number| number.expect("a number")), [0, 0, 0, mode]);
                assert_eq!((header.username(), header.groupname()), (Ok(Some("")), Ok(Some(""))));
            }
        }
    }
}

#[test]
fn config_is_that_of_the_base_plus_layers_and_labels_minus_the_volume() {
    let sample = sample();
    let directory = directory();
    for (kind, reference, port) in [("files", NGINX, "80/tcp"), ("registry", REGISTRY, "5000/tcp")] {
        let (archive, built) = build(kind, &sample.bundle, directory.path(), &["--json"]);
        built.ok();
        let ParsedArchive { config, manifest, layers } = ParsedArchive::read(&archive);
        let base = sample.upstream.image(reference).for_platform("linux/amd64").expect("an image for amd64");
        let (_, of_base) = &base.parts[0];
        let of_base: Value = serde_json::from_slice(of_base).expect("JSON");
        for key in ["Entrypoint", "Cmd", "Env", "StopSignal"] {
            assert_eq!(config["config"][key], of_base["config"][key], "{key}");
        }
        assert_eq!(config["config"]["ExposedPorts"], json!({ port: {} }));
        assert_eq!(config["config"].get("Volumes"), None);
        assert_eq!((&config["os"], &config["architecture"]), (&json!("linux"), &json!("amd64")));
        let labels = &config["config"]["Labels"];
        assert_eq!(labels["org.opencontainers.image.base.name"], reference);
        assert_eq!(labels["org.opencontainers.image.base.digest"], base.root.digest);
        assert!(labels["dev.airbundle.bundle"].as_str().is_some_and(|id| id.starts_with("sha256:")));
        assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(base.parts.len() - 1 + layers.len()));
        let history = config["history"].as_array().expect("a list");
        assert_eq!(history.len(), base.parts.len() - 1 + layers.len());
    }
}

#[test]
fn layer_size_splits_the_content_and_a_new_version_keeps_most_layers() {
    let sample = sample();
    let directory = directory();
    let (archive, built) =
        build("registry", &sample.bundle, directory.path(), &["--layer-size", "1M", "--json"]);
    let layers = ParsedArchive::read(&archive).layers;
    assert_eq!(built.ok().json()["layers"], layers.len());
    assert!(layers.len() > 6, "{}", layers.len());
    let blobs = |layer: &[u8]| {
        let entries = entries(layer).into_iter().filter(|(name, _)| name.ends_with("/data"));
        entries.map(|(_, bytes)| bytes.len()).collect::<Vec<_>>()
    };
    for layer in &layers {
        let blobs = blobs(layer);
        assert!(blobs.iter().sum::<usize>() <= 1 << 20 || blobs.len() == 1, "{blobs:?}");
    }

    let reference = "quay.io/b/two:v2";
    let new = Image::new(Format::Oci, "linux/amd64", &[Layer::random(99, 900_000, Compression::Gzip)]);
    sample.upstream.registry.push("quay.io/b/two", "v2", &new);
    let lists = directory.path().join("lists");
    fs::create_dir(&lists).expect("create a directory");
    let list = sample.upstream.images_list().replace("quay.io/b/two:v1", reference);
    fs::write(lists.join("images.list"), list).expect("write a list");
    let bundle = directory.path().join("new.tar.zst");
    sample.pack(&lists, &bundle);
    build("registry", &bundle, directory.path(), &["--layer-size", "1M"]).1.ok();
    let old: BTreeSet<_> = layers.iter().map(|layer| sha256(layer)).collect();
    let new: BTreeSet<_> = ParsedArchive::read(&archive).layers.iter().map(|layer| sha256(layer)).collect();
    // The layer of the image and the layer of the tags.
    assert_eq!(new.difference(&old).count(), 2);
}

#[test]
fn content_with_two_names_is_in_the_image_once() {
    let sample = sample();
    let directory = directory();
    let (archive, built) = build("files", &sample.bundle, directory.path(), &["--layer-size", "1"]);
    built.ok();
    let mut links = BTreeMap::new();
    for layer in ParsedArchive::read(&archive).layers {
        let mut layer = tar::Archive::new(&layer[..]);
        for entry in layer.entries().expect("read a tar") {
            let entry = entry.expect("read a tar");
            if let Some(target) = entry.link_name_bytes() {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("a UTF-8 name");
                links.insert(text(&entry.path_bytes()), text(&target));
            }
        }
    }
    let at = |path: &str| format!("usr/share/nginx/html/k8s/github.com/{path}");
    let [runc, crun] =
        ["opencontainers/runc/releases/download/v1/runc.amd64", "containers/crun/releases/download/1/crun"]
            .map(at);
    assert_eq!(links, [(runc, crun)].into());
}

#[test]
fn ambiguous_base_image_fails_listing_candidates() {
    let sample = sample();
    let directory = directory();
    let failed = |kind: &str, options: &[&str], words: &[&str]| {
        let (archive, finished) = build(kind, &sample.bundle, directory.path(), options);
        finished.failed(2, words);
        assert!(!archive.exists() && !partial(&archive).exists());
    };
    failed(
        "files",
        &["--base", "quay.io/x/nginx:1"],
        &["no image `quay.io/x/nginx:1`", "--base", NGINX, REGISTRY],
    );
    failed(
        "files",
        &["--platform", "linux/s390x"],
        &["not available for `linux/s390x`", "`linux/amd64`, `linux/arm64`"],
    );
    failed("registry", &["--platform", "linux/arm64"], &["not available for `linux/arm64`", "`linux/amd64`"]);
    failed(
        "files",
        &["--base", "ghcr.io/x/artifact:1"],
        &["cannot build on `ghcr.io/x/artifact:1`", "unsupported media type"],
    );
    failed("files", &["--repository-template", "{repository}"], &["--kind registry"]);
    failed("files", &["--tag", "files"], &["a tag"]);
    failed("files", &["--build", "3", "--kubespray", "v2 25"], &["a tag"]);
    let arm64 = ["--platform", "linux/arm64", "--json"];
    assert_eq!(
        build("files", &sample.bundle, directory.path(), &arm64).1.ok().json()["platform"],
        "linux/arm64"
    );

    let second = "quay.io/other/nginx:1";
    sample.upstream.registry.push("quay.io/other/nginx", "1", sample.upstream.image(NGINX));
    let list = directory.path().join("images.list");
    fs::write(&list, format!("{NGINX}\n{second}\n")).expect("write a list");
    let bundle = directory.path().join("two.tar.zst");
    sample.pack(&list, &bundle);
    let (_, finished) = build("files", &bundle, directory.path(), &[]);
    finished.failed(2, &["several", NGINX, second]);
    let (_, finished) = build("registry", &bundle, directory.path(), &["--base", second]);
    finished.failed(2, &["cannot build on `quay.io/other/nginx:1`", "are not `registry serve CONFIG`"]);
    assert!(!directory.path().join("registry.tar").exists());
    let (_, finished) = build("files", &bundle, directory.path(), &["--base", second]);
    finished.failed(2, &["no files"]);
}

#[test]
fn limited_portability_of_an_image_is_warned_about() {
    let sample = sample();
    let directory = directory();
    let (_, finished) = build("files", &sample.bundle, directory.path(), &[]);
    assert!(!finished.ok().stderr.contains("warning"));
    let layer = Layer::random(1, 1000, Compression::Zstd);
    let settings = json!({ "Entrypoint": ["nginx"] });
    let image = Image::with_settings(Format::Oci, "linux/amd64", &[layer], settings);
    sample.upstream.registry.push("quay.io/zstd/nginx", "1", &image);
    let list = directory.path().join("some.list");
    fs::write(&list, "quay.io/zstd/nginx:1\nhttps://get.helm.sh/empty\n").expect("write a list");
    let bundle = directory.path().join("zstd.tar.zst");
    sample.pack(&list, &bundle);
    let (_, finished) = build("files", &bundle, directory.path(), &[]);
    assert!(finished.ok().stderr.contains("which require Docker 23 or later"));
}

#[test]
fn registry_that_is_not_the_official_one_serves_all_images_or_is_refused() {
    const OTHER: &str = "registry.suse.com/suse/registry:2.8";
    let shared = directory();
    let program = "/usr/bin/docker-registry";
    let app = Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 1000, Compression::Gzip)]);
    let docker = Dockerd::start_apart();
    for (number, (entrypoint, command)) in [
        (json!([program]), json!(["serve", "/etc/registry/config.yml"])),
        (json!([program, "serve"]), json!(["/etc/registry/config.yml"])),
        (json!(null), json!([program, "serve", "/etc/registry/config.yml"])),
        (json!(["/bin/sh", "-c", "docker-registry serve /etc/registry/config.yml"]), json!(null)),
    ]
    .into_iter()
    .enumerate()
    {
        let is_known = number < 3;
        let path = shared.path().join(number.to_string());
        fs::create_dir(&path).expect("create a directory");
        let images = vec![
            UpstreamImage::new(OTHER, bases::other_registry(&entrypoint, &command)),
            UpstreamImage::new("quay.io/a/app:1", app.clone()),
        ];
        let upstream = Upstream::start(&path.join("upstream"), images, Vec::new());
        let bundle = path.join("bundle.tar.zst");
        let mut args =
            vec!["pack".into(), upstream.write_lists(&path.join("lists")), "-o".into(), bundle.clone()];
        args.extend(upstream.mirror_args().into_iter().map(PathBuf::from));
        airbundle(args).ok();
        let (archive, built) = build("registry", &bundle, &path, &["--tag", "images:1"]);
        if !is_known {
            built.failed(2, &["cannot build on", OTHER, "/bin/sh"]);
            assert!(!archive.exists());
            continue;
        }
        built.ok();
        docker.run(["load".as_ref(), "--input".as_ref(), archive.as_os_str()]);
        let port = 5001 + number;
        let publish = format!("{port}:5000");
        let id = docker.run(["run", "--detach", "--publish", &publish, "images:1"]);
        assert_registry_serves(&docker, &format!("127.0.0.1:{port}"), upstream.images(), &path);
        docker.run(["rm", "--force", "--volumes", id.trim()]);
    }
}

#[test]
fn nginx_that_is_not_the_official_one_serves_all_files_or_is_refused() {
    const OTHER: &str = "cgr.dev/chainguard/nginx:1";
    let shared = directory();
    let docker = Dockerd::start_apart();
    let files = vec![UpstreamFile::new("https://get.helm.sh/file", b"content".to_vec())];
    for (number, (entrypoint, command)) in [
        (json!(["/usr/sbin/nginx"]), json!(["-c", "/etc/nginx/nginx.conf", "-g", "daemon off;"])),
        (json!(["/opt/bitnami/scripts/nginx/entrypoint.sh"]), json!(["/opt/bitnami/scripts/nginx/run.sh"])),
    ]
    .into_iter()
    .enumerate()
    {
        let path = shared.path().join(number.to_string());
        fs::create_dir(&path).expect("create a directory");
        let image = bases::nginx_with(Format::Oci, "linux/amd64", &entrypoint, &command);
        let images = vec![UpstreamImage::new(OTHER, image)];
        let upstream = Upstream::start(&path.join("upstream"), images, files.clone());
        let bundle = path.join("bundle.tar.zst");
        let mut args =
            vec!["pack".into(), upstream.write_lists(&path.join("lists")), "-o".into(), bundle.clone()];
        args.extend(upstream.mirror_args().into_iter().map(PathBuf::from));
        airbundle(args).ok();
        let (archive, built) = build("files", &bundle, &path, &["--tag", "files:1"]);
        if number > 0 {
            built.failed(2, &["cannot build on", OTHER, "bitnami", "use docker.io/library/nginx"]);
            assert!(!archive.exists());
            continue;
        }
        built.ok();
        docker.run(["load".as_ref(), "--input".as_ref(), archive.as_os_str()]);
        docker.run(["run", "--detach", "--publish", "8081:80", "files:1"]);
        assert_nginx_serves(&docker, "http://127.0.0.1:8081", upstream.files());
    }
}

/// Returns the path of an archive that is being written.
fn partial(archive: &Path) -> PathBuf {
    PathBuf::from(format!("{}.partial", archive.display()))
}

#[test]
fn corrupt_bundle_makes_no_image() {
    let sample = sample();
    let directory = directory();
    let intact = fs::read(&sample.bundle).expect("read the bundle");
    let bundle = directory.path().join("damaged.tar.zst");
    let at = |bytes: &[u8]| {
        intact.windows(64).position(|part| part == &bytes[1000..1064]).expect("the content is stored raw")
    };
    let large = sample.upstream.image("quay.io/d/large:v1");
    let (_, layer) = large.parts.iter().max_by_key(|(_, bytes)| bytes.len()).expect("the image has layers");
    let file =
        &sample.upstream.files().iter().max_by_key(|file| file.bytes.len()).expect("files exist").bytes;
    for (kind, offset, owner) in
        [("registry", at(layer), "quay.io/d/large:v1"), ("files", at(file), "get.helm.sh/helm")]
    {
        let mut bytes = intact.clone();
        bytes[offset] ^= 1;
        fs::write(&bundle, bytes).expect("write a bundle");
        let (archive, finished) = build(kind, &bundle, directory.path(), &[]);
        finished.failed(7, &["damaged in", owner]);
        assert!(!archive.exists() && !partial(&archive).exists());
    }
    // Wrong bytes in valid frames: the digest reveals them.
    let mut stream = process::run(Command::new("zstd").arg("-dc").arg(&sample.bundle)).stdout;
    let base = sample.upstream.image(NGINX).for_platform("linux/amd64").expect("an image for amd64");
    for (kind, blob, owner) in [
        ("registry", layer, "quay.io/d/large:v1"),
        ("files", file, "get.helm.sh/helm"),
        ("files", &base.parts[1].1, NGINX),
    ] {
        let at =
            stream.windows(64).position(|part| part == &blob[1000..1064]).expect("the blob is stored raw");
        stream[at] ^= 1;
        fs::write(&bundle, framed(&stream)).expect("write a bundle");
        stream[at] ^= 1;
        let (archive, finished) = build(kind, &bundle, directory.path(), &[]);
        finished.failed(7, &["damaged in", owner, "digest mismatch"]);
        assert!(!archive.exists() && !partial(&archive).exists());
    }
    // Parts of the bundle that the image does not need may be corrupt.
    let mut bytes = intact.clone();
    bytes[at(file)] ^= 1;
    fs::write(&bundle, bytes).expect("write a bundle");
    build("registry", &bundle, directory.path(), &[]).1.ok();
}

#[test]
fn killed_image_run_leaves_no_output_and_reruns_to_the_same_image() {
    let sample = sample();
    let directory = directory();
    let (archive, built) = build("registry", &sample.bundle, directory.path(), &[]);
    built.ok();
    let expected = digest(&archive);
    fs::remove_file(&archive).expect("remove the archive");
    let bytes = fs::read(&sample.bundle).expect("read the bundle");
    let mut child = airbundle_command()
        .args(["image", "-", "--kind", "registry", "-o"])
        .arg(&archive)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start airbundle");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(&bytes[..bytes.len() / 2]).expect("airbundle reads its stdin");
    poll("that the archive is begun", || partial(&archive).exists().then_some(()));
    // A concurrent second run does not disturb the first.
    let (_, second) = build("registry", &sample.bundle, directory.path(), &[]);
    second.failed(9, &["another `airbundle`"]);
    child.kill().expect("kill airbundle");
    child.wait().expect("wait for airbundle");
    assert!(!archive.exists() && partial(&archive).exists());
    build("registry", &sample.bundle, directory.path(), &[]).1.ok();
    assert_eq!(digest(&archive), expected);
    assert!(!partial(&archive).exists());

    // An older image stays until the new one is complete.
    let (_, finished) = build("registry", Path::new("/dev/null"), directory.path(), &[]);
    finished.failed(8, &["not an airbundle bundle"]);
    assert_eq!(digest(&archive), expected);
    let directories: Vec<_> = Tree::of(directory.path()).0.into_iter().collect();
    assert!(
        matches!(&directories[..], [(_, entry)] if matches!(entry.kind, Kind::File { .. })),
        "{directories:?}"
    );
}
