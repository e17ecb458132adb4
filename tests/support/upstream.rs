//! [`Upstream`]: the internet for `airbundle pack`, on loopback: a registry and a web server that serve as
//! mirrors of real hosts.

use std::fs;
use std::path::{Path, PathBuf};

use super::image::{Compression, Format, Image, Layer, gzip, tar_of};
use super::package::Packages;
use super::registry::Registry;
use super::web::Web;
use super::{Bytes, random_bytes, sha256, sha512};

/// A registry and a web server with content. Both end when this is dropped.
#[derive(Debug)]
pub struct Upstream {
    pub registry: Registry,
    pub web: Web,
    images: Vec<UpstreamImage>,
    files: Vec<UpstreamFile>,
}

/// An image and its reference in a list.
#[derive(Debug, Clone)]
pub struct UpstreamImage {
    /// `host/repository:tag`, `host/repository@digest` or `host/repository:tag@digest`.
    pub reference: String,
    pub image: Image,
}

/// A file and its list entry.
#[derive(Debug, Clone)]
pub struct UpstreamFile {
    pub url: String,
    /// `sha256:<hex>` or `sha512:<hex>`. `None`: not pinned by the list.
    pub checksum: Option<String>,
    pub bytes: Bytes,
}

impl UpstreamImage {
    /// `reference` is as in a list; if it ends with `@`, the image's digest is appended.
    pub fn new(reference: &str, image: Image) -> Self {
        let reference = match reference.strip_suffix('@') {
            Some(name) => format!("{name}@{}", image.root.digest),
            None => reference.to_owned(),
        };
        Self { reference, image }
    }

    /// `host/repository`, without tag and digest.
    pub fn name(&self) -> &str {
        let name = self.reference.split('@').next().expect("split yields at least one part");
        name.rsplit_once(':').map_or(name, |(name, _)| name)
    }

    pub fn host(&self) -> &str {
        self.reference.split('/').next().expect("split yields at least one part")
    }

    pub fn tag(&self) -> Option<&str> {
        let name = self.reference.split('@').next().expect("split yields at least one part");
        name.rsplit_once(':').map(|(_, tag)| tag)
    }
}

impl UpstreamFile {
    /// A file pinned by SHA-256.
    pub fn new(url: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { url: url.to_owned(), checksum: Some(sha256(&bytes)), bytes }
    }

    /// Returns the same file pinned by SHA-512.
    #[must_use]
    pub fn pinned_by_sha512(self) -> Self {
        Self { checksum: Some(sha512(&self.bytes)), ..self }
    }

    /// Returns the same file without a checksum.
    #[must_use]
    pub fn not_pinned(self) -> Self {
        Self { checksum: None, ..self }
    }

    /// `host/path`, as `wget -x` stores it.
    pub fn path(&self) -> &str {
        self.url.split_once("://").expect("a URL").1
    }

    pub fn host(&self) -> &str {
        self.path().split('/').next().expect("split yields at least one part")
    }
}

impl Upstream {
    /// Serves these images and files, stored below `directory`.
    pub fn start(directory: &Path, images: Vec<UpstreamImage>, files: Vec<UpstreamFile>) -> Self {
        let web_root = directory.join("files");
        fs::create_dir_all(&web_root)
            .unwrap_or_else(|error| panic!("create {}: {error}", web_root.display()));
        for file in &files {
            let path = web_root.join(file.path());
            fs::create_dir_all(path.parent().expect("a host's directory")).expect("create a directory");
            fs::write(&path, &file.bytes).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        }
        let registry = Registry::start(&directory.join("registry"));
        for entry in &images {
            registry.push(entry.name(), entry.tag(), &entry.image);
        }
        Self { registry, web: Web::start(&web_root), images, files }
    }

    /// Serves a small Kubespray installation: images and files of every kind, some 40 MB, for amd64, arm64
    /// and partly arm/v7.
    pub fn kubespray_like(directory: &Path) -> Self {
        let packages = Packages::load();
        Self::start(directory, kubespray_images(&packages), kubespray_files(&packages))
    }

    /// Returns the arguments that route `airbundle` here: `--mirror HOST=URL` for each host, and
    /// `--mirrors-only`.
    pub fn mirror_args(&self) -> Vec<String> {
        let images = self.images.iter().map(|image| (image.host(), self.registry.addr().to_owned()));
        let files = self.files.iter().map(|file| (file.host(), self.web.addr()));
        let mut mirrors: Vec<_> = images.chain(files).collect();
        mirrors.sort();
        mirrors.dedup();
        mirrors
            .into_iter()
            .flat_map(|(host, addr)| ["--mirror".to_owned(), format!("{host}=http://{addr}/{host}")])
            .chain(["--mirrors-only".to_owned()])
            .collect()
    }

    /// Images in list order.
    pub fn images(&self) -> &[UpstreamImage] {
        &self.images
    }

    /// Files in list order.
    pub fn files(&self) -> &[UpstreamFile] {
        &self.files
    }

