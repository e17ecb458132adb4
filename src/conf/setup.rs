//! [`Setup`]: the inputs of the generated files.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::base::text::escape;
use crate::conf::plain_path::PlainPath;
use crate::oci::digest::Digest;
use crate::site::record::Record;

/// The default directory of the configuration in a site.
pub(crate) const CONF: &str = "conf";

/// The directory of the CA in the configuration. Servers and containers have no access to it.
pub(crate) const CA: &str = "ca";

/// The settings of a site, which are saved in its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
    /// True if browsers must use HTTPS for this host from now on (`Strict-Transport-Security`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hsts: bool,
    /// True if the user has a page of their own in place of the catalog.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_index_page: bool,
    /// The only address that the servers listen on. `None`: all addresses of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<IpAddr>,
    /// True if clients request what the site lacks from its original registry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub upstream_fallback: bool,
}

/// The source of the server certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", from = "SavedTls")]
pub enum Tls {
    /// Issued by the site's CA.
    Auto,
    /// From the user. The configuration has a copy; the paths of the files are not saved.
    Files,
    /// No certificate: plain HTTP.
    Off,
}

/// A saved [`Tls`].
#[derive(Deserialize)]
#[serde(untagged)]
enum SavedTls {
    Kind(TlsKind),
    /// Earlier versions saved the paths of the files, which are not used.
    #[expect(dead_code, reason = "only its form is checked")]
    Paths(SavedPaths),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum TlsKind {
    Auto,
    Files,
    Off,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedPaths {
    #[serde(rename = "files")]
    _files: (String, String),
}

impl From<SavedTls> for Tls {
    fn from(saved: SavedTls) -> Self {
        match saved {
            SavedTls::Kind(TlsKind::Auto) => Self::Auto,
            SavedTls::Kind(TlsKind::Files) | SavedTls::Paths(_) => Self::Files,
            SavedTls::Kind(TlsKind::Off) => Self::Off,
        }
    }
}

/// A setting that has the right type and an invalid value. The text escapes what a terminal would obey.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Not a lower-case host name (RFC 1123, section 2.1) or an IPv4 address.
    #[error("invalid host name `{}`: use lower-case letters, digits, `-` and `.`", escape(.0))]
    Host(String),
    /// An address that no host has.
    #[error("invalid address `{0}`: clients cannot connect to it")]
    Ip(IpAddr),
    /// An address that no server can listen on.
    #[error("invalid address `{0}`: servers cannot listen on it")]
    Bind(IpAddr),
    /// The port of a field is 0.
    #[error("invalid port 0: use 1 to 65535")]
    Port(&'static str),
    /// Both servers have the same port.
    #[error("files and registry cannot both use port {0}")]
    Ports(u16),
    /// The name is empty, longer than 64 bytes, or has other characters.
    #[error("invalid user name `{}`: use at most 64 letters, digits and `._-`", escape(.0))]
    User(String),
}

impl SettingError {
    /// Returns the name of the field in the settings file.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Host(_) => "host",
            Self::Ip(_) => "ip",
            Self::Bind(_) => "bind",
            Self::Port(field) => field,
            Self::Ports(_) => "registryPort",
            Self::User(_) => "user",
        }
    }
}

impl Settings {
    /// Checks every setting, whether it is an option or was saved: saved settings can come from another host.
    pub fn check(&self) -> Result<(), SettingError> {
        if !is_host(&self.host) {
            return Err(SettingError::Host(self.host.clone()));
        }
        let is_of_host = |address: IpAddr| {
            !(address.is_unspecified() || address.is_multicast() || address == Ipv4Addr::BROADCAST)
        };
        if !is_of_host(self.ip) {
            return Err(SettingError::Ip(self.ip));
        }
        if let Some(address) = self.bind.filter(|address| !is_of_host(*address)) {
            return Err(SettingError::Bind(address));
        }
        for (port, field) in [(self.files_port, "filesPort"), (self.registry_port, "registryPort")] {
            if port == 0 {
                return Err(SettingError::Port(field));
            }
        }
        if self.files_port == self.registry_port {
            return Err(SettingError::Ports(self.files_port));
        }
        match &self.user {
            Some(user) if !is_user(user) => Err(SettingError::User(user.clone())),
            _ => Ok(()),
        }
    }

