//! Manifests as registries and proxies in the field send them: under other types, in another layout, without
//! platforms, incomplete, or not at all.

use std::fs;

use serde_json::{Value, json};

use crate::pack_job::{PackJob, REGISTRY};
use crate::program::{Finished, unbundle};
use crate::support::fake::{Content, Fake, Reply, Seen};
use crate::support::image::{Compression, Format, Image, Layer, OCI_INDEX, OCI_MANIFEST, gzip};
use crate::support::sha256;

const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const REPOSITORY: &str = "registry.example/team/app";
const MISMATCH: i32 = 5;
const FETCH: i32 = 4;

fn image(platform: &str) -> Image {
    let text = format!("for {platform}");
    Image::new(Format::Oci, platform, &[Layer::files(&[("etc/motd", text.as_bytes())], Compression::Gzip)])
}

fn job() -> PackJob {
    PackJob::new(&format!("{REPOSITORY}:1\n"))
}

fn content_of(image: &Image) -> Content {
    let mut content = Content::default();
    content.image(&format!("{REPOSITORY}:1"), image);
    content
}

/// Adds a document under the tag `1` and its digest.
fn add_root(content: &mut Content, media_type: &str, document: &Value) -> String {
    let bytes = document.to_string().into_bytes();
    let digest = sha256(&bytes);
    content.manifest(REPOSITORY, &digest, media_type, bytes.clone());
    content.manifest(REPOSITORY, "1", media_type, bytes);
    digest
}

/// Returns the image of the bundle in the listing.
fn listed(job: &PackJob) -> Value {
    let listing = unbundle(["ls", "--json", &job.output().display().to_string()]).ok().json();
    assert_eq!(listing["images"].as_array().expect("images").len(), 1, "{listing}");
    listing["images"][0].clone()
}

fn digests(image: &Value) -> Vec<String> {
    let manifests = image["manifests"].as_array().expect("manifests").iter();
    manifests.map(|manifest| manifest["digest"].as_str().expect("a digest").to_owned()).collect()
}

fn removed(job: &PackJob) {
    fs::remove_file(job.output()).expect("remove the bundle");
}

fn has_warning(finished: &Finished, words: &str) -> bool {
    finished.stderr.lines().any(|line| line.starts_with("warning: ") && line.contains(words))
}

#[test]
fn the_document_decides_its_type_and_a_contradiction_is_a_warning() {
    let index = Image::index(Format::Oci, vec![image("linux/amd64"), image("linux/arm64")]);
    let single = image("linux/amd64");
    let mut untyped: Value = serde_json::from_slice(&single.manifest).unwrap();
    untyped.as_object_mut().unwrap().remove("mediaType");
    for (root, document, expected) in [
        (&index, serde_json::from_slice(&index.manifest).unwrap(), OCI_INDEX),
        (&single, untyped, OCI_MANIFEST),
    ] {
        for (header, is_contradiction) in [
            ("application/json", false),
            ("binary/octet-stream", false),
            ("text/html; charset=utf-8", false),
            ("", false),
            (DOCKER_LIST, true),
            (DOCKER_MANIFEST, true),
        ] {
            let mut content = content_of(root);
            add_root(&mut content, "replaced/below", &document);
            let fake = Fake::start(content, move |seen: &Seen, reply| {
                if seen.path.contains("/manifests/") { reply.with("content-type", header) } else { reply }
            });
            let job = job();
            let finished = job.pack_from(&fake, &[]).ok();
            assert_eq!(listed(&job)["mediaType"], expected, "{header}");
            let words = format!("announced `{header}`, but the document is `{expected}`");
            assert_eq!(has_warning(&finished, &words), is_contradiction, "{header}: {finished:#?}");
        }
    }
}

