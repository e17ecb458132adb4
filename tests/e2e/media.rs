//! Volumes as people carry them: renamed, copied twice, mixed with others, on several drives.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::tempdir;

use crate::pack_job::{FILES, PackJob};
use crate::program::{Finished, run, unbundle, unbundle_command};
use crate::serve::{unpack, world};
use crate::support::fake::{Content, Fake};
use crate::support::tree::Tree;
use crate::support::web::free_port;
use crate::volumes::{change, copy, volume_sets, volumes};

const FILE: i32 = 6;
const DAMAGED: i32 = 7;
const INCOMPLETE: i32 = 16;

fn run_verb(verb: &str, paths: &[&Path]) -> Finished {
    unbundle([verb.as_ref()].into_iter().chain(paths.iter().map(|path| path.as_os_str())))
}

/// Overwrites a part of the file, in percent, with zeros.
fn hole(path: &Path, start: usize, end: usize) {
    change(path, |bytes| {
        let len = bytes.len();
        bytes[len * start / 100..len * end / 100].fill(0);
    });
}

#[track_caller]
fn assert_right_site(site: &Path) {
    unpack(&world().bundle, site).ok();
    assert_eq!(Tree::of(site).difference(&Tree::of(&world().site)), Vec::<String>::new());
}

#[test]
fn volumes_are_recognized_whatever_their_names_are() {
    let names = &volume_sets().names;
    let renamings: [fn(usize, &str) -> String; 5] = [
        |number, name| if number == 1 { name.replace(".002", " (1).002") } else { name.to_owned() },
        |_, name| name.to_uppercase(),
        |number, _| format!("x{number}"),
        |number, _| format!("all_tar_.{:03};1", number + 1),
        |_, name| format!("{}.bin", name.replace('.', "_")),
    ];
    for rename in renamings {
        let temporary = tempdir().unwrap();
        let path = |name: &str| temporary.path().join(name);
        fs::create_dir(path("stick")).unwrap();
        let mut all = Vec::new();
        for (number, name) in names.iter().enumerate() {
            all.push(path("stick").join(rename(number, name)));
            fs::hard_link(volume_sets().plain().join(name), all.last().unwrap()).unwrap();
        }
        for ignored in [".DS_Store", "Thumbs.db", "desktop.ini", "._x0", "notes.txt"] {
            fs::write(path("stick").join(ignored), b"\0\x05\x16\x07").unwrap();
        }
        fs::create_dir(path("stick").join("System Volume Information")).unwrap();
        fs::create_dir(path("stick").join("lost+found")).unwrap();
        let quiet = run_verb("verify", &[&path("stick")]).ok();
        assert!(quiet.stderr.is_empty() || !quiet.stderr.contains("warning"), "{quiet:#?}");
        run_verb("ls", &[&all[2]]).ok();
        // One file has several paths.
        let mut verify = unbundle_command();
        verify.current_dir(path("stick")).args(["verify", &rename(0, &names[0]), "../stick"]).arg(&all[1]);
        let verified = run(&mut verify).ok();
        assert!(
            !verified.stdout.contains("duplicate") && !verified.stderr.contains("warning"),
            "{verified:#?}"
        );
        let mut paths: Vec<&Path> = all.iter().map(PathBuf::as_path).rev().collect();
        let site = path("site");
        paths.push(&site);
        run_verb("unpack", &paths).ok();
        assert_right_site(&site);
    }
}

