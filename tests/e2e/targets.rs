//! File systems that Linux programs rarely meet: exFAT and NTFS on media, those with a limit for the size of a file,
//! and those that do not know how large they are. Needs root and loop devices.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::pack_job::{FILES, OUTPUT, PARTIAL, PackJob, REGISTRY, mirrors_to};
use crate::program::{Finished, run, unbundle};
use crate::support::fake::{Content, Fake};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process::append_command;
use crate::support::{process, random_bytes};

/// A mounted file system. Unmounted when dropped.
struct Mounted {
    directory: TempDir,
    device: Option<String>,
}

impl Mounted {
    /// exFAT, which refuses some characters and ignores case.
    fn exfat() -> Self {
        Self::image(&["mkfs.exfat"], &["mount.exfat-fuse", "-o", "umask=022"])
    }

    /// NTFS as Windows uses it: without the names that Windows does not support.
    fn ntfs() -> Self {
        Self::image(
            &["mkntfs", "--quick", "--force", "--quiet"],
            &["lowntfs-3g", "-o", "windows_names,ignore_case,umask=022"],
        )
    }

    /// ramfs, which states a size of 0.
    fn ramfs() -> Self {
        let directory = TempDir::new().expect("create a temporary directory");
        let path = directory.path().join("mount");
        fs::create_dir(&path).expect("create a directory");
        process::run(Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(&path));
        Self { directory, device: None }
    }

    fn image(format: &[&str], mount: &[&str]) -> Self {
        let directory = TempDir::new().expect("create a temporary directory");
        let (image, path) = (directory.path().join("image"), directory.path().join("mount"));
        File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("create an image");
        fs::create_dir(&path).expect("create a directory");
        process::run(Command::new(format[0]).args(&format[1..]).arg(&image));
        let device = process::stdout_of(Command::new("losetup").args(["--find", "--show"]).arg(&image));
        let mounted = Self { directory, device: Some(device.trim().to_owned()) };
        let (program, options) = (mount[0], &mount[1..]);
        process::run(Command::new(program).arg(device.trim()).arg(mounted.path()).args(options));
        mounted
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    fn text(&self, name: &str) -> String {
        self.path().join(name).into_os_string().into_string().expect("UTF-8")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A test that fails tells more.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
        if let Some(device) = &self.device {
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
    }
}

/// Returns a bundle of these lines. The server has all files of the list, and each tag is another image.
fn bundle_of(lines: &[&str]) -> PackJob {
    let mut content = Content::default();
    for (seed, line) in (1..).zip(lines) {
        if line.starts_with("https://") {
            content.file(line, format!("content of {line}").into_bytes());
        } else {
            let layer = Layer::random(seed, 1000, Compression::Gzip);
            content.image(line, &Image::new(Format::Oci, "linux/amd64", &[layer]));
        }
    }
    let fake = Fake::honest(content);
    let job = PackJob::new(&lines.join("\n"));
    job.pack_with(&mirrors_to(&fake)).ok();
    job
}

/// Returns all files below `directory`, without those of the staging directory.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return found };
    for entry in entries {
        let path = entry.expect("list a directory").path();
        if path.is_dir() {
            if !path.ends_with(".unbundle") {
                found.extend(files_below(&path));
            }
        } else {
            found.push(path);
        }
    }
    found
}

/// Unpacks to a site on `mounted`, and asserts that this fails and leaves no file.
#[track_caller]
fn assert_refused(job: &PackJob, mounted: &Mounted, words: &[&str]) -> Finished {
    let finished = unbundle(["unpack", &job.text(OUTPUT), &mounted.text("site")]).failed(6, words);
    assert!(finished.stderr.contains("nothing was written: the file system"), "{finished:#?}");
    let last = finished.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("hint: unpack on another file system"), "{finished:#?}");
    assert!(files_below(&mounted.path()).is_empty(), "{finished:#?}");
    let staging = mounted.path().join("site/.unbundle");
    assert_eq!(fs::read_dir(staging).expect("list").count(), 0, "no probe remains");
    finished
}

