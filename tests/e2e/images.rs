//! Images of a site in docker, podman and containerd: under their own names, with their digests if the engine
//! keeps digests, complete or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::program::{Finished, run, unbundle, unbundle_command};
use crate::serve::{blob, directory, unpack, world};
use crate::support::clients::{Dockerd, Podman, skopeo};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process;
use crate::support::process::append_command;
use crate::support::upstream::UpstreamImage;

const ENGINES: [&str; 3] = ["docker", "podman", "containerd"];
/// Platform of the machine that runs these tests.
const HOST: &str = "linux/amd64";

/// All three engines.
struct Engines {
    dockerd: Dockerd,
    podman: Podman,
}

impl Engines {
    fn start() -> Self {
        Self { dockerd: Dockerd::start(), podman: Podman::new() }
    }

    /// Runs `unbundle images SITE ARGS` with these engines.
    fn images(&self, site: &Path, args: &[&str]) -> Finished {
        run(&mut self.command(site, args))
    }

    fn command(&self, site: &Path, args: &[&str]) -> Command {
        let mut command = images(site, args);
        command.env("DOCKER_HOST", self.dockerd.host());
        command.env("CONTAINERD_ADDRESS", self.dockerd.containerd()).env("CONTAINERD_SNAPSHOTTER", "native");
        command.env("CONTAINERS_STORAGE_CONF", self.podman.storage_conf());
        command
    }

    /// Returns the images of an engine: its name for each, and the ID or digest.
    fn loaded_images(&self, engine: &str) -> BTreeMap<String, String> {
        let lines = match engine {
            "docker" => {
                self.dockerd.run(["images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"])
            }
            "podman" => {
                self.podman.run(["images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.Id}}"])
            }
            _ => {
                let all = self.dockerd.ctr(["images", "ls"]);
                let rows = all.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
                return rows.map(|row| (row[0].to_owned(), row[2].to_owned())).collect();
            }
        };
        let pair = |line: &str| line.split_once(' ').map(|(name, id)| (name.to_owned(), id.to_owned()));
        lines.lines().filter_map(pair).collect()
    }
}

fn images(site: &Path, args: &[&str]) -> Command {
    let mut command = unbundle_command();
    command.arg("images").arg(site).args(args);
    command
}

/// Runs `unbundle images SITE ARGS` without an engine.
fn list(site: &Path, args: &[&str]) -> Finished {
    run(&mut images(site, args))
}

/// A site with these images.
struct Sample {
    bundle: PathBuf,
    site: PathBuf,
    directory: TempDir,
}

impl Sample {
    fn new(images: &[(&str, &Image)]) -> Self {
        let (world, directory) = (world(), directory());
        for (reference, image) in images {
            let name = reference.split('@').next().expect("split yields at least one part");
            let (name, tag) = name.rsplit_once(':').map_or((name, None), |(name, tag)| (name, Some(tag)));
            world.upstream.registry.push(name, tag, image);
        }
        let lines: Vec<_> = images.iter().map(|(reference, _)| *reference).collect();
        let bundle = world.pack_lines(directory.path(), &lines, &[]);
        let site = directory.path().join("site");
        unpack(&bundle, &site).ok();
        Self { bundle, site, directory }
    }

    fn blob(&self, digest: &str) -> PathBuf {
        blob(&self.site.join("registry"), digest)
    }
}

/// An image of one file for a platform.
fn tiny(platform: &str, text: &str) -> Image {
    Image::new(Format::Oci, platform, &[Layer::files(&[("etc/motd", text.as_bytes())], Compression::Gzip)])
}

/// An index of [`tiny`] images.
fn index(platforms: &[&str], text: &str) -> Image {
    Image::index(Format::Oci, platforms.iter().map(|platform| tiny(platform, text)).collect())
}

fn config(image: &Image) -> &str {
    &image.config().expect("an image has a config").digest
}

/// Returns docker's short form of a name.
fn docker_name(name: &str) -> &str {
    let docker_name = name.strip_prefix("docker.io/").unwrap_or(name);
    docker_name.strip_prefix("library/").unwrap_or(docker_name)
}

/// An image of the world that an engine can load on this machine.
struct Loadable {
    reference: &'static str,
    /// Name without tag and digest.
    name: &'static str,
    by_tag: Option<String>,
    /// Digest that an engine that keeps digests reports: the reference's, or that of the inner index, because
    /// no engine follows a nested index.
    digest: &'static str,
    image: &'static Image,
}

