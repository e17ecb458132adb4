//! [`Verifier`]: accepts a server certificate that the user named itself, although it says that it is a CA.
//!
//! `openssl req -x509` makes such self-signed certificates. curl and Go accept them as a CA file; webpki does not, since
//! a CA must not be a server (`CaUsedAsEndEntity`). Only a certificate that equals one of `--ca-file` byte for byte is
//! accepted, for its names and during its validity. All others are verified by webpki.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

/// Verifies the certificates of servers.
#[derive(Debug)]
pub(crate) struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    /// The certificates of `--ca-file`.
    named: Vec<CertificateDer<'static>>,
}

impl Verifier {
    pub(crate) fn new(webpki: Arc<WebPkiServerVerifier>, named: Vec<CertificateDer<'static>>) -> Self {
        Self { webpki, named }
    }
}

/// Returns the certificate if it is a CA.
fn as_ca<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    certificate.is_ca().then_some(certificate)
}

/// Verifies a certificate that the user trusts, except for its signature.
fn verify_named(
    der: &CertificateDer<'_>,
    certificate: &X509Certificate<'_>,
    server_name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, Error> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    let usage = certificate.extended_key_usage().map_err(|_| CertificateError::BadEncoding)?;
    if usage.is_some_and(|usage| !usage.value.server_auth && !usage.value.any) {
        return Err(CertificateError::InvalidPurpose.into());
    }
    verify_server_name(&ParsedCertificate::try_from(der)?, server_name)?;
    Ok(ServerCertVerified::assertion())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(named) = self.named.iter().find(|named| *named == end_entity)
            && let Some(certificate) = as_ca(named)
        {
            return verify_named(named, &certificate, server_name, now);
        }
        self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};
    use rustls::RootCertStore;

    use super::*;

    fn self_signed(change: impl Fn(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["a.example".into()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn verify(
        named: &CertificateDer<'static>,
        sent: &CertificateDer<'static>,
        host: &'static str,
        year: u64,
    ) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        roots.add(named.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let verifier = Verifier::new(webpki, vec![named.clone()]);
        let now = UnixTime::since_unix_epoch(Duration::from_secs((year - 1970) * 31_557_600 + 86_400));
        let host = ServerName::try_from(host).unwrap();
        verifier.verify_server_cert(sent, &[], &host, &[], now).map(drop)
    }

    #[test]
    fn only_a_named_certificate_is_accepted_as_a_server_and_a_ca() {
        let named = self_signed(|_| {});
        assert_eq!(verify(&named, &named, "a.example", 2025), Ok(()));
        let error = |result: Result<(), Error>| match result {
            Err(Error::InvalidCertificate(error)) => error,
            other => panic!("{other:?}"),
        };
        // The same names, and another key.
        let other = self_signed(|_| {});
        assert_ne!(verify(&named, &other, "a.example", 2025), Ok(()));
        assert!(matches!(
            error(verify(&named, &named, "b.example", 2025)),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        ));
        assert_eq!(error(verify(&named, &named, "a.example", 2019)), CertificateError::NotValidYet);
        assert_eq!(error(verify(&named, &named, "a.example", 2031)), CertificateError::Expired);
        let client = |params: &mut CertificateParams| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        };
        let client = self_signed(client);
        assert_eq!(error(verify(&client, &client, "a.example", 2025)), CertificateError::InvalidPurpose);
    }

    #[test]
    fn other_certificates_are_verified_by_webpki() {
        let leaf = self_signed(|params| params.is_ca = IsCa::NoCa);
        assert_eq!(verify(&leaf, &leaf, "a.example", 2025), Ok(()));
        assert_ne!(verify(&leaf, &leaf, "b.example", 2025), Ok(()));
    }
}
