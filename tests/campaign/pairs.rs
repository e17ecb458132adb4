//! Two programs at once at the same place.

use std::fs;
use std::thread;

use crate::report::Report;
use crate::scenario::{Scenario, badly_ended};
use crate::world::World;

/// Name of this part.
pub const PART: &str = "two at once";

/// Runs every command with itself, this many times.
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
            let code = one.code.max(two.code);
            if report.add(PART, scenario.name, &format!("round {round}"), code, &violations) {
                fs::remove_dir_all(&directory).expect("remove a directory");
            }
        }
    }
}
