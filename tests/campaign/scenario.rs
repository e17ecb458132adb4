//! [`Scenario`]: a command, the directory that it works in, and what a reader may see there at any moment.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::program::{airbundle_command, unbundle_command};
use crate::support::process::{append_command, run};
use crate::support::sha256;
use crate::support::storage::incomplete_images;
use crate::support::tree::{Kind, Tree};
use crate::world::World;

/// Exit codes of errors that have been reported (`docs/cli.md`), without that of wrong usage.
const REPORTED: &[i32] = &[3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 17, 18];

/// A command in a directory of its own. `@` in an argument stands for that directory.
pub struct Scenario {
    pub name: &'static str,
    program: fn() -> Command,
    arguments: Vec<String>,
    /// Content of the directory at the start.
    start: Option<PathBuf>,
    input: Option<PathBuf>,
    before: Tree,
    after: Tree,
}

/// The end of a run.
pub struct Ended {
    /// Exit code, or 128 and the number of the signal.
    pub code: i32,
    pub stderr: String,
}

impl Scenario {
    fn new(
        world: &World,
        name: &'static str,
        program: fn() -> Command,
        arguments: &[&str],
        start: Option<&str>,
        input: Option<&str>,
    ) -> Self {
        let path = |name: &str| world.path(name);
        let empty = || Tree(std::collections::BTreeMap::new());
        let mut scenario = Self {
            name,
            program,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            start: start.map(path),
            input: input.map(path),
            before: empty(),
            after: empty(),
        };
        let directory = world.cases(&format!("uninterrupted-{name}"));
        scenario.prepare(&directory);
        scenario.before = state(&directory);
        let ended = scenario.run(&scenario.command(&directory));
        assert_eq!(ended.code, 0, "{name}: {}", ended.stderr);
        scenario.after = state(&directory);
        fs::remove_dir_all(&directory).expect("remove a directory");
        scenario
    }

    /// Unpacks a bundle to an empty directory.
    pub fn unpack(world: &World, name: &'static str, bundle: &str) -> Self {
        Self::new(world, name, unbundle_command, &["unpack", "-q", bundle, "@/site"], None, None)
    }

    /// Makes the directory as it is before the command.
    pub fn prepare(&self, directory: &Path) {
        match &self.start {
            Some(start) => _ = run(Command::new("cp").arg("-a").args([start, directory])),
            None => fs::create_dir_all(directory).expect("create a directory"),
        }
    }

    /// The command in this directory.
    pub fn command(&self, directory: &Path) -> Command {
        let mut command = (self.program)();
        let directory = directory.to_str().expect("UTF-8");
        command.args(self.arguments.iter().map(|argument| argument.replace('@', directory)));
        command
    }

    /// Runs the command, or one that runs it, for at most a minute.
    pub fn run(&self, command: &Command) -> Ended {
        // A pipe and not the file, which would be seekable.
        let mut cat = self.input.as_ref().map(|input| {
            Command::new("cat")
                .arg(input)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("start cat")
        });
        let input = match &mut cat {
            Some(cat) => cat.stdout.take().expect("a pipe").into(),
            None => Stdio::null(),
        };
        let ended = run_within("60", input, command);
        if let Some(mut cat) = cat {
            let _ = cat.kill(); // it ends by itself if all was read
            cat.wait().expect("wait for cat");
        }
        ended
    }

