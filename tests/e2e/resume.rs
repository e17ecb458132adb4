//! `airbundle pack` that is killed, fails, or has older bundles, locks or missing items: nothing is fetched
//! twice, and the bytes equal those of an uninterrupted run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::tempdir;

use crate::pack_job::{FILES, LIST, OUTPUT, PackJob, REGISTRY, SPOOL, mirrors_to};
use crate::program::{Finished, airbundle, unbundle};
use crate::support::fake::{Content, Fake, Gate, Reply, Transfer};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::{random_bytes, sha256};

const UNLIMITED: usize = usize::MAX / 2;

/// Packs these lists in the directory of `job` from `fake`.
fn pack_lists(job: &PackJob, lists: &[&str], fake: &Fake, options: &[&str]) -> Finished {
    let output = job.text(OUTPUT);
    let args = ["pack", "-o", &output].map(str::to_owned).into_iter();
    airbundle(args.chain(lists.iter().map(|list| job.text(list))).chain(PackJob::options_from(fake, options)))
}

fn kill(mut child: Child) {
    child.kill().expect("kill the child");
    child.wait().expect("wait for the child");
}

#[track_caller]
fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert!(
        found == expected,
        "{what}: {} bytes, and other ones than the {} expected",
        found.len(),
        expected.len()
    );
}

/// Returns the bundle of an uninterrupted run.
fn uninterrupted(list: &str, content: &Content, more: &[&str]) -> Vec<u8> {
    let job = PackJob::new(list);
    job.pack_from(&Fake::honest(content.clone()), more).ok();
    job.bundle()
}

/// Thirty blobs of all kinds: small and large, of images and files, pinned and unpinned.
fn thirty_blobs() -> (String, Content) {
    let (mut list, mut content) = (String::new(), Content::default());
    for number in 0..5 {
        let large = if number % 2 == 0 { 9_000_000 } else { 300_000 };
        let layers = [
            Layer::random(number, 40_000, Compression::None),
            Layer::random(100 + number, large, Compression::None),
            Layer::files(&[("etc/motd", format!("{number}").repeat(5000).as_bytes())], Compression::None),
        ];
        let image = Image::new(Format::Oci, "linux/amd64", &layers);
        let reference = format!("{REGISTRY}/team/app{number}:1");
        content.image(&reference, &image);
        list = format!("{list}{reference}\n");
    }
    for number in 0..10_usize {
        let bytes =
            random_bytes(1000 + number as u64, [500, 70_000, 5_000_000, 1_000_000, 4_194_304][number % 5]);
        let url = format!("https://{FILES}/{number}");
        list =
            if number < 6 { format!("{list}{url} {}\n", sha256(&bytes)) } else { format!("{list}{url}\n") };
        content.file(&url, bytes);
    }
    (list, content)
}

fn sum(transfers: &[Transfer]) -> usize {
    transfers.iter().map(|transfer| transfer.sent).sum()
}

/// Returns how many bytes of incomplete transfers were sent.
fn in_flight(transfers: &[Transfer]) -> usize {
    transfers.iter().filter(|transfer| transfer.sent < transfer.len).map(|transfer| transfer.sent).sum()
}

#[test]
fn pack_killed_at_any_point_never_fetches_a_complete_blob_again() {
    kill_at_every_point(30, &[]);
}

#[test]
fn resume_works_with_volumes_and_recovery_data() {
    kill_at_every_point(18, &["--volume-size", "6MiB", "--recovery", "10%"]);
}

/// Kills `pack` at `points` points, and lets the last run finish.
fn kill_at_every_point(points: usize, more: &[&str]) {
    let (list, content) = thirty_blobs();
    let expected = uninterrupted(&list, &content, more);
    let gate = Arc::new(Gate::default());
    gate.open(UNLIMITED);
    let fake = Fake::behind(&gate, content.clone());
    let uninterrupted_job = PackJob::new(&list);
    uninterrupted_job.pack_from(&fake, more).ok();
    let left = uninterrupted_job.file_names();
    let all = sum(&gate.transfers());
    assert!(all > 30_000_000, "{all}");
    thread::scope(|scope| {
        for worker in 0..3 {
            let (list, content, expected, left) = (&list, &content, &expected, &left);
            scope.spawn(move || {
                for point in (0..points).filter(|point| point % 3 == worker) {
                    let gate = Arc::new(Gate::default());
                    let fake = Fake::behind(&gate, content.clone());
                    let job = PackJob::new(list);
                    gate.open(all * point / points);
                    let child = job.start_from(&fake, &[more, &["--jobs", "4"]].concat());
                    thread::sleep(Duration::from_millis(300));
                    let first = gate.settle();
                    kill(child);
                    gate.open(UNLIMITED);
                    let _ = gate.settle(); // requests of the killed run
                    let finished = job.pack_from(&fake, &[more, &["--json"]].concat()).ok();
                    let second = gate.transfers();
                    assert_same(&job.bundle(), expected, &format!("killed at {point} of {points}"));
                    let (fetched, allowed) = (sum(&first) + sum(&second), all + in_flight(&first));
                    assert!(fetched <= allowed, "{point}: {fetched} > {allowed}: {first:#?} {second:#?}");
                    assert_eq!(job.file_names(), *left, "{point}");
                    let resumed = finished.json()["bytesResumed"].as_u64().expect("a number");
                    let complete = sum(&first) - in_flight(&first);
                    assert!(
                        resumed >= complete as u64,
                        "{point}: {resumed} of {complete} are reported: {finished:#?}"
                    );
                }
            });
        }
    });
}

