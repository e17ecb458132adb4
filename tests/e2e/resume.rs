//! `airbundle pack` that is killed, that fails, that has older bundles, locks, or less than was asked for: what was
//! fetched once is not fetched again, and the bytes are those of an undisturbed run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::program::{Finished, airbundle, airbundle_command, unbundle};
use crate::support::fake::{Content, Fake, Gate, Reply, Transfer};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::{random_bytes, sha256};

const FILES: &str = "files.example";
const REGISTRY: &str = "registry.example";
const UNLIMITED: usize = usize::MAX / 2;

/// A directory with a list, and the bundle that is to come of it.
struct Job {
    directory: TempDir,
}

/// Comes to `fake` for everything.
fn to(fake: &Fake) -> Vec<String> {
    [&fake.mirror(FILES)[..], &fake.mirror(REGISTRY), &["--mirrors-only".to_owned()]].concat()
}

impl Job {
    fn new(list: &str) -> Self {
        let job = Self { directory: tempdir().expect("make a temporary directory") };
        job.list(list);
        job
    }

    fn list(&self, list: &str) {
        fs::write(self.path("all.list"), list).expect("write a list");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    fn args(&self, fake: &Fake, more: &[&str]) -> Vec<String> {
        let args = ["pack", &self.text("all.list"), "-o", &self.text("out.tar.zst"), "--retries", "0"];
        args.into_iter().chain(more.iter().copied()).map(str::to_owned).chain(to(fake)).collect()
    }

    fn run(&self, fake: &Fake, more: &[&str]) -> Finished {
        airbundle(self.args(fake, more))
    }

    fn start(&self, fake: &Fake, more: &[&str]) -> Child {
        let mut command = airbundle_command();
        command.args(self.args(fake, more)).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("start airbundle")
    }

    fn bundle(&self) -> Vec<u8> {
        if let Ok(bytes) = fs::read(self.path("out.tar.zst")) {
            return bytes;
        }
        let volumes = self.left().into_iter().filter(|name| name.starts_with("out.tar.zst.0"));
        volumes.flat_map(|name| fs::read(self.path(&name)).expect("read a volume")).collect()
    }

    fn left(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.directory.path()).expect("read a directory");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
    }
}

