//! Server certificates: issued by the site's CA, or provided by the user.

use std::net::IpAddr;
use std::path::PathBuf;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};
use time::{Duration, OffsetDateTime};

use crate::base::directory::Directory;
use crate::base::fs::FsError;
use crate::conf::ca::{self, Ca, CaChange, CaError, CaState, names, read, set_validity, stored};
use crate::conf::certificate::Certificate;
use crate::conf::host_record::HostRecord;
use crate::conf::private_key::{PrivateKey, blocks};
use crate::conf::setup::{Settings, Tls};

/// Lifetime of the server certificate; some clients reject more than 825 days.
const SERVER_LIFETIME: Duration = Duration::days(730);
/// A server certificate that expires within this time is renewed.
pub(crate) const RENEWAL: Duration = Duration::days(60);

/// Maximum length of a common name (RFC 5280, appendix A.1).
const COMMON_NAME_LIMIT: usize = 64;

/// The directory of both.
const TLS: &str = "tls";
const CERTIFICATE_NAME: &str = "server.crt";
const KEY_NAME: &str = "server.key";
const CERTIFICATE: &str = "tls/server.crt";
const KEY: &str = "tls/server.key";

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
    /// The kind of private key is not supported, so it cannot be compared with the certificate.
    #[error(
        "unsupported private key `{}`: use RSA with 2048 to 4096 bits, ECDSA with P-256 or P-384, or Ed25519", .0.display()
    )]
    Kind(PathBuf),
    /// The copy of the certificate or of the private key is missing.
    #[error("the certificate of `--tls` is not in the configuration any more: use `--tls CERT,KEY` again")]
    NoCopy,
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
    /// The site's CA cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A certificate cannot be made.
    #[error("cannot issue a certificate")]
    Issue(#[from] rcgen::Error),
}

/// Provides the server certificate and its key in `conf` according to the settings. Returns the outcome and,
/// if the site's CA is used, its certificate (PEM) and its state. `files` are the certificate and the key of the
/// user, if this run copies them. `new_ca` replaces the CA.
pub(crate) fn provide(
    settings: &Settings,
    conf: &Directory,
    files: Option<&[PathBuf; 2]>,
    new_ca: bool,
    record: &mut HostRecord,
) -> Result<(Issued, Option<(String, CaState)>), TlsError> {
    ca::clear(conf)?;
    conf.clear_replacement(TLS, &[KEY_NAME, CERTIFICATE_NAME])?;
    match settings.tls {
        Tls::Off => Ok((Issued::Off, None)),
        Tls::Files => Ok((copy(settings, conf, files)?, None)),
        Tls::Auto => {
            let (ca, state) = Ca::provide(conf, settings, new_ca, record)?;
            let issued = issue(settings, conf, &ca, state.change)?;
            let issued = issued.ok_or_else(|| CaError::NoKey {
                action: "issue a server certificate",
                path: conf.path().join(ca::KEY),
            })?;
            Ok((issued, Some((ca.certificate, state))))
        }
    }
}

/// Checks and copies the certificate of the user. Without files, checks the copies.
fn copy(settings: &Settings, conf: &Directory, files: Option<&[PathBuf; 2]>) -> Result<Issued, TlsError> {
    let paths = files.cloned().unwrap_or_else(|| [CERTIFICATE, KEY].map(|name| conf.path().join(name)));
    let [certificate, key] = &paths;
    let (certificate_text, key_text) = match files {
        Some(_) => (read(certificate)?, read(key)?),
        None => stored(conf, CERTIFICATE)?.zip(stored(conf, KEY)?).ok_or(TlsError::NoCopy)?,
    };
    let no_certificate = || TlsError::Syntax { path: certificate.clone(), what: "certificate" };
    let blocks = blocks(&certificate_text).filter(|block| block.label == "CERTIFICATE");
    let chain: Vec<_> = blocks.map(|block| format!("{}\n", block.text)).collect();
    // Everything that is copied is a certificate.
    let parsed: Option<Vec<_>> = chain.iter().map(|pem| Certificate::parse(pem)).collect();
    let parsed = parsed.and_then(|all| all.into_iter().next()).ok_or_else(no_certificate)?;
    if parsed.until < OffsetDateTime::now_utc() {
        return Err(TlsError::Expired { path: certificate.clone(), when: day(parsed.until) });
    }
    let private = PrivateKey::find(&key_text)
        .ok_or_else(|| TlsError::Syntax { path: key.clone(), what: "private key" })?;
    if private.is_encrypted() {
        return Err(TlsError::Encrypted(key.clone()));
    }
    if private.public_key().ok_or_else(|| TlsError::Kind(key.clone()))? != parsed.public_key {
        return Err(TlsError::Pair { certificate: certificate.clone(), key: key.clone() });
    }
    write_pair(conf, &chain.concat(), &private.pem)?;
    Ok(Issued::Provided { until: parsed.until, names_host: parsed.covers(&settings.host) })
}

