//! The command line: help, errors, exit codes, and output for terminals, logs and programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{Finished, airbundle, airbundle_command, unbundle, unbundle_command};
use crate::serve::{World, directory, unpack, world, write_list};
use crate::support::fake::{Content, Fake, Framing, Reply};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::upstream::{Upstream, UpstreamFile, UpstreamImage};
use crate::support::web::Web;
use crate::support::{random_bytes, sha256};

const AIRBUNDLE: &str = env!("CARGO_BIN_EXE_airbundle");
const UNBUNDLE: &str = env!("CARGO_BIN_EXE_unbundle");

/// Returns a path as a command-line argument.
fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

#[test]
fn help_of_every_verb_names_its_arguments_and_options() {
    for (program, args, words) in [
        (AIRBUNDLE, &["--help"][..], &["pack", "lists", "image", "--version"][..]),
        (
            AIRBUNDLE,
            &["lists", "kubespray", "--help"],
            &["--source <", "--arch <", "--vars <", "--enabled-only"],
        ),
        (UNBUNDLE, &["--help"], &["unpack", "ls", "verify", "sbom", "images", "--version"]),
        (AIRBUNDLE, &["sbom", "--help"], &["<BUNDLE>", "--format <", "spdx", "cyclonedx", "--output <"]),
        (
            AIRBUNDLE,
            &["pack", "--help"],
            &[
                "<LIST>...",
                "files.list",
                "images.list",
                "--output <",
                "--platform <",
                "--jobs <",
                "--level <",
                "--retries <",
                "--insecure-registry <HOST>",
                "--mirror <HOST[/PATH]=URL>",
                "--quiet",
                "--json",
                "default: 8",
                "default: 3",
                "linux/amd64",
            ],
        ),
        (
            UNBUNDLE,
            &["unpack", "--help"],
            &[
                "<BUNDLE>",
                "<SITE>",
                "--files <",
                "--registry <",
                "--repository-template <",
                "k8s/{host}/{repository}",
                "--only <GLOB>",
                "--platform <OS/ARCH>",
                "--keep-going",
                "--quiet",
                "--json",
                "- for stdin",
            ],
        ),
        (UNBUNDLE, &["ls", "--help"], &["<BUNDLE>", "--json", "--lock", "- for stdin"]),
        (UNBUNDLE, &["cat", "--help"], &["<BUNDLE>", "<OBJECT>", "--output <FILE>", "- for stdin"]),
        (UNBUNDLE, &["verify", "--help"], &["<BUNDLE>", "--quick", "--quiet", "--json", "- for stdin"]),
        (
            UNBUNDLE,
            &["images", "--help"],
            &[
                "<SITE|BUNDLE>",
                "[REF]...",
                "--load <ENGINE>",
                "docker",
                "podman",
                "containerd",
                "oci-archive",
                "--platform <OS/ARCH>",
                "--namespace <NAME>",
                "default: k8s.io",
                "--output <FILE>",
                "--quiet",
                "--json",
            ],
        ),
    ] {
        let output = Command::new(program).args(args).output().expect("start the program");
        let help = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {help}");
        for word in words {
            assert!(help.contains(word), "{args:?}: no `{word}` in\n{help}");
        }
    }
    for (name, finished) in [("airbundle", airbundle(["--version"])), ("unbundle", unbundle(["--version"]))] {
        assert_eq!(finished.ok().stdout, format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn usage_error_exits_with_2_and_names_the_cause() {
    let directory = directory();
    let list = write_list(directory.path(), &["quay.io/a/b:1"]);
    let list = text(&list);
    let bundle = text(&directory.path().join("bundle")).to_owned();
    let pack = |options: &[&str]| airbundle([&["pack", list, "--output", &bundle], options].concat());
    let malformed = "invalid value";
    for (options, words) in [
        (&["--jobs", "0"][..], &[malformed, "--jobs", "0"][..]),
        (&["--jobs", "many"], &[malformed, "--jobs", "many"]),
        (&["--level", "23"], &[malformed, "--level", "23"]),
        (&["--platform", "amd64"], &[malformed, "--platform", "os/architecture"]),
        (&["--platform", "linux/amd64,"], &[malformed, "--platform"]),
        (&["--mirror", "quay.io"], &[malformed, "--mirror", "expected HOST=URL"]),
        (&["--mirror", "=http://127.0.0.1"], &[malformed, "--mirror", "invalid host"]),
        (&["--mirror", "https://quay.io=http://127.0.0.1"], &[malformed, "--mirror", "invalid host"]),
        (&["--mirror", "quay.io//a=http://127.0.0.1"], &[malformed, "--mirror", "invalid host"]),
        (&["--mirror", "quay.io=127.0.0.1:5000"], &[malformed, "--mirror", "127.0.0.1:5000"]),
        (&["--mirror", "quay.io=ftp://127.0.0.1"], &[malformed, "--mirror", "http:// or https://"]),
        (
            &["--mirror", "quay.io=http://user:word@127.0.0.1"],
            &[malformed, "--mirror", "only a host and a path"],
        ),
        (&["--mirror", "quay.io=http://127.0.0.1/?a=b"], &[malformed, "--mirror", "only a host and a path"]),
        (&["--client-cert", "quay.io"], &[malformed, "--client-cert", "expected HOST=CERT,KEY"]),
        (&["--idle-timeout", "0"], &[malformed, "--idle-timeout", "90s"]),
        (&["--timeout", "1d"], &[malformed, "--timeout", "90s"]),
        (
            &["--insecure-registry", "https://quay.io"],
            &[malformed, "--insecure-registry", "invalid host `https://quay.io`"],
        ),
        (&["--quiet", "--json"], &["--quiet", "--json", "cannot be used"]),
        (&["--nothing"], &["--nothing"]),
    ] {
        let finished = pack(options).failed(2, words);
        assert_eq!(finished.stdout, "", "{options:?}");
    }
    for args in [&[][..], &["repack"], &["pack"], &["pack", list], &["pack", "--output", &bundle]] {
        airbundle(args).failed(2, &["Usage: airbundle"]);
    }
    for args in [&[][..], &["repack"], &["unpack"], &["unpack", &bundle], &["ls"], &["verify"]] {
        unbundle(args).failed(2, &["Usage: unbundle"]);
    }
    for (template, words) in [
        ("k8s/{host}", &["`{repository}`", "same name"][..]),
        ("{registry}/{repository}", &["`{registry}`", "`{host}` or `{repository}`"]),
        ("K8S/{repository}", &["`K8S/{repository}`", "never results in a valid repository name"]),
        ("k8s/{repository}:1", &["`k8s/{repository}:1`", "never results in a valid repository name"]),
    ] {
        let site = directory.path().join("site");
        unbundle(["unpack", &bundle, text(&site), "--repository-template", template]).failed(2, words);
        assert!(!site.exists());
    }
    assert_eq!(
        fs::read_dir(directory.path()).expect("list a directory").count(),
        1,
        "only the list is there"
    );
}

#[test]
fn errors_of_two_lists_are_reported_at_once_with_file_line_and_column() {
    let directory = directory();
    let [files, images] = ["files.list", "images.list"].map(|name| directory.path().join(name));
    let good = sha256(b"good");
    let lines = [
        "# files",
        "https://dl.k8s.io/right",
        "  https://dl.k8s.io/x sha256:12",
        &format!("https://dl.k8s.io/right {good} {good}"),
        "https://dl.k8s.io/a md5:12",
        "http:///nowhere",
        "https://dl.k8s.io/right/below",
    ];
    fs::write(&files, lines.join("\n")).expect("write a list");
    let lines: [&[u8]; 6] = [
        b"quay.io/right/image:1 # and a comment",
        b"nginx",
        b"quay.io/some/image",
        b"quay.io/some/image:1 platform=linux/amd64,linux arch=arm64",
        b"quay.io/Some/image:1",
        b"quay.io/some/image:\xff",
    ];
    fs::write(&images, lines.join(&b'\n')).expect("write a list");

    let bundle = directory.path().join("bundle");
    let expected = [
        (&files, "3:30", "expected 64 hex digits after `sha256:`"),
        (&files, "4:97", "expected one such attribute, not two"),
        (&files, "5:21", "unknown attribute of a file"),
        (&files, "6:8", "expected a host"),
        (&files, "7:1", "collides"),
        (&images, "2:1", "write `docker.io/library/nginx`"),
        (&images, "3:19", "expected `:` and a tag, or `@` and a digest"),
        (&images, "4:43", "expected `os/architecture`"),
        (&images, "4:49", "unknown attribute of an image: expected `platform=`"),
        (&images, "5:9", "expected a repository: lower-case"),
        (&images, "6:20", "not UTF-8"),
    ];
    for lists in [&[files.as_path(), &images][..], &[directory.path()]] {
        let mut args = vec!["pack", "--output", text(&bundle)];
        args.extend(lists.iter().map(|path| text(path)));
        let finished = airbundle(args);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(3), ""), "{finished:#?}");
        let printed: Vec<_> = finished.stderr.lines().collect();
        assert_eq!(printed.len(), expected.len(), "{printed:#?}");
        for (line, (list, place, message)) in printed.iter().zip(expected) {
            assert!(line.starts_with(&format!("error: {}:{place}: ", list.display())), "{line}");
            assert!(line.contains(message), "{line}");
        }
    }
    assert!(!bundle.exists());
}

#[test]
fn empty_or_missing_list_is_an_error() {
    let directory = directory();
    let bundle = directory.path().join("bundle");
    let pack = |list: &Path| airbundle(["pack", text(list), "--output", text(&bundle)]);
    for content in ["", "\n\n", "# nothing\n  # at all\n"] {
        let list = directory.path().join("empty.list");
        fs::write(&list, content).expect("write a list");
        pack(&list).failed(3, &["the lists are empty"]);
    }
    let absent = directory.path().join("nowhere.list");
    pack(&absent).failed(6, &["cannot read", text(&absent), "No such file"]);
    let without = directory.path().join("without");
    fs::create_dir(&without).expect("create a directory");
    pack(&without).failed(3, &[text(&without), "`files.list`", "`images.list`"]);
    assert!(!bundle.exists());
}

#[test]
fn unwritable_output_is_an_error_before_anything_is_fetched() {
    let directory = directory();
    // Nothing listens there: a request would be another error.
    let list = write_list(directory.path(), &["http://127.0.0.1:1/file"]);
    let pack = |output: &Path| airbundle(["pack", text(&list), "--output", text(output)]);
    let absent = directory.path().join("nowhere/bundle");
    pack(&absent).failed(6, &["cannot create", text(&absent), "No such file"]);
    pack(directory.path()).failed(6, &["cannot create", text(directory.path()), "is a directory"]);
    pack(&list.join("bundle")).failed(6, &["cannot create", text(&list), "Not a directory"]);
    assert_eq!(
        fs::read_dir(directory.path()).expect("list a directory").count(),
        1,
        "only the list is there"
    );
}

/// A small bundle and its contents: two images that share a layer, and files, one of which equals that layer.
struct SmallBundle {
    upstream: Upstream,
    bundle: std::path::PathBuf,
    list: std::path::PathBuf,
    directory: TempDir,
}

impl SmallBundle {
    fn new() -> Self {
        let directory = directory();
        let shared = Layer::random(90, 300_000, Compression::Gzip);
        let image = |platform: &str, text: &str| {
            let own = Layer::files(&[("own", text.as_bytes())], Compression::Gzip);
            Image::new(Format::Oci, platform, &[shared.clone(), own])
        };
        let index = Image::index(Format::Oci, vec![image("linux/arm64", "b"), image("linux/amd64", "c")]);
        let images = vec![
            UpstreamImage::new("quay.io/little/single:1", image("linux/amd64", "a")),
            UpstreamImage::new("quay.io/little/index:1", index),
            UpstreamImage::new("quay.io/little/chart:1", Image::helm_chart("chart", "1")),
        ];
        let files = vec![
            UpstreamFile::new("https://dl.k8s.io/a/layer", &*shared.bytes),
            UpstreamFile::new("https://dl.k8s.io/a/other", random_bytes(91, 2 << 20)).not_pinned(),
        ];
        let upstream = Upstream::start(&directory.path().join("upstream"), images, files);
        let list = upstream.write_lists(&directory.path().join("lists"));
        let bundle = directory.path().join("bundle.tar.zst");
        Self { upstream, bundle, list, directory }
    }

    fn pack(&self, options: &[&str]) -> Finished {
        airbundle(self.pack_args(options))
    }

    fn pack_args(&self, options: &[&str]) -> Vec<String> {
        let args = ["pack", text(&self.list), "--output", text(&self.bundle)];
        args.iter().chain(options).map(|&arg| arg.to_owned()).chain(self.upstream.mirror_args()).collect()
    }

    /// Returns the blobs of all images and files, deduplicated, with their sizes.
    fn blobs(&self) -> BTreeMap<String, usize> {
        let images = self.upstream.images().iter().flat_map(|entry| entry.image.blobs());
        let files = self.upstream.files().iter().map(|file| (sha256(&file.bytes), file.bytes.clone()));
        images.chain(files).map(|(digest, bytes)| (digest, bytes.len())).collect()
    }

    /// Returns the total size of all images and files without deduplication.
    fn size_without_sharing(&self) -> usize {
        let image =
            |entry: &UpstreamImage| entry.image.blobs().values().map(|bytes| bytes.len()).sum::<usize>();
        let files = self.upstream.files().iter().map(|file| file.bytes.len());
        self.upstream.images().iter().map(image).chain(files).sum()
    }
}

/// Parses stdout as JSON lines and asserts that all but the last are events of known kinds.
fn events(finished: &Finished) -> Vec<Value> {
    let lines: Vec<Value> = finished
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let (_, events) = lines.split_last().expect("at least one result");
    for event in events {
        let fields: &[&str] = match event["event"].as_str().expect("every line is an event") {
            "stage" => &["name", "bytes", "objects"],
            "begin" => &["id", "object", "bytes"],
            "progress" => &["bytes", "total"],
            "done" => &["id"],
            "retry" => &["object", "reason", "wait"],
            "warning" => &["message"],
            other => panic!("an event of the kind `{other}`"),
        };
        let object = event.as_object().expect("an object");
        let found: Vec<_> = object.keys().map(String::as_str).filter(|key| *key != "event").collect();
        assert!(fields.len() == found.len() && fields.iter().all(|field| found.contains(field)), "{event}");
    }
    let of = |kind: &str| {
        let ids = events.iter().filter(|event| event["event"] == kind).map(|event| event["id"].to_string());
        ids.collect::<BTreeSet<_>>()
    };
    assert_eq!(of("begin"), of("done"), "what is begun is done");
    lines
}

/// Asserts that an object has exactly these fields.
#[track_caller]
fn assert_fields(object: &Value, fields: &[&str]) {
    let mut expected: Vec<_> = fields.to_vec();
    expected.sort_unstable();
    let found: Vec<_> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(found, expected, "{object}");
}

const VERDICT: [&str; 8] =
    ["event", "identity", "blobs", "bytes", "contentsRead", "volumes", "problems", "damage"];

const PACK_SUMMARY: [&str; 16] = [
    "event",
    "identity",
    "files",
    "images",
    "blobs",
    "bytes",
    "blobsLeftOut",
    "bytesLeftOut",
    "upToDate",
    "bytesFetched",
    "bytesResumed",
    "bytesReused",
    "bytesShared",
    "bundleSize",
    "missing",
    "seconds",
];

#[test]
fn json_output_is_one_object_per_line_ending_with_the_result() {
    let little = SmallBundle::new();
    let blobs = little.blobs();
    let packed = little.pack(&["--json"]).ok();
    assert_eq!(packed.stderr, "");
    let lines = events(&packed);
    let stages: Vec<_> =
        lines.iter().filter(|line| line["event"] == "stage").map(|line| &line["name"]).collect();
    assert_eq!(stages, ["resolving", "fetching", "finishing"]);
    let object = |name: &str| lines.iter().any(|line| line["event"] == "begin" && line["object"] == name);
    assert!(object("https://dl.k8s.io/a/other"), "{}", packed.stdout);
    let summary = packed.json();
    assert_fields(&summary, &PACK_SUMMARY);
    assert_eq!(
        (&summary["event"], &summary["files"], &summary["images"]),
        (&"summary".into(), &2.into(), &3.into())
    );
    assert_eq!(summary["bundleSize"], fs::metadata(&little.bundle).expect("a bundle").len());
    // The manifest of the file set and its empty config are blobs too.
    assert_eq!(summary["blobs"], blobs.len() + 2);
    let shared = little.size_without_sharing() - blobs.values().sum::<usize>();
    assert_eq!(summary["bytesShared"], shared, "{summary}");
    assert!(summary["seconds"].as_f64().expect("a number") > 0.0);

    let listed = unbundle(["ls", "--json", text(&little.bundle)]).ok();
    assert_eq!((listed.stdout.lines().count(), listed.stderr.as_str()), (1, ""));
    let listing = listed.json();
    assert_fields(&listing, &["identity", "images", "files"]);
    assert_eq!(listing["identity"], summary["identity"]);
    let by_name = |list: &str, key: &str, name: &str| {
        let list = listing[list].as_array().expect("a list");
        list.iter().find(|entry| entry[key] == name).unwrap_or_else(|| panic!("no `{name}`")).clone()
    };
    for (reference, platforms) in [
        ("quay.io/little/single:1", &["linux/amd64"][..]),
        ("quay.io/little/index:1", &["linux/amd64", "linux/arm64"]),
        ("quay.io/little/chart:1", &[]),
    ] {
        let entry = by_name("images", "reference", reference);
        let image = little.upstream.image(reference);
        assert_fields(&entry, &["reference", "digest", "mediaType", "platforms", "size", "manifests"]);
        assert_eq!(
            (&entry["digest"], &entry["mediaType"]),
            (&image.root.digest.clone().into(), &image.root.media_type.clone().into())
        );
        assert_eq!(entry["platforms"], Value::from(platforms), "{reference}");
        assert_eq!(
            entry["size"],
            image.blobs().values().map(|bytes| bytes.len()).sum::<usize>(),
            "{reference}"
        );
    }
    for file in little.upstream.files() {
        let entry = by_name("files", "path", file.path());
        assert_fields(&entry, &["path", "url", "size", "digest"]);
        assert_eq!(
            (&entry["url"], &entry["size"], &entry["digest"]),
            (&file.url.clone().into(), &file.bytes.len().into(), &sha256(&file.bytes).into())
        );
    }

    let verified = unbundle(["verify", "--json", text(&little.bundle)]).ok();
    events(&verified);
    let verdict = verified.json();
    assert_fields(&verdict, &VERDICT);
    assert_eq!(verdict["contentsRead"], true);
    let len = fs::metadata(&little.bundle).expect("stat the bundle").len();
    let volume = json!({"name": text(&little.bundle), "offset": 0, "size": len});
    assert_eq!((&verdict["volumes"], &verdict["problems"]), (&json!([volume]), &json!([])));
    assert_eq!((&verdict["identity"], &verdict["blobs"]), (&summary["identity"], &summary["blobs"]));
    assert_eq!(verdict["damage"], Value::Array(Vec::new()));

    let site = little.directory.path().join("site");
    let unpacked = unbundle(["unpack", "--json", text(&little.bundle), text(&site)]).ok();
    assert_eq!(unpacked.stderr, "");
    events(&unpacked);
    let summary = unpacked.json();
    assert_fields(
        &summary,
        &[
            "event",
            "files",
            "images",
            "bundle",
            "leftOut",
            "written",
            "repaired",
            "kept",
            "linksWritten",
            "bytesWritten",
            "seconds",
        ],
    );
    assert_eq!((&summary["bundle"], &summary["leftOut"]), (&json!({"files": 2, "images": 3}), &json!([])));
    // The layer that is also a file is written to two paths.
    assert_eq!(summary["written"], blobs.len() + 1);
    assert_eq!(
        ["files", "images", "repaired", "kept"].map(|key| summary[key].as_u64()),
        [Some(2), Some(3), Some(0), Some(0)]
    );
    let other = little.upstream.files()[0].bytes.len();
    assert_eq!(summary["bytesWritten"], blobs.values().sum::<usize>() + other);
}

#[test]
fn json_output_tells_fetched_bytes_from_bundled_bytes() {
    let little = SmallBundle::new();
    let packed = little.pack(&["--json"]).ok();
    let (lines, summary) = (events(&packed), packed.json());
    let blobs = little.blobs();
    let fetched: usize = blobs.values().sum();
    assert_eq!(summary["bytesFetched"], fetched, "{summary}");
    let verdict = unbundle(["verify", "--json", text(&little.bundle)]).ok().json();
    assert_eq!(summary["bytes"], verdict["bytes"]);
    assert!(summary["bytes"].as_u64() > Some(fetched as u64), "the list of files, too: {summary}");
    // The manifests are fetched before the transfers start.
    let images = little.upstream.images().iter();
    let manifests = images.flat_map(|entry| entry.image.manifests());
    let manifests: BTreeMap<_, _> =
        manifests.map(|(descriptor, _)| (descriptor.digest, descriptor.size)).collect();
    let stage = lines.iter().find(|line| line["name"] == "fetching").expect("a staging directory");
    assert_eq!(stage["bytes"], fetched as u64 - manifests.values().sum::<u64>());
    assert_eq!(stage["objects"], blobs.len() - manifests.len());
}

#[test]
fn verdict_on_a_corrupt_bundle_is_json_too() {
    let World { upstream, bundle, .. } = world();
    let directory = directory();
    let damaged = directory.path().join("damaged.tar.zst");
    fs::copy(bundle, &damaged).expect("copy the bundle");
    flip(&damaged);
    let verified = unbundle(["verify", "--json", text(&damaged)]).failed(7, &["blobs damaged"]);
    let verdict = verified.json();
    let damage = verdict["damage"].as_array().expect("a list");
    assert!(!damage.is_empty());
    let mut known: BTreeSet<String> =
        upstream.images().iter().flat_map(|entry| entry.image.blobs().into_keys()).collect();
    known.extend(upstream.files().iter().map(|file| sha256(&file.bytes)));
    for damage in damage {
        assert_fields(damage, &["object", "owners", "places", "trouble", "problem"]);
        let hex = damage["object"].as_str().and_then(|object| object.strip_prefix("blobs/sha256/"));
        assert!(known.contains(&format!("sha256:{}", hex.expect("a blob"))), "{damage}");
        assert!(!damage["owners"].as_array().expect("a list").is_empty(), "{damage}");
    }
}

/// Flips one bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("read a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("write a file");
}