fn loadable() -> Vec<Loadable> {
    let of = |entry: &'static UpstreamImage| {
        let image = entry.image.for_platform(HOST)?;
        let is_nested = entry.image.children.iter().any(|child| !child.children.is_empty());
        let digest = if is_nested { &image.root.digest } else { &entry.image.root.digest };
        let by_tag = entry.tag().map(|tag| format!("{}:{tag}", entry.name()));
        Some(Loadable { reference: &entry.reference, name: entry.name(), by_tag, digest, image })
    };
    world().upstream.images().iter().filter_map(of).collect()
}

/// One image of each kind: more would only take time.
fn kinds() -> Vec<Loadable> {
    const NAMES: [&str; 8] =
        ["pause", "nginx", "haproxy", "flannel", "kube-vip", "metallb/controller", "cilium", "calico/cni"];
    let mut kinds = loadable();
    kinds.retain(|image| NAMES.iter().any(|name| image.name.ends_with(name)));
    kinds.retain(|image| !image.reference.ends_with(":latest"));
    assert_eq!(kinds.len(), NAMES.len());
    kinds
}

#[test]
fn images_of_a_site_are_listed_like_those_of_its_bundle() {
    let world = world();
    let all = list(&world.site, &["--json"]).ok().json();
    let listed = unbundle(["ls".as_ref(), "--json".as_ref(), world.bundle.as_os_str()]).ok().json();
    let by_reference = |value: &serde_json::Value| -> BTreeMap<String, serde_json::Value> {
        let images = value["images"].as_array().expect("a list");
        // The listing of a bundle has more members for each.
        let same = ["reference", "digest", "mediaType", "platforms", "size"];
        let part = |image: &serde_json::Value| same.map(|name| image[name].clone()).to_vec().into();
        images.iter().map(|image| (image["reference"].to_string(), part(image))).collect()
    };
    assert_eq!(by_reference(&all), by_reference(&listed));
    assert!(by_reference(&all).values().all(|image| image[0].is_string() && image[4].is_u64()));

    let some = list(&world.site, &["nginx:1.25.2-alpine", "kube-proxy:v1.29.5"]).ok().stdout;
    let rows: Vec<_> = some.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(rows[0], ["IMAGE", "SIZE", "PLATFORMS", "DIGEST"]);
    assert_eq!(rows[1][0], "docker.io/library/nginx:1.25.2-alpine");
    assert_eq!(rows[1][3], "linux/amd64,linux/arm/v7,linux/arm64");
    assert_eq!(rows[2][0], "registry.k8s.io/kube-proxy:v1.29.5");
    assert_eq!(rows.len(), 3);
}

#[test]
fn docker_loads_every_image_under_its_own_name_and_only_once() {
    let (world, engines) = (world(), Engines::start());
    let knows_zstd = engines.dockerd.version() >= 23;
    let load = || engines.images(&world.site, &["--load", "docker"]);
    let check = |finished: Finished| {
        if knows_zstd {
            return finished.ok();
        }
        let words = ["docker cannot load `ghcr.io/kube-vip/kube-vip:v0.8.0`", "zstd", "Docker 23"];
        finished.failed(11, &words)
    };
    let first = check(load());
    let mut expected = BTreeMap::new();
    for Loadable { by_tag, image, .. } in loadable() {
        if let Some(name) = by_tag.filter(|name| knows_zstd || !name.contains("kube-vip")) {
            assert!(first.stdout.contains(&format!("loaded: {name}")), "{first:#?}");
            expected.insert(docker_name(&name).to_owned(), config(image).to_owned());
        }
    }
    assert_eq!(engines.loaded_images("docker"), expected);
    for skipped in [
        "cannot load `ghcr.io/argoproj/argo-helm/argo-cd:6.7.18`: unsupported media type",
        "cannot load `ghcr.io/aquasecurity/trivy-db:2`: unsupported media type",
        "without a tag: docker loads an image by digest only into the containerd image store",
    ] {
        assert!(first.stderr.contains(skipped), "{skipped}: {first:#?}");
    }
    let again = check(load()).stdout;
    assert!(again.contains("already present: registry.k8s.io/pause:3.9\n"), "{again}");
    assert!(
        again.contains(&format!(" 0 loaded for {HOST} (0 B), {} already present", expected.len())),
        "{again}"
    );

    // The image that docker loaded runs.
    let root = directory();
    let image = "nginx:1.25.2-alpine";
    engines.dockerd.run([
        "create",
        "--pull",
        "never",
        "--network",
        "none",
        "--name",
        "once",
        image,
        "busybox",
    ]);
    let tar = root.path().join("root.tar");
    engines.dockerd.run(["export", "--output", tar.to_str().expect("a UTF-8 path"), "once"]);
    process::run(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(root.path()));
    let said =
        process::stdout_of(Command::new("chroot").arg(root.path()).args(["busybox", "echo", "it runs"]));
    assert_eq!(said, "it runs\n");
}

