//! Platforms, referrers, cosign artifacts, foreign layers and non-image artifacts: from a registry into a
//! bundle, and from the site's registry and nginx to clients.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::pack_job::{LIST, OUTPUT, PackJob};
use crate::program::{airbundle, unbundle};
use crate::registry_api::NginxSite;
use crate::support::clients::{Dockerd, Podman, skopeo_pull, skopeo_raw_manifest};
use crate::support::fake::{Content, Fake, Reply};
use crate::support::image::{
    Compression, Descriptor, Format, Image, Layer, OCI_CONFIG, OCI_EMPTY, OCI_INDEX, OCI_MANIFEST,
};
use crate::support::registry::Registry;
use crate::support::{Bytes, sha256};

const SIGNATURE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

impl PackJob {
    /// Asserts that a lock packs the existing bundle.
    #[track_caller]
    fn assert_lock_packs_the_same(&self, lock: &str, options: &[&str]) {
        let again = self.text("again.tar.zst");
        airbundle([&["pack", lock, "-o", &again], options].concat()).ok();
        assert!(fs::read(again).expect("read a bundle") == self.bundle(), "the lock packs another bundle");
    }

    /// Returns the references in the bundle.
    fn references(&self) -> Vec<String> {
        let listing = unbundle(["ls", &self.text(OUTPUT), "--json"]).ok().json();
        let images = listing["images"].as_array().expect("images").iter();
        images.map(|image| image["reference"].as_str().expect("a reference").to_owned()).collect()
    }

    /// Unpacks the bundle and serves the site with a registry.
    fn serve_site(&self) -> Registry {
        unbundle(["unpack", &self.text(OUTPUT), &self.text("site")]).ok();
        Registry::serve(&self.path("site/registry"))
    }
}

fn image(platform: &str) -> Image {
    let text = format!("for {platform}");
    Image::new(Format::Oci, platform, &[Layer::files(&[("etc/motd", text.as_bytes())], Compression::Gzip)])
}

fn tag_of(digest: &str) -> String {
    digest.replace(':', "-")
}

fn part(media_type: &str, bytes: &[u8]) -> (Descriptor, Bytes) {
    (Descriptor::of(media_type, bytes), bytes.to_vec().into())
}

fn json_of(descriptor: &Descriptor) -> Value {
    json!({ "mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size })
}

/// A manifest of these parts (the config first) with additional members.
fn manifest(parts: Vec<(Descriptor, Bytes)>, more: &Value) -> Image {
    let layers: Vec<_> = parts[1..].iter().map(|(descriptor, _)| json_of(descriptor)).collect();
    let mut json = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": json_of(&parts[0].0), "layers": layers,
    });
    for (key, value) in more.as_object().expect("an object") {
        json[key] = value.clone();
    }
    let manifest: Bytes = json.to_string().into_bytes().into();
    let (root, children, annotations) =
        (Descriptor::of(OCI_MANIFEST, &manifest), Vec::new(), BTreeMap::new());
    Image { root, manifest, parts, children, platform: None, annotations }
}

/// An image of one layer as cosign pushes it, whose payload names the signed digest.
fn signature(kind: &str, subject: &Image) -> Image {
    let payload =
        json!({ "critical": { "image": { "docker-manifest-digest": subject.root.digest }, "type": kind } });
    let config =
        json!({ "architecture": "", "os": "", "rootfs": { "type": "layers", "diff_ids": [] }, "config": {} });
    let parts = vec![
        part(OCI_CONFIG, config.to_string().as_bytes()),
        part(SIGNATURE, payload.to_string().as_bytes()),
    ];
    manifest(parts, &json!({}))
}

/// An artifact with a `subject`.
fn referrer(kind: &str, subject: &Image) -> Image {
    let parts = vec![part(OCI_EMPTY, b"{}"), part("application/json", kind.as_bytes())];
    manifest(parts, &json!({ "artifactType": kind, "subject": json_of(&subject.root) }))
}

/// Returns the descriptor of a referrer as the referrers API lists it.
fn referrers_entry(image: &Image, kind: &str) -> Value {
    let mut json = referrers_member(image, kind);
    json["annotations"] = json!({ "org.example.kind": kind });
    json
}

/// Returns the descriptor of a referrer as its manifest states it.
fn referrers_member(image: &Image, kind: &str) -> Value {
    let mut json = json_of(&image.root);
    json["artifactType"] = kind.into();
    json
}

