//! Names that the programs use, and that another user could have taken before: links, FIFOs and files of others
//! are neither followed, written through nor resumed. The umask of the user holds.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::{TempDir, tempdir};

use crate::pack_job::{FILES, LIST, OUTPUT, PARTIAL, PackJob, REGISTRY, SPOOL};
use crate::program::{Finished, airbundle_command, run, unbundle, unbundle_command};
use crate::support::fake::{Content, Fake};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process::append_command;
use crate::support::{process, random_bytes};

/// A user who is neither root nor the user of the tests.
const OTHER: u32 = 65534;
const PRECIOUS: &[u8] = b"precious";

/// Something else than a file of the user at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plant {
    Symlink,
    Dangling,
    HardLink,
    Fifo,
    OtherUser,
    Writable,
}

const PLANTS: [Plant; 6] =
    [Plant::Symlink, Plant::Dangling, Plant::HardLink, Plant::Fifo, Plant::OtherUser, Plant::Writable];
/// Those that lead to another file or block.
const LINKS: [Plant; 4] = [Plant::Symlink, Plant::Dangling, Plant::HardLink, Plant::Fifo];

impl Plant {
    /// Puts it at `path`, in place of what is there. `victim` is a file that must not change, or that must not
    /// appear.
    fn put(self, path: &Path, victim: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(path); // there may be none
        let _ = fs::remove_file(victim); // likewise
        if self != Self::Dangling {
            fs::write(victim, PRECIOUS).unwrap();
        }
        match self {
            Self::Symlink | Self::Dangling => symlink(victim, path).unwrap(),
            Self::HardLink => fs::hard_link(victim, path).unwrap(),
            Self::Fifo => drop(process::run(Command::new("mkfifo").arg(path))),
            Self::OtherUser | Self::Writable => fs::write(path, PRECIOUS).unwrap(),
        }
        match self {
            Self::OtherUser => chown(path, Some(OTHER), Some(OTHER)).unwrap(),
            Self::Writable => fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap(),
            _ => {}
        }
    }

    /// Asserts that the victim is as it was.
    #[track_caller]
    fn assert_untouched(self, victim: &Path, context: &str) {
        if self == Self::Dangling {
            assert!(victim.symlink_metadata().is_err(), "{context}: {self:?}: the file was made");
        } else {
            assert_eq!(fs::read(victim).unwrap(), PRECIOUS, "{context}: {self:?}");
        }
    }
}

/// Runs a program that must not block.
#[track_caller]
fn run_in_time(command: &Command) -> Finished {
    let mut timed = Command::new("timeout");
    timed.args(["--kill-after=1", "60"]);
    append_command(&mut timed, command);
    let finished = run(timed.stdin(Stdio::null()));
    assert!(!matches!(finished.code, Some(124 | 137)), "it blocks: {finished:#?}");
    finished
}

fn unbundle_in_time(args: &[&str]) -> Finished {
    run_in_time(unbundle_command().args(args))
}

/// A list of one image and two files, its bundle and what it is packed from.
struct Job {
    pack: PackJob,
    fake: Fake,
}

impl Job {
    fn new() -> Self {
        let mut content = Content::default();
        let layer = Layer::random(1, 100_000, Compression::Gzip);
        content.image(&format!("{REGISTRY}/app:1"), &Image::new(Format::Oci, "linux/amd64", &[layer]));
        content.file(&format!("https://{FILES}/one"), random_bytes(2, 5000));
        content.file(&format!("https://{FILES}/two"), random_bytes(3, 9_000_000));
        let list = format!("{REGISTRY}/app:1\nhttps://{FILES}/one\nhttps://{FILES}/two\n");
        Self { pack: PackJob::new(&list), fake: Fake::honest(content) }
    }

    /// With the bundle.
    fn packed(options: &[&str]) -> Self {
        let job = Self::new();
        job.pack.pack_from(&job.fake, options).ok();
        job
    }