#[test]
fn what_is_no_manifest_comes_from_the_next_endpoint_or_is_named() {
    let image = image("linux/amd64");
    let compressed = gzip(&image.manifest, flate2::Compression::default());
    let reformatted = [&image.manifest[..], b"\n"].concat();
    let digest = image.root.digest.clone();
    let replies = [
        (
            Reply::ok(b"\n<!DOCTYPE html><p>welcome").with("content-type", "text/html"),
            FETCH,
            "a web page instead",
        ),
        (Reply::ok(&compressed).with("content-type", OCI_MANIFEST), FETCH, "gzip data instead of a manifest"),
        (Reply::ok(b"it works").with("content-type", "text/plain"), FETCH, "other data (`it works`) instead"),
        (Reply::ok(b"{}").with("content-type", OCI_MANIFEST), FETCH, "not a manifest: it has neither"),
        (Reply::ok(b"").with("content-type", OCI_MANIFEST), FETCH, "returned an empty document"),
        (
            Reply::ok(&reformatted).with("content-type", OCI_MANIFEST).with("docker-content-digest", &digest),
            MISMATCH,
            "digest mismatch: expected sha256:",
        ),
    ];
    for (reply, code, words) in replies {
        let origin = Fake::honest(content_of(&image));
        let other = reply.clone();
        let mirror = Fake::start(content_of(&image), move |seen: &Seen, honest| {
            if seen.path.contains("/manifests/1") { other.clone() } else { honest }
        });
        let job = job();
        let [option, first] = mirror.mirror(REGISTRY);
        let [_, second] = origin.mirror(REGISTRY);
        let both = [option.as_str(), &first, &option, &second, "--mirrors-only", "--retries", "0"];
        let finished = job.pack_with(&both).ok();
        assert_eq!(listed(&job)["digest"], digest.as_str(), "{words}");
        assert!(has_warning(&finished, words), "{words}: {finished:#?}");
        removed(&job);
        let finished = job.pack_with(&[option.as_str(), &first, "--mirrors-only", "--retries", "0"]);
        finished.failed(code, &[words, "team/app"]);
        assert!(!job.output().exists());
    }
}

#[test]
fn a_manifest_without_content_is_requested_again() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let fake = Fake::start(content_of(&image("linux/amd64")), move |seen: &Seen, reply| {
        let is_first =
            seen.path.contains("/manifests/") && first.swap(false, std::sync::atomic::Ordering::SeqCst);
        if is_first { Reply { body: Vec::new(), ..reply } } else { reply }
    });
    let job = job();
    job.pack_with(
        &[&fake.mirror(REGISTRY)[..], &["--mirrors-only".to_owned(), "--retries=1".to_owned()]].concat(),
    )
    .ok();
    assert_eq!(fake.seen_of("/manifests/1").len(), 2);
}

#[test]
fn platforms_come_from_configs_where_the_index_lacks_them() {
    let children = [image("linux/amd64"), image("linux/arm64")];
    for platform in [
        Value::Null,
        json!({}),
        json!({ "os": "", "architecture": "" }),
        json!({ "architecture": "amd64" }),
        json!({ "os": "unknown", "architecture": "unknown" }),
    ] {
        let entries: Vec<_> = children
            .iter()
            .map(|child| {
                let (digest, size) = (&child.root.digest, child.manifest.len());
                json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": platform })
            })
            .collect();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
        let mut content = content_of(&Image::index(Format::Oci, children.to_vec()));
        let root = add_root(&mut content, OCI_INDEX, &index);
        let fake = Fake::honest(content);
        let by_line = PackJob::new(&format!("{REPOSITORY}:1 platform=linux/arm64\n"));
        by_line.pack_from(&fake, &[]).ok();
        assert_eq!(digests(&listed(&by_line)), [root.clone(), children[1].root.digest.clone()], "{platform}");
        let job = job();
        job.pack_from(&fake, &["--platform", "linux/amd64"]).ok();
        assert_eq!(digests(&listed(&job)), [root.clone(), children[0].root.digest.clone()], "{platform}");
        removed(&job);
        let words = ["no image for platform linux/riscv64; available: linux/amd64, linux/arm64"];
        job.pack_from(&fake, &["--platform", "linux/riscv64"]).failed(FETCH, &words);
        job.pack_from(&fake, &[]).ok();
        let all = listed(&job);
        assert_eq!(digests(&all).len(), 3, "{platform}");
        assert_eq!(all["platforms"], json!(["linux/amd64", "linux/arm64"]), "{platform}");
        // `unpack` selects like `pack`.
        let (bundle, site) = (job.output().display().to_string(), job.text("site"));
        unbundle(["unpack", &bundle, &site, "--platform", "linux/arm64"]).ok();
        let record: Value = serde_json::from_slice(&fs::read(job.path("site/site.json")).expect("a record"))
            .expect("the record is JSON");
        let image = &record["images"][0];
        assert_eq!(digests(image), [root, children[1].root.digest.clone()], "{platform}");
        assert_eq!(image["platforms"], json!(["linux/arm64"]), "{platform}");
        let missing = unbundle(["unpack", &bundle, &job.text("other"), "--platform", "linux/riscv64"]);
        assert!(
            missing.stderr.contains("has the platform linux/riscv64: available are linux/amd64, linux/arm64")
        );
    }
}

