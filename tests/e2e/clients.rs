//! The configuration of clients: what `trust.sh` writes on each kind of node, and the files in `conf/clients`.

use std::fs;

use crate::site::Site;

/// The shell function `node NAME`, which makes a directory with the files of a node and runs `trust.sh` on it.
const NODE: &str = r#"
root=; said=
node() { # name, directories...
    root="$HOST_COPY/$1"; said="$HOST_COPY/$1.said"; shift
    mkdir -p "$root/etc"
    for directory; do mkdir -p "$root/$directory"; done
}
trust() { sh "$CONF/trust.sh" --root "$root" "$@" >"$said" 2>&1; }
has() { test -e "$root/$1" || { echo "no $1" >&2; find "$root" -type f >&2; cat "$said" >&2; exit 1; }; }
lacks() { test ! -e "$root/$1" || { echo "$1 exists" >&2; exit 1; }; }
"#;

#[test]
fn trust_sh_writes_what_each_distribution_of_kubernetes_reads() {
    let site = Site::full();
    site.configure_user(&["--user", "carla"]).ok();
    site.run_on_host(&format!(
        r#"{NODE}
export AIRBUNDLE_PASSWORD="it's"
for distribution in k3s rke2; do
    node $distribution etc/rancher/$distribution; trust
    file=etc/rancher/$distribution/registries.yaml
    has $file; has etc/rancher/$distribution/airbundle.crt; lacks etc/containerd; lacks etc/containers
    grep -q "ca_file: /etc/rancher/$distribution/airbundle.crt" "$root/$file"
    grep -q "endpoint: \[\"https://hub.site.test:$REGISTRY/v2/k8s/quay.io\"\]" "$root/$file"
    grep -q "password: 'it''s'" "$root/$file"
    test "$(stat -c %a "$root/$file")" = 600
    grep -q "$distribution reads it when it starts" "$said"
    # A file of somebody else is kept.
    echo mine >"$root/$file"; trust; grep -q mine "$root/$file.before-airbundle"
    trust --remove; grep -q mine "$root/$file"; lacks etc/rancher/$distribution/airbundle.crt
done
# It merges this file into the configuration of its containerd.
node k0s etc/k0s; trust
has etc/k0s/containerd.d/airbundle.toml; has etc/containerd/certs.d/quay.io/hosts.toml; lacks etc/containers
# A node of k3s that has podman, too.
node both etc/rancher/k3s etc/containers; trust
has etc/containers/registries.conf.d/50-airbundle.conf; lacks etc/docker
# No script runs there.
node talos; echo 'ID=talos' >"$root/etc/os-release"
if trust; then exit 1; fi
grep -q 'conf/clients/talos' "$said"; lacks etc/containerd; lacks etc/hosts
# Any other node: programs can be installed later.
node plain; trust
has etc/containerd/certs.d/quay.io/hosts.toml; has etc/containers/registries.conf.d/50-airbundle.conf
lacks etc/rancher; lacks etc/k0s"#
    ));
}

#[test]
fn trust_sh_says_if_containerd_does_not_read_its_files() {
    let site = Site::full();
    site.configure(&[]).ok();
    let v2 = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry";
    let v3 = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n";
    let path = "config_path = \"/etc/containerd/certs.d\"\n";
    for (number, (config, part, words)) in [
        (format!("{v2}]\n  {path}"), "", None),
        (format!("{v3}{path}"), "", None),
        (format!("{v3}config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n"), "", None),
        ("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nregistry.config_path = \"/etc/containerd/certs.d\"\n".to_owned(), "", None),
        ("version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n".to_owned(), &*format!("{v2}]\n{path}"), None),
        ("version = 2\n".to_owned(), "", Some("[plugins.\"io.containerd.grpc.v1.cri\".registry]")),
        (format!("{v2}]\n# {path}"), "", Some("io.containerd.grpc.v1.cri")),
        (format!("{v2}.mirrors.\"docker.io\"]\n  endpoint = [\"https://x\"]\n"), "", Some("remove the registry.mirrors")),
        (format!("{v2}]\n{path}{}", "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"x\"]\n"), "", Some("remove the registry.mirrors")),
        (format!("{}]\n{path}", v2.replace('2', "3")), "", Some("[plugins.'io.containerd.cri.v1.images'.registry]")),
        (format!("{v3}config_path = ''\n"), "", Some("io.containerd.cri.v1.images")),
    ]
    .into_iter()
    .enumerate()
    {
        let root = site.directory.path().join(format!("root{number}"));
        fs::create_dir_all(root.join("etc/containerd/conf.d")).unwrap();
        fs::write(root.join("etc/containerd/config.toml"), &config).unwrap();
        if !part.is_empty() {
            fs::write(root.join("etc/containerd/conf.d/part.toml"), part).unwrap();
        }
        let said = site.run_on_host(&format!("sh $CONF/trust.sh --root {}", root.display()));
        let lines: Vec<_> = said.lines().filter(|line| line.contains("config.toml")).collect();
        match words {
            None => assert!(lines.is_empty(), "{config}: {said}"),
            Some(words) => {
                assert!(lines.len() == 1 && lines[0].contains(words), "{config}: {said}");
                assert!(lines[0].contains("set config_path = \"/etc/containerd/certs.d\""), "{said}");
            }
        }
    }
}