#[test]
fn docker_with_containerd_store_keeps_digests() {
    if Dockerd::start().version() < 26 {
        return; // it cannot, and the other test shows what it can
    }
    let engines = Engines { dockerd: Dockerd::start_with_containerd_store(), podman: Podman::new() };
    engines.images(&world().site, &["--load", "docker"]).ok();
    for Loadable { reference, name, by_tag, digest, .. } in loadable() {
        let by_digest = format!("{name}@{digest}");
        // Without a digest in the list, only the image of this platform is loaded, so that it can be saved again.
        let names = by_tag.into_iter().chain(reference.contains('@').then(|| by_digest.clone()));
        for name in names {
            let known = engines.dockerd.run(["image", "inspect", "--format", "{{.RepoDigests}}", &name]);
            assert!(!reference.contains('@') || known.contains(docker_name(&by_digest)), "{name}: {known}");
        }
    }
    let again = engines.images(&world().site, &["--load", "docker"]).ok().stdout;
    assert!(again.contains("already present: "), "{again}");
}

#[test]
fn images_of_a_bundle_are_those_of_its_site() {
    let full = index(&[HOST, "linux/arm64"], "full");
    // Stored without compression.
    let single = Image::new(Format::Oci, HOST, &[Layer::random(7, 200_000, Compression::Gzip)]);
    let by_digest = format!("quay.io/of/both:1@{}", full.root.digest);
    let sample =
        Sample::new(&[("quay.io/of/full:1", &full), ("quay.io/of/single:1", &single), (&by_digest, &full)]);
    let (bundle, site) = (&sample.bundle, &sample.site);
    assert_eq!(list(bundle, &[]).ok().stdout, list(site, &[]).ok().stdout);
    assert_eq!(list(bundle, &["--json"]).ok().stdout, list(site, &["--json"]).ok().stdout);
    // A directory with the bundle.
    let directory = sample.directory.path().join("media");
    fs::create_dir(&directory).unwrap();
    fs::copy(bundle, directory.join("b.tar.zst")).unwrap();
    for (name, platform) in
        [("full:1", HOST), ("full:1", "linux/arm64"), ("single:1", HOST), (&*by_digest, HOST)]
    {
        let archive = |source: &Path| {
            let args = [name, "--load", "oci-archive", "--platform", platform, "-o", "-"];
            let output = images(source, &args).output().expect("run unbundle");
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        };
        let expected = archive(site);
        assert!(archive(bundle) == expected, "{name} {platform}");
        assert!(archive(&directory) == expected, "{name} {platform}");
    }
    let error = list(Path::new("-"), &[]);
    assert!(error.code == Some(2) && error.stderr.contains("hint: specify a file"), "{error:?}");
    let error = list(bundle, &["none:1"]);
    assert!(error.code != Some(0) && error.stderr.contains("no image `none:1`"), "{error:?}");
    // Damage in a layer ends the archive inside an entry.
    let mut bytes = fs::read(bundle).unwrap();
    let layer = &single.parts.last().expect("a layer").1;
    let middle = &layer[layer.len() / 2..][..64];
    let at = bytes.windows(middle.len()).position(|window| window == middle).expect("the layer is stored");
    bytes[at] ^= 1;
    fs::write(directory.join("b.tar.zst"), bytes).unwrap();
    let damaged = list(&directory, &["single:1", "--load", "oci-archive", "-o", "/dev/null"]);
    assert_eq!(damaged.code, Some(7), "{damaged:?}");
}

