//! Bundles in volumes on several drives, and recovery data for failing media.

use airbundle::bundle::read::discover;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use airbundle::bundle::format::skippable::VOLUME_MAGIC;
use airbundle::bundle::read::frame_reader::{Frame, FrameReader, buffers};
use tempfile::tempdir;

use crate::program::{Finished, airbundle, run, unbundle, unbundle_command};
use crate::serve::{SharedDirectory, unpack, world, write_list};
use crate::support::tree::Tree;
use crate::support::web::Web;
use crate::support::{random_bytes, sha256};

const DAMAGED: i32 = 7;
const INCOMPLETE: i32 = 16;
const COMMAND: i32 = 18;

/// The world's bundle in volumes, with and without recovery data. Made once.
pub(crate) struct VolumeSets {
    shared: SharedDirectory,
    pub(crate) names: Vec<String>,
}

pub(crate) fn volume_sets() -> &'static VolumeSets {
    static CARRIED: LazyLock<VolumeSets> = LazyLock::new(|| {
        let world = world();
        let shared = SharedDirectory::new();
        for (directory, options) in [("plain", &[][..]), ("safe", &["--recovery", "5%"])] {
            let directory = shared.path.join(directory);
            fs::create_dir(&directory).unwrap();
            let options = [&["--volume-size", "7MiB"], options].concat();
            world.pack(&world.lists, &directory.join("all.tar.zst"), &options).ok();
        }
        let names = volumes(&shared.path.join("plain"));
        assert!(names.len() >= 6, "{names:?}");
        VolumeSets { shared, names }
    });
    &CARRIED
}

impl VolumeSets {
    pub(crate) fn plain(&self) -> PathBuf {
        self.shared.path.join("plain")
    }

    pub(crate) fn with_recovery(&self) -> PathBuf {
        self.shared.path.join("safe")
    }
}

/// Returns the names of all volumes in a directory.
pub(crate) fn volumes(directory: &Path) -> Vec<String> {
    let names =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        names.filter(|name| name.contains(".tar.zst.") && !name.starts_with('.')).collect();
    names.sort();
    names
}

/// Copies the files of a directory that are not hidden by hard links: to change a file, replace it.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        fs::hard_link(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

pub(crate) fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

fn run_verb(run_verb: &str, paths: &[&Path]) -> Finished {
    unbundle([run_verb.as_ref()].into_iter().chain(paths.iter().map(|path| path.as_os_str())))
}

/// Asserts that every visible file equals one of the world's site, byte for byte.
pub(crate) fn assert_visible_files_intact(site: &Path) {
    if !site.exists() {
        return;
    }
    let right = Tree::of(&world().site);
    for (path, entry) in &Tree::of(site).0 {
        let is_own = path.starts_with(".unbundle")
            || path == Path::new("site.json")
            || path.to_string_lossy().contains("unbundle-in-progress");
        assert!(is_own || right.0.get(path) == Some(entry), "{}", path.display());
    }
}