#[test]
fn cosign_artifacts_are_packed_and_served_by_registry_and_nginx() {
    let directory = tempdir().expect("create a temporary directory");
    let upstream = Registry::start(&directory.path().join("upstream"));
    let index = Image::index(Format::Oci, vec![image("linux/amd64"), image("linux/arm64")]);
    upstream.push("team/app", "1", &index);
    upstream.push("team/app", "2", &index);
    let (root, child, omitted) = (&index, &index.children[0], &index.children[1]);
    let artifacts = [
        (format!("{}.sig", tag_of(&root.root.digest)), signature("signature", root)),
        (format!("{}.att", tag_of(&root.root.digest)), signature("attestation", root)),
        (format!("{}.sbom", tag_of(&child.root.digest)), signature("sbom", child)),
    ];
    for (tag, image) in &artifacts {
        upstream.push("team/app", &**tag, image);
    }
    let of_omitted = signature("signature", omitted);
    upstream.push("team/app", &*format!("{}.sig", tag_of(&omitted.root.digest)), &of_omitted);
    // Referrers by fallback tag, and a referrer of a referrer.
    let (sbom, of_sbom) = (referrer("application/spdx+json", root), referrer("application/x-sig", root));
    let referrers = Image {
        children: vec![sbom.clone()],
        ..index_of(&[referrers_entry(&sbom, "application/spdx+json")])
    };
    upstream.push("team/app", &*tag_of(&root.root.digest), &referrers);
    let deeper = Image {
        children: vec![of_sbom.clone()],
        ..index_of(&[referrers_entry(&of_sbom, "application/x-sig")])
    };
    upstream.push("team/app", &*tag_of(&sbom.root.digest), &deeper);

    let name = format!("{}/team/app", upstream.addr());
    let job = PackJob::new(&format!("{name}:1\n{name}:2\n"));
    job.pack().ok();
    assert_eq!(job.references(), [format!("{name}:1"), format!("{name}:2")]);
    let before = upstream.requests().len();
    job.pack_with(&["--platform", "linux/amd64", "--with", "signatures,sboms"]).ok();
    let tag = |image: &Image, end: &str| format!("{name}:{}{end}", tag_of(&image.root.digest));
    let mut expected = vec![format!("{name}:1"), format!("{name}:2"), tag(root, ".sig"), tag(child, ".sbom")];
    expected.sort();
    assert_eq!(job.references(), expected);
    // A missing tag costs one HEAD.
    let requests = upstream.requests().split_off(before);
    assert!(!requests.iter().any(|request| request.method == "GET" && request.status == 404), "{requests:?}");

    job.pack_with(&["--platform", "linux/amd64", "--with", "all"]).ok();
    expected.extend([tag(root, ".att"), tag(root, ""), tag(&sbom, "")]);
    expected.sort();
    assert_eq!(job.references(), expected);
    let listing = unbundle(["ls", &job.text(OUTPUT)]).ok().stdout;
    assert!(
        listing.contains("and 5 referrers and cosign artifacts") && !listing.contains("sha256-"),
        "{listing}"
    );
    let bundle = job.bundle();
    job.pack_with(&["--platform", "linux/amd64", "--with", "all", "--jobs", "1"]).ok();
    assert!(job.bundle() == bundle, "the same bytes");

    let site = job.serve_site();
    // Engines do not store signatures; skipping them is not reported.
    let archives = job.path("archives");
    fs::create_dir(&archives).expect("create a directory");
    let (site_path, archives) = (job.path("site"), archives.to_str().expect("UTF-8").to_owned());
    let load =
        ["images", site_path.to_str().expect("UTF-8"), "--load", "oci-archive", "--platform", "linux/amd64"];
    let loaded = unbundle([&load[..], &["-o", &archives]].concat()).ok();
    assert!(!loaded.stderr.contains("skipped"), "{loaded:#?}");
    assert_eq!(fs::read_dir(&archives).expect("list a directory").count(), 2);
    let repository = repository_at(&site, "team/app");
    for (tag, image) in &artifacts {
        site.assert_serves(&repository, &**tag, image);
    }
    site.assert_serves(&repository, &*tag_of(&root.root.digest), &referrers);
    site.assert_serves(&repository, &*tag_of(&sbom.root.digest), &deeper);
    let pulls = |addr: &str, name: &str| {
        let reference = |tag: &str| format!("{addr}/{repository}:{tag}");
        let raw = skopeo_raw_manifest(&reference(&tag_of(&root.root.digest)));
        assert!(raw[..] == referrers.manifest[..], "{name}");
        skopeo_pull(&reference(&artifacts[0].0), &job.path(name));
        skopeo_pull(&format!("{addr}/{repository}@{}", sbom.root.digest), &job.path(&format!("{name}-sbom")));
    };
    pulls(site.addr(), "by-registry");
    let alone = NginxSite::start(&job.path("site"));
    pulls(&alone.addr, "by-nginx");
    // The referrers API, which a registry of this version lacks.
    let mut of_root = vec![
        referrers_member(&sbom, "application/spdx+json"),
        referrers_member(&of_sbom, "application/x-sig"),
    ];
    of_root.sort_by_key(|member| member["digest"].to_string());
    for (subject, entries) in [
        // Both name it as their subject.
        (&root.root.digest, of_root),
        (&child.root.digest, vec![]),
        (&sha256(b"unknown"), vec![]),
    ] {
        let response = alone.get(&format!("{repository}/referrers/{subject}"));
        assert_eq!((response.status, &*response.media_type), (200, OCI_INDEX), "{response:?}");
        let index: Value = serde_json::from_str(&response.body).expect("JSON");
        assert_eq!(
            (&index["mediaType"], &index["manifests"]),
            (&json!(OCI_INDEX), &json!(entries)),
            "{subject}"
        );
    }
    let unknown = alone.get(&format!("{repository}/x/referrers/{}", root.root.digest));
    assert!(unknown.status == 404 && unknown.body.contains("NAME_UNKNOWN"), "{unknown:?}");
    assert_eq!(site.garbage_collect(&["--dry-run"]), [""; 0]);
}

