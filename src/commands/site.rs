//! `unbundle site`: writes the configuration that serves a site.

use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::base::directory::Directory;
use crate::base::fs::{self, FsError, try_lock_file};
use crate::base::json::pretty;
use crate::base::path::RelPath;
use crate::conf::ca::{self, CaError, CaState};
use crate::conf::generated::{Generated, MADE};
use crate::conf::host_record::{HostRecord, HostRecordError, LOCK, SETTINGS};
use crate::conf::plain_path::PlainPath;
use crate::conf::setup::{CONF, SavedError, SettingError, Settings, Setup, Tls, is_root};
use crate::conf::tls::{self, Issued, TlsError};
use crate::conf::users::{self, UserError};
use crate::conf::{charts, clients, compose, kubespray, nginx, registry, script, systemd, trust};
use crate::oci::reference::DEFAULT_PREFIX;
use crate::site::catalog::{Client, Page};
use crate::site::record::RecordError;
use crate::site::verified::{self, SitePolicy};

/// Maximum size of the settings file in bytes.
const SETTINGS_LIMIT: u64 = 1 << 20;

/// The catalog page, in the root of the files.
const PAGE: &str = "index.html";
/// The number of bytes of a page that tell whether it is a catalog.
const PAGE_HEAD: u64 = 1 << 16;

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
    /// The certificate with its chain, and its private key, which are copied for [`Tls::Files`]. `None`: the copies of
    /// an earlier run are used.
    pub certificate: Option<[PathBuf; 2]>,
    /// The user name and password. `Some(None)`: remove the user.
    pub user: Option<Option<(String, String)>>,
    /// Accept a password of fewer than 8 characters.
    pub weak_password: bool,
    /// Changes of the site's CA.
    pub ca: CaChanges,
    /// See [`Settings::hsts`].
    pub hsts: Option<bool>,
    /// See [`Settings::own_index_page`].
    pub own_index_page: Option<bool>,
    /// See [`Settings::bind`]. `Some(None)`: all addresses.
    pub bind: Option<Option<IpAddr>>,
    /// See [`Settings::upstream_fallback`].
    pub upstream_fallback: Option<bool>,
    /// Use a configuration that this host does not remember.
    pub adopt_conf: bool,
}

