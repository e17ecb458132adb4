//! `airbundle pack` that is run again: a bundle that is up to date is verified and kept, everything else is copied, and
//! registries that limit requests get few of them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::pack_job::{FILES, LIST, MANIFESTS, OUTPUT, PackJob, REGISTRY, VALIDATORS, mirrors_to};
use crate::program::{Finished, airbundle, unbundle};
use crate::support::fake::{Content, Fake, Reply, Seen};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::{random_bytes, sha256, sha512};

/// Two images, and files that are pinned by sha256, by sha512, and not.
fn sample() -> (String, Content) {
    let (mut list, mut content) = (String::new(), Content::default());
    for number in 0..2 {
        let child = |platform: &str| {
            let text = format!("{number} {platform} ").repeat(20_000);
            Image::new(
                Format::Oci,
                platform,
                &[Layer::files(&[("motd", text.as_bytes())], Compression::None)],
            )
        };
        let reference = format!("{REGISTRY}/team/app{number}:1");
        content
            .image(&reference, &Image::index(Format::Oci, vec![child("linux/amd64"), child("linux/arm64")]));
        list = format!("{list}{reference}\n");
    }
    let large = random_bytes(1, 5 << 20);
    let pins = [("large", sha256(&large), large), ("small", sha512(b"small"), b"small".to_vec())];
    for (name, pin, bytes) in pins {
        let url = format!("https://{FILES}/{name}");
        list = format!("{list}{url} {pin}\n");
        content.file(&url, bytes);
    }
    let url = format!("https://{FILES}/unpinned");
    content.file(&url, random_bytes(2, 300_000));
    (format!("{list}{url}\n"), content)
}

/// Adds the header that registries send with manifests.
fn like_a_registry(seen: &Seen, reply: Reply) -> Reply {
    if seen.path.contains("/manifests/") && reply.status == 200 {
        let digest = sha256(&reply.body);
        return reply.with("docker-content-digest", &digest);
    }
    reply
}

fn registry(content: &Content) -> Fake {
    Fake::start(content.clone(), like_a_registry)
}

/// Packs the sample.
fn packed() -> (Fake, PackJob) {
    let (list, content) = sample();
    let (fake, job) = (registry(&content), PackJob::new(&list));
    job.pack_from(&fake, &[]).ok();
    (fake, job)
}

/// Returns the requests to `fake` that delivered content since `before` requests.
fn transfers(fake: &Fake, before: usize) -> Vec<String> {
    let seen = fake.seen().split_off(before);
    let content = seen.iter().filter(|seen| seen.method == "GET" && !seen.is_probe() && seen.path != "/v2/");
    content.map(|seen| seen.path.clone()).collect()
}

/// Returns the inode, the time of the last change, and the content of the bundle.
fn state(job: &PackJob) -> (u64, i64, Vec<u8>) {
    let metadata = fs::metadata(job.output()).expect("the bundle exists");
    (metadata.ino(), metadata.mtime_nsec(), job.bundle())
}

#[track_caller]
fn assert_kept(job: &PackJob, fake: &Fake, options: &[&str]) -> Finished {
    let before = state(job);
    let finished = job.pack_from(fake, options).ok();
    assert!(finished.stdout.starts_with("up to date: 3 files and 2 images"), "{finished:#?}");
    assert!(state(job) == before, "{finished:#?}");
    finished
}

#[test]
fn an_unchanged_bundle_is_verified_and_kept_and_nothing_is_fetched() {
    let (fake, job) = packed();
    let names = [VALIDATORS, LIST, OUTPUT];
    assert_eq!(job.all_file_names(), names);
    for options in [&[][..], &["--quick"], &["--jobs", "1"]] {
        let before = fake.seen().len();
        let finished = assert_kept(&job, &fake, options);
        assert_eq!(transfers(&fake, before), [""; 0], "{options:?}");
        let word = if options.contains(&"--quick") { ", structure verified," } else { ", verified," };
        assert!(finished.stdout.contains(word), "{finished:#?}");
        assert_eq!(job.all_file_names(), names);
    }
    let json = assert_json(&job, &fake);
    assert_eq!((&json["upToDate"], &json["bytesFetched"]), (&true.into(), &0.into()));
    assert_eq!((&json["files"], &json["images"]), (&3.into(), &2.into()));
    // The same by a lock, which is written only if it changes.
    let lock = job.text("a.lock");
    job.pack_from(&fake, &["--write-lock", &lock]).ok();
    let written = fs::metadata(&lock).expect("the lock exists").ino();
    job.pack_from(&fake, &["--write-lock", &lock]).ok();
    assert_eq!(fs::metadata(&lock).expect("the lock exists").ino(), written);
    let options = mirrors_to(&fake);
    let args = ["pack", &lock, "-o", &job.text(OUTPUT)].map(str::to_owned).into_iter().chain(options);
    assert!(airbundle(args).ok().stdout.starts_with("up to date"));
}

