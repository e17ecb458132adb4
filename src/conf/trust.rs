//! Client configuration: host name, CA certificate and registry mirrors.
//!
//! The script `trust.sh` configures a node; the `hosts.toml` files are for copying by hand.

use std::fmt::Write as _;

use crate::conf::generated::Generated;
use crate::conf::setup::Setup;
use crate::conf::template::fill;

const SCRIPT: &str = include_str!("trust.sh");

/// Adds `trust.sh`, `containerd/certs.d/…/hosts.toml`, `podman/airbundle.conf` and `ca.crt`.
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

/// Returns the line for `/etc/hosts` of a client.
#[must_use]
pub(crate) fn hosts_line(setup: &Setup) -> String {
    format!("{} {}", setup.settings.ip, setup.settings.host)
}

/// Returns the path of the CA certificate for containerd on a node, where `trust.sh` writes it.
#[must_use]
pub(crate) fn containerd_ca(setup: &Setup) -> String {
    format!("/etc/containerd/certs.d/{}/ca.crt", setup.registry_host())
}

/// Returns the URL of the original registry of `host`, the fallback for images that the site lacks.
#[must_use]
pub(crate) fn upstream_url(host: &str) -> String {
    if host == "docker.io" { "https://registry-1.docker.io".into() } else { format!("https://{host}") }
}

/// Returns the `hosts.toml` files of containerd, by their directory in `/etc/containerd/certs.d`.
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
    for (host, prefix) in setup.mirrored_hosts() {
        let mirror = format!("{url}/v2/{prefix}");
        let toml = toml(&upstream_url(&host), &mirror, "  override_path = true\n");
        all.push((host, toml));
    }
    all
}

/// Returns the file for `/etc/containers/registries.conf.d`: the same mirrors for podman, skopeo, buildah and
/// CRI-O.
fn podman(setup: &Setup) -> String {
    let registry = setup.registry_host();
    let insecure = !setup.is_tls();
    let mut text = String::from("# Made by `unbundle site`.\n");
    let _ = writeln!(text, "[[registry]]\nlocation = \"{registry}\"\ninsecure = {insecure}");
    for (host, prefix) in setup.mirrored_hosts() {
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
    // The script recognizes files of its own by this comment.
    let ca = setup.ca.as_ref().map(|ca| format!("# Made by `unbundle site`.\n{ca}"));
    fill(
        SCRIPT,
        &[
            ("HOST", &setup.settings.host),
            ("IP", &setup.settings.ip.to_string()),
            ("REGISTRY", &setup.registry_host()),
            ("USER", setup.settings.user.as_deref().unwrap_or_default()),
            ("PLAIN", if setup.is_tls() { "" } else { "yes" }),
            ("CA", ca.as_deref().unwrap_or_default()),
            ("PODMAN", &podman(setup)),
            ("HOSTS_TOMLS", &tomls),
        ],
    )
}