fn shell(directory: &Path, script: &str) -> String {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn volumes_are_readable_by_cat_sha256sum_and_unbundle() {
    let world = world();
    for directory in [volume_sets().plain(), volume_sets().with_recovery()] {
        for name in volumes(&directory) {
            assert!(fs::metadata(directory.join(&name)).unwrap().len() <= 7 << 20, "{name} is too large");
        }
        shell(&directory, "sha256sum --strict -c SHA256SUMS");
        shell(&directory, "cat all.tar.zst.* | zstd -qt");
        let joined = shell(&directory, "cat all.tar.zst.* | tar --zstd -tf - | sort");
        let whole = shell(world.bundle.parent().unwrap(), "tar --zstd -tf all.tar.zst | sort");
        assert_eq!(joined, whole);
        let identity =
            |paths: &[&Path]| run_verb("verify", paths).ok().stdout.lines().nth(1).unwrap().to_owned();
        let first = directory.join("all.tar.zst.001");
        assert_eq!(identity(&[&directory]), identity(&[&world.bundle]));
        assert_eq!(identity(&[&first]), identity(&[&directory.join("all.tar.zst")]));
        let temporary = tempdir().unwrap();
        // Two read-only drives: nothing is written except to the site.
        let (one, two, site) =
            (temporary.path().join("one"), temporary.path().join("two"), temporary.path().join("site"));
        copy(&directory, &one);
        fs::create_dir(&two).unwrap();
        for name in volumes(&directory).iter().skip(2).step_by(2) {
            fs::rename(one.join(name), two.join(name)).unwrap();
        }
        let before = (Tree::of(&one), Tree::of(&two));
        unbundle(["unpack".as_ref(), two.as_os_str(), one.as_os_str(), site.as_os_str()]).ok();
        assert_eq!(before, (Tree::of(&one), Tree::of(&two)));
        unpack(&world.bundle, &site).ok();
        assert_eq!(Tree::of(&site).difference(&Tree::of(&world.site)), Vec::<String>::new());
        // The same from a pipe.
        let script = format!("cat all.tar.zst.* | {} verify -", env!("CARGO_BIN_EXE_unbundle"));
        assert!(shell(&directory, &script).starts_with("intact:"));
    }
}

#[test]
fn missing_volume_is_named_and_nothing_is_written() {
    for directory in [volume_sets().plain(), volume_sets().with_recovery()] {
        for (number, name) in volumes(&directory).iter().enumerate() {
            let temporary = tempdir().unwrap();
            let (drive, site) = (temporary.path().join("stick"), temporary.path().join("site"));
            copy(&directory, &drive);
            fs::remove_file(drive.join(name)).unwrap();
            if number % 2 == 0 {
                fs::remove_file(drive.join("SHA256SUMS")).unwrap();
            }
            run_verb("unpack", &[&drive, &site]).failed(INCOMPLETE, &[name]);
            assert!(!site.exists());
            let finished = run_verb("verify", &[&drive]);
            assert_ne!(finished.code, Some(0), "{finished:#?}");
            assert!(
                format!("{}{}", finished.stdout, finished.stderr).contains(name.as_str()),
                "{finished:#?}"
            );
            // The listing is in the first volume.
            let listed = run_verb("ls", &[&drive]);
            assert_eq!(listed.code == Some(0), number > 0, "{listed:#?}");
        }
    }
}

#[test]
fn renamed_volumes_are_identified_by_their_label_and_read() {
    let directory = volume_sets().plain();
    for pair in volume_sets().names.windows(2) {
        let temporary = tempdir().unwrap();
        let (drive, site) = (temporary.path().join("stick"), temporary.path().join("site"));
        copy(&directory, &drive);
        let (one, two) = (drive.join(&pair[0]), drive.join(&pair[1]));
        fs::rename(&one, drive.join("other")).unwrap();
        fs::rename(&two, &one).unwrap();
        fs::rename(drive.join("other"), &two).unwrap();
        let finished = run_verb("unpack", &[&drive, &site]).ok();
        for (name, is) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
            let result = format!("the volume `{name}` was renamed: its label says `{is}`");
            assert!(finished.stderr.contains(&result), "{finished:#?}");
        }
        unpack(&world().bundle, &site).ok();
        assert_eq!(Tree::of(&site).difference(&Tree::of(&world().site)), Vec::<String>::new());
    }
}

#[test]
fn duplicate_truncated_or_unrelated_volume_is_named() {
    let world = world();
    let directory = volume_sets().plain();
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    // The same content packed with another level: a valid volume of another bundle.
    world.pack(&world.lists, &path("all.tar.zst"), &["--volume-size", "7MiB", "--level", "1"]).ok();
    let names = &volume_sets().names;
    for (number, name) in names.iter().enumerate() {
        let next = &names[(number + 1) % names.len()];
        let doubled = path("doubled");
        copy(&directory, &doubled);
        fs::remove_file(doubled.join(next)).unwrap();
        fs::hard_link(doubled.join(name), doubled.join(next)).unwrap();
        let finished = run_verb("unpack", &[&doubled, &path("site")]).failed(INCOMPLETE, &[next, "missing"]);
        assert!(!path("site").exists(), "{finished:#?}");
        let result = format!("the volume `{next}` is a duplicate of `{name}`");
        let finished = run_verb("verify", &[&doubled]);
        assert!(format!("{}{}", finished.stdout, finished.stderr).contains(&result), "{finished:#?}");
        fs::remove_dir_all(doubled).unwrap();

        let cut = path("cut");
        copy(&directory, &cut);
        change(&cut.join(name), |bytes| bytes.truncate(bytes.len() - 1));
        run_verb("unpack", &[&cut, &path("site")]).failed(INCOMPLETE, &[name, "truncated"]);
        assert!(!path("site").exists());
        fs::remove_dir_all(cut).unwrap();

        let foreign = path("foreign");
        copy(&directory, &foreign);
        fs::remove_file(foreign.join(name)).unwrap();
        fs::copy(path(name), foreign.join(name)).unwrap();
        let words = ["none of which is complete", name, "missing"];
        run_verb("unpack", &[&foreign, &path("site")]).failed(INCOMPLETE, &words);
        // A volume is missing of the bundle of the named one.
        run_verb("unpack", &[&foreign.join(next), &path("site")]).failed(INCOMPLETE, &[name, "missing"]);
        let finished = run_verb("verify", &[&foreign.join(next)]);
        let result = format!("the volume `{name}` belongs to another bundle");
        assert!(format!("{}{}", finished.stdout, finished.stderr).contains(&result), "{finished:#?}");
        assert!(!path("site").exists());
        fs::remove_dir_all(foreign).unwrap();
    }
}