    /// Returns the image with this reference.
    pub fn image(&self, reference: &str) -> &Image {
        let found = self.images.iter().find(|image| image.reference == reference);
        &found.unwrap_or_else(|| panic!("no image `{reference}` upstream")).image
    }

    /// Returns an `images.list` of all images with their real names.
    pub fn images_list(&self) -> String {
        let lines = self.images.iter().map(|image| format!("{}\n", image.reference));
        format!("# The images of a small Kubespray installation\n\n{}", lines.collect::<String>())
    }

    /// Returns a `files.list` of all files with their real URLs and most checksums.
    pub fn files_list(&self) -> String {
        let lines = self.files.iter().map(|file| match &file.checksum {
            Some(checksum) => format!("{} {checksum}\n", file.url),
            None => format!("{}\n", file.url),
        });
        format!("# The files of a small Kubespray installation\n\n{}", lines.collect::<String>())
    }

    /// Writes both lists into `directory` and returns it, for use as a `LIST` argument.
    pub fn write_lists(&self, directory: &Path) -> PathBuf {
        fs::create_dir_all(directory)
            .unwrap_or_else(|error| panic!("create {}: {error}", directory.display()));
        fs::write(directory.join("images.list"), self.images_list()).expect("write images.list");
        fs::write(directory.join("files.list"), self.files_list()).expect("write files.list");
        directory.to_owned()
    }
}

fn kubespray_images(packages: &Packages) -> Vec<UpstreamImage> {
    use Compression::{Gzip, None, Zstd};
    use Format::{Docker, Oci};

    let layer = |architecture: &str, package: &str, compression: Compression| {
        Layer::package(&packages.get(architecture, package), compression)
    };
    let note = |text: &str| Layer::files(&[("etc/motd", text.as_bytes())], Gzip);

    // Two architectures with common layers in every kube-* image, as in the real ones.
    let [amd64, arm64] = ["amd64", "arm64"].map(|architecture| {
        [
            layer(architecture, "base-files", Gzip),
            layer(architecture, "libc6", Gzip),
            layer(architecture, "zlib1g", Gzip),
        ]
    });
    let kube = |name: &str, package: &str| {
        let children = [("amd64", &amd64), ("arm64", &arm64)].map(|(architecture, common)| {
            let mut layers = common.to_vec();
            layers.extend([layer(architecture, package, Gzip), note(name)]);
            Image::new(Docker, &format!("linux/{architecture}"), &layers)
        });
        let reference = format!("registry.k8s.io/{name}:v1.29.5");
        UpstreamImage::new(&reference, Image::index(Docker, children.to_vec()))
    };
    let tiny = |format: Format, platform: &str, text: &str| {
        Image::new(format, platform, &[Layer::files(&[("pause", text.as_bytes())], Gzip)])
    };
    let pause = Image::index(
        Docker,
        ["linux/amd64", "linux/arm64", "linux/arm/v7"]
            .map(|platform| tiny(Docker, platform, platform))
            .to_vec(),
    );

    // As buildkit orders an index: each image, then an attestation for each.
    let attested = |images: Vec<Image>| {
        let attestations: Vec<_> = images.iter().map(Image::attestation).collect();
        Image::index(Oci, [images, attestations].concat())
    };
    let nginx = attested(vec![
        Image::new(Oci, "linux/amd64", &[amd64[0].clone(), layer("amd64", "busybox-static", Gzip)]),
        Image::new(Oci, "linux/arm64", &[arm64[0].clone(), layer("arm64", "busybox-static", Gzip)]),
        tiny(Oci, "linux/arm/v7", "nginx"),
    ]);
    let coredns = attested(vec![Image::new(Oci, "linux/amd64", &[amd64[0].clone(), note("coredns")])]);

    let etcd = Image::new(Docker, "linux/amd64", &[layer("amd64", "busybox-static", Gzip), note("etcd")]);
    let calico = Image::new(Oci, "linux/amd64", &[amd64[0].clone(), layer("amd64", "iproute2", Gzip)]);
    let calico_cni = Image::new(Oci, "linux/amd64", &[amd64[0].clone(), note("cni")]);
    let cilium = Image::new(Docker, "linux/amd64", &[Layer::random(1, 12 << 20, Gzip)]);
    let flannel = Image::new(
        Docker,
        "linux/amd64",
        &[amd64[0].clone(), note("twice"), Layer::empty(), note("twice"), Layer::empty()],
    );
    let haproxy = Image::new(Oci, "linux/amd64", &[layer("amd64", "ca-certificates", None)]);
    let kube_vip = Image::index(
        Oci,
        ["amd64", "arm64"]
            .map(|architecture| {
                Image::new(
                    Oci,
                    &format!("linux/{architecture}"),
                    &[layer(architecture, "tzdata", Zstd), note("vip")],
                )
            })
            .to_vec(),
    );
    let nested =
        Image::index(Oci, vec![nginx.clone(), Image::index(Oci, vec![calico.clone(), etcd.clone()])]);

    vec![
        kube("kube-apiserver", "perl-base"),
        kube("kube-controller-manager", "kmod"),
        kube("kube-scheduler", "hello"),
        kube("kube-proxy", "iproute2"),
        // Two tags of one image.
        UpstreamImage::new("registry.k8s.io/pause:3.9", pause.clone()),
        UpstreamImage::new("registry.k8s.io/pause:latest", pause),
        UpstreamImage::new("registry.k8s.io/coredns/coredns:v1.11.1", coredns),
        UpstreamImage::new("quay.io/coreos/etcd:v3.5.12", etcd),
        UpstreamImage::new("quay.io/calico/node:v3.27.3", calico),
        // By digest only, and by tag and digest.
        UpstreamImage::new("quay.io/calico/cni@", calico_cni),
        UpstreamImage::new("quay.io/cilium/cilium:v1.15.4@", cilium),
        UpstreamImage::new("quay.io/metallb/controller:v0.13.9", nested),
        UpstreamImage::new("docker.io/library/nginx:1.25.2-alpine", nginx),
        UpstreamImage::new("docker.io/library/haproxy:2.8.2-alpine", haproxy),
        UpstreamImage::new("docker.io/flannel/flannel:v0.22.0", flannel),
        UpstreamImage::new("ghcr.io/kube-vip/kube-vip:v0.8.0", kube_vip),
        UpstreamImage::new(
            "ghcr.io/argoproj/argo-helm/argo-cd:6.7.18",
            Image::helm_chart("argo-cd", "6.7.18"),
        ),
        UpstreamImage::new(
            "ghcr.io/aquasecurity/trivy-db:2",
            Image::artifact(
                "application/vnd.aquasec.trivy.config.v1+json",
                &[("db.tar.gz", &random_bytes(2, 100_000))],
            ),
        ),
    ]
}

