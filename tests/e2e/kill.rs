//! Killed programs and failing file systems: at any time everything visible is complete, and a re-run
//! finishes as if uninterrupted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::{TempDir, tempdir};

use crate::program::{Finished, airbundle, airbundle_command, unbundle, unbundle_command, unbundle_from};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::mount::Tmpfs;
use crate::support::process::run;
use crate::support::storage::incomplete_images;
use crate::support::tree::{Kind, Tree};
use crate::support::upstream::{Upstream, UpstreamFile, UpstreamImage};
use crate::support::{for_each, random_bytes, sha256};

const STORAGE: &str = "registry/docker/registry/v2";
const GC_GUARD: &str = "registry/docker/registry/v2/blobs/unbundle-in-progress";
const NO_SPACE: &str = "No space left on device";

/// Lists, servers for them, the bundle and its site, all from uninterrupted runs.
struct Sample {
    upstream: Upstream,
    directory: TempDir,
    bundle: PathBuf,
    site: Tree,
    /// Duration of `pack` and of `unpack`.
    times: [Duration; 2],
}

impl Sample {
    fn new(images: Vec<UpstreamImage>, files: Vec<UpstreamFile>) -> Self {
        let directory = tempdir().expect("create a temporary directory");
        let upstream = Upstream::start(directory.path(), images, files);
        upstream.write_lists(&directory.path().join("lists"));
        let bundle = directory.path().join("uninterrupted.tar.zst");
        let site = directory.path().join("uninterrupted");
        let mut sample =
            Self { upstream, directory, bundle, site: Tree(BTreeMap::new()), times: [Duration::ZERO; 2] };
        let start = Instant::now();
        airbundle(sample.pack(&sample.bundle)).ok();
        sample.times[0] = start.elapsed();
        let start = Instant::now();
        unbundle(sample.unpack(&site)).ok();
        sample.times[1] = start.elapsed();
        sample.site = Tree::of(&site);
        sample
    }

    fn pack(&self, output: &Path) -> Vec<String> {
        let lists = self.directory.path().join("lists");
        let mut args = vec!["pack".to_owned(), text(&lists), "-o".to_owned(), text(output), "-q".to_owned()];
        args.extend(self.upstream.mirror_args());
        args
    }

    fn unpack(&self, site: &Path) -> Vec<String> {
        ["unpack", &text(&self.bundle), &text(site), "-q"].map(str::to_owned).into()
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.bundle).expect("read the bundle")
    }

    /// Runs `unbundle` to its end and asserts that the site equals that of an uninterrupted run.
    #[track_caller]
    fn complete(&self, site: &Path, what: &str) {
        unbundle(self.unpack(site)).ok();
        let difference = Tree::of(site).difference(&self.site);
        assert!(
            difference.is_empty(),
            "{what}: differs from an uninterrupted run:\n{}",
            difference.join("\n")
        );
        assert_eq!(names(&site.join(".unbundle")), ["lock"], "{what}");
    }

    /// Asserts that everything visible of a site is complete and correct, and that links and tags name only
    /// existing blobs.
    #[track_caller]
    fn assert_visible_complete(&self, site: &Path, what: &str) {
        if !site.exists() {
            return;
        }
        let tree = visible(site);
        for (path, entry) in &tree.0 {
            let expected = self.site.0.get(path);
            assert!(
                expected == Some(entry) || path.starts_with(GC_GUARD),
                "{what}: {} is {entry:?} and not {expected:?}",
                path.display()
            );
        }
        assert_eq!(incomplete_images(&site.join(STORAGE)), [""; 0], "{what}");
    }
}

/// Returns what nginx and a registry see of a site.
fn visible(site: &Path) -> Tree {
    let parts = ["files", "registry"].map(|part| (part, site.join(part)));
    let entries = parts.iter().filter(|(_, path)| path.exists()).flat_map(|(part, path)| {
        Tree::of(path).0.into_iter().map(move |(path, entry)| (Path::new(part).join(path), entry))
    });
    Tree(entries.collect())
}

/// Returns the names of all files that are not hidden.
fn names(directory: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|error| panic!("list {}: {error}", directory.display()));
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("list a directory").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

