//! [`Credentials`]: what the user is known by at which registry: what the command line says, containers' `auth.json`
//! (containers-auth.json(5)), docker's `config.json` and credential helpers.
//!
//! Each belongs to one origin (scheme, host and port), or to a namespace there, and is looked for when that one has
//! asked for it. No text of an error and no `Debug` has a byte of a secret in it.

use std::collections::{BTreeMap, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use serde::Deserialize;

use crate::base::fs::is_missing;
use crate::net::host::is_loopback;
use crate::net::netrc::{Netrc, NetrcError};
use crate::net::secret::{Credential, Login, Secret};
use crate::oci::reference::canonical_host;

/// The largest file of credentials, and the largest answer of a helper, that is read, in bytes.
const LIMIT: u64 = 4 << 20;

/// How long a helper may take. Some ask a service far away.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the answer of a helper is kept. Some give out what is good for an hour, and a pack may take longer.
const HELPER_MEMORY: Duration = Duration::from_secs(300);

/// How docker calls its Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Whether a secret may be sent to this URL: not where anybody on the way can read it, unless the user has said so.
#[must_use]
pub(crate) fn may_carry(url: &Url, insecure: bool) -> bool {
    url.scheme() == "https" || insecure || url.host_str().is_some_and(is_loopback)
}

/// Where credentials are looked for. The default has none.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    given: Option<Given>,
    files: Vec<AuthFile>,
    netrc: Option<Netrc>,
    /// What helpers have answered, by name and server.
    helped: Mutex<HashMap<Question, (Instant, Option<Credential>)>>,
}

/// The name of a helper, and the server that it is asked for.
type Question = (String, String);

/// What the command line says.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    /// The host of the registry, with its port if it has one of its own.
    pub host: String,
    /// The name.
    pub user: String,
    /// The password.
    pub password: Secret,
}

/// Why there are no credentials. An error names the file or the helper, and quotes neither.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    /// A file that is there, or was asked for, cannot be read.
    #[error("the credentials in `{}` cannot be read: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file is no JSON, or not what docker and podman write.
    #[error("`{}` is not as `docker login` or `podman login` write it (line {line}, column {column})", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        line: usize,
        /// Likewise.
        column: usize,
    },
    /// What stands in a file for a registry is nothing that it takes.
    #[error("what `{}` has for `{key}` is no base64 of a name, a colon and a password: log in again", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The key of the entry.
        key: String,
    },
    /// A helper that does not do its work.
    #[error(
        "the credential helper `{program}`, which `{}` names, {problem}: see what `echo {server} | {program} get` \
         prints, or take the helper out of the file",
        path.display()
    )]
    Helper {
        /// The program.
        program: String,
        /// The file that names it.
        path: PathBuf,
        /// What it was asked for.
        server: String,
        /// What is wrong with it.
        problem: String,
    },
    /// They would be readable for everybody on the way.
    #[error(
        "{credentials} are not sent to {url} over plain http: use https, or allow it with `--insecure-registry \
         {host}`"
    )]
    Plain {
        /// Whose.
        credentials: String,
        /// Where to.
        url: String,
        /// Its host.
        host: String,
    },
    /// A registry takes passwords only, and there is none.
    #[error("{url} asks for a name and a password, and {credentials} are a token: log in with a password")]
    NoPassword {
        /// The registry.
        url: String,
        /// Whose.
        credentials: String,
    },
    /// A netrc that cannot be read.
    #[error(transparent)]
    Netrc(#[from] NetrcError),
}

