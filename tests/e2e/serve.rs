//! From lists to pulls: nginx and a registry serve what was packed, byte for byte, and clients pull it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use crate::program::{self, Finished, airbundle, unbundle, unbundle_from};
use crate::support::clients::{self, Dockerd, Podman};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process;
use crate::support::registry::Registry;
use crate::support::tree::{self, Stamps, Tree};
use crate::support::upstream::{Upstream, UpstreamImage};
use crate::support::web::Web;
use crate::support::{sha256, sha512};

/// An upstream, the bundle of everything it has, and its site. Made once for all tests, which only read it.
pub(crate) struct World {
    pub(crate) upstream: Upstream,
    pub(crate) lists: PathBuf,
    pub(crate) bundle: PathBuf,
    pub(crate) site: PathBuf,
    _directory: SharedDirectory,
}

/// A directory for temporary files that is removed when this process ends, because a `static` is never
/// dropped.
pub(crate) struct SharedDirectory {
    pub(crate) path: PathBuf,
    /// Waits for the end of a pipe that closes when this process ends.
    _watcher: Child,
}

impl SharedDirectory {
    pub(crate) fn new() -> Self {
        const WATCH: &str = r#"trap "" INT TERM; cat >/dev/null; rm -rf "$1" || { sleep 1; rm -rf "$1"; }"#;
        let path = TempDir::new().expect("create a temporary directory").keep();
        // For the directories of servers in a `static`, which are not dropped either.
        tempfile::env::override_temp_dir(&path).ok();
        let mut watcher = Command::new("sh");
        watcher.args(["-c", WATCH, "sh"]).arg(&path).stdin(Stdio::piped());
        let watcher = watcher.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start sh");
        Self { path, _watcher: watcher }
    }
}

/// Returns the shared [`World`].
pub(crate) fn world() -> &'static World {
    static WORLD: LazyLock<World> = LazyLock::new(|| {
        let shared = SharedDirectory::new();
        let path = |name: &str| shared.path.join(name);
        let upstream = Upstream::kubespray_like(&path("upstream"));
        let lists = upstream.write_lists(&path("lists"));
        let (bundle, site) = (path("all.tar.zst"), path("site"));
        let world = World { upstream, lists, bundle, site, _directory: shared };
        world.pack(&world.lists, &world.bundle, &[]).ok();
        unpack(&world.bundle, &world.site).ok();
        world
    });
    &WORLD
}

impl World {
    /// Packs `list`, a file or a directory of lists, from this upstream.
    pub(crate) fn pack(&self, list: &Path, output: &Path, options: &[&str]) -> Finished {
        let mut args: Vec<_> = ["pack".into(), list.into(), "--output".into(), output.into()].to_vec();
        args.extend(self.upstream.mirror_args().into_iter().map(PathBuf::from));
        args.extend(options.iter().map(PathBuf::from));
        airbundle(args)
    }

    /// Packs these lines into a bundle in `directory`.
    pub(crate) fn pack_lines(&self, directory: &Path, lines: &[&str], options: &[&str]) -> PathBuf {
        let bundle = directory.join("bundle.tar.zst");
        self.pack(&write_list(directory, lines), &bundle, options).ok();
        bundle
    }
}

/// Writes a list of these lines.
pub(crate) fn write_list(directory: &Path, lines: &[&str]) -> PathBuf {
    let list = directory.join("some.list");
    fs::write(&list, lines.join("\n")).expect("write a list");
    list
}

pub(crate) fn directory() -> TempDir {
    TempDir::new().expect("create a temporary directory")
}

pub(crate) fn unpack(bundle: &Path, site: &Path) -> Finished {
    unpack_with(bundle, site, &[])
}

fn unpack_with(bundle: &Path, site: &Path, options: &[&str]) -> Finished {
    let mut args = vec!["unpack".into(), bundle.to_owned(), site.to_owned()];
    args.extend(options.iter().map(PathBuf::from));
    unbundle(args)
}

/// Returns the default name of an image on the site.
fn site_name(image: &UpstreamImage) -> String {
    format!("k8s/{}", image.name())
}

/// Returns the path of a blob in the storage of a registry.
pub(crate) fn blob(registry: &Path, digest: &str) -> PathBuf {
    let hex = digest.strip_prefix("sha256:").expect("a sha256");
    registry.join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
}

/// Returns the path of a repository in the storage of a registry.
fn repository(registry: &Path, name: &str) -> PathBuf {
    registry.join("docker/registry/v2/repositories").join(name)
}

#[test]
fn registry_serves_every_image_by_tag_and_digest_byte_for_byte() {
    let world = world();
    let registry = Registry::serve(&world.site.join("registry"));
    for entry in world.upstream.images() {
        registry.assert_serves(&site_name(entry), entry.tag(), &entry.image);
    }
}

#[test]
fn skopeo_reads_every_manifest_and_copies_every_kind_of_multi_platform_image() {
    let world = world();
    let registry = Registry::serve(&world.site.join("registry"));
    let directory = directory();
    for entry in world.upstream.images() {
        let name = format!("{}/{}", registry.addr(), site_name(entry));
        let by_digest = format!("{name}@{}", entry.image.root.digest);
        let by_tag = entry.tag().map(|tag| format!("{name}:{tag}"));
        for reference in by_tag.iter().chain([&by_digest]) {
            assert_eq!(clients::skopeo_raw_manifest(reference), entry.image.manifest[..], "{reference}");
        }
    }
    for reference in [
        "registry.k8s.io/pause:3.9",
        "registry.k8s.io/kube-apiserver:v1.29.5",
        "docker.io/library/nginx:1.25.2-alpine",
        "docker.io/library/haproxy:2.8.2-alpine",
        "docker.io/flannel/flannel:v0.22.0",
        "quay.io/calico/node:v3.27.3",
        "ghcr.io/kube-vip/kube-vip:v0.8.0",
        "ghcr.io/argoproj/argo-helm/argo-cd:6.7.18",
    ] {
        let image = world.upstream.image(reference);
        let copy = directory.path().join(reference.replace('/', "_"));
        clients::skopeo_pull(&format!("{}/k8s/{reference}", registry.addr()), &copy);
        assert_eq!(fs::read(copy.join("manifest.json")).expect("skopeo copied it"), image.manifest[..]);
        for (digest, bytes) in image.parts() {
            let file = copy.join(&digest["sha256:".len()..]);
            assert_eq!(fs::read(file).expect("skopeo copied it"), bytes[..], "{reference}");
        }
    }
}

