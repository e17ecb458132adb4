//! A changed byte at each place of a bundle, and an end at each place.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::program::unbundle_command;
use crate::report::Report;
use crate::scenario::{Scenario, badly_ended, run_within};
use crate::support::for_each;
use crate::world::World;

/// Name of this part.
pub const PART: &str = "changed bundles";

/// A change of a bundle.
#[derive(Clone, Copy)]
enum Change {
    /// Bits of one byte.
    Flip(usize),
    /// Everything from here on is missing.
    Cut(usize),
}

impl Change {
    fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Flip(at) => bytes[at] ^= [0x01, 0x80, 0xff][at % 3],
            Self::Cut(at) => bytes.truncate(at),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Flip(at) => format!("flip-{at}"),
            Self::Cut(at) => format!("cut-{at}"),
        }
    }

    fn group(self) -> &'static str {
        match self {
            Self::Flip(_) => "one byte",
            Self::Cut(_) => "cut off",
        }
    }
}

/// Runs the cases: all, or `limit` of each group.
pub fn run(world: &World, limit: Option<usize>, report: &Report) {
    let tiny = world.path("tiny.tar.zst");
    let bytes = fs::read(&tiny).expect("read a bundle");
    let scenario = Scenario::unpack(world, "tiny", &world.text("tiny.tar.zst"));
    let right = decoded(&bytes).expect("decode a bundle");
    let step = limit.map_or(1, |limit| (bytes.len() / limit).max(1));
    let mut changes: Vec<Change> = (0..bytes.len()).step_by(step).map(Change::Flip).collect();
    changes.extend((0..bytes.len()).step_by(step).map(Change::Cut));
    for_each(&changes, |&change| {
        let directory = world.cases(&change.name());
        fs::create_dir(&directory).expect("create a directory");
        let mut other = bytes.clone();
        change.apply(&mut other);
        let bundle = directory.join("bundle.tar.zst");
        fs::write(&bundle, &other).expect("write a bundle");
        // zstd has bits without meaning.
        let is_same = matches!(change, Change::Flip(at) if is_in_data(&bytes, at))
            && decoded(&other).is_some_and(|content| content == right);
        case(&scenario, change, is_same, &directory, &bundle, report);
        fs::remove_dir_all(&directory).expect("remove a directory");
    });
}

/// True if a byte is in a frame with content, and not in a skippable one.
fn is_in_data(bundle: &[u8], at: usize) -> bool {
    let mut start = 0;
    loop {
        let size = zstd::zstd_safe::find_frame_compressed_size(&bundle[start..]).expect("a frame");
        if at < start + size {
            return bundle[start..].starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
        }
        start += size;
    }
}

/// Returns the content of all frames. `None`: one is corrupt or cut off.
fn decoded(bundle: &[u8]) -> Option<Vec<u8>> {
    zstd::stream::decode_all(bundle).ok()
}

fn case(
    scenario: &Scenario,
    change: Change,
    is_same: bool,
    directory: &Path,
    bundle: &Path,
    report: &Report,
) {
    let run = |arguments: &[&str], site: Option<&Path>| {
        let mut command = unbundle_command();
        command.arg(arguments[0]).arg(bundle).args(site).args(&arguments[1..]);
        run_within("20", Stdio::null(), &command)
    };
    let add = |group: &str, code: i32, violations: &[String]| {
        report.add(PART, &format!("{}, {group}", change.group()), &change.name(), code, violations);
    };
    let verified = run(&["verify", "-q"], None);
    let mut violations = badly_ended(&verified);
    if verified.code == 0 && !is_same {
        violations.push("verify finds nothing".to_owned());
    }
    add("verify", verified.code, &violations);
    for (group, options) in
        [("unpack", &["unpack", "-q"][..]), ("unpack --keep-going", &["unpack", "-q", "--keep-going"])]
    {
        let top = directory.join(group.replace(' ', ""));
        fs::create_dir(&top).expect("create a directory");
        let unpacked = run(options, Some(&top.join("site")));
        let mut violations = badly_ended(&unpacked);
        // The record lists what is there.
        let is_partial = options.contains(&"--keep-going");
        violations.extend(
            scenario
                .unsound(&top)
                .into_iter()
                .filter(|line| !is_partial || !line.starts_with("site/site.json")),
        );
        if unpacked.code == 0 {
            violations.extend(scenario.difference(&top));
        }
        add(group, unpacked.code, &violations);
    }
}
