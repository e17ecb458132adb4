//! A part of a bundle: by name, by platform, one object; nothing is read that is not needed, and what a site holds of a
//! bundle it says.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::damage::{Content, flip_in, largest};
use crate::program::{Finished, run, unbundle, unbundle_command, unbundle_from};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::tree::Tree;
use crate::support::{random_bytes, sha256};

const MIB: u64 = 1 << 20;

/// A bundle, and the site that all of it makes.
struct Whole {
    directory: TempDir,
    bundle: PathBuf,
    site: Tree,
}

impl Whole {
    fn new(content: &Content<'_>) -> Self {
        let directory = tempfile::tempdir().expect("make a directory");
        let bundle = directory.path().join("whole.tar.zst");
        content.write(&bundle);
        let site = directory.path().join("whole");
        unbundle([OsStr::new("unpack"), bundle.as_os_str(), site.as_os_str()]).ok();
        Self { site: Tree::of(&site), directory, bundle }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a verb with the bundle, a site of this name, and options.
    fn unpack(&self, site: &str, options: &[&str]) -> Finished {
        let site = self.path(site);
        let args = [OsStr::new("unpack"), self.bundle.as_os_str(), site.as_os_str(), OsStr::new("--json")];
        unbundle(args.into_iter().chain(options.iter().map(OsStr::new)))
    }

    fn cat(&self, object: &str, options: &[&str]) -> std::process::Output {
        let mut command = unbundle_command();
        command.arg("cat").arg(&self.bundle).arg(object).args(options);
        command.output().expect("start unbundle")
    }

    /// Everything that a site of this name has is as on the whole one, but for its record.
    #[track_caller]
    fn has_nothing_else(&self, site: &str) -> Tree {
        let tree = Tree::of(&self.path(site));
        for (path, entry) in &tree.0 {
            if path != Path::new("site.json") {
                assert_eq!(Some(entry), self.site.0.get(path), "{}", path.display());
            }
        }
        tree
    }
}

fn record(site: &Path) -> Value {
    serde_json::from_slice(&fs::read(site.join("site.json")).expect("read the record")).expect("JSON")
}

fn names(list: &Value, name: &str) -> Vec<String> {
    let list = list.as_array().expect("a list").iter();
    list.map(|entry| entry[name].as_str().expect("a name").to_owned()).collect()
}

/// The tags of a site: `k8s/quay.io/a/one:v1`.
fn tags(tree: &Tree) -> BTreeSet<String> {
    let tag = |path: &Path| {
        let text = path.to_str()?.strip_prefix("registry/docker/registry/v2/repositories/")?;
        let (repository, tag) = text.strip_suffix("/current/link")?.split_once("/_manifests/tags/")?;
        Some(format!("{repository}:{tag}"))
    };
    tree.files().filter_map(tag).collect()
}

/// Runs `unbundle`, and says how many bytes it has read of anything.
fn reading<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> (Finished, u64) {
    let program = unbundle_command();
    let mut shell = Command::new("sh");
    // What a process has read counts for who has waited for it.
    shell.args(["-c", r#""$@" >&2; code=$?; cat /proc/$$/io; exit $code"#, "sh"]);
    shell.arg(program.get_program()).args(args).env_remove("UNBUNDLE_TRUSTED_KEY");
    let finished = run(&mut shell);
    let read = finished.stdout.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("a count");
    let read = read.parse().expect("a number");
    (finished, read)
}

#[test]
fn what_is_not_needed_is_not_read() {
    let content = Content::large();
    let whole = Whole::new(&content);
    let whole_len = fs::metadata(&whole.bundle).expect("look at the bundle").len();
    assert!(whole_len > 31 * MIB, "{whole_len}");
    let bundle = whole.bundle.as_os_str();
    let [site, out] = ["part", "out"].map(|name| whole.path(name));
    let layer = largest(&content.images[1].1).len() as u64;
    let kubelet = &content.files[1];
    for (what, args, most) in [
        ("list", vec![OsStr::new("ls"), bundle], MIB),
        ("look", vec![OsStr::new("verify"), OsStr::new("--quick"), bundle], MIB),
        (
            "cat",
            vec![OsStr::new("cat"), bundle, OsStr::new(kubelet.0), OsStr::new("-o"), out.as_os_str()],
            MIB,
        ),
        (
            "unpack",
            vec![
                OsStr::new("unpack"),
                bundle,
                site.as_os_str(),
                OsStr::new("--only"),
                OsStr::new("quay.io/a/two:v1"),
            ],
            layer + MIB,
        ),
    ] {
        let (finished, read) = reading(args);
        finished.ok();
        assert!(read < most, "{what}: {read} of at most {most}");
    }
    assert_eq!(fs::read(out).expect("read the object"), kubelet.1);
    // A site that has all but one file has its own bytes hashed, and of the bundle that file read.
    let site = whole.path("whole");
    let kubectl = site.join("files/k8s/dl.k8s.io/kubectl");
    let bytes = fs::read(&kubectl).expect("read a file");
    fs::remove_file(&kubectl).expect("remove it");
    let hashed = whole_len + MIB;
    let (finished, read) = reading([OsStr::new("unpack"), bundle, site.as_os_str()]);
    finished.ok();
    assert!(read < hashed + bytes.len() as u64, "{read}, {hashed} of them to look at the site");
    assert_eq!(Tree::of(&site).difference(&whole.site), Vec::<String>::new());
    let (finished, all) = reading([OsStr::new("verify"), bundle]);
    finished.ok();
    assert!(all > whole_len && all < whole_len + MIB, "{all} of {whole_len}: everything once");
}

/// Two images that share a layer, one of them for two platforms with an attestation, one of another platform, a chart, a
/// signature, and files.
fn kinds() -> Content<'static> {
    let base = Layer::files(&[("etc/os-release", b"ID=debian\n")], Compression::Gzip);
    let image = |platform, seed| {
        let top = Layer::random(seed, 3000, Compression::Gzip);
        Image::new(Format::Oci, platform, &[base.clone(), top])
    };
    let (amd64, arm64) = (image("linux/amd64", 1), image("linux/arm64", 2));
    let attestation = Image::attestation(&amd64);
    let multi = Image::index(Format::Oci, vec![amd64, arm64, attestation]);
    let signature = Image::artifact("application/vnd.example.signature", &[("signature", b"signed")]);
    let tag = multi.root.digest.replace(':', "-");
    let signed: &'static str = Box::leak(format!("quay.io/a/multi:{tag}.sig").into_boxed_str());
    Content {
        images: vec![
            ("quay.io/a/chart:1.0.0", Image::helm_chart("chart", "1.0.0")),
            (signed, signature),
            ("quay.io/a/multi:v1", multi),
            ("quay.io/b/arm:v1", image("linux/arm64", 3)),
            ("quay.io/b/c/deep:v1", image("linux/amd64", 4)),
        ],
        files: vec![
            ("dl.k8s.io/release/kubectl", random_bytes(5, 2000)),
            ("dl.k8s.io/release/kubelet", random_bytes(6, 2000)),
            ("get.helm.sh/helm.tar.gz", random_bytes(7, 2000)),
        ],
    }
}

#[test]
fn names_with_wildcards_select_images_and_files_and_the_rest_comes_later() {
    let content = kinds();
    let whole = Whole::new(&content);
    let signature = content.images[1].0;
    for (number, (only, images, files)) in [
        (vec!["quay.io/b/arm:v1"], vec!["quay.io/b/arm:v1"], vec![]),
        (vec!["quay.io/b/*:v1"], vec!["quay.io/b/arm:v1"], vec![]),
        (vec!["quay.io/b/**"], vec!["quay.io/b/arm:v1", "quay.io/b/c/deep:v1"], vec![]),
        (vec!["**/deep:v?"], vec!["quay.io/b/c/deep:v1"], vec![]),
        // A signature comes with what it is about.
        (vec!["quay.io/a/multi:v1"], vec![signature, "quay.io/a/multi:v1"], vec![]),
        (
            vec!["quay.io/a/ch*", "dl.k8s.io/**/kube[cl]*"],
            vec!["quay.io/a/chart:1.0.0"],
            vec!["k8s/dl.k8s.io/release/kubectl", "k8s/dl.k8s.io/release/kubelet"],
        ),
        (vec!["*/helm.tar.gz"], vec![], vec!["k8s/get.helm.sh/helm.tar.gz"]),
    ]
    .into_iter()
    .enumerate()
    {
        let options: Vec<_> = only.iter().flat_map(|only| ["--only", only]).collect();
        let site = format!("part{number}");
        let summary = whole.unpack(&site, &options).ok().json();
        assert_eq!(
            [
                &summary["images"],
                &summary["files"],
                &summary["bundle"]["images"],
                &summary["bundle"]["files"]
            ],
            [images.len(), files.len(), 5, 3].map(Value::from).each_ref(),
            "{only:?}"
        );
        let tree = whole.has_nothing_else(&site);
        let tagged = images.iter().map(|image| format!("k8s/{image}")).collect::<BTreeSet<_>>();
        assert_eq!(tags(&tree), tagged, "{only:?}");
        let record = record(&whole.path(&site));
        let mut sorted = images.clone();
        sorted.sort_unstable();
        assert_eq!(names(&record["images"], "reference"), sorted, "{only:?}");
        assert_eq!(names(&record["files"], "path"), files, "{only:?}");
        assert_eq!(record["bundles"][0]["partial"], true);
        let served: Vec<_> =
            tree.files().filter_map(|path| path.strip_prefix("files").ok()).map(Path::to_path_buf).collect();
        assert_eq!(served, files.iter().map(PathBuf::from).collect::<Vec<_>>(), "{only:?}");

        // From a pipe nothing can be left unread; the site is the same.
        let piped = whole.path("piped");
        let args = [OsStr::new("unpack"), OsStr::new("-"), piped.as_os_str()];
        unbundle_from(&whole.bundle, args.into_iter().chain(options.iter().map(OsStr::new))).ok();
        assert_eq!(Tree::of(&piped).difference(&tree), Vec::<String>::new(), "{only:?}");
        fs::remove_dir_all(piped).expect("remove the site");

        whole.unpack(&site, &[]).ok();
        assert_eq!(
            Tree::of(&whole.path(&site)).difference(&whole.site),
            Vec::<String>::new(),
            "{only:?}, and then the rest"
        );
    }
}

#[test]
fn an_image_for_some_platforms_is_a_sparse_index_and_says_which_it_has() {
    let content = kinds();
    let whole = Whole::new(&content);
    let multi = &content.images[2].1;
    let [amd64, arm64, attestation] = [0, 1, 2].map(|number| multi.children[number].root.digest.clone());
    let site = whole.path("part");
    let platforms = || {
        let listed = unbundle([OsStr::new("images"), site.as_os_str(), OsStr::new("--json")]).ok().json();
        let images = listed["images"].as_array().expect("a list").iter();
        let image = |image: &Value| {
            (image["reference"].as_str().expect("a name").to_owned(), image["platforms"].to_string())
        };
        images.map(image).collect::<BTreeMap<_, _>>()
    };
    let has = |digest: &str| {
        let hex = &digest["sha256:".len()..];
        site.join(format!("registry/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2])).exists()
    };

    let summary = whole.unpack("part", &["--platform", "linux/amd64"]).ok().json();
    assert_eq!((&summary["images"], &summary["files"]), (&4.into(), &3.into()));
    let tree = whole.has_nothing_else("part");
    assert!(!tags(&tree).contains("k8s/quay.io/b/arm:v1"));
    let known = platforms();
    assert_eq!(known["quay.io/a/multi:v1"], r#"["linux/amd64"]"#);
    assert_eq!(known["quay.io/a/chart:1.0.0"], "[]");
    assert!(!known.contains_key("quay.io/b/arm:v1"));
    assert!(has(&multi.root.digest) && has(&amd64) && has(&attestation) && !has(&arm64));

    // The other platform joins it.
    let summary = whole.unpack("part", &["--platform", "linux/arm64", "--only", "quay.io/**"]).ok().json();
    assert_eq!((&summary["images"], &summary["files"]), (&4.into(), &0.into()));
    assert!(has(&arm64));
    let known = platforms();
    assert_eq!(known["quay.io/a/multi:v1"], r#"["linux/amd64","linux/arm64"]"#);
    assert_eq!(known["quay.io/b/arm:v1"], r#"["linux/arm64"]"#);
    let mut expected = record(&whole.path("whole"));
    expected["bundles"][0]["partial"] = true.into();
    let mut found = record(&site);
    let multi_of = |record: &mut Value| {
        let images = record["images"].as_array_mut().expect("a list");
        let multi = images.iter_mut().find(|image| image["reference"] == "quay.io/a/multi:v1").expect("it");
        let manifests = multi["manifests"].as_array_mut().expect("a list");
        manifests[1..].sort_by_key(ToString::to_string);
    };
    // Sizes and all, however the parts came; only their order may be another one.
    multi_of(&mut expected);
    multi_of(&mut found);
    assert_eq!(found, expected);

    let both = whole.path("both");
    let piped =
        ["unpack", "-", both.to_str().expect("a plain path"), "--platform", "linux/amd64,linux/arm64"];
    unbundle_from(&whole.bundle, piped).ok();
    whole.unpack("part", &[]).ok();
    let without_record = |tree: Tree| tree.difference(&whole.site);
    assert_eq!(without_record(Tree::of(&site)), Vec::<String>::new());
    assert_eq!(without_record(Tree::of(&both)).len(), 1, "the record says that a part was asked for");
}

#[test]
fn what_selects_nothing_is_an_error_and_touches_nothing() {
    let whole = Whole::new(&kinds());
    for (options, words) in [
        (
            &["--only", "pause:3.9"][..],
            &["`pause:3.9`", "unbundle ls", "no image or file in the bundle matches"][..],
        ),
        (
            &["--only", "quay.io/a/multi:v1", "--only", "*.deb"],
            &["`*.deb`", "no image or file in the bundle matches"],
        ),
        (
            &["--platform", "linux/s390x"],
            &["linux/s390x", "no image in the bundle has the platform", "linux/amd64, linux/arm64"],
        ),
        (
            &["--only", "quay.io/b/arm:v1", "--platform", "linux/amd64"],
            &["linux/amd64", "available are linux/arm64"],
        ),
        (&["--only", "a[b"], &["invalid value", "--only"]),
        (&["--platform", "amd64"], &["invalid value", "os/architecture"]),
    ] {
        whole.unpack("none", options).failed(2, words);
        assert!(!whole.path("none").exists(), "{options:?}");
    }
}

#[test]
fn cat_writes_any_object_of_a_file_or_a_pipe() {
    let content = kinds();
    let whole = Whole::new(&content);
    let mut objects: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (reference, image) in &content.images {
        objects.insert((*reference).to_owned(), image.manifest.to_vec());
        objects.extend(image.blobs().into_iter().map(|(digest, bytes)| (digest, bytes.to_vec())));
    }
    for (path, bytes) in &content.files {
        objects.insert((*path).to_owned(), bytes.clone());
        objects.insert(sha256(bytes), bytes.clone());
    }
    let index = whole.cat("index.json", &[]).stdout;
    let identity = unbundle([OsStr::new("ls"), OsStr::new("--json"), whole.bundle.as_os_str()]).ok().json();
    assert_eq!(identity["identity"], sha256(&index));
    objects.insert(sha256(&index), index);
    objects.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    let out = whole.path("out");
    for (name, bytes) in &objects {
        let written = whole.cat(name, &[]);
        assert!(written.status.success() && written.stdout == *bytes, "{name}: {written:?}");
        let piped = ["cat", "-", name, "-o", out.to_str().expect("a plain path")];
        unbundle_from(&whole.bundle, piped).ok();
        assert_eq!(fs::read(&out).expect("read the object"), *bytes, "{name}");
    }
    let missing = format!("sha256:{}", "0".repeat(64));
    for name in ["quay.io/a/multi:v2", "dl.k8s.io/release", &missing, "nothing"] {
        let finished = unbundle([OsStr::new("cat"), whole.bundle.as_os_str(), OsStr::new(name)]);
        assert_eq!(finished.failed(2, &[name, "unbundle ls"]).stdout, "");
    }
}

#[test]
fn cat_completes_nothing_that_is_wrong() {
    let content = Content::large();
    let whole = Whole::new(&content);
    let (path, bytes) = &content.files[0];
    let mut damaged = fs::read(&whole.bundle).expect("read the bundle");
    flip_in(&mut damaged, &bytes[4 << 20..]);
    fs::write(&whole.bundle, damaged).expect("write the bundle");
    let written = whole.cat(path, &[]);
    assert_eq!(written.status.code(), Some(7), "{}", String::from_utf8_lossy(&written.stderr));
    assert!(written.stdout.len() < bytes.len() && bytes.starts_with(&written.stdout));
    let out = whole.path("out");
    fs::write(&out, "before").expect("write a file");
    let written = whole.cat(path, &["--output", out.to_str().expect("a plain path")]);
    assert_eq!((written.status.code(), written.stdout.len()), (Some(7), 0));
    assert_eq!(fs::read(&out).expect("read it"), b"before");
    assert!(!whole.path("out.partial").exists());
    // What is damaged elsewhere does not matter.
    let written = whole.cat("quay.io/a/one:v1", &[]);
    assert_eq!(written.stdout, content.images[0].1.manifest.to_vec());
}