#[test]
fn damage_report_names_volume_and_offset() {
    let directory = volume_sets().plain();
    let temporary = tempdir().unwrap();
    for (number, name) in volume_sets().names.iter().enumerate() {
        let (drive, site) = (temporary.path().join("stick"), temporary.path().join("site"));
        copy(&directory, &drive);
        // In the label, and in the middle.
        let at = if number % 2 == 0 { 30 } else { 2_000_000 };
        change(&drive.join(name), |bytes| {
            let middle = bytes.len() / 2;
            bytes[at.min(middle)] ^= 0x10;
        });
        let finished = run_verb("verify", &[&drive]);
        assert!(format!("{}{}", finished.stdout, finished.stderr).contains(name.as_str()), "{finished:#?}");
        let unpacked = run_verb("unpack", &[&drive, &site]);
        assert!(finished.code != Some(0) || unpacked.code == Some(0), "{finished:#?} {unpacked:#?}");
        assert_visible_files_intact(&site);
        fs::remove_dir_all(drive).unwrap();
        let _ = fs::remove_dir_all(site);
    }
}

#[test]
fn volume_label_has_bundle_number_and_start_offset() {
    let directory = volume_sets().with_recovery();
    let volume_set = discover::find(std::slice::from_ref(&directory)).unwrap();
    let mut sets = BTreeSet::new();
    let mut end = 0;
    for (number, (name, volume)) in volumes(&directory).iter().zip(volume_set.volumes()).enumerate() {
        let bytes = fs::read(directory.join(name)).unwrap();
        let buffers = buffers();
        let mut frames = FrameReader::new(&bytes[..], 0, &buffers);
        let label: serde_json::Value = loop {
            if let Some(Frame::Skippable { magic: VOLUME_MAGIC, payload }) = frames.next_frame().unwrap() {
                break serde_json::from_slice(&payload).unwrap();
            }
        };
        assert_eq!(label["number"], number + 1);
        assert_eq!(label["offset"], end);
        assert_eq!(volume.start, end);
        end += bytes.len() as u64;
        sets.insert(label["set"].as_str().unwrap().to_owned());
    }
    assert_eq!(sets.len(), 1);
}

#[test]
fn drives_may_be_connected_one_after_the_other() {
    let directory = volume_sets().plain();
    let temporary = tempdir().unwrap();
    let (drive, site) = (temporary.path().join("stick"), temporary.path().join("site"));
    fs::create_dir(&drive).unwrap();
    let names = &volume_sets().names;
    let bring = |name: &str| {
        for other in volumes(&drive) {
            fs::remove_file(drive.join(other)).unwrap();
        }
        fs::hard_link(directory.join(name), drive.join(name)).unwrap();
    };
    bring(&names[0]);
    let mut command = unbundle_command();
    command.args(["unpack", "--wait"]).arg(&drive).arg(&site).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut printed = String::new();
    let mut stderr = child.stderr.take().unwrap();
    for (number, name) in names.iter().enumerate().skip(1) {
        wait_for(&mut stderr, &mut printed, &format!("connect the media with `{name}`"));
        // No volume is open: its drive can be removed.
        let open = fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
        let open = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        assert!(!open.into_iter().any(|path| path.starts_with(&drive)), "{number}");
        // Once with a wrong one in between.
        if number == 2 {
            bring(&names[0]);
            fs::rename(drive.join(&names[0]), drive.join(name)).unwrap();
            stdin.write_all(b"\n").unwrap();
            wait_for(
                &mut stderr,
                &mut printed,
                &format!("the volume `{name}` was renamed: its label says `{}`", names[0]),
            );
        }
        bring(name);
        stdin.write_all(b"\n").unwrap();
    }
    assert!(child.wait().unwrap().success(), "{printed}");
    unpack(&world().bundle, &site).ok();
    assert_eq!(Tree::of(&site).difference(&Tree::of(&world().site)), Vec::<String>::new());
    // No terminal to prompt for another drive.
    bring(&names[0]);
    let finished =
        run(unbundle_command().args(["unpack", "--wait"]).arg(&drive).arg(temporary.path().join("new")));
    finished.failed(INCOMPLETE, &[&names[1], "missing"]);
}

/// Reads until `words` were printed.
fn wait_for(from: &mut impl std::io::Read, printed: &mut String, words: &str) {
    let mut buffer = [0; 1000];
    let start = printed.len();
    while !printed[start..].contains(words) {
        let len = from.read(&mut buffer).unwrap();
        assert!(len > 0, "it ended before it said {words:?}: {printed}");
        printed.push_str(&String::from_utf8_lossy(&buffer[..len]));
    }
}