/// Returns the full name of the site's repository that ends with `end`.
fn repository_at(site: &Registry, end: &str) -> String {
    let catalog =
        ureq::get(format!("http://{}/v2/_catalog", site.addr())).call().expect("request the catalog");
    let text = catalog.into_body().read_to_string().expect("read the catalog");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let names = all["repositories"].as_array().expect("repositories").iter().filter_map(Value::as_str);
    names
        .into_iter()
        .find(|name| name.ends_with(end))
        .unwrap_or_else(|| panic!("no {end} in {all}"))
        .to_owned()
}

fn index_of(descriptors: &[Value]) -> Image {
    let json = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors });
    let manifest: Bytes = json.to_string().into_bytes().into();
    let (root, annotations) = (Descriptor::of(OCI_INDEX, &manifest), BTreeMap::new());
    Image { root, manifest, parts: Vec::new(), children: Vec::new(), platform: None, annotations }
}

#[test]
fn referrers_api_results_become_an_index_under_the_fallback_tag_in_any_order_and_paging() {
    let subject = image("linux/amd64");
    let all = [referrer("application/a", &subject), referrer("application/b", &subject)];
    let mut bundles = Vec::new();
    for order in [[0, 1], [1, 0]] {
        let mut content = Content::default();
        content.image("team/app:1", &subject);
        for image in &all {
            content.image("team/app:unused", image);
        }
        let pages = order.map(|number| {
            let kind = all[number].root.digest.clone();
            index_of(&[referrers_entry(&all[number], &format!("application/{}", kind.replace(':', ".")))])
                .manifest
        });
        let digest = subject.root.digest.clone();
        let fake = Fake::start(content, move |seen, reply| {
            let Some(rest) = seen.path.strip_prefix("/v2/team/app/referrers/") else {
                // `/v2/` is requested to detect HTTPS.
                return if seen.path == "/v2/" { Reply::ok(b"{}") } else { reply };
            };
            let empty = index_of(&[]).manifest;
            let page = |bytes: &[u8]| Reply::ok(bytes).with("content-type", OCI_INDEX);
            match rest.split_once('?') {
                None if rest == digest => {
                    let next = format!("</v2/team/app/referrers/{digest}?next=1>; rel=\"next\"");
                    page(&pages[0]).with("link", &next)
                }
                Some(_) => page(&pages[1]),
                None => page(&empty),
            }
        });
        let mirror = format!("registry.example=http://{}", fake.addr());
        let job = PackJob::new("registry.example/team/app:1\n");
        let lock = job.text("airbundle.lock.json");
        job.pack_with(&["--mirror", &mirror, "--with", "referrers", "--write-lock", &lock]).ok();
        let tag = tag_of(&subject.root.digest);
        job.assert_lock_packs_the_same(&lock, &["--mirror", &mirror]);
        // The lock marks indexes that no registry stores.
        let result = unbundle(["ls", "--lock", &job.text(OUTPUT)]).ok();
        assert_eq!(result.stdout, fs::read_to_string(&lock).expect("read the lock"));
        // An index generated from the referrers API has no upstream tag that could move.
        airbundle(["lock", "--check", &lock, "--mirror", &mirror]).ok();
        assert_eq!(
            job.references(),
            ["registry.example/team/app:1".to_owned(), format!("registry.example/team/app:{tag}")]
        );
        let site = job.serve_site();
        let repository = repository_at(&site, "team/app");
        let raw = skopeo_raw_manifest(&format!("{}/{repository}:{tag}", site.addr()));
        let index: Value = serde_json::from_slice(&raw).expect("JSON");
        let mut expected: Vec<_> = all.iter().map(|image| image.root.digest.clone()).collect();
        expected.sort();
        for (number, digest) in expected.iter().enumerate() {
            assert_eq!(index["manifests"][number]["digest"], **digest);
            assert_eq!(
                index["manifests"][number]["artifactType"],
                format!("application/{}", digest.replace(':', "."))
            );
        }
        for image in &all {
            site.assert_serves(&repository, None, image);
        }
        bundles.push(job.bundle());
    }
    assert!(bundles[0] == bundles[1], "one bundle");
}

