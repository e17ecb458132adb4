//! `offline.yml`: Kubespray variables to download all files and images from the site.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::conf::setup::{Setup, Tls};
use crate::conf::trust::{containerd_ca, upstream_url};
use crate::oci::reference::DEFAULT_PREFIX;

/// The files and images that a release of Kubespray lists, as in `manifests/`.
struct Release {
    version: &'static str,
    architecture: &'static str,
    files: &'static str,
    images: &'static str,
    /// True if the mirrors of containerd accept `header` and `ca` (since v2.31.0) instead of `auth`.
    mirrors_have_headers: bool,
}

macro_rules! release {
    ($version:literal, $architecture:literal, $directory:literal, $mirrors_have_headers:literal) => {
        Release {
            version: $version,
            architecture: $architecture,
            files: include_str!(concat!("../../manifests/kubespray-", $version, $directory, "/files.list")),
            images: include_str!(concat!("../../manifests/kubespray-", $version, $directory, "/images.list")),
            mirrors_have_headers: $mirrors_have_headers,
        }
    };
}

const RELEASES: [Release; 4] = [
    release!("v2.25.0", "amd64", "", false),
    release!("v2.25.0", "arm64", "/arm64", false),
    release!("v2.31.0", "amd64", "", true),
    release!("v2.31.0", "arm64", "/arm64", true),
];

/// Variables with the URL of a file server, and the hosts that they replace.
const FILE_HOSTS: [(&str, &str); 4] = [
    ("github_url", "github.com"),
    ("dl_k8s_io_url", "dl.k8s.io"),
    ("storage_googleapis_url", "storage.googleapis.com"),
    ("get_helm_url", "get.helm.sh"),
];
/// Variables with the name of a registry, and the hosts that they replace.
const IMAGE_HOSTS: [(&str, &str); 5] = [
    ("kube_image_repo", "registry.k8s.io"),
    ("gcr_image_repo", "gcr.io"),
    ("docker_image_repo", "docker.io"),
    ("quay_image_repo", "quay.io"),
    ("github_image_repo", "ghcr.io"),
];

const HEADER: &str = "\
# Kubespray variables to download all files and images from this site. Made by `unbundle site`, which keeps local edits.
# Copy this file to inventory/<cluster>/group_vars/all/offline.yml.
";
const TRUST: &str = "# Every node must trust the CA of the site: run conf/trust.sh on each node first.\n";
const PASSWORD: &str = "\
# The password is in the environment of ansible-playbook; a variable of Ansible Vault works too.
# Before Ansible 2.17, a password in a URL can have only letters, digits and ._~-
";
const PACKAGES: &str =
    "# Packages of the operating system are not included: the nodes need a package repository.\n";

/// Returns the content of `offline.yml`.
#[must_use]
pub(crate) fn offline(setup: &Setup) -> String {
    let coverage = Coverage::of(setup);
    let release = coverage.best_release();
    let has_headers = release.is_none_or(|release| release.mirrors_have_headers);
    let mut text = String::from(HEADER);
    if setup.settings.tls == Tls::Auto {
        text += TRUST;
    }
    text += "---\n";
    if let Some(user) = &setup.settings.user {
        text += PASSWORD;
        let _ = writeln!(text, "airbundle_user: \"{user}\"");
        text += "airbundle_password: \"{{ lookup('env', 'AIRBUNDLE_PASSWORD') }}\"\n\n";
    }
    text += &file_variables(setup);
    text += &image_variables(setup);
    text += &containerd_mirrors(setup, has_headers);
    if setup.settings.user.is_some() {
        text += &containerd_login(setup, has_headers);
    }
    text += &match release {
        Some(release) => coverage.missing_entries(release.version) + &platforms(setup) + PACKAGES,
        None => "\n# This site matches no Kubespray release that this version of `unbundle` knows.\n".into(),
    };
    text
}

fn file_variables(setup: &Setup) -> String {
    let url = if setup.settings.user.is_some() {
        let login = "{{ airbundle_user }}:{{ airbundle_password | urlencode | replace('/', '%2F') }}";
        format!("{}://{login}@{}:{}", setup.scheme(), setup.settings.host, setup.settings.files_port)
    } else {
        setup.files_url()
    };
    let mut text = format!("files_repo: \"{url}/k8s\"\n");
    for (variable, host) in FILE_HOSTS {
        let directory = format!("{DEFAULT_PREFIX}/{host}/");
        let _ = if setup.record.files.iter().any(|file| file.path.as_str().starts_with(&directory)) {
            writeln!(text, "{variable}: \"{{{{ files_repo }}}}/{host}\"")
        } else {
            writeln!(text, "# {variable}: this site has no files of {host}")
        };
    }
    text
}

fn image_variables(setup: &Setup) -> String {
    let mut text = format!("\nregistry_host: \"{}\"\n", setup.registry_host());
    let prefixes: BTreeMap<String, String> = setup.prefixes().into_iter().collect();
    for (variable, host) in IMAGE_HOSTS {
        let _ = match prefixes.get(host).map(String::as_str) {
            Some("") => writeln!(text, "{variable}: \"{{{{ registry_host }}}}\""),
            Some(prefix) => writeln!(text, "{variable}: \"{{{{ registry_host }}}}/{prefix}\""),
            None => {
                let is_of_host = |reference: &str| reference.starts_with(&format!("{host}/"));
                let reason = if setup.record.images.iter().any(|image| is_of_host(image.reference.as_str())) {
                    "the repositories of this host have no common prefix: unpack all bundles with one template"
                } else {
                    "this site has no images of this host"
                };
                writeln!(text, "# {variable} ({host}): {reason}")
            }
        };
    }
    text
}

