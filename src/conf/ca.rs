//! [`Ca`]: the CA of a site, which can issue certificates for the names of the site only.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use time::{Duration, OffsetDateTime};

use crate::base::directory::Directory;
use crate::base::fs::FsError;
use crate::base::output_file::{Access, OutputFile};
use crate::base::own_file::read_regular;
use crate::conf::certificate::{Certificate, PermittedNames};
use crate::conf::host_record::{CA_CERTIFICATE, HostRecord};
use crate::conf::private_key::blocks;
use crate::conf::setup::{CA, Settings};
use crate::oci::digest::Digest;

/// Lifetime of the CA certificate. After that, every client must trust a new one.
const LIFETIME: Duration = Duration::days(3650);
/// The Unix time from which certificates are valid: 2000-01-01. The clock of a node without a network can be years behind.
const VALID_FROM: i64 = 946_684_800;

pub(crate) const KEY: &str = "ca/ca.key";
const KEY_NAME: &str = "ca.key";
const CERTIFICATE_NAME: &str = "ca.crt";
/// The copy of the certificate for clients.
const COPY: &str = "ca.crt";
/// Maximum size of a key or a certificate with its chain, in bytes.
pub(crate) const PEM_LIMIT: u64 = 1 << 20;

/// The permitted domain of a CA whose site has no host name. A CA without any permitted domain could issue
/// certificates for every domain. No host has such a name (RFC 6761, section 6.4).
const NO_DOMAIN: &str = "invalid";

/// The CA of a site.
pub(crate) struct Ca {
    /// The certificate in PEM format.
    pub(crate) certificate: String,
    pub(crate) subject: String,
    /// `None`: it can issue certificates for names that are not the site's.
    permitted: Option<PermittedNames>,
    /// `None`: the key was deleted.
    pub(crate) issuer: Option<Issuer<'static, KeyPair>>,
}

/// The state of a site's CA after a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaState {
    /// The change by the run.
    pub change: CaChange,
    /// True if the site has the key.
    pub has_key: bool,
}

/// The change of a site's CA by a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaChange {
    /// Nothing.
    Kept,
    /// The site had none.
    First,
    /// The CA is new. Clients that trust the previous one do not trust the site.
    Replaced,
}

/// The reason why a CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A local I/O error.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The CA is invalid or expired.
    #[error(
        "cannot use the CA in `{}`: it is invalid or expired: make a new one with `--new-ca`; every client must then \
         trust it", .0.display()
    )]
    Invalid(PathBuf, #[source] Option<rcgen::Error>),
    /// The key is needed and was deleted.
    #[error(
        "cannot {action}: the CA key `{path}` was deleted: copy it back with `install -m 600 FILE {path}`, or make a \
         new CA with `--new-ca`; every client must then trust it", path = path.display()
    )]
    NoKey {
        /// The operation, as a verb with its object.
        action: &'static str,
        /// The missing key.
        path: PathBuf,
    },
    /// The file for the exported key exists.
    #[error("cannot export the CA key to `{}`: file exists; keys are never overwritten", .0.display())]
    Exists(PathBuf),
    /// A certificate cannot be made.
    #[error("cannot issue a certificate")]
    Issue(#[from] rcgen::Error),
}

impl Ca {
    /// Opens the CA in `conf`. Creates one if there is none, if it can issue certificates for other names than
    /// those of the site, or if `renew`.
    pub(crate) fn provide(
        conf: &Directory,
        settings: &Settings,
        renew: bool,
        record: &mut HostRecord,
    ) -> Result<(Self, CaState), CaError> {
        let certificate = stored(conf, CA_CERTIFICATE)?;
        // If the directory of the CA is lost, clients still have its certificate.
        let is_known = certificate.is_some() || conf.exists(COPY)?;
        let (ca, change) = match certificate.filter(|_| !renew) {
            Some(certificate) => {
                let ca = Self::open(conf, certificate)?;
                if ca.permitted.as_ref() == Some(&permitted(settings)) {
                    (ca, CaChange::Kept)
                } else {
                    (Self::create(conf, settings, record)?, CaChange::Replaced)
                }
            }
            None if is_known => (Self::create(conf, settings, record)?, CaChange::Replaced),
            None => (Self::create(conf, settings, record)?, CaChange::First),
        };
        let state = CaState { change, has_key: ca.issuer.is_some() };
        Ok((ca, state))
    }

    fn open(conf: &Directory, certificate: String) -> Result<Self, CaError> {
        let invalid = |error| CaError::Invalid(conf.path().join(CA), error);
        let parsed = Certificate::parse(&certificate).ok_or_else(|| invalid(None))?;
        // Clients trust everything in the file.
        let is_only = blocks(&certificate).next().is_some_and(|block| block.text == certificate.trim_end());
        let permitted = parsed.permitted.filter(|_| is_only);
        if parsed.until < OffsetDateTime::now_utc() {
            return Err(invalid(None));
        }
        let issuer = match stored(conf, KEY)? {
            Some(key) => {
                let key = KeyPair::from_pem(&key).map_err(|error| invalid(Some(error)))?;
                if key.public_key_raw() != parsed.public_key {
                    return Err(invalid(None));
                }
                let issuer = Issuer::from_ca_cert_pem(&certificate, key);
                Some(issuer.map_err(|error| invalid(Some(error)))?)
            }
            None => None,
        };
        Ok(Self { certificate, subject: parsed.subject, permitted, issuer })
    }