#[test]
fn an_image_that_the_site_lacks_is_an_error_of_the_site() {
    let site = Site::full();
    site.configure(&[]).ok();
    // Packets to other hosts are dropped, as behind the firewall of a site.
    site.run_on_host(
        r#"
ip link add d0 type veth peer name d1; ip link set d1 up; ip link set d0 up; ip addr add 10.1.1.1/24 dev d0
ip neigh add 10.1.1.2 lladdr 02:00:00:00:00:99 dev d0; ip route add default via 10.1.1.2
echo '10.9.9.9 registry-1.docker.io docker.io quay.io' >>/etc/hosts
sh $CONF/trust.sh; SITE_ENGINE=nginx $CONF/site start; engine
pull() { timeout 20 ctr --address /run/docker/containerd/containerd.sock images pull --hosts-dir /etc/containerd/certs.d "$1" 2>&1; }
for image in docker.io/library/nosuch:1 quay.io/coreos/nosuch:1; do
    if said=$(pull $image); then exit 1; else test $? != 124; fi
    case $said in *registry-1.docker.io* | *'//quay.io'*) echo "$said" >&2; exit 1 ;; esac
    case $said in *"not found"*) ;; *) echo "$said" >&2; exit 1 ;; esac
done
if timeout 20 skopeo inspect --raw docker://quay.io/coreos/nosuch:1 2>/run/said; then exit 1; else test $? != 124; fi
grep -q 'hub.site.test' /run/said
# On request, the original registry is the next one.
"$UNBUNDLE" site "$SITE" --upstream-fallback; sh $CONF/trust.sh
grep -q 'server = "https://registry-1.docker.io"' /etc/containerd/certs.d/docker.io/hosts.toml
grep -q '^location = "quay.io"' /etc/containers/registries.conf.d/50-airbundle.conf
"$UNBUNDLE" site "$SITE" --no-upstream-fallback; sh $CONF/trust.sh
grep -q 'server = "https://hub.site.test' /etc/containerd/certs.d/docker.io/hosts.toml
$CONF/site stop"#,
    );
}

