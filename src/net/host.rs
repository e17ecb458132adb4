//! Host names: loopback, and the host names that settings use.

use reqwest::Url;

use crate::oci::reference::canonical_host;

/// Returns the names under which settings can exist for the host of a URL: first with its port, if it has
/// one, then without.
#[must_use]
pub(crate) fn names(url: &Url) -> Vec<String> {
    let host = url.host_str().map(canonical_host);
    let with_port = host.iter().zip(url.port()).map(|(host, port)| format!("{host}:{port}")).next();
    with_port.into_iter().chain(host).collect()
}

/// True if the host of a reference is a loopback name or address.
#[must_use]
pub(crate) fn is_loopback(host: &str) -> bool {
    let Ok(url) = Url::parse(&format!("http://{host}/")) else { return false };
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}
