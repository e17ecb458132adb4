//! nginx configuration: the files, and the pull side of a registry, served from the registry storage.
//!
//! The storage does not record the media type of a manifest, and nginx cannot set a media type from a
//! variable. Therefore a map names the kind of each manifest, and each kind has a location with its media
//! type.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use crate::conf::generated::Generated;
use crate::conf::setup::{Setup, is_root};
use crate::conf::template::fill;
use crate::oci::manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

const MAIN: &str = include_str!("nginx/main.conf");
const FILES_SERVER: &str = include_str!("nginx/files.conf");
const REGISTRY_SERVER: &str = include_str!("nginx/registry.conf");
const MANIFEST_LOCATION: &str = include_str!("nginx/manifest.conf");

/// The kinds of manifests, which are path components of their locations, and their media types.
const KINDS: [(&str, &str); 4] = [
    ("oci-index", OCI_INDEX),
    ("oci-manifest", OCI_MANIFEST),
    ("docker-list", DOCKER_LIST),
    ("docker-manifest", DOCKER_MANIFEST),
];

/// Adds `nginx.conf` (files and registry), `nginx-files.conf` (for use with a separate registry), and the
/// files below `registry-api` that the registry returns.
pub(crate) fn generate(setup: &Setup, generated: &mut Generated) {
    let files = files_server(setup);
    let both = format!("{files}{}", registry_server(setup));
    let combined = main(setup, "nginx.conf", "the files and a read-only registry", &both);
    generated.put("nginx.conf", combined.as_bytes(), 0o644);
    let alone = main(setup, "nginx-files.conf", "the files", &files);
    generated.put("nginx-files.conf", alone.as_bytes(), 0o644);
    let maps = format!("# Made by `unbundle site`.\n{}{}", tag_map(setup), kind_map(setup));
    generated.put("registry-api/manifests.conf", maps.as_bytes(), 0o644);
    put_responses(setup, generated);
}

/// Adds the responses of the registry that are not in its storage: version, catalog and tag lists.
fn put_responses(setup: &Setup, generated: &mut Generated) {
    let mut tags: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for image in &setup.record.images {
        for repository in &image.repositories {
            tags.entry(repository).or_default().extend(image.tag.as_deref());
        }
    }
    let catalog = serde_json::json!({ "repositories": tags.keys().collect::<Vec<_>>() });
    generated.put("registry-api/_version.json", b"{}", 0o644);
    generated.put("registry-api/_catalog.json", catalog.to_string().as_bytes(), 0o644);
    for (repository, tags) in tags {
        let list = serde_json::json!({ "name": repository, "tags": tags });
        let name = format!("registry-api/tags/{repository}/list.json");
        generated.put(&name, list.to_string().as_bytes(), 0o644);
    }
}

fn main(setup: &Setup, name: &str, content: &str, servers: &str) -> String {
    let conf = setup.conf.display().to_string();
    let mut temp_paths = String::new();
    // The default directories belong to root.
    if !is_root() {
        for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            let _ = writeln!(temp_paths, "    {name}_temp_path {conf}/run/{name};");
        }
    }
    fill(
        MAIN,
        &[
            ("CONTENT", content),
            ("CONF", &conf),
            ("NAME", name),
            ("TEMP_PATHS", &temp_paths),
            ("SERVERS", servers),
        ],
    )
}

fn files_server(setup: &Setup) -> String {
    let listen = listen(setup, setup.settings.files_port);
    fill(FILES_SERVER, &[("LISTEN", &listen), ("ROOT", &setup.files.display().to_string())])
}

fn registry_server(setup: &Setup) -> String {
    let blobs = setup.registry.join("docker/registry/v2/blobs/sha256").display().to_string();
    let locations = KINDS.map(|(kind, media_type)| {
        fill(MANIFEST_LOCATION, &[("KIND", kind), ("MEDIA_TYPE", media_type), ("BLOBS", &blobs)])
    });
    fill(
        REGISTRY_SERVER,
        &[
            ("LISTEN", &listen(setup, setup.settings.registry_port)),
            ("API", &setup.conf.join("registry-api").display().to_string()),
            ("BLOBS", &blobs),
            ("MANIFEST_LOCATIONS", &locations.concat()),
        ],
    )
}

/// Returns the directives for the port, TLS and the user.
fn listen(setup: &Setup, port: u16) -> String {
    let mut text = String::new();
    let tls = if setup.is_tls() { " ssl" } else { "" };
    let _ = writeln!(text, "        listen {port}{tls};");
    // Without IPv6 in the kernel, nginx would fail.
    if Path::new("/proc/net/if_inet6").exists() {
        let _ = writeln!(text, "        listen [::]:{port}{tls};");
    }
    if let Some((certificate, key)) = setup.certificate() {
        let _ = writeln!(text, "        ssl_certificate {};", certificate.display());
        let _ = writeln!(text, "        ssl_certificate_key {};", key.display());
        let _ = writeln!(text, "        ssl_protocols TLSv1.2 TLSv1.3;");
    }
    if let Some(htpasswd) = setup.htpasswd() {
        let _ = writeln!(text, "        auth_basic airbundle;");
        let _ = writeln!(text, "        auth_basic_user_file {};", htpasswd.display());
    }
    text
}

/// Returns the map from the path of a tag to the location of its manifest.
fn tag_map(setup: &Setup) -> String {
    let mut tags = BTreeMap::new();
    for image in &setup.record.images {
        let (Some(tag), Some(root)) = (&image.tag, image.manifests.first()) else { continue };
        let Some(kind) = kind(&root.media_type) else { continue };
        let hex = root.digest.hex();
        for repository in &image.repositories {
            let path = format!("/v2/{repository}/manifests/{tag}");
            tags.insert(path, format!("{kind}/{}/{hex}", &hex[..2]));
        }
    }
    // nginx compares strings in a map without regard to case, but tags are case-sensitive. Tags that differ
    // only in case are therefore regular expressions, which are case-sensitive.
    let mut by_lowercase: BTreeMap<String, usize> = BTreeMap::new();
    for path in tags.keys() {
        *by_lowercase.entry(path.to_lowercase()).or_default() += 1;
    }
    let mut text = String::from("map $uri $airbundle_tag {\n    default none;\n");
    for (path, location) in tags {
        let _ = if by_lowercase[&path.to_lowercase()] == 1 {
            writeln!(text, "    \"{path}\" {location};")
        } else {
            writeln!(text, "    \"~^{}$\" {location};", path.replace('.', "\\."))
        };
    }
    text + "}\n"
}

/// Returns the map from the digest of a manifest to its kind. Retired manifests are still served by digest.
fn kind_map(setup: &Setup) -> String {
    let current = setup.record.images.iter().flat_map(|image| &image.manifests);
    let all = current.chain(&setup.record.retired);
    let kinds: BTreeMap<_, _> =
        all.filter_map(|manifest| Some((manifest.digest.hex(), kind(&manifest.media_type)?))).collect();
    let mut text = String::from("map $directory$rest $airbundle_kind {\n    default none;\n");
    for (hex, kind) in kinds {
        let _ = writeln!(text, "    \"{hex}\" {kind};");
    }
    text + "}\n"
}

fn kind(media_type: &str) -> Option<&'static str> {
    KINDS.iter().find(|(_, known)| *known == media_type).map(|(kind, _)| *kind)
}
