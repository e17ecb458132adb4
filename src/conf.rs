//! What makes a site run: configuration for nginx, a registry, compose, systemd, TLS, clients and Kubespray, all of it
//! made of the record of the site and a few settings.

pub mod compose;
pub mod generated;
pub mod kubespray;
pub mod nginx;
pub mod registry;
pub mod script;
pub mod setup;
pub mod systemd;
pub mod tls;
pub mod trust;
pub mod users;
