//! Servers, proxies and portals between a packer and its content: statuses, versions, web pages, encodings, limits.

use std::fs;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression as Level;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::json;
use tempfile::tempdir;

use crate::pack_job::{FILES, OUTPUT, PackJob};
use crate::program::{Finished, unbundle};
use crate::support::fake::{Content, Fake, Framing, Reply, Seen};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::nginx::Nginx;
use crate::support::random_bytes;
use crate::support::tls::Pair;
use crate::support::web::free_port;
use crate::support::{sha256, sha512};

fn image() -> Image {
    Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 1000, Compression::Gzip)])
}

/// A server with the image `team/app:1` under its own address, and the list that names it.
fn registry(twist: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static) -> (Fake, PackJob) {
    let mut content = Content::default();
    content.image("team/app:1", &image());
    let fake = Fake::start(
        content,
        move |seen, reply| {
            if seen.path == "/v2/" { Reply::ok(b"{}") } else { twist(seen, reply) }
        },
    );
    let job = PackJob::new(&format!("{}/team/app:1\n", fake.addr()));
    (fake, job)
}

/// A server with one file, and its URL.
fn file_server(
    name: &str,
    bytes: &[u8],
    twist: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static,
) -> (Fake, String) {
    let mut content = Content::default();
    content.path(&format!("/{name}"), bytes.to_vec());
    let fake = Fake::start(content, twist);
    let url = format!("http://{}/{name}", fake.addr());
    (fake, url)
}

/// Returns the content of the only file of a finished bundle.
fn packed(job: &PackJob) -> Vec<u8> {
    unbundle(["verify", &job.text(OUTPUT)]).ok();
    let listing = unbundle(["ls", &job.text(OUTPUT), "--json"]).ok().json();
    let path = listing["files"][0]["path"].as_str().expect("a path").to_owned();
    unbundle(["unpack", &job.text(OUTPUT), &job.text("site")]).ok();
    fs::read(job.path("site").join("files/k8s").join(path)).expect("read the file")
}

/// Asserts that no line of stderr has this word.
#[track_caller]
fn is_silent_about(finished: &Finished, word: &str) {
    assert!(!finished.stderr.contains(word), "{finished:#?}");
}

// ---- Statuses and versions ----

#[test]
fn only_200_and_a_requested_range_are_content() {
    let bytes = random_bytes(1, 5000);
    for (status, words) in [
        (202, "202 Accepted"),
        (203, "203 Non"),
        (204, "204 No Content"),
        (205, "205 Reset Content"),
        (206, "206 Partial Content"),
    ] {
        let twist = move |_: &Seen, reply: Reply| {
            let reply = Reply { status, ..reply };
            if status == 206 { reply.with("content-range", "bytes 0-999/5000") } else { reply }
        };
        let (_fake, url) = file_server("tool.bin", &bytes, twist);
        for pin in [String::new(), sha256(&bytes)] {
            let job = PackJob::new(&format!("{url} {pin}\n"));
            job.fails(&["--retries", "0"], 4, &[&url, "returned", words]);
        }
        for part in ["/manifests/", "/blobs/"] {
            let (fake, job) = registry(
                move |seen, reply| {
                    if seen.path.contains(part) { twist(seen, reply) } else { reply }
                },
            );
            job.fails(&["--retries", "0"], 4, &[&fake.addr(), "returned", words]);
        }
        // The next source has it.
        let mut content = Content::default();
        content.file(&format!("https://{FILES}/tool.bin"), bytes.clone());
        let (bad, good) = (Fake::start(content.clone(), twist), Fake::honest(content));
        let job = PackJob::new(&format!("https://{FILES}/tool.bin\n"));
        let options = [bad.mirror(FILES), good.mirror(FILES)].concat();
        let finished = job.pack_with(&options).ok();
        assert!(finished.stderr.contains(words), "{finished:#?}");
        assert_eq!(packed(&job), bytes);
    }
}