#[test]
fn import_directories_of_kubernetes_distributions_get_archives_with_both_names() {
    let (image, dockerd) = (index(&[HOST, "linux/arm64"], "pod"), Dockerd::start());
    let reference = format!("quay.io/pods/pod:1@{}", image.root.digest);
    let sample = Sample::new(&[(&reference, &image), ("quay.io/pods/plain:2", &image)]);
    for kind in ["k3s", "rke2", "k0s"] {
        for source in [&sample.site, &sample.bundle] {
            let directory = sample.directory.path().join("import").join(kind);
            let text = directory.to_str().expect("UTF-8");
            let loaded = list(source, &["--load", kind, "-o", text]).ok().stdout;
            assert!(loaded.contains(&format!("{kind}: 2 written")), "{loaded}");
            for file in fs::read_dir(&directory).unwrap() {
                let file = file.unwrap().path();
                // As the distributions do: with the platforms of every index.
                let file = file.to_str().expect("UTF-8");
                dockerd.ctr([
                    "--namespace",
                    kind,
                    "images",
                    "import",
                    "--all-platforms",
                    "--no-unpack",
                    file,
                ]);
            }
            fs::remove_dir_all(&directory).unwrap();
            let names = dockerd.ctr(["--namespace", kind, "images", "ls", "-q"]);
            let names: BTreeSet<&str> = names.lines().collect();
            let by_digest = format!("quay.io/pods/pod@{}", image.root.digest);
            assert_eq!(names, ["quay.io/pods/plain:2", "quay.io/pods/pod:1", &by_digest].into(), "{kind}");
        }
    }
    let refused = list(&sample.site, &["--load", "docker", "-o", "x"]);
    assert!(
        refused.stderr.contains("it requires `--load oci-archive`, `k3s`, `rke2` or `k0s`"),
        "{refused:?}"
    );
}

#[test]
fn containerd_imports_a_bundle_under_the_names_that_kubernetes_looks_up() {
    let (image, chart, dockerd) = (tiny(HOST, "pod"), Image::helm_chart("chart", "1.0.0"), Dockerd::start());
    let reference = format!("quay.io/pods/both:1@{}", image.root.digest);
    let sample = Sample::new(&[
        (&reference, &image),
        ("quay.io/pods/tag:1", &image),
        ("quay.io/charts/chart:1.0.0", &chart),
    ]);
    let tar = sample.directory.path().join("bundle.tar");
    process::run(Command::new("zstd").args(["-dq", "-o"]).arg(&tar).arg(&sample.bundle));
    // It would unpack the chart, too.
    dockerd.ctr(["images", "import", "--no-unpack", tar.to_str().expect("UTF-8")]);
    let names = dockerd.ctr(["images", "ls", "-q"]);
    let names: BTreeSet<&str> = names.lines().filter(|name| name.starts_with("quay.io/pods/")).collect();
    let by_digest = format!("quay.io/pods/both@{}", image.root.digest);
    assert_eq!(names, [&*by_digest, "quay.io/pods/tag:1"].into());
}

#[test]
fn containerd_loads_every_image_under_its_own_name_with_its_digest() {
    let (world, engines) = (world(), Engines::start());
    let kinds = kinds();
    let mut args = vec!["--load", "containerd"];
    args.extend(kinds.iter().map(|image| image.reference));
    engines.images(&world.site, &args).ok();
    let mut expected = BTreeMap::new();
    for Loadable { reference, name, by_tag, digest, .. } in &kinds {
        expected.extend(reference.contains('@').then(|| (format!("{name}@{digest}"), (*digest).to_owned())));
        expected.extend(by_tag.clone().map(|name| (name, (*digest).to_owned())));
    }
    let mut loaded_images = engines.loaded_images("containerd");
    loaded_images.retain(|name, _| !name.starts_with("sha256:")); // what CRI adds
    assert_eq!(loaded_images, expected);
    let check = engines.dockerd.ctr(["images", "check", "--snapshotter", "native"]);
    let all_unpacked =
        check.lines().skip(1).all(|line| line.contains(" complete ") && line.ends_with("true "));
    assert!(all_unpacked || check.lines().skip(1).all(|line| line.trim_end().ends_with("true")), "{check}");
    let again = engines.images(&world.site, &args).ok().stdout;
    assert!(again.contains(" 0 loaded "), "{again}");

    // An index with platforms that this machine could also run, and one without a platform.
    let near = index(&[HOST, "linux/386", "linux/arm/v7"], "near");
    let two = Image::index(Format::Oci, vec![tiny(HOST, "one"), tiny(HOST, "two")]);
    let sample = Sample::new(&[("quay.io/near/near:1", &near), ("quay.io/near/two:1", &two)]);
    engines.images(&sample.site, &["--load", "containerd", "--namespace", "other"]).ok();
    let other = engines.dockerd.ctr(["--namespace", "other", "images", "ls"]);
    let loaded_images =
        |name: &str, digest: &str| other.lines().any(|line| line.starts_with(name) && line.contains(digest));
    assert!(loaded_images("quay.io/near/near:1 ", &near.root.digest), "{other}");
    assert!(loaded_images("quay.io/near/two:1 ", &two.children[0].root.digest), "{other}");
    assert!(!engines.loaded_images("containerd").contains_key("quay.io/near/near:1"));
}