#[test]
fn frames_are_taken_from_the_copy_that_is_intact() {
    for directory in [volume_sets().plain(), volume_sets().with_recovery()] {
        let temporary = tempdir().unwrap();
        let path = |name: &str| temporary.path().join(name);
        let names = volumes(&directory);
        let (one, two) = (path("one"), path("two"));
        copy(&directory, &one);
        copy(&directory, &two);
        // More than recovery data can repair. The last one loses its end, with the seek table.
        hole(&one.join(&names[0]), 30, 80);
        hole(&one.join(&names[1]), 5, 30);
        let mut bad = vec![one.join(&names[0]), one.join(&names[1]), two.join(&names[2])];
        // If both drives damage one frame, only recovery data can tell which blocks are intact.
        if directory == volume_sets().with_recovery() {
            hole(&two.join(&names[1]), 70, 95);
            bad.push(two.join(&names[1]));
        }
        hole(&two.join(&names[2]), 0, 30);
        change(&one.join(names.last().unwrap()), |bytes| bytes.truncate(bytes.len() / 2));
        for drives in [[&one, &two], [&two, &one]] {
            let [first, second] = drives.map(PathBuf::as_path);
            let verified = run_verb("verify", &[first, second]).ok();
            for bad in &bad {
                let line = format!("copy `{}`: damaged at byte ", bad.display());
                assert!(verified.stdout.contains(&line), "{line}: {verified:#?}");
            }
            let good = format!("copy `{}`", two.join(&names[0]).display());
            assert!(!verified.stdout.contains(&good), "{verified:#?}");
            run_verb("unpack", &[first, second, &path("site")]).ok();
            assert_right_site(&path("site"));
            fs::remove_dir_all(path("site")).unwrap();
            run_verb("repair", &[first, second, Path::new("-o"), &path("good")]).ok();
            for name in names.iter().map(String::as_str).chain(["SHA256SUMS"]) {
                let (good, right) = (fs::read(path("good").join(name)), fs::read(directory.join(name)));
                assert!(good.unwrap() == right.unwrap(), "{name}");
            }
            fs::remove_dir_all(path("good")).unwrap();
        }
        // The same place on both drives.
        hole(&two.join(&names[0]), 30, 80);
        run_verb("verify", &[&one, &two]).failed(DAMAGED, &["not intact"]);
        let failed = run_verb("repair", &[&one, &two, Path::new("-o"), &path("bad")]);
        assert_eq!(failed.code, Some(DAMAGED), "{failed:#?}");
        assert!(!path("bad").join(&names[0]).exists() && !path("bad").join("SHA256SUMS").exists());
    }
}

#[test]
fn of_two_sets_in_a_folder_the_named_or_the_complete_one_is_read() {
    let world = world();
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    fs::create_dir(path("short")).unwrap();
    let options = ["--volume-size", "12MiB", "--title", "the new one"];
    world.pack(&world.lists, &path("short/all.tar.zst"), &options).ok();
    let (short, long) = (volumes(&path("short")), &volume_sets().names);
    assert!(short.len() < long.len());
    // The new set was copied over the old one.
    let stick = path("stick");
    copy(&volume_sets().plain(), &stick);
    for name in short.iter().map(String::as_str).chain(["SHA256SUMS"]) {
        fs::remove_file(stick.join(name)).unwrap();
        fs::copy(path("short").join(name), stick.join(name)).unwrap();
    }
    for bundle in [stick.clone(), stick.join(&short[0]), stick.join("all.tar.zst")] {
        let verified = run_verb("verify", &[&bundle]).ok();
        let all = format!("{}{}", verified.stdout, verified.stderr);
        assert!(
            all.contains(&format!("`{}` belongs to another bundle", long.last().unwrap())),
            "{verified:#?}"
        );
        let site = path("site");
        run_verb("unpack", &[&bundle, &site]).ok();
        assert!(fs::read_to_string(site.join("site.json")).unwrap().contains("the new one"));
        fs::remove_dir_all(site).unwrap();
    }
    // A volume of the old set is named, of which the first ones are gone.
    run_verb("verify", &[&stick.join(long.last().unwrap())]).failed(INCOMPLETE, &[&long[0], "missing"]);
    // Neither is complete: both are told.
    fs::remove_file(stick.join(&short[1])).unwrap();
    let words = ["none of which is complete", "identity", "\"the new one\"", &short[1], &long[0]];
    run_verb("unpack", &[&stick, &path("site")]).failed(INCOMPLETE, &words);
    assert!(!path("site").exists());
    // Both are complete.
    copy(&volume_sets().plain(), &path("both"));
    for name in &short {
        fs::copy(path("short").join(name), path("both").join(name.replace("all", "new"))).unwrap();
    }
    run_verb("ls", &[&path("both")]).failed(2, &["several bundles", "\"the new one\"", "all.tar.zst.001"]);
    run_verb("ls", &[&path("both").join("new.tar.zst.002")]).ok();
}

