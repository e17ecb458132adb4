//! Private registries and web servers: which credential is accepted where, and that no other host ever gets a
//! byte of one.

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;
use tempfile::{TempDir, tempdir};

use crate::pack_job::{PARTIAL, PackJob, SPOOL};
use crate::program::Finished;
use crate::secure::TlsFake;
use crate::support::fake::{Content, Fake, Reply, Seen};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process::{Daemon, run};
use crate::support::registry::Registry;
use crate::support::web::free_port;
use crate::support::{random_bytes, sha256};

const USER: &str = "robot$reader";
const PASSWORD: &str = "pa:ss w\u{f6}rd-4711";

fn image() -> Image {
    Image::new(Format::Oci, "linux/amd64", &[Layer::random(7, 100_000, Compression::Gzip)])
}

fn basic(user: &str, password: &str) -> String {
    STANDARD.encode(format!("{user}:{password}"))
}

/// Returns every form in which a secret could appear.
fn encodings(secret: &str) -> Vec<String> {
    let plain = secret.to_owned();
    let query: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    vec![plain, query, STANDARD.encode(secret), basic(USER, secret), URL_SAFE_NO_PAD.encode(secret)]
}

/// A [`PackJob`] whose directory is also `$HOME`, and the secrets that must not appear in its output.
struct PrivateJob {
    pack: PackJob,
    secrets: Vec<String>,
}

impl PrivateJob {
    fn new(list: &str) -> Self {
        Self { pack: PackJob::new(list), secrets: encodings(PASSWORD) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.pack.path(name)
    }

    /// Writes a file into `$HOME`.
    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        self.pack.write(name, text).into()
    }

    /// Writes `~/.docker/config.json` with this entry for `host`.
    fn write_docker_config(&self, host: &str, entry: &serde_json::Value) -> PathBuf {
        self.write(".docker/config.json", json!({ "auths": { host: entry } }).to_string())
    }

    /// Writes an executable `docker-credential-NAME` that is on `PATH`.
    fn write_helper(&self, name: &str, script: &str) {
        let path = self.write(&format!("bin/docker-credential-{name}"), format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set the executable bit");
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = self.pack.command(&["--write-lock", &self.pack.text("airbundle.lock.json")]);
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        command.args(more).env("HOME", self.path("")).env("PATH", path);
        command
    }

    /// Packs and asserts that no output or file contains a secret.
    fn run(&self, more: &[&str]) -> Finished {
        self.run_with(self.command(more), "")
    }

    fn run_with(&self, mut command: Command, stdin: &str) -> Finished {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start airbundle");
        let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes()); // it may not read it
        let output = child.wait_with_output().expect("wait for airbundle");
        let text = |bytes| String::from_utf8(bytes).expect("the programs print UTF-8");
        let finished =
            Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        let bundle = self.pack.output();
        let content =
            if bundle.exists() { run(Command::new("zstd").arg("-dcq").arg(&bundle)).stdout } else { vec![] };
        for secret in &self.secrets {
            assert!(!finished.stdout.contains(secret) && !finished.stderr.contains(secret), "{finished:#?}");
            let found = content.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "a secret in the bundle");
            for left in ["airbundle.lock.json", PARTIAL, SPOOL] {
                let bytes = fs::read(self.path(left)).unwrap_or_default();
                let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(!found, "a secret in {left}");
            }
        }
        if finished.code == Some(0) && bundle.exists() {
            assert!(self.path("airbundle.lock.json").exists(), "a lock, which was looked through");
        }
        finished
    }

    /// Packs without leftovers of an earlier run, and asserts success.
    #[track_caller]
    fn packs(&self, more: &[&str]) -> Finished {
        let _ = fs::remove_file(self.pack.output()); // there may be none yet
        self.run(more).ok()
    }
}

/// A storage with `team/app:1` and `team/other:1` behind a registry that requires credentials.
struct PrivateRegistry {
    addr: String,
    daemon: Daemon,
    _directory: TempDir,
}

impl PrivateRegistry {
    /// `auth` is the section of the registry's configuration; `{directory}` in it is replaced with a
    /// directory of its own.
    fn start(auth: &str) -> Self {
        let directory = tempdir().expect("create a temporary directory");
        let storage = directory.path().join("storage");
        let open = Registry::start(&storage);
        for repository in ["team/app", "team/other"] {
            open.push(repository, "1", &image());
        }
        drop(open);
        let addr = format!("127.0.0.1:{}", free_port());
        let here = directory.path().display();
        let auth = auth.replace("{directory}", &here.to_string());
        let config = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {here}/storage}}}}\n\
             http: {{addr: \"{addr}\"}}\nauth: {auth}\n"
        );
        fs::write(&config, text).expect("write config.yml");
        fs::write(directory.path().join("htpasswd"), htpasswd()).expect("write htpasswd");
        let command = ["docker-registry".as_ref(), "serve".as_ref(), config.as_os_str()];
        let mut daemon = Daemon::spawn(command, &directory.path().join("log"));
        daemon.wait_for(|log| log.contains("listening on").then_some(())).expect("a private registry");
        Self { addr, daemon, _directory: directory }
    }

    fn with_htpasswd() -> Self {
        Self::start("{htpasswd: {realm: here, path: \"{directory}/htpasswd\"}}")
    }

    fn list(&self) -> String {
        format!("{0}/team/app:1\n{0}/team/other:1\n", self.addr)
    }

    /// Returns how many responses had this status.
    fn responses(&self, status: u16) -> usize {
        let mark = format!("\" {status} ");
        self.daemon.log().lines().filter(|line| line.starts_with("127.0.0.1") && line.contains(&mark)).count()
    }
}