#[test]
fn volumes_are_handed_over_as_they_fill_so_the_disk_never_holds_the_entire_bundle() {
    let world = world();
    let temporary = tempdir().unwrap();
    let (output, cloud) = (temporary.path().join("output"), temporary.path().join("cloud"));
    fs::create_dir(&output).unwrap();
    fs::create_dir(&cloud).unwrap();
    // Written one at a time; the command records what else is on the disk.
    let command = format!(
        r#"du -sb --apparent-size {0} >>{1}/../usage; [ "$1" = "$AIRBUNDLE_VOLUME" ]; mv "$1" {1}/"#,
        output.display(),
        cloud.display()
    );
    let options = ["--volume-size", "7MiB", "--recovery", "5%", "--on-volume", &command, "--json"];
    let summary = world.pack(&world.lists, &output.join("all.tar.zst"), &options).ok().json();
    assert_eq!(fs::read_dir(&output).unwrap().count(), 0);
    // The same bytes as without a command.
    let with_recovery = volume_sets().with_recovery();
    assert_eq!(
        fs::read(cloud.join("SHA256SUMS")).unwrap(),
        fs::read(with_recovery.join("SHA256SUMS")).unwrap()
    );
    shell(&cloud, "sha256sum --strict -c SHA256SUMS");
    let result: Vec<_> =
        summary["volumes"].as_array().unwrap().iter().map(|volume| volume["digest"].clone()).collect();
    let names = volumes(&cloud);
    let digests: Vec<_> = names.iter().map(|name| sha256(&fs::read(cloud.join(name)).unwrap())).collect();
    assert_eq!(result, digests);
    run_verb("verify", &[&cloud]).ok();
    let usage = fs::read_to_string(temporary.path().join("usage")).unwrap();
    assert_eq!(usage.lines().count(), names.len() + 1, "each of them, and the list");

    // A failing command stops the run, and a re-run without a command writes all volumes.
    let again = temporary.path().join("again");
    fs::create_dir(&again).unwrap();
    let mut options = vec!["--volume-size", "7MiB", "--recovery", "5%", "--on-volume"];
    options.push(r#"case "$1" in *.003) exit 9 ;; esac; rm "$1""#);
    let finished = world.pack(&world.lists, &again.join("all.tar.zst"), &options);
    finished.failed(COMMAND, &["all.tar.zst.003", "exit status: 9"]);
    world.pack(&world.lists, &again.join("all.tar.zst"), &options[..4]).ok();
    assert_eq!(
        fs::read(again.join("SHA256SUMS")).unwrap(),
        fs::read(with_recovery.join("SHA256SUMS")).unwrap()
    );
    assert_eq!(volumes(&again).len(), names.len());
    shell(&again, "sha256sum --strict -c SHA256SUMS");
    assert!(fs::read_dir(&again).unwrap().all(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        !name.contains("partial")
    }));
}

/// The directories of a run that hands over volumes, and the log of its command.
struct HandOver {
    temporary: tempfile::TempDir,
    command: String,
}

impl HandOver {
    fn new() -> Self {
        let temporary = tempdir().unwrap();
        for name in ["output", "cloud"] {
            fs::create_dir(temporary.path().join(name)).unwrap();
        }
        // Fails for the volume with the number in `fail`.
        let path = temporary.path().display();
        let command = format!(
            r#"echo "${{1##*/}}" >>{path}/log; case "$1" in *."$(cat {path}/fail)") exit 9 ;; esac; mv "$1" {path}/cloud/"#
        );
        Self { temporary, command }
    }

    fn pack(&self, fail: &str, command: &str) -> Finished {
        let world = world();
        fs::write(self.temporary.path().join("fail"), fail).unwrap();
        let options = ["--volume-size", "7MiB", "--on-volume", command];
        world.pack(&world.lists, &self.output(), &options)
    }

    fn output(&self) -> PathBuf {
        self.temporary.path().join("output/all.tar.zst")
    }

    /// Returns the files that were handed over since the last call, in order.
    fn take_log(&self) -> Vec<String> {
        let path = self.temporary.path().join("log");
        let log = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, "").unwrap();
        log.lines().map(str::to_owned).collect()
    }

    /// Asserts that the command has got the same volumes as without a command, and that nothing else is left.
    fn assert_complete(&self) {
        let (cloud, plain) = (self.temporary.path().join("cloud"), volume_sets().plain());
        assert_eq!(volumes(&cloud), volumes(&plain));
        shell(&cloud, "sha256sum --strict -c SHA256SUMS");
        assert_eq!(fs::read(cloud.join("SHA256SUMS")).unwrap(), fs::read(plain.join("SHA256SUMS")).unwrap());
        let output = self.temporary.path().join("output");
        assert_eq!(fs::read_dir(output).unwrap().count(), 0);
    }
}

