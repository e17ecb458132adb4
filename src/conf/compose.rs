//! `compose.yaml`: nginx, and a registry if the site has an image of one.

use crate::conf::container::{Mount, Privileges, configuration, published, temporary_of_nginx};
use crate::conf::plain_path::PlainPath;
use crate::conf::quote::Text;
use crate::conf::quote::compose::{self, Compose};
use crate::conf::server_image::ServerImage;
use crate::conf::setup::Setup;
use crate::conf::template::fill;

/// The nginx image if the site has none; the engine then pulls it from the network.
pub(crate) const NGINX: &str = "docker.io/library/nginx:stable";

/// The environment variables in which the script `site` passes the IDs of the images.
const NGINX_VARIABLE: &str = "SITE_NGINX_IMAGE";
const REGISTRY_VARIABLE: &str = "SITE_REGISTRY_IMAGE";

const HEADER: &str = "\
# Made by `unbundle site`, which keeps local edits. `./site start` loads the images of the site and runs this file.
version: \"3.3\"
services:
";

const SERVICE: &str = "  @NAME@:
    image: @IMAGE@
@PULL_POLICY@
    restart: unless-stopped
@ENTRYPOINT@
    command: @COMMAND@
@ENVIRONMENT@
@USER@
    read_only: true
    cap_drop: [\"ALL\"]
@CAPABILITIES@
    security_opt: [\"no-new-privileges:true\"]
    tmpfs: @TEMPORARY@
    ports:
@PORTS@
    volumes:
@VOLUMES@
    healthcheck:
      test: @HEALTH@
      interval: 10s
      timeout: 5s
      retries: 6
";

/// Returns the content of `compose.yaml`. Paths are the same inside and outside of the containers, so that
/// one configuration works for both. All volumes are read-only.
#[must_use]
pub(crate) fn file(setup: &Setup) -> Text<Compose> {
    let (files_port, registry_port) = (setup.settings.files_port, setup.settings.registry_port);
    let registry_image = ServerImage::find(setup, "registry");
    let config = if registry_image.is_some() { "nginx-files.conf" } else { "nginx.conf" };
    let ports = if registry_image.is_some() { vec![files_port] } else { vec![files_port, registry_port] };
    let nginx_image = ServerImage::find(setup, "nginx");
    let entrypoint_of_nginx: &[String] = nginx_image.as_ref().map_or(&[], |image| &image.entrypoint);
    let nginx = Service {
        name: "nginx",
        is_loaded: nginx_image.is_some(),
        image: match &nginx_image {
            Some(image) => compose::variable_or_digest(NGINX_VARIABLE, image.ids[0]),
            None => compose::string(NGINX),
        },
        entrypoint: entrypoint_of_nginx.iter().map(|word| compose::string(word)).collect(),
        // The entry point of the official image runs its arguments.
        command: if entrypoint_of_nginx.is_empty() { vec!["nginx"] } else { Vec::new() }
            .into_iter()
            .chain(["-c", configuration(setup, config).as_str(), "-g", "daemon off; pid /tmp/nginx.pid;"])
            .map(compose::string)
            .collect(),
        environment: Text::new(),
        privileges: Privileges::of_nginx(&ports),
        temporary: temporary_of_nginx(setup),
        ports,
        volumes: Mount::of_nginx(setup, registry_image.is_none()),
        health: health(setup, files_port, "/healthz", "200"),
    };
    let registry = registry_image.map(|image| Service {
        name: "registry",
        is_loaded: true,
        image: compose::variable_or_digest(REGISTRY_VARIABLE, image.ids[0]),
        environment: registry_environment(setup, !image.entrypoint.is_empty()),
        // The entry point of the image starts the registry; versions 2 and 3 accept the same arguments.
        entrypoint: image.entrypoint.iter().map(|word| compose::string(word)).collect(),
        command: vec![compose::string(configuration(setup, "registry.yml").as_str())],
        privileges: Privileges::of_registry(&[registry_port]),
        temporary: vec![PlainPath::fixed("/tmp")],
        ports: vec![registry_port],
        volumes: Mount::of_registry(setup),
        health: health(
            setup,
            registry_port,
            "/v2/",
            if setup.settings.user.is_some() { "401" } else { "200" },
        ),
    });
    let mut text = Text::fixed(HEADER);
    for service in std::iter::once(nginx).chain(registry) {
        text.push(&service.yaml(&published(setup)));
    }
    text
}

/// Returns the environment of the registry. `has_overrides`: variables of its image may override `registry.yml`.
fn registry_environment(setup: &Setup, has_overrides: bool) -> Text<Compose> {
    let mut text = Text::fixed("    environment:\n      OTEL_TRACES_EXPORTER: none\n");
    if has_overrides {
        let values = [
            ("ROOT", compose::string(setup.registry.as_str())),
            ("ADDRESS", compose::string(&format!(":{}", setup.settings.registry_port))),
        ];
        text.push(&fill(
            "      REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY: @ROOT@\n      REGISTRY_HTTP_ADDR: @ADDRESS@\n",
            &values,
        ));
    }
    text
}

struct Service {
    name: &'static str,
    /// True if the image is on the site, so that it is not pulled.
    is_loaded: bool,
    image: Text<Compose>,
    /// The program and its first arguments. Empty: those of the image.
    entrypoint: Vec<Text<Compose>>,
    /// The arguments.
    command: Vec<Text<Compose>>,
    environment: Text<Compose>,
    privileges: Privileges,
    /// Directories in memory.
    temporary: Vec<PlainPath>,
    ports: Vec<u16>,
    volumes: Vec<Mount>,
    /// The shell command of the health check.
    health: String,
}

impl Service {
    /// Returns the service, whose ports are published with this prefix.
    fn yaml(self, published: &str) -> Text<Compose> {
        let port = |port| {
            let port = compose::string(&format!("{published}{port}:{port}"));
            fill("      - @PORT@\n", &[("PORT", port)])
        };
        let volume =
            |mount: &Mount| fill("      - @VOLUME@\n", &[("VOLUME", compose::string(&mount.volume()))]);
        let user =
            self.privileges.user.map(|user| fill("    user: @USER@\n", &[("USER", compose::string(&user))]));
        let capabilities = match &self.privileges.capabilities[..] {
            [] => Text::new(),
            names => {
                let names = list(names.iter().map(|name| compose::string(name)));
                fill("    cap_add: @NAMES@\n", &[("NAMES", names)])
            }
        };
        let entrypoint = match &self.entrypoint[..] {
            [] => Text::new(),
            words => fill("    entrypoint: @WORDS@\n", &[("WORDS", list(words.iter().cloned()))]),
        };
        fill(
            SERVICE,
            &[
                ("NAME", Text::fixed(self.name)),
                ("IMAGE", self.image),
                ("PULL_POLICY", Text::fixed(if self.is_loaded { "    pull_policy: never\n" } else { "" })),
                ("ENTRYPOINT", entrypoint),
                ("COMMAND", list(self.command)),
                ("ENVIRONMENT", self.environment),
                ("USER", user.unwrap_or_else(Text::new)),
                ("CAPABILITIES", capabilities),
                ("TEMPORARY", list(self.temporary.iter().map(|path| compose::string(path.as_str())))),
                ("PORTS", self.ports.into_iter().map(port).collect()),
                ("VOLUMES", self.volumes.iter().map(volume).collect()),
                ("HEALTH", compose::string(&self.health)),
            ],
        )
    }
}

/// Returns a sequence on one line.
fn list(items: impl IntoIterator<Item = Text<Compose>>) -> Text<Compose> {
    fill("[@ITEMS@]", &[("ITEMS", Text::join(items, ", "))])
}

/// Returns a health check that expects the HTTP status `status`.
///
/// Images have `wget` (Alpine) or `curl` (Debian), rarely both, and some `wget` cannot use TLS with every
/// server. Therefore the request is plain HTTP, for which a TLS server returns 400.
fn health(setup: &Setup, port: u16, path: &'static str, status: &'static str) -> String {
    let url = format!("http://127.0.0.1:{port}{path}");
    let status = if setup.is_tls() { "400" } else { status };
    format!("(wget -S -O /dev/null {url} 2>&1 || curl -si {url}) | grep -q 'HTTP/[0-9.]* {status}'")
}
