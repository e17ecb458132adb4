//! Tests of the test support: every server responds and every client pulls, without our programs in between.

#[path = "mod.rs"]
mod support;

use std::fs;
use std::process::Command;

use support::clients::{self, Dockerd, Podman};
use support::image::{Compression, Format, Image, Layer, OCI_EMPTY};
use support::registry::Registry;
use support::tree::{self, Tree};
use support::upstream::Upstream;
use support::web::Web;
use tempfile::TempDir;

fn directory() -> TempDir {
    TempDir::new().expect("create a temporary directory")
}

fn tiny(platform: &str) -> Image {
    Image::new(
        Format::Oci,
        platform,
        &[Layer::files(&[("etc/motd", platform.as_bytes())], Compression::Gzip)],
    )
}

#[test]
fn images_are_reproducible() {
    let build = || Image::index(Format::Docker, vec![tiny("linux/amd64"), tiny("linux/arm/v7")]);
    assert_eq!(build().blobs(), build().blobs());
    assert_eq!(build().root.digest, support::sha256(&build().manifest));
    assert_eq!(build().platforms(), ["linux/amd64", "linux/arm/v7"]);
}

#[test]
fn known_bytes_have_their_known_digests() {
    let empty = Layer::empty();
    assert_eq!(
        support::sha256(&empty.bytes),
        "sha256:a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4"
    );
    assert_eq!(empty.diff_id, "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef");
    let artifact = Image::artifact("application/example", &[("a", b"a")]);
    let config = artifact.config().expect("an artifact has a config");
    assert_eq!(config.media_type, OCI_EMPTY);
    assert_eq!(config.digest, "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
}

#[test]
fn sparse_index_keeps_its_bytes_and_loses_children() {
    let index = Image::index(Format::Oci, vec![tiny("linux/amd64"), tiny("linux/arm64")]);
    let sparse = index.sparse(|child| child.platform.as_deref() == Some("linux/amd64"));
    assert_eq!(sparse.manifest, index.manifest);
    assert_eq!((sparse.manifests().len(), index.manifests().len()), (2, 3));
}

#[test]
fn skopeo_podman_docker_and_containerd_pull_what_was_pushed() {
    let directory = directory();
    let upstream = Upstream::kubespray_like(directory.path());
    let (podman, dockerd) = (Podman::new(), Dockerd::start());
    for entry in upstream.images() {
        upstream.registry.assert_serves(entry.name(), entry.tag(), &entry.image);
    }

    let platform = "linux/amd64";
    for reference in [
        "registry.k8s.io/pause:3.9",
        "docker.io/library/nginx:1.25.2-alpine",
        "docker.io/flannel/flannel:v0.22.0",
        "quay.io/calico/node:v3.27.3",
        "ghcr.io/kube-vip/kube-vip:v0.8.0",
    ] {
        let image = upstream.image(reference);
        let by_tag = format!("{}/{reference}", upstream.registry.addr());
        let (name, _) = by_tag.rsplit_once(':').expect("a tag");
        let by_digest = format!("{name}@{}", image.root.digest);
        let zstd = reference.contains("kube-vip");
        let id = &image.for_platform(platform).and_then(Image::config).expect("an image for amd64").digest;
        for reference in [&by_tag, &by_digest] {
            assert_eq!(clients::skopeo_raw_manifest(reference), image.manifest[..], "{reference}");
            assert_eq!(&podman.pull(reference), id, "{reference}");
            dockerd.ctr_pull(reference);
            // Docker 20.10 does not support zstd.
            if !zstd {
                assert_eq!(&dockerd.pull(reference), id, "{reference}");
            }
        }
        // skopeo 1.18 does not copy an index of images with zstd layers unchanged.
        if zstd {
            continue;
        }
        let copy = directory.path().join("copies").join(&image.root.digest);
        clients::skopeo_pull(&by_tag, &copy);
        assert_eq!(fs::read(copy.join("manifest.json")).expect("skopeo copied it"), image.manifest[..]);
        for (digest, bytes) in image.parts() {
            let file = copy.join(&digest["sha256:".len()..]);
            assert_eq!(fs::read(file).expect("skopeo copied it"), bytes[..], "{reference}");
        }
    }
}

#[test]
fn read_only_registry_serves_the_tree_and_garbage_collection_keeps_referenced_blobs() {
    let directory = directory();
    let storage = directory.path().join("storage");
    let image = Image::index(Format::Oci, vec![tiny("linux/amd64"), tiny("linux/arm64")]);
    {
        let registry = Registry::start(&storage);
        registry.push("library/tiny", "1", &image);
        assert_eq!(registry.garbage_collect(&["--dry-run"]), [""; 0]);
        let unreferenced = [("orphan", &b"orphan"[..])];
        let orphan =
            Image::new(Format::Docker, "linux/amd64", &[Layer::files(&unreferenced, Compression::None)]);
        registry.push("library/tiny", "2", &orphan);
        let revision = orphan.root.digest.replace(':', "/");
        let manifests = storage.join("docker/registry/v2/repositories/library/tiny/_manifests");
        fs::remove_dir_all(manifests.join("revisions").join(revision)).expect("remove a revision");
        fs::remove_dir_all(manifests.join("tags/2")).expect("remove a tag");
        // Its manifest, config and layer.
        assert_eq!(registry.garbage_collect(&[]).len(), 3);
    }
    let before = (Tree::of(&storage), tree::stamps(&storage));
    let registry = Registry::serve(&storage);
    registry.assert_serves("library/tiny", "1", &image);
    assert!(registry.manifest("library/tiny", "3").is_none());
    let requests = registry.requests();
    assert!(
        requests.iter().any(|get| get.path == "/v2/library/tiny/manifests/1" && get.status == 200),
        "{requests:?}"
    );
    drop(registry);
    assert_eq!((Tree::of(&storage), tree::stamps(&storage)), before);
}

#[test]
fn nginx_serves_files_and_ranges_and_logs_requests() {
    let directory = directory();
    fs::write(directory.path().join("a+b.txt"), "0123456789").expect("write a file");
    let web = Web::start(directory.path());
    let url = web.url("a+b.txt");
    assert_eq!(clients::curl([&url]), b"0123456789");
    assert_eq!(clients::curl(["--range", "2-4", &url]), b"234");
    let requests = web.requests();
    assert_eq!(
        requests.iter().map(|get| (get.status, get.range.as_deref())).collect::<Vec<_>>(),
        [(200, None), (206, Some("bytes=2-4"))]
    );
    assert!(requests.iter().all(|get| get.method == "GET" && get.path == "/a+b.txt"), "{requests:?}");
}

#[test]
fn upstream_writes_its_lists_and_mirror_arguments() {
    let directory = directory();
    let image = tiny("linux/amd64");
    let digest = image.root.digest.clone();
    let images = vec![
        support::upstream::UpstreamImage::new("quay.io/a/tiny:1", image.clone()),
        support::upstream::UpstreamImage::new("quay.io/b/tiny@", image),
    ];
    let file = support::upstream::UpstreamFile::new("https://dl.k8s.io/x/y", b"y".to_vec());
    let upstream = Upstream::start(directory.path(), images, vec![file.clone(), file.not_pinned()]);
    let (registry, web) = (upstream.registry.addr(), upstream.web.addr());
    assert_eq!(
        upstream.mirror_args(),
        [
            "--mirror",
            &format!("dl.k8s.io=http://{web}/dl.k8s.io"),
            "--mirror",
            &format!("quay.io=http://{registry}/quay.io"),
            "--mirrors-only",
        ]
    );
    let lists = upstream.write_lists(&directory.path().join("lists"));
    let read = |name: &str| fs::read_to_string(lists.join(name)).expect("read a list");
    let images = format!("quay.io/a/tiny:1\nquay.io/b/tiny@{digest}\n");
    assert!(read("images.list").ends_with(&images), "{}", read("images.list"));
    let files = format!("https://dl.k8s.io/x/y {}\nhttps://dl.k8s.io/x/y\n", support::sha256(b"y"));
    assert!(read("files.list").ends_with(&files), "{}", read("files.list"));
    upstream.registry.assert_serves("quay.io/b/tiny", None, upstream.image("quay.io/a/tiny:1"));
}

#[test]
fn tree_difference_names_each_path() {
    let directory = directory();
    let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
    for root in [&one, &two] {
        fs::create_dir_all(root.join("sub")).expect("create a directory");
        fs::write(root.join("sub/file"), "same").expect("write a file");
    }
    tree::assert_same(&one, &two);
    assert_eq!(tree::diff(&one, &two), "");
    fs::write(two.join("sub/file"), "else").expect("write a file");
    let difference = Tree::of(&one).difference(&Tree::of(&two));
    assert!(difference.len() == 1 && difference[0].starts_with("sub/file: "), "{difference:?}");
    assert!(tree::diff(&one, &two).contains("sub/file"));
}

#[test]
fn servers_end_with_their_owner() {
    let directory = directory();
    let web = Web::start(directory.path());
    let addr = web.addr();
    drop(web);
    let curl = Command::new("curl").args(["-s", "--noproxy", "*", &format!("http://{addr}/")]).status();
    assert_eq!(curl.expect("start curl").code(), Some(7), "connection refused");
}