#[test]
fn volumes_that_the_command_accepted_are_not_handed_over_again() {
    let runs = HandOver::new();
    let all: Vec<String> = volume_sets().names.clone();
    let last = format!("{:03}", all.len());
    // While the bundle is written; at the first volume, which is complete last; and at the last one.
    let mut handed_over: Vec<String> = Vec::new();
    for fail in ["003", "001", &last] {
        runs.pack(fail, &runs.command).failed(COMMAND, &["run the same command to resume"]);
        let mut log = runs.take_log();
        assert_eq!(log.pop().unwrap(), format!("all.tar.zst.{fail}"));
        handed_over.extend(log);
    }
    let finished = runs.pack("none", &runs.command).ok();
    assert!(finished.stderr.contains("are not handed over again"), "{}", finished.stderr);
    handed_over.extend(runs.take_log());
    let lists = handed_over.iter().filter(|name| *name == "SHA256SUMS").count();
    assert_eq!(lists, 1, "{handed_over:?}");
    handed_over.retain(|name| name != "SHA256SUMS");
    handed_over.sort();
    assert_eq!(handed_over, all, "each of them once");
    runs.assert_complete();
    // A complete bundle is packed again like a new one.
    runs.pack("none", &runs.command).ok();
    assert_eq!(runs.take_log().len(), all.len() + 1);
}

#[test]
fn volumes_are_handed_over_again_if_they_or_the_command_changed() {
    let runs = HandOver::new();
    let all = volume_sets().names.len();
    runs.pack("004", &runs.command).failed(COMMAND, &["all.tar.zst.004"]);
    assert_eq!(runs.take_log().len(), 3);
    // As if the content of volume 2 had changed upstream.
    let record = runs.temporary.path().join("output/all.tar.zst.partial.accepted");
    let text = fs::read_to_string(&record).unwrap();
    let line = text.lines().find(|line| line.starts_with("2 ")).unwrap();
    let (front, _) = line.rsplit_once(' ').unwrap();
    let other = format!("{front} {}", sha256(b"other").trim_start_matches("sha256:"));
    fs::write(&record, text.replace(line, &other)).unwrap();
    let finished = runs.pack("004", &runs.command);
    finished.failed(COMMAND, &["`", "all.tar.zst.002` differs from the volume", "discard the earlier one"]);
    assert_eq!(runs.take_log(), ["all.tar.zst.002", "all.tar.zst.004"]);
    // Another command has accepted nothing.
    let finished = runs.pack("none", &format!("{} # other", runs.command)).ok();
    assert!(finished.stderr.contains("accepted 2 volumes, and the lists"), "{}", finished.stderr);
    assert_eq!(runs.take_log().len(), all + 1);
    runs.assert_complete();
}