#[test]
fn quiet_prints_errors_only() {
    let little = SmallBundle::new();
    let site = little.directory.path().join("site");
    let bundle = text(&little.bundle);
    for finished in [
        little.pack(&["--quiet"]),
        unbundle(["verify", "--quiet", bundle]),
        unbundle(["unpack", "-q", bundle, text(&site)]),
        unbundle(["unpack", "-q", bundle, text(&site)]),
    ] {
        let finished = finished.ok();
        assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("", ""));
    }
    flip(&little.bundle);
    let finished = unbundle(["verify", "--quiet", bundle]).failed(7, &["error: "]);
    assert_eq!(finished.stdout, "");
    fs::remove_dir_all(&site).expect("remove the site");
    let finished = unbundle(["unpack", "--quiet", bundle, text(&site)]).failed(7, &["error: "]);
    assert_eq!(finished.stdout, "");
}

#[test]
fn log_gets_plain_lines_and_stdout_only_the_result() {
    let little = SmallBundle::new();
    let site = little.directory.path().join("site");
    let bundle = text(&little.bundle);
    for (finished, stages, result) in [
        (little.pack(&[]), &["resolving 5 objects", "fetching ", "finishing"][..], "2 files and 3 images: "),
        (unbundle(["verify", bundle]), &["verifying "], "intact: "),
        (unbundle(["unpack", bundle, text(&site)]), &["checking ", "unpacking "], text(&site)),
    ] {
        let finished = finished.ok();
        assert!(finished.stdout.starts_with(result), "{finished:#?}");
        assert!(finished.stdout.ends_with('\n'), "{finished:#?}");
        let plain = |text: &str| text.chars().all(|c| c == '\n' || !c.is_control());
        assert!(plain(&finished.stdout) && plain(&finished.stderr), "{finished:#?}");
        let mut lines = finished.stderr.lines();
        for stage in stages {
            assert!(lines.any(|line| line.starts_with(stage)), "no `{stage}` in {finished:#?}");
        }
    }
}