/// Serves `old`, and `new` for those requests for which `is_new` returns true.
fn two_versions(
    old: &[u8],
    new: &[u8],
    is_new: impl Fn(&Seen) -> bool + Send + Sync + 'static,
    change: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static,
) -> (Fake, String) {
    let mut other = Content::default();
    other.path("/tool.bin", new.to_vec());
    file_server("tool.bin", old, move |seen, reply| {
        if is_new(seen) { change(seen, other.respond(&seen.without("if-range"))) } else { reply }
    })
}

#[test]
fn a_file_of_two_servers_has_one_version() {
    let (old, new) = (random_bytes(2, 20 << 20), random_bytes(3, 20 << 20));
    for jobs in ["1", "8"] {
        for first in [1, 2, 3] {
            // The second server sends no entity tag, and does not know `If-Range`.
            let (_fake, url) =
                two_versions(&old, &new, move |seen| seen.nth >= first, |_, reply| reply.without("etag"));
            let job = PackJob::new(&format!("{url}\n"));
            job.pack_with(&["--jobs", jobs]).ok();
            assert_eq!(sha256(&packed(&job)), sha256(&new), "{jobs} {first}");
        }
        // Every second request.
        let (_fake, url) =
            two_versions(&old, &new, |seen| seen.nth % 2 == 1, |_, reply| reply.without("etag"));
        let job = PackJob::new(&format!("{url}\n"));
        job.pack_with(&["--jobs", jobs]).ok();
        let found = packed(&job);
        assert!(found == old || found == new, "{}", sha256(&found));
    }
}

#[test]
fn a_small_file_is_not_continued_with_another_version() {
    let (old, new) = (random_bytes(4, 1 << 20), random_bytes(5, 1 << 20));
    // The second version is sent for the complete file, and breaks. The first one has the entity tag.
    let (fake, url) = two_versions(
        &old,
        &new,
        |seen| seen.range().is_none(),
        |seen, reply| {
            let cut = (seen.nth < 3).then_some(600_000);
            Reply { cut, ..reply.without("etag") }
        },
    );
    let job = PackJob::new(&format!("{url}\n"));
    job.pack().ok();
    assert_eq!(sha256(&packed(&job)), sha256(&new), "{:#?}", fake.seen());
}

#[test]
fn a_later_run_does_not_continue_another_version() {
    let (old, new) = (random_bytes(6, 24 << 20), random_bytes(7, 24 << 20));
    // The complete file is of the second version, and the server goes down in the middle of it.
    let (_fake, url) = two_versions(
        &old,
        &new,
        |seen| !seen.is_probe(),
        |seen, reply| {
            if seen.range().is_some() {
                return Reply::status(416);
            }
            Reply { cut: Some(18 << 20), ..reply.without("etag") }
        },
    );
    let port = url.split(['/', ':']).nth(4).expect("a port").to_owned();
    let job = PackJob::new(&format!("{url}\n"));
    job.fails(&["--retries", "0"], 4, &["tool.bin"]);
    // Now only the first one is there.
    let mut content = Content::default();
    content.file(&url, old.clone());
    let honest = Fake::honest(content);
    let mirror = format!("127.0.0.1:{port}=http://{}/127.0.0.1:{port}", honest.addr());
    job.pack_with(&["--mirror", &mirror]).ok();
    assert_eq!(sha256(&packed(&job)), sha256(&old));
}

#[test]
fn refused_ranges_are_replaced_by_a_plain_request() {
    let bytes = random_bytes(8, 20 << 20);
    for status in [400, 403, 405, 416, 501] {
        for only_parts in [false, true] {
            let (fake, url) = file_server("tool.bin", &bytes, move |seen, reply| {
                let is_refused = seen.range().is_some() && !(only_parts && seen.is_probe());
                if is_refused { Reply::status(status) } else { reply }
            });
            for pin in [String::new(), sha256(&bytes)] {
                let job = PackJob::new(&format!("{url} {pin}\n"));
                job.pack_with(&["--retries", "0"]).ok();
                assert_eq!(sha256(&packed(&job)), sha256(&bytes), "{status} {only_parts}");
            }
            assert!(fake.seen().len() < 30, "{}", fake.seen().len());
        }
        // The plain request counts.
        let (_fake, url) = file_server("tool.bin", &bytes, move |_, _| Reply::status(status));
        PackJob::new(&format!("{url}\n")).fails(&["--retries", "0"], 4, &[&url, &status.to_string()]);
    }
}