fn note(text: &str) -> Layer {
    Layer::files(&[("etc/motd", text.as_bytes())], Compression::Gzip)
}

/// A few tiny items of each kind.
fn small() -> &'static Sample {
    static SMALL: OnceLock<Sample> = OnceLock::new();
    SMALL.get_or_init(|| {
        let child = |platform: &str| Image::new(Format::Docker, platform, &[note("common"), note(platform)]);
        let index = Image::index(Format::Docker, vec![child("linux/amd64"), child("linux/arm64")]);
        let layer = note("common").bytes;
        Sample::new(
            vec![
                UpstreamImage::new("quay.io/team/app:1", index),
                UpstreamImage::new("quay.io/team/tool@", Image::artifact("application/x.y", &[("f", b"f")])),
            ],
            vec![
                UpstreamFile::new("https://dl.k8s.io/a/file", b"file".to_vec()),
                UpstreamFile::new("https://dl.k8s.io/a/empty", Vec::new()),
                UpstreamFile::new("https://dl.k8s.io/b/layer", layer),
            ],
        )
    })
}

/// Large enough to be killed mid-run.
fn large() -> &'static Sample {
    static LARGE: OnceLock<Sample> = OnceLock::new();
    LARGE.get_or_init(|| {
        let mut layers =
            vec![Layer::random(1, 9 << 20, Compression::Gzip), Layer::random(2, 5 << 20, Compression::None)];
        layers.extend((0..100_u32).map(|number| note(&number.to_string())));
        let mut files: Vec<_> = (0..40_u64)
            .map(|number| {
                UpstreamFile::new(&format!("https://dl.k8s.io/{number}"), random_bytes(number, 9000))
            })
            .collect();
        files.push(UpstreamFile::new("https://dl.k8s.io/large", random_bytes(3, 13 << 20)));
        files.push(UpstreamFile::new("https://dl.k8s.io/unpinned", random_bytes(4, 6 << 20)).not_pinned());
        let image = Image::new(Format::Oci, "linux/amd64", &layers);
        Sample::new(vec![UpstreamImage::new("quay.io/team/app:1", image)], files)
    })
}

/// Calls `work` with delays spread evenly over a run that takes `time`, deterministically, until it has
/// killed something `count` times. If runs turn out to be quicker, the delays shrink.
fn at_delays(count: usize, mut time: Duration, mut work: impl FnMut(usize, Duration) -> bool) {
    let mut killed = 0;
    for number in 0_u32..200 {
        let moment = (f64::from(number + 1) * 0.618_033_988_749_895).fract();
        if work(number as usize, time.mul_f64(moment)) {
            killed += 1;
        } else {
            time = time.mul_f64(0.9);
        }
        if killed == count {
            return;
        }
    }
    panic!("killed {killed} times of {count}");
}

fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start a program")
}

/// Sends the signal after the delay; true if it ended the child.
fn kill_after(mut child: Child, delay: Duration, signal: Signal) -> bool {
    thread::sleep(delay);
    let _ = kill_process(Pid::from_child(&child), signal); // it may have ended
    let status = child.wait().expect("wait for a child");
    assert!(status.success() || status.signal() == Some(signal.as_raw()), "{status}");
    !status.success()
}

#[test]
fn pack_killed_mid_run_leaves_no_output_and_reruns_to_the_same_bundle() {
    let sample = large();
    let expected = sample.bytes();
    at_delays(16, sample.times[0], |number, moment| {
        let signal = if number % 4 == 3 { Signal::INT } else { Signal::KILL };
        let directory = tempdir().expect("create a temporary directory");
        let output = directory.path().join("out.tar.zst");
        let old = (number % 2 == 1).then_some(&b"an older bundle"[..]);
        if let Some(old) = old {
            fs::write(&output, old).expect("write a file");
        }
        let child = start(airbundle_command().args(sample.pack(&output)));
        let killed = kill_after(child, moment, signal);
        let found = fs::read(&output).ok();
        assert!(
            found.as_deref() == old || found.as_deref() == Some(&expected),
            "{moment:?}: something incomplete is at the output's name"
        );
        airbundle(sample.pack(&output)).ok();
        let found = fs::read(&output).expect("read the bundle");
        assert!(found == expected, "{moment:?}: {} and not {}", sha256(&found), sha256(&expected));
        assert_eq!(names(directory.path()), ["out.tar.zst"]);
        killed
    });
}