    /// Returns everything in the directory that no reader may see: neither what was there before nor what is there at
    /// the end, lost content, and images with missing parts.
    pub fn unsound(&self, directory: &Path) -> Vec<String> {
        let found = state(directory);
        let (found, before, after) = (visible(&found), visible(&self.before), visible(&self.after));
        let paths: BTreeSet<&Path> =
            [&found, &before, &after].iter().flat_map(|tree| tree.0.keys().map(PathBuf::as_path)).collect();
        let mut unsound = Vec::new();
        for path in paths {
            let [found, before, after] = [&found, &before, &after].map(|tree| tree.0.get(path));
            let is_transient = matches!(found, Some(entry) if entry.kind == Kind::Directory)
                || found.is_none()
                    && before.is_some_and(|entry| entry.kind == Kind::Directory)
                    && after.is_none();
            if found != before && found != after && !is_transient {
                unsound.push(format!("{} is {found:?}, was {before:?}, will be {after:?}", path.display()));
            }
        }
        let storage = directory.join("site/registry/docker/registry/v2");
        unsound.extend(incomplete_images(&storage));
        unsound.extend(wrong_certificates(&directory.join("site/conf"), false));
        unsound
    }

    /// Runs the command again, without a fault, and returns what is wrong with its end and its result.
    pub fn wrong_after_rerun(&self, directory: &Path) -> Vec<String> {
        let ended = self.run(&self.command(directory));
        let failed = (ended.code != 0).then(|| format!("exit code {}: {}", ended.code, ended.stderr));
        let wrong = failed.into_iter().chain(self.difference(directory));
        wrong.map(|line| format!("run again: {line}")).collect()
    }

    /// Like [`Self::difference`], without what no reader sees.
    pub fn visible_difference(&self, directory: &Path) -> Vec<String> {
        visible(&state(directory)).difference(&visible(&self.after))
    }

    /// Returns how the directory differs from that after an uninterrupted run.
    pub fn difference(&self, directory: &Path) -> Vec<String> {
        let mut difference = state(directory).difference(&self.after);
        difference.extend(wrong_certificates(&directory.join("site/conf"), true));
        difference
    }
}

/// Returns what is wrong with the end of a run: a panic, a signal, no exit code of the list, or no message. If the input is
/// not a bundle (8), the message needs no name.
pub fn badly_ended(ended: &Ended) -> Vec<String> {
    let Ended { code, stderr } = ended;
    let what = if stderr.contains("panicked") {
        "panic"
    } else if *code == 124 || *code == 137 {
        "does not end"
    } else if *code != 0 && !REPORTED.contains(code) {
        "exit code"
    } else if *code != 0 && !stderr.contains("error: ") {
        "no message"
    } else if ![0, 8].contains(code) && !stderr.contains('`') {
        "the message names nothing"
    } else {
        return Vec::new();
    };
    vec![format!("{what} {code}: {}", stderr.trim())]
}