    fn command(&self, options: &[&str]) -> Command {
        self.pack.command(&PackJob::options_from(&self.fake, options))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.pack.path(name)
    }

    fn text(&self, name: &str) -> String {
        self.pack.text(name)
    }

    fn unpack(&self, options: &[&str]) -> Finished {
        unbundle_in_time(&[&["unpack", "-q", &self.text(OUTPUT), &self.text("site")], options].concat())
    }

    fn site(&self, options: &[&str]) -> Finished {
        let args = ["site", &self.text("site"), "--host", "hub.test", "--ip", "127.0.0.9"];
        unbundle_in_time(&[&args[..], options].concat())
    }

    fn blobs(&self) -> Vec<PathBuf> {
        let site = self.path("site/registry/docker/registry/v2/blobs");
        let found = process::stdout_of(Command::new("find").arg(site).args(["-name", "data"]));
        found.lines().map(PathBuf::from).collect()
    }

    /// Returns every verb that has an option `-o FILE`, without that.
    fn verbs(&self) -> Vec<Command> {
        let (bundle, site, list) = (self.text(OUTPUT), self.text("site"), self.text(LIST));
        let mirrors = PackJob::options_from(&self.fake, &[]);
        let mut verbs: Vec<Command> = [
            &["cat", &bundle, "index.json"][..],
            &["sbom", &bundle],
            &["inventory", &site],
            &["repair", &bundle],
            &["images", &site, "app:1", "--load", "oci-archive"],
        ]
        .map(|args| {
            let mut command = unbundle_command();
            command.args(args);
            command
        })
        .into();
        for verb in ["lock", "pack"] {
            let mut command = airbundle_command();
            command.arg(verb).arg(&list).args(&mirrors);
            verbs.push(command);
        }
        verbs
    }
}

#[test]
fn pack_resumes_only_what_no_other_user_could_have_written() {
    let job = Job::packed(&[]);
    let expected = job.pack.bundle();
    let victim = job.path("victim");
    for name in [PARTIAL, SPOOL, "out.tar.zst.partial.old", "out.tar.zst.partial.002"] {
        for plant in PLANTS {
            let _ = fs::remove_file(job.pack.output()); // volumes leave none
            plant.put(&job.path(name), &victim);
            let finished = run_in_time(&job.command(&["--volume-size", "5MiB"])).ok();
            let context = format!("{name}: {}", finished.stderr);
            plant.assert_untouched(&victim, &context);
            assert!(finished.stderr.contains(&format!("{name}` is not resumed, because it")), "{context}");
            let aside = job.path(&format!("{name}.untrusted"));
            assert!(aside.symlink_metadata().is_ok(), "{context}: {plant:?}");
            if matches!(plant, Plant::OtherUser | Plant::Writable) {
                assert_eq!(fs::read(&aside).unwrap(), PRECIOUS);
            }
            fs::remove_file(aside).unwrap();
            let left = job.pack.file_names();
            assert!(!left.iter().any(|name| name.contains(".partial")), "{left:?}");
        }
    }
    for plant in PLANTS {
        plant.put(&job.path(PARTIAL), &victim);
        run_in_time(&job.command(&[])).ok();
        assert_eq!(job.pack.bundle(), expected);
        assert!(job.pack.output().symlink_metadata().unwrap().is_file());
        fs::remove_file(job.path(&format!("{PARTIAL}.untrusted"))).unwrap();
    }
}

