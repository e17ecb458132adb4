//! Certificates: a certificate authority of the site's own, or what the user has.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::base::fs::{self, FsError};
use crate::conf::generated::replace;
use crate::conf::setup::{Settings, Tls};
use crate::oci::digest::Digest;

/// How long a certificate authority is good for. Every node of the site has to be told of a new one.
const CA_LIFE: Duration = Duration::days(3650);
/// How long the certificate of the server is good for: longer than 825 days some clients refuse.
const SERVER_LIFE: Duration = Duration::days(730);
/// When it is issued anew: at the latest so long before its end.
const NEAR_END: Duration = Duration::days(60);
/// Clocks without a network are not exact.
const CLOCK_ERROR: Duration = Duration::days(2);

/// What was done about the certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issued {
    /// There is none: plain http.
    Off,
    /// The one that was there is good.
    Kept {
        /// Until when.
        until: OffsetDateTime,
    },
    /// A new one was made, for this reason.
    New {
        /// Why.
        why: &'static str,
        /// Until when it is good.
        until: OffsetDateTime,
        /// Whether the certificate authority is new, too: everybody has to be told.
        authority: bool,
    },
    /// The user's was taken.
    Taken {
        /// Until when it is good.
        until: OffsetDateTime,
        /// Whether it is for the host's name.
        names_host: bool,
    },
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file system says no.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// No certificate, or no key.
    #[error("`{}` is no {what} in PEM form", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
    },
    /// It has had its time.
    #[error("the certificate `{}` has expired on {when}: give one that is good, or use `--tls auto`", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// When.
        when: String,
    },
    /// A key that only a passphrase opens.
    #[error("the key `{}` is encrypted, and nobody is there to open it when the site starts: decrypt it with `openssl pkey`", .0.display())]
    Encrypted(PathBuf),
    /// They do not belong together.
    #[error("the key `{}` is not that of the certificate `{}`", key.display(), certificate.display())]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// Only half of the authority is there.
    #[error(
        "the certificate authority in `{}` cannot be used: move the directory away, and everybody has to be told of a new \
         one", .0.display()
    )]
    Authority(PathBuf, #[source] Option<rcgen::Error>),
    /// No key could be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

/// Puts `server.crt` and `server.key` into `directory` if the settings ask for them, and says what was done, and what
/// authority everybody has to trust. Its key is in `authority`.
pub(crate) fn provide(
    settings: &Settings,
    directory: &Path,
    authority: &Path,
) -> Result<(Issued, Option<String>), TlsError> {
    match &settings.tls {
        Tls::Off => Ok((Issued::Off, None)),
        Tls::Files(certificate, key) => Ok((take(settings, directory, certificate, key)?, None)),
        Tls::Auto => issue(settings, directory, authority),
    }
}

fn take(settings: &Settings, directory: &Path, certificate: &Path, key: &Path) -> Result<Issued, TlsError> {
    // It may have been on a stick that is gone: then the copy does.
    let (kept_crt, kept_key) = (directory.join("server.crt"), directory.join("server.key"));
    let is_gone = !certificate.exists() && kept_crt.exists() && kept_key.exists();
    let (certificate, key) = if is_gone { (&*kept_crt, &*kept_key) } else { (certificate, key) };
    let crt = read(certificate)?;
    let pem_key = read(key)?;
    let facts = Facts::read(&crt)
        .ok_or_else(|| TlsError::Syntax { path: certificate.to_owned(), what: "certificate" })?;
    if facts.until < OffsetDateTime::now_utc() {
        return Err(TlsError::Expired { path: certificate.to_owned(), when: day(facts.until) });
    }
    if !pem_key.contains("PRIVATE KEY-----") {
        return Err(TlsError::Syntax { path: key.to_owned(), what: "private key" });
    }
    if pem_key.contains("ENCRYPTED") {
        return Err(TlsError::Encrypted(key.to_owned()));
    }
    // A key of a kind that cannot be read here is left to the servers to judge.
    if KeyPair::from_pem(&pem_key).is_ok_and(|key| key.public_key_raw() != facts.public_key) {
        return Err(TlsError::Pair { certificate: certificate.to_owned(), key: key.to_owned() });
    }
    put_pair(directory, &crt, &pem_key)?;
    Ok(Issued::Taken { until: facts.until, names_host: facts.covers(&settings.host) })
}

fn issue(
    settings: &Settings,
    directory: &Path,
    authority: &Path,
) -> Result<(Issued, Option<String>), TlsError> {
    let (ca, is_new) = Authority::open(authority)?;
    let why = match Facts::read(&std::fs::read_to_string(directory.join("server.crt")).unwrap_or_default()) {
        _ if is_new => "the certificate authority is new",
        None => "there was none",
        Some(facts) if !names(settings).iter().all(|name| facts.names.contains(name)) => {
            "the names or addresses have changed"
        }
        Some(facts) if facts.until - OffsetDateTime::now_utc() < NEAR_END => "the old one was near its end",
        Some(facts) if facts.issuer != ca.subject => "the old one was of another certificate authority",
        Some(facts) if !is_key_of(directory, &facts) => "the key was missing or another one's",
        Some(facts) => return Ok((Issued::Kept { until: facts.until }, Some(ca.certificate))),
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
    let until = live(&mut params, SERVER_LIFE);
    let server = params.signed_by(&key, &ca.issuer)?;
    put_pair(directory, &format!("{}{}", server.pem(), ca.certificate), &key.serialize_pem())?;
    Ok((Issued::New { why, until, authority: is_new }, Some(ca.certificate)))
}

fn is_key_of(directory: &Path, facts: &Facts) -> bool {
    let key = std::fs::read_to_string(directory.join("server.key")).unwrap_or_default();
    KeyPair::from_pem(&key).is_ok_and(|key| key.public_key_raw() == facts.public_key)
}

/// What a certificate for these settings has to name.
fn names(settings: &Settings) -> Vec<String> {
    vec![settings.host.clone(), settings.ip.to_string(), "localhost".into(), "127.0.0.1".into()]
}

struct Authority {
    certificate: String,
    subject: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The one in `directory`, or a new one; says whether it is new.
    fn open(directory: &Path) -> Result<(Self, bool), TlsError> {
        let (crt, key) = (directory.join("ca.crt"), directory.join("ca.key"));
        let refuse = |error| TlsError::Authority(directory.to_owned(), error);
        match (std::fs::read_to_string(&crt), std::fs::read_to_string(&key)) {
            (Ok(certificate), Ok(key)) => {
                let key = KeyPair::from_pem(&key).map_err(|error| refuse(Some(error)))?;
                let facts = Facts::read(&certificate).ok_or_else(|| refuse(None))?;
                if facts.public_key != key.public_key_raw() || facts.until < OffsetDateTime::now_utc() {
                    return Err(refuse(None));
                }
                let issuer =
                    Issuer::from_ca_cert_pem(&certificate, key).map_err(|error| refuse(Some(error)))?;
                Ok((Self { certificate, subject: facts.subject, issuer }, false))
            }
            (Err(a), Err(b))
                if a.kind() == std::io::ErrorKind::NotFound && b.kind() == std::io::ErrorKind::NotFound =>
            {
                Self::make(&crt, &key).map(|made| (made, true))
            }
            (Err(error), _) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(FsError::at("read", &crt)(error).into())
            }
            (_, Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(FsError::at("read", &key)(error).into())
            }
            _ => Err(refuse(None)),
        }
    }

    fn make(crt: &Path, key_path: &Path) -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "airbundle site CA");
        // Several sites may have one each, and a host that trusts two must tell them apart.
        let mark = Digest::of(key.public_key_raw()).hex()[..8].to_owned();
        params.distinguished_name.push(DnType::OrganizationName, mark);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        live(&mut params, CA_LIFE);
        let certificate = params.self_signed(&key)?.pem();
        make_private(fs::parent(crt))?;
        replace(key_path, key.serialize_pem().as_bytes(), 0o600)?;
        replace(crt, certificate.as_bytes(), 0o644)?;
        let subject = Facts::read(&certificate).map(|facts| facts.subject).unwrap_or_default();
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        Ok(Self { certificate, subject, issuer })
    }
}