#[test]
fn podman_loads_every_image_under_its_own_name_and_digest() {
    let (world, podman) = (world(), Podman::new());
    let load = |args: &[&str]| {
        let mut command = images(&world.site, &[&["--load", "podman"], args].concat());
        run(command.env("CONTAINERS_STORAGE_CONF", podman.storage_conf())).ok()
    };
    let kinds = kinds();
    let references: Vec<_> = kinds.iter().map(|image| image.reference).collect();
    load(&references);
    for Loadable { name, by_tag, digest, image, .. } in &kinds {
        for name in by_tag.iter().cloned().chain([format!("{name}@{digest}")]) {
            let known =
                podman.run(["image", "inspect", "--format", "sha256:{{.Id}} {{.RepoDigests}}", &name]);
            assert!(known.starts_with(config(image)) && known.contains(digest), "{name}: {known}");
        }
    }
    let again = load(&[&references[..], &["--json"]].concat()).json();
    assert_eq!(again["bytes"], 0);
    let results = again["images"].as_array().expect("a list");
    assert!(results.iter().all(|image| image["result"] == "kept"), "{again:#}");
    assert_eq!(results.len(), kinds.len());

    // Another platform replaces this one under the same name, only on request.
    load(&["pause:3.9", "--platform", "linux/arm64"]);
    let architecture =
        podman.run(["image", "inspect", "--format", "{{.Architecture}}", "registry.k8s.io/pause:3.9"]);
    assert_eq!(architecture, "arm64\n");
}

#[test]
fn image_without_the_platform_is_skipped_unless_named() {
    let world = world();
    let directory = directory();
    let output = directory.path().to_str().expect("a UTF-8 path");
    let load = |args: &[&str]| {
        list(&world.site, &[&["--load", "oci-archive", "--output", output, "--platform"], args].concat())
    };
    let all = load(&["linux/arm64"]).ok();
    let why = "skipped: `quay.io/coreos/etcd:v3.5.12` is not available for linux/arm64, only for linux/amd64";
    assert!(all.stderr.contains(why), "{all:#?}");
    let written: BTreeSet<_> = fs::read_dir(output)
        .expect("read a directory")
        .map(|entry| entry.expect("read a directory").file_name().into_string().expect("a UTF-8 name"))
        .collect();
    let for_arm: BTreeSet<_> = world
        .upstream
        .images()
        .iter()
        .filter(|entry| entry.image.for_platform("linux/arm64").is_some())
        .map(|entry| format!("{}.tar", entry.reference.replace(['/', ':'], "_")))
        .collect();
    assert_eq!(written, for_arm);

    let words = [
        "`quay.io/coreos/etcd:v3.5.12` is not available for linux/arm64, only for linux/amd64",
        "--platform",
    ];
    load(&["linux/arm64", "etcd:v3.5.12", "pause:latest"]).failed(2, &words);
    let words = ["`ghcr.io/argoproj/argo-helm/argo-cd:6.7.18`", "an OCI artifact, not a container image"];
    load(&["linux/amd64", "argo-cd:6.7.18"]).failed(2, &words);
    let words = ["no image of this site can be loaded for plan9/mips", "unbundle images"];
    load(&["plan9/mips"]).failed(2, &words);
}

