//! [`Clients`]: one connection pool for each kind of request, and the redirects that each pool follows.

use std::collections::HashMap;
use std::sync::Mutex;

use reqwest::blocking::{Client, ClientBuilder};
use reqwest::{Url, redirect};

use crate::net::http::proxy;
use crate::net::limits::Limits;
use crate::net::tls::{self, TlsTrust};

/// Maximum number of redirects. Browsers and curl follow more; no registry needs them.
pub(crate) const REDIRECT_LIMIT: usize = 10;

/// HTTP clients, created on first use: each has a thread and connections of its own.
pub(crate) struct Clients {
    trust: TlsTrust,
    limits: Limits,
    by_kind: Mutex<HashMap<ClientKind, Client>>,
}

/// The properties in which clients differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ClientKind {
    /// True if certificates are not verified.
    insecure: bool,
    /// Index of the client certificate.
    identity: Option<usize>,
    /// True if each request gets a connection of its own (HTTP/1.1).
    is_bulk: bool,
}

impl ClientKind {
    /// True if the client's settings are valid for one host only, so that redirects to another host need
    /// another client.
    pub(crate) fn is_bound_to_host(self) -> bool {
        self.insecure || self.identity.is_some()
    }
}

impl Clients {
    pub(crate) fn new(trust: TlsTrust, limits: Limits) -> Self {
        Self { trust, limits, by_kind: Mutex::default() }
    }

    /// Returns the kind of client for a URL.
    pub(crate) fn kind(&self, url: &Url, insecure: bool, is_bulk: bool) -> ClientKind {
        let identity = self.trust.identity_for(url);
        // Without TLS there is no HTTP/2, and one client is enough.
        ClientKind { insecure, identity, is_bulk: is_bulk && url.scheme() == "https" }
    }

    pub(crate) fn get(&self, kind: ClientKind) -> Client {
        let mut by_kind =
            self.by_kind.lock().expect("nothing panics while it holds the clients; please report");
        by_kind.entry(kind).or_insert_with(|| self.build(kind)).clone()
    }

    fn build(&self, kind: ClientKind) -> Client {
        let follow = match kind {
            ClientKind { identity: Some(_), .. } => follow_on_server,
            ClientKind { insecure: true, .. } => follow_on_host,
            _ => follow,
        };
        let mut builder: ClientBuilder = Client::builder()
            .user_agent(concat!("airbundle/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.limits.connect)
            .timeout(self.limits.idle)
            .redirect(redirect::Policy::custom(follow))
            .referer(false);
        builder = if kind.insecure {
            builder.tls_danger_accept_invalid_certs(true)
        } else {
            // An explicit list of CAs: reqwest's default fails if the system has none, even if none is
            // needed.
            builder.tls_certs_only(tls::system_authorities().iter().chain(&self.trust.authorities).cloned())
        };
        if kind.is_bulk {
            builder = builder.http1_only();
        }
        if proxy::is_disabled() {
            builder = builder.no_proxy();
        }
        if let Some(identity) = kind.identity {
            builder = builder.identity(self.trust.identities[identity].1.clone());
        }
        builder.build().expect("certificates were checked when they were read; please report")
    }
}

/// Follows redirects. (reqwest removes credentials if the origin changes.)
fn follow(attempt: redirect::Attempt) -> redirect::Action {
    match redirect_error(&attempt) {
        Some(reason) => attempt.error(reason),
        None => attempt.follow(),
    }
}

/// Follows redirects on the same host, and stops at others.
fn follow_on_host(attempt: redirect::Attempt) -> redirect::Action {
    follow_if(attempt, |from, to| from.host() == to.host())
}

/// Follows redirects on the same host and port, and stops at others.
fn follow_on_server(attempt: redirect::Attempt) -> redirect::Action {
    let port = Url::port_or_known_default;
    follow_if(attempt, |from, to| from.host() == to.host() && port(from) == port(to))
}

fn follow_if(attempt: redirect::Attempt, is_allowed: impl Fn(&Url, &Url) -> bool) -> redirect::Action {
    let is_allowed = attempt.previous().last().is_some_and(|from| is_allowed(from, attempt.url()));
    if is_allowed || redirect_error(&attempt).is_some() { follow(attempt) } else { attempt.stop() }
}

/// Returns why a redirect must not be followed. From HTTPS to HTTP is refused: anyone on the path could
/// replace the content, and not every file has a checksum.
fn redirect_error(attempt: &redirect::Attempt) -> Option<String> {
    if attempt.previous().len() > REDIRECT_LIMIT {
        return Some(format!("more than {REDIRECT_LIMIT} redirects"));
    }
    let secure = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    (secure && attempt.url().scheme() != "https").then(|| "it leads from HTTPS to HTTP".to_owned())
}