#[test]
fn unpack_killed_at_random_leaves_only_complete_files_and_reruns() {
    let sample = large();
    at_delays(12, sample.times[1], |number, moment| {
        let signal = if number % 4 == 3 { Signal::INT } else { Signal::KILL };
        let directory = tempdir().expect("create a temporary directory");
        let site = directory.path().join("site");
        let what = format!("killed after {moment:?}");
        let child = start(unbundle_command().args(sample.unpack(&site)));
        let killed = kill_after(child, moment, signal);
        sample.assert_visible_complete(&site, &what);
        sample.complete(&site, &what);
        killed
    });
}

#[test]
fn unpack_killed_repeatedly_eventually_finishes() {
    let sample = large();
    let directory = tempdir().expect("create a temporary directory");
    let site = directory.path().join("site");
    at_delays(12, sample.times[1].mul_f64(0.6), |_, moment| {
        let child = start(unbundle_command().args(sample.unpack(&site)));
        let killed = kill_after(child, moment, Signal::KILL);
        sample.assert_visible_complete(&site, &format!("killed after {moment:?}"));
        killed
    });
    sample.complete(&site, "at last");
}

// ---- At every system call ----

/// A system call that changes something: its name, and its ordinal among the calls of this name in its
/// thread, as strace counts.
type Call = (String, usize);

/// Returns the calls by which a program changes the file system.
fn mutating_calls(program: &Command) -> BTreeSet<Call> {
    const CALLS: &str = "trace=mkdir,mkdirat,open,openat,openat2,creat,write,pwrite64,ftruncate,fallocate,\
                         fchmod,fchmodat,fsync,fdatasync,syncfs,rename,renameat,renameat2,link,linkat,unlink,\
                         unlinkat,rmdir";
    let directory = tempdir().expect("create a temporary directory");
    let log = directory.path().join("log");
    run(Command::new("strace")
        .args(["-f", "-qq", "-e", CALLS, "-o"])
        .arg(&log)
        .arg(program.get_program())
        .args(program.get_args()));
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut calls = BTreeSet::new();
    for line in fs::read_to_string(&log).expect("read strace's log").lines() {
        let (thread, rest) = line.split_once(' ').expect("a thread");
        let Some((name, arguments)) = rest.trim_start().split_once('(') else { continue };
        if name.contains(' ') {
            continue; // `<... write resumed>`
        }
        let count = counts.entry((thread.to_owned(), name.to_owned())).or_default();
        *count += 1;
        if !name.starts_with("open") || arguments.contains("O_CREAT") {
            calls.insert((name.to_owned(), *count));
        }
    }
    calls
}

/// Runs a program with an injection (`write:error=ENOSPC:when=3`). Returns its result, true if the injection
/// took effect on a call that changes something, and true if it suppressed a message.
fn run_with_injection(injection: &str, program: &Command) -> (Finished, bool, bool) {
    let directory = tempdir().expect("create a temporary directory");
    let log = directory.path().join("log");
    let (name, _) = injection.split_once(':').expect("a name");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", &format!("trace={name}"), "-e", &format!("inject={injection}"), "-o"]);
    strace.arg(&log).arg(program.get_program()).args(program.get_args());
    let output = strace.output().expect("start strace");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let finished =
        Finished { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) };
    let log = fs::read_to_string(&log).expect("read strace's log");
    // The order of calls differs between runs, so it can be a call that only reads, such as that of a CPU quota.
    let is_change = |line: &str| !name.starts_with("open") || line.contains("O_CREAT");
    let happened = log.lines().any(|line| line.contains("(INJECTED)") && is_change(line))
        || log.contains("+++ killed by SIGKILL");
    let mute = log.lines().any(|line| line.contains("write(2,") && line.contains("(INJECTED)"));
    (finished, happened, mute)
}

