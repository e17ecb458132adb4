//! Internal hosts: a registry or a web server refers `airbundle pack` to hosts inside the network of the packing
//! machine, by redirects, token servers and external layers.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::pack_job::PackJob;
use crate::program::{Finished, run};
use crate::support::fake::{Content, Fake, Reply};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process::append_command;
use crate::support::sha256;

/// Names that resolve to 127.0.0.1. Their connections are to this machine, but the names could be those of any host.
const NAMES: &str = "127.0.0.1 localhost registry.test storage.test inside.test";

const SECRET: &[u8] = b"a secret of this network";

fn content() -> Content {
    let mut content = Content::default();
    content.image(
        "team/app:1",
        &Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 1000, Compression::Gzip)]),
    );
    content.path("/file", b"the file".to_vec());
    content.path("/secret", SECRET.to_vec());
    content
}

fn port(fake: &Fake) -> String {
    fake.addr().rsplit_once(':').expect("a port").1.to_owned()
}

/// Packs with an /etc/hosts of its own.
fn pack(list: &str, hosts: &str, options: &[&str]) -> Finished {
    pack_with(list, hosts, options, &[])
}

fn pack_with(list: &str, hosts: &str, options: &[&str], environment: &[(&str, &str)]) -> Finished {
    const SCRIPT: &str = r#"mount --bind "$1" /etc/hosts && shift && exec "$@""#;
    let job = PackJob::new(list);
    let hosts = job.write("hosts", format!("{hosts}\n"));
    let command = job.command(&[&["--retries", "0"], options].concat());
    let mut apart = Command::new("unshare");
    apart.args(["--mount", "--map-root-user", "sh", "-c", SCRIPT, "sh", &hosts]);
    append_command(&mut apart, &command);
    run(apart.envs(environment.iter().copied()).stdin(Stdio::null()))
}

/// One of the references of a server to another URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reference {
    Blob,
    Manifest,
    File,
    /// By a host that is not the registry.
    TwoHops,
    Token,
    Layer,
}

/// Starts a server that refers to `target`.
fn server(reference: Reference, target: &str) -> Fake {
    let mut content = content();
    if reference == Reference::Layer {
        let image = Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 1000, Compression::Gzip)]);
        let mut manifest: Value = serde_json::from_slice(&image.manifest).expect("JSON");
        let media_type = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
        manifest["layers"] = json!([{ "mediaType": media_type, "digest": sha256(SECRET), "size": SECRET.len(), "urls": [target] }]);
        let manifest = manifest.to_string().into_bytes();
        content.manifest("team/app", "1", &image.root.media_type, manifest);
    }
    let target = target.to_owned();
    Fake::start(content, move |seen, reply| {
        let is = |kind: Reference, part: &str| reference == kind && seen.path.contains(part);
        let redirects = is(Reference::Blob, "/blobs/")
            || is(Reference::Manifest, "/manifests/")
            || is(Reference::File, "/file")
            || is(Reference::TwoHops, "/hop");
        if redirects {
            Reply::redirect(&target)
        } else if is(Reference::TwoHops, "/file") {
            Reply::redirect("/hop")
        } else if is(Reference::Token, "/v2/team") {
            Reply::status(401).with("www-authenticate", &format!("Bearer realm=\"{target}\""))
        } else if seen.path == "/v2/" {
            Reply::ok(b"{}")
        } else {
            reply
        }
    })
}

/// Packs the image or the file of a server with this name, and returns the result.
fn pack_from(reference: Reference, host: &str, fake: &Fake, options: &[&str], hosts: &str) -> Finished {
    let address = format!("{host}:{}", port(fake));
    let list = match reference {
        Reference::File | Reference::TwoHops => format!("http://{address}/file\n"),
        _ => format!("{address}/team/app:1\n"),
    };
    let insecure = ["--insecure-registry", &address];
    let insecure = if list.starts_with("http") { &[][..] } else { &insecure };
    pack(&list, hosts, &[insecure, options].concat())
}