/// Changes of the site's CA.
#[derive(Debug, Clone, Default)]
pub struct CaChanges {
    /// Replace the CA.
    pub new: bool,
    /// Write a copy of the key to this new file.
    pub export_key: Option<PathBuf>,
    /// Delete the key after the server certificate is issued.
    pub forget_key: bool,
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
    /// The state of the site's CA. `None`: the site does not use it.
    pub ca: Option<CaState>,
    /// The result of writing the catalog page. The configuration is complete even if it failed.
    pub page: Result<(), FsError>,
    /// True if there was no configuration, although the host remembers one.
    pub is_lost: bool,
    /// The result of remembering the configuration. After an error, the next run does not know it.
    pub remembered: Result<(), FsError>,
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
    /// The storage of the registry has an entry that is neither a regular file nor a directory.
    #[error(
        "`{}` is a symlink or a special file, which a registry would follow: remove it, and unpack the bundle again",
        .0.display()
    )]
    Storage(PathBuf),
    /// The configuration is not from this host.
    #[error(transparent)]
    Unknown(#[from] HostRecordError),
    /// There is no server certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The key of the site's CA cannot be exported or deleted.
    #[error(transparent)]
    Ca(#[from] CaError),
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
    /// The copy of the CA key would be in a directory that is served.
    #[error("cannot export the CA key to `{}`: `{}` is served", .0.display(), .1.display())]
    ServedKey(PathBuf, PathBuf),
    /// The default directory of the configuration is not in the site.
    #[error(
        "`{link}` leads to `{target}`, outside of the site: use `--conf {target}` if the configuration belongs there",
        link = .0.display(), target = .1.display()
    )]
    Outside(PathBuf, PathBuf),
    /// The saved settings are invalid.
    #[error("cannot use `{}` (correct or remove it)", .0.display())]
    Saved(PathBuf, #[source] SavedError),
    /// A setting is invalid.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The CA is replaced, but not used.
    #[error("`--new-ca` requires `--tls auto`: the site does not use its CA")]
    UnusedCa,
    /// Another process is writing the configuration.
    #[error("another `unbundle site` is writing to `{}`: wait until it ends", .0.display())]
    Busy(PathBuf),
    /// This host has no address that clients can use.
    #[error("this host has only loopback addresses: use `--ip` to set the address for clients")]
    Address,
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
    let is_named = conf.is_some();
    let conf = find_conf(&site, conf)?;
    // nginx follows no link.
    let (files, registry) =
        (fs::resolve(&record.files_root(&site))?, fs::resolve(&record.registry_root(&site))?);
    let plain = |path| PlainPath::new(path).map_err(ConfError::Path);
    let (site, conf, files, registry) = (plain(site)?, plain(conf)?, plain(files)?, plain(registry)?);
    let served = [&files, &registry];
    let inside = served.into_iter().find(|root| root.starts_with(&*conf)).map(|root| root.to_path_buf());
    if let Some(root) = inside.or(served_root(&conf, served)?) {
        return Err(ConfError::Served(conf.to_path_buf(), root));
    }
    if let Some(file) = &changes.ca.export_key
        && let Some(root) = served_root(&fs::resolve(fs::parent(file))?, served)?
    {
        return Err(ConfError::ServedKey(file.clone(), root));
    }
    if let Some(Some((_, password))) = &changes.user {
        users::check_password(password, changes.weak_password)?;
    }
    check_storage(&registry)?;
    let directory = Directory::create_in(&conf, if is_named { &conf } else { &site })?;
    let _lock = lock(&directory)?;
    let mut host = HostRecord::open(&directory, changes.adopt_conf)?;
    // In a directory that everybody can write to, another user can create `conf` first.
    if !changes.adopt_conf {
        directory.check_user()?;
    }
    let settings = changes.clone().apply(read_settings(&directory)?)?;
    if changes.ca.new && settings.tls != Tls::Auto {
        return Err(ConfError::UnusedCa);
    }
    let (issued, ca) =
        tls::provide(&settings, &directory, changes.certificate.as_ref(), changes.ca.new, &mut host)?;
    let (ca, mut state) = ca.unzip();
    let setup = Setup { site, files, registry, conf, settings, record, ca };
    users::provide(&setup, &directory, changes.user.flatten(), &mut host)?;
    write_settings(&setup, &directory, &mut host)?;
    if !is_root() {
        directory.create_subdirectory(RUN, 0o777)?;
    }
    let clients = clients::all(&setup);
    let (written, kept) = generate(&setup, &clients, &directory, &mut host)?;
    if let Some(file) = &changes.ca.export_key {
        ca::export_key(&directory, file)?;
    }
    if changes.ca.forget_key {
        ca::forget_key(&directory)?;
        state = state.map(|state| CaState { has_key: false, ..state });
    }
    let is_lost = host.is_lost();
    let remembered = host.finish(&directory);
    let page = write_page(&setup, &clients, policy.signatures.is_enforced())
        .and_then(|()| write_chart_indexes(&setup));
    Ok(Configured { setup, written, kept, issued, ca: state, page, is_lost, remembered })
}

/// Returns the directory of the configuration, without symlinks. A site from another host decides nothing:
/// the default directory must be in the site.
fn find_conf(site: &Path, conf: Option<&Path>) -> Result<PathBuf, ConfError> {
    let Some(conf) = conf else {
        let inside = site.join(CONF);
        let conf = fs::resolve(&inside)?;
        return if conf == inside { Ok(conf) } else { Err(ConfError::Outside(inside, conf)) };
    };
    Ok(fs::resolve(conf)?)
}

/// Fails if the storage contains links or special files: Docker Distribution follows them with its own rights.
fn check_storage(registry: &Path) -> Result<(), ConfError> {
    if !fs::exists(registry)? {
        return Ok(());
    }
    for entry in WalkDir::new(registry).min_depth(1) {
        let entry = entry.map_err(|error| FsError::at("list", registry)(error.into()))?;
        if !entry.file_type().is_file() && !entry.file_type().is_dir() {
            return Err(ConfError::Storage(entry.into_path()));
        }
    }
    Ok(())
}

/// Returns the served directory that contains `path`, which has no symlinks.
fn served_root(path: &Path, served: [&PlainPath; 2]) -> Result<Option<PathBuf>, FsError> {
    for root in served {
        if path.starts_with(fs::resolve(root)?) {
            return Ok(Some(root.to_path_buf()));
        }
    }
    Ok(None)
}