fn htpasswd() -> Vec<u8> {
    run(Command::new("htpasswd").args(["-bnB", "-C", "4", USER, PASSWORD])).stdout
}

// ---- Basic ----

#[test]
fn private_registry_accepts_logins_from_every_credential_source() {
    let registry = PrivateRegistry::with_htpasswd();
    let job = PrivateJob::new(&registry.list());
    let entry = json!({ "auth": basic(USER, PASSWORD) });
    let hint = format!("docker login {}", registry.addr);
    job.run(&[]).failed(4, &["team/app:1", "401", "no credentials found", &hint]);

    job.write_docker_config(&registry.addr, &entry);
    job.packs(&[]);
    job.write_docker_config(
        &format!("http://{}/v1/", registry.addr),
        &json!({ "username": USER, "password": PASSWORD }),
    );
    job.packs(&["--json"]);
    // Entries for another port and for HTTPS only.
    for other in ["127.0.0.1:1", "127.0.0.1", &format!("https://{}", registry.addr)] {
        job.write_docker_config(other, &entry);
        job.run(&[]).failed(4, &["401", "no credentials found"]);
    }
    fs::remove_dir_all(job.path(".docker")).expect("remove the credentials");

    let auths = json!({ "auths": { &registry.addr: entry } }).to_string();
    let file = job.write("elsewhere/auth.json", &auths);
    job.packs(&["--auth-file", file.to_str().expect("UTF-8")]);
    let missing = job.path("missing.json");
    job.run(&["--auth-file", missing.to_str().expect("UTF-8")]).failed(6, &["missing.json"]);
    for (variable, name) in [
        ("REGISTRY_AUTH_FILE", "elsewhere/auth.json"),
        ("XDG_RUNTIME_DIR", "containers/auth.json"),
        ("XDG_CONFIG_HOME", "containers/auth.json"),
        ("DOCKER_CONFIG", "config.json"),
    ] {
        let directory = job.path(variable);
        job.write(&format!("{variable}/{name}"), &auths);
        let mut command = job.command(&[]);
        command.env(variable, if variable.ends_with("FILE") { directory.join(name) } else { directory });
        job.run_with(command, "").ok();
    }
    let old = json!({ &registry.addr: entry }).to_string();
    job.write(".dockercfg", old);
    job.packs(&[]);
}

#[test]
fn password_on_stdin_applies_to_one_registry() {
    let (registry, other) = (PrivateRegistry::with_htpasswd(), PrivateRegistry::with_htpasswd());
    let job = PrivateJob::new(&registry.list());
    let run = |job: &PrivateJob, more: &[&str], stdin: &str| {
        let mut args = vec!["--username", USER, "--password-stdin"];
        args.extend_from_slice(more);
        job.run_with(job.command(&args), stdin)
    };
    for stdin in [PASSWORD, &format!("{PASSWORD}\n"), &format!("{PASSWORD}\r\n")] {
        run(&job, &[], stdin).ok();
    }
    run(&job, &["--registry", &registry.addr], PASSWORD).ok();
    let words = ["401", "`--username`", &format!("for `{}`", registry.addr)];
    run(&job, &["--registry", &registry.addr], "wrong").failed(4, &words);
    run(&job, &[], "").failed(2, &["cannot read the password from stdin"]);
    run(&job, &["--registry", &other.addr], PASSWORD)
        .failed(2, &["invalid `--registry", &other.addr])
        .failed(2, &["hint:", &registry.addr]);
    job.run(&["--username", USER]).failed(2, &["--password-stdin"]);

    let both = PrivateJob::new(&(registry.list() + &other.list()));
    let finished = run(&both, &[], PASSWORD).failed(2, &["2 registries"]);
    finished.failed(2, &["hint:", "--registry HOST", &registry.addr, &other.addr]);
    both.write_docker_config(&other.addr, &json!({ "auth": basic(USER, PASSWORD) }));
    run(&both, &["--registry", &registry.addr], PASSWORD).ok();
    both.write_docker_config(&registry.addr, &json!({ "auth": basic(USER, PASSWORD) }));
    // The command line has precedence over every file.
    run(&both, &["--registry", &registry.addr], "wrong").failed(4, &["401", "`--username`"]);
    run(&both, &["--registry", &other.addr], PASSWORD).ok();
}

