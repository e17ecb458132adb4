//! [`AuthFile`]: an `auth.json`, `config.json` or `.dockercfg` with credentials.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use serde::Deserialize;

use crate::base::fs::is_missing;
use crate::net::credentials::error::CredentialsError;
use crate::net::secret::{Credential, Secret};
use crate::oci::reference::canonical_host;

/// Maximum size in bytes of a file.
const FILE_LIMIT: u64 = 4 << 20;

/// A file in which docker or podman keep credentials.
#[derive(Debug)]
pub(crate) struct AuthFile {
    /// Its path.
    pub path: PathBuf,
    /// True if the user names it, so that it has to exist.
    pub required: bool,
    /// True if it is docker's old `~/.dockercfg`, where the entries are not below `auths`.
    pub is_dockercfg: bool,
}

/// The content of a file.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct AuthConfig {
    auths: Option<BTreeMap<String, AuthEntry>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

/// The host, and optionally the namespace, that an entry is for: `host`, `host:port`, `https://host/v1/` or
/// `host/namespace`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AuthKey {
    scheme: Option<String>,
    host: String,
    port: Option<u16>,
    /// The namespace; empty for the entire host.
    namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl AuthFile {
    /// Reads the file. `None`: it does not exist or is empty.
    pub(crate) fn read(&self) -> Result<Option<AuthConfig>, CredentialsError> {
        let read = |path: &Path| {
            let mut bytes = Vec::new();
            std::fs::File::open(path)?.take(FILE_LIMIT).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = match read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if is_missing(&error) && !self.required => return Ok(None),
            Err::<_, std::io::Error>(error) => {
                return Err(CredentialsError::Read { path: self.path.clone(), reason: error.to_string() });
            }
        };
        // `podman login` starts with an empty file.
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        // The text of serde's error quotes the content.
        let syntax = |error: serde_json::Error| CredentialsError::Syntax {
            path: self.path.clone(),
            line: error.line(),
            column: error.column(),
        };
        let config = if self.is_dockercfg {
            AuthConfig {
                auths: Some(serde_json::from_slice(&bytes).map_err(syntax)?),
                ..AuthConfig::default()
            }
        } else {
            serde_json::from_slice(&bytes).map_err(syntax)?
        };
        Ok(Some(config))
    }
}

