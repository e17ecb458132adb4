//! `unbundle site`: writes the configuration that serves a site.

use std::fs::{File, TryLockError};
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError};
use crate::conf::generated::{self, Generated};
use crate::conf::setup::{CA, CONF, Settings, Setup, Tls, is_plain, is_root, pretty};
use crate::conf::tls::{self, Issued, TlsError};
use crate::conf::users::{self, UserError};
use crate::conf::{compose, kubespray, nginx, registry, script, systemd, trust};
use crate::site::catalog::Page;
use crate::site::record::RecordError;
use crate::site::verified::{self, SitePolicy};

const SETTINGS: &str = "settings.json";
/// Maximum size of the settings file in bytes.
const SETTINGS_LIMIT: u64 = 1 << 20;

const LOCK: &str = ".lock";

/// The runtime directory of nginx, unless root runs it.
const RUN: &str = "run";

/// Changes of the settings. `None`: keep the saved value, or use the default.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// See [`Settings::host`].
    pub host: Option<String>,
    /// See [`Settings::ip`].
    pub ip: Option<IpAddr>,
    /// See [`Settings::files_port`].
    pub files_port: Option<u16>,
    /// See [`Settings::registry_port`].
    pub registry_port: Option<u16>,
    /// See [`Settings::tls`].
    pub tls: Option<Tls>,
    /// The user name and password. `Some(None)`: remove the user.
    pub user: Option<Option<(String, String)>>,
}

/// The result of [`configure`].
#[derive(Debug)]
pub struct Configured {
    /// The inputs of the generated files.
    pub setup: Setup,
    /// The written files, relative to the directory of the configuration.
    pub written: Vec<String>,
    /// The edited files, which are kept; the new content is in `NAME.new`.
    pub kept: Vec<String>,
    /// The outcome for the server certificate.
    pub issued: Issued,
    /// The result of writing the catalog page. An error is not fatal: the files can be on a read-only disk.
    pub page: Result<(), FsError>,
}

/// The reason why a site cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// The record of the site cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A local I/O error.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// There is no server certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The user cannot be set.
    #[error(transparent)]
    User(#[from] UserError),
    /// A path has characters that some of the generated files cannot contain.
    #[error(
        "unsupported character in the path `{}`: nginx, compose or a shell would misread it: use letters, digits and \
         `._+@/-`", .0.display()
    )]
    Path(PathBuf),
    /// The configuration, which contains keys, would be in a directory that is served.
    #[error(
        "cannot write the configuration, which contains keys, to `{}`: `{}` is served: choose another directory with \
         `--conf`", .0.display(), .1.display()
    )]
    Served(PathBuf, PathBuf),
    /// The saved settings do not parse.
    #[error("cannot parse `{}` (correct or remove it)", .0.display())]
    Settings(PathBuf, #[source] serde_json::Error),
    /// Another process is writing the configuration.
    #[error("another `unbundle site` is writing to `{}`: wait until it ends", .0.display())]
    Busy(PathBuf),
    /// This host has no address that clients can use.
    #[error("this host has only loopback addresses: use `--ip` to set the address for clients")]
    Address,
    /// The host name is invalid.
    #[error("invalid host name `{0}`: use lower-case letters, digits, `-` and `.`")]
    Host(String),
    /// Both servers have the same port.
    #[error("files and registry cannot both use port {0}")]
    Ports(u16),
}

/// Writes the configuration of `site` to `conf`, by default a directory of the site. Edited files are kept.
pub fn configure(
    site: &Path,
    conf: Option<&Path>,
    policy: &SitePolicy,
    changes: Changes,
) -> Result<Configured, ConfError> {
    let record = verified::read(site, policy)?;
    let site = std::fs::canonicalize(site).map_err(FsError::at("find", site))?;
    let conf = match conf {
        Some(directory) => std::path::absolute(directory).map_err(FsError::at("find", directory))?,
        None => site.join(CONF),
    };
    let (files, registry) = (record.files_root(&site), record.registry_root(&site));
    check_paths(&site, &conf, [&files, &registry])?;
    fs::create_dir_all(&conf)?;
    let _lock = lock(&conf)?;
    let login = changes.user.clone().flatten();
    let settings = changes.apply(read_settings(&conf)?)?;
    let (issued, ca) = tls::provide(&settings, &conf.join("tls"), &conf.join(CA))?;
    let setup = Setup { site, files, registry, conf, settings, record, ca };
    users::provide(&setup, login)?;
    write_settings(&setup)?;
    if !is_root() {
        fs::create_dir_all(&setup.conf.join(RUN))?;
    }
    let (written, kept) = generate(&setup)?;
    let page = write_page(&setup);
    Ok(Configured { setup, written, kept, issued, page })
}

fn check_paths(site: &Path, conf: &Path, served: [&PathBuf; 2]) -> Result<(), ConfError> {
    for path in [site, conf, served[0], served[1]] {
        if !is_plain(path) {
            return Err(ConfError::Path(path.to_owned()));
        }
    }
    match served.into_iter().find(|root| conf.starts_with(root)) {
        Some(root) => Err(ConfError::Served(conf.to_owned(), root.clone())),
        None => Ok(()),
    }
}

