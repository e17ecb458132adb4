//! nginx: the files, and the read side of a registry, out of the storage itself (distribution-spec, "Pull").
//!
//! A manifest has a media type that nothing in the storage tells, and nginx has no variable for one: so a map says
//! for every manifest what it is, and there is one place a media type that serves the blobs under that name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::conf::generated::Generated;
use crate::conf::setup::Setup;
use crate::oci::manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

/// The places of manifests, by media type.
const KINDS: [(&str, &str); 4] = [
    ("oci-index", OCI_INDEX),
    ("oci-manifest", OCI_MANIFEST),
    ("docker-list", DOCKER_LIST),
    ("docker-manifest", DOCKER_MANIFEST),
];

/// A location with a header of its own inherits none, so that this one stands in many.
const VERSION: &str = "add_header Docker-Distribution-Api-Version registry/2.0 always;";

/// Writes `nginx.conf` (everything), `nginx-files.conf` (without the registry, where a registry runs beside it), and
/// what both need.
pub(crate) fn generate(setup: &Setup, generated: &mut Generated) {
    generated.put("nginx.conf", config(setup, true).as_bytes(), 0o644);
    generated.put("nginx-files.conf", config(setup, false).as_bytes(), 0o644);
    generated.put("registry-api/manifests.conf", manifests(setup).as_bytes(), 0o644);
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

fn config(setup: &Setup, with_registry: bool) -> String {
    let mut servers = files_server(setup);
    let mut maps = String::new();
    if with_registry {
        maps = format!(
            "\n    # Which manifest a tag is, and of which kind each manifest is.\n    map_hash_bucket_size 1024;\n    \
             map_hash_max_size 65536;\n    include {}/registry-api/manifests.conf;\n",
            setup.conf.display()
        );
        servers += &registry_server(setup);
    }
    let mut temporary = String::new();
    if !crate::conf::setup::is_root() {
        for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            let _ = writeln!(temporary, "    {name}_temp_path {}/run/{name};", setup.conf.display());
        }
    }
    let what = if with_registry { "the files, and the registry's read side" } else { "the files" };
    format!(
        r"# nginx for {what}. Made by `unbundle site`, which keeps what you edit here.
# By hand: nginx -c {conf}/{name} -g 'daemon off; pid /tmp/nginx.pid;'
worker_processes auto;
error_log stderr warn;

events {{
    worker_connections 4096;
}}

http {{
    # To have a log of requests, name a file that nginx may write to.
    access_log off;
    server_tokens off;
    default_type application/octet-stream;
    types {{
        text/html html htm;
        text/css css;
        text/plain txt sha256 sha256sum sha512 sha512sum md5 asc sig pem crt yml yaml list;
        application/javascript js;
        application/json json;
        application/gzip gz tgz;
        application/x-xz xz;
        application/zstd zst;
        application/x-bzip2 bz2;
        application/x-tar tar;
        application/zip zip;
        application/vnd.debian.binary-package deb;
        application/x-rpm rpm;
    }}

    # What is served is what was carried, byte for byte: nothing is compressed on the way.
    gzip off;
    gzip_static off;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 65;
    client_max_body_size 1m;
{temporary}{maps}{servers}}}
",
        conf = setup.conf.display(),
        name = if with_registry { "nginx.conf" } else { "nginx-files.conf" },
    )
}

