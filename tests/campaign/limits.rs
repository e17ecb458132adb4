//! Limits of the process: each command with each limit.

use std::fs;
use std::process::Command;

use crate::report::Report;
use crate::scenario::{Scenario, badly_ended};
use crate::system_calls::for_each;
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
        limited.arg(limit).arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        let ended = scenario.run(&limited);
        // Programs that cannot even be loaded say nothing about themselves.
        let is_started = !ended.stderr.contains("error while loading shared libraries");
        let mut violations = if is_started { badly_ended(&ended) } else { Vec::new() };
        violations.extend(scenario.unsound(&directory));
        if ended.code == 0 {
            violations.extend(scenario.difference(&directory));
        }
        let again = scenario.run(&scenario.command(&directory));
        if again.code != 0 {
            violations.push(format!("run again: exit code {}: {}", again.code, again.stderr));
        }
        violations
            .extend(scenario.difference(&directory).into_iter().map(|line| format!("run again: {line}")));
        let is_right = violations.is_empty();
        let context = |violation| format!("{}: {violation}", scenario.name);
        report.add(PART, &limit[2..], ended.code, violations.into_iter().map(context).collect());
        if is_right {
            fs::remove_dir_all(&directory).expect("remove a directory");
        }
    });
    eprintln!("{PART}: {} cases, {} s", report.cases_of(PART), report.elapsed().as_secs());
}
