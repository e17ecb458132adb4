//! Networks: failing mirrors, proxies, private CAs, stalling servers and busy servers.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::pack_job::{OUTPUT, PARTIAL, PackJob};
use crate::program::{Finished, unbundle};
use crate::support::fake::{Content, Fake, Framing, Reply, Seen};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::nginx::Nginx;
use crate::support::proxy::Proxy;
use crate::support::registry::Registry;
use crate::support::tls::Ca;
use crate::support::web::{Web, free_port};
use crate::support::{random_bytes, sha256};

/// Host names that do not resolve: a request that bypasses the mirror fails.
const FILES: &str = "files.invalid";
const REGISTRY: &str = "registry.invalid";

impl PackJob {
    /// Packs, without retries unless `options` set some, and asserts that the bundle is intact and has
    /// `blobs`.
    #[track_caller]
    fn packs(&self, options: &[&str], blobs: &[&[u8]]) -> Finished {
        let retries: &[&str] = if options.contains(&"--retries") { &[] } else { &["--retries", "0"] };
        let finished = self.pack_with(&[retries, options].concat()).ok();
        self.assert_has(blobs);
        finished
    }

    /// Asserts that the bundle is intact and has `blobs`.
    #[track_caller]
    fn assert_has(&self, blobs: &[&[u8]]) {
        unbundle(["verify", &self.text(OUTPUT)]).ok();
        unbundle(["unpack", &self.text(OUTPUT), &self.text("site")]).ok();
        let files = files_below(&self.path("site"));
        let unpacked: Vec<_> = files.iter().map(|path| fs::read(path).expect("read a file")).collect();
        for blob in blobs {
            assert!(unpacked.iter().any(|bytes| bytes == blob), "no {}", sha256(blob));
        }
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory)
        .expect("list a directory")
        .map(|entry| entry.expect("list a directory").path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

fn url(name: &str) -> String {
    format!("https://{FILES}/{name}")
}

fn list_entry(name: &str, bytes: &[u8]) -> String {
    format!("{} {}\n", url(name), sha256(bytes))
}

/// Content of a server with one file.
fn content(name: &str, bytes: &[u8]) -> Content {
    let mut content = Content::default();
    content.file(&url(name), bytes.to_vec());
    content
}

fn mirror(host: &str, addr: &str) -> [String; 2] {
    ["--mirror".to_owned(), format!("{host}=http://{addr}/{host}")]
}

/// Returns `--mirror` arguments for the files at these addresses in this order, and `--mirrors-only`.
fn mirrors(addrs: &[String]) -> Vec<String> {
    let mut args: Vec<_> = addrs.iter().flat_map(|addr| mirror(FILES, addr)).collect();
    args.push("--mirrors-only".to_owned());
    args
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// A directory for nginx with this file.
fn web_root(name: &str, bytes: &[u8]) -> TempDir {
    let directory = tempdir().expect("create a temporary directory");
    let path = directory.path().join(FILES).join(name);
    fs::create_dir_all(path.parent().expect("a directory")).expect("create directories");
    fs::write(path, bytes).expect("write a file");
    directory
}

fn closed_port() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// Returns the retry delays that were reported.
fn retry_delays(finished: &Finished) -> Vec<f64> {
    let events = finished.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    events
        .filter(|event| event["event"] == "retry")
        .map(|event| event["wait"].as_f64().expect("seconds"))
        .collect()
}

fn image(seed: u64, size: usize) -> Image {
    let layers = [
        Layer::files(&[("etc/motd", b"hello")], Compression::Gzip),
        Layer::random(seed, size, Compression::Gzip),
    ];
    Image::new(Format::Oci, "linux/amd64", &layers)
}

// ---- Mirrors ----

#[test]
fn mirrors_are_tried_in_order_until_one_has_the_blob() {
    let bytes = random_bytes(1, 3_000_000);
    let working = Fake::honest(content("x", &bytes));
    for status in [401, 403, 404, 410, 429, 500, 503] {
        let bad = Fake::start(Content::default(), move |_, _| Reply::status(status).with("retry-after", "0"));
        let args = mirrors(&[bad.addr(), working.addr()]);
        let job = PackJob::new(&list_entry("x", &bytes));
        let finished = job.packs(&words(&args), &[&bytes]);
        // Some servers send 403 only because of the range.
        assert_eq!(bad.seen().len(), if status == 403 { 2 } else { 1 }, "{status}");
        let warnings: Vec<_> = finished.stderr.lines().filter(|line| line.contains("warning")).collect();
        assert!(
            matches!(warnings[..], [line] if line.contains(&bad.addr()) && line.contains(&status.to_string())),
            "{warnings:?}"
        );
    }
    // The first mirror is the one that gets the requests.
    let unused = Fake::honest(content("x", &bytes));
    PackJob::new(&list_entry("x", &bytes))
        .packs(&words(&mirrors(&[working.addr(), unused.addr()])), &[&bytes]);
    assert!(unused.seen().is_empty());
}

#[test]
fn origin_is_the_last_fallback_unless_disabled() {
    let bytes = random_bytes(2, 200_000);
    let root = web_root("x", &bytes);
    let origin = Web::start(root.path());
    let list = format!("{} {}\n", origin.url(&format!("{FILES}/x")), sha256(&bytes));
    let args = ["--mirror".to_owned(), format!("{}=http://{}", origin.addr(), closed_port())];
    PackJob::new(&list).packs(&words(&args), &[&bytes]);
    let asked = origin.requests().len();
    assert!(asked > 0);
    let only = [&words(&args)[..], &["--mirrors-only", "--retries", "0"]].concat();
    PackJob::new(&list).fails(&only, 4, &["connection to", "refused"]);
    let words = ["http://", "no mirror configured", "--mirrors-only"];
    PackJob::new(&list).fails(&["--mirrors-only"], 4, &words);
    assert_eq!(origin.requests().len(), asked);
}

#[test]
fn blob_unavailable_everywhere_fails_naming_all_endpoints() {
    let (first, second) = (Fake::honest(Content::default()), closed_port());
    let args = mirrors(&[first.addr(), second.clone()]);
    let args = [&words(&args)[..], &["--retries", "1"]].concat();
    let expected = ["/x`", "2 sources", &first.addr(), "404 Not Found", &second, "2 attempts", "refused"];
    let finished = PackJob::new(&format!("{}\n", url("x"))).fails(&args, 4, &expected);
    assert_eq!(first.seen().len(), 1, "404 does not pass: {finished:#?}");
}

#[test]
fn unreachable_mirror_is_detected_once_and_not_per_blob() {
    let mut content = Content::default();
    let mut list = String::new();
    for number in 0..40 {
        let bytes = random_bytes(100 + number, 2000);
        list += &list_entry(&number.to_string(), &bytes);
        content.file(&url(&number.to_string()), bytes);
    }
    let busy = Fake::start(Content::default(), |_, _| Reply::status(503));
    let working = Fake::honest(content);
    let args = mirrors(&[busy.addr(), working.addr()]);
    let finished = PackJob::new(&list).packs(&[&words(&args)[..], &["--jobs", "4"]].concat(), &[]);
    // Requests of the connections that were open at the same time.
    assert!(busy.seen().len() <= 4, "{}", busy.seen().len());
    assert_eq!(finished.stderr.matches("warning").count(), 1, "{finished:#?}");
}

#[test]
fn corrupt_bytes_of_a_mirror_are_fetched_from_the_next_endpoint() {
    let (file, image) = (random_bytes(3, 3_000_000), image(4, 2_000_000));
    let mut content = content("x", &file);
    content.image(&format!("{REGISTRY}/app:1"), &image);
    let list = format!("{}{REGISTRY}/app@{}\n", list_entry("x", &file), image.root.digest);
    let honest = Fake::honest(content.clone());
    let both = |addr: &str| [mirror(FILES, addr), mirror(REGISTRY, addr)].concat();
    for what in ["/x", "/blobs/", "/manifests/"] {
        let corrupt = Fake::start(content.clone(), move |seen, mut reply| {
            if seen.path.contains(what) && !seen.is_probe() {
                reply.body[0] ^= 1;
            }
            reply
        });
        let args = [both(&corrupt.addr()), both(&honest.addr())].concat();
        let finished = PackJob::new(&list).packs(&words(&args), &[&file, &image.manifest]);
        assert!(
            finished.stderr.contains("warning") && finished.stderr.contains(&corrupt.addr()),
            "{finished:#?}"
        );
        // No other endpoint has it.
        let corrupt = both(&corrupt.addr());
        let args = [&words(&corrupt)[..], &["--mirrors-only"]].concat();
        PackJob::new(&list).fails(&args, 5, &["sha256", "twice"]);
    }
}

#[test]
fn transfer_resumes_at_the_next_mirror_when_one_stops() {
    let bytes = random_bytes(5, 24 << 20);
    let root = web_root("x", &bytes);
    let list = list_entry("x", &bytes);
    let slow = Web::start_with(root.path(), "limit_rate 4m;");
    let next = Web::start(root.path());
    let args = mirrors(&[slow.addr(), next.addr()]);
    let args = [&words(&args)[..], &["--retries", "1", "--jobs", "1", "--json"]].concat();
    let job = PackJob::new(&list);
    let child =
        job.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the program");
    let bundle = job.path(PARTIAL);
    let start = Instant::now();
    while fs::metadata(&bundle).map_or(0, |metadata| metadata.len()) < 3 << 20 {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing comes");
        sleep(Duration::from_millis(20));
    }
    drop(slow);
    let output = child.wait_with_output().expect("wait for the child");
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stdout.matches(r#""event":"warning""#).count(), 1, "{stdout}");
    job.assert_has(&[&bytes]);
    let fetched: Vec<_> = next.requests().into_iter().filter_map(|request| request.range).collect();
    assert!(
        !fetched.iter().any(|range| range == "bytes=0-8388607"),
        "what was there is not fetched again: {fetched:?}"
    );
}

#[test]
fn unpinned_file_is_never_assembled_from_two_endpoints() {
    let (old, new) = (random_bytes(6, 2_000_000), random_bytes(7, 2_000_000));
    let breaks = Fake::start(content("x", &old), |seen, reply| {
        let cut = seen.is_transfer().then_some(700_000);
        Reply { cut, ..reply }
    });
    let intact = Fake::honest(content("x", &new));
    let job = PackJob::new(&format!("{}\n", url("x")));
    // The transfer fails for good if a retry makes no progress.
    let never = Fake::start(content("x", &old), |seen, reply| {
        if seen.range().is_some_and(|(first, _)| first > 0) {
            Reply::status(503)
        } else {
            Reply { cut: Some(700_000), ..reply }
        }
    });
    job.packs(&words(&mirrors(&[never.addr(), intact.addr()])), &[&new]);
    // A retry at the same endpoint resumes where the connection broke.
    let args = [mirrors(&[breaks.addr()]), vec!["--retries".into(), "1".into()]].concat();
    PackJob::new(&format!("{}\n", url("x"))).packs(&words(&args), &[&old]);
}

#[test]
fn pinned_file_resumes_at_the_next_endpoint() {
    let bytes = random_bytes(8, 6_000_000);
    let breaks = Fake::start(content("x", &bytes), |seen, reply| {
        if seen.range().is_some_and(|(first, _)| first > 0) {
            Reply::status(500)
        } else {
            Reply { cut: Some(5_000_000), ..reply }
        }
    });
    let intact = Fake::start(content("x", &bytes), |_, reply| reply.with("etag", "\"another\""));
    PackJob::new(&list_entry("x", &bytes))
        .packs(&words(&mirrors(&[breaks.addr(), intact.addr()])), &[&bytes]);
    let ranges: Vec<_> = intact.seen().iter().map(Seen::range).collect();
    assert!(matches!(ranges[..], [Some((first, 5_999_999))] if first > 4_000_000), "{ranges:?}");
}

#[test]
fn mirror_with_a_truncated_file_is_named_and_left_for_the_next_source() {
    let bytes = random_bytes(14, 500_000);
    let short = Fake::honest(content("x", &bytes[..300_000]));
    let intact = Fake::honest(content("x", &bytes));
    let args = mirrors(&[short.addr(), intact.addr()]);
    // The bundle states sizes before contents, and the truncated copy is consistent in itself.
    let job = PackJob::new(&list_entry("x", &bytes));
    let finished = job.pack_with(&args).ok();
    let is_named = |line: &str| line.starts_with("warning: ") && line.contains(&short.addr());
    assert!(finished.stderr.lines().any(is_named), "{finished:#?}");
    // Without another source, it is an error.
    let words = [&*short.addr(), "sha256"];
    PackJob::new(&list_entry("x", &bytes)).fails(
        &crate::networks::words(&mirrors(&[short.addr()])),
        5,
        &words,
    );
}

#[test]
fn mirrors_file_serves_images_and_files_by_longest_prefix() {
    let (file, other, image) = (random_bytes(9, 50_000), random_bytes(10, 50_000), image(11, 100_000));
    let directory = tempdir().expect("create a temporary directory");
    let registry = Registry::start(&directory.path().join("storage"));
    registry.push("cache/team/app", "1", &image);
    let root = web_root("org/x", &file);
    fs::write(root.path().join(FILES).join("y"), &other).expect("write a file");
    let web = Web::start(root.path());
    let list = format!("{}{}{REGISTRY}/team/app:1\n", list_entry("org/x", &file), list_entry("y", &other));
    let job = PackJob::new(&list);
    let text = format!(
        r#"
unqualified-search-registries = ["docker.io"]

[[registry]]
location = "{REGISTRY}"
[[registry.mirror]]
location = "{closed_port}/gone"
insecure = true
[[registry.mirror]]
location = "{registry}/cache"

[[registry]]
prefix = "{FILES}"
location = "{web}/{FILES}"

[[registry]]
prefix = "{FILES}/org"
[[registry.mirror]]
location = "{web}/{FILES}/org"
"#,
        closed_port = closed_port(),
        registry = registry.addr(),
        web = web.addr(),
    );
    let conf = job.write("registries.conf", &text);
    job.packs(&["--registries-conf", &conf], &[&file, &other, &image.manifest]);
    let asked = web.requests().len();
    let of_environment = PackJob::new(&list).env("CONTAINERS_REGISTRIES_CONF", &conf);
    of_environment.packs(&[], &[&file]);
    assert!(web.requests().len() > asked);
    let blocked = job.write("blocked.conf", format!("[[registry]]\nprefix = \"{FILES}\"\nblocked = true\n"));
    fs::remove_file(job.output()).expect("remove the bundle");
    job.fails(&["--registries-conf", &blocked, "--retries", "0"], 4, &["/org/x`", "blocked", FILES]);
    let broken = job.write("broken.conf", "[[registry]]\nlocatoin = \"a\"\n");
    job.fails(&["--registries-conf", &broken], 2, &["broken.conf", "line 2", "locatoin"]);
    job.fails(&["--registries-conf", "/nowhere.conf"], 6, &["/nowhere.conf"]);
}

#[test]
fn tag_only_mirror_is_not_used_for_layers() {
    let mut content = Content::default();
    content.image(&format!("{REGISTRY}/app:1"), &image(13, 1000));
    let fake = Fake::honest(content);
    let job = PackJob::new(&format!("{REGISTRY}/app:1\n"));
    let conf = |what: &str| {
        let mirror = format!("location = \"{}/{REGISTRY}\"\npull-from-mirror = \"{what}\"", fake.addr());
        job.write(
            "mirrors.conf",
            format!("[[registry]]\nprefix = \"{REGISTRY}\"\n[[registry.mirror]]\n{mirror}\n"),
        )
    };
    for what in ["tag-only", "digest-only"] {
        let args = ["--mirrors-only", "--registries-conf", &conf(what)];
        job.fails(&args, 4, &["/app:1`", "no mirror configured"]);
    }
    assert_eq!(fake.seen_of("/blobs/").len(), 0);
    job.packs(&["--mirrors-only", "--registries-conf", &conf("all")], &[]);
}

#[test]
fn nginx_proxy_in_front_of_a_registry_works_as_a_mirror() {
    let image = image(12, 2_000_000);
    let directory = tempdir().expect("create a temporary directory");
    let registry = Registry::start(&directory.path().join("storage"));
    registry.push("team/app", "1", &image);
    let nginx = Nginx::start(
        None,
        &format!("location /v2/hub/ {{ proxy_pass http://{}/v2/; proxy_buffering off; }}", registry.addr()),
    );
    let location = format!("{REGISTRY}/team=http://{}/hub/team", nginx.addr());
    let job = PackJob::new(&format!("{REGISTRY}/team/app:1\n"));
    job.packs(&["--mirror", &location, "--mirrors-only"], &[&image.manifest]);
    assert!(nginx.stop().iter().all(|request| request.path.starts_with("/v2/hub/team/app/")));
}

// ---- Certificates ----

const HELLO: &str = "location / { default_type text/plain; return 200 'hello'; }";

#[test]
fn private_ca_is_trusted_when_named() {
    let directory = tempdir().expect("create a temporary directory");
    let private_ca = Ca::new();
    let ca = private_ca.file(directory.path(), "ca.pem");
    let ca = ca.to_str().expect("UTF-8");
    let pair = private_ca.server(directory.path(), "server", &["127.0.0.1"]);
    let nginx = Nginx::start(Some(&pair), HELLO);
    let list = format!("https://{}/x {}\n", nginx.addr(), sha256(b"hello"));

    let start = Instant::now();
    PackJob::new(&list).fails(
        &[],
        4,
        &["certificate signed by unknown authority", "--ca-file", "--insecure-registry"],
    );
    assert!(start.elapsed() < Duration::from_secs(5), "that does not pass, and is not tried again");
    PackJob::new(&list).packs(&["--ca-file", ca], &[b"hello"]);
    let other = Ca::new().file(directory.path(), "other.pem");
    let both = format!(
        "{}{}",
        fs::read_to_string(other).expect("read the file"),
        fs::read_to_string(ca).expect("read the file")
    );
    let job = PackJob::new(&list);
    let both = job.write("both.pem", &both);
    job.packs(&["--ca-file", &both], &[b"hello"]);
    PackJob::new(&list).env("SSL_CERT_FILE", ca).packs(&[], &[b"hello"]);

    let garbage = PackJob::new(&list);
    let path = garbage.write("garbage.pem", "garbage");
    garbage.fails(&["--ca-file", &path], 2, &["garbage.pem", "BEGIN CERTIFICATE"]);
    garbage.fails(&["--ca-file", "/nowhere.pem"], 6, &["/nowhere.pem"]);
}

#[test]
fn invalid_certificates_are_explained() {
    let directory = tempdir().expect("create a temporary directory");
    let private_ca = Ca::new();
    let ca = private_ca.file(directory.path(), "ca.pem");
    let args = ["--ca-file", ca.to_str().expect("UTF-8")];
    let named = private_ca.server(directory.path(), "elsewhere", &["elsewhere.invalid"]);
    let expired = private_ca.expired(directory.path(), "expired", &["127.0.0.1"]);
    for (pair, words) in
        [(named, ["not valid for this host", "elsewhere.invalid"]), (expired, ["expired", "clock"])]
    {
        let nginx = Nginx::start(Some(&pair), HELLO);
        let list = format!("https://{}/x\n", nginx.addr());
        PackJob::new(&list).fails(&args, 4, &[words[0], words[1], &nginx.addr()]);
    }
}

#[test]
fn system_without_cas_supports_plain_http_and_explains_https() {
    let directory = tempdir().expect("create a temporary directory");
    let none = directory.path().join("none.pem");
    fs::write(&none, "").expect("write a file");
    let none = none.to_str().expect("UTF-8").to_owned();
    let plain = Fake::honest(content("x", b"hello"));
    let job = PackJob::new(&list_entry("x", b"hello")).env("SSL_CERT_FILE", &none);
    job.packs(&words(&mirrors(&[plain.addr()])), &[b"hello"]);
    let pair = Ca::new().server(directory.path(), "server", &["127.0.0.1"]);
    let nginx = Nginx::start(Some(&pair), HELLO);
    let job = PackJob::new(&format!("https://{}/x\n", nginx.addr())).env("SSL_CERT_FILE", &none);
    job.fails(&[], 4, &["no CA certificates", "ca-certificates", "--ca-file"]);
}

#[test]
fn client_certificate_is_presented_to_its_host_only() {
    let directory = tempdir().expect("create a temporary directory");
    let private_ca = Ca::new();
    let ca = private_ca.file(directory.path(), "ca.pem");
    let pair = private_ca.server(directory.path(), "server", &["127.0.0.1"]);
    let client = private_ca.client(directory.path(), "packer");
    let stranger = Ca::new().client(directory.path(), "stranger");
    let verify = |how: &str| format!("ssl_client_certificate {}; ssl_verify_client {how};", ca.display());
    let other = Nginx::start(Some(&pair), &format!("{} {HELLO}", verify("optional_no_ca")));
    let redirect = format!("location /away {{ return 302 https://{}/there; }}", other.addr());
    let nginx = Nginx::start(Some(&pair), &format!("{} {redirect} {HELLO}", verify("on")));
    let list = format!("https://{0}/x {1}\nhttps://{0}/away {1}\n", nginx.addr(), sha256(b"hello"));
    let ca_args = ["--ca-file", ca.to_str().expect("UTF-8")];
    let show = |pair: &crate::support::tls::Pair| {
        format!("{}={},{}", nginx.addr(), pair.certificate.display(), pair.key.display())
    };
    PackJob::new(&list).fails(&ca_args, 4, &["400", "--client-cert"]);
    PackJob::new(&list).packs(&[&ca_args[..], &["--client-cert", &show(&client)]].concat(), &[b"hello"]);
    // nginx reports an unknown client certificate with another page.
    PackJob::new(&list).fails(
        &[&ca_args[..], &["--client-cert", &show(&stranger)]].concat(),
        4,
        &["/x`", "400"],
    );
    let mixed = format!("{}={},{}", nginx.addr(), client.certificate.display(), stranger.key.display());
    let mixed = [&ca_args[..], &["--client-cert", &mixed]].concat();
    PackJob::new(&list).fails(&mixed, 2, &["packer.crt", "does not match"]);

    assert!(nginx.stop().iter().any(|request| request.client == "CN=packer" && request.status == 200));
    let elsewhere = other.stop();
    assert!(!elsewhere.is_empty());
    assert!(elsewhere.iter().all(|request| request.client.is_empty()), "{elsewhere:?}");
}

#[test]
fn small_objects_use_http_2_and_large_blobs_do_not() {
    let directory = tempdir().expect("create a temporary directory");
    let private_ca = Ca::new();
    let ca = private_ca.file(directory.path(), "ca.pem");
    let pair = private_ca.server(directory.path(), "server", &["127.0.0.1"]);
    let registry = Registry::start(&directory.path().join("storage"));
    let mut list = String::new();
    let nginx = Nginx::start(
        Some(&pair),
        &format!("location / {{ proxy_pass http://{}; proxy_set_header Host $http_host; }}", registry.addr()),
    );
    for number in 0..8 {
        registry.push(&format!("app{number}"), "1", &image(20 + number, 3_000_000));
        list += &[&nginx.addr(), "/app", &number.to_string(), ":1\n"].concat();
    }
    // `--platform` makes `pack` request configs too.
    let args = ["--ca-file", ca.to_str().expect("UTF-8"), "--platform", "linux/amd64"];
    PackJob::new(&list).packs(&args, &[]);
    let log = nginx.stop();
    let (manifests, blobs): (Vec<_>, Vec<_>) =
        log.iter().partition(|request| request.path.contains("/manifests/"));
    assert_eq!(manifests.len(), 8);
    assert!(manifests.iter().all(|request| request.protocol == "HTTP/2.0"), "{manifests:?}");
    assert!(blobs.iter().any(|request| request.protocol == "HTTP/1.1"), "{blobs:?}");
    assert!(blobs.iter().any(|request| request.protocol == "HTTP/2.0"), "{blobs:?}");
}

// ---- Proxies ----

#[test]
fn proxy_from_the_environment_is_used_for_http_and_https() {
    let directory = tempdir().expect("create a temporary directory");
    let private_ca = Ca::new();
    let ca = private_ca.file(directory.path(), "ca.pem");
    let ca_args = ["--ca-file", ca.to_str().expect("UTF-8")];
    let pair = private_ca.server(directory.path(), "server", &["127.0.0.1", "localhost"]);
    let secure = Nginx::start(Some(&pair), HELLO);
    let plain = Nginx::start(None, HELLO);
    let http = format!("http://{}/x {}\n", plain.addr(), sha256(b"hello"));
    let https = format!("https://{}/x {}\n", secure.addr(), sha256(b"hello"));
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        let proxy = Proxy::start();
        PackJob::new(&http).env(name, format!("http://{}", proxy.addr())).packs(&[], &[b"hello"]);
        assert!(
            proxy.requests().iter().any(|request| request.contains(&plain.addr())),
            "{name}: {:?}",
            proxy.requests()
        );
    }
    for name in ["HTTPS_PROXY", "https_proxy"] {
        let proxy = Proxy::start();
        PackJob::new(&https).env(name, format!("http://{}", proxy.addr())).packs(&ca_args, &[b"hello"]);
        let tunnel = format!("CONNECT {}", secure.addr());
        assert!(proxy.requests().contains(&tunnel), "{name}: {:?}", proxy.requests());
    }
    let proxy = Proxy::start();
    let via = format!("http://{}", proxy.addr());
    for exception in ["127.0.0.1", "127.0.0.0/8", "*", "elsewhere.invalid, 127.0.0.1"] {
        let job = PackJob::new(&http).env("HTTP_PROXY", &via).env("NO_PROXY", exception);
        job.packs(&[], &[b"hello"]);
    }
    let by_name = http.replace("127.0.0.1", "localhost");
    PackJob::new(&by_name).env("HTTP_PROXY", &via).env("no_proxy", "localhost").packs(&[], &[b"hello"]);
    assert_eq!(proxy.requests(), [""; 0]);
}

#[test]
fn proxy_password_is_sent_to_the_proxy_and_never_printed() {
    let directory = tempdir().expect("create a temporary directory");
    let private_ca = Ca::new();
    let ca = private_ca.file(directory.path(), "ca.pem");
    let ca_args = ["--ca-file", ca.to_str().expect("UTF-8"), "--retries", "0"];
    let pair = private_ca.server(directory.path(), "server", &["127.0.0.1"]);
    let (secure, plain) = (Nginx::start(Some(&pair), HELLO), Nginx::start(None, HELLO));
    let proxy = Proxy::start_with("BasicAuth packer s3cret");
    for list in [format!("http://{}/x\n", plain.addr()), format!("https://{}/x\n", secure.addr())] {
        let via =
            |user: &str, addr: &str| PackJob::new(&list).env("ALL_PROXY", format!("http://{user}{addr}"));
        via("packer:s3cret@", &proxy.addr()).packs(&ca_args, &[b"hello"]);
        via("", &proxy.addr()).fails(&ca_args, 4, &["proxy authentication required", "HTTPS_PROXY="]);
        // This response does not reveal that the proxy refused.
        let finished =
            via("packer:wr0ng@", &proxy.addr()).fails(&ca_args, 4, &["through the proxy", &proxy.addr()]);
        assert!(!format!("{finished:?}").contains("wr0ng"), "{finished:#?}");
        let down = closed_port();
        let job = via("packer:s3cret@", &down);
        let finished = job.fails(&ca_args, 4, &["through the proxy", &down, "refused"]);
        assert!(!format!("{finished:?}").contains("s3cret"), "{finished:#?}");
    }
}

// ---- Time limits and retries ----

#[test]
fn retry_after_is_honored_as_seconds_and_as_date() {
    let bytes = random_bytes(30, 1000);
    for (date, header, least, most) in [
        (None, "2", 1.9, 2.1),
        // By the clock of the server, which is wrong.
        (Some("Wed, 21 Oct 2015 07:28:00 GMT"), "Wed, 21 Oct 2015 07:28:02 GMT", 1.9, 2.1),
        (None, "Wed, 21 Oct 2015 07:28:00 GMT", 0.05, 0.5),
        (None, "0", 0.05, 0.5),
        (None, "nonsense", 0.3, 0.7),
    ] {
        for status in [429, 503] {
            let fake = Fake::start(content("x", &bytes), move |seen, reply| {
                if !(seen.is_probe() && seen.nth == 0) {
                    return reply;
                }
                let busy = Reply::status(status).with("retry-after", header);
                if let Some(date) = date { busy.with("date", date) } else { busy }
            });
            let args = mirrors(&[fake.addr()]);
            let finished = PackJob::new(&list_entry("x", &bytes))
                .pack_with(&[&words(&args)[..], &["--json"]].concat())
                .ok();
            let retry_delays = retry_delays(&finished);
            assert!(
                retry_delays.len() == 1 && (least..most).contains(&retry_delays[0]),
                "{status} {header}: {retry_delays:?}"
            );
            let seen = fake.seen();
            let waited = (seen[1].at - seen[0].at).as_secs_f64();
            assert!(waited >= retry_delays[0], "{status} {header}: {waited}");
        }
    }
}

#[test]
fn retry_after_obeys_the_run_timeout_and_no_retry_waits_for_more_than_two_minutes() {
    for (header, expected) in [
        ("110", &["5 s", "--timeout"][..]),
        ("7300", &["429", "ratelimit-remaining: 0;w=21600", "run the same command again in 3 h"]),
        ("Mon, 21 Oct 2115 07:28:00 GMT", &["429", "run the same command again in"]),
    ] {
        let fake = Fake::start(Content::default(), move |_, _| {
            Reply::status(429)
                .with("retry-after", header)
                .with("ratelimit-limit", "100;w=21600")
                .with("ratelimit-remaining", "0;w=21600")
        });
        let args = mirrors(&[fake.addr()]);
        let job = PackJob::new(&format!("{}\n", url("x")));
        let start = Instant::now();
        let options = [&words(&args)[..], &["--json", "--timeout", "5s"]].concat();
        let finished = job.fails(&options, 4, expected);
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(retry_delays(&finished), if header == "110" { vec![110.0] } else { vec![] });
        assert_eq!(fake.seen().len(), 1);
    }
}

#[test]
fn permanent_errors_are_not_retried() {
    for status in [400, 401, 403, 404, 410, 451] {
        let fake = Fake::start(Content::default(), move |_, _| Reply::status(status));
        let args = [mirrors(&[fake.addr()]), mirror(REGISTRY, &fake.addr()).to_vec()].concat();
        let list = format!("{}\n{REGISTRY}/app:1\n", url("x"));
        PackJob::new(&list).fails(&words(&args), 4, &["/x`", &status.to_string()]);
        // A file is requested once more without the range.
        let requests = if matches!(status, 400 | 403) { 3 } else { 2 };
        assert_eq!(fake.seen().len(), requests, "{status}");
    }
}

#[test]
fn retry_delays_grow_and_are_jittered() {
    let fake = Fake::start(Content::default(), |_, _| Reply::status(503));
    let args = mirrors(&[fake.addr()]);
    let finished = PackJob::new(&format!("{}\n", url("x")))
        .pack_with(&[&words(&args)[..], &["--json", "--retries", "2"]].concat());
    let retry_delays = retry_delays(&finished.failed(4, &["503"]));
    assert_eq!(retry_delays.len(), 2);
    assert!(
        (0.3..0.7).contains(&retry_delays[0]) && (0.7..1.3).contains(&retry_delays[1]),
        "{retry_delays:?}"
    );
}

#[test]
fn stalled_transfer_is_detected_and_resumed() {
    let bytes = random_bytes(31, 3_000_000);
    let stalled = Arc::new(AtomicBool::new(false));
    let once = stalled.clone();
    let fake = Fake::start(content("x", &bytes), move |seen, reply| {
        let stall = (seen.is_transfer() && !once.swap(true, Ordering::Relaxed)).then_some(1_500_000);
        Reply { stall, ..reply }
    });
    let args = mirrors(&[fake.addr()]);
    let start = Instant::now();
    let job = PackJob::new(&list_entry("x", &bytes));
    job.pack_with(&[&words(&args)[..], &["--idle-timeout", "1s"]].concat()).ok();
    job.assert_has(&[&bytes]);
    assert!(start.elapsed() < Duration::from_secs(20));
    let resumed =
        fake.seen().into_iter().filter_map(|seen| seen.range()).any(|(first, _)| first == 1_500_000);
    assert!(resumed, "{:?}", fake.seen());
}

#[test]
fn trickling_transfer_is_resumed_or_fails() {
    let bytes = random_bytes(32, 60_000);
    for always in [false, true] {
        let fake = Fake::start(content("x", &bytes), move |seen, reply| {
            let slow = seen.is_transfer() && (always || seen.header("range").is_none());
            if slow { Reply { pause: Duration::from_millis(100), step: 10, ..reply } } else { reply }
        });
        let args = mirrors(&[fake.addr()]);
        let job = PackJob::new(&list_entry("x", &bytes));
        let args = [&words(&args)[..], &["--idle-timeout", "700ms", "--retries", "1"]].concat();
        if always {
            job.fails(&args, 4, &["stalled", "2 attempts", "--idle-timeout"]);
        } else {
            job.pack_with(&args).ok();
            job.assert_has(&[&bytes]);
        }
    }
}

#[test]
fn unresponsive_server_times_out() {
    let fake = Fake::start(content("x", b"hello"), |_, reply| {
        sleep(Duration::from_secs(3));
        reply
    });
    let args = mirrors(&[fake.addr()]);
    let start = Instant::now();
    let args = [&words(&args)[..], &["--idle-timeout", "300ms", "--retries", "1"]].concat();
    PackJob::new(&list_entry("x", b"hello")).fails(&args, 4, &["failed (2 attempts)", "timed out"]);
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn connect_timeout_is_enforced() {
    // The kernel accepts the connection, and nothing is sent on it.
    let silent = TcpListener::bind("127.0.0.1:0").expect("find a free port");
    let addr = silent.local_addr().expect("find a free port");
    let start = Instant::now();
    let args = ["--connect-timeout", "300ms", "--retries", "0"];
    PackJob::new(&format!("https://{addr}/x\n")).fails(
        &args,
        4,
        &["connection to", &addr.to_string(), "timed out"],
    );
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn run_timeout_is_enforced() {
    let bytes = random_bytes(33, 30_000_000);
    let fake =
        Fake::start(content("x", &bytes), |_, reply| Reply { pause: Duration::from_millis(10), ..reply });
    let args = mirrors(&[fake.addr()]);
    let start = Instant::now();
    let job = PackJob::new(&list_entry("x", &bytes));
    job.fails(
        &[&words(&args)[..], &["--timeout", "1s", "--jobs", "2"]].concat(),
        4,
        &["/x`", "1 s", "--timeout"],
    );
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[test]
fn slow_link_is_not_a_stall() {
    let bytes = random_bytes(34, 60_000);
    let root = web_root("x", &bytes);
    let web = Web::start_with(root.path(), "limit_rate 20k;");
    let args = mirrors(&[web.addr()]);
    PackJob::new(&list_entry("x", &bytes))
        .packs(&[&words(&args)[..], &["--idle-timeout", "1500ms"]].concat(), &[&bytes]);
}

// ---- Redirects ----

#[test]
fn redirects_keep_the_range_header_and_a_chunked_response_disables_parts() {
    let bytes = random_bytes(35, 20_000_000);
    let storage = Fake::honest(content("x", &bytes));
    let there = storage.addr();
    let fake = Fake::start(content("x", &bytes), move |seen, _| {
        Reply::redirect(&format!("http://{there}{}", seen.path))
    });
    PackJob::new(&list_entry("x", &bytes)).packs(&words(&mirrors(&[fake.addr()])), &[&bytes]);
    let ranges: Vec<_> = storage.seen().iter().filter_map(Seen::range).collect();
    assert!(ranges.iter().any(|(first, _)| *first == 8 << 20), "{ranges:?}");
    let endless = Fake::start(content("x", &bytes), |_, _| Reply {
        framing: Framing::Chunked,
        ..Reply::redirect("x?")
    });
    PackJob::new(&list_entry("x", &bytes)).fails(&words(&mirrors(&[endless.addr()])), 4, &["redirect"]);
}

#[test]
fn connections_per_host_are_limited() {
    let directory = tempdir().expect("create a temporary directory");
    let registry = Registry::start(&directory.path().join("registry"));
    let web = directory.path().join("web");
    fs::create_dir_all(&web).expect("create a directory");
    let mut list = String::new();
    let mut blobs = Vec::new();
    for number in 0..12 {
        let bytes = random_bytes(number, 600_000);
        fs::write(web.join(number.to_string()), &bytes).expect("write a file");
        // Pinned files are fetched in parts; the others are read from the start.
        let pin = if number % 2 == 0 { sha256(&bytes) } else { String::new() };
        list = format!("{list}https://{FILES}/{number} {pin}\n");
        blobs.push(bytes);
    }
    for number in 0..4 {
        let layers =
            [0, 1, 2].map(|layer| Layer::random(100 + number * 3 + layer, 300_000, Compression::None));
        let image = Image::new(Format::Oci, "linux/amd64", &layers);
        registry.push(&format!("app{number}"), "1", &image);
        list = format!("{list}{REGISTRY}/app{number}:1\n");
    }
    // A third concurrent request gets 503.
    let directives = format!(
        "root {}; limit_rate 2m; location / {{ limit_conn all 2; max_ranges 0; }}\n\
         location /v2/ {{ limit_conn all 2; proxy_pass http://{}; proxy_set_header Host $http_host; }}",
        web.display(),
        registry.addr()
    );
    let nginx = Nginx::start_with("limit_conn_zone $server_port zone=all:1m;", None, &directives);
    let mirrors = [FILES, REGISTRY].map(|host| format!("{host}=http://{}", nginx.addr()));
    let args = ["--mirror", &mirrors[0], "--mirror", &mirrors[1], "--mirrors-only", "--jobs", "8"];
    let job = PackJob::new(&list);
    let blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
    job.packs(&[&args[..], &["--jobs-per-host", "2"]].concat(), &blobs);
    // Eight are too many. The number adapts.
    let job = PackJob::new(&list);
    let finished = job.packs(&[&args[..], &["--retries", "4", "--json"]].concat(), &blobs);
    assert!(!retry_delays(&finished).is_empty(), "{finished:#?}");
}
