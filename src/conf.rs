//! Generates the configuration of a site: nginx, registry, compose, systemd, TLS, clients and Kubespray.

pub(crate) mod ca;
pub(crate) mod certificate;
pub(crate) mod charts;
pub(crate) mod clients;
pub(crate) mod compose;
pub(crate) mod container;
pub(crate) mod file_name;
pub(crate) mod generated;
pub(crate) mod host_record;
pub(crate) mod kubespray;
pub(crate) mod nginx;
pub(crate) mod ownership_check;
pub(crate) mod plain_path;
pub(crate) mod private_key;
pub(crate) mod program;
pub(crate) mod quote;
pub(crate) mod referrers;
pub(crate) mod registry;
pub(crate) mod script;
pub(crate) mod server_command;
pub(crate) mod server_files;
pub(crate) mod server_image;
pub(crate) mod setup;
pub(crate) mod systemd;
pub(crate) mod template;
#[cfg(test)]
mod tests;
pub(crate) mod tls;
pub(crate) mod trust;
pub(crate) mod users;
