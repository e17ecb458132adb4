//! The script `site`: starts and stops the site with an engine of the host.

use std::net::Ipv4Addr;

use crate::conf::compose;
use crate::conf::container::{Mount, Privileges, configuration, published, temporary_of_nginx, url_host};
use crate::conf::program::permanent_path;
use crate::conf::quote::Text;
use crate::conf::quote::shell::{self, Shell};
use crate::conf::server_image::ServerImage;
use crate::conf::setup::Setup;
use crate::conf::template::fill;
use crate::conf::users::ServerUser;

const SCRIPT: &str = include_str!("site.sh");

/// Returns the content of `site`.
#[must_use]
pub(crate) fn script(setup: &Setup) -> Text<Shell> {
    let program = permanent_path();
    let (nginx, registry) = (ServerImage::find(setup, "nginx"), ServerImage::find(setup, "registry"));
    let reference = |image: &Option<ServerImage>| image.as_ref().map(|image| image.reference.clone());
    let ids = |image: &Option<ServerImage>| image.as_ref().map(ServerImage::id_list).unwrap_or_default();
    let flag = |is: bool| if is { "yes" } else { "" };
    let ports = [setup.settings.files_port, setup.settings.registry_port];
    let privileges = Privileges::of_nginx(&ports);
    let entrypoint: &[String] = nginx.as_ref().map_or(&[], |image| &image.entrypoint);
    let word = shell::word;
    fill(
        SCRIPT,
        &[
            ("SITE", word(setup.site.as_str())),
            ("CONF", word(setup.conf.as_str())),
            ("FILES", word(setup.files.as_str())),
            ("REGISTRY", word(setup.registry.as_str())),
            ("HOST", word(&setup.settings.host)),
            ("FILES_PORT", Text::number(ports[0])),
            ("REGISTRY_PORT", Text::number(ports[1])),
            ("SCHEME", word(setup.scheme())),
            ("ADDRESS", word(&url_host(setup.settings.bind.unwrap_or(Ipv4Addr::LOCALHOST.into())))),
            ("PUBLISHED", word(&published(setup))),
            ("CONTAINER_CONFIG", word(configuration(setup, "nginx.conf").as_str())),
            ("USER", word(setup.settings.user.as_deref().unwrap_or_default())),
            ("NAME", word(&setup.name())),
            ("OWN_CA", word(flag(setup.ca.is_some()))),
            ("NGINX_IMAGE", word(reference(&nginx).as_deref().unwrap_or(compose::NGINX))),
            ("NGINX_IDS", word(&ids(&nginx))),
            ("NGINX_WORD", word(if entrypoint.is_empty() { "nginx" } else { "" })),
            ("REGISTRY_IMAGE", word(&reference(&registry).unwrap_or_default())),
            ("REGISTRY_IDS", word(&ids(&registry))),
            ("CONTAINER_OPTIONS", container_options(setup, &privileges, entrypoint)),
            ("CONTAINER_USER", word(privileges.user.as_deref().unwrap_or_default())),
            ("UNBUNDLE", word(program.as_ref().map_or("unbundle", |path| path.as_str()))),
            ("SERVER_USER", word(ServerUser::find().map_or("", |user| user.name))),
        ],
    )
}

/// Returns the options of `docker run` and `podman run` for the program, capabilities, mounts and temporary files, one a
/// line.
fn container_options(setup: &Setup, privileges: &Privileges, entrypoint: &[String]) -> Text<Shell> {
    let program = entrypoint.iter().map(|program| format!("--entrypoint={program}"));
    let capabilities = privileges.capabilities.iter().map(|name| format!("--cap-add={name}"));
    let temporary = temporary_of_nginx(setup);
    let temporary = temporary.iter().map(|path| format!("--tmpfs={}", path.as_str()));
    let mounts = Mount::of_nginx(setup, true).into_iter().map(|mount| format!("--volume={}", mount.volume()));
    let line = |option: String| fill("        @OPTION@ \\\n", &[("OPTION", shell::word(&option))]);
    program.chain(capabilities).chain(temporary).chain(mounts).map(line).collect()
}