#[test]
fn every_client_has_a_file_that_the_readme_and_the_catalog_name() {
    let site = Site::full();
    site.configure_user(&["--user", "carla"]).ok();
    let (readme, page) = (
        site.read("clients/README.md"),
        fs::read_to_string(site.path().join("files/index.html")).unwrap().replace("<wbr>", ""),
    );
    let registry = format!("hub.site.test:{}", site.ports[1]);
    for (file, words) in [
        ("containerd/certs.d/quay.io/hosts.toml", format!("[host.\"https://{registry}/v2/k8s/quay.io\"]")),
        ("podman/airbundle.conf", format!("location = \"{registry}/k8s/quay.io\"")),
        ("clients/k3s/registries.yaml", format!("endpoint: [\"https://{registry}/v2/k8s/quay.io\"]")),
        ("clients/rke2/registries.yaml", "username: \"carla\"".to_owned()),
        ("clients/k3s/registries-rewrite.yaml", "\"^(.*)$\": \"k8s/quay.io/$1\"".to_owned()),
        ("clients/k0s/airbundle.toml", "config_path = \"/etc/containerd/certs.d\"".to_owned()),
        ("clients/talos/registries.yaml", "kind: RegistryMirrorConfig".to_owned()),
        ("clients/talos/registries.yaml", "skipFallback: true".to_owned()),
        ("clients/talos/machine-patch.yaml", "overridePath: true".to_owned()),
        ("clients/openshift/mirrors.yaml", "kind: ImageTagMirrorSet".to_owned()),
        ("clients/openshift/mirrors.yaml", "mirrorSourcePolicy: NeverContactSource".to_owned()),
        ("clients/openshift/mirrors.yaml", format!("\"{}\": \"-----BEGIN", registry.replace(':', ".."))),
        (
            "clients/kubeadm/cluster.yaml",
            format!("imageRepository: \"{registry}/k8s/registry.k8s.io/coredns\""),
        ),
        ("clients/kind/cluster.yaml", "containerPath: /etc/containerd/certs.d".to_owned()),
        ("clients/minikube/start.sh", format!("--image-repository='{registry}/k8s/registry.k8s.io'")),
        ("clients/docker/daemon.json", "{}".to_owned()),
    ] {
        let text = site.read(file);
        assert!(text.contains(&words), "{file}: {words}: {text}");
        let name = file.strip_suffix("/quay.io/hosts.toml").unwrap_or(file);
        assert!(readme.contains(&format!("`{name}`")), "{file}");
        assert!(page.contains(&format!("<code>{name}</code>")), "{file}");
        let first = words.replace('"', "&quot;").replace('\'', "&#39;");
        assert!(page.contains(&first) || page.contains(&words), "{file}: {first}");
    }
    site.run_on_host(
        "sh -n \"$CONF/clients/minikube/start.sh\"; test -s \"$CONF/containerd/certs.d/hub.site.test:$REGISTRY/ca.crt\"",
    );
    // Without TLS.
    site.configure(&["--tls", "off"]).ok();
    assert!(
        site.read("clients/docker/daemon.json")
            .contains(&format!("\"insecure-registries\": [\n    \"{registry}\""))
    );
    assert!(
        site.read("clients/k3s/registries.yaml").contains(&format!("[\"http://{registry}/v2/k8s/quay.io\"]"))
    );
}

#[test]
fn servers_listen_on_one_address_if_the_site_is_bound_to_it() {
    let site = Site::full();
    site.configure(&["--tls", "off", "--bind", "127.0.0.1"]).ok();
    let [files, registry] = site.ports;
    site.run_on_host(&format!(
        r#"SITE_ENGINE=nginx $CONF/site start
test "$(ss -Hltn 'sport = :{files} or sport = :{registry}' | awk '{{ print $4 }}' | sort | tr '\n' ' ')" = "127.0.0.1:{files} 127.0.0.1:{registry} "
$CONF/site status; $CONF/site stop
docker-registry serve "$CONF/registry.yml" >/run/log 2>&1 &
for _ in $(seq 100); do curl -s http://127.0.0.1:{registry}/v2/ >/run/answer && break; sleep 0.1; done
test "$(ss -Hltn 'sport = :{registry}' | awk '{{ print $4 }}')" = "127.0.0.1:{registry}"
kill $!; wait $! || true"#
    ));
    // A container listens on all of its addresses, and its ports are published on this one.
    assert!(site.read("site").contains("published='127.0.0.1:'"));
    assert!(site.read("compose.yaml").contains(&format!("- \"127.0.0.1:{files}:{files}\"")));
    assert!(site.read("container/nginx.conf").contains(&format!("listen {files};")));
    assert!(
        site.read("systemd/airbundle-registry.service").contains("Environment=OTEL_TRACES_EXPORTER=none")
    );
    assert!(site.configure(&["--bind", "0.0.0.0"]).stderr.contains("servers cannot listen on it"));
    site.configure(&["--no-bind"]).ok();
    assert!(site.read("nginx.conf").contains(&format!("listen {files};")));
    assert!(!site.conf("container").join("nginx.conf").exists());
}

#[test]
fn a_node_whose_clock_is_years_behind_accepts_the_certificate() {
    let site = Site::full();
    site.configure(&[]).ok();
    site.run_on_host(
        r#"openssl x509 -noout -startdate -in "$CONF/tls/server.crt" | grep 'Jan  1 00:00:00 2000'
# 2010-01-01
openssl verify -attime 1262304000 -CAfile "$CONF/ca.crt" "$CONF/tls/server.crt""#,
    );
}
