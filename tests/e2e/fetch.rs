//! `airbundle pack` against broken, slow and lying servers: the correct bundle, or an error that names the
//! object and the cause and leaves no output.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::pack_job::{FILES, LIST, OUTPUT, PARTIAL, PackJob, REGISTRY, SPOOL, mirrors_to};
use crate::program::{Finished, unbundle};
use crate::support::fake::{Content, Fake, Framing, Reply, Seen};
use crate::support::image::{
    Compression, DOCKER_LIST, Format, Image, Layer, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST,
};
use crate::support::upstream::{Upstream, UpstreamFile, UpstreamImage};
use crate::support::web::free_port;
use crate::support::{random_bytes, sha256, sha512};

impl PackJob {
    /// Packs, asserts success without leftovers, and returns the bundle.
    #[track_caller]
    fn packed(&self, options: &[String]) -> Vec<u8> {
        self.pack_with(options).ok();
        assert_eq!(self.file_names(), [LIST, OUTPUT]);
        self.bundle()
    }

    /// Packs and asserts failure with this code, a line with all these words, and no leftovers but those that
    /// a re-run can use.
    #[track_caller]
    fn fails_cleanly(&self, options: &[String], code: i32, words: &[&str]) -> Finished {
        let finished = self.pack_with(options).failed(code, words);
        let is_kept = finished.stderr.contains("partial bundle kept in `");
        let expected: &[_] = if is_kept { &[LIST, PARTIAL, SPOOL] } else { &[LIST] };
        assert_eq!(self.file_names(), expected, "{finished:#?}");
        finished
    }
}

/// Asserts that one line of stderr has all these words.
#[track_caller]
fn says(finished: &Finished, words: &[&str]) {
    let is_printed = finished.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(is_printed, "no line with {words:?} in {finished:#?}");
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Returns the arguments that route all requests to `fake`.
fn route_to(fake: &Fake, more: &[&str]) -> Vec<String> {
    [mirrors_to(fake), strings(more)].concat()
}

#[track_caller]
fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert!(found == expected, "{what}: {} and not {}", sha256(found), sha256(expected));
}

/// A small and a large blob, each as file and as layer. Large ones are fetched in two parts, and a piece of
/// the second arrives before the rest.
struct Sample {
    list: String,
    content: Content,
    bundle: Vec<u8>,
}

const LARGE: usize = 13 << 20;

fn sample_image() -> Image {
    let layers = [
        Layer::files(&[("etc/motd", b"hello")], Compression::Gzip),
        Layer::random(11, LARGE, Compression::Gzip),
    ];
    Image::new(Format::Oci, "linux/amd64", &layers)
}

fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let (small, large) = (random_bytes(1, 300_000), random_bytes(2, LARGE + 1));
        let list = format!(
            "https://{FILES}/small {}\nhttps://{FILES}/large {}\n{REGISTRY}/team/app:1\n",
            sha256(&small),
            sha512(&large)
        );
        let mut content = Content::default();
        content.file(&format!("https://{FILES}/small"), small);
        content.file(&format!("https://{FILES}/large"), large);
        content.image(&format!("{REGISTRY}/team/app:1"), &sample_image());
        let fake = Fake::honest(content.clone());
        let bundle = PackJob::new(&list).packed(&route_to(&fake, &[]));
        Sample { list, content, bundle }
    })
}

/// Strips the checksums from a list.
fn unpinned(list: &str) -> String {
    let urls: Vec<_> = list.lines().map(|line| line.split(' ').next().expect("a word")).collect();
    urls.join("\n")
}

/// Packs the sample from a server with this twist and asserts that the bundle equals that of an honest
/// server.
#[track_caller]
fn assert_same_bundle(more: &[&str], twist: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static) -> Fake {
    let Sample { list, content, bundle } = sample();
    let fake = Fake::start(content.clone(), twist);
    assert_same(&PackJob::new(list).packed(&route_to(&fake, more)), bundle, "the bundle");
    fake
}

/// Packs the sample from a server with this twist and asserts failure.
#[track_caller]
fn assert_fails(
    more: &[&str],
    code: i32,
    words: &[&str],
    twist: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static,
) -> Fake {
    let Sample { list, content, .. } = sample();
    let fake = Fake::start(content.clone(), twist);
    PackJob::new(list).fails_cleanly(&route_to(&fake, more), code, words);
    fake
}

// ---- The honest server ----

#[test]
fn bundle_is_independent_of_known_checksums_and_connections() {
    let Sample { list, content, bundle } = sample();
    let fake = Fake::honest(content.clone());
    for jobs in ["1", "2", "32"] {
        assert_same(&PackJob::new(list).packed(&route_to(&fake, &["--jobs", jobs])), bundle, jobs);
        assert_same(&PackJob::new(&unpinned(list)).packed(&route_to(&fake, &["--jobs", jobs])), bundle, jobs);
    }
}

#[test]
fn empty_file_is_packed_pinned_or_not() {
    let mut content = Content::default();
    content.file(&format!("https://{FILES}/empty"), Vec::new());
    content.file(&format!("https://{FILES}/other"), b"other".to_vec());
    let pinned = format!("https://{FILES}/empty {}\nhttps://{FILES}/other\n", sha256(b""));
    let fake = Fake::honest(content.clone());
    let bundle = PackJob::new(&pinned).packed(&route_to(&fake, &[]));
    assert_same(&PackJob::new(&unpinned(&pinned)).packed(&route_to(&fake, &[])), &bundle, "not pinned");
    let chunked = Fake::start(content, |seen, reply| {
        let empty = Reply { framing: Framing::Chunked, ..Reply::ok(b"") };
        if seen.path.ends_with("empty") { empty } else { reply }
    });
    assert_same(&PackJob::new(&pinned).packed(&route_to(&chunked, &[])), &bundle, "chunked");
}

