//! TLS: a certificate that nobody knows is refused, unless the user has said otherwise for that registry.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::{TempDir, tempdir};

use crate::program::{Finished, airbundle};
use crate::support::fake::{Content, Fake, Reply, Seen};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process::{Daemon, run};
use crate::support::registry::Registry;
use crate::support::web::free_port;

/// The same storage once more, over https with a certificate that it has signed itself.
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

/// A key and a certificate that it has signed itself.
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

/// A server that misbehaves, over https with such a certificate: nginx before it.
pub struct TlsFake {
    pub addr: String,
    pub fake: Fake,
    _daemon: Daemon,
    _directory: TempDir,
}

impl TlsFake {
    /// At this address of loopback; `twist` is told where that is, as `ADDRESS:PORT`.
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

/// A registry with one image, which is to be packed.
struct Job {
    directory: TempDir,
    content: Content,
}

impl Job {
    fn new() -> Self {
        let image = Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 1000, Compression::Gzip)]);
        let mut content = Content::default();
        content.image("app:v1", &image);
        Self { directory: tempdir().unwrap(), content }
    }

    /// Packs `app:v1` of this host.
    fn pack(&self, host: &str, more: &[&str]) -> Finished {
        let list = self.directory.path().join("images.list");
        fs::write(&list, format!("{host}/app:v1\n")).unwrap();
        let output = self.directory.path().join("out.tar.zst");
        let args = ["pack", list.to_str().unwrap(), "-o", output.to_str().unwrap(), "--retries", "0"];
        airbundle([&args, more].concat())
    }
}

#[test]
fn a_certificate_that_nobody_knows_is_refused_unless_the_registry_is_said_to_be_insecure() {
    let directory = tempdir().unwrap();
    let storage = directory.path().join("storage");
    let image = Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 1000, Compression::Gzip)]);
    let plain = Registry::start(&storage);
    plain.push("app", "v1", &image);
    let tls = TlsRegistry::serve(&storage, directory.path());

    let list = directory.path().join("images.list");
    fs::write(&list, format!("{}/app:v1\n", tls.addr)).unwrap();
    let output = directory.path().join("out.tar.zst");
    let pack = |more: &[&str]| {
        let mut args = vec!["pack", list.to_str().unwrap(), "-o", output.to_str().unwrap(), "--retries", "0"];
        args.extend(more);
        airbundle(args)
    };
    pack(&[]).failed(4, &[&format!("{}/app:v1", tls.addr), "cannot connect to"]);
    // A mirror is meant as it is written.
    pack(&["--mirror", &format!("{0}=https://{0}", tls.addr)])
        .failed(4, &["cannot connect to", "certificate"]);
    assert!(!output.exists());
    pack(&["--insecure-registry", &tls.addr]).ok();
    assert!(output.exists());

    // A registry that has no TLS at all needs the same leave, but on loopback.
    fs::write(&list, format!("{}/app:v1\n", plain.addr())).unwrap();
    pack(&[]).ok();
    pack(&["--insecure-registry", plain.addr()]).ok();
}

#[test]
fn a_token_from_the_host_of_an_insecure_registry_comes_over_the_same_certificate() {
    let job = Job::new();
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
    // The realm is trusted no more than its registry is.
    job.pack(&tls.addr, &[]).failed(4, &["cannot connect to", "certificate"]);
}

#[test]
fn another_host_to_which_an_insecure_registry_leads_needs_a_good_certificate() {
    let job = Job::new();
    for (ip, good) in [("127.0.0.1", true), ("127.0.0.2", false)] {
        let storage = TlsFake::start(ip, job.content.clone(), |_, _, reply| reply);
        let there = storage.addr.clone();
        let tls = TlsFake::start("127.0.0.1", job.content.clone(), move |_, seen, reply| {
            let redirect = Reply::redirect(&format!("https://{there}{}", seen.path));
            if seen.path.contains("/blobs/") { redirect } else { reply }
        });
        let finished = job.pack(&tls.addr, &["--insecure-registry", &tls.addr]);
        if good {
            finished.ok();
        } else {
            finished.failed(4, &["cannot connect to", &storage.addr, "certificate"]);
        }
        assert_eq!(storage.fake.seen().is_empty(), !good);
    }
}

#[test]
fn an_insecure_registry_leads_to_plain_http_on_no_host() {
    let job = Job::new();
    let storage = Fake::honest(job.content.clone());
    let there = storage.addr();
    let tls = TlsFake::start("127.0.0.1", job.content.clone(), move |_, seen, reply| {
        let redirect = Reply::redirect(&format!("http://{there}{}", seen.path));
        if seen.path.contains("/blobs/") { redirect } else { reply }
    });
    job.pack(&tls.addr, &["--insecure-registry", &tls.addr]).failed(4, &["from HTTPS to HTTP"]);
    assert!(storage.seen().is_empty());
}

#[test]
fn a_mirror_is_insecure_if_it_is_named_itself() {
    let job = Job::new();
    let tls = TlsFake::start("127.0.0.1", job.content.clone(), |_, _, reply| reply);
    let (host, _) = tls.addr.split_once(':').unwrap();
    let mirror = format!("registry.example=https://{}", tls.addr);
    for (insecure, good) in
        [(&*tls.addr, true), (host, true), ("registry.example", false), ("127.0.0.1:1", false)]
    {
        let finished = job.pack("registry.example", &["--mirror", &mirror, "--insecure-registry", insecure]);
        if good {
            finished.ok();
        } else {
            finished.failed(4, &["cannot connect to", &tls.addr, "certificate"]);
        }
    }
}

#[test]
fn an_insecure_registry_may_be_named_in_capitals() {
    let job = Job::new();
    let tls = TlsFake::start("127.0.0.1", job.content.clone(), |_, _, reply| reply);
    let name = tls.addr.replace("127.0.0.1", "localhost");
    job.pack(&name, &[]).failed(4, &["cannot connect to", "certificate"]);
    job.pack(&name, &["--insecure-registry", &name.to_uppercase()]).ok();
}
