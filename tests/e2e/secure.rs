//! TLS: a certificate that nobody knows is refused, unless the user has said otherwise for that registry.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::tempdir;

use crate::program::airbundle;
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process::{Daemon, run};
use crate::support::registry::Registry;

/// The same storage once more, over https with a certificate that it has signed itself.
struct TlsRegistry {
    addr: String,
    _daemon: Daemon,
}

impl TlsRegistry {
    fn serve(storage: &Path, folder: &Path) -> Self {
        let (key, certificate) = (folder.join("key.pem"), folder.join("cert.pem"));
        run(Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ])
            .args(["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate));
        let addr = format!("127.0.0.1:{}", crate::support::web::free_port());
        let config = folder.join("tls.yml");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"{addr}\", tls: {{certificate: {}, key: {}}}}}\n",
            storage.display(),
            certificate.display(),
            key.display()
        );
        fs::write(&config, text).unwrap();
        let command = ["docker-registry".as_ref(), "serve".as_ref(), config.as_os_str()];
        let mut daemon = Daemon::spawn(command, &folder.join("tls.log"));
        daemon.wait_for(|log| log.contains("listening on").then_some(())).expect("a registry with TLS");
        Self { addr, _daemon: daemon }
    }
}

#[test]
fn a_certificate_that_nobody_knows_is_refused_unless_the_registry_is_said_to_be_insecure() {
    let folder = tempdir().unwrap();
    let storage = folder.path().join("storage");
    let image = Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 1000, Compression::Gzip)]);
    let plain = Registry::start(&storage);
    plain.push("app", "v1", &image);
    let tls = TlsRegistry::serve(&storage, folder.path());

    let list = folder.path().join("images.list");
    fs::write(&list, format!("{}/app:v1\n", tls.addr)).unwrap();
    let output = folder.path().join("out.tar.zst");
    let pack = |more: &[&str]| {
        let mut args = vec!["pack", list.to_str().unwrap(), "-o", output.to_str().unwrap(), "--retries", "0"];
        args.extend(more);
        airbundle(args)
    };
    pack(&[]).failed(4, &[&format!("{}/app:v1", tls.addr), "no answer"]);
    // A mirror is meant as it is written.
    pack(&["--mirror", &format!("{0}=https://{0}", tls.addr)]).failed(4, &["no answer", "certificate"]);
    assert!(!output.exists());
    pack(&["--insecure-registry", &tls.addr]).ok();
    assert!(output.exists());

    // A registry that has no TLS at all needs the same leave, but on loopback.
    fs::write(&list, format!("{}/app:v1\n", plain.addr())).unwrap();
    pack(&[]).ok();
    pack(&["--insecure-registry", plain.addr()]).ok();
}
