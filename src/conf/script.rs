//! The script `site`: start, stop, status and logs, with whatever the host has.

use crate::conf::compose;
use crate::conf::setup::{Setup, is_plain};

const SCRIPT: &str = include_str!("site.sh");

/// The content of `site`.
#[must_use]
pub(crate) fn script(setup: &Setup) -> String {
    let own = std::env::current_exe().ok().filter(|path| is_plain(path));
    let own = own.and_then(|path| path.to_str().map(str::to_owned));
    let yes = |is: bool| if is { "yes" } else { "" };
    SCRIPT
        .replace("@SITE@", &setup.site.display().to_string())
        .replace("@CONF@", &setup.conf.display().to_string())
        .replace("@FILES@", &setup.files.display().to_string())
        .replace("@REGISTRY@", &setup.registry.display().to_string())
        .replace("@HOST@", &setup.settings.host)
        .replace("@FILES_PORT@", &setup.settings.files_port.to_string())
        .replace("@REGISTRY_PORT@", &setup.settings.registry_port.to_string())
        .replace("@SCHEME@", setup.scheme())
        .replace("@USER@", setup.settings.user.as_deref().unwrap_or_default())
        .replace("@NAME@", &setup.name())
        .replace("@HIDE_CA@", yes(setup.has_authority()))
        .replace("@OWN_CA@", yes(setup.ca.is_some()))
        .replace("@NGINX_IMAGE@", &setup.server_image("nginx").unwrap_or_else(|| compose::NGINX.to_owned()))
        .replace("@NGINX_IS_HERE@", yes(setup.server_image("nginx").is_some()))
        .replace("@REGISTRY_IMAGE@", &setup.server_image("registry").unwrap_or_default())
        .replace("@UNBUNDLE@", &own.unwrap_or_else(|| "unbundle".into()))
}