#[test]
fn archive_is_reproducible_and_readable_by_any_tool() {
    let (world, engines) = (world(), Engines::start());
    let directories = [directory(), directory()];
    for directory in &directories {
        let output = directory.path().to_str().expect("a UTF-8 path");
        list(&world.site, &["--load", "oci-archive", "--output", output]).ok();
    }
    for Loadable { reference, by_tag, image, .. } in loadable() {
        let name = by_tag.as_deref().unwrap_or(reference);
        let file = format!("{}.tar", name.replace(['/', ':', '@'], "_"));
        let [first, second] =
            [&directories[0], &directories[1]].map(|directory| directory.path().join(&file));
        let bytes = fs::read(&first).expect("an archive for each image");
        assert!(bytes == fs::read(&second).expect("an archive for each image"), "{file} differs");
        let archive = format!("oci-archive:{}", first.display());
        assert_eq!(skopeo(["inspect", "--raw", &archive]).as_bytes(), &image.manifest[..], "{file}");
        skopeo(["inspect", &archive]);
        let copy = directories[0].path().join("copy");
        let _ = fs::remove_dir_all(&copy);
        skopeo(["copy", "--quiet", "--preserve-digests", &archive, &format!("dir:{}", copy.display())]);
        for (digest, bytes) in image.parts() {
            let file = copy.join(&digest["sha256:".len()..]);
            assert_eq!(fs::read(file).expect("skopeo copied it"), bytes[..], "{name}");
        }
    }
    // Loaded by hand, as on another machine.
    let pause = "registry.k8s.io/pause:3.9";
    let file = directories[0].path().join("registry.k8s.io_pause_3.9.tar");
    let file = file.to_str().expect("a UTF-8 path");
    engines.dockerd.run(["load", "--input", file]);
    engines.podman.run(["load", "--input", file]);
    engines.dockerd.ctr(["images", "import", "--snapshotter", "native", file]);
    assert!(
        engines.loaded_images("docker").contains_key(pause)
            && engines.loaded_images("podman").contains_key(pause)
    );
    assert!(engines.loaded_images("containerd").contains_key(pause));

    // To stdout, to a file of any name, and into a directory.
    let by_name = fs::read(file).expect("an archive");
    let piped = images(&world.site, &[pause, "--load", "oci-archive", "--output", "-"]).output();
    let piped = piped.expect("start unbundle");
    assert!(piped.status.success() && piped.stdout == by_name, "{}", String::from_utf8_lossy(&piped.stderr));
    let mut here = images(&world.site, &[pause, "--load", "oci-archive"]);
    run(here.current_dir(directories[1].path().join(".."))).ok();
    let here = directories[1].path().with_file_name("registry.k8s.io_pause_3.9.tar");
    assert!(fs::read(&here).expect("an archive") == by_name);
    let named = directories[1].path().join("x");
    let output = ["--output", named.to_str().expect("a UTF-8 path")];
    list(&world.site, &[&[pause, "--load", "oci-archive"], &output[..]].concat()).ok();
    assert!(fs::read(&named).expect("an archive") == by_name);
    fs::remove_file(here).expect("remove a file");
}

#[test]
fn every_engine_loads_layers_of_mixed_compression() {
    let engines = Engines::start();
    let layer = |compression| {
        Layer::files(&[(&format!("etc/{compression:?}"), format!("{compression:?}").as_bytes())], compression)
    };
    let [none, gzip, zstd] = [Compression::None, Compression::Gzip, Compression::Zstd].map(layer);
    let common =
        Image::new(Format::Docker, HOST, &[none.clone(), gzip.clone(), Layer::empty(), none.clone()]);
    let all = Image::new(Format::Oci, HOST, &[zstd, gzip, none]);
    let sample = Sample::new(&[("quay.io/layers/common:1", &common), ("quay.io/layers/all:1", &all)]);
    for engine in ENGINES {
        engines.images(&sample.site, &["--load", engine, "quay.io/layers/common:1"]).ok();
        assert!(engines.loaded_images(engine).contains_key("quay.io/layers/common:1"), "{engine}");
    }
    for engine in ["podman", "containerd"] {
        engines.images(&sample.site, &["--load", engine]).ok();
        assert!(engines.loaded_images(engine).contains_key("quay.io/layers/all:1"), "{engine}");
    }
}

