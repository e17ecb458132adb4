//! [`World`]: servers and bundles, made without faults, for all parts of the campaign.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::{airbundle, unbundle};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::mount::Tmpfs;
use crate::support::process::run;
use crate::support::random_bytes;
use crate::support::upstream::{Upstream, UpstreamFile, UpstreamImage};

/// A file system in memory, the servers of an upstream, and bundles.
pub struct World {
    upstream: Upstream,
    memory: Tmpfs,
    mirrors: Vec<String>,
}

impl World {
    /// Starts the servers and packs all bundles.
    pub fn new() -> Self {
        let memory = Tmpfs::new("size=6g");
        let root = memory.path().join("world");
        let upstream = Upstream::start(&root.join("upstream"), images(), files());
        let mirrors = upstream.mirror_args();
        let world = Self { upstream, memory, mirrors };
        world.write_lists();
        world.pack("a", &[]);
        world.pack("b", &[]);
        world.pack("large", &[]);
        world.pack("tiny", &[]);
        fs::create_dir(world.path("volumes")).expect("create a directory");
        world.pack_to(
            "large",
            &world.path("volumes/v.tar.zst"),
            &["--volume-size", "6MiB", "--recovery", "20%"],
        );
        world.pack_to("large", &world.path("recovery.tar.zst"), &["--recovery", "20%"]);
        let path = |name: &str| world.text(name);
        airbundle(["keygen", "--no-passphrase", "-o", &path("key")]).ok();
        unbundle(["unpack", "-q", &path("a.tar.zst"), &path("site-a/site")]).ok();
        run(Command::new("cp").arg("-a").args([world.path("site-a"), world.path("site-ab")]));
        unbundle(["unpack", "-q", &path("b.tar.zst"), &path("site-ab/site")]).ok();
        world
    }

    /// Returns a path in the directory of the world.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Returns [`World::path`] as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// Directory of the world, which cases only read.
    pub fn root(&self) -> PathBuf {
        self.memory.path().join("world")
    }

    /// Returns a directory for cases, next to the world. Spaces become hyphens, because `site` refuses them.
    pub fn cases(&self, name: &str) -> PathBuf {
        self.memory.path().join(name.replace(' ', "-"))
    }

    /// Options of `pack` and `lock` that name the servers. Those of list `b` have other content under the same names.
    pub fn mirrors(&self, list: &str) -> Vec<String> {
        let moved = |option: &String| option.replace("/quay.io", "/moved.io");
        if list == "b" { self.mirrors.iter().map(moved).collect() } else { self.mirrors.clone() }
    }

    fn pack(&self, list: &str, options: &[&str]) {
        self.pack_to(list, &self.path(&format!("{list}.tar.zst")), options);
    }

    fn pack_to(&self, list: &str, output: &Path, options: &[&str]) {
        let mut arguments =
            vec!["pack".to_owned(), self.text(&format!("lists/{list}.list")), "-q".to_owned()];
        arguments.extend(["-o".to_owned(), output.to_str().expect("UTF-8").to_owned()]);
        arguments.extend(options.iter().map(|&option| option.to_owned()));
        arguments.extend(self.mirrors(list));
        airbundle(arguments).ok();
    }

    fn write_lists(&self) {
        let lists = self.path("lists");
        fs::create_dir(&lists).expect("create a directory");
        let file = |path: &str| {
            let url = format!("https://dl.k8s.io/{path}");
            let file = self.upstream.files().iter().find(|file| file.url == url).expect("a file");
            format!("{url} {}", file.checksum.as_deref().expect("a checksum"))
        };
        let changing = |path: &str| format!("{} name=dl.k8s.io/changing", file(path));
        let app = "quay.io/team/app:1".to_owned();
        let [old, new] = ["quay.io/team/old:1", "quay.io/team/new:1"].map(str::to_owned);
        let tool = self
            .upstream
            .images()
            .iter()
            .find(|image| image.name() == "quay.io/team/tool")
            .expect("an image");
        let tool = tool.reference.clone();
        let list = |name: &str, lines: &[String]| {
            fs::write(lists.join(format!("{name}.list")), lines.join("\n") + "\n").expect("write a list");
        };
        list("a", &[app.clone(), old, tool, file("a/file"), file("a/empty"), file("layer"), changing("one")]);
        list("b", &[app, new, file("a/file"), file("b/file"), changing("two")]);
        list("large", &["quay.io/team/large:1".to_owned(), file("large")]);
        list("tiny", &["quay.io/team/tiny:1".to_owned(), file("a/file")]);
    }
}

fn note(text: &str) -> Layer {
    Layer::files(&[("etc/motd", text.as_bytes())], Compression::Gzip)
}

fn images() -> Vec<UpstreamImage> {
    let child =
        |platform: &str, text: &str| Image::new(Format::Docker, platform, &[note("common"), note(text)]);
    let app = |text: &str| {
        let children =
            ["linux/amd64", "linux/arm64"].map(|platform| child(platform, &format!("{text} {platform}")));
        Image::index(Format::Docker, children.to_vec())
    };
    let large = Image::new(
        Format::Oci,
        "linux/amd64",
        &[Layer::random(1, 700_000, Compression::Gzip), note("common")],
    );
    let tiny = Image::new(Format::Oci, "linux/amd64", &[note("tiny")]);
    vec![
        UpstreamImage::new("quay.io/team/app:1", app("first")),
        UpstreamImage::new("quay.io/team/old:1", child("linux/amd64", "old")),
        UpstreamImage::new("quay.io/team/tool@", Image::artifact("application/x.y", &[("f", b"f")])),
        UpstreamImage::new("quay.io/team/large:1", large),
        UpstreamImage::new("quay.io/team/tiny:1", tiny),
        UpstreamImage::new("moved.io/team/app:1", app("second")),
        UpstreamImage::new("moved.io/team/new:1", child("linux/amd64", "new")),
    ]
}

fn files() -> Vec<UpstreamFile> {
    let file = |path: &str, bytes: Vec<u8>| UpstreamFile::new(&format!("https://dl.k8s.io/{path}"), bytes);
    vec![
        file("a/file", b"file".to_vec()),
        file("a/empty", Vec::new()),
        file("b/file", b"another file".to_vec()),
        // One blob under two names.
        file("layer", note("common").bytes.to_vec()),
        file("one", b"the first version".to_vec()),
        file("two", b"the second version".to_vec()),
        file("large", random_bytes(3, 7_000_000)),
    ]
}
