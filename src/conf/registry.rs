//! `registry.yml`: Docker Distribution (`registry:2`, `registry:3`, `docker-registry` in Debian), read-only.

use crate::conf::generated::Generated;
use crate::conf::quote::Text;
use crate::conf::quote::yaml::{self, Yaml};
use crate::conf::server_files::ServerFiles;
use crate::conf::setup::Setup;
use crate::conf::systemd::REGISTRY;
use crate::conf::template::fill;

const CONFIG: &str = r"# Docker Distribution, versions 2 and 3. Made by `unbundle site`, which keeps local edits.
version: 0.1
log:
  level: info
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: @ROOT@
  # Read-only: the storage can be mounted read-only, and several servers can share it.
  maintenance:
    readonly:
      enabled: true
    uploadpurging:
      enabled: false
  # No cache, so that blobs that `unbundle` repairs are served immediately.
http:
  addr: :@PORT@
  headers:
    X-Content-Type-Options: [nosniff]
@HSTS@
@TLS@
@AUTH@
";
const TLS: &str = "  tls:\n    certificate: @CERTIFICATE@\n    key: @KEY@\n    minimumtls: tls1.2\n";
const AUTH: &str = "auth:\n  htpasswd:\n    realm: airbundle\n    path: @HTPASSWD@\n";

/// Adds `registry.yml`, and the same for the systemd unit.
pub(crate) fn generate(setup: &Setup, generated: &mut Generated) {
    for (name, files) in [
        ("registry.yml", ServerFiles::of(setup)),
        ("systemd/registry.yml", ServerFiles::of_unit(setup, REGISTRY)),
    ] {
        generated.put(name, config(setup, &files).as_bytes(), 0o644);
    }
}

fn config(setup: &Setup, files: &ServerFiles) -> Text<Yaml> {
    let tls = files.certificate.as_ref().map(|(certificate, key)| {
        fill(TLS, &[("CERTIFICATE", yaml::string(certificate.as_str())), ("KEY", yaml::string(key.as_str()))])
    });
    let auth = files.htpasswd.as_ref().map(|path| fill(AUTH, &[("HTPASSWD", yaml::string(path.as_str()))]));
    let hsts = setup
        .hsts()
        .map(|value| fill("    Strict-Transport-Security: [@VALUE@]\n", &[("VALUE", yaml::string(value))]));
    fill(
        CONFIG,
        &[
            ("ROOT", yaml::string(setup.registry.as_str())),
            ("PORT", Text::number(setup.settings.registry_port)),
            ("HSTS", hsts.unwrap_or_else(Text::new)),
            ("TLS", tls.unwrap_or_else(Text::new)),
            ("AUTH", auth.unwrap_or_else(Text::new)),
        ],
    )
}
