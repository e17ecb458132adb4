//! Limits of the process: each command with each limit.

use std::fs;
use std::process::Command;

use crate::report::Report;
use crate::scenario::{Scenario, badly_ended};
use crate::support::for_each;
use crate::support::process::append_command;
use crate::world::World;

/// Name of this part.
pub const PART: &str = "limits of the process";

/// Options of prlimit(1).
const LIMITS: &[&str] = &[
    "--nofile=8",
    "--nofile=16",
    "--nofile=32",
    "--nofile=64",
    "--nofile=256",
    "--as=33554432",
    "--as=67108864",
    "--as=134217728",
    "--as=268435456",
    "--as=536870912",
    "--fsize=0",
    "--fsize=4096",
    "--fsize=1048576",
    "--stack=262144",
    "--data=33554432",
    "--memlock=0",
    "--core=0",
];

/// Runs the cases: all, or every `step`-th.
pub fn run(world: &World, scenarios: &[Scenario], step: usize, report: &Report) {
    let all = scenarios.iter().flat_map(|scenario| LIMITS.iter().map(move |&limit| (scenario, limit)));
    let chosen: Vec<_> = all.enumerate().step_by(step).collect();
    for_each(&chosen, |&(number, (scenario, limit))| {
        let directory = world.cases(&format!("limits-{number}"));
        scenario.prepare(&directory);
        let program = scenario.command(&directory);
        let mut limited = Command::new("prlimit");
        limited.arg(limit);
        append_command(&mut limited, &program);
        let ended = scenario.run(&limited);
        // Programs that cannot even be loaded say nothing about themselves.
        let is_started = !ended.stderr.contains("error while loading shared libraries");
        let mut violations = if is_started { badly_ended(&ended) } else { Vec::new() };
        violations.extend(scenario.unsound(&directory));
        if ended.code == 0 {
            violations.extend(scenario.difference(&directory));
        }
        violations.extend(scenario.wrong_after_rerun(&directory));
        if report.add(PART, &limit[2..], scenario.name, ended.code, &violations) {
            fs::remove_dir_all(&directory).expect("remove a directory");
        }
    });
}