/// Runs a program on a terminal and returns its output and exit code.
fn run_on_terminal(program: &str, args: &[String]) -> Finished {
    let quoted: Vec<_> = args.iter().map(|arg| format!("'{arg}'")).collect();
    let command = format!("stty columns 100 rows 30; exec {program} {}", quoted.join(" "));
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .output()
        .expect("start script");
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("UTF-8"));
    Finished { code: output.status.code(), stdout, stderr }
}

#[test]
fn terminal_shows_an_overall_bar_a_bar_per_transfer_and_the_result() {
    let little = SmallBundle::new();
    // Slow enough for a bar to be drawn: bars are redrawn at most eight times per second.
    let slow = Web::start_with(&little.directory.path().join("upstream/files"), "limit_rate 1m;");
    let mut args = little.pack_args(&[]);
    let mirror = args.iter_mut().find(|arg| arg.starts_with("dl.k8s.io=")).expect("a mirror");
    *mirror = format!("dl.k8s.io=http://{}/dl.k8s.io", slow.addr());
    let finished = run_on_terminal(AIRBUNDLE, &args).ok();
    for words in [
        &["\u{1b}["][..],
        &["fetching", "[", "]", "MB/", "/s", "left"],
        &["https://dl.k8s.io/a/other", "["],
        &["2 files and 3 images: "],
        &["identity sha256:"],
    ] {
        let lines = finished.stdout.split(['\r', '\n']);
        let found = lines.clone().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "no line with {words:?} in {:#?}", lines.collect::<Vec<_>>());
    }
    // No part of a bar remains in the result.
    let result = &finished.stdout[finished.stdout.find("2 files and 3 images: ").expect("the result line")..];
    assert!(!result.contains('['), "{result:?}");

    let bundle = text(&little.bundle).to_owned();
    let site = text(&little.directory.path().join("site")).to_owned();
    for args in [&["verify".to_owned(), bundle.clone()][..], &["unpack".to_owned(), bundle, site]] {
        let finished = run_on_terminal(UNBUNDLE, args).ok();
        assert!(finished.stdout.contains("\u{1b}["), "{finished:#?}");
    }
    let quiet = run_on_terminal(AIRBUNDLE, &little.pack_args(&["--quiet"])).ok();
    assert_eq!(quiet.stdout, "");
}

