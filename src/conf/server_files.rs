//! [`ServerFiles`]: the files that a server reads and writes besides its configuration and the content of the site.

use std::net::IpAddr;

use crate::conf::plain_path::PlainPath;
use crate::conf::setup::{Setup, is_root};
use crate::conf::systemd::Unit;

/// The paths of keys and of temporary files, which depend on what runs the server.
#[derive(Debug)]
pub(crate) struct ServerFiles {
    /// The certificate and its private key. `None`: plain HTTP.
    pub certificate: Option<(PlainPath, PlainPath)>,
    /// The `htpasswd` file. `None`: no user.
    pub htpasswd: Option<PlainPath>,
    /// The directory for temporary files of nginx. `None`: the default of nginx.
    pub temporary: Option<PlainPath>,
    /// The only address that the server listens on. `None`: all addresses.
    pub bind: Option<IpAddr>,
}

impl ServerFiles {
    /// Returns the paths for a server that the script `site`, an engine or the user starts.
    #[must_use]
    pub(crate) fn of(setup: &Setup) -> Self {
        Self {
            certificate: setup.certificate(),
            htpasswd: setup.htpasswd(),
            // The default directory belongs to root.
            temporary: (!is_root()).then(|| setup.conf.child("run")),
            bind: setup.settings.bind,
        }
    }

    /// Returns the paths for a server in a container. It listens on all addresses of the container; the engine publishes
    /// its ports on that of the host.
    #[must_use]
    pub(crate) fn of_container(setup: &Setup) -> Self {
        Self { bind: None, ..Self::of(setup) }
    }

    /// Returns the paths for a unit: copies that systemd makes for its user (systemd.exec(5), `LoadCredential=`).
    #[must_use]
    pub(crate) fn of_unit(setup: &Setup, unit: Unit) -> Self {
        let credentials = PlainPath::fixed(unit.credentials);
        Self {
            certificate: setup
                .is_tls()
                .then(|| (credentials.child("server.crt"), credentials.child("server.key"))),
            htpasswd: setup.settings.user.is_some().then(|| credentials.child("htpasswd")),
            temporary: Some(PlainPath::fixed(unit.runtime)),
            bind: setup.settings.bind,
        }
    }
}