#[test]
fn wrong_password_is_tried_once_and_reported_with_file_and_host() {
    let registry = PrivateRegistry::with_htpasswd();
    let job = PrivateJob {
        secrets: encodings("wr0ng-secret"),
        ..PrivateJob::new(&format!("{}/team/app:1\n", registry.addr))
    };
    let file = job.write_docker_config(&registry.addr, &json!({ "auth": basic(USER, "wr0ng-secret") }));
    let of_file = format!("sent the credentials of `{}` for `{}`", file.display(), registry.addr);
    job.run(&["--retries", "5"]).failed(4, &["team/app:1", "401", "access denied", &of_file]);
    // Without and with the password.
    assert_eq!(registry.responses(401), 3, "{}", registry.daemon.log());
}

// ---- Helpers ----

#[test]
fn credential_helpers_precede_the_common_store_which_precedes_the_file() {
    let registry = PrivateRegistry::with_htpasswd();
    let job = PrivateJob::new(&registry.list());
    let helper_output = |password: &str| {
        let json = json!({ "ServerURL": registry.addr, "Username": USER, "Secret": password }).to_string();
        format!("read server; echo \"$1 $server\" >>\"$HOME/calls\"; cat <<'END'\n{json}\nEND")
    };
    let none = "echo credentials not found in native keychain; exit 1";
    let config = |write_helper: bool, store: bool, password: &str| {
        let mut config = json!({ "auths": { &registry.addr: { "auth": basic(USER, password) } } });
        if write_helper {
            config["credHelpers"] = json!({ &registry.addr: "own", "other.example": "missing" });
        }
        if store {
            config["credsStore"] = json!("common");
        }
        job.write(".docker/config.json", config.to_string());
    };
    job.write_helper("own", &helper_output(PASSWORD));
    job.write_helper("common", &helper_output("wrong"));
    config(true, true, "wrong");
    job.packs(&[]);
    // Once for both images.
    assert_eq!(
        fs::read_to_string(job.path("calls")).expect("the helper was called"),
        format!("get {}\n", registry.addr)
    );
    config(false, true, PASSWORD);
    job.run(&[]).failed(4, &["401", "`docker-credential-common`, named in `", "config.json`"]);
    job.write_helper("common", &helper_output(PASSWORD));
    config(false, true, "wrong");
    job.packs(&[]);
    // A helper without credentials falls through to the next source.
    job.write_helper("common", none);
    config(false, true, PASSWORD);
    job.packs(&[]);
    job.write_helper("own", none);
    config(true, true, PASSWORD);
    job.packs(&[]);
}

#[test]
fn credential_helper_gets_no_secret_of_airbundle() {
    let registry = PrivateRegistry::with_htpasswd();
    let job = PrivateJob::new(&registry.list());
    let json = json!({ "ServerURL": registry.addr, "Username": USER, "Secret": PASSWORD }).to_string();
    job.write_helper("own", &format!("read server; env >\"$HOME/env\"; cat <<'END'\n{json}\nEND"));
    job.write(".docker/config.json", json!({ "credHelpers": { &registry.addr: "own" } }).to_string());
    let mut command = job.command(&[]);
    command.env("AIRBUNDLE_PASSPHRASE", "hush-4711").env("UNBUNDLE_PASSWORD", "hush-4711");
    command.env("GH_TOKEN", "for-gh");
    job.run_with(command, "").ok();
    crate::environment::assert_without_secrets(&fs::read_to_string(job.path("env")).expect("the helper ran"));
    // Another user can change this one.
    std::os::unix::fs::chown(job.path("bin/docker-credential-own"), Some(65534), None)
        .expect("change the owner");
    job.run(&[]).failed(4, &["docker-credential-own` belongs to user ID 65534"]);
}

#[test]
fn missing_or_broken_helper_is_named_without_leaking_its_output() {
    let registry = PrivateRegistry::with_htpasswd();
    let job = PrivateJob::new(&registry.list());
    let config = |name: &str| job.write(".docker/config.json", json!({ "credsStore": name }).to_string());
    job.write_helper("failing", &format!("echo '{PASSWORD}'; echo '{PASSWORD}' >&2; exit 3"));
    job.write_helper("garbage", &format!("echo '{PASSWORD}'"));
    job.write_helper("half", &format!("echo '{{\"Secret\": \"{PASSWORD}\"}}'"));
    job.write_helper("deaf", "exec <&-; exit 0");
    for (name, words) in [
        ("missing", "not installed"),
        ("failing", "failed: exit status: 3"),
        ("garbage", "not a user name and a secret"),
        ("half", "not a user name and a secret"),
        ("deaf", "not a user name and a secret"),
        ("../bin/docker-credential-garbage", "its name is a path"),
    ] {
        let file = config(name);
        let program = format!("`docker-credential-{name}`");
        job.run(&[]).failed(4, &["team/app:1", &program, &file.display().to_string(), words, &registry.addr]);
    }
}

