//! The configuration of a site that another person prepared, and the privileges of its servers.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::program::unbundle;
use crate::site::Site;
use crate::support::process::stdout_of;

/// Prints the structure of all YAML and TOML files below a directory, and parses all JSON files.
const STRUCTURE: &str = r"
import json, pathlib, sys, tomllib, yaml

class Loader(yaml.SafeLoader):
    pass

Loader.add_constructor('!unsafe', lambda loader, node: loader.construct_scalar(node))

def structure(value):
    if isinstance(value, dict):
        return {str(key): structure(item) for key, item in value.items()}
    if isinstance(value, list):
        return [structure(item) for item in value]
    return type(value).__name__

files, root = {}, pathlib.Path(sys.argv[1])
for path in sorted(root.rglob('*')):
    name = str(path.relative_to(root))
    if path.suffix in ('.yml', '.yaml'):
        files[name] = structure(list(yaml.load_all(path.read_text(), Loader)))
    elif path.suffix == '.toml' or name == 'podman/airbundle.conf':
        files[name] = structure(tomllib.loads(path.read_text()))
    elif path.suffix == '.json':
        json.loads(path.read_text())
print(json.dumps(files, sort_keys=True))
";

/// Texts that ended a value, or began a command, in one of the languages. `PROOF` is a file that must not appear.
const NASTY: [&str; 23] = [
    "x\nEND\ntouch PROOF\ncat >/dev/null <<'END'\n/pause",
    "'; touch PROOF; '",
    "$(touch PROOF)`touch PROOF`",
    "{{ lookup('pipe', 'touch PROOF') }}",
    "{% raw %}{{ lookup('pipe', 'touch PROOF') }}{% endraw %}{#",
    "a\" x;\n} # ",
    "\n        include /etc/passwd;\n",
    "amd64\"\nevil: \"{{ lookup('pipe', 'touch PROOF') }}",
    "x\"]\n[host.\"https://evil.example",
    "%n%h${HOME}",
    "x\nExecStart=/bin/touch PROOF",
    "../../../../escaped",
    "/etc/escaped",
    "~^.*$",
    "!unsafe &a *a",
    "\u{2028}evil: x\u{85}evil: y",
    "\u{feff}\u{202e}\u{200b}",
    "\u{1b}[2J\u{9b}31m\u{7f}",
    "\\",
    "\"",
    "<script>document.title = 'evil'</script>",
    "\u{0}",
    "🙂\u{10ffff}",
];

fn structure_of(conf: &Path) -> String {
    stdout_of(Command::new("python3").args(["-c", STRUCTURE]).arg(conf))
}

/// The fields of the record that are not digests or numbers. Most have a grammar that refuses nasty texts.
const FIELDS: [&str; 8] =
    ["title", "created", "path", "url", "reference", "tag", "repositories", "platforms"];

/// Puts `text` into a field of the record.
fn poison(record: &mut Value, field: &str, text: &str) {
    let text = json!(text);
    let list = match field {
        "title" | "created" => {
            record["bundles"][0][field] = text;
            return;
        }
        "path" | "url" => "files",
        _ => "images",
    };
    let mut entry = record[list][0].clone();
    entry[field] = if matches!(field, "repositories" | "platforms") { json!([text]) } else { text };
    record[list].as_array_mut().expect("a list").push(entry);
}