/// Packs until `part` of all bytes were sent, then kills it.
fn pack_and_kill_at(job: &PackJob, content: &Content, part: (usize, usize)) {
    let gate = Arc::new(Gate::default());
    let fake = Fake::behind(&gate, content.clone());
    gate.open(UNLIMITED);
    PackJob::new(&fs::read_to_string(job.path(LIST)).expect("read the list")).pack_from(&fake, &[]).ok();
    let all = sum(&gate.transfers());
    let gate = Arc::new(Gate::default());
    let fake = Fake::behind(&gate, content.clone());
    gate.open(all * part.0 / part.1);
    let child = job.start_from(&fake, &["--jobs", "3"]);
    thread::sleep(Duration::from_millis(300));
    gate.settle();
    kill(child);
    gate.open(UNLIMITED);
}

#[test]
fn prefetched_blobs_of_any_size_survive_a_kill() {
    let url = format!("https://{FILES}/large");
    let bytes = random_bytes(8, 90_000_000);
    let list = format!("{url} {}\n", sha256(&bytes));
    let mut content = Content::default();
    content.file(&url, bytes);
    let expected = uninterrupted(&list, &content, &[]);
    let job = PackJob::new(&list);
    // The first blob stalls, and everything behind it is fetched as far as it fits.
    let fake = Fake::start(content.clone(), |seen, reply| {
        let is_first = seen.range().is_some_and(|(first, last)| first == 0 && last > 0);
        if is_first { Reply { pause: Duration::from_secs(30), ..reply } } else { reply }
    });
    let child = job.start_from(&fake, &["--jobs", "6"]);
    let mut before = 0;
    for _ in 0..120 {
        thread::sleep(Duration::from_millis(500));
        let len = fs::metadata(job.path(SPOOL)).map_or(0, |data| data.len());
        if len > 36_000_000 && len == before {
            break;
        }
        before = len;
    }
    assert!(before > 36_000_000, "{before}");
    kill(child);
    let gate = Arc::new(Gate::default());
    gate.open(UNLIMITED);
    let fake = Fake::behind(&gate, content);
    let child = job.start_from(&fake, &["--jobs", "6"]);
    assert!(succeeds_within(child, Duration::from_secs(120)), "it waits for ever, or fails");
    assert_same(&job.bundle(), &expected, "after a kill");
    assert!(sum(&gate.transfers()) < 56_000_000);
}

/// True if the child succeeds in this time. Ends it in any case.
fn succeeds_within(mut child: Child, time: Duration) -> bool {
    for _ in 0..time.as_millis() / 100 {
        if let Some(status) = child.try_wait().expect("wait for the child") {
            return status.success();
        }
        thread::sleep(Duration::from_millis(100));
    }
    kill(child);
    false
}

#[test]
fn pack_with_changed_lists_reuses_the_partial() {
    let (list, mut content) = thirty_blobs();
    let job = PackJob::new(&list);
    pack_and_kill_at(&job, &content, (2, 3));
    let image = Image::new(Format::Docker, "linux/amd64", &[Layer::random(7, 200_000, Compression::None)]);
    content.image(&format!("{REGISTRY}/a/new:1"), &image);
    let longer = format!("{list}{REGISTRY}/a/new:1\n");
    let expected = uninterrupted(&longer, &content, &[]);
    job.write(LIST, &longer);
    let gate = Arc::new(Gate::default());
    gate.open(UNLIMITED);
    let finished = job.pack_from(&Fake::behind(&gate, content), &["--json"]).ok();
    assert_same(&job.bundle(), &expected, "after a change of the list");
    let summary = finished.json();
    let [reused, resumed, fetched] =
        ["bytesReused", "bytesResumed", "bytesFetched"].map(|name| summary[name].as_u64().expect("a number"));
    // The beginning of the bundle is resumed if the change comes after it.
    assert!(reused > 0 && reused + resumed > 15_000_000 && fetched < 25_000_000, "{summary}");
    assert!(sum(&gate.transfers()) < 25_000_000);
    assert_eq!(job.file_names(), [LIST, OUTPUT]);
}