#[test]
fn podman_docker_and_containerd_pull_every_kind_of_image_by_tag_and_digest() {
    let world = world();
    let registry = Registry::serve(&world.site.join("registry"));
    let (podman, dockerd) = (Podman::new(), Dockerd::start());
    for (reference, docker_knows_it) in [
        ("registry.k8s.io/pause:3.9", true),
        ("docker.io/library/nginx:1.25.2-alpine", true),
        ("docker.io/flannel/flannel:v0.22.0", true),
        ("quay.io/calico/node:v3.27.3", true),
        // Docker 20.10 does not support zstd layers.
        ("ghcr.io/kube-vip/kube-vip:v0.8.0", false),
    ] {
        let image = world.upstream.image(reference);
        let config = image.for_platform("linux/amd64").and_then(Image::config);
        let id = &config.expect("an image for amd64").digest;
        let by_tag = format!("{}/k8s/{reference}", registry.addr());
        let (name, _) = by_tag.rsplit_once(':').expect("a tag");
        let by_digest = format!("{name}@{}", image.root.digest);
        for reference in [&by_tag, &by_digest] {
            assert_eq!(&podman.pull(reference), id, "{reference}");
            dockerd.ctr_pull(reference);
            if docker_knows_it {
                assert_eq!(&dockerd.pull(reference), id, "{reference}");
            }
        }
    }
}

#[test]
fn nginx_serves_every_file_entire_and_by_range() {
    let world = world();
    let web = Web::start(&world.site.join("files"));
    let agent: ureq::Agent = ureq::Agent::config_builder().proxy(None).build().into();
    let get = |path: &str, range: Option<&str>| {
        let mut request = agent.get(web.url(path)).header("accept-encoding", "gzip, br, zstd");
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let mut response = request.call().unwrap_or_else(|error| panic!("{path}: {error}"));
        let header = |name: &str| {
            response.headers().get(name).map(|value| value.to_str().expect("an ASCII header").to_owned())
        };
        let headers = ["content-encoding", "content-type", "content-range"].map(header);
        let mut body = Vec::new();
        response.body_mut().as_reader().read_to_end(&mut body).expect("read a response");
        (response.status().as_u16(), headers, body)
    };
    let mut seen = HashSet::new();
    for file in world.upstream.files() {
        let path = format!("k8s/{}", file.path());
        let (status, [encoding, content_type, _], body) = get(&path, None);
        assert_eq!((status, encoding), (200, None), "{path}");
        assert_eq!(content_type.as_deref(), Some("application/octet-stream"), "{path}");
        assert!(body[..] == file.bytes[..], "{path} has other bytes");
        if let size @ 4.. = file.bytes.len() {
            let (first, last) = (size / 4, size / 2);
            let (status, [encoding, _, range], body) = get(&path, Some(&format!("bytes={first}-{last}")));
            assert_eq!((status, encoding), (206, None), "{path}");
            assert_eq!(range, Some(format!("bytes {first}-{last}/{size}")), "{path}");
            assert!(body[..] == file.bytes[first..=last], "{path} has other bytes in its middle");
        }
        seen.extend(path.contains('+').then_some("a plus"));
        seen.extend(file.bytes.is_empty().then_some("an empty file"));
    }
    assert_eq!(seen.len(), 2, "upstream has a name with a plus, and an empty file: {seen:?}");
    // Exactly those files.
    let files: BTreeSet<_> =
        world.upstream.files().iter().map(|file| Path::new("k8s").join(file.path())).collect();
    let tree = Tree::of(&world.site.join("files"));
    assert_eq!(tree.files().map(Path::to_owned).collect::<BTreeSet<_>>(), files);
}

#[test]
fn garbage_collection_removes_nothing_of_a_site() {
    let directory = directory();
    unpack(&world().bundle, directory.path()).ok();
    let storage = directory.path().join("registry");
    let before = (Tree::of(&storage), tree::stamps(&storage));
    let registry = Registry::start(&storage);
    assert_eq!(registry.garbage_collect(&[]), [""; 0]);
    assert_eq!((Tree::of(&storage), tree::stamps(&storage)), before);
}

#[test]
fn storage_equals_that_of_a_registry_pushed_to() {
    let world = world();
    let directory = directory();
    let registry = Registry::start(directory.path());
    for entry in world.upstream.images() {
        let name = site_name(entry);
        registry.push(&name, entry.tag(), &entry.image);
        if name.ends_with("registry.k8s.io/coredns/coredns") {
            registry.push(name.strip_suffix("/coredns").expect("a suffix"), entry.tag(), &entry.image);
        }
    }
    drop(registry);
    // With this directory, a registry lists a repository that has only digests.
    for entry in world.upstream.images() {
        let tags = repository(directory.path(), &site_name(entry)).join("_manifests/tags");
        fs::create_dir_all(tags).expect("create a directory");
    }
    assert_eq!(tree::diff(directory.path(), &world.site.join("registry")), "");
    tree::assert_same(directory.path(), &world.site.join("registry"));
}

/// Returns the image without other platforms and their attestations: the result of a selection.
fn selected(image: &Image, keep: &[&str]) -> Image {
    let kept: Vec<_> = image
        .children
        .iter()
        .filter(|child| child.platform.as_deref().is_none_or(|platform| keep.contains(&platform)))
        .map(|child| child.root.digest.clone())
        .collect();
    let sparse = image.sparse(|child| {
        let subject = child.annotations.get("vnd.docker.reference.digest").unwrap_or(&child.root.digest);
        kept.contains(subject)
    });
    let children = sparse.children.iter().map(|child| selected(child, keep)).collect();
    Image { children, ..sparse }
}

