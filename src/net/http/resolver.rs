//! [`Resolver`]: resolves host names, and removes addresses that a request must not go to.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::net::reach::Internal;
use crate::net::zone::Zone;

/// Resolves names for connections. A check before the request would not suffice: the name could have other
/// addresses by the time of the connection.
pub(crate) struct Resolver {
    /// The greatest zone of an address.
    pub limit: Zone,
    /// Addresses of greater zones that are allowed.
    pub internal: Arc<Internal>,
}

/// A name has only addresses that requests must not go to.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{host}` resolves to {address}")]
pub(crate) struct InternalAddress {
    /// The name.
    pub host: String,
    /// Its first address.
    pub address: IpAddr,
}

impl Resolver {
    /// Returns the addresses that a connection may use.
    fn filter(
        &self,
        host: &str,
        addresses: impl Iterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, InternalAddress> {
        let is_allowed = |ip: IpAddr| Zone::of(ip) <= self.limit || self.internal.allows_address(ip);
        let (allowed, refused): (Vec<_>, Vec<_>) = addresses.partition(|address| is_allowed(address.ip()));
        match refused.first().filter(|_| allowed.is_empty()) {
            Some(address) => Err(InternalAddress { host: host.to_owned(), address: address.ip() }),
            None => Ok(allowed),
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = Self { limit: self.limit, internal: Arc::clone(&self.internal) };
        Box::pin(async move {
            let lookup = tokio::task::spawn_blocking(move || {
                let addresses = (name.as_str(), 0).to_socket_addrs()?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(this.filter(name.as_str(), addresses)?)
            });
            Ok(Box::new(lookup.await??.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_beyond_the_limit_are_removed() {
        let filter = |limit, internal: &[&str], addresses: &[&str]| {
            let internal = Internal(internal.iter().map(|text| text.parse().unwrap()).collect());
            let resolver = Resolver { limit, internal: Arc::new(internal) };
            let addresses = addresses.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0));
            let filtered = resolver.filter("a.example", addresses);
            filtered.map(|found| found.iter().map(|found| found.ip().to_string()).collect::<Vec<_>>())
        };
        let all = ["10.0.0.1", "203.0.113.1", "127.0.0.1"];
        assert_eq!(filter(Zone::Public, &[], &all).unwrap(), ["203.0.113.1"]);
        assert_eq!(filter(Zone::Private, &[], &all).unwrap(), ["10.0.0.1", "203.0.113.1"]);
        assert_eq!(filter(Zone::Loopback, &[], &all).unwrap(), all);
        assert_eq!(filter(Zone::Public, &["127.0.0.0/8"], &all).unwrap(), ["203.0.113.1", "127.0.0.1"]);
        let error = filter(Zone::Public, &[], &["10.0.0.1"]).unwrap_err();
        assert_eq!(error.to_string(), "`a.example` resolves to 10.0.0.1");
    }
}
