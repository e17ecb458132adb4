//! `registries.yaml` of k3s and RKE2, from which they generate the configuration of their containerd.

use crate::conf::generated::MADE;
use crate::conf::quote::Text;
use crate::conf::quote::yaml::{self, Yaml};
use crate::conf::setup::Setup;
use crate::conf::template::fill;

/// A distribution that reads `registries.yaml`.
pub(crate) struct Distribution {
    /// The generated file.
    pub file: &'static str,
    /// The destination of the file.
    pub place: &'static str,
    /// The CA certificate on a node.
    pub ca: &'static str,
}

/// k3s.
pub(crate) const K3S: Distribution = Distribution {
    file: "clients/k3s/registries.yaml",
    place: "Copy it to `/etc/rancher/k3s/registries.yaml` on every node, and `ca.crt` to `/etc/rancher/k3s/airbundle.crt`; then \
            restart `k3s` or `k3s-agent`.\nWith `disable-default-registry-endpoint: true` in `/etc/rancher/k3s/config.yaml` (k3s of \
            2024 and later), no node waits for the internet.",
    ca: "/etc/rancher/k3s/airbundle.crt",
};
/// RKE2.
pub(crate) const RKE2: Distribution = Distribution {
    file: "clients/rke2/registries.yaml",
    place: "Copy it to `/etc/rancher/rke2/registries.yaml` on every node, and `ca.crt` to `/etc/rancher/rke2/airbundle.crt`; then \
            restart `rke2-server` or `rke2-agent`.\nWith `disable-default-registry-endpoint: true` in \
            `/etc/rancher/rke2/config.yaml` (RKE2 of 2024 and later), no node waits for the internet.",
    ca: "/etc/rancher/rke2/airbundle.crt",
};

/// The same for releases that read no path of an endpoint.
pub(crate) const REWRITE_FILE: &str = "clients/k3s/registries-rewrite.yaml";
pub(crate) const REWRITE_PLACE: &str = "For releases that ignore the path of an endpoint: copy it in place of the file above.\n\
                                        They rewrite names only for endpoints that are in this file.";

impl Distribution {
    /// Returns the file without a login, which the end of the file accepts: `trust.sh` appends it.
    #[must_use]
    pub(crate) fn without_login(&self, setup: &Setup) -> Text<Yaml> {
        let mirrors = setup.mirrored_hosts().into_iter().map(|(host, prefix)| {
            let values = [("HOST", yaml::string(&host)), ("URL", yaml::string(&setup.mirror_url(&prefix)))];
            fill("  @HOST@:\n    endpoint: [@URL@]\n", &values)
        });
        file(setup, &mirrors.collect(), self.ca)
    }

    /// Returns the file.
    #[must_use]
    pub(crate) fn registries(&self, setup: &Setup) -> Text<Yaml> {
        let mut text = self.without_login(setup);
        text.push(&login(setup));
        text
    }
}

/// Returns the file with rewritten names.
#[must_use]
pub(crate) fn rewrite(setup: &Setup) -> Text<Yaml> {
    let mirrors = setup.mirrored_hosts().into_iter().map(|(host, prefix)| {
        let values = [
            ("HOST", yaml::string(&host)),
            ("URL", yaml::string(&setup.registry_url())),
            ("NAME", yaml::string(&format!("{prefix}/$1"))),
        ];
        fill("  @HOST@:\n    endpoint: [@URL@]\n    rewrite:\n      \"^(.*)$\": @NAME@\n", &values)
    });
    let mut text = file(setup, &mirrors.collect(), K3S.ca);
    text.push(&login(setup));
    text
}

/// Returns a file with these mirrors, without a login.
fn file(setup: &Setup, mirrors: &Text<Yaml>, ca: &'static str) -> Text<Yaml> {
    let mut text = Text::fixed(MADE);
    text.push_fixed("mirrors:\n");
    text.push(mirrors);
    text.push(&configs(setup, ca));
    text
}

/// Returns the section about the site, which ends with its TLS settings.
fn configs(setup: &Setup, ca: &'static str) -> Text<Yaml> {
    if setup.ca.is_none() && setup.settings.user.is_none() {
        return Text::new();
    }
    let tls = if setup.ca.is_some() {
        fill("    tls:\n      ca_file: @CA@\n", &[("CA", Text::fixed(ca))])
    } else {
        Text::new()
    };
    fill(
        "configs:\n  @REGISTRY@:\n@TLS@\n",
        &[("REGISTRY", yaml::string(&setup.registry_host())), ("TLS", tls)],
    )
}

fn login(setup: &Setup) -> Text<Yaml> {
    let Some(user) = &setup.settings.user else { return Text::new() };
    fill("    auth:\n      username: @USER@\n      password: \"PASSWORD\"\n", &[("USER", yaml::string(user))])
}
