//! [`Certificate`]: the fields of an X.509 certificate (RFC 5280) that decide whether it is used.

use std::collections::BTreeSet;
use std::net::IpAddr;

use time::OffsetDateTime;
use x509_parser::extensions::{GeneralSubtree, NameConstraints};
use x509_parser::oid_registry::{
    OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE,
    OID_X509_EXT_NAME_CONSTRAINTS, OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
};
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
    /// The names for which a CA can issue certificates. `None`: there are no constraints, or the certificate has
    /// other properties than an airbundle CA.
    pub(crate) permitted: Option<PermittedNames>,
}

/// The permitted subtrees of a CA (RFC 5280, section 4.2.1.10): DNS names and IP addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PermittedNames {
    domains: BTreeSet<String>,
    /// Address and mask of each subnet; 8 or 32 bytes.
    subnets: BTreeSet<Vec<u8>>,
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
        let permitted = permitted.filter(|extension| extension.critical).and_then(|extension| {
            let NameConstraints { permitted_subtrees, excluded_subtrees } = extension.value;
            PermittedNames::new(permitted_subtrees.as_deref()?).filter(|_| excluded_subtrees.is_none())
        });
        let permitted = permitted.filter(|_| is_site_ca(&certificate));
        Some(Self {
            until: OffsetDateTime::from_unix_timestamp(certificate.validity().not_after.timestamp()).ok()?,
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            names,
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
            permitted,
        })
    }

    /// True if the certificate is for `host`, by name or by wildcard.
    pub(crate) fn covers(&self, host: &str) -> bool {
        let wildcard = host.split_once('.').map(|(_, domain)| format!("*.{domain}"));
        self.names.iter().any(|name| name == host || Some(name) == wildcard.as_ref())
    }
}

/// True if a CA can issue certificates of servers only, and none of other CAs.
fn is_site_ca(certificate: &X509Certificate<'_>) -> bool {
    let known = [
        OID_X509_EXT_BASIC_CONSTRAINTS,
        OID_X509_EXT_KEY_USAGE,
        OID_X509_EXT_EXTENDED_KEY_USAGE,
        OID_X509_EXT_NAME_CONSTRAINTS,
        OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
    ];
    let is_known = certificate.extensions().iter().all(|extension| known.contains(&extension.oid));
    let constraints = certificate.basic_constraints().ok().flatten();
    let issues_no_ca = constraints.is_some_and(|extension| {
        extension.critical && extension.value.ca && extension.value.path_len_constraint == Some(0)
    });
    let usage = certificate.extended_key_usage().ok().flatten().map(|extension| extension.value);
    let is_for_servers = usage.is_some_and(|usage| {
        usage.server_auth
            && !(usage.any
                || usage.client_auth
                || usage.code_signing
                || usage.email_protection
                || usage.time_stamping
                || usage.ocsp_signing)
            && usage.other.is_empty()
    });
    is_known && issues_no_ca && is_for_servers
}

impl PermittedNames {
    /// Returns constraints to exactly these host names and addresses.
    pub(crate) fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut permitted = Self::default();
        for name in names {
            match name.parse() {
                Ok(IpAddr::V4(address)) => {
                    permitted.subnets.insert([address.octets(), [255; 4]].concat());
                }
                Ok(IpAddr::V6(address)) => {
                    permitted.subnets.insert([address.octets(), [255; 16]].concat());
                }
                Err(_) => {
                    permitted.domains.insert(name.to_owned());
                }
            }
        }
        permitted
    }

    /// Returns `None` if there are other kinds of names.
    fn new(subtrees: &[GeneralSubtree]) -> Option<Self> {
        let mut names = Self::default();
        for subtree in subtrees {
            match &subtree.base {
                GeneralName::DNSName(name) => {
                    names.domains.insert((*name).to_owned());
                }
                GeneralName::IPAddress(bytes) => {
                    names.subnets.insert(bytes.to_vec());
                }
                _ => return None,
            }
        }
        Some(names)
    }
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    address.ok().map(|address| address.to_string())
}
