//! `unbundle site`: writes the configuration that serves a site.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError};
use crate::conf::generated::{self, Generated};
use crate::conf::setup::{CA, CONF, Settings, Setup, Tls, is_plain, is_root, pretty};
use crate::conf::tls::{self, Issued, TlsError};
use crate::conf::users::{self, UserError};
use crate::conf::{compose, kubespray, nginx, registry, script, systemd, trust};
use crate::site::catalog::Page;
use crate::site::record::{Record, RecordError};

pub(crate) const SETTINGS: &str = "settings.json";

pub(crate) const LOCK: &str = ".lock";

/// Where nginx keeps what it needs while it runs, if it is not root's.
pub(crate) const RUN: &str = "run";

/// What is to be changed of the settings; the rest stays as it was, or has its default.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// See [`Settings`].
    pub host: Option<String>,
    /// See [`Settings`].
    pub ip: Option<IpAddr>,
    /// See [`Settings`].
    pub files_port: Option<u16>,
    /// See [`Settings`].
    pub registry_port: Option<u16>,
    /// See [`Settings`].
    pub tls: Option<Tls>,
    /// The user and the password; nothing in it: no user.
    pub user: Option<Option<(String, String)>>,
}

/// What a run has done.
#[derive(Debug)]
pub struct Configured {
    /// All that it knows.
    pub setup: Setup,
    /// What was written, by name in the directory of the configuration.
    pub written: Vec<String>,
    /// What somebody has edited: it was kept, and what it would have been is beside it, as `NAME.new`.
    pub kept: Vec<String>,
    /// What was done about the certificate.
    pub issued: Issued,
    /// Whether the catalogue could be put among the files: theirs may be a disk that cannot be written.
    pub page: Result<(), FsError>,
}

/// Why a site has no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// Nobody knows what the site holds.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The file system says no.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The user.
    #[error(transparent)]
    User(#[from] UserError),
    /// A path that some of the generated files could not hold.
    #[error(
        "`{}` has a character that nginx, compose or a shell would read as something else: use letters, digits and \
         `._+@/-`", .0.display()
    )]
    Path(PathBuf),
    /// A directory that would be served to everybody.
    #[error(
        "the configuration, with its keys, would be in `{}`, and that is below `{}`, which is served: give another \
         directory with `--conf`", .0.display(), .1.display()
    )]
    Served(PathBuf, PathBuf),
    /// Settings that somebody has broken.
    #[error("`{}` cannot be read: correct or remove it", .0.display())]
    Settings(PathBuf, #[source] serde_json::Error),
    /// Another process is at it.
    #[error("another `unbundle site` is writing to `{}`: wait until it is done", .0.display())]
    Busy(PathBuf),
    /// Clients would look for the site on themselves.
    #[error("this host has no address but those of loopback: say with `--ip` how clients reach it")]
    Address,
    /// A name that is none.
    #[error("`{0}` is no host name: use lower-case letters, digits, `-` and `.`")]
    Host(String),
    /// One port for two servers.
    #[error("files and registry cannot both have port {0}")]
    Ports(u16),
}

/// Writes the configuration of `site`, into its own directory or `elsewhere`. What was edited since it was last written
/// is kept.
pub fn configure(site: &Path, elsewhere: Option<&Path>, changes: Changes) -> Result<Configured, ConfError> {
    let record = Record::read(site)?;
    let site = std::fs::canonicalize(site).map_err(FsError::at("find", site))?;
    let conf = match elsewhere {
        Some(directory) => std::path::absolute(directory).map_err(FsError::at("find", directory))?,
        None => site.join(CONF),
    };
    let (files, registry) = (record.files_root(&site), record.registry_root(&site));
    for path in [&site, &conf, &files, &registry] {
        if !is_plain(path) {
            return Err(ConfError::Path(path.clone()));
        }
    }
    for root in [&files, &registry] {
        if conf.starts_with(root) {
            return Err(ConfError::Served(conf, root.clone()));
        }
    }
    fs::create_dir_all(&conf)?;
    let _lock = lock(&conf)?;
    let password = changes.user.clone().flatten();
    let settings = changes.onto(read_settings(&conf)?)?;
    let (issued, ca) = tls::provide(&settings, &conf.join("tls"), &conf.join(CA))?;
    let setup = Setup { site, files, registry, conf, settings, record, ca };
    users::provide(&setup, password)?;
    let settings = pretty(&setup.settings);
    if std::fs::read(setup.conf.join(SETTINGS)).ok().as_ref() != Some(&settings) {
        generated::replace(&setup.conf.join(SETTINGS), &settings, 0o644)?;
    }
    if !is_root() {
        fs::create_dir_all(&setup.conf.join(RUN))?;
    }

    let mut generated = Generated::open(&setup.conf);
    nginx::generate(&setup, &mut generated);
    generated.put("registry.yml", registry::config(&setup).as_bytes(), 0o644);
    generated.put("compose.yaml", compose::file(&setup).as_bytes(), 0o644);
    systemd::generate(&setup, &mut generated);
    trust::generate(&setup, &mut generated);
    generated.put("kubespray/offline.yml", kubespray::offline(&setup).as_bytes(), 0o644);
    generated.put("site", script::script(&setup).as_bytes(), 0o755);
    let (written, kept) = generated.finish()?;
    let page = write_page(&setup);
    Ok(Configured { setup, written, kept, issued, page })
}