#[test]
fn corruption_in_the_partial_costs_only_what_it_hits_and_never_yields_wrong_bytes() {
    let (list, content) = thirty_blobs();
    let expected = uninterrupted(&list, &content, &[]);
    for (name, damage) in [
        ("out.tar.zst.partial", 0.1),
        ("out.tar.zst.partial", 0.5),
        ("out.tar.zst.partial", 0.95),
        ("out.tar.zst.partial.spool", 0.001),
        ("out.tar.zst.partial.spool", 0.5),
    ] {
        let job = PackJob::new(&list);
        pack_and_kill_at(&job, &content, (3, 4));
        let path = job.path(name);
        let mut bytes = fs::read(&path).expect("a partial exists");
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place"
        )]
        let offset = (bytes.len() as f64 * damage) as usize;
        bytes[offset..].iter_mut().take(5).for_each(|byte| *byte ^= 0x55);
        fs::write(&path, bytes).expect("write the file back");
        job.pack_from(&Fake::honest(content.clone()), &[]).ok();
        assert_same(&job.bundle(), &expected, &format!("{name} damaged at {damage}"));
    }
    for name in ["out.tar.zst.partial", "out.tar.zst.partial.spool", "out.tar.zst.partial.old"] {
        let job = PackJob::new(&list);
        fs::write(job.path(name), b"this was never a bundle".repeat(4000)).expect("write garbage");
        job.pack_from(&Fake::honest(content.clone()), &[]).ok();
        assert_same(&job.bundle(), &expected, name);
        assert_eq!(job.file_names(), [LIST, OUTPUT], "{name}");
    }
}

#[test]
fn unpinned_file_that_changed_upstream_is_fetched_from_the_start() {
    let url = format!("https://{FILES}/large");
    let list = format!("https://{FILES}/a\n{url}\n");
    let content = |seed| {
        let mut content = Content::default();
        content.file(&format!("https://{FILES}/a"), b"a".to_vec());
        content.file(&url, random_bytes(seed, 20_000_000));
        content
    };
    let job = PackJob::new(&list);
    pack_and_kill_at(&job, &content(1), (2, 3));
    job.pack_from(&Fake::honest(content(2)), &[]).ok();
    assert_same(&job.bundle(), &uninterrupted(&list, &content(2), &[]), "the other version");
}

#[test]
fn spool_size_stays_bounded_over_many_kills() {
    const LIMIT: u64 = 110_000_000;
    const LEN: usize = 130_000_000;
    let url = |name: &str| format!("https://{FILES}/{name}");
    let (same, other) = (random_bytes(1, LEN), random_bytes(2, LEN));
    let list = format!("{} {}\n{}\n{} {}\n", url("0"), sha256(&same), url("1"), url("2"), sha256(&other));
    let mut content = Content::default();
    content.file(&url("0"), same.clone());
    content.file(&url("1"), same);
    content.file(&url("2"), other);
    let job = PackJob::new(&list);
    let fake = Fake::honest(content.clone());
    let spool = job.path(SPOOL);
    let mut child = job.start_from(&fake, &[]);
    let mut largest = 0;
    while child.try_wait().expect("wait for the child").is_none() {
        largest = largest.max(fs::metadata(&spool).map_or(0, |data| data.len()));
        thread::sleep(Duration::from_millis(5));
    }
    assert!((1..LIMIT).contains(&largest), "{largest}");
    let expected = job.bundle();

    fs::remove_file(job.output()).expect("remove the bundle");
    let gate = Arc::new(Gate::default());
    let fake = Fake::behind(&gate, content);
    for part in 1..=8 {
        gate.open(part * LEN / 10);
        let child = job.start_from(&fake, &[]);
        for _ in 0..1000 {
            if spool.exists() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_millis(300));
        gate.settle();
        kill(child);
        let len = fs::metadata(&spool).expect("stat the spool").len();
        assert!(len < LIMIT, "{len} after {part}");
    }
    gate.open(UNLIMITED);
    job.pack_from(&fake, &[]).ok();
    assert_same(&job.bundle(), &expected, "killed again and again");
}