#[test]
fn a_range_with_more_bytes_than_it_states_is_not_used() {
    let bytes = random_bytes(9, 20 << 20);
    let (_fake, url) = file_server("tool.bin", &bytes, |seen, mut reply| {
        if seen.range().is_some() && !seen.is_probe() {
            reply.body.push(0);
            reply.framing = Framing::Chunked;
        }
        reply
    });
    let job = PackJob::new(&format!("{url}\n"));
    job.pack().ok();
    assert_eq!(sha256(&packed(&job)), sha256(&bytes));
}

#[test]
fn a_body_that_only_the_connection_ends_is_warned_about_unless_it_is_pinned() {
    let bytes = random_bytes(13, 300_000);
    for (framing, has_length) in [(Framing::Close, false), (Framing::Chunked, true), (Framing::Length, true)]
    {
        let (_fake, url) = file_server("tool.bin", &bytes, move |_, reply| {
            let reply = Reply { framing, status: 200, ..reply };
            Reply { body: random_bytes(13, 300_000), ..reply }.without("content-range").without("etag")
        });
        for pin in [String::new(), sha256(&bytes)] {
            let job = PackJob::new(&format!("{url} {pin}\n"));
            let finished = job.pack_with(&["--retries", "0"]).ok();
            assert_eq!(packed(&job), bytes);
            let is_warned = finished.stderr.contains("tool.bin` was sent without its length");
            let is_suspicious = !has_length && pin.is_empty();
            assert_eq!(is_warned, is_suspicious, "{framing:?}: {finished:#?}");
            let strict = PackJob::new(&format!("{url} {pin}\n")).pack_with(&["--retries", "0", "--strict"]);
            let lock = job.lock_with(&["--retries", "0"]);
            for finished in [strict, lock] {
                if is_suspicious {
                    finished.failed(4, &["tool.bin", "without its length"]);
                } else {
                    finished.ok();
                }
            }
        }
    }
}

// ---- Web pages and encodings ----

const LOGIN: &[u8] = b"\n<!DOCTYPE html><html><title>Log in</title></html>";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(bytes).expect("compress");
    encoder.finish().expect("compress")
}

#[test]
fn a_web_page_in_place_of_a_file_is_refused() {
    let html = "text/html; charset=utf-8";
    for (name, body, media_type, words) in [
        ("tool.bin", LOGIN, html, &["a web page", "text/html", "--allow-html"][..]),
        ("tool.bin", b"\x7fELF", html, &["a web page", "text/html"]),
        ("tool.bin", LOGIN, "application/octet-stream", &["a web page instead of the file"]),
        ("tool.tar.gz", LOGIN, "application/gzip", &["a web page instead of a gzip file"]),
        (
            "tool.zip",
            b"{\"error\":\"denied\"}",
            "application/zip",
            &["a JSON document instead of a zip file"],
        ),
        ("tool.tar.xz", b"\x1f\x8b\x08\0\0", "application/x-xz", &["gzip instead of a xz file"]),
    ] {
        let (_fake, url) = file_server(name, body, move |_, reply| reply.with("content-type", media_type));
        PackJob::new(&format!("{url}\n")).fails(&["--retries", "0"], 4, &[&[&url[..]], words].concat());
        // The user knows better.
        for (pin, options) in [(sha256(body), &[][..]), (String::new(), &["--allow-html"])] {
            let job = PackJob::new(&format!("{url} {pin}\n"));
            job.pack_with(options).ok();
            assert_eq!(packed(&job), body, "{name}");
        }
    }
    for (name, body, media_type) in [
        ("index.html", LOGIN.to_vec(), "text/html"),
        ("tool.tgz", gzip(b"x"), "text/plain"),
        ("empty.tgz", Vec::new(), "application/gzip"),
    ] {
        let (_fake, url) = file_server(name, &body, move |_, reply| reply.with("content-type", media_type));
        let job = PackJob::new(&format!("{url}\n"));
        job.pack().ok();
        assert_eq!(packed(&job), body, "{name}");
    }
}

