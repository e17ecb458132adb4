//! `compose.yaml`: nginx, and a registry if the site has an image of one.

use std::fmt::Write as _;

use crate::conf::setup::Setup;
use crate::conf::template::fill;

/// The nginx image if the site has none; the engine then pulls it from the network.
pub(crate) const NGINX: &str = "docker.io/library/nginx:stable";

const HEADER: &str = "\
# Made by `unbundle site`, which keeps local edits. `./site start` runs it; to run it directly:
#   docker compose -p @NAME@ -f @CONF@/compose.yaml up -d
# docker-compose before 1.27 requires `version`.
version: \"3.3\"
services:
";

/// Returns the content of `compose.yaml`. Paths are the same inside and outside of the containers, so that
/// one configuration works for both. All volumes are read-only.
#[must_use]
pub(crate) fn file(setup: &Setup) -> String {
    let conf = setup.conf.display().to_string();
    let files = setup.files.display().to_string();
    let registry = setup.registry.display().to_string();
    let (files_port, registry_port) = (setup.settings.files_port, setup.settings.registry_port);
    let registry_image = setup.server_image("registry");

    let config = if registry_image.is_some() { "nginx-files.conf" } else { "nginx.conf" };
    let mut nginx = Service {
        comment: "",
        name: "nginx",
        image: setup.server_image("nginx").unwrap_or_else(|| NGINX.to_owned()),
        command: format!("nginx, -c, {conf}/{config}, -g, \"daemon off; pid /tmp/nginx.pid;\""),
        environment: "",
        ports: vec![files_port],
        volumes: vec![&conf, &files],
        health: health(setup, files_port, "/healthz", "200"),
    };
    if registry_image.is_none() {
        nginx.ports.push(registry_port);
        nginx.volumes.push(&registry);
    }
    let registry = registry_image.map(|image| Service {
        comment: "  # The entry point of the image starts the registry; versions 2 and 3 accept the same arguments.\n",
        name: "registry",
        image,
        command: format!("{conf}/registry.yml"),
        environment: "    environment:\n      OTEL_TRACES_EXPORTER: none\n",
        ports: vec![registry_port],
        volumes: vec![&conf, &registry],
        health: health(setup, registry_port, "/v2/", if setup.settings.user.is_some() { "401" } else { "200" }),
    });
    let header = fill(HEADER, &[("NAME", &setup.name()), ("CONF", &conf)]);
    let services = std::iter::once(nginx).chain(registry).map(|service| service.yaml(setup));
    header + &services.collect::<String>()
}

struct Service<'a> {
    comment: &'a str,
    name: &'a str,
    image: String,
    /// Comma-separated arguments.
    command: String,
    environment: &'a str,
    ports: Vec<u16>,
    volumes: Vec<&'a String>,
    /// The shell command of the health check.
    health: String,
}

impl Service<'_> {
    fn yaml(&self, setup: &Setup) -> String {
        let Self { comment, name, image, command, environment, ports, volumes, health } = self;
        let mut text = format!(
            "{comment}  {name}:\n    image: {image}\n    restart: unless-stopped\n    command: [{command}]\n{environment}"
        );
        text += "    ports:\n";
        for port in ports {
            let _ = writeln!(text, "      - \"{port}:{port}\"");
        }
        text += "    volumes:\n";
        for path in volumes {
            let _ = writeln!(text, "      - {path}:{path}:ro,z");
        }
        // Hides the private key of the CA, which no server needs.
        if setup.has_ca() {
            let _ = writeln!(text, "    tmpfs:\n      - {}/ca", setup.conf.display());
        }
        let _ = writeln!(
            text,
            "    healthcheck:\n      test: \"{health}\"\n      interval: 10s\n      timeout: 5s\n      retries: 6"
        );
        text
    }
}

/// Returns a health check that expects the HTTP status `status`.
///
/// Images have `wget` (Alpine) or `curl` (Debian), rarely both, and some `wget` cannot use TLS with every
/// server. Therefore the request is plain HTTP, for which a TLS server returns 400.
fn health(setup: &Setup, port: u16, path: &str, status: &str) -> String {
    let url = format!("http://127.0.0.1:{port}{path}");
    let status = if setup.is_tls() { "400" } else { status };
    format!("(wget -S -O /dev/null {url} 2>&1 || curl -si {url}) | grep -q 'HTTP/[0-9.]* {status}'")
}
