//! Server certificates: issued by the site's CA, or provided by the user.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::base::directory::Directory;
use crate::base::fs::FsError;
use crate::conf::setup::{CA, Settings, Tls};
use crate::oci::digest::Digest;

/// Lifetime of the CA certificate. After that, every client must trust a new one.
const CA_LIFETIME: Duration = Duration::days(3650);
/// Lifetime of the server certificate; some clients reject more than 825 days.
const SERVER_LIFETIME: Duration = Duration::days(730);
/// A server certificate that expires within this time is renewed.
const RENEWAL: Duration = Duration::days(60);
/// Certificates are valid from this long before they are made, because clocks without a network are
/// inaccurate.
const CLOCK_ERROR: Duration = Duration::days(2);

const CERTIFICATE: &str = "tls/server.crt";
const KEY: &str = "tls/server.key";
const CA_CERTIFICATE: &str = "ca/ca.crt";
const CA_KEY: &str = "ca/ca.key";
/// Maximum bytes of a certificate or key that are read.
const PEM_LIMIT: u64 = 1 << 20;

/// The outcome for the server certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issued {
    /// No certificate: plain HTTP.
    Off,
    /// The existing certificate is still valid.
    Kept {
        /// The expiry time.
        until: OffsetDateTime,
    },
    /// A new certificate was issued.
    New {
        /// The reason, as a clause.
        why: &'static str,
        /// The expiry time.
        until: OffsetDateTime,
        /// True if the CA is new too, so that every client must trust it.
        new_ca: bool,
    },
    /// The certificate of the user is used.
    Provided {
        /// The expiry time.
        until: OffsetDateTime,
        /// True if the certificate covers the host name.
        names_host: bool,
    },
}

