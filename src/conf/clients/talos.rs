//! Talos: documents of the machine configuration, and a patch for releases that lack them.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::conf::generated::MADE;
use crate::conf::quote::Text;
use crate::conf::quote::yaml::{self, Yaml};
use crate::conf::setup::Setup;
use crate::conf::template::fill;

/// The generated file.
pub(crate) const FILE: &str = "clients/talos/registries.yaml";
/// The destination of the file.
pub(crate) const PLACE: &str = "Run `talosctl apply-config` with it as a patch, or pass it to `talosctl gen config` with \
                                `--config-patch`.\nThe host name of the site needs an entry in your DNS, or a document of kind \
                                `StaticHostConfig`.";
/// The generated file for earlier releases.
pub(crate) const PATCH_FILE: &str = "clients/talos/machine-patch.yaml";
pub(crate) const PATCH_PLACE: &str = "Run `talosctl patch machineconfig --patch @machine-patch.yaml`.\nIt includes the host name \
                                      of the site.";

const MIRROR: &str = "\
---
apiVersion: v1alpha1
kind: RegistryMirrorConfig
name: @HOST@
endpoints:
  - url: @URL@
    overridePath: true
skipFallback: true
";
const TLS: &str = "\
---
apiVersion: v1alpha1
kind: RegistryTLSConfig
name: @REGISTRY@
ca: @CA@
";
const LOGIN: &str = "\
---
apiVersion: v1alpha1
kind: RegistryAuthConfig
name: @REGISTRY@
username: @USER@
password: \"PASSWORD\"
";

/// Returns the documents for Talos 1.12 and later.
#[must_use]
pub(crate) fn documents(setup: &Setup) -> Text<Yaml> {
    let mut text = Text::fixed(MADE);
    for (host, prefix) in setup.mirrored_hosts() {
        let url = yaml::string(&setup.mirror_url(&prefix));
        text.push(&fill(MIRROR, &[("HOST", yaml::string(&host)), ("URL", url)]));
    }
    let registry = yaml::string(&setup.registry_host());
    if let Some(ca) = &setup.ca {
        text.push(&fill(TLS, &[("REGISTRY", registry.clone()), ("CA", yaml::string(ca))]));
    }
    if let Some(user) = &setup.settings.user {
        text.push(&fill(LOGIN, &[("REGISTRY", registry), ("USER", yaml::string(user))]));
    }
    text
}

const PATCH: &str = "\
machine:
  network:
    extraHostEntries:
      - ip: @IP@
        aliases: [@SITE@]
  registries:
    mirrors:
@MIRRORS@
@CONFIG@
";
const PATCH_MIRROR: &str = "      @HOST@:
        endpoints: [@URL@]
        overridePath: true
        skipFallback: true
";
const PATCH_CONFIG: &str = "    config:
      @REGISTRY@:
@TLS@
@LOGIN@
";

/// Returns the patch for Talos up to 1.11.
#[must_use]
pub(crate) fn patch(setup: &Setup) -> Text<Yaml> {
    let mirrors = setup.mirrored_hosts().into_iter().map(|(host, prefix)| {
        let url = yaml::string(&setup.mirror_url(&prefix));
        fill(PATCH_MIRROR, &[("HOST", yaml::string(&host)), ("URL", url)])
    });
    let tls = setup.ca.as_ref().map(|ca| {
        let ca = yaml::string(&BASE64_STANDARD.encode(ca));
        fill("        tls:\n          ca: @CA@\n", &[("CA", ca)])
    });
    let login = setup.settings.user.as_ref().map(|user| {
        fill(
            "        auth:\n          username: @USER@\n          password: \"PASSWORD\"\n",
            &[("USER", yaml::string(user))],
        )
    });
    let config = if tls.is_some() || login.is_some() {
        fill(
            PATCH_CONFIG,
            &[
                ("REGISTRY", yaml::string(&setup.registry_host())),
                ("TLS", tls.unwrap_or_else(Text::new)),
                ("LOGIN", login.unwrap_or_else(Text::new)),
            ],
        )
    } else {
        Text::new()
    };
    let mut text = Text::fixed(MADE);
    text.push(&fill(
        PATCH,
        &[
            ("IP", yaml::string(&setup.settings.ip.to_string())),
            ("SITE", yaml::string(&setup.settings.host)),
            ("MIRRORS", mirrors.collect()),
            ("CONFIG", config),
        ],
    ));
    text
}