#[test]
fn characters_that_exfat_and_ntfs_refuse_are_named_with_their_files_before_anything_is_written() {
    for mounted in [Mounted::exfat(), Mounted::ntfs()] {
        let file = |path: &str| format!("https://{FILES}/{path}");
        let colon = bundle_of(&[&file("good"), &file("a:b/x"), &file("c:d")]);
        let finished = assert_refused(
            &colon,
            &mounted,
            &["(fuseblk)", "`:`", "`files.example/a:b/x`", "`files.example/c:d`"],
        );
        assert!(!finished.stderr.contains("files.example/good"), "{finished:#?}");
        for (path, character) in
            [("what?x=1", "?"), ("a*b", "*"), ("a|b", "|"), ("a%3Cb", "<"), ("a%3Eb", ">"), ("a%22b", "\"")]
        {
            let (url, character) = (file(path), format!("`{character}`"));
            assert_refused(&bundle_of(&[&file("good"), &url]), &mounted, &[&character]);
        }
        let many: Vec<String> = (0..9).map(|number| file(&format!("{number}:x"))).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_refused(&bundle_of(&many), &mounted, &["`files.example/4:x` and 4 more"]);
        // Names that the file system supports are unpacked.
        let good = bundle_of(&[&file("good"), &file("also-good_1.2~x"), &file("%C3%BC%20x")]);
        let args = ["unpack", &good.text(OUTPUT), &mounted.text("site")];
        unbundle(args).ok();
        assert!(mounted.path().join("site/files/k8s/files.example/ü x").is_file());
        let again = unbundle(args).ok();
        assert!(!again.stderr.contains("error"), "{again:#?}");
        // Only the file system of the files counts.
        let elsewhere = TempDir::new().expect("create a temporary directory");
        let site = elsewhere.path().join("site");
        let site = site.to_str().expect("UTF-8");
        let files = mounted.text("files");
        unbundle(["unpack", &colon.text(OUTPUT), site, "--files", &files])
            .failed(6, &["`:`", "/files`", "(fuseblk)"]);
        unbundle(["unpack", &colon.text(OUTPUT), site, "--registry", &mounted.text("registry")]).ok();
    }
}

#[test]
fn names_that_windows_reserves_and_dots_at_the_end_are_refused_where_they_are_not_kept() {
    let mounted = Mounted::ntfs();
    for (path, words) in [("x/nul.txt", "the name `nul.txt`"), ("x/dot.", "`.` at the end of a name")] {
        let job = bundle_of(&[&format!("https://{FILES}/{path}")]);
        assert_refused(&job, &mounted, &[words, path]);
    }
}

#[test]
fn tags_and_files_that_differ_in_case_are_refused_where_case_is_ignored() {
    for mounted in [Mounted::exfat(), Mounted::ntfs()] {
        let tag = |tag: &str| format!("{REGISTRY}/x/app:{tag}");
        let both = bundle_of(&[&tag("v1"), &tag("V1"), &tag("v2")]);
        let names = ["app:V1` and `", "app:v1`", "differ in case only"];
        let finished = assert_refused(&both, &mounted, &names);
        assert!(!finished.stderr.contains("app:v2"), "{finished:#?}");
        // A later bundle meets what the site has.
        let site = mounted.text("site");
        let (one, other) = (bundle_of(&[&tag("v1")]), bundle_of(&[&tag("V1"), &tag("v3")]));
        unbundle(["unpack", &one.text(OUTPUT), &site]).ok();
        unbundle(["unpack", &other.text(OUTPUT), &site]).failed(6, &["app:V1` and `", "app:v1`"]);
        unbundle(["unpack", &one.text(OUTPUT), &site]).ok();
        let file = |name: &str| bundle_of(&[&format!("https://{FILES}/{name}")]);
        unbundle(["unpack", &file("readme").text(OUTPUT), &site]).ok();
        let collision = ["files.example/README` and `", "files.example/readme`"];
        unbundle(["unpack", &file("README").text(OUTPUT), &site]).failed(6, &collision);
    }
    // Both are unpacked on a file system that distinguishes case.
    let both = bundle_of(&[&format!("{REGISTRY}/x/app:v1"), &format!("{REGISTRY}/x/app:V1")]);
    unbundle(["unpack", &both.text(OUTPUT), &both.text("site")]).ok();
}

