//! [`Report`]: what was tried, and what went wrong.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Cases and violations by part and group, in the order of their first case.
pub struct Report {
    start: Instant,
    rows: Mutex<Vec<Row>>,
}

struct Row {
    part: &'static str,
    group: String,
    cases: usize,
    violations: Vec<String>,
    /// Exit codes and how often they were seen; a signal is 128 and its number.
    codes: BTreeMap<i32, usize>,
}

impl Report {
    pub fn new() -> Self {
        Self { start: Instant::now(), rows: Mutex::new(Vec::new()) }
    }

    /// Counts one case that ended with this code.
    pub fn add(&self, part: &'static str, group: &str, code: i32, violations: Vec<String>) {
        for violation in &violations {
            eprintln!("VIOLATION {part}, {group}: {violation}");
        }
        let mut rows = self.rows.lock().expect("no thread panics with the lock");
        let index = rows.iter().position(|row| row.part == part && row.group == group).unwrap_or_else(|| {
            rows.push(Row {
                part,
                group: group.to_owned(),
                cases: 0,
                violations: Vec::new(),
                codes: BTreeMap::new(),
            });
            rows.len() - 1
        });
        let row = &mut rows[index];
        row.cases += 1;
        row.violations.extend(violations);
        *row.codes.entry(code).or_default() += 1;
    }

    /// Number of cases, and of violations.
    pub fn totals(&self) -> (usize, usize) {
        let rows = self.rows.lock().expect("no thread panics with the lock");
        (rows.iter().map(|row| row.cases).sum(), rows.iter().map(|row| row.violations.len()).sum())
    }

    /// Number of cases of a part.
    pub fn cases_of(&self, part: &str) -> usize {
        let rows = self.rows.lock().expect("no thread panics with the lock");
        rows.iter().filter(|row| row.part == part).map(|row| row.cases).sum()
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Replaces the table of a page, which is between two comments.
    pub fn write(&self, page: &Path) {
        const BEGIN: &str = "<!-- campaign: begin -->\n";
        const END: &str = "<!-- campaign: end -->\n";
        let text = fs::read_to_string(page).expect("read the page");
        let (before, rest) = text.split_once(BEGIN).expect("the comment before the table");
        let (_, after) = rest.split_once(END).expect("the comment behind the table");
        let (cases, violations) = self.totals();
        let minutes = self.elapsed().as_secs().div_ceil(60);
        let sum = format!("{cases} cases in {minutes} minutes: {violations} violations.\n");
        let table = self.table();
        fs::write(page, format!("{before}{BEGIN}\n{sum}\n{table}\n{END}{after}")).expect("write the page");
    }

    /// Returns the table in Markdown.
    pub fn table(&self) -> String {
        let rows = self.rows.lock().expect("no thread panics with the lock");
        let mut table =
            "| part | group | cases | exit codes (cases) | violations |\n|---|---|---|---|---|\n".to_owned();
        for row in rows.iter() {
            let codes: Vec<_> = row.codes.iter().map(|(code, count)| format!("{code} ({count})")).collect();
            let Row { part, group, cases, violations, .. } = row;
            writeln!(table, "| {part} | {group} | {cases} | {} | {} |", codes.join(", "), violations.len())
                .expect("write to a string");
        }
        table
    }
}
