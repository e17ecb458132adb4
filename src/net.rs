//! HTTP for a registry client: authentication, TLS trust, proxies, retries and limits.

pub(crate) mod attempts;
pub(crate) mod auth;
pub(crate) mod credentials;
pub(crate) mod endpoint;
pub(crate) mod error;
pub(crate) mod host;
pub(crate) mod http;
pub(crate) mod limits;
pub(crate) mod netrc;
pub(crate) mod pace;
pub(crate) mod reach;
pub(crate) mod secret;
pub(crate) mod server;
pub(crate) mod tls;
pub(crate) mod zone;