/// Runs a command for at most this many seconds.
pub fn run_within(seconds: &str, input: Stdio, command: &Command) -> Ended {
    let mut limited = Command::new("timeout");
    limited.args(["--kill-after=1", seconds]);
    append_command(&mut limited, command);
    let output = limited.stdin(input).output().expect("start a program");
    let code = output.status.code().unwrap_or(137);
    Ended { code, stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
}

/// Returns the tree below a directory. Content of configuration that is random or has the path of the directory is
/// replaced by what does not change.
pub fn state(directory: &Path) -> Tree {
    let mut tree = Tree::of(directory);
    let place = directory.to_str().expect("UTF-8");
    for (path, entry) in &mut tree.0 {
        let is_page = path == Path::new("site/files/index.html");
        let Some(name) = path.strip_prefix("site/conf").ok().or(is_page.then_some(path)) else { continue };
        let Kind::File { size, digest } = &mut entry.kind else { continue };
        let is_random = name
            .extension()
            .is_some_and(|extension| ["crt", "key", "service"].iter().any(|&end| extension == end))
            || ["tls", "ca", "htpasswd", "trust.sh", "clients", ".generated.json", "site"]
                .iter()
                .any(|random| name.starts_with(random))
            || is_page;
        let bytes = fs::read(directory.join(path)).expect("read a file");
        let text = if is_random { vec![u8::from(bytes.is_empty())] } else { bytes };
        let text = String::from_utf8_lossy(&text).replace(place, "@");
        (*size, *digest) = (0, sha256(text.as_bytes()));
    }
    tree
}

/// Returns what is wrong with keys and certificates of a site: a key that does not fit, or after a run that succeeded
/// certificates that no client would accept.
fn wrong_certificates(conf: &Path, is_complete: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let public = |arguments: &[&str], path: &Path| {
        let output =
            Command::new("openssl").args(arguments).arg("-in").arg(path).output().expect("start openssl");
        output.status.success().then_some(output.stdout)
    };
    let file = |name: &str| conf.join(name);
    for (certificate, key) in [("tls/server.crt", "tls/server.key"), ("ca/ca.crt", "ca/ca.key")] {
        let (certificate, key) = (file(certificate), file(key));
        if !certificate.exists() || !key.exists() {
            continue;
        }
        let one = public(&["x509", "-pubkey", "-noout"], &certificate);
        if one.is_none() || one != public(&["pkey", "-pubout"], &key) {
            wrong.push(format!("{} does not fit {}", key.display(), certificate.display()));
        }
    }
    if is_complete && file("ca.crt").exists() {
        let mut verify = Command::new("openssl");
        verify.args(["verify", "-CAfile"]).args([file("ca.crt"), file("tls/server.crt")]);
        if !verify.output().expect("start openssl").status.success() {
            wrong.push("the CA did not sign the certificate".to_owned());
        }
        let right = fs::read(file("ca.crt")).expect("read a certificate");
        for entry in walkdir::WalkDir::new(conf).into_iter().filter_map(Result::ok) {
            if entry.file_name() == "ca.crt" && fs::read(entry.path()).ok().as_ref() != Some(&right) {
                wrong.push(format!("{} is another CA", entry.path().display()));
            }
        }
    }
    wrong
}

/// Returns what readers see: nothing that is hidden, and no unfinished output.
fn visible(tree: &Tree) -> Tree {
    let is_visible = |path: &Path| {
        path.components().all(|part| {
            let part = part.as_os_str().to_string_lossy();
            !part.starts_with('.') && !part.contains(".partial") && part != "unbundle-in-progress"
        })
    };
    Tree(
        tree.0
            .iter()
            .filter(|(path, _)| is_visible(path))
            .map(|(path, entry)| (path.clone(), entry.clone()))
            .collect(),
    )
}

/// Returns all scenarios.
pub fn all(world: &World) -> Vec<Scenario> {
    let at = |name: &str| world.text(name);
    let [a, b, large, recovery, volumes] =
        ["a.tar.zst", "b.tar.zst", "large.tar.zst", "recovery.tar.zst", "volumes"].map(at);
    let [key, list_a, site_a] = ["key", "lists/a.list", "site-a/site"].map(at);
    prepare_starts(world);
    let unbundle = |name, arguments: &[&str], start, input| {
        Scenario::new(world, name, unbundle_command, arguments, start, input)
    };
    let airbundle = |name, arguments: &[&str], start| {
        Scenario::new(world, name, airbundle_command, arguments, start, None)
    };
    let pack = |name, list: &str, options: &[&str], start| {
        let mirrors = world.mirrors(list);
        let mirrors: Vec<&str> = mirrors.iter().map(String::as_str).collect();
        let list = at(&format!("lists/{list}.list"));
        let arguments = [&["pack", "-q", &list, "-o", "@/out.tar.zst"], options, &mirrors].concat();
        airbundle(name, &arguments, start)
    };
    let site = ["site", "@/site", "--host", "hub.test", "--ip", "192.0.2.7", "--user", "joe"];
    let mirrors = world.mirrors("a");
    let mirrors: Vec<&str> = mirrors.iter().map(String::as_str).collect();
    let lock = [&["lock", "-q", &list_a, "-o", "@/lock.json"], &mirrors[..]].concat();
    let keep_b = ["prune", "-q", "@/site", "--keep", &b, "--yes"];
    let archive = ["images", &site_a, "app:1", "--load", "oci-archive", "-o", "@/app.tar"];
    vec![
        unbundle("unpack", &["unpack", "-q", &a, "@/site"], None, None),
        unbundle("unpack over", &["unpack", "-q", &b, "@/site"], Some("site-a"), None),
        unbundle("unpack pipe", &["unpack", "-q", "-", "@/site"], None, Some("a.tar.zst")),
        unbundle("unpack volumes", &["unpack", "-q", &volumes, "@/site"], None, None),
        unbundle("prune", &keep_b, Some("site-ab"), None),
        unbundle("site", &site, Some("site-a"), Some("password")),
        // Configured at another path, as by another host.
        unbundle(
            "site again",
            &[&site[..], &["--adopt-conf"]].concat(),
            Some("configured"),
            Some("password"),
        ),
        unbundle("cat", &["cat", &large, "dl.k8s.io/large", "-o", "@/out"], Some("old"), None),
        unbundle(
            "inventory",
            &["inventory", "-q", "--check", "@/site", "-o", "@/inventory.json"],
            Some("site-a"),
            None,
        ),
        unbundle("images", &archive, None, None),
        unbundle("repair", &["repair", "-q", "@/bad.tar.zst", "-o", "@/good.tar.zst"], Some("bad"), None),
        unbundle("repair volumes", &["repair", "-q", "@/bad", "-o", "@/good"], Some("bad-volumes"), None),
        unbundle(
            "receive",
            &["receive", "-q", "-o", "@/volumes", "--name", "v.tar.zst"],
            None,
            Some("stream"),
        ),
        pack("pack", "a", &[], None),
        pack("pack over", "a", &[], Some("old")),
        pack("pack recovery", "a", &["--recovery", "20%"], None),
        pack("pack volumes", "large", &["--volume-size", "6MiB", "--recovery", "20%"], None),
        pack("pack on-volume", "large", &["--volume-size", "6MiB", "--on-volume", "true"], None),
        pack("pack base", "b", &["--base", &a], None),
        pack("pack reuse", "a", &["--reuse", &a], None),
        airbundle("lock", &lock, None),
        airbundle("sbom", &["sbom", &recovery, "-o", "@/sbom.json"], None),
        airbundle("sign", &["sign", "-q", "--key", &key, "@/b.tar.zst"], Some("unsigned")),
    ]
}

/// Makes the directories that scenarios begin with.
fn prepare_starts(world: &World) {
    let path = |name: &str| world.path(name);
    for name in ["old", "bad", "bad-volumes", "unsigned"] {
        fs::create_dir_all(path(name)).expect("create a directory");
    }
    fs::write(path("password"), "correct horse battery\n").expect("write a file");
    for name in ["old/out", "old/out.tar.zst"] {
        fs::write(path(name), "older").expect("write a file");
    }
    fs::copy(path("b.tar.zst"), path("unsigned/b.tar.zst")).expect("copy a file");
    fs::copy(path("recovery.tar.zst"), path("bad/bad.tar.zst")).expect("copy a file");
    damage(&path("bad/bad.tar.zst"));
    run(Command::new("cp").arg("-a").args([path("volumes"), path("bad-volumes/bad")]));
    let mut volumes: Vec<PathBuf> = fs::read_dir(path("volumes"))
        .expect("list a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    volumes.retain(|path| !path.ends_with("SHA256SUMS"));
    volumes.sort();
    let mut stream = Vec::new();
    for volume in &volumes {
        stream.extend(fs::read(volume).expect("read a volume"));
        damage(&path("bad-volumes/bad").join(volume.file_name().expect("a name")));
    }
    fs::write(path("stream"), stream).expect("write a file");
    run(Command::new("cp").arg("-a").args([path("site-a"), path("configured")]));
    let mut site = unbundle_command();
    site.args(["site", &world.text("configured/site"), "--host", "old.test", "--ip", "192.0.2.6"]);
    run(&mut site);
}

/// Overwrites a part that recovery data can repair.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).expect("read a bundle");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 3000].fill(0);
    fs::write(path, bytes).expect("write a bundle");
}
