//! Power cuts: the device is copied while the file system on it has unwritten data, and the copy is mounted.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::calls::CHANGES;
use crate::inject::{self, Action, Injection};
use crate::report::Report;
use crate::scenario::Scenario;
use crate::support::process::run as run_command;
use crate::world::World;

/// Name of this part.
pub const PART: &str = "power cuts";

/// A file system, and the commands that make it on a device.
const FILE_SYSTEMS: &[(&str, &[&str])] =
    &[("ext4", &["mkfs.ext4", "-q", "-F"]), ("xfs", &["mkfs.xfs", "-q", "-f"])];

/// A mounted image. Unmounted when dropped. Needs root.
struct Mounted<'a> {
    directory: &'a Path,
}

impl<'a> Mounted<'a> {
    fn new(image: &Path, directory: &'a Path) -> Self {
        // A copy has the identity of its original.
        let options = if is_xfs(image) { "loop,nouuid" } else { "loop" };
        run_command(Command::new("mount").args(["-o", options]).arg(image).arg(directory));
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status(); // the report tells more
    }
}

fn is_xfs(image: &Path) -> bool {
    image.to_string_lossy().contains("xfs")
}

/// Runs each command on each file system with a cut at `cuts` places, and after its end.
pub fn run(world: &World, scenarios: &[Scenario], cuts: u64, report: &Report) {
    for (file_system, make) in FILE_SYSTEMS {
        let pristine = world.cases(&format!("pristine-{file_system}.image"));
        let file = fs::File::create(&pristine).expect("create an image");
        file.set_len(320 << 20).expect("a sparse file");
        run_command(Command::new(make[0]).args(&make[1..]).arg(&pristine));
        for scenario in scenarios {
            let total = case(world, scenario, &pristine, file_system, 0, report);
            for cut in 0..cuts {
                case(world, scenario, &pristine, file_system, 1 + cut * total / cuts, report);
            }
        }
        fs::remove_file(&pristine).expect("remove an image");
    }
}

/// Runs a command up to a call, or for the number 0 to its end, and cuts the power. Returns the number of calls.
fn case(
    world: &World,
    scenario: &Scenario,
    pristine: &Path,
    file_system: &str,
    number: u64,
    report: &Report,
) -> u64 {
    let case = |name: &str| world.cases(&format!("{file_system}-{name}"));
    let (image, copy, log) = (case("before.image"), case("after.image"), case("log"));
    copy_image(pristine, &image);
    // Configuration has the path of its site.
    let place = TempDir::new().expect("create a temporary directory");
    let mounted = Mounted::new(&image, place.path());
    let directory = mounted.path().join("in");
    scenario.prepare(&directory);
    run_command(Command::new("sync").arg("-f").arg(mounted.path()));
    let injection = Injection {
        calls: CHANGES.concat().iter().map(|&name| name.to_owned()).collect(),
        number,
        action: Action::Kill,
        lasting: false,
        only_writing: true,
        below: vec![directory.clone()],
    };
    let ended = scenario.run(&inject::command(&injection, &log, &scenario.command(&directory)));
    copy_image(&image, &copy);
    drop(mounted);
    let after = Mounted::new(&copy, place.path());
    let directory = after.path().join("in");
    let mut violations = scenario.unsound(&directory);
    if ended.code == 0 {
        violations.extend(
            scenario.visible_difference(&directory).into_iter().map(|line| format!("success, and {line}")),
        );
    } else if number == 0 {
        violations.push(format!("no fault, and exit code {}: {}", ended.code, ended.stderr));
    }
    violations.extend(scenario.wrong_after_rerun(&directory));
    let name = format!("{}, call {number}", scenario.name);
    report.add(PART, file_system, &name, ended.code, &violations);
    drop(after);
    let seen = inject::seen(&log);
    for path in [image, copy, log] {
        fs::remove_file(path).expect("remove a file");
    }
    seen.count
}

/// Copies an image as it is, without unwritten data of the file system on it.
fn copy_image(from: &Path, to: &Path) {
    run_command(Command::new("cp").args(["--sparse=always"]).args([from, to]));
}