#[test]
fn hosts_on_the_command_line_are_case_insensitive_and_docker_hub_aliases_are_equal() {
    let mut content = Content::default();
    content.image("docker.io/team/app:1", &sample_image());
    content.file(&format!("https://{FILES}/file"), b"file".to_vec());
    let fake = Fake::honest(content);
    let job = PackJob::new(&format!("docker.io/team/app:1\nhttps://{FILES}/file\n"));
    let files = format!("{}=http://{}/{FILES}", FILES.to_uppercase(), fake.addr());
    for hub in ["docker.io", "index.docker.io", "Registry-1.Docker.IO"] {
        let hub = format!("{hub}=http://{}/docker.io", fake.addr());
        let finished = job.pack_with(&strings(&["--mirror", &hub, "--mirror", &files])).ok();
        assert!(!finished.stderr.contains("warning"), "{finished:#?}");
    }
}

#[test]
fn unused_mirror_or_insecure_registry_is_warned_about() {
    let Sample { list, content, .. } = sample();
    let fake = Fake::honest(content.clone());
    let typo = format!("file.example=http://{}", fake.addr());
    let args = route_to(&fake, &["--mirror", &typo, "--insecure-registry", REGISTRY]);
    let finished = PackJob::new(list).pack_with(&args).ok();
    says(&finished, &["warning: ", "`--mirror file.example=…`", "no list entry"]);
    // Its images are fetched from the mirror.
    says(&finished, &["warning: ", "`--insecure-registry registry.example`", "no image is from"]);
    assert_eq!(finished.stderr.matches("warning: ").count(), 2, "{finished:#?}");
    let finished = PackJob::new(list).pack_with(&route_to(&fake, &["--json", "--mirror", &typo])).ok();
    let warning = finished.stdout.lines().find(|line| line.contains(r#""event":"warning""#));
    assert!(warning.is_some_and(|line| line.contains("file.example")), "{finished:#?}");
}

// ---- Ranges and lengths ----

#[test]
fn server_that_ignores_range_yields_the_same_bundle() {
    for jobs in ["1", "2", "8"] {
        assert_same_bundle(&["--jobs", jobs], |seen, _| sample().content.respond(&without_range(seen)));
    }
}

/// Returns the request that a server without range support would handle.
fn without_range(seen: &Seen) -> Seen {
    seen.without("range")
}

#[test]
fn server_that_ignores_range_for_some_parts_yields_the_same_bundle() {
    for jobs in ["1", "8"] {
        assert_same_bundle(&["--jobs", jobs], |seen, reply| match seen.range() {
            Some((first, _)) if first > 0 => sample().content.respond(&without_range(seen)),
            _ => reply,
        });
    }
}

#[test]
fn server_that_returns_another_range_yields_the_same_bundle() {
    for jobs in ["1", "8"] {
        assert_same_bundle(&["--jobs", jobs], |seen, mut reply| match seen.range() {
            Some((first, last)) if reply.status == 206 && !seen.is_probe() => {
                reply.body.rotate_left(1);
                reply.with("content-range", &format!("bytes {}-{}/{}", first + 1, last + 1, LARGE + 1))
            }
            _ => reply,
        });
    }
}

#[test]
fn server_that_states_another_size_for_a_part_yields_the_same_bundle() {
    assert_same_bundle(&[], |seen, reply| match seen.range() {
        Some((first, last)) if reply.status == 206 && !seen.is_probe() => {
            reply.with("content-range", &format!("bytes {first}-{last}/{}", LARGE * 2))
        }
        _ => reply,
    });
}

#[test]
fn probe_of_an_empty_or_unknown_size_file_yields_the_same_bundle_pinned_or_not() {
    let Sample { list, content, bundle } = sample();
    for range in ["bytes 0-0/0", "bytes 0-0/*", "bytes 0-0/-1", "bytes */0"] {
        for list in [list, &unpinned(list)] {
            let fake = Fake::start(content.clone(), move |seen, reply| {
                if seen.is_probe() { reply.with("content-range", range) } else { reply }
            });
            assert_same(&PackJob::new(list).packed(&route_to(&fake, &[])), bundle, range);
        }
    }
}

#[test]
fn parts_of_different_versions_are_detected() {
    // Without checksums, only the entity tag reveals that the file changed.
    let url = format!("https://{FILES}/large");
    let (mut old, mut new) = (Content::default(), Content::default());
    old.file(&url, random_bytes(5, 20 << 20));
    new.file(&url, random_bytes(6, 20 << 20));
    let honest = PackJob::new(&url).packed(&route_to(&Fake::honest(new.clone()), &[]));
    for jobs in ["1", "8"] {
        let (new, twisted) = (new.clone(), new.clone());
        let fake = Fake::start(old.clone(), move |seen, reply| match seen.nth {
            0 | 1 => reply,
            // One server honors `If-Range`; the other ignores it.
            _ if jobs == "1" => new.respond(seen),
            _ => twisted.respond(&seen.without("if-range")),
        });
        assert_same(&PackJob::new(&url).packed(&route_to(&fake, &["--jobs", jobs])), &honest, jobs);
    }
}

#[test]
fn file_replaced_after_the_probe_is_packed_in_its_new_version() {
    let url = format!("https://{FILES}/page");
    for (old, new) in [(9 << 20, 10 << 20), (10 << 20, 9 << 20), (1000, 2000), (2000, 1000), (0, 5), (5, 0)] {
        let mut contents = [Content::default(), Content::default()];
        contents[0].file(&url, random_bytes(7, old));
        contents[1].file(&url, random_bytes(8, new));
        let [old_content, new_content] = contents;
        let honest = PackJob::new(&url).packed(&route_to(&Fake::honest(new_content.clone()), &[]));
        let fake = Fake::start(
            old_content,
            move |seen, reply| if seen.is_probe() { reply } else { new_content.respond(seen) },
        );
        assert_same(&PackJob::new(&url).packed(&route_to(&fake, &[])), &honest, &format!("{old} to {new}"));
    }
}

#[test]
fn body_without_a_length_yields_the_same_bundle_pinned_or_not() {
    let Sample { list, content, bundle } = sample();
    for list in [list, &unpinned(list)] {
        let fake = Fake::start(content.clone(), |seen, reply| Reply {
            framing: Framing::Chunked,
            ..if seen.is_transfer() || seen.is_probe() {
                content.respond(&without_range(seen))
            } else {
                reply
            }
        });
        assert_same(&PackJob::new(list).packed(&route_to(&fake, &[])), bundle, list);
    }
}

#[test]
fn wrong_content_length_is_tolerated_once_and_otherwise_an_error() {
    for difference in [1000, -1000] {
        let claim = move |reply: Reply| {
            let length = reply.body.len().checked_add_signed(difference).expect("a small number");
            Reply { framing: Framing::Claimed(length), ..reply }
        };
        assert_same_bundle(&[], move |seen, reply| match seen.nth {
            0 if seen.path.contains("/blobs/") && reply.body.len() > 1000 => claim(reply),
            1 if seen.path.ends_with("/small") => claim(reply),
            _ => reply,
        });
        let word = if difference > 0 { "more than 300000" } else { "got 299000" };
        assert_fails(&["--retries", "1"], 5, &[FILES, "/small`", word], move |seen, reply| {
            if seen.is_transfer() && seen.path.ends_with("/small") { claim(reply) } else { reply }
        });
    }
}

#[test]
fn body_longer_than_the_manifest_states_is_an_error() {
    // The digest matches at the last byte that belongs to the blob.
    for jobs in ["1", "8"] {
        assert_fails(&["--jobs", jobs], 5, &["team/app:1", "more than"], |seen, mut reply| {
            if seen.path.contains("/blobs/") && reply.status == 200 && reply.body.len() < 1000 {
                reply.body.extend_from_slice(b"junk");
            }
            reply
        });
    }
}

#[test]
fn endless_body_is_an_error_when_the_size_is_known() {
    assert_fails(&[], 5, &["/small`", "more than 300000"], move |seen, reply| {
        if !seen.path.ends_with("/small") {
            return reply;
        }
        let endless = Reply { framing: Framing::Chunked, ..Reply::ok(&vec![7; 64 << 20]) };
        if seen.is_probe() { reply.with("content-range", "bytes 0-0/300000") } else { endless }
    });
}

// ---- Broken connections ----

#[test]
fn connection_that_breaks_every_64_kib_is_resumed_to_the_end() {
    let bytes = random_bytes(3, 400_000);
    let image = Image::new(Format::Docker, "linux/amd64", &[Layer::random(4, 300_000, Compression::Gzip)]);
    let mut content = Content::default();
    content.file(&format!("https://{FILES}/flaky"), bytes.clone());
    content.image(&format!("{REGISTRY}/flaky:1"), &image);
    let list = format!("https://{FILES}/flaky {}\n{REGISTRY}/flaky:1\n", sha256(&bytes));
    let honest = PackJob::new(&list).packed(&route_to(&Fake::honest(content.clone()), &[]));
    let fake = Fake::start(content, |_, reply| Reply { cut: Some(64 << 10), ..reply });
    // One retry: progress resets the retry count.
    assert_same(&PackJob::new(&list).packed(&route_to(&fake, &["--retries", "1"])), &honest, "the bundle");
    let ranges: Vec<_> =
        fake.seen_of("flaky").iter().filter_map(Seen::range).map(|(first, _)| first).collect();
    assert!(ranges.iter().filter(|first| **first > 0).count() >= 10, "it was resumed by ranges: {ranges:?}");
}

#[test]
fn broken_connection_without_range_support_starts_over() {
    let Sample { list, content, bundle } = sample();
    for list in [list, &unpinned(list)] {
        let fake = Fake::start(content.clone(), |seen, reply| {
            if !seen.is_transfer() && !seen.is_probe() {
                return reply;
            }
            let cut = (!seen.is_probe() && seen.nth < 2 && seen.path.contains("large")).then_some(9 << 20);
            Reply { cut, ..content.respond(&without_range(seen)) }
        });
        assert_same(&PackJob::new(list).packed(&route_to(&fake, &[])), bundle, list);
    }
}

#[test]
fn connection_that_always_breaks_at_one_offset_finally_fails() {
    let Sample { list, content, .. } = sample();
    for (list, cut) in
        [(list, 9 << 20), (&unpinned(list), 9 << 20), (list, 100_000), (&unpinned(list), 100_000)]
    {
        let fake = Fake::start(content.clone(), move |seen, reply| {
            if !seen.is_transfer() && !seen.is_probe() {
                return reply;
            }
            let cut = (!seen.is_probe() && seen.path.ends_with("large")).then_some(cut);
            Reply { cut, ..content.respond(&without_range(seen)) }
        });
        PackJob::new(list).fails_cleanly(
            &route_to(&fake, &["--retries", "1"]),
            4,
            &["/large`", "connection to"],
        );
    }
}

#[test]
fn shorter_second_response_is_not_mistaken_for_the_end() {
    let Sample { list, content, bundle } = sample();
    for list in [list, &unpinned(list)] {
        let fake = Fake::start(content.clone(), |seen, reply| {
            if !seen.path.ends_with("/large") {
                return reply;
            }
            let whole = Reply { framing: Framing::Chunked, ..content.respond(&without_range(seen)) };
            match seen.nth {
                1 => Reply { cut: Some(9 << 20), ..whole },
                2 => Reply { framing: Framing::Chunked, ..Reply::ok(b"try again later") },
                _ => whole,
            }
        });
        let job = PackJob::new(list);
        if list == &sample().list {
            assert_same(&job.packed(&route_to(&fake, &[])), bundle, list);
        } else {
            // Nothing reveals that the second response is not the file.
            job.packed(&route_to(&fake, &[]));
        }
    }
}

// ---- Wrong bytes ----

#[test]
fn corrupt_bytes_are_tolerated_once() {
    for jobs in ["1", "2", "8"] {
        let answered = Mutex::new(BTreeSet::new());
        let fake = assert_same_bundle(&["--jobs", jobs], move |seen, mut reply| {
            // The first response for every byte: an entire small blob, both parts of a large one.
            let part = (seen.path.clone(), seen.range());
            let first = seen.is_transfer() && answered.lock().expect("the lock is not poisoned").insert(part);
            if first && reply.body.len() > 100 {
                let last = reply.body.len() - 1;
                reply.body[last] ^= 1;
            }
            reply
        });
        assert!(fake.seen_of("/large").len() > 3);
    }
}

#[test]
fn corrupt_bytes_twice_fail_naming_url_and_both_digests() {
    let Sample { list, content, .. } = sample();
    let [small, large] = [(1, 300_000), (2, LARGE + 1)].map(|(seed, size)| random_bytes(seed, size));
    let flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[0] ^= 1;
        bytes
    };
    let fake = Fake::honest(content.clone());
    for (right, wrong, url) in [
        (sha256(&small), sha256(&flipped(&small)), format!("https://{FILES}/small")),
        (sha512(&large), sha512(&flipped(&large)), format!("https://{FILES}/large")),
    ] {
        let list = list.replace(&right, &wrong);
        let hex = |text: &str| text.split_once(':').expect("a checksum").1.to_owned();
        let words = [&url, &right[..6], &hex(&right), &hex(&wrong), &fake.addr()];
        PackJob::new(&list).fails_cleanly(&route_to(&fake, &[]), 5, &words.map(|word| word as &str));
    }
}

#[test]
fn unrequested_content_encoding_does_not_matter_for_pinned_bytes() {
    assert_same_bundle(&[], |seen, reply| {
        if seen.path.contains("/manifests/") { reply } else { reply.with("content-encoding", "gzip") }
    });
}

// ---- Statuses ----

#[test]
fn busy_server_is_retried() {
    let fake = assert_same_bundle(&["--jobs", "2"], |seen, reply| match seen.nth {
        0 => Reply::status(503).with("retry-after", "0"),
        1 => Reply::status(429).with("retry-after", "0"),
        2 => Reply::status(500).with("retry-after", "0"),
        _ => reply,
    });
    assert_eq!(fake.seen_of("/manifests/").len(), 4);
}

#[test]
fn platform_config_request_is_retried_too() {
    let Sample { list, content, .. } = sample();
    let more = ["--platform", "linux/amd64"];
    let fake = Fake::start(content.clone(), |seen, reply| match seen.nth {
        0 if seen.path.contains("/blobs/") => Reply::status(503).with("retry-after", "0"),
        _ => reply,
    });
    let expected = PackJob::new(list).packed(&route_to(&Fake::honest(content.clone()), &more));
    assert_same(&PackJob::new(list).packed(&route_to(&fake, &more)), &expected, "the bundle");
    assert!(fake.seen_of("/blobs/").iter().any(|seen| seen.nth == 2), "asked, asked again, fetched");
}

#[test]
fn failing_server_gets_exactly_the_configured_number_of_retries() {
    for (status, code, words) in [
        (500, 4, ["/small`", "returned 500"]),
        (503, 4, ["/small`", "returned 503"]),
        (429, 4, ["/small`", "--mirror"]),
    ] {
        // One request at a time: a refusal does not count while others are accepted.
        let fake = assert_fails(&["--retries", "2", "--jobs", "1"], code, &words, move |seen, reply| {
            let busy = || Reply::status(status).with("retry-after", "0");
            if seen.path.ends_with("/small") { busy() } else { reply }
        });
        assert_eq!(fake.seen_of("/small").len(), 3, "{status}");
    }
    let fake = assert_fails(&["--retries", "2"], 4, &["/large`", "returned 500"], move |seen, reply| {
        let fails = seen.path.ends_with("/large") && seen.range().is_some_and(|(first, _)| first > 0);
        if fails { Reply::status(500).with("retry-after", "0") } else { reply }
    });
    assert_eq!(
        fake.seen_of("/large").iter().filter(|seen| seen.range().is_some_and(|range| range.0 > 0)).count(),
        3
    );
}

#[test]
fn missing_images_and_files_are_reported_together() {
    let directory = tempdir().expect("create a temporary directory");
    let tiny = Image::new(Format::Docker, "linux/amd64", &[Layer::empty()]);
    let upstream = Upstream::start(
        directory.path(),
        vec![UpstreamImage::new("quay.io/a/tiny:1", tiny.clone())],
        vec![UpstreamFile::new("https://dl.k8s.io/there", b"there".to_vec())],
    );
    let nothing = sha256(b"nothing");
    let list = format!(
        "quay.io/a/tiny:1\nquay.io/a/tiny:2\nquay.io/b/other:1\nquay.io/a/tiny@{nothing}\n\
         https://dl.k8s.io/there\nhttps://dl.k8s.io/not-there\n"
    );
    let finished = PackJob::new(&list).fails_cleanly(
        &upstream.mirror_args(),
        4,
        &["https://dl.k8s.io/not-there", "404"],
    );
    for object in ["quay.io/a/tiny:2", "quay.io/b/other:1", &format!("quay.io/a/tiny@{nothing}")] {
        says(&finished, &[object, "404 Not Found"]);
    }
    assert_eq!(
        finished.stderr.lines().filter(|line| line.starts_with("error: ")).count(),
        4,
        "{finished:#?}"
    );
}

#[test]
fn unreachable_hosts_are_named() {
    let port = free_port();
    let list = format!(
        "http://127.0.0.1:{port}/file\n127.0.0.1:{port}/image:1\nhttps://no-such-host.invalid/file\n\
         no-such-host.invalid/image:1\n"
    );
    let finished = PackJob::new(&list).fails_cleanly(
        &strings(&["--retries", "0"]),
        4,
        &["no-such-host.invalid/image:1"],
    );
    for object in [
        format!("`http://127.0.0.1:{port}/file`"),
        format!("`127.0.0.1:{port}/image:1`"),
        "`https://no-such-host.invalid/file`".to_owned(),
        "`no-such-host.invalid/image:1`".to_owned(),
    ] {
        says(&finished, &[&object, "connection to", "failed"]);
    }
    says(&finished, &["127.0.0.1", "refused"]);
}

// ---- Redirects and tokens ----

#[test]
fn redirect_loop_is_an_error() {
    let fake = assert_fails(&["--retries", "3"], 4, &["/small`", "redirect"], |seen, reply| {
        if seen.path.contains("/small") { Reply::redirect("small?again") } else { reply }
    });
    assert!(fake.seen_of("/small").len() <= 12, "it is followed for a while and not asked for again");
}

#[test]
fn token_is_sent_to_its_registry_only() {
    let Sample { list, content, bundle } = sample();
    let storage = Fake::honest(content.clone());
    let storage_addr = storage.addr();
    let own_addr: &'static OnceLock<String> = Box::leak(Box::default());
    let fake = Fake::start(content.clone(), move |seen, reply| {
        if seen.path.starts_with("/token?") {
            assert!(seen.header("authorization").is_none(), "an anonymous token");
            return Reply::ok(br#"{"access_token":"s3cret"}"#);
        }
        if !seen.path.starts_with("/v2/") {
            return Reply::redirect(&format!("http://{storage_addr}{}", seen.path));
        }
        if seen.header("authorization") != Some("Bearer s3cret") {
            let own = own_addr.get().expect("the configuration is set before the first request");
            let challenge =
                format!(r#"Bearer realm="http://{own}/token",service="here",scope="repository:x:pull""#);
            return Reply::status(401).with("www-authenticate", &challenge);
        }
        let redirect = Reply::redirect(&format!("http://{storage_addr}{}", seen.path));
        if seen.path.contains("/blobs/") { redirect } else { reply }
    });
    own_addr.set(fake.addr()).expect("set once");
    assert_same(&PackJob::new(list).packed(&route_to(&fake, &[])), bundle, "the bundle");

    let tokens = fake.seen_of("/token?");
    assert!(
        tokens[0].path.contains("service=here") && tokens[0].path.contains("scope=repository"),
        "{tokens:?}"
    );
    for seen in fake.seen() {
        let allowed = seen.path.starts_with("/v2/");
        assert!(allowed || seen.header("authorization").is_none(), "{seen:?}");
    }
    let stored = storage.seen();
    assert!(stored.iter().any(|seen| seen.path.contains("/blobs/")), "blobs came over the redirect");
    assert!(stored.iter().any(|seen| seen.path.ends_with("/small")), "files, too");
    for seen in stored {
        assert!(!format!("{seen:?}").contains("s3cret"), "{seen:?}");
    }
}

#[test]
fn registry_with_an_unusable_challenge_is_an_error() {
    for challenge in [None, Some("Basic realm=\"x\""), Some("Digest realm=\"x\"")] {
        let fake = assert_fails(&[], 4, &["team/app:1", "401", "access denied"], move |seen, reply| {
            let no = Reply::status(401);
            match challenge {
                _ if !seen.path.starts_with("/v2/") => reply,
                Some(challenge) => no.with("www-authenticate", challenge),
                None => no,
            }
        });
        assert_eq!(fake.seen_of("/v2/").len(), 1, "asking again would not help");
    }
}

#[test]
fn registry_may_not_redirect_token_requests_into_the_private_network() {
    let other = Fake::honest(Content::default());
    for realm in [
        "http://10.0.0.1/token".to_owned(),
        "https://169.254.169.254/latest/meta-data".to_owned(),
        format!("http://localhost:{}/token", other.addr().rsplit_once(':').expect("a port").1),
    ] {
        let challenge = format!("Bearer realm=\"{realm}\"");
        assert_fails(&[], 4, &["team/app:1", "token server", "not allowed"], move |seen, reply| {
            let challenged = Reply::status(401).with("www-authenticate", &challenge);
            if seen.path.starts_with("/v2/") { challenged } else { reply }
        });
    }
    assert!(other.seen().is_empty());
}

// ---- Manifests ----

/// Packs one image from an honest server with these manifests by media type; the first one has the tag.
#[track_caller]
fn assert_refused(manifests: &[(&str, Value)], words: &[&str]) {
    assert_refused_with(manifests, 4, words);
}

#[track_caller]
fn assert_refused_with(manifests: &[(&str, Value)], code: i32, words: &[&str]) {
    let name = format!("{REGISTRY}/team/odd");
    let mut content = Content::default();
    for (number, (media_type, json)) in manifests.iter().enumerate() {
        let bytes = json.to_string().into_bytes();
        content.manifest(&name, &sha256(&bytes), media_type, bytes.clone());
        if number == 0 {
            content.manifest(&name, "1", media_type, bytes);
        }
    }
    for blob in [&b"{}"[..], b"layer"] {
        content.blob(&name, &sha256(blob), blob);
    }
    let job = PackJob::new(&format!("{name}:1\n"));
    let mut all = vec!["team/odd:1"];
    all.extend_from_slice(words);
    job.fails_cleanly(&route_to(&Fake::honest(content), &["--retries", "0"]), code, &all);
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": sha256(bytes), "size": bytes.len() })
}

fn invalid_image() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, b"{}"),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", b"layer")],
    })
}