#[test]
fn unpack_killed_at_any_system_call_leaves_only_complete_files_and_reruns() {
    let sample = small();
    let directory = tempdir().expect("create a temporary directory");
    let calls: Vec<Call> =
        mutating_calls(unbundle_command().args(sample.unpack(&directory.path().join("traced"))))
            .into_iter()
            .collect();
    let killed = AtomicUsize::new(0);
    for_each(&calls, |(name, number)| {
        let what = format!("{name} {number}");
        let site = directory.path().join(&what);
        let (finished, happened, _) = run_with_injection(
            &format!("{name}:signal=SIGKILL:when={number}"),
            unbundle_command().args(sample.unpack(&site)),
        );
        // The assignment of work to threads varies, so the call may not happen.
        assert!(happened || finished.code == Some(0), "{what}: {finished:#?}");
        killed.fetch_add(usize::from(happened), Ordering::Relaxed);
        sample.assert_visible_complete(&site, &what);
        sample.complete(&site, &what);
        fs::remove_dir_all(&site).expect("remove a directory");
    });
    let killed = killed.into_inner();
    assert!(killed >= 60 && killed * 10 >= calls.len() * 6, "killed {killed} times at {} calls", calls.len());
}

#[test]
fn pack_killed_at_any_system_call_leaves_no_output_and_reruns_to_the_same_bundle() {
    let sample = small();
    let expected = sample.bytes();
    let directory = tempdir().expect("create a temporary directory");
    let traced = directory.path().join("traced.tar.zst");
    // Its threads also write to each other and to the network.
    let calls: Vec<Call> = mutating_calls(airbundle_command().args(sample.pack(&traced)))
        .into_iter()
        .filter(|(name, number)| name != "write" || *number <= 20)
        .collect();
    let killed = AtomicUsize::new(0);
    for_each(&calls, |(name, number)| {
        let what = format!("{name} {number}");
        let directory = tempdir().expect("create a temporary directory");
        let output = directory.path().join("out.tar.zst");
        let (finished, happened, _) = run_with_injection(
            &format!("{name}:signal=SIGKILL:when={number}"),
            airbundle_command().args(sample.pack(&output)),
        );
        assert!(happened || finished.code == Some(0), "{what}: {finished:#?}");
        killed.fetch_add(usize::from(happened), Ordering::Relaxed);
        let found = fs::read(&output).ok();
        assert!(found.is_none_or(|found| found == expected), "{what}: something incomplete is at the name");
        airbundle(sample.pack(&output)).ok();
        assert!(fs::read(&output).expect("read the bundle") == expected, "{what}: another bundle");
        assert_eq!(names(directory.path()), ["out.tar.zst"], "{what}");
    });
    assert!(killed.into_inner() >= 8, "of {calls:?}");
}

#[test]
fn unpack_fails_when_a_system_call_fails_and_reruns() {
    let sample = small();
    let directory = tempdir().expect("create a temporary directory");
    // Other content of the same site, which must stay.
    let before = |site: &Path| {
        fs::create_dir_all(site.join("files/k8s/other")).expect("create a directory");
        fs::write(site.join("files/k8s/other/file"), b"older").expect("write a file");
    };
    let traced = directory.path().join("traced");
    before(&traced);
    let calls: Vec<(Call, &str)> = mutating_calls(unbundle_command().args(sample.unpack(&traced)))
        .into_iter()
        .map(|call| {
            let synced = call.0.contains("sync") || call.0.starts_with("unlink");
            (call, if synced { "EIO" } else { "ENOSPC" })
        })
        .collect();
    let failed = AtomicUsize::new(0);
    for_each(&calls, |((name, number), error)| {
        let what = format!("{name} {number} {error}");
        let site = directory.path().join(&what);
        before(&site);
        let (finished, happened, mute) = run_with_injection(
            &format!("{name}:error={error}:when={number}"),
            unbundle_command().args(sample.unpack(&site)),
        );
        if happened {
            let reason = if *error == "EIO" { "Input/output error" } else { NO_SPACE };
            // Calls are counted by thread, so it can be another call than in the trace, such as that of the bundle.
            let words = ["error: cannot ", "`/", reason];
            assert_eq!(finished.code, Some(6), "{what}: {finished:#?}");
            if !mute {
                finished.failed(6, &words);
            }
            failed.fetch_add(1, Ordering::Relaxed);
        } else {
            assert!(matches!(finished.code, Some(0 | 6)), "{what}: {finished:#?}");
        }
        let other = site.join("files/k8s/other");
        assert_eq!(fs::read(other.join("file")).expect("existing content stays"), b"older", "{what}");
        fs::remove_dir_all(other).expect("remove a directory");
        sample.assert_visible_complete(&site, &what);
        sample.complete(&site, &what);
        fs::remove_dir_all(&site).expect("remove a directory");
    });
    assert!(failed.into_inner() >= 60, "of {} calls", calls.len());
}

