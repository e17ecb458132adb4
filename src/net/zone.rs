//! [`Zone`]: the network that an address belongs to, from the internet to this machine.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;

/// The network of an address. A server may refer requests only to zones that are not greater than its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Zone {
    /// The internet.
    Public,
    /// Private networks (RFC 1918, RFC 4193), shared address space (RFC 6598) and benchmarks (RFC 2544).
    Private,
    /// This machine.
    Loopback,
    /// Link-local, multicast, unspecified and reserved addresses; metadata services of cloud providers.
    Special,
}

/// Metadata services at addresses that are not link-local: Alibaba Cloud, Amazon EC2, Azure (`WireServer`), Google
/// Cloud.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

impl Zone {
    /// Returns the zone of an address. An IPv6 address that embeds an IPv4 address (mapped, compatible, 6to4,
    /// NAT64, Teredo) has the zone of that one.
    #[must_use]
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip {
            _ if METADATA.contains(&ip) => Self::Special,
            IpAddr::V4(ip) => Self::of_v4(ip),
            IpAddr::V6(ip) => Self::of_v6(ip),
        }
    }

    /// Returns the zone of the host of a URL. `None`: a name that must be resolved.
    #[must_use]
    pub(crate) fn of_host(url: &Url) -> Option<Self> {
        match url.host() {
            Some(url::Host::Domain(name)) => {
                let name = name.trim_end_matches('.');
                (name == "localhost" || name.ends_with(".localhost")).then_some(Self::Loopback)
            }
            Some(url::Host::Ipv4(ip)) => Some(Self::of(ip.into())),
            Some(url::Host::Ipv6(ip)) => Some(Self::of(ip.into())),
            None => Some(Self::Special),
        }
    }

    fn of_v4(ip: Ipv4Addr) -> Self {
        match ip.octets() {
            [127, ..] => Self::Loopback,
            [10, ..] | [100, 64..=127, ..] | [172, 16..=31, ..] | [192, 168, ..] | [198, 18 | 19, ..] => {
                Self::Private
            }
            [0 | 224..=255, ..] | [169, 254, ..] | [192, 0, 0, _] => Self::Special,
            _ => Self::Public,
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Self {
        let embedded = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Self::of(Ipv4Addr::new(a, b, c, d).into())
        };
        match ip.segments() {
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            [0, 0, 0, 0, 0, 0, 0, 0] | [0xfe80..=0xfebf | 0xff00..=0xffff, ..] => Self::Special,
            [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Self::Private,
            // IPv4-compatible, IPv4-mapped and IPv4-translated (RFC 2765); NAT64 (RFC 6052); 6to4 (RFC 3056).
            [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
            | [0, 0, 0, 0, 0xffff, 0, high, low]
            | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
            | [0x2002, high, low, ..] => embedded(high, low),
            // NAT64 prefixes of a network (RFC 8215).
            [0x64, 0xff9b, 1, _, _, _, high, low] => embedded(high, low).max(Self::Private),
            // Teredo (RFC 4380): the address of the client is inverted.
            [0x2001, 0, _, _, _, _, high, low] => embedded(!high, !low),
            _ => Self::Public,
        }
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "a public address",
            Self::Private => "a private address",
            Self::Loopback => "a loopback address",
            Self::Special => "a link-local or reserved address",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_internal_address_has_the_zone_of_its_network() {
        for (zone, addresses) in [
            (
                Zone::Public,
                &[
                    "8.8.8.8",
                    "100.63.0.1",
                    "100.128.0.1",
                    "172.15.0.1",
                    "172.32.0.1",
                    "192.167.0.1",
                    "2606:4700::1111",
                    "64:ff9b::8.8.8.8",
                    "2002:808:808::1",
                    "::ffff:8.8.8.8",
                ][..],
            ),
            (
                Zone::Private,
                &[
                    "10.0.0.1",
                    "172.16.0.1",
                    "172.31.255.255",
                    "192.168.1.1",
                    "100.64.0.1",
                    "198.18.0.1",
                    "fc00::1",
                    "fd12::1",
                    "fec0::1",
                    "::ffff:192.168.1.1",
                    "::10.0.0.1",
                    "64:ff9b::10.0.0.1",
                    "64:ff9b:1::8.8.8.8",
                    "2002:a00:1::1",
                    "2001::f5ff:fffe",
                ],
            ),
            (
                Zone::Loopback,
                &["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "::7f00:1"],
            ),
            (
                Zone::Special,
                &[
                    "0.0.0.0",
                    "0.1.2.3",
                    "169.254.169.254",
                    "100.100.100.200",
                    "192.0.0.192",
                    "224.0.0.1",
                    "240.0.0.1",
                    "255.255.255.255",
                    "::",
                    "fe80::1",
                    "ff02::1",
                    "fd00:ec2::254",
                    "168.63.129.16",
                    "::ffff:168.63.129.16",
                    "fd20:ce::254",
                    "::ffff:169.254.169.254",
                    "2002:a9fe:a9fe::1",
                ],
            ),
        ] {
            for address in addresses {
                assert_eq!(Zone::of(address.parse().unwrap()), zone, "{address}");
            }
        }
    }

    #[test]
    fn a_host_is_an_address_in_any_notation_or_a_name() {
        for (url, zone) in [
            ("http://0x7f.1/", Some(Zone::Loopback)),
            ("http://2130706433/", Some(Zone::Loopback)),
            ("http://[::ffff:a00:1]/", Some(Zone::Private)),
            ("http://LOCALHOST/", Some(Zone::Loopback)),
            ("http://a.localhost./", Some(Zone::Loopback)),
            ("http://1.1.1.1/", Some(Zone::Public)),
            ("http://localhost.example/", None),
        ] {
            assert_eq!(Zone::of_host(&url.parse().unwrap()), zone, "{url}");
        }
    }
}
