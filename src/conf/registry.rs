//! `registry.yml`: Docker Distribution (`registry:2`, `registry:3`, `docker-registry` in Debian), read-only.

use std::fmt::Write as _;

use crate::conf::setup::Setup;

/// Returns the content of `registry.yml`.
#[must_use]
pub(crate) fn config(setup: &Setup) -> String {
    let mut text = format!(
        r"# Docker Distribution, versions 2 and 3. Made by `unbundle site`, which keeps local edits.
version: 0.1
log:
  level: info
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: {root}
  # Read-only: the storage can be mounted read-only, and several servers can share it.
  maintenance:
    readonly:
      enabled: true
    uploadpurging:
      enabled: false
  # No cache, so that blobs that `unbundle` repairs are served immediately.
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