/// The reason why there is no server certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A local I/O error.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A file is not a certificate or a private key.
    #[error("cannot parse `{}`: no {what} in PEM format", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The expected content.
        what: &'static str,
    },
    /// The certificate of the user expired.
    #[error("the certificate `{}` expired on {when}: renew it, or use `--tls auto`", path.display())]
    Expired {
        /// The certificate.
        path: PathBuf,
        /// The expiry date.
        when: String,
    },
    /// The private key of the user is encrypted.
    #[error(
        "the private key `{}` is encrypted, so the servers cannot start unattended: decrypt it with `openssl pkey`",
        .0.display()
    )]
    Encrypted(PathBuf),
    /// The certificate and the private key of the user do not match.
    #[error("the private key `{}` does not match the certificate `{}`", key.display(), certificate.display())]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
    },
    /// The CA is incomplete, invalid or expired.
    #[error(
        "cannot use the CA in `{}`: it is incomplete, invalid or expired: move the directory away; every client must \
         then trust a new CA", .0.display()
    )]
    Ca(PathBuf, #[source] Option<rcgen::Error>),
    /// A certificate cannot be made.
    #[error("cannot issue a certificate")]
    Issue(#[from] rcgen::Error),
}

/// Provides the server certificate and its key in `conf` according to the settings. Returns the outcome and,
/// if the site's CA is used, its certificate (PEM).
pub(crate) fn provide(settings: &Settings, conf: &Directory) -> Result<(Issued, Option<String>), TlsError> {
    match &settings.tls {
        Tls::Off => Ok((Issued::Off, None)),
        Tls::Files(certificate, key) => Ok((copy(settings, conf, certificate, key)?, None)),
        Tls::Auto => {
            let (ca, is_new) = Ca::open_or_create(conf)?;
            Ok((issue(settings, conf, &ca, is_new)?, Some(ca.certificate)))
        }
    }
}

/// Checks and copies the certificate of the user.
fn copy(settings: &Settings, conf: &Directory, certificate: &Path, key: &Path) -> Result<Issued, TlsError> {
    // The files can be on removable media; without them, the copy is used.
    let copies = if certificate.exists() { None } else { stored(conf, CERTIFICATE)?.zip(stored(conf, KEY)?) };
    let paths = [CERTIFICATE, KEY].map(|name| conf.path().join(name));
    let (certificate, key) = if copies.is_some() { (&*paths[0], &*paths[1]) } else { (certificate, key) };
    let (certificate_pem, key_pem) = match copies {
        Some(copies) => copies,
        None => (read(certificate)?, read(key)?),
    };
    let parsed = ParsedCertificate::parse(&certificate_pem)
        .ok_or_else(|| TlsError::Syntax { path: certificate.to_owned(), what: "certificate" })?;
    if parsed.until < OffsetDateTime::now_utc() {
        return Err(TlsError::Expired { path: certificate.to_owned(), when: day(parsed.until) });
    }
    if !key_pem.contains("PRIVATE KEY-----") {
        return Err(TlsError::Syntax { path: key.to_owned(), what: "private key" });
    }
    if key_pem.contains("ENCRYPTED") {
        return Err(TlsError::Encrypted(key.to_owned()));
    }
    // The servers support more kinds of keys than rcgen, so a key that it cannot parse is accepted.
    if KeyPair::from_pem(&key_pem).is_ok_and(|key| key.public_key_raw() != parsed.public_key) {
        return Err(TlsError::Pair { certificate: certificate.to_owned(), key: key.to_owned() });
    }
    write_pair(conf, &certificate_pem, &key_pem)?;
    Ok(Issued::Provided { until: parsed.until, names_host: parsed.covers(&settings.host) })
}

/// Issues a server certificate, unless the existing one is still valid.
fn issue(settings: &Settings, conf: &Directory, ca: &Ca, is_new_ca: bool) -> Result<Issued, TlsError> {
    let existing = (stored(conf, CERTIFICATE)?.unwrap_or_default(), stored(conf, KEY)?.unwrap_or_default());
    let why = match check_existing(settings, &existing, ca) {
        _ if is_new_ca => "the CA is new",
        Ok(until) => return Ok(Issued::Kept { until }),
        Err(why) => why,
    };
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, settings.host.clone());
    params.subject_alt_names = vec![
        match settings.host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(settings.host.clone().try_into()?),
        },
        SanType::DnsName("localhost".to_owned().try_into()?),
        SanType::IpAddress(settings.ip),
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let until = set_validity(&mut params, SERVER_LIFETIME);
    let server = params.signed_by(&key, &ca.issuer)?;
    write_pair(conf, &format!("{}{}", server.pem(), ca.certificate), &key.serialize_pem())?;
    Ok(Issued::New { why, until, new_ca: is_new_ca })
}

/// Returns the expiry time of the existing server certificate, which is given with its key. The error is the
/// reason to replace it.
fn check_existing(
    settings: &Settings,
    (pem, key): &(String, String),
    ca: &Ca,
) -> Result<OffsetDateTime, &'static str> {
    let existing = ParsedCertificate::parse(pem).ok_or("there was none")?;
    let names = [&*settings.host, &settings.ip.to_string(), "localhost", "127.0.0.1"].map(str::to_owned);
    if !names.iter().all(|name| existing.names.contains(name)) {
        return Err("the names or addresses have changed");
    }
    if existing.until - OffsetDateTime::now_utc() < RENEWAL {
        return Err("the previous one was about to expire");
    }
    if existing.issuer != ca.subject {
        return Err("the previous one was issued by another CA");
    }
    if !KeyPair::from_pem(key).is_ok_and(|key| key.public_key_raw() == existing.public_key) {
        return Err("the private key was missing or did not match");
    }
    Ok(existing.until)
}