fn assert_json(job: &PackJob, fake: &Fake) -> serde_json::Value {
    job.pack_from(fake, &["--json"]).ok().json()
}

#[test]
fn a_file_that_no_version_identifies_is_fetched_and_compared() {
    let (list, content) = sample();
    let without_version = |seen: &Seen, reply: Reply| like_a_registry(seen, reply).without("etag");
    let fake = Fake::start(content.clone(), without_version);
    let job = PackJob::new(&list);
    job.pack_from(&fake, &[]).ok();
    assert_eq!(job.all_file_names(), [LIST, OUTPUT]);
    let before = fake.seen().len();
    let finished = assert_kept(&job, &fake, &[]);
    assert!(finished.stdout.contains("300.0 kB fetched to compare"), "{finished:#?}");
    assert_eq!(transfers(&fake, before), ["/files.example/unpinned"]);

    // Another content of the same size: it is fetched to compare it, and again for the bundle.
    let mut changed = content.clone();
    changed.file(&format!("https://{FILES}/unpinned"), random_bytes(3, 300_000));
    let fake = Fake::start(changed.clone(), without_version);
    let finished = job.pack_from(&fake, &[]).ok();
    assert!(!finished.stdout.contains("up to date"), "{finished:#?}");
    assert_eq!(transfers(&fake, 0), ["/files.example/unpinned"; 2]);
    let fresh = PackJob::new(&list);
    fresh.pack_from(&registry(&changed), &[]).ok();
    assert!(job.bundle() == fresh.bundle());
    // And one of another size, once.
    changed.file(&format!("https://{FILES}/unpinned"), random_bytes(3, 300_001));
    let fake = Fake::start(changed, without_version);
    job.pack_from(&fake, &[]).ok();
    assert_eq!(transfers(&fake, 0), ["/files.example/unpinned"]);
}

#[test]
fn a_time_of_the_last_change_identifies_a_version_unless_it_is_that_of_the_response() {
    let (list, content) = sample();
    for (date, is_known) in
        [("Mon, 30 Nov 2026 10:00:01 GMT", true), ("Mon, 30 Nov 2026 10:00:00 GMT", false)]
    {
        let twist = move |seen: &Seen, reply: Reply| {
            let reply = like_a_registry(seen, reply).with("etag", "W/\"1\"").with("date", date);
            reply.with("last-modified", "Mon, 30 Nov 2026 10:00:00 GMT")
        };
        let fake = Fake::start(content.clone(), twist);
        let job = PackJob::new(&list);
        job.pack_from(&fake, &[]).ok();
        let before = fake.seen().len();
        assert_kept(&job, &fake, &[]);
        assert_eq!(transfers(&fake, before).is_empty(), is_known, "{date}");
    }
}

#[test]
fn a_bundle_of_other_options_is_written_from_the_old_one_without_a_transfer() {
    let (fake, job) = packed();
    let key = job.text("test.key");
    airbundle(["keygen", "--no-passphrase", "-o", &key]).ok();
    for options in [
        &["--level", "19"][..],
        &["--recovery", "10%"],
        &["--recovery", "20%"],
        &["--title", "another"],
        &["--sign", &key],
        &["--platform", "linux/amd64"],
        &[],
    ] {
        let before = fake.seen().len();
        let finished = job.pack_from(&fake, options).ok();
        assert!(!finished.stdout.contains("up to date"), "{options:?}: {finished:#?}");
        if options != [""; 0] {
            assert_eq!(transfers(&fake, before), [""; 0], "{options:?}");
        }
        let fresh = PackJob::new(&sample().0);
        fresh.pack_from(&fake, options).ok();
        assert!(job.bundle() == fresh.bundle(), "{options:?}");
        let again = job.pack_from(&fake, options).ok();
        assert!(again.stdout.starts_with("up to date"), "{options:?}: {again:#?}");
    }
    // A detached signature is not a part of the bundle.
    airbundle(["sign", &job.text(OUTPUT), "--key", &key]);
    assert_kept(&job, &fake, &[]);
}