#[test]
fn pack_fails_when_a_referrer_cannot_be_fetched() {
    let subject = image("linux/amd64");
    let tag = tag_of(&subject.root.digest);
    for (part, status, kind) in
        [(".sig", 403, "signatures"), ("/referrers/", 500, "referrers"), (".att", 500, "all")]
    {
        let mut content = Content::default();
        content.image("team/app:1", &subject);
        let fake = Fake::start(
            content,
            move |seen, reply| if seen.path.contains(part) { Reply::status(status) } else { reply },
        );
        let mirror = format!("registry.example=http://{}", fake.addr());
        let job = PackJob::new("registry.example/team/app:1\n");
        let object = if part.starts_with('.') { format!("{tag}{part}") } else { subject.root.digest.clone() };
        let words = [&*object, &status.to_string()];
        job.pack_with(&["--mirror", &mirror, "--with", kind, "--retries", "0"]).failed(4, &words);
        assert!(!job.output().exists());
    }
    PackJob::new("registry.example/a:1\n").pack_with(&["--with", "everything"]).failed(2, &["everything"]);
}

// ---- Platforms ----

#[test]
fn platform_variants_are_selectable_and_a_missing_platform_lists_those_available() {
    let directory = tempdir().expect("create a temporary directory");
    let upstream = Registry::start(&directory.path().join("upstream"));
    let all = ["linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"];
    upstream.push("team/app", "1", &Image::index(Format::Oci, all.map(image).to_vec()));
    let name = format!("{}/team/app:1", upstream.addr());
    for (wanted, expected) in [
        ("linux/arm/v7", vec!["linux/arm/v7"]),
        ("linux/arm/v6,linux/arm/v7", vec!["linux/arm/v6", "linux/arm/v7"]),
        ("linux/arm64", vec!["linux/arm64/v8"]),
        ("linux/amd64,linux/arm/v6", vec!["linux/amd64", "linux/arm/v6"]),
    ] {
        let job = PackJob::new(&format!("{name}\n"));
        job.pack_with(&["--platform", wanted]).ok();
        let listing = unbundle(["ls", &job.text(OUTPUT), "--json"]).ok().json();
        assert_eq!(listing["images"][0]["platforms"], json!(expected), "{wanted}");
    }
    let words = [
        &*name,
        "no image for platform linux/arm/v5",
        "linux/amd64",
        "linux/arm/v6",
        "linux/arm/v7",
        "linux/arm64/v8",
    ];
    PackJob::new(&format!("{name}\n")).pack_with(&["--platform", "linux/arm/v5"]).failed(4, &words);
    PackJob::new(&format!("{name} platform=linux/arm/v5\n")).pack().failed(4, &words);
}

// ---- Artifacts that are not images ----

#[test]
fn helm_chart_oci_artifact_and_zstd_image_are_served_and_pulled() {
    let directory = tempdir().expect("create a temporary directory");
    let upstream = Registry::start(&directory.path().join("upstream"));
    let layer = Layer::files(&[("etc/motd", b"zstd")], Compression::Zstd);
    let all = [
        ("charts/app", Image::helm_chart("app", "1.0.0")),
        ("team/policy", Image::artifact("application/vnd.example.policy", &[("policy.json", b"{}")])),
        ("team/zstd", Image::new(Format::Oci, "linux/amd64", &[layer])),
    ];
    let mut list = String::new();
    for (repository, image) in &all {
        upstream.push(repository, "1.0.0", image);
        list += &[upstream.addr(), "/", repository, ":1.0.0\n"].concat();
    }
    let job = PackJob::new(&list);
    job.pack_with(&["--platform", "linux/amd64"]).ok();
    let site = job.serve_site();
    for (repository, image) in &all {
        let repository = repository_at(&site, repository);
        site.assert_serves(&repository, "1.0.0", image);
        skopeo_pull(&format!("{}/{repository}:1.0.0", site.addr()), &job.path(&repository));
    }
    let reference = format!("{}/{}:1.0.0", site.addr(), repository_at(&site, "team/zstd"));
    assert_eq!(Podman::new().pull(&reference), all[2].1.config().expect("a config").digest);
    Dockerd::start().ctr_pull(&reference);
}