fn with(mut json: Value, pointer: &str, value: Value) -> Value {
    *json.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
    json
}

#[test]
fn invalid_manifests_are_refused_by_name() {
    assert_refused(
        &[(
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            json!({ "schemaVersion": 1, "fsLayers": [] }),
        )],
        &["schema 1"],
    );
    let mut both = invalid_image();
    both["manifests"] = json!([]);
    assert_refused(&[(OCI_MANIFEST, both)], &["both `manifests` and `layers`"]);
    let odd = "application/vnd.example.unknown.v7+json";
    assert_refused(&[(odd, json!({ "schemaVersion": 2 }))], &[odd, "unsupported media type"]);
}

#[test]
fn index_with_a_missing_or_missized_child_is_refused() {
    let child = invalid_image();
    let bytes = child.to_string().into_bytes();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": DOCKER_LIST,
        "manifests": [with(descriptor(OCI_MANIFEST, &bytes), "/size", json!(bytes.len()))],
    });
    assert_refused(&[(DOCKER_LIST, index.clone())], &["404", &sha256(&bytes)]);
    let longer = with(index, "/manifests/0/size", json!(bytes.len() + 1));
    assert_refused_with(
        &[(DOCKER_LIST, longer), (OCI_MANIFEST, child)],
        5,
        &["size", &bytes.len().to_string(), &(bytes.len() + 1).to_string()],
    );
}