#[test]
fn a_portal_that_redirects_to_its_login_page_is_left_for_the_next_source() {
    let bytes = random_bytes(10, 5000);
    let mut content = Content::default();
    content.file(&format!("https://{FILES}/tool.bin"), bytes.clone());
    let portal = Fake::start(content.clone(), |seen, _| {
        if !seen.path.contains("login") {
            return Reply::redirect("/login");
        }
        Reply::ok(LOGIN).with("content-type", "text/html")
    });
    let honest = Fake::honest(content);
    let job = PackJob::new(&format!("https://{FILES}/tool.bin\n"));
    let finished = job.pack_with(&[portal.mirror(FILES), honest.mirror(FILES)].concat()).ok();
    assert!(finished.stderr.contains("a web page"), "{finished:#?}");
    assert_eq!(packed(&job), bytes);
    let job = PackJob::new(&format!("https://{FILES}/tool.bin\n"));
    job.pack_from(&portal, &[]).failed(4, &["/login", "a web page"]);
}

/// Changes the response of a server that has a file of this size.
type Twist = fn(&Seen, Reply, usize) -> Reply;

#[test]
fn a_mirror_that_cuts_a_pinned_file_short_is_left_for_the_next_source() {
    for (number, size) in [(1, 5000), (2, 20 << 20)] {
        let bytes = random_bytes(20 + number, size);
        let mut content = Content::default();
        content.file(&format!("https://{FILES}/tool.bin"), bytes.clone());
        let mut short = Content::default();
        short.file(&format!("https://{FILES}/tool.bin"), bytes[..size * 3 / 4].to_vec());
        let without_ranges = |reply: Reply| Reply { status: 200, ..reply.without("content-range") };
        let twists: [(&str, bool, Twist); 5] = [
            // The stated length is right, and every connection ends at the same byte of the file.
            ("cut", false, |seen, reply, size| {
                let first = seen.range().map_or(0, |(first, _)| first);
                Reply { cut: Some((size / 2).saturating_sub(first)), ..reply }
            }),
            // The stated length is too small.
            ("ranges", true, |_, reply, _| reply),
            ("complete", true, |seen, reply, _| if seen.is_probe() { Reply::status(416) } else { reply }),
            // No length is stated.
            ("chunked", true, |_, reply, _| Reply { framing: Framing::Chunked, ..reply }),
            ("close", true, |_, reply, _| Reply { framing: Framing::Close, ..reply }),
        ];
        for (name, is_short, twist) in twists {
            let served = if is_short { short.clone() } else { content.clone() };
            let all = short.clone();
            let has_no_ranges = matches!(name, "chunked" | "close");
            let mirror = Fake::start(served, move |seen, reply| {
                let reply =
                    if has_no_ranges { without_ranges(all.respond(&seen.without("range"))) } else { reply };
                twist(seen, reply, size)
            });
            let honest = Fake::honest(content.clone());
            for pin in [sha256(&bytes), sha512(&bytes)] {
                let job = PackJob::new(&format!("https://{FILES}/tool.bin {pin}\n"));
                let options = [
                    &mirror.mirror(FILES)[..],
                    &honest.mirror(FILES),
                    &["--retries", "1"].map(str::to_owned),
                ]
                .concat();
                let finished = job.pack_with(&options).ok();
                let warning = format!("`http://{}/` failed, falling back to the next source", mirror.addr());
                assert!(finished.stderr.contains(&warning), "{name}: {finished:#?}");
                assert_eq!(packed(&job), bytes, "{name}");
            }
        }
        // Without another source, it is an error.
        let mirror = Fake::honest(short);
        let job = PackJob::new(&format!("https://{FILES}/tool.bin {}\n", sha256(&bytes)));
        let options = [&mirror.mirror(FILES)[..], &["--mirrors-only"].map(str::to_owned)].concat();
        job.fails(&options.iter().map(String::as_str).collect::<Vec<_>>(), 5, &["tool.bin", "mismatch"]);
    }
}

