//! `offline.yml`: the variables with which Kubespray takes everything from the site.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::conf::setup::{Setup, Tls};
use crate::oci::reference::DEFAULT_PREFIX;

/// What a release of Kubespray asks for: its own lists, as in `manifests/`.
struct Release {
    version: &'static str,
    architecture: &'static str,
    files: &'static str,
    images: &'static str,
    /// Whether containerd's mirrors take a `header` and a `ca` (since v2.31.0); before, `auth`.
    mirrors_have_headers: bool,
}

const RELEASES: [Release; 4] = [
    Release {
        version: "v2.25.0",
        architecture: "amd64",
        files: include_str!("../../manifests/kubespray-v2.25.0/files.list"),
        images: include_str!("../../manifests/kubespray-v2.25.0/images.list"),
        mirrors_have_headers: false,
    },
    Release {
        version: "v2.25.0",
        architecture: "arm64",
        files: include_str!("../../manifests/kubespray-v2.25.0/arm64/files.list"),
        images: include_str!("../../manifests/kubespray-v2.25.0/arm64/images.list"),
        mirrors_have_headers: false,
    },
    Release {
        version: "v2.31.0",
        architecture: "amd64",
        files: include_str!("../../manifests/kubespray-v2.31.0/files.list"),
        images: include_str!("../../manifests/kubespray-v2.31.0/images.list"),
        mirrors_have_headers: true,
    },
    Release {
        version: "v2.31.0",
        architecture: "arm64",
        files: include_str!("../../manifests/kubespray-v2.31.0/arm64/files.list"),
        images: include_str!("../../manifests/kubespray-v2.31.0/arm64/images.list"),
        mirrors_have_headers: true,
    },
];

/// The variables that name where files come from, and what they stand for.
const FILE_HOSTS: [(&str, &str); 4] = [
    ("github_url", "github.com"),
    ("dl_k8s_io_url", "dl.k8s.io"),
    ("storage_googleapis_url", "storage.googleapis.com"),
    ("get_helm_url", "get.helm.sh"),
];
/// The variables that name where images come from, and what they stand for.
const IMAGE_HOSTS: [(&str, &str); 5] = [
    ("kube_image_repo", "registry.k8s.io"),
    ("gcr_image_repo", "gcr.io"),
    ("docker_image_repo", "docker.io"),
    ("quay_image_repo", "quay.io"),
    ("github_image_repo", "ghcr.io"),
];

/// The content of `offline.yml`.
#[must_use]
pub(crate) fn offline(setup: &Setup) -> String {
    let known = Known::of(setup);
    let release = known.release();
    let mut text = String::from(
        "# Variables with which Kubespray takes all files and images from this site. Made by `unbundle site`, which\n\
         # keeps what you edit here. Copy it to inventory/<cluster>/group_vars/all/offline.yml.\n",
    );
    if setup.settings.tls == Tls::Auto {
        text += "# Every node has to trust the site first: run conf/trust.sh on each of them.\n";
    }
    text += "---\n";
    if let Some(user) = &setup.settings.user {
        let _ = write!(
            text,
            "# The password is taken from the environment of ansible-playbook; a variable of Ansible Vault does as well.\n\
             # Ansible before 2.17 takes it in URLs only if it has nothing but letters, digits and ._~-\n\
             airbundle_user: \"{user}\"\nairbundle_password: \"{{{{ lookup('env', 'AIRBUNDLE_PASSWORD') }}}}\"\n\n"
        );
    }
    text += &file_variables(setup);
    text += &image_variables(setup);
    text += &containerd(setup, release);
    text += &known.lacking(setup);
    text
}

fn file_variables(setup: &Setup) -> String {
    let (scheme, port) = (setup.scheme(), setup.settings.files_port);
    let host = &setup.settings.host;
    let mut text = if setup.settings.user.is_some() {
        format!(
            "files_repo: \"{scheme}://{{{{ airbundle_user }}}}:{{{{ airbundle_password | urlencode | replace('/', '%2F') }}}}@{host}:{port}/k8s\"\n"
        )
    } else {
        format!("files_repo: \"{}/{DEFAULT_PREFIX}\"\n", setup.files_url())
    };
    for (variable, host) in FILE_HOSTS {
        let is_here =
            setup.record.files.iter().any(|file| file.path.starts_with(&format!("{DEFAULT_PREFIX}/{host}/")));
        let _ = if is_here {
            writeln!(text, "{variable}: \"{{{{ files_repo }}}}/{host}\"")
        } else {
            writeln!(text, "# {variable}: this site has no file of {host}")
        };
    }
    text
}

fn image_variables(setup: &Setup) -> String {
    let mut text = format!("\nregistry_host: \"{}\"\n", setup.registry_host());
    let prefixes: BTreeMap<String, String> = setup.prefixes().into_iter().collect();
    for (variable, host) in IMAGE_HOSTS {
        match prefixes.get(host) {
            Some(prefix) if prefix.is_empty() => {
                let _ = writeln!(text, "{variable}: \"{{{{ registry_host }}}}\"");
            }
            Some(prefix) => {
                let _ = writeln!(text, "{variable}: \"{{{{ registry_host }}}}/{prefix}\"");
            }
            None => {
                let is_here = |reference: &str| reference.starts_with(&format!("{host}/"));
                let why = if setup.record.images.iter().any(|image| is_here(&image.reference)) {
                    "the repositories of this host have no name in common here: unpack all bundles with one template"
                } else {
                    "this site has no image of this host"
                };
                let _ = writeln!(text, "# {variable} ({host}): {why}");
            }
        }
    }
    text
}