#[test]
fn an_index_of_which_nothing_is_left_is_an_error() {
    let cache = json!([{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": sha256(b"a"), "size": 1 },
        { "mediaType": "application/vnd.buildkit.cacheconfig.v0", "digest": sha256(b"b"), "size": 1 }]);
    for (manifests, words) in [
        (json!([]), "the index names no image manifest"),
        (Value::Null, "the index names no image manifest"),
        (cache, "a BuildKit cache, not an image"),
    ] {
        for options in [&[][..], &["--platform", "linux/amd64"]] {
            let mut content = Content::default();
            let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
            add_root(&mut content, OCI_INDEX, &index);
            let job = job();
            let finished = job.pack_from(&Fake::honest(content), options);
            let words = match words {
                "the index names no image manifest" if !options.is_empty() => {
                    "no image for platform linux/amd64"
                }
                words => words,
            };
            finished.failed(FETCH, &[words, "team/app:1"]);
            assert!(!job.output().exists());
        }
    }
}

#[test]
fn a_manifest_that_the_registry_lost_is_named_with_the_option_that_omits_it() {
    let [amd64, arm64] = ["linux/amd64", "linux/arm64"].map(image);
    let attestation = Image::attestation(&amd64);
    let index = Image::index(Format::Oci, vec![amd64.clone(), arm64.clone(), attestation.clone()]);
    let without =
        |lost: &Image| {
            let lost = lost.root.digest.clone();
            Fake::start(content_of(&index), move |seen: &Seen, reply| {
                if seen.path.ends_with(&lost) { Reply::status(404) } else { reply }
            })
        };
    let job = job();
    let words = ["the attestation of", &attestation.root.digest, "`--without attestations` or `--platform`"];
    job.pack_from(&without(&attestation), &[]).failed(FETCH, &words);
    let finished = job.pack_from(&without(&attestation), &["--platform", "linux/amd64"]).ok();
    assert!(has_warning(&finished, &attestation.root.digest), "{finished:#?}");
    assert_eq!(digests(&listed(&job)), [index.root.digest.clone(), amd64.root.digest.clone()]);
    removed(&job);
    let finished = job.pack_from(&without(&attestation), &["--without", "attestations"]).ok();
    assert!(!finished.stderr.contains(&attestation.root.digest), "{finished:#?}");
    assert_eq!(digests(&listed(&job)).len(), 3);
    removed(&job);
    let words = ["linux/arm64", &arm64.root.digest, "to omit it, use `--platform`"];
    job.pack_from(&without(&arm64), &[]).failed(FETCH, &words);
    job.pack_from(&without(&arm64), &["--platform", "linux/amd64"]).ok();
}

#[test]
fn null_members_are_absent_and_an_invalid_member_is_named() {
    let mut content = Content::default();
    content.blob(REPOSITORY, &sha256(b"{}"), b"{}".to_vec());
    let config = |size: Value| json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": size });
    let manifest = |size| json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config(size), "layers": null, "annotations": null });
    let mut other = Content::default();
    add_root(&mut content, OCI_MANIFEST, &manifest(2.into()));
    add_root(&mut other, OCI_MANIFEST, &manifest("2".into()));
    let job = job();
    job.pack_from(&Fake::honest(content), &[]).ok();
    removed(&job);
    job.pack_from(&Fake::honest(other), &[]).failed(FETCH, &["config.size: invalid type: string", "column"]);
}