#[test]
fn text_of_a_carried_site_is_data_in_every_generated_file() {
    let site = Site::full();
    let proof = site.directory.path().join("proof");
    site.configure_user(&["--user", "carla", "--tls", "off"]).ok();
    let read =
        |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON") };
    let (record_path, settings_path) = (site.path().join("site.json"), site.conf("settings.json"));
    let (record, settings) = (read(&record_path), read(&settings_path));
    let write = |path: &Path, value: &Value| fs::write(path, value.to_string()).expect("write");
    let expected = structure_of(&site.path().join("conf"));
    let mut accepted = 0;
    for nasty in NASTY {
        let nasty = nasty.replace("PROOF", &proof.display().to_string());
        for field in FIELDS.into_iter().chain(["user", "host"]) {
            let (mut record, mut settings) = (record.clone(), settings.clone());
            if settings.get(field).is_some() {
                settings[field] = json!(nasty);
            } else {
                poison(&mut record, field, &nasty);
            }
            write(&record_path, &record);
            write(&settings_path, &settings);
            let finished = unbundle(["site".into(), site.path(), "--adopt-conf".into()]);
            assert_eq!(structure_of(&site.path().join("conf")), expected, "{field}: {nasty:?}");
            if finished.code != Some(0) {
                // Refused, and nothing is written.
                assert!([Some(6), Some(7)].contains(&finished.code), "{field} {nasty:?}: {finished:#?}");
                continue;
            }
            accepted += 1;
            let printed = site.run_on_host(
                r#"
sh -n "$CONF/site"
sh -n "$CONF/trust.sh"
mkdir "$HOST_COPY/node"
sh "$CONF/trust.sh" --root "$HOST_COPY/node" >&2
test -s "$HOST_COPY/node/etc/containerd/certs.d/quay.io/hosts.toml"
rm -r "$HOST_COPY/node"
"$CONF/site" logs >&2 || true
nginx -t -q -c "$CONF/nginx.conf" -g 'pid /run/pid;'
nginx -t -q -c "$CONF/nginx-files.conf" -g 'pid /run/pid;'
cd "$HOST_COPY"; find . -name '*escaped*'"#,
            );
            assert_eq!(printed, "", "{field}: {nasty:?}");
            if nasty.contains('{') {
                let values =
                    ["{{ airbundle_user | default('') }}", "{{ containerd_registries_mirrors | length }}"];
                crate::site::evaluate(&site.conf("kubespray/offline.yml"), &values.map(str::to_owned));
            }
            assert!(!proof.exists(), "{field}: {nasty:?}");
        }
    }
    // Titles and files can have most texts.
    assert!(accepted > 20, "{accepted}");
    assert!(!site.directory.path().join("escaped").exists() && !Path::new("/etc/escaped").exists());
}

#[test]
fn units_are_confined_and_start_servers_as_another_user() {
    let site = Site::full();
    site.configure_user(&["--user", "carla"]).ok();
    site.run_on_host(
        r#"
for unit in "$CONF"/systemd/*.service; do
    systemd-analyze verify "$unit"
    # In tenths.
    systemd-analyze security --offline=true --threshold=30 "$unit" >"$HOST_COPY/security" || { cat "$HOST_COPY/security" >&2; exit 1; }
    grep -q '^CapabilityBoundingSet=$' "$unit"
done
# What systemd does before and when it starts a unit, with the same user, files and limits.
as_unit() {
    name=$1
    mkdir -p "/run/$name" "/run/credentials/$name.service"
    sed -n 's/^LoadCredential=\([^:]*\):/\1 /p' "$CONF/systemd/$name.service" | while read -r id path; do
        install -o 65534 -m 400 "$path" "/run/credentials/$name.service/$id"
    done
    chown -R 65534 "/run/$name" "/run/credentials/$name.service"
    for step in ExecStartPre ExecStart; do
        sed -n "s/^$step=\\([^+]\\)/\\1/p" "$CONF/systemd/$name.service" | sed "s/%N/$name/g" >"$HOST_COPY/command"
        [ -s "$HOST_COPY/command" ] || continue
        if [ "$step" = ExecStart ]; then set -- exec; else set --; fi
        setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs \
            sh -c "$* $(cat "$HOST_COPY/command")" >&2 || return
    done
}
chmod 755 "$HOST_COPY"
chmod 600 "$CONF/htpasswd"
for name in airbundle-site airbundle-files airbundle-registry; do
    as_unit $name &
    case $name in
    airbundle-site) set -- "$FILES/healthz" "$FILES/k8s/" "$REGISTRY/v2/k8s/registry.k8s.io/pause/manifests/3.9" ;;
    airbundle-files) set -- "$FILES/healthz" "$FILES/k8s/" ;;
    *) set -- "$REGISTRY/v2/" "$REGISTRY/v2/k8s/registry.k8s.io/pause/manifests/3.9" ;;
    esac
    for _ in $(seq 100); do curl -so /dev/null --cacert "$CONF/ca.crt" "https://127.0.0.1:$1" && break; sleep 0.1; done
    for path in "$@"; do
        curl -sSf -o /dev/null -u carla:geheim -H 'Accept: */*' --cacert "$CONF/ca.crt" "https://127.0.0.1:$path"
    done
    for path in "$@"; do
        case $path in */healthz) continue ;; esac
        test "$(curl -s -o /dev/null -w '%{http_code}' --cacert "$CONF/ca.crt" "https://127.0.0.1:$path")" = 401
    done
    pid=$(cat "/run/$name/pid" 2>/dev/null) || continue
    kill "$pid"
    wait $! || true
done
"#,
    );
    // A port that only root can bind to needs one capability.
    let conf = site.path().display().to_string();
    unbundle(["site", &conf, "--files-port", "443"].map(str::to_owned)).ok();
    let unit = site.read("systemd/airbundle-site.service");
    assert!(unit.contains("\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n"), "{unit}");
    site.run_on_host(r#"systemd-analyze security --offline=true --threshold=30 "$CONF/systemd/airbundle-site.service" >&2"#);
}