#[test]
fn partial_files_are_private_and_resumed_under_any_umask() {
    for umask in ["002", "022", "077"] {
        let job = Job::new();
        let list = fs::read_to_string(job.path(LIST)).unwrap();
        job.pack.write(LIST, format!("{list}https://{FILES}/missing\n"));
        let pack = |options: &[&str]| run(&mut with_umask(umask, &job.command(options)));
        pack(&["--keep-going"]).failed(4, &["missing"]);
        let modes = [PARTIAL, SPOOL].map(|name| job.path(name).metadata().unwrap().mode() & 0o777);
        assert_eq!(modes, [0o600, 0o600], "umask {umask}");
        let finished = pack(&["--allow-missing"]).failed(4, &["does not contain"]);
        assert!(!finished.stderr.contains("is not resumed"), "{finished:#?}");
        assert!(finished.stdout.contains(" resumed"), "{finished:#?}");
        let mode = job.pack.output().metadata().unwrap().mode() & 0o777;
        assert_eq!(mode, 0o666 & !u32::from_str_radix(umask, 8).unwrap(), "umask {umask}");
    }
}

fn with_umask(umask: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"]);
    shell.stdin(Stdio::null());
    append_command(&mut shell, command);
    shell
}

#[test]
fn outputs_are_written_through_no_link_and_obey_the_umask() {
    let job = Job::packed(&["--recovery", "10%"]);
    job.unpack(&[]).ok();
    let (target, victim) = (job.path("out/put"), job.path("victim"));
    fs::create_dir(job.path("out")).unwrap();
    for mut verb in job.verbs() {
        verb.arg("-o").arg(&target);
        let context = format!("{verb:?}");
        for name in ["put", "put.partial", "put.partial.manifests", ".put.validators.json"] {
            for plant in LINKS {
                // A FIFO is written to, as the user says.
                if name == "put" && plant == Plant::Fifo {
                    continue;
                }
                plant.put(&job.path(&format!("out/{name}")), &victim);
                run_in_time(&verb).ok();
                plant.assert_untouched(&victim, &context);
                let metadata = target.symlink_metadata().unwrap();
                assert!(metadata.is_file() && metadata.nlink() == 1, "{context}: {plant:?}");
                fs::remove_dir_all(job.path("out")).unwrap();
                fs::create_dir(job.path("out")).unwrap();
            }
        }
        for (umask, mode) in [("077", 0o600), ("022", 0o644), ("002", 0o664)] {
            run(&mut with_umask(umask, &verb)).ok();
            assert_eq!(target.metadata().unwrap().mode() & 0o777, mode, "{context}");
            let names = fs::read_dir(job.path("out")).unwrap().map(|entry| entry.unwrap().file_name());
            let visible = names.filter(|name| !name.to_string_lossy().starts_with('.'));
            assert_eq!(visible.count(), 1, "{context}");
            fs::remove_file(&target).unwrap();
        }
    }
    // Volumes: their checksum list has a fixed name.
    Plant::Symlink.put(&job.path("SHA256SUMS"), &victim);
    run_in_time(&job.command(&["--volume-size", "5MiB"])).ok();
    Plant::Symlink.assert_untouched(&victim, "SHA256SUMS");
    assert!(fs::read_to_string(job.path("SHA256SUMS")).unwrap().contains("out.tar.zst.001"));
}

#[test]
fn lists_and_keys_are_written_through_no_link() {
    let directory = tempdir().unwrap();
    let (key, victim) = (directory.path().join("my.key"), directory.path().join("victim"));
    for name in ["my.key.partial", "my.pub.partial"] {
        Plant::Symlink.put(&directory.path().join(name), &victim);
        run(airbundle_command().args(["keygen", "--no-passphrase", "-o"]).arg(&key)).ok();
        Plant::Symlink.assert_untouched(&victim, name);
        assert_eq!(key.metadata().unwrap().mode() & 0o777, 0o600);
        fs::remove_file(&key).unwrap();
        fs::remove_file(key.with_extension("pub")).unwrap();
    }
}

