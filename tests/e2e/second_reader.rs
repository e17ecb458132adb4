//! bundle-format.md suffices to read a bundle: a reader in another language, written from the page alone,
//! agrees with `unbundle`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use airbundle::bundle::read::reader::BundleReader;
use airbundle::signature::policy::Policy;
use serde_json::{Value, json};

use crate::program::{airbundle, unbundle};
use crate::serve::{directory, world};

const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/second-reader.py");

/// Returns the second reader's description of a bundle, or its error message.
fn second_reader(bundle: &Path) -> Result<Value, String> {
    second_reader_of(&[bundle.to_owned()])
}

/// Returns the same for a bundle in volumes.
fn second_reader_of(volumes: &[PathBuf]) -> Result<Value, String> {
    let output = Command::new("python3").arg(READER).args(volumes).output().expect("start python3");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!message.contains("Traceback"), "{message}");
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).expect("the output is JSON"))
    } else {
        Err(message)
    }
}

/// Asserts that the second reader and `unbundle` agree about a bundle.
#[track_caller]
fn assert_agree(bundle: &Path) {
    agree_on(bundle, &[bundle.to_owned()]);
}

#[track_caller]
fn agree_on(bundle: &Path, volumes: &[PathBuf]) {
    let second = second_reader_of(volumes).expect("airbundle's bundles match the format page");
    let listed = unbundle(["ls".as_ref(), "--json".as_ref(), bundle.as_os_str()]).ok().json();
    let contents = BundleReader::open(bundle, &Policy::none())
        .and_then(|mut reader| reader.contents())
        .expect("the bundle is intact");
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
fn second_reader_agrees_with_unbundle() {
    let world = world();
    assert_agree(&world.bundle);
    let directory = directory();
    let key = directory.path().join("test.key").display().to_string();
    airbundle(["keygen", "--no-passphrase", "-o", &key]).ok();
    let etcd =
        world.upstream.files().iter().find(|file| file.url.contains("etcd")).expect("the entry exists");
    for (lines, options) in [
        // Omitted platforms, also of a nested index, and a large unpinned file.
        (
            vec!["registry.k8s.io/pause:3.9", "quay.io/metallb/controller:v0.13.9", etcd.url.as_str()],
            vec!["--platform", "linux/arm64", "--title", "Some \"title\" \\ ü"],
        ),
        (vec!["registry.k8s.io/pause:3.9"], vec!["--level", "19"]),
        (vec!["registry.k8s.io/pause:3.9"], vec!["--name", "a.b-c", "--sequence", "7"]),
        (
            vec!["registry.k8s.io/pause:3.9"],
            vec!["--expires", "2027-01-31T00:00:00Z", "--sign", key.as_str()],
        ),
        (vec!["registry.k8s.io/pause:3.9", etcd.url.as_str()], vec!["--sign", key.as_str()]),
        (vec![etcd.url.as_str()], vec![]),
    ] {
        assert_agree(&world.pack_lines(directory.path(), &lines, &options));
    }
}

#[test]
fn second_reader_reads_a_delta() {
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
    // One file more, and the other platforms.
    for options in [&["--base", base][..], &["--base", base, "--platform", "linux/arm64"]] {
        let delta = world.pack_lines(directory.path(), &lines, options);
        assert_agree(&delta);
        let contents = BundleReader::open(&delta, &Policy::none())
            .and_then(|mut reader| reader.contents())
            .expect("the bundle is intact");
        assert!(contents.layout.external.len() > 5);
    }
    // A base that has nothing in common does not make a delta.
    let lines = [lines[0]];
    let delta = world.pack_lines(directory.path(), &lines, &["--base", base]);
    assert_agree(&delta);
    assert_eq!(second_reader(&delta).expect("the bundle is intact")["elsewhere"], json!([]));
}

#[test]
fn second_reader_refuses_any_flipped_bit() {
    let world = world();
    let directory = directory();
    let lines = ["registry.k8s.io/pause:3.9", "https://get.helm.sh/helm-v3.14.2-linux-amd64.tar.gz"];
    let bundle = world.pack_lines(directory.path(), &lines, &["--platform", "linux/arm/v7"]);
    let intact = fs::read(&bundle).expect("read the bundle");
    for number in (0..intact.len()).step_by(intact.len() / 50) {
        let mut bytes = intact.clone();
        bytes[number] ^= 1 << (number % 8);
        fs::write(&bundle, bytes).expect("write the bundle");
        let message = second_reader(&bundle).expect_err(&format!("bit {} of byte {number}", number % 8));
        assert!(!message.is_empty(), "bit {} of byte {number}", number % 8);
    }
}

#[test]
fn second_reader_reads_volumes_and_recovery_data() {
    let world = world();
    let directory = directory();
    for options in [&["--recovery", "5%"][..], &["--recovery", "0.1%"], &["--recovery", "100%"]] {
        let bundle = directory.path().join("all.tar.zst");
        world.pack(&world.lists, &bundle, options).ok();
        assert_agree(&bundle);
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