#[test]
fn nginx_restricts_what_browsers_do_with_files_and_how_fast_passwords_are_tried() {
    let site = Site::full();
    site.configure_user(&["--user", "carla", "--hsts"]).ok();
    let files = site.path().join("files/k8s");
    for name in ["page.html", "image.svg", "page.xhtml", "unknown"] {
        fs::write(files.join(name), "<script>document.title = 'evil'</script>").expect("write a file");
    }
    let printed = site.run_on_host(
        r#"
SITE_ENGINE=nginx "$CONF/site" start >&2
headers() { curl -s -o /dev/null -D - --cacert "$CONF/ca.crt" "$@" | tr -d '\r' | sed -n 's/^\(HTTP\|[Ss]erver\|X-Content\|Content-Security\|Strict\)/\1/p'; }
for path in / /index.html /k8s/ /k8s/page.html /k8s/image.svg /k8s/page.xhtml /k8s/unknown /missing; do
    echo "== $path"; headers -u carla:geheim "https://127.0.0.1:$FILES$path"
done
for path in /v2/ /v2/_catalog /v2/k8s/registry.k8s.io/pause/manifests/3.9 /v2/missing/manifests/1; do
    echo "== $path"; headers -u carla:geheim "https://127.0.0.1:$REGISTRY$path"
done
echo "== 401"; headers "https://127.0.0.1:$REGISTRY/v2/"
# Without a password, requests are not counted; nor is the first one with a password delayed.
begin=$(date +%s)
ab -q -k -n 1500 -c 8 "https://127.0.0.1:$REGISTRY/v2/" >"$HOST_COPY/ab"
test $(($(date +%s) - begin)) -lt 15
begin=$(date +%s)
ab -q -n 1400 -c 20 -A carla:falsch "https://127.0.0.1:$FILES/k8s/" >"$HOST_COPY/ab"
test $(($(date +%s) - begin)) -ge 5
"$UNBUNDLE" site "$SITE" --no-hsts >&2
SITE_ENGINE=nginx "$CONF/site" start >&2
sleep 1
echo "== none"; headers -u carla:geheim "https://127.0.0.1:$FILES/"
"#,
    );
    let mut responses = printed.split("== ").skip(1).map(|part| part.split_once('\n').expect("a path"));
    let mut sandboxed = 0;
    for (path, headers) in responses.by_ref() {
        assert!(headers.contains("X-Content-Type-Options: nosniff\n"), "{path}: {headers}");
        assert!(headers.contains("frame-ancestors 'none'"), "{path}: {headers}");
        assert!(headers.contains("Server: nginx\n"), "{path}: {headers}");
        let hsts = headers.contains("Strict-Transport-Security: max-age=31536000\n");
        assert_eq!(hsts, path != "none", "{path}: {headers}");
        let is_sandboxed = headers.contains("Content-Security-Policy: sandbox; default-src 'none'");
        assert_eq!(is_sandboxed, !["/", "/index.html", "/k8s/", "none"].contains(&path), "{path}: {headers}");
        sandboxed += usize::from(is_sandboxed);
        if ["/", "/index.html"].contains(&path) {
            assert!(headers.contains("script-src 'sha256-"), "{path}: {headers}");
        }
    }
    assert_eq!(sandboxed, 10, "{printed}");
}

