//! What makes a site run: configuration for nginx, a registry, compose, systemd, TLS, clients and Kubespray, all of it
//! made of the record of the site and a few settings.

pub(crate) mod compose;
pub(crate) mod generated;
pub(crate) mod kubespray;
pub(crate) mod nginx;
pub(crate) mod registry;
pub(crate) mod script;
pub(crate) mod setup;
pub(crate) mod systemd;
pub(crate) mod tls;
pub(crate) mod trust;
pub(crate) mod users;
