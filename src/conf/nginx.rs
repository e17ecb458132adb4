//! nginx configuration: the files, and the pull side of a registry, served from the registry storage.
//!
//! The storage does not record the media type of a manifest, and nginx cannot set a media type from a
//! variable. Therefore a map names the kind of each manifest, and each kind has a location with its media
//! type.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::base::path::RelPath;
use crate::base::source_url::SourceUrl;
use crate::conf::file_name::FileName;
use crate::conf::generated::Generated;
use crate::conf::quote::Text;
use crate::conf::quote::nginx::{self, Nginx};
use crate::conf::referrers;
use crate::conf::server_files::ServerFiles;
use crate::conf::setup::Setup;
use crate::conf::systemd::{FILES, SITE};
use crate::conf::template::fill;
use crate::oci::manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::site::record::Record;

const MAIN: &str = include_str!("nginx/main.conf");
const FILES_SERVER: &str = include_str!("nginx/files.conf");
const REGISTRY_SERVER: &str = include_str!("nginx/registry.conf");
const MANIFEST_LOCATION: &str = include_str!("nginx/manifest.conf");
/// The headers of every response of the registry. A location that has an `add_header` inherits none.
const HEADERS: &str = include_str!("nginx/headers.conf");
/// Maps for parts of tag lists.
const TAG_PAGES: &str = include_str!("nginx/tag_pages.conf");
const LOGIN_LIMIT: &str = include_str!("nginx/login_limit.conf");

const LISTEN: &str = "        listen @ADDRESS@@SSL@;\n";
const LISTEN_IPV6: &str = "        listen [::]:@ADDRESS@@SSL@;\n";
const TLS: &str = "        ssl_certificate @CERTIFICATE@;\n        ssl_certificate_key @KEY@;\n        \
                   ssl_protocols TLSv1.2 TLSv1.3;\n";
const AUTH: &str = "        auth_basic airbundle;\n        auth_basic_user_file @HTPASSWD@;\n        \
                    limit_req zone=airbundle_logins burst=5000 delay=1000;\n";

/// The kinds of manifests, which are path components of their locations, and their media types.
const KINDS: [(&str, &str); 4] = [
    ("oci-index", OCI_INDEX),
    ("oci-manifest", OCI_MANIFEST),
    ("docker-list", DOCKER_LIST),
    ("docker-manifest", DOCKER_MANIFEST),
];

/// The file of tags in the directory of a repository. No component of a repository name begins with `_`.
const TAGS: &str = "_tags.json";

/// Maximum length of a quoted tag list in a map: nginx reads words of less than 4 KiB.
const MAX_TAG_LIST: usize = 4000;

/// Adds `nginx.conf` (files and registry), `nginx-files.conf` (for use with a separate registry), the same for the
/// systemd units and for containers if that differs, and the files below `registry-api` that the registry returns.
pub(crate) fn generate(setup: &Setup, generated: &mut Generated) {
    let mut files = vec![
        ("nginx.conf", "nginx-files.conf", [ServerFiles::of(setup), ServerFiles::of(setup)]),
        (
            "systemd/nginx.conf",
            "systemd/nginx-files.conf",
            [ServerFiles::of_unit(setup, SITE), ServerFiles::of_unit(setup, FILES)],
        ),
    ];
    if setup.settings.bind.is_some() {
        let paths = [ServerFiles::of_container(setup), ServerFiles::of_container(setup)];
        files.push(("container/nginx.conf", "container/nginx-files.conf", paths));
    }
    for (both, alone, paths) in files {
        let mut servers = files_server(setup, &paths[0]);
        servers.push(&registry_server(setup, &paths[0]));
        let config = main("the files and a read-only registry", setup, &paths[0], servers);
        generated.put(both, config.as_bytes(), 0o644);
        let config = main("the files", setup, &paths[1], files_server(setup, &paths[1]));
        generated.put(alone, config.as_bytes(), 0o644);
    }
    let mut maps = Text::fixed("# Made by `unbundle site`.\n");
    maps.push(&tag_map(setup));
    maps.push(&kind_map(setup));
    maps.push(&tag_list_map(setup));
    generated.put("registry-api/manifests.conf", maps.as_bytes(), 0o644);
    put_responses(setup, generated);
}