fn kill(mut child: Child) {
    child.kill().expect("kill");
    child.wait().expect("wait");
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

/// What an undisturbed run makes of a list.
fn undisturbed(list: &str, content: &Content, more: &[&str]) -> Vec<u8> {
    let job = Job::new(list);
    job.run(&Fake::honest(content.clone()), more).ok();
    job.bundle()
}

/// Thirty blobs of all sorts: small and large, of images and files, pinned and not.
fn thirty() -> (String, Content) {
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

/// What of them was still under way.
fn under_way(transfers: &[Transfer]) -> usize {
    transfers.iter().filter(|transfer| transfer.sent < transfer.len).map(|transfer| transfer.sent).sum()
}

#[test]
fn killed_at_every_point_of_thirty_blobs_it_fetches_nothing_twice_that_had_come_whole() {
    killed_at_every_point(30, &[]);
}

#[test]
fn the_same_with_volumes_and_recovery_data() {
    killed_at_every_point(18, &["--volume-size", "6MiB", "--recovery", "10%"]);
}

/// Kills it at `points` points, and lets it finish.
fn killed_at_every_point(points: usize, more: &[&str]) {
    let (list, content) = thirty();
    let expected = undisturbed(&list, &content, more);
    let gate = Arc::new(Gate::default());
    gate.open(UNLIMITED);
    let fake = Fake::behind(&gate, content.clone());
    let whole = Job::new(&list);
    whole.run(&fake, more).ok();
    let left = whole.left();
    let all = sum(&gate.transfers());
    assert!(all > 30_000_000, "{all}");
    thread::scope(|scope| {
        for worker in 0..3 {
            let (list, content, expected, left) = (&list, &content, &expected, &left);
            scope.spawn(move || {
                for point in (0..points).filter(|point| point % 3 == worker) {
                    let gate = Arc::new(Gate::default());
                    let fake = Fake::behind(&gate, content.clone());
                    let job = Job::new(list);
                    gate.open(all * point / points);
                    let child = job.start(&fake, &[more, &["--jobs", "4"]].concat());
                    thread::sleep(Duration::from_millis(300));
                    let first = gate.settle();
                    kill(child);
                    gate.open(UNLIMITED);
                    let _ = gate.settle(); // what the killed one had asked for
                    let finished = job.run(&fake, &[more, &["--json"]].concat()).ok();
                    let second = gate.transfers();
                    assert_same(&job.bundle(), expected, &format!("killed at {point} of {points}"));
                    let (fetched, allowed) = (sum(&first) + sum(&second), all + under_way(&first));
                    assert!(fetched <= allowed, "{point}: {fetched} > {allowed}: {first:#?} {second:#?}");
                    assert_eq!(job.left(), *left, "{point}");
                    let resumed = finished.json()["bytesResumed"].as_u64().expect("a number");
                    let whole = sum(&first) - under_way(&first);
                    assert!(resumed >= whole as u64, "{point}: {resumed} of {whole} are told: {finished:#?}");
                }
            });
        }
    });
}

/// Packs until `part` of all bytes have come, and is killed.
fn killed_at(job: &Job, content: &Content, part: (usize, usize)) {
    let gate = Arc::new(Gate::default());
    let fake = Fake::behind(&gate, content.clone());
    gate.open(UNLIMITED);
    Job::new(&fs::read_to_string(job.path("all.list")).expect("read the list")).run(&fake, &[]).ok();
    let all = sum(&gate.transfers());
    let gate = Arc::new(Gate::default());
    let fake = Fake::behind(&gate, content.clone());
    gate.open(all * part.0 / part.1);
    let child = job.start(&fake, &["--jobs", "3"]);
    thread::sleep(Duration::from_millis(300));
    gate.settle();
    kill(child);
    gate.open(UNLIMITED);
}

#[test]
fn what_came_before_its_turn_is_kept_however_much_it_is() {
    let url = format!("https://{FILES}/large");
    let bytes = random_bytes(8, 90_000_000);
    let list = format!("{url} {}\n", sha256(&bytes));
    let mut content = Content::default();
    content.file(&url, bytes);
    let expected = undisturbed(&list, &content, &[]);
    let job = Job::new(&list);
    // The beginning does not come, and all that fits behind it does.
    let fake = Fake::start(content.clone(), |seen, reply| {
        let is_first = seen.range().is_some_and(|(first, last)| first == 0 && last > 0);
        if is_first { Reply { pause: Duration::from_secs(30), ..reply } } else { reply }
    });
    let child = job.start(&fake, &["--jobs", "6"]);
    let mut before = 0;
    for _ in 0..120 {
        thread::sleep(Duration::from_millis(500));
        let len = fs::metadata(job.path("out.tar.zst.partial.spool")).map_or(0, |data| data.len());
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
    let child = job.start(&fake, &["--jobs", "6"]);
    assert!(ends(child, Duration::from_secs(120)), "it waits for ever, or fails");
    assert_same(&job.bundle(), &expected, "after a kill");
    assert!(sum(&gate.transfers()) < 56_000_000);
}

/// Whether it ends with success in this time. It ends in any case.
fn ends(mut child: Child, time: Duration) -> bool {
    for _ in 0..time.as_millis() / 100 {
        if let Some(status) = child.try_wait().expect("wait") {
            return status.success();
        }
        thread::sleep(Duration::from_millis(100));
    }
    kill(child);
    false
}

#[test]
fn where_the_lists_have_changed_meanwhile_what_is_there_is_taken_over() {
    let (list, mut content) = thirty();
    let job = Job::new(&list);
    killed_at(&job, &content, (2, 3));
    let image = Image::new(Format::Docker, "linux/amd64", &[Layer::random(7, 200_000, Compression::None)]);
    content.image(&format!("{REGISTRY}/a/new:1"), &image);
    let longer = format!("{list}{REGISTRY}/a/new:1\n");
    let expected = undisturbed(&longer, &content, &[]);
    job.list(&longer);
    let gate = Arc::new(Gate::default());
    gate.open(UNLIMITED);
    let finished = job.run(&Fake::behind(&gate, content), &["--json"]).ok();
    assert_same(&job.bundle(), &expected, "after a change of the list");
    let summary = finished.json();
    let [reused, fetched] =
        ["bytesReused", "bytesFetched"].map(|name| summary[name].as_u64().expect("a number"));
    assert!(reused > 15_000_000 && fetched < 20_000_000, "{summary}");
    assert!(sum(&gate.transfers()) < 20_000_000);
    assert_eq!(job.left(), ["all.list", "out.tar.zst"].map(str::to_owned).into());
}

#[test]
fn garbage_in_what_is_left_costs_what_it_hits_and_never_a_wrong_byte() {
    let (list, content) = thirty();
    let expected = undisturbed(&list, &content, &[]);
    for (name, damage) in [
        ("out.tar.zst.partial", 0.1),
        ("out.tar.zst.partial", 0.5),
        ("out.tar.zst.partial", 0.95),
        ("out.tar.zst.partial.spool", 0.001),
        ("out.tar.zst.partial.spool", 0.5),
    ] {
        let job = Job::new(&list);
        killed_at(&job, &content, (3, 4));
        let path = job.path(name);
        let mut bytes = fs::read(&path).expect("something is left");
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place"
        )]
        let place = (bytes.len() as f64 * damage) as usize;
        bytes[place..].iter_mut().take(5).for_each(|byte| *byte ^= 0x55);
        fs::write(&path, bytes).expect("write it back");
        job.run(&Fake::honest(content.clone()), &[]).ok();
        assert_same(&job.bundle(), &expected, &format!("{name} damaged at {damage}"));
    }
    for name in ["out.tar.zst.partial", "out.tar.zst.partial.spool", "out.tar.zst.partial.old"] {
        let job = Job::new(&list);
        fs::write(job.path(name), b"this was never a bundle".repeat(4000)).expect("write garbage");
        job.run(&Fake::honest(content.clone()), &[]).ok();
        assert_same(&job.bundle(), &expected, name);
        assert_eq!(job.left(), ["all.list", "out.tar.zst"].map(str::to_owned).into(), "{name}");
    }
}

#[test]
fn a_file_that_no_list_pins_and_that_is_another_one_by_now_comes_from_its_beginning() {
    let url = format!("https://{FILES}/large");
    let list = format!("https://{FILES}/a\n{url}\n");
    let content = |seed| {
        let mut content = Content::default();
        content.file(&format!("https://{FILES}/a"), b"a".to_vec());
        content.file(&url, random_bytes(seed, 20_000_000));
        content
    };
    let job = Job::new(&list);
    killed_at(&job, &content(1), (2, 3));
    job.run(&Fake::honest(content(2)), &[]).ok();
    assert_same(&job.bundle(), &undisturbed(&list, &content(2), &[]), "the other version");
}

#[test]
fn the_spool_stays_small_however_often_it_is_killed_and_whatever_is_taken_back() {
    const LIMIT: u64 = 110_000_000;
    const LEN: usize = 130_000_000;
    let url = |name: &str| format!("https://{FILES}/{name}");
    let (same, other) = (random_bytes(1, LEN), random_bytes(2, LEN));
    let list = format!("{} {}\n{}\n{} {}\n", url("0"), sha256(&same), url("1"), url("2"), sha256(&other));
    let mut content = Content::default();
    content.file(&url("0"), same.clone());
    content.file(&url("1"), same);
    content.file(&url("2"), other);
    let job = Job::new(&list);
    let fake = Fake::honest(content.clone());
    let spool = job.path("out.tar.zst.partial.spool");
    let mut child = job.start(&fake, &[]);
    let mut largest = 0;
    while child.try_wait().expect("wait").is_none() {
        largest = largest.max(fs::metadata(&spool).map_or(0, |data| data.len()));
        thread::sleep(Duration::from_millis(5));
    }
    assert!((1..LIMIT).contains(&largest), "{largest}");
    let expected = job.bundle();

    fs::remove_file(job.path("out.tar.zst")).expect("remove the bundle");
    let gate = Arc::new(Gate::default());
    let fake = Fake::behind(&gate, content);
    for part in 1..=8 {
        gate.open(part * LEN / 10);
        let child = job.start(&fake, &[]);
        thread::sleep(Duration::from_millis(300));
        gate.settle();
        kill(child);
        let len = fs::metadata(&spool).expect("it is there").len();
        assert!(len < LIMIT, "{len} after {part}");
    }
    gate.open(UNLIMITED);
    job.run(&fake, &[]).ok();
    assert_same(&job.bundle(), &expected, "killed again and again");
}

#[test]
fn a_server_that_goes_away_leaves_what_came_for_the_next_run() {
    let (list, content) = thirty();
    let expected = undisturbed(&list, &content, &[]);
    let job = Job::new(&list);
    let fake = Fake::start(content.clone(), |seen, reply| {
        if !seen.path.ends_with("/7") || seen.is_probe() {
            return reply;
        }
        thread::sleep(Duration::from_secs(2));
        Reply::status(404)
    });
    let finished = job.run(&fake, &[]).failed(4, &["https://files.example/7", "404"]);
    assert!(finished.stderr.contains("the same command goes on from there"), "{finished:#?}");
    assert!(!job.path("out.tar.zst").exists());
    // Still away, and before anything can be fetched: what is there stays there.
    let gone = Fake::start(content.clone(), |_, _| Reply::status(404));
    job.run(&gone, &[]).failed(4, &["404"]);
    let gate = Arc::new(Gate::default());
    gate.open(UNLIMITED);
    job.run(&Fake::behind(&gate, content), &[]).ok();
    assert_same(&job.bundle(), &expected, "after a failure");
    assert!(sum(&gate.transfers()) < 15_000_000, "most was there");
}

// ---- Older bundles -------------------------------------------------------------------------------------------------

/// Two releases that have most in common, with their lists.
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
fn an_older_bundle_spares_the_network_and_changes_no_byte() {
    let [(old_list, old_content), (list, content)] = releases();
    let expected = undisturbed(&list, &content, &[]);
    for (level, damage) in [("3", false), ("1", false), ("3", true)] {
        let old = Job::new(&old_list);
        old.run(&Fake::honest(old_content.clone()), &["--level", level]).ok();
        if damage {
            let mut bytes = old.bundle();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(old.path("out.tar.zst"), bytes).expect("write it back");
        }
        let job = Job::new(&list);
        let gate = Arc::new(Gate::default());
        gate.open(UNLIMITED);
        let fake = Fake::behind(&gate, content.clone());
        let finished = job.run(&fake, &["--reuse", &old.text("out.tar.zst"), "--json"]).ok();
        assert_same(&job.bundle(), &expected, &format!("level {level}, damaged: {damage}"));
        let (fetched, reused) = (sum(&gate.transfers()), finished.json()["bytesReused"].as_u64());
        if damage {
            assert!(finished.stdout.contains("is damaged in"), "{finished:#?}");
            assert!((6_000_000..16_000_000).contains(&fetched), "one blob came anew: {fetched}");
        } else {
            assert!(fetched < 1_000_000, "{fetched}");
            assert!(reused.is_some_and(|bytes| bytes > 40_000_000), "{finished:#?}");
        }
    }
    // In the place of the old one.
    let job = Job::new(&old_list);
    job.run(&Fake::honest(old_content), &[]).ok();
    job.list(&list);
    job.run(&Fake::honest(content), &["--reuse", &job.text("out.tar.zst")]).ok();
    assert_same(&job.bundle(), &expected, "over itself");
}

#[test]
fn an_older_bundle_of_another_level_changes_no_byte_where_only_some_frames_are_the_same() {
    // No level can do anything about the first frames.
    let mut bytes = random_bytes(1, 2 << 22);
    bytes.extend((0..400_000).flat_map(|number| format!("{number} and {}\n", number % 1000).into_bytes()));
    let url = format!("https://{FILES}/mixed");
    let list = format!("{url} {}\n", sha256(&bytes));
    let mut content = Content::default();
    content.file(&url, bytes);
    let old = Job::new(&list);
    old.run(&Fake::honest(content.clone()), &["--level", "1"]).ok();
    let job = Job::new(&list);
    job.run(&Fake::honest(content.clone()), &["--reuse", &old.text("out.tar.zst")]).ok();
    assert_same(&job.bundle(), &undisturbed(&list, &content, &[]), "from level 1");
}

#[test]
fn what_is_no_bundle_cannot_be_reused_and_says_so_before_anything_is_fetched() {
    let (list, content) = thirty();
    let job = Job::new(&list);
    let fake = Fake::honest(content);
    for (name, code) in [("all.list", 8), ("not-there", 6)] {
        job.run(&fake, &["--reuse", &job.text(name)]).failed(code, &["reuse", name]);
    }
    assert!(fake.seen().is_empty());
    assert_eq!(job.left(), ["all.list".to_owned()].into());
}

// ---- Locks ---------------------------------------------------------------------------------------------------------

fn lock(job: &Job, fake: &Fake) -> Finished {
    let args = ["lock", &job.text("all.list"), "-o", &job.text("airbundle.lock.json"), "--retries", "0"];
    airbundle(args.map(str::to_owned).into_iter().chain(to(fake)))
}

fn check(job: &Job, fake: &Fake, more: &[&str]) -> Finished {
    let args = ["lock", "--check", &job.text("airbundle.lock.json"), "--retries", "0"];
    let args = args.into_iter().chain(more.iter().copied()).map(str::to_owned);
    airbundle(args.chain(to(fake)))
}

#[test]
fn what_was_locked_packs_to_the_same_bytes_when_the_tags_have_moved() {
    let (list, content) = thirty();
    let expected = undisturbed(&list, &content, &[]);
    let job = Job::new(&list);
    let gate = Arc::new(Gate::default());
    gate.open(UNLIMITED);
    let fake = Fake::behind(&gate, content.clone());
    let finished = lock(&job, &fake).ok();
    assert!(finished.stderr.contains("10 files and 5 images: 35 blobs, 48.4 MB;"), "{finished:#?}");
    assert!(finished.stderr.contains("4 files (10.3 MB)"), "{finished:#?}");
    let fetched = sum(&gate.transfers());
    assert!((10_000_000..11_000_000).contains(&fetched), "only what no list pins: {fetched}");
    let text = fs::read_to_string(job.path("airbundle.lock.json")).expect("read the lock");
    let document: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(document["airbundleLock"], 1);
    lock(&job, &Fake::honest(content.clone())).ok();
    let again = fs::read_to_string(job.path("airbundle.lock.json")).expect("read the lock");
    assert_eq!(again, text, "the same everywhere");

    // A tag moves, and a file that no list pins stays.
    let mut moved = content.clone();
    let other = Image::new(Format::Oci, "linux/amd64", &[Layer::random(77, 1000, Compression::None)]);
    moved.image(&format!("{REGISTRY}/team/app1:1"), &other);
    let moved_fake = Fake::honest(moved);
    let mut args = job.args(&moved_fake, &[]);
    args[1] = job.text("airbundle.lock.json");
    airbundle(&args).ok();
    assert_same(&job.bundle(), &expected, "from the lock");
    assert!(moved_fake.seen_of("/manifests/").iter().all(|seen| seen.path.contains("/manifests/sha256:")));

    check(&job, &fake, &[]).ok();
    let finished = check(&job, &moved_fake, &[]);
    assert_eq!(finished.code, Some(13), "{finished:#?}");
    let told: Vec<_> = finished.stdout.lines().collect();
    let locked = document["images"][1]["digest"].as_str().expect("a digest");
    assert_eq!(told[0], format!("moved   {REGISTRY}/team/app1:1"));
    assert_eq!(told[1..3], [format!("        was {locked}"), format!("        is  {}", other.root.digest)]);
    assert_eq!(told[3], "1 of 15 have moved");
}

#[test]
fn a_file_that_has_changed_upstream_is_found_by_its_bytes_or_with_quick_by_its_size() {
    let url = |name: &str| format!("https://{FILES}/{name}");
    let content = |same_size: &[u8], size: &[u8]| {
        let mut content = Content::default();
        content.file(&url("bytes"), same_size.to_vec());
        content.file(&url("size"), size.to_vec());
        content.file(&url("same"), b"same".to_vec());
        content
    };
    let job = Job::new(&["bytes", "gone", "same", "size"].map(|name| url(name) + "\n").concat());
    let mut before = content(b"before", b"a");
    before.file(&url("gone"), b"here".to_vec());
    lock(&job, &Fake::honest(before)).ok();
    let now = Fake::honest(content(b"after!", b"longer"));
    for (more, expected) in
        [(&["--json"][..], vec!["bytes", "gone", "size"]), (&["--json", "--quick"], vec!["gone", "size"])]
    {
        let finished = check(&job, &now, more);
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
    // What has changed is not packed.
    let mut args = job.args(&now, &[]);
    args[1] = job.text("airbundle.lock.json");
    airbundle(&args).failed(5, &[&url("size"), "the lock"]);
    assert!(!job.path("out.tar.zst").exists());
}

#[test]
fn a_lock_that_was_changed_by_hand_or_is_none_is_refused_by_name() {
    let (list, content) = thirty();
    let job = Job::new(&list);
    let fake = Fake::honest(content);
    lock(&job, &fake).ok();
    let text = fs::read_to_string(job.path("airbundle.lock.json")).expect("read the lock");
    let document: Value = serde_json::from_str(&text).expect("JSON");
    let layer = document["images"][0]["manifests"][0]["blobs"][1]["digest"].as_str().expect("a digest");
    let root = document["images"][0]["digest"].as_str().expect("a digest");
    let zeros = format!("sha256:{}", "0".repeat(64));
    for (changed, code, words) in [
        (text.replace(layer, &zeros), 3, ["team/app0:1", "changed by hand"]),
        (
            text.replace("\"airbundleLock\": 1", "\"airbundleLock\": 2"),
            8,
            ["version 2", "airbundle.lock.json"],
        ),
        (text.replace("\"files\"", "\"fils\""), 3, ["no lock", "files"]),
        (text.replace(root, &zeros), 4, ["team/app0:1", "404"]),
        (text.replacen(root, &zeros, 1), 3, ["team/app0:1", "first manifest"]),
        (text[..text.len() / 2].to_owned(), 3, ["no lock", "EOF"]),
        (text.replace("https://files.example/1\"", "https://files.example/0\""), 3, ["/0`", "twice"]),
        (
            text.replace("https://files.example/1\"", "https://files.example:443/1\""),
            3,
            [":443/1`", "not a normalized URL"],
        ),
    ] {
        fs::write(job.path("airbundle.lock.json"), changed).expect("write the lock");
        let mut args = job.args(&fake, &[]);
        args[1] = job.text("airbundle.lock.json");
        airbundle(&args).failed(code, &words);
        assert!(!job.path("out.tar.zst").exists());
        let code = check(&job, &fake, &["--quick"]).code;
        assert!(code.is_some_and(|code| code != 101), "{code:?}");
    }
    fs::write(job.path("airbundle.lock.json"), &text).expect("write the lock");
    let mut args = job.args(&fake, &["--platform", "linux/arm64"]);
    args[1] = job.text("airbundle.lock.json");
    airbundle(&args).failed(2, &["--platform", "lock"]);
    args.insert(1, job.text("all.list"));
    airbundle(&args).failed(2, &["airbundle.lock.json", "stands alone"]);
    check(&job, &fake, &["--quick"]).ok();
    airbundle(["lock", "--check", &job.text("all.list")]).failed(3, &["all.list", "no lock"]);
    airbundle(["lock", "--check", &job.text("missing")]).failed(6, &["missing"]);
}

#[test]
fn the_difference_between_two_locks_or_bundles_names_what_came_and_went() {
    let [(old_list, old_content), (list, content)] = releases();
    let (old, new) = (Job::new(&old_list), Job::new(&list));
    old.run(&Fake::honest(old_content), &["--write-lock", &old.text("airbundle.lock.json")]).ok();
    new.run(&Fake::honest(content.clone()), &[]).ok();
    lock(&new, &Fake::honest(content)).ok();
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
    let json = airbundle(["diff", &old.text("out.tar.zst"), &new.text("out.tar.zst"), "--json"]).ok().json();
    assert_eq!(json["images"].as_array().map(Vec::len), Some(6));
    airbundle(["diff", &old.text("all.list"), &new.text("out.tar.zst")]).failed(8, &["all.list"]);
}

// ---- What cannot be fetched ----------------------------------------------------------------------------------------

#[test]
fn keep_going_fetches_all_the_rest_and_allow_missing_makes_a_bundle_of_it() {
    let (list, content) = thirty();
    let list = format!("{list}{REGISTRY}/old/one:1\nhttps://{FILES}/missing\n");
    let mut content = content;
    let schema1 = br#"{"schemaVersion":1,"name":"old/one","tag":"1","fsLayers":[],"history":[]}"#;
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    content.manifest(&format!("{REGISTRY}/old/one"), "1", media_type, schema1.to_vec());
    let broken = |content: &Content| {
        Fake::start(content.clone(), |seen, reply| {
            // A layer of one image and a file come wrong: that is found out only when they are fetched.
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
    let says_all = |finished: &Finished| {
        for words in fails {
            let told = finished.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
            assert!(told, "no {words:?} in {finished:#?}");
        }
    };
    let job = Job::new(&list);
    let finished = job.run(&broken(&content), &["--keep-going"]);
    assert_eq!(finished.code, Some(5), "{finished:#?}");
    says_all(&finished);
    assert!(!job.path("out.tar.zst").exists());

    // All the rest is there.
    let fake = broken(&content);
    let finished = job.run(&fake, &["--keep-going", "--allow-missing"]);
    assert_eq!(finished.code, Some(5), "{finished:#?}");
    says_all(&finished);
    assert!(finished.stderr.contains("is without 4 of what the lists name"), "{finished:#?}");
    let is_missing =
        |line: &&str| ["/app2:1", "/2 ", "/old/one", "/missing"].iter().any(|part| line.contains(part));
    let rest: String = list.split_inclusive('\n').filter(|line| !is_missing(line)).collect();
    assert_same(&job.bundle(), &undisturbed(&rest, &content, &[]), "without what is missing");
    let listing = unbundle(["ls", &job.text("out.tar.zst")]).ok().stdout;
    assert!(!listing.contains("app2") && listing.contains("app3"), "{listing}");

    // What comes right in the end costs only that.
    fs::remove_file(job.path("out.tar.zst")).expect("remove the bundle");
    job.run(&broken(&content), &["--keep-going"]).failed(5, &["/app2"]);
    content.file(&format!("https://{FILES}/missing"), b"found".to_vec());
    let image = Image::new(Format::Oci, "linux/amd64", &[Layer::random(5, 100, Compression::None)]);
    content.image(&format!("{REGISTRY}/old/one:1"), &image);
    let gate = Arc::new(Gate::default());
    gate.open(UNLIMITED);
    job.run(&Fake::behind(&gate, content.clone()), &[]).ok();
    assert_same(&job.bundle(), &undisturbed(&list, &content, &[]), "complete");
    let mut twice: BTreeMap<String, usize> = BTreeMap::new();
    gate.transfers()
        .iter()
        .for_each(|transfer| *twice.entry(transfer.path.clone()).or_default() += transfer.sent);
    let fetched: usize = twice.values().sum();
    assert!(fetched < 25_000_000, "{fetched}: {twice:#?}");
    assert!(Path::new(&job.text("out.tar.zst")).exists());
}

#[test]
fn what_a_run_that_keeps_going_has_fetched_stays_however_often_it_fails() {
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
    let job = Job::new(&list);
    job.run(&without("/02"), &["--keep-going"]).failed(4, &["/02"]);
    for _ in 0..2 {
        let fake = without("/02");
        job.run(&fake, &["--keep-going"]).failed(4, &["/02"]);
        let fetched =
            fake.seen().iter().filter(|seen| seen.is_transfer() && !seen.path.ends_with("/02")).count();
        assert_eq!(fetched, 0);
    }
    // Without any network.
    let gone = Fake::start(content.clone(), |_, _| Reply::status(404));
    job.run(&gone, &["--keep-going"]).failed(4, &["/00"]);
    let gate = Arc::new(Gate::default());
    gate.open(UNLIMITED);
    job.run(&Fake::behind(&gate, content.clone()), &[]).ok();
    assert_eq!(sum(&gate.transfers()), 5_000_000, "the one that was not there");
    assert_same(&job.bundle(), &undisturbed(&list, &content, &[]), "complete");
    assert_eq!(job.left(), ["all.list", "out.tar.zst"].map(str::to_owned).into());
}

#[test]
fn a_signed_bundle_goes_on_where_it_was_with_the_same_bytes() {
    let (list, content) = thirty();
    let keys = tempdir().expect("make a temporary directory");
    let key = keys.path().join("test.key").display().to_string();
    airbundle(["keygen", "--no-passphrase", "-o", &key]).ok();
    let sign = ["--sign", &key];
    let expected = undisturbed(&list, &content, &sign);
    let gate = Arc::new(Gate::default());
    let fake = Fake::behind(&gate, content);
    let job = Job::new(&list);
    gate.open(20_000_000);
    let child = job.start(&fake, &sign);
    thread::sleep(Duration::from_millis(300));
    gate.settle();
    kill(child);
    gate.open(UNLIMITED);
    let finished = job.run(&fake, &[&sign[..], &["--json"]].concat()).ok();
    assert!(finished.json()["bytesResumed"].as_u64().is_some_and(|bytes| bytes > 0), "{finished:#?}");
    assert_same(&job.bundle(), &expected, "signed");
}