/// Writes the generated files. Returns the names of the written files and of the edited files, which are
/// kept.
fn generate(setup: &Setup) -> Result<(Vec<String>, Vec<String>), FsError> {
    let mut generated = Generated::open(&setup.conf);
    nginx::generate(setup, &mut generated);
    generated.put("registry.yml", registry::config(setup).as_bytes(), 0o644);
    generated.put("compose.yaml", compose::file(setup).as_bytes(), 0o644);
    systemd::generate(setup, &mut generated);
    trust::generate(setup, &mut generated);
    generated.put("kubespray/offline.yml", kubespray::offline(setup).as_bytes(), 0o644);
    generated.put("site", script::script(setup).as_bytes(), 0o755);
    generated.finish()
}

impl Changes {
    /// Returns the new settings. If none are saved, the defaults change.
    fn apply(self, saved: Option<Settings>) -> Result<Settings, ConfError> {
        let is_new = saved.is_none();
        let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let saved = saved.unwrap_or_else(|| Settings {
            host: "hub.kubespray.local".into(),
            ip: unspecified,
            files_port: 8080,
            registry_port: 5000,
            tls: Tls::Auto,
            user: None,
        });
        let host = self.host.unwrap_or(saved.host);
        check_host(&host)?;
        // If the host name is an address, clients use that address.
        let mut ip = self.ip.or_else(|| host.parse().ok()).unwrap_or(saved.ip);
        let files_port = self.files_port.unwrap_or(saved.files_port);
        let registry_port = self.registry_port.unwrap_or(saved.registry_port);
        if files_port == registry_port {
            return Err(ConfError::Ports(files_port));
        }
        if is_new && ip == unspecified {
            ip = own_address().ok_or(ConfError::Address)?;
        }
        let tls = self.tls.unwrap_or(saved.tls);
        let user = self.user.map_or(saved.user, |user| user.map(|(name, _)| name));
        Ok(Settings { host, ip, files_port, registry_port, tls, user })
    }
}

/// Returns an error unless `host` is a lower-case host name (RFC 1123, section 2.1).
fn check_host(host: &str) -> Result<(), ConfError> {
    let is_label = |label: &str| {
        let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=63).contains(&label.len())
            && label.chars().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.len() <= 253 && host.split('.').all(is_label) {
        Ok(())
    } else {
        Err(ConfError::Host(host.to_owned()))
    }
}

/// Writes the catalog page to the files, unless the user has put another page there.
fn write_page(setup: &Setup) -> Result<(), FsError> {
    let path = setup.files.join("index.html");
    let html = Page { record: &setup.record, registry: &setup.registry_host() }.html();
    match std::fs::read(&path) {
        Ok(old) if old == html.as_bytes() || !Page::is(&String::from_utf8_lossy(&old)) => Ok(()),
        _ => generated::replace(&path, html.as_bytes(), 0o644),
    }
}

/// Reads the saved settings. `None`: no settings are saved.
fn read_settings(conf: &Path) -> Result<Option<Settings>, ConfError> {
    let path = conf.join(SETTINGS);
    match fs::read(&path, SETTINGS_LIMIT) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|error| ConfError::Settings(path, error))
        }
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn write_settings(setup: &Setup) -> Result<(), FsError> {
    let path = setup.conf.join(SETTINGS);
    let settings = pretty(&setup.settings);
    if std::fs::read(&path).is_ok_and(|old| old == settings) {
        return Ok(());
    }
    generated::replace(&path, &settings, 0o644)
}

/// Locks the configuration. Two concurrent runs could create two CAs.
fn lock(conf: &Path) -> Result<File, ConfError> {
    let path = conf.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(FsError::at("create", &path))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(ConfError::Busy(conf.to_owned())),
        // Some file systems do not support locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Returns the address of this host that clients most likely use: the source address for external
/// destinations (no packet is sent) or, without a default route, the first local address other than loopback.
fn own_address() -> Option<IpAddr> {
    let source = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let source = source.ok().map(|address| address.ip());
    source
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
        .or_else(|| local_address_v4(&std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default()))
}

/// Returns the first local address other than loopback in the kernel's routing table (`/proc/net/fib_trie`).
/// There, the type of an address is on the line after it.
fn local_address_v4(table: &str) -> Option<IpAddr> {
    let lines: Vec<&str> = table.lines().map(str::trim).collect();
    let local = lines.windows(2).filter(|pair| pair[1].starts_with("/32 host LOCAL"));
    let mut addresses = local.filter_map(|pair| pair[0].rsplit(' ').next()?.parse::<Ipv4Addr>().ok());
    addresses.find(|address| !address.is_loopback()).map(IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_local_address_other_than_loopback_is_found() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 10.0.0.0\n        \
                     /24 link UNICAST\n        |-- 10.0.0.5\n           /32 host LOCAL\n";
        assert_eq!(local_address_v4(table), Some(IpAddr::from([10, 0, 0, 5])));
        assert_eq!(local_address_v4("Main:\n     |-- 127.0.0.1\n        /32 host LOCAL\n"), None);
    }
}
