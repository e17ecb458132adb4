//! Two programs at once at the same place.

use std::fs;
use std::thread;

use crate::report::Report;
use crate::scenario::{Scenario, badly_ended};
use crate::world::World;

/// Name of this part.
pub const PART: &str = "two at once";

/// Runs every command with itself, and those of a site with each other, this many times.
pub fn run(world: &World, scenarios: &[Scenario], rounds: usize, report: &Report) {
    for scenario in scenarios {
        for round in 0..rounds {
            let directory = world.cases(&format!("{} {round}", scenario.name));
            scenario.prepare(&directory);
            let [one, two] = thread::scope(|scope| {
                [(); 2]
                    .map(|()| scope.spawn(|| scenario.run(&scenario.command(&directory))))
                    .map(|run| run.join().expect("a run"))
            });
            let mut violations = [badly_ended(&one), badly_ended(&two)].concat();
            if one.code != 0 && two.code != 0 {
                violations.push(format!("both fail: {} {}", one.stderr, two.stderr));
            }
            violations.extend(scenario.difference(&directory));
            let context = |violation| format!("round {round}: {violation}");
            let is_right = violations.is_empty();
            report.add(
                PART,
                scenario.name,
                one.code.max(two.code),
                violations.into_iter().map(context).collect(),
            );
            if is_right {
                fs::remove_dir_all(&directory).expect("remove a directory");
            }
        }
    }
    eprintln!("{PART}: {} cases, {} s", report.cases_of(PART), report.elapsed().as_secs());
}