#[test]
fn output_to_stdout_or_a_fifo_is_not_a_file() {
    let job = Job::packed(&[]);
    let expected = unbundle(["cat", &job.text(OUTPUT), "index.json"]).ok().stdout;
    let cat = |output: &str| {
        let mut command = unbundle_command();
        command.args(["cat", &job.text(OUTPUT), "index.json", "-o", output]).stdout(Stdio::piped());
        command
    };
    for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        assert_eq!(run(&mut cat(name)).ok().stdout, expected, "{name}");
    }
    // Redirected to a file, the name leads to that file.
    let file = job.path("redirected");
    let status = cat("/dev/stdout").stdout(fs::File::create(&file).unwrap()).status().unwrap();
    assert!(status.success() && fs::read_to_string(&file).unwrap() == expected);
    assert!(Path::new("/dev/stdout").is_symlink());
    let fifo = job.text("fifo");
    process::run(Command::new("mkfifo").arg(&fifo));
    let mut child = cat(&fifo).spawn().unwrap();
    assert_eq!(fs::read_to_string(&fifo).unwrap(), expected);
    assert!(child.wait().unwrap().success());
    let mut pack = airbundle_command();
    pack.args(["pack", &job.text(LIST), "-o", &fifo]).args(PackJob::options_from(&job.fake, &[]));
    run_in_time(&pack).failed(6, &["fifo", "it is not a regular file"]);
    // A key goes to no FIFO, and nothing goes to that of another user.
    let mut keygen = airbundle_command();
    keygen.args(["keygen", "--no-passphrase", "-o", &job.text("fifo.key")]);
    process::run(Command::new("mkfifo").arg(job.path("fifo.key")));
    assert_ne!(run_in_time(&keygen).code, Some(0));
    chown(&fifo, Some(OTHER), Some(OTHER)).unwrap();
    run_in_time(&cat(&fifo)).failed(6, &["fifo", "it belongs to another user (UID 65534)"]);
}

#[test]
fn two_runs_that_write_one_file_do_not_mix() {
    let job = Job::packed(&[]);
    let output = job.text("object");
    let object = |name: &str| fs::read(job.path(name)).unwrap();
    for (name, path) in [("one.expected", "one"), ("two.expected", "two")] {
        let path = format!("{FILES}/{path}");
        unbundle(["cat", &job.text(OUTPUT), &path, "-o", &job.text(name)]).ok();
    }
    let bundle = job.pack.bundle();
    let mut first = unbundle_command()
        .args(["cat", "-", &format!("{FILES}/two"), "-o", &output])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = first.stdin.take().unwrap();
    pipe.write_all(&bundle[..bundle.len() - 1_000_000]).unwrap();
    unbundle(["cat", &job.text(OUTPUT), &format!("{FILES}/one"), "-o", &output]).ok();
    assert_eq!(object("object"), object("one.expected"));
    pipe.write_all(&bundle[bundle.len() - 1_000_000..]).unwrap();
    drop(pipe);
    assert!(first.wait().unwrap().success());
    assert_eq!(object("object"), object("two.expected"));
}

#[test]
fn staging_directory_of_another_is_refused() {
    let job = Job::packed(&[]);
    job.unpack(&[]).ok();
    let victim = job.path("victim");
    let staging = job.path("site/.unbundle");
    let assert_refused = |finished: Finished, reason: &str| {
        finished.failed(6, &[".unbundle`", reason]);
    };
    let registry = job.text("foreign");
    for at in ["site/.unbundle", "foreign/.unbundle"] {
        let path = job.path(at);
        let options: &[&str] = if at.starts_with("site") { &[] } else { &["--registry", &registry] };
        let _ = fs::remove_dir_all(&staging); // the other case leaves none
        let _ = fs::remove_file(job.path("site/site.json")); // it has other directories
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::create_dir_all(&victim).unwrap();
        fs::write(victim.join("precious"), PRECIOUS).unwrap();
        symlink(&victim, &path).unwrap();
        assert_refused(job.unpack(options), "it is a symlink");
        fs::remove_file(&path).unwrap();
        assert_eq!(fs::read(victim.join("precious")).unwrap(), PRECIOUS);
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
        fs::create_dir(&path).unwrap();
        chown(&path, Some(OTHER), Some(OTHER)).unwrap();
        assert_refused(job.unpack(options), "it belongs to another user (UID 65534)");
        chown(&path, Some(0), Some(0)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).unwrap();
        assert_refused(job.unpack(options), "its group or other users can write to it");
        fs::remove_dir(&path).unwrap();
    }
    // A directory of the user in one of another user is fine.
    chown(&registry, Some(OTHER), Some(OTHER)).unwrap();
    job.unpack(&["--registry", &registry]).ok();
    // So is a site behind a link that the user names.
    symlink(job.path("site"), job.path("named")).unwrap();
    unbundle_in_time(&["unpack", &job.text(OUTPUT), &job.text("named"), "--registry", &registry]).ok();
    // The roots of a site are not links, unless an option names them.
    fs::rename(job.path("site/files"), job.path("moved")).unwrap();
    symlink(job.path("moved"), job.path("site/files")).unwrap();
    job.unpack(&["--registry", &registry]).failed(7, &["`filesRoot`", "not inside the site"]);
}