#[test]
fn transfer_of_unknown_length_shows_a_spinner_and_bytes() {
    let directory = directory();
    let mut content = Content::default();
    content.file("https://dl.k8s.io/unknown", random_bytes(92, 3 << 20));
    let fake = Fake::start(content.clone(), move |seen, _| Reply {
        framing: Framing::Chunked,
        pause: Duration::from_millis(8),
        ..content.respond(&seen.without("range"))
    });
    let list = write_list(directory.path(), &["https://dl.k8s.io/unknown"]);
    let bundle = directory.path().join("bundle.tar.zst");
    let args = ["pack", text(&list), "--output", text(&bundle)].map(str::to_owned);
    let finished = run_on_terminal(AIRBUNDLE, &[&args[..], &fake.mirror("dl.k8s.io")].concat()).ok();
    let plain = strip_escapes(&finished.stdout);
    let lines = plain.split(['\r', '\n']).filter(|line| line.contains("dl.k8s.io/unknown"));
    // The bar is as wide as the terminal and is followed by the total.
    let lines: Vec<_> = lines.filter_map(|line| line.split("fetching").next()).collect();
    assert!(lines.iter().any(|line| line.trim_end().ends_with(" MB")), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains(['[', '='])), "{lines:#?}");
    assert!(plain.contains("fetching ") && !plain.contains("0 B/"), "{plain:#?}");
}