#[test]
fn a_server_cannot_refer_to_internal_hosts_by_address_or_by_name() {
    use Reference::{Blob, File, Layer, Manifest, Token, TwoHops};
    for reference in [Blob, Manifest, File, TwoHops, Layer] {
        for (host, found) in [
            ("127.0.0.1", "`127.0.0.1` is a loopback address"),
            ("2130706433", "`127.0.0.1` is a loopback address"),
            ("[::ffff:127.0.0.1]", "`[::ffff:7f00:1]` is a loopback address"),
            ("localhost", "`localhost` is a loopback address"),
            ("inside.test", "`inside.test` resolves to 127.0.0.1, a loopback address"),
        ] {
            let inside = Fake::honest(content());
            let fake = server(reference, &format!("http://{host}:{}/secret", port(&inside)));
            let finished = pack_from(reference, "registry.test", &fake, &[], NAMES);
            finished.failed(4, &["is not allowed", found, "use `--allow-internal"]);
            assert!(inside.seen().is_empty(), "{reference:?} {host}: {:?}", inside.seen());
        }
        for allowed in ["inside.test", "127.0.0.0/8"] {
            let inside = Fake::honest(content());
            let fake = server(reference, &format!("http://inside.test:{}/secret", port(&inside)));
            pack_from(reference, "registry.test", &fake, &["--allow-internal", allowed], NAMES);
            assert!(!inside.seen().is_empty(), "{reference:?} {allowed}");
        }
    }
    for host in ["127.0.0.1", "inside.test"] {
        let fake = server(Token, &format!("https://{host}:9/token"));
        let words = &["token server", "not allowed", host, "a loopback address", "--allow-internal"];
        pack_from(Token, "registry.test", &fake, &[], NAMES).failed(4, words);
    }
}

#[test]
fn hosts_that_the_user_names_may_be_internal() {
    // A list, a mirror, and a literal address, which may refer to other loopback addresses.
    let storage = Fake::honest(content());
    let fake = server(Reference::File, &format!("http://localhost:{}/secret", port(&storage)));
    pack_from(Reference::File, "127.0.0.1", &fake, &[], NAMES).ok();
    assert!(!storage.seen().is_empty());
    let mirror = format!("files.example=http://storage.test:{}", port(&storage));
    pack("https://files.example/file\n", NAMES, &["--mirror", &mirror]).ok();
    // A mirror is not allowed more than another server.
    let inside = Fake::honest(content());
    let fake = server(Reference::File, &format!("http://inside.test:{}/secret", port(&inside)));
    let mirror = format!("files.example=http://storage.test:{}", port(&fake));
    pack("https://files.example/file\n", NAMES, &["--mirror", &mirror, "--mirrors-only"])
        .failed(4, &["`inside.test` resolves to 127.0.0.1"]);
    assert!(inside.seen().is_empty());
    // Link-local addresses are the metadata services of cloud providers.
    let fake = server(Reference::File, "http://169.254.169.254/latest/meta-data");
    pack_from(Reference::File, "127.0.0.1", &fake, &[], NAMES)
        .failed(4, &["http://169.254.169.254/latest/meta-data", "a link-local or reserved address"]);
}

#[test]
fn a_name_never_leads_to_a_link_local_address() {
    let hosts = "127.0.0.1 localhost\n169.254.169.254 metadata.test";
    let found = "`metadata.test` resolves to 169.254.169.254, a link-local or reserved address";
    pack("http://metadata.test/file\n", hosts, &[]).failed(4, &["is not allowed", found]);
}

#[test]
fn a_server_in_a_private_network_refers_to_private_hosts_but_not_to_loopback() {
    let private = "10.213.78.1";
    // Not every machine has a private address. The second time, it exists.
    Command::new("ip").args(["address", "add", private, "dev", "lo"]).output().expect("start ip");
    let hosts = format!("{private} registry.test storage.test\n127.0.0.1 localhost inside.test");
    for (target, is_allowed) in [("storage.test", true), ("inside.test", false), ("127.0.0.1", false)] {
        let address = if is_allowed { format!("{private}:0") } else { "127.0.0.1:0".to_owned() };
        let other = Fake::start_at(&address, content(), |_, reply| reply);
        let target = format!("http://{target}:{}/secret", port(&other));
        let fake = Fake::start_at(&format!("{private}:0"), content(), move |seen, reply| {
            if seen.path == "/file" { Reply::redirect(&target) } else { reply }
        });
        let finished = pack_from(Reference::File, "registry.test", &fake, &[], &hosts);
        if is_allowed {
            finished.ok();
        } else {
            finished.failed(4, &["a loopback address", "--allow-internal"]);
        }
        assert_eq!(other.seen().is_empty(), !is_allowed, "{other:?}");
    }
}

#[test]
fn a_proxy_may_be_internal_but_not_the_literal_target() {
    let proxy = Fake::start(content(), |seen, reply| match seen.path.as_str() {
        "http://files.example/file" => Reply::ok(b"the file"),
        "http://files.example/away" => Reply::redirect("http://127.0.0.1:9/secret"),
        _ => reply,
    });
    let proxy_url = format!("http://storage.test:{}", port(&proxy));
    let environment = [("http_proxy", &*proxy_url)];
    pack_with("http://files.example/file\n", NAMES, &[], &environment).ok();
    pack_with("http://files.example/away\n", NAMES, &[], &environment)
        .failed(4, &["http://127.0.0.1:9/secret", "`127.0.0.1` is a loopback address"]);
    assert!(proxy.seen_of("127.0.0.1").is_empty(), "{:?}", proxy.seen());
}
