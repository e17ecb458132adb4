//! Host names and addresses: loopback, private networks, and the names that settings use.

use std::net::IpAddr;

use reqwest::Url;

use crate::oci::reference::canonical_host;

/// The names under which there may be settings for the host of a URL: with the port, if there is one, before
/// without.
#[must_use]
pub(crate) fn names(url: &Url) -> Vec<String> {
    let host = url.host_str().map(canonical_host);
    let with_port = host.iter().zip(url.port()).map(|(host, port)| format!("{host}:{port}")).next();
    with_port.into_iter().chain(host).collect()
}

/// Whether a host of a reference is this machine.
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

/// Whether a URL says itself that it leads to this machine or into its network.
#[must_use]
pub(crate) fn leads_inside(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(ip)) => is_inside(ip.into()),
        Some(url::Host::Ipv6(ip)) => is_inside(ip.into()),
        None => true,
    }
}

/// Whether an address is loopback, private or link-local.
pub(crate) fn is_inside(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => {
            ip.to_ipv4_mapped().is_some_and(|ip| is_inside(ip.into()))
                || ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
        }
    }
}