/// Asserts that a site and its bundle have exactly what `keep` selects of `image`, with the unchanged index.
fn assert_selection(registry: &Registry, bundle: &Path, image: &UpstreamImage, keep: &[&str]) -> usize {
    let name = site_name(image);
    let kept = selected(&image.image, keep);
    registry.assert_serves(&name, image.tag(), &kept);
    let (all, kept) = (image.image.blobs(), kept.blobs());
    let entries = process::stdout_of(Command::new("tar").args(["--zstd", "-tf"]).arg(bundle));
    let mut omitted = 0;
    for digest in all.keys().filter(|digest| !kept.contains_key(*digest)) {
        assert!(registry.manifest(&name, digest).is_none(), "{name}@{digest} is served");
        assert!(registry.blob(&name, digest).is_none(), "{name}@{digest} is served");
        assert!(!entries.contains(&digest["sha256:".len()..]), "{digest} is in the bundle");
        omitted += 1;
    }
    omitted
}

#[test]
fn platform_selection_keeps_index_bytes_and_omits_other_platforms() {
    let world = world();
    let directory = directory();
    let bundle = directory.path().join("amd64.tar.zst");
    world.pack(&world.lists, &bundle, &["--platform", "linux/amd64"]).ok();
    let site = directory.path().join("site");
    unpack(&bundle, &site).ok();
    let registry = Registry::start(&site.join("registry"));
    let mut omitted = BTreeMap::new();
    for entry in world.upstream.images() {
        omitted.insert(&entry.reference, assert_selection(&registry, &bundle, entry, &["linux/amd64"]));
    }
    let of = |reference: &str| omitted[&reference.to_owned()];
    assert_eq!(of("registry.k8s.io/pause:3.9"), 2 * 3, "two manifests, configs and layers");
    // For each platform an image and its attestation, and their unshared blobs.
    assert!(of("docker.io/library/nginx:1.25.2-alpine") >= 2 * (2 * 3), "{omitted:?}");
    assert_eq!(of("quay.io/calico/node:v3.27.3"), 0);

    let podman = Podman::new();
    for reference in ["registry.k8s.io/pause:3.9", "docker.io/library/nginx:1.25.2-alpine"] {
        let image = world.upstream.image(reference).for_platform("linux/amd64").expect("an image for amd64");
        let pulled = format!("{}/k8s/{reference}", registry.addr());
        assert_eq!(podman.pull(&pulled), image.config().expect("an image has a config").digest);
        let copy = directory.path().join("copy");
        let [from, to] = [format!("docker://{pulled}"), format!("dir:{}", copy.display())];
        clients::skopeo([
            "copy",
            "--quiet",
            "--override-arch",
            "amd64",
            "--src-tls-verify=false",
            from.as_str(),
            to.as_str(),
        ]);
        assert_eq!(fs::read(copy.join("manifest.json")).expect("skopeo copied it"), image.manifest[..]);
    }
    assert_eq!(registry.garbage_collect(&[]), [""; 0]);
}

#[test]
fn several_platforms_and_variants_can_be_selected() {
    let world = world();
    let references = ["registry.k8s.io/pause:3.9", "docker.io/library/nginx:1.25.2-alpine"];
    for (options, keep) in [
        (&["--platform", "linux/amd64,linux/arm64"][..], &["linux/amd64", "linux/arm64"][..]),
        (&["--platform", "linux/arm64", "--platform", "linux/amd64"], &["linux/amd64", "linux/arm64"]),
        (&["--platform", "linux/arm/v7"], &["linux/arm/v7"]),
        (&["--platform", "linux/arm"], &["linux/arm/v7"]),
        (&["--platform", "linux/aarch64"], &["linux/arm64"]),
    ] {
        let directory = directory();
        let bundle = world.pack_lines(directory.path(), &references, options);
        let site = directory.path().join("site");
        unpack(&bundle, &site).ok();
        let registry = Registry::serve(&site.join("registry"));
        for entry in world.upstream.images().iter().filter(|entry| references.contains(&&*entry.reference)) {
            assert!(assert_selection(&registry, &bundle, entry, keep) >= 3, "{options:?}");
        }
    }
}

#[test]
fn platform_attribute_of_a_list_entry_applies_to_that_image_only() {
    let world = world();
    let directory = directory();
    // The second one has the first one's index among its children.
    let [nginx, nested] = ["docker.io/library/nginx:1.25.2-alpine", "quay.io/metallb/controller:v0.13.9"];
    let lines = [&*format!("{nginx} platform=linux/amd64"), nested];
    let bundle = world.pack_lines(directory.path(), &lines, &["--platform", "linux/amd64,linux/arm64"]);
    let site = directory.path().join("site");
    unpack(&bundle, &site).ok();
    let registry = Registry::start(&site.join("registry"));
    for (reference, keep) in [(nginx, &["linux/amd64"][..]), (nested, &["linux/amd64", "linux/arm64"])] {
        let kept = selected(world.upstream.image(reference), keep);
        let name = format!("k8s/{}", reference.split(':').next().expect("a name"));
        registry.assert_serves(&name, None, &kept);
        for (manifest, _) in world.upstream.image(reference).manifests() {
            let served = registry.manifest(&name, &manifest.digest).is_some();
            let wanted = kept.manifests().iter().any(|(kept, _)| *kept == manifest);
            assert_eq!(served, wanted, "{name}@{}", manifest.digest);
        }
    }
    assert_eq!(registry.garbage_collect(&[]), [""; 0]);
}

