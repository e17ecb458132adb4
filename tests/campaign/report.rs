//! [`Report`]: what was tried, and what went wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::process::stdout_of;

/// Cases and violations by part and group, in the order of their first case.
pub struct Report {
    start: Instant,
    rows: Mutex<Vec<Row>>,
}

struct Row {
    part: &'static str,
    group: String,
    cases: usize,
    violations: usize,
    /// Exit codes and how often they were seen; a signal is 128 and its number.
    codes: BTreeMap<i32, usize>,
}

impl Report {
    pub fn new() -> Self {
        Self { start: Instant::now(), rows: Mutex::new(Vec::new()) }
    }

    /// Counts one case that ended with this code. Returns true if there is no violation.
    pub fn add(&self, part: &'static str, group: &str, case: &str, code: i32, violations: &[String]) -> bool {
        if let Some(first) = violations.first() {
            eprintln!("VIOLATION {part}, {group}: {case}: {first} ({} differences)", violations.len());
        }
        let mut rows = self.rows.lock().expect("no thread panics with the lock");
        let index = rows.iter().position(|row| row.part == part && row.group == group).unwrap_or_else(|| {
            rows.push(Row { part, group: group.to_owned(), cases: 0, violations: 0, codes: BTreeMap::new() });
            rows.len() - 1
        });
        let row = &mut rows[index];
        row.cases += 1;
        row.violations += usize::from(!violations.is_empty());
        *row.codes.entry(code).or_default() += 1;
        violations.is_empty()
    }

    /// Number of cases, and of violations.
    pub fn totals(&self) -> (usize, usize) {
        let rows = self.rows.lock().expect("no thread panics with the lock");
        (rows.iter().map(|row| row.cases).sum(), rows.iter().map(|row| row.violations).sum())
    }

    /// Number of cases of a part.
    pub fn cases_of(&self, part: &str) -> usize {
        let rows = self.rows.lock().expect("no thread panics with the lock");
        rows.iter().filter(|row| row.part == part).map(|row| row.cases).sum()
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Replaces the rows of these parts in the table of a page, which is between two comments. The rows of other parts are
    /// those of earlier runs.
    pub fn write(&self, page: &Path, order: &[&str]) {
        const BEGIN: &str = "<!-- campaign: begin -->\n";
        const END: &str = "<!-- campaign: end -->\n";
        let text = fs::read_to_string(page).expect("read the page");
        let (before, rest) = text.split_once(BEGIN).expect("the comment before the table");
        let (old, after) = rest.split_once(END).expect("the comment behind the table");
        let new = self.rows();
        let part_of = |row: &str| row.split('|').nth(1).expect("a cell").trim().to_owned();
        let is_replaced = |row: &str| new.iter().any(|new| part_of(new) == part_of(row));
        let is_row = |row: &&str| order.contains(&part_of(row).as_str());
        let old =
            old.lines().filter(|line| line.starts_with('|')).filter(is_row).filter(|row| !is_replaced(row));
        let mut rows: Vec<String> = old.map(str::to_owned).collect();
        rows.extend(new.iter().cloned());
        rows.sort_by_key(|row| order.iter().position(|part| *part == part_of(row)));
        let sum = |column: usize| -> u64 {
            let cell = |row: &String| row.split('|').nth(column).expect("a cell").trim().parse::<u64>();
            rows.iter().map(|row| cell(row).expect("a number")).sum()
        };
        let sum = format!("{} cases, {} violations.", sum(3), sum(5));
        let table = table(&rows);
        fs::write(page, format!("{before}{BEGIN}\n{sum}\n\n{table}\n{END}{after}")).expect("write the page");
    }

    /// Returns the table in Markdown.
    pub fn table(&self) -> String {
        table(&self.rows())
    }

    fn rows(&self) -> Vec<String> {
        let date = stdout_of(Command::new("date").arg("+%F"));
        let rows = self.rows.lock().expect("no thread panics with the lock");
        let line = |row: &Row| {
            let codes: Vec<_> = row.codes.iter().map(|(code, count)| format!("{code} ({count})")).collect();
            let Row { part, group, cases, violations, .. } = row;
            let codes = codes.join(", ");
            format!("| {part} | {group} | {cases} | {codes} | {violations} | {} |", date.trim())
        };
        rows.iter().map(line).collect()
    }
}

fn table(rows: &[String]) -> String {
    let head =
        "| part | group | cases | exit codes (cases) | violations | date |\n|---|---|---|---|---|---|\n";
    format!("{head}{}\n", rows.join("\n"))
}
