//! `unbundle site`: everything that it writes is started, and real clients pull from it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use airbundle::commands::site::{Changes, configure};
use airbundle::oci::digest::Digest;
use airbundle::oci::manifest::OCI_INDEX;
use airbundle::site::record::{Record, RecordedBundle, RecordedFile, RecordedImage, RecordedManifest};
use airbundle::site::roots::NamedRoots;
use airbundle::site::verified::SitePolicy;
use tempfile::TempDir;

use crate::program::{Finished, airbundle, unbundle, unbundle_command};
use crate::serve::{unpack, world};
use crate::support::bases;
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::upstream::{Upstream, UpstreamFile, UpstreamImage};
use crate::support::web::free_port;

/// A site that unprivileged servers can read, with free ports.
pub(crate) struct Site {
    pub(crate) directory: TempDir,
    pub(crate) ports: [u16; 2],
}

impl Site {
    /// A site with everything that the upstream has.
    pub(crate) fn full() -> Self {
        let site = Self::empty();
        unpack(&world().bundle, &site.path()).ok();
        site
    }

    pub fn empty() -> Self {
        let directory = TempDir::new_in("/tmp").expect("create a temporary directory");
        open_to_all(directory.path());
        Self { directory, ports: [free_port(), free_port()] }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("site")
    }

    pub(crate) fn conf(&self, name: &str) -> PathBuf {
        self.path().join("conf").join(name)
    }