#[derive(Debug)]
struct AuthFile {
    path: PathBuf,
    /// Whether the user has named it, so that it has to be there.
    required: bool,
    /// Whether it is docker's old `~/.dockercfg`, which has no `auths` above its entries.
    old: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: Option<BTreeMap<String, AuthEntry>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
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

impl Credentials {
    /// Looks where podman and docker look, as `variable` of the environment says; with `auth_file` only there.
    #[must_use]
    pub(crate) fn new(
        auth_file: Option<PathBuf>,
        given: Option<Given>,
        variable: impl Fn(&str) -> Option<PathBuf>,
    ) -> Self {
        let mut files = Vec::new();
        let mut look = |path: PathBuf, required, old| files.push(AuthFile { path, required, old });
        let home = variable("HOME");
        let netrc = match (variable("NETRC"), &home) {
            (Some(path), _) => Some(Netrc::new(path, true)),
            (None, Some(home)) => Some(Netrc::new(home.join(".netrc"), false)),
            (None, None) => None,
        };
        if let Some(path) = auth_file {
            look(path, true, false);
            return Self { given, files, netrc, helped: Mutex::default() };
        }
        if let Some(path) = variable("REGISTRY_AUTH_FILE") {
            look(path, true, false);
        }
        // Without a directory of his own in /run, a user logs in there.
        let run = variable("XDG_RUNTIME_DIR").map(|run| run.join("containers"));
        let of_user = || format!("/run/containers/{}", rustix::process::geteuid().as_raw()).into();
        look(run.unwrap_or_else(of_user).join("auth.json"), false, false);
        let config = variable("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
        if let Some(config) = config {
            look(config.join("containers/auth.json"), false, false);
        }
        let docker = variable("DOCKER_CONFIG").or_else(|| Some(home.as_ref()?.join(".docker")));
        if let Some(docker) = docker {
            look(docker.join("config.json"), false, false);
        }
        if let Some(home) = home {
            look(home.join(".dockercfg"), false, true);
        }
        Self { given, files, netrc, helped: Mutex::default() }
    }

    /// The same, and what the command line says.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn with_given(self, given: Given) -> Self {
        Self { given: Some(given), ..self }
    }

