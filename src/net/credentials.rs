//! [`Credentials`]: the user's credentials for registries and web servers.
//!
//! Credentials are from the command line, containers' `auth.json` (containers-auth.json(5)), docker's
//! `config.json`, credential helpers, and the netrc.
//!
//! Each credential belongs to one origin (scheme, host and port) or to a namespace of it, and is looked up
//! when that origin requires one. Neither error messages nor `Debug` output contain any part of a secret.

pub(crate) mod auth_file;
pub(crate) mod error;
pub(crate) mod helper;

use std::path::{Path, PathBuf};

use reqwest::Url;

use crate::net::credentials::auth_file::{AuthFile, AuthKey};
use crate::net::credentials::error::CredentialsError;
use crate::net::credentials::helper::{HELPER_PREFIX, Helpers};
use crate::net::host::is_loopback;
use crate::net::netrc::Netrc;
use crate::net::secret::{Credential, Login, Secret};
use crate::oci::reference::canonical_host;

/// Docker's key for Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// True if a secret may be sent to this URL: over HTTPS, to loopback, or if the user allows plain HTTP.
#[must_use]
pub(crate) fn may_carry_secrets(url: &Url, insecure: bool) -> bool {
    url.scheme() == "https" || insecure || url.host_str().is_some_and(is_loopback)
}

/// The sources of credentials, in the order in which they are searched. The default has none.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    given: Option<GivenLogin>,
    files: Vec<AuthFile>,
    netrc: Option<Netrc>,
    helpers: Helpers,
}

/// Credentials from the command line.
#[derive(Debug, Clone)]
pub(crate) struct GivenLogin {
    /// Host of the registry, with its port unless that is the default one.
    pub host: String,
    /// User name.
    pub user: String,
    /// Password.
    pub password: Secret,
}

impl Credentials {
    /// Uses the files that podman and docker use, according to the environment in `variable`. If `auth_file`
    /// is given, uses only that file.
    #[must_use]
    pub(crate) fn new(
        auth_file: Option<PathBuf>,
        given: Option<GivenLogin>,
        variable: impl Fn(&str) -> Option<PathBuf>,
    ) -> Self {
        let home = variable("HOME");
        let netrc = match (variable("NETRC"), &home) {
            (Some(path), _) => Some(Netrc::new(path, true)),
            (None, Some(home)) => Some(Netrc::new(home.join(".netrc"), false)),
            (None, None) => None,
        };
        let files = match auth_file {
            Some(path) => vec![AuthFile { path, required: true, is_dockercfg: false }],
            None => default_files(home.as_deref(), variable),
        };
        Self { given, files, netrc, helpers: Helpers::default() }
    }

    #[must_use]
    #[cfg(test)]
    pub(crate) fn with_given(self, given: GivenLogin) -> Self {
        Self { given: Some(given), ..self }
    }