impl Changes {
    pub(crate) fn onto(self, known: Option<Settings>) -> Result<Settings, ConfError> {
        let is_new = known.is_none();
        let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let mut settings = known.unwrap_or_else(|| Settings {
            host: "hub.kubespray.local".into(),
            ip: unspecified,
            files_port: 8080,
            registry_port: 5000,
            tls: Tls::Auto,
            user: None,
        });
        let Settings { host, ip, files_port, registry_port, tls, user } = &mut settings;
        *host = self.host.unwrap_or_else(|| host.clone());
        *files_port = self.files_port.unwrap_or(*files_port);
        *registry_port = self.registry_port.unwrap_or(*registry_port);
        *tls = self.tls.unwrap_or_else(|| tls.clone());
        if let Some(changed) = self.user {
            *user = changed.map(|(name, _)| name);
        }
        // Who is known by an address has that one.
        *ip = self.ip.or_else(|| host.parse().ok()).unwrap_or(*ip);
        let label = |label: &str| {
            let inner = label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
            (1..=63).contains(&label.len()) && inner && !label.starts_with('-') && !label.ends_with('-')
        };
        if host.len() > 253 || !host.split('.').all(label) {
            return Err(ConfError::Host(host.clone()));
        }
        if files_port == registry_port {
            return Err(ConfError::Ports(*files_port));
        }
        if is_new && *ip == unspecified {
            *ip = own_address().ok_or(ConfError::Address)?;
        }
        Ok(settings)
    }
}

/// Puts the catalogue among the files, unless somebody else's page is there.
pub(crate) fn write_page(setup: &Setup) -> Result<(), FsError> {
    let path = setup.files.join("index.html");
    let html = Page { record: &setup.record, registry: &setup.registry_host() }.html();
    match std::fs::read(&path) {
        Ok(old) if old == html.as_bytes() => return Ok(()),
        Ok(old) if !Page::is(&String::from_utf8_lossy(&old)) => return Ok(()),
        _ => {}
    }
    generated::replace(&path, html.as_bytes(), 0o644)
}

pub(crate) fn read_settings(conf: &Path) -> Result<Option<Settings>, ConfError> {
    let path = conf.join(SETTINGS);
    match fs::read(&path, 1 << 20) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|error| ConfError::Settings(path, error))
        }
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// One run at a time; two authorities would be one too many.
pub(crate) fn lock(conf: &Path) -> Result<std::fs::File, ConfError> {
    let path = conf.join(LOCK);
    let options = std::fs::File::options().create(true).truncate(false).write(true).open(&path);
    let file = options.map_err(FsError::at("create", &path))?;
    match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => Err(ConfError::Busy(conf.to_owned())),
        // A file system without locks is used without.
        Ok(()) | Err(std::fs::TryLockError::Error(_)) => Ok(file),
    }
}

/// The address by which others most likely reach this host: the one it would send from (nothing is sent), or, where
/// there is no way out, the first that is not of loopback.
pub(crate) fn own_address() -> Option<IpAddr> {
    let asked = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let asked = asked.ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified());
    asked.or_else(|| local_address_v4(&std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default()))
}

/// The first local address in the kernel's table of routes (`/proc/net/fib_trie`): one line names it, the next one says
/// what it is.
pub(crate) fn local_address_v4(table: &str) -> Option<IpAddr> {
    let lines: Vec<&str> = table.lines().map(str::trim).collect();
    let local = lines.windows(2).filter(|pair| pair[1].starts_with("/32 host LOCAL"));
    let mut addresses = local.filter_map(|pair| pair[0].rsplit(' ').next()?.parse::<Ipv4Addr>().ok());
    addresses.find(|address| !address.is_loopback()).map(IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_without_a_route_to_the_world() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 10.0.0.0\n        \
                     /24 link UNICAST\n        |-- 10.0.0.5\n           /32 host LOCAL\n";
        assert_eq!(local_address_v4(table), Some(IpAddr::from([10, 0, 0, 5])));
        assert_eq!(local_address_v4("Main:\n     |-- 127.0.0.1\n        /32 host LOCAL\n"), None);
    }
}