#[test]
fn pack_fails_when_fsync_fails() {
    let sample = small();
    let directory = tempdir().expect("create a temporary directory");
    let output = directory.path().join("out.tar.zst");
    let program = airbundle_command().get_program().to_owned();
    for (injection, reason) in [
        ("fsync:error=EIO:when=1", "Input/output error"),
        ("fsync:error=EIO:when=2", "Input/output error"),
        ("rename:error=ENOSPC:when=1", NO_SPACE),
        ("ftruncate:error=EIO:when=1", "Input/output error"),
    ] {
        let mut strace = Command::new("strace");
        let inject = format!("inject={injection}");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,rename,ftruncate", "-e", &inject]);
        let ended = strace.arg(&program).args(sample.pack(&output)).output().expect("start strace");
        let finished = Finished {
            code: ended.status.code(),
            stdout: String::new(),
            stderr: String::from_utf8_lossy(&ended.stderr).into_owned(),
        };
        finished.failed(6, &["error: cannot ", &text(directory.path()), reason]);
        // The second sync is that of the directory: the bundle is already renamed and complete.
        if injection.ends_with("when=2") {
            assert_eq!(fs::read(&output).expect("read the bundle"), sample.bytes());
            fs::remove_file(&output).expect("remove the bundle");
        }
        // Data that was not synced must not be used by the next run.
        let is_full = injection.contains("ENOSPC");
        let left = [text(&output) + ".partial", text(&output) + ".partial.spool"];
        assert!(left.iter().all(|path| Path::new(path).exists() == is_full), "{injection}");
        if is_full {
            airbundle(sample.pack(&output)).ok();
            assert_eq!(fs::read(&output).expect("read the bundle"), sample.bytes(), "{injection}");
            fs::remove_file(&output).expect("remove the bundle");
        }
        assert_eq!(names(directory.path()), [""; 0], "{injection}");
    }
}

// ---- File systems that are full or read-only ----

#[test]
fn pack_names_the_file_on_a_full_disk_and_resumes_once_there_is_space() {
    let sample = large();
    for size in ["size=4k", "size=64k", "size=12m", "size=32m"] {
        let mount = Tmpfs::new(size);
        let output = mount.path().join("out.tar.zst");
        airbundle(sample.pack(&output)).failed(6, &["error: cannot write", "out.tar.zst.partial", NO_SPACE]);
        assert!(!output.exists(), "{size}");
        mount.remount("size=200m");
        airbundle(sample.pack(&output)).ok();
        assert!(fs::read(&output).expect("read the bundle") == sample.bytes(), "{size}");
        assert_eq!(names(mount.path()), ["out.tar.zst"], "{size}");
    }
}

#[test]
fn unpack_writes_nothing_and_reports_the_space_it_needs_when_the_disk_is_too_small() {
    let sample = large();
    for (options, words) in [
        ("size=1m", ["no space left on device", "needed; nothing was written"]),
        ("size=30m", ["no space left on device", "needed; nothing was written"]),
        ("size=100m,nr_inodes=100", ["inodes free", "needed; nothing was written"]),
    ] {
        let mount = Tmpfs::new(options);
        let site = mount.path().join("site");
        unbundle(sample.unpack(&site)).failed(10, &[&text(&site), words[0], words[1]]);
        let tree = Tree::of(&site);
        assert_eq!(tree.files().collect::<Vec<_>>(), [Path::new(".unbundle/lock")], "{options}");
        mount.remount("size=200m,nr_inodes=10000");
        sample.complete(&site, options);
    }
}

