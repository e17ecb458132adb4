//! [`TlsTrust`]: whose certificates are taken, and which of ours are shown to whom.

use std::sync::OnceLock;

use reqwest::{Certificate, Identity, Url};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::net::host::names;

/// Whose certificates are taken besides those of the system's authorities, and our own.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsTrust {
    /// More authorities.
    pub authorities: Vec<Certificate>,
    /// Our certificates, by the host that they are for, with its port or for all its ports.
    pub identities: Vec<(String, Identity)>,
}

/// Why a file with certificates is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// Nothing of what should be in it.
    #[error("there is no {0} in PEM in it (a block that begins with `-----BEGIN {1}-----`)")]
    Missing(&'static str, &'static str),
    /// A block that is not what it says.
    #[error("its {0} number {1} cannot be read: {2}")]
    Damaged(&'static str, usize, String),
    /// A key that is not the one of the certificate.
    #[error("the key does not belong to the certificate: {0}")]
    Key(rustls::Error),
}

impl TlsTrust {
    /// Adds the authorities of a PEM file; there may be several in it.
    pub(crate) fn add_authorities(&mut self, pem: &[u8]) -> Result<(), TrustError> {
        for (number, der) in certificates(pem)?.iter().enumerate() {
            let damaged = |error: String| TrustError::Damaged("certificate", number + 1, error);
            RootCertStore::empty().add(der.clone()).map_err(|error| damaged(error.to_string()))?;
            let certificate = Certificate::from_der(der).map_err(|error| damaged(error.to_string()))?;
            self.authorities.push(certificate);
        }
        Ok(())
    }

    /// Adds a certificate of ours, with those between it and its authority behind it, to be shown to `host`.
    pub(crate) fn add_identity(
        &mut self,
        host: &str,
        certificate: &[u8],
        key: &[u8],
    ) -> Result<(), TrustError> {
        let chain = certificates(certificate)?;
        let private = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => TrustError::Missing("private key", "PRIVATE KEY"),
            error => TrustError::Damaged("private key", 1, error.to_string()),
        })?;
        let provider = rustls::crypto::ring::default_provider();
        CertifiedKey::from_der(chain, private, &provider).map_err(TrustError::Key)?;
        let damaged = |error: reqwest::Error| TrustError::Damaged("certificate", 1, error.to_string());
        // The key first: of a file that holds both, its certificates are not taken twice.
        let pem = if certificate == key { key.to_vec() } else { [key, b"\n", certificate].concat() };
        self.identities.push((host.to_owned(), Identity::from_pem(&pem).map_err(damaged)?));
        Ok(())
    }

    /// Which identity is for the host of a URL: one that names its port before one that does not.
    #[must_use]
    pub(crate) fn identity_for(&self, url: &Url) -> Option<usize> {
        if self.identities.is_empty() || url.scheme() != "https" {
            return None;
        }
        let with_port = url.host_str().zip(url.port_or_known_default());
        let with_port = with_port.map(|(host, port)| format!("{host}:{port}"));
        let mut names = with_port.into_iter().chain(names(url));
        names.find_map(|name| self.identities.iter().position(|(host, _)| *host == name))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let damaged = |error| TrustError::Damaged("certificate", certificates.len() + 1, format!("{error}"));
        let certificate: CertificateDer<'_> =
            certificate.map_err(|error: rustls::pki_types::pem::Error| damaged(error))?;
        certificates.push(certificate.into_owned());
    }
    if certificates.is_empty() {
        Err(TrustError::Missing("certificate", "CERTIFICATE"))
    } else {
        Ok(certificates)
    }
}

/// The authorities of this system: `SSL_CERT_FILE` and `SSL_CERT_DIR`, or where its distribution has them. None, if
/// there are none: all of them may be named with `--ca-file`, or nothing be fetched by https.
pub(crate) fn of_system() -> &'static [Certificate] {
    static SYSTEM: OnceLock<Vec<Certificate>> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        // What cannot be read is an authority less, and an error when it would have been needed.
        let found = rustls_native_certs::load_native_certs().certs;
        let useful = found.iter().filter(|der| RootCertStore::empty().add((*der).clone()).is_ok());
        useful.filter_map(|der| Certificate::from_der(der).ok()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["a.example".into()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn certificates_are_taken_one_or_many_and_garbage_is_not() {
        let mut trust = TlsTrust::default();
        let [one, two] = [pair().0, pair().0];
        trust.add_authorities(format!("text\n{one}\n# more\n{two}").as_bytes()).unwrap();
        assert_eq!(trust.authorities.len(), 2);
        let broken = one.replacen("\nM", "\nA", 1);
        for (pem, word) in [("", "BEGIN CERTIFICATE"), ("garbage", "no certificate"), (&broken, "number 1")] {
            let error = trust.add_authorities(pem.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn an_identity_needs_the_key_of_its_certificate_and_goes_to_its_host_alone() {
        let mut trust = TlsTrust::default();
        let ((certificate, key), (_, other)) = (pair(), pair());
        let mut add = |host: &str, certificate: &str, key: &str| {
            trust
                .add_identity(host, certificate.as_bytes(), key.as_bytes())
                .map_err(|error| error.to_string())
        };
        assert!(add("a.example", &certificate, &other).unwrap_err().contains("does not belong"));
        assert!(add("a.example", &certificate, "").unwrap_err().contains("PRIVATE KEY"));
        assert!(add("a.example", &key, &key).unwrap_err().contains("CERTIFICATE"));
        add("a.example", &certificate, &key).unwrap();
        let both = format!("{certificate}{key}");
        add("a.example:8443", &both, &both).unwrap();
        for (url, identity) in [
            ("https://a.example/x", Some(0)),
            ("https://A.example:444/x", Some(0)),
            ("https://a.example:8443/x", Some(1)),
            ("http://a.example/x", None),
            ("https://b.a.example/x", None),
        ] {
            assert_eq!(trust.identity_for(&url.parse().unwrap()), identity, "{url}");
        }
    }
}
