//! Shows events: progress bars on a terminal, plain lines in a log, or JSON.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::base::event::{Event, Report, Silent};
use crate::base::text::escape;
use crate::base::units::human_bytes;
use crate::cli::console::{self, Text};
use crate::cli::exit::Failure;
use crate::cli::output::{print, print_json, print_summary};

/// Minimum size of an object with a progress bar of its own, in bytes. Bars of smaller ones would only
/// flicker.
const BAR_MINIMUM: u64 = 1 << 20;
/// Minimum time between two progress lines in a log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Minimum time between two `progress` events of `--json`.
const JSON_INTERVAL: Duration = Duration::from_secs(1);

/// The output options of the command line.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Output {
    /// Print only errors
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON to stdout, one object per line; the last one is the result
    #[arg(long)]
    pub json: bool,
}

impl Output {
    /// Runs `work` and shows its events.
    pub(crate) fn report<T>(self, work: impl FnOnce(&dyn Report) -> T) -> T {
        if self.quiet {
            work(&Silent)
        } else if self.json {
            work(&Json { meter: Mutex::new(Meter::new(JSON_INTERVAL)) })
        } else if console::is_stderr_terminal() {
            work(&Terminal::new())
        } else {
            work(&Log { meter: Mutex::new(Meter::new(LOG_INTERVAL)) })
        }
    }

    /// Prints the summary to stdout, as text or as the last line of `--json`.
    pub(crate) fn print(self, summary: &impl Serialize, text: impl FnOnce() -> Text) -> Result<(), Failure> {
        match self {
            Self { quiet: true, .. } => Ok(()),
            Self { json: true, .. } => print_summary(summary),
            _ => print(&text()),
        }
    }

    /// Prints a list to stdout, as text or as one JSON object that is not an event.
    pub(crate) fn print_list(
        self,
        list: &impl Serialize,
        text: impl FnOnce() -> Text,
    ) -> Result<(), Failure> {
        match self {
            Self { quiet: true, .. } => Ok(()),
            Self { json: true, .. } => print_json(list),
            _ => print(&text()),
        }
    }
}

/// Progress bars on a terminal.
struct Terminal {
    all: MultiProgress,
    total: ProgressBar,
    /// Bars of the objects in progress, by their numbers.
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

    fn stage(&self, name: &'static str, bytes: Option<u64>) {
        self.total.reset();
        let template = if let Some(bytes) = bytes {
            self.total.set_length(bytes);
            "{prefix:12} [{wide_bar:.cyan}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left"
        } else {
            self.total.unset_length();
            "{prefix:12} {decimal_bytes} {elapsed}"
        };
        self.total.set_prefix(name);
        self.total.set_style(style(template));
        self.total.tick();
    }

    /// Adds a bar. If the length is unknown, it is shown once it has [`BAR_MINIMUM`] bytes.
    fn begin(&self, bars: &mut HashMap<u64, ProgressBar>, id: u64, object: &str, bytes: Option<u64>) {
        if bytes.is_some_and(|bytes| bytes < BAR_MINIMUM) {
            return;
        }
        let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::hidden());
        bar.set_style(style(match bytes {
            Some(_) => "  {wide_msg} [{bar:20.green}] {decimal_bytes:>10}/{decimal_total_bytes:10}",
            None => "  {wide_msg} {spinner:.green} {decimal_bytes:>10}",
        }));
        bar.set_message(escape(object).into_owned());
        if bytes.is_some() {
            self.show(&bar);
        }
        if let Some(old) = bars.insert(id, bar) {
            self.all.remove(&old);
        }
    }

    fn progress(&self, bar: Option<&ProgressBar>, bytes: u64) {
        let has_no_length = bar.is_some_and(|bar| bar.length().is_none());
        if has_no_length {
            self.total.inc_length(bytes);
        }
        self.total.inc(bytes);
        if let Some(bar) = bar {
            let before = bar.position();
            bar.inc(bytes);
            if has_no_length && before < BAR_MINIMUM && bar.position() >= BAR_MINIMUM {
                self.show(bar);
            }
        }
    }

    fn line(&self, line: impl Display) {
        let _ = self.all.println(escape(&line.to_string())); // the terminal may be gone
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.all.clear();
    }
}

