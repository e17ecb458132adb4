//! `registry.yml`: Docker Distribution (`registry:2`, `registry:3`, `docker-registry` in Debian), read-only.

use std::net::SocketAddr;

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
  # Do not run `registry garbage-collect --delete-untagged`: it removes images that have only a digest, and those of single
  # platforms. `unbundle prune` removes what no bundle needs.
  # No cache, so that blobs that `unbundle` repairs are served immediately.
http:
  addr: @ADDRESS@
  headers:
    X-Content-Type-Options: [nosniff]
@HSTS@
@TLS@
@AUTH@
";
const TLS: &str = "  tls:\n    certificate: @CERTIFICATE@\n    key: @KEY@\n    minimumtls: tls1.2\n";
const AUTH: &str = "auth:\n  htpasswd:\n    realm: airbundle\n    path: @HTPASSWD@\n";

/// Adds `registry.yml`, and the same for the systemd unit, and for a container if that differs.
pub(crate) fn generate(setup: &Setup, generated: &mut Generated) {
    let mut all = vec![
        ("registry.yml", ServerFiles::of(setup)),
        ("systemd/registry.yml", ServerFiles::of_unit(setup, REGISTRY)),
    ];
    if setup.settings.bind.is_some() {
        all.push(("container/registry.yml", ServerFiles::of_container(setup)));
    }
    for (name, files) in all {
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
    let port = setup.settings.registry_port;
    let address = match files.bind {
        Some(address) => yaml::string(&SocketAddr::new(address, port).to_string()),
        None => fill(":@PORT@", &[("PORT", Text::number(port))]),
    };
    fill(
        CONFIG,
        &[
            ("ROOT", yaml::string(setup.registry.as_str())),
            ("ADDRESS", address),
            ("HSTS", hsts.unwrap_or_else(Text::new)),
            ("TLS", tls.unwrap_or_else(Text::new)),
            ("AUTH", auth.unwrap_or_else(Text::new)),
        ],
    )
}
