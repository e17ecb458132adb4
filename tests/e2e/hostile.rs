//! Hostile registries: what they state in manifests must neither replace other entries nor exhaust this machine.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::pack_job::{FILES, PackJob, REGISTRY};
use crate::program::run;
use crate::support::fake::{Content, Fake, Reply};
use crate::support::image::{Compression, Format, Image, Layer};
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

#[test]
fn manifests_of_many_empty_members_do_not_exhaust_memory() {
    // 1 GB of private memory. A generic tree of one of these documents needs hundreds of megabytes.
    const SCRIPT: &str = r#"ulimit -d 1000000 && exec "$@""#;
    let (mut content, mut list) = (Content::default(), String::new());
    for number in 0..6 {
        let image = image();
        let repository = format!("{REGISTRY}/team/app");
        content.image(&format!("{repository}:{number}"), &image);
        let manifest = String::from_utf8(image.manifest.to_vec()).expect("JSON");
        let many = r#"{"":0},"#.repeat(590_000);
        let manifest = manifest.replacen('{', &format!(r#"{{"x":[{many}{number}],"#), 1);
        content.manifest(&repository, &number.to_string(), &image.root.media_type, manifest.into_bytes());
        writeln!(list, "{REGISTRY}/team/app:{number}").expect("a string");
    }
    let fake = Fake::honest(content);
    let job = PackJob::new(&list);
    let command = job.command(&PackJob::options_from(&fake, &["--jobs", "8"]));
    let mut limited = Command::new("sh");
    limited.args(["-c", SCRIPT, "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    run(limited.stdin(Stdio::null())).ok();
}
