//! Client configuration: host name, CA certificate and registry mirrors.
//!
//! The script `trust.sh` configures a node; the `hosts.toml` files are for copying by hand.

use crate::conf::clients::k0s;
use crate::conf::clients::k3s::{K3S, RKE2};
use crate::conf::file_name::FileName;
use crate::conf::generated::{Generated, MADE};
use crate::conf::quote::Text;
use crate::conf::quote::shell::{self, Shell};
use crate::conf::quote::toml::{self, Toml};
use crate::conf::setup::Setup;
use crate::conf::template::fill;

const SCRIPT: &str = include_str!("trust.sh");

/// `server` is the last one that containerd requests: the site again, or the original registry.
const HOSTS_TOML: &str = "\
# Made by `unbundle site`.
server = @SERVER@

[host.@URL@]
  capabilities = [\"pull\", \"resolve\"]
@CA@
@OVERRIDE_PATH@
";
const REGISTRY: &str = "\
# Made by `unbundle site`.
[[registry]]
location = @REGISTRY@
insecure = @INSECURE@
";
/// The site in place of a registry.
const REPLACED: &str = "
[[registry]]
prefix = @HOST@
location = @MIRROR@
insecure = @INSECURE@
";
/// The site as a mirror of a registry, which is requested for what the site lacks.
const MIRROR: &str = "
[[registry]]
prefix = @HOST@
location = @HOST@
[[registry.mirror]]
location = @MIRROR@
insecure = @INSECURE@
";

/// Adds `trust.sh`, `containerd/certs.d/…/hosts.toml`, `podman/airbundle.conf` and `ca.crt`.
pub(crate) fn generate(setup: &Setup, generated: &mut Generated) {
    for mirror in mirrors(setup) {
        if let Some(directory) = FileName::fixed("containerd/certs.d").foreign(&mirror.host) {
            generated.put(directory.child("hosts.toml").as_str(), mirror.toml.as_bytes(), 0o644);
        }
    }
    generated.put("podman/airbundle.conf", podman(setup).as_bytes(), 0o644);
    if let Some(ca) = &setup.ca {
        generated.put("ca.crt", ca.as_bytes(), 0o644);
        if let Some(directory) = FileName::fixed("containerd/certs.d").foreign(&setup.registry_host()) {
            generated.put(directory.child("ca.crt").as_str(), ca.as_bytes(), 0o644);
        }
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

/// Returns the URL of the last source of images of `host`: the site, or the original registry, which has images that the
/// site lacks.
#[must_use]
pub(crate) fn last_source(setup: &Setup, host: &str) -> String {
    match host {
        _ if !setup.settings.upstream_fallback => setup.registry_url(),
        "docker.io" => "https://registry-1.docker.io".into(),
        _ => format!("https://{host}"),
    }
}

/// The configuration of containerd for one registry.
struct Mirror {
    /// The registry, which is its directory in `/etc/containerd/certs.d`.
    host: String,
    /// The file `hosts.toml`.
    toml: Text<Toml>,
    /// The name of the table of HTTP headers for the site, with brackets.
    header_table: Text<Toml>,
}

/// Returns the configuration of containerd for the site, and for the registries that it mirrors.
fn mirrors(setup: &Setup) -> Vec<Mirror> {
    let ca = match &setup.ca {
        Some(_) => fill("  ca = @PATH@\n", &[("PATH", toml::string(&containerd_ca(setup)))]),
        None => Text::new(),
    };
    let mirror = |host: String, server: &str, url: &str, override_path: &'static str| {
        let values = [
            ("SERVER", toml::string(server)),
            ("URL", toml::string(url)),
            ("CA", ca.clone()),
            ("OVERRIDE_PATH", Text::fixed(override_path)),
        ];
        Mirror { host, toml: fill(HOSTS_TOML, &values), header_table: fill("  [host.@URL@.header]", &values) }
    };
    let url = setup.registry_url();
    let mut all = vec![mirror(setup.registry_host(), &url, &url, "")];
    all.extend(setup.mirrored_hosts().into_iter().map(|(host, prefix)| {
        let server = last_source(setup, &host);
        mirror(host, &server, &setup.mirror_url(&prefix), "  override_path = true\n")
    }));
    all
}

/// Returns all `hosts.toml` files, each after a comment with its path.
#[must_use]
pub(crate) fn hosts_tomls(setup: &Setup) -> String {
    let file = |mirror: Mirror| {
        format!("# /etc/containerd/certs.d/{}/hosts.toml\n{}", mirror.host, mirror.toml.as_str())
    };
    mirrors(setup).into_iter().map(file).collect::<Vec<_>>().join("\n")
}

/// Returns the file for `/etc/containers/registries.conf.d`: the same mirrors for podman, skopeo, buildah and
/// CRI-O.
#[must_use]
pub(crate) fn podman(setup: &Setup) -> Text<Toml> {
    let registry = setup.registry_host();
    let insecure = Text::fixed(if setup.is_tls() { "false" } else { "true" });
    let mut text = fill(REGISTRY, &[("REGISTRY", toml::string(&registry)), ("INSECURE", insecure.clone())]);
    for (host, prefix) in setup.mirrored_hosts() {
        let mirror = toml::string(&setup.mirror_name(&prefix));
        let values = [("HOST", toml::string(&host)), ("MIRROR", mirror), ("INSECURE", insecure.clone())];
        text.push(&fill(if setup.settings.upstream_fallback { MIRROR } else { REPLACED }, &values));
    }
    text
}

fn script(setup: &Setup) -> Text<Shell> {
    let put = |mirror: Mirror| {
        fill(
            "put_hosts_toml @HOST@ @TABLE@ @TOML@\n",
            &[
                ("HOST", shell::word(&mirror.host)),
                ("TABLE", shell::word(mirror.header_table.as_str())),
                ("TOML", shell::word(mirror.toml.as_str())),
            ],
        )
    };
    // The script recognizes files of its own by this comment.
    let ca = setup.ca.as_ref().map(|ca| format!("{MADE}{ca}"));
    fill(
        SCRIPT,
        &[
            ("HOST", shell::word(&setup.settings.host)),
            ("IP", shell::word(&setup.settings.ip.to_string())),
            ("REGISTRY", shell::word(&setup.registry_host())),
            ("USER", shell::word(setup.settings.user.as_deref().unwrap_or_default())),
            ("PLAIN", shell::word(if setup.is_tls() { "" } else { "yes" })),
            ("CA", shell::word(&ca.unwrap_or_default())),
            ("PODMAN", shell::word(podman(setup).as_str())),
            ("K3S", shell::word(K3S.without_login(setup).as_str())),
            ("RKE2", shell::word(RKE2.without_login(setup).as_str())),
            ("K0S", shell::word(k0s::DROP_IN)),
            ("HOSTS_TOMLS", mirrors(setup).into_iter().map(put).collect()),
        ],
    )
}
