//! Runnable images made of this machine's nginx and docker-registry, with the paths, users, entrypoints,
//! ports and volumes of docker.io/library/nginx and registry.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use super::Bytes;
use super::image::{Compression, Format, Image, Layer};
use super::package::Packages;
use super::process;

const ENTRYPOINT: &[u8] = b"#!/bin/busybox sh\nset -e\nexec \"$@\"\n";
const REGISTRY_ENTRYPOINT: &[u8] = b"#!/bin/busybox sh\nset -e\nexec registry serve \"$@\"\n";
const NGINX_CONF: &[u8] = b"user nginx;
worker_processes auto;
error_log /dev/stderr notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log off;
    sendfile on;
    keepalive_timeout 65;
    include /etc/nginx/conf.d/*.conf;
}
";
const WELCOME_CONF: &[u8] = b"server {
    listen 80;
    location / { root /usr/share/nginx/html; index index.html; }
}
";
const REGISTRY_CONF: &[u8] = b"version: 0.1
log:
  fields:
    service: registry
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: /var/lib/registry
http:
  addr: :5000
  headers:
    X-Content-Type-Options: [nosniff]
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
";

/// Returns an nginx image for this platform.
pub fn nginx(format: Format, platform: &str) -> Image {
    nginx_with(format, platform, &json!(["/docker-entrypoint.sh"]), &json!(["nginx", "-g", "daemon off;"]))
}

/// Returns an nginx image with this command.
pub fn nginx_with(
    format: Format,
    platform: &str,
    entrypoint: &serde_json::Value,
    command: &serde_json::Value,
) -> Image {
    let mut files = installed("nginx", "usr/sbin/nginx");
    let mime_types = fs::read("/etc/nginx/mime.types").expect("nginx is installed");
    files.extend([
        file("docker-entrypoint.sh", 0o755, ENTRYPOINT),
        file("etc/group", 0o644, b"root:x:0:\nnginx:x:101:\nnogroup:x:65534:\n"),
        file("etc/nginx/conf.d/default.conf", 0o644, WELCOME_CONF),
        file("etc/nginx/mime.types", 0o644, &mime_types),
        file("etc/nginx/nginx.conf", 0o644, NGINX_CONF),
        file(
            "etc/passwd",
            0o644,
            b"root:x:0:0::/root:/bin/sh\nnginx:x:101:101::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n",
        ),
        file("usr/share/nginx/html/50x.html", 0o644, b"An error occurred.\n"),
        file("usr/share/nginx/html/index.html", 0o644, b"Welcome to nginx!\n"),
    ]);
    let directories = ["run", "tmp", "var/lib/nginx", "var/log/nginx"];
    let settings = json!({
        "Entrypoint": entrypoint,
        "Cmd": command,
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "NGINX_VERSION=1"],
        "ExposedPorts": { "80/tcp": {} },
        "Labels": { "maintainer": "NGINX" },
        "StopSignal": "SIGQUIT",
    });
    let layers = [shell(), tree(&directories, &files)];
    Image::with_settings(format, platform, &layers, settings)
}

/// Returns a registry image for this platform.
pub fn registry(format: Format, platform: &str) -> Image {
    let mut files = installed("docker-registry", "bin/registry");
    files.extend([
        file("entrypoint.sh", 0o755, REGISTRY_ENTRYPOINT),
        file("etc/docker/registry/config.yml", 0o644, REGISTRY_CONF),
    ]);
    let settings = json!({
        "Entrypoint": ["/entrypoint.sh"],
        "Cmd": ["/etc/docker/registry/config.yml"],
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "ExposedPorts": { "5000/tcp": {} },
        "Volumes": { "/var/lib/registry": {} },
    });
    let layers = [shell(), tree(&["tmp", "var/lib/registry"], &files)];
    Image::with_settings(format, platform, &layers, settings)
}

/// Returns a registry image with this command, whose configuration, storage and environment are not those of
/// docker.io/library/registry.
pub fn other_registry(entrypoint: &serde_json::Value, command: &serde_json::Value) -> Image {
    let mut files = installed("docker-registry", "usr/bin/docker-registry");
    let conf =
        String::from_utf8_lossy(REGISTRY_CONF).replace("/var/lib/registry", "/var/lib/docker-registry");
    files.push(file("etc/registry/config.yml", 0o644, conf.as_bytes()));
    let settings = json!({
        "Entrypoint": entrypoint,
        "Cmd": command,
        "Env": ["PATH=/usr/bin:/bin", "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=/var/lib/docker-registry"],
        "ExposedPorts": { "5000/tcp": {} },
        "Volumes": { "/var/lib/docker-registry": {} },
    });
    let layers = [shell(), tree(&["tmp", "var/lib/docker-registry"], &files)];
    Image::with_settings(Format::Oci, "linux/amd64", &layers, settings)
}

fn shell() -> Layer {
    let busybox = Packages::load().get("amd64", "busybox-static").file("bin/busybox");
    let mut files = vec![("bin/busybox".to_owned(), 0o755, busybox.into())];
    // Alpine's images have them too: health checks call them.
    files.extend(["sh", "wget", "grep"].map(|name| {
        let script = format!("#!/bin/busybox sh\nexec /bin/busybox {name} \"$@\"\n");
        file(&format!("bin/{name}"), 0o755, script.as_bytes())
    }));
    tree(&[], &files)
}

fn tree(directories: &[&str], files: &[(String, u32, Bytes)]) -> Layer {
    let files: Vec<_> =
        files.iter().map(|(path, mode, bytes)| (path.as_str(), *mode, Bytes::clone(bytes))).collect();
    Layer::tree(directories, &files, Compression::Gzip)
}

fn file(path: &str, mode: u32, bytes: &[u8]) -> (String, u32, Bytes) {
    (path.to_owned(), mode, bytes.into())
}

/// Returns a program of this machine as `path`, and its shared libraries at their own paths.
fn installed(program: &str, path: &str) -> Vec<(String, u32, Bytes)> {
    let which = process::stdout_of(Command::new("sh").args(["-c", "command -v \"$1\"", "sh", program]));
    let found = PathBuf::from(which.trim());
    let read =
        |path: &str| Bytes::from(fs::read(path).unwrap_or_else(|error| panic!("read {path}: {error}")));
    let mut files = vec![(path.to_owned(), 0o755, read(which.trim()))];
    // `ldd` fails for a static program.
    let libraries = Command::new("ldd").arg(found).output().expect("start ldd");
    let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
    let libraries =
        libraries.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    files.extend(libraries.map(|library| (library[1..].to_owned(), 0o755, read(library))));
    files
}
