//! [`Setup`]: what the generated files are made of.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use crate::site::record::Record;

/// The directory of a site that all of it is written to.
pub(crate) const CONF: &str = "conf";

/// The directory of the certificate authority in it: no server reads the key, and no container sees it.
pub(crate) const CA: &str = "ca";

/// How a site is to be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// The name by which clients know this host.
    pub host: String,
    /// Its address.
    pub ip: IpAddr,
    /// The port of the files.
    pub files_port: u16,
    /// The port of the registry.
    pub registry_port: u16,
    /// Whether clients speak https, and with which certificate.
    pub tls: Tls,
    /// Who may read the site; nothing: everybody.
    pub user: Option<String>,
}

/// Where the certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// From a certificate authority of the site's own.
    Auto,
    /// From these files, both PEM: certificate (with its chain) and key.
    Files(PathBuf, PathBuf),
    /// None: plain http.
    Off,
}

/// Everything that the generated files are made of. All paths are absolute.
#[derive(Debug)]
pub struct Setup {
    /// The directory of the site.
    pub site: PathBuf,
    /// The directory that nginx serves.
    pub files: PathBuf,
    /// What `/var/lib/registry` is to a registry.
    pub registry: PathBuf,
    /// Where all of this is written.
    pub conf: PathBuf,
    /// How the site is served.
    pub settings: Settings,
    /// What it holds.
    pub record: Record,
    /// The site's own certificate authority, PEM, if it has one.
    pub ca: Option<String>,
}

impl Setup {
    /// Whether clients speak https.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.settings.tls != Tls::Off
    }

    /// `https` or `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.is_tls() { "https" } else { "http" }
    }

    /// `https://HOST:PORT` of the files.
    #[must_use]
    pub fn files_url(&self) -> String {
        format!("{}://{}:{}", self.scheme(), self.settings.host, self.settings.files_port)
    }

    /// `HOST:PORT` of the registry, as it stands before the name of an image.
    #[must_use]
    pub fn registry_host(&self) -> String {
        format!("{}:{}", self.settings.host, self.settings.registry_port)
    }

    /// `https://HOST:PORT` of the registry.
    #[must_use]
    pub fn registry_url(&self) -> String {
        format!("{}://{}", self.scheme(), self.registry_host())
    }

    /// What the site is called among the processes and containers of this host: it stays when ports change.
    #[must_use]
    pub fn name(&self) -> String {
        use std::os::unix::ffi::OsStrExt as _;
        format!("airbundle-{}", &Digest::of(self.conf.as_os_str().as_bytes()).hex()[..8])
    }

    /// Whether there is a key of an authority that no server has to see.
    #[must_use]
    pub fn has_authority(&self) -> bool {
        self.conf.join(CA).exists()
    }

    /// Certificate and key that the servers use, if they do.
    #[must_use]
    pub fn certificate(&self) -> Option<(PathBuf, PathBuf)> {
        self.is_tls().then(|| (self.conf.join("tls/server.crt"), self.conf.join("tls/server.key")))
    }

    /// Users and what their passwords become, if only they may read.
    #[must_use]
    pub fn htpasswd(&self) -> Option<PathBuf> {
        self.settings.user.is_some().then(|| self.conf.join("htpasswd"))
    }

    /// What stands before the repositories of a host on this site, such as `k8s/quay.io`, for each host whose
    /// repositories all have one. With several templates the one that keeps the host is preferred.
    #[must_use]
    pub fn prefixes(&self) -> Vec<(String, String)> {
        let mut hosts: Vec<(String, Option<BTreeSet<String>>)> = Vec::new();
        for image in &self.record.images {
            let Ok(reference) = image.reference.parse::<Reference>() else { continue };
            let found: BTreeSet<String> = image
                .repositories
                .iter()
                .filter_map(|name| name.strip_suffix(reference.repository()))
                .filter(|prefix| prefix.is_empty() || prefix.ends_with('/'))
                .map(|prefix| prefix.trim_end_matches('/').to_owned())
                .collect();
            match hosts.iter_mut().find(|(host, _)| host == reference.host()) {
                Some((_, Some(common))) => common.retain(|prefix| found.contains(prefix)),
                Some((_, None)) => {}
                None => hosts.push((reference.host().to_owned(), Some(found))),
            }
        }
        let best = |host: &str, prefixes: BTreeSet<String>| {
            let own = prefixes.iter().find(|prefix| prefix.split('/').any(|part| part == host)).cloned();
            own.or_else(|| prefixes.into_iter().next())
        };
        hosts
            .into_iter()
            .filter_map(|(host, prefixes)| best(&host, prefixes?).map(|prefix| (host, prefix)))
            .collect()
    }

    /// The image of the site that runs a server: the official one, or the last one whose repository ends in `name`.
    #[must_use]
    pub fn server_image(&self, name: &str) -> Option<String> {
        let serves = |reference: &&String| {
            let parsed = reference.parse::<Reference>().ok();
            parsed.is_some_and(|parsed| parsed.repository().rsplit('/').next() == Some(name))
        };
        let all = || self.record.images.iter().map(|image| &image.reference).filter(serves);
        let official = all().rfind(|reference| reference.starts_with(&format!("docker.io/library/{name}")));
        official.or_else(|| all().next_back()).cloned()
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

/// True if nginx, compose and a shell all read `path` as it is: letters, digits and `._+@/-`.
pub(crate) fn is_plain(path: &Path) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+@/-".contains(c);
    path.to_str().is_some_and(|text| text.chars().all(plain))
}
