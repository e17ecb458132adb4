//! Hostile registries: what they state in manifests must neither replace other entries nor exhaust this machine.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::pack_job::{FILES, PackJob, REGISTRY};
use crate::policy::bundle_with_index;
use crate::program::{Finished, run, unbundle_command};
use crate::support::fake::{Content, Fake, Reply};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process::append_command;
use crate::support::sha256;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn image() -> Image {
    Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 1000, Compression::Gzip)])
}

/// Two images with the same blobs, and a file.
fn shared_content() -> Content {
    let mut content = Content::default();
    for name in ["team/a:1", "team/b:1"] {
        content.image(&format!("{REGISTRY}/{name}"), &image());
    }
    content.file(&format!("https://{FILES}/file"), b"the file".to_vec());
    content
}

#[test]
fn a_blob_that_one_repository_lacks_is_fetched_from_another_owner() {
    let fake = Fake::start(shared_content(), |seen, reply| {
        if seen.path.contains("/team/a/blobs/") { Reply::status(404) } else { reply }
    });
    let job = PackJob::new(&format!("{REGISTRY}/team/a:1\n{REGISTRY}/team/b:1\n"));
    job.pack_from(&fake, &["--allow-missing"]).ok();
    assert!(!fake.seen_of("/team/b/blobs/").is_empty(), "{:?}", fake.seen());
}

#[test]
fn every_omitted_entry_is_reported_and_a_bundle_without_entries_is_not_written() {
    for has_file in [true, false] {
        let fake = Fake::start(shared_content(), |seen, reply| {
            if seen.path.contains("/blobs/") { Reply::status(404) } else { reply }
        });
        let file = if has_file { format!("https://{FILES}/file\n") } else { String::new() };
        let job = PackJob::new(&format!("{REGISTRY}/team/a:1\n{REGISTRY}/team/b:1\n{file}"));
        let finished = job.pack_from(&fake, &["--allow-missing"]).failed(4, &["/team/a:1", "404"]);
        let finished = finished.failed(4, &["/team/b:1", "the same content"]);
        if has_file {
            finished.failed(4, &["does not contain 2 of the entries"]);
        }
        assert_eq!(job.output().exists(), has_file);
    }
}

#[test]
fn an_index_that_names_another_one_many_times_is_requested_once() {
    let mut content = Content::default();
    let leaf = image();
    let repository = format!("{REGISTRY}/team/app");
    content.image(&format!("{repository}:leaf"), &leaf);
    let mut child =
        json!({ "mediaType": leaf.root.media_type, "digest": leaf.root.digest, "size": leaf.manifest.len() });
    for level in 0..6 {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": vec![child; 30] });
        let bytes = index.to_string().into_bytes();
        child = json!({ "mediaType": INDEX, "digest": sha256(&bytes), "size": bytes.len() });
        content.manifest(&repository, &sha256(&bytes), INDEX, bytes.clone());
        if level == 5 {
            content.manifest(&repository, "1", INDEX, bytes);
        }
    }
    let fake = Fake::honest(content);
    let job = PackJob::new(&format!("{REGISTRY}/team/app:1\n"));
    job.pack_from(&fake, &[]);
    let requests = fake.seen_of("/manifests/").len();
    assert!((6..20).contains(&requests), "{requests} requests");
}