#[test]
fn blob_with_another_size_than_in_its_manifest_is_refused() {
    // The server sends the stated number of bytes but has more or fewer.
    for (pointer, said) in
        [("/config/size", 1), ("/config/size", 3), ("/layers/0/size", 4), ("/layers/0/size", 6)]
    {
        let image = with(invalid_image(), pointer, json!(said));
        assert_refused_with(
            &[(OCI_MANIFEST, image)],
            5,
            &["size mismatch", &format!("expected {said}, got")],
        );
    }
}

#[test]
fn nested_index_is_packed() {
    let child = |platform: &str| {
        Image::new(
            Format::Oci,
            platform,
            &[Layer::files(&[("etc/motd", platform.as_bytes())], Compression::Gzip)],
        )
    };
    let inner = Image::index(Format::Oci, vec![child("linux/amd64"), child("linux/arm64")]);
    let outer = Image::index(Format::Oci, vec![inner, child("linux/s390x")]);
    let directory = tempdir().expect("create a temporary directory");
    let images = vec![UpstreamImage::new("quay.io/nested:1", outer.clone())];
    let upstream = Upstream::start(directory.path(), images, Vec::new());
    let job = PackJob::new("quay.io/nested:1\n");
    let mut args = upstream.mirror_args();
    args.push("--json".to_owned());
    let summary = job.pack_with(&args).ok().json();
    assert_eq!(summary["blobs"], outer.blobs().len());
    assert_eq!(outer.root.media_type, OCI_INDEX);
    unbundle(["verify".as_ref(), job.output().as_os_str()]).ok();
}