#[test]
fn repair_of_an_incomplete_set_names_what_is_missing_and_writes_no_checksum_list() {
    let names = &volume_sets().names;
    let sets = [volume_sets().plain(), volume_sets().with_recovery()];
    for (directory, missing) in sets.iter().flat_map(|set| [(set, &names[1]), (set, names.last().unwrap())]) {
        let temporary = tempdir().unwrap();
        let (stick, good) = (temporary.path().join("stick"), temporary.path().join("good"));
        copy(directory, &stick);
        fs::remove_file(stick.join(missing)).unwrap();
        fs::remove_file(stick.join("SHA256SUMS")).unwrap();
        run_verb("repair", &[&stick, Path::new("-o"), &good]).failed(INCOMPLETE, &[missing, "missing"]);
        run_verb("verify", &[&stick]).failed(INCOMPLETE, &["not intact"]);
        assert!(!good.join("SHA256SUMS").exists() && !good.join(missing).exists());
    }
}

#[test]
fn the_name_of_an_output_means_the_new_bundle_whatever_was_there() {
    let world = world();
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    let output = path("w.tar.zst");
    let in_volumes = ["--volume-size", "7MiB"];
    // The second round keeps the older output, which is what would be written.
    for _ in 0..2 {
        world.pack(&world.lists, &output, &[]).ok();
        assert_eq!(volumes(temporary.path()), Vec::<String>::new());
        assert!(output.exists() && !path("SHA256SUMS").exists());
        run_verb("verify", &[&output]).ok();
    }
    for _ in 0..2 {
        world.pack(&world.lists, &output, &in_volumes).ok();
        assert!(!output.exists());
        assert_eq!(volumes(temporary.path()).len(), volume_sets().names.len());
        run_verb("verify", &[&output]).ok();
    }
    fs::write(path("w.tar.zst.999"), "no volume").unwrap();
    world.pack(&world.lists, &output, &[]).ok();
    assert_eq!(volumes(temporary.path()), ["w.tar.zst.999"], "files of others stay");
    run_verb("verify", &[&output]).ok();
}

#[test]
fn names_of_volumes_survive_the_page_of_a_release() {
    let world = world();
    let temporary = tempdir().unwrap();
    let output = temporary.path().join("k8s+cni v1~rc.tar.zst");
    let packed = world.pack(&world.lists, &output, &["--volume-size", "github-release"]).ok();
    assert!(packed.stderr.contains("`k8s.cni.v1.rc.tar.zst.001`"), "{packed:#?}");
    assert_eq!(volumes(temporary.path()), ["k8s.cni.v1.rc.tar.zst.001"]);
    let sums = fs::read_to_string(temporary.path().join("SHA256SUMS")).unwrap();
    assert!(sums.ends_with("  k8s.cni.v1.rc.tar.zst.001\n"), "{sums}");
}

/// A sequence of numbers that looks random.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("less than a usize")
    }
}