/// The site's CA.
struct Ca {
    /// The certificate in PEM format.
    certificate: String,
    subject: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Opens the CA in `conf`, or creates it. Returns true if it is new.
    fn open_or_create(conf: &Directory) -> Result<(Self, bool), TlsError> {
        match (stored(conf, CA_CERTIFICATE)?, stored(conf, CA_KEY)?) {
            (Some(certificate), Some(key)) => match Self::parse(certificate, &key) {
                Ok(ca) => Ok((ca, false)),
                Err(error) => Err(TlsError::Ca(conf.path().join(CA), error)),
            },
            (None, None) => Ok((Self::create(conf)?, true)),
            _ => Err(TlsError::Ca(conf.path().join(CA), None)),
        }
    }

    /// Parses a CA. The error is `None` if the certificate is invalid or expired, or does not match the key.
    fn parse(certificate: String, key: &str) -> Result<Self, Option<rcgen::Error>> {
        let key = KeyPair::from_pem(key)?;
        let parsed = ParsedCertificate::parse(&certificate).ok_or(None)?;
        if parsed.public_key != key.public_key_raw() || parsed.until < OffsetDateTime::now_utc() {
            return Err(None);
        }
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        Ok(Self { certificate, subject: parsed.subject, issuer })
    }

    fn create(conf: &Directory) -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "airbundle site CA");
        // A client can trust the CAs of several sites, so their names must differ.
        let fingerprint = Digest::of(key.public_key_raw()).hex()[..8].to_owned();
        params.distinguished_name.push(DnType::OrganizationName, fingerprint);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, CA_LIFETIME);
        let certificate = params.self_signed(&key)?.pem();
        conf.create_subdirectory(CA, 0o700)?;
        conf.replace(CA_KEY, key.serialize_pem().as_bytes(), 0o600)?;
        conf.replace(CA_CERTIFICATE, certificate.as_bytes(), 0o644)?;
        let subject = ParsedCertificate::parse(&certificate).map(|parsed| parsed.subject).unwrap_or_default();
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        Ok(Self { certificate, subject, issuer })
    }
}

/// Fields of a certificate.
struct ParsedCertificate {
    /// The expiry time.
    until: OffsetDateTime,
    subject: String,
    issuer: String,
    /// DNS names and IP addresses of the subject.
    names: Vec<String>,
    public_key: Vec<u8>,
}

impl ParsedCertificate {
    /// Parses the first certificate in `pem`.
    fn parse(pem: &str) -> Option<Self> {
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
        Some(Self {
            until: OffsetDateTime::from_unix_timestamp(certificate.validity().not_after.timestamp()).ok()?,
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            names,
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }

    fn covers(&self, host: &str) -> bool {
        let wildcard = host.split_once('.').map(|(_, domain)| format!("*.{domain}"));
        self.names.iter().any(|name| name == host || Some(name) == wildcard.as_ref())
    }
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    address.ok().map(|address| address.to_string())
}

/// Sets the validity period to begin now. Returns the expiry time.
fn set_validity(params: &mut CertificateParams, lifetime: Duration) -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_ERROR;
    params.not_after = now + lifetime;
    params.not_after
}

/// Writes the certificate and its private key, unless they are unchanged.
fn write_pair(conf: &Directory, certificate: &str, key: &str) -> Result<(), FsError> {
    if stored(conf, CERTIFICATE)?.as_deref() == Some(certificate)
        && stored(conf, KEY)?.as_deref() == Some(key)
    {
        return Ok(());
    }
    conf.replace(KEY, key.as_bytes(), 0o600)?;
    conf.replace(CERTIFICATE, certificate.as_bytes(), 0o644)
}

/// Reads a file of the user.
fn read(path: &Path) -> Result<String, FsError> {
    std::fs::read_to_string(path).map_err(FsError::at("read", path))
}

/// Reads a file of the configuration. `None`: it is missing.
fn stored(conf: &Directory, name: &str) -> Result<Option<String>, FsError> {
    Ok(conf.read(name, PEM_LIMIT)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Returns the date of `time`, e.g. `2026-11-23`.
#[must_use]
pub(crate) fn day(time: OffsetDateTime) -> String {
    time.date().to_string()
}
