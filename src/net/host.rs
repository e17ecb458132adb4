//! Host names and addresses: loopback, private networks, and the host names that settings use.

use std::net::IpAddr;

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

/// True if the host of a URL is a loopback name, or a loopback, private or link-local address. Names are not
/// resolved.
#[must_use]
pub(crate) fn is_private(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(ip)) => is_private_address(ip.into()),
        Some(url::Host::Ipv6(ip)) => is_private_address(ip.into()),
        None => true,
    }
}

/// True if an address is loopback, private or link-local.
fn is_private_address(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => {
            ip.to_ipv4_mapped().is_some_and(|ip| is_private_address(ip.into()))
                || ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
        }
    }
}