#[test]
fn any_mixture_of_volumes_is_a_right_site_or_an_error_that_names_what_is_missing() {
    let world = world();
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    fs::create_dir(path("other")).unwrap();
    world.pack(&world.lists, &path("other/all.tar.zst"), &["--volume-size", "9MiB", "--level", "1"]).ok();
    let sets = [volume_sets().plain(), volume_sets().with_recovery(), path("other")];
    let mut outcomes = BTreeSet::new();
    for seed in 1..=40 {
        let mut random = Random(seed * 6_700_417);
        let folders: Vec<PathBuf> =
            (0..=random.below(3)).map(|number| path(&format!("{seed}-{number}"))).collect();
        for folder in &folders {
            fs::create_dir(folder).unwrap();
        }
        let mut said = Vec::new();
        // Mostly one set, sometimes up to three.
        for set in &sets[..=random.below(6).saturating_sub(3)] {
            for name in volumes(set) {
                for copies in 0..[1, 1, 1, 2, 2, 0][random.below(if seed % 3 == 0 { 6 } else { 5 })] {
                    let folder = &folders[random.below(folders.len())];
                    let to = match random.below(8) {
                        0 => format!("x{}", random.below(1000)),
                        1 => name.to_uppercase(),
                        2 => name.replace(".tar", " (1).tar"),
                        _ => name.clone(),
                    };
                    let _ = fs::remove_file(folder.join(&to));
                    fs::copy(set.join(&name), folder.join(&to)).unwrap();
                    let damage = random.below(8);
                    if damage < 3 {
                        change(&folder.join(&to), |bytes| {
                            let start = random.below(bytes.len() - 1000);
                            match damage {
                                0 => bytes.truncate(start),
                                1 => bytes[start] ^= 4,
                                _ => {
                                    let end = bytes.len().min(start + 1 + random.below(300_000));
                                    bytes[start..end].fill(0);
                                }
                            }
                        });
                    }
                    said.push(format!("{} of {}, copy {copies}, damage {damage}: {to}", name, set.display()));
                }
            }
        }
        let mut paths: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
        let verified = unbundle(
            ["verify", "--no-wait"].map(AsRef::as_ref).into_iter().chain(paths.iter().map(|p| p.as_os_str())),
        );
        let site = path(&format!("{seed}-site"));
        paths.push(&site);
        let unpacked = unbundle(
            ["unpack", "--no-wait"].map(AsRef::as_ref).into_iter().chain(paths.iter().map(|p| p.as_os_str())),
        );
        let context = format!("{seed}: {said:#?} {verified:#?} {unpacked:#?}");
        // `verify` also finds damage that `unpack` does not need to read.
        assert!(verified.code != Some(0) || unpacked.code == Some(0), "{context}");
        outcomes.insert(unpacked.code);
        if unpacked.code == Some(0) {
            assert_right_site(&site);
        } else {
            assert!(matches!(unpacked.code, Some(2 | 7 | 8 | 16)), "{context}");
            let words =
                ["missing", "several bundles", "no bundle", "cannot read", "corrupt", "damaged", "truncated"];
            assert!(words.iter().any(|word| unpacked.stderr.contains(word)), "{context}");
            crate::volumes::assert_visible_files_intact(&site);
        }
        for folder in &folders {
            fs::remove_dir_all(folder).unwrap();
        }
        let _ = fs::remove_dir_all(site);
    }
    assert!(outcomes.contains(&Some(0)) && outcomes.len() > 1, "{outcomes:?}");
}