#[test]
fn volumes_are_kept_while_their_size_and_the_checksum_list_are_the_same() {
    let (list, content) = sample();
    let fake = registry(&content);
    let job = PackJob::new(&list);
    let options = ["--volume-size", "5MiB", "--recovery", "5%"];
    let first = job.pack_from(&fake, &[&options[..], &["--json"]].concat()).ok().json();
    assert!(first["volumes"].as_array().expect("volumes").len() > 1);
    let names = job.all_file_names();
    let again = job.pack_from(&fake, &[&options[..], &["--json"]].concat()).ok().json();
    assert_eq!((&again["upToDate"], &again["volumes"]), (&true.into(), &first["volumes"]));
    assert_eq!(again["bundleSize"], first["bundleSize"]);
    assert_eq!(job.all_file_names(), names);
    for (change, what) in [("SHA256SUMS", "the list"), ("out.tar.zst.002", "a volume")] {
        fs::remove_file(job.path(change)).expect("remove a file");
        let written = job.pack_from(&fake, &options).ok();
        assert!(!written.stdout.contains("up to date"), "{what}: {written:#?}");
        assert_eq!(job.all_file_names(), names, "{what}");
    }
    let other = job.pack_from(&fake, &["--volume-size", "6MiB", "--recovery", "5%"]).ok();
    assert!(!other.stdout.contains("up to date"), "{other:#?}");
    // A command may move volumes away, so that it always gets new ones.
    let on_volume = [&options[..], &["--on-volume", "echo $1"]].concat();
    for _ in 0..2 {
        let run = job.pack_from(&fake, &on_volume).ok();
        assert!(!run.stdout.contains("up to date"), "{run:#?}");
    }
}

#[test]
fn a_damaged_bundle_is_written_again_from_its_intact_parts() {
    let (fake, job) = packed();
    let intact = job.bundle();
    let mut damaged = intact.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(job.output(), &damaged).expect("write the bundle");
    // Nothing but its content is damaged.
    assert_kept(&job, &fake, &["--quick"]);
    let before = fake.seen().len();
    let finished = job.pack_from(&fake, &[]).ok();
    assert!(
        finished.stderr.contains("out.tar.zst` is written again, because it is damaged"),
        "{finished:#?}"
    );
    let fetched = transfers(&fake, before);
    assert!(!fetched.is_empty() && fetched.iter().all(|path| path == "/files.example/large"), "{fetched:?}");
    assert!(job.bundle() == intact);

    for (bytes, words) in [(&b"no bundle"[..], "is not reused"), (&intact[..1000], "is not reused")] {
        fs::write(job.output(), bytes).expect("write a file");
        let finished = job.pack_from(&fake, &[]).ok();
        assert!(finished.stderr.contains(words), "{finished:#?}");
        assert!(job.bundle() == intact);
    }
    unbundle(["verify", &job.text(OUTPUT)]).ok();
}

#[test]
fn a_changed_list_copies_what_the_old_bundle_has() {
    let (list, mut content) = sample();
    let more = Image::new(Format::Oci, "linux/amd64", &[Layer::random(7, 100_000, Compression::None)]);
    content.image(&format!("{REGISTRY}/team/more:1"), &more);
    let fake = registry(&content);
    let job = PackJob::new(&list);
    job.pack_from(&fake, &[]).ok();
    let before = fake.seen().len();
    let list = format!("{list}{REGISTRY}/team/more:1\n");
    job.write(LIST, &list);
    job.pack_from(&fake, &[]).ok();
    let fetched = transfers(&fake, before);
    assert!(fetched.iter().all(|path| path.starts_with("/v2/registry.example/team/more/")), "{fetched:?}");
    assert_eq!(fetched.len(), 3);
    let fresh = PackJob::new(&list);
    fresh.pack_from(&fake, &[]).ok();
    assert!(job.bundle() == fresh.bundle());
}

#[test]
fn a_tag_that_moved_is_noticed_also_by_registries_without_head() {
    let (list, content) = sample();
    for head in [200, 404, 405, 429, 500] {
        let job = PackJob::new(&list);
        job.pack_from(&registry(&content), &[]).ok();
        let mut moved = content.clone();
        let image = Image::new(Format::Oci, "linux/amd64", &[Layer::random(8, 1000, Compression::None)]);
        moved.image(&format!("{REGISTRY}/team/app0:1"), &image);
        let fake = Fake::start(moved, move |seen, reply| match seen.method.as_str() {
            "HEAD" if head != 200 => Reply::status(head),
            _ => like_a_registry(seen, reply),
        });
        let finished = job.pack_from(&fake, &[]).ok();
        assert!(!finished.stdout.contains("up to date"), "{head}: {finished:#?}");
        let json = unbundle(["ls", "--json", &job.text(OUTPUT)]).ok().stdout;
        assert!(json.contains(&image.root.digest), "{head}");
    }
}

