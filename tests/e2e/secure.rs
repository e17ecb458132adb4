//! TLS: a certificate signed by an unknown CA is refused unless the registry is declared insecure.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::{TempDir, tempdir};

use crate::pack_job::{LIST, PackJob};
use crate::program::Finished;
use crate::support::fake::{Content, Fake, Reply, Seen};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process::{Daemon, run};
use crate::support::registry::Registry;
use crate::support::web::free_port;

/// A registry over HTTPS with a self-signed certificate, on the same storage.
struct TlsRegistry {
    addr: String,
    _daemon: Daemon,
}

impl TlsRegistry {
    fn serve(storage: &Path, directory: &Path) -> Self {
        let (key, certificate) = certificate(directory);
        let addr = format!("127.0.0.1:{}", free_port());
        let config = directory.join("tls.yml");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"{addr}\", tls: {{certificate: {}, key: {}}}}}\n",
            storage.display(),
            certificate.display(),
            key.display()
        );
        fs::write(&config, text).unwrap();
        let command = ["docker-registry".as_ref(), "serve".as_ref(), config.as_os_str()];
        let mut daemon = Daemon::spawn(command, &directory.join("tls.log"));
        daemon.wait_for(|log| log.contains("listening on").then_some(())).expect("a registry with TLS");
        Self { addr, _daemon: daemon }
    }
}

/// Returns a key and a self-signed certificate.
fn certificate(directory: &Path) -> (PathBuf, PathBuf) {
    let (key, certificate) = (directory.join("key.pem"), directory.join("cert.pem"));
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1,IP:127.0.0.2"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate));
    (key, certificate)
}

/// A fake server over HTTPS with a self-signed certificate: nginx in front of a [`Fake`].
pub struct TlsFake {
    pub addr: String,
    pub fake: Fake,
    _daemon: Daemon,
    _directory: TempDir,
}

impl TlsFake {
    /// Starts it at this loopback address; `twist` gets its own `ADDRESS:PORT`.
    pub fn start(
        ip: &str,
        content: Content,
        twist: impl Fn(&str, &Seen, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let directory = tempdir().unwrap();
        let addr = format!("{ip}:{}", free_port());
        let own = addr.clone();
        let fake = Fake::start(content, move |seen, reply| twist(&own, seen, reply));
        let (key, certificate) = certificate(directory.path());
        let (here, behind) = (directory.path().display(), fake.addr());
        let text = format!(
            "daemon off; user root; worker_processes 1; pid {here}/pid; events {{}}\n\
             http {{ access_log off; client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;\n\
             fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;\n\
             server {{ listen {addr} ssl; ssl_certificate {}; ssl_certificate_key {};\n\
             location / {{ proxy_pass http://{behind}; proxy_redirect off; }} }} }}\n",
            certificate.display(),
            key.display()
        );
        let config = directory.path().join("nginx.conf");
        fs::write(&config, text).unwrap();
        let command = ["nginx".as_ref(), "-e".as_ref(), "stderr".as_ref(), "-c".as_ref(), config.as_os_str()];
        let mut daemon = Daemon::spawn(command, &directory.path().join("log"));
        daemon.wait_for(|_| TcpStream::connect(&addr).ok()).unwrap_or_else(|log| panic!("{log}"));
        Self { addr, fake, _daemon: daemon, _directory: directory }
    }
}

/// A [`PackJob`] for `app:v1`, and the content of a registry that has it.
struct ImageJob {
    pack: PackJob,
    content: Content,
}

impl ImageJob {
    fn new() -> Self {
        let mut content = Content::default();
        content.image("app:v1", &image());
        Self { pack: PackJob::new(""), content }
    }

    /// Packs `app:v1` of this host.
    fn pack(&self, host: &str, options: &[&str]) -> Finished {
        self.pack.write(LIST, format!("{host}/app:v1\n"));
        self.pack.pack_with(&[&["--retries", "0"], options].concat())
    }
}

fn image() -> Image {
    Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 1000, Compression::Gzip)])
}