#[test]
fn large_multi_volume_bundle_needs_disk_space_for_a_few_volumes_only() {
    let world = world();
    let temporary = tempdir().unwrap();
    let root = temporary.path().join("web");
    fs::create_dir_all(root.join("big.example")).unwrap();
    let mut lines = Vec::new();
    for number in 0..50 {
        let bytes = random_bytes(number, 6_000_000);
        lines.push(format!("https://big.example/{number} {}", sha256(&bytes)));
        fs::write(root.join(format!("big.example/{number}")), &bytes).unwrap();
    }
    let web = Web::start(&root);
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let list = write_list(temporary.path(), &lines);
    let output = temporary.path().join("output");
    fs::create_dir(&output).unwrap();
    let usage = temporary.path().join("usage");
    let command = format!(r#"du -s --block-size=1 {} >>{}; rm "$1""#, output.display(), usage.display());
    let mirror = format!("big.example=http://{}/big.example", web.addr());
    let options = ["--volume-size", "6MiB", "--on-volume", &command, "--mirror", &mirror, "--jobs", "2"];
    world.pack(&list, &output.join("big.tar.zst"), &options).ok();
    let most = fs::read_to_string(usage).unwrap();
    let most =
        most.lines().map(|line| line.split('\t').next().unwrap().parse::<u64>().unwrap()).max().unwrap();
    // The spool and a few volumes.
    assert!(most < 150_000_000, "{most} bytes of 300 million were on the disk at once");
}

#[test]
fn repacking_with_fewer_volumes_removes_old_ones_and_keeps_other_checksum_lists() {
    let world = world();
    let temporary = tempdir().unwrap();
    let directory = temporary.path();
    fs::write(directory.join("SHA256SUMS"), format!("{}  other.tar.zst.001\n", "0".repeat(64))).unwrap();
    world.pack(&world.lists, &directory.join("all.tar.zst"), &["--volume-size", "7MiB"]).ok();
    world.pack(&world.lists, &directory.join("all.tar.zst"), &["--volume-size", "12MiB"]).ok();
    let names = volumes(directory);
    assert!(names.len() < volume_sets().names.len(), "{names:?}");
    run_verb("verify", &[&directory.join("all.tar.zst.001")]).ok();
    let sums = fs::read_to_string(directory.join("SHA256SUMS")).unwrap();
    let listed: Vec<_> = sums.lines().map(|line| &line[66..]).collect();
    let expected: Vec<_> =
        ["other.tar.zst.001"].into_iter().chain(names.iter().map(String::as_str)).collect();
    assert_eq!(listed, expected);
}

#[test]
fn volume_size_below_the_minimum_is_refused_naming_the_minimum() {
    let world = world();
    let temporary = tempdir().unwrap();
    let output = temporary.path().join("all.tar.zst");
    for redundancy in ["", "0.1%", "5%", "100%"] {
        let mut options = vec!["--volume-size", "2MiB"];
        if !redundancy.is_empty() {
            options.extend(["--recovery", redundancy]);
        }
        let finished = world.pack(&world.lists, &output, &options).failed(2, &["too small", "at least"]);
        let needed = finished.stderr.split("at least ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        options[1] = &needed;
        world.pack(&world.lists, &output, &options).ok();
        run_verb("verify", &[temporary.path()]).ok();
    }
    for (wrong, words) in
        [("--volume-size=1900", "too small"), ("--volume-size=bluray", "fat32"), ("--recovery=5", "5%")]
    {
        world.pack(&world.lists, &output, &[wrong]).failed(2, &[words]);
    }
}

#[test]
fn directory_argument_must_hold_exactly_one_bundle() {
    let temporary = tempdir().unwrap();
    let directory = temporary.path();
    run_verb("ls", &[directory]).failed(8, &["no bundle in"]);
    copy(&volume_sets().plain(), directory);
    fs::copy(&world().bundle, directory.join("other.tar.zst")).unwrap();
    run_verb("ls", &[directory]).failed(2, &["several bundles", "other.tar.zst", "all.tar.zst.001"]);
    run_verb("ls", &[&directory.join("all.tar.zst.002")]).ok();
    run_verb("ls", &[&directory.join("other.tar.zst")]).ok();
}

/// The world's bundle in one file with recovery data. Made once.
pub(crate) fn file_with_recovery() -> &'static Path {
    static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
        let path = volume_sets().shared.path.join("one.tar.zst");
        world().pack(&world().lists, &path, &["--recovery", "5%"]).ok();
        path
    });
    &FILE
}

#[test]
fn recovery_data_is_ignored_by_standard_tools() {
    let directory = file_with_recovery().parent().unwrap();
    shell(directory, "zstd -qt one.tar.zst");
    let listed = shell(directory, "tar --zstd -tf one.tar.zst | sort");
    assert_eq!(listed, shell(world().bundle.parent().unwrap(), "tar --zstd -tf all.tar.zst | sort"));
    shell(
        directory,
        "skopeo inspect --raw oci-archive:one.tar.zst:quay.io/metallb/controller:v0.13.9 >/dev/null",
    );
    let (small, large) =
        (fs::metadata(&world().bundle).unwrap().len(), fs::metadata(file_with_recovery()).unwrap().len());
    assert!(large > small + small / 20 && large < small + small * 7 / 100, "{small} {large}");
}

#[test]
fn bad_sectors_within_the_redundancy_are_read_through_anywhere() {
    let intact = fs::read(file_with_recovery()).unwrap();
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    // 5% of the protected bytes, the redundancy of the bundle.
    let max_damage = usize::try_from(fs::metadata(&world().bundle).unwrap().len()).unwrap() / 20;
    for (what, start, len) in [
        ("the beginning", 0, max_damage),
        ("the middle", intact.len() / 2, max_damage),
        ("the end", intact.len() - max_damage, max_damage),
        ("the seek table", intact.len() - 50, 50),
        ("the recovery data", intact.len() - 2 * max_damage / 3 - 20_000, max_damage / 2),
        ("one byte of the head", 700, 1),
    ] {
        let mut bytes = intact.clone();
        bytes[start..start + len].copy_from_slice(&random_bytes(start as u64, len));
        fs::write(path("hurt.tar.zst"), &bytes).unwrap();
        let finished = run_verb("verify", &[&path("hurt.tar.zst")]).ok();
        assert!(finished.stdout.contains("was repaired while it was read"), "{what}: {finished:#?}");
        let is_of_content = start + len < intact.len() * 94 / 100;
        let finished = run_verb("unpack", &[&path("hurt.tar.zst"), &path("site")]).ok();
        assert!(!is_of_content || finished.stderr.contains("unbundle repair"), "{what}: {finished:#?}");
        unpack(&world().bundle, &path("site")).ok();
        assert_eq!(
            Tree::of(&path("site")).difference(&Tree::of(&world().site)),
            Vec::<String>::new(),
            "{what}"
        );
        run_verb("repair", &[&path("hurt.tar.zst"), Path::new("-o"), &path("good.tar.zst")]).ok();
        assert!(fs::read(path("good.tar.zst")).unwrap() == intact, "{what}");
        fs::remove_dir_all(path("site")).unwrap();
    }
    // Truncated by as much as the recovery data can restore.
    fs::write(path("hurt.tar.zst"), &intact[..intact.len() - max_damage]).unwrap();
    run_verb("unpack", &[&path("hurt.tar.zst"), &path("site")]).ok();
    run_verb("repair", &[&path("hurt.tar.zst"), Path::new("-o"), &path("good.tar.zst")]).ok();
    assert!(fs::read(path("good.tar.zst")).unwrap() == intact);
}