#[test]
fn file_system_that_does_not_know_its_size_is_not_full() {
    let mounted = Mounted::ramfs();
    let job = bundle_of(&[&format!("https://{FILES}/a"), &format!("{REGISTRY}/x/app:1")]);
    unbundle(["unpack", &job.text(OUTPUT), &mounted.text("site")]).ok();
    assert!(mounted.path().join("site/files/k8s/files.example/a").is_file());
}

/// Runs a command with a limit for the size of files, of which the kernel reports the same error as of FAT32.
fn run_with_file_limit(kibibytes: u64, command: &Command) -> Finished {
    let mut limited = Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", kibibytes * 2);
    limited.args(["-c", &script, "sh"]);
    append_command(&mut limited, command);
    run(&mut limited)
}

#[test]
fn bundle_that_is_too_large_for_a_file_keeps_what_was_fetched_and_names_volumes() {
    let large = random_bytes(1, 9 << 20);
    let mut content = Content::default();
    content.file(&format!("https://{FILES}/large"), large);
    let fake = Fake::honest(content);
    let job = PackJob::new(&format!("https://{FILES}/large\n"));
    let options = PackJob::options_from(&fake, &[]);
    let finished = run_with_file_limit(6 << 10, &job.command(&options)).failed(6, &[PARTIAL, "too large"]);
    assert!(
        finished.stderr.contains("hint: ") && finished.stderr.contains("--volume-size fat32"),
        "{finished:#?}"
    );
    assert!(finished.stderr.contains("partial bundle kept"), "{finished:#?}");
    let before_the_fetch = finished.stderr.split("fetching").next().unwrap_or_default();
    let warning = "can have at most 6.3 MB, and the bundle may have up to 9.4 MB: use `--volume-size fat32`";
    assert!(before_the_fetch.contains(warning), "{finished:#?}");
    assert!(job.path(PARTIAL).exists());
    // Volumes are below the limit, and reuse the content.
    let before: usize = fake.seen_of("/large").iter().filter(|seen| !seen.is_probe()).count();
    let options = PackJob::options_from(&fake, &["--volume-size", "5MiB"]);
    let packed = run_with_file_limit(6 << 10, &job.command(&options)).ok();
    assert!(packed.stdout.contains("volumes"), "{packed:#?}");
    assert!(packed.stdout.contains("reused") || packed.stdout.contains("resumed"), "{packed:#?}");
    assert!(before > 0);
    unbundle(["verify", &job.text("out.tar.zst.001")]).ok();
}

#[test]
fn blob_that_is_too_large_for_a_file_is_named_before_anything_is_written() {
    let mut content = Content::default();
    content.file(&format!("https://{FILES}/large"), random_bytes(1, 9 << 20));
    content.file(&format!("https://{FILES}/small"), b"small".to_vec());
    let fake = Fake::honest(content);
    let job = PackJob::new(&format!("https://{FILES}/large\nhttps://{FILES}/small\n"));
    job.pack_with(&mirrors_to(&fake)).ok();
    let mut command = Command::new(env!("CARGO_BIN_EXE_unbundle"));
    command.args(["unpack", &job.text(OUTPUT), &job.text("site")]);
    let finished =
        run_with_file_limit(6 << 10, &command).failed(6, &["files of this size", "large` (9.4 MB)"]);
    assert!(
        finished.stderr.contains("nothing was written") && !finished.stderr.contains("/small"),
        "{finished:#?}"
    );
    assert!(files_below(&job.path("site")).is_empty(), "{finished:#?}");
}