#[test]
fn unpack_fails_when_the_disk_fills_up_meanwhile_and_reruns() {
    let sample = large();
    let bytes = sample.bytes();
    let mount = Tmpfs::new("size=60m");
    let site = mount.path().join("site");
    let mut child = start(unbundle_command().args(["unpack", "-", &text(&site), "-q"]).stdin(Stdio::piped()));
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(&bytes[..bytes.len() / 3]).expect("write the first part");
    wait_for(&site.join(GC_GUARD));
    let filler = mount.path().join("filler");
    assert!(fs::write(&filler, vec![1; 60 << 20]).is_err(), "it is full now");
    let _ = stdin.write_all(&bytes[bytes.len() / 3..]); // it may have ended before
    drop(stdin);
    wait_for_end(child).failed(6, &["error: cannot ", &text(&site), NO_SPACE]);
    sample.assert_visible_complete(&site, "full");
    fs::remove_file(filler).expect("free disk space");
    sample.complete(&site, "room again");
}

#[test]
fn unpack_refuses_an_unwritable_site_and_leaves_it_unchanged() {
    let sample = small();
    let mount = Tmpfs::new("size=10m");
    let [site, fresh] = ["site", "fresh"].map(|name| mount.path().join(name));
    unbundle(sample.unpack(&site)).ok();
    let damaged = site.join("files/k8s/dl.k8s.io/a/file");
    fs::write(&damaged, b"x").expect("corrupt a file");
    let before = Tree::of(mount.path());
    mount.remount("ro");
    for site in [&site, &fresh] {
        unbundle(sample.unpack(site)).failed(6, &["error: cannot ", &text(site), "Read-only file system"]);
    }
    airbundle(sample.pack(&mount.path().join("b.tar.zst")))
        .failed(6, &["b.tar.zst", "Read-only file system"]);
    assert_eq!(Tree::of(mount.path()), before);

    let directory = tempdir().expect("create a temporary directory");
    let file = directory.path().join("file");
    fs::write(&file, b"file").expect("write a file");
    for site in [file.clone(), file.join("below")] {
        unbundle(sample.unpack(&site))
            .failed(6, &["error: cannot ", &text(&file), "expected a directory, found a file"]);
    }
    airbundle(sample.pack(&file.join("b.tar.zst"))).failed(6, &["b.tar.zst", "Not a directory"]);
    assert_eq!(fs::read(&file).expect("read a file"), b"file");
}

// ---- Pipes and concurrent runs ----

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "{} does not come", path.display());
        thread::sleep(Duration::from_millis(2));
    }
}

fn wait_for_end(child: Child) -> Finished {
    let output = child.wait_with_output().expect("wait for a child");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A bind mount of a directory. Unmounted when dropped. Needs root.
struct BindMount(PathBuf);

impl BindMount {
    fn new(directory: &Path, place: &Path) -> Self {
        for directory in [directory, place] {
            fs::create_dir_all(directory).expect("create a directory");
        }
        run(Command::new("mount").arg("--bind").args([directory, place]));
        Self(place.to_owned())
    }
}

impl Drop for BindMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status(); // a test that fails tells more
    }
}

#[test]
fn unpack_accepts_mounts_of_one_file_system_inside_a_site() {
    let sample = small();
    let directory = tempfile::tempdir().expect("create a directory");
    let site = directory.path().join("site");
    let _bound = BindMount::new(&directory.path().join("data"), &site.join("registry"));
    unbundle(sample.unpack(&site)).ok();
    let difference = Tree::of(&site).difference(&sample.site);
    let own = |line: &String| line.starts_with("registry/.unbundle");
    assert!(difference.iter().all(own), "{difference:#?}");
    assert_eq!(names(&site.join("registry/.unbundle")), ["lock"]);
}