/// An index that lists its arm64 image twice, once as amd64. Only the latter entry matches the selection.
fn index_with_a_child_twice() -> (Content, Image) {
    let child = |platform: &str| {
        let layer = Layer::files(&[("etc/motd", platform.as_bytes())], Compression::Gzip);
        Image::new(Format::Oci, platform, &[layer])
    };
    let arm64 = child("linux/arm64");
    let as_amd64 = Image { platform: Some("linux/amd64".to_owned()), ..arm64.clone() };
    let index = Image::index(Format::Oci, vec![child("linux/amd64"), arm64, as_amd64]);
    let mut content = Content::default();
    content.image(&format!("{REGISTRY}/twice:1"), &index);
    (content, index)
}

#[test]
fn image_wanted_by_one_entry_is_not_omitted_by_another() {
    let (twice, index) = index_with_a_child_twice();
    // The same across two indexes: one lists the image for arm64, the other as amd64.
    let [amd64, arm64, as_amd64] = &index.children[..] else { panic!("three children") };
    let for_arm64 = Image::index(Format::Oci, vec![amd64.clone(), arm64.clone()]);
    let for_all = Image::index(Format::Oci, vec![as_amd64.clone()]);
    let outer = Image::index(Format::Oci, vec![for_arm64, for_all]);
    let mut nested = Content::default();
    nested.image(&format!("{REGISTRY}/twice:1"), &outer);
    for (content, image) in [(twice, index), (nested, outer)] {
        let job = PackJob::new(&format!("{REGISTRY}/twice:1\n"));
        let fake = Fake::honest(content);
        let summary = job.pack_with(&route_to(&fake, &["--platform", "linux/amd64", "--json"])).ok().json();
        assert_eq!(summary["blobs"], image.blobs().len(), "{summary}");
        unbundle(["verify".as_ref(), job.output().as_os_str()]).ok();
    }
}