#[test]
fn names_in_a_site_are_not_followed() {
    let job = Job::packed(&[]);
    job.unpack(&[]).ok();
    let victim = job.path("victim");
    let name_of = |blob: &Path| blob.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let blob = job.blobs().remove(0);
    let guard = "site/registry/docker/registry/v2/blobs/unbundle-in-progress/data";
    let staged = format!("site/.unbundle/{}.1", name_of(&blob));
    // Each is removed or replaced: what was planted is never used.
    for name in
        ["site/.unbundle/record", "site/.unbundle/new.site.json", "site/.unbundle/link.0", &staged, guard]
    {
        for plant in PLANTS {
            fs::remove_file(&blob).unwrap();
            let _ = fs::remove_file(job.path("site/site.json")); // written again
            plant.put(&job.path(name), &victim);
            let finished = job.unpack(&[]).ok();
            plant.assert_untouched(&victim, &format!("{name}: {finished:#?}"));
            assert!(blob.symlink_metadata().unwrap().is_file(), "{name}: {plant:?}");
            assert!(job.path("site/site.json").symlink_metadata().unwrap().is_file(), "{name}: {plant:?}");
            assert!(job.path(name).symlink_metadata().is_err(), "{name}: {plant:?}");
            unbundle(["inventory", &job.text("site"), "--check", "-o", &job.text("i.json")]).ok();
        }
    }
    // A staged file that matches is used only if it is a file of the user.
    for plant in [Plant::HardLink, Plant::OtherUser] {
        let bytes = fs::read(&blob).unwrap();
        plant.put(&job.path(&staged), &victim);
        if plant == Plant::HardLink {
            fs::write(&victim, &bytes).unwrap();
        } else {
            fs::write(job.path(&staged), &bytes).unwrap();
        }
        fs::remove_file(&blob).unwrap();
        job.unpack(&[]).ok();
        let metadata = blob.symlink_metadata().unwrap();
        assert!(metadata.is_file() && metadata.nlink() == 1 && metadata.uid() == 0, "{plant:?}");
    }
    for (name, command) in [
        ("site/.unbundle/lock", &["unpack", "-q", &job.text(OUTPUT)][..]),
        ("site/conf/.lock", &["site", "--host", "hub.test", "--ip", "127.0.0.9"]),
    ] {
        for plant in LINKS {
            plant.put(&job.path(name), &victim);
            let site = job.text("site");
            let args = [command, &[&site]].concat();
            let finished = unbundle_in_time(&args).failed(6, &[name, "it "]);
            plant.assert_untouched(&victim, &format!("{finished:#?}"));
            fs::remove_file(job.path(name)).unwrap();
        }
    }
}

