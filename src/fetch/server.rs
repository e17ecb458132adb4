//! [`Server`]: one place where things are asked for, and whether it is worth asking.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use reqwest::blocking::Response;
use reqwest::{StatusCode, Url};

use crate::event::{Event, Report};
use crate::fetch::error::{FetchError, Problem};
use crate::fetch::http::{self, Http};
use crate::fetch::mirrors::Spot;
use crate::fetch::registry::is_loopback;

/// How long a place that was down is not asked again while there is another one.
const REST: Duration = Duration::from_secs(300);

/// A place, shared by all that is there: whoever finds it down finds that out for all.
#[derive(Debug)]
pub struct Server {
    key: String,
    reach: Reach,
    /// Whether any certificate will do.
    pub lax: bool,
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
#[derive(Debug, Default)]
pub struct Servers(Mutex<HashMap<String, Arc<Server>>>);

impl Servers {
    /// The server of a spot. `insecure` adds to what the spot says.
    pub fn of(&self, spot: &Spot, insecure: bool) -> Result<Arc<Server>, url::ParseError> {
        let lax = insecure || spot.insecure;
        // Where images of Docker Hub are. (Files have a scheme.)
        let is_hub = spot.scheme.is_none() && spot.host == "docker.io";
        let host = if is_hub { "registry-1.docker.io" } else { &spot.host };
        let url = |scheme: &str| Url::parse(&format!("{scheme}://{host}/"));
        let reach = match spot.scheme {
            Some(scheme) => Reach::Url(url(scheme)?),
            None if lax || is_loopback(host) => {
                url("https")?;
                Reach::EitherScheme(host.to_owned())
            }
            None => Reach::Url(url("https")?),
        };
        let key = format!("{reach:?} {lax}");
        let mut servers = self.0.lock().expect(NO_PANIC);
        let server = servers.entry(key.clone()).or_insert_with(|| {
            let (base, down) = (OnceLock::new(), Mutex::default());
            Arc::new(Server { key, reach, lax, base, down, has_warned: AtomicBool::new(false) })
        });
        Ok(server.clone())
    }
}

impl Server {
    /// Its URL, which ends in a slash and has no path. The first call may have to ask which scheme it is.
    pub fn base(&self, http: &Http, object: &str) -> Result<&Url, FetchError> {
        let host = match &self.reach {
            Reach::Url(url) => return Ok(url),
            Reach::EitherScheme(host) => host,
        };
        if let Some(base) = self.base.get() {
            return Ok(base);
        }
        let ask = |scheme: &str| {
            let url = Url::parse(&format!("{scheme}://{host}/v2/")).expect("checked by `of`");
            http::send_any(object, http.get(url, self.lax))
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
    pub fn url(&self, http: &Http, object: &str, path: &str) -> Result<Url, FetchError> {
        let base = self.base(http, object)?;
        // A path that looks like a URL of its own must not lead away.
        base.join(&format!("./{path}")).map_err(|error| {
            let what = format!("nothing: `{path}` makes no URL ({error})");
            FetchError::new(object, Problem::Protocol { url: http::plain(base), what })
        })
    }

    /// What tells it apart from all others.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// For a person.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.reach {
            Reach::Url(url) => url.as_str(),
            Reach::EitherScheme(host) => host,
        }
    }

    /// Why it need not be asked.
    #[must_use]
    pub fn why_down(&self) -> Option<String> {
        let down = self.down.lock().expect(NO_PANIC);
        down.as_ref().filter(|(since, _)| since.elapsed() < REST).map(|(_, reason)| reason.clone())
    }

    /// Takes note that it failed and that another place is asked instead; warns of that once.
    pub fn failed(&self, report: &dyn Report, error: &FetchError) {
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