// ---- Tokens ----

/// A token server for a real registry. Grants known users everything and anonymous users `team/other`.
struct TokenServer {
    fake: Fake,
    directory: TempDir,
}

const IDENTITY: &str = "1dentity-token-0815";

impl TokenServer {
    fn start() -> Self {
        let directory = tempdir().expect("create a temporary directory");
        let (key, certificate) = (directory.path().join("key.pem"), directory.path().join("cert.pem"));
        run(Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=tokens",
                "-keyout",
            ])
            .arg(&key)
            .arg("-out")
            .arg(&certificate));
        let pem = fs::read_to_string(&certificate).expect("read the certificate");
        let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let fake = Fake::start(Content::default(), move |seen, _| grant(seen, &key, &der));
        Self { fake, directory }
    }

    fn registry(&self) -> PrivateRegistry {
        PrivateRegistry::start(&format!(
            "{{token: {{realm: \"http://{}/token\", service: reg.example, issuer: tokens, rootcertbundle: {}}}}}",
            self.fake.addr(),
            self.directory.path().join("cert.pem").display()
        ))
    }
}

/// Returns a token (RFC 7519) for the granted part of the requested scope.
fn grant(seen: &Seen, key: &Path, certificate: &str) -> Reply {
    let query =
        if seen.method == "POST" { &seen.body } else { seen.path.split_once('?').expect("a query").1 };
    let all: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let value = |name: &str| all.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let known = match seen.method.as_str() {
        "POST" => {
            assert_eq!((value("grant_type"), value("client_id")), (Some("refresh_token"), Some("airbundle")));
            assert!(seen.header("authorization").is_none());
            value("refresh_token") == Some(IDENTITY)
        }
        _ => seen.header("authorization") == Some(&format!("Basic {}", basic(USER, PASSWORD))),
    };
    if !known && (seen.method == "POST" || seen.header("authorization").is_some()) {
        // Even an error that echoes the request.
        let said = seen.text().replace('\n', " ");
        let body = json!({ "errors": [{ "code": "DENIED", "message": format!("not {said}") }] }).to_string();
        return Reply { status: 401, ..Reply::ok(body.as_bytes()) };
    }
    assert_eq!(value("service"), Some("reg.example"));
    let scopes = all.iter().filter(|(key, _)| key == "scope").map(|(_, value)| value);
    let access: Vec<_> = scopes
        .filter_map(|scope| {
            let name = scope.strip_prefix("repository:")?.strip_suffix(":pull")?;
            let allowed = known || name == "team/other";
            allowed.then(|| json!({ "type": "repository", "name": name, "actions": ["pull"] }))
        })
        .collect();
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [certificate] });
    let claims = json!({
        "iss": "tokens", "sub": "", "aud": "reg.example", "exp": now + 300, "nbf": now - 10, "iat": now,
        "jti": "1", "access": access,
    });
    let text = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let file = tempfile::NamedTempFile::new().expect("create a temporary file");
    fs::write(&file, &text).expect("write the signing input");
    let signature =
        run(Command::new("openssl").args(["dgst", "-sha256", "-sign"]).arg(key).arg(file.path())).stdout;
    let token = format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature));
    let field = if seen.method == "POST" { "access_token" } else { "token" };
    Reply::ok(json!({ field: token, "expires_in": 300 }).to_string().as_bytes())
}

#[test]
fn registry_issues_tokens_for_anonymous_password_and_identity_token() {
    let tokens = TokenServer::start();
    let registry = tokens.registry();
    let mut job = PrivateJob::new(&registry.list());
    job.secrets.extend(encodings(IDENTITY));
    // Anonymous: one of the two repositories.
    let finished = job.run(&[]).failed(4, &["team/app:1", "401", "no credentials found"]);
    assert!(!finished.stderr.contains("team/other"), "{finished:#?}");
    let public = PrivateJob::new(&format!("{}/team/other:1\n", registry.addr));
    public.packs(&[]);

    job.write_docker_config(&registry.addr, &json!({ "auth": basic(USER, PASSWORD) }));
    job.packs(&[]);
    job.write_docker_config(
        &registry.addr,
        &json!({ "auth": basic("<token>", ""), "identitytoken": IDENTITY }),
    );
    job.packs(&["--json"]);
    assert!(tokens.fake.seen().iter().any(|seen| seen.method == "POST"));
    job.write_helper("own", &format!("echo '{}'", json!({ "Username": "<token>", "Secret": IDENTITY })));
    job.write(".docker/config.json", json!({ "credHelpers": { &registry.addr: "own" } }).to_string());
    job.packs(&[]);

    // A rejected credential, echoed in the error text.
    for entry in [json!({ "auth": basic(USER, "wrong-secret") }), json!({ "identitytoken": "wrong-secret" })]
    {
        let job = PrivateJob { secrets: encodings("wrong-secret"), ..PrivateJob::new(&registry.list()) };
        job.write_docker_config(&registry.addr, &entry);
        job.run(&["--retries", "3"]).failed(4, &["/token", "401", "the credentials of", "config.json"]);
    }
}

