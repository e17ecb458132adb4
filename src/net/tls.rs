//! [`TlsTrust`]: the CAs that are trusted, and the client certificates.

pub(crate) mod verifier;

use std::sync::{Arc, OnceLock};

use reqwest::{Certificate, Identity, Url};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};

use crate::net::host::names;
use crate::net::tls::verifier::Verifier;

/// CAs that are trusted in addition to the system's, and client certificates.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsTrust {
    /// Additional CA certificates.
    authorities: Vec<CertificateDer<'static>>,
    /// Client certificates, each with its host, which has a port or is for all ports.
    pub identities: Vec<(String, ClientIdentity)>,
}

/// A client certificate and its private key.
#[derive(Debug, Clone)]
pub(crate) struct ClientIdentity {
    /// For clients that do not verify servers.
    pub identity: Identity,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

/// A file without usable certificates.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// The file has no block of this kind.
    #[error("no {0} in PEM format (a block that begins with `-----BEGIN {1}-----`)")]
    Missing(&'static str, &'static str),
    /// A block cannot be parsed.
    #[error("cannot parse {0} number {1}: {2}")]
    Invalid(&'static str, usize, String),
    /// The private key belongs to another certificate.
    #[error("private key does not match the certificate: {0}")]
    Key(rustls::Error),
}

impl TlsTrust {
    /// Adds the CA certificates of a PEM file.
    pub(crate) fn add_authorities(&mut self, pem: &[u8]) -> Result<(), TrustError> {
        for (number, der) in certificates(pem)?.iter().enumerate() {
            let invalid = |error: String| TrustError::Invalid("certificate", number + 1, error);
            RootCertStore::empty().add(der.clone()).map_err(|error| invalid(error.to_string()))?;
            Certificate::from_der(der).map_err(|error| invalid(error.to_string()))?;
            self.authorities.push(der.clone());
        }
        Ok(())
    }

    /// Adds a client certificate for `host`, followed by its intermediate certificates, and its private key.
    pub(crate) fn add_identity(
        &mut self,
        host: &str,
        certificate: &[u8],
        key: &[u8],
    ) -> Result<(), TrustError> {
        let chain = certificates(certificate)?;
        let private = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => TrustError::Missing("private key", "PRIVATE KEY"),
            error => TrustError::Invalid("private key", 1, error.to_string()),
        })?;
        let provider = rustls::crypto::ring::default_provider();
        let key_pair = Arc::new(private.clone_key());
        CertifiedKey::from_der(chain.clone(), private, &provider).map_err(TrustError::Key)?;
        let invalid = |error: reqwest::Error| TrustError::Invalid("certificate", 1, error.to_string());
        // A file with both is used once, so that its certificates are not duplicated.
        let pem = if certificate == key { key.to_vec() } else { [key, b"\n", certificate].concat() };
        let identity = Identity::from_pem(&pem).map_err(invalid)?;
        self.identities.push((host.to_owned(), ClientIdentity { identity, chain, key: key_pair }));
        Ok(())
    }

    /// Returns the TLS settings for servers whose certificates are verified, with the client certificate of this
    /// index. `None`: those of reqwest with [`system_authorities`] suffice.
    pub(crate) fn client_config(&self, identity: Option<usize>, http1_only: bool) -> Option<ClientConfig> {
        if self.authorities.is_empty() {
            return None;
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(system_authorities().iter().chain(&self.authorities).cloned());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let webpki =
            webpki.build().expect("there is a CA certificate, and no revocation list; please report");
        let verifier: Arc<dyn ServerCertVerifier> = Arc::new(Verifier::new(webpki, self.authorities.clone()));
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider supports them; please report")
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match identity.map(|identity| &self.identities[identity].1) {
            Some(ClientIdentity { chain, key, .. }) => config
                .with_client_auth_cert(chain.clone(), key.clone_key())
                .expect("the key was checked when it was read; please report"),
            None => config.with_no_client_auth(),
        };
        let protocols: &[&str] = if http1_only { &["http/1.1"] } else { &["h2", "http/1.1"] };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Some(config)
    }

    /// Returns the index of the client certificate for a URL. One for its port takes precedence over one for
    /// all ports.
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
        let invalid = |error| TrustError::Invalid("certificate", certificates.len() + 1, format!("{error}"));
        let certificate: CertificateDer<'_> =
            certificate.map_err(|error: rustls::pki_types::pem::Error| invalid(error))?;
        certificates.push(certificate.into_owned());
    }
    if certificates.is_empty() {
        Err(TrustError::Missing("certificate", "CERTIFICATE"))
    } else {
        Ok(certificates)
    }
}

/// Returns the CA certificates of the system: from `SSL_CERT_FILE` and `SSL_CERT_DIR`, or from the
/// distribution's directory. May be empty, since `--ca-file` can name all CAs and HTTPS may not be used at
/// all.
pub(crate) fn system_authorities() -> &'static [CertificateDer<'static>] {
    static SYSTEM: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        // A certificate that cannot be read is skipped: if it is needed, the connection fails.
        let found = rustls_native_certs::load_native_certs().certs;
        let is_valid = |der: &CertificateDer<'static>| RootCertStore::empty().add(der.clone()).is_ok();
        found.into_iter().filter(is_valid).collect()
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
    fn a_file_may_have_several_certificates_and_garbage_is_rejected() {
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
    fn a_client_certificate_needs_its_private_key_and_is_for_its_host_only() {
        let mut trust = TlsTrust::default();
        let ((certificate, key), (_, other)) = (pair(), pair());
        let mut add = |host: &str, certificate: &str, key: &str| {
            trust
                .add_identity(host, certificate.as_bytes(), key.as_bytes())
                .map_err(|error| error.to_string())
        };
        assert!(add("a.example", &certificate, &other).unwrap_err().contains("does not match"));
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
