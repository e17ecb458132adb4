//! [`Reach`]: the addresses that requests may go to; [`Internal`]: the hosts of `--allow-internal`.
//!
//! A registry names other servers: by redirects, by token servers and by the URLs of external layers. Without
//! a limit, it could direct requests to hosts that only this machine can connect to, such as the metadata
//! service of a cloud provider.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use reqwest::Url;

use crate::net::zone::Zone;

/// The addresses that requests for a server's content may go to, and for all other servers the zones up to the
/// server's own. An address that a user names, or `localhost`, is not limited. A name is: its DNS records are not
/// the user's, and can change between two connections.
#[derive(Debug, Clone)]
pub(crate) struct Reach {
    /// The origins that a user names in a list or as a mirror. Empty: only a registry names the URLs.
    named: Vec<url::Origin>,
    known: Arc<Mutex<Known>>,
}

/// The observations of the connections to a server.
#[derive(Debug, Default)]
struct Known {
    /// The greatest zone that the server may refer to. `None`: unknown, same as public.
    referred: Option<Zone>,
    /// True if its name has led to a public address.
    is_public: bool,
}

impl Reach {
    /// Returns the reach of a server that a user names. Several URLs differ in their schemes only.
    #[must_use]
    pub(crate) fn of_named(urls: &[Url]) -> Self {
        let known = Known { referred: urls.first().and_then(Zone::of_host), is_public: false };
        Self { named: urls.iter().map(Url::origin).collect(), known: Arc::new(Mutex::new(known)) }
    }

    /// Returns the reach of URLs that a server names.
    #[must_use]
    pub(crate) fn of_referred(&self) -> Self {
        Self { named: Vec::new(), known: Arc::clone(&self.known) }
    }

    /// Returns the reach of URLs that a server in the internet names.
    #[must_use]
    pub(crate) fn public() -> Self {
        Self { named: Vec::new(), known: Arc::default() }
    }

    /// Returns the greatest zone that a request to `url` may go to. `None`: any address.
    #[must_use]
    pub(crate) fn limit(&self, url: &Url) -> Option<Zone> {
        let known = self.lock();
        if !self.is_named(url) {
            return Some(known.referred.unwrap_or(Zone::Public));
        }
        match Zone::of_host(url) {
            Some(_) => None,
            None if known.is_public => Some(Zone::Public),
            None => Some(Zone::Loopback),
        }
    }

    /// Records the address of a connection to `url`. The zone of a host name is that of its connections, and
    /// not that of its DNS records, which can contain any address. A name that leads to this machine is not
    /// proof of an internal server: it may be a tunnel.
    pub(crate) fn record(&self, url: &Url, peer: IpAddr) {
        if !self.is_named(url) || Zone::of_host(url).is_some() {
            return;
        }
        let zone = Zone::of(peer);
        let referred = if zone == Zone::Private { Zone::Private } else { Zone::Public };
        let mut known = self.lock();
        known.referred = Some(known.referred.map_or(referred, |earlier| earlier.min(referred)));
        known.is_public |= zone == Zone::Public;
    }

    fn is_named(&self, url: &Url) -> bool {
        self.named.contains(&url.origin())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().expect("nothing panics while it holds the zone; please report")
    }
}

/// Internal hosts that any server may refer to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Internal(pub Vec<InternalHost>);

/// A host, a host with a port, an address, or a network in CIDR notation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InternalHost {
    /// Host as in a URL, and its port. `None`: all ports.
    Host(String, Option<u16>),
    /// Address and length of the prefix in bits.
    Network(IpAddr, u8),
}

impl Internal {
    /// True if the host of `url` is allowed, by its name or its literal address.
    #[must_use]
    pub(crate) fn allows(&self, url: &Url) -> bool {
        self.0.iter().any(|internal| match internal {
            InternalHost::Host(host, port) => {
                url.host_str() == Some(host)
                    && port.is_none_or(|port| url.port_or_known_default() == Some(port))
            }
            InternalHost::Network(..) => match url.host() {
                Some(url::Host::Ipv4(ip)) => internal.contains(ip.into()),
                Some(url::Host::Ipv6(ip)) => internal.contains(ip.into()),
                _ => false,
            },
        })
    }

    /// True if names may resolve to this address.
    #[must_use]
    pub(crate) fn allows_address(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|internal| internal.contains(ip))
    }
}

impl InternalHost {
    fn contains(&self, ip: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, 32),
            IpAddr::V6(ip) => (ip.to_bits(), 128),
        };
        let Self::Network(network, prefix) = self else { return false };
        let ((network, width), (ip, other)) = (bits(*network), bits(ip.to_canonical()));
        let mask = u128::MAX.checked_shl(128 - u32::from(*prefix)).unwrap_or(0);
        width == other && network & mask == ip & mask
    }
}