// ---- Foreign layers ----

const FOREIGN: [&str; 2] = [
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
];

/// An image with a layer of this media type at these URLs.
fn with_foreign_layer(media_type: &str, urls: &[String]) -> (Image, Bytes) {
    let layer = Layer::random(3, 9 << 20, Compression::Gzip);
    let config = json!({ "architecture": "amd64", "os": "windows", "rootfs": { "type": "layers", "diff_ids": [layer.diff_id] } });
    let mut json = json_of(&Descriptor::of(media_type, &layer.bytes));
    json["urls"] = json!(urls);
    let image = manifest(vec![part(OCI_CONFIG, config.to_string().as_bytes())], &json!({ "layers": [json] }));
    (image, layer.bytes)
}

#[test]
fn foreign_layer_is_fetched_from_its_first_working_url_without_credentials() {
    for media_type in FOREIGN {
        let mut elsewhere = Content::default();
        let (_, bytes) = with_foreign_layer(media_type, &[]);
        elsewhere.path("/layer", Bytes::clone(&bytes));
        elsewhere.path("/other", b"something else".to_vec());
        let elsewhere = Fake::honest(elsewhere);
        let url = |path: &str| format!("http://{}/{path}", elsewhere.addr());
        let urls = ["gone", "other", "layer"].map(url);
        let (image, _) = with_foreign_layer(media_type, &urls);
        let mut content = Content::default();
        content.image("team/app:1", &image);
        let registry =
            Fake::start(content, |seen, reply| if seen.path == "/v2/" { Reply::ok(b"{}") } else { reply });
        let job = PackJob::new(&format!("{}/team/app:1\n", registry.addr()));
        job.write(".netrc", "machine 127.0.0.1 login me password secret\n");
        let mut command = job.command::<&str>(&[]);
        crate::program::run(command.env("HOME", job.path(""))).ok();
        assert!(elsewhere.seen().iter().all(|seen| seen.header("authorization").is_none()));
        let lock = job.text("airbundle.lock.json");
        let list = job.text(LIST);
        airbundle(["lock", &list, "-o", &lock]).ok();
        job.assert_lock_packs_the_same(&lock, &[]);
        let site = job.serve_site();
        let repository = repository_at(&site, "team/app");
        let served = site.blob(&repository, &sha256(&bytes)).expect("the layer at the site");
        assert!(served[..] == bytes[..]);
    }
}

#[test]
fn foreign_layer_without_a_working_url_falls_back_to_the_registry_or_fails_naming_a_url() {
    let elsewhere = Fake::honest(Content::default());
    let urls = [format!("http://{}/gone", elsewhere.addr())];
    let (image, bytes) = with_foreign_layer(FOREIGN[0], &urls);
    for is_there in [true, false] {
        let mut content = Content::default();
        content.image("team/app:1", &image);
        if is_there {
            content.blob("team/app", &sha256(&bytes), Bytes::clone(&bytes));
        }
        let registry =
            Fake::start(content, |seen, reply| if seen.path == "/v2/" { Reply::ok(b"{}") } else { reply });
        let job = PackJob::new(&format!("{}/team/app:1\n", registry.addr()));
        let finished = job.pack();
        if is_there {
            finished.ok();
        } else {
            finished.failed(4, &["team/app:1", &sha256(&bytes), &urls[0], "404"]);
        }
    }
}

#[test]
fn foreign_layer_urls_other_than_http_are_ignored() {
    for url in ["file:///etc/passwd", "ftp://a.example/layer", "nothing"] {
        let (image, bytes) = with_foreign_layer(FOREIGN[1], &[url.to_owned()]);
        let mut content = Content::default();
        content.image("team/app:1", &image);
        let registry =
            Fake::start(content, |seen, reply| if seen.path == "/v2/" { Reply::ok(b"{}") } else { reply });
        let job = PackJob::new(&format!("{}/team/app:1\n", registry.addr()));
        job.pack().failed(4, &["team/app:1", &sha256(&bytes), url, "not an HTTP or HTTPS URL"]);
    }
}