#[test]
fn server_outage_keeps_completed_blobs_for_the_next_run() {
    let (list, content) = thirty_blobs();
    let expected = uninterrupted(&list, &content, &[]);
    let job = PackJob::new(&list);
    let fake = Fake::start(content.clone(), |seen, reply| {
        if !seen.path.ends_with("/7") || seen.is_probe() {
            return reply;
        }
        thread::sleep(Duration::from_secs(2));
        Reply::status(404)
    });
    let finished = job.pack_from(&fake, &[]).failed(4, &["https://files.example/7", "404"]);
    assert!(finished.stderr.contains("run the same command to resume"), "{finished:#?}");
    assert!(!job.output().exists());
    // Still unavailable, and before anything can be fetched: earlier blobs are kept.
    let unavailable = Fake::start(content.clone(), |_, _| Reply::status(404));
    job.pack_from(&unavailable, &[]).failed(4, &["404"]);
    let gate = Arc::new(Gate::default());
    gate.open(UNLIMITED);
    job.pack_from(&Fake::behind(&gate, content), &[]).ok();
    assert_same(&job.bundle(), &expected, "after a failure");
    assert!(sum(&gate.transfers()) < 15_000_000, "most was there");
}

// ---- Older bundles ----

/// Two releases that share most of their content, with their lists.
fn releases() -> [(String, Content); 2] {
    let shared: Vec<_> = (0..3).map(|seed| Layer::random(seed, 9_000_000, Compression::None)).collect();
    let text = "all of this compresses well\n".repeat(400_000);
    let readable = Layer::files(&[("usr/share/doc", text.as_bytes())], Compression::None);
    [1_u64, 2].map(|release| {
        let (mut list, mut content) = (String::new(), Content::default());
        for (number, layer) in shared.iter().enumerate() {
            let own = Layer::random(release * 10 + number as u64, 100_000, Compression::None);
            let layers = [layer.clone(), readable.clone(), own];
            let reference = format!("{REGISTRY}/app{number}:{release}");
            content.image(&reference, &Image::new(Format::Oci, "linux/amd64", &layers));
            list = format!("{list}{reference}\n");
        }
        let bytes = random_bytes(99, 6_000_000);
        list = format!("{list}https://{FILES}/same {}\nhttps://{FILES}/v{release}\n", sha256(&bytes));
        content.file(&format!("https://{FILES}/same"), bytes);
        content.file(&format!("https://{FILES}/v{release}"), random_bytes(release, 100_000));
        (list, content)
    })
}

#[test]
fn reused_bundle_saves_transfers_and_changes_no_byte() {
    let [(old_list, old_content), (list, content)] = releases();
    let expected = uninterrupted(&list, &content, &[]);
    for (level, damage) in [("3", false), ("1", false), ("3", true)] {
        let old = PackJob::new(&old_list);
        old.pack_from(&Fake::honest(old_content.clone()), &["--level", level]).ok();
        if damage {
            let mut bytes = old.bundle();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(old.path(OUTPUT), bytes).expect("write the file back");
        }
        let job = PackJob::new(&list);
        let gate = Arc::new(Gate::default());
        gate.open(UNLIMITED);
        let fake = Fake::behind(&gate, content.clone());
        let finished = job.pack_from(&fake, &["--reuse", &old.text(OUTPUT), "--json"]).ok();
        assert_same(&job.bundle(), &expected, &format!("level {level}, damaged: {damage}"));
        let (fetched, reused) = (sum(&gate.transfers()), finished.json()["bytesReused"].as_u64());
        if damage {
            assert!(finished.stdout.contains("is corrupt in"), "{finished:#?}");
            assert!((6_000_000..16_000_000).contains(&fetched), "one blob came anew: {fetched}");
        } else {
            assert!(fetched < 1_000_000, "{fetched}");
            assert!(reused.is_some_and(|bytes| bytes > 40_000_000), "{finished:#?}");
        }
    }
    // Replaces the old bundle.
    let job = PackJob::new(&old_list);
    job.pack_from(&Fake::honest(old_content), &[]).ok();
    job.write(LIST, &list);
    job.pack_from(&Fake::honest(content), &["--reuse", &job.text(OUTPUT)]).ok();
    assert_same(&job.bundle(), &expected, "over itself");
}

#[test]
fn reused_bundle_of_another_compression_level_changes_no_byte() {
    // The first frames are incompressible at any level.
    let mut bytes = random_bytes(1, 2 << 22);
    bytes.extend((0..400_000).flat_map(|number| format!("{number} and {}\n", number % 1000).into_bytes()));
    let url = format!("https://{FILES}/mixed");
    let list = format!("{url} {}\n", sha256(&bytes));
    let mut content = Content::default();
    content.file(&url, bytes);
    let old = PackJob::new(&list);
    old.pack_from(&Fake::honest(content.clone()), &["--level", "1"]).ok();
    let job = PackJob::new(&list);
    job.pack_from(&Fake::honest(content.clone()), &["--reuse", &old.text(OUTPUT)]).ok();
    assert_same(&job.bundle(), &uninterrupted(&list, &content, &[]), "from level 1");
}

