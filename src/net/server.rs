//! [`Server`]: a server that requests go to, the pace of its requests, and whether it is down.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use reqwest::blocking::Response;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode, Url};

use crate::base::event::{Event, Report};
use crate::net::attempts::Attempts;
use crate::net::endpoint::Endpoint;
use crate::net::error::{FetchError, FetchProblem, MAX_DELAY};
use crate::net::host::is_loopback;
use crate::net::http::failure::Expected;
use crate::net::http::{RequestContext, RequestOptions};
use crate::net::pace::Pace;
use crate::net::reach::Reach;

/// Time for which a server that is down gets no requests if there is another one.
const DOWN_TIME: Duration = Duration::from_secs(300);

const NO_PANIC: &str = "nothing panics while it holds this; please report";

/// A server, shared by all its endpoints: if one of them finds it down, it is down for all.
#[derive(Debug)]
pub(crate) struct Server {
    /// Identifies the server by its address and its settings.
    pub key: String,
    /// Identifies the server within a run.
    pub number: usize,
    /// True if certificates are not verified.
    pub insecure: bool,
    /// The addresses that requests to the server, and to hosts that it refers to, may go to.
    pub reach: Arc<Reach>,
    address: Address,
    /// Limits the requests to the server.
    pub pace: Pace,
    /// The URL, if the scheme was to be detected.
    detected: OnceLock<Url>,
    /// When the server went down, and why.
    down: Mutex<Option<(Instant, String)>>,
    has_warned: AtomicBool,
}

#[derive(Debug)]
enum Address {
    Url(Url),
    /// A host with HTTPS, or with HTTP if it has no HTTPS. For loopback and insecure hosts only.
    EitherScheme(String),
}

/// All servers of a run.
#[derive(Debug)]
pub(crate) struct Servers {
    all: Mutex<HashMap<String, Arc<Server>>>,
    max_requests: usize,
}

impl Servers {
    /// Creates an empty set. Each server gets at most `max_requests` requests at a time.
    #[must_use]
    pub(crate) fn new(max_requests: usize) -> Self {
        Self { all: Mutex::default(), max_requests: max_requests.max(1) }
    }

    /// Returns the server of an endpoint. `insecure` applies in addition to the endpoint's own setting.
    pub(crate) fn server_for(
        &self,
        endpoint: &Endpoint,
        insecure: bool,
    ) -> Result<Arc<Server>, url::ParseError> {
        let insecure = insecure || endpoint.insecure;
        // The registry of Docker Hub has another name. (An endpoint of a file has a scheme.)
        let is_hub = endpoint.scheme.is_none() && endpoint.host == "docker.io";
        let host = if is_hub { "registry-1.docker.io" } else { &endpoint.host };
        let url = |scheme: &str| Url::parse(&format!("{scheme}://{host}/"));
        let (address, urls) = match endpoint.scheme {
            None if insecure || is_loopback(host) => {
                (Address::EitherScheme(host.to_owned()), vec![url("https")?, url("http")?])
            }
            scheme => {
                let url = url(scheme.unwrap_or("https"))?;
                (Address::Url(url.clone()), vec![url])
            }
        };
        let key = format!("{address:?} {insecure}");
        let mut servers = self.all.lock().expect(NO_PANIC);
        let number = servers.len();
        let server = servers.entry(key.clone()).or_insert_with(|| {
            Arc::new(Server {
                key,
                number,
                insecure,
                reach: Arc::new(Reach::of_named(&urls)),
                address,
                pace: Pace::new(self.max_requests),
                detected: OnceLock::new(),
                down: Mutex::default(),
                has_warned: AtomicBool::new(false),
            })
        });
        Ok(server.clone())
    }
}

