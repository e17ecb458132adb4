//! Events for whoever watches: bars on a terminal, plain lines in a log, JSON for a program.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::event::{Event, Report, Silent, human_bytes};

/// Objects smaller than this get no bar of their own: it would be gone before it is read.
const BAR_MINIMUM: u64 = 1 << 20;
/// How often a log says how far the work is.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How often a program is told.
const JSON_INTERVAL: Duration = Duration::from_secs(1);

/// What the user wants to see.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
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
    pub fn reporter(self) -> Box<dyn Report> {
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
    pub fn result(self, text: impl FnOnce() -> String, json: impl FnOnce() -> String) -> String {
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
            Event::Begin { id, object, bytes: Some(bytes) } if *bytes >= BAR_MINIMUM => {
                let bar = self.all.insert_before(&self.total, ProgressBar::new(*bytes));
                bar.set_style(style(
                    "  {wide_msg} [{bar:20.green}] {decimal_bytes:>10}/{decimal_total_bytes:10}",
                ));
                bar.set_message(object.clone());
                if let Some(old) = bars.insert(*id, bar) {
                    self.all.remove(&old);
                }
            }
            Event::Begin { .. } => {}
            Event::Progress { id, bytes } => {
                self.total.inc(*bytes);
                if let Some(bar) = bars.get(id) {
                    bar.inc(*bytes);
                }
            }
            Event::Done { id } => {
                if let Some(bar) = bars.remove(id) {
                    self.all.remove(&bar);
                }
            }
            Event::Retry { object, reason, wait } => self.line(retry_line(object, reason, *wait)),
            Event::Warning { message } => self.line(format!("warning: {message}")),
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("a template that was tried; please report")
        .progress_chars("=> ")
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
            Event::Progress { bytes, .. } => match meter.count(*bytes) {
                Some(()) => meter.line(),
                None => return,
            },
            Event::Begin { .. } | Event::Done { .. } => return,
            Event::Retry { object, reason, wait } => retry_line(object, reason, *wait),
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
            Event::Progress { bytes, .. } => match meter.count(*bytes) {
                Some(()) => {
                    serde_json::json!({"event": "progress", "bytes": meter.done, "total": meter.total})
                }
                None => return,
            },
            Event::Stage { bytes, .. } => {
                meter.begin(*bytes);
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
    done: u64,
    start: Instant,
    told: Instant,
}

impl Meter {
    fn new(interval: Duration) -> Self {
        let now = Instant::now();
        Self { interval, total: None, done: 0, start: now, told: now }
    }

    fn begin(&mut self, total: Option<u64>) {
        *self = Self { total, ..Self::new(self.interval) };
    }

    /// Counts, and says when it is time to tell.
    fn count(&mut self, bytes: u64) -> Option<()> {
        self.done += bytes;
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