#[test]
fn unknown_ca_is_refused_unless_the_registry_is_insecure() {
    let directory = tempdir().unwrap();
    let storage = directory.path().join("storage");
    let plain = Registry::start(&storage);
    plain.push("app", "v1", &image());
    let tls = TlsRegistry::serve(&storage, directory.path());

    let job = ImageJob::new();
    job.pack(&tls.addr, &[]).failed(4, &[&format!("{}/app:v1", tls.addr), "cannot connect to"]);
    // The scheme of a mirror URL is used as written.
    let mirror = format!("{0}=https://{0}", tls.addr);
    job.pack(&tls.addr, &["--mirror", &mirror]).failed(4, &["cannot connect to", "certificate"]);
    assert!(!job.pack.output().exists());
    job.pack(&tls.addr, &["--insecure-registry", &tls.addr]).ok();
    assert!(job.pack.output().exists());

    // A registry without TLS needs the same option, except on loopback.
    job.pack(plain.addr(), &[]).ok();
    job.pack(plain.addr(), &["--insecure-registry", plain.addr()]).ok();
}

#[test]
fn token_server_on_an_insecure_registry_host_may_use_the_same_certificate() {
    let job = ImageJob::new();
    let tls = TlsFake::start("127.0.0.1", job.content.clone(), |own, seen, reply| {
        if seen.path.starts_with("/token?") {
            return Reply::ok(br#"{"token":"s3cret"}"#);
        }
        if seen.header("authorization") == Some("Bearer s3cret") {
            return reply;
        }
        Reply::status(401).with("www-authenticate", &format!("Bearer realm=\"https://{own}/token\""))
    });
    job.pack(&tls.addr, &["--insecure-registry", &tls.addr]).ok();
    assert!(!tls.fake.seen_of("/token?").is_empty());
    // The token server is trusted no more than its registry.
    job.pack(&tls.addr, &[]).failed(4, &["cannot connect to", "certificate"]);
}

#[test]
fn redirect_target_of_an_insecure_registry_needs_a_valid_certificate() {
    for (ip, valid) in [("127.0.0.1", true), ("127.0.0.2", false)] {
        let job = ImageJob::new();
        let storage = TlsFake::start(ip, job.content.clone(), |_, _, reply| reply);
        let target = storage.addr.clone();
        let tls = TlsFake::start("127.0.0.1", job.content.clone(), move |_, seen, reply| {
            let redirect = Reply::redirect(&format!("https://{target}{}", seen.path));
            if seen.path.contains("/blobs/") { redirect } else { reply }
        });
        let finished = job.pack(&tls.addr, &["--insecure-registry", &tls.addr]);
        if valid {
            finished.ok();
        } else {
            finished.failed(4, &["cannot connect to", &storage.addr, "certificate"]);
        }
        assert_eq!(storage.fake.seen().is_empty(), !valid);
    }
}

#[test]
fn insecure_registry_may_not_redirect_to_plain_http() {
    let job = ImageJob::new();
    let storage = Fake::honest(job.content.clone());
    let target = storage.addr();
    let tls = TlsFake::start("127.0.0.1", job.content.clone(), move |_, seen, reply| {
        let redirect = Reply::redirect(&format!("http://{target}{}", seen.path));
        if seen.path.contains("/blobs/") { redirect } else { reply }
    });
    job.pack(&tls.addr, &["--insecure-registry", &tls.addr]).failed(4, &["from HTTPS to HTTP"]);
    assert!(storage.seen().is_empty());
}

#[test]
fn mirror_is_insecure_only_if_named_itself() {
    let job = ImageJob::new();
    let tls = TlsFake::start("127.0.0.1", job.content.clone(), |_, _, reply| reply);
    let (host, _) = tls.addr.split_once(':').unwrap();
    let mirror = format!("registry.example=https://{}", tls.addr);
    for (insecure, valid) in
        [(&*tls.addr, true), (host, true), ("registry.example", false), ("127.0.0.1:1", false)]
    {
        let finished = job.pack("registry.example", &["--mirror", &mirror, "--insecure-registry", insecure]);
        if valid {
            finished.ok();
        } else {
            finished.failed(4, &["cannot connect to", &tls.addr, "certificate"]);
        }
    }
}

#[test]
fn insecure_registry_name_is_case_insensitive() {
    let job = ImageJob::new();
    let tls = TlsFake::start("127.0.0.1", job.content.clone(), |_, _, reply| reply);
    let name = tls.addr.replace("127.0.0.1", "localhost");
    job.pack(&name, &[]).failed(4, &["cannot connect to", "certificate"]);
    job.pack(&name, &["--insecure-registry", &name.to_uppercase()]).ok();
}