#[test]
fn prune_writes_the_record_through_no_link() {
    let job = Job::packed(&[]);
    job.unpack(&[]).ok();
    let other = Job::new();
    other.pack.write(LIST, format!("https://{FILES}/one\n"));
    other.pack.pack_from(&other.fake, &[]).ok();
    unbundle_in_time(&["unpack", "-q", &other.text(OUTPUT), &job.text("site")]).ok();
    let victim = job.path("victim");
    for (name, plant) in
        ["record", "new.site.json"].into_iter().flat_map(|name| LINKS.map(|plant| (name, plant)))
    {
        plant.put(&job.path("site/.unbundle").join(name), &victim);
        let keep = if job.blobs().is_empty() { &job } else { &other };
        unbundle_in_time(&["prune", &job.text("site"), "--keep", &keep.text(OUTPUT), "--yes"]).ok();
        plant.assert_untouched(&victim, name);
        assert!(job.path("site/site.json").symlink_metadata().unwrap().is_file());
        job.unpack(&[]).ok();
    }
}

#[test]
fn configuration_is_written_through_no_link() {
    let job = Job::packed(&[]);
    job.unpack(&[]).ok();
    job.site(&[]).ok();
    let victim = job.path("victim");
    let conf = |name: &str| job.path("site/conf").join(name);
    let found =
        process::stdout_of(Command::new("find").arg(conf("")).args(["-type", "f", "-printf", "%P\n"]));
    let names: Vec<&str> = found.lines().filter(|name| *name != ".lock").collect();
    assert!(names.contains(&"nginx.conf") && names.contains(&"tls/server.key"), "{names:?}");
    for name in names {
        for plant in LINKS {
            let before = fs::read(conf(name)).unwrap();
            let path = Path::new(name);
            let scratch = format!(".{}.part", path.file_name().unwrap().to_str().unwrap());
            plant.put(&conf(name).with_file_name(scratch), &victim);
            fs::remove_file(conf(name)).unwrap();
            if !name.starts_with("ca/") {
                job.site(&["--adopt-conf"]).ok();
            }
            plant.assert_untouched(&victim, name);
            let _ = fs::remove_file(conf(name)); // as it was
            plant.put(&conf(name), &victim);
            let finished = job.site(&[]);
            plant.assert_untouched(&victim, name);
            if plant != Plant::HardLink {
                finished.failed(6, &[name, "it is "]);
            }
            let _ = fs::remove_file(conf(name)); // likewise
            let _ = fs::remove_file(conf(&format!("{name}.new"))); // likewise
            fs::write(conf(name), before).unwrap();
        }
    }
    // A directory that is a link.
    for name in ["tls", "kubespray", "ca"] {
        fs::rename(conf(name), job.path("moved")).unwrap();
        symlink(job.path("moved"), conf(name)).unwrap();
        job.site(&[]).failed(6, &[&format!("conf/{name}`"), "it is a symlink"]);
        fs::remove_file(conf(name)).unwrap();
        fs::rename(job.path("moved"), conf(name)).unwrap();
        job.site(&[]).ok();
    }
    fs::rename(job.path("site/conf"), job.path("moved")).unwrap();
    symlink(job.path("moved"), job.path("site/conf")).unwrap();
    job.site(&[]).failed(6, &["site/conf` leads to", "outside of the site"]);
    job.site(&["--conf", &job.text("site/conf")]).failed(6, &["moved` is not known to be from this host"]);
    job.site(&["--conf", &job.text("site/conf"), "--adopt-conf"]).ok();
    fs::remove_file(job.path("site/conf")).unwrap();
    // The catalog page.
    for plant in LINKS {
        plant.put(&job.path("site/files/index.html"), &victim);
        // A link or FIFO is an error, and another file with the content of a hard link is a page of the user.
        let finished = job.site(&[]);
        assert!([Some(0), Some(6)].contains(&finished.code), "{finished:#?}");
        plant.assert_untouched(&victim, "index.html");
    }
}

