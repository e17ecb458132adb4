//! [`Server`]: one place where things are asked for, and whether it is worth asking.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use reqwest::blocking::Response;
use reqwest::{StatusCode, Url};

use crate::base::event::{Event, Report};
use crate::net::endpoint::Endpoint;
use crate::net::error::{FetchError, FetchProblem};
use crate::net::host::is_loopback;
use crate::net::http::{self, Http};

/// How long a place that was down is not asked again while there is another one.
const REST: Duration = Duration::from_secs(300);

/// A place, shared by all that is there: whoever finds it down finds that out for all.
#[derive(Debug)]
pub(crate) struct Server {
    key: String,
    number: usize,
    slots: Slots,
    reach: Reach,
    /// Whether any certificate will do.
    pub insecure: bool,
    base: OnceLock<Url>,
    /// Since when it is down, and why.
    down: Mutex<Option<(Instant, String)>>,
    has_warned: AtomicBool,
}

/// How a server is reached.
#[derive(Debug)]
enum Reach {
    /// At this URL.
    Url(Url),
    /// At this host, by https, or by http if there is no https: for loopback and what is said to be insecure only.
    EitherScheme(String),
}

/// All servers of a run.
#[derive(Debug)]
pub(crate) struct Servers {
    all: Mutex<HashMap<String, Arc<Server>>>,
    /// How many requests each may have at once.
    at_once: usize,
}

/// How many more requests a server may have at once.
#[derive(Debug)]
struct Slots {
    free: Mutex<usize>,
    changed: Condvar,
}

/// The leave to ask a server; ends when dropped.
pub(crate) struct Slot<'a>(&'a Slots);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().expect(NO_PANIC) += 1;
        self.0.changed.notify_one();
    }
}

impl Servers {
    /// No server yet. Each is to have at most `at_once` requests for small things at once.
    #[must_use]
    pub(crate) fn new(at_once: usize) -> Self {
        Self { all: Mutex::default(), at_once: at_once.max(1) }
    }

    /// The server of a spot. `insecure` adds to what the spot says.
    pub(crate) fn of(&self, spot: &Endpoint, insecure: bool) -> Result<Arc<Server>, url::ParseError> {
        let insecure = insecure || spot.insecure;
        // Where images of Docker Hub are. (Files have a scheme.)
        let is_hub = spot.scheme.is_none() && spot.host == "docker.io";
        let host = if is_hub { "registry-1.docker.io" } else { &spot.host };
        let url = |scheme: &str| Url::parse(&format!("{scheme}://{host}/"));
        let reach = match spot.scheme {
            Some(scheme) => Reach::Url(url(scheme)?),
            None if insecure || is_loopback(host) => {
                url("https")?;
                Reach::EitherScheme(host.to_owned())
            }
            None => Reach::Url(url("https")?),
        };
        let key = format!("{reach:?} {insecure}");
        let mut servers = self.all.lock().expect(NO_PANIC);
        let number = servers.len();
        let server = servers.entry(key.clone()).or_insert_with(|| {
            let (base, down) = (OnceLock::new(), Mutex::default());
            let slots = Slots { free: Mutex::new(self.at_once), changed: Condvar::new() };
            let has_warned = AtomicBool::new(false);
            Arc::new(Server { key, number, slots, reach, insecure, base, down, has_warned })
        });
        Ok(server.clone())
    }
}

impl Server {
    /// Its URL, which ends in a slash and has no path. The first call may have to ask which scheme it is.
    pub(crate) fn base(&self, http: &Http, object: &str) -> Result<&Url, FetchError> {
        let host = match &self.reach {
            Reach::Url(url) => return Ok(url),
            Reach::EitherScheme(host) => host,
        };
        if let Some(base) = self.base.get() {
            return Ok(base);
        }
        let ask = |scheme: &str| {
            let url = Url::parse(&format!("{scheme}://{host}/v2/")).expect("checked by `of`");
            http::send_any(object, http.get(url, self.insecure))
        };
        let https = ask("https");
        // A server that speaks TLS has an answer to plain http, too: that it does not want it.
        let is_plain = |answer: &Response| {
            answer.status().is_success()
                || matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND)
        };
        let scheme = match https {
            Ok(_) => "https",
            Err(failure) if !ask("http").is_ok_and(|answer| is_plain(&answer)) => return Err(failure),
            Err(_) => "http",
        };
        let base = Url::parse(&format!("{scheme}://{host}/")).expect("checked by `of`");
        Ok(self.base.get_or_init(|| base))
    }

    /// The URL of a path there.
    pub(crate) fn url(&self, http: &Http, object: &str, path: &str) -> Result<Url, FetchError> {
        let base = self.base(http, object)?;
        // A path that looks like a URL of its own must not lead away.
        base.join(&format!("./{path}")).map_err(|error| {
            let what = format!("nothing: `{path}` makes no URL ({error})");
            FetchError::new(object, FetchProblem::Protocol { url: http::plain(base), what })
        })
    }

    /// What tells it apart from all others.
    #[must_use]
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The same as a number.
    #[must_use]
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Waits until it may have one request more for something small. (The queue counts its own: what is large waits
    /// for other things, too.)
    pub(crate) fn slot(&self) -> Slot<'_> {
        let free = self.slots.free.lock().expect(NO_PANIC);
        let mut free = self.slots.changed.wait_while(free, |free| *free == 0).expect(NO_PANIC);
        *free -= 1;
        Slot(&self.slots)
    }

    /// For a person.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        match &self.reach {
            Reach::Url(url) => url.as_str(),
            Reach::EitherScheme(host) => host,
        }
    }

    /// Why it need not be asked.
    #[must_use]
    pub(crate) fn why_down(&self) -> Option<String> {
        let down = self.down.lock().expect(NO_PANIC);
        down.as_ref().filter(|(since, _)| since.elapsed() < REST).map(|(_, reason)| reason.clone())
    }

    /// Takes note that it failed and that another place is asked instead; warns of that once.
    pub(crate) fn failed(&self, report: &dyn Report, error: &FetchError) {
        let reason = error.reason();
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            let name = self.name();
            let message = format!("another place is asked for what `{name}` does not give: {reason}");
            report.event(&Event::Warning { message });
        }
        if error.is_of_server() {
            *self.down.lock().expect(NO_PANIC) = Some((Instant::now(), reason));
        }
    }
}

const NO_PANIC: &str = "nothing panics while it holds this; please report";