    fn write_record(&self, record: &Record) {
        fs::write(self.path().join("site.json"), serde_json::to_vec(record).expect("JSON")).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.conf(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn args(&self, options: &[&str]) -> Vec<String> {
        let [files, registry] = self.ports.map(|port| port.to_string());
        let site = self.path().display().to_string();
        let mut args =
            ["site", &site, "--files-port", &files, "--registry-port", &registry].map(str::to_owned).to_vec();
        args.extend(["--host", "hub.site.test", "--ip", "127.0.0.1"].map(str::to_owned));
        args.extend(options.iter().map(|option| (*option).to_owned()));
        args
    }

    pub(crate) fn configure(&self, options: &[&str]) -> Finished {
        unbundle(self.args(options))
    }

    /// Configures a user with the password `geheim`.
    pub(crate) fn configure_user(&self, options: &[&str]) -> Finished {
        use std::io::Write as _;
        let mut command = unbundle_command();
        command.args(self.args(options)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if options.contains(&"--user") {
            command.arg("--weak-password");
        }
        let mut child = command.spawn().expect("start unbundle");
        child.stdin.take().expect("a pipe").write_all(b"geheim\n").expect("write the password to stdin");
        let output = child.wait_with_output().expect("wait for unbundle");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs a script with private copies of `/etc`, the certificate directories and `/run`. It may change
    /// them freely, and its processes end with it.
    #[track_caller]
    pub(crate) fn run_on_host(&self, script: &str) -> String {
        let host = self.directory.path().join("host");
        let prelude = r#"
set -eu
for place in /etc /usr/local/share/ca-certificates; do
    mkdir -p "$HOST_COPY$place" "$place"
    cp -a "$place/." "$HOST_COPY$place/"
    mount --bind "$HOST_COPY$place" "$place"
done
mount -t tmpfs tmpfs /run
ip link set lo up
export HOME="$HOST_COPY/root"
mkdir -p "$HOME"
mkdir /run/lock
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY
engine() {
    dockerd --storage-driver=vfs --data-root "$HOST_COPY/docker" --exec-root /run/docker --pidfile /run/docker.pid \
        --host unix:///run/docker.sock --iptables=false --ip6tables=false "$@" >"$HOST_COPY/dockerd.log" 2>&1 &
    for _ in $(seq 300); do docker info >/dev/null 2>&1 && return; sleep 0.1; done
    cat "$HOST_COPY/dockerd.log" >&2
    exit 1
}
podman() {
    command podman --storage-driver vfs --cgroup-manager cgroupfs --root "$HOST_COPY/podman" --runroot /run/podman "$@"
}
"#;
        let [files, registry] = self.ports.map(|port| port.to_string());
        let output = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"])
            .arg(format!("{prelude}{script}"))
            .envs([("FILES", files), ("REGISTRY", registry), ("OTHER", free_port().to_string())])
            .env("HOST_COPY", &host)
            .env("SITE", self.path())
            .env("CONF", self.path().join("conf"))
            .env("DOCKER_HOST", "unix:///run/docker.sock")
            .env("UNBUNDLE", env!("CARGO_BIN_EXE_unbundle"))
            .stdin(Stdio::null())
            .output()
            .expect("start unshare");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{}\n---- stdout\n{stdout}\n---- stderr\n{stderr}", output.status);
        stdout
    }
}

/// Lets servers that drop root privileges read it.
fn open_to_all(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
        .expect("open the directory to all users");
}

/// Pulls by every client of a configured host: `$NAME` is the name of the registry.
const PULLS: &str = r#"
for reference in registry.k8s.io/pause:3.9 quay.io/coreos/etcd:v3.5.12 docker.io/library/nginx:1.25.2-alpine ghcr.io/kube-vip/kube-vip:v0.8.0; do
    skopeo inspect --raw "docker://$NAME/k8s/$reference" >"$HOST_COPY/manifest"
    digest=sha256:$(sha256sum <"$HOST_COPY/manifest" | cut -d' ' -f1)
    skopeo copy -q --all --preserve-digests "docker://$NAME/k8s/${reference%:*}@$digest" "dir:$HOST_COPY/pulled"
    podman pull -q "$NAME/k8s/$reference"
    podman pull -q "$NAME/k8s/${reference%:*}@$digest"
    # Layers in zstd, which Docker 20.10 does not know.
    [ "${reference%%/*}" = ghcr.io ] || docker pull -q "$NAME/k8s/$reference"
    [ "${reference%%/*}" = ghcr.io ] || docker pull -q "$NAME/k8s/${reference%:*}@$digest"
    # As a mirror, by its real name: what a node of Kubernetes does.
    ctr --address /run/docker/containerd/containerd.sock -n k8s.io images pull --hosts-dir /etc/containerd/certs.d \
        --snapshotter native $CTR "$reference"
    ctr --address /run/docker/containerd/containerd.sock -n k8s.io images pull --hosts-dir /etc/containerd/certs.d \
        --snapshotter native $CTR "$NAME/k8s/${reference%:*}@$digest"
done
"#;

/// curl and Ansible: entire files, ranges, unchanged bytes.
const FETCHES: &str = r#"
curl() { command curl -sSf --noproxy '*' $CURL "$@"; }
path=k8s/get.helm.sh/helm-v3.14.2-linux-amd64.tar.gz
curl -H 'Accept-Encoding: gzip' -D "$HOST_COPY/headers" -o "$HOST_COPY/file" "$URL/$path"
cmp "$HOST_COPY/file" "$SITE/files/$path"
if grep -i '^content-encoding' "$HOST_COPY/headers"; then exit 1; fi
grep -i '^content-type: application/gzip' "$HOST_COPY/headers"
curl -r 1000-1999 -o "$HOST_COPY/part" "$URL/$path"
dd if="$SITE/files/$path" bs=1000 skip=1 count=1 status=none | cmp - "$HOST_COPY/part"
curl "$URL/k8s/" | grep -q 'get.helm.sh'
curl "$URL/" | grep -q 'name="generator" content="airbundle"'
cat >"$HOST_COPY/play.yml" <<END
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - get_url:
        url: "$URL/$path"
        dest: "$HOST_COPY/by-ansible"
        checksum: "sha256:$(sha256sum <"$SITE/files/$path" | cut -d' ' -f1)"
        url_username: "${USER_NAME:-}"
        url_password: "${USER_PASSWORD:-}"
        force_basic_auth: ${ANSIBLE_AUTH:-false}
END
ANSIBLE_LOCALHOST_WARNING=False ansible-playbook "$HOST_COPY/play.yml"
cmp "$HOST_COPY/by-ansible" "$SITE/files/$path"
"#;

#[test]
fn nginx_alone_serves_all_clients_over_https_with_the_sites_ca() {
    let site = Site::full();
    site.configure(&[]).ok();
    let script = format!(
        "sh $CONF/trust.sh; SITE_ENGINE=nginx $CONF/site start; engine\nNAME=hub.site.test:$REGISTRY URL=https://hub.site.test:$FILES CTR= CURL=\n\
         {PULLS}{FETCHES}\nSITE_ENGINE=nginx $CONF/site status; SITE_ENGINE=nginx $CONF/site stop; if SITE_ENGINE=nginx $CONF/site status; then exit 1; fi"
    );
    let printed = site.run_on_host(&script);
    assert!(printed.contains("site: running with nginx") && printed.contains("site: stopped"), "{printed}");
}

#[test]
fn nginx_alone_requires_the_configured_user() {
    let site = Site::full();
    site.configure_user(&["--user", "carla"]).ok();
    let script = format!(
        r#"export AIRBUNDLE_PASSWORD=geheim
sh $CONF/trust.sh; SITE_ENGINE=nginx $CONF/site start; engine
NAME=hub.site.test:$REGISTRY URL=https://hub.site.test:$FILES
for url in "$URL/" "$URL/k8s/" "https://$NAME/v2/" "https://$NAME/v2/_catalog" "https://$NAME/v2/k8s/registry.k8s.io/pause/manifests/3.9"; do
    for user in "" "-u carla:falsch" "-u nobody:geheim"; do
        test "$(curl -s -o /dev/null -w '%{{http_code}}' $user "$url")" = 401
    done
    test "$(curl -s -o /dev/null -w '%{{http_code}}' -u carla:geheim "$url")" = 200
done
curl -si "https://$NAME/v2/" | grep -i '^www-authenticate: Basic'
if docker pull "$NAME/k8s/registry.k8s.io/pause:3.9"; then exit 1; fi
for client in skopeo podman docker; do
    echo geheim | "$client" login -u carla --password-stdin "$NAME"
done
CTR='--user carla:geheim' CURL='-u carla:geheim' USER_NAME=carla USER_PASSWORD=geheim ANSIBLE_AUTH=true
{PULLS}{FETCHES}
# The credentials of the hosts.toml alone.
ctr --address /run/docker/containerd/containerd.sock -n other images pull --hosts-dir /etc/containerd/certs.d --snapshotter native quay.io/coreos/etcd:v3.5.12
if find / -xdev -name hosts.toml -path '*airbundle*' -perm /o+r; then :; fi
test "$(stat -c %a /etc/containerd/certs.d/quay.io/hosts.toml)" = 600"#
    );
    site.run_on_host(&script);
}

#[test]
fn registry_serves_according_to_registry_yml_plain_and_with_tls_and_user() {
    for (options, scheme, open) in
        [(&["--tls", "off"][..], "http", true), (&["--tls", "auto", "--user", "carla"], "https", false)]
    {
        let site = Site::full();
        site.configure_user(options).ok();
        let script = format!(
            r#"
sh $CONF/trust.sh
docker-registry serve $CONF/registry.yml >"$HOST_COPY.log" 2>&1 &
NAME=hub.site.test:$REGISTRY
for _ in $(seq 100); do curl -so /dev/null {scheme}://$NAME/v2/ && break; sleep 0.1; done
if {open}; then set -- --tls-verify=false; else set -- --creds carla:geheim; fi
test "$(curl -so /dev/null -w '%{{http_code}}' {scheme}://$NAME/v2/)" = "$({open} && echo 200 || echo 401)"
skopeo inspect "$@" --raw "docker://$NAME/k8s/registry.k8s.io/pause:3.9" >/dev/null
if {open}; then set -- --src-tls-verify=false; else set -- --src-creds carla:geheim; fi
skopeo copy -q --all "$@" "docker://$NAME/k8s/registry.k8s.io/pause:3.9" "dir:$HOST_COPY/pulled"
# It never writes.
test "$(curl -so /dev/null -w '%{{http_code}}' -u carla:geheim -X POST {scheme}://$NAME/v2/a/blobs/uploads/)" = 405
"#
        );
        site.run_on_host(&script);
    }
}

#[test]
fn plain_http_is_served_on_request() {
    let site = Site::full();
    site.configure(&["--tls", "off"]).ok();
    let script = format!(
        r#"sh $CONF/trust.sh
mkdir -p /etc/docker && echo "{{\"insecure-registries\": [\"hub.site.test:$REGISTRY\"]}}" >/etc/docker/daemon.json
SITE_ENGINE=nginx $CONF/site start; engine
NAME=hub.site.test:$REGISTRY URL=http://hub.site.test:$FILES CTR= CURL=
skopeo() {{ verb=$1; shift; command skopeo "$verb" "$@"; }}
{PULLS}{FETCHES}"#
    );
    site.run_on_host(&script);
}

#[test]
fn client_setup_is_reverted_without_a_trace() {
    let site = Site::full();
    site.configure(&[]).ok();
    site.run_on_host(
        r#"
mkdir -p /etc/containerd/certs.d/quay.io
echo 'server = "https://mine"' >/etc/containerd/certs.d/quay.io/hosts.toml
update-ca-certificates >/dev/null 2>&1
snapshot() { (cd /etc && find . -type f ! -path './ssl/certs/*' ! -name ca-certificates.conf -exec sha256sum {} + | sort -k2); }
snapshot >"$HOST_COPY.before"
sh $CONF/trust.sh
getent hosts hub.site.test | grep -q 127.0.0.1
grep -q override_path /etc/containerd/certs.d/quay.io/hosts.toml
snapshot >"$HOST_COPY.once"
sh $CONF/trust.sh
snapshot | cmp - "$HOST_COPY.once"
sh $CONF/trust.sh --remove
snapshot | diff "$HOST_COPY.before" - >&2
"#,
    );
}

#[test]
fn second_site_run_changes_nothing_and_keeps_edited_files() {
    let site = Site::full();
    // The bundle carried the guide.
    assert_eq!(
        fs::read_to_string(site.path().join("README.md")).unwrap(),
        include_str!("../../docs/site.md")
    );
    let index =
        Command::new("tar").arg("-xOf").arg(&world().bundle).arg("index.json").output().expect("start tar");
    assert!(
        String::from_utf8_lossy(&index.stdout).contains("\"dev.airbundle.guide\":\"# Run the offline site")
    );
    site.configure_user(&["--user", "carla"]).ok();
    let before = crate::support::tree::Tree::of(&site.path());
    let again = unbundle(["site".into(), site.path()]).ok();
    assert!(again.stdout.contains("up to date"), "{again:#?}");
    assert_eq!(crate::support::tree::Tree::of(&site.path()).difference(&before), Vec::<String>::new());

    let page = site.path().join("files/index.html");
    // The page may break a long name after each `/`.
    let text = fs::read_to_string(&page).expect("a catalog page").replace("<wbr>", "");
    assert!(
        text.contains(&format!("docker pull hub.site.test:{}/k8s/registry.k8s.io/pause:3.9", site.ports[1]))
    );
    fs::write(site.conf("nginx.conf"), "# mine\n").expect("edit the file");
    let finished = site.configure(&["--host", "other.site.test"]);
    // A repeated `--host` is a usage error, and nothing has changed.
    assert_eq!(finished.code, Some(2), "{finished:#?}");
    let kept =
        unbundle(["site".as_ref(), site.path().as_os_str(), "--host".as_ref(), "other.site.test".as_ref()])
            .ok();
    assert!(kept.stdout.contains("conf/nginx.conf was edited"), "{kept:#?}");
    assert!(kept.stdout.contains("the CA was replaced"), "{kept:#?}");
    assert_eq!(site.read("nginx.conf"), "# mine\n");
    assert!(fs::read_to_string(&page).unwrap().contains("docker pull other.site.test:"));
    fs::write(&page, "<h1>mine</h1>").unwrap();
    unbundle(["site".into(), site.path()]).ok();
    assert_eq!(fs::read_to_string(&page).unwrap(), "<h1>mine</h1>");
    assert!(site.read("nginx.conf.new").contains("server {"));
    assert!(site.read("kubespray/offline.yml").contains("other.site.test"));
    assert_eq!(fs::read(site.conf("ca.crt")).unwrap(), fs::read(site.conf("ca/ca.crt")).unwrap());
    assert_eq!(fs::metadata(site.conf("ca/ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(site.conf("ca")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn invalid_settings_are_refused_by_name() {
    let site = Site::empty();
    site.configure(&[]).failed(6, &["site", "is not a site", "unbundle unpack"]);
    fs::create_dir_all(site.path()).unwrap();
    site.write_record(&Record::new("files".into(), "registry".into()));
    let pem = |name: &str| site.directory.path().join(name).display().to_string();
    let openssl = |args: &str| {
        let status = Command::new("sh")
            .args(["-c", &format!("cd '{}' && openssl {args} 2>/dev/null", site.directory.path().display())])
            .status();
        assert!(status.expect("start openssl").success(), "{args}");
    };
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout good.key -out good.crt -days 9 -subj /CN=x -addext subjectAltName=DNS:hub.site.test",
    );
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout other.key -out other.crt -days 9 -subj /CN=y",
    );
    openssl("req -new -key good.key -out old.csr -subj /CN=old");
    openssl(
        "x509 -req -in old.csr -signkey good.key -out old.crt -days -1 || openssl x509 -req -in old.csr -signkey good.key -out old.crt -not_before 20200101000000Z -not_after 20210101000000Z",
    );
    let pair = |crt: &str, key: &str| format!("{},{}", pem(crt), pem(key));
    site.configure(&["--tls", &pair("old.crt", "good.key")])
        .failed(12, &["old.crt", "expired on", "--tls auto"]);
    site.configure(&["--tls", &pair("good.crt", "other.key")])
        .failed(12, &["other.key", "does not match the certificate", "good.crt"]);
    site.configure(&["--tls", &pair("good.key", "good.key")]).failed(12, &["good.key", "no certificate"]);
    site.configure(&["--tls", &pair("good.crt", "missing")]).failed(6, &["missing", "No such file"]);
    openssl("ec -in good.key -aes256 -passout pass:secret -out locked.key");
    site.configure(&["--tls", &pair("good.crt", "locked.key")])
        .failed(12, &["locked.key", "encrypted", "openssl pkey"]);
    site.configure(&["--tls", "perhaps"]).failed(2, &["--tls", "expected auto, off, or CERT,KEY"]);
    site.configure_user(&["--user", "a:b"]).failed(2, &["invalid user name `a:b`"]);
    site.configure(&["--user", "carla"]).failed(2, &["password"]);
    let same = ["site", &site.path().display().to_string(), "--files-port", "5000"].map(str::to_owned);
    unbundle(same).failed(2, &["5000"]);
    let finished = site.configure(&["--tls", &pair("good.crt", "good.key")]).ok();
    assert!(finished.stdout.contains("certificate: from --tls"), "{finished:#?}");
    assert!(!finished.stdout.contains("does not name"), "{finished:#?}");
    assert_eq!(fs::metadata(site.conf("tls/server.key")).unwrap().permissions().mode() & 0o777, 0o600);
    // The USB drive with the certificate is gone: the copy suffices.
    fs::remove_file(pem("good.crt")).unwrap();
    site.configure(&[]).ok();
    // No directory with keys may be inside a served directory.
    let served = site.path().join("files/conf").display().to_string();
    site.configure(&["--conf", &served]).failed(2, &["is served", "--conf"]);
    fs::write(site.conf("settings.json"), "{").unwrap();
    site.configure(&["--adopt-conf"]).failed(6, &["settings.json", "correct or remove it"]);
}

#[test]
fn tags_that_differ_only_in_case_are_distinct() {
    let site = Site::full();
    let mut record = Record::read(&site.path(), &NamedRoots::default()).unwrap();
    let image = |reference: &str| {
        record
            .images
            .iter()
            .find(|image| image.reference.as_str() == reference)
            .expect("the entry exists")
            .clone()
    };
    let mut upper = image("registry.k8s.io/kube-proxy:v1.29.5");
    let digests = [image("registry.k8s.io/pause:3.9"), upper.clone()].map(|image| image.digest().unwrap());
    upper.repositories = ["k8s/registry.k8s.io/pause".parse().unwrap()].into();
    let mut lower = image("registry.k8s.io/pause:3.9");
    (lower.tag, upper.tag) = (Some("v1.0-rc".parse().unwrap()), Some("v1.0-RC".parse().unwrap()));
    record.images.extend([lower, upper]);
    site.write_record(&record);
    site.configure(&["--tls", "off"]).ok();
    let printed = site.run_on_host(
        r#"SITE_ENGINE=nginx $CONF/site start >&2
for tag in v1.0-rc v1.0-RC v1.0-Rc; do
    curl -s -o /dev/null -D - "http://127.0.0.1:$REGISTRY/v2/k8s/registry.k8s.io/pause/manifests/$tag" |
        sed -n 's/^Docker-Content-Digest: \(.*\)\r$/\1/p; s/^HTTP.* 404.*/none/p'
done"#,
    );
    assert_eq!(
        printed.lines().collect::<Vec<_>>(),
        [&*digests[0].to_string(), &digests[1].to_string(), "none"]
    );
}

#[test]
fn site_stops_with_the_runner_that_started_it_and_an_exposed_password_is_reported() {
    let site = Site::full();
    site.configure(&["--tls", "off"]).ok();
    site.run_on_host(
        r#"SITE_ENGINE=nginx $CONF/site start
# Whatever would be chosen afresh.
$CONF/site status
if SITE_ENGINE=compose $CONF/site start 2>"$HOST_COPY.said"; then exit 1; fi
grep -q 'running with nginx' "$HOST_COPY.said"
# A port that changes while it runs.
cp "$CONF/nginx.conf" "$HOST_COPY.conf"
"$UNBUNDLE" site "$SITE" --files-port $OTHER
$CONF/site start
curl -sSf -o /dev/null "http://127.0.0.1:$OTHER/"
# A configuration that is not good.
echo 'bogus;' >>"$CONF/nginx.conf"
if $CONF/site start 2>"$HOST_COPY.said"; then exit 1; fi
grep -q 'the previous one stays active' "$HOST_COPY.said"
# One that was edited before there was a user.
sed -i 's/^bogus;/# mine/' "$CONF/nginx.conf"
echo geheim | "$UNBUNDLE" site "$SITE" --user carla --weak-password | grep 'nginx.conf was edited'
if $CONF/site start 2>"$HOST_COPY.said"; then exit 1; fi
grep -q 'does not require a password' "$HOST_COPY.said"
$CONF/site stop
if curl -s -o /dev/null "http://127.0.0.1:$OTHER/"; then exit 1; fi
if curl -s -o /dev/null "http://127.0.0.1:$REGISTRY/"; then exit 1; fi"#,
    );
}

#[test]
fn unprivileged_user_runs_a_site() {
    let site = Site::full();
    site.run_on_host(
        r#"chown -R nobody "$SITE"
as_nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
as_nobody "$UNBUNDLE" site "$SITE" --tls off --host hub.site.test --ip 127.0.0.1 --files-port "$FILES" --registry-port "$REGISTRY"
SITE_ENGINE=nginx as_nobody sh "$CONF/site" start
curl -sSf -o /dev/null "http://127.0.0.1:$FILES/k8s/"
SITE_ENGINE=nginx as_nobody sh "$CONF/site" stop"#,
    );
}

#[test]
fn expiring_certificate_is_reissued_by_the_same_ca() {
    let site = Site::full();
    site.configure(&[]).ok();
    let ca = fs::read(site.conf("ca.crt")).unwrap();
    // A certificate of the same CA for the same names that expires tomorrow.
    let script = r#"
cd "$CONF"
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout tls/server.key -out /run/csr -subj /CN=hub.site.test 2>/dev/null
printf 'subjectAltName=DNS:hub.site.test,IP:127.0.0.1' >/run/ext
openssl x509 -req -in /run/csr -CA ca/ca.crt -CAkey ca/ca.key -CAcreateserial -CAserial /run/serial -days 1 -extfile /run/ext -out tls/server.crt 2>/dev/null
"#;
    site.run_on_host(script);
    let finished = site.configure(&[]).ok();
    assert!(finished.stdout.contains("the previous one was about to expire"), "{finished:#?}");
    assert_eq!(fs::read(site.conf("ca.crt")).unwrap(), ca);
    site.run_on_host("openssl verify -CAfile $CONF/ca.crt $CONF/tls/server.crt");
}

#[test]
fn used_port_missing_engine_and_unreadable_files_are_reported() {
    let site = Site::full();
    site.configure(&[]).ok();
    let printed = site.run_on_host(
        r#"
python3 -m http.server "$FILES" >/dev/null 2>&1 &
for _ in $(seq 100); do curl -so /dev/null "http://127.0.0.1:$FILES/" && break; sleep 0.1; done
SITE_ENGINE=nginx $CONF/site start 2>&1 && exit 1
kill $!
# As root, the script has a PATH of its own.
SITE_ENGINE=podman setpriv --reuid=65534 --regid=65534 --clear-groups env PATH=/nowhere /bin/sh $CONF/site start 2>&1 && exit 1
SITE_ENGINE=none $CONF/site start 2>&1 && exit 1
$CONF/site perhaps && exit 1
chmod 700 "$SITE/files"
SITE_ENGINE=nginx $CONF/site start 2>&1
"#,
    );
    for words in [
        "is already in use",
        "podman: command not found",
        "expected compose, docker, podman or nginx",
        "site start     start both",
        "the user of nginx cannot read",
    ] {
        assert!(printed.contains(words), "{words}: {printed}");
    }
}

#[test]
fn read_only_site_is_served_with_configuration_in_another_directory() {
    let site = Site::full();
    site.run_on_host(
        r#"
mount --bind "$SITE" "$SITE" && mount -o remount,bind,ro "$SITE"
"$UNBUNDLE" site "$SITE" 2>&1 | grep 'Read-only file system'
"$UNBUNDLE" site "$SITE" --conf "$HOST_COPY/conf" --own-index-page --host hub.site.test --ip 127.0.0.1 --files-port "$FILES" --registry-port "$REGISTRY"
chmod 755 "$HOST_COPY"
SITE_ENGINE=nginx "$HOST_COPY/conf/site" start
curl -sSf --cacert "$HOST_COPY/conf/ca.crt" -o /dev/null "https://127.0.0.1:$FILES/k8s/"
skopeo inspect --cert-dir "$HOST_COPY/conf" --raw "docker://127.0.0.1:$REGISTRY/k8s/registry.k8s.io/pause:3.9" >/dev/null
"#,
    );
}

// ---- Engines ----

/// A site with the images of its own servers, and one more.
fn with_servers(registry: bool) -> Site {
    let image = || bases::registry(Format::Docker, "linux/amd64");
    with_registry(registry.then(|| ("docker.io/library/registry:2.8.1", image())))
}

/// Likewise, with this image of a registry.
fn with_registry(registry: Option<(&str, Image)>) -> Site {
    let nginx = bases::nginx(Format::Docker, "linux/amd64");
    let mut images = vec![UpstreamImage::new("docker.io/library/nginx:1.25.2-alpine", nginx)];
    images.extend(registry.map(|(reference, image)| UpstreamImage::new(reference, image)));
    with_images(images)
}

/// A site with these images, one more, and a file.
fn with_images(mut images: Vec<UpstreamImage>) -> Site {
    let site = Site::empty();
    let path = |name: &str| site.directory.path().join(name);
    images.push(UpstreamImage::new(
        "registry.k8s.io/pause:3.9",
        Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 3000, Compression::Gzip)]),
    ));
    let files = vec![UpstreamFile::new("https://dl.k8s.io/kubelet", b"kubelet".to_vec())];
    let upstream = Upstream::start(&path("upstream"), images, files);
    let lists = upstream.write_lists(&path("lists"));
    let bundle = path("servers.tar.zst");
    let mut args = ["pack", &lists.display().to_string(), "-o", &bundle.display().to_string()]
        .map(str::to_owned)
        .to_vec();
    args.extend(upstream.mirror_args());
    airbundle(args).ok();
    unpack(&bundle, &site.path()).ok();
    site
}

/// Starts the site with an engine without images, fetches from it, and stops it.
const BY_ITSELF: &str = r#"
# The tests run from a directory that may belong to another user.
mount -t tmpfs -o mode=755 tmpfs /usr/local/sbin
cp "$UNBUNDLE" /usr/local/sbin/unbundle
sh $CONF/trust.sh
export SITE_ENGINE=$ENGINE
"$CONF/site" start
"$CONF/site" status
curl -sSf --noproxy '*' "https://hub.site.test:$FILES/k8s/dl.k8s.io/kubelet" | grep -q '^kubelet$'
skopeo copy -q "docker://hub.site.test:$REGISTRY/k8s/registry.k8s.io/pause:3.9" "dir:$HOST_COPY/pulled"
# Again: it restarts what runs.
"$CONF/site" start
"$CONF/site" logs
"#;

#[test]
fn compose_runs_nginx_and_a_registry_from_the_site_alone() {
    let site = with_servers(true);
    site.configure(&[]).ok();
    let printed = site.run_on_host(&format!(
        r#"engine
ENGINE=compose
{BY_ITSELF}
docker ps --format '{{{{.Image}}}}'
for _ in $(seq 40); do
    test "$(docker ps --filter health=healthy -q | wc -l)" = 2 && break
    sleep 1
done
docker ps -q | xargs docker inspect -f '{{{{.Config.Image}}}} {{{{json .State.Health}}}}'
test "$(docker ps --filter health=healthy -q | wc -l)" = 2
for container in $(docker ps -q); do
    # The key of the CA and the settings are not for containers.
    if docker exec "$container" /bin/busybox ls "$CONF/ca"; then exit 1; fi
    if docker exec "$container" /bin/busybox ls "$CONF/settings.json"; then exit 1; fi
    if docker exec "$container" /bin/busybox touch /etc/x; then exit 1; fi
    docker inspect -f '{{{{.HostConfig.ReadonlyRootfs}}}} {{{{.HostConfig.CapDrop}}}} {{{{.HostConfig.SecurityOpt}}}}' "$container" |
        grep -Fx 'true [ALL] [no-new-privileges:true]'
done
docker inspect -f '{{{{.HostConfig.CapAdd}}}}' $(docker ps -q) | sed 's/CAP_//g' | sort >"$HOST_COPY/added"
printf '%s\n' '[CHOWN SETGID SETUID]' '[]' | sort | diff - "$HOST_COPY/added"
# By digest.
docker inspect -f '{{{{.Config.Image}}}}' $(docker ps -q) | grep -c '^sha256:' | grep -x 2
"$CONF/site" stop
test -z "$(docker ps -aq)"
if "$CONF/site" status; then exit 1; fi"#
    ));
    for words in [
        "loading docker.io/library/nginx:1.25.2-alpine",
        "running with compose",
        "registry:2.8.1",
        "site: stopped",
    ] {
        assert!(printed.contains(words), "{words}: {printed}");
    }
}

#[test]
fn compose_starts_a_registry_that_is_not_the_official_one_or_does_without() {
    let program = "/usr/bin/docker-registry";
    let conf = "/etc/registry/config.yml";
    for (entrypoint, command, containers) in [
        (serde_json::json!([program]), serde_json::json!(["serve", conf]), 2),
        (serde_json::json!(["/bin/sh", "-c", "docker-registry serve"]), serde_json::json!(null), 1),
    ] {
        let image = bases::other_registry(&entrypoint, &command);
        let site = with_registry(Some(("registry.suse.com/suse/registry:2.8", image)));
        site.configure(&[]).ok();
        let printed = site.run_on_host(&format!(
            "engine\nENGINE=compose\n{BY_ITSELF}\ntest \"$(docker ps -q | wc -l)\" = {containers}\n\
             \"$CONF/site\" stop; test -z \"$(docker ps -aq)\""
        ));
        assert!(printed.contains("running with compose"), "{printed}");
        fs::remove_dir_all(site.directory.path().join("host")).expect("remove the host's entry");
    }
}

#[test]
fn nginx_that_is_not_the_official_one_is_started_by_its_program() {
    let options = serde_json::json!(["-c", "/etc/nginx/nginx.conf", "-g", "daemon off;"]);
    let image =
        bases::nginx_with(Format::Docker, "linux/amd64", &serde_json::json!(["/usr/sbin/nginx"]), &options);
    let site = with_images(vec![UpstreamImage::new("cgr.dev/chainguard/nginx:1", image)]);
    site.configure(&[]).ok();
    for engine in ["docker", "compose"] {
        let printed = site.run_on_host(&format!(
            "engine\nENGINE={engine}\n{BY_ITSELF}\ntest \"$(docker ps -q | wc -l)\" = 1\n\
             \"$CONF/site\" stop; test -z \"$(docker ps -aq)\""
        ));
        assert!(printed.contains(&format!("running with {engine}")), "{printed}");
        fs::remove_dir_all(site.directory.path().join("host")).expect("remove the host's entry");
    }
}

#[test]
fn docker_without_compose_and_compose_without_registry_run_nginx_alone() {
    let site = with_servers(false);
    site.configure_user(&["--user", "carla"]).ok();
    for engine in ["docker", "compose"] {
        let script = BY_ITSELF
            .replace("curl ", "curl -u carla:geheim ")
            .replace("copy -q", "copy -q --src-creds carla:geheim");
        // An image of the same name is not the one of the site.
        let impostor = "tar -cf - -C /bin true | docker import - nginx:1.25.2-alpine >&2";
        let privileges = "docker inspect -f '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}}' $(docker ps -q) | \
                          grep -E '^true \\[ALL\\] \\[no-new-privileges(:true)?\\]$'";
        let printed = site.run_on_host(&format!(
            "engine\n{impostor}\nENGINE={engine}\n{script}\n{privileges}\ntest \"$(docker ps -q | wc -l)\" = 1\n\"$CONF/site\" stop; test -z \"$(docker ps -aq)\""
        ));
        assert!(
            printed.contains(&format!("running with {engine}")) && printed.contains("user:     carla"),
            "{printed}"
        );
        fs::remove_dir_all(site.directory.path().join("host")).expect("remove the host's entry");
    }
}

#[test]
fn podman_runs_nginx_alone() {
    let site = with_servers(false);
    site.configure(&[]).ok();
    let printed = site.run_on_host(&format!(
        r#"
unset -f podman
mkdir -p /etc/containers
# Neither overlay mounts nor systemd may be at hand, and no network but this one.
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "/run/podman"\n' "$HOST_COPY/podman" >/etc/containers/storage.conf
printf '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n[containers]\nnetns = "host"\n' >/etc/containers/containers.conf
ENGINE=podman
{BY_ITSELF}
test "$(podman ps -q | wc -l)" = 1
container=$(podman ps -q)
podman inspect -f '{{{{.HostConfig.ReadonlyRootfs}}}}' "$container" | grep -x true
if podman exec "$container" /bin/busybox touch /etc/x; then exit 1; fi
if podman exec "$container" /bin/busybox ls "$CONF/ca"; then exit 1; fi
# CAP_CHOWN, CAP_SETGID and CAP_SETUID.
podman exec "$container" /bin/busybox grep CapBnd /proc/1/status | grep -x 'CapBnd:	00000000000000c1'
"$CONF/site" stop; test -z "$(podman ps -aq)"
"#
    ));
    assert!(printed.contains("running with podman"), "{printed}");
}

#[test]
fn site_up_configures_starts_and_trusts() {
    let site = Site::full();
    let printed = site.run_on_host(
        r#"SITE_ENGINE=nginx "$UNBUNDLE" site "$SITE" --host hub.site.test --ip 127.0.0.1 --files-port "$FILES" \
    --registry-port "$REGISTRY" --apply --start
curl -sSf --noproxy '*' "https://hub.site.test:$FILES/" | grep -q '<main'
skopeo inspect --raw "docker://hub.site.test:$REGISTRY/k8s/registry.k8s.io/pause:3.9" >/dev/null"#,
    );
    assert!(printed.contains("site: running with nginx"), "{printed}");
}

// ---- Kubespray ----

/// Returns the entries of a list.
fn entries(version: &str, list: &str) -> Vec<String> {
    let path = format!("{}/manifests/kubespray-{version}/{list}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).expect("read a list");
    let entries = text.lines().filter_map(|line| line.split_whitespace().next());
    entries.filter(|entry| !entry.starts_with('#')).map(str::to_owned).collect()
}

/// Returns the record of a site with these entries, as unpacking would write it.
fn record(files: &[String], images: &[String], prefix: impl Fn(&str) -> String) -> Record {
    let mut record = Record::new("files".into(), "registry".into());
    for url in files {
        let path = format!("k8s/{}", url.strip_prefix("https://").expect("https"));
        record.files.push(RecordedFile {
            path: path.parse().unwrap(),
            url: url.parse().unwrap(),
            size: 1,
            digest: Digest::of(url.as_bytes()),
        });
    }
    for reference in images {
        let (name, tag) = reference.rsplit_once(':').expect("a tag");
        let (host, repository) = name.split_once('/').expect("a host");
        record.images.push(RecordedImage {
            reference: reference.parse().unwrap(),
            repositories: [format!("{}{repository}", prefix(host)).parse().unwrap()].into(),
            tag: Some(tag.parse().unwrap()),
            platforms: vec!["linux/amd64".parse().unwrap()],
            size: 1,
            manifests: vec![RecordedManifest {
                digest: Digest::of(reference.as_bytes()),
                media_type: OCI_INDEX.parse().unwrap(),
            }],
        });
    }
    record
}

/// Returns `values` as Ansible evaluates them with `offline.yml` and these variables.
pub(crate) fn evaluate(offline: &Path, values: &[String]) -> Vec<String> {
    let directory = TempDir::new().expect("create a temporary directory");
    let path = |name: &str| directory.path().join(name);
    let values = serde_json::to_string(values).expect("JSON");
    let play = format!(
        "- hosts: localhost\n  connection: local\n  gather_facts: false\n  vars_files: ['{}']\n  vars:\n    values: {values}\n  tasks:\n    \
         - copy: {{ dest: '{}', content: \"{{{{ values | to_json }}}}\" }}\n",
        offline.display(),
        path("out.json").display()
    );
    fs::write(path("play.yml"), play).expect("write a playbook");
    let output = Command::new("ansible-playbook")
        .arg(path("play.yml"))
        .env("AIRBUNDLE_PASSWORD", "ge:heim/1")
        .env("ANSIBLE_LOCALHOST_WARNING", "False")
        .env("HOME", directory.path())
        .output()
        .expect("start ansible-playbook");
    assert!(output.status.success(), "{output:#?}");
    serde_json::from_slice(&fs::read(path("out.json")).expect("read the result")).expect("JSON")
}

/// Returns a list entry as Kubespray writes it, with variables for hosts.
fn with_host_variables(entry: &str) -> String {
    for (variable, host) in [
        ("github_url", "https://github.com"),
        ("dl_k8s_io_url", "https://dl.k8s.io"),
        ("storage_googleapis_url", "https://storage.googleapis.com"),
        ("get_helm_url", "https://get.helm.sh"),
        ("kube_image_repo", "registry.k8s.io"),
        ("docker_image_repo", "docker.io"),
        ("quay_image_repo", "quay.io"),
        ("github_image_repo", "ghcr.io"),
    ] {
        if let Some(rest) = entry.strip_prefix(host) {
            return format!("{{{{ {variable} }}}}{rest}");
        }
    }
    panic!("Kubespray has no variable for {entry}");
}

#[test]
fn kubespray_with_offline_yml_requests_exactly_what_the_site_serves() {
    type Prefix = fn(&str) -> String;
    let kept: Prefix = |host| format!("k8s/{host}/");
    let stripped: Prefix = |_| String::new();
    for (version, list, prefix) in [
        ("v2.25.0", "", kept),
        ("v2.25.0", "arm64/", stripped),
        ("v2.31.0", "", stripped),
        ("v2.31.0", "arm64/", kept),
    ] {
        let (files, images) =
            (entries(version, &format!("{list}files.list")), entries(version, &format!("{list}images.list")));
        let site = Site::empty();
        fs::create_dir_all(site.path()).unwrap();
        let record = record(&files, &images, prefix);
        site.write_record(&record);
        let changes = Changes { ip: Some([127, 0, 0, 1].into()), ..Changes::default() };
        configure(&site.path(), None, &SitePolicy::none(), changes).unwrap();
        let offline = site.conf("kubespray/offline.yml");
        let text = fs::read_to_string(&offline).unwrap();
        let architecture = if list.is_empty() { "amd64" } else { "arm64" };
        assert!(
            text.contains(&format!(
                "# Kubespray {version}, {architecture}: all listed files and images are here."
            )),
            "{text}"
        );

        let asked = evaluate(
            &offline,
            &files.iter().chain(&images).map(|entry| with_host_variables(entry)).collect::<Vec<_>>(),
        );
        let urls = record.files.iter().map(|file| format!("https://hub.kubespray.local:8080/{}", file.path));
        let names = record.images.iter().map(|image| {
            let repository = image.repositories.first().expect("a repository");
            format!("hub.kubespray.local:5000/{repository}:{}", image.tag.as_deref().expect("a tag"))
        });
        assert_eq!(asked, urls.chain(names).collect::<Vec<_>>(), "{version} {architecture}");
    }
}

#[test]
fn offline_yml_names_missing_items_and_carries_credentials() {
    let files = entries("v2.25.0", "files.list");
    let images = entries("v2.25.0", "images.list");
    let site = Site::empty();
    fs::create_dir_all(site.path()).unwrap();
    let record = record(&files[1..], &images[2..], |host| format!("k8s/{host}/"));
    site.write_record(&record);
    site.configure_user(&["--user", "carla"]).ok();
    let text = site.read("kubespray/offline.yml");
    let missing: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
    assert_eq!(missing, [&*files[0], &*images[0], &*images[1]].into(), "{text}");
    let values = [
        "{{ files_repo }}",
        "{{ containerd_registry_auth[0].username }}:{{ containerd_registry_auth[0].password }}",
        "{{ containerd_registries_mirrors | map(attribute='prefix') | sort | join(' ') }}",
        "{{ containerd_registries_mirrors[1].mirrors[0].host }} {{ crio_registry_auth[0].password }}",
    ]
    .map(str::to_owned);
    let [files_port, registry_port] = site.ports;
    let first = images[2].split('/').next().expect("a host");
    assert_eq!(
        evaluate(&site.conf("kubespray/offline.yml"), &values),
        [
            format!("https://carla:ge%3Aheim%2F1@hub.site.test:{files_port}/k8s"),
            "carla:ge:heim/1".into(),
            format!("docker.io ghcr.io hub.site.test:{registry_port} quay.io registry.k8s.io"),
            format!("https://hub.site.test:{registry_port}/v2/k8s/{first} ge:heim/1"),
        ]
    );
}

#[test]
fn offline_yml_passes_credentials_in_the_way_of_each_release() {
    for (title, mirrors, words) in [
        ("Kubespray v2.27.1", true, &["containerd_registry_auth:", "ctr -n k8s.io images pull"][..]),
        (
            "Kubespray v2.28.1",
            false,
            &["containerd_registries_mirrors: []", "Run trust.sh with AIRBUNDLE_PASSWORD"],
        ),
        ("Kubespray v2.29.0", true, &["authorization: \"Basic"]),
        ("Kubespray v2.31.0", true, &["authorization: \"Basic"]),
        ("Kubespray v2.99.0", true, &["authorization: \"Basic", "does not know the Kubespray release"]),
    ] {
        let site = Site::empty();
        fs::create_dir_all(site.path()).unwrap();
        let mut record =
            record(&entries("v2.31.0", "files.list"), &entries("v2.31.0", "images.list"), |host| {
                format!("k8s/{host}/")
            });
        record.bundles.push(RecordedBundle {
            identity: Digest::of(b"bundle"),
            title: Some(title.parse().unwrap()),
            created: None,
            partial: false,
        });
        site.write_record(&record);
        site.configure_user(&["--user", "carla"]).ok();
        let text = site.read("kubespray/offline.yml");
        assert_eq!(text.contains("  - prefix: \"quay.io\""), mirrors, "{title}: {text}");
        for word in words.iter().chain(&["crio_registry_auth:", "run `docker login`"]) {
            assert!(text.contains(word), "{title}: {word}: {text}");
        }
        assert!(!text.contains("        auth:"), "no release reads it: {text}");
        // Another release is not measured against this one.
        assert_eq!(
            text.contains("Kubespray v2.31.0, amd64: all listed"),
            title.ends_with("v2.31.0"),
            "{text}"
        );
    }
}

#[test]
fn offline_yml_sets_the_locations_of_other_hosts() {
    let raw = |version: &str| {
        format!("https://raw.githubusercontent.com/argoproj/argo-cd/{version}/manifests/install.yaml")
    };
    for (release, version) in [("v2.25.0", "v2.11.0"), ("v2.31.0", "v2.14.5")] {
        let site = Site::empty();
        fs::create_dir_all(site.path()).unwrap();
        let mut files = entries(release, "files.list");
        let mut images = entries(release, "images.list");
        let before = record(&files, &images, |host| format!("k8s/{host}/"));
        site.write_record(&before);
        let options = ["--tls", "off"];
        site.configure(&options).ok();
        let text = site.read("kubespray/offline.yml");
        for line in [
            "# argocd_install_url: this site has no such file",
            "# local_path_provisioner_helper_image_repo: this",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("cilium_install_extra_flags"), "{text}");

        files.extend([raw(version), "https://helm.cilium.io/cilium-1.19.3.tgz".to_owned()]);
        images.push("docker.io/library/busybox:latest".to_owned());
        images.push("mcr.microsoft.com/k8s/csi/azuredisk-csi:v1.10.0".to_owned());
        site.write_record(&record(&files, &images, |host| format!("k8s/{host}/")));
        site.configure(&options).ok();
        let [files_port, registry_port] = site.ports;
        // In one release, the version has a `v`.
        let variable = if release == "v2.25.0" { version } else { version.trim_start_matches('v') };
        let values = [
            "{{ local_path_provisioner_helper_image_repo }}".to_owned(),
            "{{ azure_csi_plugin_image_repo }}".to_owned(),
            "{{ cilium_install_extra_flags }} {{ cilium_extra_values.operator.image.useDigest }}".to_owned(),
        ];
        let text = site.read("kubespray/offline.yml");
        let argocd = text.lines().find(|line| line.starts_with("argocd_install_url: ")).expect("a variable");
        let files_url = format!("http://hub.site.test:{files_port}/k8s");
        assert_eq!(
            argocd.replace("{{ argocd_version }}", variable),
            format!(
                "argocd_install_url: \"{{{{ files_repo }}}}/{}\"",
                raw(version).trim_start_matches("https://")
            )
        );
        assert_eq!(
            evaluate(&site.conf("kubespray/offline.yml"), &values),
            [
                format!("hub.site.test:{registry_port}/k8s/docker.io/library/busybox"),
                format!("hub.site.test:{registry_port}/k8s/mcr.microsoft.com/k8s/csi"),
                format!("--repository {files_url}/helm.cilium.io False"),
            ]
        );
        // The CLI of Cilium finds the chart.
        let index = fs::read_to_string(site.path().join("files/k8s/helm.cilium.io/index.yaml")).unwrap();
        for words in ["  \"cilium\":", "version: \"1.19.3\"", "urls: [\"cilium-1.19.3.tgz\"]"] {
            assert!(index.contains(words), "{words}: {index}");
        }
        // Without charts, the repository has no index.
        site.write_record(&before);
        site.configure(&options).ok();
        assert!(!site.path().join("files/k8s/helm.cilium.io/index.yaml").exists());
    }
}