#[test]
fn corrupt_image_reaches_no_engine_and_the_others_are_loaded() {
    let engines = Engines::start();
    let noise = Layer::random(80, 1 << 20, Compression::Gzip);
    let app =
        Image::new(Format::Oci, HOST, &[noise.clone(), Layer::files(&[("a", b"a")], Compression::None)]);
    let [app, sound] = [app, tiny(HOST, "sound")].map(|image| Image::index(Format::Oci, vec![image]));
    let sample = Sample::new(&[("quay.io/damaged/app:1", &app), ("quay.io/damaged/sound:1", &sound)]);
    let layer = &app.children[0].parts[2].0.digest;
    let path = sample.blob(layer);
    let complete = fs::read(&path).expect("a blob");
    let flipped = |at: usize| {
        let mut bytes = complete.clone();
        bytes[at] ^= 1;
        Some(bytes)
    };
    let cut = Some(complete[..complete.len() / 2].to_vec());
    for engine in ENGINES {
        for (bytes, problem) in [
            (flipped(0), "is corrupt"),
            (flipped(complete.len() - 1), "is corrupt"),
            (cut.clone(), "is corrupt"),
            (Some([&complete[..], b"x"].concat()), "is corrupt"),
            (None, "is missing"),
        ] {
            match bytes {
                Some(bytes) => fs::write(&path, bytes).expect("write a blob"),
                None => fs::remove_file(&path).expect("remove a blob"),
            }
            let words = ["quay.io/damaged/app:1", &layer["sha256:".len()..], problem, "unbundle unpack"];
            let result = engines.images(&sample.site, &["--load", engine]).failed(7, &words);
            assert_eq!(result.stderr.matches("error:").count(), 1, "{result:#?}");
            let loaded_images = engines.loaded_images(engine);
            let names: Vec<_> = loaded_images.keys().filter(|name| !name.starts_with("sha256:")).collect();
            assert_eq!(names, ["quay.io/damaged/sound:1"], "{engine}");
        }
        unpack(&sample.bundle, &sample.site).ok();
        engines.images(&sample.site, &["--load", engine]).ok();
        assert!(engines.loaded_images(engine).contains_key("quay.io/damaged/app:1"), "{engine}");
    }

    // A missing file, an invalid document, and a directory.
    let load = |words: &[&str]| {
        let output = sample.directory.path().join("app.tar");
        let output = output.to_str().expect("a UTF-8 path");
        let args = ["--load", "oci-archive", "--output", output, "damaged/app:1"];
        list(&sample.site, &args).failed(7, words);
        assert!(!Path::new(output).exists() && !Path::new(&format!("{output}.partial")).exists());
    };
    fs::write(&path, flipped(9).expect("bytes")).expect("write a blob");
    load(&["is corrupt"]);
    fs::write(&path, &complete).expect("write a blob");
    let manifest = &app.children[0].root.digest;
    for digest in [&app.root.digest, manifest, &app.children[0].config().expect("a config").digest] {
        let bytes = fs::read(sample.blob(digest)).expect("a blob");
        fs::write(sample.blob(digest), b"{}").expect("write a blob");
        load(&[&digest["sha256:".len()..], "is corrupt", "unbundle unpack"]);
        fs::write(sample.blob(digest), bytes).expect("write a blob");
    }
}

/// Starts loading, and stops in a read in the middle of the layer at `path`, so that the engine waits for the rest.
/// Returns the tracer and the ID of the program.
#[allow(clippy::zombie_processes, reason = "the caller waits for it")]
fn start_blocked_load(engines: &Engines, sample: &Sample, engine: &str, path: &Path) -> (Child, Pid) {
    let program = engines.command(&sample.site, &["--load", engine]);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=read", "-e"]);
    command.arg("inject=read:delay_enter=300000000:when=9").arg("-P").arg(path);
    append_command(&mut command, &program);
    let child = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.expect("start strace");
    let is_blocked = |id: &str| {
        let fds = fs::read_dir(format!("/proc/{id}/fd")).ok()?;
        let fds = fds.filter_map(Result::ok).filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == path));
        let fd = fds.last()?.file_name().into_string().ok()?;
        let info = fs::read_to_string(format!("/proc/{id}/fdinfo/{fd}")).ok()?;
        let position = info.lines().find_map(|line| line.strip_prefix("pos:"))?.trim().parse::<u64>().ok()?;
        (position >= 256 << 10).then_some(())
    };
    let start = Instant::now();
    loop {
        let tracer = child.id();
        let children =
            fs::read_to_string(format!("/proc/{tracer}/task/{tracer}/children")).unwrap_or_default();
        if let Some(id) = children.split_whitespace().find(|id| is_blocked(id).is_some()) {
            let pid = Pid::from_raw(id.parse().expect("a process ID")).expect("a process ID");
            return (child, pid);
        }
        assert!(start.elapsed() < Duration::from_secs(60), "the layer is not read");
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn interrupted_load_leaves_no_image_and_a_rerun_loads_it() {
    let engines = Engines::start();
    let app = Image::new(Format::Oci, HOST, &[Layer::random(81, 1 << 20, Compression::Gzip)]);
    let sample = Sample::new(&[("quay.io/broken/off:1", &app)]);
    let path = sample.blob(&app.parts[1].0.digest);
    for engine in ENGINES {
        for all in [true, false] {
            let (mut child, id) = start_blocked_load(&engines, &sample, engine, &path);
            let group = Pid::from_child(&child);
            // Ctrl-C reaches the client too, but the parent of these tests may have set SIGINT to ignored;
            // other signals may not reach it.
            if all { kill_process_group(group, Signal::TERM) } else { kill_process(id, Signal::KILL) }
                .expect("the program is running");
            // strace can wait for the end of the delay, although the program has ended.
            let ended = Instant::now();
            while child.try_wait().expect("wait for a child").is_none() {
                if ended.elapsed() > Duration::from_secs(5) {
                    child.kill().expect("kill a child");
                }
                sleep(Duration::from_millis(20));
            }
            assert_eq!(child.wait().expect("wait for a child").code(), None);
            sleep(Duration::from_millis(200));
            assert_eq!(engines.loaded_images(engine), BTreeMap::new(), "{engine}");
        }
        engines.images(&sample.site, &["--load", engine]).ok();
        assert!(engines.loaded_images(engine).contains_key("quay.io/broken/off:1"), "{engine}");
    }
}

#[test]
fn missing_or_unresponsive_engine_is_named_with_a_hint() {
    let site = &world().site;
    for (engine, client) in ENGINES.into_iter().zip(["docker", "podman", "ctr"]) {
        let mut command = images(site, &["--load", engine, "pause:3.9"]);
        let words = [&format!("cannot run `{client}`: command not found in PATH"), "install it", "--load"];
        run(command.env("PATH", "/nonexistent")).failed(11, &words);
    }
    let mut command = images(site, &["--load", "docker", "pause:3.9"]);
    let words = ["docker does not respond: start it", "(`docker`: "];
    run(command.env("DOCKER_HOST", "unix:///nonexistent")).failed(11, &words);
    let mut command = images(site, &["--load", "containerd", "pause:3.9"]);
    let words = ["containerd does not respond: start it", "(`ctr`: ", "/nonexistent"];
    run(command.env("CONTAINERD_ADDRESS", "/nonexistent")).failed(11, &words);
    let engines = Engines::start();
    let words = ["containerd cannot load `registry.k8s.io/pause:3.9`", "`ctr`: exit status: 1", "no/name"];
    engines.images(site, &["--load", "containerd", "--namespace", "no/name", "pause:3.9"]).failed(11, &words);
}

#[test]
fn engine_that_fails_is_not_retried_for_every_image() {
    // A fake, because a real engine cannot be made to fail this way.
    const DOCKER: &str = "#!/bin/sh\n\
        case $1 in\n\
        info) [ ! -e \"$0.gone\" ] || { echo 'nobody listens' >&2; exit 1; } ;;\n\
        load) touch \"$0.gone\"; echo 'Error: I am' >&2; echo 'leaving' >&2; exit 3 ;;\n\
        *) exit 1 ;;\n\
        esac\n";
    let directory = directory();
    let docker = directory.path().join("docker");
    fs::write(&docker, DOCKER).expect("write a script");
    fs::set_permissions(&docker, Permissions::from_mode(0o755)).expect("set the executable bit");
    let mut command = images(&world().site, &["--load", "docker"]);
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    let words = ["docker cannot load `docker.io/flannel", "(`docker`: exit status: 3: Error: I am; leaving)"];
    let result = run(command.env("PATH", path)).failed(11, &words);
    let errors: Vec<_> = result.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 2, "{result:#?}");
    assert!(
        errors[1].contains("docker does not respond") && errors[1].contains("nobody listens"),
        "{result:#?}"
    );
}

