//! HTTP with everything that a registry client needs: authentication, TLS trust, proxies, retries and limits.

pub mod auth;
pub mod credentials;
pub mod endpoint;
pub mod error;
pub mod host;
pub mod http;
pub mod limits;
pub mod netrc;
pub mod secret;
pub mod server;
pub mod tls;