/// A registry that allows `limit` requests for manifests in each window.
fn limited(content: Content, limit: usize) -> (Fake, Arc<AtomicUsize>) {
    let used = Arc::new(AtomicUsize::new(0));
    let counter = used.clone();
    let fake = Fake::start(content, move |seen, reply| {
        let reply = like_a_registry(seen, reply);
        if !seen.path.contains("/manifests/") || seen.method != "GET" {
            return reply;
        }
        let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
        let reply = if number > limit { Reply::status(429) } else { reply };
        let left = limit.saturating_sub(number);
        reply
            .with("ratelimit-limit", &format!("{limit};w=21600"))
            .with("ratelimit-remaining", &format!("{left};w=21600"))
    });
    (fake, used)
}

#[test]
fn a_list_that_needs_several_windows_of_a_registry_is_packed_over_several_runs() {
    let (list, content) = sample();
    let (fake, used) = limited(content.clone(), 4);
    let job = PackJob::new(&list);
    let options = ["--jobs", "1"];
    let first = job.pack_from(&fake, &options).failed(4, &["429", "run the same command again in 6 h"]);
    assert!(first.stderr.contains("limits pulls: 3 of 4 left (per 6 h); 2 images need one or more each"));
    assert!(first.stderr.contains("4 pulls made, 0 of 4 left (per 6 h)"), "{first:#?}");
    assert!(job.all_file_names().contains(&MANIFESTS.to_owned()));
    assert_eq!(used.load(Ordering::SeqCst), 5, "no request is repeated in vain");
    used.store(0, Ordering::SeqCst);
    let second = job.pack_from(&fake, &options).ok();
    assert!(second.stderr.contains("only those that changed need any"), "{second:#?}");
    assert_eq!(used.load(Ordering::SeqCst), 2, "the index and 3 of 6 manifests are known");
    assert_eq!(job.all_file_names(), [VALIDATORS, LIST, OUTPUT]);
    let fresh = PackJob::new(&list);
    fresh.pack_from(&registry(&content), &[]).ok();
    assert!(job.bundle() == fresh.bundle());
}

#[test]
fn manifests_of_bundles_in_reuse_and_base_are_not_requested() {
    let (list, content) = sample();
    let old = PackJob::new(&list);
    old.pack_from(&registry(&content), &[]).ok();
    let lock = old.text("a.lock");
    old.pack_from(&registry(&content), &["--write-lock", &lock]).ok();
    for option in ["--reuse", "--base"] {
        for input in [LIST, "a.lock"] {
            let (fake, used) = limited(content.clone(), 0);
            let job = PackJob::new("");
            let options = [option, &old.text(OUTPUT), "--retries", "0"].map(str::to_owned).into_iter();
            let args = ["pack", &old.text(input), "-o", &job.text(OUTPUT)].map(str::to_owned).into_iter();
            airbundle(args.chain(options).chain(mirrors_to(&fake))).ok();
            assert_eq!(used.load(Ordering::SeqCst), 0, "{option} {input}");
        }
    }
}

#[test]
fn configs_that_the_old_bundle_has_are_not_requested_to_find_a_platform() {
    let mut content = Content::default();
    let image = Image::new(Format::Docker, "linux/arm64", &[Layer::random(1, 1000, Compression::Gzip)]);
    content.image(&format!("{REGISTRY}/team/app:1"), &image);
    let seen = Arc::new(Mutex::new(0));
    let counter = seen.clone();
    let fake = Fake::start(content, move |seen, reply| {
        *counter.lock().expect("no panic") += usize::from(seen.path.contains("/blobs/"));
        like_a_registry(seen, reply)
    });
    let job = PackJob::new(&format!("{REGISTRY}/team/app:1 platform=linux/arm64\n"));
    job.pack_from(&fake, &[]).ok();
    *seen.lock().expect("no panic") = 0;
    assert!(job.pack_from(&fake, &[]).ok().stdout.starts_with("up to date"));
    assert_eq!(*seen.lock().expect("no panic"), 0);
}
