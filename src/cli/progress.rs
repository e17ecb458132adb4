//! Events for whoever watches: bars on a terminal, plain lines in a log, JSON for a program.

use std::collections::{HashMap, HashSet};
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::base::event::{Event, Report, Silent};
use crate::base::units::human_bytes;

/// Objects smaller than this get no line of their own: it would be gone before it is read.
const BAR_MINIMUM: u64 = 1 << 20;
/// How often a log says how far the work is.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How often a program is told.
const JSON_INTERVAL: Duration = Duration::from_secs(1);

/// What the user wants to see.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Output {
    /// Print nothing but errors
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON on stdout: one object a line, the last one the result
    #[arg(long)]
    pub json: bool,
}

impl Output {
    /// Who takes the events.
    #[must_use]
    pub(crate) fn reporter(self) -> Box<dyn Report> {
        if self.quiet {
            Box::new(Silent)
        } else if self.json {
            Box::new(Json { meter: Mutex::new(Meter::new(JSON_INTERVAL)) })
        } else if std::io::stderr().is_terminal() {
            Box::new(Terminal::new())
        } else {
            Box::new(Lines { meter: Mutex::new(Meter::new(LOG_INTERVAL)) })
        }
    }

    /// The result, for a person or for a program.
    #[must_use]
    pub(crate) fn result(self, text: impl FnOnce() -> String, json: impl FnOnce() -> String) -> String {
        match self {
            Self { quiet: true, .. } => String::new(),
            Self { json: true, .. } => json(),
            _ => text(),
        }
    }
}

/// Bars on a terminal.
struct Terminal {
    all: MultiProgress,
    total: ProgressBar,
    bars: Mutex<HashMap<u64, ProgressBar>>,
}

impl Terminal {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8));
        let total = all.add(ProgressBar::no_length());
        Self { all, total, bars: Mutex::default() }
    }

    fn show(&self, bar: &ProgressBar) {
        self.all.insert_before(&self.total, bar.clone());
    }

    fn line(&self, line: String) {
        let _ = self.all.println(line); // a terminal that is gone has no reader
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.all.clear();
    }
}