#[test]
fn unknown_or_ambiguous_image_name_fails_listing_candidates() {
    let sample = Sample::new(&[
        ("quay.io/one/app:1", &tiny(HOST, "one")),
        ("ghcr.io/two/app:1", &tiny(HOST, "two")),
        ("docker.io/library/app:2", &tiny(HOST, "three")),
    ]);
    let words = ["ambiguous image name `app:1`: it matches `ghcr.io/two/app:1` or `quay.io/one/app:1`"];
    list(&sample.site, &["app:1"]).failed(2, &words);
    let words = ["the site has no image `app:3`: did you mean ", "`docker.io/library/app:2`, "];
    list(&sample.site, &["one/app:1", "app:3"]).failed(2, &words);
    assert!(list(&sample.site, &["app:2"]).ok().stdout.contains("docker.io/library/app:2 "));

    for (args, words) in [
        (&["--load", "docker", "--output", "x"][..], ["`--output`", "oci-archive"]),
        (&["--load", "podman", "--namespace", "x"], ["`--namespace`", "containerd"]),
        (&["--load", "oci-archive", "--output", "x.tar"], ["cannot write", "to one file"]),
        (&["--load", "oci-archive", "--output", "-"], ["cannot write", "to one file"]),
        (&["--load", "oci-archive", "--output", "-", "--json", "app:2"], ["cannot write both", "JSON"]),
        (&["--load", "kaniko"], ["invalid value 'kaniko'", "--load"]),
    ] {
        list(&sample.site, args).failed(2, &words);
    }
    let words = ["is not a site: it has no `site.json`", "unbundle unpack"];
    let empty = directory();
    list(empty.path(), &[]).failed(6, &words);
    fs::write(empty.path().join("site.json"), "{}").expect("write a file");
    list(empty.path(), &[]).failed(7, &["site.json", "remove it and unpack again"]);
}