    /// Parses and checks saved settings. The error names the field.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, SavedError> {
        let settings: Self = serde_json::from_slice(bytes).map_err(|error| match field_of(bytes) {
            Some(field) => SavedError::Type(field, error),
            None => SavedError::Syntax(error),
        })?;
        settings.check()?;
        Ok(settings)
    }
}

/// The reason why saved settings are not used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// Not JSON, or a field is missing, unknown or duplicate.
    #[error("{}", escape(&.0.to_string()))]
    Syntax(serde_json::Error),
    /// A field has a value of another type.
    #[error("invalid `{0}`: {cause}", cause = escape(&.1.to_string()))]
    Type(&'static str, serde_json::Error),
    /// A field has an invalid value.
    #[error("invalid `{field}`: {0}", field = .0.field())]
    Value(#[from] SettingError),
}

/// Returns the field whose value has another type: valid settings become invalid with this value.
fn field_of(bytes: &[u8]) -> Option<&'static str> {
    let saved: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes).ok()?;
    let fields = [
        "host",
        "ip",
        "filesPort",
        "registryPort",
        "tls",
        "user",
        "hsts",
        "ownIndexPage",
        "bind",
        "upstreamFallback",
    ];
    fields.into_iter().find(|field| {
        let Some(value) = saved.get(*field) else { return false };
        let valid = Settings {
            host: "a".into(),
            ip: Ipv4Addr::LOCALHOST.into(),
            files_port: 1,
            registry_port: 2,
            tls: Tls::Auto,
            user: None,
            hsts: false,
            own_index_page: false,
            bind: None,
            upstream_fallback: false,
        };
        let mut settings = serde_json::to_value(valid).expect("plain structs become JSON; please report");
        settings[*field] = value.clone();
        serde_json::from_value::<Settings>(settings).is_err()
    })
}

