//! [`Certificate`]: the fields of an X.509 certificate (RFC 5280) that decide whether it is used.

use std::net::IpAddr;

use time::OffsetDateTime;
use x509_parser::extensions::GeneralSubtree;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Fields of a certificate.
pub(crate) struct Certificate {
    /// The expiry time.
    pub(crate) until: OffsetDateTime,
    pub(crate) subject: String,
    pub(crate) issuer: String,
    /// DNS names and IP addresses of the subject.
    pub(crate) names: Vec<String>,
    pub(crate) public_key: Vec<u8>,
    /// The names for which a CA can issue certificates. `None`: any name.
    pub(crate) permitted: Option<PermittedNames>,
}

/// The permitted subtrees of a CA (RFC 5280, section 4.2.1.10): DNS names and IP addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PermittedNames {
    domains: Vec<String>,
    /// Address and mask of each subnet; 8 or 32 bytes.
    subnets: Vec<Vec<u8>>,
}

impl Certificate {
    /// Parses the first certificate in `pem`.
    pub(crate) fn parse(pem: &str) -> Option<Self> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
        let (_, certificate) = X509Certificate::from_der(&pem.contents).ok()?;
        let mut names = Vec::new();
        if let Ok(Some(extension)) = certificate.subject_alternative_name() {
            for name in &extension.value.general_names {
                match name {
                    GeneralName::DNSName(name) => names.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => names.extend(address(bytes)),
                    _ => {}
                }
            }
        }
        let permitted = certificate.name_constraints().ok()?;
        let permitted = permitted.and_then(|extension| extension.value.permitted_subtrees.as_deref());
        Some(Self {
            until: OffsetDateTime::from_unix_timestamp(certificate.validity().not_after.timestamp()).ok()?,
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            names,
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
            permitted: permitted.and_then(PermittedNames::new),
        })
    }

    /// True if the certificate is for `host`, by name or by wildcard.
    pub(crate) fn covers(&self, host: &str) -> bool {
        let wildcard = host.split_once('.').map(|(_, domain)| format!("*.{domain}"));
        self.names.iter().any(|name| name == host || Some(name) == wildcard.as_ref())
    }
}

impl PermittedNames {
    /// Returns `None` if a kind of name is missing: names of that kind are not constrained.
    fn new(subtrees: &[GeneralSubtree]) -> Option<Self> {
        let mut names = Self::default();
        for subtree in subtrees {
            match &subtree.base {
                GeneralName::DNSName(name) => names.domains.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => names.subnets.push(bytes.to_vec()),
                _ => {}
            }
        }
        (!names.domains.is_empty() && !names.subnets.is_empty()).then_some(names)
    }

    /// True if a certificate for `name`, a host name or an address, is permitted.
    pub(crate) fn contain(&self, name: &str) -> bool {
        match name.parse() {
            Ok(address) => self.subnets.iter().any(|subnet| is_in(address, subnet)),
            Err(_) => self.domains.iter().any(|domain| {
                name.strip_suffix(&**domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
        }
    }
}

fn is_in(address: IpAddr, subnet: &[u8]) -> bool {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (network, mask) = subnet.split_at(subnet.len() / 2);
    bytes.len() == network.len()
        && bytes.iter().zip(network).zip(mask).all(|((byte, network), mask)| byte & mask == network & mask)
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    address.ok().map(|address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permitted_names_contain_subdomains_and_addresses_of_the_subnet() {
        let names = PermittedNames {
            domains: vec!["hub.site.test".into()],
            subnets: vec![vec![10, 0, 0, 5, 255, 255, 255, 255], vec![192, 168, 0, 0, 255, 255, 0, 0]],
        };
        for (name, expected) in [
            ("hub.site.test", true),
            ("a.hub.site.test", true),
            ("ahub.site.test", false),
            ("site.test", false),
            ("10.0.0.5", true),
            ("10.0.0.6", false),
            ("192.168.7.7", true),
            ("fd00::5", false),
        ] {
            assert_eq!(names.contain(name), expected, "{name}");
        }
    }
}