/// What of a certificate matters here.
struct Facts {
    until: OffsetDateTime,
    subject: String,
    issuer: String,
    names: Vec<String>,
    public_key: Vec<u8>,
}

impl Facts {
    /// Those of the first certificate in `pem`.
    fn read(pem: &str) -> Option<Self> {
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

/// Makes `params` good from now on; says until when.
fn live(params: &mut CertificateParams, life: Duration) -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_ERROR;
    params.not_after = now + life;
    params.not_after
}

fn put_pair(directory: &Path, certificate: &str, key: &str) -> Result<(), FsError> {
    let same =
        |name: &str, text: &str| std::fs::read(directory.join(name)).is_ok_and(|old| old == text.as_bytes());
    if same("server.crt", certificate) && same("server.key", key) {
        return Ok(());
    }
    replace(&directory.join("server.key"), key.as_bytes(), 0o600)?;
    replace(&directory.join("server.crt"), certificate.as_bytes(), 0o644)
}

fn make_private(directory: &Path) -> Result<(), FsError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(FsError::at("create directory", directory))
}

fn read(path: &Path) -> Result<String, TlsError> {
    std::fs::read_to_string(path).map_err(|error| FsError::at("read", path)(error).into())
}

/// A day, as a person writes it: `2026-11-23`.
#[must_use]
pub(crate) fn day(time: OffsetDateTime) -> String {
    time.date().to_string()
}