fn kubespray_files(packages: &Packages) -> Vec<UpstreamFile> {
    let file = |architecture: &str, package: &str, path: &str| packages.get(architecture, package).file(path);
    let archive = |files: &[(&str, &[u8])]| gzip(&tar_of(files), flate2::Compression::default());
    let release = |path: &str| format!("https://dl.k8s.io/release/v1.29.5/bin/linux/{path}");
    let github = |path: &str| format!("https://github.com/{path}");

    let ip = file("amd64", "iproute2", "bin/ip");
    let bash = file("amd64", "bash", "bin/bash");
    // Equals a layer of an image above byte for byte: one blob under two names.
    let layer = Layer::package(&packages.get("amd64", "iproute2"), Compression::Gzip).bytes;

    vec![
        UpstreamFile::new(
            &release("amd64/kubelet"),
            file("amd64", "libc6", "lib/x86_64-linux-gnu/libc.so.6"),
        ),
        UpstreamFile::new(&release("amd64/kubectl"), bash.clone()),
        UpstreamFile::new(&release("amd64/kubeadm"), file("amd64", "busybox-static", "bin/busybox")),
        UpstreamFile::new(&release("arm64/kubelet"), file("arm64", "bash", "bin/bash")),
        // Two names of the same content.
        UpstreamFile::new(&github("opencontainers/runc/releases/download/v1.1.12/runc.amd64"), ip.clone()),
        UpstreamFile::new(
            &github("containers/crun/releases/download/1.14.4/crun-1.14.4-linux-amd64"),
            ip.clone(),
        ),
        UpstreamFile::new(
            &github(
                "containernetworking/plugins/releases/download/v1.3.0/cni-plugins-linux-amd64-v1.3.0.tgz",
            ),
            layer,
        ),
        UpstreamFile::new(
            &github("containerd/containerd/releases/download/v1.7.16/containerd-1.7.16-linux-amd64.tar.gz"),
            archive(&[("bin/containerd", &bash), ("bin/ctr", &ip)]),
        ),
        UpstreamFile::new(
            &github("etcd-io/etcd/releases/download/v3.5.12/etcd-v3.5.12-linux-amd64.tar.gz"),
            archive(&[("etcd-v3.5.12-linux-amd64/etcd", &random_bytes(3, 8 << 20))]),
        ),
        UpstreamFile::new(
            &github("projectcalico/calico/archive/v3.27.3.tar.gz"),
            archive(&[("README.md", b"calico\n")]),
        )
        .not_pinned(),
        UpstreamFile::new(
            &github("k0sproject/k0s/releases/download/v1.29.5+k0s.0/k0s-v1.29.5+k0s.0-amd64"),
            file("amd64", "hello", "bin/hello"),
        ),
        UpstreamFile::new(
            &github("kata-containers/kata-containers/releases/download/3.1.3/empty"),
            Vec::new(),
        ),
        UpstreamFile::new(
            "https://get.helm.sh/helm-v3.14.2-linux-amd64.tar.gz",
            archive(&[("linux-amd64/helm", &file("amd64", "curl", "bin/curl"))]),
        ),
        UpstreamFile::new(
            "https://storage.googleapis.com/gvisor/releases/release/20230807/x86_64/runsc",
            file("amd64", "kmod", "bin/kmod"),
        )
        .pinned_by_sha512(),
    ]
}