#[test]
fn invalid_reuse_bundle_is_refused_before_anything_is_fetched() {
    let (list, content) = thirty_blobs();
    let job = PackJob::new(&list);
    let fake = Fake::honest(content);
    for (name, code) in [("all.list", 8), ("not-there", 6)] {
        job.pack_from(&fake, &["--reuse", &job.text(name)]).failed(code, &["reuse", name]);
    }
    assert!(fake.seen().is_empty());
    assert_eq!(job.file_names(), [LIST]);
}

// ---- Locks ----

fn write_lock(job: &PackJob, fake: &Fake) -> Finished {
    let args = ["lock", &job.text(LIST), "-o", &job.text("airbundle.lock.json"), "--retries", "0"];
    airbundle(args.map(str::to_owned).into_iter().chain(mirrors_to(fake)))
}

fn check_lock(job: &PackJob, fake: &Fake, more: &[&str]) -> Finished {
    let args = ["lock", "--check", &job.text("airbundle.lock.json"), "--retries", "0"];
    let args = args.into_iter().chain(more.iter().copied()).map(str::to_owned);
    airbundle(args.chain(mirrors_to(fake)))
}

#[test]
fn two_locks_of_one_list_are_merged_into_what_upstream_has() {
    let image =
        |seed| Image::new(Format::Oci, "linux/amd64", &[Layer::random(seed, 2000, Compression::None)]);
    let content = |moved: bool| {
        let mut content = Content::default();
        content.file(&format!("https://{FILES}/same"), &b"same"[..]);
        content.file(&format!("https://{FILES}/moved"), if moved { &b"two"[..] } else { b"one" });
        content.image(&format!("{REGISTRY}/a/moved:1"), &image(if moved { 2 } else { 1 }));
        content.image(&format!("{REGISTRY}/a/ours:1"), &image(3));
        content.image(&format!("{REGISTRY}/a/theirs:1"), &image(4));
        content
    };
    let common = format!("https://{FILES}/same\nhttps://{FILES}/moved\n{REGISTRY}/a/moved:1\n");
    let job = PackJob::new("");
    let before = Fake::honest(content(false));
    let after = Fake::honest(content(true));
    let lock = |name: &str, fake: &Fake, entry: &str| {
        job.write(LIST, format!("{common}{REGISTRY}/a/{entry}:1\n"));
        write_lock(&job, fake).ok();
        fs::rename(job.path("airbundle.lock.json"), job.path(name)).unwrap();
        job.text(name)
    };
    let (ours, theirs) = (lock("ours", &before, "ours"), lock("theirs", &after, "theirs"));
    let merge = |one: &str, two: &str, fake: &Fake, more: &[&str]| {
        let args = ["lock", "--merge", one, two, "-o", &job.text("merged"), "--retries", "0"];
        let args = args.into_iter().chain(more.iter().copied()).map(str::to_owned);
        airbundle(args.chain(mirrors_to(fake)))
    };
    job.write(LIST, format!("{common}{REGISTRY}/a/ours:1\n{REGISTRY}/a/theirs:1\n"));
    for (one, two, fake) in [(&ours, &theirs, &after), (&theirs, &ours, &after), (&ours, &theirs, &before)] {
        let merged = merge(one, two, fake, &["--json"]).ok().json();
        assert_eq!(merged["decided"].as_array().unwrap().len(), 2, "{merged:#}");
        write_lock(&job, fake).ok();
        assert_same(
            &fs::read(job.path("merged")).unwrap(),
            &fs::read(job.path("airbundle.lock.json")).unwrap(),
            "merged",
        );
    }
    // Without a difference, nothing is requested.
    let (seen, merged) = (after.seen().len(), fs::read(job.path("merged")).unwrap());
    merge(&job.text("merged"), &ours, &after, &[]).ok();
    assert!(after.seen().len() == seen && fs::read(job.path("merged")).unwrap() == merged);
    // Upstream has another version by now.
    let later = Fake::honest(Content::default());
    merge(&ours, &theirs, &later, &[]).failed(13, &["a/moved:1", "neither version"]);
    merge(&ours, &job.text(LIST), &later, &[]).failed(3, &["not a lock"]);
    airbundle(["lock", "--merge", &ours, "-o", &job.text("merged")]).failed(2, &["two locks"]);
}