#[test]
fn special_files_in_a_site_do_not_block() {
    let job = Job::packed(&[]);
    let (site, bundle) = (job.text("site"), job.text(OUTPUT));
    let verbs: &[&[&str]] = &[
        &["prune", &site, "--keep", &bundle],
        &["images", &site],
        &["inventory", &site],
        &["site", &site, "--host", "hub.test", "--ip", "127.0.0.9"],
    ];
    for target in ["fifo", "/dev/zero"] {
        job.unpack(&[]).ok();
        let record = job.path("site/site.json");
        fs::remove_file(&record).unwrap();
        if target == "fifo" {
            process::run(Command::new("mkfifo").arg(&record));
        } else {
            symlink(target, &record).unwrap();
        }
        for verb in verbs {
            unbundle_in_time(verb).failed(6, &["site.json", "it is "]);
        }
        job.unpack(&[]).failed(6, &["site.json", "it is "]);
        fs::remove_file(&record).unwrap();
    }
    let registry = job.path("site/registry");
    let find = |args: &[&str]| {
        let found = process::stdout_of(Command::new("find").arg(&registry).args(args));
        found.lines().map(PathBuf::from).collect::<Vec<_>>()
    };
    let fifos = |paths: &[PathBuf]| {
        for path in paths {
            fs::remove_file(path).unwrap();
            process::run(Command::new("mkfifo").arg(path));
        }
    };
    fifos(&find(&["-path", "*_layers*", "-name", "link"]));
    for verb in &verbs[..3] {
        unbundle_in_time(verb);
    }
    job.unpack(&[]).ok();
    unbundle_in_time(verbs[0]).ok();
    fifos(&job.blobs());
    let load = ["images", &site, "--load", "oci-archive", "-o", &job.text("archives")];
    fs::create_dir(job.path("archives")).unwrap();
    unbundle_in_time(&load).failed(6, &["it is not a regular file"]);
    unbundle_in_time(&["inventory", &site, "--check"]);
    job.unpack(&[]).ok();
    unbundle_in_time(&load).ok();
}

#[test]
fn unpack_makes_the_directories_of_a_site_accessible() {
    let job = Job::packed(&[]);
    // The umask is that of the servers' trees.
    let unpack = || {
        let mut command = unbundle_command();
        command.args(["unpack", &job.text(OUTPUT), &job.text("site")]);
        run(&mut with_umask("077", &command))
    };
    unpack().ok();
    let as_other = |path: &Path| {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={OTHER}"), &format!("--regid={OTHER}"), "--clear-groups", "find"]);
        let output = command.arg(path).args(["-type", "f", "-readable"]).output().unwrap();
        let mut files: Vec<_> = output.stdout.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        files.sort();
        (output.status.success(), files)
    };
    fs::set_permissions(job.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let trees = [job.path("site/files"), job.path("site/registry")];
    let before = trees.each_ref().map(|tree| as_other(tree));
    assert!(before.iter().all(|(is_complete, files)| *is_complete && !files.is_empty()));
    let directories = [
        "site/files",
        "site/files/k8s",
        "site/registry/docker/registry/v2/blobs",
        "site/registry/docker/registry/v2/repositories/k8s/registry.example",
    ];
    for directory in directories {
        fs::set_permissions(job.path(directory), fs::Permissions::from_mode(0o700)).unwrap();
        let finished = unpack().ok();
        assert!(!finished.stdout.contains("up to date"), "{directory}: {finished:#?}");
        assert_eq!(trees.each_ref().map(|tree| as_other(tree)), before, "{directory}");
    }
    // A directory that the user named keeps its mode.
    fs::remove_file(job.path("site/site.json")).unwrap();
    let named: TempDir = tempdir().unwrap();
    fs::set_permissions(named.path(), fs::Permissions::from_mode(0o700)).unwrap();
    job.unpack(&["--files", named.path().to_str().unwrap()]).ok();
    assert_eq!(named.path().metadata().unwrap().mode() & 0o777, 0o700);
}
