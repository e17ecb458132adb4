//! [`Mount`] and [`Privileges`]: what the containers of a site have access to.

use std::net::IpAddr;

use crate::conf::plain_path::PlainPath;
use crate::conf::setup::{Setup, is_root};

/// A directory or file of the host at the same path in a container, read-only.
#[derive(Debug, Clone)]
pub(crate) struct Mount(PlainPath);

impl Mount {
    /// Returns the volume in the notation of docker, podman and compose. `z` is for `SELinux`.
    #[must_use]
    pub(crate) fn volume(&self) -> String {
        let path = self.0.as_str();
        format!("{path}:{path}:ro,z")
    }

    /// Returns what nginx reads for files and images, or else for files only.
    #[must_use]
    pub(crate) fn of_nginx(setup: &Setup, with_images: bool) -> Vec<Self> {
        let mut paths = Self::keys(setup);
        paths.push(setup.files.clone());
        if with_images {
            let conf = &setup.conf;
            paths.extend([
                configuration(setup, "nginx.conf"),
                conf.child("registry-api"),
                setup.registry.clone(),
            ]);
        } else {
            paths.push(configuration(setup, "nginx-files.conf"));
        }
        paths.into_iter().map(Self).collect()
    }

    /// Returns what a registry reads.
    #[must_use]
    pub(crate) fn of_registry(setup: &Setup) -> Vec<Self> {
        let mut paths = Self::keys(setup);
        paths.extend([configuration(setup, "registry.yml"), setup.registry.clone()]);
        paths.into_iter().map(Self).collect()
    }

    fn keys(setup: &Setup) -> Vec<PlainPath> {
        let tls = setup.is_tls().then(|| setup.conf.child("tls"));
        tls.into_iter().chain(setup.htpasswd()).collect()
    }
}

/// Returns what precedes a published port: the address of the host and `:`, or nothing for all addresses.
#[must_use]
pub(crate) fn published(setup: &Setup) -> String {
    setup.settings.bind.map_or_else(String::new, |address| format!("{}:", url_host(address)))
}

/// Returns an address as in a URL.
#[must_use]
pub(crate) fn url_host(address: IpAddr) -> String {
    if address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
}

/// Returns the path of a server's configuration for a container: one of its own if the servers of the host listen on one
/// address, which a container does not have.
#[must_use]
pub(crate) fn configuration(setup: &Setup, name: &'static str) -> PlainPath {
    if setup.settings.bind.is_some() {
        setup.conf.child("container").child(name)
    } else {
        setup.conf.child(name)
    }
}

/// The user and the capabilities of a container. All other capabilities are dropped.
#[derive(Debug, Clone)]
pub(crate) struct Privileges {
    /// The owner of the private key, `UID:GID`, unless that is root.
    pub user: Option<String>,
    pub capabilities: Vec<&'static str>,
}

impl Privileges {
    /// Returns the privileges of nginx, whose workers have a user of their own if root starts it.
    #[must_use]
    pub(crate) fn of_nginx(ports: &[u16]) -> Self {
        Self::of(ports, &["CHOWN", "SETGID", "SETUID"])
    }

    #[must_use]
    pub(crate) fn of_registry(ports: &[u16]) -> Self {
        Self::of(ports, &[])
    }

    fn of(ports: &[u16], of_root: &[&'static str]) -> Self {
        let bind = ports.iter().any(|port| *port < 1024).then_some("NET_BIND_SERVICE");
        if is_root() {
            return Self { user: None, capabilities: of_root.iter().copied().chain(bind).collect() };
        }
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        let user = format!("{}:{}", user.as_raw(), group.as_raw());
        Self { user: Some(user), capabilities: bind.into_iter().collect() }
    }
}

/// Returns the directories that nginx writes to: its PID file and temporary files, depending on the image and on the
/// user.
#[must_use]
pub(crate) fn temporary_of_nginx(setup: &Setup) -> Vec<PlainPath> {
    let mut paths = ["/run", "/tmp", "/var/cache/nginx", "/var/lib/nginx"].map(PlainPath::fixed).to_vec();
    if !is_root() {
        paths.push(setup.conf.child("run"));
    }
    paths
}
