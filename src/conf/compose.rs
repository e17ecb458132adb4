//! The compose file: nginx, and a registry where the site has an image of one.

use std::fmt::Write as _;

use crate::conf::setup::Setup;

/// What is pulled where the site has no nginx image: by then there has to be a network.
pub(crate) const NGINX: &str = "docker.io/library/nginx:stable";

/// The content of `compose.yaml`. Everything has the same path inside as outside, so that one configuration serves
/// both, and is mounted read-only.
#[must_use]
pub(crate) fn file(setup: &Setup) -> String {
    let nginx = setup.server_image("nginx").unwrap_or_else(|| NGINX.to_owned());
    let registry = setup.server_image("registry");
    let conf = setup.conf.display();
    let (files_port, registry_port) = (setup.settings.files_port, setup.settings.registry_port);
    let config = if registry.is_some() { "nginx-files.conf" } else { "nginx.conf" };
    let name = setup.name();
    let mut text = format!(
        "# Made by `unbundle site`, which keeps what you edit here. `./site start` uses it; by hand:\n\
         #   docker compose -p {name} -f {conf}/compose.yaml up -d\n\
         # The version is for docker-compose before 1.27; what came later does not need it.\n\
         version: \"3.3\"\nservices:\n  nginx:\n    image: {nginx}\n    restart: unless-stopped\n    command: [nginx, -c, {conf}/{config}, \
         -g, \"daemon off; pid /tmp/nginx.pid;\"]\n    ports:\n      - \"{files_port}:{files_port}\"\n"
    );
    if registry.is_none() {
        let _ = writeln!(text, "      - \"{registry_port}:{registry_port}\"");
    }
    let _ = writeln!(text, "    volumes:\n      - {conf}:{conf}:ro,z");
    let _ = writeln!(text, "      - {0}:{0}:ro,z", setup.files.display());
    if registry.is_none() {
        let _ = writeln!(text, "      - {0}:{0}:ro,z", setup.registry.display());
    }
    // The key of the authority is nobody's but the user's who makes certificates.
    let hide = if setup.has_authority() { format!("    tmpfs:\n      - {conf}/ca\n") } else { String::new() };
    text += &hide;
    health(&mut text, setup, files_port, "/healthz", "200");
    let Some(registry) = registry else { return text };
    let _ = write!(
        text,
        "  # The image's own entry point starts the registry; versions 2 and 3 take the same arguments.\n  \
         registry:\n    image: {registry}\n    restart: unless-stopped\n    command: [{conf}/registry.yml]\n    \
         environment:\n      OTEL_TRACES_EXPORTER: none\n    ports:\n      - \"{registry_port}:{registry_port}\"\n    \
         volumes:\n      - {conf}:{conf}:ro,z\n      - {root}:{root}:ro,z\n",
        root = setup.registry.display()
    );
    text += &hide;
    let answer = if setup.settings.user.is_some() { "401" } else { "200" };
    health(&mut text, setup, registry_port, "/v2/", answer);
    text
}

/// Images have `wget` (Alpine's) or `curl` (Debian's), hardly ever both, and not every `wget` can speak TLS with every
/// server: so the question is plain http, and to that a server that expects TLS answers 400.
fn health(text: &mut String, setup: &Setup, port: u16, path: &str, answer: &str) {
    let url = format!("http://127.0.0.1:{port}{path}");
    let answer = if setup.is_tls() { "400" } else { answer };
    let _ = writeln!(
        text,
        "    healthcheck:\n      test: \"(wget -S -O /dev/null {url} 2>&1 || curl -si {url}) | grep -q 'HTTP/[0-9.]* \
         {answer}'\"\n      interval: 10s\n      timeout: 5s\n      retries: 6"
    );
}