#[test]
fn lock_packs_the_same_bytes_after_tags_moved() {
    let (list, content) = thirty_blobs();
    let expected = uninterrupted(&list, &content, &[]);
    let job = PackJob::new(&list);
    let gate = Arc::new(Gate::default());
    gate.open(UNLIMITED);
    let fake = Fake::behind(&gate, content.clone());
    let finished = write_lock(&job, &fake).ok();
    assert!(finished.stderr.contains("10 files and 5 images: 35 blobs, 48.4 MB;"), "{finished:#?}");
    assert!(finished.stderr.contains("4 files without a sha256 (10.3 MB)"), "{finished:#?}");
    let fetched = sum(&gate.transfers());
    assert!((10_000_000..11_000_000).contains(&fetched), "only what no list pins: {fetched}");
    let text = fs::read_to_string(job.path("airbundle.lock.json")).expect("read the lock");
    let document: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(document["airbundleLock"], 1);
    write_lock(&job, &Fake::honest(content.clone())).ok();
    let again = fs::read_to_string(job.path("airbundle.lock.json")).expect("read the lock");
    assert_eq!(again, text, "the same everywhere");

    // A tag moves, and an unpinned file stays the same.
    let mut moved = content.clone();
    let other = Image::new(Format::Oci, "linux/amd64", &[Layer::random(77, 1000, Compression::None)]);
    moved.image(&format!("{REGISTRY}/team/app1:1"), &other);
    let moved_fake = Fake::honest(moved);
    pack_lists(&job, &["airbundle.lock.json"], &moved_fake, &[]).ok();
    assert_same(&job.bundle(), &expected, "from the lock");
    assert!(moved_fake.seen_of("/manifests/").iter().all(|seen| seen.path.contains("/manifests/sha256:")));

    check_lock(&job, &fake, &[]).ok();
    let finished = check_lock(&job, &moved_fake, &[]);
    assert_eq!(finished.code, Some(13), "{finished:#?}");
    let result: Vec<_> = finished.stdout.lines().collect();
    let locked = document["images"][1]["digest"].as_str().expect("a digest");
    assert_eq!(result[0], format!("moved   {REGISTRY}/team/app1:1"));
    assert_eq!(result[1..3], [format!("        was {locked}"), format!("        now {}", other.root.digest)]);
    assert_eq!(result[3], "1 of 15 entries changed");
}

#[test]
fn changed_upstream_file_is_detected_by_content_or_with_quick_by_size() {
    let url = |name: &str| format!("https://{FILES}/{name}");
    let content = |same_size: &[u8], size: &[u8]| {
        let mut content = Content::default();
        content.file(&url("bytes"), same_size.to_vec());
        content.file(&url("size"), size.to_vec());
        content.file(&url("same"), b"same".to_vec());
        content
    };
    let job = PackJob::new(&["bytes", "gone", "same", "size"].map(|name| url(name) + "\n").concat());
    let mut before = content(b"before", b"a");
    before.file(&url("gone"), b"here".to_vec());
    write_lock(&job, &Fake::honest(before)).ok();
    let now = Fake::honest(content(b"after!", b"longer"));
    for (more, expected) in
        [(&["--json"][..], vec!["bytes", "gone", "size"]), (&["--json", "--quick"], vec!["gone", "size"])]
    {
        let finished = check_lock(&job, &now, more);
        assert_eq!(finished.code, Some(13), "{finished:#?}");
        let names: Vec<_> = finished.json()["moved"]
            .as_array()
            .expect("an array")
            .iter()
            .map(|moved| {
                moved["name"].as_str().expect("a name").rsplit('/').next().expect("a part").to_owned()
            })
            .collect();
        assert_eq!(names, expected, "{finished:#?}");
    }
    // Changed items are not packed.
    pack_lists(&job, &["airbundle.lock.json"], &now, &[]).failed(5, &[&url("size"), "the lock"]);
    assert!(!job.output().exists());
}

#[test]
fn edited_or_invalid_lock_is_refused_by_name() {
    let (list, content) = thirty_blobs();
    let job = PackJob::new(&list);
    let fake = Fake::honest(content);
    write_lock(&job, &fake).ok();
    let text = fs::read_to_string(job.path("airbundle.lock.json")).expect("read the lock");
    let document: Value = serde_json::from_str(&text).expect("JSON");
    let layer = document["images"][0]["manifests"][0]["blobs"][1]["digest"].as_str().expect("a digest");
    let root = document["images"][0]["digest"].as_str().expect("a digest");
    let zeros = format!("sha256:{}", "0".repeat(64));
    for (changed, code, words) in [
        (text.replace(layer, &zeros), 3, ["team/app0:1", "edited by hand"]),
        (
            text.replace("\"airbundleLock\": 1", "\"airbundleLock\": 2"),
            8,
            ["version 2", "airbundle.lock.json"],
        ),
        (text.replace("\"files\"", "\"fils\""), 3, ["not a valid lock", "files"]),
        (text.replace(root, &zeros), 4, ["team/app0:1", "404"]),
        (text.replacen(root, &zeros, 1), 3, ["team/app0:1", "first manifest"]),
        (text[..text.len() / 2].to_owned(), 3, ["not a valid lock", "EOF"]),
        (
            text.replace("https://files.example/1\"", "https://files.example/0\""),
            3,
            ["/0`", "duplicate entry"],
        ),
        (
            text.replace("https://files.example/1\"", "https://files.example:443/1\""),
            3,
            [":443/1`", "not a normalized URL"],
        ),
    ] {
        fs::write(job.path("airbundle.lock.json"), changed).expect("write the lock");
        pack_lists(&job, &["airbundle.lock.json"], &fake, &[]).failed(code, &words);
        assert!(!job.output().exists());
        let code = check_lock(&job, &fake, &["--quick"]).code;
        assert!(code.is_some_and(|code| code != 101), "{code:?}");
    }
    fs::write(job.path("airbundle.lock.json"), &text).expect("write the lock");
    let platform = ["--platform", "linux/arm64"];
    pack_lists(&job, &["airbundle.lock.json"], &fake, &platform).failed(2, &["--platform", "lock"]);
    pack_lists(&job, &[LIST, "airbundle.lock.json"], &fake, &platform)
        .failed(2, &["airbundle.lock.json", "cannot combine"]);
    check_lock(&job, &fake, &["--quick"]).ok();
    airbundle(["lock", "--check", &job.text(LIST)]).failed(3, &["all.list", "not a lock"]);
    airbundle(["lock", "--check", &job.text("missing")]).failed(6, &["missing"]);
}