/// True for a lower-case host name (RFC 1123, section 2.1) or an IPv4 address.
fn is_host(host: &str) -> bool {
    let is_label = |label: &str| {
        let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=63).contains(&label.len())
            && label.chars().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // Clients parse a name whose last label is a number as an address.
    let is_numeric = host.rsplit('.').next().is_some_and(|label| label.chars().all(|c| c.is_ascii_digit()));
    if is_numeric {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    host.len() <= 253 && host.split('.').all(is_label)
}

/// True for the name of a user that nginx, registries, shells and YAML read literally.
fn is_user(name: &str) -> bool {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(is_valid)
}

/// The inputs of the generated files.
#[derive(Debug)]
pub struct Setup {
    /// The directory of the site.
    pub site: PlainPath,
    /// The directory of the files.
    pub files: PlainPath,
    /// The root of the registry storage.
    pub registry: PlainPath,
    /// The directory of the configuration.
    pub conf: PlainPath,
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

    /// Returns the URL of the mirror of a registry whose repositories have this prefix on the site, for clients that do
    /// not insert `/v2`.
    #[must_use]
    pub(crate) fn mirror_url(&self, prefix: &str) -> String {
        format!("{}/v2/{prefix}", self.registry_url())
    }

    /// Returns the same mirror as in image references.
    #[must_use]
    pub(crate) fn mirror_name(&self, prefix: &str) -> String {
        format!("{}/{prefix}", self.registry_host())
    }

    /// Returns the name of the container and compose project, which depends only on the path of the
    /// configuration.
    #[must_use]
    pub fn name(&self) -> String {
        use std::os::unix::ffi::OsStrExt as _;
        format!("airbundle-{}", &Digest::of(self.conf.as_os_str().as_bytes()).hex()[..8])
    }

    /// Returns the paths of the server certificate and its private key. `None`: plain HTTP.
    #[must_use]
    pub fn certificate(&self) -> Option<(PlainPath, PlainPath)> {
        self.is_tls().then(|| (self.conf.child("tls/server.crt"), self.conf.child("tls/server.key")))
    }

    /// Returns the path of the `htpasswd` file. `None`: no user.
    #[must_use]
    pub fn htpasswd(&self) -> Option<PlainPath> {
        self.settings.user.is_some().then(|| self.conf.child("htpasswd"))
    }

    /// Returns the value of `Strict-Transport-Security`. `None`: the servers do not send it.
    #[must_use]
    pub(crate) fn hsts(&self) -> Option<&'static str> {
        (self.settings.hsts && self.is_tls()).then_some("max-age=31536000")
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
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::json::pretty;

    const VALID: &str = r#"{"host": "hub.site.test", "ip": "10.0.0.5", "filesPort": 8080, "registryPort": 5000,
        "tls": "auto", "user": "carla"}"#;

    #[test]
    fn valid_saved_settings_are_parsed() {
        let settings = Settings::parse(VALID.as_bytes()).unwrap();
        assert_eq!(Settings::parse(&pretty(&settings)).unwrap(), settings);
        for (from, to) in [
            ("\"hub.site.test\"", "\"10.0.0.5\""),
            ("\"hub.site.test\"", "\"localhost\""),
            ("\"10.0.0.5\"", "\"fd00::5\""),
            ("\"auto\"", r#"{"files": ["/a/cert.pem", "/a/key.pem"]}"#),
            ("\"auto\"", "\"files\""),
            ("\"carla\"", "null, \"ownIndexPage\": true"),
            ("\"carla\"", r#"null, "bind": "127.0.0.1", "upstreamFallback": true"#),
            ("\"auto\"", "\"off\""),
            ("\"carla\"", "null"),
            (", \"user\": \"carla\"", ""),
        ] {
            Settings::parse(VALID.replace(",\n       ", ",").replace(from, to).as_bytes()).expect(to);
        }
    }

    #[test]
    fn an_invalid_saved_setting_is_refused_by_its_field() {
        for (from, to, words) in [
            ("\"hub.site.test\"", r#""hub;include /etc/shadow""#, "invalid `host`: invalid host name"),
            ("\"hub.site.test\"", r#""hub\n'; id; '""#, "invalid `host`: invalid host name `hub\\n'; id; '`"),
            ("\"hub.site.test\"", r#""10.0.0.300""#, "invalid `host`"),
            ("\"hub.site.test\"", r#""""#, "invalid `host`"),
            ("\"hub.site.test\"", "7", "invalid `host`: invalid type"),
            ("\"10.0.0.5\"", r#""10.0.0.5 evil""#, "invalid `ip`: invalid"),
            ("\"10.0.0.5\"", r#""0.0.0.0""#, "invalid `ip`: invalid address"),
            ("\"10.0.0.5\"", r#""224.0.0.1""#, "invalid `ip`: invalid address"),
            ("8080", "0", "invalid `filesPort`: invalid port 0"),
            ("8080", "80800", "invalid `filesPort`"),
            ("5000", "\"5000; }\"", "invalid `registryPort`"),
            ("5000", "8080", "invalid `registryPort`: files and registry cannot both use port 8080"),
            ("\"auto\"", "\"maybe\"", "invalid `tls`"),
            ("\"auto\"", r#"{"files": ["/key.pem"]}"#, "invalid `tls`"),
            ("\"auto\"", r#"{"files": "/key.pem"}"#, "invalid `tls`"),
            ("\"carla\"", "null, \"ownIndexPage\": 1", "invalid `ownIndexPage`"),
            ("\"carla\"", r#"null, "bind": "0.0.0.0; }""#, "invalid `bind`: invalid"),
            (
                "\"carla\"",
                r#"null, "bind": "::""#,
                "invalid `bind`: invalid address `::`: servers cannot listen",
            ),
            ("\"carla\"", r#"null, "upstreamFallback": "yes""#, "invalid `upstreamFallback`"),
            ("\"carla\"", r#""carla:x""#, "invalid `user`: invalid user name `carla:x`"),
            ("\"carla\"", r#""carla\u202e""#, "invalid `user`: invalid user name `carla\\u{202e}`"),
            ("\"carla\"", "[]", "invalid `user`"),
            ("\"user\"", "\"User\"", "unknown field `User`"),
            ("\"user\"", r#""\u001b[2J""#, "unknown field `\\u{1b}[2J`"),
            ("\"host\": \"hub.site.test\",", "", "missing field `host`"),
            ("{", "{\"host\": \"a\", ", "duplicate field `host`"),
            ("}", "", "EOF"),
        ] {
            let error = Settings::parse(VALID.replace(from, to).as_bytes()).expect_err(to).to_string();
            assert!(error.contains(words) && !error.contains(char::is_control), "{to}: {error}");
        }
    }
}