#[test]
fn a_file_that_becomes_a_directory_is_told_before_anything_changes() {
    let fake = {
        let mut content = Content::default();
        for (path, bytes) in [("x", &b"file"[..]), ("x/y", b"below"), ("other", b"other"), ("new", b"new")] {
            content.file(&format!("https://{FILES}/{path}"), bytes);
        }
        Fake::honest(content)
    };
    let bundle = |paths: &[&str]| {
        let lines: Vec<_> = paths.iter().map(|path| format!("https://{FILES}/{path}")).collect();
        let job = PackJob::new(&lines.join("\n"));
        job.pack_from(&fake, &[]).ok();
        job
    };
    let (file, directory) = (bundle(&["x", "other"]), bundle(&["x/y", "new"]));
    let temporary = tempdir().unwrap();
    for (number, (one, two)) in [(&file, &directory), (&directory, &file)].into_iter().enumerate() {
        let site = temporary.path().join(format!("site{number}"));
        unpack(&one.output(), &site).ok();
        let before = Tree::of(&site);
        let words = ["/x` is a ", "nothing was changed", "--replace"];
        let failed = unpack(&two.output(), &site);
        assert!(
            words.iter().all(|word| failed.stderr.contains(word)) && failed.code == Some(FILE),
            "{failed:#?}"
        );
        assert_eq!(Tree::of(&site).difference(&before), Vec::<String>::new());
        // A file that no bundle has is not removed.
        let files = site.join(format!("files/k8s/{FILES}"));
        if number == 1 {
            fs::write(files.join("x/mine"), "mine").unwrap();
            run_verb("unpack", &[Path::new("--replace"), &two.output(), &site])
                .failed(FILE, &["x/mine", "move it away"]);
            fs::remove_file(files.join("x/mine")).unwrap();
        }
        run_verb("unpack", &[Path::new("--replace"), &two.output(), &site]).ok();
        let expected: &[u8] = if number == 0 { b"below" } else { b"file" };
        let name = if number == 0 { "x/y" } else { "x" };
        assert_eq!(fs::read(files.join(name)).unwrap(), expected);
        run_verb(
            "inventory",
            &[&site, Path::new("--check"), Path::new("-o"), &temporary.path().join("i.json")],
        )
        .ok();
        let keep = [
            "prune".as_ref(),
            site.as_os_str(),
            "--yes".as_ref(),
            "--keep".as_ref(),
            two.output().as_os_str(),
        ]
        .map(OsStr::to_owned);
        unbundle(keep).ok();
        let left: BTreeSet<_> = Tree::of(&files).files().map(Path::to_path_buf).collect();
        let expected = if number == 0 { ["new", "x/y"] } else { ["other", "x"] };
        assert_eq!(left, expected.map(PathBuf::from).into());
    }
}

#[test]
fn nginx_serves_files_with_escaped_slashes_and_queries_where_their_urls_say() {
    const PATHS: [&str; 5] =
        ["api/group%2Fproject/raw", "a%2fb%2Fc%20d", "q?x=1&y=%2F", "plain%20name", "f$o%2Fo"];
    let mut content = Content::default();
    for path in PATHS {
        content.file(&format!("https://{FILES}/{path}"), path.as_bytes());
    }
    let job = PackJob::new(&PATHS.map(|path| format!("https://{FILES}/{path}")).join("\n"));
    job.pack_from(&Fake::honest(content), &[]).ok();
    let site = job.path("site");
    unpack(&job.output(), &site).ok();
    let (files_port, registry_port) = (free_port(), free_port());
    let (files, registry) = (files_port.to_string(), registry_port.to_string());
    let ports = ["--files-port", &files, "--registry-port", &registry];
    unbundle(["site", &job.text("site"), "--host", "localhost", "--tls", "off"].into_iter().chain(ports))
        .ok();
    let mut nginx = Command::new("nginx")
        .args(["-e", "stderr", "-g", &format!("daemon off; user root; pid {};", job.text("pid")), "-c"])
        .arg(site.join("conf/nginx.conf"))
        .spawn()
        .unwrap();
    let get = |path: &str| {
        let url = format!("http://127.0.0.1:{files}/k8s/{FILES}/{path}");
        let mut curl = Command::new("curl");
        run(curl.args([
            "--path-as-is",
            "-sf",
            "--retry",
            "20",
            "--retry-connrefused",
            "--retry-delay",
            "1",
            &url,
        ]))
    };
    let served = PATHS.map(|path| get(path).stdout);
    let outside = get("api/group%2Fproject/../../../../../site.json");
    nginx.kill().unwrap();
    nginx.wait().unwrap();
    // nginx would replace a variable in the last name.
    assert_eq!(served[..4], PATHS[..4]);
    assert_ne!(outside.code, Some(0));
}