/// Returns the registries of containerd on the nodes: the site, and the site as a mirror of the hosts whose
/// images it has, for images that are pulled by their original names.
fn containerd_mirrors(setup: &Setup, has_headers: bool) -> String {
    let url = setup.registry_url();
    let mut options = String::new();
    if has_headers && setup.settings.tls == Tls::Auto {
        let _ = writeln!(options, "        ca: {}", containerd_ca(setup));
    }
    if setup.settings.user.is_some() {
        options += if has_headers {
            "        header:
          authorization: \"Basic {{ (airbundle_user + ':' + airbundle_password) | b64encode }}\"\n"
        } else {
            "        auth:
          username: \"{{ airbundle_user }}\"
          password: \"{{ airbundle_password }}\"\n"
        };
    }
    let entry = |prefix: &str, server: &str, mirror: &str| {
        format!(
            "  - prefix: {prefix}
    server: {server}
    mirrors:
      - host: {mirror}
        capabilities: [\"pull\", \"resolve\"]
        skip_verify: false
        override_path: {}
{options}",
            mirror != url
        )
    };
    let mut text = String::from("\ncontainerd_registries_mirrors:\n");
    text += &entry(&setup.registry_host(), &url, &url);
    for (host, prefix) in setup.mirrored_hosts() {
        text += &entry(&host, &upstream_url(&host), &format!("{url}/v2/{prefix}"));
    }
    text
}

/// Returns the credentials of containerd on the nodes.
fn containerd_login(setup: &Setup, has_headers: bool) -> String {
    let mut text = format!(
        "containerd_registry_auth:
  - registry: {}
    username: \"{{{{ airbundle_user }}}}\"
    password: \"{{{{ airbundle_password }}}}\"\n",
        setup.registry_host()
    );
    if !has_headers {
        text += "# This release pulls with ctr, which accepts credentials only on its command line.\n\
                 nerdctl_image_pull_command: \"{{ bin_dir }}/ctr -n k8s.io images pull --hosts-dir {{ \
                 containerd_cfg_dir }}/certs.d --user '{{ airbundle_user }}:{{ airbundle_password }}'\"\n";
    }
    text
}

/// Returns a comment with the platforms of the images. Empty: the site has no images.
fn platforms(setup: &Setup) -> String {
    let platforms: BTreeSet<String> =
        setup.record.images.iter().flat_map(|image| &image.platforms).map(ToString::to_string).collect();
    if platforms.is_empty() {
        return String::new();
    }
    format!("# Platforms of the images: {}.\n", platforms.into_iter().collect::<Vec<_>>().join(", "))
}

/// The URLs and references of a site, to compare with [`RELEASES`].
struct Coverage<'a>(BTreeSet<&'a str>);

impl<'a> Coverage<'a> {
    fn of(setup: &'a Setup) -> Self {
        let urls = setup.record.files.iter().map(|file| &*file.url);
        Self(urls.chain(setup.record.images.iter().map(|image| image.reference.as_str())).collect())
    }

    fn has(&self, entry: &str) -> bool {
        self.0.contains(entry)
    }

    /// Returns the release with the most entries on the site, the first one of several. `None`: no entries.
    fn best_release(&self) -> Option<&'static Release> {
        let count = |release: &Release| release.entries().filter(|entry| self.has(entry)).count();
        let best = RELEASES.iter().rev().max_by_key(|release| count(release));
        best.filter(|release| count(release) > 0)
    }

    /// Returns comments with the entries of a release that the site lacks, for each architecture of the site.
    fn missing_entries(&self, version: &str) -> String {
        let mut text = String::new();
        for release in RELEASES.iter().filter(|release| release.version == version) {
            if !self.has_architecture(release) {
                continue;
            }
            let architecture = release.architecture;
            let missing: Vec<_> = release.entries().filter(|entry| !self.has(entry)).collect();
            if missing.is_empty() {
                let _ = writeln!(
                    text,
                    "\n# Kubespray {version}, {architecture}: all listed files and images are here."
                );
                continue;
            }
            let _ = writeln!(
                text,
                "\n# Kubespray {version}, {architecture}: {} of {} listed files and images are missing. If your settings \
                 require one of\n# them, add it to the lists and pack again:",
                missing.len(),
                release.entries().count()
            );
            for entry in missing {
                let _ = writeln!(text, "#   {entry}");
            }
        }
        text
    }

    /// True if the site has a file that only this architecture lists: images and some files are for several.
    fn has_architecture(&self, release: &Release) -> bool {
        let others = RELEASES.iter().filter(|other| other.architecture != release.architecture);
        let common: BTreeSet<&str> = others.flat_map(|other| entries(other.files)).collect();
        entries(release.files).any(|url| !common.contains(url) && self.has(url))
    }
}

impl Release {
    fn entries(&self) -> impl Iterator<Item = &'static str> {
        entries(self.files).chain(entries(self.images))
    }
}

/// Returns the URLs or references of a list.
fn entries(list: &'static str) -> impl Iterator<Item = &'static str> {
    list.lines().filter_map(|line| line.split_whitespace().next()).filter(|entry| !entry.starts_with('#'))
}