impl Server {
    /// Returns the server's URL, which ends in a slash and has no path. The first call may send requests to
    /// detect the scheme.
    pub(crate) fn base(&self, context: &RequestContext<'_>) -> Result<&Url, FetchError> {
        let host = match &self.address {
            Address::Url(url) => return Ok(url),
            Address::EitherScheme(host) => host,
        };
        if let Some(base) = self.detected.get() {
            return Ok(base);
        }
        let url = |scheme: &str, path: &str| {
            Url::parse(&format!("{scheme}://{host}/{path}")).expect("checked by `server_for`; please report")
        };
        let request = |scheme| {
            let options = RequestOptions {
                method: Method::GET,
                url: &url(scheme, "v2/"),
                headers: HeaderMap::new(),
                is_bulk: false,
                insecure: self.insecure,
                authorization: None,
                reach: &self.reach,
            };
            context.http.send(context.object, options)
        };
        // A TLS server may respond to plain HTTP as well, with an error status.
        let is_plain_http = |response: &Response| {
            response.status().is_success()
                || matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND)
        };
        let scheme = match request("https") {
            Ok(_) => "https",
            Err(failure) => match request("http") {
                Ok(response) if is_plain_http(&response) || failure.is_plain_http() => "http",
                // The server does not speak TLS, so that the status of failure is the better explanation.
                Ok(response) if matches!(failure.problem, FetchProblem::Network { .. }) => {
                    context.check_status(response, Expected::Document)?;
                    return Err(failure);
                }
                _ => return Err(failure),
            },
        };
        Ok(self.detected.get_or_init(|| url(scheme, "")))
    }

    /// Returns the URL of a path on the server.
    pub(crate) fn url(&self, context: &RequestContext<'_>, path: &str) -> Result<Url, FetchError> {
        let base = self.base(context)?;
        // With the prefix, a path that looks like an absolute URL does not lead to another server.
        base.join(&format!("./{path}")).map_err(|error| {
            context.error(FetchProblem::InvalidUrl {
                url: format!("{base}{}", path.split('?').next().unwrap_or_default()),
                error,
            })
        })
    }

    /// Calls `attempt`, which sends one request and reads its body, until it succeeds, fails permanently, or the
    /// attempts are used up. Waits before each attempt until the server may get one more request.
    pub(crate) fn retry<T>(
        &self,
        context: &RequestContext<'_>,
        mut attempt: impl FnMut() -> Result<T, FetchError>,
    ) -> Result<T, FetchError> {
        let retries = &context.http.retries;
        let mut attempts = Attempts::new(&self.pace, retries);
        loop {
            let slot = self.pace.slot(|| retries.check_deadline(context.object).is_err());
            let Some(slot) = slot else {
                retries.check_deadline(context.object)?;
                continue;
            };
            let error = match attempt() {
                Ok(value) => {
                    slot.accept();
                    return Ok(value);
                }
                Err(error) => error,
            };
            if error.is_response() {
                slot.accept();
            }
            let Some(wait) = attempts.delay_after(context.report, &slot, &error) else {
                return Err(error.with_attempts(attempts.tries));
            };
            drop(slot);
            retries.check_deadline_after(&error.object, wait)?;
            std::thread::sleep(wait);
            if !attempts.next() {
                return Err(error.with_attempts(retries.tries));
            }
        }
    }

    /// Calls `attempt` like [`Self::retry`], but once.
    pub(crate) fn once<T>(
        &self,
        context: &RequestContext<'_>,
        attempt: impl FnOnce() -> Result<T, FetchError>,
    ) -> Result<T, FetchError> {
        let retries = &context.http.retries;
        let slot = self.pace.slot(|| retries.check_deadline(context.object).is_err());
        let result = attempt();
        match (&slot, &result) {
            (Some(slot), Err(error)) if !error.is_response() => {
                if let Some(refusal) = error.refusal() {
                    slot.refuse(refusal.kind, refusal.retry_after.filter(|wait| *wait <= MAX_DELAY));
                }
            }
            (Some(slot), _) => slot.accept(),
            (None, _) => {}
        }
        result
    }

    /// Returns the URL or the host, for messages.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        match &self.address {
            Address::Url(url) => url.as_str(),
            Address::EitherScheme(host) => host,
        }
    }

    /// Returns why the server is down. `None`: it is not.
    #[must_use]
    pub(crate) fn why_down(&self) -> Option<String> {
        let down = self.down.lock().expect(NO_PANIC);
        down.as_ref().filter(|(since, _)| since.elapsed() < DOWN_TIME).map(|(_, reason)| reason.clone())
    }

    /// Records that a request failed and that another source is used instead. Warns once.
    pub(crate) fn record_failure(&self, report: &dyn Report, error: &FetchError) {
        let reason = error.reason();
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            let message = format!("`{}` failed, falling back to the next source: {reason}", self.name());
            report.event(&Event::Warning { message });
        }
        if error.is_server_down() {
            *self.down.lock().expect(NO_PANIC) = Some((Instant::now(), reason));
        }
    }
}