#[test]
fn missing_platform_fails_listing_available_platforms() {
    let world = world();
    let directory = directory();
    let bundle = directory.path().join("bundle.tar.zst");
    for (line, options, words) in [
        // All platforms of a list entry must exist.
        (
            "registry.k8s.io/pause:3.9 platform=linux/amd64,linux/s390x",
            &[][..],
            &[
                "`registry.k8s.io/pause:3.9`",
                "no image for platform linux/s390x",
                "available: linux/amd64, linux/arm/v7, linux/arm64",
            ],
        ),
        (
            "registry.k8s.io/pause:3.9 platform=linux/arm/v6",
            &[],
            &[
                "`registry.k8s.io/pause:3.9`",
                "no image for platform linux/arm/v6",
                "available: linux/amd64, linux/arm/v7, linux/arm64",
            ],
        ),
        (
            "quay.io/calico/node:v3.27.3 platform=linux/arm64",
            &[],
            &["`quay.io/calico/node:v3.27.3`", "no image for platform linux/arm64", "available: linux/amd64"],
        ),
        // At least one platform of the command line must exist.
        (
            "quay.io/calico/node:v3.27.3",
            &["--platform", "linux/arm64,linux/s390x"],
            &[
                "`quay.io/calico/node:v3.27.3`",
                "no image for platform linux/arm64, linux/s390x",
                "available: linux/amd64",
            ],
        ),
    ] {
        let list = write_list(directory.path(), &[line]);
        world.pack(&list, &bundle, options).failed(4, words);
        assert!(!bundle.exists() && !directory.path().join("bundle.tar.zst.partial").exists());
    }
    let options = ["--platform", "linux/amd64,linux/arm64"];
    world.pack_lines(directory.path(), &["quay.io/calico/node:v3.27.3"], &options);
}

#[test]
fn repository_templates_name_every_image() {
    let world = world();
    let directory = directory();
    let references =
        ["registry.k8s.io/pause:3.9", "quay.io/coreos/etcd:v3.5.12", "docker.io/library/nginx:1.25.2-alpine"];
    let bundle = world.pack_lines(directory.path(), &references, &[]);
    let site = directory.path().join("site");
    let templates =
        ["--repository-template", "{repository}", "--repository-template", "k8s/{host}/{repository}"];
    unpack_with(&bundle, &site, &templates).ok();
    let registry = Registry::start(&site.join("registry"));
    let pushed = directory.path().join("pushed");
    let mirror = Registry::start(&pushed);
    for reference in references {
        let image = world.upstream.image(reference);
        let (name, tag) = reference.rsplit_once(':').expect("a tag");
        let (_, without_host) = name.split_once('/').expect("a host");
        for name in [without_host, &format!("k8s/{name}")] {
            registry.assert_serves(name, tag, image);
            mirror.push(name, tag, image);
        }
    }
    assert_eq!(registry.garbage_collect(&[]), [""; 0]);
    drop((registry, mirror));
    assert_eq!(tree::diff(&pushed, &site.join("registry")), "");
}

#[test]
fn repository_template_with_colliding_names_is_refused_before_anything_is_written() {
    let world = world();
    let directory = directory();
    let image = |text: &str| {
        Image::new(Format::Oci, "linux/amd64", &[Layer::files(&[("a", text.as_bytes())], Compression::Gzip)])
    };
    let references = ["docker.io/twin/app:1", "quay.io/twin/app:1"];
    for reference in references {
        let (name, tag) = reference.rsplit_once(':').expect("a tag");
        world.upstream.registry.push(name, tag, &image(reference));
    }
    let bundle = world.pack_lines(directory.path(), &references, &[]);
    let site = directory.path().join("site");
    for templates in [
        &["--repository-template", "x/{repository}"][..],
        &["--repository-template", "k8s/{host}/{repository}", "--repository-template", "{repository}"],
    ] {
        unpack_with(&bundle, &site, templates).failed(
            2,
            &["`docker.io/twin/app:1`", "`quay.io/twin/app:1`", "twin/app:1`", "--repository-template"],
        );
        assert!(!site.exists(), "something was written");
    }
    unpack(&bundle, &site).ok();
}

#[test]
fn files_and_registry_in_other_directories_are_served_from_there() {
    let world = world();
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let (site, files, storage) = (path("site"), path("a/www"), path("b/registry"));
    let options = [
        "--files",
        files.to_str().expect("a UTF-8 path"),
        "--registry",
        storage.to_str().expect("a UTF-8 path"),
    ];
    unpack_with(&world.bundle, &site, &options).ok();
    assert!(!site.join("files").exists() && !site.join("registry").exists());
    assert_eq!(tree::diff(&world.site.join("files/k8s"), &files.join("k8s")), "");
    assert_eq!(tree::diff(&world.site.join("registry/docker"), &storage.join("docker")), "");
    let registry = Registry::serve(&storage);
    let entry = &world.upstream.images()[0];
    registry.assert_serves(&site_name(entry), entry.tag(), &entry.image);
    let (web, file) = (Web::start(&files), &world.upstream.files()[0]);
    assert_eq!(clients::curl([web.url(&format!("k8s/{}", file.path()))]), file.bytes[..]);

    let before = [&files, &storage].map(|root| tree::stamps(root));
    let again = unpack_with(&world.bundle, &site, &options).ok();
    assert!(again.stdout.contains("nothing to do"), "{again:?}");
    assert_eq!([&files, &storage].map(|root| tree::stamps(root)), before);

    // Both in one directory, and one of them in the directory of the site itself.
    for (site, files, storage) in
        [("s1", "both", "both"), ("s2", "s2", "s2/registry"), ("s3", "s3/files", "s3")]
    {
        let (site, files, storage) = (path(site), path(files), path(storage));
        let options = [
            "--files",
            files.to_str().expect("a UTF-8 path"),
            "--registry",
            storage.to_str().expect("a UTF-8 path"),
        ];
        unpack_with(&world.bundle, &site, &options).ok();
        assert_eq!(tree::diff(&world.site.join("files/k8s"), &files.join("k8s")), "");
        assert_eq!(tree::diff(&world.site.join("registry/docker"), &storage.join("docker")), "");
    }
}

#[test]
fn second_unpack_changes_nothing_and_reports_it() {
    let world = world();
    let directory = directory();
    unpack(&world.bundle, directory.path()).ok();
    tree::assert_same(&world.site, directory.path());
    let before = tree::stamps(directory.path());
    let again = unpack(&world.bundle, directory.path()).ok();
    assert!(again.stdout.contains("nothing to do"), "{again:?}");
    assert_eq!(tree::stamps(directory.path()), before);
    let json = unpack_with(&world.bundle, directory.path(), &["--json"]).ok().json();
    assert_eq!(
        ["written", "linksWritten", "repaired", "bytesWritten"].map(|key| json[key].as_u64()),
        [Some(0); 4],
        "{json}"
    );
    assert_eq!(tree::stamps(directory.path()), before);
}