    /// What the user is known by in `repository` of the registry at `base`.
    pub(crate) fn find(&self, base: &Url, repository: &str) -> Result<Option<Login>, CredentialsError> {
        let given = self.given.as_ref().filter(|given| {
            let key = Key::parse(&given.host);
            key.path.is_empty() && key.is_of(base, repository)
        });
        if let Some(Given { user, password, .. }) = given {
            let proof = Credential::Password(user.clone(), password.clone());
            return Ok(Some(Login { proof, source: "`--username`".to_owned() }));
        }
        for file in &self.files {
            if let Some(login) = self.find_in(file, base, repository)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    /// Name and password for a file on a web server, from the user's netrc. They are for https and loopback alone.
    pub(crate) fn for_file(&self, url: &Url) -> Result<Option<Login>, CredentialsError> {
        match &self.netrc {
            Some(netrc) if may_carry(url, false) => Ok(netrc.find(url)?),
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
        let helpers = config.cred_helpers.unwrap_or_default();
        let own = helpers.iter().find(|(key, _)| {
            let key = Key::parse(key);
            key.path.is_empty() && key.is_of(base, repository)
        });
        let helper =
            own.map(|(_, name)| name).or(config.creds_store.as_ref()).filter(|name| !name.is_empty());
        if let Some(name) = helper
            && let Some(proof) = self.help(file, name, &server(base))?
        {
            let source = format!("`{}{name}`, which `{}` names,", HELPER_PREFIX, file.path.display());
            return Ok(Some(Login { proof, source }));
        }
        let auths = config.auths.unwrap_or_default();
        let mut entries: Vec<_> = auths
            .iter()
            .map(|(text, entry)| (Key::parse(text), text, entry))
            .filter(|(key, ..)| key.is_of(base, repository))
            .collect();
        // The longest namespace; of two names for one host, the plain one.
        entries.sort_by_key(|(key, ..)| (std::cmp::Reverse(key.path.len()), key.scheme.is_some()));
        for (_, key, entry) in entries {
            let wrong = || CredentialsError::Entry { path: file.path.clone(), key: key.clone() };
            if let Some(proof) = entry.proof().ok_or_else(wrong)? {
                return Ok(Some(Login { proof, source: format!("`{}`", file.path.display()) }));
            }
        }
        Ok(None)
    }

    /// What a helper says of `server`; it is asked once in a while.
    fn help(
        &self,
        file: &AuthFile,
        name: &str,
        server: &str,
    ) -> Result<Option<Credential>, CredentialsError> {
        // Held while it runs: a helper may ask the user, who should be asked once.
        let mut helped = self.helped.lock().expect("nothing panics while it asks a helper; please report");
        let key = (name.to_owned(), server.to_owned());
        if let Some((_, proof)) = helped.get(&key).filter(|(when, _)| when.elapsed() < HELPER_MEMORY) {
            return Ok(proof.clone());
        }
        let program = format!("{HELPER_PREFIX}{name}");
        let proof = ask_helper(&program, server).map_err(|problem| CredentialsError::Helper {
            program,
            path: file.path.clone(),
            server: server.to_owned(),
            problem,
        })?;
        helped.insert(key, (Instant::now(), proof.clone()));
        Ok(proof)
    }
}

const HELPER_PREFIX: &str = "docker-credential-";

impl AuthFile {
    fn read(&self) -> Result<Option<Config>, CredentialsError> {
        let read = |path: &Path| {
            let mut bytes = Vec::new();
            std::fs::File::open(path)?.take(LIMIT).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = match read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if is_missing(&error) && !self.required => return Ok(None),
            Err::<_, std::io::Error>(error) => {
                return Err(CredentialsError::Read { path: self.path.clone(), reason: error.to_string() });
            }
        };
        // `podman login` begins with an empty file.
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        // What serde says of a mistake quotes what stands there.
        let syntax = |error: serde_json::Error| CredentialsError::Syntax {
            path: self.path.clone(),
            line: error.line(),
            column: error.column(),
        };
        let config = if self.old {
            Config { auths: Some(serde_json::from_slice(&bytes).map_err(syntax)?), ..Config::default() }
        } else {
            serde_json::from_slice(&bytes).map_err(syntax)?
        };
        Ok(Some(config))
    }
}

impl AuthEntry {
    /// What it says; nothing inside if it is empty, as docker leaves it beside a helper; nothing if it makes no sense.
    #[expect(clippy::option_option, reason = "it is looked at where it is made")]
    fn proof(&self) -> Option<Option<Credential>> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.registrytoken) {
            return Some(Some(Credential::Token(Secret(token))));
        }
        if let Some(token) = filled(&self.identitytoken) {
            return Some(Some(Credential::Identity(Secret(token))));
        }
        if let Some(auth) = filled(&self.auth) {
            let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
            let (user, password) = text.split_once(':')?;
            // Docker once filled it up with zeros.
            let password = password.trim_end_matches('\0');
            return Some(Some(proof(user, password)));
        }
        Some(filled(&self.username).map(|user| proof(&user, self.password.as_deref().unwrap_or_default())))
    }
}

fn proof(user: &str, password: &str) -> Credential {
    let secret = Secret(password.to_owned());
    if user == "<token>" {
        Credential::Identity(secret)
    } else {
        Credential::Password(user.to_owned(), secret)
    }
}

/// How docker calls the registry at `base` to its helpers.
fn server(base: &Url) -> String {
    let host = base.host_str().unwrap_or_default();
    match base.port() {
        None if canonical_host(host) == "docker.io" => DOCKER_HUB_KEY.to_owned(),
        None => host.to_owned(),
        Some(port) => format!("{host}:{port}"),
    }
}

/// Asks a helper (docker-credential-helpers, "Development"): what it knows, or what is wrong with it. What it prints
/// is not repeated: it could be the secret.
fn ask_helper(program: &str, server: &str) -> Result<Option<Credential>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    if program.contains(['/', '\\']) {
        return Err("has a name that is a path".to_owned());
    }
    let child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err("is not installed".to_owned()),
        Err(error) => return Err(format!("cannot be started ({error})")),
    };
    // One that does not read has its reasons, and says so by its exit status.
    let _ = child.stdin.take().expect("it was asked for; please report").write_all(server.as_bytes());
    let output = child.stdout.take().expect("it was asked for; please report");
    let (sender, answer) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = output.take(LIMIT).read_to_end(&mut bytes);
        let _ = sender.send(read.map(|_| bytes)); // nobody waits after the time is up
    });
    let output = answer.recv_timeout(HELPER_TIMEOUT);
    if output.is_err() {
        let _ = child.kill(); // it may have ended by now
    }
    let status = child.wait().map_err(|error| format!("cannot be waited for ({error})"))?;
    let output = match output {
        Ok(output) => output.map_err(|error| format!("cannot be read from ({error})"))?,
        Err(RecvTimeoutError::Timeout) => {
            return Err(format!("has not answered for {} s", HELPER_TIMEOUT.as_secs()));
        }
        Err(RecvTimeoutError::Disconnected) => return Err("cannot be read from".to_owned()),
    };
    if !status.success() {
        let says_none = String::from_utf8_lossy(&output).contains("credentials not found");
        return if says_none { Ok(None) } else { Err(format!("has failed ({status})")) };
    }
    let answer: Answer = serde_json::from_slice(&output)
        .map_err(|_| "has answered something that is no name and secret".to_owned())?;
    Ok((!answer.secret.is_empty()).then(|| proof(&answer.username, &answer.secret)))
}

