//! The script `site`: starts and stops the site with an engine of the host.

use crate::conf::compose;
use crate::conf::program::permanent_path;
use crate::conf::setup::Setup;
use crate::conf::template::fill;
use crate::conf::users::ServerUser;

const SCRIPT: &str = include_str!("site.sh");

/// Returns the content of `site`.
#[must_use]
pub(crate) fn script(setup: &Setup) -> String {
    let program = permanent_path().map(|path| path.display().to_string());
    let (nginx, registry) = (setup.server_image("nginx"), setup.server_image("registry"));
    let flag = |is: bool| if is { "yes" } else { "" };
    fill(
        SCRIPT,
        &[
            ("SITE", &setup.site.display().to_string()),
            ("CONF", &setup.conf.display().to_string()),
            ("FILES", &setup.files.display().to_string()),
            ("REGISTRY", &setup.registry.display().to_string()),
            ("HOST", &setup.settings.host),
            ("FILES_PORT", &setup.settings.files_port.to_string()),
            ("REGISTRY_PORT", &setup.settings.registry_port.to_string()),
            ("SCHEME", setup.scheme()),
            ("USER", setup.settings.user.as_deref().unwrap_or_default()),
            ("NAME", &setup.name()),
            ("HIDE_CA", flag(setup.has_ca())),
            ("OWN_CA", flag(setup.ca.is_some())),
            ("NGINX_IMAGE", nginx.as_deref().unwrap_or(compose::NGINX)),
            ("NGINX_IS_HERE", flag(nginx.is_some())),
            ("REGISTRY_IMAGE", registry.as_deref().unwrap_or_default()),
            ("UNBUNDLE", program.as_deref().unwrap_or("unbundle")),
            ("SERVER_USER", ServerUser::find().map_or("", |user| user.name)),
        ],
    )
}
