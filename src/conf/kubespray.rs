//! `offline.yml`: Kubespray variables to download all files and images from the site.

use std::collections::{BTreeMap, BTreeSet};

use crate::conf::quote::Text;
use crate::conf::quote::ansible::{self, Ansible};
use crate::conf::setup::{Setup, Tls};
use crate::conf::template::fill;
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

const UNKNOWN: &str = "\n# This site matches no Kubespray release that this version of `unbundle` knows.\n";

/// User and password in the URL of the file server.
const LOGIN: &str = "{{ airbundle_user }}:{{ airbundle_password | urlencode | replace('/', '%2F') }}@";

const MIRROR: &str = "  - prefix: @PREFIX@
    server: @SERVER@
    mirrors:
      - host: @MIRROR@
        capabilities: [\"pull\", \"resolve\"]
        skip_verify: false
        override_path: @OVERRIDE_PATH@
@OPTIONS@
";
const MIRROR_HEADER: &str = "        header:
          authorization: \"Basic {{ (airbundle_user + ':' + airbundle_password) | b64encode }}\"\n";
const MIRROR_AUTH: &str = "        auth:
          username: \"{{ airbundle_user }}\"
          password: \"{{ airbundle_password }}\"\n";
const REGISTRY_AUTH: &str = "containerd_registry_auth:
  - registry: @REGISTRY@
    username: \"{{ airbundle_user }}\"
    password: \"{{ airbundle_password }}\"\n";
const CTR_LOGIN: &str = "\
# This release pulls with ctr, which accepts credentials only on its command line.
nerdctl_image_pull_command: \"{{ bin_dir }}/ctr -n k8s.io images pull --hosts-dir {{ containerd_cfg_dir }}/certs.d --user \
'{{ airbundle_user }}:{{ airbundle_password }}'\"\n";

const COMPLETE: &str = "\n# Kubespray @VERSION@, @ARCHITECTURE@: all listed files and images are here.\n";
const INCOMPLETE: &str = "
# Kubespray @VERSION@, @ARCHITECTURE@: @MISSING@ of @ALL@ listed files and images are missing. If your settings require one of
# them, add it to the lists and pack again:\n";

/// The platforms that a comment can name.
const PLATFORMS: [&str; 5] = ["linux/amd64", "linux/arm/v7", "linux/arm64", "linux/ppc64le", "linux/s390x"];

/// Returns the content of `offline.yml`.
#[must_use]
pub(crate) fn offline(setup: &Setup) -> Text<Ansible> {
    let coverage = Coverage::of(setup);
    let release = coverage.best_release();
    let has_headers = release.is_none_or(|release| release.mirrors_have_headers);
    let mut text = Text::fixed(HEADER);
    if setup.settings.tls == Tls::Auto {
        text.push_fixed(TRUST);
    }
    text.push_fixed("---\n");
    if let Some(user) = &setup.settings.user {
        text.push_fixed(PASSWORD);
        text.push(&fill("airbundle_user: @USER@\n", &[("USER", ansible::string(user))]));
        text.push_fixed("airbundle_password: \"{{ lookup('env', 'AIRBUNDLE_PASSWORD') }}\"\n\n");
    }
    text.push(&file_variables(setup));
    text.push(&image_variables(setup));
    text.push(&containerd_mirrors(setup, has_headers));
    if setup.settings.user.is_some() {
        text.push(&containerd_login(setup, has_headers));
    }
    match release {
        Some(release) => {
            text.push(&coverage.missing_entries(release.version));
            text.push(&platforms(setup));
            text.push_fixed(PACKAGES);
        }
        None => text.push_fixed(UNKNOWN),
    }
    text
}

fn file_variables(setup: &Setup) -> Text<Ansible> {
    let login = if setup.settings.user.is_some() { LOGIN } else { "" };
    let url = fill(
        "@SCHEME@://@LOGIN@@HOST@:@PORT@/k8s",
        &[
            ("SCHEME", Text::fixed(setup.scheme())),
            ("LOGIN", Text::fixed(login)),
            ("HOST", ansible::part(&setup.settings.host)),
            ("PORT", Text::number(setup.settings.files_port)),
        ],
    );
    let mut text = fill("files_repo: @URL@\n", &[("URL", ansible::template(&url))]);
    for (variable, host) in FILE_HOSTS {
        let directory = format!("{DEFAULT_PREFIX}/{host}/");
        let template = if setup.record.files.iter().any(|file| file.path.as_str().starts_with(&directory)) {
            "@VARIABLE@: \"{{ files_repo }}/@HOST@\"\n"
        } else {
            "# @VARIABLE@: this site has no files of @HOST@\n"
        };
        text.push(&fill(template, &[("VARIABLE", Text::fixed(variable)), ("HOST", Text::fixed(host))]));
    }
    text
}

fn image_variables(setup: &Setup) -> Text<Ansible> {
    let registry = ansible::string(&setup.registry_host());
    let mut text = fill("\nregistry_host: @REGISTRY@\n", &[("REGISTRY", registry)]);
    let prefixes: BTreeMap<String, String> = setup.prefixes().into_iter().collect();
    for (variable, host) in IMAGE_HOSTS {
        let mut repository = Text::fixed("{{ registry_host }}");
        let is_of_host = |reference: &str| reference.starts_with(&format!("{host}/"));
        let template = if let Some(prefix) = prefixes.get(host) {
            if !prefix.is_empty() {
                repository.push_fixed("/");
                repository.push(&ansible::part(prefix));
            }
            "@VARIABLE@: @REPOSITORY@\n"
        } else if setup.record.images.iter().any(|image| is_of_host(image.reference.as_str())) {
            "# @VARIABLE@ (@HOST@): the repositories of this host have no common prefix: unpack all bundles with one \
             template\n"
        } else {
            "# @VARIABLE@ (@HOST@): this site has no images of this host\n"
        };
        let repository = ansible::template(&repository);
        let values =
            [("VARIABLE", Text::fixed(variable)), ("HOST", Text::fixed(host)), ("REPOSITORY", repository)];
        text.push(&fill(template, &values));
    }
    text
}

/// Returns the registries of containerd on the nodes: the site, and the site as a mirror of the hosts whose
/// images it has, for images that are pulled by their original names.
fn containerd_mirrors(setup: &Setup, has_headers: bool) -> Text<Ansible> {
    let url = setup.registry_url();
    let mut options = Text::new();
    if has_headers && setup.settings.tls == Tls::Auto {
        options.push(&fill("        ca: @CA@\n", &[("CA", ansible::string(&containerd_ca(setup)))]));
    }
    if setup.settings.user.is_some() {
        options.push_fixed(if has_headers { MIRROR_HEADER } else { MIRROR_AUTH });
    }
    let entry = |prefix: &str, server: &str, mirror: &str| {
        let override_path = if mirror == url { "false" } else { "true" };
        fill(
            MIRROR,
            &[
                ("PREFIX", ansible::string(prefix)),
                ("SERVER", ansible::string(server)),
                ("MIRROR", ansible::string(mirror)),
                ("OVERRIDE_PATH", Text::fixed(override_path)),
                ("OPTIONS", options.clone()),
            ],
        )
    };
    let mut text = Text::fixed("\ncontainerd_registries_mirrors:\n");
    text.push(&entry(&setup.registry_host(), &url, &url));
    for (host, prefix) in setup.mirrored_hosts() {
        text.push(&entry(&host, &upstream_url(&host), &format!("{url}/v2/{prefix}")));
    }
    text
}

/// Returns the credentials of containerd on the nodes.
fn containerd_login(setup: &Setup, has_headers: bool) -> Text<Ansible> {
    let mut text = fill(REGISTRY_AUTH, &[("REGISTRY", ansible::string(&setup.registry_host()))]);
    if !has_headers {
        text.push_fixed(CTR_LOGIN);
    }
    text
}

/// Returns a comment with the platforms of the images, of those that Kubespray supports. Empty: the site has none.
fn platforms(setup: &Setup) -> Text<Ansible> {
    let all: BTreeSet<String> =
        setup.record.images.iter().flat_map(|image| &image.platforms).map(ToString::to_string).collect();
    let is_here = |name: &&str| all.contains(*name);
    let here: Vec<_> = PLATFORMS.into_iter().filter(is_here).map(Text::fixed).collect();
    if here.is_empty() {
        return Text::new();
    }
    fill("# Platforms of the images: @PLATFORMS@.\n", &[("PLATFORMS", Text::join(here, ", "))])
}

/// The URLs and references of a site, to compare with [`RELEASES`].
struct Coverage(BTreeSet<String>);

impl Coverage {
    fn of(setup: &Setup) -> Self {
        // The path decides: Kubespray requests it, and a list can give a file of any URL this path.
        let paths = setup.record.files.iter().filter_map(|file| {
            let path = file.path.as_str().strip_prefix(DEFAULT_PREFIX)?.strip_prefix('/')?;
            Some(format!("https://{path}"))
        });
        Self(paths.chain(setup.record.images.iter().map(|image| image.reference.to_string())).collect())
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
    fn missing_entries(&self, version: &'static str) -> Text<Ansible> {
        let mut text = Text::new();
        for release in RELEASES.iter().filter(|release| release.version == version) {
            if !self.has_architecture(release) {
                continue;
            }
            let missing: Vec<_> = release.entries().filter(|entry| !self.has(entry)).collect();
            let template = if missing.is_empty() { COMPLETE } else { INCOMPLETE };
            let number = |count: usize| Text::number(count as u64);
            text.push(&fill(
                template,
                &[
                    ("VERSION", Text::fixed(version)),
                    ("ARCHITECTURE", Text::fixed(release.architecture)),
                    ("MISSING", number(missing.len())),
                    ("ALL", number(release.entries().count())),
                ],
            ));
            for entry in missing {
                text.push(&fill("#   @ENTRY@\n", &[("ENTRY", Text::fixed(entry))]));
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
