//! `clients/`: the configuration of nodes and tools that do not read the files of `trust.sh`, with the names of the site.

pub(crate) mod k0s;
pub(crate) mod k3s;
pub(crate) mod kind;
pub(crate) mod kubeadm;
pub(crate) mod minikube;
pub(crate) mod openshift;
pub(crate) mod talos;

use crate::conf::generated::Generated;
use crate::conf::setup::Setup;
use crate::conf::trust;
use crate::site::catalog::Client;

/// Adds the files below `clients`, and `clients/README.md`, which says where each belongs.
pub(crate) fn generate(clients: &[Client], generated: &mut Generated) {
    let mut readme = String::from(README);
    for Client { name, file, place, text } in clients {
        readme.extend(["\n## ", name, "\n\n`", file, "`\n\n", place, "\n"]);
        // The others are generated for all sites.
        if file.starts_with("clients/") {
            generated.put(file, text.as_bytes(), if *file == minikube::FILE { 0o755 } else { 0o644 });
        }
    }
    generated.put("clients/README.md", readme.as_bytes(), 0o644);
}

const README: &str = "# Clients of this site

Made by `unbundle site`. `trust.sh` configures a node completely: the host name in `/etc/hosts`, the CA certificate, and
the mirrors of containerd, podman, CRI-O, k3s, RKE2 and k0s. The files here are for nodes where it cannot run, and for
configuration management. Paths are relative to the parent directory.

All of them name the site as the only source: an image that the site lacks is an error at once, and no node waits for
the internet.
";

/// Returns the configuration of every kind of client, for the README and the catalog.
#[must_use]
pub(crate) fn all(setup: &Setup) -> Vec<Client> {
    let client = |name, file, place, text: &str| Client { name, file, place, text: text.to_owned() };
    let mut all = vec![
        client(
            "containerd",
            "containerd/certs.d",
            "Copy the directory to `/etc/containerd/certs.d`, and set `config_path = \"/etc/containerd/certs.d\"` in \
             `/etc/containerd/config.toml`.\nchanges of these files need no restart, a change of `config.toml` does.",
            &trust::hosts_tomls(setup),
        ),
        client(
            "podman, CRI-O, skopeo, buildah",
            "podman/airbundle.conf",
            "Copy it to `/etc/containers/registries.conf.d/50-airbundle.conf`, and `ca.crt` to \
             `/etc/containers/certs.d/HOST:PORT/ca.crt`.\nAfter that, run `systemctl reload crio`; the others read it at every \
             start.",
            trust::podman(setup).as_str(),
        ),
        client("k3s", k3s::K3S.file, k3s::K3S.place, k3s::K3S.registries(setup).as_str()),
        client("RKE2", k3s::RKE2.file, k3s::RKE2.place, k3s::RKE2.registries(setup).as_str()),
        client(
            "k3s and RKE2 of 2023 and earlier",
            k3s::REWRITE_FILE,
            k3s::REWRITE_PLACE,
            k3s::rewrite(setup).as_str(),
        ),
        client("k0s", k0s::FILE, k0s::PLACE, k0s::DROP_IN),
        client("Talos 1.12 and later", talos::FILE, talos::PLACE, talos::documents(setup).as_str()),
        client("Talos up to 1.11", talos::PATCH_FILE, talos::PATCH_PLACE, talos::patch(setup).as_str()),
        client("OpenShift", openshift::FILE, openshift::PLACE, openshift::manifests(setup).as_str()),
    ];
    if let Some(text) = kubeadm::configuration(setup) {
        all.push(client("kubeadm", kubeadm::FILE, kubeadm::PLACE, text.as_str()));
    }
    all.push(client("kind", kind::FILE, kind::PLACE, kind::cluster(setup).as_str()));
    if let Some(text) = minikube::script(setup) {
        all.push(client("minikube", minikube::FILE, minikube::PLACE, text.as_str()));
    }
    all.push(client("docker", "clients/docker/daemon.json", DOCKER, &docker(setup)));
    all
}

const DOCKER: &str = "Merge it into `/etc/docker/daemon.json` and restart docker; copy `ca.crt` to \
                      `/etc/docker/certs.d/HOST:PORT/ca.crt`.\ndocker accepts no mirror with a path: pull by the names in the \
                      catalog, such as `HOST:PORT/k8s/docker.io/library/nginx:1.27`.";

/// Returns the settings of docker: plain HTTP, and the site as mirror of Docker Hub if its images have no prefix.
fn docker(setup: &Setup) -> String {
    let mut settings = serde_json::Map::new();
    if !setup.is_tls() {
        settings.insert("insecure-registries".to_owned(), [setup.registry_host()].into_iter().collect());
    }
    if setup.prefixes().iter().any(|(host, prefix)| host == "docker.io" && prefix.is_empty()) {
        settings.insert("registry-mirrors".to_owned(), [setup.registry_url()].into_iter().collect());
    }
    format!("{:#}\n", serde_json::Value::Object(settings))
}