/// containerd on the nodes: how to reach the site, and the site as a mirror of the hosts whose images it has, for
/// images that something else than Kubespray asks for by their real names.
fn containerd(setup: &Setup, release: Option<&Release>) -> String {
    let url = setup.registry_url();
    let registry = setup.registry_host();
    let headers = release.is_none_or(|release| release.mirrors_have_headers);
    let mirror = |host: &str, prefix: &str, server: &str| {
        let path = if prefix.is_empty() { String::new() } else { format!("/v2/{prefix}") };
        let mut text = format!(
            "  - prefix: {host}\n    server: {server}\n    mirrors:\n      - host: {url}{path}\n        capabilities: \
             [\"pull\", \"resolve\"]\n        skip_verify: false\n        override_path: {}\n",
            !path.is_empty()
        );
        if headers && setup.settings.tls == Tls::Auto {
            let _ = writeln!(text, "        ca: {}", crate::conf::trust::containerd_ca(setup));
        }
        if setup.settings.user.is_some() && headers {
            text += "        header:\n          authorization: \"Basic {{ (airbundle_user + ':' + airbundle_password) | \
                     b64encode }}\"\n";
        } else if setup.settings.user.is_some() {
            text += "        auth:\n          username: \"{{ airbundle_user }}\"\n          password: \"{{ \
                     airbundle_password }}\"\n";
        }
        text
    };
    let mut text = String::from("\ncontainerd_registries_mirrors:\n");
    text += &mirror(&registry, "", &url);
    for (host, prefix) in setup.prefixes().iter().filter(|(_, prefix)| !prefix.is_empty()) {
        text += &mirror(host, prefix, &crate::conf::trust::server_of(host));
    }
    if setup.settings.user.is_some() {
        let _ = write!(
            text,
            "containerd_registry_auth:\n  - registry: {registry}\n    username: \"{{{{ airbundle_user }}}}\"\n    \
             password: \"{{{{ airbundle_password }}}}\"\n"
        );
        if !headers {
            text += "# This release pulls with ctr, which takes credentials on its command line only.\n\
                     nerdctl_image_pull_command: \"{{ bin_dir }}/ctr -n k8s.io images pull --hosts-dir {{ \
                     containerd_cfg_dir }}/certs.d --user '{{ airbundle_user }}:{{ airbundle_password }}'\"\n";
        }
    }
    text
}

/// How the site compares to the releases that are known here.
struct Known<'a> {
    urls: BTreeSet<&'a str>,
    references: BTreeSet<&'a str>,
}

impl<'a> Known<'a> {
    fn of(setup: &'a Setup) -> Self {
        Self {
            urls: setup.record.files.iter().map(|file| &*file.url).collect(),
            references: setup.record.images.iter().map(|image| &*image.reference).collect(),
        }
    }

    fn has(&self, entry: &str) -> bool {
        self.urls.contains(entry) || self.references.contains(entry)
    }

    fn share(&self, release: &Release) -> usize {
        release.entries().filter(|entry| self.has(entry)).count()
    }

    /// The release of which most is here.
    fn release(&self) -> Option<&'static Release> {
        // Of two that are here in the same measure, the first.
        let best = RELEASES.iter().rev().max_by_key(|release| self.share(release));
        best.filter(|release| self.share(release) > 0)
    }

    /// Comments that name what the release asks for and the site lacks.
    fn lacking(&self, setup: &Setup) -> String {
        let Some(best) = self.release() else {
            return "\n# What is on this site is of no release of Kubespray that this program knows.\n"
                .into();
        };
        let mut text = String::new();
        for release in RELEASES.iter().filter(|release| release.version == best.version) {
            // Images are for several architectures, and some files for all: the others tell them apart.
            let others = RELEASES.iter().filter(|other| other.architecture != release.architecture);
            let common: BTreeSet<&str> = others.flat_map(|other| entries(other.files)).collect();
            if !entries(release.files).any(|url| !common.contains(url) && self.has(url)) {
                continue;
            }
            let (version, architecture) = (release.version, release.architecture);
            let missing: Vec<_> = release.entries().filter(|entry| !self.has(entry)).collect();
            if missing.is_empty() {
                let _ = writeln!(
                    text,
                    "\n# Everything that Kubespray {version} lists for {architecture} is here."
                );
                continue;
            }
            let _ = writeln!(
                text,
                "\n# Kubespray {version} lists for {architecture} what this site lacks ({} of {}). If your settings ask for \
                 one of\n# these, add it to the lists that are packed:",
                missing.len(),
                release.entries().count()
            );
            for entry in missing {
                let _ = writeln!(text, "#   {entry}");
            }
        }
        let platforms: BTreeSet<&String> =
            setup.record.images.iter().flat_map(|image| &image.platforms).collect();
        if !platforms.is_empty() {
            let platforms: Vec<_> = platforms.into_iter().map(String::as_str).collect();
            let _ = writeln!(text, "# Platforms of the images here: {}.", platforms.join(", "));
        }
        text + "# Packages of the operating system are not part of any list: the nodes need a repository for them.\n"
    }
}

impl Release {
    fn entries(&self) -> impl Iterator<Item = &'static str> {
        entries(self.files).chain(entries(self.images))
    }
}

/// What the lines of a list name.
fn entries(list: &'static str) -> impl Iterator<Item = &'static str> {
    list.lines().filter_map(|line| line.split_whitespace().next()).filter(|entry| !entry.starts_with('#'))
}
