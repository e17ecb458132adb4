//! A fault at each system call of each command.

use std::fs;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::calls::{ALL, ALLOCATIONS, CHANGES, INTERRUPTIBLE, OPENS, READS, RECENT, TRANSFERS, WRITES};
use crate::inject::{self, Action, Injection};
use crate::report::Report;
use crate::scenario::{self, Ended, Scenario};
use crate::support::for_each;
use crate::world::World;

/// Name of this part.
pub const PART: &str = "system calls";

/// A fault, the calls at which it happens, and whether all later calls have it too.
#[derive(Clone, Copy)]
struct Fault {
    name: &'static str,
    calls: &'static [&'static [&'static str]],
    action: Action,
    lasting: bool,
    /// Files that are opened for reading do not have it.
    only_writing: bool,
}

const fn fault(name: &'static str, calls: &'static [&'static [&'static str]], action: Action) -> Fault {
    Fault { name, calls, action, lasting: false, only_writing: false }
}

const fn lasting(fault: Fault) -> Fault {
    Fault { lasting: true, ..fault }
}

const fn only_writing(fault: Fault) -> Fault {
    Fault { only_writing: true, ..fault }
}

const FAULTS: &[Fault] = &[
    only_writing(fault("killed", CHANGES, Action::Kill)),
    only_writing(fault("ENOSPC", ALLOCATIONS, Action::Error(libc::ENOSPC))),
    only_writing(lasting(fault("ENOSPC from then on", ALLOCATIONS, Action::Error(libc::ENOSPC)))),
    only_writing(fault("EDQUOT", ALLOCATIONS, Action::Error(libc::EDQUOT))),
    only_writing(fault("EROFS", ALLOCATIONS, Action::Error(libc::EROFS))),
    fault("EACCES", CHANGES, Action::Error(libc::EACCES)),
    fault("EIO", ALL, Action::Error(libc::EIO)),
    lasting(fault("EIO from then on", TRANSFERS, Action::Error(libc::EIO))),
    fault("EMFILE", &[OPENS], Action::Error(libc::EMFILE)),
    lasting(fault("EMFILE from then on", &[OPENS], Action::Error(libc::EMFILE))),
    fault("ENOMEM", &[&["mmap"]], Action::Error(libc::ENOMEM)),
    fault("EINTR", &[INTERRUPTIBLE], Action::Error(libc::EINTR)),
    lasting(fault("ENOSYS from then on", &[RECENT], Action::Error(libc::ENOSYS))),
    fault("short write", &[WRITES], Action::Short),
    lasting(fault("short writes from then on", &[WRITES], Action::Short)),
    lasting(fault("short reads from then on", &[READS], Action::Short)),
];

/// Runs the cases: all, or at most `limit` of each command and fault.
pub fn run(world: &World, scenarios: &[Scenario], limit: Option<usize>, report: &Report) {
    for scenario in scenarios {
        let mut calls = 0;
        for fault in FAULTS {
            let total = run_case(world, scenario, fault, 0, report);
            calls += total;
            let numbers: Vec<u64> = match limit {
                Some(limit) => spread(total, limit),
                None => (1..=total).collect(),
            };
            for_each(&numbers, |&number| _ = run_case(world, scenario, fault, number, report));
        }
        eprintln!(
            "{PART}: {}: {calls} calls; {} cases in {} s",
            scenario.name,
            report.cases_of(PART),
            report.elapsed().as_secs()
        );
    }
}

/// Returns at most `limit` numbers from 1 to `total`, which differ from command to command.
fn spread(total: u64, limit: usize) -> Vec<u64> {
    let limit = limit as u64;
    if total <= limit {
        return (1..=total).collect();
    }
    let step = total / limit;
    (0..limit).map(|index| 1 + index * step + (total * 7 + index * 13) % step).collect()
}

/// Runs one case, or for the number 0 a run without a fault. Returns the number of calls.
fn run_case(world: &World, scenario: &Scenario, fault: &Fault, number: u64, report: &Report) -> u64 {
    let top = world.cases(&format!("{} {} {number}", scenario.name, fault.name));
    let directory = top.join("in");
    fs::create_dir_all(top.join("outside")).expect("create a directory");
    fs::write(top.join("outside/file"), "mine").expect("write a file");
    scenario.prepare(&directory);
    let injection = Injection {
        calls: fault.calls.concat().iter().map(|&name| name.to_owned()).collect(),
        number,
        action: fault.action,
        lasting: fault.lasting,
        only_writing: fault.only_writing,
        below: vec![directory.clone(), world.root()],
    };
    let log = top.join("log");
    let ended = scenario.run(&inject::command(&injection, &log, &scenario.command(&directory)));
    let seen = inject::seen(&log);
    let mut violations = violations(scenario, fault, &ended, seen.hit.is_some(), &directory);
    if entries(&top) != ["in", "log", "outside"] || entries(&top.join("outside")) != ["file"] {
        violations.push("something outside has changed".to_owned());
    }
    let is_right = match &seen.hit {
        Some(hit) => report.add(PART, fault.name, &format!("call {number}, {hit}"), ended.code, &violations),
        None => violations.is_empty(),
    };
    assert!(is_right || seen.hit.is_some(), "{} without a fault: {violations:#?}", scenario.name);
    if is_right {
        fs::remove_dir_all(&top).expect("remove a directory");
    }
    seen.count
}

fn violations(scenario: &Scenario, fault: &Fault, ended: &Ended, hit: bool, directory: &Path) -> Vec<String> {
    let mut violations = Vec::new();
    // Threads that cannot get memory for their start end the program, as in every Rust program.
    let is_aborted = ended.code == 134 && ended.stderr.contains("failed to allocate an alternative stack");
    let is_killed = hit && (fault.action == Action::Kill || fault.name == "ENOMEM" && is_aborted);
    if !is_killed {
        violations.extend(scenario::badly_ended(ended));
    }
    if !hit && ended.code != 0 {
        violations.push(format!("no fault, and exit code {}: {}", ended.code, ended.stderr));
    }
    if !is_killed && ended.code == 0 {
        let difference = scenario.difference(directory);
        violations.extend(difference.into_iter().map(|line| format!("success, and {line}")));
    }
    violations.extend(
        scenario.unsound(directory).into_iter().map(|line| format!("exit code {}, {line}", ended.code)),
    );
    violations.extend(scenario.wrong_after_rerun(directory));
    // Without mount IDs, each root has its own staging directory.
    violations.retain(|line| !fault.name.starts_with("ENOSYS") || !line.contains("/.unbundle"));
    violations
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("list a directory");
    let mut names: Vec<String> = entries
        .map(|entry| PathBuf::from(entry.expect("an entry").file_name()).display().to_string())
        .collect();
    names.sort();
    names
}