/// Returns the files (not the directories) whose stamps changed.
fn changed_files(root: &Path, before: &Stamps) -> BTreeSet<PathBuf> {
    let after = tree::stamps(root);
    let paths: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path) && !root.join(path).is_dir())
        .cloned()
        .collect()
}

/// A small site: images of every platform, and the small files.
struct SmallSite {
    bundle: PathBuf,
    site: PathBuf,
    right: Tree,
    _directory: TempDir,
}

impl SmallSite {
    const IMAGE: &str = "registry.k8s.io/pause:3.9";

    fn new() -> Self {
        let (world, directory) = (world(), directory());
        let small = world.upstream.files().iter().filter(|file| file.bytes.len() < 300_000);
        let mut lines: Vec<_> = small.map(|file| file.url.as_str()).collect();
        lines.extend([Self::IMAGE, "docker.io/library/nginx:1.25.2-alpine"]);
        let bundle = world.pack_lines(directory.path(), &lines, &[]);
        let site = directory.path().join("site");
        unpack(&bundle, &site).ok();
        let right = Tree::of(&site);
        Self { bundle, site, right, _directory: directory }
    }

    /// Unpacks again, and adds to `failures` what differs, and what was touched besides `expected`.
    fn repair(&self, what: &str, before: &Stamps, expected: &[&Path], failures: &mut Vec<String>) {
        let result = unpack(&self.bundle, &self.site).ok();
        if result.stdout.contains("nothing to do") {
            failures.push(format!("{what}: it says that there was nothing to do"));
        }
        let wrong = self.right.difference(&Tree::of(&self.site));
        failures.extend(wrong.iter().map(|line| format!("{what}: not repaired: {line}")));
        let changed = changed_files(&self.site, before);
        if changed != expected.iter().map(|&path| path.to_owned()).collect() {
            failures.push(format!("{what}: {changed:?} were touched"));
        }
    }
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("read a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("write a file");
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).expect("read a file");
    fs::write(path, &bytes[..bytes.len() - 1]).expect("write a file");
}

fn extend(path: &Path) {
    let bytes = fs::read(path).expect("read a file");
    fs::write(path, [&bytes[..], b"\n"].concat()).expect("write a file");
}

fn empty(path: &Path) {
    fs::write(path, "").expect("write a file");
}

fn remove(path: &Path) {
    fs::remove_file(path).expect("remove a file");
}

fn hide(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("change a mode");
}