    fn create(conf: &Directory, settings: &Settings, record: &mut HostRecord) -> Result<Self, CaError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "airbundle site CA");
        // A client can trust the CAs of several sites, so their names must differ.
        let fingerprint = Digest::of(key.public_key_raw()).hex()[..8].to_owned();
        params.distinguished_name.push(DnType::OrganizationName, fingerprint);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.name_constraints = Some(constraints(settings));
        set_validity(&mut params, LIFETIME);
        let certificate = params.self_signed(&key)?.pem();
        // The new directory gets the mode of this one.
        conf.create_subdirectory(CA, 0o700)?;
        record.announce_removal(CA_CERTIFICATE);
        record.announce(CA_CERTIFICATE, certificate.as_bytes());
        let key = key.serialize_pem();
        conf.replace_together(
            CA,
            &[(KEY_NAME, key.as_bytes(), 0o600), (CERTIFICATE_NAME, certificate.as_bytes(), 0o644)],
        )?;
        Self::open(conf, certificate)
    }
}

/// Removes the previous key, if a run was killed when it had replaced the CA.
pub(crate) fn clear(conf: &Directory) -> Result<(), FsError> {
    conf.clear_replacement(CA, &[KEY_NAME, CERTIFICATE_NAME])
}

/// Writes a copy of the CA key to `file`, which must not exist, with mode 0600.
pub(crate) fn export_key(conf: &Directory, file: &Path) -> Result<(), CaError> {
    let Some(key) = stored(conf, KEY)? else {
        return Err(CaError::NoKey { action: "export the CA key", path: conf.path().join(KEY) });
    };
    match OutputFile::write_new(file, Access::Private, key.as_bytes()) {
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {
            Err(CaError::Exists(file.to_owned()))
        }
        result => Ok(result?),
    }
}

/// Deletes the CA key. Succeeds if there is none.
pub(crate) fn forget_key(conf: &Directory) -> Result<(), CaError> {
    conf.remove(KEY)?;
    if conf.exists(CA)? {
        Ok(conf.subdirectory(CA)?.file().sync_all().map_err(FsError::at("sync", conf.path().join(CA)))?)
    } else {
        Ok(())
    }
}

/// Returns the host name and the addresses of a site, for its certificates.
pub(crate) fn names(settings: &Settings) -> Vec<String> {
    let mut names = vec![settings.host.clone()];
    let address = settings.ip.to_string();
    if address != settings.host {
        names.push(address);
    }
    names
}

/// Returns the names that the CA of a site is constrained to. Each kind of name has one, because kinds without
/// any are not constrained.
fn constrained_names(settings: &Settings) -> Vec<String> {
    let mut names = names(settings);
    if names.iter().all(|name| name.parse::<IpAddr>().is_ok()) {
        names.insert(0, NO_DOMAIN.into());
    }
    names
}

fn permitted(settings: &Settings) -> PermittedNames {
    PermittedNames::of(constrained_names(settings).iter().map(String::as_str))
}

fn constraints(settings: &Settings) -> NameConstraints {
    let subtrees = constrained_names(settings).into_iter().map(|name| match name.parse() {
        Ok(IpAddr::V4(address)) => GeneralSubtree::IpAddress(CidrSubnet::V4(address.octets(), [255; 4])),
        Ok(IpAddr::V6(address)) => GeneralSubtree::IpAddress(CidrSubnet::V6(address.octets(), [255; 16])),
        Err(_) => GeneralSubtree::DnsName(name),
    });
    NameConstraints { permitted_subtrees: subtrees.collect(), excluded_subtrees: Vec::new() }
}

/// Sets the validity period to end after `lifetime` from now. Returns the expiry time.
pub(crate) fn set_validity(params: &mut CertificateParams, lifetime: Duration) -> OffsetDateTime {
    params.not_before = OffsetDateTime::UNIX_EPOCH + Duration::seconds(VALID_FROM);
    params.not_after = OffsetDateTime::now_utc() + lifetime;
    params.not_after
}

/// Reads a key or a certificate of the user, whose path can lead through symlinks.
pub(crate) fn read(path: &Path) -> Result<String, FsError> {
    let target = std::fs::canonicalize(path).map_err(FsError::at("open", path))?;
    text(read_regular(&target, PEM_LIMIT)?, path)
}

/// Reads a key or a certificate of the configuration. `None`: it is missing.
pub(crate) fn stored(conf: &Directory, name: &str) -> Result<Option<String>, FsError> {
    conf.read(name, PEM_LIMIT)?.map(|bytes| text(bytes, &conf.path().join(name))).transpose()
}

fn text(bytes: Vec<u8>, path: &Path) -> Result<String, FsError> {
    String::from_utf8(bytes).map_err(|_| FsError::at("read", path)(io::ErrorKind::InvalidData.into()))
}