/// Issues a server certificate, unless the existing one is still valid. Returns `None` if that requires the
/// CA key, and the key was deleted.
fn issue(
    settings: &Settings,
    conf: &Directory,
    ca: &Ca,
    change: CaChange,
) -> Result<Option<Issued>, TlsError> {
    let existing = (stored(conf, CERTIFICATE)?.unwrap_or_default(), stored(conf, KEY)?.unwrap_or_default());
    let existing = check_existing(settings, &existing, ca);
    let why = match (existing, change) {
        (_, CaChange::First) => "the CA is new",
        (_, CaChange::Replaced) => "the CA was replaced",
        (Existing::Valid(until), CaChange::Kept) => return Ok(Some(Issued::Kept { until })),
        (Existing::Outdated { why, until }, CaChange::Kept) => match (until, &ca.issuer) {
            // Without the key, a certificate is used until it expires.
            (Some(until), None) => return Ok(Some(Issued::Kept { until })),
            _ => why,
        },
    };
    let Some(issuer) = &ca.issuer else { return Ok(None) };
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    // Some clients compare a common name that looks like a host name with the constraints of the CA.
    let common_name = match settings.host.parse::<IpAddr>() {
        Err(_) if settings.host.len() <= COMMON_NAME_LIMIT => &settings.host,
        _ => "airbundle site",
    };
    params.distinguished_name.push(DnType::CommonName, common_name);
    for name in names(settings) {
        params.subject_alt_names.push(match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.try_into()?),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let until = set_validity(&mut params, SERVER_LIFETIME);
    let server = params.signed_by(&key, issuer)?;
    write_pair(conf, &format!("{}{}", server.pem(), ca.certificate), &key.serialize_pem())?;
    Ok(Some(Issued::New { why, until }))
}

/// The state of the existing server certificate.
enum Existing {
    /// It is used. The value is the expiry time.
    Valid(OffsetDateTime),
    /// It is replaced.
    Outdated {
        /// The reason, as a clause.
        why: &'static str,
        /// The expiry time, if clients accept the certificate until then.
        until: Option<OffsetDateTime>,
    },
}

/// Returns the state of the existing server certificate, which is given with its key; both are empty if
/// missing.
fn check_existing(settings: &Settings, (pem, key): &(String, String), ca: &Ca) -> Existing {
    let unusable = |why| Existing::Outdated { why, until: None };
    let Some(existing) = Certificate::parse(pem) else { return unusable("there was none") };
    let names = names(settings);
    if !names.iter().all(|name| existing.names.contains(name)) {
        return unusable("the names or addresses have changed");
    }
    if existing.issuer != ca.subject {
        return unusable("the previous one was issued by another CA");
    }
    if !KeyPair::from_pem(key).is_ok_and(|key| key.public_key_raw() == existing.public_key) {
        return unusable("the private key was missing or did not match");
    }
    let left = existing.until - OffsetDateTime::now_utc();
    let until = left.is_positive().then_some(existing.until);
    if left < RENEWAL {
        return Existing::Outdated { why: "the previous one was about to expire", until };
    }
    // Before 0.2, certificates were also for `localhost`.
    if existing.names.len() > names.len() {
        return Existing::Outdated { why: "the previous one had names that are not the site's", until };
    }
    Existing::Valid(existing.until)
}

/// Writes the certificate and its private key, unless they are unchanged.
fn write_pair(conf: &Directory, certificate: &str, key: &str) -> Result<(), FsError> {
    if stored(conf, CERTIFICATE)?.as_deref() == Some(certificate)
        && stored(conf, KEY)?.as_deref() == Some(key)
    {
        return Ok(());
    }
    // A key without its certificate stops the servers at their next start.
    conf.replace_together(
        TLS,
        &[(KEY_NAME, key.as_bytes(), 0o600), (CERTIFICATE_NAME, certificate.as_bytes(), 0o644)],
    )
}

/// Returns the date of `time`, e.g. `2026-11-23`.
#[must_use]
pub(crate) fn day(time: OffsetDateTime) -> String {
    time.date().to_string()
}
