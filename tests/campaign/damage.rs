//! A site with one file damaged, and each command at it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::program::unbundle_command;
use crate::report::Report;
use crate::scenario::{badly_ended, run_within};
use crate::support::for_each;
use crate::support::process::run as run_command;
use crate::support::storage::incomplete_images;
use crate::support::tree::{Entry, Kind, Tree};
use crate::world::World;

/// Name of this part.
pub const PART: &str = "damaged sites";

/// A kind of damage, and how it is done to a path.
type Damage = (&'static str, fn(&Path, &Path));

/// Each has the path, and one outside the site. Nothing has the name when the second kind begins.
const DAMAGES: &[Damage] = &[
    ("missing", |_, _| ()),
    ("empty", |path, _| fs::write(path, "").expect("write a file")),
    ("garbage", |path, _| fs::write(path, [0xff_u8; 777]).expect("write a file")),
    ("very large", |path, _| {
        let file = fs::File::create(path).expect("create a file");
        file.set_len(1 << 30).expect("a sparse file");
    }),
    ("a directory", |path, _| {
        fs::create_dir(path).expect("create a directory");
        fs::write(path.join("file"), "x").expect("write a file");
    }),
    ("a FIFO", |path, _| _ = run_command(Command::new("mkfifo").arg(path))),
    ("a device", |path, _| _ = run_command(Command::new("mknod").arg(path).args(["c", "1", "5"]))),
    ("a symlink to outside", |path, outside| symlink(outside, path).expect("create a link")),
    ("a symlink to itself", |path, _| symlink(path, path).expect("create a link")),
    ("a hard link to outside", |path, outside| fs::hard_link(outside, path).expect("create a link")),
];

/// Damage that needs the file.
const CHANGES: &[Damage] = &[
    ("one byte changed", |path, _| {
        let mut bytes = fs::read(path).expect("read a file");
        let middle = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 1;
        }
        fs::write(path, bytes).expect("write a file");
    }),
    ("cut in half", |path, _| {
        let bytes = fs::read(path).expect("read a file");
        fs::write(path, &bytes[..bytes.len() / 2]).expect("write a file");
    }),
    ("one byte more", |path, _| {
        let mut bytes = fs::read(path).expect("read a file");
        bytes.push(b'x');
        fs::write(path, bytes).expect("write a file");
    }),
    ("mode 000", |path, _| fs::set_permissions(path, Permissions::from_mode(0o000)).expect("set a mode")),
];

/// Runs the cases: all, or every `step`-th.
pub fn run(world: &World, step: usize, report: &Report) {
    let (a, site) = (world.text("a.tar.zst"), world.path("configured"));
    let reference = content(&site.join("site"));
    // Directories too: the name of one can be taken by something else.
    let all = Tree::of(&site);
    let paths: Vec<PathBuf> =
        all.0.keys().filter(|path| path.as_path() != Path::new("site")).cloned().collect();
    let commands: Vec<(&str, Vec<&str>)> = vec![
        ("unpack", vec!["unpack", "-q", &a, "@"]),
        ("unpack --replace", vec!["unpack", "-q", "--replace", &a, "@"]),
        ("prune", vec!["prune", "-q", "@", "--keep", &a, "--yes"]),
        ("prune in dry run", vec!["prune", "-q", "@", "--keep", &a]),
        ("inventory", vec!["inventory", "-q", "--check", "@"]),
        ("images", vec!["images", "@"]),
        ("site", vec!["site", "@", "--adopt-conf", "--host", "old.test", "--ip", "192.0.2.6"]),
    ];
    let mut cases = Vec::new();
    for path in &paths {
        let is_file = matches!(all.0[path].kind, Kind::File { .. });
        for damage in DAMAGES.iter().chain(CHANGES.iter().filter(|_| is_file)) {
            for command in &commands {
                cases.push((path, damage, command));
            }
        }
    }
    let chosen: Vec<_> = cases.into_iter().enumerate().filter(|(number, _)| number % step == 0).collect();
    for_each(&chosen, |&(number, (path, (damage, apply), (name, arguments)))| {
        let top = world.cases(&format!("damage-{number}"));
        fs::create_dir(&top).expect("create a directory");
        let outside = top.join("outside");
        fs::write(&outside, "mine").expect("write a file");
        run_command(Command::new("cp").arg("-a").arg(site.join("site")).arg(top.join("site")));
        let damaged = top.join(path);
        if DAMAGES.iter().any(|(name, _)| name == damage) {
            if damaged.is_dir() {
                fs::remove_dir_all(&damaged).expect("remove a directory");
            } else {
                fs::remove_file(&damaged).expect("remove a file");
            }
        }
        apply(&damaged, &outside);
        let context = format!("{}, {damage}", path.display());
        let found = case(&top, arguments, name, &context, &reference, &outside, report);
        if found {
            fs::remove_dir_all(&top).expect("remove a directory");
        }
    });
}

/// Returns what `unpack` writes to a site.
fn content(site: &Path) -> Tree {
    let parts = ["files/k8s", "registry/docker"].map(|part| (part, Tree::of(&site.join(part))));
    let entries = parts.into_iter().flat_map(|(part, tree)| {
        tree.0.into_iter().map(move |(path, entry)| (Path::new(part).join(path), entry))
    });
    Tree(entries.collect())
}

/// Returns what of the reference is missing, different or not readable for servers. Other files are not those of `unpack`.
fn difference(found: &Tree, reference: &Tree) -> Vec<String> {
    let is_right = |path: &PathBuf, entry: &Entry| {
        found.0.get(path).is_some_and(|found| found.kind == entry.kind && found.mode & 0o444 == 0o444)
    };
    let wrong = reference.0.iter().filter(|(path, entry)| !is_right(path, entry));
    wrong.map(|(path, _)| format!("{} is {:?}", path.display(), found.0.get(path))).collect()
}

/// Returns true if there is no violation.
fn case(
    top: &Path,
    arguments: &[&str],
    name: &str,
    context: &str,
    reference: &Tree,
    outside: &Path,
    report: &Report,
) -> bool {
    let site = top.join("site");
    let mut command = unbundle_command();
    command.args(
        arguments
            .iter()
            .map(|&argument| if argument == "@" { site.to_str().expect("UTF-8") } else { argument }),
    );
    let ended = run_within("20", Stdio::null(), &command);
    let mut violations = badly_ended(&ended);
    if fs::read(outside).ok().as_deref() != Some(b"mine") {
        violations.push("the file outside has changed".to_owned());
    }
    if name.starts_with("unpack") && ended.code == 0 && violations.is_empty() {
        violations.extend(difference(&content(&site), reference));
        violations.extend(incomplete_images(&site.join("registry/docker/registry/v2")));
    }
    report.add(PART, name, context, ended.code, &violations)
}