#[test]
fn servers_follow_no_link_in_a_site() {
    let site = Site::full();
    site.configure_user(&["--user", "carla"]).ok();
    site.run_on_host(
        r#"
SITE_ENGINE=nginx "$CONF/site" start >&2
status() { curl -s -o /dev/null -w '%{http_code}' --cacert "$CONF/ca.crt" -u carla:geheim "$1"; }
ln -s ../../../conf/htpasswd "$SITE/files/k8s/leak"
ln -s / "$SITE/files/k8s/root"
blob=$(find "$SITE/registry" -name data | head -n 1)
hex=$(basename "$(dirname "$blob")")
for good in "https://127.0.0.1:$FILES/k8s/" "https://127.0.0.1:$REGISTRY/v2/x/blobs/sha256:$hex" "https://127.0.0.1:$REGISTRY/v2/k8s/registry.k8s.io/pause/manifests/3.9"; do
    test "$(status "$good")" = 200 || { echo "$good: $(status "$good")" >&2; exit 1; }
done
mv "$blob" "$SITE/aside"; ln -s "$CONF/htpasswd" "$blob"
for bad in "https://127.0.0.1:$FILES/k8s/leak" "https://127.0.0.1:$FILES/k8s/root/etc/passwd" "https://127.0.0.1:$REGISTRY/v2/x/blobs/sha256:$hex"; do
    case $(status "$bad") in 403 | 404) ;; *) echo "$bad: $(status "$bad")" >&2; exit 1 ;; esac
done
# Not to a host of the client's choice.
curl -s -o /dev/null -D - --cacert "$CONF/ca.crt" -u carla:geheim -H 'Host: evil.test' "https://127.0.0.1:$FILES/k8s" >"$HOST_COPY/said"
grep -qi '^location: /k8s/' "$HOST_COPY/said"
"#,
    );
}

#[test]
fn catalog_works_under_the_policy_of_the_server() {
    use crate::support::browser::Browser;
    let site = Site::full();
    site.configure(&["--tls", "off"]).ok();
    let files = site.path().join("files/k8s");
    fs::write(files.join("page.html"), "<title>carried</title><script>document.title = 'evil'</script>")
        .expect("write");
    let run = site.directory.path().display().to_string();
    let conf = site.conf("nginx.conf");
    let mut nginx = Command::new("nginx")
        .args(["-e", "stderr", "-g", &format!("daemon off; user root; pid {run}/pid;"), "-c"])
        .arg(conf)
        .spawn()
        .expect("start nginx");
    let browser = Browser::start();
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", site.ports[0]);
    for _ in 0..100 {
        if std::net::TcpStream::connect(("127.0.0.1", site.ports[0])).is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    browser.open(&url("/"));
    browser.type_into("#search", "pause");
    let shown = browser.run("return [...document.querySelectorAll('#images tbody th')].filter((th) => th.checkVisibility()).length");
    let console = browser.console();
    browser.open(&url("/k8s/page.html"));
    let title = browser.command("Runtime.evaluate", &json!({ "expression": "document.title" }));
    nginx.kill().expect("stop nginx");
    nginx.wait().expect("stop nginx");
    assert_eq!((shown, console), (json!(2), vec![]));
    assert_eq!(title["result"]["value"], "carried", "{title}");
}
