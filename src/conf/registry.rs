//! Docker Distribution (`registry:2`, `registry:3`, Debian's `docker-registry`) over the storage, which it never
//! writes to.

use std::fmt::Write as _;

use crate::conf::setup::Setup;

/// The content of `registry.yml`.
#[must_use]
pub(crate) fn config(setup: &Setup) -> String {
    let mut text = format!(
        r"# Docker Distribution, versions 2 and 3. Made by `unbundle site`, which keeps what you edit here.
version: 0.1
log:
  level: info
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: {root}
  # Nothing is written: the storage may be mounted read-only, and two servers may share it.
  maintenance:
    readonly:
      enabled: true
    uploadpurging:
      enabled: false
  # No cache: what `unbundle` has repaired is served at once.
http:
  addr: :{port}
  headers:
    X-Content-Type-Options: [nosniff]
",
        root = setup.registry.display(),
        port = setup.settings.registry_port,
    );
    if let Some((certificate, key)) = setup.certificate() {
        let _ = write!(
            text,
            "  tls:\n    certificate: {}\n    key: {}\n    minimumtls: tls1.2\n",
            certificate.display(),
            key.display()
        );
    }
    if let Some(htpasswd) = setup.htpasswd() {
        let _ = write!(text, "auth:\n  htpasswd:\n    realm: airbundle\n    path: {}\n", htpasswd.display());
    }
    text
}
