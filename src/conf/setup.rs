//! [`Setup`]: the inputs of the generated files.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use crate::site::record::Record;

/// The default directory of the configuration in a site.
pub(crate) const CONF: &str = "conf";

/// The directory of the CA in the configuration. Servers and containers have no access to it.
pub(crate) const CA: &str = "ca";

/// The settings of a site, which are saved in its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// The host name of this host for clients.
    pub host: String,
    /// The IP address of this host for clients.
    pub ip: IpAddr,
    /// The TCP port of the file server.
    pub files_port: u16,
    /// The TCP port of the registry.
    pub registry_port: u16,
    /// The server certificate.
    pub tls: Tls,
    /// The only user that can read the site. `None`: anyone.
    pub user: Option<String>,
}

/// The source of the server certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// Issued by the site's CA.
    Auto,
    /// PEM files: certificate with its chain, and private key.
    Files(PathBuf, PathBuf),
    /// No certificate: plain HTTP.
    Off,
}

/// The inputs of the generated files. All paths are absolute.
#[derive(Debug)]
pub struct Setup {
    /// The directory of the site.
    pub site: PathBuf,
    /// The directory of the files.
    pub files: PathBuf,
    /// The root of the registry storage.
    pub registry: PathBuf,
    /// The directory of the configuration.
    pub conf: PathBuf,
    /// The settings.
    pub settings: Settings,
    /// The contents of the site.
    pub record: Record,
    /// The certificate of the site's CA in PEM format. `None`: the site has no CA, or does not use it.
    pub ca: Option<String>,
}

impl Setup {
    /// True if clients use HTTPS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.settings.tls != Tls::Off
    }

    /// Returns `https` or `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.is_tls() { "https" } else { "http" }
    }

    /// Returns the URL of the file server, without a path.
    #[must_use]
    pub fn files_url(&self) -> String {
        format!("{}://{}:{}", self.scheme(), self.settings.host, self.settings.files_port)
    }

    /// Returns `HOST:PORT` of the registry, as in image references.
    #[must_use]
    pub fn registry_host(&self) -> String {
        format!("{}:{}", self.settings.host, self.settings.registry_port)
    }

    /// Returns the URL of the registry, without a path.
    #[must_use]
    pub fn registry_url(&self) -> String {
        format!("{}://{}", self.scheme(), self.registry_host())
    }

    /// Returns the name of the container and compose project, which depends only on the path of the
    /// configuration.
    #[must_use]
    pub fn name(&self) -> String {
        use std::os::unix::ffi::OsStrExt as _;
        format!("airbundle-{}", &Digest::of(self.conf.as_os_str().as_bytes()).hex()[..8])
    }

    /// True if the configuration has a CA, whose private key must be hidden from servers.
    #[must_use]
    pub fn has_ca(&self) -> bool {
        self.conf.join(CA).exists()
    }

    /// Returns the paths of the server certificate and its private key. `None`: plain HTTP.
    #[must_use]
    pub fn certificate(&self) -> Option<(PathBuf, PathBuf)> {
        self.is_tls().then(|| (self.conf.join("tls/server.crt"), self.conf.join("tls/server.key")))
    }

    /// Returns the path of the `htpasswd` file. `None`: no user.
    #[must_use]
    pub fn htpasswd(&self) -> Option<PathBuf> {
        self.settings.user.is_some().then(|| self.conf.join("htpasswd"))
    }

    /// Returns the registry hosts whose repositories have a common prefix on this site, each with the prefix,
    /// e.g. `quay.io` and `k8s/quay.io`. The prefix can be empty. Of several prefixes, one that contains the
    /// host is preferred.
    #[must_use]
    pub fn prefixes(&self) -> Vec<(String, String)> {
        let mut hosts: Vec<(String, BTreeSet<String>)> = Vec::new();
        for image in &self.record.images {
            let reference = &image.reference;
            let prefixes: BTreeSet<String> = image
                .repositories
                .iter()
                .filter_map(|name| name.strip_suffix(reference.repository()))
                .filter(|prefix| prefix.is_empty() || prefix.ends_with('/'))
                .map(|prefix| prefix.trim_end_matches('/').to_owned())
                .collect();
            match hosts.iter_mut().find(|(host, _)| host == reference.host()) {
                Some((_, common)) => common.retain(|prefix| prefixes.contains(prefix)),
                None => hosts.push((reference.host().to_owned(), prefixes)),
            }
        }
        let choose = |host: &str, prefixes: BTreeSet<String>| {
            let with_host =
                prefixes.iter().find(|prefix| prefix.split('/').any(|part| part == host)).cloned();
            with_host.or_else(|| prefixes.into_iter().next())
        };
        let chosen = hosts.into_iter().filter_map(|(host, prefixes)| {
            let prefix = choose(&host, prefixes)?;
            Some((host, prefix))
        });
        chosen.collect()
    }

    /// Returns [`Setup::prefixes`] without those that are empty: the hosts that the site can mirror.
    #[must_use]
    pub(crate) fn mirrored_hosts(&self) -> Vec<(String, String)> {
        self.prefixes().into_iter().filter(|(_, prefix)| !prefix.is_empty()).collect()
    }

    /// Returns the reference of the site's image of a server: the last official image, or else the last
    /// image, whose last path component is `name`.
    #[must_use]
    pub fn server_image(&self, name: &str) -> Option<String> {
        let is_named = |reference: &&Reference| reference.repository().rsplit('/').next() == Some(name);
        let all = || self.record.images.iter().map(|image| &image.reference).filter(is_named);
        let official =
            all().rfind(|reference| reference.as_str().starts_with(&format!("docker.io/library/{name}")));
        official.or_else(|| all().next_back()).map(Reference::to_string)
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain structs become JSON; please report");
    bytes.push(b'\n');
    bytes
}

/// True if nginx, compose and shells read `path` literally: it has only letters, digits and `._+@/-`.
pub(crate) fn is_plain(path: &Path) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+@/-".contains(c);
    path.to_str().is_some_and(|text| text.chars().all(plain))
}