/// Runs `command` with at most this many kilobytes of private memory.
fn run_within(kilobytes: usize, command: &Command) -> Finished {
    let mut limited = Command::new("sh");
    let script = format!(r#"ulimit -d {kilobytes} && exec "$@""#);
    limited.args(["-c", &script, "sh"]);
    append_command(&mut limited, command);
    run(limited.stdin(Stdio::null()))
}

/// Inserts `member` as the first one into the JSON object that `marker` begins.
fn with_member(json: &[u8], marker: &str, member: &str) -> Vec<u8> {
    let text = String::from_utf8(json.to_vec()).expect("JSON");
    assert!(text.contains(marker), "{text}");
    text.replacen(marker, &format!("{marker}{member},"), 1).into_bytes()
}

/// Returns `count` different members with empty values: 10 bytes each.
fn members(count: usize) -> String {
    (0..count).map(|number| format!(r#""{number:04x}":"""#)).collect::<Vec<_>>().join(",")
}

#[test]
fn manifests_of_many_empty_members_do_not_exhaust_memory() {
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let empty_urls = format!(r#""urls":[{}]"#, vec![r#""""#; 1_390_000].join(","));
    let (mut content, mut list) = (Content::default(), String::new());
    for number in 0..12 {
        let image = image();
        let repository = format!("{REGISTRY}/team/app");
        content.image(&format!("{repository}:{number}"), &image);
        let manifest = if number < 6 {
            let many = vec![r#"{"":0}"#; 590_000].join(",");
            with_member(&image.manifest, "{", &format!(r#""x":[{many},{number}]"#))
        } else {
            let manifest = String::from_utf8(image.manifest.to_vec()).expect("JSON");
            let manifest = manifest.replace("application/vnd.oci.image.layer.v1.tar+gzip", foreign);
            assert!(manifest.contains(foreign), "{manifest}");
            let manifest = with_member(manifest.as_bytes(), r#""layers":[{"#, &empty_urls);
            with_member(&manifest, "{", &format!(r#""x":{number}"#))
        };
        content.manifest(&repository, &number.to_string(), &image.root.media_type, manifest);
        writeln!(list, "{REGISTRY}/team/app:{number}").expect("a string");
    }
    let fake = Fake::honest(content);
    let job = PackJob::new(&list);
    // A generic tree of one of these documents needs hundreds of megabytes.
    run_within(1_000_000, &job.command(&PackJob::options_from(&fake, &["--jobs", "8"]))).ok();
}

#[test]
fn referrers_of_many_annotations_do_not_exhaust_memory() {
    let (mut content, mut list) = (Content::default(), String::new());
    let subjects: Vec<Image> = (0..8)
        .map(|seed| Image::new(Format::Oci, "linux/amd64", &[Layer::random(seed, 10, Compression::Gzip)]))
        .collect();
    for (number, subject) in subjects.iter().enumerate() {
        content.image(&format!("{REGISTRY}/team/app:{number}"), subject);
        writeln!(list, "{REGISTRY}/team/app:{number}").expect("a string");
    }
    let annotations = members(380_000);
    let fake = Fake::start(content, move |seen, reply| {
        if !seen.path.contains("/referrers/") {
            return reply;
        }
        let digest = "0".repeat(64);
        let page = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"a/b","digest":"sha256:{digest}","size":9,"annotations":{{{annotations}}}}}]}}"#
        );
        Reply::ok(page.as_bytes()).with("content-type", INDEX)
    });
    let job = PackJob::new(&list);
    let options = PackJob::options_from(&fake, &["--jobs", "8", "--with", "referrers"]);
    run_within(1_000_000, &job.command(&options)).failed(4, &["team/app:sha256-", "returned 404"]);
}

#[test]
fn an_index_of_many_annotations_does_not_exhaust_memory() {
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[],"annotations":{{"dev.airbundle.format":"1.0",{}}}}}"#,
        members(4_000_000)
    );
    let job = PackJob::new("");
    let bundle = job.write("many.tar.zst", bundle_with_index(index.as_bytes()));
    let mut command = unbundle_command();
    command.args(["ls", &bundle]);
    run_within(300_000, &command).ok();
}

#[test]
fn images_that_state_different_sizes_for_a_blob_are_named() {
    let mut content = shared_content();
    let liar = image();
    let mut manifest: Value = serde_json::from_slice(&liar.manifest).expect("JSON");
    manifest["layers"][0]["size"] = 7.into();
    content.manifest(
        &format!("{REGISTRY}/team/a"),
        "1",
        &liar.root.media_type,
        manifest.to_string().into_bytes(),
    );
    let other = Image::new(Format::Oci, "linux/amd64", &[Layer::random(2, 1000, Compression::Gzip)]);
    content.image(&format!("{REGISTRY}/team/c:1"), &other);
    let fake = Fake::honest(content);
    let lists = "team/a:1 team/b:1 team/c:1".replace("team", &format!("{REGISTRY}/team")).replace(' ', "\n");
    let job = PackJob::new(&lists);
    let names =
        ["team/a:1`: its manifests state 7 bytes for `sha256:", "those of `registry.example/team/b:1`"];
    job.pack_from(&fake, &[]).failed(4, &names);
    assert!(!job.output().exists());
    let finished = job.pack_from(&fake, &["--allow-missing"]).failed(4, &names);
    let finished = finished.failed(4, &["team/b:1`: its manifests state", "state 7 bytes"]);
    finished.failed(4, &["does not contain 2 of the entries"]);
    assert!(job.output().exists());
}
