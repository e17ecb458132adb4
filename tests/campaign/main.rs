//! The campaign: faults at every system call, byte and file. `quick` tries a sample of everything, `full` all of it.
//!
//! Usage: campaign [quick|full] [PART…]. If `CAMPAIGN_PAGE` names a Markdown file, its rows replace those in the
//! table of that page.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(unreachable_pub, reason = "as in the other test targets")]

mod calls;
mod damage;
mod flips;
mod hostile;
mod inject;
mod limits;
mod pairs;
mod power;
mod report;
mod scenario;
mod serving;
mod system_calls;
mod world;

#[path = "../e2e/program.rs"]
#[allow(dead_code, unreachable_pub, reason = "the end-to-end tests use all of it")]
mod program;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::ExitCode;

use report::Report;
use world::World;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(inject::TRACER) => return inject::run_tracer(&arguments[1..]),
        Some(inject::TRACEE) => inject::become_tracee(&arguments[1..]),
        _ => {}
    }
    let is_full = arguments.iter().any(|argument| argument == "full");
    let names: Vec<&String> = arguments
        .iter()
        .filter(|name| !["quick", "full"].contains(&name.as_str()) && !name.starts_with('-'))
        .collect();
    let is_chosen = |part: &str| names.is_empty() || names.iter().any(|name| part.contains(name.as_str()));
    let of = |quick: usize, full: usize| if is_full { full } else { quick };
    let report = Report::new();
    let world = World::new();
    let scenarios = scenario::all(&world);
    let parts: &[(&str, &dyn Fn())] = &[
        (pairs::PART, &|| pairs::run(&world, &scenarios, of(2, 40), &report)),
        (limits::PART, &|| limits::run(&world, &scenarios, of(9, 1), &report)),
        (flips::PART, &|| flips::run(&world, (!is_full).then_some(60), &report)),
        (damage::PART, &|| damage::run(&world, of(83, 1), &report)),
        (hostile::PART, &|| hostile::run(&world, of(7, 1), &report)),
        (serving::PART, &|| serving::run(&world, of(2, 60), &report)),
        (power::PART, &|| power::run(&world, &scenarios, of(1, 40) as u64, &report)),
        (system_calls::PART, &|| system_calls::run(&world, &scenarios, (!is_full).then_some(1), &report)),
    ];
    for (part, run) in parts.iter().filter(|(part, _)| is_chosen(part)) {
        run();
        let cases = report.cases_of(part);
        assert!(cases > 0, "{part}: no case was run");
        eprintln!("{part}: {cases} cases, {} s", report.elapsed().as_secs());
    }
    print!("{}", report.table());
    let (cases, violations) = report.totals();
    println!("{cases} cases, {violations} violations, {} min", report.elapsed().as_secs().div_ceil(60));
    if let Some(page) = std::env::var_os("CAMPAIGN_PAGE") {
        report.write(Path::new(&page), &parts.iter().map(|(part, _)| *part).collect::<Vec<_>>());
    }
    ExitCode::from(u8::from(violations > 0))
}
