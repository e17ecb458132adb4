//! The CA of a site: what clients accept from it, when it is replaced, and what happens without its key.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::program::unbundle;
use crate::site::Site;

/// Runs a shell command. Returns its exit status and its output.
fn shell(directory: &Path, script: &str) -> (bool, String) {
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .expect("start sh");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Signs a certificate for `names` with the CA of `conf`, as `NAME.crt` and `NAME.key` in the working directory.
const SIGN: &str = r#"
sign() { # name, subject alternative names
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj /O=thief 2>/dev/null
    printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$2" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA "$CONF/ca/ca.crt" -CAkey "$CONF/ca/ca.key" -CAcreateserial -CAserial serial -days 9 -extfile "$1.ext" -out "$1.crt" 2>/dev/null
}
"#;

#[test]
fn clients_reject_what_a_stolen_ca_key_signs_for_other_names() {
    let site = Site::full();
    site.configure(&[]).ok();
    let text = |file: &str, option: &str| {
        let path = site.conf(file);
        shell(Path::new("/"), &format!("openssl x509 -in {} -noout {option}", path.display())).1
    };
    let constraints = text("ca.crt", "-ext nameConstraints");
    assert!(constraints.contains("X509v3 Name Constraints: critical"), "{constraints}");
    assert!(
        constraints.contains("DNS:hub.site.test") && constraints.contains("IP:127.0.0.1/255.255.255.255"),
        "{constraints}"
    );
    // Not for `localhost`: that certificate would be valid on every client.
    let names = text("tls/server.crt", "-ext subjectAltName");
    assert!(names.contains("DNS:hub.site.test, IP Address:127.0.0.1\n"), "{names}");

    let script = format!(
        r#"{SIGN}
sh $CONF/trust.sh; engine; cd "$HOST_COPY"
echo '127.0.0.1 registry.other.test' >>/etc/hosts
sign good DNS:hub.site.test,IP:127.0.0.1
sign thief DNS:registry.other.test
sign mixed DNS:hub.site.test,DNS:registry.other.test
sign address DNS:hub.site.test,IP:127.0.0.2
openssl verify -CAfile $CONF/ca.crt good.crt
for name in thief mixed address; do
    if openssl verify -CAfile $CONF/ca.crt $name.crt >said 2>&1; then echo "openssl accepts $name" >&2; exit 1; fi
    grep -q 'permitted subtree violation' said
done
python() {{ /usr/bin/python3 -c 'import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[3]))), server_hostname=sys.argv[2])' "$CONF/ca.crt" "$@"; }}
openssl s_server -quiet -www -accept 4443 -cert good.crt -key good.key >/dev/null 2>&1 &
openssl s_server -quiet -www -accept 4444 -cert thief.crt -key thief.key >/dev/null 2>&1 &
for port in 4443 4444; do
    for _ in $(seq 100); do curl -kso /dev/null "https://127.0.0.1:$port/" && break; sleep 0.1; done
done
curl -sSf --noproxy '*' -o /dev/null https://hub.site.test:4443/
python hub.site.test 4443
status=0; curl -sS --noproxy '*' -o /dev/null https://registry.other.test:4444/ 2>said || status=$?
[ "$status" = 60 ] && grep -q 'permitted subtree violation' said
if python registry.other.test 4444 2>said; then exit 1; fi
grep -q 'permitted subtree violation' said
# Go: skopeo and containerd. The first requests show that they trust the CA.
for port in 4443 4444; do
    name=hub.site.test; [ $port = 4443 ] || name=registry.other.test
    timeout 20 skopeo inspect --raw docker://$name:$port/pause:3.9 2>skopeo.$port || :
    # The server that accepts it is no registry, for which containerd waits.
    timeout 10 ctr --address /run/docker/containerd/containerd.sock images pull --snapshotter native $name:$port/pause:3.9 >ctr.$port 2>&1 || :
done
for client in skopeo ctr; do
    if grep x509 $client.4443; then exit 1; fi
    grep -q 'x509: .*not permitted by any constraint' $client.4444 || {{ cat $client.4444 >&2; exit 1; }}
done"#
    );
    site.run_on_host(&script);
}

#[test]
fn the_ca_of_a_site_without_a_host_name_signs_for_no_host_name() {
    let site = Site::full();
    let path = site.path().display().to_string();
    unbundle(["site", &path, "--host", "127.0.0.5", "--ip", "127.0.0.5"]).ok();
    let script = format!(
        "{SIGN}\nsign thief DNS:registry.k8s.io; openssl verify -CAfile $CONF/ca.crt $CONF/tls/server.crt && \
         ! openssl verify -CAfile $CONF/ca.crt thief.crt"
    );
    let (success, text) =
        shell(site.directory.path(), &format!("CONF='{}'\n{script}", site.conf("").display()));
    assert!(success && text.contains("permitted subtree violation"), "{text}");
}

#[test]
fn another_address_makes_a_new_ca_and_says_that_clients_need_it() {
    let site = Site::full();
    let path = site.path().display().to_string();
    let first = site.configure(&[]).ok();
    assert!(first.stdout.contains("install the new CA on all clients"), "{first:#?}");
    let ca = || fs::read(site.conf("ca.crt")).unwrap();
    let old = ca();
    for options in [["--files-port", "25061"], ["--host", "hub.site.test"]] {
        let finished = unbundle([&["site", &*path], &options[..]].concat()).ok();
        assert!(!finished.stdout.contains("the CA is new") && ca() == old, "{finished:#?}");
    }
    for options in [["--ip", "127.0.0.2"], ["--host", "a.hub.site.test"], ["--host", "other.test"]] {
        let old = ca();
        fs::write(site.directory.path().join("old.crt"), &old).unwrap();
        let finished = unbundle([&["site", &*path], &options[..]].concat()).ok();
        let words = format!("clients reject the site until {path}/conf/trust.sh runs on each of them again");
        assert!(finished.stdout.contains(&words), "{finished:#?}");
        assert!(ca() != old && ca() == fs::read(site.conf("ca/ca.crt")).unwrap());
        let verify =
            |ca: &str| shell(&site.path(), &format!("openssl verify -CAfile {ca} conf/tls/server.crt")).0;
        assert!(verify("conf/ca.crt") && !verify("../old.crt"), "{options:?}");
        assert!(site.read("trust.sh").contains(String::from_utf8(ca()).unwrap().trim()));
        let again = unbundle(["site", &path, "--json"]).ok().json();
        assert_eq!((&again["newCa"], &again["warnings"]), (&false.into(), &serde_json::json!([])));
    }
}

#[test]
fn a_ca_for_more_names_than_those_of_the_site_is_replaced() {
    let site = Site::full();
    let path = site.path().display().to_string();
    site.configure(&[]).ok();
    let exact =
        "-addext nameConstraints=critical,permitted;DNS:hub.site.test,permitted;IP:127.0.0.1/255.255.255.255";
    for constraints in [
        "",
        // For all purposes, and with another certificate in the file.
        exact,
        &format!("{exact} -addext extendedKeyUsage=serverAuth,emailProtection"),
        &format!(
            "{exact} -addext extendedKeyUsage=serverAuth && cp ca/ca.crt x && cat x >>ca/ca.crt && rm x"
        ),
        "-addext nameConstraints=critical,permitted;DNS:hub.site.test,permitted;DNS:github.com,permitted;IP:127.0.0.1/255.255.255.255",
        "-addext nameConstraints=critical,permitted;DNS:hub.site.test,permitted;IP:127.0.0.0/255.0.0.0",
        "-addext nameConstraints=critical,permitted;DNS:site.test,permitted;IP:127.0.0.1/255.255.255.255",
        "-addext nameConstraints=permitted;DNS:hub.site.test,permitted;IP:127.0.0.1/255.255.255.255",
        "-addext nameConstraints=critical,permitted;DNS:hub.site.test",
    ] {
        let script = format!(
            r"rm -rf conf && mkdir -p conf/ca conf/tls && cd conf
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca/ca.key -out ca/ca.crt -days 3650 -subj '/CN=airbundle site CA/O=01234567' -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=keyCertSign,cRLSign {}
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout tls/server.key -out csr -subj /CN=hub.site.test
printf 'subjectAltName=DNS:hub.site.test,DNS:localhost,IP:127.0.0.1' >ext
openssl x509 -req -in csr -CA ca/ca.crt -CAkey ca/ca.key -CAcreateserial -CAserial serial -days 700 -extfile ext -out tls/server.crt
rm csr ext serial",
            constraints.replace(';', "\\;")
        );
        let (success, text) = shell(&site.path(), &script);
        assert!(success, "{text}");
        let old = fs::read(site.conf("ca/ca.crt")).unwrap();
        site.configure(&[]).failed(6, &["is missing or not as this host wrote it", "--adopt-conf"]);
        let finished = site.configure(&["--adopt-conf"]).ok();
        assert!(finished.stdout.contains("the CA is new: clients reject the site until"), "{finished:#?}");
        assert_ne!(fs::read(site.conf("ca.crt")).unwrap(), old);
        let names = "openssl x509 -in conf/tls/server.crt -noout -ext subjectAltName";
        assert!(!shell(&site.path(), names).1.contains("localhost"));
        let again = site.configure(&[]).ok();
        assert!(!again.stdout.contains("the CA is new"), "{again:#?}");
    }
    let old = fs::read(site.conf("ca/ca.crt")).unwrap();
    let renewed = unbundle(["site", &path, "--new-ca"]).ok();
    assert!(renewed.stdout.contains("clients reject the site until"), "{renewed:#?}");
    assert_ne!(fs::read(site.conf("ca.crt")).unwrap(), old);
    unbundle(["site", &path, "--tls", "off", "--new-ca"]).failed(2, &["--new-ca", "--tls auto"]);
}

#[test]
fn the_ca_key_is_exported_and_deleted_on_request_and_needed_only_for_a_new_certificate() {
    let site = Site::full();
    let path = site.path().display().to_string();
    let run = |options: &[&str]| unbundle([&["site", &*path], options].concat());
    site.configure(&[]).ok();
    let key = fs::read(site.conf("ca/ca.key")).unwrap();
    let ca = fs::read(site.conf("ca.crt")).unwrap();
    let copy = site.directory.path().join("copy.key");
    let export = |file: &Path| run(&["--export-ca-key", &file.display().to_string(), "--forget-ca-key"]);
    // Never through a link, never over a file, never into a directory that is served; the key then stays.
    let link = site.directory.path().join("link");
    std::os::unix::fs::symlink(&copy, &link).unwrap();
    export(&link).failed(6, &["cannot export the CA key", "file exists"]);
    export(&site.path().join("files/ca.key")).failed(2, &["is served"]);
    fs::write(&copy, "mine").unwrap();
    export(&copy).failed(6, &["copy.key", "file exists"]);
    assert_eq!(fs::read_to_string(&copy).unwrap(), "mine");
    assert!(site.conf("ca/ca.key").exists());
    fs::remove_file(&copy).unwrap();
    export(&copy).ok();
    assert_eq!(fs::read(&copy).unwrap(), key);
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!site.conf("ca/ca.key").exists());

    run(&["--export-ca-key", "/nonexistent/key"]).failed(6, &["CA key", "was deleted"]);
    run(&["--files-port", "25062", "--forget-ca-key"]).ok();
    assert_eq!(fs::read(site.conf("ca.crt")).unwrap(), ca);
    fs::remove_file(site.conf("tls/server.crt")).unwrap();
    let words = ["cannot issue a server certificate", "ca.key` was deleted", "install -m 600", "--new-ca"];
    run(&[]).failed(12, &words);
    fs::copy(&copy, site.conf("ca/ca.key")).unwrap();
    run(&["--forget-ca-key"]).ok();
    assert_eq!(fs::read(site.conf("ca.crt")).unwrap(), ca);
    let (success, text) = shell(&site.path(), "openssl verify -CAfile conf/ca.crt conf/tls/server.crt");
    assert!(success, "{text}");
    // The constraints do not cover another address: a new CA.
    let finished = run(&["--ip", "127.0.0.9"]).ok();
    assert!(finished.stdout.contains("the CA is new") && site.conf("ca/ca.key").exists(), "{finished:#?}");
}