/// What a file's entry is for: `host`, `host:port`, `https://host/v1/`, `host/namespace`.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    scheme: Option<String>,
    host: String,
    port: Option<u16>,
    /// The namespace, or nothing.
    path: String,
}

impl Key {
    fn parse(text: &str) -> Self {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, text),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/');
        // What follows the host in a URL was always the version of the API.
        let path = if scheme.is_some() || matches!(path, "v1" | "v2") { "" } else { path };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()),
            None => (authority, None),
        };
        // In an IPv6 address without a port, the last colon is a part of the address.
        let host = if port.is_none() { authority } else { host };
        Self { scheme, host: canonical_host(host), port, path: path.to_owned() }
    }

    /// Whether it is for `repository` of the registry at `base`.
    fn is_of(&self, base: &Url, repository: &str) -> bool {
        let default = if base.scheme() == "https" { 443 } else { 80 };
        let below = repository.strip_prefix(&*self.path);
        self.scheme.as_ref().is_none_or(|scheme| scheme == base.scheme())
            && base.host_str().is_some_and(|host| canonical_host(host) == self.host)
            && base.port_or_known_default() == Some(self.port.unwrap_or(default))
            && (self.path.is_empty() || below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::secret::basic;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    /// A file with this content, and where it is looked for.
    fn credentials(config: &str) -> (tempfile::TempDir, Credentials) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth.json");
        std::fs::write(&path, config).unwrap();
        (directory, Credentials::new(Some(path), None, |_| None))
    }

    fn password(login: Option<Login>) -> Option<String> {
        login.map(|login| match login.proof {
            Credential::Password(user, password) => format!("{user}:{}", password.reveal()),
            Credential::Identity(token) => format!("identity {}", token.reveal()),
            Credential::Token(token) => format!("token {}", token.reveal()),
        })
    }

    #[test]
    fn a_key_is_for_one_origin_or_a_namespace_there() {
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
                Key::parse(key).is_of(&url(base), repository),
                expected,
                "{key} for {base}{repository}"
            );
        }
    }

    #[test]
    fn every_form_of_an_entry_is_read_and_the_longest_namespace_wins() {
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
    fn files_are_looked_at_in_the_order_of_podman_and_docker() {
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
        let given = Given { host: "quay.io".into(), user: "me".into(), password: Secret::new("x") };
        assert_eq!(look(&credentials().with_given(given)), "me:x");
        std::fs::remove_file(root.join("REGISTRY_AUTH_FILE")).unwrap();
        let error = credentials().find(&url("https://quay.io/"), "a").unwrap_err().to_string();
        assert!(error.contains("REGISTRY_AUTH_FILE") && error.contains("cannot be read"), "{error}");
    }

    #[test]
    fn no_error_and_no_debug_has_a_secret_in_it() {
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
        let given = Given { host: "quay.io".into(), user: "me".into(), password: Secret::new("hunter2") };
        let credentials = Credentials::default().with_given(given);
        let login = credentials.find(&url("https://quay.io/"), "a").unwrap().unwrap();
        assert!(!format!("{credentials:?} {login:?}").contains("unter2"));
        let said =
            format!("no hunter2, {}, {}", basic("me", &Secret::new("hunter2")), STANDARD.encode("hunter2"));
        assert_eq!(login.scrub(&said), "no …, …, …");
        assert_eq!(login.scrub("401; it says \"denied\""), "401; it says \"denied\"");
        let long =
            Login { proof: Credential::Identity(Secret::new("0123456789abcdef")), source: String::new() };
        assert_eq!(long.scrub("401; it says \"not 0123456789\""), "401");
    }

    #[test]
    fn a_secret_goes_over_https_and_loopback_alone() {
        for (text, insecure, expected) in [
            ("https://a.example/", false, true),
            ("http://a.example/", false, false),
            ("http://a.example/", true, true),
            ("http://127.0.0.1:5000/", false, true),
            ("http://localhost/", false, true),
            ("http://[::1]/", false, true),
            ("http://10.0.0.1/", false, false),
        ] {
            assert_eq!(may_carry(&url(text), insecure), expected, "{text}");
        }
    }
}