#[test]
fn damage_beyond_the_redundancy_is_named_and_never_yields_wrong_bytes() {
    let intact = fs::read(file_with_recovery()).unwrap();
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    let mut bytes = intact.clone();
    let (start, len) = (intact.len() / 2, intact.len() / 8);
    bytes[start..start + len].copy_from_slice(&random_bytes(7, len));
    fs::write(path("hurt.tar.zst"), &bytes).unwrap();
    let finished = run_verb("verify", &[&path("hurt.tar.zst")]).failed(DAMAGED, &["blobs damaged"]);
    assert!(finished.stdout.contains("needed by"), "{finished:#?}");
    run_verb("unpack", &[&path("hurt.tar.zst"), &path("site")]).failed(DAMAGED, &["damaged in"]);
    assert_visible_files_intact(&path("site"));
    let repair = [path("hurt.tar.zst"), PathBuf::from("-o"), path("good.tar.zst")];
    let repair: Vec<&Path> = repair.iter().map(PathBuf::as_path).collect();
    run_verb("repair", &repair).failed(DAMAGED, &["hurt.tar.zst", "copy it again", "can be repaired"]);
    assert!(!path("good.tar.zst").exists() && !path("good.tar.zst.partial").exists());
    // Without recovery data, nothing can be repaired.
    let repair = [world().bundle.clone(), PathBuf::from("-o"), path("good.tar.zst")];
    let repair: Vec<&Path> = repair.iter().map(PathBuf::as_path).collect();
    run_verb("repair", &repair).failed(DAMAGED, &["cannot find recovery data in"]);
    run_verb("repair", &[file_with_recovery(), Path::new("-o"), file_with_recovery()])
        .failed(2, &["another output path"]);
}

#[test]
fn volumes_are_repaired_independently() {
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    let with_recovery = volume_sets().with_recovery();
    copy(&with_recovery, &path("stick"));
    copy(&with_recovery, &path("expected"));
    let names = volumes(&with_recovery);
    for (number, name) in names.iter().enumerate() {
        change(&path("stick").join(name), |bytes| match number % 4 {
            0 => bytes[5000..150_000].fill(0x55),
            1 => bytes.truncate(bytes.len() - 150_000),
            2 => {
                let len = bytes.len();
                bytes[len - 100_000..].fill(0);
            }
            _ => {}
        });
    }
    run_verb("unpack", &[&path("stick"), &path("site")]).ok();
    unpack(&world().bundle, &path("site")).ok();
    assert_eq!(Tree::of(&path("site")).difference(&Tree::of(&world().site)), Vec::<String>::new());
    run_verb("repair", &[&path("stick"), Path::new("--output"), &path("good")]).ok();
    assert_eq!(Tree::of(&path("good")).difference(&Tree::of(&path("expected"))), Vec::<String>::new());
    // One missing volume and one beyond repair: the others are repaired, and these two are named.
    fs::remove_file(path("stick").join(&names[1])).unwrap();
    change(&path("stick").join(&names[3]), |bytes| bytes[10_000..2_000_000].fill(1));
    let finished = run_verb("repair", &[&path("stick"), Path::new("--output"), &path("some")]);
    let finished =
        finished.failed(DAMAGED, &[&names[3], "copy it again"]).failed(DAMAGED, &[&names[1], "missing"]);
    assert_eq!(volumes(&path("some")).len(), names.len() - 2, "{finished:#?}");
    assert!(!path("some").join("SHA256SUMS").exists());
}