#[test]
fn file_that_is_also_a_manifest_leaves_following_files_intact() {
    let (mut content, index) = index_with_a_child_twice();
    let manifest = index.children[1].manifest.to_vec();
    let other = random_bytes(25, 1000);
    let url = |name: &str| format!("https://{FILES}/{name}");
    content.file(&url("a"), manifest.clone());
    content.file(&url("b"), other.clone());
    let list = format!("{REGISTRY}/twice:1\n{} {}\n{}\n", url("a"), sha256(&manifest), url("b"));
    let job = PackJob::new(&list);
    job.packed(&route_to(&Fake::honest(content), &["--platform", "linux/amd64"]));
    let site = job.path("site");
    unbundle(["unpack".as_ref(), job.output().as_os_str(), site.as_os_str()]).ok();
    for (name, bytes) in [("a", manifest), ("b", other)] {
        let found = fs::read(site.join("files/k8s").join(FILES).join(name)).expect("an unpacked file");
        assert_same(&found, &bytes, name);
    }
}

#[test]
fn manifest_limit_is_an_error_that_names_an_image_once() {
    // Twenty of 3.9 MiB, and two names for the first.
    let mut content = Content::default();
    let mut list = String::new();
    for number in [0, 0].into_iter().chain(1..20) {
        let mut image = invalid_image();
        image["annotations"] =
            json!({ "number": number.to_string(), "padding": "x".repeat((39 << 20) / 10) });
        let name = format!("{REGISTRY}/padded/n{}", list.len());
        content.manifest(&name, "1", OCI_MANIFEST, image.to_string().into_bytes());
        list += &[&name, ":1\n"].concat();
    }
    let job = PackJob::new(&list);
    let finished = job.fails_cleanly(
        &route_to(&Fake::honest(content), &[]),
        4,
        &["/padded/n", "67108864 bytes", "split"],
    );
    assert_eq!(finished.stderr.matches("error: ").count(), 1, "{finished:#?}");
}

// ---- Real servers with real damage ----