#[test]
fn password_only_registry_is_not_sent_an_identity_token() {
    let registry = PrivateRegistry::with_htpasswd();
    let job = PrivateJob { secrets: encodings(IDENTITY), ..PrivateJob::new(&registry.list()) };
    job.write_docker_config(&registry.addr, &json!({ "identitytoken": IDENTITY }));
    job.run(&[]).failed(4, &["requires a user name and a password", "config.json", "log in with a password"]);
}

/// A registry with `team/a:1` and `team/b:1` that admits requests for which `accept` is true, and sends
/// `challenge` otherwise.
fn token_registry(
    challenge: &'static str,
    accept: impl Fn(&Seen) -> bool + Send + Sync + 'static,
    twist: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static,
) -> Fake {
    let mut content = Content::default();
    content.image("team/a:1", &image());
    content.image("team/b:1", &image());
    Fake::start(content, move |seen, reply| {
        if !seen.path.starts_with("/v2/") || accept(seen) {
            return twist(seen, reply);
        }
        let host = seen.header("host").expect("a host");
        Reply::status(401).with("www-authenticate", &challenge.replace("{host}", host))
    })
}

#[test]
fn credentials_apply_by_namespace_and_tokens_by_repository() {
    let users = |seen: &Seen| {
        let (header, team) = (seen.header("authorization"), seen.path.split('/').nth(3).unwrap_or_default());
        header.is_some_and(|header| header == format!("Basic {}", basic(team, PASSWORD)))
    };
    let fake = token_registry("Basic realm=\"x\"", users, |_, reply| reply);
    let job = PrivateJob::new(&format!("{0}/team/a:1\n{0}/team/b:1\n", fake.addr()));
    let entry = |user: &str| json!({ "auth": basic(user, PASSWORD) });
    let auths = json!({ "auths": {
        format!("{}/team/a", fake.addr()): entry("a"),
        format!("{}/team", fake.addr()): entry("b"),
        fake.addr(): entry("c"),
    } });
    job.write(".config/containers/auth.json", auths.to_string());
    job.packs(&[]);

    let fake = token_registry(
        r#"Basic realm="x", Bearer realm="http://{host}/token""#,
        |seen| {
            let repository = seen.path.split('/').nth(3).unwrap_or_default();
            seen.header("authorization") == Some(&format!("Bearer for-{repository}"))
        },
        |seen, reply| match seen.path.split_once("repository%3Ateam%2F") {
            Some((_, scope)) => {
                assert_eq!(seen.header("authorization"), None);
                let repository = scope.strip_suffix("%3Apull").expect("a pull scope");
                Reply::ok(json!({ "token": format!("for-{repository}") }).to_string().as_bytes())
            }
            None => reply,
        },
    );
    PrivateJob::new(&format!("{0}/team/a:1\n{0}/team/b:1\n", fake.addr())).packs(&[]);
    assert_eq!(fake.seen_of("/token").len(), 2);
}

#[test]
fn registry_token_of_the_auth_file_is_sent_verbatim() {
    let accept = |seen: &Seen| seen.header("authorization") == Some("Bearer dir3ct-token");
    for challenge in ["Bearer realm=\"http://{host}/token\"", "Basic realm=\"x\""] {
        let fake = token_registry(challenge, accept, |_, reply| reply);
        let job = PrivateJob {
            secrets: encodings("dir3ct-token"),
            ..PrivateJob::new(&format!("{}/team/a:1\n", fake.addr()))
        };
        job.write_docker_config(&fake.addr(), &json!({ "registrytoken": "dir3ct-token" }));
        job.packs(&[]);
        assert!(fake.seen_of("/token").is_empty());
    }
}

/// A registry whose tokens live for one second, with an image that takes longer; `expires` is the lifetime it
/// states.
fn short_lived_token_registry(expires: Option<u64>) -> (Fake, Arc<AtomicUsize>) {
    let image = Image::new(Format::Oci, "linux/amd64", &[Layer::random(8, 34 << 20, Compression::Gzip)]);
    let mut content = Content::default();
    content.image("team/long:1", &image);
    let issued: Mutex<Vec<Instant>> = Mutex::default();
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let fake = Fake::start(content, move |seen, reply| {
        let mut issued = issued.lock().expect("the lock is not poisoned");
        if seen.path.starts_with("/token") {
            assert_eq!(seen.header("authorization"), Some(&*format!("Basic {}", basic(USER, PASSWORD))));
            issued.push(Instant::now());
            let mut token = json!({ "token": format!("tok3n-{}", issued.len()) });
            if let Some(seconds) = expires {
                token["expires_in"] = seconds.into();
            }
            return Reply::ok(token.to_string().as_bytes());
        }
        let number = seen.header("authorization").and_then(|header| header.strip_prefix("Bearer tok3n-"));
        let number: usize = number.map_or(0, |number| number.parse().expect("a number"));
        if number == 0 || issued[number - 1].elapsed() > Duration::from_millis(1500) {
            count.fetch_add(1, Ordering::Relaxed);
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").expect("a host"));
            return Reply::status(401).with("www-authenticate", &realm);
        }
        Reply { pause: Duration::from_millis(3), ..reply }
    });
    (fake, refused)
}