#[test]
fn a_file_with_an_unrequested_encoding_keeps_its_bytes() {
    let bytes = gzip(&random_bytes(11, 9 << 20));
    for encoding in ["gzip", "x-gzip", "br"] {
        let (_fake, url) =
            file_server("tool.tar.gz", &bytes, move |_, reply| reply.with("content-encoding", encoding));
        for pin in [String::new(), sha256(&bytes)] {
            let job = PackJob::new(&format!("{url} {pin}\n"));
            let finished = job.pack().ok();
            assert_eq!(sha256(&packed(&job)), sha256(&bytes));
            let warning = format!("Content-Encoding: {encoding}");
            if pin.is_empty() {
                assert_eq!(finished.stderr.matches(&warning).count(), 1, "{finished:#?}");
            } else {
                is_silent_about(&finished, &warning);
            }
        }
    }
}

#[test]
fn documents_of_a_compressing_proxy_are_decoded_within_their_limit() {
    type Encode = fn(&[u8]) -> Vec<u8>;
    let zlib: Encode = |bytes| {
        let mut encoder = ZlibEncoder::new(Vec::new(), Level::fast());
        encoder.write_all(bytes).expect("compress");
        encoder.finish().expect("compress")
    };
    let deflate: Encode = |bytes| {
        let mut encoder = DeflateEncoder::new(Vec::new(), Level::fast());
        encoder.write_all(bytes).expect("compress");
        encoder.finish().expect("compress")
    };
    let gzip: Encode = gzip;
    let token = |seen: &Seen, reply: Reply| {
        if seen.path.starts_with("/token") {
            return Reply::ok(br#"{"token":"tok"}"#);
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").expect("a host"));
        let is_known = seen.header("authorization") == Some("Bearer tok");
        if is_known { reply } else { Reply::status(401).with("www-authenticate", &realm) }
    };
    for (encoding, encode) in [("gzip", gzip), ("deflate", zlib), ("deflate", deflate)] {
        let (_fake, job) = registry(move |seen, reply| {
            let reply = token(seen, reply);
            let is_document = reply.status == 200 && !seen.path.contains("/blobs/");
            let body = encode(&reply.body);
            if is_document { Reply { body, ..reply }.with("content-encoding", encoding) } else { reply }
        });
        job.pack_with(&["--retries", "0"]).ok();
    }
    let bomb = gzip(&vec![b' '; 64 << 20]);
    for (part, encoding, body, words) in [
        ("/manifests/", "br", b"{}".to_vec(), "Content-Encoding: br"),
        ("/token", "zstd", b"{}".to_vec(), "Content-Encoding: zstd"),
        ("/manifests/", "gzip", b"\x1f\x8b\xff\xff".to_vec(), "Content-Encoding: gzip"),
        ("/manifests/", "gzip", bomb.clone(), "exceeds"),
        ("/token", "gzip", bomb, "exceeds"),
    ] {
        let (_fake, job) = registry(move |seen, reply| {
            let reply = token(seen, reply);
            let is_changed = reply.status == 200 && seen.path.contains(part);
            if is_changed { Reply::ok(&body).with("content-encoding", encoding) } else { reply }
        });
        job.fails(&["--retries", "0"], 4, &[part, words]);
    }
}

#[test]
fn an_empty_manifest_is_requested_again() {
    let (fake, job) = registry(|seen, reply| {
        let is_empty = seen.path.contains("/manifests/") && seen.nth == 0;
        if is_empty { Reply { body: Vec::new(), ..reply } } else { reply }
    });
    job.pack().ok();
    assert_eq!(fake.seen_of("/manifests/").len(), 2);
    let (_fake, job) =
        registry(
            |seen, reply| {
                if seen.path.contains("/manifests/") { Reply { body: Vec::new(), ..reply } } else { reply }
            },
        );
    job.fails(&["--retries", "1"], 4, &["/manifests/1", "empty document"]);
}

// ---- Tokens ----

#[test]
fn tokens_of_unusual_servers_are_used() {
    for (challenge, token) in [
        ("realm=\"http://HOST/token\"", json!({ "access_token": "tok", "expires_in": "300" })),
        ("realm=\"http://HOST/token\"", json!({ "token": "tok", "expires_in": -1 })),
        ("realm=\"http://HOST/token\"", json!({ "token": "tok", "expires_in": 59.5 })),
        ("realm=\"http://HOST/token\"", json!({ "token": "tok", "expires_in": null })),
        ("realm=\"http://HOST/token\",scope=\"\",service=\"\"", json!({ "token": "tok" })),
        ("realm=\"http://HOST/token\",service=\"Büro\"", json!({ "token": "tok" })),
        ("realm=\"/token\"", json!({ "token": "tok" })),
        // Only plain HTTP is available on this port.
        ("realm=\"https://HOST/token\"", json!({ "token": "tok" })),
    ] {
        let (fake, job) = registry(move |seen, reply| {
            let host = seen.header("host").expect("a host");
            if seen.path.starts_with("/token") {
                return Reply::ok(token.to_string().as_bytes());
            }
            let challenge = format!("Bearer {}", challenge.replace("HOST", host));
            let is_known = seen.header("authorization") == Some("Bearer tok");
            if is_known { reply } else { Reply::status(401).with("www-authenticate", &challenge) }
        });
        job.pack_with(&["--retries", "0", "--insecure-registry", &fake.addr()]).ok();
        let requests = fake.seen_of("/token");
        let scope = requests[0].path.contains("scope=repository%3Ateam%2Fapp%3Apull");
        assert!(scope, "{challenge}: {requests:?}");
    }
}

#[test]
fn a_failing_token_server_is_requested_once_per_attempt() {
    let mut content = Content::default();
    let mut list = String::new();
    let host = format!("127.0.0.1:{}", free_port());
    for number in 0..6 {
        content.image(&format!("team/app{number}:1"), &image());
        list = format!("{list}{host}/team/app{number}:1\n");
    }
    let tokens = Fake::start(Content::default(), |_, _| Reply::status(503));
    let realm = format!("Bearer realm=\"http://{}/token\"", tokens.addr());
    let fake = Fake::start_at(&host, content, move |seen, reply| match &*seen.path {
        "/v2/" => Reply::ok(b"{}"),
        _ => Reply { status: 401, ..reply }.with("www-authenticate", &realm),
    });
    let job = PackJob::new(&list);
    job.fails(&["--retries", "2", "--jobs", "1"], 4, &["team/app0:1", "the token server failed", "503"]);
    assert_eq!(tokens.seen().len(), 3);
    assert_eq!(fake.seen_of("/manifests/").len(), 6);
}

#[test]
fn an_unusable_realm_is_named() {
    for (realm, words) in [("no where", "no where"), ("ftp://a.example/token", "ftp://a.example/token")] {
        let challenge = format!("Bearer realm=\"{realm}\"");
        let (_fake, job) = registry(move |_, _| Reply::status(401).with("www-authenticate", &challenge));
        job.fails(&["--retries", "0"], 4, &["token server", words, "not a URL"]);
    }
}

#[test]
fn a_challenge_with_other_letters_gets_credentials() {
    let (fake, job) = registry(|seen, reply| {
        let challenged = Reply::status(401).with("www-authenticate", "Basic realm=\"Geschützter Bereich\"");
        if seen.header("authorization").is_some() { reply } else { challenged }
    });
    let auth = json!({ "auths": { fake.addr(): { "username": "robot", "password": "secret" } } });
    let auth = job.write("auth.json", auth.to_string());
    job.pack_with(&["--auth-file", &auth]).ok();
}

#[test]
fn a_server_that_a_registry_refers_to_is_named_if_it_denies_access() {
    let other =
        Fake::start(Content::default(), |_, _| Reply::status(401).with("www-authenticate", "Basic realm=x"));
    let location = format!("http://{}/elsewhere", other.addr());
    let (fake, job) = registry(move |_, _| Reply::redirect(&location));
    let finished = job.fails(&["--retries", "0"], 4, &[&other.addr(), "401", "referred to this server"]);
    is_silent_about(&finished, &format!("docker login {}", fake.addr()));
}

// ---- Limits of servers ----

/// An image of small layers.
fn many_layers(count: u8) -> Image {
    let layers: Vec<_> =
        (0..count).map(|number| Layer::files(&[("n", &[number])], Compression::Gzip)).collect();
    Image::new(Format::Oci, "linux/amd64", &layers)
}

#[test]
fn a_server_that_limits_connections_gets_fewer_at_a_time() {
    for status in [503, 429] {
        let mut content = Content::default();
        content.image("team/many:1", &many_layers(20));
        let active = AtomicUsize::new(0);
        let fake = Fake::start(content, move |seen, reply| {
            if !seen.path.contains("/blobs/") {
                return reply;
            }
            let before = active.fetch_add(1, Ordering::SeqCst);
            let reply = if before < 2 {
                thread::sleep(Duration::from_millis(300));
                reply
            } else {
                Reply::status(status)
            };
            active.fetch_sub(1, Ordering::SeqCst);
            reply
        });
        let job = PackJob::new(&format!("{}/team/many:1\n", fake.addr()));
        job.pack_with(&["--retries", "1"]).ok();
        let refused = fake.seen_of("/blobs/").len() - 21;
        assert!((1..20).contains(&refused), "{refused} requests were refused");
    }
}

#[test]
fn a_server_that_limits_the_rate_is_requested_at_that_rate() {
    let (mut content, mut list) = (Content::default(), String::new());
    let host = format!("127.0.0.1:{}", free_port());
    for number in 0..15 {
        content.image(&format!("team/app{number}:1"), &many_layers(1));
        list = format!("{list}{host}/team/app{number}:1\n");
    }
    let times = Mutex::new(Vec::<Instant>::new());
    let refused = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&refused);
    let _fake = Fake::start_at(&host, content, move |seen, reply| {
        let mut times = times.lock().expect("the lock is not poisoned");
        times.retain(|time| time.elapsed() < Duration::from_secs(1));
        if seen.path.starts_with("/v2/team") && times.len() >= 5 {
            counter.fetch_add(1, Ordering::SeqCst);
            return Reply::status(429);
        }
        times.push(Instant::now());
        reply
    });
    let start = Instant::now();
    PackJob::new(&list).pack().ok();
    let (time, refused) = (start.elapsed(), refused.load(Ordering::SeqCst));
    assert!(time < Duration::from_secs(40), "{time:?}");
    // An idle machine causes fewer; there are 60 requests.
    assert!((1..40).contains(&refused), "{refused} requests were refused");
}

#[test]
fn retry_after_of_one_request_holds_for_all() {
    let (mut content, mut list) = (Content::default(), String::new());
    let host = format!("127.0.0.1:{}", free_port());
    for number in 0..8 {
        content.image(&format!("team/app{number}:1"), &many_layers(1));
        list = format!("{list}{host}/team/app{number}:1\n");
    }
    // Only the first one is refused.
    let is_first = Mutex::new(true);
    let fake = Fake::start_at(&host, content, move |seen, reply| {
        let is_manifest = seen.path.contains("/manifests/");
        let mut is_first = is_first.lock().expect("the lock is not poisoned");
        let is_refused = is_manifest && std::mem::take(&mut *is_first);
        if is_refused { Reply::status(429).with("retry-after", "2") } else { reply }
    });
    PackJob::new(&list).pack_with(&["--jobs", "4"]).ok();
    let seen = fake.seen_of("/v2/team");
    let early = seen.iter().filter(|one| one.at - seen[0].at < Duration::from_millis(1800)).count();
    // Requests that were sent at the same time.
    assert!(early <= 8, "{early} of {}", seen.len());
}

#[test]
fn a_long_retry_after_ends_the_run_and_says_when_to_run_again() {
    let (fake, job) = registry(|seen, reply| {
        let busy = Reply::status(429).with("retry-after", "21000").with("ratelimit-remaining", "0;w=21600");
        if seen.path.contains("/blobs/") { busy } else { reply }
    });
    let start = Instant::now();
    let words = ["429", "ratelimit-remaining: 0;w=21600", "run the same command again in 6 h", "keeps"];
    job.fails(&["--jobs", "1"], 4, &words);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(fake.seen_of("/blobs/").len(), 1);
}

#[test]
fn responses_may_have_hundreds_of_headers() {
    let bytes = random_bytes(12, 5000);
    let (_fake, url) = file_server("tool.bin", &bytes, |_, reply| {
        (0..300).fold(reply, |reply, number| reply.with(&format!("x-header-{number}"), "value"))
    });
    let job = PackJob::new(&format!("{url}\n"));
    job.pack_with(&["--retries", "0"]).ok();
    assert_eq!(packed(&job), bytes);
}

// ---- HTTP, HTTPS and certificates ----

#[test]
fn plain_http_and_https_are_not_confused() {
    // A registry that is down says so by its status, not by its lack of TLS.
    for status in [403, 503] {
        let fake = Fake::start(Content::default(), move |_, _| Reply::status(status));
        let job = PackJob::new(&format!("{}/team/app:1\n", fake.addr()));
        let url = format!("http://{}/", fake.addr());
        job.fails(&["--retries", "0"], 4, &[&url, &status.to_string()]);
    }
    let plain = Nginx::start(None, "location / { return 200 'hello'; }");
    let list = format!("https://{}/x\n", plain.addr());
    PackJob::new(&list).fails(&["--retries", "0"], 4, &[&plain.addr(), "plain HTTP"]);
    let directory = tempdir().expect("create a temporary directory");
    let pair = self_signed(directory.path(), |_| {});
    let nginx = Nginx::start(Some(&pair), "location / { return 200 'hello'; }");
    let list = format!("http://{}/x\n", nginx.addr());
    PackJob::new(&list).fails(&["--retries", "0"], 4, &[&nginx.addr(), "requires HTTPS"]);
}

/// Writes a self-signed certificate for `127.0.0.1` that says that it is a CA, as `openssl req -x509` makes it.
fn self_signed(directory: &std::path::Path, change: impl Fn(&mut CertificateParams)) -> Pair {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("valid names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    let key = KeyPair::generate().expect("generate a key");
    let pem = params.self_signed(&key).expect("sign a certificate").pem();
    let pair = Pair { certificate: directory.join("self.crt"), key: directory.join("self.key") };
    fs::write(&pair.certificate, pem).expect("write a certificate");
    fs::write(&pair.key, key.serialize_pem()).expect("write a key");
    pair
}

#[test]
fn a_self_signed_certificate_is_trusted_as_a_ca_file() {
    let hello = "location / { default_type text/plain; return 200 'hello'; }";
    let directory = tempdir().expect("create a temporary directory");
    let pair = self_signed(directory.path(), |_| {});
    let ca = pair.certificate.to_str().expect("UTF-8").to_owned();
    let nginx = Nginx::start(Some(&pair), hello);
    let list = format!("https://{}/x {}\n", nginx.addr(), sha256(b"hello"));
    PackJob::new(&list).pack_with(&["--ca-file", &ca, "--retries", "0"]).ok();
    PackJob::new(&list).fails(&["--retries", "0"], 4, &[&nginx.addr(), "certificate"]);
    // Only this certificate, for its names and its time.
    let other = tempdir().expect("create a temporary directory");
    for (change, words) in [
        ((|_| {}) as fn(&mut CertificateParams), "certificate"),
        (|params| params.subject_alt_names.clear(), "not valid for this host"),
        (|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1), "expired"),
    ] {
        let pair = self_signed(other.path(), change);
        let nginx = Nginx::start(Some(&pair), hello);
        let named = pair.certificate.to_str().expect("UTF-8");
        let ca = if words == "certificate" { &*ca } else { named };
        let job = PackJob::new(&format!("https://{}/x\n", nginx.addr()));
        job.fails(&["--ca-file", ca, "--retries", "0"], 4, &[&nginx.addr(), words]);
    }
}
