//! What a client needs: the name of the site, trust in its certificate, and the site as a mirror. One shell script
//! does it all on any node, and `hosts.toml` files are there for those who copy them by hand.

use std::fmt::Write as _;

use crate::conf::generated::Generated;
use crate::conf::setup::Setup;

const SCRIPT: &str = include_str!("trust.sh");

/// Writes `trust.sh`, `containerd/certs.d/…/hosts.toml`, `podman/…` and `ca.crt`.
pub(crate) fn generate(setup: &Setup, generated: &mut Generated) {
    for (host, toml) in hosts_tomls(setup) {
        generated.put(&format!("containerd/certs.d/{host}/hosts.toml"), toml.as_bytes(), 0o644);
    }
    generated.put("podman/airbundle.conf", podman(setup).as_bytes(), 0o644);
    if let Some(ca) = &setup.ca {
        generated.put("ca.crt", ca.as_bytes(), 0o644);
    }
    generated.put("trust.sh", script(setup).as_bytes(), 0o755);
}

/// The line of `/etc/hosts` by which a node finds the site.
#[must_use]
pub(crate) fn hosts_line(setup: &Setup) -> String {
    format!("{} {}", setup.settings.ip, setup.settings.host)
}

/// Where containerd finds the certificate authority on a node, after `trust.sh`.
#[must_use]
pub(crate) fn containerd_ca(setup: &Setup) -> String {
    format!("/etc/containerd/certs.d/{}/ca.crt", setup.registry_host())
}

/// The registry behind the name of a host, for when the site does not have something.
#[must_use]
pub(crate) fn server_of(host: &str) -> String {
    if host == "docker.io" { "https://registry-1.docker.io".into() } else { format!("https://{host}") }
}

/// containerd's `hosts.toml` files, by the directory that they belong to below `/etc/containerd/certs.d`.
fn hosts_tomls(setup: &Setup) -> Vec<(String, String)> {
    let url = setup.registry_url();
    let ca =
        if setup.ca.is_some() { format!("  ca = \"{}\"\n", containerd_ca(setup)) } else { String::new() };
    let toml = |server: &str, host: &str, more: &str| {
        format!(
            "# Made by `unbundle site`.\nserver = \"{server}\"\n\n[host.\"{host}\"]\n  capabilities = [\"pull\", \
             \"resolve\"]\n{ca}{more}"
        )
    };
    let mut all = vec![(setup.registry_host(), toml(&url, &url, ""))];
    for (host, prefix) in setup.prefixes().iter().filter(|(_, prefix)| !prefix.is_empty()) {
        let mirror = format!("{url}/v2/{prefix}");
        all.push((host.clone(), toml(&server_of(host), &mirror, "  override_path = true\n")));
    }
    all
}

/// For `/etc/containers/registries.conf.d`: the same for podman, skopeo, buildah and CRI-O.
fn podman(setup: &Setup) -> String {
    let registry = setup.registry_host();
    let insecure = !setup.is_tls();
    let mut text = String::from("# Made by `unbundle site`.\n");
    let _ = writeln!(text, "[[registry]]\nlocation = \"{registry}\"\ninsecure = {insecure}");
    for (host, prefix) in setup.prefixes().iter().filter(|(_, prefix)| !prefix.is_empty()) {
        let _ = write!(
            text,
            "\n[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n[[registry.mirror]]\nlocation = \
             \"{registry}/{prefix}\"\ninsecure = {insecure}\n"
        );
    }
    text
}

fn script(setup: &Setup) -> String {
    let mut tomls = String::new();
    for (host, toml) in hosts_tomls(setup) {
        let _ = write!(tomls, "put_hosts_toml '{host}' <<'END'\n{toml}END\n");
    }
    // The line before it is how the script knows the file again.
    let ca = setup.ca.as_ref().map(|ca| format!("# Made by `unbundle site`.\n{ca}")).unwrap_or_default();
    SCRIPT
        .replace("@HOST@", &setup.settings.host)
        .replace("@IP@", &setup.settings.ip.to_string())
        .replace("@REGISTRY@", &setup.registry_host())
        .replace("@USER@", setup.settings.user.as_deref().unwrap_or_default())
        .replace("@PLAIN@", if setup.is_tls() { "" } else { "yes" })
        .replace("@CA@\n", &ca)
        .replace("@PODMAN@\n", &podman(setup))
        .replace("@HOSTS_TOMLS@\n", &tomls)
}