#[test]
fn expiring_token_is_renewed_before_stated_expiry_or_after_rejection() {
    thread::scope(|scope| {
        for expires in [Some(1), None] {
            scope.spawn(move || {
                let (fake, refused) = short_lived_token_registry(expires);
                let mut job = PrivateJob::new(&format!("{}/team/long:1\n", fake.addr()));
                job.secrets.push("tok3n-".to_owned());
                job.write_docker_config(&fake.addr(), &json!({ "auth": basic(USER, PASSWORD) }));
                job.packs(&["--jobs", "1", "--retries", "0"]);
                let (tokens, refused) = (fake.seen_of("/token").len(), refused.load(Ordering::Relaxed));
                assert!(tokens >= 3, "{tokens} tokens");
                // Requests without a token, or with one that was not known to have expired.
                if expires.is_some() {
                    assert!(refused <= 3, "{refused} were refused");
                } else {
                    assert!((3..=2 * tokens).contains(&refused), "{refused} were refused, {tokens} tokens");
                }
            });
        }
    });
}

#[test]
fn one_token_request_serves_many_connections() {
    let layers: Vec<_> =
        (0..60_u8).map(|number| Layer::files(&[("n", &[number])], Compression::Gzip)).collect();
    let mut content = Content::default();
    content.image("team/many:1", &Image::new(Format::Oci, "linux/amd64", &layers));
    let fake = Fake::start(content, |seen, reply| {
        if seen.path.starts_with("/token") {
            thread::sleep(Duration::from_millis(200));
            return Reply::ok(br#"{"token":"tok"}"#);
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").expect("a host"));
        let is_known = seen.header("authorization") == Some("Bearer tok");
        if is_known { reply } else { Reply::status(401).with("www-authenticate", &realm) }
    });
    PrivateJob::new(&format!("{}/team/many:1\n", fake.addr())).packs(&["--jobs", "16"]);
    assert_eq!(fake.seen_of("/token").len(), 1);
}

#[test]
fn rejected_renewed_token_is_an_error_and_no_loop() {
    let fake = token_registry(
        "Bearer realm=\"http://{host}/token\"",
        |_| false,
        |seen, reply| {
            if seen.path.starts_with("/token") { Reply::ok(br#"{"token":"n0-use"}"#) } else { reply }
        },
    );
    let job = PrivateJob {
        secrets: encodings("n0-use"),
        ..PrivateJob::new(&format!("{}/team/a:1\n", fake.addr()))
    };
    job.run(&["--retries", "9"]).failed(4, &["team/a:1", "401", "no credentials found"]);
    assert_eq!((fake.seen_of("/v2/team").len(), fake.seen_of("/token").len()), (2, 1));
}

// ---- Other hosts ----

/// Asserts that no request to `others` contains any of these secrets.
#[track_caller]
fn assert_received_none(origins: &[&Fake], secrets: &[String]) {
    for origin in origins {
        let seen = origin.seen();
        assert!(!seen.is_empty(), "nobody came, so this shows nothing");
        for request in seen {
            let text = request.text();
            assert!(request.header("authorization").is_none(), "{text}");
            assert!(secrets.iter().all(|secret| !text.contains(secret)), "{text}");
        }
    }
}

#[test]
fn credentials_are_never_sent_to_a_redirect_target() {
    let mut blobs = Content::default();
    blobs.image("team/a:1", &image());
    let tokens = ["s3cret-token".to_owned()];
    for (challenge, scheme) in
        [("Basic realm=\"x\"", "Basic"), ("Bearer realm=\"http://{host}/token\"", "Bearer")]
    {
        for name in ["127.0.0.1", "localhost", "127.0.0.2"] {
            // One more hop, back to another path of the registry: credentials are not sent there either.
            let other = Fake::honest(blobs.clone());
            let port = other.addr().rsplit_once(':').expect("a port").1.to_owned();
            let hop_target = format!("http://127.0.0.1:{port}");
            let hop = Fake::start(Content::default(), move |seen, _| {
                Reply::redirect(&format!("{hop_target}{}", seen.path))
            });
            let hop_port = hop.addr().rsplit_once(':').expect("a port").1.to_owned();
            let target = if name == "127.0.0.2" { hop.addr() } else { format!("{name}:{hop_port}") };
            let registry = token_registry(
                challenge,
                move |seen| seen.header("authorization").is_some_and(|header| header.starts_with(scheme)),
                move |seen, reply| {
                    if seen.path.starts_with("/token") {
                        return Reply::ok(br#"{"token":"s3cret-token"}"#);
                    }
                    let redirected = seen.path.contains("/blobs/") || seen.path.contains("/manifests/");
                    if redirected { Reply::redirect(&format!("http://{target}{}", seen.path)) } else { reply }
                },
            );
            let mut job = PrivateJob::new(&format!("{}/team/a:1\n", registry.addr()));
            job.secrets.extend(tokens.clone());
            job.write_docker_config(&registry.addr(), &json!({ "auth": basic(USER, PASSWORD) }));
            job.packs(&[]);
            assert_received_none(&[&other, &hop], &job.secrets);
        }
    }
}

#[test]
fn credentials_are_never_sent_to_another_port_or_scheme_of_an_insecure_registry() {
    let mut blobs = Content::default();
    blobs.image("team/a:1", &image());
    // The same host over HTTPS at another port, with any certificate.
    let other = TlsFake::start("127.0.0.1", blobs.clone(), |_, _, reply| reply);
    let target = other.addr.clone();
    let registry = token_registry(
        "Basic realm=\"x\"",
        |seen| seen.header("authorization").is_some(),
        move |seen, reply| {
            let path = &seen.path;
            if path.contains("/blobs/") { Reply::redirect(&format!("https://{target}{path}")) } else { reply }
        },
    );
    let job = PrivateJob::new(&format!("{}/team/a:1\n", registry.addr()));
    job.write_docker_config(&registry.addr(), &json!({ "auth": basic(USER, PASSWORD) }));
    job.packs(&["--insecure-registry", &registry.addr()]);
    assert_received_none(&[&other.fake], &job.secrets);

    // From HTTPS to HTTP at another port: no request is made.
    let plain = Fake::honest(blobs.clone());
    let target = plain.addr();
    let registry = TlsFake::start("127.0.0.1", blobs, move |_, seen, reply| {
        let path = &seen.path;
        if seen.header("authorization").is_none() {
            Reply::status(401).with("www-authenticate", "Basic realm=\"x\"")
        } else if path.contains("/blobs/") {
            Reply::redirect(&format!("http://{target}{path}"))
        } else {
            reply
        }
    });
    let job = PrivateJob::new(&format!("{}/team/a:1\n", registry.addr));
    job.write_docker_config(&registry.addr, &json!({ "auth": basic(USER, PASSWORD) }));
    job.run(&["--insecure-registry", &registry.addr]).failed(4, &["team/a:1", "from HTTPS to HTTP"]);
    assert!(plain.seen().is_empty());
}

#[test]
fn redirect_target_cannot_request_credentials() {
    for challenge in ["Basic realm=\"x\"", "Bearer realm=\"http://{host}/token\""] {
        let thief = token_registry(challenge, |_| false, |_, _| Reply::ok(br#"{"token":"x"}"#));
        let addr = thief.addr();
        let registry = token_registry(
            "Basic realm=\"x\"",
            |seen| seen.path != "/v2/",
            move |seen, reply| {
                let path = &seen.path;
                if path.contains("/blobs/") {
                    Reply::redirect(&format!("http://{addr}{path}"))
                } else {
                    reply
                }
            },
        );
        let job = PrivateJob::new(&format!("{}/team/a:1\n", registry.addr()));
        job.write(
            ".docker/config.json",
            json!({ "auths": {
                registry.addr(): { "auth": basic(USER, PASSWORD) },
                thief.addr(): { "auth": basic(USER, PASSWORD) },
            } })
            .to_string(),
        );
        job.run(&[]).failed(4, &["team/a:1", "401", &thief.addr()]);
        assert_received_none(&[&thief], &job.secrets);
        assert!(thief.seen_of("/token").is_empty());
    }
}

#[test]
fn token_server_cannot_redirect_a_password_or_identity_token() {
    for status in [301, 302, 303, 307, 308] {
        for entry in [json!({ "auth": basic(USER, PASSWORD) }), json!({ "identitytoken": IDENTITY })] {
            let thief = Fake::start(Content::default(), |_, _| Reply::ok(br#"{"token":"tok"}"#));
            let addr = thief.addr();
            let registry = token_registry(
                "Bearer realm=\"http://{host}/token\"",
                |seen| seen.header("authorization") == Some("Bearer tok"),
                move |seen, reply| {
                    if !seen.path.starts_with("/token") {
                        return reply;
                    }
                    Reply { status, ..Reply::redirect(&format!("http://{addr}/stolen?{}", seen.path)) }
                },
            );
            let mut job = PrivateJob::new(&format!("{}/team/a:1\n", registry.addr()));
            job.secrets.extend(encodings(IDENTITY));
            job.write_docker_config(&registry.addr(), &entry);
            job.run(&["--retries", "0"]);
            if !thief.seen().is_empty() {
                assert_received_none(&[&thief], &job.secrets);
            }
        }
    }
}

#[test]
fn credentials_are_not_sent_over_plain_http_unless_allowed() {
    // The machine's own address is not loopback.
    let output = run(Command::new("hostname").arg("-I")).stdout;
    let text = String::from_utf8_lossy(&output);
    let Some(address) = text.split_whitespace().find(|address| !address.contains(':')) else {
        return; // a machine without a network
    };
    let origin = Fake::start_at(&format!("{address}:0"), Content::default(), |_, _| {
        Reply::status(401).with("www-authenticate", "Basic realm=\"x\"")
    });
    let job = PrivateJob::new("quay.io/team/a:1\n");
    job.write_docker_config(&origin.addr(), &json!({ "auth": basic(USER, PASSWORD) }));
    let mirror = format!("quay.io=http://{}", origin.addr());
    let words = ["quay.io/team/a:1", "plain HTTP", "config.json", "--insecure-registry", &origin.addr()];
    job.run(&["--mirror", &mirror]).failed(4, &words);
    assert_received_none(&[&origin], &job.secrets);
    job.run(&["--mirror", &mirror, "--insecure-registry", &origin.addr()]).failed(4, &["401", "config.json"]);
    assert!(origin.seen().iter().any(|seen| seen.header("authorization").is_some()));
}

#[test]
fn mirror_gets_its_own_credentials_and_never_those_of_the_origin() {
    let mine = format!("Basic {}", basic("mirror", PASSWORD));
    let accept = move |seen: &Seen| seen.header("authorization") == Some(&mine);
    let mirror = token_registry("Basic realm=\"x\"", accept, |_, reply| reply);
    let url = format!("quay.io=http://{}", mirror.addr());
    let job = PrivateJob::new("quay.io/team/a:1\n");
    job.write_docker_config("quay.io", &json!({ "auth": basic(USER, "0rigin-only") }));
    let words = ["401", "no credentials found", &format!("docker login {}", mirror.addr())];
    job.run(&["--mirror", &url]).failed(4, &words);
    let origin = PrivateJob { secrets: encodings("0rigin-only"), ..PrivateJob::new("") };
    assert_received_none(&[&mirror], &origin.secrets);
    let entry = |user: &str, password: &str| json!({ "auth": basic(user, password) });
    let auths = json!({ "quay.io": entry(USER, "0rigin-only"), mirror.addr(): entry("mirror", PASSWORD) });
    job.write(".docker/config.json", json!({ "auths": auths }).to_string());
    job.packs(&["--mirror", &url]);
    let seen: HashSet<_> =
        mirror.seen().iter().filter_map(|seen| seen.header("authorization").map(str::to_owned)).collect();
    assert_eq!(seen, [format!("Basic {}", basic("mirror", PASSWORD))].into());
    // Command-line credentials are for the host that they name.
    let mut command = job.command(&["--mirror", &url, "--username", "mirror", "--password-stdin"]);
    command.args(["--registry", &mirror.addr()]);
    job.run_with(command, PASSWORD).ok();
    let command = job.command(&["--mirror", &url, "--username", "mirror", "--password-stdin"]);
    job.run_with(command, PASSWORD)
        .failed(2, &["quay.io", "mirror"])
        .failed(2, &["hint:", "--registry HOST", "127."]);
}

// ---- Files ----

#[test]
fn netrc_credentials_are_sent_to_their_host_only() {
    let bytes = random_bytes(9, 20 << 20);
    let mut content = Content::default();
    content.path("/private/tool", bytes.clone());
    let storage = Fake::honest(content);
    let addr = storage.addr();
    let expected = format!("Basic {}", basic(USER, PASSWORD));
    let server = Fake::start(Content::default(), move |seen, _| {
        if seen.header("authorization") != Some(&expected) {
            return Reply::status(401).with("www-authenticate", "Basic realm=\"x\"");
        }
        Reply::redirect(&format!("http://{addr}{}", seen.path))
    });
    let url = format!("https://files.example/private/tool {}\n", sha256(&bytes));
    let job = PrivateJob::new(&url);
    let mirror = format!("files.example=http://{}", server.addr());
    job.run(&["--mirror", &mirror]).failed(4, &["/private/tool", "401"]);
    // `default` of the netrc does not apply, and the origin's entry does not apply to its mirror.
    job.write(
        ".netrc",
        format!("machine files.example login x password {PASSWORD}\ndefault login x password y\n"),
    );
    job.run(&["--mirror", &mirror]).failed(4, &["/private/tool", "401"]);
    assert!(server.seen().iter().all(|seen| seen.header("authorization").is_none()));
    let netrc = format!("machine 127.0.0.1 login {USER} password \"{PASSWORD}\"\n");
    job.write(".netrc", &netrc);
    job.packs(&["--mirror", &mirror]);
    fs::remove_file(job.path(".netrc")).expect("remove the credentials");
    let path = job.write("my-netrc", &netrc);
    let mut command = job.command(&["--mirror", &mirror]);
    command.env("NETRC", path);
    job.run_with(command, "").ok();
    assert_received_none(&[&storage], &job.secrets);
}