#[test]
fn free_space_of_a_file_system_is_counted_once_for_files_and_registry() {
    let sample = large();
    let mount = Tmpfs::new("size=30m");
    let [files, registry] = ["files", "registry"].map(|name| text(&mount.path().join(name)));
    let elsewhere = tempfile::tempdir().expect("create a directory");
    let mut args = sample.unpack(elsewhere.path());
    args.extend(["--files".to_owned(), files, "--registry".to_owned(), registry]);
    // Either part fits; both together do not.
    unbundle(&args).failed(10, &["no space left on device", "needed; nothing was written"]);
    mount.remount("size=60m");
    unbundle(&args).ok();
}

#[test]
fn storage_lock_holds_whatever_path_the_storage_is_reached_by() {
    let sample = small();
    let directory = tempfile::tempdir().expect("create a directory");
    let site = directory.path().join("site");
    unbundle(sample.unpack(&site)).ok();
    let lock = fs::File::open(site.join("registry")).expect("open the storage");
    lock.lock().expect("lock the file");
    unbundle(sample.unpack(&site)).failed(9, &["another `unbundle`", "registry"]);
    drop(lock);
    unbundle(sample.unpack(&site)).ok();
}

#[test]
fn concurrent_unpacks_of_one_site_exclude_each_other() {
    let sample = large();
    let bytes = sample.bytes();
    let directory = tempdir().expect("create a temporary directory");
    let site = directory.path().join("site");
    let mut child = start(unbundle_command().args(["unpack", "-", &text(&site), "-q"]).stdin(Stdio::piped()));
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(&bytes[..bytes.len() / 2]).expect("write the first half");
    wait_for(&site.join(GC_GUARD));
    for _ in 0..3 {
        unbundle(sample.unpack(&site)).failed(9, &["another `unbundle` is writing to", &text(&site)]);
        sample.assert_visible_complete(&site, "while another one is at work");
    }
    stdin.write_all(&bytes[bytes.len() / 2..]).expect("write the second half");
    drop(stdin);
    wait_for_end(child).ok();
    assert_eq!(Tree::of(&site).difference(&sample.site), [""; 0]);
    sample.complete(&site, "once more");
}

#[test]
fn unpack_reports_where_a_truncated_pipe_ended_and_keeps_complete_blobs() {
    let sample = large();
    let bytes = sample.bytes();
    let directory = tempdir().expect("create a temporary directory");
    for tenths in [3, 5, 7, 9] {
        let site = directory.path().join(format!("site-{tenths}"));
        let part = directory.path().join("part");
        fs::write(&part, &bytes[..bytes.len() / 10 * tenths]).expect("write a part");
        let finished = unbundle_from(&part, ["unpack", "-", &text(&site), "-q"]);
        let owner = if tenths < 5 { "`quay.io/team/app:1`" } else { "`dl.k8s.io/" };
        finished.failed(16, &["error: the bundle is damaged in", owner]);
        sample.assert_visible_complete(&site, "cut off");
        let mut args = sample.unpack(&site);
        args.pop();
        args.push("--json".to_owned());
        let summary = unbundle(args).ok().json();
        assert!(summary["kept"].as_u64() > Some(0), "{summary}");
        assert!(summary["written"].as_u64() > Some(0), "{summary}");
        assert_eq!(Tree::of(&site).difference(&sample.site), [""; 0]);
    }
}

#[test]
fn unpack_killed_while_waiting_for_a_pipe_is_finished_by_a_rerun() {
    let sample = large();
    let bytes = sample.bytes();
    let directory = tempdir().expect("create a temporary directory");
    for tenths in [2, 6, 8] {
        let site = directory.path().join(format!("site-{tenths}"));
        let mut child =
            start(unbundle_command().args(["unpack", "-", &text(&site), "-q"]).stdin(Stdio::piped()));
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(&bytes[..bytes.len() / 10 * tenths]).expect("write a part");
        wait_for(&site.join(GC_GUARD));
        assert!(kill_after(child, Duration::ZERO, Signal::KILL));
        sample.assert_visible_complete(&site, "killed");
        let visible = visible(&site);
        assert!(!visible.0.iter().any(|(path, entry)| {
            path.ends_with("current/link") && matches!(entry.kind, Kind::File { .. })
        }));
        sample.complete(&site, "killed");
    }
}
