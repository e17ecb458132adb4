//! systemd units: the servers without a container engine, each as a user of its own with nothing but the site.

use crate::conf::generated::Generated;
use crate::conf::ownership_check;
use crate::conf::plain_path::PlainPath;
use crate::conf::quote::Text;
use crate::conf::quote::systemd::{self, Systemd};
use crate::conf::setup::Setup;
use crate::conf::template::fill;

const UNIT: &str = include_str!("systemd/unit.service");

/// A unit, and the paths that systemd gives it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit {
    /// Its name, without `.service`.
    name: &'static str,
    description: &'static str,
    conflicts: &'static str,
    /// The directory of its credentials.
    pub credentials: &'static str,
    /// Its runtime directory.
    pub runtime: &'static str,
}

/// nginx for files and images.
pub(crate) const SITE: Unit = Unit {
    name: "airbundle-site",
    description: "files and images of the site (nginx)",
    conflicts: "airbundle-files.service airbundle-registry.service",
    credentials: "/run/credentials/airbundle-site.service",
    runtime: "/run/airbundle-site",
};
/// nginx for the files.
pub(crate) const FILES: Unit = Unit {
    name: "airbundle-files",
    description: "files of the site (nginx)",
    conflicts: "airbundle-site.service",
    credentials: "/run/credentials/airbundle-files.service",
    runtime: "/run/airbundle-files",
};
/// Docker Distribution for the images.
pub(crate) const REGISTRY: Unit = Unit {
    name: "airbundle-registry",
    description: "images of the site (Docker Distribution)",
    conflicts: "airbundle-site.service",
    credentials: "/run/credentials/airbundle-registry.service",
    runtime: "/run/airbundle-registry",
};

const NGINX: &str = "\
ExecStartPre=@CHECK@
ExecStartPre=/usr/sbin/nginx -t -c @CONFIG@ -g 'pid /run/%N/pid;'
ExecStart=/usr/sbin/nginx -c @CONFIG@ -g 'daemon off; pid /run/%N/pid;'
ExecReload=/bin/kill -HUP $MAINPID
KillSignal=SIGQUIT
";
const DISTRIBUTION: &str = "\
ExecStartPre=@CHECK@
ExecStartPre=@STORAGE@
Environment=OTEL_TRACES_EXPORTER=none
ExecStart=/usr/bin/docker-registry serve @CONFIG@
";

/// Adds the units. `airbundle-site` is nginx for files and images; the other two are nginx for files and a
/// registry.
pub(crate) fn generate(setup: &Setup, generated: &mut Generated) {
    for (name, unit, command, config) in [
        ("systemd/airbundle-site.service", SITE, NGINX, "systemd/nginx.conf"),
        ("systemd/airbundle-files.service", FILES, NGINX, "systemd/nginx-files.conf"),
        ("systemd/airbundle-registry.service", REGISTRY, DISTRIBUTION, "systemd/registry.yml"),
    ] {
        let config = systemd::argument(setup.conf.child(config).as_str());
        let program = if command == NGINX { "/usr/sbin/nginx" } else { "/usr/bin/docker-registry" };
        let check = ownership_check::command(&setup.conf, &PlainPath::fixed(program));
        let storage = ownership_check::storage_command(&setup.registry);
        let commands = fill(command, &[("CHECK", check), ("STORAGE", storage), ("CONFIG", config)]);
        generated.put(name, text(setup, unit, commands).as_bytes(), 0o644);
    }
}

fn text(setup: &Setup, unit: Unit, commands: Text<Systemd>) -> Text<Systemd> {
    let ports = match unit.name {
        "airbundle-site" => vec![setup.settings.files_port, setup.settings.registry_port],
        "airbundle-files" => vec![setup.settings.files_port],
        _ => vec![setup.settings.registry_port],
    };
    let capabilities = if ports.iter().any(|port| *port < 1024) {
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n"
    } else {
        "CapabilityBoundingSet=\nAmbientCapabilities=\n"
    };
    let paths = [&setup.site, &setup.files, &setup.registry].map(|path| systemd::word(path.as_str()));
    fill(
        UNIT,
        &[
            ("UNIT", Text::fixed(unit.name)),
            ("DESCRIPTION", Text::fixed(unit.description)),
            ("CONFLICTS", Text::fixed(unit.conflicts)),
            ("PATHS", Text::join(paths, " ")),
            ("COMMANDS", commands),
            ("CREDENTIALS", credentials(setup)),
            ("CAPABILITIES", Text::fixed(capabilities)),
            ("READABLE", readable(setup, unit)),
        ],
    )
}

/// Returns the keys and passwords, which the user of the unit could not read otherwise.
fn credentials(setup: &Setup) -> Text<Systemd> {
    let credential = |name, path| {
        fill("LoadCredential=@NAME@:@PATH@\n", &[("NAME", Text::fixed(name)), ("PATH", systemd::path(&path))])
    };
    let certificate = setup
        .certificate()
        .map(|(certificate, key)| [credential("server.crt", certificate), credential("server.key", key)]);
    let htpasswd = setup.htpasswd().map(|path| credential("htpasswd", path));
    certificate.into_iter().flatten().chain(htpasswd).collect()
}

/// Returns what the unit can read of the directories that are hidden from it, such as /home and /tmp.
fn readable(setup: &Setup, unit: Unit) -> Text<Systemd> {
    let mut paths = vec![setup.conf.child("systemd")];
    if unit.name != "airbundle-registry" {
        paths.push(setup.files.clone());
    }
    if unit.name != "airbundle-files" {
        paths.push(setup.registry.clone());
    }
    if unit.name == "airbundle-site" {
        paths.push(setup.conf.child("registry-api"));
    }
    Text::join(paths.iter().map(|path| systemd::word(path.as_str())), " ")
}