#[test]
fn corrupt_layer_in_the_registry_storage_is_detected() {
    let directory = tempdir().expect("create a temporary directory");
    let image = sample_image();
    let images = vec![UpstreamImage::new("quay.io/team/app:1", image.clone())];
    let upstream = Upstream::start(directory.path(), images, Vec::new());
    for (descriptor, bytes) in &image.parts[1..] {
        let hex = &descriptor.digest[7..];
        let data = directory
            .path()
            .join(format!("registry/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
        let mut flipped = bytes.to_vec();
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        let short = &hex[..12];
        fs::write(&data, &flipped).expect("corrupt a layer");
        let words = ["quay.io/team/app:1", short, "sha256", hex, &sha256(&flipped)[7..]];
        PackJob::new("quay.io/team/app:1\n").fails_cleanly(&upstream.mirror_args(), 5, &words);
        for (damaged, word) in [(&bytes[..last], "size"), (&[bytes, &b"more"[..]].concat(), "more than")] {
            fs::write(&data, damaged).expect("corrupt a layer");
            let words = ["quay.io/team/app:1", short, word];
            let finished = PackJob::new("quay.io/team/app:1\n").pack_with(&upstream.mirror_args());
            // If parts are requested, the registry itself states that there are more bytes; they are correct
            // then.
            if damaged.len() > LARGE && finished.code == Some(0) {
                continue;
            }
            finished.failed(5, &words);
        }
        fs::write(&data, bytes).expect("repair the layer");
    }
    PackJob::new("quay.io/team/app:1\n").packed(&upstream.mirror_args());
}

// ---- Deduplication ----

#[test]
fn unpinned_file_equal_to_another_blob_is_stored_once() {
    let directory = tempdir().expect("create a temporary directory");
    let image = Image::new(
        Format::Oci,
        "linux/amd64",
        &[Layer::random(21, 9 << 20, Compression::Gzip), Layer::files(&[("a", b"a")], Compression::Gzip)],
    );
    let layers: Vec<_> = image.parts[1..].iter().map(|(_, bytes)| bytes.to_vec()).collect();
    let other = random_bytes(22, 10 << 20);
    let file =
        |name: &str, bytes: &[u8]| UpstreamFile::new(&format!("https://{FILES}/{name}"), bytes.to_vec());
    let files = vec![
        file("a-other", &other),
        file("b-other", &other),
        file("c-large-layer", &layers[0]),
        file("d-small-layer", &layers[1]),
        file("e-manifest", &image.manifest),
        file("f-config", &image.parts[0].1),
        file("g-empty-config", b"{}"),
        file("h-alone", b"alone"),
    ];
    let images = vec![UpstreamImage::new(&format!("{REGISTRY}/x:1"), image.clone())];
    let upstream = Upstream::start(directory.path(), images, files.clone());
    let mut args = upstream.mirror_args();
    args.push("--json".to_owned());
    let list = |pinned: &dyn Fn(usize) -> bool| {
        let lines = files.iter().enumerate().map(|(number, file)| match &file.checksum {
            Some(checksum) if pinned(number) => format!("{} {checksum}\n", file.url),
            _ => format!("{}\n", file.url),
        });
        format!("{REGISTRY}/x:1\n{}", lines.collect::<String>())
    };
    let pinned = PackJob::new(&list(&|_| true));
    let summary = pinned.pack_with(&args).ok().json();
    // Image: manifest, config, two layers. Files: their list, the empty config, `other`, `alone`.
    assert_eq!(summary["blobs"], 8, "{summary}");
    let of_image: usize = image.blobs().values().map(|bytes| bytes.len()).sum();
    let of_files: usize = files.iter().map(|file| file.bytes.len()).sum();
    let different = of_image + other.len() + b"{}alone".len();
    let counted = |summary: &Value, fetched: usize| {
        assert_eq!(summary["bytesFetched"], fetched, "{summary}");
        // Everything is in the bundle once, plus the list of files.
        assert_eq!(summary["bytesShared"], of_image + of_files - different, "{summary}");
        assert!(summary["bytes"].as_u64() > Some(different as u64), "{summary}");
    };
    counted(&summary, different);
    let unpinned = PackJob::new(&list(&|_| false)).pack_with(&args).ok().json();
    // Duplicates of unpinned files are known only after they were fetched.
    counted(&unpinned, of_image + of_files);
    assert_eq!(unpinned["bytes"], summary["bytes"]);
    let bundle = fs::read(pinned.output()).expect("read the bundle");
    for (what, list) in [
        ("none pinned", list(&|_| false)),
        ("the first half pinned", list(&|number| number % 2 == 0)),
        ("the second half pinned", list(&|number| number % 2 == 1)),
    ] {
        for jobs in ["1", "8"] {
            let mut args = upstream.mirror_args();
            args.extend(strings(&["--jobs", jobs]));
            assert_same(&PackJob::new(&list).packed(&args), &bundle, what);
        }
    }
}

#[test]
fn pinned_file_of_unknown_size_equal_to_another_blob_is_stored_once() {
    let image = sample_image();
    let layer = image.parts[1].1.to_vec();
    let mut content = Content::default();
    content.image(&format!("{REGISTRY}/x:1"), &image);
    content.file(&format!("https://{FILES}/a"), layer.clone());
    let other = random_bytes(23, 100_000);
    for name in ["c", "d"] {
        content.file(&format!("https://{FILES}/{name}"), other.clone());
    }
    let lines = [("a", &layer), ("c", &other), ("d", &other)]
        .map(|(name, bytes)| format!("https://{FILES}/{name} {}\n", sha256(bytes)));
    let list = format!("{REGISTRY}/x:1\n{}", lines.concat());
    let honest = PackJob::new(&list).packed(&route_to(&Fake::honest(content.clone()), &[]));
    let chunked = Fake::start(content.clone(), move |seen, reply| {
        let unknown = seen.path.ends_with("/a") || seen.path.ends_with("/c");
        if unknown {
            Reply { framing: Framing::Chunked, ..content.respond(&without_range(seen)) }
        } else {
            reply
        }
    });
    assert_same(&PackJob::new(&list).packed(&route_to(&chunked, &[])), &honest, "sizes unknown");
}

#[test]
fn false_size_of_a_file_shared_with_another_entry_is_an_error_and_no_panic() {
    let bytes = random_bytes(24, 5000);
    let mut content = Content::default();
    let mut list = String::new();
    for name in ["a", "b"] {
        content.file(&format!("https://{FILES}/{name}"), bytes.clone());
        list += &[&format!("https://{FILES}/{name}"), " ", &sha256(&bytes), "\n"].concat();
    }
    let fake = Fake::start(content.clone(), move |seen, reply| match seen.path.ends_with("/a") {
        true => Reply { framing: Framing::Chunked, ..content.respond(&without_range(seen)) },
        false if seen.is_probe() => reply.with("content-range", "bytes 0-0/4999"),
        false => reply,
    });
    let finished = PackJob::new(&list).pack_with(&route_to(&fake, &[]));
    assert!(matches!(finished.code, Some(0 | 5)), "{finished:#?}");
}

// ---- Load ----

#[test]
fn huge_and_small_blobs_yield_one_bundle_with_any_number_of_connections() {
    let directory = tempdir().expect("create a temporary directory");
    let note = |number: usize| Layer::files(&[("n", number.to_string().as_bytes())], Compression::Gzip);
    let huge = Image::new(
        Format::Oci,
        "linux/amd64",
        &[note(0), Layer::random(31, 70 << 20, Compression::None), note(1)],
    );
    let many = Image::new(Format::Docker, "linux/amd64", &(2..60).map(note).collect::<Vec<_>>());
    let images = vec![
        UpstreamImage::new("quay.io/huge:1", huge.clone()),
        UpstreamImage::new("quay.io/many:1", many.clone()),
    ];
    let mut files: Vec<_> = (0..20_u32)
        .map(|number| {
            UpstreamFile::new(
                &format!("https://dl.k8s.io/{number}"),
                random_bytes(40 + u64::from(number), 1 << (number + 2)),
            )
        })
        .collect();
    files.push(UpstreamFile::new("https://dl.k8s.io/large", random_bytes(32, 30 << 20)).not_pinned());
    let upstream = Upstream::start(directory.path(), images, files.clone());
    let job = PackJob::new(&format!("{}{}", upstream.images_list(), upstream.files_list()));
    let mut first: Option<Vec<u8>> = None;
    for jobs in ["8", "1", "2", "32"] {
        let mut args = upstream.mirror_args();
        args.extend(strings(&["--jobs", jobs]));
        let bundle = job.packed(&args);
        match &first {
            None => first = Some(bundle),
            Some(first) => assert_same(&bundle, first, jobs),
        }
    }
    let site = directory.path().join("site");
    unbundle(["unpack".as_ref(), job.output().as_os_str(), site.as_os_str()]).ok();
    for file in &files {
        let found = fs::read(site.join("files/k8s").join(file.path())).expect("an unpacked file");
        assert_same(&found, &file.bytes, &file.url);
    }
    let blobs = site.join("registry/docker/registry/v2/blobs/sha256");
    for (digest, bytes) in huge.blobs().into_iter().chain(many.blobs()) {
        let hex = &digest[7..];
        assert_same(
            &fs::read(blobs.join(&hex[..2]).join(hex).join("data")).expect("a blob"),
            &bytes,
            &digest,
        );
    }
}

#[test]
fn hundreds_of_tiny_blobs_are_packed() {
    let directory = tempdir().expect("create a temporary directory");
    let layers: Vec<_> = (0..400_u32)
        .map(|number| Layer::files(&[("n", number.to_string().as_bytes())], Compression::None))
        .collect();
    let images = vec![UpstreamImage::new("quay.io/many:1", Image::new(Format::Oci, "linux/amd64", &layers))];
    let upstream = Upstream::start(directory.path(), images, Vec::new());
    let bundles: BTreeSet<_> = ["1", "8"]
        .map(|jobs| {
            let mut args = upstream.mirror_args();
            args.extend(strings(&["--jobs", jobs]));
            sha256(&PackJob::new("quay.io/many:1\n").packed(&args))
        })
        .into();
    assert_eq!(bundles.len(), 1);
}

#[test]
fn slow_server_with_many_blobs_yields_the_same_bundle_with_any_number_of_connections() {
    let mut content = Content::default();
    let mut list = String::new();
    for number in 0..24_u64 {
        let url = format!("https://{FILES}/{number}");
        let bytes = random_bytes(50 + number, if number % 5 == 0 { 200_000 } else { 20_000 });
        list += &[&url, " ", &sha256(&bytes), "\n"].concat();
        content.file(&url, bytes);
    }
    let honest = PackJob::new(&list).packed(&route_to(&Fake::honest(content.clone()), &[]));
    thread::scope(|scope| {
        for jobs in ["1", "2", "8"] {
            for ranges in [true, false] {
                let (content, list, honest) = (content.clone(), &list, &honest);
                scope.spawn(move || {
                    let fake = Fake::start(content.clone(), move |seen, reply| {
                        let reply = if ranges { reply } else { content.respond(&without_range(seen)) };
                        Reply { pause: Duration::from_millis(15), ..reply }
                    });
                    assert_same(
                        &PackJob::new(list).packed(&route_to(&fake, &["--jobs", jobs])),
                        honest,
                        jobs,
                    );
                });
            }
        }
    });
}

// ---- Concurrent runs ----

#[test]
fn concurrent_packs_to_one_output_exclude_each_other() {
    let Sample { list, content, bundle } = sample();
    let (reached, wait_reached) = channel();
    let (go, wait_go) = channel::<()>();
    let gate = Mutex::new(Some((reached, wait_go)));
    // The first run hangs in its first transfer until the second one has ended.
    let fake = Fake::start(content.clone(), move |seen, reply| {
        let first = gate.lock().expect("the lock is not poisoned").take_if(|_| seen.is_transfer());
        if let Some((reached, wait_go)) = first {
            reached.send(()).expect("the receiver is alive");
            let _ = wait_go.recv(); // until the other end is dropped
        }
        reply
    });
    let job = PackJob::new(list);
    let options = route_to(&fake, &[]);
    let mut first = job.command(&options);
    let first = first.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start airbundle");
    wait_reached.recv().expect("the first run starts its transfers");
    let out = job.output();
    job.pack_with(&options).failed(9, &["another `airbundle` is writing", "out.tar.zst`", "wait"]);
    assert!(!out.exists());
    drop(go);
    let output = first.wait_with_output().expect("wait for the first run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same(&fs::read(&out).expect("read the bundle"), bundle, "the bundle");
    assert_eq!(job.file_names(), ["all.list", "out.tar.zst"]);
}