/// Strips the escape sequences from a terminal's output.
fn strip_escapes(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default();
    let others = parts.map(|part| part.trim_start_matches(|c: char| !c.is_ascii_alphabetic()).get(1..));
    std::iter::once(first).chain(others.map(Option::unwrap_or_default)).collect()
}

#[test]
fn pack_summary_counts_fetched_bytes_and_deduplication_savings() {
    let little = SmallBundle::new();
    let packed = little.pack(&[]).ok();
    let size = fs::metadata(&little.bundle).expect("a bundle").len();
    let mut lines = packed.stdout.lines();
    let mut line = || lines.next().unwrap_or_else(|| panic!("{packed:#?}"));
    let fetched: usize = little.blobs().values().sum();
    let saved = little.size_without_sharing() - fetched;
    // Two images share a layer, which is also a file.
    assert!(saved > 2 * 300_000, "{saved}");
    let [fetched, saved, size] =
        [fetched as u64, saved as u64, size].map(airbundle::base::units::human_bytes);
    assert_eq!(
        line(),
        format!(
            "2 files and 3 images: {} blobs, {fetched} fetched, {saved} deduplicated",
            little.blobs().len() + 2
        )
    );
    let second = line();
    let time = second.strip_prefix(&format!("{}: {size}, ", little.bundle.display())).expect(second);
    let seconds = time.strip_suffix(" s").expect(second);
    assert!(seconds.parse::<f64>().is_ok(), "{second}");
    assert!(line().starts_with("identity sha256:"), "{packed:#?}");
}

