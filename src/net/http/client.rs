//! [`Clients`]: one connection pool for each kind of request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use reqwest::blocking::{Client, ClientBuilder};
use reqwest::{Certificate, Url, redirect};

use crate::net::http::proxy;
use crate::net::http::resolver::Resolver;
use crate::net::limits::Limits;
use crate::net::reach::Internal;
use crate::net::tls::{self, TlsTrust};
use crate::net::zone::Zone;

/// Maximum number of headers of a response.
const MAX_HEADERS: usize = 1000;

/// Maximum size in bytes of the headers of an HTTP/2 response.
const MAX_HEADER_BYTES: u32 = 256 << 10;

/// HTTP clients, created on first use: each has a thread and connections of its own.
pub(crate) struct Clients {
    trust: TlsTrust,
    limits: Limits,
    internal: Arc<Internal>,
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
    /// The greatest zone that host names may resolve to. `None`: any address.
    limit: Option<Zone>,
}

impl Clients {
    pub(crate) fn new(trust: TlsTrust, limits: Limits, internal: Arc<Internal>) -> Self {
        Self { trust, limits, internal, by_kind: Mutex::default() }
    }

    /// Returns the kind of client for a URL.
    pub(crate) fn kind(&self, url: &Url, insecure: bool, is_bulk: bool, limit: Option<Zone>) -> ClientKind {
        let identity = self.trust.identity_for(url);
        // Without TLS there is no HTTP/2, and one client is enough.
        ClientKind { insecure, identity, is_bulk: is_bulk && url.scheme() == "https", limit }
    }

    pub(crate) fn get(&self, kind: ClientKind) -> Client {
        let mut by_kind =
            self.by_kind.lock().expect("nothing panics while it holds the clients; please report");
        by_kind.entry(kind).or_insert_with(|| self.build(kind)).clone()
    }

    fn build(&self, kind: ClientKind) -> Client {
        let mut builder: ClientBuilder = Client::builder()
            .user_agent(concat!("airbundle/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.limits.connect)
            .timeout(self.limits.idle)
            // `Http` follows redirects: it checks each hop, and selects a client for it.
            .redirect(redirect::Policy::none())
            // Defaults: 100 headers and 16 KiB. Some front ends send more.
            .http1_max_headers(MAX_HEADERS)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .referer(false);
        builder = if kind.insecure {
            builder.tls_danger_accept_invalid_certs(true)
        } else if let Some(config) = self.trust.client_config(kind.identity, kind.is_bulk) {
            builder.tls_backend_preconfigured(config)
        } else {
            // An explicit list of CAs: reqwest's default fails if the system has none, even if none is
            // needed.
            let system = tls::system_authorities().iter();
            builder.tls_certs_only(system.filter_map(|der| Certificate::from_der(der).ok()))
        };
        if let Some(limit) = kind.limit {
            builder =
                builder.dns_resolver(Arc::new(Resolver { limit, internal: Arc::clone(&self.internal) }));
        }
        if kind.is_bulk {
            builder = builder.http1_only();
        }
        if proxy::is_disabled() {
            builder = builder.no_proxy();
        }
        if let Some(identity) = kind.identity {
            builder = builder.identity(self.trust.identities[identity].1.identity.clone());
        }
        builder.build().expect("certificates were checked when they were read; please report")
    }
}