#[test]
fn any_damage_to_a_site_is_repaired_and_nothing_else_is_touched() {
    type Harm<'a> = (&'a str, PathBuf, &'a dyn Fn(&Path));

    let (world, small) = (world(), SmallSite::new());
    let image = world.upstream.image(SmallSite::IMAGE);
    let child = image.for_platform("linux/arm64").expect("an image for arm64");
    let [config, layer] = [0, 1].map(|part| child.parts[part].0.digest.as_str());
    let storage = Path::new("registry");
    let name = repository(storage, "k8s/registry.k8s.io/pause");
    let link = |location: &str, digest: &str| name.join(location).join(digest.replace(':', "/")).join("link");
    let current = name.join("_manifests/tags/3.9/current/link");
    let file = |part: &str| {
        let file = world.upstream.files().iter().find(|file| file.url.contains(part));
        Path::new("files/k8s").join(file.expect("the file exists").path())
    };
    let redirect = |path: &Path| fs::write(path, &child.root.digest).expect("write a file");
    let link_away = |path: &Path| {
        remove(path);
        std::os::unix::fs::symlink("/etc/passwd", path).expect("create a link");
    };
    let harms: &[Harm] = &[
        ("a layer is one byte short", blob(storage, layer), &truncate),
        ("a layer has a wrong bit", blob(storage, layer), &flip),
        ("a layer is empty", blob(storage, layer), &empty),
        ("a layer has a byte more", blob(storage, layer), &extend),
        ("a config is missing", blob(storage, config), &remove),
        ("a manifest has a wrong bit", blob(storage, &child.root.digest), &flip),
        ("an index is missing", blob(storage, &image.root.digest), &remove),
        ("a layer is for its owner only", blob(storage, layer), &hide),
        ("a tag has a trailing newline", current.clone(), &extend),
        ("a tag is missing", current.clone(), &remove),
        ("a tag is empty", current.clone(), &empty),
        ("a tag names something else", current.clone(), &redirect),
        ("a tag is for its owner only", current, &hide),
        ("the history of a tag is missing", link("_manifests/tags/3.9/index", &image.root.digest), &remove),
        ("a revision is missing", link("_manifests/revisions", &image.root.digest), &remove),
        ("a revision of a child is missing", link("_manifests/revisions", &child.root.digest), &remove),
        ("the link of a layer is missing", link("_layers", layer), &remove),
        ("the link of a config is cut", link("_layers", config), &truncate),
        ("a file has a wrong bit", file("calico"), &flip),
        ("a file is missing", file("calico"), &remove),
        ("a file is for its owner only", file("calico"), &hide),
        ("a file is a link to another", file("calico"), &link_away),
        ("an empty file is missing", file("empty"), &remove),
        ("an empty file has content", file("empty"), &extend),
    ];
    let mut failures = Vec::new();
    for (what, path, harm) in harms {
        let before = tree::stamps(&small.site);
        harm(&small.site.join(path));
        small.repair(what, &before, &[path], &mut failures);
    }
    let before = tree::stamps(&small.site);
    fs::remove_dir(small.site.join(&name).join("_uploads")).expect("remove a directory");
    small.repair("a directory is missing", &before, &[], &mut failures);
    // All at once, as far as the cases do not undo each other.
    let before = tree::stamps(&small.site);
    let several = [&harms[1], &harms[4], &harms[8], &harms[15], &harms[18], &harms[23]];
    for (_, path, harm) in several {
        harm(&small.site.join(path));
    }
    let paths = several.map(|(_, path, _)| path.as_path());
    small.repair("several harms", &before, &paths, &mut failures);
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn leftovers_of_a_killed_run_are_removed_or_used_and_nothing_else_is_touched() {
    let (world, small) = (world(), SmallSite::new());
    let layer = &world.upstream.image(SmallSite::IMAGE).children[0].parts[1];
    let staged = small.site.join(".unbundle").join(format!("{}.1", &layer.0.digest["sha256:".len()..]));
    let location = blob(Path::new("registry"), &layer.0.digest);
    let fence = small.site.join("registry/docker/registry/v2/blobs/unbundle-in-progress");
    let mut failures = Vec::new();
    for (what, content) in [("half of a blob", &layer.1[..layer.1.len() / 2]), ("a whole blob", &layer.1)] {
        let before = tree::stamps(&small.site);
        remove(&small.site.join(&location));
        fs::write(&staged, content).expect("write a file");
        for name in ["link.0", "something"] {
            fs::write(staged.with_file_name(name), "sha256:").expect("write a file");
        }
        fs::create_dir(&fence).and_then(|()| fs::write(fence.join("data"), "")).expect("write a file");
        small.repair(what, &before, &[&location], &mut failures);
    }
    // If only the end of the cleanup is missing.
    let before = tree::stamps(&small.site);
    fs::write(&staged, "half").expect("write a file");
    fs::create_dir(&fence).and_then(|()| fs::write(fence.join("data"), "")).expect("write a file");
    unpack(&small.bundle, &small.site).ok();
    failures.extend(small.right.difference(&Tree::of(&small.site)));
    failures.extend(
        changed_files(&small.site, &before).iter().map(|path| format!("{} was touched", path.display())),
    );
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn directory_in_place_of_a_blob_is_an_error_that_names_it() {
    let world = world();
    let directory = directory();
    let reference = "registry.k8s.io/pause:3.9";
    let bundle = world.pack_lines(directory.path(), &[reference], &[]);
    let site = directory.path().join("site");
    unpack(&bundle, &site).ok();
    let right = Tree::of(&site);
    let data = blob(&site.join("registry"), &world.upstream.image(reference).root.digest);
    fs::remove_file(&data).expect("remove a file");
    fs::create_dir(&data).expect("create a directory");
    unpack(&bundle, &site).failed(6, &[data.to_str().expect("a UTF-8 path")]);
    fs::remove_dir(&data).expect("remove a directory");
    unpack(&bundle, &site).ok();
    assert_eq!(right.difference(&Tree::of(&site)), [""; 0]);
}

#[test]
fn newer_bundle_moves_a_tag_and_keeps_the_old_digest() {
    let world = world();
    let directory = directory();
    let version = |text: &str| {
        let layer = |name: &str, text: &str| Layer::files(&[(name, text.as_bytes())], Compression::Gzip);
        Image::new(Format::Docker, "linux/amd64", &[layer("base", "the same"), layer("app", text)])
    };
    let [old, new] = ["old", "new"].map(version);
    let reference = "quay.io/moving/app:latest";
    let site = directory.path().join("site");
    let mut bundles = Vec::new();
    for (name, image) in [("old", &old), ("new", &new)] {
        world.upstream.registry.push("quay.io/moving/app", "latest", image);
        let location = directory.path().join(name);
        fs::create_dir(&location).expect("create a directory");
        bundles.push(world.pack_lines(&location, &[reference, "registry.k8s.io/pause:3.9"], &[]));
        unpack(&bundles[bundles.len() - 1], &site).ok();
    }
    let name = "k8s/quay.io/moving/app";
    let registry = Registry::start(&site.join("registry"));
    registry.assert_serves(name, "latest", &new);
    registry.assert_serves(name, None, &old);
    registry.assert_serves(
        "k8s/registry.k8s.io/pause",
        "3.9",
        world.upstream.image("registry.k8s.io/pause:3.9"),
    );
    assert_eq!(registry.garbage_collect(&[]), [""; 0]);
    // nginx alone serves both as well.
    unbundle(["site".as_ref(), site.as_os_str(), "--ip".as_ref(), "127.0.0.1".as_ref()]).ok();
    let known =
        fs::read_to_string(site.join("conf/registry-api/manifests.conf")).expect("read manifests.conf");
    for image in [&old, &new] {
        assert!(known.contains(&image.root.digest["sha256:".len()..]), "{known}");
    }
    let pushed = directory.path().join("pushed");
    {
        let mirror = Registry::start(&pushed);
        mirror.push(name, "latest", &old);
        mirror.push(name, "latest", &new);
        mirror.push("k8s/registry.k8s.io/pause", "3.9", world.upstream.image("registry.k8s.io/pause:3.9"));
    }
    assert_eq!(tree::diff(&pushed, &site.join("registry")), "");
    // A rollback to the older bundle.
    let back = unpack_with(&bundles[0], &site, &["--json"]).ok().json();
    assert_eq!((back["written"].as_u64(), back["linksWritten"].as_u64()), (Some(0), Some(1)), "{back}");
    registry.assert_serves(name, "latest", &old);
    registry.assert_serves(name, None, &new);
}

#[test]
fn unpack_from_a_pipe_equals_unpack_from_a_file() {
    let world = world();
    let directory = directory();
    let site = directory.path().to_str().expect("a UTF-8 path");
    unbundle_from(&world.bundle, ["unpack", "-", site]).ok();
    tree::assert_same(&world.site, directory.path());
    let bundle = world.bundle.to_str().expect("a UTF-8 path");
    for args in [&["verify"][..], &["ls"], &["ls", "--json"]] {
        let from_file = unbundle(args.iter().chain(&[bundle])).ok();
        // `ls` reads only the beginning, so `cat` may fail with a broken pipe.
        let piped = r#"cat "$1" | "$2" $3 -"#;
        let mut from_pipe = Command::new("sh");
        from_pipe.args(["-c", piped, "sh", bundle, env!("CARGO_BIN_EXE_unbundle"), &args.join(" ")]);
        assert!(!from_file.stdout.is_empty());
        assert_eq!(process::stdout_of(&mut from_pipe), from_file.stdout, "{args:?}");
    }
}

#[test]
fn tar_and_zstd_read_the_bundle_as_an_oci_image_layout() {
    let world = world();
    let directory = directory();
    process::run(Command::new("zstd").arg("-t").arg(&world.bundle));
    let listed = process::stdout_of(Command::new("tar").args(["--zstd", "-tf"]).arg(&world.bundle));
    let listed: Vec<_> = listed.lines().collect();
    assert_eq!(listed.iter().collect::<HashSet<_>>().len(), listed.len(), "an entry stands there twice");
    process::run(
        Command::new("tar").args(["--zstd", "-xf"]).arg(&world.bundle).arg("-C").arg(directory.path()),
    );
    let extracted = Tree::of(directory.path());
    let names: BTreeSet<_> = listed.iter().filter(|name| !name.ends_with('/')).map(PathBuf::from).collect();
    assert_eq!(extracted.files().map(Path::to_owned).collect::<BTreeSet<_>>(), names);

    let read =
        |path: &str| fs::read(directory.path().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let parse = |path: &str| -> Value { serde_json::from_slice(&read(path)).expect("JSON") };
    assert_eq!(parse("oci-layout")["imageLayoutVersion"], "1.0.0");
    let mut blobs = BTreeMap::new();
    for path in names.iter().filter(|path| path.starts_with("blobs")) {
        let bytes = fs::read(directory.path().join(path)).expect("read a blob");
        let name =
            path.strip_prefix("blobs").expect("the prefix matches").to_string_lossy().replace('/', ":");
        assert_eq!(sha256(&bytes), name);
        blobs.insert(name, bytes);
    }

    // The bundle has everything upstream has, and nothing else but what the files need.
    let mut expected: BTreeSet<String> =
        world.upstream.images().iter().flat_map(|entry| entry.image.blobs().into_keys()).collect();
    expected.extend(world.upstream.files().iter().map(|file| sha256(&file.bytes)));
    let index = parse("index.json");
    let (files, images): (Vec<_>, Vec<_>) = index["manifests"]
        .as_array()
        .expect("a list")
        .iter()
        .partition(|entry| entry["artifactType"] == "application/vnd.airbundle.files.v1");
    let references: BTreeSet<_> = images
        .iter()
        .map(|entry| entry["annotations"]["org.opencontainers.image.ref.name"].as_str().expect("a name"))
        .collect();
    assert_eq!(references, world.upstream.images().iter().map(|entry| entry.reference.as_str()).collect());
    for entry in &images {
        let name = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().expect("a name");
        let root = &world.upstream.image(name).root;
        assert_eq!(
            (&entry["mediaType"], &entry["digest"], &entry["size"]),
            (&root.media_type.clone().into(), &root.digest.clone().into(), &root.size.into())
        );
    }
    let [files] = files[..] else { panic!("{} file sets", files.len()) };
    let files = files["digest"].as_str().expect("a digest");
    let set: Value = serde_json::from_slice(&blobs[files]).expect("JSON");
    assert_eq!(set["layers"].as_array().expect("a list").len(), world.upstream.files().len());
    expected.extend([files.to_owned(), set["config"]["digest"].as_str().expect("a digest").to_owned()]);
    assert_eq!(blobs.into_keys().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn skopeo_reads_oci_images_from_the_bundle() {
    let world = world();
    let directory = directory();
    let mut read = 0;
    for entry in world.upstream.images() {
        // skopeo 1.9 ignores entries of Docker's media types.
        if !entry.image.root.media_type.contains("oci") {
            continue;
        }
        let source = format!("oci-archive:{}:{}", world.bundle.display(), entry.reference);
        let raw = process::run(Command::new("skopeo").args(["inspect", "--raw", &source]));
        assert_eq!(raw.stdout, entry.image.manifest[..], "{}", entry.reference);
        read += 1;
    }
    assert!(read >= 8, "{read} images");
    let reference = "quay.io/calico/node:v3.27.3";
    let source = format!("oci-archive:{}:{reference}", world.bundle.display());
    clients::skopeo(["copy", "--quiet", &source, &format!("dir:{}", directory.path().display())]);
    let manifest = fs::read(directory.path().join("manifest.json")).expect("skopeo copied it");
    assert_eq!(manifest, world.upstream.image(reference).manifest[..]);
}

#[test]
fn bundle_is_independent_of_jobs_and_list_order() {
    let world = world();
    let directory = directory();
    let expected = sha256(&fs::read(&world.bundle).expect("read the bundle"));
    let reversed = directory.path().join("reversed");
    fs::create_dir(&reversed).expect("create a directory");
    for name in ["images.list", "files.list"] {
        let list = fs::read_to_string(world.lists.join(name)).expect("read a list");
        let lines: Vec<_> = list.lines().rev().collect();
        fs::write(reversed.join(name), lines.join("\n")).expect("write a list");
    }
    for (list, jobs) in [(&world.lists, "1"), (&reversed, "3"), (&reversed, "16"), (&world.lists, "16")] {
        let bundle = directory.path().join("bundle.tar.zst");
        world.pack(list, &bundle, &["--jobs", jobs]).ok();
        assert_eq!(sha256(&fs::read(&bundle).expect("read the bundle")), expected, "{jobs} jobs");
    }
}

#[test]
fn bundle_is_independent_of_checksums_in_lists() {
    let world = world();
    let directory = directory();
    let expected = sha256(&fs::read(&world.bundle).expect("read the bundle"));
    let images = world.upstream.images_list();
    let pins: [fn(&[u8]) -> String; 3] = [|_| String::new(), sha256, sha512];
    for pin in pins {
        let files = world.upstream.files().iter().map(|file| format!("{} {}", file.url, pin(&file.bytes)));
        let files: Vec<_> = files.collect();
        let list = write_list(directory.path(), &[&*images, &files.join("\n")]);
        let bundle = directory.path().join("bundle.tar.zst");
        world.pack(&list, &bundle, &[]).ok();
        assert_eq!(sha256(&fs::read(&bundle).expect("read the bundle")), expected, "{}", pin(b""));
    }
}

/// An `unbundle unpack -` that gets its bundle piece by piece.
struct PipedUnpack {
    child: Child,
    pipe: ChildStdin,
    bytes: Vec<u8>,
    sent: usize,
}

impl PipedUnpack {
    fn start(bundle: &Path, site: &Path) -> Self {
        let mut child = program::unbundle_command()
            .args(["unpack", "--quiet", "-"])
            .arg(site)
            .stdin(Stdio::piped())
            .spawn()
            .expect("start unbundle");
        let pipe = child.stdin.take().expect("a pipe");
        Self { child, pipe, bytes: fs::read(bundle).expect("read the bundle"), sent: 0 }
    }

    /// Sends the bundle up to `part / of` of its length.
    fn send(&mut self, part: usize, of: usize) {
        let end = self.bytes.len() * part / of;
        self.pipe.write_all(&self.bytes[self.sent..end]).expect("unbundle reads its stdin");
        self.sent = end;
    }

    /// Sends the rest and waits for the end.
    fn finish(mut self) {
        self.send(1, 1);
        drop(self.pipe);
        let status = self.child.wait().expect("wait for unbundle");
        assert!(status.success(), "{status}");
    }
}

/// Polls until `ready` is true.
fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if ready() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{what} does not happen");
}

#[test]
fn garbage_collection_stops_at_the_gc_guard_of_an_unfinished_unpack() {
    let world = world();
    let directory = directory();
    let site = directory.path().join("site");
    let storage = site.join("registry");
    let base = storage.join("docker/registry/v2");
    let config = directory.path().join("config.yml");
    fs::write(
        &config,
        format!("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\n", storage.display()),
    )
    .expect("write config.yml");

    let mut fed = PipedUnpack::start(&world.bundle, &site);
    fed.send(1, 2);
    let blobs = || {
        let files = base.join("blobs/sha256");
        if files.exists() { Tree::of(&files).files().count() } else { 0 }
    };
    wait_until("that the first blobs are in their places", || blobs() > 0);
    assert!(base.join("blobs/unbundle-in-progress/data").is_file());
    assert!(!base.join("repositories").join("k8s/registry.k8s.io/pause/_manifests/tags").exists());
    let before = Tree::of(&base.join("blobs"));
    let output = Command::new("docker-registry").arg("garbage-collect").arg(&config).output();
    let output = output.expect("start docker-registry");
    assert!(!output.status.success(), "{output:?}");
    let after = Tree::of(&base.join("blobs"));
    assert!(before.0.keys().all(|path| after.0.contains_key(path)), "something was deleted");
    fed.finish();

    assert!(!base.join("blobs/unbundle-in-progress").exists());
    tree::assert_same(&world.site, &site);
    let output = process::run(Command::new("docker-registry").arg("garbage-collect").arg(&config));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("eligible for deletion: "), "{output:?}");
    tree::assert_same(&world.site, &site);
}

#[test]
fn gc_guard_remains_while_only_links_are_missing() {
    let world = world();
    let directory = directory();
    let site = directory.path().join("site");
    unpack(&world.bundle, &site).ok();
    let base = site.join("registry/docker/registry/v2");
    // Its blobs are unreferenced now.
    let manifests = base.join("repositories/k8s/quay.io/cilium/cilium/_manifests");
    fs::remove_dir_all(manifests.join("revisions")).expect("remove the revisions");

    let mut fed = PipedUnpack::start(&world.bundle, &site);
    fed.send(1, 2);
    wait_until("the fence", || base.join("blobs/unbundle-in-progress/data").is_file());
    assert!(!manifests.join("revisions").exists());
    fed.finish();
    assert!(!base.join("blobs/unbundle-in-progress").exists());
    tree::assert_same(&world.site, &site);
}

#[test]
fn running_registry_serves_intact_bytes_or_none_and_tags_only_complete_images() {
    let world = world();
    let directory = directory();
    let reference = "quay.io/meanwhile/app:latest";
    let version = |seed: u64| {
        let layers = [Layer::random(seed, 200_000, Compression::Gzip)];
        let images =
            ["linux/amd64", "linux/arm64"].map(|platform| Image::new(Format::Oci, platform, &layers));
        Image::index(Format::Oci, images.to_vec())
    };
    let [old, new] = [70, 71].map(version);
    let site = directory.path().join("site");
    world.upstream.registry.push("quay.io/meanwhile/app", "latest", &old);
    unpack(&world.pack_lines(directory.path(), &[reference], &[]), &site).ok();
    world.upstream.registry.push("quay.io/meanwhile/app", "latest", &new);
    let list = write_list(directory.path(), &[reference, &world.upstream.images_list()]);
    let bundle = directory.path().join("bundle.tar.zst");
    world.pack(&list, &bundle, &[]).ok();

    let registry = Registry::serve(&site.join("registry"));
    // Returns how many tags exist.
    let poll = || {
        let (_, tagged) = registry.manifest("k8s/quay.io/meanwhile/app", "latest").expect("the tag stays");
        let image = if tagged == new.manifest[..] { &new } else { &old };
        registry.assert_serves("k8s/quay.io/meanwhile/app", "latest", image);
        let mut tags = 0;
        for entry in world.upstream.images() {
            let name = site_name(entry);
            let tag = entry.tag().and_then(|tag| registry.manifest(&name, tag));
            if tag.is_some() {
                registry.assert_serves(&name, entry.tag(), &entry.image);
                tags += 1;
                continue;
            }
            for (manifest, bytes) in entry.image.manifests() {
                let found = registry.manifest(&name, &manifest.digest);
                assert!(found.is_none_or(|(_, found)| found == bytes[..]), "{name}@{}", manifest.digest);
            }
            for (digest, bytes) in entry.image.parts() {
                let found = registry.blob(&name, &digest);
                assert!(found.is_none_or(|found| found == bytes[..]), "{name}@{digest}");
            }
        }
        tags
    };
    let mut fed = PipedUnpack::start(&bundle, &site);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for part in 1..4 {
            fed.send(part, 4);
            assert_eq!(poll(), 0, "tags come last");
        }
        // Tags may appear from here on.
        let poller = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                poll();
                rounds += 1;
            }
            rounds
        });
        fed.finish();
        done.store(true, Ordering::Relaxed);
        assert!(poller.join().expect("every response is correct or 404") > 0);
    });
    assert_eq!(poll(), world.upstream.images().iter().filter(|entry| entry.tag().is_some()).count());
    registry.assert_serves("k8s/quay.io/meanwhile/app", "latest", &new);
}