impl Report for Terminal {
    fn event(&self, event: &Event) {
        let mut bars = self.bars.lock().expect("no thread panics while it draws; please report");
        match event {
            Event::Stage { name, bytes, .. } => self.stage(name, *bytes),
            Event::Begin { id, object, bytes } => self.begin(&mut bars, *id, object, *bytes),
            Event::Progress { id, bytes } => self.progress(bars.get(id), *bytes),
            Event::Done { id } => {
                if let Some(bar) = bars.remove(id) {
                    self.all.remove(&bar);
                }
            }
            Event::Retry { object, reason, wait } => self.line(retry_line(object, reason, *wait)),
            Event::Note { message } => self.line(message),
            Event::Warning { message } => self.line(format_args!("warning: {message}")),
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("a valid template; please report")
        .progress_chars("=> ")
        .tick_chars("-\\|/ ")
}

/// Plain lines on stderr.
struct Log {
    meter: Mutex<Meter>,
}

impl Report for Log {
    fn event(&self, event: &Event) {
        let mut meter = self.meter.lock().expect("no thread panics while it counts; please report");
        let is_due = meter.count(event);
        let line = match event {
            Event::Stage { name, bytes, objects } => {
                let objects = objects.map(|objects| format!(" {objects} objects")).unwrap_or_default();
                let bytes = bytes.map(|bytes| format!(", {}", human_bytes(bytes))).unwrap_or_default();
                format!("{name}{objects}{bytes}")
            }
            Event::Progress { .. } if is_due => meter.line(),
            Event::Progress { .. } | Event::Begin { .. } | Event::Done { .. } => return,
            Event::Retry { object, reason, wait } => retry_line(object, reason, *wait),
            Event::Note { message } => message.clone(),
            Event::Warning { message } => format!("warning: {message}"),
        };
        console::report(&Text::of(line));
    }
}

/// One JSON object per line on stdout.
struct Json {
    meter: Mutex<Meter>,
}

/// The progress of a stage; printed at most once per second.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Progress {
    event: &'static str,
    /// Number of bytes of this stage that are done.
    bytes: u64,
    /// Number of bytes of this stage. `null`: unknown.
    total: Option<u64>,
}

impl Report for Json {
    fn event(&self, event: &Event) {
        let mut meter = self.meter.lock().expect("no thread panics while it counts; please report");
        let is_due = meter.count(event);
        let line = match event {
            Event::Progress { .. } if is_due => {
                let progress = Progress { event: "progress", bytes: meter.done, total: meter.total };
                serde_json::json!(progress)
            }
            Event::Progress { .. } => return,
            event => serde_json::json!(event),
        };
        let _ = console::print_json(&format!("{line}\n")); // stdout may be closed
    }
}

/// The progress of a stage.
struct Meter {
    interval: Duration,
    /// Bytes of the stage. `None`: unknown.
    total: Option<u64>,
    /// Objects of unknown size. Their bytes are added to the total when they arrive.
    unsized_objects: HashSet<u64>,
    done: u64,
    start: Instant,
    shown: Instant,
}

impl Meter {
    fn new(interval: Duration) -> Self {
        let now = Instant::now();
        Self { interval, total: None, unsized_objects: HashSet::new(), done: 0, start: now, shown: now }
    }

    /// Counts an event. Returns true if the progress is due to be shown.
    fn count(&mut self, event: &Event) -> bool {
        match event {
            Event::Stage { bytes, .. } => *self = Self { total: *bytes, ..Self::new(self.interval) },
            Event::Begin { id, bytes: None, .. } => {
                self.unsized_objects.insert(*id);
            }
            Event::Progress { id, bytes } => {
                self.done += bytes;
                if let Some(total) = self.total.as_mut().filter(|_| self.unsized_objects.contains(id)) {
                    *total += bytes;
                }
                if self.shown.elapsed() >= self.interval {
                    self.shown = Instant::now();
                    return true;
                }
            }
            _ => {}
        }
        false
    }

    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    fn line(&self) -> String {
        let rate = self.done as f64 / self.start.elapsed().as_secs_f64();
        let done = human_bytes(self.done);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the rate is positive and small"
        )]
        let speed = human_bytes(rate as u64);
        match self.total {
            Some(total) if total > 0 => {
                let percent = self.done.min(total) * 100 / total;
                let left = total.saturating_sub(self.done) as f64 / rate.max(1.0);
                format!("  {done} of {} ({percent}%), {speed}/s, {left:.0} s left", human_bytes(total))
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
    fn the_total_of_a_log_grows_with_objects_of_unknown_size() {
        let stage = |bytes| Event::Stage { name: "fetching", bytes, objects: None };
        let begin = |id, bytes| Event::Begin { id, object: String::new(), bytes };
        let progress = |id, bytes| Event::Progress { id, bytes };
        let mut meter = Meter::new(Duration::ZERO);
        for event in [
            stage(Some(10 * MB)),
            begin(1, Some(10 * MB)),
            begin(2, None),
            progress(1, 5 * MB),
            progress(2, 3 * MB),
        ] {
            meter.count(&event);
        }
        assert_eq!((meter.done, meter.total), (8 * MB, Some(13 * MB)));
        meter.count(&stage(None));
        meter.count(&progress(2, MB));
        assert_eq!((meter.done, meter.total), (MB, None));
    }
}
