//! HTTP with everything that a registry client needs: authentication, TLS trust, proxies, retries and limits.

pub mod auth;
pub mod credentials;
pub mod error;
pub mod http;
pub mod netrc;
pub mod server;
pub mod tls;