    /// Returns the credentials for `repository` of the registry at `base`.
    pub(crate) fn find(&self, base: &Url, repository: &str) -> Result<Option<Login>, CredentialsError> {
        let given = self.given.as_ref().filter(|given| {
            let key = AuthKey::parse(&given.host);
            key.is_host() && key.matches(base, repository)
        });
        if let Some(GivenLogin { user, password, .. }) = given {
            let credential = Credential::Password(user.clone(), password.clone());
            return Ok(Some(Login { credential, source: "`--username`".to_owned() }));
        }
        for file in &self.files {
            if let Some(login) = self.find_in(file, base, repository)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    /// Returns the credentials for a file on a web server, from the user's netrc. They are sent over HTTPS
    /// and to loopback only.
    pub(crate) fn for_file(&self, url: &Url) -> Result<Option<Login>, CredentialsError> {
        match &self.netrc {
            Some(netrc) if may_carry_secrets(url, false) => Ok(netrc.find(url)?),
            _ => Ok(None),
        }
    }

    fn find_in(
        &self,
        file: &AuthFile,
        base: &Url,
        repository: &str,
    ) -> Result<Option<Login>, CredentialsError> {
        let Some(config) = file.read()? else { return Ok(None) };
        let path = &file.path;
        if let Some(name) = config.helper(base, repository) {
            let server = helper_server(base);
            let program = format!("{HELPER_PREFIX}{name}");
            let source = format!("`{program}`, named in `{}`,", path.display());
            let credential = self.helpers.get(name, &server);
            let credential = credential.map_err(|problem| CredentialsError::Helper {
                program,
                path: path.clone(),
                server,
                problem,
            })?;
            if let Some(credential) = credential {
                return Ok(Some(Login { credential, source }));
            }
        }
        let invalid = |key| CredentialsError::Entry { path: path.clone(), key };
        let credential = config.entry(base, repository).map_err(invalid)?;
        Ok(credential.map(|credential| Login { credential, source: format!("`{}`", path.display()) }))
    }
}

fn default_files(home: Option<&Path>, variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<AuthFile> {
    let optional = |path| AuthFile { path, required: false, is_dockercfg: false };
    let required = |path| AuthFile { path, required: true, is_dockercfg: false };
    let in_home = |path: &str| home.map(|home| home.join(path));
    // Without a runtime directory of the user, `podman login` uses this one.
    let shared = || PathBuf::from(format!("/run/containers/{}", rustix::process::geteuid().as_raw()));
    let runtime = variable("XDG_RUNTIME_DIR").map_or_else(shared, |runtime| runtime.join("containers"));
    let config = variable("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
    let docker = variable("DOCKER_CONFIG").or_else(|| in_home(".docker"));
    let dockercfg = in_home(".dockercfg").map(|path| AuthFile { is_dockercfg: true, ..optional(path) });
    let files = [
        variable("REGISTRY_AUTH_FILE").map(required),
        Some(optional(runtime.join("auth.json"))),
        config.map(|config| optional(config.join("containers/auth.json"))),
        docker.map(|docker| optional(docker.join("config.json"))),
        dockercfg,
    ];
    files.into_iter().flatten().collect()
}

/// Returns docker's name for the registry at `base`, as its helpers expect it.
fn helper_server(base: &Url) -> String {
    let host = base.host_str().unwrap_or_default();
    match base.port() {
        None if canonical_host(host) == "docker.io" => DOCKER_HUB_KEY.to_owned(),
        None => host.to_owned(),
        Some(port) => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::net::secret::basic;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    /// Returns credentials from one file with this content.
    fn credentials(config: &str) -> (tempfile::TempDir, Credentials) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth.json");
        std::fs::write(&path, config).unwrap();
        (directory, Credentials::new(Some(path), None, |_| None))
    }

    fn password(login: Option<Login>) -> Option<String> {
        login.map(|login| match login.credential {
            Credential::Password(user, password) => format!("{user}:{}", password.reveal()),
            Credential::Identity(token) => format!("identity {}", token.reveal()),
            Credential::Token(token) => format!("token {}", token.reveal()),
        })
    }

    #[test]
    fn every_form_of_an_entry_is_read_and_the_longest_namespace_takes_precedence() {
        // user:pass, other:word:with:colons
        let (_directory, credentials) = credentials(
            r#"{"auths": {
                "quay.io": {"auth": "dXNlcjpwYXNz"},
                "quay.io/org": {"username": "org", "password": "p"},
                "quay.io/org/app": {"auth": "b3RoZXI6d29yZDp3aXRoOmNvbG9ucw=="},
                "https://index.docker.io/v1/": {"auth": "dXNlcjo=", "identitytoken": "refresh"},
                "bearer.example": {"registrytoken": "direct"},
                "empty.example": {},
                "token.example": {"username": "<token>", "password": "t"}
            }, "unknown": [1]}"#,
        );
        for (base, repository, expected) in [
            ("https://quay.io/", "a", Some("user:pass")),
            ("https://quay.io/", "org/b", Some("org:p")),
            ("https://quay.io/", "org/app", Some("other:word:with:colons")),
            ("https://registry-1.docker.io/", "library/a", Some("identity refresh")),
            ("https://bearer.example/", "a", Some("token direct")),
            ("https://token.example/", "a", Some("identity t")),
            ("https://empty.example/", "a", None),
            ("https://none.example/", "a", None),
        ] {
            let found = credentials.find(&url(base), repository).unwrap();
            assert_eq!(password(found).as_deref(), expected, "{base}{repository}");
        }
    }

    #[test]
    fn files_are_searched_in_the_order_of_podman_and_docker() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let look = |credentials: &Credentials| {
            password(credentials.find(&url("https://quay.io/"), "a").unwrap()).unwrap_or_default()
        };
        let credentials = || {
            Credentials::new(None, None, |name| match name {
                "HOME" => Some(root.join("home")),
                "REGISTRY_AUTH_FILE" | "XDG_RUNTIME_DIR" => Some(root.join(name)),
                _ => None,
            })
        };
        let files = [
            ("home/.dockercfg", true),
            ("home/.docker/config.json", false),
            ("home/.config/containers/auth.json", false),
            ("XDG_RUNTIME_DIR/containers/auth.json", false),
        ];
        std::fs::write(root.join("REGISTRY_AUTH_FILE"), "").unwrap();
        assert_eq!(look(&credentials()), "");
        for (path, old) in files {
            let auths = format!(r#"{{"quay.io": {{"username": "{path}", "password": "p"}}}}"#);
            let path_here = root.join(path);
            std::fs::create_dir_all(path_here.parent().unwrap()).unwrap();
            std::fs::write(path_here, if old { auths } else { format!(r#"{{"auths": {auths}}}"#) }).unwrap();
            assert_eq!(look(&credentials()), format!("{path}:p"));
        }
        let given = GivenLogin { host: "quay.io".into(), user: "me".into(), password: Secret::new("x") };
        assert_eq!(look(&credentials().with_given(given)), "me:x");
        std::fs::remove_file(root.join("REGISTRY_AUTH_FILE")).unwrap();
        let error = credentials().find(&url("https://quay.io/"), "a").unwrap_err().to_string();
        assert!(error.contains("REGISTRY_AUTH_FILE") && error.contains("cannot read credentials"), "{error}");
    }

    #[test]
    fn no_error_and_no_debug_output_contains_a_secret() {
        for config in [
            r#"{"auths": {"quay.io": "hunter2"}}"#,
            r#"{"auths": {"quay.io": {"auth": "hunter2 hunter2"}}}"#,
            r#"{"auths": {"quay.io": {"auth": "aHVudGVyMg=="}}}"#,
            r#"{"auths": "hunter2"}"#,
            "hunter2",
        ] {
            let (_directory, credentials) = credentials(config);
            let error = credentials.find(&url("https://quay.io/"), "a").unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains("auth.json") && !text.contains("unter2"), "{text}");
        }
        let given =
            GivenLogin { host: "quay.io".into(), user: "me".into(), password: Secret::new("hunter2") };
        let credentials = Credentials::default().with_given(given);
        let login = credentials.find(&url("https://quay.io/"), "a").unwrap().unwrap();
        assert!(!format!("{credentials:?} {login:?}").contains("unter2"));
        let message =
            format!("no hunter2, {}, {}", basic("me", &Secret::new("hunter2")), STANDARD.encode("hunter2"));
        assert_eq!(login.scrub(&message), "no …, …, …");
        assert_eq!(login.scrub("401; server message: \"denied\""), "401; server message: \"denied\"");
        let long = Login {
            credential: Credential::Identity(Secret::new("0123456789abcdef")),
            source: String::new(),
        };
        assert_eq!(long.scrub("401; server message: \"not 0123456789\""), "401");
    }

    #[test]
    fn secrets_are_sent_over_https_and_to_loopback_only() {
        for (text, insecure, expected) in [
            ("https://a.example/", false, true),
            ("http://a.example/", false, false),
            ("http://a.example/", true, true),
            ("http://127.0.0.1:5000/", false, true),
            ("http://localhost/", false, true),
            ("http://[::1]/", false, true),
            ("http://10.0.0.1/", false, false),
        ] {
            assert_eq!(may_carry_secrets(&url(text), insecure), expected, "{text}");
        }
    }
}