fn listen(setup: &Setup, port: u16) -> String {
    let mut text = String::new();
    let tls = if setup.is_tls() { " ssl" } else { "" };
    let _ = writeln!(text, "        listen {port}{tls};");
    // A kernel without IPv6 refuses the second one.
    if std::path::Path::new("/proc/net/if_inet6").exists() {
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

fn files_server(setup: &Setup) -> String {
    format!(
        r#"
    server {{
{listen}
        root {root};
        charset utf-8;
        charset_types text/plain text/css application/javascript application/json;
        if ($request_method !~ ^(GET|HEAD)$) {{
            return 405;
        }}
        location = /healthz {{
            auth_basic off;
            default_type text/plain;
            return 200 "ok\n";
        }}
        location / {{
            autoindex on;
            autoindex_exact_size off;
        }}
        location ~ /\.(unbundle|generated) {{
            return 404;
        }}
    }}
"#,
        listen = listen(setup, setup.settings.files_port),
        root = setup.files.display(),
    )
}

/// The place of each kind of manifest.
fn kind_locations(blobs: &str) -> String {
    let version = VERSION;
    let mut kinds = String::new();
    for (kind, media_type) in KINDS {
        let _ = write!(
            kinds,
            r#"
        location ~ "^/-/{kind}/(?<directory>[0-9a-f]{{2}})/(?<hex>[0-9a-f]{{64}})$" {{
            internal;
            alias {blobs}/$directory/$hex/data;
            types {{ }}
            default_type {media_type};
            etag off;
            if_modified_since off;
            {version}
            add_header Docker-Content-Digest sha256:$hex;
        }}"#
        );
    }
    kinds
}

fn registry_server(setup: &Setup) -> String {
    let blobs = setup.registry.join("docker/registry/v2/blobs/sha256");
    let blobs = blobs.display();
    let api = setup.conf.join("registry-api");
    let api = api.display();
    let version = VERSION;
    let immutable = r#"add_header Cache-Control "max-age=31536000, immutable";"#;
    let kinds = kind_locations(&blobs.to_string());
    let error = |code: &str, message: &str| {
        format!(r#"{{"errors":[{{"code":"{code}","message":"{message}","detail":null}}]}}"#)
    };
    format!(
        r#"
    server {{
{listen}
        error_page 401 @unauthorized;
        error_page 404 @unknown;
        error_page 405 @unsupported;
        {version}
        if ($request_method !~ ^(GET|HEAD)$) {{
            return 405;
        }}
        location = /healthz {{
            auth_basic off;
            default_type text/plain;
            return 200 "ok\n";
        }}
        location = /v2/ {{
            # Not `return`, which would answer before the user is asked for.
            try_files /dev/null/none /-/version;
        }}
        location = /-/version {{
            internal;
            alias {api}/_version.json;
            types {{ }}
            default_type application/json;
            {version}
        }}
        location = /v2 {{
            return 301 /v2/;
        }}
        location = /v2/_catalog {{
            default_type application/json;
            alias {api}/_catalog.json;
        }}
        location ~ "^/v2/(?<repository>.+)/tags/list$" {{
            default_type application/json;
            alias {api}/tags/$repository/list.json;
        }}
        location ~ "^/v2/.+/blobs/sha256:(?<directory>[0-9a-f]{{2}})(?<rest>[0-9a-f]{{62}})$" {{
            alias {blobs}/$directory/$directory$rest/data;
            types {{ }}
            default_type application/octet-stream;
            {version}
            {immutable}
            add_header Docker-Content-Digest sha256:$directory$rest;
        }}
        location ~ "^/v2/.+/manifests/sha256:(?<directory>[0-9a-f]{{2}})(?<rest>[0-9a-f]{{62}})$" {{
            try_files /dev/null/none /-/$airbundle_kind/$directory/$directory$rest;
        }}
        location ~ "^/v2/.+/manifests/[^/:]+$" {{
            try_files /dev/null/none /-/$airbundle_tag;
        }}
        location / {{
            return 404;
        }}{kinds}
        location @unauthorized {{
            default_type application/json;
            {version}
            return 401 '{unauthorized}';
        }}
        location @unknown {{
            default_type application/json;
            {version}
            return 404 '{unknown}';
        }}
        location @unsupported {{
            default_type application/json;
            {version}
            return 405 '{unsupported}';
        }}
    }}
"#,
        listen = listen(setup, setup.settings.registry_port),
        unauthorized = error("UNAUTHORIZED", "authentication required"),
        unknown = error("NAME_UNKNOWN", "this site has no such repository, manifest or blob"),
        unsupported = error("UNSUPPORTED", "this registry is read-only"),
    )
}

/// The maps: from the path of a tag to the kind and place of its manifest, and from a manifest to its kind.
fn manifests(setup: &Setup) -> String {
    let kind = |media_type: &str| KINDS.iter().find(|(_, known)| *known == media_type).map(|(kind, _)| *kind);
    let (mut tags, mut kinds) = (BTreeMap::new(), BTreeMap::new());
    let current = setup.record.images.iter().flat_map(|image| &image.manifests);
    for manifest in current.chain(&setup.record.retired) {
        if let Some(kind) = kind(&manifest.media_type) {
            kinds.insert(manifest.digest.hex(), kind);
        }
    }
    for image in &setup.record.images {
        let (Some(tag), Some(root)) = (&image.tag, image.manifests.first()) else { continue };
        let Some(kind) = kind(&root.media_type) else { continue };
        let hex = root.digest.hex();
        for repository in &image.repositories {
            let path = format!("/v2/{repository}/manifests/{tag}");
            tags.insert(path, format!("{kind}/{}/{hex}", &hex[..2]));
        }
    }
    // nginx compares such keys without regard to case, and tags have one: where that makes two of them one, they are
    // written as regular expressions, which have regard.
    let mut lower: BTreeMap<String, usize> = BTreeMap::new();
    for path in tags.keys() {
        *lower.entry(path.to_lowercase()).or_default() += 1;
    }
    let mut text = String::from("# Made by `unbundle site`.\nmap $uri $airbundle_tag {\n    default none;\n");
    for (path, place) in tags {
        let _ = if lower[&path.to_lowercase()] == 1 {
            writeln!(text, "    \"{path}\" {place};")
        } else {
            writeln!(text, "    \"~^{}$\" {place};", path.replace('.', "\\."))
        };
    }
    text += "}\nmap $directory$rest $airbundle_kind {\n    default none;\n";
    for (hex, kind) in kinds {
        let _ = writeln!(text, "    \"{hex}\" {kind};");
    }
    text += "}\n";
    text
}