#[test]
fn diff_of_locks_or_bundles_names_added_and_removed_items() {
    let [(old_list, old_content), (list, content)] = releases();
    let (old, new) = (PackJob::new(&old_list), PackJob::new(&list));
    old.pack_from(&Fake::honest(old_content), &["--write-lock", &old.text("airbundle.lock.json")]).ok();
    new.pack_from(&Fake::honest(content.clone()), &[]).ok();
    write_lock(&new, &Fake::honest(content)).ok();
    let diff = |old: &str, new: &str| airbundle(["diff", old, new]).ok().stdout;
    let text = diff(&old.text("airbundle.lock.json"), &new.text("airbundle.lock.json"));
    for line in [
        "+ added    registry.example/app0:2  +",
        "- removed  registry.example/app0:1  -",
        "+ added    https://files.example/v2  +100.0 kB",
        "- removed  https://files.example/v1  -100.0 kB",
        "blobs: 10 (409.5 kB) added, 10 (409.5 kB) removed, 5 (44.2 MB) kept",
    ] {
        assert!(text.contains(line), "no `{line}` in:\n{text}");
    }
    assert!(!text.contains("/same"), "{text}");
    for (one, other) in [("airbundle.lock.json", "out.tar.zst"), ("out.tar.zst", "airbundle.lock.json")] {
        assert_eq!(diff(&old.text(one), &new.text(other)), text, "locks and bundles are the same here");
        assert_eq!(diff(&old.text(one), &old.text(other)), "no difference\n");
    }
    let json = airbundle(["diff", &old.text(OUTPUT), &new.text(OUTPUT), "--json"]).ok().json();
    assert_eq!(json["images"].as_array().map(Vec::len), Some(6));
    airbundle(["diff", &old.text(LIST), &new.text(OUTPUT)]).failed(8, &["all.list"]);
}

// ---- Missing items ----