/// Writes the generated files. Returns the names of the written files and of the edited files, which are
/// kept.
fn generate(
    setup: &Setup,
    clients: &[Client],
    conf: &Directory,
    host: &mut HostRecord,
) -> Result<(Vec<String>, Vec<String>), FsError> {
    let mut generated = Generated::open(conf)?;
    nginx::generate(setup, &mut generated);
    registry::generate(setup, &mut generated);
    generated.put("compose.yaml", compose::file(setup).as_bytes(), 0o644);
    systemd::generate(setup, &mut generated);
    trust::generate(setup, &mut generated);
    clients::generate(clients, &mut generated);
    generated.put("kubespray/offline.yml", kubespray::offline(setup).as_bytes(), 0o644);
    generated.put("site", script::script(setup).as_bytes(), 0o755);
    generated.finish(host)
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
            hsts: false,
            own_index_page: false,
            bind: None,
            upstream_fallback: false,
        });
        let host = self.host.unwrap_or(saved.host);
        // If the host name is an address, or servers listen on only one, clients use that address.
        let bound = self.bind.flatten();
        let mut ip = self.ip.or_else(|| host.parse().ok()).or(bound).unwrap_or(saved.ip);
        if is_new && ip == unspecified {
            ip = own_address().ok_or(ConfError::Address)?;
        }
        let settings = Settings {
            host,
            ip,
            files_port: self.files_port.unwrap_or(saved.files_port),
            registry_port: self.registry_port.unwrap_or(saved.registry_port),
            tls: self.tls.unwrap_or(saved.tls),
            user: self.user.map_or(saved.user, |user| user.map(|(name, _)| name)),
            hsts: self.hsts.unwrap_or(saved.hsts),
            own_index_page: self.own_index_page.unwrap_or(saved.own_index_page),
            bind: self.bind.unwrap_or(saved.bind),
            upstream_fallback: self.upstream_fallback.unwrap_or(saved.upstream_fallback),
        };
        settings.check()?;
        Ok(settings)
    }
}

/// Writes the catalog page to the files, unless the user has a page of their own there. Another page is kept, but
/// replaced if `is_verified`: no signature covers it.
fn write_page(setup: &Setup, clients: &[Client], is_verified: bool) -> Result<(), FsError> {
    if setup.settings.own_index_page {
        return Ok(());
    }
    let files = Directory::create_in(&setup.files, &setup.site)?;
    let html = Page { record: &setup.record, registry: &setup.registry_host(), clients }.html();
    let old = match files.open_file(PAGE) {
        Err(_) if is_verified => None,
        file => file?,
    };
    if let Some(file) = old {
        let mut old = Vec::new();
        let limit = (html.len() as u64 + 1).max(PAGE_HEAD);
        file.take(limit).read_to_end(&mut old).map_err(FsError::at("read", files.path().join(PAGE)))?;
        if old == html.as_bytes() || !is_verified && !Page::is(&String::from_utf8_lossy(&old)) {
            return Ok(());
        }
    }
    files.replace(PAGE, html.as_bytes(), 0o644)
}

/// Writes the index of each repository of Helm charts, and removes that of a repository whose charts are gone.
fn write_chart_indexes(setup: &Setup) -> Result<(), FsError> {
    let indexes = charts::indexes(&setup.record);
    let files = Directory::create_in(&setup.files, &setup.site)?;
    let read = |path: &RelPath| files.read(path.as_str(), SETTINGS_LIMIT).ok().flatten();
    let hosts = files.subdirectory(DEFAULT_PREFIX).and_then(|hosts| hosts.names()).unwrap_or_default();
    let paths = hosts.iter().filter_map(|host| charts::index_path(&format!("{DEFAULT_PREFIX}/{host}")));
    let is_packed = |path: &RelPath| setup.record.files.iter().any(|file| file.path == *path);
    for path in paths.filter(|path| !indexes.contains_key(path)) {
        let is_generated = read(&path).is_some_and(|old| old.starts_with(MADE.as_bytes()));
        if is_generated && !is_packed(&path) {
            files.remove(path.as_str())?;
        }
    }
    for (path, text) in &indexes {
        if read(path).is_none_or(|old| old != text.as_bytes()) {
            files.replace(path.as_str(), text.as_bytes(), 0o644)?;
        }
    }
    Ok(())
}

/// Reads the saved settings. `None`: no settings are saved.
fn read_settings(conf: &Directory) -> Result<Option<Settings>, ConfError> {
    let Some(bytes) = conf.read(SETTINGS, SETTINGS_LIMIT)? else { return Ok(None) };
    let settings = Settings::parse(&bytes);
    settings.map(Some).map_err(|error| ConfError::Saved(conf.path().join(SETTINGS), error))
}

fn write_settings(setup: &Setup, conf: &Directory, host: &mut HostRecord) -> Result<(), FsError> {
    let settings = pretty(&setup.settings);
    if conf.read(SETTINGS, SETTINGS_LIMIT)?.is_some_and(|old| old == settings) {
        return Ok(());
    }
    host.announce(SETTINGS, &settings);
    conf.replace(SETTINGS, &settings, 0o644)
}

/// Locks the configuration. Two concurrent runs could create two CAs.
fn lock(conf: &Directory) -> Result<File, ConfError> {
    let file = conf.lock_file(LOCK)?;
    if try_lock_file(&file) { Ok(file) } else { Err(ConfError::Busy(conf.path().to_owned())) }
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