#[test]
fn referrers_come_from_the_tag_where_the_api_does_not_work() {
    let subject = image("linux/amd64");
    let note = Image::artifact("application/vnd.example.note", &[("note", b"text")]);
    let entry = json!({ "mediaType": OCI_MANIFEST, "digest": note.root.digest, "size": note.manifest.len() });
    let list = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] }).to_string();
    let tag = subject.root.digest.replace(':', "-");
    let elsewhere = Fake::start(Content::default(), |_, _| Reply::status(429).with("retry-after", "60"));
    let redirect = format!("http://{}/page", elsewhere.addr());
    let page = Reply::ok(b"<html>").with("content-type", "text/html");
    for reply in [Reply::redirect(&redirect), Reply::status(403), Reply::status(404), page] {
        let mut content = content_of(&subject);
        content.image(&format!("{REPOSITORY}:note"), &note);
        content.manifest(REPOSITORY, &tag, OCI_INDEX, list.clone().into_bytes());
        let fake = Fake::start(content, move |seen: &Seen, honest| {
            match (seen.path.contains("/referrers/"), &*seen.method) {
                (true, _) => reply.clone(),
                // Storage that is signed for GET rejects HEAD.
                (_, "HEAD") => Reply::status(403),
                _ => honest,
            }
        });
        let job = job();
        job.pack_from(&fake, &["--with", "referrers"]).ok();
        let listing = unbundle(["ls", "--json", &job.output().display().to_string()]).ok().stdout;
        assert!(listing.contains(&note.root.digest), "{listing}");
    }
    // A registry that resolves the tag to the subject, and one that answers with a web page.
    for path in [None, Some(&b"<html>"[..])] {
        let root = subject.manifest.to_vec();
        let fake = Fake::start(content_of(&subject), move |seen: &Seen, honest| {
            let body = path.map_or(root.clone(), <[u8]>::to_vec);
            if seen.path.contains("/manifests/sha256-") { Reply::ok(&body) } else { honest }
        });
        let job = job();
        let finished = job.pack_from(&fake, &["--with", "referrers"]).ok();
        assert_eq!(listed(&job)["digest"], subject.root.digest.as_str(), "{finished:#?}");
        assert_eq!(has_warning(&finished, "is no list of referrers"), path.is_some(), "{finished:#?}");
    }
}

#[test]
fn pages_of_referrers_may_name_the_registry_as_it_knows_itself() {
    let subject = image("linux/amd64");
    let notes = ["one", "two"]
        .map(|text| Image::artifact("application/vnd.example.note", &[("note", text.as_bytes())]));
    let pages = notes.each_ref().map(|note| {
        let entry =
            json!({ "mediaType": OCI_MANIFEST, "digest": note.root.digest, "size": note.manifest.len() });
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] }).to_string()
    });
    let digest = subject.root.digest.clone();
    let path = format!("v2/{REPOSITORY}/referrers/{digest}?page=2");
    for link in [
        format!("</{path}>; rel=\"next\""),
        format!("<https://inner.example:5000/{path}>; rel=next"),
        format!("<http://10.0.0.7/prefix/{path}> ; REL = \"next\""),
    ] {
        let mut content = content_of(&subject);
        for note in &notes {
            content.image(&format!("{REPOSITORY}:unused"), note);
        }
        let (pages, digest) = (pages.clone(), digest.clone());
        let fake = Fake::start(content, move |seen: &Seen, honest| {
            let Some((_, subject)) = seen.path.split_once("/referrers/") else { return honest };
            let page = |text: &str| Reply::ok(text.as_bytes()).with("content-type", OCI_INDEX);
            match subject.split_once('?') {
                None if subject == digest => page(&pages[0]).with("link", &link),
                Some((subject, _)) if subject == digest => page(&pages[1]),
                _ => page(r#"{"schemaVersion":2,"manifests":[]}"#),
            }
        });
        let job = job();
        job.pack_from(&fake, &["--with", "referrers"]).ok();
        let listing = unbundle(["ls", "--json", &job.output().display().to_string()]).ok().stdout;
        assert!(notes.iter().all(|note| listing.contains(&note.root.digest)), "{listing}");
    }
}