impl FromStr for InternalHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid host `{text}`: expected HOST, HOST:PORT, ADDRESS or ADDRESS/BITS");
        let (address, prefix) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        if let Ok(ip) = address.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            let ip = ip.to_canonical();
            let width = if ip.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.map_or(Ok(width), str::parse).map_err(|_| invalid())?;
            return if prefix <= width { Ok(Self::Network(ip, prefix)) } else { Err(invalid()) };
        }
        let port = text.rsplit_once(':').filter(|(_, port)| port.bytes().all(|c| c.is_ascii_digit()));
        let (host, port) = match port {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| invalid())?)),
            None => (text, None),
        };
        let url = Url::parse(&format!("https://{host}/")).map_err(|_| invalid())?;
        let is_host = url.port().is_none() && url.path() == "/" && url.username().is_empty();
        match url.host_str().filter(|_| is_host && url.query().is_none() && url.fragment().is_none()) {
            Some(host) => Ok(Self::Host(host.to_owned(), port)),
            None => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn a_server_refers_to_zones_up_to_its_own() {
        for (named, peer, limit, own) in [
            ("https://registry.example/", None, Zone::Public, Some(Zone::Loopback)),
            ("https://registry.example/", Some("203.0.113.1"), Zone::Public, Some(Zone::Public)),
            ("https://registry.example/", Some("10.0.0.1"), Zone::Private, Some(Zone::Loopback)),
            ("https://registry.example/", Some("127.0.0.1"), Zone::Public, Some(Zone::Loopback)),
            ("https://registry.example/", Some("169.254.169.254"), Zone::Public, Some(Zone::Loopback)),
            ("https://10.0.0.1/", Some("10.0.0.1"), Zone::Private, None),
            ("https://203.0.113.1/", Some("10.0.0.1"), Zone::Public, None),
            ("http://localhost:5000/", Some("127.0.0.1"), Zone::Loopback, None),
            ("http://127.0.0.1:5000/", None, Zone::Loopback, None),
            ("http://169.254.169.254/", None, Zone::Special, None),
        ] {
            let reach = Reach::of_named(&[url(named)]);
            if let Some(peer) = peer {
                reach.record(&url(named), peer.parse().unwrap());
            }
            assert_eq!(reach.limit(&url(named)), own, "{named} at {peer:?}");
            assert_eq!(reach.limit(&url("https://other.example/")), Some(limit), "{named} at {peer:?}");
            assert_eq!(reach.of_referred().limit(&url(named)), Some(limit), "{named} at {peer:?}");
        }
    }

    #[test]
    fn a_name_that_was_public_once_stays_public() {
        let named = url("https://registry.example/");
        let reach = Reach::of_named(std::slice::from_ref(&named));
        for (peer, limit) in
            [("10.0.0.1", Zone::Private), ("203.0.113.1", Zone::Public), ("10.0.0.1", Zone::Public)]
        {
            reach.record(&named, peer.parse().unwrap());
            assert_eq!(reach.limit(&url("https://other.example/")), Some(limit));
        }
        // Whatever its later addresses are.
        assert_eq!(reach.limit(&named), Some(Zone::Public));
        // A connection to another port says nothing about the server.
        let reach = Reach::of_named(std::slice::from_ref(&named));
        reach.record(&url("https://registry.example:8443/"), "10.0.0.1".parse().unwrap());
        assert_eq!(reach.limit(&url("https://registry.example:8443/")), Some(Zone::Public));
    }

    #[test]
    fn allowed_hosts_are_names_ports_addresses_and_networks() {
        for (allowed, target, expected) in [
            ("Storage.Corp", "http://storage.corp:9000/x", true),
            ("storage.corp:9000", "http://storage.corp:9000/x", true),
            ("storage.corp:80", "http://storage.corp/x", true),
            ("storage.corp:9000", "http://storage.corp/x", false),
            ("storage.corp", "http://a.storage.corp/x", false),
            ("10.0.0.1", "http://10.0.0.1:9000/x", true),
            ("10.0.0.1:9000", "http://10.0.0.1:9000/x", true),
            ("10.0.0.1:9000", "http://10.0.0.1/x", false),
            ("10.0.0.0/8", "http://10.200.0.1/x", true),
            ("10.0.0.0/8", "http://11.0.0.1/x", false),
            ("0.0.0.0/0", "http://11.0.0.1/x", true),
            ("fd00::/8", "http://[fd12::1]/x", true),
            ("::1", "http://[::1]:1/x", true),
            ("[::1]:1", "http://[::1]:1/x", true),
            ("10.0.0.0/8", "http://[::ffff:10.0.0.1]/x", true),
            ("::/0", "http://10.0.0.1/x", false),
        ] {
            let internal = Internal(vec![allowed.parse().unwrap()]);
            assert_eq!(internal.allows(&url(target)), expected, "{allowed} {target}");
        }
        let internal = Internal(vec!["10.0.0.0/8".parse().unwrap(), "storage.corp".parse().unwrap()]);
        assert!(internal.allows_address("10.1.1.1".parse().unwrap()));
        assert!(!internal.allows_address("127.0.0.1".parse().unwrap()));
        for text in ["", "http://a", "a/b", "10.0.0.0/33", "10.0.0.0/x", "a:99999", "user@a", "a b", "a?b"] {
            assert!(text.parse::<InternalHost>().is_err(), "{text}");
        }
    }
}