/// Adds the responses of the registry that are not in its storage: version, catalog, tag lists and referrers.
fn put_responses(setup: &Setup, generated: &mut Generated) {
    let tags = tags(&setup.record);
    let catalog = serde_json::json!({ "repositories": tags.keys().collect::<Vec<_>>() });
    generated.put("registry-api/_version.json", b"{}", 0o644);
    generated.put("registry-api/_catalog.json", catalog.to_string().as_bytes(), 0o644);
    for (repository, tags) in tags {
        let list = serde_json::json!({ "name": repository, "tags": tags });
        if let Some(directory) = FileName::fixed("registry-api/tags").foreign(repository) {
            generated.put(directory.child(TAGS).as_str(), list.to_string().as_bytes(), 0o644);
        }
        if let Some(directory) = FileName::fixed("registry-api/referrers").foreign(repository) {
            generated.put(directory.child("_none").as_str(), referrers::NONE, 0o644);
        }
    }
    for ((repository, subject), response) in referrers::responses(setup) {
        let directory = FileName::fixed("registry-api/referrers").foreign(repository);
        if let Some(file) = directory.and_then(|directory| directory.child("_").foreign(&subject.hex())) {
            generated.put(file.as_str(), &response, 0o644);
        }
    }
}

fn main(content: &'static str, setup: &Setup, paths: &ServerFiles, servers: Text<Nginx>) -> Text<Nginx> {
    const NAMES: [&str; 5] = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temp_path = |directory: &Text<Nginx>, name| {
        let values = [("NAME", Text::fixed(name)), ("DIRECTORY", directory.clone())];
        fill("    @NAME@_temp_path @DIRECTORY@/@NAME@;\n", &values)
    };
    let temp_paths = paths.temporary.as_ref().map(nginx::path);
    let temp_paths = temp_paths.iter().flat_map(|path| NAMES.map(|name| temp_path(path, name))).collect();
    fill(
        MAIN,
        &[
            ("CONTENT", Text::fixed(content)),
            ("TEMP_PATHS", temp_paths),
            ("CATALOG_POLICY", catalog_policy(setup)),
            ("HSTS", setup.hsts().map_or_else(Text::new, Text::fixed)),
            ("ESCAPED_FILES", escaped_files(setup)),
            ("LOGIN_LIMIT", Text::fixed(if paths.htpasswd.is_some() { LOGIN_LIMIT } else { "" })),
            ("SERVERS", servers),
        ],
    )
}

/// Returns the content security policy of `/index.html`. It leaves the content of a page of the user alone.
fn catalog_policy(setup: &Setup) -> Text<Nginx> {
    if setup.settings.own_index_page {
        return Text::fixed("frame-ancestors 'none'");
    }
    nginx::catalog_policy()
}

/// Returns the part of a map from request URI to path, for the files that are not at the decoded path of their URL.
fn escaped_files(setup: &Setup) -> Text<Nginx> {
    let mut text = Text::new();
    for file in &setup.record.files {
        let (path, url) = (file.path.as_str(), file.url.as_str());
        let Some((prefix, requested)) = url_path(&file.path, &file.url) else { continue };
        let Some(value) = nginx::map_value(&format!("/{path}")) else { continue };
        if url.contains('?') || path.contains("%2F") {
            let key = nginx::exact_map_key(&format!("/{prefix}{requested}"));
            text.push(&fill("        @KEY@ @FILE@;\n", &[("KEY", key), ("FILE", value)]));
        }
    }
    text
}

/// Splits the path of a file into the prefix of the site and the part that follows from its URL, which is returned as
/// it is in the URL. `None`: a list states the path.
fn url_path<'a>(path: &'a RelPath, url: &SourceUrl) -> Option<(&'a str, String)> {
    let prefix = path.as_str().strip_suffix(url.wget_path().ok()?.as_str())?;
    let (_, requested) = url.as_str().split_once("://")?;
    // As in the path, the brackets of an IPv6 address are dropped.
    let (authority, rest) = requested.split_at(requested.find(['/', '?']).unwrap_or(requested.len()));
    Some((prefix, format!("{}{rest}", authority.replace(['[', ']'], ""))))
}

fn files_server(setup: &Setup, paths: &ServerFiles) -> Text<Nginx> {
    let listen = listen(setup, setup.settings.files_port, paths);
    fill(FILES_SERVER, &[("LISTEN", listen), ("ROOT", nginx::path(&setup.files))])
}

fn registry_server(setup: &Setup, paths: &ServerFiles) -> Text<Nginx> {
    let blobs = nginx::path(&setup.registry.child("docker/registry/v2/blobs/sha256"));
    let locations = KINDS.map(|(kind, media_type)| {
        let (kind, media_type) = (Text::fixed(kind), Text::fixed(media_type));
        let values = [
            ("KIND", kind),
            ("MEDIA_TYPE", media_type),
            ("BLOBS", blobs.clone()),
            ("HEADERS", Text::fixed(HEADERS)),
        ];
        fill(MANIFEST_LOCATION, &values)
    });
    fill(
        REGISTRY_SERVER,
        &[
            ("LISTEN", listen(setup, setup.settings.registry_port, paths)),
            ("API", nginx::path(&setup.conf.child("registry-api"))),
            ("TAG_PAGES", fill(TAG_PAGES, &[("TAGS", Text::fixed(TAGS))])),
            ("TAGS", Text::fixed(TAGS)),
            ("BLOBS", blobs),
            ("HEADERS", Text::fixed(HEADERS)),
            ("MANIFEST_LOCATIONS", locations.into_iter().collect()),
        ],
    )
}