#[test]
fn ls_shows_reference_digest_platforms_and_size_of_images_and_sha256_of_files() {
    let World { upstream, bundle, .. } = world();
    let listed = unbundle(["ls", text(bundle)]).ok();
    assert_eq!(listed.stderr, "");
    let row = |name: &str| {
        let row = listed.stdout.lines().find(|line| line.split_whitespace().next() == Some(name));
        let row = row.unwrap_or_else(|| panic!("no `{name}` in\n{}", listed.stdout));
        row.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    for entry in upstream.images() {
        let size: usize = entry.image.blobs().values().map(|bytes| bytes.len()).sum();
        let size = airbundle::base::units::human_bytes(size as u64);
        let mut platforms = entry.image.platforms();
        platforms.retain(|platform| *platform != "unknown/unknown");
        platforms.sort_unstable();
        platforms.dedup();
        let platforms = if platforms.is_empty() { "-".to_owned() } else { platforms.join(",") };
        let (number, unit) = size.split_once(' ').expect("a systemd unit");
        assert_eq!(
            row(&entry.reference),
            [&entry.reference, number, unit, &platforms, &entry.image.root.digest]
        );
    }
    for file in upstream.files() {
        let size = airbundle::base::units::human_bytes(file.bytes.len() as u64);
        let (number, unit) = size.split_once(' ').expect("a systemd unit");
        assert_eq!(row(file.path()), [file.path(), number, unit, &sha256(&file.bytes)]);
    }
    assert_eq!(row("IMAGE"), ["IMAGE", "SIZE", "PLATFORMS", "DIGEST"]);
    assert_eq!(row("FILE"), ["FILE", "SIZE", "SHA256"]);
    let lines = listed.stdout.lines().count();
    assert_eq!(lines, 1 + upstream.images().len() + 1 + 1 + upstream.files().len());
}

#[test]
fn closed_stdout_pipe_is_not_an_error() {
    let World { bundle, .. } = world();
    let head = format!("set -o pipefail; {UNBUNDLE} ls {} | head -1", bundle.display());
    let output = Command::new("bash").args(["-c", &head]).output().expect("start bash");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.starts_with(b"IMAGE "), "{output:?}");

    let directory = directory();
    for args in [
        &["ls", text(bundle)][..],
        &["ls", "--json", text(bundle)],
        &["verify", text(bundle)],
        &["verify", "--json", text(bundle)],
        &["unpack", text(bundle), text(directory.path())],
        &["unpack", "--json", text(bundle), text(directory.path())],
    ] {
        let (reader, writer) = std::io::pipe().expect("create a pipe");
        drop(reader);
        let output = unbundle_command().args(args).stdout(writer).output().expect("start unbundle");
        assert!(output.status.success(), "{args:?}: {output:?}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
    }
}

#[test]
fn unwritable_stdout_is_an_error() {
    let World { bundle, .. } = world();
    let full = File::options().write(true).open("/dev/full").expect("open /dev/full");
    let output = unbundle_command().args(["ls", text(bundle)]).stdout(full).output().expect("start unbundle");
    let printed = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{printed}");
    assert!(printed.contains("cannot write to stdout"), "{printed}");
}

#[test]
fn exit_codes_map_to_one_kind_of_failure_each() {
    let little = SmallBundle::new();
    let path = |name: &str| little.directory.path().join(name);
    let pack = |line: &str, options: &[&str]| {
        let (list, output) = (write_list(little.directory.path(), &[line]), path("other.tar.zst"));
        let mut args = vec!["pack", text(&list), "--output", text(&output), "--retries", "0"];
        args.extend(options);
        let mirrors = little.upstream.mirror_args();
        airbundle(args.into_iter().map(str::to_owned).chain(mirrors))
    };
    // 0
    little.pack(&[]).ok();
    // 2
    airbundle(["pack"]).failed(2, &["Usage"]);
    // 3
    pack("nginx", &[]).failed(3, &["some.list:1:1: "]);
    // 4
    let missing = "https://dl.k8s.io/missing";
    pack(missing, &[]).failed(4, &[missing, "404"]);
    pack("quay.io/little/single:2", &[]).failed(4, &["quay.io/little/single:2", "404"]);
    let dead = ["--mirror", "127.0.0.1:1=http://127.0.0.1:1"];
    pack("http://127.0.0.1:1/a", &dead).failed(4, &["http://127.0.0.1:1/a", "refused"]);
    // 5
    let wrong = sha256(b"something else");
    pack(&format!("https://dl.k8s.io/a/other {wrong}"), &[])
        .failed(5, &["https://dl.k8s.io/a/other", &wrong["sha256:".len()..]]);
    // 6
    unbundle(["ls", text(&path("nowhere"))]).failed(6, &[text(&path("nowhere")), "No such file"]);
    let (bundle, site) = (text(&little.bundle), path("site"));
    unbundle(["unpack", bundle, text(&little.list.join("files.list"))]).failed(6, &["files.list"]);
    // 7
    let damaged = path("damaged.tar.zst");
    fs::copy(&little.bundle, &damaged).expect("copy the bundle");
    flip(&damaged);
    unbundle(["unpack", text(&damaged), text(&site)]).failed(7, &["damaged"]);
    unbundle(["verify", text(&damaged)]).failed(7, &["damaged"]);
    // 8
    let no_bundle = path("some.list");
    for verb in ["ls", "verify"] {
        unbundle([verb, text(&no_bundle)]).failed(8, &[]);
    }
    unbundle(["unpack", text(&no_bundle), text(&site)]).failed(8, &[]);
    // 9
    unpack(&little.bundle, &site).ok();
    let lock = File::open(site.join(".unbundle/lock")).expect("open the lock");
    lock.lock().expect("lock the file");
    unbundle(["unpack", bundle, text(&site)]).failed(9, &[text(&site), "another `unbundle`"]);
    drop(lock);
    unbundle(["unpack", bundle, text(&site)]).ok();
    // 10, on a file system in a private mount namespace that ends with the process.
    let small = path("small");
    fs::create_dir(&small).expect("create a directory");
    let script = r#"mount -t tmpfs -o size=1m none "$1" && "$2" unpack "$3" "$1/site"; code=$?; ls -A "$1/site"; exit $code"#;
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script, "sh"])
        .args([&small, Path::new(UNBUNDLE), &little.bundle])
        .output()
        .expect("start unshare");
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("UTF-8"));
    let finished = Finished { code: output.status.code(), stdout, stderr };
    let finished = finished.failed(10, &[text(&small), "free", "needed", "nothing was written"]);
    assert!(!finished.stdout.contains("docker"), "{finished:#?}");
}

#[test]
fn list_can_be_read_from_a_pipe() {
    // `<(generate_list.sh)` of a shell is a named pipe.
    let little = SmallBundle::new();
    let list = fs::read_to_string(little.list.join("files.list")).expect("read a list");
    let mut child = airbundle_command()
        .args(["pack", "/dev/stdin", "--output", text(&little.bundle)])
        .args(little.upstream.mirror_args())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start airbundle");
    child.stdin.take().expect("a pipe").write_all(list.as_bytes()).expect("the program reads its stdin");
    let output = child.wait_with_output().expect("wait for airbundle");
    assert!(output.status.success());
    assert!(output.stdout.starts_with(b"2 files and 0 images: "), "{output:?}");
}