impl AuthConfig {
    /// Returns the name of the credential helper for a registry: the one of its host, or the one for all
    /// hosts.
    pub(crate) fn helper(&self, base: &Url, repository: &str) -> Option<&str> {
        let of_host = self.cred_helpers.iter().flatten().find(|(key, _)| {
            let key = AuthKey::parse(key);
            key.is_host() && key.matches(base, repository)
        });
        let name = of_host.map(|(_, name)| name).or(self.creds_store.as_ref());
        name.map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Returns the credential of the entry with the longest namespace that contains `repository`. The error
    /// is the key of an invalid entry.
    pub(crate) fn entry(&self, base: &Url, repository: &str) -> Result<Option<Credential>, String> {
        let mut entries: Vec<_> = self
            .auths
            .iter()
            .flatten()
            .map(|(text, entry)| (AuthKey::parse(text), text, entry))
            .filter(|(key, ..)| key.matches(base, repository))
            .collect();
        // A key without a scheme takes precedence over one with a scheme.
        entries.sort_by_key(|(key, ..)| (std::cmp::Reverse(key.namespace.len()), key.scheme.is_some()));
        for (_, key, entry) in entries {
            if let Some(credential) = entry.credential().map_err(|InvalidEntry| key.clone())? {
                return Ok(Some(credential));
            }
        }
        Ok(None)
    }
}

struct InvalidEntry;

impl AuthEntry {
    /// Returns the credential. `None`: the entry is empty, as docker leaves it next to a helper.
    fn credential(&self) -> Result<Option<Credential>, InvalidEntry> {
        let non_empty = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = non_empty(&self.registrytoken) {
            return Ok(Some(Credential::Token(Secret::new(token))));
        }
        if let Some(token) = non_empty(&self.identitytoken) {
            return Ok(Some(Credential::Identity(Secret::new(token))));
        }
        if let Some(auth) = non_empty(&self.auth) {
            let bytes = STANDARD.decode(auth.trim()).map_err(|_| InvalidEntry)?;
            let text = String::from_utf8(bytes).map_err(|_| InvalidEntry)?;
            let (user, password) = text.split_once(':').ok_or(InvalidEntry)?;
            // Old versions of docker pad it with zeros.
            return Ok(Some(password_or_identity(user, password.trim_end_matches('\0'))));
        }
        let password = self.password.as_deref().unwrap_or_default();
        Ok(non_empty(&self.username).map(|user| password_or_identity(&user, password)))
    }
}

/// Returns a password, or an identity token, which has the user name `<token>`.
pub(crate) fn password_or_identity(user: &str, secret: &str) -> Credential {
    let secret = Secret::new(secret);
    if user == "<token>" {
        Credential::Identity(secret)
    } else {
        Credential::Password(user.to_owned(), secret)
    }
}

impl AuthKey {
    pub(crate) fn parse(text: &str) -> Self {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, text),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/');
        // In a URL, the path is the version of the API.
        let path = if scheme.is_some() || matches!(path, "v1" | "v2") { "" } else { path };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()),
            None => (authority, None),
        };
        // In an IPv6 address without a port, the last colon is part of the address.
        let host = if port.is_none() { authority } else { host };
        Self { scheme, host: canonical_host(host), port, namespace: path.to_owned() }
    }

    /// True if the key is for an entire host.
    pub(crate) fn is_host(&self) -> bool {
        self.namespace.is_empty()
    }

    /// True if the key is for `repository` of the registry at `base`.
    pub(crate) fn matches(&self, base: &Url, repository: &str) -> bool {
        let default = if base.scheme() == "https" { 443 } else { 80 };
        let below = repository.strip_prefix(&*self.namespace);
        self.scheme.as_ref().is_none_or(|scheme| scheme == base.scheme())
            && base.host_str().is_some_and(|host| canonical_host(host) == self.host)
            && base.port_or_known_default() == Some(self.port.unwrap_or(default))
            && (self.is_host() || below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_for_one_origin_or_a_namespace_of_it() {
        for (key, base, repository, expected) in [
            ("quay.io", "https://quay.io/", "a/b", true),
            ("Quay.IO:443", "https://quay.io/", "a/b", true),
            ("quay.io", "https://quay.io:8443/", "a/b", false),
            ("quay.io:8443", "https://quay.io:8443/", "a/b", true),
            ("quay.io:8443", "https://quay.io/", "a/b", false),
            ("quay.io.evil.example", "https://quay.io/", "a/b", false),
            ("https://quay.io", "https://quay.io/", "a/b", true),
            ("https://quay.io/v1/", "https://quay.io/", "a/b", true),
            ("https://quay.io", "http://quay.io/", "a/b", false),
            ("http://quay.io", "https://quay.io/", "a/b", false),
            ("quay.io:80", "http://quay.io/", "a/b", true),
            ("quay.io/v2/", "https://quay.io/", "a/b", true),
            ("quay.io/a", "https://quay.io/", "a/b", true),
            ("quay.io/a/b", "https://quay.io/", "a/b", true),
            ("quay.io/a/b", "https://quay.io/", "a/bc", false),
            ("quay.io/a/b", "https://quay.io/", "a", false),
            ("https://index.docker.io/v1/", "https://registry-1.docker.io/", "library/nginx", true),
            ("docker.io", "https://registry-1.docker.io/", "library/nginx", true),
            ("docker.io/library", "https://registry-1.docker.io/", "library/nginx", true),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/", "a", true),
            ("127.0.0.1:5000", "http://127.0.0.1:5001/", "a", false),
            ("[::1]:5000", "http://[::1]:5000/", "a", true),
            ("[::1]", "http://[::1]/", "a", true),
            ("", "https://quay.io/", "a", false),
        ] {
            assert_eq!(
                AuthKey::parse(key).matches(&base.parse().unwrap(), repository),
                expected,
                "{key} for {base}{repository}"
            );
        }
    }
}