#[test]
fn killed_repair_leaves_no_output() {
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    for wait in [1, 20, 60, 150] {
        let mut command = unbundle_command();
        command.arg("repair").arg(file_with_recovery()).arg("-o").arg(path("good.tar.zst"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(wait));
        let _ = child.kill();
        child.wait().unwrap();
        if path("good.tar.zst").exists() {
            assert!(fs::read(path("good.tar.zst")).unwrap() == fs::read(file_with_recovery()).unwrap());
        }
    }
    run_verb("repair", &[file_with_recovery(), Path::new("-o"), &path("good.tar.zst")]).ok();
    assert!(fs::read(path("good.tar.zst")).unwrap() == fs::read(file_with_recovery()).unwrap());
    assert!(!path("good.tar.zst.partial").exists());
}

#[test]
fn list_lock_packs_the_same_volumes() {
    let world = world();
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    let lock = path("all.lock.json").display().to_string();
    let mirrors = world.upstream.mirror_args();
    let lists = world.lists.display().to_string();
    let args = ["lock", &lists, "-o", &lock].into_iter().map(str::to_owned).chain(mirrors);
    airbundle(args).ok();
    world.pack(Path::new(&lock), &path("all.tar.zst"), &["--volume-size", "7MiB", "--recovery", "5%"]).ok();
    assert_eq!(
        fs::read(path("SHA256SUMS")).unwrap(),
        fs::read(volume_sets().with_recovery().join("SHA256SUMS")).unwrap()
    );
}

#[test]
fn volumes_that_were_joined_keep_their_recovery_data() {
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    let with_recovery = volume_sets().with_recovery();
    let parts: Vec<Vec<u8>> =
        volumes(&with_recovery).iter().map(|name| fs::read(with_recovery.join(name)).unwrap()).collect();
    let joined = parts.concat();
    // Damage in each part, at its beginning, in its middle and at its end.
    let mut damaged = joined.clone();
    let mut start = 0;
    for (number, part) in parts.iter().enumerate() {
        let at = [5000, part.len() / 2, part.len() - 60_000][number % 3];
        damaged[start + at..start + at + 50_000].fill(0x55);
        start += part.len();
    }
    fs::write(path("joined.tar.zst"), &damaged).unwrap();
    run_verb("verify", &[&path("joined.tar.zst")]).ok();
    unpack(&path("joined.tar.zst"), &path("site")).ok();
    assert_visible_files_intact(&path("site"));
    run_verb("repair", &[&path("joined.tar.zst"), Path::new("--output"), &path("good.tar.zst")]).ok();
    assert!(fs::read(path("good.tar.zst")).unwrap() == joined);
    assert!(!path("SHA256SUMS").exists());

    // A label is lost with the bytes after it.
    let lost = parts[0].len() + parts[1].len();
    for start in [lost, parts[0].len(), lost + parts[2].len()] {
        let mut damaged = joined.clone();
        damaged[start..start + 2000].fill(0x55);
        fs::write(path("label.tar.zst"), &damaged).unwrap();
        run_verb("verify", &[&path("label.tar.zst")]).ok();
        run_verb("repair", &[&path("label.tar.zst"), Path::new("--output"), &path("labels.tar.zst")]).ok();
        assert!(fs::read(path("labels.tar.zst")).unwrap() == joined);
    }

    // The end of one part was missing before they were joined: all others are where they are.
    let mut short = parts.clone();
    let len = short[1].len() - 100_000;
    short[1].truncate(len);
    fs::write(path("short.tar.zst"), short.concat()).unwrap();
    run_verb("verify", &[&path("short.tar.zst")]).ok();
    run_verb("repair", &[&path("short.tar.zst"), Path::new("--output"), &path("long.tar.zst")]).ok();
    assert!(fs::read(path("long.tar.zst")).unwrap() == joined);

    // Volumes that cannot be repaired, or are missing, make no copy.
    damaged[joined.len() / 2..joined.len() / 2 + 3_000_000].fill(1);
    fs::write(path("worse.tar.zst"), &damaged).unwrap();
    let output = path("no.tar.zst");
    run_verb("repair", &[&path("worse.tar.zst"), Path::new("--output"), &output])
        .failed(DAMAGED, &["cannot repair"]);
    short.remove(2);
    fs::write(path("gap.tar.zst"), short.concat()).unwrap();
    let words = ["gap.tar.zst.003", "is missing"];
    run_verb("repair", &[&path("gap.tar.zst"), Path::new("--output"), &output]).failed(INCOMPLETE, &words);
    run_verb("verify", &[&path("gap.tar.zst")]).failed(INCOMPLETE, &words);
    assert!(!output.exists() && !path("no.tar.zst.partial").exists());
}

#[test]
fn files_that_a_mac_adds_are_no_volumes() {
    let temporary = tempdir().unwrap();
    let stick = temporary.path().join("stick");
    copy(&volume_sets().plain(), &stick);
    for name in volumes(&stick).into_iter().chain(["SHA256SUMS".to_owned()]) {
        fs::write(stick.join(format!("._{name}")), b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ").unwrap();
    }
    fs::write(stick.join(".DS_Store"), b"\0\0\0\x01Bud1").unwrap();
    for argument in [stick.clone(), stick.join("all.tar.zst.001")] {
        let verified = run_verb("verify", &[&argument]).ok();
        assert!(!verified.stderr.contains("._"), "{verified:#?}");
    }
}