/// Returns the directives for the port, TLS and the user.
fn listen(setup: &Setup, port: u16, paths: &ServerFiles) -> Text<Nginx> {
    let ssl = Text::fixed(if setup.is_tls() { " ssl" } else { "" });
    let values = |address| [("ADDRESS", address), ("SSL", ssl.clone())];
    let mut text = match paths.bind {
        Some(address) => fill(LISTEN, &values(nginx::socket(address, port))),
        None => fill(LISTEN, &values(Text::number(port))),
    };
    // Without IPv6 in the kernel, nginx would fail.
    if paths.bind.is_none() && Path::new("/proc/net/if_inet6").exists() {
        text.push(&fill(LISTEN_IPV6, &values(Text::number(port))));
    }
    if let Some((certificate, key)) = &paths.certificate {
        text.push(&fill(TLS, &[("CERTIFICATE", nginx::path(certificate)), ("KEY", nginx::path(key))]));
    }
    if let Some(htpasswd) = &paths.htpasswd {
        text.push(&fill(AUTH, &[("HTPASSWD", nginx::path(htpasswd))]));
    }
    text
}

/// Returns the map from the path of a tag to the location of its manifest.
fn tag_map(setup: &Setup) -> Text<Nginx> {
    let mut tags = BTreeMap::new();
    for image in &setup.record.images {
        let (Some(tag), Some(root)) = (&image.tag, image.manifests.first()) else { continue };
        let Some(kind) = kind(&root.media_type) else { continue };
        for repository in &image.repositories {
            tags.insert(format!("/v2/{repository}/manifests/{tag}"), (kind, root.digest));
        }
    }
    // nginx compares strings in a map without regard to case, but tags are case-sensitive. Tags that differ
    // only in case are therefore regular expressions, which are case-sensitive.
    let mut by_lowercase: BTreeMap<String, usize> = BTreeMap::new();
    for path in tags.keys() {
        *by_lowercase.entry(path.to_lowercase()).or_default() += 1;
    }
    let mut text = Text::fixed("map $uri $airbundle_tag {\n    default none;\n");
    for (path, (kind, digest)) in tags {
        let is_unique = by_lowercase[&path.to_lowercase()] == 1;
        let key = if is_unique { nginx::map_key(&path) } else { nginx::exact_map_key(&path) };
        let (directory, hex) = (nginx::hex_directory(&digest), nginx::hex(&digest));
        let values = [("KEY", key), ("KIND", Text::fixed(kind)), ("DIRECTORY", directory), ("HEX", hex)];
        text.push(&fill("    @KEY@ @KIND@/@DIRECTORY@/@HEX@;\n", &values));
    }
    text.push_fixed("}\n");
    text
}

/// Returns the map from the digest of a manifest to its kind. Retired manifests are still served by digest.
fn kind_map(setup: &Setup) -> Text<Nginx> {
    let current = setup.record.images.iter().flat_map(|image| &image.manifests);
    let all = current.chain(&setup.record.retired);
    let kinds: BTreeMap<_, _> =
        all.filter_map(|manifest| Some((manifest.digest, kind(&manifest.media_type)?))).collect();
    let mut text = Text::fixed("map $directory$rest $airbundle_kind {\n    default none;\n");
    for (digest, kind) in kinds {
        text.push(&fill(
            "    \"@HEX@\" @KIND@;\n",
            &[("HEX", nginx::hex(&digest)), ("KIND", Text::fixed(kind))],
        ));
    }
    text.push_fixed("}\n");
    text
}

/// Returns the map from repository to its tags, without those whose list is too long.
fn tag_list_map(setup: &Setup) -> Text<Nginx> {
    let mut text = Text::fixed("map $repository $airbundle_tags {\n    default \"\";\n");
    for (repository, tags) in tags(&setup.record) {
        let list = tags.iter().map(|tag| format!("\"{tag}\"")).collect::<Vec<_>>().join(",");
        let is_short = |value: &Text<Nginx>| value.as_str().len() <= MAX_TAG_LIST;
        let Some(value) = nginx::map_value(&list).filter(is_short) else { continue };
        let values = [("KEY", nginx::map_key(repository)), ("VALUE", value)];
        text.push(&fill("    @KEY@ @VALUE@;\n", &values));
    }
    text.push_fixed("}\n");
    text
}

fn kind(media_type: &str) -> Option<&'static str> {
    KINDS.iter().find(|(_, known)| *known == media_type).map(|(kind, _)| *kind)
}

/// Returns the tags of each repository.
fn tags(record: &Record) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut tags: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for image in &record.images {
        for repository in &image.repositories {
            tags.entry(repository).or_default().extend(image.tag.as_deref());
        }
    }
    tags
}
