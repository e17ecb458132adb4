//! bundle-format.md is enough to read a bundle: a reader that was written from it alone, in another language, finds what
//! `unbundle` finds, and nothing that contradicts the page.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use airbundle::bundle::read::reader::BundleReader;
use serde_json::{Value, json};

use crate::program::{airbundle, unbundle};
use crate::serve::{directory, world};

const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/second-reader.py");

/// What the second reader says of a bundle; its message if it refuses it.
fn second_reader(bundle: &Path) -> Result<Value, String> {
    second_reader_of(&[bundle.to_owned()])
}

/// The same of a bundle in volumes.
fn second_reader_of(volumes: &[PathBuf]) -> Result<Value, String> {
    let output = Command::new("python3").arg(READER).args(volumes).output().expect("start python3");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!message.contains("Traceback"), "{message}");
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).expect("it prints JSON"))
    } else {
        Err(message)
    }
}

/// The second reader and `unbundle` see the same in a bundle.
#[track_caller]
fn agree(bundle: &Path) {
    agree_on(bundle, &[bundle.to_owned()]);
}

#[track_caller]
fn agree_on(bundle: &Path, volumes: &[PathBuf]) {
    let second = second_reader_of(volumes).expect("what airbundle packs is as the page says");
    let listed = unbundle(["ls".as_ref(), "--json".as_ref(), bundle.as_os_str()]).ok().json();
    let contents = BundleReader::open(bundle).and_then(|mut reader| reader.contents()).expect("it is sound");
    let layout = &contents.layout;

    assert_eq!(second["identity"], listed["identity"]);
    let images = listed["images"].as_array().expect("a list").iter().zip(&layout.images);
    let images = images.map(|(image, known)| {
        let [reference, digest, media_type, size] =
            ["reference", "digest", "mediaType", "size"].map(|name| image[name].clone());
        let omitted: Vec<_> = known.indexed.omitted.iter().map(ToString::to_string).collect();
        json!({"reference": reference, "digest": digest, "mediaType": media_type, "omitted": omitted, "size": size})
    });
    assert_eq!(second["images"], images.collect::<Value>());
    let files = listed["files"].as_array().expect("a list").iter().map(|file| {
        let sha256 = file["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
        json!({"path": file["path"], "sha256": sha256, "size": file["size"], "url": file["url"]})
    });
    assert_eq!(second["files"], files.collect::<Value>());
    let blobs = layout.manifests.iter().chain(&layout.blobs).map(|blob| blob.digest.to_string());
    assert_eq!(second["blobs"], blobs.map(Value::from).collect::<Value>());
    let mut elsewhere: Vec<_> = layout.external.iter().map(|blob| blob.digest.to_string()).collect();
    elsewhere.sort();
    assert_eq!(second["elsewhere"], json!(elsewhere));
}

#[test]
fn a_reader_made_from_the_format_page_alone_finds_what_unbundle_finds() {
    let world = world();
    agree(&world.bundle);
    let directory = directory();
    let key = directory.path().join("test.key").display().to_string();
    airbundle(["keygen", "--no-passphrase", "-o", &key]).ok();
    let etcd = world.upstream.files().iter().find(|file| file.url.contains("etcd")).expect("it is there");
    for (lines, options) in [
        // Platforms that are left out, also of an index in an index, and a large file that no list pins.
        (
            vec!["registry.k8s.io/pause:3.9", "quay.io/metallb/controller:v0.13.9", etcd.url.as_str()],
            vec!["--platform", "linux/arm64", "--title", "Some \"title\" \\ ü"],
        ),
        (vec!["registry.k8s.io/pause:3.9"], vec!["--level", "19"]),
        (vec!["registry.k8s.io/pause:3.9", etcd.url.as_str()], vec!["--sign", key.as_str()]),
        (vec![etcd.url.as_str()], vec![]),
    ] {
        agree(&world.pack_lines(directory.path(), &lines, &options));
    }
}

#[test]
fn a_reader_made_from_the_format_page_alone_reads_a_delta() {
    let world = world();
    let directory = directory();
    let pinned = world.upstream.files().iter().filter(|file| file.checksum.is_some());
    let files: Vec<String> =
        pinned.map(|file| format!("{} {}", file.url, file.checksum.as_deref().unwrap_or_default())).collect();
    let mut lines: Vec<&str> = files.iter().map(String::as_str).collect();
    lines.extend(["registry.k8s.io/pause:3.9", "quay.io/metallb/controller:v0.13.9"]);
    let base = directory.path().join("base.tar.zst");
    fs::rename(world.pack_lines(directory.path(), &lines[1..], &[]), &base).expect("move the base");
    let base = base.to_str().expect("UTF-8");
    // One file more, and the other platforms besides.
    for options in [&["--base", base][..], &["--base", base, "--platform", "linux/arm64"]] {
        let delta = world.pack_lines(directory.path(), &lines, options);
        agree(&delta);
        let contents =
            BundleReader::open(&delta).and_then(|mut reader| reader.contents()).expect("it is sound");
        assert!(contents.layout.external.len() > 5);
    }
    // With nothing to leave out it is no delta.
    let lines = [lines[0]];
    let delta = world.pack_lines(directory.path(), &lines, &["--base", base]);
    agree(&delta);
    assert_eq!(second_reader(&delta).expect("it is sound")["elsewhere"], json!([]));
}

#[test]
fn a_reader_made_from_the_format_page_alone_refuses_one_flipped_bit() {
    let world = world();
    let directory = directory();
    let lines = ["registry.k8s.io/pause:3.9", "https://get.helm.sh/helm-v3.14.2-linux-amd64.tar.gz"];
    let bundle = world.pack_lines(directory.path(), &lines, &["--platform", "linux/arm/v7"]);
    let sound = fs::read(&bundle).expect("read the bundle");
    for number in (0..sound.len()).step_by(sound.len() / 50) {
        let mut bytes = sound.clone();
        bytes[number] ^= 1 << (number % 8);
        fs::write(&bundle, bytes).expect("write the bundle");
        let message = second_reader(&bundle).expect_err(&format!("bit {} of byte {number}", number % 8));
        assert!(!message.is_empty(), "bit {} of byte {number}", number % 8);
    }
}

#[test]
fn a_reader_made_from_the_format_page_alone_reads_volumes_and_recovery_data() {
    let world = world();
    let directory = directory();
    for options in [&["--recovery", "5%"][..], &["--recovery", "0.1%"], &["--recovery", "100%"]] {
        let bundle = directory.path().join("all.tar.zst");
        world.pack(&world.lists, &bundle, options).ok();
        agree(&bundle);
        fs::remove_file(&bundle).expect("remove the bundle");
        world.pack(&world.lists, &bundle, &[options, &["--volume-size", "12MiB"]].concat()).ok();
        let entries = fs::read_dir(directory.path())
            .expect("read the directory")
            .map(|entry| entry.expect("an entry").path());
        let mut volumes: Vec<_> =
            entries.filter(|path| path.to_string_lossy().contains(".tar.zst.0")).collect();
        volumes.sort();
        assert!(volumes.len() > 3);
        agree_on(directory.path(), &volumes);
        volumes.swap(1, 2);
        second_reader_of(&volumes).expect_err("these are in another order");
    }
}
