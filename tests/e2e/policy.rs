//! The signature policy of a host: it fails closed, every verb obeys it, and it covers sites.

use std::ffi::OsStr;
use std::fs;
use std::io::Cursor;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use airbundle::bundle::format::layout::tar_header;
use airbundle::bundle::format::seek_table::{self, FrameEntry};
use airbundle::bundle::format::skippable::{self, PADDING_MAGIC};
use airbundle::bundle::format::{FRAME_SIZE, OCI_LAYOUT, OCI_LAYOUT_CONTENT, frame, padded};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::program::{Finished, airbundle_command, run, unbundle, unbundle_from};
use crate::support::fake::{Content, Fake};
use crate::support::image::{Compression, Format, Image, Layer};

const USAGE: i32 = 2;
const FILE: i32 = 6;
const DAMAGED: i32 = 7;
const UNSIGNED: i32 = 14;
const SIGNER: i32 = 15;
const OUTDATED: i32 = 19;

/// A directory with the keys `ours`, `other` and `third`, and an upstream.
struct Job {
    directory: TempDir,
    fake: Fake,
}

impl Job {
    fn new() -> Self {
        let mut content = Content::default();
        for number in 1..=3 {
            let layers = [Layer::random(number, 3000, Compression::None)];
            let image = Image::new(Format::Oci, "linux/amd64", &layers);
            content.image(&format!("registry.example/a:{number}"), &image);
        }
        for name in ["one", "two", "three"] {
            content.file(&format!("https://files.example/{name}"), name.as_bytes().to_vec());
        }
        let job = Self { directory: tempdir().unwrap(), fake: Fake::honest(content) };
        for name in ["ours", "other", "third"] {
            job.airbundle(&["keygen", "--no-passphrase", "-o", &format!("{name}.key")]).ok();
        }
        job
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn airbundle(&self, args: &[&str]) -> Finished {
        run(airbundle_command().current_dir(self.directory.path()).args(args))
    }

    fn pack_command(&self, name: &str, lines: &[&str], more: &[&str]) -> Command {
        let list = self.path("the.list");
        fs::write(&list, lines.join("\n") + "\n").unwrap();
        let mut command = airbundle_command();
        command.current_dir(self.directory.path());
        command.arg("pack").arg(list).arg("-o").arg(self.path(name)).args(more).arg("--mirrors-only");
        command.args(self.fake.mirror("registry.example")).args(self.fake.mirror("files.example"));
        command
    }

    /// Packs the image and the file with this number, and returns the path of the bundle.
    #[track_caller]
    fn pack(&self, name: &str, number: usize, more: &[&str]) -> String {
        let file = ["one", "two", "three"][number - 1];
        let lines = [format!("registry.example/a:{number}"), format!("https://files.example/{file}")];
        run(&mut self.pack_command(name, &[&lines[0], &lines[1]], more)).ok();
        self.text(name)
    }

    #[track_caller]
    fn signed(&self) -> String {
        self.pack("signed.tar.zst", 1, &["--sign", "ours.key"])
    }

    /// Packs a file, and damages the frame that contains it.
    #[track_caller]
    fn pack_damaged(&self, name: &str, more: &[&str]) -> String {
        run(&mut self.pack_command(name, &["https://files.example/two"], more)).ok();
        let mut bytes = fs::read(self.path(name)).unwrap();
        let table = seek_table::read(&mut Cursor::new(&bytes)).unwrap().unwrap();
        let last = table.iter().rposition(|entry| entry.decompressed > 0).unwrap();
        let offset: usize = table[..last].iter().map(|entry| entry.compressed as usize).sum();
        bytes[offset + table[last].compressed as usize / 2] ^= 1;
        fs::write(self.path(name), bytes).unwrap();
        self.text(name)
    }

    /// Returns the key ID in the comment of a public key.
    fn id(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap();
        text.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned()
    }

    /// Runs a shell script with an empty `/etc`, and returns what it prints.
    fn with_etc(&self, script: &str) -> String {
        let mut shell = Command::new("unshare");
        let script = format!("set -eu\nmount -t tmpfs tmpfs /etc\n{script}");
        shell.args(["--mount", "sh", "-c", &script]).current_dir(self.directory.path());
        shell
            .env("UNBUNDLE", env!("CARGO_BIN_EXE_unbundle"))
            .env("AIRBUNDLE", env!("CARGO_BIN_EXE_airbundle"));
        shell.env("HOME", "/nonexistent");
        for name in ["UNBUNDLE_TRUSTED_KEY", "AIRBUNDLE_PASSPHRASE", "http_proxy", "https_proxy", "all_proxy"]
        {
            shell.env_remove(name);
        }
        let output = shell.output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
        printed
    }
}

/// Returns a bundle with these bytes as `index.json`, and nothing after its head.
pub fn bundle_with_index(index: &[u8]) -> Vec<u8> {
    let mut head = Vec::new();
    for (name, content) in [(OCI_LAYOUT, OCI_LAYOUT_CONTENT), ("index.json", index)] {
        head.extend(tar_header(name, content.len() as u64));
        head.extend(content);
        head.resize(usize::try_from(padded(head.len() as u64)).unwrap(), 0);
    }
    let mut frames: Vec<_> = head.chunks(FRAME_SIZE).map(|content| frame::encode(content, 3)).collect();
    frames.extend([skippable::encode(PADDING_MAGIC, &[0; 100]), frame::encode(&[0; 1024], 3)]);
    frames.concat()
}

#[test]
fn nothing_of_an_index_without_a_trusted_signature_is_parsed_or_printed() {
    let job = Job::new();
    let evil = "\u{1b}[2Jintact: signed by a key which is trusted\u{202e}";
    let format = r#""annotations":{"dev.airbundle.format":"1.0"}"#;
    let digest = format!("sha256:{}", "0".repeat(64));
    let indexes = [
        "not JSON".to_owned(),
        r#"{"annotations":{"dev.airbundle.format":"EVIL"}}"#.to_owned(),
        r#"{"annotations":{"dev.airbundle.format":"1.0","dev.airbundle.requires":"EVIL"}}"#.to_owned(),
        format!(
            r#"{{"schemaVersion":2,"mediaType":"a","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":1,"annotations":{{"org.opencontainers.image.ref.name":"EVIL"}}}}],{format}}}"#
        ),
    ];
    let bundle = job.path("unsigned.tar.zst");
    let name = bundle.to_str().unwrap();
    for index in indexes {
        let index = index.replace("EVIL", &serde_json::to_string(evil).unwrap().replace('"', ""));
        fs::write(&bundle, bundle_with_index(index.as_bytes())).unwrap();
        let (key, site) = (job.text("ours.pub"), job.text("site"));
        let volume = job.path("volume.tar.zst.001");
        fs::copy(&bundle, &volume).unwrap();
        for args in [
            &["verify", "--trusted-key", &key][..],
            &["verify", "--quick", "--trusted-key", &key],
            &["ls", "--trusted-key", &key],
            &["unpack", "--trusted-key", &key],
        ] {
            let end = if args[0] == "unpack" { vec![site.as_str()] } else { Vec::new() };
            for source in [name, volume.to_str().unwrap()] {
                let all = [args, &[source], &end].concat();
                let finished = unbundle(&all).failed(UNSIGNED, &["the bundle is not signed"]);
                assert_eq!(finished.stdout, "", "{finished:#?}");
                assert!(!finished.stderr.contains("trusted\u{202e}"), "{finished:#?}");
            }
        }
        let finished = unbundle_from(&bundle, ["verify", "--trusted-key", &key, "-"]);
        assert_eq!(finished.code, Some(UNSIGNED), "{finished:#?}");
        assert!(!Path::new(&site).exists());
    }
}

#[test]
fn a_second_index_behind_the_archive_is_refused_by_every_verb() {
    let job = Job::new();
    let intact = job.pack("intact.tar.zst", 1, &[]);
    let bytes = fs::read(&intact).unwrap();
    let table = seek_table::read(&mut Cursor::new(&bytes)).unwrap().unwrap();
    let frames_len: usize = table.iter().map(|entry| entry.compressed as usize).sum();
    let last = table.iter().rposition(|entry| entry.decompressed > 0).unwrap();
    let index = br#"{"schemaVersion":2}"#;
    let mut entry = tar_header("index.json", index.len() as u64).to_vec();
    entry.extend(index);
    entry.resize(3 * 512, 0);
    let second = frame::encode(&entry, 3);
    let short = |len: usize| u32::try_from(len).unwrap();
    // Behind the archive, with a table that states no content.
    let hidden = FrameEntry { compressed: short(second.len()), decompressed: 0 };
    let behind =
        [&bytes[..frames_len], &second, &seek_table::encode(&[&table[..], &[hidden]].concat())].concat();
    // In the last frame, with a table that states the content before it.
    let offset: usize = table[..last].iter().map(|entry| entry.compressed as usize).sum();
    let frame_end = offset + table[last].compressed as usize;
    let mut content = zstd::decode_all(&bytes[offset..frame_end]).unwrap();
    content.extend(&entry);
    let longer = frame::encode(&content, 3);
    let mut entries = table.clone();
    entries[last].compressed = short(longer.len());
    let in_last =
        [&bytes[..offset], &longer, &bytes[frame_end..frames_len], &seek_table::encode(&entries)].concat();
    let without_table = [&bytes[..frames_len], &second].concat();
    // In place of the two zero blocks, and in a second frame that shares the entry of the last one.
    let mut content = zstd::decode_all(&bytes[offset..frame_end]).unwrap();
    let end = content.len() - 1024;
    content[end..].copy_from_slice(&entry[..1024]);
    let replaced = frame::encode(&content, 3);
    let mut entries = table.clone();
    entries[last].compressed = short(replaced.len());
    let in_end =
        [&bytes[..offset], &replaced, &bytes[frame_end..frames_len], &seek_table::encode(&entries)].concat();
    entries[last].compressed = table[last].compressed + short(second.len());
    let glued =
        [&bytes[..frame_end], &second, &bytes[frame_end..frames_len], &seek_table::encode(&entries)].concat();
    for (name, forged, has_table) in [
        ("behind", behind, true),
        ("last", in_last, true),
        ("end", in_end, true),
        ("glued", glued, true),
        ("no table", without_table, false),
    ] {
        fs::write(job.path("forged.tar.zst"), forged).unwrap();
        let forged = job.text("forged.tar.zst");
        let (site, repaired) = (job.text("site"), job.text("repaired.tar.zst"));
        let mut verbs: Vec<Finished> = vec![
            unbundle(["verify", &forged]),
            unbundle(["unpack", &forged, &site]),
            job.airbundle(&["sign", &forged, "--key", "ours.key"]),
        ];
        if has_table {
            verbs.push(unbundle(["verify", "--quick", &forged]));
            verbs.push(unbundle(["ls", &forged]));
            verbs.push(unbundle(["cat", &forged, "https://files.example/one"]));
            verbs.push(unbundle(["unpack", "--only", "https://files.example/one", &forged, &site]));
            verbs.push(unbundle(["repair", &forged, "-o", &repaired]));
            verbs.push(job.airbundle(&["sbom", &forged]));
        }
        for finished in verbs {
            assert_eq!(finished.code, Some(DAMAGED), "{name}: {finished:#?}");
        }
        assert!(!job.path(&format!("forged.tar.zst.{}.minisig", job.id("ours"))).exists(), "{name}");
        let _ = fs::remove_dir_all(&site);
    }
    // Other damage is no second index, and a damaged bundle is not signed.
    job.pack_damaged("damaged.tar.zst", &[]);
    unbundle(["ls", &job.text("damaged.tar.zst")]).ok();
    job.airbundle(&["sign", &job.text("damaged.tar.zst"), "--key", "ours.key"])
        .failed(DAMAGED, &["is not intact"]);
    let signed = job.airbundle(&["sign", "--json", &intact, "--key", "ours.key"]).ok().json();
    assert_eq!((&signed["event"], &signed["key"]), (&"summary".into(), &job.id("ours").into()));
    // JSON has no bytes that are not UTF-8, and file names do.
    let name = OsStr::from_bytes(b"\xff.tar.zst");
    fs::copy(job.path("intact.tar.zst"), job.directory.path().join(name)).unwrap();
    let mut command = airbundle_command();
    command.current_dir(job.directory.path()).args(["sign", "--json", "--key", "ours.key"]).arg(name);
    assert!(run(&mut command).ok().json()["file"].as_str().unwrap().contains('\u{fffd}'));
}

#[test]
fn signature_of_a_large_head_is_found() {
    let job = Job::new();
    // The head has several frames: the file set has more than 4 MiB.
    let mut content = Content::default();
    let long = vec!["x".repeat(250); 15].join("/");
    let names: Vec<String> =
        (0..600).map(|number| format!("https://files.example/{long}/{number}")).collect();
    for name in &names {
        content.file(name, b"same".to_vec());
    }
    let job = Job { fake: Fake::honest(content), ..job };
    let checksum = "0967115f2813a3541eaef77de9d9d5773f1c0c04314b0bbfe4ff3b3b1c55b5d5";
    let lines: Vec<String> = names.iter().map(|name| format!("{name} sha256:{checksum}")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    run(&mut job.pack_command("large.tar.zst", &lines, &["--sign", "ours.key", "-q"])).ok();
    let (bundle, key) = (job.text("large.tar.zst"), job.text("ours.pub"));
    unbundle(["verify", "--trusted-key", &key, &bundle]).ok();
    unbundle_from(Path::new(&bundle), ["verify", "--trusted-key", &key, "-"]).ok();
    unbundle(["verify", "--trusted-key", &job.text("other.pub"), &bundle]).failed(SIGNER, &["not trusted"]);
}

#[test]
fn host_directory_without_a_usable_key_is_an_error_that_says_what_was_found() {
    let job = Job::new();
    let signed = job.signed();
    let script = format!(
        r#"
verify() {{ code=0; "$UNBUNDLE" verify "{signed}" >/dev/null 2>err || code=$?; echo "$code $(head -1 err)"; rm -rf /etc/airbundle; }}
verify
mkdir -p /etc/airbundle; verify
mkdir -p /etc/airbundle; cp ours.pub /etc/airbundle/release.PUB; verify
mkdir -p /etc/airbundle; cp ours.pub /etc/airbundle/ours.pub; verify
mkdir -p /etc/airbundle/trusted-keys.d; verify
mkdir -p /etc/airbundle/trusted-keys.d/a.pub; verify
touch /etc/airbundle; verify
ln -s nowhere /etc/airbundle; verify
mkdir -p /etc/airbundle; cp ours.key /etc/airbundle/trusted.pub; verify
mkdir -p /etc/airbundle; cp ours.pub /etc/airbundle/trusted.pub; verify"#
    );
    let printed = job.with_etc(&script);
    let lines: Vec<&str> = printed.lines().collect();
    let no_key = "2 error: `/etc/airbundle` exists and has no trusted key, so no bundle is accepted: ";
    for (line, expected) in lines.iter().zip([
        "0 ".to_owned(),
        format!("{no_key}the directory is empty"),
        format!("{no_key}found `release.PUB`"),
        format!("{no_key}found `ours.pub`"),
        format!("{no_key}found `trusted-keys.d/`"),
        "6 error: cannot read `/etc/airbundle/trusted-keys.d/a.pub`".to_owned(),
        "6 error: cannot read `/etc/airbundle` (expected a directory, found a file".to_owned(),
        "6 error: cannot read `/etc/airbundle`".to_owned(),
        "2 error: cannot read the trusted keys in `/etc/airbundle/trusted.pub`: a secret key".to_owned(),
        "0 ".to_owned(),
    ]) {
        assert!(line.starts_with(&expected), "expected {expected} in {printed}");
    }
    assert_eq!(lines.len(), 10, "{printed}");
}

/// Returns the verbs of a program, from its help.
fn verbs(program: &str) -> Vec<String> {
    let path = match program {
        "airbundle" => env!("CARGO_BIN_EXE_airbundle"),
        _ => env!("CARGO_BIN_EXE_unbundle"),
    };
    let help = run(Command::new(path).arg("--help")).ok().stdout;
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = commands.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names = names.filter(|name| !name.is_empty() && *name != "help");
    names.map(|name| format!("{program} {name}")).collect()
}

#[test]
fn every_verb_refuses_an_unsigned_bundle_under_a_policy_of_the_host() {
    let job = Job::new();
    let plain = job.pack("plain.tar.zst", 1, &["--recovery", "10%"]);
    let signed = job.pack("signed.tar.zst", 1, &["--sign", "ours.key"]);
    for (site, bundle) in [("plain", &plain), ("signed", &signed)] {
        unbundle(["unpack", bundle, &job.text(site)]).ok();
    }
    let pack = "airbundle pack the.list -o new.tar.zst --mirror registry.example=http://127.0.0.1:1/";
    // Each runs as is, which must fail, and with `signed` instead of `plain`, which must not fail for that reason.
    let cases = [
        "unbundle unpack plain.tar.zst new",
        "unbundle verify plain.tar.zst",
        "unbundle verify --quick plain.tar.zst",
        "unbundle ls plain.tar.zst",
        "unbundle ls --lock plain.tar.zst",
        "unbundle cat plain.tar.zst index.json",
        "unbundle sbom plain.tar.zst",
        "unbundle repair plain.tar.zst -o new.tar.zst",
        "unbundle prune signed --keep plain.tar.zst",
        "unbundle prune plain --keep signed.tar.zst",
        "unbundle site plain --ip 127.0.0.1",
        "unbundle images plain",
        "unbundle inventory plain",
        "airbundle image plain.tar.zst --kind files -o new.tar",
        "airbundle sbom plain.tar.zst",
        "airbundle diff plain.tar.zst signed.tar.zst",
        "airbundle diff signed.tar.zst plain.tar.zst",
        "airbundle sign plain.tar.zst --key ours.key",
        &format!("{pack} --reuse plain.tar.zst"),
        &format!("{pack} --base plain.tar.zst"),
    ];
    for verb in verbs("airbundle").into_iter().chain(verbs("unbundle")) {
        // `receive` copies frames, and reads no document in them.
        let others = ["airbundle lock", "airbundle lists", "airbundle keygen", "unbundle receive"];
        let reads_nothing = others.contains(&verb.as_str());
        let has_case = cases.iter().any(|case| case.starts_with(&format!("{verb} ")));
        assert_eq!(has_case, !reads_nothing, "{verb}");
    }
    let script: Vec<String> = (cases.iter())
        .flat_map(|case| [(*case).to_owned(), case.replace("plain", "signed")])
        .map(|case| {
            let command = case.replacen("unbundle", "\"$UNBUNDLE\"", 1).replacen("airbundle", "\"$AIRBUNDLE\"", 1);
            format!("code=0; {command} >/dev/null 2>err || code=$?; echo \"$code {case} $(head -1 err)\"; rm -rf new*")
        })
        .collect();
    let etc = "mkdir /etc/airbundle; cp ours.pub /etc/airbundle/trusted.pub\n";
    let printed = job.with_etc(&(etc.to_owned() + &script.join("\n")));
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 2 * cases.len(), "{printed}");
    for pair in lines.chunks(2) {
        assert!(pair[0].starts_with("14 "), "{}\n{printed}", pair[0]);
        assert!(!pair[1].starts_with("14 ") && !pair[1].starts_with("15 "), "{}\n{printed}", pair[1]);
    }
    assert!(!job.path("new").exists());
}

/// Rewrites the record of a site.
fn forge(site: &Path, change: impl FnOnce(&mut Value)) {
    let path = site.join("site.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
}

/// The words of the error, the exit code, and a change of `site.json`.
type Change<'a> = (&'a str, i32, Box<dyn Fn(&mut Value) + 'a>);

#[test]
fn record_of_a_site_must_follow_from_signed_bundles() {
    let job = Job::new();
    let signed = job.signed();
    let (site, key) = (job.path("site"), job.text("ours.pub"));
    let name = site.to_str().unwrap();
    unbundle(["unpack", "--trusted-key", &key, &signed, name]).ok();
    let genuine = fs::read(site.join("site.json")).unwrap();
    let conf = job.text("conf");
    let configure = ["site", name, "--conf", &conf, "--ip", "127.0.0.1", "--trusted-key", &key];
    let verbs: [&[&str]; 4] = [
        &configure,
        &["images", name, "--trusted-key", &key],
        &["inventory", name, "--trusted-key", &key],
        &["prune", name, "--keep", &signed, "--trusted-key", &key],
    ];
    let other = format!("sha256:{}", "1".repeat(64));
    for args in verbs {
        unbundle(args).ok();
    }
    let changes: [Change; 12] = [
        (
            "names the image",
            DAMAGED,
            Box::new(|r| r["images"][0]["manifests"][0]["digest"] = other.as_str().into()),
        ),
        (
            "names the image",
            DAMAGED,
            Box::new(|r| r["images"][0]["reference"] = "registry.example/b:1".into()),
        ),
        ("names the image", DAMAGED, Box::new(|r| r["images"][0]["tag"] = "2".into())),
        (
            "in the repository `k8s/registry.k8s.io/pause`",
            DAMAGED,
            Box::new(|r| r["images"][0]["repositories"] = vec!["k8s/registry.k8s.io/pause"].into()),
        ),
        (
            "names the manifest",
            DAMAGED,
            Box::new(|r| {
                let mut more = r["images"][0]["manifests"][0].clone();
                more["digest"] = other.as_str().into();
                r["images"][0]["manifests"].as_array_mut().unwrap().push(more);
            }),
        ),
        (
            "names the manifest",
            DAMAGED,
            Box::new(|r| {
                let mut more = r["images"][0]["manifests"][0].clone();
                more["digest"] = other.as_str().into();
                r["retired"] = vec![more].into();
            }),
        ),
        (
            "names the manifest",
            DAMAGED,
            Box::new(|r| {
                let mut more = r["images"][0]["manifests"][0].clone();
                more["mediaType"] = "application/vnd.example+json".into();
                r["retired"] = vec![more].into();
            }),
        ),
        ("names the file", DAMAGED, Box::new(|r| r["files"][0]["digest"] = other.as_str().into())),
        ("names the file", DAMAGED, Box::new(|r| r["files"][0]["path"] = "k8s/files.example/two".into())),
        (
            "names the file",
            DAMAGED,
            Box::new(|r| {
                let file = r["files"][0].clone();
                r["files"].as_array_mut().unwrap().push(file);
            }),
        ),
        ("names a title or date", DAMAGED, Box::new(|r| r["bundles"][0]["title"] = "Kubespray".into())),
        (
            "has no signed documents",
            UNSIGNED,
            Box::new(|r| r["bundles"][0]["identity"] = other.as_str().into()),
        ),
    ];
    for (words, code, change) in changes {
        fs::write(site.join("site.json"), &genuine).unwrap();
        forge(&site, change);
        for args in verbs {
            let finished = unbundle(args).failed(code, &[words]);
            assert!(
                finished.stderr.contains("hint: unpack the signed bundles of the site again"),
                "{finished:#?}"
            );
        }
    }
    fs::write(site.join("site.json"), &genuine).unwrap();
    for args in verbs {
        unbundle(args).ok();
    }
}

#[test]
fn a_foreign_index_page_is_replaced_under_a_policy_unless_the_user_wants_it() {
    let job = Job::new();
    let signed = job.signed();
    let (site, key) = (job.text("site"), job.text("ours.pub"));
    unbundle(["unpack", "--trusted-key", &key, &signed, &site]).ok();
    let configure = |options: &[&str]| {
        let args = ["site", &site, "--ip", "127.0.0.1", "--trusted-key", &key];
        unbundle([&args[..], options].concat()).ok()
    };
    let page = job.path("site").join("files/index.html");
    let read = || fs::read_to_string(&page).unwrap();
    fs::write(&page, "<h1>mine</h1>").unwrap();
    configure(&["--own-index-page"]);
    configure(&[]);
    assert_eq!(read(), "<h1>mine</h1>");
    configure(&["--no-own-index-page"]);
    assert!(read().contains("Catalog"), "{}", read());
    fs::remove_file(&page).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &page).unwrap();
    configure(&[]);
    assert!(page.symlink_metadata().unwrap().is_file() && read().contains("Catalog"));
}

#[test]
fn documents_of_a_site_are_verified_and_an_older_site_gets_them_by_unpack() {
    let job = Job::new();
    let signed = job.signed();
    let (site, key) = (job.path("site"), job.text("ours.pub"));
    let name = site.to_str().unwrap();
    unbundle(["unpack", &signed, name]).ok();
    let images = |key: &str| unbundle(["images", name, "--trusted-key", key]);
    images(&key).ok();
    images(&job.text("other.pub")).failed(SIGNER, &["cannot be verified", "not trusted on this host"]);
    let directory = fs::read_dir(site.join("bundles")).unwrap().next().unwrap().unwrap().path();
    assert!(directory.join("index.json").exists() && directory.join("files.json").exists());
    for (file, words) in [("index.json", "index.json` is corrupt"), ("files.json", "files.json` is corrupt")]
    {
        let genuine = fs::read(directory.join(file)).unwrap();
        fs::write(directory.join(file), String::from_utf8(genuine).unwrap().replace("one", "two") + " ")
            .unwrap();
        images(&key).failed(DAMAGED, &[words]);
        unbundle(["unpack", &signed, name]).ok();
        images(&key).ok();
    }
    // A site of an earlier version keeps no documents.
    fs::remove_dir_all(site.join("bundles")).unwrap();
    unbundle(["images", name]).ok();
    images(&key).failed(UNSIGNED, &["has no signed documents", "earlier version"]);
    unbundle(["unpack", "--trusted-key", &key, &signed, name]).ok();
    images(&key).ok();
    // Other names for repositories must be on the command line.
    let unpack = ["unpack", &signed, name, "--repository-template", "mirror/{repository}"];
    unbundle(unpack).ok();
    images(&key).failed(DAMAGED, &["in the repository `mirror/a`"]);
    let templates = ["k8s/{host}/{repository}", "mirror/{repository}"];
    let args = ["images", name, "--trusted-key", &key, "--repository-template", templates[0]];
    unbundle(args.into_iter().chain(["--repository-template", templates[1]])).ok();
}

#[test]
fn prune_keeps_the_documents_of_kept_bundles_and_the_newest_of_each_name() {
    let job = Job::new();
    let key = job.text("ours.pub");
    let pack = |number: usize, sequence: &str| {
        let more = ["--sign", "ours.key", "--name", "series", "--sequence", sequence];
        job.pack(&format!("{number}.tar.zst"), number, &more)
    };
    let (first, second) = (pack(1, "1"), pack(2, "2"));
    let plain = job.pack("3.tar.zst", 3, &["--sign", "ours.key"]);
    let site = job.path("site");
    let name = site.to_str().unwrap();
    for bundle in [&first, &second, &plain] {
        unbundle(["unpack", "--trusted-key", &key, bundle, name]).ok();
    }
    // The other entry is the list of sequence numbers.
    let kept = || fs::read_dir(site.join("bundles")).unwrap().count() - 1;
    assert_eq!(kept(), 3);
    unbundle(["prune", name, "--keep", &plain, "--trusted-key", &key]).ok();
    assert_eq!(kept(), 3, "a dry run removes nothing");
    unbundle(["prune", name, "--keep", &plain, "--trusted-key", &key, "--yes"]).ok();
    assert_eq!(kept(), 2);
    unbundle(["images", name, "--trusted-key", &key]).ok();
    unbundle(["unpack", "--trusted-key", &key, &first, name])
        .failed(OUTDATED, &["`series`", "sequence number 1", "newer one with 2"]);
}

#[test]
fn an_interrupted_run_counts_as_newer_and_an_invalid_list_of_numbers_is_an_error() {
    let job = Job::new();
    let pack = |number: usize, sequence: &str| {
        job.pack(&format!("{number}.tar.zst"), number, &["--name", "series", "--sequence", sequence])
    };
    let (first, site) = (pack(1, "1"), job.path("site"));
    let second = job.pack_damaged("2.tar.zst", &["--name", "series", "--sequence", "2"]);
    let unpack = |bundle: &str| unbundle(["unpack", bundle, site.to_str().unwrap()]);
    unpack(&first).ok();
    unpack(&second).failed(DAMAGED, &["is damaged"]);
    unpack(&first).failed(OUTDATED, &["newer one with 2"]);
    fs::write(site.join("bundles/sequences.json"), "junk").unwrap();
    unpack(&first).failed(FILE, &["sequences.json", "delete the file"]);
}

#[test]
fn a_bundle_counts_as_newer_after_its_key_is_not_trusted_any_more() {
    let job = Job::new();
    let pack = |name: &str, number: usize, sequence: &str, key: &str| {
        let key = format!("{key}.key");
        job.pack(name, number, &["--name", "series", "--sequence", sequence, "--sign", &key])
    };
    let (first, second) = (pack("1.tar.zst", 1, "1", "ours"), pack("2.tar.zst", 2, "2", "other"));
    let (site, ours, other) = (job.text("site"), job.text("ours.pub"), job.text("other.pub"));
    unbundle(["unpack", &second, &site, "--trusted-key", &ours, "--trusted-key", &other]).ok();
    unbundle(["unpack", &first, &site, "--trusted-key", &ours])
        .failed(OUTDATED, &["sequence number 1", "newer one with 2"]);
    unbundle(["unpack", &first, &site, "--trusted-key", &ours, "--allow-older"]).ok();
}

#[test]
fn older_bundle_of_the_same_name_is_refused_unless_it_is_allowed() {
    let job = Job::new();
    let pack = |name: &str, number: usize, series: &str, sequence: &str| {
        job.pack(name, number, &["--name", series, "--sequence", sequence])
    };
    let (first, second) = (pack("1.tar.zst", 1, "series", "9"), pack("2.tar.zst", 2, "series", "10"));
    let other = pack("other.tar.zst", 3, "another", "1");
    let delta = job.pack("delta.tar.zst", 1, &["--base", &second, "--name", "series", "--sequence", "11"]);
    let site = job.path("site");
    let unpack =
        |bundle: &str, more: &[&str]| unbundle([&["unpack", bundle, site.to_str().unwrap()], more].concat());
    unpack(&first, &[]).ok();
    unpack(&second, &[]).ok();
    let before = fs::read(site.join("site.json")).unwrap();
    let finished = unpack(&first, &[])
        .failed(OUTDATED, &["sequence number 9", "newer one with 10", "nothing was changed"]);
    assert!(finished.stderr.contains("hint: use `--allow-older`"), "{finished:#?}");
    assert_eq!(fs::read(site.join("site.json")).unwrap(), before);
    unpack(&second, &[]).ok();
    unpack(&other, &[]).ok();
    unpack(&first, &["--allow-older"]).ok();
    // The highest number remains.
    unpack(&first, &[]).failed(OUTDATED, &["newer one with 10"]);
    // A delta counts.
    unpack(&delta, &[]).ok();
    unpack(&second, &[]).failed(OUTDATED, &["newer one with 11"]);
    let numbers = fs::read_to_string(site.join("bundles/sequences.json")).unwrap();
    assert_eq!(numbers, "{\n  \"another\": 1,\n  \"series\": 11\n}\n");
    let listed = unbundle(["ls", "--json", &second]).ok().json();
    assert_eq!((&listed["name"], &listed["sequence"]), (&"series".into(), &10.into()));
    for (more, words) in [
        (&["--name", "a"][..], "--sequence"),
        (&["--sequence", "1"], "--name"),
        (&["--name", "A", "--sequence", "1"], "invalid name"),
        (&["--name", "a\u{1b}b", "--sequence", "1"], "invalid name"),
        (&["--name", "a", "--sequence", "0"], "invalid sequence number"),
        (&["--expires", "tomorrow"], "invalid expiry date"),
    ] {
        let finished = run(&mut job.pack_command("new.tar.zst", &["https://files.example/one"], more));
        assert_eq!(finished.code, Some(USAGE), "{finished:#?}");
        assert!(finished.stderr.contains(words), "{finished:#?}");
    }
}

#[test]
fn bundle_that_has_expired_is_refused_by_hosts_with_trusted_keys() {
    let job = Job::new();
    let key = job.text("ours.pub");
    let expired = ["--sign", "ours.key", "--expires", "2001-01-31T01:00:00+01:00"];
    let old = job.pack("old.tar.zst", 1, &expired);
    let new = job.pack("new.tar.zst", 1, &["--sign", "ours.key", "--expires", "9000-01-01T00:00:00Z"]);
    let site = job.text("site");
    let trusted = ["--trusted-key", key.as_str()];
    for verb in [&["verify"][..], &["verify", "--quick"], &["unpack"]] {
        let run = |bundle: &str, more: &[&str]| {
            let site = if verb[0] == "unpack" { vec![site.as_str()] } else { Vec::new() };
            unbundle([verb, &[bundle], &site, more].concat())
        };
        run(&old, &trusted).failed(OUTDATED, &["the bundle expired at 2001-01-31T00:00:00Z"]);
        assert!(!Path::new(&site).exists());
        run(&old, &[&trusted[..], &["--allow-expired"]].concat()).ok();
        run(&old, &[]).ok();
        run(&new, &trusted).ok();
        let _ = fs::remove_dir_all(&site);
    }
    let listed = unbundle(["ls", "--json", "--trusted-key", &key, &old]).ok().json();
    assert_eq!(listed["expires"], "2001-01-31T00:00:00Z");
}

#[test]
fn several_keys_sign_a_finished_bundle_and_a_threshold_counts_different_keys() {
    let job = Job::new();
    let bundle = job.signed();
    let before = fs::read(&bundle).unwrap();
    let keys: Vec<String> =
        ["ours", "other", "third"].iter().map(|key| job.text(&format!("{key}.pub"))).collect();
    let verify = |count: &str, keys: &[&str]| {
        let keys = keys.iter().flat_map(|key| ["--trusted-key", key]);
        unbundle(["verify", "--require-signatures", count, &bundle].into_iter().chain(keys))
    };
    let [ours, other, third] = [0, 1, 2].map(|number: usize| keys[number].as_str());
    verify("1", &[ours, other]).ok();
    verify("2", &[ours, other])
        .failed(SIGNER, &["2 signatures of different trusted keys", "the bundle has 1"]);
    verify("2", &[ours]).failed(USAGE, &["2 signatures are required, but only 1 different keys"]);
    verify("2", &[ours, ours]).failed(USAGE, &["only 1 different keys"]);
    verify("1", &[]).failed(USAGE, &["this host has no trusted keys"]);
    // The same key again does not count.
    job.airbundle(&["sign", &bundle, "--key", "ours.key"]).ok();
    verify("2", &[ours, other]).failed(SIGNER, &["the bundle has 1"]);
    let printed = job.airbundle(&["sign", &bundle, "--key", "other.key"]).ok().stdout;
    let detached = job.path(&format!("signed.tar.zst.{}.minisig", job.id("other")));
    assert!(
        printed.contains(detached.to_str().unwrap()) && printed.contains("identity sha256:"),
        "{printed}"
    );
    let signature = fs::read(&detached).unwrap();
    let finished = verify("2", &[ours, other]).ok();
    let expected =
        format!("signed by key {}, which is trusted, and by trusted key {}", job.id("ours"), job.id("other"));
    assert!(finished.stdout.contains(&expected), "{finished:#?}");
    verify("2", &[ours, third]).failed(SIGNER, &["the bundle has 1"]);
    verify("3", &[ours, other, third]).failed(SIGNER, &["the bundle has 2"]);
    job.airbundle(&["sign", &bundle, "--key", "third.key"]).ok();
    verify("3", &[ours, other, third]).ok();
    // Signatures are reproducible, and the bundle does not change.
    fs::remove_file(&detached).unwrap();
    job.airbundle(&["sign", &bundle, "--key", "other.key"]).ok();
    assert_eq!(fs::read(&detached).unwrap(), signature);
    assert_eq!(fs::read(&bundle).unwrap(), before);
    // The site keeps all signatures.
    let site = job.text("site");
    unbundle(["unpack", &bundle, &site]).ok();
    let images = |count: &str| {
        let keys = keys.iter().flat_map(|key| ["--trusted-key", key]);
        unbundle(["images", &site, "--require-signatures", count].into_iter().chain(keys))
    };
    images("3").ok();
    // Any number of other signatures next to the bundle replaces none of them.
    let text = fs::read_to_string(&detached).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for number in 0..70_u64 {
        let mut forged = STANDARD.decode(lines[1]).unwrap();
        forged[2..10].copy_from_slice(&number.to_le_bytes());
        let forged = [lines[0], &STANDARD.encode(forged), lines[2], lines[3]].join("\n") + "\n";
        fs::write(job.path(&format!("signed.tar.zst.{number:016X}.minisig")), forged).unwrap();
    }
    unbundle(["unpack", &bundle, &site, "--trusted-key", ours]).ok();
    images("3").ok();
    unbundle(["unpack", &bundle, &site]).ok();
    images("3").ok();
    // Also for volumes.
    let volumes = job.path("volumes");
    fs::create_dir(&volumes).unwrap();
    let pack =
        &mut job.pack_command("volumes/v.tar.zst", &["registry.example/a:1"], &["--volume-size", "5MiB"]);
    run(pack).ok();
    let first = job.text("volumes/v.tar.zst.001");
    job.airbundle(&["sign", &first, "--key", "other.key"]).ok();
    assert!(volumes.join(format!("v.tar.zst.{}.minisig", job.id("other"))).exists());
    for path in [first.as_str(), volumes.to_str().unwrap()] {
        unbundle(["verify", "--trusted-key", other, path]).ok();
        unbundle(["verify", "--trusted-key", ours, path]).failed(SIGNER, &["not trusted"]);
    }
    // A host with a policy signs an unsigned bundle only on request.
    let plain = job.pack("plain.tar.zst", 1, &[]);
    let sign = ["sign", &plain, "--key", "ours.key", "--trusted-key", ours];
    job.airbundle(&sign).failed(UNSIGNED, &["not signed"]);
    job.airbundle(&[&sign[..], &["--allow-unsigned"]].concat()).ok();
    unbundle(["verify", "--trusted-key", ours, &plain]).ok();
}

#[test]
fn revoked_key_is_not_trusted_and_an_invalid_list_is_an_error() {
    let job = Job::new();
    job.pack("ours.tar.zst", 1, &["--sign", "ours.key"]);
    job.pack("other.tar.zst", 1, &["--sign", "other.key"]);
    let (ours, other) = (job.id("ours"), job.id("other"));
    job.airbundle(&["sign", "--revoke", &ours, "--key", "ours.key"]).failed(USAGE, &["which it revokes"]);
    job.airbundle(&["sign", "--revoke", "junk", "--key", "other.key"]).failed(USAGE, &["not a key ID"]);
    assert!(!job.path("revoked.txt").exists());
    job.airbundle(&["sign", "--revoke", &ours, "--key", "other.key"]).ok();
    assert_eq!(
        fs::read_to_string(job.path("revoked.txt")).unwrap(),
        format!("airbundle revoked keys 1\n{ours}\n")
    );
    // A thief of the revoked key makes a list that does not revoke it.
    let third = job.id("third");
    job.airbundle(&["sign", "--revoke", &third, "--key", "ours.key", "-o", "own.txt"]).ok();
    let mut both = airbundle_command();
    both.current_dir(job.directory.path());
    fs::copy(job.path("revoked.txt"), job.path("both.txt")).unwrap();
    run(both.args(["sign", "--revoke", &other, "--key", "third.key", "-o", "both.txt"])).ok();
    let script = r#"
d=/etc/airbundle/trusted-keys.d; mkdir -p $d; cp ours.pub other.pub $d
verify() { code=0; "$UNBUNDLE" verify "$@" >/dev/null 2>err || code=$?; echo "$code $(head -1 err)"; }
verify ours.tar.zst
cp revoked.txt revoked.txt.minisig $d
verify ours.tar.zst
verify other.tar.zst
verify ours.tar.zst --trusted-key ours.pub
verify other.tar.zst --require-signatures 2
rm $d/revoked.txt.minisig
verify other.tar.zst
cp own.txt.minisig $d/revoked.txt.minisig
verify other.tar.zst
cp revoked.txt.minisig $d/; echo >>$d/revoked.txt
verify other.tar.zst
echo junk >$d/revoked.txt
verify other.tar.zst
rm $d/revoked.txt
verify other.tar.zst
cp both.txt $d/revoked.txt; cp both.txt.minisig $d/revoked.txt.minisig
verify other.tar.zst
cp third.pub $d
verify other.tar.zst"#;
    let printed = job.with_etc(script);
    let lines: Vec<&str> = printed.lines().collect();
    let list = "2 error: cannot use the revoked keys in `/etc/airbundle/trusted-keys.d/revoked.txt`: ";
    let no_signature = format!("{list}it has no valid signature of a trusted key that it does not revoke: ");
    let expected = [
        "0 ".to_owned(),
        format!("15 error: the bundle is signed by key {ours}, which is revoked on this host"),
        "0 ".to_owned(),
        "2 error: all trusted keys are revoked".to_owned(),
        "2 error: 2 signatures are required, but only 1 different keys".to_owned(),
        format!("{no_signature}it is not signed"),
        format!("{no_signature}it is signed by key {ours}, which it revokes"),
        format!("{no_signature}its signature does not match"),
        format!("{list}its first line is not"),
        "6 error: cannot open `/etc/airbundle/trusted-keys.d/revoked.txt`".to_owned(),
        format!("{no_signature}all trusted keys are revoked"),
        format!("15 error: the bundle is signed by key {other}, which is revoked on this host"),
    ];
    for (line, expected) in lines.iter().zip(&expected) {
        assert!(line.starts_with(expected.as_str()), "expected {expected} in {printed}");
    }
    assert_eq!(lines.len(), expected.len(), "{printed}");
}