impl Report for Terminal {
    fn event(&self, event: &Event) {
        let mut bars = self.bars.lock().expect("no panic while bars are drawn; please report");
        match event {
            Event::Stage { name, bytes, .. } => {
                let template = match bytes {
                    Some(_) => {
                        "{prefix:12} [{wide_bar:.cyan}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left"
                    }
                    None => "{prefix:12} {decimal_bytes} {elapsed}",
                };
                self.total.reset();
                match bytes {
                    Some(bytes) => self.total.set_length(*bytes),
                    None => self.total.unset_length(),
                }
                self.total.set_prefix(*name);
                self.total.set_style(style(template));
                self.total.tick();
            }
            Event::Begin { bytes: Some(bytes), .. } if *bytes < BAR_MINIMUM => {}
            Event::Begin { id, object, bytes } => {
                let bar = ProgressBar::with_draw_target(*bytes, ProgressDrawTarget::hidden());
                bar.set_style(style(match bytes {
                    Some(_) => "  {wide_msg} [{bar:20.green}] {decimal_bytes:>10}/{decimal_total_bytes:10}",
                    None => "  {wide_msg} {spinner:.green} {decimal_bytes:>10}",
                }));
                bar.set_message(object.clone());
                if bytes.is_some() {
                    self.show(&bar);
                }
                if let Some(old) = bars.insert(*id, bar) {
                    self.all.remove(&old);
                }
            }
            Event::Progress { id, bytes } => {
                let bar = bars.get(id);
                let counts_late = bar.is_some_and(|bar| bar.length().is_none());
                if counts_late {
                    self.total.inc_length(*bytes);
                }
                self.total.inc(*bytes);
                if let Some(bar) = bar {
                    let before = bar.position();
                    bar.inc(*bytes);
                    if counts_late && before < BAR_MINIMUM && bar.position() >= BAR_MINIMUM {
                        self.show(bar);
                    }
                }
            }
            Event::Done { id } => {
                if let Some(bar) = bars.remove(id) {
                    self.all.remove(&bar);
                }
            }
            Event::Retry { object, reason, wait } => self.line(retry_line(object, reason, *wait)),
            Event::Note { message } => self.line(message.clone()),
            Event::Warning { message } => self.line(format!("warning: {message}")),
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("a template that was tried; please report")
        .progress_chars("=> ")
        .tick_chars("-\\|/ ")
}

/// Plain lines on stderr.
struct Lines {
    meter: Mutex<Meter>,
}

impl Report for Lines {
    fn event(&self, event: &Event) {
        let mut meter = self.meter.lock().expect("no panic while it counts; please report");
        let line = match event {
            Event::Stage { name, bytes, objects } => {
                meter.begin(*bytes);
                let objects = objects.map(|objects| format!(" {objects} objects")).unwrap_or_default();
                let bytes = bytes.map(|bytes| format!(", {}", human_bytes(bytes))).unwrap_or_default();
                format!("{name}{objects}{bytes}")
            }
            Event::Progress { id, bytes } => match meter.count(*id, *bytes) {
                Some(()) => meter.line(),
                None => return,
            },
            Event::Begin { id, bytes, .. } => return meter.begin_object(*id, *bytes),
            Event::Done { .. } => return,
            Event::Retry { object, reason, wait } => retry_line(object, reason, *wait),
            Event::Note { message } => message.clone(),
            Event::Warning { message } => format!("warning: {message}"),
        };
        let _ = writeln!(std::io::stderr(), "{line}"); // a log that is gone has no reader
    }
}

/// One JSON object a line on stdout.
struct Json {
    meter: Mutex<Meter>,
}

impl Report for Json {
    fn event(&self, event: &Event) {
        let mut meter = self.meter.lock().expect("no panic while it counts; please report");
        let line = match event {
            Event::Progress { id, bytes } => match meter.count(*id, *bytes) {
                Some(()) => {
                    serde_json::json!({"event": "progress", "bytes": meter.done, "total": meter.total})
                }
                None => return,
            },
            Event::Stage { bytes, .. } => {
                meter.begin(*bytes);
                serde_json::json!(event)
            }
            Event::Begin { id, bytes, .. } => {
                meter.begin_object(*id, *bytes);
                serde_json::json!(event)
            }
            event => serde_json::json!(event),
        };
        let _ = writeln!(std::io::stdout(), "{line}"); // as above
    }
}

/// How far a stage is, told at intervals.
struct Meter {
    interval: Duration,
    total: Option<u64>,
    /// What is no part of the total before it comes.
    unsized_objects: HashSet<u64>,
    done: u64,
    start: Instant,
    told: Instant,
}

impl Meter {
    fn new(interval: Duration) -> Self {
        let now = Instant::now();
        Self { interval, total: None, unsized_objects: HashSet::new(), done: 0, start: now, told: now }
    }

    fn begin(&mut self, total: Option<u64>) {
        *self = Self { total, ..Self::new(self.interval) };
    }

    fn begin_object(&mut self, id: u64, bytes: Option<u64>) {
        if bytes.is_none() {
            self.unsized_objects.insert(id);
        }
    }

    /// Counts, and says when it is time to tell.
    fn count(&mut self, id: u64, bytes: u64) -> Option<()> {
        self.done += bytes;
        if let Some(total) = self.total.as_mut().filter(|_| self.unsized_objects.contains(&id)) {
            *total += bytes;
        }
        (self.told.elapsed() >= self.interval).then(|| self.told = Instant::now())
    }

    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    fn line(&self) -> String {
        let rate = self.done as f64 / self.start.elapsed().as_secs_f64();
        let done = human_bytes(self.done);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is positive and small"
        )]
        let speed = human_bytes(rate as u64);
        match self.total {
            Some(total) if total > 0 => {
                let percent = self.done.min(total) * 100 / total;
                let left = total.saturating_sub(self.done) as f64 / rate.max(1.0);
                format!("  {done} of {} ({percent} %), {speed}/s, {left:.0} s left", human_bytes(total))
            }
            _ => format!("  {done}, {speed}/s"),
        }
    }
}

fn retry_line(object: &str, reason: &str, wait: Duration) -> String {
    format!("retry: `{object}` in {:.1} s: {reason}", wait.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    #[test]
    fn what_comes_of_unknown_length_adds_to_the_total_of_a_log() {
        let mut meter = Meter::new(Duration::ZERO);
        meter.begin(Some(10 * MB));
        meter.begin_object(1, Some(10 * MB));
        meter.begin_object(2, None);
        meter.count(1, 5 * MB);
        meter.count(2, 3 * MB);
        assert_eq!((meter.done, meter.total), (8 * MB, Some(13 * MB)));
        meter.begin(None);
        meter.count(2, MB);
        assert_eq!((meter.done, meter.total), (MB, None));
    }
}