#[test]
fn keep_going_fetches_the_rest_and_allow_missing_packs_it() {
    let (list, content) = thirty_blobs();
    let list = format!("{list}{REGISTRY}/old/one:1\nhttps://{FILES}/missing\n");
    let mut content = content;
    let schema1 = br#"{"schemaVersion":1,"name":"old/one","tag":"1","fsLayers":[],"history":[]}"#;
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    content.manifest(&format!("{REGISTRY}/old/one"), "1", media_type, schema1.to_vec());
    let broken = |content: &Content| {
        Fake::start(content.clone(), |seen, reply| {
            // A layer of one image and a file are corrupt, which is detected only when they are fetched.
            let is_wrong = seen.path.contains("/team/app2/blobs/") && reply.body.len() > 1_000_000
                || seen.path.ends_with("/2") && !seen.is_probe();
            if is_wrong { Reply { body: vec![b'x'; reply.body.len()], ..reply } } else { reply }
        })
    };
    let fails = [
        ["cannot fetch `registry.example/old/one:1", "schema 1"],
        ["cannot fetch `https://files.example/missing`", "404"],
        ["cannot fetch `registry.example/team/app2:1", "twice"],
        ["cannot fetch `https://files.example/2`", "twice"],
    ];
    let has_all = |finished: &Finished| {
        for words in fails {
            let result = finished.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
            assert!(result, "no {words:?} in {finished:#?}");
        }
    };
    let job = PackJob::new(&list);
    let finished = job.pack_from(&broken(&content), &["--keep-going"]);
    assert_eq!(finished.code, Some(5), "{finished:#?}");
    has_all(&finished);
    assert!(!job.output().exists());

    // Everything else is packed.
    let fake = broken(&content);
    let finished = job.pack_from(&fake, &["--keep-going", "--allow-missing"]);
    assert_eq!(finished.code, Some(5), "{finished:#?}");
    has_all(&finished);
    assert!(finished.stderr.contains("does not contain 4 of the entries in the lists"), "{finished:#?}");
    let is_missing =
        |line: &&str| ["/app2:1", "/2 ", "/old/one", "/missing"].iter().any(|part| line.contains(part));
    let rest: String = list.split_inclusive('\n').filter(|line| !is_missing(line)).collect();
    assert_same(&job.bundle(), &uninterrupted(&rest, &content, &[]), "without what is missing");
    let listing = unbundle(["ls", &job.text(OUTPUT)]).ok().stdout;
    assert!(!listing.contains("app2") && listing.contains("app3"), "{listing}");

    // Items that become available cost only themselves.
    fs::remove_file(job.output()).expect("remove the bundle");
    job.pack_from(&broken(&content), &["--keep-going"]).failed(5, &["/app2"]);
    content.file(&format!("https://{FILES}/missing"), b"found".to_vec());
    let image = Image::new(Format::Oci, "linux/amd64", &[Layer::random(5, 100, Compression::None)]);
    content.image(&format!("{REGISTRY}/old/one:1"), &image);
    let gate = Arc::new(Gate::default());
    gate.open(UNLIMITED);
    job.pack_from(&Fake::behind(&gate, content.clone()), &[]).ok();
    assert_same(&job.bundle(), &uninterrupted(&list, &content, &[]), "complete");
    let mut twice: BTreeMap<String, usize> = BTreeMap::new();
    gate.transfers()
        .iter()
        .for_each(|transfer| *twice.entry(transfer.path.clone()).or_default() += transfer.sent);
    let fetched: usize = twice.values().sum();
    assert!(fetched < 25_000_000, "{fetched}: {twice:#?}");
    assert!(Path::new(&job.text(OUTPUT)).exists());
}

#[test]
fn keep_going_preserves_fetched_blobs_over_repeated_failures() {
    let url = |number: usize| format!("https://{FILES}/{number:02}");
    let (mut list, mut content) = (String::new(), Content::default());
    for number in 0..40 {
        let bytes = random_bytes(number as u64, 5_000_000);
        list = format!("{list}{} {}\n", url(number), sha256(&bytes));
        content.file(&url(number), bytes);
    }
    let without = |path: &'static str| {
        Fake::start(content.clone(), move |seen, reply| {
            if seen.path.ends_with(path) && !seen.is_probe() { Reply::status(404) } else { reply }
        })
    };
    let job = PackJob::new(&list);
    job.pack_from(&without("/02"), &["--keep-going"]).failed(4, &["/02"]);
    for _ in 0..2 {
        let fake = without("/02");
        job.pack_from(&fake, &["--keep-going"]).failed(4, &["/02"]);
        let fetched =
            fake.seen().iter().filter(|seen| seen.is_transfer() && !seen.path.ends_with("/02")).count();
        assert_eq!(fetched, 0);
    }
    // Without a network.
    let unavailable = Fake::start(content.clone(), |_, _| Reply::status(404));
    job.pack_from(&unavailable, &["--keep-going"]).failed(4, &["/00"]);
    let gate = Arc::new(Gate::default());
    gate.open(UNLIMITED);
    job.pack_from(&Fake::behind(&gate, content.clone()), &[]).ok();
    assert_eq!(sum(&gate.transfers()), 5_000_000, "the one that was not there");
    assert_same(&job.bundle(), &uninterrupted(&list, &content, &[]), "complete");
    assert_eq!(job.file_names(), [LIST, OUTPUT]);
}

#[test]
fn signed_bundle_resumes_to_the_same_bytes() {
    let (list, content) = thirty_blobs();
    let keys = tempdir().expect("create a temporary directory");
    let key = keys.path().join("test.key").display().to_string();
    airbundle(["keygen", "--no-passphrase", "-o", &key]).ok();
    let sign = ["--sign", &key];
    let expected = uninterrupted(&list, &content, &sign);
    let gate = Arc::new(Gate::default());
    let fake = Fake::behind(&gate, content);
    let job = PackJob::new(&list);
    gate.open(20_000_000);
    let child = job.start_from(&fake, &sign);
    thread::sleep(Duration::from_millis(300));
    gate.settle();
    kill(child);
    gate.open(UNLIMITED);
    let finished = job.pack_from(&fake, &[&sign[..], &["--json"]].concat()).ok();
    assert!(finished.json()["bytesResumed"].as_u64().is_some_and(|bytes| bytes > 0), "{finished:#?}");
    assert_same(&job.bundle(), &expected, "signed");
}
